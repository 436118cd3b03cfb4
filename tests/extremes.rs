//! The far ends of what a filesystem is asked: sizes, counts, depths, and the open flags that few programs use.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;

use crate::common::{Rng, Sandbox, kill_9, require_fuse};

fn mounted() -> Sandbox {
    require_fuse();
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    sandbox
}

/// Everything is found again by another daemon, and the vault is sound.
fn remount(sandbox: &Sandbox) {
    sandbox.umount();
    sandbox.mount();
}

fn end(sandbox: &Sandbox) {
    sandbox.umount();
    sandbox.assert_clean();
}

#[test]
fn heavy_extremes_sparse_file_beyond_4_tib() {
    const FAR: u64 = (4 << 40) + (1 << 39) + 12_345;
    const MIDDLE: u64 = 1 << 41;
    let sandbox = mounted();
    let path = sandbox.mountpoint().join("sparse");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(b"last byte", FAR).unwrap();
    file.write_all_at(b"first", 0).unwrap();
    file.write_all_at(&[7; 5_000], MIDDLE).unwrap();
    let check = |file: &File, holes_of: u64| {
        assert_eq!(file.metadata().unwrap().len(), FAR + 9);
        let seek = |whence| rustix::fs::seek(file, whence);
        // Data begins and ends at least where something was written, at most a block around it.
        assert_eq!(seek(SeekFrom::Data(0)), Ok(0));
        let hole = seek(SeekFrom::Hole(0)).unwrap();
        assert!((5..=holes_of).contains(&hole), "{hole}");
        let data = seek(SeekFrom::Data(hole)).unwrap();
        assert!(data <= MIDDLE && data + holes_of > MIDDLE, "{data}");
        let hole = seek(SeekFrom::Hole(MIDDLE)).unwrap();
        assert!(hole >= MIDDLE + 5_000 && hole < MIDDLE + 5_000 + holes_of, "{hole}");
        let data = seek(SeekFrom::Data(hole)).unwrap();
        assert!(data <= FAR && data + holes_of > FAR, "{data}");
        assert_eq!(seek(SeekFrom::Hole(FAR)), Ok(FAR + 9), "the end counts as a hole");
        assert_eq!(seek(SeekFrom::Data(FAR + 9)), Err(Errno::NXIO));
        let mut got = [1; 20];
        assert_eq!(file.read_at(&mut got, FAR - 5).unwrap(), 14);
        assert_eq!(&got[..14], b"\0\0\0\0\0last byte");
        assert_eq!(file.read_at(&mut got, MIDDLE + 4_990).unwrap(), 20);
        assert_eq!(got, [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    };
    check(&file, 4096);
    file.sync_all().unwrap();
    check(&file, 4096);
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20, "holes take no room");
    drop(file);
    remount(&sandbox);
    check(&File::open(&path).unwrap(), 4096);
    // The largest size there is, and beyond.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let largest =
        (0..63).map(|bit| 1_u64 << bit).take_while(|len| file.set_len(*len).is_ok()).last().unwrap();
    assert_eq!(largest, 1 << 62);
    assert_eq!(file.metadata().unwrap().len(), largest);
    file.set_len(i64::MAX as u64).unwrap();
    assert_eq!(file.metadata().unwrap().len(), i64::MAX as u64);
    let error = file.write_at(b"xx", i64::MAX as u64 - 1).map(|written| assert_eq!(written, 1));
    assert!(
        error.is_ok()
            || error.is_err_and(|e| matches!(e.kind(), ErrorKind::FileTooLarge | ErrorKind::InvalidInput))
    );
    drop(file);
    fs::remove_file(&path).unwrap();
    end(&sandbox);
}

/// The kernel asks for data and holes without sending first what it still holds; found with Python's `os.lseek`.
#[test]
fn heavy_extremes_seek_sees_what_was_just_written() {
    let sandbox = mounted();
    let path = sandbox.mountpoint().join("open");
    let mut file = File::create_new(&path).unwrap();
    let data = Rng::new(5).bytes(700_000);
    file.write_all(&data).unwrap();
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)), Ok(0));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)), Ok(700_000));
    // As a backup finds a log that is being written: cp(1) and tar(1) copy only what is called data.
    file.set_len(5_000_000).unwrap();
    file.write_all_at(b"tail", 4_500_000).unwrap();
    sandbox.sh("cp --sparse=auto decrypted/open copy; tar --sparse -C decrypted -cf - open | tar -xf -").ok();
    let expected = fs::read(&path).unwrap();
    assert!(expected[..700_000] == data && &expected[4_500_000..4_500_004] == b"tail");
    assert!(fs::read(sandbox.path("copy")).unwrap() == expected, "cp");
    assert!(fs::read(sandbox.path("open")).unwrap() == expected, "tar");
    // Many at once, each with unsent data: none may wait for the others for ever.
    std::thread::scope(|scope| {
        for n in 0..24_u64 {
            let path = sandbox.mountpoint().join(format!("many{n}"));
            scope.spawn(move || {
                let mut file = File::create_new(path).unwrap();
                for round in 1..=20_u64 {
                    file.write_all(&Rng::new(n).bytes(100_000)).unwrap();
                    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)), Ok(round * 100_000));
                    rustix::fs::seek(&file, SeekFrom::End(0)).unwrap();
                }
            });
        }
    });
    drop(file);
    end(&sandbox);
}

#[test]
fn heavy_extremes_65000_hard_links() {
    const LINKS: u64 = 65_000;
    let sandbox = mounted();
    let dir = sandbox.mountpoint().join("links");
    fs::create_dir(&dir).unwrap();
    let file = dir.join("file");
    fs::write(&file, "linked").unwrap();
    for n in 1..LINKS {
        rustix::fs::link(&file, dir.join(n.to_string())).unwrap();
    }
    let ino = fs::metadata(&file).unwrap().ino();
    let check = || {
        let meta = fs::metadata(dir.join((LINKS / 2).to_string())).unwrap();
        assert_eq!((meta.nlink(), meta.ino()), (LINKS, ino));
        assert_eq!(
            fs::read_dir(&dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect::<std::collections::HashSet<_>>()
                .len() as u64,
            LINKS
        );
    };
    check();
    fs::write(dir.join("1"), "changed through one").unwrap();
    remount(&sandbox);
    check();
    assert_eq!(fs::read(dir.join((LINKS - 1).to_string())).unwrap(), b"changed through one");
    for n in 1..LINKS {
        rustix::fs::unlink(dir.join(n.to_string())).unwrap();
    }
    assert_eq!(fs::metadata(&file).unwrap().nlink(), 1);
    assert_eq!(fs::read(&file).unwrap(), b"changed through one");
    end(&sandbox);
}

#[test]
fn heavy_extremes_depth_1000_and_long_names() {
    const DEPTH: usize = 1_000;
    let sandbox = mounted();
    let name = "n".repeat(255);
    let dir_flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = || rustix::fs::open(sandbox.mountpoint(), dir_flags, Mode::empty()).unwrap();
    let enter = |dir: &OwnedFd, name: &str| rustix::fs::openat(dir, name, dir_flags, Mode::empty());
    let mut dir = root();
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o755)).unwrap();
        dir = enter(&dir, &name).unwrap();
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut leaf = File::from(rustix::fs::openat(&dir, "leaf", flags, Mode::from_raw_mode(0o644)).unwrap());
    leaf.write_all(b"deep down").unwrap();
    drop((leaf, dir));

    remount(&sandbox);
    let mut dir = root();
    for _ in 0..DEPTH {
        dir = enter(&dir, &name).unwrap();
    }
    let leaf = rustix::fs::openat(&dir, "leaf", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert_eq!(std::io::read_to_string(File::from(leaf)).unwrap(), "deep down");
    // And up again.
    for _ in 0..DEPTH {
        dir = enter(&dir, "..").unwrap();
    }
    assert_eq!(rustix::fs::fstat(&dir).unwrap().st_ino, fs::metadata(sandbox.mountpoint()).unwrap().ino());
    drop(dir);
    // Programs manage, too: it is found by walking, copied out of a snapshot, and removed.
    let found = sandbox.sh("find decrypted -name leaf -printf '%d %s\\n'").ok();
    assert_eq!(found.trim(), format!("{} 9", DEPTH + 1));
    sandbox.run(["snapshot", "create", sandbox.vault_str()]).ok();
    sandbox.keyed(&["restore", sandbox.vault_str(), "latest", "--to", &sandbox.str("restored")]).ok();
    assert_eq!(sandbox.sh("find restored -name leaf -printf '%d %s\\n'").ok(), found);
    sandbox.sh("rm -r decrypted/n* restored").ok();
    assert_eq!(fs::read_dir(sandbox.mountpoint()).unwrap().count(), 0);

    for (len, expected) in [(255, None), (256, Some(Errno::NAMETOOLONG)), (1_000, Some(Errno::NAMETOOLONG))] {
        let path = sandbox.mountpoint().join("x".repeat(len));
        let made = fs::write(&path, "x").err().and_then(|error| error.raw_os_error());
        assert_eq!(made, expected.map(Errno::raw_os_error), "{len} bytes");
    }
    // Bytes, not characters: all but a slash and NUL.
    use std::os::unix::ffi::OsStrExt;
    let odd: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    fs::write(sandbox.mountpoint().join(OsStr::from_bytes(&odd)), "odd").unwrap();
    let names: Vec<_> =
        fs::read_dir(sandbox.mountpoint()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().any(|name| name.as_bytes() == odd), "{names:?}");
    end(&sandbox);
}

#[test]
fn heavy_extremes_xattrs_up_to_the_kernels_limits() {
    let sandbox = mounted();
    let path = sandbox.mountpoint().join("file");
    fs::write(&path, "x").unwrap();
    let set = |name: &str, value: &[u8]| rustix::fs::setxattr(&path, name, value, XattrFlags::empty());
    let value = Rng::new(3).bytes(65_536);
    set("user.largest", &value).unwrap();
    assert_eq!(set("user.larger", &[0; 65_537]), Err(Errno::TOOBIG));
    set(&format!("user.{}", "n".repeat(250)), b"long name").unwrap();
    assert_eq!(set(&format!("user.{}", "n".repeat(251)), b""), Err(Errno::RANGE));
    assert_eq!(set("nospace.x", b""), Err(Errno::OPNOTSUPP));
    set("user.empty", b"").unwrap();
    remount(&sandbox);
    let mut got = vec![0; 65_536];
    assert_eq!(rustix::fs::getxattr(&path, "user.largest", &mut got[..]), Ok(65_536));
    assert!(got == value);
    assert_eq!(rustix::fs::getxattr(&path, "user.largest", &mut got[..100]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::getxattr(&path, "user.empty", &mut got[..]), Ok(0));
    assert_eq!(rustix::fs::getxattr(&path, "user.none", &mut got[..]), Err(Errno::NODATA));
    // A list may have 64 KiB: names are taken until it would be longer, and the list stays readable.
    let mut count = 0;
    let refused = loop {
        match set(&format!("user.{count:0250}"), b"") {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 1_000, "no limit");
    };
    assert!(matches!(refused, Errno::NOSPC | Errno::TOOBIG), "{refused:?}");
    assert!(count > 200, "{count}");
    let mut list = vec![0; 65_536];
    let len = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
    assert_eq!(list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).count(), count + 3);
    end(&sandbox);
}

#[test]
fn heavy_extremes_open_files_without_a_name() {
    let sandbox = mounted();
    let dir = sandbox.mountpoint();
    let mut rng = Rng::new(1);
    let mut open: Vec<(File, Vec<u8>)> = Vec::new();
    for n in 0..200_usize {
        let path = dir.join(format!("gone{n}"));
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        let bytes = rng.bytes(n * 1_000);
        file.write_all(&bytes[..bytes.len() / 2]).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.write_all(&bytes[bytes.len() / 2..]).unwrap();
        open.push((file, bytes));
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    sandbox.run(["snapshot", "create", sandbox.vault_str(), "--force"]).ok();
    for (file, bytes) in &open {
        let mut got = vec![0; bytes.len()];
        file.read_exact_at(&mut got, 0).unwrap();
        assert!(got == *bytes);
        // No way back to a name.
        let link = rustix::fs::linkat(
            CWD,
            format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)),
            CWD,
            dir.join("back"),
            AtFlags::SYMLINK_FOLLOW,
        );
        assert_eq!(link, Err(Errno::NOENT));
    }
    drop(open);
    end(&sandbox);
}

#[test]
fn heavy_extremes_append_from_several_processes() {
    const PROCESSES: usize = 4;
    const RECORDS: usize = 1_500;
    let sandbox = mounted();
    let script = format!(
        "import os, random, sys\n\
         who = int(sys.argv[1]); rng = random.Random(who)\n\
         fd = os.open('decrypted/log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n\
         for n in range({RECORDS}):\n\
         \x20   record = b'%d:%d:' % (who, n) + bytes([97 + who]) * rng.randrange(3000) + b'\\n'\n\
         \x20   assert os.write(fd, record) == len(record)\n"
    );
    fs::write(sandbox.path("append.py"), script).unwrap();
    let mut children: Vec<_> = (0..PROCESSES)
        .map(|who| {
            sandbox.command("python3").arg(sandbox.path("append.py")).arg(who.to_string()).spawn().unwrap()
        })
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    remount(&sandbox);
    let text = fs::read_to_string(sandbox.mountpoint().join("log")).unwrap();
    let mut next = [0; PROCESSES];
    for record in text.lines() {
        let mut fields = record.splitn(3, ':');
        let who: usize = fields.next().unwrap().parse().unwrap();
        assert_eq!(
            fields.next().unwrap().parse::<usize>().unwrap(),
            next[who],
            "a record of {who} is lost or out of order"
        );
        next[who] += 1;
        let fill = char::from(b'a' + u8::try_from(who).unwrap());
        assert!(fields.next().unwrap().chars().all(|c| c == fill), "a torn record of {who}");
    }
    assert_eq!(next, [RECORDS; PROCESSES]);
    end(&sandbox);
}

#[test]
fn heavy_extremes_sync_flags_and_direct_io() {
    let sandbox = mounted();
    let dir = sandbox.mountpoint();
    let flag = |flags: OFlags| i32::try_from(flags.bits()).unwrap();
    let open = |name: &str, flags: OFlags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flag(flags))
            .open(dir.join(name))
            .unwrap()
    };
    let data = Rng::new(8).bytes(100_000);
    for (name, flags) in [("sync", OFlags::SYNC), ("dsync", OFlags::DSYNC)] {
        let mut file = open(name, flags);
        for part in data.chunks(10_000) {
            file.write_all(part).unwrap();
        }
    }
    // Aligned and not: the kernel's FUSE takes both.
    let direct = open("direct", OFlags::DIRECT);
    let padded = [&[0; 4096][..], &data].concat();
    let aligned = padded.as_ptr().align_offset(4096).min(4096);
    direct.write_all_at(&padded[aligned..aligned + 81_920], 0).unwrap();
    let mut expected = padded[aligned..aligned + 81_920].to_vec();
    direct.write_all_at(b"in the middle", 5_001).unwrap();
    expected[5_001..5_014].copy_from_slice(b"in the middle");
    // What goes around the cache and what goes through it see each other.
    let cached = open("direct", OFlags::empty());
    let mut got = vec![0; expected.len()];
    cached.read_exact_at(&mut got, 0).unwrap();
    assert!(got == expected);
    cached.write_all_at(b"through the cache", 40_000).unwrap();
    expected[40_000..40_017].copy_from_slice(b"through the cache");
    direct.read_exact_at(&mut got, 0).unwrap();
    assert!(got == expected);
    direct.sync_all().unwrap();
    // A shared mapping, synced, and seen by a reader and in the file.
    let script = "import mmap, os\n\
        fd = os.open('decrypted/mapped', os.O_RDWR | os.O_CREAT)\n\
        os.ftruncate(fd, 300000)\n\
        m = mmap.mmap(fd, 300000)\n\
        m[123456:123462] = b'mapped'\n\
        assert os.pread(fd, 6, 123456) == b'mapped'\n\
        os.pwrite(fd, b'written', 200000)\n\
        assert m[200000:200007] == b'written'\n\
        m.flush()\n\
        private = mmap.mmap(fd, 4096, flags=mmap.MAP_PRIVATE)\n\
        private[0:7] = b'private'\n\
        assert os.pread(fd, 7, 0) == bytes(7)\n";
    sandbox.tool("python3", ["-c", script]).ok();
    // All of this was promised to be durable.
    drop((direct, cached));
    kill_9(sandbox.daemon_pid());
    sandbox.mount();
    assert!(fs::read(dir.join("sync")).unwrap() == data);
    assert!(fs::read(dir.join("dsync")).unwrap() == data);
    assert!(fs::read(dir.join("direct")).unwrap() == expected);
    let mapped = fs::read(dir.join("mapped")).unwrap();
    assert_eq!(
        (mapped.len(), &mapped[123_456..123_462], &mapped[200_000..200_007]),
        (300_000, &b"mapped"[..], &b"written"[..])
    );
    assert_eq!(mapped[..7], [0; 7]);
    end(&sandbox);
}
