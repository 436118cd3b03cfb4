//! Room for what was fetched: some memory, and beyond that an unlinked file, so that nothing is left whatever ends this
//! process.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Bytes that may still be kept in memory.
    memory: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Current {
    file: Arc<File>,
    end: u64,
}

/// Where something is kept.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    /// A place in a scratch file.
    File { file: Arc<File>, at: u64, len: u64 },
    /// In memory, until the last copy of the slot is gone.
    Memory(Arc<Memory>),
}

/// Bytes that count against what may be in memory for as long as they are there.
#[derive(Debug)]
pub(super) struct Memory {
    bytes: Vec<u8>,
    left: Arc<AtomicU64>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.left.fetch_add(self.bytes.capacity() as u64, Ordering::Relaxed);
    }
}

impl Scratch {
    /// Makes the directory if it is missing, and a file in it. Up to `memory` bytes are kept in memory instead.
    ///
    /// # Errors
    /// When that is not possible, or the filesystem can't give back space in the middle of a file.
    pub(super) fn create(dir: &Path, env: Arc<dyn Env>, memory: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let file = Arc::new(unlinked(dir, &*env)?);
        let current = Mutex::new(Current { file, end: 0 });
        let scratch = Self { dir: dir.to_path_buf(), env, current, memory: Arc::new(AtomicU64::new(memory)) };
        scratch.free(&scratch.put_in_file(&[0])?)?;
        Ok(scratch)
    }

    /// Keeps bytes.
    pub(super) fn put(&self, bytes: Vec<u8>) -> io::Result<Slot> {
        // What it takes, which may be more than what is in it; the same is given back.
        let room = bytes.capacity() as u64;
        let taken =
            self.memory.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(room));
        if taken.is_ok() {
            return Ok(Slot::Memory(Arc::new(Memory { bytes, left: Arc::clone(&self.memory) })));
        }
        self.put_in_file(&bytes)
    }

    fn put_in_file(&self, bytes: &[u8]) -> io::Result<Slot> {
        let len = bytes.len() as u64;
        let slot = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.end > FILE_LEN_MAX {
                *current = Current { file: Arc::new(unlinked(&self.dir, &*self.env)?), end: 0 };
            }
            let at = current.end;
            // Whole units, so that all of it can be given back.
            current.end += rounded(len);
            Slot::File { file: Arc::clone(&current.file), at, len }
        };
        if let Slot::File { file, at, .. } = &slot
            && let Err(error) = file.write_all_at(bytes, *at)
        {
            // A full disk, most likely: what was written must not stay. The first error is the one to report.
            drop(self.free(&slot));
            return Err(error);
        }
        Ok(slot)
    }

    /// Gives the room of a slot back; memory when nobody has the slot any more.
    pub(super) fn free(&self, slot: &Slot) -> io::Result<()> {
        if let Slot::File { file, at, len } = slot {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&**file, flags, *at, rounded(*len).max(UNIT))?;
        }
        Ok(())
    }
}

impl Slot {
    /// Reads from `off` in the slot; the range lies inside.
    pub(super) fn read(&self, buf: &mut [u8], off: u64) -> io::Result<()> {
        match self {
            Self::File { file, at, .. } => file.read_exact_at(buf, at + off),
            Self::Memory(memory) => {
                let part = usize::try_from(off)
                    .ok()
                    .and_then(|off| memory.bytes.get(off..off.checked_add(buf.len())?));
                buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
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
        let scratch = Scratch::create(&dir.path().join("a/b"), Arc::new(SystemEnv), 0).unwrap();
        let slots: Vec<Slot> = (0..10_u8).map(|n| scratch.put(vec![n + 1; 1 << 20]).unwrap()).collect();
        let Slot::File { file, .. } = &slots[0] else { panic!("it is to be on the disk") };
        let room = || file.metadata().unwrap().blocks() * 512;
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

    #[test]
    fn memory_is_used_up_to_its_limit_and_again_when_it_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(dir.path(), Arc::new(SystemEnv), 3000).unwrap();
        let in_memory = |slot: &Slot| matches!(slot, Slot::Memory(_));
        let mut slots: Vec<Slot> = (1..=4).map(|n| scratch.put(vec![n; 1000]).unwrap()).collect();
        assert_eq!(slots.iter().map(in_memory).collect::<Vec<_>>(), [true, true, true, false]);
        for (slot, n) in slots.iter().zip(1..) {
            let mut buf = [0; 10];
            slot.read(&mut buf, 990).unwrap();
            assert_eq!(buf, [n; 10]);
            assert!(!in_memory(slot) || slot.read(&mut buf, 991).is_err(), "beyond the end");
        }
        let reader = slots[0].clone();
        scratch.free(&slots.remove(0)).unwrap();
        assert!(!in_memory(&scratch.put(vec![9; 1000]).unwrap()), "somebody still reads it");
        drop(reader);
        let back = scratch.put(vec![9; 1000]).unwrap();
        assert!(in_memory(&back));
        // Room that nothing is in counts, and no more is given back than was taken.
        drop((back, slots));
        let left = || scratch.memory.load(Ordering::Relaxed);
        assert_eq!(left(), 3000);
        let mut roomy = Vec::with_capacity(2500);
        roomy.push(1);
        let roomy = scratch.put(roomy).unwrap();
        assert!(in_memory(&roomy) && left() == 500);
        assert!(!in_memory(&scratch.put(vec![9; 1000]).unwrap()));
        drop(roomy);
        assert_eq!(left(), 3000);
    }
}
