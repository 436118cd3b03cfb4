//! Fetching what a reader of files will want, before it wants it.
//!
//! A thread of its own walks the tree in the order in which the files will be read, and takes them in windows of some
//! hundred MiB. Of each window it knows all chunks, so it asks for them in the order of the packs, with what lies between
//! neighbours where that is little, in large pieces, many at a time. It is one or two windows ahead of the reader, and no
//! more: what is fetched has to stay in the cache until it is read.
//!
//! This is advice. What was not fetched ahead, for whatever reason, is fetched when it is read, and errors are told then.
//! When the remote is lost it ends: each question would be waited for.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
/// After so many chunks in a row that no window ever had, the reader is taken to be elsewhere: past files that it did not
/// read.
const LOST: u32 = 256;
/// A window that the reader has passed is given up when so many chunks were asked for since one of it was: several threads
/// read, and one may be in the middle of a large file for long.
const STALE: u64 = 1024;
/// A reader that has come to the end of what is planned waits so long for the next window, instead of asking for one chunk
/// after the other; once a window.
const PLAN_PATIENCE: Duration = Duration::from_secs(5);
/// Chunks of windows that were read which are remembered.
const PAST_MAX: usize = 1 << 20;

/// Ranges of packs.
type Ranges = Vec<(PackName, Range<u64>)>;

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

struct Shared {
    state: Mutex<State>,
    /// The reader has come further, a window was planned, or it is over.
    moved: Condvar,
    /// [`PLAN_PATIENCE`].
    patience: Duration,
}

#[derive(Default)]
struct State {
    /// In which window a chunk is first; of the windows that are not yet read.
    chunks: HashMap<ChunkId, u64>,
    /// Chunks of windows that were read, by the first bytes of their ids: files share them, and they are read again.
    past: HashSet<u64>,
    /// What may still be wanted.
    plans: Vec<Plan>,
    /// Chunks that were asked for.
    asks: u64,
    /// Windows that were planned, ...
    planned: u64,
    /// ... and of so many the ranges were asked for.
    placed: u64,
    /// A reader waited in vain when so many were placed.
    in_vain: Option<u64>,
    /// No more will be planned.
    done: bool,
    /// Where the reader is: it has asked for a chunk of this window.
    reading: u64,
    /// Chunks in a row that no window has.
    strange: u32,
    /// There is nothing to wait for at the start any more.
    started: bool,
    stop: bool,
}

/// What was planned for a window.
struct Plan {
    window: u64,
    ranges: Ranges,
    /// When a chunk of it was last asked for, counted in chunks.
    asked: u64,
    /// The reader is elsewhere.
    left: bool,
}

impl State {
    /// The reader is so near that the next window is being planned, without waiting for anything but the remote.
    fn is_planning(&self) -> bool {
        !self.done && self.reading + 1 >= self.planned
    }

    /// Whether a chunk's window will be there soon, and the chunk with it as likely as not.
    fn may_come(&self, id: &ChunkId) -> bool {
        if self.stop || self.in_vain == Some(self.placed) {
            return false;
        }
        match self.chunks.get(id) {
            Some(window) => *window >= self.placed,
            None => self.is_planning() && !self.past.contains(&short(id)),
        }
    }
}

impl Shared {
    fn new(patience: Duration) -> Self {
        Self { state: Mutex::default(), moved: Condvar::new(), patience }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Consistent between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reader wants a chunk.
    fn asked(&self, id: &ChunkId) {
        let mut guard = self.lock();
        // Asked for one by one, what a window is about to ask for in large pieces would be many requests.
        let (mut until, mut placed) = (Instant::now() + self.patience, guard.placed);
        while guard.may_come(id) {
            if guard.placed != placed {
                (until, placed) = (Instant::now() + self.patience, guard.placed);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                guard.in_vain = Some(guard.placed);
            }
            guard = self.moved.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let state = &mut *guard;
        let before = state.reading;
        state.asks += 1;
        match state.chunks.get(id).copied() {
            Some(window) => {
                if let Some(plan) = state.plans.iter_mut().find(|plan| plan.window == window) {
                    plan.asked = state.asks;
                }
                state.strange = 0;
                state.reading = before.max(window);
            }
            None if state.past.contains(&short(id)) => state.strange = 0,
            None => {
                state.strange += 1;
                if state.strange >= LOST {
                    state.strange = 0;
                    state.reading = state.planned;
                    state.plans.iter_mut().for_each(|plan| plan.left = true);
                }
            }
        }
        if state.reading != before {
            self.moved.notify_all();
        }
    }

    /// Whether a window has a chunk that no earlier one has which the reader has not left.
    fn is_news(&self, ids: &[ChunkId]) -> bool {
        let state = self.lock();
        let left: HashSet<u64> =
            state.plans.iter().filter(|plan| plan.left).map(|plan| plan.window).collect();
        ids.iter().any(|id| state.chunks.get(id).is_none_or(|window| left.contains(window)))
    }

    /// Notes a window, and waits until the reader is in the one before it. Returns what was planned for windows that the
    /// reader has left; `None`: it is over.
    fn wait_for_reader(&self, ids: &[ChunkId], ranges: &Ranges) -> Option<Vec<Ranges>> {
        let mut guard = self.lock();
        while !guard.stop && guard.reading + 1 < guard.planned {
            guard = self.moved.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        let state = &mut *guard;
        if state.stop {
            return None;
        }
        let (reading, asks) = (state.reading, state.asks);
        let passed = |plan: &mut Plan| {
            plan.left || (plan.window + 1 < reading && asks.saturating_sub(plan.asked) > STALE)
        };
        let left: Vec<Plan> = state.plans.extract_if(.., passed).collect();
        if state.past.len() > PAST_MAX {
            state.past.clear();
        }
        let past = &mut state.past;
        state.chunks.retain(|id, window| {
            let is_left = left.iter().any(|plan| plan.window == *window);
            if is_left {
                past.insert(short(id));
            }
            !is_left
        });
        let window = state.planned;
        for id in ids {
            // It is read in the window that has it first.
            state.chunks.entry(*id).or_insert(window);
        }
        state.planned += 1;
        state.plans.push(Plan { window, ranges: ranges.clone(), asked: asks, left: false });
        Some(left.into_iter().map(|plan| plan.ranges).collect())
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
        // Whatever ends this, what was planned is taken back.
        let ahead = Self { packs: Arc::clone(packs), shared: Arc::new(Shared::new(PLAN_PATIENCE)) };
        let (source, entry, ends) = (Arc::clone(packs), entry.clone(), Ends(Arc::clone(&ahead.shared)));
        // Not waited for at the end: it may be in a wait for the network.
        std::thread::Builder::new().name("sr-ahead".into()).spawn(move || {
            if let Err(error) = run(&source, &entry, &ends.0) {
                tracing::debug!(%error, "fetching ahead");
            }
        })?;
        let mut state = ahead.shared.lock();
        while !state.started {
            state = ahead.shared.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        Ok(ahead)
    }
}

/// Nobody waits for a thread that has ended, however it did.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.set(|state| (state.started, state.placed, state.done) = (true, state.planned, true));
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let mut plans = Vec::new();
        self.shared.set(|state| {
            state.stop = true;
            plans = std::mem::take(&mut state.plans);
        });
        for plan in plans {
            self.packs.disk().unplan(&plan.ranges);
        }
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

    fn read_into(&self, id: &ChunkId, buf: &mut Vec<u8>) -> Result<()> {
        self.shared.asked(id);
        self.packs.read_into(id, buf)
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
        let Some(item) = unless_lost(packs, item.map_err(|failed| failed.source))? else { continue };
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
        // Errors in here are the reader's to tell.
        let extents = reader.extents(&entry.content, entry.size, 0);
        let Some(mut extents) = unless_lost(self.packs, extents)? else { return Ok(true) };
        while let Some(extent) = unless_lost(self.packs, extents.next_extent())?.flatten() {
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
        if !self.shared.is_news(&ids) {
            // It is on its way, and stays here until the reader has passed the windows that have it. As the reader can't be
            // seen to be in this one, nothing may wait for that.
            return Ok(!self.shared.lock().stop);
        }
        let ranges = join(self.packs.stored(&ids)?);
        let disk = self.packs.disk();
        let Some(left) = self.shared.wait_for_reader(&ids, &ranges) else { return Ok(false) };
        for ranges in left {
            disk.unplan(&ranges);
        }
        for (pack, range) in &ranges {
            disk.plan(pack, range.clone());
        }
        self.shared.set(|state| (state.started, state.placed) = (true, state.planned));
        if self.shared.lock().stop {
            // It ended while this was planned.
            disk.unplan(&ranges);
            return Ok(false);
        }
        Ok(true)
    }
}

/// What was read, if it could be; an error only if nothing more can be read.
fn unless_lost<T>(packs: &RemotePacks, read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if packs.disk().is_lost(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// The first bytes of an id, which are as random as all of it.
fn short(id: &ChunkId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = id.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Joins ranges of a pack that lie near each other, the nearest first, as long as there is little between them.
fn join(ranges: Ranges) -> Ranges {
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

    /// Longer than any test takes that goes well; one that fails ends then.
    const FOR_EVER: Duration = Duration::from_secs(600);

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

    fn ids(numbers: std::ops::RangeInclusive<u8>) -> Vec<ChunkId> {
        numbers.map(|n| ChunkId([n; 32])).collect()
    }

    /// Plans a window, as the thread does.
    fn window(shared: &Shared, ids: &[ChunkId], ranges: &Ranges) -> Option<Vec<Ranges>> {
        let left = shared.wait_for_reader(ids, ranges);
        shared.set(|state| state.placed = state.planned);
        left
    }

    /// Files share chunks: one that comes again later is not taken for a sign that the reader is there.
    #[test]
    fn a_chunk_belongs_to_the_window_that_has_it_first() {
        let shared = Shared::new(Duration::ZERO);
        let plan = |n: u8| vec![at(n, 0..10)];
        let ask = |n: u8| {
            shared.asked(&ChunkId([n; 32]));
            shared.lock().reading
        };
        assert_eq!(window(&shared, &ids(1..=9), &plan(0)), Some(Vec::new()));
        assert_eq!(window(&shared, &ids(5..=20), &plan(1)), Some(Vec::new()));
        assert_eq!((ask(5), ask(9), ask(10)), (0, 0, 1));
        assert_eq!(window(&shared, &ids(21..=23), &plan(2)), Some(Vec::new()));
        assert_eq!(ask(21), 2);
        // Somebody may still read the first ones ...
        assert_eq!(window(&shared, &ids(30..=30), &plan(3)), Some(Vec::new()));
        assert_eq!((ask(30), ask(6)), (3, 3));
        // ... but not after so long.
        for _ in 0..=STALE {
            ask(22);
        }
        assert_eq!(window(&shared, &ids(40..=40), &plan(4)), Some(vec![plan(0), plan(1)]));
        // What was read before is no strange chunk, however often it comes again.
        for _ in 0..LOST * 2 {
            assert_eq!(ask(7), 3);
        }
        // A reader that is elsewhere is followed, and everything before is given up.
        for _ in 0..LOST {
            ask(200);
        }
        assert_eq!(shared.lock().reading, 5);
        assert_eq!(window(&shared, &ids(50..=50), &plan(5)), Some(vec![plan(2), plan(3), plan(4)]));
        shared.set(|state| state.stop = true);
        assert_eq!(window(&shared, &ids(50..=50), &plan(6)), None);
    }

    /// A reader can't be seen to be in a window whose chunks are all of earlier ones: nothing waits for that.
    #[test]
    fn a_window_that_only_repeats_others_is_none() {
        let shared = Shared::new(Duration::ZERO);
        let plan = |n: u8| vec![at(n, 0..10)];
        assert!(shared.is_news(&ids(1..=9)) && !shared.is_news(&[]));
        assert_eq!(window(&shared, &ids(1..=9), &plan(0)), Some(Vec::new()));
        assert!(!shared.is_news(&ids(3..=9)) && shared.is_news(&ids(3..=10)));
        assert_eq!(window(&shared, &ids(10..=20), &plan(1)), Some(Vec::new()));
        assert!(!shared.is_news(&ids(5..=15)));
        // What a reader who went elsewhere has left is given up soon.
        for _ in 0..LOST {
            shared.asked(&ChunkId([200; 32]));
        }
        assert!(shared.is_news(&ids(5..=15)));
    }

    /// A reader at the end of what is planned lets the next window be planned, and asks for nothing by itself before that.
    #[test]
    fn a_reader_does_not_overtake_the_plan() {
        let shared = Shared::new(FOR_EVER);
        let plan = |n: u8| vec![at(n, 0..10)];
        let ask = |n: u8| shared.asked(&ChunkId([n; 32]));
        assert_eq!(window(&shared, &ids(1..=9), &plan(0)), Some(Vec::new()));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| [1, 10, 20, 30].map(ask));
            assert_eq!(window(&shared, &ids(10..=19), &plan(1)), Some(Vec::new()));
            // It was asked for when it is known, and not when it is placed.
            assert_eq!(shared.wait_for_reader(&ids(20..=29), &plan(2)), Some(Vec::new()));
            let state = shared.lock();
            assert!(state.asks == 2 && state.may_come(&ChunkId([20; 32])), "{}", state.asks);
            drop(state);
            shared.set(|state| state.placed = 3);
            assert_eq!(window(&shared, &ids(30..=39), &plan(3)), Some(Vec::new()));
            reader.join().unwrap();
        });
        let state = shared.lock();
        assert_eq!((state.asks, state.reading, state.strange, state.in_vain), (4, 3, 0, None));
        // What was planned long ago, or by nobody, is not waited for.
        assert!(!state.may_come(&ChunkId([1; 32])) && state.may_come(&ChunkId([200; 32])));
        drop(state);
        shared.set(|state| state.done = true);
        assert!(!shared.lock().may_come(&ChunkId([200; 32])));
    }

    /// A plan that takes too long is waited for once a window, and what is wanted is asked for without it.
    #[test]
    fn a_plan_that_does_not_come_is_waited_for_once() {
        let shared = Shared::new(Duration::ZERO);
        let id = |n: u8| ChunkId([n; 32]);
        let plan = |n: u8| vec![at(n, 0..10)];
        assert_eq!(window(&shared, &ids(1..=9), &plan(0)), Some(Vec::new()));
        assert!(shared.lock().may_come(&id(10)));
        shared.asked(&id(10));
        let state = shared.lock();
        assert_eq!((state.in_vain, state.asks, state.strange), (Some(1), 1, 1));
        assert!(!state.may_come(&id(10)) && !state.may_come(&id(11)), "not a second time");
        drop(state);
        // The next one is.
        assert_eq!(window(&shared, &ids(10..=19), &plan(1)), Some(Vec::new()));
        shared.asked(&id(10));
        assert!(shared.lock().may_come(&id(20)));
        shared.asked(&id(20));
        assert_eq!(shared.lock().in_vain, Some(2));
    }

    /// Whoever waits for the first window does not wait for ever, whatever happens to the thread that plans it.
    #[test]
    fn a_thread_that_ends_in_any_way_is_not_waited_for() {
        let shared = Arc::new(Shared::new(FOR_EVER));
        let ends = Ends(Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let _ends = ends;
            std::panic::resume_unwind(Box::new("as the test wants it"));
        });
        assert!(thread.join().is_err());
        assert!(shared.lock().started);
        shared.asked(&ChunkId([1; 32]));
        assert_eq!(shared.lock().in_vain, None);
    }
}
