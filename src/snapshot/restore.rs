//! Writes a tree, or a part of one, into a directory.
//!
//! One thread walks the tree and makes directories, links and special files; a few write file contents. Every
//! chunk is read whole and proved by its id (FORMAT PACK-5). A file whose content can't be read completely is
//! not left behind: half a file that looks whole is worse than none. Everything that failed is in the report,
//! by path.
//!
//! Hostile names and hostile neighbours: everything is done relative to an open directory and no symbolic
//! link is ever followed, so nothing is written outside of the destination even when a link was planted in
//! it.
//!
//! Order of attributes: owner, then extended attributes and ACLs (a change of owner clears capabilities),
//! then mode (it also clears set-id bits), then times. Directories get theirs when everything in them is
//! done. Set-id bits are left out where the owner could not be restored.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::format::tree::check_name;
use crate::format::{ChunkId, Content, Entry, FileType};
use crate::store::error::{Result, StoreError};
use crate::store::packs::ChunkSource;

use super::os::{self, Place};
use super::restore_dir::{DirState, apply_attributes, open_up, release};
use super::show;
use super::tree::{DEPTH_MAX, DirIter, TreeReader};

/// Errors that a report keeps in full; more are counted.
const ERRORS_MAX: usize = 10_000;
/// Files that wait for a worker.
const QUEUE: usize = 64;

/// What to do where something stands already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// Leave it and report an error. Existing directories are gone into, and keep their attributes.
    #[default]
    Refuse,
    /// Replace it, unless it is a directory. Existing directories get the snapshot's attributes.
    Replace,
}

/// How to restore.
#[derive(Clone, Debug)]
pub struct RestoreOpts {
    /// Write nothing; report what would be done.
    pub dry_run: bool,
    /// What to do where something stands already.
    pub overwrite: Overwrite,
    /// Restore owner and group (always by number: a snapshot holds no names).
    pub owners: bool,
    /// Threads that write file contents.
    pub workers: usize,
    /// When to stop.
    pub give_up: GiveUp,
}

impl Default for RestoreOpts {
    fn default() -> Self {
        RestoreOpts {
            dry_run: false,
            overwrite: Overwrite::Refuse,
            owners: true,
            workers: 3,
            give_up: GiveUp::default(),
        }
    }
}

/// Judges an error in reading: whether everything that comes would fail as well. By default nothing does: a damaged pack
/// costs only what is in it.
#[derive(Clone, Default)]
pub struct GiveUp(Option<Arc<Judge>>);

type Judge = dyn Fn(&StoreError) -> bool + Send + Sync;

impl GiveUp {
    /// Stops at the first error for which `judge` says so.
    pub fn when(judge: impl Fn(&StoreError) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(judge)))
    }

    fn at(&self, error: &StoreError) -> bool {
        self.0.as_ref().is_some_and(|judge| judge(error))
    }
}

impl std::fmt::Debug for GiveUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("GiveUp").field(&self.0.is_some()).finish()
    }
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries that are done.
    pub entries: u64,
    /// Bytes of files that are done, holes included.
    pub bytes: u64,
}

/// Something that was not restored.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Failure {
    /// Below the destination, for people.
    pub path: String,
    /// Why.
    pub what: String,
}

/// What a restore did.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RestoreReport {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Symbolic links, fifos, sockets, devices.
    pub others: u64,
    /// Further names of files, made as hard links.
    pub links: u64,
    /// Bytes of files, holes included; a file with several names counts at each.
    pub bytes: u64,
    /// What was not restored.
    pub errors: Vec<Failure>,
    /// Errors beyond those that are listed.
    pub errors_omitted: u64,
    /// Attributes that this user or this filesystem could not take, each kind once with the number of
    /// entries.
    pub warnings: Vec<String>,
    /// Nothing was written.
    pub dry_run: bool,
    /// Why it was given up, if it was: what is not counted here was not tried.
    #[serde(skip)]
    pub stopped: Option<Arc<StoreError>>,
}

impl RestoreReport {
    /// Returns whether every entry was restored. Warnings about attributes don't count.
    pub fn is_complete(&self) -> bool {
        self.errors.is_empty() && self.stopped.is_none()
    }
}

/// Restores what is below `entry` into the directory `dest`, which is made if it is missing. An entry that is
/// not a directory becomes one entry of `dest`, under its own name.
///
/// # Errors
/// Only when `dest` can't be used. Everything else is in the report.
pub fn restore(
    source: &dyn ChunkSource,
    entry: &Entry,
    dest: &Path,
    opts: &RestoreOpts,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<RestoreReport> {
    os::raise_open_files_limit();
    let job = Job::new(source, opts, progress);
    if opts.dry_run {
        job.rehearse(entry, dest);
    } else {
        let root = job.open_destination(entry, dest)?;
        job.run(entry, &root);
        let synced = rustix::fs::syncfs(&root.fd);
        release(&job, root);
        if let Err(e) = synced {
            job.fail(b"", &format!("syncing the destination: {e}"));
        }
    }
    Ok(job.into_report())
}

/// What is said of an entry whose place is taken.
pub const EXISTS: &str = "something of that name is there already";

/// An error as the report tells it.
fn why(error: &StoreError) -> String {
    match error {
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => EXISTS.into(),
        other => other.to_string(),
    }
}

/// A file for the workers.
struct FileJob {
    dir: Arc<DirState>,
    entry: Entry,
}

/// The first name of a file with several.
enum LinkState {
    /// Its content is being written.
    Busy,
    /// It stands at this path below the destination; so many more names may come.
    Done(Vec<u8>, u32),
    Failed,
}

/// One run of a restore; shared by its threads.
pub(super) struct Job<'a> {
    pub(super) opts: &'a RestoreOpts,
    pub(super) is_root: bool,
    reader: TreeReader<'a>,
    progress: &'a (dyn Fn(Progress) + Sync),
    report: Mutex<RestoreReport>,
    warnings: Mutex<BTreeMap<String, u64>>,
    entries: AtomicU64,
    bytes: AtomicU64,
    links: Mutex<HashMap<u64, LinkState>>,
    link_done: Condvar,
    stopped: OnceLock<Arc<StoreError>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Reports and counters are valid after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Job<'a> {
    fn new(
        source: &'a dyn ChunkSource,
        opts: &'a RestoreOpts,
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Self {
        Job {
            opts,
            is_root: rustix::process::geteuid().is_root(),
            reader: TreeReader::new(source),
            progress,
            report: Mutex::new(RestoreReport { dry_run: opts.dry_run, ..RestoreReport::default() }),
            warnings: Mutex::default(),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            links: Mutex::default(),
            link_done: Condvar::new(),
            stopped: OnceLock::new(),
        }
    }

    fn into_report(self) -> RestoreReport {
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        let warnings = self.warnings.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.warnings = warnings.into_iter().map(|(what, n)| format!("{what} ({n} entries)")).collect();
        report.bytes = self.bytes.into_inner();
        report.stopped = self.stopped.into_inner();
        report.errors.sort_by(|a, b| a.path.cmp(&b.path));
        report
    }

    pub(super) fn fail(&self, path: &[u8], what: &str) {
        let mut report = lock(&self.report);
        if report.errors.len() < ERRORS_MAX {
            let path = if path.is_empty() { ".".to_string() } else { show(path) };
            report.errors.push(Failure { path, what: what.to_string() });
        } else {
            report.errors_omitted += 1;
        }
    }

    /// An entry could not be read or written; perhaps none will be from now on.
    fn failed(&self, path: &[u8], error: StoreError) {
        if self.stopped.get().is_some() {
            return;
        }
        match self.opts.give_up.at(&error) {
            // Another thread may have been first.
            true => drop(self.stopped.set(Arc::new(error))),
            false => self.fail(path, &why(&error)),
        }
    }

    /// Remembers something about attributes that many entries are likely to share.
    pub(super) fn warn(&self, what: String) {
        *lock(&self.warnings).entry(what).or_default() += 1;
    }

    fn done(&self, entry: &Entry) {
        {
            let mut report = lock(&self.report);
            match entry.kind {
                FileType::File => report.files += 1,
                FileType::Dir => report.dirs += 1,
                _ => report.others += 1,
            }
        }
        self.tick(1, 0);
    }

    fn tick(&self, entries: u64, bytes: u64) {
        let entries = self.entries.fetch_add(entries, Ordering::Relaxed) + entries;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(Progress { entries, bytes });
    }

    /// Walks without writing.
    fn rehearse(&self, entry: &Entry, dest: &Path) {
        use std::os::unix::ffi::OsStrExt;
        let mut seen = HashSet::new();
        let mut check = |path: &[u8], entry: &Entry| {
            let at = dest.join(std::ffi::OsStr::from_bytes(path));
            if self.opts.overwrite == Overwrite::Refuse
                && let Ok(found) = std::fs::symlink_metadata(at)
                && !(found.is_dir() && entry.kind == FileType::Dir)
            {
                self.fail(path, EXISTS);
            } else if entry.nlink > 1 && entry.kind != FileType::Dir && !seen.insert(entry.ino) {
                // The file was counted at its first name.
                lock(&self.report).links += 1;
                self.tick(1, 0);
            } else {
                self.done(entry);
                self.tick(0, entry.size);
            }
        };
        if entry.kind != FileType::Dir {
            check(&entry.name, entry);
            return;
        }
        for item in self.reader.walk(entry) {
            match item {
                Ok(item) => check(&item.path, &item.entry),
                Err(e) => self.failed(&e.path, e.source),
            }
            if self.stopped.get().is_some() {
                return;
            }
        }
    }

    fn open_destination(&self, entry: &Entry, dest: &Path) -> Result<Arc<DirState>> {
        let failed = |what: &str, e: Errno| StoreError::Io {
            what: format!("{what} {}", dest.display()),
            source: e.into(),
        };
        let created = match std::fs::symlink_metadata(dest) {
            Ok(_) => false,
            Err(_) => {
                std::fs::create_dir_all(dest).map_err(|source| StoreError::Io {
                    what: format!("creating {}", dest.display()),
                    source,
                })?;
                true
            }
        };
        // The destination itself is the user's word: it may be reached through links.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, dest, flags, Mode::empty()).map_err(|e| failed("opening", e))?;
        let inherits_acl = Place::Fd(fd.as_fd()).has_xattr(os::ACL_DEFAULT);
        // A directory that was there keeps its attributes, whatever the snapshot's root looks like.
        let apply = (created && entry.kind == FileType::Dir).then(|| entry.clone());
        Ok(Arc::new(DirState { fd, parent: None, path: Vec::new(), apply, inherits_acl }))
    }

    fn run(&self, entry: &Entry, root: &Arc<DirState>) {
        let (sender, receiver) = sync_channel::<FileJob>(QUEUE);
        let receiver = Mutex::new(receiver);
        std::thread::scope(|scope| {
            for _ in 0..self.opts.workers.clamp(1, 16) {
                scope.spawn(|| self.work(&receiver));
            }
            let send = |job: FileJob| {
                // The receiver lives until the scope ends.
                if let Err(back) = sender.send(job) {
                    self.fail(&back.0.dir.path_of(&back.0.entry.name), "the workers are gone");
                }
            };
            if entry.kind == FileType::Dir {
                self.walk(entry, root, &send);
            } else {
                self.place(root, entry.clone(), root, &send);
            }
            drop(sender);
        });
    }

    fn work(&self, receiver: &Mutex<Receiver<FileJob>>) {
        let mut chunk = Chunk::default();
        loop {
            // The guard is dropped before the work starts.
            let job = lock(receiver).recv();
            let Ok(FileJob { dir, entry }) = job else { return };
            match self.stopped.get() {
                None => self.file(&dir, &entry, &mut chunk),
                Some(_) => self.settle_link(&entry, b"", false),
            }
            release(self, dir);
        }
    }

    fn walk(&self, entry: &Entry, root: &Arc<DirState>, send: &dyn Fn(FileJob)) {
        let Content::Dir(object) = &entry.content else {
            return self.fail(b"", "a directory without an object");
        };
        let mut stack: Vec<(Arc<DirState>, DirIter<'_>)> = Vec::new();
        match self.reader.entries(object, None) {
            Ok(iter) => stack.push((Arc::clone(root), iter)),
            Err(e) => return self.failed(b"", e),
        }
        while let Some((dir, iter)) = stack.last_mut() {
            // The directories that are there get their attributes all the same.
            let next = if self.stopped.get().is_some() { Ok(None) } else { iter.next_entry() };
            let entry = match next {
                Ok(Some(entry)) => entry,
                end => {
                    if let Err(e) = end {
                        self.failed(&dir.path, e);
                    }
                    if let Some((dir, _)) = stack.pop() {
                        release(self, dir);
                    }
                    continue;
                }
            };
            let Content::Dir(object) = entry.content else {
                let dir = Arc::clone(dir);
                self.place(&dir, entry, root, send);
                release(self, dir);
                continue;
            };
            let path = dir.path_of(&entry.name);
            if stack.len() > DEPTH_MAX {
                self.fail(&path, "directories nest too deep (TREE-5)");
                continue;
            }
            let Some((dir, _)) = stack.last() else { continue };
            let made = self.directory(dir, &entry, &path);
            match made.and_then(|dir| self.reader.entries(&object, None).map(|iter| (dir, iter))) {
                Ok(level) => {
                    self.done(&entry);
                    stack.push(level);
                }
                Err(e) => self.failed(&path, e),
            }
        }
    }

    /// Makes or enters a directory.
    fn directory(&self, parent: &Arc<DirState>, entry: &Entry, path: &[u8]) -> Result<Arc<DirState>> {
        let io = |what: &str, e: Errno| StoreError::Io { what: what.to_string(), source: e.into() };
        check_name(&entry.name)?;
        let name = entry.name.as_slice();
        let replace = self.opts.overwrite == Overwrite::Replace;
        let created = match rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => {
                let kind = os::kind_at(parent.fd.as_fd(), name).map_err(|e| io("examining", e))?;
                if kind == Some(FileType::Dir) {
                    false
                } else if replace {
                    rustix::fs::unlinkat(&parent.fd, name, AtFlags::empty())
                        .map_err(|e| io("replacing", e))?;
                    rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU).map_err(|e| io("creating", e))?;
                    true
                } else {
                    return Err(io("creating the directory", Errno::EXIST));
                }
            }
            Err(e) => return Err(io("creating the directory", e)),
        };
        if !created && replace && !self.is_root {
            // One that was restored read-only, in a run that was given up, may still have to be filled.
            open_up(parent.fd.as_fd(), name)
                .map_err(|e| io("opening the directory for what comes into it", e))?;
        }
        let fd = os::open_dir(parent.fd.as_fd(), name).map_err(|e| io("opening the directory", e))?;
        let inherits_acl =
            if created { parent.inherits_acl } else { Place::Fd(fd.as_fd()).has_xattr(os::ACL_DEFAULT) };
        let mut bare = entry.clone();
        bare.content = Content::None;
        let apply = (created || replace).then_some(bare);
        let parent = Some(Arc::clone(parent));
        Ok(Arc::new(DirState { fd, parent, path: path.to_vec(), apply, inherits_acl }))
    }

    /// Restores anything but a directory.
    fn place(&self, dir: &Arc<DirState>, entry: Entry, root: &Arc<DirState>, send: &dyn Fn(FileJob)) {
        let path = dir.path_of(&entry.name);
        if let Err(e) = check_name(&entry.name) {
            return self.fail(&path, &e.to_string());
        }
        // FORMAT TREE-7
        if entry.nlink > 1 && self.further_name(dir, &entry, &path, root) {
            return;
        }
        if entry.kind == FileType::File {
            return send(FileJob { dir: Arc::clone(dir), entry });
        }
        let made = self.special(dir, &entry);
        self.settle_link(&entry, &path, made.is_ok());
        match made {
            Ok(()) => self.done(&entry),
            Err(e) => self.fail(&path, &why(&e)),
        }
    }

    /// Makes a further name of something that was restored before. False: this is the first one.
    fn further_name(&self, dir: &DirState, entry: &Entry, path: &[u8], root: &DirState) -> bool {
        let mut links = lock(&self.links);
        let first = loop {
            match links.get_mut(&entry.ino) {
                None => {
                    links.insert(entry.ino, LinkState::Busy);
                    return false;
                }
                Some(LinkState::Busy) => {
                    links = self.link_done.wait(links).unwrap_or_else(PoisonError::into_inner);
                }
                Some(LinkState::Failed) => break None,
                Some(LinkState::Done(first, left)) => {
                    let first = first.clone();
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        links.remove(&entry.ino);
                    }
                    break Some(first);
                }
            }
        };
        drop(links);
        let made = match first {
            None => {
                if self.stopped.get().is_none() {
                    self.fail(path, "its content failed at another name of it");
                }
                return true;
            }
            Some(first) => self.link(dir, entry, &first, root),
        };
        match made {
            Ok(()) => {
                lock(&self.report).links += 1;
                self.tick(1, entry.size);
            }
            Err(e) => self.fail(path, &format!("linking: {e}")),
        }
        true
    }

    fn link(
        &self,
        dir: &DirState,
        entry: &Entry,
        first: &[u8],
        root: &DirState,
    ) -> std::result::Result<(), Errno> {
        let (parent, name) = os::open_parent(root.fd.as_fd(), first)?;
        let parent = parent.as_ref().map_or(root.fd.as_fd(), |fd| fd.as_fd());
        if self.opts.overwrite == Overwrite::Replace {
            match rustix::fs::unlinkat(&dir.fd, entry.name.as_slice(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        rustix::fs::linkat(parent, name, &dir.fd, entry.name.as_slice(), AtFlags::empty())
    }

    /// Tells those who wait for the first name of a file how it went.
    fn settle_link(&self, entry: &Entry, path: &[u8], ok: bool) {
        if entry.nlink > 1 {
            let state = if ok { LinkState::Done(path.to_vec(), entry.nlink - 1) } else { LinkState::Failed };
            lock(&self.links).insert(entry.ino, state);
            self.link_done.notify_all();
        }
    }

    /// Makes a symbolic link, fifo, socket or device.
    fn special(&self, dir: &DirState, entry: &Entry) -> Result<()> {
        use rustix::fs::FileType as T;
        let io = |what: &str, e: Errno| StoreError::Io { what: what.to_string(), source: e.into() };
        let name = entry.name.as_slice();
        if self.opts.overwrite == Overwrite::Replace {
            match rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(io("replacing", e)),
            }
        }
        let node = |kind, dev| rustix::fs::mknodat(&dir.fd, name, kind, Mode::RUSR | Mode::WUSR, dev);
        let made = match (&entry.content, entry.kind) {
            (Content::Symlink(target), _) => rustix::fs::symlinkat(target.as_slice(), &dir.fd, name),
            (Content::Device { major, minor }, FileType::CharDev) => {
                node(T::CharacterDevice, rustix::fs::makedev(*major, *minor))
            }
            (Content::Device { major, minor }, FileType::BlockDev) => {
                node(T::BlockDevice, rustix::fs::makedev(*major, *minor))
            }
            (_, FileType::Fifo) => node(T::Fifo, 0),
            (_, FileType::Socket) => node(T::Socket, 0),
            _ => return Err(StoreError::Corrupt("an entry whose content does not fit its type".into())),
        };
        made.map_err(|e| io("creating", e))?;
        apply_attributes(self, entry, Place::Name(dir.fd.as_fd(), name), dir.inherits_acl)
    }

    /// Restores a regular file.
    fn file(&self, dir: &Arc<DirState>, entry: &Entry, chunk: &mut Chunk) {
        let path = dir.path_of(&entry.name);
        match self.write_file(dir, entry, chunk) {
            Ok(()) => {
                self.settle_link(entry, &path, true);
                self.done(entry);
            }
            Err(e) => {
                // First, so that who waits for the link knows whether all is given up.
                self.failed(&path, e);
                self.settle_link(entry, b"", false);
            }
        }
    }

    fn write_file(&self, dir: &DirState, entry: &Entry, chunk: &mut Chunk) -> Result<()> {
        let io = |what: &str, e: Errno| StoreError::Io { what: what.to_string(), source: e.into() };
        let name = entry.name.as_slice();
        let replace = self.opts.overwrite == Overwrite::Replace
            && match os::kind_at(dir.fd.as_fd(), name).map_err(|e| io("examining", e))? {
                Some(FileType::Dir) => return Err(io("replacing", Errno::ISDIR)),
                found => found.is_some(),
            };
        // What is replaced stays as it is until all of the new content is there.
        let temporary = format!(".strongroom-{:x}-{:x}.tmp", std::process::id(), entry.ino).into_bytes();
        let target = if replace { temporary.as_slice() } else { name };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir.fd, target, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| io("creating", e))?;
        let written = self
            .write_content(&file, entry, chunk)
            .and_then(|()| apply_attributes(self, entry, Place::Fd(file.as_fd()), dir.inherits_acl))
            .and_then(|()| {
                if replace {
                    rustix::fs::renameat(&dir.fd, target, &dir.fd, name).map_err(|e| io("replacing", e))?;
                }
                Ok(())
            });
        if written.is_err() {
            // The first error is the one to report; that the rest could not be removed is said with it.
            if let Err(e) = rustix::fs::unlinkat(&dir.fd, target, AtFlags::empty()) {
                self.fail(&dir.path_of(target), &format!("removing what is incomplete: {e}"));
            }
        }
        written
    }

    fn write_content(&self, file: &OwnedFd, entry: &Entry, chunk: &mut Chunk) -> Result<()> {
        let io = |e: Errno| StoreError::Io { what: "writing".into(), source: e.into() };
        let mut reported = 0;
        let written = if let Content::Inline(bytes) = &entry.content {
            write_all(file, bytes, 0).map_err(io)?;
            bytes.len() as u64
        } else {
            let mut extents = self.reader.extents(&entry.content, entry.size, 0)?;
            while let Some(extent) = extents.next_extent()? {
                let bytes = chunk.read(self.reader.source(), &extent.chunk)?;
                // FORMAT TREE-4
                let start = extent.chunk_offset as usize;
                let part = usize::try_from(extent.len)
                    .ok()
                    .and_then(|len| bytes.get(start..start.checked_add(len)?))
                    .ok_or_else(|| {
                        StoreError::Corrupt(format!("an extent beyond chunk {} (TREE-4)", extent.chunk))
                    })?;
                write_all(file, part, extent.offset).map_err(io)?;
                self.tick(0, extent.end() - reported);
                reported = extent.end();
            }
            reported
        };
        // What no extent covers was never written, so it is a hole here as well, at the end, too.
        if written != entry.size {
            rustix::fs::ftruncate(file, entry.size).map_err(io)?;
        }
        self.tick(0, entry.size - reported);
        Ok(())
    }
}

/// The chunk that a worker read last, in memory that is used for one after the other.
#[derive(Default)]
struct Chunk {
    id: Option<ChunkId>,
    bytes: Vec<u8>,
}

impl Chunk {
    /// The bytes of a chunk; files, and extents of a file, that follow each other often have the same.
    fn read(&mut self, source: &dyn ChunkSource, id: &ChunkId) -> Result<&[u8]> {
        if self.id != Some(*id) {
            self.id = None;
            source.read_into(id, &mut self.bytes)?;
            self.id = Some(*id);
        }
        Ok(&self.bytes)
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> std::result::Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
