//! Room on the local disk for what was fetched: an unlinked file, so that nothing is left whatever ends this process.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::FallocateFlags;

use crate::env::Env;

/// Space is given back in units of this many bytes.
pub(super) const UNIT: u64 = 4096;
/// No file grows beyond this; then a new one is begun. The old one goes with the last slot in it.
const FILE_LEN_MAX: u64 = 1 << 40;

/// See the module.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: PathBuf,
    env: Arc<dyn Env>,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    file: Arc<File>,
    end: u64,
}

/// A place in a scratch file.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    file: Arc<File>,
    at: u64,
    len: u64,
}

impl Scratch {
    /// Makes the directory if it is missing, and a file in it.
    ///
    /// # Errors
    /// When that is not possible, or the filesystem can't give back space in the middle of a file.
    pub(super) fn create(dir: &Path, env: Arc<dyn Env>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let file = Arc::new(unlinked(dir, &*env)?);
        let scratch = Self { dir: dir.to_path_buf(), env, current: Mutex::new(Current { file, end: 0 }) };
        scratch.free(&scratch.put(&[0])?)?;
        Ok(scratch)
    }

    /// Keeps bytes.
    pub(super) fn put(&self, bytes: &[u8]) -> io::Result<Slot> {
        let len = bytes.len() as u64;
        let slot = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.end > FILE_LEN_MAX {
                *current = Current { file: Arc::new(unlinked(&self.dir, &*self.env)?), end: 0 };
            }
            let at = current.end;
            // Whole units, so that all of it can be given back.
            current.end += rounded(len);
            Slot { file: Arc::clone(&current.file), at, len }
        };
        if let Err(error) = slot.file.write_all_at(bytes, slot.at) {
            // A full disk, most likely: what was written must not stay. The first error is the one to report.
            drop(self.free(&slot));
            return Err(error);
        }
        Ok(slot)
    }

    /// Gives the room of a slot back.
    pub(super) fn free(&self, slot: &Slot) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&*slot.file, flags, slot.at, rounded(slot.len).max(UNIT))?;
        Ok(())
    }
}

impl Slot {
    /// Reads from `off` in the slot; the range lies inside.
    pub(super) fn read(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, self.at + off)
    }
}

/// The room that so many bytes take.
pub(super) fn rounded(len: u64) -> u64 {
    len.next_multiple_of(UNIT)
}

/// A new file without a name.
fn unlinked(dir: &Path, env: &dyn Env) -> io::Result<File> {
    let mut random = [0; 16];
    env.random(&mut random);
    let path = dir.join(format!("fetched-{}", data_encoding::HEXLOWER.encode(&random)));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::env::SystemEnv;

    #[test]
    fn what_is_given_back_takes_no_room_and_nothing_has_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(&dir.path().join("a/b"), Arc::new(SystemEnv)).unwrap();
        let slots: Vec<Slot> = (0..10_u8).map(|n| scratch.put(&vec![n + 1; 1 << 20]).unwrap()).collect();
        let room = || slots[0].file.metadata().unwrap().blocks() * 512;
        assert!(room() >= 10 << 20);
        for (n, slot) in (0..10_u8).zip(&slots) {
            let mut buf = [0; 3];
            slot.read(&mut buf, (1 << 20) - 3).unwrap();
            assert_eq!(buf, [n + 1; 3]);
        }
        for slot in &slots[1..] {
            scratch.free(slot).unwrap();
        }
        assert!(room() < 2 << 20, "{}", room());
        assert_eq!(std::fs::read_dir(dir.path().join("a/b")).unwrap().count(), 0);
    }
}
