//! Files in core: those that are open, have data in memory, or are being worked on.
//!
//! A [`Node`] is the single authority on its file's size and on data that is not published; the file's row says what
//! is published. Whoever changes the size or the extents of a file holds its node's lock. Nodes live in one table, are
//! reached only through [`NodeRef`]s, and leave the table when the last reference to a clean one is dropped, so there
//! is never more than one node for a file.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::store::packs::Plaintext;
use crate::store::pool::{Buf, Pool};

use super::Core;
use super::dirty::DirtyMap;
use super::error::{FsError, FsResult};
use super::gaps::Gaps;
use crate::env::Time;
use crate::format::ids::ChunkId;
use crate::format::tree::FileType;
use rustix::io::Errno;

/// A file in core.
#[derive(Debug)]
pub(super) struct Node {
    /// Its inode number.
    pub(super) ino: u64,
    data: Mutex<NodeData>,
    /// Signalled when in-flight data was published or failed, and when an exclusive operation ended.
    changed: Condvar,
    /// Bytes in its dirty map, for choosing a victim without taking locks.
    pub(super) dirty_hint: AtomicU64,
    /// [`NodeRef`]s to it. Leaves 0 only under the table's lock.
    refs: AtomicU64,
}

/// What a node's lock protects.
#[derive(Debug, Default)]
pub(super) struct NodeData {
    /// Whether `size` was read from the row.
    pub(super) loaded: bool,
    /// Size as readers and writers see it.
    pub(super) size: u64,
    /// mtime and ctime that a write set and that the row does not have yet.
    pub(super) times: Option<(Time, Time)>,
    /// Data not submitted yet; newer than what is in flight.
    pub(super) dirty: DirtyMap,
    /// Data submitted, oldest first; published strictly in this order.
    pub(super) inflight: VecDeque<InFlight>,
    /// Number of the next entry of `inflight`.
    pub(super) next_seq: u64,
    /// Open handles.
    pub(super) opens: u32,
    /// Those of them that may write.
    pub(super) writers: u32,
    /// An operation that needs the file to itself is under way: writers wait.
    pub(super) exclusive: bool,
    /// Purged: nothing of it may be written any more.
    pub(super) dead: bool,
    /// How many times storing its data failed.
    pub(super) failures: u64,
    /// The last failure, while the data is still not stored.
    pub(super) last_error: Option<FsError>,
    /// Streaming has stopped after a failure until the next flush.
    pub(super) stalled: bool,
    /// Where the last chunk that was cut from a stream ended.
    pub(super) stream_end: u64,
    /// Bytes written since the dirty map was last looked through for runs to cut.
    pub(super) unscanned: u64,
    /// When the oldest dirty byte was written (monotonic); meaningful while there is one.
    pub(super) dirty_since: Duration,
}

/// Bytes of a file on their way to a pack or into the database.
#[derive(Debug)]
pub(super) struct InFlight {
    /// Identifies it to the worker that completes it.
    pub(super) seq: u64,
    /// Offset in the file.
    pub(super) off: u64,
    /// The bytes.
    pub(super) data: Piece,
    /// How far it is.
    pub(super) state: FlightState,
    /// Which of the bytes count as dirty data (start, end): these are charged to the budget and go back to the dirty
    /// map on failure. The others were durable before and are only stored again in a better form.
    pub(super) charged: Vec<(u64, u64)>,
}

impl InFlight {
    /// Returns the end of its bytes in the file.
    pub(super) fn end(&self) -> u64 {
        self.off + self.data.len() as u64
    }

    /// Returns the bytes charged to the budget.
    pub(super) fn charge(&self) -> u64 {
        self.charged.iter().map(|(start, end)| end - start).sum()
    }
}

/// How far in-flight data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlightState {
    /// A worker has it.
    Pending,
    /// It stands in this chunk.
    Chunk(ChunkId),
    /// It goes into the extent's row.
    Inline,
}

/// A part of a shared buffer.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    buf: Arc<Buf>,
    start: usize,
    end: usize,
}

impl Piece {
    /// Returns the part `start..end` of `buf`.
    pub(super) fn new(buf: &Arc<Buf>, start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= buf.len());
        Self { buf: Arc::clone(buf), start, end }
    }

    /// Returns it as a chunk for the workers, who share the buffer with the readers of data in flight.
    pub(super) fn into_plaintext(self) -> Plaintext {
        Plaintext::Shared(self.buf, self.start..self.end)
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }
}

impl Node {
    fn new(ino: u64, pool: &Arc<Pool>) -> Self {
        Self {
            ino,
            data: Mutex::new(NodeData { dirty: DirtyMap::with_pool(pool), ..NodeData::default() }),
            changed: Condvar::new(),
            dirty_hint: AtomicU64::new(0),
            refs: AtomicU64::new(0),
        }
    }

    /// Takes the node's lock.
    pub(super) fn lock(&self) -> MutexGuard<'_, NodeData> {
        // A thread that panicked left at worst a write half accounted for, and the assertion that failed is reported.
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the lock until something changed.
    pub(super) fn wait<'a>(&self, guard: MutexGuard<'a, NodeData>) -> MutexGuard<'a, NodeData> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes who waits.
    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Publishes the size of the dirty map for the choice of victims.
    pub(super) fn note_dirty(&self, data: &NodeData) {
        self.dirty_hint.store(data.dirty.bytes(), Ordering::Relaxed);
    }

    fn is_idle(&self) -> bool {
        // Only called when no one has a reference, so the lock is free.
        self.data.try_lock().is_ok_and(|data| {
            data.opens == 0 && data.dirty.is_empty() && data.inflight.is_empty() && data.times.is_none()
        })
    }
}

impl NodeData {
    /// Returns whether some data is not published yet.
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.inflight.is_empty()
    }

    /// Takes the bytes of `gaps` that are in memory out of `gaps` and into `buf`, whose first byte is the file's `base`.
    pub(super) fn read(&self, gaps: &mut Gaps, base: u64, buf: &mut [u8]) {
        self.dirty.read(gaps, base, buf);
        for entry in self.inflight.iter().rev() {
            gaps.take(entry.off, entry.end(), |from, to| {
                buf[(from - base) as usize..(to - base) as usize]
                    .copy_from_slice(&entry.data[(from - entry.off) as usize..(to - entry.off) as usize]);
            });
        }
    }

    /// Puts all in-flight data back to where it came from, newest first, so that newer bytes win. Returns by how many
    /// bytes the charge shrinks, since what was overwritten meanwhile is dropped.
    pub(super) fn take_back(&mut self) -> u64 {
        let mut dropped = 0;
        while let Some(entry) = self.inflight.pop_back() {
            for &(start, end) in &entry.charged {
                let mut gaps = Gaps::new(start, end);
                let mut covered = Vec::new();
                self.dirty.overlapping(start, end, |at, seg| covered.push((at, at + seg.len() as u64)));
                for (from, to) in covered {
                    gaps.take(from, to, |a, b| dropped += b - a);
                }
                for &(from, to) in gaps.ranges() {
                    let bytes = entry.data[(from - entry.off) as usize..(to - entry.off) as usize].to_vec();
                    self.dirty.put_back(from, bytes);
                }
            }
        }
        dropped
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct NodeTable(Mutex<HashMap<u64, Arc<Node>>>);

impl NodeTable {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Node>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a file is in core.
    pub(super) fn contains(&self, ino: u64) -> bool {
        self.lock().contains_key(&ino)
    }

    /// Returns how many files are in core.
    pub(super) fn len(&self) -> u64 {
        self.lock().len() as u64
    }
}

/// A reference to a node in the table. Dropping the last one of a clean, closed file takes it out of the table.
#[derive(Debug)]
pub(super) struct NodeRef {
    node: Arc<Node>,
    core: Weak<Core>,
}

impl Deref for NodeRef {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Clone for NodeRef {
    fn clone(&self) -> Self {
        NodeRef::new(&self.node, &self.core)
    }
}

impl NodeRef {
    /// Makes a reference; the caller has one already or holds the table's lock.
    fn new(node: &Arc<Node>, core: &Weak<Core>) -> Self {
        node.refs.fetch_add(1, Ordering::SeqCst);
        Self { node: Arc::clone(node), core: Weak::clone(core) }
    }
}

impl Drop for NodeRef {
    fn drop(&mut self) {
        if self.node.refs.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        if let Some(core) = self.core.upgrade() {
            let mut table = core.nodes.lock();
            // Someone may have found it in the table meanwhile, and may even have been the last one in turn.
            let unused = self.node.refs.load(Ordering::SeqCst) == 0 && self.node.is_idle();
            if unused && table.get(&self.node.ino).is_some_and(|node| Arc::ptr_eq(node, &self.node)) {
                table.remove(&self.node.ino);
            }
        }
    }
}

impl Core {
    /// Returns the node of a file if it is in core.
    pub(super) fn find_node(&self, ino: u64) -> Option<NodeRef> {
        Some(NodeRef::new(self.nodes.lock().get(&ino)?, &self.me))
    }

    /// Returns the node of a file, loading it first if need be.
    ///
    /// # Errors
    /// ENOENT if there is no such inode, EISDIR for a directory, EINVAL if it is no regular file.
    pub(super) fn node(&self, ino: u64) -> FsResult<NodeRef> {
        self.prepare(ino)?;
        let node = {
            let mut table = self.nodes.lock();
            NodeRef::new(table.entry(ino).or_insert_with(|| Arc::new(Node::new(ino, &self.pool))), &self.me)
        };
        let mut data = node.lock();
        if data.dead {
            return Err(Errno::NOENT.into());
        }
        if !data.loaded {
            // From here on, whoever removes the last name sees the node in the table and leaves the purge to us.
            let row = self.read_meta(|meta| meta.inode(ino))?;
            match row.kind {
                FileType::File => {}
                FileType::Dir => return Err(Errno::ISDIR.into()),
                FileType::Symlink
                | FileType::Fifo
                | FileType::Socket
                | FileType::CharDev
                | FileType::BlockDev => {
                    return Err(Errno::INVAL.into());
                }
            }
            data.size = row.size;
            data.loaded = true;
        }
        drop(data);
        Ok(node)
    }

    /// Returns all nodes that have data in memory, by inode number.
    pub(super) fn dirty_nodes(&self) -> Vec<NodeRef> {
        let all: Vec<NodeRef> = {
            let table = self.nodes.lock();
            table.values().map(|node| NodeRef::new(node, &self.me)).collect()
        };
        let mut dirty: Vec<NodeRef> = Vec::new();
        for node in all {
            let data = node.lock();
            let keep = data.is_dirty() || data.times.is_some();
            drop(data);
            if keep {
                dirty.push(node);
            }
        }
        dirty.sort_by_key(|node| node.ino);
        dirty
    }

    /// Returns how many bytes wait in dirty maps, not counting those in flight.
    pub(super) fn dirty_total(&self) -> u64 {
        self.nodes.lock().values().map(|node| node.dirty_hint.load(Ordering::Relaxed)).sum()
    }

    /// Returns the node with the most data that could be pushed out.
    pub(super) fn largest_node(&self) -> Option<NodeRef> {
        let table = self.nodes.lock();
        let node = table.values().max_by_key(|node| node.dirty_hint.load(Ordering::Relaxed))?;
        if node.dirty_hint.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(NodeRef::new(node, &self.me))
    }

    /// Waits until no exclusive operation is under way and returns the lock.
    ///
    /// # Errors
    /// ENOENT if the file was purged.
    pub(super) fn lock_shared<'a>(&self, node: &'a Node) -> FsResult<MutexGuard<'a, NodeData>> {
        let mut data = node.lock();
        while data.exclusive {
            data = node.wait(data);
        }
        if data.dead { Err(Errno::NOENT.into()) } else { Ok(data) }
    }

    /// Keeps writers out and waits until nothing is in flight. The result holds the file until it is dropped.
    ///
    /// # Errors
    /// ENOENT if the file was purged.
    pub(super) fn lock_exclusive<'a>(&self, node: &'a Node) -> FsResult<Exclusive<'a>> {
        let mut data = self.lock_shared(node)?;
        data.exclusive = true;
        let exclusive = Exclusive { node };
        while !data.inflight.is_empty() {
            data = node.wait(data);
        }
        drop(data);
        Ok(exclusive)
    }
}

/// Keeps writers of a file out; see [`Core::lock_exclusive`]. Others may still push its dirty data out, so who needs
/// that nothing is in flight takes the lock by [`Exclusive::drained`].
#[derive(Debug)]
pub(super) struct Exclusive<'a> {
    node: &'a Node,
}

impl<'a> Exclusive<'a> {
    /// Returns the node's lock at a moment when nothing is in flight.
    pub(super) fn drained(&self) -> MutexGuard<'a, NodeData> {
        let mut data = self.node.lock();
        while !data.inflight.is_empty() {
            data = self.node.wait(data);
        }
        data
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.node.lock().exclusive = false;
        self.node.wake();
    }
}
