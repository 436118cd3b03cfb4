//! fallocate(2), all modes. Space is never set aside for a file: what it will take depends on what will be written.

use super::error::FsResult;
use super::extents::{ExtentEdit, rows_around};
use super::node::{Exclusive, NodeData, NodeRef};
use super::txn::PAGE_ROWS;
use super::types::falloc;
use super::{Core, SIZE_MAX};
use rustix::io::Errno;

/// Ranges that are taken out or put in begin and end at multiples of this, as on other filesystems.
const SHIFT_UNIT: u64 = 4096;

/// A file with more extents behind the place than this can't be shifted: it is done in one step or not at all.
const SHIFT_ROWS: usize = 1 << 16;

impl Core {
    /// Does what fallocate(2) does with `mode` (see [`falloc`]).
    ///
    /// # Errors
    /// EINVAL for a bad range or mode, ENOSPC if the disk could not take that much, EFBIG, EOPNOTSUPP for a mode that
    /// is not known or a file too fragmented to shift.
    pub(super) fn fallocate(&self, ino: u64, off: u64, len: u64, mode: i32) -> FsResult<()> {
        self.writable()?;
        let end = off.checked_add(len).filter(|end| *end <= SIZE_MAX).ok_or(Errno::FBIG)?;
        if len == 0 {
            return Err(Errno::INVAL.into());
        }
        let node = self.node(ino)?;
        let keep_size = mode & falloc::KEEP_SIZE != 0;
        match mode & !falloc::KEEP_SIZE {
            0 => self.preallocate(&node, end, len, keep_size),
            falloc::PUNCH_HOLE if keep_size => self.make_hole(&node, off, end, None),
            falloc::ZERO_RANGE => self.make_hole(&node, off, end, (!keep_size).then_some(end)),
            falloc::COLLAPSE_RANGE if !keep_size => self.collapse(&node, off, len),
            falloc::INSERT_RANGE if !keep_size => self.insert(&node, off, len),
            falloc::PUNCH_HOLE | falloc::COLLAPSE_RANGE | falloc::INSERT_RANGE => Err(Errno::INVAL.into()),
            _ => Err(Errno::OPNOTSUPP.into()),
        }
    }

    fn preallocate(&self, node: &NodeRef, end: u64, len: u64, keep_size: bool) -> FsResult<()> {
        self.engine.admit(len)?;
        self.engine.settle(len);
        let exclusive = self.lock_exclusive(node)?;
        let mut data = exclusive.drained();
        let grow = !keep_size && end > data.size;
        let edit = ExtentEdit::of(node.ino, Vec::new());
        self.edit_file(node.ino, &mut data, edit, |txn| {
            if grow {
                txn.row(node.ino)?.size = end;
            }
            Ok(())
        })?;
        if grow {
            data.size = end;
        }
        Ok(())
    }

    /// Makes `off..end` a hole. With `grow_to` the file has at least that size afterwards.
    fn make_hole(&self, node: &NodeRef, off: u64, end: u64, grow_to: Option<u64>) -> FsResult<()> {
        let exclusive = self.lock_exclusive(node)?;
        let mut data = exclusive.drained();
        let dropped = data.dirty.remove(off, end);
        node.note_dirty(&data);
        self.unreserve(dropped);
        // Dirty data that ended at the file's end took the size with it; from here on the row has to say it.
        let size = data.size.max(grow_to.unwrap_or(0));
        let mut from = off;
        loop {
            let rows = rows_around(&self.engine.live, node.ino, from, end, PAGE_ROWS)?;
            let more = rows.len() == PAGE_ROWS;
            let reached = rows.last().map_or(end, |(at, row)| at + row.len());
            let mut edit = ExtentEdit::of(node.ino, rows);
            edit.cut(off, end);
            let covers_end = data.dirty.end() == size;
            self.edit_file(node.ino, &mut data, edit, |txn| {
                if !more && !covers_end {
                    txn.row(node.ino)?.size = size;
                }
                Ok(())
            })?;
            if !more {
                break;
            }
            from = reached;
        }
        data.size = size;
        Ok(())
    }

    fn collapse(&self, node: &NodeRef, off: u64, len: u64) -> FsResult<()> {
        if !off.is_multiple_of(SHIFT_UNIT) || !len.is_multiple_of(SHIFT_UNIT) {
            return Err(Errno::INVAL.into());
        }
        let exclusive = self.lock_exclusive(node)?;
        let mut data = self.all_published(node, &exclusive)?;
        if off + len >= data.size {
            return Err(Errno::INVAL.into());
        }
        let mut edit = self.load_shift(node.ino, off)?;
        edit.cut(off, off + len);
        let mut tail = edit.split_off(off + len);
        tail.shift(-(len as i64));
        edit.join(tail);
        let size = data.size - len;
        self.edit_file(node.ino, &mut data, edit, |txn| {
            txn.row(node.ino)?.size = size;
            Ok(())
        })?;
        data.size = size;
        Ok(())
    }

    fn insert(&self, node: &NodeRef, off: u64, len: u64) -> FsResult<()> {
        if !off.is_multiple_of(SHIFT_UNIT) || !len.is_multiple_of(SHIFT_UNIT) {
            return Err(Errno::INVAL.into());
        }
        let exclusive = self.lock_exclusive(node)?;
        let mut data = self.all_published(node, &exclusive)?;
        if off >= data.size {
            return Err(Errno::INVAL.into());
        }
        let size = data.size.checked_add(len).filter(|size| *size <= SIZE_MAX).ok_or(Errno::FBIG)?;
        let mut edit = self.load_shift(node.ino, off)?;
        // A row that covers both sides of the place is split there.
        edit.split_at(off);
        let mut tail = edit.split_off(off);
        tail.shift(len as i64);
        edit.join(tail);
        self.edit_file(node.ino, &mut data, edit, |txn| {
            txn.row(node.ino)?.size = size;
            Ok(())
        })?;
        data.size = size;
        Ok(())
    }

    fn load_shift(&self, ino: u64, off: u64) -> FsResult<ExtentEdit> {
        let rows = rows_around(&self.engine.live, ino, off, u64::MAX - 1, SHIFT_ROWS + 1)?;
        if rows.len() > SHIFT_ROWS {
            return Err(Errno::OPNOTSUPP.into());
        }
        Ok(ExtentEdit::of(ino, rows))
    }

    /// Publishes all data of a file that is held exclusively, and returns its lock.
    pub(super) fn all_published<'a>(
        &self,
        node: &NodeRef,
        exclusive: &Exclusive<'a>,
    ) -> FsResult<std::sync::MutexGuard<'a, NodeData>> {
        loop {
            self.flush_and_wait(node)?;
            let data = exclusive.drained();
            // Writers are kept out: only data whose storing failed elsewhere can have come back.
            if data.dirty.is_empty() {
                return Ok(data);
            }
        }
    }
}
