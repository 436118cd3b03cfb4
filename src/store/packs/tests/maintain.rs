//! Condemning, rewriting, forgetting, adopting, proving; cold packs.

use super::*;
use crate::format::PackName;
use crate::format::pack::pack_path;

/// A store with one closed data pack of `n` chunks.
fn one_pack(vault: &Vault, n: usize) -> (SimDisk, Store, PackInfo, Vec<(ChunkId, Vec<u8>)>) {
    let sim = SimDisk::new(1);
    let store = vault.create(Arc::new(sim.clone()), quiet(8 << 20));
    let mut chunks = Vec::new();
    for i in 0..n {
        let content =
            if i % 2 == 0 { noise(&format!("c{i}"), 200_000) } else { prose(&format!("c{i} "), 300_000) };
        let id = store.packs.put(PackKind::Data, &content, Effort::Thorough).unwrap();
        chunks.push((id, content));
    }
    store.packs.close_open().unwrap();
    let pack = store.packs.closed_packs().unwrap().remove(0);
    (sim, store, pack, chunks)
}

fn check(source: &dyn ChunkSource, chunks: &[(ChunkId, Vec<u8>)]) {
    for (id, content) in chunks {
        assert_eq!(&source.read_chunk(PackKind::Data, id).unwrap()[..], &content[..]);
        let mut buf = vec![0; 1000];
        source.read_at(id, 150_000, &mut buf).unwrap();
        assert_eq!(buf, content[150_000..151_000]);
    }
}

#[test]
fn a_condemned_pack_can_be_read_but_is_not_deduplicated_against() {
    let vault = Vault::new(1);
    let (_, store, pack, chunks) = one_pack(&vault, 3);
    store.packs.condemn(&pack.name).unwrap();
    assert_eq!(store.packs.closed_packs().unwrap()[0].state, PackState::Condemned);
    check(&*store.packs, &chunks);
    assert!(!store.packs.contains(&chunks[0].0).unwrap());
    let before = store.packs.stats().chunks;
    assert_eq!(store.packs.put(PackKind::Data, &chunks[0].1, Effort::Fast).unwrap(), chunks[0].0);
    assert_eq!(store.packs.stats().chunks, before + 1, "stored again");
    assert!(store.packs.contains(&chunks[0].0).unwrap());
    store.packs.uncondemn(&pack.name).unwrap();
    assert!(store.packs.contains(&chunks[1].0).unwrap());
    assert!(matches!(store.packs.condemn(&PackName([9; 32])), Err(StoreError::NotFound(_))));
    assert!(matches!(store.packs.forget(&pack.name), Err(StoreError::NotFound(_))), "it is not condemned");
    check(&*store.packs, &chunks);
}

#[test]
fn rewriting_moves_what_is_wanted_and_forgetting_drops_the_rest() {
    let vault = Vault::new(1);
    let (sim, store, pack, chunks) = one_pack(&vault, 6);
    let keep: Vec<_> = chunks[..3].to_vec();
    store.packs.condemn(&pack.name).unwrap();
    // One of them has been stored again meanwhile, so it need not be copied.
    store.packs.put(PackKind::Data, &chunks[0].1, Effort::Fast).unwrap();
    let wanted = |id: &ChunkId| keep.iter().any(|(k, _)| k == id);
    let copied = store.packs.rewrite(&pack, &wanted).unwrap();
    let listed = store.packs.chunks_of(&pack).unwrap();
    let expected: u64 =
        listed.iter().filter(|c| wanted(&c.id) && c.id != chunks[0].0).map(ChunkDesc::stored_len).sum();
    assert_eq!(copied, expected, "bodies are copied as they are");
    assert_eq!(store.packs.rewrite(&pack, &wanted).unwrap(), 0, "nothing is left to copy");
    store.packs.close_open().unwrap();
    assert!(sim.raw_read(&pack_path(&pack.name)).is_some());
    store.packs.forget(&pack.name).unwrap();
    assert!(sim.raw_read(&pack_path(&pack.name)).is_none());
    check(&*store.packs, &keep);
    for (id, _) in &chunks[3..] {
        assert!(matches!(store.packs.read_chunk(PackKind::Data, id), Err(StoreError::NotFound(_))));
    }
    let numbers: Vec<_> = store.packs.closed_packs().unwrap().iter().map(|p| p.no).collect();
    assert!(!numbers.contains(&pack.no) && numbers.len() == 1);
    store.close();
    let store = vault.open(Arc::new(sim.clone()), quiet(8 << 20)).unwrap();
    check(&*store.packs, &keep);
    check(&vault.cold(&sim), &keep);
    // Pack numbers are not used again.
    store.packs.put(PackKind::Data, b"new", Effort::Fast).unwrap();
    store.packs.close_open().unwrap();
    let newest = store.packs.closed_packs().unwrap().pop().unwrap().no;
    assert!(newest > pack.no && !numbers.contains(&newest));
}

#[test]
fn a_damaged_chunk_is_not_carried_over_into_a_new_pack() {
    let vault = Vault::new(1);
    let (sim, store, pack, chunks) = one_pack(&vault, 2);
    let path = pack_path(&pack.name);
    let mut bytes = sim.raw_read(&path).unwrap();
    bytes[2000] ^= 1;
    sim.raw_write(&path, &bytes);
    assert!(corrupt(store.packs.rewrite(&pack, &|_| true)).contains(&path));
    // Its row still names the old pack, which can be forgotten all the same.
    store.packs.condemn(&pack.name).unwrap();
    sim.raw_remove(&path);
    store.packs.forget(&pack.name).unwrap();
    assert!(store.packs.closed_packs().unwrap().is_empty());
    assert!(matches!(store.packs.read_chunk(PackKind::Data, &chunks[0].0), Err(StoreError::NotFound(_))));
}

#[test]
fn foreign_packs_are_adopted_and_become_trusted_once_proven() {
    let vault = Vault::new(1);
    let (sim, store, pack, chunks) = one_pack(&vault, 4);
    store.close();
    // A clone: the packs without the live state.
    let clone = SimDisk::new(2);
    let path = pack_path(&pack.name);
    clone.raw_write(&path, &sim.raw_read(&path).unwrap());
    let store = vault.create(Arc::new(clone.clone()), quiet(8 << 20));
    assert_eq!(store.packs.strays().unwrap(), [pack.name]);
    store.packs.put(PackKind::Data, &chunks[3].1, Effort::Fast).unwrap();
    assert_eq!(store.packs.adopt(&pack.name).unwrap(), 4);
    assert_eq!(store.packs.adopt(&pack.name).unwrap(), 4, "again changes nothing");
    assert!(store.packs.strays().unwrap().is_empty());
    let adopted = store.packs.closed_packs().unwrap();
    assert_eq!((adopted.len(), adopted[0].proven), (1, false));
    check(&*store.packs, &chunks);
    store.packs.prove(&pack.name).unwrap();
    assert!(store.packs.closed_packs().unwrap()[0].proven);
    check(&*store.packs, &chunks);
    let stats = store.packs.stats();
    assert_eq!(store.packs.put(PackKind::Data, &chunks[0].1, Effort::Fast).unwrap(), chunks[0].0);
    assert_eq!(store.packs.stats().dedup_hits, stats.dedup_hits + 1);
    store.close();
    let store = vault.open(Arc::new(clone.clone()), quiet(8 << 20)).unwrap();
    check(&*store.packs, &chunks);
    corrupt(store.packs.adopt(&PackName([1; 32])));
}

#[test]
fn a_pack_of_another_vault_is_refused() {
    let vault = Vault::new(1);
    let (sim, _, pack, chunks) = one_pack(&vault, 1);
    let other = Vault::new(2);
    let store = other.create(Arc::new(sim.clone()), quiet(8 << 20));
    assert!(corrupt(store.packs.adopt(&pack.name)).contains(&pack_path(&pack.name)));
    let cold = other.cold(&sim);
    assert_eq!(cold.problems().len(), 1);
    corrupt(cold.read_chunk(PackKind::Data, &chunks[0].0));
    let disk: Arc<dyn Disk> = Arc::new(sim);
    let wrong = ColdPacks::open(disk, Arc::clone(&other.keys), &vault.header, std::iter::empty(), 0);
    assert!(matches!(wrong, Err(StoreError::Crypto(_))));
}

#[test]
fn a_missing_pack_fails_only_reads_of_its_chunks() {
    let vault = Vault::new(1);
    let sim = SimDisk::new(1);
    let store = vault.create(Arc::new(sim.clone()), quiet(8 << 20));
    let mut chunks = Vec::new();
    for n in 0..3 {
        let content = noise(&format!("pack {n}"), 200_000);
        chunks.push((store.packs.put(PackKind::Data, &content, Effort::Fast).unwrap(), content));
        store.packs.close_open().unwrap();
    }
    let packs = store.packs.closed_packs().unwrap();
    store.close();
    let names: Vec<_> = packs.iter().map(|p| p.name).collect();
    sim.raw_remove(&pack_path(&names[1]));
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let cold = ColdPacks::open(
        Arc::clone(&disk),
        Arc::clone(&vault.keys),
        &vault.header,
        names.clone().into_iter(),
        1 << 20,
    );
    let cold = cold.unwrap();
    let warm = vault.open(disk, quiet(8 << 20)).unwrap();
    for source in [&cold as &dyn ChunkSource, &*warm.packs] {
        check(source, &chunks[..1]);
        check(source, &chunks[2..]);
        let text = corrupt(source.read_chunk(PackKind::Data, &chunks[1].0));
        assert!(text.contains(&names[1].to_hex()), "{text}");
        corrupt(source.read_at(&chunks[1].0, 0, &mut [0; 8]));
    }
    assert!(matches!(warm.packs.read_chunk(PackKind::Data, &ChunkId([5; 32])), Err(StoreError::NotFound(_))));
}

#[test]
fn cold_packs_find_a_chunk_in_any_of_its_places() {
    let vault = Vault::new(1);
    let (sim, store, pack, chunks) = one_pack(&vault, 2);
    store.packs.condemn(&pack.name).unwrap();
    assert!(store.packs.rewrite(&pack, &|_| true).unwrap() > 0);
    store.packs.close_open().unwrap();
    for damaged in store.packs.closed_packs().unwrap() {
        let copy = sim.fork();
        let path = pack_path(&damaged.name);
        let mut bytes = copy.raw_read(&path).unwrap();
        let step = bytes[1168..200_000].iter_mut().step_by(1000);
        step.for_each(|byte| *byte ^= 1);
        copy.raw_write(&path, &bytes);
        let cold = vault.cold(&copy);
        assert_eq!(cold.chunk_count(), 4);
        assert!(cold.contains(&chunks[0].0) && !cold.contains(&ChunkId([0; 32])));
        check(&cold, &chunks);
    }
}
