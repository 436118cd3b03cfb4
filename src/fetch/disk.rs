//! A remote as the directory of a vault that can't be written to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::cache::{PackCache, Waits};
use super::headers::{RemoteHeader, remote_header};
use super::reads::{Reads, RemoteFile};
use super::scratch::{Scratch, UNIT};
use super::{CACHE_BYTES_MIN, FetchOptions, remote_cause, to_io};
use crate::disk::{DirItem, Disk, DiskFile, DiskLock, OpenMode, Space};
use crate::env::Env;
use crate::format::chain::{CHAIN_FILE_LEN_MAX, parse_name};
use crate::format::pack::{PACK_HEADER_LEN, PACK_LEN_MAX, TRAILER_LEN, parse_pack_path};
use crate::format::{PackKind, PackName};
use crate::remote::{self, ErrorKind, Key, Remote, RemoteError};
use crate::store::error::StoreError;
use crate::store::header::COPIES;

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
/// The ends of so many packs are fetched before they are looked into ...
const ENDS_AHEAD: usize = 512;
/// ... and stay here until then if they take no more than this part of the cache.
const ENDS_PART: u64 = 8;
/// Whether a remote is still there is waited for this part of the time that bytes are waited for, or at least so long.
const ASK_PART: u32 = 16;
const ASK_LEAST: Duration = Duration::from_secs(10);
/// That it is there is believed for so long where one object after the other is refused.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// What a command keeps of packs in memory before it uses the disk for them.
const MEMORY_BYTES: u64 = 128 << 20;
/// Packs by name, with their lengths.
type Listing = Arc<BTreeMap<PackName, u64>>;

/// See the module.
pub struct RemoteDisk {
    remote: Arc<dyn Remote>,
    reads: Arc<Reads>,
    jobs: usize,
    cache_bytes: u64,
    patience: Duration,
    /// Packs that matter; `None`: all.
    named: Mutex<Option<BTreeSet<PackName>>>,
    listing: Mutex<Option<Listing>>,
    chain: Mutex<ChainFiles>,
    sweep: Mutex<Sweep>,
    env: Arc<dyn Env>,
    /// When the header was last seen there, in the time of `env`.
    there_at: Mutex<Option<Duration>>,
}

/// Packs that are looked into one after the other.
#[derive(Default)]
struct Sweep {
    /// In order of names.
    names: Vec<(PackName, u64)>,
    /// The ends of so many were planned, ...
    planned: usize,
    /// ... and of so many are not wanted any more.
    left: usize,
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
        let cache_bytes = options.cache_bytes.max(CACHE_BYTES_MIN);
        // A mount stays for long, and would hold it for that time.
        let memory = if options.read_ahead { 0 } else { MEMORY_BYTES.min(cache_bytes) };
        let scratch = Scratch::create(&options.cache_dir, Arc::clone(&options.env), memory)?;
        let waits = Waits { jobs: options.jobs, patience: options.patience, env: Arc::clone(&options.env) };
        let cache = PackCache::new(Arc::clone(&remote), scratch, cache_bytes, !options.read_ahead, waits)?;
        Ok(Arc::new(Self {
            remote,
            reads: Arc::new(Reads::new(cache, options.read_ahead)),
            jobs: options.jobs.max(1),
            cache_bytes,
            patience: options.patience,
            named: Mutex::default(),
            listing: Mutex::default(),
            chain: Mutex::default(),
            sweep: Mutex::default(),
            env: Arc::clone(&options.env),
            there_at: Mutex::default(),
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

    /// Whether an error in reading means that nothing more can be read. Where it may be about one object, or about all of
    /// them (a right that was taken away, a bucket that was deleted), the remote is asked for the vault's header.
    #[must_use]
    pub fn is_lost(&self, error: &StoreError) -> bool {
        let StoreError::Io { source, .. } = error else { return false };
        let Some(cause) = remote_cause(source) else { return false };
        match cause.kind {
            // Such an object says nothing of others.
            ErrorKind::Corrupt | ErrorKind::Archived => false,
            kind if kind.is_retryable() => !self.header_is_there(None),
            // These come at once, and of many objects in a row. (A disk that was pulled out has none of its files, either.)
            kind if kind.may_be_one_objects() => !self.header_is_there(Some(ASK_AGAIN)),
            _ => true,
        }
    }

    /// Whether the remote still shows us a header, in a time that is short beside the one that was waited for it already. What
    /// stands in it is not asked for: that it answers is enough. That it had one is believed for so long.
    fn header_is_there(&self, believed: Option<Duration>) -> bool {
        // Held, so that one asks for all.
        let mut there_at = lock(&self.there_at);
        let now = self.env.monotonic();
        if let (Some(at), Some(believed)) = (*there_at, believed)
            && now.saturating_sub(at) < believed
        {
            return true;
        }
        let (remote, (sender, receiver)) = (Arc::clone(&self.remote), std::sync::mpsc::channel());
        let asked = std::thread::Builder::new().name("sr-ask".into()).spawn(move || {
            // One true copy is enough.
            let there = COPIES.into_iter().any(|path| {
                let answer = key(path).and_then(|key| remote.head(&key));
                answer.inspect_err(|error| tracing::debug!(path, %error, "asking for the header")).is_ok()
            });
            if sender.send(there).is_err() {
                tracing::debug!("the remote answered when nobody waited any more");
            }
        });
        let patience = (self.patience / ASK_PART).max(self.patience.min(ASK_LEAST));
        let there = asked.is_ok() && receiver.recv_timeout(patience).unwrap_or(false);
        *there_at = there.then(|| self.env.monotonic());
        there
    }

    /// Why its objects can't be read by version, if that was tried.
    #[must_use]
    pub fn unversioned(&self) -> Option<String> {
        self.remote.findings().unversioned
    }

    /// Says which packs matter: those that the chain names. Others are passed over when packs are listed, so that a
    /// hostile listing can't fill memory.
    pub fn only_packs(&self, named: BTreeSet<PackName>) {
        self.set_named(named, true);
    }

    /// The same by a chain that need not be the true one: not if that was said already.
    pub(super) fn only_packs_at_first(&self, named: BTreeSet<PackName>) {
        self.set_named(named, false);
    }

    fn set_named(&self, named: BTreeSet<PackName>, is_true: bool) {
        // In the order in which they are locked elsewhere.
        let mut listing = lock(&self.listing);
        let mut before = lock(&self.named);
        if before.as_ref() != Some(&named) && (is_true || before.is_none()) {
            *before = Some(named);
            *listing = None;
        }
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
        let present = self.present(names.iter())?;
        // Of so many packs the ends stay here until they are looked into. Those of a very large vault do not all have room.
        let stay = usize::try_from(self.cache_bytes / ENDS_PART / (2 * UNIT)).unwrap_or(usize::MAX);
        let batches: Vec<&[(PackName, u64)]> = present.chunks(ENDS_AHEAD).collect();
        let stays = |batch: usize| (batch + 1) * ENDS_AHEAD <= stay.max(ENDS_AHEAD);
        let plan = |batch: usize| {
            for (name, len) in batches.get(batch).into_iter().copied().flatten() {
                ends(*len, trailers && stays(batch)).for_each(|range| self.reads.cache().plan(name, range));
            }
        };
        let (mut kinds, mut refused) = (BTreeMap::new(), None);
        plan(0);
        for (n, batch) in batches.iter().enumerate() {
            plan(n + 1);
            for (name, len) in *batch {
                match self.kind(name, *len) {
                    Ok(Some(kind)) => {
                        kinds.insert(*name, kind);
                        self.reads.is_of(name, kind);
                    }
                    Ok(None) => {}
                    // Said again, and named, when something of it is wanted.
                    Err(e) if remote_cause(&e).is_some_and(|cause| cause.kind.may_be_one_objects()) => {
                        if e.kind() == io::ErrorKind::PermissionDenied {
                            refused.get_or_insert(e);
                        }
                    }
                    Err(e) => return Err(e),
                }
                if !stays(n) {
                    self.reads.cache().unplan(name, &(0..*len));
                }
            }
        }
        match refused {
            // Not one of them can be read: archived, or these credentials may not.
            Some(error) if kinds.is_empty() => Err(error),
            _ => Ok(kinds),
        }
    }

    /// The kind of a pack; `None`: it makes no sense.
    fn kind(&self, name: &PackName, len: u64) -> io::Result<Option<PackKind>> {
        // FORMAT section 5: the kind stands behind the magic.
        let mut start = [0; 9];
        let header = ends(len, false).next().unwrap_or(0..0);
        if header.end < start.len() as u64 {
            return Ok(None);
        }
        self.reads.cache().read(name, &mut start, 0, &header)?;
        Ok(PackKind::from_u8(start[8]).ok())
    }

    /// Those of some packs that are listed, with their lengths.
    fn present<'a>(&self, names: impl Iterator<Item = &'a PackName>) -> io::Result<Vec<(PackName, u64)>> {
        let packs = self.packs().map_err(to_io)?;
        let fits = |(_, len): &(PackName, u64)| *len <= PACK_LEN_MAX;
        Ok(names.filter_map(|name| Some((*name, *packs.get(name)?))).filter(fits).collect())
    }

    /// Says that packs will be looked into, in the order of their names: their ends are fetched some way ahead.
    pub(super) fn begin_sweep<'a>(&self, names: impl Iterator<Item = &'a PackName>) -> io::Result<()> {
        let names = self.present(names)?;
        *lock(&self.sweep) = Sweep { names, planned: 0, left: 0 };
        self.sweep_to(0);
        Ok(())
    }

    /// They were.
    pub(super) fn end_sweep(&self) {
        let sweep = std::mem::take(&mut *lock(&self.sweep));
        for (name, len) in &sweep.names[sweep.left..sweep.planned] {
            ends(*len, true).for_each(|range| self.reads.cache().unplan(name, &range));
        }
    }

    /// Somebody looks into the pack at this place.
    fn sweep_to(&self, at: usize) {
        let mut sweep = lock(&self.sweep);
        let Sweep { names, planned, left } = &mut *sweep;
        while *planned < names.len().min(at + ENDS_AHEAD) {
            let (name, len) = names[*planned];
            ends(len, true).for_each(|range| self.reads.cache().plan(&name, range));
            *planned += 1;
        }
        while *left < at.saturating_sub(ENDS_AHEAD).min(*planned) {
            let (name, len) = names[*left];
            ends(len, true).for_each(|range| self.reads.cache().unplan(&name, &range));
            *left += 1;
        }
    }

    /// From now on trees are wanted, not only footers; and `data`, too.
    pub(super) fn widen(&self, data: bool) {
        self.reads.widen(data);
    }

    /// Whether the ends of so many packs are planned at once.
    pub(super) fn is_one_sweep(names: usize) -> bool {
        names <= ENDS_AHEAD
    }

    /// Begins to fetch a range of a pack.
    pub(super) fn plan(&self, name: &PackName, range: Range<u64>) {
        self.reads.cache().plan(name, range);
    }

    /// Takes plans back.
    pub(super) fn unplan(&self, ranges: &[(PackName, Range<u64>)]) {
        ranges.iter().for_each(|(name, range)| self.reads.cache().unplan(name, range));
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
                            // Asked for again by who reads it, and then told.
                            Err(error) => {
                                tracing::debug!(path, %error, "fetching");
                                if !error.kind.may_be_one_objects() {
                                    return;
                                }
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
        // FORMAT PACK-1: before anything is reckoned with it.
        if len > PACK_LEN_MAX {
            let text = format!("{path} has {len} bytes, more than any pack");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let place = lock(&self.sweep).names.binary_search_by_key(&name, |(name, _)| *name);
        if let Ok(at) = place {
            self.sweep_to(at);
        }
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
        let (known, others) = {
            let chain = lock(&self.chain);
            if let Some(bytes) = chain.kept.get(path).filter(|bytes| bytes.len() as u64 <= max) {
                return Ok(bytes.clone());
            }
            (chain.lens.get(path).copied(), !chain.kept.is_empty())
        };
        let len = match known {
            Some(len) => len,
            None => key(path).and_then(|key| self.remote.head(&key)).map_err(to_io)?.len,
        };
        if len > max {
            return Err(to_io(hostile(&format!("{path} has {len} bytes, more than the {max} expected"))));
        }
        self.get_file(path, len).map_err(|error| match error.kind.may_be_one_objects() {
            // A snapshot file that was listed and can't be read is a bad one, if others can be: all else is still of use.
            true if known.is_some() && others => io::Error::new(io::ErrorKind::InvalidData, error),
            _ => to_io(error),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Condvar;

    use super::*;
    use crate::remote::{Checksum, Features, Listed, Meta, Page, Put, Source};

    const LEN: u64 = 100_000;

    /// A remote with many packs of trees, of which only the kind can be told; it answers while it is open.
    #[derive(Debug, Default)]
    struct Many {
        packs: u64,
        requests: Mutex<BTreeMap<String, u64>>,
        open: Mutex<bool>,
        opened: Condvar,
        /// What is wrong with the pack of this number, if anything.
        refuses: Option<fn(u64) -> ErrorKind>,
    }

    impl Remote for Many {
        fn url(&self) -> String {
            "many".into()
        }

        fn put_if_absent(&self, _: &Key, _: &Arc<dyn Source>, _: &Checksum) -> remote::Result<Put> {
            panic!("nothing is written")
        }

        fn replace(&self, _: &Key, _: &Checksum, _: &Arc<dyn Source>, _: &Checksum) -> remote::Result<()> {
            panic!("nothing is written")
        }

        fn get(&self, key: &Key, range: Range<u64>) -> remote::Result<Vec<u8>> {
            let mut open = lock(&self.open);
            while !*open {
                open = self.opened.wait(open).unwrap();
            }
            drop(open);
            if let (Some(refuses), Some(PackName(name))) = (self.refuses, parse_pack_path(key.as_str())) {
                let n = u64::from_be_bytes(name[..8].try_into().unwrap());
                return Err(RemoteError::new(refuses(n), format!("{key}: not for you")));
            }
            *lock(&self.requests).entry(format!("{key} {}", range.start)).or_default() += 1;
            Ok(range.map(|at| if at == 8 { 2 } else { 0 }).collect())
        }

        fn head(&self, _: &Key) -> remote::Result<Meta> {
            panic!("lengths are known")
        }

        fn list_page(&self, _: &str, after: &str) -> remote::Result<Page> {
            let names = (0..self.packs).map(|n| crate::format::pack::pack_path(&name(n)));
            let items = names.filter(|name| name.as_str() > after).map(|name| Listed { name, len: LEN });
            Ok(Page { items: items.collect(), more: false })
        }

        fn delete(&self, _: &Key) -> remote::Result<()> {
            panic!("nothing is deleted")
        }

        fn features(&self) -> remote::Result<Features> {
            panic!("nobody asks")
        }
    }

    /// In ascending order.
    fn name(n: u64) -> PackName {
        let mut name = [7; 32];
        name[..8].copy_from_slice(&n.to_be_bytes());
        PackName(name)
    }

    /// Of packs that are gone, damaged and archived, that some are archived is said: there is something to do about it.
    #[test]
    fn an_archive_is_told_whatever_else_is_wrong() {
        let others: [fn(u64) -> ErrorKind; 3] = [
            |n| if n == 2 { ErrorKind::Archived } else { ErrorKind::NotFound },
            |n| if n == 2 { ErrorKind::Archived } else { ErrorKind::Corrupt },
            |n| if n == 0 { ErrorKind::Archived } else { ErrorKind::NotFound },
        ];
        for refuses in others {
            let open = Mutex::new(true);
            let many = Arc::new(Many { packs: 4, open, refuses: Some(refuses), ..Many::default() });
            let dir = tempfile::tempdir().unwrap();
            let options = FetchOptions::new(dir.path().join("cache"));
            let disk = RemoteDisk::new(many as Arc<dyn Remote>, &options).unwrap();
            let error = disk.kinds(&(0..4).map(name).collect(), false).unwrap_err();
            assert_eq!(remote_cause(&error).unwrap().kind, ErrorKind::Archived, "{error}");
        }
    }

    /// What a chain that may be forged names counts only until the true one is known.
    #[test]
    fn what_was_asked_early_does_not_replace_what_is_true() {
        let many = Arc::new(Many { packs: 5, ..Many::default() });
        let dir = tempfile::tempdir().unwrap();
        let options = FetchOptions::new(dir.path().join("cache"));
        let disk = RemoteDisk::new(Arc::clone(&many) as Arc<dyn Remote>, &options).unwrap();
        let listed = || disk.packs().unwrap().keys().copied().collect::<Vec<_>>();
        disk.only_packs_at_first([name(0)].into());
        assert_eq!(listed(), [name(0)]);
        disk.only_packs([name(1), name(2)].into());
        assert_eq!(listed(), [name(1), name(2)]);
        disk.only_packs_at_first([name(3)].into());
        assert_eq!(listed(), [name(1), name(2)]);
    }

    /// However many packs there are: no more than some are planned at a time, none is asked for twice, and nothing stays
    /// pinned.
    #[test]
    fn the_ends_of_many_packs_are_planned_little_by_little() {
        let many = Arc::new(Many { packs: 3000, ..Many::default() });
        let dir = tempfile::tempdir().unwrap();
        let options = FetchOptions { cache_bytes: 1, ..FetchOptions::new(dir.path().join("cache")) };
        let disk = RemoteDisk::new(Arc::clone(&many) as Arc<dyn Remote>, &options).unwrap();
        let names: BTreeSet<PackName> = (0..many.packs).map(name).collect();
        std::thread::scope(|scope| {
            let kinds = scope.spawn(|| disk.kinds(&names, true).unwrap());
            // All that is planned before anything has come.
            let mut planned = 0;
            while planned < 2 * ENDS_AHEAD {
                planned = planned.max(disk.reads.cache().plans().0);
                std::thread::yield_now();
            }
            assert!(disk.reads.cache().plans().0 <= 4 * ENDS_AHEAD);
            *lock(&many.open) = true;
            many.opened.notify_all();
            assert_eq!(kinds.join().unwrap().len(), names.len());
        });
        disk.begin_sweep(names.iter()).unwrap();
        for (at, name) in names.iter().enumerate() {
            let file = disk.open(&crate::format::pack::pack_path(name), OpenMode::Read).unwrap();
            for range in ends(LEN, true) {
                let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
                file.read_exact_at(&mut bytes, range.start).unwrap();
            }
            assert!(disk.reads.cache().plans().0 <= 2 * ENDS_AHEAD, "at {at}");
        }
        disk.end_sweep();
        assert_eq!(disk.reads.cache().plans(), (0, 0), "planned, pinned");
        let requests = lock(&many.requests);
        assert_eq!(requests.len() as u64, 2 * many.packs);
        assert_eq!(requests.values().copied().max(), Some(1), "each once, as there is room for all");
    }
}
