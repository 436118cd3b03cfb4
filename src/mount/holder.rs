//! Who holds a vault, waiting until it is free, and unmounting.
//!
//! umount(8) returns when the mount is gone from the tree, which is before the daemon behind it has made its last
//! bytes durable. So every command asks here first: it waits for a daemon that is finishing, and says so.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use serde::Serialize;

use super::control::{self, Request};
use super::error::{ErrorKind, Failure, MountError, NO_SPACE_HINT, Result};
use super::mountinfo::{self, MountLine};
use super::mountpoint;
use super::status::{State, Status};
use crate::disk::{Disk, RealDisk};

/// Path of the lock inside the vault: whoever writes to the vault holds it.
pub const LOCK_PATH: &str = "live/lock";
const NOTE_BYTES_MAX: u64 = 4 << 10;
/// At most so many processes are named by the error about a busy mount.
const BUSY_NAMED_MAX: usize = 8;
/// Extended attribute of a mount's root that names its vault.
pub const VAULT_XATTR: &str = "strongroom.vault";

/// Who holds a vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Holder {
    /// Nobody.
    Free,
    /// Nobody, but a mount of it is left whose process is gone.
    Dead {
        /// Where.
        mountpoint: PathBuf,
    },
    /// A process on its way to mounting it.
    Starting {
        /// The process.
        pid: u32,
    },
    /// A mount.
    Mounted {
        /// The process that serves it.
        pid: u32,
        /// Where.
        mountpoint: PathBuf,
    },
    /// A process whose mount is gone and that is making the last data durable.
    Finishing {
        /// The process.
        pid: u32,
    },
    /// Another command.
    Other {
        /// The process, where known.
        pid: Option<u32>,
        /// What it said about itself.
        note: String,
    },
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Holder::Free => write!(f, "nobody"),
            Holder::Dead { mountpoint } => {
                write!(f, "a mount at {} whose process is gone", mountpoint.display())
            }
            Holder::Starting { pid } => write!(f, "process {pid}, which is about to mount it"),
            Holder::Mounted { pid, mountpoint } => {
                write!(f, "process {pid}, which has it mounted at {}", mountpoint.display())
            }
            Holder::Finishing { pid } => {
                write!(f, "process {pid}, which was unmounted and is making the last data durable")
            }
            Holder::Other { pid: Some(pid), note } if note.is_empty() => write!(f, "process {pid}"),
            Holder::Other { pid: Some(pid), note } => write!(f, "process {pid} ({note})"),
            Holder::Other { pid: None, note } if note.is_empty() => write!(f, "another process"),
            Holder::Other { pid: None, note } => write!(f, "another process ({note})"),
        }
    }
}

fn open_disk(vault: &Path) -> Result<RealDisk> {
    RealDisk::open(vault).map_err(|e| MountError::io(vault.display(), e))
}

/// What the lock says.
enum Lock {
    Free,
    Held { note: String },
}

fn probe_lock(disk: &dyn Disk, vault: &Path) -> Result<Lock> {
    let fail = |e: io::Error| MountError::io(format!("{}/{LOCK_PATH}", vault.display()), e);
    match disk.len(LOCK_PATH) {
        // A vault without live state, such as an offsite copy.
        Ok(None) => return Ok(Lock::Free),
        Ok(Some(_)) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Lock::Free),
        Err(e) => return Err(fail(e)),
    }
    match disk.lock(LOCK_PATH) {
        // Let go at once; whoever wants it takes it again and may still lose against another.
        Ok(Some(lock)) => {
            drop(lock);
            Ok(Lock::Free)
        }
        Ok(None) => {
            let note = disk.read_file(LOCK_PATH, NOTE_BYTES_MAX).unwrap_or_default();
            let note: String =
                String::from_utf8_lossy(&note).chars().filter(|c| !c.is_control()).take(200).collect();
            Ok(Lock::Held { note: note.trim().to_string() })
        }
        // A read-only disk can't have been locked for writing.
        Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(Lock::Free),
        Err(e) => Err(fail(e)),
    }
}

/// The first number in a lock note is the process id of its writer.
fn pid_of_note(note: &str) -> Option<u32> {
    note.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty())?.parse().ok()
}

/// Tells whether the mount that a status speaks of is still there, in our namespace or the daemon's.
fn still_mounted(status: &Status, mounts: &[MountLine]) -> bool {
    let is_it = |m: &MountLine| match status.device {
        Some(device) => m.device == device,
        None => m.is_ours() && m.mountpoint == status.mountpoint,
    };
    mounts.iter().any(is_it)
        || mountinfo::mounts_of(status.pid).is_some_and(|theirs| theirs.iter().any(is_it))
}

/// Finds a mount of this vault whose process is gone.
fn dead_mount(vault: &Path, status: Option<&Status>, mounts: &[MountLine]) -> Option<PathBuf> {
    let candidates = mounts.iter().filter(|m| {
        m.is_ours()
            && (Path::new(&m.source) == vault
                || status.is_some_and(|s| s.device == Some(m.device) && s.mountpoint == m.mountpoint))
    });
    candidates.map(|m| &m.mountpoint).find(|path| mountpoint::is_dead_mount(path)).cloned()
}

/// Finds out who holds a vault.
///
/// # Errors
/// When the vault's directory or /proc can't be read.
pub fn probe(vault: &Path) -> Result<Holder> {
    let disk = open_disk(vault)?;
    let vault = vault.canonicalize().map_err(|e| MountError::io(vault.display(), e))?;
    let lock = probe_lock(&disk, &vault)?;
    let status = Status::read(&disk).map_err(|e| MountError::io(vault.display(), e))?;
    let mounts = mountinfo::mounts()?;
    let note = match lock {
        Lock::Free => {
            return Ok(match dead_mount(&vault, status.as_ref(), &mounts) {
                Some(mountpoint) => Holder::Dead { mountpoint },
                None => Holder::Free,
            });
        }
        Lock::Held { note } => note,
    };
    let pid = pid_of_note(&note);
    let Some(status) = status.filter(|s| s.is_running() && pid.is_none_or(|pid| pid == s.pid)) else {
        return Ok(Holder::Other { pid, note });
    };
    Ok(match status.state {
        State::Starting => Holder::Starting { pid: status.pid },
        State::Mounted if still_mounted(&status, &mounts) => {
            Holder::Mounted { pid: status.pid, mountpoint: status.mountpoint }
        }
        State::Mounted | State::Unmounting | State::Closed => Holder::Finishing { pid: status.pid },
    })
}

/// Waits until nobody holds a vault. Only a daemon that is finishing is waited for; `on_wait` hears of it once a second.
/// Returns what [`probe`] said last: `Free` or `Dead`.
///
/// # Errors
/// `InUse`, naming the holder, when it is mounted or used by another command; `Timeout` after `timeout`.
pub fn wait_until_free(
    vault: &Path,
    timeout: Option<Duration>,
    on_wait: &mut dyn FnMut(&Holder),
) -> Result<Holder> {
    let start = Instant::now();
    let mut last_said = None::<Instant>;
    loop {
        let holder = probe(vault)?;
        match &holder {
            Holder::Free | Holder::Dead { .. } => return Ok(holder),
            Holder::Finishing { .. } => {}
            // A daemon that just ended can have let go of its lock between two looks; one more settles it.
            Holder::Other { .. } if start.elapsed() < Duration::from_millis(300) => {}
            Holder::Starting { .. } | Holder::Mounted { .. } | Holder::Other { .. } => {
                return Err(in_use(vault, &holder));
            }
        }
        if timeout.is_some_and(|t| start.elapsed() >= t) {
            let text = format!("{} is still held by {holder}", vault.display());
            return Err(MountError::new(ErrorKind::Timeout, text));
        }
        if matches!(holder, Holder::Finishing { .. })
            && last_said.is_none_or(|at| at.elapsed() >= Duration::from_secs(1))
        {
            last_said = Some(Instant::now());
            on_wait(&holder);
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// Waits while a daemon is still finishing, and for nothing else: what reads a vault may do so while it is mounted.
/// `on_wait` hears of the process, once.
///
/// # Errors
/// When the vault can't be read.
pub fn wait_while_finishing(vault: &Path, on_wait: &mut dyn FnMut(u32)) -> Result<()> {
    let mut said = false;
    while let Holder::Finishing { pid } = probe(vault)? {
        if !said {
            said = true;
            on_wait(pid);
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

/// The note that a holder leaves in the lock file: its process id, what for, and where it is mounted.
pub fn note(purpose: &str, mountpoint: Option<&Path>) -> String {
    let pid = std::process::id();
    match mountpoint {
        Some(path) => format!("{pid} {purpose} {}\n", path.display()),
        None => format!("{pid} {purpose}\n"),
    }
}

/// The error for a vault that somebody holds.
pub fn in_use(vault: &Path, holder: &Holder) -> MountError {
    let error = MountError::new(ErrorKind::InUse, format!("{} is in use by {holder}", vault.display()));
    match holder {
        Holder::Mounted { mountpoint, .. } => {
            error.hint(format!("strongroom umount {}", mountpoint.display()))
        }
        Holder::Finishing { .. } => error.hint(format!("strongroom wait {}", vault.display())),
        _ => error,
    }
}

/// Removes a mount whose process is gone. True if there was one.
///
/// # Errors
/// When it can't be unmounted.
pub fn clean_dead(mountpoint: &Path) -> Result<bool> {
    let Some(line) = mountpoint::find(mountpoint)? else { return Ok(false) };
    if !mountpoint::is_dead_mount(&line.mountpoint) {
        return Ok(false);
    }
    tracing::warn!(mountpoint = %line.mountpoint.display(), "removing a mount whose process is gone");
    detach(&line.mountpoint, true)?;
    Ok(true)
}

/// Unmounts, as root directly and else through fusermount3.
///
/// # Errors
/// `Busy` when files are open there, `Permission`, `Io`.
pub fn detach(mountpoint: &Path, lazy: bool) -> Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(busy(mountpoint)),
        Err(rustix::io::Errno::PERM) => detach_as_user(mountpoint, lazy),
        // Somebody else was faster.
        Err(rustix::io::Errno::INVAL) if mountpoint::find(mountpoint)?.is_none() => Ok(()),
        Err(e) => Err(MountError::io(format!("unmounting {}", mountpoint.display()), e)),
    }
}

fn detach_as_user(mountpoint: &Path, lazy: bool) -> Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(mountpoint);
    let output = command.output().map_err(|e| {
        MountError::io("running fusermount3", e).hint("install the package fuse3, or run this as root")
    })?;
    if output.status.success() || mountpoint::find(mountpoint)?.is_none() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("busy") {
        return Err(busy(mountpoint));
    }
    Err(MountError::new(ErrorKind::Permission, format!("fusermount3: {}", text.trim())))
}

/// A process that keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct User {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// One of the paths it uses.
    pub path: PathBuf,
}

/// Finds processes with open files, mapped files, a working directory or a root below a path, as far as we may see.
pub fn users_of(mountpoint: &Path) -> Vec<User> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let me = std::process::id();
    let mut users = Vec::new();
    for pid in pids.filter(|pid| *pid != me) {
        if let Some(path) = used_path(pid, mountpoint) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            users.push(User { pid, name: name.trim().to_string(), path });
        }
    }
    users.sort_by_key(|u| u.pid);
    users
}

/// readlink(2) on these files never touches the mount itself, so a hung one can't stop us.
fn used_path(pid: u32, below: &Path) -> Option<PathBuf> {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let single = ["cwd", "root", "exe"].into_iter().map(|name| base.join(name));
    let files = std::fs::read_dir(base.join("fd")).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
    let found =
        single.chain(files).filter_map(|link| std::fs::read_link(link).ok()).find(|p| p.starts_with(below));
    found.or_else(|| {
        let maps = std::fs::read(base.join("maps")).ok()?;
        maps.split(|b| *b == b'\n').find_map(|line| {
            let start = line.iter().position(|b| *b == b'/')?;
            let path = Path::new(std::ffi::OsStr::from_bytes(line.get(start..)?));
            path.starts_with(below).then(|| path.to_path_buf())
        })
    })
}

/// The error for a mount with open files, naming who has them.
pub fn busy(mountpoint: &Path) -> MountError {
    let users = users_of(mountpoint);
    let error = MountError::new(ErrorKind::Busy, format!("{} is in use", mountpoint.display()));
    if users.is_empty() {
        return error
            .hint("no process of yours has files open there; as root, this message names all of them");
    }
    let mut named: Vec<String> = users
        .iter()
        .take(BUSY_NAMED_MAX)
        .map(|u| format!("{} (process {}, {})", u.name, u.pid, u.path.display()))
        .collect();
    if users.len() > BUSY_NAMED_MAX {
        named.push(format!("and {} more", users.len() - BUSY_NAMED_MAX));
    }
    error
        .hint(format!("used by {}; --lazy detaches it now and finishes when they are done", named.join(", ")))
}

/// How [`umount`] is to act.
#[derive(Clone, Copy, Debug, Default)]
pub struct UmountOptions {
    /// Detach at once even if files are open, and don't wait.
    pub lazy: bool,
    /// Give up waiting after so long. Without it, wait as long as the daemon works.
    pub timeout: Option<Duration>,
}

/// How an unmount ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unmounted {
    /// The vault, where it could be found out.
    pub vault: Option<PathBuf>,
    /// Where it was mounted.
    pub mountpoint: PathBuf,
    /// The daemon has closed the vault with everything durable. False only after a lazy unmount.
    pub finished: bool,
}

/// What a name given by the user stands for.
struct Target {
    vault: Option<PathBuf>,
    mountpoint: PathBuf,
}

fn resolve(name: &Path) -> Result<Target> {
    if let Some(line) = mountpoint::find(name)? {
        return Ok(Target { vault: vault_of(&line), mountpoint: line.mountpoint });
    }
    let shown = name.display();
    let is_vault = ["vault.json", "vault.json.bak"].iter().any(|file| name.join(file).is_file());
    if !is_vault {
        return Err(MountError::new(
            ErrorKind::Mountpoint,
            format!("nothing of Strongroom is mounted at {shown}"),
        )
        .hint("`strongroom status` lists what is mounted"));
    }
    match probe(name)? {
        Holder::Mounted { mountpoint, .. } | Holder::Dead { mountpoint } => {
            let vault = name.canonicalize().map_err(|e| MountError::io(&shown, e))?;
            Ok(Target { vault: Some(vault), mountpoint })
        }
        Holder::Finishing { .. } => {
            let vault = name.canonicalize().map_err(|e| MountError::io(&shown, e))?;
            Ok(Target { vault: Some(vault), mountpoint: PathBuf::new() })
        }
        _ => Err(MountError::new(ErrorKind::Mountpoint, format!("the vault {shown} is not mounted"))),
    }
}

/// Returns the vault behind a mount: asked of the mount itself, else its source if that is a vault.
pub fn vault_of(line: &MountLine) -> Option<PathBuf> {
    let mut buf = vec![0; 4096];
    if let Ok(n) = rustix::fs::lgetxattr(&line.mountpoint, VAULT_XATTR, &mut buf)
        && let Some(bytes) = buf.get(..n)
    {
        return Some(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)));
    }
    let source = PathBuf::from(&line.source);
    source.join("vault.json").is_file().then_some(source)
}

/// Unmounts what is mounted at a path, or the mount of a vault, and waits until the daemon has made everything durable
/// and is gone.
///
/// # Errors
/// `Busy` with the processes that use it, `Unclean` when the daemon could not write everything, `Timeout`, and others.
pub fn umount(name: &Path, options: UmountOptions, on_wait: &mut dyn FnMut(&Holder)) -> Result<Unmounted> {
    let mut target = resolve(name)?;
    let before = match &target.vault {
        Some(vault) => Status::read(&open_disk(vault)?).unwrap_or(None),
        None => None,
    };
    if !target.mountpoint.as_os_str().is_empty() && !is_working_tree(&target.mountpoint, before.as_ref())? {
        // A snapshot's: it holds nothing of the vault, and the daemon of the working tree is not concerned.
        target.vault = None;
    }
    let mut done =
        Unmounted { vault: target.vault.clone(), mountpoint: target.mountpoint.clone(), finished: false };
    if !target.mountpoint.as_os_str().is_empty() {
        let dead = mountpoint::is_dead_mount(&target.mountpoint);
        let asked = match &target.vault {
            Some(vault) if !dead => ask_to_unmount(vault, &target.mountpoint, options.lazy)?,
            _ => None,
        };
        match asked {
            Some(Ok(_)) => {}
            Some(Err(failure)) => {
                let known = [ErrorKind::Busy, ErrorKind::NoSpace];
                let kind = known.into_iter().find(|kind| kind.exit_code() == failure.code);
                let kind = kind.unwrap_or(ErrorKind::Io);
                return Err(MountError { kind, message: failure.message, hint: failure.hint });
            }
            None => detach(&target.mountpoint, options.lazy || dead)?,
        }
        if dead {
            let text = format!("the process that served {} was killed", target.mountpoint.display());
            return Err(MountError::new(ErrorKind::Unclean, text).hint(
                "the dead mount is removed; the next mount recovers everything that was synced, nothing needs repair",
            ));
        }
    }
    let Some(vault) = &target.vault else { return Ok(done) };
    if options.lazy {
        return Ok(done);
    }
    wait_until_gone(vault, before.as_ref(), options.timeout, on_wait)?;
    done.finished = true;
    Ok(done)
}

/// Asks the daemon to unmount. That the connection ends without an answer is one if the mount is gone.
fn ask_to_unmount(
    vault: &Path,
    mountpoint: &Path,
    lazy: bool,
) -> Result<Option<std::result::Result<serde_json::Value, Failure>>> {
    match control::call(vault, &Request::Unmount { lazy }, &mut |_| {}) {
        Err(e) if e.kind == ErrorKind::Died && mountpoint::find(mountpoint)?.is_none() => {
            Ok(Some(Ok(serde_json::Value::Null)))
        }
        other => other,
    }
}

/// Tells whether the mount at a path is the one that the status of its vault speaks of, and not one of a snapshot.
fn is_working_tree(mountpoint: &Path, status: Option<&Status>) -> Result<bool> {
    let device = mountinfo::at(&mountinfo::mounts()?, mountpoint).map(|m| m.device);
    Ok(status.is_none_or(|s| s.device.is_none() || s.device == device))
}

/// Waits for the daemon of `before` to end, and checks how.
fn wait_until_gone(
    vault: &Path,
    before: Option<&Status>,
    timeout: Option<Duration>,
    on_wait: &mut dyn FnMut(&Holder),
) -> Result<()> {
    let start = Instant::now();
    let mut last_said = Instant::now();
    let same = |s: &Status| before.is_none_or(|b| (b.pid, b.pid_start) == (s.pid, s.pid_start));
    while before.is_some_and(Status::is_running) && !held_by_us(before) {
        if timeout.is_some_and(|t| start.elapsed() >= t) {
            let text = format!("the process that served {} is still at work", vault.display());
            return Err(MountError::new(ErrorKind::Timeout, text)
                .hint(format!("strongroom wait {}", vault.display())));
        }
        if last_said.elapsed() >= Duration::from_secs(1) {
            last_said = Instant::now();
            on_wait(&Holder::Finishing { pid: before.map_or(0, |b| b.pid) });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let after = Status::read(&open_disk(vault)?).unwrap_or(None);
    if before.is_some() && after.is_none() {
        let text = format!("{} was unmounted, but how that ended can't be told", vault.display());
        return Err(MountError::new(ErrorKind::Unclean, text).hint(
            "live/status.json is gone or damaged; the next mount recovers everything that was synced",
        ));
    }
    let Some(after) = after.filter(same) else { return Ok(()) };
    match (after.state, after.clean) {
        (State::Closed, true) => Ok(()),
        // A mount without a lock on the vault (of a snapshot) leaves the status of others alone.
        _ if before.is_none() => Ok(()),
        _ => {
            let why = after.last_error.unwrap_or_else(|| "its process ended without saying why".to_string());
            let text = format!("{} was unmounted, but could not be closed properly: {why}", vault.display());
            if after.last_code == Some(ErrorKind::NoSpace.exit_code()) {
                return Err(MountError::new(ErrorKind::NoSpace, text).hint(format!(
                    "what was synced before is safe; {NO_SPACE_HINT}, then mount and unmount again to make the snapshot"
                )));
            }
            Err(MountError::new(ErrorKind::Unclean, text)
                .hint("what was synced before is safe; the daemon's log and the next mount say more"))
        }
    }
}

/// A vault mounted by this very process (as `with` and tests do) can't be waited for here.
fn held_by_us(status: Option<&Status>) -> bool {
    status.is_some_and(|s| s.pid == std::process::id())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mount::status::StatusFile;
    use std::sync::Arc;

    fn vault() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("live")).unwrap();
        dir
    }

    #[test]
    fn a_vault_nobody_uses_is_free() {
        let dir = vault();
        assert_eq!(probe(dir.path()).unwrap(), Holder::Free);
        std::fs::remove_dir(dir.path().join("live")).unwrap();
        assert_eq!(probe(dir.path()).unwrap(), Holder::Free);
        assert_eq!(probe(&dir.path().join("none")).unwrap_err().kind, ErrorKind::Io);
    }

    #[test]
    fn the_lock_and_its_note_name_the_holder() {
        let dir = vault();
        let disk = RealDisk::open(dir.path()).unwrap();
        let lock = disk.lock(LOCK_PATH).unwrap().unwrap();
        lock.write_note(b"4711 import\n").unwrap();
        let holder = probe(dir.path()).unwrap();
        assert_eq!(holder, Holder::Other { pid: Some(4711), note: "4711 import".into() });
        let error = wait_until_free(dir.path(), None, &mut |_| {}).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InUse);
        assert!(error.message.contains("4711"), "{error}");
        drop(lock);
        assert_eq!(wait_until_free(dir.path(), None, &mut |_| {}).unwrap(), Holder::Free);
    }

    #[test]
    fn a_daemon_without_its_mount_is_finishing_and_waited_for() {
        let dir = vault();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path()).unwrap());
        let lock = disk.lock(LOCK_PATH).unwrap().unwrap();
        lock.write_note(format!("{} mount", std::process::id()).as_bytes()).unwrap();
        let file =
            StatusFile::create(disk.clone(), Status::starting(Path::new("/nowhere"), false, 0)).unwrap();
        let pid = std::process::id();
        assert_eq!(probe(dir.path()).unwrap(), Holder::Starting { pid });
        file.update(|s| s.state = State::Mounted).unwrap();
        assert_eq!(probe(dir.path()).unwrap(), Holder::Finishing { pid });
        let error = wait_until_free(dir.path(), Some(Duration::from_millis(50)), &mut |_| {}).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
        let releaser = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(150));
            drop(lock);
        });
        let mut heard = 0;
        assert_eq!(wait_until_free(dir.path(), None, &mut |_| heard += 1).unwrap(), Holder::Free);
        assert_eq!(heard, 1);
        releaser.join().unwrap();
    }

    #[test]
    fn a_device_that_is_mounted_means_mounted() {
        let dir = vault();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path()).unwrap());
        let _lock = disk.lock(LOCK_PATH).unwrap().unwrap();
        let root =
            mountinfo::mounts().unwrap().into_iter().find(|m| m.mountpoint == Path::new("/proc")).unwrap();
        let file = StatusFile::create(disk, Status::starting(Path::new("/mnt"), false, 0)).unwrap();
        file.update(|s| {
            s.state = State::Mounted;
            s.device = Some(root.device);
        })
        .unwrap();
        let holder = probe(dir.path()).unwrap();
        assert_eq!(holder, Holder::Mounted { pid: std::process::id(), mountpoint: "/mnt".into() });
        assert!(in_use(dir.path(), &holder).hint.unwrap().contains("umount /mnt"));
    }

    #[test]
    fn notes_of_other_makes_do_no_harm() {
        assert_eq!(pid_of_note("{\"pid\": 12, \"x\": 9}"), Some(12));
        assert_eq!(pid_of_note(""), None);
        assert_eq!(pid_of_note("99999999999999999999"), None);
        assert_eq!(pid_of_note("none"), None);
    }

    #[test]
    fn processes_that_use_a_directory_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("30").current_dir(dir.path()).spawn().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let start = Instant::now();
        while users_of(&real).is_empty() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let users = users_of(&real);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(users.len(), 1);
        assert_eq!(users[0].path, real);
        assert!(busy(&real).kind == ErrorKind::Busy);
    }

    #[test]
    fn unmounting_what_is_not_mounted_says_so() {
        let dir = vault();
        let error = umount(dir.path(), UmountOptions::default(), &mut |_| {}).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Mountpoint);
        std::fs::write(dir.path().join("vault.json"), "x").unwrap();
        let error = umount(dir.path(), UmountOptions::default(), &mut |_| {}).unwrap_err();
        assert!(error.message.contains("is not mounted"), "{error}");
    }
}
