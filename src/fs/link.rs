//! Names that come and go: link, unlink, rmdir, and what happens to a file that has lost its last name.

use std::sync::PoisonError;

use super::error::FsResult;
use super::txn::{PAGE_ROWS, Txn};
use super::types::Attr;
use super::{Core, check_name};
use crate::format::tree::FileType;
use crate::store::live::Table;
use crate::store::records::{DirentRow, inode_key, links_key, rows_of};
use rustix::io::Errno;

/// Most names of a file.
const LINKS_MAX: u32 = i32::MAX as u32;

/// A file with more rows than this is not purged in the batch that takes its last name, but afterwards.
const PURGE_NOW_ROWS: usize = 64;

/// Batches that the caller who removes the last name purges itself; [`Core::tick`](super::Fs::tick) does the rest.
const PURGE_BATCHES: usize = 8;

/// An inode that lost its last name and still has rows.
#[must_use]
pub(super) struct Unnamed(pub(super) Option<u64>);

impl Core {
    /// Gives a file one more name.
    pub(super) fn link(&self, ino: u64, parent: u64, name: &[u8]) -> FsResult<Attr> {
        check_name(name)?;
        self.writable_meta()?;
        if name == b"." || name == b".." {
            return Err(Errno::EXIST.into());
        }
        self.load_dir(parent)?;
        self.prepare(ino)?;
        let mut txn = self.txn();
        txn.dir(parent)?;
        if txn.view.dirent(parent, name)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        let now = txn.now;
        let row = txn.row(ino)?;
        if row.kind == FileType::Dir {
            return Err(Errno::PERM.into());
        }
        if row.nlink == 0 {
            return Err(Errno::NOENT.into());
        }
        if row.nlink >= LINKS_MAX {
            return Err(Errno::MLINK.into());
        }
        let (first, kind, only) = (row.parent, row.kind, row.nlink == 1);
        row.nlink += 1;
        row.ctime = now;
        if only {
            txn.batch.put(Table::Links, links_key(ino, first, b""), Vec::new());
            txn.mark(first);
        } else {
            txn.mark_holders(ino)?;
        }
        txn.batch.put(Table::Links, links_key(ino, parent, name), Vec::new());
        txn.add_name(parent, name, DirentRow { ino, kind })?;
        txn.commit()?;
        self.getattr(ino)
    }

    /// Removes a name that is no directory's.
    pub(super) fn unlink(&self, parent: u64, name: &[u8]) -> FsResult<()> {
        check_name(name)?;
        self.writable()?;
        self.load_dir(parent)?;
        self.prepare_name(parent, name)?;
        let mut txn = self.txn();
        txn.dir(parent)?;
        let dirent = txn.view.dirent(parent, name)?.ok_or(Errno::NOENT)?;
        if dirent.kind == FileType::Dir {
            return Err(Errno::ISDIR.into());
        }
        let unnamed = self.drop_name(&mut txn, parent, name, dirent.ino)?;
        txn.remove_name(parent, name)?;
        txn.commit()?;
        self.reap(unnamed)
    }

    /// Removes an empty directory.
    pub(super) fn rmdir(&self, parent: u64, name: &[u8]) -> FsResult<()> {
        if name == b"." {
            return Err(Errno::INVAL.into());
        }
        if name == b".." {
            return Err(Errno::NOTEMPTY.into());
        }
        check_name(name)?;
        self.writable()?;
        self.load_dir(parent)?;
        self.load_named_dir(parent, name)?;
        let mut txn = self.txn();
        txn.dir(parent)?;
        let dirent = txn.view.dirent(parent, name)?.ok_or(Errno::NOENT)?;
        if dirent.kind != FileType::Dir {
            return Err(Errno::NOTDIR.into());
        }
        if !txn.view.is_empty_dir(dirent.ino)? {
            return Err(Errno::NOTEMPTY.into());
        }
        txn.remove_name(parent, name)?;
        drop_dir(&mut txn, parent, dirent.ino)?;
        txn.commit()
    }

    /// Takes one name from an inode that is no directory. The entry itself is the caller's.
    pub(super) fn drop_name(
        &self,
        txn: &mut Txn<'_>,
        parent: u64,
        name: &[u8],
        ino: u64,
    ) -> FsResult<Unnamed> {
        let now = txn.now;
        txn.mark_holders_of(ino, parent)?;
        let row = txn.row(ino)?;
        row.nlink = row.nlink.saturating_sub(1);
        row.ctime = now;
        match row.nlink {
            0 => return self.drop_inode(txn, ino),
            left => self.drop_link(txn, parent, name, ino, left == 1)?,
        }
        Ok(Unnamed(None))
    }

    /// Removes the Links row of a name that goes; with `last` also that of the only name left.
    fn drop_link(&self, txn: &mut Txn<'_>, parent: u64, name: &[u8], ino: u64, last: bool) -> FsResult<()> {
        let gone = txn.link_row(ino, parent, name)?;
        if last {
            for (dir, other) in txn.links(ino)? {
                let key = links_key(ino, dir, &other);
                if gone.as_ref() != Some(&key) {
                    txn.row(ino)?.parent = dir;
                    txn.batch.delete(Table::Links, key);
                }
            }
        }
        if let Some(key) = gone {
            txn.batch.delete(Table::Links, key);
        }
        Ok(())
    }

    /// Removes an inode without names, at once if nobody uses it and it is small.
    fn drop_inode(&self, txn: &mut Txn<'_>, ino: u64) -> FsResult<Unnamed> {
        let (from, to) = rows_of(ino);
        let in_core = self.nodes.contains(ino);
        if !in_core {
            let extents = self.engine.live.range(Table::Extents, &from, Some(&to), PURGE_NOW_ROWS)?;
            if extents.len() < PURGE_NOW_ROWS {
                for (key, _) in extents {
                    txn.batch.delete(Table::Extents, key);
                }
                drop_xattrs(txn, ino)?;
                txn.drop_row(ino);
                return Ok(Unnamed(None));
            }
        }
        txn.batch.put(Table::Orphans, inode_key(ino), Vec::new());
        Ok(Unnamed(Some(ino)))
    }

    /// Purges a file without names unless it is open. Called after its last name went and after its last close.
    pub(super) fn reap(&self, unnamed: Unnamed) -> FsResult<()> {
        let Some(ino) = unnamed.0 else { return Ok(()) };
        if let Some(node) = self.find_node(ino) {
            let mut data = node.lock();
            if data.opens > 0 {
                return Ok(());
            }
            data.dead = true;
            self.drop_data(&node, &mut data);
        }
        if !self.purge_rows(ino, PURGE_BATCHES)? {
            self.purges.lock().unwrap_or_else(PoisonError::into_inner).insert(ino);
        }
        Ok(())
    }

    /// Purges what was left for later.
    pub(super) fn purge_some(&self) -> FsResult<()> {
        let waiting: Vec<u64> =
            self.purges.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        for ino in waiting {
            if self.purge_rows(ino, PURGE_BATCHES * 8)? {
                self.purges.lock().unwrap_or_else(PoisonError::into_inner).remove(&ino);
            }
        }
        Ok(())
    }

    /// Deletes the rows of an inode that no one can reach, in at most so many batches. Returns whether all are gone.
    pub(super) fn purge_rows(&self, ino: u64, batches: usize) -> FsResult<bool> {
        let (from, to) = rows_of(ino);
        for _ in 0..batches {
            let rows = self.engine.live.range(Table::Extents, &from, Some(&to), PAGE_ROWS)?;
            if rows.len() < PAGE_ROWS {
                let mut txn = self.txn();
                for (key, _) in rows {
                    txn.batch.delete(Table::Extents, key);
                }
                drop_xattrs(&mut txn, ino)?;
                txn.drop_row(ino);
                txn.batch.delete(Table::Orphans, inode_key(ino));
                txn.commit()?;
                return Ok(true);
            }
            let mut txn = self.txn();
            for (key, _) in rows {
                txn.batch.delete(Table::Extents, key);
            }
            txn.commit()?;
        }
        Ok(false)
    }
}

/// Removes an empty directory's rows; its name is the caller's.
pub(super) fn drop_dir(txn: &mut Txn<'_>, parent: u64, ino: u64) -> FsResult<()> {
    let links = &mut txn.dir(parent)?.nlink;
    *links = links.saturating_sub(1);
    drop_xattrs(txn, ino)?;
    txn.batch.delete(Table::DirtyDirs, inode_key(ino));
    txn.batch.delete(Table::Trees, inode_key(ino));
    txn.drop_row(ino);
    Ok(())
}

/// Deletes all attributes of an inode. There are few: together they have at most 1 MiB.
fn drop_xattrs(txn: &mut Txn<'_>, ino: u64) -> FsResult<()> {
    if txn.peek(ino).is_ok_and(|row| !row.has_xattrs) {
        return Ok(());
    }
    for (key, _) in txn.xattr_rows(ino)? {
        txn.batch.delete(Table::Xattrs, key);
    }
    Ok(())
}
