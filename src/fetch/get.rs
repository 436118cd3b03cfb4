//! What a clone and a pull have in common: header, chain files and packs, each checked as it arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::crypto::verify_chain_file;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::format::chain::{CHAIN_FILE_LEN_MAX, id_of, name as chain_name, parse_name};
use crate::format::pack::{PACK_LEN_MAX, pack_path, parse_pack_path};
use crate::format::{Header, PackName, SnapshotId};
use crate::remote::{self, ErrorKind, Key, Remote, RemoteError};
use crate::snapshot::chain::{Chain, ChainInfo, DIR};
use crate::snapshot::open::list_packs;
use crate::store::error::StoreError;
use crate::store::header::HEADER_PATH;

use super::error::{FetchError, Result};
use super::incoming::{Incoming, Written};

/// Bytes of a pack that are asked for at a time.
const PIECE: u64 = 8 << 20;
/// Chain files are in memory whole, so only a few of them at a time.
const CHAIN_JOBS_MAX: usize = 4;
/// The most chain files that a listing may have: one each minute for two years.
const CHAIN_FILES_MAX: usize = 1 << 20;
/// The most of them that may be longer than any chain file, and that may be missing or refused: each is named.
const DAMAGED_MAX: usize = 10_000;
/// So many files that have the name of a chain file and are none are read, and so many of their bytes.
const BAD_FILES_MAX: u64 = 64;
const BAD_BYTES_MAX: u64 = 256 << 20;
/// One refused object of so many leads to a question whether anything can be read.
const ASK_EACH: u64 = 64;
/// A pack that arrives with other bytes than its name promises may have been damaged on the way: it is fetched so often. So is
/// a chain file.
const TRIES: u32 = 2;

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of packs that have arrived.
    pub bytes: u64,
    /// Bytes of packs that are to be fetched.
    pub bytes_total: u64,
    /// Packs that have arrived.
    pub objects: u64,
    /// Packs that are to be fetched.
    pub objects_total: u64,
}

/// What was fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Packs fetched.
    pub packs: u64,
    /// Snapshot and removal files fetched.
    pub chain_files: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Packs that were here already.
    pub packs_there: u64,
    /// Snapshots of the remote.
    pub snapshots: u64,
    /// Sequence of the remote's newest chain file.
    pub newest: Option<u64>,
    /// Sequence of its newest snapshot of which everything is here.
    pub latest_complete: Option<u64>,
    /// Snapshots of which not everything is here, since it is missing or damaged at the remote.
    pub incomplete: Vec<String>,
    /// What is wrong at the remote.
    pub damaged: Vec<String>,
    /// Names at the remote that are no part of this vault.
    pub foreign: u64,
}

impl Report {
    /// Whether everything was as it should be.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.incomplete.is_empty() && self.damaged.is_empty()
    }
}

/// Runs `work` on each item, on several threads. The first error ends it.
fn in_parallel<T: Send, R: Send>(
    jobs: usize,
    items: Vec<T>,
    work: &(dyn Fn(T) -> Result<R> + Sync),
) -> Result<Vec<R>> {
    let jobs = jobs.clamp(1, 64).min(items.len());
    let todo = Mutex::new((items.into_iter(), None::<FetchError>));
    let run = || {
        let mut done = Vec::new();
        loop {
            let next = {
                let mut todo = todo.lock().unwrap_or_else(PoisonError::into_inner);
                if todo.1.is_some() { None } else { todo.0.next() }
            };
            let Some(item) = next else { return done };
            match work(item) {
                Ok(result) => done.push(result),
                Err(error) => {
                    todo.lock().unwrap_or_else(PoisonError::into_inner).1.get_or_insert(error);
                }
            }
        }
    };
    let mut results = Vec::new();
    let mut panicked = false;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            match thread.join() {
                Ok(done) => results.extend(done),
                Err(_) => panicked = true,
            }
        }
    });
    match todo.into_inner().unwrap_or_else(PoisonError::into_inner).1 {
        Some(error) => Err(error),
        None if panicked => Err(StoreError::Poisoned("a thread that fetches failed".into()).into()),
        None => Ok(results),
    }
}

/// What a fetched pack was found to be.
enum Got {
    Good(u64),
    Bad { name: String, why: String },
}

/// What is wrong with one object.
#[derive(Debug)]
enum Wrong {
    /// It is not there.
    Missing,
    /// It can't be read: archived, or under another's key.
    Refused(RemoteError),
    /// What was sent is not what was asked for. Another try may bring something else.
    Damaged(String),
    /// It has the bytes that its name promises, and they are not what it should be.
    Forged(String),
}

impl Wrong {
    fn text(&self) -> String {
        match self {
            Self::Missing => "is missing".into(),
            Self::Refused(e) => format!("can't be read: {}", e.message),
            Self::Damaged(what) | Self::Forged(what) => what.clone(),
        }
    }
}

/// What one object has, or what is wrong with it.
type OfOne<T> = std::result::Result<T, Wrong>;

/// Tells apart what is wrong with one object, and what is wrong with everything.
struct Asked<'a> {
    remote: &'a dyn Remote,
    refused: AtomicU64,
}

impl<'a> Asked<'a> {
    fn new(remote: &'a dyn Remote) -> Self {
        Self { remote, refused: AtomicU64::new(0) }
    }

    /// The answer to one request.
    fn one_object<T>(&self, answer: remote::Result<T>) -> Result<OfOne<T>> {
        match answer {
            Ok(value) => Ok(Ok(value)),
            Err(e) if e.kind == ErrorKind::NotFound => Ok(Err(Wrong::Missing)),
            Err(e) if e.kind == ErrorKind::Corrupt => {
                Ok(Err(Wrong::Damaged(format!("is damaged: {}", e.message))))
            }
            Err(e) if e.kind.may_be_one_objects() && self.answers()? => Ok(Err(Wrong::Refused(e))),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether the header is still shown, where an object was refused. That it was is believed for some refusals more: there
    /// may be a thousand objects in an archive.
    fn answers(&self) -> Result<bool> {
        let ask = self.refused.fetch_add(1, Ordering::Relaxed).is_multiple_of(ASK_EACH);
        Ok(!ask || self.remote.head(&key_of(HEADER_PATH)?).is_ok())
    }
}

fn key_of(path: &str) -> Result<Key> {
    let bad = || RemoteError::new(ErrorKind::Corrupt, format!("{path} is no name of an object"));
    Key::new(path).ok_or_else(|| bad().into())
}

/// Reads and proves the remote's chain files. Those that the vault has not are left waiting in `incoming`. `ours` is the
/// chain of the vault, if there is one.
pub(super) fn fetch_chain(
    incoming: &Incoming,
    disk: &dyn Disk,
    remote: &dyn Remote,
    header: &Header,
    ours: Option<&Chain>,
    jobs: usize,
    report: &mut Report,
) -> Result<Chain> {
    let mut listed: BTreeMap<(u64, SnapshotId), u64> = BTreeMap::new();
    remote::list(remote, "snapshots/", &mut |item| {
        let name = item.name.strip_prefix("snapshots/").and_then(parse_name);
        match name {
            Some(_) if item.len > CHAIN_FILE_LEN_MAX as u64 => {
                let shown: String = item.name.chars().take(100).collect();
                report.damaged.push(format!("{shown} has {} bytes, more than any snapshot file", item.len));
            }
            Some(file) => {
                listed.insert(file, item.len);
            }
            None => report.foreign += 1,
        }
        if listed.len() > CHAIN_FILES_MAX || report.damaged.len() > DAMAGED_MAX {
            return Err(RemoteError::new(ErrorKind::Corrupt, "snapshots/: more files than any vault has"));
        }
        Ok(())
    })?;
    let staged = incoming.staged()?;
    // What is here and was proved. A damaged file is not: it is fetched again.
    let is_here =
        |seq: u64, id: &SnapshotId| ours.and_then(|ours| ours.get(seq)).is_some_and(|info| info.id == *id);
    // What a removal removed here stays at the remote. It is not asked for each time, if the remote has that removal too.
    let has_ours = |head: &ChainInfo| listed.contains_key(&(head.seq, head.id));
    let followed = ours.filter(|ours| ours.head().is_some_and(has_ours));
    let is_removed =
        |seq: u64, id: &SnapshotId| followed.is_some_and(|ours| ours.contains(seq, id)) && !is_here(seq, id);
    let mut files: Vec<(String, String)> = Vec::new();
    let mut todo = Vec::new();
    for (&(seq, id), &len) in &listed {
        let name = chain_name(seq, &id);
        if is_removed(seq, &id) {
            continue;
        }
        if is_here(seq, &id) {
            files.push((name.clone(), format!("{DIR}/{name}")));
        } else if staged.contains(&name) {
            files.push((name.clone(), Incoming::staged_path(&name)));
        } else {
            todo.push((seq, id, name, len));
        }
    }
    let (bad_files, bad_bytes, unread) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let asked = Asked::new(remote);
    let fetched = in_parallel(jobs.min(CHAIN_JOBS_MAX), todo, &|(seq, id, name, len)| {
        let get = || -> Result<OfOne<Vec<u8>>> {
            let answer = asked.one_object(remote.get(&key_of(&format!("{DIR}/{name}"))?, 0..len))?;
            Ok(answer.and_then(|bytes| check_chain_file(header, seq, &id, &bytes).map(|()| bytes)))
        };
        let mut got = get();
        if let Ok(Err(Wrong::Damaged(_))) = got {
            got = get();
        }
        let wrong = match got? {
            Ok(bytes) => {
                stage(incoming, &name, &bytes)?;
                return Ok((name, Ok(len)));
            }
            Err(wrong) => wrong,
        };
        // What was not read takes no more than a name.
        if let Wrong::Missing | Wrong::Refused(_) = wrong {
            let count = unread.fetch_add(1, Ordering::Relaxed) + 1;
            return match wrong {
                wrong if count <= DAMAGED_MAX as u64 => Ok((name, Err(wrong))),
                Wrong::Refused(error) => Err(error.into()),
                _ => Err(FetchError::Flooded { file: name, count }),
            };
        }
        let count = bad_files.fetch_add(1, Ordering::Relaxed) + 1;
        if count > BAD_FILES_MAX || bad_bytes.fetch_add(len, Ordering::Relaxed) + len > BAD_BYTES_MAX {
            return Err(FetchError::Flooded { file: name, count });
        }
        Ok((name, Err(wrong)))
    })?;
    let mut refusal = None;
    for (name, got) in fetched {
        match got {
            Ok(len) => {
                report.chain_files += 1;
                report.bytes += len;
                files.push((name.clone(), Incoming::staged_path(&name)));
            }
            Err(wrong) => {
                tracing::debug!(name, ?wrong, "no chain file");
                report.damaged.push(format!("{DIR}/{name} {}", wrong.text()));
                if let Wrong::Refused(error) = wrong {
                    refusal.get_or_insert(error);
                }
            }
        }
    }
    // There is nothing to go on with.
    if let Some(error) = refusal.filter(|_| files.is_empty()) {
        return Err(error.into());
    }
    let chain = Chain::load_files(disk, header, files)?;
    report.damaged.extend(chain.problems().iter().map(|p| format!("{}: {}", p.file, p.what)));
    report.damaged.sort();
    report.snapshots = chain.snapshots().count() as u64;
    report.newest = chain.head().map(|info| info.seq);
    Ok(chain)
}

/// Whether bytes are those of a chain file with this sequence and id.
fn check_chain_file(header: &Header, seq: u64, id: &SnapshotId, bytes: &[u8]) -> OfOne<()> {
    // FORMAT LAY-1, SNAP-1, SNAP-4
    if id_of(bytes) != *id {
        return Err(Wrong::Damaged("has other bytes than its name promises".into()));
    }
    match verify_chain_file(header, bytes) {
        Ok(file) if file.public.seq == seq => Ok(()),
        Ok(_) => Err(Wrong::Forged("has another sequence than its name".into())),
        Err(e) => Err(Wrong::Forged(e.to_string())),
    }
}

/// Lets a chain file wait for its packs.
fn stage(incoming: &Incoming, name: &str, bytes: &[u8]) -> Result<()> {
    let path = Incoming::staged_path(name);
    incoming.write(&path, false, &mut |file| {
        file.write_all_at(bytes, 0).map_err(|e| StoreError::io(format!("writing {path}"), e))?;
        Ok(Written::Yes)
    })?;
    Ok(())
}

/// A pack that is to be fetched.
struct Wanted {
    name: PackName,
    len: u64,
    /// What stands here under its name is damaged.
    replace: bool,
}

/// Fetches the packs that the chain's snapshots need and that are not here, and says which snapshots are complete then.
pub(super) fn fetch_packs(
    incoming: &Incoming,
    disk: &dyn Disk,
    remote: &dyn Remote,
    chain: &Chain,
    jobs: usize,
    progress: &(dyn Fn(Progress) + Sync),
    report: &mut Report,
) -> Result<()> {
    let needed = chain.needed_by_snapshots();
    let mut wanted = needed.clone();
    if !chain.is_whole() {
        // Above a break it is not known what a snapshot needs. Whatever a signed file names may be what is missed one day.
        wanted.extend(chain.named());
    }
    let there = list_wanted(remote, &wanted, report)?;
    let here = list_packs(disk)?;
    let mut todo = Vec::new();
    for (name, len) in &there {
        match here.get(name) {
            Some(ours) if ours == len => report.packs_there += 1,
            // One of the two is not what its name says.
            Some(ours) if is_whole(disk, name)? => {
                report.packs_there += 1;
                report.damaged.push(format!("{} has {len} bytes, and {ours} here", pack_path(name)));
            }
            ours => todo.push(Wanted { name: *name, len: *len, replace: ours.is_some() }),
        }
    }
    report.packs_there +=
        needed.iter().filter(|n| here.contains_key(n) && !there.contains_key(n)).count() as u64;
    let total = Progress {
        bytes_total: todo.iter().fold(0, |sum: u64, pack| sum.saturating_add(pack.len)),
        objects_total: todo.len() as u64,
        ..Progress::default()
    };
    // Better than after a day of fetching.
    let space = disk.space().map_err(|e| StoreError::io("asking for free space", e))?;
    if total.bytes_total > space.available {
        return Err(StoreError::NoSpace.into());
    }
    let (bytes, objects) = (AtomicU64::new(0), AtomicU64::new(0));
    let show = || {
        progress(Progress {
            bytes: bytes.load(Ordering::Relaxed),
            objects: objects.load(Ordering::Relaxed),
            ..total
        });
    };
    show();
    let asked = Asked::new(remote);
    let fetched = in_parallel(jobs, todo, &|wanted| {
        let path = pack_path(&wanted.name);
        let got = fetch_pack(incoming, &asked, &wanted, &path, &|n| {
            bytes.fetch_add(n, Ordering::Relaxed);
            show();
        })?;
        objects.fetch_add(1, Ordering::Relaxed);
        show();
        Ok(got)
    })?;
    for got in fetched {
        match got {
            Got::Good(len) => {
                report.packs += 1;
                report.bytes += len;
            }
            Got::Bad { name, why } => report.damaged.push(format!("{name} {why}")),
        }
    }
    judge(disk, chain, &needed, report)
}

/// Lengths of the packs of a remote that are wanted; others may be any number.
fn list_wanted(
    remote: &dyn Remote,
    wanted: &BTreeSet<PackName>,
    report: &mut Report,
) -> Result<BTreeMap<PackName, u64>> {
    let mut there = BTreeMap::new();
    remote::list(remote, "packs/", &mut |item| {
        match parse_pack_path(&item.name) {
            Some(name) if wanted.contains(&name) && item.len > PACK_LEN_MAX => {
                report.damaged.push(format!("{} has {} bytes, more than any pack", item.name, item.len));
            }
            Some(name) if wanted.contains(&name) => {
                there.insert(name, item.len);
            }
            // Of a snapshot that was deleted, or of one that is not there yet.
            Some(_) => {}
            None => report.foreign += 1,
        }
        Ok(())
    })?;
    Ok(there)
}

/// Whether a pack that is here has the bytes that its name promises.
fn is_whole(disk: &dyn Disk, name: &PackName) -> Result<bool> {
    let path = pack_path(name);
    let failed = |e| StoreError::io(format!("reading {path}"), e);
    let file = disk.open(&path, OpenMode::Read).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0; 1 << 20];
    let mut off = 0;
    loop {
        match file.read_at(&mut buf, off).map_err(failed)? {
            0 => return Ok(hasher.finalize().as_bytes() == name.as_bytes()),
            n => {
                hasher.update(&buf[..n]);
                off += n as u64;
            }
        }
    }
}

fn fetch_pack(
    incoming: &Incoming,
    asked: &Asked<'_>,
    wanted: &Wanted,
    path: &str,
    arrived: &dyn Fn(u64),
) -> Result<Got> {
    let key = key_of(path)?;
    let mut why = String::new();
    let mut shown = 0;
    let mut refused = false;
    for _ in 0..TRIES {
        let mut seen = 0;
        let written = incoming.write(path, wanted.replace, &mut |file| {
            fill_pack(asked, &key, wanted, file, &mut refused, &mut |n| {
                // A second try shows only what the first one did not reach.
                seen += n;
                if seen > shown {
                    arrived(seen - shown);
                    shown = seen;
                }
            })
        })?;
        match written {
            Written::Yes => return Ok(Got::Good(wanted.len)),
            Written::No(what) => why = what,
        }
        // Unlike what arrived damaged, that has been tried again.
        if refused {
            break;
        }
    }
    Ok(Got::Bad { name: path.to_string(), why })
}

/// Writes the pieces of a pack, and compares the hash of what was written with its name. `refused`: it is not there, or can't
/// be read.
fn fill_pack(
    asked: &Asked<'_>,
    key: &Key,
    wanted: &Wanted,
    file: &dyn DiskFile,
    refused: &mut bool,
    arrived: &mut dyn FnMut(u64),
) -> Result<Written> {
    let failed = |e| StoreError::io(format!("writing {key}"), e);
    file.allocate(0, wanted.len).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    let mut off = 0;
    while off < wanted.len {
        let end = wanted.len.min(off + PIECE);
        let bytes = match asked.one_object(asked.remote.get(key, off..end))? {
            Ok(bytes) => bytes,
            Err(wrong) => {
                *refused = !matches!(wrong, Wrong::Damaged(_));
                return Ok(Written::No(wrong.text()));
            }
        };
        hasher.update(&bytes);
        file.write_all_at(&bytes, off).map_err(failed)?;
        file.start_writeback(off, end - off);
        arrived(end - off);
        off = end;
    }
    // FORMAT LAY-1
    match hasher.finalize().as_bytes() == wanted.name.as_bytes() {
        true => Ok(Written::Yes),
        false => Ok(Written::No("has other bytes than its name promises".into())),
    }
}

/// Says which snapshots are complete with what is here now.
fn judge(disk: &dyn Disk, chain: &Chain, needed: &BTreeSet<PackName>, report: &mut Report) -> Result<()> {
    let present: BTreeSet<PackName> = list_packs(disk)?.into_keys().collect();
    report.latest_complete = chain.latest(&present, None).complete.map(|info| info.seq);
    if chain.is_whole() && needed.is_subset(&present) {
        return Ok(());
    }
    for info in chain.snapshots() {
        match chain.missing_packs(info.seq, &present) {
            Ok(missing) if missing.is_empty() => {}
            Ok(missing) => {
                report.incomplete.push(format!(
                    "{}: {} of its packs are missing",
                    info.name(),
                    missing.len()
                ));
            }
            Err(e) => report.incomplete.push(format!("{}: {e}", info.name())),
        }
    }
    for name in needed.difference(&present) {
        let path = pack_path(name);
        if !report.damaged.iter().any(|text| text.starts_with(&path)) {
            report.damaged.push(format!("{path} is missing"));
        }
    }
    report.damaged.sort();
    Ok(())
}
