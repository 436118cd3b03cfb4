//! How long changes take to become durable, and how fast metadata is read.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use redb::{ReadableDatabase, TableDefinition};
use strongroom::disk::OpenMode;
use strongroom::env::SystemEnv;
use strongroom::fs::{Caller, Fs, FsOptions, OpenFlags};
use strongroom::store::blockfile::BlockFile;
use strongroom::store::live::{Batch, Live, LiveConfig, Table};
use strongroom::store::poison::Poison;
use strongroom::store::records::ROOT_INO;

use common::{Vault, disk, live_keys, scratch};

/// Rows changed by a small fsync take about this many bytes.
const BATCH_BYTES: usize = 300;
const THREADS: u64 = 4;

fn batch(number: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(Table::Inodes, number.to_be_bytes(), vec![7; BATCH_BYTES]);
    batch
}

/// The journal: one small change made durable, alone and by four threads at once.
fn commit(c: &mut Criterion) {
    let dir = scratch();
    let live = Live::create(
        disk(dir.path()),
        live_keys(),
        Arc::new(SystemEnv),
        Arc::new(Poison::new()),
        LiveConfig::default(),
    )
    .expect("fresh live state");
    let mut group = c.benchmark_group("commit");
    group.sample_size(30).measurement_time(Duration::from_secs(4));
    let mut number = 0;
    group.bench_function("300 bytes", |b| {
        b.iter(|| {
            number += 1;
            live.apply(batch(number)).expect("a change applies");
            live.commit().expect("it commits");
        });
    });
    group.throughput(Throughput::Elements(THREADS));
    group.bench_function("300 bytes, 4 threads", |b| {
        b.iter_custom(|rounds| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for thread in 1..=THREADS {
                    let live = &live;
                    scope.spawn(move || {
                        for round in 0..rounds {
                            live.apply(batch(thread << 40 | round)).expect("a change applies");
                            live.commit().expect("it commits");
                        }
                    });
                }
            });
            start.elapsed()
        });
    });
    group.finish();
    bare_sync(c);
    reads(c, &live);
    live.close().expect("live state closes");
}

/// What the disk itself takes for a small write that is made durable: the floor under every commit.
fn bare_sync(c: &mut Criterion) {
    const SECTOR: usize = 512;
    const SECTORS: u64 = 2048;
    let dir = scratch();
    let file = disk(dir.path()).open("plain", OpenMode::CreateNew).expect("a file");
    file.write_all_at(&vec![1; SECTOR * SECTORS as usize], 0).expect("a write");
    file.sync_data().expect("a sync");
    let mut group = c.benchmark_group("commit");
    group.sample_size(30).measurement_time(Duration::from_secs(4));
    let mut number = 0;
    group.bench_function("a bare fdatasync of 512 bytes", |b| {
        b.iter(|| {
            number = (number + 1) % SECTORS;
            file.write_all_at(&[number as u8; SECTOR], number * SECTOR as u64).expect("a write");
            file.sync_data().expect("a sync");
        });
    });
    group.finish();
}

/// Rows of the live database by key, and a consistent view of all of it.
fn reads(c: &mut Criterion, live: &Live) {
    const ROWS: u64 = 100_000;
    for number in 0..ROWS {
        live.apply(batch(number)).expect("a change applies");
    }
    live.checkpoint().expect("the database takes them");
    let mut group = c.benchmark_group("live");
    let mut at = 0u64;
    group.bench_function("get", |b| {
        b.iter(|| {
            at = (at + 7919) % ROWS;
            assert!(live.get(Table::Inodes, &at.to_be_bytes()).expect("a read").is_some());
        });
    });
    group.bench_function("view", |b| b.iter(|| live.view().expect("a view")));
    group.finish();
}

/// redb on the sealed block file: 10,000 rows in one durable transaction, and reading them one by one.
fn database(c: &mut Criterion) {
    const ROWS: u64 = 10_000;
    const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");
    let dir = scratch();
    let disk = disk(dir.path());
    disk.create_dir_all("live").expect("a directory");
    let blocks = BlockFile::open(disk, Arc::new(SystemEnv), live_keys(), Poison::new(), "live")
        .expect("an empty block file");
    let database = blocks.database(32 << 20).expect("a new database");
    let mut group = c.benchmark_group("block file");
    group.sample_size(10).throughput(Throughput::Elements(ROWS)).measurement_time(Duration::from_secs(4));
    let value = [7u8; 100];
    let mut next = 0u64;
    group.bench_function("insert 10,000 rows and commit", |b| {
        b.iter(|| {
            let txn = database.begin_write().expect("a transaction");
            {
                let mut table = txn.open_table(TABLE).expect("its table");
                for _ in 0..ROWS {
                    next += 1;
                    // Spread like inode numbers of several directories.
                    table.insert(next.wrapping_mul(0x9e37_79b9_7f4a_7c15), value.as_slice()).expect("a row");
                }
            }
            txn.commit().expect("it commits");
        });
    });
    let txn = database.begin_read().expect("a transaction");
    let table = txn.open_table(TABLE).expect("its table");
    group.throughput(Throughput::Elements(1));
    let mut at = 0u64;
    group.bench_function("get", |b| {
        b.iter(|| {
            at = at % next + 1;
            assert!(table.get(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)).expect("a read").is_some());
        });
    });
    group.finish();
}

/// Metadata calls of the filesystem, without a kernel.
fn metadata(c: &mut Criterion) {
    const FILES: usize = 10_000;
    let vault = Vault::new();
    let fs = Fs::open(vault.engine.clone(), FsOptions::default()).expect("the working tree");
    let caller = Caller { uid: 0, gid: 0, pid: 1 };
    let flags = OpenFlags { write: true, truncate: false, exclusive: true };
    let dir = fs.mkdir(ROOT_INO, b"dir", 0o755, 0, caller).expect("a directory").ino;
    let names: Vec<Vec<u8>> = (0..FILES).map(|n| format!("file{n:06}.dat").into_bytes()).collect();
    let inos: Vec<u64> = names
        .iter()
        .map(|name| {
            let (attr, fh) = fs.create(dir, name, 0o644, 0, flags, caller).expect("a file");
            fs.release(attr.ino, fh).expect("it closes");
            attr.ino
        })
        .collect();
    let mut group = c.benchmark_group("fs");
    let mut turn = 0;
    let mut next = || {
        turn = (turn + 7919) % FILES;
        turn
    };
    group.bench_function("lookup", |b| b.iter(|| fs.lookup(dir, &names[next()]).expect("a name")));
    group.bench_function("getattr", |b| b.iter(|| fs.getattr(inos[next()]).expect("attributes")));
    let mut number = 0u64;
    group.bench_function("create, write 2 KiB, close", |b| {
        b.iter_batched(
            || {
                number += 1;
                (format!("new{number}").into_bytes(), common::noise(number, 2048))
            },
            |(name, body)| {
                let (attr, fh) = fs.create(dir, &name, 0o644, 0, flags, caller).expect("a file");
                fs.write(attr.ino, fh, 0, &body, false).expect("a write");
                fs.flush(attr.ino, fh).expect("a flush");
                fs.release(attr.ino, fh).expect("a close");
            },
            BatchSize::SmallInput,
        );
    });
    // The same, read from the database instead of from what was just changed.
    fs.sync_all().expect("everything is durable");
    vault.engine.live.checkpoint().expect("and in the database");
    group.bench_function("lookup, checkpointed", |b| {
        b.iter(|| fs.lookup(dir, &names[next()]).expect("a name"))
    });
    group.finish();
    fs.shutdown().expect("the tree closes");
    drop(fs);
    vault.engine.close().expect("the vault closes");
}

criterion_group!(benches, commit, database, metadata);
criterion_main!(benches);
