//! `clone --dry-run` and `pull --dry-run`: what would be fetched, and whether there is room for it.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::error::{CliError, CliResult, ExitCode};
use super::output::{Output, human_bytes};
use crate::config::state_dir;
use crate::fetch::{FetchOptions, RemoteDisk, Survey};
use crate::remote::Remote;

#[derive(Serialize)]
struct Line<'a> {
    vault: String,
    remote: &'a str,
    url: &'a str,
    /// As `pull` says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<&'static str>,
    #[serde(flatten)]
    survey: &'a Survey,
    available_bytes: u64,
    dry_run: bool,
}

/// A remote as a directory, to look at its snapshots; nothing of its packs is read.
///
/// # Errors
/// When nothing can be written below the state directory.
pub(super) fn look_at(remote: &Arc<dyn Remote>, jobs: u8) -> CliResult<Arc<RemoteDisk>> {
    let mut options = FetchOptions::new(state_dir().join("cache"));
    options.jobs = usize::from(jobs);
    Ok(RemoteDisk::new(Arc::clone(remote), &options)?)
}

/// Bytes that are free where a directory is, or will be.
pub(super) fn free_space(dir: &Path) -> std::io::Result<u64> {
    let dir = std::path::absolute(dir)?;
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(&dir);
    let stat = rustix::fs::statvfs(there)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Says what would be fetched from the remote with this name and URL.
///
/// # Errors
/// What can't be asked or printed.
pub(super) fn say(
    vault: &Path,
    (remote, url): (&str, &str),
    was: Option<&'static str>,
    survey: &Survey,
    out: &Output,
) -> CliResult {
    let available_bytes = free_space(vault)
        .map_err(|e| CliError::new(ExitCode::Io, format!("{}: {e}", super::show_path(vault))))?;
    if out.is_json() {
        let vault = super::json_path(vault);
        out.json(&Line { vault, remote, url, was, survey, available_bytes, dry_run: true })?;
    } else {
        let newest = survey.latest_complete.map_or("no snapshot is complete there".to_string(), |seq| {
            format!("snapshot {seq} is the newest that is complete there")
        });
        out.line(&format!(
            "would fetch {} packs, {} snapshot files ({}); {} are free in {}; {} packs are here; {newest}",
            survey.packs,
            survey.chain_files,
            human_bytes(survey.bytes),
            human_bytes(available_bytes),
            super::show_path(vault),
            survey.packs_there,
        ))?;
    }
    for text in &survey.damaged {
        out.warning(&format!("at the remote: {}", super::show_bytes(text.as_bytes())));
    }
    if survey.bytes > available_bytes {
        out.warning("there is not enough room for that");
        return Ok(ExitCode::NoSpace);
    }
    Ok(if survey.damaged.is_empty() { ExitCode::Ok } else { ExitCode::RemoteAlarm })
}
