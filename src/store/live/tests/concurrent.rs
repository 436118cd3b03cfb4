//! Many threads at once.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::disk::CrashMode;

/// Writers keep two rows equal; readers and views must never see them differ, whatever runs beside.
#[test]
fn rows_that_belong_together_stay_together() {
    let sim = SimDisk::new(1);
    let mut rig = Rig::new(sim.clone(), 1);
    rig.cfg =
        LiveConfig { segment_bytes: 128 << 10, overlay_bytes_max: 96 << 10, background: true, ..small() };
    let live = rig.create().unwrap();
    let stop = AtomicBool::new(false);
    let durable: [AtomicU64; 3] = Default::default();
    std::thread::scope(|scope| {
        for (writer, durable) in durable.iter().enumerate() {
            let (live, stop) = (&live, &stop);
            scope.spawn(move || {
                for n in 1..=400u64 {
                    let mut batch = Batch::new();
                    let value = [&n.to_le_bytes()[..], &vec![n as u8; (n % 7) as usize * 100]].concat();
                    batch.put(Table::Inodes, [b'p', writer as u8], value.clone());
                    batch.put(Table::Links, [b'q', writer as u8], value);
                    batch.put(Table::Dirents, [&[writer as u8][..], &n.to_be_bytes()].concat(), *b"");
                    if n > 50 {
                        batch.delete(Table::Dirents, [&[writer as u8][..], &(n - 50).to_be_bytes()].concat());
                    }
                    live.apply(batch).unwrap();
                    if n.is_multiple_of(5) {
                        live.commit().unwrap();
                        durable.store(n, Ordering::SeqCst);
                    }
                }
                stop.store(true, Ordering::SeqCst);
            });
        }
        for reader in 0..2 {
            let (live, stop) = (&live, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    for writer in 0..3u8 {
                        if reader == 0 {
                            let view = live.view().unwrap();
                            let p = view.get(Table::Inodes, &[b'p', writer]).unwrap();
                            assert_eq!(p, view.get(Table::Links, &[b'q', writer]).unwrap());
                            continue;
                        }
                        let n = |v: Option<Value>| {
                            v.map_or(0, |v| u64::from_le_bytes(v[..8].try_into().unwrap()))
                        };
                        let before = n(live.get(Table::Inodes, &[b'p', writer]).unwrap());
                        let middle = n(live.get(Table::Links, &[b'q', writer]).unwrap());
                        let after = n(live.get(Table::Inodes, &[b'p', writer]).unwrap());
                        assert!(before <= middle && middle <= after);
                        // Rows come and go at the ends; in between none may be missing.
                        let rows = live.range(Table::Dirents, &[writer], Some(&[writer + 1]), 1000).unwrap();
                        let ns: Vec<u64> = rows
                            .iter()
                            .map(|(k, _)| u64::from_be_bytes(k[1..].try_into().unwrap()))
                            .collect();
                        assert!(ns.windows(2).all(|w| w[1] == w[0] + 1), "{ns:?}");
                        let last = live.last_before(Table::Dirents, &[writer], &[writer + 1]).unwrap();
                        if let (Some((key, _)), Some(n)) = (last, ns.last()) {
                            assert!(u64::from_be_bytes(key[1..].try_into().unwrap()) >= *n);
                        }
                    }
                }
            });
        }
        // Crashes, all the while.
        let (sim, durable, stop) = (&sim, &durable, &stop);
        scope.spawn(move || {
            let mut seed = 0;
            while !stop.load(Ordering::SeqCst) {
                let before: Vec<u64> = durable.iter().map(|n| n.load(Ordering::SeqCst)).collect();
                let image = sim.crash_image(CrashMode::Torn(seed));
                seed += 1;
                let live = Rig::new(image, 1000 + seed).open().unwrap();
                for (writer, before) in before.into_iter().enumerate() {
                    let p = live.get(Table::Inodes, &[b'p', writer as u8]).unwrap();
                    assert_eq!(p, live.get(Table::Links, &[b'q', writer as u8]).unwrap());
                    let n = p.map_or(0, |v| u64::from_le_bytes(v[..8].try_into().unwrap()));
                    assert!(n >= before);
                }
            }
        });
    });
    live.close().unwrap();
    drop(live);
    let live = rig.open().unwrap();
    assert!(!live.recovered());
    assert_eq!(live.range(Table::Dirents, b"", None, 1000).unwrap().len(), 150);
}

#[test]
fn closing_waits_for_a_checkpoint_in_the_background() {
    for seed in 0..20 {
        let mut rig = Rig::new(SimDisk::new(seed), seed);
        rig.cfg.background = true;
        let live = rig.create().unwrap();
        for n in 0..30u64 {
            let mut batch = Batch::new();
            batch.put(Table::Chunks, n.to_be_bytes(), vec![0; 2000]);
            live.apply(batch).unwrap();
        }
        live.close().unwrap();
        drop(live);
        let live = rig.open().unwrap();
        assert!(!live.recovered());
        assert_eq!(live.range(Table::Chunks, b"", None, 100).unwrap().len(), 30);
    }
}
