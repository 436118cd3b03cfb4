//! `status`: is it mounted, by whom, is anything wrong.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::error::{CliError, CliResult, ExitCode};
use super::output::Output;
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
        vault: super::show_path(vault),
        state,
        pid,
        mountpoint: mountpoint.map(|path| super::show_path(path)),
        last_error,
        last_unmount_clean: clean,
        daemon,
    };
    Ok((report, code))
}

fn print(report: &StatusReport, out: &Output) -> CliResult<()> {
    let at = report.mountpoint.as_ref().map_or(String::new(), |path| format!(" at {path}"));
    let by = report.pid.map_or(String::new(), |pid| format!(" by process {pid}"));
    out.line(&format!("{}: {}{at}{by}", report.vault, report.state))?;
    if let Some(text) = &report.last_error {
        out.line(&format!("  last error: {}", super::show_bytes(text.as_bytes())))?;
    }
    if report.last_unmount_clean == Some(false) {
        out.line("  it was not unmounted cleanly; the next mount recovers what was synced")?;
    }
    if let Value::Object(fields) = &report.daemon {
        for (name, value) in fields {
            out.line(&format!("  {name}: {}", super::show_bytes(value.to_string().as_bytes())))?;
        }
    }
    Ok(())
}
