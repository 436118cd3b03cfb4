//! Why the engine could not do something.

use std::io;

use crate::crypto::CryptoError;
use crate::disk::is_full;
use crate::format::FormatError;
use crate::store::poison::is_poisoned;

/// A result of the engine.
pub type Result<T> = std::result::Result<T, StoreError>;

/// What went wrong in the engine. The text is for people; code decides by the variant.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of the vault could not be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The backing disk, or our quota of it, is full. Nothing was lost; it works again when there is room.
    #[error("no space left on the disk that holds the vault")]
    NoSpace,
    /// An earlier write or fsync failed, so nothing is written until the vault is opened again.
    #[error(
        "writing stopped after an earlier failure ({0}); what was durable is safe, mount again to recover"
    )]
    Poisoned(String),
    /// Data of the vault is missing, or is not what was written.
    #[error("damaged: {0}")]
    Corrupt(String),
    /// Bytes of the vault break a rule of the format.
    #[error(transparent)]
    Format(FormatError),
    /// A key or a sealed piece was refused.
    #[error(transparent)]
    Crypto(CryptoError),
    /// There is no such thing.
    #[error("not found: {0}")]
    NotFound(String),
    /// The vault is older than one that was seen here before.
    #[error("the vault was rolled back: {0}")]
    Rollback(String),
    /// Another process has the vault.
    #[error("the vault is in use by {holder}")]
    Locked {
        /// What the other process says about itself.
        holder: String,
    },
    /// The vault was made by a later format.
    #[error("the vault has format {version}, which is newer than this program")]
    Newer {
        /// The version that the header names.
        version: u64,
    },
    /// There is no vault here.
    #[error("not a Strongroom vault")]
    NotAVault,
    /// The passphrase, keyfile or recovery key opens no slot.
    #[error("wrong key: it opens no slot of this vault")]
    WrongKey,
    /// Both copies of the header are damaged. That is not a wrong key.
    #[error("the vault's header is damaged: {0}")]
    HeaderDamaged(String),
    /// The header was changed by someone without the key.
    #[error("the vault's header was tampered with: {0}")]
    HeaderTampered(String),
}

impl StoreError {
    /// Classifies a system error: a full disk, a poisoned vault, or [`StoreError::Io`] with what was tried.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        if is_full(&source) {
            StoreError::NoSpace
        } else if is_poisoned(&source) {
            StoreError::Poisoned(what.into())
        } else {
            StoreError::Io { what: what.into(), source }
        }
    }
}

impl From<FormatError> for StoreError {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Newer { version } => StoreError::Newer { version },
            FormatError::NotAVault => StoreError::NotAVault,
            other => StoreError::Format(other),
        }
    }
}

impl From<CryptoError> for StoreError {
    fn from(error: CryptoError) -> Self {
        match error {
            CryptoError::WrongKey(_) | CryptoError::NoSlot(_) => StoreError::WrongKey,
            CryptoError::Tampered(what) if what.starts_with("vault header") => {
                StoreError::HeaderTampered(what.to_string())
            }
            CryptoError::Format(format) => format.into(),
            other => StoreError::Crypto(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_headers_are_told_apart() {
        let of = |e: CryptoError| StoreError::from(e);
        assert!(matches!(of(CryptoError::WrongKey(crate::format::SlotKind::Keyfile)), StoreError::WrongKey));
        assert!(matches!(of(CryptoError::Tampered("vault header: its mac")), StoreError::HeaderTampered(_)));
        assert!(matches!(of(CryptoError::Tampered("pack: a frame")), StoreError::Crypto(_)));
        assert!(matches!(of(FormatError::Newer { version: 2 }.into()), StoreError::Newer { version: 2 }));
        assert!(matches!(StoreError::from(FormatError::NotAVault), StoreError::NotAVault));
    }

    #[test]
    fn system_errors_are_told_apart() {
        let of = |kind: io::ErrorKind| StoreError::io("write", io::Error::from(kind));
        assert!(matches!(of(io::ErrorKind::StorageFull), StoreError::NoSpace));
        assert!(matches!(of(io::ErrorKind::QuotaExceeded), StoreError::NoSpace));
        assert!(matches!(of(io::ErrorKind::PermissionDenied), StoreError::Io { .. }));
        let poison = crate::store::poison::Poison::new();
        poison.set("a dead disk");
        let error = poison.check().map_err(|e| StoreError::io("write", e));
        assert!(matches!(error, Err(StoreError::Poisoned(_))));
    }
}
