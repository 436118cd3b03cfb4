//! Attributes: getattr, setattr.

use super::error::FsResult;
use super::node::NodeData;
use super::types::{Attr, Caller, Fh, SetAttr, SetTime};
use super::{Core, SIZE_MAX, acl};
use crate::format::tree::FileType;
use rustix::io::Errno;

const SUID: u32 = 0o4000;
const SGID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

/// Returns the mode after someone without privilege has changed the content, or the owner: no set-user-id, and no
/// set-group-id where it means that (with group execution).
pub(super) fn without_suid(mode: u32) -> u32 {
    let mode = mode & !SUID;
    if mode & GROUP_EXEC != 0 { mode & !SGID } else { mode }
}

/// Puts what is newer in memory over what a row says.
pub(super) fn overlay(attr: &mut Attr, data: &NodeData) {
    if data.loaded && attr.kind == FileType::File {
        attr.size = data.size;
        if let Some((mtime, ctime)) = data.times {
            attr.mtime = mtime;
            attr.ctime = attr.ctime.max(ctime);
        }
        // What is in memory will be allocated; a file that was just written must not look sparse.
        let pending = data.dirty.bytes() + data.inflight.iter().map(|entry| entry.charge()).sum::<u64>();
        attr.blocks512 =
            (attr.blocks512 + pending.div_ceil(512)).min(data.size.div_ceil(512).max(attr.blocks512));
    }
}

impl Core {
    /// Returns an inode's attributes.
    pub(super) fn getattr(&self, ino: u64) -> FsResult<Attr> {
        let Some(node) = self.find_node(ino) else {
            return self.read_meta(|meta| Ok(Attr::of(ino, &meta.inode(ino)?)));
        };
        let data = node.lock();
        let mut attr = self.read_meta(|meta| Ok(Attr::of(ino, &meta.inode(ino)?)))?;
        overlay(&mut attr, &data);
        drop(data);
        Ok(attr)
    }

    /// Changes attributes. Whether the caller may was decided before; what follows from a change is done here: a new
    /// owner clears set-user-id, a new size clears it too unless the caller sets the mode itself.
    pub(super) fn setattr(&self, ino: u64, set: SetAttr, _fh: Option<Fh>, caller: Caller) -> FsResult<Attr> {
        self.writable()?;
        self.prepare(ino)?;
        if let Some(size) = set.size {
            if size > SIZE_MAX {
                return Err(Errno::FBIG.into());
            }
            self.truncate(ino, size, caller.uid != 0 && set.mode.is_none())?;
        }
        let rest = SetAttr { size: None, ..set };
        if rest == SetAttr::default() {
            return self.getattr(ino);
        }
        if set.size.is_none() {
            self.engine.admit_meta()?;
        }
        let node = self.find_node(ino);
        let mut data = node.as_ref().map(|node| node.lock());
        let mut txn = self.txn();
        let now = txn.now;
        let time = |t: SetTime| match t {
            SetTime::Now => now,
            SetTime::At(at) => at,
        };
        let row = txn.row(ino)?;
        if set.uid.is_some() || set.gid.is_some() {
            row.uid = set.uid.unwrap_or(row.uid);
            row.gid = set.gid.unwrap_or(row.gid);
            // Of anything but a directory, as chown(2) does it elsewhere, also of a device.
            if row.kind != FileType::Dir && set.mode.is_none() {
                row.mode = without_suid(row.mode);
            }
        }
        if let Some(mode) = set.mode {
            row.mode = mode & 0o7777;
        }
        row.atime = set.atime.map_or(row.atime, time);
        let mut ctime = now;
        if let Some(data) = data.as_mut().filter(|data| data.loaded) {
            // The times of writes that are not published become explicit now, lest their publishing undo this call.
            if let Some((written, _)) = data.times.take() {
                row.mtime = written;
            }
        }
        row.mtime = set.mtime.map_or(row.mtime, time);
        if let Some(set_ctime) = set.ctime {
            ctime = set_ctime;
        }
        row.ctime = ctime;
        let (mode, has_xattrs) = (row.mode, row.has_xattrs);
        if set.mode.is_some() && has_xattrs {
            acl::chmod(&mut txn, ino, mode)?;
        }
        txn.mark_holders(ino)?;
        let mut attr = Attr::of(ino, txn.peek(ino)?);
        txn.commit()?;
        if let Some(data) = &data {
            overlay(&mut attr, data);
        }
        drop(data);
        Ok(attr)
    }
}
