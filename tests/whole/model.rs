//! What a tree should be, and what a power cut may leave of it.
//!
//! A workload is a row of steps, each one call. [`History`] has the names and attributes after each step, every content
//! that a file ever had, and which step made what durable. From the number of steps that had begun and of those that had
//! returned when the power went off, it says what must be there and what may be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use strongroom::format::FileType;
use strongroom::fs::Attr;
use strongroom::store::records::ROOT_INO;

use super::view::{Dump, Item, Survey};

/// One inode without content and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub target: Vec<u8>,
    /// Of a directory.
    pub names: BTreeMap<Vec<u8>, u64>,
}

impl Node {
    /// A node as it was made: owner and mode depend on the directory, which is another test's business.
    pub fn of(attr: &Attr) -> Node {
        Node { uid: attr.uid, gid: attr.gid, ..Node::new(attr.kind, attr.mode) }
    }

    fn new(kind: FileType, mode: u32) -> Node {
        Node {
            kind,
            mode,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
            target: Vec::new(),
            names: BTreeMap::new(),
        }
    }
}

/// The inodes that have a name.
#[derive(Clone, Debug)]
pub struct Tree(pub BTreeMap<u64, Arc<Node>>);

impl Tree {
    pub fn new() -> Tree {
        Tree(BTreeMap::from([(ROOT_INO, Arc::new(Node::new(FileType::Dir, 0o755)))]))
    }

    pub fn node(&mut self, ino: u64) -> &mut Node {
        Arc::make_mut(self.0.get_mut(&ino).expect("an inode of the model"))
    }

    pub fn dirs(&self) -> Vec<u64> {
        self.0.iter().filter(|(_, n)| n.kind == FileType::Dir).map(|(ino, _)| *ino).collect()
    }

    pub fn files(&self) -> Vec<u64> {
        self.0.iter().filter(|(_, n)| n.kind == FileType::File).map(|(ino, _)| *ino).collect()
    }

    /// All names: directory, name, inode.
    pub fn names(&self) -> Vec<(u64, Vec<u8>, u64)> {
        let mut out = Vec::new();
        for (dir, node) in &self.0 {
            out.extend(node.names.iter().map(|(name, ino)| (*dir, name.clone(), *ino)));
        }
        out
    }

    pub fn is_below(&self, ino: u64, top: u64) -> bool {
        if ino == top {
            return true;
        }
        self.0[&top].names.values().any(|child| {
            self.0.get(child).is_some_and(|node| node.kind == FileType::Dir) && self.is_below(ino, *child)
        })
    }

    pub fn depth(&self, ino: u64) -> usize {
        self.0
            .iter()
            .find(|(_, node)| node.kind == FileType::Dir && node.names.values().any(|child| *child == ino))
            .map_or(0, |(parent, _)| 1 + self.depth(*parent))
    }

    /// Takes a name away, and the inode with its last one.
    pub fn unname(&mut self, dir: u64, name: &[u8]) {
        let ino = self.node(dir).names.remove(name).expect("a name of the model");
        if !self.0.values().any(|node| node.names.values().any(|child| *child == ino)) {
            self.0.remove(&ino);
        }
    }

    fn nlink(&self, ino: u64) -> u32 {
        let node = &self.0[&ino];
        if node.kind == FileType::Dir {
            let below = node.names.values().filter(|child| self.0[child].kind == FileType::Dir).count();
            return 2 + below as u32;
        }
        self.0.values().map(|dir| dir.names.values().filter(|child| **child == ino).count() as u32).sum()
    }

    /// Paths with what belongs to them, in words.
    fn lines(&self) -> BTreeMap<Vec<u8>, String> {
        let mut out = BTreeMap::new();
        let mut todo = vec![(Vec::new(), ROOT_INO)];
        while let Some((path, ino)) = todo.pop() {
            let node = &self.0[&ino];
            for (name, child) in &node.names {
                let path = if path.is_empty() { name.clone() } else { [&path[..], b"/", name].concat() };
                todo.push((path, *child));
            }
            let xattrs: Vec<_> = node.xattrs.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
            let ids = (node.mode, node.uid, node.gid, self.nlink(ino));
            out.insert(path, line(node.kind, ino, ids, &xattrs, &node.target));
        }
        out
    }
}

fn line(
    kind: FileType,
    ino: u64,
    (mode, uid, gid, nlink): (u32, u32, u32, u32),
    xattrs: &[(Vec<u8>, Vec<u8>)],
    target: &[u8],
) -> String {
    let hash = blake3::hash(format!("{xattrs:?} {target:?}").as_bytes()).to_hex();
    format!("{kind:?} ino {ino} {mode:o} {uid}:{gid} nlink {nlink} xattrs+target {}", &hash[..8])
}

fn item_line(item: &Item) -> String {
    line(item.kind, item.ino, (item.mode, item.uid, item.gid, item.nlink), &item.xattrs, &item.target)
}

/// One content of a file, made by a step.
#[derive(Clone, Debug)]
pub struct Version {
    pub step: usize,
    pub bytes: Arc<Vec<u8>>,
}

/// What a step made durable when it returned.
#[derive(Clone, Debug)]
pub struct Ack {
    pub step: usize,
    /// Whose content as well: of one file, or of all.
    pub files: Files,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    None,
    One(u64),
    All,
}

/// A snapshot and the steps that made and deleted it.
#[derive(Clone, Debug)]
pub struct Snap {
    pub made: usize,
    pub tree: Arc<Dump>,
    /// The newest one of the working tree may be missing from `latest` only if it was deleted.
    pub deleted: Option<usize>,
}

/// All that happened.
#[derive(Debug, Default)]
pub struct History {
    /// `trees[n]` is what the names were after `n` steps.
    pub trees: Vec<Arc<Tree>>,
    pub said: Vec<String>,
    pub versions: BTreeMap<u64, Vec<Version>>,
    pub acks: Vec<Ack>,
    /// Files that replaced another by a rename: step and inode. Their content was published before.
    pub barriers: Vec<(usize, u64)>,
    pub snapshots: BTreeMap<u64, Snap>,
    /// The step that installed each keyfile.
    pub keys: Vec<usize>,
}

impl History {
    /// The keyfiles of which one must open, and whether the last of them is the only one that may.
    pub fn keys_at(&self, begun: usize, done: usize) -> Vec<u32> {
        let newest_done = self.keys.iter().rposition(|step| *step <= done).unwrap_or(0);
        let newest_begun = self.keys.iter().rposition(|step| *step <= begun).unwrap_or(0);
        (newest_done as u32..=newest_begun as u32).collect()
    }

    /// Snapshots that must be there, and those that may be.
    pub fn snapshots_at(&self, begun: usize, done: usize) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let mut must = BTreeSet::new();
        let mut may = BTreeSet::new();
        for (seq, snap) in &self.snapshots {
            if snap.made <= begun && snap.deleted.is_none_or(|step| step > done) {
                may.insert(*seq);
            }
            if snap.made <= done && snap.deleted.is_none_or(|step| step > begun) {
                must.insert(*seq);
            }
        }
        (must, may)
    }

    /// The step at which the names were durable at the latest.
    pub fn names_durable(&self, done: usize) -> usize {
        self.acks.iter().rev().find(|ack| ack.step <= done).map_or(0, |ack| ack.step)
    }

    fn content_durable(&self, ino: u64, done: usize) -> usize {
        let covers =
            |ack: &&Ack| ack.step <= done && (ack.files == Files::All || ack.files == Files::One(ino));
        self.acks.iter().rev().find(covers).map_or(0, |ack| ack.step)
    }

    /// Checks a tree that was recovered after a power cut against promise C1. Returns the step whose names it has.
    pub fn check(&self, found: &Dump, begun: usize, done: usize) -> Result<usize, String> {
        let lines: BTreeMap<Vec<u8>, String> =
            found.iter().map(|(path, item)| (path.clone(), item_line(item))).collect();
        let low = self.names_durable(done);
        let high = begun.min(self.trees.len() - 1);
        let Some(step) = (low..=high).find(|step| self.trees[*step].lines() == lines) else {
            let mut text = format!("the names are those of no step from {low} to {high}");
            for step in [low, high] {
                text.push_str(&format!("\nagainst step {step}:"));
                let should = self.trees[step].lines();
                for (path, line) in &lines {
                    if should.get(path) != Some(line) {
                        let path = String::from_utf8_lossy(path);
                        text.push_str(&format!("\n  {path}: is {line}"));
                    }
                }
                for (path, line) in &should {
                    if lines.get(path) != Some(line) {
                        let path = String::from_utf8_lossy(path);
                        text.push_str(&format!("\n  {path}: should be {line}"));
                    }
                }
            }
            return Err(text);
        };
        let mut seen = BTreeSet::new();
        for (path, item) in found {
            if item.kind == FileType::File && seen.insert(item.ino) {
                self.check_content(item, step, begun, done)
                    .map_err(|e| format!("{} (inode {}): {e}", String::from_utf8_lossy(path), item.ino))?;
            }
        }
        Ok(step)
    }

    /// Checks what could be read of a tree, where not everything could: there is a step of those that a power cut may
    /// leave, of which everything that was read is, and nothing is missing without an error. Returns that step.
    pub fn check_survey(&self, found: &Survey, begun: usize, done: usize) -> Result<usize, String> {
        let lines: BTreeMap<&Vec<u8>, String> =
            found.items.iter().map(|(path, item)| (path, item_line(item))).collect();
        let low = self.names_durable(done);
        let high = begun.min(self.trees.len() - 1);
        let fits = |step: &usize| {
            let should = self.trees[*step].lines();
            lines.iter().all(|(path, line)| should.get(*path) == Some(line))
                && should.keys().all(|path| found.items.contains_key(path) || found.excuses(path))
        };
        let step = (low..=high).rev().find(fits);
        let step = step.ok_or_else(|| format!("what was read is of no step from {low} to {high}"))?;
        for (path, item) in found.items.iter().filter(|(_, item)| item.kind == FileType::File) {
            self.check_content(item, step, begun, done)
                .map_err(|e| format!("{} (inode {}): {e}", String::from_utf8_lossy(path), item.ino))?;
        }
        Ok(step)
    }

    /// The last step that raised this host's high-water mark, which no older live state passes.
    pub fn marked(&self) -> usize {
        let raises = ["mount", "snapshot", "delete snapshot", "gc", "unmount"];
        let raised = |said: &String| raises.iter().any(|word| said.starts_with(word));
        self.said.iter().rposition(raised).unwrap_or(0)
    }

    /// Checks what a mounted tree shows after step `begun` failed: all that was written, with or without that step.
    pub fn check_visible(&self, found: &Dump, begun: usize) -> Result<(), String> {
        let last = self.trees.len() - 1;
        let acks = vec![Ack { step: last, files: Files::All }];
        let files = History { acks, versions: self.versions.clone(), ..History::default() };
        for item in found.values().filter(|item| item.kind == FileType::File) {
            if files.versions.contains_key(&item.ino) {
                files.check_content(item, 0, begun, last).map_err(|e| format!("inode {}: {e}", item.ino))?;
            }
        }
        let lines: BTreeMap<Vec<u8>, String> =
            found.iter().map(|(path, item)| (path.clone(), item_line(item))).collect();
        let differ = lines != self.trees[last].lines();
        // The names may be those of a step that failed half way, which the model never learned of.
        if differ && begun == last { Err("the names are not those of the last step".into()) } else { Ok(()) }
    }

    fn check_content(&self, item: &Item, names_step: usize, begun: usize, done: usize) -> Result<(), String> {
        let versions = &self.versions[&item.ino];
        let mut durable = self.content_durable(item.ino, done);
        for (step, ino) in &self.barriers {
            if *ino == item.ino && *step <= names_step {
                durable = durable.max(*step);
            }
        }
        let low = versions.iter().rposition(|v| v.step <= durable).unwrap_or(0);
        let high = versions.iter().rposition(|v| v.step <= begun).unwrap_or(0);
        let may = &versions[low..=high];
        let is = &item.content;
        if may.iter().any(|v| v.bytes == *is) {
            return Ok(());
        }
        let steps = || format!("steps {} to {}", may[0].step, may[may.len() - 1].step);
        // Between two contents: some of the later one's bytes, and a size from the one to the other.
        let sizes = || may.iter().map(|v| v.bytes.len());
        let (min, max) = (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0));
        if is.len() < min || is.len() > max {
            return Err(format!("has {} bytes; {} had {min} to {max}", is.len(), steps()));
        }
        // Where a truncation made the file longer before the bytes below were stored, there may be a hole, as on ext4.
        let grown = |w: &[Version]| {
            w[1].bytes
                .get(w[0].bytes.len()..)
                .is_some_and(|new| !new.is_empty() && new.iter().all(|b| *b == 0))
        };
        let hole_from = if may.windows(2).any(grown) { min } else { max };
        for (at, byte) in is.iter().enumerate() {
            if *byte == 0 && at >= hole_from {
                continue;
            }
            if !may.iter().any(|v| v.bytes.get(at) == Some(byte)) {
                let had: Vec<_> = may.iter().map(|v| (v.step, v.bytes.get(at))).collect();
                return Err(format!(
                    "has {byte} at byte {at} of {}; {} had (step, byte) {had:?} there",
                    is.len(),
                    steps()
                ));
            }
        }
        Ok(())
    }
}
