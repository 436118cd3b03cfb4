//! A snapshot as programs are told about it: one shape, whoever tells.

use serde::Serialize;

use super::chain::ChainInfo;
use super::create::SnapshotInfo;
use crate::env::Time;
use crate::format::{Origin, RootInfo, SealedPart};

/// One snapshot. The names and types are a promise: `snapshot create`, `list` and `show` print this with `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Sequence number.
    pub seq: u64,
    /// Hash of its file, in hex.
    pub id: String,
    /// When it was made, RFC 3339, UTC.
    pub time: String,
    /// `working-tree`, `import` or `removal`.
    pub origin: &'static str,
    /// Whether all its packs are there.
    pub complete: bool,
    /// The host that it was made on.
    pub host: String,
    /// Words kept with it.
    pub tags: Vec<String>,
    /// Regular files in it.
    pub files: u64,
    /// Directories in it, its root among them.
    pub dirs: u64,
    /// Links, fifos, sockets and devices in it.
    pub others: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// The program that made it.
    pub program: String,
}

impl Description {
    /// Describes one that was just made.
    pub fn of_new(info: &SnapshotInfo) -> Self {
        let (host, tags, program) = (info.host.clone(), info.tags.clone(), info.program.clone());
        Self::new(
            info.seq,
            info.id.to_hex(),
            info.time,
            info.origin,
            true,
            host,
            tags,
            Some(&info.root),
            program,
        )
    }

    /// Describes one of the chain. `complete`: whether its packs are all there.
    pub fn of_chain(info: &ChainInfo, sealed: &SealedPart, complete: bool) -> Self {
        let (host, tags, program) = (sealed.host.clone(), sealed.tags.clone(), sealed.program.clone());
        let root = sealed.root.as_ref();
        Self::new(info.seq, info.id.to_hex(), info.time, info.origin, complete, host, tags, root, program)
    }

    #[allow(clippy::too_many_arguments, reason = "called twice, right above")]
    fn new(
        seq: u64,
        id: String,
        time: Time,
        origin: Origin,
        complete: bool,
        host: String,
        tags: Vec<String>,
        root: Option<&RootInfo>,
        program: String,
    ) -> Self {
        Self {
            seq,
            id,
            time: rfc3339(time.secs, 0),
            origin: match origin {
                Origin::WorkingTree => "working-tree",
                Origin::Import => "import",
                Origin::Removal => "removal",
            },
            complete,
            host,
            tags,
            files: root.map_or(0, |r| r.files),
            dirs: root.map_or(0, |r| r.dirs),
            others: root.map_or(0, |r| r.others),
            bytes: root.map_or(0, |r| r.bytes),
            program,
        }
    }
}

/// A time in UTC as RFC 3339 writes it; one that no calendar reaches as `@` and seconds since 1970.
pub fn rfc3339(secs: i64, nanos: u32) -> String {
    let nanos = i32::try_from(nanos).unwrap_or(0);
    jiff::Timestamp::new(secs, nanos).map_or_else(|_| format!("@{secs}"), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn times_are_utc_and_those_beyond_the_calendar_are_still_told() {
        assert_eq!(rfc3339(1_795_239_385, 0), "2026-11-21T05:36:25Z");
        assert_eq!(rfc3339(-1, 500_000_000), "1969-12-31T23:59:59.5Z");
        assert_eq!(rfc3339(i64::MAX, 0), "@9223372036854775807");
    }
}
