//! Imports of what was imported before: what did not change is not read, and nothing else differs.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::import::{ImportOpts, ImportReport};
use super::io_tests::{assert_same, at, bring_in, build, scan, set_times};
use super::restore::{RestoreOpts, restore};
use super::testing::{Rig, noise};
use crate::env::{Env, Time};
use crate::format::Content;

/// A directory with one of everything, a file of many chunks among it.
struct Source {
    dir: tempfile::TempDir,
    rig: Rig,
}

impl Source {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Self { dir, rig: Rig::new(seed) };
        // Everything that these tests do is long past.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        source.rig.env.set_clock(Time { secs: now.as_secs() as i64 + 86_400, nanos: 0 });
        std::fs::create_dir(source.path("")).unwrap();
        build(&source.path(""));
        std::fs::write(source.path("many chunks"), noise(9, 1 << 20)).unwrap();
        source
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("source").join(name)
    }

    fn import_with(&self, opts: &ImportOpts) -> ImportReport {
        let report = bring_in(&self.rig, &[self.path("")], opts);
        assert!(report.is_complete() && report.changed.is_empty(), "{report:?}");
        report
    }

    fn import(&self) -> ImportReport {
        self.import_with(&ImportOpts::default())
    }

    fn reread(&self) -> ImportReport {
        self.import_with(&ImportOpts { reread: true, ..ImportOpts::default() })
    }

    /// The source's directory in an import.
    fn content(&self, report: &ImportReport) -> Content {
        at(&self.rig, report, &self.path("")).content
    }

    fn comes_back(&self, report: &ImportReport) {
        let dest = tempfile::tempdir().unwrap();
        let (dest, entry) = (dest.path().join("dest"), at(&self.rig, report, &self.path("")));
        let done = restore(self.rig.engine.packs.as_ref(), &entry, &dest, &RestoreOpts::default(), &|_| ());
        assert!(done.unwrap().is_complete());
        assert_same(&scan(&self.path("")), &scan(&dest));
    }
}

/// Files of a directory that differ, whatever names they have.
fn files(top: &Path) -> u64 {
    let mut inodes = std::collections::BTreeSet::new();
    let mut dirs = vec![top.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let meta = entry.as_ref().unwrap().metadata().unwrap();
            if meta.is_dir() {
                dirs.push(entry.unwrap().path());
            } else if meta.is_file() {
                inodes.insert(meta.ino());
            }
        }
    }
    inodes.len() as u64
}

#[test]
fn what_did_not_change_is_not_read_and_is_the_same_as_if_it_had_been() {
    let source = Source::new(41);
    let first = source.import();
    assert_eq!(first.unchanged, 0);
    assert!(matches!(at(&source.rig, &first, &source.path("many chunks")).content, Content::ExtentTree(_)));
    let before = source.rig.engine.packs.stats();
    let second = source.import();
    assert_eq!(second.unchanged, files(&source.path("")));
    let after = source.rig.engine.packs.stats();
    // Directories and lists of extents are put again; no data is. Others write in the directories above.
    assert!(after.dedup_bytes - before.dedup_bytes < 100_000, "{before:?} {after:?}");
    assert!(after.stored_bytes - before.stored_bytes < 10_000, "{before:?} {after:?}");
    let third = source.reread();
    assert_eq!(third.unchanged, 0);
    let all = source.rig.engine.packs.stats();
    assert!(all.dedup_bytes - after.dedup_bytes > 1 << 20, "{after:?} {all:?}");
    assert!(all.stored_bytes - after.stored_bytes < 10_000, "{after:?} {all:?}");
    assert_eq!(source.content(&first), source.content(&second));
    assert_eq!(source.content(&second), source.content(&third));
    assert_eq!(first.counts, second.counts);
    source.comes_back(&second);
    super::testing::fsck(&source.rig.disk, "an import of what did not change");
}

#[test]
fn whatever_changes_is_read() {
    let source = Source::new(42);
    source.import();
    let all = files(&source.path(""));
    // The same length, and mtime put back: ctime tells.
    let hidden = source.path("many chunks");
    let mtime = std::fs::metadata(&hidden).unwrap();
    let file = std::fs::File::options().write(true).open(&hidden).unwrap();
    file.write_all_at(b"other bytes", 500_000).unwrap();
    drop(file);
    set_times(&hidden, mtime.mtime(), mtime.mtime_nsec());
    assert_eq!(std::fs::metadata(&hidden).unwrap().mtime_nsec(), mtime.mtime_nsec());
    // Another file of that name.
    std::fs::write(source.path("new"), noise(77, 4096)).unwrap();
    std::fs::rename(source.path("new"), source.path("dir/size 4096")).unwrap();
    // Short ones stand in their directory.
    std::fs::write(source.path("-rf"), "?rf").unwrap();
    // Attributes: it is read again, though its bytes are the same.
    set_times(&source.path("text"), 77, 0);
    let report = source.import();
    assert_eq!(report.unchanged, all - 4);
    assert_eq!(source.content(&report), source.content(&source.reread()));
    source.comes_back(&report);
}

/// A file that changed a moment ago may change again in the same moment, and times would not show it. As far as this
/// machine's clock tells, that goes for all whose times are in the future.
#[test]
fn what_may_change_without_a_trace_is_read_by_the_next_import() {
    let source = Source::new(43);
    let all = files(&source.path(""));
    let (later, before) = (source.rig.env.now(), Time { secs: 1_000_000_000, nanos: 0 });
    let import = |clock: Time| {
        source.rig.env.set_clock(clock);
        let report = source.import();
        source.comes_back(&report);
        (report.unchanged, at(&source.rig, &report, &source.path("text")).ino, source.content(&report))
    };
    let (read, again) = (import(before), import(before));
    assert_eq!((read.0, &again), (0, &read), "not even at the same moment");
    let settled = import(later);
    assert!(settled.0 == 0 && settled.1 != read.1, "{settled:?} {read:?}");
    assert_eq!(import(later), (all, settled.1, settled.2.clone()));
    // A clock that is set back, and set right again.
    assert_eq!([import(before), import(before)], [read.clone(), read]);
    assert_eq!(import(later), (all, settled.1, settled.2));
}

/// A chunk that new data would not be left out for is no reason to leave a file out either.
#[test]
fn what_can_not_be_relied_on_is_stored_again() {
    let source = Source::new(44);
    source.import();
    let packs = &source.rig.engine.packs;
    let all: Vec<_> = packs.closed_packs().unwrap().into_iter().map(|pack| pack.name).collect();
    assert!(all.len() > 2);
    for name in &all {
        packs.condemn(name).unwrap();
    }
    let report = source.import();
    let short = ["dir/size 0", "hole"].map(|name| at(&source.rig, &report, &source.path(name)).content);
    assert_eq!(short, [Content::Empty, Content::Empty]);
    // Trees of condemned packs can still be read: what they say is taken over, but no chunk of theirs is.
    packs.forget_all(&all).unwrap();
    source.comes_back(&report);
    // Where not even the trees are there, all is read.
    let trees: Vec<_> = packs.closed_packs().unwrap().into_iter().map(|pack| pack.name).collect();
    for name in &trees {
        packs.condemn(name).unwrap();
    }
    packs.forget_all(&trees).unwrap();
    let report = source.import();
    assert_eq!(report.unchanged, 0);
    source.comes_back(&report);
}

#[test]
fn only_imports_of_this_host_and_this_directory_count() {
    let source = Source::new(45);
    let of = |host: &str| ImportOpts { host: host.into(), ..ImportOpts::default() };
    let all = files(&source.path(""));
    source.import_with(&of("one"));
    assert_eq!(source.import_with(&of("other")).unchanged, 0);
    assert_eq!(source.import_with(&of("one")).unchanged, all);
    // One that has nothing of it comes between.
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("file"), "x").unwrap();
    bring_in(&source.rig, &[elsewhere.path().into()], &of("one"));
    assert_eq!(source.import_with(&of("one")).unchanged, all);
    // A part of it, and it as a part of more.
    let dir = source.path("dir");
    assert_eq!(bring_in(&source.rig, std::slice::from_ref(&dir), &of("one")).unchanged, files(&dir));
    let both = [source.path(""), elsewhere.path().into()];
    assert_eq!(bring_in(&source.rig, &both, &of("one")).unchanged, all + 1);
    // A directory of another name holds nothing that is known.
    std::fs::rename(source.path("dir"), source.path("moved")).unwrap();
    let report = source.import_with(&of("one"));
    assert!(report.unchanged < all && report.unchanged > 0);
    source.comes_back(&report);
}
