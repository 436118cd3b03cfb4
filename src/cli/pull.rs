//! `pull`: brings a copy of a vault up to what its remote has.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::clone::{default_jobs, judge, remote_header, summary};
use super::error::{CliError, CliResult, ExitCode};
use super::output::Output;
use super::remote::find;
use super::session::{self, WorkOptions};
use super::survey;
use super::unlock::UnlockArgs;
use super::values::speed;
use crate::config::engine_config;
use crate::disk::Disk;
use crate::fetch::{self, FetchError, Prepared, Proved, RemoteHeader, Report, State};
use crate::format::chain::name as chain_name;
use crate::format::{Header, SnapshotId};
use crate::mount::holder::{self, Holder};
use crate::remote::{self, Counters, OpenOptions, Remote, Settings};
use crate::ship::{Cursor, Remotes, load_cursor, store_cursor};
use crate::snapshot::chain::Chain;
use crate::snapshot::open::{self, Unlocked};
use crate::store::error::StoreError;
use crate::store::header::LoadedHeader;
use crate::store::highwater::HighWaterStore;

/// Arguments of `pull`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom pull /encrypted --passfile /root/enc.txt
  strongroom pull /mirror --from offsite

Fetches what this copy lacks, and lets its working tree start from the remote's newest snapshot. The
vault must not be mounted. A copy that was never mounted needs no key; else the key shows whether its
working tree has changes that no snapshot has, which are never dropped without --discard-live.
Exit status 25: both sides have snapshots that the other one has not, or something is wrong at the
remote; nothing here was replaced.")]
pub(crate) struct PullArgs {
    /// The vault
    vault: PathBuf,
    /// The remote to pull from; not needed where there is only one
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    /// Packs under way at a time [default: directories 2, SFTP 4, S3 8]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: Option<u8>,
    /// Receive at most so much a second: 500k, 10M
    #[arg(long, value_name = "SPEED", value_parser = speed)]
    limit_download: Option<u64>,
    /// Say what would be fetched and whether there is room for it; write nothing, and try no key
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Drop what is in the working tree here and in no snapshot
    #[arg(long)]
    discard_live: bool,
    /// Follow a remote that is older than what this host has seen
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    unlock: UnlockArgs,
}

#[derive(Serialize)]
struct Line<'a> {
    remote: &'a str,
    url: &'a str,
    /// `same`, `behind` (and brought up to date) or `ahead`.
    was: &'static str,
    #[serde(flatten)]
    report: &'a Report,
    requests: u64,
    seconds: f64,
}

/// Brings a copy up to date.
pub(crate) fn run(args: &PullArgs, out: &Output) -> CliResult {
    let started = Instant::now();
    let vault = session::open_header(&args.vault)?;
    let remotes = Remotes::load(vault.disk.as_ref())?;
    let (name, settings) = choose(&remotes, args.from.as_deref())?;
    refuse_mounted(&args.vault, out)?;
    let counters = Arc::new(Counters::default());
    let options = OpenOptions {
        counters: Arc::clone(&counters),
        limit_download: args.limit_download,
        ..OpenOptions::default()
    };
    let jobs = args.jobs.map_or_else(|| default_jobs(settings), Ok)?;
    let remote = remote::open(&Settings { by_version: true, ..settings.clone() }, &options)?;
    let theirs = remote_header(remote.as_ref(), &settings.url)?;
    session::warn_unversioned(remote.findings().unversioned, out);
    if args.unlock.is_prompt() {
        theirs.without_key().map_err(|e| CliError::from(e).context(&settings.url))?;
    }
    let ours = vault.loaded.parsed.header.clone();
    let cursor = load_cursor(vault.disk.as_ref(), name)?.filter(|cursor| cursor.url == remote.url());
    let lost_is_fine = args.accept_rollback;
    let seen = cursor.filter(|_| !lost_is_fine).and_then(|cursor| Some((cursor.seq, cursor.snapshot_id()?)));
    if args.dry_run {
        return rehearse(args, vault.disk.as_ref(), (name, settings), (&remote, &theirs, jobs), seen, out);
    }
    let store = session::highwater_store(&ours)?;
    let bar = out.progress(Some(0), "pulling");
    let prepared = fetch::prepare(
        &vault.disk,
        &remote,
        &ours,
        &theirs,
        seen,
        usize::from(jobs),
        &mut |chain| check_seen(&store, &ours, chain, args),
        &|progress| {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes);
            bar.set_message(format!("{}/{} packs", progress.objects, progress.objects_total));
        },
    );
    bar.finish_and_clear();
    let mut prepared = prepared?;
    let alarm = move_on(args, vault.disk, vault.loaded, &theirs, &prepared, out)?;
    prepared.report.damaged.extend(alarm);
    let report = &prepared.report;
    let disk = session::open_header(&args.vault)?.disk;
    if let (Some(head), true) = (prepared.chain().head(), report.is_sound()) {
        let cursor = Cursor { url: settings.url.clone(), seq: head.seq, id: head.id.to_hex(), unsent: None };
        store_cursor(disk.as_ref(), name, &cursor)?;
    }
    let (was, text) = describe(prepared.state);
    let seconds = started.elapsed().as_secs_f64();
    if out.is_json() {
        let (remote, url, requests) = (name, settings.url.as_str(), counters.requests());
        out.json(&Line { remote, url, was, report, requests, seconds })?;
    } else {
        out.line(&format!("{text}; fetched {}", summary(report, counters.requests(), seconds)))?;
    }
    Ok(judge(report, out))
}

/// Refuses what is older than what this host has seen.
fn check_seen(
    seen: &Option<HighWaterStore>,
    ours: &Header,
    chain: &Chain,
    args: &PullArgs,
) -> Result<(), StoreError> {
    let mark = seen.as_ref().map(HighWaterStore::load).transpose()?.flatten();
    match mark.map(|mark| open::check_highwater(&mark, ours, chain)) {
        Some(Err(error)) if !args.accept_rollback => Err(error),
        _ => Ok(()),
    }
}

/// Says what would be fetched.
fn rehearse(
    args: &PullArgs,
    disk: &dyn Disk,
    (name, settings): (&str, &Settings),
    (remote, theirs, jobs): (&Arc<dyn Remote>, &RemoteHeader, u8),
    seen: Option<(u64, SnapshotId)>,
    out: &Output,
) -> CliResult {
    let ours = session::open_header(&args.vault)?.loaded.parsed.header;
    fetch::check_header(&ours, theirs)?;
    let (found, chain) = fetch::survey(&survey::look_at(remote, jobs)?, &ours, Some(disk))?;
    if let Some((seq, id)) = seen.filter(|(seq, id)| !chain.contains(*seq, id)) {
        return Err(FetchError::Lost(chain_name(seq, &id)).into());
    }
    let state = fetch::compare(&Chain::load(disk, &ours)?, &chain)?;
    if !matches!(state, State::Ahead(_)) {
        check_seen(&session::highwater_store(&ours)?, &ours, &chain, args)?;
    }
    let (was, _) = describe(state);
    survey::say(&args.vault, (name, &settings.url), Some(was), &found, out)
}

/// How the copy stood to the remote, in JSON and for people.
fn describe(state: State) -> (&'static str, String) {
    match state {
        State::Same => ("same", "up to date".to_string()),
        State::Behind(n) => ("behind", format!("brought up to date, by {n} snapshot files")),
        State::Ahead(n) => {
            ("ahead", format!("has {n} snapshot files that the remote has not; `strongroom ship` sends them"))
        }
    }
}

/// The remote that was named, or the only one.
fn choose<'a>(remotes: &'a Remotes, from: Option<&'a str>) -> CliResult<(&'a str, &'a Settings)> {
    if let Some(name) = from {
        return Ok((name, find(remotes, name)?));
    }
    let mut all = remotes.remotes.iter();
    match (all.next(), all.next()) {
        (Some((name, settings)), None) => Ok((name, settings)),
        (None, _) => Err(CliError::usage("this vault has no remotes")
            .hint("`strongroom remote add VAULT NAME URL` makes one")),
        _ => Err(CliError::usage("this vault has several remotes: say which with --from")),
    }
}

/// Fetching for hours into a vault that can't be moved on then would be a pity.
fn refuse_mounted(path: &Path, out: &Output) -> CliResult<()> {
    session::wait_for_daemon(path, out)?;
    match holder::probe(path)? {
        Holder::Free | Holder::Dead { .. } => Ok(()),
        holder => Err(holder::in_use(path, &holder).into()),
    }
}

/// Moves the copy on, if it is behind, and takes the newest true header over, if a key was given that proves it. Returns what
/// is to be said of headers that are not true.
fn move_on(
    args: &PullArgs,
    disk: Arc<dyn Disk>,
    loaded: LoadedHeader,
    theirs: &RemoteHeader,
    prepared: &Prepared,
    out: &Output,
) -> CliResult<Option<String>> {
    let before = loaded.parsed;
    let ours = before.header.clone();
    let behind = matches!(prepared.state, State::Behind(_));
    let has_live = prepared.has_live_state()?;
    let look = behind && has_live && !args.discard_live;
    let mut unlocked = None;
    if look || !args.unlock.is_prompt() {
        let what = format!("Passphrase for {}", super::show_path(&args.vault));
        let credential = args.unlock.credential(&what, false)?;
        unlocked = Some(theirs.beside(&before).unlock(&credential, &mut |text| out.warning(text))?);
    } else if theirs.header().generation > ours.generation {
        out.warning(
            "keys were changed since this copy was made; `pull` with a key takes the new header over",
        );
    }
    if let (Some(Proved { unlocked, .. }), true) = (&unlocked, look) {
        let work =
            WorkOptions { accept_rollback: args.accept_rollback, discard_live: false, purpose: "pull" };
        let disk = Arc::clone(&disk);
        let opened = session::open_behind_mark(&args.vault, disk, unlocked, &work, out)?;
        let moved = prepared.check(&ours, Some(&opened.engine)).map_err(CliError::from).and_then(|movable| {
            session::note_clean(&ours)?;
            Ok(movable.apply()?)
        });
        opened.engine.close()?;
        moved?;
    } else if behind {
        let lock = open::lock(disk.as_ref(), &format!("{} strongroom pull", std::process::id()))?;
        // Somebody may have mounted it, and have written, while a key was asked for.
        if !args.discard_live && prepared.has_live_state()? {
            return Err(CliError::new(
                ExitCode::InUse,
                "the vault was mounted while it was being pulled into",
            )
            .hint("pull again: what was fetched is here"));
        }
        let movable = prepared.check(&ours, None)?;
        session::note_clean(&ours)?;
        movable.apply()?;
        drop(lock);
    }
    let Some(Proved { unlocked, bytes, alarm }) = unlocked else { return Ok(None) };
    if bytes != before.header.encode(|_| before.mac) {
        let _lock = session::lock_header(&args.vault)?;
        // Fetching may have taken hours.
        if session::open_header(&args.vault)?.loaded.parsed != before {
            return Err(CliError::new(
                ExitCode::InUse,
                "keys were changed here while it was being pulled into",
            )
            .hint("pull again; the remote's header was not taken over"));
        }
        fetch::take_header(disk.as_ref(), &bytes)?;
    }
    note_and_start(args, disk, &unlocked, behind && has_live, out)?;
    Ok(alarm)
}

/// With a key at hand, makes the new working tree at once, where there was one: if something is wrong with it, it is better
/// heard of now.
fn note_and_start(
    args: &PullArgs,
    disk: Arc<dyn Disk>,
    unlocked: &Unlocked,
    start: bool,
    out: &Output,
) -> CliResult<()> {
    let chain = Chain::load(disk.as_ref(), &unlocked.header)?;
    session::note_seen(&args.vault, &unlocked.header, &chain)?;
    if start {
        // The live state that was here counts for nothing any more. If there is one, somebody has begun to work with it.
        let work =
            WorkOptions { accept_rollback: args.accept_rollback, discard_live: false, purpose: "pull" };
        match session::open_unlocked(&args.vault, disk, unlocked, &work, engine_config(), out) {
            Ok(opened) => session::close_work(&args.vault, &opened)?,
            Err(error) if error.code == ExitCode::InUse => out.note(&error.message),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
