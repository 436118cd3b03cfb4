//! The engine below the filesystem: where bytes go and how they become durable.

pub mod blockcache;
pub mod blockfile;
pub mod chunker;
pub mod codec;
pub mod cold;
pub mod config;
pub mod ctx;
pub mod engine;
pub mod error;
pub mod fuzz;
pub mod header;
pub mod highwater;
pub mod live;
mod lru;
pub mod packs;
pub mod poison;
pub mod pool;
pub mod records;

pub use chunker::Chunker;
pub use codec::Effort;
pub use cold::ColdPacks;
pub use config::EngineConfig;
pub use ctx::Ctx;
pub use packs::{ChunkSource, Packs};
