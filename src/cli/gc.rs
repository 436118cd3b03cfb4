//! `gc`: gives back the space of what no snapshot and no file needs.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::error::{CliError, CliResult, ExitCode};
use super::output::{Output, human_bytes};
use super::session::{self, WorkOptions};
use super::snapshot::ask_daemon;
use super::unlock::UnlockArgs;
use crate::mount::control::Request;
use crate::snapshot::Idle;
use crate::snapshot::gc::{self, GcOpts, plan};

/// Arguments of `gc`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom gc /encrypted --passfile /root/enc.txt --dry-run
  strongroom gc /encrypted --passfile /root/enc.txt

Packs with nothing needed in them are deleted, mostly dead ones are rewritten. Nothing is deleted before a signed record of
it is durable, so an interruption at any moment leaves the vault whole.")]
pub(crate) struct GcArgs {
    /// The vault
    vault: PathBuf,
    /// Show the plan, change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Rewrite packs of which at least so much is dead, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=100))]
    dead_percent: u8,
    #[command(flatten)]
    unlock: UnlockArgs,
}

/// Runs `gc`.
pub(crate) fn run(args: &GcArgs, out: &Output) -> CliResult {
    let request = Request::Gc { dry_run: args.dry_run, dead_percent: Some(args.dead_percent) };
    if let Some(answer) = ask_daemon(&args.vault, &request, out)? {
        return report(args.dry_run, &answer, out);
    }
    let work = WorkOptions { accept_rollback: false, discard_live: false, purpose: "gc" };
    let opened = session::open_work(&args.vault, &args.unlock, &work, out)?;
    let result = collect(&opened.engine, args, out);
    session::close_work(&args.vault, &opened)?;
    result
}

fn collect(engine: &crate::store::engine::Engine, args: &GcArgs, out: &Output) -> CliResult {
    let opts = GcOpts { dead_percent_min: args.dead_percent, host: session::host(), ..GcOpts::default() };
    let answer = if args.dry_run {
        serde_json::to_value(plan(engine, &Idle, &opts)?)
    } else {
        serde_json::to_value(gc::run(engine, &Idle, &opts)?)
    };
    let answer = answer.map_err(|e| CliError::new(ExitCode::Failure, format!("encoding JSON: {e}")))?;
    report(args.dry_run, &answer, out)
}

/// Prints a plan or what was done, whoever did it: the daemon of a mounted vault answers in JSON.
fn report(dry_run: bool, answer: &Value, out: &Output) -> CliResult {
    if out.is_json() {
        out.json(answer)?;
        return Ok(ExitCode::Ok);
    }
    let number = |of: &Value, name: &str| of.get(name).and_then(Value::as_u64).unwrap_or(0);
    let bytes = |of: &Value, name: &str| human_bytes(number(of, name));
    if dry_run {
        let packs = answer.get("packs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for pack in packs {
            let text = |name: &str| pack.get(name).and_then(Value::as_str).unwrap_or_default();
            if text("action") == "keep" {
                continue;
            }
            out.line(&format!(
                "{:<8} {:.16} {:<4} {:>10}, {} of it needed",
                text("action"),
                text("pack"),
                text("kind"),
                bytes(pack, "file_bytes"),
                bytes(pack, "live_bytes")
            ))?;
        }
        out.line(&format!(
            "would free {} and write {} again",
            bytes(answer, "freed_bytes"),
            bytes(answer, "rewritten_bytes")
        ))?;
        return Ok(ExitCode::Ok);
    }
    out.line(&format!(
        "deleted {} packs, rewrote {}: {} freed, {} written again",
        number(answer, "deleted_packs"),
        number(answer, "rewritten_packs"),
        bytes(answer, "freed_bytes"),
        bytes(answer, "copied_bytes")
    ))?;
    let kept = number(answer, "kept_for_space");
    if kept > 0 {
        out.warning(&format!(
            "{kept} packs could not be rewritten on this full disk: delete more snapshots or other files, then run gc again"
        ));
    }
    Ok(ExitCode::Ok)
}
