//! `kill -9` of `strongroom ship` and `clone` at random moments: the remote restores its last complete snapshot each time,
//! and the next run completes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{World, chain_of, files, newest_complete, packs};
use crate::common::{Rng, seed};
use crate::remote::pattern;
use crate::remote::s3_server::Server;

const SNAPSHOTS: usize = 5;
const KILLS: usize = 30;
/// Of these, so many go to a bucket, the others to a directory.
const KILLS_S3: usize = 8;
const CLONE_KILLS: usize = 8;
const JOBS: usize = 2;

/// Lets a process run until `count` has reached `target`, and a little longer; then kills it. False: it had ended by itself.
fn kill_at(mut child: Child, target: usize, pause: Duration, count: &dyn Fn() -> usize) -> bool {
    let start = Instant::now();
    while count() < target {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return false;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{target} objects never came");
    }
    std::thread::sleep(pause);
    if let Some(status) = child.try_wait().unwrap() {
        assert!(status.success(), "{status}");
        return false;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

/// A vault whose snapshot `n` has the files 1 to `n`.
fn several_snapshots() -> World {
    let world = World::new();
    for n in 1..=SNAPSHOTS {
        world.snapshot(&format!("file{n}"), &pattern(150_000, n as u8));
    }
    world
}

/// What a snapshot holds is what was imported.
#[track_caller]
fn holds(world: &World, copy: &Path, snapshot: u64) {
    let out = tempfile::tempdir_in(world.sandbox.path("")).unwrap();
    let out = out.path().join("out");
    world.restore(copy, &snapshot.to_string(), &out).ok();
    let found: BTreeMap<String, Vec<u8>> = files(&out).into_iter().collect();
    let expected = (1..=snapshot).map(|n| (format!("file{n}"), pattern(150_000, n as u8))).collect();
    assert!(found == expected, "snapshot {snapshot}: {:?}", found.keys());
}

fn copy_dir(world: &World, from: &str, to: &str) {
    drop(fs::remove_dir_all(world.sandbox.path(to)));
    world.sandbox.tool("cp", ["-r", &world.str(from), &world.str(to)]).ok();
}

/// What was done when it was killed.
#[derive(Debug, Default)]
struct Phases {
    before_any: usize,
    packs: usize,
    snapshots: usize,
    last: usize,
}

#[test]
fn heavy_kill_9_of_ship_leaves_a_vault_and_the_next_one_completes() {
    let mut rng = Rng::new(seed(0x5eed_0401));
    let world = several_snapshots();
    let here = files(&world.sandbox.vault());
    // The remote has the first snapshot.
    world
        .sandbox
        .sh("mkdir base && cp -r encrypted/packs encrypted/snapshots encrypted/vault.json* base")
        .ok();
    let (chain, _) = chain_of(&world.sandbox.vault()).unwrap();
    let first = chain.needed_packs(1).unwrap();
    for (name, _) in files(&world.sandbox.path("base")) {
        let pack = strongroom::format::pack::parse_pack_path(&name);
        let other_pack = pack.is_some_and(|pack| !first.contains(&pack));
        if other_pack || (name.starts_with("snapshots/") && !name.starts_with("snapshots/0000000001-")) {
            fs::remove_file(world.sandbox.path("base").join(name)).unwrap();
        }
    }
    let base = files(&world.sandbox.path("base")).len();
    let mut phases = Phases::default();
    let mut landed = 0;
    for round in 0..KILLS {
        let bucket = round < KILLS_S3;
        let server = Server::start();
        let settings = crate::remote::s3_settings(&server, &world.sandbox.path(""));
        copy_dir(&world, "base", "far");
        drop(fs::remove_dir_all(world.sandbox.path("encrypted/live/remotes")));
        let endpoint = server.endpoint();
        let credentials = settings.credentials_file.as_ref().unwrap().to_str().unwrap().to_string();
        if bucket {
            let flags = ["--endpoint", &endpoint, "--path-style", "--credentials-file", &credentials];
            let add = ["remote", "add", world.vault(), "s3", &settings.url, "--replace"];
            world.run(&[&add[..], &flags[..]].concat()).ok();
        }
        let name = if bucket { "s3" } else { "far" };
        let jobs = JOBS.to_string();
        let ship = ["ship", world.vault(), "--to", name, "--jobs", &jobs];
        let child = world
            .sandbox
            .strongroom()
            .args(ship)
            .args(["--limit-upload", "4M"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // How much is there, of what will be.
        let far = world.far();
        let count = || if bucket { server.keys().len() } else { files(&far).len() };
        let (from, to) = (if bucket { 0 } else { base }, here.len());
        let target = from + rng.below(to - from);
        let killed = kill_at(child, target, Duration::from_micros(rng.below(4_000) as u64), &count);
        // What the far side has now. A bucket is fetched, without its help.
        let copy = if bucket {
            let copy = world.sandbox.path("fetched");
            drop(fs::remove_dir_all(&copy));
            fs::create_dir(&copy).unwrap();
            for key in server.keys() {
                let path = copy.join(key.strip_prefix("some/vault/").unwrap());
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, server.stored(&key).unwrap()).unwrap();
            }
            copy
        } else {
            far.clone()
        };
        let there = files(&copy);
        assert!(there.iter().all(|file| here.contains(file)), "round {round}: nothing half is there");
        let newest = newest_complete(&copy);
        let chain_files = there.iter().filter(|(name, _)| name.starts_with("snapshots/")).count();
        assert_eq!(chain_files as u64, newest, "round {round}: each snapshot that is there is complete");
        assert!(newest >= 1 || bucket);
        if newest > 0 {
            holds(&world, &copy, newest);
        }
        if killed && there.len() < here.len() {
            landed += 1;
            match (there.len() - from, newest as usize) {
                (0, _) => phases.before_any += 1,
                (_, SNAPSHOTS) => phases.last += 1,
                (_, 0 | 1) => phases.packs += 1,
                _ => phases.snapshots += 1,
            }
        }
        if !bucket && let Ok(scratch) = fs::read_dir(far.join(".incoming")) {
            // The lock, and at most one object for each stream: packs, and a chain file.
            assert!(scratch.count() <= JOBS + 2, "round {round}");
        }
        // The next one sends what is missing, and nothing else.
        let missing: u64 =
            here.iter().filter(|file| !there.contains(file)).map(|(_, bytes)| bytes.len() as u64).sum();
        let done = world.run(&[&ship[..], &["--json"]].concat()).json();
        let headers = done["headers"].as_u64().unwrap() * here.last().unwrap().1.len() as u64;
        assert_eq!(done["bytes"].as_u64().unwrap() + headers, missing, "round {round}: {done}");
        match bucket {
            true => assert_eq!(server.keys().len(), here.len()),
            false => assert_eq!(files(&far), here),
        }
    }
    println!("{landed} kills in the middle: {phases:?}");
    assert!(landed >= KILLS * 2 / 3, "only {landed} kills landed in the middle: {phases:?}");
    assert!(phases.packs > 0 && phases.snapshots > 0, "{phases:?}");
    holds(&world, &world.far(), SNAPSHOTS as u64);
    world.sandbox.fsck(&world.far()).ok();
}

#[test]
fn heavy_kill_9_of_clone_is_gone_on_from() {
    let mut rng = Rng::new(seed(0x5eed_0402));
    let world = several_snapshots();
    world.ship();
    let there = files(&world.far());
    let all = packs(&world.far()).len();
    let mut landed = 0;
    for round in 0..CLONE_KILLS {
        let to = world.str("copy");
        drop(fs::remove_dir_all(&to));
        let clone = ["clone", &world.url(), &to];
        let child = world
            .sandbox
            .strongroom()
            .args(clone)
            .args(["--limit-download", "4M"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let at = Path::new(&to);
        let count = || if at.join("packs").exists() { packs(at).len() } else { 0 };
        if !kill_at(child, rng.below(all), Duration::from_micros(rng.below(4_000) as u64), &count) {
            continue;
        }
        if at.exists() {
            assert!(files(at).iter().all(|file| there.contains(file)), "round {round}");
        }
        let whole = at.join("vault.json.bak").exists();
        let had = count();
        if !whole {
            landed += 1;
            let done = world.run(&[&clone[..], &["--json"]].concat()).json();
            assert_eq!(done["packs"].as_u64().unwrap() as usize + had, all, "round {round}: {done}");
        }
        assert_eq!(files(at), there, "round {round}");
        holds(&world, at, SNAPSHOTS as u64);
    }
    assert!(landed >= CLONE_KILLS / 2, "only {landed} kills landed in the middle");
}
