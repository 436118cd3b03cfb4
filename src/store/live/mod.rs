//! The live database: an ordered key-value store whose changes are atomic, and durable after `commit`.
//!
//! # Levels
//!
//! [`Live::apply`] puts a batch into the *active* overlay in memory and appends it, encoded, to the *log*. Readers look
//! at the active overlay, then at the *frozen* one (only while a checkpoint runs), then at the database (redb on the
//! encrypted block file). [`Live::commit`] writes the log as one group into the journal and syncs it.
//! [`Live::checkpoint`] freezes the overlay, writes it into the database in one durable transaction together with the
//! number of the last batch in it (*floor*), and so frees the journal segments that hold nothing newer.
//! Opening replays the journal's groups that are newer than the floor.
//!
//! # Order
//!
//! Batches are numbered. A group is captured with the numbers it covers, then the [`Barrier`] makes pack bytes
//! durable, then the group is written and synced, then the commit returns. A checkpoint captures the log and freezes
//! the overlay at one moment, and also calls the barrier before anything is written.
//!
//! # Why nothing waits forever
//!
//! Locks are taken in this order only: checkpoint, turn, journal, memory.
//!
//! - *Memory* (a read-write lock) is held for lookups and inserts, never across I/O.
//! - The *turn* (with the journal) is held by one committer at a time, across the barrier and one journal write. Its
//!   holder never waits for a checkpoint: a committer that finds no room in the journal puts its group back,
//!   gives up its turn, and runs a checkpoint (or waits for the running one) like anyone else.
//! - A checkpoint needs no journal room. It writes the captured log into the journal if that fits, so that
//!   committers don't wait for the database. If it doesn't fit, the checkpoint keeps the turn until the database has
//!   everything, which makes the log durable too, and frees both segments. (Keeping the turn is needed: a later
//!   group must not be acknowledged while an earlier one is only in memory.)
//! - `apply` waits for a commit when the log is full and for a checkpoint when the overlay is full, holding no lock.
//!
//! So every wait is for a holder that only does I/O. **Users must not break this: whoever calls `apply`, `commit`,
//! `checkpoint` or `view` must hold no lock that the barrier takes, and the barrier must not call any of these.**
//!
//! # Failures
//!
//! A journal or database write that fails poisons the vault: later changes and commits fail, reads go on. A full
//! disk does not poison: segments are preallocated, so commits don't notice it; a checkpoint that can't grow the
//! database reports `NoSpace`, leaves its changes in the overlay and in the journal, and is tried again later. When both
//! segments and the overlay are full, commits and changes report `NoSpace` too, until there is room.
//!
//! A *read* of the database that fails is different: redb then refuses whatever is not in its cache, and the next
//! checkpoint poisons the vault. Damage under the live state is not worked around, only reported.

mod base;
mod batch;
mod commit;
mod journal;
mod overlay;
mod read;
mod shield;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::StorageBackend;

use self::base::{Base, Db, Epoch};
use self::journal::Journal;
use self::overlay::Level;
use self::read::Below;
use self::shield::Shield;
use crate::crypto::LiveKeys;
use crate::disk::Disk;
use crate::env::Env;
use crate::store::blockfile::{BlockFile, DATA_NAME, LOG_NAME};
use crate::store::error::{Result, StoreError};
use crate::store::poison::Poison;

pub use self::batch::{Batch, Table, Value};
pub use self::read::LiveView;

/// Body of a fuzz target: the journal's segments and the operations in its records.
pub(super) fn fuzz(data: &[u8]) {
    batch::fuzz(data);
    journal::fuzz(data);
}

const DIR: &str = "live";

/// The log is committed at the latest when it has this many bytes.
const LOG_MAX: usize = 4 << 20;
/// After a checkpoint found the disk full, changes don't start another one for this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Makes everything durable that committed changes may name.
pub trait Barrier: Send + Sync {
    /// Called by each commit after it captured what to commit and before it writes the journal. When it fails, so
    /// does the commit, with the same error, and may be tried again. Must not change or commit anything in the store.
    fn before_commit(&self) -> Result<()>;
}

/// Sizes of the live database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveConfig {
    /// Bytes of each of the two journal segments, at least 256 KiB.
    pub segment_bytes: u64,
    /// Bytes of the database's page cache.
    pub cache_bytes: usize,
    /// Approximate bytes of uncheckpointed changes kept in memory. A checkpoint starts at half of it; at all of it
    /// changes wait.
    pub overlay_bytes_max: usize,
    /// Whether checkpoints may run in a thread of their own. Otherwise the caller who makes one necessary does it.
    pub background: bool,
}

/// Memory of a [`Live`], in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveMemory {
    /// Of changes that are not in the database yet, roughly: at most `overlay_bytes_max` and a log.
    pub change_bytes: u64,
    /// Of the database's pages: at most `cache_bytes` while no checkpoint runs.
    pub page_bytes: u64,
}

impl Default for LiveConfig {
    fn default() -> Self {
        LiveConfig {
            segment_bytes: 32 << 20,
            cache_bytes: 32 << 20,
            overlay_bytes_max: 48 << 20,
            background: true,
        }
    }
}

impl LiveConfig {
    /// Returns the size of a segment that is really used: small ones make no sense.
    fn segment(&self) -> u64 {
        self.segment_bytes.max(journal::SEGMENT_MIN)
    }

    /// Bytes of log at which changes have to wait for a commit.
    fn log_max(&self) -> usize {
        LOG_MAX.min(self.batch_bytes_max())
    }

    /// Returns the largest encoded batch that can be applied. A log may be that much over its bound, and the sum
    /// must fit into an empty segment.
    pub fn batch_bytes_max(&self) -> usize {
        journal::group_max(self.segment()) / 2
    }
}

/// What is in memory. Everything here changes at one moment.
struct Mem {
    active: Level,
    /// Changes that a running checkpoint writes.
    frozen: Option<Arc<Level>>,
    /// `None` once the store is closed.
    base: Option<Arc<Base>>,
    /// Encoded batches that no journal write has captured.
    log: Vec<u8>,
    /// Number of the last batch before the log.
    log_from: u64,
    /// Number of the last batch applied.
    applied: u64,
    /// Number of the last batch in the database.
    floor: u64,
    closed: bool,
}

impl Mem {
    fn bytes(&self) -> usize {
        self.active.bytes() + self.frozen.as_ref().map_or(0, |level| level.bytes())
    }

    fn below(&self) -> Result<Below> {
        let base = self.base.as_ref().ok_or_else(closed)?;
        Ok(Below { frozen: self.frozen.clone(), base: base.clone() })
    }
}

/// Who may write the journal.
struct Turn {
    taken: bool,
    /// Number of the last batch that is durable.
    durable: u64,
}

/// The ordered key-value store. All calls may be made from any thread. See the module's text for what callers must
/// not hold.
pub struct Live {
    me: Weak<Live>,
    env: Arc<dyn Env>,
    poison: Arc<Poison>,
    cfg: LiveConfig,
    epoch: Epoch,
    recovered: bool,
    mem: RwLock<Mem>,
    turn: Mutex<Turn>,
    turn_changed: Condvar,
    /// Used by the holder of the turn only.
    journal: Mutex<Journal>,
    /// Bytes ever written to the journal, and how many of them are needed no more.
    journal_written: AtomicU64,
    journal_retired: AtomicU64,
    /// Held for a whole checkpoint. `None` once the store is closed.
    db: Mutex<Option<Db>>,
    barrier: RwLock<Option<Weak<dyn Barrier>>>,
    /// The thread that runs a checkpoint, and whether one is on its way.
    worker: Mutex<Option<JoinHandle<()>>>,
    kicked: AtomicBool,
    /// Time (as of the monotonic clock) before which no checkpoint starts by itself.
    retry_at: Mutex<Duration>,
}

fn closed() -> StoreError {
    StoreError::Io { what: "the live database is closed".into(), source: io::ErrorKind::NotConnected.into() }
}

/// Gives an error of the block file its meaning.
fn blocks_error(e: io::Error) -> StoreError {
    match e.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            StoreError::Corrupt(format!("cannot open the live database: {e}"))
        }
        _ => StoreError::io("cannot open the live database", e),
    }
}

fn paths() -> [String; 2] {
    [format!("{DIR}/{LOG_NAME}"), format!("{DIR}/{DATA_NAME}")]
}

impl Live {
    /// Returns whether there is anything of a live state in `live/`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn exists(disk: &dyn Disk) -> Result<bool> {
        for path in paths() {
            if disk.len(&path).map_err(blocks_error)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes a fresh, empty live state in `live/`, removing what was there.
    pub fn create(
        disk: Arc<dyn Disk>,
        keys: LiveKeys,
        env: Arc<dyn Env>,
        poison: Arc<Poison>,
        cfg: LiveConfig,
    ) -> Result<Arc<Live>> {
        disk.create_dir_all(DIR).map_err(|e| StoreError::io("cannot create live/", e))?;
        for path in paths() {
            match disk.remove(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io(format!("cannot remove {path}"), e));
                }
                _ => {}
            }
        }
        disk.sync_dir(DIR).map_err(|e| StoreError::io("cannot sync live/", e))?;
        let blocks = BlockFile::open(disk.clone(), env.clone(), keys.clone(), (*poison).clone(), DIR)
            .map_err(blocks_error)?;
        Self::create_on(Box::new(blocks), &*disk, keys, env, poison, cfg)
    }

    fn create_on(
        backend: Box<dyn StorageBackend>,
        disk: &dyn Disk,
        keys: LiveKeys,
        env: Arc<dyn Env>,
        poison: Arc<Poison>,
        cfg: LiveConfig,
    ) -> Result<Arc<Live>> {
        let mut epoch = Epoch::default();
        env.random(&mut epoch);
        let shield = Shield::new(backend, (*poison).clone()).map_err(blocks_error)?;
        let journal = Journal::create(disk, keys, env.clone(), epoch, cfg.segment())?;
        let (db, base) = Db::create(shield, cfg.cache_bytes, epoch)?;
        Ok(Self::assemble(env, poison, cfg, epoch, false, journal, db, base, Level::default(), 0, 0))
    }

    /// Opens the live state, replaying what was committed since its last checkpoint.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Corrupt` when it is not usable (damaged, tampered with, incomplete).
    pub fn open(
        disk: Arc<dyn Disk>,
        keys: LiveKeys,
        env: Arc<dyn Env>,
        poison: Arc<Poison>,
        cfg: LiveConfig,
    ) -> Result<Arc<Live>> {
        let mut found = [false; 2];
        for (path, found) in paths().iter().zip(&mut found) {
            *found = disk.len(path).map_err(blocks_error)?.is_some();
        }
        match found {
            [false, false] => return Err(StoreError::NotFound("the vault has no live state".into())),
            [true, true] => {}
            _ => {
                return Err(StoreError::Corrupt(
                    "one of the two files of the live database is missing".into(),
                ));
            }
        }
        let blocks = BlockFile::open(disk.clone(), env.clone(), keys.clone(), (*poison).clone(), DIR)
            .map_err(blocks_error)?;
        Self::open_on(Box::new(blocks), &*disk, keys, env, poison, cfg)
    }

    fn open_on(
        backend: Box<dyn StorageBackend>,
        disk: &dyn Disk,
        keys: LiveKeys,
        env: Arc<dyn Env>,
        poison: Arc<Poison>,
        cfg: LiveConfig,
    ) -> Result<Arc<Live>> {
        let shield = Shield::new(backend, (*poison).clone()).map_err(blocks_error)?;
        let (db, base, meta) = Db::open(shield, cfg.cache_bytes)?;
        let mut level = Level::default();
        let mut applied = meta.floor;
        let mut replay = |group: journal::Group<'_>| {
            if group.to <= applied {
                return Ok(());
            }
            if meta.clean || group.from > applied || group.from >= group.to {
                return Err(StoreError::Corrupt("journal and live database do not belong together".into()));
            }
            for op in group.ops {
                let op =
                    op.map_err(|_| StoreError::Corrupt("the journal holds a malformed change".into()))?;
                level.put(op);
            }
            applied = group.to;
            Ok(())
        };
        let closed = if meta.clean { meta.journal_end } else { None };
        let journal = Journal::open(disk, keys, env.clone(), meta.epoch, cfg.segment(), closed, &mut replay)?;
        let (floor, replayed) = (meta.floor, !level.is_empty());
        let live = Self::assemble(
            env,
            poison,
            cfg,
            meta.epoch,
            !meta.clean,
            journal,
            db,
            base,
            level,
            floor,
            applied,
        );
        if meta.clean {
            // Nothing may be written while the database says that it was closed.
            live.write_unclean()?;
        } else if replayed {
            match live.checkpoint() {
                // The journal still has it all; there is room for more in it, or commits say that there is none.
                Err(StoreError::NoSpace) => {}
                other => other?,
            }
        }
        Ok(live)
    }

    #[allow(clippy::too_many_arguments)]
    fn assemble(
        env: Arc<dyn Env>,
        poison: Arc<Poison>,
        cfg: LiveConfig,
        epoch: Epoch,
        recovered: bool,
        journal: Journal,
        db: Db,
        base: Arc<Base>,
        active: Level,
        floor: u64,
        applied: u64,
    ) -> Arc<Live> {
        let mem = Mem {
            active,
            frozen: None,
            base: Some(base),
            log: Vec::new(),
            log_from: applied,
            applied,
            floor,
            closed: false,
        };
        Arc::new_cyclic(|me| Live {
            me: me.clone(),
            env,
            poison,
            cfg,
            epoch,
            recovered,
            mem: RwLock::new(mem),
            turn: Mutex::new(Turn { taken: false, durable: applied }),
            turn_changed: Condvar::new(),
            journal_written: AtomicU64::new(journal.written()),
            journal_retired: AtomicU64::new(0),
            journal: Mutex::new(journal),
            db: Mutex::new(Some(db)),
            barrier: RwLock::new(None),
            worker: Mutex::new(None),
            kicked: AtomicBool::new(false),
            retry_at: Mutex::new(Duration::ZERO),
        })
    }

    /// Tells whether the live state had not been closed before it was opened.
    pub fn recovered(&self) -> bool {
        self.recovered
    }

    /// Sets what every commit from now on calls first.
    pub fn set_barrier(&self, barrier: Weak<dyn Barrier>) {
        *self.barrier.write().unwrap_or_else(PoisonError::into_inner) = Some(barrier);
    }

    /// Returns a row's value.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Value>> {
        self.reading(|| {
            let below = {
                let mem = self.mem();
                if let Some(row) = mem.active.get(table, key) {
                    return Ok(row.clone());
                }
                mem.below()?
            };
            below.get(table, key)
        })
    }

    /// Returns up to `limit` rows with `from <= key < to` (`None`: to the end of the table), ascending.
    pub fn range(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Value)>> {
        self.reading(|| {
            read::range(table, from, to, limit, |bounds, limit| {
                let mem = self.mem();
                Ok((mem.active.part(table, bounds, limit), mem.below()?))
            })
        })
    }

    /// Returns the row with the greatest key in `[from, below)`.
    pub fn last_before(&self, table: Table, from: &[u8], below: &[u8]) -> Result<Option<(Vec<u8>, Value)>> {
        self.reading(|| {
            read::last_before(table, from, below, |bounds| {
                let mem = self.mem();
                Ok((mem.active.part_back(table, bounds), mem.below()?))
            })
        })
    }

    /// Reads; after an I/O error once more on the database opened anew, because redb lets nobody read on after one.
    /// So an error that comes back is that of the rows asked for, and says nothing of others.
    fn reading<T>(&self, read: impl Fn() -> Result<T>) -> Result<T> {
        match read() {
            Err(StoreError::Io { .. }) if self.revive() => read(),
            other => other,
        }
    }

    /// Sees to it that the database can be read again. False: it can't, or the store is closed.
    fn revive(&self) -> bool {
        let mut db = self.db_lock();
        let Some(db) = db.as_mut() else { return false };
        let readable = if db.is_failed() { db.reopen() } else { Ok(()) };
        let current = readable.and_then(|()| {
            // No checkpoint runs, so what is frozen and what is in the database can't change meanwhile.
            let is_current = self.mem().base.as_ref().is_some_and(|base| db.is_current(base));
            if is_current { Ok(None) } else { db.snapshot().map(Some) }
        });
        match current {
            Ok(None) => true,
            Ok(Some(base)) => {
                let old = self.mem_mut().base.replace(base);
                drop(old);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the live database can't be opened again after a failed read");
                false
            }
        }
    }

    /// Makes a batch visible at once, atomically; a later commit makes it durable. Memory only, except that it
    /// waits for a commit or a checkpoint when there is no room. See the module's text for what callers must not
    /// hold.
    ///
    /// # Errors
    /// `NoSpace` when there is no room in memory and none on disk to make some; `Poisoned`. The batch was not applied.
    pub fn apply(&self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return self.check();
        }
        if batch.encoded_len() > self.cfg.batch_bytes_max() {
            return Err(StoreError::Io {
                what: format!("a change of {} bytes is too large for the journal", batch.encoded_len()),
                source: io::ErrorKind::InvalidInput.into(),
            });
        }
        let mut encoded = Vec::new();
        batch.encode_into(&mut encoded);
        let need = encoded.len();
        loop {
            self.check()?;
            let full = {
                let mut mem = self.mem_mut();
                if mem.closed {
                    return Err(closed());
                }
                let bytes = mem.bytes();
                if mem.log.len() >= self.cfg.log_max() {
                    Full::Log
                } else if bytes > 0 && bytes.saturating_add(need) > self.cfg.overlay_bytes_max {
                    Full::Overlay
                } else {
                    mem.log.extend_from_slice(&encoded);
                    mem.applied += 1;
                    for op in batch.into_ops() {
                        mem.active.put(op);
                    }
                    let half = mem.active.bytes() > self.cfg.overlay_bytes_max / 2;
                    drop(mem);
                    if half {
                        self.kick();
                    }
                    return Ok(());
                }
            };
            match full {
                Full::Log => self.commit()?,
                Full::Overlay => self.make_overlay_room(need)?,
            }
        }
    }

    /// Returns the bytes that the next commit will write.
    pub fn uncommitted_bytes(&self) -> u64 {
        self.mem().log.len() as u64
    }

    /// Returns the memory that the store has: changes that wait for a checkpoint or for a commit, and pages of the database.
    pub fn memory(&self) -> LiveMemory {
        let mem = self.mem();
        LiveMemory {
            change_bytes: (mem.bytes() + mem.log.capacity()) as u64,
            page_bytes: mem.base.as_ref().map_or(0, |base| base.cached_bytes()),
        }
    }

    /// Returns the bytes in the journal that the next checkpoint will retire.
    pub fn journal_bytes(&self) -> u64 {
        let retired = self.journal_retired.load(Ordering::Acquire);
        self.journal_written.load(Ordering::Acquire).saturating_sub(retired)
    }

    /// Returns the number of the last durable batch. It grows with every commit and survives.
    pub fn generation(&self) -> u64 {
        self.turn_lock().durable
    }

    fn check(&self) -> Result<()> {
        match self.poison.cause() {
            None => Ok(()),
            Some(cause) => Err(StoreError::Poisoned(cause.to_string())),
        }
    }

    // A thread that panicked left nothing half done under these locks: what could panic (redb) is contained.

    fn mem(&self) -> RwLockReadGuard<'_, Mem> {
        self.mem.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn mem_mut(&self) -> RwLockWriteGuard<'_, Mem> {
        self.mem.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn_lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn db_lock(&self) -> MutexGuard<'_, Option<Db>> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal_lock(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a change has to wait.
enum Full {
    Log,
    Overlay,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("generation", &self.generation()).finish_non_exhaustive()
    }
}
