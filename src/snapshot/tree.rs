//! Reads trees: directories, extents and file bytes below a snapshot's root.
//!
//! A reader takes objects from any [`ChunkSource`], which has already proved that their bytes are the ones
//! that a key holder wrote. What is checked here is the shape that those bytes claim: levels go down by one
//! at each step (FORMAT TREE-5), children hold only what their parents say they hold (TREE-2), extents stay
//! inside their file (TREE-4). A tree that breaks a rule gives `Corrupt`, and never a deeper recursion than
//! the format allows.
//!
//! Large directories and large extent lists are streamed: memory follows the depth of a tree, not its width.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::format::{ChunkId, Content, Entry, Extent, FileType, PackKind, TreeObject};
use crate::store::error::{Result, StoreError};
use crate::store::packs::ChunkSource;

/// The highest level of an index object (FORMAT TREE-5).
pub const INDEX_LEVELS_MAX: u8 = crate::format::tree::LEVEL_MAX;
/// How deep directories nest at most (FORMAT TREE-5).
pub const DEPTH_MAX: usize = crate::format::tree::DIR_DEPTH_MAX;
/// Bytes of encoded objects whose parsed form a reader keeps.
const CACHE_BYTES: usize = 8 << 20;

/// Reads directories and files below a root. Shared by threads; keeps a small cache of parsed objects.
pub struct TreeReader<'a> {
    source: Source<'a>,
    cache: Mutex<ObjectCache>,
}

enum Source<'a> {
    Borrowed(&'a dyn ChunkSource),
    Shared(Arc<dyn ChunkSource>),
}

impl std::fmt::Debug for TreeReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeReader").finish_non_exhaustive()
    }
}

impl<'a> TreeReader<'a> {
    /// Returns a reader that borrows its source.
    pub fn new(source: &'a dyn ChunkSource) -> Self {
        TreeReader { source: Source::Borrowed(source), cache: Mutex::default() }
    }

    /// Returns a reader that shares its source, for those who keep it longer than a call.
    pub fn shared(source: Arc<dyn ChunkSource>) -> TreeReader<'static> {
        TreeReader { source: Source::Shared(source), cache: Mutex::default() }
    }

    /// Returns where the chunks come from.
    pub fn source(&self) -> &dyn ChunkSource {
        match &self.source {
            Source::Borrowed(source) => *source,
            Source::Shared(source) => source.as_ref(),
        }
    }

    fn cache(&self) -> MutexGuard<'_, ObjectCache> {
        // A cache is valid after every statement; a thread that panicked left nothing half done in it.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns one parsed object. `Corrupt` when it is missing or malformed.
    pub fn object(&self, id: &ChunkId) -> Result<Arc<TreeObject>> {
        if let Some(object) = self.cache().get(id) {
            return Ok(object);
        }
        let bytes = self.source().read_chunk(PackKind::Tree, id).map_err(|e| match e {
            // Something names it, so it should be there.
            StoreError::NotFound(_) => corrupt(id, "missing"),
            e => e,
        })?;
        let object = TreeObject::parse(&bytes).map_err(|e| corrupt(id, &e.to_string()))?;
        let object = Arc::new(object);
        self.cache().put(*id, Arc::clone(&object), bytes.len());
        Ok(object)
    }

    /// Returns all entries of a directory in name order, those after `after` only.
    pub fn entries(&self, dir: &ChunkId, after: Option<&[u8]>) -> Result<DirIter<'_>> {
        DirIter::open(self, dir, after)
    }

    /// Returns up to `limit` entries of a directory in name order, those after `after` only.
    pub fn children(&self, dir: &ChunkId, after: Option<&[u8]>, limit: usize) -> Result<Vec<Entry>> {
        let mut entries = self.entries(dir, after)?;
        let mut out = Vec::new();
        while out.len() < limit {
            match entries.next_entry()? {
                Some(entry) => out.push(entry),
                None => break,
            }
        }
        Ok(out)
    }

    /// Returns the entry of that name, reading one object at each level.
    pub fn lookup(&self, dir: &ChunkId, name: &[u8]) -> Result<Option<Entry>> {
        let mut node = Node::root(*dir);
        loop {
            let object = self.object(&node.id)?;
            match object.as_ref() {
                TreeObject::DirLeaf(entries) => {
                    node.check_leaf(entries)?;
                    let found = entries.binary_search_by(|e| e.name.as_slice().cmp(name));
                    return Ok(found.ok().map(|at| entries[at].clone()));
                }
                TreeObject::DirIndex { level, children } => {
                    node.check_index(*level, children)?;
                    let Some(at) = children.partition_point(|c| c.0.as_slice() <= name).checked_sub(1) else {
                        return Ok(None);
                    };
                    node = node.child(*level, children, at);
                }
                TreeObject::ExtentLeaf(_) | TreeObject::ExtentIndex { .. } => {
                    return Err(corrupt(&node.id, "extents where a directory should be"));
                }
            }
        }
    }

    /// Returns what stands at `path`, whose components are separated by `/`; empty components are skipped, so
    /// the empty path is `root` itself. `NotFound` names the component that is missing. Symbolic links are
    /// not followed.
    pub fn resolve(&self, root: &Entry, path: &[u8]) -> Result<Entry> {
        let mut at = root.clone();
        let mut walked: Vec<u8> = Vec::new();
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            let Content::Dir(dir) = &at.content else {
                return Err(StoreError::NotFound(format!("/{} is not a directory", super::show(&walked))));
            };
            if !walked.is_empty() {
                walked.push(b'/');
            }
            walked.extend_from_slice(part);
            match self.lookup(dir, part)? {
                Some(entry) => at = entry,
                None => return Err(StoreError::NotFound(format!("/{}", super::show(&walked)))),
            }
        }
        Ok(at)
    }

    /// Returns the extents of a file of `size` bytes that end after `from`, in order.
    pub fn extents<'r>(&'r self, content: &'r Content, size: u64, from: u64) -> Result<ExtentIter<'r>> {
        ExtentIter::open(self, content, size, from)
    }

    /// Reads the bytes of a file of `size` bytes at `offset` into `buf` and returns their number, which is
    /// less than `buf.len()` only at the end of the file. Holes read as zeros. `Corrupt` for a missing or
    /// changed chunk.
    pub fn read(&self, content: &Content, size: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let n = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..n];
        buf.fill(0);
        if let Content::Inline(bytes) = content {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let part = &bytes[start..bytes.len().min(start.saturating_add(n))];
            buf[..part.len()].copy_from_slice(part);
            return Ok(n);
        }
        let end = offset + n as u64;
        if n == 0 {
            return Ok(0);
        }
        let mut extents = self.extents(content, size, offset)?;
        while let Some(extent) = extents.next_extent()? {
            if extent.offset >= end {
                break;
            }
            let from = extent.offset.max(offset);
            let to = (extent.offset + extent.len).min(end);
            let at = u64::from(extent.chunk_offset) + (from - extent.offset);
            let at = u32::try_from(at).map_err(|_| corrupt(&extent.chunk, "an extent beyond its chunk"))?;
            // Both differences are at most n, which is a usize.
            let range = (from - offset) as usize..(to - offset) as usize;
            self.source().read_at(&extent.chunk, at, &mut buf[range])?;
        }
        Ok(n)
    }

    /// Walks everything below a directory entry, parents before children, names in order. The root itself is
    /// not among the items.
    pub fn walk(&self, root: &Entry) -> Walk<'_> {
        Walk { reader: self, stack: Vec::new(), path: Vec::new(), pending: Some(root.clone()) }
    }
}

fn corrupt(id: &ChunkId, what: &str) -> StoreError {
    StoreError::Corrupt(format!("tree object {id}: {what}"))
}

/// An object that is about to be read, with what its parent says about it.
struct Node {
    id: ChunkId,
    /// Level it must have; `None` for a root, which may have any.
    level: Option<u8>,
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
}

impl Node {
    fn root(id: ChunkId) -> Node {
        Node { id, level: None, lower: Vec::new(), upper: None }
    }

    fn child(&self, level: u8, children: &[(Vec<u8>, ChunkId)], at: usize) -> Node {
        let upper = children.get(at + 1).map(|c| c.0.clone()).or_else(|| self.upper.clone());
        // check_index has seen that the level is at least 1.
        Node { id: children[at].1, level: Some(level - 1), lower: children[at].0.clone(), upper }
    }

    fn check_level(&self, level: u8) -> Result<()> {
        match self.level {
            Some(expected) if expected != level => {
                Err(corrupt(&self.id, "a level that does not fit (TREE-5)"))
            }
            _ if level > INDEX_LEVELS_MAX => Err(corrupt(&self.id, "too many levels (TREE-5)")),
            _ => Ok(()),
        }
    }

    fn check_range<'n>(&self, first: Option<&'n [u8]>, last: Option<&'n [u8]>) -> Result<()> {
        let low = first.is_some_and(|name| name < self.lower.as_slice());
        let high = last.is_some_and(|name| self.upper.as_deref().is_some_and(|upper| name >= upper));
        if low || high {
            return Err(corrupt(&self.id, "names outside of what its parent says (TREE-2)"));
        }
        Ok(())
    }

    fn check_leaf(&self, entries: &[Entry]) -> Result<()> {
        self.check_level(0)?;
        self.check_range(
            entries.first().map(|e| e.name.as_slice()),
            entries.last().map(|e| e.name.as_slice()),
        )
    }

    fn check_index(&self, level: u8, children: &[(Vec<u8>, ChunkId)]) -> Result<()> {
        self.check_level(level)?;
        if level == 0 || children.is_empty() {
            return Err(corrupt(&self.id, "an index object without children"));
        }
        self.check_range(children.first().map(|c| c.0.as_slice()), children.last().map(|c| c.0.as_slice()))
    }
}

/// The entries of one directory, in name order. Holds one object for each level.
pub struct DirIter<'r> {
    reader: &'r TreeReader<'r>,
    /// Index objects above the leaf, with the position of the child to read next.
    above: Vec<(Node, Arc<TreeObject>, usize)>,
    leaf: Option<(Arc<TreeObject>, usize)>,
}

impl std::fmt::Debug for DirIter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirIter").field("levels", &self.above.len()).finish_non_exhaustive()
    }
}

impl<'r> DirIter<'r> {
    fn open(reader: &'r TreeReader<'r>, dir: &ChunkId, after: Option<&[u8]>) -> Result<Self> {
        let mut iter = DirIter { reader, above: Vec::new(), leaf: None };
        iter.descend(Node::root(*dir), after)?;
        Ok(iter)
    }

    /// Goes down to the leaf that holds what comes after `after`.
    fn descend(&mut self, mut node: Node, after: Option<&[u8]>) -> Result<()> {
        loop {
            let object = self.reader.object(&node.id)?;
            match object.as_ref() {
                TreeObject::DirLeaf(entries) => {
                    node.check_leaf(entries)?;
                    let at = after.map_or(0, |after| entries.partition_point(|e| e.name.as_slice() <= after));
                    self.leaf = Some((object, at));
                    return Ok(());
                }
                TreeObject::DirIndex { level, children } => {
                    node.check_index(*level, children)?;
                    let at = after.map_or(0, |after| children.partition_point(|c| c.0.as_slice() <= after));
                    let at = at.saturating_sub(1);
                    let child = node.child(*level, children, at);
                    self.above.push((node, object, at + 1));
                    node = child;
                }
                TreeObject::ExtentLeaf(_) | TreeObject::ExtentIndex { .. } => {
                    return Err(corrupt(&node.id, "extents where a directory should be"));
                }
            }
        }
    }

    /// Returns the next entry, or `None` at the end. After an error the iteration is over.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some((object, at)) = &mut self.leaf {
                if let TreeObject::DirLeaf(entries) = object.as_ref()
                    && let Some(entry) = entries.get(*at)
                {
                    *at += 1;
                    return Ok(Some(entry.clone()));
                }
                self.leaf = None;
            }
            let Some((node, object, at)) = self.above.last_mut() else { return Ok(None) };
            let child = match object.as_ref() {
                TreeObject::DirIndex { level, children } if *at < children.len() => {
                    node.child(*level, children, *at)
                }
                _ => {
                    self.above.pop();
                    continue;
                }
            };
            *at += 1;
            if let Err(e) = self.descend(child, None) {
                self.above.clear();
                return Err(e);
            }
        }
    }
}

/// The extents of one file, in order. Holds one object for each level.
pub struct ExtentIter<'r> {
    reader: &'r TreeReader<'r>,
    size: u64,
    /// Where the previous extent ended: the next one may not start before.
    end: u64,
    flat: std::slice::Iter<'r, Extent>,
    above: Vec<ExtentNode>,
    leaf: Option<(Arc<TreeObject>, usize)>,
}

struct ExtentNode {
    object: Arc<TreeObject>,
    next: usize,
    upper: u64,
}

impl std::fmt::Debug for ExtentIter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExtentIter").field("size", &self.size).field("end", &self.end).finish_non_exhaustive()
    }
}

impl<'r> ExtentIter<'r> {
    fn open(reader: &'r TreeReader<'r>, content: &'r Content, size: u64, from: u64) -> Result<Self> {
        let flat = match content {
            Content::Extents(extents) => {
                let at = extents.partition_point(|e| e.offset.saturating_add(e.len) <= from);
                extents[at..].iter()
            }
            _ => [].iter(),
        };
        let mut iter = ExtentIter { reader, size, end: 0, flat, above: Vec::new(), leaf: None };
        if let Content::ExtentTree(id) = content {
            iter.descend(*id, None, (0, size), from)?;
        }
        Ok(iter)
    }

    fn descend(&mut self, id: ChunkId, level: Option<u8>, range: (u64, u64), from: u64) -> Result<()> {
        let (mut id, mut expected, (mut lower, mut upper)) = (id, level, range);
        loop {
            let object = self.reader.object(&id)?;
            let (level, first, last) = match object.as_ref() {
                TreeObject::ExtentLeaf(extents) => {
                    (0, extents.first().map(|e| e.offset), extents.last().map(|e| e.offset))
                }
                TreeObject::ExtentIndex { level, children } if *level > 0 && !children.is_empty() => {
                    (*level, children.first().map(|c| c.0), children.last().map(|c| c.0))
                }
                _ => return Err(corrupt(&id, "not an extent object")),
            };
            if expected.is_some_and(|expected| expected != level) || level > INDEX_LEVELS_MAX {
                return Err(corrupt(&id, "a level that does not fit (TREE-5)"));
            }
            if first.is_some_and(|first| first < lower) || last.is_some_and(|last| last >= upper) {
                return Err(corrupt(&id, "extents outside of what its parent says (TREE-2)"));
            }
            match object.as_ref() {
                TreeObject::ExtentIndex { level, children } => {
                    let at = children.partition_point(|c| c.0 <= from).saturating_sub(1);
                    let outer = upper;
                    (lower, id) = children[at];
                    upper = children.get(at + 1).map_or(outer, |c| c.0);
                    expected = Some(level - 1);
                    self.above.push(ExtentNode { object, next: at + 1, upper: outer });
                }
                TreeObject::ExtentLeaf(extents) => {
                    let at = extents.partition_point(|e| e.offset.saturating_add(e.len) <= from);
                    self.leaf = Some((object, at));
                    return Ok(());
                }
                TreeObject::DirLeaf(_) | TreeObject::DirIndex { .. } => {
                    return Err(corrupt(&id, "not an extent object"));
                }
            }
        }
    }

    /// Returns the next extent, or `None` at the end. After an error the iteration is over.
    pub fn next_extent(&mut self) -> Result<Option<Extent>> {
        loop {
            if let Some(extent) = self.flat.next() {
                return self.checked(*extent);
            }
            if let Some((object, at)) = &mut self.leaf {
                if let TreeObject::ExtentLeaf(extents) = object.as_ref()
                    && let Some(extent) = extents.get(*at)
                {
                    *at += 1;
                    let extent = *extent;
                    return self.checked(extent);
                }
                self.leaf = None;
            }
            let Some(node) = self.above.last_mut() else { return Ok(None) };
            let (level, child, range) = match node.object.as_ref() {
                TreeObject::ExtentIndex { level, children } if node.next < children.len() => {
                    let (lower, id) = children[node.next];
                    let upper = children.get(node.next + 1).map_or(node.upper, |c| c.0);
                    (*level - 1, id, (lower, upper))
                }
                _ => {
                    self.above.pop();
                    continue;
                }
            };
            node.next += 1;
            if let Err(e) = self.descend(child, Some(level), range, 0) {
                self.above.clear();
                return Err(e);
            }
        }
    }

    fn checked(&mut self, extent: Extent) -> Result<Option<Extent>> {
        let end = extent.offset.checked_add(extent.len).filter(|end| *end <= self.size && extent.len > 0);
        match end {
            Some(end) if extent.offset >= self.end => {
                self.end = end;
                Ok(Some(extent))
            }
            _ => Err(StoreError::Corrupt(format!("the extent at {} breaks TREE-4", extent.offset))),
        }
    }
}

/// One thing met on a walk.
#[derive(Clone, Debug)]
pub struct WalkItem {
    /// Names from below the walk's root, joined by `/`.
    pub path: Vec<u8>,
    /// How many names the path has.
    pub depth: usize,
    /// What stands there.
    pub entry: Entry,
}

/// A directory that could not be read (further) on a walk. The walk goes on beside it.
#[derive(Debug)]
pub struct WalkError {
    /// The directory, as in [`WalkItem::path`].
    pub path: Vec<u8>,
    /// Why.
    pub source: StoreError,
}

/// Everything below a directory, parents first. Holds the objects of one directory for each level of nesting.
#[derive(Debug)]
pub struct Walk<'r> {
    reader: &'r TreeReader<'r>,
    /// Open directories, each with the length of its path.
    stack: Vec<(DirIter<'r>, usize)>,
    path: Vec<u8>,
    /// A directory that was returned and is to be entered next.
    pending: Option<Entry>,
}

impl Walk<'_> {
    /// Leaves out what is below the directory that was returned last.
    pub fn skip_children(&mut self) {
        self.pending = None;
    }

    fn enter(&mut self, entry: &Entry) -> std::result::Result<(), WalkError> {
        let failed = |path: &Vec<u8>, source| Err(WalkError { path: path.clone(), source });
        let Content::Dir(dir) = &entry.content else {
            return failed(&self.path, StoreError::Corrupt("a directory without an object".into()));
        };
        if self.stack.len() > DEPTH_MAX {
            return failed(&self.path, corrupt(dir, "directories nest too deep (TREE-5)"));
        }
        match self.reader.entries(dir, None) {
            Ok(iter) => {
                self.stack.push((iter, self.path.len()));
                Ok(())
            }
            Err(source) => failed(&self.path, source),
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = std::result::Result<WalkItem, WalkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(entry) = self.pending.take()
            && let Err(e) = self.enter(&entry)
        {
            return Some(Err(e));
        }
        loop {
            let (iter, len) = self.stack.last_mut()?;
            self.path.truncate(*len);
            match iter.next_entry() {
                Ok(Some(entry)) => {
                    if !self.path.is_empty() {
                        self.path.push(b'/');
                    }
                    self.path.extend_from_slice(&entry.name);
                    if entry.kind == FileType::Dir {
                        self.pending = Some(entry.clone());
                    }
                    return Some(Ok(WalkItem { path: self.path.clone(), depth: self.stack.len(), entry }));
                }
                Ok(None) => {
                    self.stack.pop();
                }
                Err(source) => {
                    self.stack.pop();
                    return Some(Err(WalkError { path: self.path.clone(), source }));
                }
            }
        }
    }
}

/// The objects used last, bounded by the size of their encoding.
#[derive(Default)]
struct ObjectCache {
    objects: HashMap<ChunkId, (Arc<TreeObject>, usize, u64)>,
    by_age: BTreeMap<u64, ChunkId>,
    bytes: usize,
    clock: u64,
}

impl ObjectCache {
    fn get(&mut self, id: &ChunkId) -> Option<Arc<TreeObject>> {
        let (object, _, stamp) = self.objects.get_mut(id)?;
        self.clock += 1;
        self.by_age.remove(stamp);
        *stamp = self.clock;
        self.by_age.insert(self.clock, *id);
        Some(Arc::clone(object))
    }

    fn put(&mut self, id: ChunkId, object: Arc<TreeObject>, bytes: usize) {
        if bytes > CACHE_BYTES / 4 || self.objects.contains_key(&id) {
            return;
        }
        self.clock += 1;
        self.objects.insert(id, (object, bytes, self.clock));
        self.by_age.insert(self.clock, id);
        self.bytes += bytes;
        while self.bytes > CACHE_BYTES {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            if let Some((_, bytes, _)) = self.objects.remove(&oldest) {
                self.bytes -= bytes;
            }
        }
    }
}
