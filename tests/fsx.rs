//! Random reads and writes on one file, each compared with a copy in memory: fsx for what it knows, and our own for the rest.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::common::{Rng, Sandbox, built_tool, require_fuse, seed};

/// Operations of a whole run; `STRONGROOM_FSX_TIMES` multiplies them.
const OPERATIONS: u64 = 1_000_000;

/// One instance of fsx: what it does how often, and its share of the operations in thousandths.
struct Shape {
    name: &'static str,
    file_bytes: u32,
    operation_bytes: u32,
    msync: bool,
    /// Weight of what changes the file's size or shape; reads and writes, plain and mapped, have 10 each.
    shape: f64,
    reopen: f64,
    share: u64,
}

const SHAPES: [Shape; 6] = [
    Shape {
        name: "small",
        file_bytes: 64 << 10,
        operation_bytes: 4 << 10,
        msync: false,
        shape: 0.05,
        reopen: 0.02,
        share: 250,
    },
    Shape {
        name: "pages",
        file_bytes: 256 << 10,
        operation_bytes: 8 << 10,
        msync: false,
        shape: 0.05,
        reopen: 0.02,
        share: 250,
    },
    Shape {
        name: "chunks",
        file_bytes: 3 << 20,
        operation_bytes: 16 << 10,
        msync: false,
        shape: 0.02,
        reopen: 0.01,
        share: 240,
    },
    Shape {
        name: "tiny",
        file_bytes: 9_000,
        operation_bytes: 700,
        msync: false,
        shape: 0.1,
        reopen: 0.05,
        share: 240,
    },
    Shape {
        name: "shapes",
        file_bytes: 256 << 10,
        operation_bytes: 64 << 10,
        msync: false,
        shape: 4.0,
        reopen: 1.0,
        share: 18,
    },
    Shape {
        name: "synced",
        file_bytes: 512 << 10,
        operation_bytes: 64 << 10,
        msync: true,
        shape: 2.0,
        reopen: 1.0,
        share: 2,
    },
];

impl Shape {
    fn config(&self) -> String {
        let Self { shape, reopen, .. } = self;
        format!(
            "flen = {}\nnomsyncafterwrite = {}\n[opsize]\nmax = {}\n[weights]\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\n\
             close_open = {reopen}\ninvalidate = {reopen}\nfsync = {reopen}\nfdatasync = {reopen}\nposix_fadvise = {reopen}\n\
             truncate = {shape}\npunch_hole = {shape}\nposix_fallocate = {shape}\ncopy_file_range = {shape}\nsendfile = {shape}\n",
            self.file_bytes, !self.msync, self.operation_bytes
        )
    }

    fn start(&self, sandbox: &Sandbox, seed: u64, operations: u64) -> Child {
        let config = sandbox.path(&format!("{}.toml", self.name));
        fs::write(&config, self.config()).unwrap();
        sandbox
            .command(built_tool("fsx"))
            .arg("-f")
            .arg(&config)
            .args(["-S", &seed.to_string(), "-N", &operations.to_string(), "-P", &sandbox.str("state")])
            .arg(sandbox.mountpoint().join(self.name))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

#[test]
fn heavy_fsx_a_million_operations() {
    require_fuse();
    assert_eq!(SHAPES.iter().map(|shape| shape.share).sum::<u64>(), 1000);
    let times: u64 = std::env::var("STRONGROOM_FSX_TIMES").map_or(1, |text| text.parse().unwrap());
    let seed = seed(20_261_121) & 0xffff_ffff;
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let mut running = Vec::new();
    for (shape, seed) in SHAPES.iter().zip(seed..) {
        running.push((shape, shape.start(&sandbox, seed, OPERATIONS * times * shape.share / 1000)));
    }
    for (shape, child) in running {
        let output = child.wait_with_output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success() && text.contains("All operations completed A-OK!"),
            "{}: {text}",
            shape.name
        );
    }
    // What the instances left must survive.
    let content = |shape: &Shape| fs::read(sandbox.mountpoint().join(shape.name)).unwrap();
    let before: Vec<Vec<u8>> = SHAPES.iter().map(content).collect();
    sandbox.umount();
    sandbox.mount();
    for (shape, before) in SHAPES.iter().zip(&before) {
        assert!(content(shape) == *before, "{} after a remount", shape.name);
    }
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
