//! Inline rows that an fsync left in files that are not tiny: turned into chunks when the whole tree is flushed, and in
//! between when they become many.
//!
//! # What is stored again
//! Small writes that are synced one by one leave short rows, often scattered between pieces of chunks. A chunk for each
//! of them would be quick, but would leave the file in crumbs. So rows that lie close to each other are joined to a
//! *stretch*, together with the stored bytes between them, and the stretch is cut into chunks of proper length.
//! A stretch begins with an inline row and grows by the next one if the stored bytes between them and all those that
//! it took in before are together no more than its inline bytes, those of the new row included. So of the bytes of
//! any stretch at least half are inline: a conversion stores no more bytes again than it turns from inline rows
//! into chunks. Two exceptions, both small: the chunk that a round (see below) ends with may end inside of such a gap,
//! before the row that paid for it, which is at most `INLINE_ROW_MAX` bytes long; and the end of a file takes short
//! pieces before it along as any appended run does. Holes are never filled.
//!
//! # Rounds
//! A file is worked on in rounds of bounded size: under the file's lock a round collects rows and puts the cut chunks
//! into flight, then the workers store them side by side while writers go on, then they are published. Until then the
//! inline rows stand, and a failure leaves them. The last rounds of several files are in flight at the same time.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::Core;
use super::error::{FsError, FsResult};
use super::flush::next_rows;
use super::node::NodeRef;
use super::txn::PAGE_ROWS;
use crate::format::tree::FileType;
use crate::store::error::StoreError;
use crate::store::live::Table;
use crate::store::packs::ChunkSource;
use crate::store::pool::Buf;
use crate::store::records::{ExtentRow, INLINE_ROW_MAX, TINY_FILE_MAX};
use rustix::io::Errno;

/// Settings rows that begin with this name files with inline rows.
const PREFIX: &str = "inline.";

/// A round has at most so many times the bytes of the longest chunk, unless it is a single row.
const ROUND_CHUNKS: u64 = 2;

/// A round has at most this many stretches: who syncs the file meanwhile waits for them.
const ROUND_STRETCHES: usize = 256;

/// At most this many files have a round in flight.
const FILES_IN_FLIGHT: usize = 64;

/// Rows read at a time; each may have [`INLINE_ROW_MAX`] bytes.
const PLAN_ROWS: usize = 64;

/// Neighbouring rows of a file that become chunks together.
#[derive(Debug)]
struct Stretch {
    start: u64,
    rows: Vec<ExtentRow>,
    /// Bytes of `rows`.
    len: u64,
    /// Of these, bytes of inline rows.
    inline: u64,
    /// Stored bytes that follow; they are left out unless an inline row behind them joins.
    gap: Vec<ExtentRow>,
    gap_len: u64,
    /// It would have gone on, but the round was full.
    goes_on: bool,
}

impl Stretch {
    fn begin(start: u64, row: ExtentRow) -> Self {
        let len = row.len();
        Self { start, rows: vec![row], len, inline: len, gap: Vec::new(), gap_len: 0, goes_on: false }
    }

    /// Returns whether the row at `off` may belong to it: an inline row joins it, a chunk's may if an inline row follows. See
    /// the module's text for the rule.
    fn takes(&self, off: u64, row: &ExtentRow) -> bool {
        let again = self.len - self.inline + self.gap_len;
        off == self.start + self.len + self.gap_len
            && match row {
                ExtentRow::Inline(bytes) => again <= self.inline + bytes.len() as u64,
                ExtentRow::Chunk { len, .. } => again + len <= self.inline + INLINE_ROW_MAX as u64,
            }
    }

    /// Adds a row that it takes.
    fn add(&mut self, row: ExtentRow) {
        let len = row.len();
        if matches!(row, ExtentRow::Chunk { .. }) {
            self.gap.push(row);
            self.gap_len += len;
            return;
        }
        self.rows.append(&mut self.gap);
        self.rows.push(row);
        self.len += self.gap_len + len;
        self.inline += len;
        self.gap_len = 0;
    }

    /// Splits it into one stretch for each run of inline rows.
    fn without_chunks(self) -> Vec<Stretch> {
        let (mut at, mut parts): (u64, Vec<Stretch>) = (self.start, Vec::new());
        for row in self.rows {
            let len = row.len();
            if matches!(row, ExtentRow::Inline(_)) {
                match parts.last_mut() {
                    Some(part) if part.start + part.len == at => part.add(row),
                    _ => parts.push(Stretch::begin(at, row)),
                }
            }
            at += len;
        }
        if let Some(last) = parts.last_mut() {
            last.goes_on = self.goes_on && last.start + last.len == at;
        }
        parts
    }
}

/// What of a file becomes chunks at a time.
#[derive(Debug, Default)]
struct Plan {
    stretches: Vec<Stretch>,
    bytes: u64,
    /// Where the next round begins; `None`: there are no more inline rows.
    next: Option<u64>,
}

/// A round on its way to the workers.
#[derive(Debug)]
struct Round {
    node: NodeRef,
    /// What it put into flight has smaller numbers.
    upto: u64,
    failures: u64,
    bytes: u64,
    /// Where the next round begins.
    next: Option<u64>,
}

/// Returns the name of the Settings row that says that a file has inline rows.
pub(super) fn setting(ino: u64) -> Vec<u8> {
    format!("{PREFIX}{ino:016x}").into_bytes()
}

fn parse_setting(key: &[u8]) -> FsResult<u64> {
    std::str::from_utf8(key)
        .ok()
        .and_then(|key| key.strip_prefix(PREFIX))
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .ok_or_else(|| StoreError::Corrupt("live database: bad setting for inline data".into()).into())
}

impl Core {
    /// Finds the files with inline rows after a restart.
    pub(super) fn find_inline(&self) -> FsResult<()> {
        let mut from = PREFIX.as_bytes().to_vec();
        // '/' follows '.', so this is the end of the prefix.
        let to = b"inline/";
        loop {
            let rows = self.engine.live.range(Table::Settings, &from, Some(to), PAGE_ROWS)?;
            let mut pending = self.inline_pending.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, _) in &rows {
                pending.insert(parse_setting(key)?);
            }
            match rows.last() {
                Some((key, _)) if rows.len() == PAGE_ROWS => {
                    from = key.clone();
                    from.push(0);
                }
                _ => return Ok(()),
            }
        }
    }

    /// Turns all inline rows of files that are not tiny into chunks. Returns the first failure, after trying all.
    pub(super) fn convert_inline(&self) -> FsResult<()> {
        self.inline_growth.store(0, Ordering::Relaxed);
        let files: Vec<u64> =
            self.inline_pending.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let mut result = Ok(());
        let (mut in_flight, mut bytes) = (VecDeque::new(), 0);
        for ino in files {
            match self.convert_file(ino) {
                Ok(Some(round)) => {
                    bytes += round.bytes;
                    in_flight.push_back(round);
                }
                Ok(None) => result = result.and(self.forget_inline(ino)),
                Err(error) => result = result.and(self.unless_gone(ino, error)),
            }
            while (bytes > self.round_bytes() || in_flight.len() > FILES_IN_FLIGHT)
                && let Some(round) = in_flight.pop_front()
            {
                bytes -= round.bytes;
                result = result.and(self.end_file(&round));
            }
        }
        for round in in_flight {
            result = result.and(self.end_file(&round));
        }
        result
    }

    /// Waits for the last round of a file.
    fn end_file(&self, round: &Round) -> FsResult<()> {
        let ino = round.node.ino;
        match self.wait_published(&round.node, round.upto, round.failures) {
            Ok(()) => self.forget_inline(ino),
            Err(error) => self.unless_gone(ino, error),
        }
    }

    /// A file that was removed meanwhile has no inline rows any more.
    fn unless_gone(&self, ino: u64, error: FsError) -> FsResult<()> {
        if error.errno == Errno::NOENT { self.forget_inline(ino) } else { Err(error) }
    }

    /// Drops the note that a file has inline rows, unless an fsync has just made new ones.
    fn forget_inline(&self, ino: u64) -> FsResult<()> {
        let mut txn = self.txn();
        let tiny = match txn.peek(ino) {
            Ok(row) => row.kind != FileType::File || row.size <= TINY_FILE_MAX,
            Err(error) if error.errno == Errno::NOENT => true,
            Err(error) => return Err(error),
        };
        if tiny || self.first_inline(ino, 0)?.is_none() {
            // Under the namespace's lock, like the insertion.
            self.inline_pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&ino);
            txn.batch.delete(Table::Settings, setting(ino));
        }
        txn.commit()
    }

    fn first_inline(&self, ino: u64, mut from: u64) -> FsResult<Option<u64>> {
        loop {
            let rows = next_rows(self, ino, from, PAGE_ROWS)?;
            let found = rows.iter().find(|(off, row)| *off >= from && matches!(row, ExtentRow::Inline(_)));
            if let Some((off, _)) = found {
                return Ok(Some(*off));
            }
            match rows.last() {
                Some((off, row)) if rows.len() == PAGE_ROWS => from = off + row.len(),
                _ => return Ok(None),
            }
        }
    }

    fn round_bytes(&self) -> u64 {
        ROUND_CHUNKS * self.chunker.max_len() as u64
    }

    /// Works on a file round by round. Returns the last one, which is still in flight; `None` if there is nothing to wait for.
    fn convert_file(&self, ino: u64) -> FsResult<Option<Round>> {
        let node = self.node(ino)?;
        let (mut from, mut end) = (0, None);
        loop {
            let Some(round) = self.start_round(&node, from, &mut end)? else { return Ok(None) };
            let Some(next) = round.next else { return Ok(Some(round)) };
            self.wait_published(&node, round.upto, round.failures)?;
            from = next;
        }
    }

    /// Puts the chunks of one round into flight. `None`: there are no inline rows from `from` to `end`, which becomes the
    /// file's end if it is not set: who appends all the time is not followed.
    fn start_round(&self, node: &NodeRef, from: u64, end: &mut Option<u64>) -> FsResult<Option<Round>> {
        // Rows are true only while nothing older is in flight. Who writes meanwhile is published after us.
        let exclusive = self.lock_exclusive(node)?;
        let mut data = exclusive.drained();
        if data.size <= TINY_FILE_MAX {
            return Ok(None);
        }
        let end = *end.get_or_insert(data.size);
        let plan = self.plan_round(node.ino, from, end)?;
        let mut round = Round {
            node: node.clone(),
            upto: 0,
            failures: data.failures,
            bytes: plan.bytes,
            next: plan.next,
        };
        if plan.stretches.is_empty() {
            return Ok(None);
        }
        let alone = plan.stretches.len() == 1;
        let mut jobs = Vec::new();
        for stretch in plan.stretches {
            for (part, mut run) in self.read_stretch(node.ino, stretch) {
                let mut at = part.start;
                if alone
                    && at + part.len >= data.size
                    && let Some((tail_start, mut bytes)) = self.short_tail(node.ino, &data, at, part.len)
                {
                    bytes.append(&mut run);
                    (at, run) = (tail_start, bytes);
                }
                let len = run.len() as u64;
                // Nothing of it is charged: it is durable already, and does not go back to the dirty map on failure.
                let run: Arc<Buf> = Arc::new(run.into());
                if part.goes_on {
                    // The next round goes on where the content has its last cut, or tries again with more.
                    let cut = self.push_cuts(&mut data, at, &run, u64::MAX, &mut jobs);
                    round.next = Some(at + cut);
                    if cut > 0 || !jobs.is_empty() {
                        continue;
                    }
                    round.next = Some(at + len);
                }
                self.push_run(&mut data, at, run, u64::MAX, &mut jobs);
            }
        }
        round.upto = data.next_seq;
        drop(data);
        drop(exclusive);
        self.submit(node, jobs);
        Ok(Some(round))
    }

    /// Collects what the next round turns into chunks. The caller holds the file's lock.
    fn plan_round(&self, ino: u64, from: u64, end: u64) -> FsResult<Plan> {
        let (mut plan, mut open, mut at): (Plan, Option<Stretch>, u64) = (Plan::default(), None, from);
        'rows: loop {
            let rows = next_rows(self, ino, at, PLAN_ROWS)?;
            let full = rows.len() == PLAN_ROWS;
            for (off, row) in rows {
                // The first row may only touch where we are.
                let row_end = off + row.len();
                if row_end <= at {
                    continue;
                }
                if off >= end {
                    break 'rows;
                }
                at = row_end;
                let taken = open.as_ref().is_some_and(|open| open.takes(off, &row));
                if matches!(row, ExtentRow::Inline(_)) {
                    let held = plan.bytes
                        + open.as_ref().map_or(0, |open| open.len + if taken { open.gap_len } else { 0 });
                    let many =
                        !taken && plan.stretches.len() + usize::from(open.is_some()) >= ROUND_STRETCHES;
                    if many || (held > 0 && held + row.len() > self.round_bytes()) {
                        plan.next = Some(off);
                        if let Some(open) = &mut open {
                            open.goes_on = taken;
                        }
                        break 'rows;
                    }
                }
                match &mut open {
                    Some(open) if taken => open.add(row),
                    _ => {
                        plan.close(open.take());
                        if matches!(row, ExtentRow::Inline(_)) {
                            open = Some(Stretch::begin(off, row));
                        }
                    }
                }
            }
            if !full {
                break;
            }
        }
        plan.close(open);
        Ok(plan)
    }

    /// Returns the bytes of a stretch. If stored ones can't be read, those of its inline rows alone.
    fn read_stretch(&self, ino: u64, stretch: Stretch) -> Vec<(Stretch, Vec<u8>)> {
        match self.stretch_bytes(&stretch) {
            Ok(run) => vec![(stretch, run)],
            Err(error) => {
                // A reader meets the damage by itself; here it must not keep what is whole from becoming chunks.
                tracing::warn!(ino, %error, "could not read what lies between inline rows");
                let alone = |part: Stretch| {
                    let run = part.rows.iter().flat_map(inline_bytes).copied().collect();
                    (part, run)
                };
                stretch.without_chunks().into_iter().map(alone).collect()
            }
        }
    }

    fn stretch_bytes(&self, stretch: &Stretch) -> FsResult<Vec<u8>> {
        let mut run = Vec::with_capacity(stretch.len as usize);
        for row in &stretch.rows {
            match row {
                ExtentRow::Inline(bytes) => run.extend_from_slice(bytes),
                ExtentRow::Chunk { len, chunk, chunk_offset } => {
                    let from = run.len();
                    run.resize(from + *len as usize, 0);
                    self.engine.packs.read_at(chunk, *chunk_offset, &mut run[from..])?;
                }
            }
        }
        Ok(run)
    }
}

impl Plan {
    fn close(&mut self, stretch: Option<Stretch>) {
        if let Some(stretch) = stretch {
            self.bytes += stretch.len;
            self.stretches.push(stretch);
        }
    }
}

fn inline_bytes(row: &ExtentRow) -> &[u8] {
    match row {
        ExtentRow::Inline(bytes) => bytes,
        ExtentRow::Chunk { .. } => &[],
    }
}
