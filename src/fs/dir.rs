//! Names in directories: lookup, creation, listing.

use std::sync::{Mutex, PoisonError};

use super::error::FsResult;
use super::handles::Handle;
use super::types::{Attr, Caller, DirEnt, Fh};
use super::{Core, acl, check_name};
use crate::format::tree::{FileType, SYMLINK_LEN_MAX};
use crate::store::live::Table;
use crate::store::records::{DirentRow, InodeRow, ROOT_INO, dirent_key, parse_dirent_key, rows_of};
use rustix::io::Errno;

/// Entries that a listing fetches at a time.
const LIST_ROWS: usize = 256;

const SGID: u32 = 0o2000;

/// Cookies of the entries that are not in the database; those of the others follow.
const COOKIE_DOT: u64 = 1;
const COOKIE_DOTDOT: u64 = 2;

/// What a new inode is, besides where.
pub(super) struct NewInode<'a> {
    /// Type.
    pub(super) kind: FileType,
    /// Permission bits as asked for.
    pub(super) mode: u32,
    /// Bits to take away, unless the directory has a default ACL.
    pub(super) umask: u32,
    /// Numbers of a device.
    pub(super) rdev: (u32, u32),
    /// Target of a symbolic link.
    pub(super) target: &'a [u8],
}

/// An open directory's place: names that were given out, so that any cookie finds its way back.
#[derive(Debug, Default)]
pub(super) struct Listing {
    names: Vec<u8>,
    ends: Vec<usize>,
}

impl Listing {
    /// Returns the name behind the `index`-th entry.
    fn name(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.names[start..end])
    }

    /// Returns the last name given out.
    pub(super) fn last(&self) -> Option<&[u8]> {
        self.name(self.ends.len().checked_sub(1)?)
    }

    /// Returns the cookie of the next entry.
    pub(super) fn next_cookie(&self) -> u64 {
        COOKIE_DOTDOT + self.ends.len() as u64 + 1
    }

    /// Goes back to just after the entry with this cookie. EINVAL for one that was never given out.
    pub(super) fn resume(&mut self, cookie: u64) -> FsResult<()> {
        let given = usize::try_from(cookie.saturating_sub(COOKIE_DOTDOT)).map_err(|_| Errno::INVAL)?;
        if given > self.ends.len() {
            return Err(Errno::INVAL.into());
        }
        self.truncate(given);
        Ok(())
    }

    /// Notes that a name was given out.
    pub(super) fn push(&mut self, name: &[u8]) {
        self.names.extend_from_slice(name);
        self.ends.push(self.names.len());
    }

    fn truncate(&mut self, entries: usize) {
        self.ends.truncate(entries);
        self.names.truncate(self.ends.last().copied().unwrap_or(0));
    }
}

/// A name of a listing with what it stands for, and its attributes where they were asked for.
type Listed = (Vec<u8>, DirentRow, Option<Attr>);

impl Core {
    /// Returns what a name stands for.
    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> FsResult<Attr> {
        check_name(name)?;
        self.load_dir(parent)?;
        let (ino, mut attr) = self.read_meta(|meta| {
            let ino = if name == b"." {
                parent
            } else if name == b".." {
                meta.inode(parent)?.parent
            } else {
                match meta.dirent(parent, name)? {
                    Some(dirent) => {
                        return Ok((dirent.ino, Attr::of(dirent.ino, &meta.named_inode(dirent.ino)?)));
                    }
                    None => match meta.inode(parent)?.kind {
                        FileType::Dir => return Err(Errno::NOENT.into()),
                        _ => return Err(Errno::NOTDIR.into()),
                    },
                }
            };
            Ok((ino, Attr::of(ino, &meta.inode(ino)?)))
        })?;
        if attr.kind == FileType::File && self.nodes.contains(ino) {
            attr = self.getattr(ino)?;
        }
        Ok(attr)
    }

    /// Makes a new inode and its name.
    ///
    /// # Errors
    /// EEXIST if the name is taken; ENOENT or ENOTDIR for the directory; ENOSPC.
    pub(super) fn make(
        &self,
        parent: u64,
        name: &[u8],
        new: &NewInode<'_>,
        caller: Caller,
    ) -> FsResult<Attr> {
        check_name(name)?;
        self.writable_meta()?;
        if name == b"." || name == b".." {
            return Err(Errno::EXIST.into());
        }
        self.load_dir(parent)?;
        let mut txn = self.txn();
        let dir = txn.dir(parent)?;
        let (dir_mode, dir_gid, dir_xattrs) = (dir.mode, dir.gid, dir.has_xattrs);
        if txn.view.dirent(parent, name)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        let mut mode = new.mode & 0o7777;
        let mut gid = caller.gid;
        if dir_mode & SGID != 0 {
            gid = dir_gid;
            if new.kind == FileType::Dir {
                mode |= SGID;
            }
        }
        let ino = txn.new_ino();
        let mut row = InodeRow::new(new.kind, mode, caller.uid, gid, parent, txn.now);
        row.rdev = new.rdev;
        row.target = new.target.to_vec();
        row.size = new.target.len() as u64;
        if new.kind == FileType::Symlink {
            row.mode = 0o777;
        } else {
            let default = if dir_xattrs { acl::default_of(&txn, parent)? } else { None };
            match default {
                Some(default) => acl::inherit(&mut txn, ino, &mut row, &default),
                None => row.mode &= !(new.umask & 0o777),
            }
        }
        let attr = Attr::of(ino, &row);
        txn.add_row(ino, row);
        txn.add_name(parent, name, DirentRow { ino, kind: new.kind })?;
        if new.kind == FileType::Dir {
            let links = &mut txn.dir(parent)?.nlink;
            *links = links.checked_add(1).ok_or(Errno::MLINK)?;
            // A directory has a tree object even if nothing is ever put into it.
            txn.mark(ino);
        }
        txn.commit()?;
        Ok(attr)
    }

    /// Makes a symbolic link.
    pub(super) fn symlink(&self, parent: u64, name: &[u8], target: &[u8], caller: Caller) -> FsResult<Attr> {
        if target.is_empty() {
            return Err(Errno::NOENT.into());
        }
        if target.len() > SYMLINK_LEN_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let new = NewInode { kind: FileType::Symlink, mode: 0o777, umask: 0, rdev: (0, 0), target };
        self.make(parent, name, &new, caller)
    }

    /// Returns what a symbolic link says.
    pub(super) fn readlink(&self, ino: u64) -> FsResult<Vec<u8>> {
        self.read_meta(|meta| {
            let row = meta.inode(ino)?;
            if row.kind == FileType::Symlink { Ok(row.target) } else { Err(Errno::INVAL.into()) }
        })
    }

    /// Opens a directory for listing.
    pub(super) fn opendir(&self, ino: u64) -> FsResult<Fh> {
        self.load_dir(ino)?;
        let kind = self.read_meta(|meta| Ok(meta.inode(ino)?.kind))?;
        if kind != FileType::Dir {
            return Err(Errno::NOTDIR.into());
        }
        Ok(self.handles.add(Handle::Dir { ino, listing: Mutex::default() }))
    }

    /// Lists a directory from after the entry that `cookie` came with (0: from the start) until `each` returns false.
    /// An entry that is there all the time is given exactly once; one that comes or goes meanwhile may be or not.
    pub(super) fn readdir(
        &self,
        fh: Fh,
        cookie: u64,
        each: &mut dyn FnMut(&DirEnt<'_>) -> bool,
        plus: bool,
    ) -> FsResult<()> {
        let handle = self.handles.get(fh)?;
        let Handle::Dir { ino, listing } = &*handle else { return Err(Errno::NOTDIR.into()) };
        let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        if !list_dots(*ino, self.parent_of(*ino)?, cookie, each) {
            return Ok(());
        }
        listing.resume(cookie)?;
        let (mut from, to) = (rows_of(*ino).0.to_vec(), rows_of(*ino).1);
        if let Some(name) = listing.last() {
            from = after(*ino, name);
        }
        loop {
            let page = self.list_page(&from, &to, plus)?;
            for (name, dirent, attr) in &page {
                let attr = match attr {
                    Some(attr) if attr.kind == FileType::File && self.nodes.contains(dirent.ino) => {
                        Some(self.getattr(dirent.ino).unwrap_or(*attr))
                    }
                    other => *other,
                };
                let cookie = listing.next_cookie();
                if !each(&DirEnt { ino: dirent.ino, kind: dirent.kind, name, cookie, attr }) {
                    return Ok(());
                }
                listing.push(name);
            }
            match page.last() {
                Some((name, ..)) if page.len() == LIST_ROWS => from = after(*ino, name),
                _ => return Ok(()),
            }
        }
    }

    fn list_page(&self, from: &[u8], to: &[u8], plus: bool) -> FsResult<Vec<Listed>> {
        self.read_meta(|meta| {
            let rows = self.engine.live.range(Table::Dirents, from, Some(to), LIST_ROWS)?;
            let mut page = Vec::with_capacity(rows.len());
            for (key, value) in rows {
                let dirent = DirentRow::decode(&value)?;
                let attr = match plus {
                    true => Some(Attr::of(dirent.ino, &meta.named_inode(dirent.ino)?)),
                    false => None,
                };
                page.push((parse_dirent_key(&key)?.1.to_vec(), dirent, attr));
            }
            Ok(page)
        })
    }

    /// Returns a directory's parent; a removed directory and the root are their own.
    fn parent_of(&self, ino: u64) -> FsResult<u64> {
        if ino == ROOT_INO {
            return Ok(ROOT_INO);
        }
        match self.read_meta(|meta| Ok(meta.inode(ino)?.parent)) {
            Err(error) if error.errno == Errno::NOENT => Ok(ino),
            other => other,
        }
    }
}

/// Lists `.` and `..` as far as `cookie` has not passed them. Returns false when `each` did.
pub(super) fn list_dots(
    ino: u64,
    parent: u64,
    cookie: u64,
    each: &mut dyn FnMut(&DirEnt<'_>) -> bool,
) -> bool {
    for (at, name, ino) in [(COOKIE_DOT, &b"."[..], ino), (COOKIE_DOTDOT, b"..", parent)] {
        let entry = DirEnt { ino, kind: FileType::Dir, name, cookie: at, attr: None };
        if cookie < at && !each(&entry) {
            return false;
        }
    }
    true
}

/// Returns the least key after a name's.
fn after(ino: u64, name: &[u8]) -> Vec<u8> {
    let mut key = dirent_key(ino, name);
    key.push(0);
    key
}
