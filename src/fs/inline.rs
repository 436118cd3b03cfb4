//! Inline rows that an fsync left in files that are not tiny: turned into chunks when the whole tree is flushed.

use std::sync::{Arc, PoisonError};

use super::Core;
use super::error::FsResult;
use super::flush::next_rows;
use super::txn::PAGE_ROWS;
use crate::format::tree::FileType;
use crate::store::error::StoreError;
use crate::store::live::Table;
use crate::store::records::{ExtentRow, TINY_FILE_MAX};
use rustix::io::Errno;

/// Settings rows that begin with this name files with inline rows.
const PREFIX: &str = "inline.";

/// Most bytes of one file that are turned into chunks at a time.
const RUN_MAX: usize = 8 << 20;

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
        let files: Vec<u64> =
            self.inline_pending.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let mut result = Ok(());
        for ino in files {
            let converted = match self.convert_file(ino) {
                Err(error) if error.errno == Errno::NOENT => Ok(()),
                other => other,
            };
            match converted {
                Ok(()) => self.forget_inline(ino)?,
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
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

    fn convert_file(&self, ino: u64) -> FsResult<()> {
        let node = self.node(ino)?;
        let mut from = 0;
        loop {
            // Rows are true only while nothing older is in flight. Who writes meanwhile is published after us.
            let exclusive = self.lock_exclusive(&node)?;
            let mut data = exclusive.drained();
            if data.size <= TINY_FILE_MAX {
                return Ok(());
            }
            let Some(start) = self.first_inline(ino, from)? else { return Ok(()) };
            let mut run = Vec::new();
            for (off, row) in next_rows(self, ino, start, PAGE_ROWS)? {
                match row {
                    ExtentRow::Inline(bytes)
                        if off == start + run.len() as u64 && run.len() + bytes.len() <= RUN_MAX =>
                    {
                        run.extend_from_slice(&bytes);
                    }
                    _ if off < start => {}
                    _ => break,
                }
            }
            from = start + run.len() as u64;
            let mut at = start;
            if from >= data.size
                && let Some((tail_start, mut bytes)) = self.short_tail(ino, &data, start, run.len() as u64)
            {
                bytes.append(&mut run);
                (at, run) = (tail_start, bytes);
            }
            let (failures, mut jobs) = (data.failures, Vec::new());
            // Nothing of it is charged: it is durable already, and does not go back to the dirty map on failure.
            self.push_run(&mut data, at, Arc::new(run.into()), u64::MAX, &mut jobs);
            let upto = data.next_seq;
            drop(data);
            drop(exclusive);
            self.submit(&node, jobs);
            self.wait_published(&node, upto, failures)?;
        }
    }
}
