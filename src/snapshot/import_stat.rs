//! What a source's filesystem says about a file, as an entry of a tree.

use rustix::fs::Stat;

use crate::env::Time;
use crate::format::{Content, Entry, FileType};

/// The names of a file.
pub(super) fn links_of(stat: &Stat) -> u64 {
    // The type of this field differs between architectures.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    let links = stat.st_nlink as u64;
    links.max(1)
}

/// The last change of a file's attributes.
pub(super) fn ctime_of(stat: &Stat) -> Time {
    times_of(stat).2
}

/// The times of the last access, of the last change, and of the last change of attributes.
#[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
fn times_of(stat: &Stat) -> (Time, Time, Time) {
    // The types of these fields differ between architectures as well.
    let time = |secs: i64, nanos: u64| Time { secs, nanos: u32::try_from(nanos).unwrap_or(0) };
    (
        time(stat.st_atime as i64, stat.st_atime_nsec as u64),
        time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
        time(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
    )
}

/// An entry without extended attributes and content. Without `atime` the time of access is that of the last change.
pub(super) fn entry_of(name: Vec<u8>, kind: FileType, ino: u64, stat: &Stat, atime: bool) -> Entry {
    let (accessed, mtime, ctime) = times_of(stat);
    Entry {
        name,
        kind,
        ino,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        atime: if atime { accessed } else { mtime },
        mtime,
        ctime,
        nlink: u32::try_from(links_of(stat)).unwrap_or(u32::MAX),
        size: if kind == FileType::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        xattrs: Vec::new(),
        content: if kind == FileType::File { Content::Empty } else { Content::None },
    }
}
