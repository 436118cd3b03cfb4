//! What POSIX programs see of the mount: one or more tests for each line of docs/semantics.md, through the kernel.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::common::require_root;
use crate::mount_basic::{as_nobody, mounted, write_all};

#[test]
fn files_directories_and_links_survive_a_remount() {
    require_root();
    let (sandbox, root) = mounted();
    let big: Vec<u8> = (0..3_000_000_u32).flat_map(|i| i.to_le_bytes()).collect();
    fs::create_dir_all(root.join("a/b")).unwrap();
    write_all(&root.join("a/big"), &big);
    write_all(&root.join("a/b/small"), b"hello");
    write_all(&root.join("empty"), b"");
    std::os::unix::fs::symlink("../target\nwith newline", root.join("a/link")).unwrap();
    fs::hard_link(root.join("a/b/small"), root.join("hard")).unwrap();
    for (name, kind, mode) in
        [("fifo", rustix::fs::FileType::Fifo, 0o600), ("socket", rustix::fs::FileType::Socket, 0o640)]
    {
        rustix::fs::mknodat(CWD, root.join(name), kind, mode.into(), 0).unwrap();
    }
    let dev = rustix::fs::makedev(259, 65_537);
    rustix::fs::mknodat(CWD, root.join("blk"), rustix::fs::FileType::BlockDevice, 0o600.into(), dev).unwrap();
    std::os::unix::fs::chown(root.join("empty"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o4755)).unwrap();
    let before = crate::common::tree_digest(&root);
    sandbox.umount();
    sandbox.mount();
    assert_eq!(crate::common::tree_digest(&root), before);
    assert!(fs::read(root.join("a/big")).unwrap() == big);
    assert_eq!(fs::metadata(root.join("hard")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(root.join("blk")).unwrap().rdev(), dev);
    assert!(fs::metadata(root.join("fifo")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(root.join("empty")).unwrap().uid(), 1234);
    sandbox.umount();
}

#[test]
fn names_have_limits_and_any_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let (sandbox, root) = mounted();
    write_all(&root.join("n".repeat(255)), b"x");
    let error = File::create(root.join("n".repeat(256))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
    let error = fs::metadata(root.join("n".repeat(256))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe\n\t*");
    write_all(&root.join(odd), b"odd");
    assert_eq!(fs::read(root.join(odd)).unwrap(), b"odd");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 2);
    sandbox.umount();
}

#[test]
fn a_name_that_was_missing_appears_when_made() {
    let (sandbox, root) = mounted();
    for _ in 0..3 {
        assert!(!root.join("later").exists());
    }
    write_all(&root.join("later"), b"now");
    assert_eq!(fs::read(root.join("later")).unwrap(), b"now");
    fs::rename(root.join("later"), root.join("renamed")).unwrap();
    assert!(!root.join("later").exists());
    fs::remove_file(root.join("renamed")).unwrap();
    assert!(!root.join("renamed").exists());
    sandbox.umount();
}

#[test]
fn rename_flags() {
    let (sandbox, root) = mounted();
    write_all(&root.join("a"), b"a");
    write_all(&root.join("b"), b"b");
    let rename = |from: &str, to: &str, flags| {
        rustix::fs::renameat_with(CWD, root.join(from), CWD, root.join(to), flags)
    };
    assert_eq!(rename("a", "b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename("a", "b", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(root.join("a")).unwrap(), b"b");
    assert_eq!(rename("a", "missing", RenameFlags::EXCHANGE), Err(Errno::NOENT));
    assert_eq!(rename("a", "b", RenameFlags::WHITEOUT), Err(Errno::INVAL));
    fs::create_dir_all(root.join("d/e")).unwrap();
    assert_eq!(rename("d", "d/e/f", RenameFlags::empty()), Err(Errno::INVAL));
    sandbox.umount();
}

#[test]
fn holes_ranges_and_copies() {
    let (sandbox, root) = mounted();
    let path = root.join("sparse");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(10 << 20).unwrap();
    file.write_all_at(&[7; 8192], 4 << 20).unwrap();
    file.sync_all().unwrap();
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap();
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
    assert!(data <= 4 << 20 && ((4 << 20) + 8192..10 << 20).contains(&hole), "{data} {hole}");
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(hole)), Err(Errno::NXIO));
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20, "a hole takes no room");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 4 << 20, 4096).unwrap();
    let mut back = [1; 8192];
    file.read_exact_at(&mut back, 4 << 20).unwrap();
    assert!(back[..4096].iter().all(|b| *b == 0) && back[4096..].iter().all(|b| *b == 7));
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 11 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 11 << 20);
    let copy = File::create(root.join("copy")).unwrap();
    let (mut from, mut to) = (0, 0);
    while from < 11 << 20 {
        let n = rustix::fs::copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), 11 << 20).unwrap();
        assert!(n > 0);
    }
    assert!(fs::read(&path).unwrap() == fs::read(root.join("copy")).unwrap());
    // An ioctl that regular files don't have.
    assert!(rustix::fs::ioctl_ficlone(&copy, &file).is_err());
    drop((file, copy));
    sandbox.umount();
}

#[test]
fn written_files_do_not_look_empty_of_blocks() {
    // Programs take a file with bytes but no blocks for one hole, and skip its content.
    let (sandbox, root) = mounted();
    write_all(&root.join("f"), &[9; 100_000]);
    let meta = fs::metadata(root.join("f")).unwrap();
    assert!(meta.blocks() * 512 >= 90_000, "{} blocks", meta.blocks());
    sandbox.umount();
}

#[test]
fn unlinked_files_stay_usable_while_open() {
    let (sandbox, root) = mounted();
    let path = root.join("temp");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b" after").unwrap();
    file.sync_all().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before after");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    drop(file);
    sandbox.umount();
}

#[test]
fn append_truncate_and_direct_io() {
    let (sandbox, root) = mounted();
    let path = root.join("log");
    for i in 0..50 {
        let mut file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        writeln!(file, "line {i}").unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 50);
    let file = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    file.write_all_at(b"tail", 100).unwrap();
    drop(file);
    let text = fs::read(&path).unwrap();
    assert!(text.len() == 104 && text[..100].iter().all(|b| *b == 0) && &text[100..] == b"tail");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(50).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(104).unwrap();
    assert!(fs::read(&path).unwrap().iter().all(|b| *b == 0), "what was cut off must not come back");
    sandbox.umount();
}

#[test]
fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
    let (sandbox, root) = mounted();
    let cases = [
        (0, 1),
        (-2, 800_000_000),
        (-1, 0),
        (1_700_000_000, 123_456_789),
        (-10_000_000_000, 5),
        (20_000_000_000, 7),
    ];
    for (i, (secs, nanos)) in cases.into_iter().enumerate() {
        let path = root.join(format!("t{i}"));
        write_all(&path, b"x");
        let time = Timespec { tv_sec: secs, tv_nsec: nanos };
        rustix::fs::utimensat(
            CWD,
            &path,
            &Timestamps { last_access: time, last_modification: time },
            AtFlags::empty(),
        )
        .unwrap();
    }
    let check = || {
        for (i, (secs, nanos)) in cases.into_iter().enumerate() {
            let meta = fs::metadata(root.join(format!("t{i}"))).unwrap();
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (secs, nanos));
            assert_eq!((meta.atime(), meta.atime_nsec()), (secs, nanos));
        }
    };
    check();
    sandbox.umount();
    sandbox.mount();
    check();
    sandbox.umount();
}

#[test]
fn a_late_write_does_not_undo_utimes() {
    // tar and rsync write, then set the time, then close: the kernel's cached mtime must not win.
    let (sandbox, root) = mounted();
    let path = root.join("f");
    let mut file = File::create(&path).unwrap();
    file.write_all(&[1; 200_000]).unwrap();
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 42 };
    rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time }).unwrap();
    drop(file);
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 1_000_000_000);
    sandbox.umount();
    sandbox.mount();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000_000, 42));
    sandbox.umount();
}

#[test]
fn extended_attributes_of_all_kinds() {
    require_root();
    let (sandbox, root) = mounted();
    let path = root.join("f");
    write_all(&path, b"x");
    for name in ["user.note", "trusted.secret", "security.test"] {
        rustix::fs::setxattr(&path, name, name.as_bytes(), XattrFlags::CREATE).unwrap();
        assert_eq!(rustix::fs::setxattr(&path, name, b"", XattrFlags::CREATE), Err(Errno::EXIST));
    }
    assert_eq!(rustix::fs::setxattr(&path, "user.none", b"", XattrFlags::REPLACE), Err(Errno::NODATA));
    rustix::fs::setxattr(&path, "user.empty", b"", XattrFlags::empty()).unwrap();
    let big = vec![b'v'; 65_536];
    rustix::fs::setxattr(&path, "user.big", &big, XattrFlags::empty()).unwrap();
    let mut buf = vec![0; 65_536];
    assert_eq!(rustix::fs::getxattr(&path, "user.big", &mut buf), Ok(65_536));
    assert_eq!(rustix::fs::getxattr(&path, "user.big", &mut buf[..10]), Err(Errno::RANGE));
    let n = rustix::fs::listxattr(&path, &mut buf).unwrap();
    let names = String::from_utf8(buf[..n].to_vec()).unwrap();
    let mut names: Vec<&str> = names.split_terminator('\0').collect();
    names.sort_unstable();
    assert_eq!(names, ["security.test", "trusted.secret", "user.big", "user.empty", "user.note"]);
    let seen = as_nobody(&["getfattr", "--absolute-names", "-m", "-", path.to_str().unwrap()]);
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(!seen.contains("trusted"), "{seen}");
    rustix::fs::removexattr(&path, "user.note").unwrap();
    assert_eq!(rustix::fs::removexattr(&path, "user.note"), Err(Errno::NODATA));
    sandbox.umount();
}

#[test]
fn the_umask_applies_unless_a_default_acl_does() {
    require_root();
    let (sandbox, root) = mounted();
    let script = format!(
        "cd {} && umask 027 && mkdir plain && touch plain/f && mkdir acl && setfacl -d -m u:1234:rwx,g::rx,o::- acl \
         && umask 077 && touch acl/f && mkdir acl/d",
        root.display()
    );
    sandbox.sh(&script).ok();
    let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("plain"), mode("plain/f")), (0o750, 0o640));
    // With a default ACL the umask has no say: the group bits show the mask.
    assert_eq!(mode("acl/f"), 0o660);
    let text = sandbox.tool("getfacl", ["-cn", root.join("acl/f").to_str().unwrap()]).ok();
    assert!(text.contains("user:1234:rwx") && text.contains("mask::rw-"), "{text}");
    let text = sandbox.tool("getfacl", ["-cn", root.join("acl/d").to_str().unwrap()]).ok();
    assert!(text.contains("default:user:1234:rwx"), "{text}");
    // The kernel enforces it.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    sandbox
        .sh(&format!(
            "echo secret > {0}/acl/f; chmod 755 {0}/acl; setfacl -m u:65534:--- {0}/acl/f",
            root.display()
        ))
        .ok();
    let denied = as_nobody(&["cat", root.join("acl/f").to_str().unwrap()]);
    assert!(!denied.status.success());
    sandbox.umount();
}

#[test]
fn others_may_enter_as_far_as_modes_let_them() {
    require_root();
    let (sandbox, root) = mounted();
    fs::set_permissions(sandbox.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    write_all(&root.join("open"), b"for all");
    write_all(&root.join("closed"), b"for root");
    fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o600)).unwrap();
    let open = as_nobody(&["cat", root.join("open").to_str().unwrap()]);
    assert_eq!(open.stdout, b"for all");
    assert!(!as_nobody(&["cat", root.join("closed").to_str().unwrap()]).status.success());
    assert!(!as_nobody(&["touch", root.join("new").to_str().unwrap()]).status.success());
    fs::create_dir(root.join("theirs")).unwrap();
    std::os::unix::fs::chown(root.join("theirs"), Some(65_534), Some(65_534)).unwrap();
    let made =
        as_nobody(&["sh", "-c", &format!("echo x > {0}/theirs/f && cat {0}/theirs/f", root.display())]);
    assert_eq!(made.stdout, b"x\n");
    assert_eq!(fs::metadata(root.join("theirs/f")).unwrap().uid(), 65_534);
    sandbox.umount();
}

#[test]
fn set_user_id_goes_when_others_write_truncate_or_chown() {
    require_root();
    let (sandbox, root) = mounted();
    fs::set_permissions(sandbox.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    let path = root.join("suid");
    let shown = path.to_str().unwrap();
    let arm = || {
        write_all(&path, b"#!/bin/sh\n");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        assert_eq!(mode_of(&path), 0o6777);
    };
    let append = format!("echo x >> {shown}");
    let truncate = format!(": > {shown}");
    for script in [append.as_str(), truncate.as_str()] {
        arm();
        let done = as_nobody(&["sh", "-c", script]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(mode_of(&path), 0o777, "after {script}");
    }
    for script in [format!("truncate -s 3 {shown}"), format!("fallocate -l 5000 {shown}")] {
        arm();
        assert!(as_nobody(&["sh", "-c", &script]).status.success());
        assert_eq!(mode_of(&path), 0o777, "after {script}");
    }
    arm();
    std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
    assert_eq!(mode_of(&path), 0o777, "after chown");
    arm();
    // Root writes: stays, as on other file systems.
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"x").unwrap();
    assert_eq!(mode_of(&path), 0o6777);
    sandbox.umount();
    sandbox.mount();
    assert_eq!(mode_of(&path), 0o6777);
    sandbox.umount();
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn capabilities_go_when_a_file_is_written() {
    require_root();
    let (sandbox, root) = mounted();
    let path = root.join("tool");
    write_all(&path, b"x");
    // cap_net_raw=ep, version 2.
    let caps = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(&path, "security.capability", &caps, XattrFlags::empty()).unwrap();
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"y").unwrap();
    let mut buf = [0; 64];
    assert_eq!(rustix::fs::getxattr(&path, "security.capability", &mut buf), Err(Errno::NODATA));
    sandbox.umount();
}

#[test]
fn memory_maps_are_written_back() {
    let (sandbox, root) = mounted();
    let script = format!(
        "python3 - <<'P'\nimport mmap,os\nf=os.open('{0}/m',os.O_RDWR|os.O_CREAT)\nos.ftruncate(f,1<<20)\nm=mmap.mmap(f,1<<20)\n\
         m[12345:12350]=b'hello'\nm.close()\nos.close(f)\nP",
        root.display()
    );
    sandbox.sh(&script).ok();
    sandbox.umount();
    sandbox.mount();
    let data = fs::read(root.join("m")).unwrap();
    assert_eq!(&data[12_345..12_350], b"hello");
    sandbox.umount();
}

#[test]
fn locks_work_between_processes() {
    let (sandbox, root) = mounted();
    write_all(&root.join("l"), b"");
    let path = root.join("l");
    let held = File::open(&path).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let refused = sandbox.tool("flock", ["-n", path.to_str().unwrap(), "true"]);
    assert_eq!(refused.code, 1);
    drop(held);
    sandbox.tool("flock", ["-n", path.to_str().unwrap(), "true"]).ok();
    sandbox.umount();
}

#[test]
fn special_files_open_through_the_mount() {
    require_root();
    let (sandbox, root) = mounted();
    rustix::fs::mknodat(
        CWD,
        root.join("null"),
        rustix::fs::FileType::CharacterDevice,
        0o666.into(),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    // nodev: what a backup contains does not act on this host.
    let error = OpenOptions::new().write(true).open(root.join("null")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ACCESS.raw_os_error()));
    sandbox.umount();
    sandbox.mount_with(&["-o", "dev"]);
    OpenOptions::new().write(true).open(root.join("null")).unwrap().write_all(b"gone").unwrap();
    sandbox.umount();
}

#[test]
fn names_of_a_hard_linked_file_are_one_file() {
    let (sandbox, root) = mounted();
    write_all(&root.join("a"), b"one");
    fs::create_dir(root.join("d")).unwrap();
    fs::hard_link(root.join("a"), root.join("d/b")).unwrap();
    OpenOptions::new().append(true).open(root.join("d/b")).unwrap().write_all(b" two").unwrap();
    assert_eq!(fs::read(root.join("a")).unwrap(), b"one two");
    let ino = |name: &str| fs::metadata(root.join(name)).unwrap().ino();
    assert_eq!(ino("a"), ino("d/b"));
    assert_eq!(
        fs::hard_link(root.join("d"), root.join("e")).unwrap_err().raw_os_error(),
        Some(Errno::PERM.raw_os_error())
    );
    fs::remove_file(root.join("a")).unwrap();
    assert_eq!(
        (fs::read(root.join("d/b")).unwrap(), fs::metadata(root.join("d/b")).unwrap().nlink()),
        (b"one two".to_vec(), 1)
    );
    sandbox.umount();
}

#[test]
fn links_have_targets_of_4095_bytes() {
    let (sandbox, root) = mounted();
    let target = "t".repeat(4095);
    std::os::unix::fs::symlink(&target, root.join("long")).unwrap();
    assert_eq!(fs::read_link(root.join("long")).unwrap(), Path::new(&target));
    let error = std::os::unix::fs::symlink("t".repeat(4096), root.join("longer")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
    sandbox.umount();
}

#[test]
fn ranges_are_zeroed_but_neither_inserted_nor_collapsed() {
    const K: u64 = 4096;
    let (sandbox, root) = mounted();
    let path = root.join("f");
    let blocks: Vec<u8> = (1..=8u8).flat_map(|n| [n; K as usize]).collect();
    write_all(&path, &blocks);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let change = |flags, at: u64, len: u64| rustix::fs::fallocate(&file, flags, at, len);
    let firsts =
        || -> Vec<u8> { fs::read(&path).unwrap().chunks(K as usize).map(|block| block[0]).collect() };
    change(FallocateFlags::ZERO_RANGE, K, K).unwrap();
    assert_eq!(firsts(), [1, 0, 3, 4, 5, 6, 7, 8]);
    // The kernel's FUSE doesn't pass these on.
    for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(change(flags, 2 * K, 2 * K), Err(Errno::OPNOTSUPP));
    }
    assert_eq!(firsts(), [1, 0, 3, 4, 5, 6, 7, 8]);
    change(FallocateFlags::KEEP_SIZE, 0, 100 * K).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8 * K);
    drop(file);
    sandbox.umount();
}

#[test]
fn direct_io_is_accepted() {
    let (sandbox, root) = mounted();
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let path = root.join("direct");
    let file =
        OpenOptions::new().read(true).write(true).create(true).custom_flags(direct).open(&path).unwrap();
    file.write_all_at(&[5; 8192], 4096).unwrap();
    drop(file);
    let data = fs::read(&path).unwrap();
    assert!(
        data.len() == 12_288 && data[..4096].iter().all(|b| *b == 0) && data[4096..].iter().all(|b| *b == 5)
    );
    sandbox.umount();
}

#[test]
fn private_maps_change_nothing() {
    let (sandbox, root) = mounted();
    write_all(&root.join("m"), &[b'a'; 10_000]);
    let script = format!(
        "python3 - <<'P'\nimport mmap,os\nf=os.open('{0}/m',os.O_RDWR)\n\
         m=mmap.mmap(f,10000,flags=mmap.MAP_PRIVATE)\nassert m[5:8]==b'aaa'\nm[0:4]=b'mine'\nassert m[0:4]==b'mine'\nP",
        root.display()
    );
    sandbox.sh(&script).ok();
    assert!(fs::read(root.join("m")).unwrap() == [b'a'; 10_000]);
    sandbox.umount();
}

#[test]
fn record_locks_work_between_processes() {
    let (sandbox, root) = mounted();
    write_all(&root.join("l"), &[0; 100]);
    let script = format!(
        "python3 - <<'P'\nimport fcntl,os,sys\nf=os.open('{0}/l',os.O_RDWR)\nfcntl.lockf(f,fcntl.LOCK_EX,50,0)\n\
         pid=os.fork()\nif pid==0:\n g=os.open('{0}/l',os.O_RDWR)\n fcntl.lockf(g,fcntl.LOCK_EX|fcntl.LOCK_NB,50,50)\n\
         \x20try:\n  fcntl.lockf(g,fcntl.LOCK_EX|fcntl.LOCK_NB,10,10)\n except OSError: os._exit(7)\n os._exit(1)\n\
         status=os.waitstatus_to_exitcode(os.waitpid(pid,0)[1])\nsys.exit(0 if status==7 else 1)\nP",
        root.display()
    );
    sandbox.sh(&script).ok();
    sandbox.umount();
}

#[test]
fn reading_does_not_change_the_access_time() {
    let (sandbox, root) = mounted();
    let path = root.join("f");
    write_all(&path, b"x");
    let before = fs::metadata(&path).unwrap();
    let later = Timespec { tv_sec: before.mtime() + 100, tv_nsec: 0 };
    let times = Timestamps { last_access: before_access(&before), last_modification: later };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    sandbox.umount();
    sandbox.mount();
    assert_eq!(fs::read(&path).unwrap(), b"x");
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.atime(), after.atime_nsec()), (before.atime(), before.atime_nsec()));
    sandbox.umount();
}

fn before_access(meta: &fs::Metadata) -> Timespec {
    Timespec { tv_sec: meta.atime(), tv_nsec: meta.atime_nsec() }
}

#[test]
fn inode_numbers_stay_and_are_not_reused() {
    let (sandbox, root) = mounted();
    let ino = |name: &str| fs::metadata(root.join(name)).unwrap().ino();
    for name in ["a", "b"] {
        write_all(&root.join(name), name.as_bytes());
    }
    let (a, b) = (ino("a"), ino("b"));
    fs::remove_file(root.join("b")).unwrap();
    sandbox.umount();
    sandbox.mount();
    write_all(&root.join("c"), b"c");
    assert_eq!(ino("a"), a);
    assert!(ino("c") != a && ino("c") != b);
    let listed: Vec<u64> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().ino()).collect();
    assert_eq!(listed, [a, ino("c")]);
    sandbox.umount();
}

#[test]
fn directories_are_listed_in_byte_order_and_what_stays_exactly_once() {
    let (sandbox, root) = mounted();
    let dir = root.join("d");
    fs::create_dir(&dir).unwrap();
    let names: Vec<String> = (0..3000).map(|n| format!("stays-{n:05}")).collect();
    for name in names.iter().rev() {
        write_all(&dir.join(name), b"");
    }
    let mut listing = fs::read_dir(&dir).unwrap();
    let mut seen: Vec<String> = Vec::new();
    let mut number = 0;
    for entry in listing.by_ref() {
        seen.push(entry.unwrap().file_name().into_string().unwrap());
        if seen.len() % 100 == 1 {
            // Before and behind the place that the listing has reached.
            for place in ["a", "stays-01500x", "z"] {
                write_all(&dir.join(format!("{place}-{number}")), b"");
                if number > 0 {
                    fs::remove_file(dir.join(format!("{place}-{}", number - 1))).unwrap();
                }
            }
            number += 1;
        }
    }
    drop(listing);
    assert!(seen.is_sorted(), "byte order");
    let stayed: Vec<&String> = seen.iter().filter(|name| name.len() == "stays-00000".len()).collect();
    assert_eq!(stayed, names.iter().collect::<Vec<_>>());
    sandbox.umount();
}

#[test]
fn free_space_is_never_more_than_the_disk_has() {
    let (sandbox, root) = mounted();
    let free = || {
        let stat = rustix::fs::statvfs(&root).unwrap();
        assert!(stat.f_bavail <= stat.f_bfree && stat.f_bfree <= stat.f_blocks);
        stat.f_bavail * stat.f_frsize
    };
    let under = rustix::fs::statvfs(sandbox.vault().as_path()).unwrap();
    assert!(free() <= under.f_bavail * under.f_frsize, "never more than the disk under the vault has");
    assert!(free() > 0);
    sandbox.umount();
}

#[test]
fn snapshots_are_there_read_only_and_not_listed() {
    let (sandbox, root) = mounted();
    write_all(&root.join("f"), b"first");
    sandbox.umount();
    sandbox.mount();
    write_all(&root.join("f"), b"second");
    let listed: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(listed, ["f"]);
    let snapshot = fs::read_dir(root.join(".snapshots")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read(snapshot.join("f")).unwrap(), b"first");
    let error = OpenOptions::new().write(true).open(snapshot.join("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    assert!(fs::remove_file(snapshot.join("f")).is_err() && File::create(snapshot.join("new")).is_err());
    assert!(fs::create_dir(root.join(".snapshots")).is_err());
    assert!(fs::rename(root.join("f"), root.join(".snapshots")).is_err());
    assert_eq!(fs::read(root.join("f")).unwrap(), b"second");
    sandbox.umount();
}

#[test]
fn unknown_ioctls_are_refused() {
    let (sandbox, root) = mounted();
    write_all(&root.join("f"), b"x");
    let script = format!(
        "python3 - <<'P'\nimport fcntl,errno,os\nf=os.open('{0}/f',os.O_RDWR)\ntry:\n fcntl.ioctl(f,0x5401,bytes(64))\n\
         except OSError as e:\n assert e.errno in (errno.ENOTTY,errno.EOPNOTSUPP),e\nelse: raise SystemExit('accepted')\nP",
        root.display()
    );
    sandbox.sh(&script).ok();
    sandbox.umount();
}
