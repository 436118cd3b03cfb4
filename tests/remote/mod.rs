//! One suite that every kind of remote passes: a directory, an S3 server, a real sshd, Apache, Azurite, a server that speaks
//! Google's protocol. Then what is special to each.

#[cfg(feature = "webdav")]
mod apache;
#[cfg(feature = "azblob")]
mod azblob;
#[cfg(feature = "azblob")]
mod azurite;
#[cfg(feature = "gcs")]
mod gcs;
#[cfg(feature = "gcs")]
mod gcs_server;

pub mod aws_cli;
pub mod iam;
pub mod moto;
pub mod s3_lock;
pub mod s3_server;
pub mod sshd;

mod lock;
mod moto_lock;
mod s3;
mod s3_cli;
#[cfg(feature = "_opendal")]
mod scripted;
mod service;
mod sftp;
mod sftp_stuck;
#[cfg(feature = "webdav")]
mod webdav;
#[cfg(feature = "webdav")]
mod webdav_lists;

pub use s3::settings as s3_settings;
pub use s3::settings_of as s3_settings_of;
pub use sftp::{flags as sftp_flags, settings as sftp_settings};

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use strongroom::remote::{
    self, Bytes, Checksum, ErrorKind, Key, OpenOptions, Put, Remote, RemoteError, RetryPolicy, Settings,
    Source,
};

pub fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub fn put(remote: &dyn Remote, name: &str, bytes: &[u8]) -> Result<Put, RemoteError> {
    remote.put_if_absent(&key(name), &Bytes::source(bytes), &Checksum::of(bytes))
}

pub fn names(remote: &dyn Remote, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    remote::list(remote, prefix, &mut |item| {
        names.push(item.name);
        Ok(())
    })
    .unwrap();
    names
}

/// One try of each call, so that a test sees what happens.
pub fn once() -> OpenOptions {
    OpenOptions {
        retry: Some(RetryPolicy { tries_max: 1, ..RetryPolicy::NETWORK }),
        ..OpenOptions::default()
    }
}

/// Many quick tries.
pub fn patient() -> OpenOptions {
    let retry = RetryPolicy {
        tries_max: 50,
        first: Duration::from_millis(1),
        pause_max: Duration::from_millis(2),
        total_max: Duration::from_secs(600),
    };
    OpenOptions { retry: Some(retry), ..OpenOptions::default() }
}

/// A file that only its owner may read.
pub fn private_file(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A source that breaks off.
#[derive(Debug)]
struct Broken;

impl Source for Broken {
    fn len(&self) -> u64 {
        3 << 20
    }

    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        if off > 1 << 20 {
            return Err(io::Error::other("the disk here broke"));
        }
        buf.fill(1);
        Ok(buf.len())
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed).collect()
}

/// What every remote must do.
fn conforms(remote: &Arc<dyn Remote>, many: usize) {
    conforms_but(remote, many, true);
}

/// [`conforms`], of a far side that refuses bytes which are not what their checksum says, or stores them all the same.
fn conforms_but(remote: &Arc<dyn Remote>, many: usize, refuses_damage: bool) {
    let r = remote.as_ref();
    let kind = |result: Result<Put, RemoteError>| result.unwrap_err().kind;
    // Nothing is there.
    assert!(names(r, "packs/").is_empty() && names(r, "").is_empty());
    assert_eq!(r.head(&key("packs/aa/x")).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(r.get(&key("packs/aa/x"), 0..1).unwrap_err().kind, ErrorKind::NotFound);
    r.delete(&key("packs/aa/x")).unwrap();
    // Objects of all sizes, whole and in parts.
    for len in [0, 1, 1000, (1 << 20) - 1, (3 << 20) + 17] {
        let name = format!("packs/aa/{len}");
        let bytes = pattern(len, 7);
        assert_eq!(put(r, &name, &bytes).unwrap(), Put::Created);
        assert_eq!(put(r, &name, &bytes).unwrap(), Put::Same);
        assert_eq!(r.head(&key(&name)).unwrap().len, len as u64);
        assert_eq!(remote::read(r, &key(&name), 4 << 20).unwrap(), bytes);
    }
    let big = pattern((3 << 20) + 17, 7);
    let name = key("packs/aa/3145745");
    for range in [0..1, 5..5, 1_000_000..1_100_001, 3_145_744..3_145_745] {
        let (start, end) = (range.start as usize, range.end as usize);
        assert_eq!(r.get(&name, range).unwrap(), big[start..end]);
    }
    assert_eq!(r.get(&name, 3_145_744..3_145_746).unwrap_err().kind, ErrorKind::Corrupt);
    assert_eq!(remote::read(r, &name, 1000).unwrap_err().kind, ErrorKind::Corrupt, "longer than expected");
    // A name that is taken stays taken, by other bytes of the same and of another length.
    let other = pattern(big.len(), 8);
    assert_eq!(kind(put(r, name.as_str(), &other)), ErrorKind::Conflict);
    assert_eq!(kind(put(r, name.as_str(), b"short")), ErrorKind::Conflict);
    assert_eq!(remote::read(r, &name, 4 << 20).unwrap(), big);
    // What does not arrive as it should is not there.
    let wrong = r.put_if_absent(&key("packs/bb/wrong"), &Bytes::source(*b"bytes"), &Checksum::of(b"other"));
    assert!(matches!(wrong.unwrap_err().kind, ErrorKind::Corrupt | ErrorKind::Damaged));
    assert_eq!(names(r, "packs/bb/").is_empty(), refuses_damage);
    r.delete(&key("packs/bb/wrong")).unwrap();
    let broken: Arc<dyn Source> = Arc::new(Broken);
    r.put_if_absent(&key("packs/bb/broken"), &broken, &Checksum::of(b"")).unwrap_err();
    assert!(names(r, "packs/bb/").is_empty());
    // The header is replaced, by who knows what it replaces.
    put(r, "vault.json", b"first").unwrap();
    let replace = |was: &[u8], now: &[u8]| {
        r.replace(&key("vault.json"), &Checksum::of(was), &Bytes::source(now), &Checksum::of(now))
    };
    replace(b"first", b"second one").unwrap();
    assert_eq!(replace(b"first", b"third").unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(remote::read(r, &key("vault.json"), 100).unwrap(), b"second one");
    let missing = r.replace(&key("none"), &Checksum::of(b""), &Bytes::source(*b"x"), &Checksum::of(b"x"));
    assert_eq!(missing.unwrap_err().kind, ErrorKind::NotFound);
    parallel(remote);
    // Lists, of one directory and of all, more than a page of them.
    for n in 0..many {
        put(r, &format!("snapshots/{n:05}"), b"s").unwrap();
    }
    let expected: Vec<String> = (0..many).map(|n| format!("snapshots/{n:05}")).collect();
    assert_eq!(names(r, "snapshots/"), expected);
    assert_eq!(names(r, "snapshots/0000"), expected[..10]);
    let all = names(r, "");
    assert!(
        all.is_sorted() && all.contains(&"vault.json".to_string()) && all.len() > many + 5,
        "{}",
        all.len()
    );
    assert!(names(r, "nothing/").is_empty());
    // Gone is gone, and may be deleted again.
    r.delete(&name).unwrap();
    r.delete(&name).unwrap();
    assert_eq!(r.head(&name).unwrap_err().kind, ErrorKind::NotFound);
    let probe = remote::probe(r).unwrap();
    assert!(probe.is_good(), "{probe:?}");
    assert!(!names(r, "").iter().any(|name| name.contains("damaged")));
}

/// Many writers at the same time: of different names, and of one.
fn parallel(remote: &Arc<dyn Remote>) {
    let ends: Vec<Result<Put, RemoteError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8_u8)
            .map(|n| {
                scope.spawn(move || {
                    let bytes = pattern(300_000, n);
                    assert_eq!(put(remote.as_ref(), &format!("packs/cc/{n}"), &bytes).unwrap(), Put::Created);
                    put(remote.as_ref(), "packs/cc/one", &bytes)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<usize> = (0..8).filter(|&n| ends[n] == Ok(Put::Created)).collect();
    assert_eq!(winners.len(), 1, "{ends:?}");
    for (n, end) in ends.iter().enumerate().filter(|(n, _)| *n != winners[0]) {
        assert_eq!(end.as_ref().unwrap_err().kind, ErrorKind::Conflict, "{n}");
    }
    let winner = pattern(300_000, u8::try_from(winners[0]).unwrap());
    assert_eq!(remote::read(remote.as_ref(), &key("packs/cc/one"), 1 << 20).unwrap(), winner);
}

/// A vault is shipped, destroyed, and cloned from there: byte for byte the same. `flags` say how the place is reached.
fn comes_back(url: &str, flags: &[&str]) {
    use crate::ship::{World, files};
    let world = World::new();
    world.snapshot("one", &pattern(3 << 20, 1));
    world.snapshot("two", b"2");
    world.cli(&[&["remote", "add", world.vault(), "there", url][..], flags].concat()).ok();
    let tested = world.cli(&["remote", "test", world.vault(), "there"]);
    tested.ok();
    let ship = || world.cli(&["ship", world.vault(), "--to", "there", "--verify", "--json"]).json();
    let first = ship();
    assert_eq!((&first["chain_files"], &first["newest"]), (&2.into(), &2.into()), "{first}");
    assert!(first["verified"]["objects"].as_u64().unwrap() > 0, "{first}");
    world.snapshot("three", b"3");
    let second = ship();
    assert_eq!((&second["chain_files"], &second["headers"]), (&1.into(), &0.into()), "{second}");
    let before = files(&world.sandbox.vault());
    fs::remove_dir_all(world.sandbox.vault()).unwrap();
    world.cli(&[&["clone", url, world.vault()][..], flags].concat()).ok();
    assert_eq!(files(&world.sandbox.vault()), before);
    world.restores(&world.sandbox.vault());
    reads_from(&world, url, flags);
}

/// Straight from there, with nothing of the vault here: lists, single files and whole directories.
fn reads_from(world: &crate::ship::World, url: &str, flags: &[&str]) {
    fs::remove_dir_all(world.sandbox.vault()).unwrap();
    let from =
        |verb: &[&str], rest: &[&str]| world.sandbox.keyed(&[verb, &["--from", url], flags, rest].concat());
    let snapshots = from(&["snapshot", "list"], &["--json"]).json();
    assert_eq!(snapshots.as_array().unwrap().len(), 3, "{snapshots}");
    let at = |name: &str| format!("{}/{name}\n", world.sandbox.str("source"));
    for (snapshot, names) in [("latest", &["one", "three", "two"][..]), ("1", &["one"])] {
        let listed = from(&["ls"], &[&world.at(snapshot, "")]).ok();
        assert_eq!(listed, names.iter().map(|name| at(name)).collect::<String>());
    }
    assert_eq!(from(&["cat"], &[&world.at("2", "/two")]).ok(), "2");
    from(&["cat"], &[&world.at("1", "/two")]).fails(22);
    let out = world.sandbox.path("out");
    from(&["restore"], &[&world.at("latest", ""), "--to", out.to_str().unwrap()]).ok();
    crate::common::assert_same_tree(&world.sandbox.path("source"), &out);
    assert!(!world.sandbox.vault().exists());
}

/// Everything gets through a stretch of bad answers, lost answers and broken connections, and is what it was. `upstream` is
/// the port of a real server; settings are for one that stands before it, and spoils one request of `gap`.
#[cfg(feature = "_opendal")]
fn storm_passes(upstream: u16, gap: u64, settings: impl Fn(u16) -> Settings) {
    use scripted::{Reply, Scripted};
    let server = Scripted::start(move |asked| match (asked.n % gap, asked.n / gap % 5) {
        // A lock outlives a rename that may still go on.
        _ if asked.method == "MOVE" => Reply::Forward(upstream),
        (0, 0) => Reply::new("503 Service Unavailable", "Retry-After: 1\r\n", b""),
        // Who was given a lock and does not know it waits for its end.
        (0, 1) if asked.method != "LOCK" => Reply::Half(upstream),
        (0, 2) => Reply::new("500 Internal Server Error", "", b"<html>"),
        (0, 3) => Reply::Bytes(Vec::new()),
        (0, 4) => Reply::new("429 Too Many Requests", "Retry-After: 1\r\n", b""),
        _ => Reply::Forward(upstream),
    });
    let options = OpenOptions {
        retry: Some(RetryPolicy { tries_max: 1000, ..patient().retry.unwrap() }),
        ..OpenOptions::default()
    };
    let remote = remote::open(&settings(server.port), &options).unwrap();
    for n in 0..12_u8 {
        put(remote.as_ref(), &format!("packs/aa/{n}"), &pattern(50_000, n)).unwrap();
    }
    for n in 0..12_u8 {
        let bytes = remote::read(remote.as_ref(), &key(&format!("packs/aa/{n}")), 1 << 20).unwrap();
        assert_eq!(bytes, pattern(50_000, n));
    }
    assert_eq!(names(remote.as_ref(), "packs/").len(), 12);
    assert!(server.requests.load(std::sync::atomic::Ordering::SeqCst) > 5 * gap, "there was trouble");
}

/// What a hostile endpoint may list, each with what says that more follows, for a vault at `some/vault/`, and how that ends.
#[cfg(any(feature = "azblob", feature = "gcs"))]
fn hostile_listings() -> Vec<(String, &'static str, ErrorKind)> {
    // More than OpenDAL can hold of one object.
    let long = format!("some/vault/{}", "x".repeat(70_000));
    let once = [long.as_str(), "elsewhere/x", "some/vault", "/", "//x", "\u{e9}"];
    let listings = once.iter().map(|name| (*name, "", ErrorKind::Corrupt)).chain([
        // The same directory for ever.
        ("some/vault/x/", "again", ErrorKind::Corrupt),
        // The same page for ever.
        ("some/vault/x", "again", ErrorKind::Corrupt),
        // Empty pages for ever.
        ("", "again", ErrorKind::Timeout),
    ]);
    listings.map(|(name, next, kind)| (name.to_string(), next, kind)).collect()
}

fn dir_settings(path: &Path) -> Settings {
    Settings { url: format!("file://{}", path.display()), ..Settings::default() }
}

#[test]
fn a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(&remote::open(&dir_settings(dir.path()), &once()).unwrap(), 1100);
    let left: Vec<_> =
        fs::read_dir(dir.path().join(".incoming")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"], "no scratch file is left");
}

#[test]
fn a_directory_that_is_not_there_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let error = remote::open(&dir_settings(&dir.path().join("mnt")), &once()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Misconfigured);
    assert!(error.message.contains("is the disk mounted?") && !dir.path().join("mnt").exists(), "{error}");
}

#[test]
fn links_in_a_directory_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::create_dir(dir.path().join("packs")).unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("packs/aa")).unwrap();
    let remote = remote::open(&dir_settings(dir.path()), &once()).unwrap();
    remote.get(&key("packs/aa/secret"), 0..6).unwrap_err();
    put(remote.as_ref(), "packs/aa/new", b"x").unwrap_err();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(names(remote.as_ref(), "packs/"), ["packs/aa"], "the link itself, nothing behind it");
}
