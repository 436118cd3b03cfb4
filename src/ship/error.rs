//! Why a vault was not shipped.

use crate::remote::{ErrorKind, RemoteError};
use crate::store::error::StoreError;

/// A failed shipment. What was sent before stays, and the remote is a vault all the same.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The vault here.
    #[error(transparent)]
    Vault(#[from] StoreError),
    /// The remote.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// There is another vault at that place.
    #[error("the remote holds another vault ({0})")]
    OtherVault(String),
    /// The remote has snapshots, properly signed, that this vault does not know.
    #[error("the remote has {file}, which this vault does not have: {why}")]
    Diverged {
        /// The newest such file.
        file: String,
        /// What that means.
        why: &'static str,
    },
    /// The remote does not have any more what was shipped to it.
    #[error(
        "the remote has lost snapshot {0}, which was shipped to it: it was emptied or rolled back, or another disk is mounted there"
    )]
    Lost(String),
    /// Another process ships to the same place, and said who it is.
    #[error("another process ships there at this moment: {0}")]
    Busy(String),
    /// It was asked to end.
    #[error("stopped; what was sent so far stays")]
    Stopped,
    /// The remote's header can't be this vault's.
    #[error("{0}")]
    Header(String),
}

impl ShipError {
    /// Whether a remote holds something else than it should, which is more than that something failed.
    #[must_use]
    pub fn is_alarm(&self) -> bool {
        match self {
            Self::OtherVault(_) | Self::Diverged { .. } | Self::Lost(_) | Self::Header(_) => true,
            Self::Remote(error) => {
                matches!(error.kind, ErrorKind::Conflict | ErrorKind::Corrupt | ErrorKind::Untrusted)
            }
            Self::Vault(_) | Self::Busy(_) | Self::Stopped => false,
        }
    }
}

/// Result of shipping.
pub type Result<T> = std::result::Result<T, ShipError>;
