#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::format::samples::{self, assert_malformed, chunk, each_bit_flip, each_truncation, entry, file};

fn leaf(entry: Entry) -> Result<Vec<u8>, FormatError> {
    TreeObject::DirLeaf(vec![entry]).encode()
}

/// Asserts that neither side takes the object: the encoder refuses it, and so does the decoder when the
/// checks of the encoder are left out.
#[track_caller]
fn refused(object: &TreeObject, rule: &str) {
    assert_malformed(object.encode(), rule);
    assert_malformed(TreeObject::parse(&unchecked(object)), rule);
}

/// Encodes without checks.
fn unchecked(object: &TreeObject) -> Vec<u8> {
    let mut out = Vec::new();
    match object {
        TreeObject::DirLeaf(entries) => {
            out.push(DIR_LEAF);
            put_varint(&mut out, entries.len() as u64);
            entries.iter().for_each(|e| e.put(&mut out));
        }
        TreeObject::DirIndex { level, children } => {
            out.extend_from_slice(&[DIR_INDEX, *level]);
            put_varint(&mut out, children.len() as u64);
            for (name, child) in children {
                put_var_bytes(&mut out, name);
                out.extend_from_slice(child.as_bytes());
            }
        }
        TreeObject::ExtentLeaf(extents) => {
            out.push(EXTENT_LEAF);
            let start = extents.first().map_or(0, |e| e.offset);
            put_varint(&mut out, start);
            put_extents(&mut out, extents, start);
        }
        TreeObject::ExtentIndex { level, children } => {
            out.extend_from_slice(&[EXTENT_INDEX, *level]);
            put_varint(&mut out, children.len() as u64);
            for (offset, child) in children {
                put_varint(&mut out, *offset);
                out.extend_from_slice(child.as_bytes());
            }
        }
    }
    out
}

#[test]
fn every_kind_of_object_survives() {
    for object in samples::tree_objects() {
        let bytes = object.encode().unwrap();
        assert_eq!(bytes, unchecked(&object));
        assert_eq!(TreeObject::parse(&bytes), Ok(object));
    }
}

#[test]
fn an_entry_has_the_documented_bytes() {
    let entry = Entry {
        xattrs: vec![(b"user.x".to_vec(), b"v".to_vec())],
        ..file("ab", 300, Content::Inline(b"hi".to_vec()))
    };
    let mut want = vec![1, 1, 2, b'a', b'b', 1, 2, 0xa4, 3, 0xe8, 7, 100];
    want.extend_from_slice(&[1, 0xff, 0x93, 0xeb, 0xdc, 3]);
    want.extend_from_slice(&[0xc0, 0xec, 0x87, 0xb0, 0x0d, 1]);
    want.extend_from_slice(&[0xc2, 0xec, 0x87, 0xb0, 0x0d, 0]);
    want.extend_from_slice(&[1, 1, 6]);
    want.extend_from_slice(b"user.x\x01v");
    want.extend_from_slice(&[0xac, 2, 1, 2, b'h', b'i']);
    assert_eq!(leaf(entry).unwrap(), want);
    let fifo = Entry {
        ino: 1,
        mode: 0,
        uid: 0,
        gid: 0,
        nlink: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        ..entry_of(FileType::Fifo, Content::None)
    };
    let bytes = leaf(fifo.clone()).unwrap();
    assert_eq!(bytes.len(), 2 + ENTRY_LEN_MIN, "the shortest entry");
    assert_eq!(TreeObject::parse(&bytes), Ok(TreeObject::DirLeaf(vec![fifo])));
}

fn entry_of(kind: FileType, content: Content) -> Entry {
    entry("n", kind, content)
}

#[test]
fn extents_have_the_documented_bytes() {
    let object = TreeObject::ExtentLeaf(samples::extents());
    let bytes = object.encode().unwrap();
    assert_eq!(bytes[..5], [3, 10, 3, 0, 1], "first offset 10, three extents, gap 0, length 1");
    let in_entry = leaf(file("d", 100_000 + (8 << 20), Content::Extents(samples::extents()))).unwrap();
    let at = in_entry.len() - (bytes.len() - 3);
    assert_eq!(in_entry[at - 2..at + 2], [2, 3, 10, 1], "in an entry the first gap counts from 0");
}

#[test]
fn a_broken_object_is_refused_or_is_another_object() {
    for object in samples::tree_objects() {
        let bytes = object.encode().unwrap();
        each_truncation(&bytes, |cut| assert!(TreeObject::parse(cut).is_err()));
        each_bit_flip(&bytes, |flipped| {
            if let Ok(other) = TreeObject::parse(flipped) {
                assert_eq!(other.encode().as_deref(), Ok(flipped));
                assert_ne!(other, object);
            }
        });
        assert_malformed(TreeObject::parse(&[&bytes[..], &[0]].concat()), "GEN-2");
    }
    for kind in [0, 5, 0xff] {
        assert_malformed(TreeObject::parse(&[kind, 0]), "unknown kind");
    }
    assert_malformed(TreeObject::parse(&[]), "tree object: too short");
    assert!(matches!(TreeObject::parse(&vec![1; CHUNK_MAX + 1]), Err(FormatError::Limit(_))));
}

#[test]
fn a_hostile_count_allocates_nothing() {
    // FORMAT GEN-3
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    for head in [&[1][..], &[2, 1], &[3, 0], &[4, 1]] {
        assert_malformed(TreeObject::parse(&[head, &huge].concat()), "GEN-3");
    }
}

#[test]
fn names_are_plain() {
    // FORMAT TREE-1
    for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"\0", b"a\0", &[b'x'; 256]] {
        let named = Entry { name: bad.to_vec(), ..entry_of(FileType::Fifo, Content::None) };
        refused(&TreeObject::DirLeaf(vec![named]), "TREE-1");
        let children = vec![(bad.to_vec(), chunk(1)), (b"zz".to_vec(), chunk(2))];
        refused(&TreeObject::DirIndex { level: 1, children }, "TREE-1");
    }
    for good in [&b"..."[..], b".a", b"\xff\xfe", b" ", b"\n", &[b'x'; 255]] {
        check_name(good).unwrap();
    }
}

#[test]
fn names_and_offsets_ascend() {
    // FORMAT TREE-2
    let fifo = |name: &str| entry(name, FileType::Fifo, Content::None);
    refused(&TreeObject::DirLeaf(vec![fifo("b"), fifo("a")]), "TREE-2");
    refused(&TreeObject::DirLeaf(vec![fifo("a"), fifo("a")]), "TREE-2");
    refused(&TreeObject::DirLeaf(vec![fifo("a"), fifo("c"), fifo("b")]), "TREE-2");
    let names = |a: &str, b: &str| vec![(a.as_bytes().to_vec(), chunk(1)), (b.as_bytes().to_vec(), chunk(2))];
    refused(&TreeObject::DirIndex { level: 1, children: names("b", "a") }, "TREE-2");
    refused(&TreeObject::DirIndex { level: 1, children: names("a", "a") }, "TREE-2");
    let offsets = |a, b| vec![(a, chunk(1)), (b, chunk(2))];
    refused(&TreeObject::ExtentIndex { level: 1, children: offsets(1, 0) }, "TREE-2");
    refused(&TreeObject::ExtentIndex { level: 1, children: offsets(1, 1) }, "TREE-2");
    let xattrs = |a: &str, b: &str| {
        let xattrs = vec![(a.as_bytes().to_vec(), vec![]), (b.as_bytes().to_vec(), vec![])];
        TreeObject::DirLeaf(vec![Entry { xattrs, ..fifo("x") }])
    };
    refused(&xattrs("b", "a"), "TREE-2");
    refused(&xattrs("a", "a"), "TREE-2");
    TreeObject::DirLeaf(vec![fifo("a"), fifo("a\u{1}"), fifo("aa"), fifo("b")]).encode().unwrap();
}

#[test]
fn attributes_have_bounds() {
    // FORMAT TREE-3
    let fifo = entry_of(FileType::Fifo, Content::None);
    let one = |entry: Entry| TreeObject::DirLeaf(vec![entry]);
    refused(&one(Entry { mode: 0o10000, ..fifo.clone() }), "TREE-3: mode");
    refused(&one(Entry { ino: 0, ..fifo.clone() }), "TREE-3: ino");
    for nanos in [1_000_000_000, u32::MAX] {
        let bad = Time { secs: 0, nanos };
        refused(&one(Entry { atime: bad, ..fifo.clone() }), "nanoseconds");
        refused(&one(Entry { mtime: bad, ..fifo.clone() }), "nanoseconds");
        refused(&one(Entry { ctime: bad, ..fifo.clone() }), "nanoseconds");
    }
    leaf(Entry {
        mode: 0o7777,
        ino: u64::MAX,
        uid: u32::MAX,
        gid: u32::MAX,
        nlink: u32::MAX,
        ..fifo.clone()
    })
    .unwrap();
    // What doesn't fit 32 bits can only come from outside: replace single-byte fields by a varint of 2^32.
    let small = Entry { mode: 1, uid: 3, gid: 4, nlink: 5, ..fifo };
    let bytes = leaf(small).unwrap();
    let wide = [0x80, 0x80, 0x80, 0x80, 0x10];
    for (value, rule) in [(1u8, "TREE-3: mode"), (3, "TREE-3: uid"), (4, "TREE-3: gid"), (5, "TREE-3: nlink")]
    {
        let at = 6 + bytes[6..].iter().position(|b| *b == value).unwrap();
        let bad = [&bytes[..at], &wide, &bytes[at + 1..]].concat();
        assert_malformed(TreeObject::parse(&bad), rule);
    }
    let device = leaf(entry_of(FileType::CharDev, Content::Device { major: 1, minor: 2 })).unwrap();
    let end = device.len();
    assert_malformed(TreeObject::parse(&[&device[..end - 2], &wide, &[2]].concat()), "TREE-3: major");
    assert_malformed(TreeObject::parse(&[&device[..end - 1], &wide].concat()), "TREE-3: minor");
    for kind in [0, 8, 0xff] {
        let mut bad = bytes.clone();
        bad[4] = kind;
        assert_malformed(TreeObject::parse(&bad), "unknown type");
    }
}

#[test]
fn extents_stay_apart_and_inside() {
    // FORMAT TREE-4
    let extent = |offset, len, chunk_offset| Extent { offset, len, chunk: chunk(1), chunk_offset };
    let object = |extents: &[Extent]| TreeObject::ExtentLeaf(extents.to_vec());
    let max = CHUNK_MAX as u64;
    for bad in [
        &[][..],
        &[extent(0, 0, 0)],
        &[extent(0, max + 1, 0)],
        &[extent(0, max, 1)],
        &[extent(0, 1, CHUNK_MAX as u32)],
        &[extent(0, 1, u32::MAX)],
        &[extent(FILE_SIZE_MAX, 1, 0)],
        &[extent(FILE_SIZE_MAX - 4, 5, 0)],
    ] {
        refused(&object(bad), if bad.is_empty() { "an extent list" } else { "TREE-4" });
    }
    object(&[extent(FILE_SIZE_MAX - 5, 5, 0)]).encode().unwrap();
    object(&[extent(0, max, 0), extent(max, 1, CHUNK_MAX as u32 - 1)]).encode().unwrap();
    assert_malformed(object(&[extent(0, 2, 0), extent(1, 1, 0)]).encode(), "TREE-4: extents overlap");
    assert_malformed(object(&[extent(5, 2, 0), extent(0, 1, 0)]).encode(), "TREE-4: extents overlap");

    // In an entry, they end inside of the file.
    for size in [0, 1, 11, 100_000 + max - 1] {
        refused(&TreeObject::DirLeaf(vec![file("a", size, Content::Extents(samples::extents()))]), "TREE-4");
    }
    refused(&TreeObject::DirLeaf(vec![file("a", 1, Content::Extents(vec![]))]), "an extent list");
    refused(&TreeObject::DirLeaf(vec![file("a", FILE_SIZE_MAX + 1, Content::Empty)]), "TREE-4: file size");
    refused(
        &TreeObject::DirLeaf(vec![file("a", u64::MAX, Content::ExtentTree(chunk(1)))]),
        "TREE-4: file size",
    );
    leaf(file("a", FILE_SIZE_MAX, Content::Empty)).unwrap();

    // Sums that overflow.
    let mut overflow = vec![3];
    put_varint(&mut overflow, u64::MAX);
    put_varint(&mut overflow, 1);
    put_varint(&mut overflow, 0);
    put_varint(&mut overflow, 1);
    overflow.extend_from_slice(&[0; 33]);
    assert_malformed(TreeObject::parse(&overflow), "TREE-4");
    let gap = [&[3, 5, 1, 1, 1][..], &[0; 33]].concat();
    assert_malformed(TreeObject::parse(&gap), "the first gap");
}

#[test]
fn inline_content_is_small_and_inside_of_the_file() {
    // FORMAT TREE-4
    let inline = |len: usize, size| TreeObject::DirLeaf(vec![file("a", size, Content::Inline(vec![0; len]))]);
    refused(&inline(0, 0), "TREE-4: inline");
    refused(&inline(0, 10), "TREE-4: inline");
    refused(&inline(2, 1), "TREE-4: inline");
    refused(&inline(4097, 4097), "TREE-4: inline");
    inline(4096, 4096).encode().unwrap();
    inline(1, FILE_SIZE_MAX).encode().unwrap();
}

#[test]
fn symlinks_have_a_target() {
    let link = |len: usize| {
        TreeObject::DirLeaf(vec![entry("a", FileType::Symlink, Content::Symlink(vec![b'x'; len]))])
    };
    refused(&link(0), "a symlink's target");
    let nul = TreeObject::DirLeaf(vec![entry("a", FileType::Symlink, Content::Symlink(b"a\0b".to_vec()))]);
    refused(&nul, "a symlink's target");
    refused(&link(4096), "a symlink's target");
    link(4095).encode().unwrap();
}

#[test]
fn content_fits_the_type() {
    let contents = [
        Content::Empty,
        Content::Inline(vec![1]),
        Content::Extents(samples::extents()),
        Content::ExtentTree(chunk(1)),
        Content::Dir(chunk(1)),
        Content::Symlink(vec![1]),
        Content::Device { major: 0, minor: 0 },
        Content::None,
    ];
    use FileType::{BlockDev, CharDev, Dir, Fifo, File, Socket, Symlink};
    for kind in [File, Dir, Symlink, Fifo, Socket, CharDev, BlockDev] {
        for content in &contents {
            let fits = match content {
                Content::Empty | Content::Inline(_) | Content::Extents(_) | Content::ExtentTree(_) => {
                    kind == File
                }
                Content::Dir(_) => kind == Dir,
                Content::Symlink(_) => kind == Symlink,
                Content::Device { .. } => matches!(kind, CharDev | BlockDev),
                Content::None => matches!(kind, Fifo | Socket),
            };
            let size = if kind == File { 1 << 30 } else { 0 };
            let result = leaf(Entry { size, ..entry_of(kind, content.clone()) });
            assert_eq!(result.is_ok(), fits, "{kind:?} {content:?}");
        }
        if kind != File {
            let sized = Entry { size: 1, ..entry_of(kind, Content::None) };
            assert_malformed(leaf(sized), "only files have a size");
        }
    }
    let mut bytes = leaf(file("a", 0, Content::Empty)).unwrap();
    *bytes.last_mut().unwrap() = 4;
    assert_malformed(TreeObject::parse(&bytes), "unknown content");
}

#[test]
fn levels_are_one_to_seven() {
    // FORMAT TREE-5
    for level in [0, 8, 9, 255] {
        refused(&TreeObject::DirIndex { level, children: vec![(b"a".to_vec(), chunk(1))] }, "TREE-5");
        refused(&TreeObject::ExtentIndex { level, children: vec![(0, chunk(1))] }, "TREE-5");
    }
    refused(&TreeObject::DirIndex { level: 1, children: vec![] }, "an index has at least one child");
    refused(&TreeObject::ExtentIndex { level: 1, children: vec![] }, "an index has at least one child");
    refused(&TreeObject::ExtentIndex { level: 1, children: vec![(FILE_SIZE_MAX, chunk(1))] }, "TREE-4");
}

#[test]
fn a_child_keeps_to_its_part_and_level() {
    // FORMAT TREE-2 and TREE-5
    let leaf = TreeObject::DirLeaf(vec![
        entry("b", FileType::Fifo, Content::None),
        entry("d", FileType::Fifo, Content::None),
    ]);
    leaf.check_dir_child(1, b"b", Some(b"e")).unwrap();
    leaf.check_dir_child(1, b"a", None).unwrap();
    assert_malformed(leaf.check_dir_child(1, b"c", None), "TREE-2");
    assert_malformed(leaf.check_dir_child(1, b"b", Some(b"d")), "TREE-2");
    for level in [0, 2, 255] {
        assert_malformed(leaf.check_dir_child(level, b"a", None), "TREE-5");
    }
    assert_malformed(leaf.check_extent_child(1, 0, None), "a directory object");
    TreeObject::DirLeaf(vec![]).check_dir_child(1, b"z", Some(b"zz")).unwrap();

    let index = TreeObject::ExtentIndex { level: 2, children: vec![(10, chunk(1)), (20, chunk(2))] };
    index.check_extent_child(3, 10, Some(21)).unwrap();
    assert_malformed(index.check_extent_child(3, 11, None), "TREE-2");
    assert_malformed(index.check_extent_child(3, 0, Some(20)), "TREE-2");
    assert_malformed(index.check_extent_child(2, 0, None), "TREE-5");
    assert_malformed(index.check_dir_child(3, b"a", None), "an extent object");
    assert_eq!(index.level(), 2);
    assert_eq!(leaf.level(), 0);
}

#[test]
fn xattrs_have_bounds() {
    // FORMAT TREE-6
    let with = |xattrs: Vec<Xattr>| {
        TreeObject::DirLeaf(vec![Entry { xattrs, ..entry_of(FileType::Fifo, Content::None) }])
    };
    refused(&with(vec![(vec![], vec![0])]), "TREE-6");
    refused(&with(vec![(vec![b'x'; 256], vec![])]), "TREE-6");
    refused(&with(vec![(b"a\0b".to_vec(), vec![])]), "TREE-6");
    refused(&with(vec![(b"a".to_vec(), vec![0; 65_537])]), "TREE-6");
    let many = |n: u8, len: usize| (0..n).map(|i| (vec![i + 1], vec![0; len])).collect::<Vec<_>>();
    with(many(16, 65_535)).encode().unwrap();
    refused(&with(many(16, 65_536)), "TREE-6: extended attributes of an entry above 1 MiB");
    with(vec![(vec![b'x'; 255], vec![0; 65_536])]).encode().unwrap();
}

#[test]
fn links_of_one_file_are_equal_but_for_the_name() {
    // FORMAT TREE-7
    let one = Entry { nlink: 2, ..file("a", 4, Content::Inline(b"abcd".to_vec())) };
    let link = Entry { name: b"b".to_vec(), ..one.clone() };
    assert!(one.is_link_of(&link));
    for other in [
        Entry { ino: 9, ..link.clone() },
        Entry { mode: 0, ..link.clone() },
        Entry { nlink: 3, ..link.clone() },
        Entry { mtime: Time::default(), ..link.clone() },
        Entry { size: 5, ..link.clone() },
        Entry { xattrs: vec![(b"a".to_vec(), vec![])], ..link.clone() },
        Entry { content: Content::Inline(b"abce".to_vec()), ..link.clone() },
    ] {
        assert!(!one.is_link_of(&other));
    }
}

#[test]
fn only_a_root_has_no_name() {
    let root = samples::root_entry();
    let mut out = Vec::new();
    root.encode_root_into(&mut out).unwrap();
    assert_eq!(Entry::parse_root(&mut Reader::new(&out, "short")), Ok(root.clone()));
    assert_malformed(Entry::parse(&mut Reader::new(&out, "short")), "TREE-1");
    let mut out = vec![7];
    assert_malformed(root.encode_into(&mut out), "TREE-1");
    assert_eq!(out, [7], "nothing is appended on error");
    let named = Entry { name: b"x".to_vec(), ..root.clone() };
    assert_malformed(named.encode_root_into(&mut out), "the root");
    named.encode_into(&mut out).unwrap();
    assert_malformed(Entry::parse_root(&mut Reader::new(&out[1..], "short")), "the root");
    let file = file("", 0, Content::Empty);
    assert_malformed(file.encode_root_into(&mut out), "the root");
}

#[test]
fn an_object_fits_a_chunk() {
    let big = |n: u32| {
        let xattrs: Vec<Xattr> = (0..15u8).map(|i| (vec![i + 1], vec![0; 65_536])).collect();
        let entries = (0..n).map(|i| Entry {
            xattrs: xattrs.clone(),
            ..entry(&format!("{i:03}"), FileType::Fifo, Content::None)
        });
        TreeObject::DirLeaf(entries.collect()).encode()
    };
    big(8).unwrap();
    assert!(matches!(big(9), Err(FormatError::Limit(_))));
}

prop_compose! {
    fn a_time()(secs: i64, nanos in 0u32..1_000_000_000) -> Time {
        Time { secs, nanos }
    }
}

fn some_extents() -> impl Strategy<Value = Vec<Extent>> {
    prop::collection::vec((0u64..1 << 40, 1u64..=1 << 20, any::<[u8; 32]>(), 0u32..1 << 20), 1..8).prop_map(
        |parts| {
            let mut end = 0;
            parts
                .into_iter()
                .map(|(gap, len, id, chunk_offset)| {
                    let offset = end + gap;
                    end = offset + len;
                    Extent { offset, len, chunk: ChunkId(id), chunk_offset }
                })
                .collect()
        },
    )
}

fn some_content() -> impl Strategy<Value = (FileType, Content, u64)> {
    let file = |content, size| (FileType::File, content, size);
    prop_oneof![
        (0..=FILE_SIZE_MAX).prop_map(move |size| file(Content::Empty, size)),
        (prop::collection::vec(any::<u8>(), 1..100), 100u64..1 << 50)
            .prop_map(move |(b, size)| file(Content::Inline(b), size)),
        (some_extents(), 1u64 << 45..1 << 50).prop_map(move |(e, size)| file(Content::Extents(e), size)),
        any::<[u8; 32]>().prop_map(move |id| file(Content::ExtentTree(ChunkId(id)), 7)),
        any::<[u8; 32]>().prop_map(|id| (FileType::Dir, Content::Dir(ChunkId(id)), 0)),
        prop::collection::vec(1u8.., 1..100).prop_map(|t| (FileType::Symlink, Content::Symlink(t), 0)),
        any::<(u32, u32)>().prop_map(|(major, minor)| (
            FileType::BlockDev,
            Content::Device { major, minor },
            0
        )),
        Just((FileType::Socket, Content::None, 0)),
    ]
}

prop_compose! {
    fn an_entry()(
        name in "[a-z\u{e9}. ]{3,20}",
        (kind, content, size) in some_content(),
        ino in 1u64..,
        mode in 0u32..=0o7777,
        (uid, gid, nlink) in any::<(u32, u32, u32)>(),
        (atime, mtime, ctime) in (a_time(), a_time(), a_time()),
        xattrs in prop::collection::btree_map("[a-z.]{1,12}", prop::collection::vec(any::<u8>(), 0..20), 0..4),
    ) -> Entry {
        let xattrs = xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
        Entry { name: name.into_bytes(), kind, ino, mode, uid, gid, atime, mtime, ctime, nlink, size, xattrs, content }
    }
}

proptest! {
    #[test]
    fn any_directory_survives(entries in prop::collection::vec(an_entry(), 0..12)) {
        let mut entries = entries;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries.dedup_by(|a, b| a.name == b.name);
        let object = TreeObject::DirLeaf(entries);
        let bytes = object.encode().unwrap();
        prop_assert_eq!(TreeObject::parse(&bytes), Ok(object));
    }

    #[test]
    fn any_extents_survive(extents in some_extents()) {
        let object = TreeObject::ExtentLeaf(extents);
        prop_assert_eq!(TreeObject::parse(&object.encode().unwrap()), Ok(object));
    }

    #[test]
    fn what_is_accepted_has_one_encoding(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 1u8..=4) {
        crate::format::fuzz::fuzz_tree(&[&[kind], &bytes[..]].concat());
    }
}
