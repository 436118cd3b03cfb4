//! `status`: is it mounted, by whom, is anything wrong, how do its remotes stand.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::error::{CliError, CliResult, ExitCode};
use super::output::{Output, human_bytes};
use crate::disk::{Disk, RealDisk};
use crate::mount::control::{self, Request};
use crate::mount::holder::{self, Holder};
use crate::mount::mountpoint;
use crate::mount::status::Status;
use crate::remote::Settings;
use crate::ship::{self, Behind, Last, Remotes};

/// Arguments of `status`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom status /encrypted
  strongroom status /decrypted --json
  strongroom status                     every vault that is mounted here

Needs no key, and asks no remote: it says how the last ship to each ended, and what is new since.
Exit status: 0 fine, 20 writing stopped after a failure or the last unmount was not clean, 21 a
mount whose daemon is gone, 24 the last ship to a remote failed or could not do everything, 25 it
found something there that should not be.")]
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
    remotes: Vec<RemoteReport>,
}

/// How a remote stands, as far as it is known here.
#[derive(Serialize)]
struct RemoteReport {
    name: String,
    url: String,
    /// When everything was shipped to it last.
    shipped: Option<String>,
    /// When that was tried last.
    tried: Option<String>,
    /// Sequence of the newest snapshot or removal that it had then.
    newest: Option<u64>,
    /// Sequence of the newest snapshot that it had with everything it needs.
    complete: Option<u64>,
    /// What was made since; not known where the vault's own snapshots can't be read.
    behind: Option<Behind>,
    /// The last ship, or the last verification, found something there that should not be.
    is_alarm: bool,
    /// What it found to be wrong.
    wrong: Vec<String>,
    /// When all objects there were verified last, with `ship --verify`.
    verified: Option<String>,
    /// So many were found not to be what was shipped.
    damaged_there: u64,
    /// Why it failed.
    error: Option<String>,
}

impl RemoteReport {
    fn code(&self) -> ExitCode {
        match self {
            Self { is_alarm: true, .. } => ExitCode::RemoteAlarm,
            Self { error: Some(_), .. } => ExitCode::Remote,
            Self { wrong, .. } if !wrong.is_empty() => ExitCode::Remote,
            _ => ExitCode::Ok,
        }
    }
}

/// How all remotes of a vault stand. What can't be known of one of them is said with it, and hides no other.
fn remotes(disk: &dyn Disk) -> CliResult<Vec<RemoteReport>> {
    let remotes = Remotes::load(disk)?.remotes;
    if remotes.is_empty() {
        return Ok(Vec::new());
    }
    let chain = ship::chain_of(disk);
    let report = |(name, settings): (String, Settings)| {
        let known = ship::load_last(disk, &name, &settings.url);
        let (last, mut error) = match known {
            Ok(last) => (last.unwrap_or_default(), None),
            Err(error) => (Last::default(), Some(error.to_string())),
        };
        let behind = match &chain {
            Ok(chain) => ship::behind(disk, chain, last.complete).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        error = error.or(last.error);
        if let Err(text) = &behind {
            error.get_or_insert_with(|| text.clone());
        }
        let Last { shipped, tried, newest, complete, is_alarm, wrong, verified, damaged_there, .. } = last;
        let (url, behind) = (settings.url, behind.ok());
        RemoteReport {
            name,
            url,
            shipped,
            tried,
            newest,
            complete,
            behind,
            is_alarm: is_alarm || damaged_there > 0,
            wrong,
            verified,
            damaged_there,
            error,
        }
    };
    Ok(remotes.into_iter().map(report).collect())
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
        match report(&vault) {
            Ok((report, code)) => {
                worst = worst.and(code);
                reports.push(report);
            }
            Err(error) if args.target.is_some() => return Err(error),
            // One vault must not hide the others.
            Err(error) => {
                worst = worst.and(error.code);
                out.error(&error.context(&super::show_path(&vault)));
            }
        }
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
    let disk = RealDisk::open(vault)?;
    let file = Status::read(&disk)?;
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
        remotes: remotes(&disk)?,
    };
    let code = report.remotes.iter().fold(code, |code, remote| code.and(remote.code()));
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
    for remote in &report.remotes {
        print_remote(remote, out)?;
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

fn print_remote(remote: &RemoteReport, out: &Output) -> CliResult<()> {
    let shown = |text: &str| super::show_bytes(text.as_bytes());
    let has = match (&remote.shipped, remote.complete) {
        (None, _) => "nothing was shipped to it yet".to_string(),
        (Some(at), None) => format!("shipped to at {at}, no snapshot is complete there"),
        (Some(at), Some(seq)) => format!("snapshot {seq} is complete there, shipped to at {at}"),
    };
    let behind = match remote.behind {
        None => String::new(),
        Some(Behind { snapshots: 0, .. }) => "; nothing is missing".into(),
        Some(behind) => {
            format!(
                "; behind by {} snapshots, {} in {} packs",
                behind.snapshots,
                human_bytes(behind.bytes),
                behind.packs
            )
        }
    };
    out.line(&format!("  remote {}: {has}{behind}", remote.name))?;
    if let Some(error) = &remote.error {
        let at = remote.tried.as_ref().map_or(String::new(), |at| format!(" ({at})"));
        out.line(&format!("    failed{at}: {}", shown(error)))?;
    }
    for wrong in &remote.wrong {
        out.line(&format!("    found by the last ship: {}", shown(wrong)))?;
    }
    if remote.damaged_there > 0 {
        let n = remote.damaged_there;
        out.line(&format!("    found by ship --verify: {n} objects there are not what was shipped"))?;
    }
    Ok(())
}
