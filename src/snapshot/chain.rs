//! The chain: all snapshots and removals of a vault, read and proved with public keys alone.
//!
//! [`Chain::load`] believes nothing before its name, its signature and its structure have been checked
//! (FORMAT LAY-1, SNAP-1, SNAP-4), then walks from the newest file to the first one, through the entries that
//! removals left of files that are gone (SNAP-2, SNAP-3). Whatever is wrong is a [`Problem`] with the name of
//! the file, and the rest is still usable: a damaged chain file must not cost all other snapshots.
//!
//! Pack names are interned, so that a chain of thousands of files with full lists now and then stays small in
//! memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use crate::crypto::{CryptoError, VaultKeys, verify_chain_file};
use crate::disk::{DirItem, Disk};
use crate::env::Time;
use crate::format::chain::{CHAIN_FILE_LEN_MAX, id_of, name, parse_name};
use crate::format::pack::parse_pack_path;
use crate::format::{
    ChainFile, Header, Origin, PackList, PackName, RemovedFile, SealedPart, Signer, SnapshotId,
};
use crate::store::engine::Engine;
use crate::store::error::{Result, StoreError};

/// Folder of the chain files.
pub const DIR: &str = "snapshots";

/// Something wrong in the chain.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The file, below the vault.
    pub file: String,
    /// What is wrong with it.
    pub what: String,
    /// The chain itself is broken here: files were deleted, replaced or forged. Otherwise it is about one
    /// file.
    pub breaks_chain: bool,
}

/// One chain file that was proved.
#[derive(Clone, Debug)]
pub struct ChainInfo {
    /// Sequence.
    pub seq: u64,
    /// Hash of the file.
    pub id: SnapshotId,
    /// The file before it.
    pub predecessor: Option<SnapshotId>,
    /// When it was made.
    pub time: Time,
    /// What it is.
    pub origin: Origin,
    /// Whose key signed it.
    pub signer: Signer,
    /// Length of the file in bytes.
    pub file_len: u64,
    lists: Lists,
    retired: Vec<u32>,
    replacements: Vec<u32>,
}

impl ChainInfo {
    /// Returns whether it is a snapshot, not a removal.
    pub fn is_snapshot(&self) -> bool {
        self.origin != Origin::Removal
    }

    /// Returns the file's name in `snapshots/`.
    pub fn name(&self) -> String {
        name(self.seq, &self.id)
    }

    /// Returns the file's path below the vault.
    pub fn path(&self) -> String {
        format!("{DIR}/{}", self.name())
    }
}

/// A pack list with interned names.
#[derive(Clone, Debug)]
struct Lists {
    full: bool,
    added: Vec<u32>,
    dropped: Vec<u32>,
}

/// What a removal says of a file that is gone.
#[derive(Clone, Debug)]
struct Gone {
    id: SnapshotId,
    predecessor: SnapshotId,
    lists: Lists,
}

/// The newest complete snapshot, and the newer ones that are not.
#[derive(Clone, Debug)]
pub struct Latest<'c> {
    /// The newest snapshot whose packs are all there.
    pub complete: Option<&'c ChainInfo>,
    /// Newer snapshots, with the number of packs that each one misses. `None`: what it needs is not known,
    /// since the chain is broken below it.
    pub incomplete: Vec<(&'c ChainInfo, Option<usize>)>,
}

/// All chain files of a vault.
#[derive(Debug, Default)]
pub struct Chain {
    files: BTreeMap<u64, ChainInfo>,
    gone: BTreeMap<u64, Gone>,
    leftovers: Vec<String>,
    problems: Vec<Problem>,
    names: Vec<PackName>,
    numbers: HashMap<PackName, u32>,
    /// What was in the directory.
    listed: Vec<String>,
}

/// Reads a chain file of a vault and checks its signature.
type Verify<'a> = &'a dyn Fn(&[u8]) -> std::result::Result<ChainFile, CryptoError>;

/// What is in `snapshots/`, in order of names.
fn list(disk: &dyn Disk) -> Result<Vec<DirItem>> {
    match disk.list(DIR) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(|e| StoreError::io(format!("listing {DIR}"), e)),
    }
}

/// Gives each file its path below the vault.
fn here(items: Vec<DirItem>) -> Vec<(DirItem, String)> {
    let with_path = |item: DirItem| {
        let path = format!("{DIR}/{}", item.name);
        (item, path)
    };
    items.into_iter().map(with_path).collect()
}

impl Chain {
    /// Reads and proves everything in `snapshots/`. Only I/O errors fail; what the files say wrong is in
    /// [`Chain::problems`]. One file is in memory at a time.
    pub fn load(disk: &dyn Disk, header: &Header) -> Result<Chain> {
        Self::load_by(disk, here(list(disk)?), &|bytes| verify_chain_file(header, bytes))
    }

    /// [`Chain::load`] for files that are still on their way into a vault: pairs of a file's name in `snapshots/` and the
    /// path below the vault where its bytes stand now.
    pub fn load_files(disk: &dyn Disk, header: &Header, files: Vec<(String, String)>) -> Result<Chain> {
        let item = |name| DirItem { name, lossy: false, is_dir: false, len: 0 };
        let files = files.into_iter().map(|(name, path)| (item(name), path)).collect();
        Self::load_by(disk, files, &|bytes| verify_chain_file(header, bytes))
    }

    /// [`Chain::load`] with the keys of the vault, which remember which files were proved. Every file is read and hashed each
    /// time all the same.
    pub fn load_with(disk: &dyn Disk, keys: &VaultKeys) -> Result<Chain> {
        Self::load_by(disk, here(list(disk)?), &|bytes| keys.verify_chain_file(bytes))
    }

    /// The chain of an opened vault, as it is now.
    pub fn of(engine: &Engine) -> Result<Chain> {
        Self::load_with(engine.ctx.disk.as_ref(), &engine.ctx.keys)
    }

    /// Reads files, each with its path.
    fn load_by(disk: &dyn Disk, files: Vec<(DirItem, String)>, verify: Verify<'_>) -> Result<Chain> {
        let listed = files.iter().map(|(item, _)| item.name.clone()).collect();
        let mut chain = Chain { listed, ..Chain::default() };
        let mut found: BTreeMap<u64, Vec<(SnapshotId, ChainInfo, Vec<RemovedFile>)>> = BTreeMap::new();
        for (item, path) in files {
            let named = if item.is_dir || item.lossy { None } else { parse_name(&item.name) };
            let Some((seq, id)) = named else {
                // FORMAT LAY-2. A file that was being written when the power failed is no surprise.
                if !item.name.ends_with(".tmp") {
                    chain.report(&path, "not the name of a chain file", false);
                }
                continue;
            };
            match chain.read(disk, verify, &path, seq, id)? {
                Ok((info, removed)) => found.entry(seq).or_default().push((id, info, removed)),
                Err(what) => chain.report(&path, &what, false),
            }
        }
        chain.link(found);
        Ok(chain)
    }

    /// Whether `snapshots/` holds the files that it held when this was read. A file's name is the hash of its bytes,
    /// and these were proven, so under the same names nothing new can be found.
    ///
    /// # Errors
    /// When the directory can't be listed.
    pub(super) fn is_as_listed(&self, disk: &dyn Disk) -> Result<bool> {
        Ok(list(disk)?.iter().map(|item| &item.name).eq(&self.listed))
    }

    /// Reads one file; the inner error says why it is not to be believed.
    #[allow(clippy::type_complexity, reason = "used once, named by its parts")]
    fn read(
        &mut self,
        disk: &dyn Disk,
        verify: Verify<'_>,
        path: &str,
        seq: u64,
        id: SnapshotId,
    ) -> Result<std::result::Result<(ChainInfo, Vec<RemovedFile>), String>> {
        // FORMAT SNAP-6: the limit is checked before anything is allocated.
        let bytes = match disk.read_file(path, CHAIN_FILE_LEN_MAX as u64) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Ok(Err(format!("can't be read as a chain file: {e}")));
            }
            Err(e) => return Err(StoreError::io(format!("reading {path}"), e)),
        };
        // FORMAT LAY-1
        if id_of(&bytes) != id {
            return Ok(Err("its bytes are not the ones that its name promises (LAY-1)".into()));
        }
        let file = match verify(&bytes) {
            Ok(file) => file,
            Err(e) => return Ok(Err(e.to_string())),
        };
        let public = file.public;
        if public.seq != seq {
            return Ok(Err("its name has another sequence than the file (SNAP-1)".into()));
        }
        if public.origin == Origin::Removal && file.signer != Signer::Owner {
            return Ok(Err("a removal that the owner did not sign (SNAP-4)".into()));
        }
        let info = ChainInfo {
            seq,
            id,
            predecessor: public.predecessor,
            time: public.time,
            origin: public.origin,
            signer: file.signer,
            file_len: bytes.len() as u64,
            lists: self.intern_list(&public.packs),
            retired: self.intern(&public.retired),
            replacements: self.intern(&public.replacements),
        };
        Ok(Ok((info, public.removed)))
    }

    /// Takes what removals removed out of what was found, and walks the rest.
    fn link(&mut self, mut found: BTreeMap<u64, Vec<(SnapshotId, ChainInfo, Vec<RemovedFile>)>>) {
        let mut gone: BTreeMap<(u64, SnapshotId), Gone> = BTreeMap::new();
        let mut removals: BTreeSet<SnapshotId> = BTreeSet::new();
        for (id, info, removed) in found.values_mut().flatten() {
            if !info.is_snapshot() {
                removals.insert(*id);
            }
            for file in removed.drain(..) {
                let lists = self.intern_list(&file.packs);
                gone.insert((file.seq, file.id), Gone { id: file.id, predecessor: file.predecessor, lists });
            }
        }
        let Some((&newest, _)) = found.last_key_value() else { return };
        let mut expected: Option<SnapshotId> = None;
        let mut seq = newest;
        loop {
            let mut here = found.remove(&seq).unwrap_or_default();
            // FORMAT SNAP-1. Two files of one number mean that two writers worked on two copies of this
            // vault.
            if here.len() > 1 {
                let fits = |info: &ChainInfo| expected.is_none_or(|id| id == info.id);
                here.sort_by_key(|(id, info, _)| (!fits(info), std::cmp::Reverse(info.time), *id));
                for (_, other, _) in here.split_off(1) {
                    self.report(&other.path(), "another chain file has the same sequence (SNAP-1)", true);
                }
            }
            let present = here.pop().map(|(_, info, _)| info);
            let present = match (present, expected) {
                (Some(info), Some(id)) if info.id != id => {
                    self.report(
                        &info.path(),
                        &format!("the next file follows another one, {id} (SNAP-2)"),
                        true,
                    );
                    None
                }
                (present, _) => present,
            };
            let wanted = expected.or(present.as_ref().map(|info| info.id));
            let removed = wanted.and_then(|id| gone.remove(&(seq, id)));
            let before = match (present, removed) {
                (Some(info), Some(_)) if !info.is_snapshot() => {
                    // FORMAT SNAP-5: what a removal says stays said.
                    self.report(
                        &info.path(),
                        "a removal that a later one claims to have removed (SNAP-5)",
                        true,
                    );
                    let before = info.predecessor;
                    self.files.insert(seq, info);
                    before
                }
                (Some(info), Some(entry)) => {
                    self.leftovers.push(info.path());
                    self.gone.insert(seq, entry);
                    info.predecessor
                }
                (Some(info), None) => {
                    let before = info.predecessor;
                    self.files.insert(seq, info);
                    before
                }
                (None, Some(entry)) => {
                    // FORMAT SNAP-2: zeros mean that there is none.
                    let before = Some(entry.predecessor).filter(|id| id.as_bytes() != &[0; 32]);
                    self.gone.insert(seq, entry);
                    before
                }
                (None, None) => {
                    let id = wanted.map(|id| id.to_hex()).unwrap_or_default();
                    let text = "missing, and no removal says that it was deleted (SNAP-2)";
                    self.report(&format!("{DIR}/{seq:010}-{id}"), text, true);
                    break;
                }
            };
            match before {
                // FORMAT SNAP-3
                Some(id) if seq > 1 => {
                    expected = Some(id);
                    seq -= 1;
                }
                None if seq == 1 => break,
                _ => {
                    self.report(
                        &format!("{DIR}/{seq:010}"),
                        "the chain does not begin at sequence 1 (SNAP-3)",
                        true,
                    );
                    break;
                }
            }
        }
        // What is older than a break can't be proved to belong to this chain, but each file was signed: it is
        // kept, so that it can be restored from.
        for (seq, mut here) in found {
            here.sort_by_key(|(id, info, _)| (std::cmp::Reverse(info.time), *id));
            if let Some((id, info, _)) = here.into_iter().next() {
                if gone.contains_key(&(seq, id)) && !removals.contains(&id) {
                    self.leftovers.push(info.path());
                } else {
                    self.files.entry(seq).or_insert(info);
                }
            }
        }
        for ((seq, _), entry) in gone {
            self.gone.entry(seq).or_insert(entry);
        }
    }

    fn report(&mut self, file: &str, what: &str, breaks_chain: bool) {
        self.problems.push(Problem { file: file.to_string(), what: what.to_string(), breaks_chain });
    }

    fn intern(&mut self, names: &[PackName]) -> Vec<u32> {
        names
            .iter()
            .map(|name| {
                *self.numbers.entry(*name).or_insert_with(|| {
                    self.names.push(*name);
                    // FORMAT section 10: a vault has less than 2^32 packs.
                    u32::try_from(self.names.len() - 1)
                        .expect("pack names fill memory before they fill 32 bits")
                })
            })
            .collect()
    }

    fn intern_list(&mut self, list: &PackList) -> Lists {
        Lists { full: list.full, added: self.intern(&list.added), dropped: self.intern(&list.dropped) }
    }

    /// Returns what is wrong, in no order that means anything.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns whether the chain was walked from its newest file to the first one without a break.
    pub fn is_whole(&self) -> bool {
        !self.problems.iter().any(|p| p.breaks_chain)
    }

    /// Returns the paths of chain files that a removal removed and that are still (or again) there.
    pub fn leftovers(&self) -> &[String] {
        &self.leftovers
    }

    /// Returns the newest file.
    pub fn head(&self) -> Option<&ChainInfo> {
        self.files.last_key_value().map(|(_, info)| info)
    }

    /// Returns the file with this sequence, unless it was removed.
    pub fn get(&self, seq: u64) -> Option<&ChainInfo> {
        self.files.get(&seq)
    }

    /// Returns all files, oldest first.
    pub fn files(&self) -> impl DoubleEndedIterator<Item = &ChainInfo> {
        self.files.values()
    }

    /// Returns all snapshots, oldest first.
    pub fn snapshots(&self) -> impl DoubleEndedIterator<Item = &ChainInfo> {
        self.files.values().filter(|info| info.is_snapshot())
    }

    /// Returns whether the chain has, or had before a removal, this file (FORMAT SNAP-8: the high-water mark
    /// of a host must be in the chain).
    pub fn contains(&self, seq: u64, id: &SnapshotId) -> bool {
        let present = self.files.get(&seq).is_some_and(|info| info.id == *id);
        present || self.gone.get(&seq).is_some_and(|gone| gone.id == *id)
    }

    fn lists(&self, seq: u64) -> Option<&Lists> {
        self.files.get(&seq).map(|info| &info.lists).or_else(|| self.gone.get(&seq).map(|gone| &gone.lists))
    }

    /// Returns the running list at `seq` as a set of interned numbers.
    fn running(&self, seq: u64) -> Result<Vec<bool>> {
        let mut start = seq;
        loop {
            match self.lists(start) {
                Some(lists) if lists.full => break,
                Some(_) if start > 1 => start -= 1,
                _ => {
                    let text =
                        format!("the pack list of sequence {seq} is not known: {start} is missing (SNAP-2)");
                    return Err(StoreError::Corrupt(text));
                }
            }
        }
        let mut set = vec![false; self.names.len()];
        for seq in start..=seq {
            // The loop above has seen each of them.
            if let Some(lists) = self.lists(seq) {
                apply(lists, &mut set).map_err(|()| {
                    StoreError::Corrupt(format!("the pack list of sequence {seq} breaks SNAP-7"))
                })?;
            }
        }
        Ok(set)
    }

    fn needed(&self, seq: u64) -> Result<Vec<bool>> {
        self.needed_at(seq, u64::MAX)
    }

    fn needed_at(&self, seq: u64, head: u64) -> Result<Vec<bool>> {
        let mut set = self.running(seq)?;
        let later = self.files.range(seq + 1..).take_while(|(seq, _)| **seq <= head);
        for (_, removal) in later.filter(|(_, info)| !info.is_snapshot()) {
            if removal.retired.iter().any(|&n| set[n as usize]) {
                removal.retired.iter().for_each(|&n| set[n as usize] = false);
                removal.replacements.iter().for_each(|&n| set[n as usize] = true);
            }
        }
        Ok(set)
    }

    fn collect(&self, set: &[bool]) -> BTreeSet<PackName> {
        set.iter().zip(&self.names).filter(|(on, _)| **on).map(|(_, name)| *name).collect()
    }

    /// Returns the running list at a sequence (FORMAT section 7). `Corrupt` when the chain is broken below
    /// it.
    pub fn running_list(&self, seq: u64) -> Result<BTreeSet<PackName>> {
        self.running(seq).map(|set| self.collect(&set))
    }

    /// Returns the packs that a snapshot needs, after all removals that came later.
    pub fn needed_packs(&self, seq: u64) -> Result<BTreeSet<PackName>> {
        self.needed(seq).map(|set| self.collect(&set))
    }

    /// Returns the packs that a snapshot needed when the file of sequence `head` was the newest one: removals that came later
    /// don't count. `Corrupt` when the chain is broken below the snapshot.
    pub fn needed_packs_at(&self, seq: u64, head: u64) -> Result<BTreeSet<PackName>> {
        self.needed_at(seq, head).map(|set| self.collect(&set))
    }

    /// Returns the packs that a snapshot needs and that are not among `present`.
    pub fn missing_packs(&self, seq: u64, present: &BTreeSet<PackName>) -> Result<Vec<PackName>> {
        let set = self.needed(seq)?;
        let needed = set.iter().zip(&self.names).filter(|(on, _)| **on);
        Ok(needed.map(|(_, name)| *name).filter(|name| !present.contains(name)).collect())
    }

    /// Returns whether every pack that a snapshot needs is there. One whose needs are not known is not
    /// complete.
    pub fn is_complete(&self, seq: u64, present: &BTreeSet<PackName>) -> bool {
        self.missing_packs(seq, present).is_ok_and(|missing| missing.is_empty())
    }

    /// Returns the newest complete snapshot, of one origin or of any, and the newer ones that are not
    /// complete.
    pub fn latest(&self, present: &BTreeSet<PackName>, origin: Option<Origin>) -> Latest<'_> {
        let mut latest = Latest { complete: None, incomplete: Vec::new() };
        for info in self.snapshots().rev().filter(|info| origin.is_none_or(|origin| info.origin == origin)) {
            match self.missing_packs(info.seq, present) {
                Ok(missing) if missing.is_empty() => {
                    latest.complete = Some(info);
                    break;
                }
                missing => latest.incomplete.push((info, missing.ok().map(|missing| missing.len()))),
            }
        }
        latest
    }

    /// Returns every pack that some removal retired.
    pub fn retired(&self) -> BTreeSet<PackName> {
        let retired = self.files.values().flat_map(|info| info.retired.iter());
        retired.map(|&n| self.names[n as usize]).collect()
    }

    /// Returns every pack that some remaining snapshot needs, or that the running list of the newest file
    /// names.
    pub fn all_needed(&self) -> Result<BTreeSet<PackName>> {
        let mut all = match self.head() {
            Some(head) => self.running(head.seq)?,
            None => return Ok(BTreeSet::new()),
        };
        for info in self.snapshots() {
            self.needed(info.seq)?.iter().zip(&mut all).for_each(|(on, all)| *all |= on);
        }
        Ok(self.collect(&all))
    }

    /// Returns every pack that a snapshot needs, as far as that is known: one below a break needs what nobody knows.
    pub fn needed_by_snapshots(&self) -> BTreeSet<PackName> {
        let mut all = vec![false; self.names.len()];
        for set in self.snapshots().filter_map(|info| self.needed(info.seq).ok()) {
            set.iter().zip(&mut all).for_each(|(on, all)| *all |= on);
        }
        self.collect(&all)
    }

    /// Returns every pack that a chain file names in any role: a key holder signed that it is one of this vault.
    pub fn named(&self) -> BTreeSet<PackName> {
        self.names.iter().copied().collect()
    }

    /// Returns what a removal must keep of a file that it removes.
    pub(crate) fn removed_entry(&self, info: &ChainInfo) -> RemovedFile {
        let names = |numbers: &[u32]| {
            let mut names: Vec<_> = numbers.iter().map(|&n| self.names[n as usize]).collect();
            names.sort_unstable();
            names
        };
        RemovedFile {
            seq: info.seq,
            id: info.id,
            predecessor: info.predecessor.unwrap_or(SnapshotId([0; 32])),
            packs: PackList {
                full: info.lists.full,
                added: names(&info.lists.added),
                dropped: names(&info.lists.dropped),
            },
        }
    }
}

/// FORMAT SNAP-7: what is dropped must be there, what is added must not.
fn apply(lists: &Lists, set: &mut [bool]) -> std::result::Result<(), ()> {
    if lists.full {
        set.fill(false);
    }
    for &n in &lists.dropped {
        if !std::mem::replace(&mut set[n as usize], false) {
            return Err(());
        }
    }
    for &n in &lists.added {
        if std::mem::replace(&mut set[n as usize], true) {
            return Err(());
        }
    }
    Ok(())
}

/// Returns the names of all packs in `packs/`, by their file names alone.
pub fn present_packs(disk: &dyn Disk) -> Result<BTreeSet<PackName>> {
    let mut present = BTreeSet::new();
    let failed = |dir: &str, e| StoreError::io(format!("listing {dir}"), e);
    let folders = match disk.list("packs") {
        Ok(folders) => folders,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(present),
        Err(e) => return Err(failed("packs", e)),
    };
    for folder in folders.iter().filter(|item| item.is_dir && !item.lossy) {
        let dir = format!("packs/{}", folder.name);
        for item in disk.list(&dir).map_err(|e| failed(&dir, e))? {
            // FORMAT LAY-2
            if let Some(name) = parse_pack_path(&format!("{dir}/{}", item.name)) {
                present.insert(name);
            }
        }
    }
    Ok(present)
}

/// Opens the sealed part of a chain file that the chain has proved.
pub fn open_sealed(disk: &dyn Disk, keys: &VaultKeys, info: &ChainInfo) -> Result<SealedPart> {
    let path = info.path();
    let bytes = disk
        .read_file(&path, CHAIN_FILE_LEN_MAX as u64)
        .map_err(|e| StoreError::io(format!("reading {path}"), e))?;
    // FORMAT LAY-1: it was proved before, but is read again.
    if id_of(&bytes) != info.id {
        return Err(StoreError::Corrupt(format!("{path} changed since the chain was read")));
    }
    let (file, _) = ChainFile::parse(&bytes)?;
    Ok(keys.open_sealed_part(&bytes, &file)?)
}
