//! `live/status.json`: what the process that serves a vault says about itself, for everybody else.
//!
//! The file tells states apart that the lock alone cannot: mounted, or still finishing after the mount has gone, or
//! closed, and whether closing went well. It is a note, not a lock: whether the process lives is asked of the system.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::disk::{Disk, OpenMode, is_full};
use crate::snapshot::describe::rfc3339;

/// Path of the file inside the vault.
pub const STATUS_PATH: &str = "live/status.json";
/// A longer file was not written by us.
const STATUS_BYTES_MAX: u64 = 64 << 10;
/// Errors are cut to this many characters.
const ERROR_CHARS_MAX: usize = 2_000;

/// The life of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Opened, and on the way to being mounted.
    Starting,
    /// The mount answers.
    Mounted,
    /// Unmounted or being unmounted; data is being made durable.
    Unmounting,
    /// Everything is over.
    Closed,
}

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where in its life the mount is.
    pub state: State,
    /// The serving process.
    pub pid: u32,
    /// Its start time in clock ticks after boot, which tells it from a later process with the same number.
    pub pid_start: u64,
    /// When it was mounted, in seconds since 1970 UTC.
    pub since: i64,
    /// Where it is mounted, absolute.
    #[serde(with = "path_text")]
    pub mountpoint: PathBuf,
    /// Device number of the mount, which finds it in mountinfo whatever its name.
    pub device: Option<(u32, u32)>,
    /// No writes.
    pub read_only: bool,
    /// The last thing that went wrong, if any did.
    pub last_error: Option<String>,
    /// The exit code of what went wrong while closing (docs/exit-codes.md).
    #[serde(default)]
    pub last_code: Option<u8>,
    /// With state `closed`: everything that was written is durable and in order.
    pub clean: bool,
}

impl Status {
    /// Returns the status of this process before mounting.
    pub fn starting(mountpoint: &Path, read_only: bool, now: i64) -> Self {
        let pid = std::process::id();
        Self {
            state: State::Starting,
            pid,
            pid_start: process_start(pid).unwrap_or(0),
            since: now,
            mountpoint: mountpoint.to_path_buf(),
            device: None,
            read_only,
            last_error: None,
            last_code: None,
            clean: false,
        }
    }

    /// Reads the file of a vault; `None` when there is none or it was damaged, for it is only a note.
    ///
    /// # Errors
    /// When it is there and can't be read.
    pub fn read(disk: &dyn Disk) -> io::Result<Option<Self>> {
        match disk.read_file(STATUS_PATH, STATUS_BYTES_MAX) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The status as `strongroom status --json` shows it: as in the file, but times for people.
    ///
    /// # Errors
    /// When it can't be written as JSON.
    pub fn describe(&self) -> serde_json::Result<serde_json::Value> {
        let mut value = serde_json::to_value(self)?;
        if let Some(since) = value.get_mut("since") {
            *since = rfc3339(self.since, 0).into();
        }
        Ok(value)
    }

    /// Tells whether the process that wrote this still runs.
    pub fn is_running(&self) -> bool {
        process_start(self.pid).is_some_and(|start| start == self.pid_start)
    }
}

/// Returns when a process started, in clock ticks after boot; `None` when there is no such process (or only its
/// unreaped rest).
///
/// A process whose first thread has ended shows as a zombie while its other threads go on working: it runs.
pub fn process_start(pid: u32) -> Option<u64> {
    let (runs, start) = read_stat(&format!("/proc/{pid}/stat"))?;
    (runs || has_live_thread(pid)).then_some(start)
}

/// Whether any thread of a process is more than a rest.
fn has_live_thread(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads
        .filter_map(|thread| Some(thread.ok()?.path().join("stat")))
        .any(|stat| read_stat(&stat.to_string_lossy()).is_some_and(|(runs, _)| runs))
}

/// Reads a stat file of /proc: whether that process or thread is more than a zombie, and when it started.
fn read_stat(path: &str) -> Option<(bool, u64)> {
    // The name in parentheses may be any bytes.
    let bytes = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // The name may contain anything, so count from its end: state is the first field after it.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let runs = !matches!(fields.next()?, "Z" | "X");
    // starttime is field 22 of the whole line, the 19th after the state.
    Some((runs, fields.nth(18)?.parse().ok()?))
}

/// Keeps the file up to date.
#[derive(Debug)]
pub struct StatusFile {
    disk: Arc<dyn Disk>,
    current: Mutex<Status>,
}

impl StatusFile {
    /// Writes the first status.
    ///
    /// # Errors
    /// When the vault can't be written.
    pub fn create(disk: Arc<dyn Disk>, status: Status) -> io::Result<Self> {
        let file = Self { disk, current: Mutex::new(status) };
        file.update(|_| {})?;
        Ok(file)
    }

    /// Returns the present status.
    pub fn current(&self) -> Status {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the status and writes it, durably.
    ///
    /// # Errors
    /// When the vault can't be written; the change holds in memory all the same.
    pub fn update(&self, change: impl FnOnce(&mut Status)) -> io::Result<()> {
        // Held while writing: two writers of one path are not allowed, and this is a matter of milliseconds.
        let mut status = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut status);
        if let Some(error) = &mut status.last_error
            && error.chars().count() > ERROR_CHARS_MAX
        {
            *error = error.chars().take(ERROR_CHARS_MAX).collect();
        }
        let bytes = serde_json::to_vec_pretty(&*status).map_err(io::Error::other)?;
        match self.disk.write_file_atomic(STATUS_PATH, &bytes) {
            Err(e) if is_full(&e) => self.overwrite(&bytes),
            other => other,
        }
    }

    /// Writes over the file where it stands, which needs no room on most disks: how a vault was closed must be told
    /// on a full one too. A crash meanwhile damages the file, and that counts as having none.
    fn overwrite(&self, bytes: &[u8]) -> io::Result<()> {
        let file = self.disk.open(STATUS_PATH, OpenMode::ReadWrite)?;
        let old = usize::try_from(file.len()?).unwrap_or(usize::MAX);
        let mut padded = bytes.to_vec();
        // White space after the value, so that the file never ends in the middle of one.
        padded.resize(padded.len().max(old.min(STATUS_BYTES_MAX as usize)), b' ');
        file.write_all_at(&padded, 0)?;
        file.sync_data()
    }

    /// As [`StatusFile::update`], for changes whose loss does no harm: a failure is only logged.
    pub fn note(&self, change: impl FnOnce(&mut Status)) {
        if let Err(error) = self.update(change) {
            tracing::warn!(%error, "could not write {STATUS_PATH}");
        }
    }
}

/// Paths in JSON: text where they are UTF-8, else an array of bytes.
pub(super) mod path_text {
    use super::{
        Deserialize, Deserializer, OsStrExt, OsString, OsStringExt, Path, PathBuf, Serialize, Serializer,
    };

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(in crate::mount) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => to.serialize_str(text),
            None => path.as_os_str().as_bytes().serialize(to),
        }
    }

    pub(in crate::mount) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(match Either::deserialize(from)? {
            Either::Text(text) => PathBuf::from(text),
            Either::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::disk::RealDisk;

    fn disk() -> (tempfile::TempDir, Arc<dyn Disk>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("live")).unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        (dir, Arc::new(disk))
    }

    #[test]
    fn a_status_comes_back_as_written() {
        let (_dir, disk) = disk();
        assert!(Status::read(&*disk).unwrap().is_none());
        let odd = PathBuf::from(OsString::from_vec(b"/mnt/\xff\n".to_vec()));
        for path in [Path::new("/mnt/x"), &odd] {
            let file = StatusFile::create(disk.clone(), Status::starting(path, true, 5)).unwrap();
            file.update(|s| {
                s.state = State::Mounted;
                s.last_error = Some("x".repeat(5_000));
            })
            .unwrap();
            let read = Status::read(&*disk).unwrap().unwrap();
            assert_eq!(read, file.current());
            assert_eq!(read.mountpoint, path);
            assert_eq!(read.last_error.as_ref().unwrap().len(), ERROR_CHARS_MAX);
            assert!(read.is_running());
        }
    }

    #[test]
    fn a_full_disk_still_takes_the_last_word() {
        use crate::disk::{FaultErrno, FaultOp, Faults, FaultyDisk};
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("live")).unwrap();
        let faults = Faults::new();
        let disk: Arc<dyn Disk> =
            Arc::new(FaultyDisk::new(RealDisk::open(dir.path()).unwrap(), faults.clone()));
        let file = StatusFile::create(disk.clone(), Status::starting(Path::new("/m"), false, 0)).unwrap();
        file.update(|s| s.last_error = Some("a long story ".repeat(30))).unwrap();
        faults.fail_all(FaultOp::Create, "live/status.json.tmp", FaultErrno::Enospc);
        for text in ["short", "longer than the one before"] {
            file.update(|s| {
                s.state = State::Closed;
                s.last_error = Some(text.into());
                s.last_code = Some(19);
            })
            .unwrap();
            assert_eq!(Status::read(&*disk).unwrap().unwrap(), file.current());
        }
        assert!(faults.struck() >= 2);
    }

    #[test]
    fn damaged_files_count_as_none() {
        let (dir, disk) = disk();
        for text in ["", "{}", "[1]", "{\"state\":\"mounted\"}", "\u{0}\u{0}"] {
            std::fs::write(dir.path().join(STATUS_PATH), text).unwrap();
            assert!(Status::read(&*disk).unwrap().is_none(), "{text:?}");
        }
        std::fs::write(dir.path().join(STATUS_PATH), vec![b' '; 70_000]).unwrap();
        assert!(Status::read(&*disk).unwrap().is_none());
    }

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let mut status = Status::starting(Path::new("/m"), false, 0);
        assert!(status.is_running());
        status.pid_start += 1;
        assert!(!status.is_running());
        status.pid = u32::MAX;
        assert!(!status.is_running());
        assert!(process_start(1).is_some());
    }

    /// A process whose first thread ends at once and whose second one sleeps until its standard input ends.
    const LEADERLESS: &str = r#"
        #include <pthread.h>
        #include <unistd.h>
        static void *work(void *arg) { char c; while (read(0, &c, 1) > 0) {} _exit(0); return arg; }
        int main(void) { pthread_t t; if (pthread_create(&t, 0, work, 0)) return 1; pthread_exit(0); }
    "#;

    #[test]
    fn a_process_without_its_first_thread_still_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (source, program) = (dir.path().join("leaderless.c"), dir.path().join("leaderless"));
        std::fs::write(&source, LEADERLESS).unwrap();
        // cc is what links this test.
        let cc = Command::new("cc").arg("-pthread").arg("-o").arg(&program).arg(&source).status().unwrap();
        assert!(cc.success());
        let mut child = Command::new(&program).stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let stat = format!("/proc/{pid}/stat");
        while read_stat(&stat).unwrap().0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let start = process_start(pid);
        assert!(start.is_some(), "its leader is a zombie, its work goes on");
        drop(child.stdin.take());
        // Ended, but not reaped: only now is it gone.
        while has_live_thread(pid) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(process_start(pid), None);
        child.wait().unwrap();
    }
}
