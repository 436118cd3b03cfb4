//! `kill -9` of `strongroom ship` and `clone` at random moments: the remote restores its last complete snapshot each time,
//! and the next run completes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{World, files, newest_complete, packs};
use crate::common::{Rng, seed};
use crate::remote::pattern;
use crate::remote::s3_server::Server;

const SNAPSHOTS: usize = 5;
const KILLS: usize = 30;
/// So often it is tried at most: a kill that comes when all was sent is none.
const TRIES_MAX: usize = 3 * KILLS;
/// Of the tries, so many go to a bucket, the others to a directory.
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

/// Snapshot `n` has the files 1 to `n`.
fn make_snapshots(world: &World, numbers: std::ops::RangeInclusive<usize>) {
    for n in numbers {
        world.snapshot(&format!("file{n}"), &pattern(150_000, n as u8));
    }
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
    let world = World::new();
    // The remote has the first snapshot, and that is known here.
    make_snapshots(&world, 1..=1);
    world.ship();
    world.sandbox.sh("cp -r far base && cp -r encrypted/live/remotes known").ok();
    make_snapshots(&world, 2..=SNAPSHOTS);
    let here = files(&world.sandbox.vault());
    let base = files(&world.sandbox.path("base")).len();
    let mut phases = Phases::default();
    let (mut landed, mut round) = (0, 0);
    while landed < KILLS {
        assert!(round < TRIES_MAX, "only {landed} kills landed in the middle: {phases:?}");
        let bucket = round < KILLS_S3;
        let server = Server::start();
        let settings = crate::remote::s3_settings(&server, &world.sandbox.path(""));
        copy_dir(&world, "base", "far");
        copy_dir(&world, "known", "encrypted/live/remotes");
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
            .args(["--limit-upload", "2M"])
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
            // A put that has arrived is stored although nobody waits for the answer.
            server.settle();
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
        if killed && there.len() < here.len() {
            landed += 1;
            if newest > 0 {
                holds(&world, &copy, newest);
            }
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
        // The next one sends what is missing, and nothing else; and that something is missing is no alarm.
        let missing: u64 =
            here.iter().filter(|file| !there.contains(file)).map(|(_, bytes)| bytes.len() as u64).sum();
        let done = world.run(&[&ship[..], &["--json"]].concat()).json();
        let headers = done["headers"].as_u64().unwrap() * here.last().unwrap().1.len() as u64;
        assert_eq!(done["bytes"].as_u64().unwrap() + headers, missing, "round {round}: {done}");
        assert_eq!((&done["gone_there"], &done["complete"]), (&0.into(), &SNAPSHOTS.into()), "{done}");
        match bucket {
            true => assert_eq!(server.keys().len(), here.len()),
            false => assert_eq!(files(&far), here),
        }
        round += 1;
    }
    println!("{landed} of {round} kills in the middle: {phases:?}");
    assert!(phases.packs > 0 && phases.snapshots > 0, "{phases:?}");
    holds(&world, &world.far(), SNAPSHOTS as u64);
    world.sandbox.fsck(&world.far()).ok();
}

#[test]
fn heavy_kill_9_of_clone_is_gone_on_from() {
    let mut rng = Rng::new(seed(0x5eed_0402));
    let world = World::new();
    make_snapshots(&world, 1..=SNAPSHOTS);
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
