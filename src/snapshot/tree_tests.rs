//! Trees: what is written is read back, in whole and in parts, and malformed trees are refused.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::testing::{MemStore, Model, entry, noise, read_tree};
use super::tree::TreeReader;
use super::write::{ContentWriter, DirWriter};
use crate::format::{ChunkId, Content, Entry, Extent, FileType, TreeObject};
use crate::store::error::StoreError;

fn root(dir: ChunkId) -> Entry {
    Entry { name: Vec::new(), ..entry("x", FileType::Dir, 1, Content::Dir(dir)) }
}

fn write_names<S: AsRef<str>>(store: &MemStore, names: impl IntoIterator<Item = S>) -> ChunkId {
    let mut writer = DirWriter::new(store);
    for (n, name) in names.into_iter().enumerate() {
        writer
            .push(entry(name.as_ref(), FileType::File, n as u64 + 2, Content::Inline(vec![n as u8; 3])))
            .unwrap();
    }
    writer.finish().unwrap()
}

fn names_of(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("name {n:07} of a long directory")).collect()
}

#[test]
fn directories_of_all_sizes_are_read_as_written() {
    for n in [0, 1, 2, 300, 20_000] {
        let store = MemStore::default();
        let names = names_of(n);
        let dir = write_names(&store, &names);
        let reader = TreeReader::new(&store);
        let read = reader.children(&dir, None, usize::MAX).unwrap();
        assert_eq!(
            read.iter().map(|e| e.name.clone()).collect::<Vec<_>>(),
            names.iter().map(|n| n.as_bytes().to_vec()).collect::<Vec<_>>()
        );
        if n == 20_000 {
            assert!(store.len() > 20, "a large directory is cut: {}", store.len());
            assert!(matches!(*reader.object(&dir).unwrap(), TreeObject::DirIndex { .. }));
        }
        // Pages of any size, from anywhere, give the same.
        let mut paged = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = reader.children(&dir, after.as_deref(), 997).unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            paged.extend(page);
        }
        assert_eq!(paged, read);
        for name in names.iter().step_by(337) {
            assert_eq!(reader.lookup(&dir, name.as_bytes()).unwrap().unwrap().name, name.as_bytes());
            assert_eq!(reader.lookup(&dir, format!("{name}x").as_bytes()).unwrap(), None);
        }
        assert_eq!(reader.lookup(&dir, b"\0").unwrap(), None);
        assert_eq!(reader.lookup(&dir, b"\xff").unwrap(), None);
        assert_eq!(reader.children(&dir, Some(b"\xff"), 5).unwrap(), []);
        assert_eq!(
            reader.children(&dir, Some(b"between"), 1).unwrap(),
            read.iter().take(1).cloned().collect::<Vec<_>>()
        );
    }
}

#[test]
fn the_same_entries_give_the_same_objects_and_a_small_change_few_new_ones() {
    let store = MemStore::default();
    let mut names = names_of(30_000);
    let first = write_names(&store, &names);
    let objects = store.len();
    assert_eq!(write_names(&store, &names), first);
    assert_eq!(store.len(), objects);
    // An insertion renumbers nothing here: entries after it must stay equal, so only the name differs.
    names[15_000].push('x');
    let second = write_names(&store, &names);
    assert_ne!(second, first);
    assert!(store.len() - objects <= 4, "{} of {objects} objects were written again", store.len() - objects);
}

#[test]
fn a_writer_refuses_what_is_out_of_order_or_unsayable() {
    let store = MemStore::default();
    let mut writer = DirWriter::new(&store);
    let file = |name: &str| entry(name, FileType::File, 2, Content::Empty);
    writer.push(file("b")).unwrap();
    assert!(matches!(writer.push(file("b")), Err(StoreError::Corrupt(_))));
    assert!(matches!(writer.push(file("a")), Err(StoreError::Corrupt(_))));
    assert!(matches!(writer.push(file("c/d")), Err(StoreError::Format(_))));
    assert!(matches!(writer.push(Entry { mode: 0o10000, ..file("d") }), Err(StoreError::Format(_))));
    let mut content = ContentWriter::new(&store);
    let extent = |offset, len| Extent { offset, len, chunk: ChunkId([1; 32]), chunk_offset: 0 };
    content.push(extent(10, 10)).unwrap();
    for (offset, len) in [(19, 5), (0, 5), (20, 0), (u64::MAX, 2)] {
        assert!(matches!(content.push(extent(offset, len)), Err(StoreError::Corrupt(_))), "{offset} {len}");
    }
}

#[test]
fn extents_of_all_numbers_are_read_as_written() {
    let mut rng = StdRng::seed_from_u64(3);
    for n in [0usize, 1, 16, 17, 500, 30_000] {
        let store = MemStore::default();
        let chunks: Vec<(ChunkId, Vec<u8>)> =
            (0..50).map(|seed| noise(seed, 300)).map(|bytes| (store.put(&bytes), bytes)).collect();
        let mut model = Vec::new();
        let mut writer = ContentWriter::new(&store);
        let mut extents = Vec::new();
        for _ in 0..n {
            let hole = if rng.random_bool(0.3) { rng.random_range(1..100) } else { 0 };
            model.resize(model.len() + hole, 0);
            let (chunk, bytes) = &chunks[rng.random_range(0..chunks.len())];
            let from = rng.random_range(0..bytes.len() - 1);
            let len = rng.random_range(1..=(bytes.len() - from).min(40));
            let extent = Extent {
                offset: model.len() as u64,
                len: len as u64,
                chunk: *chunk,
                chunk_offset: from as u32,
            };
            writer.push(extent).unwrap();
            extents.push(extent);
            model.extend_from_slice(&bytes[from..from + len]);
        }
        let content = writer.finish().unwrap();
        match n {
            0 => assert_eq!(content, Content::Empty),
            1..=16 => assert!(matches!(content, Content::Extents(_))),
            _ => assert!(matches!(content, Content::ExtentTree(_))),
        }
        model.resize(model.len() + 77, 0);
        let size = model.len() as u64;
        let reader = TreeReader::new(&store);
        let mut iter = reader.extents(&content, size, 0).unwrap();
        let mut read = 0;
        while let Some(extent) = iter.next_extent().unwrap() {
            read += extent.len;
        }
        assert_eq!(read, extents.iter().map(|e| e.len).sum::<u64>());
        let mut all = vec![1; model.len() + 10];
        assert_eq!(reader.read(&content, size, 0, &mut all).unwrap(), model.len());
        assert_eq!(all[..model.len()], model);
        for _ in 0..200 {
            let from = rng.random_range(0..=model.len());
            let mut buf = vec![9; rng.random_range(0..2000)];
            let got = reader.read(&content, size, from as u64, &mut buf).unwrap();
            assert_eq!(got, buf.len().min(model.len() - from));
            assert_eq!(buf[..got], model[from..from + got]);
        }
        assert_eq!(reader.read(&content, size, u64::MAX, &mut all).unwrap(), 0);
    }
}

#[test]
fn neighbours_in_one_chunk_become_one_extent() {
    let store = MemStore::default();
    let chunk = store.put(&noise(1, 1000));
    let mut writer = ContentWriter::new(&store);
    for n in 0..100u32 {
        writer.push(Extent { offset: n.into(), len: 1, chunk, chunk_offset: n + 5 }).unwrap();
    }
    let one = Extent { offset: 0, len: 100, chunk, chunk_offset: 5 };
    assert_eq!(writer.finish().unwrap(), Content::Extents(vec![one]));
}

#[test]
fn walks_resolve_and_inline_content() {
    let store = MemStore::default();
    let mut inner = DirWriter::new(&store);
    inner.push(entry("deep", FileType::File, 5, Content::Inline(b"hello".to_vec()))).unwrap();
    let inner = inner.finish().unwrap();
    let mut outer = DirWriter::new(&store);
    outer.push(entry("a", FileType::Dir, 2, Content::Dir(inner))).unwrap();
    outer.push(entry("b", FileType::Symlink, 3, Content::Symlink(b"a".to_vec()))).unwrap();
    outer.push(entry("c", FileType::Dir, 4, Content::Dir(inner))).unwrap();
    let root = root(outer.finish().unwrap());
    let model = read_tree(&store, &root).unwrap();
    let expected = [("a", "/"), ("a/deep", "hello"), ("b", "special"), ("c", "/"), ("c/deep", "hello")];
    assert_eq!(model, Model::from(expected.map(|(k, v)| (k.to_string(), v.as_bytes().to_vec()))));
    let reader = TreeReader::new(&store);
    assert_eq!(reader.resolve(&root, b"//a/deep/").unwrap().ino, 5);
    assert_eq!(reader.resolve(&root, b"").unwrap(), root);
    for (missing, text) in
        [("a/x", "/a/x"), ("x/y", "/x"), ("b/deep", "/b is not"), ("a/deep/x", "/a/deep is not")]
    {
        let error = reader.resolve(&root, missing.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let mut walk = reader.walk(&root);
    let mut seen = BTreeSet::new();
    while let Some(item) = walk.next() {
        let item = item.unwrap();
        if item.entry.name == b"a" {
            walk.skip_children();
        }
        seen.insert(item.path);
    }
    assert!(!seen.contains(b"a/deep".as_slice()) && seen.contains(b"c/deep".as_slice()));
    // A file whose inline bytes end before it does: the rest is a hole.
    let mut buf = [1; 8];
    assert_eq!(reader.read(&Content::Inline(b"abc".to_vec()), 6, 1, &mut buf).unwrap(), 5);
    assert_eq!(buf, *b"bc\0\0\0\x01\x01\x01");
    assert_eq!(reader.read(&Content::Inline(b"abc".to_vec()), 6, 5, &mut buf).unwrap(), 1);
    assert_eq!(buf[0], 0);
}

fn put(store: &MemStore, object: &TreeObject) -> ChunkId {
    store.put(&object.encode().unwrap())
}

#[test]
fn trees_that_break_the_rules_are_refused() {
    let store = MemStore::default();
    let leaf = |names: &[&str]| {
        let entries = names.iter().map(|n| entry(n, FileType::File, 2, Content::Empty)).collect();
        put(&store, &TreeObject::DirLeaf(entries))
    };
    let index = |level, children: &[(&str, ChunkId)]| {
        let children = children.iter().map(|(n, id)| (n.as_bytes().to_vec(), *id)).collect();
        put(&store, &TreeObject::DirIndex { level, children })
    };
    let good = index(1, &[("a", leaf(&["a", "b"])), ("c", leaf(&["c", "d"]))]);
    let reader = TreeReader::new(&store);
    assert_eq!(reader.children(&good, None, 9).unwrap().len(), 4);
    let extents = put(
        &store,
        &TreeObject::ExtentLeaf(vec![Extent { offset: 0, len: 1, chunk: ChunkId([1; 32]), chunk_offset: 0 }]),
    );
    let bad = [
        index(1, &[("b", leaf(&["a", "b"])), ("c", leaf(&["c"]))]),
        index(1, &[("a", leaf(&["a", "c"])), ("c", leaf(&["d"]))]),
        index(2, &[("a", leaf(&["a"]))]),
        index(1, &[("a", good)]),
        index(1, &[("a", extents)]),
        index(2, &[("a", index(1, &[("a", leaf(&["a", "n"]))])), ("m", index(1, &[("m", leaf(&["z"]))]))]),
        index(1, &[("a", ChunkId([9; 32]))]),
        extents,
    ];
    for (n, dir) in bad.iter().enumerate() {
        let result = reader.children(dir, None, usize::MAX);
        assert!(matches!(result, Err(StoreError::Corrupt(_))), "{n}: {result:?}");
        let mut walk = reader.walk(&root(*dir));
        assert!(walk.any(|item| item.is_err()), "{n}");
    }
    assert!(
        matches!(reader.lookup(&bad[0], b"a"), Ok(None)),
        "below the first name there is nothing to look at"
    );
    assert!(matches!(reader.lookup(&bad[0], b"b"), Err(StoreError::Corrupt(_))));
}

#[test]
fn extent_trees_that_break_the_rules_are_refused() {
    let store = MemStore::default();
    let data = store.put(&noise(0, 100));
    let leaf = |offsets: &[u64]| {
        let extent = |o: &u64| Extent { offset: *o, len: 10, chunk: data, chunk_offset: 0 };
        put(&store, &TreeObject::ExtentLeaf(offsets.iter().map(extent).collect()))
    };
    let index = |level, children: &[(u64, ChunkId)]| {
        put(&store, &TreeObject::ExtentIndex { level, children: children.to_vec() })
    };
    let reader = TreeReader::new(&store);
    let mut buf = [0; 200];
    let good = index(1, &[(0, leaf(&[0, 10])), (40, leaf(&[40, 60]))]);
    assert_eq!(reader.read(&Content::ExtentTree(good), 70, 0, &mut buf).unwrap(), 70);
    let dir = put(&store, &TreeObject::DirLeaf(Vec::new()));
    let bad = [
        (good, 69),
        (index(1, &[(0, leaf(&[0, 50])), (40, leaf(&[40]))]), 200),
        (index(1, &[(0, leaf(&[0, 35])), (40, leaf(&[40]))]), 200),
        (index(1, &[(5, leaf(&[0]))]), 200),
        (index(2, &[(0, leaf(&[0]))]), 200),
        (index(1, &[(0, dir)]), 200),
        (dir, 200),
    ];
    for (n, (tree, size)) in bad.iter().enumerate() {
        let result = reader.read(&Content::ExtentTree(*tree), *size, 0, &mut buf);
        assert!(matches!(result, Err(StoreError::Corrupt(_))), "{n}: {result:?}");
    }
}
