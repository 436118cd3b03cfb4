//! What the engine can be told: sizes, threads, limits. Resolved once, above the engine.

use super::live::LiveConfig;

/// Settings of the engine. [`EngineConfig::default`] suits a backup host with a few cores.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// A pack is closed once it has this many bytes. At most [`PACK_BYTES_MAX`] is honoured.
    pub pack_bytes: u64,
    /// Threads that hash, compress and seal.
    pub workers: usize,
    /// Bytes of decrypted blocks kept for readers.
    pub cache_bytes: usize,
    /// Bytes that writers may be ahead of the packs before they have to wait.
    pub dirty_bytes_max: u64,
    /// zstd level where we wait for the writer, 1 to 19.
    pub zstd_level: i32,
    /// Whether threads may be started. Without them everything runs in the caller, in a reproducible order.
    pub background: bool,
    /// Bytes of the disk kept back for deletes, commits and unmount.
    pub reserve_bytes: u64,
    /// Settings of the live database.
    pub live: LiveConfig,
}

/// The largest size at which a pack is closed: half of what the format allows, since a pack grows past the
/// mark by the chunks that were being sealed when it was reached, by its footer and by its padding.
pub const PACK_BYTES_MAX: u64 = 512 << 20;

/// The most threads that [`EngineConfig::default`] starts for sealing.
const WORKERS_MAX: usize = 8;

impl Default for EngineConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        EngineConfig {
            pack_bytes: 64 << 20,
            workers: cores.clamp(1, WORKERS_MAX),
            cache_bytes: 64 << 20,
            dirty_bytes_max: 64 << 20,
            zstd_level: 3,
            background: true,
            reserve_bytes: 64 << 20,
            live: LiveConfig::default(),
        }
    }
}
