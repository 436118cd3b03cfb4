//! Files of a vault: the only module that touches them.
//!
//! Everything above sees the traits [`Disk`] and [`DiskFile`], so a whole vault runs inside a test on a
//! [`SimDisk`] that loses power at any moment, or behind a [`FaultyDisk`] that fails on command.
//!
//! Paths are relative to the vault's root, ASCII, separated by `/`, without empty, `.` or `..` components.
//! The empty path names the root directory itself, where a directory is expected.
//!
//! # What is assumed about disks
//!
//! - `sync_data` makes a file's bytes and length durable, `sync_dir` the names in one directory. Nothing else does.
//! - Until then a power cut may keep, drop or tear each write independently, in any order.
//! - Names of one directory become durable in the order of their changes; a rename within a directory is atomic, and
//!   one across directories never leaves the file without a name (docs/format.md section 8).
//! - A power cut damages no 512-byte sector that was not being written.
//! - After a failed `sync_data` nothing is known about the file; callers stop writing (see `store::poison`).

mod faulty;
mod notify;
mod real;
mod sim;

use std::fmt;
use std::io;
use std::sync::Arc;

pub use faulty::{Fault, FaultErrno, FaultKind, FaultOp, Faults, FaultyDisk};
pub use notify::Notify;
pub use real::RealDisk;
pub use sim::{CrashMode, SimDisk, is_power_off};

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// A file that must not exist yet, for reading and writing; only its owner may touch it.
    CreateNew,
}

/// One entry of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirItem {
    /// The name; bytes that are not UTF-8 are replaced, and then [`DirItem::lossy`] is set.
    pub name: String,
    /// The name is not valid UTF-8, so it can't be opened through this module.
    pub lossy: bool,
    /// A directory. Anything that is neither a directory nor a regular file is listed as a file of length 0.
    pub is_dir: bool,
    /// Length in bytes of a regular file, 0 for anything else.
    pub len: u64,
}

/// Space on the filesystem that holds the vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the filesystem in bytes.
    pub total: u64,
    /// Bytes that may still be written. Blocks that the administrator reserved for root don't count, not even
    /// for root: they keep the system alive, not backups, and df(1) shows the same figure.
    pub available: u64,
    /// Inodes of the filesystem; 0 where it has no fixed number.
    pub files_total: u64,
    /// Free inodes; 0 with `files_total` 0 means there is no limit.
    pub files_free: u64,
}

/// A directory tree of files with explicit durability.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Opens a regular file. Anything else at that path (a symbolic link, a fifo, ...) is `InvalidData`.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, replacing what has the new name. Durable after [`Disk::sync_dir`] of both parents.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Renames a file to a name that nothing has yet; what is there is left alone, and the error is `AlreadyExists`.
    /// Durable after [`Disk::sync_dir`] of both parents.
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Durable after [`Disk::sync_dir`] of its parent.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Creates a directory and what is missing above it, private to its owner, and makes the new names durable.
    fn create_dir_all(&self, path: &str) -> io::Result<()>;

    /// Lists a directory in order of names. A missing directory is `NotFound`.
    fn list(&self, dir: &str) -> io::Result<Vec<DirItem>>;

    /// Returns the length in bytes of a regular file, or `None` when there is no such file.
    fn len(&self, path: &str) -> io::Result<Option<u64>>;

    /// Makes all changes of names in one directory durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// Returns how much room the filesystem has.
    fn space(&self) -> io::Result<Space>;

    /// Takes an exclusive lock without waiting, creating the file when it is missing. `None` when another holds it;
    /// [`Disk::read_file`] then reads the note that the holder left.
    fn lock(&self, path: &str) -> io::Result<Option<Box<dyn DiskLock>>>;

    /// Reads a whole file of at most `max` bytes; a longer one is `InvalidData`.
    fn read_file(&self, path: &str, max: u64) -> io::Result<Vec<u8>> {
        let file = self.open(path, OpenMode::Read)?;
        let len = file.len()?;
        if len > max {
            let text = format!("{path}: {len} bytes, more than the {max} expected");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let size = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mut data = vec![0; size];
        file.read_exact_at(&mut data, 0)?;
        Ok(data)
    }

    /// Replaces a file so that after a crash it has its old or its new content, whole. Durable on return.
    /// A left-over `<path>.tmp` is replaced, so callers must not write the same path from two threads.
    fn write_file_atomic(&self, path: &str, data: &[u8]) -> io::Result<()> {
        let tmp = format!("{path}.tmp");
        match self.remove(&tmp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = self.open(&tmp, OpenMode::CreateNew)?;
        let written =
            file.write_all_at(data, 0).and_then(|()| file.sync_data()).and_then(|()| self.rename(&tmp, path));
        if let Err(e) = written {
            // The first error is the one to report. A file left behind is replaced by the next attempt.
            drop(self.remove(&tmp));
            return Err(e);
        }
        self.sync_dir(parent(path))
    }
}

/// An open file with positional, thread-safe I/O.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Reads up to `buf.len()` bytes at `off`; 0 at or after the end. Fewer than asked is possible anywhere.
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `off`, extending the file as needed. Not durable before [`DiskFile::sync_data`].
    fn write_all_at(&self, buf: &[u8], off: u64) -> io::Result<()>;

    /// Makes content and length durable (fdatasync). The file's name is [`Disk::sync_dir`]'s business.
    fn sync_data(&self) -> io::Result<()>;

    /// Returns the length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or extends (with zeros) the file to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reserves room for `len` bytes at `off` without changing the file's length, so that a full disk is found now
    /// (`StorageFull`). Filesystems that can't reserve succeed if enough space is free at the moment.
    fn allocate(&self, off: u64, len: u64) -> io::Result<()>;

    /// Asks the system to write dirty data of this range to the disk soon. A hint: it never fails, and makes
    /// nothing durable.
    fn start_writeback(&self, off: u64, len: u64);

    /// Reads exactly `buf.len()` bytes at `off`; a file that ends before that is `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_at(&mut buf[done..], off + done as u64) {
                Ok(0) => {
                    let text = format!("the file ends before offset {}", off + buf.len() as u64);
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Tells whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// An exclusive lock, released when dropped.
pub trait DiskLock: Send + Sync + fmt::Debug {
    /// Replaces the note in the lock file that tells others who holds it (process id, purpose).
    fn write_note(&self, note: &[u8]) -> io::Result<()>;
}

/// Returns the directory part of a path, empty for a name in the root.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Tells whether an error means that the disk, or our quota of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Splits a path into its components, refusing whatever could leave the vault.
fn components(path: &str) -> io::Result<Vec<&str>> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.bytes().any(|b| b == 0);
    let parts: Vec<&str> = path.split('/').collect();
    if parts.iter().any(|part| bad(part)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path:?} is not a path inside a vault"),
        ));
    }
    Ok(parts)
}

/// Splits the path of a file into its directory and its name.
fn split(path: &str) -> io::Result<(&str, &str)> {
    components(path)?;
    match path.rsplit_once('/') {
        Some(parts) => Ok(parts),
        None if path.is_empty() => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "the vault's root is not a file".to_string()))
        }
        None => Ok(("", path)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What every implementation must do, run on each of them.
    pub(super) fn check_contract(disk: &dyn Disk) {
        let kind = |r: io::Result<()>| r.unwrap_err().kind();
        disk.create_dir_all("a/b").unwrap();
        disk.create_dir_all("a/b").unwrap();
        disk.create_dir_all("").unwrap();
        let file = disk.open("a/b/one", OpenMode::CreateNew).unwrap();
        assert_eq!(
            disk.open("a/b/one", OpenMode::CreateNew).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(disk.open("a/b/two", OpenMode::Read).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.open("x/two", OpenMode::CreateNew).unwrap_err().kind(), io::ErrorKind::NotFound);
        disk.open("a/b", OpenMode::Read).unwrap_err();
        file.write_all_at(b"hello", 10_000).unwrap();
        assert_eq!(file.len().unwrap(), 10_005);
        let mut buf = [9; 8];
        assert_eq!(file.read_at(&mut buf, 9_998).unwrap(), 7);
        assert_eq!(&buf, b"\0\0hello\x09");
        assert_eq!(file.read_at(&mut buf, 10_005).unwrap(), 0);
        assert_eq!(file.read_at(&mut buf, u64::MAX / 4).unwrap(), 0);
        assert_eq!(kind(file.read_exact_at(&mut buf, 9_998)), io::ErrorKind::UnexpectedEof);
        file.set_len(10_002).unwrap();
        file.set_len(10_004).unwrap();
        file.read_exact_at(&mut buf[..4], 10_000).unwrap();
        assert_eq!(&buf[..4], b"he\0\0");
        file.allocate(0, 100_000).unwrap();
        assert_eq!(file.len().unwrap(), 10_004);
        file.start_writeback(0, 10_004);
        file.sync_data().unwrap();
        disk.sync_dir("a/b").unwrap();
        disk.sync_dir("").unwrap();
        disk.write_file_atomic("a/top", b"first").unwrap();
        disk.write_file_atomic("a/top", b"second").unwrap();
        assert_eq!(disk.read_file("a/top", 6).unwrap(), b"second");
        assert_eq!(disk.read_file("a/top", 5).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(disk.len("a/top").unwrap(), Some(6));
        assert_eq!(disk.len("a/none").unwrap(), None);
        assert_eq!(disk.len("none/none").unwrap(), None);
        let items = disk.list("a").unwrap();
        let names: Vec<_> = items.iter().map(|i| (i.name.as_str(), i.is_dir, i.len)).collect();
        assert_eq!(names, [("b", true, 0), ("top", false, 6)]);
        assert_eq!(disk.list("none").unwrap_err().kind(), io::ErrorKind::NotFound);
        disk.rename("a/b/one", "a/top").unwrap();
        assert_eq!(disk.len("a/top").unwrap(), Some(10_004));
        assert_eq!(disk.len("a/b/one").unwrap(), None);
        assert_eq!(kind(disk.rename("a/b/one", "a/x")), io::ErrorKind::NotFound);
        disk.write_file_atomic("a/other", b"other").unwrap();
        assert_eq!(kind(disk.rename_new("a/other", "a/top")), io::ErrorKind::AlreadyExists);
        assert_eq!(kind(disk.rename_new("a/other", "a/b")), io::ErrorKind::AlreadyExists);
        assert_eq!(disk.len("a/top").unwrap(), Some(10_004));
        disk.rename_new("a/other", "a/b/fresh").unwrap();
        assert_eq!((disk.len("a/other").unwrap(), disk.len("a/b/fresh").unwrap()), (None, Some(5)));
        assert_eq!(kind(disk.rename_new("a/other", "a/x")), io::ErrorKind::NotFound);
        disk.remove("a/b/fresh").unwrap();
        disk.remove("a/top").unwrap();
        assert_eq!(kind(disk.remove("a/top")), io::ErrorKind::NotFound);
        // An open file outlives its name.
        file.read_exact_at(&mut buf[..2], 10_000).unwrap();
        assert_eq!(&buf[..2], b"he");
        for bad in ["/etc/passwd", "../x", "a/../x", "a//x", "a/./x", "a/", "a/\0"] {
            assert_eq!(
                disk.open(bad, OpenMode::CreateNew).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{bad}"
            );
            assert_eq!(kind(disk.remove(bad)), io::ErrorKind::InvalidInput, "{bad}");
            assert_eq!(kind(disk.create_dir_all(bad)), io::ErrorKind::InvalidInput, "{bad}");
        }
        let lock = disk.lock("a/lock").unwrap().unwrap();
        lock.write_note(b"a longer note").unwrap();
        lock.write_note(b"me").unwrap();
        assert!(disk.lock("a/lock").unwrap().is_none());
        assert_eq!(disk.read_file("a/lock", 100).unwrap(), b"me");
        drop(lock);
        assert!(disk.lock("a/lock").unwrap().is_some());
        let space = disk.space().unwrap();
        assert!(space.available <= space.total && space.available > 0);
    }

    #[test]
    fn parents() {
        assert_eq!(parent("a/b/c"), "a/b");
        assert_eq!(parent("a"), "");
    }
}
