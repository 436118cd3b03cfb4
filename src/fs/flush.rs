//! From dirty data to chunks: cutting runs, handing them to the workers, waiting for them.

use std::sync::{Arc, Weak};

use super::Core;
use super::error::FsResult;
use super::extents::rows_around;
use super::node::{FlightState, InFlight, Node, NodeData, NodeRef, Piece};
use super::publish::unknown_failure;
use crate::store::chunker::Chunker;
use crate::store::codec::Effort;
use crate::store::live::Table;
use crate::store::packs::ChunkSource;
use crate::store::pool::{Buf, Pool};
use crate::store::records::{
    ExtentRow, INLINE_ROW_MAX, TINY_FILE_MAX, extent_key, parse_extent_key, rows_of,
};

/// An fsync of at most this many bytes puts them into the journal instead of a pack.
const SYNC_INLINE_MAX: u64 = INLINE_ROW_MAX as u64;

/// ... unless they are scattered over more pieces than this.
const SYNC_INLINE_RUNS: usize = 64;

/// The dirty map is looked through for runs to cut once for this many written bytes.
const SCAN_EVERY: u64 = 1 << 20;

/// A stream is cut when it has this many times the longest chunk.
const CUT_FROM: usize = 2;

/// The longest write that is expected when a stream is just short of being cut, in bytes.
const WRITE_LEN: usize = 1 << 20;

/// Buffers for streams besides those that the bound on dirty data has room for.
const SPARE_BUFS: usize = 2;

/// Returns the buffers that data of streams stands in: as many as the bound on dirty data has room for.
pub(super) fn stream_pool(dirty_bytes_max: u64, chunker: &Chunker) -> Arc<Pool> {
    let len = CUT_FROM * chunker.max_len() + WRITE_LEN;
    let count = usize::try_from(dirty_bytes_max / len as u64).unwrap_or(usize::MAX);
    Pool::new(len, count.saturating_add(SPARE_BUFS))
}

/// A piece of work for the pack workers.
#[must_use]
pub(super) struct Job {
    seq: u64,
    data: Piece,
}

/// What a flush is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlushFor {
    /// Everything into packs.
    Packs,
    /// The quickest way to make it durable.
    Sync,
}

impl Core {
    /// Cuts chunks off runs that are long enough, leaving their tails. Called as data streams in.
    pub(super) fn cut_stream(&self, node: &Node, data: &mut NodeData) -> Vec<Job> {
        let max = self.chunker.max_len() as u64;
        if data.stalled || data.dirty.bytes() < CUT_FROM as u64 * max {
            return Vec::new();
        }
        let at_stream = data.dirty.segment_len(data.stream_end);
        if at_stream < CUT_FROM as u64 * max && data.unscanned < SCAN_EVERY.min(max) {
            return Vec::new();
        }
        data.unscanned = 0;
        self.cut_runs(node, data, |start, stream_end| {
            // A run that starts where no chunk ended may miss its first part, which is about to arrive: cutting it now
            // would put a chunk boundary where none belongs.
            if start == 0 || start == stream_end { CUT_FROM as u64 * max } else { 4 * max }
        })
    }

    /// Cuts all chunks off that the content bounds, off runs of at least `enough(start, stream_end)` bytes. The rest of a run
    /// stays.
    fn cut_runs(&self, node: &Node, data: &mut NodeData, enough: impl Fn(u64, u64) -> u64) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (start, len) in data.dirty.runs() {
            if len < enough(start, data.stream_end) {
                continue;
            }
            let run = Arc::new(data.dirty.take_run(start, len));
            // Little is left to be copied.
            let pos = self.push_cuts(data, start, &run, start, &mut jobs);
            data.dirty.put_back_tail(data.stream_end, &run[pos as usize..]);
        }
        if !jobs.is_empty() {
            // What is left is the head of what streams in: not old, and not to be cut where it happens to end.
            data.dirty_since = self.monotonic();
        }
        node.note_dirty(data);
        jobs
    }

    /// Moves all dirty data of a file into flight. Publishes what needs no worker.
    pub(super) fn cut_all(&self, node: &Node, data: &mut NodeData, what_for: FlushFor) -> FsResult<Vec<Job>> {
        if data.dirty.is_empty() {
            return Ok(Vec::new());
        }
        data.stalled = false;
        data.unscanned = 0;
        let mut jobs = Vec::new();
        if let Some(bytes) = self.tiny_content(node.ino, data)? {
            let charged = data.dirty.runs().into_iter().map(|(start, len)| (start, start + len)).collect();
            data.dirty.remove(0, u64::MAX);
            push_inline(data, 0, bytes.into(), charged);
        } else {
            let runs = data.dirty.runs();
            let inline = what_for == FlushFor::Sync
                && data.dirty.bytes() <= SYNC_INLINE_MAX
                && runs.len() <= SYNC_INLINE_RUNS;
            for (start, len) in runs {
                let mut run = data.dirty.take_run(start, len);
                if inline {
                    push_inline(data, start, run, vec![(start, start + len)]);
                    continue;
                }
                let tail =
                    if start + len >= data.size { self.short_tail(node.ino, data, start, len) } else { None };
                let mut at = start;
                if let Some((tail_start, mut bytes)) = tail {
                    bytes.extend_from_slice(&run);
                    (at, run) = (tail_start, bytes.into());
                }
                self.push_run(data, at, Arc::new(run), start, &mut jobs);
            }
        }
        node.note_dirty(data);
        self.publish_ready(node, data);
        Ok(jobs)
    }

    /// Cuts a whole run into chunks. Bytes before `charged_from` were durable before.
    pub(super) fn push_run(
        &self,
        data: &mut NodeData,
        start: u64,
        run: Arc<Buf>,
        charged_from: u64,
        jobs: &mut Vec<Job>,
    ) {
        let pos = self.push_cuts(data, start, &run, charged_from, jobs) as usize;
        if pos < run.len() {
            let piece = Piece::new(&run, pos, run.len());
            jobs.push(push_chunk(data, start + pos as u64, piece, charged_from));
            data.stream_end = start + run.len() as u64;
        }
    }

    /// Cuts all chunks off a run that its content bounds. Returns how many bytes they have.
    pub(super) fn push_cuts(
        &self,
        data: &mut NodeData,
        start: u64,
        run: &Arc<Buf>,
        charged_from: u64,
        jobs: &mut Vec<Job>,
    ) -> u64 {
        let mut pos = 0;
        for end in self.cuts(run) {
            let piece = Piece::new(run, pos, end);
            jobs.push(push_chunk(data, start + pos as u64, piece, charged_from));
            pos = end;
        }
        data.stream_end = start + pos as u64;
        pos as u64
    }

    /// Returns where a run's content has its cuts, to the last one, so that little is left.
    pub(super) fn cuts(&self, run: &[u8]) -> impl Iterator<Item = usize> {
        let mut pos = 0;
        std::iter::from_fn(move || {
            pos += self.chunker.cut(&run[pos..], false)?;
            Some(pos)
        })
    }

    /// Returns the whole content of a file that is small enough to stand in one row, dirty data included.
    fn tiny_content(&self, ino: u64, data: &NodeData) -> FsResult<Option<Vec<u8>>> {
        if !data.inflight.is_empty() || data.dirty.end() > TINY_FILE_MAX {
            return Ok(None);
        }
        let (from, to) = rows_of(ino);
        let mut content = vec![0; data.dirty.end() as usize];
        let rows = self.engine.live.range(Table::Extents, &from, Some(&to), TINY_FILE_MAX as usize + 1)?;
        for (key, value) in rows {
            let off = parse_extent_key(&key)?.1;
            match ExtentRow::decode(&value)? {
                ExtentRow::Inline(bytes) if off + bytes.len() as u64 <= TINY_FILE_MAX => {
                    let range = off as usize..off as usize + bytes.len();
                    content.resize(content.len().max(range.end), 0);
                    content[range].copy_from_slice(&bytes);
                }
                ExtentRow::Inline(_) | ExtentRow::Chunk { .. } => return Ok(None),
            }
        }
        data.dirty.overlapping(0, u64::MAX, |at, seg| {
            content[at as usize..at as usize + seg.len()].copy_from_slice(seg);
        });
        Ok(Some(content))
    }

    /// Returns the published bytes just before an appended run if they stand in short pieces: these are stored again
    /// together with the run. A piece is taken only if it is not much longer than what follows it, so each byte of a
    /// file that grows by small appends is stored again a logarithmic number of times, and the file gets chunks of
    /// proper length in the end.
    pub(super) fn short_tail(
        &self,
        ino: u64,
        data: &NodeData,
        start: u64,
        len: u64,
    ) -> Option<(u64, Vec<u8>)> {
        if !data.inflight.is_empty() {
            return None;
        }
        match self.read_short_tail(ino, start, len) {
            Ok(tail) => tail,
            Err(error) => {
                // Only an optimisation: the run is stored all the same, and a reader meets the damage by itself.
                tracing::warn!(ino, %error, "could not read the end of a file to store it in one piece");
                None
            }
        }
    }

    fn read_short_tail(&self, ino: u64, start: u64, len: u64) -> FsResult<Option<(u64, Vec<u8>)>> {
        let rows = self.short_tail_rows(ino, start, len)?;
        let Some((at, _)) = rows.first() else { return Ok(None) };
        Ok(Some((*at, self.row_bytes(rows.iter().map(|(_, row)| row))?)))
    }

    /// Returns the rows that [`Core::short_tail`] takes along, ascending.
    pub(super) fn short_tail_rows(&self, ino: u64, start: u64, len: u64) -> FsResult<Vec<(u64, ExtentRow)>> {
        let enough = self.chunker.min_len() as u64;
        let (mut at, mut pieces, mut total) = (start, Vec::new(), len);
        while at > 0 && total < enough {
            let below =
                self.engine.live.last_before(Table::Extents, &extent_key(ino, 0), &extent_key(ino, at))?;
            let Some((key, value)) = below else { break };
            let (off, row) = (parse_extent_key(&key)?.1, ExtentRow::decode(&value)?);
            let inline = matches!(row, ExtentRow::Inline(_));
            if off + row.len() != at || row.len() >= enough || (row.len() > 2 * total && !inline) {
                break;
            }
            (at, total) = (off, total + row.len());
            pieces.push((at, row));
        }
        pieces.reverse();
        Ok(pieces)
    }

    /// Returns the bytes of rows that follow each other.
    pub(super) fn row_bytes<'a>(
        &self,
        rows: impl Iterator<Item = &'a ExtentRow> + Clone,
    ) -> FsResult<Vec<u8>> {
        let total: u64 = rows.clone().map(ExtentRow::len).sum();
        let mut bytes = Vec::with_capacity(total as usize);
        for row in rows {
            match row {
                ExtentRow::Inline(inline) => bytes.extend_from_slice(inline),
                ExtentRow::Chunk { len, chunk, chunk_offset } => {
                    let from = bytes.len();
                    bytes.resize(from + *len as usize, 0);
                    self.engine.packs.read_at(chunk, *chunk_offset, &mut bytes[from..])?;
                }
            }
        }
        Ok(bytes)
    }

    /// Hands jobs to the workers; waits while their queue is full. Hold no lock.
    pub(super) fn submit(&self, node: &NodeRef, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        for job in jobs {
            let (core, node, seq) = (Weak::clone(&self.me), node.clone(), job.seq);
            let done = Box::new(move |result| {
                if let Some(core) = core.upgrade() {
                    core.complete(&node, seq, result);
                }
            });
            self.engine.packs.submit(job.data.into_plaintext(), Effort::Thorough, done);
        }
    }

    /// Submits what makes room without cutting a file where its content does not say so; if there is nothing of the
    /// kind, all its dirty data. Does not wait.
    pub(super) fn push_out_pressed(&self, node: &NodeRef) {
        let mut data = node.lock();
        let min = self.chunker.min_len() as u64;
        let jobs = if data.stalled { Vec::new() } else { self.cut_runs(node, &mut data, |_, _| min) };
        drop(data);
        if jobs.is_empty() {
            self.push_out(node);
        } else {
            self.submit(node, jobs);
        }
    }

    /// Submits all dirty data of a file and does not wait. Failures are kept for the next flush.
    pub(super) fn push_out(&self, node: &NodeRef) {
        let mut data = node.lock();
        match self.cut_all(node, &mut data, FlushFor::Packs) {
            Ok(jobs) => {
                drop(data);
                self.submit(node, jobs);
            }
            Err(error) => {
                data.failures += 1;
                data.last_error = Some(error.clone());
                drop(data);
                self.budget.failed(&error);
            }
        }
    }

    /// Publishes all data that a file has in memory now, and waits for it.
    pub(super) fn flush_and_wait(&self, node: &NodeRef) -> FsResult<()> {
        self.flush_for(node, FlushFor::Packs)
    }

    /// Publishes all data that a file has in memory now, and waits for it.
    pub(super) fn flush_for(&self, node: &NodeRef, what_for: FlushFor) -> FsResult<()> {
        let mut data = node.lock();
        let failures = data.failures;
        let jobs = self.cut_all(node, &mut data, what_for)?;
        let upto = data.next_seq;
        drop(data);
        self.submit(node, jobs);
        self.wait_published(node, upto, failures)
    }

    /// Waits until all in-flight data before `upto` is published. `failures` was read before it was submitted.
    pub(super) fn wait_published(&self, node: &NodeRef, upto: u64, failures: u64) -> FsResult<()> {
        let mut data = node.lock();
        loop {
            if data.failures != failures {
                return Err(data.last_error.clone().unwrap_or_else(unknown_failure));
            }
            if data.inflight.front().is_none_or(|entry| entry.seq >= upto) {
                return self.publish_times(node, &mut data);
            }
            data = node.wait(data);
        }
    }
}

/// Puts a chunk into flight. Its bytes before `charged_from` are not charged.
fn push_chunk(data: &mut NodeData, off: u64, piece: Piece, charged_from: u64) -> Job {
    let (start, end) = (off.max(charged_from), off + piece.len() as u64);
    let charged = if start < end { vec![(start, end)] } else { Vec::new() };
    let seq = data.next_seq;
    data.next_seq += 1;
    data.inflight.push_back(InFlight { seq, off, data: piece.clone(), state: FlightState::Pending, charged });
    Job { seq, data: piece }
}

/// Puts bytes into flight that need no worker.
fn push_inline(data: &mut NodeData, off: u64, bytes: Buf, charged: Vec<(u64, u64)>) {
    let seq = data.next_seq;
    data.next_seq += 1;
    let end = bytes.len();
    let piece = Piece::new(&Arc::new(bytes), 0, end);
    data.inflight.push_back(InFlight { seq, off, data: piece, state: FlightState::Inline, charged });
}

/// Returns up to `limit` extents of a file from `start` on, for those who look for holes.
pub(super) fn next_rows(core: &Core, ino: u64, start: u64, limit: usize) -> FsResult<Vec<(u64, ExtentRow)>> {
    rows_around(&core.engine.live, ino, start, u64::MAX - 1, limit)
}
