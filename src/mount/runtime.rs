//! The life of a mounted vault: serving, ticking, unmounting on request, and closing in order.
//!
//! Order at the end, whoever unmounted: the session ends; the control socket, ticker and timer stop; then the vault is
//! finished (flush, snapshot, garbage, close), and `live/status.json` says how that went before the lock is let go.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::control::{Handler, Request, Server};
use super::error::{ErrorKind, Failure, MountError, Result};
use super::holder;
use super::session;
use super::status::{State, StatusFile};
use crate::fuse::activity::Activity;

/// How long a mount with open files may live on after a signal before it is cut off.
const TERM_GRACE: Duration = Duration::from_secs(20);
/// What the vault's own clock ticks at.
const TICK: Duration = Duration::from_secs(1);
/// How long a connection that was cut off may take to end before closing goes on without it.
const ABORT_PATIENCE: Duration = Duration::from_secs(5);

/// The vault behind a mount, as far as its life cycle is concerned.
pub trait Served: Send + Sync + 'static {
    /// Called each second: commits what is due.
    ///
    /// # Errors
    /// What goes into the log and the status.
    fn tick(&self) -> std::result::Result<(), Failure>;
    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// Why it can't.
    fn sync(&self) -> std::result::Result<(), Failure>;
    /// Makes a snapshot; null when nothing changed.
    ///
    /// # Errors
    /// Why it can't.
    fn snapshot(&self, tags: Vec<String>, force: bool) -> std::result::Result<Value, Failure>;
    /// Deletes snapshots.
    ///
    /// # Errors
    /// Why it can't; then none was deleted.
    fn snapshot_delete(&self, snapshots: &[String], force: bool) -> std::result::Result<Value, Failure>;
    /// Collects garbage, or only says what it would do.
    ///
    /// # Errors
    /// Why it can't.
    fn gc(&self, dry_run: bool, dead_percent: Option<u8>) -> std::result::Result<Value, Failure>;
    /// Counters for `status`.
    fn counters(&self) -> Value;
    /// Ends it: flush, a snapshot if anything changed, garbage, close. Goes as far as it can. `closed` is called with
    /// the result after the last write and before the lock is let go.
    ///
    /// # Errors
    /// The first thing that failed.
    fn finish(
        &self,
        closed: &mut dyn FnMut(&std::result::Result<(), Failure>),
    ) -> std::result::Result<(), Failure>;
}

/// The FUSE session: runs until the connection ends.
pub type Session = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// What a mounted vault is made of.
pub struct Parts {
    /// The vault.
    pub served: Arc<dyn Served>,
    /// The connection, mounted already.
    pub session: Session,
    /// What the connection has been doing.
    pub activity: Arc<Activity>,
    /// The status file; none for mounts that don't hold the vault (of a snapshot).
    pub status: Option<Arc<StatusFile>>,
    /// The vault's directory, for the control socket; none likewise.
    pub vault: Option<PathBuf>,
    /// Where it is mounted, absolute.
    pub mountpoint: PathBuf,
    /// Unmount when unused for so long.
    pub idle: Option<Duration>,
    /// Make a snapshot this often.
    pub snapshot_every: Option<Duration>,
    /// Handle SIGTERM, SIGINT and SIGHUP.
    pub signals: bool,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("mountpoint", &self.mountpoint).finish_non_exhaustive()
    }
}

enum Event {
    Ended(io::Result<()>),
    Signal(i32),
    /// The connection was cut off but does not end.
    GiveUp,
}

/// A flag that sleepers wake up for.
#[derive(Debug, Default)]
struct Stop {
    stopped: Mutex<bool>,
    wake: Condvar,
}

impl Stop {
    fn set(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_all();
    }

    /// Sleeps; true when it is time to stop.
    fn sleep(&self, time: Duration) -> bool {
        let guard = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        match self.wake.wait_timeout_while(guard, time, |stopped| !*stopped) {
            Ok((stopped, _)) => *stopped,
            Err(poisoned) => *poisoned.into_inner().0,
        }
    }
}

/// What the threads of a mounted vault share.
struct Shared {
    served: Arc<dyn Served>,
    activity: Arc<Activity>,
    status: Option<Arc<StatusFile>>,
    mountpoint: PathBuf,
    /// One of snapshot, deletion, gc and finishing at a time.
    maintenance: Mutex<()>,
    stop: Stop,
    signals_seen: AtomicU32,
    detached: AtomicBool,
    /// We end the connection although it is in use.
    cut_off: AtomicBool,
}

impl Shared {
    fn note_error(&self, what: &str, failure: &Failure) {
        tracing::error!(error = %failure, "{what}");
        if let Some(status) = &self.status {
            // Not written again and again while the same error repeats each second.
            let text = format!("{what}: {failure}");
            if status.current().last_error.as_ref() != Some(&text) {
                status.note(|s| s.last_error = Some(text));
            }
        }
    }

    /// Unmounts, after making durable what can be while the mount still works: little is left for after.
    fn unmount(&self, lazy: bool, why: &str) -> Result<()> {
        tracing::info!(lazy, "unmounting: {why}");
        if let Err(failure) = self.served.sync() {
            self.note_error("sync before unmounting", &failure);
        }
        holder::detach(&self.mountpoint, lazy)?;
        self.detached.store(true, Ordering::SeqCst);
        if let Some(status) = &self.status {
            status.note(|s| s.state = State::Unmounting);
        }
        Ok(())
    }

    fn snapshot(&self, tags: Vec<String>, force: bool) -> std::result::Result<Value, Failure> {
        let _one = self.maintenance.lock().unwrap_or_else(PoisonError::into_inner);
        self.served.snapshot(tags, force)
    }
}

impl Handler for Shared {
    fn handle(&self, request: Request) -> std::result::Result<Value, Failure> {
        let alone = || self.maintenance.lock().unwrap_or_else(PoisonError::into_inner);
        match request {
            Request::Ping => Ok(Value::Null),
            Request::Status => {
                let status = self.status.as_ref().map(|s| s.current().describe());
                let status = status.transpose().map_err(|e| MountError::io("status", e))?;
                Ok(json!({
                    "status": status,
                    "activity": self.activity.report(),
                    "counters": self.served.counters(),
                }))
            }
            Request::SnapshotCreate { tags, force } => self.snapshot(tags, force),
            Request::SnapshotDelete { snapshots, force } => {
                let _one = alone();
                self.served.snapshot_delete(&snapshots, force)
            }
            Request::Gc { dry_run, dead_percent } => {
                let _one = alone();
                self.served.gc(dry_run, dead_percent)
            }
            Request::Sync => self.served.sync().map(|()| Value::Null),
            Request::Unmount { lazy } => {
                self.unmount(lazy, "asked for").map_err(Failure::from)?;
                Ok(Value::Null)
            }
        }
    }
}

/// A vault that is being served.
pub struct Running {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    control: Option<Server>,
    workers: Vec<JoinHandle<()>>,
    signals: Option<signal_hook::iterator::Handle>,
    device: (u32, u32),
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("mountpoint", &self.shared.mountpoint).finish_non_exhaustive()
    }
}

/// Starts serving, and returns when the mount answers.
///
/// # Errors
/// When it does not; then it was unmounted and the vault was closed again.
pub fn start(parts: Parts) -> Result<Running> {
    let (sender, events) = mpsc::channel();
    let shared = Arc::new(Shared {
        served: parts.served,
        activity: parts.activity,
        status: parts.status,
        mountpoint: parts.mountpoint,
        maintenance: Mutex::new(()),
        stop: Stop::default(),
        signals_seen: AtomicU32::new(0),
        detached: AtomicBool::new(false),
        cut_off: AtomicBool::new(false),
    });
    let mut running = Running {
        shared,
        events,
        sender: sender.clone(),
        control: None,
        workers: Vec::new(),
        signals: None,
        device: (0, 0),
    };
    let session = parts.session;
    let serve = move || {
        let result = session();
        // The receiver lives as long as the vault is served.
        drop(sender.send(Event::Ended(result)));
    };
    let started = spawn("sr-session", serve).and_then(|_| {
        running.device = session::self_test(&running.shared.mountpoint)?;
        running.start_helpers(parts.vault, parts.idle, parts.snapshot_every, parts.signals)
    });
    match started {
        Ok(()) => Ok(running),
        Err(error) => {
            if let Err(failure) = running.undo() {
                tracing::error!(error = %failure, "closing after a failed start");
            }
            Err(error)
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|e| MountError::io("starting a thread", e))
}

impl Running {
    fn start_helpers(
        &mut self,
        vault: Option<PathBuf>,
        idle: Option<Duration>,
        snapshot_every: Option<Duration>,
        signals: bool,
    ) -> Result<()> {
        session::raise_read_ahead(self.device);
        if let Some(vault) = vault {
            let server = Server::start(&vault, self.shared.clone())
                .map_err(|e| MountError::io("control socket", e))?;
            self.control = Some(server);
        }
        let shared = self.shared.clone();
        self.workers.push(spawn("sr-tick", move || tick_loop(&shared, idle))?);
        if let Some(every) = snapshot_every {
            let shared = self.shared.clone();
            self.workers.push(spawn("sr-timer", move || snapshot_loop(&shared, every))?);
        }
        if signals {
            self.watch_signals()?;
        }
        if let Some(status) = &self.shared.status {
            let device = self.device;
            let mounted = |s: &mut super::status::Status| {
                s.state = State::Mounted;
                s.device = Some(device);
            };
            status.update(mounted).map_err(|e| MountError::io("writing the status", e))?;
        }
        tracing::info!(mountpoint = %self.shared.mountpoint.display(), "mounted");
        Ok(())
    }

    fn watch_signals(&mut self) -> Result<()> {
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
            .map_err(|e| MountError::io("signal handlers", e))?;
        self.signals = Some(signals.handle());
        let sender = self.sender.clone();
        let watch = move || {
            for signal in signals.forever() {
                if sender.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        };
        self.workers.push(spawn("sr-signal", watch)?);
        Ok(())
    }

    /// Device number of the mount.
    pub fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Unmounts from within this process.
    ///
    /// # Errors
    /// `Busy` and others; then the mount goes on.
    pub fn unmount(&self, lazy: bool) -> Result<()> {
        self.shared.unmount(lazy, "asked for by this process")
    }

    /// Carries out a request as if it had come over the control socket.
    ///
    /// # Errors
    /// As the request.
    pub fn request(&self, request: Request) -> std::result::Result<Value, Failure> {
        self.shared.handle(request)
    }

    /// Serves until the mount has gone, then closes the vault. Returns what could not be done.
    ///
    /// # Errors
    /// The first thing that failed while closing; data that was acknowledged as durable is safe in any case.
    pub fn wait(mut self) -> std::result::Result<(), Failure> {
        self.serve();
        self.close()
    }

    /// Takes back a start that failed.
    fn undo(mut self) -> std::result::Result<(), Failure> {
        if let Err(error) = session::abort(&self.shared.mountpoint) {
            tracing::warn!(%error, "unmounting after a failed start");
        }
        match self.events.recv_timeout(ABORT_PATIENCE) {
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the session did not end"),
        }
        self.close()
    }

    fn serve(&self) {
        loop {
            match self.events.recv() {
                Ok(Event::Ended(Ok(()))) => return tracing::info!("the mount has gone"),
                Ok(Event::Ended(Err(error)))
                    if is_our_abort(&error, self.shared.cut_off.load(Ordering::SeqCst)) =>
                {
                    return tracing::info!("the mount was cut off");
                }
                Ok(Event::Ended(Err(error))) => {
                    let failure = MountError::io("the FUSE session", error).into();
                    return self.shared.note_error("serving", &failure);
                }
                Ok(Event::GiveUp) => return tracing::warn!("closing although files are still open"),
                Ok(Event::Signal(signal)) => self.on_signal(signal),
                // Impossible: we hold a sender ourselves.
                Err(mpsc::RecvError) => return,
            }
        }
    }

    /// The first signal starts an orderly end, each further one ends the waiting in it.
    fn on_signal(&self, signal: i32) {
        let seen = self.shared.signals_seen.fetch_add(1, Ordering::SeqCst);
        tracing::info!(signal, seen, "signal");
        if seen > 0 {
            return;
        }
        let (shared, sender) = (self.shared.clone(), self.sender.clone());
        if let Err(error) = spawn("sr-terminate", move || terminate(&shared, &sender)) {
            tracing::error!(%error, "ending without waiting for open files");
            drop(self.sender.send(Event::GiveUp));
        }
    }

    fn close(&mut self) -> std::result::Result<(), Failure> {
        if let Some(status) = &self.shared.status {
            status.note(|s| s.state = State::Unmounting);
        }
        drop(self.control.take());
        self.shared.stop.set();
        if let Some(signals) = self.signals.take() {
            signals.close();
        }
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a helper thread panicked");
            }
        }
        let _one = self.shared.maintenance.lock().unwrap_or_else(PoisonError::into_inner);
        let status = self.shared.status.clone();
        let result = self.shared.served.finish(&mut |result| {
            if let Some(status) = &status {
                status.note(|s| {
                    s.state = State::Closed;
                    s.clean = result.is_ok();
                    if let Err(failure) = result {
                        s.last_error = Some(failure.to_string());
                        s.last_code = Some(failure.code);
                    }
                });
            }
        });
        match &result {
            Ok(()) => tracing::info!("closed"),
            Err(failure) => tracing::error!(error = %failure, "closing"),
        }
        result
    }
}

/// Unmounts after a signal: properly, else, when files stay open too long, by cutting them off.
fn terminate(shared: &Shared, sender: &Sender<Event>) {
    let start = Instant::now();
    let mut said = false;
    loop {
        match shared.unmount(false, "signal") {
            Ok(()) => return,
            Err(error) if error.kind == ErrorKind::Busy => {
                if !said {
                    said = true;
                    tracing::warn!(hint = error.hint.as_deref().unwrap_or(""), "{error}");
                }
            }
            Err(error) => tracing::error!(%error, "unmounting"),
        }
        if start.elapsed() >= TERM_GRACE || shared.signals_seen.load(Ordering::SeqCst) > 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    tracing::warn!("cutting off processes that still use the mount");
    // What they wrote so far is still in the kernel's cache: ask for it before the connection ends.
    match std::fs::File::open(&shared.mountpoint).map(|dir| rustix::fs::syncfs(&dir)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "syncfs"),
        Err(error) => tracing::warn!(%error, "syncfs"),
    }
    shared.cut_off.store(true, Ordering::SeqCst);
    if let Err(error) = session::abort(&shared.mountpoint) {
        tracing::error!(%error, "cutting off");
    }
    shared.detached.store(true, Ordering::SeqCst);
    std::thread::sleep(ABORT_PATIENCE);
    // If the session has ended, nobody listens any more.
    drop(sender.send(Event::GiveUp));
}

/// Whether a connection has ended as it was told to: whoever reads from it at that moment gets an error, and whoever comes
/// later is told that it has gone.
fn is_our_abort(error: &std::io::Error, was_cut_off: bool) -> bool {
    was_cut_off && error.raw_os_error() == Some(rustix::io::Errno::CONNABORTED.raw_os_error())
}

fn tick_loop(shared: &Shared, idle: Option<Duration>) {
    let mut idle_since_failure = None::<Instant>;
    while !shared.stop.sleep(TICK) {
        if let Err(failure) = shared.served.tick() {
            shared.note_error("commit", &failure);
        }
        let Some(idle) = idle else { continue };
        let backing_off = idle_since_failure.is_some_and(|at| at.elapsed() < idle);
        if backing_off || !shared.activity.is_idle_for(idle) || shared.detached.load(Ordering::SeqCst) {
            continue;
        }
        match shared.unmount(false, "unused") {
            Ok(()) => {}
            Err(error) => {
                // A shell stands in it, for example. That is use too.
                tracing::debug!(%error, "not unmounted");
                idle_since_failure = Some(Instant::now());
            }
        }
    }
}

fn snapshot_loop(shared: &Shared, every: Duration) {
    while !shared.stop.sleep(every) {
        match shared.snapshot(vec!["timer".into()], false) {
            Ok(Value::Null) => tracing::debug!("nothing changed since the last snapshot"),
            Ok(snapshot) => tracing::info!(%snapshot, "snapshot"),
            Err(failure) => shared.note_error("snapshot", &failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use rustix::io::Errno;

    use super::is_our_abort;

    #[test]
    fn only_the_end_that_we_ordered_is_no_failure() {
        let (aborted, gone) = (Errno::CONNABORTED, Errno::NODEV);
        let error = |errno: Errno| Error::from_raw_os_error(errno.raw_os_error());
        assert!(is_our_abort(&error(aborted), true));
        assert!(!is_our_abort(&error(aborted), false), "somebody else did it");
        assert!(!is_our_abort(&error(gone), true) && !is_our_abort(&Error::other("it broke"), true));
    }
}
