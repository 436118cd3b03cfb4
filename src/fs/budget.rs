//! The bound on file data in memory: what was written and is not published yet.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Core;
use super::error::{FsError, FsResult};

/// How long a blocked writer sleeps before it looks for data to push out again, in case a wake-up it counted on went
/// to data that came and went meanwhile.
const RECHECK: Duration = Duration::from_millis(50);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Budget {
    max: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    peak: u64,
    failures: u64,
    last_error: Option<FsError>,
}

impl Budget {
    /// Returns a budget of `max` bytes.
    pub(super) fn new(max: u64) -> Self {
        Self { max, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the bytes in use and the most that ever were.
    pub(super) fn usage(&self) -> (u64, u64) {
        let state = self.lock();
        (state.used, state.peak)
    }

    /// Gives bytes back.
    fn release(&self, bytes: u64) {
        let mut state = self.lock();
        debug_assert!(state.used >= bytes, "released more than was reserved");
        state.used = state.used.saturating_sub(bytes);
        drop(state);
        self.changed.notify_all();
    }

    /// Tells blocked writers that data could not be stored: they fail instead of waiting for room that may never come.
    pub(super) fn failed(&self, error: &FsError) {
        let mut state = self.lock();
        state.failures += 1;
        state.last_error = Some(error.clone());
        drop(state);
        self.changed.notify_all();
    }
}

impl Core {
    /// Takes `bytes` of disk and of memory for data about to be written; waits until there is memory, pushing out the
    /// largest file's data itself. Hold no lock.
    ///
    /// # Errors
    /// ENOSPC if the disk could not take them; the reason why data in memory can't be stored, if there is no room for
    /// more of it.
    pub(super) fn reserve(&self, bytes: u64) -> FsResult<()> {
        self.engine.admit(bytes)?;
        let reserved = self.reserve_memory(bytes);
        if reserved.is_err() {
            self.engine.settle(bytes);
        }
        reserved
    }

    fn reserve_memory(&self, bytes: u64) -> FsResult<()> {
        let budget = &self.budget;
        let mut failures = None;
        loop {
            let mut state = budget.lock();
            // A single request larger than the bound must get through, too: alone.
            if state.used == 0 || state.used.saturating_add(bytes) <= budget.max {
                state.used += bytes;
                state.peak = state.peak.max(state.used);
                return Ok(());
            }
            if *failures.get_or_insert(state.failures) != state.failures
                && let Some(error) = state.last_error.clone()
            {
                return Err(error);
            }
            let used = state.used;
            drop(state);
            // While chunks are in flight the workers make room. Pushing out may cut a file where its data happens to end, which
            // is no place that its content chose: done for each blocked write, it would cost deduplication.
            let in_flight = used > self.dirty_total();
            if !in_flight && let Some(node) = self.largest_node() {
                self.push_out_pressed(&node);
            }
            let state = budget.lock();
            if state.used > 0
                && state.used.saturating_add(bytes) > budget.max
                && failures == Some(state.failures)
            {
                let (state, _) =
                    budget.changed.wait_timeout(state, RECHECK).unwrap_or_else(PoisonError::into_inner);
                drop(state);
            }
        }
    }

    /// Gives back what [`Core::reserve`] took: the data is stored, or dropped.
    pub(super) fn unreserve(&self, bytes: u64) {
        if bytes > 0 {
            self.engine.settle(bytes);
            self.budget.release(bytes);
        }
    }
}
