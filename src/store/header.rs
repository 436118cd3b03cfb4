//! Reading, choosing and writing the two copies of the vault's header (FORMAT section 3).

use crate::crypto::{RootSecret, header_mac};
use crate::disk::Disk;
use crate::format::{FormatError, Header, ParsedHeader};
use crate::store::error::{Result, StoreError};

/// The header's first copy.
pub const HEADER_PATH: &str = "vault.json";
/// Its second copy.
pub const HEADER_BACKUP_PATH: &str = "vault.json.bak";
/// HDR: the largest header that is read.
pub const HEADER_BYTES_MAX: u64 = 256 << 10;

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

fn read_copy(disk: &dyn Disk, path: &str) -> Result<Copy> {
    match disk.read_file(path, HEADER_BYTES_MAX) {
        Ok(bytes) => Ok(match Header::parse(&bytes) {
            Ok(parsed) => Copy::Good(Box::new(parsed)),
            Err(error) => Copy::Bad(error),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Copy::Missing),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            Ok(Copy::Bad(FormatError::Limit("header larger than 256 KiB")))
        }
        Err(source) => Err(StoreError::Io { what: format!("reading {path}"), source }),
    }
}

/// Reads the header, from whichever copy is sound (FORMAT HDR-2).
///
/// # Errors
/// `NotAVault`, `Newer`, or `HeaderDamaged` when no copy is sound; I/O errors.
pub fn load(disk: &dyn Disk) -> Result<LoadedHeader> {
    let first = read_copy(disk, HEADER_PATH)?;
    let second = read_copy(disk, HEADER_BACKUP_PATH)?;
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
            let warning = (a.mac_input != b.mac_input || a.mac != b.mac).then(|| {
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
    for path in [HEADER_PATH, HEADER_BACKUP_PATH] {
        disk.write_file_atomic(path, &bytes)
            .map_err(|source| StoreError::Io { what: format!("writing {path}"), source })?;
    }
    Ok(())
}
