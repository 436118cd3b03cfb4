//! Small valid structures that the tests of this module and of `crypto` start from, and helpers that break
//! them.
#![allow(clippy::unwrap_used)]

use super::chain::{Origin, PackList, PublicPart, RemovedFile, RootInfo, SealedPart};
use super::*;
use crate::env::Time;

pub(crate) const CREATED: &str = "2026-11-21T02:00:00Z";

pub(crate) fn chunk(n: u8) -> ChunkId {
    ChunkId([n; 32])
}

pub(crate) fn pack(n: u8) -> PackName {
    PackName([n; 32])
}

pub(crate) fn snapshot(n: u8) -> SnapshotId {
    SnapshotId([n; 32])
}

/// A header with one slot of each kind. Its keys are no keys.
pub(crate) fn header() -> Header {
    let slot = |id: u32, kind, kdf| Slot {
        id,
        kind,
        label: format!("slot \"{id}\" \u{e9}"),
        created: CREATED.to_owned(),
        kdf,
        nonce: [id as u8; 24],
        wrapped: [id as u8 + 100; 48],
    };
    Header {
        vault_id: VaultId([7; 16]),
        created: CREATED.to_owned(),
        generation: 3,
        cipher: Cipher::ChaCha20Poly1305,
        public_key: (0..1216u32).map(|i| i as u8).collect(),
        signing_key: [8; 32],
        ingest_signing_key: [9; 32],
        chunker: ChunkerParams::default(),
        slots: vec![
            slot(1, SlotKind::Passphrase, SlotKdf::Argon2id { m_kib: 65_536, t: 3, p: 1, salt: [1; 32] }),
            slot(2, SlotKind::Keyfile, SlotKdf::Blake3 { salt: [2; 32] }),
            slot(5, SlotKind::Recovery, SlotKdf::Blake3 { salt: [3; 32] }),
        ],
    }
}

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

pub(crate) fn file(name: &str, size: u64, content: Content) -> Entry {
    Entry { size, ..entry(name, FileType::File, content) }
}

pub(crate) fn extents() -> Vec<Extent> {
    vec![
        Extent { offset: 10, len: 1, chunk: chunk(1), chunk_offset: 0 },
        Extent { offset: 11, len: 200, chunk: chunk(2), chunk_offset: 300 },
        Extent { offset: 100_000, len: 8 << 20, chunk: chunk(1), chunk_offset: 0 },
    ]
}

/// A leaf with every type and every content, names ascending.
pub(crate) fn dir_leaf() -> TreeObject {
    TreeObject::DirLeaf(vec![
        file("a", 0, Content::Empty),
        file("b", 1 << 40, Content::Empty),
        Entry {
            xattrs: vec![(b"user.a".to_vec(), vec![]), (b"user.b".to_vec(), vec![0; 300])],
            ..file("c", 4, Content::Inline(b"abc\0".to_vec()))
        },
        file("d", 100_000 + (8 << 20), Content::Extents(extents())),
        file("e", 5 << 30, Content::ExtentTree(chunk(4))),
        entry("f", FileType::Dir, Content::Dir(chunk(5))),
        entry("g", FileType::Symlink, Content::Symlink(b"../x".to_vec())),
        entry("h", FileType::CharDev, Content::Device { major: 1, minor: u32::MAX }),
        entry("i", FileType::BlockDev, Content::Device { major: 8, minor: 0 }),
        entry("j", FileType::Fifo, Content::None),
        entry("k", FileType::Socket, Content::None),
    ])
}

pub(crate) fn tree_objects() -> Vec<TreeObject> {
    vec![
        TreeObject::DirLeaf(Vec::new()),
        dir_leaf(),
        TreeObject::DirIndex {
            level: 1,
            children: vec![(b"a".to_vec(), chunk(1)), (b"ab".to_vec(), chunk(2))],
        },
        TreeObject::ExtentLeaf(extents()),
        TreeObject::ExtentIndex { level: 7, children: vec![(0, chunk(1)), (1 << 50, chunk(2))] },
    ]
}

pub(crate) fn root_entry() -> Entry {
    Entry { mode: 0o755, nlink: 2, ..entry("", FileType::Dir, Content::Dir(chunk(6))) }
}

pub(crate) fn first_snapshot() -> PublicPart {
    PublicPart {
        vault_id: VaultId([7; 16]),
        seq: 1,
        predecessor: None,
        time: Time { secs: 1_795_226_400, nanos: 5 },
        origin: Origin::WorkingTree,
        packs: PackList { full: true, added: vec![pack(1), pack(2), pack(4)], dropped: vec![] },
        removed: vec![],
        retired: vec![],
        replacements: vec![],
    }
}

pub(crate) fn removal() -> PublicPart {
    PublicPart {
        seq: 3,
        predecessor: Some(snapshot(2)),
        origin: Origin::Removal,
        packs: PackList { full: false, added: vec![pack(3)], dropped: vec![pack(1), pack(2)] },
        removed: vec![RemovedFile {
            seq: 1,
            id: snapshot(1),
            predecessor: SnapshotId([0; 32]),
            packs: first_snapshot().packs,
        }],
        retired: vec![pack(1), pack(2)],
        replacements: vec![pack(3)],
        ..first_snapshot()
    }
}

pub(crate) fn sealed_snapshot() -> SealedPart {
    SealedPart {
        host: "db1.example".to_owned(),
        tags: vec!["nightly".to_owned(), "\u{e9}t\u{e9}".to_owned()],
        program: "strongroom 0.1.0".to_owned(),
        root: Some(RootInfo {
            entry: root_entry(),
            next_ino: 12,
            files: 5,
            dirs: 1,
            others: 5,
            bytes: 1 << 41,
        }),
    }
}

pub(crate) fn sealed_removal() -> SealedPart {
    SealedPart { host: String::new(), tags: vec![], program: "strongroom 0.1.0".to_owned(), root: None }
}

pub(crate) fn pack_header() -> PackHeader {
    PackHeader {
        kind: PackKind::Data,
        cipher: Cipher::Aes256Gcm,
        vault_id: VaultId([7; 16]),
        uid: PackUid([6; 16]),
        kem_ciphertext: (0..1120u32).map(|i| (i * 7) as u8).collect(),
    }
}

/// Three chunks: one block, a full and a short block, and a single byte.
pub(crate) fn footer() -> Footer {
    let block = |codec, body_len| BlockDesc { codec, body_len };
    Footer {
        chunks: vec![
            ChunkDesc {
                id: chunk(1),
                offset: 1168,
                first_frame: 0,
                plain_len: 1000,
                blocks: vec![block(Codec::Lz4, 500)],
            },
            ChunkDesc {
                id: chunk(2),
                offset: 1168 + 516,
                first_frame: 1,
                plain_len: 131_073,
                blocks: vec![block(Codec::Zstd, 131_072), block(Codec::Raw, 1)],
            },
            ChunkDesc {
                id: chunk(1),
                offset: 1168 + 516 + 131_088 + 17,
                first_frame: 3,
                plain_len: 1,
                blocks: vec![block(Codec::Raw, 1)],
            },
        ],
    }
}

pub(crate) const FOOTER_OFFSET: u64 = 1168 + 516 + 131_088 + 17 + 17;

/// Calls `check` with every proper prefix of `bytes`.
pub(crate) fn each_truncation(bytes: &[u8], mut check: impl FnMut(&[u8])) {
    for n in 0..bytes.len() {
        check(&bytes[..n]);
    }
}

/// Calls `check` with `bytes` with each of its bits flipped in turn.
pub(crate) fn each_bit_flip(bytes: &[u8], mut check: impl FnMut(&[u8])) {
    let mut copy = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        copy[bit / 8] ^= 1 << (bit % 8);
        check(&copy);
        copy[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Asserts that `result` is a malformed structure and that the message begins with `rule`.
#[track_caller]
pub(crate) fn assert_malformed<T: std::fmt::Debug>(result: Result<T, FormatError>, rule: &str) {
    match result {
        Err(FormatError::Malformed(message)) => {
            assert!(message.starts_with(rule), "{message:?} is not {rule:?}")
        }
        other => panic!("expected {rule:?}, got {other:?}"),
    }
}
