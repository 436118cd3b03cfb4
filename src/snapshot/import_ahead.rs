//! Reading ahead of an import, so that the disk serves several small files at a time.
//!
//! A few threads open what the import comes to next, and tell the kernel that its beginning will be needed.
//! That is all they do: what they find is thrown away, and the import examines, opens and reads everything
//! itself, in its order. So a file that changes, vanishes or can't be read is seen and reported as if nobody
//! had read ahead; being late or wrong here costs time only. Errors are the import's to meet and to report.
//!
//! What the import leaves out (patterns, skipped directories, other filesystems) is not touched here either.
//! Ahead of the import are at most [`WINDOW`] names of each directory that it is in, and the beginnings of a
//! few directories that come next. Of each file [`BEGINNING`] bytes are asked for: the kernel reads ahead by
//! itself in what is larger.

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use rustix::fs::{Advice, AtFlags, FileType as Kind, Mode, OFlags};
use rustix::io::Errno;

use super::glob::Excludes;
use super::import_earlier::{Dirs, Earlier};
use super::import_file::open_file;

/// Threads. They wait for the disk most of the time.
const THREADS: usize = 3;
/// Names ahead of the import in a directory that it is in.
const WINDOW: usize = 64;
/// Directories ahead of it there, of which the first names are read.
const DIRS: usize = 4;
/// How many of its first directories a directory that is ahead brings with it, and how deep.
const DIRS_BELOW: usize = 2;
const LEVELS: usize = 3;
/// Names of a directory up to which it is looked into before the import gets there.
const LISTED_MAX: usize = 4096;
/// Jobs that wait, in directories where the import is and in others.
const NEAR_MAX: usize = 128;
const FAR_MAX: usize = 256;
/// Directories that are remembered until the import enters them.
const KNOWN_MAX: usize = 64;
/// Bytes to ask for at the beginning of a file.
const BEGINNING: NonZeroU64 = NonZeroU64::new(256 << 10).expect("it is not zero");
/// Waiting jobs keep directories open, which the import must not miss: nobody reads ahead below this limit of
/// open files.
const OPEN_FILES_MIN: u64 = 4096;

/// A name in a directory, and what the listing says it is.
pub(super) type Listed = (Vec<u8>, Kind);

/// What an import leaves out.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) excludes: Excludes,
    /// Device and inode of directories.
    pub(super) skip: HashSet<(u64, u64)>,
    pub(super) one_file_system: bool,
}

/// How far the import is in a directory.
#[derive(Debug, Default)]
struct Passed {
    /// Up to this name.
    name: Vec<u8>,
    all: bool,
}

/// A directory with names to read ahead.
#[derive(Debug)]
struct Dir {
    fd: Arc<OwnedFd>,
    /// Its names below the source.
    below: Vec<Vec<u8>>,
    /// Device of the source.
    dev: u64,
    /// How many levels it is ahead of the import.
    level: usize,
    /// The same directory in earlier imports.
    before: Dirs,
    passed: Arc<Mutex<Passed>>,
}

#[derive(Debug)]
struct Job {
    dir: Arc<Dir>,
    name: Vec<u8>,
}

impl Job {
    fn is_late(&self) -> bool {
        let passed = lock(&self.dir.passed);
        passed.all || self.name <= passed.name
    }
}

/// A directory of which the beginning was read ahead.
#[derive(Debug)]
struct Known {
    /// Device and inode.
    key: (u64, u64),
    passed: Arc<Mutex<Passed>>,
    /// The last name before which everything but directories was queued; the same for directories.
    told: Vec<u8>,
    told_dirs: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    near: VecDeque<Job>,
    far: VecDeque<Job>,
    known: VecDeque<Known>,
    stopped: bool,
}

/// Reads ahead of one import.
#[derive(Debug)]
pub(super) struct Ahead<'e> {
    pub(super) rules: Rules,
    earlier: Option<&'e Earlier<'e>>,
    state: Mutex<State>,
    wake: Condvar,
    #[cfg(test)]
    touched: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here is more than a hint.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the threads when it is dropped, however the import ends.
#[derive(Debug)]
pub(super) struct Running<'a>(&'a Ahead<'a>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.stopped = true;
        state.near.clear();
        state.far.clear();
        drop(state);
        self.0.wake.notify_all();
    }
}

impl<'e> Ahead<'e> {
    /// `earlier`: files that are in there are not going to be read.
    pub(super) fn new(rules: Rules, earlier: Option<&'e Earlier<'e>>) -> Self {
        Ahead {
            rules,
            earlier,
            state: Mutex::default(),
            wake: Condvar::new(),
            #[cfg(test)]
            touched: Mutex::default(),
        }
    }

    /// Starts the threads. They end when the result is dropped.
    pub(super) fn start<'s, 'a: 's>(&'a self, scope: &'s Scope<'s, 'a>) -> Running<'a> {
        use rustix::process::{Resource, getrlimit};
        let open_files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        for n in 0..if open_files < OPEN_FILES_MIN { 0 } else { THREADS } {
            let thread = std::thread::Builder::new().name(format!("ahead-{n}"));
            if let Err(error) = thread.spawn_scoped(scope, || self.work()) {
                tracing::debug!(%error, "nobody reads ahead of the import");
            }
        }
        Running(self)
    }

    fn work(&self) {
        let mut state = lock(&self.state);
        while !state.stopped {
            match state.near.pop_front().or_else(|| state.far.pop_front()) {
                Some(job) => {
                    drop(state);
                    self.one(&job);
                    drop(job);
                    state = lock(&self.state);
                }
                None => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Makes the kernel read what the import will want of one name.
    fn one(&self, job: &Job) {
        if job.is_late() {
            return;
        }
        let dir = &job.dir;
        let Ok(stat) = rustix::fs::statat(&dir.fd, job.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) else {
            return;
        };
        let kind = Kind::from_raw_mode(stat.st_mode);
        let path: Vec<&[u8]> = dir.below.iter().map(Vec::as_slice).chain([job.name.as_slice()]).collect();
        if self.rules.excludes.excludes(&path, kind == Kind::Directory) {
            return;
        }
        #[cfg(test)]
        lock(&self.touched).push(super::show(&path.join(&b'/')));
        match kind {
            Kind::RegularFile
                if self.earlier.is_some_and(|earlier| earlier.is_likely(&dir.before, &job.name, &stat)) => {}
            Kind::RegularFile if stat.st_size > 0 => {
                if let Ok(file) = open_file(dir.fd.as_fd(), &job.name) {
                    // A filesystem that takes no advice is read without.
                    rustix::fs::fadvise(&file, 0, Some(BEGINNING), Advice::WillNeed).ok();
                }
            }
            Kind::Directory => self.look_into(job, &path),
            // Examining it was all there is to read.
            _ => {}
        }
    }

    /// Queues the beginning of a directory that the import will come to.
    fn look_into(&self, job: &Job, path: &[&[u8]]) {
        let level = job.dir.level + 1;
        // The import is the first to list it: that sets the access time, which belongs into the snapshot as it
        // was. Where we may not leave it alone we don't look.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
        let opened = rustix::fs::openat(&job.dir.fd, job.name.as_slice(), flags, Mode::empty())
            .and_then(|fd| rustix::fs::fstat(&fd).map(|stat| (fd, stat)));
        let Ok((fd, stat)) = opened else { return };
        let key = (stat.st_dev, stat.st_ino);
        let foreign = self.rules.one_file_system && stat.st_dev != job.dir.dev;
        if foreign || self.rules.skip.contains(&key) {
            return;
        }
        let (names, error) = list(&fd, LISTED_MAX);
        // Names come in no order: without all of them the first ones are unknown.
        if error.is_some() || names.len() >= LISTED_MAX {
            return;
        }
        let passed = Arc::<Mutex<Passed>>::default();
        let dir = Arc::new(Dir {
            fd: Arc::new(fd),
            below: path.iter().map(|name| name.to_vec()).collect(),
            dev: job.dir.dev,
            level,
            before: self
                .earlier
                .map_or_else(Dirs::new, |earlier| earlier.directory(&job.dir.before, &job.name)),
            passed: Arc::clone(&passed),
        });
        let mut known = Known { key, passed, told: Vec::new(), told_dirs: Vec::new() };
        let mut jobs = Vec::new();
        let mut dirs = if level < LEVELS { DIRS_BELOW } else { 0 };
        for (name, kind) in names.into_iter().take(WINDOW) {
            if kind != Kind::Directory {
                known.told.clone_from(&name);
            } else if dirs > 0 {
                dirs -= 1;
                known.told_dirs.clone_from(&name);
            } else {
                continue;
            }
            jobs.push(Job { dir: Arc::clone(&dir), name });
        }
        let mut state = lock(&self.state);
        if state.stopped || job.is_late() || state.far.len() + jobs.len() > FAR_MAX {
            return;
        }
        state.far.extend(jobs);
        if state.known.len() >= KNOWN_MAX {
            state.known.pop_front();
        }
        state.known.push_back(known);
        drop(state);
        self.wake.notify_all();
    }
}

/// Follows the import through one directory.
#[derive(Debug)]
pub(super) struct Scout {
    dir: Arc<Dir>,
    /// Names below this index are queued unless they are directories; the same for directories.
    told: usize,
    told_dirs: usize,
    /// Directories that are queued and not reached.
    dirs: usize,
}

impl Drop for Scout {
    fn drop(&mut self) {
        lock(&self.dir.passed).all = true;
    }
}

impl Scout {
    /// For a directory that the import enters: `below` are its names below the source, `key` are its device
    /// and inode, `dev` is the device of the source, `before` is what earlier imports have of it,
    /// `names` are what it holds, sorted.
    pub(super) fn new(
        ahead: &Ahead<'_>,
        fd: &Arc<OwnedFd>,
        below: &[Vec<u8>],
        key: (u64, u64),
        dev: u64,
        before: Dirs,
        names: &[Listed],
    ) -> Scout {
        let mut state = lock(&ahead.state);
        let found = state.known.iter().position(|known| known.key == key);
        let known = found.and_then(|at| state.known.remove(at));
        drop(state);
        let after = |last: &Vec<u8>| names.partition_point(|(name, _)| name <= last);
        let (told, told_dirs) = known.as_ref().map_or((0, 0), |k| (after(&k.told), after(&k.told_dirs)));
        let dirs = names[..told_dirs].iter().filter(|(_, kind)| *kind == Kind::Directory).count();
        let passed = known.map(|known| known.passed).unwrap_or_default();
        let dir = Dir { fd: Arc::clone(fd), below: below.to_vec(), dev, level: 0, before, passed };
        Scout { dir: Arc::new(dir), told, told_dirs, dirs }
    }

    /// To be called before the import takes `names[at]`.
    pub(super) fn step(&mut self, ahead: &Ahead<'_>, names: &[Listed], at: usize) {
        let Some((name, kind)) = names.get(at) else { return };
        {
            let mut passed = lock(&self.dir.passed);
            passed.name.clone_from(name);
        }
        if *kind == Kind::Directory && at < self.told_dirs {
            self.dirs = self.dirs.saturating_sub(1);
        }
        let mut jobs = Vec::new();
        let job = |name: &Vec<u8>| Job { dir: Arc::clone(&self.dir), name: name.clone() };
        // Half a window at a time, not to wake threads for each name.
        if self.told < names.len() && self.told <= at + WINDOW / 2 {
            let end = names.len().min(at + 1 + WINDOW);
            let more = names[self.told.max(at + 1).min(end)..end].iter();
            jobs.extend(more.filter(|(_, kind)| *kind != Kind::Directory).map(|(name, _)| job(name)));
            self.told = end;
        }
        self.told_dirs = self.told_dirs.max(at + 1);
        while self.dirs < DIRS && self.told_dirs < names.len().min(at + 1 + 4 * WINDOW) {
            let (name, kind) = &names[self.told_dirs];
            if *kind == Kind::Directory {
                jobs.push(job(name));
                self.dirs += 1;
            }
            self.told_dirs += 1;
        }
        if jobs.is_empty() {
            return;
        }
        let mut state = lock(&ahead.state);
        state.near.extend(jobs);
        // The oldest are those that the import is about to pass.
        let surplus = state.near.len().saturating_sub(NEAR_MAX);
        state.near.drain(..surplus);
        drop(state);
        ahead.wake.notify_all();
    }
}

/// Returns names in a directory, sorted, with the error that ended the listing early. Once there are `max`
/// names the rest is left out.
pub(super) fn list(fd: &OwnedFd, max: usize) -> (Vec<Listed>, Option<Errno>) {
    let mut names = Vec::new();
    let mut error = None;
    let mut buffer = Vec::with_capacity(64 << 10);
    let mut dir = rustix::fs::RawDir::new(fd, buffer.spare_capacity_mut());
    while names.len() < max
        && let Some(entry) = dir.next()
    {
        match entry {
            Ok(entry) => {
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    names.push((name.to_vec(), entry.file_type()));
                }
            }
            Err(e) => {
                error = Some(e);
                break;
            }
        }
    }
    names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    // A directory that changes while it is read may show a name twice.
    names.dedup_by(|(a, _), (b, _)| a == b);
    (names, error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;

    /// Enters a directory as an import does.
    fn enter(ahead: &Ahead<'_>, path: &Path, below: &[Vec<u8>]) -> (Scout, Vec<Listed>) {
        let fd = Arc::new(OwnedFd::from(std::fs::File::open(path).unwrap()));
        let meta = std::fs::metadata(path).unwrap();
        let (names, error) = list(&fd, usize::MAX);
        assert_eq!(error, None);
        (Scout::new(ahead, &fd, below, (meta.dev(), meta.ino()), meta.dev(), Dirs::new(), &names), names)
    }

    /// Does what is queued, in this thread, and returns what was touched since the last call.
    fn touched(ahead: &Ahead<'_>) -> Vec<String> {
        loop {
            let mut state = lock(&ahead.state);
            let Some(job) = state.near.pop_front().or_else(|| state.far.pop_front()) else { break };
            drop(state);
            ahead.one(&job);
        }
        std::mem::take(&mut *lock(&ahead.touched))
    }

    fn at(names: &[Listed], name: &str) -> usize {
        names.iter().position(|(found, _)| found == name.as_bytes()).unwrap()
    }

    #[test]
    fn each_name_is_read_ahead_once_and_soon_enough() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..500 {
            std::fs::write(dir.path().join(format!("{n:03}")), "x").unwrap();
        }
        let ahead = Ahead::new(Rules::default(), None);
        let (mut scout, names) = enter(&ahead, dir.path(), &[]);
        let mut seen = Vec::new();
        for at in 0..names.len() {
            scout.step(&ahead, &names, at);
            seen.extend(touched(&ahead));
            assert!(seen.len() <= at + WINDOW, "not too far: {} at {at}", seen.len());
            assert!(seen.len() >= (at + WINDOW / 2 - 1).min(499), "far enough: {} at {at}", seen.len());
        }
        // The first one is the import's own: it is there already.
        let all: Vec<String> = (1..500).map(|n| format!("{n:03}")).collect();
        assert_eq!(seen, all);
        scout.step(&ahead, &names, names.len());
        assert_eq!(touched(&ahead), [""; 0]);
    }

    #[test]
    fn what_the_import_has_passed_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..60 {
            std::fs::write(dir.path().join(format!("{n:02}")), "x").unwrap();
        }
        let ahead = Ahead::new(Rules::default(), None);
        let (mut scout, names) = enter(&ahead, dir.path(), &[]);
        scout.step(&ahead, &names, 0);
        scout.step(&ahead, &names, 57);
        assert_eq!(touched(&ahead), ["58", "59"]);
        let (mut scout, names) = enter(&ahead, dir.path(), &[]);
        scout.step(&ahead, &names, 0);
        drop(scout);
        assert_eq!(touched(&ahead), [""; 0], "the import has left the directory");
    }

    #[test]
    fn directories_ahead_are_looked_into_and_not_again_when_the_import_comes() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a", "d/1/x", "d/1/y/z", "d/2", "e/3", "f", "g/4", "h/5", "i/6"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let ahead = Ahead::new(Rules::default(), None);
        let (mut scout, names) = enter(&ahead, dir.path(), &[]);
        scout.step(&ahead, &names, 0);
        let mut seen = touched(&ahead);
        seen.sort();
        let first = ["d", "d/1", "d/1/x", "d/1/y", "d/1/y/z", "d/2", "e", "e/3", "f", "g", "g/4", "h", "h/5"];
        assert_eq!(seen, first);
        // Another directory is looked into for each one that is reached.
        scout.step(&ahead, &names, at(&names, "d"));
        let mut seen = touched(&ahead);
        seen.sort();
        assert_eq!(seen, ["i", "i/6"]);
        let (mut inner, inside) = enter(&ahead, &dir.path().join("d"), &[b"d".to_vec()]);
        inner.step(&ahead, &inside, 0);
        assert_eq!(touched(&ahead), [""; 0], "all of it was read ahead");
    }

    #[test]
    fn access_times_stay_as_the_import_will_find_them() {
        use rustix::fs::{CWD, Timespec, Timestamps};
        let dir = tempfile::tempdir().unwrap();
        let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/file"), "x").unwrap();
        std::fs::write(dir.path().join("a"), "x").unwrap();
        let keep = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        for path in ["d/file", "d"] {
            let times = Timestamps { last_access: old, last_modification: keep };
            rustix::fs::utimensat(CWD, dir.path().join(path), &times, AtFlags::empty()).unwrap();
        }
        let ahead = Ahead::new(Rules::default(), None);
        let (mut scout, names) = enter(&ahead, dir.path(), &[]);
        scout.step(&ahead, &names, 0);
        assert_eq!(touched(&ahead), ["d", "d/file"]);
        for path in ["d/file", "d"] {
            assert_eq!(std::fs::metadata(dir.path().join(path)).unwrap().atime(), 1_000_000_000, "{path}");
        }
    }

    #[test]
    fn what_the_import_leaves_out_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a", "b.log", "c/d.log", "c/e", "c/no/f", "no/g", "skip/h", "z"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let meta = std::fs::metadata(dir.path().join("skip")).unwrap();
        let rules = Rules {
            excludes: Excludes::new(&["*.log", "/c/no"]).unwrap(),
            skip: HashSet::from([(meta.dev(), meta.ino())]),
            one_file_system: true,
        };
        let ahead = Ahead::new(rules, None);
        let (mut scout, names) = enter(&ahead, dir.path(), &[]);
        scout.step(&ahead, &names, 0);
        let mut seen = touched(&ahead);
        seen.sort();
        assert_eq!(seen, ["c", "c/e", "no", "no/g", "skip", "z"]);
        // The same directory, were the source on another filesystem.
        let fd = Arc::clone(&scout.dir.fd);
        let (below, dev, passed) = (Vec::new(), meta.dev() + 1, Arc::default());
        let dir = Arc::new(Dir { fd, below, dev, level: 0, before: Dirs::new(), passed });
        ahead.one(&Job { dir, name: b"c".to_vec() });
        assert_eq!(touched(&ahead), ["c"], "it is examined, not entered");
    }

    #[test]
    fn fifos_links_and_what_is_gone_hold_nobody_up() {
        use rustix::fs::CWD;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "x").unwrap();
        std::fs::write(dir.path().join("gone"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        rustix::fs::mknodat(CWD, dir.path().join("fifo"), Kind::Fifo, Mode::RWXU, 0).unwrap();
        let ahead = Ahead::new(Rules::default(), None);
        std::thread::scope(|scope| {
            scope.spawn(|| ahead.work());
            scope.spawn(|| ahead.work());
            let running = Running(&ahead);
            let (mut scout, names) = enter(&ahead, dir.path(), &[]);
            std::fs::remove_file(dir.path().join("gone")).unwrap();
            scout.step(&ahead, &names, 0);
            while lock(&ahead.touched).len() < 2 {
                std::thread::yield_now();
            }
            drop(running);
        });
        let mut seen = touched(&ahead);
        seen.sort();
        assert_eq!(seen, ["fifo", "link"]);
    }
}
