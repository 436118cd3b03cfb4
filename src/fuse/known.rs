//! How often the kernel was told of an inode.
//!
//! The kernel counts each answer that names an inode, and forgets some number of them at a time. Only when none is left may
//! what is kept for the inode go: another thread may have answered a lookup of it a moment before.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};

/// Counts of inodes that need one.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<u64, u64>>);

impl Known {
    /// Counts one answer; called before it is sent.
    pub(super) fn learns(&self, ino: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(ino).or_default() += 1;
    }

    /// Counts `n` answers back. True if none is left.
    pub(super) fn forgets(&self, ino: u64, n: u64) -> bool {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(ino) {
            Entry::Occupied(mut count) if *count.get() > n => {
                *count.get_mut() -= n;
                false
            }
            Entry::Occupied(count) => {
                count.remove();
                true
            }
            Entry::Vacant(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_known_until_every_answer_is_forgotten() {
        let known = Known::default();
        for _ in 0..3 {
            known.learns(7);
        }
        assert!(!known.forgets(7, 2));
        known.learns(7);
        assert!(known.forgets(7, 2));
        assert!(known.forgets(7, 1), "never negative");
        assert!(known.forgets(8, 1));
    }
}
