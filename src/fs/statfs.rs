//! statfs(2), and counters.

use std::sync::atomic::Ordering;

use super::Core;
use super::error::FsResult;
use super::types::{FsStats, StatFs};
use crate::format::tree::NAME_LEN_MAX;

/// Unit of the figures, in bytes.
const BLOCK: u64 = 4096;

/// The working tree has no fixed number of inodes; programs that look want to see plenty free.
const FILES_FREE: u64 = 1 << 32;

impl Core {
    /// Reports space. Backup jobs look at it: what is available is what can be written even if nothing of it is
    /// compressed or known already.
    pub(super) fn statfs(&self) -> FsResult<StatFs> {
        let space = self.engine.space()?;
        let used = self.read_next_ino();
        Ok(StatFs {
            block_size: BLOCK as u32,
            blocks: space.total / BLOCK,
            free: space.free / BLOCK,
            available: space.available / BLOCK,
            files: used.saturating_add(FILES_FREE),
            files_free: FILES_FREE,
            name_max: NAME_LEN_MAX as u32,
        })
    }

    fn read_next_ino(&self) -> u64 {
        self.meta.read().unwrap_or_else(std::sync::PoisonError::into_inner).next_ino
    }

    /// Returns counters.
    pub(super) fn stats(&self) -> FsStats {
        let (dirty_bytes, dirty_bytes_peak) = self.budget.usage();
        FsStats {
            dirty_bytes,
            dirty_bytes_peak,
            stream_buffer_bytes: self.pool.bytes() as u64,
            nodes: self.nodes.len(),
            handles: self.handles.len(),
            written_bytes: self.counters.written.load(Ordering::Relaxed),
            read_bytes: self.counters.read.load(Ordering::Relaxed),
            failed_chunks: self.counters.failed_chunks.load(Ordering::Relaxed),
            uncommitted_seconds: self.uncommitted_seconds(),
            // The snapshots are not the tree's: the caller knows.
            snapshot_inodes: 0,
        }
    }
}
