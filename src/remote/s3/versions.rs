//! Reading by version, where objects are locked: nothing that somebody puts over an object, and no delete marker, hides
//! what is under it.
//!
//! Which version of a name is ours?
//!
//! *Packs and chain files* are put once and never again, and names are hashes of what is in them. So the oldest version is
//! ours: whatever came later was put by somebody else. Nobody can delete the oldest one while it is retained. (Who knows a
//! pack before it is shipped can put something under its name first. Then ours is refused, which is an alarm, or it has
//! another length, which is one as well. `ship --verify` finds the rest.)
//!
//! *The header's copies* change with the keys, so they may rightly have several versions, and what counts is their
//! generation, not their age. Without a key a forged header can't be told from a true one, so all that is left is to make
//! forging hard to get away with:
//! - The oldest one that can be read says which vault this is: it was the first thing put here, and it is retained. Others
//!   must have its vault id and its signing key. Rubbish and other vaults' headers never count.
//! - The highest generation counts. Of two of the same generation the older one does: an honest vault makes one of each.
//! - So what is left to somebody who may write here is a forged header of a higher generation, with key slots that open
//!   nothing. It is not a secret: the next ship sees that the newest version is not its own, and says so. It is not the
//!   end of the vault either: [`Remote::all_versions`](super::super::Remote::all_versions) gives them in this order, and with
//!   a passphrase or a recovery key the header's MAC tells which one is true.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;

use super::super::lock::{Findings, Retention, Version, Versions};
use super::super::{Checksum, ErrorKind, Key, Listed, Page, RemoteError, Result, Source, conflict};
use super::errors::classify;
use super::{If, Object, PAGE, S3Remote};
use crate::format::Header;
use crate::format::header::{HEADER_LEN_MAX, HEADER_PATH};

/// Pages that are read without coming to the end of a name that has a version: 2^26 versions or delete markers. They take
/// time, and no memory.
const PAGES_MAX: usize = 1 << 16;
/// Of a header's versions, so many of the oldest and so many of the newest are looked into, ...
const HEADERS_MAX: usize = 64;
/// ... and so many by who has a key, who can tell which are true: whoever may put headers must not be able to hide the newest
/// true one between others.
const HEADERS_MANY: usize = 1024;
/// They are looked into until so many of their bytes were read: 128 of the longest headers.
const HEADERS_BYTES_MAX: u64 = 128 * HEADER_LEN_MAX as u64;
/// Each of so many is read by one thread, ...
const READS_EACH: usize = 8;
/// ... but by no more threads than this.
const READERS_MAX: usize = 16;
/// The name of the only version that an object has where none are kept.
const NO_VERSIONS: &str = "null";
/// The longest name of a version.
const ID_LEN_MAX: usize = 1024;
/// What is remembered of versions takes at most this much memory. Others are looked up when they are read.
const MEMORY_MAX: usize = 128 << 20;
/// What an entry takes beside its texts.
const ENTRY: usize = 128;
/// Bytes of headers that are remembered, in all: a version never changes.
const BODIES_MAX: usize = 32 << 20;
/// What `remote test` writes is no part of a vault.
const TEST_NAMES: &str = "strongroom-test";

/// Whether an object may rightly have several versions.
pub(super) fn may_change(name: &str) -> bool {
    matches!(name, "vault.json" | "vault.json.bak")
}

/// One version in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct One {
    pub(super) id: String,
    pub(super) len: u64,
    pub(super) etag: String,
    pub(super) latest: bool,
}

/// A version and its bytes.
type Body = (One, Arc<Vec<u8>>);

/// What a listing has of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The first versions that were listed: the newest ones, newest first.
    newest: Vec<One>,
    /// The last ones: the oldest, oldest last.
    oldest: VecDeque<One>,
    /// The latest version is a delete marker.
    hidden: bool,
    /// There are versions that differ from each other.
    changed: bool,
    /// How many there are.
    count: u64,
}

impl Seen {
    fn push(&mut self, one: One, keep: usize) {
        self.count += 1;
        if self.newest.first().is_some_and(|first| (first.len, &first.etag) != (one.len, &one.etag)) {
            self.changed = true;
        }
        if self.newest.len() < keep {
            self.newest.push(one.clone());
        }
        if self.oldest.len() >= keep {
            self.oldest.pop_front();
        }
        self.oldest.push_back(one);
    }

    fn merge(&mut self, later: Self, keep: usize) {
        self.hidden |= later.hidden;
        self.changed |= later.changed;
        let count = self.count + later.count;
        // In order of the listing; what `later` has dropped lies between its newest and its oldest.
        let ids: HashSet<String> = later.newest.iter().map(|one| one.id.clone()).collect();
        let rest = later.oldest.into_iter().filter(|one| !ids.contains(&one.id)).collect::<Vec<_>>();
        for one in later.newest.into_iter().chain(rest) {
            self.push(one, keep);
        }
        self.count = count;
    }

    fn first(&self) -> Option<&One> {
        self.oldest.back()
    }

    /// What is known of the versions, oldest first.
    fn oldest_first(&self) -> Vec<One> {
        let mut all: Vec<One> = self.oldest.iter().rev().cloned().collect();
        let known: HashSet<&str> = self.oldest.iter().map(|one| one.id.as_str()).collect();
        all.extend(self.newest.iter().rev().filter(|one| !known.contains(one.id.as_str())).cloned());
        all
    }
}

/// The version of a name that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ours {
    pub(super) id: String,
    pub(super) len: u64,
    /// What this process had set.
    pub(super) retention: Option<Retention>,
}

#[derive(Debug, Default)]
struct State {
    ours: HashMap<String, Ours>,
    memory: usize,
    /// Of packs, of snapshots, and of all else.
    findings: [Findings; 3],
    /// By names and ids of versions; and these in the order in which they came, with what they take together.
    bodies: HashMap<(String, String), Arc<Vec<u8>>>,
    bodies_order: VecDeque<(String, String)>,
    bodies_len: usize,
}

/// What is known of versions. Bounded.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<State>);

fn area(name: &str) -> usize {
    match name.split_once('/') {
        Some(("packs", _)) => 0,
        Some(("snapshots", _)) => 1,
        _ => 2,
    }
}

impl Known {
    fn state(&self) -> MutexGuard<'_, State> {
        // Valid after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Ours> {
        self.state().ours.get(key.as_str()).cloned()
    }

    pub(super) fn forget(&self, key: &Key) {
        let mut state = self.state();
        if let Some(ours) = state.ours.remove(key.as_str()) {
            state.memory -= cost(key.as_str(), &ours.id);
        }
    }

    /// Remembers what this process put, or found. What it had set before stays known.
    pub(super) fn remember(&self, name: &str, id: &str, len: u64, retention: Option<Retention>) {
        let mut state = self.state();
        let was = state.ours.get(name).cloned();
        let before = was.as_ref().map_or(0, |was| cost(name, &was.id));
        if state.memory - before + cost(name, id) > MEMORY_MAX {
            return;
        }
        let kept = was.filter(|was| was.id == id).and_then(|was| was.retention);
        state.memory = state.memory - before + cost(name, id);
        let ours = Ours { id: id.to_string(), len, retention: retention.or(kept) };
        state.ours.insert(name.to_string(), ours);
    }

    fn begin(&self, prefix: &str) {
        let mut state = self.state();
        match prefix {
            "" => state.findings = Default::default(),
            "packs/" => state.findings[0] = Findings::default(),
            "snapshots/" => state.findings[1] = Findings::default(),
            _ => {}
        }
    }

    fn note(&self, name: &str, hidden: bool, overwritten: bool) {
        if name.starts_with(TEST_NAMES) {
            return;
        }
        let findings = &mut self.state().findings[area(name)];
        // What was so before may have been cleared away.
        findings.hidden.remove(name);
        findings.overwritten.remove(name);
        if hidden {
            findings.hidden.insert(name);
        }
        if overwritten {
            findings.overwritten.insert(name);
        }
    }

    pub(super) fn findings(&self) -> Findings {
        let mut all = Findings::default();
        for findings in &self.state().findings {
            all.add(findings);
        }
        all
    }

    /// The bytes of a version. Two objects may have versions of one id: where versions were not kept from the beginning, all
    /// that was put before has the same.
    fn body(&self, key: &Key, id: &str) -> Option<Arc<Vec<u8>>> {
        let place = (key.as_str().to_string(), id.to_string());
        self.state().bodies.get(&place).map(Arc::clone)
    }

    fn keep_body(&self, key: &Key, id: &str, bytes: &Arc<Vec<u8>>) {
        // What has this id may be replaced, and has it still.
        if id == NO_VERSIONS {
            return;
        }
        let place = (key.as_str().to_string(), id.to_string());
        let mut state = self.state();
        if state.bodies.insert(place.clone(), Arc::clone(bytes)).is_some() {
            // Two that asked at once.
            return;
        }
        state.bodies_len += bytes.len() + ENTRY;
        state.bodies_order.push_back(place);
        while state.bodies_len > BODIES_MAX {
            let Some(oldest) = state.bodies_order.pop_front() else { return };
            if let Some(bytes) = state.bodies.remove(&oldest) {
                state.bodies_len -= bytes.len() + ENTRY;
            }
        }
    }
}

fn cost(name: &str, id: &str) -> usize {
    name.len() + id.len() + ENTRY
}

fn hostile(what: &str, text: &str) -> RemoteError {
    RemoteError::new(ErrorKind::Corrupt, format!("{what}: {text}"))
}

/// Puts a header's versions, oldest first, into the order in which they count; with each whether it may be ours.
fn rank(versions: Vec<Body>) -> Vec<(One, Arc<Vec<u8>>, bool)> {
    let parsed: Vec<Option<Header>> =
        versions.iter().map(|(_, bytes)| Header::parse(bytes).ok().map(|parsed| parsed.header)).collect();
    let first = parsed.iter().flatten().next().map(|header| (header.vault_id, header.signing_key));
    let generation = |header: &Option<Header>| match (header, &first) {
        (Some(header), Some(first)) if (header.vault_id, header.signing_key) == *first => {
            Some(header.generation)
        }
        _ => None,
    };
    let mut ranked: Vec<_> = parsed.iter().map(generation).zip(versions).collect();
    // Stable: of the same generation the older one.
    ranked.sort_by_key(|(generation, _)| Reverse(*generation));
    let mut last: Option<(u64, Arc<Vec<u8>>)> = None;
    let mut out = Vec::new();
    for (generation, (one, bytes)) in ranked {
        let twin = last.as_ref().is_some_and(|(was, theirs)| generation == Some(*was) && **theirs != *bytes);
        if let (Some(generation), false) = (generation, twin) {
            last = Some((generation, Arc::clone(&bytes)));
        }
        out.push((one, bytes, generation.is_some() && !twin));
    }
    out
}

/// Of what was listed, oldest first, so much as has no more than so many bytes, from both ends; and how many are left out.
fn within_bytes(all: Vec<One>, bytes_max: u64) -> (Vec<One>, u64) {
    let mut left = bytes_max;
    let mut takes = |one: &One| {
        let fits = one.len <= left;
        left = left.saturating_sub(one.len);
        fits
    };
    let (mut first, mut last) = (0, all.len());
    while first < last && takes(&all[first]) {
        first += 1;
        if first < last && takes(&all[last - 1]) {
            last -= 1;
        } else {
            break;
        }
    }
    let keep = |at: usize| at < first || at >= last;
    let wanted = all.into_iter().enumerate().filter(|(at, _)| keep(*at)).map(|(_, one)| one).collect();
    (wanted, (last - first) as u64)
}

/// What a header's versions are.
struct Found {
    /// In the order in which they count.
    ranked: Vec<Body>,
    /// What those see who don't ask for versions.
    latest: Option<One>,
    /// How many were not looked into.
    left_out: u64,
}

impl S3Remote {
    fn ask_versions(
        &self,
        what: &str,
        prefix: &str,
        at: &(Option<String>, Option<String>),
        max_keys: i32,
    ) -> Result<ListObjectVersionsOutput> {
        let call = async {
            self.client
                .list_object_versions()
                .bucket(&self.bucket)
                .prefix(prefix)
                .set_key_marker(at.0.clone())
                .set_version_id_marker(at.1.clone())
                .max_keys(max_keys)
                .send()
                .await
        };
        self.wait(what, 0, call, |e| classify(what, e))
    }

    /// Names that begin with `prefix`, from the first one after `after`, with all their versions; at least one, if there
    /// is one. Tells whether there are more. Names of which only delete markers are left are left out: nothing is hidden.
    fn scan(
        &self,
        prefix: &str,
        after: &str,
        keep: usize,
        max_keys: i32,
    ) -> Result<(Vec<(String, Seen)>, bool)> {
        let what = format!("listing {prefix:?}");
        let mut at = ((!after.is_empty()).then(|| format!("{}{after}", self.prefix)), None);
        let mut open: Option<(String, Seen)> = None;
        let mut done = Vec::new();
        for page in 0..PAGES_MAX {
            let max_keys = if page == 0 { max_keys } else { PAGE };
            let answer = self.ask_versions(&what, &format!("{}{prefix}", self.prefix), &at, max_keys)?;
            for (name, part) in self.by_name(&what, &answer, keep)? {
                if name.as_str() <= after {
                    continue;
                }
                match &mut open {
                    Some((last, seen)) if *last == name => seen.merge(part, keep),
                    Some((last, _)) if *last > name => {
                        return Err(hostile(&what, "names that are not in order"));
                    }
                    _ => done.extend(open.replace((name, part)).filter(|(_, seen)| seen.first().is_some())),
                }
            }
            if !answer.is_truncated().unwrap_or(false) {
                done.extend(open.filter(|(_, seen)| seen.first().is_some()));
                return Ok((done, false));
            }
            // The last name may go on in the next page. It is begun anew then.
            if !done.is_empty() {
                return Ok((done, true));
            }
            let next = (
                answer.next_key_marker().map(String::from),
                answer.next_version_id_marker().map(String::from),
            );
            if next.0.is_none() || next == at {
                return Err(hostile(&what, "a page that says there is more, but not where"));
            }
            at = next;
        }
        Err(hostile(&what, "more versions and delete markers than any vault has"))
    }

    /// One page, by names.
    fn by_name(
        &self,
        what: &str,
        answer: &ListObjectVersionsOutput,
        keep: usize,
    ) -> Result<BTreeMap<String, Seen>> {
        let ours = |name: Option<&str>| {
            name.and_then(|name| name.strip_prefix(self.prefix.as_str())).map(String::from)
        };
        let mut found: BTreeMap<String, Seen> = BTreeMap::new();
        for version in answer.versions() {
            let len = version.size().and_then(|len| u64::try_from(len).ok());
            let (Some(name), Some(len), Some(id)) = (ours(version.key()), len, version.version_id()) else {
                return Err(hostile(what, "a version without name, size or id"));
            };
            if id.len() > ID_LEN_MAX {
                return Err(hostile(what, "an endless id of a version"));
            }
            let etag = version.e_tag().unwrap_or_default().to_string();
            let latest = version.is_latest().unwrap_or(false);
            found.entry(name).or_default().push(One { id: id.to_string(), len, etag, latest }, keep);
        }
        for marker in answer.delete_markers() {
            let Some(name) = ours(marker.key()) else {
                return Err(hostile(what, "a delete marker without a name"));
            };
            found.entry(name).or_default().hidden |= marker.is_latest().unwrap_or(false);
        }
        Ok(found)
    }

    /// Notes what a listing has of a name that never changes, and returns the version that is ours.
    fn take(&self, name: &str, seen: &Seen) -> Option<One> {
        let ours = seen.first()?.clone();
        self.known.note(name, seen.hidden, seen.changed);
        self.known.remember(name, &ours.id, ours.len, None);
        Some(ours)
    }

    /// [`Remote::list_page`](super::super::Remote::list_page), by versions.
    pub(super) fn list_versions_page(&self, prefix: &str, after: &str) -> Result<Page> {
        if after.is_empty() {
            self.known.begin(prefix);
        }
        let (found, more) = self.scan(prefix, after, 1, PAGE)?;
        let mut page = Page { items: Vec::new(), more };
        for (name, seen) in found {
            let len = match may_change(&name) {
                // Which one counts is found out when it is read.
                true => seen.newest.first().map(|one| one.len),
                false => self.take(&name, &seen).map(|one| one.len),
            };
            page.items.extend(len.map(|len| Listed { name, len }));
        }
        Ok(page)
    }

    /// All versions of one name.
    fn scan_one(&self, key: &Key, keep: usize, max_keys: i32) -> Result<Option<Seen>> {
        let (found, _) = self.scan(key.as_str(), "", keep, max_keys)?;
        Ok(found.into_iter().next().filter(|(name, _)| name == key.as_str()).map(|(_, seen)| seen))
    }

    /// The version that is read.
    pub(super) fn ours(&self, key: &Key) -> Result<Ours> {
        if let Some(known) = self.known.get(key) {
            return Ok(known);
        }
        let missing = || RemoteError::new(ErrorKind::NotFound, format!("{key}: no such object"));
        let one = if may_change(key.as_str()) {
            let seen = self.scan_one(key, 2, PAGE)?.ok_or_else(missing)?;
            match seen.oldest.len() {
                // Nothing to choose from.
                1 => seen.first().cloned(),
                _ => self.header_versions(key, u64::MAX)?.0.into_iter().next().map(|(one, _)| one),
            }
            .ok_or_else(missing)?
        } else {
            // Few: other names that begin with this one are not asked for.
            let seen = self.scan_one(key, 1, 10)?.ok_or_else(missing)?;
            self.take(key.as_str(), &seen).ok_or_else(missing)?
        };
        self.known.remember(key.as_str(), &one.id, one.len, None);
        Ok(Ours { id: one.id, len: one.len, retention: None })
    }

    /// Whether objects are read by version. Where nothing is locked it is tried out once: not every endpoint knows versions,
    /// and not all credentials may read them.
    pub(super) fn is_by_version(&self) -> Result<bool> {
        if self.lock.is_some() || !self.try_versions {
            return Ok(self.lock.is_some());
        }
        if let Some(known) = self.versions.get() {
            return Ok(*known);
        }
        let can = match self.try_version() {
            Err(e) if matches!(e.kind, ErrorKind::Denied | ErrorKind::Unsupported) => {
                tracing::warn!(url = %self.url, error = %e, "objects can't be read by version here");
                // Many endpoints know no versions at all.
                if e.kind == ErrorKind::Denied {
                    self.unversioned.get_or_init(|| e.to_string());
                }
                false
            }
            tried => tried?,
        };
        Ok(*self.versions.get_or_init(|| can))
    }

    /// Looks at a version of the header: it was put first, so nobody else can have put its oldest version. Where there is no
    /// header, of some object; what is empty will do.
    fn try_version(&self) -> Result<bool> {
        // The name of its copy begins with its own.
        let mut headers = self.scan(HEADER_PATH, "", 1, PAGE)?.0;
        headers.retain(|(name, _)| may_change(name));
        match headers.is_empty() {
            true => self.try_version_of(self.scan("", "", 1, 10)?.0),
            false => self.try_version_of(headers),
        }
    }

    /// Looks at the oldest versions of these objects.
    fn try_version_of(&self, objects: Vec<(String, Seen)>) -> Result<bool> {
        let mut odd = None;
        for (name, seen) in objects {
            let Some((key, one)) = Key::new(&name).zip(seen.first()) else { continue };
            match self.head_version(&key, Some(&one.id)) {
                Ok(_) => return Ok(true),
                // A bucket that keeps no versions calls what it has so. Not every endpoint knows the name again.
                Err(e) if e.kind == ErrorKind::Misconfigured && one.id == NO_VERSIONS => return Ok(false),
                // Somebody may have put it there to get in the way (under another's key, say): then others tell.
                Err(e) if e.kind.may_be_one_objects() => odd = Some(odd.unwrap_or(e)),
                Err(e) => return Err(e),
            }
        }
        odd.map_or(Ok(true), Err)
    }

    /// Calls with the version that is read; once again where it is gone.
    pub(super) fn with_version<T>(&self, key: &Key, act: impl Fn(Option<&str>) -> Result<T>) -> Result<T> {
        if !self.is_by_version()? {
            return act(None);
        }
        let was_known = self.known.get(key).is_some();
        match act(Some(&self.ours(key)?.id)) {
            Err(e) if e.kind == ErrorKind::NotFound && was_known => {
                self.known.forget(key);
                act(Some(&self.ours(key)?.id))
            }
            other => other,
        }
    }

    /// A header's versions in the order in which they count, with their bytes; and what those see who don't ask for
    /// versions.
    fn header_versions(&self, key: &Key, max: u64) -> Result<(Vec<Body>, Option<One>)> {
        let Some(seen) = self.scan_one(key, HEADERS_MAX, PAGE)? else { return Ok((Vec::new(), None)) };
        let found = self.header_bodies(key, &seen, max)?;
        Ok((found.ranked, found.latest))
    }

    /// [`Self::header_versions`] of what was listed.
    fn header_bodies(&self, key: &Key, seen: &Seen, max: u64) -> Result<Found> {
        let all = seen.oldest_first();
        let latest = all.last().filter(|_| !seen.hidden).cloned();
        let mut left_out = seen.count.saturating_sub(all.len() as u64);
        let count = all.len();
        // What is longer is no header.
        let fitting = all.into_iter().filter(|one| one.len <= max.min(HEADER_LEN_MAX as u64)).collect();
        let mut odd = false;
        let (wanted, too_many) = within_bytes(fitting, HEADERS_BYTES_MAX);
        left_out += too_many;
        odd |= wanted.len() < count;
        let mut bodies = Vec::new();
        let mut unreadable = None;
        for (one, read) in self.read_headers(key, wanted) {
            match read {
                Ok(bytes) => bodies.push((one, bytes)),
                // One version that can't be read (archived, under another's key) must not hide those that can.
                Err(e) if e.kind.may_be_one_objects() => {
                    unreadable = Some(e);
                    odd = true;
                }
                Err(e) => return Err(e),
            }
        }
        if let (true, Some(error)) = (bodies.is_empty(), unreadable) {
            return Err(error);
        }
        let ranked = rank(bodies);
        odd |= ranked.iter().any(|(_, _, fits)| !fits);
        self.known.note(key.as_str(), seen.hidden, odd);
        let ranked = ranked.into_iter().map(|(one, bytes, _)| (one, bytes)).collect();
        Ok(Found { ranked, latest, left_out })
    }

    /// Reads versions of a header, in any order; few of them one after the other.
    fn read_headers(&self, key: &Key, wanted: Vec<One>) -> Vec<(One, Result<Arc<Vec<u8>>>)> {
        let read = |one: &One| match self.known.body(key, &one.id) {
            Some(bytes) => Ok(bytes),
            None => self.get_version(key, 0..one.len, Some(&one.id)).map(|bytes| {
                let bytes = Arc::new(bytes);
                self.known.keep_body(key, &one.id, &bytes);
                bytes
            }),
        };
        let threads = wanted.len().div_ceil(READS_EACH).min(READERS_MAX);
        let next = AtomicUsize::new(0);
        let done: Vec<OnceLock<Result<Arc<Vec<u8>>>>> = wanted.iter().map(|_| OnceLock::new()).collect();
        let failed = AtomicBool::new(false);
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some((one, place)) = wanted.get(n).zip(done.get(n)) else { return };
                let answer = read(one);
                if answer.as_ref().is_err_and(|e| !e.kind.may_be_one_objects()) {
                    failed.store(true, Ordering::Relaxed);
                }
                place.get_or_init(|| answer);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        // Some have no answer only if one has failed for good.
        let answers = done.into_iter().map(OnceLock::into_inner);
        wanted.into_iter().zip(answers).filter_map(|(one, answer)| Some((one, answer?))).collect()
    }

    /// [`Remote::versions`](super::super::Remote::versions), and, with `many`,
    /// [`Remote::all_versions`](super::super::Remote::all_versions).
    pub(super) fn read_versions(&self, key: &Key, max: u64, many: bool) -> Result<Versions> {
        let keep = if many { HEADERS_MANY } else { HEADERS_MAX };
        let Some(seen) = self.scan_one(key, keep, PAGE)? else { return Ok(Versions::default()) };
        let ages: HashMap<String, usize> =
            seen.oldest_first().into_iter().enumerate().map(|(age, one)| (one.id, age)).collect();
        let Found { ranked, latest, left_out } = self.header_bodies(key, &seen, max)?;
        let latest = latest.map(|one| one.id);
        let list = ranked.into_iter().map(|(one, bytes)| Version {
            latest: latest.as_deref() == Some(&one.id),
            bytes: bytes.to_vec(),
            age: ages.get(&one.id).copied().unwrap_or(ages.len()),
            id: one.id,
        });
        Ok(Versions { list: list.collect(), left_out })
    }

    /// [`Remote::replace`](super::super::Remote::replace), where nothing is lost by it: the new version lies over those that
    /// are there, whatever they are.
    pub(super) fn replace_locked(
        &self,
        key: &Key,
        was: &Checksum,
        body: &Arc<dyn Source>,
        checksum: &Checksum,
    ) -> Result<()> {
        let (ranked, latest) = self.header_versions(key, u64::MAX)?;
        match ranked.first() {
            None => return Err(RemoteError::new(ErrorKind::NotFound, format!("{key}: no such object"))),
            Some((_, bytes)) if Checksum::of(bytes) != *was => return Err(conflict(key)),
            Some(_) => {}
        }
        let retention = self.retention_now();
        let object = Object { body, checksum, retention: retention.as_ref() };
        // Who changes it in between is found out.
        let sent = match latest {
            Some(one) => self.put_over(key, &one.etag, &object)?,
            None => {
                let sent = self.send_put(key, &object, If::Absent);
                sent.map_err(|e| if e.kind == ErrorKind::Conflict { conflict(key) } else { e })?
            }
        };
        self.was_put(key, sent.answer.version_id(), body.len(), retention.as_ref())?;
        self.verify(key, &sent, &object)
    }

    /// Ids of versions of a name, oldest first; not of more than some.
    pub(super) fn some_versions(&self, key: &Key) -> Result<Vec<String>> {
        let seen = self.scan_one(key, HEADERS_MAX, PAGE)?.unwrap_or_default();
        Ok(seen.oldest_first().into_iter().map(|one| one.id).collect())
    }
}
