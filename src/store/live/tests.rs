//! Tests of the live database on simulated disks.
#![allow(clippy::unwrap_used)]

mod attack;
mod concurrent;
mod crash;
mod model;
mod space;

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::crypto::Secret;
use crate::disk::{FaultOp, Faults, FaultyDisk, SimDisk};
use crate::env::TestEnv;
use crate::format::VaultId;

/// What the store should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model([BTreeMap<Vec<u8>, Vec<u8>>; 12]);

/// Changes that can be made to a store and to its model.
#[derive(Clone, Debug, Default)]
struct Change(Vec<(Table, Vec<u8>, Option<Vec<u8>>)>);

impl Change {
    fn batch(&self) -> Batch {
        let mut batch = Batch::new();
        for (table, key, value) in &self.0 {
            match value {
                Some(value) => batch.put(*table, key.clone(), value.clone()),
                None => batch.delete(*table, key.clone()),
            }
        }
        batch
    }

    fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.push((table, key.into(), Some(value.into())));
    }

    /// Random puts and deletes of few keys, so that they meet.
    fn random(rng: &mut StdRng, value_max: usize) -> Change {
        let mut change = Change::default();
        for _ in 0..rng.random_range(1..12) {
            let table = Table::ALL[rng.random_range(0..4) * 3];
            let key = random_key(rng);
            let value = rng.random_bool(0.6).then(|| vec![rng.random(); rng.random_range(0..=value_max)]);
            change.0.push((table, key, value));
        }
        change
    }
}

/// One of 300 keys, of which some are prefixes of others.
fn random_key(rng: &mut StdRng) -> Vec<u8> {
    let mut key = vec![b'a' + rng.random_range(0..5)];
    key.extend(std::iter::repeat_n(b'x', rng.random_range(0..3)));
    key.extend((0..rng.random_range(0..3)).map(|_| b'0' + rng.random_range(0..4)));
    key
}

impl Model {
    fn apply(&mut self, change: &Change) {
        for (table, key, value) in &change.0 {
            let rows = &mut self.0[table.index()];
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
    }

    /// Returns everything in a store, read through small ranges.
    fn of(live: &Live) -> Result<Model> {
        let mut model = Model::default();
        for table in Table::ALL {
            let mut from = Vec::new();
            loop {
                let rows = live.range(table, &from, None, 7)?;
                let Some((last, _)) = rows.last() else { break };
                from = [last.as_slice(), &[0]].concat();
                model.0[table.index()].extend(rows.into_iter().map(|(k, v)| (k, v.to_vec())));
            }
        }
        Ok(model)
    }
}

fn keys(vault: u8) -> LiveKeys {
    let secret = || Secret::<32>::fill_with(|bytes| bytes.fill(vault));
    LiveKeys::new(VaultId([vault; 16]), &secret(), &secret())
}

fn small() -> LiveConfig {
    LiveConfig {
        segment_bytes: 64 << 10,
        cache_bytes: 1 << 20,
        overlay_bytes_max: 64 << 10,
        background: false,
    }
}

/// One vault's disk with what it takes to open it.
#[derive(Clone)]
struct Rig {
    disk: Arc<dyn Disk>,
    seed: u64,
    cfg: LiveConfig,
    poison: Arc<Poison>,
}

impl Rig {
    fn new(disk: impl Disk, seed: u64) -> Rig {
        Rig { disk: Arc::new(disk), seed, cfg: small(), poison: Arc::new(Poison::new()) }
    }

    fn create(&self) -> Result<Arc<Live>> {
        let env = Arc::new(TestEnv::new(self.seed));
        Live::create(self.disk.clone(), keys(1), env, self.poison.clone(), self.cfg.clone())
    }

    /// Each opening has a random stream of its own, and a fresh poison flag, as in life.
    fn open(&mut self) -> Result<Arc<Live>> {
        self.seed += 1;
        self.poison = Arc::new(Poison::new());
        let env = Arc::new(TestEnv::new(self.seed));
        Live::open(self.disk.clone(), keys(1), env, self.poison.clone(), self.cfg.clone())
    }
}

#[test]
fn what_is_put_is_there_after_a_clean_close() {
    let mut rig = Rig::new(SimDisk::new(1), 1);
    let live = rig.create().unwrap();
    assert!(!live.recovered() && live.generation() == 0);
    let mut change = Change::default();
    change.put(Table::Settings, *b"next_ino", *b"2");
    change.put(Table::Dirents, *b"", *b"");
    live.apply(change.batch()).unwrap();
    assert_eq!(live.get(Table::Settings, b"next_ino").unwrap().as_deref(), Some(&b"2"[..]));
    assert!(live.uncommitted_bytes() > 0);
    live.commit().unwrap();
    assert!(live.uncommitted_bytes() == 0 && live.journal_bytes() > 0 && live.generation() == 1);
    live.checkpoint().unwrap();
    assert_eq!(live.journal_bytes(), 0);
    live.close().unwrap();
    live.close().unwrap();
    live.get(Table::Settings, b"next_ino").unwrap_err();
    live.apply(change.batch()).unwrap_err();
    drop(live);
    let live = rig.open().unwrap();
    assert!(!live.recovered() && live.generation() == 1);
    assert_eq!(live.get(Table::Dirents, b"").unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(live.get(Table::Dirents, b"x").unwrap(), None);
    drop(live);
    let live = rig.open().unwrap();
    assert!(live.recovered(), "opened before and not closed");
}

#[test]
fn a_batch_that_fits_no_segment_is_refused() {
    let live = Rig::new(SimDisk::new(1), 1).create().unwrap();
    let mut batch = Batch::new();
    batch.put(Table::Inodes, *b"k", vec![0; small().batch_bytes_max()]);
    assert!(matches!(live.apply(batch), Err(StoreError::Io { .. })));
    let mut batch = Batch::new();
    batch.put(Table::Inodes, *b"k", vec![0; small().batch_bytes_max() - 100]);
    live.apply(batch).unwrap();
    live.commit().unwrap();
    assert_eq!(live.generation(), 1);
}

#[test]
fn a_view_does_not_change() {
    let live = Rig::new(SimDisk::new(1), 1).create().unwrap();
    let mut model = Model::default();
    let mut rng = StdRng::seed_from_u64(5);
    let mut views = Vec::new();
    for step in 0..40 {
        let change = Change::random(&mut rng, 300);
        model.apply(&change);
        live.apply(change.batch()).unwrap();
        if step % 10 == 9 {
            views.push((live.view().unwrap(), model.clone()));
        }
    }
    live.close().unwrap();
    drop(live);
    for (view, model) in &views {
        for table in Table::ALL {
            let rows = &model.0[table.index()];
            let all: BTreeMap<_, _> = view
                .range(table, b"", None, 1000)
                .unwrap()
                .into_iter()
                .map(|(k, v)| (k, v.to_vec()))
                .collect();
            assert_eq!(all, *rows);
            assert!(view.range(table, b"z", Some(b"a"), 9).unwrap().is_empty());
            let last = rows.range(b"b".to_vec()..b"d".to_vec()).next_back();
            let found = view.last_before(table, b"b", b"d").unwrap().map(|(k, v)| (k, v.to_vec()));
            assert_eq!(found, last.map(|(k, v)| (k.clone(), v.clone())));
            assert!(view.last_before(table, b"d", b"b").unwrap().is_none());
            for (key, value) in rows {
                assert_eq!(view.get(table, key).unwrap().as_deref(), Some(value.as_slice()));
            }
        }
    }
}

#[test]
fn opening_after_a_clean_close_does_not_read_what_the_journal_held() {
    let reads = |commits: u64| {
        let disk = SimDisk::new(3);
        let rig = Rig::new(disk.clone(), 3);
        let live = rig.create().unwrap();
        for n in 0..commits {
            let mut change = Change::default();
            change.put(Table::Settings, *b"n", n.to_le_bytes());
            live.apply(change.batch()).unwrap();
            live.commit().unwrap();
        }
        live.close().unwrap();
        drop(live);
        let faults = Faults::new();
        let faulty = Arc::new(FaultyDisk::new(disk, faults.clone()));
        let live =
            Live::open(faulty, keys(1), Arc::new(TestEnv::new(9)), Arc::new(Poison::new()), rig.cfg.clone())
                .unwrap();
        assert_eq!((live.generation(), live.recovered()), (commits, false));
        assert_eq!(live.get(Table::Settings, b"n").unwrap().unwrap()[..], (commits - 1).to_le_bytes());
        faults.count(FaultOp::Read)
    };
    let (few, many) = (reads(2), reads(200));
    assert!(many < few + 20, "{few} reads after two commits, {many} after two hundred");
}

/// What lies in the journal from before a clean close may rot: nothing new goes behind it.
#[test]
fn rotten_frames_from_before_a_clean_close_hide_nothing_new() {
    let disk = SimDisk::new(4);
    let mut rig = Rig::new(disk.clone(), 4);
    let live = rig.create().unwrap();
    let put = |live: &Live, key: &[u8]| {
        let mut change = Change::default();
        change.put(Table::Settings, key, *b"v");
        live.apply(change.batch()).unwrap();
        live.commit().unwrap();
    };
    put(&live, b"old");
    live.close().unwrap();
    drop(live);
    for path in ["live/journal/a", "live/journal/b"] {
        let mut bytes = disk.raw_read(path).unwrap();
        bytes[4096..4096 + 1024].fill(0xee);
        disk.raw_write(path, &bytes);
    }
    let live = rig.open().unwrap();
    put(&live, b"new");
    drop(live);
    let live = rig.open().unwrap();
    assert!(live.recovered());
    for key in [&b"old"[..], b"new"] {
        assert_eq!(live.get(Table::Settings, key).unwrap().as_deref(), Some(&b"v"[..]), "{key:?}");
    }
}
