//! `init`: a new vault with its first key slot and a recovery key.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::error::{CliError, CliResult, ExitCode};
use super::key::{SlotLine, slot_lines};
use super::output::Output;
use super::session;
use super::unlock::UnlockArgs;
use crate::crypto::{Argon2Cost, Credential, RecoveryKey, RootSecret, add_slot, new_header};
use crate::env::SystemEnv;
use crate::format::{ChunkerParams, Cipher};
use crate::snapshot::open::create_vault;

/// Chunk sizes of new vaults, in bytes: 512 KiB, 1 MiB, 4 MiB.
const CHUNKER: ChunkerParams = ChunkerParams { min: 512 << 10, avg: 1 << 20, max: 4 << 20 };

/// Arguments of `init`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom init /encrypted                                   asks for a passphrase, shows a recovery key once
  strongroom init /encrypted --passfile /root/enc.txt --recovery-key-out /root/recovery.txt
  strongroom init /encrypted --keyfile /root/vault.key --no-recovery-key

Print the recovery key and keep it away from this machine: without passphrase, keyfile or
recovery key nobody can ever read the vault again.")]
pub(crate) struct InitArgs {
    /// Directory of the new vault; made if missing, must be empty
    vault: PathBuf,
    #[command(flatten)]
    unlock: UnlockArgs,
    /// Cipher that seals the data: chacha20-poly1305, or aes-256-gcm for processors with AES
    #[arg(long, default_value = "chacha20-poly1305", value_parser = ["chacha20-poly1305", "aes-256-gcm"])]
    cipher: String,
    /// Write the recovery key to FILE (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE", conflicts_with = "no_recovery_key")]
    recovery_key_out: Option<PathBuf>,
    /// Make no recovery key
    #[arg(long)]
    no_recovery_key: bool,
    /// How long one try of a passphrase shall take on this machine, in seconds (memory is at least 64 MiB)
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    kdf_time: f64,
}

#[derive(Serialize)]
struct InitReport {
    vault: String,
    vault_id: String,
    cipher: String,
    slots: Vec<SlotLine>,
}

/// Makes the vault.
pub(crate) fn run(args: &InitArgs, out: &Output) -> CliResult {
    if !(0.0..=60.0).contains(&args.kdf_time) {
        return Err(CliError::usage("--kdf-time takes 0 to 60 seconds"));
    }
    let show_key = !args.no_recovery_key && args.recovery_key_out.is_none();
    if show_key && (out.is_json() || !std::io::stdout().is_terminal()) {
        // Standard output of a cron job is mailed: a recovery key must not go there by accident.
        return Err(CliError::usage(
            "standard output is no terminal: the recovery key would be left in a log",
        )
        .hint("give --recovery-key-out FILE, or --no-recovery-key"));
    }
    let cipher = Cipher::parse(&args.cipher).ok_or_else(|| CliError::usage("unknown cipher"))?;
    session::require_new_vault_dir(&args.vault)?;
    let credential = args.unlock.credential("Passphrase for the new vault", true)?;
    let env = SystemEnv;
    let root = RootSecret::generate(&env);
    let created = session::rfc3339_now();
    let mut header = new_header(&env, &root, cipher, CHUNKER, created.clone());
    let cost = match &credential {
        Credential::Passphrase(_) => Argon2Cost::calibrate(Duration::from_secs_f64(args.kdf_time)),
        Credential::Keyfile(_) => Argon2Cost::FLOOR,
        Credential::Recovery(_) => {
            return Err(CliError::usage(
                "a vault begins with a passphrase or a keyfile; its recovery key is made for you",
            ));
        }
    };
    add_slot(&env, &mut header, &root, &credential, cost, "first".into(), created.clone())?;
    let mut recovery = None;
    if !args.no_recovery_key {
        let key = RecoveryKey::generate(&env);
        let text = key.to_text();
        add_slot(&env, &mut header, &root, &Credential::Recovery(key), cost, "recovery".into(), created)?;
        if let Some(path) = &args.recovery_key_out {
            session::write_private_new(path, format!("{}\n", text.as_str()).as_bytes())?;
        }
        recovery = Some(text);
    }
    let (vault_id, slots) = (header.vault_id, slot_lines(&header));
    let disk = session::create_vault_disk(&args.vault)?;
    create_vault(disk.as_ref(), header, &root)?;
    if out.is_json() {
        out.json(&InitReport {
            vault: super::json_path(&args.vault),
            vault_id: vault_id.to_hex(),
            cipher: args.cipher.clone(),
            slots,
        })?;
        return Ok(ExitCode::Ok);
    }
    out.line(&format!("made the vault {} (id {})", super::show_path(&args.vault), vault_id))?;
    match (&args.recovery_key_out, recovery) {
        (Some(path), _) => out.line(&format!(
            "the recovery key is in {}: print it, then remove the file",
            super::show_path(path)
        ))?,
        (None, Some(text)) => {
            out.line("\nRecovery key, shown this once. Print it and keep it away from this machine:\n")?;
            out.line(&format!("    {}\n", text.as_str()))?;
        }
        (None, None) => out
            .warning("no recovery key: if the passphrase or keyfile is lost, so is everything in the vault"),
    }
    Ok(ExitCode::Ok)
}
