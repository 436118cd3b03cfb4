//! Durability: fsync, flushing and committing everything, and the clock that does so every few seconds.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Core;
use super::error::FsResult;
use super::flush::FlushFor;

/// A change is committed at the latest this long after it was made.
const COMMIT_EVERY: Duration = Duration::from_secs(5);

/// Dirty data that has been lying around this long is set on its way, to be part of the next commit.
const DIRTY_AGE_MAX: Duration = Duration::from_secs(3);

/// Inline rows become chunks at the latest this long after the last time.
const CONVERT_EVERY: Duration = Duration::from_secs(60);

/// ... or when this many files have some,
const CONVERT_FILES: usize = 512;

/// ... or when they have grown by this part of what the live database keeps in memory: long before a checkpoint has to
/// write them into the database, where 4 KiB of them take 9 KiB in pages that are written again and again; and the end of a
/// mount finds few.
const CONVERT_OVERLAY_PART: (usize, usize) = (1, 12);

/// Buffers of streams that nobody needed for this long, up to twice as long, are given back to the system.
const TRIM_EVERY: Duration = Duration::from_secs(10);

/// When things were last done.
#[derive(Debug)]
pub(super) struct CommitClock {
    /// When a change was first seen waiting for a commit.
    waiting_since: Option<Duration>,
    converted: Duration,
    trimmed: Duration,
}

impl CommitClock {
    /// Returns a clock for a tree that was just opened.
    pub(super) fn new(now: Duration) -> Self {
        Self { waiting_since: None, converted: now, trimmed: now }
    }
}

impl Core {
    /// Makes a file durable: its data, its attributes, and every name given before.
    pub(super) fn fsync(&self, ino: u64) -> FsResult<()> {
        if self.read_only {
            return Ok(());
        }
        self.engine.check_poison()?;
        if let Some(node) = self.find_node(ino) {
            self.flush_for(&node, FlushFor::Sync)?;
        }
        Ok(self.engine.live.commit()?)
    }

    /// Makes a directory durable: with it, every change of the namespace made before.
    pub(super) fn fsyncdir(&self) -> FsResult<()> {
        if self.read_only {
            return Ok(());
        }
        self.engine.check_poison()?;
        Ok(self.engine.live.commit()?)
    }

    /// Publishes the dirty data of all files, and turns inline rows into chunks. Returns the first failure, after trying
    /// all.
    pub(super) fn flush_all(&self) -> FsResult<()> {
        if self.read_only {
            return Ok(());
        }
        let mut result = Ok(());
        let mut waits = Vec::new();
        for node in self.dirty_nodes() {
            let mut data = node.lock();
            let failures = data.failures;
            let cut = self.cut_all(&node, &mut data, FlushFor::Packs);
            let upto = data.next_seq;
            drop(data);
            match cut {
                Ok(jobs) => {
                    self.submit(&node, jobs);
                    waits.push((node, upto, failures));
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        for (node, upto, failures) in waits {
            result = result.and(self.wait_published(&node, upto, failures));
        }
        result.and(self.convert_inline())
    }

    /// Makes everything durable.
    pub(super) fn sync_all(&self) -> FsResult<()> {
        if self.read_only {
            return Ok(());
        }
        // As fsync: also when there is nothing left to write.
        self.engine.check_poison()?;
        self.flush_all()?;
        self.commit_now()
    }

    fn commit_now(&self) -> FsResult<()> {
        self.clock().waiting_since = None;
        Ok(self.engine.with_reserve(|| self.engine.live.commit())?)
    }

    fn clock(&self) -> std::sync::MutexGuard<'_, CommitClock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what time asks for: gives memory back, sets old dirty data on its way, commits, purges, turns inline rows into
    /// chunks.
    pub(super) fn tick(&self) -> FsResult<()> {
        let now = self.monotonic();
        let trim = {
            let mut clock = self.clock();
            let due = now.saturating_sub(clock.trimmed) >= TRIM_EVERY;
            if due {
                clock.trimmed = now;
            }
            due
        };
        if trim {
            self.pool.trim();
        }
        if self.read_only || self.engine.check_poison().is_err() {
            return Ok(());
        }
        for node in self.dirty_nodes() {
            let old = {
                let data = node.lock();
                !data.dirty.is_empty() && now.saturating_sub(data.dirty_since) >= DIRTY_AGE_MAX
            };
            if old {
                self.push_out(&node);
            }
        }
        self.purge_some()?;
        let files = self.inline_pending.lock().unwrap_or_else(PoisonError::into_inner).len();
        let (part, of) = CONVERT_OVERLAY_PART;
        let many = (self.engine.ctx.cfg.live.overlay_bytes_max / of * part) as u64;
        let grown = self.inline_growth.load(Ordering::Relaxed);
        let convert = {
            let mut clock = self.clock();
            let waited = now.saturating_sub(clock.converted);
            let due = files > 0 && (files >= CONVERT_FILES || grown >= many || waited >= CONVERT_EVERY);
            if due {
                clock.converted = now;
            }
            due
        };
        if convert {
            self.convert_inline()?;
            // Now there are rows that name chunks where the bytes were.
            self.engine.live.checkpoint_if_worth();
        }
        let due = {
            let mut clock = self.clock();
            if self.engine.live.uncommitted_bytes() == 0 {
                clock.waiting_since = None;
                false
            } else {
                now.saturating_sub(*clock.waiting_since.get_or_insert(now)) >= COMMIT_EVERY
            }
        };
        if due { self.commit_now() } else { Ok(()) }
    }

    /// Publishes and purges everything and commits it, for the end of a mount.
    pub(super) fn shutdown(&self) -> FsResult<()> {
        if self.read_only {
            return Ok(());
        }
        self.flush_all()?;
        while !self.purges.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            self.purge_some()?;
        }
        self.commit_now()
    }

    /// Returns for how many seconds changes have been waiting for a commit.
    pub(super) fn uncommitted_seconds(&self) -> u64 {
        let since = self.clock().waiting_since;
        since.map_or(0, |since| self.monotonic().saturating_sub(since).as_secs())
    }
}
