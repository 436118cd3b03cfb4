//! Ranges of packs: fetched once however many want them, by a few threads, and kept on the local disk for a while.
//!
//! A pack is a map of segments that don't overlap: each is on its way (*flying*), or here. Who wants bytes that no segment
//! has makes flying ones, and waits like everybody else; so no byte is fetched twice at the same time, and whoever waits
//! does so on a condition with a deadline, never in a call of the remote. What nobody reads at the moment is given up, the
//! least recently used first, when there is more than the cache may hold; what was planned and not yet read comes last.
//!
//! # How long is waited
//!
//! As long as anything arrives, for whomever, the remote is there: a wait ends when nothing at all has come for the whole
//! patience, or when its own request takes several times as long. On a slow line several requests share what it carries, and
//! all of them end at about the same time; so their pieces become so small that some arrive well within the patience.
//!
//! Everything here is ciphertext, and is believed no more than the remote is.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::scratch::{Scratch, Slot, rounded};
use super::to_io;
use crate::env::Env;
use crate::format::PackName;
use crate::format::pack::pack_path;
use crate::remote::{ErrorKind, Key, Remote, RemoteError};

/// The longest range of one request, in bytes: so many are in memory for each thread that fetches.
pub const PIECE: u64 = 4 << 20;
/// The shortest one where more is wanted.
const PIECE_MIN: u64 = 128 << 10;
/// Before anything is known of the line it is taken to carry so many bytes a second (half a Mbit).
const LINE: u64 = 64 << 10;
/// Pieces that take longer than this part of the patience become shorter, ...
const SLOW_PART: u32 = 8;
/// ... and those that take less than this part become longer.
const QUICK_PART: u32 = 32;
/// A single request is waited for by one reader for no longer than so many times the patience, whatever else arrives.
const STUCK: u32 = 4;
/// Once a wait was in vain, others are this much shorter until something arrives: not each of a hundred readers of a dead
/// remote is to wait for the whole time, one after the other.
const HOPELESS: u32 = 16;

/// A planned segment has been read when no more than this part of it is left.
const UNREAD_PART: u64 = 8;

/// A request.
#[derive(Debug, Default)]
struct Request {
    /// When it was begun.
    begun: OnceLock<Duration>,
    /// How it ended: `None` is well.
    end: OnceLock<Option<RemoteError>>,
}

type Flight = Arc<Request>;

/// Bytes of a pack that are here, or on their way.
struct Segment {
    len: u64,
    /// Nobody wanted it yet when it was asked for.
    planned: bool,
    /// Where its request waits, if nobody waits for it yet.
    ticket: Option<u64>,
    /// Its place in the order of all plans, which is that of reading.
    order: u64,
    state: SegmentState,
}

enum SegmentState {
    Flying(Flight),
    Here {
        slot: Slot,
        /// When it was used last.
        used: u64,
        /// How many read it now.
        readers: u32,
        /// Bytes that were planned and that nobody has read yet.
        unread: u64,
    },
}

/// A request to be made.
struct Job {
    pack: PackName,
    start: u64,
    len: u64,
    flight: Flight,
}

#[derive(Default)]
struct State {
    packs: HashMap<PackName, BTreeMap<u64, Segment>>,
    /// Segments that are here and that nobody reads, by when they were used last.
    idle: BTreeMap<u64, (PackName, u64)>,
    /// The same, of those that were planned and are still to be read, in the order of the plans.
    unread: BTreeMap<u64, (PackName, u64)>,
    clock: u64,
    /// Room of all segments that are here or on their way.
    bytes: u64,
    /// The most that there ever was here.
    bytes_peak: u64,
    /// Somebody waits for these.
    urgent: VecDeque<Job>,
    /// Nobody does yet; in the order of the plan.
    later: BTreeMap<u64, Job>,
    tickets: u64,
    /// The last wait was in vain, and nothing has arrived since.
    hopeless: bool,
    /// When something arrived last.
    arrived: Duration,
    /// The longest range of the next requests.
    piece: u64,
    stop: bool,
}

struct Shared {
    remote: Arc<dyn Remote>,
    scratch: Scratch,
    env: Arc<dyn Env>,
    bytes_max: u64,
    patience: Duration,
    /// What was planned stays until it was read: right for plans, not for guesses.
    keep: bool,
    state: Mutex<State>,
    /// For those who fetch: there is a job.
    work: Condvar,
    /// For those who wait: something arrived, or failed.
    arrived: Condvar,
}

/// See the module.
pub(super) struct PackCache(Arc<Shared>);

impl std::fmt::Debug for PackCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackCache").field("remote", &self.0.remote).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Consistent between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread that fetches does until the end.
    fn fetch(&self) {
        loop {
            let mut state = self.lock();
            let job = loop {
                if state.stop {
                    return;
                }
                if let Some(job) = state.next_job(&self.scratch, self.bytes_max) {
                    break job;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            let begun = *job.flight.begun.get_or_init(|| self.env.monotonic());
            let fetched = self.get(&job);
            let now = self.env.monotonic();
            let mut state = self.lock();
            // That there is no such object is an answer, too.
            if fetched.as_ref().map_or_else(|e| !e.kind.is_retryable(), |_| true) {
                state.arrived = now;
            }
            if fetched.is_ok() {
                state.piece = next_piece(state.piece, job.len, now.saturating_sub(begun), self.patience);
            }
            state.settle(&job, fetched, self.keep);
            drop(state);
            self.arrived.notify_all();
        }
    }

    fn get(&self, job: &Job) -> Result<Slot, RemoteError> {
        let path = pack_path(&job.pack);
        let key = Key::new(&path)
            .ok_or_else(|| RemoteError::new(ErrorKind::Local, format!("{path} is no object's name")))?;
        let bytes = self.remote.get(&key, job.start..job.start + job.len)?;
        if bytes.len() as u64 != job.len {
            let text = format!("{path}: {} bytes came where {} were asked for", bytes.len(), job.len);
            return Err(RemoteError::new(ErrorKind::Corrupt, text));
        }
        self.scratch.put(bytes).map_err(|e| {
            RemoteError::new(ErrorKind::Local, format!("the cache of what was fetched can't be written: {e}"))
        })
    }

    /// Makes what is missing of a range fly.
    fn want(&self, state: &mut State, pack: &PackName, range: &Range<u64>, urgent: bool) {
        let jobs = state.fill(pack, range, urgent);
        match jobs {
            0 => {}
            1 => self.work.notify_one(),
            _ => self.work.notify_all(),
        }
    }
}

impl State {
    /// The segment that has the byte at `at`, with its start.
    fn at(&mut self, pack: &PackName, at: u64) -> Option<(u64, &mut Segment)> {
        let (start, segment) = self.packs.get_mut(pack)?.range_mut(..=at).next_back()?;
        (start + segment.len > at).then_some((*start, segment))
    }

    /// Makes jobs for the parts of a range that no segment has; returns how many.
    fn fill(&mut self, pack: &PackName, range: &Range<u64>, urgent: bool) -> usize {
        let mut jobs = 0;
        let mut at = range.start;
        while at < range.end {
            if let Some((start, segment)) = self.at(pack, at) {
                at = start + segment.len;
                if urgent && matches!(segment.state, SegmentState::Flying(_)) {
                    self.hurry(pack, start);
                }
                continue;
            }
            let segments = self.packs.entry(*pack).or_default();
            let free = segments.range(at..).next().map_or(range.end, |(next, _)| range.end.min(*next));
            let len = self.piece.min(free - at);
            let flight = Flight::default();
            let state = SegmentState::Flying(Arc::clone(&flight));
            let job = Job { pack: *pack, start: at, len, flight };
            // Each has its own.
            self.tickets += 1;
            let ticket = match urgent {
                true => {
                    self.urgent.push_back(job);
                    None
                }
                false => {
                    self.later.insert(self.tickets, job);
                    Some(self.tickets)
                }
            };
            segments.insert(at, Segment { len, planned: !urgent, ticket, order: self.tickets, state });
            jobs += 1;
            at += len;
        }
        jobs
    }

    /// Somebody waits for a segment that nobody waited for before.
    fn hurry(&mut self, pack: &PackName, start: u64) {
        let segment = self.packs.get_mut(pack).and_then(|segments| segments.get_mut(&start));
        let ticket = segment.and_then(|segment| segment.ticket.take());
        if let Some(job) = ticket.and_then(|ticket| self.later.remove(&ticket)) {
            self.urgent.push_back(job);
        }
    }

    /// Nobody will read a range that was planned: what is here need not stay, and what was not begun is not fetched.
    fn unplan(&mut self, pack: &PackName, range: &Range<u64>) {
        let Some(segments) = self.packs.get_mut(pack) else { return };
        let first = segments.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        let mut dropped = Vec::new();
        for (start, segment) in segments.range_mut(first..range.end.max(first)) {
            if start + segment.len <= range.start {
                continue;
            }
            segment.planned = false;
            match &mut segment.state {
                SegmentState::Flying(_) => {
                    // Whoever waits for it has put it among the urgent ones.
                    if segment.ticket.take().is_some_and(|ticket| self.later.remove(&ticket).is_some()) {
                        dropped.push(*start);
                    }
                }
                SegmentState::Here { used, unread, .. } => {
                    *unread = 0;
                    if let Some(place) = self.unread.remove(&segment.order) {
                        self.idle.insert(*used, place);
                    }
                }
            }
        }
        for start in dropped {
            segments.remove(&start);
        }
        if segments.is_empty() {
            self.packs.remove(pack);
        }
    }

    /// Gives up all that nobody waits for.
    fn drop_plans(&mut self) {
        for job in std::mem::take(&mut self.later).into_values() {
            let Some(segments) = self.packs.get_mut(&job.pack) else { continue };
            segments.remove(&job.start);
            if segments.is_empty() {
                self.packs.remove(&job.pack);
            }
        }
    }

    /// The remote seems to be gone. Plans would only be in the way of those who try it again.
    fn lose_hope(&mut self) {
        self.hopeless = true;
        self.drop_plans();
    }

    /// A request has ended.
    /// `keep`: what was planned stays until it was read.
    fn settle(&mut self, job: &Job, fetched: Result<Slot, RemoteError>, keep: bool) {
        let Some(segments) = self.packs.get_mut(&job.pack) else { return };
        let Some(segment) = segments.get_mut(&job.start) else { return };
        if !matches!(segment.state, SegmentState::Flying(_)) {
            return;
        }
        // Set nowhere else.
        let end = |how| drop(job.flight.end.set(how));
        match fetched {
            Ok(slot) => {
                self.clock += 1;
                let unread = if segment.planned && keep { segment.len } else { 0 };
                segment.state = SegmentState::Here { slot, used: self.clock, readers: 0, unread };
                match unread > 0 {
                    true => self.unread.insert(segment.order, (job.pack, job.start)),
                    false => self.idle.insert(self.clock, (job.pack, job.start)),
                };
                self.bytes_peak = self.bytes_peak.max(self.bytes);
                self.hopeless = false;
                end(None);
            }
            Err(error) => {
                segments.remove(&job.start);
                self.bytes -= rounded(job.len);
                // It was tried again for as long as anybody would wait: the next ones need not all do the same.
                if error.kind.is_retryable() {
                    self.lose_hope();
                }
                end(Some(error));
            }
        }
    }

    /// The next job that there is room for. What somebody waits for is always begun; what nobody waits for yet only where it
    /// pushes nothing out that is still to be read.
    fn next_job(&mut self, scratch: &Scratch, bytes_max: u64) -> Option<Job> {
        let urgent = self.urgent.pop_front();
        let next = urgent.as_ref().or(self.later.first_key_value().map(|(_, job)| job));
        let len = rounded(next?.len);
        if let Err(error) = self.shrink(scratch, bytes_max.saturating_sub(len), urgent.is_some()) {
            // Found to work when the cache was made.
            tracing::warn!(%error, "giving back room in the cache");
        }
        let job = match urgent {
            Some(job) => job,
            None if self.bytes + len <= bytes_max => self.later.pop_first()?.1,
            None => return None,
        };
        self.bytes += len;
        Some(job)
    }

    /// Gives up what was not used for longest, until no more is left than this; with `unread` then also what was planned and
    /// not read yet, beginning with what will be read last.
    fn shrink(&mut self, scratch: &Scratch, bytes_max: u64, unread: bool) -> io::Result<()> {
        while self.bytes > bytes_max {
            let idle = self.idle.pop_first();
            let last = || if unread { self.unread.pop_last() } else { None };
            let Some((_, (pack, start))) = idle.or_else(last) else { return Ok(()) };
            let Some(segments) = self.packs.get_mut(&pack) else { continue };
            let Some(segment) = segments.remove(&start) else { continue };
            if segments.is_empty() {
                self.packs.remove(&pack);
            }
            self.bytes -= rounded(segment.len);
            if let SegmentState::Here { slot, .. } = &segment.state {
                scratch.free(slot)?;
            }
        }
        Ok(())
    }

    /// Begins to read the segment at `start`, which is here.
    fn enter(&mut self, pack: &PackName, start: u64) -> Option<Slot> {
        let segment = self.packs.get_mut(pack)?.get_mut(&start)?;
        let SegmentState::Here { slot, used, readers, .. } = &mut segment.state else { return None };
        *readers += 1;
        self.idle.remove(used);
        self.unread.remove(&segment.order);
        Some(slot.clone())
    }

    /// Ends what [`State::enter`] began; so many bytes were read.
    fn leave(&mut self, pack: &PackName, start: u64, bytes: u64) {
        self.clock += 1;
        let clock = self.clock;
        let Some(segment) = self.packs.get_mut(pack).and_then(|segments| segments.get_mut(&start)) else {
            return;
        };
        let SegmentState::Here { used, readers, unread, .. } = &mut segment.state else { return };
        *readers -= 1;
        *used = clock;
        *unread = unread.saturating_sub(bytes);
        // What lies between the wanted parts is never read.
        match (*readers, *unread > segment.len / UNREAD_PART) {
            (0, true) => drop(self.unread.insert(segment.order, (*pack, start))),
            (0, false) => drop(self.idle.insert(clock, (*pack, start))),
            _ => {}
        }
    }
}

/// How a cache fetches and waits.
pub(super) struct Waits {
    /// Threads that fetch.
    pub(super) jobs: usize,
    /// How long nothing may arrive while somebody waits.
    pub(super) patience: Duration,
    /// The clock.
    pub(super) env: Arc<dyn Env>,
}

/// The longest range of the first requests: so long that all threads together get theirs within the patience, on a slow line.
fn first_piece(jobs: usize, patience: Duration) -> u64 {
    let carried = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).saturating_mul(LINE) / 1000;
    (carried / jobs.max(1) as u64).clamp(PIECE_MIN, PIECE)
}

/// The longest range of the next requests, after one of `len` bytes took so long.
fn next_piece(piece: u64, len: u64, took: Duration, patience: Duration) -> u64 {
    // A short one that took long says nothing of longer ones.
    if took > patience / SLOW_PART && len >= PIECE_MIN {
        // Of several that were under way together each may say so.
        return piece.min((len / 2).max(PIECE_MIN));
    }
    match len >= piece && took < patience / QUICK_PART {
        true => (piece * 2).min(PIECE),
        false => piece,
    }
}

impl PackCache {
    /// A cache of at most `bytes_max` bytes. `keep`: what is planned will be read, so it is given up only after everything else.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn new(
        remote: Arc<dyn Remote>,
        scratch: Scratch,
        bytes_max: u64,
        keep: bool,
        waits: Waits,
    ) -> io::Result<Self> {
        let Waits { jobs, patience, env } = waits;
        let state = State { piece: first_piece(jobs, patience), ..State::default() };
        let cache = Self(Arc::new(Shared {
            remote,
            scratch,
            env,
            bytes_max,
            patience,
            keep,
            state: Mutex::new(state),
            work: Condvar::new(),
            arrived: Condvar::new(),
        }));
        for _ in 0..jobs.max(1) {
            let shared = Arc::clone(&cache.0);
            // Not waited for at the end: a call that hangs must not keep a command, or an unmount, from ending.
            std::thread::Builder::new().name("sr-fetch".into()).spawn(move || shared.fetch())?;
        }
        Ok(cache)
    }

    /// Begins to fetch a range before anybody wants it. Nothing is planned while the remote does not answer.
    pub(super) fn plan(&self, pack: &PackName, range: Range<u64>) {
        let mut state = self.0.lock();
        if !state.hopeless {
            self.0.want(&mut state, pack, &range, false);
        }
    }

    /// Takes a plan back: nobody will read this any more.
    pub(super) fn unplan(&self, pack: &PackName, range: &Range<u64>) {
        self.0.lock().unplan(pack, range);
        // There may be room for other plans.
        self.0.work.notify_one();
    }

    /// Whether all of a range is here or on its way.
    pub(super) fn has(&self, pack: &PackName, range: &Range<u64>) -> bool {
        let mut state = self.0.lock();
        let mut at = range.start;
        while at < range.end {
            match state.at(pack, at) {
                Some((start, segment)) => at = start + segment.len,
                None => return false,
            }
        }
        true
    }

    /// Requests that are planned and not begun; and segments that are pinned.
    #[cfg(test)]
    pub(super) fn plans(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.later.len(), state.unread.len())
    }

    /// The most bytes that were here at a time.
    pub(super) fn peak(&self) -> u64 {
        self.0.lock().bytes_peak
    }

    /// Fills `buf` with a pack's bytes from `off` on. `fetch`: what to fetch if any of it is missing; it has all of it.
    ///
    /// # Errors
    /// What the remote says; `TimedOut` when nothing comes in time: nothing at all, or nothing of this by far.
    pub(super) fn read(
        &self,
        pack: &PackName,
        buf: &mut [u8],
        off: u64,
        fetch: &Range<u64>,
    ) -> io::Result<()> {
        let end = off + buf.len() as u64;
        let mut done = 0;
        let mut state = self.0.lock();
        while done < buf.len() {
            let at = off + done as u64;
            if state.at(pack, at).is_none() {
                // The rest at once, so that its parts come side by side.
                let missing = if done == 0 { fetch.clone() } else { at..end };
                self.0.want(&mut state, pack, &missing, true);
            }
            let Some((start, segment)) = state.at(pack, at) else { continue };
            let len = segment.len;
            if let SegmentState::Flying(flight) = &segment.state {
                let flight = Arc::clone(flight);
                state.hurry(pack, start);
                state = self.wait(state, pack, &flight)?;
                continue;
            }
            let Some(slot) = state.enter(pack, start) else { continue };
            drop(state);
            let n = usize::try_from(start + len - at).unwrap_or(usize::MAX).min(buf.len() - done);
            let read = slot.read(&mut buf[done..done + n], at - start);
            state = self.0.lock();
            state.leave(pack, start, n as u64);
            // There may be room for what is planned now, if there was none.
            if !state.later.is_empty() {
                self.0.work.notify_one();
            }
            read?;
            done += n;
        }
        Ok(())
    }

    /// Waits until a request has ended.
    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        pack: &PackName,
        flight: &Flight,
    ) -> io::Result<MutexGuard<'a, State>> {
        let since = self.0.env.monotonic();
        loop {
            match flight.end.get() {
                Some(None) => return Ok(state),
                Some(Some(error)) => return Err(to_io(error.clone())),
                None => {}
            }
            let now = self.0.env.monotonic();
            let patience = if state.hopeless { self.0.patience / HOPELESS } else { self.0.patience };
            let silent = now.saturating_sub(since.max(state.arrived));
            let left = patience.saturating_sub(silent);
            if left.is_zero() {
                state.lose_hope();
                let text =
                    format!("{}: nothing came within {:.1} s", pack_path(pack), patience.as_secs_f64());
                return Err(to_io(RemoteError::new(ErrorKind::Timeout, text)));
            }
            // Before it is begun others arrive, and there are ever fewer before it.
            let long = self.0.patience * STUCK;
            let taken = flight.begun.get().map_or(Duration::ZERO, |at| now.saturating_sub(since.max(*at)));
            if taken >= long {
                let text = format!(
                    "{}: other requests were answered, and this one not within {:.1} s",
                    pack_path(pack),
                    long.as_secs_f64()
                );
                return Err(to_io(RemoteError::new(ErrorKind::Timeout, text)));
            }
            let waited = self.0.arrived.wait_timeout(state, left.min(long.saturating_sub(taken)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for PackCache {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.stop = true;
        state.urgent.clear();
        state.later.clear();
        drop(state);
        self.0.work.notify_all();
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
