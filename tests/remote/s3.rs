//! S3: endpoints that are slow, broken, wrong, or that lie.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::Digest;
use strongroom::env::{Env, TestEnv};
use strongroom::remote::{
    self, ErrorKind, Fault, FaultyRemote, Op, OpenOptions, Put, Remote, Settings, Times, Verdict,
};

use super::s3_server::{ACCESS_KEY, BUCKET, Defects, SECRET_KEY, Server, Trouble};
use super::{conforms, key, names, once, patient, pattern, private_file, put};

/// Settings for a bucket of this server; the credentials are in a file below `dir`.
pub fn settings(server: &Server, dir: &Path) -> Settings {
    settings_of(server, dir, ACCESS_KEY, SECRET_KEY)
}

/// The same, of somebody.
pub fn settings_of(server: &Server, dir: &Path, access_key: &str, secret_key: &str) -> Settings {
    let path = dir.join(format!("credentials-{access_key}"));
    private_file(
        &path,
        &format!("[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"),
    );
    Settings {
        url: format!("s3://{BUCKET}/some/vault"),
        endpoint: Some(server.endpoint()),
        region: Some("eu-central-1".into()),
        credentials_file: Some(path),
        path_style: true,
        ..Settings::default()
    }
}

struct World {
    server: Server,
    settings: Settings,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
        let settings = settings(&server, dir.path());
        Self { server, settings, _dir: dir }
    }

    fn open(&self, options: &OpenOptions) -> Arc<dyn Remote> {
        remote::open(&self.settings, options).unwrap()
    }
}

/// Whatever is asked: an answer without end is cut off before it fills memory.
#[cfg(feature = "_opendal")]
#[test]
fn answers_without_end_are_cut_off() {
    use std::sync::atomic::Ordering;

    use super::scripted::{Reply, Scripted};
    type Ask = fn(&dyn Remote) -> bool;
    let asks: [(&str, Ask); 6] = [
        ("versioning", |remote| remote.features().is_err()),
        ("object-lock", |remote| remote.features().is_err()),
        ("list-type=2", |remote| remote.list_page("packs/", "").is_err()),
        ("retention", |remote| remote.retention(&key("packs/aa/x"), Some("v")).is_err()),
        ("x-id=GetObject", |remote| remote.get(&key("packs/aa/x"), 0..10).is_err()),
        ("x-id=DeleteObject", |remote| remote.delete(&key("packs/aa/x")).is_err()),
    ];
    let world = World::new();
    for (query, fails) in asks {
        let server = Scripted::start(move |asked| match asked.path.contains(query) {
            true => {
                let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/xml\r\n\r\n<Error>";
                Reply::Endless(head.into(), b"<Code>x</Code>".repeat(10_000))
            }
            false => Reply::new(
                "200 OK",
                "",
                b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
            ),
        });
        let endpoint = Some(format!("http://127.0.0.1:{}", server.port));
        let remote = remote::open(&Settings { endpoint, ..world.settings.clone() }, &once()).unwrap();
        assert!(fails(remote.as_ref()), "{query}");
        let sent = server.sent.load(Ordering::SeqCst);
        assert!(sent > 0 && sent < 64 << 20, "{query}: {sent} bytes");
    }
}

#[test]
fn an_s3_bucket_conforms() {
    let world = World::new();
    conforms(&world.open(&once()), 1100);
    assert!(
        world.server.keys().iter().all(|key| key.starts_with("some/vault/")),
        "nothing outside the prefix"
    );
}

#[test]
fn endpoints_with_fewer_talents_conform_too() {
    for defects in [
        Defects { knows_no_checksums: true, ..Defects::default() },
        Defects { forbids_questions: true, ..Defects::default() },
    ] {
        let world = World::new();
        world.server.set_defects(defects);
        let remote = world.open(&once());
        let bytes = pattern(100_000, 1);
        assert_eq!(put(remote.as_ref(), "packs/aa/one", &bytes).unwrap(), Put::Created, "{defects:?}");
        assert_eq!(put(remote.as_ref(), "packs/aa/one", &bytes).unwrap(), Put::Same);
        assert_eq!(put(remote.as_ref(), "packs/aa/one", b"other").unwrap_err().kind, ErrorKind::Conflict);
        // A pack that rots between being hashed and being sent is found out by somebody.
        let rotten = remote.put_if_absent(
            &key("packs/aa/rotten"),
            &remote::Bytes::source(*b"rotten"),
            &remote::Checksum::of(b"sound"),
        );
        assert!(matches!(rotten.unwrap_err().kind, ErrorKind::Corrupt | ErrorKind::Damaged));
        let probe = remote::probe(remote.as_ref()).unwrap();
        assert!(probe.is_good(), "{probe:?}");
        let checksums = probe.checks.iter().find(|check| check.name == "checksums").unwrap();
        // The body's hash is part of what is signed, and this server looks at signatures.
        assert_eq!(checksums.verdict, Verdict::Yes, "{checksums:?}");
    }
}

#[test]
fn an_endpoint_without_conditions_is_asked_first_and_said() {
    let world = World::new();
    world.server.set_defects(Defects { knows_no_conditions: true, ..Defects::default() });
    let remote = world.open(&once());
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"one").unwrap(), Put::Created);
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"one").unwrap(), Put::Same);
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"two").unwrap_err().kind, ErrorKind::Conflict);
    let probe = remote::probe(remote.as_ref()).unwrap();
    let conditional = probe.checks.iter().find(|check| check.name == "conditional-create").unwrap();
    assert_eq!(conditional.verdict, Verdict::No, "{conditional:?}");
}

#[test]
fn an_endpoint_that_overwrites_is_not_safe() {
    let world = World::new();
    world.server.set_defects(Defects { overwrites: true, ..Defects::default() });
    let probe = remote::probe(world.open(&once()).as_ref()).unwrap();
    assert!(!probe.is_good());
    let check = |name: &str| {
        let check = probe.checks.iter().find(|check| check.name == name).unwrap();
        (check.verdict, check.required)
    };
    assert_eq!(check("create-only"), (Verdict::No, true));
    // It never said so, as the next one does; and nothing else is wrong with it.
    assert_eq!((check("conditional-create"), check("list")), ((Verdict::No, false), (Verdict::Yes, true)));
}

#[test]
fn an_endpoint_that_stores_other_bytes_is_found_out() {
    for (knows_no_checksums, refuses_checksum_headers) in [(false, false), (true, false), (false, true)] {
        let world = World::new();
        world.server.set_defects(Defects {
            stores_other_bytes: true,
            knows_no_checksums,
            refuses_checksum_headers,
            ..Defects::default()
        });
        let error = put(world.open(&once()).as_ref(), "packs/aa/one", b"hello").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    }
}

#[test]
fn answers_that_were_not_asked_for_are_refused() {
    let world = World::new();
    let remote = world.open(&once());
    put(remote.as_ref(), "packs/aa/one", b"hello").unwrap();
    world.server.set_defects(Defects { ignores_ranges: true, lists_strangers: true, ..Defects::default() });
    assert_eq!(remote.get(&key("packs/aa/one"), 1..3).unwrap_err().kind, ErrorKind::Corrupt);
    let listed = remote::list(remote.as_ref(), "packs/", &mut |_| Ok(()));
    assert_eq!(listed.unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn what_the_bucket_has_is_said() {
    for (versioned, locked) in [(true, true), (true, false), (false, false)] {
        let world = World::new();
        world.server.set_bucket(versioned, locked);
        world.server.set_defects(Defects { forbids_delete: versioned, ..Defects::default() });
        let probe = remote::probe(world.open(&once()).as_ref()).unwrap();
        let verdict = |name: &str| probe.checks.iter().find(|check| check.name == name).unwrap().verdict;
        let expected = |on: bool| if on { Verdict::Yes } else { Verdict::No };
        assert_eq!(verdict("versioning"), expected(versioned));
        assert_eq!(verdict("object-lock"), expected(locked));
        assert_eq!(
            verdict("no-delete"),
            expected(versioned),
            "versioned is where deleting is forbidden here"
        );
        assert!(probe.is_good());
    }
}

#[test]
fn each_trouble_has_its_kind() {
    let world = World::new();
    let remote = world.open(&once());
    for (code, status, kind) in [
        ("SlowDown", 503, ErrorKind::Throttled),
        ("TooManyRequests", 429, ErrorKind::Throttled),
        ("InternalError", 500, ErrorKind::Unavailable),
        ("AccessDenied", 403, ErrorKind::Denied),
        ("ExpiredToken", 400, ErrorKind::ExpiredCredentials),
        ("RequestTimeTooSkewed", 403, ErrorKind::ClockSkew),
        ("InvalidAccessKeyId", 403, ErrorKind::NoCredentials),
        ("InsufficientStorage", 507, ErrorKind::Full),
        ("NoSuchBucket", 404, ErrorKind::Misconfigured),
    ] {
        world.server.set_trouble(move |_, op, _| (op == "put").then_some(Trouble::Before(code, status)));
        let error = put(remote.as_ref(), "packs/aa/one", b"hello").unwrap_err();
        assert_eq!(error.kind, kind, "{code}: {error}");
        assert!(kind.hint().is_some(), "{code}");
    }
    world.server.calm();
    assert!(names(remote.as_ref(), "").is_empty());
}

/// An answer to HEAD has no body, and with it no code: why it is refused is asked, with one more request.
#[test]
fn each_trouble_has_its_kind_where_answers_have_no_body() {
    let world = World::new();
    for (code, status, kind) in [
        ("AccessDenied", 403, ErrorKind::Denied),
        ("ExpiredToken", 400, ErrorKind::ExpiredCredentials),
        ("RequestTimeTooSkewed", 403, ErrorKind::ClockSkew),
        ("InvalidAccessKeyId", 403, ErrorKind::NoCredentials),
        ("SignatureDoesNotMatch", 403, ErrorKind::NoCredentials),
        ("Unauthorized", 401, ErrorKind::NoCredentials),
        ("InvalidRequest", 400, ErrorKind::Misconfigured),
        ("PermanentRedirect", 301, ErrorKind::Misconfigured),
        // Only a GET is refused so; where HEAD is as well it is for another reason.
        ("InvalidObjectState", 403, ErrorKind::Denied),
        ("QuotaExceeded", 403, ErrorKind::Denied),
    ] {
        let remote = world.open(&once());
        world.server.forget_ops();
        world.server.set_trouble(move |_, _, _| Some(Trouble::Before(code, status)));
        let error = remote.head(&key("vault.json")).unwrap_err();
        assert_eq!(error.kind, kind, "{code}: {error}");
        let is_told = error.message.contains(code);
        assert_eq!(is_told, !matches!(code, "InvalidObjectState" | "QuotaExceeded"), "{error}");
        assert!(error.message.contains(&status.to_string()), "{error}");
        assert_eq!((world.server.ops("head"), world.server.ops("get"), world.server.all_ops()), (1, 1, 2));
        // Whether it is said or not, of a version or of what is there now.
        world.server.set_trouble(move |_, op, _| (op == "head").then_some(Trouble::Before(code, status)));
        let silent = world.open(&once()).head(&key("vault.json")).unwrap_err();
        let kind = if status <= 400 { ErrorKind::Misconfigured } else { ErrorKind::Denied };
        assert_eq!(silent.kind, kind, "{code}: {silent}");
    }
}

/// The clock stands still: how often is asked does not depend on how fast this is.
#[test]
fn why_objects_may_not_be_looked_at_is_not_asked_for_each() {
    let world = World::new();
    let env = Arc::new(TestEnv::new(1));
    let open = || world.open(&OpenOptions { env: Arc::clone(&env) as Arc<dyn Env>, ..once() });
    let kinds = |remote: &dyn Remote, count: usize| {
        let head = |n: usize| remote.head(&key(&format!("packs/aa/{n}"))).unwrap_err().kind;
        (0..count).map(head).collect::<Vec<_>>()
    };
    // Each for itself.
    let remote = open();
    world.server.set_trouble(|_, _, _| Some(Trouble::Before("AccessDenied", 403)));
    world.server.forget_ops();
    assert_eq!(kinds(remote.as_ref(), 200), [ErrorKind::Denied; 200]);
    assert_eq!((world.server.ops("head"), world.server.ops("get")), (200, 16));
    // A minute later what it is now is found out all the same.
    world.server.set_trouble(|_, _, _| Some(Trouble::Before("RequestTimeTooSkewed", 403)));
    env.advance(Duration::from_secs(60));
    assert_eq!(kinds(remote.as_ref(), 200), [ErrorKind::ClockSkew; 200]);
    assert_eq!(world.server.ops("get"), 17);
    // What all have in common is asked for once, by many at a time as well.
    let remote = open();
    world.server.set_trouble(|_, _, _| Some(Trouble::Before("ExpiredToken", 400)));
    world.server.forget_ops();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(kinds(remote.as_ref(), 20), [ErrorKind::ExpiredCredentials; 20]));
        }
    });
    assert_eq!((world.server.ops("head"), world.server.ops("get")), (160, 1));
    // It passes, and is not remembered of an object that is refused for itself.
    world.server.calm();
    put(remote.as_ref(), "packs/aa/there", b"x").unwrap();
    remote.head(&key("packs/aa/there")).unwrap();
    world.server.set_trouble(|_, _, _| Some(Trouble::Before("InvalidRequest", 400)));
    assert_eq!(kinds(remote.as_ref(), 1), [ErrorKind::Misconfigured]);
}

/// As Backblaze B2 did: the first refusal is the last one, and what is stored is verified all the same.
#[test]
fn an_endpoint_that_refuses_headers_for_checksums_gets_none() {
    for refuses_silently in [false, true] {
        let world = World::new();
        world.server.set_defects(Defects {
            refuses_checksum_headers: true,
            refuses_silently,
            ..Defects::default()
        });
        let elsewhere = Settings { url: format!("s3://{BUCKET}/other"), ..world.settings.clone() };
        let remote = remote::open(&elsewhere, &once()).unwrap();
        for n in 0..3_u8 {
            put(remote.as_ref(), &format!("packs/aa/{n}"), &pattern(100_000, n)).unwrap();
        }
        let refused = world.server.refused_checksum_headers();
        assert_eq!(refused, 1, "the first refusal is the last one");
        // Who looks first is told nothing: without a code there is the status, without a body there is another question.
        let remote = world.open(&once());
        conforms(&remote, 20);
        let refused = world.server.refused_checksum_headers() - refused;
        assert_eq!(refused, if refuses_silently { 1 } else { 2 });
        for name in world.server.keys() {
            let version = world.server.versions(&name).pop().unwrap();
            let md5 = data_encoding::BASE64.encode(&md5::Md5::digest(version.bytes.as_slice()));
            assert_eq!(version.md5, Some(md5), "{name}");
        }
        let probe = remote::probe(remote.as_ref()).unwrap();
        let check = |name: &str| {
            let check = probe.checks.iter().find(|check| check.name == name).unwrap();
            (check.verdict, check.detail.as_str())
        };
        assert!(probe.is_good(), "{probe:?}");
        assert_eq!(check("checksums"), (Verdict::NotApplicable, "this program compares them itself"));
        assert_eq!(check("conditional-create").0, Verdict::Yes, "that it knows");
        assert!(check("verification").1.contains("Content-MD5"), "{probe:?}");
    }
}

/// Who begins by looking is refused without a word.
#[test]
fn headers_for_checksums_that_are_refused_without_a_body_are_left_out_too() {
    let world = World::new();
    world.open(&once()).head(&key("packs/aa/none")).unwrap_err();
    world.server.set_defects(Defects { refuses_checksum_headers: true, ..Defects::default() });
    let remote = world.open(&once());
    assert_eq!(remote.head(&key("vault.json")).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(world.server.refused_checksum_headers(), 2, "once, and once more to be told why");
    put(remote.as_ref(), "vault.json", b"header").unwrap();
    assert_eq!(remote.head(&key("vault.json")).unwrap().len, 6);
    assert_eq!(world.server.refused_checksum_headers(), 2);
    // What others say about such headers is no reason to go on asking.
    let hostile = "Unsupported header 'x-amz-checksum-mode' received for this API call.";
    world.server.say_to_all(Some(("InvalidArgument", 400, hostile)));
    assert_eq!(remote.head(&key("vault.json")).unwrap_err().kind, ErrorKind::Misconfigured);
    assert_eq!(put(remote.as_ref(), "packs/aa/x", b"x").unwrap_err().kind, ErrorKind::Misconfigured);
}

/// Shipped, verified, cloned, restored.
#[test]
fn a_vault_comes_back_from_an_endpoint_that_refuses_headers_for_checksums() {
    let world = World::new();
    world.server.set_defects(Defects { refuses_checksum_headers: true, ..Defects::default() });
    let (endpoint, file) = (world.server.endpoint(), world.settings.credentials_file.clone().unwrap());
    let file = file.to_str().unwrap();
    super::comes_back(
        &world.settings.url,
        &["--endpoint", &endpoint, "--path-style", "--region", "eu-central-1", "--credentials-file", file],
    );
    assert!(world.server.refused_checksum_headers() > 0);
    assert!(world.server.keys().iter().all(|name| world.server.versions(name)[0].md5.is_some()));
}

#[test]
fn an_endpoint_that_does_not_answer_is_given_up() {
    let world = World::new();
    world.server.set_trouble(|_, _, _| Some(Trouble::Stall));
    let times = Times { answer: Duration::from_millis(300), ..Times::default() };
    let remote = world.open(&OpenOptions { times, ..once() });
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"hello").unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(remote.get(&key("packs/aa/one"), 0..5).unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(remote.list_page("packs/", "").unwrap_err().kind, ErrorKind::Timeout);
}

#[test]
fn a_connection_that_breaks_is_no_end_of_file() {
    let world = World::new();
    let remote = world.open(&once());
    put(remote.as_ref(), "packs/aa/one", &pattern(100_000, 3)).unwrap();
    world.server.set_trouble(|_, op, _| (op == "get").then_some(Trouble::Cut));
    let error = remote.get(&key("packs/aa/one"), 0..100_000).unwrap_err();
    assert!(error.kind.is_retryable(), "{error}");
}

#[test]
fn a_storm_of_troubles_passes() {
    let world = World::new();
    world.server.set_trouble(|n, op, _| match n % 7 {
        0 => Some(Trouble::Before("SlowDown", 503)),
        2 if op == "put" => Some(Trouble::After("InternalError", 500)),
        3 => Some(Trouble::Before("InternalError", 500)),
        5 if op == "get" => Some(Trouble::Cut),
        _ => None,
    });
    let remote = world.open(&patient());
    for n in 0..20_u8 {
        put(remote.as_ref(), &format!("packs/aa/{n}"), &pattern(50_000, n)).unwrap();
    }
    for n in 0..20_u8 {
        let bytes = remote::read(remote.as_ref(), &key(&format!("packs/aa/{n}")), 1 << 20).unwrap();
        assert_eq!(bytes, pattern(50_000, n));
    }
    assert_eq!(names(remote.as_ref(), "packs/").len(), 20);
    assert!(world.server.requests() > 60, "there was trouble: {}", world.server.requests());
}

#[test]
fn wrong_credentials_and_addresses_are_told_apart() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let failure = |settings: &Settings| match remote::open(settings, &once()) {
        Ok(remote) => put(remote.as_ref(), "x", b"x").unwrap_err(),
        Err(error) => error,
    };
    let wrong = dir.path().join("wrong");
    private_file(
        &wrong,
        &format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = wrong\n"),
    );
    let open_to_all = dir.path().join("open");
    std::fs::write(&open_to_all, "[default]\n").unwrap();
    let empty = dir.path().join("empty");
    private_file(&empty, "[other]\naws_access_key_id = a\naws_secret_access_key = b\n");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let base = || world.settings.clone();
    let cases = [
        (Settings { credentials_file: Some(wrong), ..base() }, ErrorKind::NoCredentials),
        (Settings { credentials_file: Some(open_to_all), ..base() }, ErrorKind::UnsafeFile),
        (Settings { credentials_file: Some(empty), ..base() }, ErrorKind::NoCredentials),
        (Settings { credentials_file: Some(dir.path().join("none")), ..base() }, ErrorKind::NoCredentials),
        (Settings { url: "s3://no-such-bucket/x".into(), ..base() }, ErrorKind::Misconfigured),
        (Settings { endpoint: Some(format!("http://{closed}")), ..base() }, ErrorKind::Unreachable),
    ];
    for (settings, kind) in cases {
        let error = failure(&settings);
        assert_eq!(error.kind, kind, "{settings:?}: {error}");
        assert!(!error.message.contains(SECRET_KEY));
    }
}

/// Two writers, one of which lost its answer: both believe what is true.
#[test]
fn a_lost_answer_is_found_to_be_a_success() {
    let world = World::new();
    let faulty = FaultyRemote::new(world.open(&once()), |n, op, _| {
        (n == 1 && op == Op::Put).then_some(Fault::After(ErrorKind::Timeout))
    });
    assert_eq!(put(&faulty, "packs/aa/one", b"one").unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(put(&faulty, "packs/aa/one", b"one").unwrap(), Put::Same);
    assert_eq!(world.server.stored("some/vault/packs/aa/one").unwrap(), b"one");
    world.server.plant("some/vault/packs/aa/two", b"planted");
    assert_eq!(put(&faulty, "packs/aa/two", b"two").unwrap_err().kind, ErrorKind::Conflict);
}
