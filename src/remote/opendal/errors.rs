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
                .map_or("elsewhere".into(), |to| place_of(&String::from_utf8_lossy(to.as_bytes())));
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

/// What an endpoint says, short, without control characters, and without what it repeats of our credentials.
pub(super) fn printable(text: &str) -> String {
    let text: String = text.trim().chars().filter(|c| !c.is_control()).take(3000).collect();
    without_secrets(&text).chars().take(300).collect()
}

/// Where a URL leads: its query may have a signature that opens the place to everybody, and what stands before the host may
/// be a password.
fn place_of(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or("");
    let Some((scheme, rest)) = url.split_once("//") else {
        return printable(url.rsplit('@').next().unwrap_or(""));
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit('@').next().unwrap_or("");
    printable(&format!("{scheme}//{host}{path}"))
}

/// What credentials follow when somebody repeats a request: of queries and of headers.
const BEFORE_SECRETS: [&str; 9] = [
    "sig=",
    "signature=",
    "sig%3d",
    "signature%3d",
    "token=",
    "basic ",
    "bearer ",
    "sharedkey ",
    // Azure's own words for a signature that is wrong.
    "found in the http request '",
];

/// Endpoints, and proxies before them, may put into an answer what they were asked.
fn without_secrets(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let (mut shown, mut at) = (String::new(), 0);
    loop {
        let found =
            BEFORE_SECRETS.iter().filter_map(|word| Some((lower[at..].find(word)? + at + word.len(), word)));
        let Some((start, word)) = found.min() else { break };
        let ends = |c: char| c.is_whitespace() || matches!(c, '&' | '"' | '\'' | '<' | '>' | ';' | ')' | '#');
        let end = text[start..].find(ends).map_or(text.len(), |len| start + len);
        shown.push_str(&text[at..start]);
        // Words of a sentence ("Basic authentication is needed") are no credentials.
        let is_word = word.ends_with(' ') && text[start..end].bytes().all(|b| b.is_ascii_lowercase());
        shown.push_str(if is_word || start == end { &text[start..end] } else { "..." });
        at = end;
    }
    shown + &text[at..]
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

    /// A proxy that sends us elsewhere repeats the whole query, and with it the SAS.
    #[test]
    fn a_redirection_tells_no_secret() {
        for (to, shown) in [
            ("https://x.example/box/a?sv=2022&sig=SECRET%3D&se=1", "https://x.example/box/a"),
            ("https://u:SECRET@x.example:8443/box#SECRET", "https://x.example:8443/box"),
            ("//u:SECRET@x.example?SECRET", "//x.example"),
            ("/box/a?sig=SECRET", "/box/a"),
            ("?sig=SECRET", ""),
            ("https:u:SECRET@x/?sig=SECRET", "x/"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::LOCATION, to.parse().unwrap());
            let error = of_answer("doing x", StatusCode::MOVED_PERMANENTLY, &headers, b"");
            let wanted = format!("doing x: the endpoint sends us to {shown}: give it as the URL");
            assert_eq!((error.kind, error.message), (ErrorKind::Misconfigured, wanted));
        }
    }

    #[test]
    fn what_an_endpoint_repeats_of_our_credentials_is_not_shown() {
        for text in [
            "no GET /box/a?sv=1&sig=SECRET%2B%3D&se=2 here",
            "no GET /box/a?sv=1&SIG=SECRET",
            "u=%2Fbox%3Fsig%3DSECRET",
            "access_token=SECRET&x=1",
            "Authorization: Basic SECRET==",
            "Authorization: Bearer ya29.SECRET-x_y (bad)",
            "authorization: sharedkey acc:SECRET=",
            "The MAC signature found in the HTTP request 'SECRET=' is not the same",
            "Signature=SECRET; sig=SECRET",
        ] {
            for error in [azure("AuthenticationFailed", 403, text), google("x", 403, text)] {
                assert!(!error.message.contains("SECRET") && error.message.contains("..."), "{error}");
            }
        }
        for text in ["Basic authentication is needed", "sig= and token=", "a sig without a value", ""] {
            assert_eq!(printable(text), text);
        }
    }

    #[test]
    fn what_an_endpoint_says_can_not_drive_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a[2Jb");
        assert_eq!(google("x", 403, &"x".repeat(1000)).message.len(), 300 + "doing x:  (x)".len());
    }
}
