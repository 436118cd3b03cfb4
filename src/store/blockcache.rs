//! Decrypted blocks that readers may ask for again.
//!
//! Sharded, bounded by bytes, least recently used first out. Whoever misses a block *claims* it, so that of
//! several readers who want the same block at the same time one reads and opens it, and the others wait for
//! the result. A claim that is dropped without a result (an error) wakes the others, who then try for
//! themselves.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::lru::Lru;
use crate::format::ChunkId;

const SHARDS_MAX: usize = 16;
/// A shard has room for at least so many bytes, so that a small cache still keeps whole blocks.
const SHARD_BYTES_MIN: usize = 1 << 20;
/// What an entry costs beyond its bytes: map entries and counts.
const ENTRY_OVERHEAD: usize = 160;

/// A block: its chunk and its number there.
pub(crate) type BlockKey = (ChunkId, u32);

/// The cache. Chunks are named by their content, so an entry never becomes stale.
pub(crate) struct BlockCache {
    shards: Vec<Shard>,
    hits: AtomicU64,
    misses: AtomicU64,
}

struct Shard {
    state: Mutex<ShardState>,
    done: Condvar,
}

struct ShardState {
    blocks: Lru<BlockKey, Arc<[u8]>>,
    claimed: HashSet<BlockKey>,
}

/// What the cache says about a block.
pub(crate) enum Lookup<'a> {
    /// Here it is.
    Hit(Arc<[u8]>),
    /// Nobody has it: the caller is to load it.
    Claimed(Claim<'a>),
    /// Someone else is loading it.
    Busy,
}

/// The duty to load a block.
pub(crate) struct Claim<'a> {
    shard: &'a Shard,
    key: BlockKey,
}

impl BlockCache {
    /// Returns a cache for `bytes` of plaintext.
    pub(crate) fn new(bytes: usize) -> Self {
        let count = (bytes / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        let shard = || Shard {
            state: Mutex::new(ShardState { blocks: Lru::new(bytes / count), claimed: HashSet::new() }),
            done: Condvar::new(),
        };
        BlockCache {
            shards: (0..count).map(|_| shard()).collect(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// Returns a block, or the duty to load it.
    pub(crate) fn lookup(&self, key: BlockKey) -> Lookup<'_> {
        let shard = self.shard(&key);
        let mut state = shard.lock();
        let answer = shard.look(&mut state, key);
        drop(state);
        match &answer {
            Lookup::Hit(_) => self.hits.fetch_add(1, Ordering::Relaxed),
            Lookup::Claimed(_) => self.misses.fetch_add(1, Ordering::Relaxed),
            Lookup::Busy => 0,
        };
        answer
    }

    /// Like [`BlockCache::lookup`], but waits for someone else's load to end.
    ///
    /// Call it only with no claim of one's own open: two threads that each wait for the other's would wait
    /// forever.
    pub(crate) fn lookup_wait(&self, key: BlockKey) -> Lookup<'_> {
        let shard = self.shard(&key);
        let mut state = shard.lock();
        while state.claimed.contains(&key) {
            state = shard.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        shard.look(&mut state, key)
    }

    /// Puts a block in that came along with others.
    pub(crate) fn insert(&self, key: BlockKey, block: Arc<[u8]>) {
        let weight = block.len() + ENTRY_OVERHEAD;
        self.shard(&key).lock().blocks.insert(key, block, weight);
    }

    /// Returns the memory that its blocks take, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().blocks.weight()).sum()
    }

    /// Returns how often a block was there, and how often it had to be loaded.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    fn shard(&self, key: &BlockKey) -> &Shard {
        // Ids are hashes: any byte spreads them. The block number keeps a chunk's blocks apart.
        &self.shards[(usize::from(key.0.0[0]) + key.1 as usize) % self.shards.len()]
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, ShardState> {
        // The state is whole between statements, so a panic elsewhere left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, state: &mut ShardState, key: BlockKey) -> Lookup<'_> {
        if let Some(block) = state.blocks.get(&key) {
            return Lookup::Hit(block);
        }
        if state.claimed.insert(key) { Lookup::Claimed(Claim { shard: self, key }) } else { Lookup::Busy }
    }
}

impl Claim<'_> {
    /// Hands the block over to the cache and to all who wait for it.
    pub(crate) fn fill(self, block: Arc<[u8]>) {
        let weight = block.len() + ENTRY_OVERHEAD;
        self.shard.lock().blocks.insert(self.key, block, weight);
        // Dropping the claim wakes the others.
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.shard.lock().claimed.remove(&self.key);
        self.shard.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(n: u8, block: u32) -> BlockKey {
        (ChunkId([n; 32]), block)
    }

    #[test]
    fn a_block_is_loaded_once_however_many_ask() {
        let cache = BlockCache::new(1 << 20);
        let loads = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let block = match cache.lookup(key(1, 7)) {
                        Lookup::Hit(block) => block,
                        Lookup::Claimed(claim) => {
                            loads.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(std::time::Duration::from_millis(20));
                            let block: Arc<[u8]> = Arc::from(&b"seven"[..]);
                            claim.fill(Arc::clone(&block));
                            block
                        }
                        Lookup::Busy => match cache.lookup_wait(key(1, 7)) {
                            Lookup::Hit(block) => block,
                            _ => panic!("the block was loaded and fits"),
                        },
                    };
                    assert_eq!(&block[..], b"seven");
                });
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }

    #[test]
    fn a_failed_load_is_the_next_ones_turn() {
        let cache = BlockCache::new(1 << 20);
        let Lookup::Claimed(claim) = cache.lookup(key(1, 0)) else { panic!("nothing is there yet") };
        assert!(matches!(cache.lookup(key(1, 0)), Lookup::Busy));
        drop(claim);
        let Lookup::Claimed(claim) = cache.lookup_wait(key(1, 0)) else { panic!("the first gave up") };
        claim.fill(Arc::from(&b"x"[..]));
        assert!(matches!(cache.lookup(key(1, 0)), Lookup::Hit(_)));
        assert!(matches!(cache.lookup(key(1, 1)), Lookup::Claimed(_)), "another block of the chunk");
        assert_eq!(cache.counts(), (1, 2));
    }

    #[test]
    fn it_stays_within_its_bytes() {
        for bytes in [100_000, 3 << 20, 40 << 20] {
            let cache = BlockCache::new(bytes);
            for n in 0..=255 {
                for block in 0..16 {
                    cache.insert(key(n, block), Arc::from(vec![n; 15_000]));
                }
            }
            let total = cache.bytes();
            assert!(total <= bytes, "{total}");
            assert!(total > bytes * 8 / 10, "{total} of {bytes}");
        }
    }
}
