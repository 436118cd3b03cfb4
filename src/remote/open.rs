//! Settings to a remote: the right kind, inside what all kinds need.

use std::sync::Arc;
use std::time::Duration;

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
    /// Deadlines of S3 requests.
    pub times: Times,
    /// A directory that gives no answer for so long, as one on a network filesystem may, is given up.
    pub stuck_after: Duration,
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
            times: Times::default(),
            stuck_after: STUCK_AFTER,
        }
    }
}

/// Opens a remote.
///
/// # Errors
/// What is wrong with the settings, or with a directory. S3 and SFTP are not asked yet.
pub fn open(settings: &Settings, options: &OpenOptions) -> Result<Arc<dyn Remote>> {
    let location = settings.location()?;
    let env = &options.env;
    let up = options.limit_upload.or(settings.limit_upload);
    let down = options.limit_download.or(settings.limit_download);
    let slowest = [up, down].into_iter().flatten().min().map_or(options.times.slowest, |limit| {
        // Many requests share the limit.
        options.times.slowest.min((limit / 64).max(1))
    });
    let policy = options.retry.unwrap_or(match location.is_local() {
        true => RetryPolicy::LOCAL,
        false => RetryPolicy::NETWORK,
    });
    let base: Arc<dyn Remote> = match location {
        Location::Dir { path } => {
            let (url, own) = (settings.url.clone(), Arc::clone(env));
            let dir = bounded::within(&settings.url, options.stuck_after, move || {
                DirRemote::open(&url, &path, own)
            })?;
            Arc::new(Bounded::new(Arc::new(dir), options.stuck_after))
        }
        Location::S3 { bucket, prefix } => {
            let times = Times { slowest, ..options.times };
            Arc::new(S3Remote::open(settings, &bucket, &prefix, times, Arc::clone(env))?)
        }
        Location::Sftp { user, host, port, path } => {
            Arc::new(SftpRemote::new(settings, user, host, port, path, Arc::clone(env)))
        }
    };
    let counted = Arc::new(Counted::new(base, Arc::clone(&options.counters)));
    let limiter = |speed: u64| Arc::new(Limiter::new(speed, Arc::clone(env), Arc::clone(&options.pause)));
    let limited: Arc<dyn Remote> = match (up, down) {
        (None, None) => counted,
        (up, down) => Arc::new(Limited::new(counted, up.map(limiter), down.map(limiter))),
    };
    Ok(Arc::new(Retrying::new(limited, policy, Arc::clone(env), Arc::clone(&options.pause))))
}
