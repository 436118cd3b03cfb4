//! `diff`: what changed between two snapshots.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::browse::{EntryLine, Use, open_target, reading, trim_slashes};
use super::error::{CliError, CliResult, ExitCode};
use super::from::FromArgs;
use super::output::Output;
use super::place::Place;
use super::session;
use super::unlock::UnlockArgs;
use crate::snapshot::diff::{Change, DiffItem, What, diff};
use crate::snapshot::tree::TreeReader;
use crate::store::error::StoreError;

/// Arguments of `diff`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom diff /encrypted 11 12 --passfile /root/enc.txt
  strongroom diff /encrypted \"1 week ago:/home\" latest:/home --json --keyfile /root/vault.key

Paths are those in the snapshot; if A and B are different directories, those below them. A directory that is
gone or new is listed with all that is in it.
Each line: + added, - removed, M modified (c content, m mode, o owner, t time, x attributes, T type).")]
pub(crate) struct DiffArgs {
    /// The vault, or any copy of it
    #[arg(required_unless_present = "from")]
    vault: Option<PathBuf>,
    /// The older side
    #[arg(value_name = "A")]
    old: Option<String>,
    /// The newer side
    #[arg(value_name = "B")]
    new: Option<String>,
    /// Read a vault that is older than what this host has seen
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    unlock: UnlockArgs,
}

#[derive(Serialize)]
struct DiffLine {
    change: &'static str,
    path: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<EntryLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<EntryLine>,
}

fn letters(what: &What) -> String {
    [
        (what.kind, 'T'),
        (what.content, 'c'),
        (what.mode, 'm'),
        (what.owner, 'o'),
        (what.mtime, 't'),
        (what.xattrs, 'x'),
    ]
    .into_iter()
    .filter_map(|(set, letter)| set.then_some(letter))
    .collect()
}

/// Compares.
pub(crate) fn run(args: &DiffArgs, out: &Output) -> CliResult {
    let words = [args.old.as_deref(), args.new.as_deref()];
    let (place, words) = args.from.place(args.vault.as_deref(), words)?;
    let [Some(old), Some(new)] = words else {
        return Err(CliError::usage("two snapshots are needed to compare them"));
    };
    compare(args, &place, (&old, &new), out).map_err(|error| place.told(error))
}

fn compare(args: &DiffArgs, place: &Place, (old, new): (&str, &str), out: &Output) -> CliResult {
    let reading = reading(&[old, new], Use::Trees, args.accept_rollback);
    let vault = session::open_read(place, &args.unlock, reading, out)?;
    let (a, b) = (open_target(&vault, old, Use::Trees)?, open_target(&vault, new, Use::Trees)?);
    let (old, new) = (TreeReader::new(a.source.as_ref()), TreeReader::new(b.source.as_ref()));
    let base = trim_slashes(&a.path);
    let base = if base == trim_slashes(&b.path) { base } else { Vec::new() };
    let mut failed: Option<CliError> = None;
    let stats = diff(&old, &a.entry, &new, &b.entry, &mut |item| {
        print(&base, &item, out).map_err(|error| {
            // Carried around the library's error type, which knows no output.
            failed = Some(error);
            StoreError::NotFound("output closed".into())
        })
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let stats = stats?;
    out.note(&format!("{} added, {} removed, {} modified", stats.added, stats.removed, stats.modified));
    Ok(ExitCode::Ok)
}

/// Prints one difference; `base` is the directory that was compared, without a slash at its end.
fn print(base: &[u8], item: &DiffItem, out: &Output) -> CliResult<()> {
    let mut path = base.to_vec();
    if !item.path.is_empty() || base.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(&item.path);
    let (name, sign, what) = match &item.change {
        Change::Added => ("added", '+', String::new()),
        Change::Removed => ("removed", '-', String::new()),
        Change::Modified(what) => ("modified", 'M', letters(what)),
    };
    if out.is_json() {
        return out.json_line(&DiffLine {
            change: name,
            path: String::from_utf8_lossy(&path).into_owned(),
            what,
            old: item.old.as_ref().map(|entry| EntryLine::new(&path, entry)),
            new: item.new.as_ref().map(|entry| EntryLine::new(&path, entry)),
        });
    }
    let path = super::show_bytes(&path);
    out.line(&if what.is_empty() { format!("{sign} {path}") } else { format!("{sign} {path} ({what})") })
}
