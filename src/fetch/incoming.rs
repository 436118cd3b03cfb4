//! Where things stand in a vault until they are whole.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Disk, DiskFile, DiskLock, OpenMode, parent};
use crate::format::chain::CHAIN_FILE_LEN_MAX;
use crate::snapshot::chain::{Chain, DIR};
use crate::store::error::StoreError;

use super::error::Result;

/// Folder of files that are being written. `live/` is never copied anywhere.
const INCOMING: &str = "live/incoming";
/// Folder of chain files that were checked, and wait for their packs.
pub(super) const STAGED: &str = "live/incoming/snapshots";
/// Whoever holds it writes in [`INCOMING`].
const LOCK: &str = "live/incoming.lock";

/// The right to bring files into a vault; others that want it are refused while this exists.
#[derive(Debug)]
pub(super) struct Incoming {
    disk: Arc<dyn Disk>,
    next: AtomicU64,
    _lock: Box<dyn DiskLock>,
}

fn failed(what: &str, path: &str, e: io::Error) -> StoreError {
    StoreError::io(format!("{what} {path}"), e)
}

/// What became of a file that was to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It stands under its name, whole and durable.
    Yes,
    /// It was not what it should be, for this reason; nothing is left of it.
    No(String),
}

impl Incoming {
    /// Makes everything ready, and removes what an interrupted run had begun.
    pub(super) fn open(disk: &Arc<dyn Disk>) -> Result<Self> {
        disk.create_dir_all(STAGED).map_err(|e| failed("making", STAGED, e))?;
        let lock = disk.lock(LOCK).map_err(|e| failed("locking", LOCK, e))?;
        let Some(lock) = lock else {
            let holder = "another process that fetches into it".into();
            return Err(StoreError::Locked { holder }.into());
        };
        for item in disk.list(INCOMING).map_err(|e| failed("listing", INCOMING, e))? {
            if !item.is_dir {
                let path = format!("{INCOMING}/{}", item.name);
                disk.remove(&path).map_err(|e| failed("removing", &path, e))?;
            }
        }
        Ok(Self { disk: Arc::clone(disk), next: AtomicU64::new(0), _lock: lock })
    }

    /// Writes a file under a scratch name and lets `fill` write and check it. If it was right it is made durable and gets the
    /// name `path`, in the place of what has it with `replace`, else only if nothing has it.
    pub(super) fn write(
        &self,
        path: &str,
        replace: bool,
        fill: &mut dyn FnMut(&dyn DiskFile) -> Result<Written>,
    ) -> Result<Written> {
        let scratch = format!("{INCOMING}/{}.part", self.next.fetch_add(1, Ordering::Relaxed));
        let file =
            self.disk.open(&scratch, OpenMode::CreateNew).map_err(|e| failed("making", &scratch, e))?;
        let done = match fill(file.as_ref()) {
            Ok(Written::Yes) => self.name(file.as_ref(), &scratch, path, replace).map(|()| Written::Yes),
            other => other,
        };
        if !matches!(done, Ok(Written::Yes))
            && let Err(error) = self.disk.remove(&scratch)
            && error.kind() != io::ErrorKind::NotFound
        {
            // The next run removes it.
            tracing::debug!(scratch, %error, "a scratch file stays");
        }
        done
    }

    fn name(&self, file: &dyn DiskFile, scratch: &str, path: &str, replace: bool) -> Result<()> {
        let dir = parent(path);
        file.sync_data().map_err(|e| failed("writing", path, e))?;
        self.disk.create_dir_all(dir).map_err(|e| failed("making", dir, e))?;
        let named = match replace {
            true => self.disk.rename(scratch, path),
            false => self.disk.rename_new(scratch, path),
        };
        named.and_then(|()| self.disk.sync_dir(dir)).map_err(|e| failed("naming", path, e))?;
        Ok(())
    }

    /// Names of the chain files that were checked by this run or an earlier one.
    pub(super) fn staged(&self) -> Result<BTreeSet<String>> {
        let items = self.disk.list(STAGED).map_err(|e| failed("listing", STAGED, e))?;
        Ok(items.into_iter().map(|item| item.name).collect())
    }

    /// The path of a chain file that waits for its packs.
    pub(super) fn staged_path(name: &str) -> String {
        format!("{STAGED}/{name}")
    }

    /// Gives the files of a chain that wait here their names in the vault, oldest first, and removes the others: the chain
    /// does not need them. Returns how many got their names.
    pub(super) fn promote(&self, chain: &Chain) -> Result<u64> {
        let wanted: BTreeSet<String> = chain.files().map(|info| info.name()).collect();
        let mut promoted = 0;
        self.disk.create_dir_all(DIR).map_err(|e| failed("making", DIR, e))?;
        for name in self.staged()? {
            let (from, to) = (Self::staged_path(&name), format!("{DIR}/{name}"));
            if wanted.contains(&name) {
                match self.disk.rename_new(&from, &to) {
                    Ok(()) => promoted += 1,
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.replace_damaged(&from, &to)?,
                    Err(e) => return Err(failed("naming", &to, e).into()),
                }
            } else {
                self.disk.remove(&from).map_err(|e| failed("removing", &from, e))?;
            }
        }
        for dir in [DIR, STAGED] {
            self.disk.sync_dir(dir).map_err(|e| failed("syncing", dir, e))?;
        }
        Ok(promoted)
    }

    /// Puts a chain file in the place of one that has its name and not its bytes; one that has both stays.
    fn replace_damaged(&self, from: &str, to: &str) -> Result<()> {
        let read = |path: &str| self.disk.read_file(path, CHAIN_FILE_LEN_MAX as u64);
        let ours = read(from).map_err(|e| failed("reading", from, e))?;
        // What can't be read is not what its name says either.
        match read(to).is_ok_and(|theirs| theirs == ours) {
            true => self.disk.remove(from).map_err(|e| failed("removing", from, e))?,
            false => self.disk.rename(from, to).map_err(|e| failed("naming", to, e))?,
        }
        Ok(())
    }
}
