//! A remote as the directory of a vault that can't be written to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cache::PackCache;
use super::headers::{RemoteHeader, remote_header};
use super::reads::{Reads, RemoteFile};
use super::scratch::Scratch;
use super::{CACHE_BYTES_MIN, FetchOptions, to_io};
use crate::disk::{DirItem, Disk, DiskFile, DiskLock, OpenMode, Space};
use crate::format::chain::{CHAIN_FILE_LEN_MAX, parse_name};
use crate::format::pack::{PACK_HEADER_LEN, TRAILER_LEN, parse_pack_path};
use crate::format::{PackKind, PackName};
use crate::remote::{self, ErrorKind, Key, Remote, RemoteError};

/// The most chain files of a vault that is read from a remote: one each half hour for fifteen years.
const CHAIN_FILES_MAX: usize = 1 << 18;
/// So many names that nothing knows are passed over in a listing; then it is no listing of a vault.
const STRANGE_MAX: usize = 1 << 20;
/// The most packs of a vault whose chain was not looked at.
const PACKS_MAX: usize = 1 << 22;
/// What chain files that were fetched may take in memory. Most are read twice.
const CHAIN_BYTES_KEPT: u64 = 64 << 20;
/// Packs up to this length are fetched whole to look into them.
const SMALL_PACK: u64 = 16 << 10;
/// Packs by name, with their lengths.
type Listing = Arc<BTreeMap<PackName, u64>>;

/// See the module.
pub struct RemoteDisk {
    remote: Arc<dyn Remote>,
    reads: Arc<Reads>,
    jobs: usize,
    cache_bytes: u64,
    /// Packs that matter; `None`: all.
    named: Mutex<Option<BTreeSet<PackName>>>,
    listing: Mutex<Option<Listing>>,
    chain: Mutex<ChainFiles>,
}

#[derive(Default)]
struct ChainFiles {
    /// By path.
    lens: HashMap<String, u64>,
    kept: HashMap<String, Vec<u8>>,
    bytes_kept: u64,
}

impl fmt::Debug for RemoteDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteDisk").field("remote", &self.remote).finish_non_exhaustive()
    }
}

/// What is locked here is consistent between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a vault at a remote is only read")
}

fn hostile(what: &str) -> RemoteError {
    RemoteError::new(ErrorKind::Corrupt, what)
}

impl RemoteDisk {
    /// Shows a remote as a vault's directory. Nothing is asked of it yet.
    ///
    /// # Errors
    /// When the cache can't be made.
    pub fn new(remote: Arc<dyn Remote>, options: &FetchOptions) -> io::Result<Arc<Self>> {
        let scratch = Scratch::create(&options.cache_dir, Arc::clone(&options.env))?;
        let cache_bytes = options.cache_bytes.max(CACHE_BYTES_MIN);
        let cache = PackCache::new(
            Arc::clone(&remote),
            scratch,
            cache_bytes,
            options.jobs,
            options.patience,
            !options.read_ahead,
        )?;
        Ok(Arc::new(Self {
            remote,
            reads: Arc::new(Reads::new(cache, options.read_ahead)),
            jobs: options.jobs.max(1),
            cache_bytes,
            named: Mutex::default(),
            listing: Mutex::default(),
            chain: Mutex::default(),
        }))
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        self.remote.url()
    }

    /// Reads the vault's header; see [`remote_header`].
    ///
    /// # Errors
    /// As [`remote_header`].
    pub fn header(&self) -> super::Result<RemoteHeader> {
        remote_header(self.remote.as_ref())
    }

    /// Says which packs matter: those that the chain names. Others are passed over when packs are listed, so that a
    /// hostile listing can't fill memory.
    pub fn only_packs(&self, named: BTreeSet<PackName>) {
        *lock(&self.named) = Some(named);
        *lock(&self.listing) = None;
    }

    /// The packs that are there, with the lengths that the listing says.
    ///
    /// # Errors
    /// What the remote says; `Corrupt` for a listing that is none of a vault.
    pub fn packs(&self) -> remote::Result<Listing> {
        let mut listing = lock(&self.listing);
        if let Some(packs) = &*listing {
            return Ok(Arc::clone(packs));
        }
        let named = lock(&self.named);
        let (mut packs, mut strange) = (BTreeMap::new(), 0_usize);
        remote::list(self.remote.as_ref(), "packs/", &mut |item| {
            match parse_pack_path(&item.name) {
                Some(name) if named.as_ref().is_none_or(|named| named.contains(&name)) => {
                    packs.insert(name, item.len);
                }
                // FORMAT LAY-2
                _ => strange += 1,
            }
            if strange > STRANGE_MAX || (named.is_none() && packs.len() > PACKS_MAX) {
                return Err(hostile("listing \"packs/\": millions of names that no snapshot knows"));
            }
            Ok(())
        })?;
        let packs = Arc::new(packs);
        *listing = Some(Arc::clone(&packs));
        Ok(packs)
    }

    /// The kinds of packs, by their clear headers; packs that are missing or make no sense are left out. `trailers`: their
    /// last bytes will be wanted, too.
    ///
    /// # Errors
    /// What the remote says of itself, not of single packs.
    pub(super) fn kinds(
        &self,
        names: &BTreeSet<PackName>,
        trailers: bool,
    ) -> io::Result<BTreeMap<PackName, PackKind>> {
        let packs = self.packs().map_err(to_io)?;
        let present = || names.iter().filter_map(|name| Some((name, *packs.get(name)?)));
        for (name, len) in present() {
            for range in ends(len, trailers) {
                self.reads.cache().plan(name, range);
            }
        }
        let mut kinds = BTreeMap::new();
        for (name, len) in present() {
            // FORMAT section 5: the kind stands behind the magic.
            let mut start = [0; 9];
            let header = ends(len, false).next().unwrap_or(0..0);
            if header.end < start.len() as u64 {
                continue;
            }
            match self.reads.cache().read(name, &mut start, 0, &header) {
                Ok(()) => {}
                // Said again, and named, when something of it is wanted.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                    continue;
                }
                Err(e) => return Err(e),
            }
            if let Ok(kind) = PackKind::from_u8(start[8]) {
                kinds.insert(*name, kind);
                self.reads.is_of(name, kind);
            }
        }
        Ok(kinds)
    }

    /// Begins to fetch the trailers of packs.
    pub(super) fn plan_trailers<'a>(&self, names: impl Iterator<Item = &'a PackName>) -> io::Result<()> {
        let packs = self.packs().map_err(to_io)?;
        for (name, len) in names.filter_map(|name| Some((name, *packs.get(name)?))) {
            for range in ends(len, true) {
                self.reads.cache().plan(name, range);
            }
        }
        Ok(())
    }

    /// From now on trees are wanted, not only footers.
    pub(super) fn widen(&self) {
        self.reads.widen();
    }

    /// Begins to fetch a range of a pack.
    pub(super) fn plan(&self, name: &PackName, range: Range<u64>) {
        self.reads.cache().plan(name, range);
    }

    /// Requests at a time.
    pub(super) fn jobs(&self) -> usize {
        self.jobs
    }

    /// How much the cache may hold.
    pub(super) fn cache_bytes(&self) -> u64 {
        self.cache_bytes
    }

    /// The most bytes that the cache ever held.
    #[must_use]
    pub fn cache_peak(&self) -> u64 {
        self.reads.cache().peak()
    }

    /// Lists the chain files, and fetches them side by side.
    fn list_chain(&self) -> remote::Result<Vec<DirItem>> {
        let (mut items, mut strange) = (Vec::new(), 0_usize);
        remote::list(self.remote.as_ref(), "snapshots/", &mut |item| {
            match item.name.strip_prefix("snapshots/").filter(|name| parse_name(name).is_some()) {
                Some(name) => {
                    items.push(DirItem { name: name.into(), lossy: false, is_dir: false, len: item.len });
                }
                // FORMAT LAY-2
                None => strange += 1,
            }
            if items.len() > CHAIN_FILES_MAX || strange > STRANGE_MAX {
                return Err(hostile("listing \"snapshots/\": more files than any vault has"));
            }
            Ok(())
        })?;
        self.fetch_chain(&items);
        Ok(items)
    }

    fn fetch_chain(&self, items: &[DirItem]) {
        let mut left = {
            let mut chain = lock(&self.chain);
            chain.lens = items.iter().map(|item| (format!("snapshots/{}", item.name), item.len)).collect();
            CHAIN_BYTES_KEPT.saturating_sub(chain.bytes_kept)
        };
        let fits = |item: &&DirItem| {
            let fits = item.len <= left.min(CHAIN_FILE_LEN_MAX as u64);
            if fits {
                left -= item.len;
            }
            fits
        };
        let wanted: Vec<&DirItem> = items.iter().filter(fits).collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.min(wanted.len()) {
                scope.spawn(|| {
                    while let Some(item) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let path = format!("snapshots/{}", item.name);
                        if lock(&self.chain).kept.contains_key(&path) {
                            continue;
                        }
                        match self.get_file(&path, item.len) {
                            Ok(bytes) => {
                                let mut chain = lock(&self.chain);
                                chain.bytes_kept += bytes.len() as u64;
                                chain.kept.insert(path, bytes);
                            }
                            Err(error) => {
                                // Asked for again by who reads it, and then told.
                                tracing::debug!(path, %error, "fetching");
                                return;
                            }
                        }
                    }
                });
            }
        });
    }

    fn get_file(&self, path: &str, len: u64) -> remote::Result<Vec<u8>> {
        self.remote.get(&key(path)?, 0..len)
    }
}

/// The header of a pack of this length, and its trailer.
fn ends(len: u64, trailer: bool) -> impl Iterator<Item = Range<u64>> {
    let header = if len <= SMALL_PACK { 0..len } else { 0..PACK_HEADER_LEN as u64 };
    let rest = header.end.max(len.saturating_sub(TRAILER_LEN as u64))..len;
    [header, if trailer { rest } else { 0..0 }].into_iter().filter(|range| !range.is_empty())
}

fn key(path: &str) -> remote::Result<Key> {
    Key::new(path).ok_or_else(|| RemoteError::new(ErrorKind::Local, format!("{path:?} is no object's name")))
}

impl Disk for RemoteDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        if mode != OpenMode::Read {
            return Err(read_only());
        }
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{path}: no such object"));
        let name = parse_pack_path(path).ok_or_else(missing)?;
        let len = *self.packs().map_err(to_io)?.get(&name).ok_or_else(missing)?;
        Ok(Arc::new(RemoteFile { reads: Arc::clone(&self.reads), name, len }))
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn rename_new(&self, _from: &str, _to: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn remove(&self, _path: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn create_dir_all(&self, _path: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<DirItem>> {
        let missing = || Err(io::Error::new(io::ErrorKind::NotFound, format!("{dir}: no such directory")));
        if dir == "snapshots" {
            return self.list_chain().map_err(to_io);
        }
        let Some(folder) = dir.strip_prefix("packs") else { return missing() };
        let packs = self.packs().map_err(to_io)?;
        if folder.is_empty() {
            let folders: BTreeSet<String> = packs.keys().map(|name| name.to_hex()[..2].to_string()).collect();
            let item = |name| DirItem { name, lossy: false, is_dir: true, len: 0 };
            return Ok(folders.into_iter().map(item).collect());
        }
        let Some(first) = folder
            .strip_prefix('/')
            .filter(|hex| hex.len() == 2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
        else {
            return missing();
        };
        let mut low = [0; 32];
        low[0] = first;
        let mut high = [0xff; 32];
        high[0] = first;
        let item = |(name, len): (&PackName, &u64)| DirItem {
            name: name.to_hex(),
            lossy: false,
            is_dir: false,
            len: *len,
        };
        Ok(packs.range(PackName(low)..=PackName(high)).map(item).collect())
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        if let Some(name) = parse_pack_path(path) {
            return Ok(self.packs().map_err(to_io)?.get(&name).copied());
        }
        match key(path).and_then(|key| self.remote.head(&key)) {
            Ok(meta) => Ok(Some(meta.len)),
            Err(e) if e.kind == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(to_io(e)),
        }
    }

    fn sync_dir(&self, _dir: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn space(&self) -> io::Result<Space> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a remote does not say how much room it has"))
    }

    fn lock(&self, _path: &str) -> io::Result<Option<Box<dyn DiskLock>>> {
        Err(read_only())
    }

    fn read_file(&self, path: &str, max: u64) -> io::Result<Vec<u8>> {
        let known = {
            let chain = lock(&self.chain);
            if let Some(bytes) = chain.kept.get(path).filter(|bytes| bytes.len() as u64 <= max) {
                return Ok(bytes.clone());
            }
            chain.lens.get(path).copied()
        };
        let len = match known {
            Some(len) => len,
            None => key(path).and_then(|key| self.remote.head(&key)).map_err(to_io)?.len,
        };
        if len > max {
            return Err(to_io(hostile(&format!("{path} has {len} bytes, more than the {max} expected"))));
        }
        self.get_file(path, len).map_err(to_io)
    }
}
