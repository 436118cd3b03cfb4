//! The encrypted block file under the live database: redb's storage, sealed block by block.
//!
//! The database sees a flat file. It is kept in `live.redb` as blocks of 4096 bytes, each sealed by itself in a slot
//! of 4608 bytes, so no two blocks share a 512-byte sector and a torn write damages only the block being written.
//! Each write of a block draws a random 64-bit *version*, which its seal authenticates together with the block's
//! number. The table of true versions is in memory, and durable in `blocks.log` (see `log`). A block that was never
//! written has version 0 and reads as zeros; any other block must open with the very version in the table, so a
//! zeroed, missing, moved or older block is an error, never data.
//!
//! # Sync
//!
//! `sync_data` makes everything since the last one durable as a whole: (a) fdatasync of the data file, (b) one record
//! of all changed versions appended to the log, (c) fdatasync of the log. The record decides: what a crash leaves is
//! the state of the last complete record, and *generation* counts the records. For this to hold, no write between
//! two records may destroy a block that the earlier record's state needs:
//!
//! - Block 0 (redb's header with both commit slots) is the only one that redb overwrites in place: the file format
//!   has no region headers (`NO_HEADER`), and the allocator's state is saved in tables, if at all. So block 0 has two
//!   slots. A write goes to the one that the last record does not name; the next record names it.
//! - All other pages are copied on write. Verified in redb 4.4.0: a page freed by transaction N goes to the freed
//!   tables, or for the system tree to a list in memory, and returns to the allocator only after `commit` of N has
//!   returned from its last flush (`process_data_freed_pages_after_commit`, the loop below `mem.commit` in
//!   `durable_commit`), or later (`process_freed_pages`); non-durable commits free only what non-durable commits
//!   allocated (`free_if_unpersisted`); an abort frees only what it allocated. So between two records redb writes
//!   only to pages that are free in the state of the earlier one. In a two-phase commit the record of the first flush
//!   has the old primary, whose pages are freed after the second. `grow` syncs in the middle of a transaction: the
//!   old header again, with a longer file, which redb handles (it computes the layout from the length, as after any
//!   crash). Pages that are free are never read: `allocate` starts from zeros.
//! - A shorter length takes effect in the file only after the record that has it: until then the tail stays.
//!
//! Writes, length changes and syncs exclude each other, so a record names exactly the blocks that (a) made durable.
//! Reads exclude only writes to the same few blocks.
//!
//! # What a crash or an attacker leaves (generation g is the last complete record)
//!
//! | case | result |
//! |---|---|
//! | 1. crash before (a) is done | State g. Blocks written since then are new, old or torn: free in state g, never read. Block 0's slot of g was not touched |
//! | 2. crash between (a) and (c), record not in the log | As 1: durable blocks without a record count for nothing |
//! | 3. record torn | The frame does not authenticate: dropped, as 2. If it is complete it counts: (a) came before it, so state g+1 is whole |
//! | 4. attacker puts an older version of a block back | Its version is not the table's: error when it is read |
//! | 5. attacker puts back a block written after g and lost in a crash | As 4: versions are random, never used twice, so no later write makes it valid, though generations are |
//! | 6. attacker rolls back log and data together | A true older state, not detectable in here: callers compare [`BlockFile::generation`] with a high-water mark kept elsewhere |
//! | 7. attacker cuts the last record off the log | What a crash between (a) and (c) leaves, if nothing was written since: state g-1. Otherwise an error when an overwritten block is read. Found by the mark of 6 |
//! | 8. attacker cuts more off the log | Both slots of block 0 were written since: error on open |
//! | 9. attacker or decay changes a record that is not the last | An authentic record follows: error on open. The last one: as 7 |
//! | 10. attacker replaces the log by that of another vault | The first record does not authenticate: error on open |
//!
//! After a *process* crash the page cache may hold a record that is not on the disk, or that a failed fdatasync has
//! marked clean. Trusting it would let the next writes destroy the state before it. So opening writes a new log (a
//! full record, then rename), or, on a full disk, at least syncs the old one.

mod log;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::StorageBackend;

use crate::crypto::{LIVE_BLOCK_LEN, LIVE_BLOCK_SEALED_LEN, LiveKeys};
use crate::disk::{Disk, DiskFile, OpenMode, is_full};
use crate::env::Env;
use crate::store::poison::Poison;

use log::{Delta, Log, Table};
pub(crate) use log::{fuzz, fuzz_seeds};

/// Name of the data file in the directory of the live state.
pub const DATA_NAME: &str = "live.redb";
/// Name of the log in the directory of the live state.
pub const LOG_NAME: &str = "blocks.log";

/// Bytes of content in a block.
const BLOCK: usize = LIVE_BLOCK_LEN;
const SEALED: usize = LIVE_BLOCK_SEALED_LEN;
/// Distance of slots in the data file: whole sectors.
const SLOT: u64 = 4608;
/// Longest logical file. The table then takes 512 MiB of memory, which is as far as it should go.
const MAX_LEN: u64 = 1 << 38;
/// Bytes of redb's magic number, which its creation writes last.
const REDB_MAGIC_LEN: usize = 9;
/// Blocks that are read or written by one system call, and share a lock.
const GROUP_BLOCKS: u64 = 16;
const STRIPES: usize = 64;
/// The data file reserves room in steps.
const RESERVE_STEP_BYTES: u64 = 4 << 20;

/// The encrypted storage of the live database. Clones are handles to the same file: give one to redb, keep one.
#[derive(Clone)]
pub struct BlockFile {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Arc<dyn Disk>,
    env: Arc<dyn Env>,
    keys: LiveKeys,
    poison: Poison,
    log_path: String,
    data: Arc<dyn DiskFile>,
    /// Writers of blocks share it, a sync and a change of length have it alone.
    log: RwLock<Log>,
    /// One for a group of blocks, so that no one reads a block that is half written.
    stripes: [RwLock<()>; STRIPES],
    state: RwLock<State>,
    /// The data file has room up to here, in bytes.
    reserved: Mutex<u64>,
}

struct State {
    /// As it is now; `generation` is that of the last record.
    table: Table,
    /// The slot of block 0 that the last record names.
    durable_header_copy: u8,
    /// Blocks with a version that the last record does not have.
    dirty: BTreeSet<u64>,
    /// Length in the last record.
    durable_len: u64,
    /// Smallest length in blocks since the last record.
    cut: u64,
}

impl State {
    fn new(table: Table) -> Self {
        let (durable_header_copy, durable_len) = (table.header_copy, table.len);
        let cut = blocks_of(durable_len);
        Self { table, durable_header_copy, dirty: BTreeSet::new(), durable_len, cut }
    }

    fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.table.len == self.durable_len && self.cut == blocks_of(self.durable_len)
    }

    fn delta(&self) -> Delta {
        Delta {
            generation: self.table.generation + 1,
            len: self.table.len,
            header_copy: self.table.header_copy,
            cut: self.cut,
            changes: self.dirty.iter().map(|&block| (block, self.table.version(block))).collect(),
        }
    }

    fn recorded(&mut self) {
        self.table.generation += 1;
        self.durable_header_copy = self.table.header_copy;
        self.durable_len = self.table.len;
        self.cut = blocks_of(self.durable_len);
        self.dirty.clear();
    }

    fn set_version(&mut self, block: u64, version: u64) {
        let at = block as usize;
        if self.table.versions.len() <= at {
            self.table.versions.resize(at + 1, 0);
        }
        self.table.versions[at] = version;
        self.dirty.insert(block);
        if block == 0 {
            self.table.header_copy = 1 - self.durable_header_copy;
        }
    }
}

impl BlockFile {
    /// Opens the block file in `dir` (durable and existing), or creates an empty one.
    ///
    /// # Errors
    /// `InvalidData` when data or log are damaged, foreign, or don't belong together.
    pub fn open(
        disk: Arc<dyn Disk>,
        env: Arc<dyn Env>,
        keys: LiveKeys,
        poison: Poison,
        dir: &str,
    ) -> io::Result<Self> {
        let (data_path, log_path) = (format!("{dir}/{DATA_NAME}"), format!("{dir}/{LOG_NAME}"));
        let (data, table, old_log) = if disk.len(&log_path)?.is_some() {
            let data = disk.open(&data_path, OpenMode::ReadWrite).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => {
                    damaged(format!("{data_path} is missing, but {LOG_NAME} is there"))
                }
                _ => e,
            })?;
            let (log, table) = Log::open(&*disk, &log_path, &keys)?;
            (data, table, Some(log))
        } else {
            (create_data(&*disk, &data_path, dir)?, Table::default(), None)
        };
        check_data(&*data, &table, &keys, &data_path)?;
        // Only now that data and log are known to belong together is anything changed.
        let limit = slots_end(blocks_of(table.len));
        if data.len()? > limit {
            data.set_len(limit)?;
        }
        let log = match (Log::create(&*disk, &log_path, &keys, &*env, &table), old_log) {
            (Ok(log), _) => log,
            (Err(e), Some(old)) if is_full(&e) => {
                old.settle()?;
                disk.sync_dir(dir)?;
                old
            }
            (Err(e), _) => return Err(e),
        };
        let inner = Inner {
            disk,
            env,
            keys,
            poison,
            log_path,
            data,
            log: RwLock::new(log),
            stripes: std::array::from_fn(|_| RwLock::new(())),
            reserved: Mutex::new(written_end(&table)),
            state: RwLock::new(State::new(table)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Opens the database in this file, or creates it, with a cache of `cache_bytes`.
    ///
    /// redb can't open what a crash during its own creation leaves (a length, but no magic number yet). Nothing was
    /// ever committed to such a file, so it is emptied first.
    pub fn database(&self, cache_bytes: usize) -> Result<redb::Database, redb::DatabaseError> {
        let mut magic = [1; REDB_MAGIC_LEN];
        if self.inner.state().table.len >= BLOCK as u64 {
            self.inner.read(0, &mut magic).map_err(redb::StorageError::from)?;
        }
        if magic == [0; REDB_MAGIC_LEN] {
            self.inner.set_len(0).map_err(redb::StorageError::from)?;
        }
        redb::Database::builder().set_cache_size(cache_bytes).create_with_backend(self.clone())
    }

    /// Returns the number of the last durable record. It never goes back; a smaller one than seen before means that
    /// someone rolled the live state back.
    pub fn generation(&self) -> u64 {
        self.inner.state().table.generation
    }

    /// Makes sure that the file can take `bytes` more before the disk is full. redb stops for good at the first
    /// error of its storage, even if that was a full disk: so find out here, before a transaction, and refuse work.
    ///
    /// # Errors
    /// `StorageFull`; nothing is poisoned, and what was there before still works.
    pub fn reserve(&self, bytes: u64) -> io::Result<()> {
        let blocks = blocks_of(bytes.min(MAX_LEN)) + 1;
        let (end, dirty) = {
            let state = self.inner.state();
            (written_end(&state.table) + blocks * SLOT, state.dirty.len())
        };
        self.inner.reserve_data(end)?;
        // Each changed block takes at most 8 bytes of version and 5 of number in the log.
        self.inner.log_alone().reserve(64 + 13 * (dirty + blocks as usize))
    }
}

impl fmt::Debug for BlockFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.state();
        write!(f, "BlockFile(generation {}, {} bytes)", state.table.generation, state.table.len)
    }
}

/// Makes the empty data file of a new vault, or takes the one that a crash left before the log was there.
fn create_data(disk: &dyn Disk, path: &str, dir: &str) -> io::Result<Arc<dyn DiskFile>> {
    let data = match disk.len(path)? {
        None => disk.open(path, OpenMode::CreateNew)?,
        Some(0) => disk.open(path, OpenMode::ReadWrite)?,
        Some(_) => {
            return Err(damaged(format!(
                "{path} has content, but {LOG_NAME}, which vouches for it, is missing"
            )));
        }
    };
    disk.sync_dir(dir)?;
    Ok(data)
}

/// Checks that the data file has all blocks of the table, and that block 0 is the one that the table names: redb
/// changes it with every commit, so a log and a data file from different times are told apart here.
fn check_data(data: &dyn DiskFile, table: &Table, keys: &LiveKeys, path: &str) -> io::Result<()> {
    let len = data.len()?;
    let needed = written_end(table).saturating_sub(SLOT - SEALED as u64);
    if len < needed {
        return Err(damaged(format!("{path} is truncated: {len} bytes, {needed} needed")));
    }
    let version = table.version(0);
    if version != 0 {
        let mut sealed = [0; SEALED];
        data.read_exact_at(&mut sealed, slot_offset(0, table.header_copy))?;
        keys.open_block(0, version, &sealed, &mut [0; BLOCK]).map_err(|_| {
            damaged(format!("{path}: block 0 is damaged, or {LOG_NAME} is older or newer than this file"))
        })?;
    }
    Ok(())
}

impl Inner {
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_shared(&self) -> RwLockReadGuard<'_, Log> {
        self.log.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_alone(&self) -> RwLockWriteGuard<'_, Log> {
        self.log.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe(&self, block: u64) -> &RwLock<()> {
        &self.stripes[(block / GROUP_BLOCKS) as usize % STRIPES]
    }

    fn reserved(&self) -> MutexGuard<'_, u64> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves room in the data file up to `end`, in large steps unless the disk is nearly full.
    fn reserve_data(&self, end: u64) -> io::Result<()> {
        let mut reserved = self.reserved();
        if end <= *reserved {
            return Ok(());
        }
        let ahead = end.next_multiple_of(RESERVE_STEP_BYTES);
        let reached = match self.data.allocate(*reserved, ahead - *reserved) {
            Ok(()) => ahead,
            Err(e) if is_full(&e) => {
                self.data.allocate(*reserved, end - *reserved)?;
                end
            }
            Err(e) => return Err(e),
        };
        *reserved = reached;
        Ok(())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = check_range(offset, out.len(), self.state().table.len)?;
        let mut at = offset;
        while at < end {
            let blocks = next_group(at, end);
            let stop = end.min(blocks.end * BLOCK as u64);
            let part = &mut out[(at - offset) as usize..(stop - offset) as usize];
            let _stripe = self.stripe(blocks.start).read().unwrap_or_else(PoisonError::into_inner);
            self.read_group(blocks, at, part)?;
            at = stop;
        }
        Ok(())
    }

    /// Reads a range that lies within the blocks of one group. The caller has the group's lock.
    fn read_group(&self, blocks: Range<u64>, at: u64, out: &mut [u8]) -> io::Result<()> {
        let mut versions = [0; GROUP_BLOCKS as usize];
        let header_copy = {
            let state = self.state();
            blocks.clone().zip(&mut versions).for_each(|(block, v)| *v = state.table.version(block));
            state.table.header_copy
        };
        let versions = &versions[..(blocks.end - blocks.start) as usize];
        let mut sealed = Vec::new();
        if versions.iter().any(|&v| v != 0) {
            // Up to the last written block: behind it the file may end.
            let count = versions.iter().rposition(|&v| v != 0).map_or(0, |last| last + 1);
            sealed.resize((count - 1) * SLOT as usize + SEALED, 0);
            let from = slot_offset(blocks.start, header_copy);
            self.data.read_exact_at(&mut sealed, from).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    damaged(format!("{DATA_NAME} is truncated in block {}", blocks.start))
                }
                _ => e,
            })?;
        }
        for (i, (block, &version)) in blocks.zip(versions).enumerate() {
            let (range, within) = overlap(block, at, out.len());
            let out = &mut out[range];
            if version == 0 {
                out.fill(0);
                continue;
            }
            let sealed = &sealed[i * SLOT as usize..i * SLOT as usize + SEALED];
            match <&mut [u8; BLOCK]>::try_from(&mut *out) {
                Ok(whole) => self.open_block(block, version, sealed, whole)?,
                Err(_) => {
                    let mut whole = [0; BLOCK];
                    self.open_block(block, version, sealed, &mut whole)?;
                    out.copy_from_slice(&whole[within]);
                }
            }
        }
        Ok(())
    }

    fn open_block(&self, block: u64, version: u64, sealed: &[u8], out: &mut [u8; BLOCK]) -> io::Result<()> {
        self.keys.open_block(block, version, sealed, out).map_err(|_| {
            damaged(format!(
                "{DATA_NAME}: block {block} is damaged, or not the one that was last written there"
            ))
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.poison.check()?;
        let _no_sync = self.log_shared();
        let end = check_range(offset, data.len(), self.state().table.len)?;
        let mut at = offset;
        while at < end {
            let blocks = next_group(at, end);
            let stop = end.min(blocks.end * BLOCK as u64);
            self.write_group(blocks, at, &data[(at - offset) as usize..(stop - offset) as usize])?;
            at = stop;
        }
        Ok(())
    }

    /// Writes a range that lies within the blocks of one group.
    fn write_group(&self, blocks: Range<u64>, at: u64, data: &[u8]) -> io::Result<()> {
        self.reserve_data(slots_end(blocks.end))?;
        let count = (blocks.end - blocks.start) as usize;
        let mut random = [0; 8 * GROUP_BLOCKS as usize];
        self.env.random(&mut random[..8 * count]);
        // 0 means never written.
        let versions: Vec<u64> = random[..8 * count]
            .chunks_exact(8)
            .map(|c| u64::from_le_bytes(c.try_into().expect("chunks of 8")).max(1))
            .collect();
        let header_copy = 1 - self.state().durable_header_copy;
        let _stripe = self.stripe(blocks.start).write().unwrap_or_else(PoisonError::into_inner);
        let mut sealed = vec![0; count * SLOT as usize];
        for (i, (block, &version)) in blocks.clone().zip(&versions).enumerate() {
            let out = &mut sealed[i * SLOT as usize..i * SLOT as usize + SEALED];
            let (range, within) = overlap(block, at, data.len());
            let data = &data[range];
            match <&[u8; BLOCK]>::try_from(data) {
                Ok(whole) => self.keys.seal_block(&*self.env, block, version, whole, out),
                Err(_) => {
                    let mut whole = [0; BLOCK];
                    self.read_group(block..block + 1, block * BLOCK as u64, &mut whole)?;
                    whole[within].copy_from_slice(data);
                    self.keys.seal_block(&*self.env, block, version, &whole, out);
                }
            }
        }
        let written = self.data.write_all_at(&sealed, slot_offset(blocks.start, header_copy));
        self.poison.on_error("cannot write to the live database", written)?;
        let mut state = self.state_mut();
        blocks.zip(versions).for_each(|(block, version)| state.set_version(block, version));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.poison.check()?;
        if !len.is_multiple_of(BLOCK as u64) || len > MAX_LEN {
            let text =
                format!("a length of {len} bytes is not a multiple of {BLOCK}, or more than {MAX_LEN}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let _alone = self.log_alone();
        let mut state = self.state_mut();
        if len < state.table.len {
            // When the file grows again, these blocks read as zeros, as never written.
            let blocks = blocks_of(len);
            state.table.versions.truncate(blocks as usize);
            drop(state.dirty.split_off(&blocks));
            state.cut = state.cut.min(blocks);
        }
        state.table.len = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.poison.check()?;
        let mut log = self.log_alone();
        let (delta, shrunk) = {
            let state = self.state();
            if state.is_clean() {
                return Ok(());
            }
            (state.delta(), state.cut < blocks_of(state.durable_len))
        };
        let record = delta.encode();
        log.reserve(record.len())?;
        self.poison.on_error("cannot sync the live database", self.data.sync_data())?;
        let appended = log.append(&self.keys, &*self.env, delta.generation, &record);
        self.poison.on_error("cannot write the block log", appended)?;
        let table = {
            let mut state = self.state_mut();
            state.recorded();
            log.wants_compaction().then(|| state.table.clone())
        };
        if shrunk {
            self.poison.on_error("cannot shorten the live database", self.give_back())?;
        }
        if let Some(table) = table {
            self.compact(&mut log, &table)?;
        }
        Ok(())
    }

    /// Cuts the data file to the length of the last record. Blocks behind it belong to no state any more.
    fn give_back(&self) -> io::Result<()> {
        let limit = slots_end(blocks_of(self.state().durable_len));
        let mut reserved = self.reserved();
        if self.data.len()? > limit {
            self.data.set_len(limit)?;
            *reserved = (*reserved).min(limit);
        }
        Ok(())
    }

    /// Replaces the log by one full record. Both say the same, so it doesn't matter which one a crash leaves.
    fn compact(&self, log: &mut Log, table: &Table) -> io::Result<()> {
        match Log::create(&*self.disk, &self.log_path, &self.keys, &*self.env, table) {
            Ok(new) => *log = new,
            // The old one is still there and valid.
            Err(e) if is_full(&e) => log.delay_compaction(),
            Err(e) => return self.poison.on_error("cannot rewrite the block log", Err(e)),
        }
        Ok(())
    }
}

impl StorageBackend for BlockFile {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.inner.state().table.len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.inner.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.inner.write(offset, data)
    }
}

fn blocks_of(len: u64) -> u64 {
    len.div_ceil(BLOCK as u64)
}

/// Block 0 has slots 0 and 1, block n has slot n + 1.
fn slot_offset(block: u64, header_copy: u8) -> u64 {
    if block == 0 { u64::from(header_copy) * SLOT } else { (block + 1) * SLOT }
}

/// End of the slots of the first `blocks` blocks.
fn slots_end(blocks: u64) -> u64 {
    if blocks == 0 { 0 } else { (blocks + 1) * SLOT }
}

/// End of the last slot that the table needs.
fn written_end(table: &Table) -> u64 {
    match table.versions.iter().rposition(|&v| v != 0) {
        None => 0,
        Some(last) => slot_offset(last as u64, table.header_copy) + SLOT,
    }
}

fn check_range(offset: u64, len: usize, file_len: u64) -> io::Result<u64> {
    offset.checked_add(len as u64).filter(|end| *end <= file_len).ok_or_else(|| {
        let text = format!("{len} bytes at {offset} are not inside the file of {file_len} bytes");
        io::Error::new(io::ErrorKind::UnexpectedEof, text)
    })
}

/// Returns the blocks from that of `at` on, up to `end`, that are handled together: contiguous in the file and under
/// one lock. Block 0 is alone, because its slot is chosen.
fn next_group(at: u64, end: u64) -> Range<u64> {
    let first = at / BLOCK as u64;
    let group_end = if first == 0 { 1 } else { (first / GROUP_BLOCKS + 1) * GROUP_BLOCKS };
    first..group_end.min(blocks_of(end))
}

/// Returns which part of a buffer for `len` bytes at `at` lies in `block`, and where in the block that is.
fn overlap(block: u64, at: u64, len: usize) -> (Range<usize>, Range<usize>) {
    let start = block * BLOCK as u64;
    let from = at.max(start);
    let to = (at + len as u64).min(start + BLOCK as u64);
    ((from - at) as usize..(to - at) as usize, (from - start) as usize..(to - start) as usize)
}

fn damaged(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod redb_tests;
#[cfg(test)]
mod tests;
