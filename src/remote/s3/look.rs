//! Looking at objects.
//!
//! An answer to HEAD has no body: that it is refused is all that it says, by its status. Credentials that have expired, a clock
//! that is wrong, a right that is missing: they look alike. So the same object is asked for its first byte, which needs the
//! same rights, and whose refusal has a body.
//!
//! What that says is believed where it is about who asks, or the clocks, and not about the object. Anything else explains the
//! refusal, but does not change its kind.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::ChecksumMode;

use super::super::{ErrorKind, Key, RemoteError, Result};
use super::body::BoundResponse;
use super::errors::Said;
use super::{RESPONSE_MAX, S3Remote};

/// Why it is refused is asked so often, ...
const ASKED_MAX: u32 = 16;
/// ... and then once in this time: of ten thousand objects that may not be looked at each is refused for itself.
const ASKED_EVERY: Duration = Duration::from_secs(60);

/// What is known of refusals.
#[derive(Debug, Default)]
pub(super) struct Why {
    /// Held while it is asked: many requests fail at once, and one question will do.
    asking: Mutex<Asking>,
    /// It is nothing about an object: all requests are refused so. With when that was said; forgotten soon, or as soon as one
    /// is not refused.
    all: Mutex<Option<(Duration, Said)>>,
}

#[derive(Debug, Default)]
struct Asking {
    times: u32,
    /// On the clock that only goes forward.
    last: Duration,
}

impl Asking {
    fn may_ask(&mut self, now: Duration) -> bool {
        if self.times >= ASKED_MAX && now.saturating_sub(self.last) < ASKED_EVERY {
            return false;
        }
        self.times = self.times.saturating_add(1);
        self.last = now;
        true
    }

    /// No answer is worth no second try. `now`: when that was clear.
    fn give_up(&mut self, now: Duration) {
        (self.times, self.last) = (ASKED_MAX, now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Valid after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Why {
    fn forget(&self) {
        *lock(&self.all) = None;
    }

    fn known(&self, status: u16, now: Duration) -> Option<Said> {
        let all = lock(&self.all);
        let fresh = all.as_ref().filter(|(when, _)| now.saturating_sub(*when) < ASKED_EVERY);
        fresh.map(|(_, said)| said).filter(|said| said.status == Some(status)).cloned()
    }
}

/// Why HEAD was refused.
enum Reason {
    /// It had a header for checksums. There are none any more.
    Sums,
    Said(Said),
    /// There is no telling, or it was asked often enough.
    Unknown,
}

/// Statuses that have many reasons.
fn is_vague(status: u16) -> bool {
    matches!(status, 301 | 400 | 401 | 403)
}

/// Whether a refusal is about who asks, or when, and about no object.
fn is_about_who_asks(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NoCredentials | ErrorKind::ExpiredCredentials | ErrorKind::ClockSkew)
}

impl S3Remote {
    /// Looks at an object, or at a version of it.
    pub(super) fn ask_head(&self, key: &Key, version: Option<&str>) -> Result<HeadObjectOutput> {
        let what = format!("looking at {key}");
        let sums = self.sums.are_sent();
        let refused = match self.send_head(&what, key, version, sums) {
            Ok(head) => {
                self.why.forget();
                return Ok(head);
            }
            Err(said) => said,
        };
        if sums && refused.status == Some(501) {
            // It does not say what it does not know.
            let again = self.send_head(&what, key, version, false);
            let status = again.as_ref().map_or_else(|said| said.status, |_| Some(200));
            if matches!(status, Some(200 | 404)) {
                self.sums.stop(&self.url);
            }
            return again.map_err(|said| said.error(&what));
        }
        let error = refused.error(&what);
        let Some(status) = refused.status.filter(|status| is_vague(*status) && !refused.has_code) else {
            if refused.status == Some(404) {
                self.why.forget();
            }
            return Err(error);
        };
        match self.why_refused(&what, key, version, status, sums) {
            // Once: now there are none.
            Reason::Sums => self.ask_head(key, version),
            Reason::Said(why) if is_about_who_asks(why.kind) || why.kind == error.kind => {
                Err(RemoteError::new(why.kind, format!("{}: {}", error.message, why.text)))
            }
            Reason::Said(_) | Reason::Unknown => Err(error),
        }
    }

    fn send_head(
        &self,
        what: &str,
        key: &Key,
        version: Option<&str>,
        sums: bool,
    ) -> std::result::Result<HeadObjectOutput, Said> {
        let call = async {
            self.client
                .head_object()
                .bucket(&self.bucket)
                .key(self.name(key))
                .set_checksum_mode(sums.then_some(ChecksumMode::Enabled))
                .set_version_id(version.map(String::from))
                .send()
                .await
        };
        self.ask(what, 0, call)
    }

    /// What a refusal with a body says.
    fn why_refused(&self, what: &str, key: &Key, version: Option<&str>, status: u16, sums: bool) -> Reason {
        let mut asking = lock(&self.why.asking);
        // Somebody may have asked meanwhile.
        if sums && !self.sums.are_sent() {
            return Reason::Sums;
        }
        let now = self.env.monotonic();
        if let Some(known) = self.why.known(status, now) {
            return Reason::Said(known);
        }
        if !asking.may_ask(now) {
            return Reason::Unknown;
        }
        let call = async {
            let request = self
                .client
                .get_object()
                .bucket(&self.bucket)
                .key(self.name(key))
                .range("bytes=0-0")
                .set_checksum_mode(sums.then_some(ChecksumMode::Enabled))
                .set_version_id(version.map(String::from))
                .customize();
            // What comes with success is not read.
            request.interceptor(BoundResponse(RESPONSE_MAX)).send().await.map(drop)
        };
        let said = match self.ask(what, 0, call) {
            Ok(()) => return Reason::Unknown,
            Err(said) => said,
        };
        if said.status.is_none() {
            asking.give_up(self.env.monotonic());
            return Reason::Unknown;
        }
        if sums && said.minds_sums {
            self.sums.stop(&self.url);
            return Reason::Sums;
        }
        if !said.has_code {
            return Reason::Unknown;
        }
        if is_about_who_asks(said.kind) {
            // For those that are refused at the same time.
            *lock(&self.why.all) = Some((now, Said { status: Some(status), ..said.clone() }));
        }
        Reason::Said(said)
    }
}
