//! Changed, cut, swapped, replayed and missing files: an older or refused state, never a wrong one.

use super::*;
use crate::disk::CrashMode;

const A: &str = "live/journal/a";
const B: &str = "live/journal/b";

/// A disk as a crash left it, with ten batches in the journal, of which three are checkpointed.
fn victim() -> (SimDisk, Vec<Model>) {
    let disk = SimDisk::new(7);
    let live = Rig::new(disk.clone(), 7).create().unwrap();
    let mut states = vec![Model::default()];
    let mut rng = StdRng::seed_from_u64(7);
    for n in 1..=10u64 {
        let mut change = Change::random(&mut rng, 200);
        change.put(Table::Settings, *b"n", n.to_le_bytes());
        let mut state = states[n as usize - 1].clone();
        state.apply(&change);
        states.push(state);
        live.apply(change.batch()).unwrap();
        live.commit().unwrap();
        if n == 3 {
            live.checkpoint().unwrap();
        }
    }
    (disk.crash_image(CrashMode::DropUnsynced), states)
}

/// Opens an attacked disk. Returns how many batches are left, or `None` when it is refused.
fn survivors(disk: &SimDisk, states: &[Model], what: &str) -> Option<u64> {
    let image = disk.crash_image(CrashMode::KeepAll);
    let live = match Rig::new(image, 99).open() {
        Ok(live) => live,
        Err(StoreError::Corrupt(_)) => return None,
        Err(e) => panic!("{what}: {e}"),
    };
    let n = live.get(Table::Settings, b"n").unwrap();
    let n = n.map_or(0, |v| u64::from_le_bytes(v[..].try_into().unwrap()));
    assert_eq!(Model::of(&live).unwrap(), states[n as usize], "{what}");
    Some(n)
}

fn patch(disk: &SimDisk, path: &str, change: impl FnOnce(&mut Vec<u8>)) -> SimDisk {
    let disk = disk.fork();
    let mut bytes = disk.raw_read(path).unwrap();
    change(&mut bytes);
    disk.raw_write(path, &bytes);
    disk
}

#[test]
fn a_flipped_bit_shortens_the_journal() {
    let (disk, states) = victim();
    assert_eq!(survivors(&disk, &states, "untouched"), Some(10));
    let end = 4096 + 10 * 2048;
    let mut shorter = 0;
    for at in (0..120).chain((4096..end).step_by(97)) {
        let changed = patch(&disk, A, |bytes| bytes[at] ^= 0x10);
        match survivors(&changed, &states, &format!("bit in byte {at}")) {
            // Both headers are unreadable then.
            None => assert!(at < 4096),
            Some(n) => {
                assert!(n >= 3, "byte {at}");
                shorter += u64::from(n < 10);
            }
        }
    }
    assert!(shorter > 10);
}

#[test]
fn a_cut_journal_is_a_prefix() {
    let (disk, states) = victim();
    let mut seen = Vec::new();
    for len in (4096..4096 + 10 * 1024).step_by(256) {
        let cut = patch(&disk, A, |bytes| bytes.truncate(len));
        seen.push(survivors(&cut, &states, &format!("cut to {len}")).unwrap());
    }
    assert!(seen.is_sorted() && seen[0] == 3);
    assert_eq!(survivors(&patch(&disk, A, Vec::clear), &states, "empty"), None);
    let zeroed = patch(&disk, A, |bytes| bytes[4096..].fill(0));
    assert_eq!(survivors(&zeroed, &states, "zeroed"), Some(3));
    let longer = patch(&disk, A, |bytes| bytes.resize(bytes.len() * 2, 7));
    assert_eq!(survivors(&longer, &states, "longer"), Some(10));
}

#[test]
fn swapped_segments_are_refused() {
    let (disk, states) = victim();
    let (a, b) = (disk.raw_read(A).unwrap(), disk.raw_read(B).unwrap());
    disk.raw_write(A, &b);
    disk.raw_write(B, &a);
    assert_eq!(survivors(&disk, &states, "swapped"), None);
    disk.raw_write(A, &a);
    assert_eq!(survivors(&disk, &states, "doubled"), Some(10), "b is no segment then");
}

#[test]
fn missing_files_are_noticed() {
    let (disk, states) = victim();
    for path in disk.raw_list().into_iter().filter(|p| p.starts_with("live/")) {
        let changed = disk.fork();
        changed.raw_remove(&path);
        assert_eq!(survivors(&changed, &states, &path), None, "{path}");
        for junk in [&b""[..], &[0; 5000], &[0xff; 70_000]] {
            changed.raw_write(&path, junk);
            let left = survivors(&changed, &states, &path);
            assert!(left.is_none() || path == B, "{path}: {left:?}");
        }
    }
    for path in disk.raw_list() {
        disk.raw_remove(&path);
    }
    assert!(matches!(Rig::new(disk, 1).open(), Err(StoreError::NotFound(_))));
}

/// Runs a store over many segments and keeps copies of both files after each commit.
#[test]
fn old_segments_do_not_come_back() {
    let disk = SimDisk::new(8);
    let live = Rig::new(disk.clone(), 8).create().unwrap();
    let mut states = vec![Model::default()];
    let mut rng = StdRng::seed_from_u64(8);
    let mut copies = Vec::new();
    for n in 1..=60u64 {
        let mut change = Change::random(&mut rng, 3000);
        change.put(Table::Settings, *b"n", n.to_le_bytes());
        let mut state = states[n as usize - 1].clone();
        state.apply(&change);
        states.push(state);
        live.apply(change.batch()).unwrap();
        live.commit().unwrap();
        copies.push((disk.raw_read(A).unwrap(), disk.raw_read(B).unwrap()));
    }
    let disk = disk.crash_image(CrashMode::DropUnsynced);
    drop(live);
    let floor = survivors(&disk, &states, "untouched").map(|n| {
        assert_eq!(n, 60);
        let no_journal = disk.fork();
        let wipe = |path| {
            let mut bytes = no_journal.raw_read(path).unwrap();
            bytes[4096..].fill(0);
            no_journal.raw_write(path, &bytes);
        };
        wipe(A);
        wipe(B);
        survivors(&no_journal, &states, "no journal").unwrap()
    });
    for (i, (a, b)) in copies.iter().enumerate() {
        for (use_a, use_b) in [(true, false), (false, true), (true, true)] {
            let attacked = disk.fork();
            if use_a {
                attacked.raw_write(A, a);
            }
            if use_b {
                attacked.raw_write(B, b);
            }
            let left = survivors(&attacked, &states, &format!("copies of {i}: {use_a} {use_b}"));
            assert!(left.is_none() || left >= floor, "copy {i}");
        }
    }
}

#[test]
fn another_life_of_the_vault_is_foreign() {
    let (disk, _) = victim();
    let a = disk.raw_read(A).unwrap();
    // The live state is made anew with the same keys.
    let rig = Rig::new(disk.clone(), 55);
    drop(rig.create().unwrap());
    let fresh = disk.crash_image(CrashMode::KeepAll);
    fresh.raw_write(A, &a);
    assert_eq!(survivors(&fresh, &[Model::default()], "old journal"), None);
}

#[test]
fn an_older_database_below_a_newer_journal_is_refused() {
    let disk = SimDisk::new(8);
    let mut rig = Rig::new(disk.clone(), 8);
    drop(rig.create().unwrap());
    let database = ["live/live.redb", "live/blocks.log"].map(|path| (path, disk.raw_read(path).unwrap()));
    let live = rig.open().unwrap();
    // Enough for several segments.
    for n in 0..160u64 {
        let mut batch = Batch::new();
        batch.put(Table::Inodes, n.to_le_bytes(), vec![1; 6000]);
        live.apply(batch).unwrap();
        live.commit().unwrap();
    }
    live.checkpoint().unwrap();
    drop(live);
    for (path, bytes) in database {
        disk.raw_write(path, &bytes);
    }
    assert!(matches!(rig.open(), Err(StoreError::Corrupt(_))));
}

#[test]
fn a_journal_beyond_a_clean_close_is_refused() {
    let disk = SimDisk::new(8);
    let mut rig = Rig::new(disk.clone(), 8);
    let live = rig.create().unwrap();
    live.close().unwrap();
    drop(live);
    let closed = ["live/live.redb", "live/blocks.log"].map(|path| (path, disk.raw_read(path).unwrap()));
    let live = rig.open().unwrap();
    let mut batch = Batch::new();
    batch.put(Table::Inodes, *b"k", *b"v");
    live.apply(batch).unwrap();
    live.commit().unwrap();
    drop(live);
    for (path, bytes) in closed {
        disk.raw_write(path, &bytes);
    }
    assert!(matches!(rig.open(), Err(StoreError::Corrupt(_))));
}

#[test]
fn damage_to_the_database_is_an_error_and_never_a_panic() {
    let (disk, states) = victim();
    for path in ["live/live.redb", "live/blocks.log"] {
        let len = disk.raw_read(path).unwrap().len();
        for at in (0..len).step_by(len / 150 + 1) {
            let changed = patch(&disk, path, |bytes| bytes[at] ^= 1);
            let image = changed.crash_image(CrashMode::KeepAll);
            let Ok(live) = Rig::new(image, 99).open() else { continue };
            // Whatever can be read is right.
            if let Ok(model) = Model::of(&live) {
                assert!(states.contains(&model), "{path} byte {at}");
            }
        }
        for len in [0, 1, len / 2, len - 1] {
            let changed = patch(&disk, path, |bytes| bytes.truncate(len));
            let image = changed.crash_image(CrashMode::KeepAll);
            drop(Rig::new(image, 99).open());
        }
    }
}

/// Two histories go on from one state, so their next frames have the same place and number. A frame of one doesn't
/// connect to the later frames of the other.
#[test]
fn frames_of_two_histories_do_not_mix() {
    let disk = SimDisk::new(8);
    // Not closed: after a clean close each history begins a segment of its own, under a header that the other lacks.
    drop(Rig::new(disk.clone(), 8).create().unwrap());
    let go_on = |seed: u64, steps: &[&str]| {
        let fork = disk.fork();
        let live = Rig::new(fork.clone(), seed).open().unwrap();
        for step in steps {
            let mut batch = Batch::new();
            batch.put(Table::Settings, *step, *b"1");
            live.apply(batch).unwrap();
            live.commit().unwrap();
        }
        fork.crash_image(CrashMode::DropUnsynced)
    };
    let names = |disk: &SimDisk| -> Vec<Vec<u8>> {
        let live = Rig::new(disk.crash_image(CrashMode::KeepAll), 9).open().unwrap();
        live.range(Table::Settings, b"", None, 10).unwrap().into_iter().map(|(k, _)| k).collect()
    };
    let (first, second) = (go_on(100, &["x"]), go_on(200, &["y", "z"]));
    assert_eq!(names(&second), [b"y", b"z"]);
    let frame = first.raw_read(A).unwrap()[4096..4608].to_vec();
    let mixed = patch(&second, A, |bytes| bytes[4096..4608].copy_from_slice(&frame));
    assert_eq!(names(&mixed), [b"x"]);
    let moved = patch(&second, A, |bytes| bytes.copy_within(4608..5120, 4096));
    assert!(names(&moved).is_empty());
    let gone = patch(&second, A, |bytes| bytes.copy_within(5120..5632, 4608));
    assert_eq!(names(&gone), [b"y"]);
}

#[test]
fn other_keys_open_nothing() {
    let (disk, _) = victim();
    let env = Arc::new(TestEnv::new(1));
    let opened = Live::open(Arc::new(disk), keys(2), env, Arc::new(Poison::new()), small());
    assert!(matches!(opened, Err(StoreError::Corrupt(_))));
}
