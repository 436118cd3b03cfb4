//! Two hosts with copies of one vault that both go on: found out, refused, and both histories stay.

use std::fs;
use std::sync::{Arc, Barrier, Mutex};

use strongroom::remote::{self, FaultyRemote, Op, Remote, Settings};
use strongroom::ship::ShipError;

use super::{World, chain_of, files, open_dir, real_disk, ship_to};
use crate::remote::s3_server::Server;
use crate::remote::{once, pattern};

/// A vault, a clone of it, and a snapshot of each that the other has not.
fn two_histories() -> World {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    world.clone("clone").ok();
    world.snapshot("mine", &pattern(50_000, 1));
    world.snapshot_of("state-b", &world.str("clone"), "theirs", &pattern(50_000, 2));
    world
}

fn tell_apart(world: &World, flags: &[&str], url: &str) {
    let clone = world.str("clone");
    // Both ship to a place where what they have in common is.
    world.run(&[&["remote", "add", world.vault(), "place", url], flags].concat()).ok();
    world.on("state-b", &[&["remote", "add", &clone, "place", url], flags].concat()).ok();
    world.run(&["ship", world.vault(), "--to", "place"]).ok();
    let said = world.on("state-b", &["ship", &clone, "--to", "place"]).fails(25);
    assert!(said.contains("a clone and its original"), "{said}");
    assert!(said.contains("strongroom clone") && said.contains("new place"), "the way out is named: {said}");
    let said = world.on("state-b", &["pull", &clone, "--from", "place"]).fails(25);
    assert!(said.contains("both went on from the same snapshot"), "{said}");
    assert!(said.contains("strongroom clone") && said.contains("new place"), "the way out is named: {said}");
    // The winner goes on.
    world.snapshot("more", b"more");
    world.run(&["ship", world.vault(), "--to", "place"]).ok();
    let place = world.str("place");
    world.on("state-c", &[&["clone", url, &place], flags].concat()).ok();
    assert_eq!(files(&world.sandbox.path("place")), files(&world.sandbox.vault()));
    // The way out: the other history goes to a place of its own, and restores from there.
    fs::create_dir(world.sandbox.path("new")).unwrap();
    let new = format!("file://{}", world.str("new"));
    world.on("state-b", &["remote", "add", &clone, "new", &new]).ok();
    world.on("state-b", &["ship", &clone, "--to", "new"]).ok();
    let out = world.sandbox.path("out");
    world.restore(&world.sandbox.path("new"), "latest", &out).ok();
    assert_eq!(fs::read(out.join("theirs")).unwrap(), pattern(50_000, 2));
    let said = world.run(&["ship", world.vault(), "--to", "place", "--json"]).json();
    assert_eq!(said["bytes"], 0);
}

#[test]
fn a_directory_takes_one_history() {
    let world = two_histories();
    fs::create_dir(world.sandbox.path("shared")).unwrap();
    let url = format!("file://{}", world.str("shared"));
    tell_apart(&world, &[], &url);
}

#[test]
fn a_bucket_takes_one_history() {
    let world = two_histories();
    let server = Server::start();
    let settings = crate::remote::s3_settings(&server, &world.sandbox.path(""));
    let credentials = settings.credentials_file.unwrap();
    let endpoint = server.endpoint();
    let flags =
        ["--endpoint", &endpoint, "--path-style", "--credentials-file", credentials.to_str().unwrap()];
    tell_apart(&world, &flags, &settings.url);
}

/// The other host ships everything it has while this one is at each of its requests in turn. Never do both believe that all
/// went well, and who comes too late to have been seen is refused before its history is there.
#[test]
fn a_ship_in_the_middle_of_another_one_is_seen() {
    let world = two_histories();
    world.sandbox.sh("cp -r far base").ok();
    let (mine, theirs) = (real_disk(&world.sandbox.vault()), real_disk(&world.sandbox.path("clone")));
    let mut ends = Vec::new();
    for n in 1.. {
        fs::remove_dir_all(world.far()).unwrap();
        world.sandbox.sh("cp -r base far").ok();
        let far = open_dir(&world.far());
        let other_end = Arc::new(Mutex::new(None));
        let (theirs, slot, place) = (Arc::clone(&theirs), Arc::clone(&other_end), world.far());
        let between = FaultyRemote::new(Arc::clone(&far), move |at, _, _| {
            if at == n {
                *slot.lock().unwrap() = Some(ship_to(&theirs, &open_dir(&place)));
            }
            None
        });
        let my_end = ship_to(&mine, &(Arc::new(between) as Arc<dyn Remote>));
        let other_end = other_end.lock().unwrap().take();
        let Some(other_end) = other_end else {
            my_end.unwrap();
            assert!(n > 6, "{n} requests");
            break;
        };
        let diverged = |end: &Result<(), ShipError>| matches!(end, Err(ShipError::Diverged { .. }));
        assert!(
            my_end.is_ok() != other_end.is_ok() || (diverged(&my_end) && diverged(&other_end)),
            "request {n}: {my_end:?} and {other_end:?}"
        );
        assert!(my_end.is_ok() || diverged(&my_end), "request {n}: {my_end:?}");
        // Whoever comes back finds out, in any case.
        let files_of = |name: &str| files(&world.sandbox.path(name));
        let both = {
            let there = files_of("far");
            let has = |vault: &str| {
                files_of(vault).iter().all(|file| there.contains(file) || file.0.starts_with("vault.json"))
            };
            has("encrypted") && has("clone")
        };
        let (again, other_again) = (ship_to(&mine, &far), ship_to(&theirs_again(&world), &far));
        if both {
            assert!(diverged(&again) && diverged(&other_again), "request {n}: {again:?}, {other_again:?}");
        } else {
            assert!(again.is_ok() != other_again.is_ok(), "request {n}: {again:?}, {other_again:?}");
            assert!(chain_of(&world.far()).unwrap().0.is_whole(), "request {n}");
        }
        ends.push((my_end.is_ok(), both));
    }
    assert!(ends.iter().any(|(_, both)| !both) && ends.iter().any(|(mine, _)| !mine), "{ends:?}");
    // Only between the last look and the put of the snapshot file can both get there.
    assert!(ends.iter().filter(|(_, both)| *both).count() <= 3, "{ends:?}");
}

fn theirs_again(world: &World) -> Arc<dyn strongroom::disk::Disk> {
    real_disk(&world.sandbox.path("clone"))
}

/// Really at the same time, on an endpoint with conditional creation.
#[test]
fn two_ships_at_the_same_time_do_not_both_win() {
    let world = two_histories();
    let vaults = [real_disk(&world.sandbox.vault()), real_disk(&world.sandbox.path("clone"))];
    let mut wins = [0; 3];
    for _ in 0..25 {
        let server = Server::start();
        let settings = crate::remote::s3_settings(&server, &world.sandbox.path(""));
        let start = Barrier::new(2);
        let ends: Vec<Result<(), ShipError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = vaults
                .iter()
                .map(|disk| {
                    let (settings, start): (&Settings, &Barrier) = (&settings, &start);
                    scope.spawn(move || {
                        let remote = remote::open(settings, &once()).unwrap();
                        start.wait();
                        ship_to(disk, &remote)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let won = ends.iter().filter(|end| end.is_ok()).count();
        assert!(won <= 1, "both think they won");
        for end in ends.iter().filter_map(|end| end.as_ref().err()) {
            assert!(matches!(end, ShipError::Diverged { .. }), "{end}");
        }
        wins[won] += 1;
    }
    println!("nobody won {} times, one host {} times", wins[0], wins[1]);
}

/// Several ships of one vault at the same time are no divergence, even while it makes new snapshots.
#[test]
fn ships_of_one_vault_do_not_refuse_each_other() {
    let world = World::new();
    world.snapshot("one", &pattern(50_000, 1));
    world.ship();
    world.snapshot("two", &pattern(50_000, 2));
    let disk = real_disk(&world.sandbox.vault());
    let far = open_dir(&world.far());
    for n in 1.. {
        let world = &world;
        world.snapshot(&format!("before{n}"), &pattern(20_000, n as u8 ^ 0x55));
        let done = Mutex::new(false);
        std::thread::scope(|scope| {
            // While the first ship waits at its n-th request, a snapshot is made, and all is shipped by another process.
            let (ask, asked) = std::sync::mpsc::channel::<std::sync::mpsc::Sender<()>>();
            let ask = Mutex::new(Some(ask));
            let between = FaultyRemote::new(Arc::clone(&far), move |at, op, _| {
                if at == n && op != Op::Features {
                    let (ready, wait) = std::sync::mpsc::channel();
                    if let Some(ask) = ask.lock().unwrap().take() {
                        ask.send(ready).unwrap();
                        wait.recv().unwrap();
                    }
                }
                None
            });
            let done = &done;
            scope.spawn(move || {
                if let Ok(ready) = asked.recv() {
                    world.snapshot(&format!("more{n}"), &pattern(20_000, n as u8));
                    ship_to(&real_disk(&world.sandbox.vault()), &open_dir(&world.far())).unwrap();
                    ready.send(()).unwrap();
                    *done.lock().unwrap() = true;
                }
            });
            ship_to(&disk, &(Arc::new(between) as Arc<dyn Remote>)).unwrap();
        });
        if !*done.lock().unwrap() {
            assert!(n > 8, "{n} requests");
            break;
        }
    }
    assert_eq!(files(&world.far()), files(&world.sandbox.vault()));
}
