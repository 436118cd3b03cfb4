//! [`Fs`]: each call goes to the working tree or to the snapshots, by inode number or handle.

use std::sync::{Arc, PoisonError};

use super::Core;
use super::browse::{Browse, SNAPSHOTS_INO, VIRTUAL, is_snapshots_dir};
use super::dir::NewInode;
use super::error::{FsError, FsResult};
use super::types::{
    Attr, Caller, DirEnt, Fh, FsOptions, FsStats, OpenFlags, RenameFlags, SetAttr, StatFs, Whence,
};
use crate::format::tree::{Entry, FileType, NAME_LEN_MAX};
use crate::snapshot::WorkingTree;
use crate::store::engine::Engine;
use crate::store::error::{Result, StoreError};
use crate::store::packs::ChunkSource;
use rustix::io::Errno;

/// A mounted vault, or a mounted snapshot, as POSIX sees it. All calls may be made from many threads at once.
///
/// Permissions are the caller's business (the kernel checks them); everything else that POSIX says about names,
/// attributes and data is decided here. Errors carry the errno to answer.
#[derive(Debug)]
pub struct Fs {
    tree: Option<Arc<Core>>,
    snapshots: Browse,
}

impl Fs {
    /// Opens the working tree of a vault. Purges files that had lost their last name but were open at the last crash.
    pub fn open(engine: Arc<Engine>, opts: FsOptions) -> FsResult<Arc<Fs>> {
        let tree = Core::open(engine.clone(), opts)?;
        Ok(Arc::new(Fs { tree: Some(tree), snapshots: Browse::all(engine) }))
    }

    /// Opens one snapshot, read-only. `root` is its root entry, `source` has its chunks.
    pub fn open_snapshot(source: Arc<dyn ChunkSource>, root: Entry) -> Arc<Fs> {
        Arc::new(Fs { tree: None, snapshots: Browse::one(source, root) })
    }

    /// The working tree, to change it or to look at it.
    pub(super) fn tree(&self) -> FsResult<&Core> {
        self.tree.as_deref().ok_or_else(|| Errno::ROFS.into())
    }

    fn is_snapshot(&self, ino: u64) -> bool {
        self.tree.is_none() || ino & VIRTUAL != 0
    }

    /// The working tree, to change this inode. EROFS for one of a snapshot.
    fn changing(&self, ino: u64) -> FsResult<&Core> {
        if ino & VIRTUAL != 0 { Err(Errno::ROFS.into()) } else { self.tree() }
    }

    /// The working tree, to make this name. EEXIST for the name that stands for the snapshots.
    fn making(&self, parent: u64, name: &[u8]) -> FsResult<&Core> {
        let tree = self.changing(parent)?;
        if is_snapshots_dir(parent, name) { Err(Errno::EXIST.into()) } else { Ok(tree) }
    }

    /// The working tree, to take this name away. EPERM for the name that stands for the snapshots.
    fn removing(&self, parent: u64, name: &[u8]) -> FsResult<&Core> {
        let tree = self.changing(parent)?;
        if is_snapshots_dir(parent, name) { Err(Errno::PERM.into()) } else { Ok(tree) }
    }

    /// Returns what a name stands for. An inode of a snapshot is remembered until it is forgotten as often as it was returned
    /// here and by [`Fs::readdir`] with attributes.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> FsResult<Attr> {
        match &self.tree {
            Some(_) if is_snapshots_dir(parent, name) => self.snapshots.snapshots_attr(),
            Some(tree) if parent == SNAPSHOTS_INO && name == b".." => {
                tree.getattr(crate::store::records::ROOT_INO)
            }
            Some(tree) if !self.is_snapshot(parent) => tree.lookup(parent, name),
            _ if name.len() > NAME_LEN_MAX => Err(Errno::NAMETOOLONG.into()),
            _ => self.snapshots.lookup(parent, name),
        }
    }

    /// The kernel forgets `n` answers that named an inode. Only inodes of snapshots take memory, and are counted.
    pub fn forget(&self, ino: u64, n: u64) {
        if self.is_snapshot(ino) {
            self.snapshots.forget(ino, n);
        }
    }

    /// Returns an inode's attributes.
    pub fn getattr(&self, ino: u64) -> FsResult<Attr> {
        if self.is_snapshot(ino) { self.snapshots.getattr(ino) } else { self.tree()?.getattr(ino) }
    }

    /// Changes attributes and returns what they are then.
    pub fn setattr(&self, ino: u64, set: SetAttr, fh: Option<Fh>, caller: Caller) -> FsResult<Attr> {
        self.changing(ino)?.setattr(ino, set, fh, caller)
    }

    /// Makes an inode of any type but directory and symbolic link. The umask counts unless a default ACL does.
    #[expect(clippy::too_many_arguments, reason = "what mknod(2) and the kernel say")]
    pub fn mknod(
        &self,
        parent: u64,
        name: &[u8],
        kind: FileType,
        mode: u32,
        umask: u32,
        rdev: (u32, u32),
        caller: Caller,
    ) -> FsResult<Attr> {
        let rdev = match kind {
            FileType::CharDev | FileType::BlockDev => rdev,
            FileType::File | FileType::Fifo | FileType::Socket => (0, 0),
            FileType::Dir | FileType::Symlink => return Err(Errno::INVAL.into()),
        };
        let new = NewInode { kind, mode, umask, rdev, target: b"" };
        self.making(parent, name)?.make(parent, name, &new, caller)
    }

    /// Makes a directory.
    pub fn mkdir(&self, parent: u64, name: &[u8], mode: u32, umask: u32, caller: Caller) -> FsResult<Attr> {
        let new = NewInode { kind: FileType::Dir, mode, umask, rdev: (0, 0), target: b"" };
        self.making(parent, name)?.make(parent, name, &new, caller)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, parent: u64, name: &[u8], target: &[u8], caller: Caller) -> FsResult<Attr> {
        self.making(parent, name)?.symlink(parent, name, target, caller)
    }

    /// Gives a file one more name.
    pub fn link(&self, ino: u64, newparent: u64, newname: &[u8]) -> FsResult<Attr> {
        if ino & VIRTUAL != 0 {
            return Err(Errno::XDEV.into());
        }
        self.making(newparent, newname)?.link(ino, newparent, newname)
    }

    /// Removes a name that is no directory's.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> FsResult<()> {
        self.removing(parent, name)?.unlink(parent, name)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> FsResult<()> {
        self.removing(parent, name)?.rmdir(parent, name)
    }

    /// Renames; what the name replaces, if anything, goes.
    pub fn rename(
        &self,
        parent: u64,
        name: &[u8],
        newparent: u64,
        newname: &[u8],
        flags: RenameFlags,
    ) -> FsResult<()> {
        self.removing(newparent, newname)?;
        self.removing(parent, name)?.rename(parent, name, newparent, newname, flags)
    }

    /// Returns what a symbolic link says.
    pub fn readlink(&self, ino: u64) -> FsResult<Vec<u8>> {
        if self.is_snapshot(ino) { self.snapshots.readlink(ino) } else { self.tree()?.readlink(ino) }
    }

    /// Makes a file unless it exists, and opens it.
    pub fn create(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: OpenFlags,
        caller: Caller,
    ) -> FsResult<(Attr, Fh)> {
        self.making(parent, name)?.create(parent, name, mode, umask, flags, caller)
    }

    /// Opens a file.
    pub fn open_file(&self, ino: u64, flags: OpenFlags, caller: Caller) -> FsResult<Fh> {
        if self.is_snapshot(ino) {
            if flags.write || flags.truncate {
                return Err(Errno::ROFS.into());
            }
            return self.snapshots.open(ino);
        }
        self.tree()?.open_file(ino, flags, caller)
    }

    /// Reads up to `len` bytes at `off`; fewer only at the end of the file.
    pub fn read(&self, ino: u64, fh: Fh, off: u64, len: u32) -> FsResult<Vec<u8>> {
        let len = len as usize;
        if self.is_snapshot(ino) {
            self.snapshots.read(ino, off, len)
        } else {
            self.tree()?.read(ino, fh, off, len)
        }
    }

    /// Writes all of `data` at `off`. With `kill_suid` the file loses its set-user-id and set-group-id bits.
    pub fn write(&self, ino: u64, fh: Fh, off: u64, data: &[u8], kill_suid: bool) -> FsResult<usize> {
        self.changing(ino)?.write(ino, fh, off, data, kill_suid)
    }

    /// What close(2) waits for: sets the file's data on its way, and reports a failure that this handle has not seen.
    pub fn flush(&self, ino: u64, fh: Fh) -> FsResult<()> {
        if self.is_snapshot(ino) { Ok(()) } else { self.tree()?.flush_handle(ino, fh) }
    }

    /// Closes a handle.
    pub fn release(&self, ino: u64, fh: Fh) -> FsResult<()> {
        if self.is_snapshot(ino) { Ok(()) } else { self.tree()?.release(ino, fh) }
    }

    /// Makes a file durable, and every change of names made before. Data alone is not faster.
    pub fn fsync(&self, ino: u64, _datasync: bool) -> FsResult<()> {
        if self.is_snapshot(ino) { Ok(()) } else { self.tree()?.fsync(ino) }
    }

    /// Makes a directory durable.
    pub fn fsyncdir(&self, ino: u64) -> FsResult<()> {
        if self.is_snapshot(ino) { Ok(()) } else { self.tree()?.fsyncdir() }
    }

    /// Opens a directory for listing.
    pub fn opendir(&self, ino: u64) -> FsResult<Fh> {
        if self.is_snapshot(ino) { self.snapshots.opendir(ino) } else { self.tree()?.opendir(ino) }
    }

    /// Lists a directory from after the entry that `cookie` came with (0: from the start) until `each` returns false,
    /// which means that it did not take the entry. With `plus` entries come with attributes.
    pub fn readdir(
        &self,
        fh: Fh,
        cookie: u64,
        each: &mut dyn FnMut(&DirEnt<'_>) -> bool,
        plus: bool,
    ) -> FsResult<()> {
        if self.is_snapshot(fh.0) {
            self.snapshots.readdir(fh, cookie, each, plus)
        } else {
            self.tree()?.readdir(fh, cookie, each, plus)
        }
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: Fh) -> FsResult<()> {
        if self.is_snapshot(fh.0) { self.snapshots.releasedir(fh) } else { self.tree()?.releasedir(fh) }
    }

    /// Reports space.
    pub fn statfs(&self) -> FsResult<StatFs> {
        match &self.tree {
            Some(tree) => tree.statfs(),
            None => Ok(StatFs {
                block_size: 4096,
                blocks: 0,
                free: 0,
                available: 0,
                files: 0,
                files_free: 0,
                name_max: NAME_LEN_MAX as u32,
            }),
        }
    }

    /// Returns an extended attribute's value. ENODATA if there is none.
    pub fn getxattr(&self, ino: u64, name: &[u8]) -> FsResult<Vec<u8>> {
        if self.is_snapshot(ino) {
            self.snapshots.getxattr(ino, name)
        } else {
            self.tree()?.getxattr(ino, name)
        }
    }

    /// Sets an extended attribute; for `flags` see [`super::xattr_flags`].
    pub fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> FsResult<()> {
        self.changing(ino)?.setxattr(ino, name, value, flags)
    }

    /// Returns the names of all extended attributes, each ended by a NUL.
    pub fn listxattr(&self, ino: u64) -> FsResult<Vec<u8>> {
        if self.is_snapshot(ino) { self.snapshots.listxattr(ino) } else { self.tree()?.listxattr(ino) }
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, ino: u64, name: &[u8]) -> FsResult<()> {
        self.changing(ino)?.removexattr(ino, name)
    }

    /// Does what fallocate(2) does; for `mode` see [`super::falloc`].
    pub fn fallocate(&self, ino: u64, _fh: Fh, off: u64, len: u64, mode: i32) -> FsResult<()> {
        self.changing(ino)?.fallocate(ino, off, len, mode)
    }

    /// Returns whether a file is open for writing, so that somebody above may hold data that was not handed over yet.
    pub fn has_writers(&self, ino: u64) -> bool {
        !self.is_snapshot(ino) && self.tree().is_ok_and(|tree| tree.has_writers(ino))
    }

    /// Returns the first offset from `off` on that is data, or a hole.
    pub fn lseek(&self, ino: u64, off: u64, whence: Whence) -> FsResult<u64> {
        if self.is_snapshot(ino) {
            self.snapshots.lseek(ino, off, whence)
        } else {
            self.tree()?.lseek(ino, off, whence)
        }
    }

    /// Copies up to `len` bytes by sharing chunks. Returns how many.
    #[expect(clippy::too_many_arguments, reason = "what copy_file_range(2) says")]
    pub fn copy_file_range(
        &self,
        from: u64,
        _from_fh: Fh,
        from_off: u64,
        to: u64,
        _to_fh: Fh,
        to_off: u64,
        len: u64,
    ) -> FsResult<usize> {
        let tree = self.changing(to)?;
        if self.is_snapshot(from) {
            // The kernel then copies by reading and writing, and the chunks are found again.
            return Err(Errno::XDEV.into());
        }
        tree.copy_file_range(from, from_off, to, to_off, len)
    }

    /// Publishes the data of all files, so that the database knows everything that was written. Does not commit.
    pub fn flush_all(&self) -> FsResult<()> {
        self.tree.as_ref().map_or(Ok(()), |tree| tree.flush_all())
    }

    /// Makes everything durable.
    pub fn sync_all(&self) -> FsResult<()> {
        self.tree.as_ref().map_or(Ok(()), |tree| tree.sync_all())
    }

    /// Does what time asks for; to be called each second. Changes are committed at the latest every 5 seconds.
    pub fn tick(&self) -> FsResult<()> {
        self.tree.as_ref().map_or(Ok(()), |tree| tree.tick())
    }

    /// Makes everything durable at the end of a mount. A snapshot, if one is wanted, comes after it.
    pub fn shutdown(&self) -> FsResult<()> {
        self.tree.as_ref().map_or(Ok(()), |tree| tree.shutdown())
    }

    /// Returns counters.
    pub fn counters(&self) -> FsStats {
        let tree = self.tree.as_ref().map_or_else(FsStats::default, |tree| tree.stats());
        FsStats { snapshot_inodes: self.snapshots.known_inodes(), ..tree }
    }
}

/// What snapshots need of a tree that is in use.
impl WorkingTree for Fs {
    fn flush(&self) -> Result<()> {
        self.flush_all().map_err(into_store)
    }

    fn frozen(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let Some(tree) = &self.tree else { return f() };
        let _guard = tree.meta.write().unwrap_or_else(PoisonError::into_inner);
        f()
    }
}

/// Returns the engine's own error, or one that says what POSIX would.
fn into_store(error: FsError) -> StoreError {
    match error.cause.map(Arc::try_unwrap) {
        Some(Ok(cause)) => cause,
        Some(Err(shared)) => match &*shared {
            StoreError::NoSpace => StoreError::NoSpace,
            StoreError::Poisoned(cause) => StoreError::Poisoned(cause.clone()),
            other => StoreError::Corrupt(other.to_string()),
        },
        None if error.errno == Errno::NOSPC => StoreError::NoSpace,
        None => StoreError::Io { what: "writing file data".into(), source: error.errno.into() },
    }
}
