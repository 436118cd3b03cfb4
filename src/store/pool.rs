//! Large buffers that are used again, so that a stream does not have the system clear fresh pages for each few
//! megabytes.
//!
//! A pool hands out a bounded number of buffers. Who gets none, or needs one that grows further, uses ordinary memory:
//! a buffer that left its size goes back to the allocator and not into the pool. What nobody has needed for a while goes
//! back too, when the owner says so: a burst of many streams must not cost memory for as long as the mount lives.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// See the module's text.
pub struct Pool {
    /// Capacity of each buffer, in bytes.
    len: usize,
    /// How many may be out at a time.
    count: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    out: usize,
    free: Vec<Vec<u8>>,
    /// The fewest that were free at any time since [`Pool::trim`]: so many were not needed.
    spare: usize,
}

/// Bytes that may stand in a buffer of a pool, which gets it back when they are dropped.
#[derive(Default)]
pub struct Buf {
    bytes: Vec<u8>,
    home: Option<Arc<Pool>>,
}

impl Pool {
    /// Returns a pool of up to `count` buffers with room for `len` bytes each. They are made as they are needed.
    #[must_use]
    pub fn new(len: usize, count: usize) -> Arc<Pool> {
        Arc::new(Pool { len, count, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The capacity of each buffer, in bytes.
    #[must_use]
    pub fn buf_len(&self) -> usize {
        self.len
    }

    /// Returns an empty buffer, or `None` when as many as there may be are in use.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Buf> {
        let mut state = self.lock();
        if state.out >= self.count {
            return None;
        }
        state.out += 1;
        let free = state.free.pop();
        state.spare = state.spare.min(state.free.len());
        drop(state);
        let bytes = free.unwrap_or_else(|| Vec::with_capacity(self.len));
        Some(Buf { bytes, home: Some(Arc::clone(self)) })
    }

    /// Gives the memory of buffers back to the system that nobody has needed since the last call.
    pub fn trim(&self) {
        let mut state = self.lock();
        // Those taken last stand at the end.
        let spare = state.spare;
        let unused: Vec<Vec<u8>> = state.free.drain(..spare).collect();
        state.spare = state.free.len();
        drop(state);
        drop(unused);
    }

    /// The memory of all buffers, whether in use or not, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let state = self.lock();
        (state.out + state.free.len()) * self.len
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("len", &self.len).field("count", &self.count).finish_non_exhaustive()
    }
}

impl Buf {
    /// Tells whether it stands in a buffer of a pool.
    #[must_use]
    pub fn is_pooled(&self) -> bool {
        self.home.is_some()
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let fits = bytes.capacity() == home.len;
        let mut state = home.lock();
        state.out -= 1;
        if fits {
            state.free.push(bytes);
        }
    }
}

impl From<Vec<u8>> for Buf {
    fn from(bytes: Vec<u8>) -> Self {
        Buf { bytes, home: None }
    }
}

impl Deref for Buf {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl fmt::Debug for Buf {
    /// Leaves the bytes out: they are what users store.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf").field("len", &self.bytes.len()).field("pooled", &self.is_pooled()).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// How many are free, and how many are out.
    fn counts(pool: &Pool) -> (usize, usize) {
        let state = pool.lock();
        (state.free.len(), state.out)
    }

    #[test]
    fn buffers_come_back_and_never_more_than_agreed_are_out() {
        let pool = Pool::new(1000, 2);
        let mut first = pool.take().unwrap();
        first.extend_from_slice(b"left behind");
        let address = first.as_ptr();
        let second = pool.take().unwrap();
        assert!(pool.take().is_none());
        drop(first);
        let again = pool.take().unwrap();
        assert_eq!(
            (again.as_ptr(), again.len(), again.capacity()),
            (address, 0, 1000),
            "the same, and empty"
        );
        assert!(again.is_pooled());
        drop((again, second));
        assert_eq!((counts(&pool), pool.bytes()), ((2, 0), 2000));
    }

    #[test]
    fn what_was_not_needed_is_given_back_and_what_was_stays() {
        let pool = Pool::new(1000, 3);
        let three: Vec<Buf> = (0..3).map(|_| pool.take().unwrap()).collect();
        drop(three);
        pool.trim();
        assert_eq!(counts(&pool), (3, 0), "all were needed since the pool was made");
        for _ in 0..5 {
            drop(pool.take());
        }
        let out = pool.take();
        pool.trim();
        assert_eq!((counts(&pool), pool.bytes()), ((0, 1), 1000), "one was enough, and it is out");
        drop(out);
        pool.trim();
        assert_eq!(counts(&pool), (1, 0), "it was out until a moment ago");
        pool.trim();
        assert_eq!((counts(&pool), pool.bytes()), ((0, 0), 0));
        assert!(pool.take().unwrap().is_pooled(), "made anew");
    }

    #[test]
    fn a_buffer_that_grew_is_not_kept() {
        let pool = Pool::new(1000, 1);
        let mut buf = pool.take().unwrap();
        buf.resize(1001, 7);
        drop(buf);
        assert_eq!(counts(&pool), (0, 0));
        assert!(!Buf::from(vec![1]).is_pooled());
    }
}
