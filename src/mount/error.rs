//! Errors of mounting and unmounting, in a form that also crosses the socket between a daemon and its parent.

use serde::{Deserialize, Serialize};

use crate::fs::FsError;
use crate::store::error::StoreError;

/// What went wrong, as far as a caller may want to act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// A mount option that is unknown, malformed or contradicts another one.
    Usage,
    /// The mountpoint can't be used, or nothing of ours is mounted there.
    Mountpoint,
    /// Another process holds the vault.
    InUse,
    /// Files under the mountpoint are open.
    Busy,
    /// The kernel refused for want of privilege.
    Permission,
    /// The other side did not answer, or something did not end in time.
    Timeout,
    /// The daemon ended without saying why.
    Died,
    /// The vault closed, but not everything could be written.
    Unclean,
    /// The same, because the disk under the vault is full.
    NoSpace,
    /// A system call failed.
    Io,
}

/// What to do about a full disk.
pub const NO_SPACE_HINT: &str = "free space on the disk under the vault: remove other files, or delete snapshots and run \
                                 `strongroom gc VAULT`";

/// A failed mount, unmount or request to a mounted vault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MountError {
    /// The class of the error.
    pub kind: ErrorKind,
    /// What failed, for the user, without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Result of everything in this module.
pub type Result<T> = std::result::Result<T, MountError>;

impl MountError {
    /// Returns an error without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// Returns an I/O error that says what was being done.
    pub fn io(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::Io, format!("{what}: {error}"))
    }

    /// Adds advice for the user.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// An error that has crossed a process boundary: what the far side would have printed, and its exit code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code that the command line gives this error (docs/exit-codes.md).
    pub code: u8,
    /// What failed.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Failure {
    /// Returns a failure without a hint.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }
}

impl ErrorKind {
    /// The exit code of this class of errors (docs/exit-codes.md). `cli::error` has the same numbers; a test there
    /// compares them.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Usage => 2,
            ErrorKind::Mountpoint => 21,
            ErrorKind::InUse => 16,
            ErrorKind::Busy => 23,
            ErrorKind::Io | ErrorKind::Unclean => 20,
            ErrorKind::NoSpace => 19,
            ErrorKind::Permission | ErrorKind::Timeout | ErrorKind::Died => 1,
        }
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        Self { code: error.kind.exit_code(), message: error.message, hint: error.hint }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        // The numbers of docs/exit-codes.md, as in `cli::error`; a test there compares them.
        let code = match &error {
            StoreError::NotAVault => 10,
            StoreError::WrongKey => 11,
            StoreError::HeaderDamaged(_) => 12,
            StoreError::Newer { .. } => 13,
            StoreError::HeaderTampered(_) => 14,
            StoreError::Locked { .. } => 16,
            StoreError::Rollback(_) => 17,
            StoreError::Corrupt(_) | StoreError::Format(_) | StoreError::Crypto(_) => 18,
            StoreError::NoSpace => 19,
            StoreError::Io { .. } | StoreError::Poisoned(_) => 20,
            StoreError::NotFound(_) => 22,
        };
        let hint = matches!(error, StoreError::NoSpace).then(|| NO_SPACE_HINT.to_string());
        Self { code, message: error.to_string(), hint }
    }
}

impl From<FsError> for Failure {
    fn from(error: FsError) -> Self {
        let full = error.errno == rustix::io::Errno::NOSPC;
        let hint = full.then(|| NO_SPACE_HINT.to_string());
        Self { code: if full { 19 } else { 20 }, message: error.to_string(), hint }
    }
}
