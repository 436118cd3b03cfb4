//! Shipping: copies to a remote what it lacks. No key is needed, and none is there: packs and snapshots are just files.
//!
//! Packs go first, then the header's copies, then the chain files that need those packs, oldest first. So a remote restores
//! at every moment whatever its newest complete snapshot has. Nothing is ever overwritten or deleted; the one exception
//! are the header's two copies, replaced by newer ones when keys were changed.
//!
//! A pack is checked against its name before it is sent: damage here is found, and not shipped. Everything that is there
//! already is skipped, so an interrupted shipment goes on where it was, at the cost of the objects that were under way.

mod damaged;
mod error;
mod header;
mod lock;
mod plan;
mod send;
mod settings;
mod standing;
mod stop;
mod strangers;
mod there;
mod tune;
mod verify;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use serde::Serialize;

use crate::disk::Disk;
use crate::env::Env;
use crate::format::chain::CHAIN_FILE_LEN_MAX;
use crate::format::header::HEADER_PATH;
use crate::format::{ChainFile, PackName, ParsedHeader};
use crate::remote::{Counters, ErrorKind, Remote, RemoteError};
use crate::snapshot::chain::Chain;
use crate::snapshot::open::list_packs;
use crate::store::error::StoreError;
use crate::store::header::load;

pub use error::{Result, ShipError};
pub use lock::LockReport;
pub use settings::{
    Cursor, Remotes, ShipLock, forget_cursor, forget_places, is_name, load_cursor, lock_remote, store_cursor,
};
pub use standing::{Behind, Ended, Last, behind, chain_of, load_last, store_last, store_verified};
pub use stop::{Stop, Woken};
pub use tune::{Bounds, Sample, Tuner};
pub use verify::{Verified, verify_into};
pub use watch::{Event, Opened, Watched, Watching, watch};

use damaged::Damaged;
use header::Copies;
use lock::{Keeper, Need, Needed};
use plan::{Plan, Shipped, State, plan};
use strangers::Judged;
use there::{Place, There};

/// A vault may lose packs and snapshots while it is shipped; then its new state is shipped. So often at most.
const ROUNDS_MAX: usize = 16;
/// And so often it is read anew when that happens while it is read.
const LOADS_MAX: usize = 5;

/// Names that a report has of each kind.
const NAMES_TOLD: usize = 100;

/// So many objects that were damaged are looked at again in a shipment: where the endpoint keeps no checksums they are read. A
/// verification looks at all.
const LOOKS_MAX: usize = 16;
/// No more of them once so many bytes had to be read for it.
const LOOKS_BYTES_MAX: u64 = 256 << 20;

/// How many packs are under way at a time.
#[derive(Clone, Debug)]
pub enum Jobs {
    /// So many.
    Fixed(usize),
    /// As many as help, which is measured meanwhile.
    Measured {
        /// Where to begin, and the most.
        bounds: Bounds,
        /// Those of the remote: they tell when it is pushed too hard.
        counters: Arc<Counters>,
        /// The clock.
        env: Arc<dyn Env>,
    },
}

impl Default for Jobs {
    fn default() -> Self {
        Self::Fixed(1)
    }
}

impl Jobs {
    /// How many to begin with.
    pub(crate) fn first(&self) -> usize {
        match self {
            Self::Fixed(jobs) => *jobs,
            Self::Measured { bounds, .. } => bounds.first,
        }
    }
}

/// How to ship.
#[derive(Clone, Debug, Default)]
pub struct ShipOptions {
    /// Packs under way at a time.
    pub jobs: Jobs,
    /// Only say what would be sent.
    pub dry_run: bool,
    /// Ship although the remote lost what was shipped to it before.
    pub start_over: bool,
    /// A process that keeps shipping: packs that no snapshot names yet go as well, and what was there a short time ago is
    /// not listed again.
    pub watched: Option<Arc<Watched>>,
}

impl ShipOptions {
    fn stop(&self) -> Option<&Arc<Stop>> {
        self.watched.as_ref().map(|watched| &watched.stop)
    }

    fn is_stopped(&self) -> bool {
        self.stop().is_some_and(|stop| stop.is_asked())
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of packs that were sent, or are under way.
    pub bytes: u64,
    /// Bytes of packs that are to be sent.
    pub bytes_total: u64,
    /// Objects that were sent.
    pub objects: u64,
    /// Objects that are to be sent.
    pub objects_total: u64,
}

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Packs sent.
    pub packs: u64,
    /// Of those, the ones that no snapshot names yet: they were sent ahead of it.
    pub packs_ahead: u64,
    /// Snapshot and removal files sent.
    pub chain_files: u64,
    /// Copies of the header sent.
    pub headers: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Packs that were there already.
    pub packs_there: u64,
    /// As many packs at a time as were given, or did best.
    pub jobs: usize,
    /// Sequence of the newest chain file that the remote has now (or would have).
    pub newest: Option<u64>,
    /// Sequence of the newest snapshot of which it has everything; known at the end.
    pub complete: Option<u64>,
    /// Everything that could be sent was sent.
    #[serde(skip)]
    pub is_finished: bool,
    /// What is wrong here: packs that are damaged or missing. Snapshots that need them are incomplete at the remote.
    pub damaged: Vec<String>,
    /// Objects at the remote that are known not to be what was shipped: a put ended so, or a verification found it. They
    /// count as not being there.
    pub damaged_there: u64,
    /// Names of them, at most 100.
    pub damaged_there_names: Vec<String>,
    /// Packs and snapshot files that were shipped, that snapshots here need, and that the remote had no more; and the header,
    /// where no copy of it was left. Those that are here were sent again.
    pub gone_there: u64,
    /// Names of them, at most 100.
    pub gone_there_names: Vec<String>,
    /// Objects at the remote that are no part of this vault.
    pub foreign: u64,
    /// Names of them, at most 100.
    pub foreign_names: Vec<String>,
    /// Of those, files that are named like snapshots and could not be looked into: too many at once, or unreadable. One of them
    /// may be another history of this vault.
    pub unjudged: u64,
    /// The header there is older than the one here (keys were changed), and these credentials may not replace it.
    pub header_refused: bool,
    /// Nothing was sent: it was only asked for.
    pub dry_run: bool,
    /// What is retained, and what somebody did there, where objects are locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockReport>,
}

impl Report {
    /// What was found to be wrong, in a few words each.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        let lock = |total: fn(&LockReport) -> u64| self.lock.as_ref().map_or(0, total);
        let counted = [
            (self.damaged.len() as u64, "packs are damaged or missing here"),
            (self.damaged_there, "objects there are not what was shipped"),
            (self.gone_there, "objects that were shipped were gone there"),
            (lock(|lock| lock.hidden_total), "objects there are under delete markers"),
            (lock(|lock| lock.overwritten_total), "objects there were written over"),
            (lock(|lock| lock.gone_total), "objects there are gone"),
            (lock(|lock| lock.refused), "objects there are locked for too short a time"),
            (self.unjudged, "files there may be of another copy of this vault"),
            (u64::from(self.header_refused), "changed header could not be replaced there"),
        ];
        counted.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect()
    }

    /// Whether something was found there that should not be.
    #[must_use]
    pub fn is_alarming(&self) -> bool {
        let of_locks = |lock: &LockReport| lock.hidden_total + lock.overwritten_total + lock.gone_total;
        self.damaged_there + self.gone_there + self.unjudged + self.lock.as_ref().map_or(0, of_locks) > 0
    }

    /// Whether anything was sent, or found to be wrong.
    #[must_use]
    pub fn says_something(&self) -> bool {
        let sent = self.packs + self.chain_files + self.headers;
        let found = self.foreign + self.unjudged + self.damaged_there + self.gone_there;
        let found = found + self.damaged.len() as u64;
        let of_locks = |lock: &LockReport| {
            lock.extended + lock.refused + lock.hidden_total + lock.overwritten_total + lock.gone_total
        };
        sent + found + self.lock.as_ref().map_or(0, of_locks) > 0 || self.header_refused
    }
}

/// Brings a remote up to date. `cursor` is what the last shipment left; the new one is returned.
///
/// # Errors
/// See [`ShipError`]. What was sent before a failure stays there; [`ship_into`] says what that was.
pub fn ship(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    cursor: Option<&Cursor>,
    options: &ShipOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(Report, Option<Cursor>)> {
    let mut report = Report::default();
    let cursor = ship_into(disk, remote, cursor, options, progress, &mut report)?;
    Ok((report, cursor))
}

/// As [`ship`]. What was sent and found until a failure is in `report` all the same.
///
/// # Errors
/// As [`ship`].
pub fn ship_into(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    cursor: Option<&Cursor>,
    options: &ShipOptions,
    progress: &(dyn Fn(Progress) + Sync),
    report: &mut Report,
) -> Result<Option<Cursor>> {
    *report = Report { dry_run: options.dry_run, ..Report::default() };
    if remote.lock().is_some() {
        // Before anything is put.
        remote.require_lock()?;
    }
    let damaged = Damaged::load(disk.as_ref(), remote.as_ref())?;
    // An alarm that goes on, also where nothing can be asked today.
    (report.damaged_there, report.damaged_there_names) = damaged.told();
    let mut shipment = Shipment {
        disk,
        remote,
        cursor: cursor.filter(|cursor| cursor.url == remote.url() && !options.start_over),
        options,
        progress,
        report,
        keeper: None,
        judged: Judged::load(disk.as_ref(), remote.as_ref()),
        damaged: &damaged,
        gone: BTreeSet::new(),
        unsent: None,
        has_looked: false,
        is_listed_again: false,
    };
    let mut ended = shipment.run();
    let unsent = shipment.unsent.take();
    if let (Err(_), Some(mut keeper)) = (&ended, shipment.keeper.take()) {
        shipment.report.lock = Some(keeper.end_early());
    }
    if !options.dry_run {
        shipment.judged.save(disk.as_ref());
        if let Err(error) = damaged.save(disk.as_ref()) {
            match ended {
                Ok(_) => ended = Err(error.into()),
                Err(_) => tracing::warn!(%error, "what is damaged there can't be remembered"),
            }
        }
    }
    (report.damaged_there, report.damaged_there_names) = damaged.told();
    Ok(ended?.map(|(seq, id)| Cursor { url: remote.url(), seq, id, unsent }))
}

/// Sequence and id of the newest chain file.
type Head = Option<(u64, String)>;

/// The header here, and its copies there.
struct Headers {
    bytes: Arc<[u8]>,
    copies: Copies,
    /// Versions of copies that are to be locked, and the copies that these are of.
    kept: (Vec<Need>, Vec<String>),
}

/// A vault on its way to a remote.
struct Shipment<'a> {
    disk: &'a Arc<dyn Disk>,
    remote: &'a Arc<dyn Remote>,
    cursor: Option<&'a Cursor>,
    options: &'a ShipOptions,
    progress: &'a (dyn Fn(Progress) + Sync),
    report: &'a mut Report,
    keeper: Option<Keeper<'a>>,
    judged: Judged,
    damaged: &'a Damaged,
    /// Names of what was there and is not any more: in one round it is found, in the next one it may be there again.
    gone: BTreeSet<String>,
    /// Names of packs that the remote lacks when all is done.
    unsent: Option<BTreeSet<String>>,
    /// What is damaged there was looked at again, or is not to be.
    has_looked: bool,
    /// Something was gone that had been listed, so all was listed once more.
    is_listed_again: bool,
}

impl Shipment<'_> {
    fn run(&mut self) -> Result<Head> {
        for _ in 1..ROUNDS_MAX {
            match self.round(false) {
                Ok(Some(head)) => return Ok(head),
                Ok(None) => {}
                // Snapshots were deleted, or garbage was collected, since this round began.
                Err(error) if is_vanished(&error) => tracing::info!(%error, "the vault is looked at again"),
                Err(error) => return Err(error),
            }
        }
        let given_up = || StoreError::Corrupt("the vault changes faster than it can be shipped".into());
        self.round(true)?.ok_or_else(|| given_up().into())
    }

    /// Ships what the vault is now. `None`: it is not that any more, so it has to be looked at again; not if this is the
    /// `last` round.
    fn round(&mut self, last: bool) -> Result<Option<Head>> {
        let (disk, remote, options) = (self.disk.as_ref(), self.remote, self.options);
        let Vault { header: parsed, header_bytes, chain } = Vault::load(disk)?;
        let header = &parsed.header;
        if let Some(problem) = chain.problems().iter().find(|problem| problem.breaks_chain) {
            return Err(StoreError::Corrupt(format!("{}: {}", problem.file, problem.what)).into());
        }
        let place = Place { disk, remote: remote.as_ref(), header, chain: &chain };
        // After the chain: what the chain needs was there before its files were.
        let here = list_packs(disk)?;
        self.keeper = Keeper::begin(disk, remote, options.jobs.first(), options.dry_run, self.keeper.take());
        let copies = match header::check(remote.as_ref(), &header_bytes, header) {
            Err(error) if self.keeper.is_none() => return Err(error),
            checked => checked,
        };
        // Whatever fails from here on, the next one lists everything again.
        let known = options.watched.as_ref().and_then(|watched| watched.take_known());
        self.has_looked |= known.is_some();
        let mut there = There::list(&place, &here, known, &self.judged)?;
        self.forget_gone(&place, &here, &mut there);
        self.report.newest = there.files.keys().next_back().map(|(seq, _)| *seq);
        self.report.foreign = there.foreign.count();
        self.report.foreign_names = there.foreign.iter().map(String::from).collect();
        self.report.packs_there = here.keys().filter(|name| there.has_pack(name)).count() as u64;
        self.report.jobs = options.jobs.first();
        let (mut needed, mut kept) = (None, (Vec::new(), Vec::new()));
        if let Some(keeper) = &mut self.keeper {
            // Before anything is found fault with: who can stop shipments must not be able to let locks run out.
            let mut needs = needed.insert(Needed::of(&chain)).among(&there)?;
            kept = header::kept(remote.as_ref(), &header_bytes)?;
            needs.extend(kept.0.iter().cloned());
            keeper.keep(&needs)?;
            if keeper.is_missing_something() && !std::mem::replace(&mut self.is_listed_again, true) && !last {
                return Ok(None);
            }
        }
        let sent = copies.and_then(|copies| {
            let headers = Headers { bytes: header_bytes, copies, kept };
            self.bring(&place, &here, &mut there, headers, needed, last)
        });
        if may_look(&sent) {
            self.look_at_damaged(&place, &here, &mut there);
        }
        sent
    }

    /// Checks what is there, and brings it what it lacks.
    fn bring(
        &mut self,
        place: &Place<'_>,
        here: &BTreeMap<PackName, u64>,
        there: &mut There,
        headers: Headers,
        needed: Option<Needed>,
        last: bool,
    ) -> Result<Option<Head>> {
        let (disk, remote, options) = (self.disk.as_ref(), self.remote, self.options);
        let (header, chain) = (place.header, place.chain);
        let Headers { bytes: header_bytes, copies, mut kept } = headers;
        self.report.unjudged = there.check(place, here, self.cursor, &mut self.judged)?;
        let removed_by = removed_by(disk, chain)?;
        let shipped = self.shipped();
        let plan = plan(&State {
            chain,
            here,
            there: &there.packs,
            files_there: &there.files,
            removed_by: &removed_by,
            ahead: options.watched.is_some(),
            shipped: shipped.as_ref(),
        })?;
        if !plan.missing.is_empty() && !last && changed(disk, chain)? {
            return Ok(None);
        }
        self.gone.extend(plan.gone.iter().cloned());
        if copies == Copies::None && shipped.is_some() {
            self.gone.insert(HEADER_PATH.into());
        }
        self.report.gone_there = self.gone.len() as u64;
        self.report.gone_there_names = self.gone.iter().take(NAMES_TOLD).cloned().collect();
        self.report.damaged = plan
            .missing
            .iter()
            .map(|name| format!("{} is missing", crate::format::pack::pack_path(name)))
            .collect();
        let newest = chain.head().map(|info| info.seq);
        let head = chain.head().map(|info| (info.seq, info.id.to_hex()));
        if options.dry_run {
            self.report.lock = self.keeper.take().map(|keeper| keeper.end(&kept.1));
            let (packs, bytes, files) = plan.totals();
            (self.report.packs, self.report.bytes, self.report.chain_files) = (packs, bytes, files);
            self.report.newest = newest;
            return Ok(Some(head));
        }
        if copies == Copies::None {
            // The first thing in an empty place: two vaults can't begin there at the same time.
            let refused = &mut self.report.header_refused;
            self.report.headers += header::bring(remote.as_ref(), &header_bytes, header, refused)?;
        }
        let done = self.send(place, &plan, copies, &header_bytes)?;
        self.report.newest = newest;
        self.unsent = plan.unsent(&done);
        there.packs.extend(done);
        if let (Some(keeper), Some(needed)) = (&mut self.keeper, &needed) {
            let mut needs = needed.after(there)?;
            if copies != Copies::Current {
                kept = header::kept(remote.as_ref(), &header_bytes)?;
            }
            needs.extend(kept.0);
            keeper.keep(&needs)?;
        }
        let mended = self.look_at_damaged(place, here, there);
        if let (Some(keeper), Some(needed), false) = (&mut self.keeper, &needed, mended.is_empty()) {
            let needs = needed.after(there)?;
            keeper.keep(
                &needs.into_iter().filter(|need| mended.contains(need.key.as_str())).collect::<Vec<_>>(),
            )?;
        }
        for name in self.damaged.gone() {
            // It was sent anew, or is needed no more, or is one of those that could not be sent.
            self.damaged.note(&name, false);
        }
        self.report.complete = there.complete(chain);
        self.report.is_finished = true;
        let lock = self.keeper.take().map(|keeper| keeper.end(&kept.1));
        let is_all_there = lock.as_ref().is_none_or(|lock| lock.gone_total == 0);
        self.report.lock = lock;
        if let (Some(watched), true) = (&options.watched, is_all_there) {
            watched.remember(there.packs.clone());
        }
        Ok(Some(head))
    }

    /// What the remote has had, as far as it is known: only after a shipment from here that came to its end.
    fn shipped(&self) -> Option<Shipped> {
        let cursor = self.cursor?;
        let mut excused = cursor.unsent.clone()?;
        excused.extend(self.damaged.gone());
        Some(Shipped { seq: cursor.seq, excused })
    }

    /// Tells what of it is known to be damaged. What is not there any more is not: it is sent anew. Nothing in here can
    /// fail: locks are not extended yet.
    fn forget_gone(&self, place: &Place<'_>, here: &BTreeMap<PackName, u64>, there: &mut There) {
        for name in self.damaged.names() {
            if verify::item(&name, there, here, place.chain).is_none() {
                self.damaged.note_gone(&name);
            }
        }
        there.set_damaged(&self.damaged.names());
    }

    /// Looks at the bytes of some of what was damaged, once a shipment that lists everything; returns the names of
    /// what turned out to be sound. It comes last: nothing is sent or locked later because of it, and it asks nothing twice.
    fn look_at_damaged(
        &mut self,
        place: &Place<'_>,
        here: &BTreeMap<PackName, u64>,
        there: &mut There,
    ) -> BTreeSet<String> {
        if std::mem::replace(&mut self.has_looked, true) {
            return BTreeSet::new();
        }
        let remote = self.remote.once();
        let remote = remote.as_deref().unwrap_or(place.remote);
        let (mut bytes, mut mended) = (0, BTreeSet::new());
        for name in self.damaged.some(LOOKS_MAX) {
            if self.options.is_stopped() || bytes > LOOKS_BYTES_MAX {
                break;
            }
            self.damaged.looked_at(&name);
            let Some(item) = verify::item(&name, there, here, place.chain) else { continue };
            match verify::is_sound(place.disk, remote, &item) {
                Ok((is_sound, read)) => {
                    bytes += read;
                    if is_sound {
                        self.damaged.note(&name, false);
                        self.report.packs_there += u64::from(name.starts_with("packs/"));
                        mended.insert(name);
                    }
                }
                // What can't be read, there or here, is not known to be mended. That is no failure of what was shipped.
                Err(error) => {
                    tracing::warn!(name, %error, "what is damaged there can't be looked at again");
                    // The others would be waited for as well.
                    if matches!(&error, ShipError::Remote(error) if !error.kind.may_be_one_objects()) {
                        break;
                    }
                }
            }
        }
        there.set_damaged(&self.damaged.names());
        mended
    }

    /// Sends what a plan has, and returns the packs that were sent.
    fn send(
        &mut self,
        place: &Place<'_>,
        plan: &Plan,
        copies: Copies,
        header_bytes: &Arc<[u8]>,
    ) -> Result<Vec<(PackName, u64)>> {
        let (mut refused, judged) = (false, &mut self.judged);
        let mut unjudged = self.report.unjudged;
        let (packs_to_send, _, files_to_send) = plan.totals();
        let (sent, ended) =
            send::send(self.disk, self.remote, plan, self.options, self.progress, self.damaged, &mut || {
                if packs_to_send > 0 && files_to_send > 0 {
                    // Sending packs may have taken hours.
                    unjudged = there::look_again(place, judged)?;
                }
                match copies {
                    Copies::Behind => header::bring(place.remote, header_bytes, place.header, &mut refused),
                    Copies::None | Copies::Current => Ok(0),
                }
            });
        let report = &mut *self.report;
        report.unjudged = unjudged;
        report.header_refused |= refused;
        report.packs += sent.packs;
        report.packs_ahead += sent.packs_ahead;
        report.jobs = sent.jobs;
        report.bytes += sent.bytes;
        report.chain_files += sent.chain_files;
        report.headers += sent.headers;
        report.newest = report.newest.max(sent.newest);
        report.damaged.extend(sent.damaged);
        ended?;
        if sent.chain_files > 0 {
            self.report.unjudged = there::look_again(place, &mut self.judged)?;
        }
        Ok(sent.done)
    }
}

/// Retains what the snapshots at a remote need, and sends nothing: for credentials that may do only this. What was done and
/// found until a failure is in `report` all the same.
///
/// # Errors
/// See [`ShipError`]; `NoObjectLock` where none is configured.
pub fn extend_into(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    cursor: Option<&Cursor>,
    options: &ShipOptions,
    report: &mut Report,
) -> Result<()> {
    *report = Report { dry_run: options.dry_run, ..Report::default() };
    let keeper = Keeper::begin(disk.as_ref(), remote, options.jobs.first(), options.dry_run, None);
    let Some(mut keeper) = keeper else {
        let text =
            "objects of this remote are not locked: `remote add --replace` with --lock-mode and --lock-days";
        return Err(RemoteError::new(ErrorKind::NoObjectLock, text).into());
    };
    remote.require_lock()?;
    let mut judged = Judged::load(disk.as_ref(), remote.as_ref());
    let ended = extend_what_is_there(disk, remote, cursor, &mut keeper, &mut judged, report);
    if !options.dry_run {
        judged.save(disk.as_ref());
    }
    match ended {
        Ok(covered) => report.lock = Some(keeper.end(&covered)),
        Err(error) => {
            report.lock = Some(keeper.end_early());
            return Err(error);
        }
    }
    Ok(())
}

/// Returns the names of header copies that something lies over.
fn extend_what_is_there(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    cursor: Option<&Cursor>,
    keeper: &mut Keeper<'_>,
    judged: &mut Judged,
    report: &mut Report,
) -> Result<Vec<String>> {
    let Vault { header: parsed, header_bytes, chain } = Vault::load(disk.as_ref())?;
    let header = &parsed.header;
    let here = list_packs(disk.as_ref())?;
    let place = Place { disk: disk.as_ref(), remote: remote.as_ref(), header, chain: &chain };
    let mut there = There::list(&place, &here, None, judged)?;
    // Who may do nothing else may not read either: what is known is believed.
    let damaged = Damaged::load(disk.as_ref(), remote.as_ref())?;
    (report.damaged_there, report.damaged_there_names) = damaged.told();
    there.set_damaged(&damaged.names());
    report.packs_there = here.keys().filter(|name| there.has_pack(name)).count() as u64;
    report.newest = there.files.keys().next_back().map(|(seq, _)| *seq);
    report.foreign = there.foreign.count();
    report.foreign_names = there.foreign.iter().map(String::from).collect();
    let mut needs = Needed::of(&chain).among(&there)?;
    let (headers, covered) = header::kept(remote.as_ref(), &header_bytes)?;
    needs.extend(headers);
    keeper.keep(&needs)?;
    // What is wrong there is no reason to let locks run out.
    header::check(remote.as_ref(), &header_bytes, header)?;
    let cursor = cursor.filter(|cursor| cursor.url == remote.url());
    report.unjudged = there.check(&place, &here, cursor, judged)?;
    Ok(covered)
}

/// A vault as it is read without a key.
struct Vault {
    header: ParsedHeader,
    /// The bytes of the header.
    header_bytes: Arc<[u8]>,
    chain: Chain,
}

impl Vault {
    /// Reads it; once more while somebody deletes snapshots or changes keys at this moment.
    fn load(disk: &dyn Disk) -> Result<Self> {
        for _ in 1..LOADS_MAX {
            match Self::try_load(disk) {
                Err(error) if is_vanished(&error) => {}
                Err(ShipError::Vault(StoreError::HeaderDamaged(_))) => {}
                other => return other,
            }
        }
        Self::try_load(disk)
    }

    fn try_load(disk: &dyn Disk) -> Result<Self> {
        let header = load(disk)?.parsed;
        let header_bytes = header::local_bytes(disk, &header)?;
        let chain = Chain::load(disk, &header.header)?;
        Ok(Self { header, header_bytes, chain })
    }
}

/// Whether a file of the vault was gone when it was to be read.
fn is_vanished(error: &ShipError) -> bool {
    matches!(error, ShipError::Vault(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound)
}

/// Whether a place may be asked about what is damaged there, after a round that ended so: one that does not answer is not
/// asked more.
fn may_look(ended: &Result<Option<Head>>) -> bool {
    match ended {
        Ok(done) => done.is_some(),
        Err(ShipError::Stopped) => false,
        Err(ShipError::Remote(error)) => !error.kind.is_retryable(),
        Err(error) => !is_vanished(error),
    }
}

/// Whether snapshots were made or removed since the chain was read.
fn changed(disk: &dyn Disk, chain: &Chain) -> Result<bool> {
    let now = match disk.list(crate::snapshot::chain::DIR) {
        Ok(items) => items.into_iter().map(|item| item.name).collect::<BTreeSet<_>>(),
        Err(e) => return Err(StoreError::io("listing snapshots", e).into()),
    };
    let mut then = chain.files().map(|info| info.name());
    let count = chain.files().count();
    let chain_names = now.iter().filter(|name| crate::format::chain::parse_name(name).is_some()).count();
    Ok(count + chain.leftovers().len() != chain_names || then.any(|name| !now.contains(&name)))
}

/// Of each chain file that was removed, the first removal that says so.
fn removed_by(disk: &dyn Disk, chain: &Chain) -> Result<BTreeMap<u64, u64>> {
    let mut removed = BTreeMap::new();
    for info in chain.files().filter(|info| !info.is_snapshot()) {
        let path = info.path();
        let bytes = disk
            .read_file(&path, CHAIN_FILE_LEN_MAX as u64)
            .map_err(|e| StoreError::io(format!("reading {path}"), e))?;
        let (file, _) = ChainFile::parse(&bytes).map_err(StoreError::from)?;
        for gone in &file.public.removed {
            removed.entry(gone.seq).or_insert(info.seq);
        }
    }
    Ok(removed)
}
