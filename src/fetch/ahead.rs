//! Fetching what a reader of files will want, before it wants it.
//!
//! A thread of its own walks the tree in the order in which the files will be read, and takes them in windows of some
//! hundred MiB. Of each window it knows all chunks, so it asks for them in the order of the packs, with what lies between
//! neighbours where that is little, in large pieces, many at a time. It is one or two windows ahead of the reader, and no
//! more: what is fetched has to stay in the cache until it is read.
//!
//! This is advice. What was not fetched ahead, for whatever reason, is fetched when it is read, and errors are told then.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::packs::RemotePacks;
use crate::format::{ChunkId, Content, Entry, FileType, PackKind, PackName};
use crate::snapshot::tree::TreeReader;
use crate::store::error::Result;
use crate::store::packs::ChunkSource;

/// The first window, in bytes of files: small, so that there is something to read soon. Each next one is four times as
/// large, up to [`WINDOW_MAX`].
const WINDOW_FIRST: u64 = 16 << 20;
/// The largest window, if the cache has room for four of them.
const WINDOW_MAX: u64 = 256 << 20;
/// The most chunks of a window.
const CHUNKS_MAX: usize = 1 << 16;
/// What lies between two wanted ranges is fetched as well if it is at most this long ...
const GAP_MAX: u64 = 512 << 10;
/// ... and so long as all of that is at most this part of what is wanted.
const GAPS_PART: u64 = 25;
/// Who starts is not kept waiting for a first window through more entries than this: they may all be small.
const ENTRIES_FIRST: usize = 4096;
/// After so many chunks in a row that no window has, the reader is taken to be elsewhere: past files that it did not read.
const LOST: u32 = 256;

/// A source whose reader is run ahead of.
pub struct Ahead {
    packs: Arc<RemotePacks>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("packs", &self.packs).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// The reader has come further, the first window was planned, or it is over.
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// In which window a chunk is; of the windows that are not yet read.
    chunks: HashMap<ChunkId, u64>,
    /// Windows that were planned.
    planned: u64,
    /// Where the reader is: it has asked for a chunk of this window.
    reading: u64,
    /// Chunks in a row that no window has.
    strange: u32,
    /// There is nothing to wait for at the start any more.
    started: bool,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Consistent between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reader wants a chunk.
    fn asked(&self, id: &ChunkId) {
        let mut state = self.lock();
        let before = state.reading;
        match state.chunks.get(id).copied() {
            Some(window) => {
                state.strange = 0;
                state.reading = before.max(window);
            }
            None => {
                state.strange += 1;
                if state.strange >= LOST {
                    state.strange = 0;
                    state.reading = state.planned;
                }
            }
        }
        if state.reading != before {
            self.moved.notify_all();
        }
    }

    /// Notes a window, and waits until the reader is in the one before it. False: it is over.
    fn wait_for_reader(&self, ids: &[ChunkId]) -> bool {
        let mut state = self.lock();
        let window = state.planned;
        while !state.stop && state.reading + 1 < window {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let reading = state.reading;
        state.chunks.retain(|_, window| *window >= reading);
        state.chunks.extend(ids.iter().map(|id| (*id, window)));
        state.planned += 1;
        !state.stop
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.moved.notify_all();
    }
}

impl Ahead {
    /// Begins to run ahead of somebody who reads `entry`: a file in order, or all files below a directory in the order of
    /// their names. Returns when the first window is on its way.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(packs: &Arc<RemotePacks>, entry: &Entry) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (source, entry, theirs) = (Arc::clone(packs), entry.clone(), Arc::clone(&shared));
        // Not waited for at the end: it may be in a wait for the network.
        std::thread::Builder::new().name("sr-ahead".into()).spawn(move || {
            if let Err(error) = run(&source, &entry, &theirs) {
                tracing::debug!(%error, "fetching ahead");
            }
            theirs.set(|state| state.started = true);
        })?;
        let mut state = shared.lock();
        while !state.started {
            state = shared.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        Ok(Self { packs: Arc::clone(packs), shared })
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.set(|state| state.stop = true);
    }
}

impl ChunkSource for Ahead {
    fn read_chunk(&self, kind: PackKind, id: &ChunkId) -> Result<Arc<[u8]>> {
        if kind == PackKind::Data {
            self.shared.asked(id);
        }
        self.packs.read_chunk(kind, id)
    }

    fn read_at(&self, id: &ChunkId, offset: u32, buf: &mut [u8]) -> Result<()> {
        self.shared.asked(id);
        self.packs.read_at(id, offset, buf)
    }
}

/// Chunks that are wanted next.
#[derive(Default)]
struct Window {
    seen: HashSet<ChunkId>,
    ids: Vec<ChunkId>,
    bytes: u64,
}

struct Run<'a> {
    packs: &'a RemotePacks,
    shared: &'a Shared,
    window: Window,
    window_max: u64,
}

fn run(packs: &Arc<RemotePacks>, entry: &Entry, shared: &Shared) -> Result<()> {
    let reader = TreeReader::shared(Arc::clone(packs) as Arc<dyn ChunkSource>);
    let mut run = Run { packs, shared, window: Window::default(), window_max: WINDOW_FIRST };
    if entry.kind != FileType::Dir {
        if run.file(&reader, entry)? {
            run.submit()?;
        }
        return Ok(());
    }
    // Files with several names are read at the first one.
    let mut linked = HashSet::new();
    for (n, item) in reader.walk(entry).enumerate() {
        if n == ENTRIES_FIRST {
            shared.set(|state| state.started = true);
        }
        // A directory that can't be read: the reader will say so.
        let Ok(item) = item else { continue };
        let again = item.entry.nlink > 1 && !linked.insert(item.entry.ino);
        if item.entry.kind == FileType::File && !again && !run.file(&reader, &item.entry)? {
            return Ok(());
        }
    }
    run.submit()?;
    Ok(())
}

impl Run<'_> {
    /// Takes a file's chunks in. False: it is over.
    fn file(&mut self, reader: &TreeReader<'_>, entry: &Entry) -> Result<bool> {
        if matches!(entry.content, Content::Inline(_) | Content::None) {
            return Ok(!self.shared.lock().stop);
        }
        let mut extents = match reader.extents(&entry.content, entry.size, 0) {
            Ok(extents) => extents,
            Err(_) => return Ok(true),
        };
        // An error in here is the reader's to tell.
        while let Ok(Some(extent)) = extents.next_extent() {
            if self.window.seen.insert(extent.chunk) {
                self.window.ids.push(extent.chunk);
                self.window.bytes += extent.len;
            }
            let full = self.window.bytes >= self.window_max || self.window.ids.len() >= CHUNKS_MAX;
            if full && !self.submit()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Begins to fetch a window, when the reader is near enough. False: it is over.
    fn submit(&mut self) -> Result<bool> {
        let Window { ids, .. } = std::mem::take(&mut self.window);
        self.window_max = (self.window_max * 4).min(WINDOW_MAX).min(self.packs.disk().cache_bytes() / 4);
        let ranges = join(self.packs.stored(&ids)?);
        if !self.shared.wait_for_reader(&ids) {
            return Ok(false);
        }
        for (pack, range) in ranges {
            self.packs.disk().plan(&pack, range);
        }
        self.shared.set(|state| state.started = true);
        Ok(true)
    }
}

/// Joins ranges of a pack that lie near each other, the nearest first, as long as there is little between them.
fn join(ranges: Vec<(PackName, Range<u64>)>) -> Vec<(PackName, Range<u64>)> {
    let wanted: u64 = ranges.iter().map(|(_, range)| range.end - range.start).sum();
    let mut gaps: Vec<u64> = ranges
        .windows(2)
        .filter(|pair| pair[0].0 == pair[1].0)
        .map(|pair| pair[1].1.start.saturating_sub(pair[0].1.end))
        .filter(|gap| *gap <= GAP_MAX)
        .collect();
    gaps.sort_unstable();
    let mut left = wanted / GAPS_PART;
    let mut largest = 0;
    for gap in gaps {
        if gap > left {
            break;
        }
        left -= gap;
        largest = gap;
    }
    // Several gaps of the largest length may be more than there is room for: they are counted.
    let mut room = wanted / GAPS_PART;
    let mut joined: Vec<(PackName, Range<u64>)> = Vec::new();
    for (pack, range) in ranges {
        if let Some((last, before)) = joined.last_mut()
            && *last == pack
        {
            let gap = range.start.saturating_sub(before.end);
            if gap <= largest && gap <= room {
                room -= gap;
                before.end = before.end.max(range.end);
                continue;
            }
        }
        joined.push((pack, range));
    }
    joined
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(pack: u8, range: Range<u64>) -> (PackName, Range<u64>) {
        (PackName([pack; 32]), range)
    }

    #[test]
    fn neighbours_are_joined_and_little_is_fetched_in_vain() {
        // Nothing between them.
        let touching = vec![at(1, 0..100), at(1, 100..200), at(2, 200..300)];
        assert_eq!(join(touching), [at(1, 0..200), at(2, 200..300)]);
        // 1000 wanted: 40 may be in vain, the smallest gaps first.
        let apart = vec![at(1, 0..500), at(1, 530..600), at(1, 610..1000), at(1, 1040..1080)];
        assert_eq!(join(apart), [at(1, 0..1000), at(1, 1040..1080)]);
        // Three gaps of 20, and room for two.
        let even = vec![at(1, 0..250), at(1, 270..520), at(1, 540..790), at(1, 810..1060)];
        assert_eq!(join(even), [at(1, 0..790), at(1, 810..1060)]);
        assert_eq!(join(Vec::new()), []);
    }
}
