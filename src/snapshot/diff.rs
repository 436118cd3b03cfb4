//! Compares two trees, reading only where they differ: a directory whose object is the same is the same.
//!
//! Both trees are merged in name order, so memory follows their depth. Access times and change times are not
//! compared: reading a file, or putting it back, changes them without changing anything that a backup is for.

use std::cmp::Ordering;

use crate::format::{Content, Entry, FileType};
use crate::store::error::{Result, StoreError};

use super::tree::{DEPTH_MAX, DirIter, TreeReader};

/// Files up to this size whose content is recorded in different ways are compared byte by byte.
const COMPARE_BYTES_MAX: u64 = 1 << 20;

/// What differs between two entries of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct What {
    /// One is another kind of file than the other.
    pub kind: bool,
    /// The bytes, a link's target, or a device's numbers.
    pub content: bool,
    /// Permission bits.
    pub mode: bool,
    /// Owner or group.
    pub owner: bool,
    /// Time of the last change of the content.
    pub mtime: bool,
    /// Extended attributes, ACLs among them.
    pub xattrs: bool,
}

impl What {
    /// Returns whether anything differs.
    pub fn any(&self) -> bool {
        *self != What::default()
    }
}

/// How an entry changed from the first tree to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Only the second tree has it.
    Added,
    /// Only the first tree has it.
    Removed,
    /// Both have it, and it differs.
    Modified(What),
}

/// One difference.
#[derive(Clone, Debug)]
pub struct DiffItem {
    /// Names from below the root, joined by `/`; empty for the root itself.
    pub path: Vec<u8>,
    /// How it changed.
    pub change: Change,
    /// The entry in the first tree.
    pub old: Option<Entry>,
    /// The entry in the second tree.
    pub new: Option<Entry>,
}

/// How many entries changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DiffStats {
    /// Only in the second tree.
    pub added: u64,
    /// Only in the first tree.
    pub removed: u64,
    /// In both, and different.
    pub modified: u64,
}

/// One directory on one side of a merge.
struct Side<'r> {
    iter: Option<DirIter<'r>>,
    next: Option<Entry>,
}

impl<'r> Side<'r> {
    fn open(reader: &'r TreeReader<'r>, entry: Option<&Entry>) -> Result<Side<'r>> {
        let iter = match entry.map(|e| &e.content) {
            Some(Content::Dir(dir)) => Some(reader.entries(dir, None)?),
            _ => None,
        };
        let mut side = Side { iter, next: None };
        side.advance()?;
        Ok(side)
    }

    fn advance(&mut self) -> Result<Option<Entry>> {
        let next = match &mut self.iter {
            Some(iter) => iter.next_entry()?,
            None => None,
        };
        Ok(std::mem::replace(&mut self.next, next))
    }
}

struct Frame<'r> {
    old: Side<'r>,
    new: Side<'r>,
    path_len: usize,
}

/// Calls `each` with every difference between the trees below `old` and `new`, parents before children, names
/// in order. Stops at the first error, its own or that of `each`.
pub fn diff<'r>(
    old_reader: &'r TreeReader<'r>,
    old: &Entry,
    new_reader: &'r TreeReader<'r>,
    new: &Entry,
    each: &mut dyn FnMut(DiffItem) -> Result<()>,
) -> Result<DiffStats> {
    let mut stats = DiffStats::default();
    let mut path: Vec<u8> = Vec::new();
    let mut stack: Vec<Frame<'r>> = Vec::new();
    let mut pair = Some((Some(old.clone()), Some(new.clone())));
    loop {
        if let Some((old, new)) = pair.take() {
            let same_dir = matches!(
                (old.as_ref().map(|e| &e.content), new.as_ref().map(|e| &e.content)),
                (Some(Content::Dir(a)), Some(Content::Dir(b))) if a == b
            );
            let change = match (&old, &new) {
                (Some(_), None) => Some(Change::Removed),
                (None, Some(_)) => Some(Change::Added),
                (Some(a), Some(b)) => {
                    let what = compare(old_reader, a, new_reader, b)?;
                    what.any().then_some(Change::Modified(what))
                }
                (None, None) => None,
            };
            // Entries with one name of which only one is a directory: what was or is below it changed as
            // well.
            if !same_dir && [&old, &new].iter().any(|e| e.as_ref().is_some_and(|e| e.kind == FileType::Dir)) {
                if stack.len() > DEPTH_MAX {
                    return Err(StoreError::Corrupt("directories nest too deep (TREE-5)".into()));
                }
                stack.push(Frame {
                    old: Side::open(old_reader, old.as_ref())?,
                    new: Side::open(new_reader, new.as_ref())?,
                    path_len: path.len(),
                });
            }
            if let Some(change) = change {
                match change {
                    Change::Added => stats.added += 1,
                    Change::Removed => stats.removed += 1,
                    Change::Modified(_) => stats.modified += 1,
                }
                each(DiffItem { path: path.clone(), change, old, new })?;
            }
        }
        let Some(frame) = stack.last_mut() else { return Ok(stats) };
        path.truncate(frame.path_len);
        let order = match (&frame.old.next, &frame.new.next) {
            (Some(a), Some(b)) => a.name.cmp(&b.name),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => {
                stack.pop();
                continue;
            }
        };
        let a = if order.is_le() { frame.old.advance()? } else { None };
        let b = if order.is_ge() { frame.new.advance()? } else { None };
        if !path.is_empty() {
            path.push(b'/');
        }
        if let Some(entry) = a.as_ref().or(b.as_ref()) {
            path.extend_from_slice(&entry.name);
        }
        pair = Some((a, b));
    }
}

fn compare(old_reader: &TreeReader<'_>, a: &Entry, new_reader: &TreeReader<'_>, b: &Entry) -> Result<What> {
    let kind = a.kind != b.kind;
    Ok(What {
        kind,
        content: !kind && a.kind != FileType::Dir && content_differs(old_reader, a, new_reader, b)?,
        mode: a.mode != b.mode,
        owner: (a.uid, a.gid) != (b.uid, b.gid),
        mtime: a.mtime != b.mtime,
        xattrs: a.xattrs != b.xattrs,
    })
}

fn content_differs(
    old_reader: &TreeReader<'_>,
    a: &Entry,
    new_reader: &TreeReader<'_>,
    b: &Entry,
) -> Result<bool> {
    if a.size != b.size {
        return Ok(true);
    }
    if a.content == b.content {
        return Ok(false);
    }
    let mapped = |e: &Entry| matches!(e.content, Content::Extents(_) | Content::ExtentTree(_));
    if mapped(a) && mapped(b) {
        let mut old = old_reader.extents(&a.content, a.size, 0)?;
        let mut new = new_reader.extents(&b.content, b.size, 0)?;
        loop {
            match (old.next_extent()?, new.next_extent()?) {
                (None, None) => return Ok(false),
                (x, y) if x == y => {}
                _ => break,
            }
        }
    }
    // The same bytes may stand inline in one tree and in chunks in the other, or be cut in other places.
    if a.kind != FileType::File || a.size > COMPARE_BYTES_MAX {
        return Ok(true);
    }
    // At most COMPARE_BYTES_MAX.
    let (mut old, mut new) = (vec![0; a.size as usize], vec![0; a.size as usize]);
    old_reader.read(&a.content, a.size, 0, &mut old)?;
    new_reader.read(&b.content, b.size, 0, &mut new)?;
    Ok(old != new)
}
