//! What a clone or a pull would fetch. Nothing is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use serde::Serialize;

use crate::disk::Disk;
use crate::format::pack::{PACK_LEN_MAX, pack_path};
use crate::format::{Header, PackName};
use crate::snapshot::chain::{Chain, DIR};
use crate::snapshot::open::list_packs;
use crate::store::error::StoreError;

use super::disk::RemoteDisk;
use super::error::Result;
use super::incoming::STAGED;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// Packs to fetch.
    pub packs: u64,
    /// Snapshot and removal files to fetch.
    pub chain_files: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Packs that are here already.
    pub packs_there: u64,
    /// Snapshots of the remote.
    pub snapshots: u64,
    /// Sequence of the remote's newest chain file.
    pub newest: Option<u64>,
    /// Sequence of its newest snapshot of which everything is there.
    pub latest_complete: Option<u64>,
    /// What is wrong at the remote, as far as its listing and its snapshot files show.
    pub damaged: Vec<String>,
}

/// Compares what a remote has with what is here, if there is something. Returns the remote's chain as well.
///
/// # Errors
/// See [`super::FetchError`].
pub fn survey(there: &Arc<RemoteDisk>, header: &Header, here: Option<&dyn Disk>) -> Result<(Survey, Chain)> {
    let chain = Chain::load(there.as_ref(), header)?;
    there.only_packs(chain.named());
    let mut wanted = chain.needed_by_snapshots();
    let needed = wanted.len();
    if !chain.is_whole() {
        // As a clone does: above a break it is not known what a snapshot needs.
        wanted.extend(chain.named());
    }
    let listed = there.packs()?;
    // FORMAT PACK-1: what is longer is none, as a clone finds.
    let (packs, huge): (BTreeMap<PackName, u64>, BTreeMap<PackName, u64>) =
        listed.iter().map(|(name, len)| (*name, *len)).partition(|(_, len)| *len <= PACK_LEN_MAX);
    let ours = here.map(list_packs).transpose()?.unwrap_or_default();
    let files = here.map(chain_files).transpose()?.unwrap_or_default();
    let mut survey = Survey {
        snapshots: chain.snapshots().count() as u64,
        newest: chain.head().map(|info| info.seq),
        damaged: chain.problems().iter().map(|p| format!("{}: {}", p.file, p.what)).collect(),
        ..Survey::default()
    };
    for (name, len) in huge.iter().filter(|(name, _)| wanted.contains(*name)) {
        survey.damaged.push(format!("{} has {len} bytes, more than any pack", pack_path(name)));
    }
    for name in &wanted {
        match (packs.get(name), ours.get(name)) {
            (len, Some(here)) if len.is_none_or(|len| len == here) => survey.packs_there += 1,
            (Some(len), _) => {
                survey.packs += 1;
                survey.bytes = survey.bytes.saturating_add(*len);
            }
            (None, _) if needed == wanted.len() && !huge.contains_key(name) => {
                survey.damaged.push(format!("{} is missing", pack_path(name)));
            }
            (None, _) => {}
        }
    }
    for info in chain.files().filter(|info| !files.contains(&info.name())) {
        survey.chain_files += 1;
        survey.bytes = survey.bytes.saturating_add(info.file_len);
    }
    let present: BTreeSet<PackName> = packs.keys().chain(ours.keys()).copied().collect();
    survey.latest_complete = chain.latest(&present, None).complete.map(|info| info.seq);
    survey.damaged.sort();
    Ok((survey, chain))
}

/// Names of the chain files that are here, those included that an interrupted run has left.
fn chain_files(here: &dyn Disk) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for dir in [DIR, STAGED] {
        match here.list(dir) {
            Ok(items) => names.extend(items.into_iter().map(|item| item.name)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::io(format!("listing {dir}"), e).into()),
        }
    }
    Ok(names)
}
