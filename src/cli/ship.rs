//! `ship`: copies a vault to its remotes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar};
use serde::Serialize;

use super::error::{CliError, CliResult, ExitCode};
use super::output::{Output, human_bytes};
use super::remote::find;
use super::session;
use super::values::{duration, speed};
use crate::disk::Disk;
use crate::env::{Env, SystemEnv};
use crate::remote::{
    self, Counters, ErrorKind, OpenOptions, Pause, RealPause, Remote, RemoteError, Settings, SharedLimits,
};
use crate::ship::{self, Bounds, Ended, Jobs, LockReport, Remotes, Report, ShipOptions, Verified};
use crate::store::error::StoreError;

/// Names that a warning shows.
const NAMES_SHOWN: usize = 5;

/// Arguments of `ship`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  strongroom ship /encrypted
  strongroom ship /encrypted --to offsite --limit-upload 10M
  strongroom ship --to offsite,usb /encrypted
  strongroom ship /encrypted --dry-run --json
  strongroom ship /encrypted --verify
  strongroom ship /encrypted --watch

Needs no key, and works while the vault is mounted. What a remote has already is not sent again;
an interrupted ship goes on where it was. Packs go first and snapshots last, so the remote
restores at every moment. Nothing there is ever overwritten or deleted. Where objects are locked
(`remote add --lock-mode --lock-days`), what the snapshots there need is locked for longer.

All remotes are shipped to at the same time, and none waits for another; what came of each is
printed in order of names.

--verify looks at everything the remote has: one small request for each object where the endpoint
keeps checksums; elsewhere objects are read. An interrupted one goes on where it was.

--watch stays in the foreground (for systemd: contrib/systemd) and sends packs as they close and
snapshots as they appear. Remotes that are away are tried again. Ends with 0 at SIGTERM and SIGINT.

Exit status 25: a remote holds something else than this vault shipped, or has lost some of it; 16:
another process ships there at this moment.")]
pub(crate) struct ShipArgs {
    /// The vault
    pub(super) vault: PathBuf,
    /// Ship to this remote only; several: with commas between them, or once for each
    #[arg(long = "to", value_name = "NAME", value_delimiter = ',')]
    pub(super) to: Vec<String>,
    /// Packs under way at a time to each remote [default: as many as help, found by measuring]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: Option<u8>,
    /// Send at most so much a second, to all remotes together (--watch: to each): 500k, 10M
    #[arg(long, value_name = "SPEED", value_parser = speed)]
    limit_upload: Option<u64>,
    /// Receive at most so much a second, likewise
    #[arg(long, value_name = "SPEED", value_parser = speed)]
    limit_download: Option<u64>,
    /// Verify everything that is there as well; with --dry-run, nothing else
    #[arg(long)]
    verify: bool,
    /// Keep running, and ship what appears
    #[arg(long, conflicts_with_all = ["dry_run", "start_over", "verify"])]
    watch: bool,
    /// With --watch: look at the vault at least so often
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "watch", default_value = "60s")]
    pub(super) interval: Duration,
    /// Say what would be sent, send nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Ship everything again to a remote that lost what it had
    #[arg(long)]
    start_over: bool,
    /// Object Lock: only extend what is there, for credentials that may do nothing else; send nothing
    #[arg(long, conflicts_with_all = ["start_over", "verify", "watch"])]
    extend_only: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    remote: &'a str,
    url: &'a str,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    report: Option<&'a Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<&'a Verified>,
    requests: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Ships to all remotes at the same time: one that fails, or that does not answer for long, keeps none of the others from
/// being shipped to. What came of each is said in their order.
pub(crate) fn run(args: &ShipArgs, out: &Output) -> CliResult {
    let vault = session::open_header(&args.vault)?;
    let remotes = Remotes::load(vault.disk.as_ref())?;
    let chosen: Vec<(&str, &Settings)> = match args.to.is_empty() {
        true => remotes.remotes.iter().map(|(name, settings)| (name.as_str(), settings)).collect(),
        false => {
            let mut names: Vec<&str> = Vec::new();
            for name in &args.to {
                if !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
            names.into_iter().map(|name| Ok((name, find(&remotes, name)?))).collect::<CliResult<_>>()?
        }
    };
    if chosen.is_empty() {
        return Err(CliError::usage("this vault has no remotes")
            .hint("`strongroom remote add VAULT NAME URL` makes one"));
    }
    if args.watch {
        drop(vault);
        return super::watch::run(args, out);
    }
    let bars = out.bars();
    let shared = SharedLimits::new(args.limit_upload, args.limit_download, chosen.len(), &system_env());
    let memory = available_memory() / chosen.len() as u64;
    let common = Common { args, disk: &vault.disk, out, bars: &bars, shared: &shared, memory };
    let mut worst = ExitCode::Ok;
    std::thread::scope(|scope| {
        let threads: Vec<_> = chosen
            .into_iter()
            .map(|(name, settings)| {
                let job = Job { common, name, settings };
                let thread = std::thread::Builder::new().name(format!("ship-{name}"));
                (name, settings, thread.spawn_scoped(scope, move || job.one()))
            })
            .collect();
        for (name, settings, thread) in threads {
            let ended = match thread.map(|thread| thread.join()) {
                Ok(Ok(ended)) => ended,
                Ok(Err(_)) => EndedJob::failed("the thread that ships failed"),
                Err(error) => EndedJob::failed(&format!("starting a thread: {error}")),
            };
            worst = worst.and(bars.suspend(|| say(ended, name, settings, out)));
        }
    });
    Ok(worst)
}

fn system_env() -> Arc<dyn Env> {
    Arc::new(SystemEnv)
}

/// How many packs at a time: what was asked for, or what measuring finds, with so much memory for them.
pub(super) fn jobs(
    args: &ShipArgs,
    settings: &Settings,
    counters: &Arc<Counters>,
    memory: u64,
) -> Result<Jobs, remote::RemoteError> {
    Ok(match args.jobs {
        Some(jobs) => Jobs::Fixed(usize::from(jobs)),
        None => Jobs::Measured {
            bounds: Bounds::of(&settings.location()?, memory),
            counters: Arc::clone(counters),
            env: system_env(),
        },
    })
}

/// Bytes of memory that programs may still take.
pub(super) fn available_memory() -> u64 {
    let read = std::fs::read_to_string("/proc/meminfo").ok();
    let line = read.as_deref().and_then(|text| text.lines().find_map(|l| l.strip_prefix("MemAvailable:")));
    let kib: Option<u64> = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok());
    // Without /proc: what the smallest machine has.
    kib.map_or(256 << 20, |kib| kib.saturating_mul(1024))
}

/// How to reach a remote, as the command line has it.
pub(super) fn open_options(args: &ShipArgs, counters: &Arc<Counters>) -> OpenOptions {
    OpenOptions {
        counters: Arc::clone(counters),
        limit_upload: args.limit_upload,
        limit_download: args.limit_download,
        ..OpenOptions::default()
    }
}

/// Says that something is tried again, so that nobody looks at a silent terminal for a quarter of an hour: once for each kind
/// of trouble.
#[derive(Debug)]
struct Patience {
    name: String,
    out: Output,
    bar: ProgressBar,
    said: Mutex<Vec<ErrorKind>>,
}

impl Pause for Patience {
    fn pause(&self, time: Duration) {
        RealPause.pause(time);
    }

    fn retrying(&self, error: &RemoteError, _tries: u32) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if !said.contains(&error.kind) {
            said.push(error.kind);
            let text = super::show_bytes(format!("{}: {}", self.name, error.message).as_bytes());
            self.bar.suspend(|| self.out.note(&format!("{text}; trying again")));
        }
    }
}

/// What others are told who find a remote locked.
pub(super) fn note(what: &str) -> String {
    format!("strongroom {what}, process {}", std::process::id())
}

/// What became of one remote. What was done and found is kept whatever failed afterwards.
#[derive(Default)]
struct Done {
    /// Shipping began.
    report: Option<Report>,
    /// Verifying began.
    verified: Option<Verified>,
    errors: Vec<CliError>,
}

impl Done {
    fn failed(&mut self, error: impl Into<CliError>) {
        self.errors.push(error.into());
    }
}

/// What all remotes are shipped to with.
#[derive(Clone, Copy)]
struct Common<'a> {
    args: &'a ShipArgs,
    disk: &'a Arc<dyn Disk>,
    out: &'a Output,
    bars: &'a MultiProgress,
    shared: &'a SharedLimits,
    /// Bytes of memory for the packs under way to one of them.
    memory: u64,
}

/// A remote that is shipped to.
struct Job<'a> {
    common: Common<'a>,
    name: &'a str,
    settings: &'a Settings,
}

/// What is to be said of a remote.
#[derive(Default)]
struct EndedJob {
    done: Done,
    requests: u64,
    seconds: f64,
}

impl EndedJob {
    fn failed(text: &str) -> Self {
        let mut ended = Self::default();
        ended.done.failed(CliError::new(ExitCode::Failure, text));
        ended
    }
}

impl Job<'_> {
    /// Ships, and prints nothing but what can't wait.
    fn one(&self) -> EndedJob {
        let started = Instant::now();
        let counters = Arc::new(Counters::default());
        let bar = self.common.out.progress_among(self.common.bars, Some(0), self.name);
        let mut done = Done::default();
        self.run(&counters, &bar, &mut done);
        bar.finish_and_clear();
        EndedJob { done, requests: counters.requests(), seconds: started.elapsed().as_secs_f64() }
    }

    /// No shipment is remembered of a dry run; with --extend-only nothing is sent.
    fn remembers(&self) -> bool {
        !self.common.args.dry_run && !self.common.args.extend_only
    }

    /// Ships, and looks at what is there if that is wanted.
    fn run(&self, counters: &Arc<Counters>, bar: &ProgressBar, done: &mut Done) {
        let Common { args, disk, out, .. } = self.common;
        let lock = match args.dry_run {
            true => None,
            false => match ship::lock_remote(disk.as_ref(), self.name, &note("ship")) {
                Ok(lock) => Some(lock),
                // Who has it remembers what comes of it.
                Err(error) => return done.failed(error),
            },
        };
        let patience =
            Patience { name: self.name.into(), out: *out, bar: bar.clone(), said: Mutex::default() };
        let options = OpenOptions {
            pause: Arc::new(patience),
            shared: Some(self.common.shared.clone()),
            ..open_options(args, counters)
        };
        let opened = jobs(args, self.settings, counters, self.common.memory)
            .and_then(|jobs| Ok((jobs, remote::open(self.settings, &options)?)));
        let is_shipped = match &opened {
            Ok((jobs, remote)) => self.ship(remote, jobs, bar, done),
            Err(error) => {
                done.failed(error.clone());
                false
            }
        };
        bar.finish_and_clear();
        // While nobody else can ship: an alarm of theirs would be written over.
        if self.remembers() {
            self.remember(done);
        }
        // Looking takes long, and is in nobody's way.
        drop(lock);
        if let (Ok((jobs, remote)), true) = (&opened, args.verify && is_shipped) {
            self.verify(remote, jobs, done);
        }
    }

    /// Returns whether everything is there, though that may be forgotten.
    fn ship(&self, remote: &Arc<dyn Remote>, jobs: &Jobs, bar: &ProgressBar, done: &mut Done) -> bool {
        let Common { args, disk, .. } = self.common;
        let cursor = match ship::load_cursor(disk.as_ref(), self.name) {
            Ok(cursor) => cursor,
            Err(error) => {
                done.failed(error);
                return false;
            }
        };
        let how = ShipOptions {
            jobs: jobs.clone(),
            dry_run: args.dry_run,
            start_over: args.start_over,
            ..ShipOptions::default()
        };
        let report = done.report.insert(Report::default());
        let cursor = cursor.as_ref();
        let ended = match args.extend_only {
            true => ship::extend_into(disk, remote, cursor, &how, report).map(|()| None),
            false => ship::ship_into(disk, remote, cursor, &how, &|progress| show(bar, progress), report),
        };
        match ended {
            Ok(Some(cursor)) if !args.dry_run => {
                if let Err(error) = ship::store_cursor(disk.as_ref(), self.name, &cursor) {
                    done.failed(error);
                }
            }
            Ok(_) => {}
            Err(error) => {
                done.failed(error);
                return false;
            }
        }
        true
    }

    fn verify(&self, remote: &Arc<dyn Remote>, jobs: &Jobs, done: &mut Done) {
        let Common { disk, out, bars, .. } = self.common;
        let bar = out.progress_among(bars, Some(0), &format!("{}: verifying", self.name));
        let mut verified = Verified::default();
        let jobs = jobs.first();
        let looked = ship::verify_into(disk, remote, self.name, jobs, &|p| show(&bar, p), &mut verified);
        bar.finish_and_clear();
        // What else failed is no matter of it; nor that nothing was sent: with --dry-run this is a verification and no more.
        let (disk, at, is_whole) = (disk.as_ref(), SystemEnv.now(), looked.is_ok());
        self.warn_of(ship::store_verified(disk, self.name, &self.settings.url, at, &verified, is_whole));
        done.verified = Some(verified);
        if let Err(error) = looked {
            done.failed(error);
        }
    }

    fn remember(&self, done: &Done) {
        let is_alarm = done.report.as_ref().is_some_and(Report::is_alarming)
            || done.errors.iter().any(|error| error.code == ExitCode::RemoteAlarm);
        let error = done.errors.first().map(|error| error.message.as_str());
        let ended = Ended { at: SystemEnv.now(), is_alarm, error };
        let report = done.report.as_ref();
        let disk = self.common.disk.as_ref();
        self.warn_of(ship::store_last(disk, self.name, &self.settings.url, &ended, report));
    }

    /// What can't be remembered makes `status` say less; that is no reason to fail.
    fn warn_of(&self, stored: Result<(), StoreError>) {
        if let Err(error) = stored {
            let text = super::show_bytes(format!("{}: {error}", self.name).as_bytes());
            self.common.bars.suspend(|| self.common.out.warning(&text));
        }
    }
}

fn show(bar: &ProgressBar, progress: ship::Progress) {
    bar.set_length(progress.bytes_total);
    bar.set_position(progress.bytes);
    bar.set_message(format!("{}/{} objects", progress.objects, progress.objects_total));
}

/// Says what came of one remote, and returns the code for it.
fn say(ended: EndedJob, name: &str, settings: &Settings, out: &Output) -> ExitCode {
    let EndedJob { mut done, requests, seconds } = ended;
    let line = Line {
        remote: name,
        url: &settings.url,
        report: done.report.as_ref(),
        verified: done.verified.as_ref(),
        requests,
        seconds,
        error: done.errors.first().map(|error| error.message.as_str()),
    };
    if let Err(error) = tell(&line, out) {
        done.failed(error);
    }
    let mut worst = ExitCode::Ok;
    let found = done.report.as_ref().map_or(ExitCode::Ok, |report| warn(report, out));
    let mut damaged_here = ExitCode::Ok;
    if let Some(verified) = &done.verified {
        for text in verified.damaged_here.iter().chain(&verified.wrong) {
            out.warning(&super::show_bytes(text.as_bytes()));
        }
        if !verified.damaged_here.is_empty() {
            damaged_here = ExitCode::Corrupt;
        }
        if verified.wrong_total > 0 {
            let text = format!("{} objects there are not what was shipped", verified.wrong_total);
            let error = CliError::new(ExitCode::RemoteAlarm, text).hint(
                "nothing was changed there. Find out why; then remove them there (or ship to a new place), and ship again while \
                 this vault is sound",
            );
            worst = error.code;
            out.error(&error.context(name));
        }
    }
    for error in std::mem::take(&mut done.errors) {
        worst = worst.and(error.code);
        out.error(&error.context(name));
    }
    worst.and(damaged_here).and(found)
}

/// Prints what was done with one remote.
fn tell(line: &Line<'_>, out: &Output) -> CliResult<()> {
    if out.is_json() {
        return out.json_line(line);
    }
    let Some(report) = line.report else { return Ok(()) };
    let is_unfinished = line.error.is_some() && !report.is_finished;
    let has_sent = !report.dry_run && report.packs + report.chain_files + report.headers > 0;
    // Where it failed before anything was sent there is nothing to say but why.
    if !is_unfinished || has_sent {
        let until = if is_unfinished { "until it failed, " } else { "" };
        out.line(&format!("{until}{}", summary(line.remote, report, line.requests, line.seconds)))?;
    }
    if let Some(verified) = line.verified {
        out.line(&looked(line.remote, verified))?;
    }
    if out.verbosity() > 0 && report.packs > 0 && !report.dry_run {
        out.note(&format!("{}: {} packs at a time", line.remote, report.jobs));
    }
    Ok(())
}

/// Says what is wrong although shipping worked, and returns the code that stands for the worst of it.
pub(super) fn warn(report: &Report, out: &Output) -> ExitCode {
    let mut code = ExitCode::Ok;
    for text in &report.damaged {
        out.warning(&super::show_bytes(text.as_bytes()));
        code = ExitCode::Corrupt;
    }
    if let Some(lock) = &report.lock {
        code = code.and(warn_of_lock(lock, out));
    }
    if report.damaged_there > 0 {
        let names = some(&report.damaged_there_names, report.damaged_there);
        out.warning(&format!(
            "{} objects there are known not to be what was shipped; no snapshot that needs one counts as complete there: \
             {names}. Remove them there (all their versions), then ship again while this vault is sound; or ship to a new place",
            report.damaged_there
        ));
        code = code.and(ExitCode::RemoteAlarm);
    }
    if report.gone_there > 0 {
        let names = some(&report.gone_there_names, report.gone_there);
        let again = if report.dry_run { "is to be" } else { "was" };
        out.warning(&format!(
            "{} objects that were shipped are gone there, though snapshots need them: {names}. What of them is here {again} sent \
             again; find out who removes them",
            report.gone_there
        ));
        code = code.and(ExitCode::RemoteAlarm);
    }
    if report.foreign > 0 {
        let names = some(&report.foreign_names, report.foreign);
        out.warning(&format!("{} objects there are no part of this vault: {names}", report.foreign));
    }
    if report.unjudged > 0 {
        out.warning(&format!(
            "{} files there are named like snapshots of this vault, and could not all be looked into: one of them may be of a \
             copy of this vault that went its own way. The next ship looks into more of them; remove what nobody knows",
            report.unjudged
        ));
        code = code.and(ExitCode::RemoteAlarm);
    }
    if report.header_refused {
        out.warning(
            "keys were changed since the header was shipped, and these credentials may not replace it: that copy still opens \
             with the old keys only",
        );
        code = code.and(ExitCode::Remote);
    }
    code
}

/// Some names for a message.
fn some(names: &[String], total: u64) -> String {
    let shown: Vec<String> =
        names.iter().take(NAMES_SHOWN).map(|name| super::show_bytes(name.as_bytes())).collect();
    let more = if total > shown.len() as u64 { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// Says what is not as it should be where objects are locked.
fn warn_of_lock(lock: &LockReport, out: &Output) -> ExitCode {
    let mut code = ExitCode::Ok;
    if lock.refused > 0 {
        out.warning(&format!(
            "{} objects are locked for less than {} days, and these credentials may not extend that",
            lock.refused, lock.days
        ));
        code = ExitCode::Remote;
    }
    for (names, total, what) in [
        (&lock.hidden, lock.hidden_total, "somebody deleted (a delete marker lies over what is there)"),
        (&lock.overwritten, lock.overwritten_total, "somebody wrote over"),
    ] {
        if total > 0 {
            out.warning(&format!(
                "{what} {total} objects; what was shipped is still there, and is what is read: {}",
                some(names, total)
            ));
            code = ExitCode::RemoteAlarm;
        }
    }
    if lock.gone_total > 0 {
        out.warning(&format!(
            "{} objects were listed, and were gone when they were to be locked for longer: {}",
            lock.gone_total,
            some(&lock.gone, lock.gone_total)
        ));
        code = ExitCode::RemoteAlarm;
    }
    code
}

/// What is locked, for the summary.
fn summary_of_lock(lock: &LockReport, dry_run: bool) -> String {
    let until = lock.until.as_deref().unwrap_or("no time");
    let extended = if dry_run { "to be extended" } else { "extended" };
    format!(
        "; {} objects are locked ({}) until {until}, {} {extended}",
        lock.objects,
        lock.mode.name(),
        lock.extended
    )
}

fn looked(name: &str, verified: &Verified) -> String {
    format!(
        "{name}: verified {} objects{}, {} by the endpoint's checksums and {} by reading {}; {} wrong",
        verified.objects,
        if verified.resumed { " (the rest of what was begun)" } else { "" },
        verified.by_checksum,
        verified.by_reading,
        human_bytes(verified.bytes_read),
        verified.wrong_total,
    )
}

pub(super) fn summary(name: &str, report: &Report, requests: u64, seconds: f64) -> String {
    let verb = if report.dry_run { "would send" } else { "sent" };
    let ahead = match report.packs_ahead {
        0 => String::new(),
        n => format!(" ({n} ahead of their snapshot)"),
    };
    let sent = format!(
        "{} packs{ahead}, {} snapshot files, {} header copies ({})",
        report.packs,
        report.chain_files,
        report.headers,
        human_bytes(report.bytes)
    );
    let newest =
        report.newest.map_or("no snapshot yet".into(), |seq| format!("snapshot {seq} is the newest"));
    let speed = human_bytes((report.bytes as f64 / seconds.max(0.001)) as u64);
    let locked = report.lock.as_ref().map_or(String::new(), |lock| summary_of_lock(lock, report.dry_run));
    match report.dry_run {
        true => format!("{name}: {verb} {sent}; {} packs are there; {newest}{locked}", report.packs_there),
        false => format!(
            "{name}: {verb} {sent} in {seconds:.1} s ({speed}/s, {requests} requests); {} packs were there; {newest}{locked}",
            report.packs_there
        ),
    }
}
