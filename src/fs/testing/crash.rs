//! Crashes: the same random operations, cut off at a sync of the disk; then what recovery finds is judged.
//!
//! What must hold after a crash (design, C1):
//! - all rows obey their rules, and every byte of every file can be read;
//! - names, types, modes, link counts and attributes are those of one moment, not before the last acknowledged commit:
//!   changes of the namespace are kept in order, as a prefix;
//! - each file's bytes are, one by one, bytes that it had at or after its last acknowledged fsync; its size is
//!   between the smallest and the largest that it had since.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use super::super::{Fs, FsOptions};
use super::check::check_rows;
use super::model::{Id, Kind, Model};
use super::ops::{Durable, Op, Pair, Shape};
use super::{Rng, Vault, get, list};
use crate::disk::{CrashMode, SimDisk};
use crate::store::engine::Engine;
use crate::store::records::ROOT_INO;

/// What one inode shows, but for data and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    ino: u64,
    kind: u8,
    mode: u32,
    uid: u32,
    nlink: u32,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// All names of a tree and what they show, by path.
pub(crate) type Names = BTreeMap<Vec<u8>, Seen>;

/// What may be found after a crash.
pub(crate) struct Expected {
    /// The namespace after each operation since the last durable one, that one first.
    pub(crate) names: Vec<Names>,
    /// The contents that each file had since it was last durable, that one first; by inode number.
    pub(crate) contents: BTreeMap<u64, Vec<Vec<u8>>>,
}

fn names_of_model(model: &Model, inos: &BTreeMap<Id, u64>) -> Names {
    let mut names = Names::new();
    let mut todo = vec![(Vec::new(), 0)];
    while let Some((path, id)) = todo.pop() {
        let inode = model.get(id);
        let target = match &inode.kind {
            Kind::Symlink(target) => target.clone(),
            _ => Vec::new(),
        };
        let seen = Seen {
            ino: inos[&id],
            kind: model.file_type(id) as u8,
            mode: inode.mode,
            uid: inode.uid,
            nlink: inode.nlink,
            target,
            xattrs: inode.xattrs.clone(),
        };
        if let Kind::Dir(entries) = &inode.kind {
            for (name, child) in entries {
                todo.push(([path.as_slice(), b"/", name].concat(), *child));
            }
        }
        names.insert(path, seen);
    }
    names
}

/// Returns what a filesystem shows.
pub(crate) fn names_of_fs(fs: &Fs) -> Names {
    let mut names = Names::new();
    let mut todo = vec![(Vec::new(), ROOT_INO)];
    while let Some((path, ino)) = todo.pop() {
        let attr = fs.getattr(ino).unwrap();
        let kind = attr.kind as u8;
        let target = if kind == 3 { fs.readlink(ino).unwrap() } else { Vec::new() };
        let mut xattrs = BTreeMap::new();
        for name in fs.listxattr(ino).unwrap().split(|b| *b == 0).filter(|name| !name.is_empty()) {
            xattrs.insert(name.to_vec(), fs.getxattr(ino, name).unwrap());
        }
        if kind == 2 {
            for (name, child) in list(fs, ino).unwrap() {
                assert_eq!(fs.lookup(ino, &name).unwrap().ino, child);
                todo.push(([path.as_slice(), b"/", &name].concat(), child));
            }
        }
        let seen = Seen { ino, kind, mode: attr.mode, uid: attr.uid, nlink: attr.nlink, target, xattrs };
        names.insert(path, seen);
    }
    names
}

impl Expected {
    /// Returns what may be found if everything is durable now.
    pub(crate) fn new(pair: &Pair) -> Self {
        let mut expected = Self { names: Vec::new(), contents: BTreeMap::new() };
        expected.note(pair, &Durable::All);
        expected
    }

    /// Notes the state after an operation, and what it made durable.
    pub(crate) fn note(&mut self, pair: &Pair, durable: &Durable) {
        if *durable != Durable::No {
            self.names.clear();
        }
        let names = names_of_model(&pair.model, &pair.inos);
        if self.names.last() != Some(&names) {
            self.names.push(names);
        }
        for (id, inode) in &pair.model.inodes {
            let Kind::File(data) = &inode.kind else { continue };
            let history = self.contents.entry(pair.inos[id]).or_default();
            if *durable == Durable::All || *durable == Durable::File(*id) {
                history.clear();
            }
            if history.last() != Some(data) {
                history.push(data.clone());
            }
        }
    }

    /// Notes the state as an operation that failed may have left it.
    fn note_attempt(&mut self, pair: &Pair) {
        // An inode that could not be made has no number, and no batch with it was applied.
        if pair.model.inodes.keys().all(|id| pair.inos.contains_key(id)) {
            self.note(pair, &Durable::No);
        }
    }

    /// Judges what recovery found.
    pub(crate) fn judge(&self, engine: &Arc<Engine>, fs: &Fs) {
        check_rows(engine, false);
        let found = names_of_fs(fs);
        if !self.names.contains(&found) {
            let last = self.names.last().unwrap();
            let differs =
                |other: &Names| found.iter().filter(|(path, seen)| other.get(*path) != Some(seen)).count();
            let best = self.names.iter().min_by_key(|names| differs(names)).unwrap_or(last);
            let wrong: Vec<_> =
                found.iter().filter(|(path, seen)| best.get(*path) != Some(seen)).take(4).collect();
            panic!("the names are of none of {} moments; {wrong:?}", self.names.len());
        }
        for seen in found.values().filter(|seen| seen.kind == 1) {
            self.judge_content(seen.ino, &get(fs, seen.ino).unwrap());
        }
    }

    fn judge_content(&self, ino: u64, found: &[u8]) {
        let history = &self.contents[&ino];
        let lens = || history.iter().map(Vec::len);
        let (least, most) = (lens().min().unwrap(), lens().max().unwrap());
        assert!(
            (least..=most).contains(&found.len()),
            "{ino} has {} bytes, not {least} to {most}",
            found.len()
        );
        for (at, byte) in found.iter().enumerate() {
            let had = history.iter().any(|content| content.get(at) == Some(byte));
            // Behind the shortest it was, a part of it may have been a hole.
            assert!(had || (*byte == 0 && at >= least), "byte {at} of {ino} is {byte}, which it never was");
        }
    }
}

/// When the power goes off, counted from the first random operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// At this sync, which is not done.
    Sync(u64),
    /// At this operation of the disk, of whatever kind.
    Disk(u64),
}

/// One run of random operations up to a crash.
#[derive(Debug)]
pub(crate) struct CrashRun {
    /// Decides everything.
    pub(crate) seed: u64,
    /// Operations.
    pub(crate) count: usize,
    /// Sizes.
    pub(crate) shape: Shape,
}

impl CrashRun {
    fn vault(&self) -> Vault {
        Vault::new(self.seed, super::small_config())
    }

    /// Runs the operations until the power goes off, or to the end. Returns the disk and what may be found on it.
    fn run(&self, crash_at: Option<Point>) -> (Vault, Expected, (u64, u64)) {
        let vault = self.vault();
        let mut pair = Pair::new(&vault, self.shape);
        pair.fs.sync_all().unwrap();
        let begun = (vault.disk.sync_points(), vault.disk.operations());
        match crash_at {
            Some(Point::Sync(n)) => vault.disk.crash_at(begun.0 + n),
            Some(Point::Disk(n)) => vault.disk.crash_at_operation(begun.1 + n),
            None => {}
        }
        let mut expected = Expected::new(&pair);
        let mut rng = Rng::new(self.seed);
        for _ in 0..self.count {
            let op = Op::random(&mut rng, self.shape);
            let before = pair.model.clone();
            match pair.apply(&op) {
                Ok(durable) => expected.note(&pair, &durable),
                Err(error) => {
                    assert!(vault.disk.is_off(), "{op:?} failed with the power on: {error}");
                    // It may have been done or not.
                    expected.note_attempt(&pair);
                    pair.model = before;
                    break;
                }
            }
        }
        let points = (vault.disk.sync_points() - begun.0, vault.disk.operations() - begun.1);
        // What still runs writes nothing any more.
        vault.disk.power_off();
        (vault, expected, points)
    }

    /// Returns how many syncs, and how many operations of the disk, the run makes.
    pub(crate) fn points(&self) -> (u64, u64) {
        self.run(None).2
    }

    /// Crashes at a point in several ways, recovers, and judges.
    pub(crate) fn crash_at(&self, point: Point) {
        let (vault, expected, _) = self.run(Some(point));
        let (Point::Sync(n) | Point::Disk(n)) = point;
        let modes = [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn(n), CrashMode::Torn(!n)];
        for (i, mode) in modes.into_iter().enumerate() {
            let image: SimDisk = vault.disk.crash_image(mode);
            let judged = catch_unwind(AssertUnwindSafe(|| {
                let again = vault.on(image, i as u64);
                let engine = again.engine().unwrap();
                let fs = Fs::open(engine.clone(), FsOptions::default()).unwrap();
                expected.judge(&engine, &fs);
                // It is a working vault: what is written now is there after a proper end.
                let (ino, fh) = super::put(&fs, ROOT_INO, b"after", &[7; 10_000]);
                fs.flush(ino, fh).unwrap();
                fs.release(ino, fh).unwrap();
                super::close(&engine, fs);
                let (engine, fs) = again.open();
                assert_eq!(get(&fs, ino).unwrap(), [7; 10_000]);
                check_rows(&engine, false);
            }));
            if let Err(panic) = judged {
                eprintln!("STRONGROOM_SEED={} {point:?} {mode:?}, {self:?}", self.seed);
                resume_unwind(panic);
            }
        }
    }
}
