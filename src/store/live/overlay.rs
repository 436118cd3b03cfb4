//! Changes in memory, above the database: one ordered map a table.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::batch::{Op, TABLES, Table, Value};

/// What a map node costs beside key and value, roughly.
const ROW_OVERHEAD: usize = 96;

/// A row of an overlay: `None` says that the row is deleted, whatever lies below.
pub(super) type Row = (Vec<u8>, Option<Value>);

/// One level of changes.
#[derive(Debug, Default)]
pub(super) struct Level {
    tables: [BTreeMap<Vec<u8>, Option<Value>>; TABLES],
    bytes: usize,
    rows: usize,
}

/// A stretch of one table's changes, taken while the level was locked.
pub(super) struct Part {
    /// Rows, deletes included, ascending (or descending for [`Level::part_back`]).
    pub(super) rows: Vec<Row>,
    /// Only part of what was asked for was taken: it ends at the last row.
    pub(super) more: bool,
}

/// Deletes that one stretch may hold, so that a lock is held for a bounded time.
const DELETES_A_PART: usize = 1024;

impl Level {
    /// Approximate memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of rows, deletes included.
    #[cfg(test)]
    fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub(super) fn put(&mut self, op: Op) {
        let Op { table, key, value } = op;
        let value_len = value.as_ref().map_or(0, |v| v.len());
        let key_len = key.len();
        match self.tables[table.index()].insert(key, value) {
            Some(old) => {
                self.bytes -= old.as_ref().map_or(0, |v| v.len());
                self.bytes += value_len;
            }
            None => {
                self.bytes += ROW_OVERHEAD + key_len + value_len;
                self.rows += 1;
            }
        }
    }

    /// Puts the rows of a newer level over this one.
    pub(super) fn absorb(&mut self, newer: Level) {
        for (table, rows) in Table::ALL.into_iter().zip(newer.tables) {
            for (key, value) in rows {
                self.put(Op { table, key, value });
            }
        }
    }

    /// Returns `Some(None)` for a row that is deleted here, `None` for one that this level says nothing about.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Value>> {
        self.tables[table.index()].get(key)
    }

    /// Iterates over the changes of one table within bounds, in order of keys.
    pub(super) fn iter<'a>(
        &'a self,
        table: Table,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
    ) -> impl DoubleEndedIterator<Item = (&'a Vec<u8>, &'a Option<Value>)> + use<'a> {
        self.tables[table.index()].range::<[u8], _>(bounds)
    }

    /// All changes of one table.
    pub(super) fn table(&self, table: Table) -> &BTreeMap<Vec<u8>, Option<Value>> {
        &self.tables[table.index()]
    }

    /// Takes rows from the start of a range until `limit` of them are not deletes.
    pub(super) fn part(&self, table: Table, bounds: (Bound<&[u8]>, Bound<&[u8]>), limit: usize) -> Part {
        take(self.iter(table, bounds), limit)
    }

    /// Takes rows from the end of a range, in descending order, until one is not a delete.
    pub(super) fn part_back(&self, table: Table, bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> Part {
        take(self.iter(table, bounds).rev(), 1)
    }
}

fn take<'a>(mut rows: impl Iterator<Item = (&'a Vec<u8>, &'a Option<Value>)>, limit: usize) -> Part {
    let mut part = Part { rows: Vec::new(), more: false };
    let (mut live, mut deleted) = (0, 0);
    for (key, value) in rows.by_ref() {
        match value {
            Some(_) => live += 1,
            None => deleted += 1,
        }
        part.rows.push((key.clone(), value.clone()));
        if live >= limit || deleted >= DELETES_A_PART {
            part.more = true;
            break;
        }
    }
    part
}

/// Takes a level out of its `Arc`, copying it when a reader still looks at it.
pub(super) fn unshare(level: Arc<Level>) -> Level {
    Arc::try_unwrap(level).unwrap_or_else(|shared| Level {
        tables: shared.tables.clone(),
        bytes: shared.bytes,
        rows: shared.rows,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn op(key: &str, value: Option<&str>) -> Op {
        Op { table: Table::Dirents, key: key.into(), value: value.map(|v| Value::from(v.as_bytes())) }
    }

    #[test]
    fn bytes_and_rows_are_counted() {
        let mut level = Level::default();
        assert!(level.is_empty());
        level.put(op("a", Some("12345")));
        assert_eq!((level.bytes(), level.rows()), (ROW_OVERHEAD + 6, 1));
        level.put(op("a", Some("1")));
        level.put(op("a", None));
        assert_eq!((level.bytes(), level.rows()), (ROW_OVERHEAD + 1, 1));
        assert_eq!(level.get(Table::Dirents, b"a"), Some(&None));
        assert_eq!(level.get(Table::Inodes, b"a"), None);
    }

    #[test]
    fn newer_rows_win() {
        let (mut old, mut new) = (Level::default(), Level::default());
        old.put(op("a", Some("old")));
        old.put(op("b", Some("old")));
        new.put(op("b", None));
        new.put(op("c", Some("new")));
        old.absorb(new);
        assert_eq!(old.get(Table::Dirents, b"a").unwrap().as_deref(), Some(&b"old"[..]));
        assert_eq!(old.get(Table::Dirents, b"b"), Some(&None));
        assert_eq!(old.rows(), 3);
        let shared = Arc::new(old);
        let copy = unshare(shared.clone());
        assert_eq!((copy.rows(), copy.bytes()), (shared.rows(), shared.bytes()));
    }

    #[test]
    fn parts_are_bounded() {
        let mut level = Level::default();
        for i in 0..2 * DELETES_A_PART {
            level.put(op(&format!("{i:06}"), (i % 1000 == 999).then_some("x")));
        }
        let all = (Bound::Unbounded, Bound::Unbounded);
        let part = level.part(Table::Dirents, all, 1);
        assert!(part.more && part.rows.len() == 1000);
        let part = level.part(Table::Dirents, all, 10);
        assert!(part.more && part.rows.len() == DELETES_A_PART + 1);
        let part = level.part(Table::Dirents, (Bound::Included(b"002000"), Bound::Unbounded), 10);
        assert!(!part.more && part.rows.len() == 48);
        let back = level.part_back(Table::Dirents, all);
        assert!(back.more && back.rows.len() == 49 && back.rows[48].1.is_some());
    }
}
