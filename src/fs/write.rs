//! write(2).

use std::sync::atomic::Ordering;

use super::error::FsResult;
use super::types::Fh;
use super::{Core, SIZE_MAX, attr};
use rustix::io::Errno;

impl Core {
    /// Writes all of `data` at `off`. It is in memory when this returns; see the module's text for how it goes on.
    /// With `kill_suid` the file loses its set-user-id and set-group-id bits.
    ///
    /// # Errors
    /// ENOSPC if the disk under the vault could not take it; EFBIG; EIO once writing has failed for good.
    pub(super) fn write(&self, ino: u64, fh: Fh, off: u64, data: &[u8], kill_suid: bool) -> FsResult<usize> {
        self.writable()?;
        let handle = self.handles.get(fh)?;
        let node = handle.node(ino)?;
        let len = data.len() as u64;
        let end = off.checked_add(len).filter(|end| *end <= SIZE_MAX).ok_or(Errno::FBIG)?;
        if len == 0 {
            return Ok(0);
        }
        self.reserve(len)?;
        let mut state = match self.lock_shared(node) {
            Ok(state) => state,
            Err(error) => {
                self.unreserve(len);
                return Err(error);
            }
        };
        if kill_suid && let Err(error) = self.kill_suid(ino) {
            drop(state);
            self.unreserve(len);
            return Err(error);
        }
        if state.dirty.is_empty() {
            state.dirty_since = self.monotonic();
        }
        let grown = state.dirty.insert(off, data);
        state.unscanned += len;
        state.size = state.size.max(end);
        let now = self.now();
        state.times = Some((now, now));
        let jobs = self.cut_stream(node, &mut state);
        node.note_dirty(&state);
        drop(state);
        self.unreserve(len - grown);
        self.counters.written.fetch_add(len, Ordering::Relaxed);
        self.submit(node, jobs);
        Ok(data.len())
    }

    /// Clears a file's set-user-id and set-group-id bits, if it has any.
    pub(super) fn kill_suid(&self, ino: u64) -> FsResult<()> {
        let mode = self.read_meta(|meta| Ok(meta.inode(ino)?.mode))?;
        if attr::without_suid(mode) == mode {
            return Ok(());
        }
        let mut txn = self.txn();
        let now = txn.now;
        let row = txn.row(ino)?;
        row.mode = attr::without_suid(row.mode);
        row.ctime = now;
        txn.mark_holders(ino)?;
        txn.commit()
    }
}
