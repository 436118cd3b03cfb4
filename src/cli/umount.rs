//! `umount` and `wait`: nothing is left to write when they return.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::error::{CliError, CliResult, ExitCode};
use super::output::Output;
use super::values::duration;
use crate::mount::holder::{self, Holder, UmountOptions};

/// Arguments of `umount`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom umount /decrypted
  strongroom umount /encrypted          the vault's name works too

Plain umount(8) and `fusermount3 -u` work as well, but return before the daemon has finished: follow
them with `strongroom wait VAULT` before other tools copy the vault.")]
pub(crate) struct UmountArgs {
    /// The mountpoint, or its vault
    target: PathBuf,
    /// Detach at once even if files are open, and don't wait
    #[arg(short, long)]
    lazy: bool,
    /// Give up waiting after DURATION; the daemon goes on
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
}

/// Arguments of `wait`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  umount /decrypted && strongroom wait /encrypted && rsync -a --exclude live/ /encrypted/ host:/offsite/

A vault that is still mounted is not waited for: that fails with status 16.")]
pub(crate) struct WaitArgs {
    /// The vault
    vault: PathBuf,
    /// Give up after DURATION
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
}

/// Says on standard error what is waited for.
pub(crate) fn say_waiting(out: &Output, holder: &Holder) {
    out.note(&format!("waiting for {holder}"));
}

#[derive(Serialize)]
struct UmountReport {
    vault: Option<String>,
    mountpoint: String,
    finished: bool,
}

/// Runs `umount`.
pub(crate) fn run(args: &UmountArgs, out: &Output) -> CliResult {
    let options = UmountOptions { lazy: args.lazy, timeout: args.timeout };
    let done = holder::umount(&args.target, options, &mut |holder| say_waiting(out, holder))?;
    if out.is_json() {
        out.json(&UmountReport {
            vault: done.vault.as_deref().map(super::json_path),
            mountpoint: super::json_path(&done.mountpoint),
            finished: done.finished,
        })?;
    } else if !done.finished {
        out.note("detached; the daemon finishes in the background (`strongroom wait VAULT` waits for it)");
    }
    Ok(ExitCode::Ok)
}

#[derive(Serialize)]
struct WaitReport {
    vault: String,
    free: bool,
}

/// Runs `wait`.
pub(crate) fn run_wait(args: &WaitArgs, out: &Output) -> CliResult {
    // A wrong path must not pass for a vault that nobody holds.
    super::session::open_header(&args.vault)?;
    let holder = holder::wait_until_free(&args.vault, args.timeout, &mut |holder| say_waiting(out, holder))?;
    if let Holder::Dead { mountpoint } = &holder {
        return Err(CliError::new(
            ExitCode::Mountpoint,
            format!(
                "the daemon of {} was killed; what was not synced may not be in the vault",
                super::show_path(mountpoint)
            ),
        )
        .hint("mount it again: that removes the dead mount and recovers everything that was synced"));
    }
    if out.is_json() {
        out.json(&WaitReport { vault: super::json_path(&args.vault), free: true })?;
    }
    Ok(ExitCode::Ok)
}
