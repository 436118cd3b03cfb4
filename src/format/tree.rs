//! Tree objects: directories and the extent maps of files, the plaintext of tree chunks.
//!
//! Writers and readers run the same checks: what [`TreeObject::encode`] writes, [`TreeObject::parse`] reads,
//! and the other way around.

use super::FormatError;
use super::ids::ChunkId;
use super::pack::CHUNK_MAX;
use super::wire::{RESERVE_MAX, Reader, put_var_bytes, put_varint, put_zigzag};
use crate::env::{NANOS_PER_SEC, Time};

/// The longest name of an entry, in bytes.
pub const NAME_LEN_MAX: usize = 255;
/// The longest target of a symlink, in bytes.
pub const SYMLINK_LEN_MAX: usize = 4095;
/// The longest file content that stands in its entry, in bytes.
pub const INLINE_LEN_MAX: usize = 4096;
/// The largest file, in bytes: 2^63 - 1.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;
/// The longest name of an extended attribute, in bytes.
pub const XATTR_NAME_LEN_MAX: usize = 255;
/// The longest value of an extended attribute, in bytes.
pub const XATTR_VALUE_LEN_MAX: usize = 65_536;
/// Names and values of all extended attributes of one entry, in bytes.
pub const XATTRS_LEN_MAX: usize = 1 << 20;
/// The highest level of an index: leaves are level 0 and there are at most 8 levels.
pub const LEVEL_MAX: u8 = 7;
/// How deep directories nest.
pub const DIR_DEPTH_MAX: usize = 4096;

/// The shortest entry, a fifo: a name of one byte with its length, a type, and one byte for each of 12
/// numbers.
const ENTRY_LEN_MIN: usize = 15;
/// The shortest extent: gap, length, chunk id, offset in chunk.
const EXTENT_LEN_MIN: usize = 35;

const DIR_LEAF: u8 = 1;
const DIR_INDEX: u8 = 2;
const EXTENT_LEAF: u8 = 3;
const EXTENT_INDEX: u8 = 4;

const CONTENT_EMPTY: u8 = 0;
const CONTENT_INLINE: u8 = 1;
const CONTENT_EXTENTS: u8 = 2;
const CONTENT_EXTENT_TREE: u8 = 3;

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    File = 1,
    /// A directory.
    Dir = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A named pipe.
    Fifo = 4,
    /// A socket.
    Socket = 5,
    /// A character device.
    CharDev = 6,
    /// A block device.
    BlockDev = 7,
}

impl FileType {
    /// Reads the number that an entry has.
    pub fn from_u8(n: u8) -> Result<Self, FormatError> {
        match n {
            1 => Ok(FileType::File),
            2 => Ok(FileType::Dir),
            3 => Ok(FileType::Symlink),
            4 => Ok(FileType::Fifo),
            5 => Ok(FileType::Socket),
            6 => Ok(FileType::CharDev),
            7 => Ok(FileType::BlockDev),
            _ => Err(FormatError::Malformed("unknown type of an entry")),
        }
    }
}

/// A run of bytes of a file, and where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Where the run begins in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes, at least 1.
    pub len: u64,
    /// The data chunk that holds it.
    pub chunk: ChunkId,
    /// Where it begins in the chunk's plaintext, in bytes.
    pub chunk_offset: u32,
}

impl Extent {
    /// Returns the offset in the file behind the run.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// What an entry holds besides its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file of holes only, or of no bytes.
    Empty,
    /// The first bytes of a file; what follows up to its size is a hole.
    Inline(Vec<u8>),
    /// A file's extents, ascending; what none of them covers is a hole.
    Extents(Vec<Extent>),
    /// A file's extents in an object of their own.
    ExtentTree(ChunkId),
    /// A directory's object.
    Dir(ChunkId),
    /// Where a symlink points.
    Symlink(Vec<u8>),
    /// The numbers of a device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Fifos and sockets have nothing.
    None,
}

/// Name and value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// One name in a directory, with everything that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// 1 to 255 bytes without `/` and NUL; empty for the root of a snapshot.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: FileType,
    /// Inode number, at least 1.
    pub ino: u64,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
    /// Hard links.
    pub nlink: u32,
    /// Of files, in bytes; 0 for all others.
    pub size: u64,
    /// Extended attributes: name and value, strictly ascending by name.
    pub xattrs: Vec<Xattr>,
    /// What it holds.
    pub content: Content,
}

/// The plaintext of a tree chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeObject {
    /// Entries of a directory, strictly ascending by name.
    DirLeaf(Vec<Entry>),
    /// Parts of a directory.
    DirIndex {
        /// 1 above leaves, one more for each step up.
        level: u8,
        /// The first name that a child may hold, and the child; strictly ascending.
        children: Vec<(Vec<u8>, ChunkId)>,
    },
    /// Extents of a file.
    ExtentLeaf(Vec<Extent>),
    /// Parts of a file.
    ExtentIndex {
        /// 1 above leaves, one more for each step up.
        level: u8,
        /// The first offset that a child may hold, and the child; strictly ascending.
        children: Vec<(u64, ChunkId)>,
    },
}

const fn malformed<T>(what: &'static str) -> Result<T, FormatError> {
    Err(FormatError::Malformed(what))
}

fn require(condition: bool, what: &'static str) -> Result<(), FormatError> {
    if condition { Ok(()) } else { malformed(what) }
}

/// Checks a name of a directory entry.
pub fn check_name(name: &[u8]) -> Result<(), FormatError> {
    // FORMAT TREE-1
    let plain = (1..=NAME_LEN_MAX).contains(&name.len()) && !name.iter().any(|b| matches!(b, b'/' | 0));
    require(plain && name != b"." && name != b"..", "TREE-1: a name")
}

fn check_level(level: u8) -> Result<(), FormatError> {
    // FORMAT TREE-5
    require((1..=LEVEL_MAX).contains(&level), "TREE-5: the level of an index")
}

fn check_ascending<T: Ord + ?Sized, I>(items: I, what: &'static str) -> Result<(), FormatError>
where
    I: IntoIterator,
    I::Item: std::borrow::Borrow<T>,
{
    use std::borrow::Borrow;
    // FORMAT TREE-2
    let mut items = items.into_iter();
    let Some(mut before) = items.next() else { return Ok(()) };
    for item in items {
        if before.borrow() >= item.borrow() {
            return malformed(what);
        }
        before = item;
    }
    Ok(())
}

/// Checks extents on their own: in order, apart from each other, inside a chunk and below `size`.
fn check_extents(extents: &[Extent], size: u64) -> Result<(), FormatError> {
    // FORMAT TREE-4
    require(!extents.is_empty(), "an extent list has at least one")?;
    let mut end = 0;
    for extent in extents {
        require(extent.offset >= end, "TREE-4: extents overlap")?;
        let chunk_end = extent.len.checked_add(u64::from(extent.chunk_offset));
        let in_chunk = extent.len >= 1 && chunk_end.is_some_and(|n| n <= CHUNK_MAX as u64);
        require(in_chunk, "TREE-4: an extent lies outside of its chunk")?;
        end = match extent.offset.checked_add(extent.len) {
            Some(n) if n <= size => n,
            _ => return malformed("TREE-4: an extent lies outside of its file"),
        };
    }
    Ok(())
}

fn put_extents(out: &mut Vec<u8>, extents: &[Extent], start: u64) {
    put_varint(out, extents.len() as u64);
    let mut end = start;
    for extent in extents {
        put_varint(out, extent.offset - end);
        put_varint(out, extent.len);
        out.extend_from_slice(extent.chunk.as_bytes());
        put_varint(out, u64::from(extent.chunk_offset));
        end = extent.end();
    }
}

/// Reads extents whose first gap counts from `start`. Only the arithmetic is checked here.
fn parse_extents(r: &mut Reader<'_>, start: u64) -> Result<Vec<Extent>, FormatError> {
    let count = r.count(EXTENT_LEN_MIN)?;
    let mut extents = Vec::with_capacity(count.min(RESERVE_MAX));
    let mut end = start;
    for _ in 0..count {
        let (gap, len) = (r.varint()?, r.varint()?);
        let chunk = ChunkId(r.array()?);
        let chunk_offset = r.varint_u32("TREE-4: an extent lies outside of its chunk")?;
        let outside = FormatError::Malformed("TREE-4: an extent lies outside of its file");
        let offset = end.checked_add(gap).ok_or(outside)?;
        end = offset.checked_add(len).ok_or(outside)?;
        extents.push(Extent { offset, len, chunk, chunk_offset });
    }
    Ok(extents)
}

fn put_time(out: &mut Vec<u8>, time: Time) {
    put_zigzag(out, time.secs);
    put_varint(out, u64::from(time.nanos));
}

fn parse_time(r: &mut Reader<'_>) -> Result<Time, FormatError> {
    let secs = r.zigzag()?;
    Ok(Time { secs, nanos: r.varint_u32("nanoseconds of a time")? })
}

impl Entry {
    /// Appends the entry's bytes, after checking that a reader would take them. Nothing is appended on error.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), FormatError> {
        check_name(&self.name)?;
        self.check()?;
        self.put(out);
        Ok(())
    }

    /// Appends the bytes of a snapshot's root, the one entry without a name.
    pub(crate) fn encode_root_into(&self, out: &mut Vec<u8>) -> Result<(), FormatError> {
        self.check_root()?;
        self.check()?;
        self.put(out);
        Ok(())
    }

    /// Reads an entry of a directory.
    pub(crate) fn parse(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let entry = Self::parse_any(r)?;
        check_name(&entry.name)?;
        Ok(entry)
    }

    /// Reads a snapshot's root.
    pub(crate) fn parse_root(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let entry = Self::parse_any(r)?;
        entry.check_root()?;
        Ok(entry)
    }

    /// Says whether two entries are equal in all but their names, as those of one file with several links
    /// must be.
    #[must_use]
    pub fn is_link_of(&self, other: &Entry) -> bool {
        // FORMAT TREE-7
        let attributes = |e: &Entry| (e.kind, e.ino, e.mode, e.uid, e.gid, e.nlink, e.size);
        let times = |e: &Entry| (e.atime, e.mtime, e.ctime);
        attributes(self) == attributes(other)
            && times(self) == times(other)
            && self.xattrs == other.xattrs
            && self.content == other.content
    }

    fn check_root(&self) -> Result<(), FormatError> {
        require(self.name.is_empty() && self.kind == FileType::Dir, "the root is a directory without a name")
    }

    /// Checks everything but the name.
    fn check(&self) -> Result<(), FormatError> {
        // FORMAT TREE-3
        require(self.mode <= 0o7777, "TREE-3: mode")?;
        require(self.ino >= 1, "TREE-3: ino")?;
        let times = [self.atime, self.mtime, self.ctime];
        require(times.iter().all(|t| t.nanos < NANOS_PER_SEC), "nanoseconds of a time")?;
        self.check_xattrs()?;
        self.check_content()
    }

    fn check_xattrs(&self) -> Result<(), FormatError> {
        // FORMAT TREE-6
        let mut total = 0usize;
        for (name, value) in &self.xattrs {
            let name_ok = (1..=XATTR_NAME_LEN_MAX).contains(&name.len()) && !name.contains(&0);
            require(name_ok && value.len() <= XATTR_VALUE_LEN_MAX, "TREE-6: an extended attribute")?;
            total += name.len() + value.len();
            require(total <= XATTRS_LEN_MAX, "TREE-6: extended attributes of an entry above 1 MiB")?;
        }
        check_ascending::<[u8], _>(
            self.xattrs.iter().map(|x| x.0.as_slice()),
            "TREE-2: xattr names do not ascend",
        )
    }

    fn check_content(&self) -> Result<(), FormatError> {
        let is_file = self.kind == FileType::File;
        require(is_file || self.size == 0, "only files have a size")?;
        // FORMAT TREE-4
        require(self.size <= FILE_SIZE_MAX, "TREE-4: file size")?;
        match (&self.content, self.kind) {
            (Content::Empty | Content::ExtentTree(_), FileType::File)
            | (Content::Dir(_), FileType::Dir)
            | (Content::Device { .. }, FileType::CharDev | FileType::BlockDev)
            | (Content::None, FileType::Fifo | FileType::Socket) => Ok(()),
            (Content::Inline(bytes), FileType::File) => {
                let fits = (1..=INLINE_LEN_MAX).contains(&bytes.len()) && bytes.len() as u64 <= self.size;
                require(fits, "TREE-4: inline content")
            }
            (Content::Extents(extents), FileType::File) => check_extents(extents, self.size),
            (Content::Symlink(target), FileType::Symlink) => {
                let plain = (1..=SYMLINK_LEN_MAX).contains(&target.len()) && !target.contains(&0);
                require(plain, "a symlink's target has 1 to 4,095 bytes, none of them NUL")
            }
            _ => malformed("content and type of an entry differ"),
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_var_bytes(out, &self.name);
        out.push(self.kind as u8);
        put_varint(out, self.ino);
        for n in [self.mode, self.uid, self.gid] {
            put_varint(out, u64::from(n));
        }
        for time in [self.atime, self.mtime, self.ctime] {
            put_time(out, time);
        }
        put_varint(out, u64::from(self.nlink));
        put_varint(out, self.xattrs.len() as u64);
        for (name, value) in &self.xattrs {
            put_var_bytes(out, name);
            put_var_bytes(out, value);
        }
        if self.kind == FileType::File {
            put_varint(out, self.size);
        }
        self.put_content(out);
    }

    fn put_content(&self, out: &mut Vec<u8>) {
        match &self.content {
            Content::Empty => out.push(CONTENT_EMPTY),
            Content::Inline(bytes) => {
                out.push(CONTENT_INLINE);
                put_var_bytes(out, bytes);
            }
            Content::Extents(extents) => {
                out.push(CONTENT_EXTENTS);
                put_extents(out, extents, 0);
            }
            Content::ExtentTree(id) => {
                out.push(CONTENT_EXTENT_TREE);
                out.extend_from_slice(id.as_bytes());
            }
            Content::Dir(id) => out.extend_from_slice(id.as_bytes()),
            Content::Symlink(target) => put_var_bytes(out, target),
            Content::Device { major, minor } => {
                put_varint(out, u64::from(*major));
                put_varint(out, u64::from(*minor));
            }
            Content::None => {}
        }
    }

    /// Reads an entry and checks everything but its name.
    fn parse_any(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let name = r.var_bytes(NAME_LEN_MAX, "TREE-1: a name")?.to_vec();
        let kind = FileType::from_u8(r.u8()?)?;
        let ino = r.varint()?;
        let mode = r.varint_u32("TREE-3: mode")?;
        let uid = r.varint_u32("TREE-3: uid")?;
        let gid = r.varint_u32("TREE-3: gid")?;
        let (atime, mtime, ctime) = (parse_time(r)?, parse_time(r)?, parse_time(r)?);
        let nlink = r.varint_u32("TREE-3: nlink")?;
        let xattrs = parse_xattrs(r)?;
        let size = if kind == FileType::File { r.varint()? } else { 0 };
        let content = parse_content(r, kind)?;
        let entry =
            Entry { name, kind, ino, mode, uid, gid, atime, mtime, ctime, nlink, size, xattrs, content };
        entry.check()?;
        Ok(entry)
    }
}

fn parse_xattrs(r: &mut Reader<'_>) -> Result<Vec<Xattr>, FormatError> {
    // A length, a name of one byte, a length.
    let count = r.count(3)?;
    let mut xattrs = Vec::with_capacity(count.min(RESERVE_MAX));
    for _ in 0..count {
        let name = r.var_bytes(XATTR_NAME_LEN_MAX, "TREE-6: an extended attribute")?.to_vec();
        let value = r.var_bytes(XATTR_VALUE_LEN_MAX, "TREE-6: an extended attribute")?.to_vec();
        xattrs.push((name, value));
    }
    Ok(xattrs)
}

fn parse_content(r: &mut Reader<'_>, kind: FileType) -> Result<Content, FormatError> {
    Ok(match kind {
        FileType::File => match r.u8()? {
            CONTENT_EMPTY => Content::Empty,
            CONTENT_INLINE => {
                Content::Inline(r.var_bytes(INLINE_LEN_MAX, "TREE-4: inline content")?.to_vec())
            }
            CONTENT_EXTENTS => Content::Extents(parse_extents(r, 0)?),
            CONTENT_EXTENT_TREE => Content::ExtentTree(ChunkId(r.array()?)),
            _ => return malformed("unknown content of a file"),
        },
        FileType::Dir => Content::Dir(ChunkId(r.array()?)),
        FileType::Symlink => {
            let target = r.var_bytes(SYMLINK_LEN_MAX, "a symlink's target has 1 to 4,095 bytes")?;
            Content::Symlink(target.to_vec())
        }
        FileType::CharDev | FileType::BlockDev => {
            Content::Device { major: r.varint_u32("TREE-3: major")?, minor: r.varint_u32("TREE-3: minor")? }
        }
        FileType::Fifo | FileType::Socket => Content::None,
    })
}

impl TreeObject {
    /// Returns the object's bytes, after checking that a reader would take them.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut out = Vec::new();
        match self {
            TreeObject::DirLeaf(entries) => {
                out.push(DIR_LEAF);
                put_varint(&mut out, entries.len() as u64);
                for entry in entries {
                    entry.encode_into(&mut out)?;
                }
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
                let start = extents.first().map_or(0, |extent| extent.offset);
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
        if out.len() > CHUNK_MAX {
            return Err(FormatError::Limit("a tree object has at most 8 MiB"));
        }
        Ok(out)
    }

    /// Reads an object.
    pub fn parse(bytes: &[u8]) -> Result<TreeObject, FormatError> {
        if bytes.len() > CHUNK_MAX {
            return Err(FormatError::Limit("a tree object has at most 8 MiB"));
        }
        let mut r = Reader::new(bytes, "tree object: too short");
        let object = match r.u8()? {
            DIR_LEAF => {
                let count = r.count(ENTRY_LEN_MIN)?;
                let mut entries = Vec::with_capacity(count.min(RESERVE_MAX));
                for _ in 0..count {
                    entries.push(Entry::parse(&mut r)?);
                }
                TreeObject::DirLeaf(entries)
            }
            DIR_INDEX => {
                let level = r.u8()?;
                // A length, a name of one byte, a chunk id.
                let count = r.count(34)?;
                let mut children = Vec::with_capacity(count.min(RESERVE_MAX));
                for _ in 0..count {
                    let name = r.var_bytes(NAME_LEN_MAX, "TREE-1: a name")?.to_vec();
                    children.push((name, ChunkId(r.array()?)));
                }
                TreeObject::DirIndex { level, children }
            }
            EXTENT_LEAF => {
                let start = r.varint()?;
                let extents = parse_extents(&mut r, start)?;
                let first_ok = extents.first().is_none_or(|extent| extent.offset == start);
                require(first_ok, "the first gap of an extent leaf is 0")?;
                TreeObject::ExtentLeaf(extents)
            }
            EXTENT_INDEX => {
                let level = r.u8()?;
                let count = r.count(33)?;
                let mut children = Vec::with_capacity(count.min(RESERVE_MAX));
                for _ in 0..count {
                    children.push((r.varint()?, ChunkId(r.array()?)));
                }
                TreeObject::ExtentIndex { level, children }
            }
            _ => return malformed("unknown kind of tree object"),
        };
        r.finish()?;
        object.check()?;
        Ok(object)
    }

    /// Returns the level: 0 for a leaf, an index's own otherwise.
    #[must_use]
    pub fn level(&self) -> u8 {
        match self {
            TreeObject::DirLeaf(_) | TreeObject::ExtentLeaf(_) => 0,
            TreeObject::DirIndex { level, .. } | TreeObject::ExtentIndex { level, .. } => *level,
        }
    }

    /// Checks the object as a child of a directory index: its kind, its level, and that its names are not
    /// before `first`, its own first name there, and before `next`, that of the child after it.
    pub fn check_dir_child(
        &self,
        parent_level: u8,
        first: &[u8],
        next: Option<&[u8]>,
    ) -> Result<(), FormatError> {
        let (low, high) = match self {
            TreeObject::DirLeaf(entries) => {
                (entries.first().map(|e| &e.name), entries.last().map(|e| &e.name))
            }
            TreeObject::DirIndex { children, .. } => {
                (children.first().map(|c| &c.0), children.last().map(|c| &c.0))
            }
            TreeObject::ExtentLeaf(_) | TreeObject::ExtentIndex { .. } => {
                return malformed("an extent object stands in a directory");
            }
        };
        self.check_child(parent_level, low.map(Vec::as_slice), high.map(Vec::as_slice), first, next)
    }

    /// Checks the object as a child of an extent index; see [`Self::check_dir_child`].
    pub fn check_extent_child(
        &self,
        parent_level: u8,
        first: u64,
        next: Option<u64>,
    ) -> Result<(), FormatError> {
        let (low, high) = match self {
            TreeObject::ExtentLeaf(extents) => {
                (extents.first().map(|e| e.offset), extents.last().map(|e| e.offset))
            }
            TreeObject::ExtentIndex { children, .. } => {
                (children.first().map(|c| c.0), children.last().map(|c| c.0))
            }
            TreeObject::DirLeaf(_) | TreeObject::DirIndex { .. } => {
                return malformed("a directory object stands in a file");
            }
        };
        self.check_child(parent_level, low, high, first, next)
    }

    fn check_child<T: Ord>(
        &self,
        parent_level: u8,
        low: Option<T>,
        high: Option<T>,
        first: T,
        next: Option<T>,
    ) -> Result<(), FormatError> {
        // FORMAT TREE-5
        require(self.level().checked_add(1) == Some(parent_level), "TREE-5: levels do not go down by one")?;
        // FORMAT TREE-2
        require(
            low.is_none_or(|low| low >= first),
            "TREE-2: a child holds what is before its first name or offset",
        )?;
        let below = match (high, next) {
            (Some(high), Some(next)) => high < next,
            _ => true,
        };
        require(below, "TREE-2: a child holds what belongs to the next")
    }

    /// Checks what concerns more than one entry.
    fn check(&self) -> Result<(), FormatError> {
        match self {
            TreeObject::DirLeaf(entries) => check_ascending::<[u8], _>(
                entries.iter().map(|e| e.name.as_slice()),
                "TREE-2: names do not ascend",
            ),
            TreeObject::DirIndex { level, children } => {
                check_level(*level)?;
                require(!children.is_empty(), "an index has at least one child")?;
                children.iter().try_for_each(|child| check_name(&child.0))?;
                check_ascending::<[u8], _>(
                    children.iter().map(|c| c.0.as_slice()),
                    "TREE-2: names do not ascend",
                )
            }
            TreeObject::ExtentLeaf(extents) => check_extents(extents, FILE_SIZE_MAX),
            TreeObject::ExtentIndex { level, children } => {
                check_level(*level)?;
                require(!children.is_empty(), "an index has at least one child")?;
                require(children.iter().all(|c| c.0 < FILE_SIZE_MAX), "TREE-4: an offset beyond any file")?;
                check_ascending::<u64, _>(children.iter().map(|c| c.0), "TREE-2: offsets do not ascend")
            }
        }
    }
}

#[cfg(test)]
mod tests;
