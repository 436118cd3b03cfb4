//! Faults on command: a disk behind which chosen operations fail, fail after they took effect, come back short, or
//! return flipped bits.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{DirItem, Disk, DiskFile, DiskLock, OpenMode, Space};

/// The kinds of operations that faults choose between and counters count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultOp {
    /// Opening an existing file.
    Open,
    /// Creating a file or directory, or taking a lock.
    Create,
    /// Reading from a file.
    Read,
    /// Writing to a file.
    Write,
    /// Changing a file's length.
    SetLen,
    /// Reserving space.
    Allocate,
    /// Syncing a file.
    Sync,
    /// Syncing a directory.
    SyncDir,
    /// Renaming (matched by the old path).
    Rename,
    /// Removing a file.
    Remove,
    /// Listing, asking for lengths or for free space.
    Stat,
}

/// Which system error a fault produces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultErrno {
    /// The device failed.
    Eio,
    /// The disk is full.
    Enospc,
}

impl FaultErrno {
    fn error(self) -> io::Error {
        io::Error::from(match self {
            FaultErrno::Eio => rustix::io::Errno::IO,
            FaultErrno::Enospc => rustix::io::Errno::NOSPC,
        })
    }
}

/// What happens when a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Nothing is done, and the error is returned.
    Fail(FaultErrno),
    /// The operation takes effect, and the error is returned all the same.
    FailAfter(FaultErrno),
    /// A read returns at most this many bytes (at least 1). Other operations are not affected.
    ShortRead(usize),
    /// A write stores at most this many bytes and then fails: the device gave up in the middle. Other operations are not
    /// affected.
    ShortWrite(usize),
    /// A read that covers this byte of the file sees one bit of it flipped. Other operations are not affected.
    FlipBit {
        /// Byte offset in the file.
        offset: u64,
        /// Bit of that byte, 0 to 7.
        bit: u8,
    },
}

/// One planned fault.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operations it strikes.
    pub op: FaultOp,
    /// Only paths that start with this; empty for all.
    pub prefix: String,
    /// How many matching operations pass first.
    pub skip: u64,
    /// How many matching operations it strikes after that; `u64::MAX` for all.
    pub times: u64,
    /// What it does.
    pub kind: FaultKind,
}

#[derive(Debug, Default)]
struct Plan {
    faults: Vec<Fault>,
    counts: BTreeMap<FaultOp, u64>,
    /// The paths of the operations that were struck.
    struck: Vec<String>,
}

/// The controller of a [`FaultyDisk`]; clones share one plan.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    plan: Arc<Mutex<Plan>>,
}

impl Faults {
    /// Returns a controller without any fault.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plans a fault.
    pub fn add(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Fails the `n`th operation of a kind from now on, counted from 1, once.
    pub fn fail_nth(&self, op: FaultOp, n: u64, errno: FaultErrno) {
        let kind = FaultKind::Fail(errno);
        self.add(Fault { op, prefix: String::new(), skip: n.saturating_sub(1), times: 1, kind });
    }

    /// Fails all operations of a kind on paths that start with `prefix`, until [`Faults::clear`].
    pub fn fail_all(&self, op: FaultOp, prefix: &str, errno: FaultErrno) {
        let kind = FaultKind::Fail(errno);
        self.add(Fault { op, prefix: prefix.to_string(), skip: 0, times: u64::MAX, kind });
    }

    /// Forgets all planned faults.
    pub fn clear(&self) {
        self.lock().faults.clear();
    }

    /// Returns how many operations of a kind were tried, failed ones included.
    pub fn count(&self, op: FaultOp) -> u64 {
        self.lock().counts.get(&op).copied().unwrap_or(0)
    }

    /// Returns how many operations were struck by a fault.
    pub fn struck(&self) -> u64 {
        self.lock().struck.len() as u64
    }

    /// Returns the paths of the operations that were struck, in order.
    pub fn struck_paths(&self) -> Vec<String> {
        self.lock().struck.clone()
    }

    /// Counts an operation and returns the faults that strike it.
    fn strike(&self, op: FaultOp, path: &str) -> Vec<FaultKind> {
        let mut plan = self.lock();
        *plan.counts.entry(op).or_default() += 1;
        let mut kinds = Vec::new();
        for fault in plan.faults.iter_mut().filter(|f| f.op == op && path.starts_with(&f.prefix)) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 {
                fault.times = if fault.times == u64::MAX { u64::MAX } else { fault.times - 1 };
                kinds.push(fault.kind);
            }
        }
        if !kinds.is_empty() {
            plan.struck.push(path.to_string());
        }
        kinds
    }

    fn run<T>(&self, op: FaultOp, path: &str, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let kinds = self.strike(op, path);
        for kind in &kinds {
            if let FaultKind::Fail(errno) = kind {
                return Err(errno.error());
            }
        }
        let out = act()?;
        for kind in &kinds {
            if let FaultKind::FailAfter(errno) = kind {
                return Err(errno.error());
            }
        }
        Ok(out)
    }
}

/// A disk that misbehaves as its [`Faults`] say.
#[derive(Debug)]
pub struct FaultyDisk<D> {
    inner: D,
    faults: Faults,
}

impl<D: Disk> FaultyDisk<D> {
    /// Puts `faults` in front of a disk.
    pub fn new(inner: D, faults: Faults) -> Self {
        Self { inner, faults }
    }

    /// Returns the disk behind.
    pub fn inner(&self) -> &D {
        &self.inner
    }
}

impl<D: Disk> Disk for FaultyDisk<D> {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let op = if mode == OpenMode::CreateNew { FaultOp::Create } else { FaultOp::Open };
        let file = self.faults.run(op, path, || self.inner.open(path, mode))?;
        Ok(Arc::new(FaultyFile { inner: file, faults: self.faults.clone(), path: path.to_string() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.faults.run(FaultOp::Rename, from, || self.inner.rename(from, to))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.faults.run(FaultOp::Rename, from, || self.inner.rename_new(from, to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.faults.run(FaultOp::Remove, path, || self.inner.remove(path))
    }

    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        self.faults.run(FaultOp::Create, path, || self.inner.create_dir_all(path))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<DirItem>> {
        self.faults.run(FaultOp::Stat, dir, || self.inner.list(dir))
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        self.faults.run(FaultOp::Stat, path, || self.inner.len(path))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.faults.run(FaultOp::SyncDir, dir, || self.inner.sync_dir(dir))
    }

    fn space(&self) -> io::Result<Space> {
        self.faults.run(FaultOp::Stat, "", || self.inner.space())
    }

    fn lock(&self, path: &str) -> io::Result<Option<Box<dyn DiskLock>>> {
        self.faults.run(FaultOp::Create, path, || self.inner.lock(path))
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn DiskFile>,
    faults: Faults,
    path: String,
}

impl FaultyFile {
    fn run<T>(&self, op: FaultOp, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.faults.run(op, &self.path, act)
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        let kinds = self.faults.strike(FaultOp::Read, &self.path);
        let mut limit = buf.len();
        for kind in &kinds {
            match kind {
                FaultKind::Fail(errno) | FaultKind::FailAfter(errno) => return Err(errno.error()),
                FaultKind::ShortRead(max) => limit = limit.min((*max).max(1)),
                FaultKind::ShortWrite(_) | FaultKind::FlipBit { .. } => {}
            }
        }
        let n = self.inner.read_at(&mut buf[..limit], off)?;
        for kind in &kinds {
            if let FaultKind::FlipBit { offset, bit } = kind
                && (off..off + n as u64).contains(offset)
            {
                buf[(offset - off) as usize] ^= 1 << (bit & 7);
            }
        }
        Ok(n)
    }

    fn write_all_at(&self, buf: &[u8], off: u64) -> io::Result<()> {
        let kinds = self.faults.strike(FaultOp::Write, &self.path);
        for kind in &kinds {
            match kind {
                FaultKind::Fail(errno) => return Err(errno.error()),
                FaultKind::ShortWrite(max) => {
                    self.inner.write_all_at(&buf[..buf.len().min(*max)], off)?;
                    return Err(FaultErrno::Eio.error());
                }
                FaultKind::FailAfter(_) | FaultKind::ShortRead(_) | FaultKind::FlipBit { .. } => {}
            }
        }
        self.inner.write_all_at(buf, off)?;
        for kind in &kinds {
            if let FaultKind::FailAfter(errno) = kind {
                return Err(errno.error());
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.run(FaultOp::Sync, || self.inner.sync_data())
    }

    fn len(&self) -> io::Result<u64> {
        self.run(FaultOp::Stat, || self.inner.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.run(FaultOp::SetLen, || self.inner.set_len(len))
    }

    fn allocate(&self, off: u64, len: u64) -> io::Result<()> {
        self.run(FaultOp::Allocate, || self.inner.allocate(off, len))
    }

    fn start_writeback(&self, off: u64, len: u64) {
        self.inner.start_writeback(off, len);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::SimDisk;
    use super::*;

    fn setup() -> (FaultyDisk<SimDisk>, Faults) {
        let faults = Faults::new();
        (FaultyDisk::new(SimDisk::new(1), faults.clone()), faults)
    }

    fn fault(op: FaultOp, kind: FaultKind) -> Fault {
        Fault { op, prefix: String::new(), skip: 0, times: 1, kind }
    }

    #[test]
    fn without_faults_it_keeps_the_contract() {
        let (disk, faults) = setup();
        super::super::tests::check_contract(&disk);
        assert!(faults.count(FaultOp::Write) > 0 && faults.struck() == 0);
    }

    #[test]
    fn fails_the_nth_write_once() {
        let (disk, faults) = setup();
        let file = disk.open("f", OpenMode::CreateNew).unwrap();
        faults.fail_nth(FaultOp::Write, 2, FaultErrno::Enospc);
        file.write_all_at(b"a", 0).unwrap();
        assert_eq!(file.write_all_at(b"b", 1).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 1);
        file.write_all_at(b"b", 1).unwrap();
        assert_eq!((faults.count(FaultOp::Write), faults.struck()), (3, 1));
    }

    #[test]
    fn fails_by_path_until_cleared() {
        let (disk, faults) = setup();
        disk.create_dir_all("packs").unwrap();
        faults.fail_all(FaultOp::Sync, "packs/", FaultErrno::Eio);
        let pack = disk.open("packs/p", OpenMode::CreateNew).unwrap();
        let other = disk.open("other", OpenMode::CreateNew).unwrap();
        for _ in 0..3 {
            assert_eq!(pack.sync_data().unwrap_err().raw_os_error(), Some(5));
            other.sync_data().unwrap();
        }
        faults.clear();
        pack.sync_data().unwrap();
    }

    #[test]
    fn can_fail_after_the_effect() {
        let (disk, faults) = setup();
        disk.write_file_atomic("a", b"x").unwrap();
        faults.add(fault(FaultOp::Rename, FaultKind::FailAfter(FaultErrno::Eio)));
        disk.rename("a", "b").unwrap_err();
        assert_eq!(disk.len("b").unwrap(), Some(1));
    }

    #[test]
    fn writes_stop_in_the_middle() {
        let (disk, faults) = setup();
        let file = disk.open("f", OpenMode::CreateNew).unwrap();
        faults.add(fault(FaultOp::Write, FaultKind::ShortWrite(2)));
        faults.add(fault(FaultOp::Sync, FaultKind::ShortWrite(2)));
        assert_eq!(file.write_all_at(b"abcdef", 1).unwrap_err().raw_os_error(), Some(5));
        assert_eq!(file.len().unwrap(), 3);
        file.sync_data().unwrap();
        faults.add(fault(FaultOp::Write, FaultKind::FailAfter(FaultErrno::Enospc)));
        file.write_all_at(b"abcdef", 1).unwrap_err();
        assert_eq!(file.len().unwrap(), 7);
    }

    #[test]
    fn shortens_and_corrupts_reads() {
        let (disk, faults) = setup();
        let file = disk.open("f", OpenMode::CreateNew).unwrap();
        file.write_all_at(b"abcdef", 0).unwrap();
        faults.add(fault(FaultOp::Read, FaultKind::ShortRead(2)));
        let mut buf = [0; 6];
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 2);
        faults.add(fault(FaultOp::Read, FaultKind::ShortRead(2)));
        file.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"abcdef");
        faults.add(fault(FaultOp::Read, FaultKind::FlipBit { offset: 3, bit: 0 }));
        file.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"abceef");
        faults.add(fault(FaultOp::Read, FaultKind::FlipBit { offset: 3, bit: 0 }));
        file.read_exact_at(&mut buf[..2], 4).unwrap();
        assert_eq!(&buf[..2], b"ef");
    }
}
