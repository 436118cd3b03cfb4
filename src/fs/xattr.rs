//! Extended attributes.

use super::error::FsResult;
use super::txn::{PAGE_ROWS, Txn};
use super::types::xattr_flags;
use super::{Core, acl};
use crate::format::tree::{XATTR_NAME_LEN_MAX, XATTR_VALUE_LEN_MAX, XATTRS_LEN_MAX};
use crate::store::live::{Table, Value};
use crate::store::records::{parse_xattr_key, rows_of, xattr_key};
use rustix::io::Errno;

/// Most bytes of all names and values of one inode. A little under what a tree object takes (FORMAT TREE-6).
const TOTAL_MAX: usize = XATTRS_LEN_MAX - (XATTRS_LEN_MAX >> 8);
/// Most bytes of all names, each with a NUL: with more, listxattr(2) fails for everybody (XATTR_LIST_MAX).
const LIST_MAX: usize = 65_536;

impl Txn<'_> {
    /// Returns all attribute rows of an inode.
    pub(super) fn xattr_rows(&self, ino: u64) -> FsResult<Vec<(Vec<u8>, Value)>> {
        let (mut from, to) = (rows_of(ino).0.to_vec(), rows_of(ino).1);
        let mut all = Vec::new();
        loop {
            let rows = self.view.live.range(Table::Xattrs, &from, Some(&to), PAGE_ROWS)?;
            let full = rows.len() == PAGE_ROWS;
            if let Some((key, _)) = rows.last() {
                from = key.clone();
                from.push(0);
            }
            all.extend(rows);
            if !full {
                return Ok(all);
            }
        }
    }

    /// Returns one attribute's value.
    pub(super) fn xattr(&self, ino: u64, name: &[u8]) -> FsResult<Option<Value>> {
        Ok(self.view.live.get(Table::Xattrs, &xattr_key(ino, name))?)
    }
}

impl Core {
    /// Returns an attribute's value. ENODATA if there is none.
    pub(super) fn getxattr(&self, ino: u64, name: &[u8]) -> FsResult<Vec<u8>> {
        check_xattr_name(name)?;
        self.read_meta(|meta| {
            if !meta.inode(ino)?.has_xattrs {
                return Err(Errno::NODATA.into());
            }
            match self.engine.live.get(Table::Xattrs, &xattr_key(ino, name))? {
                Some(value) => Ok(value.to_vec()),
                None => Err(Errno::NODATA.into()),
            }
        })
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// EEXIST and ENODATA by `flags` (see [`xattr_flags`]), ERANGE for the name, E2BIG for the value, ENOSPC for all
    /// of an inode together or a list of names above 64 KiB, EOPNOTSUPP for a namespace that is not kept, EINVAL for what is no ACL.
    pub(super) fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> FsResult<()> {
        check_xattr_name(name)?;
        if value.len() > XATTR_VALUE_LEN_MAX {
            return Err(Errno::TOOBIG.into());
        }
        self.writable_meta()?;
        self.prepare(ino)?;
        let mut txn = self.txn();
        let now = txn.now;
        txn.row(ino)?.ctime = now;
        let rows = if txn.peek(ino)?.has_xattrs { txn.xattr_rows(ino)? } else { Vec::new() };
        let key = xattr_key(ino, name);
        let exists = rows.iter().any(|(other, _)| *other == key);
        if exists && flags & xattr_flags::CREATE != 0 {
            return Err(Errno::EXIST.into());
        }
        if !exists && flags & xattr_flags::REPLACE != 0 {
            return Err(Errno::NODATA.into());
        }
        let others: usize = rows
            .iter()
            .filter(|(other, _)| *other != key)
            .map(|(key, value)| key.len() - 8 + value.len())
            .sum();
        if others + name.len() + value.len() > TOTAL_MAX {
            return Err(Errno::NOSPC.into());
        }
        let names: usize = rows.iter().map(|(key, _)| key.len() - 8 + 1).sum();
        if !exists && names + name.len() + 1 > LIST_MAX {
            return Err(Errno::NOSPC.into());
        }
        if acl::set(&mut txn, ino, name, value)? {
            txn.batch.put(Table::Xattrs, key, value);
            txn.row(ino)?.has_xattrs = true;
        } else {
            txn.batch.delete(Table::Xattrs, key);
        }
        txn.mark_holders(ino)?;
        txn.commit()
    }

    /// Returns the names of all attributes, each ended by a NUL.
    pub(super) fn listxattr(&self, ino: u64) -> FsResult<Vec<u8>> {
        self.read_meta(|meta| {
            if !meta.inode(ino)?.has_xattrs {
                return Ok(Vec::new());
            }
            let (mut from, to) = (rows_of(ino).0.to_vec(), rows_of(ino).1);
            let mut names = Vec::new();
            loop {
                let rows = self.engine.live.range(Table::Xattrs, &from, Some(&to), PAGE_ROWS)?;
                for (key, _) in &rows {
                    names.extend_from_slice(parse_xattr_key(key)?.1);
                    names.push(0);
                }
                match rows.last() {
                    Some((key, _)) if rows.len() == PAGE_ROWS => {
                        from = key.clone();
                        from.push(0);
                    }
                    _ => return Ok(names),
                }
            }
        })
    }

    /// Removes an attribute. ENODATA if there is none.
    pub(super) fn removexattr(&self, ino: u64, name: &[u8]) -> FsResult<()> {
        check_xattr_name(name)?;
        self.writable()?;
        self.prepare(ino)?;
        let mut txn = self.txn();
        let now = txn.now;
        txn.row(ino)?.ctime = now;
        if txn.xattr(ino, name)?.is_none() {
            return Err(Errno::NODATA.into());
        }
        let key = xattr_key(ino, name);
        let others = txn.xattr_rows(ino)?.iter().any(|(other, _)| *other != key);
        txn.row(ino)?.has_xattrs = others;
        txn.batch.delete(Table::Xattrs, key);
        txn.mark_holders(ino)?;
        txn.commit()
    }
}

/// Checks an attribute's name: its length, and that it is in a namespace whose meaning the kernel looks after.
fn check_xattr_name(name: &[u8]) -> FsResult<()> {
    if name.is_empty() || name.len() > XATTR_NAME_LEN_MAX || name.contains(&0) {
        return Err(Errno::RANGE.into());
    }
    let known = [&b"user."[..], b"trusted.", b"security."]
        .iter()
        .any(|space| name.starts_with(space) && name.len() > space.len());
    if known || acl::is_acl(name) { Ok(()) } else { Err(Errno::OPNOTSUPP.into()) }
}
