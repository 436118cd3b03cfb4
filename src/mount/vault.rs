//! A vault as a mount serves it: the working tree and its engine, or one snapshot.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::error::{Failure, MountError};
use super::runtime::Served;
use crate::fs::Fs;
use crate::snapshot::chain::{Chain, present_packs};
use crate::snapshot::create::{SnapshotInfo, SnapshotOpts};
use crate::snapshot::delete::{DeleteError, DeleteOpts};
use crate::snapshot::describe::Description;
use crate::snapshot::gc::GcOpts;
use crate::snapshot::{create, delete, gc, open, select};
use crate::store::engine::Engine;

type Result<T> = std::result::Result<T, Failure>;

/// The working tree of an opened vault.
pub(super) struct LiveVault {
    fs: Arc<Fs>,
    engine: Arc<Engine>,
    vault: PathBuf,
    host: String,
    read_only: bool,
    closed: Mutex<bool>,
}

impl std::fmt::Debug for LiveVault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveVault").field("vault", &self.vault).finish_non_exhaustive()
    }
}

impl LiveVault {
    /// `vault` is the absolute path that the high-water mark knows; `host` stands in snapshots.
    pub(super) fn new(fs: Arc<Fs>, engine: Arc<Engine>, vault: &Path, host: String, read_only: bool) -> Self {
        Self { fs, engine, vault: vault.to_path_buf(), host, read_only, closed: Mutex::new(false) }
    }

    fn create_snapshot(&self, tags: Vec<String>, force: bool) -> Result<Option<SnapshotInfo>> {
        if self.read_only {
            return Err(Failure::new(
                2,
                "the vault is mounted read-only: it has no changes to make a snapshot of",
            ));
        }
        let opts = SnapshotOpts { host: self.host.clone(), tags, force };
        // Its trees need room even when the disk is full: that is what the reserve is for. A failed attempt changed nothing.
        let made = self.engine.with_reserve(|| create::create(&self.engine, &*self.fs, &opts))?;
        if let Some(info) = &made {
            self.note_highwater(Some((info.seq, info.id.to_hex())), true)?;
        }
        Ok(made)
    }

    fn note_highwater(&self, newest: Option<(u64, String)>, live_dirty: bool) -> Result<()> {
        Ok(open::note_highwater(&self.engine, &self.vault.to_string_lossy(), newest, live_dirty)?)
    }

    /// Notes that the chain has grown by a removal.
    fn note_newest(&self) -> Result<()> {
        self.note_highwater(self.chain()?.head().map(|info| (info.seq, info.id.to_hex())), true)
    }

    fn chain(&self) -> Result<Chain> {
        Ok(Chain::of(&self.engine)?)
    }

    /// Everything up to closing, each step tried even if one before it failed.
    fn wind_up(&self, first: &mut Option<Failure>) {
        let mut step = |what: &str, result: Result<()>| {
            if let Err(failure) = result {
                tracing::error!(error = %failure, "{what}");
                first.get_or_insert(Failure { message: format!("{what}: {}", failure.message), ..failure });
            }
        };
        step("writing what is in memory", self.fs.shutdown().map_err(Into::into));
        if self.read_only {
            return;
        }
        let snapshot = self.create_snapshot(Vec::new(), false).map(|made| match made {
            Some(info) => tracing::info!(seq = info.seq, "snapshot at unmounting"),
            None => tracing::info!("nothing changed since the last snapshot"),
        });
        step("making the snapshot of unmounting", snapshot);
        step(
            "giving back the space of packs that nothing needs",
            gc::auto(&self.engine, &*self.fs).map(|_| ()).map_err(Into::into),
        );
    }
}

/// Memory of this process that is in RAM, in bytes; `None` where /proc is not to be had.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Exit code for a snapshot that is not there.
const NOT_FOUND: u8 = 22;

fn to_json<T: serde::Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| MountError::io("report", e).into())
}

impl Served for LiveVault {
    fn tick(&self) -> Result<()> {
        Ok(self.fs.tick()?)
    }

    fn sync(&self) -> Result<()> {
        if self.read_only { Ok(()) } else { Ok(self.fs.sync_all()?) }
    }

    fn snapshot(&self, tags: Vec<String>, force: bool) -> Result<Value> {
        let made = self.create_snapshot(tags, force)?;
        to_json(&made.as_ref().map(Description::of_new))
    }

    fn snapshot_delete(&self, snapshots: &[String], force: bool) -> Result<Value> {
        let (chain, disk) = (self.chain()?, self.engine.ctx.disk.as_ref());
        let present = present_packs(disk)?;
        let mut seqs = Vec::with_capacity(snapshots.len());
        for text in snapshots {
            let selected = select::select_in(&chain, &present, text, self.engine.ctx.env.now());
            let missing = |e: select::SelectError| Failure {
                code: if matches!(e, select::SelectError::NotUnderstood(_)) { 2 } else { NOT_FOUND },
                message: e.to_string(),
                hint: Some("`strongroom snapshot list VAULT` shows them all".into()),
            };
            seqs.push(selected.map_err(missing)?.seq);
        }
        seqs.sort_unstable();
        seqs.dedup();
        let opts = DeleteOpts { host: self.host.clone(), force };
        delete::delete(&self.engine, &seqs, &opts).map_err(|error| match error {
            DeleteError::Store(error) => error.into(),
            DeleteError::NotFound(_) => Failure::new(NOT_FOUND, error.to_string()),
            DeleteError::Newest(_) => Failure {
                code: 2,
                message: error.to_string(),
                hint: Some("--force deletes it all the same".into()),
            },
        })?;
        self.note_newest()?;
        Ok(json!({ "deleted": seqs }))
    }

    fn gc(&self, dry_run: bool, dead_percent: Option<u8>) -> Result<Value> {
        let mut opts = GcOpts { host: self.host.clone(), ..GcOpts::default() };
        opts.dead_percent_min = dead_percent.unwrap_or(opts.dead_percent_min);
        if dry_run {
            return to_json(&gc::plan(&self.engine, &*self.fs, &opts)?);
        }
        let report = gc::run(&self.engine, &*self.fs, &opts)?;
        self.note_newest()?;
        to_json(&report)
    }

    fn counters(&self) -> Value {
        let fs = self.fs.counters();
        let live = self.engine.live.memory();
        let space = self.engine.space().ok();
        json!({
            "dirty_bytes": fs.dirty_bytes,
            "dirty_bytes_peak": fs.dirty_bytes_peak,
            "open_files": fs.handles,
            "written_bytes": fs.written_bytes,
            "read_bytes": fs.read_bytes,
            "failed_chunks": fs.failed_chunks,
            "uncommitted_seconds": fs.uncommitted_seconds,
            "available_bytes": space.map(|s| s.available),
            "writing": self.engine.check_poison().is_ok(),
            "memory": {
                "resident_bytes": resident_bytes(),
                "stream_buffer_bytes": fs.stream_buffer_bytes,
                "cached_block_bytes": self.engine.packs.stats().cache_bytes,
                "uncheckpointed_bytes": live.change_bytes,
                "database_page_bytes": live.page_bytes,
                "files_in_core": fs.nodes,
                "snapshot_inodes": fs.snapshot_inodes,
            },
        })
    }

    fn finish(&self, closed: &mut dyn FnMut(&Result<()>)) -> Result<()> {
        let mut done = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *done, true) {
            return Ok(());
        }
        let mut first = None;
        self.wind_up(&mut first);
        let newest = self.chain().map(|chain| chain.head().map(|info| (info.seq, info.id.to_hex())));
        let mut result = Ok(());
        self.engine.close_with(|closing| {
            result = match (first.take(), closing) {
                (Some(failure), _) => Err(failure),
                (None, Err(error)) => Err(Failure::from(error)),
                (None, Ok(())) => newest.and_then(|newest| self.note_highwater(newest, false)),
            };
            closed(&result);
        });
        result
    }
}
