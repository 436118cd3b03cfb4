//! `restore`: files out of a snapshot, every byte verified.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::browse::{Use, open_target, reading};
use super::error::{CliError, CliResult, ExitCode};
use super::from::FromArgs;
use super::output::{Output, human_bytes};
use super::place::Place;
use super::session;
use super::unlock::UnlockArgs;
use crate::snapshot::restore::{EXISTS, GiveUp, Overwrite, Progress, RestoreOpts, restore};

/// Arguments of `restore`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom restore /encrypted --to /restored --passfile /root/enc.txt
  strongroom restore /encrypted latest:/home/alice --to /restored --keyfile /root/vault.key
  strongroom restore /offsite-copy \"2 days ago:/db\" --to /tmp/db --recovery-key < recovery.txt
  strongroom restore --from s3://bucket/vault latest:/home --to /restored --recovery-key

What is below a directory lands in DIR itself; a file lands in DIR under its name. Needs neither a mount nor
live/: any copy of the vault will do. Exit status 3: some files could not be restored, and were named.")]
pub(crate) struct RestoreArgs {
    /// The vault, or any copy of it
    #[arg(required_unless_present = "from")]
    vault: Option<PathBuf>,
    /// Snapshot and path: latest:/home, 12:/, 2026-11-20:/etc [default: latest:/]
    #[arg(value_name = "SNAPSHOT:PATH")]
    target: Option<String>,
    /// Directory to restore into; made if missing
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Show what would be restored, write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Replace files that exist already
    #[arg(long)]
    overwrite: bool,
    /// Leave owner and group as those of the user who runs this
    #[arg(long)]
    no_owner: bool,
    /// Threads that write files
    #[arg(short, long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Read a vault that is older than what this host has seen
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    unlock: UnlockArgs,
}

/// Restores.
pub(crate) fn run(args: &RestoreArgs, out: &Output) -> CliResult {
    let (place, [target]) = args.from.place(args.vault.as_deref(), [args.target.as_deref()])?;
    bring_back(args, &place, target.as_deref(), out).map_err(|error| place.told(error))
}

fn bring_back(args: &RestoreArgs, place: &Place, target: Option<&str>, out: &Output) -> CliResult {
    let (target, usage) = (target.unwrap_or("latest:/"), if args.dry_run { Use::Trees } else { Use::Data });
    let vault =
        session::open_read(place, &args.unlock, reading(&[target], usage, args.accept_rollback), out)?;
    let target = open_target(&vault, target, usage)?;
    let source = if args.dry_run { Arc::clone(&target.source) } else { target.ahead()? };
    let total = (target.path == b"/").then_some(target.bytes);
    let bar = out.progress(total, "restoring");
    let give_up = vault
        .from
        .clone()
        .map_or_else(GiveUp::default, |disk| GiveUp::when(move |error| disk.is_lost(error)));
    let opts = RestoreOpts {
        give_up,
        dry_run: args.dry_run,
        overwrite: if args.overwrite { Overwrite::Replace } else { Overwrite::Refuse },
        owners: !args.no_owner,
        workers: usize::from(args.jobs),
    };
    let report = restore(source.as_ref(), &target.entry, &args.to, &opts, &|progress: Progress| {
        bar.set_position(progress.bytes);
        bar.set_message(format!("{} entries", progress.entries));
    })?;
    bar.finish_and_clear();
    for warning in &report.warnings {
        out.warning(warning);
    }
    for failure in &report.errors {
        out.warning(&format!("{}: {}", failure.path, failure.what));
    }
    if report.errors_omitted > 0 {
        out.warning(&format!("and {} more", report.errors_omitted));
    }
    if report.errors.iter().any(|failure| failure.what == EXISTS) {
        out.note("--overwrite replaces what is there; nothing that is not in the snapshot is ever removed");
    }
    if out.is_json() {
        out.json(&report)?;
    } else {
        let verb = if args.dry_run { "would restore" } else { "restored" };
        out.note(&format!(
            "{verb} {} files ({}), {} directories, {} others, {} further links from snapshot {}",
            report.files,
            human_bytes(report.bytes),
            report.dirs,
            report.others,
            report.links,
            target.seq
        ));
    }
    if let Some(error) = report.stopped.as_ref().filter(|_| args.dry_run) {
        return Err(CliError::lost(error, "try again; nothing was written"));
    }
    if let Some(error) = &report.stopped {
        // Without --overwrite directories that are there keep their times, and no name is linked to a file that is there.
        let to = super::show_path(&args.to);
        let advice = format!(
            "the same command with --overwrite begins anew in {to} and makes all of it right, but for the times of {to} itself; it \
             also replaces what stood there before. Or restore into a new directory. {} files stand there, whole; the rest was \
             not tried",
            report.files
        );
        return Err(CliError::lost(error, &advice));
    }
    Ok(if report.is_complete() { ExitCode::Ok } else { ExitCode::Partial })
}
