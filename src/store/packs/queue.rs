//! Threads: workers that store queued chunks, one that closes full packs, and one that tells the system what to write.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::super::codec::Effort;
use super::super::error::{Result, StoreError};
use super::open::OpenPack;
use super::{Core, Done, Plaintext, lock};
use crate::disk::DiskFile;
use crate::format::PackKind;

/// Plaintext bytes that are queued or being worked on at one time, unless it is a single chunk.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Hints that may wait for the system; more are forgotten, since fsync does without them.
const HINTS_MAX: usize = 64;
/// Full packs that may wait to be closed before writers have to wait.
const BACKLOG_MAX: usize = 3;
/// So many bytes of chunks are looked at together to tell whether most of them are known.
const RECENT_BYTES: u64 = 16 << 20;
/// Of known data one byte in so many may be new.
const RECENT_NEW_SHARE: u64 = 4;

struct Job {
    plaintext: Plaintext,
    effort: Effort,
    done: Done,
}

/// Chunks on their way to the workers.
pub(super) struct Queue {
    state: Mutex<QueueState>,
    work: Condvar,
    room: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
    core: Arc<Core>,
}

struct QueueState {
    jobs: VecDeque<Job>,
    /// Of queued chunks and of those in the hands of workers.
    bytes: usize,
    /// No workers: there never were any, or they have been told to stop.
    stopped: bool,
    recent: Recent,
}

/// How much of what came lately was stored already. Chunks that are known cost no compression, so a long queue of them
/// is no reason to compress the few new ones badly.
#[derive(Default)]
struct Recent {
    known: u64,
    new: u64,
    mostly_known: bool,
}

impl Recent {
    /// Takes the totals so far, in bytes.
    fn look(&mut self, known: u64, new: u64) -> bool {
        let (more_known, more_new) = (known.saturating_sub(self.known), new.saturating_sub(self.new));
        let seen = more_known + more_new;
        if seen >= RECENT_BYTES {
            *self = Recent { known, new, mostly_known: more_new < seen / RECENT_NEW_SHARE };
        }
        self.mostly_known
    }
}

impl Queue {
    /// Starts the threads, if there are to be any.
    pub(super) fn start(core: &Arc<Core>) -> Result<Arc<Queue>> {
        let background = core.ctx.cfg.background;
        let queue = Arc::new(Queue {
            state: Mutex::new(QueueState {
                jobs: VecDeque::new(),
                bytes: 0,
                stopped: !background,
                recent: Recent::default(),
            }),
            work: Condvar::new(),
            room: Condvar::new(),
            threads: Mutex::default(),
            core: Arc::clone(core),
        });
        if !background {
            return Ok(queue);
        }
        let spawn = |name: String, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name).spawn(run);
            thread.map_err(|e| StoreError::io("start a thread", e))
        };
        let started = (0..core.ctx.cfg.workers.max(1)).try_for_each(|n| {
            let worker = Arc::clone(&queue);
            let thread = spawn(format!("sr-seal-{n}"), Box::new(move || worker.work()))?;
            lock(&queue.threads).push(thread);
            Ok(())
        });
        let started = started.and_then(|()| {
            core.backlog.open();
            let closer = Arc::clone(core);
            let thread = spawn("sr-pack-close".to_string(), Box::new(move || closer.run_closer()))?;
            lock(&queue.threads).push(thread);
            core.hints.open();
            let hinter = Arc::clone(core);
            let thread = spawn("sr-writeback".to_string(), Box::new(move || hinter.hints.run()))?;
            lock(&queue.threads).push(thread);
            Ok(())
        });
        if let Err(e) = started {
            queue.stop();
            return Err(e);
        }
        Ok(queue)
    }

    pub(super) fn submit(&self, plaintext: Plaintext, effort: Effort, done: Done) {
        let mut state = lock(&self.state);
        while !state.stopped && state.bytes > 0 && state.bytes + plaintext.as_ref().len() > QUEUE_BYTES_MAX {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped {
            drop(state);
            run(&self.core, Job { plaintext, effort, done });
            return;
        }
        state.bytes += plaintext.as_ref().len();
        state.jobs.push_back(Job { plaintext, effort, done });
        drop(state);
        self.work.notify_one();
    }

    fn work(&self) {
        loop {
            let job = {
                let mut state = lock(&self.state);
                loop {
                    if let Some(mut job) = state.jobs.pop_front() {
                        // The writer is ahead of us: as soon as chunks wait for each worker, speed is what counts.
                        // Not so if most of them are only looked up.
                        let (known, new) = self.core.counters.totals();
                        if !state.recent.look(known, new) && state.jobs.len() > self.core.ctx.cfg.workers {
                            job.effort = Effort::Fast;
                        }
                        break job;
                    }
                    if state.stopped {
                        return;
                    }
                    state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let len = job.plaintext.as_ref().len();
            run(&self.core, job);
            lock(&self.state).bytes -= len;
            self.room.notify_all();
        }
    }

    /// Lets the workers finish what is queued and ends all threads.
    pub(super) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.work.notify_all();
        self.room.notify_all();
        self.core.backlog.shut();
        self.core.hints.shut();
        let me = std::thread::current().id();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // The last handle may be dropped by a callback, on a worker, which can't wait for itself.
            if thread.thread().id() != me && thread.join().is_err() {
                self.core.ctx.poison.set("a thread of the chunk store panicked");
            }
        }
    }
}

/// Stores a chunk and tells whoever waits for it. A panic poisons the vault rather than ending the worker:
/// the chunks behind this one are others' data.
fn run(core: &Core, job: Job) {
    let Job { plaintext, effort, done } = job;
    let stored = catch_unwind(AssertUnwindSafe(|| core.put(PackKind::Data, plaintext.as_ref(), effort)));
    let panicked = || {
        core.ctx.poison.set("a thread panicked while it stored a chunk");
        StoreError::Poisoned("a thread panicked while it stored a chunk".to_string())
    };
    let result = stored.unwrap_or_else(|_| Err(panicked()));
    drop(plaintext);
    if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
        panicked();
    }
}

/// Retired packs on their way to the thread that closes them.
#[derive(Default)]
pub(super) struct Backlog {
    state: Mutex<BacklogState>,
    changed: Condvar,
}

#[derive(Default)]
struct BacklogState {
    packs: VecDeque<Arc<OpenPack>>,
    /// Waiting, or being closed.
    count: usize,
    /// There is a thread.
    open: bool,
}

impl Backlog {
    fn open(&self) {
        lock(&self.state).open = true;
    }

    fn shut(&self) {
        lock(&self.state).open = false;
        self.changed.notify_all();
    }

    /// Hands a pack to the thread, or back when there is none.
    pub(super) fn push(&self, pack: Arc<OpenPack>) -> std::result::Result<(), Arc<OpenPack>> {
        let mut state = lock(&self.state);
        if !state.open {
            return Err(pack);
        }
        state.packs.push_back(pack);
        state.count += 1;
        self.changed.notify_all();
        Ok(())
    }

    /// Waits while too many packs wait to be closed: their bytes are still to reach the disk, and writers
    /// must not run away from it.
    pub(super) fn wait_for_room(&self) {
        let mut state = lock(&self.state);
        while state.open && state.count > BACKLOG_MAX {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns the next pack to close, or `None` when the thread is to end. What is queued is closed first.
    fn next(&self) -> Option<Arc<OpenPack>> {
        let mut state = lock(&self.state);
        loop {
            if let Some(pack) = state.packs.pop_front() {
                return Some(pack);
            }
            if !state.open {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self) {
        lock(&self.state).count -= 1;
        self.changed.notify_all();
    }
}

/// What the system is to begin to write, on its way to the thread that says so: the call may wait for the disk, and
/// for other processors to let go of pages.
#[derive(Default)]
pub(super) struct Hints {
    state: Mutex<HintState>,
    changed: Condvar,
}

#[derive(Default)]
struct HintState {
    waiting: VecDeque<(Arc<dyn DiskFile>, u64, u64)>,
    /// There is a thread.
    open: bool,
}

impl Hints {
    fn open(&self) {
        lock(&self.state).open = true;
    }

    fn shut(&self) {
        let mut state = lock(&self.state);
        state.open = false;
        state.waiting.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// Has the system write `len` bytes from `from` on, and forget what it has written.
    pub(super) fn give(&self, file: &Arc<dyn DiskFile>, from: u64, len: u64) {
        let mut state = lock(&self.state);
        if !state.open {
            drop(state);
            file.start_writeback(from, len);
        } else if state.waiting.len() < HINTS_MAX {
            state.waiting.push_back((Arc::clone(file), from, len));
            drop(state);
            self.changed.notify_one();
        }
    }

    fn run(&self) {
        let mut state = lock(&self.state);
        while state.open {
            if let Some((file, from, len)) = state.waiting.pop_front() {
                drop(state);
                file.start_writeback(from, len);
                drop(file);
                state = lock(&self.state);
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Core {
    fn run_closer(&self) {
        while let Some(pack) = self.backlog.next() {
            if catch_unwind(AssertUnwindSafe(|| self.close_or_poison(&pack))).is_err() {
                self.ctx.poison.set("a thread panicked while it closed a pack");
            }
            self.backlog.done();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_is_mostly_known_is_told_by_what_came_lately() {
        const MIB: u64 = 1 << 20;
        let mut recent = Recent::default();
        assert!(!recent.look(0, 0));
        assert!(!recent.look(15 * MIB, 0), "too little to tell");
        assert!(recent.look(15 * MIB, 2 * MIB));
        assert!(recent.look(16 * MIB, 10 * MIB), "nothing new is concluded from 9 MiB");
        assert!(!recent.look(21 * MIB, 12 * MIB), "6 known, 10 new");
        assert!(!recent.look(33 * MIB, 16 * MIB), "a quarter is new");
        assert!(recent.look(53 * MIB, 16 * MIB));
    }
}
