//! The operations of the protocol that reach the filesystem: names for spans and counters.

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Op(usize);

impl Op {
    /// How it is called in logs and in `status`.
    pub(super) fn name(self) -> &'static str {
        NAMES[self.0]
    }

    /// Its place among [`NAMES`].
    pub(super) fn index(self) -> usize {
        self.0
    }
}

/// All names, in the order of the constants.
pub(super) const NAMES: [&str; 31] = [
    "lookup",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "symlink",
    "rename",
    "link",
    "open",
    "create",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "opendir",
    "readdir",
    "readdirplus",
    "releasedir",
    "fsyncdir",
    "statfs",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "fallocate",
    "lseek",
    "copy_file_range",
];

pub(super) const LOOKUP: Op = Op(0);
pub(super) const GETATTR: Op = Op(1);
pub(super) const SETATTR: Op = Op(2);
pub(super) const READLINK: Op = Op(3);
pub(super) const MKNOD: Op = Op(4);
pub(super) const MKDIR: Op = Op(5);
pub(super) const UNLINK: Op = Op(6);
pub(super) const RMDIR: Op = Op(7);
pub(super) const SYMLINK: Op = Op(8);
pub(super) const RENAME: Op = Op(9);
pub(super) const LINK: Op = Op(10);
pub(super) const OPEN: Op = Op(11);
pub(super) const CREATE: Op = Op(12);
pub(super) const READ: Op = Op(13);
pub(super) const WRITE: Op = Op(14);
pub(super) const FLUSH: Op = Op(15);
pub(super) const RELEASE: Op = Op(16);
pub(super) const FSYNC: Op = Op(17);
pub(super) const OPENDIR: Op = Op(18);
pub(super) const READDIR: Op = Op(19);
pub(super) const READDIRPLUS: Op = Op(20);
pub(super) const RELEASEDIR: Op = Op(21);
pub(super) const FSYNCDIR: Op = Op(22);
pub(super) const STATFS: Op = Op(23);
pub(super) const SETXATTR: Op = Op(24);
pub(super) const GETXATTR: Op = Op(25);
pub(super) const LISTXATTR: Op = Op(26);
pub(super) const REMOVEXATTR: Op = Op(27);
pub(super) const FALLOCATE: Op = Op(28);
pub(super) const LSEEK: Op = Op(29);
pub(super) const COPY_FILE_RANGE: Op = Op(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_their_constants() {
        assert_eq!(
            (LOOKUP.name(), WRITE.name(), COPY_FILE_RANGE.name()),
            ("lookup", "write", "copy_file_range")
        );
        assert_eq!(COPY_FILE_RANGE.index() + 1, NAMES.len());
    }
}
