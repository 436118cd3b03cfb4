//! Sending: packs by several threads, chain files one after the other as soon as their packs are there.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::format::PackName;
use crate::format::chain::{CHAIN_FILE_LEN_MAX, parse_name};
use crate::format::pack::pack_path;
use crate::remote::{Bytes, Checksum, Key, Remote, Source};
use crate::store::error::StoreError;

use super::Progress;
use super::damaged::Damaged;
use super::error::{Result, ShipError};
use super::plan::Plan;
use super::stop::Stop;
use super::tune::{Meter, Tuner};
use super::{Jobs, ShipOptions};

/// What was sent.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) packs: u64,
    /// Of those, the ones that no snapshot names yet.
    pub(super) packs_ahead: u64,
    /// All of them, with their lengths.
    pub(super) done: Vec<(PackName, u64)>,
    /// As many packs at a time as did best.
    pub(super) jobs: usize,
    pub(super) chain_files: u64,
    pub(super) headers: u64,
    pub(super) bytes: u64,
    /// Sequence of the newest of the chain files.
    pub(super) newest: Option<u64>,
    /// Packs whose bytes are not what their names say.
    pub(super) damaged: Vec<String>,
}

/// A file of the vault as it is sent.
#[derive(Debug)]
struct PackSource {
    file: Arc<dyn DiskFile>,
    len: u64,
    gauge: Arc<Gauge>,
    stop: Option<Arc<Stop>>,
}

impl Source for PackSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        if self.stop.as_ref().is_some_and(|stop| stop.is_abandoned()) {
            return Err(io::Error::other("stopped"));
        }
        let n = self.file.read_at(buf, off)?;
        self.gauge.flow(n as u64);
        Ok(n)
    }
}

impl PackSource {
    /// A file whose bytes, as they are read, add to `total`.
    fn new(
        file: &Arc<dyn DiskFile>,
        len: u64,
        total: Arc<AtomicU64>,
        stop: Option<Arc<Stop>>,
    ) -> (Self, Arc<Gauge>) {
        let gauge = Arc::new(Gauge { total, len, seen: AtomicU64::new(0) });
        (Self { file: Arc::clone(file), len, gauge: Arc::clone(&gauge), stop }, gauge)
    }
}

/// Bytes of one pack that have been read for sending. A retry reads them again, which must not count twice.
#[derive(Debug)]
struct Gauge {
    total: Arc<AtomicU64>,
    len: u64,
    seen: AtomicU64,
}

impl Gauge {
    fn flow(&self, n: u64) {
        let before = self.seen.fetch_add(n, Ordering::Relaxed);
        let room = self.len.saturating_sub(before);
        self.total.fetch_add(n.min(room), Ordering::Relaxed);
    }

    /// However much was seen, now it is all of it.
    fn finish(&self) {
        let seen = self.seen.swap(self.len, Ordering::Relaxed).min(self.len);
        self.total.fetch_add(self.len - seen, Ordering::Relaxed);
    }
}

/// How many packs go at a time.
struct Limit {
    now: usize,
    /// `None`: a fixed number.
    measured: Option<(Tuner, Meter)>,
}

impl Limit {
    /// The limit to begin with, and the most that it may become.
    fn new(jobs: &Jobs) -> (Self, usize) {
        match jobs {
            Jobs::Fixed(jobs) => {
                let jobs = (*jobs).max(1);
                (Self { now: jobs, measured: None }, jobs)
            }
            Jobs::Measured { bounds, counters, env } => {
                let tuner = Tuner::new(*bounds);
                let meter = Meter::new(env.monotonic(), counters.pushed_back());
                (Self { now: tuner.jobs(), measured: Some((tuner, meter)) }, bounds.max)
            }
        }
    }

    /// A pack has ended, and others wait to be sent; `bytes` were sent so far.
    fn ended(&mut self, jobs: &Jobs, bytes: u64) {
        if let (Some((tuner, meter)), Jobs::Measured { counters, env, .. }) = (&mut self.measured, jobs)
            && let Some(sample) = meter.ended(env.monotonic(), bytes, counters.pushed_back(), tuner.jobs())
        {
            let before = self.now;
            self.now = tuner.sample(sample);
            if self.now != before {
                tracing::debug!(before, now = self.now, ?sample, "packs at a time");
            }
        }
    }

    fn settled(&self) -> usize {
        self.measured.as_ref().map_or(self.now, |(tuner, _)| tuner.settled())
    }
}

struct Work {
    /// Packs that nobody has taken, the next one last.
    todo: Vec<(usize, PackName, u64)>,
    /// Packs of each group that are not there yet.
    left: Vec<usize>,
    sent: Sent,
    error: Option<ShipError>,
    /// Threads that still send.
    running: usize,
    /// Packs under way, and how many there may be.
    under_way: usize,
    limit: Limit,
}

struct Shared<'a> {
    damaged: &'a Damaged,
    options: &'a ShipOptions,
    /// The group that may vanish here.
    ahead: Option<usize>,
    disk: &'a Arc<dyn Disk>,
    remote: &'a Arc<dyn Remote>,
    work: Mutex<Work>,
    changed: Condvar,
    bytes: Arc<AtomicU64>,
}

impl Shared<'_> {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a thread that panics be seen: its packs will never come.
struct Running<'a, 'b>(&'a Shared<'b>);

impl Drop for Running<'_, '_> {
    fn drop(&mut self) {
        self.0.work().running -= 1;
        self.0.changed.notify_all();
    }
}

/// A pack that is under way, until it has ended in whatever way.
struct UnderWay<'a, 'b>(&'a Shared<'b>);

impl Drop for UnderWay<'_, '_> {
    fn drop(&mut self) {
        self.0.work().under_way -= 1;
    }
}

/// Sends everything that a plan has. `headers` is called before the first chain file, and returns how many it sent. What was
/// sent is told also where it failed. A file that is not there any more is a failure: then the plan is no good.
pub(super) fn send(
    disk: &Arc<dyn Disk>,
    remote: &Arc<dyn Remote>,
    plan: &Plan,
    options: &ShipOptions,
    progress: &(dyn Fn(Progress) + Sync),
    damaged: &Damaged,
    headers: &mut dyn FnMut() -> Result<u64>,
) -> (Sent, Result<()>) {
    let (packs, bytes_total, files) = plan.totals();
    let mut todo: Vec<(usize, PackName, u64)> = Vec::new();
    for (n, group) in plan.groups.iter().enumerate() {
        todo.extend(group.packs.iter().map(|(name, len)| (n, *name, *len)));
    }
    todo.reverse();
    let (limit, max) = Limit::new(&options.jobs);
    // Threads beyond the limit wait until it grows.
    let jobs = max.clamp(1, 256).min(todo.len());
    let shared = Shared {
        damaged,
        options,
        ahead: plan.ahead(),
        disk,
        remote,
        work: Mutex::new(Work {
            todo,
            left: plan.groups.iter().map(|group| group.packs.len()).collect(),
            sent: Sent::default(),
            error: None,
            running: jobs,
            under_way: 0,
            limit,
        }),
        changed: Condvar::new(),
        bytes: Arc::default(),
    };
    let show = |work: &Work| {
        progress(Progress {
            bytes: shared.bytes.load(Ordering::Relaxed),
            bytes_total,
            objects: work.sent.packs + work.sent.chain_files,
            objects_total: packs + files,
        });
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs)
            .map(|_| {
                scope.spawn(|| {
                    let running = Running(&shared);
                    send_packs(&shared);
                    drop(running);
                })
            })
            .collect();
        let done = send_files(&shared, plan, &show, headers);
        if let Err(error) = done {
            let mut work = shared.work();
            work.error.get_or_insert(error);
            work.todo.clear();
            drop(work);
            shared.changed.notify_all();
        }
        for thread in threads {
            // Whoever is not joined here lets the scope panic as well.
            if thread.join().is_err() {
                shared.work().error.get_or_insert_with(thread_failed);
            }
        }
    });
    let mut work = shared.work.into_inner().unwrap_or_else(PoisonError::into_inner);
    work.sent.jobs = work.limit.settled();
    (work.sent, work.error.map_or(Ok(()), Err))
}

fn thread_failed() -> ShipError {
    StoreError::Poisoned("a thread that sends packs failed".into()).into()
}

/// One thread: takes packs until there are none, or something failed.
fn send_packs(shared: &Shared<'_>) {
    loop {
        let Some((group, name, len)) = next_pack(shared) else { return };
        let going = UnderWay(shared);
        let outcome = send_pack(shared, name, len);
        drop(going);
        let mut work = shared.work();
        if !work.todo.is_empty() {
            work.limit.ended(&shared.options.jobs, shared.bytes.load(Ordering::Relaxed));
        }
        let ended = match outcome {
            Ok(Outcome::Sent) => {
                work.sent.packs += 1;
                work.sent.packs_ahead += u64::from(shared.ahead == Some(group));
                work.sent.done.push((name, len));
                work.sent.bytes += len;
                Ok(())
            }
            Ok(Outcome::Damaged) => {
                work.sent.damaged.push(format!("{} is damaged", pack_path(&name)));
                Ok(())
            }
            // Collected before any snapshot named it: nobody will miss it.
            Ok(Outcome::Vanished) if shared.ahead == Some(group) => Ok(()),
            Ok(Outcome::Vanished) => Err(vanished(&pack_path(&name))),
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => work.left[group] -= 1,
            // It stays among those that are left, so that no snapshot follows that needs it.
            Err(error) => {
                work.error.get_or_insert(error);
                work.todo.clear();
            }
        }
        drop(work);
        shared.changed.notify_all();
    }
}

fn vanished(path: &str) -> ShipError {
    StoreError::io(format!("reading {path}"), io::ErrorKind::NotFound.into()).into()
}

/// The next pack, as soon as one more may be under way; `None` when there are no more.
fn next_pack(shared: &Shared<'_>) -> Option<(usize, PackName, u64)> {
    let mut work = shared.work();
    loop {
        if shared.options.is_stopped() && !work.todo.is_empty() {
            work.error.get_or_insert(ShipError::Stopped);
            work.todo.clear();
            shared.changed.notify_all();
        }
        if work.error.is_some() || work.todo.is_empty() {
            return None;
        }
        if work.under_way < work.limit.now {
            work.under_way += 1;
            return work.todo.pop();
        }
        work = shared.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
    }
}

enum Outcome {
    /// It was not there when the remote was listed, and now it is. Who put it is not asked: of a put that was tried again
    /// the first try may have been applied.
    Sent,
    Damaged,
    Vanished,
}

fn send_pack(shared: &Shared<'_>, name: PackName, len: u64) -> Result<Outcome> {
    let path = pack_path(&name);
    let failed = |e: io::Error| ShipError::from(StoreError::io(format!("reading {path}"), e));
    let file = match shared.disk.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Vanished),
        Err(e) => return Err(failed(e)),
    };
    let Some(checksum) = hash_pack(&file, len, &name).map_err(failed)? else { return Ok(Outcome::Damaged) };
    let (source, gauge) =
        PackSource::new(&file, len, Arc::clone(&shared.bytes), shared.options.stop().cloned());
    let source: Arc<dyn Source> = Arc::new(source);
    put(shared, &path, &source, &checksum)?;
    gauge.finish();
    Ok(Outcome::Sent)
}

/// Puts an object. Where other bytes are under its name afterwards, that is remembered: the next listing shows a sound one.
fn put(shared: &Shared<'_>, path: &str, source: &Arc<dyn Source>, checksum: &Checksum) -> Result<()> {
    match shared.remote.put_if_absent(&key_of(path)?, source, checksum) {
        Ok(_) => Ok(()),
        Err(error) => {
            shared.damaged.put_failed(shared.disk.as_ref(), path, &error);
            Err(error.into())
        }
    }
}

/// The checksum of a pack; `None` when its bytes are not what its name says, or not so many.
pub(super) fn hash_pack(file: &Arc<dyn DiskFile>, len: u64, name: &PackName) -> io::Result<Option<Checksum>> {
    let (source, _) = PackSource::new(file, len, Arc::default(), None);
    let mut hasher = blake3::Hasher::new();
    let hashed = Checksum::of_source(&source, &mut |piece| {
        hasher.update(piece);
    });
    match hashed {
        // FORMAT LAY-1: the name is the hash of the bytes. Damage here must not travel.
        Ok(checksum) if file.len()? == len && hasher.finalize().as_bytes() == name.as_bytes() => {
            Ok(Some(checksum))
        }
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// The name of a vault's file at a remote.
pub(super) fn key_of(path: &str) -> Result<Key> {
    Key::new(path).ok_or_else(|| StoreError::Corrupt(format!("{path} is no name of an object")).into())
}

/// Sends the chain files of each group once all its packs are there.
fn send_files(
    shared: &Shared<'_>,
    plan: &Plan,
    show: &dyn Fn(&Work),
    headers: &mut dyn FnMut() -> Result<u64>,
) -> Result<()> {
    let mut headers_done = false;
    for (n, group) in plan.groups.iter().enumerate() {
        {
            let mut work = shared.work();
            while work.left[n] > 0 {
                if work.error.is_some() || work.running == 0 {
                    return match work.error.take() {
                        Some(error) => Err(error),
                        None => Err(thread_failed()),
                    };
                }
                show(&work);
                let step = std::time::Duration::from_millis(200);
                work = shared.changed.wait_timeout(work, step).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        if !headers_done {
            let sent = headers()?;
            shared.work().sent.headers += sent;
            headers_done = true;
        }
        for path in &group.files {
            if shared.options.is_stopped() {
                return Err(ShipError::Stopped);
            }
            let len = send_file(shared, path)?;
            let mut work = shared.work();
            work.sent.chain_files += 1;
            work.sent.bytes += len;
            let name = path.rsplit('/').next().and_then(parse_name);
            work.sent.newest = work.sent.newest.max(name.map(|(seq, _)| seq));
            show(&work);
        }
    }
    if !headers_done {
        let sent = headers()?;
        shared.work().sent.headers += sent;
    }
    Ok(())
}

fn send_file(shared: &Shared<'_>, path: &str) -> Result<u64> {
    let bytes = shared
        .disk
        .read_file(path, CHAIN_FILE_LEN_MAX as u64)
        .map_err(|e| ShipError::from(StoreError::io(format!("reading {path}"), e)))?;
    let checksum = Checksum::of(&bytes);
    let len = bytes.len() as u64;
    put(shared, path, &Bytes::source(bytes), &checksum)?;
    Ok(len)
}
