//! Random operations, compared with the model.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::check::check_rows;
use super::ops::{Op, Pair, Shape};
use super::{Rng, Vault, seeds, small_config};

/// Runs `count` operations; compares everything each `every` operations and after each reopening.
fn run(seed: u64, count: usize, every: usize, shape: Shape, background: bool) {
    let mut cfg = small_config();
    cfg.background = background;
    cfg.live.background = background;
    let vault = Vault::new(seed, cfg);
    let mut rng = Rng::new(seed);
    let mut pair = Some(Pair::new(&vault, shape));
    let mut last = Vec::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        for step in 1..=count {
            let op = Op::random(&mut rng, shape);
            last.push(format!("{step}: {op:?}"));
            let this = pair.as_mut().unwrap();
            if let Err(error) = this.apply(&op) {
                panic!("{:?}: {error}", error.errno);
            }
            if step % every == 0 {
                this.compare();
                if background {
                    // Rows must not change while they are looked at.
                    this.fs.flush_all().unwrap();
                }
                check_rows(&this.engine, true);
            }
            if rng.one_in(every as u64 * 8) {
                let again = pair.take().unwrap().reopen(&vault);
                last.push("reopened".into());
                check_rows(&again.engine, false);
                again.compare();
                pair = Some(again);
            }
        }
        assert_eq!(last.iter().filter(|op| *op != "reopened").count(), count);
        let end = pair.take().unwrap().reopen(&vault);
        check_rows(&end.engine, false);
        end.compare();
    }));
    if let Err(panic) = result {
        eprintln!(
            "STRONGROOM_SEED={seed}, the last operations were:\n{}",
            last[last.len().saturating_sub(12)..].join("\n")
        );
        resume_unwind(panic);
    }
}

/// Runs and operations of each of the tests.
const SHORT: (u64, usize) = (60, 500);
const LONG: (u64, usize) = (4, 10_000);
const THREADS: (u64, usize) = (6, 5_000);
const TINY: (u64, usize) = (20, 500);

const fn operations(test: (u64, usize)) -> usize {
    test.0 as usize * test.1
}

const _: () =
    assert!(operations(SHORT) + operations(LONG) + operations(THREADS) + operations(TINY) >= 100_000);

const SMALL: Shape = Shape { file_max: 200_000, write_max: 40_000 };

#[test]
fn many_short_runs() {
    for seed in seeds(0, SHORT.0) {
        run(seed, SHORT.1, 25, SMALL, false);
    }
}

#[test]
fn long_runs() {
    for seed in seeds(100, LONG.0) {
        run(seed, LONG.1, 250, SMALL, false);
    }
}

#[test]
fn with_threads() {
    for seed in seeds(200, THREADS.0) {
        run(seed, THREADS.1, 250, SMALL, true);
    }
}

#[test]
fn tiny_files() {
    for seed in seeds(300, TINY.0) {
        run(seed, TINY.1, 25, Shape { file_max: 6_000, write_max: 1_500 }, false);
    }
}

#[test]
fn the_seed_decides_everything() {
    let digest = |seed| {
        let vault = Vault::new(seed, small_config());
        let (mut rng, mut pair) = (Rng::new(seed), Pair::new(&vault, SMALL));
        for _ in 0..200 {
            let op = Op::random(&mut rng, SMALL);
            pair.apply(&op).unwrap();
        }
        pair.fs.sync_all().unwrap();
        let mut hash = blake3::Hasher::new();
        for path in vault.disk.raw_list() {
            hash.update(path.as_bytes());
            hash.update(&vault.disk.raw_read(&path).unwrap());
        }
        hash.finalize()
    };
    assert_eq!(digest(1), digest(1));
    assert_ne!(digest(1), digest(2));
}
