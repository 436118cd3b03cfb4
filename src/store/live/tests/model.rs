//! Random operations against an ordered map a table.

use super::*;

fn check_reads(live: &Live, model: &Model, rng: &mut StdRng) {
    let table = Table::ALL[rng.random_range(0..4) * 3];
    let rows = &model.0[table.index()];
    let (a, b) = (random_key(rng), random_key(rng));
    assert_eq!(live.get(table, &a).unwrap().as_deref(), rows.get(&a).map(Vec::as_slice));
    let limit = rng.random_range(0..20);
    let to = rng.random_bool(0.8).then_some(b.as_slice());
    let found: Vec<_> =
        live.range(table, &a, to, limit).unwrap().into_iter().map(|(k, v)| (k, v.to_vec())).collect();
    let within = rows.range(a.clone()..).filter(|(k, _)| to.is_none_or(|to| k.as_slice() < to));
    let expected: Vec<_> = within.take(limit).map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!(found, expected, "range {a:?}..{to:?} of {table:?}");
    let found = live.last_before(table, &a, &b).unwrap().map(|(k, v)| (k, v.to_vec()));
    let expected = rows.range(a.clone()..).rfind(|(k, _)| **k < b);
    assert_eq!(
        found,
        expected.map(|(k, v)| (k.clone(), v.clone())),
        "last before {b:?} from {a:?} of {table:?}"
    );
}

#[test]
fn random_operations_agree_with_the_model() {
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rig = Rig::new(SimDisk::new(seed), seed << 32);
        if seed % 3 == 2 {
            // Big batches, so that segments switch and logs don't fit all the time.
            rig.cfg.overlay_bytes_max = 200 << 10;
        }
        let value_max = [40, 600, 4000][seed as usize % 3];
        let mut live = rig.create().unwrap();
        let mut model = Model::default();
        let mut generation = 0;
        for _ in 0..400 {
            match rng.random_range(0..20) {
                0 => live.commit().unwrap(),
                1 => live.checkpoint().unwrap(),
                2 if rng.random_bool(0.3) => {
                    if rng.random_bool(0.5) {
                        live.close().unwrap();
                    } else {
                        live.commit().unwrap();
                    }
                    let durable = live.generation();
                    drop(live);
                    live = rig.open().unwrap();
                    assert_eq!(live.generation(), durable);
                    assert_eq!(Model::of(&live).unwrap(), model);
                }
                3..8 => {
                    let change = Change::random(&mut rng, value_max);
                    model.apply(&change);
                    live.apply(change.batch()).unwrap();
                }
                _ => check_reads(&live, &model, &mut rng),
            }
            assert!(live.generation() >= generation);
            generation = live.generation();
        }
        assert_eq!(Model::of(&live).unwrap(), model);
    }
}

#[test]
fn long_runs_of_deletes_are_skipped() {
    let mut rig = Rig::new(SimDisk::new(3), 3);
    rig.cfg.overlay_bytes_max = 8 << 20;
    let live = rig.create().unwrap();
    let key = |i: u32| format!("{i:06}").into_bytes();
    for part in 0..20 {
        let mut batch = Batch::new();
        (0..500).for_each(|i| batch.put(Table::Extents, key(part * 500 + i), *b"v"));
        live.apply(batch).unwrap();
    }
    live.checkpoint().unwrap();
    for part in 0..20 {
        let mut batch = Batch::new();
        (0..500)
            .filter(|i| part * 500 + i != 4321)
            .for_each(|i| batch.delete(Table::Extents, key(part * 500 + i)));
        live.apply(batch).unwrap();
    }
    for checkpointed in [false, true] {
        let rows = live.range(Table::Extents, b"", None, 10).unwrap();
        assert!(rows.len() == 1 && rows[0].0 == key(4321));
        let rows = live.range(Table::Extents, b"000000", Some(&key(4322)), 1).unwrap();
        assert!(rows.len() == 1 && rows[0].0 == key(4321));
        assert_eq!(live.last_before(Table::Extents, b"", b"9").unwrap().unwrap().0, key(4321));
        assert_eq!(live.last_before(Table::Extents, b"", &key(4321)).unwrap(), None);
        assert_eq!(live.last_before(Table::Extents, &key(4322), b"9").unwrap(), None);
        if !checkpointed {
            live.checkpoint().unwrap();
        }
    }
}
