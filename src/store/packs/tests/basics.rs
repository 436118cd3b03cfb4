//! Round trips, deduplication, threads, reopening, full and failing disks.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use super::*;
use crate::disk::{FaultErrno, FaultOp, Faults, FaultyDisk};
use crate::format::BLOCK_LEN;
use crate::store::pool::Buf;

fn sim() -> (SimDisk, Arc<dyn Disk>) {
    let disk = SimDisk::new(1);
    (disk.clone(), Arc::new(disk))
}

#[test]
fn chunks_come_back_whatever_their_size_and_content() {
    for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
        let vault = Vault::with_cipher(1, cipher);
        let (sim, disk) = sim();
        let store = vault.create(Arc::clone(&disk), quiet(1 << 20));
        let sizes = [
            1,
            2,
            100,
            BLOCK_LEN - 1,
            BLOCK_LEN,
            BLOCK_LEN + 1,
            3 * BLOCK_LEN,
            1_000_000,
            crate::format::CHUNK_MAX,
        ];
        let mut stored = Vec::new();
        for len in sizes {
            for effort in [Effort::Fast, Effort::Thorough] {
                for content in [noise(&format!("{len}{effort:?}"), len), prose(&format!("{effort:?}"), len)] {
                    let kind = if len % 2 == 0 { PackKind::Data } else { PackKind::Tree };
                    let id = store.packs.put(kind, &content, effort).unwrap();
                    assert_eq!(id, vault.keys.chunk_id(kind, &content));
                    stored.push((kind, id, content));
                }
            }
        }
        let check = |source: &dyn ChunkSource| {
            for (kind, id, content) in &stored {
                assert_eq!(&source.read_chunk(*kind, id).unwrap()[..], &content[..]);
                for (from, to) in [(0, 1), (0, content.len()), (content.len() / 3, content.len() / 2 + 1)] {
                    let mut buf = vec![0; to.max(from) - from];
                    source.read_at(id, from as u32, &mut buf).unwrap();
                    assert_eq!(buf, content[from..to.max(from)]);
                }
            }
        };
        check(&*store.packs);
        store.packs.close_open().unwrap();
        check(&*store.packs);
        check(&vault.cold(&sim));
        store.close();
        let store = vault.open(disk, quiet(1 << 20)).unwrap();
        check(&*store.packs);
        assert!(!sim.raw_list().iter().any(|p| p.starts_with("live/open/")));
    }
}

#[test]
fn what_can_not_be_a_chunk_is_refused() {
    let (_, disk) = sim();
    let store = Vault::new(1).create(disk, quiet(1 << 20));
    assert!(matches!(store.packs.put(PackKind::Data, b"", Effort::Fast), Err(StoreError::Format(_))));
    let long = vec![0; crate::format::CHUNK_MAX + 1];
    assert!(matches!(store.packs.put(PackKind::Data, &long, Effort::Fast), Err(StoreError::Format(_))));
    let id = store.packs.put(PackKind::Data, b"abc", Effort::Fast).unwrap();
    assert!(matches!(
        store.packs.read_chunk(PackKind::Data, &ChunkId([0; 32])),
        Err(StoreError::NotFound(_))
    ));
    assert!(store.packs.contains(&id).unwrap());
    assert!(!store.packs.contains(&ChunkId([0; 32])).unwrap());
    corrupt(store.packs.read_at(&id, 0, &mut [0; 4]));
    corrupt(store.packs.read_at(&id, u32::MAX, &mut [0; 4]));
    store.packs.read_at(&id, 3, &mut []).unwrap();
    // FORMAT PACK-6: a data chunk is no tree object.
    corrupt(store.packs.read_chunk(PackKind::Tree, &id));
}

#[test]
fn the_same_bytes_are_stored_once_and_kinds_are_kept_apart() {
    let vault = Vault::new(1);
    let (sim, disk) = sim();
    let store = vault.create(disk, quiet(1 << 20));
    let content = noise("same", 300_000);
    let id = store.packs.put(PackKind::Data, &content, Effort::Fast).unwrap();
    let before = store.packs.space_estimate().open_bytes;
    for effort in [Effort::Fast, Effort::Thorough] {
        assert_eq!(store.packs.put(PackKind::Data, &content, effort).unwrap(), id);
    }
    assert_eq!(store.packs.space_estimate().open_bytes, before);
    let stats = store.packs.stats();
    assert_eq!((stats.chunks, stats.dedup_hits, stats.dedup_bytes), (1, 2, 600_000));
    assert_eq!(stats.stored_bytes, 300_000 + 3 * 16);
    let tree = store.packs.put(PackKind::Tree, &content, Effort::Fast).unwrap();
    assert_ne!(tree, id);
    store.packs.close_open().unwrap();
    assert_eq!(store.packs.put(PackKind::Data, &content, Effort::Fast).unwrap(), id);
    let packs = store.packs.closed_packs().unwrap();
    assert_eq!(packs.iter().map(|p| p.kind).collect::<Vec<_>>(), [PackKind::Data, PackKind::Tree]);
    for pack in &packs {
        let path = crate::format::pack::pack_path(&pack.name);
        let bytes = sim.raw_read(&path).unwrap();
        assert_eq!(*blake3::hash(&bytes).as_bytes(), pack.name.0, "a pack's name is the hash of its file");
        assert_eq!(bytes.len() as u64, pack.file_len);
        assert_eq!(bytes.len() % 4096, 0);
        assert_eq!(store.packs.chunks_of(pack).unwrap().len(), 1);
    }
}

#[test]
fn full_packs_are_closed_and_nothing_of_the_plaintext_is_on_the_disk() {
    let vault = Vault::new(1);
    let (sim, disk) = sim();
    let store = vault.create(disk, quiet(256 << 10));
    let contents: Vec<_> = (0..12).map(|n| prose(&format!("file number {n} "), 100_000)).collect();
    for content in &contents {
        let random = noise(&format!("{:?}", &content[..20]), 60_000);
        store.packs.put(PackKind::Data, &random, Effort::Fast).unwrap();
        store.packs.put(PackKind::Data, content, Effort::Thorough).unwrap();
    }
    let closed = store.packs.closed_packs().unwrap();
    assert!(closed.len() >= 2, "{}", closed.len());
    assert!(closed.iter().all(|p| p.file_len < 512 << 10));
    store.packs.close_open().unwrap();
    store.packs.close_open().unwrap();
    for path in sim.raw_list() {
        let bytes = sim.raw_read(&path).unwrap();
        assert!(!bytes.windows(12).any(|w| w == b"backup of th"), "{path}");
    }
}

#[test]
fn eight_threads_store_and_read_the_same_and_different_chunks() {
    let vault = Vault::new(1);
    let (sim, disk) = sim();
    let store = vault.create(disk, threaded(400_000));
    let shared: Vec<_> = (0..20).map(|n| noise(&format!("shared {n}"), 10_000 + 17_000 * (n % 13))).collect();
    std::thread::scope(|scope| {
        for t in 0..8 {
            let (store, shared) = (&store, &shared);
            scope.spawn(move || {
                for (n, content) in shared.iter().enumerate() {
                    let id = store.packs.put(PackKind::Data, content, Effort::Fast).unwrap();
                    assert_eq!(&store.packs.read_chunk(PackKind::Data, &id).unwrap()[..], &content[..]);
                    let own = prose(&format!("own {t} {n} "), 50_000);
                    let kind = if n % 2 == 0 { PackKind::Data } else { PackKind::Tree };
                    let id = store.packs.put(kind, &own, Effort::Thorough).unwrap();
                    assert_eq!(&store.packs.read_chunk(kind, &id).unwrap()[..], &own[..]);
                    if n % 7 == 0 {
                        store.live.commit().unwrap();
                    }
                    if n == 10 && t < 2 {
                        store.packs.close_open().unwrap();
                    }
                }
            });
        }
    });
    let stats = store.packs.stats();
    assert_eq!(stats.chunks, 20 + 8 * 20, "each chunk was stored once");
    assert_eq!(stats.dedup_hits, 7 * 20);
    store.packs.close_open().unwrap();
    let listed: usize =
        store.packs.closed_packs().unwrap().iter().map(|p| store.packs.chunks_of(p).unwrap().len()).sum();
    assert_eq!(listed, 20 + 8 * 20);
    let cold = vault.cold(&sim);
    assert_eq!(cold.chunk_count(), 20 + 8 * 20);
    assert!(cold.problems().is_empty());
}

#[test]
fn queued_chunks_are_all_stored_and_the_queue_is_bounded() {
    for cfg in [quiet(8 << 20), threaded(8 << 20)] {
        let (_, disk) = sim();
        let store = Vault::new(1).create(disk, cfg);
        let (send, receive) = mpsc::channel();
        let contents: Vec<_> =
            (0..40u8).map(|n| Arc::new(Buf::from(noise(&n.to_string(), 2 << 20)))).collect();
        for (n, content) in contents.iter().enumerate() {
            let send = send.clone();
            let done: Done = Box::new(move |result| send.send((n, result.unwrap())).unwrap());
            if n % 2 == 0 {
                let whole = Plaintext::Shared(Arc::clone(content), 0..content.len());
                store.packs.submit(whole, Effort::Fast, done);
            } else {
                store.packs.submit(content.to_vec(), Effort::Fast, done);
            }
        }
        drop(send);
        let mut seen = 0;
        for (n, id) in receive {
            assert_eq!(&store.packs.read_chunk(PackKind::Data, &id).unwrap()[..], &contents[n][..]);
            seen += 1;
        }
        assert_eq!(seen, 40);
    }
}

/// A long queue has chunks compressed fast, unless most of what came lately was known: then few of those in it are new.
#[test]
fn what_is_new_in_known_data_is_compressed_as_configured() {
    let content = prose("new", 1 << 20);
    let alone = |effort| {
        let (_, disk) = sim();
        let store = Vault::new(1).create(disk, quiet(64 << 20));
        store.packs.put(PackKind::Data, &content, effort).unwrap();
        store.packs.stats().stored_bytes
    };
    let queued = |lately: &dyn Fn(usize) -> Vec<u8>| {
        let (_, disk) = sim();
        let store = Vault::new(1).create(disk, EngineConfig { workers: 1, ..threaded(64 << 20) });
        let small = [7; 100];
        store.packs.put(PackKind::Data, &small, Effort::Thorough).unwrap();
        for n in 0..24 {
            store.packs.put(PackKind::Data, &lately(n), Effort::Thorough).unwrap();
        }
        let before = store.packs.stats().stored_bytes;
        let (send, receive) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        // The only worker is held until all of them wait behind the one that counts.
        store.packs.submit(small.to_vec(), Effort::Thorough, Box::new(move |_| wait.recv().unwrap()));
        for chunk in [&content[..], &small, &small, &small] {
            let send = send.clone();
            store.packs.submit(chunk.to_vec(), Effort::Thorough, Box::new(move |id| send.send(id).unwrap()));
        }
        go.send(()).unwrap();
        drop(send);
        let ids: Vec<_> = receive.iter().map(|id| id.unwrap()).collect();
        assert_eq!(ids.len(), 4);
        store.packs.stats().stored_bytes - before
    };
    let (fast, thorough) = (alone(Effort::Fast), alone(Effort::Thorough));
    assert!(thorough < fast);
    assert_eq!(queued(&|n| noise(&n.to_string(), 1 << 20)), fast);
    assert_eq!(queued(&|_| noise("the same", 1 << 20)), thorough);
}

#[test]
fn a_panicking_callback_poisons_and_does_not_hang() {
    let (_, disk) = sim();
    let store = Vault::new(1).create(disk, threaded(1 << 20));
    let (send, receive) = mpsc::channel();
    store.packs.submit(vec![1; 100], Effort::Fast, Box::new(|_| panic!("a test's callback")));
    while !store.ctx.poison.is_set() {
        std::thread::yield_now();
    }
    store.packs.submit(vec![2; 100], Effort::Fast, Box::new(move |r| send.send(r).unwrap()));
    assert!(matches!(receive.recv().unwrap(), Err(StoreError::Poisoned(_))));
}

#[test]
fn the_last_handle_may_be_dropped_by_a_worker() {
    let (_, disk) = sim();
    let store = Vault::new(1).create(disk, threaded(1 << 20));
    let (send, receive) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let packs = Arc::clone(&store.packs);
    store.packs.submit(
        vec![1; 100],
        Effort::Fast,
        Box::new(move |result| {
            wait.recv().unwrap();
            drop(packs);
            send.send(result).unwrap();
        }),
    );
    drop(store);
    go.send(()).unwrap();
    receive.recv().unwrap().unwrap();
}

#[test]
fn readers_of_one_block_share_the_work() {
    let (_, disk) = sim();
    let store = Vault::new(1).create(disk, quiet(8 << 20));
    let content = noise("shared read", 4 * BLOCK_LEN);
    let id = store.packs.put(PackKind::Data, &content, Effort::Fast).unwrap();
    let wrong = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for t in 0..8usize {
            let (store, content, wrong) = (&store, &content, &wrong);
            scope.spawn(move || {
                for i in 0..200 {
                    let from = (i * 7919 + t * 104_729) % (content.len() - 200_000);
                    let mut buf = vec![0; 1 + (i * 997) % 200_000];
                    store.packs.read_at(&id, from as u32, &mut buf).unwrap();
                    wrong.fetch_add(usize::from(buf != content[from..from + buf.len()]), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(wrong.into_inner(), 0);
    assert_eq!(store.packs.stats().cache_misses, 4, "each block was opened once");
}

#[test]
fn room_promised_to_the_open_pack_is_room_for_data() {
    let vault = Vault::new(1);
    let (sim, disk) = sim();
    sim.set_capacity(1 << 30);
    let store = vault.create(Arc::clone(&disk), quiet(64 << 20));
    let room = || disk.space().unwrap().available + store.packs.promised_data_bytes();
    let before = room();
    assert_eq!(store.packs.promised_data_bytes(), 0);
    store.packs.put(PackKind::Data, &noise("one", 100_000), Effort::Fast).unwrap();
    assert!(store.packs.promised_data_bytes() > 8 << 20, "nothing is held ahead: nothing was tested");
    assert!(before - room() < 600 << 10, "100 KB took {} bytes of room", before - room());
    // What is promised to a pack of trees is no room for data.
    let promised = store.packs.promised_data_bytes();
    store.packs.put(PackKind::Tree, &noise("two", 1_000), Effort::Fast).unwrap();
    assert_eq!(store.packs.promised_data_bytes(), promised);
    store.packs.close_open().unwrap();
    assert_eq!(store.packs.promised_data_bytes(), 0);
    store.close();
}

#[test]
fn a_full_disk_refuses_chunks_and_loses_none() {
    let vault = Vault::new(1);
    let (sim, disk) = sim();
    let store = vault.create(Arc::clone(&disk), quiet(1 << 20));
    let first = store.packs.put(PackKind::Data, &noise("first", 100_000), Effort::Fast).unwrap();
    store.live.commit().unwrap();
    let space = disk.space().unwrap();
    sim.set_capacity(space.total - space.available + (600 << 10));
    let mut stored = Vec::new();
    let error = loop {
        let content = noise(&format!("more {}", stored.len()), 50_000);
        match store.packs.put(PackKind::Data, &content, Effort::Fast) {
            Ok(id) => stored.push((id, content)),
            Err(e) => break e,
        }
        assert!(stored.len() < 100);
    };
    assert!(matches!(error, StoreError::NoSpace), "{error}");
    assert!(!store.ctx.poison.is_set());
    // The pack had its end reserved with each chunk, so it can be closed on the full disk.
    store.packs.close_open().unwrap();
    sim.set_capacity(u64::MAX / 2);
    stored.push((first, noise("first", 100_000)));
    let again = noise("after", 50_000);
    stored.push((store.packs.put(PackKind::Data, &again, Effort::Fast).unwrap(), again));
    store.close();
    let store = vault.open(disk, quiet(1 << 20)).unwrap();
    for (id, content) in &stored {
        assert_eq!(&store.packs.read_chunk(PackKind::Data, id).unwrap()[..], &content[..]);
    }
    let problems: Vec<_> = vault.cold(&sim).problems().iter().map(|(_, e)| e.to_string()).collect();
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn a_failed_write_or_sync_poisons_and_reading_goes_on() {
    for op in [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDir, FaultOp::Rename, FaultOp::Allocate] {
        let vault = Vault::new(1);
        let faults = Faults::new();
        let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::new(SimDisk::new(1), faults.clone()));
        let store = vault.create(disk, quiet(1 << 20));
        let content = noise("before", 10_000);
        let id = store.packs.put(PackKind::Data, &content, Effort::Fast).unwrap();
        faults.fail_all(op, "", FaultErrno::Eio);
        let put = store.packs.put(PackKind::Tree, &noise("during", 10_000), Effort::Fast);
        let synced = put.map(drop).and_then(|()| store.packs.before_commit());
        let failed = synced.and_then(|()| store.packs.close_open());
        assert!(matches!(failed, Err(StoreError::Io { .. } | StoreError::Poisoned(_))), "{op:?}: {failed:?}");
        faults.clear();
        assert!(store.ctx.poison.is_set(), "{op:?}");
        let again = store.packs.put(PackKind::Data, &noise("after", 10_000), Effort::Fast);
        assert!(matches!(again, Err(StoreError::Poisoned(_))), "{op:?}: {again:?}");
        assert!(matches!(store.packs.close_open(), Err(StoreError::Poisoned(_))), "{op:?}");
        assert_eq!(&store.packs.read_chunk(PackKind::Data, &id).unwrap()[..], &content[..]);
    }
}
