//! Removes snapshots.
//!
//! A removal is written first: signed, chained, saying which files are gone and keeping what the chain needs
//! of them (FORMAT section 7). Only when it is durable are the files deleted. A crash between leaves files
//! that the chain counts as removed ([`Chain::leftovers`](super::chain::Chain::leftovers)); they are deleted
//! at the next opportunity. Space is given back by [`super::gc`] alone.

use std::io;

use crate::format::{Origin, RemovedFile};
use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::live::{Batch, Table};

use super::chain::{Chain, DIR};
use super::publish::{Draft, publish};
use super::while_storing;

/// What one removal keeps of files that it removes, at most, in bytes: well below the limit of a chain file.
const REMOVED_BYTES_MAX: usize = 16 << 20;

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOpts {
    /// The host that it is done on.
    pub host: String,
    /// Also delete the newest snapshot of the working tree, from which the vault would be mounted if its live
    /// state were lost.
    pub force: bool,
}

/// Why nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// There are no snapshots with these numbers.
    #[error("there is no snapshot {}", .0.iter().map(u64::to_string).collect::<Vec<_>>().join(", "))]
    NotFound(Vec<u64>),
    /// Without force this one stays.
    #[error(
        "snapshot {0} is the newest one of the working tree: without it, losing live/ would lose everything since \
         the one before"
    )]
    Newest(u64),
    /// The vault failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Deletes the snapshots with these sequences. Returns the sequences of the removals that say so.
pub fn delete(engine: &Engine, seqs: &[u64], opts: &DeleteOpts) -> Result<Vec<u64>, DeleteError> {
    let _gate = while_storing(engine)?;
    let mut seqs = seqs.to_vec();
    seqs.sort_unstable();
    seqs.dedup();
    let chain = Chain::of(engine)?;
    let is_snapshot = |seq: &u64| chain.get(*seq).is_some_and(|info| info.is_snapshot());
    let missing: Vec<u64> = seqs.iter().filter(|seq| !is_snapshot(seq)).copied().collect();
    if !missing.is_empty() {
        return Err(DeleteError::NotFound(missing));
    }
    let newest = chain.snapshots().rev().find(|info| info.origin == Origin::WorkingTree).map(|info| info.seq);
    if let Some(newest) = newest
        && !opts.force
        && seqs.contains(&newest)
    {
        return Err(DeleteError::Newest(newest));
    }
    let mut removals = Vec::new();
    for batch in batches(&chain, &seqs) {
        removals.extend(remove(engine, &batch, opts)?);
    }
    Ok(removals)
}

/// Splits what is to be removed, so that no removal grows too large.
fn batches(chain: &Chain, seqs: &[u64]) -> Vec<Vec<u64>> {
    let mut batches = vec![Vec::new()];
    let mut bytes = 0;
    for seq in seqs {
        let Some(info) = chain.get(*seq) else { continue };
        let entry = chain.removed_entry(info);
        bytes += 128 + 32 * (entry.packs.added.len() + entry.packs.dropped.len());
        if bytes > REMOVED_BYTES_MAX && batches.last().is_some_and(|batch| !batch.is_empty()) {
            batches.push(Vec::new());
            bytes = 0;
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(*seq);
        }
    }
    batches.retain(|batch| !batch.is_empty());
    batches
}

fn remove(engine: &Engine, seqs: &[u64], opts: &DeleteOpts) -> Result<Option<u64>, StoreError> {
    let published = publish(engine, None, |chain| {
        let files = seqs.iter().filter_map(|seq| chain.get(*seq)).filter(|info| info.is_snapshot());
        let removed: Vec<RemovedFile> = files.map(|info| chain.removed_entry(info)).collect();
        if removed.is_empty() {
            return Ok(None);
        }
        // Deleting snapshots changes nothing about which packs there are.
        let packs = match chain.head() {
            Some(head) => chain.running_list(head.seq)?,
            None => return Ok(None),
        };
        Ok(Some(Draft {
            origin: Origin::Removal,
            packs,
            removed,
            retired: Vec::new(),
            replacements: Vec::new(),
            host: opts.host.clone(),
            tags: Vec::new(),
            root: None,
        }))
    })?;
    let mut batch = Batch::new();
    for seq in seqs {
        batch.delete(Table::Snapshots, seq.to_be_bytes());
    }
    engine.live.apply(batch)?;
    delete_leftovers(engine, &Chain::of(engine)?)?;
    Ok(published.map(|published| published.seq))
}

/// Deletes chain files that a durable removal removed. Returns their number.
pub(crate) fn delete_leftovers(engine: &Engine, chain: &Chain) -> Result<usize, StoreError> {
    let disk = &engine.ctx.disk;
    for path in chain.leftovers() {
        match disk.remove(path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::io(format!("removing {path}"), e)),
        }
    }
    if !chain.leftovers().is_empty() {
        disk.sync_dir(DIR).map_err(|e| StoreError::io(format!("syncing {DIR}"), e))?;
    }
    Ok(chain.leftovers().len())
}
