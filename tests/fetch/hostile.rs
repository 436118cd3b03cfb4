//! Remotes that are damaged, that lie, or that don't answer: named, bounded, and never taken for the truth.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use strongroom::env::{Env, TestEnv};
use strongroom::fetch::Ahead;
use strongroom::remote::{
    self, Checksum, ErrorKind, Fault, FaultyRemote, Features, Key, Listed, Meta, Op, OpenOptions, Page, Put,
    Remote, RemoteError, Settings, Source, Times,
};
use strongroom::snapshot::tree::TreeReader;
use strongroom::store::error::StoreError;
use strongroom::store::packs::ChunkSource;

use super::{Reader, World, from_url, s3_flags};
use crate::common::{Rng, assert_same_tree};
use crate::remote::s3_server::{Server, Trouble};
use crate::remote::{once, s3_settings};

/// A vault at `usb` whose three files have packs of their own, in order.
fn three_files() -> (World, Vec<PathBuf>) {
    let world = World::new();
    let mut rng = Rng::new(3);
    let mut known = BTreeSet::new();
    let mut packs = Vec::new();
    for name in ["one", "two", "three"] {
        fs::write(world.source(name), rng.bytes(400_000)).unwrap();
        world.snapshot();
        world.ship();
        let new = world.data_packs(&known);
        assert_eq!(new.len(), 1);
        known.extend(new.iter().cloned());
        packs.extend(new);
    }
    (world, packs)
}

/// Restores snapshot 3: every file but `two`, which is named with the pack that it stands in.
#[track_caller]
fn all_but_two_restore(world: &World, pack: &Path) {
    all_but_two_restore_with(world, pack.file_name().unwrap().to_str().unwrap());
}

/// [`all_but_two_restore`], with these words in the message.
#[track_caller]
fn all_but_two_restore_with(world: &World, name: &str) {
    let to = tempfile::tempdir_in(world.sandbox.path("")).unwrap();
    let out = to.path().join("out");
    let target = world.at("3", "");
    let rest = [&target, "--to", out.to_str().unwrap()];
    let said = world.from(&["restore"], &from_url(&world.usb_url()), &rest).fails(3);
    assert!(said.contains("two: ") && said.contains(name), "{said}");
    for file in ["one", "three"] {
        assert_eq!(fs::read(out.join(file)).unwrap(), fs::read(world.source(file)).unwrap(), "{file}");
    }
    assert!(!out.join("two").exists(), "half a file is worse than none");
}

#[test]
fn a_damaged_pack_costs_only_what_is_in_it() {
    let (world, packs) = three_files();
    let (path, bytes) = (&packs[1], fs::read(&packs[1]).unwrap());
    // In the middle, in the header, in the footer's end.
    for at in [bytes.len() / 2, 40, bytes.len() - 10] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(path, damaged).unwrap();
        all_but_two_restore(&world, path);
    }
    for len in [0, 1000, 100_000, bytes.len() - 1] {
        fs::write(path, &bytes[..len]).unwrap();
        all_but_two_restore(&world, path);
    }
    // Another pack of this very vault under its name: it is sound, only the chunk is in none.
    fs::write(path, fs::read(&packs[0]).unwrap()).unwrap();
    all_but_two_restore_with(&world, "not found: chunk");
    // One of the size that no pack has.
    fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
    all_but_two_restore(&world, path);
    fs::remove_file(path).unwrap();
    all_but_two_restore(&world, path);
    fs::write(path, &bytes).unwrap();
    world.restores(&from_url(&world.usb_url()), &world.at("latest", ""));
}

/// Listed, but not there when it is asked for; and bytes that change on the way.
#[test]
fn a_remote_that_lies_is_found_out() {
    let (world, packs) = three_files();
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let name = packs[1].file_name().unwrap().to_str().unwrap().to_string();
    for fault in [Fault::Before(ErrorKind::NotFound), Fault::Before(ErrorKind::Corrupt), Fault::Lie] {
        let lies = name.clone();
        let faulty = FaultyRemote::new(remote::open(&settings, &once()).unwrap(), move |_, op, key| {
            (op == Op::Get && key.contains(&lies)).then_some(fault)
        });
        let reader = Reader::over(Arc::new(faulty), Arc::default(), |_| {});
        let (packs, entry) = reader.open(&world.sandbox.str("source"), true);
        let tree = TreeReader::new(packs.as_ref() as &dyn ChunkSource);
        for file in ["one", "two", "three"] {
            let found = tree.resolve(&entry, file.as_bytes()).unwrap();
            let mut bytes = vec![0; 400_000];
            match (file, tree.read(&found.content, found.size, 0, &mut bytes)) {
                ("two", Err(error)) => assert!(error.to_string().contains(&name), "{error}"),
                ("two", Ok(_)) => panic!("{fault:?} was believed"),
                (_, read) => {
                    assert_eq!(read.unwrap(), 400_000);
                    assert_eq!(bytes, fs::read(world.source(file)).unwrap());
                }
            }
        }
    }
}

/// Makes the `n`-th name of a listing.
type Names = fn(u64) -> String;

/// A remote that lists what somebody made up, without end.
#[derive(Debug)]
struct Endless {
    inner: Arc<dyn Remote>,
    prefix: &'static str,
    name: Names,
    pages: AtomicU64,
}

impl Remote for Endless {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn put_if_absent(&self, _: &Key, _: &Arc<dyn Source>, _: &Checksum) -> remote::Result<Put> {
        panic!("nothing is written")
    }

    fn replace(&self, _: &Key, _: &Checksum, _: &Arc<dyn Source>, _: &Checksum) -> remote::Result<()> {
        panic!("nothing is written")
    }

    fn get(&self, key: &Key, range: Range<u64>) -> remote::Result<Vec<u8>> {
        self.inner.get(key, range)
    }

    fn head(&self, key: &Key) -> remote::Result<Meta> {
        self.inner.head(key)
    }

    fn list_page(&self, prefix: &str, after: &str) -> remote::Result<Page> {
        if prefix != self.prefix {
            return self.inner.list_page(prefix, after);
        }
        let page = self.pages.fetch_add(1, Ordering::SeqCst);
        let item = |n| Listed { name: (self.name)(n), len: u64::MAX };
        Ok(Page { items: (page * 1000..(page + 1) * 1000).map(item).collect(), more: true })
    }

    fn delete(&self, _: &Key) -> remote::Result<()> {
        panic!("nothing is deleted")
    }

    fn features(&self) -> remote::Result<Features> {
        self.inner.features()
    }
}

#[test]
fn a_listing_without_end_is_an_error_and_takes_no_memory() {
    let (world, _) = three_files();
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let chain_file = |n| format!("snapshots/{:010}-{}", n + 1, "ab".repeat(32));
    let cases: [(&str, Names); 3] = [
        ("packs/", |n| format!("packs/ff/ff{n:062x}")),
        ("snapshots/", |n| format!("snapshots/{n:020}")),
        ("snapshots/", chain_file),
    ];
    for (prefix, name) in cases {
        let inner = remote::open(&settings, &once()).unwrap();
        let endless = Arc::new(Endless { inner, prefix, name, pages: AtomicU64::new(0) });
        let reader = Reader::over(Arc::clone(&endless) as Arc<dyn Remote>, Arc::default(), |_| {});
        reader.disk.only_packs(BTreeSet::new());
        let error = match prefix {
            "packs/" => reader.disk.packs().unwrap_err(),
            _ => {
                let error = strongroom::disk::Disk::list(reader.disk.as_ref(), "snapshots").unwrap_err();
                strongroom::fetch::remote_cause(&error).unwrap().clone()
            }
        };
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        assert!(error.message.contains(prefix), "{error}");
        assert!(endless.pages.load(Ordering::SeqCst) < 1100);
    }
}

/// A few forged chain files are said, and change nothing.
#[test]
fn files_that_nobody_signed_are_said_and_passed_over() {
    let (world, _) = three_files();
    let forged = format!("0000000009-{}", "ab".repeat(32));
    fs::write(world.usb().join("snapshots").join(&forged), "not signed by anybody").unwrap();
    let huge = format!("0000000010-{}", "cd".repeat(32));
    fs::File::create(world.usb().join("snapshots").join(&huge)).unwrap().set_len(1 << 40).unwrap();
    let done = world.from(&["ls"], &from_url(&world.usb_url()), &[&world.at("latest", "")]);
    assert!(done.stderr.contains(&forged) && done.stderr.contains(&huge), "{}", done.stderr);
    assert_eq!(done.ok().lines().count(), 3);
}

/// Every request in turn is never answered: each time there is an end, and an error that says so.
#[test]
fn a_server_that_stalls_is_given_up() {
    let (world, _) = three_files();
    let server = Server::start();
    let settings = s3_settings(&server, &world.sandbox.path(""));
    copy_to(&world, &server);
    let times = Times { answer: Duration::from_millis(250), ..Times::default() };
    for stalls in ["packs/", "snapshots/"] {
        server.set_trouble(move |_, _, key| key.contains(stalls).then_some(Trouble::Stall));
        let options = OpenOptions { times, ..once() };
        let reader = Reader::new(&settings, options, |fetch| fetch.patience = Duration::from_millis(500));
        let error = match stalls {
            "packs/" => reader.disk.packs().unwrap_err(),
            _ => {
                let error = strongroom::disk::Disk::list(reader.disk.as_ref(), "snapshots").unwrap_err();
                strongroom::fetch::remote_cause(&error).unwrap().clone()
            }
        };
        assert_eq!(error.kind, ErrorKind::Timeout, "{error}");
    }
    // As a user sees it: while packs are looked into, and in the middle of a restore.
    let flags = [from_url(&settings.url), s3_flags(&settings)].concat();
    let out = world.sandbox.str("out");
    let target = world.at("latest", "");
    let rest = [&target, "--to", &out, "--remote-timeout", "1s"];
    server.set_trouble(|_, op, key| (op == "get" && key.contains("packs/")).then_some(Trouble::Stall));
    let said = world.from(&["restore"], &flags, &rest).fails(24);
    assert!(said.contains("packs/") && said.contains("--remote-timeout"), "{said}");
    server.calm();
    world.restores(&flags, &target);
}

/// Puts what is at `usb` into a bucket.
fn copy_to(world: &World, server: &Server) {
    for file in world.sandbox.sh("cd usb && find . -type f -not -path '*/.incoming/*'").ok().lines() {
        let name = file.trim_start_matches("./");
        server.plant(&format!("some/vault/{name}"), &fs::read(world.usb().join(name)).unwrap());
    }
}

/// Answers that are lost, refused or cut: they are asked for again, and every byte is right.
#[test]
fn a_storm_of_troubles_passes() {
    let (world, _) = three_files();
    let server = Server::start();
    let settings = s3_settings(&server, &world.sandbox.path(""));
    copy_to(&world, &server);
    server.set_trouble(|n, op, _| match n % 5 {
        0 => Some(Trouble::Before("SlowDown", 503)),
        2 if op == "get" => Some(Trouble::Cut),
        3 => Some(Trouble::Before("InternalError", 500)),
        _ => None,
    });
    let reader = Reader::new(&settings, crate::remote::patient(), |_| {});
    let (packs, entry) = reader.open(&world.sandbox.str("source"), true);
    let tree = TreeReader::new(packs.as_ref() as &dyn ChunkSource);
    for file in ["one", "two", "three"] {
        let found = tree.resolve(&entry, file.as_bytes()).unwrap();
        let mut bytes = vec![0; 400_000];
        assert_eq!(tree.read(&found.content, found.size, 0, &mut bytes).unwrap(), 400_000);
        assert_eq!(bytes, fs::read(world.source(file)).unwrap());
    }
}

/// Lets the data of a pack be read so often (header, trailer and footer are three times), then calls `then`.
fn after_its_ends<F>(pack: &Path, then: F) -> impl Fn(&str, &str) -> bool + Send + Sync + use<F>
where
    F: Fn() + Send + Sync + 'static,
{
    let (name, gets) = (pack.file_name().unwrap().to_str().unwrap().to_string(), AtomicU64::new(0));
    move |op, key| {
        let data = op == "get" && key.contains(&name) && gets.fetch_add(1, Ordering::SeqCst) >= 3;
        if data {
            then();
        }
        data
    }
}

/// The remote goes away in the middle of a restore: it ends there, and does not try every file in turn.
#[test]
fn a_remote_that_is_lost_ends_a_restore() {
    let (world, packs) = three_files();
    // A directory that is begun before, with other names of what comes.
    fs::create_dir(world.source("dir")).unwrap();
    fs::hard_link(world.source("one"), world.source("dir/one")).unwrap();
    fs::hard_link(world.source("two"), world.source("dir/two")).unwrap();
    world.sandbox.tool("touch", ["-d", "2001-02-03", &world.sandbox.str("source/dir")]).ok();
    world.snapshot();
    world.ship();
    let server = Server::start();
    let settings = s3_settings(&server, &world.sandbox.path(""));
    copy_to(&world, &server);
    let is_dead = AtomicBool::new(false);
    let (at_data, first) = (after_its_ends(&packs[1], || ()), world.sandbox.path("out/dir/one"));
    let whole = fs::metadata(world.source("one")).unwrap().len();
    server.set_trouble(move |_, op, key| {
        if at_data(op, key) && !is_dead.load(Ordering::SeqCst) {
            // The loss comes between two files.
            if fs::metadata(&first).map_or(0, |found| found.len()) < whole {
                return Some(Trouble::NotYet);
            }
            is_dead.store(true, Ordering::SeqCst);
        }
        is_dead.load(Ordering::SeqCst).then_some(Trouble::Before("InternalError", 500))
    });
    let flags = [from_url(&settings.url), s3_flags(&settings)].concat();
    let (out, target) = (world.sandbox.str("out"), world.at("4", ""));
    let rest = [&target, "--to", &out, "--remote-timeout", "10s", "--jobs", "1"];
    let said = world.from(&["restore"], &flags, &rest).fails(24);
    assert!(said.contains("the remote was lost") && said.contains("same command with --overwrite"), "{said}");
    assert!(!said.contains("two: ") && !said.contains("three: "), "no file is to blame: {said}");
    for name in ["one", "two", "three"] {
        let restored = fs::read(world.sandbox.path("out").join(name));
        assert!(restored.is_err() || restored.unwrap() == fs::read(world.source(name)).unwrap(), "{name}");
    }
    assert!(world.sandbox.path("out/dir/one").exists() && !world.sandbox.path("out/dir/two").exists());
    // It is back, and what was said makes all of it right: links, and times of directories.
    server.calm();
    world.from(&["restore"], &flags, &[&rest[..3], &["--overwrite"]].concat()).ok();
    // The directory itself was there already, so it keeps the time that it got.
    world.sandbox.sh("touch -r source out").ok();
    assert_same_tree(&world.sandbox.path("source"), &world.sandbox.path("out"));
}

/// Who looks ahead for a reader gives up with the first answer that does not come: each other one would be waited for, and
/// the reader waits for the beginning.
#[test]
fn nobody_looks_ahead_at_a_remote_that_is_lost() {
    let world = World::new();
    let mut rng = Rng::new(11);
    for dir in 0..60 {
        fs::create_dir(world.source(&dir.to_string())).unwrap();
        for file in 0..40 {
            // It stands in the directory: trees that are fetched in several pieces.
            fs::write(world.source(&format!("{dir}/{file}")), rng.bytes(120)).unwrap();
        }
    }
    world.snapshot();
    world.ship();
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let (dead, gets) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (is_dead, counts) = (Arc::clone(&dead), Arc::clone(&gets));
    let faulty = FaultyRemote::new(remote::open(&settings, &once()).unwrap(), move |_, op, _| {
        counts.fetch_add(u64::from(op == Op::Get), Ordering::SeqCst);
        is_dead.load(Ordering::SeqCst).then_some(Fault::Before(ErrorKind::Unreachable))
    });
    let reader = Reader::over(Arc::new(faulty), Arc::default(), |_| ());
    let (packs, entry) = reader.open(&world.sandbox.str("source"), false);
    dead.store(true, Ordering::SeqCst);
    let before = gets.load(Ordering::SeqCst);
    let ahead = Ahead::start(&packs, &entry).unwrap();
    let of_planner = gets.load(Ordering::SeqCst) - before;
    assert!((1..=4).contains(&of_planner), "{of_planner} requests");
    // The reader is told.
    let failed = TreeReader::new(&ahead).walk(&entry).filter(Result::is_err).count();
    assert!(failed > 10, "{failed} directories");
}

/// A right that is taken away, or a bucket that is deleted, is no matter of single objects: it ends there, too.
#[test]
fn a_remote_that_is_closed_halfway_ends_a_restore() {
    for (code, status) in [("AccessDenied", 403), ("NoSuchBucket", 404)] {
        let (world, packs) = three_files();
        let server = Server::start();
        let settings = s3_settings(&server, &world.sandbox.path(""));
        copy_to(&world, &server);
        let closed = Arc::new(AtomicBool::new(false));
        let (closes, is_closed) = (Arc::clone(&closed), Arc::clone(&closed));
        let at_data = after_its_ends(&packs[1], move || closes.store(true, Ordering::SeqCst));
        server.set_trouble(move |_, op, key| {
            (at_data(op, key) || is_closed.load(Ordering::SeqCst)).then_some(Trouble::Before(code, status))
        });
        let flags = [from_url(&settings.url), s3_flags(&settings)].concat();
        let (out, target) = (world.sandbox.str("out"), world.at("3", ""));
        let rest = [&target, "--to", &out, "--remote-timeout", "1s", "--jobs", "1"];
        let said = world.from(&["restore"], &flags, &rest).fails(24);
        assert!(said.contains("the remote was lost") && !said.contains("two: "), "{code}: {said}");
    }
}

/// Many objects that can't be read don't cost a question each; and what fails here is not the remote's fault.
#[test]
fn whether_a_remote_is_lost_is_asked_once_for_many_objects() {
    let (world, _) = three_files();
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let (asked, gone) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (counts, is_gone) = (Arc::clone(&asked), Arc::clone(&gone));
    let faulty = FaultyRemote::new(remote::open(&settings, &once()).unwrap(), move |_, op, key| {
        assert_eq!(op, Op::Head);
        counts.fetch_add(u64::from(key == "vault.json"), Ordering::SeqCst);
        is_gone.load(Ordering::SeqCst).then_some(Fault::Before(ErrorKind::Denied))
    });
    let env = Arc::new(TestEnv::new(1));
    let reader =
        Reader::over(Arc::new(faulty), Arc::default(), |fetch| fetch.env = Arc::clone(&env) as Arc<dyn Env>);
    let is_lost = |kind| {
        let source = std::io::Error::other(RemoteError::new(kind, "as the test wants it"));
        reader.disk.is_lost(&StoreError::Io { what: "reading".into(), source })
    };
    let asked = || asked.load(Ordering::SeqCst);
    for kind in [ErrorKind::Denied, ErrorKind::Misconfigured, ErrorKind::Unsupported, ErrorKind::NotFound] {
        assert!((0..50).all(|_| !is_lost(kind)), "{kind:?}");
    }
    assert_eq!(asked(), 1);
    env.advance(Duration::from_secs(60));
    assert!(!is_lost(ErrorKind::Denied) && asked() == 2);
    // These were waited for already.
    assert!(!is_lost(ErrorKind::Timeout) && asked() == 3);
    assert!(!is_lost(ErrorKind::Corrupt) && !is_lost(ErrorKind::Archived) && asked() == 3);
    assert!(is_lost(ErrorKind::ExpiredCredentials) && is_lost(ErrorKind::Local) && asked() == 3);
    gone.store(true, Ordering::SeqCst);
    assert!(
        is_lost(ErrorKind::Unavailable) && is_lost(ErrorKind::Denied),
        "what was believed is not any more"
    );
    // The header's copy does as well.
    gone.store(false, Ordering::SeqCst);
    fs::remove_file(world.usb().join("vault.json")).unwrap();
    assert!(!is_lost(ErrorKind::Denied));
    fs::remove_file(world.usb().join("vault.json.bak")).unwrap();
    assert!(is_lost(ErrorKind::Unavailable));
}

/// One object that can't be read, however often it is tried, costs only the files that stand in it.
#[test]
fn one_object_that_fails_for_good_ends_nothing() {
    for trouble in [Trouble::Before("InternalError", 500), Trouble::Before("InvalidObjectState", 403)] {
        let (world, packs) = three_files();
        let server = Server::start();
        let settings = s3_settings(&server, &world.sandbox.path(""));
        copy_to(&world, &server);
        let at_data = after_its_ends(&packs[1], || {});
        server.set_trouble(move |_, op, key| at_data(op, key).then_some(trouble));
        let flags = [from_url(&settings.url), s3_flags(&settings)].concat();
        let (out, target) = (world.sandbox.str("out"), world.at("3", ""));
        let said =
            world.from(&["restore"], &flags, &[&target, "--to", &out, "--remote-timeout", "1s"]).fails(3);
        assert!(said.contains("two: "), "{said}");
        assert_eq!(
            said.contains("it is archived"),
            trouble != Trouble::Before("InternalError", 500),
            "{said}"
        );
        for name in ["one", "three"] {
            let restored = fs::read(world.sandbox.path("out").join(name)).unwrap();
            assert_eq!(restored, fs::read(world.source(name)).unwrap(), "{name}");
        }
        assert!(!world.sandbox.path("out/two").exists());
    }
}

/// A snapshot file that is listed and can't be read is named; what does not need it is there.
#[test]
fn a_snapshot_file_that_can_not_be_read_hides_no_other() {
    let (world, _) = three_files();
    let server = Server::start();
    let settings = s3_settings(&server, &world.sandbox.path(""));
    copy_to(&world, &server);
    let flags = [from_url(&settings.url), s3_flags(&settings)].concat();
    for (trouble, word) in [
        (Trouble::Before("NoSuchKey", 404), "NoSuchKey"),
        (Trouble::Before("InvalidObjectState", 403), "it is archived"),
        (Trouble::Before("AccessDenied", 403), "AccessDenied"),
    ] {
        let at = |op: &str, key: &str| op == "get" && key.contains("snapshots/0000000002-");
        server.set_trouble(move |_, op, key| at(op, key).then_some(trouble));
        let done = world.from(&["snapshot", "list"], &flags, &["--json"]);
        assert!(
            done.stderr.contains("snapshots/0000000002-") && done.stderr.contains(word),
            "{}",
            done.stderr
        );
        let list = done.json();
        let seqs: Vec<u64> = list.as_array().unwrap().iter().map(|s| s["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, [1, 3], "{list}");
        let out = tempfile::tempdir_in(world.sandbox.path("")).unwrap();
        let to = out.path().join("out");
        let target = world.at("latest", "");
        world.from(&["restore"], &flags, &[&target, "--to", to.to_str().unwrap()]).ok();
        assert_eq!(fs::read(to.join("one")).unwrap(), fs::read(world.source("one")).unwrap());
        assert!(!to.join("two").exists(), "what the third snapshot needs is not known without the second");
    }
    // None of them: that is no vault without snapshots.
    server.set_trouble(|_, op, key| {
        (op == "get" && key.contains("snapshots/")).then_some(Trouble::Before("AccessDenied", 403))
    });
    world.from(&["snapshot", "list"], &flags, &[]).fails(24);
}

/// Everything was moved into an archive: the message says so, and what to do.
#[test]
fn an_archive_is_told_from_a_refusal() {
    let (world, _) = three_files();
    let server = Server::start();
    let settings = s3_settings(&server, &world.sandbox.path(""));
    copy_to(&world, &server);
    let flags = [from_url(&settings.url), s3_flags(&settings)].concat();
    server.set_trouble(|_, op, key| {
        (op == "get" && key.contains("packs/")).then_some(Trouble::Before("InvalidObjectState", 403))
    });
    let out = world.sandbox.str("out");
    let said = world.from(&["restore"], &flags, &["latest:/", "--to", &out]).fails(24);
    assert!(said.contains("it is archived") && said.contains("restore-object"), "{said}");
}

/// What is damaged at a remote is not looked for in a directory here.
#[test]
fn advice_fits_the_place() {
    let (world, packs) = three_files();
    let mut bytes = fs::read(&packs[1]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&packs[1], bytes).unwrap();
    let target = world.at("latest", "/two");
    let said = world.from(&["cat"], &from_url(&world.usb_url()), &[&target]).fails(18);
    assert!(!said.contains("fsck.strongroom") && said.contains("`strongroom clone`"), "{said}");
}
