//! Writes trees bottom-up: directories and extent lists as objects with content-defined borders.
//!
//! A writer takes entries in order and puts an object into its sink whenever a border is reached. Borders
//! depend on the entries alone (a name's hash, an offset's hash), so the same entries always give the same
//! objects, and a change in one place of a large directory leaves the objects of all other places as they
//! were: they are found by their id and stored once. Memory is bounded by one object for each level.

use crate::format::{ChunkId, Content, Entry, Extent, PackKind, TreeObject};
use crate::store::Effort;
use crate::store::error::{Result, StoreError};
use crate::store::packs::Packs;

use super::tree::INDEX_LEVELS_MAX;

/// An object is not ended before it has this many bytes, unless its content ends.
const SEGMENT_BYTES_MIN: usize = 16 << 10;
/// An object is ended when it has this many bytes, wherever that is.
const SEGMENT_BYTES_MAX: usize = 96 << 10;
/// Above the minimum one entry in 256 is a border.
const BORDER_MASK: u8 = 0xff;
/// Longer content is a chunk, not bytes in the directory. A directory object is written anew when one of its entries
/// changes, and with it go all bytes that stand in it: what is not shared with the day before is shipped again. A chunk
/// costs about 100 bytes more than bytes in place (FORMAT allows 4,096 of them).
pub(super) const INLINE_WRITTEN_MAX: usize = 128;
/// A file with more extents than these gets an extent tree of its own.
const INLINE_EXTENTS_MAX: usize = 16;

/// Takes finished tree objects.
pub trait ObjectSink {
    /// Stores the plaintext of one object and returns its id. The same plaintext has the same id.
    fn put_object(&self, plaintext: &[u8]) -> Result<ChunkId>;
}

impl ObjectSink for Packs {
    fn put_object(&self, plaintext: &[u8]) -> Result<ChunkId> {
        // Tree objects are small, many and compress well, and nobody waits for a single one.
        self.put(PackKind::Tree, plaintext, Effort::Thorough)
    }
}

fn put(sink: &dyn ObjectSink, object: &TreeObject) -> Result<ChunkId> {
    sink.put_object(&object.encode().map_err(StoreError::from)?)
}

fn is_border(bytes: usize, key: &[u8]) -> bool {
    bytes >= SEGMENT_BYTES_MAX
        || (bytes >= SEGMENT_BYTES_MIN && blake3::hash(key).as_bytes()[0] & BORDER_MASK == 0)
}

/// One level of index objects in the making.
struct Level<K> {
    children: Vec<(K, ChunkId)>,
    bytes: usize,
    /// Objects of this level that were written already.
    written: usize,
}

impl<K> Default for Level<K> {
    fn default() -> Self {
        Level { children: Vec::new(), bytes: 0, written: 0 }
    }
}

/// The index levels above the leaves; what directories and extent lists have in common.
struct Index<K> {
    levels: Vec<Level<K>>,
    /// Builds an index object.
    make: fn(u8, Vec<(K, ChunkId)>) -> TreeObject,
    /// The bytes of a key: they decide about borders, and are what it costs.
    key: fn(&K) -> Vec<u8>,
}

impl<K: Clone> Index<K> {
    /// Adds a finished object of `level` (0: a leaf) whose first key is `first`.
    fn push(&mut self, sink: &dyn ObjectSink, level: usize, first: K, id: ChunkId) -> Result<()> {
        let (mut level, mut first, mut id) = (level, first, id);
        loop {
            if self.levels.len() == level {
                if level >= usize::from(INDEX_LEVELS_MAX) {
                    return Err(StoreError::Corrupt("a tree grew more levels than the format allows".into()));
                }
                self.levels.push(Level::default());
            }
            let make = self.make;
            let key = (self.key)(&first);
            let at = &mut self.levels[level];
            at.bytes += key.len() + ChunkId::LEN + 2;
            at.children.push((first, id));
            if !is_border(at.bytes, &key) {
                return Ok(());
            }
            // The border belongs to the child that was added, so a level never ends with nothing in it.
            let children = std::mem::take(&mut at.children);
            at.bytes = 0;
            at.written += 1;
            first = children[0].0.clone();
            level += 1;
            id = put(sink, &make(number(level), children))?;
        }
    }

    /// Writes what is left of every level and returns the root. There must have been at least one leaf.
    fn finish(mut self, sink: &dyn ObjectSink) -> Result<Option<ChunkId>> {
        let mut level = 0;
        while level < self.levels.len() {
            let top = level + 1 == self.levels.len();
            let at = &mut self.levels[level];
            let children = std::mem::take(&mut at.children);
            at.bytes = 0;
            if top && at.written == 0 && children.len() == 1 {
                return Ok(Some(children[0].1));
            }
            if !children.is_empty() {
                let first = children[0].0.clone();
                let id = put(sink, &(self.make)(number(level + 1), children))?;
                self.push(sink, level + 1, first, id)?;
            }
            level += 1;
        }
        Ok(None)
    }
}

/// Levels are bounded by `INDEX_LEVELS_MAX`, so they fit.
fn number(level: usize) -> u8 {
    u8::try_from(level).unwrap_or(u8::MAX)
}

/// Writes one directory. Entries come in ascending byte order of their names.
pub struct DirWriter<'a> {
    sink: &'a dyn ObjectSink,
    entries: Vec<Entry>,
    bytes: usize,
    scratch: Vec<u8>,
    last: Vec<u8>,
    index: Index<Vec<u8>>,
}

impl std::fmt::Debug for DirWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirWriter").field("pending", &self.entries.len()).finish_non_exhaustive()
    }
}

impl<'a> DirWriter<'a> {
    /// Returns a writer of a directory without entries.
    pub fn new(sink: &'a dyn ObjectSink) -> Self {
        DirWriter {
            sink,
            entries: Vec::new(),
            bytes: 0,
            scratch: Vec::new(),
            last: Vec::new(),
            index: Index {
                levels: Vec::new(),
                make: |level, children| TreeObject::DirIndex { level, children },
                key: Clone::clone,
            },
        }
    }

    /// Adds an entry. `Corrupt` when its name does not come after the previous one, `Format` when the format
    /// can't say it.
    pub fn push(&mut self, entry: Entry) -> Result<()> {
        if entry.name <= self.last {
            return Err(StoreError::Corrupt(format!("{:?} is out of order", super::show(&entry.name))));
        }
        self.scratch.clear();
        entry.encode_into(&mut self.scratch).map_err(StoreError::from)?;
        self.bytes += self.scratch.len();
        self.last.clone_from(&entry.name);
        let border = is_border(self.bytes, &entry.name);
        self.entries.push(entry);
        if border { self.end_leaf() } else { Ok(()) }
    }

    fn end_leaf(&mut self) -> Result<()> {
        let entries = std::mem::take(&mut self.entries);
        self.bytes = 0;
        let first = entries.first().map(|e| e.name.clone()).unwrap_or_default();
        let id = put(self.sink, &TreeObject::DirLeaf(entries))?;
        self.index.push(self.sink, 0, first, id)
    }

    /// Writes what is left and returns the directory's object.
    pub fn finish(mut self) -> Result<ChunkId> {
        if !self.entries.is_empty() || self.index.levels.is_empty() {
            self.end_leaf()?;
        }
        self.index.finish(self.sink)?.ok_or_else(|| StoreError::Corrupt("a directory without a root".into()))
    }
}

/// Writes the extent tree of one file. Extents come in ascending order and don't overlap.
pub struct ExtentWriter<'a> {
    sink: &'a dyn ObjectSink,
    extents: Vec<Extent>,
    index: Index<u64>,
}

/// What one extent takes in an object, about: two varints, an id, and an offset.
const EXTENT_BYTES: usize = 40;

impl std::fmt::Debug for ExtentWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExtentWriter").field("pending", &self.extents.len()).finish_non_exhaustive()
    }
}

impl<'a> ExtentWriter<'a> {
    /// Returns a writer of an empty list.
    pub fn new(sink: &'a dyn ObjectSink) -> Self {
        ExtentWriter {
            sink,
            extents: Vec::new(),
            index: Index {
                levels: Vec::new(),
                make: |level, children| TreeObject::ExtentIndex { level, children },
                key: |offset| offset.to_le_bytes().to_vec(),
            },
        }
    }

    /// Adds an extent that starts where the previous one ended, or later.
    pub fn push(&mut self, extent: Extent) -> Result<()> {
        let border = is_border((self.extents.len() + 1) * EXTENT_BYTES, &extent.offset.to_le_bytes());
        self.extents.push(extent);
        if border { self.end_leaf() } else { Ok(()) }
    }

    fn end_leaf(&mut self) -> Result<()> {
        let extents = std::mem::take(&mut self.extents);
        let first = extents.first().map_or(0, |e| e.offset);
        let id = put(self.sink, &TreeObject::ExtentLeaf(extents))?;
        self.index.push(self.sink, 0, first, id)
    }

    /// Writes what is left and returns the root of the tree, or `None` when there were no extents.
    pub fn finish(mut self) -> Result<Option<ChunkId>> {
        if !self.extents.is_empty() {
            self.end_leaf()?;
        }
        self.index.finish(self.sink)
    }
}

/// Collects the extents of one file and decides how its content is written: only holes, a short list in the
/// entry, or a tree of its own. Neighbours that are one piece of one chunk become one extent.
#[derive(Debug)]
pub struct ContentWriter<'a> {
    sink: &'a dyn ObjectSink,
    short: Vec<Extent>,
    last: Option<Extent>,
    long: Option<ExtentWriter<'a>>,
    end: u64,
}

impl std::fmt::Debug for dyn ObjectSink + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ObjectSink")
    }
}

impl<'a> ContentWriter<'a> {
    /// Returns a writer for a file without extents.
    pub fn new(sink: &'a dyn ObjectSink) -> Self {
        ContentWriter { sink, short: Vec::new(), last: None, long: None, end: 0 }
    }

    /// Adds an extent. `Corrupt` when it is empty or overlaps the previous one.
    pub fn push(&mut self, extent: Extent) -> Result<()> {
        let end =
            extent.offset.checked_add(extent.len).filter(|_| extent.len > 0 && extent.offset >= self.end);
        self.end = end.ok_or_else(|| {
            StoreError::Corrupt(format!("the extent at {} overlaps another or is empty", extent.offset))
        })?;
        if let Some(last) = &mut self.last
            && last.chunk == extent.chunk
            && last.offset + last.len == extent.offset
            && u64::from(last.chunk_offset) + last.len == u64::from(extent.chunk_offset)
        {
            last.len += extent.len;
            return Ok(());
        }
        match self.last.replace(extent) {
            Some(done) => self.add(done),
            None => Ok(()),
        }
    }

    fn add(&mut self, extent: Extent) -> Result<()> {
        if let Some(long) = &mut self.long {
            return long.push(extent);
        }
        self.short.push(extent);
        if self.short.len() > INLINE_EXTENTS_MAX {
            let mut long = ExtentWriter::new(self.sink);
            for extent in self.short.drain(..) {
                long.push(extent)?;
            }
            self.long = Some(long);
        }
        Ok(())
    }

    /// Writes what is left and returns the content.
    pub fn finish(mut self) -> Result<Content> {
        if let Some(last) = self.last.take() {
            self.add(last)?;
        }
        match self.long {
            Some(long) => Ok(long.finish()?.map_or(Content::Empty, Content::ExtentTree)),
            None if self.short.is_empty() => Ok(Content::Empty),
            None => Ok(Content::Extents(self.short)),
        }
    }
}
