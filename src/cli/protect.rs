//! `protect` and `is-mounted`: so that a job never writes plaintext under an unmounted mountpoint (promise C4).

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::error::{CliResult, ExitCode};
use super::output::Output;
use crate::mount::mountpoint::{self, Protection};

/// Arguments of `protect`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom protect /decrypted
  strongroom protect --undo /decrypted

With the immutable flag (ext4, xfs, btrfs) even root's jobs fail while nothing is mounted there. Filesystems
without it get mode 0, which stops everybody but root.")]
pub(crate) struct ProtectArgs {
    /// The mountpoint, not mounted
    mountpoint: PathBuf,
    /// Take the protection away
    #[arg(long)]
    undo: bool,
}

/// Arguments of `is-mounted`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  strongroom is-mounted /decrypted || exit 1

Exit status: 0 a vault is mounted there and answers, 1 not mounted, 21 mounted but dead.")]
pub(crate) struct IsMountedArgs {
    /// The mountpoint
    mountpoint: PathBuf,
}

#[derive(Serialize)]
struct ProtectReport {
    mountpoint: String,
    protection: &'static str,
}

#[derive(Serialize)]
struct IsMountedReport {
    mountpoint: String,
    mounted: bool,
}

/// Runs `protect`.
pub(crate) fn run(args: &ProtectArgs, out: &Output) -> CliResult {
    let shown = super::show_path(&args.mountpoint);
    let (name, text) = if args.undo {
        mountpoint::unprotect(&args.mountpoint)?;
        ("none", format!("{shown} is an ordinary directory again"))
    } else {
        match mountpoint::protect(&args.mountpoint)? {
            Protection::Immutable => {
                ("immutable", format!("{shown} refuses writes while nothing is mounted there"))
            }
            Protection::Already => ("already", format!("{shown} was protected already")),
            Protection::ModeZero => {
                out.warning("this filesystem has no immutable flag: root can still write there while nothing is mounted");
                ("mode-zero", format!("{shown} has mode 0 now"))
            }
        }
    };
    if out.is_json() {
        out.json(&ProtectReport { mountpoint: super::json_path(&args.mountpoint), protection: name })?;
    } else {
        out.note(&text);
    }
    Ok(ExitCode::Ok)
}

/// Runs `is-mounted`.
pub(crate) fn run_is_mounted(args: &IsMountedArgs, out: &Output) -> CliResult {
    let there = mountpoint::find(&args.mountpoint)?.is_some();
    let answers = mountpoint::is_mounted(&args.mountpoint)?;
    if out.is_json() {
        out.json(&IsMountedReport { mountpoint: super::json_path(&args.mountpoint), mounted: answers })?;
    }
    Ok(match (there, answers) {
        (_, true) => ExitCode::Ok,
        (true, false) => ExitCode::Mountpoint,
        (false, false) => ExitCode::Failure,
    })
}
