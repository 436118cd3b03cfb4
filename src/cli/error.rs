//! Errors as the user sees them: one line of what failed, an optional hint of what to do, and a stable exit code.

use crate::crypto::CryptoError;
use crate::fetch::{FetchError, remote_cause};
use crate::mount::error::{Failure, MountError, NO_SPACE_HINT};
use crate::remote::{ErrorKind, RemoteError};
use crate::ship::ShipError;
use crate::snapshot::select::SelectError;
use crate::store::error::StoreError;

/// The exit codes of every command (docs/exit-codes.md). They never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// Done.
    Ok = 0,
    /// A failure with no code of its own.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Done, except for some files, which were named.
    Partial = 3,
    /// There is no vault at that place.
    NotAVault = 10,
    /// No key slot opens with that passphrase or key.
    WrongKey = 11,
    /// Both copies of the header are damaged.
    HeaderDamaged = 12,
    /// The vault was made by a newer version.
    NewerFormat = 13,
    /// The header was changed by somebody without the key.
    HeaderTampered = 14,
    /// A secret's file can be read by others.
    UnsafeFile = 15,
    /// Another process holds the vault.
    InUse = 16,
    /// The vault is older than what this host has seen of it.
    Rollback = 17,
    /// Stored data is damaged or missing.
    Corrupt = 18,
    /// The disk under the vault is full.
    NoSpace = 19,
    /// Reading or writing failed.
    Io = 20,
    /// The mountpoint can't be used, or nothing is mounted there.
    Mountpoint = 21,
    /// No such snapshot, or path in it.
    NotFound = 22,
    /// Files under the mountpoint are open.
    Busy = 23,
    /// A remote can't be used now.
    Remote = 24,
    /// A remote holds something else than it should.
    RemoteAlarm = 25,
    /// Stopped by a signal.
    Interrupted = 130,
}

impl ExitCode {
    const ALL: [Self; 21] = [
        Self::Ok,
        Self::Failure,
        Self::Usage,
        Self::Partial,
        Self::NotAVault,
        Self::WrongKey,
        Self::HeaderDamaged,
        Self::NewerFormat,
        Self::HeaderTampered,
        Self::UnsafeFile,
        Self::InUse,
        Self::Rollback,
        Self::Corrupt,
        Self::NoSpace,
        Self::Io,
        Self::Mountpoint,
        Self::NotFound,
        Self::Busy,
        Self::Remote,
        Self::RemoteAlarm,
        Self::Interrupted,
    ];

    /// Of two things that went wrong: an alarm must not be missed because of something else; otherwise the first one.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ok, other) | (_, other @ Self::RemoteAlarm) => other,
            (first, _) => first,
        }
    }

    /// The code that a daemon sent as a number.
    fn from_number(number: u8) -> Self {
        Self::ALL.into_iter().find(|code| *code as u8 == number).unwrap_or(Self::Failure)
    }
}

/// A failed command.
#[derive(Debug)]
pub(crate) struct CliError {
    /// Its exit code.
    pub(crate) code: ExitCode,
    /// What failed.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

/// Result of a command: how it ended, if it didn't fail.
pub(crate) type CliResult<T = ExitCode> = Result<T, CliError>;

impl CliError {
    pub(crate) fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, message)
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub(crate) fn context(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        if let StoreError::Io { source, .. } = &error
            && let Some(cause) = remote_cause(source)
        {
            return Self { message, ..Self::of_reading(cause) };
        }
        match error {
            StoreError::NotAVault => Self::new(ExitCode::NotAVault, message)
                .hint("is this the vault directory (with vault.json in it)? `strongroom init` makes a new one"),
            StoreError::WrongKey => Self::new(ExitCode::WrongKey, message)
                .hint("`strongroom info VAULT` lists the key slots; the header itself is sound"),
            StoreError::HeaderDamaged(_) => Self::new(ExitCode::HeaderDamaged, message)
                .hint("copy vault.json from any offsite copy of this vault; every copy has it"),
            StoreError::Newer { .. } => {
                Self::new(ExitCode::NewerFormat, message).hint("use the strongroom that made it, or a newer one")
            }
            StoreError::HeaderTampered(_) => Self::new(ExitCode::HeaderTampered, message)
                .hint("the header was changed by somebody who does not have the key; restore vault.json from an offsite copy"),
            StoreError::Locked { .. } => Self::new(ExitCode::InUse, message),
            StoreError::Rollback(_) => Self::new(ExitCode::Rollback, message)
                .hint("if you put an older copy there yourself, say so with --accept-rollback"),
            StoreError::Corrupt(_) | StoreError::Format(_) | StoreError::Crypto(_) => Self::new(ExitCode::Corrupt, message)
                .hint("`fsck.strongroom VAULT` names everything that is damaged"),
            StoreError::NoSpace => Self::new(ExitCode::NoSpace, message)
                .hint(NO_SPACE_HINT),
            StoreError::NotFound(_) => Self::new(ExitCode::NotFound, message),
            StoreError::Io { .. } | StoreError::Poisoned(_) => Self::new(ExitCode::Io, message),
        }
    }
}

impl CliError {
    /// A vault at a remote that could not be read, with nothing of it fetched.
    pub(crate) fn reading(error: FetchError) -> Self {
        match error {
            FetchError::Remote(error) => Self::of_reading(&error),
            other => other.into(),
        }
    }

    /// A remote that went away while it was read, or what is kept here of it could not be; with advice how to go on.
    pub(crate) fn lost(error: &StoreError, advice: &str) -> Self {
        let cause = match error {
            StoreError::Io { source, .. } => remote_cause(source),
            _ => None,
        };
        match cause {
            // The remote is innocent.
            Some(cause) if cause.kind == ErrorKind::Local => {
                let Self { code, hint, .. } = Self::of_reading(cause);
                let hint = hint.map_or_else(String::new, |hint| format!("{hint}; "));
                Self::new(code, format!("given up, as every file would fail: {error}"))
                    .hint(format!("{hint}{advice}"))
            }
            _ => {
                // Of single objects such errors have codes of their own: there is no object like that, no right to it.
                let code = cause.map_or(ExitCode::Remote, |cause| Self::of_reading(cause).code);
                Self::new(code, format!("the remote was lost: {error}"))
                    .hint(format!("when the remote is back: {advice}"))
            }
        }
    }

    /// A remote that could not be read from.
    pub(crate) fn of_reading(error: &RemoteError) -> Self {
        use ErrorKind::*;
        let failed = Self::from(error.clone());
        match error.kind {
            // The usual hints are about shipping.
            Timeout | Unreachable | Unavailable => {
                failed.hint("try again later; --remote-timeout waits longer")
            }
            ExpiredCredentials => failed.hint("get new ones, then try again"),
            Local => failed
                .hint("--cache-dir and --cache-size say where, and how much, is kept of what is fetched"),
            _ => failed,
        }
    }
}

impl From<RemoteError> for CliError {
    fn from(error: RemoteError) -> Self {
        use ErrorKind::*;
        let code = match error.kind {
            Conflict | Corrupt | Untrusted => ExitCode::RemoteAlarm,
            UnsafeFile => ExitCode::UnsafeFile,
            Local => ExitCode::Io,
            NotFound | Denied | NoCredentials | ExpiredCredentials | ClockSkew | Throttled | Timeout
            | Unreachable | Unavailable | Damaged | Full | Unsupported | Archived | Misconfigured
            | NoObjectLock => ExitCode::Remote,
        };
        Self { code, hint: error.kind.hint().map(String::from), message: error.message }
    }
}

impl From<ShipError> for CliError {
    fn from(error: ShipError) -> Self {
        let message = error.to_string();
        let alarm = |hint: &str| Self::new(ExitCode::RemoteAlarm, message.clone()).hint(hint);
        match error {
            ShipError::Vault(error) => error.into(),
            ShipError::Remote(error) => error.into(),
            ShipError::OtherVault(_) => {
                alarm("each vault needs a place of its own: another prefix or directory")
            }
            ShipError::Diverged { .. } => alarm(
                "nothing there was changed, and both histories stay whole. If this copy has no snapshots of its own, `strongroom \
                 pull` brings it up to date; otherwise ship this one to a new place (`remote add`), and `strongroom clone` the other",
            ),
            ShipError::Lost(_) => alarm(
                "nothing was sent. If you emptied it yourself, --start-over ships everything again; otherwise find out who did",
            ),
            ShipError::Busy(_) => Self::new(ExitCode::InUse, message).hint(
                "it sends what this one would have sent. A `ship --watch` sends what is new by itself, and nothing has to be shipped \
                 beside it",
            ),
            ShipError::Stopped => Self::new(ExitCode::Interrupted, message),
            ShipError::Header(_) => {
                alarm("nothing was overwritten; `strongroom info` on both copies says more")
            }
        }
    }
}

impl From<FetchError> for CliError {
    fn from(error: FetchError) -> Self {
        const AGAIN: &str = "what arrived stays here, and the same command goes on from there";
        let message = error.to_string();
        let alarm = |hint: &str| Self::new(ExitCode::RemoteAlarm, message.clone()).hint(hint);
        match error {
            FetchError::Vault(StoreError::NoSpace) => {
                Self::new(ExitCode::NoSpace, message).hint(format!("make room; {AGAIN}"))
            }
            FetchError::Vault(error) => error.into(),
            // What these hints say of shipping is no help here.
            FetchError::Remote(error)
                if error.kind.is_retryable() || error.kind == ErrorKind::ExpiredCredentials =>
            {
                Self::from(error).hint(format!("try again later; {AGAIN}"))
            }
            FetchError::Remote(error) => error.into(),
            FetchError::OtherVault { .. } => alarm("each vault needs a directory, and a place, of its own"),
            FetchError::Flooded { .. } => alarm(
                "somebody writes there who has no key: remove those files there, or take another copy. What arrived stays",
            ),
            FetchError::Broken(_) => alarm(
                "nothing here was replaced. Find out who deleted snapshots there; `strongroom clone` into another directory copies \
                 all that is left",
            ),
            FetchError::Incomplete(_) => {
                alarm("nothing here was replaced. Ship it again from a vault that has all of its packs")
            }
            FetchError::Diverged { .. } => alarm(
                "nothing was replaced, both histories stay whole. To keep both, ship this one to a new place (`remote add`), and \
                 `strongroom clone` the other one beside it; to drop only what is in the working tree and in no snapshot, \
                 --discard-live",
            ),
            FetchError::Lost(_) => alarm(
                "nothing here was replaced. Find out who did it; `strongroom ship --start-over` ships everything there again",
            ),
            FetchError::Header(_) => {
                alarm("nothing was overwritten; `strongroom info` on both copies says more")
            }
        }
    }
}

impl From<CryptoError> for CliError {
    fn from(error: CryptoError) -> Self {
        StoreError::from(error).into()
    }
}

impl From<SelectError> for CliError {
    fn from(error: SelectError) -> Self {
        let code = match &error {
            SelectError::NotUnderstood(_) => ExitCode::Usage,
            SelectError::None(_) | SelectError::Incomplete { .. } | SelectError::Ambiguous { .. } => {
                ExitCode::NotFound
            }
        };
        Self::new(code, error.to_string()).hint("`strongroom snapshot list VAULT` shows them all")
    }
}

impl From<MountError> for CliError {
    fn from(error: MountError) -> Self {
        Self::from(Failure::from(error))
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        Self { code: ExitCode::from_number(failure.code), message: failure.message, hint: failure.hint }
    }
}

impl From<CliError> for Failure {
    fn from(error: CliError) -> Self {
        Self { code: error.code as u8, message: error.message, hint: error.hint }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::new(ExitCode::Io, error.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::crypto::CryptoError;
    use crate::format::FormatError;
    use crate::mount::ErrorKind;

    /// One error of each kind. The match is there to stop compiling when there is a new kind.
    fn store_errors() -> Vec<StoreError> {
        use StoreError::*;
        let all = || {
            vec![
                Io { what: "x".into(), source: std::io::Error::other("y") },
                NoSpace,
                Poisoned("x".into()),
                Corrupt("x".into()),
                Format(FormatError::Malformed("x")),
                Crypto(CryptoError::Tampered("x")),
                NotFound("x".into()),
                Rollback("x".into()),
                Locked { holder: "x".into() },
                Newer { version: 2 },
                NotAVault,
                WrongKey,
                HeaderDamaged("x".into()),
                HeaderTampered("x".into()),
            ]
        };
        let number = |error: &StoreError| match error {
            Io { .. } => 0,
            NoSpace => 1,
            Poisoned(_) => 2,
            Corrupt(_) => 3,
            Format(_) => 4,
            Crypto(_) => 5,
            NotFound(_) => 6,
            Rollback(_) => 7,
            Locked { .. } => 8,
            Newer { .. } => 9,
            NotAVault => 10,
            WrongKey => 11,
            HeaderDamaged(_) => 12,
            HeaderTampered(_) => 13,
        };
        assert!(all().iter().map(number).eq(0..14));
        all()
    }

    /// The rows of docs/exit-codes.md: code and meaning.
    fn documented() -> Vec<(u8, &'static str)> {
        let rows = include_str!("../../docs/exit-codes.md").lines();
        rows.filter_map(|row| {
            let (code, meaning) = row.strip_prefix("| ")?.split_once(" | ")?;
            Some((code.parse().ok()?, meaning))
        })
        .collect()
    }

    #[test]
    fn a_daemon_and_a_command_give_the_same_code_to_the_same_error() {
        for (of_command, of_daemon) in store_errors().into_iter().zip(store_errors()) {
            let text = of_command.to_string();
            let (command, daemon) = (CliError::from(of_command), Failure::from(of_daemon));
            assert_eq!(command.code as u8, daemon.code, "{text}");
            assert_ne!(command.code, ExitCode::Failure, "{text} has a code of its own");
            assert_eq!(CliError::from(daemon).code, command.code, "a code survives the socket");
        }
    }

    #[test]
    fn a_full_disk_here_is_not_the_remotes_fault() {
        let lost = |kind| {
            let source = std::io::Error::other(RemoteError::new(kind, "why"));
            CliError::lost(&StoreError::Io { what: "reading".into(), source }, "go on")
        };
        let local = lost(crate::remote::ErrorKind::Local);
        assert_eq!(local.code, ExitCode::Io);
        assert!(!local.message.contains("remote"), "{}", local.message);
        let hint = local.hint.unwrap();
        assert!(hint.contains("--cache-dir") && hint.ends_with("; go on"), "{hint}");
        let denied = lost(crate::remote::ErrorKind::Denied);
        assert_eq!(denied.code, ExitCode::Remote);
        assert!(denied.message.contains("the remote was lost"), "{}", denied.message);
    }

    #[test]
    fn codes_mean_what_the_document_says() {
        let documented = documented();
        let numbers: Vec<u8> = documented.iter().map(|(code, _)| *code).collect();
        assert_eq!(numbers, ExitCode::ALL.map(|code| code as u8));
        let says = |code: u8, word: &str| {
            let (_, meaning) = documented.iter().find(|(number, _)| *number == code).unwrap();
            assert!(meaning.contains(word), "{code} is {meaning:?}, not about {word:?}");
        };
        let store = |error: StoreError| Failure::from(error).code;
        says(store(StoreError::NotAVault), "no vault");
        says(store(StoreError::WrongKey), "no key slot opens");
        says(store(StoreError::HeaderDamaged(String::new())), "both copies of the header");
        says(store(StoreError::Newer { version: 2 }), "newer version");
        says(store(StoreError::HeaderTampered(String::new())), "does not have the key");
        says(store(StoreError::Locked { holder: String::new() }), "another process holds");
        says(store(StoreError::Rollback(String::new())), "rollback");
        says(store(StoreError::Corrupt(String::new())), "damaged or missing");
        says(store(StoreError::NoSpace), "full");
        says(store(StoreError::Poisoned(String::new())), "reading or writing failed");
        says(store(StoreError::NotFound(String::new())), "no such");
        for (kind, word) in [
            (ErrorKind::Usage, "command line"),
            (ErrorKind::Mountpoint, "mountpoint"),
            (ErrorKind::InUse, "another process holds"),
            (ErrorKind::Busy, "busy"),
            (ErrorKind::Permission, "no code of its own"),
            (ErrorKind::Timeout, "no code of its own"),
            (ErrorKind::Died, "no code of its own"),
            (ErrorKind::Unclean, "reading or writing failed"),
            (ErrorKind::Io, "reading or writing failed"),
        ] {
            says(kind.exit_code(), word);
            assert_eq!(ExitCode::from_number(kind.exit_code()) as u8, kind.exit_code(), "{kind:?}");
        }
    }
}
