//! Extent rows of one file: what covers a range, and edits that split, trim and replace rows.
//!
//! Only who holds a file's node changes its extents, so rows read under that lock stay true until it is dropped.

use std::collections::BTreeMap;

use super::error::FsResult;
use super::txn::PAGE_ROWS;
use crate::store::live::{Batch, Live, Table};
use crate::store::records::{ExtentRow, extent_key, parse_extent_key};

/// Neighbouring inline rows are joined while they stay this short, in bytes: a log that is synced line by line gets
/// few rows, and a sync never writes much more than what is new.
const INLINE_JOIN_MAX: usize = 4096;

/// Returns up to `limit` rows that overlap or touch `start..=end`, ascending. With fewer than `limit` rows, these are
/// all.
pub(super) fn rows_around(
    live: &Live,
    ino: u64,
    start: u64,
    end: u64,
    limit: usize,
) -> FsResult<Vec<(u64, ExtentRow)>> {
    let mut rows = Vec::new();
    if start > 0
        && let Some((key, value)) =
            live.last_before(Table::Extents, &extent_key(ino, 0), &extent_key(ino, start))?
    {
        let (off, row) = (parse_extent_key(&key)?.1, ExtentRow::decode(&value)?);
        if off.saturating_add(row.len()) >= start {
            rows.push((off, row));
        }
    }
    let to = extent_key(ino, end.saturating_add(1));
    for (key, value) in live.range(Table::Extents, &extent_key(ino, start), Some(&to), limit - rows.len())? {
        rows.push((parse_extent_key(&key)?.1, ExtentRow::decode(&value)?));
    }
    Ok(rows)
}

/// Returns all rows that overlap `start..end`, ascending. For ranges of one request.
pub(super) fn rows_in(live: &Live, ino: u64, start: u64, end: u64) -> FsResult<Vec<(u64, ExtentRow)>> {
    let mut all: Vec<(u64, ExtentRow)> = Vec::new();
    let mut from = start;
    loop {
        let rows = rows_around(live, ino, from, end, PAGE_ROWS)?;
        let full = rows.len() == PAGE_ROWS;
        // A page begins with the last row of the one before, which touches its start.
        let known = all.last().map(|(off, _)| *off);
        all.extend(rows.into_iter().filter(|(off, _)| known.is_none_or(|known| *off > known)));
        match all.last() {
            Some((off, row)) if full => from = off + row.len(),
            _ => break,
        }
    }
    all.retain(|(off, row)| *off < end && off + row.len() > start);
    Ok(all)
}

/// A change of the extents of one file within a window, held in memory until it goes into a batch.
#[derive(Debug)]
pub(super) struct ExtentEdit {
    ino: u64,
    old: BTreeMap<u64, ExtentRow>,
    new: BTreeMap<u64, ExtentRow>,
}

impl ExtentEdit {
    /// Returns an edit of the rows around `start..end`.
    pub(super) fn load(live: &Live, ino: u64, start: u64, end: u64) -> FsResult<Self> {
        let mut rows = rows_in(live, ino, start.saturating_sub(1), end.saturating_add(1))?;
        rows.retain(|(off, row)| *off <= end && off + row.len() >= start);
        Ok(Self::of(ino, rows))
    }

    /// Returns an edit of these rows.
    pub(super) fn of(ino: u64, rows: Vec<(u64, ExtentRow)>) -> Self {
        let old: BTreeMap<u64, ExtentRow> = rows.into_iter().collect();
        Self { ino, new: old.clone(), old }
    }

    /// Returns the rows of `start..end`, cut at its ends.
    pub(super) fn rows(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, ExtentRow)> {
        let first = self.new.range(..start).next_back().map_or(start, |(off, _)| *off);
        self.new.range(first..end).filter_map(move |(off, row)| {
            let (from, to) = ((*off).max(start), (off + row.len()).min(end));
            (from < to).then(|| (from, row.slice(from - off, to - from)))
        })
    }

    /// Makes `start..end` a hole.
    pub(super) fn cut(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let first = self
            .new
            .range(..start)
            .next_back()
            .filter(|(off, row)| **off + row.len() > start)
            .map_or(start, |(off, _)| *off);
        let hit: Vec<u64> = self.new.range(first..end).map(|(off, _)| *off).collect();
        for off in hit {
            let Some(row) = self.new.remove(&off) else { continue };
            let row_end = off + row.len();
            if off < start {
                self.new.insert(off, row.slice(0, start - off));
            }
            if row_end > end {
                self.new.insert(end, row.slice(end - off, row_end - end));
            }
        }
    }

    /// Puts a row over what was there.
    pub(super) fn put(&mut self, off: u64, row: ExtentRow) {
        self.cut(off, off + row.len());
        let ExtentRow::Inline(bytes) = row else {
            self.new.insert(off, row);
            return;
        };
        let (mut off, mut bytes) = (off, bytes);
        if let Some((&at, ExtentRow::Inline(before))) = self.new.range(..off).next_back()
            && at + before.len() as u64 == off
            && before.len() + bytes.len() <= INLINE_JOIN_MAX
        {
            bytes = [before.as_slice(), &bytes].concat();
            self.new.remove(&at);
            off = at;
        }
        let end = off + bytes.len() as u64;
        if let Some(ExtentRow::Inline(after)) = self.new.get(&end)
            && after.len() + bytes.len() <= INLINE_JOIN_MAX
        {
            bytes.extend_from_slice(after);
            self.new.remove(&end);
        }
        self.new.insert(off, ExtentRow::Inline(bytes));
    }

    /// Splits the row that covers both sides of `off`, if one does.
    pub(super) fn split_at(&mut self, off: u64) {
        let Some((&at, row)) = self.new.range(..off).next_back() else { return };
        let end = at + row.len();
        if end > off {
            let (head, tail) = (row.slice(0, off - at), row.slice(off - at, end - off));
            self.new.insert(at, head);
            self.new.insert(off, tail);
        }
    }

    /// Takes the rows from `off` on into an edit of their own, which has to be joined again.
    pub(super) fn split_off(&mut self, off: u64) -> Self {
        Self { ino: self.ino, old: BTreeMap::new(), new: self.new.split_off(&off) }
    }

    /// Adds the rows of another edit of the same file.
    pub(super) fn join(&mut self, other: Self) {
        for (off, row) in other.new {
            self.new.insert(off, row);
        }
    }

    /// Moves all rows by this many bytes. None may cross 0 or the end of what a file can be.
    pub(super) fn shift(&mut self, by: i64) {
        let rows = std::mem::take(&mut self.new);
        self.new = rows.into_iter().map(|(off, row)| (off.saturating_add_signed(by), row)).collect();
    }

    /// Returns by how many bytes inline rows have grown; 0 if they have not.
    pub(super) fn inline_growth(&self) -> u64 {
        let bytes = |rows: &BTreeMap<u64, ExtentRow>| {
            let inline = rows.values().filter(|row| matches!(row, ExtentRow::Inline(_)));
            inline.map(ExtentRow::len).sum::<u64>()
        };
        bytes(&self.new).saturating_sub(bytes(&self.old))
    }

    /// Adds the changed rows to a batch. Returns by how much the bytes covered grew.
    pub(super) fn finish(self, batch: &mut Batch) -> i64 {
        let bytes = |rows: &BTreeMap<u64, ExtentRow>| rows.values().map(ExtentRow::len).sum::<u64>();
        let delta = bytes(&self.new).wrapping_sub(bytes(&self.old)) as i64;
        for off in self.old.keys().filter(|off| !self.new.contains_key(off)) {
            batch.delete(Table::Extents, extent_key(self.ino, *off));
        }
        for (off, row) in &self.new {
            if self.old.get(off) != Some(row) {
                batch.put(Table::Extents, extent_key(self.ino, *off), row.encode());
            }
        }
        delta
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::format::ids::ChunkId;

    fn chunk(n: u8, len: u64, chunk_offset: u32) -> ExtentRow {
        ExtentRow::Chunk { len, chunk: ChunkId([n; 32]), chunk_offset }
    }

    fn edit(rows: Vec<(u64, ExtentRow)>) -> ExtentEdit {
        ExtentEdit::of(1, rows)
    }

    fn shape(edit: &ExtentEdit) -> Vec<(u64, u64)> {
        edit.new.iter().map(|(off, row)| (*off, row.len())).collect()
    }

    #[test]
    fn a_cut_in_the_middle_splits() {
        let mut e = edit(vec![(10, chunk(1, 100, 7))]);
        e.cut(30, 50);
        assert_eq!(e.new.get(&10), Some(&chunk(1, 20, 7)));
        assert_eq!(e.new.get(&50), Some(&chunk(1, 60, 47)));
        assert_eq!(shape(&e), [(10, 20), (50, 60)]);
        let mut batch = Batch::new();
        assert_eq!(e.finish(&mut batch), -20);
        assert!(!batch.is_empty());
    }

    #[test]
    fn a_cut_takes_whole_rows_and_trims_both_ends() {
        let mut e = edit(vec![
            (0, chunk(1, 10, 0)),
            (10, chunk(2, 10, 0)),
            (20, chunk(3, 10, 0)),
            (40, chunk(4, 5, 0)),
        ]);
        e.cut(5, 25);
        assert_eq!(shape(&e), [(0, 5), (25, 5), (40, 5)]);
        assert_eq!(e.new.get(&25), Some(&chunk(3, 5, 5)));
        e.cut(30, 40);
        e.cut(45, 99);
        e.cut(7, 7);
        assert_eq!(shape(&e), [(0, 5), (25, 5), (40, 5)]);
    }

    #[test]
    fn a_row_replaces_what_it_covers() {
        let mut e = edit(vec![(0, chunk(1, 100, 0))]);
        e.put(40, chunk(2, 20, 3));
        assert_eq!(shape(&e), [(0, 40), (40, 20), (60, 40)]);
        e.put(0, chunk(5, 100, 0));
        assert_eq!(shape(&e), [(0, 100)]);
    }

    #[test]
    fn short_inline_neighbours_become_one_row() {
        let mut e =
            edit(vec![(0, ExtentRow::Inline(b"aaa".to_vec())), (5, ExtentRow::Inline(b"ccc".to_vec()))]);
        e.put(3, ExtentRow::Inline(b"bb".to_vec()));
        assert_eq!(e.new.get(&0), Some(&ExtentRow::Inline(b"aaabbccc".to_vec())));
        e.put(8, ExtentRow::Inline(vec![0; INLINE_JOIN_MAX]));
        assert_eq!(shape(&e), [(0, 8), (8, INLINE_JOIN_MAX as u64)]);
        e.put(2, ExtentRow::Inline(b"X".to_vec()));
        assert_eq!(e.new.get(&0), Some(&ExtentRow::Inline(b"aaXbbccc".to_vec())));
    }

    #[test]
    fn unchanged_rows_are_not_written() {
        let mut e = edit(vec![(0, chunk(1, 10, 0)), (10, chunk(2, 10, 0))]);
        e.put(10, chunk(2, 10, 0));
        let mut batch = Batch::new();
        assert_eq!(e.finish(&mut batch), 0);
        assert!(batch.is_empty());
    }

    #[test]
    fn shifting_moves_every_row() {
        let mut e = edit(vec![(100, chunk(1, 10, 0)), (200, chunk(2, 10, 0))]);
        e.shift(-50);
        assert_eq!(shape(&e), [(50, 10), (150, 10)]);
        e.shift(60);
        assert_eq!(shape(&e), [(110, 10), (210, 10)]);
    }
}
