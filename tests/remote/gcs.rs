//! Google Cloud Storage: against a server of ours that speaks its protocol, which is as strict.

use std::sync::Arc;
use std::time::Duration;

use strongroom::remote::{self, ErrorKind, OpenOptions, Put, Remote, Settings, Times, Verdict};

use super::gcs_server::{Defects, GcsServer};
use super::scripted::{Reply, Scripted};
use super::{comes_back, conforms, hostile_listings, key, once, pattern, private_file, put, storm_passes};

struct World {
    server: GcsServer,
    settings: Settings,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let (server, dir) = (GcsServer::start(), tempfile::tempdir().unwrap());
        let settings = server.settings(dir.path(), server.port());
        Self { server, settings, dir }
    }

    fn open(&self) -> Arc<dyn Remote> {
        remote::open(&self.settings, &once()).unwrap()
    }
}

#[test]
fn a_google_bucket_conforms() {
    let world = World::new();
    conforms(&world.open(), 1010);
    let probe = remote::probe(world.open().as_ref()).unwrap();
    let checksums = probe.checks.iter().find(|check| check.name == "checksums").unwrap();
    assert_eq!(checksums.verdict, Verdict::NotApplicable, "{checksums:?}");
    assert!(
        world.server.keys().iter().all(|key| key.starts_with("some/vault/")),
        "nothing outside the prefix"
    );
}

#[test]
fn a_vault_goes_to_google_and_comes_back() {
    let world = World::new();
    let endpoint = world.settings.endpoint.as_deref().unwrap();
    let file = world.settings.credentials_file.as_ref().unwrap().to_str().unwrap();
    comes_back(&world.settings.url, &["--endpoint", endpoint, "--credentials-file", file]);
}

#[test]
fn what_google_stores_is_compared() {
    let world = World::new();
    let remote = world.open();
    world.server.set_defects(Defects { stores_other_bytes: true, ..Defects::default() });
    let error = put(remote.as_ref(), "packs/aa/one", b"hello").unwrap_err();
    assert!(error.kind == ErrorKind::Corrupt && error.message.contains("was removed"), "{error}");
    assert!(world.server.keys().is_empty(), "nothing of the right name and length stays");
    let keeps = Defects { stores_other_bytes: true, keeps_everything: true, ..Defects::default() };
    world.server.set_defects(keeps);
    let error = put(remote.as_ref(), "packs/aa/kept", b"hello").unwrap_err();
    assert!(error.kind == ErrorKind::Corrupt && error.message.contains("can't be removed"), "{error}");
    assert_eq!(world.server.keys(), ["some/vault/packs/aa/kept"]);
    world.server.set_defects(Defects { stores_other_bytes: true, knows_no_md5: true, ..Defects::default() });
    assert_eq!(
        put(remote.as_ref(), "packs/aa/two", b"hello").unwrap_err().kind,
        ErrorKind::Corrupt,
        "read back"
    );
    world.server.set_defects(Defects { knows_no_md5: true, ..Defects::default() });
    assert_eq!(put(remote.as_ref(), "packs/aa/three", b"hello").unwrap(), Put::Created);
    world.server.set_defects(Defects::default());
    // Damaged on the way: the server is told what it should get.
    let bytes = pattern(100_000, 1);
    put(remote.as_ref(), "packs/aa/four", &bytes).unwrap();
    assert_eq!(world.server.stored("some/vault/packs/aa/four").unwrap(), bytes);
    world.server.plant("some/vault/packs/aa/five", b"planted");
    assert_eq!(put(remote.as_ref(), "packs/aa/five", b"five").unwrap_err().kind, ErrorKind::Conflict);
}

#[test]
fn a_google_that_overwrites_is_not_safe() {
    let world = World::new();
    world.server.set_defects(Defects { overwrites: true, ..Defects::default() });
    let probe = remote::probe(world.open().as_ref()).unwrap();
    assert!(!probe.is_good());
    let check = probe.checks.iter().find(|check| check.name == "create-only").unwrap();
    assert_eq!((check.verdict, check.required), (Verdict::No, true));
}

#[test]
fn google_credentials_that_do_not_open_anything() {
    let world = World::new();
    let base = || world.settings.clone();
    let failure = |settings: &Settings| match remote::open(settings, &once()) {
        Ok(remote) => put(remote.as_ref(), "x", b"x").unwrap_err(),
        Err(error) => error,
    };
    let other = tempfile::tempdir().unwrap();
    let refused = world.server.credentials(other.path(), Some("nobody"));
    let no_json = other.path().join("no-json");
    private_file(&no_json, "hello");
    let open_to_all = other.path().join("open");
    std::fs::write(&open_to_all, "{}").unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cases = [
        (Settings { credentials_file: Some(refused), ..base() }, ErrorKind::NoCredentials),
        (Settings { credentials_file: Some(no_json), ..base() }, ErrorKind::NoCredentials),
        (Settings { credentials_file: Some(open_to_all), ..base() }, ErrorKind::UnsafeFile),
        (Settings { credentials_file: Some(other.path().join("none")), ..base() }, ErrorKind::NoCredentials),
        (Settings { url: "gs://no-such-bucket/x".into(), ..base() }, ErrorKind::Misconfigured),
        (Settings { endpoint: Some(format!("http://{closed}")), ..base() }, ErrorKind::Unreachable),
        (Settings { endpoint: Some("http://10.0.0.1".into()), ..base() }, ErrorKind::Misconfigured),
    ];
    for (settings, kind) in cases {
        let error = failure(&settings);
        assert_eq!(error.kind, kind, "{settings:?}: {error}");
    }
    world.server.set_defects(Defects { forgets_tokens: true, ..Defects::default() });
    assert_eq!(failure(&base()).kind, ErrorKind::NoCredentials);
}

#[test]
fn a_storm_of_troubles_passes_over_google() {
    let world = World::new();
    storm_passes(world.server.port(), 5, |port| world.server.settings(world.dir.path(), port));
}

#[test]
fn what_google_answers_is_not_believed() {
    let world = World::new();
    let times = Times { answer: Duration::from_millis(1000), slowest: 4 << 20 };
    let upstream = world.server.port();
    let listing = |reply: Box<dyn Fn() -> Reply + Send + Sync>| {
        let server = Scripted::start(move |asked| match asked.path.contains("/o?") {
            true => reply(),
            false => Reply::Forward(upstream),
        });
        let settings = world.server.settings(world.dir.path(), server.port);
        let remote = remote::open(&settings, &OpenOptions { times, ..once() }).unwrap();
        let ended = remote::list(remote.as_ref(), "", &mut |_| Ok(())).map_err(|e| e.kind);
        (ended, server.sent.load(std::sync::atomic::Ordering::SeqCst))
    };
    for (name, token, kind) in hostile_listings() {
        let object = serde_json::json!({ "name": name, "size": "1", "etag": "e", "generation": "1", "md5Hash": "",
                                          "updated": "2026-11-21T10:00:00.000Z", "contentType": "a" });
        let items = if name.is_empty() { vec![] } else { vec![object] };
        let mut answer = serde_json::json!({ "items": items });
        if !token.is_empty() {
            answer["nextPageToken"] = token.into();
        }
        let reply =
            move || Reply::new("200 OK", "Content-Type: application/json\r\n", answer.to_string().as_bytes());
        assert_eq!(listing(Box::new(reply)).0, Err(kind), "{name:?} {token:?}");
    }
    let endless = || {
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"items\":[";
        Reply::Endless(head.into(), b"{\"name\":\"x\"},".repeat(10_000))
    };
    let (ended, sent) = listing(Box::new(endless));
    assert_eq!(ended, Err(ErrorKind::Corrupt));
    assert!(sent < 64 << 20, "{sent}");
    assert_eq!(listing(Box::new(|| Reply::Stall)).0, Err(ErrorKind::Timeout));
    assert_eq!(listing(Box::new(|| Reply::new("200 OK", "", b"{\"items\":7}"))).0, Err(ErrorKind::Corrupt));
    assert_eq!(world.open().head(&key("x")).unwrap_err().kind, ErrorKind::NotFound);
}

/// What is remembered of one place must not be taken for another's.
#[test]
fn google_places_have_their_endpoint() {
    let world = World::new();
    let place = |settings: &Settings| remote::open(settings, &once()).unwrap().place();
    let here = place(&world.settings);
    let elsewhere =
        place(&Settings { endpoint: Some("https://elsewhere.example".into()), ..world.settings.clone() });
    let google = place(&Settings { endpoint: None, ..world.settings.clone() });
    assert!(here != elsewhere && elsewhere != google && google != here, "{here} {elsewhere} {google}");
    let bucket = super::gcs_server::BUCKET;
    assert_eq!(google, format!("https://storage.googleapis.com/{bucket}/some/vault/"));
    let slash = Settings { endpoint: Some("https://elsewhere.example/".into()), ..world.settings.clone() };
    assert_eq!(place(&slash), elsewhere);
}
