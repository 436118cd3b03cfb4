//! How many threads wait for the kernel's requests.
//!
//! The kernel gives each request to the thread that has waited longest. With many of them waiting, that is always one that
//! has slept for long and has to be woken; on a virtual machine that takes longer than most requests themselves. One of two
//! is often back in time to take the next request without having slept. So threads that come back while enough others wait are
//! parked here. Two are enough at first; when requests lie there and nobody takes them, because those who could are all busy
//! or wait for the disk, more are, until that has not happened for a while.
//!
//! A parked thread would not notice that the connection has ended. Those who wait do, and end; so no thread parks unless
//! another waits that has been here before, and a thread that has been here tells the others when it ends.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Threads that wait at least. One alone is faster still while something else keeps the processors busy, but slower when
/// nothing does (decision 0009).
const ENOUGH_MIN: usize = 2;
/// Time between two looks at whether requests are left lying.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Looks in a row that must find requests lying before one more thread is to wait, if requests take long ...
const LOOKS_TO_GROW: u32 = 2;
/// ... that is, if fewer than this many were taken since the last look.
const TAKEN_MIN: u64 = 5;
/// Looks in a row that must find requests lying before one more thread is to wait in any case. A single client that waits for
/// each of its answers is found with a request lying there often enough, in the moment before it is taken.
const LOOKS_TO_GROW_ANYWAY: u32 = 25;
/// Looks in a row that must find none before one less is to wait.
const LOOKS_TO_SHRINK: u32 = 50;
/// Looks in a row without any request after which nobody looks any more until there is one.
const LOOKS_TO_REST: u32 = 50;

thread_local! {
    /// What a reader that ends does for the others.
    static LAST_WORD: RefCell<Option<LastWord>> = const { RefCell::new(None) };
}

struct LastWord(Arc<Readers>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.end();
    }
}

struct State {
    /// Threads that wait for a request, or are about to, and have been here before.
    waiting: usize,
    /// How many are to wait.
    enough: usize,
    /// Threads that are parked.
    parked: usize,
    /// How many of them are to go and wait for requests; counted as waiting.
    called: usize,
    /// Requests so far.
    requests: u64,
    /// Nobody looks whether requests are left lying.
    resting: bool,
    /// A reader has ended, and so has the connection.
    ended: bool,
}

/// See the module.
pub(super) struct Readers {
    state: Mutex<State>,
    /// For parked threads: someone is called, or it is over.
    called: Condvar,
    /// For the one who looks: there is something to look at, or it is over.
    woken: Condvar,
}

impl Default for Readers {
    fn default() -> Self {
        let state = State {
            waiting: 0,
            enough: ENOUGH_MIN,
            parked: 0,
            called: 0,
            requests: 0,
            resting: false,
            ended: false,
        };
        Self { state: Mutex::new(state), called: Condvar::new(), woken: Condvar::new() }
    }
}

/// A thread that answers a request. It waits for the next one, or is parked, when this is dropped.
pub(super) struct Busy<'a>(&'a Readers);

/// What the looks at a connection found, one after the other.
#[derive(Default)]
struct Looks {
    requests: u64,
    lying: u32,
    lying_long: u32,
    none_lying: u32,
    idle: u32,
}

impl Readers {
    fn state(&self) -> MutexGuard<'_, State> {
        // Consistent between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called by a thread that has got a request, and dropped when it has answered.
    pub(super) fn busy(self: &Arc<Self>) -> Busy<'_> {
        let is_new = LAST_WORD.with_borrow_mut(|word| {
            let is_new = word.is_none();
            word.get_or_insert_with(|| LastWord(self.clone()));
            is_new
        });
        let mut state = self.state();
        if !is_new {
            state.waiting = state.waiting.saturating_sub(1);
        }
        state.requests += 1;
        if std::mem::take(&mut state.resting) {
            self.woken.notify_one();
        }
        Busy(self)
    }

    /// Lets everybody go: the connection has ended.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.called.notify_all();
        self.woken.notify_all();
    }

    /// Looks after a connection in a thread of its own, until [`Readers::end`].
    pub(super) fn watch(self: &Arc<Self>, connection: OwnedFd) -> std::io::Result<JoinHandle<()>> {
        let readers = self.clone();
        std::thread::Builder::new().name("sr-readers".into()).spawn(move || {
            let mut looks = Looks::default();
            while readers.rest(&looks) {
                std::thread::sleep(LOOK_EVERY);
                readers.looked(&mut looks, has_request(&connection));
            }
        })
    }

    /// Waits while there is nothing to look at. False: it is over.
    fn rest(&self, looks: &Looks) -> bool {
        let mut state = self.state();
        state.resting = looks.idle >= LOOKS_TO_REST && state.requests == looks.requests;
        while state.resting && !state.ended {
            state = self.woken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.ended
    }

    /// Draws the conclusions from one look: whether a request was lying there.
    fn looked(&self, looks: &mut Looks, lying: bool) {
        let mut state = self.state();
        let taken = state.requests - looks.requests;
        looks.requests = state.requests;
        looks.idle = if taken == 0 { looks.idle + 1 } else { 0 };
        if !lying || state.waiting > 0 {
            (looks.lying, looks.lying_long, looks.none_lying) = (0, 0, looks.none_lying + 1);
            if looks.none_lying >= LOOKS_TO_SHRINK {
                looks.none_lying = 0;
                state.enough = (state.enough - 1).max(ENOUGH_MIN);
            }
            return;
        }
        looks.none_lying = 0;
        looks.lying += 1;
        looks.lying_long = if taken < TAKEN_MIN { looks.lying_long + 1 } else { 0 };
        let grow = looks.lying_long >= LOOKS_TO_GROW || looks.lying >= LOOKS_TO_GROW_ANYWAY;
        if grow && state.parked > state.called {
            state.enough += 1;
            state.called += 1;
            state.waiting += 1;
            self.called.notify_one();
        }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if state.waiting < state.enough || state.ended {
            state.waiting += 1;
            return;
        }
        state.parked += 1;
        while state.called == 0 && !state.ended {
            state = self.0.called.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        state.called = state.called.saturating_sub(1);
    }
}

/// Tells whether a connection has a request for us. After it has ended, or when that can't be told, it has.
fn has_request(connection: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&connection, PollFlags::IN)];
    !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A reader: each message is a request, the end of the channel that of the connection.
    struct Reader {
        requests: Sender<Receiver<()>>,
        thread: JoinHandle<()>,
    }

    impl Reader {
        fn new(readers: &Arc<Readers>) -> Self {
            let (readers, (requests, incoming)) = (readers.clone(), channel::<Receiver<()>>());
            let thread = std::thread::spawn(move || {
                for request in incoming {
                    let _busy = readers.busy();
                    assert!(request.recv().is_ok(), "the test ends each request");
                }
            });
            Self { requests, thread }
        }

        /// Gives it a request that lasts until the answer is sent.
        fn request(&self) -> Sender<()> {
            let (end, request) = channel();
            assert!(self.requests.send(request).is_ok());
            end
        }
    }

    fn until(readers: &Readers, what: impl Fn(&State) -> bool) {
        while !what(&readers.state()) {
            std::thread::yield_now();
        }
    }

    /// How many are to wait, do wait, are parked.
    fn numbers(readers: &Readers) -> (usize, usize, usize) {
        let state = readers.state();
        (state.enough, state.waiting, state.parked)
    }

    /// Readers of which each has had a request; the first of them wait, the others are parked.
    fn settled(readers: &Arc<Readers>, count: usize) -> Vec<Reader> {
        let all: Vec<Reader> = (0..count).map(|_| Reader::new(readers)).collect();
        for (n, each) in all.iter().enumerate() {
            assert!(each.request().send(()).is_ok());
            until(readers, |state| state.waiting + state.parked == n + 1);
        }
        assert_eq!(numbers(readers), (ENOUGH_MIN, ENOUGH_MIN, count - ENOUGH_MIN));
        all
    }

    /// Ends the connection: those who wait see it, and the parked ones must follow.
    fn finish(readers: &Readers, all: Vec<Reader>) {
        let (requests, threads): (Vec<_>, Vec<_>) =
            all.into_iter().map(|each| (each.requests, each.thread)).unzip();
        drop(requests);
        for thread in threads {
            assert!(thread.join().is_ok());
        }
        assert!(readers.state().ended);
    }

    /// Gives each of the first readers, which wait, a request that lasts.
    fn occupy(readers: &Readers, all: &[Reader]) -> Vec<Sender<()>> {
        let ends = all.iter().take(ENOUGH_MIN).map(Reader::request).collect();
        until(readers, |state| state.waiting == 0);
        ends
    }

    #[test]
    fn few_wait_and_more_do_while_requests_are_left_lying() {
        let readers = Arc::<Readers>::default();
        let all = settled(&readers, 5);
        let ends = occupy(&readers, &all);
        let mut looks = Looks::default();
        // Nothing lies there: a client that waits for its answer sends nothing.
        readers.looked(&mut looks, false);
        assert_eq!(numbers(&readers), (2, 0, 3));
        readers.looked(&mut looks, true);
        assert_eq!(numbers(&readers), (2, 0, 3), "it may have come just now");
        readers.looked(&mut looks, true);
        until(&readers, |state| state.parked == 2 && state.called == 0);
        assert_eq!(numbers(&readers), (3, 1, 2));
        // Someone waits: what lies there is about to be taken.
        readers.looked(&mut looks, true);
        assert_eq!(numbers(&readers), (3, 1, 2));
        for end in ends {
            assert!(end.send(()).is_ok());
        }
        until(&readers, |state| state.waiting == 3);
        for _ in 0..LOOKS_TO_SHRINK {
            readers.looked(&mut looks, false);
        }
        assert_eq!(numbers(&readers), (2, 3, 2));
        assert!(all[0].request().send(()).is_ok());
        until(&readers, |state| state.waiting == 2 && state.parked == 3);
        finish(&readers, all);
    }

    #[test]
    fn a_single_client_in_a_hurry_gets_no_more_readers() {
        let readers = Arc::<Readers>::default();
        let all = settled(&readers, 3);
        let ends = occupy(&readers, &all);
        let mut looks = Looks::default();
        for look in 1..LOOKS_TO_GROW_ANYWAY {
            readers.state().requests += TAKEN_MIN;
            readers.looked(&mut looks, true);
            assert_eq!(numbers(&readers), (2, 0, 1), "{look}: requests lie there, but not for long");
        }
        readers.state().requests += TAKEN_MIN;
        readers.looked(&mut looks, true);
        until(&readers, |state| state.enough == 3 && state.waiting == 1);
        for end in ends {
            assert!(end.send(()).is_ok());
        }
        finish(&readers, all);
    }

    #[test]
    fn nobody_parks_where_only_newcomers_wait() {
        let readers = Arc::<Readers>::default();
        let first = Reader::new(&readers);
        assert!(first.request().send(()).is_ok());
        until(&readers, |state| state.waiting == 1);
        drop(first.requests);
        assert!(first.thread.join().is_ok(), "it is not parked, for nobody could tell it of the end");
    }

    #[test]
    fn the_watch_finds_requests_rests_without_any_and_ends() -> Result<(), Box<dyn std::error::Error>> {
        let readers = Arc::<Readers>::default();
        let all = settled(&readers, 3);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let watch = readers.watch(theirs.into())?;
        until(&readers, |state| state.resting);
        let ends = occupy(&readers, &all);
        until(&readers, |state| !state.resting);
        std::io::Write::write_all(&mut &ours, b"x")?;
        until(&readers, |state| state.enough == 3 && state.waiting == 1);
        for end in ends {
            assert!(end.send(()).is_ok());
        }
        until(&readers, |state| state.waiting == 3);
        finish(&readers, all);
        assert!(watch.join().is_ok());
        Ok(())
    }
}
