//! The check of a whole vault.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::bytes::{Id, hex, unhex};
use crate::chain::{self, CHAIN_FILE_BYTES_MAX, ChainKind, Sealed, name_of, parse_name};
use crate::crypto::h;
use crate::header::{self, HEADER_BYTES_MAX, Header, HeaderError};
use crate::history::{self, History, Link, PackSet};
use crate::keys::{Keys, Unlock, UnlockError, root_secret};
use crate::pack::{PACK_BYTES_MAX, Pack, Unzip, hash_file, path_of};
use crate::report::{
    Class, Fault, Finding, Report, SnapshotReport, damaged, fault, malformed, too_long, unreadable,
};
use crate::source::{DirSource, Source, read_all};
use crate::store::{Contents, Store};
use crate::walk::Walker;

/// Which snapshot is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// The newest complete one.
    Latest,
    /// The one with this sequence.
    Sequence(u64),
}

/// How far a check has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// 1 packs, 2 trees.
    pub pass: u8,
    /// Bytes or snapshots done.
    pub done: u64,
    /// Bytes or snapshots in all.
    pub total: u64,
}

/// Most entries of a snapshot that are collected for [`Report::tree`].
const TREE_ENTRIES_MAX: u64 = 10_000_000;

/// What to check.
#[derive(Clone)]
pub struct Options {
    /// Only this snapshot and the packs that it needs.
    pub snapshot: Option<Select>,
    /// Leave the data chunks out: footers and trees only.
    pub quick: bool,
    /// Threads that verify packs.
    pub jobs: usize,
    /// Findings kept; further ones are only counted.
    pub findings_max: usize,
    /// Collect the entries of the checked snapshots for [`Report::tree`].
    pub trees: bool,
    /// Files above this size are not hashed for [`Report::tree`], in bytes.
    pub hash_bytes_max: u64,
    /// A sequence and id that the chain must contain (SNAP-8).
    pub high_water: Option<(u64, Id)>,
    /// Ends the check early when it becomes true.
    pub cancel: Option<Arc<AtomicBool>>,
    /// Told of progress, from any thread.
    pub progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            snapshot: None,
            quick: false,
            jobs: 1,
            findings_max: 100_000,
            trees: false,
            hash_bytes_max: 1 << 32,
            high_water: None,
            cancel: None,
            progress: None,
        }
    }
}

impl Options {
    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(|c| c.load(Ordering::Relaxed))
    }
}

/// Why there is no report at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FatalError {
    /// No header and no folders of a vault.
    NotAVault(String),
    /// The vault is of a newer format (HDR-1).
    Newer(u64),
    /// The key does not open it.
    Unlock(UnlockError),
    /// There is no such snapshot.
    NoSnapshot(String),
    /// The storage can't be read at all, or the destination of a restore can't be written.
    Io(String),
}

impl std::fmt::Display for FatalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAVault(why) => write!(f, "not a Strongroom vault: {why}"),
            Self::Newer(v) => {
                write!(f, "the vault is of format {v}; this program reads format {}", header::FORMAT)
            }
            Self::Unlock(why) => why.fmt(f),
            Self::NoSnapshot(why) | Self::Io(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for FatalError {}

/// Checks the vault in the directory `vault`; without a key everything that needs none.
pub fn check(vault: &Path, key: Option<Unlock>, opts: &Options) -> Result<Report, FatalError> {
    check_source(&DirSource::new(vault), key, opts)
}

/// Checks a vault in any [`Source`].
pub fn check_source(source: &dyn Source, key: Option<Unlock>, opts: &Options) -> Result<Report, FatalError> {
    let mut opened = Opened::new(source, key, opts)?;
    let chosen = opened.choose(opts)?;
    let packs = opened.pack_files();
    let store = opened.packs(opts, packs, &chosen);
    if let Some(store) = store {
        opened.trees(opts, &store, &chosen);
    }
    opened.report.cancelled = opts.cancelled();
    Ok(opened.report)
}

/// A vault whose header and chain have been read.
pub(crate) struct Opened<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) header: Option<Header>,
    pub(crate) keys: Option<Keys>,
    pub(crate) history: History,
    /// Sealed parts by index in the history's links.
    sealed: BTreeMap<usize, Sealed>,
    /// Numbers of the packs that are there, and their lengths in bytes.
    present: BTreeMap<u32, u64>,
    /// Whether every chain file could be read, so that what nothing names is known to be unreferenced.
    chain_whole: bool,
    pub(crate) report: Report,
}

impl<'a> Opened<'a> {
    pub(crate) fn new(
        source: &'a dyn Source,
        key: Option<Unlock>,
        opts: &Options,
    ) -> Result<Self, FatalError> {
        let mut report = Report::new(opts.findings_max);
        report.quick = opts.quick;
        let folders = top_level(source, &mut report)?;
        let copies = read_headers(source, folders, &mut report)?;
        let (header, keys) = unlock(copies, key, &mut report)?;
        if let Some(header) = &header {
            report.vault_id = hex(&header.vault_id);
            report.generation = header.generation;
        }
        report.unlocked = keys.is_some();

        let (links, sealed, mut chain_whole) =
            read_chain(source, header.as_ref(), keys.as_ref(), &mut report);
        let mut history = history::walk(links);
        for finding in std::mem::take(&mut history.findings) {
            chain_whole &= !finding.class.is_damage();
            report.push(finding);
        }
        // The walk sorts the links; sealed parts are found again by id.
        let sealed = history
            .links
            .iter()
            .enumerate()
            .filter_map(|(n, link)| sealed.get(&link.id).map(|s| (n, s.clone())))
            .collect();
        let mut opened =
            Self { source, header, keys, history, sealed, present: BTreeMap::new(), chain_whole, report };
        opened.high_water(opts);
        opened.list_packs();
        opened.completeness();
        Ok(opened)
    }

    /// SNAP-8, as far as the caller knows a mark.
    fn high_water(&mut self, opts: &Options) {
        if let Some((sequence, id)) = opts.high_water
            && self.history.known.get(&sequence) != Some(&id)
        {
            let what = "the chain does not contain the high-water mark: it was rolled back or replaced";
            let path = format!("snapshots/{}", name_of(sequence, &id));
            self.report.push(Finding::new(path, fault(Class::Chain, "SNAP-8", what)));
        }
    }

    /// Finds the files in `packs/` (LAY-2).
    fn list_packs(&mut self) {
        for folder in self.list("packs") {
            let dir = format!("packs/{folder}");
            if unhex::<1>(&folder).is_none() {
                self.foreign(dir);
                continue;
            }
            for name in self.list(&dir) {
                let path = format!("{dir}/{name}");
                match unhex::<32>(&name) {
                    Some(id) if name.starts_with(&folder) => match self.source.len(&path) {
                        Ok(len) => {
                            self.present.insert(self.history.packs.number(&id), len);
                            self.report.packs.files += 1;
                            self.report.packs.bytes = self.report.packs.bytes.saturating_add(len);
                        }
                        Err(e) => self.report.push(Finding::new(path, unreadable("opening", &e))),
                    },
                    _ => self.foreign(path),
                }
            }
        }
    }

    fn foreign(&mut self, path: String) {
        let what = "not a name of the format; ignored";
        self.report.push(Finding::new(path, fault(Class::Foreign, "LAY-2", what)));
    }

    fn list(&mut self, dir: &str) -> Vec<String> {
        match self.source.list(dir) {
            Ok(mut names) => {
                names.sort_unstable();
                names
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => {
                self.report.push(Finding::new(dir, unreadable("listing", &e)));
                Vec::new()
            }
        }
    }

    /// Decides which remaining snapshots are complete, and which packs are missing.
    fn completeness(&mut self) {
        let mut missing_first: BTreeMap<u32, u64> = BTreeMap::new();
        let mut snapshots = Vec::new();
        for (n, remaining) in self.history.remaining.iter().enumerate() {
            let public = &self.history.links[remaining.link].file.public;
            let absent: Option<Vec<u32>> = remaining
                .needs
                .as_ref()
                .map(|needs| needs.iter().filter(|p| !self.present.contains_key(p)).collect());
            let complete = absent.as_ref().map(Vec::is_empty);
            if complete == Some(true) {
                self.report.latest = Some(public.sequence);
            }
            let sealed = self.sealed.get(&remaining.link);
            snapshots.push(SnapshotReport {
                sequence: public.sequence,
                id: hex(&self.history.links[remaining.link].id),
                seconds: public.seconds,
                complete,
                packs: remaining.needs.as_ref().map_or(0, PackSet::count),
                packs_missing: absent.as_ref().map_or(0, |a| a.len() as u64),
                walked: false,
                paths_affected: 0,
                counted: None,
                claimed: sealed.and_then(|s| s.snapshot.as_ref()).map(|s| s.counts),
                host: sealed.map(|s| s.host.clone()),
                tags: sealed.map(|s| s.tags.clone()).unwrap_or_default(),
            });
            for pack in absent.into_iter().flatten() {
                missing_first.entry(pack).or_insert(n as u64);
            }
        }
        self.report.snapshots = snapshots;
        let latest = self.report.latest;
        for s in self.report.snapshots.clone() {
            let file = format!("snapshots/{:010}-{}", s.sequence, s.id);
            let newer = latest.is_some_and(|l| s.sequence > l);
            if s.complete == Some(false) && newer {
                let what = format!("{} of its {} packs are not here (yet)", s.packs_missing, s.packs);
                self.report
                    .push(Finding::new(file, fault(Class::Incomplete, "", what)).in_snapshot(s.sequence));
            } else if s.complete.is_none() {
                let what = "which packs it needs can't be known, because the chain has a hole below it";
                self.report
                    .push(Finding::new(file, fault(Class::Chain, "SNAP-2", what)).in_snapshot(s.sequence));
            }
        }
        for (pack, n) in missing_first {
            let Some(sequence) = self.report.snapshots.get(n as usize).map(|s| s.sequence) else { continue };
            if latest.is_none_or(|latest| sequence < latest) {
                let what = format!("this pack is not here, and snapshot {sequence} needs it");
                let path = path_of(self.history.packs.name(pack));
                self.report.push(Finding::new(path, fault(Class::Missing, "", what)).in_snapshot(sequence));
            }
        }
    }

    /// Indexes in `remaining` of the snapshots to walk.
    pub(crate) fn choose(&self, opts: &Options) -> Result<Vec<usize>, FatalError> {
        let latest = self.report.latest;
        let wanted = match opts.snapshot {
            None => {
                let worth = |s: &&(usize, &SnapshotReport)| latest.is_none_or(|l| s.1.sequence <= l);
                return Ok(self
                    .report
                    .snapshots
                    .iter()
                    .enumerate()
                    .filter(|s| worth(&s))
                    .map(|s| s.0)
                    .collect());
            }
            Some(Select::Sequence(n)) => n,
            Some(Select::Latest) => {
                latest.ok_or_else(|| FatalError::NoSnapshot("there is no complete snapshot".to_owned()))?
            }
        };
        match self.report.snapshots.iter().position(|s| s.sequence == wanted) {
            Some(n) => Ok(vec![n]),
            None => Err(FatalError::NoSnapshot(format!("there is no snapshot {wanted}"))),
        }
    }

    /// The numbers of all packs that are here.
    pub(crate) fn pack_files(&self) -> BTreeSet<u32> {
        self.present.keys().copied().collect()
    }

    fn needs(&self, n: usize) -> Option<&PackSet> {
        self.history.remaining.get(n)?.needs.as_ref()
    }

    /// Verifies packs, all or those that the chosen snapshots need, and opens them if there is a key.
    pub(crate) fn packs(
        &mut self,
        opts: &Options,
        mut packs: BTreeSet<u32>,
        chosen: &[usize],
    ) -> Option<Store<'a>> {
        let mut named = PackSet::default();
        self.history.remaining.iter().filter_map(|r| r.needs.as_ref()).for_each(|n| named.add(n));
        if opts.snapshot.is_some() {
            packs.retain(|p| chosen.iter().filter_map(|&n| self.needs(n)).any(|needs| needs.contains(*p)));
        } else if self.chain_whole {
            for &pack in packs.iter().filter(|&&p| !named.contains(p)) {
                let what = "no remaining snapshot names it";
                let path = path_of(self.history.packs.name(pack));
                self.report.push(Finding::new(path, fault(Class::Unreferenced, "", what)));
            }
        }
        let list: Vec<(u32, Id, u64)> =
            packs.iter().map(|&p| (p, *self.history.packs.name(p), self.present[&p])).collect();
        let total = list.iter().map(|p| p.2).filter(|&len| len <= PACK_BYTES_MAX).sum();
        let access = self.header.as_ref().zip(self.keys.as_ref());
        let job = Job { source: self.source, access, opts, done: AtomicU64::new(0), total };
        let results = job.run(&list);
        let mut store = Store::new(self.source);
        for result in results {
            for finding in result.findings {
                self.report.push(finding);
            }
            self.report.packs.chunks_verified += result.chunks;
            self.report.packs.bytes_verified += result.bytes;
            self.report.packs.chunks_damaged += result.bad.len() as u64;
            if let Some(pack) = result.pack {
                store.add(result.number, pack, result.bad);
            }
        }
        access.map(|_| store)
    }

    /// Walks the chosen snapshots.
    pub(crate) fn trees(&mut self, opts: &Options, store: &Store<'_>, chosen: &[usize]) {
        let mut walker = Walker::new(store);
        for (done, &n) in (0u64..).zip(chosen) {
            if opts.cancelled() {
                return;
            }
            if let Some(progress) = &opts.progress {
                progress(Progress { pass: 2, done, total: chosen.len() as u64 });
            }
            let Some(remaining) = self.history.remaining.get(n) else { continue };
            let Some(sealed) = self.sealed.get(&remaining.link).and_then(|s| s.snapshot.as_ref()) else {
                continue;
            };
            // With a hole in the chain its needs are not known: then all that is here is taken.
            let everything;
            let needs = match &remaining.needs {
                Some(needs) => needs,
                None => {
                    let mut all = PackSet::default();
                    self.present.keys().for_each(|&p| {
                        all.insert(p);
                    });
                    everything = all;
                    &everything
                }
            };
            let report = &mut self.report;
            let sequence = report.snapshots[n].sequence;
            let walked =
                walker.snapshot(sequence, &sealed.root, needs, &mut |f| report.push(f), &|| opts.cancelled());
            if walked.finished && walked.ino_max >= sealed.next_ino {
                let what = format!("next inode number {} is not above {}", sealed.next_ino, walked.ino_max);
                report.push(Finding::new("", fault(Class::Note, "", what)).in_snapshot(sequence));
            }
            let entry = &mut report.snapshots[n];
            entry.walked = walked.finished;
            entry.paths_affected = walked.affected;
            entry.counted = walked.finished.then_some(walked.counts);
            let entries = walked.counts.entries();
            if opts.trees && walked.finished && entries > TREE_ENTRIES_MAX {
                let what = format!("its {entries} entries are too many to collect");
                report.push(Finding::new("", fault(Class::Note, "", what)).in_snapshot(sequence));
            } else if opts.trees && walked.finished {
                let mut contents = Contents::new(store, needs);
                let items = crate::restore::collect(store, needs, &sealed.root, &mut contents, opts);
                report.trees.insert(sequence, items);
            }
        }
    }

    /// The sealed part of a remaining snapshot, and the packs that it may use.
    pub(crate) fn snapshot(&self, n: usize) -> Option<(&Sealed, PackSet)> {
        let remaining = self.history.remaining.get(n)?;
        let needs = remaining.needs.clone().unwrap_or_else(|| {
            let mut all = PackSet::default();
            self.present.keys().for_each(|&p| {
                all.insert(p);
            });
            all
        });
        Some((self.sealed.get(&remaining.link)?, needs))
    }
}

/// Lists the vault itself; whether it has one of its folders.
fn top_level(source: &dyn Source, report: &mut Report) -> Result<bool, FatalError> {
    let mut names = source.list("").map_err(|e| FatalError::Io(format!("reading the vault: {e}")))?;
    names.sort_unstable();
    let mut folders = false;
    for name in names {
        match name.as_str() {
            "packs" | "snapshots" => folders = true,
            "vault.json" | "vault.json.bak" | "live" => {}
            _ => {
                let what = "not a name of the format; ignored";
                report.push(Finding::new(name, fault(Class::Foreign, "LAY-2", what)));
            }
        }
    }
    Ok(folders)
}

/// Reads both copies of the header: the sound ones with their names, the one to use first (HDR-1, HDR-2, HDR-2a).
fn read_headers(
    source: &dyn Source,
    folders: bool,
    report: &mut Report,
) -> Result<Vec<(&'static str, Header)>, FatalError> {
    let mut sound = Vec::new();
    let mut newer = None;
    let mut found = false;
    let mut faults = Vec::new();
    for path in ["vault.json", "vault.json.bak"] {
        let parsed = match read_all(source, path, HEADER_BYTES_MAX) {
            Ok(Some(bytes)) => header::parse(&bytes),
            Ok(None) => Err(HeaderError::Bad(too_long("", "longer than 256 KiB"))),
            Err(fault) => {
                found |= fault.class != Class::Missing;
                faults.push((path, fault));
                continue;
            }
        };
        match parsed {
            Ok(header) => sound.push((path, header)),
            Err(error) => {
                if let HeaderError::Newer(v) = error {
                    newer = Some(v);
                }
                found |= !matches!(error, HeaderError::NotAHeader);
                faults.push((path, error.into_fault()));
            }
        }
    }
    // HDR-2a: a newer copy counts only if no copy of format 1 is sound.
    if let (true, Some(version)) = (sound.is_empty(), newer) {
        return Err(FatalError::Newer(version));
    }
    if sound.is_empty() && !found && !folders {
        return Err(FatalError::NotAVault("it has no vault.json, no packs and no snapshots".to_owned()));
    }
    for (path, fault) in faults {
        report.push(Finding::new(path, fault));
    }
    if let [(_, a), (_, b)] = &sound[..]
        && a != b
    {
        if a.generation == b.generation {
            let what = "the two copies differ and have the same generation";
            report.push(Finding::new("vault.json.bak", malformed("HDR-2a", what)));
        } else {
            let what = format!("the copies are of generations {} and {}", a.generation, b.generation);
            report.push(Finding::new("vault.json.bak", fault(Class::Note, "HDR-2", what)));
        }
    }
    // A stable sort: vault.json comes first among equals.
    sound.sort_by_key(|(_, h)| std::cmp::Reverse(h.generation));
    Ok(sound)
}

/// Opens the vault with the key: the header to use, and its keys if there are any (HDR-3).
fn unlock(
    copies: Vec<(&'static str, Header)>,
    key: Option<Unlock>,
    report: &mut Report,
) -> Result<(Option<Header>, Option<Keys>), FatalError> {
    let Some(key) = key else {
        return Ok((copies.into_iter().next().map(|(_, header)| header), None));
    };
    let mut chosen = None;
    let mut refused = None;
    for (path, header) in copies {
        if let Some((first, keys)) = &chosen {
            let (first, keys): (&Header, &Keys) = (first, keys);
            if *first != header && !(header.mac_is_by(&keys.header_mac) && keys.match_header(&header)) {
                report.push(Finding::new(path, forged_header()));
            }
            continue;
        }
        match root_secret(&header, &key) {
            Ok(root) => {
                let keys = Keys::derive(&root);
                let (mac, public) = (header.mac_is_by(&keys.header_mac), keys.match_header(&header));
                if mac && public {
                    chosen = Some((header, keys));
                } else if matches!(key, Unlock::Root(_)) && !mac && !public {
                    return Err(FatalError::Unlock(UnlockError::Wrong("root secret")));
                } else {
                    report.push(Finding::new(path, forged_header()));
                    refused = refused.or(Some(header));
                }
            }
            // Another copy is for a header that was forged, not for one with other slots.
            Err(error) if refused.is_none() => return Err(FatalError::Unlock(error)),
            Err(_) => {}
        }
    }
    Ok(match chosen {
        Some((header, keys)) => (Some(header), Some(keys)),
        None => (refused, None),
    })
}

fn forged_header() -> Fault {
    fault(Class::Forged, "HDR-3", "its mac or its public keys are not by this vault's root secret")
}

type SealedById = BTreeMap<Id, Sealed>;

/// Reads all chain files; whether all of them were sound.
fn read_chain(
    source: &dyn Source,
    header: Option<&Header>,
    keys: Option<&Keys>,
    report: &mut Report,
) -> (Vec<Link>, SealedById, bool) {
    let mut links = Vec::new();
    let mut sealed = BTreeMap::new();
    let mut whole = true;
    let mut names = match source.list("snapshots") {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => {
            report.push(Finding::new("snapshots", unreadable("listing", &e)));
            whole = false;
            Vec::new()
        }
    };
    names.sort_unstable();
    for name in names {
        let path = format!("snapshots/{name}");
        let Some((sequence, id)) = parse_name(&name) else {
            let what = "not a name of the format; ignored";
            report.push(Finding::new(path, fault(Class::Foreign, "LAY-2", what)));
            continue;
        };
        match chain_file(source, &path, sequence, &id, header) {
            Ok(Some(file)) => {
                match keys.map(|keys| file.unseal(keys)) {
                    Some(Ok(part)) => {
                        sealed.insert(id, part);
                    }
                    Some(Err(fault)) => {
                        let lost = Finding::new(path, fault);
                        report.push(if file.kind == ChainKind::Snapshot {
                            lost.in_snapshot(sequence)
                        } else {
                            lost
                        });
                    }
                    None => {}
                }
                links.push(Link { id, file });
            }
            Ok(None) => {}
            Err(fault) => {
                whole = false;
                report.push(Finding::new(path, fault));
            }
        }
    }
    (links, sealed, whole && header.is_some())
}

/// Reads one chain file: its name first (LAY-1), then its signature, then the rest. None if there is no header.
fn chain_file(
    source: &dyn Source,
    path: &str,
    sequence: u64,
    id: &Id,
    header: Option<&Header>,
) -> Result<Option<chain::ChainFile>, Fault> {
    let Some(bytes) = read_all(source, path, CHAIN_FILE_BYTES_MAX)? else {
        return Err(too_long("SNAP-6", "longer than 64 MiB"));
    };
    if h(&bytes) != *id {
        return Err(damaged("LAY-1", "its content does not fit its name"));
    }
    let Some(header) = header else { return Ok(None) };
    chain::open(&bytes, &header.vault_id, &header.signers, Some(sequence)).map(Some)
}

/// The verification of many packs.
struct Job<'j, 'a> {
    source: &'a dyn Source,
    access: Option<(&'j Header, &'j Keys)>,
    opts: &'j Options,
    done: AtomicU64,
    total: u64,
}

/// What came of one pack.
struct Verified {
    number: u32,
    pack: Option<Pack>,
    bad: Vec<u32>,
    chunks: u64,
    bytes: u64,
    findings: Vec<Finding>,
}

impl Job<'_, '_> {
    /// Verifies all packs of the list on several threads; the results come in the list's order.
    fn run(&self, list: &[(u32, Id, u64)]) -> Vec<Verified> {
        let next = AtomicUsize::new(0);
        let results: Mutex<BTreeMap<usize, Verified>> = Mutex::new(BTreeMap::new());
        let work = || {
            let mut unzip = Unzip::default();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some((number, name, len)) = list.get(n) else { return };
                if self.opts.cancelled() {
                    return;
                }
                let verified = self.pack(*number, name, *len, &mut unzip);
                results.lock().unwrap_or_else(PoisonError::into_inner).insert(n, verified);
            }
        };
        let threads = self.opts.jobs.clamp(1, 256).min(list.len().max(1));
        if threads == 1 {
            work();
        } else {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(work);
                }
            });
        }
        results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
    }

    fn advance(&self, bytes: u64) -> bool {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = &self.opts.progress {
            progress(Progress { pass: 1, done, total: self.total });
        }
        !self.opts.cancelled()
    }

    fn pack(&self, number: u32, name: &Id, len: u64, unzip: &mut Unzip) -> Verified {
        let path = path_of(name);
        let mut out =
            Verified { number, pack: None, bad: Vec::new(), chunks: 0, bytes: 0, findings: Vec::new() };
        let complain = |fault: Fault| Finding::new(path.clone(), fault);
        if len > PACK_BYTES_MAX {
            // Not hashed either: a sparse file of exbibytes costs its maker nothing.
            out.findings.push(complain(too_long("PACK-1", "longer than 1 GiB")));
            return out;
        }
        // LAY-1 comes first. With --quick no data is read, and which packs hold data is only known afterwards.
        if !self.opts.quick {
            let hashed = self
                .source
                .open(&path)
                .map_err(|e| unreadable("opening", &e))
                .and_then(|file| hash_file(&*file, &path, len, &mut |n| self.advance(n)));
            match hashed {
                Ok(Some(hash)) if hash == *name => {}
                Ok(Some(_)) => {
                    out.findings.push(complain(damaged("LAY-1", "its content does not fit its name")));
                }
                Ok(None) => return out,
                Err(fault) => out.findings.push(complain(fault)),
            }
        }
        let Some((header, keys)) = self.access else { return out };
        let pack = match Pack::open(self.source, &path, keys, &header.vault_id, header.cipher) {
            Ok(pack) => pack,
            Err(fault) => {
                out.findings.push(complain(fault));
                return out;
            }
        };
        if let Err(fault) = self.contents(&pack, unzip, &mut out) {
            out.findings.push(complain(fault));
        }
        if !pack.length_is_padded() {
            let what = "its length is not one that writers choose";
            out.findings.push(complain(fault(Class::Note, "PACK-8", what)));
        }
        out.pack = Some(pack);
        out
    }

    /// Padding and all chunks of an opened pack; with `--quick` neither.
    fn contents(&self, pack: &Pack, unzip: &mut Unzip, out: &mut Verified) -> Result<(), Fault> {
        if self.opts.quick {
            return Ok(());
        }
        let file = self.source.open(&pack.path).map_err(|e| unreadable("opening", &e))?;
        for (n, chunk) in (0u32..).zip(&pack.footer.chunks) {
            if self.opts.cancelled() {
                return Ok(());
            }
            out.chunks += 1;
            match pack.read_chunk(&*file, n as usize, unzip) {
                Ok(plain) => out.bytes += plain.len() as u64,
                Err(fault) => {
                    out.bad.push(n);
                    out.findings.push(Finding::new(pack.path.clone(), fault).of_chunk(&chunk.id));
                }
            }
        }
        pack.check_padding(&*file)
    }
}
