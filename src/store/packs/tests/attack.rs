//! What someone can do who may change the vault's files, and who knows its public key.

use super::*;
use crate::format::pack::pack_path;
use crate::format::{Codec, PACK_HEADER_LEN};

struct Target {
    sim: SimDisk,
    vault: Vault,
    path: String,
    bytes: Vec<u8>,
    chunks: Vec<(ChunkId, Vec<u8>)>,
}

fn target() -> Target {
    let vault = Vault::new(1);
    let sim = SimDisk::new(1);
    let store = vault.create(Arc::new(sim.clone()), quiet(8 << 20));
    let chunks: Vec<_> = [noise("a", 1000), prose("b ", 30_000), noise("c", 140_000)]
        .into_iter()
        .map(|content| (store.packs.put(PackKind::Data, &content, Effort::Thorough).unwrap(), content))
        .collect();
    store.packs.close_open().unwrap();
    let path = pack_path(&store.packs.closed_packs().unwrap()[0].name);
    store.close();
    let bytes = sim.raw_read(&path).unwrap();
    Target { sim, vault, path, bytes, chunks }
}

impl Target {
    /// Puts these bytes in the pack's place and reads everything, warm and cold. Returns how many reads
    /// failed; those that did not must have given the right bytes.
    fn read_all(&self, bytes: &[u8]) -> (usize, usize) {
        let sim = self.sim.fork();
        sim.raw_write(&self.path, bytes);
        let warm = self.vault.open(Arc::new(sim.clone()), quiet(8 << 20)).unwrap();
        let cold = self.vault.cold(&sim);
        (self.failures(&*warm.packs), self.failures(&cold))
    }

    fn failures(&self, source: &dyn ChunkSource) -> usize {
        let mut failures = 0;
        for (id, content) in &self.chunks {
            let mut part = vec![0; 500];
            match source.read_at(id, 300, &mut part) {
                Ok(()) => assert_eq!(part, content[300..800]),
                Err(StoreError::Corrupt(text)) => {
                    assert!(text.contains(&self.path), "{text}");
                    failures += 1;
                }
                Err(e) => panic!("{e}"),
            }
            let whole = source.read_chunk(PackKind::Data, id);
            let mut buf = vec![7; 10];
            let into = source.read_into(id, &mut buf);
            assert_eq!(into.is_ok(), whole.is_ok());
            assert!(into.is_err() || buf == *content);
            match whole {
                Ok(plain) => assert_eq!(plain[..], content[..]),
                Err(StoreError::Corrupt(_)) => failures += 1,
                Err(e) => panic!("{e}"),
            }
        }
        failures
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found_by_who_reads_there() {
    let target = target();
    let (_, cold_ok) = target.read_all(&target.bytes);
    assert_eq!(cold_ok, 0);
    let frames_end = PACK_HEADER_LEN + target.bytes.len() / 2;
    let spots = (0..PACK_HEADER_LEN).step_by(37).chain((PACK_HEADER_LEN..frames_end).step_by(3001));
    for at in spots {
        let mut bytes = target.bytes.clone();
        bytes[at] ^= 0x10;
        let (warm, cold) = target.read_all(&bytes);
        assert!(warm > 0 && cold > 0, "byte {at}: {warm} {cold}");
    }
    // Footer and trailer: only needed without live state.
    let footer = target.bytes.len() - 64;
    for at in footer..target.bytes.len() {
        let mut bytes = target.bytes.clone();
        bytes[at] ^= 0x10;
        let (warm, cold) = target.read_all(&bytes);
        assert_eq!((warm, cold), (0, 6), "byte {at}");
    }
}

#[test]
fn truncated_and_extended_packs_are_found() {
    let target = target();
    for len in [0, 1, 100, PACK_HEADER_LEN, PACK_HEADER_LEN + 64, 5000, target.bytes.len() - 1] {
        let (_, cold) = target.read_all(&target.bytes[..len]);
        assert_eq!(cold, 6, "cut to {len}");
    }
    let (warm, _) = target.read_all(&target.bytes[..PACK_HEADER_LEN + 500]);
    assert_eq!(warm, 6);
    let (warm, cold) = target.read_all(&[&target.bytes[..], &[0; 4096]].concat());
    assert_eq!((warm, cold), (0, 6));
    let (warm, cold) = target.read_all(&vec![0; target.bytes.len()]);
    assert_eq!((warm, cold), (6, 6), "zeros are never content");
}

#[test]
fn frames_moved_within_a_pack_are_found() {
    let target = target();
    let mut bytes = target.bytes.clone();
    // The first chunk is one frame of 1000 + 16 bytes. Put a copy of it over the start of the second.
    let first = bytes[PACK_HEADER_LEN..PACK_HEADER_LEN + 1016].to_vec();
    bytes[PACK_HEADER_LEN + 1016..PACK_HEADER_LEN + 2032].copy_from_slice(&first);
    let (warm, cold) = target.read_all(&bytes);
    assert_eq!((warm, cold), (2, 2), "just the chunk that was overwritten");
}

/// A pack that anyone can make who knows the public key: all of it authenticates, and it claims to hold the
/// chunks of a real pack, with other content.
fn forged(target: &Target) -> Vec<u8> {
    let ctx = target.vault.ctx(Arc::new(SimDisk::new(3)), quiet(8 << 20));
    let (header, key) = ctx.keys.new_pack(&*ctx.env, PackKind::Data).unwrap();
    let mut bytes = header.encode();
    let mut chunks = Vec::new();
    let mut frame = 0;
    for (id, content) in &target.chunks {
        let evil = noise("evil", content.len());
        let offset = bytes.len() as u32;
        let first_frame = frame;
        let mut blocks = Vec::new();
        let count = evil.chunks(crate::format::BLOCK_LEN).len() as u32;
        for (b, block) in (0u32..).zip(evil.chunks(crate::format::BLOCK_LEN)) {
            let start = bytes.len();
            bytes.extend_from_slice(block);
            let len = block.len() as u32;
            key.seal_frame(frame.into(), id, b, b + 1 == count, Codec::Raw, len, &mut bytes, start).unwrap();
            blocks.push(crate::format::BlockDesc { codec: Codec::Raw, body_len: len });
            frame += 1;
        }
        chunks.push(ChunkDesc { id: *id, offset, first_frame, plain_len: evil.len() as u32, blocks });
    }
    let file = ctx.disk.open("forged", crate::disk::OpenMode::CreateNew).unwrap();
    let pack = PackFile {
        file,
        key: Arc::new(key),
        kind: PackKind::Data,
        proven: true,
        label: String::new(),
        read_whole: AtomicU64::new(0),
    };
    let end = bytes.len() as u64;
    let (tail, _) = open::closing_bytes(&ctx, &pack, &crate::format::Footer { chunks }, end);
    bytes.extend_from_slice(&tail);
    bytes
}

#[test]
fn a_forged_pack_that_authenticates_is_not_believed() {
    let target = target();
    let forged = forged(&target);
    let (warm, cold) = target.read_all(&forged);
    assert_eq!((warm, cold), (6, 6));
    // Adopted, too: not one of its bytes gets out, and it can't be proven.
    let sim = SimDisk::new(5);
    sim.raw_write(&target.path, &forged);
    let store = target.vault.create(Arc::new(sim.clone()), quiet(8 << 20));
    let name = parse_pack_path(&target.path).unwrap();
    assert_eq!(store.packs.adopt(&name).unwrap(), 3);
    assert_eq!(target.failures(&*store.packs), 6);
    assert!(corrupt(store.packs.prove(&name)).contains("LAY-1"));
    // And neither does a forged one get in once the real one was proven.
    sim.raw_write(&target.path, &target.bytes);
    store.close();
    let store = target.vault.create(Arc::new(sim.clone()), quiet(8 << 20));
    store.packs.adopt(&name).unwrap();
    store.packs.prove(&name).unwrap();
    assert_eq!(target.failures(&*store.packs), 0);
    store.close();
    sim.raw_write(&target.path, &forged);
    let store = target.vault.open(Arc::new(sim), quiet(8 << 20)).unwrap();
    assert_eq!(target.failures(&*store.packs), 6);
}

/// A store on a fresh live database that has adopted the target's pack, whose file is `bytes`.
fn adopted(target: &Target, bytes: &[u8]) -> (SimDisk, Store) {
    let sim = SimDisk::new(6);
    sim.raw_write(&target.path, bytes);
    let store = target.vault.create(Arc::new(sim.clone()), quiet(8 << 20));
    assert_eq!(store.packs.adopt(&parse_pack_path(&target.path).unwrap()).unwrap(), 3);
    (sim, store)
}

fn is_proven(store: &Store) -> bool {
    store.packs.closed_packs().unwrap().iter().find(|pack| pack.no == 0).unwrap().proven
}

/// Whoever once had a key knows ids, and can make a pack that says to hold chunks that somebody will write later.
#[test]
fn new_data_is_not_left_out_for_the_sake_of_a_forged_pack() {
    let target = target();
    let (sim, store) = adopted(&target, &forged(&target));
    assert_eq!(target.failures(&*store.packs), 6);
    for (n, (id, content)) in (1..).zip(&target.chunks) {
        assert_eq!(store.packs.put(PackKind::Data, content, Effort::Fast).unwrap(), *id);
        assert_eq!((store.packs.stats().dedup_hits, store.packs.stats().chunks), (0, n));
    }
    // It heals what the forged pack hid.
    assert_eq!(target.failures(&*store.packs), 0);
    assert_eq!(
        store.packs.put(PackKind::Data, &target.chunks[0].1, Effort::Fast).unwrap(),
        target.chunks[0].0
    );
    assert_eq!(store.packs.stats().dedup_hits, 1, "now it is there");
    assert!(!is_proven(&store));
    store.close();
    let store = target.vault.open(Arc::new(sim.clone()), quiet(8 << 20)).unwrap();
    assert_eq!(target.failures(&*store.packs), 0);
    assert_eq!(target.failures(&target.vault.cold(&sim)), 0);
}

#[test]
fn the_first_hit_proves_an_adopted_pack() {
    let target = target();
    let (_, store) = adopted(&target, &target.bytes);
    assert!(!is_proven(&store));
    for (id, content) in &target.chunks {
        assert_eq!(store.packs.put(PackKind::Data, content, Effort::Fast).unwrap(), *id);
        assert!(is_proven(&store));
    }
    assert_eq!((store.packs.stats().dedup_hits, store.packs.stats().chunks), (3, 0));
    assert_eq!(target.failures(&*store.packs), 0);
    // A pack with a flipped bit where no chunk is read has not its name either.
    let mut bytes = target.bytes.clone();
    bytes[PACK_HEADER_LEN + 100] ^= 1;
    let (_, store) = adopted(&target, &bytes);
    let (id, content) = &target.chunks[2];
    assert_eq!(store.packs.put(PackKind::Data, content, Effort::Fast).unwrap(), *id);
    assert_eq!((store.packs.stats().dedup_hits, store.packs.stats().chunks), (0, 1));
    assert!(!is_proven(&store));
}

#[test]
fn a_pack_that_is_read_a_lot_is_proven() {
    let target = target();
    let (_, store) = adopted(&target, &target.bytes);
    let read = |store: &Store, n: usize| store.packs.read_at(&target.chunks[n].0, 7, &mut [0; 9]);
    read(&store, 0).unwrap();
    assert!(!is_proven(&store), "a thousand bytes of it are not a lot");
    read(&store, 2).unwrap();
    assert!(is_proven(&store));
    assert_eq!(target.failures(&*store.packs), 0);
    // The third chunk, which is most of the pack, stays readable where another one is damaged: the pack is not believed.
    let mut bytes = target.bytes.clone();
    bytes[PACK_HEADER_LEN + 100] ^= 1;
    let (_, store) = adopted(&target, &bytes);
    for _ in 0..3 {
        read(&store, 2).unwrap();
        corrupt(read(&store, 0));
        assert!(!is_proven(&store));
    }
}
