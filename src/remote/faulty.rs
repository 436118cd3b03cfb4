//! A remote that fails on command, for tests.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    Checksum, ErrorKind, Features, Findings, Key, Locked, Meta, Page, Put, Remote, RemoteError, Result,
    Retention, Source, Version, Versions,
};

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// [`Remote::put_if_absent`].
    Put,
    /// [`Remote::replace`].
    Replace,
    /// [`Remote::get`].
    Get,
    /// [`Remote::head`].
    Head,
    /// [`Remote::list_page`].
    List,
    /// [`Remote::delete`].
    Delete,
    /// [`Remote::features`], [`Remote::require_lock`].
    Features,
    /// [`Remote::retention`].
    Retention,
    /// [`Remote::retain`].
    Retain,
    /// [`Remote::versions`], [`Remote::all_versions`].
    Versions,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and has no effect.
    Before(ErrorKind),
    /// It has its effect and fails all the same: the answer was lost.
    After(ErrorKind),
    /// A get or a listing gives something else than is stored.
    Lie,
}

/// Chooses the fault of the `n`-th call, counted from 1 over all calls; the text is its key or prefix.
type Plan = dyn Fn(u64, Op, &str) -> Option<Fault> + Send + Sync;

/// A remote whose calls fail as planned.
pub struct FaultyRemote {
    inner: Arc<dyn Remote>,
    calls: AtomicU64,
    plan: Box<Plan>,
}

impl fmt::Debug for FaultyRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyRemote")
            .field("inner", &self.inner)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

impl FaultyRemote {
    /// Lets calls of `inner` fail.
    pub fn new(
        inner: Arc<dyn Remote>,
        plan: impl Fn(u64, Op, &str) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        Self { inner, calls: AtomicU64::new(0), plan: Box::new(plan) }
    }

    /// Returns how many calls there were.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn run<T>(
        &self,
        op: Op,
        name: &str,
        call: impl FnOnce() -> Result<T>,
        lie: impl FnOnce(&mut T),
    ) -> Result<T> {
        let n = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let failed = |kind| RemoteError::new(kind, format!("injected: {op:?} {name}"));
        match (self.plan)(n, op, name) {
            None => call(),
            Some(Fault::Before(kind)) => Err(failed(kind)),
            Some(Fault::After(kind)) => {
                call()?;
                Err(failed(kind))
            }
            Some(Fault::Lie) => {
                let mut answer = call()?;
                lie(&mut answer);
                Ok(answer)
            }
        }
    }
}

impl Remote for FaultyRemote {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<Put> {
        self.run(Op::Put, key.as_str(), || self.inner.put_if_absent(key, body, checksum), |_| {})
    }

    fn replace(&self, key: &Key, was: &Checksum, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<()> {
        self.run(Op::Replace, key.as_str(), || self.inner.replace(key, was, body, checksum), |()| {})
    }

    fn get(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.run(
            Op::Get,
            key.as_str(),
            || self.inner.get(key, range),
            |bytes| bytes.iter_mut().for_each(|b| *b ^= 1),
        )
    }

    fn head(&self, key: &Key) -> Result<Meta> {
        self.run(Op::Head, key.as_str(), || self.inner.head(key), |meta| meta.len += 1)
    }

    fn list_page(&self, prefix: &str, after: &str) -> Result<Page> {
        self.run(
            Op::List,
            prefix,
            || self.inner.list_page(prefix, after),
            |page| {
                page.items.pop();
            },
        )
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.run(Op::Delete, key.as_str(), || self.inner.delete(key), |()| {})
    }

    fn features(&self) -> Result<Features> {
        self.run(Op::Features, "", || self.inner.features(), |_| {})
    }

    fn lock(&self) -> Option<Locked> {
        self.inner.lock()
    }

    fn require_lock(&self) -> Result<()> {
        self.run(Op::Features, "", || self.inner.require_lock(), |()| {})
    }

    fn retention(&self, key: &Key, version: Option<&str>) -> Result<Option<Retention>> {
        self.run(Op::Retention, key.as_str(), || self.inner.retention(key, version), |found| *found = None)
    }

    fn retain(&self, key: &Key, version: Option<&str>, retention: &Retention) -> Result<()> {
        self.run(Op::Retain, key.as_str(), || self.inner.retain(key, version, retention), |()| {})
    }

    fn known_retention(&self, key: &Key) -> Option<Retention> {
        self.inner.known_retention(key)
    }

    fn versions(&self, key: &Key, max: u64) -> Result<Vec<Version>> {
        self.run(Op::Versions, key.as_str(), || self.inner.versions(key, max), |versions| versions.clear())
    }

    fn all_versions(&self, key: &Key, max: u64) -> Result<Versions> {
        let lie = |found: &mut Versions| found.list.clear();
        self.run(Op::Versions, key.as_str(), || self.inner.all_versions(key, max), lie)
    }

    fn findings(&self) -> Findings {
        self.inner.findings()
    }
}
