//! `status`: is it mounted, by whom, is anything wrong.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::error::{CliError, CliResult, ExitCode};
use super::output::{Output, human_bytes};
use crate::disk::RealDisk;
use crate::mount::control::{self, Request};
use crate::mount::holder::{self, Holder};
use crate::mount::mountpoint;
use crate::mount::status::Status;

/// Arguments of `status`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom status /encrypted
  strongroom status /decrypted --json
  strongroom status                     every vault that is mounted here

Needs no key. Exit status: 0 fine, 20 writing stopped after a failure or the last unmount was not clean,
21 a mount whose daemon is gone.")]
pub(crate) struct StatusArgs {
    /// A vault or a mountpoint; without it, all that are mounted
    target: Option<PathBuf>,
}

#[derive(Serialize)]
struct StatusReport {
    vault: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mountpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_unmount_clean: Option<bool>,
    /// What the daemon says of itself: space, dirty data, snapshots, errors.
    #[serde(skip_serializing_if = "Value::is_null")]
    daemon: Value,
}

/// Runs `status`.
pub(crate) fn run(args: &StatusArgs, out: &Output) -> CliResult {
    let vaults = match &args.target {
        Some(target) => vec![vault_of(target)?],
        None => mounted_vaults()?,
    };
    if vaults.is_empty() {
        out.note("nothing is mounted");
    }
    let mut worst = ExitCode::Ok;
    let mut reports = Vec::new();
    for vault in vaults {
        let (report, code) = report(&vault)?;
        if code != ExitCode::Ok {
            worst = code;
        }
        reports.push(report);
    }
    if out.is_json() {
        match (reports.first(), &args.target) {
            (Some(report), Some(_)) => out.json(report)?,
            _ => out.json(&reports)?,
        }
    } else {
        for report in &reports {
            print(report, out)?;
        }
    }
    Ok(worst)
}

/// The vault that a name means: itself, or what is mounted there.
fn vault_of(target: &Path) -> CliResult<PathBuf> {
    if let Some(line) = mountpoint::find(target)? {
        return holder::vault_of(&line).ok_or_else(|| {
            CliError::new(
                ExitCode::Mountpoint,
                format!("can't find the vault behind {}", super::show_path(target)),
            )
            .hint("the mount may be dead; `strongroom status VAULT` says more")
        });
    }
    super::session::open_header(target)?;
    Ok(target.to_path_buf())
}

fn mounted_vaults() -> CliResult<Vec<PathBuf>> {
    let mut vaults: Vec<PathBuf> = crate::mount::mountinfo::mounts()?
        .iter()
        .filter(|line| line.is_ours())
        .filter_map(holder::vault_of)
        .collect();
    vaults.sort();
    vaults.dedup();
    Ok(vaults)
}

fn report(vault: &Path) -> CliResult<(StatusReport, ExitCode)> {
    let holder = holder::probe(vault)?;
    let file = RealDisk::open(vault).and_then(|disk| Status::read(&disk))?;
    let (state, pid, mountpoint) = match &holder {
        Holder::Free => ("free", None, None),
        Holder::Dead { mountpoint } => ("dead", None, Some(mountpoint)),
        Holder::Starting { pid } => ("starting", Some(*pid), None),
        Holder::Mounted { pid, mountpoint } => ("mounted", Some(*pid), Some(mountpoint)),
        Holder::Finishing { pid } => ("finishing", Some(*pid), None),
        Holder::Other { pid, .. } => ("busy", *pid, None),
    };
    let daemon = match &holder {
        Holder::Mounted { .. } => match control::call(vault, &Request::Status, &mut |_| {})? {
            Some(Ok(value)) => value,
            Some(Err(failure)) => return Err(failure.into()),
            None => Value::Null,
        },
        _ => Value::Null,
    };
    let last_error = file.as_ref().and_then(|status| status.last_error.clone());
    let clean = match &holder {
        Holder::Free => file.as_ref().map(|status| status.clean),
        _ => None,
    };
    let code = match &holder {
        Holder::Dead { .. } => ExitCode::Mountpoint,
        _ if last_error.is_some() || clean == Some(false) => ExitCode::Io,
        _ => ExitCode::Ok,
    };
    let report = StatusReport {
        vault: super::json_path(vault),
        state,
        pid,
        mountpoint: mountpoint.map(|path| super::json_path(path)),
        last_error,
        last_unmount_clean: clean,
        daemon,
    };
    Ok((report, code))
}

fn print(report: &StatusReport, out: &Output) -> CliResult<()> {
    let shown = |text: &str| super::show_bytes(text.as_bytes());
    let at = report.mountpoint.as_ref().map_or(String::new(), |path| format!(" at {}", shown(path)));
    let by = report.pid.map_or(String::new(), |pid| format!(" by process {pid}"));
    let of = |group: &str, name: &str| report.daemon.get(group).and_then(|g| g.get(name)).cloned();
    let number = |group: &str, name: &str| of(group, name).and_then(|v| v.as_u64()).unwrap_or(0);
    let since =
        of("status", "since").and_then(|v| Some(format!(" since {}", v.as_str()?))).unwrap_or_default();
    let read_only = if of("status", "read_only") == Some(Value::Bool(true)) { ", read-only" } else { "" };
    out.line(&format!("{}: {}{at}{by}{since}{read_only}", shown(&report.vault), report.state))?;
    if let Some(text) = &report.last_error {
        out.line(&format!("  last error: {}", shown(text)))?;
    }
    if report.last_unmount_clean == Some(false) {
        out.line("  it was not unmounted cleanly; the next mount recovers what was synced")?;
    }
    if report.state == "dead" {
        out.line(
            "  its process was killed; `strongroom mount` removes the dead mount and recovers what was synced",
        )?;
    }
    if report.daemon.is_object() {
        if of("counters", "writing") == Some(Value::Bool(false)) {
            out.line("  writing has stopped after a failure; unmount and mount it again")?;
        }
        let bytes = |name: &str| human_bytes(number("counters", name));
        out.line(&format!(
            "  room for {}; {} in memory not stored yet, {} s since the last commit",
            bytes("available_bytes"),
            bytes("dirty_bytes"),
            number("counters", "uncommitted_seconds")
        ))?;
        out.line(&format!(
            "  {} written and {} read since it was mounted; {} open files, idle for {} s, {} errors",
            bytes("written_bytes"),
            bytes("read_bytes"),
            number("activity", "open_handles"),
            number("activity", "idle_seconds"),
            number("activity", "errors")
        ))?;
    }
    Ok(())
}
