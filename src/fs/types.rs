//! What goes in and out of the filesystem's calls.

use crate::env::Time;
use crate::format::tree::FileType;
use crate::store::records::InodeRow;

/// Attributes of an inode, as stat(2) shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub kind: FileType,
    /// Permission bits, 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names.
    pub nlink: u32,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// Bytes.
    pub size: u64,
    /// Allocated, in units of 512 bytes.
    pub blocks512: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
}

impl Attr {
    /// Returns what a row says; newer data of an open file may be in memory.
    pub(super) fn of(ino: u64, row: &InodeRow) -> Self {
        Self {
            ino,
            kind: row.kind,
            mode: row.mode,
            uid: row.uid,
            gid: row.gid,
            nlink: row.nlink,
            rdev: row.rdev,
            size: row.size,
            blocks512: row.blocks.div_ceil(512),
            atime: row.atime,
            mtime: row.mtime,
            ctime: row.ctime,
        }
    }
}

/// Who makes a call: decides who owns what is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process, for logs.
    pub pid: u32,
}

/// An open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fh(pub u64);

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The current time.
    Now,
    /// This one.
    At(Time),
}

/// Attributes to change; `None` leaves one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes: truncates or extends with a hole.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
    /// Last change of anything; set by a kernel that keeps times itself.
    pub ctime: Option<Time>,
}

/// How renameat2(2) treats an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RenameFlags {
    /// Fail with EEXIST if the target exists.
    pub noreplace: bool,
    /// Swap the two names; both must exist.
    pub exchange: bool,
}

/// How a file is opened. Access was checked by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OpenFlags {
    /// Opened for writing.
    pub write: bool,
    /// Cut to no bytes.
    pub truncate: bool,
    /// Fail with EEXIST if it exists (create only).
    pub exclusive: bool,
}

impl OpenFlags {
    /// Reads open(2)'s bits.
    pub fn from_bits(flags: i32) -> Self {
        let bits = flags as u32;
        let access = bits & 0o3;
        Self { write: access == 1 || access == 2, truncate: bits & 0o1000 != 0, exclusive: bits & 0o200 != 0 }
    }
}

/// One entry of a listing.
#[derive(Debug)]
pub struct DirEnt<'a> {
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub kind: FileType,
    /// Name.
    pub name: &'a [u8],
    /// Where to go on after this entry.
    pub cookie: u64,
    /// Attributes, when asked for; never for `.` and `..`.
    pub attr: Option<Attr>,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The next byte that is data.
    Data,
    /// The next byte that is a hole; the end of the file is one.
    Hole,
}

/// fallocate(2)'s modes, with the kernel's numbers.
pub mod falloc {
    /// The size stays.
    pub const KEEP_SIZE: i32 = 0x01;
    /// Makes a hole; needs KEEP_SIZE.
    pub const PUNCH_HOLE: i32 = 0x02;
    /// Takes a range out, moving what follows.
    pub const COLLAPSE_RANGE: i32 = 0x08;
    /// Makes a range read as zeros.
    pub const ZERO_RANGE: i32 = 0x10;
    /// Puts a hole in, moving what follows.
    pub const INSERT_RANGE: i32 = 0x20;
}

/// setxattr(2)'s flags, with the kernel's numbers.
pub mod xattr_flags {
    /// Fail if it exists.
    pub const CREATE: i32 = 1;
    /// Fail if it does not exist.
    pub const REPLACE: i32 = 2;
}

/// What statfs(2) reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Unit of the next three, in bytes.
    pub block_size: u32,
    /// Size of the backing filesystem.
    pub blocks: u64,
    /// Free, including what is kept for deletes.
    pub free: u64,
    /// What a writer can still write in the worst case.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name, in bytes.
    pub name_max: u32,
}

/// How a working tree is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsOptions {
    /// Refuse every change with EROFS.
    pub read_only: bool,
}

/// Counters for status reports and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsStats {
    /// Bytes of file data in memory that are not published yet.
    pub dirty_bytes: u64,
    /// The most there ever were.
    pub dirty_bytes_peak: u64,
    /// Memory of the buffers that data of streams stands in, whether it is in use or not, in bytes.
    pub stream_buffer_bytes: u64,
    /// Files in core.
    pub nodes: u64,
    /// Open handles of files and directories.
    pub handles: u64,
    /// Bytes that write() took.
    pub written_bytes: u64,
    /// Bytes that read() gave.
    pub read_bytes: u64,
    /// Chunks whose storing failed; their data went back to memory.
    pub failed_chunks: u64,
    /// Seconds since the last change was committed; 0 if nothing is waiting.
    pub uncommitted_seconds: u64,
    /// Inodes of snapshots that the kernel refers to, each kept in memory.
    pub snapshot_inodes: u64,
}
