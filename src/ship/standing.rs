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

use super::settings::{CURSOR_DIR, read, write};
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
    /// When all objects there were verified last.
    #[serde(default)]
    pub verified: Option<String>,
    /// So many of them were found not to be what was shipped. Only a later verification can say that it is mended: they
    /// have the right length, so a shipment sees nothing of it.
    #[serde(default)]
    pub damaged_there: u64,
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

/// How a shipment ended.
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

/// Reads what came of the last shipment to a remote; what is of another URL is of another remote.
///
/// # Errors
/// I/O errors; `Corrupt`.
pub fn load_last(disk: &dyn Disk, name: &str, url: &str) -> Result<Option<Last>> {
    Ok(read::<Last>(disk, &path(name))?.filter(|last| last.url == url))
}

/// Remembers what came of a shipment.
///
/// # Errors
/// I/O errors.
pub fn store_last(
    disk: &dyn Disk,
    name: &str,
    url: &str,
    ended: &Ended<'_>,
    report: Option<&Report>,
    verified: Option<&Verified>,
) -> Result<()> {
    let before = match load_last(disk, name, url) {
        Ok(before) => before.unwrap_or_default(),
        Err(error) if is_nonsense(&error) => {
            tracing::warn!(%error, "what is known of a remote begins anew");
            Last::default()
        }
        Err(error) => return Err(error),
    };
    let at = rfc3339(ended.at.secs, ended.at.nanos);
    let mut last = Last {
        url: url.to_string(),
        tried: Some(at.clone()),
        is_alarm: ended.is_alarm,
        error: ended.error.map(|error| error.chars().take(ERROR_CHARS_MAX).collect()),
        wrong: report.map(Report::wrong).unwrap_or_default(),
        ..before
    };
    if let Some(verified) = verified {
        let is_whole = ended.error.is_none();
        if is_whole {
            last.verified = Some(at.clone());
        }
        // One that was interrupted has seen no more than what it found.
        last.damaged_there = match is_whole {
            true => verified.wrong_total,
            false => last.damaged_there.max(verified.wrong_total),
        };
    }
    if let Some(report) = report {
        last.newest = report.newest.max(last.newest);
        if report.is_finished {
            (last.newest, last.complete, last.shipped) = (report.newest, report.complete, Some(at));
        }
    }
    write(disk, &path(name), &last)
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
    match disk.remove(&path(name)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io(format!("removing {}", path(name)), e))
        }
        _ => Ok(()),
    }
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
