//! Chain files at a remote that are not here. Either they are rubbish, or signed with this vault's keys: another history of it.
//!
//! Whoever may write there can put any number of names, so only some are looked into at a time: those nearest to the newest
//! file here, since another history has one there, and the newest. What was found to be rubbish is remembered here, so that it
//! can't stand in the way of others for ever. While some are left it is said.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use serde::{Deserialize, Serialize};

use crate::crypto::verify_chain_file;
use crate::disk::Disk;
use crate::format::chain::{id_of, name, parse_name};
use crate::format::{Header, SnapshotId};
use crate::remote::{self, Key, Remote};

use super::error::Result;
use super::settings::{CURSOR_DIR, place_path};

/// So many names of each kind are looked into after a listing.
const NEAR_MAX: usize = 32;
const NEWEST_MAX: usize = 32;
/// No other one is read after so many bytes.
const READ_MAX: u64 = 128 << 20;
/// Names that are remembered: of rubbish, and of what could not be read.
const RUBBISH_MAX: usize = 8192;
const UNREADABLE_MAX: usize = 1024;
/// The longest file of names, which are shorter than 100 bytes.
const JUDGED_BYTES_MAX: u64 = 2 << 20;

/// Sequence and id, which are a name.
type Name = (u64, SnapshotId);

/// What was found out about names at a place.
#[derive(Debug)]
pub(super) struct Judged {
    path: String,
    place: String,
    rubbish: BTreeSet<Name>,
    /// Perhaps another time: there may be anything in them.
    unreadable: BTreeSet<Name>,
    is_changed: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    place: String,
    rubbish: Vec<String>,
    unreadable: Vec<String>,
}

impl Judged {
    /// Reads what is remembered. Whatever is wrong with it: it only saves requests.
    pub(super) fn load(disk: &dyn Disk, remote: &dyn Remote) -> Self {
        let (path, place) = (place_path(remote, "judged"), remote.place());
        let read = disk
            .read_file(&path, JUDGED_BYTES_MAX)
            .and_then(|bytes| Ok(serde_json::from_slice::<File>(&bytes)?));
        let file = match read {
            Ok(file) => Some(file).filter(|file| file.place == place),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path, %error, "what is no snapshot there is looked into anew");
                }
                None
            }
        };
        let names =
            |texts: Vec<String>, most| texts.iter().filter_map(|text| parse_name(text)).take(most).collect();
        let (rubbish, unreadable) = file.map_or((BTreeSet::new(), BTreeSet::new()), |file| {
            (names(file.rubbish, RUBBISH_MAX), names(file.unreadable, UNREADABLE_MAX))
        });
        Self { path, place, rubbish, unreadable, is_changed: false }
    }

    /// Remembers it, if there is anything new.
    pub(super) fn save(&mut self, disk: &dyn Disk) {
        if !std::mem::take(&mut self.is_changed) {
            return;
        }
        let texts = |names: &BTreeSet<Name>| names.iter().map(|(seq, id)| name(*seq, id)).collect();
        let file = File {
            place: self.place.clone(),
            rubbish: texts(&self.rubbish),
            unreadable: texts(&self.unreadable),
        };
        let saved = serde_json::to_vec(&file).map_err(io::Error::from).and_then(|text| {
            disk.create_dir_all(CURSOR_DIR)?;
            disk.write_file_atomic(&self.path, &text)
        });
        if let Err(error) = saved {
            tracing::warn!(path = self.path, %error, "what is no snapshot there will be looked into again");
        }
    }

    fn add(&mut self, name: Name, found: Found) {
        let is_new = match found {
            Found::Rubbish => {
                self.is_changed |= self.unreadable.remove(&name);
                self.rubbish.len() < RUBBISH_MAX && self.rubbish.insert(name)
            }
            Found::Unreadable => {
                if self.unreadable.len() >= UNREADABLE_MAX {
                    self.unreadable.clear();
                }
                self.unreadable.insert(name)
            }
            Found::Genuine => false,
        };
        self.is_changed |= is_new;
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Signed with this vault's keys.
    Genuine,
    Rubbish,
    Unreadable,
}

/// The names of a listing that are not here. Bounded, whatever is listed.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// The newest sequence here.
    head: u64,
    /// By whether it could not be read before, distance and name, with lengths.
    near: BTreeMap<(bool, u64, Name), u64>,
    newest: BTreeMap<(Reverse<bool>, Name), u64>,
    /// Names of which it is not known what they stand for.
    open: u64,
    /// Names that were known to be rubbish, or unreadable, and are still there.
    seen: BTreeSet<Name>,
}

impl Strangers {
    pub(super) fn new(head: u64) -> Self {
        Self { head, ..Self::default() }
    }

    pub(super) fn insert(&mut self, name: Name, len: u64, judged: &Judged) {
        let was_tried = judged.unreadable.contains(&name);
        if judged.rubbish.contains(&name) || was_tried {
            self.seen.insert(name);
        }
        if judged.rubbish.contains(&name) {
            return;
        }
        self.open += 1;
        // Another history goes on after a file that is here: with this sequence, or one before.
        let distance = name.0.abs_diff(self.head.saturating_add(1));
        self.near.insert((was_tried, distance, name), len);
        if self.near.len() > NEAR_MAX {
            self.near.pop_last();
        }
        self.newest.insert((Reverse(was_tried), name), len);
        if self.newest.len() > NEWEST_MAX {
            self.newest.pop_first();
        }
    }

    /// Looks into some of them, short ones first. Returns the newest one that is genuine, and of how many it is not known
    /// what they are.
    pub(super) fn look(
        &self,
        remote: &dyn Remote,
        header: &Header,
        judged: &mut Judged,
    ) -> Result<(Vec<Name>, u64)> {
        let near = self.near.iter().map(|((was_tried, _, name), len)| (*was_tried, *len, *name));
        let newest = self.newest.iter().map(|((was_tried, name), len)| (was_tried.0, *len, *name));
        let chosen: BTreeSet<(bool, u64, Name)> = near.chain(newest).collect();
        if chosen.iter().all(|(was_tried, ..)| *was_tried) && !chosen.is_empty() {
            // All that can't be read was tried: it begins anew, so that each has its turn.
            judged.unreadable.clear();
        }
        let (mut genuine, mut open, mut bytes) = (Vec::new(), self.open, 0_u64);
        for (_, len, name) in chosen {
            bytes = bytes.saturating_add(len);
            let found = look_into(remote, header, name, len)?;
            match found {
                Found::Genuine => genuine.push(name),
                Found::Rubbish => open = open.saturating_sub(1),
                Found::Unreadable => {}
            }
            judged.add(name, found);
            if bytes > READ_MAX {
                break;
            }
        }
        genuine.sort();
        Ok((genuine, open))
    }

    /// Forgets names that are not there any more. Of a whole listing only.
    pub(super) fn forget_others(&self, judged: &mut Judged) {
        let before = judged.rubbish.len() + judged.unreadable.len();
        judged.rubbish.retain(|name| self.seen.contains(name));
        judged.unreadable.retain(|name| self.seen.contains(name));
        judged.is_changed |= before != judged.rubbish.len() + judged.unreadable.len();
    }
}

/// Anything that was not signed with this vault's keys is rubbish that somebody put there, and no reason to stop. Whose length
/// is not the one that was listed is not read: how much is read at a time is reckoned by that.
fn look_into(remote: &dyn Remote, header: &Header, (seq, id): Name, listed: u64) -> Result<Found> {
    let path = format!("snapshots/{}", name(seq, &id));
    let Some(key) = Key::new(&path) else { return Ok(Found::Rubbish) };
    let bytes = match remote::read(remote, &key, listed) {
        Ok(bytes) if bytes.len() as u64 == listed => bytes,
        Ok(bytes) => {
            let read = bytes.len();
            tracing::warn!(name = path, listed, read, "a file that this vault does not know became shorter");
            return Ok(Found::Unreadable);
        }
        // Whoever may write there could make an object that nobody can read: that must not stop shipments for good.
        Err(error) if error.kind.may_be_one_objects() => {
            tracing::warn!(name = path, %error, "a snapshot file that this vault does not know can't be read");
            return Ok(Found::Unreadable);
        }
        Err(e) => return Err(e.into()),
    };
    let is_genuine =
        id_of(&bytes) == id && verify_chain_file(header, &bytes).is_ok_and(|file| file.public.seq == seq);
    Ok(if is_genuine { Found::Genuine } else { Found::Rubbish })
}
