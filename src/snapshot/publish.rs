//! Writes chain files. The one place that adds to `snapshots/`, so that sequence, predecessor and pack lists
//! are always those of the file before.
//!
//! FORMAT section 9: whoever calls this has made all packs durable that the new file names. The file itself
//! is written under another name, synced, renamed, and its folder synced. A crash before that leaves the
//! chain as it was.

use std::collections::BTreeSet;

use crate::env::Time;
use crate::format::{
    Origin, PackList, PackName, PublicPart, RemovedFile, RootInfo, SealedPart, SnapshotId, chain,
};
use crate::store::engine::Engine;
use crate::store::error::{Result, StoreError};
use crate::store::highwater::HighWater;
use crate::store::live::{Batch, Table};

use super::chain::{Chain, DIR};

/// Every 32nd file has a full pack list; FORMAT SNAP-7 asks for every 64th.
const FULL_LIST_EVERY: u64 = 32;

/// What a new chain file says.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) origin: Origin,
    /// The running list at the new file.
    pub(crate) packs: BTreeSet<PackName>,
    pub(crate) removed: Vec<RemovedFile>,
    pub(crate) retired: Vec<PackName>,
    pub(crate) replacements: Vec<PackName>,
    pub(crate) host: String,
    pub(crate) tags: Vec<String>,
    pub(crate) root: Option<RootInfo>,
}

/// A chain file that is durable.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) seq: u64,
    pub(crate) id: SnapshotId,
    pub(crate) time: Time,
}

/// Returns what writes chain files: this program and its version.
pub(crate) fn program() -> String {
    format!("strongroom {}", env!("CARGO_PKG_VERSION"))
}

/// Writes the chain file that `draft` makes of the chain as it is now; durable on return. `None` when it
/// makes none. `known`: the chain as the caller has read it, which is not read again if no file came or went since.
pub(crate) fn publish(
    engine: &Engine,
    known: Option<Chain>,
    draft: impl FnOnce(&Chain) -> Result<Option<Draft>>,
) -> Result<Option<Published>> {
    let writing = engine
        .snapshot_locks
        .chain
        .lock()
        .map_err(|_| StoreError::Poisoned("a chain file was half written".into()))?;
    engine.check_poison()?;
    let disk = engine.ctx.disk.as_ref();
    let chain = match known {
        Some(chain) if chain.is_as_listed(disk)? => chain,
        _ => Chain::of(engine)?,
    };
    let Some(draft) = draft(&chain)? else { return Ok(None) };
    let seq = chain.head().map_or(1, |head| head.seq + 1);
    // On a chain that is broken the list before is not known. A full one makes this file independent of it.
    let before = chain.head().and_then(|head| chain.running_list(head.seq).ok());
    let packs = match before {
        Some(before) if seq > 1 && !seq.is_multiple_of(FULL_LIST_EVERY) => PackList {
            full: false,
            added: draft.packs.difference(&before).copied().collect(),
            dropped: before.difference(&draft.packs).copied().collect(),
        },
        _ => PackList { full: true, added: draft.packs.iter().copied().collect(), dropped: Vec::new() },
    };
    let public = PublicPart {
        vault_id: engine.ctx.vault_id,
        seq,
        predecessor: chain.head().map(|head| head.id),
        time: engine.ctx.env.now(),
        origin: draft.origin,
        packs,
        removed: draft.removed,
        retired: sorted(draft.retired),
        replacements: sorted(draft.replacements),
    };
    let sealed = SealedPart { host: draft.host, tags: draft.tags, program: program(), root: draft.root };
    let (bytes, id) = engine.ctx.keys.seal_chain_file(engine.ctx.env.as_ref(), &public, &sealed)?;
    if bytes.len() > chain::CHAIN_FILE_LEN_MAX {
        // FORMAT SNAP-6
        let text = format!("a chain file of {} bytes is over the format's limit (SNAP-6)", bytes.len());
        return Err(StoreError::Corrupt(text));
    }
    let path = format!("{DIR}/{}", chain::name(seq, &id));
    // The live state knows of a snapshot before it exists, and of its packs: a live state that does not know
    // the newest snapshot beside it is from an older copy of the vault.
    let mut row = Batch::new();
    if public.origin != Origin::Removal {
        row.put(Table::Snapshots, seq.to_be_bytes(), *id.as_bytes());
    }
    engine.live.apply(row)?;
    engine.with_reserve(|| engine.live.commit())?;
    let written = engine.with_reserve(|| {
        disk.create_dir_all(DIR).map_err(|e| StoreError::io(format!("creating {DIR}"), e))?;
        disk.write_file_atomic(&path, &bytes).map_err(|e| StoreError::io(format!("writing {path}"), e))
    });
    if let Err(error) = written {
        let mut row = Batch::new();
        row.delete(Table::Snapshots, seq.to_be_bytes());
        // The first error is the one to report. A row too many does no harm: the number is used again.
        if let Err(error) = engine.live.apply(row) {
            tracing::debug!(%error, "the row of a snapshot that was not written stays");
        }
        if !matches!(error, StoreError::NoSpace) {
            // Whether the file is there, or will be after a crash, nobody knows: nothing may be built on
            // either.
            engine.ctx.poison.set(&error.to_string());
        }
        return Err(error);
    }
    raise_mark(engine, seq, &id)?;
    drop(writing);
    tracing::info!(seq, %id, origin = ?public.origin, "wrote a chain file");
    Ok(Some(Published { seq, id, time: public.time }))
}

fn sorted(mut names: Vec<PackName>) -> Vec<PackName> {
    names.sort_unstable();
    names.dedup();
    names
}

/// Remembers outside of the vault that it is this far (FORMAT SNAP-8).
fn raise_mark(engine: &Engine, seq: u64, id: &SnapshotId) -> Result<()> {
    let Some(store) = &engine.highwater else { return Ok(()) };
    let mut mark = store.load()?.unwrap_or_else(|| HighWater {
        vault_id: engine.ctx.vault_id.to_hex(),
        path: String::new(),
        header_generation: engine.header.generation,
        seq: 0,
        id: String::new(),
        live_generation: 0,
        live_dirty: true,
    });
    mark.seq = seq;
    mark.id = id.to_hex();
    store.store(&mark)
}
