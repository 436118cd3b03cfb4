//! What a remote has, and whether it is a copy of this vault. Nothing it says is believed.

use std::collections::{BTreeMap, BTreeSet};

use crate::crypto::verify_chain_file;
use crate::disk::Disk;
use crate::format::chain::{CHAIN_FILE_LEN_MAX, id_of, parse_name};
use crate::format::pack::{PACK_LEN_MAX, parse_pack_path};
use crate::format::{Header, PackName, SnapshotId};
use crate::remote::{self, ErrorKind, Key, Remote, RemoteError};
use crate::snapshot::chain::Chain;

use super::error::{Result, ShipError};
use super::settings::Cursor;

/// So many chain files that nobody here knows are looked into; a hostile listing may have any number.
const STRANGERS_MAX: usize = 16;

/// What a remote has of this vault. It is as large as what is here, whatever the remote lists.
#[derive(Debug, Default)]
pub(super) struct There {
    /// Packs that are here or that a snapshot here needs.
    pub(super) packs: BTreeMap<PackName, u64>,
    /// Chain files that are here, with their lengths.
    pub(super) files: BTreeMap<(u64, SnapshotId), u64>,
    /// The newest chain files that are not here.
    strangers: BTreeSet<(u64, SnapshotId)>,
    /// Names that are no part of this vault.
    pub(super) foreign: u64,
}

impl There {
    /// Lists a remote. `known`: packs that it had a short time ago, which is believed.
    pub(super) fn list(
        remote: &dyn Remote,
        chain: &Chain,
        here: &BTreeMap<PackName, u64>,
        known: Option<BTreeMap<PackName, u64>>,
    ) -> Result<Self> {
        let mut there = Self::default();
        match known {
            Some(packs) => there.packs = packs,
            None => there.list_packs(remote, &chain.named(), here)?,
        }
        there.list_chain(remote, chain)?;
        Ok(there)
    }

    /// Fails if one of the strangers was signed with this vault's keys.
    fn refuse_genuine(
        &self,
        disk: &dyn Disk,
        remote: &dyn Remote,
        header: &Header,
        why: impl Fn(u64) -> &'static str,
    ) -> Result<()> {
        for (seq, id) in self.strangers.iter().rev() {
            // Perhaps it was made here since the chain was read, and shipped by another process.
            if is_genuine(remote, header, *seq, *id)? && !Chain::load(disk, header)?.contains(*seq, id) {
                let file = crate::format::chain::name(*seq, id);
                return Err(ShipError::Diverged { file, why: why(*seq) });
            }
        }
        Ok(())
    }

    fn list_chain(&mut self, remote: &dyn Remote, chain: &Chain) -> Result<()> {
        remote::list(remote, "snapshots/", &mut |item| {
            let name = item.name.strip_prefix("snapshots/").and_then(parse_name);
            match name.filter(|_| item.len <= CHAIN_FILE_LEN_MAX as u64) {
                Some((seq, id)) if chain.contains(seq, &id) => {
                    self.files.insert((seq, id), item.len);
                }
                Some(stranger) => {
                    self.foreign += 1;
                    self.strangers.insert(stranger);
                    if self.strangers.len() > STRANGERS_MAX {
                        self.strangers.pop_first();
                    }
                }
                None => self.foreign += 1,
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
                None => self.foreign += 1,
            }
            Ok(())
        })?)
    }

    /// Checks that what is there is this vault's: no properly signed chain file that is unknown here, nothing of another
    /// length, nothing gone that was there.
    pub(super) fn check(
        &self,
        disk: &dyn Disk,
        remote: &dyn Remote,
        header: &Header,
        chain: &Chain,
        here: &BTreeMap<PackName, u64>,
        cursor: Option<&Cursor>,
    ) -> Result<()> {
        for (name, len) in &self.packs {
            if here.get(name).is_some_and(|ours| ours != len) {
                return Err(conflict(&crate::format::pack::pack_path(name)));
            }
        }
        self.refuse_genuine(disk, remote, header, |seq| match chain.head() {
            Some(head) if seq <= head.seq => {
                "two vaults with the same id were written to, a clone and its original"
            }
            _ => "this vault is older than what was shipped, or another host ships to the same place",
        })?;
        for info in chain.files() {
            if self.files.get(&(info.seq, info.id)).is_some_and(|len| *len != info.file_len) {
                return Err(conflict(&info.path()));
            }
        }
        match cursor.and_then(|cursor| Some((cursor.seq, cursor.snapshot_id()?))) {
            // One that was removed here may be pruned there.
            Some((seq, id)) if !self.files.contains_key(&(seq, id)) && chain.get(seq).is_some() => {
                Err(ShipError::Lost(crate::format::chain::name(seq, &id)))
            }
            _ => Ok(()),
        }
    }
}

/// Looks once more whether somebody else's chain files are there. Two hosts with copies of one vault that ship at the same
/// time both find the place as they left it. Their chain files have different names, so no put of one refuses the other's:
/// but whoever puts second, and looks after it, sees the first one's. So at most one of them believes that all is well,
/// and hears of the other at its next shipment.
pub(super) fn look_again(disk: &dyn Disk, remote: &dyn Remote, header: &Header, chain: &Chain) -> Result<()> {
    let mut there = There::default();
    there.list_chain(remote, chain)?;
    let why = "another copy of this vault was shipped there at the same time";
    there.refuse_genuine(disk, remote, header, |_| why)
}

fn conflict(path: &str) -> ShipError {
    RemoteError::new(ErrorKind::Conflict, format!("{path} exists there with another length")).into()
}

/// Whether a chain file that is unknown here was signed with this vault's keys. Anything else is rubbish that somebody
/// put there, and no reason to stop.
fn is_genuine(remote: &dyn Remote, header: &Header, seq: u64, id: SnapshotId) -> Result<bool> {
    let name = format!("snapshots/{}", crate::format::chain::name(seq, &id));
    let Some(key) = Key::new(&name) else { return Ok(false) };
    let bytes = match remote::read(remote, &key, CHAIN_FILE_LEN_MAX as u64) {
        Ok(bytes) => bytes,
        // Whoever may write there could make an object that nobody can read: that must not stop shipments for good.
        Err(error) if error.kind.may_be_one_objects() => {
            tracing::warn!(name, %error, "a snapshot file that this vault does not know can't be read");
            return Ok(false);
        }
        Err(e) => return Err(e.into()),
    };
    Ok(id_of(&bytes) == id && verify_chain_file(header, &bytes).is_ok_and(|file| file.public.seq == seq))
}
