//! Chunks out of packs at a remote. Packs of trees are looked into at once, those with data when data is first wanted:
//! to list a directory, none of their footers is needed.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::disk::RemoteDisk;
use crate::crypto::VaultKeys;
use crate::disk::Disk;
use crate::format::{ChunkId, Header, PackKind, PackName};
use crate::store::cold::ColdPacks;
use crate::store::error::{Result, StoreError};
use crate::store::packs::ChunkSource;

/// Decrypted blocks of trees that are kept, in bytes.
const TREE_CACHE_BYTES: usize = 32 << 20;

/// See the module.
pub struct RemotePacks {
    disk: Arc<RemoteDisk>,
    keys: Arc<VaultKeys>,
    header: Header,
    trees: ColdPacks,
    data_names: Vec<PackName>,
    data: OnceLock<ColdPacks>,
    /// Held while packs with data are looked into.
    opening: Mutex<()>,
    cache_bytes: usize,
}

impl std::fmt::Debug for RemotePacks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemotePacks").field("trees", &self.trees).finish_non_exhaustive()
    }
}

impl RemotePacks {
    /// Looks into the packs of trees among the packs of some snapshots. `data`: data will be wanted, too.
    /// `cache_bytes`: decrypted blocks of data that are kept.
    ///
    /// # Errors
    /// What the remote says; single packs that are damaged or missing are none.
    pub fn open(
        disk: Arc<RemoteDisk>,
        keys: Arc<VaultKeys>,
        header: &Header,
        names: &BTreeSet<PackName>,
        cache_bytes: usize,
        data: bool,
    ) -> Result<Arc<Self>> {
        let io = |e| StoreError::io("reading packs", e);
        let kinds = disk.kinds(names, data).map_err(io)?;
        // A pack of which nothing is known is looked for in both places, and named as missing where it is missed.
        let of = |kind| {
            let fits = move |name: &&PackName| kinds.get(*name).is_none_or(|k| *k == kind);
            names.iter().filter(fits).copied().collect::<Vec<_>>()
        };
        let (tree_names, data_names) = (of.clone()(PackKind::Tree), of(PackKind::Data));
        let opens = |names: &[PackName], cache_bytes| {
            let (shown, keys) = (Arc::clone(&disk) as Arc<dyn Disk>, Arc::clone(&keys));
            ColdPacks::open_with(shown, keys, header, names.iter().copied(), cache_bytes, disk.jobs())
        };
        // Side by side, if that keeps the order in which their ends come.
        let both = data && RemoteDisk::is_one_sweep(names.len());
        match both {
            true => disk.begin_sweep(names.iter()),
            false => disk.begin_sweep(tree_names.iter()),
        }
        .map_err(io)?;
        let (trees, opened) = std::thread::scope(|scope| {
            let opened = both.then(|| scope.spawn(|| opens(&data_names, cache_bytes)));
            let trees = opens(&tree_names, TREE_CACHE_BYTES);
            (
                trees,
                opened.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
            )
        });
        disk.end_sweep();
        disk.widen(data);
        let packs = Self {
            disk: Arc::clone(&disk),
            keys: Arc::clone(&keys),
            header: header.clone(),
            trees: trees?,
            data_names,
            data: opened.transpose()?.map_or_else(OnceLock::new, OnceLock::from),
            opening: Mutex::new(()),
            cache_bytes,
        };
        if data {
            packs.data()?;
        }
        Ok(Arc::new(packs))
    }

    /// Where the data comes from.
    #[must_use]
    pub fn disk(&self) -> &Arc<RemoteDisk> {
        &self.disk
    }

    /// The packs with data; looks into them at the first call.
    fn data(&self) -> Result<&ColdPacks> {
        let _one = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(data) = self.data.get() {
            return Ok(data);
        }
        self.disk.begin_sweep(self.data_names.iter()).map_err(|e| StoreError::io("reading packs", e))?;
        let data = ColdPacks::open_with(
            Arc::clone(&self.disk) as Arc<dyn Disk>,
            Arc::clone(&self.keys),
            &self.header,
            self.data_names.iter().copied(),
            self.cache_bytes,
            self.disk.jobs(),
        );
        self.disk.end_sweep();
        let data = data?;
        Ok(self.data.get_or_init(|| data))
    }

    /// Where chunks of data stand; see [`ColdPacks::stored`].
    ///
    /// # Errors
    /// When the packs with data can't be looked into, or the remote is lost.
    pub(super) fn stored(&self, ids: &[ChunkId]) -> Result<Vec<(PackName, Range<u64>)>> {
        self.data()?.stored(ids, &|error| self.disk.is_lost(error))
    }
}

impl ChunkSource for RemotePacks {
    fn read_chunk(&self, kind: PackKind, id: &ChunkId) -> Result<Arc<[u8]>> {
        match kind {
            PackKind::Tree => self.trees.read_chunk(kind, id),
            PackKind::Data => self.data()?.read_chunk(kind, id),
        }
    }

    fn read_at(&self, id: &ChunkId, offset: u32, buf: &mut [u8]) -> Result<()> {
        self.data()?.read_at(id, offset, buf)
    }

    fn read_into(&self, id: &ChunkId, buf: &mut Vec<u8>) -> Result<()> {
        self.data()?.read_into(id, buf)
    }
}
