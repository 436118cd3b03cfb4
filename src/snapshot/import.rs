//! Makes a snapshot of directories outside of the vault, without a mount.
//!
//! The tree of the snapshot has the absolute paths of what was imported: `/srv/www` stands at `srv/www`, and
//! the directories above are there with their attributes and nothing beside it. So several directories never
//! collide, and a path in the snapshot is the path that was backed up. Sources are resolved first: a link to
//! a directory is imported as the directory.
//!
//! Directories are read in name order and written bottom-up. Files are read by one thread, for which others
//! read ahead into the kernel's caches; hashing, compressing and sealing run on the workers of the chunk
//! store, whose queue bounds what is in memory. Entries whose chunks are still on their way wait in order.
//!
//! What an earlier import stored is not read again (`import_earlier`).
//!
//! Nothing is left out silently: what can't be read is in [`ImportReport::errors`] and makes the result
//! partial; what changed while it was read is in [`ImportReport::changed`], with the content as it was read.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType as Kind, Stat};
use rustix::io::Errno;

use crate::format::tree::SYMLINK_LEN_MAX;
use crate::format::{ChunkId, Content, Entry, FileType, Origin, RootInfo};
use crate::store::chunker::Chunker;
use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::records::ROOT_INO;

use super::chain::Chain;
use super::create::{SnapshotInfo, packs_to_list};
use super::gc::clear_undone;
use super::glob::{Excludes, PatternError};
use super::import_ahead::{Ahead, Listed, Rules, Scout, list};
use super::import_earlier::{Dirs, Earlier, is_settled};
use super::import_file::{FileReader, Pending, ReadError, open_file};
use super::import_numbers::Numbers;
use super::import_stat::{entry_of, links_of};
use super::os::{self, Place};
use super::publish::{Draft, program, publish};
use super::restore::{Failure, Progress};
use super::rows::Counts;
use super::tree::DEPTH_MAX;
use super::write::DirWriter;
use super::{show, while_storing};

/// Entries of one directory that wait for their chunks.
const WAITING_MAX: usize = 256;
/// Errors and changes that a report keeps in full; more are counted.
const LISTED_MAX: usize = 10_000;

/// What to import, and how.
#[derive(Clone, Debug, Default)]
pub struct ImportOpts {
    /// The host that it is made on.
    pub host: String,
    /// Names to find it by.
    pub tags: Vec<String>,
    /// Patterns of what to leave out, in the manner of `.gitignore`, tied to each imported directory.
    pub excludes: Vec<String>,
    /// Leave out what is below mount points in the imported directories; the mount points stay, empty.
    pub one_file_system: bool,
    /// Keep times of access. Else a file's is the one of its last change: they change daily where files are only read,
    /// and each one that does has its directory written anew.
    pub atime: bool,
    /// Read also files that are, by their times, size and inode number, what an earlier import of this host has stored.
    pub reread: bool,
    /// Directories to leave out wherever they are met, like the vault itself.
    pub skip: Vec<PathBuf>,
}

/// What an import did.
#[derive(Debug, Default)]
pub struct ImportReport {
    /// The snapshot.
    pub snapshot: Option<SnapshotInfo>,
    /// What is in it, below its root.
    pub counts: Counts,
    /// What could not be read and is not in the snapshot.
    pub errors: Vec<Failure>,
    /// Errors beyond those that are listed.
    pub errors_omitted: u64,
    /// What changed or vanished while it was read, and what became of it.
    pub changed: Vec<Failure>,
    /// Changes beyond those that are listed.
    pub changed_omitted: u64,
    /// Entries that patterns left out; what is below them is not counted.
    pub excluded: u64,
    /// Files that were not read, since they are what an earlier import has stored.
    pub unchanged: u64,
}

impl ImportReport {
    /// Returns whether everything that should be in the snapshot is.
    pub fn is_complete(&self) -> bool {
        self.errors.is_empty()
    }
}

/// Why nothing could be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A pattern makes no sense.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// None of the sources can be read.
    #[error("nothing to import: {0}")]
    Nothing(String),
    /// The vault failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Result<T> = std::result::Result<T, ImportError>;

/// Imports `sources` as one snapshot.
///
/// # Errors
/// When there is nothing to import, or the vault fails. No snapshot is made then. Files that can't be read
/// are in the report.
pub fn import(
    engine: &Engine,
    sources: &[PathBuf],
    opts: &ImportOpts,
    progress: &dyn Fn(Progress),
) -> Result<ImportReport> {
    let excludes = Excludes::new(&opts.excludes)?;
    let mut report = ImportReport::default();
    let plan = Plan::new(sources, &mut report)?;
    os::raise_open_files_limit();
    let _gate = while_storing(engine)?;
    engine.check_poison()?;
    let chain = Chain::of(engine)?;
    let earlier = (!opts.reread).then(|| Earlier::new(engine, &chain, &opts.host));
    let skip = opts.skip.iter().filter_map(|path| rustix::fs::stat(path).ok());
    let rules = Rules {
        excludes,
        skip: skip.map(|stat| (stat.st_dev, stat.st_ino)).collect(),
        one_file_system: opts.one_file_system,
    };
    let ahead = Ahead::new(rules, earlier.as_ref());
    let mut importer = Importer {
        engine,
        ahead: &ahead,
        earlier: earlier.as_ref(),
        reader: FileReader::new(
            &engine.packs,
            Chunker::new(&engine.ctx.chunker, engine.ctx.keys.chunker_seed()),
        ),
        links: HashMap::new(),
        numbers: Numbers::new(),
        atime: opts.atime,
        counts: Counts::default(),
        report,
        progress,
        done: Progress::default(),
        path: Vec::new(),
        stack: Vec::new(),
    };
    let entry = std::thread::scope(|scope| {
        let _running = ahead.start(scope);
        importer.run(&plan)
    })?;
    let Importer { numbers, counts, mut report, .. } = importer;
    let Counts { files, dirs, others, bytes } = counts;
    // The root is a directory of the tree, too.
    let root =
        RootInfo { entry, next_ino: numbers.end(), files, dirs: dirs.saturating_add(1), others, bytes };
    report.snapshot = Some(finish(engine, opts, chain, root)?);
    report.counts = counts;
    Ok(report)
}

fn finish(engine: &Engine, opts: &ImportOpts, chain: Chain, root: RootInfo) -> Result<SnapshotInfo> {
    engine.with_reserve(|| engine.packs.close_open())?;
    let published = publish(engine, Some(chain), |chain| {
        Ok(Some(Draft {
            origin: Origin::Import,
            packs: packs_to_list(engine, chain)?,
            removed: Vec::new(),
            retired: Vec::new(),
            replacements: Vec::new(),
            host: opts.host.clone(),
            tags: opts.tags.clone(),
            root: Some(root.clone()),
        }))
    })?
    .ok_or_else(|| StoreError::Corrupt("a snapshot was not written".into()))?;
    clear_undone(engine)?;
    Ok(SnapshotInfo {
        seq: published.seq,
        id: published.id,
        time: published.time,
        origin: Origin::Import,
        host: opts.host.clone(),
        tags: opts.tags.clone(),
        program: program(),
        root,
    })
}

/// The paths to import, as a tree of names.
#[derive(Debug, Default)]
struct Plan {
    /// Take everything here, not only what is named below.
    whole: bool,
    below: BTreeMap<Vec<u8>, Plan>,
}

impl Plan {
    fn new(sources: &[PathBuf], report: &mut ImportReport) -> Result<Plan> {
        let mut plan = Plan::default();
        let mut any = false;
        for source in sources {
            match std::fs::canonicalize(source) {
                Ok(path) => {
                    plan.add(&path);
                    any = true;
                }
                Err(e) => report
                    .errors
                    .push(Failure { path: show(source.as_os_str().as_bytes()), what: e.to_string() }),
            }
        }
        if any {
            return Ok(plan);
        }
        let why: Vec<_> = report.errors.iter().map(|e| format!("{}: {}", e.path, e.what)).collect();
        Err(ImportError::Nothing(if why.is_empty() { "no source was given".into() } else { why.join("; ") }))
    }

    fn add(&mut self, path: &Path) {
        let mut at = self;
        for part in path.components() {
            if let Component::Normal(name) = part {
                at = at.below.entry(name.as_bytes().to_vec()).or_default();
            }
        }
        at.whole = true;
    }
}

/// What is wanted of a directory.
#[derive(Clone, Copy, Debug)]
struct Wanted<'p> {
    /// Everything in it; else only what is named below `plan`.
    all: bool,
    /// Sources that begin below, as they may also within another one: on another filesystem they are not left out.
    plan: Option<&'p Plan>,
}

/// A directory that is being read.
struct Frame<'a, 'p> {
    fd: Arc<OwnedFd>,
    names: Vec<Listed>,
    /// The next of them.
    next: usize,
    /// Absent above the sources.
    scout: Option<Scout>,
    wanted: Wanted<'p>,
    /// How many names of the path lead to the source; patterns see what comes after.
    source_depth: usize,
    /// Device of the source.
    dev: u64,
    /// The same directory in earlier imports.
    before: Dirs,
    entry: Entry,
    writer: DirWriter<'a>,
    waiting: VecDeque<(Entry, Option<Rc<RefCell<Pending<'a>>>>)>,
}

impl Frame<'_, '_> {
    fn take_name(&mut self, ahead: &Ahead<'_>) -> Option<Vec<u8>> {
        if let Some(scout) = &mut self.scout {
            scout.step(ahead, &self.names, self.next);
        }
        let (name, _) = self.names.get_mut(self.next)?;
        self.next += 1;
        Some(std::mem::take(name))
    }
}

/// A file of which more names may come.
struct Link<'a> {
    entry: Entry,
    content: Rc<RefCell<Pending<'a>>>,
    left: u64,
}

struct Importer<'a, 'p> {
    engine: &'a Engine,
    ahead: &'a Ahead<'a>,
    earlier: Option<&'a Earlier<'a>>,
    reader: FileReader<'a>,
    links: HashMap<(u64, u64), Link<'a>>,
    numbers: Numbers,
    atime: bool,
    counts: Counts,
    report: ImportReport,
    progress: &'a dyn Fn(Progress),
    done: Progress,
    path: Vec<Vec<u8>>,
    stack: Vec<Frame<'a, 'p>>,
}

impl<'a, 'p> Importer<'a, 'p> {
    fn shown(&self, name: &[u8]) -> String {
        let mut path = Vec::new();
        for part in self.path.iter().map(Vec::as_slice).chain(Some(name)).filter(|part| !part.is_empty()) {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        if path.is_empty() { "/".to_string() } else { show(&path) }
    }

    fn fail(&mut self, name: &[u8], what: impl std::fmt::Display) {
        let failure = Failure { path: self.shown(name), what: what.to_string() };
        if self.report.errors.len() < LISTED_MAX {
            self.report.errors.push(failure);
        } else {
            self.report.errors_omitted += 1;
        }
    }

    fn changed(&mut self, name: &[u8], what: &str) {
        let failure = Failure { path: self.shown(name), what: what.to_string() };
        if self.report.changed.len() < LISTED_MAX {
            self.report.changed.push(failure);
        } else {
            self.report.changed_omitted += 1;
        }
    }

    fn run(&mut self, plan: &'p Plan) -> Result<Entry> {
        let os = |what: &str, e: Errno| StoreError::Io { what: what.to_string(), source: e.into() };
        let fd = os::open_dir(rustix::fs::CWD, b"/").map_err(|e| os("opening /", e))?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| os("examining /", e))?;
        let mut entry = entry_of(Vec::new(), FileType::Dir, ROOT_INO, &stat, self.atime);
        entry.xattrs = Place::Fd(fd.as_fd()).xattrs().map_err(|e| os("reading attributes of /", e))?;
        self.enter(fd, entry, &stat, Wanted { all: plan.whole, plan: Some(plan) }, 0, stat.st_dev)?;
        loop {
            let Some(frame) = self.stack.last_mut() else {
                return Err(StoreError::Corrupt("an import without a root".into()).into());
            };
            if let Some(name) = frame.take_name(self.ahead) {
                self.one(name)?;
                self.settle(WAITING_MAX)?;
                continue;
            }
            self.settle(0)?;
            let Some(frame) = self.stack.pop() else { continue };
            let mut entry = frame.entry;
            entry.content = Content::Dir(frame.writer.finish()?);
            let Some(parent) = self.stack.last_mut() else { return Ok(entry) };
            parent.waiting.push_back((entry, None));
            self.path.pop();
        }
    }

    /// Opens a level of the stack. What can't be listed to its end is reported, and taken as far as it was
    /// listed.
    fn enter(
        &mut self,
        fd: OwnedFd,
        entry: Entry,
        stat: &Stat,
        wanted: Wanted<'p>,
        source_depth: usize,
        dev: u64,
    ) -> Result<()> {
        let names = match wanted.plan.filter(|_| !wanted.all) {
            Some(plan) => plan.below.keys().map(|name| (name.clone(), Kind::Unknown)).collect(),
            None => {
                let (names, error) = list(&fd, usize::MAX);
                if let Some(e) = error {
                    self.fail(b"", format_args!("listing: {e}"));
                }
                names
            }
        };
        let before = match (self.earlier, self.stack.last()) {
            // A source begins here.
            (Some(earlier), _) if wanted.all && self.path.len() == source_depth => earlier.source(&self.path),
            (Some(earlier), Some(above)) => earlier.directory(&above.before, &entry.name),
            _ => Dirs::new(),
        };
        let fd = Arc::new(fd);
        let scout = wanted.all.then(|| {
            let below = self.path.get(source_depth..).unwrap_or_default();
            Scout::new(self.ahead, &fd, below, (stat.st_dev, stat.st_ino), dev, before.clone(), &names)
        });
        self.stack.push(Frame {
            fd,
            names,
            next: 0,
            scout,
            wanted,
            source_depth,
            dev,
            before,
            entry,
            writer: DirWriter::new(self.engine.packs.as_ref()),
            waiting: VecDeque::new(),
        });
        Ok(())
    }

    /// Writes entries whose content is stored, in order; waits until at most `left` wait.
    fn settle(&mut self, left: usize) -> Result<()> {
        let Some(frame) = self.stack.last_mut() else { return Ok(()) };
        while let Some((_, content)) = frame.waiting.front() {
            if let Some(content) = content {
                let ready = content.borrow_mut().is_ready()?;
                if !ready && frame.waiting.len() <= left {
                    break;
                }
            }
            let Some((mut entry, content)) = frame.waiting.pop_front() else { break };
            if let Some(content) = content {
                entry.content = content.borrow_mut().finish()?;
            }
            self.counts.add_entry(&entry);
            frame.writer.push(entry)?;
            self.done.entries += 1;
            (self.progress)(self.done);
        }
        Ok(())
    }

    /// Takes one name of the directory on top of the stack.
    fn one(&mut self, name: Vec<u8>) -> Result<()> {
        let Some(frame) = self.stack.last() else { return Ok(()) };
        let (above, source_depth, dev) = (frame.wanted, frame.source_depth, frame.dev);
        let stat = match rustix::fs::statat(&frame.fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                self.changed(&name, "vanished before it was read; it is not in the snapshot");
                return Ok(());
            }
            Err(e) => {
                self.fail(&name, e);
                return Ok(());
            }
        };
        let Some(kind) = os::kind_of(stat.st_mode) else {
            self.fail(&name, "a file of a type that the format does not know");
            return Ok(());
        };
        if above.all {
            let mut parts: Vec<&[u8]> = self.path[source_depth..].iter().map(Vec::as_slice).collect();
            parts.push(&name);
            if self.ahead.rules.excludes.excludes(&parts, kind == FileType::Dir) {
                self.report.excluded += 1;
                return Ok(());
            }
        }
        if kind == FileType::Dir {
            return self.directory(name, &stat, above, source_depth, dev);
        }
        // FORMAT TREE-7: a file's second name repeats what was found at its first, even if it changed since.
        let key = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(link) = self.links.get_mut(&key)
        {
            let mut entry = link.entry.clone();
            entry.name = name;
            let content = Rc::clone(&link.content);
            link.left = link.left.saturating_sub(1);
            if link.left == 0 {
                self.links.remove(&key);
            }
            self.push(entry, Some(content));
            return Ok(());
        }
        match kind {
            FileType::File => self.file(name, &stat),
            _ => self.special(name, kind, &stat),
        }
    }

    fn push(&mut self, entry: Entry, content: Option<Rc<RefCell<Pending<'a>>>>) {
        if let Some(frame) = self.stack.last_mut() {
            frame.waiting.push_back((entry, content));
        }
    }

    fn entry_of(&mut self, name: Vec<u8>, kind: FileType, stat: &Stat, is_settled: bool) -> Entry {
        let ino = self.numbers.take(stat.st_dev, stat.st_ino, is_settled);
        entry_of(name, kind, ino, stat, self.atime)
    }

    fn directory(
        &mut self,
        name: Vec<u8>,
        stat: &Stat,
        above: Wanted<'p>,
        source_depth: usize,
        dev: u64,
    ) -> Result<()> {
        let Some(frame) = self.stack.last() else { return Ok(()) };
        if self.ahead.rules.skip.contains(&(stat.st_dev, stat.st_ino)) {
            self.report.excluded += 1;
            return Ok(());
        }
        if self.stack.len() >= DEPTH_MAX {
            self.fail(&name, "directories nest deeper than the format allows (TREE-5)");
            return Ok(());
        }
        let opened = os::open_dir(frame.fd.as_fd(), &name)
            .and_then(|fd| rustix::fs::fstat(&fd).map(|stat| (fd, stat)))
            .and_then(|(fd, stat)| Place::Fd(fd.as_fd()).xattrs().map(|xattrs| (fd, stat, xattrs)));
        let (fd, stat, xattrs) = match opened {
            Ok(opened) => opened,
            Err(Errno::NOENT) => {
                self.changed(&name, "vanished before it was read; it is not in the snapshot");
                return Ok(());
            }
            Err(e) => {
                self.fail(&name, e);
                return Ok(());
            }
        };
        let mut entry = self.entry_of(name, FileType::Dir, &stat, true);
        entry.xattrs = xattrs;
        // The real object is known when everything below is written.
        entry.content = Content::Dir(ChunkId([0; 32]));
        if let Some(e) = unsayable(&entry) {
            self.fail(&entry.name, e);
            return Ok(());
        }
        let below = above.plan.and_then(|plan| plan.below.get(&entry.name));
        let begins = below.is_some_and(|plan| plan.whole);
        let foreign = above.all && !begins && self.ahead.rules.one_file_system && stat.st_dev != dev;
        if foreign && below.is_none() {
            entry.content = Content::Dir(DirWriter::new(self.engine.packs.as_ref()).finish()?);
            self.push(entry, None);
            return Ok(());
        }
        self.path.push(entry.name.clone());
        let wanted = Wanted { all: begins || above.all && !foreign, plan: below };
        match begins || !wanted.all {
            // A source begins here, or is still to come.
            true => self.enter(fd, entry, &stat, wanted, self.path.len(), stat.st_dev),
            false => self.enter(fd, entry, &stat, wanted, source_depth, dev),
        }
    }

    fn special(&mut self, name: Vec<u8>, kind: FileType, stat: &Stat) -> Result<()> {
        let Some(frame) = self.stack.last() else { return Ok(()) };
        let content = match kind {
            FileType::Symlink => {
                match rustix::fs::readlinkat(&frame.fd, name.as_slice(), Vec::with_capacity(SYMLINK_LEN_MAX))
                {
                    Ok(target) => Content::Symlink(target.into_bytes()),
                    Err(e) => {
                        self.fail(&name, e);
                        return Ok(());
                    }
                }
            }
            FileType::CharDev | FileType::BlockDev => Content::Device {
                major: rustix::fs::major(stat.st_rdev),
                minor: rustix::fs::minor(stat.st_rdev),
            },
            _ => Content::None,
        };
        let xattrs = match Place::Name(frame.fd.as_fd(), &name).xattrs() {
            Ok(xattrs) => xattrs,
            Err(e) => {
                self.fail(&name, e);
                return Ok(());
            }
        };
        let mut entry = self.entry_of(name, kind, stat, true);
        entry.xattrs = xattrs;
        entry.content = content.clone();
        if let Some(e) = unsayable(&entry) {
            self.fail(&entry.name, e);
            return Ok(());
        }
        let content = Rc::new(RefCell::new(Pending::ready(content)));
        self.remember(stat, &entry, &content);
        self.push(entry, None);
        Ok(())
    }

    fn remember(&mut self, stat: &Stat, entry: &Entry, content: &Rc<RefCell<Pending<'a>>>) {
        if stat.st_nlink > 1 {
            let link = Link { entry: entry.clone(), content: Rc::clone(content), left: links_of(stat) - 1 };
            self.links.insert((stat.st_dev, stat.st_ino), link);
        }
    }

    fn file(&mut self, name: Vec<u8>, listed: &Stat) -> Result<()> {
        let Some(frame) = self.stack.last() else { return Ok(()) };
        let opened = open_file(frame.fd.as_fd(), &name)
            .and_then(|fd| rustix::fs::fstat(&fd).map(|stat| (fd, stat)))
            .and_then(|(fd, stat)| Place::Fd(fd.as_fd()).xattrs().map(|xattrs| (fd, stat, xattrs)));
        let (fd, stat, xattrs) = match opened {
            Ok(opened) => opened,
            Err(Errno::NOENT) => {
                self.changed(&name, "vanished before it was read; it is not in the snapshot");
                return Ok(());
            }
            Err(e) => {
                self.fail(&name, e);
                return Ok(());
            }
        };
        if os::kind_of(stat.st_mode) != Some(FileType::File) || stat.st_ino != listed.st_ino {
            self.fail(&name, "was replaced while it was being opened");
            return Ok(());
        }
        // The clock is read before the file is.
        let is_settled = is_settled(&stat, self.engine.ctx.env.now());
        let mut entry = self.entry_of(name, FileType::File, &stat, is_settled);
        entry.xattrs = xattrs;
        if let Some(e) = unsayable(&entry) {
            self.fail(&entry.name, e);
            return Ok(());
        }
        if let (true, Some(earlier), Some(frame)) = (is_settled, self.earlier, self.stack.last())
            && let Some(content) = earlier.content(&frame.before, &entry)?
        {
            self.report.unchanged += 1;
            self.done.bytes += entry.size;
            let content = Rc::new(RefCell::new(Pending::ready(content)));
            self.remember(&stat, &entry, &content);
            self.push(entry, Some(content));
            return Ok(());
        }
        let (done, progress) = (&mut self.done, self.progress);
        let read = self.reader.read(&fd, entry.size, &mut |bytes| {
            done.bytes += bytes;
            progress(*done);
        });
        let (content, size) = match read {
            Ok(read) => read,
            Err(ReadError::Store(e)) => return Err(e.into()),
            Err(ReadError::Os(e)) => {
                self.fail(&entry.name, e);
                return Ok(());
            }
        };
        let same = |now: &Stat| {
            (now.st_size, now.st_mtime, now.st_mtime_nsec, now.st_ctime, now.st_ctime_nsec)
                == (stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec)
        };
        if size < entry.size || !rustix::fs::fstat(&fd).is_ok_and(|now| same(&now)) {
            self.changed(
                &entry.name.clone(),
                "changed while it was read; it is in the snapshot as it was read",
            );
        }
        entry.size = size;
        let content = Rc::new(RefCell::new(content));
        self.remember(&stat, &entry, &content);
        self.push(entry, Some(content));
        Ok(())
    }
}

/// Returns why the format can't say an entry, if it can't.
fn unsayable(entry: &Entry) -> Option<String> {
    let mut scratch = Vec::new();
    entry.encode_into(&mut scratch).err().map(|e| e.to_string())
}
