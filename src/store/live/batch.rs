//! Tables, batches of changes, and how a batch is written into the journal.
//!
//! ```text
//! ops = op*
//! op  = u8 table (+ 0x80: delete)   u32 key length   key   [u32 value length   value]     little-endian
//! ```

use std::sync::Arc;

/// A value, shared between the levels of the store and its readers.
pub type Value = Arc<[u8]>;

/// How many tables there are.
pub(super) const TABLES: usize = 12;

const DELETE: u8 = 0x80;

/// The tables of the live database. What keys and values mean is the business of `store::records`.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Attributes by inode number.
    Inodes = 1,
    /// Entries by directory and name.
    Dirents = 2,
    /// Content by inode number and file offset.
    Extents = 3,
    /// Extended attributes by inode number and name.
    Xattrs = 4,
    /// Names of inodes that have several.
    Links = 5,
    /// Where each chunk is stored.
    Chunks = 6,
    /// Packs and their state.
    Packs = 7,
    /// What is known about snapshots.
    Snapshots = 8,
    /// Single values by name.
    Settings = 9,
    /// Directories that the next snapshot must write.
    DirtyDirs = 10,
    /// Tree objects of directories at the last snapshot.
    Trees = 11,
    /// Inodes without a name that were open.
    Orphans = 12,
}

impl Table {
    /// All tables, in order of their numbers.
    pub const ALL: [Table; TABLES] = [
        Table::Inodes,
        Table::Dirents,
        Table::Extents,
        Table::Xattrs,
        Table::Links,
        Table::Chunks,
        Table::Packs,
        Table::Snapshots,
        Table::Settings,
        Table::DirtyDirs,
        Table::Trees,
        Table::Orphans,
    ];

    /// Returns the table's name in the database.
    pub fn name(self) -> &'static str {
        match self {
            Table::Inodes => "inodes",
            Table::Dirents => "dirents",
            Table::Extents => "extents",
            Table::Xattrs => "xattrs",
            Table::Links => "links",
            Table::Chunks => "chunks",
            Table::Packs => "packs",
            Table::Snapshots => "snapshots",
            Table::Settings => "settings",
            Table::DirtyDirs => "dirty_dirs",
            Table::Trees => "trees",
            Table::Orphans => "orphans",
        }
    }

    pub(super) fn index(self) -> usize {
        usize::from(self as u8) - 1
    }

    fn from_number(number: u8) -> Option<Table> {
        Table::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// One change: a row that is put, or deleted (`None`).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Op {
    pub(super) table: Table,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Value>,
}

/// Changes that become visible and durable together or not at all. Later ones win over earlier ones.
#[derive(Debug, Default)]
pub struct Batch {
    ops: Vec<Op>,
    encoded_len: usize,
}

impl Batch {
    /// Returns a batch without changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a row, replacing one with the same key.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.push(Op { table, key: key.into(), value: Some(Value::from(value.into())) });
    }

    /// Deletes a row. It need not exist.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.push(Op { table, key: key.into(), value: None });
    }

    /// Tells whether there are no changes.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Returns the number of changes.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Adds the changes of another batch after those of this one.
    pub fn append(&mut self, other: Batch) {
        self.encoded_len = self.encoded_len.saturating_add(other.encoded_len);
        self.ops.extend(other.ops);
    }

    /// Returns how many bytes the batch takes in the journal. [`super::Live::apply`] refuses batches of more than
    /// [`super::LiveConfig::batch_bytes_max`].
    pub fn encoded_len(&self) -> usize {
        self.encoded_len
    }

    fn push(&mut self, op: Op) {
        self.encoded_len = self.encoded_len.saturating_add(encoded_len(&op));
        self.ops.push(op);
    }

    pub(super) fn into_ops(self) -> Vec<Op> {
        self.ops
    }

    /// Returns the encoding of the batch, which must be within `batch_bytes_max`.
    pub(crate) fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out
    }

    /// Appends the encoding of the batch, which must be within `batch_bytes_max`.
    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        out.reserve(self.encoded_len);
        for op in &self.ops {
            let delete = if op.value.is_none() { DELETE } else { 0 };
            out.push(op.table as u8 | delete);
            put_bytes(out, &op.key);
            if let Some(value) = &op.value {
                put_bytes(out, value);
            }
        }
    }
}

fn encoded_len(op: &Op) -> usize {
    op.value.as_ref().map_or(0, |v| v.len().saturating_add(4)).saturating_add(op.key.len()).saturating_add(5)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("a batch within its limit has no longer keys or values");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Decodes operations one by one. Ends with `Err` at the first malformed one.
pub(super) struct Ops<'a>(pub(super) &'a [u8]);

impl Ops<'_> {
    fn bytes(&mut self) -> Option<&[u8]> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
        let (bytes, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn op(&mut self) -> Option<Op> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        let table = Table::from_number(first & !DELETE)?;
        let key = self.bytes()?.to_vec();
        let value = if first & DELETE == 0 { Some(Value::from(self.bytes()?)) } else { None };
        Some(Op { table, key, value })
    }
}

/// The bytes are no sequence of operations.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadOps;

impl Iterator for Ops<'_> {
    type Item = Result<Op, BadOps>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let op = self.op().ok_or(BadOps);
        if op.is_err() {
            self.0 = &[];
        }
        Some(op)
    }
}

/// Body of a fuzz target: operations that are read are written with the same bytes.
pub(super) fn fuzz(data: &[u8]) {
    let ops: Result<Vec<Op>, BadOps> = Ops(data).collect();
    if let Ok(ops) = ops {
        let mut batch = Batch::new();
        ops.into_iter().for_each(|op| batch.push(op));
        assert_eq!(batch.encoded(), data);
        assert_eq!(batch.encoded_len(), data.len());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> Batch {
        let mut batch = Batch::new();
        batch.put(Table::Inodes, *b"key", *b"value");
        batch.delete(Table::Orphans, *b"gone");
        batch.put(Table::Settings, *b"", *b"");
        batch
    }

    #[test]
    fn batches_survive_the_journal() {
        let mut bytes = Vec::new();
        let batch = sample();
        batch.encode_into(&mut bytes);
        assert_eq!(bytes.len(), batch.encoded_len());
        let back: Vec<Op> = Ops(&bytes).map(Result::unwrap).collect();
        assert_eq!(back, batch.into_ops());
    }

    #[test]
    fn broken_operations_are_refused() {
        let mut bytes = Vec::new();
        sample().encode_into(&mut bytes);
        let whole: Vec<usize> = {
            let mut ends = vec![0];
            let mut ops = Ops(&bytes);
            while ops.next().is_some() {
                ends.push(bytes.len() - ops.0.len());
            }
            ends
        };
        for cut in 0..bytes.len() {
            let result: Result<Vec<Op>, BadOps> = Ops(&bytes[..cut]).collect();
            assert_eq!(result.is_ok(), whole.contains(&cut), "cut at {cut}");
        }
        for table in [0, 13, 0x80, 0x8d, 0xff] {
            let mut bad = bytes.clone();
            bad[0] = table;
            assert!(Ops(&bad).any(|op| op.is_err()), "table {table}");
        }
        let mut long = vec![1];
        long.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(Ops(&long).next().unwrap().is_err());
    }

    #[test]
    fn tables_have_their_numbers() {
        for (i, table) in Table::ALL.into_iter().enumerate() {
            assert_eq!(table.index(), i);
            assert_eq!(Table::from_number(table as u8), Some(table));
        }
        assert_eq!(Table::Orphans as u8, 12);
    }
}
