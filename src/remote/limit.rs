//! Speed limits, shared by everything that goes through one link.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{
    Checksum, Features, Findings, Key, Locked, Meta, PIECE, Page, Pause, Put, Remote, Result, Retention,
    Source, Version, Versions,
};
use crate::env::Env;

/// Bytes that are asked for at a time under a limit: small enough that a slow link flows evenly.
const STEP: usize = 64 << 10;

/// Lets a number of bytes pass each second.
#[derive(Debug)]
pub struct Limiter {
    bytes_per_second: u64,
    /// When the link has carried everything that was let through, on the monotonic clock.
    free_at: Mutex<Duration>,
    env: Arc<dyn Env>,
    pause: Arc<dyn Pause>,
}

impl Limiter {
    /// A limit of at least 1 byte a second.
    pub fn new(bytes_per_second: u64, env: Arc<dyn Env>, pause: Arc<dyn Pause>) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), free_at: Mutex::new(Duration::ZERO), env, pause }
    }

    /// Waits until the link has room for `bytes`, which are then taken to be under way.
    pub fn take(&self, bytes: usize) {
        let now = self.env.monotonic();
        let wait = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let start = now.max(*free_at);
            *free_at = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            start - now
        };
        if !wait.is_zero() {
            self.pause.pause(wait);
        }
    }
}

/// A remote with speed limits.
#[derive(Debug)]
pub struct Limited {
    inner: Arc<dyn Remote>,
    up: Option<Arc<Limiter>>,
    down: Option<Arc<Limiter>>,
}

impl Limited {
    /// Limits what is sent to and received from `inner`.
    pub fn new(inner: Arc<dyn Remote>, up: Option<Arc<Limiter>>, down: Option<Arc<Limiter>>) -> Self {
        Self { inner, up, down }
    }

    fn slow(&self, body: &Arc<dyn Source>) -> Arc<dyn Source> {
        match &self.up {
            Some(limiter) => Arc::new(SlowSource { inner: Arc::clone(body), limiter: Arc::clone(limiter) }),
            None => Arc::clone(body),
        }
    }
}

#[derive(Debug)]
struct SlowSource {
    inner: Arc<dyn Source>,
    limiter: Arc<Limiter>,
}

impl Source for SlowSource {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        let step = buf.len().min(STEP);
        let n = self.inner.read_at(&mut buf[..step], off)?;
        self.limiter.take(n);
        Ok(n)
    }
}

impl Remote for Limited {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<Put> {
        self.inner.put_if_absent(key, &self.slow(body), checksum)
    }

    fn replace(&self, key: &Key, was: &Checksum, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<()> {
        self.inner.replace(key, was, &self.slow(body), checksum)
    }

    fn get(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        let Some(limiter) = &self.down else { return self.inner.get(key, range) };
        let mut bytes = Vec::new();
        let mut off = range.start;
        while off < range.end {
            let end = range.end.min(off + PIECE as u64);
            // Before the request: what has come can't be slowed down any more.
            limiter.take(usize::try_from(end - off).unwrap_or(PIECE));
            bytes.extend(self.inner.get(key, off..end)?);
            off = end;
        }
        Ok(bytes)
    }

    fn head(&self, key: &Key) -> Result<Meta> {
        self.inner.head(key)
    }

    fn list_page(&self, prefix: &str, after: &str) -> Result<Page> {
        self.inner.list_page(prefix, after)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key)
    }

    fn features(&self) -> Result<Features> {
        self.inner.features()
    }

    fn lock(&self) -> Option<Locked> {
        self.inner.lock()
    }

    fn require_lock(&self) -> Result<()> {
        self.inner.require_lock()
    }

    fn retention(&self, key: &Key, version: Option<&str>) -> Result<Option<Retention>> {
        self.inner.retention(key, version)
    }

    fn retain(&self, key: &Key, version: Option<&str>, retention: &Retention) -> Result<()> {
        self.inner.retain(key, version, retention)
    }

    fn known_retention(&self, key: &Key) -> Option<Retention> {
        self.inner.known_retention(key)
    }

    fn versions(&self, key: &Key, max: u64) -> Result<Vec<Version>> {
        self.inner.versions(key, max)
    }

    fn all_versions(&self, key: &Key, max: u64) -> Result<Versions> {
        self.inner.all_versions(key, max)
    }

    fn findings(&self) -> Findings {
        self.inner.findings()
    }
}
