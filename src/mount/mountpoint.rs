//! The directory to mount on: checks before mounting, and protection while nothing is mounted.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

use super::error::{ErrorKind, MountError, Result};
use super::mountinfo::{self, MountLine};

/// What [`check`] is to accept.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Accept a directory that has entries; they are hidden while mounted.
    pub nonempty: bool,
}

fn refused(text: impl Into<String>) -> MountError {
    MountError::new(ErrorKind::Mountpoint, text)
}

/// Checks that a vault can be mounted on a directory, and returns its absolute path without links.
///
/// A mount left behind by a killed daemon (ENOTCONN) is reported as such; [`super::holder::clean_dead`] removes it.
///
/// # Errors
/// `Mountpoint` with the reason: missing, no directory, inside the vault or around it, not empty, already a mount of ours.
pub fn check(mountpoint: &Path, vault: &Path, options: CheckOptions) -> Result<PathBuf> {
    let shown = mountpoint.display();
    let real = directory(mountpoint)?;
    let vault = vault.canonicalize().map_err(|e| MountError::io(vault.display(), e))?;
    if real == vault {
        return Err(refused(format!("{shown} is the vault itself; mount it on another directory")));
    }
    if real.starts_with(&vault) {
        return Err(refused(format!("{shown} lies inside the vault {}", vault.display())));
    }
    if vault.starts_with(&real) {
        return Err(refused(format!(
            "the vault {} lies inside {shown}: it would hide itself",
            vault.display()
        )));
    }
    require_free(mountpoint, &real, options)?;
    Ok(real)
}

/// [`check`] for a vault that is not on this machine.
///
/// # Errors
/// As [`check`].
pub fn check_alone(mountpoint: &Path, options: CheckOptions) -> Result<PathBuf> {
    let real = directory(mountpoint)?;
    require_free(mountpoint, &real, options)?;
    Ok(real)
}

/// The path without links of what has to be a directory.
fn directory(mountpoint: &Path) -> Result<PathBuf> {
    let shown = mountpoint.display();
    let real = match mountpoint.canonicalize() {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(refused(format!("{shown} does not exist")).hint(format!("mkdir {shown}")));
        }
        Err(e) if is_dead(&e) => {
            return Err(refused(format!("{shown} is a mount whose process is gone"))
                .hint(format!("strongroom umount --lazy {shown}")));
        }
        Err(e) => return Err(MountError::io(&shown, e)),
    };
    let meta = std::fs::metadata(&real).map_err(|e| MountError::io(&shown, e))?;
    if !meta.is_dir() {
        return Err(refused(format!("{shown} is not a directory")));
    }
    Ok(real)
}

/// Refuses a directory that is in use.
fn require_free(mountpoint: &Path, real: &Path, options: CheckOptions) -> Result<()> {
    let shown = mountpoint.display();
    if let Some(line) = mountinfo::at(&mountinfo::mounts()?, real).filter(|m| m.is_ours()) {
        return Err(refused(format!(
            "{shown} already has the vault {} mounted on it",
            Path::new(&line.source).display()
        )));
    }
    if !options.nonempty {
        refuse_nonempty(real)?;
    }
    Ok(())
}

fn refuse_nonempty(real: &Path) -> Result<()> {
    let shown = real.display();
    match std::fs::read_dir(real) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(Ok(entry)) => Err(refused(format!("{shown} is not empty: it has {:?}", entry.file_name()))
                .hint("what is in it would be hidden while mounted; if that is meant, say --nonempty")),
            Some(Err(e)) => Err(MountError::io(&shown, e)),
        },
        // `protect` takes all permissions away where there is no immutable flag; a user then can't look, and nobody
        // can have put anything there.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(e) => Err(MountError::io(&shown, e)),
    }
}

/// Tells whether an error is that of a FUSE mount without a process behind it.
pub fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::NOTCONN | Errno::CONNABORTED))
}

/// Tells whether what is mounted at a path has no process behind it. Attributes may come from the kernel's cache long
/// after that; statfs(2) is always asked of the process.
pub fn is_dead_mount(path: &Path) -> bool {
    rustix::fs::statfs(path).is_err_and(|e| is_dead(&e.into()))
        || std::fs::symlink_metadata(path).is_err_and(|e| is_dead(&e))
}

/// Returns the mount of ours at a path, dead or alive. The path need not be canonical; of a dead mount only its
/// parent is resolved.
///
/// # Errors
/// When /proc can't be read.
pub fn find(path: &Path) -> Result<Option<MountLine>> {
    let mounts = mountinfo::mounts()?;
    let ours = |real: &Path| mountinfo::at(&mounts, real).filter(|m| m.is_ours()).cloned();
    let resolved = match path.canonicalize() {
        Ok(real) => Some(real),
        Err(_) => resolve_parent(path),
    };
    Ok(resolved.and_then(|real| ours(&real)))
}

/// Resolves everything but the last component, which may be a dead mount that can't be looked at.
fn resolve_parent(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Some(parent.canonicalize().ok()?.join(name))
}

/// Tells whether a vault is mounted at a path and answers.
///
/// # Errors
/// When /proc can't be read.
pub fn is_mounted(path: &Path) -> Result<bool> {
    Ok(find(path)?.is_some() && !is_dead_mount(path) && std::fs::metadata(path).is_ok())
}

/// How a directory was protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// The immutable flag: holds for root too.
    Immutable,
    /// Mode 0: holds for everybody but root.
    ModeZero,
    /// It was already protected so.
    Already,
}

/// Makes an unmounted mountpoint refuse writes, so that a backup job that runs without the mount fails instead of
/// leaving plaintext.
///
/// # Errors
/// `Mountpoint` when something is mounted there or the directory is not empty, `Permission` without the right to.
pub fn protect(path: &Path) -> Result<Protection> {
    let (real, dir) = open_unmounted(path)?;
    let immutable = ioctl_getflags(&dir).is_ok_and(|flags| flags.contains(IFlags::IMMUTABLE));
    if immutable {
        return Ok(Protection::Already);
    }
    refuse_nonempty(&real)
        .map_err(|e| e.hint("empty it first: what is in it now is hidden while the vault is mounted"))?;
    match set_immutable(&dir, true) {
        Ok(()) => return Ok(Protection::Immutable),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {}
        Err(e) => return Err(MountError::io(format!("setting the immutable flag of {}", path.display()), e)),
    }
    let meta = dir.metadata().map_err(|e| MountError::io(path.display(), e))?;
    if meta.mode() & 0o7777 == 0 {
        return Ok(Protection::Already);
    }
    dir.set_permissions(Permissions::from_mode(0o000)).map_err(|e| denied(path, &e))?;
    Ok(Protection::ModeZero)
}

/// Undoes [`protect`]: clears the flag, and gives a directory of mode 0 the mode 0755.
///
/// # Errors
/// As [`protect`].
pub fn unprotect(path: &Path) -> Result<()> {
    let (_, dir) = open_unmounted(path)?;
    if ioctl_getflags(&dir).is_ok_and(|flags| flags.contains(IFlags::IMMUTABLE)) {
        set_immutable(&dir, false).map_err(|e| denied(path, &e.into()))?;
    }
    let meta = dir.metadata().map_err(|e| MountError::io(path.display(), e))?;
    if meta.mode() & 0o7777 == 0 {
        dir.set_permissions(Permissions::from_mode(0o755)).map_err(|e| denied(path, &e))?;
    }
    Ok(())
}

/// A directory of mode 0 that its owner has opened to himself for a moment: fusermount3 mounts only where the user could
/// write.
#[derive(Debug)]
pub(super) struct Opened {
    /// A path through an open descriptor: it means this directory also when something is mounted on it.
    path: PathBuf,
    _dir: std::os::fd::OwnedFd,
}

impl Opened {
    /// Opens a directory if [`protect`] took its permissions away and it is the user's own; `None` leaves it alone.
    pub(super) fn by_owner(mountpoint: &Path) -> Result<Option<Self>> {
        let fail = |e: io::Error| MountError::io(mountpoint.display(), e);
        let meta = std::fs::metadata(mountpoint).map_err(fail)?;
        if meta.mode() & 0o7777 != 0 || meta.uid() != rustix::process::geteuid().as_raw() {
            return Ok(None);
        }
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let dir =
            rustix::fs::open(mountpoint, flags, rustix::fs::Mode::empty()).map_err(|e| fail(e.into()))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(fail)?;
        Ok(Some(Self { path, _dir: dir }))
    }

    /// Takes the permissions away again.
    pub(super) fn close_again(self) -> io::Result<()> {
        std::fs::set_permissions(&self.path, Permissions::from_mode(0o000))
    }
}

/// Says why fusermount3 refuses a protected directory, where that is the reason.
pub(super) fn explain_refusal(mountpoint: &Path, error: MountError) -> MountError {
    let immutable = File::open(mountpoint)
        .is_ok_and(|dir| ioctl_getflags(&dir).is_ok_and(|flags| flags.contains(IFlags::IMMUTABLE)));
    if !immutable || error.hint.is_some() {
        return error;
    }
    error.hint(format!(
        "{0} was protected by root, and users can't mount on an immutable directory; as root: strongroom protect --undo {0}, \
         then protect it as the user",
        mountpoint.display()
    ))
}

fn denied(path: &Path, error: &io::Error) -> MountError {
    MountError::new(ErrorKind::Permission, format!("{}: {error}", path.display()))
        .hint("only root and the owner may do this")
}

fn set_immutable(dir: &File, on: bool) -> rustix::io::Result<()> {
    let mut flags = ioctl_getflags(dir)?;
    flags.set(IFlags::IMMUTABLE, on);
    ioctl_setflags(dir, flags)?;
    // Some filesystems accept the call and ignore the flag.
    if ioctl_getflags(dir)?.contains(IFlags::IMMUTABLE) == on { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

fn open_unmounted(path: &Path) -> Result<(PathBuf, File)> {
    if find(path)?.is_some() {
        return Err(refused(format!("{} has a vault mounted on it", path.display()))
            .hint(format!("strongroom umount {}", path.display())));
    }
    let real = path.canonicalize().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            refused(format!("{} does not exist", path.display())).hint(format!("mkdir {}", path.display()))
        }
        _ => MountError::io(path.display(), e),
    })?;
    let fail = |e: io::Error| match e.kind() {
        io::ErrorKind::PermissionDenied => denied(path, &e),
        _ => MountError::io(path.display(), e),
    };
    let dir = match File::open(&real) {
        Ok(dir) => dir,
        // Mode 0 and not root: the owner may look again after giving himself the right to.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            std::fs::set_permissions(&real, Permissions::from_mode(0o500)).map_err(fail)?;
            let dir = File::open(&real).map_err(fail)?;
            dir.set_permissions(Permissions::from_mode(0o000)).map_err(fail)?;
            dir
        }
        Err(e) => return Err(fail(e)),
    };
    if !dir.metadata().map_err(fail)?.is_dir() {
        return Err(refused(format!("{} is not a directory", path.display())));
    }
    Ok((real, dir))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn dirs() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (vault, mnt) = (dir.path().join("vault"), dir.path().join("mnt"));
        std::fs::create_dir(&vault).unwrap();
        std::fs::create_dir(&mnt).unwrap();
        (dir, vault, mnt)
    }

    fn refusal(result: Result<PathBuf>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Mountpoint, "{error}");
        error.message
    }

    #[test]
    fn an_empty_directory_is_accepted_and_resolved() {
        let (dir, vault, mnt) = dirs();
        std::os::unix::fs::symlink(&mnt, dir.path().join("link")).unwrap();
        let real = check(&dir.path().join("link"), &vault, CheckOptions::default()).unwrap();
        assert_eq!(real, mnt.canonicalize().unwrap());
    }

    #[test]
    fn unusable_mountpoints_are_refused() {
        let (dir, vault, mnt) = dirs();
        let plain = CheckOptions::default();
        assert!(refusal(check(&dir.path().join("none"), &vault, plain)).contains("does not exist"));
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert!(refusal(check(&dir.path().join("file"), &vault, plain)).contains("not a directory"));
        assert!(refusal(check(&vault, &vault, plain)).contains("the vault itself"));
        std::fs::create_dir(vault.join("sub")).unwrap();
        assert!(refusal(check(&vault.join("sub"), &vault, plain)).contains("inside the vault"));
        assert!(refusal(check(dir.path(), &vault, plain)).contains("lies inside"));
        std::fs::write(mnt.join("old"), "x").unwrap();
        assert!(refusal(check(&mnt, &vault, plain)).contains("not empty"));
        assert!(check(&mnt, &vault, CheckOptions { nonempty: true }).is_ok());
    }

    #[test]
    fn a_protected_directory_refuses_writes_until_unprotected() {
        let (_dir, _, mnt) = dirs();
        let how = protect(&mnt).unwrap();
        let written = std::fs::write(mnt.join("plain"), "x");
        if how == Protection::Immutable || !rustix::process::geteuid().is_root() {
            assert_eq!(written.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        assert_eq!(protect(&mnt).unwrap_or(Protection::Already), Protection::Already);
        unprotect(&mnt).unwrap();
        std::fs::write(mnt.join("plain"), "x").unwrap();
    }

    #[test]
    fn a_directory_with_files_is_not_protected() {
        let (_dir, _, mnt) = dirs();
        std::fs::write(mnt.join("f"), "x").unwrap();
        assert_eq!(protect(&mnt).unwrap_err().kind, ErrorKind::Mountpoint);
    }

    #[test]
    fn nothing_is_mounted_on_a_plain_directory() {
        let (_dir, _, mnt) = dirs();
        assert!(!is_mounted(&mnt).unwrap());
        assert!(find(Path::new("/proc")).unwrap().is_none());
    }
}
