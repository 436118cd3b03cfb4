//! Full disks, failing disks.

use rustix::io::Errno;

use super::super::{FsOptions, SetAttr};
use super::check::check_rows;
use super::{ALICE, Caller, Fs, RW, Rng, Vault, close, get, put, small_config};
use crate::store::records::ROOT_INO;

/// Fills the disk; returns how many files of 100 kB were written.
fn fill(fs: &Fs) -> u64 {
    for n in 0.. {
        let (attr, fh) = match fs.create(ROOT_INO, format!("fill{n}").as_bytes(), 0o644, 0, RW, ALICE) {
            Ok(made) => made,
            Err(error) => {
                assert_eq!(error.errno, Errno::NOSPC);
                return n;
            }
        };
        let data = Rng::bytes(n, 100_000);
        let full = match fs.write(attr.ino, fh, 0, &data, false).and_then(|_| fs.flush(attr.ino, fh)) {
            Ok(()) => false,
            Err(error) => {
                assert_eq!(error.errno, Errno::NOSPC, "{error}");
                true
            }
        };
        fs.release(attr.ino, fh).unwrap();
        if full {
            return n;
        }
    }
    unreachable!("a disk without end")
}

#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() {
    for background in [false, true] {
        let mut cfg = small_config();
        (cfg.background, cfg.live.background) = (background, background);
        let vault = Vault::new(3, cfg);
        vault.disk.set_capacity(40 << 20);
        let (engine, fs) = vault.open();
        let keep = Rng::bytes(1 << 40, 300_000);
        let (kept, fh) = put(&fs, ROOT_INO, b"keep", &keep);
        fs.fsync(kept, false).unwrap();
        fs.release(kept, fh).unwrap();
        let files = fill(&fs);
        assert!(files > 20, "only {files} files fit");
        assert!(fs.statfs().unwrap().available * 4096 < 1_000_000, "statfs says so, too");
        assert!(get(&fs, kept).unwrap() == keep);
        for n in 0..files {
            let ino = fs.lookup(ROOT_INO, format!("fill{n}").as_bytes()).unwrap().ino;
            assert!(get(&fs, ino).unwrap() == Rng::bytes(n, 100_000), "file {n}");
        }
        // What was accepted can be made durable, and names can be removed.
        fs.sync_all().unwrap();
        for n in 0..files / 2 {
            fs.unlink(ROOT_INO, format!("fill{n}").as_bytes()).unwrap();
        }
        fs.sync_all().unwrap();
        close(&engine, fs);
        let (engine, fs) = vault.open();
        check_rows(&engine, false);
        assert!(get(&fs, kept).unwrap() == keep);
        assert!(fs.lookup(ROOT_INO, b"fill0").is_err());
        // With more room it goes on.
        vault.disk.set_capacity(80 << 20);
        let (ino, fh) = put(&fs, ROOT_INO, b"more", &keep);
        fs.release(ino, fh).unwrap();
        close(&engine, fs);
    }
}

/// Writes 4 MB in pages with gaps between, of which nothing is cut while it streams. Returns the content.
fn write_scattered(fs: &Fs, ino: u64, fh: super::Fh) -> Vec<u8> {
    let mut data = Rng::bytes(1, 8_192_000);
    for (i, part) in data.chunks_mut(4096).enumerate() {
        if i % 2 == 0 {
            part.fill(0);
        } else {
            fs.write(ino, fh, i as u64 * 4096, part, false).unwrap();
        }
    }
    data
}

#[test]
fn a_blocked_writer_is_told_of_a_full_disk() {
    let mut cfg = small_config();
    cfg.dirty_bytes_max = 5 << 20;
    let vault = Vault::new(3, cfg);
    let (engine, fs) = vault.open();
    let (attr, fh) = fs.create(ROOT_INO, b"f", 0o644, 0, RW, ALICE).unwrap();
    let ino = attr.ino;
    let data = write_scattered(&fs, ino, fh);
    // Someone else takes all the room between admission and storing.
    vault.disk.set_capacity(1 << 20);
    let error = fs.write(ino, fh, 1 << 30, &data[..2_000_000], false).unwrap_err();
    assert_eq!(error.errno, Errno::NOSPC);
    assert!(fs.fsync(ino, false).is_err_and(|error| error.errno == Errno::NOSPC));
    assert!(get(&fs, ino).unwrap() == data, "it is still in memory");
    vault.disk.set_capacity(1 << 30);
    fs.write(ino, fh, data.len() as u64, b"end", false).unwrap();
    fs.fsync(ino, false).unwrap();
    fs.release(ino, fh).unwrap();
    assert_eq!(engine.pending_bytes(), 0);
    close(&engine, fs);
    let (_engine, fs) = vault.open();
    assert!(get(&fs, ino).unwrap() == [data.as_slice(), b"end"].concat());
}

#[test]
fn after_a_failed_write_reads_go_on_and_writes_do_not() {
    let vault = Vault::new(3, small_config());
    let (engine, fs) = vault.open();
    let data = Rng::bytes(1, 200_000);
    let (ino, fh) = put(&fs, ROOT_INO, b"f", &data);
    fs.fsync(ino, false).unwrap();
    engine.ctx.poison.set("a test");
    let eio = |errno: Errno| assert_eq!(errno, Errno::IO);
    eio(fs.write(ino, fh, 0, b"x", false).unwrap_err().errno);
    eio(fs.mkdir(ROOT_INO, b"d", 0o755, 0, ALICE).unwrap_err().errno);
    eio(fs.unlink(ROOT_INO, b"f").unwrap_err().errno);
    eio(fs.fsync(ino, false).unwrap_err().errno);
    eio(fs
        .setattr(ino, SetAttr { size: Some(0), ..SetAttr::default() }, None, Caller::default())
        .unwrap_err()
        .errno);
    assert!(get(&fs, ino).unwrap() == data);
    assert_eq!(fs.getattr(ino).unwrap().size, 200_000);
    assert!(fs.tick().is_ok(), "the clock does not complain each second");
}

#[test]
fn a_failure_is_reported_at_close_once_for_each_handle() {
    let mut cfg = small_config();
    cfg.dirty_bytes_max = 5 << 20;
    let vault = Vault::new(3, cfg);
    let (engine, fs) = vault.open();
    let (attr, fh) = fs.create(ROOT_INO, b"f", 0o644, 0, RW, ALICE).unwrap();
    let ino = attr.ino;
    write_scattered(&fs, ino, fh);
    let other = fs.open_file(ino, RW, ALICE).unwrap();
    vault.disk.set_capacity(1 << 20);
    // Meets the full disk, and nobody is there to be told.
    assert!(fs.flush_all().is_err());
    for handle in [fh, other] {
        assert_eq!(fs.flush(ino, handle).unwrap_err().errno, Errno::NOSPC);
    }
    vault.disk.set_capacity(1 << 30);
    for handle in [fh, other] {
        fs.flush(ino, handle).unwrap();
        fs.release(ino, handle).unwrap();
    }
    close(&engine, fs);
}

#[test]
fn a_read_only_tree_refuses_everything() {
    let vault = Vault::new(3, small_config());
    let (engine, fs) = vault.open();
    let (ino, fh) = put(&fs, ROOT_INO, b"f", b"data");
    fs.release(ino, fh).unwrap();
    close(&engine, fs);
    let engine = vault.engine().unwrap();
    let fs = Fs::open(engine.clone(), FsOptions { read_only: true }).unwrap();
    assert_eq!(get(&fs, ino).unwrap(), b"data");
    let rofs = |errno: Errno| assert_eq!(errno, Errno::ROFS);
    rofs(fs.open_file(ino, RW, ALICE).unwrap_err().errno);
    rofs(fs.mkdir(ROOT_INO, b"d", 0o755, 0, ALICE).unwrap_err().errno);
    rofs(fs.unlink(ROOT_INO, b"f").unwrap_err().errno);
    rofs(fs.setxattr(ino, b"user.a", b"", 0).unwrap_err().errno);
    rofs(fs.rename(ROOT_INO, b"f", ROOT_INO, b"g", Default::default()).unwrap_err().errno);
    fs.shutdown().unwrap();
    engine.close().unwrap();
}
