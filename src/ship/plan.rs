//! What a remote lacks, and in which order it has to come. Pure: it knows no network.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::pack::pack_path;
use crate::format::{PackName, SnapshotId};
use crate::snapshot::chain::Chain;
use crate::store::error::Result;

use super::settings::UNSENT_MAX;

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
    /// Names of packs and chain files that were there, are needed, and are not there any more.
    pub(super) gone: BTreeSet<String>,
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
    /// What was there.
    pub(super) shipped: Option<&'a Shipped>,
}

/// What a remote had when all that could be sent had been sent to it from here.
#[derive(Debug)]
pub(super) struct Shipped {
    /// Sequence of the newest chain file then.
    pub(super) seq: u64,
    /// Names of what it lacked then, or of what was removed there on purpose since.
    pub(super) excused: BTreeSet<String>,
}

impl Shipped {
    fn misses(&self, name: &str) -> bool {
        !self.excused.contains(name)
    }

    /// Of what a snapshot needs and is not there, what was. Packs that garbage collection put in the place of others
    /// since were not.
    fn gone(&self, chain: &Chain, seq: u64, absent: &[PackName]) -> Result<Vec<String>> {
        if seq > self.seq || absent.is_empty() {
            return Ok(Vec::new());
        }
        let then = chain.needed_packs_at(seq, self.seq)?;
        let names = absent.iter().filter(|name| then.contains(name)).map(pack_path);
        Ok(names.filter(|name| self.misses(name)).collect())
    }
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
            let needed = state.chain.needed_packs(info.seq)?;
            let is_absent = |name: &PackName| !state.there.contains_key(name);
            let absent: Vec<PackName> = needed.into_iter().filter(is_absent).collect();
            if let Some(shipped) = state.shipped {
                plan.gone.extend(shipped.gone(state.chain, info.seq, &absent)?);
            }
            for name in absent {
                if planned.contains(&name) {
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
            let path = info.path();
            if state.shipped.is_some_and(|shipped| info.seq <= shipped.seq && shipped.misses(&path)) {
                plan.gone.insert(path.clone());
            }
            group.files.push(path);
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

    /// Names of packs that snapshots need and that are not there when all that could be sent has been: of those that were to be
    /// sent, all but `done`. `None`: too many.
    pub(super) fn unsent(&self, done: &[(PackName, u64)]) -> Option<BTreeSet<String>> {
        let done: BTreeSet<&PackName> = done.iter().map(|(name, _)| name).collect();
        let groups = &self.groups[..self.ahead().unwrap_or(self.groups.len())];
        let packs = groups.iter().flat_map(|group| &group.packs).map(|(name, _)| name);
        let unsent = packs.filter(|name| !done.contains(name)).chain(&self.missing);
        let names: BTreeSet<String> = unsent.take(UNSENT_MAX + 1).map(pack_path).collect();
        (names.len() <= UNSENT_MAX).then_some(names)
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
