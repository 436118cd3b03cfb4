//! What every part of the engine needs to know about the vault it works on.

use std::sync::Arc;

use super::config::EngineConfig;
use super::poison::Poison;
use crate::crypto::VaultKeys;
use crate::disk::Disk;
use crate::env::Env;
use crate::format::{ChunkerParams, Cipher, VaultId};

/// One unlocked vault: its disk, its keys, its settings. Shared by all parts of the engine.
pub struct Ctx {
    /// Where the vault's files are.
    pub disk: Arc<dyn Disk>,
    /// Clock and randomness.
    pub env: Arc<dyn Env>,
    /// Keys derived from the root secret.
    pub keys: Arc<VaultKeys>,
    /// The vault that everything sealed is bound to.
    pub vault_id: VaultId,
    /// Seals pack frames.
    pub cipher: Cipher,
    /// How content is cut.
    pub chunker: ChunkerParams,
    /// Set by the first failed write; nothing is written after that.
    pub poison: Arc<Poison>,
    /// Settings.
    pub cfg: EngineConfig,
}
