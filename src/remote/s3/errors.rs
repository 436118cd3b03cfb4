//! What S3 endpoints answer, in our kinds of errors.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::super::{ErrorKind, RemoteError};

/// What is known of a failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) kind: ErrorKind,
    /// What the endpoint says, or what happened instead of an answer.
    pub(super) text: String,
    /// The status of an answer.
    pub(super) status: Option<u16>,
    /// The answer has a code: it says why.
    pub(super) has_code: bool,
    /// The endpoint minds that the request has headers for checksums.
    pub(super) minds_sums: bool,
}

impl Said {
    /// A request that has no answer.
    pub(super) fn unanswered(kind: ErrorKind, text: &str) -> Self {
        Self { kind, text: text.to_string(), status: None, has_code: false, minds_sums: false }
    }

    pub(super) fn error(&self, what: &str) -> RemoteError {
        RemoteError::new(self.kind, format!("{what}: {}", self.text))
    }
}

/// Classes a failed call.
pub(super) fn classify<E>(what: &str, error: SdkError<E, HttpResponse>) -> RemoteError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    read(what, error).error(what)
}

/// [`classify`], with all that is known.
pub(super) fn read<E>(what: &str, error: SdkError<E, HttpResponse>) -> Said
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let with = Said::unanswered;
    match &error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            let meta = service.err().meta();
            let code = meta.code().unwrap_or("");
            if service.raw().status().is_success() {
                // It says that it did what was asked, in words that the protocol does not have.
                let text = format!("the endpoint's answer makes no sense (status {status})");
                return Said { status: Some(status), ..with(ErrorKind::Corrupt, &text) };
            }
            // RGW gives most errors a code, and a message without words.
            let text = match (code, meta.message().filter(|message| !message.trim().is_empty())) {
                ("", _) => format!("the endpoint answered with status {status}"),
                (code, Some(message)) => format!("{} ({})", printable(message), printable(code)),
                (code, None) => printable(code),
            };
            let kind = lock_trouble(meta.message()).unwrap_or_else(|| kind_of(code, status));
            let text = match kind {
                ErrorKind::Archived => format!("it is archived, and can't be read at once: {text}"),
                _ => text,
            };
            Said {
                kind,
                text,
                status: Some(status),
                has_code: !code.is_empty(),
                minds_sums: minds_sums(kind, meta.message()),
            }
        }
        SdkError::TimeoutError(_) => with(ErrorKind::Timeout, "no answer in time"),
        other => {
            let chain = chain(other);
            let long = printable(&DisplayErrorContext(&error).to_string());
            tracing::debug!(what, error = %long, "a request failed");
            let last = chain.last().map_or_else(|| error.to_string(), |text| printable(text));
            match &error {
                _ if has_credentials_error(&error) => {
                    with(ErrorKind::NoCredentials, &format!("no credentials: {last}"))
                }
                SdkError::DispatchFailure(failure) if failure.is_timeout() => {
                    with(ErrorKind::Timeout, "no connection in time")
                }
                _ if chain.iter().any(|text| text.contains("invalid peer certificate")) => {
                    with(ErrorKind::Untrusted, &format!("the endpoint's certificate is not trusted: {last}"))
                }
                SdkError::DispatchFailure(_) => with(ErrorKind::Unreachable, &last),
                SdkError::ConstructionFailure(_) => with(ErrorKind::Misconfigured, &last),
                _ => with(ErrorKind::Unavailable, &last),
            }
        }
    }
}

/// Whether it is the headers for checksums that are refused, not a checksum. Backblaze B2 said "Unsupported header
/// 'x-amz-checksum-sha256' received for this API call." (InvalidArgument, 400).
fn minds_sums(kind: ErrorKind, message: Option<&str>) -> bool {
    let text = message.unwrap_or_default().to_ascii_lowercase();
    matches!(kind, ErrorKind::Misconfigured | ErrorKind::Unsupported)
        && ["x-amz-checksum", "x-amz-sdk-checksum"].iter().any(|header| text.contains(header))
}

/// Troubles with Object Lock have codes that mean many things (InvalidRequest, InvalidArgument); endpoints agree on the
/// words.
fn lock_trouble(message: Option<&str>) -> Option<ErrorKind> {
    let text = message?.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().all(|word| text.contains(word));
    match () {
        () if has(&["retain", "date", "must be in the future"]) => Some(ErrorKind::ClockSkew),
        () if has(&["bucket is missing", "object", "lock"]) => Some(ErrorKind::NoObjectLock),
        () if has(&["worm protected"]) => Some(ErrorKind::Denied),
        () => None,
    }
}

/// A class for each code that AWS and the others use; the status where there is no code (HEAD has no body).
fn kind_of(code: &str, status: u16) -> ErrorKind {
    match code {
        "NoSuchKey" | "NotFound" | "NoSuchVersion" => ErrorKind::NotFound,
        "NoSuchBucket"
        | "InvalidBucketName"
        | "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException"
        | "InvalidStorageClass"
        | "InvalidRegion" => ErrorKind::Misconfigured,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "NotSignedUp" => ErrorKind::Denied,
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "Unauthorized" => {
            ErrorKind::NoCredentials
        }
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => ErrorKind::ExpiredCredentials,
        "RequestTimeTooSkewed" | "RequestExpired" => ErrorKind::ClockSkew,
        "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "ServiceUnavailable"
        | "ServerBusy" => ErrorKind::Throttled,
        "RequestTimeout" => ErrorKind::Timeout,
        "PreconditionFailed" => ErrorKind::Conflict,
        // Two writers of one name at the same moment: the loser finds out by trying again.
        "ConditionalRequestConflict" | "OperationAborted" => ErrorKind::Unavailable,
        "BadDigest"
        | "XAmzContentSHA256Mismatch"
        | "XAmzContentChecksumMismatch"
        | "IncompleteBody"
        | "InvalidDigest" => ErrorKind::Damaged,
        "QuotaExceeded"
        | "InsufficientStorage"
        | "XMinioStorageFull"
        | "XMinioAdminBucketQuotaExceeded"
        | "EntityTooLarge"
        | "StorageQuotaExceeded" => ErrorKind::Full,
        "InvalidObjectState" => ErrorKind::Archived,
        "NotImplemented" | "MethodNotAllowed" | "NotSupported" => ErrorKind::Unsupported,
        _ => kind_of_status(status),
    }
}

fn kind_of_status(status: u16) -> ErrorKind {
    match status {
        404 => ErrorKind::NotFound,
        401 | 403 => ErrorKind::Denied,
        408 => ErrorKind::Timeout,
        412 => ErrorKind::Conflict,
        429 | 503 => ErrorKind::Throttled,
        301 | 307 | 400 => ErrorKind::Misconfigured,
        405 | 501 => ErrorKind::Unsupported,
        416 => ErrorKind::Corrupt,
        507 => ErrorKind::Full,
        _ => ErrorKind::Unavailable,
    }
}

/// The messages of an error and of all its causes.
fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut at = error.source();
    while let Some(error) = at {
        texts.push(error.to_string());
        at = error.source();
    }
    texts
}

fn has_credentials_error(error: &(dyn Error + 'static)) -> bool {
    let mut at = Some(error);
    while let Some(error) = at {
        if error.is::<CredentialsError>() {
            return true;
        }
        at = error.source();
    }
    false
}

/// What an endpoint says, short and without control characters.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_with_object_lock_are_known_by_their_words() {
        for (message, kind) in [
            ("The retain until date must be in the future!", Some(ErrorKind::ClockSkew)),
            ("Bucket is missing Object Lock Configuration", Some(ErrorKind::NoObjectLock)),
            ("Bucket is missing ObjectLockConfiguration", Some(ErrorKind::NoObjectLock)),
            ("Object is WORM protected and cannot be overwritten", Some(ErrorKind::Denied)),
            ("Invalid argument", None),
        ] {
            assert_eq!(lock_trouble(Some(message)), kind, "{message}");
        }
        assert_eq!(lock_trouble(None), None);
    }

    #[test]
    fn refused_headers_are_told_from_refused_checksums() {
        for (code, message, minds) in [
            (
                "InvalidArgument",
                "Unsupported header 'x-amz-checksum-sha256' received for this API call.",
                true,
            ),
            ("InvalidArgument", "Unsupported header 'x-amz-sdk-checksum-algorithm' received", true),
            ("InvalidRequest", "X-Amz-Checksum-Mode is not supported", true),
            ("BadDigest", "The x-amz-checksum-sha256 you specified did not match", false),
            ("XAmzContentSHA256Mismatch", "'x-amz-content-sha256' does not match", false),
            ("AccessDenied", "x-amz-checksum-sha256", false),
            ("InvalidArgument", "Unsupported header 'x-amz-storage-class'", false),
        ] {
            assert_eq!(minds_sums(kind_of(code, 400), Some(message)), minds, "{message}");
        }
        assert!(minds_sums(kind_of("NotImplemented", 501), Some("x-amz-checksum-sha256")));
        assert!(!minds_sums(kind_of("InvalidArgument", 400), None));
    }

    #[test]
    fn codes_and_statuses_have_their_kinds() {
        for (code, status, kind) in [
            ("NoSuchKey", 404, ErrorKind::NotFound),
            ("", 404, ErrorKind::NotFound),
            ("NoSuchBucket", 404, ErrorKind::Misconfigured),
            ("AccessDenied", 403, ErrorKind::Denied),
            ("", 403, ErrorKind::Denied),
            ("RequestTimeTooSkewed", 403, ErrorKind::ClockSkew),
            ("ExpiredToken", 400, ErrorKind::ExpiredCredentials),
            ("InvalidObjectState", 403, ErrorKind::Archived),
            ("SignatureDoesNotMatch", 403, ErrorKind::NoCredentials),
            ("SlowDown", 503, ErrorKind::Throttled),
            ("", 429, ErrorKind::Throttled),
            ("InternalError", 500, ErrorKind::Unavailable),
            ("", 502, ErrorKind::Unavailable),
            ("PreconditionFailed", 412, ErrorKind::Conflict),
            ("ConditionalRequestConflict", 409, ErrorKind::Unavailable),
            ("BadDigest", 400, ErrorKind::Damaged),
            ("NotImplemented", 501, ErrorKind::Unsupported),
            ("QuotaExceeded", 403, ErrorKind::Full),
            ("InsufficientStorage", 507, ErrorKind::Full),
        ] {
            assert_eq!(kind_of(code, status), kind, "{code} {status}");
        }
    }

    #[test]
    fn what_an_endpoint_says_can_not_drive_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a[2Jb");
        assert_eq!(printable(&"x".repeat(1000)).len(), 300);
    }
}
