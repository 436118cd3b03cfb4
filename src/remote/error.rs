//! What can go wrong with a remote: few kinds, each with what to do about it and whether trying again can help.

use std::fmt;
use std::io;

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// There is no such object.
    NotFound,
    /// The name is taken by an object with other bytes.
    Conflict,
    /// The credentials don't allow it.
    Denied,
    /// There are no credentials, or none of them opens anything.
    NoCredentials,
    /// The credentials were good once.
    ExpiredCredentials,
    /// The clocks of the two machines are too far apart for signatures.
    ClockSkew,
    /// The endpoint wants fewer requests.
    Throttled,
    /// No answer in time.
    Timeout,
    /// No connection.
    Unreachable,
    /// The connection broke, or the endpoint failed.
    Unavailable,
    /// What was sent did not arrive as it was.
    Damaged,
    /// No room, or a quota is used up.
    Full,
    /// The endpoint stores, or answers, something else than it should.
    Corrupt,
    /// The far side is not who it should be: host key or certificate.
    Untrusted,
    /// The endpoint can't do what is needed.
    Unsupported,
    /// The object is in an archive, and can't be read at once.
    Archived,
    /// The settings are wrong: no such bucket, directory, region.
    Misconfigured,
    /// Objects are to be locked, and this place can't.
    NoObjectLock,
    /// A file with a secret can be read by others.
    UnsafeFile,
    /// What was to be sent can't be read.
    Local,
}

impl ErrorKind {
    /// Whether the same request may succeed later, without anybody doing anything.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Throttled | Self::Timeout | Self::Unreachable | Self::Unavailable | Self::Damaged => true,
            Self::NotFound
            | Self::Conflict
            | Self::Denied
            | Self::NoCredentials
            | Self::ExpiredCredentials
            | Self::ClockSkew
            | Self::Full
            | Self::Corrupt
            | Self::Untrusted
            | Self::Unsupported
            | Self::Archived
            | Self::Misconfigured
            | Self::NoObjectLock
            | Self::UnsafeFile
            | Self::Local => false,
        }
    }

    /// Whether it may be the fault of one object alone: archived, under another's key, made by who may write there to get in
    /// the way. The others may well be read.
    #[must_use]
    pub fn may_be_one_objects(self) -> bool {
        matches!(
            self,
            Self::NotFound
                | Self::Corrupt
                | Self::Denied
                | Self::Misconfigured
                | Self::Unsupported
                | Self::Archived
        )
    }

    /// What to do about it, if something can be said in general.
    #[must_use]
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::NotFound | Self::Local => None,
            Self::Conflict => Some(
                "nothing was overwritten; somebody else writes to this remote, or it is damaged. Find out before anything else",
            ),
            Self::Denied => Some("`strongroom remote test` says which rights are missing"),
            Self::NoCredentials => Some(
                "S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, an instance role, or `remote add --credentials-file`; \
                 SFTP: an agent, or `remote add --identity-file`; the others: `remote add --credentials-file`",
            ),
            Self::ExpiredCredentials => {
                Some("get new ones; what was shipped so far stays, and the next ship goes on from there")
            }
            Self::ClockSkew => Some("set this machine's clock (timedatectl set-ntp true), then try again"),
            Self::Throttled => Some("use fewer --jobs"),
            Self::Timeout | Self::Unreachable | Self::Unavailable => {
                Some("try again later; what was shipped so far stays, and the next ship goes on from there")
            }
            Self::Damaged => Some(
                "the endpoint refused bytes that were damaged on the way: look at the network, and at this machine's memory",
            ),
            Self::Full => Some("make room there; what was shipped so far stays, and restores"),
            Self::Corrupt => {
                Some("don't trust this copy until you know why; `strongroom remote test` looks closer")
            }
            Self::Untrusted => Some(
                "compare the key with the one that the far side's administrator tells you, then put it into known_hosts; \
                 it is never accepted unseen",
            ),
            Self::Unsupported => Some("`strongroom remote test` says what this endpoint can do"),
            Self::Archived => Some(
                "get it out of the archive at the provider first (S3: `aws s3api restore-object`), then try again; for the future, \
                 `remote add --replace --storage-class` with a class that can be read at once",
            ),
            Self::Misconfigured => Some("`strongroom remote list` shows the settings"),
            Self::NoObjectLock => Some(
                "contrib/iam/README.md has the commands that make a bucket with Object Lock; to ship without, `remote add --replace` \
                 without --lock-mode and --lock-days",
            ),
            Self::UnsafeFile => Some("chmod 600 it"),
        }
    }
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct RemoteError {
    /// Its kind.
    pub kind: ErrorKind,
    /// What failed.
    pub message: String,
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Result of a request.
pub type Result<T> = std::result::Result<T, RemoteError>;

impl RemoteError {
    /// A failure of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// A failure of the filesystem that holds a remote.
    pub(crate) fn io(what: &str, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
            _ => ErrorKind::Unavailable,
        };
        Self::new(kind, format!("{what}: {error}"))
    }

    /// A failure to read what is to be sent: never the remote's fault.
    pub(crate) fn source(error: &io::Error) -> Self {
        Self::new(ErrorKind::Local, format!("reading what is to be sent: {error}"))
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub fn context(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_by_itself_is_tried_again() {
        use ErrorKind::*;
        for kind in [Throttled, Timeout, Unreachable, Unavailable, Damaged] {
            assert!(kind.is_retryable() && kind.hint().is_some(), "{kind:?}");
        }
        for kind in [NotFound, Conflict, Denied, NoCredentials, ExpiredCredentials, ClockSkew, Full, Corrupt]
        {
            assert!(!kind.is_retryable(), "{kind:?}");
        }
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let kind = |kind: io::ErrorKind| RemoteError::io("writing x", &kind.into()).kind;
        assert_eq!(kind(io::ErrorKind::StorageFull), ErrorKind::Full);
        assert_eq!(kind(io::ErrorKind::QuotaExceeded), ErrorKind::Full);
        assert_eq!(kind(io::ErrorKind::ReadOnlyFilesystem), ErrorKind::Denied);
        assert_eq!(kind(io::ErrorKind::Other), ErrorKind::Unavailable);
    }
}
