//! `info`: what can be said about a vault without a key.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::error::{CliResult, ExitCode};
use super::output::{Output, human_bytes};
use super::session;
use crate::format::SlotKdf;
use crate::snapshot::chain::Chain;

/// Arguments of `info`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  strongroom info /encrypted --json")]
pub(crate) struct InfoArgs {
    /// The vault, or any copy of it
    vault: PathBuf,
}

#[derive(Serialize)]
struct InfoReport {
    vault: String,
    vault_id: String,
    format: u32,
    created: String,
    cipher: &'static str,
    header_generation: u64,
    header_warning: Option<String>,
    slots: Vec<SlotReport>,
    snapshots: usize,
    latest_complete: Option<u64>,
    incomplete: Vec<String>,
    problems: Vec<String>,
    packs: usize,
    pack_bytes: u64,
    live_state: bool,
}

#[derive(Serialize)]
struct SlotReport {
    id: u32,
    kind: &'static str,
    label: String,
    created: String,
    kdf: String,
}

/// Describes the vault.
pub(crate) fn run(args: &InfoArgs, out: &Output) -> CliResult {
    let vault = session::open_header(&args.vault)?;
    let header = &vault.loaded.parsed.header;
    let packs = crate::snapshot::open::list_packs(vault.disk.as_ref())?;
    let chain = Chain::load(vault.disk.as_ref(), header)?;
    let present = packs.keys().copied().collect();
    let latest = chain.latest(&present, None);
    let report = InfoReport {
        vault: super::json_path(&args.vault),
        vault_id: header.vault_id.to_hex(),
        format: 1,
        created: header.created.clone(),
        cipher: header.cipher.as_str(),
        header_generation: header.generation,
        header_warning: vault.loaded.warning.clone(),
        slots: header
            .slots
            .iter()
            .map(|slot| SlotReport {
                id: slot.id,
                kind: slot.kind.as_str(),
                label: slot.label.clone(),
                created: slot.created.clone(),
                kdf: match &slot.kdf {
                    SlotKdf::Argon2id { m_kib, t, p, .. } => {
                        format!("argon2id {} MiB t={t} p={p}", m_kib >> 10)
                    }
                    SlotKdf::Blake3 { .. } => "blake3".into(),
                },
            })
            .collect(),
        snapshots: chain.snapshots().count(),
        latest_complete: latest.complete.map(|info| info.seq),
        incomplete: latest.incomplete.iter().map(|(info, _)| info.name()).collect(),
        problems: chain.problems().iter().map(|p| format!("{}: {}", p.file, p.what)).collect(),
        packs: packs.len(),
        pack_bytes: packs.values().sum(),
        live_state: vault.disk.len("live/live.redb")?.is_some(),
    };
    if out.is_json() {
        out.json(&report)?;
    } else {
        print(&report, out)?;
    }
    let damaged = report.header_warning.is_some() || !report.problems.is_empty();
    Ok(if damaged { ExitCode::Corrupt } else { ExitCode::Ok })
}

fn print(report: &InfoReport, out: &Output) -> CliResult<()> {
    out.line(&format!("vault       {}", super::show_bytes(report.vault.as_bytes())))?;
    out.line(&format!("id          {}", report.vault_id))?;
    out.line(&format!("format      {} ({}), made {}", report.format, report.cipher, report.created))?;
    for slot in &report.slots {
        out.line(&format!(
            "key slot {:<2} {} ({}), \"{}\", made {}",
            slot.id,
            slot.kind,
            slot.kdf,
            super::show_bytes(slot.label.as_bytes()),
            slot.created
        ))?;
    }
    out.line(&format!("packs       {} ({})", report.packs, human_bytes(report.pack_bytes)))?;
    let latest =
        report.latest_complete.map_or("none complete".to_string(), |seq| format!("newest complete: {seq}"));
    out.line(&format!("snapshots   {} ({latest})", report.snapshots))?;
    for name in &report.incomplete {
        out.line(&format!("incomplete  {name}: not all of its packs are here"))?;
    }
    for problem in report.problems.iter().chain(&report.header_warning) {
        out.warning(&super::show_bytes(problem.as_bytes()));
    }
    Ok(())
}
