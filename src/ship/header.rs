//! The header's copies at a remote: the only objects that ever change.

use std::sync::Arc;

use crate::disk::Disk;
use crate::format::{Header, ParsedHeader};
use crate::remote::{self, Bytes, Checksum, ErrorKind, Key, Remote};
use crate::store::error::StoreError;
use crate::store::header::{HEADER_BACKUP_PATH, HEADER_BYTES_MAX, HEADER_PATH};

use super::error::{Result, ShipError};
use super::lock::Need;

/// The bytes of the header that counts here.
pub(super) fn local_bytes(disk: &dyn Disk, header: &ParsedHeader) -> Result<Arc<[u8]>> {
    for path in [HEADER_PATH, HEADER_BACKUP_PATH] {
        // One copy may be damaged or missing: `store::header` has chosen the sound one.
        if let Ok(bytes) = disk.read_file(path, HEADER_BYTES_MAX)
            && Header::parse(&bytes).is_ok_and(|parsed| parsed == *header)
        {
            return Ok(bytes.into());
        }
    }
    Err(StoreError::HeaderDamaged("it changed while it was read; try again".into()).into())
}

/// What a copy at a remote is.
enum Copy {
    Missing,
    Same,
    Older(Checksum),
}

fn copy(remote: &dyn Remote, key: &Key, ours: &[u8], header: &Header) -> Result<Copy> {
    if remote.lock().is_some() {
        return locked_copy(remote, key, ours, header);
    }
    let bytes = match remote::read(remote, key, HEADER_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(e) if e.kind == ErrorKind::NotFound => return Ok(Copy::Missing),
        Err(e) => return Err(e.into()),
    };
    if bytes == ours {
        return Ok(Copy::Same);
    }
    let theirs = Header::parse(&bytes).map_err(|e| {
        ShipError::Header(format!(
            "{key} at the remote is damaged ({e}); compare it with the one here, then remove it there"
        ))
    })?;
    let theirs = theirs.header;
    if theirs.vault_id != header.vault_id {
        return Err(ShipError::OtherVault(theirs.vault_id.to_hex()));
    }
    if theirs.generation < header.generation {
        return Ok(Copy::Older(Checksum::of(&bytes)));
    }
    let text = match theirs.generation == header.generation {
        true => format!(
            "{key} at the remote differs from the one here, and both are of generation {}",
            theirs.generation
        ),
        false => format!(
            "{key} at the remote is newer (generation {}) than the one here ({}): this vault was rolled back, or keys were \
             changed in another copy",
            theirs.generation, header.generation
        ),
    };
    Err(ShipError::Header(text))
}

/// Where nothing is ever lost, ours is put over whatever there is, once. Refusing to, as above, would let anybody who can
/// write there stop all shipments for good with one forged header; and if it is this vault that was rolled back, nothing is
/// hidden by ours, since the highest generation counts. What was put there is told: [`kept`].
fn locked_copy(remote: &dyn Remote, key: &Key, ours: &[u8], header: &Header) -> Result<Copy> {
    let versions = remote.versions(key, HEADER_BYTES_MAX)?;
    if versions.iter().any(|version| version.bytes == ours) {
        return Ok(Copy::Same);
    }
    let Some(best) = versions.first() else { return Ok(Copy::Missing) };
    match Header::parse(&best.bytes) {
        Ok(theirs) if theirs.header.vault_id != header.vault_id => {
            Err(ShipError::OtherVault(theirs.header.vault_id.to_hex()))
        }
        _ => Ok(Copy::Older(Checksum::of(&best.bytes))),
    }
}

/// The versions that are ours where objects are locked; and names of copies that something lies over, or that count for less
/// than something else there.
pub(super) fn kept(remote: &dyn Remote, ours: &[u8]) -> Result<(Vec<Need>, Vec<String>)> {
    let (mut needs, mut covered) = (Vec::new(), Vec::new());
    for key in keys() {
        let versions = remote.versions(&key, HEADER_BYTES_MAX)?;
        let found = versions.iter().find(|version| version.bytes == ours);
        let first = versions.first().is_some_and(|version| version.bytes == ours);
        let latest = versions.iter().any(|version| version.latest && version.bytes == ours);
        let hidden = !versions.iter().any(|version| version.latest);
        // A delete marker is told apart.
        if found.is_some() && !(first && (latest || hidden)) {
            covered.push(key.to_string());
        }
        // One that is behind ours is the only one there until ours is shipped.
        let keep = found.or(versions.first());
        needs.extend(keep.map(|version| Need { key: key.clone(), version: Some(version.id.clone()) }));
    }
    Ok((needs, covered))
}

fn keys() -> [Key; 2] {
    let known = "names of letters and a dot";
    [HEADER_PATH, HEADER_BACKUP_PATH].map(|path| Key::new(path).expect(known))
}

/// What the two copies at a remote are, together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copies {
    /// There are none: the place is empty.
    None,
    /// One is missing or older than the one here.
    Behind,
    /// Both are as the one here.
    Current,
}

/// Refuses a remote with another vault's header, or a newer one.
pub(super) fn check(remote: &dyn Remote, ours: &[u8], header: &Header) -> Result<Copies> {
    let [first, second] = keys().map(|key| copy(remote, &key, ours, header));
    Ok(match (first?, second?) {
        (Copy::Missing, Copy::Missing) => Copies::None,
        (Copy::Same, Copy::Same) => Copies::Current,
        (Copy::Missing | Copy::Same | Copy::Older(_), _) => Copies::Behind,
    })
}

/// Brings both copies up to date, one after the other: at each moment one of them is whole. Returns how many were sent.
/// Credentials that may only create can't replace them; `refused` is set then, and snapshots are shipped all the same.
pub(super) fn bring(
    remote: &dyn Remote,
    ours: &Arc<[u8]>,
    header: &Header,
    refused: &mut bool,
) -> Result<u64> {
    let (body, checksum) = (Bytes::source(Arc::clone(ours)), Checksum::of(ours));
    let mut sent = 0;
    for key in keys() {
        match copy(remote, &key, ours, header)? {
            Copy::Same => {}
            Copy::Missing => {
                remote.put_if_absent(&key, &body, &checksum)?;
                sent += 1;
            }
            Copy::Older(was) => match remote.replace(&key, &was, &body, &checksum) {
                Ok(()) => sent += 1,
                Err(e) if e.kind == ErrorKind::Denied => *refused = true,
                Err(e) => return Err(e.into()),
            },
        }
    }
    Ok(sent)
}
