//! What a power cut can leave of recorded changes, by the assumptions in `strongroom::disk`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::trace::{Event, Op};
use crate::common::Rng;

const PAGE: usize = 4096;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// A file's bytes, in pages that copies share; a missing page is zeros.
#[derive(Clone, Default)]
pub struct Bytes {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

impl Bytes {
    fn write(&mut self, off: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = off + done as u64;
            let (page, start) = (at / PAGE as u64, usize::try_from(at % PAGE as u64).unwrap());
            let count = (PAGE - start).min(data.len() - done);
            let held = Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE])));
            held[start..start + count].copy_from_slice(&data[done..done + count]);
            done += count;
        }
        self.len = self.len.max(off + data.len() as u64);
    }

    fn set_len(&mut self, len: u64) {
        self.pages.retain(|page, _| page * (PAGE as u64) < len);
        if let Some(page) = self.pages.get_mut(&(len / PAGE as u64)) {
            Arc::make_mut(page)[usize::try_from(len % PAGE as u64).unwrap()..].fill(0);
        }
        self.len = len;
    }

    fn load(path: &Path) -> Self {
        let data = fs::read(path).unwrap();
        let mut bytes = Self { len: data.len() as u64, pages: BTreeMap::new() };
        for (page, chunk) in data.chunks(PAGE).enumerate().filter(|(_, c)| c.iter().any(|b| *b != 0)) {
            bytes.write((page * PAGE) as u64, chunk);
        }
        bytes
    }

    fn store(&self, path: &Path) {
        let file = File::create(path).unwrap();
        for (page, data) in &self.pages {
            file.write_all_at(&data[..], page * PAGE as u64).unwrap();
        }
        file.set_len(self.len).unwrap();
    }

    fn equals(&self, other: &Self) -> bool {
        let zeros = [0; PAGE];
        let page = |bytes: &Self, n: u64| bytes.pages.get(&n).map_or(zeros, |page| **page);
        let mut all = self.pages.keys().chain(other.pages.keys());
        self.len == other.len && all.all(|n| page(self, *n) == page(other, *n))
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    File(usize),
    Dir,
}

#[derive(Clone)]
enum Change {
    Write(u64, Arc<Vec<u8>>),
    SetLen(u64),
}

/// A change of one directory's names.
#[derive(Clone, Debug)]
enum Naming {
    Put(String, Node),
    Remove(String),
    Move(String, String),
    /// Half of a rename out of this directory; the other half is a `Put` of the same event in another one.
    MovedOut(String, String),
}

#[derive(Clone)]
struct Pending<T> {
    /// When the call began and had returned.
    begin: usize,
    end: usize,
    what: T,
}

#[derive(Clone, Default)]
struct FileState {
    durable: Bytes,
    pending: Vec<Pending<Change>>,
}

#[derive(Clone, Default)]
struct DirState {
    durable: BTreeMap<String, Node>,
    now: BTreeMap<String, Node>,
    pending: Vec<Pending<Naming>>,
}

/// How much of what was not synced is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Drop,
    Keep,
    /// Some of it, by this seed: writes whole, torn between sectors, or not at all, in any order; names up to some change.
    Torn(u64),
}

/// Which syncs do nothing, on a disk that lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lie {
    #[default]
    None,
    Files,
    Directories,
}

/// The two directories, as the process sees them and as they are on the disk.
#[derive(Clone, Default)]
pub struct Model {
    files: Vec<FileState>,
    dirs: BTreeMap<String, DirState>,
    pub lie: Lie,
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Model {
    /// What is in the directories now, all of it durable.
    pub fn load(root: &Path, parts: &[&str]) -> Self {
        let mut model = Self::default();
        model.dirs.insert(String::new(), DirState::default());
        for part in parts {
            model.load_dir(root, part);
        }
        model
    }

    fn load_dir(&mut self, root: &Path, dir: &str) {
        self.dirs.entry(dir.to_string()).or_default();
        self.put_durable(dir, Node::Dir);
        for entry in fs::read_dir(root.join(dir)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{dir}/{}", entry.file_name().to_str().unwrap());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                self.load_dir(root, &path);
            } else if kind.is_file() {
                self.files.push(FileState { durable: Bytes::load(&entry.path()), pending: Vec::new() });
                self.put_durable(&path, Node::File(self.files.len() - 1));
            }
        }
    }

    fn put_durable(&mut self, path: &str, node: Node) {
        let (dir, name) = split(path);
        let state = self.dirs.get_mut(dir).unwrap();
        state.durable.insert(name.to_string(), node);
        state.now.insert(name.to_string(), node);
    }

    fn node(&self, path: &str) -> Option<Node> {
        let (dir, name) = split(path);
        self.dirs.get(dir)?.now.get(name).copied()
    }

    fn file(&self, path: &str) -> Result<usize, String> {
        match self.node(path) {
            Some(Node::File(id)) => Ok(id),
            other => Err(format!("{path} is {other:?}")),
        }
    }

    fn name(&mut self, dir: &str, event: &Event, what: Naming) -> Result<(), String> {
        let state = self.dirs.get_mut(dir).ok_or_else(|| format!("no directory {dir}"))?;
        name_in(&mut state.now, &what);
        state.pending.push(Pending { begin: event.begin, end: event.end, what });
        Ok(())
    }

    /// Does what a call did. Events come in the order in which they returned.
    pub fn apply(&mut self, event: &Event) -> Result<(), String> {
        match &event.op {
            Op::Mark(_) => {}
            Op::Create(path) if self.node(path).is_some() => {}
            Op::Create(path) => {
                let (dir, name) = split(path);
                self.files.push(FileState::default());
                let node = Node::File(self.files.len() - 1);
                self.name(dir, event, Naming::Put(name.to_string(), node))?;
            }
            Op::Mkdir(path) => {
                let (dir, name) = split(path);
                self.dirs.insert(path.clone(), DirState::default());
                self.name(dir, event, Naming::Put(name.to_string(), Node::Dir))?;
            }
            Op::Write(path, off, data) => self.change(path, event, Change::Write(*off, Arc::clone(data)))?,
            Op::SetLen(path, len) => self.change(path, event, Change::SetLen(*len))?,
            Op::Unlink(path) => {
                self.file(path)?;
                let (dir, name) = split(path);
                self.name(dir, event, Naming::Remove(name.to_string()))?;
            }
            Op::Rename(from, to) => {
                let id = self.file(from)?;
                let ((from_dir, from_name), (to_dir, to_name)) = (split(from), split(to));
                let (from_name, to_name) = (from_name.to_string(), to_name.to_string());
                if from_dir == to_dir {
                    self.name(from_dir, event, Naming::Move(from_name, to_name))?;
                } else {
                    self.name(to_dir, event, Naming::Put(to_name, Node::File(id)))?;
                    self.name(from_dir, event, Naming::MovedOut(from_name, to_dir.to_string()))?;
                }
            }
            Op::Sync(path) if self.dirs.contains_key(path) => {
                if self.lie != Lie::Directories {
                    self.sync_names(path, event.begin);
                }
            }
            Op::Sync(_) if self.lie == Lie::Files => {}
            Op::Sync(path) => {
                let id = self.file(path)?;
                let file = &mut self.files[id];
                // What began to be written before the sync did, but was not done yet, is not covered by it.
                let (covered, rest) = file.pending.drain(..).partition(|pending| pending.end < event.begin);
                let covered: Vec<Pending<Change>> = covered;
                for pending in in_order(&covered) {
                    whole(&mut file.durable, &pending.what);
                }
                file.pending = rest;
            }
        }
        Ok(())
    }

    fn change(&mut self, path: &str, event: &Event, what: Change) -> Result<(), String> {
        let id = self.file(path)?;
        self.files[id].pending.push(Pending { begin: event.begin, end: event.end, what });
        Ok(())
    }

    /// Makes the names in a directory durable, as far as they were changed before line `begin`.
    fn sync_names(&mut self, dir: &str, begin: usize) {
        let count = self.dirs[dir].pending.iter().take_while(|pending| pending.end < begin).count();
        for _ in 0..count {
            let pending = self.dirs.get_mut(dir).unwrap().pending.remove(0);
            if let Naming::MovedOut(_, to) = &pending.what {
                // It has gone from here only because it is there.
                let other = self.dirs.get_mut(to).unwrap();
                let upto = other.pending.iter().position(|p| p.end == pending.end).map_or(0, |at| at + 1);
                for pending in other.pending.drain(..upto) {
                    name_in(&mut other.durable, &pending.what);
                }
            }
            name_in(&mut self.dirs.get_mut(dir).unwrap().durable, &pending.what);
        }
    }

    /// Writes what a power cut leaves below `root`. `flying`: calls that had begun and not returned.
    pub fn store(&self, root: &Path, cut: Cut, flying: &[&Event]) {
        let mut rng = Rng::new(match cut {
            Cut::Torn(seed) => seed,
            _ => 0,
        });
        // How many of the changes of names each directory has.
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (path, dir) in &self.dirs {
            let count = match cut {
                Cut::Drop => 0,
                Cut::Keep => dir.pending.len(),
                Cut::Torn(_) => rng.below(dir.pending.len() + 1),
            };
            counts.insert(path, count);
        }
        loop {
            let mut less = None;
            for (path, dir) in &self.dirs {
                for (at, pending) in dir.pending.iter().enumerate().take(counts[path.as_str()]) {
                    let Naming::MovedOut(_, to) = &pending.what else { continue };
                    let there = self.dirs[to].pending.iter().position(|p| p.end == pending.end);
                    if there.is_some_and(|there| there >= counts[to.as_str()]) {
                        less = Some((path.as_str(), at));
                    }
                }
            }
            let Some((path, at)) = less else { break };
            counts.insert(path, at);
        }
        let mut todo = vec![String::new()];
        while let Some(path) = todo.pop() {
            fs::create_dir_all(root.join(&path)).unwrap();
            let dir = &self.dirs[&path];
            let mut names = dir.durable.clone();
            for pending in &dir.pending[..counts[path.as_str()]] {
                name_in(&mut names, &pending.what);
            }
            for (name, node) in names {
                let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                match node {
                    Node::Dir => todo.push(path),
                    Node::File(id) => {
                        let late = flying.iter().filter_map(|event| match &event.op {
                            Op::Write(file, off, data) if self.file(file) == Ok(id) => {
                                let what = Change::Write(*off, Arc::clone(data));
                                Some(Pending { begin: event.begin, end: event.end, what })
                            }
                            _ => None,
                        });
                        self.left_of(id, cut, late, &mut rng).store(&root.join(path));
                    }
                }
            }
        }
    }

    fn left_of(
        &self,
        id: usize,
        cut: Cut,
        late: impl Iterator<Item = Pending<Change>>,
        rng: &mut Rng,
    ) -> Bytes {
        let FileState { durable, pending } = &self.files[id];
        let mut bytes = durable.clone();
        let mut pending = pending.clone();
        if cut != Cut::Drop {
            pending.extend(late);
        }
        // Half of the files lose or keep everything: one whole and another one old is the hardest case.
        let whim = rng.below(4);
        for pending in in_order(&pending) {
            match (cut, whim) {
                (Cut::Drop, _) | (Cut::Torn(_), 0) => {}
                (Cut::Keep, _) | (Cut::Torn(_), 1) => whole(&mut bytes, &pending.what),
                (Cut::Torn(_), _) => match (rng.below(3), &pending.what) {
                    (0, _) => {}
                    (1, Change::Write(off, data)) => torn(&mut bytes, *off, data, rng),
                    (_, what) => whole(&mut bytes, what),
                },
            }
        }
        bytes
    }

    /// Compares what the process must see with what is there: nothing was overlooked. Returns the number of files.
    pub fn compare(&self, root: &Path, parts: &[&str]) -> Result<usize, String> {
        let there = Self::load(root, parts);
        let mut count = 0;
        for (path, dir) in &self.dirs {
            let other = there.dirs.get(path).ok_or_else(|| format!("{path} is not there"))?;
            if !dir.now.keys().eq(other.now.keys()) {
                return Err(format!("{path}: {:?} is there, {:?} was recorded", other.now, dir.now));
            }
            for (name, node) in &dir.now {
                let (Node::File(id), Some(Node::File(other))) = (node, other.now.get(name)) else { continue };
                let keep = self.left_of(*id, Cut::Keep, std::iter::empty(), &mut Rng::new(0));
                if !keep.equals(&there.files[*other].durable) {
                    return Err(format!("{path}/{name} is not what was recorded"));
                }
                count += 1;
            }
        }
        Ok(count)
    }
}

fn in_order<T: Clone>(pending: &[Pending<T>]) -> Vec<Pending<T>> {
    let mut sorted = pending.to_vec();
    sorted.sort_by_key(|pending| pending.begin);
    sorted
}

fn whole(bytes: &mut Bytes, change: &Change) {
    match change {
        Change::Write(off, data) => bytes.write(*off, data),
        Change::SetLen(len) => bytes.set_len(*len),
    }
}

/// Some sectors of a write; the length may have grown also where they have not arrived.
fn torn(bytes: &mut Bytes, off: u64, data: &[u8], rng: &mut Rng) {
    let mut at = 0;
    while at < data.len() {
        let sector = SECTOR - usize::try_from((off + at as u64) % SECTOR as u64).unwrap();
        let end = (at + sector).min(data.len());
        if rng.chance(50) {
            bytes.write(off + at as u64, &data[at..end]);
        }
        at = end;
    }
    if rng.chance(50) {
        bytes.len = bytes.len.max(off + data.len() as u64);
    }
}

fn name_in(names: &mut BTreeMap<String, Node>, what: &Naming) {
    match what {
        Naming::Put(name, node) => drop(names.insert(name.clone(), *node)),
        Naming::Remove(name) | Naming::MovedOut(name, _) => drop(names.remove(name)),
        Naming::Move(from, to) => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
    }
}

#[test]
fn unsynced_changes_may_go_and_synced_ones_stay() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(dir.path().join("v/sub")).unwrap();
    fs::write(dir.path().join("v/old"), [1; 2000]).unwrap();
    let mut model = Model::load(dir.path(), &["v"]);
    let mut line = 0;
    let mut run = |model: &mut Model, op: Op| {
        line += 1;
        model.apply(&Event { begin: line, end: line, op }).unwrap();
    };
    let write = |path: &str, off, byte, len| Op::Write(path.into(), off, Arc::new(vec![byte; len]));
    run(&mut model, Op::Create("v/new".into()));
    run(&mut model, write("v/new", 0, 2, 1000));
    run(&mut model, Op::Sync("v/new".into()));
    run(&mut model, write("v/old", 512, 3, 512));
    let see = |model: &Model, cut: Cut| {
        let root = out.path().join("image");
        drop(fs::remove_dir_all(&root));
        model.store(&root, cut, &[]);
        (fs::read(root.join("v/old")).ok(), fs::read(root.join("v/new")).ok(), root)
    };
    let changed = [vec![1; 512], vec![3; 512], vec![1; 976]].concat();
    let (old, new, _) = see(&model, Cut::Drop);
    assert_eq!((old, new), (Some(vec![1; 2000]), None), "a name that was not synced goes, a write too");
    let (old, new, _) = see(&model, Cut::Keep);
    assert_eq!((old, new), (Some(changed.clone()), Some(vec![2; 1000])));
    for seed in 0..40 {
        let (old, new, _) = see(&model, Cut::Torn(seed));
        assert!([vec![1; 2000], changed.clone()].contains(&old.unwrap()), "a sector is whole or not there");
        assert!(new.is_none_or(|new| new == [2; 1000]), "what was synced is whole wherever it has its name");
    }
    run(&mut model, Op::Sync("v".into()));
    run(&mut model, Op::Rename("v/new".into(), "v/sub/new".into()));
    for cut in [Cut::Drop, Cut::Keep].into_iter().chain((0..40).map(Cut::Torn)) {
        let (_, new, root) = see(&model, cut);
        assert!(new.is_some() || root.join("v/sub/new").exists(), "{cut:?}: a renamed file keeps a name");
    }
    run(&mut model, Op::Sync("v".into()));
    let (_, new, root) = see(&model, Cut::Drop);
    assert!(new.is_none() && root.join("v/sub/new").exists());
    assert!(model.compare(dir.path(), &["v"]).is_err(), "the directory itself was not changed");
}
