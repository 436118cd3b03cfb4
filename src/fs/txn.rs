//! Changes of the namespace: one batch built and applied under the namespace's lock.

use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLockWriteGuard};

use super::error::{FsError, FsResult};
use super::{Core, Meta};
use crate::env::Time;
use crate::format::tree::FileType;
use crate::store::error::StoreError;
use crate::store::live::{Batch, Live, Table};
use crate::store::records::{
    self, DirentRow, InodeRow, ROOT_INO, dirent_key, inode_key, links_key, parse_links_key, rows_of, settings,
};
use rustix::io::Errno;

/// Inode numbers and change counters are reserved this many at a time.
const RESERVE_STEP: u64 = 1 << 12;

/// Back references read in one go before what is left of a directory's is passed over.
const DIR_ROWS: usize = 32;

/// Rows read or changed in one go where their number has no bound.
pub(super) const PAGE_ROWS: usize = 1000;

/// Reading the namespace; exists only while its lock is held.
pub(super) struct MetaView<'a> {
    /// The database.
    pub(super) live: &'a Live,
}

impl MetaView<'_> {
    /// Returns an inode's row. ENOENT if there is none.
    pub(super) fn inode(&self, ino: u64) -> FsResult<InodeRow> {
        match self.live.get(Table::Inodes, &inode_key(ino))? {
            Some(value) => Ok(InodeRow::decode(&value)?),
            None => Err(Errno::NOENT.into()),
        }
    }

    /// Returns the inode that a name must have, since a row names it.
    pub(super) fn named_inode(&self, ino: u64) -> FsResult<InodeRow> {
        match self.live.get(Table::Inodes, &inode_key(ino))? {
            Some(value) => Ok(InodeRow::decode(&value)?),
            None => Err(missing_inode(ino)),
        }
    }

    /// Returns what a name stands for.
    pub(super) fn dirent(&self, parent: u64, name: &[u8]) -> FsResult<Option<DirentRow>> {
        match self.live.get(Table::Dirents, &dirent_key(parent, name))? {
            Some(value) => Ok(Some(DirentRow::decode(&value)?)),
            None => Ok(None),
        }
    }

    /// Returns whether a directory has no entry.
    pub(super) fn is_empty_dir(&self, ino: u64) -> FsResult<bool> {
        let (from, to) = rows_of(ino);
        Ok(self.live.range(Table::Dirents, &from, Some(&to), 1)?.is_empty())
    }
}

fn missing_inode(ino: u64) -> FsError {
    StoreError::Corrupt(format!("a directory names inode {ino}, which does not exist")).into()
}

impl Core {
    /// Runs `read` while no one changes the namespace.
    pub(super) fn read_meta<T>(&self, read: impl FnOnce(&MetaView<'_>) -> FsResult<T>) -> FsResult<T> {
        let _guard = self.meta.read().unwrap_or_else(PoisonError::into_inner);
        read(&MetaView { live: &self.engine.live })
    }

    /// Begins a change of the namespace and takes its lock. Nothing happens if it is dropped uncommitted.
    pub(super) fn txn(&self) -> Txn<'_> {
        let meta = self.meta.write().unwrap_or_else(PoisonError::into_inner);
        Txn {
            meta,
            view: MetaView { live: &self.engine.live },
            batch: Batch::new(),
            rows: Vec::new(),
            marks: BTreeSet::new(),
            now: self.now(),
        }
    }
}

struct CachedRow {
    ino: u64,
    row: InodeRow,
    changed: bool,
}

/// A change of the namespace. Inode rows are read and changed through it, so that two steps that touch the same inode
/// see each other; other rows go straight into the batch, which reads do not see.
pub(super) struct Txn<'a> {
    meta: RwLockWriteGuard<'a, Meta>,
    /// Rows as they were before the change.
    pub(super) view: MetaView<'a>,
    /// Rows to write.
    pub(super) batch: Batch,
    rows: Vec<CachedRow>,
    marks: BTreeSet<u64>,
    /// The time of the change.
    pub(super) now: Time,
}

impl Txn<'_> {
    fn cached(&mut self, ino: u64) -> FsResult<&mut CachedRow> {
        let at = match self.rows.iter().position(|cached| cached.ino == ino) {
            Some(at) => at,
            None => {
                let row = self.view.inode(ino)?;
                self.rows.push(CachedRow { ino, row, changed: false });
                self.rows.len() - 1
            }
        };
        Ok(&mut self.rows[at])
    }

    /// Returns an inode's row for reading. ENOENT if there is none.
    pub(super) fn peek(&mut self, ino: u64) -> FsResult<&InodeRow> {
        Ok(&self.cached(ino)?.row)
    }

    /// Returns an inode's row for changing. ENOENT if there is none.
    pub(super) fn row(&mut self, ino: u64) -> FsResult<&mut InodeRow> {
        let cached = self.cached(ino)?;
        cached.changed = true;
        Ok(&mut cached.row)
    }

    /// Adds a new inode's row.
    pub(super) fn add_row(&mut self, ino: u64, row: InodeRow) {
        self.rows.push(CachedRow { ino, row, changed: true });
    }

    /// Deletes an inode's row.
    pub(super) fn drop_row(&mut self, ino: u64) {
        self.rows.retain(|cached| cached.ino != ino);
        self.batch.delete(Table::Inodes, inode_key(ino));
    }

    /// Returns a directory's row for changing.
    ///
    /// # Errors
    /// ENOENT if it does not exist, ENOTDIR if it is something else.
    pub(super) fn dir(&mut self, ino: u64) -> FsResult<&mut InodeRow> {
        let row = self.row(ino)?;
        if row.kind == FileType::Dir { Ok(row) } else { Err(Errno::NOTDIR.into()) }
    }

    /// Puts a name into a directory, whose times and mark follow.
    pub(super) fn add_name(&mut self, parent: u64, name: &[u8], target: DirentRow) -> FsResult<()> {
        self.batch.put(Table::Dirents, dirent_key(parent, name), target.encode());
        self.touch_dir(parent)
    }

    /// Takes a name out of a directory, whose times and mark follow.
    pub(super) fn remove_name(&mut self, parent: u64, name: &[u8]) -> FsResult<()> {
        self.batch.delete(Table::Dirents, dirent_key(parent, name));
        self.touch_dir(parent)
    }

    /// Sets a directory's times after a change of its entries.
    pub(super) fn touch_dir(&mut self, dir: u64) -> FsResult<()> {
        let now = self.now;
        let row = self.dir(dir)?;
        (row.mtime, row.ctime) = (now, now);
        self.mark(dir);
        self.mark_holders(dir)
    }

    /// Marks a directory: one of its entries, or what an entry shows, has changed.
    pub(super) fn mark(&mut self, dir: u64) {
        self.marks.insert(dir);
    }

    /// Marks the directories that show this inode. The root, which none shows, is marked itself.
    pub(super) fn mark_holders(&mut self, ino: u64) -> FsResult<()> {
        for dir in self.holders(ino)? {
            self.mark(dir);
        }
        Ok(())
    }

    /// Returns the directories that show an inode, perhaps with one that did. All of them have been loaded: see `Core::prepare`.
    pub(super) fn holders(&mut self, ino: u64) -> FsResult<Vec<u64>> {
        if ino == ROOT_INO {
            return Ok(vec![ROOT_INO]);
        }
        let row = self.peek(ino)?;
        let (nlink, parent) = (row.nlink, row.parent);
        if row.kind == FileType::Dir || nlink == 1 {
            return Ok(vec![parent]);
        }
        if nlink == 0 {
            return Ok(Vec::new());
        }
        let is_dir = match self.view.inode(parent) {
            Ok(row) => row.kind == FileType::Dir,
            Err(error) if error.errno == Errno::NOENT => false,
            Err(error) => return Err(error),
        };
        // The file's first directory, if it exists, may have lost all its names: to mark it then, too, does no harm.
        if is_dir { self.linking_dirs_around(ino, parent) } else { self.linking_dirs(ino, 0, None) }
    }

    /// Marks the directories that show an inode of which this directory, which holds a name of it, is one.
    pub(super) fn mark_holders_of(&mut self, ino: u64, parent: u64) -> FsResult<()> {
        self.mark(parent);
        if self.peek(ino)?.nlink < 2 {
            return self.mark_holders(ino);
        }
        for dir in self.linking_dirs_around(ino, parent)? {
            self.mark(dir);
        }
        Ok(())
    }

    /// Returns a directory that is known to have names of an inode, and all others that have. Thousands of names may just have
    /// gone from the one that is known: each of them would have to be passed over again.
    fn linking_dirs_around(&self, ino: u64, known: u64) -> FsResult<Vec<u64>> {
        let mut dirs = self.linking_dirs(ino, 0, Some(known))?;
        dirs.push(known);
        if let Some(next) = known.checked_add(1) {
            dirs.extend(self.linking_dirs(ino, next, None)?);
        }
        Ok(dirs)
    }

    /// Returns the directories from `first` on and below `end` that Links has for an inode. A directory with thousands of
    /// its names costs no more than one with a few.
    fn linking_dirs(&self, ino: u64, first: u64, end: Option<u64>) -> FsResult<Vec<u64>> {
        let mut from = links_key(ino, first, b"");
        let to = end.map_or_else(|| rows_of(ino).1.to_vec(), |end| links_key(ino, end, b""));
        let mut dirs: Vec<u64> = Vec::new();
        loop {
            let rows = self.view.live.range(Table::Links, &from, Some(&to), DIR_ROWS)?;
            for (key, _) in &rows {
                let (_, dir, _) = parse_links_key(key)?;
                if dirs.last() != Some(&dir) {
                    dirs.push(dir);
                }
            }
            match dirs.last().and_then(|last| last.checked_add(1)) {
                Some(next) if rows.len() == DIR_ROWS => from = links_key(ino, next, b""),
                _ => return Ok(dirs),
            }
        }
    }

    /// Returns all rows of Links for an inode: directory and name.
    pub(super) fn links(&self, ino: u64) -> FsResult<Vec<(u64, Vec<u8>)>> {
        let (mut from, to) = (inode_key(ino).to_vec(), rows_of(ino).1);
        let mut links = Vec::new();
        loop {
            let rows = self.view.live.range(Table::Links, &from, Some(&to), PAGE_ROWS)?;
            for (key, _) in &rows {
                let (_, dir, name) = parse_links_key(key)?;
                links.push((dir, name.to_vec()));
            }
            match rows.last() {
                Some((key, _)) if rows.len() == PAGE_ROWS => {
                    from = key.clone();
                    from.push(0);
                }
                _ => return Ok(links),
            }
        }
    }

    /// Returns the key of the Links row that stands for this name, if the inode has one.
    pub(super) fn link_row(&self, ino: u64, parent: u64, name: &[u8]) -> FsResult<Option<Vec<u8>>> {
        for key in [links_key(ino, parent, name), links_key(ino, parent, b"")] {
            if self.view.live.get(Table::Links, &key)?.is_some() {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// Returns a new inode number. Numbers are never used twice.
    pub(super) fn new_ino(&mut self) -> u64 {
        let ino = self.meta.next_ino;
        self.meta.next_ino += 1;
        if ino >= self.meta.ino_ceiling {
            self.meta.ino_ceiling = ino + RESERVE_STEP;
        }
        // In each batch that uses a number: an earlier batch that raised the ceiling may have been dropped.
        self.batch.put(Table::Settings, settings::NEXT_INO, records::encode_u64(self.meta.ino_ceiling));
        ino
    }

    /// Applies the change.
    pub(super) fn commit(mut self) -> FsResult<()> {
        for cached in &self.rows {
            if cached.changed {
                self.batch.put(Table::Inodes, inode_key(cached.ino), cached.row.encode());
            }
        }
        if !self.marks.is_empty() {
            let change = self.meta.change;
            self.meta.change += 1;
            if change >= self.meta.change_ceiling {
                self.meta.change_ceiling = change + RESERVE_STEP;
                self.meta.change_ceiling_stale = true;
            }
            if self.meta.change_ceiling_stale {
                self.batch.put(
                    Table::Settings,
                    settings::CHANGE_COUNTER,
                    records::encode_u64(self.meta.change_ceiling),
                );
            }
            for &dir in &self.marks {
                self.batch.put(Table::DirtyDirs, inode_key(dir), records::encode_u64(change));
            }
        }
        if !self.batch.is_empty() {
            self.view.live.apply(std::mem::take(&mut self.batch))?;
        }
        if !self.marks.is_empty() {
            self.meta.change_ceiling_stale = false;
        }
        Ok(())
    }
}
