//! Decoders and the check on bytes that nobody wrote: errors, no panics, and an end.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::*;
use fsck_strongroom::chain::{self, ChainKind};
use fsck_strongroom::{Class, Options, Source, Unlock, check_source, header, pack, tree};

/// A small generator: good enough to choose bytes with.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % below
    }
}

/// Hands changed versions of `seed` to `decode`, and how many of them it took.
fn mutate(seed: &[u8], decode: &mut dyn FnMut(&[u8]) -> bool) -> usize {
    let mut dice = Dice(seed.len() as u64);
    let mut taken = 0;
    for _ in 0..4000 {
        let mut bytes = seed.to_vec();
        for _ in 0..=dice.roll(3) {
            let at = dice.roll(bytes.len());
            match dice.roll(6) {
                0 => bytes[at] = 0xff,
                1 => bytes[at] = 0,
                2 => bytes[at] ^= 1 << dice.roll(8),
                3 => bytes.truncate(at.max(1)),
                4 => bytes.insert(at, dice.roll(256) as u8),
                _ => {
                    bytes.remove(at);
                    bytes.push(0x80);
                }
            }
        }
        taken += usize::from(decode(&bytes));
    }
    taken
}

#[test]
fn decoders_survive_mutations() {
    let id = [7; 32];
    let files = dir_leaf(&[
        Entry::new("a", 1, 2, inline(9, b"inline")),
        Entry::new("b", 1, 3, extents(500, &[extent(3, 40, &id, 1), extent(0, 99, &id, 60)])),
        Entry::new("c", 2, 4, id.to_vec()),
        Entry::new("d", 7, 5, vec![1, 2]),
        Entry::new("e", 1, 6, object(1 << 40, &id)),
    ]);
    let objects = [
        files,
        dir_index(3, &[("a", id), ("b", id)]),
        extent_leaf(4, &[extent(0, 5, &id, 6), extent(7, 8, &id, 9)]),
        extent_index(2, &[(0, id), (9, id)]),
    ];
    for object in &objects {
        assert!(tree::parse_object(object).is_ok());
        mutate(object, &mut |bytes| tree::parse_object(bytes).is_ok());
    }
    let s = sample(1);
    let file = &s.vault.files.0[&s.snapshots[1].0];
    assert!(chain::parse(file).is_ok());
    mutate(file, &mut |bytes| chain::parse(bytes).is_ok());
    let public = &file[16..16 + u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize];
    for kind in [ChainKind::Snapshot, ChainKind::Removal] {
        mutate(public, &mut |bytes| chain::parse_public(bytes, kind).is_ok());
        mutate(&[1; 256], &mut |bytes| chain::parse_sealed(bytes, kind).is_ok());
    }
    // The checksum guards the header: none of these may pass.
    let json = &s.vault.files.0["vault.json"];
    let mut same = 0;
    let taken = mutate(json, &mut |bytes| {
        same += usize::from(bytes == json);
        header::parse(bytes).is_ok()
    });
    assert_eq!(taken, same);
    let mut footer = 2u32.to_le_bytes().to_vec();
    for (offset, first) in [(1168u32, 0u32), (1194, 1)] {
        footer.extend([1; 32]);
        [offset, first, 10, 10].iter().for_each(|n| footer.extend(n.to_le_bytes()));
    }
    assert!(pack::parse_footer(&footer, 1220).is_ok());
    mutate(&footer, &mut |bytes| pack::parse_footer(bytes, 1220).is_ok());
    mutate(&[5; 24], &mut |bytes| pack::parse_trailer(bytes).is_ok());
    mutate(&s.vault.files.0[&s.packs[0].path][..1168], &mut |bytes| pack::parse_header(bytes).is_ok());
}

/// A disk with a place that can't be read.
struct Failing<'m> {
    files: &'m Mem,
    path: String,
    at: u64,
}

impl Source for Failing<'_> {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        if dir == self.path { Err(io::Error::other("bad sector")) } else { self.files.list(dir) }
    }
    fn len(&self, path: &str) -> io::Result<u64> {
        self.files.len(path)
    }
    fn read(&self, path: &str, off: u64, buf: &mut [u8]) -> io::Result<usize> {
        if path != self.path || off + buf.len() as u64 <= self.at {
            return self.files.read(path, off, buf);
        }
        if off >= self.at {
            return Err(io::Error::other("bad sector"));
        }
        self.files.read(path, off, &mut buf[..(self.at - off) as usize])
    }
}

#[test]
fn unreadable_places_are_told_and_the_rest_is_checked() {
    let s = sample(1);
    let check = |path: &str, at| {
        let disk = Failing { files: &s.vault.files, path: path.to_owned(), at };
        check_source(&disk, Some(Unlock::Root(ROOT)), &Options::default()).unwrap()
    };
    for path in s.vault.files.paths("") {
        for at in [0, 100, 1200] {
            let report = check(&path, at);
            assert!(report.of(Class::Unreadable).any(|f| f.file == path), "{path} {:?}", report.findings);
        }
    }
    // With the data unreadable behind the first chunk's start, names are lost file by file.
    let report = check(&s.packs[2].path, 1200);
    let unreadable = report.of(Class::Unreadable).any(|f| f.file == s.packs[2].path);
    assert!(unreadable && report.snapshots[0].paths_affected == 0, "{:?}", report.findings);
    for dir in ["packs", "snapshots"] {
        assert!(check(dir, 0).of(Class::Unreadable).any(|f| f.file == dir));
    }
}

/// Files that claim to be endless.
struct Endless<'m>(&'m Mem);

impl Source for Endless<'_> {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn len(&self, path: &str) -> io::Result<u64> {
        self.0.len(path).map(|n| if path.starts_with("packs") { u64::MAX } else { n | 1 << 62 })
    }
    fn read(&self, path: &str, off: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(path, off, buf).map(|_| buf.len())
    }
}

#[test]
fn endless_files_are_not_read() {
    let s = sample(1);
    let report = check_source(&Endless(&s.vault.files), None, &Options::default()).unwrap();
    for path in s.vault.files.paths("") {
        assert!(report.of(Class::Malformed).any(|f| f.file == path), "{path}: {:?}", report.findings);
    }
}

#[test]
fn a_check_can_be_stopped() {
    let s = sample(1);
    let cancel = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(AtomicU64::new(0));
    let (stop, count) = (cancel.clone(), seen.clone());
    let opts = Options {
        cancel: Some(cancel),
        progress: Some(Arc::new(move |p| {
            assert!(p.done <= p.total);
            count.fetch_add(1, Ordering::Relaxed);
            stop.store(true, Ordering::Relaxed);
        })),
        ..Options::default()
    };
    let report = check_source(&s.vault.files, Some(Unlock::Root(ROOT)), &opts).unwrap();
    assert!(report.cancelled && !report.is_clean());
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    assert!(!report.damage, "a stop is no damage: {:?}", report.findings);
}

#[test]
fn full_pack_lists_come_often_enough() {
    for (full_at, good) in [(65, true), (66, false)] {
        let mut v = Vault::new(1);
        let dir = dir_leaf(&[]);
        let pack = v.pack(2, &[&dir]);
        let root = Entry::new("", 2, 1, v.tree_id(&dir).to_vec()).encode();
        for n in 1..=66u64 {
            let added = if n == 1 || n == full_at { vec![pack.name] } else { Vec::new() };
            v.link(&Link::snapshot(list(n == 1 || n == full_at, &added, &[]), root.clone()));
        }
        let report = check_source(&v.files, v.unlock(), &Options::default()).unwrap();
        assert_eq!(report.is_clean(), good, "{:?}", report.findings);
        assert_eq!(report.snapshots.len(), 66);
        assert!(good || report.findings.iter().all(|f| f.rule == "SNAP-7"));
        // With a hole below, what needs no predecessor is still known.
        let gone = v.files.paths("snapshots/0000000030").remove(0);
        v.files.0.remove(&gone);
        let report = check_source(&v.files, v.unlock(), &Options::default()).unwrap();
        assert!(report.has(Class::Chain));
        let open: Vec<u64> =
            report.snapshots.iter().filter(|s| s.complete.is_none()).map(|s| s.sequence).collect();
        assert_eq!(open, (31..full_at).collect::<Vec<_>>());
    }
}

#[test]
fn a_removed_removal_and_leftovers() {
    let mut s = sample(1);
    let own = list(true, &[s.packs[0].name, s.packs[1].name], &[]);
    let gone = removed(1, s.snapshots[0].1, [0; 32], &own);
    let first = s.vault.link(&Link::removal(list(false, &[], &[]), vec![gone], vec![], vec![]));
    let report = check_source(&s.vault.files, s.vault.unlock(), &Options::default()).unwrap();
    assert!(report.is_clean() && report.of(Class::Unreferenced).any(|f| f.file == s.snapshots[0].0));
    let again = removed(3, first.1, s.snapshots[1].1, &list(false, &[], &[]));
    s.vault.link(&Link::removal(list(false, &[], &[]), vec![again], vec![], vec![]));
    let report = check_source(&s.vault.files, s.vault.unlock(), &Options::default()).unwrap();
    assert!(report.findings.iter().any(|f| f.rule == "SNAP-5" && f.file == first.0), "{:?}", report.findings);
}
