//! The control socket of a mounted vault, `live/control.sock`.
//!
//! One request a connection: a line of JSON from the client, then one or more lines from the server, of which the last
//! has `ok`. The socket is private to the owner of the vault, and the server asks the kernel who is calling.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{ErrorKind, Failure, MountError, Result};

/// Path of the socket inside the vault.
pub const SOCKET_PATH: &str = "live/control.sock";
const SOCKET_NAME: &str = "control.sock";
/// A longer request is refused.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// A longer line of an answer is refused by the client.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Connections served at once; more are turned away.
const CONNECTIONS_MAX: usize = 16;
/// A client that sends nothing for so long is dropped, and one that does not take its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The server says at least this often that it still works on a request.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// A server silent for so long is given up by the client.
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Answers with nothing.
    Ping,
    /// What is mounted, and the counters of the engine.
    Status,
    /// Makes a snapshot now.
    SnapshotCreate {
        /// Words kept with it.
        #[serde(default)]
        tags: Vec<String>,
        /// Even if nothing changed.
        #[serde(default)]
        force: bool,
    },
    /// Deletes snapshots.
    SnapshotDelete {
        /// Sequence numbers, id prefixes, and what else names one.
        snapshots: Vec<String>,
        /// Even the newest one.
        #[serde(default)]
        force: bool,
    },
    /// Collects garbage.
    Gc {
        /// Only says what would be done.
        #[serde(default)]
        dry_run: bool,
        /// Rewrites packs of which at least so much is dead; without it, of the usual part.
        #[serde(default)]
        dead_percent: Option<u8>,
    },
    /// Makes everything written so far durable.
    Sync,
    /// Unmounts, then finishes; answers once the mount is gone, before the vault is closed.
    Unmount {
        /// Detach at once, even if files are open.
        #[serde(default)]
        lazy: bool,
    },
}

/// A line from the server. Exactly one with `ok` ends an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Done, or failed. Absent in a line that only says that work goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<bool>,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub result: Value,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// What is being done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
}

impl Answer {
    fn of(result: std::result::Result<Value, Failure>) -> Self {
        let (ok, result, error) = match result {
            Ok(value) => (true, value, None),
            Err(failure) => (false, Value::Null, Some(failure)),
        };
        Self { ok: Some(ok), result, error, progress: None }
    }

    fn working() -> Self {
        Self { ok: None, result: Value::Null, error: None, progress: Some("working".into()) }
    }
}

/// Who answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Carries out one request. Runs on a thread of its own and may take its time.
    ///
    /// # Errors
    /// What the client is to be told.
    fn handle(&self, request: Request) -> std::result::Result<Value, Failure>;
}

/// Opens the directory of the socket and names the socket through it: a socket address has room for 108 bytes, and
/// paths of vaults can be longer.
fn address(vault: &Path) -> io::Result<(File, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let dir = File::from(rustix::fs::open(vault.join("live"), flags, Mode::empty())?);
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd()));
    Ok((dir, path))
}

/// How long the end of a server waits for answers that are being sent.
const LAST_ANSWERS_PATIENCE: Duration = Duration::from_secs(2);

/// The listening end; when dropped it stops, lets requests in progress send their answers, and removes the socket.
pub struct Server {
    listener: Arc<UnixListener>,
    active: Arc<AtomicUsize>,
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _dir: File,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on the socket of a vault. The caller holds the vault's lock, so a socket that is there is a left-over.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn start(vault: &Path, handler: Arc<dyn Handler>) -> io::Result<Self> {
        let (dir, path) = address(vault)?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = Arc::new(UnixListener::bind(&path)?);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let stop = Arc::new(AtomicBool::new(false));
        let active = Arc::new(AtomicUsize::new(0));
        let accepting = (listener.clone(), stop.clone(), active.clone());
        let thread = std::thread::Builder::new()
            .name("sr-control".into())
            .spawn(move || accept_loop(&accepting.0, &accepting.1, &accepting.2, &handler))?;
        Ok(Self { listener, active, path, stop, thread: Some(thread), _dir: dir })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes accept(2), which then fails.
        if let Err(error) = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both) {
            tracing::debug!(%error, "shutting down the control socket");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
        // Whoever asked for the unmount that ends this process still waits for the answer.
        let start = Instant::now();
        while self.active.load(Ordering::SeqCst) > 0 && start.elapsed() < LAST_ANSWERS_PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "removing the control socket");
        }
    }
}

fn accept_loop(
    listener: &UnixListener,
    stop: &AtomicBool,
    active: &Arc<AtomicUsize>,
    handler: &Arc<dyn Handler>,
) {
    while !stop.load(Ordering::SeqCst) {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) if stop.load(Ordering::SeqCst) => return,
            Err(error) => {
                tracing::warn!(%error, "control socket");
                // Out of descriptors or memory: not at full speed.
                std::thread::sleep(Duration::from_millis(200));
                continue;
            }
        };
        if active.load(Ordering::SeqCst) >= CONNECTIONS_MAX {
            drop(stream);
            continue;
        }
        active.fetch_add(1, Ordering::SeqCst);
        let (handler, counter) = (handler.clone(), active.clone());
        let spawned = std::thread::Builder::new().name("sr-request".into()).spawn(move || {
            if let Err(error) = serve_one(stream, &handler) {
                tracing::debug!(%error, "control request");
            }
            counter.fetch_sub(1, Ordering::SeqCst);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "control thread");
            active.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn serve_one(stream: UnixStream, handler: &Arc<dyn Handler>) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
        let failure = Failure::new(1, "only the owner of the mount and root may ask this");
        return send(&stream, &Answer::of(Err(failure)));
    }
    let request = match read_request(&stream)? {
        Ok(request) => request,
        Err(failure) => return send(&stream, &Answer::of(Err(failure))),
    };
    tracing::info!(?request, pid = peer.pid.as_raw_nonzero().get(), "control request");
    let (sender, receiver) = std::sync::mpsc::channel();
    let handler = handler.clone();
    std::thread::Builder::new().name("sr-work".into()).spawn(move || {
        // The receiver is gone only if the client is: the work is done all the same.
        drop(sender.send(handler.handle(request)));
    })?;
    loop {
        match receiver.recv_timeout(HEARTBEAT) {
            Ok(result) => return send(&stream, &Answer::of(result)),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => send(&stream, &Answer::working())?,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                let failure = Failure::new(1, "the request failed inside the daemon; its log says more");
                return send(&stream, &Answer::of(Err(failure)));
            }
        }
    }
}

/// Reads and parses the request line; the inner error goes to the client.
fn read_request(stream: &UnixStream) -> io::Result<std::result::Result<Request, Failure>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(REQUEST_BYTES_MAX + 1)).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        let text = if line.len() as u64 > REQUEST_BYTES_MAX {
            "the request is too long"
        } else {
            "the request has no end"
        };
        return Ok(Err(Failure::new(2, text)));
    }
    Ok(serde_json::from_slice(&line)
        .map_err(|e| Failure::new(2, format!("the request is not understood: {e}"))))
}

fn send(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Tells whether something listens on the control socket of a vault.
pub fn is_listening(vault: &Path) -> bool {
    connect(vault).is_ok_and(|stream| stream.is_some())
}

fn connect(vault: &Path) -> io::Result<Option<UnixStream>> {
    let (_dir, path) = match address(vault) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    match UnixStream::connect(&path) {
        Ok(stream) => Ok(Some(stream)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sends one request to the process that serves a vault and waits for its end. `Ok(None)`: nothing listens there.
/// `progress` hears what the server says meanwhile.
///
/// # Errors
/// `Permission`, `Timeout` and `Died` for a server that can't be reached or falls silent; the inner error is the
/// server's own answer.
pub fn call(
    vault: &Path,
    request: &Request,
    progress: &mut dyn FnMut(&str),
) -> Result<Option<std::result::Result<Value, Failure>>> {
    let shown = vault.display();
    let stream = match connect(vault) {
        Ok(Some(stream)) => stream,
        Ok(None) => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let text = format!("the process that serves {shown} belongs to another user");
            return Err(MountError::new(ErrorKind::Permission, text).hint("run this as that user or as root"));
        }
        Err(e) => return Err(MountError::io(format!("{shown}/{SOCKET_PATH}"), e)),
    };
    let lost = |e: io::Error| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            MountError::new(ErrorKind::Timeout, format!("the process that serves {shown} does not answer"))
        }
        _ => MountError::new(
            ErrorKind::Died,
            format!("the process that serves {shown} closed the connection: {e}"),
        ),
    };
    stream.set_read_timeout(Some(SERVER_TIMEOUT)).map_err(lost)?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT)).map_err(lost)?;
    let mut line = serde_json::to_vec(request).map_err(|e| MountError::io("request", e))?;
    line.push(b'\n');
    (&stream).write_all(&line).map_err(lost)?;
    let mut reader = BufReader::new(&stream);
    loop {
        let mut line = Vec::new();
        (&mut reader).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line).map_err(lost)?;
        if line.is_empty() {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        }
        let answer: Answer = serde_json::from_slice(&line)
            .map_err(|e| MountError::io(format!("the process that serves {shown} answered nonsense"), e))?;
        match (answer.ok, answer.error) {
            (Some(true), _) => return Ok(Some(Ok(answer.result))),
            (Some(false), error) => {
                return Ok(Some(Err(error.unwrap_or_else(|| Failure::new(1, "failed without a reason")))));
            }
            (None, _) => progress(answer.progress.as_deref().unwrap_or("working")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Echo;

    impl Handler for Echo {
        fn handle(&self, request: Request) -> std::result::Result<Value, Failure> {
            match request {
                Request::Gc { .. } => {
                    Err(Failure { code: 19, message: "full".into(), hint: Some("free".into()) })
                }
                Request::Sync => panic!("a handler that panics"),
                other => Ok(serde_json::to_value(other).unwrap()),
            }
        }
    }

    fn vault() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        // Longer than a socket address.
        let vault = dir.path().join("v".repeat(120));
        std::fs::create_dir_all(vault.join("live")).unwrap();
        (dir, vault)
    }

    fn raw(vault: &Path, bytes: &[u8]) -> Answer {
        let mut stream = connect(vault).unwrap().unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut line = Vec::new();
        BufReader::new(stream).read_until(b'\n', &mut line).unwrap();
        serde_json::from_slice(&line).unwrap()
    }

    /// Scripts read what is answered: no number changes on its way.
    #[test]
    fn numbers_stay_what_they_are() {
        let long = format!("{{\"ok\":true,\"result\":[14{},0.1,-0.0,{}]}}", "5".repeat(81), u64::MAX);
        let mut told = serde_json::from_str::<Answer>(&long).unwrap();
        for _ in 0..3 {
            let again = serde_json::to_string(&told).unwrap();
            assert_eq!(serde_json::from_str::<Answer>(&again).unwrap(), told, "{again}");
            told = serde_json::from_str(&again).unwrap();
        }
    }

    #[test]
    fn requests_are_answered_over_a_private_socket() {
        let (_dir, vault) = vault();
        assert!(call(&vault, &Request::Ping, &mut |_| {}).unwrap().is_none());
        let server = Server::start(&vault, Arc::new(Echo)).unwrap();
        let mode = std::fs::metadata(vault.join(SOCKET_PATH)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let request = Request::SnapshotCreate { tags: vec!["a\nb".into()], force: true };
        let value = call(&vault, &request, &mut |_| {}).unwrap().unwrap().unwrap();
        assert_eq!(serde_json::from_value::<Request>(value).unwrap(), request);
        let failure = call(&vault, &Request::Gc { dry_run: true, dead_percent: Some(5) }, &mut |_| {})
            .unwrap()
            .unwrap()
            .unwrap_err();
        assert_eq!((failure.code, failure.hint.as_deref()), (19, Some("free")));
        drop(server);
        assert!(!vault.join(SOCKET_PATH).exists());
        assert!(!is_listening(&vault));
    }

    #[test]
    fn a_left_over_socket_is_replaced() {
        let (_dir, vault) = vault();
        let (_keep, path) = address(&vault).unwrap();
        drop(UnixListener::bind(path).unwrap());
        assert!(!is_listening(&vault));
        let _server = Server::start(&vault, Arc::new(Echo)).unwrap();
        assert!(is_listening(&vault));
    }

    #[test]
    fn hostile_requests_get_an_error_and_do_no_harm() {
        let (_dir, vault) = vault();
        let _server = Server::start(&vault, Arc::new(Echo)).unwrap();
        let long = vec![b'x'; 70_000];
        let deep = "[".repeat(10_000) + "\n";
        for bytes in [
            &b"\n"[..],
            b"{}\n",
            b"no json\n",
            b"{\"cmd\":\"rm\"}\n",
            b"{\"cmd\":\"ping\"",
            &long,
            deep.as_bytes(),
            b"{\"cmd\":\"gc\",\"extra\":1}\n",
            b"{\"cmd\":\"unmount\",\"lazy\":\"yes\"}\n",
            b"\xff\xfe\n",
        ] {
            let answer = raw(&vault, bytes);
            assert_eq!(answer.ok, Some(false));
            assert_eq!(answer.error.unwrap().code, 2);
        }
        // Connections that say nothing must not keep others out for good.
        let silent: Vec<_> = (0..CONNECTIONS_MAX - 1).map(|_| connect(&vault).unwrap().unwrap()).collect();
        assert_eq!(raw(&vault, b"{\"cmd\":\"ping\"}\n").ok, Some(true));
        drop(silent);
    }

    #[test]
    fn a_panicking_handler_is_reported() {
        let (_dir, vault) = vault();
        let _server = Server::start(&vault, Arc::new(Echo)).unwrap();
        let failure = call(&vault, &Request::Sync, &mut |_| {}).unwrap().unwrap().unwrap_err();
        assert!(failure.message.contains("failed inside the daemon"));
        assert_eq!(raw(&vault, b"{\"cmd\":\"ping\"}\n").ok, Some(true));
    }
}
