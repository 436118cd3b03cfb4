//! The slow lane: where calls run that may wait for the disk or for room.
//!
//! Each thread that reads requests carries out what it reads. Writes wait when memory is full of dirty data, and the kernel
//! sends dozens of them at once; if all threads waited there, even `ls` would hang until the disk had caught up. So only
//! some of the threads may be in the slow lane at a time. A slow request that finds the lane full is put into a queue
//! instead, with a copy of its data, and the thread goes back to reading; whoever leaves the lane takes the next from the
//! queue first. The others are always there for lookups and the like.
//!
//! The queue is bounded by the kernel: at most `max_background` write-backs and read-aheads are in flight, and one more
//! for each process that waits for an answer.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A queued call, with everything it needs, the reply included.
pub(super) type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    running: usize,
    queue: VecDeque<Job>,
}

/// See the module.
pub(super) struct Lane {
    width: usize,
    state: Mutex<State>,
}

/// The right to run slow calls; leaving runs what is queued.
pub(super) struct Pass<'a>(&'a Lane);

impl Lane {
    /// `width`: how many threads may be in it at once, at least one.
    pub(super) fn new(width: usize) -> Self {
        Self { width: width.max(1), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Jobs run outside of the lock and the state is consistent between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters if there is room.
    pub(super) fn enter(&self) -> Option<Pass<'_>> {
        let mut state = self.state();
        if state.running >= self.width {
            return None;
        }
        state.running += 1;
        Some(Pass(self))
    }

    /// Runs a job on this thread if there is room by now, else queues it for those in the lane.
    pub(super) fn submit(&self, job: Job) {
        let mut state = self.state();
        if state.running >= self.width {
            state.queue.push_back(job);
            return;
        }
        state.running += 1;
        drop(state);
        let _pass = Pass(self);
        job();
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        loop {
            let mut state = self.0.state();
            let Some(job) = state.queue.pop_front() else {
                state.running -= 1;
                return;
            };
            drop(state);
            job();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[test]
    fn a_full_lane_queues_and_the_leaver_works_it_off() {
        let lane = Lane::new(1);
        let done = Arc::new(AtomicUsize::new(0));
        let pass = lane.enter();
        assert!(pass.is_some());
        assert!(lane.enter().is_none());
        for _ in 0..5 {
            let done = done.clone();
            lane.submit(Box::new(move || {
                done.fetch_add(1, Ordering::SeqCst);
            }));
        }
        assert_eq!(done.load(Ordering::SeqCst), 0, "nobody is in the lane to run them");
        drop(pass);
        assert_eq!(done.load(Ordering::SeqCst), 5);
        assert!(lane.enter().is_some(), "room again");
    }

    #[test]
    fn no_job_is_lost_and_no_more_run_than_fit() {
        let lane = Arc::new(Lane::new(3));
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (sender, receiver) = mpsc::channel();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (lane, running, most, sender) =
                    (lane.clone(), running.clone(), most.clone(), sender.clone());
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        let (running, most, sender) = (running.clone(), most.clone(), sender.clone());
                        lane.submit(Box::new(move || {
                            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            std::thread::yield_now();
                            running.fetch_sub(1, Ordering::SeqCst);
                            sender.send(()).unwrap_or_default();
                        }));
                    }
                })
            })
            .collect();
        for thread in threads {
            assert!(thread.join().is_ok());
        }
        drop(sender);
        assert_eq!(receiver.iter().count(), 1_600);
        assert!(most.load(Ordering::SeqCst) <= 3);
    }
}
