//! `kill -9` of the daemon under load: what was fsynced is there after the next mount (C1).
//!
//! What was synced is known from a ledger (`common::ledger`) that each writer keeps in this process.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::common::ledger::Writer;
use crate::common::{Rng, Sandbox, kill_9, seed, wait_until};

const ROUNDS: usize = 50;
const WRITERS: usize = 4;

/// Runs the writers until the kill, in the middle of what they do.
fn load_and_kill(sandbox: &Sandbox, writers: &mut [Writer], rng: &mut Rng, round: usize) {
    let pid = sandbox.daemon_pid();
    let killed = AtomicBool::new(false);
    let steps = AtomicU64::new(0);
    let target = 5 + rng.below(250) as u64;
    let delay = Duration::from_micros(rng.below(15_000) as u64);
    std::thread::scope(|scope| {
        for writer in writers.iter_mut() {
            let (killed, steps) = (&killed, &steps);
            scope.spawn(move || {
                loop {
                    match writer.step() {
                        Ok(()) => {
                            steps.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(_) if killed.load(Ordering::SeqCst) => return,
                        Err(error) => {
                            // Lets the others end, so that this failure is reported.
                            steps.store(u64::MAX / 2, Ordering::Relaxed);
                            panic!("a write failed before the kill: {error}");
                        }
                    }
                }
            });
        }
        // Some rounds are killed in the middle of a snapshot or of garbage collection.
        let verb: Option<&[&str]> = match round % 6 {
            2 => Some(&["snapshot", "create"]),
            5 => Some(&["gc"]),
            _ => None,
        };
        if let Some(verb) = verb {
            let steps = &steps;
            scope.spawn(move || {
                wait_until("some load", || steps.load(Ordering::Relaxed) >= target / 2);
                let done = sandbox.keyed(&[verb, &[sandbox.vault_str()]].concat());
                assert!(done.code != 101 && done.code != 134, "{verb:?} panicked: {}", done.stderr);
            });
        }
        wait_until("load", || steps.load(Ordering::Relaxed) >= target);
        std::thread::sleep(delay);
        killed.store(true, Ordering::SeqCst);
        kill_9(pid);
    });
}

#[test]
fn heavy_kill_9_under_load_loses_nothing_that_was_synced() {
    let seed = seed(0x5eed_0001);
    let mut rng = Rng::new(seed);
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let dir = sandbox.mountpoint().join(format!("writer-{number}"));
        fs::create_dir(&dir).unwrap();
        let mut writer = Writer::new(dir, rng.next());
        writer.sync_dir().unwrap();
        writers.push(writer);
    }
    for round in 0..ROUNDS {
        load_and_kill(&sandbox, &mut writers, &mut rng, round);
        // No umount: the mount that the kill left behind is cleaned up by the next one.
        sandbox.mount();
        println!("round {round}");
        for writer in &mut writers {
            writer.verify();
        }
    }
    let synced: u64 = writers.iter().map(|writer| writer.synced).sum();
    assert!(synced > 1_000, "only {synced} fsyncs: that was no load");
    sandbox.umount();
    sandbox.assert_clean();

    sandbox.mount();
    for writer in &mut writers {
        writer.verify();
    }
    sandbox.umount();
    sandbox.keyed(&["restore", sandbox.vault_str(), "--to", &sandbox.str("restored")]).ok();
    for writer in &mut writers {
        writer.dir = sandbox.path("restored").join(writer.dir.file_name().unwrap());
        writer.verify();
    }
}
