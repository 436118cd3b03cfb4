//! Inline rows that become chunks: how many chunks, what is stored again for them, and that no byte changes.

use std::sync::Arc;

use super::check::check_rows;
use super::{Rng, Vault, close, get, put, seeds, small_config};
use crate::disk::CrashMode;
use crate::fs::{Fh, Fs, Whence};
use crate::store::engine::Engine;
use crate::store::live::Table;
use crate::store::records::{ExtentRow, ROOT_INO, parse_extent_key, rows_of};

/// A file with a flat copy of its bytes beside it.
struct File {
    engine: Arc<Engine>,
    fs: Arc<Fs>,
    ino: u64,
    fh: Fh,
    bytes: Vec<u8>,
}

impl File {
    /// A stored file of that many bytes.
    fn stored(vault: &Vault, len: usize) -> Self {
        let (engine, fs) = vault.open();
        let bytes = Rng::bytes(1, len);
        let (ino, fh) = put(&fs, ROOT_INO, b"f", &bytes);
        fs.sync_all().unwrap();
        Self { engine, fs, ino, fh, bytes }
    }

    /// Writes and syncs.
    fn synced(&mut self, off: usize, len: usize, seed: u64) {
        let data = Rng::bytes(seed ^ 0xabcd, len);
        assert_eq!(self.fs.write(self.ino, self.fh, off as u64, &data, false).unwrap(), len);
        self.fs.fsync(self.ino, false).unwrap();
        let end = off + len;
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[off..end].copy_from_slice(&data);
    }

    fn rows(&self) -> Vec<(u64, ExtentRow)> {
        let (from, to) = rows_of(self.ino);
        let rows = self.engine.live.range(Table::Extents, &from, Some(&to), usize::MAX).unwrap();
        rows.iter()
            .map(|(key, value)| (parse_extent_key(key).unwrap().1, ExtentRow::decode(value).unwrap()))
            .collect()
    }

    /// How many inline rows there are, and their bytes.
    fn inline(&self) -> (usize, u64) {
        let rows = self.rows();
        let inline = || rows.iter().filter(|(_, row)| matches!(row, ExtentRow::Inline(_)));
        (inline().count(), inline().map(|(_, row)| row.len()).sum())
    }

    /// Bytes that were ever put into packs, those found there already included.
    fn put_bytes(&self) -> u64 {
        let stats = self.engine.packs.stats();
        stats.plain_bytes + stats.dedup_bytes
    }

    /// Turns inline rows into chunks. Returns how many bytes became chunks.
    fn convert(&self) -> u64 {
        let before = self.put_bytes();
        self.fs.flush_all().unwrap();
        assert_eq!(self.inline(), (0, 0));
        self.put_bytes() - before
    }

    /// Compares, before and after opening the vault again.
    fn end(self, vault: &Vault) {
        assert!(get(&self.fs, self.ino).unwrap() == self.bytes);
        check_rows(&self.engine, true);
        self.fs.release(self.ino, self.fh).unwrap();
        close(&self.engine, self.fs);
        let (engine, fs) = vault.open();
        assert!(get(&fs, self.ino).unwrap() == self.bytes);
        check_rows(&engine, false);
        close(&engine, fs);
    }
}

#[test]
fn close_rows_become_few_chunks_and_little_is_stored_again() {
    let vault = Vault::new(1, small_config());
    let mut file = File::stored(&vault, 1 << 20);
    for n in 0..512 {
        file.synced(n * 2048, 1024, n as u64);
    }
    assert_eq!(file.inline(), (512, 512 << 10));
    assert!(file.rows().len() >= 1024);
    let put = file.convert();
    // All of it, once: chunks have at least 4 KiB but for the last one.
    assert!(file.rows().len() <= (1 << 20) / 4096 + 1, "{} extents", file.rows().len());
    // Inline bytes, as many others, and a row for each round of at least one chunk.
    assert!(put > 1000 << 10 && put <= (1 << 20) + 256 * 1024, "{put} bytes were stored");
    file.end(&vault);
}

#[test]
fn lonely_rows_are_stored_alone() {
    let vault = Vault::new(2, small_config());
    let mut file = File::stored(&vault, 1 << 20);
    for n in 0..64 {
        file.synced(n * 16_384 + 100, 1000, n as u64);
    }
    let extents = file.rows().len();
    assert_eq!(file.convert(), 64 * 1000);
    assert_eq!(file.rows().len(), extents);
    file.end(&vault);
}

#[test]
fn holes_stay_holes() {
    let vault = Vault::new(3, small_config());
    let mut file = File::stored(&vault, 0);
    // More pieces than one round takes.
    for n in 0..700 {
        file.synced(n * 1500, 700, n as u64);
    }
    let blocks = |file: &File| file.fs.getattr(file.ino).unwrap().blocks512;
    let before = blocks(&file);
    assert_eq!(file.convert(), 700 * 700);
    assert_eq!(blocks(&file), before);
    assert_eq!(file.fs.lseek(file.ino, 1500, Whence::Hole).unwrap(), 2200);
    assert_eq!(file.fs.lseek(file.ino, 2200, Whence::Data).unwrap(), 3000);
    file.end(&vault);
}

#[test]
fn a_file_of_synced_pieces_gets_the_chunks_of_its_content() {
    let vault = Vault::new(4, small_config());
    let mut file = File::stored(&vault, 0);
    let whole = Rng::bytes(77, 600_000);
    let (_, fh) = put(&file.fs, ROOT_INO, b"streamed", &whole);
    file.fs.sync_all().unwrap();
    let chunks = file.engine.packs.stats().chunks;
    for part in whole.chunks(5000) {
        let off = file.bytes.len();
        file.fs.write(file.ino, file.fh, off as u64, part, false).unwrap();
        file.fs.fsync(file.ino, false).unwrap();
        file.bytes.extend_from_slice(part);
    }
    // Several rounds: each goes on where the content was cut last.
    assert_eq!(file.convert(), whole.len() as u64);
    assert_eq!(file.engine.packs.stats().chunks, chunks, "all of them were there");
    file.fs.release(file.fs.lookup(ROOT_INO, b"streamed").unwrap().ino, fh).unwrap();
    file.end(&vault);
}

#[test]
fn of_random_rows_no_more_is_stored_again_than_is_inline() {
    for seed in seeds(10, 12) {
        let mut cfg = small_config();
        cfg.background = seed % 2 == 0;
        cfg.live.background = cfg.background;
        let vault = Vault::new(seed, cfg);
        let mut file = File::stored(&vault, if seed % 3 == 0 { 0 } else { 400_000 });
        let mut rng = Rng::new(seed);
        let spread = 1 + rng.below(400_000);
        let longest = 1 + rng.below(9000);
        for n in 0..150 {
            let (off, len) = (rng.below(spread), 1 + rng.below(longest));
            file.synced(off as usize, len as usize, n);
        }
        // A row that a round ends before has paid for stored bytes; a round has 16 KiB at least; short pieces at the end.
        let (_, inline) = file.inline();
        let rounds = 1 + file.bytes.len() as u64 / (16 << 10);
        let put = file.convert();
        assert!(put >= inline, "seed {seed}: {put} of {inline}");
        let most = 2 * inline + rounds * longest.max(4096) + (16 << 10);
        assert!(put <= most, "seed {seed}: {put} stored for {inline}");
        file.end(&vault);
    }
}

#[test]
fn many_inline_bytes_do_not_wait_for_their_time() {
    let vault = Vault::new(5, small_config());
    let mut file = File::stored(&vault, 0);
    for n in 0..10 {
        file.synced(n * 8192, 4096, n as u64);
        file.fs.tick().unwrap();
    }
    assert_eq!(file.inline().0, 10, "a twelfth of the overlay's bound is more than ten rows");
    for n in 10..15 {
        file.synced(n * 8192, 4096, n as u64);
    }
    // The same page again and again is one row.
    for n in 0..20 {
        file.synced(0, 4096, n);
    }
    file.fs.tick().unwrap();
    assert_eq!(file.inline().0, 0);
    for n in 0..200 {
        file.synced(0, 4096, n);
        file.fs.tick().unwrap();
    }
    assert_eq!(file.inline().0, 1);
    file.end(&vault);
}

#[test]
fn many_files_are_converted_together() {
    let vault = Vault::new(6, small_config());
    let (engine, fs) = vault.open();
    let mut files = Vec::new();
    for n in 0..150u64 {
        let data = Rng::bytes(n, 3000 + n as usize * 20);
        let (ino, fh) = put(&fs, ROOT_INO, format!("{n}").as_bytes(), &data);
        fs.fsync(ino, false).unwrap();
        fs.release(ino, fh).unwrap();
        files.push((ino, data));
    }
    // One of them goes while it still has inline rows.
    fs.unlink(ROOT_INO, b"70").unwrap();
    fs.flush_all().unwrap();
    let rows = engine.live.range(Table::Extents, &[], None, usize::MAX).unwrap();
    assert!(rows.iter().all(|(_, row)| matches!(ExtentRow::decode(row), Ok(ExtentRow::Chunk { .. }))));
    let left = engine.live.range(Table::Settings, b"inline.", Some(b"inline/"), 10).unwrap();
    assert!(left.is_empty(), "{left:?}");
    for (n, (ino, data)) in files.iter().enumerate().filter(|(n, _)| *n != 70) {
        assert!(get(&fs, *ino).unwrap() == *data, "{n}");
    }
    close(&engine, fs);
}

/// Everything was synced before, so whenever the power goes off while rows become chunks, all of it is there.
#[test]
fn power_cuts_while_rows_become_chunks_lose_nothing() {
    let mut cuts = 0;
    for (seed, background) in [(7, false), (8, true)] {
        let mut cfg = small_config();
        cfg.background = background;
        let mut at = 1;
        loop {
            let vault = Vault::new(seed, cfg.clone());
            let mut file = File::stored(&vault, 150_000);
            let mut rng = Rng::new(seed);
            for n in 0..60 {
                let (off, len) = (rng.below(150_000), 1 + rng.below(2000));
                file.synced(off as usize, len as usize, n);
            }
            vault.disk.crash_at_operation(vault.disk.operations() + at);
            let done = file.fs.sync_all().is_ok();
            assert!(done || vault.disk.is_off(), "an error with the power on");
            vault.disk.power_off();
            for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn(at)] {
                let again = vault.on(vault.disk.crash_image(mode), at);
                let (engine, fs) = again.open();
                check_rows(&engine, false);
                assert!(get(&fs, file.ino).unwrap() == file.bytes, "operation {at}, {mode:?}");
                // What the crash left inline becomes chunks now.
                fs.sync_all().unwrap();
                assert!(get(&fs, file.ino).unwrap() == file.bytes, "operation {at}, {mode:?}, converted");
                check_rows(&engine, false);
                close(&engine, fs);
            }
            cuts += 1;
            if done {
                break;
            }
            at += 7;
        }
    }
    assert!(cuts > 10, "{cuts}");
}
