//! Counts what goes over the wire.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    Checksum, ErrorKind, Features, Findings, Key, Locked, Meta, Page, Put, Remote, Result, Retention, Source,
    Version, Versions,
};

/// What was asked and moved so far.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    pushed_back: AtomicU64,
}

impl Counters {
    /// Calls of the remote, those included that were tried again.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of objects sent by calls that succeeded.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes of objects received.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Calls that the endpoint refused, or left without an answer, because it has too much to do.
    pub fn pushed_back(&self) -> u64 {
        self.pushed_back.load(Ordering::Relaxed)
    }

    /// Counts a call, and how it ended.
    fn call<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let done = call();
        if done.as_ref().is_err_and(|e| matches!(e.kind, ErrorKind::Throttled | ErrorKind::Timeout)) {
            self.pushed_back.fetch_add(1, Ordering::Relaxed);
        }
        done
    }
}

/// A remote whose calls are counted.
#[derive(Debug)]
pub struct Counted {
    inner: Arc<dyn Remote>,
    counters: Arc<Counters>,
}

impl Counted {
    /// Counts the calls of `inner`.
    pub fn new(inner: Arc<dyn Remote>, counters: Arc<Counters>) -> Self {
        Self { inner, counters }
    }
}

impl Remote for Counted {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<Put> {
        let put = self.counters.call(|| self.inner.put_if_absent(key, body, checksum))?;
        if put == Put::Created {
            self.counters.sent.fetch_add(body.len(), Ordering::Relaxed);
        }
        Ok(put)
    }

    fn replace(&self, key: &Key, was: &Checksum, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<()> {
        self.counters.call(|| self.inner.replace(key, was, body, checksum))?;
        self.counters.sent.fetch_add(body.len(), Ordering::Relaxed);
        Ok(())
    }

    fn get(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        let bytes = self.counters.call(|| self.inner.get(key, range))?;
        self.counters.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    fn head(&self, key: &Key) -> Result<Meta> {
        self.counters.call(|| self.inner.head(key))
    }

    fn list_page(&self, prefix: &str, after: &str) -> Result<Page> {
        self.counters.call(|| self.inner.list_page(prefix, after))
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.counters.call(|| self.inner.delete(key))
    }

    fn features(&self) -> Result<Features> {
        self.counters.call(|| self.inner.features())
    }

    fn lock(&self) -> Option<Locked> {
        self.inner.lock()
    }

    fn require_lock(&self) -> Result<()> {
        self.counters.call(|| self.inner.require_lock())
    }

    fn retention(&self, key: &Key, version: Option<&str>) -> Result<Option<Retention>> {
        self.counters.call(|| self.inner.retention(key, version))
    }

    fn retain(&self, key: &Key, version: Option<&str>, retention: &Retention) -> Result<()> {
        self.counters.call(|| self.inner.retain(key, version, retention))
    }

    fn known_retention(&self, key: &Key) -> Option<Retention> {
        self.inner.known_retention(key)
    }

    fn versions(&self, key: &Key, max: u64) -> Result<Vec<Version>> {
        self.counters.call(|| self.inner.versions(key, max))
    }

    fn all_versions(&self, key: &Key, max: u64) -> Result<Versions> {
        self.counters.call(|| self.inner.all_versions(key, max))
    }

    fn findings(&self) -> Findings {
        self.inner.findings()
    }
}
