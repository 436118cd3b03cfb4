//! What shipping and verifying found is said, whatever fails afterwards; and rubbish hides nothing.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use strongroom::remote::{self, ErrorKind, Fault, FaultyRemote, Op, Remote, Settings};
use strongroom::ship::{Jobs, Report, ShipError, ShipOptions, Verified, ship_into, verify_into};

use crate::common::Finished;
use crate::remote::s3_server::{Server, Trouble};
use crate::remote::{once, pattern, s3_settings};
use crate::ship::{World, files, newest_complete, ship_to};

fn usb(world: &World) -> Arc<dyn Remote> {
    remote::open(&Settings { url: world.usb_url(), ..Settings::default() }, &once()).unwrap()
}

/// A server as the remote `s3` of a vault.
fn with_server(world: &World) -> Server {
    let server = Server::start();
    world.add_s3(&server);
    server
}

fn first_line(done: &Finished) -> Value {
    serde_json::from_str(done.stdout.lines().next().unwrap_or_else(|| panic!("{done:?}"))).unwrap()
}

/// Bytes with a bit that is not as it was.
fn damage(server: &Server, key: &str) {
    let mut bytes = server.stored(key).unwrap();
    bytes[9] ^= 1;
    server.plant(key, &bytes);
}

#[test]
fn what_verifying_found_is_said_although_it_did_not_come_to_its_end() {
    let world = World::new();
    world.snapshot("one", &pattern(200_000, 1));
    let server = with_server(&world);
    world.cli(&["ship", world.vault(), "--to", "s3"]).ok();
    let pack = server.keys().into_iter().find(|key| key.contains("/packs/")).unwrap();
    damage(&server, &pack);
    // Packs are looked at before snapshots, one at a time.
    server.set_trouble(|_, op, key| {
        (op == "head" && key.contains("/snapshots/")).then_some(Trouble::Before("AccessDenied", 403))
    });
    let verify = ["ship", world.vault(), "--to", "s3", "--verify", "--jobs", "1"];
    let done = world.cli(&[&verify[..], &["--json"]].concat());
    let line = first_line(&done);
    assert_eq!((done.code, &line["verified"]["wrong_total"]), (25, &1.into()), "{done:?}");
    assert!(line["error"].as_str().unwrap().contains("looking at snapshots/"), "{line}");
    assert!(line["packs_there"].as_u64().unwrap() > 0, "what shipping did is there as well: {line}");
    let said = world.cli(&verify).fails(25);
    let name = pack.rsplit('/').next().unwrap();
    assert!(said.contains(name) && said.contains("1 objects there are not what was shipped"), "{said}");
    assert!(said.contains("looking at snapshots/"), "and why it ended: {said}");
    // Without anything wrong it is a failure like others.
    server.plant(&pack, &fs::read(world.sandbox.vault().join(&pack["some/vault/".len()..])).unwrap());
    world.cli(&verify).fails(24);
}

#[test]
fn what_was_sent_is_said_although_the_rest_failed() {
    let world = World::new();
    world.snapshot("one", &pattern(200_000, 1));
    let server = with_server(&world);
    world.cli(&["ship", world.vault(), "--to", "s3"]).ok();
    for n in 2..5_u8 {
        world.snapshot(&format!("file{n}"), &pattern(200_000, n));
    }
    // The third snapshot's file is refused.
    server.set_trouble(|_, op, key| {
        let refused = op == "put" && key.contains("/snapshots/0000000003-");
        refused.then_some(Trouble::Before("AccessDenied", 403))
    });
    let done = world.cli(&["ship", world.vault(), "--to", "s3", "--json"]);
    let line = first_line(&done);
    assert_eq!((done.code, &line["chain_files"], &line["newest"]), (24, &1.into(), &2.into()), "{done:?}");
    assert!(line["packs"].as_u64().unwrap() >= 2 && line["error"].is_string(), "{line}");
    // Damage here, found in the same run, is said too.
    let known = server.keys();
    let new = files(&world.sandbox.vault());
    world.snapshot("five", &pattern(200_000, 5));
    let packs = files(&world.sandbox.vault()).into_iter().filter(|file| !new.contains(file));
    let (name, mut bytes) = packs.into_iter().find(|(name, _)| name.starts_with("packs/")).unwrap();
    assert!(!known.contains(&name));
    bytes[100] ^= 1;
    fs::write(world.sandbox.vault().join(&name), bytes).unwrap();
    let said = world.cli(&["ship", world.vault(), "--to", "s3"]).fails(24);
    assert!(
        said.contains(&format!("{name} is damaged"))
            && said.contains("not allowed") | said.contains("AccessDenied"),
        "{said}"
    );
    // When the rest works, that is what is left.
    server.calm();
    world.cli(&["ship", world.vault(), "--to", "s3"]).fails(18);
}

/// What is remembered of a remote can't be written: all was shipped, and that is said.
#[test]
fn what_was_shipped_is_said_although_it_can_not_be_remembered() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    world.ship();
    world.snapshot("two", &pattern(100_000, 2));
    // A directory where the new file would be made.
    let in_the_way = world.sandbox.vault().join("live/remotes/usb.json.tmp");
    fs::create_dir(&in_the_way).unwrap();
    let mut bytes = files(&world.usb()).into_iter().find(|(name, _)| name.starts_with("packs/")).unwrap();
    bytes.1[50] ^= 1;
    fs::write(world.usb().join(&bytes.0), &bytes.1).unwrap();
    let done = world.cli(&["ship", world.vault(), "--verify", "--json"]);
    let line = first_line(&done);
    assert_eq!(
        (done.code, &line["chain_files"], &line["verified"]["wrong_total"]),
        (25, &1.into(), &1.into()),
        "{done:?}"
    );
    assert!(line["error"].as_str().unwrap().contains("usb.json"), "{line}");
    let usb = world.cli(&["status", world.vault(), "--json"]).fails_json(25)["remotes"][0].clone();
    assert!(usb["verified"].is_string(), "the verification came to its end: {usb}");
    assert!(usb["damaged_there"] == 1 && usb["error"].as_str().unwrap().contains("usb.json"), "{usb}");
    bytes.1[50] ^= 1;
    fs::write(world.usb().join(&bytes.0), &bytes.1).unwrap();
    let done = world.cli(&["ship", world.vault()]);
    assert!(done.code == 20 && done.stdout.contains("snapshot 2 is the newest"), "{done:?}");
    fs::remove_dir(&in_the_way).unwrap();
    world.ship();
}

/// A verification takes hours. What another process finds meanwhile is not written over.
#[test]
fn a_long_verification_hides_no_alarm_of_others() {
    let world = World::new();
    world.snapshot("one", &pattern(200_000, 1));
    let server = with_server(&world);
    let ship = ["ship", world.vault(), "--to", "s3"];
    world.cli(&ship).ok();
    let path = world.sandbox.vault().join("live/remotes/s3.last.json");
    let disk = world.disk();
    server.set_trouble(move |_, op, key| {
        if op == "head" && key.contains("/packs/") {
            // Whoever shipped in between holds the right to.
            let _held = strongroom::ship::lock_remote(disk.as_ref(), "s3", "another").ok()?;
            let mut last: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            last["is_alarm"] = true.into();
            last["error"] = "found by another".into();
            fs::write(&path, last.to_string()).unwrap();
        }
        None
    });
    world.cli(&[&ship[..], &["--verify"]].concat()).ok();
    let status = world.cli(&["status", world.vault(), "--json"]).fails_json(25);
    let remotes = status["remotes"].as_array().unwrap();
    let s3 = remotes.iter().find(|remote| remote["name"] == "s3").unwrap();
    assert_eq!((&s3["error"], &s3["is_alarm"]), (&"found by another".into(), &true.into()), "{s3}");
    assert!(s3["verified"].is_string() && s3["damaged_there"] == 0, "{s3}");
}

/// Output that nobody takes any more is a failure, and none of the verification.
#[test]
fn a_verification_counts_although_nobody_listens() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    let command = format!(
        "{} ship {} --verify --json >/dev/full",
        world.sandbox.strongroom().get_program().to_str().unwrap(),
        world.vault()
    );
    assert_ne!(world.sandbox.sh(&command).code, 0);
    let usb = world.cli(&["status", world.vault(), "--json"]).json()["remotes"][0].clone();
    assert!(usb["verified"].is_string() && usb["error"].is_null(), "{usb}");
}

/// A pack can't be sent: its snapshot is not, and neither is what comes after it.
#[test]
fn no_snapshot_follows_a_pack_that_failed() {
    let world = World::new();
    for n in 1..4_u8 {
        world.snapshot(&format!("file{n}"), &pattern(100_000, n));
    }
    let disk = world.disk();
    let header = strongroom::store::header::load(disk.as_ref()).unwrap().parsed.header;
    let chain = strongroom::snapshot::chain::Chain::load(disk.as_ref(), &header).unwrap();
    let before = chain.needed_packs(1).unwrap();
    for pack in chain.needed_packs(2).unwrap().difference(&before) {
        drop(fs::remove_dir_all(world.usb()));
        fs::create_dir(world.usb()).unwrap();
        let path = strongroom::format::pack::pack_path(pack);
        let remote: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), move |_, op, name| {
            (op == Op::Put && name == path).then_some(Fault::Before(ErrorKind::Full))
        }));
        let mut report = Report::default();
        let options = ShipOptions { jobs: Jobs::Fixed(1), ..ShipOptions::default() };
        ship_into(&disk, &remote, None, &options, &|_| {}, &mut report).unwrap_err();
        let sent = files(&world.usb()).iter().filter(|(name, _)| name.starts_with("snapshots/")).count();
        assert_eq!((sent, report.chain_files, report.newest), (1, 1, Some(1)), "{pack:?}");
        assert_eq!(newest_complete(&world.usb()), 1);
    }
}

/// Any number of wrong objects is remembered in a small file, and counted.
#[test]
fn any_number_of_wrong_objects_is_remembered() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    const MANY: u32 = 1600;
    for n in 0..MANY {
        let name = blake3::hash(&n.to_le_bytes()).to_hex().to_string();
        for (top, bytes) in [(world.usb(), [0xff; 4]), (world.sandbox.vault(), n.to_le_bytes())] {
            fs::create_dir_all(top.join(format!("packs/{}", &name[..2]))).unwrap();
            fs::write(top.join(format!("packs/{}/{name}", &name[..2])), bytes).unwrap();
        }
    }
    let look = |remote: &Arc<dyn Remote>| {
        let mut verified = Verified::default();
        let ended = verify_into(&world.disk(), remote, "usb", 4, &|_| {}, &mut verified);
        (ended.is_ok(), verified)
    };
    let breaks: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), |_, op, name| {
        (op == Op::Head && name.starts_with("snapshots/")).then_some(Fault::Before(ErrorKind::Denied))
    }));
    let (ended, first) = look(&breaks);
    assert!(
        !ended && first.wrong.len() == 1000 && first.wrong_total >= u64::from(MANY) - 8,
        "{}",
        first.wrong_total
    );
    let path: PathBuf = world.sandbox.vault().join("live/remotes/usb.verify.json");
    let remembered = fs::read(&path).unwrap();
    assert!(remembered.len() < 1 << 20, "{}", remembered.len());
    let (ended, second) = look(&usb(&world));
    assert!(ended && second.resumed && second.wrong_total >= u64::from(MANY), "{}", second.wrong_total);
    assert!(second.wrong_total == u64::from(MANY) && !path.exists(), "{}", second.wrong_total);
    // One that is too long to be read, from whatever version: it begins anew.
    let long = serde_json::json!({ "url": world.usb_url(), "after": "packs/", "wrong": vec!["x".repeat(100); 30_000] });
    fs::write(&path, long.to_string()).unwrap();
    let (ended, third) = look(&usb(&world));
    assert!(ended && !third.resumed && third.wrong_total == u64::from(MANY));
}

/// Another place under the same name is looked at from its beginning.
#[test]
fn a_verification_goes_on_at_the_same_place_only() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    let settings_of = |server: &Server| s3_settings(server, &world.sandbox.path(""));
    let servers = [Server::start(), Server::start()];
    let remotes = servers.each_ref().map(|server| remote::open(&settings_of(server), &once()).unwrap());
    for remote in &remotes {
        ship_to(&world.disk(), remote, None).unwrap();
    }
    assert_eq!(remotes[0].url(), remotes[1].url());
    assert_ne!(remotes[0].place(), remotes[1].place());
    let path = world.sandbox.vault().join("live/remotes/s3.verify.json");
    let position = serde_json::json!(
        { "url": remotes[0].url(), "place": remotes[0].place(), "after": "packs/zz", "wrong": [] });
    let resumed = |remote: &Arc<dyn Remote>| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, position.to_string()).unwrap();
        let mut verified = Verified::default();
        verify_into(&world.disk(), remote, "s3", 1, &|_| {}, &mut verified).unwrap();
        verified.resumed
    };
    assert!(resumed(&remotes[0]) && !resumed(&remotes[1]));
}

/// Puts names of rubbish that look like snapshots.
fn litter(world: &World, seqs: impl Iterator<Item = u64>) -> usize {
    let mut count = 0;
    for (n, seq) in seqs.enumerate() {
        let id = blake3::hash(format!("{seq} {n}").as_bytes()).to_hex();
        fs::write(world.usb().join(format!("snapshots/{seq:010}-{id}")), b"rubbish").unwrap();
        count += 1;
    }
    count
}

/// Another history of the vault has its second snapshot at the remote, among any number of names.
fn with_a_stranger() -> (World, PathBuf) {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    world.sandbox.sh("cp -r encrypted clone && rm -r clone/live").ok();
    fs::write(world.sandbox.path("source/theirs"), "theirs").unwrap();
    let clone = world.sandbox.str("clone");
    world.sandbox.keyed(&["import", &clone, &world.sandbox.str("source"), "--accept-rollback"]).ok();
    let theirs = files(&world.sandbox.path("clone")).into_iter();
    let (name, bytes) =
        theirs.into_iter().find(|(name, _)| name.starts_with("snapshots/0000000002-")).unwrap();
    let path = world.usb().join(name);
    fs::write(&path, bytes).unwrap();
    (world, path)
}

#[test]
fn newer_rubbish_does_not_hide_another_history() {
    let (world, _) = with_a_stranger();
    litter(&world, 1000..1100);
    let error = ship_to(&world.disk(), &usb(&world), None).unwrap_err();
    assert!(matches!(&error, ShipError::Diverged { file, .. } if file.starts_with("0000000002-")), "{error}");
}

/// Rubbish everywhere: it is an alarm while anything was not looked into, each name is looked into once, and what is genuine is
/// found in the end.
#[test]
fn rubbish_is_looked_into_once() {
    let (world, path) = with_a_stranger();
    let genuine = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    // At the sequence that another history would have next, and above everything.
    let count = litter(&world, std::iter::repeat_n(2, 150).chain(5000..5150)) as u64;
    let (reads, most) = (Arc::new(AtomicU64::new(0)), 64 * 3);
    let counter = Arc::clone(&reads);
    let counting: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), move |_, op, name| {
        counter.fetch_add(u64::from(op == Op::Get && name.starts_with("snapshots/")), Ordering::SeqCst);
        None
    }));
    let ship = || {
        reads.store(0, Ordering::SeqCst);
        let ended = ship_to(&world.disk(), &counting, None);
        (ended.map(|(report, _)| report), reads.load(Ordering::SeqCst))
    };
    let (first, read) = ship();
    let first = first.unwrap();
    assert_eq!((first.foreign, first.foreign_names.len()), (count, 100));
    assert!(first.unjudged == count - read && first.unjudged > 0 && read <= most, "{first:?}, {read} read");
    let done = world.cli(&["ship", world.vault()]);
    assert!(done.code == 25 && done.stderr.contains("could not all be looked into"), "{done:?}");
    // Now there is a true one among what was not looked into yet.
    fs::write(&path, &genuine).unwrap();
    let mut tries = 1;
    while ship().0.is_ok() {
        tries += 1;
        assert!(tries < 10, "it is never found");
    }
    assert!(matches!(ship().0.unwrap_err(), ShipError::Diverged { .. }));
    fs::remove_file(&path).unwrap();
    while ship().0.unwrap().unjudged > 0 {
        tries += 1;
        assert!(tries < 20, "there is no end to it");
    }
    let (last, read) = ship();
    assert_eq!((last.unwrap().foreign, read), (count, 0), "nothing is read again");
    let done = world.cli(&["ship", world.vault()]);
    assert!(done.code == 0 && done.stderr.contains("are no part of this vault: snapshots/"), "{done:?}");
    // What is remembered goes when what it is about goes, and costs only reading when it is lost or makes no sense.
    let judged = || {
        let dir = fs::read_dir(world.sandbox.vault().join("live/remotes")).unwrap();
        let mut paths = dir.map(|entry| entry.unwrap().path());
        paths.find(|path| path.extension().is_some_and(|ext| ext == "judged")).unwrap()
    };
    for nonsense in [&b"{"[..], b"", &[0xff; 100], &vec![b' '; 3 << 20]] {
        fs::write(judged(), nonsense).unwrap();
        assert!(ship().1 > 0);
    }
    for (name, _) in files(&world.usb()) {
        if name.starts_with("snapshots/") && !name.starts_with("snapshots/0000000001-") {
            fs::remove_file(world.usb().join(name)).unwrap();
        }
    }
    assert_eq!(ship().0.unwrap().foreign, 0);
    assert!(fs::read_to_string(judged()).unwrap().contains("\"rubbish\":[]"));
    world.cli(&["remote", "remove", world.vault(), "usb"]).ok();
    let left: Vec<_> = fs::read_dir(world.sandbox.vault().join("live/remotes")).unwrap().collect();
    assert!(
        left.iter().all(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "lock")),
        "{left:?}"
    );
}

/// What can't be read stands in nobody's way, and is tried again.
#[test]
fn what_can_not_be_read_hides_nothing() {
    let (world, path) = with_a_stranger();
    litter(&world, std::iter::repeat_n(2, 100));
    let theirs = path.strip_prefix(world.usb()).unwrap().to_str().unwrap().to_string();
    let but = theirs.clone();
    let unreadable = |readable: bool| -> Arc<dyn Remote> {
        let but = but.clone();
        Arc::new(FaultyRemote::new(usb(&world), move |_, op, name| {
            let refused = op == Op::Get && name.starts_with("snapshots/") && !(readable && name == but);
            refused.then_some(Fault::Before(ErrorKind::Denied))
        }))
    };
    for _ in 0..3 {
        let (report, _) = ship_to(&world.disk(), &unreadable(false), None).unwrap();
        assert_eq!(report.unjudged, 101);
    }
    // All of them were tried by then, and the one that can be read now is among those that are tried again.
    fs::write(world.usb().join("snapshots/README"), "x").unwrap();
    let found = (0..5).any(|_| ship_to(&world.disk(), &unreadable(true), None).is_err());
    assert!(found, "{theirs}");
}

/// Names that are short in the listing, and long when they are read: no more is read than was reckoned with.
#[test]
fn what_grew_since_it_was_listed_is_not_read() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    litter(&world, std::iter::repeat_n(2, 5));
    for len in [60 << 20, 3] {
        let (usb_dir, gets) = (world.usb(), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&gets);
        let remote: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), move |_, op, name| {
            if name.starts_with("snapshots/0000000002-") {
                match op {
                    Op::Head => fs::File::options()
                        .write(true)
                        .open(usb_dir.join(name))
                        .and_then(|file| file.set_len(len))
                        .unwrap(),
                    Op::Get => drop(counter.fetch_add(1, Ordering::SeqCst)),
                    _ => {}
                }
            }
            None
        }));
        let report = ship_to(&world.disk(), &remote, None).unwrap().0;
        assert_eq!(report.unjudged, 5, "it is not known what they are");
        assert!(len < 100 || gets.load(Ordering::SeqCst) == 0, "{gets:?} of {len} bytes were read");
        for (name, _) in files(&world.usb()) {
            if name.starts_with("snapshots/0000000002-") {
                fs::write(world.usb().join(name), b"rubbish").unwrap();
            }
        }
    }
    let (report, _) = ship_to(&world.disk(), &usb(&world), None).unwrap();
    assert_eq!((report.unjudged, report.foreign), (0, 5));
}
