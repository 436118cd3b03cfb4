//! Bringing a copy of a vault up to what a remote has.
//!
//! A copy may be moved on only if it is a part of the remote's history: every chain file here is in the remote's chain, or
//! was, and the working tree has nothing that no snapshot has. Else there are two histories, and both stay as they are.
//!
//! # A crash
//!
//! Packs that no chain file names harm nobody. Before the first chain file gets its name here, the live state is declared
//! void: whatever comes after, the next to open the vault starts from its newest complete snapshot. A pull that was
//! interrupted between chain files is repeated: what is here is still a part of the remote's history.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::disk::Disk;
use crate::format::pack::pack_path;
use crate::format::{Header, Origin, PackName, SnapshotId};
use crate::remote::Remote;
use crate::snapshot::Idle;
use crate::snapshot::chain::{Chain, DIR};
use crate::snapshot::create::has_changes;
use crate::snapshot::open::{list_packs, live_is_void, void_live};
use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::header::COPIES;
use crate::store::live::Live;

use super::error::{FetchError, Result};
use super::get::{Progress, Report, fetch_chain, fetch_packs};
use super::headers::RemoteHeader;
use super::incoming::Incoming;

/// How a copy stands to the remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Both have the same snapshots.
    Same,
    /// The remote has what this copy has, and so many chain files more.
    Behind(u64),
    /// This copy has what the remote has, and so many chain files more.
    Ahead(u64),
}

/// Everything was fetched and checked; nothing that counts was changed.
#[derive(Debug)]
pub struct Prepared {
    incoming: Incoming,
    disk: Arc<dyn Disk>,
    chain: Chain,
    /// How the copy stands to the remote.
    pub state: State,
    /// What was fetched.
    pub report: Report,
}

/// Replaces the header by a newer one from a remote, which the caller has proved with the key.
///
/// # Errors
/// I/O errors; at each moment one copy is whole.
pub fn take_header(disk: &dyn Disk, bytes: &[u8]) -> Result<()> {
    for path in COPIES {
        disk.write_file_atomic(path, bytes).map_err(|e| StoreError::io(format!("writing {path}"), e))?;
    }
    Ok(())
}

/// Compares two histories of one vault.
///
/// # Errors
/// `Diverged`.
pub fn compare(ours: &Chain, theirs: &Chain) -> Result<State> {
    let only = |a: &Chain, b: &Chain| -> (u64, Option<String>) {
        let files: Vec<_> = a.files().filter(|info| !b.contains(info.seq, &info.id)).collect();
        (files.len() as u64, files.last().map(|info| info.name()))
    };
    match (only(ours, theirs), only(theirs, ours)) {
        ((0, _), (0, _)) => Ok(State::Same),
        ((0, _), (n, _)) => Ok(State::Behind(n)),
        ((n, _), (0, _)) => Ok(State::Ahead(n)),
        ((_, ours), (_, theirs)) => {
            Err(FetchError::Diverged { theirs: theirs.unwrap_or_default(), ours: ours.unwrap_or_default() })
        }
    }
}

/// Whether a remote's header is one of the vault that is here.
///
/// # Errors
/// `OtherVault`; `Header`, where it is another one of the same generation.
pub fn check_header(ours: &Header, theirs: &RemoteHeader) -> Result<()> {
    if theirs.header().vault_id != ours.vault_id {
        let (theirs, ours) = (theirs.header().vault_id.to_hex(), ours.vault_id.to_hex());
        return Err(FetchError::OtherVault { theirs, ours });
    }
    // One that somebody put beside ours there is a matter for who has a key.
    if theirs.header().generation == ours.generation && !theirs.has(ours) {
        let text = format!(
            "the remote's header differs from the one here, and both are of generation {}",
            ours.generation
        );
        return Err(FetchError::Header(text));
    }
    Ok(())
}

/// Fetches what a copy lacks. `seen` is what the remote had when it was looked at last; `accept` may refuse what it has now.
///
/// # Errors
/// See [`FetchError`]. What arrived stays; the next run goes on from there.
#[expect(clippy::too_many_arguments, reason = "called once; a struct would only rename the parameters")]
pub fn prepare(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    ours: &Header,
    theirs: &RemoteHeader,
    seen: Option<(u64, SnapshotId)>,
    jobs: usize,
    accept: &mut dyn FnMut(&Chain) -> std::result::Result<(), StoreError>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Prepared> {
    check_header(ours, theirs)?;
    let mut report = Report::default();
    let incoming = Incoming::open(disk)?;
    // By the public keys of the header here: those were believed before.
    let here = Chain::load(disk.as_ref(), ours)?;
    let chain = fetch_chain(&incoming, disk.as_ref(), remote.as_ref(), ours, Some(&here), jobs, &mut report)?;
    if let Some(problem) = chain.problems().iter().find(|problem| problem.breaks_chain) {
        return Err(FetchError::Broken(format!("{}: {}", problem.file, problem.what)));
    }
    if let Some((seq, id)) = seen
        && !chain.contains(seq, &id)
    {
        return Err(FetchError::Lost(crate::format::chain::name(seq, &id)));
    }
    let state = compare(&here, &chain)?;
    if !matches!(state, State::Ahead(_)) {
        accept(&chain)?;
    }
    fetch_packs(&incoming, disk.as_ref(), remote.as_ref(), &chain, jobs, progress, &mut report)?;
    if matches!(state, State::Behind(_)) {
        let present: BTreeSet<PackName> = list_packs(disk.as_ref())?.into_keys().collect();
        let newest = chain.snapshots().rev().find(|info| info.origin == Origin::WorkingTree);
        if let Some(info) = newest.filter(|info| !chain.is_complete(info.seq, &present)) {
            return Err(FetchError::Incomplete(info.name()));
        }
    }
    Ok(Prepared { incoming, disk: Arc::clone(disk), chain, state, report })
}

impl Prepared {
    /// The remote's chain.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Whether there is a live state that counts, which has to be looked at with a key before the copy is moved on.
    ///
    /// # Errors
    /// I/O errors.
    pub fn has_live_state(&self) -> Result<bool> {
        Ok(Live::exists(self.disk.as_ref())? && !live_is_void(self.disk.as_ref())?)
    }

    /// Looks, once more and under the vault's lock, whether the copy may be moved on. `engine` holds that lock, where there is
    /// a live state; else the caller does.
    ///
    /// # Errors
    /// `Diverged`, when the working tree or the chain here has something of its own; I/O errors.
    pub fn check(&self, ours: &Header, engine: Option<&Engine>) -> Result<Movable<'_>> {
        // Others could write until the lock was taken.
        let here = Chain::load(self.disk.as_ref(), ours)?;
        let theirs = || self.chain.head().map(|info| info.name()).unwrap_or_default();
        if let Some(info) = here.files().find(|info| !self.chain.contains(info.seq, &info.id)) {
            return Err(FetchError::Diverged { theirs: theirs(), ours: info.name() });
        }
        if let Some(engine) = engine
            && has_changes(engine, &Idle)?
        {
            let ours = "changes in its working tree that no snapshot has".into();
            return Err(FetchError::Diverged { theirs: theirs(), ours });
        }
        Ok(Movable { prepared: self, header: ours.clone() })
    }
}

/// A copy that has nothing of its own.
#[derive(Debug)]
pub struct Movable<'a> {
    prepared: &'a Prepared,
    header: Header,
}

impl Movable<'_> {
    /// Moves the copy on to the remote's newest snapshot; its live state, if there is one, counts for nothing from then on.
    ///
    /// # Errors
    /// I/O errors; then it may be repeated.
    pub fn apply(self) -> Result<()> {
        let disk = self.prepared.disk.as_ref();
        if Live::exists(disk)? {
            void_live(disk)?;
        }
        self.prepared.incoming.promote(&self.prepared.chain)?;
        self.forget_removed()
    }

    /// Deletes what signed removals, which are durable here now, say is gone: chain files, and packs that nothing needs.
    fn forget_removed(&self) -> Result<()> {
        let disk = self.prepared.disk.as_ref();
        let chain = Chain::load(disk, &self.header)?;
        if !chain.is_whole() {
            let problem = chain.problems().iter().find(|problem| problem.breaks_chain);
            return Err(FetchError::Broken(
                problem.map_or_else(String::new, |p| format!("{}: {}", p.file, p.what)),
            ));
        }
        let remove = |path: &str| match disk.remove(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io(format!("removing {path}"), e))
            }
            _ => Ok(()),
        };
        for path in chain.leftovers() {
            remove(path)?;
        }
        if !chain.leftovers().is_empty() {
            disk.sync_dir(DIR).map_err(|e| StoreError::io(format!("syncing {DIR}"), e))?;
        }
        let needed = chain.all_needed()?;
        let retired = chain.retired();
        for name in list_packs(disk)?.keys().filter(|name| retired.contains(name) && !needed.contains(name)) {
            remove(&pack_path(name))?;
        }
        Ok(())
    }
}
