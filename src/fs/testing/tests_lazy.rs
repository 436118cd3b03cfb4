//! Working trees that continue a snapshot, and snapshots under `.snapshots`.

use std::sync::Arc;

use rustix::io::Errno;

use super::super::browse::{SNAPSHOTS_INO, VIRTUAL};
use super::super::{DirEnt, Fs, FsOptions, SetAttr, Whence};
use super::check::check_rows;
use super::crash::names_of_fs;
use super::ops::{Op, Pair, Shape};
use super::{ALICE, RW, Rng, Vault, close, get, list, put, small_config};
use crate::format::tree::FileType;
use crate::snapshot::create::{SnapshotOpts, create};
use crate::store::engine::Engine;
use crate::store::live::Table;
use crate::store::records::ROOT_INO;

fn snapshot(engine: &Engine, fs: &Fs) {
    fs.flush_all().unwrap();
    create(engine, fs, &SnapshotOpts::default()).unwrap();
}

/// Everything that a tree shows: names with attributes, and the content of files.
fn everything(fs: &Fs) -> Vec<(Vec<u8>, String, Vec<u8>)> {
    let mut all = Vec::new();
    for (path, seen) in names_of_fs(fs) {
        let ino = path
            .split(|b| *b == b'/')
            .skip(1)
            .try_fold(ROOT_INO, |dir, name| Ok::<u64, super::super::FsError>(fs.lookup(dir, name)?.ino));
        let ino = ino.unwrap();
        let attr = fs.getattr(ino).unwrap();
        let content = if attr.kind as u8 == 1 { get(fs, ino).unwrap() } else { Vec::new() };
        let attr = format!("{seen:?} {:?} {:?} {:?} {}", attr.atime, attr.mtime, attr.ctime, attr.size);
        all.push((path, attr, content));
    }
    all
}

#[test]
fn a_clone_shows_the_same_tree_and_takes_changes() {
    const SHAPE: Shape = Shape { file_max: 100_000, write_max: 20_000 };
    for seed in 0..12 {
        let vault = Vault::new(seed, small_config());
        let (mut rng, mut pair) = (Rng::new(seed), Pair::new(&vault, SHAPE));
        for _ in 0..400 {
            let op = Op::random(&mut rng, SHAPE);
            pair.apply(&op).unwrap();
        }
        let mut pair = pair.reopen(&vault);
        snapshot(&pair.engine, &pair.fs);
        let before = everything(&pair.fs);
        pair.fs.shutdown().unwrap();
        pair.engine.close().unwrap();
        // The clone has no live state; numbers of inodes stay.
        let again = vault.on(vault.disk.fork(), 1);
        pair.engine = again.engine_with(true).unwrap();
        pair.fs = Fs::open(pair.engine.clone(), FsOptions::default()).unwrap();
        if seed % 2 == 0 {
            assert_eq!(everything(&pair.fs), before);
            assert!(
                pair.engine.live.range(Table::DirtyDirs, &[], None, 1).unwrap().is_empty(),
                "looking marks"
            );
        } else {
            pair.compare();
        }
        for _ in 0..300 {
            let op = Op::random(&mut rng, SHAPE);
            pair.apply(&op).unwrap_or_else(|error| panic!("SEED={seed} {op:?}: {error}"));
        }
        pair.compare();
        // After all of it was looked at, nothing is lazy any more, and all rules hold.
        let pair = pair.reopen(&again);
        pair.compare();
        check_rows(&pair.engine, false);
        // What changed in the clone is in its next snapshot.
        snapshot(&pair.engine, &pair.fs);
        let before = everything(&pair.fs);
        pair.fs.shutdown().unwrap();
        pair.engine.close().unwrap();
        let third = again.on(again.disk.fork(), 2);
        let engine = third.engine_with(true).unwrap();
        let fs = Fs::open(engine, FsOptions::default()).unwrap();
        assert_eq!(everything(&fs), before, "SEED={seed}");
    }
}

#[test]
fn hard_links_in_directories_not_loaded_yet_follow() {
    let vault = Vault::new(1, small_config());
    let (engine, fs) = vault.open();
    let dirs: Vec<u64> = (0..4)
        .map(|n| fs.mkdir(ROOT_INO, format!("d{n}").as_bytes(), 0o755, 0, ALICE).unwrap().ino)
        .collect();
    let (ino, fh) = put(&fs, dirs[0], b"f", &[1; 5000]);
    fs.release(ino, fh).unwrap();
    for dir in &dirs[1..] {
        assert!(fs.link(ino, *dir, b"f").unwrap().nlink > 1);
    }
    snapshot(&engine, &fs);
    close(&engine, fs);
    let again = vault.on(vault.disk.fork(), 1);
    let engine = again.engine_with(true).unwrap();
    let fs = Fs::open(engine.clone(), FsOptions::default()).unwrap();
    let d2 = fs.lookup(ROOT_INO, b"d2").unwrap().ino;
    assert_eq!(fs.lookup(d2, b"f").unwrap().nlink, 4);
    // One name goes, the owner changes: both show in all directories.
    fs.unlink(d2, b"f").unwrap();
    let d0 = fs.lookup(ROOT_INO, b"d0").unwrap().ino;
    let set = SetAttr { uid: Some(77), ..SetAttr::default() };
    assert_eq!(fs.setattr(fs.lookup(d0, b"f").unwrap().ino, set, None, ALICE).unwrap().nlink, 3);
    snapshot(&engine, &fs);
    close(&engine, fs);
    let third = again.on(again.disk.fork(), 2);
    let engine = third.engine_with(true).unwrap();
    let fs = Fs::open(engine.clone(), FsOptions::default()).unwrap();
    for n in [0, 1, 3] {
        let dir = fs.lookup(ROOT_INO, format!("d{n}").as_bytes()).unwrap().ino;
        let attr = fs.lookup(dir, b"f").unwrap();
        assert_eq!((attr.nlink, attr.uid, attr.ino), (3, 77, ino));
    }
    close(&engine, fs);
}

#[test]
fn snapshots_are_browsed_and_never_change() {
    let vault = Vault::new(1, small_config());
    let (engine, fs) = vault.open();
    assert!(list(&fs, SNAPSHOTS_INO).unwrap().is_empty());
    let dir = fs.mkdir(ROOT_INO, b"d", 0o750, 0, ALICE).unwrap().ino;
    let data = Rng::bytes(3, 200_000);
    let (ino, fh) = put(&fs, dir, b"f", &data);
    fs.setxattr(ino, b"user.x", b"value", 0).unwrap();
    fs.symlink(dir, b"l", b"f", ALICE).unwrap();
    let many = fs.mkdir(ROOT_INO, b"many", 0o755, 0, ALICE).unwrap().ino;
    for n in 0..1000 {
        let (attr, fh) = fs.create(many, format!("{n}").as_bytes(), 0o644, 0, RW, ALICE).unwrap();
        fs.release(attr.ino, fh).unwrap();
    }
    snapshot(&engine, &fs);
    fs.write(ino, fh, 0, b"changed", false).unwrap();
    fs.unlink(dir, b"l").unwrap();
    vault.env.advance(std::time::Duration::from_secs(5));
    snapshot(&engine, &fs);

    assert!(!list(&fs, ROOT_INO).unwrap().iter().any(|(name, _)| name == b".snapshots"), "it is hidden");
    let top = fs.lookup(ROOT_INO, b".snapshots").unwrap();
    assert_eq!((top.ino, top.mode, top.nlink), (SNAPSHOTS_INO, 0o555, 4));
    let shown = list(&fs, top.ino).unwrap();
    assert_eq!(shown.len(), 2);
    assert!(shown[0].0.starts_with(b"2026-11-21_02-0"), "{:?}", String::from_utf8_lossy(&shown[0].0));
    let old = fs.lookup(top.ino, &shown[0].0).unwrap();
    assert_eq!((old.ino, old.ino & VIRTUAL), (shown[0].1, VIRTUAL));
    let old_dir = fs.lookup(old.ino, b"d").unwrap();
    assert_eq!((old_dir.mode, old_dir.uid), (0o750, ALICE.uid));
    let file = fs.lookup(old_dir.ino, b"f").unwrap();
    assert!(get(&fs, file.ino).unwrap() == data);
    assert_eq!(fs.getxattr(file.ino, b"user.x").unwrap(), b"value");
    assert_eq!(fs.listxattr(file.ino).unwrap(), b"user.x\0");
    assert_eq!(fs.lseek(file.ino, 0, Whence::Hole).unwrap(), 200_000);
    assert_eq!(fs.readlink(fs.lookup(old_dir.ino, b"l").unwrap().ino).unwrap(), b"f");
    assert_eq!(fs.lookup(old_dir.ino, b"..").unwrap().ino, old.ino);
    assert_eq!(fs.lookup(top.ino, b"..").unwrap().ino, ROOT_INO);
    let old_many = fs.lookup(old.ino, b"many").unwrap().ino;
    assert_eq!(list(&fs, old_many).unwrap().len(), 1000);
    // A forgotten inode is found again by its name only.
    fs.forget(file.ino, 1);
    assert_eq!(fs.getattr(file.ino).unwrap_err().errno, Errno::NOENT);
    assert_eq!(fs.lookup(old_dir.ino, b"f").unwrap(), file);

    let new = fs.lookup(top.ino, &shown[1].0).unwrap().ino;
    let new_dir = fs.lookup(new, b"d").unwrap().ino;
    assert!(get(&fs, fs.lookup(new_dir, b"f").unwrap().ino).unwrap().starts_with(b"changed"));
    assert_eq!(fs.lookup(new_dir, b"l").unwrap_err().errno, Errno::NOENT);

    let rofs = |errno: Errno| assert_eq!(errno, Errno::ROFS);
    rofs(fs.mkdir(old.ino, b"x", 0o755, 0, ALICE).unwrap_err().errno);
    rofs(fs.open_file(file.ino, RW, ALICE).unwrap_err().errno);
    rofs(fs.unlink(old_dir.ino, b"f").unwrap_err().errno);
    rofs(fs.setattr(file.ino, SetAttr::default(), None, ALICE).unwrap_err().errno);
    assert_eq!(fs.link(file.ino, dir, b"x").unwrap_err().errno, Errno::XDEV);
    assert_eq!(fs.mkdir(ROOT_INO, b".snapshots", 0o755, 0, ALICE).unwrap_err().errno, Errno::EXIST);
    assert_eq!(fs.rmdir(ROOT_INO, b".snapshots").unwrap_err().errno, Errno::PERM);
    assert!(fs.lookup(dir, b".snapshots").is_err(), "only the root has it");
    fs.release(ino, fh).unwrap();
    close(&engine, fs);
}

#[test]
fn only_inodes_that_the_kernel_was_told_of_are_remembered() {
    let vault = Vault::new(1, small_config());
    let (engine, fs) = vault.open();
    for n in 0..300 {
        fs.mkdir(ROOT_INO, format!("{n:03}").as_bytes(), 0o755, 0, ALICE).unwrap();
    }
    snapshot(&engine, &fs);
    let shown = list(&fs, SNAPSHOTS_INO).unwrap();
    assert_eq!(fs.counters().snapshot_inodes, 0, "a plain listing tells the kernel nothing that it forgets");
    let root = fs.lookup(SNAPSHOTS_INO, &shown[0].0).unwrap().ino;
    // An answer that has room for 7 entries besides `.` and `..`, and a listing that is then given up.
    let fh = fs.opendir(root).unwrap();
    let mut told = Vec::new();
    let mut add = |entry: &DirEnt<'_>| {
        if told.len() == 9 {
            return false;
        }
        told.push(entry.ino);
        true
    };
    fs.readdir(fh, 0, &mut add, true).unwrap();
    fs.releasedir(fh).unwrap();
    assert_eq!(fs.counters().snapshot_inodes, 1 + 7);
    for ino in &told[2..] {
        assert_eq!(fs.getattr(*ino).unwrap().ino, *ino);
        fs.forget(*ino, 1);
        assert_eq!(fs.getattr(*ino).unwrap_err().errno, Errno::NOENT);
    }
    fs.forget(root, 1);
    assert_eq!(fs.counters().snapshot_inodes, 0);
    close(&engine, fs);
}

/// Makes the cache of entries lose what it holds: an inode is then found by its place, or not at all.
fn fill_cache(fs: &Fs, dir: u64) {
    for (name, _) in list(fs, dir).unwrap() {
        let ino = fs.lookup(dir, &name).unwrap().ino;
        fs.forget(ino, 1);
    }
}

#[test]
fn an_inode_is_known_until_every_answer_is_forgotten() {
    let vault = Vault::new(1, small_config());
    let (engine, fs) = vault.open();
    let dir = fs.mkdir(ROOT_INO, b"d", 0o755, 0, ALICE).unwrap().ino;
    fs.mkdir(dir, b"e", 0o755, 0, ALICE).unwrap();
    snapshot(&engine, &fs);
    let shown = list(&fs, SNAPSHOTS_INO).unwrap();
    let root = fs.lookup(SNAPSHOTS_INO, &shown[0].0).unwrap().ino;
    let dir = fs.lookup(root, b"d").unwrap().ino;
    // One thread looks it up again while another one handles what the kernel forgot of the answers before.
    assert_eq!(fs.lookup(root, b"d").unwrap().ino, dir);
    fs.forget(dir, 1);
    assert_eq!(fs.getattr(dir).unwrap().ino, dir);
    // Each listing with attributes is an answer too, but not of what it had no room for.
    let list_plus = |room: usize| {
        let fh = fs.opendir(root).unwrap();
        let mut taken = 0;
        let mut add = |_: &DirEnt<'_>| {
            taken += 1;
            taken <= room
        };
        fs.readdir(fh, 0, &mut add, true).unwrap();
        fs.releasedir(fh).unwrap();
    };
    list_plus(2);
    list_plus(3);
    assert_eq!(fs.lookup(dir, b".").unwrap().ino, dir);
    fs.forget(dir, 2);
    let below = fs.lookup(dir, b"e").unwrap().ino;
    fs.forget(below, 1);
    fs.forget(dir, 1);
    assert_eq!(fs.getattr(dir).unwrap_err().errno, Errno::NOENT);
    assert_eq!(fs.lookup(dir, b"e").unwrap_err().errno, Errno::NOENT);
    assert_eq!(fs.counters().snapshot_inodes, 1);
    fs.forget(root, 9);
    fs.forget(root, 1);
    assert_eq!(fs.counters().snapshot_inodes, 0);
    close(&engine, fs);
}

#[test]
fn an_inode_looked_up_while_it_is_forgotten_keeps_its_place() {
    const TURNS: u64 = 20_000;
    let vault = Vault::new(1, small_config());
    let (engine, fs) = vault.open();
    fs.mkdir(ROOT_INO, b"d", 0o755, 0, ALICE).unwrap();
    snapshot(&engine, &fs);
    let shown = list(&fs, SNAPSHOTS_INO).unwrap();
    let root = fs.lookup(SNAPSHOTS_INO, &shown[0].0).unwrap().ino;
    // As the kernel does: what was answered is used, and later forgotten by another thread.
    let (answers, forgotten) = std::sync::mpsc::channel();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for ino in forgotten {
                fs.forget(ino, 1);
            }
        });
        for _ in 0..TURNS {
            let ino = fs.lookup(root, b"d").unwrap().ino;
            assert_eq!(fs.getattr(ino).unwrap().ino, ino);
            answers.send(ino).unwrap();
        }
        drop(answers);
    });
    assert_eq!(fs.counters().snapshot_inodes, 1);
    close(&engine, fs);
}

#[test]
fn a_file_with_two_names_outlives_the_directory_it_was_found_in() {
    let vault = Vault::new(1, small_config());
    let (engine, fs) = vault.open();
    let many = fs.mkdir(ROOT_INO, b"many", 0o755, 0, ALICE).unwrap().ino;
    for n in 0..8200 {
        fs.mknod(many, format!("{n}").as_bytes(), FileType::File, 0o644, 0, (0, 0), ALICE).unwrap();
    }
    let [one, two] = [b"1", b"2"].map(|name| fs.mkdir(ROOT_INO, name, 0o755, 0, ALICE).unwrap().ino);
    let (ino, fh) = put(&fs, one, b"f", b"content");
    fs.link(ino, two, b"f").unwrap();
    fs.release(ino, fh).unwrap();
    snapshot(&engine, &fs);
    let shown = list(&fs, SNAPSHOTS_INO).unwrap();
    let root = fs.lookup(SNAPSHOTS_INO, &shown[0].0).unwrap().ino;
    let [one, two, many] = [b"1".as_slice(), b"2", b"many"].map(|name| fs.lookup(root, name).unwrap().ino);
    let file = fs.lookup(one, b"f").unwrap().ino;
    assert_eq!(fs.lookup(two, b"f").unwrap().ino, file);
    // The kernel drops the first name, then its directory.
    fs.forget(file, 1);
    fs.forget(one, 1);
    fill_cache(&fs, many);
    assert_eq!(get(&fs, file).unwrap(), b"content");
    fs.forget(file, 1);
    for ino in [two, many, root] {
        fs.forget(ino, 1);
    }
    assert_eq!(fs.counters().snapshot_inodes, 0, "nor is the directory remembered for it");
    close(&engine, fs);
}

#[test]
fn snapshots_of_one_second_are_all_listed() {
    let vault = Vault::new(1, small_config());
    let (engine, fs) = vault.open();
    for n in 0..13 {
        fs.mkdir(ROOT_INO, format!("d{n}").as_bytes(), 0o755, 0, ALICE).unwrap();
        snapshot(&engine, &fs);
    }
    let shown = list(&fs, SNAPSHOTS_INO).unwrap();
    assert_eq!(shown.len(), 13);
    assert!(shown.iter().any(|(name, _)| name.ends_with(b"_9")), "they share a second");
    // Each is there once, also after others in the order of names that are newer.
    let inos = shown.iter().map(|(name, _)| fs.lookup(SNAPSHOTS_INO, name).unwrap().ino);
    let mut sizes: Vec<usize> = inos.map(|ino| list(&fs, ino).unwrap().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, (1..=13).collect::<Vec<_>>());
    close(&engine, fs);
}

#[test]
fn one_snapshot_is_mounted_by_itself() {
    let vault = Vault::new(1, small_config());
    let (engine, fs) = vault.open();
    let dir = fs.mkdir(ROOT_INO, b"d", 0o750, 0, ALICE).unwrap().ino;
    let (ino, fh) = put(&fs, dir, b"f", b"content");
    fs.release(ino, fh).unwrap();
    snapshot(&engine, &fs);
    let chain = crate::snapshot::chain::Chain::load(&vault.disk, &engine.header).unwrap();
    let info = chain.snapshots().next().unwrap();
    let root =
        crate::snapshot::chain::open_sealed(&vault.disk, &engine.ctx.keys, info).unwrap().root.unwrap();
    let alone: Arc<Fs> = Fs::open_snapshot(engine.packs.clone(), root.entry);
    let (real, shown) = (everything(&fs), everything(&alone));
    assert_eq!(shown.len(), 3);
    assert_eq!(real, shown);
    assert_eq!(alone.lookup(ROOT_INO, b".snapshots").unwrap_err().errno, Errno::NOENT);
    assert_eq!(alone.mkdir(ROOT_INO, b"x", 0o755, 0, ALICE).unwrap_err().errno, Errno::ROFS);
    assert_eq!(alone.getattr(ROOT_INO).unwrap().ino, ROOT_INO);
    alone.shutdown().unwrap();
    close(&engine, fs);
}
