//! `ship --verify`: what is there with the right length, but other bytes, is found and named.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;
use strongroom::remote::{self, ErrorKind, Fault, FaultyRemote, Op, Remote, Settings};
use strongroom::ship::{ShipError, Verified, verify_into};

use crate::remote::s3_server::{Defects, Server};
use crate::remote::{once, pattern, s3_settings};
use crate::ship::{World, files};

fn packs(world: &World) -> Vec<(String, Vec<u8>)> {
    files(&world.usb()).into_iter().filter(|(name, _)| name.starts_with("packs/")).collect()
}

fn look(world: &World, remote: &Arc<dyn Remote>) -> Verified {
    try_to_look(world, remote, 2).unwrap()
}

fn try_to_look(world: &World, remote: &Arc<dyn Remote>, jobs: usize) -> Result<Verified, ShipError> {
    let mut verified = Verified::default();
    verify_into(&world.disk(), remote, "usb", jobs, &|_| {}, &mut verified)?;
    Ok(verified)
}

fn usb(world: &World) -> Arc<dyn Remote> {
    remote::open(&Settings { url: world.usb_url(), ..Settings::default() }, &once()).unwrap()
}

fn wrong(value: &Value) -> Vec<String> {
    let list = value["verified"]["wrong"].as_array().unwrap_or_else(|| panic!("{value}"));
    list.iter().map(|text| text.as_str().unwrap().to_string()).collect()
}

#[test]
fn other_bytes_of_the_same_length_are_found_and_named() {
    let world = World::new();
    world.snapshot("one", &pattern(300_000, 1));
    world.snapshot("two", &pattern(300_000, 2));
    world.ship();
    let sound = world.cli(&["ship", world.vault(), "--verify", "--json"]).json();
    let objects = sound["verified"]["objects"].as_u64().unwrap();
    assert_eq!(objects, packs(&world).len() as u64 + 2, "{sound}");
    assert_eq!((wrong(&sound), &sound["verified"]["by_reading"]), (vec![], &objects.into()));
    // One bit of a pack, and one of a snapshot.
    let pack = packs(&world).remove(0);
    let snapshot = files(&world.usb()).into_iter().find(|(name, _)| name.starts_with("snapshots/")).unwrap();
    for (name, bytes) in [&pack, &snapshot] {
        let mut other = bytes.clone();
        other[bytes.len() / 2] ^= 4;
        fs::write(world.usb().join(name), other).unwrap();
    }
    world.ship();
    let before = files(&world.usb());
    let done = world.cli(&["ship", world.vault(), "--verify", "--json"]);
    assert_eq!(done.code, 25, "{done:?}");
    let line: Value = serde_json::from_str(done.stdout.lines().next().unwrap()).unwrap();
    let named = wrong(&line);
    assert!(
        named.len() == 2 && named[0].starts_with(&pack.0) && named[1].starts_with(&snapshot.0),
        "{named:?}"
    );
    assert_eq!(files(&world.usb()), before, "nothing is changed there");
    // For people, and without sending anything.
    let said = world.cli(&["ship", world.vault(), "--verify", "--dry-run"]).fails(25);
    assert!(said.contains(&pack.0) && said.contains("2 objects there are not what was shipped"), "{said}");
    let status = || {
        let said = world.cli(&["status", world.vault(), "--json"]);
        let status: Value = serde_json::from_str(&said.stdout).unwrap();
        status["remotes"][0].clone()
    };
    assert_eq!((status()["damaged_there"].as_u64(), status()["is_alarm"].as_bool()), (Some(2), Some(true)));
    // The way out that the hint names.
    for (name, _) in [&pack, &snapshot] {
        fs::remove_file(world.usb().join(name)).unwrap();
    }
    world.cli(&["ship", world.vault(), "--start-over", "--verify"]).ok();
    assert_eq!((status()["damaged_there"].as_u64(), status()["is_alarm"].as_bool()), (Some(0), Some(false)));
    world.restores(&world.usb());
}

/// An endpoint that keeps checksums is asked for them; nothing comes back over the wire.
#[test]
fn an_endpoint_with_checksums_is_not_read() {
    let world = World::new();
    world.snapshot("one", &pattern(500_000, 1));
    let server = Server::start();
    world.add_s3(&server);
    let ship = |world: &World| world.cli(&["ship", world.vault(), "--to", "s3", "--verify", "--json"]);
    let sound = ship(&world).json();
    let verified = &sound["verified"];
    assert_eq!(verified["by_checksum"], verified["objects"]);
    assert_eq!((&verified["bytes_read"], &verified["by_reading"]), (&0.into(), &0.into()));
    // Bytes that somebody replaced: the endpoint's checksum is another one, or there is none.
    let key = server.keys().into_iter().find(|key| key.contains("/packs/")).unwrap();
    let good = server.stored(&key).unwrap();
    let mut bad = good.clone();
    bad[7] ^= 1;
    server.plant(&key, &bad);
    let done = ship(&world);
    assert_eq!(done.code, 25, "{done:?}");
    let line: Value = serde_json::from_str(&done.stdout).unwrap();
    assert!(key.ends_with(wrong(&line)[0].split(':').next().unwrap()), "{line}");
    assert!(line["verified"]["by_reading"] == 1 && line["verified"]["bytes_read"].as_u64().unwrap() > 0);
    server.plant(&key, &good);
    assert_eq!(ship(&world).json()["verified"]["by_reading"], 1);
    // One that keeps none at all is read.
    server.set_defects(Defects { knows_no_checksums: true, ..Defects::default() });
    let world = World::new();
    world.snapshot("one", &pattern(500_000, 2));
    let settings = s3_settings(&server, &world.sandbox.path(""));
    let remote =
        remote::open(&Settings { url: format!("{}/other", settings.url), ..settings }, &once()).unwrap();
    crate::ship::ship_to(&world.disk(), &remote, None).unwrap();
    let verified = look(&world, &remote);
    assert_eq!((verified.by_checksum, verified.by_reading, verified.wrong.len()), (0, verified.objects, 0));
}

/// What is there, and no longer here, is compared with its name; damage here is not taken for damage there.
#[test]
fn neither_side_is_believed() {
    let world = World::new();
    world.snapshot("one", &pattern(300_000, 1));
    world.snapshot("two", &pattern(300_000, 2));
    world.ship();
    let all = packs(&world);
    let (gone, damaged) = (&all[0].0, &all[1].0);
    fs::remove_file(world.sandbox.vault().join(gone)).unwrap();
    let mut bytes = all[1].1.clone();
    bytes[99] ^= 1;
    fs::write(world.sandbox.vault().join(damaged), bytes).unwrap();
    let checksums = Arc::new(Checksums(usb(&world)));
    let verified = look(&world, &(checksums as Arc<dyn Remote>));
    assert_eq!(verified.wrong, Vec::<String>::new());
    assert!(verified.damaged_here.len() == 1 && verified.damaged_here[0].starts_with(damaged.as_str()));
    assert_eq!(verified.by_reading, 2, "the one that is gone here, and the one that is damaged here");
    assert_eq!(verified.by_checksum, verified.objects - 2);
}

/// A directory that keeps checksums.
#[derive(Debug)]
struct Checksums(Arc<dyn Remote>);

impl Remote for Checksums {
    fn url(&self) -> String {
        self.0.url()
    }
    fn put_if_absent(
        &self,
        key: &remote::Key,
        body: &Arc<dyn remote::Source>,
        checksum: &remote::Checksum,
    ) -> remote::Result<remote::Put> {
        self.0.put_if_absent(key, body, checksum)
    }
    fn replace(
        &self,
        key: &remote::Key,
        was: &remote::Checksum,
        body: &Arc<dyn remote::Source>,
        checksum: &remote::Checksum,
    ) -> remote::Result<()> {
        self.0.replace(key, was, body, checksum)
    }
    fn get(&self, key: &remote::Key, range: std::ops::Range<u64>) -> remote::Result<Vec<u8>> {
        self.0.get(key, range)
    }
    fn head(&self, key: &remote::Key) -> remote::Result<remote::Meta> {
        let meta = self.0.head(key)?;
        let checksum = Some(remote::Checksum::of(&self.0.get(key, 0..meta.len)?));
        Ok(remote::Meta { checksum, ..meta })
    }
    fn list_page(&self, prefix: &str, after: &str) -> remote::Result<remote::Page> {
        self.0.list_page(prefix, after)
    }
    fn delete(&self, key: &remote::Key) -> remote::Result<()> {
        self.0.delete(key)
    }
    fn features(&self) -> remote::Result<remote::Features> {
        self.0.features()
    }
}

/// The connection is lost in the middle: the next one goes on there, and does not forget what the first one found.
#[test]
fn an_interrupted_verification_goes_on() {
    let world = World::new();
    for n in 0..6_u8 {
        world.snapshot(&format!("file{n}"), &pattern(100_000, n));
    }
    world.ship();
    let names: Vec<String> = packs(&world).into_iter().map(|(name, _)| name).collect();
    let mut bytes = packs(&world)[0].1.clone();
    bytes[50] ^= 1;
    fs::write(world.usb().join(&names[0]), bytes).unwrap();
    // It remembers seldom where objects are small: what an earlier one remembered is put there.
    let position = serde_json::json!({ "url": world.usb_url(), "after": names[3], "wrong": [format!("{}: x", names[0])] });
    let path = world.sandbox.vault().join("live/remotes/usb.verify.json");
    fs::write(&path, position.to_string()).unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let (count, broken) = (Arc::clone(&asked), Arc::new(AtomicBool::new(true)));
    let breaks = Arc::clone(&broken);
    let remote: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), move |_, op, name| {
        let counted = op == Op::Head && name.starts_with("packs/");
        count.fetch_add(u64::from(counted), Ordering::SeqCst);
        (breaks.load(Ordering::SeqCst) && op == Op::Head && name.starts_with("snapshots/"))
            .then_some(Fault::Before(ErrorKind::Unreachable))
    }));
    let failed = try_to_look(&world, &remote, 2).unwrap_err();
    assert!(failed.to_string().contains("injected"), "{failed}");
    assert!(path.exists(), "what is remembered stays");
    asked.store(0, Ordering::SeqCst);
    broken.store(false, Ordering::SeqCst);
    let verified = look(&world, &remote);
    assert!(verified.resumed && verified.wrong.len() == 1, "{verified:?}");
    assert!(verified.wrong[0].starts_with(&names[0]), "{verified:?}");
    assert_eq!(asked.load(Ordering::SeqCst), names.len() as u64 - 4 + 1, "the rest, and what was wrong");
    assert!(!path.exists(), "at the end it is forgotten");
    let again = look(&world, &remote);
    assert!(!again.resumed && again.objects == names.len() as u64 + 6, "{again:?}");
    // Of another place, or nonsense: it begins anew.
    for text in [position.to_string().replace("file://", "file:///elsewhere"), "{".into()] {
        fs::write(&path, text).unwrap();
        assert_eq!(look(&world, &remote).objects, again.objects);
    }
}

/// It is remembered as it goes, so that an interruption costs little.
#[test]
fn how_far_it_came_is_remembered_as_it_goes() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    // Enough objects: packs that no snapshot names yet, each with the name that its bytes have.
    for n in 0..600_u32 {
        let bytes = n.to_le_bytes();
        let name = blake3::hash(&bytes).to_hex().to_string();
        for top in [world.usb(), world.sandbox.vault()] {
            fs::create_dir_all(top.join(format!("packs/{}", &name[..2]))).unwrap();
            fs::write(top.join(format!("packs/{}/{name}", &name[..2])), bytes).unwrap();
        }
    }
    let remote: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), |_, op, name| {
        (op == Op::Head && name.starts_with("snapshots/")).then_some(Fault::Before(ErrorKind::Denied))
    }));
    try_to_look(&world, &remote, 4).unwrap_err();
    let verified = look(&world, &usb(&world));
    assert!(verified.resumed && verified.objects < 150, "{verified:?}");
    let whole = look(&world, &usb(&world));
    assert!(!whole.resumed && whole.objects > 600 && whole.wrong.is_empty(), "{whole:?}");
}

/// A bit that turned on the way is no alarm.
#[test]
fn damage_on_the_way_is_looked_at_twice() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    world.ship();
    let lies = AtomicU64::new(1);
    let remote: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), move |_, op, name| {
        let lie = op == Op::Get && name.starts_with("packs/") && lies.swap(0, Ordering::SeqCst) > 0;
        lie.then_some(Fault::Lie)
    }));
    assert_eq!(look(&world, &remote).wrong, Vec::<String>::new());
    let always: Arc<dyn Remote> = Arc::new(FaultyRemote::new(usb(&world), |_, op, name| {
        (op == Op::Get && name.starts_with("packs/")).then_some(Fault::Lie)
    }));
    assert_eq!(look(&world, &always).wrong.len(), packs(&world).len());
}

/// `--limit-download` overrules what the remote's settings say. A limit is never exceeded, so it takes at least that long.
#[test]
fn a_download_limit_is_kept() {
    let world = World::new();
    for n in 0..4_u8 {
        world.snapshot(&format!("file{n}"), &pattern(200_000, n));
    }
    world.ship();
    let add =
        ["remote", "add", world.vault(), "usb", &world.usb_url(), "--replace", "--limit-download", "1G"];
    world.cli(&add).ok();
    let line = world.cli(&["ship", world.vault(), "--verify", "--limit-download", "50k", "--json"]).json();
    let bytes = line["verified"]["bytes_read"].as_u64().unwrap();
    // The last piece is on its way when it is let through.
    let last = packs(&world).iter().map(|(_, bytes)| bytes.len() as u64).max().unwrap();
    assert!(bytes > 100_000 && last * 2 < bytes, "{line}");
    assert!(line["seconds"].as_f64().unwrap() >= (bytes - last) as f64 / 51_200.0, "{line}");
}
