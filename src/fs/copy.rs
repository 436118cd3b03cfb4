//! copy_file_range(2): shares extents, copies no data.

use super::error::FsResult;
use super::extents::{ExtentEdit, rows_around};
use super::{Core, SIZE_MAX};
use crate::store::records::{ExtentRow, TINY_FILE_MAX};
use rustix::io::Errno;

/// Extents copied in one step; a longer copy is done in several.
const COPY_ROWS: usize = 512;

/// Most bytes copied by one call; callers go on after a short copy.
const COPY_BYTES: u64 = 1 << 30;

impl Core {
    /// Copies up to `len` bytes from one place to another, in the same file or not. Returns how many, fewer at the end
    /// of the source or for a long copy.
    ///
    /// # Errors
    /// EINVAL if the ranges overlap in one file, EFBIG, ENOSPC, EIO.
    pub(super) fn copy_file_range(
        &self,
        from: u64,
        from_off: u64,
        to: u64,
        to_off: u64,
        len: u64,
    ) -> FsResult<usize> {
        self.writable_meta()?;
        let (source, target) = (self.node(from)?, self.node(to)?);
        // Two files are held in the order of their numbers, see the locks in the module's text.
        let (first, second) = if from <= to { (&source, &target) } else { (&target, &source) };
        let first_held = self.lock_exclusive(first)?;
        let second_held = if from == to { None } else { Some(self.lock_exclusive(second)?) };
        let first_data = self.all_published(first, &first_held)?;
        let size = if from <= to { first_data.size } else { 0 };
        drop(first_data);
        let size = match &second_held {
            Some(held) => {
                let data = self.all_published(second, held)?;
                if from <= to { size } else { data.size }
            }
            None => size,
        };
        let len = len.min(size.saturating_sub(from_off)).min(COPY_BYTES);
        if len == 0 {
            return Ok(0);
        }
        let end = to_off.checked_add(len).filter(|end| *end <= SIZE_MAX).ok_or(Errno::FBIG)?;
        if from == to && from_off < end && to_off < from_off + len {
            return Err(Errno::INVAL.into());
        }
        let mut done = 0;
        while done < len {
            let rows = rows_around(&self.engine.live, from, from_off + done, from_off + len, COPY_ROWS)?;
            let reached = match rows.last() {
                Some((at, row)) if rows.len() == COPY_ROWS => (at + row.len()).min(from_off + len),
                _ => from_off + len,
            };
            let step = (from_off + done, reached);
            // Nothing new can come into flight: no dirty data is left, and writers are kept out.
            let mut data = target.lock();
            let mut edit =
                ExtentEdit::load(&self.engine.live, to, to_off + done, to_off + (reached - from_off))?;
            edit.cut(to_off + done, to_off + (reached - from_off));
            let mut inline = false;
            for (at, row) in rows {
                let (start, stop) = (at.max(step.0), (at + row.len()).min(step.1));
                if start < stop {
                    let part = row.slice(start - at, stop - start);
                    inline |= matches!(part, ExtentRow::Inline(_));
                    edit.put(to_off + (start - from_off), part);
                }
            }
            let size = data.size.max(to_off + (reached - from_off));
            self.edit_file(to, &mut data, edit, |txn| {
                txn.row(to)?.size = size;
                if inline && size > TINY_FILE_MAX {
                    self.note_inline(txn, to);
                }
                Ok(())
            })?;
            data.size = size;
            done = reached - from_off;
        }
        Ok(len as usize)
    }
}
