//! The opened engine: one vault's context, live state, packs, lock, and its accounting of space.
//!
//! # Space
//! A write is accepted only if the backing disk can take it: what is free now must cover everything
//! that was accepted but not yet written (`pending`), what the live database may still grow by when the overlay is
//! checkpointed, and a floor that deletes, commits and unmounting live on. On top of that a reserve file is
//! preallocated: when a checkpoint or the closing of a pack finds the disk full all the same (another program filled
//! it), the reserve is given back to the filesystem and the work is tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::disk::{DiskLock, OpenMode, Space};
use crate::format::Header;
use crate::store::ctx::Ctx;
use crate::store::error::{Result, StoreError};
use crate::store::highwater::HighWaterStore;
use crate::store::live::Live;
use crate::store::packs::Packs;

/// Path of the preallocated reserve inside the vault.
pub const RESERVE_PATH: &str = "live/reserve";

/// The reserve takes at most one part in so many of what is free.
const RESERVE_PART: u64 = 16;
/// A smaller reserve would be of no use.
const RESERVE_MIN: u64 = 1 << 20;

/// How much the live database may grow for each byte of journaled change: rows are copied into B-tree pages that are
/// at worst half full, and both the old and the new page exist until the commit.
const LIVE_GROWTH_FACTOR: u64 = 3;

/// Locks of those who work on snapshots; the engine only keeps them, so that there is one pair for each opened vault.
#[derive(Debug, Default)]
pub(crate) struct SnapshotLocks {
    /// Shared by those who store chunks that nothing names yet, exclusive for garbage collection.
    pub(crate) chunks: std::sync::RwLock<()>,
    /// Held by the one who writes a chain file.
    pub(crate) chain: std::sync::Mutex<()>,
}

/// One opened vault. Everything below the filesystem layer hangs off this.
pub struct Engine {
    /// What every part shares: disk, clock, randomness, keys, configuration, poison flag.
    pub ctx: Arc<Ctx>,
    /// The live database.
    pub live: Arc<Live>,
    /// The chunk store.
    pub packs: Arc<Packs>,
    /// The header as it was read at open.
    pub header: Header,
    /// Where the high-water mark of this vault is kept, outside of it.
    pub highwater: Option<HighWaterStore>,
    pub(crate) snapshot_locks: SnapshotLocks,
    pending: AtomicU64,
    reserve_held: AtomicBool,
    lock: std::sync::Mutex<Option<Box<dyn DiskLock>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("vault", &self.ctx.vault_id).finish_non_exhaustive()
    }
}

/// What the mount's statfs reports, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSpace {
    /// Size of the backing filesystem.
    pub total: u64,
    /// What a writer can still write, worst case: incompressible and new.
    pub available: u64,
    /// Free including the floor and the reserve.
    pub free: u64,
    /// Inodes of the backing filesystem, passed through.
    pub files_total: u64,
    /// Free inodes of the backing filesystem, passed through.
    pub files_free: u64,
}

impl Engine {
    /// Assembles an engine from its opened parts. `lock` is the vault's lock and is held until [`Engine::close`].
    pub fn new(
        ctx: Arc<Ctx>,
        live: Arc<Live>,
        packs: Arc<Packs>,
        header: Header,
        highwater: Option<HighWaterStore>,
        lock: Box<dyn DiskLock>,
    ) -> Arc<Self> {
        let engine = Self {
            ctx,
            live,
            packs,
            header,
            highwater,
            snapshot_locks: SnapshotLocks::default(),
            pending: AtomicU64::new(0),
            reserve_held: AtomicBool::new(false),
            lock: std::sync::Mutex::new(Some(lock)),
        };
        engine.take_reserve();
        Arc::new(engine)
    }

    /// Bytes that must stay free for deletes, commits and unmounting: 2 % of the disk, at least 8 and at most 64 MiB.
    fn floor(&self, total: u64) -> u64 {
        (total / 50).clamp(8 << 20, 64 << 20)
    }

    /// What the live database may grow by at the next checkpoint.
    fn live_growth(&self) -> u64 {
        LIVE_GROWTH_FACTOR
            .saturating_mul(self.live.uncommitted_bytes().saturating_add(self.live.journal_bytes()))
    }

    /// Accepts `bytes` of new file data, which count as pending until [`Engine::settle`].
    ///
    /// # Errors
    /// `NoSpace` when the backing disk could not take them, `Poisoned` after a failed write.
    pub fn admit(&self, bytes: u64) -> Result<()> {
        self.check_poison()?;
        let space = self.disk_space()?;
        let pending = self.pending.fetch_add(bytes, Ordering::SeqCst).saturating_add(bytes);
        // 1/32 covers tags, footers, padding (Padme: at most 1.6 % at 64 MiB) and index rows.
        let need = pending
            .saturating_add(pending / 32)
            .saturating_add(self.live_growth())
            .saturating_add(self.floor(space.total));
        if space.available.saturating_add(self.packs.promised_data_bytes()) < need {
            self.settle(bytes);
            return Err(StoreError::NoSpace);
        }
        Ok(())
    }

    /// Takes back what [`Engine::admit`] counted: the bytes were written, or dropped.
    pub fn settle(&self, bytes: u64) {
        let before =
            self.pending.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |p| Some(p.saturating_sub(bytes)));
        debug_assert!(before.is_ok_and(|p| p >= bytes), "settled more than was admitted");
    }

    /// Accepts a change of metadata only (a new name, an attribute). Deletes need no admission.
    ///
    /// # Errors
    /// `NoSpace` when the floor is reached, `Poisoned` after a failed write.
    pub fn admit_meta(&self) -> Result<()> {
        self.check_poison()?;
        let space = self.disk_space()?;
        let need = self.live_growth().saturating_add(self.floor(space.total) / 2);
        if space.available < need { Err(StoreError::NoSpace) } else { Ok(()) }
    }

    /// The space that the mount reports, honest for the worst case.
    ///
    /// # Errors
    /// When the filesystem can't be asked.
    pub fn space(&self) -> Result<EngineSpace> {
        let space = self.disk_space()?;
        let pending = self.pending.load(Ordering::SeqCst);
        // The disk counts as used what it has promised to the open pack, but the next data goes there.
        let writable = space.available.saturating_add(self.packs.promised_data_bytes());
        let held = pending
            .saturating_add(pending / 32)
            .saturating_add(self.live_growth())
            .saturating_add(self.floor(space.total));
        Ok(EngineSpace {
            total: space.total,
            available: writable.saturating_sub(held),
            free: writable.saturating_sub(pending),
            files_total: space.files_total,
            files_free: space.files_free,
        })
    }

    /// Bytes that were admitted and not yet settled.
    pub fn pending_bytes(&self) -> u64 {
        self.pending.load(Ordering::SeqCst)
    }

    /// Runs `work`; when it meets a full disk, gives the reserve back to the filesystem and tries once more.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn with_reserve<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        match work() {
            Err(StoreError::NoSpace) if self.release_reserve()? => {
                tracing::warn!("the disk under the vault is full: using the reserve");
                work()
            }
            other => other,
        }
    }

    /// Deletes the reserve file. True if there was one.
    fn release_reserve(&self) -> Result<bool> {
        if !self.reserve_held.swap(false, Ordering::SeqCst) {
            return Ok(false);
        }
        let io = |source| StoreError::Io { what: format!("removing {RESERVE_PATH}"), source };
        self.ctx.disk.remove(RESERVE_PATH).map_err(io)?;
        self.ctx.disk.sync_dir("live").map_err(io)?;
        Ok(true)
    }

    /// Preallocates the reserve if there is room for it; called at open and each time the disk may have room again.
    ///
    /// It takes a sixteenth of what is free, at most `reserve_bytes`, so that a small disk has one too. One that is
    /// there from before is kept, however full the disk is by now: that is when it is needed.
    pub fn take_reserve(&self) {
        if self.reserve_held.load(Ordering::SeqCst) || self.ctx.cfg.reserve_bytes == 0 {
            return;
        }
        let disk = &self.ctx.disk;
        let made = (|| {
            let space = disk.space()?;
            let bytes = (space.available / RESERVE_PART).min(self.ctx.cfg.reserve_bytes);
            let room =
                bytes >= RESERVE_MIN && space.available >= bytes.saturating_add(self.floor(space.total));
            let file = match disk.open(RESERVE_PATH, OpenMode::ReadWrite) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && room => {
                    disk.open(RESERVE_PATH, OpenMode::CreateNew)?
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e),
            };
            // What the file has already costs nothing.
            file.allocate(0, if room { bytes } else { RESERVE_MIN.min(self.ctx.cfg.reserve_bytes) })?;
            Ok(true)
        })();
        match made {
            Ok(held) => self.reserve_held.store(held, Ordering::SeqCst),
            // Not having the reserve loses a safety margin, no data: the floor still holds.
            Err(error) => tracing::warn!(%error, "could not preallocate {RESERVE_PATH}"),
        }
    }

    /// Fails when the vault is poisoned by an earlier failed write.
    ///
    /// # Errors
    /// `Poisoned` with the first cause.
    pub fn check_poison(&self) -> Result<()> {
        self.ctx.poison.check().map_err(|e| StoreError::Poisoned(e.to_string()))
    }

    /// Commits, closes the live state cleanly and lets go of the vault's lock. Open packs must have been closed by a
    /// snapshot or [`Packs::close_open`] before; they are closed here otherwise.
    ///
    /// # Errors
    /// The first failure; the lock is released in any case, since nothing will be written any more.
    pub fn close(&self) -> Result<()> {
        let mut outcome = Ok(());
        self.close_with(|result| outcome = result);
        outcome
    }

    /// [`Engine::close`], with `report` called on the result after the last write and before the lock is let go, so that what it
    /// writes can be read by whoever takes the lock next.
    pub fn close_with(&self, report: impl FnOnce(Result<()>)) {
        let result = self
            .with_reserve(|| self.packs.close_open())
            .and_then(|()| self.with_reserve(|| self.live.close()));
        report(result);
        let mut lock = self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(lock.take());
    }

    fn disk_space(&self) -> Result<Space> {
        self.ctx
            .disk
            .space()
            .map_err(|source| StoreError::Io { what: "asking for free space".into(), source })
    }
}
