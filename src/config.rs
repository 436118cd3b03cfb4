//! Settings, resolved once: defaults, then the environment, then flags.

use std::path::PathBuf;

use crate::store::config::EngineConfig;

/// Where state outside the vault lives: `$STATE_DIRECTORY`, else `/var/lib/strongroom` for root, else
/// `$XDG_STATE_HOME/strongroom`, else `~/.local/state/strongroom`.
#[must_use]
pub fn state_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("STATE_DIRECTORY") {
        return dir;
    }
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/strongroom");
    }
    set("XDG_STATE_HOME")
        .unwrap_or_else(|| set("HOME").unwrap_or_else(|| PathBuf::from("/")).join(".local/state"))
        .join("strongroom")
}

/// The engine's sizes and threads for this machine.
#[must_use]
pub fn engine_config() -> EngineConfig {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    EngineConfig { workers: cores.clamp(2, 16), ..EngineConfig::default() }
}
