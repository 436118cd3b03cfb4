//! Why nothing, or not all, was fetched.

use crate::remote::RemoteError;
use crate::store::error::StoreError;

/// A failed clone or pull. What was fetched before stays, and the next run goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The vault here.
    #[error(transparent)]
    Vault(#[from] StoreError),
    /// The remote.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// There is another vault at that place.
    #[error("the remote holds another vault ({theirs}) than this one ({ours})")]
    OtherVault {
        /// Its id.
        theirs: String,
        /// The id of the vault here.
        ours: String,
    },
    /// There is so much at the remote that is none of this vault's that it is not all looked at.
    #[error(
        "the remote lists {count} files in snapshots/ that are none of this vault's, or more than are looked at; one is {file}"
    )]
    Flooded {
        /// One of them.
        file: String,
        /// How many were looked at.
        count: u64,
    },
    /// The remote's chain of snapshots is not whole, so nothing here is replaced by it.
    #[error("the remote's chain of snapshots is not whole: {0}")]
    Broken(String),
    /// Not all of the newest snapshot is at the remote.
    #[error("the remote's newest snapshot of the working tree, {0}, is not complete there")]
    Incomplete(String),
    /// Both sides have something that the other one has not.
    #[error("the remote has {theirs}, and this vault has {ours}: both went on from the same snapshot")]
    Diverged {
        /// The newest file that only the remote has.
        theirs: String,
        /// What only this vault has.
        ours: String,
    },
    /// The remote does not have any more what was seen there.
    #[error(
        "the remote has lost snapshot {0}, which it had: it was emptied or rolled back, or another disk is mounted there"
    )]
    Lost(String),
    /// The remote's header can't be this vault's.
    #[error("{0}")]
    Header(String),
}

/// Result of fetching.
pub type Result<T> = std::result::Result<T, FetchError>;
