//! Retention of object versions: asked for, set, and proved.

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode};

use super::super::lock::{LockMode, Retention, readable};
use super::super::{Answer, ErrorKind, Key, Remote, RemoteError, Result};
use super::S3Remote;
use super::errors::classify;
use super::sums::{Failed, OnlyMd5};
use crate::env::Time;

/// Endpoints may keep whole seconds, rounded either way.
const ROUNDING: i64 = 1;

pub(super) fn put_mode(mode: LockMode) -> ObjectLockMode {
    match mode {
        LockMode::Governance => ObjectLockMode::Governance,
        LockMode::Compliance => ObjectLockMode::Compliance,
    }
}

pub(super) fn date(time: Time) -> DateTime {
    DateTime::from_secs(time.secs)
}

fn read_retention(said: &ObjectLockRetention) -> Option<Retention> {
    let mode = match said.mode() {
        Some(ObjectLockRetentionMode::Governance) => LockMode::Governance,
        Some(ObjectLockRetentionMode::Compliance) => LockMode::Compliance,
        _ => return None,
    };
    said.retain_until_date().map(|date| Retention { mode, until: Time { secs: date.secs(), nanos: 0 } })
}

fn retention_of_head(said: &HeadObjectOutput) -> Option<Retention> {
    let mode = match said.object_lock_mode() {
        Some(ObjectLockMode::Governance) => LockMode::Governance,
        Some(ObjectLockMode::Compliance) => LockMode::Compliance,
        _ => return None,
    };
    let date = said.object_lock_retain_until_date();
    date.map(|date| Retention { mode, until: Time { secs: date.secs(), nanos: 0 } })
}

fn no_lock(text: String) -> RemoteError {
    RemoteError::new(ErrorKind::NoObjectLock, text)
}

impl S3Remote {
    /// What a put sets now.
    pub(super) fn retention_now(&self) -> Option<Retention> {
        self.lock.map(|lock| lock.retention(self.env.now()))
    }

    /// Says what a refused retention has to do with this machine's clock.
    pub(super) fn explain_clock(&self, error: RemoteError) -> RemoteError {
        match (error.kind, self.lock) {
            (ErrorKind::ClockSkew, Some(_)) => {
                let now = readable(self.env.now());
                error.context(&format!(
                    "this machine's clock says {now}; what it would lock would be free too early, or at once"
                ))
            }
            _ => error,
        }
    }

    pub(super) fn check_lock(&self) -> Result<()> {
        let features = self.features()?;
        if let Answer::No(text) = features.object_lock {
            return Err(no_lock(format!("the bucket has no Object Lock ({text}); nothing was sent")));
        }
        if let Answer::No(text) = features.versioning {
            return Err(no_lock(format!("the bucket keeps no versions ({text}); nothing was sent")));
        }
        Ok(())
    }

    pub(super) fn ask_retention(&self, key: &Key, version: &str) -> Result<Option<Retention>> {
        let what = format!("asking how long {key} is locked");
        let call = async {
            self.client
                .get_object_retention()
                .bucket(&self.bucket)
                .key(self.name(key))
                .version_id(version)
                .send()
                .await
        };
        let asked = match self.wait(&what, 0, call, |e| classify(&what, e)) {
            Ok(answer) => Ok(answer.retention().and_then(read_retention)),
            // AWS says NoSuchObjectLockConfiguration, with this status.
            Err(e) if e.kind == ErrorKind::NotFound => return Ok(None),
            Err(e) if matches!(e.kind, ErrorKind::Unsupported | ErrorKind::Corrupt) => Err(e),
            Err(e) => return Err(e),
        };
        if let Ok(Some(retention)) = asked {
            return Ok(Some(retention));
        }
        // Endpoints exist that lock, and don't know this question: they refuse it, or answer with the object itself.
        match self.ask_head(key, Some(version)).map(|head| retention_of_head(&head)) {
            Ok(Some(retention)) => Ok(Some(retention)),
            Ok(None) => asked,
            // Who extends locks needs no right to read objects: then the first answer stands.
            Err(e) if e.kind == ErrorKind::Denied && asked.is_ok() => asked,
            // That it could not be asked says nothing about locks.
            Err(e) => Err(e),
        }
    }

    pub(super) fn set_retention(&self, key: &Key, version: &str, retention: &Retention) -> Result<()> {
        let what = format!("locking {key}");
        let mode = match retention.mode {
            LockMode::Governance => ObjectLockRetentionMode::Governance,
            LockMode::Compliance => ObjectLockRetentionMode::Compliance,
        };
        let wanted =
            ObjectLockRetention::builder().mode(mode).retain_until_date(date(retention.until)).build();
        let set = |sums: bool| {
            let call = async {
                let request = self
                    .client
                    .put_object_retention()
                    .bucket(&self.bucket)
                    .key(self.name(key))
                    .version_id(version)
                    .retention(wanted.clone())
                    .customize();
                match sums {
                    true => request.send().await,
                    false => request.interceptor(OnlyMd5).send().await,
                }
            };
            self.ask(&what, 0, call).map_err(|said| {
                let error = self.explain_clock(said.error(&what));
                Failed { error, minds_sums: said.minds_sums }
            })
        };
        self.with_or_without_sums(set).map(|_| ())
    }

    /// Remembers a version that was put. The first one of this process is asked about: an endpoint may take the headers
    /// that lock an object, and not know what they mean.
    pub(super) fn was_put(
        &self,
        key: &Key,
        version: Option<&str>,
        len: u64,
        retention: Option<&Retention>,
    ) -> Result<()> {
        let Some(wanted) = retention else { return Ok(()) };
        let Some(version) = version else {
            return Err(no_lock(format!("{key} was stored, but the endpoint keeps no versions")));
        };
        self.known.remember(key.as_str(), version, len, Some(*wanted));
        if self.lock_proved.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(());
        }
        match self.ask_retention(key, version) {
            Ok(Some(kept))
                if kept.until.secs.saturating_add(ROUNDING) >= wanted.until.secs
                    && kept.mode == wanted.mode => {}
            Ok(kept) => {
                let kept = kept.map_or("not at all".into(), |kept| {
                    format!("until {} ({})", readable(kept.until), kept.mode.name())
                });
                return Err(no_lock(format!(
                    "{key} was stored to be locked, and the endpoint keeps it {kept}"
                )));
            }
            Err(e) if matches!(e.kind, ErrorKind::Denied | ErrorKind::Unsupported) => {
                tracing::warn!(url = %self.url, error = %e, "whether objects are locked can't be asked");
            }
            Err(e) => return Err(e),
        }
        self.lock_proved.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}
