//! The mount, through the kernel: what POSIX programs see, and how mounting and unmounting behave as processes.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::common::{Sandbox, require_fuse, require_root};

fn mounted() -> (Sandbox, PathBuf) {
    require_fuse();
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let root = sandbox.mountpoint();
    (sandbox, root)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn mount_line(root: &Path) -> Option<String> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines().find(|line| line.split(' ').nth(4) == root.to_str()).map(str::to_string)
}

fn write_all(path: &Path, data: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(data).unwrap();
}

/// A command as an unprivileged user, with the kernel's checks applying to it.
fn as_nobody(args: &[&str]) -> std::process::Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).args(args);
    command.output().expect("setpriv (util-linux)")
}

#[test]
fn the_mount_has_its_type_its_source_and_safe_options() {
    require_root();
    let (sandbox, root) = mounted();
    let line = mount_line(&root).expect("mounted");
    let (fields, rest) = line.split_once(" - ").unwrap();
    assert!(rest.starts_with("fuse.strongroom "), "{line}");
    assert!(rest.contains(sandbox.vault().to_str().unwrap()), "{line}");
    assert!(rest.contains("allow_other") && rest.contains("default_permissions"), "{line}");
    assert!(fields.contains("nodev") && fields.contains("nosuid"), "{line}");
    sandbox.umount();
    assert!(mount_line(&root).is_none());
    sandbox.mount_with(&["-o", "dev,suid,noexec,noatime,fsname=backup,x-systemd.automount,_netdev"]);
    let line = mount_line(&root).expect("mounted");
    assert!(line.contains("noexec") && line.contains("noatime") && line.contains(" backup "), "{line}");
    assert!(!line.contains("nodev") && !line.contains("nosuid"), "{line}");
    // The vault is found although the table names something else.
    sandbox.umount();
    assert!(mount_line(&root).is_none());
}

#[test]
fn unknown_options_are_refused_before_anything_happens() {
    let sandbox = Sandbox::with_vault();
    let (vault, root) = (sandbox.str("encrypted"), sandbox.str("decrypted"));
    let text = sandbox.run(["mount", &vault, &root, "--passfile", &sandbox.passfile(), "-o", "r0"]).fails(2);
    assert!(text.contains("unknown mount option `r0`") && text.contains("allow_other"), "{text}");
    let text =
        sandbox.run(["mount", &vault, &root, "--passfile", &sandbox.passfile(), "-o", "fsname=a,b"]).fails(2);
    assert!(text.contains("unknown mount option `b`"), "{text}");
}

#[test]
fn unusable_mountpoints_are_refused() {
    let sandbox = Sandbox::with_vault();
    let (vault, passfile) = (sandbox.str("encrypted"), sandbox.passfile());
    let mount = |at: &str| sandbox.run(["mount", &vault, at, "--passfile", &passfile]);
    assert!(mount(&sandbox.str("nowhere")).fails(21).contains("does not exist"));
    assert!(mount(&passfile).fails(21).contains("not a directory"));
    assert!(mount(&vault).fails(21).contains("the vault itself"));
    assert!(mount(&sandbox.str("")).fails(21).contains("lies inside"));
    fs::write(sandbox.path("decrypted/old"), "x").unwrap();
    assert!(mount(&sandbox.str("decrypted")).fails(21).contains("--nonempty"));
    require_fuse();
    sandbox.mount_with(&["--nonempty"]);
    assert!(!sandbox.path("decrypted/old").exists());
    sandbox.umount();
    assert!(sandbox.path("decrypted/old").exists());
}

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
fn listing_answers_while_writers_wait_for_room() {
    let (sandbox, root) = mounted();
    write_all(&root.join("seen"), b"x");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..12_u64)
        .map(|i| {
            let (path, stop) = (root.join(format!("w{i}")), stop.clone());
            std::thread::spawn(move || {
                let mut file = File::create(path).unwrap();
                let mut block = vec![0_u8; 1 << 20];
                let mut seed = i * 7_919 + 1;
                for _ in 0..64 {
                    for word in block.chunks_exact_mut(8) {
                        seed = seed
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        word.copy_from_slice(&seed.to_le_bytes());
                    }
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    file.write_all(&block).unwrap();
                }
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for i in 0..40 {
        let start = Instant::now();
        assert!(!root.join(format!("missing{i}")).exists());
        assert!(fs::read_dir(&root).unwrap().count() > 0);
        slowest = slowest.max(start.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(slowest < Duration::from_secs(2), "a listing took {slowest:?}");
    sandbox.umount();
}

#[test]
fn a_second_mount_is_refused_and_names_the_holder() {
    let (sandbox, _root) = mounted();
    let pid = sandbox.daemon_pid();
    fs::create_dir(sandbox.path("mnt2")).unwrap();
    let args = ["mount", &sandbox.str("encrypted"), &sandbox.str("mnt2"), "--passfile", &sandbox.passfile()];
    let text = sandbox.run(args).fails(16);
    assert!(text.contains(&pid.to_string()), "{text}");
    sandbox.umount();
    sandbox.run(args).ok();
    sandbox.run(["umount", &sandbox.str("mnt2")]).ok();
}

#[test]
fn plain_umount_and_wait_miss_nothing() {
    require_root();
    let (sandbox, root) = mounted();
    for round in 0..5_u8 {
        let data = vec![round; 3_000_000];
        fs::write(root.join("f"), &data).unwrap();
        sandbox.tool("umount", [root.to_str().unwrap()]).ok();
        sandbox.run(["wait", sandbox.vault_str()]).ok();
        sandbox.mount();
        assert!(fs::read(root.join("f")).unwrap() == data, "round {round}");
    }
    // And a command right behind it waits by itself.
    fs::write(root.join("g"), b"last").unwrap();
    sandbox.tool("umount", [root.to_str().unwrap()]).ok();
    sandbox.mount();
    assert_eq!(fs::read(root.join("g")).unwrap(), b"last");
    sandbox.umount();
}

fn holder_in(dir: &Path) -> Child {
    let child = Command::new("sleep").arg("60").current_dir(dir).stdin(Stdio::null()).spawn().unwrap();
    let cwd = PathBuf::from(format!("/proc/{}/cwd", child.id()));
    until("the child's directory", || fs::read_link(&cwd).is_ok_and(|at| at == dir));
    child
}

#[test]
fn a_busy_mount_is_not_unmounted_and_the_user_is_named() {
    let (sandbox, root) = mounted();
    fs::create_dir(root.join("d")).unwrap();
    let mut child = holder_in(&root.join("d"));
    let text = sandbox.run(["umount", &sandbox.str("decrypted")]).fails(23);
    assert!(text.contains(&child.id().to_string()) && text.contains("sleep"), "{text}");
    assert!(mount_line(&root).is_some());
    // Lazily: gone from the tree at once, finished when the last user is.
    sandbox.run(["umount", "--lazy", &sandbox.str("decrypted")]).ok();
    assert!(mount_line(&root).is_none());
    child.kill().unwrap();
    child.wait().unwrap();
    sandbox.run(["wait", sandbox.vault_str(), "--timeout", "30s"]).ok();
    sandbox.mount();
    assert!(root.join("d").is_dir());
    sandbox.umount();
}

#[test]
fn signals_unmount_cleanly() {
    for signal in ["TERM", "INT"] {
        let (sandbox, root) = mounted();
        fs::write(root.join("f"), signal).unwrap();
        let pid = sandbox.daemon_pid();
        sandbox.tool("kill", [&format!("-{signal}"), &pid.to_string()]).ok();
        until("unmounted", || mount_line(&root).is_none());
        sandbox.run(["wait", sandbox.vault_str()]).ok();
        let status = sandbox.run(["status", sandbox.vault_str(), "--json"]).json();
        assert_eq!(status["last_unmount_clean"], true, "{status}");
        sandbox.mount();
        assert_eq!(fs::read_to_string(root.join("f")).unwrap(), signal);
        sandbox.umount();
    }
}

#[test]
fn a_second_signal_cuts_off_those_who_still_use_the_mount() {
    let (sandbox, root) = mounted();
    fs::create_dir(root.join("d")).unwrap();
    let mut writing = File::create(root.join("d/written")).unwrap();
    writing.write_all(&[5; 100_000]).unwrap();
    let mut child = holder_in(&root.join("d"));
    let pid = sandbox.daemon_pid();
    let process = PathBuf::from(format!("/proc/{pid}"));
    sandbox.tool("kill", ["-TERM", &pid.to_string()]).ok();
    std::thread::sleep(Duration::from_millis(500));
    assert!(process.exists() && mount_line(&root).is_some(), "open files keep it for a while");
    sandbox.tool("kill", ["-TERM", &pid.to_string()]).ok();
    until("the daemon is gone", || !process.exists());
    assert!(mount_line(&root).is_none());
    child.kill().unwrap();
    child.wait().unwrap();
    drop(writing);
    let status = sandbox.run(["status", sandbox.vault_str(), "--json"]).json();
    assert_eq!(status["last_unmount_clean"], true, "{status}");
    sandbox.mount();
    assert!(
        fs::read(root.join("d/written")).unwrap() == [5; 100_000],
        "what was written before the cut is kept"
    );
    sandbox.umount();
}

#[test]
fn the_foreground_serves_until_interrupted() {
    require_fuse();
    let sandbox = Sandbox::with_vault();
    let root = sandbox.mountpoint();
    let mut child = sandbox
        .strongroom()
        .args([
            "mount",
            "-f",
            sandbox.vault_str(),
            &sandbox.str("decrypted"),
            "--passfile",
            &sandbox.passfile(),
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("mounted", || mount_line(&root).is_some() && root.join(".snapshots").exists());
    fs::write(root.join("f"), b"x").unwrap();
    sandbox.tool("kill", ["-INT", &child.id().to_string()]).ok();
    assert!(child.wait().unwrap().success());
    assert!(mount_line(&root).is_none());
}

#[test]
fn a_killed_daemon_leaves_a_mount_that_the_next_one_cleans_up() {
    let (sandbox, root) = mounted();
    let mut file = File::create(root.join("synced")).unwrap();
    file.write_all(b"safe").unwrap();
    file.sync_all().unwrap();
    drop(file);
    let pid = sandbox.daemon_pid();
    sandbox.tool("kill", ["-KILL", &pid.to_string()]).ok();
    until("dead", || fs::metadata(&root).is_err());
    assert_eq!(fs::metadata(&root).unwrap_err().raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    assert_eq!(sandbox.run(["is-mounted", &sandbox.str("decrypted")]).code, 21);
    let status = sandbox.run(["status", sandbox.vault_str(), "--json"]);
    assert_eq!(status.code, 21, "{}", status.stdout);
    sandbox.mount();
    assert_eq!(fs::read(root.join("synced")).unwrap(), b"safe");
    sandbox.umount();
}

#[test]
fn unused_mounts_go_by_themselves() {
    require_fuse();
    let sandbox = Sandbox::with_vault();
    sandbox.mount_with(&["--idle", "2s"]);
    let root = sandbox.mountpoint();
    let file = File::create(root.join("f")).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert!(mount_line(&root).is_some(), "an open file is use");
    drop(file);
    until("unmounted", || mount_line(&root).is_none());
    sandbox.run(["wait", sandbox.vault_str()]).ok();
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let (sandbox, root) = mounted();
    write_all(&root.join("f"), b"x");
    sandbox.umount();
    sandbox.mount_with(&["--read-only"]);
    assert_eq!(fs::read(root.join("f")).unwrap(), b"x");
    for error in [
        File::create(root.join("g")).unwrap_err(),
        fs::remove_file(root.join("f")).unwrap_err(),
        fs::create_dir(root.join("d")).unwrap_err(),
        OpenOptions::new().append(true).open(root.join("f")).unwrap_err(),
        fs::set_permissions(root.join("f"), fs::Permissions::from_mode(0o600)).unwrap_err(),
    ] {
        assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    }
    sandbox.umount();
}

#[test]
fn the_daemon_keeps_nothing_of_its_parent() {
    let sandbox = Sandbox::with_vault();
    require_fuse();
    let leak = sandbox.private_file("leak", b"x");
    let script = format!(
        "exec 7<{} 8>{}; exec {} mount {} {} --passfile {}",
        leak.display(),
        sandbox.path("leak2").display(),
        env!("CARGO_BIN_EXE_strongroom"),
        sandbox.vault_str(),
        sandbox.str("decrypted"),
        sandbox.passfile()
    );
    sandbox.sh(&script).ok();
    let pid = sandbox.daemon_pid();
    let open: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect();
    assert!(!open.iter().any(|path| path.starts_with(&leak)), "{open:?}");
    assert!(!open.iter().any(|path| path.ends_with("leak2")), "{open:?}");
    for fd in 0..3 {
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap(), Path::new("/dev/null"));
    }
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    // A session of its own, and no secret where others can see it.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(3).unwrap().to_string();
    assert_eq!(session, pid.to_string());
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap();
        let secret = crate::common::PASSPHRASE.as_bytes();
        assert!(!text.windows(secret.len()).any(|w| w == secret), "{file} shows the passphrase");
    }
    sandbox.umount();
}

#[test]
fn a_wrong_passphrase_fails_in_the_parent() {
    let sandbox = Sandbox::with_vault();
    let args = ["mount", "-S", sandbox.vault_str(), &sandbox.str("decrypted")];
    sandbox.run_with_input(args, b"wrong\n").fails(11);
    assert!(mount_line(&sandbox.mountpoint()).is_none());
}

/// Everybody may open /dev/fuse, as udev has it on ordinary systems; taken back when dropped.
struct OpenDevice(fs::Permissions);

impl OpenDevice {
    fn new() -> Self {
        let before = fs::metadata("/dev/fuse").unwrap().permissions();
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
        Self(before)
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        fs::set_permissions("/dev/fuse", self.0.clone()).unwrap();
    }
}

#[test]
fn an_unprivileged_user_can_mount() {
    require_root();
    require_fuse();
    let _device = OpenDevice::new();
    if fs::metadata("/usr/bin/fusermount3").is_err() {
        panic!("fusermount3 is needed by this test: install fuse3");
    }
    let sandbox = Sandbox::with_vault();
    sandbox.sh("chmod 755 . && chown -R 65534:65534 encrypted decrypted state enc.txt").ok();
    let strongroom = env!("CARGO_BIN_EXE_strongroom");
    let state = format!("STATE_DIRECTORY={}", sandbox.str("state"));
    let (vault, root, passfile) = (sandbox.str("encrypted"), sandbox.str("decrypted"), sandbox.passfile());
    let run = |args: &[&str]| {
        let mut all = vec!["env", &state, strongroom];
        all.extend_from_slice(args);
        as_nobody(&all)
    };
    let done = run(&["mount", &vault, &root, "--passfile", &passfile]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let script = format!(
        "dd if=/dev/zero of={root}/f bs=10k count=300 2>/dev/null && touch -d 2001-01-01 {root}/f && stat -c %Y {root}/f"
    );
    let done = as_nobody(&["sh", "-c", &script]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(mount_line(Path::new(&root)).unwrap().contains("fuse.strongroom"));
    let done = run(&["umount", &root]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let done = run(&["mount", &vault, &root, "--passfile", &passfile]);
    assert!(done.status.success());
    let done = as_nobody(&["stat", "-c", "%s %Y", &format!("{root}/f")]);
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "3072000 978307200");
    assert!(run(&["umount", &root]).status.success());
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
