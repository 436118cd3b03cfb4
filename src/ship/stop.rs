//! Asking a shipment to end, and waiting in a way that ends at once when that is asked.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::disk::Notify;
use crate::remote::Pause;

/// Whether to go on. Shared by everything that works on a shipment.
#[derive(Debug)]
pub struct Stop {
    /// 0: go on; 1: begin no object; 2: give up those under way as well.
    level: AtomicU8,
    /// Readable as soon as the level is not 0.
    wake: OwnedFd,
    /// Readable as soon as the level is 2.
    wake_abandoned: OwnedFd,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// It was asked to end.
    Stopped,
    /// Something was changed where it was watched.
    Changed,
    /// The time is over.
    TimeOver,
}

impl Stop {
    /// A shipment that goes on.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self { level: AtomicU8::new(0), wake: eventfd(0, flags)?, wake_abandoned: eventfd(0, flags)? })
    }

    fn raise(&self, level: u8, wake: &OwnedFd) {
        self.level.fetch_max(level, Ordering::SeqCst);
        // Never read again: everybody who waits, now or later, is woken. Any number but zero does.
        if let Err(error) = rustix::io::write(wake, &[1; 8]) {
            tracing::debug!(%error, "waking up");
        }
    }

    /// Begins no more objects; those under way are finished.
    pub fn finish(&self) {
        self.raise(1, &self.wake);
    }

    /// Gives up the objects under way: at the remote they were never there.
    pub fn abandon(&self) {
        self.raise(2, &self.wake);
        self.raise(2, &self.wake_abandoned);
    }

    /// Whether to end.
    pub fn is_asked(&self) -> bool {
        self.level.load(Ordering::SeqCst) > 0
    }

    /// Whether to end at once.
    pub fn is_abandoned(&self) -> bool {
        self.level.load(Ordering::SeqCst) > 1
    }

    /// Waits for a time, or until it is asked to end, or until something changes where `notify` looks.
    pub fn wait(&self, time: Duration, notify: Option<&Notify>) -> Woken {
        if self.is_asked() {
            return Woken::Stopped;
        }
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        fds.extend(notify.map(|notify| PollFd::from_borrowed_fd(notify.as_fd(), PollFlags::IN)));
        poll_for(&mut fds, time);
        let changed = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if self.is_asked() {
            return Woken::Stopped;
        }
        match notify {
            Some(notify) if changed => {
                notify.drain();
                Woken::Changed
            }
            _ => Woken::TimeOver,
        }
    }
}

/// Pauses of speed limits and of tries that are repeated: cut short only when everything is given up, since until then
/// a limit is a limit.
impl Pause for Stop {
    fn pause(&self, time: Duration) {
        poll_for(&mut [PollFd::new(&self.wake_abandoned, PollFlags::IN)], time);
    }
}

/// Waits for one of these, or for a time. Ends early now and then: who waits looks at the world again anyway.
fn poll_for(fds: &mut [PollFd<'_>], time: Duration) {
    let timeout = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    match poll(fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => {
            // Must not become a busy loop.
            tracing::warn!(%error, "waiting failed");
            std::thread::sleep(time.min(Duration::from_secs(1)));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;

    #[test]
    fn whoever_waits_is_woken_and_nobody_waits_any_more() {
        let stop = Arc::new(Stop::new().unwrap());
        assert_eq!(stop.wait(Duration::from_millis(1), None), Woken::TimeOver);
        assert!(!stop.is_asked());
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || stop.wait(Duration::from_secs(1000), None))
            })
            .collect();
        stop.finish();
        for thread in waiting {
            assert_eq!(thread.join().unwrap(), Woken::Stopped);
        }
        assert_eq!(stop.wait(Duration::from_secs(1000), None), Woken::Stopped);
        assert!(stop.is_asked() && !stop.is_abandoned());
        let start = std::time::Instant::now();
        stop.pause(Duration::from_millis(30));
        assert!(start.elapsed() >= Duration::from_millis(30), "a limit is a limit");
        stop.abandon();
        stop.finish();
        stop.pause(Duration::from_secs(1000));
        assert!(stop.is_abandoned(), "what was given up stays given up");
    }
}
