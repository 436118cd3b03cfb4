//! Keeps shipping: what appears in a vault goes to its remotes as it appears.
//!
//! Packs are sent as they close, ahead of the snapshot that will name them, so that little is left to do when it is made.
//! One that is collected before that is merely not needed there.
//!
//! Each remote has a thread of its own, so that one that hangs holds nobody else. Between two rounds nothing is open:
//! neither the vault, so that its disk can be unmounted, nor the remote. A round is what `ship` does, and safe to end
//! anywhere; so everything here may be killed at any time.
//!
//! What can go wrong while it runs, and what is done about it:
//! - A remote is away: tried again, at growing intervals. One event when that begins, one when it ends.
//! - The vault is away (its disk is unmounted): looked for again. Another vault in its place is not shipped.
//! - Keys change: the header is one of the things that are looked at.
//! - Another process ships to the same place: it holds the lock; this one waits, and lists anew afterwards.
//! - Garbage is collected meanwhile: `ship` looks again.
//! - Remotes are added, changed or removed: threads come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::disk::{Disk, Notify, RealDisk};
use crate::env::Env;
use crate::format::PackName;
use crate::remote::{Counters, Remote, RemoteError, Settings};
use crate::snapshot::chain::DIR;
use crate::snapshot::open::list_packs;
use crate::store::error::StoreError;
use crate::store::header::load;

use super::error::{Result, ShipError};
use super::settings::{Remotes, load_cursor, lock_remote, store_cursor};
use super::standing::{Ended, store_last};
use super::stop::{Stop, Woken};
use super::{Jobs, Report, ShipOptions, header, ship_into};

/// What a remote has is listed again after this time, and everything compared, also when nothing changes here.
const LIST_AGAIN: Duration = Duration::from_secs(3600);
/// Pauses after failures: the first, and the longest.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// A directory costs nothing to look at: a disk that was plugged in is seen soon.
const PAUSE_MAX_LOCAL: Duration = Duration::from_secs(60);
/// Another process that ships is asked for this often.
const PAUSE_BUSY: Duration = Duration::from_secs(10);
/// The settings are read at least this often.
const LOOK: Duration = Duration::from_secs(30);
/// After being asked to end: for the objects under way, then for giving them up.
const GRACE: Duration = Duration::from_secs(8);
const GRACE_ABANDON: Duration = Duration::from_secs(2);

/// What a process that keeps shipping knows of one remote between two rounds.
#[derive(Debug)]
pub struct Watched {
    /// Asks the rounds to end.
    pub(super) stop: Arc<Stop>,
    /// Packs that are there.
    known: Mutex<Option<BTreeMap<PackName, u64>>>,
}

impl Watched {
    /// Nothing is known yet.
    pub fn new(stop: Arc<Stop>) -> Self {
        Self { stop, known: Mutex::new(None) }
    }

    /// What is known; it is not, afterwards, until it is remembered again.
    pub(super) fn take_known(&self) -> Option<BTreeMap<PackName, u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn remember(&self, packs: BTreeMap<PackName, u64>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(packs);
    }
}

/// A remote that was opened for a round, and how many packs at a time suit it.
#[derive(Debug)]
pub struct Opened {
    /// The remote.
    pub remote: Arc<dyn Remote>,
    /// Packs at a time.
    pub jobs: Jobs,
}

/// Opens a remote.
type Opener =
    dyn Fn(&Settings, Arc<Counters>, &Arc<Stop>) -> std::result::Result<Opened, RemoteError> + Send + Sync;

/// How to keep shipping.
pub struct Watching {
    /// These remotes only; all when empty.
    pub only: BTreeSet<String>,
    /// The vault is looked at at least this often.
    pub interval: Duration,
    /// A round begins when nothing has appeared for this long,
    pub quiet: Duration,
    /// but not later than this after something has.
    pub longest: Duration,
    /// The clock.
    pub env: Arc<dyn Env>,
    /// Opens a remote for a round that this is to be able to end.
    pub open: Box<Opener>,
    /// Who this is, for others that find the remote locked.
    pub note: String,
    /// Is told what happens, by several threads.
    pub tell: Box<dyn Fn(Event<'_>) + Send + Sync>,
}

impl std::fmt::Debug for Watching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watching")
            .field("only", &self.only)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

/// What happened. Failures are told when they begin, not each time.
#[derive(Debug)]
pub enum Event<'a> {
    /// A round has ended well.
    Shipped {
        /// The remote.
        name: &'a str,
        /// Its URL.
        url: &'a str,
        /// What was done.
        report: &'a Report,
        /// Calls of the remote.
        requests: u64,
        /// How long it took.
        time: Duration,
        /// The one before had failed, and nothing is wrong there now.
        recovered: bool,
    },
    /// A round has failed, and this is what it did and found until then. Not told where it did and found nothing.
    Unfinished {
        /// The remote.
        name: &'a str,
        /// Its URL.
        url: &'a str,
        /// What was done.
        report: &'a Report,
        /// Calls of the remote.
        requests: u64,
        /// How long it took.
        time: Duration,
    },
    /// Rounds fail now, for another reason than before.
    Failing {
        /// The remote.
        name: &'a str,
        /// Its URL.
        url: &'a str,
        /// Why.
        error: ShipError,
    },
    /// The vault can't be read, for another reason than before.
    VaultAway {
        /// Why.
        error: ShipError,
    },
    /// The vault is there again.
    VaultBack,
    /// A remote was added, or its settings were changed.
    Added {
        /// The remote.
        name: &'a str,
    },
    /// A remote was removed from the settings.
    Removed {
        /// The remote.
        name: &'a str,
    },
}

struct Common {
    vault: PathBuf,
    vault_id: [u8; 16],
    watching: Watching,
}

struct Worker {
    settings: Settings,
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

/// Keeps shipping until `stop` is asked to end.
///
/// # Errors
/// When the vault can't be read, or a thread not be started, at the beginning. Nothing that happens later.
pub fn watch(vault: &Path, watching: Watching, stop: &Stop) -> Result<()> {
    let (disk, _) = open_vault(vault, None)?;
    let vault_id = vault_id(disk.as_ref())?;
    drop(disk);
    let look = watching.interval.min(LOOK);
    let common = Arc::new(Common { vault: vault.to_path_buf(), vault_id, watching });
    let mut workers: BTreeMap<String, Worker> = BTreeMap::new();
    let mut trouble: Option<String> = None;
    let mut first = true;
    loop {
        match read_settings(&common) {
            Ok(remotes) => {
                if trouble.take().is_some() {
                    (common.watching.tell)(Event::VaultBack);
                }
                match follow(&common, &mut workers, remotes.remotes, first) {
                    Err(error) if first => return Err(error),
                    Err(error) => tracing::warn!(%error, "tried again soon"),
                    Ok(()) => {}
                }
                first = false;
            }
            Err(error) => {
                let text = error.to_string();
                if trouble.as_ref() != Some(&text) {
                    trouble = Some(text);
                    (common.watching.tell)(Event::VaultAway { error });
                }
            }
        }
        if stop.wait(look, None) == Woken::Stopped {
            break;
        }
    }
    end(workers, stop)
}

/// Lets objects under way be finished for a while, then gives them up. A thread that still hangs ends with the process:
/// what it sends appears whole, or never.
fn end(workers: BTreeMap<String, Worker>, stop: &Stop) -> Result<()> {
    let all_ended = || workers.values().all(|worker| worker.thread.is_finished());
    let step = Duration::from_millis(20);
    let mut left = (GRACE + GRACE_ABANDON).as_millis() / step.as_millis();
    let abandon_at = GRACE_ABANDON.as_millis() / step.as_millis();
    for worker in workers.values() {
        worker.stop.finish();
    }
    while !all_ended() && left > 0 {
        if left <= abandon_at || stop.is_abandoned() {
            for worker in workers.values() {
                worker.stop.abandon();
            }
            left = left.min(abandon_at);
        }
        std::thread::sleep(step);
        left -= 1;
    }
    for (name, worker) in workers {
        if worker.thread.is_finished() {
            // It told what went wrong; a panic was caught in it.
            drop(worker.thread.join());
        } else {
            tracing::info!(name, "was given up");
        }
    }
    Ok(())
}

/// Starts and ends threads as remotes come and go.
fn follow(
    common: &Arc<Common>,
    workers: &mut BTreeMap<String, Worker>,
    remotes: BTreeMap<String, Settings>,
    first: bool,
) -> Result<()> {
    let only = &common.watching.only;
    let wanted: BTreeMap<String, Settings> =
        remotes.into_iter().filter(|(name, _)| only.is_empty() || only.contains(name)).collect();
    let gone: Vec<String> = workers
        .iter()
        .filter(|(name, worker)| wanted.get(*name) != Some(&worker.settings) || worker.thread.is_finished())
        .map(|(name, _)| name.clone())
        .collect();
    for name in gone {
        if let Some(worker) = workers.remove(&name) {
            // Not waited for: it may hang. Its lock keeps a new one for the same remote waiting until it has ended.
            worker.stop.finish();
        }
        if !wanted.contains_key(&name) {
            (common.watching.tell)(Event::Removed { name: &name });
        }
    }
    for (name, settings) in wanted {
        if workers.contains_key(&name) {
            continue;
        }
        if !first {
            (common.watching.tell)(Event::Added { name: &name });
        }
        let stop = Arc::new(Stop::new().map_err(|e| StoreError::io("starting to watch", e))?);
        let mut rounds = Rounds {
            common: Arc::clone(common),
            name: name.clone(),
            settings: settings.clone(),
            stop: Arc::clone(&stop),
            watched: Arc::new(Watched::new(Arc::clone(&stop))),
            shipped: None,
            listed: None,
            failing: None,
            failures: 0,
            jobs: None,
        };
        let thread = std::thread::Builder::new()
            .name(format!("ship-{name}"))
            .spawn(move || rounds.run())
            .map_err(|e| StoreError::io("starting a thread", e))?;
        workers.insert(name, Worker { settings, stop, thread });
    }
    Ok(())
}

/// A vault's files, and the bytes of its header.
type OpenVault = (Arc<dyn Disk>, Arc<[u8]>);

fn open_vault(path: &Path, vault_id_wanted: Option<&[u8; 16]>) -> Result<OpenVault> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => StoreError::NotAVault,
        _ => StoreError::io(format!("opening {}", path.display()), e),
    })?);
    let parsed = load(disk.as_ref())?.parsed;
    if vault_id_wanted.is_some_and(|id| id != parsed.header.vault_id.as_bytes()) {
        let text = format!("another vault ({}) is in its place", parsed.header.vault_id.to_hex());
        return Err(StoreError::NotFound(text).into());
    }
    let bytes = header::local_bytes(disk.as_ref(), &parsed)?;
    Ok((disk, bytes))
}

fn vault_id(disk: &dyn Disk) -> Result<[u8; 16]> {
    Ok(*load(disk)?.parsed.header.vault_id.as_bytes())
}

fn read_settings(common: &Common) -> Result<Remotes> {
    let (disk, _) = open_vault(&common.vault, Some(&common.vault_id))?;
    Ok(Remotes::load(disk.as_ref())?)
}

/// The rounds of one remote.
struct Rounds {
    common: Arc<Common>,
    name: String,
    settings: Settings,
    stop: Arc<Stop>,
    watched: Arc<Watched>,
    /// What the vault was when it was shipped last.
    shipped: Option<blake3::Hash>,
    /// When the remote was listed last, on the monotonic clock.
    listed: Option<Duration>,
    /// Why the last round failed, in the words that tell one reason from another.
    failing: Option<String>,
    failures: u32,
    /// The number of packs at a time that did best.
    jobs: Option<usize>,
}

/// How a round ended.
enum Round {
    /// There was nothing new here.
    Nothing,
    Shipped,
    /// The vault is not there; that is told once for all remotes.
    VaultAway,
}

impl Rounds {
    fn run(&mut self) {
        loop {
            // Before the round looks: what appears from here on is told.
            let notify = match Notify::new(&self.common.vault) {
                Ok(notify) => Some(notify),
                Err(error) => {
                    tracing::debug!(%error, "changes are not told, so they are looked for");
                    None
                }
            };
            let ended = catch_unwind(AssertUnwindSafe(|| self.round()));
            let ended = ended.unwrap_or_else(|_| Err(StoreError::Poisoned("a round panicked".into()).into()));
            if self.stop.is_asked() {
                return;
            }
            let woken = match ended {
                Ok(Round::Nothing | Round::Shipped) => {
                    self.failures = 0;
                    let woken = self.stop.wait(self.common.watching.interval, notify.as_ref());
                    self.settle(woken, notify.as_ref())
                }
                Ok(Round::VaultAway) => self.stop.wait(self.common.watching.interval.min(LOOK), None),
                Err(error) => self.fail(error),
            };
            if woken == Woken::Stopped {
                return;
            }
        }
    }

    /// Waits until what appears has come to a rest: a job that writes closes a pack every few seconds.
    fn settle(&self, mut woken: Woken, notify: Option<&Notify>) -> Woken {
        let watching = &self.common.watching;
        let start = watching.env.monotonic();
        while woken == Woken::Changed {
            let left = watching.longest.saturating_sub(watching.env.monotonic().saturating_sub(start));
            if left.is_zero() {
                break;
            }
            woken = self.stop.wait(watching.quiet.min(left), notify);
        }
        woken
    }

    /// Tells of a failure if it is a new one, and waits.
    fn fail(&mut self, error: ShipError) -> Woken {
        let busy = matches!(error, ShipError::Busy(_));
        let reason = reason(&error);
        self.listed = None;
        if self.failing.as_ref() != Some(&reason) {
            self.failing = Some(reason);
            (self.common.watching.tell)(Event::Failing { name: &self.name, url: &self.settings.url, error });
        } else {
            tracing::debug!(name = self.name, %error, "still failing");
        }
        if busy {
            return self.stop.wait(PAUSE_BUSY.min(self.common.watching.interval), None);
        }
        let local = self.settings.location().is_ok_and(|location| location.is_local());
        let longest = if local { PAUSE_MAX_LOCAL } else { PAUSE_MAX };
        let pause = pause_after(self.failures, longest, self.common.watching.env.as_ref());
        self.failures = self.failures.saturating_add(1);
        self.stop.wait(pause, None)
    }

    fn round(&mut self) -> Result<Round> {
        let watching = &self.common.watching;
        let opened = open_vault(&self.common.vault, Some(&self.common.vault_id));
        let (disk, header) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(%error, "the vault is away");
                return Ok(Round::VaultAway);
            }
        };
        let now = watching.env.monotonic();
        let state = fingerprint(disk.as_ref(), &header)?;
        let due = self.listed.is_none_or(|listed| now.saturating_sub(listed) >= LIST_AGAIN);
        if self.shipped == Some(state) && !due {
            return Ok(Round::Nothing);
        }
        // Somebody else who ships remembers what comes of it.
        let lock = lock_remote(disk.as_ref(), &self.name, &watching.note)?;
        if due || lock.previous != watching.note {
            // Nothing is known of what somebody else did there.
            drop(self.watched.take_known());
            self.listed = Some(now);
        }
        let (counters, mut report) = (Arc::new(Counters::default()), None);
        let ended = self.ship(&disk, &counters, &mut report);
        // Being asked to end is no failure.
        if ended.is_ok() || !self.stop.is_asked() {
            self.remember(disk.as_ref(), report.as_ref(), ended.as_ref().err());
        }
        // Only now: whoever ships next may find something else.
        drop(lock);
        let (name, url, requests) = (&*self.name, &*self.settings.url, counters.requests());
        let time = self.common.watching.env.monotonic().saturating_sub(now);
        match (ended, report) {
            (Ok(()), Some(report)) => {
                // What is wrong there is said with the report, and was not mended by shipping.
                let recovered = self.failing.take().is_some() && !report.is_alarming();
                (self.common.watching.tell)(Event::Shipped {
                    name,
                    url,
                    report: &report,
                    requests,
                    time,
                    recovered,
                });
                self.shipped = Some(state);
                Ok(Round::Shipped)
            }
            (Err(error), report) => {
                if let Some(report) = report.as_ref().filter(|report| report.says_something()) {
                    (self.common.watching.tell)(Event::Unfinished { name, url, report, requests, time });
                }
                Err(error)
            }
            (Ok(()), None) => Err(StoreError::Poisoned("a round without a report".into()).into()),
        }
    }

    /// Remembers what came of a round, for `status`.
    fn remember(&self, disk: &dyn Disk, report: Option<&Report>, error: Option<&ShipError>) {
        // A remote that was removed meanwhile leaves nothing behind.
        let is_wanted = |remotes: Remotes| remotes.remotes.get(&self.name) == Some(&self.settings);
        if !Remotes::load(disk).is_ok_and(is_wanted) {
            return;
        }
        let text = error.map(ToString::to_string);
        let is_alarm = report.is_some_and(Report::is_alarming) || error.is_some_and(ShipError::is_alarm);
        let ended = Ended { at: self.common.watching.env.now(), is_alarm, error: text.as_deref() };
        if let Err(error) = store_last(disk, &self.name, &self.settings.url, &ended, report) {
            tracing::warn!(name = self.name, %error, "what came of a round can't be remembered");
        }
    }

    /// Ships once. What was done and found is left in `done`, whatever the end.
    fn ship(
        &mut self,
        disk: &Arc<dyn Disk>,
        counters: &Arc<Counters>,
        done: &mut Option<Report>,
    ) -> Result<()> {
        let watching = &self.common.watching;
        let Opened { remote, mut jobs } = (watching.open)(&self.settings, Arc::clone(counters), &self.stop)?;
        if let (Some(best), Jobs::Measured { bounds, .. }) = (self.jobs, &mut jobs) {
            bounds.first = best.min(bounds.max);
        }
        let cursor = load_cursor(disk.as_ref(), &self.name)?;
        let options =
            ShipOptions { jobs, watched: Some(Arc::clone(&self.watched)), ..ShipOptions::default() };
        let report = done.insert(Report::default());
        let cursor = ship_into(disk, &remote, cursor.as_ref(), &options, &|_| {}, report)?;
        self.jobs = Some(report.jobs);
        // A remote that was removed meanwhile leaves nothing behind.
        let wanted = Remotes::load(disk.as_ref())?.remotes.get(&self.name) == Some(&self.settings);
        match cursor.filter(|_| wanted) {
            Some(cursor) => Ok(store_cursor(disk.as_ref(), &self.name, &cursor)?),
            None => Ok(()),
        }
    }
}

/// What a vault is: which packs and chain files it has, and its header.
fn fingerprint(disk: &dyn Disk, header: &[u8]) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(header.len() as u64).to_le_bytes()).update(header);
    for name in list_packs(disk)?.keys() {
        hasher.update(name.as_bytes());
    }
    let items = match disk.list(DIR) {
        Ok(items) => items,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(StoreError::io("listing snapshots", e).into()),
    };
    for item in items.iter().filter(|item| crate::format::chain::parse_name(&item.name).is_some()) {
        hasher.update(item.name.as_bytes()).update(b"\n");
    }
    Ok(hasher.finalize())
}

/// Tells one reason of failure from another. Messages can't do that: they name objects, and count tries.
fn reason(error: &ShipError) -> String {
    match error {
        ShipError::Remote(error) => format!("{:?}", error.kind),
        ShipError::Vault(error) => format!("vault {}", error_kind(error)),
        ShipError::Busy(holder) => format!("busy {holder}"),
        ShipError::Diverged { file, .. } => format!("diverged {file}"),
        other => other.to_string(),
    }
}

fn error_kind(error: &StoreError) -> String {
    match error {
        StoreError::Io { source, .. } => format!("{:?}", source.kind()),
        other => other.to_string(),
    }
}

/// Doubles with each failure, and is never twice the same for many that failed together.
fn pause_after(failures: u32, longest: Duration, env: &dyn Env) -> Duration {
    let whole = PAUSE.saturating_mul(2_u32.saturating_pow(failures.min(16))).min(longest);
    let mut random = [0; 4];
    env.random(&mut random);
    let share = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
    whole.mul_f64(0.5 + share / 2.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::env::TestEnv;
    use crate::remote::ErrorKind;

    #[test]
    fn pauses_grow_and_end_growing() {
        let env = TestEnv::new(1);
        let of = |failures| pause_after(failures, PAUSE_MAX, &env).as_secs_f64();
        for (failures, whole) in [(0, 5.0), (1, 10.0), (4, 80.0), (7, 600.0), (40, 600.0), (u32::MAX, 600.0)]
        {
            let pause = of(failures);
            assert!((whole / 2.0..=whole).contains(&pause), "{failures}: {pause}");
        }
        assert!(pause_after(30, PAUSE_MAX_LOCAL, &env) <= PAUSE_MAX_LOCAL);
        assert!(of(3) > 0.0 && (0..20).map(|_| of(3).to_bits()).collect::<BTreeSet<_>>().len() > 10);
    }

    #[test]
    fn the_same_trouble_is_told_once_though_its_words_change() {
        let remote = |kind, text: &str| ShipError::from(RemoteError::new(kind, text));
        let same = [
            remote(ErrorKind::Unreachable, "tried 6 times: writing packs/aa/one: refused"),
            remote(ErrorKind::Unreachable, "tried 5 times: looking at vault.json: refused"),
        ];
        assert_eq!(reason(&same[0]), reason(&same[1]));
        assert_ne!(reason(&same[0]), reason(&remote(ErrorKind::Denied, "no")));
        assert_ne!(reason(&ShipError::Busy("a".into())), reason(&ShipError::Busy("b".into())));
        let io = |kind: std::io::ErrorKind| ShipError::from(StoreError::io("reading x", kind.into()));
        assert_ne!(reason(&io(std::io::ErrorKind::NotFound)), reason(&io(std::io::ErrorKind::StorageFull)));
    }
}
