//! POSIX meaning: what a mounted vault does, without a kernel. Everything is synchronous and `&self`; many threads may
//! call at once.
//!
//! # Parts
//! [`Fs`] is the door: it sends each call to the working tree (`Core`) or, for what is below `.snapshots` and for a
//! mounted snapshot, to the read-only [`browse::Browse`]. The rest is split by family of system calls. Names and
//! attributes live in the live database and nowhere else; only data that was written and is not published yet lives in
//! memory (`node`, `dirty`).
//!
//! # The path of a written byte
//! [`write`] puts it into its file's dirty map. `flush` cuts runs of dirty data into chunks, while they stream or when
//! someone asks, and hands them to the pack workers; meanwhile they are *in flight* and still read from memory. When a
//! chunk is stored its extent is *published*, strictly in the order of submission: one batch changes the file's extents,
//! size, times and the marks of its directories (`extents`, `publish`). So a row never names bytes that are not in
//! a pack, and the next commit makes packs durable before rows. Data whose storing fails goes back to the dirty map:
//! nothing that was accepted is dropped.
//!
//! # Locks, in the order in which they are taken
//! 1. a file's exclusive flag (`node::Exclusive`); of two files, the one with the lower number first
//! 2. a node (`node::Node::lock`); of two, the lower number first
//! 3. the namespace (`Core::read_meta`, `Core::txn`)
//! 4. leaves, held for a few instructions: node table, handles, budget, lists
//!
//! Nothing waits for a chunk, a commit or memory while it holds a node or the namespace: pieces of work are listed under
//! the lock and submitted after it was dropped, since a worker needs the node's lock to finish.

mod acl;
mod attr;
pub mod browse;
mod budget;
mod copy;
mod dir;
mod dirty;
mod error;
mod extents;
mod facade;
mod fallocate;
mod flush;
mod gaps;
mod handles;
mod inline;
mod lazy;
mod link;
mod node;
mod publish;
mod read;
mod rename;
mod statfs;
mod sync;
mod truncate;
mod txn;
mod types;
mod write;
mod xattr;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod testing;

pub use acl::fuzz_acl;
pub use error::{FsError, FsResult};
pub use facade::Fs;
pub use types::{
    Attr, Caller, DirEnt, Fh, FsOptions, FsStats, OpenFlags, RenameFlags, SetAttr, SetTime, StatFs, Whence,
    falloc, xattr_flags,
};

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::Duration;

use crate::env::Time;
use crate::format::tree::{FILE_SIZE_MAX, NAME_LEN_MAX};
use crate::store::chunker::Chunker;
use crate::store::engine::Engine;
use crate::store::live::Table;
use crate::store::pool::Pool;
use crate::store::records::{ROOT_INO, decode_u64, parse_inode_key, settings};
use rustix::io::Errno;

/// The largest file, in bytes.
pub const SIZE_MAX: u64 = FILE_SIZE_MAX;

/// The directory of the root that shows snapshots; listings hide it.
pub const SNAPSHOTS_DIR: &[u8] = b".snapshots";

/// What the namespace's lock protects besides the database.
#[derive(Debug)]
struct Meta {
    next_ino: u64,
    ino_ceiling: u64,
    change: u64,
    change_ceiling: u64,
    change_ceiling_stale: bool,
}

/// The working tree.
pub(crate) struct Core {
    me: Weak<Core>,
    engine: Arc<Engine>,
    read_only: bool,
    chunker: Chunker,
    meta: RwLock<Meta>,
    nodes: node::NodeTable,
    handles: handles::Handles,
    budget: budget::Budget,
    /// Where data of streams stands until it is published.
    pool: Arc<Pool>,
    /// Files larger than tiny with inline extents: turned into chunks at the next flush of everything.
    inline_pending: Mutex<BTreeSet<u64>>,
    /// Held by who turns inline rows into chunks.
    converting: Mutex<()>,
    /// Bytes by which their inline extents have grown since these were last turned into chunks.
    inline_growth: AtomicU64,
    /// Files without a name whose rows are still there.
    purges: Mutex<BTreeSet<u64>>,
    lazy: lazy::LazyState,
    counters: Counters,
    clock: Mutex<sync::CommitClock>,
}

#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    read: AtomicU64,
    failed_chunks: AtomicU64,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("engine", &self.engine)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

impl Core {
    fn open(engine: Arc<Engine>, opts: FsOptions) -> FsResult<Arc<Core>> {
        if engine.live.get(Table::Inodes, &crate::store::records::inode_key(ROOT_INO))?.is_none() {
            if opts.read_only {
                return Err(Errno::NOENT.into());
            }
            lazy::format_root(&engine.live, engine.ctx.env.now())?;
        }
        let counter = |name: &[u8]| -> FsResult<Option<u64>> {
            Ok(engine.live.get(Table::Settings, name)?.map(|value| decode_u64(&value)).transpose()?)
        };
        let next_ino = counter(settings::NEXT_INO)?.unwrap_or(ROOT_INO + 1);
        let change = counter(settings::CHANGE_COUNTER)?.unwrap_or(1);
        let lazy = engine.live.get(Table::Settings, settings::LAZY)?.is_some();
        let chunker = Chunker::new(&engine.ctx.chunker, engine.ctx.keys.chunker_seed());
        let pool = flush::stream_pool(engine.ctx.cfg.dirty_bytes_max, &chunker);
        let now = engine.ctx.env.monotonic();
        let core = Arc::new_cyclic(|me| Core {
            me: Weak::clone(me),
            read_only: opts.read_only,
            chunker,
            meta: RwLock::new(Meta {
                next_ino,
                ino_ceiling: next_ino,
                change,
                change_ceiling: change,
                change_ceiling_stale: false,
            }),
            nodes: node::NodeTable::default(),
            handles: handles::Handles::default(),
            budget: budget::Budget::new(engine.ctx.cfg.dirty_bytes_max),
            pool,
            inline_pending: Mutex::default(),
            converting: Mutex::default(),
            inline_growth: AtomicU64::new(0),
            purges: Mutex::default(),
            lazy: lazy::LazyState::new(lazy),
            counters: Counters::default(),
            clock: Mutex::new(sync::CommitClock::new(now)),
            engine,
        });
        if !core.read_only {
            core.purge_orphans()?;
            core.find_inline()?;
        }
        Ok(core)
    }

    /// Purges what had no name when the vault was last in use.
    fn purge_orphans(&self) -> FsResult<()> {
        loop {
            let rows = self.engine.live.range(Table::Orphans, &[], None, txn::PAGE_ROWS)?;
            if rows.is_empty() {
                return Ok(());
            }
            for (key, _) in rows {
                self.purge_rows(parse_inode_key(&key)?, usize::MAX)?;
            }
        }
    }

    fn now(&self) -> Time {
        self.engine.ctx.env.now()
    }

    fn monotonic(&self) -> Duration {
        self.engine.ctx.env.monotonic()
    }

    /// Fails unless changes are allowed: EROFS on a read-only mount, EIO once the vault is poisoned.
    fn writable(&self) -> FsResult<()> {
        if self.read_only {
            return Err(Errno::ROFS.into());
        }
        Ok(self.engine.check_poison()?)
    }

    /// Fails unless a change that needs new rows can be taken.
    fn writable_meta(&self) -> FsResult<()> {
        self.writable()?;
        Ok(self.engine.admit_meta()?)
    }

    fn may_be_lazy(&self) -> bool {
        self.lazy.any.load(Ordering::Acquire)
    }
}

/// Checks a name that is about to be made or looked for.
fn check_name(name: &[u8]) -> FsResult<()> {
    if name.len() > NAME_LEN_MAX {
        return Err(Errno::NAMETOOLONG.into());
    }
    if name.is_empty() {
        return Err(Errno::NOENT.into());
    }
    if name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::INVAL.into());
    }
    Ok(())
}

/// A flag that is set once and read often.
type Flag = AtomicBool;
