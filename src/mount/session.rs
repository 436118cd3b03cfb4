//! Attaching a FUSE connection to a mountpoint, and what to tune once it is there.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::error::{ErrorKind, MountError, Result};
use super::mountinfo::FS_TYPE;
use super::mountpoint;
use super::options::{MountOptions, check_fsname};

/// Largest read request in bytes: what the kernel allows by default (`fs.fuse.max_pages_limit`).
pub const MAX_READ: u32 = 1 << 20;
/// The device of the kernel protocol.
const DEV_FUSE: &str = "/dev/fuse";
/// Read-ahead of a mount in KiB. The kernel starts with 128, at which a stream waits for us again and again.
const READ_AHEAD_KIB: u32 = 4 << 10;
/// A mount that does not answer its first questions for so long is given up.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Mounts and returns the connection, on which the kernel has put its first request.
///
/// Root calls mount(2) itself, so that the type is `fuse.strongroom` in every table; others go through fusermount3.
///
/// # Errors
/// `Permission`, `Usage` for options that only root may use, `Io`.
pub fn mount(mountpoint: &Path, source: &str, options: &MountOptions) -> Result<OwnedFd> {
    check_fsname(source)?;
    let root = rustix::process::geteuid().is_root();
    let allow_other = options.allow_other.unwrap_or(root);
    if root {
        match open_device()
            .and_then(|device| mount_directly(device, mountpoint, source, options, allow_other))
        {
            // Root without CAP_SYS_ADMIN, as in some containers: the helper may have it.
            Err(error) if error.kind == ErrorKind::Permission => {}
            other => return other,
        }
    }
    if options.dev || options.suid {
        let text = "only root may mount with `dev` or `suid`";
        return Err(MountError::new(ErrorKind::Permission, text));
    }
    let opened = mountpoint::Opened::by_owner(mountpoint)?;
    let mounted = mount_by_helper(mountpoint, &options.fusermount_list(source, allow_other));
    if let Some(opened) = opened
        && let Err(error) = opened.close_again()
    {
        // The mount is the user's wish, and works; the next `protect` says what is wrong.
        tracing::error!(%error, "the directory under the mount is not protected any more");
    }
    mounted.map_err(|error| mountpoint::explain_refusal(mountpoint, error))
}

fn open_device() -> Result<File> {
    File::options().read(true).write(true).open(DEV_FUSE).map_err(|e| {
        let error = MountError::io(DEV_FUSE, &e);
        match e.kind() {
            io::ErrorKind::NotFound => error.hint("the kernel module is not loaded: modprobe fuse"),
            io::ErrorKind::PermissionDenied => MountError { kind: ErrorKind::Permission, ..error },
            _ => error,
        }
    })
}

fn mount_directly(
    device: File,
    mountpoint: &Path,
    source: &str,
    options: &MountOptions,
    allow_other: bool,
) -> Result<OwnedFd> {
    let failed = |e: rustix::io::Errno| {
        let error = MountError::io(format!("mounting on {}", mountpoint.display()), e);
        let kind = if e == rustix::io::Errno::PERM { ErrorKind::Permission } else { error.kind };
        MountError { kind, ..error }
    };
    let mode = rustix::fs::stat(mountpoint).map_err(failed)?.st_mode;
    let mut data = format!(
        "fd={},rootmode={mode:o},user_id={},group_id={},default_permissions,max_read={MAX_READ}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|_| failed(rustix::io::Errno::INVAL))?;
    let flags = options.flags();
    rustix::mount::mount(source, mountpoint, FS_TYPE, flags, Some(data.as_c_str())).map_err(failed)?;
    Ok(device.into())
}

/// Runs the set-user-id helper, which sends the connection back over a socket.
fn mount_by_helper(mountpoint: &Path, options: &str) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| MountError::io("socket pair", e))?;
    let mut command = Command::new("fusermount3");
    // Given as its standard input: the one descriptor that can be passed on without unsafe code.
    command.args(["-o", options, "--"]).arg(mountpoint).env("_FUSE_COMMFD", "0");
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| {
        MountError::io("running fusermount3", e).hint("install the package fuse3, or mount as root")
    })?;
    drop(command);
    let received = receive_descriptor(&ours);
    drop(ours);
    let mut text = String::new();
    if let Some(mut stderr) = child.stderr.take()
        && let Err(error) = stderr.read_to_string(&mut text)
    {
        tracing::debug!(%error, "fusermount3's messages");
    }
    let status = child.wait().map_err(|e| MountError::io("fusermount3", e))?;
    match received {
        Ok(Some(fd)) if status.success() => Ok(fd),
        Ok(_) => {
            let error = MountError::new(ErrorKind::Permission, text.trim().to_string());
            Err(match text.contains("user_allow_other") {
                true => {
                    error.hint("put `user_allow_other` into /etc/fuse.conf, or mount without allow_other")
                }
                false => error,
            })
        }
        Err(e) => Err(MountError::io("fusermount3", e)),
    }
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok(fds.next().and_then(|mut fds| fds.next()))
}

/// Asks the mount its first questions, as its first user would, and returns its device number. The session must be
/// running. The asking is done on a thread of its own: a mount that does not answer can't be interrupted.
///
/// # Errors
/// `Timeout`, or the error of the mount.
pub fn self_test(mountpoint: &Path) -> Result<(u32, u32)> {
    let (sender, receiver) = mpsc::channel();
    let path = mountpoint.to_path_buf();
    let ask = move || {
        let answers = std::fs::metadata(&path).and_then(|meta| {
            rustix::fs::statvfs(&path)?;
            Ok(meta.dev())
        });
        // Nobody listens any more only after the timeout.
        drop(sender.send(answers));
    };
    std::thread::Builder::new()
        .name("sr-selftest".into())
        .spawn(ask)
        .map_err(|e| MountError::io("self-test", e))?;
    let shown = mountpoint.display();
    match receiver.recv_timeout(SELF_TEST_TIMEOUT) {
        Ok(Ok(dev)) => Ok((rustix::fs::major(dev), rustix::fs::minor(dev))),
        Ok(Err(e)) => Err(MountError::io(format!("the new mount at {shown} fails its first test"), e)),
        Err(_) => {
            Err(MountError::new(ErrorKind::Timeout, format!("the new mount at {shown} does not answer")))
        }
    }
}

/// Raises the read-ahead of a mount. Only root may; others keep the kernel's default.
pub fn raise_read_ahead(device: (u32, u32)) {
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", device.0, device.1);
    match std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
        Ok(()) => tracing::debug!(kib = READ_AHEAD_KIB, "read-ahead"),
        Err(error) => tracing::debug!(%error, path, "read-ahead stays at the kernel's default"),
    }
}

/// Ends a connection whose files are still open: their users get errors from now on.
///
/// # Errors
/// `Permission` for other users than root.
pub fn abort(mountpoint: &Path) -> Result<()> {
    let flags = rustix::mount::UnmountFlags::FORCE | rustix::mount::UnmountFlags::DETACH;
    match rustix::mount::unmount(mountpoint, flags | rustix::mount::UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => super::holder::detach(mountpoint, true),
        Err(e) => Err(MountError::io(format!("unmounting {} by force", mountpoint.display()), e)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_split_a_table_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = mount(dir.path(), "a,b", &MountOptions::default()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage);
    }

    #[test]
    fn a_missing_mountpoint_is_an_error() {
        let error = mount(Path::new("/does/not/exist"), "x", &MountOptions::default()).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Io | ErrorKind::Permission), "{error:?}");
    }

    #[test]
    fn a_plain_directory_passes_the_self_test() {
        assert!(self_test(Path::new("/")).is_ok());
        assert_eq!(self_test(Path::new("/does/not/exist")).unwrap_err().kind, ErrorKind::Io);
    }
}
