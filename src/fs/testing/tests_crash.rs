//! Crashes: at every sync of short runs, at some syncs and disk operations of longer ones.

use super::crash::{CrashRun, Point};
use super::ops::Shape;

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
    for seed in 1..=8 {
        crash(&CrashRun { seed, count: 100, shape: SHORT }, 12);
    }
}

#[test]
fn of_longer_runs() {
    for seed in 50..53 {
        crash(&CrashRun { seed, count: 400, shape: SHORT }, 12);
    }
}

#[test]
fn of_tiny_files() {
    for seed in 80..86 {
        crash(&CrashRun { seed, count: 150, shape: TINY }, 12);
    }
}

/// For nights: `SEED=1000 SEEDS=500 cargo test --release crash::soak -- --ignored`.
#[test]
#[ignore = "runs as long as it is told to"]
fn soak() {
    let number = |name: &str, or: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(or);
    let first = number("SEED", 1000);
    for seed in first..first + number("SEEDS", 100) {
        let shape = if seed % 3 == 0 { TINY } else { SHORT };
        crash(&CrashRun { seed, count: 50 + (seed as usize * 37) % 400, shape }, 20);
    }
}
