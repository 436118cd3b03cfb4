//! Reading, choosing and writing the two copies of the vault's header (FORMAT section 3).

use std::io;

use crate::crypto::{RootSecret, header_mac};
use crate::disk::Disk;
use crate::format::header::HEADER_LEN_MAX;
pub use crate::format::header::{HEADER_BACKUP_PATH, HEADER_PATH};
use crate::format::{FormatError, Header, ParsedHeader};
use crate::store::error::{Result, StoreError};

/// [`HEADER_LEN_MAX`], as lengths of files are.
pub const HEADER_BYTES_MAX: u64 = HEADER_LEN_MAX as u64;
/// Both copies of a header, the one first that is written first.
pub const COPIES: [&str; 2] = [HEADER_PATH, HEADER_BACKUP_PATH];

/// A header and what was found out about its copies.
#[derive(Debug)]
pub struct LoadedHeader {
    /// The copy that is used.
    pub parsed: ParsedHeader,
    /// What is wrong with the other copy, if anything; the next write of the header mends it.
    pub warning: Option<String>,
}

enum Copy {
    Good(Box<ParsedHeader>),
    Missing,
    Bad(FormatError),
}

fn judge(path: &str, read: io::Result<Vec<u8>>) -> Result<Copy> {
    match read {
        Ok(bytes) => Ok(match Header::parse(&bytes) {
            Ok(parsed) => Copy::Good(Box::new(parsed)),
            Err(error) => Copy::Bad(error),
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Copy::Missing),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            Ok(Copy::Bad(FormatError::Limit("header larger than 256 KiB")))
        }
        Err(source) => Err(StoreError::Io { what: format!("reading {path}"), source }),
    }
}

/// Reads the header, from whichever copy is sound (FORMAT HDR-2).
///
/// # Errors
/// `NotAVault`, `Newer`, or `HeaderDamaged` when no copy is sound, or it can't be said which one counts; I/O errors.
pub fn load(disk: &dyn Disk) -> Result<LoadedHeader> {
    load_by(&mut |path| disk.read_file(path, HEADER_BYTES_MAX))
}

/// [`load`] for a vault that is not on a disk. `read` gets the path of a copy, and returns its bytes, at most
/// [`HEADER_BYTES_MAX`], `NotFound`, or `InvalidData` for what can be no header.
///
/// # Errors
/// As [`load`].
pub fn load_by(read: &mut dyn FnMut(&str) -> io::Result<Vec<u8>>) -> Result<LoadedHeader> {
    let first = judge(HEADER_PATH, read(HEADER_PATH))?;
    let second = judge(HEADER_BACKUP_PATH, read(HEADER_BACKUP_PATH))?;
    // FORMAT HDR-1, HDR-2a: a newer format is said before anything else is judged, unless a copy of ours is sound.
    let sound = matches!(first, Copy::Good(_)) || matches!(second, Copy::Good(_));
    for copy in [&first, &second] {
        if let (Copy::Bad(FormatError::Newer { version }), false) = (copy, sound) {
            return Err(StoreError::Newer { version: *version });
        }
    }
    let explain = |path: &str, copy: &Copy| match copy {
        Copy::Good(_) => None,
        Copy::Missing => Some(format!("{path} is missing")),
        Copy::Bad(error) => Some(format!("{path} is damaged: {error}")),
    };
    let (warn_first, warn_second) = (explain(HEADER_PATH, &first), explain(HEADER_BACKUP_PATH, &second));
    match (first, second) {
        (Copy::Good(a), Copy::Good(b)) => {
            let differ = a != b;
            // FORMAT HDR-2a
            if differ && a.header.generation == b.header.generation {
                let text =
                    format!("its two copies are both of generation {}, and differ", a.header.generation);
                return Err(StoreError::HeaderDamaged(text));
            }
            let warning = differ.then(|| {
                format!(
                    "the header copies differ; using the newer one (generation {})",
                    a.header.generation.max(b.header.generation)
                )
            });
            let parsed = if b.header.generation > a.header.generation { b } else { a };
            Ok(LoadedHeader { parsed: *parsed, warning })
        }
        (Copy::Good(a), _) => Ok(LoadedHeader { parsed: *a, warning: warn_second }),
        (_, Copy::Good(b)) => Ok(LoadedHeader { parsed: *b, warning: warn_first }),
        (Copy::Missing, Copy::Missing) => Err(StoreError::NotAVault),
        (Copy::Bad(FormatError::NotAVault), Copy::Missing | Copy::Bad(FormatError::NotAVault)) => {
            Err(StoreError::NotAVault)
        }
        (Copy::Missing, Copy::Bad(FormatError::NotAVault)) => Err(StoreError::NotAVault),
        (_, _) => {
            let reasons: Vec<String> = [warn_first, warn_second].into_iter().flatten().collect();
            Err(StoreError::HeaderDamaged(reasons.join("; ")))
        }
    }
}

/// Writes both copies with the next generation, the first durable before the second is begun: at each moment one copy is whole.
///
/// # Errors
/// I/O errors; then at least one sound copy, old or new, is still there.
pub fn store(disk: &dyn Disk, header: &mut Header, root: &RootSecret) -> Result<()> {
    header.generation += 1;
    let bytes = header.encode(|input| header_mac(root, input));
    for path in COPIES {
        disk.write_file_atomic(path, &bytes)
            .map_err(|source| StoreError::Io { what: format!("writing {path}"), source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::SimDisk;
    use crate::format::samples;

    const MAC: [u8; 32] = [7; 32];

    /// What a vault with these two copies loads: the generation, and whether there is a warning.
    fn chosen(first: Option<&[u8]>, second: Option<&[u8]>) -> Result<(u64, bool)> {
        let disk = SimDisk::new(1);
        for (path, copy) in [(HEADER_PATH, first), (HEADER_BACKUP_PATH, second)] {
            if let Some(bytes) = copy {
                disk.raw_write(path, bytes);
            }
        }
        load(&disk).map(|loaded| (loaded.parsed.header.generation, loaded.warning.is_some()))
    }

    fn generation(n: u64) -> Vec<u8> {
        Header { generation: n, ..samples::header() }.encode(|_| MAC)
    }

    #[test]
    fn the_sound_copy_with_the_higher_generation_is_chosen() {
        // FORMAT HDR-2
        let (old, new) = (generation(3), generation(4));
        let mut damaged = new.clone();
        damaged[200] ^= 1;
        let garbage = b"not json".to_vec();
        assert_eq!(chosen(Some(&new), Some(&new)).unwrap(), (4, false));
        assert_eq!(chosen(Some(&new), Some(&old)).unwrap(), (4, true));
        assert_eq!(chosen(Some(&old), Some(&new)).unwrap(), (4, true));
        for other in [Some(&damaged[..]), Some(&garbage), None] {
            assert_eq!(chosen(other, Some(&old)).unwrap(), (3, true));
            assert_eq!(chosen(Some(&old), other).unwrap(), (3, true));
        }
        for other in [Some(&damaged[..]), Some(&garbage), None] {
            for (a, b) in [(Some(&damaged[..]), other), (other, Some(&damaged[..]))] {
                assert!(matches!(chosen(a, b), Err(StoreError::HeaderDamaged(_))));
            }
        }
        for (a, b) in
            [(Some(&garbage), Some(&garbage)), (None, Some(&garbage)), (Some(&garbage), None), (None, None)]
        {
            let found = chosen(a.map(Vec::as_slice), b.map(Vec::as_slice));
            assert!(matches!(found, Err(StoreError::NotAVault)));
        }
    }

    #[test]
    fn a_newer_format_counts_only_if_no_copy_of_ours_is_sound() {
        // FORMAT HDR-1, HDR-2a
        let sound = generation(3);
        let newer =
            String::from_utf8(sound.clone()).unwrap().replacen("\"strongroom\": 1", "\"strongroom\": 2", 1);
        let newer = newer.as_bytes();
        assert_eq!(chosen(Some(newer), Some(&sound)).unwrap(), (3, true));
        assert_eq!(chosen(Some(&sound), Some(newer)).unwrap(), (3, true));
        for other in [None, Some(newer), Some(&b"{}"[..])] {
            assert!(matches!(chosen(Some(newer), other), Err(StoreError::Newer { version: 2 })));
            assert!(matches!(chosen(other, Some(newer)), Err(StoreError::Newer { version: 2 })));
        }
    }

    #[test]
    fn two_sound_copies_of_one_generation_that_differ_are_refused() {
        // FORMAT HDR-2a
        let other = Header { signing_key: [1; 32], ..samples::header() }.encode(|_| MAC);
        let found = chosen(Some(&generation(3)), Some(&other));
        assert!(matches!(found, Err(StoreError::HeaderDamaged(text)) if text.contains("differ")));
        let remaced = Header { generation: 3, ..samples::header() }.encode(|_| [8; 32]);
        assert!(matches!(chosen(Some(&generation(3)), Some(&remaced)), Err(StoreError::HeaderDamaged(_))));
    }
}
