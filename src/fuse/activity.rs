//! What a mount has been doing: for `--idle`, and for `status`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::op::{NAMES, Op};

/// Counts requests and open handles. Shared between the adapter and the process that serves it.
#[derive(Debug)]
pub struct Activity {
    start: Instant,
    /// Milliseconds after `start` of the last request that counts as use.
    last_use: AtomicU64,
    /// One for each kind of request.
    requests: [AtomicU64; NAMES.len()],
    errors: AtomicU64,
    handles: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            last_use: AtomicU64::new(0),
            requests: std::array::from_fn(|_| AtomicU64::new(0)),
            errors: AtomicU64::new(0),
            handles: AtomicU64::new(0),
        }
    }
}

impl Activity {
    /// Counts a request. `is_use`: somebody works with files, rather than a monitor asking for free space.
    pub(super) fn request(&self, op: Op, is_use: bool) {
        self.requests[op.index()].fetch_add(1, Ordering::Relaxed);
        if is_use {
            let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.last_use.store(now, Ordering::Relaxed);
        }
    }

    /// Counts a request that failed with an error of ours, not the caller's.
    pub fn error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an open file or directory.
    pub fn opened(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a closed one.
    pub fn released(&self) {
        let down = |n: u64| Some(n.saturating_sub(1));
        // The closure always gives a value, so this can't fail.
        let _ = self.handles.fetch_update(Ordering::Relaxed, Ordering::Relaxed, down);
    }

    /// Tells whether nothing is open and nothing was asked for so long.
    pub fn is_idle_for(&self, time: Duration) -> bool {
        let last = Duration::from_millis(self.last_use.load(Ordering::Relaxed));
        self.handles.load(Ordering::Relaxed) == 0 && self.start.elapsed().saturating_sub(last) >= time
    }

    /// The counters as JSON.
    pub fn report(&self) -> Value {
        let last = Duration::from_millis(self.last_use.load(Ordering::Relaxed));
        let counts = NAMES.iter().zip(&self.requests).map(|(name, n)| (*name, n.load(Ordering::Relaxed)));
        let requests: std::collections::BTreeMap<_, _> = counts.filter(|(_, n)| *n > 0).collect();
        json!({
            "requests": requests,
            "errors": self.errors.load(Ordering::Relaxed),
            "open_handles": self.handles.load(Ordering::Relaxed),
            "idle_seconds": self.start.elapsed().saturating_sub(last).as_secs(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::op;

    #[test]
    fn open_handles_and_requests_keep_a_mount_busy() {
        let activity = Activity::default();
        assert!(activity.is_idle_for(Duration::ZERO));
        assert!(!activity.is_idle_for(Duration::from_secs(60)));
        activity.opened();
        assert!(!activity.is_idle_for(Duration::ZERO));
        activity.released();
        activity.released();
        assert!(activity.is_idle_for(Duration::ZERO));
        std::thread::sleep(Duration::from_millis(20));
        activity.request(op::STATFS, false);
        assert!(activity.is_idle_for(Duration::from_millis(20)));
        activity.request(op::LOOKUP, true);
        assert!(!activity.is_idle_for(Duration::from_millis(20)));
        assert_eq!(activity.report()["requests"], json!({ "lookup": 1, "statfs": 1 }));
    }
}
