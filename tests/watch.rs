//! `ship --watch`: what appears is shipped, whatever goes away meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use strongroom::env::SystemEnv;
use strongroom::remote::{self, Fault, FaultyRemote, Op, Remote, Settings};
use strongroom::ship::{
    Event, Jobs, Opened, ShipOptions, Stop, Watched, Watching, load_last, lock_remote, ship, watch,
};

use crate::common::{signal, wait_until};
use crate::remote::s3_server::{Defects, Server, Trouble};
use crate::remote::{once, pattern};
use crate::ship::{World, files, newest_complete};

/// A running `ship --watch --json`.
struct Watch {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    reader: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(world: &World, more: &[&str]) -> Self {
        let mut child = world
            .sandbox
            .strongroom()
            .args(["ship", world.vault(), "--watch", "--json", "--interval", "1s"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (into, out) = (Arc::clone(&lines), child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(out).lines() {
                let line = line.unwrap();
                into.lock()
                    .unwrap()
                    .push(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")));
            }
        });
        Self { child, lines, reader: Some(reader) }
    }

    fn lines(&self, event: &str, remote: &str) -> Vec<Value> {
        let lines = self.lines.lock().unwrap();
        let fits = |line: &&Value| line["event"] == event && (remote.is_empty() || line["remote"] == remote);
        lines.iter().filter(fits).cloned().collect()
    }

    /// Waits for a line of this event, and returns the last one.
    #[track_caller]
    fn wait(&self, event: &str, remote: &str) -> Value {
        wait_until(&format!("{event} {remote}"), || !self.lines(event, remote).is_empty());
        self.lines(event, remote).pop().unwrap()
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Ends it with signals; it ends with 0.
    #[track_caller]
    fn stop(mut self, signals: &[Signal]) -> Vec<Value> {
        for wanted in signals {
            signal(self.pid(), *wanted);
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.reader.take().unwrap().join().unwrap();
        self.lines.lock().unwrap().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn has(world: &World, seq: u64) -> bool {
    newest_complete(&world.usb()) == seq
}

#[test]
fn what_appears_is_shipped() {
    let world = World::new();
    let watch = Watch::start(&world, &[]);
    assert_eq!(watch.wait("shipped", "usb")["newest"], Value::Null);
    world.snapshot("one", &pattern(200_000, 1));
    wait_until("the first snapshot", || has(&world, 1));
    world.snapshot("two", b"2");
    wait_until("the second snapshot", || has(&world, 2));
    wait_until("its line", || watch.lines("shipped", "usb").iter().any(|line| line["newest"] == 2));
    // Between rounds nothing is open: both disks can be unmounted.
    let open = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", watch.pid())).unwrap();
        let targets = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        targets.filter(|path| path.starts_with(world.sandbox.path(""))).count()
    };
    wait_until("nothing is open", || open() == 0);
    // A changed key.
    world
        .sandbox
        .keyed(&["key", "add", world.vault(), "--new-recovery-key-out", &world.sandbox.str("new.txt")])
        .ok();
    let header = || fs::read(world.usb().join("vault.json.bak")).ok();
    wait_until("the header", || header() == fs::read(world.sandbox.vault().join("vault.json")).ok());
    // The other such line is about the first one.
    let headers = || watch.lines("shipped", "usb").iter().filter(|line| line["headers"] == 2).count();
    wait_until("its line", || headers() == 2);
    // While nothing changes nobody is asked.
    let rounds = watch.lines("shipped", "").len();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(watch.lines("shipped", "").len(), rounds);
    // Beside it, `ship` has nothing left to do, and is not in its way.
    assert_eq!(world.ship()["bytes"], 0);
    world.snapshot("three", b"3");
    wait_until("the third snapshot", || has(&world, 3));
    // Its end waits for the round, which then remembers what it did.
    let lines = watch.stop(&[Signal::TERM]);
    assert!(lines.iter().all(|line| line["event"] == "shipped" && line["time"].is_string()), "{lines:?}");
    let status = world.cli(&["status", world.vault(), "--json"]).json();
    assert_eq!(status["remotes"][0]["complete"], 3, "{status}");
    world.restores(&world.usb());
    world.sandbox.fsck(&world.usb()).ok();
}

/// Packs that no snapshot names yet go first; when it is made, only its file is left.
#[test]
fn packs_go_ahead_of_their_snapshot() {
    let world = World::new();
    world.snapshot("one", &pattern(200_000, 1));
    world.snapshot("two", &pattern(300_000, 2));
    let second = files(&world.sandbox.vault())
        .into_iter()
        .find(|(name, _)| name.starts_with("snapshots/0000000002-"))
        .unwrap();
    let path = world.sandbox.vault().join(&second.0);
    fs::remove_file(&path).unwrap();
    let watch = Watch::start(&world, &[]);
    let line = watch.wait("shipped", "usb");
    assert!(
        line["packs_ahead"].as_u64().unwrap() > 0 && line["packs"].as_u64() > line["packs_ahead"].as_u64()
    );
    assert!(has(&world, 1));
    fs::write(world.sandbox.path("new"), &second.1).unwrap();
    fs::rename(world.sandbox.path("new"), &path).unwrap();
    wait_until("the snapshot", || has(&world, 2));
    let last = watch.stop(&[Signal::INT]).pop().unwrap();
    assert_eq!(
        (&last["packs"], &last["packs_ahead"], &last["chain_files"]),
        (&0.into(), &0.into(), &1.into())
    );
    world.restores(&world.usb());
}

/// A pack that is collected here before any snapshot named it is no error, wherever it was by then.
#[test]
fn a_pack_that_is_collected_before_it_is_named_is_no_error() {
    let world = World::new();
    world.snapshot("one", &pattern(200_000, 1));
    world.snapshot("two", &pattern(300_000, 2));
    world.sandbox.sh("rm encrypted/snapshots/0000000002-*").ok();
    let named: Vec<String> = files(&world.sandbox.vault()).into_iter().map(|(name, _)| name).collect();
    let vault = world.sandbox.vault();
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let real = remote::open(&settings, &once()).unwrap();
    let watched = Arc::new(Watched::new(Arc::new(Stop::new().unwrap())));
    let options = || ShipOptions {
        jobs: Jobs::Fixed(1),
        watched: Some(Arc::clone(&watched)),
        ..ShipOptions::default()
    };
    // All packs but those of the first snapshot vanish when the first object is sent.
    let needed = {
        let disk = world.disk();
        let loaded = strongroom::store::header::load(disk.as_ref()).unwrap();
        let chain = strongroom::snapshot::chain::Chain::load(disk.as_ref(), &loaded.parsed.header).unwrap();
        let packs = chain.needed_packs(1).unwrap();
        packs.iter().map(strongroom::format::pack::pack_path).collect::<Vec<_>>()
    };
    let unnamed: Vec<_> =
        named.iter().filter(|name| name.starts_with("packs/") && !needed.contains(name)).cloned().collect();
    assert!(!unnamed.is_empty());
    let gone = unnamed.clone();
    let collects: Arc<dyn Remote> = Arc::new(FaultyRemote::new(Arc::clone(&real), move |_, op, _| {
        if op == Op::Put {
            for name in &gone {
                drop(fs::remove_file(vault.join(name)));
            }
        }
        None::<Fault>
    }));
    let (report, _) = ship(&world.disk(), &collects, None, &options(), &|_| {}).unwrap();
    assert_eq!((report.damaged, report.packs_ahead, report.newest), (vec![], 0, Some(1)));
    let (again, _) = ship(&world.disk(), &real, None, &options(), &|_| {}).unwrap();
    assert_eq!((again.packs, again.chain_files, again.damaged), (0, 0, vec![]));
    assert!(has(&world, 1));
}

/// Packs that no snapshot names yet, each with the name that its bytes have.
fn unnamed_pack(world: &World, bytes: &[u8]) {
    let name = blake3::hash(bytes).to_hex().to_string();
    let dir = world.sandbox.vault().join(format!("packs/{}", &name[..2]));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(name), bytes).unwrap();
}

/// What a round knows of the remote saves listings, and is not believed for ever: a failure, or somebody else, ends it; and no
/// snapshot is sent on belief.
#[test]
fn a_remote_is_listed_once_while_all_goes_well() {
    let world = World::new();
    world.snapshot("one", b"1");
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let (lists, fail) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(false)));
    let (count, failing) = (Arc::clone(&lists), Arc::clone(&fail));
    let remote: Arc<dyn Remote> =
        Arc::new(FaultyRemote::new(remote::open(&settings, &once()).unwrap(), move |_, op, name| {
            *count.lock().unwrap() += u64::from(op == Op::List && name == "packs/");
            (*failing.lock().unwrap() && op == Op::Put)
                .then_some(Fault::Before(remote::ErrorKind::Unreachable))
        }));
    let watched = Arc::new(Watched::new(Arc::new(Stop::new().unwrap())));
    let options = ShipOptions { watched: Some(watched), ..ShipOptions::default() };
    let lists_of = |fails: bool| {
        *fail.lock().unwrap() = fails;
        let before = *lists.lock().unwrap();
        let done = ship(&world.disk(), &remote, None, &options, &|_| {});
        assert_eq!(done.is_err(), fails);
        *lists.lock().unwrap() - before
    };
    assert_eq!(lists_of(false), 1);
    unnamed_pack(&world, b"ahead");
    assert_eq!(lists_of(false), 0);
    assert_eq!(lists_of(false), 0, "nothing new");
    world.snapshot("two", &pattern(100_000, 1));
    assert_eq!(lists_of(false), 1, "a snapshot");
    unnamed_pack(&world, b"more");
    assert_eq!(lists_of(true), 0);
    assert_eq!(lists_of(false), 1, "after a failure");
    assert!(has(&world, 2));
    world.restores(&world.usb());
}

#[test]
fn a_remote_that_is_away_is_told_once_and_shipped_to_when_it_is_back() {
    let world = World::new();
    fs::create_dir(world.sandbox.path("other")).unwrap();
    let other = format!("file://{}", world.sandbox.str("other"));
    world.cli(&["remote", "add", world.vault(), "other", &other]).ok();
    fs::rename(world.usb(), world.sandbox.path("unplugged")).unwrap();
    let watch = Watch::start(&world, &[]);
    let failing = watch.wait("failing", "usb");
    assert_eq!(failing["exit_code"], 24, "{failing}");
    assert!(
        failing["error"].as_str().unwrap().contains("is the disk mounted?") && failing["hint"].is_string()
    );
    world.snapshot("one", &pattern(100_000, 1));
    wait_until("the other remote", || newest_complete(&world.sandbox.path("other")) == 1);
    // Through at least one more try.
    std::thread::sleep(Duration::from_secs(6));
    fs::rename(world.sandbox.path("unplugged"), world.usb()).unwrap();
    wait_until("it was found again", || has(&world, 1));
    watch.wait("shipped", "usb");
    assert_eq!(watch.lines("failing", "").len(), 1, "not at each try");
    watch.stop(&[Signal::TERM]);
}

#[test]
fn one_that_hangs_holds_nobody_and_is_not_shipped_to_twice() {
    let world = World::new();
    let server = Server::start();
    world.add_s3(&server);
    server.set_trouble(|_, _, _| Some(Trouble::Stall));
    let watch = Watch::start(&world, &[]);
    wait_until("it hangs", || server.requests() > 0);
    world.snapshot("one", &pattern(100_000, 1));
    wait_until("the other remote", || has(&world, 1));
    let said = world.cli(&["ship", world.vault(), "--to", "s3"]).fails(16);
    let who = format!("strongroom ship --watch, process {}", watch.pid());
    assert!(said.contains(&who) && said.contains("hint: "), "{said}");
    // With --dry-run nothing is sent, so nobody is asked for leave. (It would hang here: only the parts that matter.)
    // The other one's round ends after what came of it was remembered.
    wait_until("the other lock", || lock_remote(world.disk().as_ref(), "usb", "test").is_ok());
    watch.stop(&[Signal::TERM, Signal::TERM]);
    lock_remote(world.disk().as_ref(), "s3", "test").unwrap();
}

#[test]
fn another_process_that_ships_is_waited_for() {
    let world = World::new();
    world.snapshot("one", b"1");
    let lock = lock_remote(world.disk().as_ref(), "usb", "somebody else").unwrap();
    let watch = Watch::start(&world, &[]);
    let waiting = watch.wait("failing", "usb");
    assert_eq!(waiting["exit_code"], 16);
    assert!(waiting["error"].as_str().unwrap().contains("somebody else"), "{waiting}");
    drop(lock);
    wait_until("it is shipped", || has(&world, 1));
    assert_eq!(watch.stop(&[Signal::TERM]).len(), 2);
}

#[test]
fn remotes_come_and_go() {
    let world = World::new();
    world.snapshot("one", b"1");
    let watch = Watch::start(&world, &[]);
    watch.wait("shipped", "usb");
    fs::create_dir(world.sandbox.path("other")).unwrap();
    let other = format!("file://{}", world.sandbox.str("other"));
    world.cli(&["remote", "add", world.vault(), "other", &other]).ok();
    watch.wait("added", "other");
    wait_until("the new remote", || newest_complete(&world.sandbox.path("other")) == 1);
    world.cli(&["remote", "remove", world.vault(), "usb"]).ok();
    watch.wait("removed", "usb");
    world.snapshot("two", b"2");
    wait_until("the other one goes on", || newest_complete(&world.sandbox.path("other")) == 2);
    assert!(has(&world, 1), "the removed one doesn't");
    watch.stop(&[Signal::TERM]);
    // Named ones must be there at the start.
    world.cli(&["ship", world.vault(), "--watch", "--to", "usb"]).fails(22);
}

#[test]
fn the_vault_may_go_away_and_come_back() {
    let world = World::new();
    world.snapshot("one", b"1");
    let watch = Watch::start(&world, &[]);
    wait_until("the first snapshot", || has(&world, 1));
    let (vault, away) = (world.sandbox.vault(), world.sandbox.path("away"));
    fs::rename(&vault, &away).unwrap();
    watch.wait("vault-away", "");
    // Another vault in its place is not this one.
    fs::remove_file(world.sandbox.path("recovery.txt")).unwrap();
    world.sandbox.init();
    wait_until("it is another one", || {
        watch
            .lines("vault-away", "")
            .iter()
            .any(|line| line["error"].as_str().unwrap().contains("another vault"))
    });
    fs::remove_dir_all(&vault).unwrap();
    fs::rename(&away, &vault).unwrap();
    watch.wait("vault-back", "");
    world.snapshot("two", b"2");
    wait_until("the second snapshot", || has(&world, 2));
    watch.stop(&[Signal::TERM]);
    world.restores(&world.usb());
}

/// Ended in the middle of an object: nothing of it is left, and the next one sends it.
#[test]
fn an_object_under_way_is_given_up_without_a_trace() {
    let world = World::new();
    world.snapshot("one", &pattern(2 << 20, 1));
    let watch = Watch::start(&world, &["--limit-upload", "1k"]);
    let scratch = || match fs::read_dir(world.usb().join(".incoming")) {
        Ok(entries) => entries.filter(|entry| entry.as_ref().unwrap().file_name() != "lock").count(),
        Err(_) => 0,
    };
    wait_until("an object is under way", || scratch() > 0);
    watch.stop(&[Signal::TERM, Signal::TERM]);
    assert_eq!(scratch(), 0);
    world.ship();
    world.restores(&world.usb());
}

/// A job writes for a long time: its packs are there before its snapshot is.
#[test]
fn heavy_packs_of_a_mounted_vault_go_as_they_close() {
    let world = World::new();
    world.sandbox.mount();
    let watch = Watch::start(&world, &[]);
    watch.wait("shipped", "usb");
    let mut rng = crate::common::Rng::new(7);
    let mut written = 0;
    let closed = || files(&world.sandbox.vault()).iter().any(|(name, _)| name.starts_with("packs/"));
    while !closed() {
        assert!(written < 100, "no pack was closed in {written} x 8 MiB");
        fs::write(world.sandbox.mountpoint().join(format!("file{written}")), rng.bytes(8 << 20)).unwrap();
        world.sandbox.sh("sync -f decrypted").ok();
        written += 1;
    }
    wait_until("a pack goes ahead", || {
        watch.lines("shipped", "usb").iter().any(|line| line["packs_ahead"].as_u64() > Some(0))
    });
    assert!(files(&world.usb()).iter().all(|(name, _)| !name.starts_with("snapshots/")));
    world.sandbox.umount();
    wait_until("the snapshot", || has(&world, 1));
    watch.stop(&[Signal::TERM]);
    let (usb, to) = (world.sandbox.str("usb"), world.sandbox.str("restored"));
    world.sandbox.keyed(&["restore", &usb, "--to", &to]).ok();
    assert_eq!(fs::read_dir(&to).unwrap().count(), written);
    world.sandbox.fsck(&world.usb()).ok();
}

/// The unit in contrib/systemd calls what there is.
#[test]
fn the_unit_calls_what_there_is() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd/strongroom-ship@.service");
    let unit = fs::read_to_string(path).unwrap();
    let command =
        unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/strongroom ")).unwrap();
    let world = World::new();
    let args: Vec<&str> =
        command.split(' ').map(|word| if word == "%f" { world.vault() } else { word }).collect();
    assert!(args.contains(&world.vault()) && args.contains(&"--watch"), "{args:?}");
    assert!(unit.lines().any(|line| line == "Environment=HOME=%h"), "~/.aws is found by it alone");
    let mut watch = world.sandbox.strongroom().args(&args).stdout(Stdio::null()).spawn().unwrap();
    wait_until("it ships", || world.usb().join("vault.json.bak").exists());
    signal(i32::try_from(watch.id()).unwrap(), Signal::TERM);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

/// A pack that was damaged there, and that nobody can remove, is an alarm in each round until it is gone.
#[test]
fn what_was_damaged_there_stays_an_alarm() {
    let world = World::new();
    let server = Server::start();
    world.add_s3(&server);
    world.snapshot("one", &pattern(200_000, 1));
    world.cli(&["ship", world.vault(), "--to", "s3"]).ok();
    let before = server.keys();
    world.snapshot("two", &pattern(200_000, 2));
    server.set_defects(Defects { stores_other_bytes: true, ..Defects::default() });
    let watch = Watch::start(&world, &["--to", "s3", "--jobs", "1"]);
    assert_eq!(watch.wait("failing", "s3")["exit_code"], 25);
    server.set_defects(Defects::default());
    let line = watch.wait("shipped", "s3");
    let bad: Vec<String> = serde_json::from_value(line["damaged_there_names"].clone()).unwrap();
    assert!(!bad.is_empty() && line["damaged_there"] == bad.len(), "{line}");
    assert_eq!((&line["complete"], &line["newest"]), (&1.into(), &2.into()), "{line}");
    let usb = |code: i32| {
        let done = world.cli(&["status", world.vault(), "--json"]);
        assert_eq!(done.code, code, "{done:?}");
        let status: Value = serde_json::from_str(&done.stdout).unwrap();
        status["remotes"].as_array().unwrap().iter().find(|remote| remote["name"] == "s3").unwrap().clone()
    };
    assert_eq!((&usb(25)["is_alarm"], &usb(25)["error"]), (&true.into(), &Value::Null));
    // Somebody who may removes it: it is sent anew when something changes here, or after an hour.
    for name in &bad {
        let key = format!("some/vault/{name}");
        assert!(!before.contains(&key));
        server.remove(&key);
    }
    world.snapshot("three", b"3");
    wait_until("all is there", || watch.lines("shipped", "s3").iter().any(|line| line["complete"] == 3));
    assert_eq!(watch.wait("shipped", "s3")["damaged_there"], 0);
    assert_eq!(usb(0)["is_alarm"], false);
    watch.stop(&[Signal::TERM]);
}

/// What came of a round is remembered while nobody else can ship, and then told: it writes over nothing that is newer.
#[test]
fn a_round_is_remembered_before_it_is_told() {
    let world = World::new();
    world.snapshot("one", b"1");
    let (stop, seen) = (Arc::new(Stop::new().unwrap()), Arc::new(Mutex::new(Vec::new())));
    let (ends, into, disk, url) = (Arc::clone(&stop), Arc::clone(&seen), world.disk(), world.usb_url());
    let watching = Watching {
        only: BTreeSet::new(),
        interval: Duration::from_secs(1),
        quiet: Duration::ZERO,
        longest: Duration::ZERO,
        env: Arc::new(SystemEnv),
        open: Box::new(|settings, _, _| {
            Ok(Opened { remote: remote::open(settings, &once())?, jobs: Jobs::Fixed(1) })
        }),
        note: "test".into(),
        tell: Box::new(move |event| {
            if let Event::Shipped { .. } = event {
                let last = load_last(disk.as_ref(), "usb", &url).unwrap();
                into.lock().unwrap().push(last.and_then(|last| last.complete));
                ends.finish();
            }
        }),
    };
    watch(&world.sandbox.vault(), watching, &stop).unwrap();
    assert_eq!(*seen.lock().unwrap(), [Some(1)]);
}
