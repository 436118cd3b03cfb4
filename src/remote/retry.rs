//! Trying again what may pass by itself: exponential backoff with full jitter.
//!
//! Every call of a remote can be repeated. A put that failed may have been applied all the same: the next try then finds
//! the object with the same bytes.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Checksum, ErrorKind, Features, Findings, Key, Locked, Meta, Page, Put, Remote, RemoteError, Result,
    Retention, Source, Version, Versions,
};
use crate::env::Env;

/// Tries of a call whose bytes arrive damaged.
const DAMAGED_TRIES_MAX: u32 = 3;

/// How to wait. Tests have one that only moves their clock.
pub trait Pause: Send + Sync + fmt::Debug {
    /// Waits.
    fn pause(&self, time: Duration);

    /// Is told, before it waits, what failed and will be tried again after `tries` tries.
    fn retrying(&self, error: &RemoteError, tries: u32) {
        // Most have nobody to tell.
        let _ = (error, tries);
    }
}

/// Sleeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealPause;

impl Pause for RealPause {
    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// How often, and how patiently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries of one call, the first one included.
    pub tries_max: u32,
    /// The longest pause before the second try.
    pub first: Duration,
    /// The longest pause before any try.
    pub pause_max: Duration,
    /// No new try is begun this long after the first one.
    pub total_max: Duration,
}

impl RetryPolicy {
    /// For endpoints across a network: through a quarter of an hour of trouble.
    pub const NETWORK: Self = Self {
        tries_max: 30,
        first: Duration::from_millis(500),
        pause_max: Duration::from_secs(60),
        total_max: Duration::from_secs(900),
    };
    /// For directories: what a filesystem says is rarely different a minute later.
    pub const LOCAL: Self = Self {
        tries_max: 3,
        first: Duration::from_millis(500),
        pause_max: Duration::from_secs(2),
        total_max: Duration::from_secs(30),
    };
}

/// A remote whose calls are repeated while that can help.
#[derive(Debug)]
pub struct Retrying {
    inner: Arc<dyn Remote>,
    policy: RetryPolicy,
    env: Arc<dyn Env>,
    pause: Arc<dyn Pause>,
}

impl Retrying {
    /// Repeats calls of `inner`.
    pub fn new(
        inner: Arc<dyn Remote>,
        policy: RetryPolicy,
        env: Arc<dyn Env>,
        pause: Arc<dyn Pause>,
    ) -> Self {
        Self { inner, policy, env, pause }
    }

    fn run<T>(&self, what: &str, call: &dyn Fn() -> Result<T>) -> Result<T> {
        let start = self.env.monotonic();
        let mut longest = self.policy.first;
        let mut tries = 1;
        loop {
            let error = match call() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let pause = self.jitter(longest);
            let spent = self.env.monotonic().saturating_sub(start) + pause;
            let tries_max = match error.kind {
                // If it was no accident it will be the same the next time.
                ErrorKind::Damaged => self.policy.tries_max.min(DAMAGED_TRIES_MAX),
                _ => self.policy.tries_max,
            };
            if !error.kind.is_retryable() || tries >= tries_max || spent > self.policy.total_max {
                return Err(match tries {
                    1 => error,
                    _ => error.context(&format!("tried {tries} times")),
                });
            }
            tracing::info!(what, %error, tries, pause_ms = pause.as_millis() as u64, "trying again");
            self.pause.retrying(&error, tries);
            self.pause.pause(pause);
            longest = (longest * 2).min(self.policy.pause_max);
            tries += 1;
        }
    }

    /// A random time up to `longest`: many clients that failed together must not come back together.
    fn jitter(&self, longest: Duration) -> Duration {
        let mut random = [0; 4];
        self.env.random(&mut random);
        longest.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX))
    }
}

impl Remote for Retrying {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<Put> {
        self.run("put", &|| self.inner.put_if_absent(key, body, checksum))
    }

    fn replace(&self, key: &Key, was: &Checksum, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<()> {
        let tried = std::cell::Cell::new(false);
        self.run("replace", &|| {
            let again = tried.replace(true);
            match self.inner.replace(key, was, body, checksum) {
                // The try before this one was applied, and its answer lost.
                Err(e) if again && e.kind == ErrorKind::Conflict => {
                    match super::has_bytes(self.inner.as_ref(), key, body.len(), checksum)? {
                        true => Ok(()),
                        false => Err(e),
                    }
                }
                other => other,
            }
        })
    }

    fn get(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.run("get", &|| self.inner.get(key, range.clone()))
    }

    fn head(&self, key: &Key) -> Result<Meta> {
        self.run("head", &|| self.inner.head(key))
    }

    fn list_page(&self, prefix: &str, after: &str) -> Result<Page> {
        self.run("list", &|| self.inner.list_page(prefix, after))
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.run("delete", &|| self.inner.delete(key))
    }

    fn features(&self) -> Result<Features> {
        self.run("features", &|| self.inner.features())
    }

    fn once(&self) -> Option<Arc<dyn Remote>> {
        Some(Arc::clone(&self.inner))
    }

    fn lock(&self) -> Option<Locked> {
        self.inner.lock()
    }

    fn require_lock(&self) -> Result<()> {
        self.run("require_lock", &|| self.inner.require_lock())
    }

    fn retention(&self, key: &Key, version: Option<&str>) -> Result<Option<Retention>> {
        self.run("retention", &|| self.inner.retention(key, version))
    }

    fn retain(&self, key: &Key, version: Option<&str>, retention: &Retention) -> Result<()> {
        self.run("retain", &|| self.inner.retain(key, version, retention))
    }

    fn known_retention(&self, key: &Key) -> Option<Retention> {
        self.inner.known_retention(key)
    }

    fn versions(&self, key: &Key, max: u64) -> Result<Vec<Version>> {
        self.run("versions", &|| self.inner.versions(key, max))
    }

    fn all_versions(&self, key: &Key, max: u64) -> Result<Versions> {
        self.run("all_versions", &|| self.inner.all_versions(key, max))
    }

    fn findings(&self) -> Findings {
        self.inner.findings()
    }
}
