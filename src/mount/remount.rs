//! `-o remount,...`: other flags for a mount that is there already, as mount(8) and mount(2) change them.
//!
//! The kernel keeps the flags; the process that serves the mount is asked only to make everything durable before the
//! mount turns read-only, so that whoever sees `ro` may copy the disk below.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::control::{self, Request};
use super::error::{ErrorKind, Failure, MountError};
use super::holder;
use super::mountinfo::MountLine;
use super::mountpoint;
use super::options::MountOptions;
use super::status::{State, Status};
use crate::disk::RealDisk;

/// A mount that is busy for longer is refused to become read-only.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
/// What the kernel shows of a mount's own flags and has a letter for in [`MountOptions`].
const SHOWN: [&str; 10] =
    ["ro", "rw", "nosuid", "nodev", "noexec", "noatime", "relatime", "nosymfollow", "sync", "dirsync"];

/// Changes the flags of the mount at `target`. Flags that `options` do not name stay as they are; so does everything that
/// concerns the vault, such as `idle=`, until it is mounted the next time. `source` is what the caller believes to be
/// mounted there: the vault, or the name that mount tables show.
///
/// # Errors
/// `Mountpoint` when nothing of ours, or another vault, is mounted there; `Usage` for what can't be changed; `Busy` when files
/// are open for writing; `Permission` for other users than root; what the vault says when it can't make its data durable.
pub fn remount(target: &Path, source: &Path, options: &[String]) -> Result<(), Failure> {
    let shown = target.display();
    let line = mountpoint::find(target)?
        .ok_or_else(|| MountError::new(ErrorKind::Mountpoint, format!("no vault is mounted at {shown}")))?;
    let vault = holder::vault_of(&line).ok_or_else(|| {
        MountError::new(ErrorKind::Mountpoint, format!("the mount at {shown} has no process behind it"))
            .hint(format!("strongroom umount --lazy {shown}"))
    })?;
    if source.as_os_str() != line.source && !source.canonicalize().is_ok_and(|path| path == vault) {
        let text =
            format!("{shown} has the vault {} mounted on it, not {}", vault.display(), source.display());
        return Err(MountError::new(ErrorKind::Mountpoint, text).into());
    }
    let wanted = merge(&line, options)?;
    let served = Served::of(&vault, &line)?;
    if !wanted.read_only && served != Served::Writable {
        let text = format!("{shown} was mounted read-only, as a snapshot or with `ro`, and is served so");
        let error = MountError::new(ErrorKind::Usage, text);
        return Err(error.hint("to write, unmount it and mount the vault again without `ro`").into());
    }
    let closing = wanted.read_only && is_writable(&line) && served == Served::Writable;
    if closing {
        // The long part, while a failure still changes nothing.
        make_durable(&vault)?;
    }
    let mut flags = wanted.flags();
    flags.set(MountFlags::NODIRATIME, has(&line.options, "nodiratime"));
    change(&line.mountpoint, flags).map_err(|errno| refused(target, errno))?;
    if closing {
        // What was written, or handed over by the kernel, since.
        make_durable(&vault)?;
    }
    Ok(())
}

/// Calls mount(2). The kernel counts a deleted file as open until we have answered that its last user closed it, which no
/// close(2) waits for: so a refusal is believed only when it lasts.
fn change(mountpoint: &Path, flags: MountFlags) -> rustix::io::Result<()> {
    let start = Instant::now();
    loop {
        match rustix::mount::mount_remount(mountpoint, flags, c"") {
            Err(Errno::BUSY) if start.elapsed() < BUSY_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10))
            }
            result => return result,
        }
    }
}

/// How a mount is served, whatever the kernel lets through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Served {
    Writable,
    ReadOnly,
}

impl Served {
    /// A snapshot of a vault can be mounted while the vault is too: only the device number tells them apart.
    fn of(vault: &Path, line: &MountLine) -> Result<Self, MountError> {
        let status = RealDisk::open(vault)
            .and_then(|disk| Status::read(&disk))
            .map_err(|e| MountError::io(vault.display(), e))?;
        let writable = status.is_some_and(|s| {
            s.device == Some(line.device) && s.state == State::Mounted && !s.read_only && s.is_running()
        });
        Ok(if writable { Self::Writable } else { Self::ReadOnly })
    }
}

fn has(list: &str, option: &str) -> bool {
    list.split(',').any(|word| word == option)
}

fn is_writable(line: &MountLine) -> bool {
    !has(&line.options, "ro") && !has(&line.super_options, "ro")
}

/// The flags that the mount has now, and on top of them what is asked for.
fn merge(line: &MountLine, options: &[String]) -> Result<MountOptions, MountError> {
    // What the kernel does not name is on: devices, set-user-id programs, and access times without a policy.
    let mut now = vec!["dev,suid,exec,strictatime"];
    now.extend(SHOWN.into_iter().filter(|&word| has(&line.options, word) || has(&line.super_options, word)));
    // Of `rw` in one place and `ro` in the other, `ro` holds.
    now.push(if is_writable(line) { "rw" } else { "ro" });
    let lists: Vec<&str> = now.into_iter().chain(options.iter().map(String::as_str)).collect();
    let wanted = MountOptions::parse(&lists)?;
    let open_to_all = has(&line.super_options, "allow_other");
    if wanted.allow_other.is_some_and(|asked| asked != open_to_all) {
        let text =
            "whether other users may enter is settled when a vault is mounted, and can't be changed later";
        return Err(MountError::new(ErrorKind::Usage, text).hint("unmount it and mount it again"));
    }
    Ok(wanted)
}

fn make_durable(vault: &Path) -> Result<(), Failure> {
    match control::call(vault, &Request::Sync, &mut |_| {})? {
        Some(answer) => answer.map(|_| ()),
        None => {
            let text = format!("the process that serves {} does not listen", vault.display());
            Err(MountError::new(ErrorKind::Died, text).into())
        }
    }
}

fn refused(target: &Path, errno: Errno) -> MountError {
    let shown = target.display();
    match errno {
        Errno::PERM => MountError::new(ErrorKind::Permission, "only root may change the flags of a mount")
            .hint("unmount it and mount it again with the flags wanted"),
        Errno::BUSY => MountError::new(
            ErrorKind::Busy,
            format!("files below {shown} are open for writing, or were deleted and are still open"),
        ),
        errno => MountError::io(format!("remounting {shown}"), errno),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mount::mountinfo;

    fn line(own: &str, superblock: &str) -> MountLine {
        let text =
            format!("1 0 0:40 / /m {own} - fuse.strongroom /v {superblock},user_id=0,group_id=0,allow_other");
        mountinfo::parse(text.as_bytes()).remove(0)
    }

    fn flags(line: &MountLine, options: &str) -> MountFlags {
        merge(line, &[options.to_string()]).unwrap().flags()
    }

    #[test]
    fn flags_that_are_not_named_stay() {
        let safe = MountFlags::NOSUID | MountFlags::NODEV;
        let now = line("rw,nosuid,nodev,relatime", "rw");
        assert_eq!(flags(&now, "remount,ro"), safe | MountFlags::RELATIME | MountFlags::RDONLY);
        assert_eq!(flags(&now, "remount,noexec"), safe | MountFlags::RELATIME | MountFlags::NOEXEC);
        assert_eq!(flags(&now, "remount,noatime,suid"), MountFlags::NODEV | MountFlags::NOATIME);
        let bare = line("rw", "rw,sync,dirsync");
        let kept = MountFlags::STRICTATIME | MountFlags::SYNCHRONOUS | MountFlags::DIRSYNC;
        assert_eq!(flags(&bare, "remount"), kept);
        assert_eq!(flags(&bare, "remount,async"), MountFlags::STRICTATIME | MountFlags::DIRSYNC);
    }

    #[test]
    fn read_only_in_either_place_is_read_only() {
        for (own, superblock) in [("ro", "rw"), ("rw", "ro"), ("ro", "ro")] {
            let now = line(own, superblock);
            assert!(flags(&now, "remount,noexec").contains(MountFlags::RDONLY), "{own} {superblock}");
            assert!(!flags(&now, "remount,rw").contains(MountFlags::RDONLY), "{own} {superblock}");
        }
    }

    #[test]
    fn what_mount_8_repeats_is_understood_and_what_cannot_change_is_refused() {
        let now = line("rw,nosuid,nodev,relatime", "rw");
        let repeated = "ro,nosuid,nodev,relatime,remount,user_id=0,group_id=0,default_permissions,allow_other,max_read=1048576";
        assert!(flags(&now, repeated).contains(MountFlags::RDONLY));
        assert_eq!(merge(&now, &["remount,noallow_other".into()]).unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(merge(&now, &["remount,r0".into()]).unwrap_err().kind, ErrorKind::Usage);
        assert!(merge(&now, &["remount,ro,passfile=/x,nofail".into()]).unwrap().read_only);
    }

    #[test]
    fn only_a_mount_of_ours_is_remounted() {
        let dir = tempfile::tempdir().unwrap();
        let failure = remount(dir.path(), dir.path(), &["remount,ro".into()]).unwrap_err();
        assert_eq!(failure.code, ErrorKind::Mountpoint.exit_code(), "{failure}");
    }
}
