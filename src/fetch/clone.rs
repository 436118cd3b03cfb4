//! A whole copy of the vault at a remote.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::format::Header;
use crate::remote::Remote;
use crate::snapshot::chain::Chain;
use crate::store::error::StoreError;
use crate::store::header::COPIES;

use super::error::{FetchError, Result};
use super::get::{Progress, Report, fetch_chain, fetch_packs};
use super::incoming::Incoming;

/// Says that a directory without a header is a clone that was begun, and of what.
const BEGUN: &str = "live/clone.json";
const BEGUN_BYTES_MAX: u64 = 4 << 10;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begun {
    vault_id: String,
}

fn io(path: &'static str) -> impl Fn(std::io::Error) -> StoreError {
    move |e| StoreError::io(path, e)
}

fn begun(disk: &dyn Disk) -> Result<Option<Begun>> {
    match disk.read_file(BEGUN, BEGUN_BYTES_MAX) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            let text = format!("{BEGUN} can't be understood ({e}); clone into another directory");
            StoreError::Corrupt(text).into()
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(BEGUN)(e).into()),
    }
}

/// Whether a clone may begin in a directory or go on there: it is empty (a clone may have been interrupted before it left
/// anything), or holds a clone that was interrupted.
///
/// # Errors
/// I/O errors; `Corrupt`.
pub fn may_clone_into(disk: &dyn Disk) -> Result<bool> {
    if begun(disk)?.is_some() {
        return Ok(true);
    }
    let only = |dir: &str, allowed: &[&str]| match disk.list(dir) {
        Ok(items) => Ok(items.iter().all(|item| allowed.contains(&item.name.as_str()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(StoreError::io(format!("listing {dir:?}"), e)),
    };
    Ok(only("", &["live", "lost+found"])? && only("live", &["clone.json.tmp", "incoming", "incoming.lock"])?)
}

/// Copies the vault at a remote, of which this is the header with its bytes, into an empty directory, or goes on with a copy of it that was begun there. `accept` is shown
/// what the remote has before any pack is fetched, and may refuse it; `remember` is called when all is here, before the
/// header makes a vault of it.
///
/// What is missing or damaged at the remote is in the report, and all else is copied.
///
/// # Errors
/// See [`FetchError`]. What arrived stays; the next run goes on from there.
pub fn clone(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    header: (&Header, &[u8]),
    jobs: usize,
    accept: &mut dyn FnMut(&Header, &Chain) -> std::result::Result<(), StoreError>,
    remember: &mut dyn FnMut(&Chain) -> std::result::Result<(), StoreError>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report> {
    let (header, header_bytes) = header;
    let vault_id = header.vault_id.to_hex();
    let incoming = Incoming::open(disk)?;
    // Another clone may have ended here until the lock was taken.
    for path in COPIES {
        if disk.len(path).map_err(io(path))?.is_some() {
            let holder = format!("there is a vault already: {path} exists");
            return Err(StoreError::Locked { holder }.into());
        }
    }
    match begun(disk.as_ref())? {
        Some(other) if other.vault_id != vault_id => {
            return Err(FetchError::OtherVault { theirs: vault_id, ours: other.vault_id });
        }
        Some(_) => {}
        None => {
            let text = serde_json::to_vec(&Begun { vault_id })
                .map_err(|e| StoreError::Corrupt(format!("encoding {BEGUN}: {e}")))?;
            disk.create_dir_all("live").map_err(io("live"))?;
            disk.write_file_atomic(BEGUN, &text).map_err(io(BEGUN))?;
        }
    }
    let mut report = Report::default();
    let chain = fetch_chain(&incoming, disk.as_ref(), remote.as_ref(), header, None, jobs, &mut report)?;
    accept(header, &chain)?;
    fetch_packs(&incoming, disk.as_ref(), remote.as_ref(), &chain, jobs, progress, &mut report)?;
    disk.create_dir_all("packs").map_err(io("packs"))?;
    incoming.promote(&chain)?;
    remember(&chain)?;
    // What has a header is a whole vault.
    for path in COPIES.into_iter().rev() {
        disk.write_file_atomic(path, header_bytes).map_err(io(path))?;
    }
    disk.remove(BEGUN).and_then(|()| disk.sync_dir("live")).map_err(io(BEGUN))?;
    Ok(report)
}
