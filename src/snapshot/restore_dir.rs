//! Directories of a restore, which get their attributes last, and attributes of everything.

use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::env::Time;
use crate::format::{Entry, FileType};
use crate::store::error::{Result, StoreError};

use super::os::{ACL_ACCESS, ACL_DEFAULT, Place};
use super::restore::Job;
use super::show;

/// A directory that is being filled. The walk and every file job in it hold it; when the last one lets go, it
/// gets its attributes: nothing changes its times any more.
#[derive(Debug)]
pub(super) struct DirState {
    pub(super) fd: OwnedFd,
    pub(super) parent: Option<Arc<DirState>>,
    /// Below the destination.
    pub(super) path: Vec<u8>,
    /// Attributes to give it.
    pub(super) apply: Option<Entry>,
    /// What is made in it inherits an ACL that no snapshot asked for.
    pub(super) inherits_acl: bool,
}

impl DirState {
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }
}

/// Lets go of a directory, and of those above it that nobody else holds.
pub(super) fn release(job: &Job<'_>, dir: Arc<DirState>) {
    let mut next = Some(dir);
    while let Some(dir) = next.take() {
        // Exactly one of the holders gets the value.
        let Some(dir) = Arc::into_inner(dir) else { return };
        if let Some(entry) = &dir.apply {
            let inherits = dir.inherits_acl;
            if let Err(e) = apply_attributes(job, entry, Place::Fd(dir.fd.as_fd()), inherits) {
                job.fail(&dir.path, &e.to_string());
            }
        }
        next = dir.parent;
    }
}

/// Gives an entry its owner, extended attributes, mode and times, in the order that keeps them all.
pub(super) fn apply_attributes(
    job: &Job<'_>,
    entry: &Entry,
    place: Place<'_>,
    inherits_acl: bool,
) -> Result<()> {
    let io = |what: &str, e: Errno| StoreError::Io { what: what.to_string(), source: e.into() };
    let owned = if job.opts.owners {
        apply_owner(job, entry, place).map_err(|e| io("setting the owner", e))?
    } else {
        false
    };
    apply_xattrs(job, entry, place, inherits_acl)?;
    if entry.kind != FileType::Symlink {
        // Whose program it is decides what a set-id bit means.
        let mode = if owned { entry.mode } else { entry.mode & !0o6000 };
        if mode != entry.mode {
            job.warn("set-id bits were left out where the owner was not restored".to_string());
        }
        apply_mode(place, Mode::from_bits_truncate(mode)).map_err(|e| io("setting the mode", e))?;
    }
    let times = Timestamps { last_access: timespec(entry.atime), last_modification: timespec(entry.mtime) };
    match place {
        Place::Fd(fd) => rustix::fs::futimens(fd, &times),
        Place::Name(dir, name) => rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
    }
    .map_err(|e| io("setting times", e))
}

fn timespec(time: Time) -> Timespec {
    Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() }
}

/// Returns whether owner and group are those of the entry.
fn apply_owner(job: &Job<'_>, entry: &Entry, place: Place<'_>) -> std::result::Result<bool, Errno> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    let change = |uid: Option<Uid>, gid: Option<Gid>| match place {
        Place::Fd(fd) => rustix::fs::fchown(fd, uid, gid),
        Place::Name(dir, name) => rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
    };
    match change(Some(uid), Some(gid)) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) if !job.is_root => {
            // Not root: the group may still be one of ours. Whether or not it is, the warning says what
            // counts.
            if change(None, Some(gid)).is_err() || uid != rustix::process::geteuid() {
                job.warn("owners were not restored: only root can".to_string());
            }
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

fn apply_xattrs(job: &Job<'_>, entry: &Entry, place: Place<'_>, inherits_acl: bool) -> Result<()> {
    if inherits_acl && entry.kind != FileType::Symlink {
        for acl in [ACL_ACCESS, ACL_DEFAULT] {
            let wanted = entry.xattrs.iter().any(|(name, _)| name == acl.as_bytes());
            if !wanted && (acl == ACL_ACCESS || entry.kind == FileType::Dir) {
                place.remove_xattr(acl).map_err(|e| StoreError::Io {
                    what: "removing an inherited ACL".into(),
                    source: e.into(),
                })?;
            }
        }
    }
    for (name, value) in &entry.xattrs {
        let Err(error) = place.set_xattr(name, value) else { continue };
        let space = name.split(|b| *b == b'.').next().unwrap_or_default();
        match error {
            Errno::OPNOTSUPP => {
                job.warn(format!("the destination takes no {}.* attributes", show(space)));
            }
            Errno::PERM | Errno::ACCESS if !job.is_root => {
                job.warn(format!("{}.* attributes were not restored: only root can", show(space)));
            }
            // Labels mean something under the policy that made them; another system may not know them.
            Errno::PERM | Errno::ACCESS | Errno::INVAL if name == b"security.selinux" => {
                job.warn("SELinux labels were not restored: the policy here refuses them".to_string());
            }
            error => {
                let what = format!("setting the attribute {}", show(name));
                return Err(StoreError::Io { what, source: error.into() });
            }
        }
    }
    Ok(())
}

/// Lets the owner of a directory, who is not root, look and write into it. It gets its mode when everything in it is done.
pub(super) fn open_up(parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<(), Errno> {
    let mode = Mode::from_raw_mode(rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
    if mode.contains(Mode::RWXU) {
        return Ok(());
    }
    match apply_mode(Place::Name(parent, name), mode | Mode::RWXU) {
        // Somebody else's: others may still be let in.
        Err(Errno::PERM) => Ok(()),
        changed => changed,
    }
}

fn apply_mode(place: Place<'_>, mode: Mode) -> std::result::Result<(), Errno> {
    use rustix::fs::OFlags;
    match place {
        Place::Fd(fd) => rustix::fs::fchmod(fd, mode),
        Place::Name(dir, name) => {
            // chmod by name follows links; this handle is of the very thing, whatever stands there next.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            rustix::fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), mode)
        }
    }
}
