//! Reading calls that may never return, as those of a directory on a network filesystem whose server is gone: each is made on
//! a thread of its own, and given up when it takes too long. The thread stays where it is until the kernel lets it go; there
//! are never more than some of them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::{
    Checksum, ErrorKind, Features, Findings, Key, Locked, Meta, Page, Put, Remote, RemoteError, Result,
    Retention, Source, Version, Versions,
};

/// Calls that are under way, those that were given up included. More are refused: they would not return either.
const CALLS_MAX: usize = 256;

/// Makes a call on a thread of its own, and waits for it so long.
///
/// # Errors
/// `Timeout`; what the call says.
pub(super) fn within<T: Send + 'static>(
    what: &str,
    patience: Duration,
    call: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = channel();
    let thread = std::thread::Builder::new().name("sr-dir".into()).spawn(move || {
        if sender.send(call()).is_err() {
            tracing::debug!("a call returned when nobody waited any more");
        }
    });
    thread.map_err(|e| RemoteError::new(ErrorKind::Local, format!("starting a thread: {e}")))?;
    match receiver.recv_timeout(patience) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Timeout) => {
            let text = format!("{what}: no answer within {:.1} s", patience.as_secs_f64());
            Err(RemoteError::new(ErrorKind::Timeout, text))
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(RemoteError::new(ErrorKind::Local, format!("{what}: a thread failed")))
        }
    }
}

/// A remote whose reading calls are given up after a time. Those that write are waited for: whether they had an effect
/// would not be known.
#[derive(Debug)]
pub struct Bounded {
    inner: Arc<dyn Remote>,
    patience: Duration,
    calls: Arc<AtomicUsize>,
}

/// Counts a call for as long as it is under way.
struct Call(Arc<AtomicUsize>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Bounded {
    /// Waits so long for each reading call of `inner`.
    pub fn new(inner: Arc<dyn Remote>, patience: Duration) -> Self {
        Self { inner, patience, calls: Arc::default() }
    }

    fn run<T: Send + 'static>(
        &self,
        what: &str,
        call: impl FnOnce(&dyn Remote) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let counted = Call(Arc::clone(&self.calls));
        if self.calls.fetch_add(1, Ordering::SeqCst) >= CALLS_MAX {
            let text = format!("{what}: {CALLS_MAX} calls before it got no answer");
            return Err(RemoteError::new(ErrorKind::Timeout, text));
        }
        let inner = Arc::clone(&self.inner);
        within(what, self.patience, move || {
            let _counted = counted;
            call(inner.as_ref())
        })
    }
}

impl Remote for Bounded {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<Put> {
        self.inner.put_if_absent(key, body, checksum)
    }

    fn replace(&self, key: &Key, was: &Checksum, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<()> {
        self.inner.replace(key, was, body, checksum)
    }

    fn get(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        let own = key.clone();
        self.run(key.as_str(), move |inner| inner.get(&own, range))
    }

    fn head(&self, key: &Key) -> Result<Meta> {
        let own = key.clone();
        self.run(key.as_str(), move |inner| inner.head(&own))
    }

    fn list_page(&self, prefix: &str, after: &str) -> Result<Page> {
        let (own, after) = (prefix.to_string(), after.to_string());
        self.run(&format!("listing {prefix:?}"), move |inner| inner.list_page(&own, &after))
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key)
    }

    fn features(&self) -> Result<Features> {
        self.run("looking at it", |inner| inner.features())
    }

    fn lock(&self) -> Option<Locked> {
        self.inner.lock()
    }

    fn require_lock(&self) -> Result<()> {
        self.run("looking for locks", |inner| inner.require_lock())
    }

    fn retention(&self, key: &Key, version: Option<&str>) -> Result<Option<Retention>> {
        let (own, version) = (key.clone(), version.map(String::from));
        self.run(key.as_str(), move |inner| inner.retention(&own, version.as_deref()))
    }

    fn retain(&self, key: &Key, version: Option<&str>, retention: &Retention) -> Result<()> {
        self.inner.retain(key, version, retention)
    }

    fn known_retention(&self, key: &Key) -> Option<Retention> {
        self.inner.known_retention(key)
    }

    fn versions(&self, key: &Key, max: u64) -> Result<Vec<Version>> {
        let own = key.clone();
        self.run(key.as_str(), move |inner| inner.versions(&own, max))
    }

    fn all_versions(&self, key: &Key, max: u64) -> Result<Versions> {
        let own = key.clone();
        self.run(key.as_str(), move |inner| inner.all_versions(&own, max))
    }

    fn findings(&self) -> Findings {
        self.inner.findings()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Condvar, Mutex};

    use super::*;
    use crate::remote::{Fault, FaultyRemote};

    /// A directory whose calls don't return before the gate is opened.
    fn stuck(gate: &Arc<(Mutex<bool>, Condvar)>, dir: &std::path::Path) -> Arc<dyn Remote> {
        let env = Arc::new(crate::env::SystemEnv);
        let dir = crate::remote::DirRemote::open("file:///stuck", dir, env).unwrap();
        let gate = Arc::clone(gate);
        Arc::new(FaultyRemote::new(Arc::new(dir), move |_, _, _| -> Option<Fault> {
            let mut open = gate.0.lock().unwrap();
            while !*open {
                open = gate.1.wait(open).unwrap();
            }
            None
        }))
    }

    #[test]
    fn calls_that_do_not_return_are_given_up() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("object"), "bytes").unwrap();
        let gate: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let remote = Bounded::new(stuck(&gate, dir.path()), Duration::from_millis(20));
        let key = Key::new("object").unwrap();
        let timed_out = |error: RemoteError| {
            assert_eq!(error.kind, ErrorKind::Timeout, "{error}");
            error.message
        };
        assert!(timed_out(remote.head(&key).unwrap_err()).contains("object: no answer within"));
        timed_out(remote.get(&key, 0..5).unwrap_err());
        timed_out(remote.list_page("", "").unwrap_err());
        timed_out(remote.versions(&key, 10).unwrap_err());
        timed_out(remote.features().unwrap_err());
        assert_eq!(remote.calls.load(Ordering::SeqCst), 5, "they are still under way");
        // There are never very many of them.
        remote.calls.fetch_add(CALLS_MAX - 5, Ordering::SeqCst);
        assert!(timed_out(remote.head(&key).unwrap_err()).contains("calls before it"));
        remote.calls.fetch_sub(CALLS_MAX - 5, Ordering::SeqCst);
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        let remote = Bounded { patience: Duration::from_secs(600), ..remote };
        assert_eq!(remote.get(&key, 0..5).unwrap(), b"bytes");
        while remote.calls.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }
}
