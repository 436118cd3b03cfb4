//! `fsck.strongroom`: checks a Strongroom vault, or rescues a snapshot from one. Never writes to a vault.

use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use clap::error::ErrorKind;
use fsck_strongroom::restore::{Restored, restore};
use fsck_strongroom::{Class, DirSource, Options, Progress, Report, Select, Unlock, check};
use zeroize::Zeroizing;

/// fsck(8): no errors.
const CLEAN: u8 = 0;
/// fsck(8): errors left uncorrected.
const ERRORS: u8 = 4;
/// fsck(8): operational error.
const OPERATIONAL: u8 = 8;
/// fsck(8): usage or syntax error.
const USAGE: u8 = 16;
/// fsck(8): cancelled by the user.
const CANCELLED: u8 = 32;

/// Most bytes of a file with a passphrase or recovery key.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Check a Strongroom vault without writing to it.
///
/// Verifies the header, every pack, every frame and chunk, the signed chain of snapshots, and each snapshot's tree
/// down to the paths that damage reaches. An independent reader: it shares no code with strongroom.
#[derive(Parser)]
#[command(name = "fsck.strongroom", bin_name = "fsck.strongroom", version, after_help = EXIT_HELP)]
struct Cli {
    /// The vault's directory
    vault: PathBuf,

    /// Read the passphrase from this file
    #[arg(long, value_name = "FILE", help_heading = "Key", group = "key")]
    passfile: Option<PathBuf>,
    /// Open the vault with this key file
    #[arg(long, value_name = "FILE", help_heading = "Key", group = "key")]
    keyfile: Option<PathBuf>,
    /// Read a recovery key from this file, or from standard input with `-`
    #[arg(long, value_name = "FILE", help_heading = "Key", group = "key")]
    recovery_key: Option<PathBuf>,
    /// Read the passphrase from standard input
    #[arg(short = 'S', long, help_heading = "Key", group = "key")]
    stdin_pass: bool,
    /// Check what can be checked without a key
    #[arg(long, help_heading = "Key", group = "key")]
    no_key: bool,

    /// Check only this snapshot: its sequence number, or `latest`
    #[arg(long, value_name = "SEQ", value_parser = select)]
    snapshot: Option<Select>,
    /// Leave file data out: check headers, footers and trees only
    #[arg(long)]
    quick: bool,
    /// Refuse a chain that does not contain this snapshot, as `SEQ-ID` (the name of its file)
    #[arg(long, value_name = "SEQ-ID", value_parser = mark)]
    high_water: Option<(u64, [u8; 32])>,
    /// Verify this many packs at once [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Write this snapshot (its sequence number, or `latest`) to the directory given by --to
    #[arg(long, value_name = "SEQ", value_parser = select, requires = "to", conflicts_with_all = ["snapshot", "no_key"])]
    restore: Option<Select>,
    /// Empty directory to restore to
    #[arg(long, value_name = "DIR", requires = "restore")]
    to: Option<PathBuf>,

    /// Accepted for fsck(8): a vault is never written to
    #[arg(short = 'n', help_heading = "fsck(8)")]
    n: bool,
    /// Accepted for fsck(8): a vault is never written to
    #[arg(short = 'y', help_heading = "fsck(8)")]
    y: bool,
    /// Accepted for fsck(8): a vault is never written to
    #[arg(short = 'a', help_heading = "fsck(8)")]
    a: bool,
    /// Accepted for fsck(8): a vault is never written to
    #[arg(short = 'p', help_heading = "fsck(8)")]
    p: bool,
    /// Accepted for fsck(8): every check is a full one
    #[arg(short = 'f', help_heading = "fsck(8)")]
    f: bool,
    /// Report progress: for people with 0, as lines `PASS DONE TOTAL VAULT` on this file descriptor otherwise
    #[arg(short = 'C', value_name = "FD", allow_negative_numbers = true, help_heading = "fsck(8)")]
    progress: Option<i32>,
}

const EXIT_HELP: &str = "\
Exit status:
  0   the vault is clean, or the restore was whole
  4   damage was found, or a snapshot is incomplete, or the restore was not whole
  8   the vault could not be checked: no vault, a newer format, a wrong key
  16  usage error
  32  cancelled";

fn select(text: &str) -> Result<Select, String> {
    if text == "latest" {
        return Ok(Select::Latest);
    }
    text.parse().map(Select::Sequence).map_err(|_| "neither a sequence number nor `latest`".to_owned())
}

fn mark(text: &str) -> Result<(u64, [u8; 32]), String> {
    fsck_strongroom::chain::parse_name(text).ok_or_else(|| "not the name of a file in snapshots/".to_owned())
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let good = matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(match (e.print(), good) {
                (Ok(()), true) => CLEAN,
                (Err(_), true) => OPERATIONAL,
                (_, false) => USAGE,
            });
        }
    };
    let code = match run(&cli) {
        Ok(code) => code,
        Err(Stop { code, message }) => {
            complain(&message);
            code
        }
    };
    ExitCode::from(code)
}

/// Why the program ends early.
struct Stop {
    code: u8,
    message: String,
}

fn failed(message: impl Into<String>) -> Stop {
    Stop { code: OPERATIONAL, message: message.into() }
}

fn complain(message: &str) {
    // With standard error gone there is nobody left to tell; the exit code still speaks.
    writeln!(io::stderr(), "fsck.strongroom: {message}").ok();
}

fn run(cli: &Cli) -> Result<u8, Stop> {
    let about_vault = |e: &dyn std::fmt::Display| failed(format!("{}: {e}", cli.vault.display()));
    // Before anybody is asked for a passphrase.
    std::fs::read_dir(&cli.vault).map_err(|e| about_vault(&e))?;
    // The handlers come after the prompt: there, Ctrl-C must end the program and give the terminal its echo back.
    let key = key(cli)?;
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second signal ends the program at once, should it be stuck in a read.
        signal_hook::flag::register_conditional_shutdown(signal, CANCELLED.into(), cancel.clone())
            .and_then(|_| signal_hook::flag::register(signal, cancel.clone()))
            .map_err(|e| failed(format!("signal handler: {e}")))?;
    }
    let jobs = cli.jobs.map(usize::from);
    let opts = Options {
        snapshot: cli.restore.or(cli.snapshot),
        quick: cli.quick,
        jobs: jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        high_water: cli.high_water,
        cancel: Some(cancel),
        progress: progress(cli)?,
        ..Options::default()
    };
    if let (Some(_), Some(to)) = (cli.restore, &cli.to) {
        let key = key.ok_or_else(|| failed("a restore needs a key"))?;
        let source = DirSource::new(&cli.vault);
        let restored = restore(&source, key, to, &opts).map_err(|e| about_vault(&e))?;
        tell_restore(cli, to, &restored).map_err(output)?;
        let whole = if restored.is_whole() { CLEAN } else { ERRORS };
        return Ok(if restored.cancelled { CANCELLED } else { whole });
    }
    let report = check(&cli.vault, key, &opts).map_err(|e| about_vault(&e))?;
    tell_report(cli, &report).map_err(output)?;
    let clean = if report.is_clean() { CLEAN } else { ERRORS };
    Ok(if report.cancelled { CANCELLED } else { clean })
}

fn output(error: io::Error) -> Stop {
    failed(format!("writing the report: {error}"))
}

fn tell_report(cli: &Cli, report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if cli.json {
        serde_json::to_writer_pretty(&mut out, report)?;
        return writeln!(out);
    }
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    if report.findings_dropped > 0 {
        writeln!(out, "and {} more findings", report.findings_dropped)?;
    }
    for s in report.snapshots.iter().filter(|s| s.paths_affected > 0) {
        writeln!(out, "snapshot {}: {} paths can't be restored as they were", s.sequence, s.paths_affected)?;
    }
    let what = match (report.cancelled, report.unlocked, report.quick) {
        (true, ..) => "cancelled",
        (_, false, _) => "checked without a key",
        (.., true) => "checked without file data",
        _ => "checked",
    };
    let latest = match report.latest {
        Some(latest) => format!("the newest complete one is {latest}"),
        None => "none is complete".to_owned(),
    };
    let (snapshots, packs) = (report.snapshots.len(), report.packs.files);
    let chunks = match report.packs.chunks_verified {
        0 => String::new(),
        n => format!(" with {n} verified chunks"),
    };
    let snapshots =
        if snapshots == 0 { "no snapshots".to_owned() } else { format!("{snapshots} snapshots, {latest}") };
    let verdict = if report.damage {
        "DAMAGED"
    } else if report.has(Class::Incomplete) {
        "incomplete"
    } else if report.cancelled {
        "not finished"
    } else {
        "clean"
    };
    writeln!(out, "{}: {what}: {snapshots}; {packs} packs{chunks}: {verdict}", cli.vault.display())
}

fn tell_restore(cli: &Cli, to: &Path, restored: &Restored) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if cli.json {
        serde_json::to_writer_pretty(&mut out, restored)?;
        return writeln!(out);
    }
    for finding in restored.vault.findings.iter().chain(&restored.findings) {
        writeln!(out, "{finding}")?;
    }
    let verdict = match (restored.cancelled, restored.is_whole()) {
        (true, _) => "cancelled",
        (false, true) => "whole",
        (false, false) => "NOT WHOLE, see above for the paths",
    };
    let Restored { sequence, entries, bytes, .. } = restored;
    writeln!(out, "snapshot {sequence} in {}: {entries} entries, {bytes} bytes: {verdict}", to.display())
}

/// The key that the options name, or one that is asked for.
fn key(cli: &Cli) -> Result<Option<Unlock>, Stop> {
    if cli.no_key {
        return Ok(None);
    }
    if let Some(path) = &cli.keyfile {
        let max = fsck_strongroom::keys::KEYFILE_BYTES_MAX as u64;
        return Ok(Some(Unlock::Keyfile(take(secret_file(path, max)?))));
    }
    if let Some(path) = &cli.recovery_key {
        let bytes =
            if path.as_os_str() == "-" { stdin_line()? } else { secret_file(path, SECRET_BYTES_MAX)? };
        let text = std::str::from_utf8(&bytes).map_err(|_| failed("the recovery key is not text"))?;
        return Ok(Some(Unlock::Recovery(text.to_owned())));
    }
    let mut passphrase = if let Some(path) = &cli.passfile {
        secret_file(path, SECRET_BYTES_MAX)?
    } else if cli.stdin_pass {
        stdin_line()?
    } else {
        let prompt = format!("Passphrase for {}: ", cli.vault.display());
        match rpassword::prompt_password(prompt) {
            Ok(text) if text.is_empty() => {
                return Err(Stop { code: CANCELLED, message: "no passphrase".into() });
            }
            Ok(text) => return Ok(Some(Unlock::Passphrase(text.into_bytes()))),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Stop { code: CANCELLED, message: "cancelled".into() });
            }
            Err(e) => {
                return Err(failed(format!("can't ask for the passphrase ({e}); use --passfile or -S")));
            }
        }
    };
    if passphrase.last() == Some(&b'\n') {
        passphrase.pop();
    }
    Ok(Some(Unlock::Passphrase(take(passphrase))))
}

/// Moves bytes out of their wrapper; [`Unlock`] wipes them in its turn.
fn take(mut bytes: Zeroizing<Vec<u8>>) -> Vec<u8> {
    std::mem::take(&mut *bytes)
}

/// Reads a file with a secret. One that others may read is refused.
fn secret_file(path: &Path, max: u64) -> Result<Zeroizing<Vec<u8>>, Stop> {
    let shown = path.display();
    let error = |e: io::Error| failed(format!("{shown}: {e}"));
    let file = OpenOptions::new().read(true).open(path).map_err(error)?;
    let meta = file.metadata().map_err(error)?;
    if meta.is_file() && meta.mode() & 0o044 != 0 {
        return Err(failed(format!("{shown} can be read by others; run: chmod go-rwx '{shown}'")));
    }
    read_max(file, max).map_err(error)?.ok_or_else(|| failed(format!("{shown}: longer than {max} bytes")))
}

/// Reads all of `from`, none if it is longer than `max` bytes.
fn read_max(from: impl Read, max: u64) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    // Room for all of it at once, so that no copy stays behind when it grows.
    let mut bytes = Zeroizing::new(Vec::with_capacity(max as usize + 1));
    from.take(max + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= max).then_some(bytes))
}

/// The first line of standard input, with its newline.
fn stdin_line() -> Result<Zeroizing<Vec<u8>>, Stop> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX as usize));
    io::stdin()
        .lock()
        .take(SECRET_BYTES_MAX)
        .read_until(b'\n', &mut bytes)
        .map_err(|e| failed(format!("standard input: {e}")))?;
    Ok(bytes)
}

type Tell = Arc<dyn Fn(Progress) + Send + Sync>;

/// What `-C` asks for.
fn progress(cli: &Cli) -> Result<Option<Tell>, Stop> {
    let Some(fd) = cli.progress.filter(|&fd| fd >= 0) else { return Ok(None) };
    if fd == 0 && (cli.json || !io::stderr().is_terminal()) {
        return Ok(None);
    }
    let mut out: Box<dyn Write + Send> = if fd == 0 {
        Box::new(io::stderr())
    } else {
        let file = OpenOptions::new().write(true).open(format!("/dev/fd/{fd}"));
        Box::new(file.map_err(|e| failed(format!("-C {fd}: {e}")))?)
    };
    let vault = cli.vault.display().to_string();
    let shown = AtomicI64::new(-1);
    let lock = Mutex::new(move |p: Progress| {
        if fd == 0 {
            let what = if p.pass == 1 { "packs" } else { "trees" };
            let percent = p.done.saturating_mul(100) / p.total.max(1);
            write!(out, "\r{what}: {percent} %{}", if p.done >= p.total { "\n" } else { "" })
        } else {
            writeln!(out, "{} {} {} {vault}", p.pass, p.done, p.total)
        }
    });
    Ok(Some(Arc::new(move |p: Progress| {
        // Told for each megabyte of a pack; worth showing for each thousandth.
        let step =
            i64::from(p.pass) * 10_000 + (p.done.saturating_mul(1000) / p.total.max(1)).min(1000) as i64;
        if shown.swap(step, Ordering::Relaxed) != step {
            let mut write = lock.lock().unwrap_or_else(PoisonError::into_inner);
            // Progress that nobody reads is no reason to stop a check.
            write(p).ok();
        }
    })))
}
