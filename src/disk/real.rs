//! The real filesystem.
//!
//! A vault may have been prepared by an attacker, so nothing inside it is followed: every path is resolved beneath
//! the directory descriptor taken at the start, symbolic links are refused, and only regular files are opened.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    Advice, AtFlags, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags,
    StatVfs, fadvise, fallocate, flock, fstat, fstatvfs, fsync, linkat, mkdirat, openat, openat2, renameat,
    renameat_with, statat, unlinkat,
};
use rustix::io::{Errno, retry_on_intr};

use super::{DirItem, Disk, DiskFile, DiskLock, OpenMode, Space, components, parent, split};

const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIR_MODE: Mode = Mode::RWXU;

/// A vault's directory on a mounted filesystem.
#[derive(Debug)]
pub struct RealDisk {
    root: OwnedFd,
}

impl RealDisk {
    /// Opens an existing directory. Symbolic links are followed here and only here: the user named this path.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))
            .map_err(|e| describe("open", &path.display().to_string(), e))?;
        Ok(Self { root })
    }

    /// Opens whatever is at `path`, without following links anywhere.
    fn open_beneath(&self, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { "." } else { path };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // EAGAIN: the kernel saw a concurrent rename and could not prove that the walk stayed beneath.
        for _ in 0..16 {
            match openat2(&self.root, path, flags, mode, resolve) {
                Err(Errno::INTR | Errno::AGAIN) => {}
                // Kernels before 5.6, and seccomp filters that don't know the call.
                Err(Errno::NOSYS | Errno::PERM) => return self.open_stepwise(path, flags, mode),
                other => return other,
            }
        }
        self.open_stepwise(path, flags, mode)
    }

    /// Does what `openat2` does with one `openat` a component. `O_NOFOLLOW` on each refuses links, and paths have
    /// no `..` (see `components`).
    fn open_stepwise(&self, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut dir: Option<OwnedFd> = None;
        let (above, name) = path.rsplit_once('/').map_or((None, path), |(above, name)| (Some(above), name));
        for part in above.into_iter().flat_map(|above| above.split('/')) {
            let at: BorrowedFd<'_> = dir.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            dir = Some(retry_on_intr(|| openat(at, part, step, Mode::empty()))?);
        }
        let at: BorrowedFd<'_> = dir.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
        retry_on_intr(|| openat(at, name, flags, mode))
    }

    fn open_dir(&self, dir: &str, flags: OFlags) -> io::Result<OwnedFd> {
        components(dir)?;
        self.open_beneath(dir, flags | OFlags::DIRECTORY, Mode::empty())
            .map_err(|e| describe("open directory", dir, e))
    }

    /// Opens a regular file. `O_NONBLOCK` so that a fifo put in its place doesn't stop us before it is refused.
    fn open_regular(&self, path: &str, flags: OFlags) -> io::Result<File> {
        split(path)?;
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        // openat2 refuses a mode for a file that it doesn't create.
        let mode = if flags.contains(OFlags::CREATE) { FILE_MODE } else { Mode::empty() };
        let fd = self.open_beneath(path, flags, mode).map_err(|e| describe("open", path, e))?;
        let stat = fstat(&fd).map_err(|e| describe("stat", path, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(not_regular(path));
        }
        Ok(File::from(fd))
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let flags = match mode {
            OpenMode::Read => OFlags::RDONLY,
            OpenMode::ReadWrite => OFlags::RDWR,
            OpenMode::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        let file = self.open_regular(path, flags)?;
        Ok(Arc::new(RealFile { file, path: path.to_string() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from)?, split(to)?);
        let from_fd = self.open_dir(from_dir, OFlags::PATH)?;
        let to_fd = self.open_dir(to_dir, OFlags::PATH)?;
        renameat(&from_fd, from_name, &to_fd, to_name).map_err(|e| describe("rename", from, e))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from)?, split(to)?);
        let from_fd = self.open_dir(from_dir, OFlags::PATH)?;
        let to_fd = self.open_dir(to_dir, OFlags::PATH)?;
        match renameat_with(&from_fd, from_name, &to_fd, to_name, RenameFlags::NOREPLACE) {
            // NFS knows no flags, but it knows links.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                linkat(&from_fd, from_name, &to_fd, to_name, AtFlags::empty())
                    .map_err(|e| describe("link", from, e))?;
                unlinkat(&from_fd, from_name, AtFlags::empty()).map_err(|e| describe("remove", from, e))
            }
            other => other.map_err(|e| describe("rename", from, e)),
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let (dir, name) = split(path)?;
        let fd = self.open_dir(dir, OFlags::PATH)?;
        unlinkat(&fd, name, AtFlags::empty()).map_err(|e| describe("remove", path, e))
    }

    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        let parts = components(path)?;
        let mut at = 0;
        for part in parts {
            let end = at + part.len();
            let (dir, here) = (parent(&path[..end]), &path[..end]);
            let fd = self.open_dir(dir, OFlags::RDONLY)?;
            match mkdirat(&fd, part, DIR_MODE) {
                Ok(()) => fsync(&fd).map_err(|e| describe("sync directory", dir, e))?,
                Err(Errno::EXIST) => {
                    let stat = statat(&fd, part, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(|e| describe("stat", here, e))?;
                    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                        return Err(describe("create directory", here, Errno::NOTDIR));
                    }
                }
                Err(e) => return Err(describe("create directory", here, e)),
            }
            at = end + 1;
        }
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<DirItem>> {
        let fd = self.open_dir(dir, OFlags::RDONLY)?;
        let fail = |e| describe("list", dir, e);
        let mut items = Vec::new();
        for entry in Dir::read_from(&fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Removed since the directory was read.
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(fail(e)),
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            let len =
                if kind == FileType::RegularFile { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
            items.push(DirItem {
                name: name.to_string_lossy().into_owned(),
                lossy: name.to_str().is_err(),
                is_dir: kind == FileType::Directory,
                len,
            });
        }
        items.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(items)
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        let (dir, name) = split(path)?;
        let fd = match self.open_dir(dir, OFlags::PATH) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let stat = match statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(|e| describe("stat", path, e))?,
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(not_regular(path));
        }
        Ok(Some(u64::try_from(stat.st_size).unwrap_or(0)))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let fd = self.open_dir(dir, OFlags::RDONLY)?;
        retry_on_intr(|| fsync(&fd)).map_err(|e| describe("sync directory", dir, e))
    }

    fn space(&self) -> io::Result<Space> {
        let stat = fstatvfs(&self.root).map_err(|e| describe("measure free space", "", e))?;
        Ok(Space {
            total: stat.f_frsize.saturating_mul(stat.f_blocks),
            available: available(&stat),
            files_total: stat.f_files,
            files_free: stat.f_favail,
        })
    }

    fn lock(&self, path: &str) -> io::Result<Option<Box<dyn DiskLock>>> {
        let file = self.open_regular(path, OFlags::RDWR | OFlags::CREATE)?;
        match retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => Ok(Some(Box::new(RealLock { file, path: path.to_string() }))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(describe("lock", path, e)),
        }
    }
}

/// Returns the bytes that we may use. `f_bavail` even for root: see [`Space::available`].
fn available(stat: &StatVfs) -> u64 {
    stat.f_frsize.saturating_mul(stat.f_bavail)
}

#[derive(Debug)]
struct RealFile {
    file: File,
    path: String,
}

impl RealFile {
    fn fail(&self, what: &str, error: &io::Error) -> io::Error {
        annotate(what, &self.path, error)
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(buf, off) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(|e| self.fail("read", &e)),
            }
        }
    }

    fn write_all_at(&self, buf: &[u8], off: u64) -> io::Result<()> {
        self.file.write_all_at(buf, off).map_err(|e| self.fail("write", &e))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data().map_err(|e| self.fail("sync", &e))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata().map_err(|e| self.fail("stat", &e))?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len).map_err(|e| self.fail("set length", &e))
    }

    fn allocate(&self, off: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match retry_on_intr(|| fallocate(&self.file, FallocateFlags::KEEP_SIZE, off, len)) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let stat = fstatvfs(&self.file).map_err(|e| describe("measure free space", &self.path, e))?;
                if available(&stat) < len {
                    return Err(describe("reserve space", &self.path, Errno::NOSPC));
                }
                Ok(())
            }
            Err(e) => Err(describe("reserve space", &self.path, e)),
        }
    }

    fn start_writeback(&self, off: u64, len: u64) {
        // Linux starts writeback of the dirty pages in the range and drops the clean ones. Only a hint: real errors
        // come back from `sync_data`.
        if let Some(len) = NonZeroU64::new(len)
            && let Err(e) = fadvise(&self.file, off, Some(len), Advice::DontNeed)
        {
            tracing::trace!(path = %self.path, error = %e, "the hint to start writeback was refused");
        }
    }
}

/// The kernel releases the lock with the last descriptor, also when the process dies.
#[derive(Debug)]
struct RealLock {
    file: File,
    path: String,
}

impl DiskLock for RealLock {
    fn write_note(&self, note: &[u8]) -> io::Result<()> {
        let write = || {
            self.file.set_len(0)?;
            self.file.write_all_at(note, 0)
        };
        write().map_err(|e| annotate("write", &self.path, &e))
    }
}

fn not_regular(path: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{path} is not a regular file; a vault holds no other kind"),
    )
}

/// Adds what was tried on which path, keeping the error's kind.
fn annotate(what: &str, path: &str, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot {what} {}: {error}", if path.is_empty() { "." } else { path }),
    )
}

fn describe(what: &str, path: &str, errno: Errno) -> io::Error {
    match errno {
        Errno::LOOP | Errno::XDEV => {
            let text = format!("cannot {what} {path}: a symbolic link in the way; a vault holds none");
            io::Error::new(io::ErrorKind::InvalidData, text)
        }
        other => annotate(what, path, &io::Error::from(other)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn scratch() -> (tempfile::TempDir, RealDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        (dir, disk)
    }

    #[test]
    fn keeps_the_contract() {
        let (_dir, disk) = scratch();
        super::super::tests::check_contract(&disk);
    }

    #[test]
    fn is_private_to_its_owner() {
        let (dir, disk) = scratch();
        disk.create_dir_all("sub").unwrap();
        disk.open("sub/file", OpenMode::CreateNew).unwrap();
        let mode = |p: &str| dir.path().join(p).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("sub"), 0o700);
        assert_eq!(mode("sub/file"), 0o600);
    }

    #[test]
    fn refuses_symlinks_and_special_files() {
        let (dir, disk) = scratch();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), b"outside").unwrap();
        std::fs::write(dir.path().join("plain"), b"inside").unwrap();
        symlink(outside.path().join("secret"), dir.path().join("abs")).unwrap();
        symlink("plain", dir.path().join("rel")).unwrap();
        symlink(outside.path(), dir.path().join("dir")).unwrap();
        symlink(outside.path().join("new"), dir.path().join("dangling")).unwrap();
        rustix::fs::mkfifoat(&disk.root, "fifo", FILE_MODE).unwrap();
        for path in ["abs", "rel", "dir/secret", "fifo", "dangling"] {
            for mode in [OpenMode::Read, OpenMode::ReadWrite] {
                disk.open(path, mode).unwrap_err();
            }
            disk.lock(path).unwrap_err();
            assert!(disk.len(path).is_err(), "{path}");
        }
        assert_eq!(disk.open("abs", OpenMode::Read).unwrap_err().kind(), io::ErrorKind::InvalidData);
        disk.open("dangling", OpenMode::CreateNew).unwrap_err();
        disk.open("dir/new", OpenMode::CreateNew).unwrap_err();
        disk.list("dir").unwrap_err();
        disk.sync_dir("dir").unwrap_err();
        disk.create_dir_all("dir").unwrap_err();
        disk.create_dir_all("dir/sub").unwrap_err();
        disk.rename("plain", "dir/plain").unwrap_err();
        disk.rename("dir/secret", "stolen").unwrap_err();
        disk.remove("dir/secret").unwrap_err();
        let left: Vec<_> =
            std::fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["secret"]);
        // Links show up in listings, so a checker can report them, but with no length that could be believed.
        assert!(disk.list("").unwrap().iter().any(|i| i.name == "abs" && !i.is_dir && i.len == 0));
        // An atomic write replaces a link, it doesn't follow it.
        disk.write_file_atomic("abs", b"new").unwrap();
        assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"outside");
    }

    #[test]
    fn the_fallback_refuses_the_same() {
        let (dir, disk) = scratch();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/plain"), b"inside").unwrap();
        symlink("a", dir.path().join("link")).unwrap();
        symlink("plain", dir.path().join("a/link")).unwrap();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        disk.open_stepwise("a/plain", flags, Mode::empty()).unwrap();
        disk.open_stepwise("a", flags | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for path in ["link/plain", "a/link"] {
            assert!(matches!(
                disk.open_stepwise(path, flags, Mode::empty()),
                Err(Errno::LOOP | Errno::NOTDIR)
            ));
        }
    }

    #[test]
    fn lists_names_that_are_not_text() {
        use std::os::unix::ffi::OsStrExt;
        let (dir, disk) = scratch();
        std::fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"bad\xff")), b"x").unwrap();
        let items = disk.list("").unwrap();
        assert!(items.len() == 1 && items[0].lossy && items[0].len == 1);
    }

    #[test]
    fn errors_say_what_and_where() {
        let (_dir, disk) = scratch();
        let text = disk.open("live/none", OpenMode::Read).unwrap_err().to_string();
        assert!(text.contains("live/none"), "{text}");
    }
}
