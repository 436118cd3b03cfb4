//! `/proc/<pid>/mountinfo`: what is mounted where.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::error::{MountError, Result};

/// The file system type that our mounts have.
pub const FS_TYPE: &str = "fuse.strongroom";

/// One mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// The kernel's number of this mount.
    pub id: u64,
    /// The mount it stands on.
    pub parent: u64,
    /// Major and minor number, as `st_dev` has them.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Options of this mount, separated by commas.
    pub options: String,
    /// Its type.
    pub fstype: String,
    /// Its source: for our mounts the vault, unless `fsname=` said otherwise.
    pub source: OsString,
    /// Options of its file system, separated by commas: those that all its mounts share.
    pub super_options: String,
}

impl MountLine {
    /// Tells whether this is a mount of a vault.
    pub fn is_ours(&self) -> bool {
        self.fstype == FS_TYPE
    }
}

/// Undoes the kernel's octal escapes (`\040` for a blank).
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let digits = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        match digits {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Reads one line; `None` when it is none.
fn parse_line(line: &[u8]) -> Option<MountLine> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let _root = fields.next()?;
    let mountpoint = PathBuf::from(unescape(fields.next()?));
    let options = text(fields.next()?);
    // Any number of optional fields, then a dash.
    fields.find(|field| *field == b"-")?;
    let fstype = text(fields.next()?);
    let source = unescape(fields.next()?);
    let super_options = text(fields.next()?);
    Some(MountLine { id, parent, device, mountpoint, options, fstype, source, super_options })
}

/// Reads the text of a mountinfo file. Lines that don't parse are left out.
pub fn parse(text: &[u8]) -> Vec<MountLine> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// Returns what is mounted in this process's mount namespace, in the order of mounting.
///
/// # Errors
/// When /proc is not there.
pub fn mounts() -> Result<Vec<MountLine>> {
    let path = "/proc/self/mountinfo";
    Ok(parse(&std::fs::read(path).map_err(|e| MountError::io(path, e))?))
}

/// Returns what is mounted in the namespace of another process, or `None` when we may not see that.
pub fn mounts_of(pid: u32) -> Option<Vec<MountLine>> {
    std::fs::read(format!("/proc/{pid}/mountinfo")).ok().map(|text| parse(&text))
}

/// Returns the topmost mount at exactly this path, which must be absolute and free of links.
pub fn at<'a>(mounts: &'a [MountLine], path: &Path) -> Option<&'a MountLine> {
    mounts.iter().rev().find(|m| m.mountpoint == path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
98 22 0:51 / /mnt/my\\040files rw,nosuid,nodev shared:7 master:2 - fuse.strongroom /srv/a\\134b\\012c rw,user_id=0\n\
99 22 0:52 / /mnt/x rw - fuse.strongroom /srv/v rw,user_id=0\n\
nonsense\n\
100 22 0-52 / /mnt/y rw - tmpfs t rw\n\
101 22 0:53 / /mnt/z rw no dash here\n";

    #[test]
    fn lines_are_read_and_unescaped() {
        let all = parse(TEXT);
        assert_eq!(all.len(), 3);
        assert_eq!(all[1].mountpoint, Path::new("/mnt/my files"));
        assert_eq!(all[1].source, OsString::from("/srv/a\\b\nc"));
        assert_eq!(all[1].device, (0, 51));
        assert_eq!(all[1].options, "rw,nosuid,nodev");
        assert_eq!(all[1].super_options, "rw,user_id=0");
        assert!(all[1].is_ours());
        assert!(!all[0].is_ours());
    }

    #[test]
    fn the_topmost_of_stacked_mounts_is_found() {
        let text = b"1 0 0:1 / /m rw - tmpfs a rw\n2 1 0:2 / /m rw - fuse.strongroom b rw\n";
        let all = parse(text);
        assert_eq!(at(&all, Path::new("/m")).unwrap().id, 2);
        assert!(at(&all, Path::new("/other")).is_none());
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        assert_eq!(unescape(b"a\\04"), OsString::from("a\\04"));
        assert_eq!(unescape(b"\\888x\\"), OsString::from("\\888x\\"));
        assert_eq!(unescape(b"\\777"), OsString::from("\\777"));
        assert_eq!(unescape(b"\\040\\040"), OsString::from("  "));
    }

    #[test]
    fn our_own_mounts_can_be_read() {
        assert!(mounts().unwrap().iter().any(|m| m.mountpoint == Path::new("/proc")));
        assert!(mounts_of(std::process::id()).is_some());
        assert!(mounts_of(u32::MAX).is_none());
    }
}
