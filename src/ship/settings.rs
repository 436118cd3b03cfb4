//! A vault's remotes, by name, and what each of them was seen to have: local settings, in `live/`. No secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, DiskLock};
use crate::format::SnapshotId;
use crate::remote::{Remote, Settings};
use crate::store::error::{Result, StoreError};

use super::error::ShipError;
use super::standing::forget_last;

const PATH: &str = "live/remotes.json";
const LOCK_PATH: &str = "live/remotes.lock";
/// What each remote was seen to have, what is retained there, what was looked into.
pub(super) const CURSOR_DIR: &str = "live/remotes";
/// The largest of these files that is read.
const BYTES_MAX: u64 = 1 << 20;
/// The longest note of a process that ships.
const NOTE_MAX: u64 = 4 << 10;

/// The remotes of a vault.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remotes {
    /// By name.
    pub remotes: BTreeMap<String, Settings>,
}

/// What a remote had when it was shipped to last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The URL it had then: another one is another remote.
    pub url: String,
    /// Sequence of its newest chain file.
    pub seq: u64,
    /// Id of that file, in hex.
    pub id: String,
    /// Names of packs that its snapshots need and that it did not get, since they were missing or damaged here. `None`: what it
    /// has was not shipped from here, or lacks too much; then nothing but that file is missed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsent: Option<BTreeSet<String>>,
}

/// So many names a cursor has at most: it has to be read again.
pub(super) const UNSENT_MAX: usize = 4096;

impl Cursor {
    /// The id of the newest chain file that was there.
    pub fn snapshot_id(&self) -> Option<SnapshotId> {
        SnapshotId::from_hex(&self.id)
    }
}

/// Whether a text can be the name of a remote: 1 to 64 lower-case letters, digits and dashes.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=64).contains(&text.len()) && !text.starts_with('-') && text.bytes().all(good)
}

pub(super) fn read<T: for<'a> Deserialize<'a>>(disk: &dyn Disk, path: &str) -> Result<Option<T>> {
    match disk.read_file(path, BYTES_MAX) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            StoreError::Corrupt(format!("{path} can't be understood ({e}); remove it to begin anew"))
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::io(format!("reading {path}"), e)),
    }
}

pub(super) fn write(disk: &dyn Disk, path: &str, value: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|e| StoreError::Corrupt(format!("encoding {path}: {e}")))?;
    disk.create_dir_all(crate::disk::parent(path))
        .and_then(|()| disk.write_file_atomic(path, &text))
        .map_err(|e| StoreError::io(format!("writing {path}"), e))
}

/// So often a short lock is asked for,
const HOLD_TRIES: u32 = 500;
/// with so long a pause.
const HOLD_PAUSE: Duration = Duration::from_millis(20);

/// Keeps other processes from changing one of these files until it is dropped: for reading, changing and writing it, not for
/// more.
///
/// # Errors
/// I/O errors; `Locked` when another process has it for long.
pub(super) fn hold(disk: &dyn Disk, path: &str) -> Result<Box<dyn DiskLock>> {
    let path = format!("{path}.lock");
    let failed = |e| StoreError::io(format!("locking {path}"), e);
    disk.create_dir_all(crate::disk::parent(&path)).map_err(failed)?;
    for _ in 0..HOLD_TRIES {
        if let Some(lock) = disk.lock(&path).map_err(failed)? {
            return Ok(lock);
        }
        std::thread::sleep(HOLD_PAUSE);
    }
    Err(StoreError::Locked { holder: format!("another process that has {path}") })
}

impl Remotes {
    /// Reads them; a vault without that file has none.
    ///
    /// # Errors
    /// I/O errors; `Corrupt` when the file makes no sense.
    pub fn load(disk: &dyn Disk) -> Result<Self> {
        Ok(read(disk, PATH)?.unwrap_or_default())
    }

    /// Reads, changes and writes them, so that no other process does so in between.
    ///
    /// # Errors
    /// `Locked` when another process is doing so; what [`Remotes::load`] says; what `change` says.
    pub fn update<T, E: From<StoreError>>(
        disk: &dyn Disk,
        change: impl FnOnce(&mut Self) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let failed = |e| StoreError::io(format!("locking {LOCK_PATH}"), e);
        disk.create_dir_all("live").map_err(failed)?;
        let lock = disk.lock(LOCK_PATH).map_err(failed)?;
        let Some(_lock) = lock else {
            return Err(
                StoreError::Locked { holder: "another process that changes the remotes".into() }.into()
            );
        };
        let mut remotes = Self::load(disk)?;
        let done = change(&mut remotes)?;
        write(disk, PATH, &remotes)?;
        Ok(done)
    }
}

fn cursor_path(name: &str) -> String {
    format!("{CURSOR_DIR}/{name}.json")
}

/// Reads what a remote was seen to have.
///
/// # Errors
/// I/O errors; `Corrupt`: what can't be understood must not pass for "never shipped".
pub fn load_cursor(disk: &dyn Disk, name: &str) -> Result<Option<Cursor>> {
    read(disk, &cursor_path(name))
}

/// Remembers what a remote has.
///
/// # Errors
/// I/O errors.
pub fn store_cursor(disk: &dyn Disk, name: &str, cursor: &Cursor) -> Result<()> {
    write(disk, &cursor_path(name), cursor)
}

/// Forgets what a remote had, and what came of shipping to it.
///
/// # Errors
/// I/O errors.
pub fn forget_cursor(disk: &dyn Disk, name: &str) -> Result<()> {
    store_position(disk, name, None)?;
    forget_last(disk, name)?;
    match disk.remove(&cursor_path(name)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io(format!("removing {}", cursor_path(name)), e))
        }
        _ => Ok(()),
    }
}

/// A file about a place, whatever names it has as a remote. Of another endpoint it is another one.
pub(super) fn place_path(remote: &dyn Remote, kind: &str) -> String {
    format!("{CURSOR_DIR}/{}-{}.{kind}", short(&remote.url()), short(&remote.place()))
}

fn short(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..16].to_string()
}

/// Forgets what is known of all places with a URL: what is retained there, what was looked into, what is damaged. The next
/// shipment asks.
///
/// # Errors
/// I/O errors.
pub fn forget_places(disk: &dyn Disk, url: &str) -> Result<()> {
    let begins = format!("{}-", short(url));
    let items = match disk.list(CURSOR_DIR) {
        Ok(items) => items,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(StoreError::io(format!("listing {CURSOR_DIR}"), e)),
    };
    // A remote's name may look like that; its files have another kind.
    let kinds = [".retained", ".judged", ".damaged"];
    let is_ours = |name: &str| name.starts_with(&begins) && kinds.iter().any(|kind| name.ends_with(kind));
    for item in items.iter().filter(|item| is_ours(&item.name)) {
        let path = format!("{CURSOR_DIR}/{}", item.name);
        match disk.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io(format!("removing {path}"), e));
            }
            _ => {}
        }
    }
    Ok(())
}

fn position_path(name: &str) -> String {
    format!("{CURSOR_DIR}/{name}.verify.json")
}

/// How far a verification has come that was interrupted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// The place that was looked at, where it is not told by the URL alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) place: Option<String>,
    /// The URL it had then.
    pub(super) url: String,
    /// Everything up to this name was looked at.
    pub(super) after: String,
    /// What was wrong among it: a bounded number of texts that begin with a name,
    pub(super) wrong: Vec<String>,
    /// and how many more there were.
    #[serde(default)]
    pub(super) wrong_more: u64,
}

/// Reads how far a verification has come. One that can't be understood begins anew.
pub(super) fn load_position(disk: &dyn Disk, name: &str) -> Result<Option<Position>> {
    match read(disk, &position_path(name)) {
        Err(StoreError::Corrupt(text)) => {
            tracing::warn!(%text, "verifying begins anew");
            Ok(None)
        }
        // Longer than any that was written.
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(error = %source, "verifying begins anew");
            Ok(None)
        }
        other => other,
    }
}

/// Remembers how far a verification has come; `None`: to its end.
pub(super) fn store_position(disk: &dyn Disk, name: &str, position: Option<&Position>) -> Result<()> {
    let path = position_path(name);
    match position {
        Some(position) => write(disk, &path, position),
        None => match disk.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io(format!("removing {path}"), e))
            }
            _ => Ok(()),
        },
    }
}

/// The right to ship to a remote, until it is dropped. Nothing breaks without it, but two processes would send the same.
#[derive(Debug)]
pub struct ShipLock {
    #[allow(dead_code, reason = "held, not used")]
    lock: Box<dyn DiskLock>,
    /// What the process that had it before wrote, or nothing.
    pub previous: String,
}

/// Takes the right to ship to a remote, and leaves a note of who has it.
///
/// # Errors
/// `Busy`, with that note, when another process has it; I/O errors.
pub fn lock_remote(disk: &dyn Disk, name: &str, note: &str) -> std::result::Result<ShipLock, ShipError> {
    let path = format!("{CURSOR_DIR}/{name}.lock");
    let failed = |e| StoreError::io(format!("locking {path}"), e);
    disk.create_dir_all(CURSOR_DIR).map_err(failed)?;
    let lock = disk.lock(&path).map_err(failed)?;
    let written = disk.read_file(&path, NOTE_MAX).map_err(failed)?;
    let previous: String = String::from_utf8_lossy(&written).chars().filter(|c| !c.is_control()).collect();
    let Some(lock) = lock else { return Err(ShipError::Busy(previous)) };
    if let Err(error) = lock.write_note(note.as_bytes()) {
        // A full disk here is no reason not to ship; the note is for people.
        tracing::debug!(%error, "no note in the lock");
    }
    Ok(ShipLock { lock, previous })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::SimDisk;

    #[test]
    fn settings_survive_and_nonsense_is_refused() {
        let disk = SimDisk::new(1);
        assert_eq!(Remotes::load(&disk).unwrap(), Remotes::default());
        let settings = Settings { url: "s3://bucket/x".into(), path_style: true, ..Settings::default() };
        Remotes::update::<_, StoreError>(&disk, |r| Ok(r.remotes.insert("offsite".into(), settings.clone())))
            .unwrap();
        assert_eq!(Remotes::load(&disk).unwrap().remotes["offsite"], settings);
        let text = String::from_utf8(disk.raw_read(PATH).unwrap()).unwrap();
        assert!(!text.contains("null") && !text.contains("profile"), "only what was set: {text}");
        let refused = Remotes::update::<(), StoreError>(&disk, |r| {
            r.remotes.clear();
            Err(StoreError::NotFound("x".into()))
        });
        refused.unwrap_err();
        assert_eq!(Remotes::load(&disk).unwrap().remotes.len(), 1, "a change that fails changes nothing");
        disk.raw_write(PATH, b"{\"remotes\":{\"a\":{\"url\":\"s3://bucket\",\"secret_key\":\"x\"}}}");
        assert!(matches!(Remotes::load(&disk), Err(StoreError::Corrupt(_))));
    }

    #[test]
    fn cursors_are_kept_for_each_remote() {
        let disk = SimDisk::new(1);
        let cursor = Cursor { url: "file:///x".into(), seq: 3, id: "ab".repeat(32), unsent: None };
        assert_eq!(load_cursor(&disk, "a").unwrap(), None);
        // As many names as there may be can be read again.
        let name = |n: usize| format!("packs/ab/{}", blake3::hash(&n.to_le_bytes()).to_hex());
        let full = Cursor { unsent: Some((0..UNSENT_MAX).map(name).collect()), ..cursor.clone() };
        for cursor in [full, cursor] {
            store_cursor(&disk, "a", &cursor).unwrap();
            assert_eq!(
                (load_cursor(&disk, "a").unwrap(), load_cursor(&disk, "b").unwrap()),
                (Some(cursor), None)
            );
        }
        forget_cursor(&disk, "a").unwrap();
        forget_cursor(&disk, "a").unwrap();
        assert_eq!(load_cursor(&disk, "a").unwrap(), None);
    }

    #[test]
    fn one_process_ships_at_a_time_and_says_who_it_is() {
        let disk = SimDisk::new(1);
        let lock = lock_remote(&disk, "a", "the first").unwrap();
        assert_eq!(lock.previous, "");
        match lock_remote(&disk, "a", "the second") {
            Err(ShipError::Busy(holder)) => assert_eq!(holder, "the first"),
            other => panic!("{other:?}"),
        }
        lock_remote(&disk, "b", "the second").unwrap();
        drop(lock);
        assert_eq!(lock_remote(&disk, "a", "the third").unwrap().previous, "the first");
    }

    #[test]
    fn names_are_plain() {
        assert!(["a", "offsite", "s3-2", &"x".repeat(64)].into_iter().all(is_name));
        assert!(!["", "-a", "A", "a/b", "..", "a b", &"x".repeat(65)].into_iter().any(is_name));
    }
}
