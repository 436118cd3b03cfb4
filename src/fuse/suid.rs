//! When set-user-id and set-group-id bits go because of something else that is done to a file.

use crate::fs::{Attr, Caller};

/// The attribute that is a file's own ACL.
pub(super) const ACL_XATTR: &str = "system.posix_acl_access";
/// The set-group-id bit.
pub(super) const SGID: u32 = 0o2000;

/// Tells whether this caller, setting a file's ACL, loses its set-group-id bit: who is not in a file's group must not decide what
/// its members can run in its name (CVE-2016-7097). The kernel would tell us itself only through an extension of the request that
/// fuser does not know.
pub(super) fn acl_takes_sgid(attr: &Attr, caller: Caller) -> bool {
    attr.mode & SGID != 0 && caller.uid != 0 && caller.gid != attr.gid && !has_group(caller.pid, attr.gid)
}

/// Whether a process, which waits for our answer, has this supplementary group. Not if we can't see it.
fn has_group(pid: u32, gid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => lists_group(&status, gid),
        Err(error) => {
            tracing::debug!(pid, %error, "the caller's groups");
            false
        }
    }
}

fn lists_group(status: &str, gid: u32) -> bool {
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_ascii_whitespace().any(|group| group.parse() == Ok(gid))
}

/// The mode that a regular file has after somebody without privilege changed its content; `None`: the same as before.
pub(super) fn without_suid(mode: u32) -> Option<u32> {
    const SUID: u32 = 0o4000;
    const GROUP_EXEC: u32 = 0o010;
    let lost = if mode & GROUP_EXEC != 0 { SUID | SGID } else { SUID };
    (mode & lost != 0).then_some(mode & !lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_group_id_stays_where_it_means_locking() {
        assert_eq!(without_suid(0o6777), Some(0o777));
        assert_eq!(without_suid(0o4644), Some(0o644));
        assert_eq!(without_suid(0o2644), None);
        assert_eq!(without_suid(0o6644), Some(0o2644));
        assert_eq!(without_suid(0o755), None);
    }

    #[test]
    fn groups_are_read_from_the_processs_status() {
        let status = "Name:\tx\nGroups:\t4 24 3001 \nNStgid:\t7\n";
        assert!(lists_group(status, 24) && lists_group(status, 3001));
        assert!(!lists_group(status, 2) && !lists_group(status, 7) && !lists_group("", 0));
        assert!(!has_group(u32::MAX, 4), "a process that is not there");
    }

    #[test]
    fn members_and_root_keep_set_group_id() {
        let attr = |mode, gid| Attr {
            ino: 1,
            kind: crate::format::tree::FileType::File,
            mode,
            uid: 1001,
            gid,
            nlink: 1,
            rdev: (0, 0),
            size: 0,
            blocks512: 0,
            atime: Default::default(),
            mtime: Default::default(),
            ctime: Default::default(),
        };
        let user = |uid, gid| Caller { uid, gid, pid: u32::MAX };
        assert!(acl_takes_sgid(&attr(0o2775, 3001), user(1001, 1001)));
        assert!(!acl_takes_sgid(&attr(0o2775, 3001), user(1001, 3001)));
        assert!(!acl_takes_sgid(&attr(0o2775, 3001), user(0, 0)));
        assert!(!acl_takes_sgid(&attr(0o775, 3001), user(1001, 1001)));
    }
}
