//! What a remote lacks, and in which order it has to come. Pure: it knows no network.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::{PackName, SnapshotId};
use crate::snapshot::chain::Chain;
use crate::store::error::Result;

/// Chain files that must become visible together, and the packs that must be there before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    /// Packs that no earlier group has, with their lengths.
    pub(super) packs: Vec<(PackName, u64)>,
    /// Names of chain files below the vault, oldest first.
    pub(super) files: Vec<String>,
}

/// Everything that is to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) groups: Vec<Group>,
    /// Packs that snapshots need and that are neither here nor there.
    pub(super) missing: Vec<PackName>,
    /// The last group is packs that no snapshot names yet. They may go away here at any time.
    pub(super) has_ahead: bool,
}

/// What is where.
pub(super) struct State<'a> {
    pub(super) chain: &'a Chain,
    /// The packs here.
    pub(super) here: &'a BTreeMap<PackName, u64>,
    /// The packs there.
    pub(super) there: &'a BTreeMap<PackName, u64>,
    /// The chain files there.
    pub(super) files_there: &'a BTreeMap<(u64, SnapshotId), u64>,
    /// Of chain files that were removed here, the sequence of the removal that says so.
    pub(super) removed_by: &'a BTreeMap<u64, u64>,
    /// Packs that no snapshot names yet go as well, after everything else.
    pub(super) ahead: bool,
}

/// Plans a shipment.
///
/// Chain files go oldest first, so that each finds its predecessor. Where files are missing in between because they were
/// removed, the chain is sound again only with the removal that says so: all up to it are one group.
pub(super) fn plan(state: &State<'_>) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut planned: BTreeSet<PackName> = BTreeSet::new();
    let mut missing = BTreeSet::new();
    let mut group = Group::default();
    // The group may not end before this sequence.
    let mut sound_from = 0;
    let mut next = 1;
    for info in state.chain.files() {
        for gap in next..info.seq {
            sound_from = sound_from.max(state.removed_by.get(&gap).copied().unwrap_or(0));
        }
        next = info.seq + 1;
        if info.is_snapshot() {
            for name in state.chain.needed_packs(info.seq)? {
                if state.there.contains_key(&name) || planned.contains(&name) {
                    continue;
                }
                match state.here.get(&name) {
                    Some(len) => {
                        planned.insert(name);
                        group.packs.push((name, *len));
                    }
                    None => {
                        missing.insert(name);
                    }
                }
            }
        }
        if !state.files_there.contains_key(&(info.seq, info.id)) {
            group.files.push(info.path());
        }
        if info.seq >= sound_from && (!group.files.is_empty() || !group.packs.is_empty()) {
            plan.groups.push(std::mem::take(&mut group));
        }
    }
    if !group.files.is_empty() || !group.packs.is_empty() {
        plan.groups.push(group);
    }
    if state.ahead {
        let unnamed = |name: &PackName| !state.there.contains_key(name) && !planned.contains(name);
        let packs: Vec<_> =
            state.here.iter().filter(|(name, _)| unnamed(name)).map(|(name, len)| (*name, *len)).collect();
        plan.has_ahead = !packs.is_empty();
        if plan.has_ahead {
            plan.groups.push(Group { packs, files: Vec::new() });
        }
    }
    plan.missing = missing.into_iter().collect();
    Ok(plan)
}

impl Plan {
    /// The number of the group that is sent ahead of its snapshot.
    pub(super) fn ahead(&self) -> Option<usize> {
        self.has_ahead.then(|| self.groups.len() - 1)
    }

    /// Number and bytes of packs, and number of chain files.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        let packs = self.groups.iter().flat_map(|group| &group.packs);
        let (mut count, mut bytes) = (0, 0);
        for (_, len) in packs {
            count += 1;
            bytes += len;
        }
        (count, bytes, self.groups.iter().map(|group| group.files.len() as u64).sum())
    }
}
