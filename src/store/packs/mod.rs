//! The chunk store: chunks go into packs, each once, and come back verified.
//!
//! # Writing
//!
//! [`Packs::put`] names a chunk by its keyed hash, looks the name up in the index (table Chunks of the live
//! database), and only if it is new compresses and seals it and appends it to the open pack of its kind. Then
//! its row is applied to the live database. Nothing is durable yet: that happens when the live database
//! commits, which first calls [`Barrier::before_commit`]. Since a row is applied only after its bytes were
//! written, the sync there covers whatever rows the commit has captured.
//!
//! # Locks
//!
//! In this order: in-flight chunk, proving, slot (the open pack of a kind), a pack's `closing`, index (changes of
//! Chunks and Packs rows), names (moves between `live/open/` and `packs/`), list of unclosed packs, a pack's
//! state. Applying to the live database may wait for a checkpoint, and so for [`Barrier::before_commit`];
//! that takes only the last three, so none of them is ever held while a batch is applied.

mod file;
mod maintain;
mod open;
mod queue;
mod read;
mod recover;
mod rows;
#[cfg(test)]
mod tests;
mod write;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
    Weak,
};

use super::blockcache::BlockCache;
use super::codec::Effort;
use super::ctx::Ctx;
use super::error::{Result, StoreError};
use super::live::{Barrier, Live, Table};
use super::pool::Buf;
use crate::format::{ChunkDesc, ChunkId, PackKind};

pub use maintain::{PackInfo, SpaceEstimate};
pub use read::ChunkSource;
pub use rows::PackState;

pub(crate) use file::PackFile;
pub(crate) use maintain::open_named;
pub(crate) use read::{read_range, read_whole};
pub(crate) use rows::{fuzz as fuzz_rows, fuzz_seeds as row_seeds};

use open::OpenPack;
use queue::Queue;
use read::PackFiles;
use rows::ChunkRow;

/// Chunk rows changed in one batch: a few hundred bytes each.
const ROWS_PER_BATCH: usize = 512;

/// What becomes of a queued chunk; runs on a worker.
pub type Done = Box<dyn FnOnce(Result<ChunkId>) + Send>;

/// A chunk's plaintext on its way to a worker.
#[derive(Debug)]
pub enum Plaintext {
    /// Nobody else needs it.
    Owned(Vec<u8>),
    /// The caller goes on reading it, for example while it is not stored yet.
    Shared(Arc<Buf>, std::ops::Range<usize>),
}

impl AsRef<[u8]> for Plaintext {
    fn as_ref(&self) -> &[u8] {
        match self {
            Plaintext::Owned(bytes) => bytes,
            Plaintext::Shared(bytes, range) => &bytes[range.clone()],
        }
    }
}

impl From<Vec<u8>> for Plaintext {
    fn from(bytes: Vec<u8>) -> Self {
        Plaintext::Owned(bytes)
    }
}

/// The chunk store of an open vault. Dropping it stops its threads; chunks of open packs stay where they are.
pub struct Packs {
    core: Arc<Core>,
    queue: Arc<Queue>,
}

/// What workers share with the handle.
pub(super) struct Core {
    ctx: Arc<Ctx>,
    live: Arc<Live>,
    cache: BlockCache,
    files: PackFiles,
    /// Chunks that are being stored at this moment.
    in_flight: Mutex<HashSet<ChunkId>>,
    landed: Condvar,
    /// The open packs that take chunks: one for trees, then those for data.
    slots: Vec<Mutex<Option<Arc<OpenPack>>>>,
    /// All packs that are not closed yet: those in the slots, and retired ones.
    unclosed: Mutex<Vec<Arc<OpenPack>>>,
    /// Held while Chunks or Packs rows change, so that a change can depend on what a row says.
    index: Mutex<()>,
    /// Held while a pack moves under its name, and while the names in `live/open/` are made durable.
    names: Mutex<()>,
    next_pack_no: AtomicU32,
    /// Retired packs that wait for the thread that closes them.
    backlog: queue::Backlog,
    /// Hints for the system, on their way to the thread that gives them.
    hints: queue::Hints,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    dedup_hits: AtomicU64,
    dedup_bytes: AtomicU64,
    chunks: AtomicU64,
    plain_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    packs_closed: AtomicU64,
}

impl Counters {
    /// Plaintext bytes that were stored already, and those that were not.
    fn totals(&self) -> (u64, u64) {
        (self.dedup_bytes.load(Ordering::Relaxed), self.plain_bytes.load(Ordering::Relaxed))
    }
}

/// What the chunk store has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackStats {
    /// Chunks that were stored already when they were put.
    pub dedup_hits: u64,
    /// Plaintext bytes of those chunks.
    pub dedup_bytes: u64,
    /// New chunks.
    pub chunks: u64,
    /// Plaintext bytes of new chunks.
    pub plain_bytes: u64,
    /// What new chunks take in packs, tags included, in bytes.
    pub stored_bytes: u64,
    /// Packs that were closed.
    pub packs_closed: u64,
    /// Blocks that readers found in the cache.
    pub cache_hits: u64,
    /// Blocks that readers had to have opened.
    pub cache_misses: u64,
    /// Memory of the blocks that are kept for readers, in bytes.
    pub cache_bytes: u64,
}

impl Packs {
    /// Opens the chunk store on its tables in the live database, finishes packs that a crash left open
    /// (PACK-7), and starts its threads if `ctx.cfg.background` says so. Becomes the live database's barrier.
    ///
    /// # Errors
    /// `Corrupt` when a chunk that was durable is not there any more; the message names pack and chunk.
    pub fn open(ctx: Arc<Ctx>, live: Arc<Live>) -> Result<Arc<Packs>> {
        let core = Arc::new(Core {
            cache: BlockCache::new(ctx.cfg.cache_bytes),
            files: PackFiles::new(),
            in_flight: Mutex::default(),
            landed: Condvar::new(),
            slots: (0..FIRST_DATA_SLOT + data_slots(&ctx)).map(|_| Mutex::new(None)).collect(),
            unclosed: Mutex::default(),
            index: Mutex::new(()),
            names: Mutex::new(()),
            next_pack_no: AtomicU32::new(0),
            backlog: queue::Backlog::default(),
            hints: queue::Hints::default(),
            counters: Counters::default(),
            ctx,
            live,
        });
        core.load()?;
        core.recover()?;
        let queue = Queue::start(&core)?;
        let packs = Arc::new(Packs { core, queue });
        let barrier: Weak<dyn Barrier> = Arc::downgrade(&packs) as Weak<dyn Barrier>;
        packs.core.live.set_barrier(barrier);
        Ok(packs)
    }

    /// Stores one chunk, unless it is there already, and returns its id. The chunk's row is applied to the
    /// live database before this returns, so whatever is applied afterwards may name the id.
    ///
    /// # Errors
    /// `NoSpace` with nothing changed; `Poisoned` after any failed write.
    pub fn put(&self, kind: PackKind, plaintext: &[u8], effort: Effort) -> Result<ChunkId> {
        self.core.put(kind, plaintext, effort)
    }

    /// Queues a data chunk for the workers. Blocks while the queue is full. While more chunks wait than there are
    /// workers, these take as little time as they can, whatever `effort` says. `done` runs on a worker, chunks
    /// finish in any order. Without background threads all of it happens here.
    pub fn submit(&self, plaintext: impl Into<Plaintext>, effort: Effort, done: Done) {
        self.queue.submit(plaintext.into(), effort, done);
    }

    /// Tells whether a chunk is stored in a pack that is to stay and is what it says, so that a new reference to it may be
    /// made, as when its bytes were put again. Chunks of condemned packs can be read, but are not counted here. A pack that
    /// came from elsewhere is read whole at the first question.
    pub fn contains(&self, id: &ChunkId) -> Result<bool> {
        Ok(self.core.find_usable(id)?.is_some_and(|row| self.core.is_believed(row.pack)))
    }

    /// Makes durable what was appended and is not yet.
    pub fn before_commit(&self) -> Result<()> {
        self.core.before_commit()
    }

    /// Closes the open packs: all chunks put so far then stand in named packs. Their rows are applied, not
    /// committed.
    ///
    /// # Errors
    /// `NoSpace` leaves the packs open and readable; try again when there is room.
    pub fn close_open(&self) -> Result<()> {
        self.core.close_open()
    }

    /// Bytes that the disk has promised to the open pack of data beyond what is written: room for more data that the
    /// filesystem doesn't count as free. 0 while that pack is being changed for another. Waits for nobody.
    pub fn promised_data_bytes(&self) -> u64 {
        let slot = match self.core.slots[FIRST_DATA_SLOT].try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::Poisoned(slot)) => slot.into_inner(),
            Err(TryLockError::WouldBlock) => return 0,
        };
        slot.as_ref().map_or(0, |pack| pack.promised())
    }

    /// Returns counts since the chunk store was opened.
    pub fn stats(&self) -> PackStats {
        let counters = &self.core.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (cache_hits, cache_misses) = self.core.cache.counts();
        PackStats {
            dedup_hits: get(&counters.dedup_hits),
            dedup_bytes: get(&counters.dedup_bytes),
            chunks: get(&counters.chunks),
            plain_bytes: get(&counters.plain_bytes),
            stored_bytes: get(&counters.stored_bytes),
            packs_closed: get(&counters.packs_closed),
            cache_hits,
            cache_misses,
            cache_bytes: self.core.cache.bytes() as u64,
        }
    }
}

impl Barrier for Packs {
    fn before_commit(&self) -> Result<()> {
        self.core.before_commit()
    }
}

impl ChunkSource for Packs {
    fn read_chunk(&self, kind: PackKind, id: &ChunkId) -> Result<Arc<[u8]>> {
        let core = &self.core;
        core.with_chunk(id, |pack, desc| read_whole(&core.cache, &core.ctx.keys, pack, kind, desc))
    }

    fn read_at(&self, id: &ChunkId, offset: u32, buf: &mut [u8]) -> Result<()> {
        let core = &self.core;
        core.with_chunk(id, |pack, desc| read_range(&core.cache, &core.ctx.keys, pack, desc, offset, buf))
    }
}

impl Drop for Packs {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

impl std::fmt::Debug for Packs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packs").field("vault", &self.core.ctx.vault_id).finish_non_exhaustive()
    }
}

impl Core {
    /// Returns a chunk's row, wherever the chunk stands.
    fn find(&self, id: &ChunkId) -> Result<Option<ChunkRow>> {
        match self.live.get(Table::Chunks, id.as_bytes())? {
            Some(value) => ChunkRow::decode(id, &value).map(Some),
            None => Ok(None),
        }
    }

    /// Returns a chunk's row if a new reference to the chunk may be made.
    fn find_usable(&self, id: &ChunkId) -> Result<Option<ChunkRow>> {
        let usable =
            |row: &ChunkRow| matches!(self.files.state(row.pack), Some(PackState::Open | PackState::Closed));
        Ok(self.find(id)?.filter(usable))
    }

    /// Finds a chunk and runs `read` on it.
    fn with_chunk<T>(
        &self,
        id: &ChunkId,
        mut read: impl FnMut(&PackFile, &ChunkDesc) -> Result<T>,
    ) -> Result<T> {
        let mut row = self.find(id)?.ok_or_else(|| StoreError::NotFound(format!("chunk {id}")))?;
        loop {
            let result = self.files.get(&self.ctx, row.pack).and_then(|pack| {
                let value = read(&pack, &row.desc)?;
                if !pack.proven && self.is_worth_proving(row.pack, &pack) {
                    self.is_believed(row.pack);
                }
                Ok(value)
            });
            let Err(error) = result else { return result };
            // The chunk may have moved to another pack, and its old one may be gone, since the row was read.
            match self.find(id)? {
                Some(now) if now != row => row = now,
                _ => return Err(error),
            }
        }
    }
}

impl Core {
    /// Tells whether so much of a pack was read as whole chunks that reading all of it once is worth the while: from then on
    /// single blocks are read.
    fn is_worth_proving(&self, no: u32, pack: &PackFile) -> bool {
        let read = pack.read_whole.load(Ordering::Relaxed);
        self.files.row(no).is_some_and(|row| read >= row.file_len / PROVE_PART)
    }
}

/// A pack that is not proven is read as a whole once this part of it was read in chunks: then proving the packs that
/// are read from costs at most this many times what reading cost already, and those that are not cost nothing.
const PROVE_PART: u64 = 4;

/// The slot of the open pack for trees.
const TREE_SLOT: usize = 0;
/// The first slot for data. On a nearly full disk it is the only one that is used.
const FIRST_DATA_SLOT: usize = 1;

/// How many packs of data may take chunks at a time: one for each worker, so that none waits while another one writes.
fn data_slots(ctx: &Ctx) -> usize {
    if ctx.cfg.background { ctx.cfg.workers.max(1) } else { 1 }
}

/// Fails once the vault is poisoned.
fn writable(ctx: &Ctx) -> Result<()> {
    match ctx.poison.cause() {
        Some(cause) => Err(StoreError::Poisoned(cause.to_string())),
        None => Ok(()),
    }
}

/// Locks what is whole between statements, so that a panic elsewhere left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
