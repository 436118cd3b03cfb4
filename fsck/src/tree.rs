//! Tree objects: section 6 of docs/format.md. Rules that need more than one object are kept in `walk`.

use crate::bytes::{Id, Reader};
use crate::report::{Fault, malformed};

/// Most levels above a leaf: 8 with the leaf's own (TREE-5).
pub const LEVEL_MAX: u8 = 7;
/// Most directories inside each other (TREE-5).
pub const DEPTH_MAX: u32 = 4096;
const NAME_BYTES_MAX: usize = 255;
const INLINE_BYTES_MAX: usize = 4096;
const TARGET_BYTES_MAX: usize = 4095;
const XATTR_VALUE_BYTES_MAX: usize = 65_536;
const XATTR_BYTES_MAX: usize = 1 << 20;
/// One more than the largest size of a file.
const SIZE_LIMIT: u64 = 1 << 63;

/// A decoded tree object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// Entries of a directory.
    DirLeaf(Vec<Entry>),
    /// A level above directory leaves: first names and children.
    DirIndex(u8, Vec<(Vec<u8>, Id)>),
    /// Extents of a file, with their absolute offsets.
    ExtentLeaf(Vec<Extent>),
    /// A level above extent leaves: first offsets and children.
    ExtentIndex(u8, Vec<(u64, Id)>),
}

/// A time stamp: seconds since 1970 and nanoseconds.
pub type Time = (i64, u32);

/// An extended attribute: name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// A directory entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its name; empty for a snapshot's root only.
    pub name: Vec<u8>,
    /// Inode number.
    pub ino: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// Link count.
    pub nlink: u32,
    /// Extended attributes, by ascending name.
    pub xattrs: Vec<Xattr>,
    /// What it is.
    pub node: Node,
}

/// What an entry is, with what only such an entry has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Node {
    /// A regular file and its size.
    File(u64, Content),
    /// A directory and its object.
    Directory(Id),
    /// A symlink and its target.
    Symlink(Vec<u8>),
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
    /// A character device: major, minor.
    CharDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
}

impl Node {
    /// The type byte.
    pub fn kind(&self) -> u8 {
        match self {
            Self::File(..) => 1,
            Self::Directory(_) => 2,
            Self::Symlink(_) => 3,
            Self::Fifo => 4,
            Self::Socket => 5,
            Self::CharDevice(..) => 6,
            Self::BlockDevice(..) => 7,
        }
    }
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Content {
    /// Only holes.
    Holes,
    /// Bytes at offset 0, then a hole.
    Inline(Vec<u8>),
    /// Extents in the entry itself.
    Extents(Vec<Extent>),
    /// An extent object.
    Object(Id),
}

/// A part of a file that a data chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Offset in the file.
    pub at: u64,
    /// Bytes.
    pub bytes: u64,
    /// The data chunk.
    pub chunk: Id,
    /// Offset in the chunk.
    pub chunk_at: u64,
}

impl Extent {
    /// Offset of the first byte after it. `at + bytes` was checked when it was decoded.
    pub fn end(&self) -> u64 {
        self.at + self.bytes
    }
}

/// Decodes one tree object.
pub fn parse_object(plain: &[u8]) -> Result<Object, Fault> {
    let mut r = Reader::new(plain, "tree object");
    let object = match r.u8()? {
        1 => Object::DirLeaf(dir_leaf(&mut r)?),
        2 => {
            let level = level(&mut r)?;
            Object::DirIndex(level, dir_index(&mut r)?)
        }
        3 => {
            let first = r.varint()?;
            let extents = extents(&mut r, first, true)?;
            Object::ExtentLeaf(extents)
        }
        4 => {
            let level = level(&mut r)?;
            Object::ExtentIndex(level, extent_index(&mut r)?)
        }
        other => return Err(malformed("", format!("tree object of kind {other}"))),
    };
    r.finish()?;
    Ok(object)
}

fn level(r: &mut Reader<'_>) -> Result<u8, Fault> {
    match r.u8()? {
        level @ 1..=LEVEL_MAX => Ok(level),
        level => Err(malformed("TREE-5", format!("index of level {level}"))),
    }
}

fn dir_leaf(r: &mut Reader<'_>) -> Result<Vec<Entry>, Fault> {
    let count = r.varint()?;
    // The smallest entry, a fifo, takes 15 bytes.
    let count = r.fits(count, 15)?;
    // An entry in memory is larger than its bytes: grow as they come, not by the count alone.
    let mut entries: Vec<Entry> = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        let entry = parse_entry(r, false)?;
        if entries.last().is_some_and(|last| last.name >= entry.name) {
            return Err(malformed("TREE-2", "names of a directory are not in ascending order"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn dir_index(r: &mut Reader<'_>) -> Result<Vec<(Vec<u8>, Id)>, Fault> {
    let count = r.varint()?;
    let count = at_least_one(r.fits(count, 34)?)?;
    let mut children: Vec<(Vec<u8>, Id)> = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        let name = name(r)?;
        if children.last().is_some_and(|(last, _)| *last >= name) {
            return Err(malformed("TREE-2", "first names of an index are not in ascending order"));
        }
        children.push((name, r.array()?));
    }
    Ok(children)
}

fn extent_index(r: &mut Reader<'_>) -> Result<Vec<(u64, Id)>, Fault> {
    let count = r.varint()?;
    let count = at_least_one(r.fits(count, 33)?)?;
    let mut children: Vec<(u64, Id)> = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        let first = r.varint()?;
        if children.last().is_some_and(|(last, _)| *last >= first) {
            return Err(malformed("TREE-2", "first offsets of an index are not in ascending order"));
        }
        if first >= SIZE_LIMIT - 1 {
            return Err(malformed("TREE-4", "an index has an offset that no file has"));
        }
        children.push((first, r.array()?));
    }
    Ok(children)
}

fn at_least_one(count: usize) -> Result<usize, Fault> {
    if count == 0 { Err(malformed("GEN-3", "a count of 0 where one element is needed")) } else { Ok(count) }
}

/// Decodes `varint count >= 1 || extent...` that start at `at`; in a leaf the first gap is 0.
fn extents(r: &mut Reader<'_>, mut at: u64, leaf: bool) -> Result<Vec<Extent>, Fault> {
    let count = r.varint()?;
    let count = at_least_one(r.fits(count, 35)?)?;
    let mut extents = Vec::with_capacity(count.min(1024));
    for n in 0..count {
        let (gap, bytes) = (r.varint()?, r.varint()?);
        let chunk = r.array()?;
        let chunk_at = r.varint()?;
        if bytes == 0 {
            return Err(malformed("TREE-4", "an extent of 0 bytes"));
        }
        if leaf && n == 0 && gap != 0 {
            return Err(malformed("TREE-4", "the first gap of an extent leaf is not 0"));
        }
        let start = at.checked_add(gap);
        let end = start.and_then(|start| start.checked_add(bytes)).filter(|&end| end < SIZE_LIMIT);
        let (Some(start), Some(end)) = (start, end) else {
            return Err(malformed("TREE-4", "an extent ends above 2^63 - 1"));
        };
        if chunk_at.checked_add(bytes).is_none_or(|end| end > u64::from(crate::pack::CHUNK_BYTES_MAX)) {
            return Err(malformed("TREE-4", "an extent reaches beyond the largest chunk"));
        }
        extents.push(Extent { at: start, bytes, chunk, chunk_at });
        at = end;
    }
    Ok(extents)
}

fn name(r: &mut Reader<'_>) -> Result<Vec<u8>, Fault> {
    let name = r.counted(NAME_BYTES_MAX, "TREE-1")?;
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| matches!(b, 0 | b'/')) {
        return Err(malformed("TREE-1", "a name that no file may have"));
    }
    Ok(name.to_vec())
}

fn time(r: &mut Reader<'_>) -> Result<Time, Fault> {
    let seconds = r.zigzag()?;
    match u32::try_from(r.varint()?) {
        Ok(nanoseconds) if nanoseconds < 1_000_000_000 => Ok((seconds, nanoseconds)),
        _ => Err(malformed("TREE-3", "a time with a second or more in its nanoseconds")),
    }
}

/// Decodes an entry; `root` is the one in a snapshot, which has no name and is a directory.
pub fn parse_entry(r: &mut Reader<'_>, root: bool) -> Result<Entry, Fault> {
    let name = if root {
        if !r.counted(0, "TREE-1")?.is_empty() {
            return Err(malformed("TREE-1", "the root has a name"));
        }
        Vec::new()
    } else {
        name(r)?
    };
    let kind = r.u8()?;
    if root && kind != 2 {
        return Err(malformed("", "the root is no directory"));
    }
    let ino = r.varint()?;
    if ino == 0 {
        return Err(malformed("TREE-3", "inode number 0"));
    }
    let mode = r.varint32("TREE-3")?;
    if mode > 0o7777 {
        return Err(malformed("TREE-3", format!("mode {mode:o}")));
    }
    let (uid, gid) = (r.varint32("TREE-3")?, r.varint32("TREE-3")?);
    let (atime, mtime, ctime) = (time(r)?, time(r)?, time(r)?);
    let nlink = r.varint32("TREE-3")?;
    let xattrs = xattrs(r)?;
    let node = node(r, kind)?;
    Ok(Entry { name, ino, mode, uid, gid, atime, mtime, ctime, nlink, xattrs, node })
}

fn xattrs(r: &mut Reader<'_>) -> Result<Vec<Xattr>, Fault> {
    let count = r.varint()?;
    let count = r.fits(count, 3)?;
    let mut xattrs: Vec<Xattr> = Vec::with_capacity(count.min(16));
    let mut total = 0usize;
    for _ in 0..count {
        let name = r.counted(255, "TREE-6")?;
        if name.is_empty() || name.contains(&0) {
            return Err(malformed("TREE-6", "an attribute name that none may have"));
        }
        if xattrs.last().is_some_and(|(last, _)| last.as_slice() >= name) {
            return Err(malformed("TREE-2", "attribute names are not in ascending order"));
        }
        let value = r.counted(XATTR_VALUE_BYTES_MAX, "TREE-6")?;
        total += name.len() + value.len();
        if total > XATTR_BYTES_MAX {
            return Err(malformed("TREE-6", "more than 1 MiB of extended attributes"));
        }
        xattrs.push((name.to_vec(), value.to_vec()));
    }
    Ok(xattrs)
}

fn node(r: &mut Reader<'_>, kind: u8) -> Result<Node, Fault> {
    Ok(match kind {
        1 => {
            let size = r.varint()?;
            if size >= SIZE_LIMIT {
                return Err(malformed("TREE-4", "a file above 2^63 - 1 bytes"));
            }
            Node::File(size, content(r, size)?)
        }
        2 => Node::Directory(r.array()?),
        3 => {
            let target = r.counted(TARGET_BYTES_MAX, "")?;
            if target.is_empty() || target.contains(&0) {
                return Err(malformed("", "a symlink target that none may have"));
            }
            Node::Symlink(target.to_vec())
        }
        4 => Node::Fifo,
        5 => Node::Socket,
        6 => Node::CharDevice(r.varint32("TREE-3")?, r.varint32("TREE-3")?),
        7 => Node::BlockDevice(r.varint32("TREE-3")?, r.varint32("TREE-3")?),
        other => return Err(malformed("", format!("entry of type {other}"))),
    })
}

fn content(r: &mut Reader<'_>, size: u64) -> Result<Content, Fault> {
    Ok(match r.u8()? {
        0 => Content::Holes,
        1 => {
            let bytes = r.counted(INLINE_BYTES_MAX, "TREE-4")?;
            if bytes.is_empty() || bytes.len() as u64 > size {
                return Err(malformed("TREE-4", "inline content of no bytes, or more than the size"));
            }
            Content::Inline(bytes.to_vec())
        }
        2 => {
            let extents = extents(r, 0, false)?;
            if extents.last().is_some_and(|last| last.end() > size) {
                return Err(malformed("TREE-4", "an extent reaches beyond the file's size"));
            }
            Content::Extents(extents)
        }
        3 => Content::Object(r.array()?),
        other => return Err(malformed("TREE-4", format!("content of kind {other}"))),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rule(bytes: &[u8]) -> &'static str {
        parse_object(bytes).map_or_else(|f| f.rule, |_| "ok")
    }

    /// An entry up to and without its content: no xattrs, all times 0.
    fn entry(name: &[u8], kind: u8) -> Vec<u8> {
        let mut out = vec![name.len() as u8];
        out.extend_from_slice(name);
        out.extend_from_slice(&[kind, 1, 0xff, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        out
    }

    fn leaf(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![1, entries.len() as u8];
        out.extend(entries.concat());
        out
    }

    #[test]
    fn directories() {
        assert_eq!(rule(&[1, 0]), "ok");
        assert_eq!(rule(&leaf(&[entry(b"a", 4), entry(b"b", 5)])), "ok");
        assert_eq!(rule(&leaf(&[entry(b"b", 4), entry(b"a", 5)])), "TREE-2");
        assert_eq!(rule(&leaf(&[entry(b"a", 4), entry(b"a", 5)])), "TREE-2");
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(rule(&leaf(&[entry(name, 4)])), "TREE-1", "{name:?}");
        }
        assert_eq!(rule(&[leaf(&[entry(b"a", 4)]), vec![0]].concat()), "GEN-2");
        assert_eq!(rule(&[1, 0xff, 0xff, 0x7f]), "GEN-3");
        assert_eq!(rule(&[9]), "");
        assert_eq!(rule(&[]), "GEN-3");
        let mut bad_ino = entry(b"a", 4);
        bad_ino[3] = 0;
        assert_eq!(rule(&leaf(&[bad_ino])), "TREE-3");
        let mut bad_mode = entry(b"a", 4);
        bad_mode[5] = 0x20;
        assert_eq!(rule(&leaf(&[bad_mode])), "TREE-3");
        assert_eq!(rule(&leaf(&[entry(b"a", 8)])), "");
    }

    #[test]
    fn indexes() {
        let index = |level: u8, names: &[&[u8]]| {
            let mut out = vec![2, level, names.len() as u8];
            for name in names {
                out.push(name.len() as u8);
                out.extend_from_slice(name);
                out.extend_from_slice(&[7; 32]);
            }
            out
        };
        assert_eq!(rule(&index(1, &[b"a", b"b"])), "ok");
        assert_eq!(rule(&index(1, &[b"b", b"a"])), "TREE-2");
        assert_eq!(rule(&index(1, &[])), "GEN-3");
        assert_eq!(rule(&index(0, &[b"a"])), "TREE-5");
        assert_eq!(rule(&index(LEVEL_MAX + 1, &[b"a"])), "TREE-5");
        let offsets = |list: &[u8]| {
            let mut out = vec![4, 1, list.len() as u8];
            for &first in list {
                out.push(first);
                out.extend_from_slice(&[7; 32]);
            }
            out
        };
        assert_eq!(rule(&offsets(&[0, 5])), "ok");
        assert_eq!(rule(&offsets(&[5, 5])), "TREE-2");
        // The last byte that a file can have is that before 2^63 - 1.
        let far = |low: u8| [vec![4, 1, 1, low], vec![0xff; 7], vec![0x7f], vec![7; 32]].concat();
        assert_eq!(rule(&far(0xfe)), "ok");
        assert_eq!(rule(&far(0xff)), "TREE-4");
    }

    #[test]
    fn files() {
        let file = |content: &[u8]| leaf(&[[entry(b"a", 1), content.to_vec()].concat()]);
        let extent = |gap: u8, bytes: u8, at: u8| [&[gap, bytes][..], &[7; 32], &[at]].concat();
        assert_eq!(rule(&file(&[5, 0])), "ok");
        assert_eq!(rule(&file(&[5, 1, 2, 1, 2])), "ok");
        assert_eq!(rule(&file(&[1, 1, 2, 1, 2])), "TREE-4");
        assert_eq!(rule(&file(&[5, 1, 0])), "TREE-4");
        assert_eq!(rule(&file(&[5, 4])), "TREE-4");
        let two = [&[10, 2, 2][..], &extent(2, 3, 0), &extent(0, 5, 9)].concat();
        assert_eq!(rule(&file(&two)), "ok");
        let beyond = [&[9, 2, 2][..], &extent(2, 3, 0), &extent(0, 5, 9)].concat();
        assert_eq!(rule(&file(&beyond)), "TREE-4");
        assert_eq!(rule(&file(&[&[9, 2, 1][..], &extent(0, 0, 0)].concat())), "TREE-4");
        assert_eq!(rule(&file(&[9, 2, 0])), "GEN-3");
        assert_eq!(rule(&[&[3, 4, 1][..], &extent(0, 3, 0)].concat()), "ok");
        assert_eq!(rule(&[&[3, 4, 1][..], &extent(1, 3, 0)].concat()), "TREE-4");
        let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(rule(&[&[3][..], &max, &[1], &extent(0, 1, 0)].concat()), "TREE-4");
        assert_eq!(rule(&leaf(&[[entry(b"l", 3), vec![0]].concat()])), "");
        assert_eq!(rule(&leaf(&[[entry(b"l", 3), vec![1, b'x']].concat()])), "ok");
        assert_eq!(
            rule(&leaf(&[[entry(b"d", 6), vec![1, 0xff, 0xff, 0xff, 0xff, 0x1f]].concat()])),
            "TREE-3"
        );
    }
}
