//! Full and failing disks.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::disk::{CrashMode, FaultErrno, FaultOp, Faults, FaultyDisk};

fn numbered(n: u64, len: usize) -> Batch {
    let mut batch = Batch::new();
    batch.put(Table::Extents, n.to_be_bytes(), vec![n as u8; len]);
    batch
}

fn count(live: &Live) -> u64 {
    live.range(Table::Extents, b"", None, usize::MAX).unwrap().len() as u64
}

/// A live state of 400 rows, as it is after the next open: nothing of it is cached.
fn rows_on_a_faulty_disk() -> (Rig, Faults) {
    let faults = Faults::new();
    let rig = Rig::new(FaultyDisk::new(SimDisk::new(1), faults.clone()), 1);
    let live = rig.create().unwrap();
    for n in 0..400 {
        live.apply(numbered(n, 3000)).unwrap();
    }
    live.close().unwrap();
    (rig, faults)
}

#[test]
fn one_failed_read_makes_nothing_else_unreadable() {
    let (mut rig, faults) = rows_on_a_faulty_disk();
    let live = rig.open().unwrap();
    let row = |n: u64| live.get(Table::Extents, &n.to_be_bytes());
    // Each of these meets one error at another depth of the tree.
    for n in 1..=3 {
        faults.fail_nth(FaultOp::Read, n, FaultErrno::Eio);
        assert_eq!(row(100 * n).unwrap().unwrap()[..], vec![(100 * n) as u8; 3000]);
        assert_eq!(count(&live), 400);
    }
    assert!(faults.struck() >= 1, "no read failed: nothing was tested");
    // As long as the disk gives nothing at all there is an error, of the disk; afterwards all is well.
    let view = live.view().unwrap();
    faults.fail_all(FaultOp::Read, "live/", FaultErrno::Eio);
    let errors: Vec<StoreError> = (0..400).filter_map(|n| row(n).err()).collect();
    assert!(errors.iter().all(|e| matches!(e, StoreError::Io { .. })), "{errors:?}");
    assert!(!errors.is_empty());
    faults.clear();
    for n in 0..400 {
        assert_eq!(row(n).unwrap().unwrap()[..], vec![n as u8; 3000]);
    }
    // A view of the state before gives what it has or an error, and no other state's rows.
    live.apply(numbered(7, 10)).unwrap();
    live.checkpoint().unwrap();
    for n in 0..400_u64 {
        if let Ok(value) = view.get(Table::Extents, &n.to_be_bytes()) {
            assert_eq!(value.unwrap()[..], vec![n as u8; 3000]);
        }
    }
    drop(view);
    assert!(!rig.poison.is_set());
    assert_eq!(row(7).unwrap().unwrap().len(), 10);
    live.close().unwrap();
    drop(live);
    let live = rig.open().unwrap();
    assert!(!live.recovered());
    assert_eq!(count(&live), 400);
}

#[test]
fn one_failed_read_in_a_checkpoint_stops_nothing() {
    let mut survived = 0;
    for nth in 1.. {
        let (mut rig, faults) = rows_on_a_faulty_disk();
        let live = rig.open().unwrap();
        for n in (0..400).step_by(40) {
            live.apply(numbered(n, 20)).unwrap();
        }
        faults.fail_nth(FaultOp::Read, nth, FaultErrno::Eio);
        let done = live.checkpoint();
        let hit = faults.struck() > 0;
        faults.clear();
        // What the block file must read in order to write is part of the write, and a failed one ends all writing.
        assert_eq!(done.is_err(), rig.poison.is_set(), "read {nth}: {done:?}");
        if done.is_err() {
            assert_eq!(count(&live), 400, "reading goes on");
            continue;
        }
        assert_eq!(count(&live), 400);
        let row = live.get(Table::Extents, &80_u64.to_be_bytes()).unwrap().unwrap();
        assert_eq!(row[..], [80; 20]);
        live.close().unwrap();
        drop(live);
        assert_eq!(count(&rig.open().unwrap()), 400);
        if !hit {
            break;
        }
        survived += 1;
    }
    assert!(survived >= 5, "only {survived} checkpoints went on after a failed read");
}

#[test]
fn the_smallest_journal_takes_the_largest_row() {
    use crate::store::records::INLINE_ROW_MAX;
    let mut rig = Rig::new(SimDisk::new(1), 1);
    rig.cfg.segment_bytes = 1;
    let live = rig.create().unwrap();
    for n in 0..8 {
        live.apply(numbered(n, INLINE_ROW_MAX)).unwrap();
        live.commit().unwrap();
    }
    assert_eq!(count(&live), 8);
}

#[test]
fn a_full_disk_loses_nothing() {
    let disk = SimDisk::new(1);
    let mut rig = Rig::new(disk.clone(), 1);
    let live = rig.create().unwrap();
    live.checkpoint().unwrap();
    let space = disk.space().unwrap();
    disk.set_capacity(space.total - space.available + (200 << 10));
    let mut applied = 0;
    // The overlay bound and the journal fill up; then there is nowhere to go.
    let error = loop {
        match live.apply(numbered(applied, 5000)) {
            Ok(()) => applied += 1,
            Err(e) => break e,
        }
        match live.commit() {
            Ok(()) => {}
            Err(e) => break e,
        }
        assert!(applied < 1000);
    };
    assert!(matches!(error, StoreError::NoSpace), "{error}");
    assert!(!rig.poison.is_set());
    assert_eq!(count(&live), applied);
    assert!(matches!(live.checkpoint(), Err(StoreError::NoSpace)));
    assert!(live.view().is_err());
    assert_eq!(count(&live), applied);
    // A crash on the full disk keeps what was committed, and the next open works as far as it can.
    let durable = live.generation();
    let image = disk.crash_image(CrashMode::DropUnsynced);
    let again = Rig::new(image, 77).open().unwrap();
    assert!(again.generation() >= durable && count(&again) >= durable);
    drop(again);
    // Room comes back.
    disk.set_capacity(1 << 30);
    live.checkpoint().unwrap();
    assert_eq!(live.journal_bytes(), 0);
    live.apply(numbered(applied, 5000)).unwrap();
    live.close().unwrap();
    drop(live);
    let live = rig.open().unwrap();
    assert!(!live.recovered());
    assert_eq!(count(&live), applied + 1);
}

/// A block file whose disk is full after some more operations, and stays so until it is told otherwise.
#[derive(Debug)]
struct Filling {
    inner: BlockFile,
    left: Arc<AtomicU64>,
}

const ENDLESS: u64 = u64::MAX;
/// The next operation waits until something else is set.
const STUCK: u64 = u64::MAX - 1;
const REACHED: u64 = u64::MAX - 2;

impl Filling {
    fn step(&self) -> io::Result<()> {
        if self.left.compare_exchange(STUCK, REACHED, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            while self.left.load(Ordering::SeqCst) == REACHED {
                std::thread::yield_now();
            }
        }
        let next = |left: u64| if left == ENDLESS { Some(left) } else { left.checked_sub(1) };
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

impl StorageBackend for Filling {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step()?;
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.step()?;
        self.inner.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.step()?;
        self.inner.write(offset, data)
    }
}

#[test]
fn the_disk_may_fill_up_at_any_moment_of_a_checkpoint() {
    let disk = SimDisk::new(2);
    let live = Rig::new(disk.clone(), 2).create().unwrap();
    for n in 0..60 {
        live.apply(numbered(n, 1500)).unwrap();
    }
    live.close().unwrap();
    drop(live);
    let start = disk.crash_image(CrashMode::KeepAll);
    let (mut full, mut whole) = (0, false);
    for steps in 0.. {
        let sim = start.fork();
        let env = Arc::new(TestEnv::new(50 + steps));
        let (poison, left) = (Arc::new(Poison::new()), Arc::new(AtomicU64::new(ENDLESS)));
        let shared: Arc<dyn Disk> = Arc::new(sim.clone());
        let inner = BlockFile::open(shared.clone(), env.clone(), keys(1), (*poison).clone(), DIR).unwrap();
        let backend = Box::new(Filling { inner, left: left.clone() });
        let cfg = LiveConfig { overlay_bytes_max: 1 << 20, segment_bytes: 1 << 20, ..small() };
        let live = Live::open_on(backend, &*shared, keys(1), env, poison.clone(), cfg).unwrap();
        // Rows that are replaced, a row that is deleted, and growth.
        for n in 0..20 {
            live.apply(numbered(n * 3, 700)).unwrap();
        }
        let mut batch = Batch::new();
        batch.delete(Table::Extents, 1u64.to_be_bytes());
        batch.put(Table::Packs, *b"big", vec![9; 20_000]);
        live.apply(batch).unwrap();
        live.commit().unwrap();
        let crash = |what: &str| {
            for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn(steps)] {
                let live = Rig::new(sim.crash_image(mode), 90).open().unwrap();
                assert_eq!(count(&live), 59, "{what} {steps} {mode:?}");
                assert_eq!(live.get(Table::Extents, &3u64.to_be_bytes()).unwrap().unwrap().len(), 700);
                assert_eq!(live.get(Table::Packs, b"big").unwrap().unwrap().len(), 20_000);
            }
        };
        left.store(steps, Ordering::SeqCst);
        match live.checkpoint() {
            Ok(()) => whole = true,
            Err(StoreError::NoSpace) => {
                full += 1;
                assert_eq!(count(&live), 59);
                assert!(matches!(live.checkpoint(), Err(StoreError::NoSpace)));
                live.apply(numbered(1, 5)).unwrap();
                live.commit().unwrap();
                let mut batch = Batch::new();
                batch.delete(Table::Extents, 1u64.to_be_bytes());
                live.apply(batch).unwrap();
                live.commit().unwrap();
            }
            Err(e) => panic!("{steps}: {e}"),
        }
        assert!(!poison.is_set());
        crash("full");
        if whole {
            break;
        }
        if steps.is_multiple_of(2) {
            // Room comes back bit by bit.
            for more in 1.. {
                left.store(more, Ordering::SeqCst);
                match live.checkpoint() {
                    Ok(()) => break,
                    Err(StoreError::NoSpace) => assert_eq!(count(&live), 59),
                    Err(e) => panic!("{steps} {more}: {e}"),
                }
            }
        } else {
            left.store(ENDLESS, Ordering::SeqCst);
            live.checkpoint().unwrap();
        }
        left.store(ENDLESS, Ordering::SeqCst);
        crash("room");
        live.apply(numbered(5000, 1)).unwrap();
        left.store(steps / 2, Ordering::SeqCst);
        if live.close().is_err() {
            assert!(matches!(live.close(), Err(StoreError::NoSpace)));
            live.apply(numbered(5001, 1)).unwrap_err();
            live.commit().unwrap();
            assert_eq!(count(&live), 60);
            left.store(ENDLESS, Ordering::SeqCst);
            live.close().unwrap();
        }
        live.get(Table::Packs, b"big").unwrap_err();
        drop(live);
        let live = Rig::new(sim.crash_image(CrashMode::DropUnsynced), 91).open().unwrap();
        assert!(!live.recovered() && count(&live) == 60);
    }
    assert!(full > 10, "the checkpoint has {full} steps");
}

#[test]
fn a_failed_write_poisons_and_reads_go_on() {
    for op in [FaultOp::Write, FaultOp::Sync] {
        for checkpoint in [false, true] {
            for nth in 1..6 {
                let faults = Faults::new();
                let sim = SimDisk::new(1);
                let rig = Rig::new(FaultyDisk::new(sim.clone(), faults.clone()), 1);
                let live = rig.create().unwrap();
                for n in 0..50 {
                    live.apply(numbered(n, 1000)).unwrap();
                }
                live.checkpoint().unwrap();
                live.apply(numbered(50, 10)).unwrap();
                live.commit().unwrap();
                faults.fail_nth(op, nth, FaultErrno::Eio);
                live.apply(numbered(51, 10)).unwrap();
                let result = if checkpoint { live.checkpoint() } else { live.commit() };
                if nth == 1 {
                    result.unwrap_err();
                }
                assert_eq!(rig.poison.is_set(), faults.struck() > 0, "{op:?} {nth} {checkpoint}");
                assert_eq!(count(&live), 52);
                if rig.poison.is_set() {
                    assert!(matches!(live.commit(), Err(StoreError::Poisoned(_))) || live.generation() == 52);
                    assert!(matches!(live.apply(numbered(99, 1)), Err(StoreError::Poisoned(_))));
                    assert!(matches!(live.checkpoint(), Err(StoreError::Poisoned(_))));
                    assert!(live.view().is_err());
                    live.close().unwrap_err();
                }
                drop(live);
                faults.clear();
                for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn(nth)] {
                    let live = Rig::new(sim.crash_image(mode), 2).open().unwrap();
                    assert!(matches!(count(&live), 51 | 52));
                }
            }
        }
    }
}

/// A log that fits no segment goes straight into the database. A later, smaller one, for which there still is room,
/// must not be acknowledged before.
#[test]
fn commits_do_not_overtake_a_checkpoint_that_carries_the_log() {
    let sim = SimDisk::new(1);
    let shared: Arc<dyn Disk> = Arc::new(sim.clone());
    let env = Arc::new(TestEnv::new(1));
    let poison = Arc::new(Poison::new());
    let left = Arc::new(AtomicU64::new(ENDLESS));
    let create = Live::create(shared.clone(), keys(1), env.clone(), poison.clone(), small()).unwrap();
    create.close().unwrap();
    drop(create);
    let inner = BlockFile::open(shared.clone(), env.clone(), keys(1), (*poison).clone(), DIR).unwrap();
    let backend = Box::new(Filling { inner, left: left.clone() });
    let cfg = LiveConfig { overlay_bytes_max: 1 << 20, ..small() };
    let live = Live::open_on(backend, &*shared, keys(1), env, poison.clone(), cfg).unwrap();
    left.store(0, Ordering::SeqCst);
    let mut n = 0;
    let error = loop {
        live.apply(numbered(n, 19_000)).unwrap();
        n += 1;
        match live.commit() {
            Ok(()) => {}
            Err(e) => break e,
        }
    };
    assert!(matches!(error, StoreError::NoSpace) && n > 3);
    let durable = live.generation();
    assert_eq!(durable, n - 1);
    // The checkpoint gets stuck in its first write until `left` changes.
    left.store(STUCK, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| live.checkpoint().unwrap());
        while left.load(Ordering::SeqCst) == STUCK {
            std::thread::yield_now();
        }
        let commit = scope.spawn(|| {
            live.apply(numbered(n, 10)).unwrap();
            live.commit().unwrap();
            live.generation()
        });
        std::thread::sleep(Duration::from_millis(50));
        let overtaken = commit.is_finished();
        let images = [CrashMode::DropUnsynced, CrashMode::KeepAll].map(|mode| sim.crash_image(mode));
        left.store(ENDLESS, Ordering::SeqCst);
        checkpoint.join().unwrap();
        assert!(!overtaken);
        for image in images {
            assert_eq!(count(&Rig::new(image, 2).open().unwrap()), durable);
        }
        assert_eq!(commit.join().unwrap(), n + 1);
    });
    let live = Rig::new(sim.crash_image(CrashMode::DropUnsynced), 3).open().unwrap();
    assert_eq!(count(&live), n + 1);
}

/// A process that dies may leave a group in the page cache only. What opens it must not call it durable unseen.
#[test]
fn what_is_replayed_is_durable_even_on_a_full_disk() {
    let sim = SimDisk::new(1);
    let faults = Faults::new();
    let rig = Rig::new(FaultyDisk::new(sim.clone(), faults.clone()), 1);
    let live = rig.create().unwrap();
    live.apply(numbered(0, 10)).unwrap();
    faults.fail_all(FaultOp::Sync, "live/journal", FaultErrno::Eio);
    live.commit().unwrap_err();
    drop(live);
    let shared: Arc<dyn Disk> = Arc::new(sim.clone());
    let (env, poison) = (Arc::new(TestEnv::new(2)), Arc::new(Poison::new()));
    let inner = BlockFile::open(shared.clone(), env.clone(), keys(1), (*poison).clone(), DIR).unwrap();
    let backend = Box::new(Filling { inner, left: Arc::new(AtomicU64::new(0)) });
    let live = Live::open_on(backend, &*shared, keys(1), env, poison, small()).unwrap();
    assert_eq!((live.generation(), count(&live)), (1, 1));
    let live = Rig::new(sim.crash_image(CrashMode::DropUnsynced), 3).open().unwrap();
    assert_eq!((live.generation(), count(&live)), (1, 1));
}

struct Gate(AtomicBool);

impl Barrier for Gate {
    fn before_commit(&self) -> Result<()> {
        if self.0.load(Ordering::SeqCst) { Err(StoreError::NoSpace) } else { Ok(()) }
    }
}

#[test]
fn a_barrier_that_fails_stops_commits_and_loses_nothing() {
    let sim = SimDisk::new(1);
    let rig = Rig::new(sim.clone(), 1);
    let live = rig.create().unwrap();
    let gate = Arc::new(Gate(AtomicBool::new(true)));
    let weak: Weak<Gate> = Arc::downgrade(&gate);
    live.set_barrier(weak);
    for n in 0..5 {
        live.apply(numbered(n, 100)).unwrap();
        assert!(matches!(live.commit(), Err(StoreError::NoSpace)));
        assert!(matches!(live.checkpoint(), Err(StoreError::NoSpace)));
        assert!(live.uncommitted_bytes() > 0 && live.generation() == 0);
    }
    let image = sim.crash_image(CrashMode::KeepAll);
    assert_eq!(count(&Rig::new(image, 3).open().unwrap()), 0);
    gate.0.store(false, Ordering::SeqCst);
    live.commit().unwrap();
    assert_eq!((live.generation(), live.uncommitted_bytes()), (5, 0));
    let image = sim.crash_image(CrashMode::DropUnsynced);
    assert_eq!(count(&Rig::new(image, 3).open().unwrap()), 5);
}
