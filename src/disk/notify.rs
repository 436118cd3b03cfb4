//! Being told when packs and snapshots appear in a vault (inotify), instead of looking all the time.
//!
//! It only ever says that it is time to look: what is there is read as always. Filesystems that tell nothing (NFS changed
//! from another machine), or systems with no watches left, are why everybody who uses this looks now and then all the same.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;

/// Directories with packs: one for each value of the first byte of a name.
const FOLDERS_MAX: usize = 256;

/// Readable when something was changed in a vault since it was made, or drained.
#[derive(Debug)]
pub struct Notify {
    fd: OwnedFd,
}

impl Notify {
    /// Watches the names in a vault: of its header, its snapshots, its packs. Not its live state, which always changes.
    ///
    /// # Errors
    /// When the directory is not there, or the system has no watches left.
    pub fn new(vault: &Path) -> io::Result<Self> {
        let fd = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // The user named this path; below it links are not followed.
        add_watch(&fd, vault, WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ONLYDIR | GONE)?;
        let below = WatchFlags::MOVED_TO
            | WatchFlags::CREATE
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW
            | WatchFlags::EXCL_UNLINK
            | GONE;
        let add = |path: &Path| match add_watch(&fd, path, below) {
            // Not there yet, or no directory: then nothing can appear in it.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(io::Error::from(error)),
        };
        add(&vault.join("snapshots"))?;
        let packs = vault.join("packs");
        // Before its entries are read: a directory that is made meanwhile is seen one way or the other.
        add(&packs)?;
        let folders = match std::fs::read_dir(&packs) {
            Ok(folders) => folders,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { fd }),
            Err(error) => return Err(error),
        };
        let is_folder = |name: &str| name.len() == 2 && name.bytes().all(|b| b.is_ascii_hexdigit());
        for folder in folders.take(2 * FOLDERS_MAX) {
            let folder = folder?;
            if folder.file_name().to_str().is_some_and(is_folder) {
                add(&folder.path())?;
            }
        }
        Ok(Self { fd })
    }

    /// Forgets what happened so far.
    pub fn drain(&self) {
        let mut buf = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.fd, &mut buf);
        // What they say does not matter, only that there were any; the end is an error that means "no more".
        while reader.next().is_ok() {}
    }
}

/// A directory that goes away, with its disk or without.
const GONE: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(notify: &Notify) -> bool {
        let mut fds = [PollFd::new(notify, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    }

    #[test]
    fn new_packs_snapshots_and_headers_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let vault = dir.path();
        for name in ["packs/ab", "snapshots", "live"] {
            fs::create_dir_all(vault.join(name)).unwrap();
        }
        fs::write(vault.join("live/new"), "x").unwrap();
        let notify = Notify::new(vault).unwrap();
        let changes: [(&str, &dyn Fn()); 5] = [
            ("a pack", &|| fs::rename(vault.join("live/new"), vault.join("packs/ab/abcd")).unwrap()),
            ("a first pack", &|| fs::create_dir(vault.join("packs/cd")).unwrap()),
            ("a snapshot", &|| fs::write(vault.join("snapshots/1"), "x").unwrap()),
            ("a header", &|| fs::write(vault.join("vault.json"), "x").unwrap()),
            ("the end", &|| fs::remove_dir_all(vault).unwrap()),
        ];
        for (what, change) in changes {
            assert!(!is_readable(&notify), "before {what}");
            change();
            assert!(is_readable(&notify), "{what}");
            notify.drain();
        }
        Notify::new(vault).unwrap_err();
    }

    #[test]
    fn live_state_and_reading_are_no_news() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["packs/ab", "live"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("packs/ab/abcd"), "x").unwrap();
        let notify = Notify::new(dir.path()).unwrap();
        fs::write(dir.path().join("live/status.json"), "x").unwrap();
        fs::read(dir.path().join("packs/ab/abcd")).unwrap();
        fs::remove_file(dir.path().join("packs/ab/abcd")).unwrap();
        assert!(!is_readable(&notify));
    }
}
