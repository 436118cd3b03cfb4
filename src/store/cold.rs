//! Reading chunks from packs alone: for restores, listings and mounts of a vault that has no live state.
//!
//! The index comes from the packs' footers. It is compact (40 bytes a chunk): which pack, which entry of its
//! footer. Where the chunk's blocks stand is looked up in the footer, which is read again when needed; the
//! footers used last are kept.
//!
//! Names of packs are not checked against their files here, that would mean reading all of them. So nothing
//! that a pack says is believed: a chunk is always read whole, and its id recomputed, before a byte of it is
//! handed out (see [`super::packs`]: the file module says why that is enough). A pack that is missing or
//! damaged fails only the reads of chunks that no other pack has.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::blockcache::BlockCache;
use super::error::{Result, StoreError};
use super::lru::Lru;
use super::packs::{ChunkSource, PackFile, open_named, read_range, read_whole};
use crate::crypto::VaultKeys;
use crate::disk::Disk;
use crate::format::pack::pack_path;
use crate::format::{ChunkDesc, ChunkId, Footer, FormatError, Header, PackKind, PackName};

/// Packs kept open.
const FILES_MAX: usize = 64;
/// What the footers that are kept may take in memory, in bytes.
const FOOTERS_BYTES_MAX: usize = 16 << 20;
/// Footers that each of several threads reads before they are taken in.
const FOOTERS_EACH: usize = 16;
/// Of missing and damaged packs, so many are named in an error.
const PROBLEMS_NAMED: usize = 3;

/// One chunk in one pack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    id: ChunkId,
    pack: u32,
    entry: u32,
}

/// A chunk source over closed packs.
pub struct ColdPacks {
    disk: Arc<dyn Disk>,
    keys: Arc<VaultKeys>,
    names: Vec<PackName>,
    /// Sorted.
    index: Vec<Place>,
    files: Mutex<Lru<u32, Arc<PackFile>>>,
    footers: Mutex<Lru<u32, Arc<Footer>>>,
    cache: BlockCache,
    problems: Vec<(PackName, StoreError)>,
}

impl ColdPacks {
    /// Reads the footers of the given packs. Packs that can't be used are kept in [`ColdPacks::problems`].
    ///
    /// # Errors
    /// `Crypto` when the keys are not those of `header`'s vault; `Io` when the disk fails.
    pub fn open(
        disk: Arc<dyn Disk>,
        keys: Arc<VaultKeys>,
        header: &Header,
        packs: impl Iterator<Item = PackName>,
        cache_bytes: usize,
    ) -> Result<Self> {
        Self::open_with(disk, keys, header, packs, cache_bytes, 1)
    }

    /// [`ColdPacks::open`] with so many footers read at a time: for disks that answer slowly.
    ///
    /// # Errors
    /// As [`ColdPacks::open`].
    pub fn open_with(
        disk: Arc<dyn Disk>,
        keys: Arc<VaultKeys>,
        header: &Header,
        packs: impl Iterator<Item = PackName>,
        cache_bytes: usize,
        jobs: usize,
    ) -> Result<Self> {
        if keys.vault_id() != header.vault_id {
            return Err(StoreError::Crypto(crate::crypto::CryptoError::Tampered("keys of another vault")));
        }
        let mut cold = ColdPacks {
            disk,
            keys,
            names: Vec::new(),
            index: Vec::new(),
            files: Mutex::new(Lru::new(FILES_MAX)),
            footers: Mutex::new(Lru::new(FOOTERS_BYTES_MAX)),
            cache: BlockCache::new(cache_bytes),
            problems: Vec::new(),
        };
        let names: Vec<PackName> = packs.collect();
        for some in names.chunks(jobs.max(1) * FOOTERS_EACH) {
            for (name, read) in some.iter().zip(cold.read_footers(some, jobs)) {
                match read {
                    Ok(footer) => cold.add(*name, &footer)?,
                    Err(error) if is_of_one_pack(&error) => cold.problems.push((*name, error)),
                    Err(error) => return Err(error),
                }
            }
        }
        cold.index.sort_unstable();
        cold.index.shrink_to_fit();
        Ok(cold)
    }

    /// Returns the packs that are missing or damaged, and why.
    #[must_use]
    pub fn problems(&self) -> &[(PackName, StoreError)] {
        &self.problems
    }

    /// Returns how many chunks the index has; one that stands in two packs counts twice.
    #[must_use]
    pub fn chunk_count(&self) -> usize {
        self.index.len()
    }

    /// Tells whether a pack says that it has this chunk.
    #[must_use]
    pub fn contains(&self, id: &ChunkId) -> bool {
        !self.places(id).is_empty()
    }

    fn add(&mut self, name: PackName, footer: &Footer) -> Result<()> {
        let pack = u32::try_from(self.names.len());
        let pack = pack.map_err(|_| StoreError::Format(FormatError::Limit("2^32 packs")))?;
        self.names.push(name);
        self.index.reserve(footer.chunks.len());
        for (entry, chunk) in (0u32..).zip(&footer.chunks) {
            self.index.push(Place { id: chunk.id, pack, entry });
        }
        Ok(())
    }

    /// Reads the footers of some packs, `jobs` at a time.
    fn read_footers(&self, names: &[PackName], jobs: usize) -> Vec<Result<Footer>> {
        let read = |name| self.read_pack(name).map(|(_, footer)| footer);
        if jobs <= 1 {
            return names.iter().map(read).collect();
        }
        std::thread::scope(|scope| {
            let each = names.len().div_ceil(jobs).max(1);
            let threads: Vec<_> = names
                .chunks(each)
                .map(|some| scope.spawn(move || some.iter().map(read).collect::<Vec<_>>()))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<Result<Footer>>>| match thread.join() {
                Ok(read) => read,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().flat_map(join).collect()
        })
    }

    /// Where the given chunks stand: ranges of packs, in the order of packs and offsets. A chunk that several packs have
    /// is told once, from where it is read first. Chunks that no pack has, and packs that can't be read, are left out:
    /// who reads them is told why.
    ///
    /// # Errors
    /// The first that `ends` says is not of one pack only.
    pub fn stored(
        &self,
        ids: &[ChunkId],
        ends: &dyn Fn(&StoreError) -> bool,
    ) -> Result<Vec<(PackName, Range<u64>)>> {
        let mut places: Vec<Place> = ids.iter().filter_map(|id| self.places(id).first().copied()).collect();
        places.sort_unstable_by_key(|place| (place.pack, place.entry));
        places.dedup();
        let mut found = Vec::with_capacity(places.len());
        for place in places {
            match self.locate(&place) {
                Ok((_, desc)) => {
                    found.push((self.names[place.pack as usize], u64::from(desc.offset)..desc.end()));
                }
                Err(error) if ends(&error) => return Err(error),
                Err(error) => tracing::debug!(%error, "looking for a chunk"),
            }
        }
        Ok(found)
    }

    fn read_pack(&self, name: &PackName) -> Result<(PackFile, Footer)> {
        let (pack, _) = open_named(&*self.disk, &self.keys, &pack_path(name))?;
        let (footer, _) = pack.read_footer()?;
        Ok((pack, footer))
    }

    /// All places that claim to have a chunk.
    fn places(&self, id: &ChunkId) -> &[Place] {
        let from = self.index.partition_point(|p| p.id < *id);
        let len = self.index[from..].partition_point(|p| p.id == *id);
        &self.index[from..from + len]
    }

    /// Returns an open pack and where the chunk stands in it.
    fn locate(&self, place: &Place) -> Result<(Arc<PackFile>, ChunkDesc)> {
        let name = &self.names[place.pack as usize];
        let file = lock(&self.files).get(&place.pack);
        let footer = lock(&self.footers).get(&place.pack);
        let (file, footer) = match (file, footer) {
            (Some(file), Some(footer)) => (file, footer),
            (Some(file), None) => {
                let footer = Arc::new(file.read_footer()?.0);
                (file, self.keep_footer(place.pack, footer))
            }
            (None, _) => {
                let (file, footer) = self.read_pack(name)?;
                let file = Arc::new(file);
                lock(&self.files).insert(place.pack, Arc::clone(&file), 1);
                (file, self.keep_footer(place.pack, Arc::new(footer)))
            }
        };
        // The file may have been changed since its footer was indexed.
        let desc = footer.chunks.get(place.entry as usize).filter(|desc| desc.id == place.id).cloned();
        let changed = || StoreError::Corrupt(format!("{} has changed while it was in use", pack_path(name)));
        Ok((file, desc.ok_or_else(changed)?))
    }

    fn keep_footer(&self, pack: u32, footer: Arc<Footer>) -> Arc<Footer> {
        let weight = footer.chunks.iter().map(|c| size_of::<ChunkDesc>() + 32 + c.blocks.len() * 8).sum();
        lock(&self.footers).insert(pack, Arc::clone(&footer), weight);
        footer
    }

    /// Tries each place that claims to have a chunk.
    fn with_chunk<T>(
        &self,
        id: &ChunkId,
        mut read: impl FnMut(&PackFile, &ChunkDesc) -> Result<T>,
    ) -> Result<T> {
        let mut first_error = None;
        for place in self.places(id) {
            match self.locate(place).and_then(|(pack, desc)| read(&pack, &desc)) {
                Ok(done) => return Ok(done),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| self.not_there(id)))
    }

    /// The error for a chunk that no pack lists: if packs are missing it is probably in one of these.
    fn not_there(&self, id: &ChunkId) -> StoreError {
        if self.problems.is_empty() {
            return StoreError::NotFound(format!("chunk {id}"));
        }
        let named: Vec<_> = self.problems.iter().take(PROBLEMS_NAMED).map(|(_, e)| e.to_string()).collect();
        let more = self.problems.len() - named.len();
        let more = if more == 0 { String::new() } else { format!("; and {more} more packs") };
        StoreError::Corrupt(format!("chunk {id} is in no pack that can be read ({}{more})", named.join("; ")))
    }
}

impl ChunkSource for ColdPacks {
    fn read_chunk(&self, kind: PackKind, id: &ChunkId) -> Result<Arc<[u8]>> {
        self.with_chunk(id, |pack, desc| read_whole(&self.cache, &self.keys, pack, kind, desc))
    }

    fn read_at(&self, id: &ChunkId, offset: u32, buf: &mut [u8]) -> Result<()> {
        self.with_chunk(id, |pack, desc| read_range(&self.cache, &self.keys, pack, desc, offset, buf))
    }

    fn read_into(&self, id: &ChunkId, buf: &mut Vec<u8>) -> Result<()> {
        self.with_chunk(id, |pack, desc| {
            pack.check_kind(PackKind::Data, desc)?;
            pack.read_chunk_into(&self.keys, desc, buf)
        })
    }
}

impl std::fmt::Debug for ColdPacks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ColdPacks")
            .field("packs", &self.names.len())
            .field("chunks", &self.index.len())
            .field("problems", &self.problems.len())
            .finish_non_exhaustive()
    }
}

/// Whether only the pack that was looked into can't be read.
fn is_of_one_pack(error: &StoreError) -> bool {
    match error {
        StoreError::Corrupt(_) => true,
        StoreError::Io { source, .. } => source.kind() == std::io::ErrorKind::PermissionDenied,
        _ => false,
    }
}

/// What is locked here is whole between statements, so a panic elsewhere left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
