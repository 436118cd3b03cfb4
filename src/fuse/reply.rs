//! Our types in the kernel's form, and how long it may remember them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, INodeNo, TimeOrNow};

use crate::env::Time;
use crate::format::tree::FileType;
use crate::fs::{Attr, SetTime};

/// The vault is locked by us alone and every change goes through the kernel, so what it knows stays true.
pub(super) const TTL: Duration = Duration::from_secs(3_600);
/// Below `.snapshots` names come and go without the kernel's doing.
const BROWSE_TTL: Duration = Duration::from_secs(5);
/// Inodes of snapshots have this bit.
const BROWSE_BIT: u64 = 1 << 63;
/// What stat(2) gives as the preferred size of requests. The kernel also takes it for its own block size, which must
/// not exceed a page.
const BLOCK_SIZE: u32 = 4_096;

/// Tells whether an inode belongs to a snapshot.
pub(super) fn is_browse(ino: u64) -> bool {
    ino & BROWSE_BIT != 0
}

/// How long the kernel may remember an inode's attributes and name. `snapshot`: the mount is one snapshot, which never
/// changes.
pub(super) fn ttl(ino: u64, snapshot: bool) -> Duration {
    if is_browse(ino) && !snapshot { BROWSE_TTL } else { TTL }
}

/// How long the kernel may remember that a name is not there.
pub(super) fn negative_ttl(parent: u64, snapshot: bool) -> Duration {
    if is_browse(parent) && !snapshot { Duration::ZERO } else { TTL }
}

/// A reply for a name that is not there: inode 0, which makes the kernel remember it.
pub(super) fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// What is left to say of a regular file that has gone with its last name and handle.
pub(super) fn nameless(ino: u64) -> FileAttr {
    FileAttr { ino: INodeNo(ino), ..absent() }
}

/// Attributes for the kernel.
pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks512,
        atime: to_system(attr.atime),
        mtime: to_system(attr.mtime),
        ctime: to_system(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind),
        // Twelve bits always fit.
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_dev(attr.rdev),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// File type for the kernel.
pub(super) fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::File => fuser::FileType::RegularFile,
        FileType::Dir => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharDev => fuser::FileType::CharDevice,
        FileType::BlockDev => fuser::FileType::BlockDevice,
    }
}

/// File type out of the bits of a mode; `None` for what mknod(2) can't make.
pub(super) fn kind_of_mode(mode: u32) -> Option<FileType> {
    match mode & 0o170_000 {
        0o100_000 | 0 => Some(FileType::File),
        0o010_000 => Some(FileType::Fifo),
        0o140_000 => Some(FileType::Socket),
        0o020_000 => Some(FileType::CharDev),
        0o060_000 => Some(FileType::BlockDev),
        _ => None,
    }
}

/// The protocol's form of a device number (the kernel's `new_encode_dev`).
fn encode_dev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// Undoes [`encode_dev`].
pub(super) fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev & 0xf_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

/// A time for fuser, which turns it into the kernel's form rightly.
fn to_system(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let base = if time.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    // Times that the system type can't hold don't come from a kernel that has the same limits.
    base.and_then(|t| t.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time from fuser. Of a time before 1970 with a fraction fuser 0.18 makes `-(secs) - nanos` where the kernel said
/// `-(secs) + nanos`; this takes that back.
pub(super) fn from_system(time: SystemTime) -> Time {
    let (sign, distance) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (1, after),
        Err(before) => (-1, before.duration()),
    };
    let secs = i64::try_from(distance.as_secs()).unwrap_or(i64::MAX);
    Time { secs: sign * secs, nanos: distance.subsec_nanos() }
}

/// A time to set.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(from_system(at)),
    }
}

/// Leaves out the names that only root may see, as other filesystems do.
pub(super) fn visible_xattrs(list: Vec<u8>, uid: u32) -> Vec<u8> {
    if uid == 0 {
        return list;
    }
    let names = list.split_inclusive(|b| *b == 0);
    names.filter(|name| !name.starts_with(b"trusted.")).flatten().copied().collect()
}

/// Sends an attribute in the two steps that the protocol has: its size, then its bytes.
pub(super) fn xattr(result: Result<Vec<u8>, fuser::Errno>, size: u32, reply: fuser::ReplyXattr) {
    match result.map(|value| (u32::try_from(value.len()), value)) {
        Ok((Ok(len), _)) if size == 0 => reply.size(len),
        Ok((Ok(len), value)) if len <= size => reply.data(&value),
        Ok(_) => reply.error(fuser::Errno::ERANGE),
        Err(errno) => reply.error(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive() {
        for dev in [(0, 0), (8, 1), (259, 65_536), (4_095, 1_048_575), (1, 255), (1, 256)] {
            assert_eq!(decode_dev(encode_dev(dev)), dev);
        }
    }

    #[test]
    fn times_before_1970_are_put_right() {
        // What fuser makes of the kernel's (-2, 800_000_000), which is 1.2 seconds before the epoch.
        let from_fuser = UNIX_EPOCH - Duration::new(2, 800_000_000);
        let time = from_system(from_fuser);
        assert_eq!(time, Time { secs: -2, nanos: 800_000_000 });
        assert_eq!(to_system(time), UNIX_EPOCH - Duration::new(1, 200_000_000));
        assert_eq!(from_system(UNIX_EPOCH - Duration::from_secs(3)), Time { secs: -3, nanos: 0 });
        assert_eq!(from_system(UNIX_EPOCH + Duration::new(5, 7)), Time { secs: 5, nanos: 7 });
    }

    #[test]
    fn extreme_times_do_no_harm() {
        for secs in [i64::MIN, i64::MAX] {
            for nanos in [0, 999_999_999] {
                to_system(Time { secs, nanos });
            }
        }
    }

    #[test]
    fn every_type_has_a_mode() {
        assert_eq!(kind_of_mode(0o100_644), Some(FileType::File));
        assert_eq!(kind_of_mode(0o644), Some(FileType::File));
        assert_eq!(kind_of_mode(0o020_600), Some(FileType::CharDev));
        assert_eq!(kind_of_mode(0o040_755), None);
        assert_eq!(kind_of_mode(0o120_777), None);
    }

    #[test]
    fn trusted_attributes_are_for_root() {
        let list = b"user.a\0trusted.b\0security.c\0trusted.d\0".to_vec();
        assert_eq!(visible_xattrs(list.clone(), 1000), b"user.a\0security.c\0");
        assert_eq!(visible_xattrs(list.clone(), 0), list);
    }

    #[test]
    fn snapshots_are_not_remembered_for_long() {
        assert_eq!(ttl(1, false), TTL);
        assert_eq!(ttl(BROWSE_BIT | 1, false), BROWSE_TTL);
        assert_eq!(ttl(BROWSE_BIT | 1, true), TTL);
        assert_eq!(negative_ttl(BROWSE_BIT, false), Duration::ZERO);
    }
}
