//! Object Lock: after each shipment, everything that the snapshots there need is retained for at least as long as promised.
//!
//! What this vault had set is kept in a ledger here, so that a daily shipment asks about almost nothing. The ledger saves
//! requests; it proves nothing. A part of what it says is asked about each time, and if that is not so, nothing of it is
//! believed any more. A retention is never shortened: endpoints refuse that, and then it is asked how long it is.
//!
//! Objects are extended before new ones are sent, so that a shipment that fails for weeks does not let old snapshots go
//! free; and once more at the end, for what has come since and for the time that it took.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::env::Time;
use crate::format::PackName;
use crate::format::pack::pack_path;
use crate::remote::{ErrorKind, Findings, Key, LOCK_DAYS_MAX, LockMode, Locked, Names, Remote, Retention};
use crate::snapshot::chain::Chain;
use crate::snapshot::describe::rfc3339;
use crate::store::error::StoreError;

use super::error::Result;
use super::send::key_of;
use super::settings::{CURSOR_DIR, place_path};
use super::there::There;

/// Entries of the ledger that are asked about in each shipment.
const PROOFS: usize = 4;
/// The largest ledger: 2^20 objects, 64 TiB of packs. What does not fit is asked about each time.
const LEDGER_ENTRIES_MAX: usize = 1 << 20;
const LEDGER_BYTES_MAX: u64 = 192 << 20;
/// No retention is longer, slack included.
const UNTIL_MAX_SECS: i64 = (LOCK_DAYS_MAX as i64 + LOCK_DAYS_MAX as i64 / 10 + 1) * 86_400;

/// What is retained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LockReport {
    /// Who can lift it.
    pub mode: LockMode,
    /// What was promised.
    pub days: u32,
    /// Objects that are retained: all that the snapshots there need.
    pub objects: u64,
    /// The first moment at which one of them can be deleted; RFC 3339.
    pub until: Option<String>,
    /// Objects whose retention was extended (or would have been).
    pub extended: u64,
    /// Objects that had to be asked about.
    pub asked: u64,
    /// Objects whose retention is too short, and which these credentials may not extend.
    pub refused: u64,
    /// Objects under a delete marker, at most 100 names. They are there all the same.
    pub hidden: Vec<String>,
    /// How many there are.
    pub hidden_total: u64,
    /// Objects that somebody wrote over, at most 100 names. What was there before is there all the same.
    pub overwritten: Vec<String>,
    /// How many there are.
    pub overwritten_total: u64,
    /// Objects that were listed and, when they were to be kept for longer, were gone; at most 100 names.
    pub gone: Vec<String>,
    /// How many there are.
    pub gone_total: u64,
}

impl LockReport {
    fn new(held: &Locked) -> Self {
        Self {
            mode: held.lock.mode,
            days: held.lock.days,
            objects: 0,
            until: None,
            extended: 0,
            asked: 0,
            refused: 0,
            hidden: Vec::new(),
            hidden_total: 0,
            overwritten: Vec::new(),
            overwritten_total: 0,
            gone: Vec::new(),
            gone_total: 0,
        }
    }

    fn find(&mut self, findings: &Findings) {
        self.hidden = findings.hidden.iter().map(String::from).collect();
        self.hidden_total = findings.hidden.count();
        self.overwritten = findings.overwritten.iter().map(String::from).collect();
        self.overwritten_total = findings.overwritten.count();
    }
}

/// Until when objects are retained, as far as this vault knows.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ledger {
    /// Another place is another ledger.
    place: String,
    mode: LockMode,
    /// Seconds since the epoch.
    until: BTreeMap<String, i64>,
}

impl Ledger {
    /// Reads it. Whatever is wrong with it: it only costs requests.
    fn load(disk: &dyn Disk, path: &str, held: &Locked) -> Self {
        let empty = || Self { place: held.place.clone(), mode: held.lock.mode, until: BTreeMap::new() };
        let bytes = match disk.read_file(path, LEDGER_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path, %error, "what is locked is asked about anew");
                }
                return empty();
            }
        };
        let mut ledger: Self = match serde_json::from_slice(&bytes) {
            Ok(ledger) => ledger,
            Err(error) => {
                tracing::warn!(path, %error, "what is locked is asked about anew");
                return empty();
            }
        };
        if ledger.place != held.place || ledger.mode != held.lock.mode {
            return empty();
        }
        let last = held.now.secs.saturating_add(UNTIL_MAX_SECS);
        ledger.until.retain(|_, until| (0..=last).contains(until));
        ledger
    }

    fn store(&self, disk: &dyn Disk, path: &str) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        disk.create_dir_all(CURSOR_DIR).and_then(|()| disk.write_file_atomic(path, &text))
    }
}

/// An object that has to stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) key: Key,
    /// The version that has to; `None`: the one that is read.
    pub(super) version: Option<String>,
}

impl Need {
    fn name(&self) -> String {
        match &self.version {
            Some(version) => format!("{}@{version}", self.key),
            None => self.key.to_string(),
        }
    }
}

/// All that the snapshots of a vault need, beside the header.
pub(super) struct Needed {
    packs: BTreeSet<PackName>,
    files: Vec<(u64, crate::format::SnapshotId, String)>,
}

impl Needed {
    pub(super) fn of(chain: &Chain) -> Self {
        let files = chain.files().map(|info| (info.seq, info.id, info.path())).collect();
        Self { packs: chain.needed_by_snapshots(), files }
    }

    /// What of it is there.
    pub(super) fn among(&self, there: &There) -> Result<Vec<Need>> {
        self.choose(|name| there.has_pack(name), |file| there.has_file(file))
    }

    /// What of it is there once a plan was carried out: packs that were sent are there by now, chain files all.
    pub(super) fn after(&self, there: &There) -> Result<Vec<Need>> {
        self.choose(|name| there.has_pack(name), |file| !there.bad_files.contains(file))
    }

    fn choose(
        &self,
        pack: impl Fn(&PackName) -> bool,
        file: impl Fn(&(u64, crate::format::SnapshotId)) -> bool,
    ) -> Result<Vec<Need>> {
        let packs = self.packs.iter().filter(|name| pack(name)).map(pack_path);
        let files =
            self.files.iter().filter(|(seq, id, _)| file(&(*seq, *id))).map(|(_, _, path)| path.clone());
        packs.chain(files).map(|path| Ok(Need { key: key_of(&path)?, version: None })).collect()
    }
}

/// What became of one object.
enum End {
    /// It is retained until then.
    Kept(i64),
    Extended(i64),
    /// It would have to be extended.
    Short,
    Refused,
    /// It is not there.
    Absent,
}

/// And whether it was asked about.
type Outcome = Result<(End, bool)>;

/// Keeps what is there from being deleted.
pub(super) struct Keeper<'a> {
    disk: &'a dyn Disk,
    remote: &'a Arc<dyn Remote>,
    jobs: usize,
    dry_run: bool,
    ledger: Ledger,
    ledger_path: String,
    proved: bool,
    /// Names of what was found to be retained, and until when.
    kept: BTreeMap<String, i64>,
    /// Names of what was listed, and is gone.
    gone: Names,
    report: LockReport,
}

impl<'a> Keeper<'a> {
    /// `None`: this remote locks nothing. `before`: one that has to begin anew, since the vault changed meanwhile.
    pub(super) fn begin(
        disk: &'a dyn Disk,
        remote: &'a Arc<dyn Remote>,
        jobs: usize,
        dry_run: bool,
        before: Option<Self>,
    ) -> Option<Self> {
        let held = remote.lock()?;
        let ledger_path = place_path(remote.as_ref(), "retained");
        let ledger = Ledger::load(disk, &ledger_path, &held);
        let mut report = LockReport::new(&held);
        if let Some(before) = before {
            (report.extended, report.asked) = (before.report.extended, before.report.asked);
        }
        let (kept, gone) = (BTreeMap::new(), Names::default());
        Some(Self { disk, remote, jobs, dry_run, ledger, ledger_path, proved: false, kept, gone, report })
    }

    /// Whether something was gone that had been listed.
    pub(super) fn is_missing_something(&self) -> bool {
        self.gone.count() > 0
    }

    /// Retains objects for long enough.
    pub(super) fn keep(&mut self, needs: &[Need]) -> Result<()> {
        let Some(held) = self.remote.lock() else { return Ok(()) };
        if !std::mem::replace(&mut self.proved, true) {
            self.prove(needs, &held)?;
        }
        let todo: Vec<&Need> =
            needs.iter().filter(|need| !self.is_kept(need, held.lock.enough(held.now))).collect();
        let next = Mutex::new(todo.into_iter());
        let ends: Mutex<Vec<(String, Outcome)>> = Mutex::new(Vec::new());
        let this = &*self;
        let work = || {
            loop {
                let Some(need) = locked(&next).next() else { return };
                let end = this.settle(need, &held);
                let failed = end.is_err();
                locked(&ends).push((need.name(), end));
                if failed {
                    // The others find nothing more to do.
                    while locked(&next).next().is_some() {}
                }
            }
        };
        let has_panicked = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..self.jobs.clamp(1, 256).min(needs.len())).map(|_| scope.spawn(work)).collect();
            // Whoever is not joined here lets the scope panic as well.
            threads
                .into_iter()
                .map(|thread| thread.join().is_err())
                .fold(false, |any, panicked| any | panicked)
        });
        let ends = ends.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut failed = None;
        for (name, end) in ends {
            match end {
                Ok((end, asked)) => self.count(name, &end, asked),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if has_panicked {
            let error = StoreError::Poisoned("a thread that locks objects failed".into());
            failed = failed.or(Some(error.into()));
        }
        // What comes next may fail, and fail each day: what was asked about need not be asked about again.
        self.save(failed.is_none());
        failed.map_or(Ok(()), Err)
    }

    fn is_kept(&self, need: &Need, enough: Time) -> bool {
        self.kept.get(&need.name()).is_some_and(|until| *until >= enough.secs)
    }

    fn count(&mut self, name: String, end: &End, asked: bool) {
        self.report.asked += u64::from(asked);
        match end {
            End::Kept(until) => {
                self.kept.insert(name, *until);
            }
            End::Extended(until) => {
                self.report.extended += 1;
                self.kept.insert(name, *until);
            }
            End::Short => self.report.extended += 1,
            End::Refused => self.report.refused += 1,
            End::Absent => self.gone.insert(&name),
        }
    }

    /// Asks about a part of what the ledger says, another one each day.
    fn prove(&mut self, needs: &[Need], held: &Locked) -> Result<()> {
        let enough = held.lock.enough(held.now).secs;
        let vouched: Vec<(&Need, i64)> = needs
            .iter()
            .filter_map(|need| Some((need, *self.ledger.until.get(&need.name())?)))
            .filter(|(_, until)| *until >= enough)
            .collect();
        let start = usize::try_from(held.now.secs.div_euclid(86_400)).unwrap_or(0).wrapping_mul(PROOFS);
        for n in 0..PROOFS.min(vouched.len()) {
            let (need, said) = vouched[start.wrapping_add(n) % vouched.len()];
            let kept = match self.remote.retention(&need.key, need.version.as_deref()) {
                Ok(kept) => kept,
                Err(e) if e.kind == ErrorKind::NotFound => None,
                // Who may not ask can't be told anything else either.
                Err(e) if e.kind == ErrorKind::Denied => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            self.report.asked += 1;
            if kept.is_none_or(|kept| kept.until.secs < said - 1 || is_weaker(&kept, held)) {
                tracing::warn!(object = %need.key, "is retained for less long than it was; everything is asked about anew");
                self.ledger.until.clear();
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sees to one object. Tells whether it was asked about.
    fn settle(&self, need: &Need, held: &Locked) -> Result<(End, bool)> {
        let (enough, mut wanted) = (held.lock.enough(held.now).secs, held.lock.retention(held.now));
        let (key, version) = (&need.key, need.version.as_deref());
        let put = match version {
            Some(_) => None,
            None => self.remote.known_retention(key).map(|kept| kept.until.secs),
        };
        let known = put.max(self.ledger.until.get(&need.name()).copied());
        match known {
            Some(until) if until >= enough => return Ok((End::Kept(until), false)),
            Some(_) if self.dry_run => return Ok((End::Short, false)),
            _ => {}
        }
        let mut asked = false;
        if known.is_none() {
            asked = true;
            match self.remote.retention(key, version) {
                Ok(Some(kept)) if kept.until.secs >= enough && !is_weaker(&kept, held) => {
                    return Ok((End::Kept(kept.until.secs), asked));
                }
                // What is kept more strictly than it need be stays so, and what is kept for longer.
                Ok(Some(kept)) => {
                    if kept.mode == LockMode::Compliance {
                        wanted.mode = kept.mode;
                    }
                    wanted.until = wanted.until.max(kept.until);
                }
                Ok(None) => {}
                Err(e) if e.kind == ErrorKind::NotFound => return Ok((End::Absent, asked)),
                // Who may not ask may still be allowed to extend.
                Err(e) if e.kind == ErrorKind::Denied => {}
                Err(e) => return Err(e.into()),
            }
            if self.dry_run {
                return Ok((End::Short, asked));
            }
        }
        match self.remote.retain(key, version, &wanted) {
            Ok(()) => Ok((End::Extended(wanted.until.secs), asked)),
            Err(e) if e.kind == ErrorKind::NotFound => Ok((End::Absent, asked)),
            Err(e) if is_refusal(e.kind) => Ok((self.denied(need, held, &wanted)?, true)),
            Err(e) => Err(e.into()),
        }
    }

    /// A retention that is refused may be shorter, or less strict, than what is there.
    fn denied(&self, need: &Need, held: &Locked, wanted: &Retention) -> Result<End> {
        let (key, version) = (&need.key, need.version.as_deref());
        let kept = match self.remote.retention(key, version) {
            Ok(kept) => kept,
            Err(e) if e.kind == ErrorKind::NotFound => return Ok(End::Absent),
            Err(e) if e.kind == ErrorKind::Denied => None,
            Err(e) => return Err(e.into()),
        };
        match kept {
            Some(kept) if kept.until.secs >= held.lock.enough(held.now).secs && !is_weaker(&kept, held) => {
                Ok(End::Kept(kept.until.secs))
            }
            Some(kept) if kept.mode == LockMode::Compliance && wanted.mode != LockMode::Compliance => {
                let wanted = Retention { mode: LockMode::Compliance, ..*wanted };
                match self.remote.retain(key, version, &wanted) {
                    Ok(()) => Ok(End::Extended(wanted.until.secs)),
                    Err(e) if e.kind == ErrorKind::NotFound => Ok(End::Absent),
                    Err(e) if is_refusal(e.kind) => Ok(End::Refused),
                    Err(e) => Err(e.into()),
                }
            }
            _ => Ok(End::Refused),
        }
    }

    /// Writes the ledger: only of what is needed, so it does not grow for ever. `is_all`: everything that is needed was seen to;
    /// otherwise what the ledger says of the rest stays.
    fn save(&mut self, is_all: bool) {
        if self.dry_run {
            return;
        }
        let mut until = match is_all {
            true => BTreeMap::new(),
            false => std::mem::take(&mut self.ledger.until),
        };
        until.extend(self.kept.iter().map(|(name, until)| (name.clone(), *until)));
        while until.len() > LEDGER_ENTRIES_MAX {
            until.pop_last();
        }
        self.ledger.until = until;
        if let Err(error) = self.ledger.store(self.disk, &self.ledger_path) {
            tracing::warn!(path = self.ledger_path, %error, "what is locked will have to be asked about again");
        }
    }

    /// Ends: says what is retained, and what somebody did there.
    pub(super) fn end(mut self, headers: &[String]) -> LockReport {
        let mut report = self.end_early();
        let covered = headers.iter().filter(|name| !report.overwritten.contains(name)).cloned();
        let covered: Vec<String> = covered.collect();
        report.overwritten_total += covered.len() as u64;
        report.overwritten.extend(covered);
        report
    }

    /// What is known so far.
    pub(super) fn end_early(&mut self) -> LockReport {
        let mut report = self.report.clone();
        report.objects = self.kept.len() as u64;
        report.until = self.kept.values().min().map(|until| rfc3339(*until, 0));
        report.find(&self.remote.findings());
        report.gone = self.gone.iter().map(String::from).collect();
        report.gone_total = self.gone.count();
        report
    }
}

/// Whether a lock was not extended because it can't be. An endpoint that locks with a put, but can't extend, is no reason not
/// to ship what is new.
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Denied | ErrorKind::Unsupported)
}

fn is_weaker(kept: &Retention, held: &Locked) -> bool {
    kept.mode == LockMode::Governance && held.lock.mode == LockMode::Compliance
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
