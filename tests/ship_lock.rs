//! Shipping to a bucket with Object Lock: what the snapshots need stays locked, at few requests, with credentials that can't
//! delete; and whatever somebody puts over it, it is there, restores, and is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use strongroom::disk::{Disk, RealDisk};
use strongroom::env::{Env, TestEnv};
use strongroom::format::Header;
use strongroom::format::pack::pack_path;
use strongroom::remote::{self, ErrorKind, Lock, LockMode, OpenOptions, Remote, Settings};
use strongroom::ship::{self, Cursor, Jobs, Report, ShipError, ShipOptions};
use strongroom::snapshot::open::list_packs;

use crate::common::{Finished, Sandbox};
use crate::remote::s3_lock::Kept;
use crate::remote::s3_server::{Defects, Server, Trouble};
use crate::remote::{key, once, pattern, put, s3_settings};

const DAY: i64 = 86_400;
const DAYS: i64 = 30;
pub const PREFIX: &str = "some/vault";

/// A vault, a bucket with Object Lock, and one clock for what this process and the server do. (The binary has the real one.)
pub struct World {
    pub sandbox: Sandbox,
    pub server: Server,
    pub env: Arc<TestEnv>,
    pub settings: Settings,
}

impl World {
    pub fn new() -> Self {
        let sandbox = Sandbox::with_vault();
        fs::create_dir(sandbox.path("source")).unwrap();
        let server = Server::start();
        server.set_bucket(true, true);
        let lock = Some(Lock { mode: LockMode::Compliance, days: DAYS as u32 });
        let settings = Settings { lock, ..s3_settings(&server, &sandbox.path("")) };
        Self { sandbox, server, env: Arc::new(TestEnv::new(5)), settings }
    }

    /// Moves both clocks, and takes the server off the real one.
    pub fn advance(&self, days: u64) {
        self.env.advance(Duration::from_secs(days * 86_400));
        self.server.set_clock(self.env.now().secs);
    }

    pub fn vault(&self) -> &'static str {
        self.sandbox.vault_str()
    }

    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(RealDisk::open(&self.sandbox.vault()).unwrap())
    }

    pub fn snapshot(&self, name: &str, bytes: &[u8]) {
        fs::write(self.sandbox.path("source").join(name), bytes).unwrap();
        self.sandbox.keyed(&["import", self.vault(), &self.sandbox.str("source")]).ok();
    }

    pub fn remote(&self) -> Arc<dyn Remote> {
        self.remote_by(&self.settings)
    }

    pub fn remote_by(&self, settings: &Settings) -> Arc<dyn Remote> {
        let options = OpenOptions { env: Arc::clone(&self.env) as Arc<dyn Env>, ..once() };
        remote::open(settings, &options).unwrap()
    }

    pub fn try_ship(&self, cursor: Option<&Cursor>) -> Result<(Report, Option<Cursor>), ShipError> {
        let options = ShipOptions { jobs: Jobs::Fixed(3), ..ShipOptions::default() };
        ship::ship(&self.disk(), &self.remote(), cursor, &options, &|_| {})
    }

    pub fn ship(&self) -> Report {
        self.try_ship(None).unwrap().0
    }

    /// Adds the bucket as a remote of the vault, for the binary.
    pub fn add(&self, name: &str, settings: &Settings) -> Finished {
        let mut args = vec!["remote", "add", self.vault(), name, settings.url.as_str(), "--path-style"];
        args.extend(["--endpoint", settings.endpoint.as_deref().unwrap()]);
        args.extend(["--credentials-file", settings.credentials_file.as_ref().unwrap().to_str().unwrap()]);
        let days = settings.lock.map(|lock| lock.days.to_string()).unwrap_or_default();
        if let Some(lock) = settings.lock {
            args.extend(["--lock-mode", lock.mode.name(), "--lock-days", &days]);
        }
        self.sandbox.run(args)
    }

    /// Names at the server, without the prefix.
    pub fn names(&self) -> Vec<String> {
        let names = self.server.all_keys();
        names.iter().map(|name| name.strip_prefix("some/vault/").unwrap().to_string()).collect()
    }

    pub fn at(name: &str) -> String {
        format!("{PREFIX}/{name}")
    }

    pub fn first(&self, dir: &str) -> String {
        self.names().into_iter().find(|name| name.starts_with(dir)).unwrap()
    }

    pub fn last(&self, dir: &str) -> String {
        self.names().into_iter().rfind(|name| name.starts_with(dir)).unwrap()
    }

    /// Everything is locked for the promised time, by the server's clock.
    #[track_caller]
    pub fn all_locked(&self) {
        let names = self.names();
        assert!(names.len() >= 4, "{names:?}");
        for name in names {
            let kept = self.server.kept(&Self::at(&name)).unwrap_or_else(|| panic!("{name} is not locked"));
            let left = kept.until - self.server.now();
            assert!(left >= DAYS * DAY && kept.compliance, "{name}: {left} s");
        }
    }

    /// Downloads everything as a restore does, and compares the newest snapshot with `source`.
    #[track_caller]
    pub fn restores_by(&self, settings: &Settings) {
        let to = tempfile::tempdir_in(self.sandbox.path("")).unwrap();
        let (copy, out) = (to.path().join("copy"), to.path().join("out"));
        let remote = self.remote_by(settings);
        for prefix in ["packs/", "snapshots/", "vault.json"] {
            remote::list(remote.as_ref(), prefix, &mut |item| save(remote.as_ref(), &copy, &item.name))
                .unwrap();
        }
        let source = format!("latest:{}", self.sandbox.str("source"));
        self.sandbox.keyed(&["restore", copy.to_str().unwrap(), &source, "--to", out.to_str().unwrap()]).ok();
        self.sandbox.tool("diff", ["-r", &self.sandbox.str("source"), out.to_str().unwrap()]).ok();
    }

    pub fn ledger(&self) -> PathBuf {
        let dir = fs::read_dir(self.sandbox.vault().join("live/remotes")).unwrap();
        let mut paths = dir.map(|entry| entry.unwrap().path());
        paths.find(|path| path.extension().is_some_and(|ext| ext == "retained")).expect("a ledger")
    }
}

fn save(remote: &dyn Remote, to: &Path, name: &str) -> remote::Result<()> {
    let path = to.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, remote::read(remote, &key(name), 1 << 30)?).unwrap();
    Ok(())
}

/// A month, a snapshot and a shipment each day: everything stays locked, and few requests are made for it.
#[test]
fn daily_shipments_keep_everything_locked_at_few_requests() {
    let world = World::new();
    let (mut cursor, mut gets, mut sets, mut most) = (None, 0, 0, 0);
    let mut objects = 0;
    const SHIPMENTS: u64 = 31;
    for day in 0..SHIPMENTS {
        world.advance(1);
        world.snapshot(&format!("day{day}"), &pattern(2000, day as u8));
        world.server.forget_ops();
        let (report, next) = world.try_ship(cursor.as_ref()).unwrap();
        cursor = next;
        world.all_locked();
        let lock = report.lock.unwrap();
        objects = world.names().len() as u64;
        assert_eq!(
            (lock.objects, lock.refused, lock.hidden_total, lock.overwritten_total),
            (objects, 0, 0, 0)
        );
        assert_eq!(lock.extended, world.server.ops("retain"));
        gets += world.server.ops("retention");
        sets += world.server.ops("retain");
        most = most.max(world.server.all_ops() - world.server.ops("retain") - world.server.ops("put"));
    }
    // An object is put with 33 days and set anew on the fourth day after, each time.
    let bound: u64 =
        (0..SHIPMENTS).map(|day| (SHIPMENTS - 1 - day) / 3).sum::<u64>() * (objects / SHIPMENTS + 1);
    assert!(sets > objects && sets <= bound, "{sets} of {bound}");
    // Four proofs of the ledger, the first puts (two packs go at the same time), and the header's copies once.
    assert!(gets <= SHIPMENTS * 6 + 2, "{gets}");
    assert!(most <= 20, "{most} requests of a daily shipment that neither send nor lock");
    println!(
        "{objects} objects, {SHIPMENTS} days: {sets} locks set, {gets} asked, at most {most} other requests a day"
    );
}

/// Nothing was shipped for so long that every lock is over: the next shipment locks again.
#[test]
fn locks_that_ran_out_are_set_again() {
    let world = World::new();
    world.advance(0);
    world.snapshot("one", &pattern(100_000, 1));
    world.ship();
    world.advance(100);
    assert!(
        world
            .names()
            .iter()
            .all(|name| world.server.kept(&World::at(name)).unwrap().until < world.server.now())
    );
    let lock = world.ship().lock.unwrap();
    assert_eq!((lock.extended, lock.refused), (world.names().len() as u64, 0));
    world.all_locked();
    // Also in the middle of the slack, and before.
    world.advance(2);
    assert_eq!(world.ship().lock.unwrap().extended, 0);
    world.all_locked();
    world.advance(2);
    assert_eq!(world.ship().lock.unwrap().extended, world.names().len() as u64);
    world.all_locked();
}

#[test]
fn a_bucket_that_was_filled_before_it_was_locked_gets_locked() {
    let world = World::new();
    world.advance(0);
    world.snapshot("one", &pattern(100_000, 1));
    let settings = Settings { lock: None, ..world.settings.clone() };
    let options = ShipOptions { jobs: Jobs::Fixed(2), ..ShipOptions::default() };
    let (report, _) =
        ship::ship(&world.disk(), &world.remote_by(&settings), None, &options, &|_| {}).unwrap();
    assert!(report.lock.is_none() && world.server.kept(&World::at("vault.json")).is_none());
    // It says first what it would do.
    let dry = ShipOptions { dry_run: true, ..options };
    let (report, _) = ship::ship(&world.disk(), &world.remote(), None, &dry, &|_| {}).unwrap();
    assert!(report.lock.unwrap().extended > 0 && world.server.ops("retain") == 0);
    assert_eq!(world.ship().lock.unwrap().extended, world.names().len() as u64);
    world.all_locked();
}

/// What was put before versions were kept has one id: a damaged copy of the header is not taken for the other one.
#[test]
fn a_header_copy_that_was_damaged_before_there_were_versions_is_mended() {
    let world = World::new();
    world.advance(0);
    world.snapshot("one", &pattern(100_000, 1));
    world.server.set_bucket(false, false);
    let settings = Settings { lock: None, ..world.settings.clone() };
    let options = ShipOptions { jobs: Jobs::Fixed(2), ..ShipOptions::default() };
    ship::ship(&world.disk(), &world.remote_by(&settings), None, &options, &|_| {}).unwrap();
    let [first, second] = ["vault.json", "vault.json.bak"].map(World::at);
    let whole = world.server.stored(&first).unwrap();
    world.server.plant(&second, &vec![0; whole.len()]);
    world.server.set_bucket(true, true);
    assert_eq!(world.ship().headers, 1);
    assert_eq!([&first, &second].map(|name| world.server.stored(name).unwrap()), [whole.clone(), whole]);
}

/// The ledger saves requests, and nothing else depends on it.
#[test]
fn a_ledger_that_is_lost_or_lies_costs_requests_only() {
    let world = World::new();
    world.advance(0);
    for n in 0..6_u8 {
        world.snapshot("file", &pattern(50_000, n));
        world.ship();
    }
    let objects = world.names().len() as u64;
    let good = fs::read(world.ledger()).unwrap();
    let ship = |what: &str, asked: std::ops::RangeInclusive<u64>, set: u64| {
        world.server.forget_ops();
        world.ship();
        let (gets, sets) = (world.server.ops("retention"), world.server.ops("retain"));
        assert!(asked.contains(&gets) && sets == set, "{what}: {gets} asked, {sets} set");
        world.all_locked();
    };
    ship("known", 4..=4, 0);
    fs::remove_file(world.ledger()).unwrap();
    ship("lost", objects..=objects, 0);
    for nonsense in [b"".as_slice(), b"{", b"[1,2]", &good[..good.len() / 2], b"\xff\xfe"] {
        fs::write(world.ledger(), nonsense).unwrap();
        ship("nonsense", objects..=objects, 0);
    }
    let mut other: Value = serde_json::from_slice(&good).unwrap();
    other["place"] = "elsewhere".into();
    fs::write(world.ledger(), other.to_string()).unwrap();
    ship("of another place", objects..=objects, 0);
    // Dates that nobody ever set.
    let mut far: Value = serde_json::from_slice(&good).unwrap();
    for until in far["until"].as_object_mut().unwrap().values_mut() {
        *until = i64::MAX.into();
    }
    fs::write(world.ledger(), far.to_string()).unwrap();
    ship("beyond all dates", objects..=objects, 0);
    // It says more than is so: one proof is enough not to believe any of it.
    fs::write(world.ledger(), &good).unwrap();
    for name in world.names() {
        world.server.set_kept(&World::at(&name), None);
    }
    ship("a lie", objects + 1..=objects + 4, objects);
    // It says less than is so: what is set is never less than what was.
    let before: Vec<_> =
        world.names().iter().map(|name| world.server.kept(&World::at(name)).unwrap().until).collect();
    let mut old: Value = serde_json::from_slice(&good).unwrap();
    for until in old["until"].as_object_mut().unwrap().values_mut() {
        *until = 0.into();
    }
    fs::write(world.ledger(), old.to_string()).unwrap();
    world.ship();
    for (name, before) in world.names().iter().zip(before) {
        assert!(world.server.kept(&World::at(name)).unwrap().until >= before, "{name}");
    }
}

/// What is locked for longer than it need be is left alone; a stricter mode is set, a weaker one is not.
#[test]
fn settings_that_change_never_shorten() {
    let mut world = World::new();
    world.advance(0);
    world.snapshot("one", &pattern(100_000, 1));
    let objects = |world: &World| world.names().len() as u64;
    world.settings.lock = Some(Lock { mode: LockMode::Governance, days: 90 });
    world.ship();
    // Shorter: nothing is set.
    world.settings.lock = Some(Lock { mode: LockMode::Governance, days: 30 });
    let lock = world.ship().lock.unwrap();
    assert_eq!((lock.extended, lock.refused), (0, 0));
    // Stricter: everything is, and asked about, since what is known was of another mode. It is locked for no shorter time.
    world.settings.lock = Some(Lock { mode: LockMode::Compliance, days: 30 });
    let lock = world.ship().lock.unwrap();
    assert_eq!((lock.extended, lock.asked), (objects(&world), objects(&world)));
    // Weaker: what is locked strictly stays so, and is extended so.
    world.settings.lock = Some(Lock { mode: LockMode::Governance, days: 30 });
    world.advance(100);
    let lock = world.ship().lock.unwrap();
    assert_eq!((lock.extended, lock.refused), (objects(&world), 0));
    world.all_locked();
}

/// Packs that only removed snapshots need go free.
#[test]
fn what_no_snapshot_needs_is_not_locked_any_longer() {
    let world = World::new();
    world.advance(0);
    world.snapshot("file", &pattern(300_000, 1));
    world.ship();
    let old = world.names();
    world.snapshot("file", &pattern(300_000, 2));
    world.sandbox.keyed(&["snapshot", "delete", world.vault(), "1"]).ok();
    world.sandbox.keyed(&["gc", world.vault()]).ok();
    world.advance(10);
    world.ship();
    let (mut free, mut locked) = (0, 0);
    for name in &old {
        let left = world.server.kept(&World::at(name)).unwrap().until - world.server.now();
        match left < DAYS * DAY {
            true => free += 1,
            false => locked += 1,
        }
    }
    assert!(free >= 2 && locked >= 2, "{free} go free, {locked} stay (the header, for one): {old:?}");
    world.restores_by(&world.settings);
}

/// Delete markers and overwrites of packs, of the newest snapshot, of the header.
#[test]
fn what_somebody_does_there_is_told_and_changes_nothing() {
    let world = World::new();
    world.snapshot("one", &pattern(300_000, 1));
    world.add("safe", &world.settings).ok();
    let ship = || world.sandbox.run(["ship", world.vault(), "--json"]);
    let first = ship().json();
    assert_eq!((&first["lock"]["hidden_total"], &first["lock"]["mode"]), (&0.into(), &"compliance".into()));
    world.all_locked();
    let (pack, chain) = (world.first("packs/"), world.last("snapshots/"));
    world.server.hide(&World::at(&pack));
    world.server.hide(&World::at(&chain));
    let done = ship();
    assert_eq!(done.code, 25, "{done:?}");
    assert!(done.stderr.contains("a delete marker") && done.stderr.contains(&pack), "{done:?}");
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(report["lock"]["hidden"], serde_json::json!([pack, chain]));
    assert_eq!((&report["packs"], &report["chain_files"]), (&0.into(), &0.into()), "nothing was sent again");
    world.restores_by(&world.settings);
    let probe = world.sandbox.run(["remote", "test", world.vault(), "safe"]);
    assert!(probe.code == 25 && probe.stdout.contains("BAD  delete-markers"), "{probe:?}");
    // Overwritten by others' bytes: of another length, and of the same.
    let len = world.server.versions(&World::at(&pack))[0].bytes.len();
    world.server.plant(&World::at(&pack), b"rubbish");
    world.server.plant(&World::at(&chain), &vec![0; len]);
    world.server.plant(&World::at("vault.json"), b"{}");
    world.server.hide(&World::at("vault.json.bak"));
    // The next snapshot goes there all the same.
    world.snapshot("two", &pattern(100_000, 2));
    let done = ship();
    assert_eq!(done.code, 25, "{done:?}");
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(report["lock"]["overwritten"], serde_json::json!([pack, chain, "vault.json"]), "{report}");
    assert_eq!(report["lock"]["hidden"], serde_json::json!(["vault.json.bak"]), "{report}");
    assert_eq!((&report["chain_files"], &report["headers"]), (&1.into(), &0.into()), "{report}");
    world.all_locked();
    world.restores_by(&world.settings);
    let said = world.sandbox.run(["ship", world.vault()]).fails(25);
    assert!(said.contains("somebody wrote over 3 objects"), "{said}");
}

fn forged(bytes: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::parse(bytes).unwrap().header;
    change(&mut header);
    header.encode(|_| [7; 32])
}

/// Whose header counts.
#[test]
fn headers_of_others_do_not_hide_ours() {
    let world = World::new();
    world.advance(0);
    world.snapshot("one", &pattern(10_000, 1));
    world.ship();
    let ours = || fs::read(world.sandbox.vault().join("vault.json")).unwrap();
    let read = || remote::read(world.remote().as_ref(), &key("vault.json"), 1 << 20).unwrap();
    let first = ours();
    let change_keys = |name: &str| {
        let out = world.sandbox.str(name);
        world.sandbox.keyed(&["key", "add", world.vault(), "--new-recovery-key-out", &out]).ok();
    };
    // Keys are changed: what is newer counts.
    change_keys("new1.txt");
    assert_eq!(world.ship().headers, 2);
    assert_eq!((read(), ours() == first), (ours(), false));
    assert_eq!(world.ship().lock.unwrap().overwritten_total, 0, "a newer header is no overwrite");
    let second = ours();
    // Older, of another vault, of the same generation with other slots, longer than any, no header at all.
    let at = World::at("vault.json");
    world.server.plant(&at, &first);
    world.server.plant(&at, &forged(&second, |header| header.signing_key[0] ^= 1));
    world.server.plant(&at, &forged(&second, |header| header.created = "2001-01-01T00:00:00Z".into()));
    world.server.plant(&at, &vec![b'x'; 300 << 10]);
    world.server.plant(&at, b"not a header");
    assert_eq!(read(), second);
    let lock = world.ship().lock.unwrap();
    assert_eq!(lock.overwritten, ["vault.json"]);
    world.all_locked();
    // A forged newer one can't be told from a true one without a key. It is told, ours is there and stays locked, and
    // changes of keys still arrive.
    world.server.plant(&at, &forged(&second, |header| header.generation += 1000));
    let lock = world.ship().lock.unwrap();
    assert_eq!(lock.overwritten, ["vault.json"]);
    change_keys("new2.txt");
    let report = world.ship();
    assert_eq!((report.headers, report.lock.unwrap().overwritten), (2, vec!["vault.json".to_string()]));
    let third = ours();
    let versions = world.remote().versions(&key("vault.json"), 1 << 20).unwrap();
    let place = |bytes: &[u8]| versions.iter().position(|version| version.bytes == bytes).unwrap();
    assert_eq!((place(&third), place(&second)), (1, 2), "next after the forged one, then by generation");
    assert!(versions.iter().find(|version| version.latest).unwrap().bytes == third);
    let report = world.ship();
    assert_eq!((report.headers, report.lock.unwrap().overwritten_total), (0, 1), "once is enough");
    let locked = world.server.versions(&at);
    let ours = locked.iter().find(|version| *version.bytes == third).unwrap();
    assert!(ours.kept.as_ref().unwrap().until - world.server.now() >= DAYS * DAY);
    // The other copy was left alone: it is read as it should be.
    assert_eq!(remote::read(world.remote().as_ref(), &key("vault.json.bak"), 1 << 20).unwrap(), third);
}

/// Whoever may write there can raise an alarm with each shipment. What is there stays locked all the same, the header too.
#[test]
fn an_alarm_does_not_let_locks_run_out() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    world.ship();
    let shipped = world.names();
    assert!(shipped.iter().any(|name| name == "vault.json"), "{shipped:?}");
    // Something of another length stands under the name of a pack that is still to come.
    world.snapshot("two", &pattern(100_000, 2));
    let mut packs = list_packs(world.disk().as_ref()).unwrap().into_keys().map(|name| pack_path(&name));
    let next = packs.rfind(|name| !shipped.contains(name)).unwrap();
    put(world.remote().as_ref(), &next, b"rubbish").unwrap();
    for _ in 0..3 {
        world.advance(20);
        let error = world.try_ship(None).unwrap_err();
        assert!(error.to_string().contains("another length"), "{error}");
        for name in &shipped {
            let left = world.server.kept(&World::at(name)).unwrap().until - world.server.now();
            assert!(left >= DAYS * DAY, "{name}: {left} s");
        }
    }
}

#[test]
fn a_bucket_without_object_lock_is_refused_before_anything_is_put() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.add("safe", &world.settings).ok();
    for (versioned, locked) in [(false, false), (true, false), (false, true)] {
        world.server.set_bucket(versioned, locked);
        let said = world.sandbox.run(["ship", world.vault()]).fails(24);
        assert!(said.contains("nothing was sent") && said.contains("contrib/iam/README.md"), "{said}");
        world.sandbox.run(["ship", world.vault(), "--extend-only"]).fails(24);
        let probe = world.sandbox.run(["remote", "test", world.vault(), "safe"]);
        assert!(probe.code == 25 && probe.stdout.contains("BAD  object-lock"), "{probe:?}");
        assert!(world.server.all_keys().is_empty());
    }
    // The bucket says nothing, takes everything, and locks nothing.
    world.server.set_bucket(true, true);
    world.server.set_defects(Defects { forgets_locks: true, ..Defects::default() });
    let said = world.sandbox.run(["ship", world.vault()]).fails(24);
    assert!(said.contains("keeps it not at all"), "{said}");
    world.server.set_defects(Defects::default());
    // A remote that is not to lock has nothing to extend.
    world.add("plain", &Settings { lock: None, ..world.settings.clone() }).ok();
    let said = world.sandbox.run(["ship", world.vault(), "--to", "plain", "--extend-only"]).fails(24);
    assert!(said.contains("not locked"), "{said}");
}

#[test]
fn a_clock_that_is_behind_locks_nothing() {
    let world = World::new();
    world.server.set_clock(world.env.now().secs + 400 * DAY);
    world.snapshot("one", b"1");
    match world.try_ship(None).unwrap_err() {
        ShipError::Remote(error) => {
            assert_eq!(error.kind, ErrorKind::ClockSkew);
            assert!(error.message.contains("this machine's clock says"), "{error}");
        }
        other => panic!("{other}"),
    }
    assert!(world.server.all_keys().is_empty());
}

#[test]
fn locks_are_remembered_and_shown() {
    let world = World::new();
    world.add("safe", &world.settings).ok();
    let list = world.sandbox.run(["remote", "list", world.vault(), "--json"]).json();
    assert_eq!(list[0]["lock"], serde_json::json!({"mode": "compliance", "days": 30}));
    let said = world.sandbox.run(["remote", "list", world.vault()]).ok();
    assert!(said.contains("locked for 30 days (compliance)"), "{said}");
    let add = |more: &[&str]| {
        let args = ["remote", "add", world.vault(), "x", "s3://bucket/x"];
        world.sandbox.run(args.iter().chain(more))
    };
    for wrong in [
        ["--lock-days", "30"].as_slice(),
        &["--lock-mode", "governance"],
        &["--lock-mode", "forever", "--lock-days", "30"],
        &["--lock-mode", "governance", "--lock-days", "0"],
        &["--lock-mode", "governance", "--lock-days", "3651"],
    ] {
        add(wrong).fails(2);
    }
    let file =
        ["remote", "add", world.vault(), "y", "file:///x", "--lock-mode", "governance", "--lock-days", "3"];
    assert!(world.sandbox.run(file).fails(2).contains("--lock-mode means nothing"));
    // Who forgets a remote forgets what is locked there.
    world.snapshot("one", b"1");
    world.sandbox.run(["ship", world.vault()]).ok();
    let ledger = world.ledger();
    assert!(ledger.exists());
    world.sandbox.run(["remote", "remove", world.vault(), "safe"]).ok();
    assert!(!ledger.exists());
}

/// A clone of a locked place says that it would lock nothing, and which command goes on with the promise.
#[test]
fn a_clone_of_a_locked_place_says_how_to_go_on_locking() {
    let world = World::new();
    world.snapshot("one", &pattern(10_000, 1));
    world.add("safe", &world.settings).ok();
    world.sandbox.run(["ship", world.vault()]).ok();
    let settings = &world.settings;
    let credentials = settings.credentials_file.as_ref().unwrap().to_str().unwrap();
    let flags = [
        "--path-style",
        "--endpoint",
        settings.endpoint.as_deref().unwrap(),
        "--credentials-file",
        credentials,
    ];
    let clone = |to: &str, more: &[&str]| {
        let to = world.sandbox.str(to);
        world.sandbox.run([&["clone", &settings.url, &to][..], &flags, more].concat())
    };
    // A name that has to be quoted.
    let done = clone("a $copy's", &[]);
    assert!(done.code == 0 && done.stderr.contains("(compliance, the header until 20"), "{done:?}");
    let lines: Vec<&str> = done.stderr.lines().filter(|line| line.contains("remote add")).collect();
    let command = lines[0].trim().replace("DAYS", &DAYS.to_string());
    let copy = world.sandbox.str("a $copy's");
    let ship = || world.sandbox.run(["ship", &copy, "--json"]).json();
    assert!(ship()["lock"].is_null(), "as it was cloned");
    world.sandbox.sh(&command.replacen("strongroom", env!("CARGO_BIN_EXE_strongroom"), 1)).ok();
    assert_eq!(ship()["lock"]["days"], DAYS);
    // With the flags, and in JSON.
    let days = DAYS.to_string();
    let done = clone("told", &["--lock-mode", "compliance", "--lock-days", &days]);
    assert!(done.code == 0 && !done.stderr.contains("remote add"), "{done:?}");
    let line = clone("other", &["--json"]).json();
    assert_eq!(line["locked_there"]["mode"], "compliance", "{line}");
    // Who may not read versions hears of it, with each verb that wanted to.
    assert!(!done.stderr.contains("by version"), "{done:?}");
    world.server.set_trouble(|_, op, _| (op == "versions").then_some(Trouble::Before("AccessDenied", 403)));
    let from = [&["--from", &settings.url][..], &flags].concat();
    let listed = world.sandbox.keyed(&[&["snapshot", "list"][..], &from].concat());
    for done in [clone("unversioned", &[]), world.sandbox.run(["pull", &world.sandbox.str("other")]), listed]
    {
        assert!(done.code == 0 && done.stderr.contains("can't be read by version ("), "{done:?}");
    }
}

/// Where requests go is told by the environment and by profiles as well: what is known of one endpoint is not believed of another.
#[test]
fn what_is_locked_at_one_endpoint_is_not_at_another() {
    let world = World::new();
    world.snapshot("one", &pattern(50_000, 1));
    let others = [Server::start(), Server::start()];
    let lock = world.settings.lock;
    let path = world.sandbox.path("config");
    let config = |endpoint: &str| {
        let text =
            format!("[profile far]\nservices = there\n[services there]\ns3 =\n  endpoint_url = {endpoint}\n");
        fs::write(&path, text).unwrap();
    };
    // All of them were filled before anything was locked.
    for server in [&world.server, &others[0], &others[1]] {
        server.set_bucket(true, true);
        let settings = Settings { lock: None, ..s3_settings(server, &world.sandbox.path("")) };
        let options = ShipOptions { jobs: Jobs::Fixed(2), ..ShipOptions::default() };
        ship::ship(&world.disk(), &world.remote_by(&settings), None, &options, &|_| {}).unwrap();
    }
    let file = world.settings.credentials_file.as_ref().unwrap().to_str().unwrap().to_string();
    let text = fs::read_to_string(&file).unwrap();
    crate::remote::private_file(Path::new(&file), &format!("{text}\n{}", text.replace("default", "far")));
    let days = lock.unwrap().days.to_string();
    for (name, more) in [("a", vec![]), ("b", vec![]), ("c", vec!["--profile", "far"])] {
        let add = [
            "remote",
            "add",
            world.vault(),
            name,
            &world.settings.url,
            "--path-style",
            "--credentials-file",
            &file,
        ];
        let locks = ["--lock-mode", "compliance", "--lock-days", &days, "--region", "eu-central-1"];
        world.sandbox.run([&add[..], &locks, &more].concat()).ok();
    }
    let ship = |name: &str, variable: Option<(&str, String)>| {
        let mut command = world.sandbox.strongroom();
        command.args(["ship", world.vault(), "--to", name, "--json"]).env("AWS_CONFIG_FILE", &path);
        if let Some((variable, endpoint)) = variable {
            command.env(variable, endpoint);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            output.status.code().unwrap(),
            serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default(),
            said,
        )
    };
    config(&others[1].endpoint());
    let ends = [
        ship("a", Some(("AWS_ENDPOINT_URL", world.server.endpoint()))),
        ship("b", Some(("AWS_ENDPOINT_URL_S3", others[0].endpoint()))),
        ship("c", None),
    ];
    for (code, line, said) in ends {
        assert!(code == 0 && line["lock"]["extended"] == line["lock"]["objects"], "{line} {said}");
    }
    for server in [&world.server, &others[0], &others[1]] {
        let keys = server.all_keys();
        assert!(keys.len() >= 4 && keys.iter().all(|key| server.kept(key).is_some()), "{keys:?}");
    }
    assert_eq!(ship("c", None).1["lock"]["extended"], 0, "it is remembered");
    // What is not encrypted is refused wherever it stands.
    config("http://10.0.0.1:9");
    let (code, _, said) = ship("c", None);
    assert!(code == 24 && said.contains("not encrypted"), "{said}");
}

/// Something that was listed is gone when it is to be kept for longer: all is listed once more, and what is gone then is said.
#[test]
fn what_is_gone_when_it_is_to_be_kept_is_said() {
    let world = World::new();
    world.advance(0);
    world.snapshot("one", &pattern(100_000, 1));
    world.ship();
    world.advance(10);
    let ship = |times: u64| {
        let missing = key(&world.first("packs/"));
        let (left, lists) =
            (std::sync::atomic::AtomicU64::new(times), Arc::new(std::sync::atomic::AtomicU64::new(0)));
        let count = Arc::clone(&lists);
        let remote: Arc<dyn Remote> =
            Arc::new(remote::FaultyRemote::new(world.remote(), move |_, op, name| {
                use std::sync::atomic::Ordering::SeqCst;
                count.fetch_add(u64::from(op == remote::Op::List && name == "packs/"), SeqCst);
                let is_it = op == remote::Op::Retain && name == missing.as_str();
                let goes = is_it && left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
                goes.then_some(remote::Fault::Before(ErrorKind::NotFound))
            }));
        let options = ShipOptions { jobs: Jobs::Fixed(1), ..ShipOptions::default() };
        let (report, _) = ship::ship(&world.disk(), &remote, None, &options, &|_| {}).unwrap();
        let lock = report.lock.unwrap();
        (lock.gone_total, lock.gone, lists.load(std::sync::atomic::Ordering::SeqCst))
    };
    let (gone, names, lists) = ship(100);
    assert_eq!((gone, names, lists), (1, vec![world.first("packs/")], 2));
    assert_eq!(ship(1), (0, vec![], 2));
    world.all_locked();
}

/// Delete markers are found, then something fails: both are said, and the alarm is what it ends with.
#[test]
fn what_was_found_is_said_although_shipping_failed() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    world.add("safe", &world.settings).ok();
    world.sandbox.run(["ship", world.vault()]).ok();
    let pack = world.first("packs/");
    world.server.hide(&World::at(&pack));
    world.snapshot("two", &pattern(100_000, 2));
    world.server.set_trouble(|_, op, _| (op == "put").then_some(Trouble::Before("AccessDenied", 403)));
    let done = world.sandbox.run(["ship", world.vault(), "--json"]);
    let line: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((done.code, &line["lock"]["hidden"]), (25, &serde_json::json!([pack])), "{done:?}");
    assert!(line["error"].is_string() && done.stderr.contains("a delete marker"), "{done:?}");
}

/// What may not be locked in one mode, and in the other can't be or is gone: said, and no reason not to ship.
#[test]
fn a_lock_that_can_not_be_made_stricter_stops_nothing() {
    use std::sync::atomic::{AtomicU64, Ordering};
    for (kind, refused, gone) in
        [(ErrorKind::Denied, 1, 0), (ErrorKind::Unsupported, 1, 0), (ErrorKind::NotFound, 0, 1)]
    {
        let mut world = World::new();
        world.advance(0);
        world.settings.lock = Some(Lock { mode: LockMode::Governance, days: DAYS as u32 });
        world.snapshot("one", &pattern(100_000, 1));
        world.ship();
        // Somebody made them strict behind our back.
        for name in world.names() {
            let kept = world.server.kept(&World::at(&name)).unwrap();
            world.server.set_kept(&World::at(&name), Some(Kept { compliance: true, ..kept }));
        }
        world.advance(10);
        let (pack, tries) = (world.first("packs/"), AtomicU64::new(0));
        let remote: Arc<dyn Remote> =
            Arc::new(remote::FaultyRemote::new(world.remote(), move |_, op, name| {
                let is_it = op == remote::Op::Retain && name == pack;
                // The first try, in the weaker mode, is refused by the server itself.
                let fails = is_it && tries.fetch_add(1, Ordering::SeqCst) > 0;
                fails.then_some(remote::Fault::Before(kind))
            }));
        let options = ShipOptions { jobs: Jobs::Fixed(1), ..ShipOptions::default() };
        let (report, _) = ship::ship(&world.disk(), &remote, None, &options, &|_| {})
            .unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        let lock = report.lock.unwrap();
        // It is tried before and after what is sent.
        assert_eq!((lock.refused.min(1), lock.gone_total), (refused, gone), "{kind:?}: {lock:?}");
        let lock = world.ship().lock.unwrap();
        assert_eq!((lock.extended, lock.refused, lock.gone_total), (1, 0, 0), "{kind:?}: {lock:?}");
        world.all_locked();
    }
}
