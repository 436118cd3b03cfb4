//! Strongroom: an encrypted, deduplicating, snapshotting directory for backup jobs that already work.

pub mod disk;
