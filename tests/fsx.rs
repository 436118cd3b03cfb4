//! Random reads and writes on one file, each compared with a copy in memory: fsx for what it knows, and our own for the rest.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::common::{Rng, Sandbox, built_tool, require_fuse, seed};

/// Operations of all runs together are at least so many; `STRONGROOM_FSX_TIMES` multiplies them.
const OPERATIONS: u64 = 1_000_000;
/// Instances at once.
const AT_ONCE: usize = 5;

/// What an instance of fsx does how often, and how many there are. They are short: fsx 0.3.2 forgets to unmap what it reads
/// through a mapping, and the kernel has to look through all mappings of a file for each page it cleans.
struct Shape {
    name: &'static str,
    file_bytes: u32,
    operation_bytes: u32,
    msync: bool,
    /// Weight of what changes the file's size or shape; reads and writes, plain and mapped, have 10 each.
    shape: f64,
    /// Weight of closing, syncing and dropping caches.
    reopen: f64,
    runs: u64,
    operations: u64,
}

const SHAPES: [Shape; 6] = [
    Shape {
        name: "small",
        file_bytes: 64 << 10,
        operation_bytes: 4 << 10,
        msync: false,
        shape: 0.05,
        reopen: 0.02,
        runs: 25,
        operations: 10_000,
    },
    Shape {
        name: "pages",
        file_bytes: 256 << 10,
        operation_bytes: 8 << 10,
        msync: false,
        shape: 0.05,
        reopen: 0.02,
        runs: 25,
        operations: 10_000,
    },
    Shape {
        name: "chunks",
        file_bytes: 3 << 20,
        operation_bytes: 16 << 10,
        msync: false,
        shape: 0.02,
        reopen: 0.01,
        runs: 24,
        operations: 10_000,
    },
    Shape {
        name: "tiny",
        file_bytes: 9_000,
        operation_bytes: 700,
        msync: false,
        shape: 0.1,
        reopen: 0.05,
        runs: 25,
        operations: 10_000,
    },
    Shape {
        name: "shapes",
        file_bytes: 256 << 10,
        operation_bytes: 64 << 10,
        msync: false,
        shape: 4.0,
        reopen: 1.0,
        runs: 4,
        operations: 2_500,
    },
    Shape {
        name: "synced",
        file_bytes: 512 << 10,
        operation_bytes: 64 << 10,
        msync: true,
        shape: 2.0,
        reopen: 1.0,
        runs: 2,
        operations: 500,
    },
];

impl Shape {
    /// No operation is empty: fsx takes the EINVAL of an empty posix_fallocate(3) for a filesystem that has none.
    fn config(&self) -> String {
        let Self { shape, reopen, .. } = self;
        format!(
            "flen = {}\nnomsyncafterwrite = {}\n[opsize]\nmin = 1\nmax = {}\n[weights]\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\n\
             close_open = {reopen}\ninvalidate = {reopen}\nfsync = {reopen}\nfdatasync = {reopen}\nposix_fadvise = {reopen}\n\
             truncate = {shape}\npunch_hole = {shape}\nposix_fallocate = {shape}\ncopy_file_range = {shape}\nsendfile = {shape}\n",
            self.file_bytes, !self.msync, self.operation_bytes
        )
    }

    #[track_caller]
    fn run(&self, sandbox: &Sandbox, seed: u64) {
        let name = format!("{}{seed}", self.name);
        let output = sandbox
            .command(built_tool("fsx"))
            .args(["-f", &sandbox.str(&format!("{}.toml", self.name)), "-P", &sandbox.str("state")])
            .args(["-S", &seed.to_string(), "-N", &self.operations.to_string()])
            .arg(sandbox.mountpoint().join(&name))
            .output()
            .unwrap();
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let fine = output.status.success() && out.contains("All operations completed A-OK!");
        assert!(fine, "{name}: {out}{error}");
    }
}

#[test]
fn heavy_fsx_a_million_operations() {
    require_fuse();
    assert!(SHAPES.iter().map(|shape| shape.runs * shape.operations).sum::<u64>() >= OPERATIONS);
    let times: u64 = std::env::var("STRONGROOM_FSX_TIMES").map_or(1, |text| text.parse().unwrap());
    let seed = seed(20_261_121) & 0xffff_ffff;
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let mut jobs = Vec::new();
    for shape in &SHAPES {
        fs::write(sandbox.path(&format!("{}.toml", shape.name)), shape.config()).unwrap();
        jobs.extend((0..shape.runs * times).map(|run| (run, shape)));
    }
    // Unlike ones beside each other.
    jobs.sort_by_key(|(run, _)| *run);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((run, shape)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    shape.run(&sandbox, seed + run);
                }
            });
        }
    });
    // What the instances left must survive.
    let content = || -> BTreeMap<OsString, Vec<u8>> {
        let entries = fs::read_dir(sandbox.mountpoint()).unwrap().map(Result::unwrap);
        entries.map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap())).collect()
    };
    let before = content();
    assert!(!before.is_empty());
    sandbox.umount();
    sandbox.mount();
    assert!(content() == before, "after a remount");
    sandbox.umount();
    sandbox.assert_clean();
}

const LEN_MAX: usize = 600_000;
const BLOCK: usize = 4096;

/// A file and what must be in it.
struct Mirror {
    path: PathBuf,
    file: File,
    bytes: Vec<u8>,
    rng: Rng,
}

impl Mirror {
    fn new(path: PathBuf, seed: u64) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        Self { path, file, bytes: Vec::new(), rng: Rng::new(seed) }
    }

    fn open(&mut self) {
        self.file = OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
    }

    /// A range of at most `most` bytes that begins below [`LEN_MAX`].
    fn range(&mut self, most: usize) -> (usize, usize) {
        let start = self.rng.below(LEN_MAX);
        (start, (start + 1 + self.rng.below(most)).min(LEN_MAX + 1))
    }

    fn fallocate(&self, flags: FallocateFlags, start: usize, end: usize) -> Result<(), Errno> {
        rustix::fs::fallocate(&self.file, flags, start as u64, (end - start) as u64)
    }

    fn grow(&mut self, len: usize) {
        self.bytes.resize(self.bytes.len().max(len), 0);
    }

    fn zero(&mut self, start: usize, end: usize) {
        let end = end.min(self.bytes.len());
        if start < end {
            self.bytes[start..end].fill(0);
        }
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..25 => {
                let (start, end) = self.range(70_000);
                let data = self.rng.bytes(end - start);
                self.file.write_all_at(&data, start as u64).unwrap();
                self.grow(end);
                self.bytes[start..end].copy_from_slice(&data);
            }
            25..50 => {
                let (start, end) = self.range(70_000);
                self.compare(start, end);
            }
            50..57 => {
                let (start, end) = self.range(100_000);
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                self.fallocate(flags, start, end).unwrap();
                self.zero(start, end);
            }
            57..62 => {
                let (start, end) = self.range(100_000);
                self.fallocate(FallocateFlags::ZERO_RANGE, start, end).unwrap();
                self.grow(end);
                self.zero(start, end);
            }
            62..65 => {
                let (start, end) = self.range(100_000);
                let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                self.fallocate(flags, start, end).unwrap();
                self.zero(start, end);
            }
            65..68 => {
                let (start, end) = self.range(100_000);
                self.fallocate(FallocateFlags::KEEP_SIZE, start, end).unwrap();
            }
            68..71 => {
                let (start, end) = self.range(100_000);
                self.fallocate(FallocateFlags::empty(), start, end).unwrap();
                self.grow(end);
            }
            71..77 => {
                let len = self.rng.below(LEN_MAX);
                self.file.set_len(len as u64).unwrap();
                self.bytes.resize(len, 0);
            }
            77..83 => self.copy_within(),
            83..90 => self.seek(),
            90..93 => self.refused(),
            93..96 => {
                rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed).unwrap();
            }
            96..98 => self.open(),
            98 => self.file.sync_all().unwrap(),
            _ => {
                // Around the kernel's cache, at whole blocks.
                let direct = OpenOptions::new().read(true).custom_flags(0o40000).open(&self.path).unwrap();
                let mut all = vec![0; LEN_MAX.next_multiple_of(BLOCK) + BLOCK];
                let start = all.as_ptr().align_offset(BLOCK);
                let len = all.len() - BLOCK;
                let got = direct.read_at(&mut all[start..start + len], 0).unwrap();
                assert!(all[start..start + got] == self.bytes, "read with O_DIRECT");
            }
        }
        assert_eq!(self.file.metadata().unwrap().len(), self.bytes.len() as u64);
    }

    fn copy_within(&mut self) {
        let (from, end) = self.range(70_000);
        let (to, _) = self.range(1);
        let end = end.min(self.bytes.len());
        // Ranges that overlap are refused by the kernel.
        if from >= end || (from < to + (end - from) && to < end) || to + (end - from) > LEN_MAX {
            return;
        }
        let (mut from_off, mut to_off) = (from as u64, to as u64);
        while from_off < end as u64 {
            let left = end - usize::try_from(from_off).unwrap();
            let copied = rustix::fs::copy_file_range(
                &self.file,
                Some(&mut from_off),
                &self.file,
                Some(&mut to_off),
                left,
            )
            .unwrap();
            assert!(copied > 0, "nothing was copied");
        }
        self.grow(to + (end - from));
        self.bytes.copy_within(from..end, to);
    }

    /// Walks over data and holes: what is called a hole must read as zeros, and the walk must end at the end.
    fn seek(&mut self) {
        let len = self.bytes.len() as u64;
        let mut at = 0;
        while at < len {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => len,
                Err(error) => panic!("SEEK_DATA: {error}"),
            };
            assert!(data >= at && data <= len);
            let hole = usize::try_from(at).unwrap()..usize::try_from(data).unwrap();
            assert!(
                self.bytes[hole.clone()].iter().all(|byte| *byte == 0),
                "data in {hole:?}, which is called a hole"
            );
            if data == len {
                break;
            }
            at = rustix::fs::seek(&self.file, SeekFrom::Hole(data)).unwrap();
            assert!(at > data && at <= len, "a hole at {at} after data at {data}, length {len}");
        }
        assert_eq!(rustix::fs::seek(&self.file, SeekFrom::Data(len)), Err(Errno::NXIO));
        assert_eq!(rustix::fs::seek(&self.file, SeekFrom::Hole(len)), Err(Errno::NXIO));
    }

    /// The kernel's FUSE does not pass these on, so they must change nothing.
    fn refused(&mut self) {
        for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
            assert_eq!(self.fallocate(flags, 0, BLOCK), Err(Errno::OPNOTSUPP));
        }
    }

    #[track_caller]
    fn compare(&mut self, start: usize, end: usize) {
        let mut got = vec![0; end - start];
        let mut len = 0;
        while len < got.len() {
            match self.file.read_at(&mut got[len..], (start + len) as u64).unwrap() {
                0 => break,
                n => len += n,
            }
        }
        let expected = self.bytes.get(start..).map_or(&[][..], |tail| &tail[..tail.len().min(end - start)]);
        assert_eq!(len, expected.len(), "length of {start}..{end}");
        if let Some(at) = (0..len).find(|&at| got[at] != expected[at]) {
            panic!("byte {} is {:#x} instead of {:#x}", start + at, got[at], expected[at]);
        }
    }
}

#[test]
fn heavy_fsx_fallocate_seek_and_remounts() {
    require_fuse();
    let seed = seed(7);
    let steps: usize =
        std::env::var("STRONGROOM_FSX_TIMES").map_or(6_000, |text| 6_000 * text.parse::<usize>().unwrap());
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let path = sandbox.mountpoint().join("file");
    let mut mirror = Mirror::new(path.clone(), seed);
    for step in 0..steps {
        mirror.step();
        if step % (steps / 5) == steps / 5 - 1 {
            // Nothing may be open.
            mirror.file = File::open("/dev/null").unwrap();
            sandbox.umount();
            sandbox.mount();
            mirror.open();
            mirror.compare(0, LEN_MAX + 1);
            mirror.seek();
        }
    }
    drop(mirror);
    sandbox.umount();
    sandbox.assert_clean();
}
