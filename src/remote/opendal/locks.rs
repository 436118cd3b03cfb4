//! What there is to know of a WebDAV lock that is held, and whose turn it is in this process.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use sha2::{Digest, Sha256};

use super::super::{ErrorKind, Key, RemoteError, Result};
use crate::env::Env;

/// A lock that this process holds.
pub(super) struct Held {
    pub(super) path: String,
    pub(super) token: HeaderValue,
    /// An empty file was made for it.
    pub(super) made: bool,
    /// When it stops to be trusted.
    pub(super) until: Duration,
}

/// What is done while a lock is held.
pub(super) struct Hold {
    /// Until when it is good; `None`: there are no locks.
    pub(super) until: Option<Duration>,
    /// Something was sent that relies on it.
    used: Cell<bool>,
}

impl Hold {
    pub(super) fn new(until: Option<Duration>) -> Self {
        Self { until, used: Cell::new(false) }
    }

    /// Makes sure that the lock can't have come to its end. To be called right before what relies on it.
    pub(super) fn check(&self, env: &dyn Env) -> Result<()> {
        if self.until.is_some_and(|until| env.monotonic() > until) {
            let text = "the server took longer than its lock is good for";
            return Err(RemoteError::new(ErrorKind::Timeout, text));
        }
        self.used.set(true);
        Ok(())
    }

    /// Whether what was sent may still be executed, although it seems to have failed: the answer may be that of a proxy, which
    /// gave up waiting. After a failure to answer at all nobody knows whether the server can be asked.
    pub(super) fn may_go_on<T>(&self, done: &Result<T>) -> bool {
        match done {
            Ok(_) => false,
            Err(e) => match e.kind {
                ErrorKind::Timeout | ErrorKind::Unreachable => true,
                ErrorKind::Unavailable | ErrorKind::Throttled => self.used.get(),
                _ => false,
            },
        }
    }
}

/// Lets one thread in at a time.
#[derive(Debug, Default)]
pub(super) struct Gate {
    turns: Mutex<Turns>,
    free: Condvar,
}

#[derive(Debug, Default)]
struct Turns {
    taken: bool,
    ended: u64,
}

/// Whoever has it is in.
pub(super) struct Turn<'a>(&'a Gate);

impl Gate {
    /// Waits for one's turn, so long as no other one takes longer than `limit`.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(super) fn enter(&self, what: &str, limit: Duration) -> Result<Turn<'_>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        while turns.taken {
            let ended = turns.ended;
            let waited = self.free.wait_timeout_while(turns, limit, |now| now.taken && now.ended == ended);
            let (now, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            turns = now;
            if waited.timed_out() {
                let text = format!(
                    "{what}: what else is being named here did not come to its end within {} seconds",
                    limit.as_secs()
                );
                return Err(RemoteError::new(ErrorKind::Unavailable, text));
            }
        }
        turns.taken = true;
        Ok(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        (turns.taken, turns.ended) = (false, turns.ended.wrapping_add(1));
        drop(turns);
        // Of all: who does not get it next waits anew.
        self.0.free.notify_all();
    }
}

/// How many seconds a lock is good for, as the answer to LOCK tells it (`<timeout>Second-180</timeout>`, in any namespace);
/// `None`: it does not.
pub(super) fn granted_seconds(answer: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(answer);
    let mut elements = text.split('<').filter_map(|element| element.split_once('>'));
    let (_, value) = elements.find(|(name, _)| {
        let name = name.split_ascii_whitespace().next().unwrap_or("");
        name.rsplit(':').next().is_some_and(|name| name.eq_ignore_ascii_case("timeout"))
    })?;
    // Several may be there, the one first that counts.
    let value = value.split(',').next().unwrap_or("").trim();
    if value.eq_ignore_ascii_case("infinite") {
        return Some(u64::MAX);
    }
    let (start, seconds) = value.split_once('-')?;
    start.eq_ignore_ascii_case("second").then(|| seconds.parse().ok())?
}

/// The name that a lock is on, in place of the name that it stands for.
pub(super) fn lock_name(key: &Key) -> String {
    format!("lock-{}", data_encoding::HEXLOWER.encode(&Sha256::digest(key.as_str())[..16]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_lock_is_good_for() {
        for (text, seconds) in [
            ("<D:timeout>Second-180</D:timeout>", Some(180)),
            ("<?xml version=\"1.0\"?><a:x><timeout xmlns=\"DAV:\">\n second-29 </timeout></a:x>", Some(29)),
            ("<D:timeout>Infinite, Second-4100000000</D:timeout>", Some(u64::MAX)),
            ("<D:timeout>Second-99999999999999999999999</D:timeout>", None),
            ("<D:timeout>Second--1</D:timeout>", None),
            ("<D:timeout>180</D:timeout>", None),
            ("<D:timeout/>", None),
            ("<D:timeouts>Second-180</D:timeouts>", None),
            ("", None),
            ("<<<>>>", None),
        ] {
            assert_eq!(granted_seconds(text.as_bytes()), seconds, "{text}");
        }
        assert_eq!(granted_seconds(&[0xff, b'<', 0xff]), None);
    }

    #[test]
    fn one_is_in_at_a_time_and_nobody_waits_for_ever() {
        let (gate, long) = (Gate::default(), Duration::from_secs(600));
        let turn = gate.enter("x", long).unwrap();
        let error = gate.enter("naming x", Duration::from_millis(5)).err().unwrap();
        assert!(error.kind == ErrorKind::Unavailable && error.message.starts_with("naming x"), "{error}");
        let inside = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _turn = gate.enter("x", long).unwrap();
                        *inside.try_lock().unwrap() += 1;
                    }
                });
            }
            drop(turn);
        });
        assert_eq!(*inside.lock().unwrap(), 800);
    }
}
