//! Reading a pack through the cache: what is fetched along with what is asked for.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cache::PackCache;
use super::disk::read_only;
use crate::disk::DiskFile;
use crate::format::{PackKind, PackName};

/// What is fetched of a pack of trees at first, when anything of it is wanted; then twice as much each time, since trees
/// are read from many places of few packs ...
const TREE_SPAN: u64 = 128 << 10;
/// ... and this much where files are wanted, beside which it is little: each further step is a wait for the remote.
const TREE_SPAN_DATA: u64 = 1 << 20;
const TREE_SPAN_MAX: u64 = 4 << 20;
/// What is fetched ahead of a reader in order, at first and at most.
const AHEAD: u64 = 1 << 20;
const AHEAD_MAX: u64 = 16 << 20;

/// How a pack is read.
#[derive(Debug, Default)]
struct Habit {
    kind: Option<PackKind>,
    /// Where a reader in order reads next.
    next: u64,
    /// How much is fetched with what is asked for.
    more: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reads {
    cache: PackCache,
    read_ahead: bool,
    habits: Mutex<HashMap<PackName, Habit>>,
    /// What is fetched around trees at first; nothing while only footers are looked at.
    tree_span: AtomicU64,
}

/// What is locked here is consistent between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reads {
    pub(super) fn new(cache: PackCache, read_ahead: bool) -> Self {
        Self { cache, read_ahead, habits: Mutex::default(), tree_span: AtomicU64::new(0) }
    }

    pub(super) fn cache(&self) -> &PackCache {
        &self.cache
    }

    /// A pack is of this kind.
    pub(super) fn is_of(&self, name: &PackName, kind: PackKind) {
        lock(&self.habits).entry(*name).or_default().kind = Some(kind);
    }

    /// From now on trees are wanted, not only footers; and `data`, too.
    pub(super) fn widen(&self, data: bool) {
        self.tree_span.store(if data { TREE_SPAN_DATA } else { TREE_SPAN }, Ordering::Relaxed);
    }

    /// What to fetch for a read, and what to begin to fetch after it.
    fn span(&self, name: &PackName, len: u64, wanted: Range<u64>) -> (Range<u64>, Range<u64>) {
        let here = self.cache.has(name, &wanted);
        let mut habits = lock(&self.habits);
        let habit = habits.entry(*name).or_default();
        let tree_span = self.tree_span.load(Ordering::Relaxed);
        if !here && habit.kind == Some(PackKind::Tree) && tree_span > 0 {
            habit.more = (habit.more * 2).clamp(tree_span, TREE_SPAN_MAX);
            let start = wanted.start - wanted.start % habit.more;
            let end = wanted.end.next_multiple_of(habit.more).min(len);
            return (start..end, 0..0);
        }
        let mut ahead = 0..0;
        if self.reads_on(habit, &wanted) {
            habit.more = (habit.more * 2).clamp(AHEAD, AHEAD_MAX);
            ahead = wanted.end..len.min(wanted.end + habit.more);
        }
        habit.next = wanted.end;
        (wanted, ahead)
    }

    /// Whether a pack with data is read in order, and somebody is to read ahead.
    fn reads_on(&self, habit: &Habit, wanted: &Range<u64>) -> bool {
        self.read_ahead && habit.kind == Some(PackKind::Data) && habit.next == wanted.start
    }

    fn read_pack(&self, name: &PackName, len: u64, buf: &mut [u8], off: u64) -> io::Result<usize> {
        let n = usize::try_from(len.saturating_sub(off)).unwrap_or(usize::MAX).min(buf.len());
        if n == 0 {
            return Ok(0);
        }
        let (fetch, ahead) = self.span(name, len, off..off + n as u64);
        if !ahead.is_empty() {
            self.cache.plan(name, ahead);
        }
        self.cache.read(name, &mut buf[..n], off, &fetch)?;
        Ok(n)
    }
}

/// An open pack.
#[derive(Debug)]
pub(super) struct RemoteFile {
    pub(super) reads: Arc<Reads>,
    pub(super) name: PackName,
    /// As the listing says.
    pub(super) len: u64,
}

impl DiskFile for RemoteFile {
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        self.reads.read_pack(&self.name, self.len, buf, off)
    }

    fn write_all_at(&self, _buf: &[u8], _off: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(read_only())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn allocate(&self, _off: u64, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn start_writeback(&self, _off: u64, _len: u64) {}
}
