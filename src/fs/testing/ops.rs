//! Random operations on a filesystem and on its model, which must agree on every result.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustix::io::Errno;

use super::super::{
    Caller, Fh, Fs, FsError, FsOptions, FsResult, OpenFlags, RenameFlags, SetAttr, SetTime, falloc,
};
use super::model::{Id, Kind, Model};
use super::{ALICE, RW, Rng, Vault, close, get, list};
use crate::env::Time;
use crate::format::tree::FileType;
use crate::store::engine::Engine;
use crate::store::records::ROOT_INO;

/// One operation. Numbers choose among what exists when it is done, so every operation makes sense in every state.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create {
        dir: u64,
        name: u8,
        truncate: bool,
    },
    Open {
        file: u64,
    },
    Close {
        handle: u64,
    },
    Write {
        handle: u64,
        off: u64,
        len: usize,
        seed: u64,
    },
    Append {
        handle: u64,
        len: usize,
        seed: u64,
    },
    /// Short writes at equal distances, each synced: what leaves inline rows between stored bytes.
    Scatter {
        handle: u64,
        off: u64,
        count: u64,
        stride: u64,
        len: usize,
        seed: u64,
    },
    Truncate {
        file: u64,
        size: u64,
    },
    Fallocate {
        handle: u64,
        off: u64,
        len: u64,
        mode: i32,
    },
    Copy {
        from: u64,
        from_off: u64,
        to: u64,
        to_off: u64,
        len: u64,
    },
    Read {
        handle: u64,
        off: u64,
        len: u32,
    },
    Mkdir {
        dir: u64,
        name: u8,
    },
    Symlink {
        dir: u64,
        name: u8,
        seed: u64,
    },
    Mkfifo {
        dir: u64,
        name: u8,
    },
    Link {
        file: u64,
        dir: u64,
        name: u8,
    },
    Unlink {
        dir: u64,
        name: u8,
    },
    Rmdir {
        dir: u64,
        name: u8,
    },
    Rename {
        dir: u64,
        name: u8,
        to: u64,
        newname: u8,
        flags: u8,
    },
    SetMode {
        inode: u64,
        mode: u32,
    },
    SetOwner {
        inode: u64,
        uid: u32,
    },
    SetMtime {
        inode: u64,
        secs: i64,
    },
    SetXattr {
        inode: u64,
        name: u8,
        len: usize,
    },
    RemoveXattr {
        inode: u64,
        name: u8,
    },
    Flush {
        handle: u64,
    },
    Fsync {
        file: u64,
    },
    FsyncDir,
    FlushAll,
    SyncAll,
    Tick,
    Checkpoint,
}

const NAMES: u8 = 6;

/// Largest file that random operations make, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) file_max: u64,
    pub(crate) write_max: usize,
}

impl Op {
    /// Returns a random operation.
    pub(crate) fn random(rng: &mut Rng, shape: Shape) -> Op {
        let (dir, name, handle) = (rng.next(), rng.below(u64::from(NAMES)) as u8, rng.next());
        let off = if rng.one_in(4) { rng.below(shape.file_max) } else { rng.below(shape.file_max / 8 + 1) };
        let len = match rng.below(4) {
            0 => rng.below(100) + 1,
            1 => rng.below(3000) + 1,
            2 => 4096,
            _ => rng.below(shape.write_max as u64) + 1,
        } as usize;
        let page = |n: u64| n / 4096 * 4096;
        match rng.below(100) {
            0..8 => Op::Create { dir, name, truncate: rng.one_in(3) },
            8..14 => Op::Open { file: rng.next() },
            14..20 => Op::Close { handle },
            20..34 => Op::Write { handle, off, len, seed: rng.below(64) },
            34..40 => Op::Append { handle, len, seed: rng.below(64) },
            40..42 => {
                // They do not overlap: what a crash leaves of them is what was there before, or what is there at the end.
                let (count, len) = (2 + rng.below(10), len.min(2000));
                let stride = len as u64 + rng.below(shape.file_max / 16);
                Op::Scatter { handle, off, count, stride, len, seed: rng.below(64) }
            }
            42..46 => Op::Truncate { file: rng.next(), size: off },
            46..51 => {
                let mode = match rng.below(8) {
                    0 => 0,
                    1 => falloc::KEEP_SIZE,
                    2 | 3 => falloc::PUNCH_HOLE | falloc::KEEP_SIZE,
                    4 => falloc::ZERO_RANGE,
                    5 => falloc::ZERO_RANGE | falloc::KEEP_SIZE,
                    6 => falloc::COLLAPSE_RANGE,
                    _ => falloc::INSERT_RANGE,
                };
                let shifts = mode == falloc::COLLAPSE_RANGE || mode == falloc::INSERT_RANGE;
                let (off, len) = match shifts && !rng.one_in(5) {
                    true => (page(off), page(len as u64).max(4096)),
                    false => (off, len as u64),
                };
                Op::Fallocate { handle, off, len, mode }
            }
            51..54 => {
                let to_off = rng.below(shape.file_max / 8);
                Op::Copy { from: rng.next(), from_off: off, to: rng.next(), to_off, len: len as u64 }
            }
            54..60 => Op::Read { handle, off, len: len as u32 * 2 },
            60..64 => Op::Mkdir { dir, name },
            64..65 => Op::Symlink { dir, name, seed: rng.next() },
            65..66 => Op::Mkfifo { dir, name },
            66..69 => Op::Link { file: rng.next(), dir, name },
            69..74 => Op::Unlink { dir, name },
            74..76 => Op::Rmdir { dir, name },
            76..83 => {
                let newname = rng.below(u64::from(NAMES)) as u8;
                Op::Rename { dir, name, to: rng.next(), newname, flags: rng.below(6) as u8 }
            }
            83..85 => Op::SetMode { inode: rng.next(), mode: rng.below(0o10000) as u32 },
            85..86 => Op::SetOwner { inode: rng.next(), uid: rng.below(3) as u32 },
            86..87 => Op::SetMtime { inode: rng.next(), secs: rng.below(1 << 32) as i64 - (1 << 20) },
            87..89 => Op::SetXattr { inode: rng.next(), name, len: rng.below(200) as usize },
            89..90 => Op::RemoveXattr { inode: rng.next(), name },
            90..92 => Op::Flush { handle },
            92..96 => Op::Fsync { file: rng.next() },
            96 => Op::FsyncDir,
            97 => Op::FlushAll,
            98 if rng.one_in(2) => Op::SyncAll,
            98 => Op::Checkpoint,
            _ => Op::Tick,
        }
    }
}

/// What an operation made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// Nothing.
    No,
    /// All names and attributes.
    Names,
    /// ... and this file's data.
    File(Id),
    /// Everything.
    All,
}

/// A filesystem and its model.
pub(crate) struct Pair {
    pub(crate) engine: Arc<Engine>,
    pub(crate) fs: Arc<Fs>,
    pub(crate) model: Model,
    /// The number that each inode of the model has in the filesystem.
    pub(crate) inos: BTreeMap<Id, u64>,
    pub(crate) handles: Vec<(Id, Fh)>,
    shape: Shape,
}

fn name_of(name: u8) -> Vec<u8> {
    vec![b'a' + name; 1 + usize::from(name) * usize::from(name)]
}

fn pick<T: Copy>(from: &[T], number: u64) -> Option<T> {
    if from.is_empty() { None } else { Some(from[(number % from.len() as u64) as usize]) }
}

/// An operation failed where the model says it works, or the other way around, or differently.
fn same<T>(real: FsResult<T>, model: Result<(), Errno>) -> Result<Option<T>, FsError> {
    match (real, model) {
        (Ok(value), Ok(())) => Ok(Some(value)),
        (Err(error), Err(errno)) if error.errno == errno => Ok(None),
        // A disk that has failed comes before everything else.
        (Err(error), Err(_)) if error.errno == Errno::IO => Err(error),
        (Ok(_), Err(errno)) => panic!("worked, but should have failed with {errno}"),
        (Err(error), Err(errno)) => {
            panic!("failed with {:?} ({error}), should have been {errno:?}", error.errno)
        }
        (Err(error), Ok(())) => Err(error),
    }
}

impl Pair {
    /// Opens a vault's filesystem beside the model of what it must hold.
    pub(crate) fn open(vault: &Vault, model: Model, inos: BTreeMap<Id, u64>, shape: Shape) -> Self {
        let engine = vault.engine().unwrap();
        let fs = Fs::open(engine.clone(), FsOptions::default()).unwrap();
        Self { engine, fs, model, inos, handles: Vec::new(), shape }
    }

    /// Opens a new vault's.
    pub(crate) fn new(vault: &Vault, shape: Shape) -> Self {
        Self::open(vault, Model::new(), BTreeMap::from([(0, ROOT_INO)]), shape)
    }

    /// Closes everything properly and opens it again.
    pub(crate) fn reopen(mut self, vault: &Vault) -> Self {
        for (id, fh) in self.handles.drain(..) {
            self.fs.release(self.inos[&id], fh).unwrap();
        }
        self.model.close_all();
        close(&self.engine, self.fs);
        self.inos.retain(|id, _| self.model.inodes.contains_key(id));
        Self::open(vault, self.model, self.inos, self.shape)
    }

    fn ino(&self, id: Id) -> u64 {
        self.inos[&id]
    }

    fn dir(&self, number: u64) -> Id {
        pick(&self.model.ids(|inode| matches!(inode.kind, Kind::Dir(_))), number).unwrap()
    }

    fn named(&self, number: u64, want: impl Fn(&Kind) -> bool) -> Option<Id> {
        pick(&self.model.ids(|inode| inode.nlink > 0 && want(&inode.kind)), number)
    }

    fn file(&self, number: u64) -> Option<Id> {
        self.named(number, |kind| matches!(kind, Kind::File(_)))
    }

    fn add(&mut self, made: Result<Id, Errno>, real: FsResult<u64>) -> Result<(), FsError> {
        if let (Some(ino), Ok(id)) = (same(real, made.map(|_| ()))?, made) {
            assert!(!self.inos.values().any(|other| *other == ino), "inode number {ino} was used twice");
            self.inos.insert(id, ino);
        }
        Ok(())
    }

    /// Does an operation on both. Fails where the filesystem does and the model does not, which a disk that fails can
    /// cause.
    pub(crate) fn apply(&mut self, op: &Op) -> Result<Durable, FsError> {
        let fs = self.fs.clone();
        let mut durable = Durable::No;
        match *op {
            Op::Create { dir, name, truncate } => {
                let (dir, name) = (self.dir(dir), name_of(name));
                let flags = OpenFlags { write: true, truncate, exclusive: !truncate };
                let existing = self.model.lookup(dir, &name);
                if existing.is_some_and(|id| truncate && !matches!(self.model.get(id).kind, Kind::File(_))) {
                    return Ok(durable);
                }
                let (attr, fh) = match (fs.create(self.ino(dir), &name, 0o664, 0o022, flags, ALICE), existing)
                {
                    (Err(error), Some(_)) if !truncate && error.errno == Errno::EXIST => return Ok(durable),
                    (other, _) => other?,
                };
                let id = match existing {
                    Some(id) => {
                        self.model.truncate(id, 0);
                        assert_eq!(attr.size, 0);
                        let mode = self.model.get(id).mode;
                        if !self.model_was_empty(id, attr.mode, mode) {
                            self.model.get_mut(id).mode = attr.mode;
                        }
                        id
                    }
                    None => {
                        let id =
                            self.model.make(dir, &name, Kind::File(Vec::new()), 0o644, ALICE.uid).unwrap();
                        self.inos.insert(id, attr.ino);
                        id
                    }
                };
                assert_eq!(attr.ino, self.ino(id));
                self.model.get_mut(id).opens += 1;
                self.handles.push((id, fh));
            }
            Op::Open { file } => {
                if let Some(id) = self.file(file).filter(|_| self.handles.len() < 8) {
                    let fh = fs.open_file(self.ino(id), RW, ALICE)?;
                    self.model.get_mut(id).opens += 1;
                    self.handles.push((id, fh));
                }
            }
            Op::Close { handle } => {
                if let Some((id, fh)) = pick(&self.handles, handle) {
                    self.handles.retain(|(_, other)| *other != fh);
                    fs.flush(self.ino(id), fh)?;
                    fs.release(self.ino(id), fh)?;
                    self.model.close(id);
                }
            }
            Op::Write { handle, off, len, seed } => {
                if let Some((id, fh)) = pick(&self.handles, handle) {
                    self.write(id, fh, off, len, seed)?;
                }
            }
            Op::Append { handle, len, seed } => {
                if let Some((id, fh)) = pick(&self.handles, handle) {
                    let off = self.model.data(id).len() as u64;
                    if off < self.shape.file_max {
                        self.write(id, fh, off, len, seed)?;
                    }
                }
            }
            Op::Scatter { handle, off, count, stride, len, seed } => {
                if let Some((id, fh)) = pick(&self.handles, handle) {
                    for n in 0..count {
                        self.write(id, fh, off + n * stride, len, seed + n)?;
                        fs.fsync(self.ino(id), false)?;
                    }
                    durable = Durable::File(id);
                }
            }
            Op::Truncate { file, size } => {
                if let Some(id) = self.file(file) {
                    let set = SetAttr { size: Some(size), ..SetAttr::default() };
                    // As root, who keeps set-user-id.
                    let attr = fs.setattr(self.ino(id), set, None, Caller::default())?;
                    assert_eq!(attr.size, size);
                    self.model.truncate(id, size as usize);
                }
            }
            Op::Fallocate { handle, off, len, mode } => {
                if let Some((id, fh)) = pick(&self.handles, handle) {
                    if mode == falloc::INSERT_RANGE && self.model.data(id).len() as u64 > self.shape.file_max
                    {
                        return Ok(durable);
                    }
                    let real = fs.fallocate(self.ino(id), fh, off, len, mode);
                    let mut after = self.model.clone();
                    let modelled = after.fallocate(id, off as usize, len as usize, mode);
                    if same(real, modelled)?.is_some() {
                        self.model = after;
                    }
                }
            }
            Op::Copy { from, from_off, to, to_off, len } => {
                let (Some((from, from_fh)), Some((to, to_fh))) =
                    (pick(&self.handles, from), pick(&self.handles, to))
                else {
                    return Ok(durable);
                };
                let real =
                    fs.copy_file_range(self.ino(from), from_fh, from_off, self.ino(to), to_fh, to_off, len);
                let mut after = self.model.clone();
                let modelled = after.copy(from, from_off as usize, to, to_off as usize, len as usize);
                if let Some(copied) = same(real, modelled.map(|_| ()))? {
                    assert_eq!(Ok(copied), modelled);
                    self.model = after;
                }
            }
            Op::Read { handle, off, len } => {
                if let Some((id, fh)) = pick(&self.handles, handle) {
                    let got = fs.read(self.ino(id), fh, off, len)?;
                    let data = self.model.data(id);
                    let from = data.len().min(off as usize);
                    let to = data.len().min(from + len as usize);
                    assert!(got == data[from..to], "read {off}+{len} of inode {id}");
                }
            }
            Op::Mkdir { dir, name } => {
                if self.inos.len() < 60 {
                    let (dir, name) = (self.dir(dir), name_of(name));
                    let real = fs.mkdir(self.ino(dir), &name, 0o777, 0o022, ALICE).map(|attr| attr.ino);
                    // Directories with the set-group-id bit hand it on.
                    let inherited = self.model.get(dir).mode & 0o2000;
                    let made =
                        self.model.make(dir, &name, Kind::Dir(BTreeMap::new()), 0o755 | inherited, ALICE.uid);
                    return self.add(made, real).map(|()| durable);
                }
            }
            Op::Symlink { dir, name, seed } => {
                let (dir, name) = (self.dir(dir), name_of(name));
                let target = vec![b'x'; 1 + seed as usize % 300];
                let real = fs.symlink(self.ino(dir), &name, &target, ALICE).map(|attr| attr.ino);
                let made = self.model.make(dir, &name, Kind::Symlink(target), 0o777, ALICE.uid);
                return self.add(made, real).map(|()| durable);
            }
            Op::Mkfifo { dir, name } => {
                let (dir, name) = (self.dir(dir), name_of(name));
                let real = fs.mknod(self.ino(dir), &name, FileType::Fifo, 0o640, 0, (0, 0), ALICE);
                let made = self.model.make(dir, &name, Kind::Fifo, 0o640, ALICE.uid);
                return self.add(made, real.map(|attr| attr.ino)).map(|()| durable);
            }
            Op::Link { file, dir, name } => {
                if let Some(id) = self.named(file, |kind| !matches!(kind, Kind::Dir(_))) {
                    let (dir, name) = (self.dir(dir), name_of(name));
                    same(fs.link(self.ino(id), self.ino(dir), &name), self.model.link(id, dir, &name))?;
                }
            }
            Op::Unlink { dir, name } => {
                let (dir, name) = (self.dir(dir), name_of(name));
                same(fs.unlink(self.ino(dir), &name), self.model.unlink(dir, &name))?;
            }
            Op::Rmdir { dir, name } => {
                let (dir, name) = (self.dir(dir), name_of(name));
                same(fs.rmdir(self.ino(dir), &name), self.model.rmdir(dir, &name))?;
            }
            Op::Rename { dir, name, to, newname, flags } => {
                let (dir, name) = (self.dir(dir), name_of(name));
                let (to, newname) = (self.dir(to), name_of(newname));
                let flags = RenameFlags { noreplace: flags == 0, exchange: flags == 1 };
                let real = fs.rename(self.ino(dir), &name, self.ino(to), &newname, flags);
                let modelled = self.model.rename(dir, &name, to, &newname, flags.noreplace, flags.exchange);
                same(real, modelled)?;
            }
            Op::SetMode { inode, mode } => {
                if let Some(id) = self.named(inode, |kind| !matches!(kind, Kind::Symlink(_))) {
                    let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
                    assert_eq!(fs.setattr(self.ino(id), set, None, ALICE)?.mode, mode);
                    self.model.get_mut(id).mode = mode;
                }
            }
            Op::SetOwner { inode, uid } => {
                if let Some(id) = self.named(inode, |_| true) {
                    let set = SetAttr { uid: Some(uid), ..SetAttr::default() };
                    let attr = fs.setattr(self.ino(id), set, None, Caller::default())?;
                    let model = self.model.get_mut(id);
                    model.uid = uid;
                    if !matches!(model.kind, Kind::Dir(_)) {
                        model.mode &= !0o4000;
                        if model.mode & 0o010 != 0 {
                            model.mode &= !0o2000;
                        }
                    }
                    assert_eq!((attr.uid, attr.mode), (uid, model.mode));
                }
            }
            Op::SetMtime { inode, secs } => {
                if let Some(id) = self.named(inode, |_| true) {
                    let time = Time { secs, nanos: 7 };
                    let set = SetAttr { mtime: Some(SetTime::At(time)), ..SetAttr::default() };
                    assert_eq!(fs.setattr(self.ino(id), set, None, ALICE)?.mtime, time);
                    self.model.get_mut(id).mtime = Some(time);
                }
            }
            Op::SetXattr { inode, name, len } => {
                if let Some(id) = self.named(inode, |_| true) {
                    let (name, value) = (xattr_name(name), vec![b'v'; len]);
                    fs.setxattr(self.ino(id), &name, &value, 0)?;
                    self.model.get_mut(id).xattrs.insert(name, value);
                }
            }
            Op::RemoveXattr { inode, name } => {
                if let Some(id) = self.named(inode, |_| true) {
                    let name = xattr_name(name);
                    let had = self.model.get_mut(id).xattrs.remove(&name).map(|_| ()).ok_or(Errno::NODATA);
                    same(fs.removexattr(self.ino(id), &name), had)?;
                }
            }
            Op::Flush { handle } => {
                if let Some((id, fh)) = pick(&self.handles, handle) {
                    fs.flush(self.ino(id), fh)?;
                }
            }
            Op::Fsync { file } => {
                if let Some(id) = self.file(file) {
                    fs.fsync(self.ino(id), false)?;
                    durable = Durable::File(id);
                }
            }
            Op::FsyncDir => {
                fs.fsyncdir(ROOT_INO)?;
                durable = Durable::Names;
            }
            Op::FlushAll => fs.flush_all()?,
            Op::SyncAll => {
                fs.sync_all()?;
                durable = Durable::All;
            }
            Op::Tick => fs.tick()?,
            Op::Checkpoint => {
                self.engine.live.checkpoint()?;
                durable = Durable::Names;
            }
        }
        Ok(durable)
    }

    /// A file that is cut to nothing by someone without privilege loses set-user-id, unless it was empty: then nothing
    /// is done.
    fn model_was_empty(&self, _id: Id, real: u32, model: u32) -> bool {
        let mut cleared = model & !0o4000;
        if cleared & 0o010 != 0 {
            cleared &= !0o2000;
        }
        assert!(real == model || real == cleared, "mode {real:o} after cutting a file with mode {model:o}");
        real == model
    }

    fn write(&mut self, id: Id, fh: Fh, off: u64, len: usize, seed: u64) -> Result<(), FsError> {
        let data = Rng::bytes(seed, len);
        assert_eq!(self.fs.write(self.ino(id), fh, off, &data, false)?, len);
        self.model.write(id, off as usize, &data);
        Ok(())
    }

    /// Compares everything that can be seen.
    pub(crate) fn compare(&self) {
        let mut names: BTreeMap<Id, u32> = BTreeMap::new();
        let mut todo = vec![0];
        while let Some(dir) = todo.pop() {
            let real: BTreeMap<Vec<u8>, u64> = list(&self.fs, self.ino(dir)).unwrap().into_iter().collect();
            let model: BTreeMap<Vec<u8>, u64> =
                self.model.entries(dir).iter().map(|(name, id)| (name.clone(), self.ino(*id))).collect();
            assert_eq!(real, model, "entries of directory {dir}");
            for (name, id) in self.model.entries(dir) {
                assert_eq!(
                    self.fs.lookup(self.ino(dir), name).unwrap(),
                    self.fs.getattr(self.ino(*id)).unwrap()
                );
                *names.entry(*id).or_default() += 1;
                if self.model.is_dir(*id) {
                    todo.push(*id);
                }
            }
        }
        for id in self.model.inodes.keys() {
            self.compare_inode(*id);
            let inode = self.model.get(*id);
            if !self.model.is_dir(*id) {
                assert_eq!(names.get(id).copied().unwrap_or(0), inode.nlink, "names of {id}");
            }
        }
    }

    /// Compares one inode.
    pub(crate) fn compare_inode(&self, id: Id) {
        let (inode, ino) = (self.model.get(id), self.ino(id));
        let attr = self.fs.getattr(ino).unwrap();
        assert_eq!(
            (attr.kind, attr.mode, attr.uid, attr.nlink),
            (self.model.file_type(id), inode.mode, inode.uid, inode.nlink),
            "attributes of {id}"
        );
        if let Some(mtime) = inode.mtime {
            assert_eq!(attr.mtime, mtime, "mtime of {id}");
        }
        let mut real = BTreeMap::new();
        for name in self.fs.listxattr(ino).unwrap().split(|b| *b == 0).filter(|name| !name.is_empty()) {
            real.insert(name.to_vec(), self.fs.getxattr(ino, name).unwrap());
        }
        assert_eq!(real, inode.xattrs, "extended attributes of {id}");
        match &inode.kind {
            Kind::File(data) => {
                assert_eq!(attr.size, data.len() as u64, "size of {id}");
                let real = get(&self.fs, ino).unwrap();
                if real != *data {
                    let at = real.iter().zip(data).position(|(a, b)| a != b);
                    panic!("content of {id} differs at {at:?}, lengths {} and {}", real.len(), data.len());
                }
            }
            Kind::Symlink(target) => assert_eq!(self.fs.readlink(ino).unwrap(), *target),
            Kind::Dir(_) | Kind::Fifo => {}
        }
    }
}

fn xattr_name(name: u8) -> Vec<u8> {
    [b"user.", name_of(name).as_slice()].concat()
}
