//! `key`: the slots that unlock a vault. The data is never re-encrypted: a slot wraps the same root secret.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::error::{CliError, CliResult, ExitCode};
use super::output::Output;
use super::session;
use super::unlock::{UnlockArgs, read_keyfile};
use crate::crypto::{Argon2Cost, Credential, RecoveryKey, add_slot};
use crate::env::SystemEnv;
use crate::format::{Header, Slot, SlotKind};
use crate::store::header;

/// FORMAT section 3: slots in a header.
const SLOTS_MAX: usize = 32;

/// The verbs of `key`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// List the key slots; needs no key
    List(ListArgs),
    /// Add a passphrase, keyfile or recovery key
    Add(AddArgs),
    /// Remove a slot; the last one can't be removed
    Remove(RemoveArgs),
    /// Change the passphrase (or keyfile) of the slot that unlocks
    Change(ChangeArgs),
}

/// Arguments of `key list`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  strongroom key list /encrypted --json")]
pub(crate) struct ListArgs {
    /// The vault
    vault: PathBuf,
}

/// What a new slot opens with.
#[derive(Args, Debug)]
#[group(multiple = false)]
struct NewKey {
    /// Read the new passphrase from FILE
    #[arg(long, value_name = "FILE")]
    new_passfile: Option<PathBuf>,
    /// The new slot opens with this keyfile
    #[arg(long, value_name = "FILE")]
    new_keyfile: Option<PathBuf>,
    /// Make a recovery key and write it to FILE (mode 0600)
    #[arg(long, value_name = "FILE")]
    new_recovery_key_out: Option<PathBuf>,
}

/// Arguments of `key add`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom key add /encrypted --passfile /root/enc.txt --new-keyfile /root/vault.key --label cron
  strongroom key add /encrypted --keyfile /root/vault.key --new-recovery-key-out /root/recovery.txt")]
pub(crate) struct AddArgs {
    /// The vault
    vault: PathBuf,
    #[command(flatten)]
    unlock: UnlockArgs,
    #[command(flatten)]
    new: NewKey,
    /// A name for the slot
    #[arg(long, default_value = "")]
    label: String,
    /// How long one try of the passphrase shall take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    kdf_time: f64,
}

/// Arguments of `key remove`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  strongroom key remove /encrypted 2 --passfile /root/enc.txt

Copies of the old header (offsite, in backups of the disk) still open with the removed key. If a key
fell into wrong hands, what it could read then it can read for ever: make a new vault.")]
pub(crate) struct RemoveArgs {
    /// The vault
    vault: PathBuf,
    /// Number of the slot, as `key list` shows it
    slot: u32,
    #[command(flatten)]
    unlock: UnlockArgs,
}

/// Arguments of `key change`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom key change /encrypted                              asks for the old and the new passphrase
  strongroom key change /encrypted --passfile /root/enc.txt --new-passfile /root/new.txt

With --recovery-key the slot that unlocks is the recovery key's: what is printed on paper would open
nothing any more. That is asked for, or --replace-recovery-key says it. To set a new passphrase with
the recovery key and keep that, use `key add --recovery-key`.

Data is not encrypted again. Copies of the old header (offsite, in backups of the disk) still open with the old key.")]
pub(crate) struct ChangeArgs {
    /// The vault
    vault: PathBuf,
    #[command(flatten)]
    unlock: UnlockArgs,
    #[command(flatten)]
    new: NewKey,
    /// Let the recovery key that unlocks become void
    #[arg(long)]
    replace_recovery_key: bool,
    /// How long one try of the passphrase shall take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    kdf_time: f64,
}

#[derive(Serialize)]
pub(crate) struct SlotLine {
    id: u32,
    kind: &'static str,
    label: String,
    created: String,
}

/// The slots of a header, as JSON shows them.
pub(crate) fn slot_lines(header: &Header) -> Vec<SlotLine> {
    let line = |s: &Slot| SlotLine {
        id: s.id,
        kind: s.kind.as_str(),
        label: s.label.clone(),
        created: s.created.clone(),
    };
    header.slots.iter().map(line).collect()
}

#[derive(Serialize)]
struct KeyReport {
    /// The slot that is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<u32>,
    /// The slot that is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    added: Option<u32>,
}

/// Runs a `key` command.
pub(crate) fn run(command: &KeyCommand, out: &Output) -> CliResult {
    match command {
        KeyCommand::List(args) => list(args, out),
        KeyCommand::Add(args) => add(args, out),
        KeyCommand::Remove(args) => remove(args, out),
        KeyCommand::Change(args) => change(args, out),
    }
}

fn list(args: &ListArgs, out: &Output) -> CliResult {
    let vault = session::open_header(&args.vault)?;
    let slots = slot_lines(&vault.loaded.parsed.header);
    if out.is_json() {
        out.json(&slots)?;
    } else {
        for slot in &slots {
            out.line(&format!(
                "{:<3} {:<10} {}  {}",
                slot.id,
                slot.kind,
                slot.created,
                super::show_bytes(slot.label.as_bytes())
            ))?;
        }
    }
    Ok(ExitCode::Ok)
}

/// A new recovery key: where to write it, and its text.
type HandOut = (PathBuf, zeroize::Zeroizing<String>);

impl NewKey {
    /// Obtains the credential of a new slot; for a recovery key also the text to hand out once the slot is durable.
    fn obtain(&self, kind: SlotKind) -> CliResult<(Credential, Option<HandOut>)> {
        if let Some(path) = &self.new_keyfile {
            return Ok((Credential::Keyfile(read_keyfile(path)?), None));
        }
        if let Some(path) = &self.new_recovery_key_out {
            let key = RecoveryKey::generate(&SystemEnv);
            let text = key.to_text();
            return Ok((Credential::Recovery(key), Some((path.clone(), text))));
        }
        if kind == SlotKind::Keyfile && self.new_passfile.is_none() {
            return Err(CliError::usage(
                "this slot is a keyfile: give --new-keyfile FILE (or --new-passfile)",
            ));
        }
        let source = UnlockArgs { passfile: self.new_passfile.clone(), ..UnlockArgs::default() };
        if source.is_prompt() && !std::io::stdin().is_terminal() {
            return Err(CliError::usage(
                "no new key: standard input is no terminal, so nobody can be asked for it",
            )
            .hint("give --new-passfile FILE, --new-keyfile FILE or --new-recovery-key-out FILE"));
        }
        Ok((source.credential("New passphrase", true)?, None))
    }
}

fn cost_of(credential: &Credential, seconds: f64) -> CliResult<Argon2Cost> {
    if !(0.0..=60.0).contains(&seconds) {
        return Err(CliError::usage("--kdf-time takes 0 to 60 seconds"));
    }
    Ok(match credential {
        Credential::Passphrase(_) => Argon2Cost::calibrate(Duration::from_secs_f64(seconds)),
        Credential::Keyfile(_) | Credential::Recovery(_) => Argon2Cost::FLOOR,
    })
}

/// Tells how many slots would be left that a person or a script can open, for the refusal to remove the last one.
fn require_room(header: &Header) -> CliResult<()> {
    if header.slots.len() >= SLOTS_MAX {
        return Err(CliError::usage("the vault has 32 key slots, which is the most there can be"));
    }
    Ok(())
}

fn add(args: &AddArgs, out: &Output) -> CliResult {
    if args.label.len() > 64 {
        return Err(CliError::usage("a label has at most 64 bytes"));
    }
    let _lock = session::lock_header(&args.vault)?;
    let mut vault = session::unlock(&args.vault, &args.unlock, out)?;
    require_room(&vault.header)?;
    let (credential, hand_out) = args.new.obtain(SlotKind::Passphrase)?;
    let cost = cost_of(&credential, args.kdf_time)?;
    let created = session::rfc3339_now();
    let id =
        add_slot(&SystemEnv, &mut vault.header, &vault.root, &credential, cost, args.label.clone(), created)?;
    // The recovery key is on paper-to-be before the slot exists: the other order could lose it.
    if let Some((path, text)) = &hand_out {
        session::write_private_new(path, format!("{}\n", text.as_str()).as_bytes())?;
    }
    header::store(vault.disk.as_ref(), &mut vault.header, &vault.root)?;
    session::note_header_generation(&args.vault, &vault)?;
    report(None, Some(id), &format!("added key slot {id}"), out)
}

/// Says which slots went and came.
fn report(removed: Option<u32>, added: Option<u32>, text: &str, out: &Output) -> CliResult {
    if out.is_json() {
        out.json(&KeyReport { removed, added })?;
    } else {
        out.note(text);
    }
    Ok(ExitCode::Ok)
}

fn remove(args: &RemoveArgs, out: &Output) -> CliResult {
    let _lock = session::lock_header(&args.vault)?;
    let mut vault = session::unlock(&args.vault, &args.unlock, out)?;
    let Some(at) = vault.header.slots.iter().position(|s| s.id == args.slot) else {
        return Err(CliError::new(ExitCode::NotFound, format!("there is no key slot {}", args.slot))
            .hint("`strongroom key list VAULT` shows them"));
    };
    if vault.header.slots.len() == 1 {
        return Err(CliError::usage(
            "this is the only key slot: without it nobody could ever read the vault",
        )
        .hint("add another one first: `strongroom key add`"));
    }
    if vault.slot == args.slot {
        out.warning("the removed slot is the one that unlocked the vault just now");
    }
    vault.header.slots.remove(at);
    header::store(vault.disk.as_ref(), &mut vault.header, &vault.root)?;
    session::note_header_generation(&args.vault, &vault)?;
    report(Some(args.slot), None, &format!("removed key slot {}", args.slot), out)
}

/// What people know a recovery key by.
fn recovery_key_of(slot: &Slot) -> String {
    let label = match slot.label.as_str() {
        "" => String::new(),
        label => format!(", {:?}", super::show_bytes(label.as_bytes())),
    };
    format!("the recovery key of slot {} (made {}{label})", slot.id, slot.created)
}

/// A recovery key is printed and put away: nobody should find out in need that it is void.
fn require_consent(slot: &Slot) -> CliResult<()> {
    let key = recovery_key_of(slot);
    let refuse = || {
        CliError::usage(format!("{key} would open nothing any more; nothing was changed")).hint(
            "`strongroom key add --recovery-key --new-passfile FILE` sets a new passphrase and keeps it; --replace-recovery-key \
             replaces it",
        )
    };
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(refuse());
    }
    let mut err = std::io::stderr().lock();
    let asked =
        write!(err, "{key} will open nothing any more. Replace it? [y/N] ").and_then(|()| err.flush());
    asked.map_err(|e| CliError::new(ExitCode::Io, format!("asking: {e}")))?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .take(64)
        .read_line(&mut answer)
        .map_err(|e| CliError::new(ExitCode::Io, format!("reading the answer: {e}")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(refuse()),
    }
}

fn change(args: &ChangeArgs, out: &Output) -> CliResult {
    let _lock = session::lock_header(&args.vault)?;
    let mut vault = session::unlock(&args.vault, &args.unlock, out)?;
    let old = vault.header.slots.iter().find(|s| s.id == vault.slot).cloned().ok_or_else(|| {
        CliError::new(ExitCode::Failure, "the slot that unlocked the vault is not in its header")
    })?;
    if old.kind == SlotKind::Recovery && !args.replace_recovery_key {
        require_consent(&old)?;
    }
    let (credential, hand_out) = args.new.obtain(old.kind)?;
    let cost = cost_of(&credential, args.kdf_time)?;
    let created = session::rfc3339_now();
    let slot = vault.slot;
    // One write of the header both adds the new slot and drops the old one: never a moment with neither.
    vault.header.slots.retain(|s| s.id != slot);
    let id =
        add_slot(&SystemEnv, &mut vault.header, &vault.root, &credential, cost, old.label.clone(), created)?;
    if let Some((path, text)) = &hand_out {
        session::write_private_new(path, format!("{}\n", text.as_str()).as_bytes())?;
    }
    header::store(vault.disk.as_ref(), &mut vault.header, &vault.root)?;
    session::note_header_generation(&args.vault, &vault)?;
    if old.kind == SlotKind::Recovery {
        out.warning(&format!("{} is void; destroy the paper", recovery_key_of(&old)));
    }
    let text = if slot == id {
        format!(
            "key slot {slot} opens with the new key only; copies of the old header still open with the old one"
        )
    } else {
        format!(
            "key slot {slot} is replaced by slot {id}; copies of the old header still open with the old key"
        )
    };
    report(Some(slot), Some(id), &text, out)
}
