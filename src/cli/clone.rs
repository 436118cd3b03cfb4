//! `clone`: a whole vault from a remote.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::error::{CliError, CliResult, ExitCode};
use super::output::{Output, human_bytes};
use super::remote::{RemoteSettingsArgs, flags};
use super::session;
use super::survey;
use super::unlock::UnlockArgs;
use crate::disk::{Disk, RealDisk};
use crate::env::{Env, SystemEnv};
use crate::fetch::{self, FetchError, RemoteHeader, Report};
use crate::format::Header;
use crate::remote::{self, Counters, Key, Location, LockMode, OpenOptions, RetryPolicy, Settings};
use crate::ship::{Cursor, Remotes, is_name, store_cursor};
use crate::snapshot::chain::Chain;
use crate::snapshot::describe::rfc3339;
use crate::snapshot::open;
use crate::store::error::StoreError;
use crate::store::header::HEADER_PATH;
use crate::store::highwater::HighWaterStore;

/// Arguments of `clone`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom clone s3://bucket/vault /encrypted --region eu-central-1 --profile backup
  strongroom clone sftp://backup@nas/volume1/vault /encrypted
  strongroom clone file:///mnt/usb/vault /encrypted --passfile /root/enc.txt

Needs no key: it copies ciphertext. Every pack is checked against its name and every snapshot file
against its signature before it gets its name here; an interrupted clone is gone on with by the
same command. With a key the header is proved as well, now; without, when it is first unlocked.
The copy remembers the remote: `strongroom ship` and `pull` work from there.
Exit status 25: something is missing or damaged at the remote, and was named; all else was copied.")]
pub(crate) struct CloneArgs {
    /// s3://bucket/prefix, sftp://user@host:port/path, file:///path, webdavs://, azblob:// or gs://
    url: String,
    /// Directory of the copy; made if missing, must be empty, or hold a clone that was interrupted
    vault: PathBuf,
    /// Name under which the copy remembers the remote
    #[arg(long, value_name = "NAME", default_value = "origin")]
    name: String,
    /// Packs under way at a time [default: directories 2, SFTP 4, S3 8]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: Option<u8>,
    /// Say what would be fetched and whether there is room for it; write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Copy a vault that is older than what this host has seen of it
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    settings: RemoteSettingsArgs,
    #[command(flatten)]
    unlock: UnlockArgs,
}

#[derive(Serialize)]
struct Line<'a> {
    vault: String,
    vault_id: String,
    remote: &'a str,
    url: &'a str,
    #[serde(flatten)]
    report: &'a Report,
    /// Whether a key proved the header.
    unlocked: bool,
    /// What keeps the header there from being deleted, where this copy was not told to lock anything.
    locked_there: Option<LockedThere>,
    requests: u64,
    seconds: f64,
}

/// Copies a vault.
pub(crate) fn run(args: &CloneArgs, out: &Output) -> CliResult {
    let started = Instant::now();
    if !is_name(&args.name) {
        return Err(CliError::usage("a remote's name has 1 to 64 lower-case letters, digits and dashes"));
    }
    let settings = args.settings.settings(&args.url)?;
    check_target(&args.vault)?;
    let counters = Arc::new(Counters::default());
    let options = OpenOptions { counters: Arc::clone(&counters), ..OpenOptions::default() };
    let jobs = args.jobs.map_or_else(|| default_jobs(&settings), Ok)?;
    // Nothing else is known of the place: if versions can be read, what hides them or lies over them is not.
    let remote = remote::open(&Settings { by_version: true, ..settings.clone() }, &options)?;
    let there = remote_header(remote.as_ref(), &args.url)?;
    session::warn_unversioned(remote.findings().unversioned, out);
    if let Some(text) = &there.loaded.warning {
        out.warning(&format!("at the remote: {text}"));
    }
    let unlocked = !args.unlock.is_prompt();
    let chosen = choose_header(&there, args, out)?;
    if args.dry_run {
        let begun = RealDisk::open(&args.vault).ok();
        let look = survey::look_at(&remote, jobs)?;
        let here = begun.as_ref().map(|disk| disk as &dyn Disk);
        let (found, chain) = fetch::survey(&look, &chosen.header, here)?;
        check_seen(&session::highwater_store(&chosen.header)?, &chosen.header, &chain, args, out)?;
        return survey::say(&args.vault, (&args.name, &settings.url), None, &found, out);
    }
    let disk = session::create_vault_disk(&args.vault)?;
    let seen = session::highwater_store(&chosen.header)?;
    let bar = out.progress(Some(0), "cloning");
    let cloned = fetch::clone(
        &disk,
        &remote,
        (&chosen.header, &chosen.bytes),
        usize::from(jobs),
        &mut |header, chain| check_seen(&seen, header, chain, args, out),
        &mut |chain| remember(disk.as_ref(), &args.name, &settings, chain),
        &|progress| {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes);
            bar.set_message(format!("{}/{} packs", progress.objects, progress.objects_total));
        },
    );
    bar.finish_and_clear();
    let mut report = cloned?;
    report.damaged.extend(chosen.alarm.clone());
    if unlocked {
        let chain = Chain::load(disk.as_ref(), &chosen.header)?;
        session::note_seen(&args.vault, &chosen.header, &chain)?;
    }
    let locked_there = lock_there(&settings, &options);
    if let Some(lock) = &locked_there {
        out.note(&lock.advice(&args.vault, &args.name, &settings));
    }
    let seconds = started.elapsed().as_secs_f64();
    if out.is_json() {
        out.json(&Line {
            vault: super::json_path(&args.vault),
            vault_id: chosen.header.vault_id.to_hex(),
            remote: &args.name,
            url: &settings.url,
            report: &report,
            unlocked,
            locked_there,
            requests: counters.requests(),
            seconds,
        })?;
    } else {
        out.line(&format!("cloned {}", summary(&report, counters.requests(), seconds)))?;
        if !unlocked {
            out.note("no key was given: unlocking the copy will prove that its header is true");
        }
        if !unlocked && there.count() > 1 {
            out.note(&format!(
                "{} headers are there, and the newest was copied (generation {}). Should no key open the copy: `strongroom pull` with \
                 a key finds the true one",
                there.count(),
                chosen.header.generation
            ));
        }
    }
    Ok(judge(&report, out))
}

/// Refuses what is older than what this host has seen, or says so.
fn check_seen(
    seen: &Option<HighWaterStore>,
    header: &Header,
    chain: &Chain,
    args: &CloneArgs,
    out: &Output,
) -> Result<(), StoreError> {
    let mark = seen.as_ref().map(HighWaterStore::load).transpose()?.flatten();
    match mark.map(|mark| open::check_highwater(&mark, header, chain)) {
        Some(Err(error)) if args.accept_rollback => {
            out.warning(&error.to_string());
            Ok(())
        }
        Some(checked) => checked,
        None => Ok(()),
    }
}

/// An object that is locked at the remote.
#[derive(Serialize)]
struct LockedThere {
    mode: LockMode,
    until: String,
}

/// Asks once whether the header is locked; not every identity may.
fn lock_there(settings: &Settings, options: &OpenOptions) -> Option<LockedThere> {
    if settings.lock.is_some() || !matches!(settings.location(), Ok(Location::S3 { .. })) {
        return None;
    }
    let once = RetryPolicy { tries_max: 1, ..RetryPolicy::NETWORK };
    let options = OpenOptions { retry: Some(once), ..options.clone() };
    let asked = remote::open(settings, &options).and_then(|remote| match Key::new(HEADER_PATH) {
        Some(key) => remote.retention(&key, None),
        None => Ok(None),
    });
    match asked {
        Ok(found) => {
            let found = found.filter(|found| found.until > SystemEnv.now());
            found.map(|found| LockedThere { mode: found.mode, until: rfc3339(found.until.secs, 0) })
        }
        Err(error) => {
            tracing::debug!(%error, "asking whether the header is locked");
            None
        }
    }
}

impl LockedThere {
    /// What an administrator has to do so that the promise is kept from here.
    fn advice(&self, vault: &Path, name: &str, settings: &Settings) -> String {
        format!(
            "objects there are locked ({}, the header until {}), and this copy was not told to lock: `ship` from here would lock \
             and extend nothing. If it is to go on shipping there, with the days that were promised before:\n  strongroom remote \
             add {} {name} {} --replace{} --lock-mode {} --lock-days DAYS",
            self.mode.name(),
            self.until,
            super::shell_path(vault),
            super::shell_word(settings.url.as_bytes()),
            flags(settings),
            self.mode.name(),
        )
    }
}

/// The header that the copy gets.
struct Chosen {
    header: Header,
    bytes: Vec<u8>,
    alarm: Option<String>,
}

/// With a key the one that it proves, else the newest.
fn choose_header(there: &RemoteHeader, args: &CloneArgs, out: &Output) -> CliResult<Chosen> {
    if args.unlock.is_prompt() {
        there.without_key().map_err(|e| CliError::from(e).context(&args.url))?;
        return Ok(Chosen { header: there.header().clone(), bytes: there.bytes.clone(), alarm: None });
    }
    let credential = args.unlock.credential("Passphrase", false)?;
    let proved = there.unlock(&credential, &mut |text| out.warning(text));
    let proved = proved.map_err(|e| CliError::from(e).context(&args.url))?;
    Ok(Chosen { header: proved.unlocked.header, bytes: proved.bytes, alarm: proved.alarm })
}

/// Packs under way at a time, where nothing else is said.
pub(super) fn default_jobs(settings: &Settings) -> CliResult<u8> {
    Ok(match settings.location()? {
        Location::Dir { .. } => 2,
        Location::Sftp { .. } | Location::Webdav { .. } => 4,
        Location::S3 { .. } | Location::Azblob { .. } | Location::Gcs { .. } => 8,
    })
}

/// Reads the header at a remote, with errors that say where.
pub(super) fn remote_header(remote: &dyn remote::Remote, url: &str) -> CliResult<RemoteHeader> {
    fetch::remote_header(remote).map_err(|error| match error {
        FetchError::Vault(StoreError::NotAVault) => {
            CliError::new(ExitCode::NotAVault, format!("{url}: no vault there"))
                .hint("is the path or prefix right? `strongroom ship` puts a vault there")
        }
        other => CliError::from(other).context(url),
    })
}

/// A clone goes into a directory of its own, or goes on where one was interrupted.
fn check_target(path: &Path) -> CliResult<()> {
    let shown = super::show_path(path);
    if ["vault.json", "vault.json.bak"].iter().any(|name| path.join(name).exists()) {
        return Err(CliError::usage(format!("{shown} is a vault already"))
            .hint("`strongroom pull` brings a copy up to date; nothing was changed"));
    }
    match RealDisk::open(path) {
        Ok(disk) if fetch::may_clone_into(&disk)? => Ok(()),
        _ => session::require_new_vault_dir(path),
    }
}

/// Lets the copy know its remote, and what that had.
fn remember(disk: &dyn Disk, name: &str, settings: &Settings, chain: &Chain) -> Result<(), StoreError> {
    Remotes::update::<_, StoreError>(disk, |remotes| {
        remotes.remotes.insert(name.to_string(), settings.clone());
        Ok(())
    })?;
    match chain.head() {
        Some(head) => {
            let cursor =
                Cursor { url: settings.url.clone(), seq: head.seq, id: head.id.to_hex(), unsent: None };
            store_cursor(disk, name, &cursor)
        }
        None => Ok(()),
    }
}

/// What was fetched, in a line.
pub(super) fn summary(report: &Report, requests: u64, seconds: f64) -> String {
    let speed = human_bytes((report.bytes as f64 / seconds.max(0.001)) as u64);
    let newest = match report.latest_complete {
        Some(seq) => format!("snapshot {seq} is the newest that is complete"),
        None => "no snapshot is complete".into(),
    };
    format!(
        "{} packs, {} snapshot files ({}) in {seconds:.1} s ({speed}/s, {requests} requests); {} packs were here; {newest}",
        report.packs,
        report.chain_files,
        human_bytes(report.bytes),
        report.packs_there
    )
}

/// Says what is wrong at the remote.
pub(super) fn judge(report: &Report, out: &Output) -> ExitCode {
    for text in &report.damaged {
        out.warning(&format!("at the remote: {}", super::show_bytes(text.as_bytes())));
    }
    for text in &report.incomplete {
        out.warning(&format!("snapshot {} is incomplete here", super::show_bytes(text.as_bytes())));
    }
    if report.foreign > 0 {
        out.warning(&format!("{} objects there are no part of this vault", report.foreign));
    }
    if report.is_sound() { ExitCode::Ok } else { ExitCode::RemoteAlarm }
}
