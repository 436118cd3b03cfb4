//! Becoming a daemon by running ourselves again.
//!
//! The parent starts this program anew with a hidden subcommand and one end of a socket pair as its standard input, and
//! writes the request and the secret there: neither is ever in an argument or the environment. The child leaves the
//! session, opens and mounts the vault, and answers; only then the parent exits, with the child's own status.
//!
//! On the socket stand frames: a little-endian `u32` length, then so many bytes. To the child: the request as JSON, then
//! the secret as it is. Back: one [`Reply`] as JSON.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::error::{ErrorKind, Failure, MountError};

/// The hidden subcommand that the child is started with. What follows it is only for those who read process lists.
pub const SUBCOMMAND: &str = "internal-mount-daemon";

/// Settings of glibc's allocator (mallopt(3)) for the daemon.
///
/// - It gives each thread a heap of its own, up to eight a core, and gives little of them back: measured a third more memory
///   for the same work. Two heaps serve our few threads.
/// - Allocations above a threshold are mappings of their own, which go back to the system when they are freed; but unless it
///   is set, the threshold follows the largest that was ever freed, up to 32 MiB. Then the buffers of streams stand between
///   small things in the heaps, which never shrink again: measured twice the memory for streams. Setting it costs nothing
///   measurable as long as it is above the largest write, which is 1 MiB.
/// - The same goes for how much free memory at a heap's end is kept.
const ALLOCATOR_ENV: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "2"),
    ("MALLOC_MMAP_THRESHOLD_", "4194304"),
    ("MALLOC_TRIM_THRESHOLD_", "16777216"),
];
/// Longest request or reply.
const FRAME_BYTES_MAX: u32 = 1 << 20;
/// Longest secret: a keyfile.
const SECRET_BYTES_MAX: u32 = (1 << 20) + 1;

/// What the child says once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The mount answers.
    Ready {
        /// The serving process.
        pid: u32,
    },
    /// It does not, for this reason.
    Failed(Failure),
}

fn write_frame(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    to.write_all(&len.to_le_bytes())?;
    to.write_all(bytes)
}

fn read_frame(mut from: impl Read, max: u32) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes")));
    }
    // Reserved at once, so that no half-filled copy of a secret is left in freed memory.
    let mut bytes = Zeroizing::new(vec![0; len as usize]);
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The path of the running program. `/proc/self/exe` also works when the file was replaced or removed by an update.
fn own_program() -> PathBuf {
    match std::env::current_exe() {
        Ok(path) if path.is_file() => path,
        _ => PathBuf::from("/proc/self/exe"),
    }
}

/// Starts the daemon and waits until its mount answers. `names` (the vault and the mountpoint) only appear in process
/// lists. Returns its process id.
///
/// # Errors
/// The child's own failure with its exit code, or that it ended without a word.
pub fn spawn<R: Serialize>(request: &R, secret: &[u8], names: &[&OsStr]) -> Result<u32, Failure> {
    let json = serde_json::to_vec(request).map_err(|e| MountError::io("request", e))?;
    let fail = |e: io::Error| Failure::from(MountError::io("starting the daemon", e));
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    let mut command = Command::new(own_program());
    // The working directory must not keep another file system busy.
    command.arg0("strongroom").arg(SUBCOMMAND).args(names).current_dir("/");
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::inherit());
    for (name, value) in ALLOCATOR_ENV {
        // Whoever has set it knows better.
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    let mut child = command.spawn().map_err(fail)?;
    // Closes our copy of the child's end, so that its death is seen.
    drop(command);
    let reply = write_frame(&ours, &json)
        .and_then(|()| write_frame(&ours, secret))
        .and_then(|()| read_frame(&ours, FRAME_BYTES_MAX));
    match reply {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(Reply::Ready { pid }) => Ok(pid),
            Ok(Reply::Failed(failure)) => Err(failure),
            Err(e) => Err(MountError::io("the daemon answered nonsense", e).into()),
        },
        Err(_) => Err(silent_death(&mut child).into()),
    }
}

fn silent_death(child: &mut Child) -> MountError {
    let how = match child.wait() {
        Ok(status) => status.to_string(),
        Err(e) => e.to_string(),
    };
    MountError::new(ErrorKind::Died, format!("the daemon ended before its mount was usable ({how})"))
        .hint("run it with -f to see what it says")
}

/// The child's connection to the process that started it.
#[derive(Debug)]
pub struct Parent(UnixStream);

/// First thing in the child: closes what was inherited, leaves the session, and takes the request and the secret.
///
/// # Errors
/// When the process was not started by [`spawn`].
pub fn receive<R: DeserializeOwned>() -> Result<(R, Zeroizing<Vec<u8>>, Parent), MountError> {
    let fail = |e: io::Error| MountError::io("this command is only for strongroom itself", e);
    close_inherited().map_err(fail)?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().map_err(fail)?);
    // Fails if standard input is anything but a socket.
    socket.peer_addr().map_err(fail)?;
    rustix::stdio::dup2_stdin(File::null().map_err(fail)?).map_err(|e| fail(e.into()))?;
    rustix::process::setsid().map_err(|e| fail(e.into()))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Memory that we need to write out other processes' data must not wait for that very data to be written. All threads
    // started from here on inherit this. Without the right to it, it goes without.
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::debug!(%error, "PR_SET_IO_FLUSHER");
    }
    let (request, secret) = take_request(&socket).map_err(fail)?;
    Ok((request, secret, Parent(socket)))
}

fn take_request<R: DeserializeOwned>(socket: &UnixStream) -> io::Result<(R, Zeroizing<Vec<u8>>)> {
    let json = read_frame(socket, FRAME_BYTES_MAX)?;
    let secret = read_frame(socket, SECRET_BYTES_MAX)?;
    Ok((serde_json::from_slice(&json)?, secret))
}

struct File;

impl File {
    fn null() -> io::Result<std::fs::File> {
        std::fs::File::options().read(true).write(true).open("/dev/null")
    }
}

/// Closes descriptors that some ancestor forgot to, so that a daemon that lives for weeks keeps no pipe, lock or
/// deleted file of others. Called before this process has opened anything of its own.
fn close_inherited() -> io::Result<()> {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // The listing's own descriptor is among them, and closed by now: EBADF.
        if let Err(error) = nix::unistd::close(fd)
            && error != nix::errno::Errno::EBADF
        {
            return Err(error.into());
        }
    }
    Ok(())
}

impl Parent {
    /// Tells the parent that the mount answers, and lets go of its terminal.
    ///
    /// # Errors
    /// When the parent is gone: somebody interrupted it, so nobody knows of this mount and it should be undone.
    pub fn ready(self) -> io::Result<()> {
        self.answer(&Reply::Ready { pid: std::process::id() })?;
        let null = File::null()?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(())
    }

    /// Tells the parent why there is no mount. If the parent is gone there is nobody to tell.
    pub fn failed(self, failure: Failure) {
        if let Err(error) = self.answer(&Reply::Failed(failure)) {
            tracing::debug!(%error, "the parent is gone");
        }
    }

    fn answer(&self, reply: &Reply) -> io::Result<()> {
        write_frame(&self.0, &serde_json::to_vec(reply)?)
    }
}

/// Tells whether this process was started as the child of [`spawn`], from its arguments.
pub fn is_child(mut args: impl Iterator<Item = impl AsRef<OsStr>>) -> bool {
    args.nth(1).is_some_and(|arg| arg.as_ref() == SUBCOMMAND)
}

/// The absolute form of a path that may not exist, without resolving links.
///
/// # Errors
/// When the working directory is gone.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    std::path::absolute(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_request_and_secret() {
        let (a, b) = UnixStream::pair().unwrap();
        write_frame(&a, br#"{"vault":"/v"}"#).unwrap();
        write_frame(&a, b"secret\0\xff").unwrap();
        let (request, secret): (serde_json::Value, _) = take_request(&b).unwrap();
        assert_eq!(request["vault"], "/v");
        assert_eq!(&secret[..], b"secret\0\xff");
    }

    #[test]
    fn short_long_and_malformed_frames_are_errors() {
        let take = |bytes: &[u8]| {
            let (a, b) = UnixStream::pair().unwrap();
            (&a).write_all(bytes).unwrap();
            drop(a);
            take_request::<serde_json::Value>(&b).unwrap_err().kind()
        };
        assert_eq!(take(b""), io::ErrorKind::UnexpectedEof);
        assert_eq!(take(&[1, 0]), io::ErrorKind::UnexpectedEof);
        assert_eq!(take(&[2, 0, 0, 0, b'{']), io::ErrorKind::UnexpectedEof);
        assert_eq!(take(&[0xff; 8]), io::ErrorKind::InvalidData);
        assert_eq!(take(&[2, 0, 0, 0, b'{', b'}']), io::ErrorKind::UnexpectedEof);
        assert_eq!(take(&[1, 0, 0, 0, b'{', 0, 0, 0, 0]), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn replies_survive_the_socket() {
        let (a, b) = UnixStream::pair().unwrap();
        let failure = Failure { code: 11, message: "wrong".into(), hint: None };
        Parent(a).failed(failure.clone());
        let bytes = read_frame(&b, FRAME_BYTES_MAX).unwrap();
        assert_eq!(serde_json::from_slice::<Reply>(&bytes).unwrap(), Reply::Failed(failure));
    }

    #[test]
    fn the_child_is_known_by_its_first_argument() {
        assert!(is_child(["strongroom", SUBCOMMAND, "/v"].iter()));
        assert!(!is_child(["strongroom", "mount", SUBCOMMAND].iter()));
        assert!(!is_child(["strongroom"].iter()));
    }
}
