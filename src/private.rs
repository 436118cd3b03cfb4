//! Whether a file that holds a secret can be read by somebody else.

use std::ffi::OsStr;
use std::path::{Component, Path};

/// Whether a file of this mode can be read, written or run by others than its owner; inside the directory in which systemd
/// passes credentials to a unit, by others than that unit.
pub(crate) fn is_open_to_others(path: &Path, mode: u32) -> bool {
    has_bits_for_others(path, mode, std::env::var_os("CREDENTIALS_DIRECTORY").as_deref())
}

/// Whether a file is one of those that systemd passes to this unit.
pub(crate) fn is_systemds(path: &Path) -> bool {
    is_inside(path, std::env::var_os("CREDENTIALS_DIRECTORY").as_deref())
}

fn has_bits_for_others(path: &Path, mode: u32, credentials: Option<&OsStr>) -> bool {
    // For a unit with `User=` systemd gives the user an entry in the file's ACL. What is shown as the group's bits is then the
    // mask of the ACL: 0440.
    let bits = if is_inside(path, credentials) { 0o007 } else { 0o077 };
    mode & bits != 0
}

fn is_inside(path: &Path, credentials: Option<&OsStr>) -> bool {
    let Some(dir) = credentials.map(Path::new).filter(|dir| dir.is_absolute() && dir.parent().is_some())
    else {
        return false;
    };
    path.starts_with(dir) && !path.components().any(|part| part == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_the_group_are_a_mask_in_systemds_directory_only() {
        let dir = Some(OsStr::new("/run/credentials/x.service"));
        let is_open = |path: &str, mode, dir| has_bits_for_others(Path::new(path), mode, dir);
        let inside = "/run/credentials/x.service/vault";
        for (mode, open) in [(0o400, false), (0o440, false), (0o600, false), (0o444, true), (0o441, true)] {
            assert_eq!(is_open(inside, 0o100_000 | mode, dir), open, "{mode:o}");
            // Elsewhere each bit counts, whatever a path is made to look like.
            let elsewhere = [
                ("/run/credentials/x.service.d/vault", dir),
                ("/run/credentials/x.service/../../../root/vault", dir),
                ("vault", dir),
                (inside, None),
                (inside, Some(OsStr::new("run/credentials/x.service"))),
                (inside, Some(OsStr::new("/"))),
                ("vault", Some(OsStr::new(""))),
            ];
            for (path, dir) in elsewhere {
                assert_eq!(is_open(path, 0o100_000 | mode, dir), mode & 0o077 != 0, "{path} {mode:o}");
            }
        }
    }
}
