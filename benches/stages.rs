//! The stages that a written byte goes through, each by itself, and all of them together.

mod common;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use strongroom::env::SystemEnv;
use strongroom::format::{BLOCK_LEN, Cipher, Codec, PackKind};
use strongroom::store::codec::{self, Effort};
use strongroom::store::{Chunker, Packs};

use common::{CHUNKER, Vault, keys, noise, text};

const MIB: usize = 1 << 20;

/// Finding cut points in data that does not repeat.
fn chunker(c: &mut Criterion) {
    let chunker = Chunker::new(&CHUNKER, 7);
    let data = noise(1, 32 * MIB);
    let mut group = c.benchmark_group("chunker");
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("cut", |b| {
        b.iter(|| {
            let mut rest = data.as_slice();
            while let Some(len) = chunker.cut(rest, true) {
                rest = &rest[len..];
            }
        });
    });
    group.finish();
}

/// Naming a chunk.
fn id(c: &mut Criterion) {
    let keys = keys(Cipher::ChaCha20Poly1305);
    let data = noise(2, MIB);
    let mut group = c.benchmark_group("id");
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("keyed BLAKE3", |b| b.iter(|| keys.chunk_id(PackKind::Data, black_box(&data))));
    group.finish();
}

/// Compression of one block. Noise is only probed.
fn compress(c: &mut Criterion) {
    let (noise, text) = (noise(3, BLOCK_LEN), text(3, BLOCK_LEN));
    let mut group = c.benchmark_group("codec");
    group.throughput(Throughput::Bytes(BLOCK_LEN as u64));
    let cases = [
        ("probe, incompressible", &noise, Effort::Fast, 1),
        ("lz4", &text, Effort::Fast, 1),
        ("zstd 1", &text, Effort::Thorough, 1),
        ("zstd 3", &text, Effort::Thorough, 3),
    ];
    for (name, block, effort, level) in cases {
        let mut out = Vec::with_capacity(2 * BLOCK_LEN);
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                codec::encode(black_box(block), effort, level, &mut out)
            });
        });
    }
    for (name, effort) in [("lz4, back", Effort::Fast), ("zstd, back", Effort::Thorough)] {
        let mut body = Vec::new();
        let codec = codec::encode(&text, effort, 3, &mut body);
        let mut out = vec![0; BLOCK_LEN];
        group.bench_function(name, |b| {
            b.iter(|| codec::decode(codec, black_box(&body), &mut out).expect("what was encoded decodes"));
        });
    }
    group.finish();
}

/// Sealing and opening one frame.
fn seal(c: &mut Criterion) {
    let data = noise(4, BLOCK_LEN);
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Bytes(BLOCK_LEN as u64));
    for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
        let keys = keys(cipher);
        let (_, key) = keys.new_pack(&SystemEnv, PackKind::Data).expect("a pack key");
        let id = keys.chunk_id(PackKind::Data, &data);
        let len = BLOCK_LEN as u32;
        let mut frame = 0;
        let mut sealed = Vec::with_capacity(BLOCK_LEN + 64);
        group.bench_function(format!("seal, {}", cipher.as_str()), |b| {
            b.iter(|| {
                frame += 1;
                sealed.clear();
                sealed.extend_from_slice(&data);
                key.seal_frame(frame, &id, 0, true, Codec::Raw, len, &mut sealed, 0).expect("a frame");
            });
        });
        let mut opened = sealed.clone();
        group.bench_function(format!("open, {}", cipher.as_str()), |b| {
            b.iter(|| {
                opened.copy_from_slice(&sealed);
                key.open_frame(frame, &id, 0, true, Codec::Raw, len, &mut opened).expect("the same frame")
            });
        });
    }
    group.finish();
}

/// Chunks of 1 MiB into packs on the disk, on one thread, without the fsync.
fn put(c: &mut Criterion) {
    let vault = Vault::new();
    let packs: &Packs = &vault.engine.packs;
    let mut group = c.benchmark_group("put");
    group.throughput(Throughput::Bytes(MIB as u64)).sample_size(20).measurement_time(Duration::from_secs(3));
    let mut seed = 100;
    for (name, make) in [("incompressible", noise as fn(u64, usize) -> Vec<u8>), ("compressible", text)] {
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || {
                    seed += 1;
                    make(seed, MIB)
                },
                |chunk| packs.put(PackKind::Data, chunk, Effort::Fast).expect("a chunk is stored"),
                BatchSize::LargeInput,
            );
        });
    }
    let chunk = noise(99, MIB);
    group.bench_function("stored before", |b| {
        b.iter(|| packs.put(PackKind::Data, black_box(&chunk), Effort::Fast).expect("a chunk is found"));
    });
    group.finish();
    vault.engine.close().expect("the vault closes");
}

criterion_group!(benches, chunker, id, compress, seal, put);
criterion_main!(benches);
