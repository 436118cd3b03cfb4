//! Bodies of the fuzz targets of local state, whose decoders are private to their modules, and inputs to start from.
//! Each takes hostile bytes and panics if a decoder accepts what its encoder would not write, or makes something else
//! of them than a simple reader.

use crate::env::Time;
use crate::format::ids::ChunkId;
use crate::format::tree::FileType;

use super::live::{Batch, Table};
use super::records::{DirentRow, ExtentRow, InodeRow};
use super::{blockfile, live, packs, records};

/// Rows of the live database.
pub fn fuzz_rows(data: &[u8]) {
    records::fuzz(data);
    packs::fuzz_rows(data);
}

/// The journal: its segments, its records, and the operations in them.
pub fn fuzz_journal(data: &[u8]) {
    live::fuzz(data);
}

/// The block file's log: the file, and the records in it.
pub fn fuzz_block_log(data: &[u8]) {
    blockfile::fuzz(data);
}

/// Inputs for [`fuzz_rows`] that decode.
#[must_use]
pub fn row_seeds() -> Vec<Vec<u8>> {
    let time = Time { secs: 1_795_226_400, nanos: 1 };
    let row = |kind| InodeRow::new(kind, 0o644, 1, 2, records::ROOT_INO, time);
    let id = ChunkId([7; 32]);
    let mut seeds = vec![
        row(FileType::File).encode(),
        InodeRow { lazy: Some(id), has_xattrs: true, ..row(FileType::Dir) }.encode(),
        InodeRow { lazy_extents: Some(id), size: 5 << 30, ..row(FileType::File) }.encode(),
        InodeRow { target: b"../x".to_vec(), size: 4, ..row(FileType::Symlink) }.encode(),
        InodeRow { rdev: (8, 1), ..row(FileType::BlockDev) }.encode(),
        DirentRow { ino: 9, kind: FileType::Fifo }.encode().to_vec(),
        ExtentRow::Chunk { len: 100, chunk: id, chunk_offset: 5 }.encode(),
        ExtentRow::Inline(b"inline".to_vec()).encode(),
        records::links_key(9, 8, b"name"),
        records::extent_key(9, 77).to_vec(),
    ];
    seeds.extend(packs::row_seeds());
    seeds
}

/// Inputs for [`fuzz_journal`]: operations, and groups of one and of two records that hold them.
#[must_use]
pub fn journal_seeds() -> Vec<Vec<u8>> {
    let mut batch = Batch::new();
    batch.put(Table::Inodes, *b"key", *b"value");
    batch.delete(Table::Orphans, *b"gone");
    let ops = batch.encoded();
    let record =
        |last: u8, ops: &[u8]| sized(&[&[last][..], &3u64.to_le_bytes(), &4u64.to_le_bytes(), ops].concat());
    let (first, second) = ops.split_at(ops.len() / 2);
    vec![record(1, &ops), [record(0, first), record(1, second), record(1, &ops)].concat(), ops]
}

/// Inputs for [`fuzz_block_log`]: a record of each kind, and a log of both.
#[must_use]
pub fn block_log_seeds() -> Vec<Vec<u8>> {
    let (full, delta) = blockfile::fuzz_seeds();
    vec![[sized(&full), sized(&delta)].concat(), full, delta]
}

fn sized(record: &[u8]) -> Vec<u8> {
    // Seeds are a few hundred bytes long.
    [&(record.len() as u16).to_le_bytes()[..], record].concat()
}
