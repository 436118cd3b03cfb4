//! `kill -9` of the daemon under load: what was fsynced is there after the next mount (C1).
//!
//! Each writer keeps a ledger in this process, outside the vault. Before an operation it notes what the operation will
//! make of a file or of the directory; when an fsync has returned, everything noted so far is settled. After the kill
//! the directory must be one of the states since the last settled one, in order, and every file must have its settled
//! content, changed at most by later writes.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::common::{Rng, Sandbox, kill_9, seed, wait_until};

const ROUNDS: usize = 50;
const WRITERS: usize = 4;
/// Files that a writer keeps at most.
const FILES_MAX: usize = 30;
/// Unsettled notes that a writer lets pile up at most.
const UNSETTLED_MAX: usize = 12;

type Names = BTreeMap<String, u64>;

/// One writer, its directory, and its ledger.
struct Writer {
    dir: PathBuf,
    rng: Rng,
    serial: u64,
    /// States of the directory: the settled one, then one after each later operation.
    states: Vec<Names>,
    /// Contents of each file: the settled one, then one after each later write.
    contents: HashMap<u64, Vec<Vec<u8>>>,
    /// How many fsyncs returned.
    synced: u64,
}

impl Writer {
    fn new(dir: PathBuf, seed: u64) -> Self {
        Self {
            dir,
            rng: Rng::new(seed),
            serial: 0,
            states: vec![Names::new()],
            contents: HashMap::new(),
            synced: 0,
        }
    }

    fn names(&self) -> &Names {
        self.states.last().unwrap()
    }

    /// Notes what the next operation does to the directory.
    fn note_names(&mut self, change: impl FnOnce(&mut Names)) {
        let mut names = self.names().clone();
        change(&mut names);
        self.states.push(names);
    }

    /// Notes what the next operation does to a file.
    fn note_content(&mut self, file: u64, content: Vec<u8>) {
        self.contents.get_mut(&file).unwrap().push(content);
    }

    fn content(&self, file: u64) -> &Vec<u8> {
        self.contents[&file].last().unwrap()
    }

    /// An fsync has returned: of a file, or of the directory.
    fn settle(&mut self, file: Option<u64>) {
        self.synced += 1;
        self.states.drain(..self.states.len() - 1);
        let names = self.names().clone();
        self.contents.retain(|id, _| names.values().any(|named| named == id));
        if let Some(contents) = file.and_then(|id| self.contents.get_mut(&id)) {
            contents.drain(..contents.len() - 1);
        }
    }

    fn fresh_name(&mut self) -> String {
        self.serial += 1;
        format!("file-{}", self.serial)
    }

    fn any_file(&mut self) -> Option<(String, u64)> {
        let count = self.names().len();
        if count == 0 {
            return None;
        }
        let at = self.rng.below(count);
        self.names().iter().nth(at).map(|(name, id)| (name.clone(), *id))
    }

    /// One operation, as backup jobs do them.
    fn step(&mut self) -> io::Result<()> {
        let unsettled = self.contents.values().map(|c| c.len() - 1).sum::<usize>() + self.states.len();
        if unsettled > UNSETTLED_MAX {
            return self.settle_all();
        }
        let Some((name, id)) = self.any_file() else { return self.create(4_000) };
        if self.names().len() >= FILES_MAX {
            return self.unlink(&name);
        }
        match self.rng.below(100) {
            0..25 => {
                let len = self.rng.below(40_000);
                self.create(len)
            }
            25..30 => {
                let len = 1_000_000 + self.rng.below(2_500_000);
                self.create(len)
            }
            30..50 => self.append(&name, id),
            50..62 => self.overwrite(&name, id),
            62..67 => self.rewrite(&name, id),
            67..80 => self.replace(&name),
            80..90 => self.rename(&name),
            90..95 => self.unlink(&name),
            _ => self.sync_dir(),
        }
    }

    fn settle_all(&mut self) -> io::Result<()> {
        for (name, id) in self.names().clone() {
            if self.contents[&id].len() > 1 {
                File::open(self.dir.join(name))?.sync_all()?;
                self.settle(Some(id));
            }
        }
        self.sync_dir()
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()?;
        self.settle(None);
        Ok(())
    }

    fn maybe_sync(&mut self, file: &File, id: u64, percent: usize) -> io::Result<()> {
        if self.rng.chance(percent) {
            file.sync_all()?;
            self.settle(Some(id));
        }
        Ok(())
    }

    /// A new file with a first content; returns it open.
    fn create_file(&mut self, name: &str, len: usize) -> io::Result<(File, u64)> {
        self.serial += 1;
        let id = self.serial;
        self.contents.insert(id, vec![Vec::new()]);
        self.note_names(|names| {
            names.insert(name.to_string(), id);
        });
        let mut file = File::options().write(true).create_new(true).open(self.dir.join(name))?;
        let bytes = self.rng.bytes(len);
        self.note_content(id, bytes.clone());
        file.write_all(&bytes)?;
        Ok((file, id))
    }

    fn create(&mut self, len: usize) -> io::Result<()> {
        let name = self.fresh_name();
        let (file, id) = self.create_file(&name, len)?;
        self.maybe_sync(&file, id, 60)
    }

    fn append(&mut self, name: &str, id: u64) -> io::Result<()> {
        let len = 1 + self.rng.below(20_000);
        let bytes = self.rng.bytes(len);
        self.note_content(id, [self.content(id).as_slice(), &bytes].concat());
        let mut file = File::options().append(true).open(self.dir.join(name))?;
        file.write_all(&bytes)?;
        self.maybe_sync(&file, id, 80)
    }

    fn overwrite(&mut self, name: &str, id: u64) -> io::Result<()> {
        let mut content = self.content(id).clone();
        if content.is_empty() {
            return self.append(name, id);
        }
        let at = self.rng.below(content.len());
        let len = (1 + self.rng.below(30_000)).min(content.len() - at);
        let bytes = self.rng.bytes(len);
        content[at..at + len].copy_from_slice(&bytes);
        self.note_content(id, content);
        let file = File::options().write(true).open(self.dir.join(name))?;
        file.write_all_at(&bytes, at as u64)?;
        self.maybe_sync(&file, id, 60)
    }

    /// `> file`: truncated, then written anew.
    fn rewrite(&mut self, name: &str, id: u64) -> io::Result<()> {
        self.note_content(id, Vec::new());
        let mut file = File::options().write(true).truncate(true).open(self.dir.join(name))?;
        let len = self.rng.below(60_000);
        let bytes = self.rng.bytes(len);
        self.note_content(id, bytes.clone());
        file.write_all(&bytes)?;
        self.maybe_sync(&file, id, 60)
    }

    /// The way to replace a file: a synced temporary one renamed over it.
    fn replace(&mut self, name: &str) -> io::Result<()> {
        let temporary = format!("{name}.tmp-{}", self.serial);
        let len = 1 + self.rng.below(50_000);
        let (file, id) = self.create_file(&temporary, len)?;
        if self.rng.chance(80) {
            file.sync_all()?;
            self.settle(Some(id));
        }
        drop(file);
        self.note_names(|names| {
            names.remove(&temporary);
            names.insert(name.to_string(), id);
        });
        fs::rename(self.dir.join(&temporary), self.dir.join(name))?;
        if self.rng.chance(50) { self.sync_dir() } else { Ok(()) }
    }

    fn rename(&mut self, name: &str) -> io::Result<()> {
        let to = self.fresh_name();
        self.note_names(|names| {
            let id = names.remove(name).unwrap();
            names.insert(to.clone(), id);
        });
        fs::rename(self.dir.join(name), self.dir.join(&to))?;
        if self.rng.chance(40) { self.sync_dir() } else { Ok(()) }
    }

    fn unlink(&mut self, name: &str) -> io::Result<()> {
        self.note_names(|names| {
            names.remove(name);
        });
        fs::remove_file(self.dir.join(name))?;
        if self.rng.chance(40) { self.sync_dir() } else { Ok(()) }
    }

    fn read_dir(&self) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(&self.dir)
            .unwrap_or_else(|e| panic!("{}: {e}", self.dir.display()))
            .map(|entry| {
                let path = entry.unwrap().path();
                let bytes =
                    fs::read(&path).unwrap_or_else(|e| panic!("{} can't be read: {e}", path.display()));
                (path.file_name().unwrap().to_str().unwrap().to_string(), bytes)
            })
            .collect()
    }

    /// Compares the directory with the ledger, and takes what is there as the new settled state.
    #[track_caller]
    fn verify(&mut self) {
        let found = self.read_dir();
        let same_names = |state: &&Names| state.keys().eq(found.keys());
        let fits = |state: &Names| state.iter().all(|(name, id)| explains(&self.contents[id], &found[name]));
        let Some(state) = self.states.iter().rev().filter(same_names).find(|state| fits(state)).cloned()
        else {
            self.complain(&found)
        };
        self.contents = state.iter().map(|(name, id)| (*id, vec![found[name].clone()])).collect();
        self.states = vec![state];
    }

    #[track_caller]
    fn complain(&self, found: &BTreeMap<String, Vec<u8>>) -> ! {
        let mut text = format!("{} is in no state that the ledger allows\n", self.dir.display());
        for (at, state) in self.states.iter().enumerate() {
            let missing: Vec<_> = state.keys().filter(|name| !found.contains_key(*name)).collect();
            let extra: Vec<_> = found.keys().filter(|name| !state.contains_key(*name)).collect();
            text += &format!("state {at} of {}: missing {missing:?}, extra {extra:?}\n", self.states.len());
            for (name, id) in state {
                let Some(bytes) = found.get(name) else { continue };
                let contents = &self.contents[id];
                if !explains(contents, bytes) {
                    let lens: Vec<usize> = contents.iter().map(Vec::len).collect();
                    let settled = &contents[0];
                    let differs = bytes.iter().zip(settled).position(|(a, b)| a != b);
                    let zeros = bytes.iter().filter(|b| **b == 0).count();
                    text += &format!(
                        "  {name}: {} bytes ({zeros} zeros), ledger {lens:?}, differs from the settled content at {differs:?}\n",
                        bytes.len()
                    );
                }
            }
        }
        panic!("{text}");
    }
}

/// Whether bytes are the first of these contents, changed at most by parts of the later ones. Later writes reach the
/// vault in any order, so a hole may stand where they have not arrived.
fn explains(contents: &[Vec<u8>], bytes: &[u8]) -> bool {
    if contents.iter().any(|content| content == bytes) {
        return true;
    }
    let shortest = contents.iter().map(Vec::len).min().unwrap();
    let longest = contents.iter().map(Vec::len).max().unwrap();
    contents.len() > 1
        && (shortest..=longest).contains(&bytes.len())
        && (0..bytes.len())
            .all(|at| contents.iter().any(|content| content.get(at).copied().unwrap_or(0) == bytes[at]))
}

#[test]
fn the_ledger_explains_what_it_should() {
    let versions = vec![b"aaaa".to_vec(), b"aabb".to_vec(), b"aabbcc".to_vec()];
    for good in ["aaaa", "aabb", "aabbcc", "aaab", "aaba\0c"] {
        assert!(explains(&versions, good.as_bytes()), "{good}");
    }
    for bad in ["aaa", "aabbccc", "xaaa", "\0aaa", "aaaaaa"] {
        assert!(!explains(&versions, bad.as_bytes()), "{bad}");
    }
    assert!(!explains(&versions[..1], b"aabb"));
}

/// Runs the writers until the kill, in the middle of what they do.
fn load_and_kill(sandbox: &Sandbox, writers: &mut [Writer], rng: &mut Rng, round: usize) {
    let pid = sandbox.daemon_pid();
    let killed = AtomicBool::new(false);
    let steps = AtomicU64::new(0);
    let target = 5 + rng.below(250) as u64;
    let delay = Duration::from_micros(rng.below(15_000) as u64);
    std::thread::scope(|scope| {
        for writer in writers.iter_mut() {
            let (killed, steps) = (&killed, &steps);
            scope.spawn(move || {
                loop {
                    match writer.step() {
                        Ok(()) => {
                            steps.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(_) if killed.load(Ordering::SeqCst) => return,
                        Err(error) => {
                            // Lets the others end, so that this failure is reported.
                            steps.store(u64::MAX / 2, Ordering::Relaxed);
                            panic!("a write failed before the kill: {error}");
                        }
                    }
                }
            });
        }
        // Some rounds are killed in the middle of a snapshot or of garbage collection.
        let verb: Option<&[&str]> = match round % 6 {
            2 => Some(&["snapshot", "create"]),
            5 => Some(&["gc"]),
            _ => None,
        };
        if let Some(verb) = verb {
            let steps = &steps;
            scope.spawn(move || {
                wait_until("some load", || steps.load(Ordering::Relaxed) >= target / 2);
                let done = sandbox.keyed(&[verb, &[sandbox.vault_str()]].concat());
                assert!(done.code != 101 && done.code != 134, "{verb:?} panicked: {}", done.stderr);
            });
        }
        wait_until("load", || steps.load(Ordering::Relaxed) >= target);
        std::thread::sleep(delay);
        killed.store(true, Ordering::SeqCst);
        kill_9(pid);
    });
}

#[test]
fn heavy_kill_9_under_load_loses_nothing_that_was_synced() {
    let seed = seed(0x5eed_0001);
    let mut rng = Rng::new(seed);
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let dir = sandbox.mountpoint().join(format!("writer-{number}"));
        fs::create_dir(&dir).unwrap();
        let mut writer = Writer::new(dir, rng.next());
        writer.sync_dir().unwrap();
        writers.push(writer);
    }
    for round in 0..ROUNDS {
        load_and_kill(&sandbox, &mut writers, &mut rng, round);
        // No umount: the mount that the kill left behind is cleaned up by the next one.
        sandbox.mount();
        println!("round {round}");
        for writer in &mut writers {
            writer.verify();
        }
    }
    let synced: u64 = writers.iter().map(|writer| writer.synced).sum();
    assert!(synced > 1_000, "only {synced} fsyncs: that was no load");
    sandbox.umount();
    sandbox.assert_clean();

    sandbox.mount();
    for writer in &mut writers {
        writer.verify();
    }
    sandbox.umount();
    sandbox.keyed(&["restore", sandbox.vault_str(), "--to", &sandbox.str("restored")]).ok();
    for writer in &mut writers {
        writer.dir = sandbox.path("restored").join(writer.dir.file_name().unwrap());
        writer.verify();
    }
}
