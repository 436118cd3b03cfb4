//! Services that are reached through OpenDAL: WebDAV, Azure Blob, Google Cloud Storage, each behind a feature of its own.
//!
//! OpenDAL builds and signs requests and reads listings, but for WebDAV's (see `propfind`). Everything else is ours: the HTTP
//! client (see `transport`), retries, deadlines, limits on what comes back, conditions and checksums. Its root is always `/`: given a longer one it cuts names
//! that are not below it, which a hostile listing would turn into a panic.

#[cfg(feature = "azblob")]
mod azblob;
mod errors;
#[cfg(feature = "gcs")]
mod gcs;
#[cfg(feature = "webdav")]
mod locks;
#[cfg(any(feature = "azblob", feature = "gcs"))]
mod object;
#[cfg(feature = "webdav")]
mod propfind;
#[cfg(feature = "webdav")]
mod stream;
mod transport;
#[cfg(feature = "webdav")]
mod webdav;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use opendal::raw::Operation;
use opendal::{Executor, HttpTransporter, Metadata, OperationContext, Operator};
use tokio::runtime::Runtime;

use super::location::Settings;
use super::{Checksum, ErrorKind, RemoteError, Result, Source, Times};
use transport::{Call, Http, Rules, Seen, Transport, zeros};

#[cfg(any(feature = "azblob", feature = "gcs"))]
pub use object::ObjectRemote;
#[cfg(feature = "webdav")]
pub use webdav::WebdavRemote;

/// An answer that is neither an object nor a listing has at most this.
const ANSWER_MAX: usize = 1 << 20;

/// What all of them are made of.
#[derive(Debug)]
struct Dal {
    url: String,
    /// Where that is, whatever the settings and the environment made of the URL: see [`super::Remote::place`].
    place: String,
    operator: Operator,
    http: Arc<Http>,
    runtime: Runtime,
    times: Times,
    /// What all paths begin with: with a slash at its end, or empty.
    base: String,
}

impl Dal {
    /// Makes a client; nothing is asked yet.
    fn new(
        settings: &Settings,
        place: String,
        base: String,
        times: Times,
        operator: impl FnOnce() -> opendal::Result<Operator>,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("opendal")
            .enable_all()
            .build()
            .map_err(|e| RemoteError::new(ErrorKind::Local, format!("starting threads: {e}")))?;
        let operator = operator().map_err(|e| {
            let text = format!("{}: {}", settings.url, errors::printable(e.message()));
            RemoteError::new(ErrorKind::Misconfigured, text)
        })?;
        let http = Arc::new(Http::new(settings)?);
        Ok(Self { url: settings.url.clone(), place, operator, http, runtime, times, base })
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.base)
    }

    /// An operator whose requests keep to these rules.
    fn operator(&self, rules: Rules) -> (Operator, Arc<Call>) {
        let call = Arc::new(Call::new(Arc::clone(&self.http), rules));
        let transport = HttpTransporter::new(Transport(Arc::clone(&call)));
        // It has no threads to do things on: everything is awaited where it is asked for.
        let context = OperationContext::from_parts(transport, Executor::new());
        (self.operator.clone().with_context(context), call)
    }

    /// Waits, but not for ever: `bytes` go over the wire in one direction or the other.
    fn wait<T>(&self, what: &str, bytes: u64, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.wait_for(what, self.times.answer + Duration::from_secs(bytes / self.times.slowest.max(1)), call)
    }

    /// Waits for so long.
    fn wait_for<T>(&self, what: &str, limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
        let waiting = async {
            match tokio::time::timeout(limit, call).await {
                Ok(done) => done,
                Err(_) => {
                    let text = format!("{what}: no answer within {} seconds", limit.as_secs());
                    Err(RemoteError::new(ErrorKind::Timeout, text))
                }
            }
        };
        // OpenDAL asserts that what it is told of an object (name, tags, metadata) has at most 64 KiB, which the endpoint decides.
        catch_unwind(AssertUnwindSafe(|| self.runtime.block_on(waiting))).unwrap_or_else(|_| {
            let text = format!("{what}: the endpoint's answer makes no sense (it can't be held)");
            Err(RemoteError::new(ErrorKind::Corrupt, text))
        })
    }

    /// Does something with OpenDAL.
    fn run<T>(
        &self,
        rules: Rules,
        bytes: u64,
        act: impl AsyncFnOnce(Operator) -> opendal::Result<T>,
    ) -> Result<(T, Seen)> {
        let what = rules.what.clone();
        let (operator, call) = self.operator(rules);
        self.wait(&what, bytes, async {
            let done = act(operator).await;
            let seen = call.take_seen();
            match done {
                Ok(done) => Ok((done, seen)),
                Err(e) => Err(explain(&what, &e, seen)),
            }
        })
    }

    fn stat(&self, what: String, path: &str) -> Result<Metadata> {
        let rules = Rules::new(what, ANSWER_MAX);
        let (meta, _) = self.run(rules, 0, async |operator| operator.stat(path).await)?;
        Ok(meta)
    }

    fn get(&self, what: &str, path: &str, range: Range<u64>) -> Result<Vec<u8>> {
        let want = range.end.saturating_sub(range.start);
        if want == 0 {
            return Ok(Vec::new());
        }
        let size = usize::try_from(want)
            .map_err(|_| RemoteError::new(ErrorKind::Local, "a range larger than memory"))?;
        let mut rules = Rules::new(what.to_string(), ANSWER_MAX);
        rules.range = Some(range.clone());
        let (bytes, _) =
            self.run(rules, want, async |operator| operator.read_with(path).range(range).await)?;
        match bytes.len() == size {
            true => Ok(bytes.to_vec()),
            false => {
                let text = format!("{what}: {want} bytes were asked for, {} came", bytes.len());
                Err(RemoteError::new(ErrorKind::Corrupt, text))
            }
        }
    }

    /// Sends an object in one request.
    fn put(
        &self,
        mut rules: Rules,
        path: &str,
        body: &Arc<dyn Source>,
        checksum: &Checksum,
        options: opendal::options::WriteOptions,
    ) -> Result<Seen> {
        let what = rules.what.clone();
        let len = body.len();
        rules.on = Operation::Write;
        rules.body = Some((Arc::clone(body), *checksum));
        let (_, seen) =
            self.run(rules, len, async |operator| operator.write_options(path, zeros(len), options).await)?;
        // Zeros must never be taken for an object.
        match seen.applied {
            1 => Ok(seen),
            n => {
                let text = format!("{what}: it was sent in {n} requests, not in one");
                Err(RemoteError::new(ErrorKind::Corrupt, text))
            }
        }
    }

    fn delete(&self, what: String, path: &str) -> Result<()> {
        let rules = Rules::new(what, ANSWER_MAX);
        match self.run(rules, 0, async |operator| operator.delete(path).await) {
            Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

/// Refuses to send what is not what its checksum says: no service that OpenDAL reaches would notice. Shows its pieces to
/// `also`.
fn check_source(body: &dyn Source, checksum: &Checksum, also: &mut dyn FnMut(&[u8])) -> Result<()> {
    match Checksum::of_source(body, also) {
        Ok(found) if found == *checksum => Ok(()),
        Ok(_) => {
            Err(RemoteError::new(ErrorKind::Corrupt, "what is to be sent is not what its checksum says"))
        }
        Err(e) => Err(RemoteError::source(&e)),
    }
}

/// Why OpenDAL failed: mostly because of what an endpoint said, which it does not tell.
fn explain(what: &str, error: &opendal::Error, seen: Seen) -> RemoteError {
    if let Some(failure) = seen.failure {
        return failure;
    }
    let mut text = error.message().to_string();
    let mut at = std::error::Error::source(error);
    while let Some(cause) = at {
        text = format!("{text}: {cause}");
        at = cause.source();
    }
    let text = errors::printable(&text);
    let with = |kind: ErrorKind, text: String| RemoteError::new(kind, format!("{what}: {text}"));
    match error.kind() {
        _ if error.message().starts_with("signing") => {
            with(ErrorKind::NoCredentials, format!("no credentials ({text})"))
        }
        opendal::ErrorKind::NotFound => with(ErrorKind::NotFound, "no such object".into()),
        opendal::ErrorKind::Unsupported | opendal::ErrorKind::ConfigInvalid => {
            with(ErrorKind::Unsupported, text)
        }
        // It answered well, in words that mean nothing.
        _ => with(ErrorKind::Corrupt, format!("the endpoint's answer makes no sense ({text})")),
    }
}
