//! Commits and checkpoints. The module text of `live` says in which order locks are taken, and why.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::base::{Base, Db, Meta};
use super::overlay::{Level, unshare};
use super::read::LiveView;
use super::{Live, Mem, RETRY_AFTER, Turn, closed};
use crate::store::error::{Result, StoreError};

/// The right to write the journal.
struct TurnGuard<'a>(&'a Live);

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        self.0.turn_lock().taken = false;
        self.0.turn_changed.notify_all();
    }
}

/// The log, taken out of memory by whoever is going to make it durable.
struct Captured {
    ops: Vec<u8>,
    from: u64,
    to: u64,
}

impl Captured {
    fn take(mem: &mut Mem) -> Captured {
        let (from, to) = (mem.log_from, mem.applied);
        mem.log_from = to;
        Captured { ops: std::mem::take(&mut mem.log), from, to }
    }
}

impl Live {
    /// Makes everything durable that was applied before the call. Those who wait at the same time share one write.
    ///
    /// # Errors
    /// `Poisoned`; `NoSpace` when the journal is full and the disk too; whatever the barrier reports. After any
    /// but the first nothing is lost, and the commit may be tried again.
    pub fn commit(&self) -> Result<()> {
        let target = self.mem().applied;
        loop {
            let Some(turn) = self.take_turn(Some(target))? else { return Ok(()) };
            let room = self.commit_in_turn(&turn)?;
            drop(turn);
            if room {
                // Half of both segments: a checkpoint in between costs less if it comes at a good moment, see
                // `checkpoint_if_worth`, and what is left takes what comes while this one runs.
                if self.journal_bytes() > self.cfg.segment() {
                    self.kick();
                }
            } else {
                self.make_journal_room()?;
            }
        }
    }

    /// Makes everything durable and puts it into the database, so that the journal is empty again.
    ///
    /// # Errors
    /// `NoSpace` when the database can't grow: everything is still visible, and durable if it was. `Poisoned`.
    pub fn checkpoint(&self) -> Result<()> {
        let mut db = self.db_lock();
        self.checkpoint_locked(&mut db, false).map(drop)
    }

    /// Starts a checkpoint, in the background if that is allowed, if the journal holds enough to be worth one. For those who
    /// know that few bytes would go into the database at this moment.
    pub fn checkpoint_if_worth(&self) {
        if self.journal_bytes() > self.cfg.segment() / 4 {
            self.kick();
        }
    }

    /// Makes a checkpoint and returns a view of exactly that state.
    pub fn view(&self) -> Result<LiveView> {
        let mut db = self.db_lock();
        self.checkpoint_locked(&mut db, false).map(LiveView::new)
    }

    /// Makes a last checkpoint, marks the state as cleanly closed and lets go of the files; views that still live
    /// keep the database open. From the first call on nothing can be applied.
    ///
    /// # Errors
    /// After `NoSpace` (or another error that leaves the vault sound, as the barrier may report) closing may be tried
    /// again. After `Poisoned` the files were let go. In either case the next open recovers what was durable.
    pub fn close(&self) -> Result<()> {
        self.mem_mut().closed = true;
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(worker) = worker
            && worker.thread().id() != std::thread::current().id()
        {
            // What it did wrong is in the poison flag, or will be found by the checkpoint below.
            drop(worker.join());
        }
        let mut db = self.db_lock();
        if db.is_none() {
            return Ok(());
        }
        let result = self.checkpoint_locked(&mut db, true).map(drop);
        if result.is_err() && !self.poison.is_set() {
            return result;
        }
        let base = self.mem_mut().base.take();
        drop((base, db.take()));
        result
    }

    /// Waits for the turn. `None`: batches up to `target` have become durable, no turn is needed.
    fn take_turn(&self, target: Option<u64>) -> Result<Option<TurnGuard<'_>>> {
        let mut turn: MutexGuard<'_, Turn> = self.turn_lock();
        loop {
            if target.is_some_and(|target| turn.durable >= target) {
                return Ok(None);
            }
            self.check()?;
            if !turn.taken {
                turn.taken = true;
                return Ok(Some(TurnGuard(self)));
            }
            turn = self.turn_changed.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn capture(&self) -> Captured {
        Captured::take(&mut self.mem_mut())
    }

    /// Puts a captured log back before what was applied since.
    fn put_back(&self, captured: Captured) {
        let mut mem = self.mem_mut();
        let mut ops = captured.ops;
        ops.extend_from_slice(&mem.log);
        (mem.log, mem.log_from) = (ops, captured.from);
    }

    fn barrier(&self) -> Result<()> {
        let barrier = self.barrier.read().unwrap_or_else(PoisonError::into_inner).clone();
        match barrier.and_then(|weak| weak.upgrade()) {
            Some(barrier) => barrier.before_commit(),
            None => Ok(()),
        }
    }

    /// Writes a captured log into the journal. False: there is no room.
    fn append(&self, captured: &Captured, _turn: &TurnGuard<'_>) -> Result<bool> {
        if captured.ops.is_empty() {
            return Ok(true);
        }
        // The barrier may have found a disk that must not be trusted any more.
        self.check()?;
        let floor = self.mem().floor;
        let mut journal = self.journal_lock();
        let appended = journal.append(&captured.ops, captured.from, captured.to, floor);
        self.journal_written.store(journal.written(), Ordering::Release);
        appended.inspect_err(|e| self.poison.set(&format!("the journal could not be written: {e}")))
    }

    fn set_durable(&self, to: u64) {
        let mut turn = self.turn_lock();
        turn.durable = turn.durable.max(to);
    }

    /// Commits what there is. False: the journal has no room.
    fn commit_in_turn(&self, turn: &TurnGuard<'_>) -> Result<bool> {
        let captured = self.capture();
        let appended = match captured.ops.is_empty() {
            true => Ok(true),
            false => self.barrier().and_then(|()| self.append(&captured, turn)),
        };
        match appended {
            Ok(true) => self.set_durable(captured.to),
            _ => self.put_back(captured),
        }
        appended
    }

    /// Waits until the journal has room for another group.
    fn make_journal_room(&self) -> Result<()> {
        let mut db = self.db_lock();
        // Someone else's checkpoint may have been what was needed. A log that failed commits made too long for any
        // segment goes straight into the database.
        let (floor, need) = {
            let mem = self.mem();
            (mem.floor, mem.log.len())
        };
        if self.journal_lock().has_room(need, floor) {
            return Ok(());
        }
        self.checkpoint_locked(&mut db, false).map(drop)
    }

    /// Waits until the overlay has room for a change of `need` bytes.
    pub(super) fn make_overlay_room(&self, need: usize) -> Result<()> {
        let mut db = self.db_lock();
        let bytes = self.mem().bytes();
        if bytes == 0 || bytes.saturating_add(need) <= self.cfg.overlay_bytes_max {
            return Ok(());
        }
        self.checkpoint_locked(&mut db, false).map(drop)
    }

    /// Clears the mark of a clean close.
    pub(super) fn write_unclean(&self) -> Result<()> {
        let mut db = self.db_lock();
        let meta = Meta { floor: self.mem().floor, clean: false, epoch: self.epoch, journal_end: None };
        let base = self.write(&mut db, None, meta)?;
        self.mem_mut().base = Some(base);
        Ok(())
    }

    fn write(&self, db: &mut Option<Db>, level: Option<&Level>, meta: Meta) -> Result<Arc<Base>> {
        let db = db.as_mut().ok_or_else(closed)?;
        if db.is_failed() {
            // Nothing has been written yet: an error here is no reason to distrust the disk.
            db.reopen()?;
        }
        let mut written = db.write(level, meta);
        if written.is_err() && db.is_failed() && !self.poison.is_set() {
            // A page could not be read. Whether the commit took place or not, the same rows once more do no harm.
            written = db.reopen().and_then(|()| db.write(level, meta));
        }
        written.inspect_err(|e| {
            if !matches!(e, StoreError::NoSpace) {
                self.poison.set(&format!("the live database could not be written: {e}"));
            }
        })
    }

    /// Makes a checkpoint. The caller holds the lock of the database, which is the lock of checkpoints.
    fn checkpoint_locked(&self, db: &mut MutexGuard<'_, Option<Db>>, clean: bool) -> Result<Arc<Base>> {
        self.check()?;
        let turn = self.take_turn(None)?.ok_or_else(closed)?;
        let (captured, frozen) = {
            let mut mem = self.mem_mut();
            let base = mem.base.as_ref().ok_or_else(closed)?;
            if mem.active.is_empty() && !clean {
                return Ok(base.clone());
            }
            let captured = Captured::take(&mut mem);
            let frozen = Arc::new(std::mem::take(&mut mem.active));
            mem.frozen = Some(frozen.clone());
            (captured, frozen)
        };
        let lsn = captured.to;
        let appended = self.barrier().and_then(|()| self.append(&captured, &turn));
        let kept = match appended {
            Ok(true) => {
                self.set_durable(lsn);
                drop(turn);
                None
            }
            Ok(false) => Some((turn, captured)),
            Err(e) => {
                drop(frozen);
                self.unfreeze();
                self.put_back(captured);
                return Err(e);
            }
        };
        let retired = self.journal_written.load(Ordering::Acquire);
        // After a clean close nothing is appended any more.
        let journal_end = if clean { Some(self.journal_lock().end()) } else { None };
        let result =
            self.write(&mut *db, Some(&frozen), Meta { floor: lsn, clean, epoch: self.epoch, journal_end });
        drop(frozen);
        match result {
            Ok(base) => {
                let old = {
                    let mut mem = self.mem_mut();
                    mem.floor = lsn;
                    (mem.frozen.take(), mem.base.replace(base.clone()))
                };
                // Freed here, not under the lock.
                drop(old);
                self.journal_retired.store(retired, Ordering::Release);
                if let Some((_turn, _)) = kept {
                    self.set_durable(lsn);
                }
                Ok(base)
            }
            Err(e) => {
                self.unfreeze();
                if let Some((_turn, captured)) = kept {
                    self.put_back(captured);
                }
                if matches!(e, StoreError::NoSpace) {
                    *self.retry_at.lock().unwrap_or_else(PoisonError::into_inner) =
                        self.env.monotonic() + RETRY_AFTER;
                }
                Err(e)
            }
        }
    }

    /// Puts frozen changes back below the active ones.
    fn unfreeze(&self) {
        let mut mem = self.mem_mut();
        if let Some(frozen) = mem.frozen.take() {
            let newer = std::mem::replace(&mut mem.active, unshare(frozen));
            mem.active.absorb(newer);
        }
    }

    /// Starts a checkpoint that has become advisable, in the background if that is allowed. What goes wrong shows in
    /// the poison flag, or again when a checkpoint becomes necessary.
    pub(super) fn kick(&self) {
        if self.mem().closed {
            return;
        }
        let retry_at = *self.retry_at.lock().unwrap_or_else(PoisonError::into_inner);
        if self.env.monotonic() < retry_at || self.kicked.swap(true, Ordering::AcqRel) {
            return;
        }
        if self.cfg.background
            && let Some(live) = self.me.upgrade()
        {
            let name = String::from("sr-checkpoint");
            let spawned = std::thread::Builder::new().name(name).spawn(move || live.advisable_checkpoint());
            if let Ok(thread) = spawned {
                // The one before has done its work, or `kicked` would be set.
                let old = self.worker.lock().unwrap_or_else(PoisonError::into_inner).replace(thread);
                drop(old);
                return;
            }
        }
        self.advisable_checkpoint();
    }

    fn advisable_checkpoint(&self) {
        if let Err(error) = self.checkpoint() {
            tracing::warn!(%error, "a checkpoint of the live database failed");
        }
        self.kicked.store(false, Ordering::Release);
    }
}
