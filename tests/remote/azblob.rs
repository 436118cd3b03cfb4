//! Azure Blob Storage: against Azurite, and what comes of bad answers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use strongroom::remote::{
    self, Checksum, ErrorKind, OpenOptions, Put, Remote, Settings, Source, Times, Verdict,
};

use super::azurite::{ACCOUNT, Azurite, CONTAINER, KEY};
use super::scripted::{Reply, Scripted};
use super::{comes_back, conforms, hostile_listings, key, names, once, private_file, put, storm_passes};

fn at_port(azurite: &Azurite, port: u16) -> Settings {
    let file = azurite.path("key");
    private_file(&file, &format!("{KEY}\n"));
    Settings {
        url: format!("azblob://{CONTAINER}/some/vault"),
        account: Some(ACCOUNT.into()),
        endpoint: Some(format!("http://127.0.0.1:{port}/{ACCOUNT}")),
        credentials_file: Some(file),
        ..Settings::default()
    }
}

fn open(settings: &Settings) -> Arc<dyn Remote> {
    remote::open(settings, &once()).unwrap()
}

#[test]
fn an_azure_container_conforms() {
    let azurite = Azurite::start();
    let remote = open(&at_port(&azurite, azurite.port));
    conforms(&remote, 1010);
    // What does not fit its SHA-256 is not sent: nobody has asked the service.
    let probe = remote::probe(remote.as_ref()).unwrap();
    let checksums = probe.checks.iter().find(|check| check.name == "checksums").unwrap();
    assert_eq!(checksums.verdict, Verdict::NotApplicable, "{checksums:?}");
    // A listing that is not gone on with at the place where the last one ended begins anew.
    let page = remote.list_page("snapshots/", "snapshots/00500").unwrap();
    assert_eq!((page.items[0].name.as_str(), page.items.len(), page.more), ("snapshots/00501", 509, false));
    let first = remote.list_page("snapshots/", "").unwrap();
    assert!(first.more);
    let last = &first.items.last().unwrap().name;
    let ways = [remote.list_page("snapshots/", last).unwrap(), remote.list_page("snapshots/", last).unwrap()];
    assert_eq!(ways[0], ways[1]);
    // Another prefix: what lies outside is not seen.
    let whole = Settings { url: format!("azblob://{CONTAINER}"), ..at_port(&azurite, azurite.port) };
    let all = names(open(&whole).as_ref(), "");
    assert!(all.iter().all(|name| name.starts_with("some/vault/")) && all.len() > 1010, "{}", all.len());
}

#[test]
fn a_vault_goes_to_azure_and_comes_back() {
    let azurite = Azurite::start();
    let settings = at_port(&azurite, azurite.port);
    let (endpoint, file) = (settings.endpoint.unwrap(), settings.credentials_file.unwrap());
    let file = file.to_str().unwrap();
    comes_back(&settings.url, &["--account", ACCOUNT, "--endpoint", &endpoint, "--credentials-file", file]);
}

#[test]
fn azure_credentials_of_every_kind_and_wrong_ones() {
    let azurite = Azurite::start();
    let base = || at_port(&azurite, azurite.port);
    let file = |name: &str, text: &str| {
        private_file(&azurite.path(name), text);
        Some(azurite.path(name))
    };
    let string = format!(
        "DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint=http://127.0.0.1:{}/{ACCOUNT};",
        azurite.port
    );
    // A connection string says it all.
    let connection =
        Settings { account: None, endpoint: None, credentials_file: file("connection", &string), ..base() };
    assert_eq!(put(open(&connection).as_ref(), "x", b"x").unwrap(), Put::Created);
    let failure = |settings: &Settings| match remote::open(settings, &once()) {
        Ok(remote) => put(remote.as_ref(), "y", b"y").unwrap_err(),
        Err(error) => error,
    };
    let open_to_all = azurite.path("open");
    std::fs::write(&open_to_all, KEY).unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let other_key = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q=";
    let cases = [
        (Settings { credentials_file: file("wrong", other_key), ..base() }, ErrorKind::NoCredentials),
        (Settings { credentials_file: file("no-key", "not base64!"), ..base() }, ErrorKind::Misconfigured),
        (Settings { credentials_file: file("empty", ""), ..base() }, ErrorKind::NoCredentials),
        (Settings { credentials_file: Some(open_to_all), ..base() }, ErrorKind::UnsafeFile),
        // Of another account, or of none.
        (Settings { account: Some("others".into()), ..connection.clone() }, ErrorKind::Misconfigured),
        (
            Settings { endpoint: Some("https://others.blob.core.windows.net".into()), ..base() },
            ErrorKind::Misconfigured,
        ),
        (
            Settings { credentials_file: file("none", &string.replace(KEY, "")), ..connection.clone() },
            ErrorKind::NoCredentials,
        ),
        (Settings { url: "azblob://no-such-box/x".into(), ..base() }, ErrorKind::Misconfigured),
        (Settings { endpoint: Some(format!("http://{closed}/{ACCOUNT}")), ..base() }, ErrorKind::Unreachable),
        (Settings { endpoint: Some("http://10.0.0.1/x".into()), ..base() }, ErrorKind::Misconfigured),
        (
            Settings {
                credentials_file: file("plain", &string.replace("127.0.0.1", "10.0.0.1")),
                ..connection.clone()
            },
            ErrorKind::Misconfigured,
        ),
    ];
    let long = failure(&Settings { credentials_file: file("long", &"A".repeat(20_000)), ..base() });
    assert!(long.kind == ErrorKind::NoCredentials && long.message.contains("more than"), "{long}");
    // The emulator has several words for a signature that is none.
    let sas = failure(&Settings { credentials_file: file("sas", "?sv=2022-11-02&sig=nonsense"), ..base() });
    assert!(matches!(sas.kind, ErrorKind::NoCredentials | ErrorKind::Denied), "{sas}");
    for (settings, kind) in cases {
        let error = failure(&settings);
        assert_eq!(error.kind, kind, "{settings:?}: {error}");
        assert!(!error.message.contains(KEY) && !error.message.contains(other_key));
    }
}

#[test]
fn a_storm_of_troubles_passes_over_azure() {
    let azurite = Azurite::start();
    storm_passes(azurite.port, 5, |port| at_port(&azurite, port));
}

#[test]
fn what_azure_answers_is_not_believed() {
    let azurite = Azurite::start();
    let upstream = azurite.port;
    let times = Times { answer: Duration::from_millis(1000), slowest: 4 << 20 };
    let through = |reply: fn(u16) -> Reply, method: &'static str| {
        let server = Scripted::start(move |asked| match asked.method == method {
            true => reply(upstream),
            false => Reply::Forward(upstream),
        });
        let remote = remote::open(&at_port(&azurite, server.port), &OpenOptions { times, ..once() }).unwrap();
        (server, remote)
    };
    // What was stored has another MD5 than what was sent.
    let md5 =
        |_| Reply::new("201 Created", "Content-MD5: XUFAKrxLKna5cZ2REBfFkg==\r\nETag: \"0x1\"\r\n", b"");
    let (_server, remote) = through(md5, "PUT");
    let error = put(remote.as_ref(), "packs/aa/one", b"hello?").unwrap_err();
    assert!(error.kind == ErrorKind::Corrupt && error.message.contains("can't be removed"), "{error}");
    // It is taken away again, if it is still that.
    let deletes: Arc<Mutex<Vec<Option<String>>>> = Arc::default();
    let seen = Arc::clone(&deletes);
    let server = Scripted::start(move |asked| match asked.method.as_str() {
        "PUT" => md5(0),
        "DELETE" => {
            seen.lock().unwrap().push(asked.header("if-match"));
            Reply::new("202 Accepted", "", b"")
        }
        _ => Reply::Forward(upstream),
    });
    let remote = remote::open(&at_port(&azurite, server.port), &OpenOptions { times, ..once() }).unwrap();
    let error = put(remote.as_ref(), "packs/aa/one", b"hello?").unwrap_err();
    assert!(error.kind == ErrorKind::Corrupt && error.message.contains("was removed"), "{error}");
    assert_eq!(*deletes.lock().unwrap(), [Some("\"0x1\"".to_string())]);
    // It says nothing about what it stored: then it is read back, and there is nothing.
    let silent = |_| Reply::new("201 Created", "ETag: \"0x1\"\r\n", b"");
    let (_server, remote) = through(silent, "PUT");
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"hello").unwrap_err().kind, ErrorKind::NotFound);
    // Listings: of others, in circles, of nothing, and without end.
    let blob = |name: &str| {
        format!(
            "<Blob><Name>{name}</Name><Properties><Last-Modified>Sat, 21 Nov 2026 10:00:00 GMT</Last-Modified><Etag>1</Etag>\
             <Content-Length>1</Content-Length><Content-Type>a</Content-Type><Content-MD5>b</Content-MD5></Properties></Blob>"
        )
    };
    let listing = move |name: &str, marker: &str| {
        let blobs = if name.is_empty() { String::new() } else { blob(name) };
        let text = format!(
            "<?xml version=\"1.0\"?><EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{marker}</NextMarker>\
             </EnumerationResults>"
        );
        Reply::new("200 OK", "Content-Type: application/xml\r\n", text.as_bytes())
    };
    for (name, marker, kind) in hostile_listings() {
        let asked_for = name.clone();
        let server = Scripted::start(move |_| listing(&asked_for, marker));
        let remote = remote::open(&at_port(&azurite, server.port), &OpenOptions { times, ..once() }).unwrap();
        let ended = remote::list(remote.as_ref(), "", &mut |_| Ok(())).map_err(|e| e.kind);
        assert_eq!(ended, Err(kind), "{name:?} {marker:?}");
    }
    let endless = |_| {
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n<EnumerationResults><Blobs>";
        Reply::Endless(head.into(), b"<Blob><Name>x</Name></Blob>".repeat(10_000))
    };
    let (server, remote) = through(endless, "GET");
    let ended = remote::list(remote.as_ref(), "", &mut |_| Ok(())).map_err(|e| e.kind);
    assert_eq!(ended, Err(ErrorKind::Corrupt));
    assert!(server.sent.load(std::sync::atomic::Ordering::SeqCst) < 64 << 20);
    let (_server, remote) = through(|_| Reply::Stall, "HEAD");
    assert_eq!(remote.head(&key("x")).unwrap_err().kind, ErrorKind::Timeout);
}

/// A file that somebody changes between the time it is hashed and the time it is sent.
#[derive(Debug)]
struct Changing(std::sync::atomic::AtomicU64);

impl Source for Changing {
    fn len(&self) -> u64 {
        700_000
    }

    fn read_at(&self, buf: &mut [u8], off: u64) -> std::io::Result<usize> {
        let n = buf.len().min(usize::try_from(self.len() - off).unwrap());
        let passes = match off {
            0 => self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst),
            _ => 1,
        };
        buf[..n].fill(u8::from(off == 0 && passes > 0));
        Ok(n)
    }
}

#[test]
fn what_changes_while_it_is_sent_is_no_object() {
    let azurite = Azurite::start();
    let remote = open(&at_port(&azurite, azurite.port));
    let source: Arc<dyn Source> = Arc::new(Changing(0.into()));
    let checksum = Checksum::of(&[0; 700_000]);
    let error = remote.put_if_absent(&key("packs/aa/one"), &source, &checksum).unwrap_err();
    assert!(error.kind == ErrorKind::Local && error.message.contains("changed"), "{error}");
    assert!(names(remote.as_ref(), "").is_empty(), "it lacks its end");
}

/// Whoever has a SAS has what it opens: it must not get into a message, and from there into journals and status files.
#[test]
fn a_shared_access_signature_is_never_told() {
    let server = Scripted::start(|asked| {
        assert!(asked.path.contains("sig=c2VjcmV0"), "{}", asked.path);
        let url = format!("http://user:c2VjcmV0@elsewhere.example{}", asked.path);
        match asked.method.as_str() {
            "PUT" => Reply::new("301 Moved Permanently", &format!("Location: {url}\r\n"), b""),
            "DELETE" => Reply::new("308 Permanent Redirect", &format!("Location: {}\r\n", asked.path), b""),
            _ => {
                let text =
                    format!("<Error><Code>InvalidUri</Code><Message>{} is odd</Message></Error>", asked.path);
                Reply::new("400 Bad Request", "x-ms-error-code: InvalidUri\r\n", text.as_bytes())
            }
        }
    });
    let dir = tempfile::tempdir().unwrap();
    private_file(
        &dir.path().join("sas"),
        "?sv=2022-11-02&ss=b&srt=sco&sp=rwl&se=2099-01-01&sig=c2VjcmV0%3D\n",
    );
    let settings = Settings {
        url: format!("azblob://{CONTAINER}/some/vault"),
        account: Some(ACCOUNT.into()),
        endpoint: Some(format!("http://127.0.0.1:{}/{ACCOUNT}", server.port)),
        credentials_file: Some(dir.path().join("sas")),
        ..Settings::default()
    };
    let remote = open(&settings);
    let sent_away = put(remote.as_ref(), "packs/aa/one", b"one").unwrap_err();
    let place = format!("http://elsewhere.example/{ACCOUNT}/{CONTAINER}/some/vault/packs/aa/one: give it as");
    assert!(sent_away.message.contains(&place), "{sent_away}");
    let errors = [
        sent_away,
        remote.delete(&key("packs/aa/one")).unwrap_err(),
        remote.get(&key("packs/aa/one"), 0..1).unwrap_err(),
        remote.list_page("", "").unwrap_err(),
    ];
    for error in &errors {
        assert_eq!(error.kind, ErrorKind::Misconfigured, "{error}");
        assert!(!error.message.contains("c2VjcmV0"), "{error}");
    }
    assert!(errors[2].message.contains("is odd"), "{}", errors[2]);
}

/// What is remembered of one place must not be taken for another's.
#[test]
fn azure_places_have_their_account() {
    let dir = tempfile::tempdir().unwrap();
    private_file(&dir.path().join("key"), KEY);
    let place = |account: &str, endpoint: Option<&str>| {
        let settings = Settings {
            url: format!("azblob://{CONTAINER}/some/vault"),
            account: Some(account.into()),
            endpoint: endpoint.map(String::from),
            credentials_file: Some(dir.path().join("key")),
            ..Settings::default()
        };
        open(&settings).place()
    };
    assert_eq!(place("one", None), format!("https://one.blob.core.windows.net/{CONTAINER}/some/vault/"));
    assert_eq!(place("two", None), format!("https://two.blob.core.windows.net/{CONTAINER}/some/vault/"));
    assert_eq!(
        place("one", Some("https://x.example/")),
        format!("https://x.example/{CONTAINER}/some/vault/")
    );
}
