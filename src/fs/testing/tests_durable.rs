//! Promises of single calls that need no kernel, only a power cut: lines of docs/semantics.md.

use std::sync::Arc;
use std::time::Duration;

use super::check::check_rows;
use super::{ALICE, RW, Rng, Vault, close, get, list, put, small_config};
use crate::disk::CrashMode;
use crate::fs::{Fs, RenameFlags};
use crate::store::engine::Engine;
use crate::store::records::ROOT_INO;

/// The working tree after a power cut now: what was synced and nothing else, or also some of what was not.
fn after_power_cut(vault: &Vault, mode: CrashMode) -> (Arc<Engine>, Arc<Fs>) {
    let image = vault.disk.crash_image(mode);
    vault.on(image, 7).open()
}

fn names(fs: &Fs) -> Vec<Vec<u8>> {
    list(fs, ROOT_INO).unwrap().into_iter().map(|(name, _)| name).collect()
}

/// A file that was written and closed, but not synced.
fn closed(fs: &Fs, name: &[u8], data: &[u8]) -> u64 {
    let (ino, fh) = put(fs, ROOT_INO, name, data);
    fs.flush(ino, fh).unwrap();
    fs.release(ino, fh).unwrap();
    ino
}

#[test]
fn fsync_makes_data_and_all_metadata_so_far_durable() {
    for (seed, len) in [(1, 10_000), (2, 400_000)] {
        let vault = Vault::new(seed, small_config());
        let (engine, fs) = vault.open();
        closed(&fs, b"before", b"");
        let data = Rng::bytes(seed, len);
        let (ino, fh) = put(&fs, ROOT_INO, b"synced", &data);
        fs.fsync(ino, false).unwrap();
        closed(&fs, b"later", b"");
        let (again, tree) = after_power_cut(&vault, CrashMode::DropUnsynced);
        assert_eq!(names(&tree), [&b"before"[..], b"synced"]);
        assert!(get(&tree, ino).unwrap() == data);
        close(&again, tree);
        fs.release(ino, fh).unwrap();
        close(&engine, fs);
    }
}

#[test]
fn fsync_of_a_directory_commits_all_metadata_so_far() {
    let vault = Vault::new(3, small_config());
    let (engine, fs) = vault.open();
    let data = Rng::bytes(3, 100_000);
    let (ino, fh) = put(&fs, ROOT_INO, b"synced", &data);
    fs.fsync(ino, false).unwrap();
    let dir = fs.mkdir(ROOT_INO, b"dir", 0o755, 0, ALICE).unwrap().ino;
    fs.rename(ROOT_INO, b"synced", dir, b"moved", RenameFlags::default()).unwrap();
    fs.setxattr(ino, b"user.x", b"value", 0).unwrap();
    closed(&fs, b"elsewhere", b"");
    fs.fsyncdir(dir).unwrap();
    let (again, tree) = after_power_cut(&vault, CrashMode::DropUnsynced);
    assert_eq!(names(&tree), [&b"dir"[..], b"elsewhere"]);
    assert_eq!(list(&tree, dir).unwrap(), [(b"moved".to_vec(), ino)]);
    assert_eq!(tree.getxattr(ino, b"user.x").unwrap(), b"value");
    assert!(get(&tree, ino).unwrap() == data);
    close(&again, tree);
    fs.release(ino, fh).unwrap();
    close(&engine, fs);
}

#[test]
fn what_nobody_syncs_is_committed_after_five_seconds() {
    let vault = Vault::new(4, small_config());
    let (engine, fs) = vault.open();
    let data = Rng::bytes(4, 50_000);
    let ino = closed(&fs, b"f", &data);
    fs.tick().unwrap();
    vault.env.advance(Duration::from_secs(5));
    fs.tick().unwrap();
    let (again, tree) = after_power_cut(&vault, CrashMode::DropUnsynced);
    assert!(get(&tree, ino).unwrap() == data);
    close(&again, tree);
    close(&engine, fs);
}

#[test]
fn memory_of_streams_is_given_back_when_they_are_over() {
    let mut vault = Vault::new(4, small_config());
    vault.cfg.dirty_bytes_max = 8 << 20;
    let (engine, fs) = vault.open();
    let streams: Vec<_> = (0..4u8).map(|n| put(&fs, ROOT_INO, &[b'a' + n], &Rng::bytes(4, 60_000))).collect();
    // In turn, as parallel writers do, so that each has a tail that waits for more.
    for round in 1..5 {
        for (n, (ino, fh)) in (0..).zip(&streams) {
            fs.write(*ino, *fh, round * 60_000, &Rng::bytes(10 * n + round, 60_000), false).unwrap();
        }
    }
    let busy = fs.counters().stream_buffer_bytes;
    assert!(busy >= 4 << 20, "each of four streams has a buffer of 1 MiB and more: {busy}");
    for (ino, fh) in streams {
        fs.release(ino, fh).unwrap();
    }
    fs.sync_all().unwrap();
    assert_eq!(fs.counters().stream_buffer_bytes, busy, "kept for the next ones");
    for _ in 0..2 {
        vault.env.advance(Duration::from_secs(10));
        fs.tick().unwrap();
    }
    assert_eq!(fs.counters().stream_buffer_bytes, 0, "nobody came");
    close(&engine, fs);
}

#[test]
fn a_file_renamed_over_another_leaves_the_old_content_or_the_new() {
    let (old, new) = (Rng::bytes(5, 60_000), Rng::bytes(6, 70_000));
    for cut in 0..40 {
        let vault = Vault::new(5, small_config());
        let (_, fs) = vault.open();
        closed(&fs, b"name", &old);
        fs.sync_all().unwrap();
        vault.disk.crash_at_operation(vault.disk.operations() + 1 + cut);
        // From here on any call may find the power gone; none syncs by itself.
        let write = || -> crate::fs::FsResult<()> {
            let (attr, fh) = fs.create(ROOT_INO, b"name.new", 0o644, 0, RW, ALICE)?;
            fs.write(attr.ino, fh, 0, &new, false)?;
            fs.flush(attr.ino, fh)?;
            fs.release(attr.ino, fh)?;
            fs.rename(ROOT_INO, b"name.new", ROOT_INO, b"name", RenameFlags::default())?;
            fs.sync_all()
        };
        let done = write().is_ok();
        assert!(done || vault.disk.is_off(), "an error with the power on");
        vault.disk.power_off();
        for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn(cut)] {
            let (again, tree) = after_power_cut(&vault, mode);
            let found = get(&tree, tree.lookup(ROOT_INO, b"name").unwrap().ino).unwrap();
            assert!(
                found == new || (!done && found == old),
                "operation {cut}, {mode:?}: {} bytes",
                found.len()
            );
            close(&again, tree);
        }
    }
}

#[test]
fn an_unlinked_open_file_is_gone_after_a_power_cut() {
    let vault = Vault::new(8, small_config());
    let (engine, fs) = vault.open();
    let (ino, fh) = put(&fs, ROOT_INO, b"temp", &Rng::bytes(8, 100_000));
    fs.sync_all().unwrap();
    fs.unlink(ROOT_INO, b"temp").unwrap();
    fs.sync_all().unwrap();
    assert_eq!(fs.read(ino, fh, 0, 100).unwrap().len(), 100, "usable while it is open");
    let (again, tree) = after_power_cut(&vault, CrashMode::DropUnsynced);
    assert!(names(&tree).is_empty());
    assert!(tree.getattr(ino).is_err());
    // No row of it is left.
    check_rows(&again, false);
    close(&again, tree);
    fs.release(ino, fh).unwrap();
    close(&engine, fs);
}

#[test]
fn copy_file_range_shares_what_is_stored() {
    let vault = Vault::new(9, small_config());
    let (engine, fs) = vault.open();
    let data = Rng::bytes(9, 500_000);
    let (from, source) = put(&fs, ROOT_INO, b"from", &data);
    let (to, target) = put(&fs, ROOT_INO, b"to", b"");
    fs.sync_all().unwrap();
    let stored = || -> usize {
        let packs = vault.disk.raw_list().into_iter().filter(|path| !path.starts_with("live/journal"));
        packs.map(|path| vault.disk.raw_read(&path).unwrap().len()).sum()
    };
    let before = stored();
    let copied = fs.copy_file_range(from, source, 0, to, target, 0, data.len() as u64).unwrap();
    assert_eq!(copied, data.len());
    fs.sync_all().unwrap();
    assert!(get(&fs, to).unwrap() == data);
    assert!(stored() - before < data.len() / 10, "{} bytes more", stored() - before);
    fs.release(from, source).unwrap();
    fs.release(to, target).unwrap();
    close(&engine, fs);
}
