//! A disk in memory that can lose power.
//!
//! Every file and directory has a live image, which programs see, and a durable one, with the un-synced changes
//! between the two kept in order. [`SimDisk::crash_image`] decides what a power cut leaves of them:
//!
//! - un-synced writes and length changes of a file are kept, dropped or torn one by one ([`CrashMode::Torn`]);
//! - un-synced changes of names persist as a prefix, for each directory by itself. A file whose name is not durable
//!   is gone, even if its data was synced. A rename within a directory is one change. Across directories the new name
//!   persists no later than the old one goes (docs/format.md section 8): the file may end up under both, never none;
//! - `create_dir_all` syncs the parents of what it creates, so directories are durable when it returns.
//!
//! A test first runs to the end and reads [`SimDisk::sync_points`], then runs again for each `n` with
//! [`SimDisk::crash_at`]`(n)`, takes a crash image and recovers from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

mod image;

use image::{Image, PAGE, Rng, Slot, page_ranges, torn_write};

use super::{DirItem, Disk, DiskFile, DiskLock, OpenMode, Space, components, parent, split};

const DEFAULT_CAPACITY_BYTES: u64 = 1 << 40;

/// What a power cut leaves of changes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashMode {
    /// Nothing: only what was synced.
    DropUnsynced,
    /// Everything, as if the cache had just been written.
    KeepAll,
    /// A seeded choice: each write is kept, dropped, or torn at a sector or a byte; each directory keeps a prefix
    /// of its changes.
    Torn(u64),
}

/// A simulated disk. Clones of the handle are one disk; [`SimDisk::fork`] makes another.
#[derive(Clone)]
pub struct SimDisk {
    core: Arc<Mutex<Core>>,
}

/// The error of every operation after the power went off.
#[derive(Debug, thiserror::Error)]
#[error("the simulated disk has lost power")]
struct PowerOff;

/// Tells whether an error comes from a simulated power cut.
pub fn is_power_off(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<PowerOff>())
}

struct Core {
    seed: u64,
    next_id: u64,
    dirs: BTreeMap<String, DirState>,
    locks: BTreeSet<String>,
    capacity_pages: u64,
    used_pages: u64,
    sync_points: u64,
    operations: u64,
    crash_at_sync: Option<u64>,
    crash_at_operation: Option<u64>,
    power_off: bool,
}

type Names = BTreeMap<String, Arc<Node>>;

#[derive(Default)]
struct DirState {
    live: Names,
    durable: Names,
    pending: Vec<NameOp>,
}

#[derive(Clone)]
enum NameOp {
    Link(String, Arc<Node>),
    Unlink(String),
    Rename(String, String),
    /// A file has moved to another directory: its old name, that directory, and its node's number.
    Leave(String, String, u64),
}

impl NameOp {
    fn apply(&self, names: &mut Names) {
        match self {
            NameOp::Link(name, node) => {
                names.insert(name.clone(), Arc::clone(node));
            }
            NameOp::Unlink(name) | NameOp::Leave(name, ..) => {
                names.remove(name);
            }
            NameOp::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }
}

impl DirState {
    fn record(&mut self, op: NameOp) {
        op.apply(&mut self.live);
        self.pending.push(op);
    }

    fn sync(&mut self) {
        for op in self.pending.drain(..) {
            op.apply(&mut self.durable);
        }
    }

    /// How many un-synced changes there are up to the one that gave node `id` a name here; 0 if that is durable.
    fn arrival(&self, id: u64) -> usize {
        let is_it = |op: &NameOp| matches!(op, NameOp::Link(_, node) if node.id == id);
        self.pending.iter().position(is_it).map_or(0, |at| at + 1)
    }
}

/// A file. Its state is only touched while the core's lock is held, so crash images are points in time.
struct Node {
    id: u64,
    state: Mutex<FileState>,
}

#[derive(Clone, Default)]
struct FileState {
    live: Image,
    durable: Image,
    pending: Vec<DataOp>,
    /// Live names. Pages of a file without any are not charged, as if its blocks were freed at once.
    names: u32,
}

#[derive(Clone)]
enum DataOp {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl Node {
    fn lock(&self) -> MutexGuard<'_, FileState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileState {
    fn with_content(image: Image) -> Self {
        Self { live: image.clone(), durable: image, pending: Vec::new(), names: 0 }
    }

    /// Pages that count against the capacity: content, plus one for the file itself.
    fn charge(&self) -> u64 {
        1 + self.live.pages.len() as u64
    }

    fn sync(&mut self) {
        let cut = self.pending.iter().any(|op| matches!(op, DataOp::SetLen(_)));
        if cut {
            self.durable = self.live.clone();
            self.durable.drop_reservations();
        } else {
            for op in &self.pending {
                let DataOp::Write(off, data) = op else { continue };
                for (page, _, _) in page_ranges(*off, data.len()) {
                    if let Some(slot @ Slot::Data(_)) = self.live.pages.get(&page) {
                        self.durable.pages.insert(page, slot.clone());
                    }
                }
            }
            self.durable.len = self.live.len;
        }
        self.pending.clear();
    }

    fn after_crash(&self, mode: CrashMode, rng: &mut Rng) -> Image {
        match mode {
            CrashMode::DropUnsynced => self.durable.clone(),
            CrashMode::KeepAll => {
                let mut image = self.live.clone();
                image.drop_reservations();
                image
            }
            CrashMode::Torn(_) => {
                let mut image = self.durable.clone();
                for op in &self.pending {
                    match op {
                        DataOp::SetLen(len) if rng.below(2) == 0 => image.set_len(*len),
                        DataOp::SetLen(_) => {}
                        DataOp::Write(off, data) => torn_write(&mut image, *off, data, rng),
                    }
                }
                image
            }
        }
    }
}

impl Core {
    /// Gives a file another name, in place of whatever file has it.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from)?, split(to)?);
        let node = self.file(from)?.ok_or_else(|| missing(from))?;
        let replaced = self.file(to)?;
        self.dir(to_dir)?;
        if from == to {
            return Ok(());
        }
        if from_dir == to_dir {
            self.dir(from_dir)?.record(NameOp::Rename(from_name.to_string(), to_name.to_string()));
        } else {
            let id = node.id;
            self.dir(to_dir)?.record(NameOp::Link(to_name.to_string(), node));
            self.dir(from_dir)?.record(NameOp::Leave(from_name.to_string(), to_dir.to_string(), id));
        }
        if let Some(replaced) = replaced {
            self.unlinked(&replaced);
        }
        Ok(())
    }

    /// Counts an operation, and fails it once the power is off.
    fn step(&mut self) -> io::Result<()> {
        if !self.power_off {
            self.operations += 1;
            self.power_off = self.crash_at_operation.is_some_and(|n| self.operations >= n);
        }
        self.powered()
    }

    fn sync_step(&mut self) -> io::Result<()> {
        self.step()?;
        self.sync_points += 1;
        self.power_off = self.crash_at_sync.is_some_and(|n| self.sync_points >= n);
        self.powered()
    }

    fn powered(&self) -> io::Result<()> {
        if self.power_off { Err(io::Error::other(PowerOff)) } else { Ok(()) }
    }

    fn charge(&mut self, pages: u64) -> io::Result<()> {
        if self.used_pages + pages > self.capacity_pages {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.used_pages += pages;
        Ok(())
    }

    fn dir(&mut self, dir: &str) -> io::Result<&mut DirState> {
        self.dirs.get_mut(dir).ok_or_else(|| missing(dir))
    }

    fn file(&self, path: &str) -> io::Result<Option<Arc<Node>>> {
        let (dir, name) = split(path)?;
        if self.dirs.contains_key(path) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} is a directory")));
        }
        Ok(self.dirs.get(dir).and_then(|d| d.live.get(name)).map(Arc::clone))
    }

    fn create(&mut self, path: &str) -> io::Result<Arc<Node>> {
        let (dir, name) = split(path)?;
        if !self.dirs.contains_key(dir) {
            return Err(missing(dir));
        }
        self.charge(1)?;
        let node = Arc::new(Node { id: self.next_id, state: Mutex::default() });
        self.next_id += 1;
        node.lock().names = 1;
        self.dir(dir)?.record(NameOp::Link(name.to_string(), Arc::clone(&node)));
        Ok(node)
    }

    /// Gives a name's pages back when the file has no other.
    fn unlinked(&mut self, node: &Node) {
        let mut state = node.lock();
        state.names -= 1;
        if state.names == 0 {
            self.used_pages -= state.charge();
        }
    }

    /// Runs `change` on a file, charging pages that it adds and returning those that it frees.
    fn change_file<T>(&mut self, node: &Node, change: impl FnOnce(&mut FileState) -> T) -> T {
        let mut state = node.lock();
        let before = state.live.pages.len() as u64;
        let out = change(&mut state);
        if state.names > 0 {
            self.used_pages = self.used_pages - before + state.live.pages.len() as u64;
        }
        out
    }

    fn room(&self) -> u64 {
        self.capacity_pages.saturating_sub(self.used_pages)
    }
}

fn missing(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{path} does not exist"))
}

impl SimDisk {
    /// Returns an empty disk. The seed varies what [`CrashMode::Torn`] destroys.
    pub fn new(seed: u64) -> Self {
        Self::from_core(Core {
            seed,
            next_id: 1,
            dirs: BTreeMap::from([(String::new(), DirState::default())]),
            locks: BTreeSet::new(),
            capacity_pages: DEFAULT_CAPACITY_BYTES / PAGE as u64,
            used_pages: 0,
            sync_points: 0,
            operations: 0,
            crash_at_sync: None,
            crash_at_operation: None,
            power_off: false,
        })
    }

    fn from_core(core: Core) -> Self {
        Self { core: Arc::new(Mutex::new(core)) }
    }

    fn lock_core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many times something was synced (files and directories) so far.
    pub fn sync_points(&self) -> u64 {
        self.lock_core().sync_points
    }

    /// Returns the number of operations of any kind so far.
    pub fn operations(&self) -> u64 {
        self.lock_core().operations
    }

    /// Cuts the power at the `n`th sync point, counted from 1: it has no effect, and neither has anything after it.
    pub fn crash_at(&self, n: u64) {
        self.lock_core().crash_at_sync = Some(n);
    }

    /// Cuts the power at the `n`th operation of any kind, counted from 1.
    pub fn crash_at_operation(&self, n: u64) {
        self.lock_core().crash_at_operation = Some(n);
    }

    /// Cuts the power now.
    pub fn power_off(&self) {
        self.lock_core().power_off = true;
    }

    /// Tells whether the power is off.
    pub fn is_off(&self) -> bool {
        self.lock_core().power_off
    }

    /// Limits the disk's size in bytes, rounded down to pages of 4096. Each file takes one page plus its content.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock_core().capacity_pages = bytes / PAGE as u64;
    }

    /// Returns the disk as it is after a power cut at this moment: powered, without locks or open files.
    pub fn crash_image(&self, mode: CrashMode) -> SimDisk {
        let core = self.lock_core();
        let seed = core.seed ^ if let CrashMode::Torn(seed) = mode { seed.rotate_left(32) } else { 0 };
        let mut rng = Rng(seed);
        let mut prefixes = BTreeMap::new();
        for (path, dir) in &core.dirs {
            let prefix = match mode {
                CrashMode::DropUnsynced => 0,
                CrashMode::KeepAll => dir.pending.len(),
                CrashMode::Torn(_) => rng.below(dir.pending.len() as u64 + 1) as usize,
            };
            prefixes.insert(path.clone(), prefix);
        }
        core.complete_moves(&mut prefixes);
        let mut kept: BTreeMap<String, Names> = BTreeMap::new();
        for (path, dir) in &core.dirs {
            let mut names = dir.durable.clone();
            dir.pending[..prefixes[path]].iter().for_each(|op| op.apply(&mut names));
            kept.insert(path.clone(), names);
        }
        // Nodes in the order of their numbers, so that the same seed always destroys the same.
        let old: BTreeMap<u64, Arc<Node>> =
            kept.values().flat_map(|names| names.values().map(|n| (n.id, Arc::clone(n)))).collect();
        let nodes = old.iter().map(|(&id, node)| {
            let state = FileState::with_content(node.lock().after_crash(mode, &mut rng));
            (id, Arc::new(Node { id, state: Mutex::new(state) }))
        });
        let nodes: BTreeMap<u64, Arc<Node>> = nodes.collect();
        core.rebuilt(&kept, &nodes)
    }

    /// Returns an independent copy of the whole disk, un-synced changes included: what an attacker keeps to put
    /// back later.
    pub fn fork(&self) -> SimDisk {
        let core = self.lock_core();
        let mut copies: BTreeMap<u64, Arc<Node>> = BTreeMap::new();
        let mut copy = |node: &Arc<Node>| {
            let fresh = || Arc::new(Node { id: node.id, state: Mutex::new(node.lock().clone()) });
            Arc::clone(copies.entry(node.id).or_insert_with(fresh))
        };
        let dirs = core.dirs.iter().map(|(path, dir)| {
            let mut names = |from: &Names| from.iter().map(|(k, v)| (k.clone(), copy(v))).collect();
            let (live, durable) = (names(&dir.live), names(&dir.durable));
            let pending = dir.pending.iter().map(|op| match op {
                NameOp::Link(name, node) => NameOp::Link(name.clone(), copy(node)),
                other => other.clone(),
            });
            (path.clone(), DirState { live, durable, pending: pending.collect() })
        });
        let dirs = dirs.collect();
        Self::from_core(Core { dirs, locks: BTreeSet::new(), ..core.counters() })
    }

    /// Reads a whole file as an attacker would, power or not. `None` when it does not exist.
    pub fn raw_read(&self, path: &str) -> Option<Vec<u8>> {
        let core = self.lock_core();
        let node = core.file(path).ok()??;
        let bytes = node.lock().live.bytes();
        Some(bytes)
    }

    /// Puts `bytes` into a file behind everyone's back, at once durable. Creates file and directories as needed.
    /// Open handles see the change.
    ///
    /// # Panics
    /// On a path that is not inside the vault.
    pub fn raw_write(&self, path: &str, bytes: &[u8]) {
        let mut core = self.lock_core();
        let parts = components(path).expect("raw_write needs a path inside the vault");
        let (dir, name) = split(path).expect("raw_write needs the path of a file");
        let mut above = String::new();
        for part in &parts[..parts.len() - 1] {
            above = join(&above, part);
            core.dirs.entry(above.clone()).or_default();
        }
        let known = core.dirs.get(dir).and_then(|d| d.live.get(name)).map(Arc::clone);
        let node = match known {
            Some(node) => node,
            None => core.create(path).expect("the directory was just made; attackers bring their own space"),
        };
        core.change_file(&node, |state| {
            *state = FileState { names: state.names, ..FileState::with_content(Image::from_bytes(bytes)) };
        });
        let dir = core.dirs.get_mut(dir).expect("the directory was just made");
        dir.sync();
    }

    /// Removes a file behind everyone's back, at once durable. Returns whether it existed.
    pub fn raw_remove(&self, path: &str) -> bool {
        let mut core = self.lock_core();
        let Ok(Some(node)) = core.file(path) else { return false };
        let (dir, name) = split(path).expect("the file was found, so its path is well formed");
        let state = core.dirs.get_mut(dir).expect("the file was found in it");
        state.record(NameOp::Unlink(name.to_string()));
        state.sync();
        core.unlinked(&node);
        true
    }

    /// Lists the paths of all files in order.
    pub fn raw_list(&self) -> Vec<String> {
        let core = self.lock_core();
        core.dirs.iter().flat_map(|(dir, state)| state.live.keys().map(move |name| join(dir, name))).collect()
    }
}

impl Core {
    /// Extends prefixes of un-synced changes so that no file loses a name to a move that has not given it the new one.
    fn complete_moves(&self, prefixes: &mut BTreeMap<String, usize>) {
        loop {
            let mut longer = BTreeMap::new();
            for (path, &prefix) in &*prefixes {
                let Some(dir) = self.dirs.get(path) else { continue };
                for op in &dir.pending[..prefix] {
                    let NameOp::Leave(_, to, id) = op else { continue };
                    let needed = self.dirs.get(to).map_or(0, |dir| dir.arrival(*id));
                    if prefixes.get(to).is_none_or(|&now| now < needed) && needed > 0 {
                        let longest = longer.entry(to.clone()).or_insert(needed);
                        *longest = needed.max(*longest);
                    }
                }
            }
            if longer.is_empty() {
                return;
            }
            prefixes.extend(longer);
        }
    }

    /// A powered disk with this one's numbers and nothing on it.
    fn counters(&self) -> Core {
        Core {
            dirs: BTreeMap::new(),
            locks: BTreeSet::new(),
            crash_at_sync: None,
            crash_at_operation: None,
            power_off: false,
            ..*self
        }
    }

    /// Builds the disk after a crash from the names that were kept and the files' new contents.
    fn rebuilt(&self, kept: &BTreeMap<String, Names>, nodes: &BTreeMap<u64, Arc<Node>>) -> SimDisk {
        let dirs = kept.iter().map(|(path, names)| {
            let live: Names =
                names.iter().map(|(name, old)| (name.clone(), Arc::clone(&nodes[&old.id]))).collect();
            live.values().for_each(|node| node.lock().names += 1);
            (path.clone(), DirState { durable: live.clone(), live, pending: Vec::new() })
        });
        let dirs = dirs.collect();
        let used_pages = nodes.values().map(|node| node.lock().charge()).sum();
        SimDisk::from_core(Core { dirs, used_pages, sync_points: 0, operations: 0, ..self.counters() })
    }
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_string() } else { format!("{dir}/{name}") }
}

impl Disk for SimDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut core = self.lock_core();
        core.step()?;
        let node = match (core.file(path)?, mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::Error::from(io::ErrorKind::AlreadyExists)),
            (None, OpenMode::CreateNew) => core.create(path)?,
            (Some(node), _) => node,
            (None, _) => return Err(missing(path)),
        };
        Ok(Arc::new(SimFile { core: Arc::clone(&self.core), node, writable: mode != OpenMode::Read }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut core = self.lock_core();
        core.step()?;
        core.rename(from, to)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        split(to)?;
        let mut core = self.lock_core();
        core.step()?;
        if core.dirs.contains_key(to) || core.file(to)?.is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{to} exists")));
        }
        core.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let (dir, name) = split(path)?;
        let mut core = self.lock_core();
        core.step()?;
        let node = core.file(path)?.ok_or_else(|| missing(path))?;
        core.dir(dir)?.record(NameOp::Unlink(name.to_string()));
        core.unlinked(&node);
        Ok(())
    }

    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        let parts = components(path)?;
        let mut core = self.lock_core();
        core.step()?;
        let mut here = String::new();
        for part in parts {
            let next = join(&here, part);
            if core.dirs[&here].live.contains_key(part) {
                return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{next} is a file")));
            }
            if !core.dirs.contains_key(&next) {
                core.sync_step()?;
                core.dir(&here)?.sync();
                core.dirs.insert(next.clone(), DirState::default());
            }
            here = next;
        }
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<DirItem>> {
        components(dir)?;
        let mut core = self.lock_core();
        core.step()?;
        let item = |name: &str, is_dir, len| DirItem { name: name.to_string(), lossy: false, is_dir, len };
        let state = core.dir(dir)?;
        let mut items: Vec<DirItem> =
            state.live.iter().map(|(n, f)| item(n, false, f.lock().live.len)).collect();
        let below = core.dirs.keys().filter(|path| !path.is_empty() && parent(path) == dir);
        items
            .extend(below.map(|path| item(path.rsplit_once('/').map_or(path.as_str(), |(_, n)| n), true, 0)));
        items.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(items)
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        let mut core = self.lock_core();
        core.step()?;
        Ok(core.file(path)?.map(|node| node.lock().live.len))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        components(dir)?;
        let mut core = self.lock_core();
        core.sync_step()?;
        let mut prefixes = BTreeMap::from([(dir.to_string(), core.dir(dir)?.pending.len())]);
        core.complete_moves(&mut prefixes);
        for (path, prefix) in prefixes {
            let state = core.dir(&path)?;
            let rest = state.pending.split_off(prefix);
            state.sync();
            state.pending = rest;
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let core = self.lock_core();
        core.powered()?;
        let (total, available) = (core.capacity_pages * PAGE as u64, core.room() * PAGE as u64);
        Ok(Space { total, available, files_total: 0, files_free: 0 })
    }

    fn lock(&self, path: &str) -> io::Result<Option<Box<dyn DiskLock>>> {
        let mut core = self.lock_core();
        core.step()?;
        let node = match core.file(path)? {
            Some(node) => node,
            None => core.create(path)?,
        };
        if !core.locks.insert(path.to_string()) {
            return Ok(None);
        }
        let file = SimFile { core: Arc::clone(&self.core), node, writable: true };
        Ok(Some(Box::new(SimLock { file, path: path.to_string() })))
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = self.lock_core();
        write!(f, "SimDisk({} sync points, off: {})", core.sync_points, core.power_off)
    }
}

struct SimFile {
    core: Arc<Mutex<Core>>,
    node: Arc<Node>,
    writable: bool,
}

impl SimFile {
    fn lock_core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_step(&self) -> io::Result<MutexGuard<'_, Core>> {
        let mut core = self.lock_core();
        core.step()?;
        if !self.writable {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "opened for reading"));
        }
        Ok(core)
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFile({})", self.node.id)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        let mut core = self.lock_core();
        core.step()?;
        Ok(self.node.lock().live.read(buf, off))
    }

    fn write_all_at(&self, buf: &[u8], off: u64) -> io::Result<()> {
        let mut core = self.write_step()?;
        off.checked_add(buf.len() as u64).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut room = core.room();
        core.change_file(&self.node, |state| {
            // Like a real disk, a full one keeps the part that still fitted.
            let mut fits = 0;
            for (page, _, range) in page_ranges(off, buf.len()) {
                if !state.live.pages.contains_key(&page) {
                    if room == 0 {
                        break;
                    }
                    room -= 1;
                }
                fits = range.end;
            }
            if fits > 0 {
                state.live.write(&buf[..fits], off);
                state.pending.push(DataOp::Write(off, buf[..fits].to_vec()));
            }
            if fits < buf.len() { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut core = self.lock_core();
        core.sync_step()?;
        self.node.lock().sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let mut core = self.lock_core();
        core.step()?;
        Ok(self.node.lock().live.len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut core = self.write_step()?;
        core.change_file(&self.node, |state| {
            state.live.set_len(len);
            state.pending.push(DataOp::SetLen(len));
        });
        Ok(())
    }

    fn allocate(&self, off: u64, len: u64) -> io::Result<()> {
        let mut core = self.write_step()?;
        if len == 0 {
            return Ok(());
        }
        let end = off.checked_add(len).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let room = core.room();
        core.change_file(&self.node, |state| {
            let range = off / PAGE as u64..end.div_ceil(PAGE as u64);
            let present = state.live.pages.range(range.clone()).count() as u64;
            if range.end - range.start - present > room {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            for page in range {
                state.live.pages.entry(page).or_insert(Slot::Reserved);
            }
            Ok(())
        })
    }

    fn start_writeback(&self, _off: u64, _len: u64) {}
}

struct SimLock {
    file: SimFile,
    path: String,
}

impl fmt::Debug for SimLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimLock({})", self.path)
    }
}

impl DiskLock for SimLock {
    fn write_note(&self, note: &[u8]) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(note, 0)
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.file.lock_core().locks.remove(&self.path);
    }
}

#[cfg(test)]
mod tests;
