//! Reading chunks: through the block cache, touching only the blocks that are needed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use super::super::blockcache::{BlockCache, Claim, Lookup};
use super::super::ctx::Ctx;
use super::super::error::{Result, StoreError};
use super::super::lru::Lru;
use super::file::{PackFile, damaged, open_file, pack_key, read_header};
use super::lock;
use super::rows::{PackRow, PackState};
use crate::crypto::{PackKey, VaultKeys};
use crate::disk::OpenMode;
use crate::format::pack::pack_path;
use crate::format::{BLOCK_LEN, ChunkDesc, ChunkId, PackKind, PackName};

/// Where chunks can be read from: the packs of an open vault ([`super::Packs`]), or packs alone
/// ([`super::super::cold::ColdPacks`]).
pub trait ChunkSource: Send + Sync {
    /// Returns the plaintext of a whole chunk, after its id was recomputed from it.
    ///
    /// # Errors
    /// `NotFound` when no pack has the chunk; `Corrupt` when what the pack has is not that chunk.
    fn read_chunk(&self, kind: PackKind, id: &ChunkId) -> Result<Arc<[u8]>>;

    /// Fills `buf` with the bytes of a data chunk from `offset` (in its plaintext) on. Reads and opens only
    /// the blocks that it needs.
    ///
    /// # Errors
    /// `NotFound` when no pack has the chunk; `Corrupt` when a block does not authenticate, or when the chunk
    /// ends before the range does.
    fn read_at(&self, id: &ChunkId, offset: u32, buf: &mut [u8]) -> Result<()>;

    /// Replaces what `buf` holds by the plaintext of a whole data chunk, after its id was recomputed from it. For those who
    /// read everything once: where each chunk is read whole in any case, nothing of it is kept. After an error `buf` holds
    /// nothing to be believed.
    ///
    /// # Errors
    /// As [`ChunkSource::read_chunk`].
    fn read_into(&self, id: &ChunkId, buf: &mut Vec<u8>) -> Result<()> {
        let chunk = self.read_chunk(PackKind::Data, id)?;
        buf.clear();
        buf.extend_from_slice(&chunk);
        Ok(())
    }
}

/// Files kept open for readers.
const FILES_MAX: usize = 64;
/// Pack keys kept: deriving one costs a KEM decapsulation.
const KEYS_MAX: usize = 1024;

/// All rows of the Packs table.
#[derive(Default)]
pub(super) struct Rows {
    by_no: HashMap<u32, PackRow>,
    /// Of packs that have a name, so not of open ones.
    by_name: HashMap<PackName, u32>,
}

impl Rows {
    fn set(&mut self, no: u32, row: PackRow) {
        self.remove(no);
        if row.state != PackState::Open {
            self.by_name.insert(row.name, no);
        }
        self.by_no.insert(no, row);
    }

    fn remove(&mut self, no: u32) {
        let Some(row) = self.by_no.remove(&no) else { return };
        if self.by_name.get(&row.name) == Some(&no) {
            self.by_name.remove(&row.name);
        }
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &PackRow)> {
        self.by_no.iter().map(|(no, row)| (*no, row))
    }

    /// The closed or condemned pack of that name.
    pub(super) fn named(&self, name: &PackName) -> Option<(u32, &PackRow)> {
        let no = *self.by_name.get(name)?;
        self.by_no.get(&no).map(|row| (no, row))
    }
}

/// The packs that chunk rows point to, opened when needed.
pub(super) struct PackFiles {
    rows: RwLock<Rows>,
    /// Packs that are not closed yet, by number.
    pinned: RwLock<HashMap<u32, Arc<PackFile>>>,
    files: Mutex<Lru<u32, Arc<PackFile>>>,
    keys: Mutex<Lru<u32, Arc<PackKey>>>,
    /// Packs that could not be proven; not tried again before the vault is opened again.
    refused: Mutex<HashSet<u32>>,
    /// Held while a pack is being proven.
    proving: Mutex<()>,
}

impl PackFiles {
    pub(super) fn new() -> Self {
        PackFiles {
            rows: RwLock::default(),
            pinned: RwLock::new(HashMap::new()),
            files: Mutex::new(Lru::new(FILES_MAX)),
            keys: Mutex::new(Lru::new(KEYS_MAX)),
            refused: Mutex::default(),
            proving: Mutex::new(()),
        }
    }

    /// Returns all rows, locked.
    pub(super) fn rows(&self) -> RwLockReadGuard<'_, Rows> {
        super::read(&self.rows)
    }

    /// Returns a pack's row.
    pub(super) fn row(&self, no: u32) -> Option<PackRow> {
        self.rows().by_no.get(&no).cloned()
    }

    /// Returns where a pack is in its life.
    pub(super) fn state(&self, no: u32) -> Option<PackState> {
        self.rows().by_no.get(&no).map(|row| row.state)
    }

    /// Returns whether a pack is proven.
    pub(super) fn is_proven(&self, no: u32) -> bool {
        self.rows().by_no.get(&no).is_some_and(|row| row.proven)
    }

    /// Puts a pack's row in, or replaces it.
    pub(super) fn set_row(&self, no: u32, row: PackRow) {
        super::write(&self.rows).set(no, row);
    }

    /// Makes an open pack readable for as long as it is open.
    pub(super) fn pin(&self, no: u32, pack: Arc<PackFile>) {
        super::write(&self.pinned).insert(no, pack);
    }

    /// A pack is closed now, or gone. Readers that still use the open file may go on.
    pub(super) fn unpin(&self, no: u32) {
        super::write(&self.pinned).remove(&no);
    }

    /// Waits until nobody else proves a pack, and then keeps others from doing so.
    pub(super) fn proving(&self) -> MutexGuard<'_, ()> {
        lock(&self.proving)
    }

    /// Returns whether a pack was found not to be what it should be.
    pub(super) fn is_refused(&self, no: u32) -> bool {
        lock(&self.refused).contains(&no)
    }

    /// Remembers that a pack is not what it should be.
    pub(super) fn refuse(&self, no: u32) {
        lock(&self.refused).insert(no);
    }

    /// Forgets everything about a pack.
    pub(super) fn drop_pack(&self, no: u32) {
        super::write(&self.rows).remove(no);
        self.unpin(no);
        self.drop_file(no);
    }

    /// Forgets a closed pack's file and key, so that the next reader opens it anew.
    pub(super) fn drop_file(&self, no: u32) {
        lock(&self.files).remove(&no);
        lock(&self.keys).remove(&no);
    }

    /// Returns a pack that can be read.
    pub(super) fn get(&self, ctx: &Ctx, no: u32) -> Result<Arc<PackFile>> {
        if let Some(pack) = super::read(&self.pinned).get(&no) {
            return Ok(Arc::clone(pack));
        }
        if let Some(pack) = lock(&self.files).get(&no) {
            return Ok(pack);
        }
        let row = self.row(no).filter(|row| row.state != PackState::Open);
        let row = row.ok_or_else(|| {
            StoreError::Corrupt(format!(
                "live database: a chunk points to pack number {no}, which is not known"
            ))
        })?;
        let pack = self.open(ctx, no, &row)?;
        lock(&self.files).insert(no, Arc::clone(&pack), 1);
        Ok(pack)
    }

    fn open(&self, ctx: &Ctx, no: u32, row: &PackRow) -> Result<Arc<PackFile>> {
        let path = pack_path(&row.name);
        let file = open_file(&*ctx.disk, &path, OpenMode::Read)?;
        let cached = lock(&self.keys).get(&no);
        let key = match cached {
            // The key was unsealed from the header that the row names; another file would not authenticate.
            Some(key) => key,
            None => {
                let read = read_header(&*file, &path)?;
                if read.hash != row.header_hash {
                    return Err(damaged(&path, &"its header is not the one that was recorded"));
                }
                let key = pack_key(&ctx.keys, &read.header, &path)?;
                lock(&self.keys).insert(no, Arc::clone(&key), 1);
                key
            }
        };
        Ok(Arc::new(PackFile {
            file,
            key,
            kind: row.kind,
            proven: row.proven,
            label: path,
            read_whole: AtomicU64::new(0),
        }))
    }
}

/// Fills `buf` from `offset` on, block by block, out of the cache as far as possible.
pub(crate) fn read_range(
    cache: &BlockCache,
    keys: &VaultKeys,
    pack: &PackFile,
    desc: &ChunkDesc,
    offset: u32,
    buf: &mut [u8],
) -> Result<()> {
    if buf.is_empty() {
        return Ok(());
    }
    let end = u64::from(offset) + buf.len() as u64;
    if end > u64::from(desc.plain_len) {
        let text = format!("chunk {} has {} bytes, {end} are asked for", desc.id, desc.plain_len);
        return Err(StoreError::Corrupt(text));
    }
    let first = offset / BLOCK_LEN as u32;
    let last = ((end - 1) / BLOCK_LEN as u64) as u32;
    let blocks = cached_blocks(cache, keys, pack, desc, first, last)?;
    let mut skip = offset as usize % BLOCK_LEN;
    let mut rest = buf;
    for block in blocks {
        let from = &block[skip..];
        let n = from.len().min(rest.len());
        let (head, tail) = rest.split_at_mut(n);
        head.copy_from_slice(&from[..n]);
        rest = tail;
        skip = 0;
    }
    Ok(())
}

/// Returns a whole chunk, after its id was recomputed.
pub(crate) fn read_whole(
    cache: &BlockCache,
    keys: &VaultKeys,
    pack: &PackFile,
    kind: PackKind,
    desc: &ChunkDesc,
) -> Result<Arc<[u8]>> {
    pack.check_kind(kind, desc)?;
    let last = desc.blocks.len().saturating_sub(1) as u32;
    let mut blocks = cached_blocks(cache, keys, pack, desc, 0, last)?;
    let plain = if blocks.len() == 1 { blocks.swap_remove(0) } else { Arc::from(blocks.concat()) };
    pack.check_id(keys, desc, &plain)?;
    Ok(plain)
}

/// Returns the blocks `first..=last`. What is not in the cache is read with one read for each run of blocks.
fn cached_blocks(
    cache: &BlockCache,
    keys: &VaultKeys,
    pack: &PackFile,
    desc: &ChunkDesc,
    first: u32,
    last: u32,
) -> Result<Vec<Arc<[u8]>>> {
    let mut found: Vec<Option<Arc<[u8]>>> = vec![None; (last - first + 1) as usize];
    let mut run: Vec<(u32, Claim<'_>)> = Vec::new();
    let load = |run: &mut Vec<(u32, Claim<'_>)>, found: &mut Vec<Option<Arc<[u8]>>>| {
        load_run(cache, keys, pack, desc, std::mem::take(run), &mut |b, block| {
            found[(b - first) as usize] = Some(block);
        })
    };
    for b in first..=last {
        match cache.lookup((desc.id, b)) {
            Lookup::Hit(block) => found[(b - first) as usize] = Some(block),
            Lookup::Claimed(claim) => {
                run.push((b, claim));
                continue;
            }
            Lookup::Busy => {}
        }
        load(&mut run, &mut found)?;
    }
    load(&mut run, &mut found)?;
    // No claim of ours is open any more, so waiting for those of others can't make a circle.
    for b in first..=last {
        if found[(b - first) as usize].is_some() {
            continue;
        }
        match cache.lookup_wait((desc.id, b)) {
            Lookup::Hit(block) => found[(b - first) as usize] = Some(block),
            Lookup::Claimed(claim) => load(&mut vec![(b, claim)], &mut found)?,
            Lookup::Busy => {}
        }
    }
    let missing = || StoreError::Corrupt(format!("chunk {}: a block could not be loaded", desc.id));
    found.into_iter().map(|block| block.ok_or_else(missing)).collect()
}

/// Loads a run of adjacent blocks that were claimed. An error drops the claims, which wakes whoever waits.
fn load_run(
    cache: &BlockCache,
    keys: &VaultKeys,
    pack: &PackFile,
    desc: &ChunkDesc,
    run: Vec<(u32, Claim<'_>)>,
    found: &mut dyn FnMut(u32, Arc<[u8]>),
) -> Result<()> {
    let (Some(&(first, _)), Some(&(last, _))) = (run.first(), run.last()) else { return Ok(()) };
    let mut loaded: Vec<Arc<[u8]>> = Vec::with_capacity(run.len());
    if pack.proven {
        pack.read_blocks(desc, first, last, &mut |_, block| loaded.push(Arc::from(block)))?;
    } else {
        // The whole chunk, since only its id proves it. The other blocks are kept too: they have been paid
        // for.
        let plain = pack.read_chunk_verified(keys, desc)?;
        for (b, block) in (0u32..).zip(plain.chunks(BLOCK_LEN)) {
            if (first..=last).contains(&b) {
                loaded.push(Arc::from(block));
            } else {
                cache.insert((desc.id, b), Arc::from(block));
            }
        }
    }
    for ((b, claim), block) in run.into_iter().zip(loaded) {
        claim.fill(Arc::clone(&block));
        found(b, block);
    }
    Ok(())
}
