//! Snapshots as a read-only tree: below `.snapshots` of a mounted vault, or as a mount of its own.
//!
//! Nothing is loaded into the database. An inode is a place, a directory's inode and a name in it, found again in the
//! snapshot's tree objects when it is asked for; recently used entries are kept. Inode numbers below `.snapshots` have
//! bit 63 set, then the snapshot's sequence, then the number that the inode has in its snapshot.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::SNAPSHOTS_DIR;
use super::dir::Listing;
use super::error::FsResult;
use super::types::{Attr, DirEnt, Fh, Whence};
use crate::env::Time;
use crate::format::tree::{Content, Entry, FileType};
use crate::snapshot::chain::{Chain, open_sealed, present_packs};
use crate::snapshot::tree::TreeReader;
use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::packs::ChunkSource;
use crate::store::records::ROOT_INO;
use rustix::io::Errno;

/// Set in the number of every inode that is not in the working tree, and in every handle of one.
pub const VIRTUAL: u64 = 1 << 63;

/// The directory of all snapshots.
pub const SNAPSHOTS_INO: u64 = VIRTUAL | 1;

const SEQ_SHIFT: u32 = 40;
const INO_MAX: u64 = (1 << SEQ_SHIFT) - 1;
const SEQ_MAX: u64 = (1 << (63 - SEQ_SHIFT)) - 1;

/// Entries kept ready.
const CACHE_ENTRIES: usize = 8192;

/// Entries fetched at a time for a listing.
const LIST_ENTRIES: usize = 256;

/// How long the list of snapshots is believed while the folder's names stay the same: packs may arrive meanwhile.
const LIST_AGE_MAX: Duration = Duration::from_secs(60);

/// A read-only view of one snapshot, or of all of a vault.
pub struct Browse {
    reader: TreeReader<'static>,
    roots: Roots,
    state: Mutex<State>,
}

enum Roots {
    /// The mount shows one snapshot; its root is the mount's.
    One(Arc<Entry>),
    /// `.snapshots` of a mounted vault.
    All(Arc<Engine>),
}

#[derive(Default)]
struct State {
    places: HashMap<u64, Place>,
    entries: HashMap<u64, Arc<Entry>>,
    /// Numbers for inodes whose own do not fit, by snapshot and number.
    numbers: HashMap<(u64, u64), u64>,
    listings: HashMap<u64, Arc<OpenDir>>,
    next_fh: u64,
    shown: Option<Shown>,
}

impl State {
    /// Keeps an entry ready, for as long as there is room.
    fn keep(&mut self, ino: u64, entry: &Arc<Entry>) {
        if self.entries.len() >= CACHE_ENTRIES {
            self.entries.clear();
        }
        self.entries.insert(ino, entry.clone());
    }
}

/// Where an inode was found. Every place but those in the top directory is below another one that is there too.
#[derive(Clone)]
struct Place {
    parent: u64,
    seq: u64,
    name: Box<[u8]>,
    /// How often the kernel was told of the inode and has not forgotten it. It forgets some number of times at once, and
    /// another thread may have told it once more a moment before.
    told: u64,
    /// Places with this one as their parent. A file with two names outlives the directory that it was first found in.
    below: u64,
}

struct OpenDir {
    ino: u64,
    listing: Mutex<Listing>,
}

/// The snapshots of a vault as they were last listed.
#[derive(Clone)]
struct Shown {
    files: Vec<String>,
    at: Duration,
    snapshots: Arc<Vec<Snapshot>>,
}

struct Snapshot {
    name: String,
    seq: u64,
    time: Time,
    root: Arc<Entry>,
}

impl std::fmt::Debug for Browse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Browse").finish_non_exhaustive()
    }
}

impl Browse {
    /// Returns the view of one snapshot.
    pub fn one(source: Arc<dyn ChunkSource>, root: Entry) -> Self {
        Self::new(source, Roots::One(Arc::new(root)))
    }

    /// Returns the view of all complete snapshots of a vault.
    pub fn all(engine: Arc<Engine>) -> Self {
        Self::new(engine.packs.clone(), Roots::All(engine))
    }

    fn new(source: Arc<dyn ChunkSource>, roots: Roots) -> Self {
        Self { reader: TreeReader::shared(source), roots, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns all complete snapshots, oldest first. Read again when a file came or went.
    fn snapshots(&self, engine: &Engine) -> FsResult<Arc<Vec<Snapshot>>> {
        let disk = engine.ctx.disk.as_ref();
        let files: Vec<String> = match disk.list("snapshots") {
            Ok(items) => items.into_iter().map(|item| item.name).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(StoreError::io("listing snapshots", error).into()),
        };
        let now = engine.ctx.env.monotonic();
        if let Some(shown) = &self.state().shown
            && shown.files == files
            && now.saturating_sub(shown.at) < LIST_AGE_MAX
        {
            return Ok(shown.snapshots.clone());
        }
        let chain = Chain::of(engine)?;
        let present = present_packs(disk)?;
        let mut snapshots: Vec<Snapshot> = Vec::new();
        for info in chain.snapshots().filter(|info| chain.is_complete(info.seq, &present)) {
            let Some(root) = open_sealed(disk, &engine.ctx.keys, info)?.root else { continue };
            let mut name = show_time(info.time);
            if snapshots.iter().any(|other| other.name == name) {
                name = format!("{name}_{}", info.seq);
            }
            snapshots.push(Snapshot { name, seq: info.seq, time: info.time, root: Arc::new(root.entry) });
        }
        let snapshots = Arc::new(snapshots);
        self.state().shown = Some(Shown { files, at: now, snapshots: snapshots.clone() });
        Ok(snapshots)
    }

    /// Returns the attributes of the directory of all snapshots.
    pub fn snapshots_attr(&self) -> FsResult<Attr> {
        let Roots::All(engine) = &self.roots else { return Err(Errno::NOENT.into()) };
        let snapshots = self.snapshots(engine)?;
        let time = snapshots.last().map_or(Time::default(), |last| last.time);
        let nlink = u32::try_from(snapshots.len()).unwrap_or(u32::MAX).saturating_add(2);
        Ok(Attr {
            ino: SNAPSHOTS_INO,
            kind: FileType::Dir,
            mode: 0o555,
            uid: 0,
            gid: 0,
            nlink,
            rdev: (0, 0),
            size: 0,
            blocks512: 0,
            atime: time,
            mtime: time,
            ctime: time,
        })
    }

    /// Returns the number of an inode of a snapshot.
    fn number(&self, seq: u64, entry: &Entry) -> u64 {
        match &self.roots {
            Roots::One(_) => entry.ino,
            Roots::All(_) if seq <= SEQ_MAX && entry.ino <= INO_MAX => VIRTUAL | seq << SEQ_SHIFT | entry.ino,
            Roots::All(_) => {
                let mut state = self.state();
                // Sequence 0 is no snapshot's: its numbers are free, from 2 on.
                let next = VIRTUAL | (2 + state.numbers.len() as u64);
                *state.numbers.entry((seq, entry.ino)).or_insert(next)
            }
        }
    }

    /// The top directory is always there, and never forgotten.
    fn is_top(&self, ino: u64) -> bool {
        ino == match &self.roots {
            Roots::One(_) => ROOT_INO,
            Roots::All(_) => SNAPSHOTS_INO,
        }
    }

    /// Remembers where an inode is until it is forgotten as often as this was called: for those that the kernel is told of, and
    /// only for those, since nobody forgets any other. Called before it is told. ENOENT when it has forgotten the directory.
    fn remember(&self, ino: u64, parent: u64, seq: u64, entry: &Arc<Entry>) -> FsResult<()> {
        let mut state = self.state();
        if let Some(place) = state.places.get_mut(&ino) {
            place.told += 1;
        } else {
            if !self.is_top(parent) {
                state.places.get_mut(&parent).ok_or(Errno::NOENT)?.below += 1;
            }
            let name = entry.name.as_slice().into();
            state.places.insert(ino, Place { parent, seq, name, told: 1, below: 0 });
        }
        state.keep(ino, entry);
        Ok(())
    }

    /// Answers `.` and `..`, of which the kernel is told as of any other name.
    fn lookup_known(&self, ino: u64) -> FsResult<Attr> {
        let attr = self.getattr(ino)?;
        if !self.is_top(ino) {
            self.state().places.get_mut(&ino).ok_or(Errno::NOENT)?.told += 1;
        }
        Ok(attr)
    }

    /// Returns how many inodes are remembered.
    pub fn known_inodes(&self) -> u64 {
        self.state().places.len() as u64
    }

    fn place(&self, ino: u64) -> FsResult<Place> {
        self.state().places.get(&ino).cloned().ok_or_else(|| Errno::NOENT.into())
    }

    fn entry(&self, ino: u64) -> FsResult<Arc<Entry>> {
        if let Roots::One(root) = &self.roots
            && ino == ROOT_INO
        {
            return Ok(root.clone());
        }
        let known = self.state().entries.get(&ino).cloned();
        if let Some(entry) = known {
            return Ok(entry);
        }
        let place = self.place(ino)?;
        let entry = if place.parent == SNAPSHOTS_INO {
            let Roots::All(engine) = &self.roots else { return Err(Errno::NOENT.into()) };
            let snapshots = self.snapshots(engine)?;
            snapshots.iter().find(|s| s.seq == place.seq).map(|s| s.root.clone()).ok_or(Errno::NOENT)?
        } else {
            let parent = self.entry(place.parent)?;
            let found = self.reader.lookup(dir_of(&parent)?, &place.name)?;
            Arc::new(found.ok_or(Errno::NOENT)?)
        };
        self.state().keep(ino, &entry);
        Ok(entry)
    }

    /// Returns what a name stands for. The inode is remembered until [`Browse::forget`] was told of each such answer.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> FsResult<Attr> {
        if name == b"." {
            return self.lookup_known(parent);
        }
        if name == b".." {
            return self.lookup_known(self.parent_of(parent));
        }
        if parent == SNAPSHOTS_INO {
            let Roots::All(engine) = &self.roots else { return Err(Errno::NOENT.into()) };
            let snapshots = self.snapshots(engine)?;
            let found = snapshots.iter().find(|s| s.name.as_bytes() == name).ok_or(Errno::NOENT)?;
            let ino = self.number(found.seq, &found.root);
            self.remember(ino, parent, found.seq, &found.root)?;
            return Ok(attr_of(ino, &found.root));
        }
        let dir = self.entry(parent)?;
        let found = Arc::new(self.reader.lookup(dir_of(&dir)?, name)?.ok_or(Errno::NOENT)?);
        let seq = self.seq_of(parent);
        let ino = self.number(seq, &found);
        self.remember(ino, parent, seq, &found)?;
        Ok(attr_of(ino, &found))
    }

    fn seq_of(&self, ino: u64) -> u64 {
        self.state().places.get(&ino).map_or(0, |place| place.seq)
    }

    fn parent_of(&self, ino: u64) -> u64 {
        match &self.roots {
            Roots::All(_) if ino == SNAPSHOTS_INO => ROOT_INO,
            _ => self.state().places.get(&ino).map_or(ROOT_INO, |place| place.parent),
        }
    }

    /// Returns an inode's attributes.
    pub fn getattr(&self, ino: u64) -> FsResult<Attr> {
        if ino == SNAPSHOTS_INO {
            return self.snapshots_attr();
        }
        Ok(attr_of(ino, &*self.entry(ino)?))
    }

    /// Returns what a symbolic link says.
    pub fn readlink(&self, ino: u64) -> FsResult<Vec<u8>> {
        match &self.entry(ino)?.content {
            Content::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Opens a file. There is nothing to remember.
    pub fn open(&self, ino: u64) -> FsResult<Fh> {
        if ino == SNAPSHOTS_INO {
            return Err(Errno::ISDIR.into());
        }
        match self.entry(ino)?.kind {
            FileType::File => Ok(Fh(VIRTUAL)),
            FileType::Dir => Err(Errno::ISDIR.into()),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Reads up to `len` bytes at `off`; fewer only at the end of the file. EIO for what is damaged or missing.
    pub fn read(&self, ino: u64, off: u64, len: usize) -> FsResult<Vec<u8>> {
        let entry = self.entry(ino)?;
        if entry.kind != FileType::File {
            return Err(Errno::INVAL.into());
        }
        let len = entry.size.saturating_sub(off).min(len as u64);
        let mut buf = vec![0; len as usize];
        let read = self.reader.read(&entry.content, entry.size, off, &mut buf)?;
        buf.truncate(read);
        Ok(buf)
    }

    /// Returns the first offset from `off` on that is data, or a hole. ENXIO past the end.
    pub fn lseek(&self, ino: u64, off: u64, whence: Whence) -> FsResult<u64> {
        let entry = self.entry(ino)?;
        if off >= entry.size {
            return Err(Errno::NXIO.into());
        }
        if let Content::Inline(bytes) = &entry.content {
            let data_end = bytes.len() as u64;
            return match whence {
                Whence::Data if off < data_end => Ok(off),
                Whence::Data => Err(Errno::NXIO.into()),
                Whence::Hole => Ok(off.max(data_end)),
            };
        }
        let mut at = off;
        let mut extents = self.reader.extents(&entry.content, entry.size, off)?;
        while let Some(extent) = extents.next_extent()? {
            match whence {
                Whence::Data => return Ok(extent.offset.max(off)),
                Whence::Hole if extent.offset > at => return Ok(at),
                Whence::Hole => at = at.max(extent.end()),
            }
        }
        match whence {
            Whence::Data => Err(Errno::NXIO.into()),
            Whence::Hole => Ok(at.min(entry.size)),
        }
    }

    /// Returns an attribute's value. ENODATA if there is none.
    pub fn getxattr(&self, ino: u64, name: &[u8]) -> FsResult<Vec<u8>> {
        if ino == SNAPSHOTS_INO {
            return Err(Errno::NODATA.into());
        }
        let entry = self.entry(ino)?;
        let found = entry.xattrs.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.clone()).ok_or_else(|| Errno::NODATA.into())
    }

    /// Returns the names of all attributes, each ended by a NUL.
    pub fn listxattr(&self, ino: u64) -> FsResult<Vec<u8>> {
        let mut names = Vec::new();
        if ino != SNAPSHOTS_INO {
            for (name, _) in &self.entry(ino)?.xattrs {
                names.extend_from_slice(name);
                names.push(0);
            }
        }
        Ok(names)
    }

    /// Opens a directory for listing.
    pub fn opendir(&self, ino: u64) -> FsResult<Fh> {
        if ino != SNAPSHOTS_INO {
            dir_of(&*self.entry(ino)?)?;
        }
        let mut state = self.state();
        state.next_fh += 1;
        let fh = VIRTUAL | state.next_fh;
        state.listings.insert(fh, Arc::new(OpenDir { ino, listing: Mutex::default() }));
        Ok(Fh(fh))
    }

    /// Lists a directory from after the entry that `cookie` came with until `each` returns false. With `plus`, every inode that
    /// `each` took is remembered as by [`Browse::lookup`], `.` and `..` excepted; on an error none is.
    pub fn readdir(
        &self,
        fh: Fh,
        cookie: u64,
        each: &mut dyn FnMut(&DirEnt<'_>) -> bool,
        plus: bool,
    ) -> FsResult<()> {
        let open = self.state().listings.get(&fh.0).cloned().ok_or(Errno::BADF)?;
        let ino = open.ino;
        let mut listing = open.listing.lock().unwrap_or_else(PoisonError::into_inner);
        if !super::dir::list_dots(ino, self.parent_of(ino), cookie, each) {
            return Ok(());
        }
        listing.resume(cookie)?;
        if ino == SNAPSHOTS_INO {
            let Roots::All(engine) = &self.roots else { return Err(Errno::NOENT.into()) };
            let snapshots = self.snapshots(engine)?;
            // A listing goes on after the last name given, so it must be in the order of names, which is not that of time: `_9` is
            // after `_10`, and clocks are set back.
            let mut by_name: Vec<&Snapshot> = snapshots.iter().collect();
            by_name.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            for snapshot in by_name {
                let name = snapshot.name.as_bytes();
                if listing.last().is_none_or(|last| last < name)
                    && !self.give(&mut listing, ino, snapshot.seq, name, &snapshot.root, each, plus)?
                {
                    break;
                }
            }
            return Ok(());
        }
        let (dir, seq) = (self.entry(ino)?, self.seq_of(ino));
        let mut given = false;
        loop {
            let page = match self.reader.children(dir_of(&dir)?, listing.last(), LIST_ENTRIES) {
                // What was given is answered first. The kernel goes on from there, and gets the error then.
                Err(error) if given => {
                    tracing::debug!(ino, %error, "a listing ends early");
                    return Ok(());
                }
                page => page?,
            };
            given = true;
            let full = page.len() == LIST_ENTRIES;
            for entry in page {
                let entry = Arc::new(entry);
                if !self.give(&mut listing, ino, seq, &entry.name, &entry, each, plus)? {
                    return Ok(());
                }
            }
            if !full {
                return Ok(());
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one step of readdir, called from its two loops")]
    fn give(
        &self,
        listing: &mut Listing,
        parent: u64,
        seq: u64,
        name: &[u8],
        entry: &Arc<Entry>,
        each: &mut dyn FnMut(&DirEnt<'_>) -> bool,
        plus: bool,
    ) -> FsResult<bool> {
        let ino = self.number(seq, entry);
        let attr = plus.then(|| attr_of(ino, entry));
        if plus {
            self.remember(ino, parent, seq, entry)?;
        }
        let more = each(&DirEnt { ino, kind: entry.kind, name, cookie: listing.next_cookie(), attr });
        if more {
            listing.push(name);
        } else if plus {
            // It did not fit into the answer: the kernel will ask for it again, or never.
            self.forget(ino, 1);
        }
        Ok(more)
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: Fh) -> FsResult<()> {
        self.state().listings.remove(&fh.0).map(drop).ok_or_else(|| Errno::BADF.into())
    }

    /// The kernel forgets `n` answers that named an inode. When none is left, neither to it nor to one below it, so is its place.
    pub fn forget(&self, ino: u64, n: u64) {
        let mut state = self.state();
        let Some(place) = state.places.get_mut(&ino) else { return };
        place.told = place.told.saturating_sub(n);
        let mut at = ino;
        while let Some(place) = state.places.get(&at)
            && place.told == 0
            && place.below == 0
        {
            let parent = place.parent;
            state.places.remove(&at);
            state.entries.remove(&at);
            if let Some(dir) = state.places.get_mut(&parent) {
                dir.below -= 1;
            }
            at = parent;
        }
    }
}

/// Returns whether a name in the root stands for the directory of all snapshots.
pub(super) fn is_snapshots_dir(parent: u64, name: &[u8]) -> bool {
    parent == ROOT_INO && name == SNAPSHOTS_DIR
}

fn dir_of(entry: &Entry) -> FsResult<&crate::format::ids::ChunkId> {
    match &entry.content {
        Content::Dir(id) => Ok(id),
        _ => Err(Errno::NOTDIR.into()),
    }
}

fn attr_of(ino: u64, entry: &Entry) -> Attr {
    let size = match &entry.content {
        Content::Symlink(target) => target.len() as u64,
        _ => entry.size,
    };
    let allocated = match &entry.content {
        Content::Inline(bytes) => bytes.len() as u64,
        Content::Extents(extents) => extents.iter().map(|extent| extent.len).sum(),
        Content::ExtentTree(_) => entry.size,
        _ => 0,
    };
    let rdev = match entry.content {
        Content::Device { major, minor } => (major, minor),
        _ => (0, 0),
    };
    Attr {
        ino,
        kind: entry.kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        nlink: entry.nlink.max(1),
        rdev,
        size,
        blocks512: allocated.div_ceil(512),
        atime: entry.atime,
        mtime: entry.mtime,
        ctime: entry.ctime,
    }
}

/// Returns a snapshot's name, its time in UTC: no character in it that shells, rsync or Windows shares trip over.
fn show_time(time: Time) -> String {
    match jiff::Timestamp::new(time.secs, 0) {
        Ok(stamp) => stamp.strftime("%Y-%m-%d_%H-%M-%S").to_string(),
        Err(_) => format!("at_{}", time.secs),
    }
}
