//! `snapshot`: make, list, show and delete snapshots.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::browse::resolve;
use super::error::{CliError, CliResult, ExitCode};
use super::from::FromArgs;
use super::output::{Output, human_bytes};
use super::session::{self, ReadVault, Reading, WorkOptions};
use super::unlock::UnlockArgs;
use crate::mount::control::{self, Request};
use crate::mount::holder::{self, Holder};
use crate::snapshot::Idle;
use crate::snapshot::chain::{ChainInfo, open_sealed};
use crate::snapshot::create::{SnapshotOpts, create};
use crate::snapshot::delete::{DeleteError, DeleteOpts, delete};
use crate::snapshot::describe::Description;
use crate::snapshot::open;

/// The verbs of `snapshot`.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Make a snapshot now; of a mounted vault too
    Create(CreateArgs),
    /// List the snapshots
    List(ListArgs),
    /// Show one snapshot
    Show(ShowArgs),
    /// Delete snapshots; `gc` gives their space back
    Delete(DeleteArgs),
}

/// Arguments of `snapshot create`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  strongroom snapshot create /encrypted --tag before-upgrade --passfile /root/enc.txt

While the vault is mounted its daemon makes the snapshot, and no key is needed.")]
pub(crate) struct CreateArgs {
    /// The vault
    vault: PathBuf,
    /// A word to keep with it
    #[arg(long)]
    tag: Vec<String>,
    /// Make one even if nothing changed
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    unlock: UnlockArgs,
}

/// Arguments of `snapshot list`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  strongroom snapshot list /encrypted --passfile /root/enc.txt

Columns: number, beginning of the id, time (UTC), files, bytes, what it is of, host, [tags]. INCOMPLETE: packs that it
needs are not here (a copy that is still under way), and `latest` means the newest one before it.")]
pub(crate) struct ListArgs {
    /// The vault, or any copy of it
    #[arg(required_unless_present = "from")]
    vault: Option<PathBuf>,
    /// List a vault that is older than what this host has seen
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    unlock: UnlockArgs,
}

/// Arguments of `snapshot show`.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  strongroom snapshot show /encrypted latest --passfile /root/enc.txt --json"
)]
pub(crate) struct ShowArgs {
    /// The vault, or any copy of it
    #[arg(required_unless_present = "from")]
    vault: Option<PathBuf>,
    /// A number, the beginning of an id, `latest`, or a time
    snapshot: Option<String>,
    /// Read a vault that is older than what this host has seen
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    unlock: UnlockArgs,
}

/// Arguments of `snapshot delete`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  strongroom snapshot delete /encrypted 3 4 5 --passfile /root/enc.txt && strongroom gc /encrypted --passfile /root/enc.txt

The deletion is recorded in the vault: a snapshot that is missing without such a record is reported as an attack.")]
pub(crate) struct DeleteArgs {
    /// The vault
    vault: PathBuf,
    /// Numbers, beginnings of ids, or times
    #[arg(required = true)]
    snapshots: Vec<String>,
    /// Delete the newest one of the working tree, too
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    unlock: UnlockArgs,
}

/// Runs a `snapshot` command.
pub(crate) fn run(command: &SnapshotCommand, out: &Output) -> CliResult {
    match command {
        SnapshotCommand::Create(args) => run_create(args, out),
        SnapshotCommand::List(args) => run_list(args, out),
        SnapshotCommand::Show(args) => run_show(args, out),
        SnapshotCommand::Delete(args) => run_delete(args, out),
    }
}

/// Asks the daemon of a mounted vault. `None`: it is not mounted.
pub(crate) fn ask_daemon(vault: &Path, request: &Request, out: &Output) -> CliResult<Option<Value>> {
    session::open_header(vault)?;
    if !matches!(holder::probe(vault)?, Holder::Mounted { .. }) {
        return Ok(None);
    }
    match control::call(vault, request, &mut |what| out.note(&format!("the daemon is {what}")))? {
        Some(answer) => Ok(Some(answer?)),
        None => Ok(None),
    }
}

fn run_create(args: &CreateArgs, out: &Output) -> CliResult {
    let request = Request::SnapshotCreate { tags: args.tag.clone(), force: args.force };
    if let Some(answer) = ask_daemon(&args.vault, &request, out)? {
        return report_created(answer.get("seq").and_then(Value::as_u64), &answer, out);
    }
    let work = WorkOptions { accept_rollback: false, discard_live: false, purpose: "snapshot create" };
    let opened = session::open_work(&args.vault, &args.unlock, &work, out)?;
    let opts = SnapshotOpts { host: session::host(), tags: args.tag.clone(), force: args.force };
    let made = create(&opened.engine, &Idle, &opts);
    session::close_work(&args.vault, &opened)?;
    let made = made?;
    let json = serde_json::to_value(made.as_ref().map(Description::of_new))
        .map_err(|e| CliError::new(ExitCode::Failure, format!("encoding JSON: {e}")))?;
    report_created(made.map(|info| info.seq), &json, out)
}

fn report_created(seq: Option<u64>, json: &Value, out: &Output) -> CliResult {
    if out.is_json() {
        out.json(json)?;
    } else {
        match seq {
            Some(seq) => out.line(&format!("snapshot {seq}"))?,
            None => out.note("nothing changed since the newest snapshot: none was made"),
        }
    }
    Ok(ExitCode::Ok)
}

fn line(vault: &ReadVault, info: &ChainInfo, complete: bool) -> CliResult<Description> {
    let sealed = open_sealed(vault.disk.as_ref(), &vault.unlocked.keys, info)?;
    Ok(Description::of_chain(info, &sealed, complete))
}

/// What is read to list snapshots.
fn only_chain(accept_rollback: bool) -> Reading {
    Reading { accept_rollback, ..Reading::default() }
}

fn run_list(args: &ListArgs, out: &Output) -> CliResult {
    let (place, []) = args.from.place(args.vault.as_deref(), [])?;
    let vault = session::open_read(&place, &args.unlock, only_chain(args.accept_rollback), out)?;
    let present = open::list_packs(vault.disk.as_ref())?.into_keys().collect();
    let mut lines = Vec::new();
    for info in vault.chain.snapshots() {
        lines.push(line(&vault, info, vault.chain.is_complete(info.seq, &present))?);
    }
    if out.is_json() {
        out.json(&lines)?;
        return Ok(ExitCode::Ok);
    }
    if lines.is_empty() {
        out.note("no snapshots yet: unmounting makes one, and `strongroom snapshot create`");
    }
    for l in &lines {
        let mark = if l.complete { "" } else { "  INCOMPLETE" };
        let tags = l.tags.join(" ");
        out.line(&format!(
            "{:>6}  {}  {}  {:>9} files  {:>10}  {}  {}{}{mark}",
            l.seq,
            &l.id[..8],
            l.time,
            l.files,
            human_bytes(l.bytes),
            l.origin,
            super::show_bytes(l.host.as_bytes()),
            if tags.is_empty() {
                String::new()
            } else {
                format!("  [{}]", super::show_bytes(tags.as_bytes()))
            },
        ))?;
    }
    Ok(ExitCode::Ok)
}

fn run_show(args: &ShowArgs, out: &Output) -> CliResult {
    let (place, [snapshot]) = args.from.place(args.vault.as_deref(), [args.snapshot.as_deref()])?;
    let snapshot = snapshot.ok_or_else(|| CliError::usage("SNAPSHOT is missing"))?;
    let vault = session::open_read(&place, &args.unlock, only_chain(args.accept_rollback), out)?;
    let seq = resolve(&vault, &snapshot)?;
    let info = vault
        .chain
        .get(seq)
        .ok_or_else(|| CliError::new(ExitCode::NotFound, format!("there is no snapshot {seq}")))?;
    let present = open::list_packs(vault.disk.as_ref())?.into_keys().collect();
    let l = line(&vault, info, vault.chain.is_complete(seq, &present))?;
    if out.is_json() {
        out.json(&l)?;
        return Ok(ExitCode::Ok);
    }
    let needed = vault.chain.needed_packs(seq)?;
    for (name, value) in [
        ("snapshot", l.seq.to_string()),
        ("id", l.id.clone()),
        ("time", l.time.clone()),
        ("origin", l.origin.to_string()),
        ("complete", if l.complete { "yes".into() } else { "NO: packs are missing".to_string() }),
        ("host", super::show_bytes(l.host.as_bytes())),
        ("tags", super::show_bytes(l.tags.join(" ").as_bytes())),
        ("files", l.files.to_string()),
        ("directories", l.dirs.to_string()),
        ("others", l.others.to_string()),
        ("bytes", format!("{} ({})", l.bytes, human_bytes(l.bytes))),
        ("packs", needed.len().to_string()),
        ("made by", super::show_bytes(l.program.as_bytes())),
    ] {
        out.line(&format!("{name:<12} {value}"))?;
    }
    Ok(ExitCode::Ok)
}

fn run_delete(args: &DeleteArgs, out: &Output) -> CliResult {
    let request = Request::SnapshotDelete { snapshots: args.snapshots.clone(), force: args.force };
    if let Some(answer) = ask_daemon(&args.vault, &request, out)? {
        let deleted = answer.get("deleted").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let seqs: Vec<u64> = deleted.iter().filter_map(Value::as_u64).collect();
        return report_deleted(&seqs, out);
    }
    let work = WorkOptions { accept_rollback: false, discard_live: false, purpose: "snapshot delete" };
    let opened = session::open_work(&args.vault, &args.unlock, &work, out)?;
    let result = delete_named(&opened.engine, &args.snapshots, args.force);
    session::close_work(&args.vault, &opened)?;
    report_deleted(&result?, out)
}

fn report_deleted(seqs: &[u64], out: &Output) -> CliResult {
    if out.is_json() {
        out.json(&serde_json::json!({ "deleted": seqs }))?;
    } else {
        let names: Vec<String> = seqs.iter().map(u64::to_string).collect();
        out.note(&format!("deleted snapshot {}; `strongroom gc` gives the space back", names.join(", ")));
    }
    Ok(ExitCode::Ok)
}

/// Finds and deletes snapshots by name.
fn delete_named(engine: &crate::store::engine::Engine, names: &[String], force: bool) -> CliResult<Vec<u64>> {
    let disk = engine.ctx.disk.as_ref();
    let chain = crate::snapshot::chain::Chain::of(engine)?;
    let present = open::list_packs(disk)?.into_keys().collect();
    let mut seqs = Vec::new();
    for name in names {
        seqs.push(crate::snapshot::select::select_in(&chain, &present, name, engine.ctx.env.now())?.seq);
    }
    seqs.sort_unstable();
    seqs.dedup();
    delete(engine, &seqs, &DeleteOpts { host: session::host(), force }).map_err(|error| match error {
        DeleteError::Store(error) => CliError::from(error),
        DeleteError::NotFound(_) => CliError::new(ExitCode::NotFound, error.to_string()),
        DeleteError::Newest(_) => CliError::usage(error.to_string()).hint("--force deletes it all the same"),
    })?;
    Ok(seqs)
}
