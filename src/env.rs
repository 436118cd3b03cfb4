//! What the engine takes from outside: the clock and randomness.
//!
//! Nothing below the command line reads a clock or a random source by itself. A whole vault therefore runs
//! inside a test with [`TestEnv`], and the same seed gives the same bytes.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A point in time as POSIX has it: seconds since 1970-01-01 UTC (negative before) and nanoseconds after that
/// second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Whole seconds since the epoch.
    pub secs: i64,
    /// Nanoseconds within the second, less than 10^9.
    pub nanos: u32,
}

impl Time {
    /// Returns the time `by` later; at the end of what `i64` holds it stays there.
    #[must_use]
    pub fn saturating_add(self, by: Duration) -> Time {
        let nanos = self.nanos + by.subsec_nanos();
        let carry = i64::from(nanos >= NANOS_PER_SEC);
        let secs = i64::try_from(by.as_secs())
            .ok()
            .and_then(|add| self.secs.checked_add(add))
            .and_then(|secs| secs.checked_add(carry));
        match secs {
            Some(secs) => Time { secs, nanos: nanos % NANOS_PER_SEC },
            None => Time { secs: i64::MAX, nanos: NANOS_PER_SEC - 1 },
        }
    }
}

/// Nanoseconds in a second; `Time::nanos` is always less.
pub const NANOS_PER_SEC: u32 = 1_000_000_000;

/// The clock and the random source.
pub trait Env: Send + Sync + fmt::Debug + 'static {
    /// Returns the wall clock. It may jump in either direction.
    fn now(&self) -> Time;
    /// Returns the time since an arbitrary start. It never goes back.
    fn monotonic(&self) -> Duration;
    /// Fills `buf` with cryptographically secure random bytes.
    fn random(&self, buf: &mut [u8]);
}

/// The real clock, and randomness from the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEnv;

impl Env for SystemEnv {
    fn now(&self) -> Time {
        let ts = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Time { secs: ts.tv_sec, nanos: nanos_of(&ts) }
    }

    fn monotonic(&self) -> Duration {
        let ts = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Duration::new(u64::try_from(ts.tv_sec).unwrap_or(0), nanos_of(&ts))
    }

    fn random(&self, buf: &mut [u8]) {
        // There is no safe way on without randomness: a key or a nonce made of anything else would be worse
        // than a process that stops.
        getrandom::fill(buf).expect("the kernel's random source works");
    }
}

/// Returns the nanoseconds of a kernel timestamp, which are always in 0..10^9.
fn nanos_of(ts: &rustix::time::Timespec) -> u32 {
    u32::try_from(ts.tv_nsec).map_or(0, |nanos| nanos.min(NANOS_PER_SEC - 1))
}

/// A deterministic environment for tests: a clock that is moved by hand and reproducible "randomness".
///
/// The clock starts at 2026-11-21T02:00:00Z and moves on by a millisecond at each [`Env::now`], so that no
/// two events share a time. Never use it for real data: who knows the seed knows every key.
pub struct TestEnv {
    state: Mutex<TestState>,
}

struct TestState {
    now: Time,
    monotonic: Duration,
    stream: blake3::OutputReader,
}

/// 2026-11-21T02:00:00Z.
const TEST_START_SECS: i64 = 1_795_226_400;

impl TestEnv {
    /// Returns an environment whose random bytes depend on `seed` alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("strongroom test environment");
        hasher.update(&seed.to_le_bytes());
        TestEnv {
            state: Mutex::new(TestState {
                now: Time { secs: TEST_START_SECS, nanos: 0 },
                monotonic: Duration::ZERO,
                stream: hasher.finalize_xof(),
            }),
        }
    }

    /// Sets the clock of the world, as an administrator does; the monotonic one goes on as before.
    pub fn set_clock(&self, now: Time) {
        self.state().now = now;
    }

    /// Moves both clocks on.
    pub fn advance(&self, by: Duration) {
        self.state().advance(by);
    }

    fn state(&self) -> MutexGuard<'_, TestState> {
        // The state is valid after every statement, so a test thread that panicked left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TestState {
    fn advance(&mut self, by: Duration) {
        self.now = self.now.saturating_add(by);
        self.monotonic = self.monotonic.saturating_add(by);
    }
}

impl fmt::Debug for TestEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestEnv").field("now", &self.state().now).finish_non_exhaustive()
    }
}

impl Env for TestEnv {
    fn now(&self) -> Time {
        let mut state = self.state();
        state.advance(Duration::from_millis(1));
        state.now
    }

    fn monotonic(&self) -> Duration {
        self.state().monotonic
    }

    fn random(&self, buf: &mut [u8]) {
        self.state().stream.fill(buf);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        let bytes = |seed: u64, cuts: &[usize]| -> Vec<u8> {
            let env = TestEnv::new(seed);
            let mut out = Vec::new();
            for &n in cuts {
                let mut buf = vec![0; n];
                env.random(&mut buf);
                out.extend_from_slice(&buf);
            }
            out
        };
        assert_eq!(bytes(1, &[64]), bytes(1, &[1, 31, 0, 32]), "how a stream is cut does not matter");
        assert_ne!(bytes(1, &[64]), bytes(2, &[64]));
        assert_ne!(bytes(1, &[64])[..32], bytes(1, &[64])[32..], "a stream goes on, it does not repeat");
    }

    #[test]
    fn the_test_clock_moves_a_millisecond_at_each_reading_and_by_hand() {
        let env = TestEnv::new(0);
        assert_eq!(env.now(), Time { secs: TEST_START_SECS, nanos: 1_000_000 });
        assert_eq!(env.now(), Time { secs: TEST_START_SECS, nanos: 2_000_000 });
        env.advance(Duration::from_millis(1_999));
        assert_eq!(env.now(), Time { secs: TEST_START_SECS + 2, nanos: 2_000_000 });
        assert_eq!(env.monotonic(), Duration::from_millis(2_002));
        assert_eq!(env.monotonic(), Duration::from_millis(2_002), "reading it does not move it");
    }

    #[test]
    fn adding_to_a_time_carries_and_saturates() {
        let t = Time { secs: -1, nanos: 999_999_999 };
        assert_eq!(t.saturating_add(Duration::from_nanos(1)), Time { secs: 0, nanos: 0 });
        let end = Time { secs: i64::MAX, nanos: 5 };
        assert_eq!(end.saturating_add(Duration::from_secs(1)), Time { secs: i64::MAX, nanos: 999_999_999 });
        assert_eq!(end.saturating_add(Duration::from_secs(u64::MAX)).secs, i64::MAX);
    }

    #[test]
    fn the_system_environment_is_alive() {
        let env = SystemEnv;
        assert!(env.now().secs > 1_700_000_000);
        let before = env.monotonic();
        assert!(env.monotonic() >= before);
        let (mut a, mut b) = ([0; 32], [0; 32]);
        env.random(&mut a);
        env.random(&mut b);
        assert_ne!(a, b);
    }
}
