//! Strongroom: an encrypted, deduplicating, snapshotting directory for backup jobs that already work.

pub mod crypto;
pub mod disk;
pub mod env;
pub mod format;
pub mod snapshot;
pub mod store;
