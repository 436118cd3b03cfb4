//! The engine below the filesystem: where bytes go and how they become durable.

pub mod blockfile;
pub mod error;
pub mod live;
pub mod poison;
