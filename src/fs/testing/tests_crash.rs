//! Crashes at every sync of short runs, and at some of longer ones.

use super::crash::CrashRun;
use super::ops::Shape;

const SHORT: Shape = Shape { file_max: 100_000, write_max: 20_000 };

#[test]
fn at_every_sync_of_short_runs() {
    for seed in 1..=6 {
        let run = CrashRun { seed, count: 80, shape: SHORT };
        for n in 1..=run.sync_points() {
            run.crash_at(n);
        }
    }
}

#[test]
fn at_some_syncs_of_longer_runs() {
    for seed in 50..54 {
        let run = CrashRun { seed, count: 400, shape: SHORT };
        let syncs = run.sync_points();
        for n in (1..=syncs).step_by((syncs as usize / 8).max(1)) {
            run.crash_at(n);
        }
    }
}

#[test]
fn of_tiny_files() {
    for seed in 80..84 {
        let run = CrashRun { seed, count: 150, shape: Shape { file_max: 6_000, write_max: 1_500 } };
        let syncs = run.sync_points();
        for n in (1..=syncs).step_by((syncs as usize / 16).max(1)) {
            run.crash_at(n);
        }
    }
}
