//! The database below the overlay: redb on an encrypted block file.
//!
//! Commits use redb's quick-repair mode: the state of its page allocator is saved by each commit, and commits have two
//! phases (pages and the new slot durable first, then the header that names the slot). So opening after a crash
//! reads a few pages instead of walking the whole database, which may be gigabytes, and a half-written commit can't
//! be taken for a whole one, however the disk ordered its writes. A second fsync costs little here, because only
//! checkpoints commit.

use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use redb::{Database, ReadOnlyTable, ReadableDatabase, TableDefinition};

use super::batch::{Table, Value};
use super::journal::End;
use super::overlay::Level;
use super::shield::{Handle, Pass, Shield};
use crate::store::error::{Result, StoreError};

type Bytes = &'static [u8];

/// Rows of the store itself, hidden from its users.
const META: TableDefinition<'static, Bytes, Bytes> = TableDefinition::new("meta");
const META_FLOOR: &[u8] = b"journal_floor";
const META_CLEAN: &[u8] = b"clean";
const META_EPOCH: &[u8] = b"epoch";
const META_JOURNAL_END: &[u8] = b"journal_end";

/// Names one life of the live state: drawn when it is created, so a journal of another life is foreign.
pub(super) type Epoch = [u8; 16];

/// What the database says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    /// Number of the last batch contained.
    pub(super) floor: u64,
    /// Written by a clean close, and by nothing after it.
    pub(super) clean: bool,
    pub(super) epoch: Epoch,
    /// Of a clean close: where the journal ended.
    pub(super) journal_end: Option<End>,
}

fn definition(table: Table) -> TableDefinition<'static, Bytes, Bytes> {
    TableDefinition::new(table.name())
}

/// The database, open for writing.
pub(super) struct Db {
    redb: Arc<Database>,
    shield: Arc<Shield>,
    /// Of the handle that `redb` works on.
    pass: Arc<Pass>,
    cache_bytes: usize,
}

/// One committed state of the database, with its tables opened.
pub(super) struct Base {
    // Dropped in this order: tables hold the read transaction, which needs the database.
    tables: Vec<ReadOnlyTable<Bytes, Bytes>>,
    redb: Arc<Database>,
}

/// Gives an error of redb its meaning here.
fn redb_error(what: &str, error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(e) => match e.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
                StoreError::Corrupt(format!("cannot {what} the live database: {e}"))
            }
            _ => StoreError::io(format!("cannot {what} the live database"), e),
        },
        redb::Error::PreviousIo => StoreError::Io {
            what: format!("cannot {what} the live database"),
            source: std::io::Error::other("an earlier read failed"),
        },
        other => StoreError::Corrupt(format!("cannot {what} the live database: {other}")),
    }
}

/// Runs redb code that must not bring the process down, whatever the database holds.
fn contained<T>(what: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| {
        Err(StoreError::Corrupt(format!("cannot {what} the live database: it makes no sense")))
    })
}

impl Db {
    /// Makes a database in an empty backend.
    pub(super) fn create(shield: Arc<Shield>, cache_bytes: usize, epoch: Epoch) -> Result<(Db, Arc<Base>)> {
        contained("create", || {
            let db = Db::attach(shield, cache_bytes)?;
            let base = db.write(None, Meta { floor: 0, clean: false, epoch, journal_end: None })?;
            Ok((db, base))
        })
    }

    /// Opens a database that exists.
    pub(super) fn open(shield: Arc<Shield>, cache_bytes: usize) -> Result<(Db, Arc<Base>, Meta)> {
        if shield.len() == 0 {
            return Err(StoreError::Corrupt("the live database is empty".into()));
        }
        contained("open", || {
            let db = Db::attach(shield, cache_bytes)?;
            let meta = db.read_meta()?;
            let base = db.snapshot()?;
            Ok((db, base, meta))
        })
    }

    fn attach(shield: Arc<Shield>, cache_bytes: usize) -> Result<Db> {
        let handle = Handle::new(shield.clone());
        let pass = handle.pass();
        let redb = Database::builder()
            .set_cache_size(cache_bytes)
            .create_with_backend(handle)
            .map_err(|e| redb_error("open", e))?;
        // Not before: an attempt that fails must not close the file under the next one.
        pass.make_owner();
        Ok(Db { redb: Arc::new(redb), shield, pass, cache_bytes })
    }

    /// Whether a read failed since the database was opened. redb refuses to work then.
    pub(super) fn is_failed(&self) -> bool {
        self.pass.is_failed()
    }

    /// Opens the database again after a failed read, as after a crash: the last committed state is there, what was
    /// being written is not. Readers of the state before get errors from now on.
    ///
    /// # Errors
    /// `Io` when reading still fails, `NoSpace` while a full disk keeps what was committed in memory. May be tried
    /// again.
    pub(super) fn reopen(&mut self) -> Result<()> {
        // Opening writes; on top of what waits for room that would mix up the order of headers and pages. On a dead
        // shield nothing reaches the disk in any order.
        if !self.shield.settle() && !self.shield.is_dead() {
            return Err(StoreError::NoSpace);
        }
        self.pass.retire();
        *self = contained("reopen", || Db::attach(self.shield.clone(), self.cache_bytes))?;
        tracing::warn!("a read of the live database failed: it was opened again");
        Ok(())
    }

    /// Whether a state is one of the database as it is open now.
    pub(super) fn is_current(&self, base: &Base) -> bool {
        Arc::ptr_eq(&self.redb, &base.redb)
    }

    fn read_meta(&self) -> Result<Meta> {
        let fail = |e: redb::Error| redb_error("read", e);
        let txn = self.redb.begin_read().map_err(|e| fail(e.into()))?;
        let table = txn.open_table(META).map_err(|e| fail(e.into()))?;
        let row = |key: &'static [u8]| -> Result<Vec<u8>> {
            let row = table.get(key).map_err(|e| fail(e.into()))?;
            row.map(|v| v.value().to_vec())
                .ok_or_else(|| StoreError::Corrupt("the live database lacks a row about itself".into()))
        };
        let bad = || StoreError::Corrupt("the live database has a malformed row about itself".into());
        let clean = match row(META_CLEAN)?.as_slice() {
            [0] => false,
            [1] => true,
            _ => return Err(bad()),
        };
        let floor = u64::from_le_bytes(row(META_FLOOR)?.try_into().map_err(|_| bad())?);
        let epoch = row(META_EPOCH)?.try_into().map_err(|_| bad())?;
        let journal_end = match table.get(META_JOURNAL_END).map_err(|e| fail(e.into()))? {
            Some(end) => Some(End::decode(end.value()).ok_or_else(bad)?),
            None => None,
        };
        Ok(Meta { floor, clean, epoch, journal_end })
    }

    /// Returns the last committed state.
    pub(super) fn snapshot(&self) -> Result<Arc<Base>> {
        let txn = self.redb.begin_read().map_err(|e| redb_error("read", e))?;
        let open = |table| txn.open_table(definition(table)).map_err(|e| redb_error("read", e));
        let tables = Table::ALL.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(Base { tables, redb: self.redb.clone() }))
    }

    /// Puts a level of changes and the row about itself into the database, durably, and returns the new state.
    /// `NoSpace` leaves the old state and may be tried again; after any other error nothing may be written.
    pub(super) fn write(&self, level: Option<&Level>, meta: Meta) -> Result<Arc<Base>> {
        if !self.shield.settle() {
            return Err(self.stopped());
        }
        contained("write", || {
            let mut txn = self.redb.begin_write().map_err(|e| redb_error("write", e))?;
            txn.set_quick_repair(true);
            let filled = fill(&txn, level, meta);
            if self.shield.is_dead() || self.shield.is_starved() || filled.is_err() {
                let aborted = txn.abort().map_err(|e| redb_error("write", e));
                filled.and(aborted)?;
                return Err(self.stopped());
            }
            txn.commit().map_err(|e| redb_error("commit to", e))?;
            if self.shield.is_starved() && !self.shield.settle() {
                // redb holds the new state, the disk the old one. The same rows will be written again.
                return Err(self.stopped());
            }
            self.snapshot()
        })
    }

    fn stopped(&self) -> StoreError {
        if self.shield.is_dead() {
            StoreError::Poisoned("the live database could not be written".into())
        } else {
            StoreError::NoSpace
        }
    }
}

fn fill(txn: &redb::WriteTransaction, level: Option<&Level>, meta: Meta) -> Result<()> {
    let fail = |e: redb::Error| redb_error("write", e);
    for table in Table::ALL {
        let rows = level.map(|l| l.table(table));
        // A new database gets all its tables at once; later a table without changes needn't be opened.
        if rows.is_some_and(|rows| rows.is_empty()) {
            continue;
        }
        let mut out = txn.open_table(definition(table)).map_err(|e| fail(e.into()))?;
        for (key, value) in rows.into_iter().flatten() {
            match value {
                Some(value) => drop(out.insert(key.as_slice(), &**value).map_err(|e| fail(e.into()))?),
                None => drop(out.remove(key.as_slice()).map_err(|e| fail(e.into()))?),
            }
        }
    }
    let mut out = txn.open_table(META).map_err(|e| fail(e.into()))?;
    let floor = meta.floor.to_le_bytes();
    let rows = [(META_FLOOR, &floor[..]), (META_CLEAN, &[u8::from(meta.clean)]), (META_EPOCH, &meta.epoch)];
    for (key, value) in rows {
        drop(out.insert(key, value).map_err(|e| fail(e.into()))?);
    }
    match meta.journal_end {
        Some(end) => {
            drop(out.insert(META_JOURNAL_END, &end.encode()[..]).map_err(|e| fail(e.into()))?);
        }
        None => drop(out.remove(META_JOURNAL_END).map_err(|e| fail(e.into()))?),
    }
    Ok(())
}

/// An iterator over rows of the database, in order of keys from either end.
pub(super) struct Rows(redb::Range<'static, Bytes, Bytes>);

fn row_of(
    row: std::result::Result<
        (redb::AccessGuard<'_, Bytes>, redb::AccessGuard<'_, Bytes>),
        redb::StorageError,
    >,
) -> Result<(Vec<u8>, Value)> {
    let (key, value) = row.map_err(|e| redb_error("read", e))?;
    Ok((key.value().to_vec(), Value::from(value.value())))
}

impl Iterator for Rows {
    type Item = Result<(Vec<u8>, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(row_of)
    }
}

impl Base {
    /// Returns the bytes of pages that the database keeps in memory.
    pub(super) fn cached_bytes(&self) -> u64 {
        self.redb.cache_stats().used_bytes() as u64
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Value>> {
        let row = self.tables[table.index()].get(key).map_err(|e| redb_error("read", e))?;
        Ok(row.map(|v| Value::from(v.value())))
    }

    /// Iterates over a range, which must not be inverted.
    pub(super) fn iter(&self, table: Table, bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> Result<Rows> {
        let rows = self.tables[table.index()].range::<&[u8]>(bounds).map_err(|e| redb_error("read", e))?;
        Ok(Rows(rows))
    }

    /// Returns the last row of a range, which must not be inverted.
    pub(super) fn last(
        &self,
        table: Table,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Result<Option<(Vec<u8>, Value)>> {
        let rows = self.tables[table.index()].range::<&[u8]>(bounds);
        rows.map_err(|e| redb_error("read", e))?.next_back().map(row_of).transpose()
    }
}
