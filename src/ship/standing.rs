//! How a remote stands, as far as it is known here: what came of the last shipment, and what has been made since. Nothing is asked
//! of the remote.

use std::collections::BTreeSet;
use std::io;

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::env::Time;
use crate::format::pack::pack_path;
use crate::snapshot::chain::Chain;
use crate::snapshot::describe::rfc3339;
use crate::store::error::{Result, StoreError};

use super::settings::{CURSOR_DIR, hold, read, write};
use super::{Report, Vault, Verified};

/// What came of the last shipment to a remote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Last {
    /// The URL that it had then.
    pub url: String,
    /// When it was shipped to last, with whatever end; RFC 3339.
    pub tried: Option<String>,
    /// When that last went well.
    pub shipped: Option<String>,
    /// Sequence of the newest snapshot or removal that it had then.
    pub newest: Option<u64>,
    /// Sequence of the newest snapshot that it had with everything it needs.
    pub complete: Option<u64>,
    /// Something was found there that should not be: status 25.
    pub is_alarm: bool,
    /// Why the last shipment failed.
    pub error: Option<String>,
    /// What it found to be wrong, there or here.
    pub wrong: Vec<String>,
    /// When all objects there were verified last. (In the file it is what was known before that had one of its own.)
    #[serde(default)]
    pub verified: Option<String>,
    /// So many objects were not what was shipped, by the last verification.
    #[serde(default)]
    pub damaged_there: u64,
}

/// What came of verifying, in a file of its own: it takes hours, in which other processes ship there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Looked {
    url: String,
    verified: Option<String>,
    damaged_there: u64,
}

/// What was made since, and is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Behind {
    /// Snapshots.
    pub snapshots: u64,
    /// Packs that they need, and the newest one there does not.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How a shipment ended. A verification is none.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// When.
    pub at: Time,
    /// Something was found there that should not be.
    pub is_alarm: bool,
    /// Why it failed.
    pub error: Option<&'a str>,
}

/// What is kept of an error's text.
const ERROR_CHARS_MAX: usize = 4000;

fn path(name: &str) -> String {
    format!("{CURSOR_DIR}/{name}.last.json")
}

fn looked_path(name: &str) -> String {
    format!("{CURSOR_DIR}/{name}.verified.json")
}

/// Reads what came of the last shipment to a remote, and of the last verification; what is of another URL is of another
/// remote.
///
/// # Errors
/// I/O errors; `Corrupt`.
pub fn load_last(disk: &dyn Disk, name: &str, url: &str) -> Result<Option<Last>> {
    let last = read::<Last>(disk, &path(name))?.filter(|last| last.url == url);
    let looked = read::<Looked>(disk, &looked_path(name))?.filter(|looked| looked.url == url);
    if last.is_none() && looked.is_none() {
        return Ok(None);
    }
    let mut last = last.unwrap_or_else(|| Last { url: url.to_string(), ..Last::default() });
    if let Some(Looked { verified, damaged_there, .. }) = looked {
        (last.verified, last.damaged_there) = (verified, damaged_there);
    }
    Ok(Some(last))
}

/// Reads what was written of this URL. What makes no sense is begun anew.
fn before<T: Default + for<'a> Deserialize<'a>>(
    disk: &dyn Disk,
    path: &str,
    is_of: impl Fn(&T) -> bool,
) -> Result<T> {
    match read::<T>(disk, path) {
        Ok(before) => Ok(before.filter(is_of).unwrap_or_default()),
        Err(error) if is_nonsense(&error) => {
            tracing::warn!(%error, "what is known of a remote begins anew");
            Ok(T::default())
        }
        Err(error) => Err(error),
    }
}

/// Remembers what came of a shipment. For who has the right to ship there ([`super::lock_remote`]): it would write over what
/// another one has just found.
///
/// # Errors
/// I/O errors.
pub fn store_last(
    disk: &dyn Disk,
    name: &str,
    url: &str,
    ended: &Ended<'_>,
    report: Option<&Report>,
) -> Result<()> {
    let before: Last = before(disk, &path(name), |last: &Last| last.url == url)?;
    let at = rfc3339(ended.at.secs, ended.at.nanos);
    let mut last = Last {
        url: url.to_string(),
        tried: Some(at.clone()),
        is_alarm: ended.is_alarm,
        error: ended.error.map(|error| error.chars().take(ERROR_CHARS_MAX).collect()),
        wrong: report.map(Report::wrong).unwrap_or_default(),
        ..before
    };
    if let Some(report) = report {
        last.newest = report.newest.max(last.newest);
        if report.is_finished {
            (last.newest, last.complete, last.shipped) = (report.newest, report.complete, Some(at));
        }
    }
    write(disk, &path(name), &last)
}

/// Remembers what came of a verification. `is_whole`: it came to its end; otherwise it has seen no more than what it found.
/// Needs no right to ship: nothing else is touched.
///
/// # Errors
/// I/O errors.
pub fn store_verified(
    disk: &dyn Disk,
    name: &str,
    url: &str,
    at: Time,
    verified: &Verified,
    is_whole: bool,
) -> Result<()> {
    let path = looked_path(name);
    let _held = hold(disk, &path)?;
    let before: Looked = before(disk, &path, |looked: &Looked| looked.url == url)?;
    let looked = match is_whole {
        true => Looked {
            url: url.to_string(),
            verified: Some(rfc3339(at.secs, at.nanos)),
            damaged_there: verified.wrong_total,
        },
        false => Looked {
            url: url.to_string(),
            damaged_there: before.damaged_there.max(verified.wrong_total),
            ..before
        },
    };
    write(disk, &path, &looked)
}

/// Whether a file is none that we wrote: not understood, or too long.
fn is_nonsense(error: &StoreError) -> bool {
    match error {
        StoreError::Corrupt(_) => true,
        StoreError::Io { source, .. } => source.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// Forgets it.
///
/// # Errors
/// I/O errors.
pub(super) fn forget_last(disk: &dyn Disk, name: &str) -> Result<()> {
    for path in [path(name), looked_path(name)] {
        match disk.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io(format!("removing {path}"), e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The chain of a vault, for [`behind`].
///
/// # Errors
/// What is wrong with the vault.
pub fn chain_of(disk: &dyn Disk) -> std::result::Result<Chain, super::ShipError> {
    Ok(Vault::load(disk)?.chain)
}

/// What has to be sent until a remote that has all of snapshot `complete` has all that is here. Packs that older snapshots
/// there need count as well, if the newest one there does not need them.
///
/// # Errors
/// I/O errors; `Corrupt` when the chain does not say what its snapshots need.
pub fn behind(disk: &dyn Disk, chain: &Chain, complete: Option<u64>) -> Result<Behind> {
    let mut behind = Behind::default();
    // That one may have been deleted here since; an older one is there as well.
    let base = chain.snapshots().rev().find(|info| complete.is_some_and(|seq| info.seq <= seq));
    let there = base.map_or_else(|| Ok(BTreeSet::new()), |info| chain.needed_packs(info.seq))?;
    let mut packs = BTreeSet::new();
    for info in chain.snapshots().rev().take_while(|info| complete.is_none_or(|seq| info.seq > seq)) {
        behind.snapshots += 1;
        packs.extend(chain.needed_packs(info.seq)?.difference(&there).copied());
    }
    for pack in packs {
        let path = pack_path(&pack);
        let len = disk.len(&path).map_err(|e| StoreError::io(format!("looking at {path}"), e))?;
        behind.packs += 1;
        behind.bytes += len.unwrap_or(0);
    }
    Ok(behind)
}
