//! What a filesystem should do, with maps in memory.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::super::falloc;
use crate::env::Time;
use crate::format::tree::FileType;

/// Number of an inode of the model. The root is 0.
pub(crate) type Id = usize;

/// What an inode of the model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory and its entries.
    Dir(BTreeMap<Vec<u8>, Id>),
    /// A file and its bytes.
    File(Vec<u8>),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A fifo.
    Fifo,
}

/// An inode of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) nlink: u32,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Known only if it was set and nothing has changed it since.
    pub(crate) mtime: Option<Time>,
    /// Handles.
    pub(crate) opens: u32,
}

/// A tree. Inodes stay in it while they have a name or a handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) inodes: BTreeMap<Id, Inode>,
    next: Id,
}

type Res<T> = Result<T, Errno>;

impl Model {
    /// Returns an empty tree.
    pub(crate) fn new() -> Self {
        let root = Inode {
            kind: Kind::Dir(BTreeMap::new()),
            mode: 0o755,
            uid: 0,
            nlink: 2,
            xattrs: BTreeMap::new(),
            mtime: None,
            opens: 0,
        };
        Self { inodes: BTreeMap::from([(0, root)]), next: 1 }
    }

    pub(crate) fn get(&self, id: Id) -> &Inode {
        &self.inodes[&id]
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> &mut Inode {
        self.inodes.get_mut(&id).unwrap()
    }

    /// Returns all inodes for which `want` holds, in a stable order.
    pub(crate) fn ids(&self, want: impl Fn(&Inode) -> bool) -> Vec<Id> {
        self.inodes.iter().filter(|(_, inode)| want(inode)).map(|(id, _)| *id).collect()
    }

    pub(crate) fn entries(&self, dir: Id) -> &BTreeMap<Vec<u8>, Id> {
        match &self.get(dir).kind {
            Kind::Dir(entries) => entries,
            other => panic!("{dir} is no directory but {other:?}"),
        }
    }

    fn entries_mut(&mut self, dir: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        let inode = self.get_mut(dir);
        inode.mtime = None;
        match &mut inode.kind {
            Kind::Dir(entries) => entries,
            other => panic!("{dir} is no directory but {other:?}"),
        }
    }

    pub(crate) fn data(&self, id: Id) -> &[u8] {
        match &self.get(id).kind {
            Kind::File(data) => data,
            other => panic!("{id} is no file but {other:?}"),
        }
    }

    fn data_mut(&mut self, id: Id) -> &mut Vec<u8> {
        let inode = self.get_mut(id);
        inode.mtime = None;
        match &mut inode.kind {
            Kind::File(data) => data,
            other => panic!("{id} is no file but {other:?}"),
        }
    }

    pub(crate) fn is_dir(&self, id: Id) -> bool {
        matches!(self.get(id).kind, Kind::Dir(_))
    }

    pub(crate) fn lookup(&self, dir: Id, name: &[u8]) -> Option<Id> {
        self.entries(dir).get(name).copied()
    }

    /// Returns the type as the filesystem calls it.
    pub(crate) fn file_type(&self, id: Id) -> FileType {
        match self.get(id).kind {
            Kind::Dir(_) => FileType::Dir,
            Kind::File(_) => FileType::File,
            Kind::Symlink(_) => FileType::Symlink,
            Kind::Fifo => FileType::Fifo,
        }
    }

    pub(crate) fn make(&mut self, dir: Id, name: &[u8], kind: Kind, mode: u32, uid: u32) -> Res<Id> {
        if self.lookup(dir, name).is_some() {
            return Err(Errno::EXIST);
        }
        let is_dir = matches!(kind, Kind::Dir(_));
        let nlink = if is_dir { 2 } else { 1 };
        let id = self.next;
        self.next += 1;
        let inode = Inode { kind, mode, uid, nlink, xattrs: BTreeMap::new(), mtime: None, opens: 0 };
        self.inodes.insert(id, inode);
        self.entries_mut(dir).insert(name.to_vec(), id);
        if is_dir {
            self.get_mut(dir).nlink += 1;
        }
        Ok(id)
    }

    fn forget_if_unused(&mut self, id: Id) {
        if self.get(id).nlink == 0 && self.get(id).opens == 0 {
            self.inodes.remove(&id);
        }
    }

    pub(crate) fn unlink(&mut self, dir: Id, name: &[u8]) -> Res<()> {
        let id = self.lookup(dir, name).ok_or(Errno::NOENT)?;
        if self.is_dir(id) {
            return Err(Errno::ISDIR);
        }
        self.entries_mut(dir).remove(name);
        self.get_mut(id).nlink -= 1;
        self.forget_if_unused(id);
        Ok(())
    }

    pub(crate) fn rmdir(&mut self, dir: Id, name: &[u8]) -> Res<()> {
        let id = self.lookup(dir, name).ok_or(Errno::NOENT)?;
        if !self.is_dir(id) {
            return Err(Errno::NOTDIR);
        }
        if !self.entries(id).is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.entries_mut(dir).remove(name);
        self.inodes.remove(&id);
        self.get_mut(dir).nlink -= 1;
        Ok(())
    }

    pub(crate) fn link(&mut self, id: Id, dir: Id, name: &[u8]) -> Res<()> {
        if self.lookup(dir, name).is_some() {
            return Err(Errno::EXIST);
        }
        if self.is_dir(id) {
            return Err(Errno::PERM);
        }
        if self.get(id).nlink == 0 {
            return Err(Errno::NOENT);
        }
        self.entries_mut(dir).insert(name.to_vec(), id);
        self.get_mut(id).nlink += 1;
        Ok(())
    }

    /// Returns whether `dir` is `id` or below it.
    fn is_below(&self, dir: Id, id: Id) -> bool {
        dir == id
            || (self.is_dir(id)
                && self.entries(id).values().any(|child| self.is_dir(*child) && self.is_below(dir, *child)))
    }

    pub(crate) fn rename(
        &mut self,
        dir: Id,
        name: &[u8],
        to: Id,
        newname: &[u8],
        noreplace: bool,
        exchange: bool,
    ) -> Res<()> {
        let source = self.lookup(dir, name).ok_or(Errno::NOENT)?;
        let target = self.lookup(to, newname);
        match target {
            Some(_) if noreplace => return Err(Errno::EXIST),
            None if exchange => return Err(Errno::NOENT),
            Some(target) if target == source => return Ok(()),
            _ => {}
        }
        if self.is_dir(source) && dir != to && self.is_below(to, source) {
            return Err(Errno::INVAL);
        }
        if let (true, Some(target)) = (exchange, target) {
            if self.is_dir(target) && dir != to && self.is_below(dir, target) {
                return Err(Errno::INVAL);
            }
            self.entries_mut(dir).insert(name.to_vec(), target);
            self.entries_mut(to).insert(newname.to_vec(), source);
            if self.is_dir(source) {
                self.get_mut(dir).nlink -= 1;
                self.get_mut(to).nlink += 1;
            }
            if self.is_dir(target) {
                self.get_mut(to).nlink -= 1;
                self.get_mut(dir).nlink += 1;
            }
            return Ok(());
        }
        if let Some(target) = target {
            match (self.is_dir(source), self.is_dir(target)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) => self.rmdir(to, newname)?,
                (false, false) => self.unlink(to, newname)?,
            }
        }
        self.entries_mut(dir).remove(name);
        self.entries_mut(to).insert(newname.to_vec(), source);
        if self.is_dir(source) {
            self.get_mut(dir).nlink -= 1;
            self.get_mut(to).nlink += 1;
        }
        Ok(())
    }

    pub(crate) fn close(&mut self, id: Id) {
        self.get_mut(id).opens -= 1;
        self.forget_if_unused(id);
    }

    pub(crate) fn write(&mut self, id: Id, off: usize, bytes: &[u8]) {
        let data = self.data_mut(id);
        if data.len() < off + bytes.len() {
            data.resize(off + bytes.len(), 0);
        }
        data[off..off + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn truncate(&mut self, id: Id, size: usize) {
        self.data_mut(id).resize(size, 0);
    }

    pub(crate) fn fallocate(&mut self, id: Id, off: usize, len: usize, mode: i32) -> Res<()> {
        let size = self.data(id).len();
        let end = off + len;
        match mode {
            0 => self.truncate(id, size.max(end)),
            falloc::KEEP_SIZE => {}
            m if m == falloc::PUNCH_HOLE | falloc::KEEP_SIZE || m & falloc::ZERO_RANGE != 0 => {
                if m == falloc::ZERO_RANGE {
                    self.truncate(id, size.max(end));
                }
                let data = self.data_mut(id);
                let (from, to) = (off.min(data.len()), end.min(data.len()));
                data[from..to].fill(0);
            }
            falloc::COLLAPSE_RANGE => {
                if !off.is_multiple_of(4096) || !len.is_multiple_of(4096) || end >= size {
                    return Err(Errno::INVAL);
                }
                self.data_mut(id).drain(off..end);
            }
            falloc::INSERT_RANGE => {
                if !off.is_multiple_of(4096) || !len.is_multiple_of(4096) || off >= size {
                    return Err(Errno::INVAL);
                }
                self.data_mut(id).splice(off..off, std::iter::repeat_n(0, len));
            }
            other => panic!("mode {other} is not in the model"),
        }
        self.get_mut(id).mtime = None;
        Ok(())
    }

    pub(crate) fn copy(
        &mut self,
        from: Id,
        from_off: usize,
        to: Id,
        to_off: usize,
        len: usize,
    ) -> Res<usize> {
        let data = self.data(from);
        let len = len.min(data.len().saturating_sub(from_off));
        if len == 0 {
            return Ok(0);
        }
        if from == to && from_off < to_off + len && to_off < from_off + len {
            return Err(Errno::INVAL);
        }
        let bytes = data[from_off..from_off + len].to_vec();
        self.write(to, to_off, &bytes);
        Ok(len)
    }

    /// What is left after everything was closed: files without a name are gone.
    pub(crate) fn close_all(&mut self) {
        for inode in self.inodes.values_mut() {
            inode.opens = 0;
        }
        self.inodes.retain(|_, inode| inode.nlink > 0);
    }
}
