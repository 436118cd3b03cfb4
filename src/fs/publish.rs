//! What happens when in-flight data arrives: its extents, the file's size and times, in one batch.

use super::Core;
use super::error::{FsError, FsResult};
use super::extents::ExtentEdit;
use super::node::{FlightState, InFlight, Node, NodeData, NodeRef};
use super::txn::Txn;
use crate::format::ids::ChunkId;
use crate::store::error::StoreError;
use crate::store::live::Table;
use crate::store::records::{ExtentRow, TINY_FILE_MAX};
use rustix::io::Errno;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Entries published in one batch.
const GROUP_MAX: usize = 64;

/// Entries with a wider gap between them go into batches of their own, since all rows between are loaded.
const GROUP_GAP_MAX: u64 = 1 << 20;

impl Core {
    /// Takes a worker's result for one in-flight entry.
    pub(super) fn complete(&self, node: &NodeRef, seq: u64, result: Result<ChunkId, StoreError>) {
        let mut data = node.lock();
        let Some(entry) = data.inflight.iter_mut().find(|entry| entry.seq == seq) else {
            // Taken back after another failure, or the file is gone.
            return;
        };
        match result {
            Ok(id) => {
                entry.state = FlightState::Chunk(id);
                self.publish_ready(node, &mut data);
            }
            Err(error) => self.fail(node, &mut data, error.into()),
        }
    }

    /// Publishes all entries at the front that have arrived.
    pub(super) fn publish_ready(&self, node: &Node, data: &mut NodeData) {
        loop {
            let ready = ready_group(data);
            if ready == 0 {
                break;
            }
            match self.publish_group(node.ino, data, ready) {
                Ok(()) => {
                    let charge: u64 = data.inflight.drain(..ready).map(|entry| entry.charge()).sum();
                    self.unreserve(charge);
                    if !data.is_dirty() {
                        data.last_error = None;
                    }
                    node.wake();
                }
                Err(error) => {
                    self.fail(node, data, error);
                    break;
                }
            }
        }
    }

    fn publish_group(&self, ino: u64, data: &mut NodeData, count: usize) -> FsResult<()> {
        let group = || data.inflight.iter().take(count);
        let (Some(first), Some(last)) = (group().next(), group().next_back()) else { return Ok(()) };
        let end = last.end();
        let mut edit = ExtentEdit::load(&self.engine.live, ino, first.off, end)?;
        for entry in group() {
            match entry.state {
                FlightState::Chunk(chunk) => {
                    edit.put(
                        entry.off,
                        ExtentRow::Chunk { len: entry.data.len() as u64, chunk, chunk_offset: 0 },
                    );
                }
                FlightState::Inline => edit.put(entry.off, ExtentRow::Inline(entry.data.to_vec())),
                FlightState::Pending => {}
            }
        }
        let changed = group().any(|entry| !entry.charged.is_empty());
        let inline = group().any(|entry| entry.state == FlightState::Inline);
        let grown = edit.inline_growth();
        let mut txn = self.txn();
        let delta = edit.finish(&mut txn.batch);
        let row = txn.row(ino)?;
        row.size = row.size.max(end);
        row.blocks = row.blocks.saturating_add_signed(delta);
        if let Some((mtime, ctime)) = data.times {
            row.mtime = mtime;
            row.ctime = row.ctime.max(ctime);
        }
        let large = row.size > TINY_FILE_MAX;
        if changed || data.times.is_some() {
            txn.mark_holders(ino)?;
        }
        if inline && large {
            self.note_inline(&mut txn, ino);
        }
        txn.commit()?;
        if inline && large {
            self.inline_growth.fetch_add(grown, Ordering::Relaxed);
        }
        data.times = None;
        Ok(())
    }

    /// Takes all in-flight data of a file back into its dirty map after a failure.
    fn fail(&self, node: &Node, data: &mut NodeData, error: FsError) {
        tracing::error!(ino = node.ino, %error, "file data could not be stored; it stays in memory");
        self.counters.failed_chunks.fetch_add(1, Ordering::Relaxed);
        let dropped = data.take_back();
        data.failures += 1;
        data.stalled = true;
        data.last_error = Some(error.clone());
        node.note_dirty(data);
        self.unreserve(dropped);
        self.budget.failed(&error);
        node.wake();
    }

    /// Writes times that no publishing took along: of writes whose data was cut off again.
    pub(super) fn publish_times(&self, node: &Node, data: &mut NodeData) -> FsResult<()> {
        let Some((mtime, ctime)) = data.times else { return Ok(()) };
        if data.is_dirty() || data.dead {
            return Ok(());
        }
        let mut txn = self.txn();
        let row = txn.row(node.ino)?;
        row.mtime = mtime;
        row.ctime = row.ctime.max(ctime);
        txn.mark_holders(node.ino)?;
        txn.commit()?;
        data.times = None;
        Ok(())
    }

    /// Changes a file's extents, and its row, by someone who holds the file exclusively. Times become now.
    pub(super) fn edit_file(
        &self,
        ino: u64,
        data: &mut NodeData,
        edit: ExtentEdit,
        change: impl FnOnce(&mut Txn<'_>) -> FsResult<()>,
    ) -> FsResult<()> {
        let mut txn = self.txn();
        let delta = edit.finish(&mut txn.batch);
        let now = txn.now;
        let row = txn.row(ino)?;
        row.blocks = row.blocks.saturating_add_signed(delta);
        (row.mtime, row.ctime) = (now, now);
        change(&mut txn)?;
        txn.mark_holders(ino)?;
        txn.commit()?;
        data.times = None;
        Ok(())
    }

    /// Drops all data of a file that is gone.
    pub(super) fn drop_data(&self, node: &Node, data: &mut NodeData) {
        let in_flight: u64 = data.inflight.drain(..).map(|entry| entry.charge()).sum();
        let dirty = data.dirty.remove(0, u64::MAX);
        data.times = None;
        node.note_dirty(data);
        self.unreserve(in_flight + dirty);
        node.wake();
    }

    /// Remembers that a file has inline rows that are to become chunks, also across a crash.
    pub(super) fn note_inline(&self, txn: &mut Txn<'_>, ino: u64) {
        let mut pending = self.inline_pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.insert(ino) {
            txn.batch.put(Table::Settings, super::inline::setting(ino), Vec::new());
        }
    }
}

/// Returns how many entries at the front can be published in one batch.
fn ready_group(data: &NodeData) -> usize {
    let mut count = 0;
    let mut before: Option<&InFlight> = None;
    for entry in data.inflight.iter().take(GROUP_MAX) {
        let follows = before
            .is_none_or(|before| before.end() <= entry.off && entry.off - before.end() <= GROUP_GAP_MAX);
        if entry.state == FlightState::Pending || !follows {
            break;
        }
        before = Some(entry);
        count += 1;
    }
    count
}

/// The error of a wait whose cause is not known any more.
pub(super) fn unknown_failure() -> FsError {
    Errno::IO.into()
}
