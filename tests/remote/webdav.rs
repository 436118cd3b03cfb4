//! WebDAV: against a real Apache, and against servers that are slow, broken, or that lie.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use strongroom::remote::{self, ErrorKind, OpenOptions, Put, Remote, Settings, Times, Verdict};

use super::apache::{Apache, PASSWORD, USER};
use super::scripted::{Reply, Scripted};
use super::webdav_lists::{collection, multistatus};
use super::{comes_back, conforms, key, names, once, patient, pattern, private_file, put, storm_passes};
use crate::common::wait_until;

/// Settings for the vault of this server.
fn settings(apache: &Apache) -> Settings {
    at_port(apache, apache.port)
}

/// The same, through what listens at another port.
fn at_port(apache: &Apache, port: u16) -> Settings {
    Settings {
        url: format!("webdav://{USER}@127.0.0.1:{port}/vault"),
        credentials_file: Some(apache.login()),
        ..Settings::default()
    }
}

pub fn open(settings: &Settings) -> Arc<dyn Remote> {
    remote::open(settings, &once()).unwrap()
}

/// Settings for a scripted server.
pub fn scripted(server: &Scripted) -> Settings {
    Settings { url: format!("webdav://127.0.0.1:{}/vault", server.port), ..Settings::default() }
}

#[test]
fn a_webdav_server_conforms() {
    let apache = Apache::start("");
    conforms(&open(&settings(&apache)), 40);
    let left = apache.left();
    assert!(left.is_empty(), "no scratch file and no lock is left: {left:?}");
}

#[test]
fn a_vault_goes_to_webdav_and_comes_back() {
    let apache = Apache::start("");
    let settings = settings(&apache);
    let file = apache.login();
    comes_back(&settings.url, &["--credentials-file", file.to_str().unwrap()]);
}

#[test]
fn what_a_webdav_server_has_is_said() {
    let apache = Apache::start("");
    let probe = remote::probe(open(&settings(&apache)).as_ref()).unwrap();
    let check = |name: &str| probe.checks.iter().find(|check| check.name == name).unwrap();
    assert_eq!(check("conditional-create").verdict, Verdict::Yes, "{probe:?}");
    assert_eq!(check("create-only").verdict, Verdict::Yes);
    // What does not fit its SHA-256 is not sent: nobody has asked the server.
    assert_eq!(check("checksums").verdict, Verdict::NotApplicable);
    assert_eq!(check("object-lock").verdict, Verdict::NotApplicable);
    assert!(probe.is_good(), "{}", apache.log());
    // A server that says that it has locks, and gives none: nothing gets a name without one.
    let apache = Apache::start(
        "<Limit LOCK>\nRequire user somebody-else\n</Limit>\n<LimitExcept LOCK>\nRequire valid-user\n</LimitExcept>",
    );
    let remote = open(&settings(&apache));
    let error = put(remote.as_ref(), "packs/aa/one", b"one").unwrap_err();
    assert!(error.kind == ErrorKind::NoCredentials && error.message.contains("locking"), "{error}");
    assert!(names(remote.as_ref(), "").is_empty());
}

/// A server whose answers say nothing of locks: names are looked up, a rename replaces nothing, and `remote test` says that
/// this is not the same.
#[test]
fn a_server_without_locks_is_said_to_have_none() {
    let apache = Apache::start("");
    let upstream = apache.port;
    let server = Scripted::start(move |asked| match asked.method.as_str() {
        "OPTIONS" => Reply::new("200 OK", "DAV: 1, 3\r\n", b""),
        "LOCK" => Reply::new("405 Method Not Allowed", "", b""),
        _ => Reply::Forward(upstream),
    });
    let remote = open(&at_port(&apache, server.port));
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"one").unwrap(), Put::Created);
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"one").unwrap(), Put::Same);
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"two").unwrap_err().kind, ErrorKind::Conflict);
    let probe = remote::probe(remote.as_ref()).unwrap();
    let check = probe.checks.iter().find(|check| check.name == "conditional-create").unwrap();
    assert_eq!(check.verdict, Verdict::No, "{check:?}");
}

/// Two writers of one name: whoever comes second between the look and the rename of the first has to wait, and sees it.
#[test]
fn a_name_is_given_once_even_between_look_and_rename() {
    let apache = Apache::start("");
    let upstream = apache.port;
    let second = open(&settings(&apache));
    let (tell, told) = std::sync::mpsc::sync_channel::<()>(1);
    let server = Scripted::start(move |asked| {
        if asked.method == "MOVE" {
            // The first has looked, and is about to rename.
            tell.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(500));
        }
        Reply::Forward(upstream)
    });
    let first = open(&at_port(&apache, server.port));
    let ends = std::thread::scope(|scope| {
        let one = scope.spawn(|| put(first.as_ref(), "packs/aa/one", b"first"));
        told.recv().unwrap();
        let two = put(second.as_ref(), "packs/aa/one", b"second");
        [one.join().unwrap(), two]
    });
    assert_eq!(ends[0], Ok(Put::Created));
    assert_eq!(ends[1].as_ref().unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(fs::read(apache.vault().join("packs/aa/one")).unwrap(), b"first");
}

/// The name in `.incoming/` that the lock for a name is on.
fn lock_name(name: &str) -> String {
    let hash = remote::Checksum::of(name.as_bytes()).0;
    hash[..16].iter().fold("lock-".to_string(), |text, byte| format!("{text}{byte:02x}"))
}

/// Whoever waits for a lock that somebody else has holds up nobody who wants another name.
#[test]
fn a_name_that_is_stuck_holds_up_no_other() {
    let apache = Apache::start("");
    let (upstream, stuck) = (apache.port, lock_name("packs/aa/stuck"));
    let (asked_for, free) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (tell, is_free) = (Arc::clone(&asked_for), Arc::clone(&free));
    let server = Scripted::start(move |asked| {
        if asked.method == "LOCK" && asked.path.ends_with(&stuck) && !is_free.load(Ordering::SeqCst) {
            tell.store(true, Ordering::SeqCst);
            return Reply::new("423 Locked", "", b"");
        }
        Reply::Forward(upstream)
    });
    let remote = open(&at_port(&apache, server.port));
    std::thread::scope(|scope| {
        let one = scope.spawn(|| put(remote.as_ref(), "packs/aa/stuck", b"one"));
        wait_until("the lock to be asked for", || asked_for.load(Ordering::SeqCst));
        assert_eq!(put(remote.as_ref(), "packs/aa/other", b"two"), Ok(Put::Created));
        free.store(true, Ordering::SeqCst);
        assert_eq!(one.join().unwrap(), Ok(Put::Created));
    });
    assert!(apache.left().is_empty(), "{:?}", apache.left());
}

#[test]
fn a_lock_whose_holder_died_is_waited_for_and_told() {
    let apache = Apache::start("");
    let times = Times { answer: Duration::from_millis(400), ..Times::default() };
    let remote = remote::open(&settings(&apache), &OpenOptions { times, ..once() }).unwrap();
    put(remote.as_ref(), "packs/aa/one", b"one").unwrap();
    let name = lock_name("packs/aa/two");
    let body = "<?xml version=\"1.0\"?><D:lockinfo xmlns:D=\"DAV:\"><D:lockscope><D:exclusive/></D:lockscope><D:locktype><D:write/>\
                </D:locktype></D:lockinfo>";
    let (status, answer) =
        apache.ask("LOCK", &format!("/vault/.incoming/{name}"), "Timeout: Second-600\r\nDepth: 0\r\n", body);
    assert!(matches!(status, 200 | 201), "{answer}");
    let error = put(remote.as_ref(), "packs/aa/two", b"two").unwrap_err();
    assert!(
        error.kind == ErrorKind::Unavailable && error.message.contains("somebody else holds it"),
        "{error}"
    );
    assert_eq!(names(remote.as_ref(), ""), ["packs/aa/one"]);
}

#[test]
fn who_may_not_and_what_is_not_there_is_told_apart() {
    let apache = Apache::start(
        "<Limit GET HEAD OPTIONS PROPFIND>\nRequire valid-user\n</Limit>\n\
         <LimitExcept GET HEAD OPTIONS PROPFIND>\nRequire user somebody-else\n</LimitExcept>",
    );
    let base = || settings(&apache);
    let file = |name: &str, text: &str| {
        private_file(&apache.path(name), text);
        Some(apache.path(name))
    };
    let failure = |settings: &Settings| match remote::open(settings, &once()) {
        Ok(remote) => put(remote.as_ref(), "x", b"x").unwrap_err(),
        Err(error) => error,
    };
    let open_to_all = apache.path("open");
    fs::write(&open_to_all, format!("{USER}:{PASSWORD}")).unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nowhere = format!("webdav://127.0.0.1:{}/nowhere", apache.port);
    let cases = [
        (base(), ErrorKind::NoCredentials),
        (Settings { credentials_file: file("wrong", "backup:wrong"), ..base() }, ErrorKind::NoCredentials),
        (Settings { credentials_file: file("no-line", "backup"), ..base() }, ErrorKind::NoCredentials),
        (Settings { credentials_file: file("other", "other:x"), ..base() }, ErrorKind::NoCredentials),
        (Settings { credentials_file: None, ..base() }, ErrorKind::NoCredentials),
        (Settings { credentials_file: Some(open_to_all), ..base() }, ErrorKind::UnsafeFile),
        (
            Settings { credential: Some("dav".into()), credentials_file: None, ..base() },
            ErrorKind::NoCredentials,
        ),
        (Settings { url: nowhere, ..base() }, ErrorKind::Misconfigured),
        (Settings { url: format!("webdav://{closed}/vault"), ..base() }, ErrorKind::Unreachable),
        (Settings { url: base().url.replace("webdav:", "webdavs:"), ..base() }, ErrorKind::Unreachable),
    ];
    for (settings, kind) in cases {
        let error = failure(&settings);
        assert_eq!(error.kind, kind, "{settings:?}: {error}");
        assert!(!error.message.contains(PASSWORD));
    }
    assert!(!apache.vault().join("../nowhere").exists(), "places are never made");
}

#[test]
fn each_trouble_of_webdav_has_its_kind() {
    let apache = Apache::start("");
    for (method, status, kind) in [
        ("PUT", "503 Service Unavailable", ErrorKind::Throttled),
        ("PUT", "429 Too Many Requests", ErrorKind::Throttled),
        ("PUT", "500 Internal Server Error", ErrorKind::Unavailable),
        ("PUT", "403 Forbidden", ErrorKind::Denied),
        ("PUT", "507 Insufficient Storage", ErrorKind::Full),
        ("PUT", "301 Moved Permanently", ErrorKind::Misconfigured),
        ("LOCK", "500 Internal Server Error", ErrorKind::Unavailable),
        ("MOVE", "507 Insufficient Storage", ErrorKind::Full),
        ("PROPFIND", "401 Unauthorized", ErrorKind::NoCredentials),
    ] {
        let upstream = apache.port;
        let server = Scripted::start(move |asked| match asked.method == method {
            true => Reply::new(
                status,
                "Retry-After: 1\r\nLocation: https://elsewhere.example/\r\n",
                b"<html>no</html>",
            ),
            false => Reply::Forward(upstream),
        });
        let error = put(open(&at_port(&apache, server.port)).as_ref(), "packs/aa/one", b"hello").unwrap_err();
        assert_eq!(error.kind, kind, "{method} {status}: {error}");
        assert!(kind.hint().is_some());
    }
    let remote = open(&settings(&apache));
    assert!(names(remote.as_ref(), "").is_empty());
    let left = apache.left();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_storm_of_troubles_passes_over_webdav() {
    let apache = Apache::start("");
    storm_passes(apache.port, 16, |port| at_port(&apache, port));
}

#[test]
fn a_webdav_server_that_stores_other_bytes_is_found_out() {
    let apache = Apache::start("");
    let (upstream, vault) = (apache.port, apache.vault());
    let server = Scripted::start(move |asked| {
        if asked.method == "GET" {
            // Rot, after it was written and before it is read back.
            for entry in fs::read_dir(vault.join(".incoming")).unwrap().flatten() {
                fs::write(entry.path(), b"jello").unwrap();
            }
        }
        Reply::Forward(upstream)
    });
    let settings = at_port(&apache, server.port);
    let error = put(open(&settings).as_ref(), "packs/aa/one", b"hello").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    assert!(!apache.vault().join("packs/aa/one").exists());
    // Who does not want to know is not told.
    let trusting = Settings { no_read_back: true, ..settings };
    assert_eq!(put(open(&trusting).as_ref(), "packs/aa/one", b"hello").unwrap(), Put::Created);
}

#[test]
fn answers_that_are_wrong_or_never_come_are_no_objects() {
    let gets = |reply: fn() -> Reply| {
        let server = Scripted::start(move |_| reply());
        let times = Times { answer: Duration::from_millis(500), ..Times::default() };
        let remote = remote::open(&scripted(&server), &OpenOptions { times, ..once() }).unwrap();
        remote.get(&key("packs/aa/one"), 2..6).map_err(|e| e.kind)
    };
    assert_eq!(
        gets(|| Reply::new("206 Partial Content", "Content-Range: bytes 2-5/9\r\n", b"abcd")),
        Ok(b"abcd".to_vec())
    );
    let wrong: [fn() -> Reply; 6] = [
        || Reply::new("206 Partial Content", "Content-Range: bytes 0-3/9\r\n", b"abcd"),
        || Reply::new("206 Partial Content", "Content-Range: bytes 2-5/9\r\n", b"abc"),
        || Reply::new("206 Partial Content", "", b"abcd"),
        || Reply::new("200 OK", "", b"abcd"),
        || Reply::new("200 OK", "", b"123456789"),
        || Reply::new("416 Range Not Satisfiable", "", b""),
    ];
    for reply in wrong {
        assert_eq!(gets(reply), Err(ErrorKind::Corrupt));
    }
    let cut = || {
        let head =
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\nContent-Range: bytes 2-5/9\r\n\r\nab";
        Reply::Bytes(head.into())
    };
    assert_eq!(gets(cut), Err(ErrorKind::Unavailable));
    let endless = || {
        let head = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-5/9\r\nConnection: close\r\n\r\n";
        Reply::Endless(head.into(), pattern(1 << 16, 1))
    };
    assert_eq!(gets(endless), Err(ErrorKind::Corrupt));
    assert_eq!(gets(|| Reply::Bytes(b"220 ftp.example\r\n".to_vec())), Err(ErrorKind::Unavailable));
    assert_eq!(gets(|| Reply::Bytes(Vec::new())), Err(ErrorKind::Unavailable));
    assert_eq!(gets(|| Reply::Stall), Err(ErrorKind::Timeout));
    let server = Scripted::start(|_| Reply::Stall);
    let times = Times { answer: Duration::from_millis(300), ..Times::default() };
    let remote = remote::open(&scripted(&server), &OpenOptions { times, ..once() }).unwrap();
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"hello").unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(remote.list_page("packs/", "").unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(remote.delete(&key("packs/aa/one")).unwrap_err().kind, ErrorKind::Timeout);
}

/// What a server can do is not concluded from a request that failed.
#[test]
fn a_failed_question_is_no_answer() {
    let apache = Apache::start("");
    for (status, kind) in [
        ("503 Service Unavailable", ErrorKind::Throttled),
        ("403 Forbidden", ErrorKind::Denied),
        ("302 Found", ErrorKind::Misconfigured),
        ("404 Not Found", ErrorKind::NotFound),
    ] {
        let upstream = apache.port;
        let (failed, locked) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&locked);
        let server = Scripted::start(move |asked| {
            if asked.method == "OPTIONS" && !failed.swap(true, Ordering::SeqCst) {
                return Reply::new(status, "", b"");
            }
            seen.fetch_or(asked.method == "LOCK", Ordering::SeqCst);
            Reply::Forward(upstream)
        });
        let remote = open(&at_port(&apache, server.port));
        let name = format!("packs/aa/{}", &status[..3]);
        assert_eq!(put(remote.as_ref(), &name, b"one").unwrap_err().kind, kind, "{status}");
        assert_eq!(put(remote.as_ref(), &name, b"one").unwrap(), Put::Created);
        assert!(locked.load(Ordering::SeqCst), "{status}: it has locks");
    }
    // Who does not know the question has none.
    for status in ["405 Method Not Allowed", "501 Not Implemented"] {
        let upstream = apache.port;
        let server = Scripted::start(move |asked| match asked.method.as_str() {
            "OPTIONS" => Reply::new(status, "DAV: 1, 2\r\n", b""),
            "LOCK" => Reply::new("405 Method Not Allowed", "", b""),
            _ => Reply::Forward(upstream),
        });
        let remote = open(&at_port(&apache, server.port));
        let name = format!("packs/aa/{}", &status[..3]);
        assert_eq!(put(remote.as_ref(), &name, b"one").unwrap(), Put::Created);
    }
}

#[test]
fn a_lock_that_ends_soon_is_of_no_use() {
    let apache = Apache::start("");
    for (timeout, good) in [
        ("<D:timeout>Second-30</D:timeout>", true),
        ("<D:timeout>Infinite</D:timeout>", true),
        ("<D:timeout>Second-29</D:timeout>", false),
        ("<D:timeout>soon</D:timeout>", false),
        ("", false),
    ] {
        let (upstream, unlocked) = (apache.port, Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&unlocked);
        let server = Scripted::start(move |asked| match asked.method.as_str() {
            "LOCK" => {
                let body =
                    format!("<D:prop xmlns:D=\"DAV:\"><D:activelock>{timeout}</D:activelock></D:prop>");
                Reply::new("200 OK", "Lock-Token: <opaquelocktoken:1>\r\n", body.as_bytes())
            }
            "UNLOCK" => {
                seen.store(true, Ordering::SeqCst);
                Reply::new("204 No Content", "", b"")
            }
            _ => Reply::Forward(upstream),
        });
        let remote = open(&at_port(&apache, server.port));
        let name = format!("packs/aa/x{}", timeout.replace(|c: char| !c.is_ascii_alphanumeric(), "x"));
        let ended = put(remote.as_ref(), &name, b"one").map_err(|e| e.kind);
        assert_eq!(ended, if good { Ok(Put::Created) } else { Err(ErrorKind::Unsupported) }, "{timeout}");
        assert!(unlocked.load(Ordering::SeqCst), "{timeout}");
        assert_eq!(apache.vault().join(&name).exists(), good);
    }
}

/// A proxy may give up while the server goes on: who unlocked then would let somebody else in between.
#[test]
fn a_lock_outlives_a_rename_that_may_go_on() {
    for (status, kept) in [
        ("502 Bad Gateway", true),
        ("503 Service Unavailable", true),
        ("504 Gateway Timeout", true),
        ("403 Forbidden", false),
        ("507 Insufficient Storage", false),
    ] {
        let apache = Apache::start("");
        let (upstream, unlocked) = (apache.port, Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&unlocked);
        let server = Scripted::start(move |asked| {
            let ends = matches!(asked.method.as_str(), "UNLOCK" | "DELETE") && asked.path.contains("/lock-");
            seen.fetch_or(ends, Ordering::SeqCst);
            match asked.method.as_str() {
                "MOVE" => Reply::new(status, "", b""),
                _ => Reply::Forward(upstream),
            }
        });
        put(open(&at_port(&apache, server.port)).as_ref(), "packs/aa/one", b"one").unwrap_err();
        assert_eq!(unlocked.load(Ordering::SeqCst), !kept, "{status}");
    }
}

/// Told to replace nothing, it replaces all the same, and says so.
#[test]
fn a_rename_that_replaced_something_is_looked_at() {
    for (bytes, ends) in [(b"two", Err(ErrorKind::Conflict)), (b"one", Ok(Put::Same))] {
        let apache = Apache::start("");
        let (upstream, vault) = (apache.port, apache.vault());
        let server = Scripted::start(move |asked| {
            if asked.method == "MOVE" {
                fs::write(vault.join("packs/aa/one"), bytes).unwrap();
                return Reply::new("204 No Content", "", b"");
            }
            Reply::Forward(upstream)
        });
        let remote = open(&at_port(&apache, server.port));
        assert_eq!(put(remote.as_ref(), "packs/aa/one", b"one").map_err(|e| e.kind), ends);
        assert!(apache.left().is_empty());
    }
}

/// Without a lock and without a tag that a condition could be made of, nothing is replaced.
#[test]
fn nothing_is_replaced_without_a_lock_or_a_strong_tag() {
    for (tag, replaced) in [("W/\"1\"", false), ("", false), ("1", false), ("\"1\"", true)] {
        let conditions: Arc<Mutex<Vec<Option<String>>>> = Arc::default();
        let seen = Arc::clone(&conditions);
        let server = Scripted::start(move |asked| match asked.method.as_str() {
            "OPTIONS" => Reply::new("200 OK", "DAV: 1\r\n", b""),
            "PROPFIND" if asked.path.ends_with('/') => Reply::new("207 Multi-Status", "", &multistatus(&[])),
            "PROPFIND" => {
                let tag = format!("<D:getcontentlength>5</D:getcontentlength><D:getetag>{tag}</D:getetag>");
                let file = String::from_utf8(multistatus(&["/vault/vault.json"])).unwrap();
                // Only the file: the collection was asked for nowhere here.
                let file = file.replace(&collection("/vault/"), "");
                let file = file.replace("<D:getcontentlength>5</D:getcontentlength>", &tag);
                Reply::new("207 Multi-Status", "", file.as_bytes())
            }
            "GET" => Reply::new("206 Partial Content", "Content-Range: bytes 0-4/5\r\n", b"hello"),
            "PUT" => {
                seen.lock().unwrap().push(asked.header("if-match"));
                Reply::new("412 Precondition Failed", "", b"")
            }
            _ => Reply::new("500 Internal Server Error", "", b""),
        });
        let remote = open(&scripted(&server));
        let (was, body) = (remote::Checksum::of(b"hello"), remote::Bytes::source(*b"world"));
        let error =
            remote.replace(&key("vault.json"), &was, &body, &remote::Checksum::of(b"world")).unwrap_err();
        let asked = conditions.lock().unwrap().clone();
        if replaced {
            assert_eq!((error.kind, asked), (ErrorKind::Conflict, vec![Some(tag.to_string())]), "{error}");
        } else {
            assert_eq!((error.kind, asked), (ErrorKind::Unsupported, vec![]), "{tag}: {error}");
        }
    }
}

#[test]
fn a_directory_that_vanished_is_made_again() {
    let apache = Apache::start("");
    let (upstream, vault) = (apache.port, apache.vault());
    let vanished = AtomicBool::new(false);
    let server = Scripted::start(move |asked| {
        let puts = asked.method == "PUT" && vault.join("packs/aa/one").exists();
        if puts && !vanished.swap(true, Ordering::SeqCst) {
            fs::remove_dir_all(vault.join(".incoming")).unwrap();
            return Reply::new("404 Not Found", "", b"");
        }
        Reply::Forward(upstream)
    });
    let remote = open(&at_port(&apache, server.port));
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"one").unwrap(), Put::Created);
    assert_eq!(put(remote.as_ref(), "packs/aa/two", b"two").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(put(remote.as_ref(), "packs/aa/two", b"two").unwrap(), Put::Created);
}

/// The directory that locks are in may be removed like any other: who replaces something makes it again.
#[test]
fn a_header_is_replaced_also_where_scratch_files_were_removed() {
    let apache = Apache::start("");
    let remote = remote::open(&settings(&apache), &patient()).unwrap();
    put(remote.as_ref(), "vault.json", b"first").unwrap();
    fs::remove_dir_all(apache.vault().join(".incoming")).unwrap();
    let (was, body) = (remote::Checksum::of(b"first"), remote::Bytes::source(*b"second"));
    remote.replace(&key("vault.json"), &was, &body, &remote::Checksum::of(b"second")).unwrap();
    assert_eq!(fs::read(apache.vault().join("vault.json")).unwrap(), b"second");
}

#[test]
fn what_interrupted_runs_left_is_removed_by_the_next() {
    let apache = Apache::start("");
    let hour = Duration::from_secs(3600);
    put(open(&settings(&apache)).as_ref(), "packs/aa/one", b"one").unwrap();
    let make = |name: &str, age: Duration| {
        let file = fs::File::create(apache.vault().join(".incoming").join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    };
    let (old, lock) = ("0123456789abcdef".repeat(2), format!("lock-{}", "ab".repeat(16)));
    make(&old, 25 * hour);
    make(&lock, 25 * hour);
    make(&"cd".repeat(16), 23 * hour);
    make("something-else", 1000 * hour);
    put(open(&settings(&apache)).as_ref(), "packs/aa/two", b"two").unwrap();
    let mut left = apache.left();
    left.sort();
    assert_eq!(left, ["cd".repeat(16).as_str(), "something-else"]);
}

/// A proxy that speaks TLS for the server: the server knows itself under another URL than we do, and refuses ours. Here it is
/// the other way round, for there is no TLS between us and the proxy.
#[test]
fn a_rename_works_behind_a_proxy_that_speaks_tls() {
    let apache = Apache::start("");
    assert_eq!(apache.ask("PUT", "/vault/x", "", "x").0, 201);
    let moved = |to: String| apache.ask("MOVE", "/vault/x", &format!("Destination: {to}\r\n"), "").0;
    assert_eq!(moved(format!("https://127.0.0.1:{}/vault/y", apache.port)), 502, "what this is about");
    assert_eq!(moved("/vault/y".into()), 400, "Apache knows no paths there");
    assert_eq!(apache.ask("DELETE", "/vault/x", "", "").0, 204);
    let (upstream, seen) = (apache.port, Arc::new(Mutex::new(Vec::new())));
    let tell = Arc::clone(&seen);
    let server = Scripted::start(move |asked| {
        let Some(to) = asked.header("destination") else { return Reply::Forward(upstream) };
        tell.lock().unwrap().push(to.clone());
        let seen_there = match to.strip_prefix("http:") {
            Some(rest) => format!("https:{rest}"),
            None => to.replace("https:", "http:"),
        };
        Reply::ForwardAs(upstream, to, seen_there)
    });
    let remote = open(&at_port(&apache, server.port));
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"one"), Ok(Put::Created));
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"two").unwrap_err().kind, ErrorKind::Conflict);
    // What the server took is what it gets from then on.
    assert_eq!(put(remote.as_ref(), "packs/aa/two", b"two"), Ok(Put::Created));
    assert_eq!(names(remote.as_ref(), ""), ["packs/aa/one", "packs/aa/two"]);
    let url =
        |scheme: &str, name: &str| format!("{scheme}://127.0.0.1:{}/vault/packs/aa/{name}", server.port);
    let wanted = [url("http", "one"), "/vault/packs/aa/one".into(), url("https", "one"), url("https", "two")];
    assert_eq!(*seen.lock().unwrap(), wanted);
}

/// Others behind such a proxy take a path.
#[test]
fn a_server_that_wants_paths_gets_them() {
    let apache = Apache::start("");
    let (upstream, urls) = (apache.port, Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&urls);
    let server = Scripted::start(move |asked| {
        let Some(to) = asked.header("destination") else { return Reply::Forward(upstream) };
        if to.starts_with("http") {
            count.fetch_add(1, Ordering::SeqCst);
            return Reply::new("400 Bad Request", "", b"");
        }
        // Apache does not.
        Reply::ForwardAs(upstream, to.clone(), format!("http://127.0.0.1:{upstream}{to}"))
    });
    let remote = open(&at_port(&apache, server.port));
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"one"), Ok(Put::Created));
    assert_eq!(put(remote.as_ref(), "packs/aa/two", b"two"), Ok(Put::Created));
    assert_eq!(urls.load(Ordering::SeqCst), 1);
}

/// Behind a proxy that changes paths, another way to say where to may mean another place: there it is renamed to, and it is not
/// where it should be.
#[test]
fn a_rename_to_another_place_is_found_out() {
    let apache = Apache::start("");
    let upstream = apache.port;
    let server = Scripted::start(move |asked| {
        let Some(to) = asked.header("destination") else { return Reply::Forward(upstream) };
        match to.starts_with("http") {
            true => Reply::new("400 Bad Request", "", b""),
            false => {
                Reply::ForwardAs(upstream, to.clone(), format!("http://127.0.0.1:{upstream}/vault/elsewhere"))
            }
        }
    });
    let remote = open(&at_port(&apache, server.port));
    let error = put(remote.as_ref(), "packs/aa/one", b"one").unwrap_err();
    assert!(
        error.kind == ErrorKind::Unsupported && error.message.contains("nothing has that name"),
        "{error}"
    );
    assert!(apache.vault().join("elsewhere").exists());
}

/// It says 502 whatever it is told, once after it was done: then what counts is the first answer, and that it is there.
#[test]
fn a_rename_that_is_always_refused_says_what_was_tried() {
    let apache = Arc::new(Apache::start(""));
    let other = Arc::clone(&apache);
    let server = Scripted::start(move |asked| {
        let Some(to) = asked.header("destination") else { return Reply::Forward(other.port) };
        if to.ends_with("/done") {
            let was = other.vault().join("packs/aa/done").exists();
            if was || !to.starts_with("http:") {
                return Reply::Forward(other.port);
            }
            let here = format!("Destination: http://127.0.0.1:{}/vault/packs/aa/done\r\n", other.port);
            assert_eq!(other.ask("MOVE", &asked.path, &here, "").0, 201);
        }
        Reply::new("502 Bad Gateway", "", b"")
    });
    let remote = open(&at_port(&apache, server.port));
    for name in ["packs/aa/never", "packs/aa/done"] {
        let error = put(remote.as_ref(), name, b"one").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(error.message.contains("502 Bad Gateway (to a rename, however its Destination"), "{error}");
    }
    assert_eq!(put(remote.as_ref(), "packs/aa/done", b"one"), Ok(Put::Same));
}

/// Two that make the same directory at the same moment: Apache looks whether it is there, and its mkdir fails.
#[test]
fn a_directory_that_somebody_else_makes_at_the_same_moment_is_there() {
    let apache = Arc::new(Apache::start(""));
    let other = Arc::clone(&apache);
    let server = Scripted::start(move |asked| {
        if asked.method != "MKCOL" {
            return Reply::Forward(other.port);
        }
        if !asked.path.contains("denied") {
            assert_eq!(other.ask("MKCOL", &asked.path, "", "").0, 201);
        }
        Reply::new("403 Forbidden", "", b"")
    });
    let remote = open(&at_port(&apache, server.port));
    assert_eq!(put(remote.as_ref(), "packs/aa/one", b"one").unwrap(), Put::Created);
    assert_eq!(put(remote.as_ref(), "packs/denied/one", b"one").unwrap_err().kind, ErrorKind::Denied);
    // And for real.
    let start = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (remote, start) = (open(&settings(&apache)), &start);
            scope.spawn(move || {
                for dir in 0..25 {
                    start.wait();
                    put(remote.as_ref(), &format!("packs/{dir}/{n}"), b"one").unwrap();
                }
            });
        }
    });
    assert_eq!(names(remote.as_ref(), "").len(), 101);
}

#[test]
fn webdav_places_have_their_server() {
    let place = |url: &str| open(&Settings { url: url.into(), ..Settings::default() }).place();
    assert_eq!(place("webdavs://dav.example/some/vault"), "https://dav.example/some/vault/");
    assert_eq!(place("webdav://127.0.0.1:1/vault"), "http://127.0.0.1:1/vault/");
}
