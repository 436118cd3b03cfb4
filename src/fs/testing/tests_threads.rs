//! Many threads at once, and the bound on memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::{FsOptions, FsStats, SetAttr, falloc};
use super::check::check_rows;
use super::{ALICE, Caller, Fs, RW, Rng, Vault, close, get, put, small_config};
use crate::store::records::ROOT_INO;

fn threaded(dirty_bytes_max: u64) -> Vault {
    let mut cfg = small_config();
    cfg.background = true;
    cfg.live.background = true;
    cfg.dirty_bytes_max = dirty_bytes_max;
    Vault::new(9, cfg)
}

/// Each page of 4 KiB says where it is and how often it was written.
fn page(at: u64, round: u64) -> Vec<u8> {
    let mut page = Rng::bytes(at ^ round << 32, 4096);
    page[..8].copy_from_slice(&at.to_le_bytes());
    page[8..16].copy_from_slice(&round.to_le_bytes());
    page
}

fn check_page(found: &[u8], at: u64) {
    if found.iter().all(|b| *b == 0) {
        return;
    }
    let number = |range: std::ops::Range<usize>| u64::from_le_bytes(found[range].try_into().unwrap());
    assert_eq!(number(0..8), at);
    assert!(found == page(at, number(8..16)), "page {at} is torn");
}

#[test]
fn writers_readers_and_flushers_of_one_file() {
    let vault = threaded(1 << 20);
    let (engine, fs) = vault.open();
    let (ino, fh) = put(&fs, ROOT_INO, b"f", &[]);
    let stop = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let mut writers = Vec::new();
        for writer in 0..4u64 {
            let fs = fs.clone();
            writers.push(scope.spawn(move || {
                let mut rng = Rng::new(writer);
                for round in 0..400 {
                    // Each writer has pages of its own.
                    let at = rng.below(200) * 4 + writer;
                    fs.write(ino, fh, at * 4096, &page(at, round), false).unwrap();
                    if rng.one_in(50) {
                        fs.fsync(ino, false).unwrap();
                    }
                }
            }));
        }
        for reader in 0..2u64 {
            let (fs, stop) = (fs.clone(), stop.clone());
            scope.spawn(move || {
                let mut rng = Rng::new(100 + reader);
                while !stop.load(Ordering::Relaxed) {
                    let at = rng.below(800);
                    let found = fs.read(ino, fh, at * 4096, 4096).unwrap();
                    if !found.is_empty() {
                        check_page(&found, at);
                    }
                }
            });
        }
        let flusher = scope.spawn({
            let (fs, stop) = (fs.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    fs.tick().unwrap();
                    fs.flush_all().unwrap();
                    fs.getattr(ino).unwrap();
                }
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        flusher.join().unwrap();
    });
    let before = get(&fs, ino).unwrap();
    for (at, found) in before.chunks(4096).enumerate() {
        check_page(found, at as u64);
    }
    fs.release(ino, fh).unwrap();
    close(&engine, fs);
    let (engine, fs) = vault.open();
    assert!(get(&fs, ino).unwrap() == before);
    check_rows(&engine, false);
}

#[test]
fn writers_and_truncaters_of_one_file() {
    let vault = threaded(1 << 20);
    let (engine, fs) = vault.open();
    let (ino, fh) = put(&fs, ROOT_INO, b"f", &[]);
    thread::scope(|scope| {
        for writer in 0..3u64 {
            let fs = fs.clone();
            scope.spawn(move || {
                let mut rng = Rng::new(writer);
                for round in 0..300 {
                    let at = rng.below(100);
                    fs.write(ino, fh, at * 4096, &page(at, round), false).unwrap();
                }
            });
        }
        scope.spawn({
            let fs = fs.clone();
            move || {
                let mut rng = Rng::new(77);
                for _ in 0..100 {
                    let size = rng.below(100) * 4096;
                    match rng.below(3) {
                        0 => {
                            let set = SetAttr { size: Some(size), ..SetAttr::default() };
                            assert_eq!(fs.setattr(ino, set, Some(fh), Caller::default()).unwrap().ino, ino);
                        }
                        1 => {
                            let mode = falloc::PUNCH_HOLE | falloc::KEEP_SIZE;
                            fs.fallocate(ino, fh, size, 8192, mode).unwrap();
                        }
                        _ => fs.fsync(ino, false).unwrap(),
                    }
                }
            }
        });
    });
    let before = get(&fs, ino).unwrap();
    for (at, found) in before.chunks(4096).enumerate() {
        check_page(found, at as u64);
    }
    fs.release(ino, fh).unwrap();
    close(&engine, fs);
    let (engine, fs) = vault.open();
    assert!(get(&fs, ino).unwrap() == before);
    check_rows(&engine, false);
}

#[test]
fn many_files_in_many_threads() {
    let vault = threaded(2 << 20);
    let (engine, fs) = vault.open();
    thread::scope(|scope| {
        for worker in 0..4u64 {
            let fs = fs.clone();
            scope.spawn(move || {
                let dir = fs.mkdir(ROOT_INO, format!("d{worker}").as_bytes(), 0o755, 0, ALICE).unwrap().ino;
                let mut rng = Rng::new(worker);
                for n in 0..100u64 {
                    let len = rng.below(60_000) as usize;
                    let name = format!("f{n}");
                    let (ino, fh) = put(&fs, dir, name.as_bytes(), &Rng::bytes(worker * 1000 + n, len));
                    fs.flush(ino, fh).unwrap();
                    fs.release(ino, fh).unwrap();
                    if rng.one_in(10) {
                        fs.fsync(ino, false).unwrap();
                    }
                    if n % 3 == 0 {
                        fs.unlink(dir, name.as_bytes()).unwrap();
                    } else {
                        // All workers meet in the root.
                        let shared = format!("w{worker}-{n}");
                        fs.rename(dir, name.as_bytes(), ROOT_INO, shared.as_bytes(), Default::default())
                            .unwrap();
                    }
                }
            });
        }
    });
    close(&engine, fs);
    let (engine, fs) = vault.open();
    check_rows(&engine, false);
    for worker in 0..4u64 {
        let mut rng = Rng::new(worker);
        for n in 0..100u64 {
            let len = rng.below(60_000) as usize;
            rng.one_in(10);
            let found = fs.lookup(ROOT_INO, format!("w{worker}-{n}").as_bytes());
            if n % 3 == 0 {
                assert!(found.is_err());
            } else {
                assert!(get(&fs, found.unwrap().ino).unwrap() == Rng::bytes(worker * 1000 + n, len));
            }
        }
    }
}

/// Returns the counters once no file is in core any more. A worker that has published a file's last bytes wakes those who
/// wait for them before it lets go of the file itself, so for a moment after a sync the file may still be there.
fn settled(fs: &Fs) -> FsStats {
    let deadline = Instant::now() + Duration::from_secs(100);
    loop {
        let counters = fs.counters();
        if counters.nodes == 0 || Instant::now() > deadline {
            return counters;
        }
        thread::yield_now();
    }
}

/// Files are opened, found, flushed and dropped by many threads at once, and the last one to let go of a file, whoever that
/// is, takes it out of the table.
#[test]
fn no_file_stays_in_core() {
    let vault = threaded(256 << 10);
    let (engine, fs) = vault.open();
    let inos: Vec<u64> = (0..3u8)
        .map(|n| {
            let (ino, fh) = put(&fs, ROOT_INO, &[b'a' + n], &Rng::bytes(n.into(), 20_000));
            fs.release(ino, fh).unwrap();
            ino
        })
        .collect();
    fs.sync_all().unwrap();
    assert_eq!(settled(&fs).nodes, 0);
    // Without workers: exactly when the last thread is done.
    thread::scope(|scope| {
        for worker in 0..4 {
            let (fs, inos) = (fs.clone(), inos.clone());
            scope.spawn(move || {
                let mut rng = Rng::new(worker);
                for _ in 0..2_000 {
                    let ino = inos[rng.below(3) as usize];
                    match rng.below(3) {
                        0 => {
                            let fh = fs.open_file(ino, RW, ALICE).unwrap();
                            fs.release(ino, fh).unwrap();
                        }
                        1 => assert_eq!(fs.getattr(ino).unwrap().ino, ino),
                        _ => fs.flush_all().unwrap(),
                    }
                }
            });
        }
    });
    let counters = fs.counters();
    assert_eq!((counters.dirty_bytes, counters.nodes, counters.handles), (0, 0, 0));
    // With workers that hold files, data that is taken away under them, and files that go while they are dirty.
    thread::scope(|scope| {
        for worker in 0..4u64 {
            let (fs, inos) = (fs.clone(), inos.clone());
            scope.spawn(move || {
                let mut rng = Rng::new(100 + worker);
                for n in 0..150 {
                    let ino = inos[rng.below(3) as usize];
                    let fh = fs.open_file(ino, RW, ALICE).unwrap();
                    let (off, len) = (rng.below(200_000), 1 + rng.below(50_000) as usize);
                    fs.write(ino, fh, off, &Rng::bytes(n, len), false).unwrap();
                    match rng.below(5) {
                        0 => fs.flush(ino, fh).unwrap(),
                        1 => fs.fsync(ino, false).unwrap(),
                        2 => {
                            let set = SetAttr { size: Some(rng.below(off + 1)), ..SetAttr::default() };
                            fs.setattr(ino, set, Some(fh), Caller::default()).unwrap();
                        }
                        3 => {
                            let name = format!("gone{worker}");
                            let (gone, open) = put(&fs, ROOT_INO, name.as_bytes(), &Rng::bytes(n, len));
                            if rng.one_in(2) {
                                fs.flush(gone, open).unwrap();
                            }
                            fs.unlink(ROOT_INO, name.as_bytes()).unwrap();
                            fs.release(gone, open).unwrap();
                        }
                        _ => {}
                    }
                    fs.release(ino, fh).unwrap();
                }
            });
        }
    });
    fs.sync_all().unwrap();
    let counters = settled(&fs);
    assert_eq!((counters.dirty_bytes, counters.nodes, counters.handles), (0, 0, 0));
    assert_eq!(engine.pending_bytes(), 0, "all space that was taken was given back");
    close(&engine, fs);
    let (engine, _fs) = vault.open();
    check_rows(&engine, false);
}

#[test]
fn memory_stays_bounded() {
    const MAX: u64 = 512 << 10;
    let vault = threaded(MAX);
    let (engine, fs) = vault.open();
    thread::scope(|scope| {
        for writer in 0..4u64 {
            let fs = fs.clone();
            scope.spawn(move || {
                let (ino, fh) = put(&fs, ROOT_INO, &[b'a' + writer as u8], &[]);
                let mut rng = Rng::new(writer);
                for n in 0..60 {
                    // Out of order, so that nothing can be cut while it streams.
                    let off = rng.below(64) * 65_536;
                    fs.write(ino, fh, off, &Rng::bytes(n, 65_536), false).unwrap();
                }
                fs.flush(ino, fh).unwrap();
                fs.release(ino, fh).unwrap();
            });
        }
    });
    fs.sync_all().unwrap();
    let counters = settled(&fs);
    assert!(counters.dirty_bytes_peak <= MAX, "{} bytes were dirty", counters.dirty_bytes_peak);
    assert!(counters.dirty_bytes_peak > MAX / 2);
    assert_eq!((counters.dirty_bytes, counters.nodes, counters.handles), (0, 0, 0));
    assert_eq!(engine.pending_bytes(), 0, "all space that was taken was given back");
    close(&engine, fs);
}

#[test]
fn one_request_larger_than_the_bound_gets_through() {
    let vault = threaded(100_000);
    let (engine, fs) = vault.open();
    let data = Rng::bytes(5, 1 << 20);
    let (attr, fh) = fs.create(ROOT_INO, b"f", 0o644, 0, RW, ALICE).unwrap();
    assert_eq!(fs.write(attr.ino, fh, 0, &data, false).unwrap(), data.len());
    assert_eq!(fs.write(attr.ino, fh, 1 << 20, &data, false).unwrap(), data.len());
    assert!(get(&fs, attr.ino).unwrap() == [data.clone(), data].concat());
    fs.release(attr.ino, fh).unwrap();
    close(&engine, fs);
}

#[test]
fn a_stream_in_pieces_out_of_order_makes_the_chunks_of_a_stream() {
    let chunks = |order: fn(usize) -> usize| {
        let vault = Vault::new(4, small_config());
        let fs: Arc<Fs>;
        let engine = vault.engine().unwrap();
        fs = Fs::open(engine.clone(), FsOptions::default()).unwrap();
        let data = Rng::bytes(11, 40 * 8192);
        let (attr, fh) = fs.create(ROOT_INO, b"f", 0o644, 0, RW, ALICE).unwrap();
        for i in (0..40).map(order) {
            fs.write(attr.ino, fh, i as u64 * 8192, &data[i * 8192..][..8192], false).unwrap();
        }
        fs.sync_all().unwrap();
        assert!(get(&fs, attr.ino).unwrap() == data);
        fs.release(attr.ino, fh).unwrap();
        let (from, to) = crate::store::records::rows_of(attr.ino);
        let rows = engine.live.range(crate::store::live::Table::Extents, &from, Some(&to), 1000).unwrap();
        rows.into_iter().map(|(key, value)| (key, value.to_vec())).collect::<Vec<_>>()
    };
    let in_order = chunks(|i| i);
    assert!(in_order.len() > 10);
    // As the kernel's writeback sends it: neighbours change places.
    assert_eq!(chunks(|i| i ^ 1), in_order);
}

/// Writes each content into a file of its own, all files in turn, part by part.
fn write_in_turn(fs: &Fs, prefix: &str, contents: &[Vec<u8>]) -> Vec<u64> {
    const PART: usize = 16 << 10;
    let files: Vec<_> =
        (0..contents.len()).map(|n| put(fs, ROOT_INO, format!("{prefix}{n}").as_bytes(), &[])).collect();
    for at in (0..contents.iter().map(Vec::len).max().unwrap()).step_by(PART) {
        for (content, (ino, fh)) in contents.iter().zip(&files) {
            let part = &content[at.min(content.len())..(at + PART).min(content.len())];
            assert_eq!(fs.write(*ino, *fh, at as u64, part, false).unwrap(), part.len());
        }
    }
    // Not fsync, which may put the end of a file into the journal instead of a chunk.
    fs.sync_all().unwrap();
    let close = |(ino, fh)| {
        fs.release(ino, fh).unwrap();
        ino
    };
    files.into_iter().map(close).collect()
}

#[test]
fn a_second_copy_written_under_back_pressure_stores_nothing_new() {
    // A stream is cut when it has 64 KiB: three of them don't fit into the bound, so writers have to wait, and make
    // room themselves when nothing is on its way to a pack.
    for (threads, streams) in [(false, 1), (false, 3), (true, 1), (true, 3)] {
        let mut vault = threaded(96 << 10);
        vault.cfg.background = threads;
        let (engine, fs) = vault.open();
        let contents: Vec<_> = (0..streams).map(|n| Rng::bytes(70 + n, 600_000 + 777 * n as usize)).collect();
        write_in_turn(&fs, "first", &contents);
        let first = engine.packs.stats();
        assert!(first.plain_bytes >= 600_000 * streams, "{first:?}");
        assert!(fs.counters().dirty_bytes_peak <= 96 << 10, "the bound held");
        let copies = write_in_turn(&fs, "second", &contents);
        let second = engine.packs.stats();
        assert_eq!(second.plain_bytes, first.plain_bytes, "{streams} streams, threads: {threads}");
        assert_eq!(second.dedup_bytes - first.dedup_bytes, first.plain_bytes);
        for (ino, content) in copies.into_iter().zip(&contents) {
            assert!(get(&fs, ino).unwrap() == *content);
        }
        close(&engine, fs);
    }
}
