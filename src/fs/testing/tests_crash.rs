//! Crashes: at every sync of short runs, at some syncs and disk operations of longer ones.

use super::crash::{CrashRun, Point};
use super::ops::Shape;
use super::seeds;

const SHORT: Shape = Shape { file_max: 100_000, write_max: 20_000 };
const TINY: Shape = Shape { file_max: 6_000, write_max: 1_500 };

/// Crashes a run at every sync, and at this many of its disk operations.
fn crash(run: &CrashRun, operations: u64) {
    let (syncs, all) = run.points();
    for n in 1..=syncs {
        run.crash_at(Point::Sync(n));
    }
    for i in 0..operations.min(all) {
        run.crash_at(Point::Disk(1 + i * all / operations.min(all)));
    }
}

#[test]
fn of_short_runs() {
    for seed in seeds(1, 8) {
        crash(&CrashRun { seed, count: 100, shape: SHORT }, 12);
    }
}

#[test]
fn of_longer_runs() {
    for seed in seeds(50, 3) {
        crash(&CrashRun { seed, count: 400, shape: SHORT }, 12);
    }
}

#[test]
fn of_tiny_files() {
    for seed in seeds(80, 6) {
        crash(&CrashRun { seed, count: 150, shape: TINY }, 12);
    }
}
