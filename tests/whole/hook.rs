//! A disk that remembers itself: before each sync, and before some other changes, it keeps a copy of the vault's disk and
//! of the disk with the host's state, both as they are at that moment. Each copy is a power cut that could have happened.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strongroom::disk::{DirItem, Disk, DiskFile, DiskLock, OpenMode, SimDisk, Space};

use super::rng::Rng;

/// A moment at which the power could go off.
#[derive(Clone)]
pub struct Point {
    /// `s12`: before the 12th sync since recording began; `o34`: before the 34th other change.
    pub name: String,
    /// What was about to be done.
    pub what: String,
    /// Steps of the workload that had begun.
    pub begun: usize,
    /// Steps that had returned.
    pub done: usize,
    pub vault: SimDisk,
    pub state: SimDisk,
}

impl Point {
    pub fn is_sync(&self) -> bool {
        self.name.starts_with('s')
    }
}

/// Collects points.
#[derive(Debug)]
pub struct Recorder {
    vault: SimDisk,
    state: SimDisk,
    pub begun: AtomicUsize,
    pub done: AtomicUsize,
    armed: AtomicBool,
    /// So many of 100 changes that are no syncs are kept.
    plain_percent: u64,
    inner: Mutex<Inner>,
}

struct Inner {
    rng: Rng,
    syncs: u64,
    others: u64,
    points: Vec<Point>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} points", self.points.len())
    }
}

impl Recorder {
    pub fn new(vault: &SimDisk, state: &SimDisk, seed: u64, plain_percent: u64) -> Arc<Recorder> {
        Arc::new(Recorder {
            vault: vault.clone(),
            state: state.clone(),
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            armed: AtomicBool::new(true),
            plain_percent,
            inner: Mutex::new(Inner { rng: Rng(seed), syncs: 0, others: 0, points: Vec::new() }),
        })
    }

    /// The two disks, watched.
    pub fn disks(self: &Arc<Self>) -> (Arc<dyn Disk>, Arc<dyn Disk>) {
        let hook = |inner: &SimDisk, place| -> Arc<dyn Disk> {
            Arc::new(HookDisk { inner: inner.clone(), recorder: Arc::clone(self), place })
        };
        (hook(&self.vault, "vault"), hook(&self.state, "state"))
    }

    /// Keeps the present moment, too, and stops recording.
    pub fn finish(&self) -> Vec<Point> {
        self.note(true, "the end", "");
        self.armed.store(false, Ordering::SeqCst);
        std::mem::take(&mut self.lock().points)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, sync: bool, what: &str, path: &str) {
        if !self.armed.load(Ordering::SeqCst) {
            return;
        }
        let mut inner = self.lock();
        let name = if sync {
            inner.syncs += 1;
            format!("s{}", inner.syncs)
        } else {
            inner.others += 1;
            if !inner.rng.percent(self.plain_percent) {
                return;
            }
            format!("o{}", inner.others)
        };
        let point = Point {
            name,
            what: format!("{what} {path}"),
            begun: self.begun.load(Ordering::SeqCst),
            done: self.done.load(Ordering::SeqCst),
            vault: self.vault.fork(),
            state: self.state.fork(),
        };
        inner.points.push(point);
    }
}

#[derive(Debug)]
struct HookDisk {
    inner: SimDisk,
    recorder: Arc<Recorder>,
    place: &'static str,
}

impl HookDisk {
    fn note(&self, sync: bool, what: &str, path: &str) {
        self.recorder.note(sync, what, &format!("{}:{path}", self.place));
    }
}

impl Disk for HookDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        if mode == OpenMode::CreateNew {
            self.note(false, "create", path);
        }
        let inner = self.inner.open(path, mode)?;
        let path = format!("{}:{path}", self.place);
        Ok(Arc::new(HookFile { inner, recorder: Arc::clone(&self.recorder), path }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.note(false, "rename", from);
        self.inner.rename(from, to)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.note(false, "rename", from);
        self.inner.rename_new(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.note(false, "remove", path);
        self.inner.remove(path)
    }

    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        if self.inner.list(path).is_err() {
            self.note(true, "create_dir", path);
        }
        self.inner.create_dir_all(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<DirItem>> {
        self.inner.list(dir)
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        self.inner.len(path)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.note(true, "sync_dir", dir);
        self.inner.sync_dir(dir)
    }

    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }

    fn lock(&self, path: &str) -> io::Result<Option<Box<dyn DiskLock>>> {
        self.inner.lock(path)
    }
}

#[derive(Debug)]
struct HookFile {
    inner: Arc<dyn DiskFile>,
    recorder: Arc<Recorder>,
    path: String,
}

impl DiskFile for HookFile {
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        self.inner.read_at(buf, off)
    }

    fn write_all_at(&self, buf: &[u8], off: u64) -> io::Result<()> {
        self.recorder.note(false, "write", &self.path);
        self.inner.write_all_at(buf, off)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.recorder.note(true, "sync", &self.path);
        self.inner.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.recorder.note(false, "set_len", &self.path);
        self.inner.set_len(len)
    }

    fn allocate(&self, off: u64, len: u64) -> io::Result<()> {
        self.inner.allocate(off, len)
    }

    fn start_writeback(&self, off: u64, len: u64) {
        self.inner.start_writeback(off, len);
    }
}
