//! Changes of size.

use super::error::FsResult;
use super::extents::{ExtentEdit, rows_around};
use super::node::NodeData;
use super::{Core, attr};
use crate::store::live::Table;
use crate::store::records::{ExtentRow, extent_key, parse_extent_key};

/// A file with at most this many extents behind its new end is cut in one step. Larger ones are cut from the end in
/// several, each a proper file: the crash in between leaves a file that is cut less.
const CUT_ROWS: usize = 1 << 16;

impl Core {
    /// Sets a file's size; what is added is a hole. With `kill_suid` it loses its set-user-id and set-group-id bits.
    pub(super) fn truncate(&self, ino: u64, size: u64, kill_suid: bool) -> FsResult<()> {
        let node = self.node(ino)?;
        let exclusive = self.lock_exclusive(&node)?;
        let mut data = exclusive.drained();
        if size > data.size {
            self.engine.admit_meta()?;
        }
        let dropped = data.dirty.remove(size, u64::MAX);
        node.note_dirty(&data);
        self.unreserve(dropped);
        let result = self.set_size(ino, &mut data, size, kill_suid);
        if result.is_ok() {
            data.size = size;
            data.stream_end = data.stream_end.min(size);
        }
        result
    }

    fn set_size(&self, ino: u64, data: &mut NodeData, size: u64, kill_suid: bool) -> FsResult<()> {
        let live = &self.engine.live;
        if size < data.size {
            while rows_around(live, ino, size, u64::MAX - 1, CUT_ROWS + 2)?.len() > CUT_ROWS {
                self.cut_end(ino, data)?;
            }
        }
        let mut edit = ExtentEdit::of(ino, rows_around(live, ino, size, u64::MAX - 1, CUT_ROWS + 2)?);
        edit.cut(size, u64::MAX);
        // Data up to the new end that is still in memory brings the size along when it is published, and a crash
        // before that does not leave zeros in its place.
        let pending = size > 0 && data.dirty.end() == size;
        self.edit_file(ino, data, edit, |txn| {
            let row = txn.row(ino)?;
            row.size = if pending { row.size.min(size) } else { size };
            if kill_suid {
                row.mode = attr::without_suid(row.mode);
            }
            Ok(())
        })
    }

    /// Cuts many extents off a file's end.
    fn cut_end(&self, ino: u64, data: &mut NodeData) -> FsResult<()> {
        let (mut rows, mut end) = (Vec::new(), u64::MAX);
        while rows.len() < CUT_ROWS
            && let Some((key, value)) =
                self.engine.live.last_before(Table::Extents, &extent_key(ino, 0), &extent_key(ino, end))?
        {
            end = parse_extent_key(&key)?.1;
            rows.push((end, ExtentRow::decode(&value)?));
        }
        let mut edit = ExtentEdit::of(ino, rows);
        edit.cut(end, u64::MAX);
        self.edit_file(ino, data, edit, |txn| {
            let row = txn.row(ino)?;
            row.size = row.size.min(end);
            Ok(())
        })
    }
}
