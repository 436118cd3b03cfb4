//! `mount`: a vault's working tree, or one of its snapshots, as a directory.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::browse::{Use, open_target_in};
use super::error::{CliError, CliResult, ExitCode};
use super::from::{FromArgs, Reach};
use super::output::Output;
use super::place::Place;
use super::session::{self, Reading, WorkOptions};
use super::umount::say_waiting;
use super::unlock::UnlockArgs;
use super::values::duration;
use crate::crypto::{Credential, RecoveryKey, SecretBytes, harden_process};
use crate::fs::Fs;
use crate::mount::daemon;
use crate::mount::error::Failure;
use crate::mount::holder::{self, Holder};
use crate::mount::log::{self, LogTarget};
use crate::mount::mountpoint::{self, CheckOptions};
use crate::mount::options::MountOptions;
use crate::mount::remount;
use crate::mount::runtime::Running;
use crate::mount::serve::{ServeOptions, host_name, serve_live, serve_snapshot};

/// Arguments of `mount`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom mount -S /encrypted /decrypted < /root/enc.txt
  strongroom mount /encrypted /decrypted --keyfile /root/vault.key --snapshot-every 1h --log journal
  strongroom mount /encrypted /mnt --snapshot latest --passfile /root/enc.txt
  strongroom mount --from s3://bucket/vault /mnt --passfile /root/enc.txt
  strongroom mount /encrypted /decrypted -o remount,ro
  /etc/fstab:  /encrypted /decrypted fuse.strongroom passfile=/root/enc.txt,nofail 0 0

Returns when the mount answers, with its true status. As root all users may enter, with the usual permission
checks; add -o noallow_other to keep them out. With -o remount the flags of a mount change while it is
in use, as with mount(8); ro first makes everything durable. With --from a snapshot at a remote is mounted,
read-only, the newest one unless --snapshot says another; what can't be fetched in time is an I/O error. Unmount with `strongroom umount`, which waits until
everything is durable.")]
pub(crate) struct MountArgs {
    /// The vault
    #[arg(required_unless_present = "from")]
    vault: Option<PathBuf>,
    /// The directory to show it in
    mountpoint: Option<PathBuf>,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    pub(crate) unlock: UnlockArgs,
    #[command(flatten)]
    pub(crate) how: MountHow,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
}

/// How to mount; shared with `with`.
#[derive(Args, Debug, Default)]
pub(crate) struct MountHow {
    /// Mount options, separated by commas: ro, noatime, noallow_other, suid, dev, fsname=NAME, remount
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Refuse all writes
    #[arg(long)]
    read_only: bool,
    /// Mount this snapshot, read-only: a number, an id, `latest`, or a time
    #[arg(long, value_name = "WHICH")]
    snapshot: Option<String>,
    /// Mount over a directory that has entries; they are hidden meanwhile
    #[arg(long)]
    nonempty: bool,
    /// Unmount when unused for DURATION (90s, 15m, 2h)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    idle: Option<Duration>,
    /// Make a snapshot each DURATION, if anything changed
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    snapshot_every: Option<Duration>,
    /// At most so much written data in memory, in MiB
    #[arg(long, value_name = "MIB")]
    dirty_mib: Option<u32>,
    /// Cache of decrypted blocks, in MiB
    #[arg(long, value_name = "MIB")]
    cache_mib: Option<u32>,
    /// Mount a vault that is older than what this host has seen
    #[arg(long)]
    accept_rollback: bool,
    /// Throw the live state away and start from the newest complete snapshot
    #[arg(long)]
    discard_live: bool,
    /// Where the daemon logs: a file, syslog, or journal
    #[arg(long, value_name = "FILE|syslog|journal")]
    log: Option<String>,
}

impl MountHow {
    /// One set of options out of `-o` and flags; a flag wins over `-o`.
    pub(crate) fn resolve(&self) -> CliResult<MountOptions> {
        let mut options = MountOptions::parse(&self.options)?;
        let vault = &mut options.vault;
        vault.nonempty |= self.nonempty;
        vault.accept_rollback |= self.accept_rollback;
        vault.snapshot = self.snapshot.clone().or(vault.snapshot.take());
        vault.idle = self.idle.or(vault.idle);
        vault.snapshot_every = self.snapshot_every.or(vault.snapshot_every);
        vault.dirty_mib = self.dirty_mib.or(vault.dirty_mib);
        vault.cache_mib = self.cache_mib.or(vault.cache_mib);
        options.read_only |= self.read_only || options.vault.snapshot.is_some();
        if vault_is_zero(&options) {
            return Err(CliError::usage("--dirty-mib and --cache-mib take 1 or more"));
        }
        Ok(options)
    }
}

fn vault_is_zero(options: &MountOptions) -> bool {
    options.vault.dirty_mib == Some(0) || options.vault.cache_mib == Some(0)
}

/// What the background half is told. The secret travels beside it.
#[derive(Serialize, Deserialize)]
struct Request {
    /// Or the URL of the remote.
    #[serde(with = "os_path")]
    vault: PathBuf,
    from: Option<Reach>,
    #[serde(with = "os_path")]
    mountpoint: PathBuf,
    options: MountOptions,
    secret: SecretKind,
    log: LogTarget,
    verbosity: u8,
    discard_live: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SecretKind {
    Passphrase,
    Keyfile,
    Recovery,
}

/// Paths are bytes; JSON is not.
mod os_path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Vec::<u8>::deserialize(from).map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
    }
}

fn pack_secret(credential: &Credential) -> (SecretKind, Zeroizing<Vec<u8>>) {
    match credential {
        Credential::Passphrase(bytes) => (SecretKind::Passphrase, Zeroizing::new(bytes.expose().to_vec())),
        Credential::Keyfile(bytes) => (SecretKind::Keyfile, Zeroizing::new(bytes.expose().to_vec())),
        Credential::Recovery(key) => {
            (SecretKind::Recovery, Zeroizing::new(key.to_text().as_bytes().to_vec()))
        }
    }
}

fn unpack_secret(kind: SecretKind, bytes: &[u8]) -> CliResult<Credential> {
    Ok(match kind {
        SecretKind::Passphrase => Credential::Passphrase(SecretBytes::new(bytes.to_vec())),
        SecretKind::Keyfile => Credential::Keyfile(SecretBytes::new(bytes.to_vec())),
        SecretKind::Recovery => {
            let text =
                std::str::from_utf8(bytes).map_err(|_| CliError::usage("the recovery key is no text"))?;
            Credential::Recovery(
                RecoveryKey::parse(text).map_err(|e| CliError::new(ExitCode::WrongKey, e.to_string()))?,
            )
        }
    })
}

/// Everything that can be refused before a secret is asked for; returns the mountpoint without links.
pub(crate) fn prepare(
    vault: &Path,
    target: &Path,
    options: &MountOptions,
    out: &Output,
) -> CliResult<PathBuf> {
    session::open_header(vault)?;
    let holder = if options.vault.snapshot.is_some() {
        // A snapshot needs no lock; only a daemon that is still writing the last one is worth waiting for.
        session::wait_for_daemon(vault, out)?;
        None
    } else {
        Some(holder::wait_until_free(vault, None, &mut |holder| say_waiting(out, holder))?)
    };
    if let Some(Holder::Dead { mountpoint }) = holder
        && holder::clean_dead(&mountpoint)?
    {
        out.note(&format!(
            "removed the dead mount that a killed daemon left at {}",
            super::show_path(&mountpoint)
        ));
    }
    if clean_dying(vault, target, options)? {
        out.note(&format!(
            "removed the dead mount that a killed daemon left at {}",
            super::show_path(target)
        ));
    }
    Ok(mountpoint::check(target, vault, CheckOptions { nonempty: options.vault.nonempty })?)
}

/// Removes the mount of a killed daemon. A process that was just killed lets go of the vault's lock before the kernel cuts its
/// mount off, so a mount of this very vault, which nobody holds any more, is given a moment to die.
fn clean_dying(vault: &Path, target: &Path, options: &MountOptions) -> CliResult<bool> {
    let vault = session::absolute(vault);
    let patience = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        if holder::clean_dead(target)? {
            return Ok(true);
        }
        let ours = mountpoint::find(target)?.is_some_and(|line| Path::new(&line.source) == vault);
        let held = options.vault.snapshot.is_some()
            || !matches!(holder::probe(&vault)?, Holder::Free | Holder::Dead { .. });
        if !ours || held || std::time::Instant::now() > patience {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The credential, from flags or else from `-o`.
pub(crate) fn credential(vault: &Path, unlock: &UnlockArgs, options: &MountOptions) -> CliResult<Credential> {
    let from_options = UnlockArgs {
        passfile: options.vault.passfile.clone(),
        keyfile: options.vault.keyfile.clone(),
        credential: options.vault.credential.clone(),
        ..UnlockArgs::default()
    };
    let source = if unlock.is_prompt() { &from_options } else { unlock };
    source.credential(&format!("Passphrase for {}", super::show_path(vault)), false)
}

/// [`prepare`] for a snapshot at a remote.
fn prepare_remote(reach: &Reach, target: &Path, options: &MountOptions, out: &Output) -> CliResult<PathBuf> {
    session::open_header_at(&Place::Remote(reach.open()?))?;
    if holder::clean_dead(target)? {
        let shown = super::show_path(target);
        out.note(&format!("removed the dead mount that a killed daemon left at {shown}"));
    }
    let options = CheckOptions { nonempty: options.vault.nonempty };
    Ok(mountpoint::check_alone(target, options)?)
}

impl MountArgs {
    /// The vault, or the URL of the remote, and the mountpoint: with a URL there is no VAULT before it.
    fn places(&self) -> CliResult<(PathBuf, &Path)> {
        let mut given = [self.vault.as_deref(), self.mountpoint.as_deref()].into_iter().flatten();
        let vault = match self.from.url() {
            Some(url) => PathBuf::from(url),
            None => given.next().ok_or_else(|| CliError::usage("VAULT is missing"))?.to_path_buf(),
        };
        let mountpoint = given.next().ok_or_else(|| CliError::usage("MOUNTPOINT is missing"))?;
        match given.next() {
            Some(_) => Err(CliError::usage("with the URL of a remote there is no VAULT: leave it out")),
            None => Ok((vault, mountpoint)),
        }
    }
}

/// Runs `mount`.
pub(crate) fn run(args: &MountArgs, out: &Output) -> CliResult {
    let mut options = args.how.resolve()?;
    let (mut vault, target) = args.places()?;
    let from = args.from.reach(Some(&vault), true)?;
    if options.remount {
        if from.is_some() {
            return Err(CliError::usage("what is at a remote is only read: there is nothing to change"));
        }
        let flag = args.how.read_only.then(|| "ro".to_string());
        let lists: Vec<String> = args.how.options.iter().cloned().chain(flag).collect();
        remount::remount(target, &vault, &lists).map_err(CliError::from)?;
        return Ok(ExitCode::Ok);
    }
    let mountpoint = match &from {
        None => prepare(&vault, target, &options, out)?,
        Some(reach) => {
            vault = PathBuf::from(reach.url());
            options.read_only = true;
            options.vault.snapshot.get_or_insert_with(|| "latest".into());
            prepare_remote(reach, target, &options, out)?
        }
    };
    let credential = credential(&vault, &args.unlock, &options)?;
    let shown = super::json_path(&vault);
    if args.foreground {
        let request =
            request(&vault, from, mountpoint, options, &args.how, SecretKind::Passphrase, true, out)?;
        let running = serve(&request, credential, out)?;
        out.note(&format!("mounted at {}", super::show_path(&request.mountpoint)));
        running.wait()?;
        return Ok(ExitCode::Ok);
    }
    let pid = spawn_daemon(&vault, from, &mountpoint, options, &args.how, credential, out)?;
    if out.is_json() {
        out.json(&serde_json::json!({
            "vault": shown,
            "mountpoint": super::json_path(&mountpoint),
            "pid": pid,
        }))?;
    }
    Ok(ExitCode::Ok)
}

/// Starts the background half and waits until its mount answers; returns its process id.
pub(crate) fn spawn_daemon(
    vault: &Path,
    from: Option<Reach>,
    mountpoint: &Path,
    options: MountOptions,
    how: &MountHow,
    credential: Credential,
    out: &Output,
) -> CliResult<u32> {
    let (secret, bytes) = pack_secret(&credential);
    drop(credential);
    let request = request(vault, from, mountpoint.to_path_buf(), options, how, secret, false, out)?;
    let names: [&OsStr; 2] = [request.vault.as_os_str(), request.mountpoint.as_os_str()];
    Ok(daemon::spawn(&request, &bytes, &names)?)
}

#[expect(clippy::too_many_arguments, reason = "called twice; a struct would only rename the parameters")]
fn request(
    vault: &Path,
    from: Option<Reach>,
    mountpoint: PathBuf,
    options: MountOptions,
    how: &MountHow,
    secret: SecretKind,
    foreground: bool,
    out: &Output,
) -> CliResult<Request> {
    let log = match how.log.as_deref().or(options.vault.log.as_deref()) {
        Some(text) => LogTarget::parse(text).absolute()?,
        None if foreground => LogTarget::Stderr,
        // Without a log of its own a daemon's errors would be lost.
        None if Path::new("/dev/log").exists() => LogTarget::Syslog,
        None => LogTarget::File(PathBuf::from("/dev/null")),
    };
    Ok(Request {
        // A URL is no path, and stays as it is.
        vault: if from.is_some() { vault.to_path_buf() } else { session::absolute(vault) },
        from,
        mountpoint,
        options,
        secret,
        log,
        verbosity: out.verbosity(),
        discard_live: how.discard_live,
    })
}

/// The background half.
pub(crate) fn run_daemon() -> CliResult {
    let (request, secret, parent) = daemon::receive::<Request>()?;
    let quiet = Output::new(false, false, request.verbosity);
    let started = unpack_secret(request.secret, &secret).and_then(|credential| {
        drop(secret);
        serve(&request, credential, &quiet)
    });
    match started {
        Ok(running) => {
            if let Err(error) = parent.ready() {
                // Whoever wanted this mount is gone: leave nothing behind that nobody knows of.
                tracing::error!(%error, "the parent is gone, unmounting");
                running.unmount(true)?;
            }
            running.wait()?;
            Ok(ExitCode::Ok)
        }
        Err(error) => {
            let code = error.code;
            parent.failed(Failure::from(error));
            Ok(code)
        }
    }
}

/// Opens the vault and mounts it in this process.
fn serve(request: &Request, credential: Credential, out: &Output) -> CliResult<Running> {
    let filter = match request.verbosity {
        0 => "info",
        1 => "strongroom=debug,info",
        _ => "debug",
    };
    log::init(&request.log, filter)?;
    let Request { vault, from, mountpoint, options, discard_live, .. } = request;
    for note in harden_process() {
        tracing::info!(note, "hardening");
    }
    let serve = ServeOptions {
        vault: vault.clone(),
        mountpoint: mountpoint.clone(),
        options: options.clone(),
        host: host_name(),
        signals: true,
    };
    if let Some(name) = &options.vault.snapshot {
        let place = match from {
            Some(reach) => Place::Remote(reach.open()?),
            None => Place::Dir(vault.clone()),
        };
        let reading = Reading {
            snapshots: vec![name.clone()],
            data: true,
            accept_rollback: options.vault.accept_rollback,
        };
        let read = session::open_read_with(&place, credential, reading, out)?;
        let target = open_target_in(&read, name, "/", Use::Data)?;
        return Ok(serve_snapshot(Fs::open_snapshot(target.source, target.entry), &serve)?);
    }
    let work = WorkOptions {
        accept_rollback: options.vault.accept_rollback,
        discard_live: *discard_live,
        purpose: "mount",
    };
    let mut cfg = crate::config::engine_config();
    if let Some(mib) = options.vault.dirty_mib {
        cfg.dirty_bytes_max = u64::from(mib) << 20;
    }
    if let Some(mib) = options.vault.cache_mib {
        cfg.cache_bytes = (mib as usize) << 20;
    }
    let opened = session::open_work_with(vault, credential, &work, cfg, out)?;
    Ok(serve_live(opened.engine, &serve)?)
}

/// `mount.strongroom SOURCE TARGET -o OPTIONS`, as mount(8) and systemd call it, becomes `strongroom mount ...`.
pub(crate) fn translate_helper_call(args: Vec<OsString>) -> CliResult<Vec<OsString>> {
    let name = args.first().map(|arg| Path::new(arg).file_name().unwrap_or(arg).to_os_string());
    let is_helper = name.is_some_and(|name| name == "mount.strongroom" || name == "mount.fuse.strongroom");
    if !is_helper {
        return Ok(args);
    }
    let mut translated: Vec<OsString> = vec!["strongroom".into(), "mount".into()];
    let mut rest = args.into_iter().skip(1);
    while let Some(arg) = rest.next() {
        match arg.as_bytes() {
            b"-o" => {
                let options = rest.next().ok_or_else(|| CliError::usage("-o needs options"))?;
                translated.push("-o".into());
                translated.push(options);
            }
            // mount(8): no mtab, sloppy, verbose, fake; a type, of which there is one.
            b"-n" | b"-s" | b"-v" => {}
            b"-f" => return Ok(vec!["strongroom".into(), "--version".into()]),
            b"-t" | b"-N" => {
                rest.next();
            }
            _ => translated.push(arg),
        }
    }
    Ok(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn helper_calls_become_mounts() {
        for (call, expected) in [
            (
                "/sbin/mount.fuse.strongroom /v /m -o rw,passfile=/p",
                "strongroom mount /v /m -o rw,passfile=/p",
            ),
            ("mount.strongroom /v /m -n -v -o ro -t fuse.strongroom", "strongroom mount /v /m -o ro"),
            ("/usr/bin/strongroom mount -S /v /m", "/usr/bin/strongroom mount -S /v /m"),
        ] {
            assert_eq!(translate_helper_call(words(call)).unwrap(), words(expected));
        }
        assert!(translate_helper_call(words("mount.strongroom /v /m -o")).is_err());
    }

    #[test]
    fn flags_win_over_options() {
        let how = MountHow {
            options: vec!["idle=1h,snapshot_every=2h,nonempty".into()],
            idle: Some(Duration::from_secs(60)),
            ..MountHow::default()
        };
        let options = how.resolve().unwrap();
        assert_eq!(options.vault.idle, Some(Duration::from_secs(60)));
        assert_eq!(options.vault.snapshot_every, Some(Duration::from_secs(7200)));
        assert!(options.vault.nonempty && !options.read_only);
        let snapshot = MountHow { snapshot: Some("latest".into()), ..MountHow::default() };
        assert!(snapshot.resolve().unwrap().read_only, "a snapshot is never writable");
    }

    #[test]
    fn secrets_survive_the_way_to_the_daemon() {
        for credential in [
            Credential::Passphrase(SecretBytes::new(b"a b\xff".to_vec())),
            Credential::Keyfile(SecretBytes::new(vec![7; 64])),
            Credential::Recovery(RecoveryKey::generate(&crate::env::SystemEnv)),
        ] {
            let (kind, bytes) = pack_secret(&credential);
            let back = unpack_secret(kind, &bytes).unwrap();
            assert_eq!(pack_secret(&back).1, bytes);
        }
    }
}
