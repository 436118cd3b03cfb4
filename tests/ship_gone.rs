//! Objects that were shipped and that somebody deleted at the remote: they are an alarm once, named, and are sent again. What
//! is not there for a good reason never is.

use std::fs;
use std::sync::Arc;

use serde_json::{Value, json};
use strongroom::remote::{self, ErrorKind, Fault, FaultyRemote, Op, Remote, Settings};
use strongroom::ship::{Cursor, Report, ShipOptions, load_cursor, ship_into};

use crate::remote::s3_server::{Defects, Server, Trouble};
use crate::remote::{once, pattern};
use crate::ship::{World, files, newest_complete, ship_to};

fn usb(world: &World) -> Arc<dyn Remote> {
    remote::open(&Settings { url: world.usb_url(), ..Settings::default() }, &once()).unwrap()
}

/// A vault of three snapshots, each with a pack of its own.
fn three() -> World {
    let world = World::new();
    for n in 1..4_u8 {
        world.snapshot(&format!("file{n}"), &pattern(100_000, n));
    }
    world
}

/// The names of packs there.
fn packs(world: &World) -> Vec<String> {
    files(&world.usb()).into_iter().map(|(name, _)| name).filter(|name| name.starts_with("packs/")).collect()
}

fn file_of(world: &World, seq: u64) -> String {
    let begins = format!("snapshots/{seq:010}-");
    files(&world.usb()).into_iter().map(|(name, _)| name).find(|name| name.starts_with(&begins)).unwrap()
}

fn delete(world: &World, names: &[String]) {
    names.iter().for_each(|name| fs::remove_file(world.usb().join(name)).unwrap());
}

fn json(world: &World, args: &[&str], code: i32) -> Value {
    world.cli(&[&["ship", world.vault(), "--json"], args].concat()).fails_json(code)
}

/// What the last ship of `usb` found, and the status of the command.
fn status(world: &World) -> (i32, Value) {
    let done = world.cli(&["status", world.vault(), "--json"]);
    let status: Value = serde_json::from_str(&done.stdout).unwrap();
    let remotes = status["remotes"].as_array().unwrap();
    (done.code, remotes.iter().find(|remote| remote["name"] == "usb").unwrap()["wrong"].clone())
}

#[test]
fn what_is_gone_there_is_named_and_sent_again() {
    let world = three();
    world.ship();
    let whole = files(&world.usb());
    let mut gone = vec![packs(&world).swap_remove(0), file_of(&world, 2)];
    gone.sort();
    delete(&world, &gone);
    // A dry run says it, and changes nothing.
    for (dry_run, again) in [(true, "is to be"), (false, "was")] {
        let args: &[&str] = if dry_run { &["--dry-run"] } else { &[] };
        let done = world.cli(&[&["ship", world.vault()], args].concat());
        assert_eq!(done.code, 25, "{done:?}");
        let text = format!(
            "warning: 2 objects that were shipped are gone there, though snapshots need them: {}",
            gone.join(", ")
        );
        assert!(
            done.stderr.contains(&text) && done.stderr.contains(&format!("{again} sent again")),
            "{done:?}"
        );
        assert_eq!(files(&world.usb()) == whole, !dry_run);
    }
    assert_eq!(status(&world), (25, json!(["2 objects that were shipped were gone there"])));
    let line = json(&world, &[], 0);
    assert_eq!((&line["gone_there"], &line["gone_there_names"]), (&0.into(), &json!([])));
    assert_eq!(status(&world), (0, json!([])));
    // By the names in JSON as well.
    delete(&world, &gone);
    let line = json(&world, &[], 25);
    assert_eq!((&line["gone_there"], &line["gone_there_names"]), (&2.into(), &json!(gone)));
    assert_eq!((&line["packs"], &line["chain_files"], &line["complete"]), (&1.into(), &1.into(), &3.into()));
    assert_eq!(files(&world.usb()), whole);
    json(&world, &[], 0);
    // What was shipped since is missed as well, and nothing after a new beginning.
    world.snapshot("four", &pattern(100_000, 4));
    json(&world, &[], 0);
    delete(&world, &packs(&world));
    let line = json(&world, &["--start-over"], 0);
    assert!(line["packs"].as_u64().unwrap() >= 4 && line["gone_there"] == 0, "{line}");
    let all = packs(&world);
    delete(&world, &all);
    assert_eq!(json(&world, &[], 25)["gone_there"], all.len());
}

/// Without it nobody opens the place any more.
#[test]
fn a_header_that_is_gone_there_is_named_and_sent_again() {
    let world = three();
    world.ship();
    let whole = files(&world.usb());
    delete(&world, &["vault.json".into(), "vault.json.bak".into()]);
    let line = json(&world, &["--dry-run"], 25);
    assert_eq!(line["gone_there_names"], json!(["vault.json"]));
    let line = json(&world, &[], 25);
    assert_eq!((&line["gone_there"], &line["gone_there_names"]), (&1.into(), &json!(["vault.json"])));
    assert_eq!(files(&world.usb()), whole);
    assert_eq!(json(&world, &[], 0)["gone_there"], 0);
}

/// Ships, and returns what was found until it ended, in whatever way.
fn try_ship(world: &World, remote: &Arc<dyn Remote>, cursor: &Cursor) -> (Report, bool) {
    let mut report = Report::default();
    let options = ShipOptions::default();
    let ended = ship_into(&world.disk(), remote, Some(cursor), &options, &|_| {}, &mut report);
    (report, ended.is_ok())
}

/// It stays an alarm until it is there again; and one that is gone here as well is told once, and is missing from then on.
#[test]
fn the_alarm_lasts_until_it_is_mended() {
    let world = three();
    let (_, cursor) = ship_to(&world.disk(), &usb(&world), None).unwrap();
    let cursor = cursor.unwrap();
    let victim = packs(&world).swap_remove(1);
    let bytes = fs::read(world.usb().join(&victim)).unwrap();
    delete(&world, std::slice::from_ref(&victim));
    let full: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), |_, op, _| {
        (op == Op::Put).then_some(Fault::Before(ErrorKind::Full))
    }));
    for _ in 0..2 {
        let (report, is_done) = try_ship(&world, &full, &cursor);
        assert_eq!((is_done, report.gone_there, report.is_alarming()), (false, 1, true));
        assert_eq!(report.gone_there_names, [victim.as_str()]);
    }
    // It is gone here as well.
    let here = world.sandbox.vault().join(&victim);
    fs::remove_file(&here).unwrap();
    let (report, cursor) = ship_to(&world.disk(), &usb(&world), Some(&cursor)).unwrap();
    assert_eq!((report.gone_there, report.damaged.len(), report.packs), (1, 1, 0));
    let cursor = cursor.unwrap();
    assert_eq!(cursor.unsent.as_ref().unwrap().iter().collect::<Vec<_>>(), [&victim]);
    let (report, _) = ship_to(&world.disk(), &usb(&world), Some(&cursor)).unwrap();
    assert_eq!((report.gone_there, report.damaged.len()), (0, 1));
    // Healed here, it is sent, and missed from then on.
    fs::write(&here, bytes).unwrap();
    let (report, cursor) = ship_to(&world.disk(), &usb(&world), Some(&cursor)).unwrap();
    assert_eq!((report.gone_there, report.packs), (0, 1));
    delete(&world, &[victim]);
    assert_eq!(ship_to(&world.disk(), &usb(&world), cursor.as_ref()).unwrap().0.gone_there, 1);
}

/// A shipment that ends early, at each request in turn, is gone on with and is no alarm, whatever was known before.
#[test]
fn what_an_interrupted_shipment_leaves_is_no_alarm() {
    let world = World::new();
    world.snapshot("file1", &pattern(100_000, 1));
    let first = ship_to(&world.disk(), &usb(&world), None).unwrap().1.unwrap();
    for n in 2..5_u8 {
        world.snapshot(&format!("file{n}"), &pattern(100_000, n));
    }
    world.sandbox.sh("cp -r usb base").ok();
    let mut interrupted = 0;
    for at in 1.. {
        world.sandbox.sh("rm -r usb && cp -r base usb").ok();
        let cut: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), move |n, _, _| match n {
            n if n < at => None,
            n if n == at && at % 2 == 0 => Some(Fault::After(ErrorKind::Denied)),
            _ => Some(Fault::Before(ErrorKind::Denied)),
        }));
        let (report, is_done) = try_ship(&world, &cut, &first);
        assert_eq!((report.gone_there, report.is_alarming()), (0, false), "request {at}");
        let (report, cursor) = ship_to(&world.disk(), &usb(&world), Some(&first)).unwrap();
        assert_eq!((report.gone_there, report.complete), (0, Some(4)), "request {at}");
        assert_eq!(ship_to(&world.disk(), &usb(&world), cursor.as_ref()).unwrap().0.gone_there, 0);
        if is_done {
            break;
        }
        interrupted += 1;
    }
    assert!(interrupted > 10, "{interrupted} requests");
}

/// Garbage collection puts packs in the place of others that the remote had: the new ones were never there.
#[test]
fn what_was_collected_or_rewritten_here_is_no_alarm() {
    let world = World::new();
    let mut rewritten = 0;
    for n in 0..4_u8 {
        // Both stand in one pack; only the small one is needed by what comes after.
        fs::write(world.sandbox.path("source").join(format!("small{n}")), pattern(50_000, 100 + n)).unwrap();
        world.snapshot("big", &pattern(300_000, n));
        json(&world, &[], 0);
        world.snapshot("big", b"");
        json(&world, &[], 0);
        let seq = world.sandbox.keyed(&["snapshot", "list", world.vault(), "--json"]).json();
        let seqs: Vec<u64> = seq.as_array().unwrap().iter().map(|s| s["seq"].as_u64().unwrap()).collect();
        let victim = seqs[seqs.len() - 2].to_string();
        world.sandbox.keyed(&["snapshot", "delete", world.vault(), &victim]).ok();
        if n % 2 == 0 {
            json(&world, &[], 0);
        }
        let done = world.sandbox.keyed(&["gc", world.vault(), "--json"]).json();
        rewritten += done["rewritten_packs"].as_u64().unwrap();
        let line = json(&world, &[], 0);
        assert_eq!((&line["gone_there"], &line["damaged"]), (&0.into(), &json!([])), "{line}");
    }
    assert!(rewritten > 0, "nothing was rewritten");
    world.restores(&world.usb());
    // What was put in their place is missed from then on.
    let needed = files(&world.sandbox.vault()).into_iter().map(|(name, _)| name);
    let needed: Vec<String> = needed.filter(|name| name.starts_with("packs/")).collect();
    delete(&world, &needed);
    assert_eq!(json(&world, &[], 25)["gone_there"], needed.len());
}

/// Who was told of a damaged object removes it: that is what was asked for, also where it can't be sent at once.
#[test]
fn damaged_objects_that_were_removed_are_no_alarm() {
    let server = Server::start();
    let world = World::new();
    world.add_s3(&server);
    world.snapshot("one", &pattern(200_000, 1));
    world.cli(&["ship", world.vault(), "--to", "s3"]).ok();
    let keys = server.keys();
    let bad = keys.iter().find(|key| key.contains("/packs/")).unwrap();
    let good = server.stored(bad).unwrap();
    server.plant(bad, &vec![0; good.len()]);
    world.cli(&["ship", world.vault(), "--to", "s3", "--verify"]).fails(25);
    world.cli(&["ship", world.vault(), "--to", "s3"]).fails(25);
    server.remove(bad);
    for trouble in ["put", "list", "put"] {
        server.set_trouble(move |_, op, _| (op == trouble).then_some(Trouble::Before("AccessDenied", 403)));
        let line = json(&world, &["--to", "s3"], 24);
        let found = (&line["gone_there"], &line["damaged_there"]);
        // Before anything is listed nobody knows that it was removed.
        assert_eq!(found, (&0.into(), &0.into()), "{trouble}: {line}");
    }
    server.calm();
    let line = json(&world, &["--to", "s3"], 0);
    assert_eq!((&line["gone_there"], &line["packs"]), (&0.into(), &1.into()));
    assert_eq!(server.stored(bad).unwrap(), good);
    // From then on it is missed like any other.
    server.remove(bad);
    let line = json(&world, &["--to", "s3"], 25);
    assert_eq!(line["gone_there_names"], json!([bad.strip_prefix("some/vault/").unwrap()]));
    server.set_defects(Defects::default());
}

/// What other tools or another machine put there was never known to be whole.
#[test]
fn what_was_not_shipped_from_here_is_not_missed() {
    let world = three();
    world.sandbox.sh("cp -r encrypted/packs encrypted/snapshots encrypted/vault.json* usb").ok();
    let victim = packs(&world).swap_remove(0);
    delete(&world, &[victim.clone(), file_of(&world, 1)]);
    assert_eq!(json(&world, &[], 0)["gone_there"], 0);
    // A clone of what lacks a pack, which is then healed by hand.
    let bytes = fs::read(world.usb().join(&victim)).unwrap();
    delete(&world, std::slice::from_ref(&victim));
    let copy = world.sandbox.str("copy");
    world.cli(&["clone", &world.usb_url(), &copy]).fails(25);
    let known = load_cursor(&strongroom::disk::RealDisk::open(copy.as_ref()).unwrap(), "origin").unwrap();
    assert_eq!(known.map(|cursor| (cursor.seq, cursor.unsent)), Some((3, None)));
    fs::create_dir_all(world.sandbox.path("copy").join(&victim).parent().unwrap()).unwrap();
    fs::write(world.sandbox.path("copy").join(&victim), bytes).unwrap();
    let line = world.cli(&["ship", &copy, "--json"]).json();
    assert_eq!((&line["gone_there"], &line["packs"]), (&0.into(), &1.into()), "{line}");
    assert_eq!(newest_complete(&world.usb()), 3);
}
