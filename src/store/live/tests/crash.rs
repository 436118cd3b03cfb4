//! Power cuts at every sync point and at many other operations: what is left is a prefix of what was applied, batches
//! whole, and no shorter than the last commit that returned.

use super::*;
use crate::disk::CrashMode;

const BATCHES: u64 = 70;

/// What happened before the power went off.
#[derive(Default)]
struct History {
    /// `states[n]` is the state after n batches.
    states: Vec<Model>,
    /// Batches that a commit, checkpoint or close vouched for.
    durable: u64,
}

/// Numbers its batches in a row, so that the recovered state tells how many it has.
fn workload(rig: &mut Rig, seed: u64) -> History {
    let mut history = History { states: vec![Model::default()], durable: 0 };
    let run = || -> Result<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut live = rig.open()?;
        for n in 1..=BATCHES {
            let mut change = Change::random(&mut rng, if seed.is_multiple_of(2) { 500 } else { 6000 });
            change.put(Table::Settings, *b"n", n.to_le_bytes());
            let mut state = history.states[n as usize - 1].clone();
            state.apply(&change);
            history.states.push(state);
            live.apply(change.batch())?;
            match rng.random_range(0..12) {
                0..3 => live.commit()?,
                3 => live.checkpoint()?,
                4 => drop(live.view()?),
                5 if rng.random_bool(0.5) => {
                    live.close()?;
                    history.durable = n;
                    drop(live);
                    live = rig.open()?;
                    continue;
                }
                _ => continue,
            }
            history.durable = n;
        }
        live.close()?;
        history.durable = BATCHES;
        Ok(())
    };
    // The power may have gone off.
    drop({ run }());
    history
}

fn check(image: &SimDisk, history: &History, what: &str) {
    let mut rig = Rig::new(image.clone(), image.operations() ^ 0x77);
    let live = rig.open().unwrap_or_else(|e| panic!("{what}: {e}"));
    let n = |live: &Live| -> u64 {
        let row = live.get(Table::Settings, b"n").unwrap();
        row.map_or(0, |v| u64::from_le_bytes(v[..].try_into().unwrap()))
    };
    let have = n(&live);
    assert!(have >= history.durable, "{what}: {have} batches left, {} were durable", history.durable);
    assert_eq!(live.generation(), have, "{what}");
    assert_eq!(Model::of(&live).unwrap(), history.states[have as usize], "{what}");
    // Life goes on.
    let mut change = Change::default();
    change.put(Table::Settings, *b"after", *b"1");
    live.apply(change.batch()).unwrap();
    live.commit().unwrap();
    drop(live);
    let live = rig.open().unwrap();
    assert_eq!((n(&live), live.generation()), (have, have + 1), "{what}");
    assert!(live.get(Table::Settings, b"after").unwrap().is_some());
    live.close().unwrap();
    drop(live);
    let live = rig.open().unwrap();
    assert!(!live.recovered() && n(&live) == have, "{what}");
}

fn modes(at: u64) -> [CrashMode; 4] {
    [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn(at), CrashMode::Torn(at + 7777)]
}

fn prepared(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    let live = Rig::new(disk.clone(), seed).create().unwrap();
    live.close().unwrap();
    drop(live);
    disk.crash_image(CrashMode::KeepAll)
}

#[test]
fn every_sync_point_leaves_a_prefix() {
    for seed in 0..2 {
        let start = prepared(seed);
        let whole = start.fork();
        workload(&mut Rig::new(whole.clone(), 100), seed);
        assert!(!whole.is_off());
        let (first, last) = (start.sync_points(), whole.sync_points());
        assert!(last - first > 60);
        for at in first + 1..=last {
            let disk = start.fork();
            disk.crash_at(at);
            let history = workload(&mut Rig::new(disk.clone(), 100), seed);
            assert!(disk.is_off());
            for mode in modes(at) {
                check(&disk.crash_image(mode), &history, &format!("seed {seed}, sync point {at}, {mode:?}"));
            }
        }
    }
}

#[test]
fn many_other_operations_leave_a_prefix() {
    let start = prepared(9);
    let whole = start.fork();
    workload(&mut Rig::new(whole.clone(), 100), 9);
    let (first, last) = (start.operations(), whole.operations());
    let mut rng = StdRng::seed_from_u64(9);
    for _ in 0..80 {
        let at = rng.random_range(first + 1..=last);
        let disk = start.fork();
        disk.crash_at_operation(at);
        let history = workload(&mut Rig::new(disk.clone(), 100), 9);
        for mode in modes(at) {
            check(&disk.crash_image(mode), &history, &format!("operation {at}, {mode:?}"));
        }
    }
}

#[test]
fn two_crashes_in_a_row() {
    let start = prepared(4);
    let mut rng = StdRng::seed_from_u64(4);
    let total = {
        let disk = start.fork();
        workload(&mut Rig::new(disk.clone(), 100), 4);
        disk.sync_points() - start.sync_points()
    };
    for round in 0..60 {
        let disk = start.fork();
        disk.crash_at(start.sync_points() + rng.random_range(1..=total));
        let history = workload(&mut Rig::new(disk.clone(), 100), 4);
        let image = disk.crash_image(CrashMode::Torn(round));
        // The second crash strikes while the first is recovered from, or a little later.
        image.crash_at(image.sync_points() + rng.random_range(1..12));
        let mut rig = Rig::new(image.clone(), 900 + round);
        let mut durable_extra = false;
        if let Ok(live) = rig.open() {
            let mut change = Change::default();
            change.put(Table::Orphans, *b"second", *b"1");
            durable_extra = live.apply(change.batch()).and_then(|()| live.commit()).is_ok();
        }
        let image = image.crash_image(CrashMode::Torn(round * 31));
        let live = Rig::new(image, 5000 + round).open().unwrap();
        let n = live.get(Table::Settings, b"n").unwrap();
        let n = n.map_or(0, |v| u64::from_le_bytes(v[..].try_into().unwrap()));
        assert!(n >= history.durable, "round {round}");
        let mut found = Model::of(&live).unwrap();
        let extra = found.0[Table::Orphans.index()].remove(&b"second"[..]).is_some();
        assert!(extra || !durable_extra, "round {round}");
        assert_eq!(found, history.states[n as usize], "round {round}");
    }
}

#[test]
fn a_crash_while_creating_is_not_a_live_state() {
    let total = {
        let disk = SimDisk::new(1);
        Rig::new(disk.clone(), 1).create().unwrap();
        disk.operations()
    };
    for at in 1..=total {
        let disk = SimDisk::new(1);
        disk.crash_at_operation(at);
        drop(Rig::new(disk.clone(), 1).create());
        for mode in modes(at) {
            let image = disk.crash_image(mode);
            match Rig::new(image.clone(), 2).open() {
                Ok(live) => assert_eq!(Model::of(&live).unwrap(), Model::default()),
                Err(StoreError::NotFound(_) | StoreError::Corrupt(_)) => {}
                Err(e) => panic!("operation {at}, {mode:?}: {e}"),
            }
            let live = Rig::new(image, 3).create().unwrap();
            assert_eq!(Model::of(&live).unwrap(), Model::default());
        }
    }
}
