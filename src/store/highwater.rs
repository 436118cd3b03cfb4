//! The high-water mark (promise P6): what this host saw last of a vault, kept outside of it.
//!
//! From inside a vault a rolled-back copy looks whole: its newest files are simply not there. So each host remembers, in its
//! own state directory, the newest chain file (sequence and id), the header's generation and the live state's generation
//! that it saw. A vault that is behind its mark is refused unless the rollback is accepted by name.
//! Losing the state directory loses this protection and nothing else.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::format::{SnapshotId, VaultId};
use crate::store::error::{Result, StoreError};

/// The largest mark file that is read.
const MARK_BYTES_MAX: u64 = 64 << 10;

/// What was seen last of one vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HighWater {
    /// The vault, in hex.
    pub vault_id: String,
    /// Where the vault was when it was last written by this host; a copy elsewhere is judged more mildly when it is only read.
    pub path: String,
    /// The header's generation.
    pub header_generation: u64,
    /// Sequence of the newest chain file, 0 if there was none.
    pub seq: u64,
    /// Id of that chain file in hex, empty if there was none.
    pub id: String,
    /// The live state's generation.
    pub live_generation: u64,
    /// Whether the live state held changes that no snapshot has.
    pub live_dirty: bool,
}

impl HighWater {
    /// The id of the newest chain file seen, if there was one.
    pub fn snapshot_id(&self) -> Option<SnapshotId> {
        SnapshotId::from_hex(&self.id)
    }
}

/// The place where the mark of one vault is kept: a file in the state directory.
#[derive(Clone, Debug)]
pub struct HighWaterStore {
    disk: Arc<dyn Disk>,
    name: String,
}

impl HighWaterStore {
    /// A store for `vault` in the state directory that `disk` shows.
    pub fn new(disk: Arc<dyn Disk>, vault: &VaultId) -> Self {
        Self { disk, name: format!("highwater-{}.json", vault.to_hex()) }
    }

    /// Reads the mark. `None` if this host has never seen the vault.
    ///
    /// # Errors
    /// When the file can't be read or makes no sense: a mark that can't be believed must not pass for "never seen".
    pub fn load(&self) -> Result<Option<HighWater>> {
        let bytes = match self.disk.read_file(&self.name, MARK_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StoreError::Io {
                    what: format!("reading the high-water mark {}", self.name),
                    source,
                });
            }
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            StoreError::Corrupt(format!(
                "the high-water mark {} in the state directory is damaged ({e}); remove it to go on without rollback protection",
                self.name
            ))
        })
    }

    /// Replaces the mark, durably.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn store(&self, mark: &HighWater) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(mark)
            .map_err(|e| StoreError::Corrupt(format!("encoding the high-water mark: {e}")))?;
        self.disk.write_file_atomic(&self.name, &bytes).map_err(|source| StoreError::Io {
            what: format!("writing the high-water mark {}", self.name),
            source,
        })
    }
}
