//! read(2) and lseek(2): memory over extents over holes.

use std::sync::atomic::Ordering;

use super::error::FsResult;
use super::extents::rows_in;
use super::flush::next_rows;
use super::gaps::Gaps;
use super::node::NodeRef;
use super::types::{Fh, Whence};
use super::{Core, SIZE_MAX};
use crate::store::packs::ChunkSource;
use crate::store::records::ExtentRow;
use rustix::io::Errno;

/// Extents looked at in one go when searching for data or a hole.
const SEEK_ROWS: usize = 256;

/// A read that met a chunk that was just moved or dropped looks again at what the file's extents are now.
const READ_ATTEMPTS: usize = 3;

impl Core {
    /// Reads up to `len` bytes at `off`; fewer only at the end of the file. Holes read as zeros.
    ///
    /// # Errors
    /// EIO for data that is missing or was changed: never zeros, never short.
    pub(super) fn read(&self, ino: u64, fh: Fh, off: u64, len: usize) -> FsResult<Vec<u8>> {
        let handle = self.handles.get(fh)?;
        let node = handle.node(ino)?;
        let mut attempt = 1;
        loop {
            match self.read_node(node, off, len) {
                Err(error) if attempt < READ_ATTEMPTS && error.errno == Errno::IO => {
                    tracing::debug!(ino, %error, attempt, "reading again");
                    attempt += 1;
                }
                Ok(buf) => {
                    self.counters.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
                    return Ok(buf);
                }
                other => return other,
            }
        }
    }

    /// Reads from a node; see [`Core::read`].
    pub(super) fn read_node(&self, node: &NodeRef, off: u64, len: usize) -> FsResult<Vec<u8>> {
        let data = node.lock();
        let len = data.size.saturating_sub(off).min(len as u64);
        let mut buf = vec![0; len as usize];
        let mut gaps = Gaps::new(off, off + len);
        if data.is_dirty() {
            data.read(&mut gaps, off, &mut buf);
        }
        // The rows belong to the same moment as what is in memory; the chunks that they name never change.
        let rows = match gaps.span() {
            Some((start, end)) => rows_in(&self.engine.live, node.ino, start, end)?,
            None => Vec::new(),
        };
        drop(data);
        for (at, row) in rows {
            let mut parts = Vec::new();
            gaps.take(at, at + row.len(), |from, to| parts.push((from, to)));
            for (from, to) in parts {
                let out = &mut buf[(from - off) as usize..(to - off) as usize];
                match &row {
                    ExtentRow::Inline(bytes) => {
                        out.copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
                    }
                    ExtentRow::Chunk { chunk, chunk_offset, .. } => {
                        let skip = u32::try_from(from - at).map_err(|_| Errno::IO)?;
                        let start = chunk_offset.checked_add(skip).ok_or(Errno::IO)?;
                        self.engine.packs.read_at(chunk, start, out)?;
                    }
                }
            }
        }
        Ok(buf)
    }

    /// Returns the first offset from `off` on that is data, or a hole.
    ///
    /// # Errors
    /// ENXIO at or past the end of the file, and for data where there is none any more.
    pub(super) fn lseek(&self, ino: u64, off: u64, whence: Whence) -> FsResult<u64> {
        if off > SIZE_MAX {
            return Err(Errno::NXIO.into());
        }
        let node = self.node(ino)?;
        let data = node.lock();
        if off >= data.size {
            return Err(Errno::NXIO.into());
        }
        let mut at = off;
        loop {
            // The part of the file from `at` on that is covered without a break, or the next one.
            let mut next: Option<(u64, u64)> = None;
            let mut see = |start: u64, end: u64| {
                if end > at && next.is_none_or(|(best, _)| start < best) {
                    next = Some((start, end));
                }
            };
            data.dirty.overlapping(at, data.size, |start, seg| see(start, start + seg.len() as u64));
            for entry in &data.inflight {
                see(entry.off, entry.end());
            }
            for (start, row) in next_rows(self, ino, at, SEEK_ROWS)? {
                see(start, start + row.len());
            }
            match (whence, next) {
                (Whence::Data, Some((start, _))) if start.max(at) < data.size => return Ok(start.max(at)),
                (Whence::Data, _) => return Err(Errno::NXIO.into()),
                (Whence::Hole, Some((start, end))) if start <= at && end < data.size => at = end,
                (Whence::Hole, Some((start, _))) if start <= at => return Ok(data.size),
                (Whence::Hole, _) => return Ok(at),
            }
        }
    }
}
