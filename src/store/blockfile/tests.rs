//! Tests of the block file by itself: content, attacks, full disks, failing disks.
#![allow(clippy::unwrap_used)]

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::crypto::Secret;
use crate::disk::{CrashMode, FaultErrno, FaultOp, Faults, FaultyDisk, SimDisk};
use crate::env::TestEnv;
use crate::format::VaultId;
use crate::store::poison::is_poisoned;

const DIR: &str = "live";
const DATA: &str = "live/live.redb";
const LOG: &str = "live/blocks.log";
const B: u64 = BLOCK as u64;

/// A disk with the directory for the live state.
pub(super) fn new_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all(DIR).unwrap();
    disk
}

pub(super) fn keys(vault: u8) -> LiveKeys {
    let secret = || Secret::<32>::fill_with(|bytes| bytes.fill(vault));
    LiveKeys::new(VaultId([vault; 16]), &secret(), &secret())
}

pub(super) fn open_on(disk: impl Disk, seed: u64, poison: &Poison) -> io::Result<BlockFile> {
    BlockFile::open(Arc::new(disk), Arc::new(TestEnv::new(seed)), keys(1), poison.clone(), DIR)
}

/// Each opening has a random stream of its own, as in life.
pub(super) fn open(disk: &SimDisk) -> io::Result<BlockFile> {
    open_on(disk.clone(), disk.operations() ^ 0x5eed, &Poison::new())
}

fn block_of(byte: u8) -> Vec<u8> {
    vec![byte; BLOCK]
}

fn read_block(file: &BlockFile, block: u64) -> io::Result<Vec<u8>> {
    let mut out = block_of(0xee);
    file.read(block * B, &mut out)?;
    Ok(out)
}

fn write_block(file: &BlockFile, block: u64, byte: u8) {
    file.write(block * B, &block_of(byte)).unwrap();
}

/// A file of 40 blocks, of which the first 20 hold their number, synced twice.
fn sample(disk: &SimDisk) -> BlockFile {
    let file = open(disk).unwrap();
    file.set_len(40 * B).unwrap();
    (0..20).for_each(|b| write_block(&file, b, b as u8));
    file.sync_data().unwrap();
    write_block(&file, 0, 100);
    file.sync_data().unwrap();
    file
}

fn is_damaged<T: fmt::Debug>(result: io::Result<T>) -> bool {
    result.unwrap_err().kind() == io::ErrorKind::InvalidData
}

/// Changes bytes of a file behind the back of everyone.
fn patch(disk: &SimDisk, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = disk.raw_read(path).unwrap();
    change(&mut bytes);
    disk.raw_write(path, &bytes);
}

fn slot(block: u64) -> Range<usize> {
    let start = slot_offset(block, 0) as usize;
    start..start + SEALED
}

#[test]
fn behaves_like_a_flat_file() {
    for seed in 0..8 {
        let disk = new_disk(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut model = Vec::new();
        let mut file = open(&disk).unwrap();
        for step in 0..400 {
            let (len, end) = (model.len(), model.len() as u64);
            match rng.random_range(0..20) {
                0 | 1 => {
                    let new = rng.random_range(0..60) * BLOCK;
                    file.set_len(new as u64).unwrap();
                    model.resize(new, 0);
                }
                2 => file.sync_data().unwrap(),
                3 => {
                    file.sync_data().unwrap();
                    file = open(&disk).unwrap();
                }
                4 => {
                    let over = rng.random_range(1..5000);
                    assert!(file.read(end.saturating_sub(over - 1), &mut vec![0; over as usize]).is_err());
                    assert!(file.write(end.saturating_sub(over - 1), &vec![0; over as usize]).is_err());
                }
                kind if len > 0 => {
                    let at = rng.random_range(0..len);
                    let longest = if rng.random_bool(0.5) { 300 } else { 100_000 };
                    let n = rng.random_range(0..=(len - at).min(longest));
                    if kind % 2 == 0 {
                        let mut bytes = vec![0; n];
                        rng.fill(&mut bytes[..]);
                        file.write(at as u64, &bytes).unwrap();
                        model[at..at + n].copy_from_slice(&bytes);
                    } else {
                        let mut bytes = vec![0xee; n];
                        file.read(at as u64, &mut bytes).unwrap();
                        assert!(bytes == model[at..at + n], "seed {seed} step {step}");
                    }
                }
                _ => {}
            }
            assert_eq!(StorageBackend::len(&file).unwrap(), model.len() as u64);
        }
    }
}

#[test]
fn nothing_readable_is_on_the_disk() {
    let disk = new_disk(1);
    let file = open(&disk).unwrap();
    file.set_len(4 * B).unwrap();
    file.write(B, &b"plaintext".repeat(100)).unwrap();
    file.sync_data().unwrap();
    for path in disk.raw_list() {
        let bytes = disk.raw_read(&path).unwrap();
        assert!(!bytes.windows(9).any(|w| w == b"plaintext"), "{path}");
    }
    // The same content twice gives different bytes.
    let before = disk.raw_read(DATA).unwrap()[slot(1)].to_vec();
    file.write(B, &b"plaintext".repeat(100)).unwrap();
    assert_ne!(before, disk.raw_read(DATA).unwrap()[slot(1)]);
}

#[test]
fn only_synced_changes_count_after_a_power_cut() {
    let disk = new_disk(1);
    let file = sample(&disk);
    let generation = file.generation();
    file.set_len(10 * B).unwrap();
    file.set_len(50 * B).unwrap();
    write_block(&file, 0, 200);
    write_block(&file, 45, 45);
    for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn(1), CrashMode::Torn(2)] {
        let again = open(&disk.crash_image(mode)).unwrap();
        assert_eq!((again.generation(), StorageBackend::len(&again).unwrap()), (generation, 40 * B));
        assert_eq!(read_block(&again, 0).unwrap(), block_of(100));
        assert_eq!(read_block(&again, 19).unwrap(), block_of(19), "shortening waits for the record");
        assert_eq!(read_block(&again, 30).unwrap(), block_of(0));
    }
    file.sync_data().unwrap();
    let again = open(&disk.crash_image(CrashMode::DropUnsynced)).unwrap();
    assert_eq!((again.generation(), StorageBackend::len(&again).unwrap()), (generation + 1, 50 * B));
    assert_eq!(read_block(&again, 0).unwrap(), block_of(200));
    assert_eq!(read_block(&again, 9).unwrap(), block_of(9));
    assert_eq!(read_block(&again, 10).unwrap(), block_of(0), "cut off and grown again");
    assert_eq!(read_block(&again, 45).unwrap(), block_of(45));
}

#[test]
fn syncing_nothing_writes_nothing() {
    let disk = new_disk(1);
    let file = sample(&disk);
    let (points, generation) = (disk.sync_points(), file.generation());
    file.sync_data().unwrap();
    assert_eq!((disk.sync_points(), file.generation()), (points, generation));
    // Cut and grown again without a write is still a change.
    file.set_len(2 * B).unwrap();
    file.set_len(40 * B).unwrap();
    file.sync_data().unwrap();
    assert_eq!(file.generation(), generation + 1);
    assert_eq!(read_block(&open(&disk).unwrap(), 5).unwrap(), block_of(0));
}

#[test]
fn shortening_gives_space_back() {
    let disk = new_disk(1);
    let file = sample(&disk);
    file.set_len(4 * B).unwrap();
    assert!(disk.raw_read(DATA).unwrap().len() as u64 > slots_end(4));
    file.sync_data().unwrap();
    assert_eq!(disk.raw_read(DATA).unwrap().len() as u64, slots_end(4));
    assert_eq!(read_block(&file, 3).unwrap(), block_of(3));
}

#[test]
fn damage_to_a_block_is_an_error_for_that_block() {
    let disk = new_disk(1);
    drop(sample(&disk));
    let zero = |b: &mut Vec<u8>| b[slot(7)].fill(0);
    let flip = |b: &mut Vec<u8>| b[slot(7).start + 30] ^= 1;
    let flip_tag = |b: &mut Vec<u8>| b[slot(7).end - 1] ^= 0x80;
    let swap = |b: &mut Vec<u8>| {
        let other = b[slot(8)].to_vec();
        b[slot(7)].copy_from_slice(&other);
    };
    for attack in 0..4 {
        let disk = disk.fork();
        patch(&disk, DATA, |bytes| match attack {
            0 => zero(bytes),
            1 => flip(bytes),
            2 => flip_tag(bytes),
            _ => swap(bytes),
        });
        let file = open(&disk).unwrap();
        assert!(is_damaged(read_block(&file, 7)));
        assert!(is_damaged(file.read(0, &mut vec![0; 20 * BLOCK])));
        assert!(is_damaged(file.write(7 * B + 1, b"part of a damaged block")));
        assert_eq!(read_block(&file, 6).unwrap(), block_of(6));
        write_block(&file, 7, 77);
        assert_eq!(read_block(&file, 7).unwrap(), block_of(77));
    }
}

#[test]
fn an_older_version_of_a_block_is_refused() {
    let disk = new_disk(1);
    let file = sample(&disk);
    let old = disk.raw_read(DATA).unwrap();
    // Once as the last state, once as an intermediate one that no record ever named.
    write_block(&file, 7, 70);
    let intermediate = disk.raw_read(DATA).unwrap();
    write_block(&file, 7, 71);
    file.sync_data().unwrap();
    let file = open(&disk).unwrap();
    for replayed in [&old, &intermediate] {
        let mut bytes = disk.raw_read(DATA).unwrap();
        let current = bytes.clone();
        bytes[slot(7)].copy_from_slice(&replayed[slot(7)]);
        disk.raw_write(DATA, &bytes);
        assert!(is_damaged(read_block(&file, 7)));
        assert!(is_damaged(read_block(&open(&disk).unwrap(), 7)));
        disk.raw_write(DATA, &current);
        assert_eq!(read_block(&file, 7).unwrap(), block_of(71));
    }
}

#[test]
fn a_block_lost_in_a_crash_never_becomes_valid() {
    let disk = new_disk(1);
    let file = sample(&disk);
    write_block(&file, 30, 1);
    let lost = disk.raw_read(DATA).unwrap()[slot(30)].to_vec();
    let disk = disk.crash_image(CrashMode::KeepAll);
    let file = open(&disk).unwrap();
    assert_eq!(read_block(&file, 30).unwrap(), block_of(0), "never written, as far as the record says");
    write_block(&file, 30, 2);
    file.sync_data().unwrap();
    patch(&disk, DATA, |bytes| bytes[slot(30)].copy_from_slice(&lost));
    assert!(is_damaged(read_block(&file, 30)));
    assert!(is_damaged(read_block(&open(&disk).unwrap(), 30)));
}

#[test]
fn the_whole_data_file_of_an_older_state_is_refused() {
    let disk = new_disk(1);
    let file = sample(&disk);
    let old = disk.raw_read(DATA).unwrap();
    let old_log = disk.raw_read(LOG).unwrap();
    for round in 0..2 {
        write_block(&file, 0, round);
        file.sync_data().unwrap();
    }
    drop(file);
    let newer = disk.fork();
    newer.raw_write(DATA, &old);
    assert!(is_damaged(open(&newer)));
    // Two records or more cut off the log: block 0 opens in neither slot.
    let newer = disk.fork();
    newer.raw_write(LOG, &old_log);
    assert!(is_damaged(open(&newer)));
    // Both: a true older state, which only the generation gives away.
    newer.raw_write(DATA, &old);
    let rolled_back = open(&newer).unwrap();
    assert_eq!(read_block(&rolled_back, 0).unwrap(), block_of(100));
    assert!(rolled_back.generation() < open(&disk).unwrap().generation());
}

#[test]
fn cutting_off_the_last_record_gives_the_state_before() {
    let disk = new_disk(1);
    let file = sample(&disk);
    let (generation, before) = (file.generation(), disk.raw_read(LOG).unwrap().len());
    write_block(&file, 0, 1);
    write_block(&file, 30, 30);
    file.sync_data().unwrap();
    drop(file);
    let full = disk.raw_read(LOG).unwrap();
    let len = u32::from_le_bytes(full[before..before + 4].try_into().unwrap()) as usize;
    let frame_end = before + 12 + len;
    for len in before..frame_end {
        let disk = disk.fork();
        disk.raw_write(LOG, &full[..len]);
        let file = open(&disk).unwrap();
        assert_eq!(file.generation(), generation);
        assert_eq!(read_block(&file, 0).unwrap(), block_of(100));
        assert_eq!(read_block(&file, 30).unwrap(), block_of(0));
    }
    // Damage to the last record looks like a torn one; damage before it is told apart, or hits unused bytes.
    for at in 0..frame_end {
        let disk = disk.fork();
        patch(&disk, LOG, |bytes| bytes[at] ^= 0x10);
        match open(&disk) {
            Ok(file) if at >= before => assert_eq!(file.generation(), generation, "{at}"),
            Ok(file) => assert!(full[at] == 0 && file.generation() == generation + 1, "{at}"),
            Err(e) => assert!(at < before && e.kind() == io::ErrorKind::InvalidData, "{at} {e}"),
        }
    }
    // The same record once more is not read, nor is one of an older log.
    let again = disk.fork();
    patch(&again, LOG, |bytes| bytes.extend_from_within(before..));
    assert_eq!(open(&again).unwrap().generation(), generation + 1);
    drop(open(&disk).unwrap());
    patch(&disk, LOG, |bytes| bytes.extend(&full[before..]));
    assert_eq!(open(&disk).unwrap().generation(), generation + 1);
}

#[test]
fn opening_what_does_not_belong_together_changes_nothing() {
    let disk = new_disk(1);
    let old_log = {
        drop(sample(&disk));
        disk.raw_read(LOG).unwrap()
    };
    let file = open(&disk).unwrap();
    file.set_len(60 * B).unwrap();
    for round in 0..3 {
        write_block(&file, 0, round);
        write_block(&file, 50, round);
        file.sync_data().unwrap();
    }
    drop(file);
    let good_log = disk.raw_read(LOG).unwrap();
    disk.raw_write(LOG, &old_log);
    let before: Vec<_> = disk.raw_list().iter().map(|p| disk.raw_read(p)).collect();
    assert!(is_damaged(open(&disk)));
    assert!(before == disk.raw_list().iter().map(|p| disk.raw_read(p)).collect::<Vec<_>>());
    disk.raw_write(LOG, &good_log);
    assert_eq!(read_block(&open(&disk).unwrap(), 50).unwrap(), block_of(2));
}

#[test]
fn missing_and_foreign_files_are_refused() {
    let disk = new_disk(1);
    drop(sample(&disk));
    let without = |path: &str| {
        let disk = disk.fork();
        assert!(disk.raw_remove(path));
        open(&disk)
    };
    assert!(is_damaged(without(DATA)));
    assert!(is_damaged(without(LOG)));
    let foreign =
        BlockFile::open(Arc::new(disk.fork()), Arc::new(TestEnv::new(5)), keys(2), Poison::new(), DIR);
    assert!(is_damaged(foreign));
    for len in [0, SEALED as u64, slots_end(20) - SLOT + SEALED as u64 - 1] {
        let disk = disk.fork();
        patch(&disk, DATA, |bytes| bytes.truncate(len as usize));
        assert!(is_damaged(open(&disk)), "{len}");
    }
    for len in 0..600 {
        let disk = disk.fork();
        patch(&disk, LOG, |bytes| bytes.truncate(len));
        assert!(is_damaged(open(&disk)), "{len}");
    }
    let disk = disk.fork();
    patch(&disk, DATA, |bytes| bytes.extend([7; 1_000_000]));
    let file = open(&disk).unwrap();
    assert_eq!(read_block(&file, 19).unwrap(), block_of(19));
    assert_eq!(disk.raw_read(DATA).unwrap().len() as u64, slots_end(40), "what was appended is cut off");
}

#[test]
fn truncation_under_an_open_file_is_an_error() {
    let disk = new_disk(1);
    let file = sample(&disk);
    patch(&disk, DATA, |bytes| bytes.truncate(slot(15).start));
    assert!(is_damaged(read_block(&file, 15)));
    assert_eq!(read_block(&file, 14).unwrap(), block_of(14));
}

#[test]
fn a_full_disk_is_an_error_but_no_poison() {
    let disk = new_disk(1);
    let poison = Poison::new();
    let file = open_on(disk.clone(), 1, &poison).unwrap();
    file.set_len(1000 * B).unwrap();
    write_block(&file, 0, 1);
    file.sync_data().unwrap();
    let used = disk.space().unwrap();
    disk.set_capacity(used.total - used.available + 40 * 4096);
    file.reserve(1000 * B).unwrap_err();
    file.reserve(4 * B).unwrap();
    (1..5).for_each(|b| write_block(&file, b, 2));
    let error = (5..1000).find_map(|b| file.write(b * B, &block_of(3)).err()).unwrap();
    assert!(is_full(&error) && !poison.is_set());
    file.sync_data().unwrap();
    // No room for a new log: the old one goes on.
    disk.set_capacity(4096);
    let again = open(&disk.crash_image(CrashMode::DropUnsynced)).unwrap();
    assert_eq!(read_block(&again, 4).unwrap(), block_of(2));
    disk.set_capacity(1 << 30);
    write_block(&file, 999, 4);
    file.sync_data().unwrap();
}

#[test]
fn a_failing_disk_poisons() {
    for op in [FaultOp::Write, FaultOp::Sync] {
        for nth in 1..4 {
            let (sim, faults, poison) = (new_disk(1), Faults::new(), Poison::new());
            let file = open_on(FaultyDisk::new(sim.clone(), faults.clone()), 1, &poison).unwrap();
            file.set_len(8 * B).unwrap();
            write_block(&file, 0, 1);
            file.sync_data().unwrap();
            faults.fail_nth(op, nth, FaultErrno::Eio);
            let mut work = (1..4).map(|b| file.write(b * B, &block_of(9)).and_then(|()| file.sync_data()));
            assert!(work.any(|r| r.is_err()) && poison.is_set());
            assert!(is_poisoned(&file.write(0, b"x").unwrap_err()));
            assert!(is_poisoned(&file.sync_data().unwrap_err()));
            assert!(is_poisoned(&file.set_len(0).unwrap_err()));
            assert_eq!(read_block(&file, 0).unwrap(), block_of(1), "reads go on");
        }
    }
}

/// A record in the page cache that a failed fdatasync has not brought to the disk must not be built upon.
#[test]
fn a_record_that_was_never_synced_is_made_durable_before_it_is_trusted() {
    let (sim, faults) = (new_disk(1), Faults::new());
    let file = open_on(FaultyDisk::new(sim.clone(), faults.clone()), 1, &Poison::new()).unwrap();
    file.set_len(8 * B).unwrap();
    write_block(&file, 0, 1);
    file.sync_data().unwrap();
    write_block(&file, 0, 2);
    // The second sync of the next commit is the log's.
    faults.fail_nth(FaultOp::Sync, 2, FaultErrno::Eio);
    file.sync_data().unwrap_err();
    let file = open(&sim).unwrap();
    assert_eq!(read_block(&file, 0).unwrap(), block_of(2));
    // This write goes to the slot that the state before needs.
    write_block(&file, 0, 3);
    let again = open(&sim.crash_image(CrashMode::KeepAll)).unwrap();
    assert_eq!(read_block(&again, 0).unwrap(), block_of(2));
    let again = open(&sim.crash_image(CrashMode::DropUnsynced)).unwrap();
    assert_eq!(read_block(&again, 0).unwrap(), block_of(2));
}

#[test]
fn the_log_stays_short_and_survives_crashes_while_it_is_rewritten() {
    let disk = new_disk(1);
    let file = open(&disk).unwrap();
    file.set_len(4000 * B).unwrap();
    let (mut longest, mut last, mut rewrites) = (0, 0, 0);
    for round in 1..=70u64 {
        for block in 0..2000 {
            // As redb does, leave the blocks of the last record's state alone: use the other half.
            let block = if block == 0 { 0 } else { 2 * block + round % 2 };
            file.write(block * B, &round.to_le_bytes()).unwrap();
        }
        let crash = disk.fork();
        file.sync_data().unwrap();
        let len = disk.raw_read(LOG).unwrap().len();
        rewrites += u32::from(len < last);
        (longest, last) = (longest.max(len), len);
        let check = |disk: &SimDisk, round: u64| {
            let file = open(disk).unwrap();
            let mut out = [0; 8];
            for block in [0, 2 + round % 2, 3998 + round % 2] {
                file.read(block * B, &mut out).unwrap();
                assert_eq!(u64::from_le_bytes(out), round);
            }
        };
        check(&disk.crash_image(CrashMode::DropUnsynced), round);
        if round > 1 {
            check(&crash.crash_image(CrashMode::Torn(round)), round - 1);
        }
    }
    assert!(rewrites == 1 && longest < 2 << 20, "{rewrites} {longest}");
}

#[test]
fn readers_and_a_writer_work_at_the_same_time() {
    let disk = new_disk(1);
    let file = sample(&disk);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for round in 0..600 {
                    // Blocks 8 and 9 change all the time, in one write, so both halves must agree.
                    let mut two = vec![0; 2 * BLOCK];
                    file.read(8 * B, &mut two).unwrap();
                    assert!(two[0] == two[2 * BLOCK - 1] || two[0] == 8, "{round}");
                    assert_eq!(read_block(&file, round % 7 + 1).unwrap(), block_of((round % 7 + 1) as u8));
                }
            });
        }
        scope.spawn(|| {
            for round in 0..300 {
                file.write(8 * B, &vec![100 + (round % 100) as u8; 2 * BLOCK]).unwrap();
                if round % 10 == 0 {
                    file.sync_data().unwrap();
                }
            }
        });
    });
}

#[test]
fn lengths_are_checked() {
    let file = open(&new_disk(1)).unwrap();
    assert_eq!(file.set_len(100).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(file.set_len(MAX_LEN + B).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(file.read(u64::MAX, &mut [0]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    file.read(0, &mut []).unwrap();
}
