//! Verifying what a remote has: that each object's bytes are what its name says.
//!
//! Where the endpoint keeps a SHA-256 of what it stores, that is asked for and compared with the file here: one small
//! request for each object, and nothing comes back over the wire. Where it keeps none, or where the file is no longer here,
//! the object is read, and its name is what it is compared with.
//!
//! Names go in order, and how far it came is remembered: a verification that was interrupted goes on there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::disk::{Disk, OpenMode};
use crate::format::chain::{CHAIN_FILE_LEN_MAX, id_of, parse_name};
use crate::format::pack::{pack_path, parse_pack_path};
use crate::format::{PackName, SnapshotId};
use crate::remote::{Checksum, ErrorKind, Key, PIECE, Remote, RemoteError};
use crate::snapshot::chain::Chain;
use crate::store::error::StoreError;

use super::damaged::Damaged;
use super::error::{Result, ShipError};
use super::settings::{Position, load_position, store_position};
use super::strangers::Judged;
use super::there::{Place, There};
use super::{Progress, Vault};

/// How far it is gets remembered after so many objects,
const REMEMBER_OBJECTS: usize = 500;
/// or after so many bytes that were read.
const REMEMBER_BYTES: u64 = 256 << 20;
/// Bytes that are asked for at a time.
const STEP: u64 = 8 * PIECE as u64;
/// An object that seems to be wrong is looked at so often: a bit may have turned on the way.
const LOOKS: u32 = 2;
/// Names of wrong objects that are told, and remembered: far less than what a file here may have.
const WRONG_MAX: usize = 1000;

/// What came of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Objects that were looked at.
    pub objects: u64,
    /// Of those, the ones whose checksum the endpoint keeps.
    pub by_checksum: u64,
    /// The ones that were read.
    pub by_reading: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// It went on where one was interrupted.
    pub resumed: bool,
    /// Objects there that are not what they should be: name and what is wrong. The first 1,000 that were found.
    pub wrong: Vec<String>,
    /// How many there are.
    pub wrong_total: u64,
    /// Packs here that are damaged. Those there were compared with their names.
    pub damaged_here: Vec<String>,
}

/// An object that is to be looked at.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Pack { name: PackName, len: u64, here: bool },
    File { path: String, id: SnapshotId, len: u64, here: bool },
}

impl Item {
    fn path(&self) -> String {
        match self {
            Self::Pack { name, .. } => pack_path(name),
            Self::File { path, .. } => path.clone(),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Pack { len, .. } | Self::File { len, .. } => *len,
        }
    }

    fn is_here(&self) -> bool {
        match self {
            Self::Pack { here, .. } | Self::File { here, .. } => *here,
        }
    }
}

/// How an object was found to be.
enum Finding {
    Checksum { good: bool },
    Read { good: bool, bytes: u64 },
    Gone,
}

struct Work {
    next: usize,
    /// Everything before this one was looked at.
    frontier: usize,
    /// What was looked at beyond it.
    beyond: BTreeSet<usize>,
    verified: Verified,
    /// So many objects were found to be wrong before, and come first. Until all were looked at nothing new is remembered.
    again: usize,
    /// How many were found to be wrong before, and are not among those.
    wrong_before: u64,
    /// Of those before the frontier, how many are wrong; and which ones are beyond it.
    wrong_passed: u64,
    wrong_beyond: BTreeSet<usize>,
    remembered: (usize, u64),
    error: Option<ShipError>,
}

struct Shared<'a> {
    /// Shipments are told what was found.
    damaged: &'a Damaged,
    disk: &'a dyn Disk,
    remote: &'a dyn Remote,
    name: &'a str,
    items: &'a [Item],
    work: Mutex<Work>,
    bytes: AtomicU64,
    bytes_total: u64,
}

impl Shared<'_> {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at everything that a remote has of this vault: packs and chain files. (The header's copies are compared whenever
/// something is shipped.) `name`: of the remote, under which it is remembered how far this came. What was found until a
/// failure is in `verified` all the same, and kept for the next one.
///
/// # Errors
/// See [`ShipError`].
pub fn verify_into(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    name: &str,
    jobs: usize,
    progress: &(dyn Fn(Progress) + Sync),
    verified: &mut Verified,
) -> Result<()> {
    *verified = Verified::default();
    let Vault { header: parsed, chain, .. } = Vault::load(disk.as_ref())?;
    let here = crate::snapshot::open::list_packs(disk.as_ref())?;
    let at = Place { disk: disk.as_ref(), remote: remote.as_ref(), header: &parsed.header, chain: &chain };
    let mut judged = Judged::load(disk.as_ref(), remote.as_ref());
    let damaged = Damaged::load(disk.as_ref(), remote.as_ref())?;
    let mut there = There::list(&at, &here, None, &judged)?;
    there.set_damaged(&damaged.names());
    let checked = there.check(&at, &here, None, &mut judged);
    judged.save(disk.as_ref());
    checked?;
    let mut items = list_items(&there, &here, &chain);
    let (url, place) = (remote.url(), place_of(remote.as_ref()));
    let before = load_position(disk.as_ref(), name)?;
    let mut again = 0;
    if let Some(position) = before.filter(|position| position.url == url && position.place == place) {
        // What was wrong is looked at again: it may have been healed.
        let wrong: BTreeSet<&str> = position.wrong.iter().map(|text| path_in(text)).collect();
        items.retain(|item| {
            let path = item.path();
            path > position.after || wrong.contains(path.as_str())
        });
        again = items.iter().take_while(|item| item.path() <= position.after).count();
        verified.wrong_total = position.wrong_more;
        verified.resumed = true;
    }
    let shared = Shared {
        damaged: &damaged,
        disk: disk.as_ref(),
        remote: remote.as_ref(),
        name,
        items: &items,
        bytes_total: items.iter().map(Item::len).sum(),
        bytes: AtomicU64::new(0),
        work: Mutex::new(Work {
            next: 0,
            frontier: 0,
            beyond: BTreeSet::new(),
            again,
            wrong_before: verified.wrong_total,
            wrong_passed: 0,
            wrong_beyond: BTreeSet::new(),
            verified: std::mem::take(verified),
            remembered: (0, 0),
            error: None,
        }),
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.clamp(1, 64).min(items.len()))
            .map(|_| scope.spawn(|| look_at_items(&shared, progress)))
            .collect();
        for thread in threads {
            // Whoever is not joined here lets the scope panic as well.
            if thread.join().is_err() {
                let panicked = || StoreError::Poisoned("a thread that verifies failed".into()).into();
                shared.work().error.get_or_insert_with(panicked);
            }
        }
    });
    let mut work = shared.work();
    *verified = std::mem::take(&mut work.verified);
    verified.wrong.sort();
    let saved = damaged.save(disk.as_ref());
    if let Some(error) = work.error.take() {
        if let Err(error) = saved {
            tracing::warn!(%error, "what is damaged there can't be remembered");
        }
        return Err(error);
    }
    saved?;
    Ok(store_position(disk.as_ref(), name, None)?)
}

/// What tells a place from others of the same URL.
fn place_of(remote: &dyn Remote) -> Option<String> {
    Some(remote.place()).filter(|place| *place != remote.url())
}

/// The name that what is wrong begins with.
fn path_in(text: &str) -> &str {
    text.split(':').next().unwrap_or(text)
}

/// One object of a listing; `None` when it is not there.
pub(super) fn item(name: &str, there: &There, here: &BTreeMap<PackName, u64>, chain: &Chain) -> Option<Item> {
    if let Some(pack) = parse_pack_path(name) {
        let len = *there.packs.get(&pack)?;
        return Some(Item::Pack { name: pack, len, here: here.contains_key(&pack) });
    }
    let (seq, id) = name.strip_prefix("snapshots/").and_then(parse_name)?;
    let len = *there.files.get(&(seq, id))?;
    Some(Item::File { path: name.to_string(), id, len, here: chain.contains(seq, &id) })
}

/// Whether the bytes of one object are what they should be, and how many had to be read for that.
pub(super) fn is_sound(disk: &dyn Disk, remote: &dyn Remote, item: &Item) -> Result<(bool, u64)> {
    match look_at(disk, remote, item)?.0 {
        Finding::Checksum { good } => Ok((good, 0)),
        Finding::Read { good, bytes } => Ok((good, bytes)),
        Finding::Gone => Ok((false, 0)),
    }
}

/// Everything there, in order of names.
fn list_items(there: &There, here: &BTreeMap<PackName, u64>, chain: &Chain) -> Vec<Item> {
    let packs = there.packs.iter().map(|(name, len)| Item::Pack {
        name: *name,
        len: *len,
        here: here.contains_key(name),
    });
    let files = there.files.iter().map(|((seq, id), len)| Item::File {
        path: format!("snapshots/{}", crate::format::chain::name(*seq, id)),
        id: *id,
        len: *len,
        here: chain.get(*seq).is_some_and(|info| info.id == *id),
    });
    let mut items: Vec<Item> = packs.chain(files).collect();
    items.sort_by_cached_key(Item::path);
    items
}

/// One thread: takes objects until there are none, or something failed.
fn look_at_items(shared: &Shared<'_>, progress: &(dyn Fn(Progress) + Sync)) {
    loop {
        let at = {
            let mut work = shared.work();
            if work.error.is_some() || work.next >= shared.items.len() {
                return;
            }
            work.next += 1;
            work.next - 1
        };
        let item = &shared.items[at];
        let found = look_at(shared.disk, shared.remote, item);
        let bytes = shared.bytes.fetch_add(item.len(), Ordering::Relaxed) + item.len();
        let mut work = shared.work();
        match found {
            Ok((finding, damaged_here)) => {
                if let Finding::Checksum { good } | Finding::Read { good, .. } = finding {
                    shared.damaged.note(&item.path(), !good);
                }
                if note(&mut work.verified, item, &finding, damaged_here) {
                    work.wrong_beyond.insert(at);
                }
            }
            Err(error) => {
                work.error.get_or_insert(error);
                return;
            }
        }
        work.beyond.insert(at);
        while let frontier = work.frontier
            && work.beyond.remove(&frontier)
        {
            work.wrong_passed += u64::from(work.wrong_beyond.remove(&frontier));
            work.frontier += 1;
        }
        remember(shared, &mut work);
        progress(Progress {
            bytes,
            bytes_total: shared.bytes_total,
            objects: work.verified.objects,
            objects_total: shared.items.len() as u64,
        });
    }
}

/// Notes what an object was found to be, and tells whether it is wrong.
fn note(verified: &mut Verified, item: &Item, finding: &Finding, damaged_here: bool) -> bool {
    verified.objects += 1;
    let what = match finding {
        Finding::Checksum { good } => {
            verified.by_checksum += 1;
            (!good).then_some("other bytes than were shipped, by the checksum that the endpoint keeps")
        }
        Finding::Read { good, bytes } => {
            verified.by_reading += 1;
            verified.bytes_read += bytes;
            (!good).then_some("other bytes than its name says")
        }
        Finding::Gone => Some("it was listed, and is not there"),
    };
    if let Some(what) = what {
        verified.wrong_total += 1;
        if verified.wrong.len() < WRONG_MAX {
            verified.wrong.push(format!("{}: {what}", item.path()));
        }
    }
    if damaged_here {
        verified.damaged_here.push(format!("{} is damaged", item.path()));
    }
    what.is_some()
}

/// Remembers how far it is, now and then.
fn remember(shared: &Shared<'_>, work: &mut Work) {
    let Some(last) = work.frontier.checked_sub(1) else { return };
    let (objects, bytes) = work.remembered;
    if work.frontier <= work.again {
        return;
    }
    if work.frontier - objects < REMEMBER_OBJECTS && work.verified.bytes_read - bytes < REMEMBER_BYTES {
        return;
    }
    work.remembered = (work.frontier, work.verified.bytes_read);
    let after = shared.items[last].path();
    let passed = work.verified.wrong.iter().filter(|text| path_in(text) <= after.as_str());
    let wrong: Vec<String> = passed.cloned().collect();
    let position = Position {
        place: place_of(shared.remote),
        url: shared.remote.url(),
        after,
        wrong_more: (work.wrong_before + work.wrong_passed).saturating_sub(wrong.len() as u64),
        wrong,
    };
    let stored = shared.damaged.save(shared.disk);
    if let Err(error) = stored.and_then(|()| store_position(shared.disk, shared.name, Some(&position))) {
        // Then an interruption costs more.
        tracing::warn!(%error, "how far the verification is can't be remembered");
    }
}

/// Looks at one object; tells as well whether the file here is damaged.
fn look_at(disk: &dyn Disk, remote: &dyn Remote, item: &Item) -> Result<(Finding, bool)> {
    let path = item.path();
    let key = Key::new(&path)
        .ok_or_else(|| ShipError::from(StoreError::Corrupt(format!("{path} is no name of an object"))))?;
    let gone = |e: RemoteError| match e.kind {
        ErrorKind::NotFound => Ok((Finding::Gone, false)),
        _ => Err(e.into()),
    };
    let meta = match remote.head(&key) {
        Ok(meta) => meta,
        Err(e) => return gone(e),
    };
    let mut damaged_here = false;
    if let (Some(kept), true) = (meta.checksum, item.is_here()) {
        match checksum_here(disk, item)? {
            Here::Good(checksum) => {
                let good = kept == checksum && meta.len == item.len();
                return Ok((Finding::Checksum { good }, false));
            }
            Here::Damaged => damaged_here = true,
            // Collected since it was listed.
            Here::Gone => {}
        }
    }
    let mut bytes = 0;
    for _ in 0..LOOKS {
        match read_and_compare(remote, &key, item, &mut bytes) {
            Ok(true) => return Ok((Finding::Read { good: true, bytes }, damaged_here)),
            Ok(false) => {}
            // Shorter than it was listed.
            Err(e) if e.kind == ErrorKind::Corrupt => {}
            Err(e) => return gone(e),
        }
    }
    Ok((Finding::Read { good: false, bytes }, damaged_here))
}

/// Reads an object, and tells whether its bytes are what its name says.
fn read_and_compare(
    remote: &dyn Remote,
    key: &Key,
    item: &Item,
    bytes: &mut u64,
) -> crate::remote::Result<bool> {
    match item {
        Item::Pack { name, len, .. } => {
            let mut hasher = blake3::Hasher::new();
            let mut off = 0;
            while off < *len {
                let end = (*len).min(off + STEP);
                hasher.update(&remote.get(key, off..end)?);
                *bytes += end - off;
                off = end;
            }
            // FORMAT LAY-1
            Ok(hasher.finalize().as_bytes() == name.as_bytes())
        }
        Item::File { id, len, .. } => {
            let whole = remote.get(key, 0..(*len).min(CHAIN_FILE_LEN_MAX as u64))?;
            *bytes += whole.len() as u64;
            Ok(id_of(&whole) == *id)
        }
    }
}

/// What a file here is.
enum Here {
    Good(Checksum),
    Damaged,
    Gone,
}

fn checksum_here(disk: &dyn Disk, item: &Item) -> Result<Here> {
    let path = item.path();
    let failed = |e: std::io::Error| ShipError::from(StoreError::io(format!("reading {path}"), e));
    match item {
        Item::Pack { name, .. } => {
            let file = match disk.open(&path, OpenMode::Read) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Here::Gone),
                Err(e) => return Err(failed(e)),
            };
            match super::send::hash_pack(&file, item.len(), name).map_err(failed)? {
                Some(checksum) => Ok(Here::Good(checksum)),
                None => Ok(Here::Damaged),
            }
        }
        Item::File { id, .. } => match disk.read_file(&path, CHAIN_FILE_LEN_MAX as u64) {
            Ok(bytes) if id_of(&bytes) == *id => Ok(Here::Good(Checksum::of(&bytes))),
            Ok(_) => Ok(Here::Damaged),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Here::Gone),
            Err(e) => Err(failed(e)),
        },
    }
}
