//! rename(2) and renameat2(2).

use super::error::FsResult;
use super::link::{Unnamed, drop_dir};
use super::txn::Txn;
use super::types::RenameFlags;
use super::{Core, check_name};
use crate::format::tree::{DIR_DEPTH_MAX, FileType};
use crate::store::live::Table;
use crate::store::records::{DirentRow, ROOT_INO, dirent_key, links_key};
use rustix::io::Errno;

/// One end of a rename.
#[derive(Clone, Copy)]
struct Place<'a> {
    dir: u64,
    name: &'a [u8],
}

impl Core {
    /// Renames. A file that replaces another has its data published first, so that a crash never leaves the new name
    /// with neither the old nor the new content.
    pub(super) fn rename(
        &self,
        parent: u64,
        name: &[u8],
        newparent: u64,
        newname: &[u8],
        flags: RenameFlags,
    ) -> FsResult<()> {
        for name in [name, newname] {
            if name == b"." || name == b".." {
                return Err(Errno::BUSY.into());
            }
            check_name(name)?;
        }
        if flags.noreplace && flags.exchange {
            return Err(Errno::INVAL.into());
        }
        self.writable()?;
        self.load_dir(parent)?;
        self.load_dir(newparent)?;
        self.prepare_name(parent, name)?;
        self.prepare_name(newparent, newname)?;
        self.load_named_dir(newparent, newname)?;
        if !flags.exchange && !flags.noreplace {
            self.flush_before_replace(parent, name, newparent, newname)?;
        }
        let (from, to) = (Place { dir: parent, name }, Place { dir: newparent, name: newname });
        let mut txn = self.txn();
        txn.dir(parent)?;
        txn.dir(newparent)?;
        let source = txn.view.dirent(parent, name)?.ok_or(Errno::NOENT)?;
        let target = txn.view.dirent(newparent, newname)?;
        match target {
            Some(_) if flags.noreplace => return Err(Errno::EXIST.into()),
            None if flags.exchange => return Err(Errno::NOENT.into()),
            // Two names of one file: POSIX says that nothing happens.
            Some(target) if target.ino == source.ino => return Ok(()),
            _ => {}
        }
        if source.kind == FileType::Dir && parent != newparent {
            check_no_loop(&mut txn, source.ino, newparent)?;
        }
        if let (true, Some(target)) = (flags.exchange, target) {
            if target.kind == FileType::Dir && parent != newparent {
                check_no_loop(&mut txn, target.ino, parent)?;
            }
            move_inode(&mut txn, source, from, to)?;
            move_inode(&mut txn, target, to, from)?;
            txn.add_name(from.dir, from.name, target)?;
            txn.add_name(to.dir, to.name, source)?;
            return txn.commit();
        }
        let mut unnamed = Unnamed(None);
        if let Some(target) = target {
            match (source.kind == FileType::Dir, target.kind == FileType::Dir) {
                (true, false) => return Err(Errno::NOTDIR.into()),
                (false, true) => return Err(Errno::ISDIR.into()),
                (true, true) => {
                    if !txn.view.is_empty_dir(target.ino)? {
                        return Err(Errno::NOTEMPTY.into());
                    }
                    drop_dir(&mut txn, newparent, target.ino)?;
                }
                (false, false) => unnamed = self.drop_name(&mut txn, newparent, newname, target.ino)?,
            }
        }
        move_inode(&mut txn, source, from, to)?;
        txn.batch.delete(Table::Dirents, dirent_key(from.dir, from.name));
        txn.touch_dir(from.dir)?;
        txn.add_name(to.dir, to.name, source)?;
        txn.commit()?;
        self.reap(unnamed)
    }

    fn flush_before_replace(&self, parent: u64, name: &[u8], newparent: u64, newname: &[u8]) -> FsResult<()> {
        let source = self.read_meta(|meta| {
            let target = meta.dirent(newparent, newname)?;
            Ok(meta
                .dirent(parent, name)?
                .filter(|source| target.is_some_and(|target| target.ino != source.ino)))
        })?;
        match source
            .filter(|source| source.kind == FileType::File)
            .and_then(|source| self.find_node(source.ino))
        {
            Some(node) => self.flush_and_wait(&node),
            None => Ok(()),
        }
    }
}

/// Fails with EINVAL if `dir` is `ino` or below it.
fn check_no_loop(txn: &mut Txn<'_>, ino: u64, mut dir: u64) -> FsResult<()> {
    for _ in 0..DIR_DEPTH_MAX {
        if dir == ino {
            return Err(Errno::INVAL.into());
        }
        if dir == ROOT_INO {
            return Ok(());
        }
        dir = txn.peek(dir)?.parent;
    }
    // Deeper than a snapshot can hold (FORMAT TREE-5).
    Err(Errno::LOOP.into())
}

/// Follows a name's move in the inode: parent, back reference, change time, link counts of directories, marks.
fn move_inode(txn: &mut Txn<'_>, dirent: DirentRow, from: Place<'_>, to: Place<'_>) -> FsResult<()> {
    let ino = dirent.ino;
    let now = txn.now;
    txn.mark_holders(ino)?;
    let row = txn.row(ino)?;
    row.ctime = now;
    if dirent.kind == FileType::Dir {
        row.parent = to.dir;
        if from.dir != to.dir {
            let old = &mut txn.dir(from.dir)?.nlink;
            *old = old.saturating_sub(1);
            let new = &mut txn.dir(to.dir)?.nlink;
            *new = new.checked_add(1).ok_or(Errno::MLINK)?;
        }
    } else if row.nlink == 1 {
        row.parent = to.dir;
    } else {
        if row.parent == from.dir {
            row.parent = to.dir;
        }
        if let Some(key) = txn.link_row(ino, from.dir, from.name)? {
            txn.batch.delete(Table::Links, key);
        }
        txn.batch.put(Table::Links, links_key(ino, to.dir, to.name), Vec::new());
    }
    Ok(())
}
