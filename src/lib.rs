//! Strongroom: an encrypted, deduplicating, snapshotting directory for backup jobs that already work.

pub mod cli;
pub mod config;
pub mod crypto;
pub mod disk;
pub mod env;
pub mod fetch;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod mount;
mod private;
pub mod remote;
pub mod ship;
pub mod snapshot;
pub mod store;
