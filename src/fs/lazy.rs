//! Working trees that were made from a snapshot: directories, and long extent lists, are loaded when they are first
//! looked into.
//!
//! Loading changes nothing that anyone can see, so it marks nothing. It is done in batches; the last one says that the
//! directory is loaded, and after a crash before that it is done again, which is harmless: nobody changes a directory,
//! or anything in it, before it is loaded completely. The exception are inodes with several names, met in several
//! directories: the first one loads the inode, others only their names. Before such an inode is changed, all its names
//! must be known, since the directories that hold them show its attributes: then the whole tree is loaded.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::error::FsResult;
use super::txn::{PAGE_ROWS, Txn};
use super::{Core, Flag};
use crate::env::Time;
use crate::format::ids::ChunkId;
use crate::format::tree::{Content, Entry, FileType};
use crate::snapshot::tree::TreeReader;
use crate::store::error::Result;
use crate::store::live::{Batch, Live, Table};
use crate::store::records::{
    DirentRow, ExtentRow, InodeRow, ROOT_INO, dirent_key, encode_tree, encode_u64, extent_key, inode_key,
    links_key, rows_of, settings, xattr_key,
};
use rustix::io::Errno;

/// Entries loaded in one batch.
const BATCH_ENTRIES: usize = 256;

/// What loading needs to remember.
pub(super) struct LazyState {
    /// Something may not be loaded.
    pub(super) any: Flag,
    /// All directories are loaded.
    all_dirs: Flag,
    loading: Mutex<()>,
    reader: OnceLock<TreeReader<'static>>,
}

impl LazyState {
    /// Returns the state of a tree; `any` as the Settings say.
    pub(super) fn new(any: bool) -> Self {
        Self {
            any: Flag::new(any),
            all_dirs: Flag::new(false),
            loading: Mutex::new(()),
            reader: OnceLock::new(),
        }
    }
}

/// Makes the root directory of a new, empty working tree.
pub(super) fn format_root(live: &Live, now: Time) -> Result<()> {
    let mut batch = Batch::new();
    let row = InodeRow::new(FileType::Dir, 0o755, 0, 0, ROOT_INO, now);
    batch.put(Table::Inodes, inode_key(ROOT_INO), row.encode());
    batch.put(Table::Settings, settings::NEXT_INO, encode_u64(ROOT_INO + 1));
    batch.put(Table::DirtyDirs, inode_key(ROOT_INO), encode_u64(0));
    live.apply(batch)
}

fn row_of(entry: &Entry, parent: u64) -> InodeRow {
    InodeRow {
        kind: entry.kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        nlink: entry.nlink.max(1),
        rdev: (0, 0),
        size: if entry.kind == FileType::File { entry.size } else { 0 },
        atime: entry.atime,
        mtime: entry.mtime,
        ctime: entry.ctime,
        parent,
        target: Vec::new(),
        lazy: None,
        lazy_extents: None,
        blocks: 0,
        has_xattrs: !entry.xattrs.is_empty(),
    }
}

/// Adds the rows that hang off an inode, and completes the inode's own.
fn put_inode(batch: &mut Batch, ino: u64, row: &mut InodeRow, entry: &Entry) {
    for (name, value) in &entry.xattrs {
        batch.put(Table::Xattrs, xattr_key(ino, name), value.as_slice());
    }
    match &entry.content {
        Content::Inline(bytes) if !bytes.is_empty() => {
            row.blocks = bytes.len() as u64;
            batch.put(Table::Extents, extent_key(ino, 0), ExtentRow::Inline(bytes.clone()).encode());
        }
        Content::Extents(extents) => {
            for extent in extents {
                row.blocks += extent.len;
                let value = ExtentRow::Chunk {
                    len: extent.len,
                    chunk: extent.chunk,
                    chunk_offset: extent.chunk_offset,
                };
                batch.put(Table::Extents, extent_key(ino, extent.offset), value.encode());
            }
        }
        Content::ExtentTree(id) => {
            // How much of it is holes is only known once it is loaded.
            row.blocks = row.size;
            row.lazy_extents = Some(*id);
        }
        Content::Dir(id) => row.lazy = Some(*id),
        Content::Symlink(target) => {
            row.size = target.len() as u64;
            row.target.clone_from(target);
        }
        Content::Device { major, minor } => row.rdev = (*major, *minor),
        Content::Empty | Content::Inline(_) | Content::None => {}
    }
}

impl Core {
    fn reader(&self) -> &TreeReader<'static> {
        self.lazy.reader.get_or_init(|| TreeReader::shared(self.engine.packs.clone()))
    }

    /// Loads a directory unless it is loaded, or is none.
    pub(super) fn load_dir(&self, dir: u64) -> FsResult<()> {
        if !self.may_be_lazy() {
            return Ok(());
        }
        if self.lazy_dir(dir)?.is_some() {
            let _loading = self.lazy.loading.lock().unwrap_or_else(PoisonError::into_inner);
            // Someone else may have loaded it meanwhile.
            if let Some(id) = self.lazy_dir(dir)? {
                self.load_dir_from(dir, &id)?;
            }
        }
        Ok(())
    }

    fn lazy_dir(&self, dir: u64) -> FsResult<Option<ChunkId>> {
        self.read_meta(|meta| match self.engine.live.get(Table::Inodes, &inode_key(dir))? {
            Some(_) => Ok(meta.inode(dir)?.lazy),
            None => Ok(None),
        })
    }

    fn load_dir_from(&self, dir: u64, id: &ChunkId) -> FsResult<()> {
        let mut entries = self.reader().entries(id, None)?;
        let mut dirs = 0u32;
        let mut done = false;
        while !done {
            let mut page = Vec::with_capacity(BATCH_ENTRIES);
            while page.len() < BATCH_ENTRIES && !done {
                match entries.next_entry()? {
                    Some(entry) => page.push(entry),
                    None => done = true,
                }
            }
            dirs += page.iter().filter(|entry| entry.kind == FileType::Dir).count() as u32;
            let mut txn = self.txn();
            for entry in &page {
                load_entry(&mut txn, dir, entry)?;
            }
            if done {
                let row = txn.row(dir)?;
                row.lazy = None;
                row.nlink = dirs.saturating_add(2);
                txn.batch.put(Table::Trees, inode_key(dir), encode_tree(id));
            }
            txn.commit()?;
        }
        Ok(())
    }

    /// Loads the directory that this name stands for, if it does.
    pub(super) fn load_named_dir(&self, parent: u64, name: &[u8]) -> FsResult<()> {
        if !self.may_be_lazy() {
            return Ok(());
        }
        match self.read_meta(|meta| meta.dirent(parent, name))? {
            Some(dirent) if dirent.kind == FileType::Dir => self.load_dir(dirent.ino),
            _ => Ok(()),
        }
    }

    /// Loads what must be known before this inode is changed or its data read: see the module's text.
    pub(super) fn prepare(&self, ino: u64) -> FsResult<()> {
        if !self.may_be_lazy() {
            return Ok(());
        }
        let row = match self.read_meta(|meta| meta.inode(ino)) {
            Err(error) if error.errno == Errno::NOENT => return Ok(()),
            other => other?,
        };
        if let Some(id) = row.lazy_extents {
            self.load_extents(ino, id)?;
        }
        let several = row.kind != FileType::Dir && row.nlink > 1;
        if several && !self.lazy.all_dirs.load(Ordering::Acquire) {
            let known = self.txn().links(ino)?.len() as u64;
            if known < u64::from(row.nlink) {
                self.load_all()?;
            }
        }
        Ok(())
    }

    /// Prepares the inode that this name stands for, if it does.
    pub(super) fn prepare_name(&self, parent: u64, name: &[u8]) -> FsResult<()> {
        if !self.may_be_lazy() {
            return Ok(());
        }
        match self.read_meta(|meta| meta.dirent(parent, name))? {
            Some(dirent) => self.prepare(dirent.ino),
            None => Ok(()),
        }
    }

    fn load_extents(&self, ino: u64, id: ChunkId) -> FsResult<()> {
        let _loading = self.lazy.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let row = self.read_meta(|meta| meta.inode(ino))?;
        if row.lazy_extents != Some(id) {
            return Ok(());
        }
        let content = Content::ExtentTree(id);
        let mut extents = self.reader().extents(&content, row.size, 0)?;
        let mut blocks = 0u64;
        let mut done = false;
        while !done {
            let mut txn = self.txn();
            for _ in 0..PAGE_ROWS {
                let Some(extent) = extents.next_extent()? else {
                    done = true;
                    break;
                };
                blocks += extent.len;
                let value = ExtentRow::Chunk {
                    len: extent.len,
                    chunk: extent.chunk,
                    chunk_offset: extent.chunk_offset,
                };
                txn.batch.put(Table::Extents, extent_key(ino, extent.offset), value.encode());
            }
            if done {
                let row = txn.row(ino)?;
                row.lazy_extents = None;
                row.blocks = blocks;
            }
            txn.commit()?;
        }
        Ok(())
    }

    /// Loads all directories.
    fn load_all(&self) -> FsResult<()> {
        let mut todo = vec![ROOT_INO];
        while let Some(dir) = todo.pop() {
            self.load_dir(dir)?;
            let (mut from, to) = (rows_of(dir).0.to_vec(), rows_of(dir).1);
            loop {
                let rows = self.engine.live.range(Table::Dirents, &from, Some(&to), PAGE_ROWS)?;
                for (_, value) in &rows {
                    let dirent = DirentRow::decode(value)?;
                    if dirent.kind == FileType::Dir {
                        todo.push(dirent.ino);
                    }
                }
                match rows.last() {
                    Some((key, _)) if rows.len() == PAGE_ROWS => {
                        from = key.clone();
                        from.push(0);
                    }
                    _ => break,
                }
            }
        }
        self.lazy.all_dirs.store(true, Ordering::Release);
        Ok(())
    }
}

/// Adds the rows of one entry of a directory that is being loaded.
fn load_entry(txn: &mut Txn<'_>, dir: u64, entry: &Entry) -> FsResult<()> {
    let ino = entry.ino;
    let dirent = DirentRow { ino, kind: entry.kind };
    txn.batch.put(Table::Dirents, dirent_key(dir, &entry.name), dirent.encode());
    let several = entry.kind != FileType::Dir && entry.nlink > 1;
    if several {
        txn.batch.put(Table::Links, links_key(ino, dir, &entry.name), Vec::new());
    }
    match txn.peek(ino) {
        Err(error) if error.errno == Errno::NOENT => {
            let mut row = row_of(entry, dir);
            put_inode(&mut txn.batch, ino, &mut row, entry);
            txn.add_row(ino, row);
            Ok(())
        }
        other => other.map(|_| ()),
    }
}
