//! What a mount tells its adapter.

use std::sync::Arc;

use super::activity::Activity;

/// What an adapter needs besides the filesystem.
pub struct AdapterOptions {
    /// Counts what goes on.
    pub activity: Arc<Activity>,
    /// What the root answers when asked for its vault (see `mount::holder::VAULT_XATTR`); empty: nothing.
    pub vault: Vec<u8>,
    /// Name of that attribute.
    pub vault_xattr: &'static str,
    /// Poisons the vault after a panic.
    pub poison: Box<dyn Fn(&str) + Send + Sync>,
    /// The mount shows one snapshot only.
    pub snapshot: bool,
}

impl std::fmt::Debug for AdapterOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterOptions").finish_non_exhaustive()
    }
}
