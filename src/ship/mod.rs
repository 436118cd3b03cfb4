//! Shipping: copies to a remote what it lacks. No key is needed, and none is there: packs and snapshots are just files.
//!
//! Packs go first, then the header's copies, then the chain files that need those packs, oldest first. So a remote restores
//! at every moment whatever its newest complete snapshot has. Nothing is ever overwritten or deleted; the one exception
//! are the header's two copies, replaced by newer ones when keys were changed.
//!
//! A pack is checked against its name before it is sent: damage here is found, and not shipped. Everything that is there
//! already is skipped, so an interrupted shipment goes on where it was, at the cost of the objects that were under way.

mod error;
mod header;
mod lock;
mod plan;
mod send;
mod settings;
mod stop;
mod there;
mod tune;
mod verify;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use crate::disk::Disk;
use crate::env::Env;
use crate::format::ChainFile;
use crate::format::chain::CHAIN_FILE_LEN_MAX;
use crate::remote::{Counters, ErrorKind, Remote, RemoteError};
use crate::snapshot::chain::Chain;
use crate::snapshot::open::list_packs;
use crate::store::error::StoreError;
use crate::store::header::load;

pub use error::{Result, ShipError};
pub use lock::{LockReport, forget_ledger};
pub use settings::{
    Cursor, Remotes, ShipLock, forget_cursor, is_name, load_cursor, lock_remote, store_cursor,
};
pub use stop::{Stop, Woken};
pub use tune::{Bounds, Sample, Tuner};
pub use verify::{Verified, verify};
pub use watch::{Event, Opened, Watched, Watching, watch};

use header::Copies;
use lock::{Keeper, Needed};
use plan::{State, plan};
use there::There;

/// A vault may lose packs to a garbage collection while it is shipped; then its new state is shipped. So often at most.
const ROUNDS_MAX: usize = 8;

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
    /// Sequence of the newest chain file, which the remote has now (or would have).
    pub newest: Option<u64>,
    /// What is wrong here: packs that are damaged or missing. Snapshots that need them are incomplete at the remote.
    pub damaged: Vec<String>,
    /// Names at the remote that are no part of this vault.
    pub foreign: u64,
    /// The header there is older than the one here (keys were changed), and these credentials may not replace it.
    pub header_refused: bool,
    /// Nothing was sent: it was only asked for.
    pub dry_run: bool,
    /// What is retained, and what somebody did there, where objects are locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockReport>,
}

/// Brings a remote up to date. `cursor` is what the last shipment left; the new one is returned.
///
/// # Errors
/// See [`ShipError`]. What was sent before a failure stays there.
pub fn ship(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    cursor: Option<&Cursor>,
    options: &ShipOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(Report, Option<Cursor>)> {
    let mut report = Report { dry_run: options.dry_run, ..Report::default() };
    let cursor = cursor.filter(|cursor| cursor.url == remote.url() && !options.start_over);
    if remote.lock().is_some() {
        // Before anything is put.
        remote.require_lock()?;
    }
    let mut round = 1;
    loop {
        let last = round >= ROUNDS_MAX;
        if let Some(head) = ship_round(disk, remote, cursor, options, progress, &mut report, last)? {
            let cursor = head.map(|(seq, id)| Cursor { url: remote.url(), seq, id });
            return Ok((report, cursor));
        }
        round += 1;
    }
}

/// Sequence and id of the newest chain file.
type Head = Option<(u64, String)>;

/// Ships what the vault is now. `None`: packs vanished meanwhile, so it has to be looked at again.
fn ship_round(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    cursor: Option<&Cursor>,
    options: &ShipOptions,
    progress: &(dyn Fn(Progress) + Sync),
    report: &mut Report,
    last: bool,
) -> Result<Option<Head>> {
    let loaded = load(disk.as_ref())?.parsed;
    let header = &loaded.header;
    let header_bytes = header::local_bytes(disk.as_ref(), &loaded)?;
    let chain = Chain::load(disk.as_ref(), header)?;
    if let Some(problem) = chain.problems().iter().find(|problem| problem.breaks_chain) {
        return Err(StoreError::Corrupt(format!("{}: {}", problem.file, problem.what)).into());
    }
    // After the chain: what the chain needs was there before its files were.
    let here = list_packs(disk.as_ref())?;
    let mut keeper = Keeper::begin(disk.as_ref(), remote, options.jobs.first(), options.dry_run);
    let copies = match header::check(remote.as_ref(), &header_bytes, header) {
        Err(error) if keeper.is_none() => return Err(error),
        checked => checked,
    };
    // Whatever fails from here on, the next one lists everything again.
    let known = options.watched.as_ref().and_then(|watched| watched.take_known());
    let mut there = There::list(remote.as_ref(), &chain, &here, known)?;
    let (mut needed, mut headers) = (None, (Vec::new(), Vec::new()));
    if let Some(keeper) = &mut keeper {
        // Before anything is found fault with: who can stop shipments must not be able to let locks run out.
        let mut needs = needed.insert(Needed::of(&chain)?).among(&there)?;
        headers = header::kept(remote.as_ref(), &header_bytes)?;
        needs.extend(headers.0.iter().cloned());
        keeper.keep(&needs)?;
    }
    let copies = copies?;
    there.check(disk.as_ref(), remote.as_ref(), header, &chain, &here, cursor)?;
    let removed_by = removed_by(disk.as_ref(), &chain)?;
    let plan = plan(&State {
        chain: &chain,
        here: &here,
        there: &there.packs,
        files_there: &there.files,
        removed_by: &removed_by,
        ahead: options.watched.is_some(),
    })?;
    if !plan.missing.is_empty() && !last && changed(disk.as_ref(), &chain)? {
        return Ok(None);
    }
    report.foreign = there.foreign;
    report.packs_there = here.keys().filter(|name| there.packs.contains_key(name)).count() as u64;
    report.jobs = options.jobs.first();
    report.newest = chain.head().map(|info| info.seq);
    let head = chain.head().map(|info| (info.seq, info.id.to_hex()));
    report.damaged = plan
        .missing
        .iter()
        .map(|name| format!("{} is missing", crate::format::pack::pack_path(name)))
        .collect();
    if options.dry_run {
        report.lock = keeper.map(|keeper| keeper.end(&headers.1)).transpose()?;
        let (packs, bytes, files) = plan.totals();
        (report.packs, report.bytes, report.chain_files) = (packs, bytes, files);
        return Ok(Some(head));
    }
    if copies == Copies::None {
        // The first thing in an empty place: two vaults can't begin there at the same time.
        report.headers += header::bring(remote.as_ref(), &header_bytes, header, &mut report.header_refused)?;
    }
    let mut refused = false;
    let (packs_to_send, _, files_to_send) = plan.totals();
    let sent = send::send(disk, remote, &plan, options, progress, &mut || {
        if packs_to_send > 0 && files_to_send > 0 {
            // Sending packs may have taken hours.
            there::look_again(disk.as_ref(), remote.as_ref(), header, &chain)?;
        }
        match copies {
            Copies::Behind => header::bring(remote.as_ref(), &header_bytes, header, &mut refused),
            Copies::None | Copies::Current => Ok(0),
        }
    })?;
    if sent.chain_files > 0 {
        there::look_again(disk.as_ref(), remote.as_ref(), header, &chain)?;
    }
    report.header_refused |= refused;
    report.packs += sent.packs;
    report.packs_ahead += sent.packs_ahead;
    report.jobs = sent.jobs;
    report.bytes += sent.bytes;
    report.chain_files += sent.chain_files;
    report.headers += sent.headers;
    if !sent.vanished.is_empty() {
        if !last && changed(disk.as_ref(), &chain)? {
            return Ok(None);
        }
        report.damaged.extend(sent.vanished.iter().map(|name| format!("{name} is missing")));
    }
    report.damaged.extend(sent.damaged);
    if let (Some(mut keeper), Some(needed)) = (keeper, needed) {
        let mut needs = needed.after(&plan)?;
        if copies != Copies::Current {
            headers = header::kept(remote.as_ref(), &header_bytes)?;
        }
        needs.extend(headers.0);
        keeper.keep(&needs)?;
        report.lock = Some(keeper.end(&headers.1)?);
    }
    if let Some(watched) = &options.watched {
        there.packs.extend(sent.done);
        watched.remember(there.packs);
    }
    Ok(Some(head))
}

/// Retains what the snapshots at a remote need, and sends nothing: for credentials that may do only this.
///
/// # Errors
/// See [`ShipError`]; `NoObjectLock` where none is configured.
pub fn extend(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    cursor: Option<&Cursor>,
    jobs: usize,
    dry_run: bool,
) -> Result<Report> {
    let Some(mut keeper) = Keeper::begin(disk.as_ref(), remote, jobs, dry_run) else {
        let text =
            "objects of this remote are not locked: `remote add --replace` with --lock-mode and --lock-days";
        return Err(RemoteError::new(ErrorKind::NoObjectLock, text).into());
    };
    remote.require_lock()?;
    let loaded = load(disk.as_ref())?.parsed;
    let header = &loaded.header;
    let header_bytes = header::local_bytes(disk.as_ref(), &loaded)?;
    let chain = Chain::load(disk.as_ref(), header)?;
    let here = list_packs(disk.as_ref())?;
    let there = There::list(remote.as_ref(), &chain, &here, None)?;
    let mut needs = Needed::of(&chain)?.among(&there)?;
    let (headers, covered) = header::kept(remote.as_ref(), &header_bytes)?;
    needs.extend(headers);
    keeper.keep(&needs)?;
    // What is wrong there is no reason to let locks run out.
    header::check(remote.as_ref(), &header_bytes, header)?;
    let cursor = cursor.filter(|cursor| cursor.url == remote.url());
    there.check(disk.as_ref(), remote.as_ref(), header, &chain, &here, cursor)?;
    Ok(Report {
        packs_there: here.keys().filter(|name| there.packs.contains_key(name)).count() as u64,
        newest: there.files.keys().next_back().map(|(seq, _)| *seq),
        foreign: there.foreign,
        dry_run,
        lock: Some(keeper.end(&covered)?),
        ..Report::default()
    })
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
