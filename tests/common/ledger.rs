//! Writers that know what they were promised.
//!
//! A writer notes, before an operation, what the operation will make of a file or of its directory; when an fsync has
//! returned, everything noted so far is settled. After a kill or a power cut the directory must be one of the states since
//! the last settled one, in order, and every file must have its settled content, changed at most by later writes.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::Rng;

/// Files that a writer keeps at most.
const FILES_MAX: usize = 30;
/// Unsettled notes that a writer lets pile up at most.
const UNSETTLED_MAX: usize = 12;

/// Names in a directory, and which file each is.
pub type Names = BTreeMap<String, u64>;

/// What is found in a directory.
pub type Found = BTreeMap<String, Vec<u8>>;

/// One entry of a ledger.
#[derive(Clone, Debug)]
pub enum Note {
    /// A file comes into being, empty and without a name.
    File(u64),
    /// The next operation makes this of the directory.
    Names(Names),
    /// The next operation makes this of a file.
    Content(u64, Arc<Vec<u8>>),
    /// An fsync has returned: of a file, or of the directory.
    Settled(Option<u64>),
}

/// What a directory and its files may be.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// States of the directory: the settled one, then one after each later operation.
    states: Vec<Names>,
    /// Contents of each file: the settled one, then one after each later write.
    contents: HashMap<u64, Vec<Arc<Vec<u8>>>>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { states: vec![Names::new()], contents: HashMap::new() }
    }
}

impl Ledger {
    fn names(&self) -> &Names {
        self.states.last().unwrap()
    }

    fn content(&self, file: u64) -> &Vec<u8> {
        self.contents[&file].last().unwrap()
    }

    pub fn apply(&mut self, note: &Note) {
        match note {
            Note::File(id) => drop(self.contents.insert(*id, vec![Arc::default()])),
            Note::Names(names) => self.states.push(names.clone()),
            Note::Content(id, content) => self.contents.get_mut(id).unwrap().push(Arc::clone(content)),
            Note::Settled(file) => {
                self.states.drain(..self.states.len() - 1);
                let names = self.names().clone();
                self.contents.retain(|id, _| names.values().any(|named| named == id));
                if let Some(contents) = file.and_then(|id| self.contents.get_mut(&id)) {
                    contents.drain(..contents.len() - 1);
                }
            }
        }
    }

    /// Compares what is in the directory with the ledger. Returns the state that it is in, or what is wrong.
    pub fn check(&self, found: &Found) -> Result<&Names, String> {
        let same_names = |state: &&Names| state.keys().eq(found.keys());
        let fits = |state: &Names| state.iter().all(|(name, id)| explains(&self.contents[id], &found[name]));
        self.states
            .iter()
            .rev()
            .filter(same_names)
            .find(|state| fits(state))
            .ok_or_else(|| self.complaint(found))
    }

    /// Takes what is there as the new settled state.
    fn restart(&mut self, state: Names, found: &Found) {
        self.contents = state.iter().map(|(name, id)| (*id, vec![Arc::new(found[name].clone())])).collect();
        self.states = vec![state];
    }

    fn complaint(&self, found: &Found) -> String {
        let mut text = String::from("the directory is in no state that the ledger allows\n");
        for (at, state) in self.states.iter().enumerate() {
            let missing: Vec<_> = state.keys().filter(|name| !found.contains_key(*name)).collect();
            let extra: Vec<_> = found.keys().filter(|name| !state.contains_key(*name)).collect();
            text += &format!("state {at} of {}: missing {missing:?}, extra {extra:?}\n", self.states.len());
            for (name, id) in state {
                let Some(bytes) = found.get(name) else { continue };
                let contents = &self.contents[id];
                if !explains(contents, bytes) {
                    let lens: Vec<usize> = contents.iter().map(|content| content.len()).collect();
                    let settled = &contents[0];
                    let differs = bytes.iter().zip(settled.iter()).position(|(a, b)| a != b);
                    let zeros = bytes.iter().filter(|b| **b == 0).count();
                    text += &format!(
                        "  {name}: {} bytes ({zeros} zeros), ledger {lens:?}, differs from the settled content at {differs:?}\n",
                        bytes.len()
                    );
                }
            }
        }
        text
    }
}

/// Is told of notes.
type Tell = Box<dyn FnMut(&Note) + Send>;

/// One writer, its directory, and its ledger.
pub struct Writer {
    pub dir: PathBuf,
    rng: Rng,
    serial: u64,
    ledger: Ledger,
    /// Told of each note when it is made: before the operation, or after the fsync.
    tell: Option<Tell>,
    /// So many of 100 new files have megabytes.
    pub large_percent: usize,
    /// How many fsyncs returned.
    pub synced: u64,
}

impl Writer {
    pub fn new(dir: PathBuf, seed: u64) -> Self {
        Self {
            dir,
            rng: Rng::new(seed),
            serial: 0,
            ledger: Ledger::default(),
            tell: None,
            large_percent: 17,
            synced: 0,
        }
    }

    /// A writer whose notes are also told to `tell`.
    pub fn told(dir: PathBuf, seed: u64, tell: impl FnMut(&Note) + Send + 'static) -> Self {
        Self { tell: Some(Box::new(tell)), ..Self::new(dir, seed) }
    }

    fn note(&mut self, note: &Note) {
        self.ledger.apply(note);
        if let Some(tell) = &mut self.tell {
            tell(note);
        }
    }

    fn names(&self) -> &Names {
        self.ledger.names()
    }

    /// Notes what the next operation does to the directory.
    fn note_names(&mut self, change: impl FnOnce(&mut Names)) {
        let mut names = self.names().clone();
        change(&mut names);
        self.note(&Note::Names(names));
    }

    /// Notes what the next operation does to a file.
    fn note_content(&mut self, file: u64, content: Vec<u8>) {
        self.note(&Note::Content(file, Arc::new(content)));
    }

    fn content(&self, file: u64) -> &Vec<u8> {
        self.ledger.content(file)
    }

    /// An fsync has returned: of a file, or of the directory.
    fn settle(&mut self, file: Option<u64>) {
        self.synced += 1;
        self.note(&Note::Settled(file));
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
    ///
    /// # Errors
    /// The first failed call.
    pub fn step(&mut self) -> io::Result<()> {
        let Ledger { states, contents } = &self.ledger;
        let unsettled = contents.values().map(|c| c.len() - 1).sum::<usize>() + states.len();
        if unsettled > UNSETTLED_MAX {
            return self.settle_all();
        }
        let Some((name, id)) = self.any_file() else { return self.create(4_000) };
        if self.names().len() >= FILES_MAX {
            return self.unlink(&name);
        }
        match self.rng.below(100) {
            0..30 => {
                let large = self.rng.chance(self.large_percent);
                let len = if large { 1_000_000 + self.rng.below(2_500_000) } else { self.rng.below(40_000) };
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

    /// Syncs all that is not settled.
    ///
    /// # Errors
    /// The first failed call.
    pub fn settle_all(&mut self) -> io::Result<()> {
        for (name, id) in self.names().clone() {
            if self.ledger.contents[&id].len() > 1 {
                File::open(self.dir.join(name))?.sync_all()?;
                self.settle(Some(id));
            }
        }
        self.sync_dir()
    }

    /// Syncs the directory.
    ///
    /// # Errors
    /// If it can't be.
    pub fn sync_dir(&mut self) -> io::Result<()> {
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
        self.note(&Note::File(id));
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

    fn read_dir(&self) -> Found {
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
    pub fn verify(&mut self) {
        let found = self.read_dir();
        let state = match self.ledger.check(&found) {
            Ok(state) => state.clone(),
            Err(text) => panic!("{}: {text}", self.dir.display()),
        };
        self.ledger.restart(state, &found);
    }
}

/// Whether bytes are the first of these contents, changed at most by parts of the later ones. Later writes reach the
/// vault in any order, so a hole may stand where they have not arrived.
fn explains(contents: &[Arc<Vec<u8>>], bytes: &[u8]) -> bool {
    if contents.iter().any(|content| content.as_slice() == bytes) {
        return true;
    }
    let shortest = contents.iter().map(|content| content.len()).min().unwrap();
    let longest = contents.iter().map(|content| content.len()).max().unwrap();
    contents.len() > 1
        && (shortest..=longest).contains(&bytes.len())
        && (0..bytes.len())
            .all(|at| contents.iter().any(|content| content.get(at).copied().unwrap_or(0) == bytes[at]))
}

#[test]
fn the_ledger_explains_what_it_should() {
    let versions = ["aaaa", "aabb", "aabbcc"].map(|text| Arc::new(text.as_bytes().to_vec()));
    for good in ["aaaa", "aabb", "aabbcc", "aaab", "aaba\0c"] {
        assert!(explains(&versions, good.as_bytes()), "{good}");
    }
    for bad in ["aaa", "aabbccc", "xaaa", "\0aaa", "aaaaaa"] {
        assert!(!explains(&versions, bad.as_bytes()), "{bad}");
    }
    assert!(!explains(&versions[..1], b"aabb"));
}
