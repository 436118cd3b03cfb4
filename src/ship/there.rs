//! What a remote has, and whether it is a copy of this vault. Nothing it says is believed.

use std::collections::{BTreeMap, BTreeSet};

use crate::disk::Disk;
use crate::format::chain::{CHAIN_FILE_LEN_MAX, parse_name};
use crate::format::pack::{PACK_LEN_MAX, parse_pack_path};
use crate::format::{Header, PackName, SnapshotId};
use crate::remote::{self, ErrorKind, Names, Remote, RemoteError};
use crate::snapshot::chain::Chain;

use super::error::{Result, ShipError};
use super::settings::Cursor;
use super::strangers::{Judged, Strangers};

/// A vault, and a remote that it is compared with.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) remote: &'a dyn Remote,
    pub(super) header: &'a Header,
    pub(super) chain: &'a Chain,
}

/// What a remote has of this vault. It is as large as what is here, whatever the remote lists.
#[derive(Debug, Default)]
pub(super) struct There {
    /// Packs that are here or that a snapshot here needs.
    pub(super) packs: BTreeMap<PackName, u64>,
    /// Chain files that are here, with their lengths.
    pub(super) files: BTreeMap<(u64, SnapshotId), u64>,
    /// Of those, the packs and chain files that are known to have other bytes.
    pub(super) bad_packs: BTreeSet<PackName>,
    pub(super) bad_files: BTreeSet<(u64, SnapshotId)>,
    /// Chain files that are not here.
    strangers: Strangers,
    /// Names that are no part of this vault.
    pub(super) foreign: Names,
}

impl There {
    /// Lists a remote. `known`: packs that it had a short time ago, which is believed as long as no snapshot is to be sent
    /// that may need them.
    pub(super) fn list(
        place: &Place<'_>,
        here: &BTreeMap<PackName, u64>,
        known: Option<BTreeMap<PackName, u64>>,
        judged: &Judged,
    ) -> Result<Self> {
        let mut there = Self::default();
        there.list_chain(place, judged)?;
        let is_up_to_date = place.chain.files().all(|info| there.files.contains_key(&(info.seq, info.id)));
        match known.filter(|_| is_up_to_date) {
            Some(packs) => there.packs = packs,
            None => there.list_packs(place.remote, &place.chain.named(), here)?,
        }
        Ok(there)
    }

    /// Tells what of it is known to be damaged.
    pub(super) fn set_damaged(&mut self, names: &BTreeSet<String>) {
        let packs = names.iter().filter_map(|name| parse_pack_path(name));
        self.bad_packs = packs.filter(|name| self.packs.contains_key(name)).collect();
        let files = names.iter().filter_map(|name| parse_name(name.strip_prefix("snapshots/")?));
        self.bad_files = files.filter(|name| self.files.contains_key(name)).collect();
    }

    /// Whether a pack is there, as far as is known.
    pub(super) fn has_pack(&self, name: &PackName) -> bool {
        self.packs.contains_key(name) && !self.bad_packs.contains(name)
    }

    /// Whether a chain file is.
    pub(super) fn has_file(&self, file: &(u64, SnapshotId)) -> bool {
        self.files.contains_key(file) && !self.bad_files.contains(file)
    }

    /// The newest snapshot of which everything is there. A damaged chain file is the end of the chain for who reads it there.
    pub(super) fn complete(&self, chain: &Chain) -> Option<u64> {
        let present: BTreeSet<PackName> =
            self.packs.keys().filter(|name| !self.bad_packs.contains(name)).copied().collect();
        let end = self.bad_files.first().map(|(seq, _)| *seq);
        let mut sound = chain.snapshots().rev().filter(|info| end.is_none_or(|end| info.seq < end));
        sound.find(|info| chain.is_complete(info.seq, &present)).map(|info| info.seq)
    }

    /// Fails if one of the strangers was signed with this vault's keys. Returns of how many this is not known.
    fn refuse_genuine(
        &self,
        place: &Place<'_>,
        judged: &mut Judged,
        why: impl Fn(u64) -> &'static str,
    ) -> Result<u64> {
        self.strangers.forget_others(judged);
        let (genuine, open) = self.strangers.look(place.remote, place.header, judged)?;
        if genuine.is_empty() {
            return Ok(open);
        }
        // Perhaps they were made here since the chain was read, and shipped by another process.
        let now = Chain::load(place.disk, place.header)?;
        match genuine.iter().rfind(|(seq, id)| !now.contains(*seq, id)) {
            Some((seq, id)) => {
                let file = crate::format::chain::name(*seq, id);
                Err(ShipError::Diverged { file, why: why(*seq) })
            }
            None => Ok(open.saturating_sub(genuine.len() as u64)),
        }
    }

    fn list_chain(&mut self, place: &Place<'_>, judged: &Judged) -> Result<()> {
        self.strangers = Strangers::new(place.chain.head().map_or(0, |head| head.seq));
        remote::list(place.remote, "snapshots/", &mut |item| {
            let name = item.name.strip_prefix("snapshots/").and_then(parse_name);
            match name.filter(|_| item.len <= CHAIN_FILE_LEN_MAX as u64) {
                Some((seq, id)) if place.chain.contains(seq, &id) => {
                    self.files.insert((seq, id), item.len);
                }
                Some(stranger) => {
                    self.foreign.insert(&item.name);
                    self.strangers.insert(stranger, item.len, judged);
                }
                None => self.foreign.insert(&item.name),
            }
            Ok(())
        })?;
        Ok(())
    }

    fn list_packs(
        &mut self,
        remote: &dyn Remote,
        named: &BTreeSet<PackName>,
        here: &BTreeMap<PackName, u64>,
    ) -> Result<()> {
        Ok(remote::list(remote, "packs/", &mut |item| {
            match parse_pack_path(&item.name).filter(|_| item.len <= PACK_LEN_MAX) {
                Some(name) if here.contains_key(&name) || named.contains(&name) => {
                    self.packs.insert(name, item.len);
                }
                // Collected here, and not yet pruned there; or anything.
                Some(_) => {}
                None => self.foreign.insert(&item.name),
            }
            Ok(())
        })?)
    }

    /// Checks that what is there is this vault's: no properly signed chain file that is unknown here, nothing of another
    /// length, nothing gone that was there. Returns the number of files of which it is not known whose they are.
    pub(super) fn check(
        &self,
        place: &Place<'_>,
        here: &BTreeMap<PackName, u64>,
        cursor: Option<&Cursor>,
        judged: &mut Judged,
    ) -> Result<u64> {
        let chain = place.chain;
        // What is known to be damaged may have any length, and does not count as being there.
        for (name, len) in self.packs.iter().filter(|(name, _)| !self.bad_packs.contains(name)) {
            if here.get(name).is_some_and(|ours| ours != len) {
                return Err(conflict(&crate::format::pack::pack_path(name)));
            }
        }
        let unjudged = self.refuse_genuine(place, judged, |seq| match chain.head() {
            Some(head) if seq <= head.seq => {
                "two vaults with the same id were written to, a clone and its original"
            }
            _ => "this vault is older than what was shipped, or another host ships to the same place",
        })?;
        for info in chain.files().filter(|info| !self.bad_files.contains(&(info.seq, info.id))) {
            if self.files.get(&(info.seq, info.id)).is_some_and(|len| *len != info.file_len) {
                return Err(conflict(&info.path()));
            }
        }
        match cursor.and_then(|cursor| Some((cursor.seq, cursor.snapshot_id()?))) {
            // One that was removed here may be pruned there.
            Some((seq, id)) if !self.files.contains_key(&(seq, id)) && chain.get(seq).is_some() => {
                Err(ShipError::Lost(crate::format::chain::name(seq, &id)))
            }
            _ => Ok(unjudged),
        }
    }
}

/// Looks once more whether somebody else's chain files are there. Two hosts with copies of one vault that ship at the same
/// time both find the place as they left it. Their chain files have different names, so no put of one refuses the other's:
/// but whoever puts second, and looks after it, sees the first one's. So at most one of them believes that all is well,
/// and hears of the other at its next shipment.
pub(super) fn look_again(place: &Place<'_>, judged: &mut Judged) -> Result<u64> {
    let mut there = There::default();
    there.list_chain(place, judged)?;
    let why = "another copy of this vault was shipped there at the same time";
    there.refuse_genuine(place, judged, |_| why)
}

fn conflict(path: &str) -> ShipError {
    RemoteError::new(ErrorKind::Conflict, format!("{path} exists there with another length")).into()
}
