//! Random operations through the kernel on a mounted vault and on a directory of the host's filesystem: each must answer
//! the same, and both trees must be the same all the time, after every remount, after `kill -9`, and when restored.
//!
//! `STRONGROOM_MODEL=COUNT:SEED:SHOWN` runs as many operations as it says. A failure prints the seed and as many of the last
//! operations as it says.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;

use crate::common::{Rng, Sandbox, kill_9, require_root};
use crate::kernel_survey::{CLOCK_SINCE, Survey, difference, survey};

/// Operations of a usual run.
const COUNT: usize = 10_000;

/// Trees are compared after so many operations.
const COMPARE_EVERY: usize = 250;

/// A tree with more names than this gets no more.
const NAMES_MAX: usize = 70;

/// What an operation answered: something in words, or the errno.
type Answer = Result<String, i32>;

/// The two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Mount,
    Host,
}

/// A file that is open on both sides, perhaps without a name by now.
struct Open {
    mount: File,
    host: File,
    append: bool,
}

impl Open {
    fn on(&self, side: Side) -> &File {
        match side {
            Side::Mount => &self.mount,
            Side::Host => &self.host,
        }
    }
}

/// A vault and a directory with the same content.
struct Pair {
    /// Goes before the sandbox, which unmounts.
    open: Vec<Open>,
    sandbox: Sandbox,
    host: PathBuf,
    rng: Rng,
    /// Relative paths and types of all names, of the host's tree.
    names: Vec<(PathBuf, fs::FileType)>,
    /// All operations, in words.
    log: Vec<String>,
    /// How often each kind of operation succeeded and failed.
    tally: BTreeMap<&'static str, (u64, u64)>,
    step: usize,
}

fn answer<T: ToString>(result: io::Result<T>) -> Answer {
    result
        .map(|value| value.to_string())
        .map_err(|e| e.raw_os_error().unwrap_or_else(|| panic!("no errno: {e}")))
}

fn done<E: Into<io::Error>>(result: Result<(), E>) -> Answer {
    answer(result.map(|()| "done").map_err(Into::into))
}

/// Writes everything at `off`, in as many pieces as it takes.
fn write_at(file: &File, off: u64, data: &[u8]) -> Answer {
    done(file.write_all_at(data, off))
}

fn read_at(file: &File, off: u64, len: usize) -> Answer {
    let mut buf = vec![0; len];
    let mut got = 0;
    while got < len {
        match file.read_at(&mut buf[got..], off + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) => return answer::<String>(Err(e)),
        }
    }
    Ok(format!("{got} bytes, {}", blake3::hash(&buf[..got]).to_hex()))
}

/// fallocate(2), by hand where the filesystem does not have the mode: the kernel's FUSE does not pass on those that shift.
fn fallocate(file: &File, mode: FallocateFlags, off: u64, len: u64) -> Answer {
    match rustix::fs::fallocate(file, mode, off, len) {
        Err(Errno::OPNOTSUPP) => {}
        other => return done(other),
    }
    let size = file.metadata().unwrap().len();
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let (from, to) = (usize::try_from(off).unwrap(), usize::try_from(off + len).unwrap());
    let aligned = off.is_multiple_of(4096) && len.is_multiple_of(4096);
    if mode.contains(FallocateFlags::COLLAPSE_RANGE) {
        if !aligned || to >= bytes.len() {
            return Err(Errno::INVAL.raw_os_error());
        }
        bytes.drain(from..to);
    } else if mode.contains(FallocateFlags::INSERT_RANGE) {
        if !aligned || from >= bytes.len() {
            return Err(Errno::INVAL.raw_os_error());
        }
        bytes.splice(from..from, vec![0; to - from]);
    } else {
        let end = to.min(bytes.len());
        let zeros = mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE);
        if zeros && from < end {
            bytes[from..end].fill(0);
        }
        if !mode.contains(FallocateFlags::KEEP_SIZE) {
            bytes.resize(bytes.len().max(to), 0);
        }
    }
    file.set_len(bytes.len() as u64).unwrap();
    done(file.write_all_at(&bytes, 0))
}

fn copy_range(from: &File, from_off: u64, to: &File, to_off: u64, len: usize) -> Answer {
    let (mut from_at, mut to_at, mut copied) = (from_off, to_off, 0);
    while copied < len {
        match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), len - copied) {
            Ok(0) => break,
            Ok(n) => copied += n,
            Err(e) => return Err(e.raw_os_error()),
        }
    }
    Ok(copied.to_string())
}

impl Pair {
    fn root(&self, side: Side) -> PathBuf {
        match side {
            Side::Mount => self.sandbox.mountpoint(),
            Side::Host => self.host.clone(),
        }
    }

    /// Does the same on both sides. The answers must be equal.
    fn both(&mut self, kind: &'static str, what: String, act: impl Fn(&Pair, Side) -> Answer) {
        self.step += 1;
        self.log.push(format!("{}: {kind} {what}", self.step));
        let (mount, host) = (act(self, Side::Mount), act(self, Side::Host));
        assert_eq!(mount, host, "the mount (left) and the host (right) answer differently");
        let tally = self.tally.entry(kind).or_default();
        if host.is_ok() {
            tally.0 += 1;
        } else {
            tally.1 += 1;
        }
    }

    /// The same on a path of both sides.
    fn at(&mut self, kind: &'static str, path: &Path, what: &str, act: impl Fn(&Path) -> Answer) {
        let text = format!("{} {what}", path.as_os_str().as_bytes().escape_ascii());
        self.both(kind, text, |pair, side| act(&pair.root(side).join(path)));
    }

    fn list(&mut self) {
        self.names.clear();
        let mut todo = vec![PathBuf::new()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(self.host.join(&dir)).unwrap() {
                let entry = entry.unwrap();
                let (path, kind) = (dir.join(entry.file_name()), entry.file_type().unwrap());
                if kind.is_dir() {
                    todo.push(path.clone());
                }
                self.names.push((path, kind));
            }
        }
        // The host lists in an order of its own, and only the seed may decide.
        self.names.sort_by(|a, b| a.0.cmp(&b.0));
    }

    fn pick(&mut self, fits: impl Fn(&fs::FileType) -> bool) -> Option<PathBuf> {
        let fitting: Vec<&PathBuf> =
            self.names.iter().filter(|(_, kind)| fits(kind)).map(|(path, _)| path).collect();
        if fitting.is_empty() { None } else { Some(fitting[self.rng.below(fitting.len())].clone()) }
    }

    /// A name that may or may not be there, in some directory.
    fn new_path(&mut self) -> PathBuf {
        let dir = if self.rng.chance(40) { None } else { self.pick(fs::FileType::is_dir) };
        let dir = dir.filter(|dir| dir.components().count() < 4).unwrap_or_default();
        let n = self.rng.below(25);
        let name = match n % 6 {
            0 => format!("with space and 'quotes' {n}"),
            1 => format!("name-{}", "x".repeat(n * n / 2)),
            2 => format!("n\u{e4}me{n}"),
            _ => format!("n{n}"),
        };
        dir.join(name)
    }

    /// Mostly something that is there.
    fn any_path(&mut self) -> PathBuf {
        let there = if self.rng.chance(90) { self.pick(|_| true) } else { None };
        match there {
            Some(path) => path,
            None => self.new_path(),
        }
    }

    /// A file to open: mostly one that is there, never a fifo or a device, which would block or do more than store.
    fn file_path(&mut self) -> PathBuf {
        loop {
            let there = if self.rng.chance(92) { self.pick(fs::FileType::is_file) } else { None };
            let path = match there {
                Some(path) => path,
                None => self.any_path(),
            };
            let special = |meta: fs::Metadata| !meta.is_file() && !meta.is_dir();
            if !fs::metadata(self.host.join(&path)).is_ok_and(special) {
                return path;
            }
        }
    }

    fn size_of(&self, path: &Path) -> usize {
        fs::metadata(self.host.join(path)).map_or(0, |meta| usize::try_from(meta.len()).unwrap())
    }

    /// Bytes to write: mostly few, sometimes many, compressible and not.
    fn data(&mut self) -> Vec<u8> {
        let max = match self.rng.below(20) {
            0 => 400_000,
            1..5 => 60_000,
            5..10 => 5_000,
            _ => 300,
        };
        let len = self.rng.below(max);
        match self.rng.below(4) {
            0 => vec![b'a' + u8::try_from(self.rng.below(26)).unwrap(); len],
            1 => Rng::new(self.rng.next() % 4).bytes(len),
            _ => self.rng.bytes(len),
        }
    }

    /// Where to write: inside, at the end, or beyond it.
    fn offset(&mut self, size: usize) -> u64 {
        let at = match self.rng.below(20) {
            0 => size + self.rng.below(2_000_000),
            1..4 => size + self.rng.below(10_000),
            4..8 => size,
            _ => self.rng.below(size + 1),
        };
        // Nothing grows without end.
        at.min(3_000_000) as u64
    }

    fn one(&mut self) {
        self.list();
        let full = self.names.len() > NAMES_MAX;
        match self.rng.below(100) {
            0..5 if full => self.rmdir(),
            0..5 => self.mkdir(),
            5..16 if full => self.remove(),
            5..16 => self.create(),
            16..27 => self.write(),
            27..33 => self.append(),
            33..39 => self.truncate(),
            39..45 => self.fallocate(),
            45..53 => self.rename(),
            53..56 => self.link(),
            56..58 => self.symlink(),
            58..60 => self.remove(),
            60..63 => self.rmdir(),
            63..66 => self.chmod(),
            66..69 => self.chown(),
            69..74 => self.utimens(),
            74..79 => self.xattr(),
            79..83 => self.copy(),
            83..85 => self.mknod(),
            85..87 => self.readdir(),
            87..90 => self.look(),
            90..92 => self.fsync(),
            _ => self.held(),
        }
    }

    fn create(&mut self) {
        let (path, data, exclusive) = (self.new_path(), self.data(), self.rng.chance(50));
        let mode = [0o600, 0o644, 0o666, 0o4755][self.rng.below(4)];
        let special = |meta: fs::Metadata| !meta.is_file() && !meta.is_dir();
        if fs::metadata(self.host.join(&path)).is_ok_and(special) {
            return;
        }
        self.at(
            "create",
            &path,
            &format!("exclusive {exclusive} mode {mode:o} {} bytes", data.len()),
            |path| {
                let mut options = OpenOptions::new();
                options.write(true).mode(mode);
                if exclusive {
                    options.create_new(true)
                } else {
                    options.create(true).truncate(true)
                };
                done(options.open(path).and_then(|mut file| file.write_all(&data)))
            },
        );
    }

    fn write(&mut self) {
        let (path, data) = (self.file_path(), self.data());
        let size = self.size_of(&path);
        let off = self.offset(size);
        self.at("write", &path, &format!("{} bytes at {off} of {size}", data.len()), |path| {
            let file = OpenOptions::new().write(true).open(path);
            file.map_or_else(|e| answer::<String>(Err(e)), |file| write_at(&file, off, &data))
        });
    }

    fn append(&mut self) {
        let path = self.file_path();
        if self.size_of(&path) > 3_000_000 {
            return;
        }
        let pieces = [self.data(), self.data()];
        let text = format!("{} and {} bytes", pieces[0].len(), pieces[1].len());
        self.at("append", &path, &text, |path| {
            let file = OpenOptions::new().append(true).open(path);
            done(file.and_then(|mut file| pieces.iter().try_for_each(|piece| file.write_all(piece))))
        });
    }

    fn truncate(&mut self) {
        let path = self.file_path();
        let size = self.size_of(&path);
        let to = if self.rng.chance(70) { self.rng.below(size + 1) as u64 } else { self.offset(size) };
        let by_open = self.rng.chance(15);
        self.at("truncate", &path, &format!("from {size} to {to}, by opening {by_open}"), |path| {
            let file = OpenOptions::new().write(true).truncate(by_open).open(path);
            done(file.and_then(|file| if by_open { Ok(()) } else { file.set_len(to) }))
        });
    }

    fn fallocate(&mut self) {
        let path = self.file_path();
        let size = self.size_of(&path);
        let keep = FallocateFlags::KEEP_SIZE;
        let modes = [
            FallocateFlags::empty(),
            keep,
            FallocateFlags::PUNCH_HOLE | keep,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::ZERO_RANGE | keep,
            FallocateFlags::COLLAPSE_RANGE,
            FallocateFlags::INSERT_RANGE,
        ];
        let mode = modes[self.rng.below(modes.len())];
        let shift = mode.intersects(FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE);
        let (mut off, mut len) = (self.offset(size), 1 + self.rng.below(50_000) as u64);
        if shift && self.rng.chance(90) {
            // Where it may work, and at the edge of that.
            off = self.rng.below(size / 4096 + 2) as u64 * 4096;
            len = (1 + self.rng.below(8) as u64) * 4096;
        }
        let at = u32::try_from(self.rng.below(1_000_000_000)).unwrap();
        self.at("fallocate", &path, &format!("{mode:?} {len} at {off} of {size}"), |path| {
            let file = match OpenOptions::new().read(true).write(true).open(path) {
                Ok(file) => file,
                Err(e) => return answer::<String>(Err(e)),
            };
            let result = fallocate(&file, mode, off, len);
            if result.is_err() {
                // Whether a call that fails leaves a new time is each filesystem's own choice.
                set_mtime(path, 1_000, at.into())?;
            }
            result
        });
    }

    fn rename(&mut self) {
        let from = self.any_path();
        let to = if self.rng.chance(55) { self.new_path() } else { self.any_path() };
        let flags = match self.rng.below(10) {
            0..2 => RenameFlags::NOREPLACE,
            2..5 => RenameFlags::EXCHANGE,
            _ => RenameFlags::empty(),
        };
        let text = format!("to {} {flags:?}", to.as_os_str().as_bytes().escape_ascii());
        let text = format!("{} {text}", from.as_os_str().as_bytes().escape_ascii());
        self.both("rename", text, |pair, side| {
            let root = pair.root(side);
            done(rustix::fs::renameat_with(CWD, root.join(&from), CWD, root.join(&to), flags))
        });
    }

    fn link(&mut self) {
        let (from, to) = (self.any_path(), self.new_path());
        let text = format!("{} to {}", from.display(), to.display());
        self.both("link", text, |pair, side| {
            let root = pair.root(side);
            done(fs::hard_link(root.join(&from), root.join(&to)))
        });
    }

    fn symlink(&mut self) {
        let (path, target) = (self.new_path(), self.any_path());
        // Only the last name, which leads to something beside it or to nothing, but never out of the tree.
        let target = target.file_name().unwrap().to_owned();
        self.at("symlink", &path, &format!("to {}", target.display()), |path| {
            done(std::os::unix::fs::symlink(&target, path))
        });
    }

    fn remove(&mut self) {
        let path = self.any_path();
        self.at("unlink", &path, "", |path| done(fs::remove_file(path)));
    }

    fn mkdir(&mut self) {
        let path = self.new_path();
        self.at("mkdir", &path, "", |path| done(fs::create_dir(path)));
    }

    fn rmdir(&mut self) {
        let dir = if self.rng.chance(85) { self.pick(fs::FileType::is_dir) } else { None };
        let path = dir.unwrap_or_else(|| self.any_path());
        self.at("rmdir", &path, "", |path| done(fs::remove_dir(path)));
    }

    fn chmod(&mut self) {
        let path = self.any_path();
        let mode = [0o600, 0o644, 0o777, 0o4755, 0o2755, 0o2664, 0o1777, 0][self.rng.below(8)];
        self.at("chmod", &path, &format!("{mode:o}"), |path| {
            done(fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        });
    }

    fn chown(&mut self) {
        let path = self.any_path();
        let mut id = || match self.rng.below(4) {
            0 => None,
            n => Some(n as u32 * 500),
        };
        let (uid, mut gid) = (id(), id());
        if uid.is_none() {
            // To change neither clears set-user-id elsewhere, but of that the kernel tells a FUSE filesystem nothing.
            gid = gid.or(Some(500));
        }
        self.at("chown", &path, &format!("{uid:?} {gid:?}"), |path| {
            done(std::os::unix::fs::lchown(path, uid, gid))
        });
    }

    fn utimens(&mut self) {
        let path = self.any_path();
        let secs = self.rng.below(1_500_000_000) as i64 - 500_000_000;
        let nanos = self.rng.below(1_000_000_000) as i64;
        self.at("utimens", &path, &format!("{secs}.{nanos:09}"), |path| set_mtime(path, secs, nanos));
    }

    fn xattr(&mut self) {
        let path = self.any_path();
        let space = if self.rng.chance(75) { "user" } else { "trusted" };
        let name = format!("{space}.x{}", self.rng.below(2));
        if self.rng.chance(40) {
            self.at("removexattr", &path, &name, |path| done(rustix::fs::lremovexattr(path, &name[..])));
            return;
        }
        let flags = match self.rng.below(6) {
            0 => XattrFlags::CREATE,
            1 => XattrFlags::REPLACE,
            _ => XattrFlags::empty(),
        };
        let len = self.rng.below(300);
        let value = self.rng.bytes(len);
        self.at("setxattr", &path, &format!("{name} {len} bytes {flags:?}"), |path| {
            done(rustix::fs::lsetxattr(path, &name[..], &value, flags))
        });
    }

    fn copy(&mut self) {
        let (from, to) = (self.file_path(), self.file_path());
        let (from_size, to_size) = (self.size_of(&from), self.size_of(&to));
        let (from_off, to_off) = (self.offset(from_size), self.offset(to_size));
        let len = if self.rng.chance(30) { from_size } else { self.rng.below(100_000) };
        let text = format!("{len} at {from_off} of {} to {to_off} of {}", from.display(), to.display());
        self.both("copy_file_range", text, |pair, side| {
            let root = pair.root(side);
            let files = File::open(root.join(&from))
                .and_then(|from| Ok((from, OpenOptions::new().write(true).open(root.join(&to))?)));
            match files {
                Ok((from, to)) => copy_range(&from, from_off, &to, to_off, len),
                Err(e) => answer::<String>(Err(e)),
            }
        });
    }

    fn mknod(&mut self) {
        let path = self.new_path();
        let (kind, dev) = match self.rng.below(3) {
            0 => (FileType::Fifo, 0),
            1 => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            _ => (FileType::BlockDevice, rustix::fs::makedev(259, 70_000)),
        };
        self.at("mknod", &path, &format!("{kind:?}"), |path| {
            done(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), dev))
        });
    }

    fn readdir(&mut self) {
        let dir = self.pick(fs::FileType::is_dir).unwrap_or_default();
        self.at("readdir", &dir, "", |path| {
            let read = fs::read_dir(path).and_then(|entries| {
                let names = entries
                    .map(|entry| entry.and_then(|e| Ok(format!("{:?} {:?}", e.file_name(), e.file_type()?))));
                names.collect::<io::Result<Vec<String>>>()
            });
            let mut names = match read {
                Ok(names) => names,
                Err(e) => return answer::<String>(Err(e)),
            };
            names.sort();
            Ok(names.join(", "))
        });
    }

    fn look(&mut self) {
        let path = self.file_path();
        let off = self.offset(self.size_of(&path));
        let len = self.rng.below(100_000);
        self.at("read", &path, &format!("{len} at {off}"), |path| {
            File::open(path).map_or_else(|e| answer::<String>(Err(e)), |file| read_at(&file, off, len))
        });
        let path = self.any_path();
        self.at("readlink", &path, "", |path| {
            answer(fs::read_link(path).map(|target| target.display().to_string()))
        });
    }

    /// On the mount only: the host's durability is not what this is about.
    fn fsync(&mut self) {
        let path = self.file_path();
        let all = self.rng.chance(20);
        self.both("fsync", path.display().to_string(), |pair, side| {
            let file = File::open(pair.root(side).join(&path));
            done(file.and_then(|file| match (side, all) {
                (Side::Host, _) => Ok(()),
                (Side::Mount, true) => file.sync_all(),
                (Side::Mount, false) => file.sync_data(),
            }))
        });
    }

    /// Files that are held open while their names come and go.
    fn held(&mut self) {
        if self.open.len() < 6 && (self.open.is_empty() || self.rng.chance(30)) {
            let path = self.file_path();
            let append = self.rng.chance(30);
            let mut options = OpenOptions::new();
            options.read(true);
            if append {
                options.append(true)
            } else {
                options.write(true)
            };
            let (mount, host) = (
                options.open(self.root(Side::Mount).join(&path)),
                options.open(self.root(Side::Host).join(&path)),
            );
            let text = format!("{} append {append}", path.display());
            let answers =
                [&mount, &host].map(|file| answer(file.as_ref().map(|_| "done").map_err(same_error)));
            self.both("hold", text, |_, side| answers[side as usize].clone());
            if let (Ok(mount), Ok(host)) = (mount, host) {
                self.open.push(Open { mount, host, append });
                if self.rng.chance(60) {
                    self.at("unlink", &path, "that is open", |path| done(fs::remove_file(path)));
                }
            }
            return;
        }
        let at = self.rng.below(self.open.len());
        let size = usize::try_from(self.open[at].host.metadata().unwrap().len()).unwrap();
        let (off, data, append) = (self.offset(size), self.data(), self.open[at].append);
        match self.rng.below(8) {
            0..3 if append && size < 3_000_000 => {
                self.both("held append", format!("{} bytes to handle {at}", data.len()), |pair, side| {
                    let mut file = pair.open[at].on(side);
                    done(file.write_all(&data))
                });
            }
            0..3 if !append => {
                self.both(
                    "held write",
                    format!("{} bytes at {off} to handle {at}", data.len()),
                    |pair, side| write_at(pair.open[at].on(side), off, &data),
                );
            }
            3 => self.both("held truncate", format!("to {off} of handle {at}"), |pair, side| {
                done(pair.open[at].on(side).set_len(off))
            }),
            4..7 => self.both("held read", format!("at {off} of handle {at}"), |pair, side| {
                let file = pair.open[at].on(side);
                let meta = file.metadata().unwrap();
                let shown = (meta.len(), meta.nlink(), meta.mode(), meta.uid());
                Ok(format!("{shown:?} {:?}", read_at(file, off / 2, 70_000)))
            }),
            _ => {
                self.open.remove(at);
            }
        }
    }

    /// Compares both trees. Returns that of the mount.
    fn compare(&mut self, when: &str) -> Survey {
        let (mount, host) = (survey(&self.root(Side::Mount)), survey(&self.host));
        if let Some(text) = difference(&mount, &host) {
            panic!("{when}, the mount is not what the host is:\n{text}");
        }
        mount
    }

    fn remounted(&mut self, before: &Survey, how: &str) {
        self.log.push(format!("-- {how}"));
        let after = self.compare(how);
        for (path, (_, before)) in before {
            let now = after[path].1;
            let path = path.escape_ascii();
            assert_eq!(now.ino, before.ino, "{how}: {path}");
            // The kernel gives a file that is truncated and then written in one tick of its clock one time for both, and
            // leaves it to us when the second was. So a time of the clock may be told a moment later.
            for (is, was) in [(now.mtime, before.mtime), (now.ctime, before.ctime)] {
                let set = was.0 < CLOCK_SINCE;
                let later = (is.0 - was.0) * 1_000_000_000 + is.1 - was.1;
                assert!(
                    is == was || (!set && (0..1_000_000_000).contains(&later)),
                    "{how}: {path}: {is:?}, was {was:?}"
                );
            }
        }
    }

    fn remount(&mut self) {
        self.open.clear();
        let before = self.compare("before unmounting");
        self.sandbox.umount();
        self.sandbox.mount();
        self.remounted(&before, "after unmounting and mounting");
    }

    /// Kills the daemon when everything was synced: nothing may be missing, and files without a name are gone.
    fn kill(&mut self) {
        let root = self.root(Side::Mount);
        self.list();
        File::open(&root).unwrap().sync_all().unwrap();
        for (path, kind) in &self.names {
            if kind.is_file() || kind.is_dir() {
                File::open(root.join(path)).unwrap().sync_all().unwrap();
            }
        }
        let before = self.compare("before the kill");
        kill_9(self.sandbox.daemon_pid());
        self.open.clear();
        self.sandbox.mount();
        self.remounted(&before, "after the kill");
    }

    fn run(&mut self, count: usize) {
        let remounts: Vec<usize> = (1..9).map(|n| n * count / 9).collect();
        for n in 1..=count {
            self.one();
            if n % COMPARE_EVERY == 0 {
                self.compare("in between");
            }
            if let Some(which) = remounts.iter().position(|at| *at == n) {
                if which % 3 == 1 { self.kill() } else { self.remount() }
            }
        }
        self.remount();
    }
}

fn set_mtime(path: &Path, secs: i64, nanos: i64) -> Answer {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    done(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW))
}

fn same_error(error: &io::Error) -> io::Error {
    io::Error::from_raw_os_error(error.raw_os_error().expect("an error of the system"))
}

/// How many operations, the seed, and how many operations a failure shows.
fn wanted() -> (usize, u64, usize) {
    let Ok(text) = std::env::var("STRONGROOM_MODEL") else { return (COUNT, 0x5eed_0002, 30) };
    let numbers: Vec<u64> =
        text.split(':').map(|n| n.parse().expect("STRONGROOM_MODEL=COUNT:SEED:SHOWN")).collect();
    let number = |at: usize, or: u64| numbers.get(at).copied().unwrap_or(or);
    let small = |n: u64| usize::try_from(n).expect("a count");
    (small(number(0, 0)), number(1, 0x5eed_0002), small(number(2, 30)))
}

#[test]
fn heavy_random_operations_answer_as_the_hosts_filesystem_does() {
    require_root();
    let (count, seed, shown) = wanted();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now > CLOCK_SINCE.unsigned_abs(), "the clock of this machine is wrong");
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let host = sandbox.path("host");
    fs::create_dir(&host).unwrap();
    let mode = fs::metadata(sandbox.mountpoint()).unwrap().permissions();
    fs::set_permissions(&host, mode).unwrap();
    let mut pair = Pair {
        open: Vec::new(),
        sandbox,
        host,
        rng: Rng::new(seed),
        names: Vec::new(),
        log: Vec::new(),
        tally: BTreeMap::new(),
        step: 0,
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| pair.run(count))) {
        let last = &pair.log[pair.log.len().saturating_sub(shown)..];
        eprintln!("STRONGROOM_MODEL={count}:{seed} failed; the last operations were:\n{}", last.join("\n"));
        resume_unwind(panic);
    }
    println!("STRONGROOM_MODEL={count}:{seed}: {:?}", pair.tally);
    if count >= COUNT {
        assert!(pair.step >= COUNT, "{} operations", pair.step);
        assert_eq!(pair.tally.len(), 27, "{:?}", pair.tally);
        for (kind, (worked, _)) in &pair.tally {
            assert!(*worked >= 10, "{kind} worked {worked} times");
        }
        for kind in ["rename", "rmdir", "unlink", "link", "setxattr", "fallocate", "create", "write"] {
            assert!(pair.tally[kind].1 >= 10, "{kind} failed {} times", pair.tally[kind].1);
        }
    }
    // What was mounted is also what a copy restores.
    pair.sandbox.umount();
    pair.sandbox.assert_clean();
    let restored = pair.sandbox.path("restored");
    pair.sandbox.keyed(&["restore", pair.sandbox.vault_str(), "--to", &pair.sandbox.str("restored")]).ok();
    let (mut is, mut should) = (survey(&restored), survey(&pair.host));
    for tree in [&mut is, &mut should] {
        // The directory that is restored into belongs to whom made it.
        tree.remove(&b""[..]);
    }
    if let Some(text) = difference(&is, &should) {
        panic!("STRONGROOM_MODEL={count}:{seed}: restored, it is not what the host is:\n{text}");
    }
}
