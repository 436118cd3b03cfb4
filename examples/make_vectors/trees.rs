//! Vectors of tree objects. Most of the bad ones are put together by hand: the library would not write them.

use strongroom::env::Time;
use strongroom::format::{Content, Entry, Extent, FileType, TreeObject};

use crate::{Out, Outcome, chunk};

pub(crate) fn entry(name: &str, kind: FileType, content: Content) -> Entry {
    Entry {
        name: name.as_bytes().to_vec(),
        kind,
        ino: 2,
        mode: 0o644,
        uid: 1000,
        gid: 100,
        atime: Time { secs: -1, nanos: 999_999_999 },
        mtime: Time { secs: 1_795_226_400, nanos: 1 },
        ctime: Time { secs: 1_795_226_401, nanos: 0 },
        nlink: 1,
        size: 0,
        xattrs: Vec::new(),
        content,
    }
}

fn file(name: &str, size: u64, content: Content) -> Entry {
    Entry { size, ..entry(name, FileType::File, content) }
}

fn fifo(name: &str) -> Entry {
    entry(name, FileType::Fifo, Content::None)
}

fn extent(offset: u64, len: u64) -> Extent {
    Extent { offset, len, chunk: chunk(3), chunk_offset: 10 }
}

/// The bytes of one fifo in a leaf, by hand: `n` is its name and `fields` what follows the type.
fn raw_fifo(name: &[u8], fields: &[u8]) -> Vec<u8> {
    let mut out = vec![1, 1];
    out.push(name.len() as u8);
    out.extend_from_slice(name);
    out.push(4);
    out.extend_from_slice(fields);
    out
}

/// ino 1, mode 2, uid 3, gid 4, times 0, nlink 1, no xattrs.
const FIFO_FIELDS: [u8; 12] = [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 1, 0];

fn good_trees(out: &Out) -> Outcome {
    let xattrs = vec![(b"security.x".to_vec(), vec![1, 2]), (b"user.a".to_vec(), Vec::new())];
    let leaf = TreeObject::DirLeaf(vec![
        file("a", 0, Content::Empty),
        file("b", i64::MAX as u64, Content::Empty),
        Entry { xattrs, ..file("c", 4000, Content::Inline(b"abc\0".to_vec())) },
        file("d", 1 << 40, Content::Extents(vec![extent(10, 1), extent(11, 200), extent(1 << 30, 4 << 20)])),
        file("e", 5 << 30, Content::ExtentTree(chunk(4))),
        entry("f", FileType::Dir, Content::Dir(chunk(5))),
        entry("g", FileType::Symlink, Content::Symlink(b"../x".to_vec())),
        entry("h", FileType::CharDev, Content::Device { major: 1, minor: u32::MAX }),
        entry("i", FileType::BlockDev, Content::Device { major: 8, minor: 0 }),
        fifo("j"),
        entry("\u{e9} \n", FileType::Socket, Content::None),
    ]);
    let put = |name: &str, comment: &str, object: &TreeObject| -> Outcome {
        out.put(&format!("tree-ok-{name}"), "ok", comment, &[], &object.encode()?)
    };
    put("leaf", "every type and every content", &leaf)?;
    put("leaf-empty", "an empty directory", &TreeObject::DirLeaf(Vec::new()))?;
    let children = vec![(b"a".to_vec(), chunk(1)), (b"a\xff".to_vec(), chunk(2)), (b"b".to_vec(), chunk(3))];
    put("dir-index", "a directory of three leaves", &TreeObject::DirIndex { level: 1, children })?;
    put(
        "extent-leaf",
        "three extents",
        &TreeObject::ExtentLeaf(vec![extent(5, 5), extent(10, 1), extent(99, 1)]),
    )?;
    let children = vec![(0, chunk(1)), (1 << 40, chunk(2))];
    put("extent-index", "an index of indexes", &TreeObject::ExtentIndex { level: 2, children })?;
    out.put("tree-ok-shortest-entry", "ok", "an entry of 15 bytes", &[], &raw_fifo(b"x", &FIFO_FIELDS))
}

pub(crate) fn trees(out: &Out) -> Outcome {
    good_trees(out)?;
    let bad = |name: &str, comment: &str, body: &[u8]| {
        out.put(&format!("tree-{name}"), "malformed", comment, &[], body)
    };
    for (name, comment, value) in [
        ("name-empty", "TREE-1: no bytes", &b""[..]),
        ("name-dot", "TREE-1", b"."),
        ("name-dot-dot", "TREE-1", b".."),
        ("name-slash", "TREE-1", b"a/b"),
        ("name-nul", "TREE-1", b"a\0"),
    ] {
        bad(name, comment, &raw_fifo(value, &FIFO_FIELDS))?;
    }
    let long = [&[1, 1, 0x80, 2][..], &[b'x'; 256], &[4], &FIFO_FIELDS].concat();
    bad("name-long", "TREE-1: 256 bytes", &long)?;
    let two = |a: &[u8], b: &[u8]| {
        let mut out = raw_fifo(a, &FIFO_FIELDS);
        out[1] = 2;
        out.extend_from_slice(&raw_fifo(b, &FIFO_FIELDS)[2..]);
        out
    };
    bad("names-descend", "TREE-2", &two(b"b", b"a"))?;
    bad("names-repeat", "TREE-2", &two(b"a", b"a"))?;
    bad("names-prefix", "TREE-2: a prefix comes first", &two(b"ab", b"a"))?;

    let wide: &[u8] = &[0x80, 0x80, 0x80, 0x80, 0x10];
    for (name, comment, at, value) in [
        ("ino-0", "TREE-3", 0, &[0][..]),
        ("mode", "TREE-3: above 0o7777", 1, &[0x80, 0x20]),
        ("uid", "TREE-3: above 32 bits", 2, wide),
        ("gid", "TREE-3: above 32 bits", 3, wide),
        ("nanos", "nanoseconds of 10^9", 5, &[0x80, 0x94, 0xeb, 0xdc, 3]),
        ("nlink", "TREE-3: above 32 bits", 10, wide),
        ("varint-long", "GEN-1: a byte too many", 0, &[0x81, 0]),
        (
            "varint-11",
            "GEN-1: more than 10 bytes",
            0,
            &[0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0],
        ),
        (
            "varint-65-bits",
            "GEN-1: more than 64 bits",
            0,
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
        ),
        ("xattr-empty", "TREE-6: no name", 11, &[1, 0, 1, 7]),
        ("xattr-nul", "TREE-6: NUL in a name", 11, &[1, 2, b'a', 0, 0]),
        ("xattrs-descend", "TREE-2", 11, &[2, 1, b'b', 0, 1, b'a', 0]),
        ("xattrs-repeat", "TREE-2", 11, &[2, 1, b'a', 0, 1, b'a', 0]),
        ("xattr-count", "GEN-3: a count that the input can't hold", 11, &[0xff, 0xff, 0xff, 0xff, 15]),
    ] {
        let fields = [&FIFO_FIELDS[..at], value, &FIFO_FIELDS[at + 1..]].concat();
        bad(name, comment, &raw_fifo(b"x", &fields))?;
    }
    let good = raw_fifo(b"x", &FIFO_FIELDS);
    bad("short", "one byte missing", &good[..good.len() - 1])?;
    bad("long", "GEN-2: one byte more", &[&good[..], &[0]].concat())?;
    bad("empty", "no bytes", b"")?;
    bad("kind", "unknown kind of object", &[5, 0])?;
    bad("count", "GEN-3: a count that the input can't hold", &[1, 0xff, 0xff, 0xff, 0xff, 15])?;
    let mut unknown = good.clone();
    unknown[4] = 8;
    bad("type", "unknown type", &unknown)?;

    // A file: the fields of the fifo, then what is given.
    let a_file = |content: &[u8]| {
        let mut out = raw_fifo(b"x", &FIFO_FIELDS);
        out[4] = 1;
        out.extend_from_slice(content);
        out
    };
    let run = |gap: u8, len: &[u8], at: u8| [&[gap][..], len, &[3; 32], &[at]].concat();
    for (name, comment, content) in [
        ("content", "unknown content", vec![0, 4]),
        ("inline-empty", "TREE-4", vec![5, 1, 0]),
        ("inline-above-size", "TREE-4", vec![1, 1, 2, 7, 7]),
        ("extents-none", "count of at least 1", vec![5, 2, 0]),
        ("extent-empty", "length of at least 1", [&[5, 2, 1][..], &run(0, &[0], 0)].concat()),
        ("extent-above-size", "TREE-4", [&[5, 2, 1][..], &run(1, &[5], 0)].concat()),
        (
            "extent-outside-chunk",
            "TREE-4: behind 8 MiB",
            [&[0xff, 0xff, 0xff, 127, 2, 1][..], &run(0, &[0x80, 0x80, 0x80, 4], 1)].concat(),
        ),
        ("size", "TREE-4: 2^63", vec![0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0]),
        (
            "extent-overflow",
            "TREE-4: offsets overflow",
            [
                &[0xff, 0xff, 0xff, 127, 2, 1][..],
                &run(1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], 0),
            ]
            .concat(),
        ),
    ] {
        bad(name, comment, &a_file(&content))?;
    }
    let big_inline = [&[0x81, 0x20, 1, 0x81, 0x20][..], &[7; 4097]].concat();
    bad("inline-long", "TREE-4: 4,097 bytes", &a_file(&big_inline))?;
    let mut link = raw_fifo(b"x", &FIFO_FIELDS);
    link[4] = 3;
    link.push(0);
    bad("symlink-empty", "a target has at least one byte", &link)?;
    link.truncate(link.len() - 1);
    link.extend([3, b'a', 0, b'b']);
    bad("symlink-nul", "a target has no NUL", &link)?;

    let child = |key: &[u8]| [key, &[9; 32]].concat();
    bad("dir-index-level-0", "level of at least 1", &[&[2, 0, 1][..], &child(&[1, b'a'])].concat())?;
    let level = |level: u8| [&[2, level, 1][..], &child(&[1, b'a'])].concat();
    out.put("tree-ok-dir-index-level-7", "ok", "TREE-5: 8 levels with the leaf's", &[], &level(7))?;
    bad("dir-index-level-8", "TREE-5: 8 levels and a leaf", &level(8))?;
    bad("dir-index-level-9", "TREE-5: at most 8 levels", &[&[2, 9, 1][..], &child(&[1, b'a'])].concat())?;
    bad("dir-index-empty", "count of at least 1", &[2, 1, 0])?;
    let twice = [child(&[1, b'a']), child(&[1, b'a'])].concat();
    bad("dir-index-repeat", "TREE-2", &[&[2, 1, 2][..], &twice].concat())?;
    bad("extent-index-level-0", "level of at least 1", &[&[4, 0, 1][..], &child(&[0])].concat())?;
    bad("extent-index-empty", "count of at least 1", &[4, 1, 0])?;
    let descend = [child(&[1]), child(&[0])].concat();
    bad("extent-index-descend", "TREE-2", &[&[4, 1, 2][..], &descend].concat())?;
    bad("extent-leaf-empty", "count of at least 1", &[3, 0, 0])?;
    bad("extent-leaf-gap", "the first gap is 0", &[&[3, 5, 1][..], &run(1, &[5], 0)].concat())
}
