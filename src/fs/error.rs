//! What a failed call answers: the one place where engine errors get their errno.

use std::fmt;
use std::sync::Arc;

use crate::store::error::StoreError;
use rustix::io::Errno;

/// Result of a call.
pub type FsResult<T> = Result<T, FsError>;

/// Why a call failed: the errno for the caller, and for the log what the engine said, if it was the engine.
#[derive(Clone, Debug)]
pub struct FsError {
    /// What the caller gets.
    pub errno: Errno,
    /// Where it came from. Every EIO has one.
    pub cause: Option<Arc<StoreError>>,
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => write!(f, "{cause}"),
            None => write!(f, "{}", self.errno),
        }
    }
}

impl std::error::Error for FsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| &**cause as &(dyn std::error::Error + 'static))
    }
}

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        Self { errno, cause: None }
    }
}

impl From<StoreError> for FsError {
    fn from(error: StoreError) -> Self {
        Self { errno: errno_of(&error), cause: Some(Arc::new(error)) }
    }
}

/// Returns the errno of an engine error. No wildcard: a new variant has to choose.
fn errno_of(error: &StoreError) -> Errno {
    match error {
        StoreError::NoSpace => Errno::NOSPC,
        StoreError::Io { .. } | StoreError::Poisoned(_) => Errno::IO,
        // Data that is missing or wrong is never answered with anything that looks like an ordinary outcome: a backup
        // job would take ENOENT for "was not there" and go on.
        StoreError::Corrupt(_) | StoreError::Format(_) | StoreError::Crypto(_) | StoreError::NotFound(_) => {
            Errno::IO
        }
        // These concern whole vaults and are met before anything is mounted.
        StoreError::Rollback(_)
        | StoreError::Locked { .. }
        | StoreError::Newer { .. }
        | StoreError::NotAVault
        | StoreError::WrongKey
        | StoreError::HeaderDamaged(_)
        | StoreError::HeaderTampered(_) => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disks_and_damage_are_told_apart() {
        assert_eq!(FsError::from(StoreError::NoSpace).errno, Errno::NOSPC);
        for error in [
            StoreError::Poisoned("x".into()),
            StoreError::Corrupt("x".into()),
            StoreError::NotFound("x".into()),
            StoreError::io("x", std::io::ErrorKind::PermissionDenied.into()),
        ] {
            let error = FsError::from(error);
            assert_eq!(error.errno, Errno::IO);
            assert!(error.cause.is_some() && !error.to_string().is_empty());
        }
        assert!(FsError::from(Errno::NOENT).cause.is_none());
    }
}
