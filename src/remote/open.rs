//! Settings to a remote: the right kind, inside what all kinds need.

use std::sync::Arc;
use std::time::Duration;

#[cfg(any(feature = "azblob", feature = "gcs"))]
use super::ObjectRemote;
#[cfg(feature = "webdav")]
use super::WebdavRemote;
use super::bounded;
use super::location::{Location, Settings};
use super::{
    Bounded, Counted, Counters, DirRemote, Limited, Limiter, Pause, RealPause, Remote, Result, RetryPolicy,
    Retrying, S3Remote, SftpRemote, Times,
};
use crate::env::{Env, SystemEnv};

/// The longest time that a directory may take for one call: disks that sleep, and large directories on slow ones, take
/// their time.
const STUCK_AFTER: Duration = Duration::from_secs(1200);

/// What does not depend on the remote.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Clock and randomness.
    pub env: Arc<dyn Env>,
    /// How to wait.
    pub pause: Arc<dyn Pause>,
    /// How to try again; `None`: as fits the kind.
    pub retry: Option<RetryPolicy>,
    /// Where calls are counted.
    pub counters: Arc<Counters>,
    /// Bytes a second to it, instead of what the settings say.
    pub limit_upload: Option<u64>,
    /// Bytes a second from it, instead of what the settings say.
    pub limit_download: Option<u64>,
    /// Limits that this remote shares with others: each that is given counts instead of all of those.
    pub shared: Option<SharedLimits>,
    /// Deadlines of requests across a network.
    pub times: Times,
    /// A directory that gives no answer for so long, as one on a network filesystem may, is given up.
    pub stuck_after: Duration,
}

/// Limits of the link that several remotes are reached by, all together.
#[derive(Clone, Debug)]
pub struct SharedLimits {
    up: Option<(u64, Arc<Limiter>)>,
    down: Option<(u64, Arc<Limiter>)>,
    remotes: u64,
}

impl SharedLimits {
    /// Limits in bytes a second, for so many remotes.
    #[must_use]
    pub fn new(up: Option<u64>, down: Option<u64>, remotes: usize, env: &Arc<dyn Env>) -> Self {
        let limit = |speed: u64| (speed, Arc::new(Limiter::new(speed, Arc::clone(env), Arc::new(RealPause))));
        Self { up: up.map(limit), down: down.map(limit), remotes: remotes.max(1) as u64 }
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            env: Arc::new(SystemEnv),
            pause: Arc::new(RealPause),
            retry: None,
            counters: Arc::default(),
            limit_upload: None,
            limit_download: None,
            shared: None,
            times: Times::default(),
            stuck_after: STUCK_AFTER,
        }
    }
}

/// The error of a build that leaves out what is asked for.
#[cfg(any(test, not(all(feature = "webdav", feature = "azblob", feature = "gcs"))))]
fn missing(what: &str, feature: &str) -> super::RemoteError {
    let text = format!(
        "this strongroom was built without {what}: build it with `cargo build --release --features {feature}`"
    );
    super::RemoteError::new(super::ErrorKind::Misconfigured, text)
}

/// Opens a remote.
///
/// # Errors
/// What is wrong with the settings, or with a directory. Nothing is asked across a network yet.
pub fn open(settings: &Settings, options: &OpenOptions) -> Result<Arc<dyn Remote>> {
    let location = settings.location()?;
    let env = &options.env;
    let limiter = |speed: u64| Arc::new(Limiter::new(speed, Arc::clone(env), Arc::clone(&options.pause)));
    let own = |speed: Option<u64>| speed.map(|speed| (speed, limiter(speed)));
    let shared = options.shared.as_ref();
    let remotes = shared.map_or(1, |shared| shared.remotes);
    let up = shared.and_then(|shared| shared.up.clone());
    let up = up.or_else(|| own(options.limit_upload.or(settings.limit_upload)));
    let down = shared.and_then(|shared| shared.down.clone());
    let down = down.or_else(|| own(options.limit_download.or(settings.limit_download)));
    let least = [&up, &down].into_iter().flatten().map(|(speed, _)| *speed).min();
    let slowest = least.map_or(options.times.slowest, |limit| {
        // Many requests share the limit.
        options.times.slowest.min((limit / 64 / remotes).max(1))
    });
    let policy = options.retry.unwrap_or(match location.is_local() {
        true => RetryPolicy::LOCAL,
        false => RetryPolicy::NETWORK,
    });
    let times = Times { slowest, ..options.times };
    let base: Arc<dyn Remote> = match location {
        Location::Dir { path } => {
            let (url, own) = (settings.url.clone(), Arc::clone(env));
            let dir = bounded::within(&settings.url, options.stuck_after, move || {
                DirRemote::open(&url, &path, own)
            })?;
            Arc::new(Bounded::new(Arc::new(dir), options.stuck_after))
        }
        Location::S3 { bucket, prefix } => {
            Arc::new(S3Remote::open(settings, &bucket, &prefix, times, Arc::clone(env))?)
        }
        Location::Sftp { user, host, port, path } => {
            Arc::new(SftpRemote::new(settings, user, host, port, path, times, Arc::clone(env)))
        }
        #[cfg(feature = "webdav")]
        Location::Webdav { .. } => Arc::new(WebdavRemote::open(settings, times, Arc::clone(env))?),
        #[cfg(not(feature = "webdav"))]
        Location::Webdav { .. } => return Err(missing("WebDAV", "webdav")),
        #[cfg(feature = "azblob")]
        Location::Azblob { container, prefix } => {
            Arc::new(ObjectRemote::azblob(settings, &container, prefix, times)?)
        }
        #[cfg(not(feature = "azblob"))]
        Location::Azblob { .. } => return Err(missing("Azure Blob", "azblob")),
        #[cfg(feature = "gcs")]
        Location::Gcs { bucket, prefix } => Arc::new(ObjectRemote::gcs(settings, &bucket, prefix, times)?),
        #[cfg(not(feature = "gcs"))]
        Location::Gcs { .. } => return Err(missing("Google Cloud Storage", "gcs")),
    };
    let counted = Arc::new(Counted::new(base, Arc::clone(&options.counters)));
    let limited: Arc<dyn Remote> = match (up, down) {
        (None, None) => counted,
        (up, down) => Arc::new(Limited::new(counted, up.map(|(_, l)| l), down.map(|(_, l)| l))),
    };
    Ok(Arc::new(Retrying::new(limited, policy, Arc::clone(env), Arc::clone(&options.pause))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two remotes together send no more than the limit; what the settings of one say does not count then.
    #[test]
    fn remotes_can_share_a_limit() {
        use std::time::Instant;

        use crate::remote::{Bytes, Checksum, Key};
        let dir = tempfile::tempdir().expect("a directory");
        let env: Arc<dyn Env> = Arc::new(SystemEnv);
        let shared = SharedLimits::new(Some(1 << 20), None, 2, &env);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for name in ["a", "b"] {
                let (at, shared) = (dir.path().join(name), shared.clone());
                scope.spawn(move || {
                    std::fs::create_dir(&at).expect("a directory");
                    let url = format!("file://{}", at.display());
                    let settings = Settings { url, limit_upload: Some(1), ..Settings::default() };
                    let options = OpenOptions { shared: Some(shared), ..OpenOptions::default() };
                    let remote = open(&settings, &options).expect("a remote");
                    let bytes = vec![7; 400 << 10];
                    let checksum = Checksum::of(&bytes);
                    let key = Key::new("packs/ab/cd").expect("a name");
                    remote.put_if_absent(&key, &Bytes::source(bytes), &checksum).expect("sent");
                });
            }
        });
        // 800 KiB at 1 MiB a second, but for what the first and last steps need not wait for. With limits of their own both
        // would be done in half of that time, with those of the settings never.
        assert!(start.elapsed() >= Duration::from_millis(600), "{:?}", start.elapsed());
    }

    #[test]
    fn what_was_left_out_says_how_to_get_it() {
        let error = missing("WebDAV", "webdav");
        assert!(!error.kind.is_retryable() && error.message.contains("--features webdav"), "{error}");
        // Every place that this build knows of is opened, or says that.
        for url in ["webdavs://host/x", "azblob://name/x", "gs://name/x"] {
            let settings = Settings {
                url: url.into(),
                account: url.starts_with("az").then(|| "a".into()),
                ..Settings::default()
            };
            let opened = open(&settings, &OpenOptions::default());
            assert!(
                opened.as_ref().is_ok_and(|remote| remote.url() == url)
                    || opened.is_err_and(|e| e.message.contains("--features")),
                "{url}"
            );
        }
    }
}
