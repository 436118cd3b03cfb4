//! `import`: directories become a snapshot, without a mount.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::error::{CliError, CliResult, ExitCode};
use super::output::{Output, human_bytes};
use super::session::{self, WorkOptions};
use super::unlock::UnlockArgs;
use crate::snapshot::import::{ImportError, ImportOpts, import};
use crate::snapshot::restore::{Failure, Progress};

/// Arguments of `import`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom import /encrypted /etc /home --passfile /root/enc.txt
  strongroom import /encrypted / --one-file-system --exclude '/var/cache/**' --exclude '*.tmp' --keyfile /root/vault.key

The snapshot shows each DIR under its absolute path. The working tree that `mount` shows is not touched. The vault must
not be mounted. Exit status 3: some files could not be read, and were named.")]
pub(crate) struct ImportArgs {
    /// The vault
    vault: PathBuf,
    /// What to store
    #[arg(required = true, value_name = "DIR")]
    sources: Vec<PathBuf>,
    /// Leave out what matches PATTERN (*, **, ?); with a slash in it, of the whole path
    #[arg(short, long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Don't go into other filesystems
    #[arg(short = 'x', long)]
    one_file_system: bool,
    /// Keep times of access; without it a file's is that of its last change, as in restic and borg
    #[arg(long)]
    atime: bool,
    /// Read also files that have the path, inode number, size and times (mtime, ctime) of an earlier import by this host
    #[arg(long)]
    reread: bool,
    /// A word to keep with the snapshot
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Write to a vault that is older than what this host has seen
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    unlock: UnlockArgs,
}

#[derive(Serialize)]
struct ImportJson<'a> {
    seq: Option<u64>,
    id: Option<String>,
    files: u64,
    dirs: u64,
    others: u64,
    bytes: u64,
    excluded: u64,
    unchanged: u64,
    errors: &'a [Failure],
    changed: &'a [Failure],
}

/// Imports.
pub(crate) fn run(args: &ImportArgs, out: &Output) -> CliResult {
    let work = WorkOptions { accept_rollback: args.accept_rollback, discard_live: false, purpose: "import" };
    let opened = session::open_work(&args.vault, &args.unlock, &work, out)?;
    let opts = ImportOpts {
        host: session::host(),
        tags: args.tag.clone(),
        excludes: args.exclude.clone(),
        one_file_system: args.one_file_system,
        atime: args.atime,
        reread: args.reread,
        // A vault must not be stored in itself.
        skip: vec![session::absolute(&args.vault)],
    };
    let bar = out.progress(None, "importing");
    let result = import(&opened.engine, &args.sources, &opts, &|progress: Progress| {
        bar.set_position(progress.bytes);
        bar.set_message(format!("{} entries", progress.entries));
    });
    bar.finish_and_clear();
    session::close_work(&args.vault, &opened)?;
    let report = result.map_err(|error| match error {
        ImportError::Store(error) => CliError::from(error),
        ImportError::Pattern(error) => CliError::usage(error.to_string()),
        ImportError::Nothing(text) => CliError::new(ExitCode::NotFound, format!("nothing to import: {text}")),
    })?;
    for failure in report.errors.iter().chain(&report.changed) {
        out.warning(&format!("{}: {}", failure.path, failure.what));
    }
    if report.errors_omitted + report.changed_omitted > 0 {
        out.warning(&format!("and {} more", report.errors_omitted + report.changed_omitted));
    }
    let counts = &report.counts;
    if out.is_json() {
        out.json(&ImportJson {
            seq: report.snapshot.as_ref().map(|info| info.seq),
            id: report.snapshot.as_ref().map(|info| info.id.to_hex()),
            files: counts.files,
            dirs: counts.dirs,
            others: counts.others,
            bytes: counts.bytes,
            excluded: report.excluded,
            unchanged: report.unchanged,
            errors: &report.errors,
            changed: &report.changed,
        })?;
    } else if let Some(info) = &report.snapshot {
        let unchanged = match report.unchanged {
            0 => String::new(),
            n => format!("; {n} files are what they were"),
        };
        out.line(&format!(
            "snapshot {} ({}): {} files ({}), {} directories, {} others{unchanged}",
            info.seq,
            info.id,
            counts.files,
            human_bytes(counts.bytes),
            counts.dirs,
            counts.others
        ))?;
    }
    Ok(if report.is_complete() { ExitCode::Ok } else { ExitCode::Partial })
}
