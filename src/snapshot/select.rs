//! Finds the snapshot that a person means.
//!
//! | text | meaning |
//! |---|---|
//! | `latest` | the newest complete snapshot |
//! | `12` | sequence 12 |
//! | `ab34`, `ab34cd...` | the one whose id begins so; at least four digits |
//! | `2026-11-20` | the newest complete one made by the end of that day, local time |
//! | `2026-11-20 14:00` | by the end of that minute (with seconds: of that second) |
//! | `2026-11-20T14:00:00Z`, `...+01:00` | the same with a zone (RFC 3339) |
//! | `2 days ago`, `90 minutes ago`, `1w ago` | the newest complete one that old or older |
//! | `yesterday`, `today` | by the end of that day |
//!
//! Times find complete snapshots only, and say which newer ones they passed over. A number or an id finds
//! exactly what it names, complete or not.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};

use crate::env::Time;
use crate::format::{PackName, SnapshotId};

use super::chain::Chain;

/// Digits that an abbreviated id has at least.
const PREFIX_DIGITS_MIN: usize = 4;

/// A snapshot to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Sequence.
    pub seq: u64,
    /// Hash of the file.
    pub id: SnapshotId,
    /// When it was made.
    pub time: Time,
}

/// What a text selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The snapshot.
    pub seq: u64,
    /// Snapshots that the text would have meant as well, and before this one, were they complete.
    pub incomplete: Vec<u64>,
}

/// Why a text selects nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// There is no such snapshot.
    #[error("there is no snapshot {0:?}")]
    None(String),
    /// Those that the text means are all incomplete.
    #[error("no snapshot that {spec:?} means is complete; packs are missing for {}", list(.incomplete))]
    Incomplete {
        /// The text.
        spec: String,
        /// What it means, newest first.
        incomplete: Vec<u64>,
    },
    /// Several snapshots fit.
    #[error("{spec:?} fits {} snapshots: {}", .matches.len(), list_ids(.matches))]
    Ambiguous {
        /// The text.
        spec: String,
        /// Sequence and id of each.
        matches: Vec<(u64, SnapshotId)>,
    },
    /// It is no number, id, date or time.
    #[error(
        "{0:?} is no snapshot: give a number, an id (4 or more digits), `latest`, a date like 2026-11-20, \
         a time like \"2026-11-20 14:00\", or an age like \"2 days ago\""
    )]
    NotUnderstood(String),
}

fn list(seqs: &[u64]) -> String {
    seqs.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

fn list_ids(matches: &[(u64, SnapshotId)]) -> String {
    matches.iter().map(|(seq, id)| format!("{seq} ({id})")).collect::<Vec<_>>().join(", ")
}

/// Returns all snapshots of a chain, oldest first.
pub fn candidates(chain: &Chain) -> Vec<Candidate> {
    chain.snapshots().map(|info| Candidate { seq: info.seq, id: info.id, time: info.time }).collect()
}

/// Selects from a chain with the packs that are `present`, by the local time zone.
pub fn select_in(
    chain: &Chain,
    present: &std::collections::BTreeSet<PackName>,
    spec: &str,
    now: Time,
) -> Result<Selection, SelectError> {
    select(spec, &candidates(chain), &|seq| chain.is_complete(seq, present), now, &TimeZone::system())
}

/// Selects one of `candidates`, which ascend by sequence. `is_complete` is asked only where it matters.
pub fn select(
    spec: &str,
    candidates: &[Candidate],
    is_complete: &dyn Fn(u64) -> bool,
    now: Time,
    zone: &TimeZone,
) -> Result<Selection, SelectError> {
    let text = spec.trim();
    if text.eq_ignore_ascii_case("latest") {
        return newest_complete(spec, candidates, None, is_complete);
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return by_number_or_id(text, candidates);
    }
    match moment(text, now, zone) {
        Some(moment) => newest_complete(spec, candidates, Some(moment), is_complete),
        None => Err(SelectError::NotUnderstood(spec.to_string())),
    }
}

fn by_number_or_id(text: &str, candidates: &[Candidate]) -> Result<Selection, SelectError> {
    let seq = text.parse::<u64>().ok();
    let prefix = text.to_ascii_lowercase();
    let fits = |c: &&Candidate| {
        Some(c.seq) == seq || (prefix.len() >= PREFIX_DIGITS_MIN && c.id.to_hex().starts_with(&prefix))
    };
    let matches: Vec<_> = candidates.iter().filter(fits).map(|c| (c.seq, c.id)).collect();
    match matches[..] {
        [(seq, _)] => Ok(Selection { seq, incomplete: Vec::new() }),
        [] if seq.is_none() && prefix.len() < PREFIX_DIGITS_MIN => {
            Err(SelectError::NotUnderstood(text.into()))
        }
        [] => Err(SelectError::None(text.into())),
        _ => Err(SelectError::Ambiguous { spec: text.into(), matches }),
    }
}

fn newest_complete(
    spec: &str,
    candidates: &[Candidate],
    moment: Option<Timestamp>,
    is_complete: &dyn Fn(u64) -> bool,
) -> Result<Selection, SelectError> {
    let mut incomplete = Vec::new();
    // The clock may have gone back between two snapshots: sequence decides what is newer, time what is in
    // question.
    for candidate in candidates.iter().rev() {
        if moment.is_some_and(|moment| timestamp(candidate.time) > moment) {
            continue;
        }
        if is_complete(candidate.seq) {
            return Ok(Selection { seq: candidate.seq, incomplete });
        }
        incomplete.push(candidate.seq);
    }
    if incomplete.is_empty() {
        return Err(SelectError::None(spec.to_string()));
    }
    Err(SelectError::Incomplete { spec: spec.to_string(), incomplete })
}

/// A time beyond what calendars can say counts as the end of them.
fn timestamp(time: Time) -> Timestamp {
    let nanos = i32::try_from(time.nanos).unwrap_or(0);
    let edge = if time.secs < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::new(time.secs, nanos).unwrap_or(edge)
}

/// Returns the last moment that a text means.
fn moment(text: &str, now: Time, zone: &TimeZone) -> Option<Timestamp> {
    let now = timestamp(now).to_zoned(zone.clone());
    let day_end = |day: Zoned| day.end_of_day().ok().map(|z| z.timestamp());
    match text.to_ascii_lowercase().as_str() {
        "now" => return Some(now.timestamp()),
        "today" => return day_end(now),
        "yesterday" => return day_end(now.yesterday().ok()?),
        _ => {}
    }
    if text.to_ascii_lowercase().ends_with("ago") {
        let span: Span = text.parse().ok()?;
        return span.is_negative().then(|| now.checked_add(span).ok().map(|z| z.timestamp())).flatten();
    }
    let (date, rest) = text.split_at_checked(10)?;
    let date: Date = date.parse().ok()?;
    let clock = rest.trim_start_matches(['T', 't', ' ']);
    if clock.is_empty() {
        return if rest.is_empty() { day_end(date.to_zoned(zone.clone()).ok()?) } else { None };
    }
    // A minute or a second means all of it: lists show no more, and what they show should be found.
    let zone_at = clock.find(['Z', 'z', '+', '-']);
    let digits = &clock[..zone_at.unwrap_or(clock.len())];
    let rest_of_unit = match (digits.matches(':').count(), digits.contains(['.', ','])) {
        (1, false) => 59.seconds().nanoseconds(999_999_999),
        (2, false) => 999_999_999.nanoseconds(),
        (2, true) => 0.seconds(),
        _ => return None,
    };
    let start = match zone_at {
        Some(_) => text.parse::<Timestamp>().ok()?,
        None => text.parse::<DateTime>().ok()?.to_zoned(zone.clone()).ok()?.timestamp(),
    };
    start.checked_add(rest_of_unit).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(text: &str) -> Time {
        let t: Timestamp = text.parse().unwrap();
        Time { secs: t.as_second(), nanos: t.subsec_nanosecond().unsigned_abs() }
    }

    fn id(first: u8, second: u8) -> SnapshotId {
        let mut id = [0; 32];
        (id[0], id[1], id[2]) = (first, second, 0x77);
        SnapshotId(id)
    }

    fn some() -> Vec<Candidate> {
        let times = [
            "2026-11-18T10:00:00Z",
            "2026-11-19T23:30:00Z",
            "2026-11-20T14:00:20.5Z",
            "2026-11-20T20:00:00Z",
            "2026-11-21T01:00:00Z",
        ];
        let ids = [id(0xab, 0x34), id(0xab, 0x35), id(0x12, 0x34), id(0xcd, 0), id(0xef, 0)];
        let zip = times.iter().zip(ids).enumerate();
        zip.map(|(n, (t, id))| Candidate { seq: n as u64 + 1, id, time: at(t) }).collect()
    }

    fn pick(spec: &str) -> Result<u64, SelectError> {
        let now = at("2026-11-21T02:00:00Z");
        select(spec, &some(), &|_| true, now, &TimeZone::UTC).map(|s| s.seq)
    }

    #[test]
    fn numbers_and_ids() {
        assert_eq!(pick("3"), Ok(3));
        assert_eq!(pick("ab34"), Ok(1));
        assert_eq!(pick("AB35 "), Ok(2));
        assert_eq!(pick(&id(0xcd, 0).to_hex()), Ok(4));
        assert_eq!(pick("1234"), Ok(3), "a number that no sequence has may be an id");
        assert_eq!(pick("9"), Err(SelectError::None("9".into())));
        assert_eq!(pick("ab36"), Err(SelectError::None("ab36".into())));
        assert_eq!(pick("ab"), Err(SelectError::NotUnderstood("ab".into())));
        let many: Vec<_> = (1..=2)
            .map(|n| Candidate { seq: n, id: id(0xab, 0x34), time: at("2026-11-18T10:00:00Z") })
            .collect();
        let error = select("ab3477", &many, &|_| true, Time::default(), &TimeZone::UTC).unwrap_err();
        assert!(matches!(&error, SelectError::Ambiguous { matches, .. } if matches.len() == 2));
        assert_eq!(error.to_string(), "\"ab3477\" fits 2 snapshots: 1 (ab347700), 2 (ab347700)");
    }

    #[test]
    fn dates_and_times() {
        assert_eq!(pick("latest"), Ok(5));
        assert_eq!(pick("2026-11-20"), Ok(4), "by the end of the day");
        assert_eq!(pick("2026-11-20 14:00"), Ok(3), "by the end of the minute");
        assert_eq!(pick("2026-11-20T14:00:20"), Ok(3), "by the end of the second");
        assert_eq!(pick("2026-11-20 14:00:20.4"), Ok(2), "by that moment");
        assert_eq!(pick("2026-11-20 14:00:19"), Ok(2));
        assert_eq!(pick("2026-11-20T15:00:30+01:00"), Ok(3));
        assert_eq!(pick("2026-11-20T13:00:30Z"), Ok(2));
        assert_eq!(pick("yesterday"), Ok(4));
        assert_eq!(pick("today"), Ok(5));
        assert_eq!(pick("2 days ago"), Ok(1));
        assert_eq!(pick("12 hours ago"), Ok(2));
        assert_eq!(pick("90 minutes ago"), Ok(4));
        assert_eq!(pick("1w ago"), Err(SelectError::None("1w ago".into())));
        for bad in [
            "",
            "2 days",
            "in 2 days",
            "2026-13-01",
            "2026-11-20 ",
            "2026-11-20x",
            "2026-11-20 25:00",
            "soon",
        ] {
            let result = pick(bad);
            // Surrounding blanks are nothing; an empty rest after a date is the date.
            if bad.trim() != "2026-11-20" {
                assert!(matches!(result, Err(SelectError::NotUnderstood(_))), "{bad:?}: {result:?}");
            }
        }
    }

    #[test]
    fn a_local_day_ends_at_local_midnight() {
        let now = at("2026-11-21T02:00:00Z");
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        let seq = |spec| select(spec, &some(), &|_| true, now, &zone).map(|s| s.seq);
        assert_eq!(seq("2026-11-19"), Ok(1), "23:30 UTC is the next day there");
        assert_eq!(seq("2026-11-20"), Ok(4));
        assert_eq!(seq("2026-11-20 15:00"), Ok(3));
    }

    #[test]
    fn incomplete_ones_are_passed_over_and_named() {
        let now = at("2026-11-21T02:00:00Z");
        let pick = |spec, missing: &[u64]| {
            select(spec, &some(), &|seq| !missing.contains(&seq), now, &TimeZone::UTC)
        };
        assert_eq!(pick("latest", &[5, 4]), Ok(Selection { seq: 3, incomplete: vec![5, 4] }));
        assert_eq!(pick("yesterday", &[5, 4]), Ok(Selection { seq: 3, incomplete: vec![4] }));
        assert_eq!(pick("5", &[5]), Ok(Selection { seq: 5, incomplete: vec![] }), "asked for by name");
        let error = pick("2026-11-18", &[1]).unwrap_err();
        assert_eq!(error, SelectError::Incomplete { spec: "2026-11-18".into(), incomplete: vec![1] });
    }
}
