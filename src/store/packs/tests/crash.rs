//! Power cuts: at every sync point, with every kind of loss.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::disk::CrashMode;

const SMALL: u64 = 120 << 10;

/// What one run knew to be durable when the power went.
#[derive(Default)]
struct Acknowledged {
    chunks: Vec<(PackKind, ChunkId, Vec<u8>)>,
}

/// Stores chunks, commits now and then, closes packs; stops at the first error. Returns what was committed.
fn work(vault: &Vault, disk: &SimDisk, start: &str) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    let mut pending = Vec::new();
    let mut run = || -> Result<()> {
        let ctx = vault.ctx(Arc::new(disk.clone()), quiet(SMALL));
        let live = if start == "first" { live_create(&ctx)? } else { live_open(&ctx)? };
        let packs = Packs::open(Arc::clone(&ctx), Arc::clone(&live))?;
        for n in 0..9 {
            let kind = if n % 3 == 2 { PackKind::Tree } else { PackKind::Data };
            let content = match n % 2 {
                0 => noise(&format!("{start} {n}"), 20_000 + 3000 * n),
                _ => prose(&format!("{start} {n} "), 150_000),
            };
            let id = packs.put(kind, &content, Effort::Fast)?;
            pending.push((kind, id, content));
            if n % 2 == 1 {
                live.commit()?;
                acknowledged.chunks.append(&mut pending);
            }
            if n == 6 {
                packs.close_open()?;
            }
        }
        packs.close_open()?;
        live.commit()?;
        acknowledged.chunks.append(&mut pending);
        live.close()
    };
    drop(run());
    acknowledged
}

/// Opens what a crash left and checks that all that was acknowledged is there and sound, that new chunks can
/// be stored, and that the packs on the disk are well formed.
fn check(vault: &Vault, image: &SimDisk, acknowledged: &Acknowledged) {
    let store = match vault.open(Arc::new(image.clone()), quiet(SMALL)) {
        Ok(store) => store,
        // The live database was still being created.
        Err(StoreError::NotFound(_) | StoreError::Corrupt(_)) if acknowledged.chunks.is_empty() => return,
        Err(e) => panic!("the vault does not open: {e}"),
    };
    let read = |source: &dyn ChunkSource| {
        for (kind, id, content) in &acknowledged.chunks {
            let plain = source.read_chunk(*kind, id).unwrap_or_else(|e| panic!("chunk {id}: {e}"));
            assert_eq!(&plain[..], &content[..]);
        }
    };
    read(&*store.packs);
    assert!(!image.raw_list().iter().any(|p| p.starts_with("live/open/")), "nothing is left open");
    // Every row of the index leads to a sound chunk, those that were never acknowledged included.
    let packs = store.packs.closed_packs().unwrap();
    store
        .packs
        .core
        .scan(Table::Chunks, &mut |key, value| {
            let id = ChunkId(key.try_into().unwrap());
            let row = ChunkRow::decode(&id, value)?;
            let kind = packs.iter().find(|p| p.no == row.pack).unwrap().kind;
            store.packs.read_chunk(kind, &id).map(drop)
        })
        .unwrap();
    let (kind, id) =
        (PackKind::Data, store.packs.put(PackKind::Data, b"after the crash", Effort::Fast).unwrap());
    assert_eq!(&store.packs.read_chunk(kind, &id).unwrap()[..], b"after the crash");
    store.close();
    let cold = vault.cold(image);
    assert!(cold.problems().is_empty(), "{:?}", cold.problems());
    read(&cold);
}

fn modes(n: u64) -> Vec<CrashMode> {
    let mut modes = vec![CrashMode::DropUnsynced, CrashMode::KeepAll];
    modes.extend((0..4).map(|i| CrashMode::Torn(n * 4 + i)));
    modes
}

#[test]
fn nothing_committed_is_lost_at_any_sync_point() {
    let vault = Vault::new(1);
    let whole = SimDisk::new(1);
    assert_eq!(work(&vault, &whole, "first").chunks.len(), 9);
    let points = whole.sync_points();
    assert!(points > 20);
    for n in 1..=points {
        let disk = SimDisk::new(n);
        disk.crash_at(n);
        let acknowledged = work(&vault, &disk, "first");
        for mode in modes(n) {
            let checked =
                catch_unwind(AssertUnwindSafe(|| check(&vault, &disk.crash_image(mode), &acknowledged)));
            assert!(checked.is_ok(), "crash at sync point {n} of {points}, {mode:?}");
        }
    }
}

#[test]
fn nothing_committed_is_lost_at_any_operation_of_a_second_run() {
    let vault = Vault::new(2);
    let first = SimDisk::new(1);
    let before = work(&vault, &first, "first").chunks;
    let whole = first.fork();
    assert_eq!(work(&vault, &whole, "second").chunks.len(), 9);
    let (from, to) = (first.operations(), whole.operations());
    for n in (from + 1..=to).step_by(7) {
        let disk = first.fork();
        disk.crash_at_operation(n);
        let mut acknowledged = work(&vault, &disk, "second");
        acknowledged.chunks.extend(before.iter().cloned());
        let mode = modes(n).swap_remove((n % 6) as usize);
        let checked =
            catch_unwind(AssertUnwindSafe(|| check(&vault, &disk.crash_image(mode), &acknowledged)));
        assert!(checked.is_ok(), "crash at operation {n} of {from}..{to}, {mode:?}");
    }
}

/// Several threads store, commit and close at once; the order of things differs from run to run, the promise
/// does not.
#[test]
fn nothing_committed_is_lost_with_many_threads() {
    for seed in 0..12 {
        let vault = Vault::new(seed);
        let disk = SimDisk::new(seed);
        let store = vault.create(Arc::new(disk.clone()), threaded(SMALL));
        disk.crash_at_operation(disk.operations() + 100 + 60 * seed);
        let acknowledged = Mutex::new(Acknowledged::default());
        std::thread::scope(|scope| {
            for t in 0..4 {
                let (store, acknowledged) = (&store, &acknowledged);
                scope.spawn(move || {
                    for n in 0.. {
                        let content = noise(&format!("{t} {n}"), 3000 + 9000 * (n % 5));
                        let kind = if t == 0 { PackKind::Tree } else { PackKind::Data };
                        let put = store.packs.put(kind, &content, Effort::Fast);
                        let Ok(id) = put else { return };
                        if t == 3 && n % 8 == 7 && store.packs.close_open().is_err() {
                            return;
                        }
                        if store.live.commit().is_err() {
                            return;
                        }
                        lock(acknowledged).chunks.push((kind, id, content));
                    }
                });
            }
        });
        drop(store);
        let acknowledged = acknowledged.into_inner().unwrap();
        for mode in modes(seed) {
            check(&vault, &disk.crash_image(mode), &acknowledged);
        }
    }
}

/// A crash while a crash is being recovered from.
#[test]
fn recovery_can_be_interrupted_at_any_sync_point() {
    let vault = Vault::new(3);
    let disk = SimDisk::new(1);
    let store = vault.create(Arc::new(disk.clone()), quiet(1 << 20));
    let mut acknowledged = Acknowledged::default();
    for n in 0..4 {
        let kind = if n % 2 == 0 { PackKind::Data } else { PackKind::Tree };
        let content = noise(&n.to_string(), 50_000);
        acknowledged.chunks.push((kind, store.packs.put(kind, &content, Effort::Fast).unwrap(), content));
    }
    store.live.commit().unwrap();
    store.packs.put(PackKind::Data, &noise("never committed", 50_000), Effort::Fast).unwrap();
    disk.power_off();
    for mode in modes(0) {
        let crashed = disk.crash_image(mode);
        let whole = crashed.fork();
        check(&vault, &whole, &acknowledged);
        for n in crashed.sync_points() + 1..=whole.sync_points() {
            let again = crashed.fork();
            again.crash_at(n);
            drop(vault.open(Arc::new(again.clone()), quiet(1 << 20)).and_then(|s| s.live.commit()));
            for second in modes(n).into_iter().skip(1).take(3) {
                let image = again.crash_image(second);
                let checked = catch_unwind(AssertUnwindSafe(|| check(&vault, &image, &acknowledged)));
                assert!(checked.is_ok(), "{mode:?}, then {second:?} at sync point {n}");
            }
        }
    }
}

/// The process dies, the machine does not: all that was written is there, committed or not.
#[test]
fn a_killed_process_leaves_a_pack_that_is_finished_and_not_written_to_again() {
    let vault = Vault::new(4);
    let disk = SimDisk::new(1);
    let store = vault.create(Arc::new(disk.clone()), quiet(1 << 20));
    let content = noise("committed", 100_000);
    let id = store.packs.put(PackKind::Data, &content, Effort::Fast).unwrap();
    store.live.commit().unwrap();
    let lost = store.packs.put(PackKind::Data, &noise("not committed", 100_000), Effort::Fast).unwrap();
    let image = disk.crash_image(CrashMode::KeepAll);
    let store = vault.open(Arc::new(image.clone()), quiet(1 << 20)).unwrap();
    let packs = store.packs.closed_packs().unwrap();
    assert_eq!(packs.len(), 1);
    let chunks = store.packs.chunks_of(&packs[0]).unwrap();
    assert_eq!(chunks.iter().map(|c| c.id).collect::<Vec<_>>(), [id], "cut after the last known chunk");
    assert!(!store.packs.contains(&lost).unwrap());
    store.packs.put(PackKind::Data, b"next", Effort::Fast).unwrap();
    store.packs.close_open().unwrap();
    assert_eq!(store.packs.closed_packs().unwrap().len(), 2, "a pack of its own");
}

/// FORMAT PACK-7: what had been durable must prove itself before the pack is closed.
#[test]
fn damage_in_an_open_pack_is_told_at_opening() {
    let vault = Vault::new(5);
    let disk = SimDisk::new(1);
    let store = vault.create(Arc::new(disk.clone()), quiet(1 << 20));
    store.packs.put(PackKind::Data, &noise("x", 100_000), Effort::Fast).unwrap();
    store.live.commit().unwrap();
    let path = disk.raw_list().into_iter().find(|p| p.starts_with("live/open/")).unwrap();
    let good = disk.raw_read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[50_000] ^= 1;
    for bytes in [&flipped[..], &good[..50_000], &good[..500], &[]] {
        let image = disk.crash_image(CrashMode::KeepAll);
        image.raw_write(&path, bytes);
        let text = corrupt(vault.open(Arc::new(image), quiet(1 << 20)).map(drop));
        assert!(text.contains(&path), "{text}");
    }
    let image = disk.crash_image(CrashMode::KeepAll);
    image.raw_remove(&path);
    assert!(corrupt(vault.open(Arc::new(image), quiet(1 << 20)).map(drop)).contains(&path));
}
