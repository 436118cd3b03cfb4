//! `with`: mount, run a command, snapshot, unmount; a job that never runs without its mount.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};

use clap::Args;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::error::{CliError, ExitCode};
use super::mount::{MountHow, credential, prepare};
use super::output::Output;
use super::session;
use super::unlock::UnlockArgs;
use crate::mount::daemon;
use crate::mount::holder::{self, UmountOptions};

/// Arguments of `with`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  strongroom with /encrypted /decrypted --passfile /root/enc.txt -- rsync -a /home/ /decrypted/home/

The command finds VAULT and MOUNTPOINT in STRONGROOM_VAULT and STRONGROOM_MOUNTPOINT. Ends with its status; 128 + N if
signal N ended it. If it succeeded but the vault could not be unmounted durably, ends with that failure.
SIGTERM is passed on to the command; however it ends, by Ctrl-C too, the vault is unmounted.")]
pub(crate) struct WithArgs {
    /// The vault
    vault: PathBuf,
    /// Where to mount it meanwhile
    mountpoint: PathBuf,
    #[command(flatten)]
    unlock: UnlockArgs,
    #[command(flatten)]
    how: MountHow,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Waits for the command. SIGTERM, which comes from a service manager and for this process alone, is passed on; the signals of
/// a terminal reach the command by themselves. None of them ends this process: the vault is still to be unmounted.
fn wait_passing_signals(mut child: Child, mut signals: Signals) -> std::io::Result<ExitStatus> {
    // A descriptor of the process: its number may be another's as soon as it was waited for.
    let target = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let handle = signals.handle();
    let passing = std::thread::spawn(move || {
        for signal in signals.forever().filter(|signal| *signal == SIGTERM) {
            if let Some(target) = &target
                && let Err(error) = pidfd_send_signal(target, Signal::TERM)
            {
                tracing::debug!(signal, %error, "the command is gone");
            }
        }
    });
    let status = child.wait();
    // The signals stay caught for the life of the process: nothing interrupts the unmounting either.
    handle.close();
    if passing.join().is_err() {
        tracing::debug!("the thread that passes signals on panicked");
    }
    status
}

/// Runs `with`; returns the command's own status.
pub(crate) fn run(args: &WithArgs, out: &Output) -> Result<u8, CliError> {
    let options = args.how.resolve()?;
    if options.remount {
        return Err(CliError::usage("`remount` changes a mount that is there; `with` makes its own"));
    }
    let mountpoint = prepare(&args.vault, &args.mountpoint, &options, out)?;
    let credential = credential(&args.vault, &args.unlock, &options)?;
    // From here on there is something to unmount.
    let signals = Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP])?;
    super::mount::spawn_daemon(&args.vault, None, &mountpoint, options, &args.how, credential, out)?;
    let (program, rest) = args.command.split_first().ok_or_else(|| CliError::usage("no command"))?;
    let status = Command::new(program)
        .args(rest)
        .env("STRONGROOM_VAULT", session::absolute(&args.vault))
        .env("STRONGROOM_MOUNTPOINT", daemon::absolute(&mountpoint)?)
        .spawn()
        .and_then(|child| wait_passing_signals(child, signals));
    // Unmounted whatever became of the command: what it wrote must be durable, and in a snapshot.
    let unmounted = holder::umount(&mountpoint, UmountOptions::default(), &mut |holder| {
        super::umount::say_waiting(out, holder)
    });
    let code = match status {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        Err(error) => {
            let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
            out.warning(&format!("can't run {}: {error}", program.to_string_lossy()));
            code
        }
    };
    match unmounted {
        Ok(_) => {}
        Err(error) if code == 0 => return Err(error.into()),
        Err(error) => out.error(&error.into()),
    }
    Ok(u8::try_from(code).unwrap_or(ExitCode::Failure as u8))
}
