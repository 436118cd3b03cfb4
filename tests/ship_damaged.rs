//! Objects that an endpoint stored with other bytes, and that nobody can remove: they stay an alarm, and count as not being
//! there, until they are mended or gone.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use strongroom::remote::{self, ErrorKind, Fault, FaultyRemote, Op, Remote, Settings};
use strongroom::ship::{Report, Verified, verify_into};

use crate::remote::s3_server::{Defects, Server, Trouble};
use crate::remote::{once, pattern};
use crate::ship::{World, files, ship_to};
use crate::ship_lock;

/// What is known to be damaged there, by a report.
fn damaged(report: &Report) -> (u64, Vec<String>) {
    let report = serde_json::to_value(report).unwrap();
    let names = report["damaged_there_names"].as_array().unwrap_or_else(|| panic!("{report}"));
    let names = names.iter().map(|name| name.as_str().unwrap().to_string()).collect();
    (report["damaged_there"].as_u64().unwrap(), names)
}

fn status(world: &World) -> (i32, Value) {
    let done = world.cli(&["status", world.vault(), "--json"]);
    let status: Value = serde_json::from_str(&done.stdout).unwrap();
    let remotes = status["remotes"].as_array().unwrap();
    (done.code, remotes.iter().find(|remote| remote["name"] == "s3").unwrap().clone())
}

/// A vault whose first snapshot is at a server, and of whose second one a pack is damaged there. Its name.
fn with_a_damaged_pack(server: &Server, defects: Defects) -> (World, String) {
    let world = World::new();
    world.add_s3(server);
    world.snapshot("one", &pattern(200_000, 1));
    world.cli(&["ship", world.vault(), "--to", "s3"]).ok();
    let before = server.keys();
    world.snapshot("two", &pattern(200_000, 2));
    server.set_defects(Defects { stores_other_bytes: true, ..defects });
    let said = world.cli(&["ship", world.vault(), "--to", "s3", "--jobs", "1"]).fails(25);
    server.set_defects(defects);
    let new: Vec<String> = server.keys().into_iter().filter(|key| !before.contains(key)).collect();
    let pack = new[0].strip_prefix("some/vault/").unwrap().to_string();
    assert!(new.len() == 1 && said.contains("stored other bytes") && said.contains(&pack), "{new:?}: {said}");
    (world, pack)
}

#[test]
fn what_is_known_to_be_damaged_there_does_not_count() {
    for knows_no_checksums in [false, true] {
        let server = Server::start();
        let defects = Defects { knows_no_checksums, forbids_delete: true, ..Defects::default() };
        let (world, pack) = with_a_damaged_pack(&server, defects);
        let key = format!("some/vault/{pack}");
        let ship = || world.cli(&["ship", world.vault(), "--to", "s3", "--json"]);
        // All else goes there. That one pack is not believed, nor sent to a name that is taken.
        for again in [false, true] {
            server.forget_ops();
            let done = ship();
            let line: Value = serde_json::from_str(&done.stdout).unwrap();
            assert_eq!((done.code, &line["damaged_there"]), (25, &1.into()), "{done:?}");
            assert_eq!(line["damaged_there_names"], json!([pack]), "{line}");
            assert_eq!((&line["complete"], &line["newest"]), (&1.into(), &2.into()), "{line}");
            assert!(done.stderr.contains(&pack) && line["error"].is_null(), "{done:?}");
            assert_eq!((server.ops("put") == 0, line["packs"] == 0), (again, again), "{line}");
        }
        let (code, s3) = status(&world);
        assert_eq!((code, &s3["is_alarm"], &s3["complete"]), (25, &true.into(), &1.into()), "{s3}");
        assert_eq!(s3["wrong"], json!(["1 objects there are not what was shipped"]), "{s3}");
        assert_eq!((&s3["behind"]["snapshots"], s3["behind"]["packs"] != json!(0)), (&1.into(), true));
        // A dry run says it as well; a verification names it, and another one.
        world.cli(&["ship", world.vault(), "--to", "s3", "--dry-run"]).fails(25);
        let other = server.keys().into_iter().find(|name| name.contains("/packs/") && *name != key).unwrap();
        let good = server.stored(&other).unwrap();
        server.plant(&other, &[&[good[0] ^ 1], &good[1..]].concat());
        world.cli(&["ship", world.vault(), "--to", "s3", "--verify"]).fails(25);
        let line: Value = serde_json::from_str(&ship().stdout).unwrap();
        assert_eq!(line["damaged_there"], 2, "what a verification found is known from then on: {line}");
        // Mended in its place by who may; the other one is removed.
        server.plant(&other, &good);
        server.hide(&key);
        let line = ship().json();
        assert_eq!(
            (&line["damaged_there"], &line["packs"], &line["complete"]),
            (&0.into(), &1.into(), &2.into()),
            "{line}"
        );
        assert_eq!(server.stored(&key).unwrap(), fs::read(world.sandbox.vault().join(&pack)).unwrap());
        world.cli(&["ship", world.vault(), "--to", "s3", "--verify"]).ok();
        let (code, s3) = status(&world);
        assert_eq!((code, &s3["is_alarm"], &s3["behind"]["snapshots"]), (0, &false.into(), &0.into()));
        // Nothing of it is left with the remote.
        world.cli(&["remote", "remove", world.vault(), "s3"]).ok();
        let left = fs::read_dir(world.sandbox.vault().join("live/remotes")).unwrap();
        let left: Vec<PathBuf> = left.map(|entry| entry.unwrap().path()).collect();
        assert!(left.iter().all(|path| path.extension().is_some_and(|ext| ext == "lock")), "{left:?}");
    }
}

/// While the server is away the alarm stays as well.
#[test]
fn an_alarm_outlives_other_failures() {
    let server = Server::start();
    let (world, pack) = with_a_damaged_pack(&server, Defects::default());
    server.set_trouble(|_, _, _| Some(Trouble::Before("AccessDenied", 403)));
    let said = world.cli(&["ship", world.vault(), "--to", "s3"]).fails(25);
    assert!(said.contains(&pack) && said.contains("403"), "{said}");
    server.calm();
    // What can't be looked at is not known to be mended.
    server.set_trouble(move |_, op, key| {
        let is_it = key.ends_with(&pack) && op == "head";
        is_it.then_some(Trouble::Before("AccessDenied", 403))
    });
    let done = world.cli(&["ship", world.vault(), "--to", "s3", "--json"]);
    let line: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        (done.code, &line["damaged_there"], &line["complete"]),
        (25, &1.into(), &1.into()),
        "{done:?}"
    );
    // A file that makes no sense is not taken for nothing.
    let dir = fs::read_dir(world.sandbox.vault().join("live/remotes")).unwrap();
    let mut paths = dir.map(|entry| entry.unwrap().path());
    let path = paths.find(|path| path.extension().is_some_and(|ext| ext == "damaged")).unwrap();
    fs::write(path, "{").unwrap();
    let said = world.cli(&["ship", world.vault(), "--to", "s3"]);
    assert!(said.code != 0 && said.stderr.contains("can't be understood"), "{said:?}");
}

fn usb(world: &World) -> Arc<dyn Remote> {
    remote::open(&Settings { url: world.usb_url(), ..Settings::default() }, &once()).unwrap()
}

/// A damaged snapshot file is the end of what counts there, until it is mended or sent anew.
#[test]
fn a_damaged_snapshot_file_is_the_end_of_the_chain() {
    let world = World::new();
    for n in 1..4_u8 {
        world.snapshot(&format!("file{n}"), &pattern(100_000, n));
    }
    let remote: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), |_, op, name| {
        let is_it = op == Op::Put && name.starts_with("snapshots/0000000002-");
        is_it.then_some(Fault::After(ErrorKind::Corrupt))
    }));
    ship_to(&world.disk(), &remote, None).unwrap_err();
    let is_it = |(name, _): &(String, Vec<u8>)| name.starts_with("snapshots/0000000002-");
    let (name, good) = files(&world.usb()).into_iter().find(is_it).unwrap();
    let path = world.usb().join(&name);
    let mut bad = good.clone();
    bad[20] ^= 1;
    let ship = || ship_to(&world.disk(), &usb(&world), None).unwrap().0;
    fs::write(&path, &bad).unwrap();
    let report = ship();
    assert_eq!(damaged(&report), (1, vec![name.clone()]));
    assert_eq!((report.chain_files, report.newest, report.complete), (1, Some(3), Some(1)));
    let report = ship();
    assert_eq!((report.chain_files, report.complete, damaged(&report).0), (0, Some(1), 1));
    assert_eq!(fs::read(&path).unwrap(), bad, "nothing is written over");
    fs::remove_file(&path).unwrap();
    let report = ship();
    assert_eq!((report.chain_files, report.complete, damaged(&report).0), (1, Some(3), 0));
    assert_eq!(fs::read(&path).unwrap(), good);
    // One that turns out to be sound was none.
    fs::remove_file(&path).unwrap();
    ship_to(&world.disk(), &remote, None).unwrap_err();
    assert_eq!((ship().complete, damaged(&ship()).0), (Some(3), 0));
}

/// What is known to be damaged does not count as being there, whatever length it has: all else is sent.
#[test]
fn a_damaged_object_of_another_length_stops_nothing() {
    let world = World::new();
    world.snapshot("one", &pattern(200_000, 1));
    let remote: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), |_, op, name| {
        (op == Op::Put && name.starts_with("packs/")).then_some(Fault::After(ErrorKind::Corrupt))
    }));
    ship_to(&world.disk(), &remote, None).unwrap_err();
    let (name, good) = files(&world.usb()).into_iter().find(|(name, _)| name.starts_with("packs/")).unwrap();
    let path = world.usb().join(&name);
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    world.snapshot("two", &pattern(200_000, 2));
    let report = ship_to(&world.disk(), &usb(&world), None).unwrap().0;
    assert_eq!((damaged(&report), report.newest, report.complete), ((1, vec![name.clone()]), Some(2), None));
    let mut verified = Verified::default();
    verify_into(&world.disk(), &usb(&world), "usb", 2, &|_| {}, &mut verified).unwrap();
    assert_eq!(verified.wrong_total, 1, "{verified:?}");
    assert!(verified.wrong[0].starts_with(&name), "{verified:?}");
    fs::write(&path, &good).unwrap();
    let report = ship_to(&world.disk(), &usb(&world), None).unwrap().0;
    assert_eq!((damaged(&report).0, report.complete), (0, Some(2)));
    // One that nothing is known of still stops everything.
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    ship_to(&world.disk(), &usb(&world), None).unwrap_err();
}

/// Of very many only some are looked at again by a shipment: it may have to read them.
#[test]
fn few_damaged_objects_are_looked_at_each_time() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    const MANY: u32 = 40;
    let planted = |n: u32| {
        let name = blake3::hash(&n.to_le_bytes()).to_hex().to_string();
        format!("packs/{}/{name}", &name[..2])
    };
    let plant = |top: PathBuf, n: u32, bytes: &[u8]| {
        let path = top.join(planted(n));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for n in 0..MANY {
        plant(world.sandbox.vault(), n, &n.to_le_bytes());
        plant(world.usb(), n, &[0xff; 4]);
    }
    let mut verified = Verified::default();
    verify_into(&world.disk(), &usb(&world), "usb", 2, &|_| {}, &mut verified).unwrap();
    assert_eq!(verified.wrong_total, u64::from(MANY));
    (0..MANY).for_each(|n| plant(world.usb(), n, &n.to_le_bytes()));
    let heads = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&heads);
    let counting: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), move |_, op, name| {
        counter.fetch_add(u64::from(op == Op::Head && name.starts_with("packs/")), Ordering::SeqCst);
        None
    }));
    for left in [24, 8, 0] {
        heads.store(0, Ordering::SeqCst);
        let report = ship_to(&world.disk(), &counting, None).unwrap().0;
        assert_eq!(damaged(&report).0, left);
        assert!(heads.load(Ordering::SeqCst) <= 16);
    }
}

/// A place that does not answer well may take minutes to be asked about each: what is new does not wait for that.
#[test]
fn what_is_new_is_sent_before_what_is_damaged_is_looked_at() {
    let world = World::new();
    world.snapshot("one", &pattern(300_000, 1));
    world.snapshot("two", &pattern(300_000, 2));
    world.ship();
    let damage =
        |path: &PathBuf| fs::write(path, vec![0; fs::metadata(path).unwrap().len() as usize]).unwrap();
    let packs: Vec<PathBuf> = files(&world.usb())
        .into_iter()
        .filter(|(name, _)| name.starts_with("packs/"))
        .map(|(name, _)| world.usb().join(name))
        .collect();
    packs.iter().for_each(damage);
    assert!(packs.len() >= 3, "{packs:?}");
    let mut verified = Verified::default();
    verify_into(&world.disk(), &usb(&world), "usb", 2, &|_| {}, &mut verified).unwrap();
    world.snapshot("three", &pattern(300_000, 3));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let writes = Arc::clone(&asked);
    let bad: Vec<String> =
        packs.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect();
    let remote: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), move |_, op, name| {
        if op == Op::Put {
            writes.lock().unwrap().push(String::from("new"));
        }
        let bad = bad.iter().find(|bad| name.ends_with(bad.as_str()))?;
        writes.lock().unwrap().push(bad.clone());
        Some(Fault::Before(ErrorKind::Unavailable))
    }));
    let mut looked = Vec::new();
    for is_first in [true, false] {
        let report = ship_to(&world.disk(), &remote, None).unwrap().0;
        assert_eq!(damaged(&report).0, packs.len() as u64);
        assert_eq!(report.packs > 0, is_first, "{report:?}");
        let mut asked = std::mem::take(&mut *asked.lock().unwrap());
        looked.push(asked.pop().unwrap());
        assert_eq!(!asked.is_empty(), is_first, "one that is not answered is the last one: {asked:?}");
        assert!(asked.iter().all(|name| name == "new"), "{asked:?}");
    }
    assert_ne!(looked[0], looked[1], "the next one begins with another");
}

/// A pack that is damaged here is not sent, so it is not missed there either: only what is there is locked.
#[test]
fn what_is_damaged_here_is_not_said_to_be_gone_there() {
    let world = ship_lock::World::new();
    world.advance(0);
    world.snapshot("one", &pattern(200_000, 1));
    world.ship();
    let before = world.names();
    world.snapshot("two", &pattern(200_000, 2));
    let here = files(&world.sandbox.vault());
    let new = |(name, _): &&(String, Vec<u8>)| name.starts_with("packs/") && !before.contains(name);
    let (name, good) = here.iter().filter(new).max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let path = world.sandbox.vault().join(name);
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&path, &bad).unwrap();
    for _ in 0..2 {
        let report = world.ship();
        let lock = report.lock.as_ref().unwrap();
        assert_eq!((lock.gone_total, report.complete), (0, Some(1)), "{report:?}");
        assert!(!world.names().contains(name));
    }
    fs::write(&path, good).unwrap();
    assert_eq!(world.ship().complete, Some(2));
    world.all_locked();
}

/// A lock would only keep it from being removed.
#[test]
fn what_is_damaged_there_is_not_locked_for_longer() {
    let world = ship_lock::World::new();
    world.advance(0);
    world.snapshot("one", &pattern(200_000, 1));
    world.ship();
    world.snapshot("two", &pattern(200_000, 2));
    world.server.set_defects(Defects { stores_other_bytes: true, ..Defects::default() });
    world.try_ship(None).unwrap_err();
    world.server.set_defects(Defects::default());
    world.advance(10);
    let report = world.ship();
    let (count, bad) = damaged(&report);
    assert!(count > 0 && count == bad.len() as u64, "{report:?}");
    assert_eq!(report.complete, Some(1));
    let sound_ones_are_locked = || {
        for name in world.names() {
            let kept = world.server.kept(&ship_lock::World::at(&name)).unwrap().until - world.server.now();
            assert_eq!(kept < 30 * 86_400, bad.contains(&name), "{name} is locked for {kept} s");
        }
    };
    sound_ones_are_locked();
    // That it can't even be looked at keeps nothing else from being locked.
    let unreadable = bad.clone();
    world.server.set_trouble(move |_, op, key| {
        let is_it = matches!(op, "get" | "head") && unreadable.iter().any(|name| key.ends_with(name));
        is_it.then_some(Trouble::Before("InternalError", 500))
    });
    world.advance(5);
    assert_eq!(damaged(&world.ship()), (count, bad.clone()));
    sound_ones_are_locked();
    world.server.calm();
    // Its lock ends, and then it can be removed.
    world.advance(40);
    for name in &bad {
        let at = ship_lock::World::at(name);
        let versions = world.server.versions(&at);
        assert!(versions.len() == 1 && versions[0].kept.as_ref().unwrap().until < world.server.now());
        world.server.remove(&at);
    }
    let report = world.ship();
    assert_eq!((report.complete, damaged(&report).0), (Some(2), 0));
    world.all_locked();
    world.restores_by(&world.settings);
}

/// One that was taken for damaged, and is not, has its lock extended by the shipment that finds out.
#[test]
fn what_turns_out_to_be_sound_is_locked_at_once() {
    let world = ship_lock::World::new();
    world.advance(0);
    world.snapshot("one", &pattern(200_000, 1));
    let lying: Arc<dyn Remote> = Arc::new(FaultyRemote::new(world.remote(), |_, op, name| {
        (op == Op::Put && name.starts_with("packs/")).then_some(Fault::After(ErrorKind::Corrupt))
    }));
    ship_to(&world.disk(), &lying, None).unwrap_err();
    let at = world.names().into_iter().find(|name| name.starts_with("packs/")).unwrap();
    let left = || world.server.kept(&ship_lock::World::at(&at)).unwrap().until - world.server.now();
    // More than a shipment lets pass before it extends a lock.
    world.advance(20);
    let before = left();
    let report = world.ship();
    assert_eq!((damaged(&report).0, report.complete), (0, Some(1)));
    assert!(left() >= before + 10 * 86_400, "{} s, {before} s before", left());
    world.all_locked();
}
