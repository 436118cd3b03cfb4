//! Files with credentials: which one it is, and that nobody else can read it.

#[cfg(any(feature = "webdav", feature = "azblob"))]
use std::fs::File;
use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::location::Settings;
use super::{ErrorKind, RemoteError, Result};
use crate::private::is_open_to_others;

/// A file with one secret has at most this.
#[cfg(any(feature = "webdav", feature = "azblob"))]
const SECRET_MAX: u64 = 16 << 10;

/// The file that the settings name for credentials, here or among those that systemd passes.
///
/// # Errors
/// `NoCredentials`.
pub(super) fn credentials_file(settings: &Settings) -> Result<Option<PathBuf>> {
    match (&settings.credentials_file, &settings.credential) {
        (Some(path), _) => Ok(Some(path.clone())),
        (None, Some(name)) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
            Some(dir) => Ok(Some(Path::new(&dir).join(name))),
            None => Err(RemoteError::new(
                ErrorKind::NoCredentials,
                format!(
                    "the credential {name} was not passed: CREDENTIALS_DIRECTORY is not set (systemd's LoadCredential=)"
                ),
            )),
        },
        (None, None) => Ok(None),
    }
}

/// Refuses a file with secrets that others can read, for libraries that open it by themselves.
///
/// # Errors
/// `NoCredentials`, `UnsafeFile`.
pub(super) fn require_private(path: &Path) -> Result<()> {
    check_mode(path, &std::fs::metadata(path).map_err(|e| unreadable(path, &e))?)
}

/// Reads a file with one line that is a secret. It is opened once: what is looked at is what is read.
///
/// # Errors
/// `NoCredentials`, `UnsafeFile`.
#[cfg(any(feature = "webdav", feature = "azblob"))]
pub(super) fn read_private(path: &Path) -> Result<zeroize::Zeroizing<String>> {
    use std::io::Read;
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    check_mode(path, &file.metadata().map_err(|e| unreadable(path, &e))?)?;
    let mut text = zeroize::Zeroizing::new(String::new());
    file.take(SECRET_MAX + 1).read_to_string(&mut text).map_err(|e| unreadable(path, &e))?;
    // A part of a secret is none.
    if text.len() as u64 > SECRET_MAX {
        let what = format!("the credentials file {}: more than {SECRET_MAX} bytes", path.display());
        return Err(RemoteError::new(ErrorKind::NoCredentials, what));
    }
    Ok(zeroize::Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_string()))
}

fn check_mode(path: &Path, meta: &Metadata) -> Result<()> {
    if is_open_to_others(path, meta.permissions().mode()) {
        let text = format!("the credentials file {} can be read by group or others", path.display());
        return Err(RemoteError::new(ErrorKind::UnsafeFile, text));
    }
    Ok(())
}

fn unreadable(path: &Path, error: &std::io::Error) -> RemoteError {
    RemoteError::new(ErrorKind::NoCredentials, format!("the credentials file {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn files_of_others_and_files_for_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        assert_eq!(require_private(&path).unwrap_err().kind, ErrorKind::NoCredentials);
        fs::write(&path, "secret\r\n").unwrap();
        for (mode, refused) in [(0o644, true), (0o640, true), (0o601, true), (0o600, false), (0o400, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let kind = |e: RemoteError| e.kind;
            let wanted = if refused { Err(ErrorKind::UnsafeFile) } else { Ok(()) };
            assert_eq!(require_private(&path).map_err(kind), wanted, "{mode:o}");
            #[cfg(any(feature = "webdav", feature = "azblob"))]
            assert_eq!(read_private(&path).map(|text| assert_eq!(*text, "secret")).map_err(kind), wanted);
        }
    }
}
