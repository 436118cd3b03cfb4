//! Finds out what is still needed: by every remaining snapshot, and by the working tree.
//!
//! Data chunks are remembered by the first 8 bytes of their ids, tree objects by the first 16. Ids are keyed
//! hashes, so nobody without the key can make two begin alike; by chance it happens, and then a chunk too
//! many is kept. A tree object that is taken for one that was visited would not be looked into, so there 16
//! bytes are kept, with which that does not happen.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use crate::format::{ChunkId, Content, PackKind, TreeObject};
use crate::store::error::Result;
use crate::store::live::{LiveView, Table};
use crate::store::records::{ExtentRow, InodeRow, inode_key, parse_inode_key};

use super::rows::{TreeRow, scan};
use super::tree::TreeReader;

/// Ids are uniform already: hashing them again would only cost time.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }

    fn write_u128(&mut self, n: u128) {
        // The low half of a uniform number is uniform.
        self.0 = n as u64;
    }
}

type IdSet<T> = HashSet<T, BuildHasherDefault<IdHasher>>;

/// Returns the first 8 bytes of an id.
pub(crate) fn short(id: &ChunkId) -> u64 {
    let (head, _) = id.0.split_first_chunk::<8>().expect("an id has 32 bytes");
    u64::from_le_bytes(*head)
}

fn long(id: &ChunkId) -> u128 {
    let (head, _) = id.0.split_first_chunk::<16>().expect("an id has 32 bytes");
    u128::from_le_bytes(*head)
}

/// A set of chunk ids, as far as their first 8 bytes tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShortIds(IdSet<u64>);

impl ShortIds {
    pub(crate) fn insert(&mut self, id: &ChunkId) {
        self.0.insert(short(id));
    }

    pub(crate) fn remove(&mut self, id: &ChunkId) {
        self.0.remove(&short(id));
    }

    pub(crate) fn contains(&self, id: &ChunkId) -> bool {
        self.0.contains(&short(id))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Everything that is needed.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    data: ShortIds,
    /// Tree objects that were looked into with all that is below them.
    deep: IdSet<u128>,
    /// Tree objects of directories whose children are marked by themselves.
    shallow: IdSet<u128>,
}

impl Marks {
    /// Returns whether a chunk is needed (or, rarely, begins like one that is).
    pub(crate) fn needs(&self, kind: PackKind, id: &ChunkId) -> bool {
        match kind {
            PackKind::Data => self.data.contains(id),
            PackKind::Tree => self.deep.contains(&long(id)) || self.shallow.contains(&long(id)),
        }
    }

    /// Returns all that is needed of one kind.
    pub(crate) fn all(&self, kind: PackKind) -> ShortIds {
        match kind {
            PackKind::Data => self.data.clone(),
            // The first 8 bytes of an id are the low half of its first 16.
            PackKind::Tree => ShortIds(self.deep.iter().chain(&self.shallow).map(|id| *id as u64).collect()),
        }
    }

    /// Returns how many data chunks and tree objects are needed.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.data.len(), self.deep.union(&self.shallow).count())
    }

    /// Marks an object and everything below it.
    pub(crate) fn tree(&mut self, reader: &TreeReader<'_>, root: &ChunkId) -> Result<()> {
        let mut stack = vec![*root];
        while let Some(id) = stack.pop() {
            if self.deep.insert(long(&id)) {
                self.object(reader, &id, true, &mut stack)?;
            }
        }
        Ok(())
    }

    /// Marks a directory's own objects and the content of its files, but not the directories in it.
    fn directory(&mut self, reader: &TreeReader<'_>, root: &ChunkId) -> Result<()> {
        let mut stack = vec![*root];
        while let Some(id) = stack.pop() {
            if !self.deep.contains(&long(&id)) && self.shallow.insert(long(&id)) {
                self.object(reader, &id, false, &mut stack)?;
            }
        }
        Ok(())
    }

    fn object(
        &mut self,
        reader: &TreeReader<'_>,
        id: &ChunkId,
        enter: bool,
        stack: &mut Vec<ChunkId>,
    ) -> Result<()> {
        match reader.object(id)?.as_ref() {
            TreeObject::DirLeaf(entries) => {
                for entry in entries {
                    match &entry.content {
                        Content::Dir(dir) if enter => stack.push(*dir),
                        Content::Extents(extents) => extents.iter().for_each(|e| self.data.insert(&e.chunk)),
                        Content::ExtentTree(tree) => stack.push(*tree),
                        _ => {}
                    }
                }
            }
            TreeObject::DirIndex { children, .. } => stack.extend(children.iter().map(|c| c.1)),
            TreeObject::ExtentLeaf(extents) => extents.iter().for_each(|e| self.data.insert(&e.chunk)),
            TreeObject::ExtentIndex { children, .. } => stack.extend(children.iter().map(|c| c.1)),
        }
        Ok(())
    }

    /// Marks what the rows of the working tree need, those of deleted but open files included.
    pub(crate) fn working_tree(&mut self, reader: &TreeReader<'_>, view: &LiveView) -> Result<()> {
        // Deep marks first: an object that was only looked into on the surface must not pass for done.
        let mut directories = Vec::new();
        scan(view, Table::Inodes, &[], None, &mut |key, value| {
            let ino = parse_inode_key(key)?;
            let row = InodeRow::decode(value)?;
            if let Some(tree) = row.lazy_extents {
                self.tree(reader, &tree)?;
            }
            match row.lazy {
                Some(lazy) => self.tree(reader, &lazy)?,
                None if row.kind == crate::format::FileType::Dir => directories.push(ino),
                None => {}
            }
            Ok(true)
        })?;
        for ino in directories {
            let key = inode_key(ino);
            // What will be written again before anyone reads it is not needed.
            if view.get(Table::DirtyDirs, &key)?.is_some() {
                continue;
            }
            if let Some(value) = view.get(Table::Trees, &key)? {
                self.directory(reader, &TreeRow::decode(&value)?.id)?;
            }
        }
        scan(view, Table::Extents, &[], None, &mut |_, value| {
            if let ExtentRow::Chunk { chunk, .. } = ExtentRow::decode(value)? {
                self.data.insert(&chunk);
            }
            Ok(true)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ids_are_the_beginning() {
        let mut id = ChunkId([0; 32]);
        id.0[0] = 1;
        id.0[7] = 2;
        let mut other = id;
        other.0[8] = 9;
        let mut set = ShortIds::default();
        set.insert(&id);
        assert!(set.contains(&other), "alike in 8 bytes: kept");
        other.0[7] = 3;
        assert!(!set.contains(&other));
        assert_eq!(long(&id) as u64, short(&id), "Marks::all relies on it");
        let mut marks = Marks::default();
        marks.deep.insert(long(&id));
        assert!(marks.needs(PackKind::Tree, &id) && !marks.needs(PackKind::Data, &id));
        assert!(marks.all(PackKind::Tree).contains(&id));
        set.remove(&id);
        assert_eq!(set.len(), 0);
    }
}
