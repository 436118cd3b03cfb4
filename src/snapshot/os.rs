//! Files outside of the vault: what restore writes and import reads. Always relative to an open directory,
//! never through a symbolic link, so that no name in a snapshot and nobody beside us can lead a restore
//! elsewhere.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::format::FileType;

/// ACLs of a file, as extended attributes.
pub(crate) const ACL_ACCESS: &str = "system.posix_acl_access";
/// ACLs that a directory gives to what is made in it.
pub(crate) const ACL_DEFAULT: &str = "system.posix_acl_default";

/// Names and values.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The kernel's limit of a list of attribute names, and of one value.
const XATTR_BYTES_MAX: usize = 65_536;

/// Something to read attributes of or to change: an open file, or a name in an open directory that is not
/// followed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// An open file or directory.
    Fd(BorrowedFd<'a>),
    /// A name in a directory: symbolic links, fifos, sockets and devices, which can't be opened without harm.
    Name(BorrowedFd<'a>, &'a [u8]),
}

/// The system calls for attributes take no directory: this path goes through ours, and its last name is not
/// followed.
fn path_of(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

impl Place<'_> {
    fn list_into(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Place::Fd(fd) => rustix::fs::flistxattr(fd, buf),
            Place::Name(dir, name) => rustix::fs::llistxattr(path_of(*dir, name), buf),
        }
    }

    fn get_into(&self, name: &[u8], buf: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Place::Fd(fd) => rustix::fs::fgetxattr(fd, name, buf),
            Place::Name(dir, file) => rustix::fs::lgetxattr(path_of(*dir, file), name, buf),
        }
    }

    /// Sets one attribute.
    pub(crate) fn set_xattr(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Place::Fd(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Place::Name(dir, file) => {
                rustix::fs::lsetxattr(path_of(*dir, file), name, value, XattrFlags::empty())
            }
        }
    }

    /// Removes one attribute; that there is none is fine.
    pub(crate) fn remove_xattr(&self, name: &str) -> Result<(), Errno> {
        let removed = match self {
            Place::Fd(fd) => rustix::fs::fremovexattr(fd, name),
            Place::Name(dir, file) => rustix::fs::lremovexattr(path_of(*dir, file), name),
        };
        match removed {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    /// Returns whether it has an attribute.
    pub(crate) fn has_xattr(&self, name: &str) -> bool {
        let mut none: [u8; 0] = [];
        self.get_into(name.as_bytes(), &mut none).is_ok()
    }

    /// Returns all attributes, sorted by name. A filesystem without attributes has none.
    pub(crate) fn xattrs(&self) -> Result<Xattrs, Errno> {
        // Most files have none or few. The length alone can't be asked for: with an empty buffer the wrapper
        // answers 0.
        let mut short = [0; 512];
        let mut long = Vec::new();
        let list = match self.list_into(&mut short) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Ok(len) => &short[..len],
            Err(Errno::RANGE) => {
                long.resize(XATTR_BYTES_MAX, 0);
                let len = self.list_into(&mut long)?;
                &long[..len]
            }
            Err(e) => return Err(e),
        };
        let mut out = Vec::new();
        let mut value = vec![0; XATTR_BYTES_MAX];
        for name in list.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            match self.get_into(name, &mut value) {
                Ok(len) => out.push((name.to_vec(), value[..len].to_vec())),
                // Removed since it was listed, or not for us to see.
                Err(Errno::NODATA) => {}
                Err(e) => return Err(e),
            }
        }
        out.sort();
        Ok(out)
    }
}

/// Opens a directory below another one; a symbolic link is `LOOP` or `NOTDIR`.
pub(crate) fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Opens the directory that holds the last name of a path below `root`, one name after the other, and returns
/// it with that name. `None`: it is in `root` itself.
pub(crate) fn open_parent<'p>(
    root: BorrowedFd<'_>,
    path: &'p [u8],
) -> Result<(Option<OwnedFd>, &'p [u8]), Errno> {
    let mut at: Option<OwnedFd> = None;
    let mut names = path.split(|b| *b == b'/').peekable();
    while let Some(name) = names.next() {
        if names.peek().is_none() {
            return Ok((at, name));
        }
        let from = at.as_ref().map_or(root, |fd| std::os::fd::AsFd::as_fd(fd));
        at = Some(open_dir(from, name)?);
    }
    Err(Errno::NOENT)
}

/// Returns what a mode says a file is.
pub(crate) fn kind_of(st_mode: u32) -> Option<FileType> {
    use rustix::fs::FileType as T;
    match T::from_raw_mode(st_mode) {
        T::RegularFile => Some(FileType::File),
        T::Directory => Some(FileType::Dir),
        T::Symlink => Some(FileType::Symlink),
        T::Fifo => Some(FileType::Fifo),
        T::Socket => Some(FileType::Socket),
        T::CharacterDevice => Some(FileType::CharDev),
        T::BlockDevice => Some(FileType::BlockDev),
        T::Unknown => None,
    }
}

/// Returns the type of what stands at a name, or `None` when nothing does.
pub(crate) fn kind_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileType>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(kind_of(stat.st_mode)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Lets this process open as many files as the administrator allows it: deep trees hold one directory for
/// each level.
pub(crate) fn raise_open_files_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            // Then very deep directories fail with EMFILE, each reported by its path.
            tracing::debug!(%error, "could not raise the limit of open files");
        }
    }
}
