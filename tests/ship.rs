//! Shipping: what arrives restores, whatever happens on the way, and nothing that is there is ever changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use strongroom::disk::{Disk, RealDisk};
use strongroom::remote::{self, ErrorKind, Fault, FaultyRemote, Op, Remote, Settings};
use strongroom::ship::{Cursor, Jobs, Report, ShipError, ShipOptions, ship};
use strongroom::snapshot::chain::Chain;
use strongroom::snapshot::open::list_packs;
use strongroom::store::header;

use crate::common::Sandbox;
use crate::remote::s3_server::{Server, Trouble};
use crate::remote::sshd::Sshd;
use crate::remote::{once, patient, pattern, s3_settings};

/// A sandbox with a vault, a directory `source`, and a directory `usb` that is its remote.
pub struct World {
    pub sandbox: Sandbox,
}

impl World {
    pub fn new() -> Self {
        let sandbox = Sandbox::with_vault();
        for dir in ["usb", "source"] {
            fs::create_dir(sandbox.path(dir)).unwrap();
        }
        let world = Self { sandbox };
        world.cli(&["remote", "add", world.vault(), "usb", &world.usb_url()]).ok();
        world
    }

    pub fn vault(&self) -> &'static str {
        self.sandbox.vault_str()
    }

    pub fn usb(&self) -> PathBuf {
        self.sandbox.path("usb")
    }

    pub fn usb_url(&self) -> String {
        format!("file://{}", self.usb().display())
    }

    pub fn cli(&self, args: &[&str]) -> crate::common::Finished {
        self.sandbox.run(args)
    }

    /// Makes a snapshot in which `name` has these bytes.
    pub fn snapshot(&self, name: &str, bytes: &[u8]) {
        fs::write(self.sandbox.path("source").join(name), bytes).unwrap();
        self.sandbox.keyed(&["import", self.vault(), &self.sandbox.str("source")]).ok();
    }

    /// A path of `source` in a snapshot: an import keeps whole paths.
    pub fn at(&self, snapshot: &str, name: &str) -> String {
        format!("{snapshot}:{}{name}", self.sandbox.str("source"))
    }

    pub fn ship(&self) -> Value {
        self.cli(&["ship", self.vault(), "--json"]).json()
    }

    /// A server's bucket as the remote `s3`.
    pub fn add_s3(&self, server: &Server) {
        let settings = s3_settings(server, &self.sandbox.path(""));
        let file = settings.credentials_file.as_ref().unwrap().to_str().unwrap();
        let endpoint = server.endpoint();
        let add = ["remote", "add", self.vault(), "s3", &settings.url, "--endpoint", &endpoint];
        self.cli(&[&add[..], &["--path-style", "--credentials-file", file]].concat()).ok();
    }

    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(RealDisk::open(&self.sandbox.vault()).unwrap())
    }

    /// Restores the newest snapshot of a copy, and compares it with `source`.
    #[track_caller]
    pub fn restores(&self, copy: &Path) {
        let to = tempfile::tempdir_in(self.sandbox.path("")).unwrap();
        let (from, to) = (copy.to_str().unwrap(), to.path().join("out"));
        self.sandbox.keyed(&["restore", from, &self.at("latest", ""), "--to", to.to_str().unwrap()]).ok();
        let differs = self.sandbox.tool("diff", ["-r", &self.sandbox.str("source"), to.to_str().unwrap()]);
        differs.ok();
    }
}

/// All files of a directory with their bytes, without scratch files.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_string();
            if name == ".incoming" || name == "live" {
                continue;
            }
            if path.is_dir() {
                todo.push(path);
            } else {
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn options() -> ShipOptions {
    ShipOptions { jobs: Jobs::Fixed(2), ..ShipOptions::default() }
}

pub fn ship_to(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    cursor: Option<&Cursor>,
) -> Result<(Report, Option<Cursor>), ShipError> {
    ship(disk, remote, cursor, &options(), &|_| {})
}

/// The sequence of the newest complete snapshot of a copy, by public keys alone; 0 when there is none.
pub fn newest_complete(copy: &Path) -> u64 {
    let Ok(disk) = RealDisk::open(copy) else { return 0 };
    let Ok(loaded) = header::load(&disk) else { return 0 };
    let chain = Chain::load(&disk, &loaded.parsed.header).unwrap();
    let present: BTreeSet<_> = list_packs(&disk).unwrap().into_keys().collect();
    chain.latest(&present, None).complete.map_or(0, |info| info.seq)
}

#[test]
fn what_was_shipped_survives_the_vault() {
    let world = World::new();
    world.snapshot("one", &pattern(3 << 20, 1));
    world.snapshot("two", b"small");
    let first = world.ship();
    assert!(first["packs"].as_u64().unwrap() >= 2, "{first}");
    assert_eq!(
        (&first["chain_files"], &first["headers"], &first["newest"]),
        (&2.into(), &2.into(), &2.into())
    );
    assert_eq!(files(&world.usb()), files(&world.sandbox.vault()));
    // Again: nothing to do, and no object is sent.
    let again = world.ship();
    assert_eq!(
        (&again["packs"], &again["chain_files"], &again["headers"], &again["bytes"]),
        (&0.into(), &0.into(), &0.into(), &0.into())
    );
    assert_eq!(again["packs_there"], first["packs"]);
    // More: only what is new.
    world.snapshot("three", &pattern(1 << 20, 3));
    let dry = world.cli(&["ship", world.vault(), "--dry-run", "--json"]).json();
    assert_eq!((&dry["chain_files"], &dry["dry_run"]), (&1.into(), &true.into()));
    let more = world.ship();
    assert_eq!((&more["packs"], &more["chain_files"]), (&dry["packs"], &1.into()));
    assert!(more["bytes"].as_u64().unwrap() < 2 << 20, "{more}");
    fs::remove_dir_all(world.sandbox.vault()).unwrap();
    world.restores(&world.usb());
    world.sandbox.fsck(&world.usb()).ok();
    // Copied back it is a vault like any other.
    world.sandbox.sh("cp -r usb encrypted").ok();
    world.restores(&world.sandbox.vault());
}

/// The connection ends for good before or after each request in turn: what the remote had still restores, nothing is there
/// that is not whole, and the next shipment completes.
#[test]
fn an_end_at_any_request_leaves_a_vault() {
    let world = World::new();
    world.snapshot("one", &pattern(200_000, 1));
    world.ship();
    let base = world.sandbox.path("base");
    world.sandbox.sh("cp -r usb base").ok();
    world.snapshot("two", &pattern(200_000, 2));
    world.snapshot("three", &pattern(200_000, 3));
    world.sandbox.keyed(&["snapshot", "delete", world.vault(), "2"]).ok();
    world.snapshot("four", b"4");
    world
        .sandbox
        .keyed(&["key", "add", world.vault(), "--new-recovery-key-out", &world.sandbox.str("new.txt")])
        .ok();
    let disk = world.disk();
    let expected = files(&world.sandbox.vault());
    let wanted: BTreeSet<&String> = expected.iter().map(|(name, _)| name).collect();
    let mut last = 0;
    for n in 1.. {
        let mut completed = false;
        for after in [false, true] {
            drop(fs::remove_dir_all(world.usb()));
            world.sandbox.tool("cp", ["-r", base.to_str().unwrap(), &world.sandbox.str("usb")]).ok();
            let settings = Settings { url: world.usb_url(), ..Settings::default() };
            let real = remote::open(&settings, &once()).unwrap();
            let cut = Arc::new(FaultyRemote::new(Arc::clone(&real), move |at, _, _| match at.cmp(&n) {
                std::cmp::Ordering::Less => None,
                std::cmp::Ordering::Equal if after => Some(Fault::After(ErrorKind::Denied)),
                _ => Some(Fault::Before(ErrorKind::Denied)),
            }));
            let ended = ship_to(&disk, &(Arc::clone(&cut) as Arc<dyn Remote>), None);
            completed |= ended.is_ok();
            let newest = newest_complete(&world.usb());
            assert!(newest >= 1, "request {n}, after: {after}");
            for (name, bytes) in files(&world.usb()) {
                let same = expected.iter().any(|(other, theirs)| *other == name && *theirs == bytes);
                assert!(
                    same || name.starts_with("vault.json") || !wanted.contains(&name),
                    "request {n}: {name}"
                );
            }
            last = last.max(newest);
            if n % 5 == 0 {
                world.sandbox.keyed(&["cat", &world.sandbox.str("usb"), &world.at("1", "/one")]).ok();
            }
            ship_to(&disk, &real, None).unwrap();
            let there = files(&world.usb());
            assert!(
                expected.iter().all(|file| there.contains(file)),
                "request {n}: the next shipment completes it"
            );
        }
        if completed {
            assert!(n > 10, "{n} requests");
            break;
        }
    }
    assert_eq!(last, newest_complete(&world.sandbox.vault()));
    world.restores(&world.usb());
    world.sandbox.fsck(&world.usb()).ok();
}

/// Packs before the header's new copies, those before chain files, chain files oldest first; nothing is asked twice.
#[test]
fn things_go_in_the_right_order() {
    let world = World::new();
    for n in 0..5_u8 {
        world.snapshot(&format!("file{n}"), &pattern(100_000, n));
    }
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let remote: Arc<dyn Remote> =
        Arc::new(FaultyRemote::new(remote::open(&settings, &once()).unwrap(), move |_, op, name| {
            if op == Op::Put {
                log.lock().unwrap().push(name.to_string());
            }
            None
        }));
    ship_to(&world.disk(), &remote, None).unwrap();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen[..2], ["vault.json", "vault.json.bak"], "an empty place is claimed first");
    let snapshots: Vec<&String> = seen.iter().filter(|name| name.starts_with("snapshots/")).collect();
    assert!(snapshots.len() == 5 && snapshots.is_sorted(), "{seen:?}");
    let distinct: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "{seen:?}");
    // Each snapshot comes after the packs that it needs: cut off after it, it is complete.
    let disk = world.disk();
    let loaded = header::load(disk.as_ref()).unwrap();
    let chain = Chain::load(disk.as_ref(), &loaded.parsed.header).unwrap();
    for info in chain.snapshots() {
        let at = seen.iter().position(|name| *name == info.path()).unwrap();
        let before: BTreeSet<_> =
            seen[..at].iter().filter_map(|name| strongroom::format::pack::parse_pack_path(name)).collect();
        assert!(chain.is_complete(info.seq, &before), "{}", info.seq);
    }
}

#[test]
fn other_bytes_under_a_name_are_an_alarm() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    world.ship();
    world.snapshot("two", &pattern(100_000, 2));
    let pack = files(&world.usb()).into_iter().find(|(name, _)| name.starts_with("packs/")).unwrap();
    let path = world.usb().join(&pack.0);
    fs::write(&path, &pack.1[..pack.1.len() - 1]).unwrap();
    let said = world.cli(&["ship", world.vault()]).fails(25);
    assert!(said.contains("another length") && said.contains("nothing was overwritten"), "{said}");
    assert_eq!(fs::read(&path).unwrap().len(), pack.1.len() - 1, "it was left as it is");
    fs::write(&path, &pack.1).unwrap();
    world.ship();
    world.restores(&world.usb());
}

#[test]
fn a_place_with_another_vault_is_refused() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    let other = World::new();
    other.snapshot("one", b"other");
    other.cli(&["remote", "add", other.vault(), "taken", &world.usb_url()]).ok();
    let before = files(&world.usb());
    let said = other.cli(&["ship", other.vault(), "--to", "taken"]).fails(25);
    assert!(said.contains("another vault"), "{said}");
    assert_eq!(files(&world.usb()), before);
}

#[test]
fn two_histories_of_one_vault_do_not_mix() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.sandbox.sh("cp -r encrypted clone && rm -r clone/live").ok();
    world.snapshot("two", b"2");
    world.ship();
    let before = files(&world.usb());
    // The clone is behind: as if this vault had been rolled back.
    let clone = world.sandbox.str("clone");
    world.cli(&["remote", "add", &clone, "usb", &world.usb_url()]).ok();
    let said = world.cli(&["ship", &clone]).fails(25);
    assert!(said.contains("older than what was shipped"), "{said}");
    // It goes its own way: the same sequence, another snapshot. (To this host it looks like a rollback.)
    fs::write(world.sandbox.path("source/other"), "other").unwrap();
    world.sandbox.keyed(&["import", &clone, &world.sandbox.str("source"), "--accept-rollback"]).ok();
    let said = world.cli(&["ship", &clone]).fails(25);
    assert!(said.contains("a clone and its original"), "{said}");
    assert_eq!(files(&world.usb()), before);
}

#[test]
fn a_remote_that_was_emptied_is_noticed() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    fs::remove_dir_all(world.usb()).unwrap();
    let said = world.cli(&["ship", world.vault()]).fails(24);
    assert!(said.contains("is the disk mounted?"), "{said}");
    fs::create_dir(world.usb()).unwrap();
    let said = world.cli(&["ship", world.vault()]).fails(25);
    assert!(said.contains("has lost snapshot") && said.contains("--start-over"), "{said}");
    assert!(files(&world.usb()).is_empty());
    world.cli(&["ship", world.vault(), "--start-over"]).ok();
    world.restores(&world.usb());
}

#[test]
fn damage_here_does_not_travel() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    world.ship();
    world.snapshot("two", &pattern(100_000, 2));
    let known: BTreeSet<String> = files(&world.usb()).into_iter().map(|(name, _)| name).collect();
    let new = files(&world.sandbox.vault());
    let (name, bytes) =
        new.iter().find(|(name, _)| name.starts_with("packs/") && !known.contains(name)).unwrap();
    let path = world.sandbox.vault().join(name);
    let mut damaged = bytes.clone();
    damaged[100] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let said = world.cli(&["ship", world.vault()]).fails(18);
    assert!(said.contains("is damaged"), "{said}");
    assert!(!world.usb().join(name).exists());
    assert_eq!(newest_complete(&world.usb()), 1, "what was there restores");
    fs::remove_file(&path).unwrap();
    assert!(world.cli(&["ship", world.vault()]).fails(18).contains("is missing"));
    // Healed here, it is completed there.
    fs::write(&path, bytes).unwrap();
    world.ship();
    assert_eq!(newest_complete(&world.usb()), 2);
    world.restores(&world.usb());
}

#[test]
fn rubbish_at_the_remote_is_told_and_left() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    let strange = format!("snapshots/0000000077-{}", "ab".repeat(32));
    fs::write(world.usb().join(&strange), "not signed by anybody").unwrap();
    fs::write(world.usb().join("snapshots/README"), "hello").unwrap();
    world.snapshot("two", b"2");
    let done = world.cli(&["ship", world.vault()]);
    assert!(done.code == 0 && done.stderr.contains("2 objects there are no part of this vault"), "{done:?}");
    assert!(world.usb().join(&strange).exists());
    world.restores(&world.usb());
}

#[test]
fn a_changed_key_reaches_the_remote() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    world.sandbox.private_file("new.txt", b"a new passphrase\n");
    let new = world.sandbox.str("new.txt");
    world.sandbox.keyed(&["key", "change", world.vault(), "--new-passfile", &new, "--kdf-time", "0"]).ok();
    let shipped = world.ship();
    assert_eq!((&shipped["headers"], &shipped["packs"]), (&2.into(), &0.into()));
    assert_eq!(files(&world.usb()), files(&world.sandbox.vault()));
    world.cli(&["ls", &world.sandbox.str("usb"), "latest:/", "--passfile", &new]).ok();
    // A header that is newer there than here, or damaged there, is left alone.
    let (old, path) = (fs::read(world.usb().join("vault.json")).unwrap(), world.usb().join("vault.json"));
    fs::write(&path, &old[..old.len() / 2]).unwrap();
    assert!(world.cli(&["ship", world.vault()]).fails(25).contains("is damaged"));
    assert_eq!(fs::read(&path).unwrap().len(), old.len() / 2);
}

/// A thread that panics is an error of the shipment, not the end of the process.
#[test]
fn a_thread_that_panics_is_an_error() {
    let world = World::new();
    for n in 0..3_u8 {
        world.snapshot(&format!("file{n}"), &pattern(50_000, n));
    }
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let real = remote::open(&settings, &once()).unwrap();
    let puts = AtomicU64::new(0);
    let panics: Arc<dyn Remote> = Arc::new(FaultyRemote::new(Arc::clone(&real), move |_, op, name| {
        let is_pack = op == Op::Put && name.starts_with("packs/");
        assert!(!is_pack || puts.fetch_add(1, Ordering::Relaxed) != 1, "injected");
        None
    }));
    let error = ship_to(&world.disk(), &panics, None).unwrap_err();
    assert!(error.to_string().contains("a thread that sends packs failed"), "{error}");
    ship_to(&world.disk(), &real, None).unwrap();
    world.restores(&world.usb());
}

/// Credentials that may only create ship everything but a changed header, and say so.
#[test]
fn credentials_that_may_only_create_suffice_for_snapshots() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    world.snapshot("two", b"2");
    world
        .sandbox
        .keyed(&["key", "add", world.vault(), "--new-recovery-key-out", &world.sandbox.str("new.txt")])
        .ok();
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let real = remote::open(&settings, &once()).unwrap();
    let create_only: Arc<dyn Remote> = Arc::new(FaultyRemote::new(real, |_, op, _| {
        matches!(op, Op::Replace | Op::Delete).then_some(Fault::Before(ErrorKind::Denied))
    }));
    let (report, _) = ship_to(&world.disk(), &create_only, None).unwrap();
    assert_eq!((report.header_refused, report.headers, report.chain_files), (true, 0, 1));
    world.restores(&world.usb());
    assert_eq!(world.ship()["headers"], 2, "others may replace it");
}

#[test]
fn remotes_are_remembered_listed_and_forgotten() {
    let world = World::new();
    let (vault, list) =
        (world.vault(), |world: &World| world.cli(&["remote", "list", world.vault(), "--json"]).json());
    world
        .cli(&[
            "remote",
            "add",
            vault,
            "aws",
            "s3://bucket/x",
            "--region",
            "eu-central-1",
            "--limit-upload",
            "10M",
        ])
        .ok();
    let listed = list(&world);
    assert_eq!(listed[0]["name"], "aws");
    assert_eq!(listed[0]["limit_upload"], 10 << 20);
    assert_eq!(listed[1]["url"], world.usb_url());
    world.cli(&["remote", "add", vault, "aws", "s3://bucket/y"]).fails(2);
    world.cli(&["remote", "add", vault, "aws", "s3://bucket/y", "--replace"]).ok();
    assert_eq!(list(&world)[0]["url"], "s3://bucket/y");
    for wrong in [
        ["Aws", "s3://bucket"],
        ["x", "s3://k:s@bucket"],
        ["x", "http://x"],
        ["x", "sftp://-oProxyCommand=id/x"],
    ] {
        world.cli(&["remote", "add", vault, wrong[0], wrong[1]]).fails(2);
    }
    world.cli(&["remote", "add", vault, "x", "file:///x", "--region", "r"]).fails(2);
    world.cli(&["remote", "remove", vault, "aws"]).ok();
    world.cli(&["remote", "remove", vault, "aws"]).fails(22);
    world.cli(&["ship", vault, "--to", "aws"]).fails(22);
    world.cli(&["remote", "test", vault, "aws"]).fails(22);
    let probe = world.cli(&["remote", "test", vault, "usb", "--json"]).json();
    let verdict = |name: &str| {
        let checks = probe["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap()["verdict"].clone()
    };
    assert_eq!((verdict("create-only"), verdict("object-lock")), ("yes".into(), "not-applicable".into()));
    assert!(world.cli(&["remote", "test", vault, "usb"]).ok().contains("create-only"));
    world.cli(&["remote", "remove", vault, "usb"]).ok();
    world.cli(&["ship", vault]).fails(2);
}

/// One remote that fails does not keep the others from being shipped to.
#[test]
fn remotes_do_not_depend_on_each_other() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.cli(&["remote", "add", world.vault(), "a-missing", "file:///nonexistent/disk"]).ok();
    let done = world.cli(&["ship", world.vault(), "--json"]);
    assert_eq!(done.code, 24, "{done:?}");
    let lines: Vec<Value> = done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["error"].is_string() && lines[0]["remote"] == "a-missing", "{}", lines[0]);
    assert!(lines[1]["error"].is_null() && lines[1]["chain_files"] == 1, "{}", lines[1]);
    world.restores(&world.usb());
}

/// Downloads everything from a remote.
pub fn fetch(remote: &dyn Remote, to: &Path) {
    remote::list(remote, "", &mut |item| {
        let path = to.join(&item.name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, remote::read(remote, &crate::remote::key(&item.name), 1 << 30)?).unwrap();
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_bucket_restores_after_a_storm() {
    let world = World::new();
    for n in 0..4_u8 {
        world.snapshot(&format!("file{n}"), &pattern(300_000, n));
    }
    let server = Server::start();
    let settings = crate::remote::s3_settings(&server, &world.sandbox.path(""));
    let count = AtomicU64::new(0);
    server.set_trouble(move |_, op, _| match count.fetch_add(1, Ordering::Relaxed) % 9 {
        1 => Some(Trouble::Before("SlowDown", 503)),
        4 if op == "put" => Some(Trouble::After("InternalError", 500)),
        6 => Some(Trouble::Before("InternalError", 500)),
        7 if op == "get" => Some(Trouble::Cut),
        _ => None,
    });
    let remote = remote::open(&settings, &patient()).unwrap();
    let (report, cursor) = ship_to(&world.disk(), &remote, None).unwrap();
    assert_eq!((report.chain_files, report.newest, cursor.unwrap().seq), (4, Some(4), 4));
    server.calm();
    let requests = server.requests();
    let (again, _) = ship_to(&world.disk(), &remote, None).unwrap();
    assert_eq!((again.packs, again.chain_files, again.headers), (0, 0, 0));
    assert!(
        server.requests() - requests <= 8,
        "a ship with nothing to do asks {} times",
        server.requests() - requests
    );
    let copy = world.sandbox.path("fetched");
    fetch(remote.as_ref(), &copy);
    assert_eq!(files(&copy), files(&world.sandbox.vault()));
    world.restores(&copy);
}

#[test]
fn the_command_ships_to_s3_and_sftp() {
    let world = World::new();
    world.snapshot("one", &pattern(500_000, 1));
    let server = Server::start();
    let s3 = crate::remote::s3_settings(&server, &world.sandbox.path(""));
    let file = |path: &Option<PathBuf>| path.as_ref().unwrap().to_str().unwrap().to_string();
    let endpoint = server.endpoint();
    let added = world.cli(&[
        "remote",
        "add",
        world.vault(),
        "s3",
        &s3.url,
        "--endpoint",
        &endpoint,
        "--path-style",
        "--credentials-file",
        &file(&s3.credentials_file),
    ]);
    added.ok();
    let sshd = Sshd::start(&world.sandbox.path("sshd"), "");
    fs::create_dir(world.sandbox.path("nas")).unwrap();
    let sftp = crate::remote::sftp_settings(&sshd, &world.sandbox.path("nas"));
    let added = world.cli(&[
        "remote",
        "add",
        world.vault(),
        "nas",
        &sftp.url,
        "--identity-file",
        &file(&sftp.identity_file),
        "--known-hosts",
        &file(&sftp.known_hosts),
        "--ssh-config",
        "/dev/null",
    ]);
    added.ok();
    for name in ["s3", "nas"] {
        world.cli(&["remote", "test", world.vault(), name]).ok();
    }
    let said = world.cli(&["ship", world.vault()]).ok();
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(said.lines().all(|line| line.contains("snapshot 1 is the newest")), "{said}");
    world.restores(&world.sandbox.path("nas"));
    let remote = remote::open(&s3, &once()).unwrap();
    fetch(remote.as_ref(), &world.sandbox.path("fetched"));
    world.restores(&world.sandbox.path("fetched"));
    let settings = fs::read_to_string(world.sandbox.vault().join("live/remotes.json")).unwrap();
    assert!(!settings.contains(crate::remote::s3_server::SECRET_KEY), "{settings}");
}

/// A job writes, snapshots are made, garbage is collected, while the vault is shipped again and again.
#[test]
fn heavy_ship_while_a_job_writes() {
    let world = World::new();
    world.sandbox.mount();
    let shipped = std::thread::scope(|scope| {
        let (sandbox, vault) = (&world.sandbox, world.vault());
        let writer = scope.spawn(move || {
            for round in 0..12_u8 {
                let bytes = pattern(400_000, round);
                fs::write(sandbox.mountpoint().join(format!("file{}", round % 5)), bytes).unwrap();
                sandbox.keyed(&["snapshot", "create", vault]).ok();
                if round % 4 == 3 {
                    let oldest = sandbox.snapshots()[0]["seq"].to_string();
                    sandbox.keyed(&["snapshot", "delete", vault, &oldest]).ok();
                    sandbox.keyed(&["gc", vault]).ok();
                }
            }
        });
        let mut shipped = 0;
        while !writer.is_finished() {
            world.cli(&["ship", world.vault()]).ok();
            shipped += 1;
        }
        writer.join().unwrap();
        shipped
    });
    assert!(shipped > 0);
    world.sandbox.umount();
    world.cli(&["ship", world.vault()]).ok();
    assert_eq!(newest_complete(&world.usb()), newest_complete(&world.sandbox.vault()));
    let newest = world.sandbox.path("newest");
    let (usb, to) = (world.sandbox.str("usb"), newest.to_str().unwrap());
    world.sandbox.keyed(&["restore", &usb, "--to", to]).ok();
    let from_vault = world.sandbox.str("from-vault");
    world.sandbox.keyed(&["restore", world.vault(), "--to", &from_vault]).ok();
    world.sandbox.tool("diff", ["-r", to, &from_vault]).ok();
    world.sandbox.fsck(&world.usb()).ok();
}
