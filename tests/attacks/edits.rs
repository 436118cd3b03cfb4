//! What can be done to files by somebody who has no key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use strongroom::disk::SimDisk;

use super::target::{Files, State, Target};
use crate::whole::rng::Rng;

/// A change of one file. Paths that begin with `host:` are in the host's state directory.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Flips a bit of this byte.
    Flip(usize),
    Zero(usize, usize),
    Cut(usize),
    Extend(Arc<Vec<u8>>),
    Put(Arc<Vec<u8>>),
    Remove,
    /// The file gets another name, in the place of what has it.
    Rename(String),
    /// The two files change places.
    Swap(String),
}

/// Some changes at once.
#[derive(Clone, Debug)]
pub struct Attack {
    pub what: String,
    edits: Vec<(String, Edit)>,
}

impl Attack {
    pub fn new(what: impl Into<String>, edits: Vec<(String, Edit)>) -> Attack {
        Attack { what: what.into(), edits }
    }

    /// All paths that it may change.
    pub fn touched(&self) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        for (path, edit) in &self.edits {
            paths.insert(path.clone());
            if let Edit::Rename(other) | Edit::Swap(other) = edit {
                paths.insert(other.clone());
            }
        }
        paths
    }

    pub fn apply(&self, vault: &SimDisk, host: &SimDisk) {
        for (path, edit) in &self.edits {
            let (disk, path) = match path.strip_prefix("host:") {
                Some(path) => (host, path),
                None => (vault, path.as_str()),
            };
            let old = disk.raw_read(path);
            let mut bytes = old.clone().unwrap_or_default();
            match edit {
                Edit::Flip(at) => bytes[*at] ^= 1 << (at % 8),
                Edit::Zero(at, len) => {
                    let end = (at + len).min(bytes.len());
                    bytes[*at..end].fill(0);
                }
                Edit::Cut(len) => bytes.truncate(*len),
                Edit::Extend(more) => bytes.extend_from_slice(more),
                Edit::Put(new) => bytes = new.to_vec(),
                Edit::Remove => {
                    assert!(disk.raw_remove(path), "{path} is there");
                    continue;
                }
                Edit::Rename(to) => {
                    assert!(disk.raw_remove(path), "{path} is there");
                    disk.raw_write(to, &bytes);
                    continue;
                }
                Edit::Swap(with) => {
                    let other = disk.raw_read(with).expect("the other file");
                    disk.raw_write(with, &bytes);
                    bytes = other;
                }
            }
            disk.raw_write(path, &bytes);
        }
    }
}

/// What a file is, by its place and its first bytes.
pub fn kind_of(path: &str, bytes: &[u8]) -> &'static str {
    let tree = bytes.get(8) == Some(&2);
    match path {
        "vault.json" => "header",
        "vault.json.bak" => "second header",
        "live/live.redb" => "live database",
        "live/blocks.log" => "block log",
        "live/journal/a" => "journal a",
        "live/journal/b" => "journal b",
        "live/lock" => "lock",
        "live/reserve" => "reserve",
        _ if path.starts_with("host:") => "high-water mark",
        _ if path.starts_with("packs/") && tree => "tree pack",
        _ if path.starts_with("packs/") => "data pack",
        _ if path.starts_with("snapshots/") && tree => "removal",
        _ if path.starts_with("snapshots/") => "snapshot",
        _ if path.starts_with("live/open/") => "open pack",
        _ => "unknown",
    }
}

/// How many attacks a file gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Density {
    Full,
    Light,
}

/// Attacks on each file of a vault, whatever files it has, and on all of them together.
pub fn all(target: &Target, rng: &mut Rng) -> Vec<Attack> {
    let mut files: Files = target.files.clone();
    files.extend(target.host_files.iter().map(|(path, b)| (format!("host:{path}"), Arc::clone(b))));
    let mut by_kind: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (path, bytes) in &files {
        by_kind.entry(kind_of(path, bytes)).or_default().push(path.clone());
    }
    let mut out = Vec::new();
    for (kind, paths) in &by_kind {
        for (n, path) in paths.iter().enumerate() {
            // Many packs are alike, and what is outside of `live/` is the same in a closed vault as in another one.
            let known =
                target.state == State::Closed && !path.starts_with("live/") && !path.starts_with("host:");
            let full = !known && (n == 0 || n + 1 == paths.len());
            let density = if full { Density::Full } else { Density::Light };
            let bytes = &files[path];
            let sibling = (paths.len() > 1).then(|| paths[(n + 1) % paths.len()].clone());
            out.extend(on_file(kind, path, bytes, density, sibling.as_ref(), &files, rng));
            out.extend(older_versions(target, kind, path, bytes));
        }
    }
    out.extend(returned(target));
    out.extend(together(target, &by_kind));
    out
}

fn on_file(
    kind: &str,
    path: &str,
    bytes: &[u8],
    density: Density,
    sibling: Option<&String>,
    files: &Files,
    rng: &mut Rng,
) -> Vec<Attack> {
    let len = bytes.len();
    let full = density == Density::Full;
    let mut out = Vec::new();
    let mut add = |what: &str, edit: Edit| {
        out.push(Attack::new(format!("{kind}: {what}"), vec![(path.to_string(), edit)]));
    };
    add("deleted", Edit::Remove);
    if len > 0 {
        for at in places(kind, len, full, rng) {
            add("a bit flipped", Edit::Flip(at));
        }
    }
    if full && len > 0 {
        add("cut in the middle", Edit::Cut(len / 2));
        let sector = rng.index(len) / 512 * 512;
        add("a sector of zeros", Edit::Zero(sector, 512));
        let page = rng.index(len) / 4096 * 4096;
        add("a page of zeros", Edit::Zero(page, 4096));
        add("nothing but zeros", Edit::Zero(0, len));
        add("empty", Edit::Cut(0));
        add("without its last byte", Edit::Cut(len - 1));
        if len > 4096 {
            add("without its last page", Edit::Cut(len - 4096));
        }
    }
    if full {
        add("a zero longer", Edit::Extend(Arc::new(vec![0])));
        add("a page of noise longer", Edit::Extend(Arc::new(rng.bytes(4096))));
        add("twice", Edit::Extend(Arc::new(bytes.to_vec())));
        add("noise of its length", Edit::Put(Arc::new(rng.bytes(len))));
        add("another name", Edit::Rename(format!("{path}.x")));
    }
    // In the place of another one of its kind.
    if let Some(other) = sibling {
        add("swapped with another", Edit::Swap(other.clone()));
        if full {
            add("replaced by another", Edit::Put(Arc::clone(&files[other])));
            add("in another's place", Edit::Rename(other.clone()));
        }
    }
    if full && path.starts_with("packs/") {
        let last = if path.ends_with('0') { '1' } else { '0' };
        add("under another hash", Edit::Rename(format!("{}{last}", &path[..path.len() - 1])));
        let name = path.rsplit('/').next().unwrap_or(path);
        add("in the wrong folder", Edit::Rename(format!("packs/zz/{name}")));
    }
    if path.starts_with("snapshots/") {
        let id = &path["snapshots/0000000000".len()..];
        for seq in if full { vec![1, 999] } else { vec![999] } {
            let to = format!("snapshots/{seq:010}{id}");
            if to != path {
                add("under another sequence number", Edit::Rename(to));
            }
        }
    }
    out
}

/// Where bits are flipped: everywhere in turn, and at the borders of what the format puts there.
fn places(kind: &str, len: usize, full: bool, rng: &mut Rng) -> BTreeSet<usize> {
    let mut at: BTreeSet<usize> = (0..if full { 2 } else { 1 }).map(|_| rng.index(len)).collect();
    if !full {
        return at;
    }
    let (spread, borders): (usize, Vec<usize>) = match kind {
        "data pack" | "tree pack" | "open pack" => {
            (4, vec![0, 8, 9, 12, 16, 32, 48, 1168, len.saturating_sub(64), len - 1])
        }
        "snapshot" | "removal" => (6, vec![0, 8, 9, 10, 12, 16, 40, len.saturating_sub(64), len - 1]),
        "journal a" | "journal b" => (3, vec![0, 4, 30, 70, 4096, 4100, 4130]),
        "block log" => (8, vec![0, 8, 24, 512, 516, 524]),
        "live database" => (20, vec![0, 24, 4200, 4608, 4700, 9216]),
        _ => (8, vec![0, len / 2, len - 1]),
    };
    at.extend((0..spread).map(|n| n * len / spread));
    at.extend(borders);
    at.into_iter().filter(|at| *at < len).collect()
}

/// P4: the same file as it was earlier.
fn older_versions(target: &Target, kind: &str, path: &str, now: &[u8]) -> Vec<Attack> {
    let mut out = Vec::new();
    for (n, files) in target.older.iter().enumerate() {
        match files.get(path) {
            Some(was) if was.as_slice() != now => {
                let edit = Edit::Put(Arc::clone(was));
                out.push(Attack::new(format!("{kind}: as it was at {n}"), vec![(path.to_string(), edit)]));
            }
            _ => {}
        }
    }
    out
}

/// P4: files come back that were removed since.
fn returned(target: &Target) -> Vec<Attack> {
    let mut out = Vec::new();
    for (n, files) in target.older.iter().enumerate() {
        let mut back = Vec::new();
        for (path, was) in files.iter().filter(|(path, _)| !target.files.contains_key(*path)) {
            let edit = (path.clone(), Edit::Put(Arc::clone(was)));
            if kind_of(path, was) != "data pack" {
                let what = format!("{}: back from {n}", kind_of(path, was));
                out.push(Attack::new(what, vec![edit.clone()]));
            }
            back.push(edit);
        }
        if !back.is_empty() {
            out.push(Attack::new(format!("everything back that was removed since {n}"), back));
        }
    }
    out
}

/// Several files at once.
fn together(target: &Target, by_kind: &BTreeMap<&str, Vec<String>>) -> Vec<Attack> {
    let mut out = Vec::new();
    let paths = |prefix: &str| -> Vec<String> {
        target.files.keys().filter(|path| path.starts_with(prefix)).cloned().collect()
    };
    for (what, prefix) in [
        ("all headers", "vault.json"),
        ("all of live/", "live/"),
        ("the live database", "live/live.redb"),
        ("the journal", "live/journal/"),
        ("open packs", "live/open/"),
        ("all chain files", "snapshots/"),
        ("all packs", "packs/"),
    ] {
        let here = paths(prefix);
        if here.is_empty() {
            continue;
        }
        let removed = here.iter().map(|path| (path.clone(), Edit::Remove)).collect();
        out.push(Attack::new(format!("{what}: deleted"), removed));
        let flipped = here.iter().map(|path| {
            let len = target.files[path].len();
            (path.clone(), if len == 0 { Edit::Remove } else { Edit::Flip(len / 3) })
        });
        out.push(Attack::new(format!("{what}: a bit flipped in each"), flipped.collect()));
        for (n, files) in target.older.iter().enumerate() {
            let was = here.iter().filter_map(|path| {
                let was = files.get(path)?;
                (*was != target.files[path]).then(|| (path.clone(), Edit::Put(Arc::clone(was))))
            });
            let was: Vec<_> = was.collect();
            if was.len() > 1 {
                out.push(Attack::new(format!("{what}: as they were at {n}"), was));
            }
        }
    }
    // The two files of the database belong together.
    for (n, files) in target.older.iter().enumerate() {
        for pair in [["live/live.redb", "live/blocks.log"], ["live/blocks.log", "live/journal/a"]] {
            let was: Option<Vec<_>> = pair
                .iter()
                .map(|path| Some((path.to_string(), Edit::Put(Arc::clone(files.get(*path)?)))))
                .collect();
            if let (Some(was), true) = (was, target.state != State::Copy) {
                out.push(Attack::new(format!("{}, {}: as they were at {n}", pair[0], pair[1]), was));
            }
        }
    }
    if target.state != State::Copy {
        out.push(Attack::new(
            "the live database is said to be unfinished",
            vec![("live/unfinished".to_string(), Edit::Put(Arc::default()))],
        ));
        out.extend(cut_tails(target));
    }
    for (n, path) in target.chain.iter().rev().enumerate().skip(1).take(2) {
        let newest = target.chain.iter().rev().take(n + 1).map(|path| (path.clone(), Edit::Remove));
        out.push(Attack::new(format!("newest chain files: deleted down to {path}"), newest.collect()));
    }
    for kind in ["data pack", "tree pack"] {
        let packs = &by_kind[kind];
        let turned = packs.iter().enumerate().map(|(n, path)| {
            let next = &target.files[&packs[(n + 1) % packs.len()]];
            (path.clone(), Edit::Put(Arc::clone(next)))
        });
        out.push(Attack::new(format!("{kind}: each is its neighbour"), turned.collect()));
    }
    out
}

/// Where the records of a journal or a block log begin, and where the last one ends. No key is needed to see that.
fn records(path: &str, bytes: &[u8]) -> Vec<usize> {
    let (mut at, head) = if path.ends_with("log") { (512, 12) } else { (4096, 4) };
    let mut out = vec![at];
    while let Some(len) = bytes.get(at..at + 4) {
        let len = u32::from_le_bytes(len.try_into().expect("4 bytes")) as usize;
        let end = (at + head + len).next_multiple_of(512);
        if len < 57 || end > bytes.len() {
            break;
        }
        at = end;
        out.push(at);
    }
    out
}

/// Journals and block logs of which the last records are gone, as a power cut could leave them, or one in the middle.
fn cut_tails(target: &Target) -> Vec<Attack> {
    let mut out = Vec::new();
    for path in ["live/journal/a", "live/journal/b", "live/blocks.log"] {
        let bytes = &target.files[path];
        let starts = records(path, bytes);
        let last = starts.len() - 1;
        let mut cuts: BTreeSet<usize> = (0..6).map(|n| last.saturating_sub(n)).collect();
        cuts.extend((0..5).map(|n| n * last / 5));
        for n in cuts {
            let at = starts[n];
            if at >= bytes.len() {
                continue;
            }
            let mut add = |what: String, edit: Edit| {
                out.push(Attack::new(format!("records: {path}: {what}"), vec![(path.to_string(), edit)]));
            };
            add(format!("zeros from record {n} of {last} on"), Edit::Zero(at, bytes.len() - at));
            add(format!("cut before record {n} of {last}"), Edit::Cut(at));
            add(format!("a bit of record {n} of {last}"), Edit::Flip(at + 30));
        }
    }
    out
}
