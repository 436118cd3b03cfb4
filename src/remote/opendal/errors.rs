//! What endpoints answer, in our kinds of errors.

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::super::{ErrorKind, RemoteError};

/// Google's errors.
#[derive(Deserialize)]
struct GoogleAnswer {
    error: GoogleError,
}

#[derive(Deserialize)]
struct GoogleError {
    #[serde(default)]
    message: String,
    #[serde(default)]
    errors: Vec<GoogleReason>,
}

#[derive(Deserialize)]
struct GoogleReason {
    #[serde(default)]
    reason: String,
}

/// Classes an answer that is no success.
pub(super) fn of_answer(what: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> RemoteError {
    let (code, message) = said(headers, body);
    let kind = kind_of(&code, &message, status.as_u16());
    let text = match (code.as_str(), message.as_str()) {
        ("", _) if status.is_redirection() => {
            let to = headers
                .get(http::header::LOCATION)
                .map_or("elsewhere".into(), |to| printable(&String::from_utf8_lossy(to.as_bytes())));
            format!("the endpoint sends us to {to}: give it as the URL")
        }
        ("", "") => format!("the endpoint answered {}", shown(status)),
        ("", message) => format!("{message} ({})", shown(status)),
        (code, "") => code.to_string(),
        (code, message) => format!("{message} ({code})"),
    };
    RemoteError::new(kind, format!("{what}: {text}"))
}

fn shown(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// The code and the message of an answer, where it has them.
fn said(headers: &HeaderMap, body: &[u8]) -> (String, String) {
    let body = &body[..body.len().min(64 << 10)];
    if let Some(code) = headers.get("x-ms-error-code").and_then(|code| code.to_str().ok()) {
        let text = String::from_utf8_lossy(body);
        let detail = between(&text, "<AuthenticationErrorDetail>", "</AuthenticationErrorDetail>");
        let message = detail.or_else(|| between(&text, "<Message>", "</Message>")).unwrap_or("");
        // Below its first line are ids of the request.
        return (printable(code), printable(message.lines().next().unwrap_or("")));
    }
    if let Ok(answer) = serde_json::from_slice::<GoogleAnswer>(body) {
        let reason = answer.error.errors.into_iter().next().map_or_else(String::new, |e| e.reason);
        return (printable(&reason), printable(&answer.error.message));
    }
    (String::new(), String::new())
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inner, _)| inner)
}

/// A class for each code that the services use; the status where there is no code.
fn kind_of(code: &str, message: &str, status: u16) -> ErrorKind {
    let has = |word: &str| message.to_ascii_lowercase().contains(word);
    match code {
        // Azure.
        "BlobNotFound" | "ResourceNotFound" => ErrorKind::NotFound,
        "ContainerNotFound"
        | "ContainerBeingDeleted"
        | "InvalidResourceName"
        | "AccountIsDisabled"
        | "FeatureVersionMismatch"
        | "InvalidUri" => ErrorKind::Misconfigured,
        "AuthorizationFailure" if has("failed to authenticate") => ErrorKind::NoCredentials,
        "AuthenticationFailed" | "InvalidAuthenticationInfo" | "NoAuthenticationInformation" => match () {
            () if has("specified time frame") || has("expired") || has("lifetime validation") => {
                ErrorKind::ExpiredCredentials
            }
            () if has("date header") || has("clock skew") => ErrorKind::ClockSkew,
            () => ErrorKind::NoCredentials,
        },
        "BlobAlreadyExists" | "ConditionNotMet" | "TargetConditionNotMet" => ErrorKind::Conflict,
        "BlobImmutableDueToPolicy"
        | "BlobArchived"
        | "LeaseIdMissing"
        | "SnapshotsPresent"
        | "AuthorizationFailure"
        | "AuthorizationPermissionMismatch"
        | "InsufficientAccountPermissions"
        | "PublicAccessNotPermitted" => ErrorKind::Denied,
        "ServerBusy" => ErrorKind::Throttled,
        "OperationTimedOut" => ErrorKind::Timeout,
        "Md5Mismatch" | "Crc64Mismatch" => ErrorKind::Damaged,
        // Google.
        // What follows names the object: any word may be in it.
        "notFound" if message.starts_with("The specified bucket") => ErrorKind::Misconfigured,
        "notFound" => ErrorKind::NotFound,
        "authError" | "required" if status == 401 => match has("expired") {
            true => ErrorKind::ExpiredCredentials,
            false => ErrorKind::NoCredentials,
        },
        "rateLimitExceeded" | "userRateLimitExceeded" | "backendError" if status != 500 => {
            ErrorKind::Throttled
        }
        "quotaExceeded" => ErrorKind::Full,
        "conditionNotMet" => ErrorKind::Conflict,
        _ if status == 400
            && ["Provided MD5", "Provided CRC32C"].iter().any(|start| message.starts_with(start)) =>
        {
            ErrorKind::Damaged
        }
        _ => kind_of_status(status),
    }
}

fn kind_of_status(status: u16) -> ErrorKind {
    match status {
        404 | 410 => ErrorKind::NotFound,
        401 => ErrorKind::NoCredentials,
        403 => ErrorKind::Denied,
        408 | 504 => ErrorKind::Timeout,
        412 => ErrorKind::Conflict,
        429 | 503 => ErrorKind::Throttled,
        300..=399 | 400 | 407 => ErrorKind::Misconfigured,
        405 | 501 => ErrorKind::Unsupported,
        413 | 507 => ErrorKind::Full,
        416 => ErrorKind::Corrupt,
        // 409: two at the same moment, or a directory that is being made; 423: somebody holds a lock.
        _ => ErrorKind::Unavailable,
    }
}

/// What an endpoint says, short and without control characters.
pub(super) fn printable(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn azure(code: &str, status: u16, message: &str) -> RemoteError {
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-error-code", code.parse().unwrap());
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}\nRequestId:1</Message></Error>"
        );
        of_answer("doing x", StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes())
    }

    fn google(reason: &str, status: u16, message: &str) -> RemoteError {
        let body = format!(
            r#"{{"error":{{"code":{status},"message":"{message}","errors":[{{"reason":"{reason}"}}]}}}}"#
        );
        of_answer("doing x", StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes())
    }

    #[test]
    fn each_service_has_its_words() {
        for (code, status, message, kind) in [
            ("BlobNotFound", 404, "", ErrorKind::NotFound),
            ("ContainerNotFound", 404, "", ErrorKind::Misconfigured),
            ("BlobAlreadyExists", 409, "", ErrorKind::Conflict),
            ("AuthenticationFailed", 403, "Server failed", ErrorKind::NoCredentials),
            (
                "AuthenticationFailed",
                403,
                "Signature not valid in the specified time frame",
                ErrorKind::ExpiredCredentials,
            ),
            ("AuthorizationPermissionMismatch", 403, "", ErrorKind::Denied),
            ("ServerBusy", 503, "", ErrorKind::Throttled),
            ("InternalError", 500, "", ErrorKind::Unavailable),
        ] {
            let error = azure(code, status, message);
            assert_eq!(error.kind, kind, "{code}: {error}");
            assert!(!error.message.contains("RequestId"), "{error}");
        }
        for (reason, status, message, kind) in [
            ("notFound", 404, "No such object: b/x", ErrorKind::NotFound),
            ("notFound", 404, "No such object: my-bucket/x", ErrorKind::NotFound),
            ("notFound", 404, "No such object: b/The specified bucket", ErrorKind::NotFound),
            ("notFound", 404, "The specified bucket does not exist.", ErrorKind::Misconfigured),
            ("invalid", 400, "Invalid object name: hashes/md5", ErrorKind::Misconfigured),
            ("conditionNotMet", 412, "", ErrorKind::Conflict),
            ("authError", 401, "Invalid Credentials", ErrorKind::NoCredentials),
            ("forbidden", 403, "", ErrorKind::Denied),
            ("rateLimitExceeded", 429, "", ErrorKind::Throttled),
            ("invalid", 400, "Provided MD5 hash doesn't match", ErrorKind::Damaged),
            ("backendError", 500, "", ErrorKind::Unavailable),
        ] {
            assert_eq!(google(reason, status, message).kind, kind, "{reason}");
        }
    }

    #[test]
    fn without_words_the_status_tells() {
        for (status, kind) in [
            (401, ErrorKind::NoCredentials),
            (403, ErrorKind::Denied),
            (404, ErrorKind::NotFound),
            (301, ErrorKind::Misconfigured),
            (423, ErrorKind::Unavailable),
            (429, ErrorKind::Throttled),
            (500, ErrorKind::Unavailable),
            (503, ErrorKind::Throttled),
            (507, ErrorKind::Full),
        ] {
            let error =
                of_answer("doing x", StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), b"<html>");
            assert_eq!(error.kind, kind, "{status}: {error}");
        }
    }

    #[test]
    fn what_an_endpoint_says_can_not_drive_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a[2Jb");
        assert_eq!(google("x", 403, &"x".repeat(1000)).message.len(), 300 + "doing x:  (x)".len());
    }
}
