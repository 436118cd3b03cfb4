//! Rows of the live database as snapshots use them: scans in pages, and the values that only this module
//! writes.

use crate::format::ChunkId;
use crate::store::error::{Result, StoreError};
use crate::store::live::{LiveView, Table};

/// Rows that are in memory at a time during a scan.
const PAGE_ROWS: usize = 512;

/// Takes a row's key and value; false ends the scan.
pub(crate) type Each<'a> = dyn FnMut(&[u8], &[u8]) -> Result<bool> + 'a;

/// Calls `each` with every row in `from <= key < to`, ascending, until it returns false.
pub(crate) fn scan(
    view: &LiveView,
    table: Table,
    from: &[u8],
    to: Option<&[u8]>,
    each: &mut Each<'_>,
) -> Result<()> {
    let mut from = from.to_vec();
    loop {
        let page = view.range(table, &from, to, PAGE_ROWS)?;
        for (key, value) in &page {
            if !each(key, value)? {
                return Ok(());
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE_ROWS => {
                // The smallest key after the last one.
                from.clone_from(last);
                from.push(0);
            }
            _ => return Ok(()),
        }
    }
}

/// What a tree holds below a directory, which itself is not counted. A file with several names counts at
/// each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Everything else.
    pub others: u64,
    /// Sizes of the files, holes included.
    pub bytes: u64,
}

impl Counts {
    /// Adds what another subtree holds.
    pub fn add(&mut self, other: &Counts) {
        self.files = self.files.saturating_add(other.files);
        self.dirs = self.dirs.saturating_add(other.dirs);
        self.others = self.others.saturating_add(other.others);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    /// Adds one entry, without what is below it.
    pub fn add_entry(&mut self, entry: &crate::format::Entry) {
        use crate::format::FileType;
        match entry.kind {
            FileType::File => {
                self.files = self.files.saturating_add(1);
                self.bytes = self.bytes.saturating_add(entry.size);
            }
            FileType::Dir => self.dirs = self.dirs.saturating_add(1),
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharDev
            | FileType::BlockDev => {
                self.others = self.others.saturating_add(1);
            }
        }
    }
}

/// Value of a Trees row: the directory's object, and what is below it if that is known. Loading a directory
/// from a snapshot writes the id alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TreeRow {
    pub(crate) id: ChunkId,
    pub(crate) counts: Option<Counts>,
}

impl TreeRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.id.as_bytes().to_vec();
        if let Some(counts) = &self.counts {
            for n in [counts.files, counts.dirs, counts.others, counts.bytes] {
                out.extend_from_slice(&n.to_le_bytes());
            }
        }
        out
    }

    pub(crate) fn decode(value: &[u8]) -> Result<TreeRow> {
        let bad = || StoreError::Corrupt("live database: bad tree row".into());
        let (id, rest) = value.split_first_chunk::<32>().ok_or_else(bad)?;
        let counts = match rest.len() {
            0 => None,
            32 => {
                let (words, _) = rest.as_chunks::<8>();
                let n = |i: usize| u64::from_le_bytes(words[i]);
                Some(Counts { files: n(0), dirs: n(1), others: n(2), bytes: n(3) })
            }
            _ => return Err(bad()),
        };
        Ok(TreeRow { id: ChunkId(*id), counts })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tree_rows_with_and_without_counts() {
        let id = ChunkId([7; 32]);
        let counts = Some(Counts { files: 1, dirs: 2, others: 3, bytes: u64::MAX });
        for row in [TreeRow { id, counts: None }, TreeRow { id, counts }] {
            assert_eq!(TreeRow::decode(&row.encode()).unwrap(), row);
        }
        for len in [0, 31, 33, 63, 65] {
            assert!(TreeRow::decode(&vec![1; len]).is_err(), "{len}");
        }
    }
}
