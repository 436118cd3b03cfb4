//! Where a remote is and how to reach it: URLs and settings. Secrets are in neither.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ErrorKind, Key, Lock, RemoteError, Result};

/// A parsed URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// `file:///path`
    Dir {
        /// The directory, absolute.
        path: PathBuf,
    },
    /// `s3://bucket/prefix`
    S3 {
        /// The bucket.
        bucket: String,
        /// What all names begin with, with a slash at its end; or empty.
        prefix: String,
    },
    /// `sftp://user@host:port/path`
    Sftp {
        /// Who logs in; `None`: what ssh_config says.
        user: Option<String>,
        /// The host, or a name that ssh_config has.
        host: String,
        /// The port; `None`: what ssh_config says.
        port: Option<u16>,
        /// The directory, absolute.
        path: String,
    },
    /// `webdavs://user@host:port/path`, or `webdav://` without TLS
    Webdav {
        /// Whether it is HTTPS.
        tls: bool,
        /// Who logs in; `None`: who the credentials file names.
        user: Option<String>,
        /// The host, and the port where it is another than usual.
        authority: String,
        /// The collection, with no slash at either end.
        path: String,
    },
    /// `azblob://container/prefix`
    Azblob {
        /// The container.
        container: String,
        /// What all names begin with, with a slash at its end; or empty.
        prefix: String,
    },
    /// `gs://bucket/prefix`
    Gcs {
        /// The bucket.
        bucket: String,
        /// What all names begin with, with a slash at its end; or empty.
        prefix: String,
    },
}

/// The kinds of URLs, for messages.
const SCHEMES: &str = "s3://, sftp://, file:///, webdavs://, azblob:// or gs://";

impl Location {
    /// Reads a URL.
    ///
    /// # Errors
    /// `Misconfigured`, with what is wrong.
    pub fn parse(url: &str) -> Result<Self> {
        let wrong = |what: &str| {
            Err(RemoteError::new(ErrorKind::Misconfigured, format!("{}: {what}", without_secret(url))))
        };
        if url.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return wrong("a URL has no blanks and no control characters");
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return wrong(&format!("no URL; it begins with {SCHEMES}"));
        };
        match scheme {
            "file" => {
                let path = PathBuf::from(rest);
                if !path.is_absolute() {
                    return wrong(
                        "file:// needs an absolute path, with three slashes: file:///mnt/usb/vault",
                    );
                }
                Ok(Self::Dir { path })
            }
            "s3" | "azblob" | "gs" => {
                let (bucket, prefix) = match parse_bucket(rest) {
                    Ok(parsed) => parsed,
                    Err(what) => return wrong(what),
                };
                Ok(match scheme {
                    "s3" => Self::S3 { bucket, prefix },
                    "azblob" => Self::Azblob { container: bucket, prefix },
                    _ => Self::Gcs { bucket, prefix },
                })
            }
            "sftp" => match parse_sftp(rest) {
                Ok(location) => Ok(location),
                Err(what) => wrong(what),
            },
            "webdavs" | "webdav" => match parse_webdav(rest, scheme == "webdavs") {
                Ok(location) => Ok(location),
                Err(what) => wrong(what),
            },
            "http" | "https" => wrong("for a WebDAV server write webdavs:// (or webdav://, without TLS)"),
            _ => wrong(&format!("this program ships to {SCHEMES}")),
        }
    }

    /// Returns whether it is a directory of this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Dir { .. })
    }
}

/// A URL for messages: whatever might be a password is left out.
fn without_secret(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(start), Some(at)) if start < at => format!("{}...{}", &url[..start + 3], &url[at..]),
        _ => url.to_string(),
    }
}

/// The name of a bucket, and what all names in it begin with.
fn parse_bucket(rest: &str) -> std::result::Result<(String, String), &'static str> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !(3..=255).contains(&bucket.len()) || !bucket.bytes().all(good) {
        return Err("no name of a bucket; credentials are never part of a URL");
    }
    let prefix = prefix.trim_end_matches('/');
    if prefix.is_empty() {
        return Ok((bucket.into(), String::new()));
    }
    if Key::new(prefix).is_none() {
        return Err("a prefix has letters, digits, '-', '_', '.' and '/'");
    }
    Ok((bucket.into(), format!("{prefix}/")))
}

fn parse_webdav(rest: &str, tls: bool) -> std::result::Result<Location, &'static str> {
    let (login, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, authority) = match login.rsplit_once('@') {
        Some((user, authority)) => (Some(user), authority),
        None => (None, login),
    };
    if user.is_some_and(|user| user.contains(':')) {
        return Err("a password is never part of a URL; it stands in the file of --credentials-file");
    }
    let word = |text: &str, more: &[u8]| {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.') || more.contains(&b);
        !text.is_empty() && text.bytes().all(good)
    };
    // An IPv6 address stands in brackets.
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (word(host, b":"), port.strip_prefix(':').or(port.is_empty().then_some("443"))),
        None => match authority.split_once(':') {
            Some((host, port)) => (word(host, b""), Some(port)),
            None => (word(authority, b""), Some("443")),
        },
    };
    if !host {
        return Err("that is no host");
    }
    if port.and_then(|port| port.parse::<u16>().ok()).is_none_or(|port| port == 0) {
        return Err("that is no port");
    }
    if user.is_some_and(|user| !word(user, b"@+")) {
        return Err("that is no user");
    }
    let path = path.trim_matches('/');
    // Not what stands for something else in URLs.
    if path.bytes().any(|b| !b.is_ascii() || matches!(b, b'%' | b'?' | b'#' | b'\\')) {
        return Err("a path has no %, ? and #, and is ASCII");
    }
    if path.split('/').any(|part| part == "." || part == ".." || (part.is_empty() && !path.is_empty())) {
        return Err("a path has no . and .. and no empty part");
    }
    Ok(Location::Webdav { tls, user: user.map(String::from), authority: authority.into(), path: path.into() })
}

fn parse_sftp(rest: &str) -> std::result::Result<Location, &'static str> {
    let (login, path) = rest.split_once('/').ok_or("a path is missing: sftp://user@host/path")?;
    let (user, host) = match login.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, login),
    };
    if user.is_some_and(|user| user.contains(':')) {
        return Err("a password is never part of a URL; SFTP remotes log in with keys");
    }
    // An IPv6 address stands in brackets.
    let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or("no port")?)),
        None => host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None => None,
        Some(port) => Some(port.parse().ok().filter(|port| *port > 0).ok_or("that is no port")?),
    };
    // What begins with a dash would be an option of ssh.
    let word = |text: &str, more: &[u8]| {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.') || more.contains(&b);
        !text.is_empty() && !text.starts_with('-') && text.bytes().all(good)
    };
    if !word(host, b":%") {
        return Err("that is no host");
    }
    if user.is_some_and(|user| !word(user, b"+\\$")) {
        return Err("that is no user");
    }
    let path = format!("/{}", path.trim_matches('/'));
    if path.split('/').any(|part| part == "." || part == "..") {
        return Err("a path has no . and ..");
    }
    Ok(Location::Sftp { user: user.map(String::from), host: host.to_string(), port, path })
}

/// How a remote is reached. What does not fit its scheme is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where it is.
    pub url: String,
    /// S3: region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Azure: the storage account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// S3, Azure, Google: URL of the endpoint; their own when missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// All but SFTP: the endpoint may be spoken to without TLS although it is another machine.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_http: bool,
    /// S3: profile of the credentials and configuration files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// All but SFTP: a credentials file of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// All but SFTP: name of a systemd credential that is such a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// S3: the bucket stands in the path, not in the host's name.
    #[serde(skip_serializing_if = "is_false")]
    pub path_style: bool,
    /// S3: storage class of packs; headers and snapshots stay in the standard one, so that they can be read at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// S3: server-side encryption, `AES256` or `aws:kms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse: Option<String>,
    /// S3: key of `aws:kms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_kms_key_id: Option<String>,
    /// S3: everything is kept from being deleted for a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<Lock>,
    /// S3: read the versions that are ours, as where objects are locked, if these credentials may: for those who read a
    /// place of which they know no more than its URL. Not kept in settings.
    #[serde(skip)]
    pub by_version: bool,
    /// SFTP: the private key's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_file: Option<PathBuf>,
    /// SFTP: a known_hosts file of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<PathBuf>,
    /// SFTP: an ssh_config of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_config: Option<PathBuf>,
    /// SFTP, WebDAV: objects are not read back after they were sent.
    #[serde(skip_serializing_if = "is_false")]
    pub no_read_back: bool,
    /// Bytes a second to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_upload: Option<u64>,
    /// Bytes a second from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_download: Option<u64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Settings {
    /// Reads the URL, and checks that the other settings fit it.
    ///
    /// # Errors
    /// `Misconfigured`.
    pub fn location(&self) -> Result<Location> {
        let location = Location::parse(&self.url)?;
        let options: [(bool, &str, &[&str]); 16] = [
            (self.region.is_some(), "--region", &["s3"]),
            (self.account.is_some(), "--account", &["azblob"]),
            (self.endpoint.is_some(), "--endpoint", &["s3", "azblob", "gs"]),
            (self.allow_http, "--allow-http", &["s3", "azblob", "gs", "webdav"]),
            (self.profile.is_some(), "--profile", &["s3"]),
            (self.credentials_file.is_some(), "--credentials-file", &["s3", "azblob", "gs", "webdav"]),
            (self.credential.is_some(), "--s3-credential", &["s3", "azblob", "gs", "webdav"]),
            (self.path_style, "--path-style", &["s3"]),
            (self.storage_class.is_some(), "--storage-class", &["s3"]),
            (self.sse.is_some(), "--sse", &["s3"]),
            (self.sse_kms_key_id.is_some(), "--sse-kms-key-id", &["s3"]),
            (self.lock.is_some(), "--lock-mode", &["s3"]),
            (self.identity_file.is_some(), "--identity-file", &["sftp"]),
            (self.known_hosts.is_some(), "--known-hosts", &["sftp"]),
            (self.ssh_config.is_some(), "--ssh-config", &["sftp"]),
            (self.no_read_back, "--no-read-back", &["sftp", "webdav"]),
        ];
        let kind = match &location {
            Location::Dir { .. } => "file",
            Location::S3 { .. } => "s3",
            Location::Sftp { .. } => "sftp",
            Location::Webdav { .. } => "webdav",
            Location::Azblob { .. } => "azblob",
            Location::Gcs { .. } => "gs",
        };
        let wrong = options.iter().find(|(set, _, kinds)| *set && !kinds.contains(&kind));
        let refuse = |text: String| Err(RemoteError::new(ErrorKind::Misconfigured, text));
        if let Some((_, name, _)) = wrong {
            return refuse(format!("{name} means nothing to a {kind}:// remote"));
        }
        if let Some(lock) = &self.lock {
            lock.check()?;
        }
        if self.sse.as_deref().is_some_and(|sse| !matches!(sse, "AES256" | "aws:kms" | "aws:kms:dsse")) {
            return refuse("--sse is AES256, aws:kms or aws:kms:dsse".into());
        }
        if self.sse_kms_key_id.is_some() && !self.sse.as_deref().is_some_and(|sse| sse.starts_with("aws:kms"))
        {
            return refuse("--sse-kms-key-id goes with --sse aws:kms".into());
        }
        if let Err(text) = self.check_endpoint() {
            return refuse(text);
        }
        if let Location::Webdav { tls: false, authority, .. } = &location
            && let Err(text) = self.check_plain(&format!("http://{authority}"))
        {
            return refuse(text);
        }
        let names = [&self.region, &self.account, &self.profile, &self.storage_class, &self.credential];
        if names.into_iter().flatten().any(|name| Key::new(name).is_none() || name.contains('/')) {
            return refuse(
                "regions, accounts, profiles, storage classes and credentials have names of letters and digits"
                    .into(),
            );
        }
        Ok(location)
    }

    fn check_endpoint(&self) -> std::result::Result<(), String> {
        let Some(url) = self.endpoint.as_deref() else { return Ok(()) };
        // A query may be a signature, which has no place in settings.
        if !(url.starts_with("https://") || url.starts_with("http://")) || url.contains(['@', '?']) {
            let text =
                "--endpoint is a URL that begins with https:// (or http:// for a server on this machine)";
            return Err(text.into());
        }
        self.check_plain(url)
    }

    /// Refuses plain HTTP to other machines, wherever the URL comes from: everybody on the way there could read the
    /// requests, hold them back and answer them.
    pub(super) fn check_plain(&self, url: &str) -> std::result::Result<(), String> {
        match url.strip_prefix("http://") {
            Some(rest) if !self.allow_http && !is_loopback(rest) => Err(format!(
                "{url} is another machine, and http:// is not encrypted: use https://. For a network that you trust there is \
                 `remote add --allow-http`"
            )),
            _ => Ok(()),
        }
    }
}

/// Whether what follows `http://` is a server on this machine: by address, or by the name that every system has for it.
pub(super) fn is_loopback(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    // An IPv6 address stands in brackets.
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => authority.split(':').next().unwrap_or(""),
    };
    let by_address = host.parse::<std::net::IpAddr>().is_ok_and(|address| match address {
        std::net::IpAddr::V4(address) => address.is_loopback(),
        std::net::IpAddr::V6(address) => {
            address.is_loopback() || address.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback())
        }
    });
    by_address || host.eq_ignore_ascii_case("localhost")
}

/// Reads a speed in bytes a second: `500k`, `10M`, `1.5M`, `1G`, with powers of 1024; a plain number is bytes.
#[must_use]
pub fn parse_speed(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" | "B" => 1_u32,
        "k" | "K" | "KiB" => 1 << 10,
        "m" | "M" | "MiB" => 1 << 20,
        "g" | "G" | "GiB" => 1 << 30,
        _ => return None,
    };
    let value: f64 = number.parse().ok()?;
    let bytes = value * f64::from(factor);
    // Exact up to 2^53, which is 8 PiB a second.
    (1.0..=9e15).contains(&bytes).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sftp(user: Option<&str>, host: &str, port: Option<u16>, path: &str) -> Location {
        Location::Sftp { user: user.map(String::from), host: host.into(), port, path: path.into() }
    }

    #[test]
    fn urls_mean_what_they_say() {
        let parse = |url| Location::parse(url).unwrap();
        assert_eq!(parse("file:///mnt/usb"), Location::Dir { path: "/mnt/usb".into() });
        let s3 = |bucket: &str, prefix: &str| Location::S3 { bucket: bucket.into(), prefix: prefix.into() };
        assert_eq!(parse("s3://bucket"), s3("bucket", ""));
        assert_eq!(parse("s3://bucket/"), s3("bucket", ""));
        assert_eq!(parse("s3://my.bucket-1/a/b/"), s3("my.bucket-1", "a/b/"));
        assert_eq!(
            parse("sftp://backup@host:2222/srv/v"),
            sftp(Some("backup"), "host", Some(2222), "/srv/v")
        );
        assert_eq!(parse("sftp://host/srv/v/"), sftp(None, "host", None, "/srv/v"));
        let dav = |tls, user: Option<&str>, authority: &str, path: &str| Location::Webdav {
            tls,
            user: user.map(String::from),
            authority: authority.into(),
            path: path.into(),
        };
        assert_eq!(parse("webdavs://cloud.example"), dav(true, None, "cloud.example", ""));
        assert_eq!(
            parse("webdavs://me@x.org@cloud.example:8443/remote.php/dav/files/me@x.org/v/"),
            dav(true, Some("me@x.org"), "cloud.example:8443", "remote.php/dav/files/me@x.org/v")
        );
        assert_eq!(parse("webdav://[::1]:8080/v"), dav(false, None, "[::1]:8080", "v"));
        let (name, prefix) = (String::from("name"), String::from("a/b/"));
        assert_eq!(
            parse("azblob://name/a/b"),
            Location::Azblob { container: name.clone(), prefix: prefix.clone() }
        );
        assert_eq!(parse("gs://name/a/b/"), Location::Gcs { bucket: name, prefix });
        assert_eq!(parse("sftp://u@[::1]:22/v"), sftp(Some("u"), "::1", Some(22), "/v"));
        assert_eq!(parse("sftp://[fe80::1%eth0]/v"), sftp(None, "fe80::1%eth0", None, "/v"));
    }

    #[test]
    fn what_could_be_an_option_or_a_secret_is_refused() {
        for url in [
            "",
            "/mnt/usb",
            "file://mnt/usb",
            "file:",
            "ftp://host/x",
            "s3://",
            "s3://ab",
            "s3://bucket/a b",
            "s3://bucket/../x",
            "s3://bucket//x",
            "s3://key:secret@bucket/x",
            "sftp://host",
            "sftp:///x",
            "sftp://-oProxyCommand=x/y",
            "sftp://-u@host/y",
            "sftp://u@host:0/y",
            "sftp://u@host:99999/y",
            "sftp://u@host:x/y",
            "sftp://host/a/../b",
            "sftp://u@h;id/y",
            "file:///a\nb",
            "sftp://[::1]x/y",
            "https://host/x",
            "webdavs://",
            "webdavs:///x",
            "webdavs://host/a%2fb",
            "webdavs://host/a?b",
            "webdavs://host/a/../b",
            "webdavs://host/a//b",
            "webdavs://host:0/x",
            "webdavs://host:x/x",
            "webdavs://[::1]x/y",
            "webdavs://ho st/x",
            "webdavs://-@host;x/y",
            "gs://b",
            "gs://bucket/../x",
            "azblob://name/a b",
        ] {
            let error = Location::parse(url).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Misconfigured, "{url}");
        }
        for url in [
            "webdavs://u:hunter2@host/x",
            "sftp://u:hunter2@host/x",
            "s3://key:hunter2@bucket/x",
            "https://u:hunter2@host/x",
        ] {
            assert!(!Location::parse(url).unwrap_err().message.contains("hunter2"), "{url}");
        }
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        let base = |url: &str| Settings { url: url.into(), ..Settings::default() };
        let lock = |days| Some(Lock { mode: crate::remote::LockMode::Governance, days });
        base("s3://bucket").location().unwrap();
        Settings { no_read_back: true, ..base("webdavs://host/x") }.location().unwrap();
        Settings { allow_http: true, ..base("webdav://10.0.0.1/x") }.location().unwrap();
        base("webdav://127.0.0.1:8080/x").location().unwrap();
        Settings { account: Some("a".into()), ..base("azblob://name") }.location().unwrap();
        Settings { lock: lock(30), ..base("s3://bucket") }.location().unwrap();
        let wrong = [
            Settings { region: Some("eu-central-1".into()), ..base("file:///x") },
            Settings { no_read_back: true, ..base("s3://bucket") },
            Settings { profile: Some("p".into()), ..base("sftp://h/x") },
            Settings { sse: Some("rot13".into()), ..base("s3://bucket") },
            Settings { sse_kms_key_id: Some("k".into()), ..base("s3://bucket") },
            Settings { endpoint: Some("localhost:9000".into()), ..base("s3://bucket") },
            Settings { endpoint: Some("https://u:p@host".into()), ..base("s3://bucket") },
            Settings { endpoint: Some("https://host/?sv=1&sig=2".into()), ..base("azblob://box") },
            Settings { credential: Some("../../etc/shadow".into()), ..base("s3://bucket") },
            Settings { account: Some("a".into()), ..base("s3://bucket") },
            Settings { region: Some("r".into()), ..base("azblob://bucket") },
            Settings { lock: lock(30), ..base("gs://bucket") },
            Settings { endpoint: Some("https://host".into()), ..base("webdavs://host/x") },
            Settings { credential: Some("c".into()), ..base("sftp://h/x") },
            Settings { url: "webdav://10.0.0.1/x".into(), ..Settings::default() },
            Settings { lock: lock(30), ..base("file:///x") },
            Settings { lock: lock(30), ..base("sftp://h/x") },
            Settings { lock: lock(0), ..base("s3://bucket") },
            Settings { lock: lock(5000), ..base("s3://bucket") },
        ];
        for settings in wrong {
            assert_eq!(settings.location().unwrap_err().kind, ErrorKind::Misconfigured, "{settings:?}");
        }
    }

    #[test]
    fn plain_http_is_for_this_machine() {
        let with = |endpoint: &str, allow_http| Settings {
            url: "s3://bucket".into(),
            endpoint: Some(endpoint.into()),
            allow_http,
            ..Settings::default()
        };
        for here in [
            "http://127.0.0.1:9000",
            "http://127.8.9.1",
            "http://localhost:9000/",
            "http://LOCALHOST",
            "http://[::1]:9000",
            "http://[::ffff:127.0.0.1]/x",
            "https://minio.example:9000",
        ] {
            with(here, false).location().unwrap();
        }
        for elsewhere in [
            "http://minio:9000",
            "http://10.0.0.1",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "http://localhost4",
            "http://[::2]:9000",
            "http://[::ffff:10.0.0.1]",
            "http://0.0.0.0",
            "http://2130706433",
            "http://",
            "http://example.com/localhost",
            "http://example.com#127.0.0.1",
        ] {
            let error = with(elsewhere, false).location().unwrap_err();
            assert_eq!(error.kind, ErrorKind::Misconfigured, "{elsewhere}");
            assert!(error.message.contains("--allow-http"), "{error}");
            with(elsewhere, true).location().unwrap();
        }
        // What is no URL of a server stays refused.
        with("ftp://10.0.0.1", true).location().unwrap_err();
        with("http://user@10.0.0.1", true).location().unwrap_err();
        Settings { allow_http: true, url: "file:///x".into(), ..Settings::default() }.location().unwrap_err();
    }

    #[test]
    fn speeds_read_as_people_write_them() {
        assert_eq!(
            ["1", "500k", "10M", "1.5MiB", "2G", "7B"].map(parse_speed),
            [Some(1), Some(500 << 10), Some(10 << 20), Some(3 << 19), Some(2 << 30), Some(7)]
        );
        assert_eq!(
            ["", "0", "0.1", "-1", "10 M", "M", "1T", "1e9", "nan", "1.2.3", "99999999999999999"]
                .map(parse_speed),
            [None; 11]
        );
    }
}
