//! redb on the block file: random transactions against a model, and a power cut at every sync point.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::tests::{new_disk, open, open_on};
use super::*;
use crate::disk::{CrashMode, RealDisk, SimDisk};

type Model = BTreeMap<u64, Vec<u8>>;
type Failure = Box<dyn std::error::Error>;

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("t");

/// A small cache, so that pages are also written in the middle of transactions.
fn database(file: BlockFile) -> Result<Database, redb::DatabaseError> {
    file.database(40 * BLOCK)
}

fn content(db: &Database) -> Model {
    let read = db.begin_read().unwrap();
    match read.open_table(TABLE) {
        Ok(table) => {
            table.iter().unwrap().map(|e| e.unwrap()).map(|(k, v)| (k.value(), v.value().to_vec())).collect()
        }
        Err(redb::TableError::TableDoesNotExist(_)) => Model::new(),
        Err(e) => panic!("{e}"),
    }
}

/// All states that were committed, and which of them must survive.
#[derive(Default)]
struct History {
    states: Vec<Model>,
    durable: usize,
}

/// Runs random transactions. Each state is noted before its commit is tried, so after a crash the newest may or may
/// not be there; `durable` moves when a durable commit was acknowledged.
fn work(
    db: &mut Database,
    rng: &mut StdRng,
    transactions: u32,
    history: &mut History,
) -> Result<(), Failure> {
    for _ in 0..transactions {
        let mut model = history.states.last().cloned().unwrap_or_default();
        let mut txn = db.begin_write()?;
        let durable = rng.random_bool(0.8);
        if !durable {
            txn.set_durability(Durability::None)?;
        }
        match rng.random_range(0..4) {
            0 => txn.set_two_phase_commit(true),
            1 => txn.set_quick_repair(true),
            _ => {}
        }
        {
            let mut table = txn.open_table(TABLE)?;
            for _ in 0..rng.random_range(1..60) {
                let key = rng.random_range(0..120);
                if rng.random_bool(0.35) {
                    table.remove(key)?;
                    model.remove(&key);
                } else {
                    let longest = if rng.random_bool(0.1) { 30_000 } else { 700 };
                    let mut value = vec![0; rng.random_range(0..longest)];
                    rng.fill(&mut value[..]);
                    table.insert(key, &value[..])?;
                    model.insert(key, value);
                }
            }
        }
        if rng.random_bool(0.1) {
            txn.abort()?;
            continue;
        }
        history.states.push(model);
        txn.commit()?;
        if durable {
            history.durable = history.states.len() - 1;
        }
        if rng.random_bool(0.05) {
            // Makes what was not durable so.
            db.compact()?;
            history.durable = history.states.len() - 1;
        }
    }
    Ok(())
}

fn new_history() -> History {
    History { states: vec![Model::new()], durable: 0 }
}

#[test]
fn agrees_with_a_model_on_a_simulated_disk() {
    for seed in 0..4 {
        let (disk, mut rng, mut history) = (new_disk(seed), StdRng::seed_from_u64(seed), new_history());
        for _ in 0..5 {
            let mut db = database(open(&disk).unwrap()).unwrap();
            work(&mut db, &mut rng, 15, &mut history).unwrap();
            assert_eq!(&content(&db), history.states.last().unwrap());
            assert!(db.check_integrity().unwrap());
        }
    }
}

#[test]
fn agrees_with_a_model_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    RealDisk::open(dir.path()).unwrap().create_dir_all("live").unwrap();
    let (mut rng, mut history) = (StdRng::seed_from_u64(1), new_history());
    for session in 0..4 {
        let disk = RealDisk::open(dir.path()).unwrap();
        let mut db = database(open_on(disk, session, &Poison::new()).unwrap()).unwrap();
        assert_eq!(&content(&db), history.states.last().unwrap());
        work(&mut db, &mut rng, 20, &mut history).unwrap();
        assert_eq!(&content(&db), history.states.last().unwrap());
    }
}

/// Opens what a crash left, checks it, works on and checks again after a clean restart.
fn check_after_crash(image: &SimDisk, history: &History, what: &str) {
    let check = || -> Result<(), Failure> {
        let mut db = database(open(image)?)?;
        let found = content(&db);
        assert!(history.states[history.durable..].contains(&found), "{what}: not a state that may be left");
        let mut next = History { states: vec![found], durable: 0 };
        work(&mut db, &mut StdRng::seed_from_u64(99), 2, &mut next)?;
        drop(db);
        assert!(
            &content(&database(open(image)?)?) == next.states.last().unwrap(),
            "{what}: after working on"
        );
        Ok(())
    };
    check().unwrap_or_else(|e| panic!("{what}: {e}"));
}

/// Returns how often the run synced; with `crash`, the power goes off at that point.
fn run(seed: u64, crash: Option<u64>) -> (SimDisk, History) {
    let (disk, mut rng, mut history) = (new_disk(seed), StdRng::seed_from_u64(seed), new_history());
    if let Some(n) = crash {
        disk.crash_at(disk.sync_points() + n);
    }
    let mut session = || -> Result<(), Failure> {
        for _ in 0..2 {
            let mut db = database(open(&disk)?)?;
            work(&mut db, &mut rng, 10, &mut history)?;
            drop(db);
        }
        Ok(())
    };
    let done = session();
    // The last syncs happen when the database is dropped, which can't report an error.
    assert!(done.is_ok() || disk.is_off(), "seed {seed}: only power cuts may fail: {done:?}");
    (disk, history)
}

#[test]
fn a_power_cut_at_every_sync_point_leaves_a_committed_state() {
    for seed in 0..3 {
        let (whole, history) = run(seed, None);
        check_after_crash(&whole.crash_image(CrashMode::DropUnsynced), &history, "after the end");
        let points = whole.sync_points();
        assert!(points > 60, "{points}");
        for point in 1..points {
            let (disk, history) = run(seed, Some(point));
            let torn = |n: u64| CrashMode::Torn(point * 10 + n);
            for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, torn(0), torn(1), torn(2)] {
                let what = format!("SEED={seed} sync point {point} {mode:?}");
                check_after_crash(&disk.crash_image(mode), &history, &what);
            }
        }
    }
}

#[test]
fn a_second_power_cut_during_recovery_changes_nothing() {
    let (disk, history) = run(7, Some(31));
    let image = disk.crash_image(CrashMode::Torn(1));
    for point in 1.. {
        let again = image.fork();
        again.crash_at(again.sync_points() + point);
        let done = open(&again).map_err(Failure::from).and_then(|file| Ok(database(file)?));
        let finished = done.is_ok();
        drop(done);
        for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn(point)] {
            check_after_crash(
                &again.crash_image(mode),
                &history,
                &format!("recovery point {point} {mode:?}"),
            );
        }
        if finished && !again.is_off() {
            break;
        }
    }
}

#[test]
fn a_full_disk_stops_redb_until_it_is_opened_again() {
    let (disk, mut rng, mut history) = (new_disk(1), StdRng::seed_from_u64(1), new_history());
    let mut db = database(open(&disk).unwrap()).unwrap();
    work(&mut db, &mut rng, 5, &mut history).unwrap();
    let space = disk.space().unwrap();
    disk.set_capacity(space.total - space.available);
    let insert = |db: &Database, key: u64| -> Result<(), Failure> {
        let txn = db.begin_write()?;
        txn.open_table(TABLE)?.insert(key, &[7; 20_000][..])?;
        Ok(txn.commit()?)
    };
    let mut added = 0;
    while insert(&db, 1_000 + added).is_ok() {
        added += 1;
        assert!(added < 10_000);
    }
    insert(&db, 1).unwrap_err();
    drop(db);
    let db = database(open(&disk).unwrap()).unwrap();
    assert_eq!(content(&db).range(1_000..).count() as u64, added, "it opens on the full disk too");
    drop(db);
    disk.set_capacity(space.total);
    let db = database(open(&disk).unwrap()).unwrap();
    insert(&db, 1_000 + added).unwrap();
    assert_eq!(content(&db).range(1_000..).count() as u64, added + 1);
}

#[test]
fn damage_is_an_error_and_never_other_data() {
    let (disk, history) = run(3, None);
    let expected = history.states.last().unwrap();
    let data = format!("live/{DATA_NAME}");
    let whole = disk.raw_read(&data).unwrap();
    let mut errors = 0;
    for slot in 0..whole.len() as u64 / SLOT {
        let disk = disk.fork();
        let mut bytes = whole.clone();
        bytes[(slot * SLOT) as usize..(slot * SLOT) as usize + SEALED].fill(0);
        disk.raw_write(&data, &bytes);
        let read = || -> Result<Model, Failure> {
            let db = database(open(&disk)?)?;
            let read = db.begin_read()?;
            let table = read.open_table(TABLE)?;
            let mut model = Model::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                model.insert(key.value(), value.value().to_vec());
            }
            Ok(model)
        };
        match read() {
            Ok(found) => assert!(&found == expected, "slot {slot}"),
            Err(_) => errors += 1,
        }
    }
    assert!(errors > 10, "{errors}");
}
