//! Stands between redb and the block file, and keeps redb readable when writing fails.
//!
//! redb stops everything, reads too, once its backend returned one error. But reads must go on in a poisoned vault,
//! and a full disk is no reason to stop at all. So the shield never returns an error of a write:
//!
//! - *starved*: the disk is full. What could not be written (and growth that could not be had) is held in memory.
//!   The caller sees [`Shield::is_starved`], aborts its transaction if it still can, and reports `NoSpace`.
//!   [`Shield::settle`] tries again later.
//! - *deferred*: the disk filled up while redb committed. redb commits by writing its header, so the header is held
//!   back, and so is all that redb writes after it: pages that are free in the new state may be needed by the old
//!   one. On disk the transaction has not happened. `settle` makes it happen: the pages from before the header,
//!   sync, the header, sync, and then the rest. For redb it has happened, which does no harm: the caller reports
//!   `NoSpace`, keeps what it wanted to write, and writes it again after `settle`.
//! - *dead*: after any other failure nothing is written any more, everything is held, and the vault is poisoned.
//!   redb believes that its commit succeeded; whoever asked for it must look at [`Shield::is_dead`] first.
//!
//! What is held is bounded by one write transaction, because none is begun before `settle` succeeded.
//!
//! Errors of reads are passed on: nothing can be invented for those. redb then refuses all that it has not cached, so
//! the database is opened again on the same shield ([`super::base::Db::reopen`]), through a [`Handle`] of its own. The
//! handle before is retired first: whatever still reads through it gets an error, never a page that the newer
//! database has written since.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::StorageBackend;

use crate::disk::is_full;
use crate::store::poison::Poison;

/// What is held is kept in pieces of redb's page size; redb writes whole pages, and its header.
const PAGE: u64 = 4096;

/// A backend whose writes never fail visibly. See the module's text.
#[derive(Debug)]
pub(super) struct Shield {
    inner: Box<dyn StorageBackend>,
    poison: Poison,
    /// Something is held or owed. Set under the lock of `held`; a reader that finds it unset reads pages that redb
    /// made visible before, and those are not held.
    starved: AtomicBool,
    dead: AtomicBool,
    held: RwLock<Held>,
    /// Serialises writers, so that held pages and the file change in one order.
    writer: Mutex<()>,
}

type Pages = BTreeMap<u64, Box<[u8]>>;

#[derive(Debug, Default)]
struct Held {
    /// Length that redb asked for.
    len: u64,
    /// Length of the file below. Less than `len` when growth is missing.
    real_len: u64,
    /// Pages that must be written before the header, and the header (page 0) if it is held.
    early: Pages,
    /// Pages that must not be written before the header is durable.
    late: Pages,
    /// The header waits in `early`.
    deferred: bool,
    /// The header was written, but not synced yet.
    header_unsynced: bool,
}

/// redb takes its backend by value; this is the handle it gets.
#[derive(Debug)]
pub(super) struct Handle {
    shield: Arc<Shield>,
    pass: Arc<Pass>,
}

/// What a handle may still do. Kept by whoever opened the database.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// A read failed: redb refuses to work on.
    failed: AtomicBool,
    /// Another handle has taken over. Held shared while this one works.
    retired: RwLock<bool>,
    /// Closing this handle closes the file.
    owner: AtomicBool,
}

impl Pass {
    /// Whether redb was told of an error, after which it refuses to work.
    pub(super) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Ends the handle's work: on return nothing of it is under way, and nothing begins any more.
    pub(super) fn retire(&self) {
        *self.retired.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Lets the handle close the file when it is closed.
    pub(super) fn make_owner(&self) {
        self.owner.store(true, Ordering::Release);
    }

    /// Runs `work` unless the handle is retired.
    fn run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let retired = self.retired.read().unwrap_or_else(PoisonError::into_inner);
        if *retired {
            return Err(io::Error::other("the database was opened again after a failed read"));
        }
        let result = work();
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }
}

impl Handle {
    pub(super) fn new(shield: Arc<Shield>) -> Self {
        Handle { shield, pass: Arc::default() }
    }

    /// What this handle may do, to be asked and changed after redb has taken the handle.
    pub(super) fn pass(&self) -> Arc<Pass> {
        self.pass.clone()
    }
}

impl Shield {
    pub(super) fn new(inner: Box<dyn StorageBackend>, poison: Poison) -> io::Result<Arc<Self>> {
        let len = inner.len()?;
        let held = RwLock::new(Held { len, real_len: len, ..Held::default() });
        let (starved, dead) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Arc::new(Shield { inner, poison, starved, dead, held, writer: Mutex::new(()) }))
    }

    /// Nothing is written any more.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// The disk was full: not everything that redb wrote is on disk.
    pub(super) fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Acquire)
    }

    /// Returns the length that redb sees.
    pub(super) fn len(&self) -> u64 {
        self.read_held().len
    }

    /// Writes what is held. False: the disk is still full, or the shield is dead.
    pub(super) fn settle(&self) -> bool {
        let _writer = self.lock_writer();
        self.settle_locked()
    }

    /// The caller is the only writer.
    fn settle_locked(&self) -> bool {
        if self.is_dead() {
            return false;
        }
        if !self.is_starved() {
            return true;
        }
        let mut held = self.write_held();
        if let Err(e) = self.try_settle(&mut held) {
            self.failed("write the database", &e);
            return false;
        }
        self.starved.store(false, Ordering::Release);
        true
    }

    fn try_settle(&self, held: &mut Held) -> io::Result<()> {
        if held.len != held.real_len {
            self.inner.set_len(held.len)?;
            held.real_len = held.len;
        }
        let start = if held.deferred { PAGE } else { 0 };
        while let Some((&offset, page)) = held.early.range(start..).next() {
            self.inner.write(offset, page)?;
            held.early.remove(&offset);
        }
        self.inner.sync_data()?;
        if held.deferred {
            if let Some(header) = held.early.get(&0) {
                self.inner.write(0, header)?;
                self.inner.sync_data()?;
                held.early.remove(&0);
            }
            held.deferred = false;
        }
        held.header_unsynced = false;
        // From here on there is nothing that these would have to wait for.
        let late = std::mem::take(&mut held.late);
        held.early.extend(late);
        while let Some(entry) = held.early.first_entry() {
            self.inner.write(*entry.key(), entry.get())?;
            entry.remove();
        }
        Ok(())
    }

    /// Classifies a failure. A full disk only starves; anything else is fatal.
    fn failed(&self, what: &str, error: &io::Error) {
        self.starved.store(true, Ordering::Release);
        if !is_full(error) {
            self.poison.set(&format!("cannot {what}: {error}"));
            self.dead.store(true, Ordering::Release);
        }
    }

    fn lock_writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_held(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts bytes over what a read of this range returns.
    fn hold(&self, held: &mut Held, offset: u64, data: &[u8]) -> io::Result<()> {
        self.starved.store(true, Ordering::Release);
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let start = at - at % PAGE;
            let skip = usize::try_from(at - start).map_err(|_| out_of_range())?;
            let n = (data.len() - done).min(PAGE as usize - skip);
            let mut page = vec![0; PAGE as usize].into_boxed_slice();
            if n < PAGE as usize {
                // The rest of a partly written page is what it was.
                self.read_through(held, start, &mut page)?;
            }
            page[skip..skip + n].copy_from_slice(&data[done..done + n]);
            let late = held.deferred && start != 0;
            let pages = if late { &mut held.late } else { &mut held.early };
            pages.insert(start, page);
            done += n;
        }
        Ok(())
    }

    /// Reads the file below, and what is held over it.
    fn read_through(&self, held: &Held, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = end_of(offset, out.len())?;
        // The file may be shorter than redb was told; what lies beyond and is not held reads as zeros.
        let n = usize::try_from(held.real_len.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let first = offset - offset % PAGE;
        let whole = |pages: &Pages| pages.range(first..end).count() as u64 == (end - first).div_ceil(PAGE);
        if n > 0 && !whole(&held.early) && !whole(&held.late) {
            self.inner.read(offset, &mut out[..n])?;
        }
        out[n..].fill(0);
        for (start, page) in held.early.range(first..end).chain(held.late.range(first..end)) {
            let from = offset.max(*start);
            let to = end.min(start + PAGE);
            let range = |base: u64| -> io::Result<std::ops::Range<usize>> {
                let at = |x: u64| usize::try_from(x - base).map_err(|_| out_of_range());
                Ok(at(from)?..at(to)?)
            };
            out[range(offset)?].copy_from_slice(&page[range(*start)?]);
        }
        Ok(())
    }
}

fn out_of_range() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the database")
}

fn end_of(offset: u64, len: usize) -> io::Result<u64> {
    offset.checked_add(len as u64).ok_or_else(out_of_range)
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.pass.run(|| Ok(self.shield.len()))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.pass.run(|| self.shield.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.pass.run(|| self.shield.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.pass.run(|| self.shield.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.pass.run(|| self.shield.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        // Of a retired handle the file is somebody else's by now.
        let retired = self.pass.retired.read().unwrap_or_else(PoisonError::into_inner);
        if *retired || !self.pass.owner.load(Ordering::Acquire) { Ok(()) } else { self.shield.inner.close() }
    }
}

impl Shield {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let shield = self;
        if !shield.is_starved() {
            return shield.inner.read(offset, out);
        }
        let held = shield.read_held();
        if end_of(offset, out.len())? > held.len {
            return Err(out_of_range());
        }
        shield.read_through(&held, offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let shield = self;
        let _writer = shield.lock_writer();
        let mut held = shield.write_held();
        held.len = len;
        let end = len.next_multiple_of(PAGE);
        drop((held.early.split_off(&end), held.late.split_off(&end)));
        if shield.is_dead() || held.deferred || held.real_len == len {
            return Ok(());
        }
        match shield.inner.set_len(len) {
            Ok(()) => held.real_len = len,
            Err(e) => shield.failed("change the length of the database", &e),
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let shield = self;
        let _writer = shield.lock_writer();
        let mut held = shield.write_held();
        if shield.is_dead() || held.deferred {
            return Ok(());
        }
        // While starved this makes durable what could be written: no harm, because no header is among it.
        match shield.inner.sync_data() {
            Ok(()) => held.header_unsynced = false,
            Err(e) => {
                shield.failed("sync the database", &e);
                if held.header_unsynced && !shield.is_dead() {
                    // The header is not durable: it counts as not written.
                    let mut header = vec![0; PAGE as usize].into_boxed_slice();
                    shield.inner.read(0, &mut header)?;
                    held.early.insert(0, header);
                    held.deferred = true;
                }
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let shield = self;
        let _writer = shield.lock_writer();
        let is_header = offset < PAGE;
        if is_header && shield.is_starved() && !shield.is_dead() && !shield.read_held().deferred {
            let settled = shield.settle_locked();
            shield.write_held().deferred = !settled;
        }
        if !shield.is_dead() {
            let may_write = {
                let held = shield.read_held();
                let end = end_of(offset, data.len())?;
                let first = offset - offset % PAGE;
                // A page that is held already must not get an older version below a newer one: hold it again.
                let covered = held.early.range(first..end).next().is_some();
                !held.deferred && !covered && end <= held.real_len
            };
            if may_write {
                match shield.inner.write(offset, data) {
                    Ok(()) => {
                        if is_header {
                            shield.write_held().header_unsynced = true;
                        }
                        return Ok(());
                    }
                    Err(e) => {
                        shield.failed("write the database", &e);
                        if is_header {
                            shield.write_held().deferred = true;
                        }
                    }
                }
            }
        }
        shield.hold(&mut shield.write_held(), offset, data)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::AtomicU8;

    use redb::backends::InMemoryBackend;

    use super::*;

    const FINE: u8 = 0;
    const FULL: u8 = 1;
    const FULL_SYNC: u8 = 2;
    const BROKEN: u8 = 3;

    /// Memory that fails on command and remembers what was done to it.
    #[derive(Debug)]
    struct Moody(InMemoryBackend, Arc<AtomicU8>, Arc<Mutex<Vec<String>>>);

    impl Moody {
        fn fail_on(&self, moods: &[u8]) -> io::Result<()> {
            match self.1.load(Ordering::SeqCst) {
                mood if !moods.contains(&mood) => Ok(()),
                BROKEN => Err(io::Error::other("broken")),
                _ => Err(io::Error::from(io::ErrorKind::StorageFull)),
            }
        }
        fn did(&self, what: String) {
            self.2.lock().unwrap().push(what);
        }
    }

    impl StorageBackend for Moody {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            if len > self.0.len()? {
                self.fail_on(&[FULL, BROKEN])?;
            }
            self.0.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.fail_on(&[FULL_SYNC, BROKEN])?;
            self.did("sync".into());
            Ok(())
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.fail_on(&[FULL, BROKEN])?;
            self.did(format!("write {}", offset / PAGE));
            self.0.write(offset, data)
        }
    }

    type Steps = Arc<Mutex<Vec<String>>>;

    fn shield() -> (Arc<Shield>, Handle, Arc<AtomicU8>, Poison, Steps) {
        let mood = Arc::new(AtomicU8::new(FINE));
        let (poison, steps) = (Poison::new(), Steps::default());
        let inner = Box::new(Moody(InMemoryBackend::new(), mood.clone(), steps.clone()));
        let shield = Shield::new(inner, poison.clone()).unwrap();
        let handle = Handle::new(shield.clone());
        handle.set_len(3 * PAGE).unwrap();
        (shield, handle, mood, poison, steps)
    }

    /// The first byte of a page in the file below.
    fn real(shield: &Shield, offset: u64) -> u8 {
        let mut byte = [0];
        shield.inner.read(offset, &mut byte).unwrap();
        byte[0]
    }

    fn read(handle: &Handle, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0xee; len];
        handle.read(offset, &mut out).unwrap();
        out
    }

    #[test]
    fn a_full_disk_starves_and_settles() {
        let (shield, handle, mood, poison, _) = shield();
        handle.write(PAGE, &[1; 4096]).unwrap();
        mood.store(FULL, Ordering::SeqCst);
        handle.write(PAGE + 10, &[2; 20]).unwrap();
        handle.set_len(5 * PAGE).unwrap();
        handle.write(3 * PAGE, &[3; 8192]).unwrap();
        handle.sync_data().unwrap();
        assert!(
            shield.is_starved() && !shield.is_dead() && !shield.settle() && handle.len().unwrap() == 5 * PAGE
        );
        let check = |handle: &Handle| {
            let page = read(handle, PAGE, 4096);
            assert!(page[..10] == [1; 10] && page[10..30] == [2; 20] && page[30..] == [1; 4066]);
            let all = read(handle, PAGE - 5, 5 + 4096 * 4);
            assert!(
                all[..5] == [0; 5] && all[5 + 4096..5 + 8192] == [0; 4096] && all[5 + 8192..] == [3; 8192]
            );
        };
        check(&handle);
        mood.store(FINE, Ordering::SeqCst);
        check(&handle);
        // A page that is held stays newer than the file.
        handle.write(3 * PAGE, &[4; 4096]).unwrap();
        assert_eq!(read(&handle, 3 * PAGE, 1), [4]);
        handle.write(3 * PAGE, &[3; 4096]).unwrap();
        assert!(shield.settle() && !shield.is_starved());
        check(&handle);
        assert_eq!(shield.inner.len().unwrap(), 5 * PAGE);
        assert!(!poison.is_set());
    }

    #[test]
    fn an_aborted_growth_leaves_nothing() {
        let (shield, handle, mood, ..) = shield();
        mood.store(FULL, Ordering::SeqCst);
        handle.set_len(5 * PAGE).unwrap();
        handle.write(4 * PAGE, &[3; 4096]).unwrap();
        handle.set_len(3 * PAGE).unwrap();
        assert!(shield.settle(), "nothing is left to write");
        assert_eq!(shield.len(), 3 * PAGE);
    }

    #[test]
    fn a_header_waits_for_what_is_held() {
        let (shield, handle, mood, poison, _) = shield();
        mood.store(FULL, Ordering::SeqCst);
        handle.write(PAGE, &[9; 4096]).unwrap();
        mood.store(FINE, Ordering::SeqCst);
        handle.write(0, &[2; 320]).unwrap();
        assert!(!shield.is_dead() && !poison.is_set() && !shield.is_starved());
        assert_eq!(real(&shield, PAGE), 9);
    }

    #[test]
    fn a_commit_on_a_full_disk_happens_later() {
        for full_at_sync in [false, true] {
            let (shield, handle, mood, poison, steps) = shield();
            handle.write(0, &[1; 320]).unwrap();
            handle.sync_data().unwrap();
            if full_at_sync {
                handle.write(PAGE, &[9; 4096]).unwrap();
                handle.write(0, &[2; 320]).unwrap();
                mood.store(FULL_SYNC, Ordering::SeqCst);
            } else {
                mood.store(FULL, Ordering::SeqCst);
                handle.write(PAGE, &[9; 4096]).unwrap();
                handle.write(0, &[2; 320]).unwrap();
            }
            handle.sync_data().unwrap();
            assert!(shield.is_starved() && !shield.is_dead() && !poison.is_set());
            // Writes that come after the header must not pass it, even when there is room again.
            mood.store(FINE, Ordering::SeqCst);
            handle.write(2 * PAGE, &[7; 4096]).unwrap();
            handle.write(0, &[3; 320]).unwrap();
            handle.sync_data().unwrap();
            assert_eq!(real(&shield, 2 * PAGE), 0);
            let seen = [0, 1, 2].map(|page| read(&handle, page * PAGE, 1)[0]);
            assert_eq!(seen, [3, 9, 7]);
            assert!(shield.settle() && !shield.is_starved());
            assert_eq!([0, 1, 2].map(|page| real(&shield, page * PAGE)), [3, 9, 7]);
            let steps = steps.lock().unwrap();
            let at = |what: &str| steps.iter().rposition(|s| s == what).unwrap();
            assert!(at("write 0") < at("write 2") && steps[at("write 0") - 1] == "sync");
            assert!(at("write 1") < at("write 0"));
        }
    }

    #[test]
    fn a_broken_disk_is_dead_but_readable() {
        for by_sync in [false, true] {
            let (shield, handle, mood, poison, _) = shield();
            handle.write(PAGE, &[1; 4096]).unwrap();
            mood.store(BROKEN, Ordering::SeqCst);
            if by_sync {
                handle.sync_data().unwrap();
            } else {
                handle.write(PAGE, &[2; 4096]).unwrap();
            }
            assert!(shield.is_dead() && poison.is_set());
            mood.store(FINE, Ordering::SeqCst);
            handle.write(2 * PAGE, &[5; 4096]).unwrap();
            handle.set_len(9 * PAGE).unwrap();
            assert_eq!(read(&handle, 2 * PAGE, 1), [5]);
            assert_eq!(read(&handle, 8 * PAGE, 4096), vec![0; 4096]);
            assert_eq!(real(&shield, 2 * PAGE), 0);
            assert!(!shield.settle());
        }
    }
}
