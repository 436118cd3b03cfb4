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

use crate::disk::Disk;

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

    /// Tells whether the process that wrote this still runs.
    pub fn is_running(&self) -> bool {
        process_start(self.pid).is_some_and(|start| start == self.pid_start)
    }
}

/// Returns when a process started, in clock ticks after boot; `None` when there is no such process (or only its
/// unreaped rest).
pub fn process_start(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything, so count from its end: state is the first field after it.
    let after = text.rsplit_once(')')?.1;
    let mut fields = after.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    // starttime is field 22 of the whole line, the 19th after the state.
    fields.nth(18)?.parse().ok()
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
        self.disk.write_file_atomic(STATUS_PATH, &bytes)
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
}
