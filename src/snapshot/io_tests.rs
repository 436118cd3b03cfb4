//! Import and restore against a real filesystem, and comparisons of trees. Devices, owners and trusted
//! attributes are tried as root only.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps};

use super::Idle;
use super::create::{SnapshotOpts, create, has_changes};
use super::delete::{DeleteOpts, delete};
use super::diff::{Change, DiffStats, What, diff};
use super::import::{ImportError, ImportOpts, ImportReport, import};
use super::os::{ACL_ACCESS, ACL_DEFAULT, Place};
use super::restore::{Overwrite, RestoreOpts, restore};
use super::testing::{MemStore, Rig, entry, noise};
use super::tree::TreeReader;
use super::write::{ContentWriter, DirWriter};
use crate::format::{ChunkId, Content, Entry, Extent, FileType};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An access ACL: owner rwx, user 1234 r, group r-x, mask r-x, others nothing.
fn acl() -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1u16, 7u16, u32::MAX), (2, 4, 1234), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    acl
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

pub(super) fn set_times(path: &Path, secs: i64, nanos: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// One of everything.
pub(super) fn build(root: &Path) {
    let put = |name: &[u8], bytes: &[u8]| {
        let path = root.join(OsStr::from_bytes(name));
        std::fs::write(&path, bytes).unwrap();
        path
    };
    for dir in ["dir", "dir/sub", "empty", "locked"] {
        std::fs::create_dir(root.join(dir)).unwrap();
    }
    for len in [0, 1, 4095, 4096, 4097, 70_000, 300_000] {
        put(format!("dir/size {len}").as_bytes(), &noise(len as u64, len));
    }
    put(b"text", "the same line again\n".repeat(9_000).as_bytes());
    for name in [&b"not utf8 \xff\xfe"[..], b"new\nline", b" blank ", b"-rf", b"*", &[b'n'; 255]] {
        put(name, name);
    }
    put(b"locked/file", b"in a directory that can't be written");
    // Holes: before, between and after data; and nothing but a hole.
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(&noise(1, 10_000), 1 << 20).unwrap();
    sparse.write_all_at(&noise(2, 10_000), 3 << 20).unwrap();
    sparse.set_len(5 << 20).unwrap();
    std::fs::File::create(root.join("hole")).unwrap().set_len(64 << 20).unwrap();
    std::fs::hard_link(root.join("dir/size 70000"), root.join("dir/sub/second name")).unwrap();
    std::fs::hard_link(root.join("dir/size 70000"), root.join("third name")).unwrap();
    std::os::unix::fs::symlink("dir/size 1", root.join("link")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    std::fs::hard_link(root.join("dangling"), root.join("dangling twin")).unwrap();
    let node = |name: &str, kind, dev| {
        rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_bits_truncate(0o640), dev).unwrap();
    };
    node("fifo", rustix::fs::FileType::Fifo, 0);
    node("socket", rustix::fs::FileType::Socket, 0);
    set_xattr(&root.join("text"), "user.comment", b"a value");
    set_xattr(&root.join("text"), "user.empty", b"");
    set_xattr(&root.join("dir"), "user.on a directory", &[0, 255, 7]);
    set_xattr(&root.join("dir/size 1"), ACL_ACCESS, &acl());
    set_xattr(&root.join("dir/sub"), ACL_DEFAULT, &acl());
    if is_root() {
        node("null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        node("disk", rustix::fs::FileType::BlockDevice, rustix::fs::makedev(259, 70_000));
        set_xattr(&root.join("text"), "trusted.t", b"root only");
        set_xattr(&root.join("link"), "trusted.on a link", b"x");
        let owner =
            |name: &str, uid, gid| std::os::unix::fs::lchown(root.join(name), Some(uid), Some(gid)).unwrap();
        owner("dir", 1000, 1001);
        owner("text", 4_000_000_000, 5);
        owner("link", 3, 4);
        owner("fifo", 33, 33);
        owner("dir/size 4096", 1000, 1000);
    }
    let mode = |name: &str, mode| {
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("dir/size 4096", 0o4751);
    mode("dir/size 4097", 0o2000);
    mode("dir/sub", 0o1777);
    mode("empty", 0o2775);
    mode("locked/file", 0o000);
    mode("locked", 0o500);
    set_times(&root.join("dangling"), -5, 999_999_999);
    set_times(&root.join("dir/size 0"), 4_000_000_000, 1);
    for dir in ["dir/sub", "dir", "empty", "locked"] {
        set_times(&root.join(dir), 1_000_000_000, 123_456_789);
    }
}

type Scan = BTreeMap<Vec<u8>, String>;

/// Describes everything below a directory, so that two of them can be compared.
pub(super) fn scan(root: &Path) -> Scan {
    let mut out = Scan::new();
    let mut links: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(dir) = todo.pop() {
        let at = root.join(OsStr::from_bytes(&dir));
        let mut names: Vec<_> = std::fs::read_dir(&at).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        let fd = std::fs::File::open(&at).unwrap();
        for name in names {
            let mut path = dir.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            let full = root.join(OsStr::from_bytes(&path));
            let meta = std::fs::symlink_metadata(&full).unwrap();
            let kind = meta.mode() & 0o170_000;
            let content = match kind {
                0o100_000 => blake3::hash(&std::fs::read(&full).unwrap()).to_hex().to_string(),
                0o120_000 => format!("{:?}", std::fs::read_link(&full).unwrap()),
                0o020_000 | 0o060_000 => format!("{:x}", meta.rdev()),
                _ => String::new(),
            };
            let first = if meta.nlink() > 1 && kind != 0o040_000 {
                links.entry(meta.ino()).or_insert_with(|| path.clone()).clone()
            } else {
                path.clone()
            };
            let xattrs = Place::Name(fd.as_fd(), name.as_bytes()).xattrs().unwrap();
            out.insert(
                path.clone(),
                format!(
                    "{:o} {} {} size {} mtime {}.{} first {} {content} {xattrs:?}",
                    meta.mode(),
                    meta.uid(),
                    meta.gid(),
                    if kind == 0o040_000 { 0 } else { meta.size() },
                    meta.mtime(),
                    meta.mtime_nsec(),
                    super::show(&first),
                ),
            );
            if kind == 0o040_000 {
                todo.push(path);
            }
        }
    }
    out
}

pub(super) fn assert_same(a: &Scan, b: &Scan) {
    for path in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
        assert_eq!(a.get(path), b.get(path), "{}", super::show(path));
    }
}

pub(super) fn bring_in(rig: &Rig, sources: &[PathBuf], opts: &ImportOpts) -> ImportReport {
    import(&rig.engine, sources, opts, &|_| ()).unwrap()
}

/// Returns what stands at a path of this machine in an import.
pub(super) fn at(rig: &Rig, report: &ImportReport, path: &Path) -> Entry {
    let root = &report.snapshot.as_ref().unwrap().root.entry;
    TreeReader::new(rig.engine.packs.as_ref()).resolve(root, path.as_os_str().as_bytes()).unwrap()
}

#[test]
fn everything_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (source, dest) = (dir.path().join("source"), dir.path().join("new/dest"));
    std::fs::create_dir(&source).unwrap();
    build(&source);
    set_times(&source, 1_234_567_890, 7);
    let before = scan(&source);
    let rig = Rig::new(31);
    let report = bring_in(&rig, std::slice::from_ref(&source), &ImportOpts::default());
    assert!(report.is_complete() && report.changed.is_empty(), "{report:?}");
    super::testing::fsck(&rig.disk, "an import");
    let info = report.snapshot.as_ref().unwrap();
    let entries = |files, dirs, others| files + dirs + others;
    assert_eq!(
        entries(info.root.files, info.root.dirs, info.root.others),
        entries(report.counts.files, report.counts.dirs, report.counts.others) + 1
    );
    let entry = at(&rig, &report, &source);
    let (entries, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let restored = restore(rig.engine.packs.as_ref(), &entry, &dest, &RestoreOpts::default(), &|p| {
        entries.fetch_max(p.entries, Ordering::Relaxed);
        bytes.fetch_max(p.bytes, Ordering::Relaxed);
    })
    .unwrap();
    assert!(restored.is_complete() && restored.warnings.is_empty(), "{restored:?}");
    assert_same(&before, &scan(&dest));
    assert_eq!(restored.files + restored.dirs + restored.others + restored.links, before.len() as u64);
    assert_eq!(restored.links, 3, "two of a file, one of a symbolic link");
    assert_eq!((entries.into_inner(), bytes.into_inner()), (before.len() as u64, restored.bytes));
    assert_eq!(restored.bytes, info.root.bytes, "each name counts");
    let meta = std::fs::metadata(&dest).unwrap();
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec()),
        (1_234_567_890, 7),
        "the destination was made, so it is restored too"
    );
    let blocks = |name: &str| std::fs::metadata(dest.join(name)).unwrap().blocks();
    assert_eq!(blocks("hole"), 0);
    assert!(blocks("sparse") * 512 < 100_000, "holes are holes again: {}", blocks("sparse"));
    // Reading it from packs alone, on a machine without live state, gives the same.
    let cold = super::open::open_cold(
        std::sync::Arc::new(rig.disk.clone()),
        &rig.unlocked,
        &rig.chain(),
        &[info.seq],
        1 << 20,
    )
    .unwrap();
    let again = dir.path().join("again");
    let report = restore(&cold, &entry, &again, &RestoreOpts::default(), &|_| ()).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_same(&before, &scan(&again));
}

#[test]
fn an_import_repeated_stores_nothing_anew() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path());
    let rig = Rig::new(32);
    let first = bring_in(&rig, &[dir.path().into()], &ImportOpts::default());
    let stored = rig.engine.packs.stats().stored_bytes;
    // Reading changed access times, so the tree objects differ; the data does not.
    let reread = ImportOpts { reread: true, ..ImportOpts::default() };
    let second = bring_in(&rig, &[dir.path().into()], &reread);
    assert_eq!(second.unchanged, 0);
    assert!(rig.engine.packs.stats().stored_bytes - stored < 50_000);
    let reader = TreeReader::new(rig.engine.packs.as_ref());
    let roots = [&first, &second].map(|r| r.snapshot.as_ref().unwrap().root.entry.clone());
    let mut found = Vec::new();
    diff(&reader, &roots[0], &reader, &roots[1], &mut |item| {
        found.push(item.path);
        Ok(())
    })
    .unwrap();
    assert!(found.is_empty(), "{found:?}");
    assert!(rig.chain().is_whole());
    assert_eq!(rig.chain().snapshots().count(), 2);
}

/// Files that change after the import began, when they may have been read ahead already.
#[test]
fn what_changes_under_an_import_is_taken_as_it_is_when_its_turn_comes() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    let path = |name: &str| base.join(name);
    for name in ["a first", "b grows", "c gone", "d turned", "e new content", "f twin"] {
        std::fs::write(path(name), "before").unwrap();
    }
    std::fs::hard_link(path("f twin"), path("g twin")).unwrap();
    for n in 0..400 {
        std::fs::write(path(&format!("many {n:03}")), n.to_string()).unwrap();
    }
    let rig = Rig::new(34);
    let began = std::cell::Cell::new(false);
    // The first call comes while the first file is being read.
    let report = import(&rig.engine, std::slice::from_ref(&base), &ImportOpts::default(), &|_| {
        if began.replace(true) {
            return;
        }
        // Those who read ahead had their time.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(path("a first"), "longer than before").unwrap();
        std::fs::write(path("b grows"), noise(1, 20_000)).unwrap();
        std::fs::remove_file(path("c gone")).unwrap();
        std::fs::remove_file(path("d turned")).unwrap();
        std::os::unix::fs::symlink("elsewhere", path("d turned")).unwrap();
        std::fs::write(path("e new content"), "after!").unwrap();
        std::fs::write(path("f twin"), "after!").unwrap();
        std::fs::remove_file(path("many 399")).unwrap();
    })
    .unwrap();
    assert!(report.is_complete(), "{report:?}");
    let changed: Vec<_> = report.changed.iter().map(|c| (Path::new(&c.path), c.what.as_str())).collect();
    let (as_read, vanished) = (
        "changed while it was read; it is in the snapshot as it was read",
        "vanished before it was read; it is not in the snapshot",
    );
    let paths = ["a first", "c gone", "many 399"].map(path);
    assert_eq!(
        changed,
        [(&*paths[0], as_read), (&*paths[1], vanished), (&*paths[2], vanished)],
        "in the order of the names"
    );
    let content = |name: &str| at(&rig, &report, &path(name)).content;
    let inline = |bytes: &[u8]| Content::Inline(bytes.to_vec());
    assert_eq!(content("a first"), inline(b"before"));
    assert_eq!(at(&rig, &report, &path("b grows")).size, 20_000);
    assert_eq!(content("d turned"), Content::Symlink(b"elsewhere".to_vec()));
    assert_eq!(content("e new content"), inline(b"after!"));
    let twins = ["f twin", "g twin"].map(|name| at(&rig, &report, &path(name)));
    assert_eq!((twins[0].ino, &twins[0].content), (twins[1].ino, &inline(b"after!")));
    assert_eq!(twins[0].content, twins[1].content);
    for n in 0..399 {
        assert_eq!(content(&format!("many {n:03}")), inline(n.to_string().as_bytes()));
    }
    let dest = dir.path().join("dest");
    let back = restore(
        rig.engine.packs.as_ref(),
        &at(&rig, &report, &base),
        &dest,
        &RestoreOpts::default(),
        &|_| (),
    )
    .unwrap();
    assert!(back.is_complete(), "{back:?}");
    assert_eq!(std::fs::read(dest.join("b grows")).unwrap(), noise(1, 20_000));
}

#[test]
fn sources_keep_their_paths_and_patterns_their_root() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    for path in ["a/keep", "a/skip/deep", "a/x/skip.log", "b/c/file", "b/other", "vault"] {
        let path = base.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "x").unwrap();
    }
    std::os::unix::fs::symlink("b/c", base.join("to c")).unwrap();
    let rig = Rig::new(33);
    let opts = ImportOpts {
        excludes: vec!["/skip".into(), "*.log".into(), "/b".into()],
        tags: vec!["t".into()],
        skip: vec![base.join("a/x")],
        ..ImportOpts::default()
    };
    let sources = [base.join("a"), base.join("to c"), base.join("missing"), base.join("b/c/file")];
    let report = bring_in(&rig, &sources, &opts);
    assert_eq!(report.excluded, 2, "{report:?}");
    assert_eq!(report.errors.len(), 1);
    assert!(report.errors[0].path.ends_with("missing") && !report.is_complete());
    let root = &report.snapshot.as_ref().unwrap().root.entry;
    let reader = TreeReader::new(rig.engine.packs.as_ref());
    let paths: Vec<String> =
        reader.walk(root).map(|i| format!("/{}", super::show(&i.unwrap().path))).collect();
    let below: Vec<&str> = paths.iter().filter_map(|p| p.strip_prefix(base.to_str().unwrap())).collect();
    assert_eq!(below, ["", "/a", "/a/keep", "/b", "/b/c", "/b/c/file"]);
    let none = import(&rig.engine, &[base.join("missing")], &opts, &|_| ());
    assert!(matches!(none, Err(ImportError::Nothing(_))));
    let bad = ImportOpts { excludes: vec!["[".into()], ..ImportOpts::default() };
    assert!(matches!(import(&rig.engine, &sources, &bad, &|_| ()), Err(ImportError::Pattern(_))));
    assert_eq!(rig.chain().snapshots().count(), 1, "neither made a snapshot");
}

#[test]
fn what_happens_elsewhere_leaves_a_directory_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    for name in ["a", "b", "c"] {
        std::fs::create_dir(base.join(name)).unwrap();
        for n in 0..20 {
            std::fs::write(base.join(name).join(format!("{n}")), noise(n, 100 + 40 * n as usize)).unwrap();
        }
    }
    let rig = Rig::new(35);
    let ids = |opts: &ImportOpts| {
        let report = bring_in(&rig, std::slice::from_ref(&base), opts);
        assert!(report.is_complete() && report.changed.is_empty(), "{report:?}");
        ["a", "b", "c"].map(|name| at(&rig, &report, &base.join(name)).content)
    };
    let (plain, with_atime) = (ImportOpts::default(), ImportOpts { atime: true, ..ImportOpts::default() });
    let first = ids(&plain);
    let first_with = ids(&with_atime);
    // One comes, one goes, and somebody reads all of c.
    std::fs::write(base.join("a/0 new"), "new").unwrap();
    std::fs::remove_file(base.join("a/7")).unwrap();
    for n in 0..20 {
        let path = base.join("c").join(n.to_string());
        let long_ago = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
        let kept = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let times = Timestamps { last_access: long_ago, last_modification: kept };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let stored = rig.engine.packs.stats().chunks;
    let second = ids(&plain);
    assert_ne!(first[0], second[0]);
    assert_eq!(first[1], second[1]);
    // utimensat changed ctime as well, which is kept: what is known of c is still that nothing but it differs.
    let names = ["0", "19"].map(|name| base.join("c").join(name));
    let report = bring_in(&rig, std::slice::from_ref(&base), &plain);
    for name in &names {
        let entry = at(&rig, &report, name);
        assert_eq!(entry.atime, entry.mtime);
    }
    assert!(rig.engine.packs.stats().chunks > stored, "a is written anew");
    let second_with = ids(&with_atime);
    assert_eq!(first_with[1], second_with[1]);
    let report = bring_in(&rig, std::slice::from_ref(&base), &with_atime);
    assert!(names.iter().all(|name| at(&rig, &report, name).atime.secs == 1_000_000_000));
}

/// What a changed file costs the next day does not grow with what its neighbours hold.
#[test]
fn short_files_are_not_stored_again_with_their_directory() {
    let content = |n: u64, day: u64| noise(n + 1000 * day, 1500);
    let cost = |rig: &Rig, store: &mut dyn FnMut()| {
        let before = rig.engine.packs.stats().plain_bytes;
        store();
        rig.engine.packs.stats().plain_bytes - before
    };
    let dir = tempfile::tempdir().unwrap();
    for n in 0..60 {
        std::fs::write(dir.path().join(n.to_string()), content(n, 0)).unwrap();
    }
    let rig = Rig::new(37);
    let source = || bring_in(&rig, &[dir.path().into()], &ImportOpts::default());
    assert!(cost(&rig, &mut || drop(source())) > 60 * 1500);
    std::fs::write(dir.path().join("5"), content(5, 1)).unwrap();
    let second = cost(&rig, &mut || drop(source()));
    assert!((1500..20_000).contains(&second), "{second}");
    // The working tree keeps them in its rows, its snapshots don't.
    let rig = Rig::new(38);
    let tree = rig.tree();
    for n in 0..60 {
        tree.write(&n.to_string(), &content(n, 0), 4096).unwrap();
    }
    let mut snap = || assert!(create(&rig.engine, &Idle, &SnapshotOpts::default()).unwrap().is_some());
    assert!(cost(&rig, &mut snap) > 60 * 1500);
    tree.write("5", &content(5, 1), 4096).unwrap();
    let second = cost(&rig, &mut snap);
    assert!((1500..20_000).contains(&second), "{second}");
}

/// A mount that fails, or is only looked at, must not put an empty snapshot before what was imported.
#[test]
fn a_working_tree_that_was_never_used_makes_no_snapshot_after_an_import() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let rig = Rig::new(36);
    bring_in(&rig, &[dir.path().into()], &ImportOpts::default());
    let create =
        |force| create(&rig.engine, &Idle, &SnapshotOpts { force, ..SnapshotOpts::default() }).unwrap();
    assert!(!has_changes(&rig.engine, &Idle).unwrap() && create(false).is_none());
    assert_eq!(create(true).map(|info| info.seq), Some(2), "asked for, it is made");
    rig.tree().mkdir("used").unwrap();
    assert!(has_changes(&rig.engine, &Idle).unwrap() && create(false).is_some());
    // The snapshots of a tree that is in use may go; it is still not one that was never used. Nor is one that begins with
    // such a snapshot, though nothing of it was looked at yet.
    rig.engine.close().unwrap();
    let copy = rig.disk.fork();
    for path in copy.raw_list().iter().filter(|path| path.starts_with("live/")) {
        copy.raw_remove(path);
    }
    let clone = rig.on(copy, 9).unwrap();
    for rig in [rig.on(rig.disk.fork(), 10).unwrap(), clone] {
        let gone: Vec<u64> = rig.chain().snapshots().map(|info| info.seq).filter(|seq| *seq > 1).collect();
        delete(&rig.engine, &gone, &DeleteOpts { force: true, ..DeleteOpts::default() }).unwrap();
        assert!(has_changes(&rig.engine, &Idle).unwrap());
        let again = super::create::create(&rig.engine, &Idle, &SnapshotOpts::default()).unwrap().unwrap();
        assert!(rig.read_cold(again.seq).unwrap().contains_key("used"));
    }
}

/// A tree in memory: what `files` say, and directory `d` with one more.
fn in_memory(store: &MemStore, files: &[(&str, Content, u64)]) -> Entry {
    let mut writer = DirWriter::new(store);
    for (n, (name, content, size)) in files.iter().enumerate() {
        let kind = match content {
            Content::Dir(_) => FileType::Dir,
            Content::Symlink(_) => FileType::Symlink,
            Content::None => FileType::Fifo,
            _ => FileType::File,
        };
        let size = if kind == FileType::File { *size } else { 0 };
        writer.push(Entry { size, ..entry(name, kind, n as u64 + 2, content.clone()) }).unwrap();
    }
    let dir = writer.finish().unwrap();
    Entry { name: Vec::new(), ..entry("x", FileType::Dir, 1, Content::Dir(dir)) }
}

fn extents(parts: &[(u64, ChunkId, u64)]) -> Content {
    let extent = |(offset, chunk, len): &(u64, ChunkId, u64)| Extent {
        offset: *offset,
        len: *len,
        chunk: *chunk,
        chunk_offset: 0,
    };
    Content::Extents(parts.iter().map(extent).collect())
}

#[test]
fn what_cannot_be_read_is_reported_and_not_left_behind() {
    let store = MemStore::default();
    let good = store.put(&noise(1, 100));
    let gone = ChunkId([9; 32]);
    let inner = in_memory(&store, &[("fine", Content::Inline(b"x".to_vec()), 1)]);
    let Content::Dir(inner) = inner.content else { unreachable!() };
    let tree = in_memory(
        &store,
        &[
            ("a whole", extents(&[(0, good, 100)]), 100),
            ("b half", extents(&[(0, good, 100), (100, gone, 100)]), 200),
            ("c beyond", extents(&[(0, good, 101)]), 101),
            ("d no tree", Content::ExtentTree(gone), 10),
            ("e no dir", Content::Dir(gone), 0),
            ("f dir", Content::Dir(inner), 0),
        ],
    );
    let dir = tempfile::tempdir().unwrap();
    let report = restore(&store, &tree, dir.path(), &RestoreOpts::default(), &|_| ()).unwrap();
    let failed: Vec<&str> = report.errors.iter().map(|e| e.path.as_str()).collect();
    assert_eq!(failed, ["b half", "c beyond", "d no tree", "e no dir"], "{report:?}");
    assert!(!report.is_complete());
    let mut there: Vec<_> = scan(dir.path()).into_keys().map(|p| super::show(&p)).collect();
    there.sort();
    assert_eq!(there, ["a whole", "e no dir", "f dir", "f dir/fine"]);
    assert_eq!(std::fs::read(dir.path().join("a whole")).unwrap(), noise(1, 100));
}

#[test]
fn what_is_there_stays_unless_it_may_be_replaced() {
    let store = MemStore::default();
    let inner = in_memory(&store, &[("file", Content::Inline(b"new".to_vec()), 3)]);
    let Content::Dir(inner) = inner.content else { unreachable!() };
    let tree = in_memory(
        &store,
        &[
            ("dir", Content::Dir(inner), 0),
            ("file", Content::Inline(b"new".to_vec()), 3),
            ("link", Content::Symlink(b"new".to_vec()), 0),
            ("planted", Content::Dir(inner), 0),
            ("target", Content::Inline(b"new".to_vec()), 3),
        ],
    );
    let dir = tempfile::tempdir().unwrap();
    let (dest, outside) = (dir.path().join("dest"), dir.path().join("outside"));
    std::fs::create_dir_all(dest.join("dir")).unwrap();
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::create_dir(dest.join("target")).unwrap();
    std::fs::write(dest.join("file"), "old").unwrap();
    std::os::unix::fs::symlink("old", dest.join("link")).unwrap();
    std::os::unix::fs::symlink(&outside, dest.join("planted")).unwrap();
    std::fs::set_permissions(&dest, std::fs::Permissions::from_mode(0o701)).unwrap();
    let dry = RestoreOpts { dry_run: true, ..RestoreOpts::default() };
    let before = scan(dir.path());
    let report = restore(&store, &tree, &dest, &dry, &|_| ()).unwrap();
    assert_same(&before, &scan(dir.path()));
    assert!(report.dry_run && report.errors.len() >= 3, "{report:?}");
    let report = restore(&store, &tree, &dest, &RestoreOpts::default(), &|_| ()).unwrap();
    let failed: Vec<&str> = report.errors.iter().map(|e| e.path.as_str()).collect();
    assert_eq!(failed, ["file", "link", "planted", "target"]);
    assert_eq!(std::fs::read(dest.join("file")).unwrap(), b"old");
    assert_eq!(std::fs::read(dest.join("dir/file")).unwrap(), b"new");
    assert_eq!(scan(&outside).len(), 0, "a planted link led nowhere");
    assert_eq!(
        std::fs::metadata(&dest).unwrap().mode() & 0o7777,
        0o701,
        "an existing destination keeps its mode"
    );
    let replace = RestoreOpts { overwrite: Overwrite::Replace, ..RestoreOpts::default() };
    let report = restore(&store, &tree, &dest, &replace, &|_| ()).unwrap();
    let failed: Vec<&str> = report.errors.iter().map(|e| e.path.as_str()).collect();
    assert_eq!(failed, ["target"], "a directory is never replaced by a file: {report:?}");
    assert_eq!(std::fs::read(dest.join("file")).unwrap(), b"new");
    assert_eq!(std::fs::read_link(dest.join("link")).unwrap(), Path::new("new"));
    assert!(std::fs::symlink_metadata(dest.join("planted")).unwrap().is_dir());
    assert_eq!(scan(&outside).len(), 0);
    assert_eq!(std::fs::metadata(dest.join("dir")).unwrap().mode() & 0o7777, 0o755);
    // Again, over what is now all there.
    let report = restore(&store, &tree, &dest, &replace, &|_| ()).unwrap();
    assert_eq!(report.errors.len(), 1);
    // A failed replacement leaves the old file, and no other.
    let gone = in_memory(&store, &[("file", extents(&[(0, ChunkId([9; 32]), 100)]), 100)]);
    let before = scan(&dest);
    let report = restore(&store, &gone, &dest, &replace, &|_| ()).unwrap();
    assert_eq!(report.errors.len(), 1);
    let names = |scan: &Scan| scan.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before), names(&scan(&dest)));
    assert_eq!(std::fs::read(dest.join("file")).unwrap(), b"new");
    // One file alone becomes an entry of the destination.
    let one = Entry { size: 5, ..entry("single", FileType::File, 9, Content::Inline(b"alone".to_vec())) };
    let report = restore(&store, &one, &dest.join("deeper/still"), &RestoreOpts::default(), &|_| ()).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(std::fs::read(dest.join("deeper/still/single")).unwrap(), b"alone");
}

#[test]
fn an_acl_of_the_destination_is_not_inherited() {
    let store = MemStore::default();
    let tree = in_memory(&store, &[("file", Content::Inline(b"x".to_vec()), 1)]);
    let Content::Dir(inner) = tree.content else { unreachable!() };
    let tree = in_memory(&store, &[("dir", Content::Dir(inner), 0)]);
    let dir = tempfile::tempdir().unwrap();
    set_xattr(dir.path(), ACL_DEFAULT, &acl());
    let report = restore(&store, &tree, dir.path(), &RestoreOpts::default(), &|_| ()).unwrap();
    assert!(report.is_complete(), "{report:?}");
    for path in ["dir", "dir/file"] {
        let path = dir.path().join(path);
        let xattrs = Place::Name(CWD, path.as_os_str().as_bytes());
        // An absolute path replaces the directory before it.
        assert_eq!(
            rustix::fs::llistxattr(&path, &mut [0u8; 0]).unwrap(),
            0,
            "{}: {xattrs:?}",
            path.display()
        );
    }
    assert_eq!(std::fs::metadata(dir.path().join("dir/file")).unwrap().mode() & 0o7777, 0o644);
}

#[test]
fn links_to_a_file_that_fails_are_reported_as_well() {
    let store = MemStore::default();
    let mut writer = DirWriter::new(&store);
    for name in ["a", "b", "c"] {
        let content = extents(&[(0, ChunkId([9; 32]), 5)]);
        writer.push(Entry { nlink: 3, size: 5, ..entry(name, FileType::File, 2, content) }).unwrap();
    }
    for name in ["d", "e", "f"] {
        let content = Content::Inline(b"good".to_vec());
        writer.push(Entry { nlink: 3, size: 4, ..entry(name, FileType::File, 3, content) }).unwrap();
    }
    let root =
        Entry { name: Vec::new(), ..entry("x", FileType::Dir, 1, Content::Dir(writer.finish().unwrap())) };
    let dir = tempfile::tempdir().unwrap();
    let report = restore(&store, &root, dir.path(), &RestoreOpts::default(), &|_| ()).unwrap();
    assert_eq!(report.errors.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!((report.files, report.links), (1, 2));
    assert_eq!(std::fs::metadata(dir.path().join("f")).unwrap().nlink(), 3);
}

#[test]
fn differences_are_found_and_named() {
    let store = MemStore::default();
    let chunk = store.put(&noise(1, 10_000));
    let other = store.put(&noise(2, 10_000));
    let inner = |names: &[&str]| {
        let files: Vec<_> = names.iter().map(|n| (*n, Content::Inline(b"x".to_vec()), 1)).collect();
        match in_memory(&store, &files).content {
            Content::Dir(dir) => Content::Dir(dir),
            _ => unreachable!(),
        }
    };
    let mut pieces = ContentWriter::new(&store);
    let bytes = noise(7, 3000);
    for (n, part) in bytes.chunks(100).enumerate() {
        let chunk = store.put(part);
        pieces
            .push(Extent { offset: n as u64 * 100, len: part.len() as u64, chunk, chunk_offset: 0 })
            .unwrap();
    }
    let pieces = pieces.finish().unwrap();
    let old = in_memory(
        &store,
        &[
            ("changed", extents(&[(0, chunk, 10_000)]), 10_000),
            ("cut elsewhere", Content::Inline(bytes.clone()), 3000),
            ("dir", inner(&["one", "two"]), 0),
            ("gone", inner(&["below"]), 0),
            ("grew", Content::Inline(b"x".to_vec()), 1),
            ("same", inner(&["unread"]), 0),
            ("turned", inner(&["inside"]), 0),
        ],
    );
    let new = in_memory(
        &store,
        &[
            ("changed", extents(&[(0, other, 10_000)]), 10_000),
            ("cut elsewhere", pieces, 3000),
            ("dir", inner(&["two", "zwei"]), 0),
            ("dir two", inner(&["more"]), 0),
            ("grew", Content::Inline(b"x".to_vec()), 2),
            ("same", inner(&["unread"]), 0),
            ("turned", Content::Symlink(b"x".to_vec()), 0),
        ],
    );
    // What is the same is not read.
    let Content::Dir(unread) = inner(&["unread"]) else { unreachable!() };
    store.chunks.lock().unwrap().remove(&unread);
    let reader = TreeReader::new(&store);
    let mut found = Vec::new();
    let stats = diff(&reader, &old, &reader, &new, &mut |item| {
        let what = match item.change {
            Change::Added => "+".to_string(),
            Change::Removed => "-".to_string(),
            // The inode numbers, and so the times of this test, differ: that is not what it is about.
            Change::Modified(What { kind: true, .. }) => "k".to_string(),
            Change::Modified(What { content: true, .. }) => "c".to_string(),
            Change::Modified(_) => return Ok(()),
        };
        found.push(format!("{what} {}", super::show(&item.path)));
        Ok(())
    })
    .unwrap();
    let expected = [
        "c changed",
        "- dir/one",
        "+ dir/zwei",
        "+ dir two",
        "+ dir two/more",
        "- gone",
        "- gone/below",
        "c grew",
        "k turned",
        "- turned/inside",
    ];
    assert_eq!(found, expected);
    assert_eq!((stats.added, stats.removed), (3, 4));
    let same = diff(&reader, &old, &reader, &old, &mut |_| panic!("nothing differs")).unwrap();
    assert_eq!(same, DiffStats::default());
}
