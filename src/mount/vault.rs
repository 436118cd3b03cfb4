//! A vault as a mount serves it: the working tree and its engine, or one snapshot.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::error::{Failure, MountError};
use super::runtime::Served;
use crate::fs::Fs;
use crate::snapshot::chain::{self, Chain};
use crate::snapshot::create::{SnapshotInfo, SnapshotOpts};
use crate::snapshot::{create, delete, gc, open, select};
use crate::store::engine::Engine;
use crate::store::error::StoreError;

type Result<T> = std::result::Result<T, Failure>;

/// The working tree of an opened vault.
pub struct LiveVault {
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
    pub fn new(fs: Arc<Fs>, engine: Arc<Engine>, vault: &Path, host: String, read_only: bool) -> Self {
        Self { fs, engine, vault: vault.to_path_buf(), host, read_only, closed: Mutex::new(false) }
    }

    fn create_snapshot(&self, tags: Vec<String>, force: bool) -> Result<Option<SnapshotInfo>> {
        if self.read_only {
            return Err(Failure::new(2, "the vault is mounted read-only: it has no changes to make a snapshot of"));
        }
        let opts = SnapshotOpts { host: self.host.clone(), tags, force };
        let made = create::create(&self.engine, &*self.fs, &opts)?;
        if let Some(info) = &made {
            self.note_highwater(Some((info.seq, info.id.to_hex())), true)?;
        }
        Ok(made)
    }

    fn note_highwater(&self, newest: Option<(u64, String)>, live_dirty: bool) -> Result<()> {
        Ok(open::note_highwater(&self.engine, &self.vault.to_string_lossy(), newest, live_dirty)?)
    }

    fn chain(&self) -> Result<Chain> {
        Ok(Chain::load(self.engine.ctx.disk.as_ref(), &self.engine.header)?)
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
        step("giving back the space of packs that nothing needs", gc::auto(&self.engine).map(|_| ()).map_err(Into::into));
    }
}

/// A snapshot as JSON.
fn describe(info: &SnapshotInfo) -> Value {
    json!({
        "seq": info.seq,
        "id": info.id.to_hex(),
        "time": info.time.secs,
        "host": info.host,
        "tags": info.tags,
        "files": info.root.files,
        "dirs": info.root.dirs,
        "others": info.root.others,
        "bytes": info.root.bytes,
    })
}

impl Served for LiveVault {
    fn tick(&self) -> Result<()> {
        Ok(self.fs.tick()?)
    }

    fn sync(&self) -> Result<()> {
        if self.read_only { Ok(()) } else { Ok(self.fs.sync_all()?) }
    }

    fn snapshot(&self, tags: Vec<String>, force: bool) -> Result<Value> {
        Ok(self.create_snapshot(tags, force)?.as_ref().map_or(Value::Null, describe))
    }

    fn snapshot_delete(&self, snapshots: &[String]) -> Result<Value> {
        let chain = self.chain()?;
        let mut seqs = Vec::with_capacity(snapshots.len());
        for text in snapshots {
            seqs.push(text.parse::<u64>().map_err(|_| Failure::new(2, format!("{text:?} is no snapshot number")))?);
        }
        drop(chain);
        delete::delete(&self.engine, &seqs)?;
        Ok(json!({ "deleted": seqs }))
    }

    fn gc(&self, dry_run: bool) -> Result<Value> {
        let plan = gc::plan(&self.engine)?;
        if dry_run { Ok(json!({ "plan": plan.to_string() })) } else { Ok(json!({ "done": gc::execute(&self.engine, plan)?.to_string() })) }
    }

    fn counters(&self) -> Value {
        let fs = self.fs.counters();
        json!({ "dirty_bytes": fs.dirty_bytes })
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
