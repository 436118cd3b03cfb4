//! Makes a snapshot of the working tree while writes to it go on.
//!
//! A consistent view of the live database says which directories changed since their object was written
//! (DirtyDirs). Those and their ancestors are written again, deepest first; every other directory keeps its
//! object: the one in its Trees row, or the one it has not even been loaded from ([`InodeRow::lazy`]). So a
//! snapshot costs what changed, and memory is one directory's writer and a few words for each directory that
//! is written.
//!
//! Order (FORMAT section 9): tree objects, packs closed and durable, rows that say so committed, chain file
//! durable. Only then the rows that make the next snapshot cheap: Trees rows, and DirtyDirs rows cleared
//! unless the directory changed again meanwhile. A crash anywhere before loses no mark; the next snapshot
//! writes the same objects again and finds them stored.
//!
//! Those last rows are applied in slices, ancestors first. Were a child's row applied and its parent's not, a
//! crash between would leave a parent whose recorded object has the old child, and no mark to tell. The other
//! way around the child is still marked, which only costs writing it once more.

use std::collections::HashMap;

use crate::env::Time;
use crate::format::{ChunkId, Content, Entry, Extent, FileType, Origin, PackKind, RootInfo, SnapshotId};
use crate::store::Effort;
use crate::store::engine::Engine;
use crate::store::error::{Result, StoreError};
use crate::store::live::{Batch, LiveView, Table};
use crate::store::packs::{PackInfo, PackState};
use crate::store::records::{
    DirentRow, ExtentRow, InodeRow, ROOT_INO, decode_u64, encode_u64, inode_key, parse_dirent_key,
    parse_extent_key, parse_inode_key, parse_xattr_key, rows_of, settings,
};

use super::chain::{Chain, open_sealed};
use super::gc::clear_undone;
use super::publish::{Draft, program, publish};
use super::rows::{Counts, TreeRow, scan};
use super::tree::{DEPTH_MAX, TreeReader};
use super::write::{ContentWriter, DirWriter, INLINE_WRITTEN_MAX};
use super::{WorkingTree, while_storing};

/// Rows applied while the working tree stands still.
const SLICE_ROWS: usize = 500;
/// Directories that have neither a mark nor an object may nest this deep; the working tree makes none that
/// nest at all.
const UNMARKED_DEPTH_MAX: usize = 32;

/// What a new snapshot is to say.
#[derive(Clone, Debug, Default)]
pub struct SnapshotOpts {
    /// The host that it is made on.
    pub host: String,
    /// Names to find it by.
    pub tags: Vec<String>,
    /// Make one even if nothing changed.
    pub force: bool,
}

/// A snapshot, as people are told about it.
#[derive(Clone, Debug)]
pub struct SnapshotInfo {
    /// Sequence.
    pub seq: u64,
    /// Hash of the file.
    pub id: SnapshotId,
    /// When it was made.
    pub time: Time,
    /// What it is of.
    pub origin: Origin,
    /// The host that it was made on.
    pub host: String,
    /// Names given to it.
    pub tags: Vec<String>,
    /// The program that made it.
    pub program: String,
    /// Its root and what is below it.
    pub root: RootInfo,
}

/// Makes a snapshot of the working tree. `None` when nothing changed since the newest one and it is not
/// forced.
///
/// Errors leave everything as it was: the same changes are in the next snapshot. A full disk has it tried again with
/// the reserve.
pub fn create(engine: &Engine, tree: &dyn WorkingTree, opts: &SnapshotOpts) -> Result<Option<SnapshotInfo>> {
    engine.with_reserve(|| create_once(engine, tree, opts))
}

/// Returns whether the working tree has anything that no snapshot has, as far as that is known without writing: a
/// directory that was touched and is as it was counts as changed.
///
/// # Errors
/// I/O errors; a live state that can't be read.
pub fn has_changes(engine: &Engine, tree: &dyn WorkingTree) -> Result<bool> {
    tree.flush()?;
    let view = engine.with_reserve(|| engine.live.view())?;
    let marks = marks(&view)?;
    let chain = Chain::of(engine)?;
    let newest = newest_of_working_tree(engine, &chain)?;
    let as_before = marks.is_empty() && matches!(newest, Newest::Root(_));
    Ok(!as_before && !is_unused(&view, &chain, &newest, &marks)?)
}

/// Whether a working tree is as it was made, empty, in a vault that has other snapshots: it would come to stand before
/// them. One that began with a snapshot's tree is not such a tree, though it may have no rows either: nothing of it was
/// looked at yet.
fn is_unused(view: &LiveView, chain: &Chain, newest: &Newest, marks: &Marks) -> Result<bool> {
    // The mark that a tree is made with which begins with nothing; changes count from 1.
    let first = encode_u64(0);
    Ok(matches!(newest, Newest::None)
        && chain.snapshots().next().is_some()
        && marks.len() == 1
        && marks.get(&ROOT_INO).is_some_and(|change| change[..] == first[..])
        && view.range(Table::Dirents, &[], None, 1)?.is_empty())
}

fn create_once(engine: &Engine, tree: &dyn WorkingTree, opts: &SnapshotOpts) -> Result<Option<SnapshotInfo>> {
    let _gate = while_storing(engine)?;
    engine.check_poison()?;
    tree.flush()?;
    let view = engine.with_reserve(|| engine.live.view())?;
    let chain = Chain::of(engine)?;
    let newest = newest_of_working_tree(engine, &chain)?;
    let marks = marks(&view)?;
    let as_before = marks.is_empty() && matches!(newest, Newest::Root(_));
    if (as_before || is_unused(&view, &chain, &newest, &marks)?) && !opts.force {
        return Ok(None);
    }
    let mut rewriter = Rewriter::new(engine, &view);
    let root = rewriter.run(&marks)?;
    let same = matches!(&newest, Newest::Root(newest) if newest.entry == root.entry);
    if same && !opts.force {
        settle(engine, tree, &rewriter.written, &marks, &[])?;
        return Ok(None);
    }
    engine.with_reserve(|| engine.packs.close_open())?;
    let published = publish(engine, Some(chain), |chain| {
        let packs = packs_to_list(engine, chain)?;
        Ok(Some(Draft {
            origin: Origin::WorkingTree,
            packs,
            removed: Vec::new(),
            retired: Vec::new(),
            replacements: Vec::new(),
            host: opts.host.clone(),
            tags: opts.tags.clone(),
            root: Some(root.clone()),
        }))
    })?
    .ok_or_else(|| StoreError::Corrupt("a snapshot was not written".into()))?;
    clear_undone(engine)?;
    let extra = [(Table::Settings, settings::BASE_SNAPSHOT.to_vec(), published.id.as_bytes().to_vec())];
    settle(engine, tree, &rewriter.written, &marks, &extra)?;
    Ok(Some(SnapshotInfo {
        seq: published.seq,
        id: published.id,
        time: published.time,
        origin: Origin::WorkingTree,
        host: opts.host.clone(),
        tags: opts.tags.clone(),
        program: program(),
        root,
    }))
}

/// Returns what a new chain file names: every finished pack but those that are about to be deleted, whose
/// removal is durable. A condemned pack is among them as long as that is not so, since a collection that
/// stopped half way has left what it holds in use.
pub(crate) fn packs_to_list(
    engine: &Engine,
    chain: &Chain,
) -> Result<std::collections::BTreeSet<crate::format::PackName>> {
    let retired = chain.retired();
    let is_going = |pack: &PackInfo| pack.state == PackState::Condemned && retired.contains(&pack.name);
    let packs = engine.packs.closed_packs()?;
    Ok(packs.into_iter().filter(|pack| !is_going(pack)).map(|pack| pack.name).collect())
}

/// The newest snapshot of the working tree, as far as it matters here.
enum Newest {
    /// There is none.
    None,
    /// There is one, whose root can't be read: whatever is written differs from it.
    Unreadable,
    /// There is one with this root.
    Root(Box<RootInfo>),
}

fn newest_of_working_tree(engine: &Engine, chain: &Chain) -> Result<Newest> {
    let Some(info) = chain.snapshots().rev().find(|info| info.origin == Origin::WorkingTree) else {
        return Ok(Newest::None);
    };
    match open_sealed(engine.ctx.disk.as_ref(), &engine.ctx.keys, info) {
        Ok(sealed) => Ok(sealed.root.map_or(Newest::Unreadable, |root| Newest::Root(Box::new(root)))),
        Err(error @ StoreError::Io { .. }) => Err(error),
        Err(error) => {
            // That must not keep new snapshots from being made.
            tracing::warn!(seq = info.seq, %error, "the newest snapshot can't be opened");
            Ok(Newest::Unreadable)
        }
    }
}

/// The change counter of every marked directory.
type Marks = HashMap<u64, Vec<u8>>;

fn marks(view: &LiveView) -> Result<Marks> {
    let mut marks = Marks::new();
    scan(view, Table::DirtyDirs, &[], None, &mut |key, value| {
        marks.insert(parse_inode_key(key)?, value.to_vec());
        Ok(true)
    })?;
    Ok(marks)
}

/// A directory that was written, with its depth below the root.
struct Written {
    ino: u64,
    depth: usize,
    row: TreeRow,
}

/// Applies Trees rows, clears marks that are as they were in the view, and commits.
fn settle(
    engine: &Engine,
    tree: &dyn WorkingTree,
    written: &HashMap<u64, Written>,
    marks: &Marks,
    extra: &[(Table, Vec<u8>, Vec<u8>)],
) -> Result<()> {
    let live = &engine.live;
    let mut rows: Vec<&Written> = written.values().collect();
    rows.sort_by_key(|w| (w.depth, w.ino));
    // Marks of directories that are gone come last.
    let mut stale: Vec<u64> = marks.keys().filter(|ino| !written.contains_key(ino)).copied().collect();
    stale.sort_unstable();
    let mut first = true;
    let mut rows = rows.chunks(SLICE_ROWS);
    let mut stale = stale.chunks(SLICE_ROWS);
    loop {
        let (rows, stale) = (rows.next(), stale.next());
        if rows.is_none() && stale.is_none() && !first {
            break;
        }
        let mut apply = || {
            let mut batch = Batch::new();
            for w in rows.unwrap_or_default() {
                batch.put(Table::Trees, inode_key(w.ino), w.row.encode());
            }
            let inos = rows
                .unwrap_or_default()
                .iter()
                .map(|w| w.ino)
                .chain(stale.unwrap_or_default().iter().copied());
            for ino in inos {
                let Some(seen) = marks.get(&ino) else { continue };
                let now = live.get(Table::DirtyDirs, &inode_key(ino))?;
                if now.is_some_and(|now| now[..] == seen[..]) {
                    batch.delete(Table::DirtyDirs, inode_key(ino));
                }
            }
            if first {
                for (table, key, value) in extra {
                    batch.put(*table, key.clone(), value.clone());
                }
            }
            if batch.is_empty() { Ok(()) } else { live.apply(batch) }
        };
        tree.frozen(&mut apply)?;
        first = false;
    }
    engine.with_reserve(|| live.commit())
}

/// Writes the directories that changed, and their ancestors.
struct Rewriter<'a> {
    engine: &'a Engine,
    view: &'a LiveView,
    reader: TreeReader<'a>,
    written: HashMap<u64, Written>,
}

impl<'a> Rewriter<'a> {
    fn new(engine: &'a Engine, view: &'a LiveView) -> Self {
        let reader = TreeReader::new(engine.packs.as_ref());
        Rewriter { engine, view, reader, written: HashMap::new() }
    }

    fn inode(&self, ino: u64) -> Result<Option<InodeRow>> {
        self.view.get(Table::Inodes, &inode_key(ino))?.map(|row| InodeRow::decode(&row)).transpose()
    }

    fn inode_of(&self, ino: u64) -> Result<InodeRow> {
        self.inode(ino)?.ok_or_else(|| StoreError::Corrupt(format!("live database: no inode {ino}")))
    }

    fn run(&mut self, marks: &Marks) -> Result<RootInfo> {
        let root = self.inode_of(ROOT_INO)?;
        for (depth, ino) in self.order(marks)? {
            if !self.written.contains_key(&ino) {
                self.write_dir(ino, depth, 0)?;
            }
        }
        let (id, counts) = self.dir_object(ROOT_INO, &root, 0, 0)?;
        let entry = self.entry(Vec::new(), ROOT_INO, &root, Content::Dir(id))?;
        let next_ino = match self.view.get(Table::Settings, settings::NEXT_INO)? {
            Some(value) => decode_u64(&value)?,
            None => ROOT_INO + 1,
        };
        let Counts { files, dirs, others, bytes } = counts;
        // The root is a directory of the tree, too.
        Ok(RootInfo { entry, next_ino, files, dirs: dirs.saturating_add(1), others, bytes })
    }

    /// Returns the marked directories that still exist and all their ancestors, deepest first.
    fn order(&self, marks: &Marks) -> Result<Vec<(usize, u64)>> {
        let mut depths: HashMap<u64, usize> = HashMap::new();
        let mut path = Vec::new();
        for &marked in marks.keys() {
            path.clear();
            let mut at = marked;
            let above = loop {
                if let Some(depth) = depths.get(&at) {
                    break Some(*depth + 1);
                }
                path.push(at);
                if at == ROOT_INO {
                    break Some(0);
                }
                if path.len() > DEPTH_MAX {
                    return Err(StoreError::Corrupt(format!(
                        "directory {marked} nests deeper than {DEPTH_MAX} (TREE-5)"
                    )));
                }
                match self.inode(at)? {
                    Some(row) if row.kind == FileType::Dir && row.nlink > 0 => at = row.parent,
                    // The directory, or one above it, was removed after it was marked.
                    _ => break None,
                }
            };
            if let Some(above) = above {
                for (n, ino) in path.iter().rev().enumerate() {
                    depths.insert(*ino, above + n);
                }
            }
        }
        let mut order: Vec<(usize, u64)> = depths.into_iter().map(|(ino, depth)| (depth, ino)).collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        Ok(order)
    }

    /// Writes one directory, whose marked children have been written before.
    fn write_dir(&mut self, ino: u64, depth: usize, unmarked: usize) -> Result<()> {
        let row = self.inode_of(ino)?;
        if let Some(lazy) = row.lazy {
            // A mark on a directory that nobody has looked into says nothing new about its entries.
            let counts = Some(self.count(&lazy)?);
            self.written.insert(ino, Written { ino, depth, row: TreeRow { id: lazy, counts } });
            return Ok(());
        }
        let sink = self.engine.packs.as_ref();
        let mut writer = DirWriter::new(sink);
        let mut counts = Counts::default();
        let (from, to) = rows_of(ino);
        let view = self.view;
        scan(view, Table::Dirents, &from, Some(&to), &mut |key, value| {
            let (_, name) = parse_dirent_key(key)?;
            let dirent = DirentRow::decode(value)?;
            let row = self.inode_of(dirent.ino)?;
            let content = match row.kind {
                FileType::Dir => {
                    let (id, below) = self.dir_object(dirent.ino, &row, depth + 1, unmarked)?;
                    counts.add(&below);
                    Content::Dir(id)
                }
                FileType::File => self.file_content(dirent.ino, &row)?,
                FileType::Symlink => Content::Symlink(row.target.clone()),
                FileType::CharDev | FileType::BlockDev => {
                    Content::Device { major: row.rdev.0, minor: row.rdev.1 }
                }
                FileType::Fifo | FileType::Socket => Content::None,
            };
            let entry = self.entry(name.to_vec(), dirent.ino, &row, content)?;
            counts.add_entry(&entry);
            writer.push(entry)?;
            Ok(true)
        })?;
        let row = TreeRow { id: writer.finish()?, counts: Some(counts) };
        self.written.insert(ino, Written { ino, depth, row });
        Ok(())
    }

    /// Returns the object of a directory and what is below it: just written, or as it was.
    fn dir_object(
        &mut self,
        ino: u64,
        row: &InodeRow,
        depth: usize,
        unmarked: usize,
    ) -> Result<(ChunkId, Counts)> {
        if let Some(Written { row: TreeRow { id, counts: Some(counts) }, .. }) = self.written.get(&ino) {
            return Ok((*id, *counts));
        }
        let stored = self.view.get(Table::Trees, &inode_key(ino))?;
        let stored = stored.map(|value| TreeRow::decode(&value)).transpose()?;
        // What a directory was not even loaded from is what it has, whatever was written of it before.
        let stored = match row.lazy {
            Some(lazy) => Some(stored.filter(|s| s.id == lazy).unwrap_or(TreeRow { id: lazy, counts: None })),
            None => stored,
        };
        match stored {
            Some(TreeRow { id, counts: Some(counts) }) => Ok((id, counts)),
            Some(TreeRow { id, counts: None }) => {
                let counts = self.count(&id)?;
                let row = TreeRow { id, counts: Some(counts) };
                self.written.insert(ino, Written { ino, depth, row });
                Ok((id, counts))
            }
            None => {
                // A directory that was made and left empty has neither a mark of its own nor an object.
                if unmarked >= UNMARKED_DEPTH_MAX {
                    return Err(StoreError::Corrupt(format!(
                        "live database: directory {ino} was never marked"
                    )));
                }
                self.write_dir(ino, depth, unmarked + 1)?;
                match self.written.get(&ino) {
                    Some(Written { row: TreeRow { id, counts: Some(counts) }, .. }) => Ok((*id, *counts)),
                    _ => Err(StoreError::Corrupt(format!("directory {ino} was not written"))),
                }
            }
        }
    }

    /// Counts what is below a stored directory object.
    fn count(&self, dir: &ChunkId) -> Result<Counts> {
        let mut counts = Counts::default();
        let root = Entry {
            name: Vec::new(),
            kind: FileType::Dir,
            ino: ROOT_INO,
            mode: 0,
            uid: 0,
            gid: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            nlink: 2,
            size: 0,
            xattrs: Vec::new(),
            content: Content::Dir(*dir),
        };
        for item in self.reader.walk(&root) {
            counts.add_entry(&item.map_err(|e| e.source)?.entry);
        }
        Ok(counts)
    }

    fn entry(&self, name: Vec<u8>, ino: u64, row: &InodeRow, content: Content) -> Result<Entry> {
        Ok(Entry {
            name,
            kind: row.kind,
            ino,
            mode: row.mode,
            uid: row.uid,
            gid: row.gid,
            atime: row.atime,
            mtime: row.mtime,
            ctime: row.ctime,
            nlink: row.nlink,
            size: if row.kind == FileType::File { row.size } else { 0 },
            xattrs: if row.has_xattrs { self.xattrs(ino)? } else { Vec::new() },
            content,
        })
    }

    fn xattrs(&self, ino: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut xattrs = Vec::new();
        let (from, to) = rows_of(ino);
        scan(self.view, Table::Xattrs, &from, Some(&to), &mut |key, value| {
            xattrs.push((parse_xattr_key(key)?.1.to_vec(), value.to_vec()));
            Ok(true)
        })?;
        Ok(xattrs)
    }

    /// Returns the content of a file as its rows have it.
    fn file_content(&self, ino: u64, row: &InodeRow) -> Result<Content> {
        if let Some(tree) = row.lazy_extents {
            return Ok(Content::ExtentTree(tree));
        }
        if row.size == 0 {
            return Ok(Content::Empty);
        }
        let (from, to) = rows_of(ino);
        let first = self.view.range(Table::Extents, &from, Some(&to), 2)?;
        if let [(key, value)] = &first[..]
            && parse_extent_key(key)?.1 == 0
            && let ExtentRow::Inline(mut bytes) = ExtentRow::decode(value)?
            && bytes.len().min(usize::try_from(row.size).unwrap_or(usize::MAX)) <= INLINE_WRITTEN_MAX
        {
            bytes.truncate(usize::try_from(row.size).unwrap_or(usize::MAX));
            return Ok(Content::Inline(bytes));
        }
        let packs = self.engine.packs.as_ref();
        let mut writer = ContentWriter::new(packs);
        scan(self.view, Table::Extents, &from, Some(&to), &mut |key, value| {
            let (_, offset) = parse_extent_key(key)?;
            let extent = ExtentRow::decode(value)?;
            // FORMAT TREE-4: nothing beyond the end.
            let len = extent.len().min(row.size.saturating_sub(offset));
            if len == 0 {
                return Ok(true);
            }
            let (chunk, chunk_offset) = match extent {
                ExtentRow::Chunk { chunk, chunk_offset, .. } => (chunk, chunk_offset),
                ExtentRow::Inline(bytes) => {
                    let n = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
                    (packs.put(PackKind::Data, &bytes[..n], Effort::Thorough)?, 0)
                }
            };
            writer.push(Extent { offset, len, chunk, chunk_offset })?;
            Ok(true)
        })?;
        writer.finish()
    }
}
