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
//! A file is worked on in rounds of bounded size, while others go on writing, syncing and reading it. Under the file's
//! lock a round only notes which rows there are. Their bytes are read, cut and stored without it. Then, under the lock
//! again, the rows that are there now are compared with what was stored, and those that still say the same are replaced
//! by the new chunks, whole or in part; whatever was written meanwhile stays as it is, and is the next conversion's
//! business. So nobody who syncs the file ever waits for the workers, and what a conversion stored is never stored again
//! for nothing. Nothing of a round is in flight as dirty data is: until the last step the rows stand, and a failure leaves
//! them.
//!
//! What is in flight meanwhile is newer than any row, and goes over what a round put in place.
//!
//! One conversion runs at a time, and who wants another waits for it: a collection that condemns packs flushes the tree
//! and must find every chunk named that was stored, or found there, before.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, PoisonError};

use super::Core;
use super::error::{FsError, FsResult};
use super::extents::ExtentEdit;
use super::flush::next_rows;
use super::node::{NodeRef, Piece};
use super::publish::unknown_failure;
use super::txn::PAGE_ROWS;
use crate::format::ids::ChunkId;
use crate::format::tree::FileType;
use crate::store::codec::Effort;
use crate::store::error::StoreError;
use crate::store::live::Table;
use crate::store::pool::Buf;
use crate::store::records::{ExtentRow, INLINE_ROW_MAX, TINY_FILE_MAX};
use rustix::io::Errno;

/// Settings rows that begin with this name files with inline rows.
const PREFIX: &str = "inline.";

/// A round has at most so many times the bytes of the longest chunk, unless it is a single row.
const ROUND_CHUNKS: u64 = 2;

/// A round has at most this many stretches.
const ROUND_STRETCHES: usize = 256;

/// What is put in place under one hold of the file's lock: so many chunks,
const GROUP_MAX: usize = 64;

/// ... with no wider gap between them, since all rows between are loaded.
const GROUP_GAP_MAX: u64 = 1 << 20;

/// Rounds of at least so many bytes are made durable before they are put in place, so that whoever syncs then need not.
const SYNC_AHEAD_MIN: u64 = 256 << 10;

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

    /// Puts rows before it that end where it begins.
    fn prepend(&mut self, rows: Vec<(u64, ExtentRow)>) {
        let Some((start, _)) = rows.first() else { return };
        self.len += self.start - start;
        self.start = *start;
        self.inline += rows.iter().map(|(_, row)| inline_bytes(row).len() as u64).sum::<u64>();
        self.rows.splice(..0, rows.into_iter().map(|(_, row)| row));
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

/// Bytes of a stretch that become one chunk.
#[derive(Debug)]
struct Part {
    off: u64,
    data: Piece,
    /// The rows of the stretch that name chunks, with their offsets.
    stored: Arc<[(u64, ExtentRow)]>,
}

impl Part {
    fn end(&self) -> u64 {
        self.off + self.data.len() as u64
    }

    /// Returns whether a row within this part's range still stands for the bytes that were stored.
    fn has(&self, off: u64, row: &ExtentRow) -> bool {
        match row {
            ExtentRow::Inline(bytes) => {
                let from = (off - self.off) as usize;
                self.data[from..from + bytes.len()] == bytes[..]
            }
            ExtentRow::Chunk { len, .. } => self.stored.iter().any(|(at, before)| {
                *at <= off && off + len <= at + before.len() && before.slice(off - at, *len) == *row
            }),
        }
    }
}

/// A round on its way to the workers.
#[derive(Debug)]
struct Round {
    node: NodeRef,
    parts: Vec<Part>,
    /// Number and id of each part that was stored.
    results: Receiver<(usize, Result<ChunkId, StoreError>)>,
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
        let _one_at_a_time = self.converting.lock().unwrap_or_else(PoisonError::into_inner);
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
                result = result.and(self.end_file(round));
            }
        }
        for round in in_flight {
            result = result.and(self.end_file(round));
        }
        result
    }

    /// Ends the last round of a file.
    fn end_file(&self, round: Round) -> FsResult<()> {
        let ino = round.node.ino;
        match self.end_round(round) {
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
        if self.txn().peek(ino)?.nlink == 0 {
            // It is being purged, or will be when it is closed.
            return Ok(None);
        }
        let (mut from, mut end) = (0, None);
        loop {
            let Some(round) = self.start_round(&node, from, &mut end)? else { return Ok(None) };
            let Some(next) = round.next else { return Ok(Some(round)) };
            self.end_round(round)?;
            from = next;
        }
    }

    /// Hands the chunks of one round to the workers. `None`: there are no inline rows from `from` to `end`, which becomes
    /// the file's end if it is not set: who appends all the time is not followed.
    fn start_round(&self, node: &NodeRef, from: u64, end: &mut Option<u64>) -> FsResult<Option<Round>> {
        let mut plan = {
            let data = self.lock_shared(node)?;
            if data.size <= TINY_FILE_MAX {
                return Ok(None);
            }
            let end = *end.get_or_insert(data.size);
            let mut plan = self.plan_round(node.ino, from, end)?;
            if let [only] = &mut plan.stretches[..]
                && only.start + only.len >= data.size
                && data.inflight.is_empty()
            {
                only.prepend(self.short_tail_rows(node.ino, only.start, only.len)?);
            }
            plan
        };
        if plan.stretches.is_empty() {
            return Ok(None);
        }
        let mut parts = Vec::new();
        for stretch in std::mem::take(&mut plan.stretches) {
            for (stretch, run) in self.read_stretch(node.ino, stretch) {
                plan.next = self.cut_stretch(&stretch, run, &mut parts).or(plan.next);
            }
        }
        let (done, results) = channel();
        for (n, part) in parts.iter().enumerate() {
            let done = done.clone();
            // If nobody waits for it any more, the round has failed already.
            let done = Box::new(move |result| drop(done.send((n, result))));
            self.engine.packs.submit(part.data.clone().into_plaintext(), Effort::Thorough, done);
        }
        Ok(Some(Round { node: node.clone(), parts, results, bytes: plan.bytes, next: plan.next }))
    }

    /// Cuts a stretch into chunks. Returns where the next round is to begin, if that is not where this one ended.
    fn cut_stretch(&self, stretch: &Stretch, run: Vec<u8>, parts: &mut Vec<Part>) -> Option<u64> {
        let mut at = stretch.start;
        let mut stored = Vec::new();
        for row in &stretch.rows {
            if matches!(row, ExtentRow::Chunk { .. }) {
                stored.push((at, row.clone()));
            }
            at += row.len();
        }
        let (run, stored): (Arc<Buf>, Arc<[_]>) = (Arc::new(run.into()), stored.into());
        let mut pos = 0;
        for end in self.cuts(&run) {
            let data = Piece::new(&run, pos, end);
            parts.push(Part { off: stretch.start + pos as u64, data, stored: Arc::clone(&stored) });
            pos = end;
        }
        let goes_on = stretch.goes_on.then_some(stretch.start);
        if pos < run.len() {
            // The next round goes on where the content has its last cut, or tries again with more.
            if goes_on.is_some() && (pos > 0 || !parts.is_empty()) {
                return goes_on.map(|start| start + pos as u64);
            }
            let data = Piece::new(&run, pos, run.len());
            parts.push(Part { off: stretch.start + pos as u64, data, stored });
        }
        goes_on.map(|start| start + run.len() as u64)
    }

    /// Waits for the chunks of a round and puts them in place of the rows that say the same.
    fn end_round(&self, round: Round) -> FsResult<()> {
        let ids = match self.stored_ids(&round) {
            Ok(ids) => ids,
            Err(error) => {
                tracing::error!(ino = round.node.ino, %error, "inline data could not be stored as chunks; it stays inline");
                self.counters.failed_chunks.fetch_add(1, Ordering::Relaxed);
                self.budget.failed(&error);
                return Err(error);
            }
        };
        let stored: Vec<(Part, ChunkId)> = round.parts.into_iter().zip(ids).collect();
        let apart = |(before, _): &(Part, ChunkId), (after, _): &(Part, ChunkId)| {
            after.off.saturating_sub(before.end()) <= GROUP_GAP_MAX
        };
        for group in stored.chunk_by(apart).flat_map(|near| near.chunks(GROUP_MAX)) {
            let data = self.lock_shared(&round.node)?;
            self.put_in_place(round.node.ino, group)?;
            drop(data);
        }
        Ok(())
    }

    fn stored_ids(&self, round: &Round) -> FsResult<Vec<ChunkId>> {
        let mut ids = vec![ChunkId([0; 32]); round.parts.len()];
        for _ in 0..round.parts.len() {
            // An end without a word: the chunk store is gone.
            let (n, result) = round.results.recv().map_err(|_| unknown_failure())?;
            ids[n] = result?;
        }
        if round.bytes >= SYNC_AHEAD_MIN {
            self.engine.packs.before_commit()?;
        }
        Ok(ids)
    }

    /// Replaces rows by chunks that have the same bytes. The caller holds the file's lock, and nobody works on the file
    /// exclusively.
    fn put_in_place(&self, ino: u64, group: &[(Part, ChunkId)]) -> FsResult<()> {
        let (Some((first, _)), Some((last, _))) = (group.first(), group.last()) else { return Ok(()) };
        let mut edit = ExtentEdit::load(&self.engine.live, ino, first.off, last.end())?;
        for (part, chunk) in group {
            for (start, end) in unchanged(part, edit.rows(part.off, part.end())) {
                let chunk_offset = (start - part.off) as u32;
                edit.put(start, ExtentRow::Chunk { len: end - start, chunk: *chunk, chunk_offset });
            }
        }
        let mut txn = self.txn();
        // Who purges a file holds no lock of it, only this one, and would not come back for rows that are put there now.
        if txn.peek(ino)?.nlink == 0 {
            return Err(Errno::NOENT.into());
        }
        // Nothing is covered that was not: neither size nor blocks nor times change.
        edit.finish(&mut txn.batch);
        txn.commit()
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
        match self.row_bytes(stretch.rows.iter()) {
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
}

/// Returns the ranges of a part whose rows still say what was stored, joined where they touch.
fn unchanged(part: &Part, rows: impl Iterator<Item = (u64, ExtentRow)>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (off, row) in rows.filter(|(off, row)| part.has(*off, row)) {
        let end = off + row.len();
        match ranges.last_mut() {
            Some((_, before)) if *before == off => *before = end,
            _ => ranges.push((off, end)),
        }
    }
    ranges
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::check::check_rows;
    use super::super::testing::{ALICE, Rng, Vault, close, get, put, small_config};
    use super::super::{Fs, SetAttr};
    use super::*;
    use crate::store::records::{ROOT_INO, parse_extent_key, rows_of};

    const KIB: usize = 1 << 10;

    fn inline_rows(core: &Core, ino: u64) -> Vec<(u64, u64)> {
        let (from, to) = rows_of(ino);
        let rows = core.engine.live.range(Table::Extents, &from, Some(&to), usize::MAX).unwrap();
        let rows = rows
            .iter()
            .map(|(key, value)| (parse_extent_key(key).unwrap().1, ExtentRow::decode(value).unwrap()));
        rows.filter(|(_, row)| matches!(row, ExtentRow::Inline(_)))
            .map(|(off, row)| (off, row.len()))
            .collect()
    }

    /// All that can happen to a file between the two steps of a round: what was stored takes the place of what is still the
    /// same, and of nothing else.
    #[test]
    fn what_is_written_while_a_round_is_stored_stays() {
        for synced in [true, false] {
            let vault = Vault::new(1, small_config());
            let (engine, fs) = vault.open();
            let mut bytes = Rng::bytes(1, 256 * KIB);
            let (ino, fh) = put(&fs, ROOT_INO, b"f", &bytes);
            fs.sync_all().unwrap();
            let mut seed = 1;
            let mut write = |fs: &Fs, bytes: &mut Vec<u8>, off: usize, len: usize, sync: bool| {
                seed += 1;
                let data = Rng::bytes(seed, len);
                assert_eq!(fs.write(ino, fh, off as u64, &data, false).unwrap(), len);
                bytes[off..off + len].copy_from_slice(&data);
                if sync {
                    fs.fsync(ino, false).unwrap();
                }
            };
            for n in 0..30 {
                write(&fs, &mut bytes, n * 2 * KIB, KIB, true);
            }
            let core = fs.tree().unwrap();
            assert_eq!(inline_rows(core, ino).len(), 30);
            let node = core.node(ino).unwrap();
            let round = core.start_round(&node, 0, &mut None).unwrap().unwrap();
            assert!(
                round.parts.len() > 2 && round.parts.iter().all(|part| part.data.len() >= 2 * KIB),
                "{round:?}"
            );
            // A row again, with other bytes; one half of a row; what a chunk had; with the same bytes as before; the end.
            write(&fs, &mut bytes, 6 * KIB, KIB, synced);
            write(&fs, &mut bytes, 20 * KIB + 512, 512, synced);
            write(&fs, &mut bytes, 31 * KIB, KIB / 2, synced);
            let same = bytes[40 * KIB..41 * KIB].to_vec();
            fs.write(ino, fh, 40 * KIB as u64, &same, false).unwrap();
            let set = SetAttr { size: Some(57 * KIB as u64 + 100), ..SetAttr::default() };
            fs.setattr(ino, set, Some(fh), ALICE).unwrap();
            bytes.truncate(57 * KIB + 100);
            core.end_round(round).unwrap();
            assert!(get(&fs, ino).unwrap() == bytes, "synced {synced}");
            check_rows(&engine, true);
            if synced {
                let left = inline_rows(core, ino);
                let changed = [(6 * KIB, KIB), (20 * KIB + 512, 512), (31 * KIB, KIB / 2)];
                for (off, len) in changed {
                    let (off, end) = (off as u64, (off + len) as u64);
                    assert!(left.iter().any(|(at, len)| *at <= off && end <= at + len), "{off}: {left:?}");
                }
                assert!(left.iter().map(|(_, len)| len).sum::<u64>() <= 8 * KIB as u64, "{left:?}");
            }
            fs.flush_all().unwrap();
            assert_eq!(inline_rows(core, ino), []);
            assert!(get(&fs, ino).unwrap() == bytes);
            check_rows(&engine, true);
            drop(node);
            fs.release(ino, fh).unwrap();
            close(&engine, fs);
            let (engine, fs) = vault.open();
            assert!(get(&fs, ino).unwrap() == bytes);
            close(&engine, fs);
        }
    }

    /// A file that is removed between the steps, and one that lost all that was stored.
    #[test]
    fn a_file_that_goes_while_a_round_is_stored_is_left_alone() {
        let vault = Vault::new(2, small_config());
        let (engine, fs) = vault.open();
        for remove in [true, false] {
            let (ino, fh) = put(&fs, ROOT_INO, b"f", &Rng::bytes(1, 64 * KIB));
            fs.sync_all().unwrap();
            for n in 0..8 {
                fs.write(ino, fh, n * 4096, &Rng::bytes(n, KIB), false).unwrap();
                fs.fsync(ino, false).unwrap();
            }
            let core = fs.tree().unwrap();
            let node = core.node(ino).unwrap();
            let round = core.start_round(&node, 0, &mut None).unwrap().unwrap();
            if remove {
                fs.unlink(ROOT_INO, b"f").unwrap();
                drop(node);
                fs.release(ino, fh).unwrap();
                fs.forget(ino, 1);
                core.end_file(round).unwrap();
                fs.tick().unwrap();
                assert_eq!(inline_rows(core, ino), []);
            } else {
                let set = SetAttr { size: Some(0), ..SetAttr::default() };
                fs.setattr(ino, set, Some(fh), ALICE).unwrap();
                core.end_file(round).unwrap();
                let (from, to) = rows_of(ino);
                assert!(engine.live.range(Table::Extents, &from, Some(&to), 10).unwrap().is_empty());
                fs.release(ino, fh).unwrap();
            }
            check_rows(&engine, true);
        }
        close(&engine, fs);
    }
}
