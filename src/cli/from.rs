//! `--from`: reading a vault that is at a remote, with nothing of it here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::error::{CliError, CliResult, ExitCode};
use super::output::human_bytes;
use super::place::Place;
use super::reach::ReachArgs;
use super::remote::find;
use super::session;
use super::survey::free_space;
use super::values::{absolute, duration, size};
use crate::config::state_dir;
use crate::fetch::{CACHE_BYTES_DEFAULT, CACHE_BYTES_MIN, FetchOptions, PIECE, RemoteDisk};
use crate::remote::{self, Location, OpenOptions, RetryPolicy, Settings, Times};
use crate::ship::Remotes;

/// The longest wait for a remote behind a mount, when nothing else is said: then a read fails.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// The options of every verb that reads snapshots.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FromArgs {
    /// Read from a remote: its URL (then VAULT is left out), or the name of one of VAULT's remotes
    #[arg(long, value_name = "REMOTE", help_heading = "Reading from a remote")]
    from: Option<String>,
    #[command(flatten, next_help_heading = "Reading from a remote")]
    reach: ReachArgs,
    /// Give up when nothing comes for so long (90s, 15m) [default: 20m; mount 1m]
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Reading from a remote")]
    remote_timeout: Option<Duration>,
    /// Keep what was fetched below this directory for a while [default: below the state directory]
    #[arg(long, value_name = "DIR", help_heading = "Reading from a remote")]
    cache_dir: Option<PathBuf>,
    /// Use at most so much of the disk for that: 64M or more [default: 4G, at most half of what is free]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Reading from a remote")]
    cache_size: Option<u64>,
}

/// Everything that is needed to open a remote for reading; a daemon is told it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reach {
    settings: Settings,
    limit_download: Option<u64>,
    timeout: Option<Duration>,
    cache_dir: PathBuf,
    cache_size: Option<u64>,
    /// It is mounted: nobody says what will be read, and nobody may be kept waiting for long.
    mounted: bool,
}

impl FromArgs {
    /// The URL of the remote, if that is how it is named: then there is no VAULT among the arguments.
    pub(crate) fn url(&self) -> Option<&str> {
        self.from.as_deref().filter(|from| from.contains("://"))
    }

    fn is_url(&self) -> bool {
        self.url().is_some()
    }

    /// Tells VAULT and the words after it apart: with a URL the first word is not VAULT.
    ///
    /// # Errors
    /// Usage: VAULT is missing, or is there beside a URL.
    pub(crate) fn words<const N: usize>(
        &self,
        vault: Option<&Path>,
        words: [Option<&str>; N],
    ) -> CliResult<(Option<PathBuf>, [Option<String>; N])> {
        if !self.is_url() {
            let vault = vault.ok_or_else(|| {
                CliError::usage("VAULT is missing")
                    .hint("a name after --from is one of VAULT's remotes; a URL needs no VAULT")
            })?;
            return Ok((Some(vault.to_path_buf()), words.map(|word| word.map(String::from))));
        }
        let first = match vault.map(Path::to_str) {
            Some(None) => return Err(CliError::usage("an argument is no UTF-8")),
            Some(text) => text,
            None => None,
        };
        let mut given = first.into_iter().chain(words.into_iter().flatten());
        let shifted = std::array::from_fn(|_| given.next().map(String::from));
        match given.next() {
            Some(_) => Err(CliError::usage("with the URL of a remote there is no VAULT: leave it out")),
            None => Ok((None, shifted)),
        }
    }

    /// Where to read, and the words after VAULT.
    ///
    /// # Errors
    /// Usage; what is wrong with the settings; a directory that is not there.
    pub(crate) fn place<const N: usize>(
        &self,
        vault: Option<&Path>,
        words: [Option<&str>; N],
    ) -> CliResult<(Place, [Option<String>; N])> {
        let (vault, words) = self.words(vault, words)?;
        let place = match (self.reach(vault.as_deref(), false)?, vault) {
            (Some(reach), _) => Place::Remote(reach.open()?),
            (None, Some(vault)) => Place::Dir(vault),
            (None, None) => return Err(CliError::usage("VAULT is missing")),
        };
        Ok((place, words))
    }

    /// How to reach the remote that is to be read; `None`: none is.
    ///
    /// # Errors
    /// Usage; a name that the vault does not know.
    pub(crate) fn reach(&self, vault: Option<&Path>, mounted: bool) -> CliResult<Option<Reach>> {
        let limits_only = ReachArgs { limit_download: self.reach.limit_download, ..ReachArgs::default() };
        let unset = self.reach == limits_only;
        let Some(from) = &self.from else {
            let set = !unset
                || self.reach.limit_download.is_some()
                || self.remote_timeout.is_some()
                || self.cache_dir.is_some()
                || self.cache_size.is_some();
            return match set {
                true => Err(CliError::usage("options for a remote go with --from REMOTE")),
                false => Ok(None),
            };
        };
        let settings = match vault.filter(|_| !self.is_url()) {
            None => self.reach.settings(from),
            Some(_) if !unset => {
                return Err(CliError::usage("the settings of a remote with a name are the vault's own")
                    .hint(
                        "`strongroom remote add --replace` changes them; or give the URL instead of the name",
                    ));
            }
            Some(vault) => {
                let vault = session::open_header(vault)?;
                find(&Remotes::load(vault.disk.as_ref())?, from)?.clone()
            }
        };
        settings.location().map_err(|e| CliError::usage(e.message))?;
        if self.cache_size.is_some_and(|size| size < CACHE_BYTES_MIN) {
            return Err(CliError::usage("the cache needs 64 MiB: --cache-size 64M"));
        }
        let cache_dir = absolute(self.cache_dir.as_ref()).unwrap_or_else(|| state_dir().join("cache"));
        Ok(Some(Reach {
            settings,
            limit_download: self.reach.limit_download,
            timeout: self.remote_timeout,
            cache_dir,
            cache_size: self.cache_size,
            mounted,
        }))
    }
}

impl Reach {
    /// The remote's URL.
    pub(crate) fn url(&self) -> &str {
        &self.settings.url
    }

    /// Opens the remote for reading. Nothing is asked of it yet.
    ///
    /// # Errors
    /// What is wrong with the settings, or with the place for the cache.
    pub(crate) fn open(&self) -> CliResult<Arc<RemoteDisk>> {
        let location = self.settings.location()?;
        let timeout = self.timeout.or(self.mounted.then_some(MOUNT_TIMEOUT));
        let mut open = OpenOptions { limit_download: self.limit_download, ..OpenOptions::default() };
        let mut fetch = FetchOptions::new(self.cache_dir.clone());
        fetch.read_ahead = self.mounted;
        fetch.jobs = match location {
            Location::S3 { .. } | Location::Azblob { .. } | Location::Gcs { .. } => 16,
            Location::Dir { .. } | Location::Sftp { .. } | Location::Webdav { .. } => 4,
        };
        if let Some(timeout) = timeout {
            let policy = if location.is_local() { RetryPolicy::LOCAL } else { RetryPolicy::NETWORK };
            open.retry = Some(RetryPolicy { total_max: policy.total_max.min(timeout), ..policy });
            // A request that gets no answer must not hold up others for longer than anybody waits.
            let slowest = (PIECE as f64 / timeout.as_secs_f64().max(0.1)) as u64;
            let answer = open.times.answer.min(timeout);
            open.times = Times { answer, slowest: open.times.slowest.max(slowest) };
            open.stuck_after = timeout;
            fetch.patience = timeout;
        }
        if let Some(limit) = self.limit_download.or(self.settings.limit_download) {
            // What all threads fetch at a time takes this long under a limit.
            fetch.patience += Duration::from_secs(fetch.jobs as u64 * PIECE / limit.max(1));
        }
        // Objects may be locked there, and something else lie on top of them; or on top of the header.
        let settings = Settings { by_version: true, ..self.settings.clone() };
        let remote = remote::open(&settings, &open).map_err(|e| CliError::of_reading(&e))?;
        let failed = |code: ExitCode, e: String| {
            CliError::new(code, format!("the cache in {}: {e}", super::show_path(&self.cache_dir)))
                .hint("--cache-dir chooses another place for it")
        };
        let free = free_space(&self.cache_dir).map_err(|e| failed(ExitCode::Io, e.to_string()))?;
        fetch.cache_bytes = cache_bytes(self.cache_size, free).map_err(|e| failed(ExitCode::NoSpace, e))?;
        RemoteDisk::new(remote, &fetch).map_err(|e| failed(ExitCode::Io, e.to_string()))
    }
}

/// How much the cache may hold: what was asked for, or half of what is free, but not less than it needs.
fn cache_bytes(asked: Option<u64>, free: u64) -> Result<u64, String> {
    match asked {
        Some(size) => Ok(size),
        None if free < CACHE_BYTES_MIN => {
            Err(format!("{} are free, and it needs {}", human_bytes(free), human_bytes(CACHE_BYTES_MIN)))
        }
        None => Ok((free / 2).clamp(CACHE_BYTES_MIN, CACHE_BYTES_DEFAULT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(from: Option<&str>) -> FromArgs {
        FromArgs { from: from.map(String::from), ..FromArgs::default() }
    }

    #[test]
    fn with_a_url_the_first_word_is_no_vault() {
        let words = |args: &FromArgs, vault: Option<&str>, rest: [Option<&str>; 2]| {
            args.words(vault.map(Path::new), rest).map(|(vault, [a, b])| (vault, a, b))
        };
        let text = |text: &str| Some(text.to_string());
        let plain = words(&from(None), Some("/v"), [Some("a"), None]).unwrap();
        assert_eq!(plain, (Some("/v".into()), text("a"), None));
        let named = words(&from(Some("usb")), Some("/v"), [Some("a"), Some("b")]).unwrap();
        assert_eq!(named, (Some("/v".into()), text("a"), text("b")));
        let url = from(Some("s3://bucket/x"));
        assert_eq!(words(&url, Some("a"), [Some("b"), None]).unwrap(), (None, text("a"), text("b")));
        assert_eq!(words(&url, None, [None, None]).unwrap(), (None, None, None));
        let error = words(&url, Some("/v"), [Some("a"), Some("b")]).unwrap_err();
        assert_eq!(error.code, ExitCode::Usage);
        assert_eq!(words(&from(Some("usb")), None, [None, None]).unwrap_err().code, ExitCode::Usage);
    }

    #[test]
    fn the_cache_takes_half_of_what_is_free_and_never_more_than_there_is() {
        let (mib, min) = (1 << 20, CACHE_BYTES_MIN);
        for (free, expected) in [
            (63 * mib, None),
            (min, Some(min)),
            (100 * mib, Some(min)),
            (300 * mib, Some(150 * mib)),
            (1 << 50, Some(CACHE_BYTES_DEFAULT)),
        ] {
            assert_eq!(cache_bytes(None, free).ok(), expected, "{free}");
            assert_eq!(cache_bytes(Some(77 * mib), free), Ok(77 * mib));
        }
        assert_eq!(cache_bytes(None, 5 << 20).unwrap_err(), "5.00 MiB are free, and it needs 64.0 MiB");
        let small = FromArgs { cache_size: Some(min - 1), ..from(Some("s3://bucket/x")) };
        assert_eq!(small.reach(None, false).unwrap_err().code, ExitCode::Usage);
    }

    #[test]
    fn settings_without_a_remote_are_refused() {
        let lost = [
            FromArgs { cache_size: Some(1), ..from(None) },
            FromArgs { remote_timeout: Some(Duration::from_secs(1)), ..from(None) },
            FromArgs { reach: ReachArgs { path_style: true, ..ReachArgs::default() }, ..from(None) },
            FromArgs { reach: ReachArgs { limit_download: Some(1), ..ReachArgs::default() }, ..from(None) },
            // Of another kind of remote.
            FromArgs {
                reach: ReachArgs { path_style: true, ..ReachArgs::default() },
                ..from(Some("file:///x"))
            },
        ];
        for args in lost {
            assert_eq!(args.reach(None, false).unwrap_err().code, ExitCode::Usage, "{args:?}");
        }
        assert_eq!(from(None).reach(None, false).unwrap(), None);
        let reach = from(Some("s3://bucket/x")).reach(None, true).unwrap().unwrap();
        assert_eq!((reach.url(), reach.mounted), ("s3://bucket/x", true));
    }
}
