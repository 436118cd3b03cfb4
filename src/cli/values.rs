//! Values on the command line: sizes, speeds, times, paths.

use std::path::PathBuf;
use std::time::Duration;

use crate::mount::options::parse_duration;
use crate::remote::parse_speed;

/// Reads a speed.
pub(super) fn speed(text: &str) -> Result<u64, String> {
    parse_speed(text).ok_or_else(|| "a speed is a number of bytes a second, with k, M or G: 500k, 10M".into())
}

/// Reads a size.
pub(super) fn size(text: &str) -> Result<u64, String> {
    parse_speed(text).ok_or_else(|| "a size is a number of bytes, with k, M or G: 500M, 10G".into())
}

/// Parses durations such as `90s`, `15m`, `2h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("{text:?} is no duration: give 90s, 15m, 2h or 1d"))
}

/// An absolute path, since settings are read from anywhere.
pub(super) fn absolute(path: Option<&PathBuf>) -> Option<PathBuf> {
    path.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()))
}
