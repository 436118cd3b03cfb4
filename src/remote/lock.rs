//! Object Lock: until when objects are kept from being deleted, by anybody.
//!
//! Retention is set when an object is put, with some slack, and is set anew only when less than the promised time remains:
//! an object that is still needed costs one request each `slack` days. It is never shortened: what refuses to be
//! lengthened is asked how long it is retained, and that may be enough.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{ErrorKind, RemoteError, Result};
use crate::env::Time;

/// The longest retention that can be configured: ten years. In compliance mode nobody can take a typing error back.
pub const LOCK_DAYS_MAX: u32 = 3650;
/// Names that are remembered of each kind of finding; there may be any number.
const NAMES_MAX: usize = 100;
const DAY: i64 = 86_400;

/// Who can lift a retention before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockMode {
    /// Who has the right to bypass it.
    Governance,
    /// Nobody.
    Compliance,
}

impl LockMode {
    /// Reads a mode.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "governance" => Some(Self::Governance),
            "compliance" => Some(Self::Compliance),
            _ => None,
        }
    }

    /// Its name, as it is typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Governance => "governance",
            Self::Compliance => "compliance",
        }
    }
}

/// What a remote is to promise for everything that its snapshots need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Who can lift it.
    pub mode: LockMode,
    /// After each shipment everything is retained for at least so many days.
    pub days: u32,
}

impl Lock {
    /// Checks the bounds.
    ///
    /// # Errors
    /// `Misconfigured`.
    pub fn check(&self) -> Result<()> {
        match (1..=LOCK_DAYS_MAX).contains(&self.days) {
            true => Ok(()),
            false => Err(RemoteError::new(
                ErrorKind::Misconfigured,
                format!("objects are locked for 1 to {LOCK_DAYS_MAX} days"),
            )),
        }
    }

    /// Days on top of what is promised: a tenth, and at least one. While they last nothing has to be set anew, and a clock
    /// that is a little wrong does no harm.
    #[must_use]
    pub fn slack_days(&self) -> u32 {
        (self.days / 10).max(1)
    }

    /// What is retained until then need not be set anew.
    #[must_use]
    pub fn enough(&self, now: Time) -> Time {
        after(now, self.days)
    }

    /// What is set at `now`.
    #[must_use]
    pub fn retention(&self, now: Time) -> Retention {
        Retention { mode: self.mode, until: after(now, self.days + self.slack_days()) }
    }
}

/// Whole seconds: endpoints keep no more of them.
fn after(now: Time, days: u32) -> Time {
    Time { secs: now.secs.saturating_add(i64::from(days) * DAY), nanos: 0 }
}

/// A time for messages.
pub(super) fn readable(time: Time) -> String {
    jiff::Timestamp::new(time.secs, 0).map_or_else(|_| format!("@{}", time.secs), |time| time.to_string())
}

/// What keeps one version of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Who can lift it.
    pub mode: LockMode,
    /// Until when, by the endpoint's clock.
    pub until: Time,
}

/// A remote that retains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    /// What it is to promise.
    pub lock: Lock,
    /// Tells places apart that have the same URL at different endpoints.
    pub place: String,
    /// The clock here.
    pub now: Time,
}

/// One version of an object that may have several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// What the endpoint calls it.
    pub id: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether it is what those see who don't ask for versions.
    pub latest: bool,
    /// Its place among those that were looked into: 0 is the oldest.
    pub age: usize,
}

/// Versions of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// The one first that counts.
    pub list: Vec<Version>,
    /// So many were not looked into, since there are too many, or they are too long together.
    pub left_out: u64,
}

/// What somebody did to a place where nothing is ever changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Objects under a delete marker. They are read all the same.
    pub hidden: Names,
    /// Objects that something else was written over. What was there before is read.
    pub overwritten: Names,
    /// Why objects are not read by version, where that was wanted and the place seems to keep versions: then what hides
    /// objects, or lies over them, is not noticed.
    pub unversioned: Option<String>,
}

impl Findings {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hidden.count() == 0 && self.overwritten.count() == 0
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.hidden.add(&other.hidden);
        self.overwritten.add(&other.overwritten);
        if self.unversioned.is_none() {
            self.unversioned.clone_from(&other.unversioned);
        }
    }
}

/// A bounded number of names, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    names: BTreeSet<String>,
    more: u64,
}

impl Names {
    /// Remembers a name.
    pub(crate) fn insert(&mut self, name: &str) {
        if self.names.contains(name) {
            return;
        }
        if self.names.len() < NAMES_MAX {
            self.names.insert(name.to_string());
        } else {
            self.more += 1;
        }
    }

    /// Forgets a name.
    pub(crate) fn remove(&mut self, name: &str) {
        self.names.remove(name);
    }

    fn add(&mut self, other: &Self) {
        for name in &other.names {
            self.insert(name);
        }
        self.more += other.more;
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.names.len() as u64 + self.more
    }

    /// The first hundred.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Some of them for a message.
    #[must_use]
    pub fn some(&self) -> String {
        const SHOWN: usize = 5;
        let shown: Vec<&str> = self.iter().take(SHOWN).collect();
        match self.count().saturating_sub(shown.len() as u64) {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn slack_is_a_tenth_and_at_least_a_day() {
        let slack = |days| Lock { mode: LockMode::Governance, days }.slack_days();
        assert_eq!([1, 9, 10, 30, 365, 3650].map(slack), [1, 1, 1, 3, 36, 365]);
    }

    #[test]
    fn bounds_hold() {
        for (days, good) in [(0, false), (1, true), (3650, true), (3651, false), (u32::MAX, false)] {
            let checked = Lock { mode: LockMode::Compliance, days }.check();
            assert_eq!(checked.is_ok(), good, "{days}");
        }
        let end = Lock { mode: LockMode::Compliance, days: 3650 };
        assert_eq!(end.retention(Time { secs: i64::MAX, nanos: 5 }).until.secs, i64::MAX, "no overflow");
    }

    #[test]
    fn what_is_set_lasts_longer_than_what_is_enough() {
        let now = Time { secs: 1_000_000, nanos: 999 };
        let lock = Lock { mode: LockMode::Governance, days: 30 };
        assert_eq!(lock.enough(now), Time { secs: 1_000_000 + 30 * DAY, nanos: 0 });
        assert_eq!(lock.retention(now).until, Time { secs: 1_000_000 + 33 * DAY, nanos: 0 });
    }

    #[test]
    fn any_number_of_names_takes_little_memory() {
        let mut names = Names::default();
        for n in 0..1000 {
            names.insert(&format!("{n:04}"));
            names.insert("0000");
        }
        assert_eq!((names.count(), names.iter().count()), (1000, NAMES_MAX));
        assert_eq!(names.some(), "0000, 0001, 0002, 0003, 0004 and 995 more");
    }
}
