//! `gc`: gives back the space of what no snapshot and no file needs.

use std::path::PathBuf;

use clap::Args;

use super::error::{CliResult, ExitCode};
use super::output::{Output, human_bytes};
use super::session::{self, WorkOptions};
use super::snapshot::ask_daemon;
use super::unlock::UnlockArgs;
use crate::mount::control::Request;
use crate::snapshot::Idle;
use crate::snapshot::gc::{Action, GcOpts, execute, plan};

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
    if let Some(answer) = ask_daemon(&args.vault, &Request::Gc { dry_run: args.dry_run }, out)? {
        if out.is_json() {
            out.json(&answer)?;
        } else if let serde_json::Value::Object(fields) = &answer {
            for (name, value) in fields.iter().filter(|(_, value)| !value.is_array()) {
                out.line(&format!("{name}: {value}"))?;
            }
        }
        return Ok(ExitCode::Ok);
    }
    let work = WorkOptions { accept_rollback: false, discard_live: false, purpose: "gc" };
    let opened = session::open_work(&args.vault, &args.unlock, &work, out)?;
    let result = collect(&opened.engine, args, out);
    session::close_work(&args.vault, &opened)?;
    result
}

fn collect(engine: &crate::store::engine::Engine, args: &GcArgs, out: &Output) -> CliResult {
    let opts = GcOpts { dead_percent_min: args.dead_percent, host: session::host(), ..GcOpts::default() };
    let plan = plan(engine, &Idle, &opts)?;
    if args.dry_run {
        if out.is_json() {
            out.json(&plan)?;
            return Ok(ExitCode::Ok);
        }
        for pack in plan.packs.iter().filter(|pack| pack.action != Action::Keep) {
            let verb = if pack.action == Action::Delete { "delete" } else { "rewrite" };
            out.line(&format!(
                "{verb:<8} {} {:<4} {:>10}, {} of it needed",
                &pack.pack[..16],
                pack.kind,
                human_bytes(pack.file_bytes),
                human_bytes(pack.live_bytes)
            ))?;
        }
        out.line(&format!(
            "would free {} and write {} again",
            human_bytes(plan.freed_bytes),
            human_bytes(plan.rewritten_bytes)
        ))?;
        return Ok(ExitCode::Ok);
    }
    let report = execute(engine, &Idle, plan)?;
    if out.is_json() {
        out.json(&report)?;
    } else {
        out.line(&format!(
            "deleted {} packs, rewrote {}: {} freed, {} written again",
            report.deleted_packs,
            report.rewritten_packs,
            human_bytes(report.freed_bytes),
            human_bytes(report.copied_bytes)
        ))?;
    }
    Ok(ExitCode::Ok)
}
