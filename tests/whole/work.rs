//! Seeded workloads on a whole vault, written down as they go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use strongroom::env::Time;
use strongroom::format::FileType;
use strongroom::fs::{Caller, Fh, OpenFlags, RenameFlags, SetAttr, SetTime, falloc};
use strongroom::snapshot::delete::{DeleteOpts, delete};
use strongroom::store::records::ROOT_INO;

use super::hook::Recorder;
use super::model::{Ack, Files, History, Node, Snap, Tree, Version};
use super::rng::Rng;
use super::view::{difference, dump_fs};
use super::{Host, Session};

/// How often each kind of step comes, relative to each other.
#[derive(Clone, Debug)]
pub struct Mix {
    pub names: u64,
    pub data: u64,
    pub attrs: u64,
    pub syncs: u64,
    pub snapshots: u64,
    pub collections: u64,
    pub remounts: u64,
    pub keys: u64,
    /// The largest file, in bytes.
    pub file_max: usize,
}

impl Default for Mix {
    fn default() -> Self {
        Mix {
            names: 34,
            data: 30,
            attrs: 8,
            syncs: 14,
            snapshots: 6,
            collections: 3,
            remounts: 3,
            keys: 2,
            file_max: 90_000,
        }
    }
}

/// The kind of a step, from what it said it was to do.
pub fn kind_of(said: &str) -> String {
    let words: Vec<&str> = said.split(' ').collect();
    match words[..] {
        ["delete" | "change", ..] => words[..2].join(" "),
        ["rename", _, _, "over", ..] => "rename over".into(),
        [first, ..] => first.into(),
        [] => String::new(),
    }
}

/// A vault at work.
pub struct Work {
    pub host: Host,
    pub session: Option<Session>,
    pub history: History,
    pub tree: Tree,
    rng: Rng,
    mix: Mix,
    recorder: Option<Arc<Recorder>>,
    step: usize,
    open: Vec<(u64, Fh)>,
    content: BTreeMap<u64, Vec<u8>>,
    key: u32,
}

impl Work {
    /// Opens a vault that has just been made.
    pub fn start(host: Host, recorder: Option<Arc<Recorder>>, seed: u64, mix: Mix) -> Work {
        let mut work = Work::new(host, recorder, seed, mix);
        work.begin_work();
        work
    }

    /// What [`Work::begin_work`] will open.
    pub fn new(host: Host, recorder: Option<Arc<Recorder>>, seed: u64, mix: Mix) -> Work {
        let mut work = Work {
            host,
            session: None,
            history: History { keys: vec![0], ..History::default() },
            tree: Tree::new(),
            rng: Rng(seed),
            mix,
            recorder,
            step: 0,
            open: Vec::new(),
            content: BTreeMap::new(),
            key: 0,
        };
        work.history.trees.push(Arc::new(work.tree.clone()));
        work.history.said.push("start".into());
        work
    }

    pub fn begin_work(&mut self) {
        self.mount();
    }

    /// The number of the keyfile that opens the vault.
    pub fn key(&self) -> u32 {
        self.key
    }

    /// The steps that have begun, and those that have returned.
    pub fn progress(&self) -> (usize, usize) {
        (self.step, self.history.trees.len() - 1)
    }

    /// What the last step was to do.
    pub fn said(&self) -> &str {
        self.history.said.last().map_or("", |s| s)
    }

    fn fs(&self) -> &strongroom::fs::Fs {
        &self.session.as_ref().expect("mounted").fs
    }

    fn session(&self) -> &Session {
        self.session.as_ref().expect("mounted")
    }

    fn mount(&mut self) {
        self.begin("mount");
        let session = self.host.open(self.key).unwrap_or_else(|e| panic!("mount: {e}"));
        self.session = Some(session);
        self.end();
    }

    fn begin(&mut self, what: impl Into<String>) {
        self.step += 1;
        self.history.said.push(what.into());
        if let Some(recorder) = &self.recorder {
            recorder.begun.store(self.step, Ordering::SeqCst);
        }
    }

    fn end(&mut self) {
        self.history.trees.push(Arc::new(self.tree.clone()));
        if let Some(recorder) = &self.recorder {
            recorder.done.store(self.step, Ordering::SeqCst);
        }
    }

    fn ack(&mut self, files: Files) {
        self.history.acks.push(Ack { step: self.step, files });
    }

    fn new_content(&mut self, ino: u64) {
        let bytes = Arc::new(self.content[&ino].clone());
        let version = Version { step: self.step, bytes };
        self.history.versions.entry(ino).or_default().push(version);
    }

    /// Does so many steps.
    pub fn run(&mut self, steps: usize) {
        let until = self.step + steps;
        while self.step < until {
            self.one();
        }
    }

    /// Unmounts for good.
    pub fn stop(&mut self) {
        self.unmount();
    }

    /// Writes one more file, of bytes that were never there before.
    pub fn write_new_file(&mut self, len: usize) {
        let (ino, fh) = self.create_in(ROOT_INO);
        let data = self.rng.bytes(len);
        self.write(ino, fh, 0, &data);
    }

    /// A directory that takes several tree objects: many long names, of files that are stored inline.
    pub fn make_large_directory(&mut self, entries: usize) {
        let dir = self.mkdir_named(ROOT_INO, b"large directory".to_vec());
        for n in 0..entries {
            let name = format!("{n:04}-{}", "long-name-".repeat(18)).into_bytes();
            self.begin("create in the large directory");
            let flags = OpenFlags { write: true, truncate: false, exclusive: true };
            let made = self.fs().create(dir, &name, 0o600, 0, flags, Caller::default());
            let (attr, fh) = made.expect("create in the large directory");
            self.tree.0.insert(attr.ino, Arc::new(Node::of(&attr)));
            self.tree.node(dir).names.insert(name, attr.ino);
            self.content.insert(attr.ino, Vec::new());
            self.new_content(attr.ino);
            self.end();
            if n % 8 == 0 {
                let data = format!("inline {n}").into_bytes();
                self.write(attr.ino, fh, 0, &data);
            }
            self.begin("release in the large directory");
            self.fs().release(attr.ino, fh).expect("release");
            self.end();
        }
    }

    /// A file with so many extents that their list is an object of its own; most of its chunks are the same.
    pub fn make_long_file(&mut self, repeats: usize) {
        let (ino, fh) = self.create_in(ROOT_INO);
        let block = self.rng.bytes(24 << 10);
        for n in 0..repeats {
            self.write(ino, fh, (n * block.len()) as u64, &block);
        }
    }

    /// Makes everything durable, without a snapshot.
    pub fn sync_everything(&mut self) {
        self.begin("sync_all");
        self.fs().sync_all().expect("sync_all");
        self.ack(Files::All);
        self.end();
    }

    /// Unmounts for good and returns the tree as it was then; or leaves everything as it is.
    pub fn stop_if(&mut self, unmount: bool) -> Option<super::view::Dump> {
        if !unmount {
            return None;
        }
        while !self.open.is_empty() {
            self.close_one();
        }
        self.sync_everything();
        let tree = self.dump();
        self.unmount();
        Some(tree)
    }

    fn one(&mut self) {
        let m = self.mix.clone();
        let weights = [m.names, m.data, m.attrs, m.syncs, m.snapshots, m.collections, m.remounts, m.keys];
        let mut at = self.rng.below(weights.iter().sum());
        let mut kind = 0;
        while at >= weights[kind] {
            at -= weights[kind];
            kind += 1;
        }
        match kind {
            0 => self.change_names(),
            1 => self.change_data(),
            2 => self.change_attrs(),
            3 => self.sync(),
            4 => self.change_snapshots(),
            5 => self.collect(),
            6 => {
                self.unmount();
                if self.mix.keys > 0 && self.rng.percent(40) {
                    self.change_key();
                }
                self.mount();
            }
            _ => self.change_key(),
        }
    }

    fn some_dir(&mut self) -> u64 {
        let dirs = self.tree.dirs();
        *self.rng.pick(&dirs).expect("there is always the root")
    }

    fn fresh_name(&mut self, dir: u64) -> Vec<u8> {
        loop {
            let n = self.rng.below(60);
            let name = match n % 7 {
                0 => format!("account-{n:03}.tar.gz").into_bytes(),
                1 => [b"odd\n\xff".as_slice(), n.to_string().as_bytes()].concat(),
                _ => format!("f{n}").into_bytes(),
            };
            if !self.tree.0[&dir].names.contains_key(&name) {
                return name;
            }
        }
    }

    fn change_names(&mut self) {
        let names = self.tree.names();
        match self.rng.below(20) {
            0..6 => self.create(),
            6..8 => {
                let dir = self.some_dir();
                if self.tree.depth(dir) < 5 {
                    self.mkdir(dir);
                }
            }
            8 => {
                let (dir, name) = (self.some_dir(), b"to".to_vec());
                let name = [name, self.fresh_name(dir)].concat();
                if self.tree.0[&dir].names.contains_key(&name) {
                    return;
                }
                self.begin("symlink");
                let target = self.rng.bytes(30);
                let target: Vec<u8> = target.into_iter().map(|b| b'a' + b % 26).collect();
                let attr = self.fs().symlink(dir, &name, &target, Caller::default()).expect("symlink");
                let node = Node { target, ..Node::of(&attr) };
                self.tree.0.insert(attr.ino, Arc::new(node));
                self.tree.node(dir).names.insert(name, attr.ino);
                self.end();
            }
            9..11 => {
                let files = self.tree.files();
                let Some(ino) = self.rng.pick(&files).copied() else { return };
                let dir = self.some_dir();
                let name = self.fresh_name(dir);
                self.begin(format!("link inode {ino}"));
                self.fs().link(ino, dir, &name).expect("link");
                self.tree.node(dir).names.insert(name, ino);
                self.end();
            }
            11..14 => {
                let Some((dir, name, ino)) = self.rng.pick(&names).cloned() else { return };
                if self.tree.0[&ino].kind == FileType::Dir {
                    if !self.tree.0[&ino].names.is_empty() {
                        return;
                    }
                    self.begin(format!("rmdir inode {ino}"));
                    self.fs().rmdir(dir, &name).expect("rmdir");
                } else {
                    self.begin(format!("unlink inode {ino}"));
                    self.fs().unlink(dir, &name).expect("unlink");
                }
                self.tree.unname(dir, &name);
                self.end();
            }
            14..17 => self.rename_over(&names),
            _ => self.rename(&names),
        }
    }

    fn create_in(&mut self, dir: u64) -> (u64, Fh) {
        let name = self.fresh_name(dir);
        self.begin("create");
        let flags = OpenFlags { write: true, truncate: false, exclusive: true };
        let (attr, fh) = self.fs().create(dir, &name, 0o640, 0, flags, Caller::default()).expect("create");
        self.tree.0.insert(attr.ino, Arc::new(Node::of(&attr)));
        self.tree.node(dir).names.insert(name, attr.ino);
        self.content.insert(attr.ino, Vec::new());
        self.new_content(attr.ino);
        self.end();
        self.open.push((attr.ino, fh));
        (attr.ino, fh)
    }

    fn create(&mut self) {
        let dir = self.some_dir();
        let (ino, fh) = self.create_in(dir);
        let max = self.mix.file_max;
        let size = match self.rng.below(5) {
            0 => 0,
            1 => self.rng.index(600),
            2 => self.rng.index(9_000),
            _ => self.rng.index(max),
        };
        // As cp does: several writes in a row.
        let data = self.rng.content(size);
        let piece = 1 + self.rng.index(40_000);
        for (n, part) in data.chunks(piece).enumerate() {
            self.write(ino, fh, (n * piece) as u64, part);
        }
        if self.rng.percent(70) {
            self.close_one();
        }
    }

    fn mkdir(&mut self, dir: u64) {
        let name = self.fresh_name(dir);
        self.mkdir_named(dir, name);
    }

    fn mkdir_named(&mut self, dir: u64, name: Vec<u8>) -> u64 {
        self.begin("mkdir");
        let attr = self.fs().mkdir(dir, &name, 0o755, 0, Caller::default()).expect("mkdir");
        self.tree.0.insert(attr.ino, Arc::new(Node::of(&attr)));
        self.tree.node(dir).names.insert(name, attr.ino);
        self.end();
        attr.ino
    }

    /// As programs do that write a new file beside the old one.
    fn rename_over(&mut self, names: &[(u64, Vec<u8>, u64)]) {
        let is_file = |ino: &u64| self.tree.0[ino].kind == FileType::File;
        let files: Vec<_> = names.iter().filter(|(_, _, ino)| is_file(ino)).cloned().collect();
        let (Some(from), Some(to)) = (self.rng.pick(&files).cloned(), self.rng.pick(&files).cloned()) else {
            return;
        };
        if from.2 == to.2 {
            return;
        }
        self.begin(format!("rename inode {} over inode {}", from.2, to.2));
        self.fs().rename(from.0, &from.1, to.0, &to.1, RenameFlags::default()).expect("rename over");
        self.tree.unname(to.0, &to.1);
        self.tree.node(to.0).names.insert(to.1, from.2);
        self.tree.node(from.0).names.remove(&from.1);
        self.history.barriers.push((self.step, from.2));
        self.end();
    }

    fn rename(&mut self, names: &[(u64, Vec<u8>, u64)]) {
        let Some((dir, name, ino)) = self.rng.pick(names).cloned() else { return };
        let to = self.some_dir();
        if self.tree.0[&ino].kind == FileType::Dir && (self.tree.is_below(to, ino) || self.tree.depth(to) > 3)
        {
            return;
        }
        let new = self.fresh_name(to);
        self.begin(format!("rename inode {ino}"));
        self.fs().rename(dir, &name, to, &new, RenameFlags::default()).expect("rename");
        self.tree.node(dir).names.remove(&name);
        self.tree.node(to).names.insert(new, ino);
        self.end();
    }

    fn handle(&mut self) -> Option<(u64, Fh)> {
        if self.rng.percent(50) && !self.open.is_empty() {
            return self.rng.pick(&self.open).copied();
        }
        let files = self.tree.files();
        let ino = self.rng.pick(&files).copied()?;
        if let Some(open) = self.open.iter().find(|(open, _)| *open == ino) {
            return Some(*open);
        }
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let fh = self.fs().open_file(ino, flags, Caller::default()).expect("open");
        self.open.push((ino, fh));
        Some((ino, fh))
    }

    fn write(&mut self, ino: u64, fh: Fh, off: u64, data: &[u8]) {
        let over = if (off as usize) < self.content[&ino].len() { "over" } else { "" };
        self.begin(format!("{over}write {} bytes at {off} of inode {ino}", data.len()));
        let n = self.fs().write(ino, fh, off, data, false).expect("write");
        assert_eq!(n, data.len(), "a short write");
        if !data.is_empty() {
            let content = self.content.get_mut(&ino).expect("content");
            let end = off as usize + data.len();
            content.resize(content.len().max(end), 0);
            content[off as usize..end].copy_from_slice(data);
        }
        self.new_content(ino);
        self.end();
    }

    fn change_data(&mut self) {
        if self.open.len() > 5 {
            self.close_one();
        }
        let Some((ino, fh)) = self.handle() else { return };
        let size = self.content[&ino].len();
        let max = self.mix.file_max;
        match self.rng.below(12) {
            0..3 => {
                let len = 1 + self.rng.index(30_000.min(max));
                let data = self.rng.content(len);
                self.write(ino, fh, size as u64, &data);
            }
            3..7 => {
                let off = self.rng.index(size + 1);
                let len = if self.rng.percent(50) { self.rng.index(300) } else { self.rng.index(20_000) };
                let data = self.rng.content(len);
                self.write(ino, fh, off as u64, &data);
            }
            7 => {
                let off = size + self.rng.index(40_000);
                let len = 1 + self.rng.index(3_000);
                let data = self.rng.content(len);
                self.write(ino, fh, off as u64, &data);
            }
            8..10 => {
                let to = if self.rng.percent(80) {
                    self.rng.index(size + 1)
                } else {
                    size + self.rng.index(20_000)
                };
                self.begin(format!("truncate inode {ino} from {size} to {to}"));
                let set = SetAttr { size: Some(to as u64), ..SetAttr::default() };
                self.fs().setattr(ino, set, Some(fh), Caller::default()).expect("truncate");
                self.content.get_mut(&ino).expect("content").resize(to, 0);
                self.new_content(ino);
                self.end();
            }
            10 => {
                let off = self.rng.index(size + 1);
                let len = 1 + self.rng.index(20_000);
                self.begin(format!("punch {len} at {off} of inode {ino}"));
                let mode = falloc::PUNCH_HOLE | falloc::KEEP_SIZE;
                self.fs().fallocate(ino, fh, off as u64, len as u64, mode).expect("punch");
                let end = (off + len).min(size);
                if off < end {
                    self.content.get_mut(&ino).expect("content")[off..end].fill(0);
                }
                self.new_content(ino);
                self.end();
            }
            _ => self.copy_range(ino, fh),
        }
        if self.rng.percent(30) {
            self.close_one();
        }
    }

    fn copy_range(&mut self, to: u64, to_fh: Fh) {
        let Some((from, from_fh)) = self.handle() else { return };
        if from == to {
            return;
        }
        let (from_off, to_off) =
            (self.rng.index(self.content[&from].len() + 1), self.rng.index(self.content[&to].len() + 1));
        let len = 1 + self.rng.index(40_000);
        self.begin(format!("copy {len} at {from_off} of inode {from} to {to_off} of inode {to}"));
        let n = self
            .fs()
            .copy_file_range(from, from_fh, from_off as u64, to, to_fh, to_off as u64, len as u64)
            .expect("copy_file_range");
        let data = self.content[&from][from_off..from_off + n].to_vec();
        let content = self.content.get_mut(&to).expect("content");
        if n > 0 {
            content.resize(content.len().max(to_off + n), 0);
            content[to_off..to_off + n].copy_from_slice(&data);
        }
        self.new_content(to);
        self.end();
    }

    fn close_one(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.rng.index(self.open.len());
        let (ino, fh) = self.open.swap_remove(at);
        self.begin(format!("close inode {ino}"));
        self.fs().flush(ino, fh).expect("flush");
        self.fs().release(ino, fh).expect("release");
        self.end();
    }

    fn change_attrs(&mut self) {
        let inos: Vec<u64> = self.tree.0.keys().copied().collect();
        let ino = *self.rng.pick(&inos).expect("there is always the root");
        let kind = self.tree.0[&ino].kind;
        match self.rng.below(5) {
            0 if kind != FileType::Symlink => {
                let mode = [0o600, 0o644, 0o750, 0o2755][self.rng.index(4)];
                self.begin(format!("chmod inode {ino}"));
                let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
                self.fs().setattr(ino, set, None, Caller::default()).expect("chmod");
                self.tree.node(ino).mode = mode;
                self.end();
            }
            1 => {
                let (uid, gid) = (self.rng.below(3) as u32 * 1000, self.rng.below(3) as u32 * 1000);
                self.begin(format!("chown inode {ino}"));
                let set = SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
                let attr = self.fs().setattr(ino, set, None, Caller::default()).expect("chown");
                let node = self.tree.node(ino);
                // Whether a change of owner clears set-group-id is not what these tests are about.
                (node.uid, node.gid, node.mode) = (uid, gid, attr.mode);
                self.end();
            }
            2 => {
                let at = Time { secs: 1_000_000 + self.rng.below(1_000_000) as i64, nanos: 123_456_789 };
                self.begin(format!("utimens inode {ino}"));
                let set = SetAttr { mtime: Some(SetTime::At(at)), ..SetAttr::default() };
                self.fs().setattr(ino, set, None, Caller::default()).expect("utimens");
                self.end();
            }
            _ if kind == FileType::Symlink => {}
            3 => {
                let name = format!("user.x{}", self.rng.below(4)).into_bytes();
                let max = if self.rng.percent(10) { 5_000 } else { 60 };
                let len = self.rng.index(max);
                let value = self.rng.bytes(len);
                self.begin(format!("setxattr inode {ino}"));
                self.fs().setxattr(ino, &name, &value, 0).expect("setxattr");
                self.tree.node(ino).xattrs.insert(name, value);
                self.end();
            }
            _ => {
                let names: Vec<Vec<u8>> = self.tree.0[&ino].xattrs.keys().cloned().collect();
                let Some(name) = self.rng.pick(&names).cloned() else { return };
                self.begin(format!("removexattr inode {ino}"));
                self.fs().removexattr(ino, &name).expect("removexattr");
                self.tree.node(ino).xattrs.remove(&name);
                self.end();
            }
        }
    }

    fn fsync(&mut self, ino: u64) {
        self.begin(format!("fsync inode {ino}"));
        self.fs().fsync(ino, false).expect("fsync");
        self.ack(Files::One(ino));
        self.end();
    }

    fn sync(&mut self) {
        match self.rng.below(8) {
            0..3 => {
                let Some((ino, _)) = self.handle() else { return };
                self.fsync(ino);
            }
            3 => {
                // A database's pages: scattered, and each synced.
                let Some((ino, fh)) = self.handle() else { return };
                let size = self.content[&ino].len();
                for _ in 0..2 + self.rng.index(6) {
                    let (off, len) = (self.rng.index(size + 1), 1 + self.rng.index(1500));
                    let data = self.rng.content(len);
                    self.write(ino, fh, off as u64, &data);
                    self.fsync(ino);
                }
            }
            4 => {
                let dir = self.some_dir();
                self.begin("fsyncdir");
                self.fs().fsyncdir(dir).expect("fsyncdir");
                self.ack(Files::None);
                self.end();
            }
            5 => {
                self.begin("sync_all");
                self.fs().sync_all().expect("sync_all");
                self.ack(Files::All);
                self.end();
            }
            _ => {
                self.begin("tick");
                let secs = 1 + self.rng.below(70);
                self.session().tick(secs).expect("tick");
                self.end();
            }
        }
    }

    fn change_snapshots(&mut self) {
        let there: Vec<u64> =
            self.history.snapshots.iter().filter(|(_, s)| s.deleted.is_none()).map(|(seq, _)| *seq).collect();
        if there.len() > 1 && (there.len() > 3 || self.rng.percent(30)) {
            let seq = there[self.rng.index(there.len() - 1)];
            self.delete_snapshot(seq);
            return;
        }
        self.snapshot(true);
    }

    pub fn delete_snapshot(&mut self, seq: u64) {
        self.begin(format!("delete snapshot {seq}"));
        let step = self.step;
        self.history.snapshots.get_mut(&seq).expect("known").deleted = Some(step);
        let opts = DeleteOpts { host: "test".into(), force: false };
        delete(&self.session().engine, &[seq], &opts).unwrap_or_else(|e| panic!("delete snapshot: {e}"));
        self.session().note_newest(true).expect("high-water mark");
        self.end();
    }

    /// What the tree is now, proved to be what the model says.
    fn dump(&self) -> super::view::Dump {
        dump_fs(self.fs()).unwrap_or_else(|e| panic!("reading the working tree: {e}"))
    }

    pub fn snapshot(&mut self, force: bool) {
        self.begin("snapshot");
        let tree = Arc::new(self.dump());
        self.prove(&tree);
        let made = self.session().snapshot(force).unwrap_or_else(|e| panic!("snapshot: {e}"));
        if let Some(info) = made {
            // Times of what was in memory are settled by the flush that the snapshot does.
            let after = Arc::new(self.dump());
            self.prove(&after);
            self.history.snapshots.insert(info.seq, Snap { made: self.step, tree: after, deleted: None });
        }
        self.ack(Files::All);
        self.end();
    }

    /// The mounted tree must be what the model says, at any time.
    pub fn prove(&self, tree: &super::view::Dump) {
        let mut now = History {
            trees: vec![Arc::new(self.tree.clone())],
            acks: vec![Ack { step: 0, files: Files::All }],
            ..History::default()
        };
        for (ino, bytes) in &self.content {
            now.versions.insert(*ino, vec![Version { step: 0, bytes: Arc::new(bytes.clone()) }]);
        }
        if let Err(e) = now.check(tree, 0, 0) {
            panic!("after step {}, the mounted tree is not what was written: {e}", self.step);
        }
    }

    pub fn collect(&mut self) {
        self.begin("gc");
        self.session().gc().unwrap_or_else(|e| panic!("gc: {e}"));
        self.end();
    }

    fn unmount(&mut self) {
        while !self.open.is_empty() {
            self.close_one();
        }
        self.begin("unmount");
        self.fs().sync_all().expect("sync before unmounting");
        let before = self.dump();
        self.prove(&before);
        let session = self.session.take().expect("mounted");
        let made = session.unmount().unwrap_or_else(|e| panic!("unmount: {e}"));
        if let Some(info) = made {
            let snap = Snap { made: self.step, tree: Arc::new(before.clone()), deleted: None };
            self.history.snapshots.insert(info.seq, snap);
        }
        self.ack(Files::All);
        self.end();
        // Nothing changes while it is not mounted.
        let session = self.host.open(self.key).unwrap_or_else(|e| panic!("mount again: {e}"));
        let after = self.dump_of(&session);
        if let Some(difference) = difference(&after, &before) {
            panic!("after step {}, a remount changed the tree:\n{difference}", self.step);
        }
        drop(session.unmount().unwrap_or_else(|e| panic!("unmount of a look: {e}")));
    }

    fn dump_of(&self, session: &Session) -> super::view::Dump {
        dump_fs(&session.fs).unwrap_or_else(|e| panic!("after a remount: {e}"))
    }

    pub fn change_key(&mut self) {
        let new = self.key + 1;
        self.begin(format!("change key {} to {new}", self.key));
        self.history.keys.push(self.step);
        self.host.change_key(self.key, new).unwrap_or_else(|e| panic!("change key: {e}"));
        self.key = new;
        self.end();
    }
}
