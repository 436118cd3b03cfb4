//! `remote`: where a vault is shipped to. Local settings, no secrets.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::error::{CliError, CliResult, ExitCode};
use super::output::Output;
use super::reach::ReachArgs;
use super::session;
use super::values::speed;
use crate::remote::{self, LOCK_DAYS_MAX, Lock, LockMode, OpenOptions, Settings, Verdict};
use crate::ship::{Remotes, forget_cursor, forget_places, is_name};

/// The verbs of `remote`.
#[derive(Debug, Subcommand)]
pub(crate) enum RemoteCommand {
    /// Remember a place to ship to
    Add(Box<AddArgs>),
    /// List the remotes of a vault
    List(ListArgs),
    /// Forget a remote; what is there stays
    Remove(RemoveArgs),
    /// Try out what a remote really honours
    Test(TestArgs),
}

/// Arguments of `remote add`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom remote add /encrypted usb file:///mnt/usb/vault
  strongroom remote add /encrypted aws s3://bucket/vault --region eu-central-1 --profile backup
  strongroom remote add /encrypted minio s3://bucket/vault --endpoint https://minio:9000 --path-style
  strongroom remote add /encrypted safe s3://bucket/vault --lock-mode compliance --lock-days 30
  strongroom remote add /encrypted nas sftp://backup@nas/volume1/vault --identity-file /root/.ssh/nas
  strongroom remote add /encrypted dav webdavs://nas/vault --credentials-file /root/.dav
  strongroom remote add /encrypted az azblob://box/vault --account NAME --credentials-file /root/.az
  strongroom remote add /encrypted gs gs://bucket/vault --credentials-file /root/backup.json

Credentials never stand on a command line or in the settings. S3 takes them from the environment,
the files in ~/.aws, an instance role, --credentials-file or --s3-credential; SFTP from the agent or
--identity-file, through the system's ssh and its configuration. Host keys must be in known_hosts
already. The file is USER:PASSWORD for WebDAV; an account key, SAS or connection string for Azure
(else AZURE_STORAGE_..., workload or managed identity); Google's JSON for gs:// (else what
GOOGLE_APPLICATION_CREDENTIALS names, gcloud's own, the metadata server). webdavs://, azblob:// and
gs:// need a program built with --features all-remotes. The place itself (bucket, directory) is
never made; contrib/iam/README.md has the commands for a bucket with Object Lock. Nothing is
asked of the remote now: `strongroom remote test` does that.")]
pub(crate) struct AddArgs {
    /// The vault
    vault: PathBuf,
    /// A name for the remote: lower-case letters, digits, dashes
    name: String,
    /// s3://bucket/prefix, sftp://user@host:port/path, file:///path, webdavs://user@host/path,
    /// azblob://container/prefix or gs://bucket/prefix
    url: String,
    /// Change the settings of a remote that is there already
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    settings: RemoteSettingsArgs,
}

/// How a remote is reached and what is sent to it: the flags of every command that keeps a remote.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct RemoteSettingsArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// S3: storage class of packs, e.g. STANDARD_IA; snapshots and headers stay in the standard class
    #[arg(long, value_name = "CLASS")]
    storage_class: Option<String>,
    /// S3: encryption by the server, on top of ours: AES256 or aws:kms
    #[arg(long, value_name = "KIND")]
    sse: Option<String>,
    /// S3: key of aws:kms
    #[arg(long, value_name = "ID")]
    sse_kms_key_id: Option<String>,
    /// S3: keep everything from being deleted for a time, by Object Lock: governance or compliance
    #[arg(long, value_name = "MODE", value_parser = lock_mode, requires = "lock_days")]
    lock_mode: Option<LockMode>,
    /// S3: lock what the snapshots there need for at least so many days after each ship
    #[arg(long, value_name = "N", requires = "lock_mode",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(LOCK_DAYS_MAX)))]
    lock_days: Option<u32>,
    /// SFTP, WebDAV: don't read objects back after they were sent
    #[arg(long)]
    no_read_back: bool,
    /// Send at most so much a second: 500k, 10M
    #[arg(long, value_name = "SPEED", value_parser = speed)]
    limit_upload: Option<u64>,
}

impl RemoteSettingsArgs {
    /// The settings of a remote at `url`.
    ///
    /// # Errors
    /// Wrong usage: what is wrong with the URL, or does not fit it.
    pub(super) fn settings(&self, url: &str) -> CliResult<Settings> {
        let settings = Settings {
            storage_class: self.storage_class.clone(),
            sse: self.sse.clone(),
            sse_kms_key_id: self.sse_kms_key_id.clone(),
            lock: self.lock_mode.zip(self.lock_days).map(|(mode, days)| Lock { mode, days }),
            no_read_back: self.no_read_back,
            limit_upload: self.limit_upload,
            ..self.reach.settings(url)
        };
        settings.location().map_err(|e| CliError::usage(e.message))?;
        Ok(settings)
    }
}

/// The flags that make settings what they are, with a blank before each, without those of a lock.
pub(super) fn flags(settings: &Settings) -> String {
    let path = |path: &Option<PathBuf>| path.as_deref().map(super::shell_path);
    let text = |text: &Option<String>| text.as_deref().map(|text| super::shell_word(text.as_bytes()));
    let limit = |limit: Option<u64>| limit.map(|limit| limit.to_string());
    let with_value = [
        ("region", text(&settings.region)),
        ("endpoint", text(&settings.endpoint)),
        ("profile", text(&settings.profile)),
        ("credentials-file", path(&settings.credentials_file)),
        ("s3-credential", text(&settings.credential)),
        ("identity-file", path(&settings.identity_file)),
        ("known-hosts", path(&settings.known_hosts)),
        ("ssh-config", path(&settings.ssh_config)),
        ("storage-class", text(&settings.storage_class)),
        ("sse", text(&settings.sse)),
        ("sse-kms-key-id", text(&settings.sse_kms_key_id)),
        ("limit-upload", limit(settings.limit_upload)),
        ("limit-download", limit(settings.limit_download)),
    ];
    let alone = [
        ("allow-http", settings.allow_http),
        ("path-style", settings.path_style),
        ("no-read-back", settings.no_read_back),
    ];
    let mut all = String::new();
    for (name, value) in with_value {
        if let Some(value) = value {
            all += &format!(" --{name} {value}");
        }
    }
    for (name, _) in alone.into_iter().filter(|(_, set)| *set) {
        all += &format!(" --{name}");
    }
    all
}

/// Arguments of `remote list`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  strongroom remote list /encrypted --json")]
pub(crate) struct ListArgs {
    /// The vault
    vault: PathBuf,
}

/// Arguments of `remote remove`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  strongroom remote remove /encrypted usb")]
pub(crate) struct RemoveArgs {
    /// The vault
    vault: PathBuf,
    /// The remote
    name: String,
}

/// Arguments of `remote test`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  strongroom remote test /encrypted offsite

Writes one small object (strongroom-test), reads it, and tries to overwrite it and to have
damaged bytes accepted. Where objects are locked, it also tries to delete it and to unlock it early,
and looks for delete markers and for objects that were written over. Exit status 25: shipping there
would not be safe, or somebody was there.")]
pub(crate) struct TestArgs {
    /// The vault
    vault: PathBuf,
    /// The remote
    name: String,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    #[serde(flatten)]
    settings: &'a Settings,
}

fn lock_mode(text: &str) -> Result<LockMode, String> {
    LockMode::parse(text).ok_or_else(|| "a mode is governance or compliance".into())
}

/// Runs `remote`.
pub(crate) fn run(command: &RemoteCommand, out: &Output) -> CliResult {
    match command {
        RemoteCommand::Add(args) => add(args, out),
        RemoteCommand::List(args) => list(args, out),
        RemoteCommand::Remove(args) => remove(args, out),
        RemoteCommand::Test(args) => test(args, out),
    }
}

/// The settings of one remote.
pub(super) fn find<'a>(remotes: &'a Remotes, name: &str) -> CliResult<&'a Settings> {
    remotes.remotes.get(name).ok_or_else(|| {
        CliError::new(
            ExitCode::NotFound,
            format!("there is no remote {}", super::show_bytes(name.as_bytes())),
        )
        .hint("`strongroom remote list VAULT` shows them all")
    })
}

fn add(args: &AddArgs, out: &Output) -> CliResult {
    if !is_name(&args.name) {
        return Err(CliError::usage("a remote's name has 1 to 64 lower-case letters, digits and dashes"));
    }
    let settings = args.settings.settings(&args.url)?;
    let vault = session::open_header(&args.vault)?;
    Remotes::update(vault.disk.as_ref(), |remotes| {
        if remotes.remotes.contains_key(&args.name) && !args.replace {
            return Err(CliError::usage(format!("there is a remote {} already", args.name))
                .hint("--replace changes its settings"));
        }
        remotes.remotes.insert(args.name.clone(), settings.clone());
        Ok(())
    })?;
    if out.is_json() {
        out.json(&Line { name: &args.name, settings: &settings })?;
    } else {
        out.note(&format!("remembered {}; `strongroom remote test` tries it out", args.name));
    }
    Ok(ExitCode::Ok)
}

fn list(args: &ListArgs, out: &Output) -> CliResult {
    let vault = session::open_header(&args.vault)?;
    let remotes = Remotes::load(vault.disk.as_ref())?;
    if out.is_json() {
        let lines: Vec<Line<'_>> =
            remotes.remotes.iter().map(|(name, settings)| Line { name, settings }).collect();
        out.json(&lines)?;
        return Ok(ExitCode::Ok);
    }
    if remotes.remotes.is_empty() {
        out.note("no remotes; `strongroom remote add` makes one");
    }
    let width = remotes.remotes.keys().map(String::len).max().unwrap_or(0);
    for (name, settings) in &remotes.remotes {
        let lock = settings
            .lock
            .map_or(String::new(), |lock| format!("  locked for {} days ({})", lock.days, lock.mode.name()));
        out.line(&format!("{name:width$}  {}{lock}", super::show_bytes(settings.url.as_bytes())))?;
    }
    Ok(ExitCode::Ok)
}

fn remove(args: &RemoveArgs, out: &Output) -> CliResult {
    let vault = session::open_header(&args.vault)?;
    Remotes::update(vault.disk.as_ref(), |remotes| {
        let url = find(remotes, &args.name)?.url.clone();
        remotes.remotes.remove(&args.name);
        forget_places(vault.disk.as_ref(), &url)?;
        forget_cursor(vault.disk.as_ref(), &args.name).map_err(CliError::from)
    })?;
    if out.is_json() {
        out.json(&serde_json::json!({ "removed": args.name }))?;
    } else {
        out.note(&format!("forgot {}; what is there stays there", args.name));
    }
    Ok(ExitCode::Ok)
}

fn test(args: &TestArgs, out: &Output) -> CliResult {
    let vault = session::open_header(&args.vault)?;
    let remotes = Remotes::load(vault.disk.as_ref())?;
    let remote = remote::open(find(&remotes, &args.name)?, &OpenOptions::default())?;
    let probe = remote::probe(remote.as_ref())?;
    if out.is_json() {
        out.json(&probe)?;
    } else {
        for check in &probe.checks {
            let mark = match (check.verdict, check.required) {
                (Verdict::Yes, _) => "ok",
                (Verdict::No, true) => "BAD",
                (Verdict::No, false) => "no",
                (Verdict::Unknown, _) => "?",
                (Verdict::NotApplicable, _) => "-",
            };
            out.line(&format!("{mark:4} {:20} {}", check.name, super::show_bytes(check.detail.as_bytes())))?;
        }
    }
    if probe.is_good() {
        return Ok(ExitCode::Ok);
    }
    out.warning("don't ship there before you know why: nothing that is marked BAD may be so");
    Ok(ExitCode::RemoteAlarm)
}
