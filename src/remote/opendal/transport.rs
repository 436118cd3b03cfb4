//! What OpenDAL sends its requests through: the HTTP client that S3 has as well, with all that OpenDAL has no words for.
//!
//! Requests get headers and conditions that OpenDAL can't set. Bodies are read from a [`Source`] while they are sent: what
//! OpenDAL holds in their place is a block of zeros that is as long. Answers are bounded, ranges are compared with what was
//! asked for, and what an endpoint said when it refused is kept, because OpenDAL's errors don't tell it.
//!
//! Redirections are not followed: credentials go nowhere but where the settings say.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opendal::raw::Operation;
use opendal::{Buffer, HttpBody, HttpTransport};
use sha2::{Digest, Sha256};

use super::super::body::{self, read_ahead};
use super::super::location::{Settings, is_loopback};
use super::super::{Checksum, ErrorKind, PIECE, RemoteError, Result, Source};
use super::errors;

/// Waits for a connection this long.
const CONNECT: Duration = Duration::from_secs(10);
/// A connection that nobody uses is closed after this long: before servers do it, mostly.
const IDLE: Duration = Duration::from_secs(4);
/// Who answers here, without TLS, gives credentials to the machines of a cloud.
const METADATA_HOSTS: [&str; 3] = ["169.254.169.254", "metadata.google.internal", "metadata"];

type Client = hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, RequestBody>;

/// Connections, shared by all calls of a remote.
pub(super) struct Http {
    client: Client,
    allow_http: bool,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("allow_http", &self.allow_http).finish_non_exhaustive()
    }
}

impl Http {
    /// Makes a client; nothing is asked yet.
    ///
    /// # Errors
    /// `Misconfigured` when this machine trusts no authority.
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(provider)
            .map_err(|e| {
                let text = format!("no certificates of authorities on this machine (ca-certificates): {e}");
                RemoteError::new(ErrorKind::Misconfigured, text)
            })?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            // A request that may have been applied is for us to judge.
            .retry_canceled_requests(false)
            .build(connector);
        Ok(Self { client, allow_http: settings.allow_http })
    }

    /// Whether a URL may be asked: with TLS, on this machine, or where it was allowed.
    fn check(&self, what: &str, uri: &Uri) -> Result<()> {
        let host = uri.host().unwrap_or("");
        let plain = uri.scheme_str() != Some("https");
        let authority = uri.authority().map_or("", http::uri::Authority::as_str);
        if plain && !self.allow_http && !is_loopback(authority) && !METADATA_HOSTS.contains(&host) {
            let text = format!("{what}: {host} would be asked without TLS");
            return Err(RemoteError::new(ErrorKind::Misconfigured, text));
        }
        Ok(())
    }
}

/// What the requests of one call get beyond what OpenDAL says, and what may come back.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// What is being done, for messages.
    pub(super) what: String,
    /// The requests that the next three are for.
    pub(super) on: Operation,
    /// Headers that are set.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// What is added to the query.
    pub(super) query: Option<String>,
    /// What is sent in the place of zeros, and what it has to be.
    pub(super) body: Option<(Arc<dyn Source>, Checksum)>,
    /// What is to come back from a read.
    pub(super) range: Option<Range<u64>>,
    /// An answer that is no object has at most so many bytes.
    pub(super) answer_max: usize,
}

impl Rules {
    /// No rules but a limit on answers.
    pub(super) fn new(what: String, answer_max: usize) -> Self {
        let headers = Vec::new();
        Self { what, on: Operation::Info, headers, query: None, body: None, range: None, answer_max }
    }

    /// Sets a header of certain requests.
    #[cfg_attr(
        not(any(feature = "webdav", feature = "gcs")),
        allow(dead_code, reason = "Azure signs headers")
    )]
    pub(super) fn header(mut self, on: Operation, name: HeaderName, value: HeaderValue) -> Self {
        self.on = on;
        self.headers.push((name, value));
        self
    }
}

/// What was seen of a call's answers.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Why the last request failed, if it did.
    pub(super) failure: Option<RemoteError>,
    /// How often the rules were applied.
    pub(super) applied: u32,
    /// Headers and body of the last answer to a request that the rules are for.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// One call.
#[derive(Debug)]
pub(super) struct Call {
    http: Arc<Http>,
    rules: Rules,
    seen: Mutex<Seen>,
}

/// [`Call`], as OpenDAL wants it.
pub(super) struct Transport(pub(super) Arc<Call>);

impl HttpTransport for Transport {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        match self.0.exchange(request).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.0.fail(error)),
        }
    }
}

impl Call {
    pub(super) fn new(http: Arc<Http>, rules: Rules) -> Self {
        Self { http, rules, seen: Mutex::default() }
    }

    /// Returns what was seen, and forgets it.
    pub(super) fn take_seen(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps an error of ours; OpenDAL gets one that says as much.
    fn fail(&self, error: RemoteError) -> opendal::Error {
        let text = error.message.clone();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).failure = Some(error);
        opendal::Error::new(opendal::ErrorKind::Unexpected, text)
    }

    /// Sends a request that OpenDAL has no words for.
    ///
    /// # Errors
    /// No answer. A refusal is an answer.
    #[cfg_attr(not(feature = "webdav"), allow(dead_code, reason = "only WebDAV has such requests"))]
    pub(super) async fn send(&self, request: Request<Buffer>) -> Result<Response<Bytes>> {
        let operation = request.extensions().get::<Operation>().copied();
        let applies = operation == Some(self.rules.on);
        let answer = self.ask(request, applies).await?;
        self.collect(answer, applies).await
    }

    /// Sends a request whose answer is read by the caller while it comes.
    ///
    /// # Errors
    /// No answer, or a refusal.
    #[cfg_attr(not(feature = "webdav"), allow(dead_code, reason = "only WebDAV's listings are read so"))]
    pub(super) async fn begin(&self, request: Request<Buffer>) -> Result<Incoming> {
        let answer = self.ask(request, false).await?;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let answer = self.collect(answer, false).await?;
        Err(errors::of_answer(&self.rules.what, answer.status(), answer.headers(), answer.body()))
    }

    async fn exchange(self: &Arc<Self>, request: Request<Buffer>) -> Result<Response<HttpBody>> {
        let operation = request.extensions().get::<Operation>().copied();
        let Some(operation) = operation else { return self.ask_for_credentials(request).await };
        let applies = operation == self.rules.on;
        let answer = self.ask(request, applies).await?;
        if operation == Operation::Read
            && answer.status().is_success()
            && let Some(range) = &self.rules.range
        {
            self.check_range(&answer, range)?;
            let (parts, body) = answer.into_parts();
            let want = range.end - range.start;
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).failure = None;
            let pieces = Pieces { body, left: want, call: Arc::clone(self) };
            return Ok(Response::from_parts(parts, HttpBody::new(pieces, Some(want))));
        }
        Ok(whole(self.collect(answer, applies).await?))
    }

    /// A request that is none of the service itself: a token is asked for. What goes wrong there means that there is none.
    async fn ask_for_credentials(&self, request: Request<Buffer>) -> Result<Response<HttpBody>> {
        let host = request.uri().host().unwrap_or("").to_string();
        let none = |error: RemoteError| {
            let text = format!("no credentials: {host} gives none: {}", error.message);
            RemoteError::new(ErrorKind::NoCredentials, text)
        };
        let answer = match self.ask(request, false).await {
            // Most machines are in no cloud that has such a server.
            Err(e) if METADATA_HOSTS.contains(&host.as_str()) => return Err(none(e)),
            other => other?,
        };
        let refused = answer.status().is_client_error();
        let answer = self.collect(answer, false).await?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if refused {
            seen.failure = seen.failure.take().map(none);
        }
        Ok(whole(answer))
    }

    async fn ask(&self, request: Request<Buffer>, applies: bool) -> Result<Response<Incoming>> {
        let rules = &self.rules;
        let (mut parts, placeholder) = request.into_parts();
        parts
            .headers
            .insert(USER_AGENT, HeaderValue::from_static(concat!("strongroom/", env!("CARGO_PKG_VERSION"))));
        let mut body = None;
        if applies {
            for (name, value) in &rules.headers {
                parts.headers.insert(name.clone(), value.clone());
            }
            if let Some(query) = &rules.query {
                parts.uri = with_query(&parts.uri, query)
                    .map_err(|e| RemoteError::new(ErrorKind::Local, format!("{}: {e}", rules.what)))?;
            }
            // Lengths were signed: what stands for the body has to be as long.
            if let Some((source, checksum)) =
                rules.body.as_ref().filter(|(source, _)| source.len() == placeholder.len() as u64)
            {
                body = Some(RequestBody::Source(Checked::new(read_ahead(source), *checksum)));
            } else if rules.body.is_some() {
                let text = format!("{}: the request is not for all of the object", rules.what);
                return Err(RemoteError::new(ErrorKind::Local, text));
            }
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).applied += 1;
        }
        self.http.check(&rules.what, &parts.uri)?;
        let body = body.unwrap_or_else(|| RequestBody::Bytes(Full::new(placeholder.to_bytes())));
        let request = Request::from_parts(parts, body);
        self.http.client.request(request).await.map_err(|e| of_client(&rules.what, &e))
    }

    /// Takes the whole of an answer that is no object.
    async fn collect(&self, answer: Response<Incoming>, applies: bool) -> Result<Response<Bytes>> {
        let what = &self.rules.what;
        let (parts, body) = answer.into_parts();
        let body = match Limited::new(body, self.rules.answer_max).collect().await {
            Ok(whole) => whole.to_bytes(),
            Err(e) if e.is::<http_body_util::LengthLimitError>() => {
                let text = format!("{what}: an answer of more than {} bytes", self.rules.answer_max);
                return Err(RemoteError::new(ErrorKind::Corrupt, text));
            }
            Err(e) => return Err(broke(what, e.as_ref())),
        };
        let failure = (!parts.status.is_success())
            .then(|| errors::of_answer(what, parts.status, &parts.headers, &body));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.failure = failure;
        if applies {
            seen.headers = parts.headers.clone();
            seen.body = body.clone();
        }
        Ok(Response::from_parts(parts, body))
    }

    /// Refuses what was not asked for, before anything of it is read.
    fn check_range(&self, answer: &Response<Incoming>, range: &Range<u64>) -> Result<()> {
        let want = range.end - range.start;
        let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let len = text(CONTENT_LENGTH).and_then(|len| len.parse::<u64>().ok());
        let begins = match answer.status() {
            StatusCode::PARTIAL_CONTENT => text(CONTENT_RANGE)
                .is_some_and(|said| said.starts_with(&format!("bytes {}-{}/", range.start, range.end - 1))),
            // The whole object: good if that is what was wanted.
            _ => range.start == 0,
        };
        if begins && len.is_none_or(|len| len == want) {
            return Ok(());
        }
        let what = &self.rules.what;
        let text = format!(
            "{what}: {want} bytes were asked for, the endpoint sends others ({})",
            match len {
                Some(len) => format!("{len} bytes"),
                None => "of no length".into(),
            }
        );
        Err(RemoteError::new(ErrorKind::Corrupt, text))
    }
}

/// An answer that is in memory.
fn whole(answer: Response<Bytes>) -> Response<HttpBody> {
    let (parts, body) = answer.into_parts();
    let len = body.len() as u64;
    let pieces = futures::stream::iter([Ok(Buffer::from(body))]);
    Response::from_parts(parts, HttpBody::new(pieces, Some(len)))
}

fn with_query(uri: &Uri, query: &str) -> std::result::Result<Uri, http::Error> {
    let joined = match uri.query() {
        Some(old) => format!("{}?{old}&{query}", uri.path()),
        None => format!("{}?{query}", uri.path()),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(joined.parse()?);
    Ok(Uri::from_parts(parts)?)
}

/// A buffer of this length in which nothing is: what is sent comes from a [`Source`].
pub(super) fn zeros(len: u64) -> Buffer {
    let block = Bytes::from(vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(PIECE)]);
    let mut left = usize::try_from(len).unwrap_or(usize::MAX);
    let mut blocks = VecDeque::new();
    while left > 0 {
        let n = left.min(block.len());
        blocks.push_back(block.slice(..n));
        left -= n;
    }
    Buffer::from(blocks)
}

/// Bodies of requests.
pub(super) enum RequestBody {
    /// In memory.
    Bytes(Full<Bytes>),
    /// Read while it is sent.
    Source(Checked),
}

/// A body whose last bytes are sent only when all of them are what they should be: a source may change between the time it
/// was hashed and the time it is sent. What lacks its end is no object at any service.
pub(super) struct Checked {
    inner: body::Body,
    hasher: Sha256,
    checksum: Checksum,
}

impl Checked {
    fn new(inner: body::Body, checksum: Checksum) -> Self {
        Self { inner, hasher: Sha256::new(), checksum }
    }

    fn check(&mut self, frame: Frame<Bytes>) -> std::io::Result<Frame<Bytes>> {
        if let Some(data) = frame.data_ref() {
            self.hasher.update(data);
        }
        if self.inner.is_end_stream() && Checksum(self.hasher.finalize_reset().into()) != self.checksum {
            return Err(std::io::Error::other("it changed while it was read"));
        }
        Ok(frame)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, std::io::Error>>> {
        match self.get_mut() {
            Self::Bytes(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            Self::Source(body) => {
                let frame = std::task::ready!(Pin::new(&mut body.inner).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.and_then(|frame| body.check(frame))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(body) => body.is_end_stream(),
            Self::Source(body) => body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(body) => body.size_hint(),
            Self::Source(body) => body.inner.size_hint(),
        }
    }
}

/// The body of an object's answer: never more than was asked for.
struct Pieces {
    body: Incoming,
    left: u64,
    call: Arc<Call>,
}

impl futures::Stream for Pieces {
    type Item = opendal::Result<Buffer>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let call = Arc::clone(&self.call);
        let what = &call.rules.what;
        loop {
            return Poll::Ready(match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None if self.left > 0 => {
                    let text = format!("{what}: the answer ends {} bytes early", self.left);
                    Some(Err(call.fail(RemoteError::new(ErrorKind::Unavailable, text))))
                }
                None => None,
                Some(Err(e)) => Some(Err(call.fail(broke(what, &e)))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.len() as u64 > self.left => {
                        let text = format!("{what}: more bytes than were asked for");
                        Some(Err(call.fail(RemoteError::new(ErrorKind::Corrupt, text))))
                    }
                    Ok(data) if !data.is_empty() => {
                        self.left -= data.len() as u64;
                        Some(Ok(Buffer::from(data)))
                    }
                    // Nothing, or trailers.
                    _ => continue,
                },
            });
        }
    }
}

pub(super) fn broke(what: &str, error: &(dyn Error + 'static)) -> RemoteError {
    RemoteError::new(ErrorKind::Unavailable, format!("{what}: the connection broke: {}", last_cause(error)))
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

fn last_cause(error: &(dyn Error + 'static)) -> String {
    errors::printable(&chain(error).last().map_or_else(String::new, ToString::to_string))
}

/// A request without an answer.
fn of_client(what: &str, error: &hyper_util::client::legacy::Error) -> RemoteError {
    let last = last_cause(error);
    let with = |kind: ErrorKind, text: String| RemoteError::new(kind, format!("{what}: {text}"));
    // What is sent can't be read: that comes from our own body, whatever hyper makes of it.
    let io = |e: &(dyn Error + 'static)| e.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    if chain(error).any(|e| e.to_string().contains("invalid peer certificate")) {
        return with(ErrorKind::Untrusted, format!("the endpoint's certificate is not trusted: {last}"));
    }
    if error.is_connect() {
        return match chain(error).any(|e| io(e) == Some(std::io::ErrorKind::TimedOut)) {
            true => with(ErrorKind::Timeout, "no connection in time".into()),
            false => with(ErrorKind::Unreachable, format!("no connection: {last}")),
        };
    }
    let from_user = chain(error).any(|e| e.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_user));
    match from_user {
        true => with(ErrorKind::Local, format!("reading what is to be sent: {last}")),
        false => broke(what, error),
    }
}
