//! What the tests of the filesystem share, and the lead's tests of whole vaults extend: a vault on a simulated disk,
//! random operations with a model beside them, and checks of the database's rows.

pub(crate) mod check;
pub(crate) mod crash;
pub(crate) mod model;
pub(crate) mod ops;

mod tests_calls;
mod tests_crash;
mod tests_durable;
mod tests_full;
mod tests_inline;
mod tests_lazy;
mod tests_model;
mod tests_threads;

use std::sync::Arc;

use super::{Caller, Fh, Fs, FsOptions, FsResult, OpenFlags};
use crate::crypto::{RootSecret, VaultKeys, new_header};
use crate::disk::Disk;
use crate::disk::SimDisk;
use crate::env::TestEnv;
use crate::format::header::{ChunkerParams, Cipher};
use crate::snapshot::open::{OpenOptions, Unlocked, open_engine};
use crate::store::config::EngineConfig;
use crate::store::engine::Engine;
use crate::store::live::LiveConfig;

/// Returns the seeds that a test of random operations tries: `count` from `first` on. `STRONGROOM_TEST_SCALE=20` tries 20
/// times as many, and `STRONGROOM_SEED=7` only that one.
pub(crate) fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is no number")))
    };
    match number("STRONGROOM_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + count * number("STRONGROOM_TEST_SCALE").unwrap_or(1),
    }
}

/// The caller of most tests.
pub(crate) const ALICE: Caller = Caller { uid: 1000, gid: 100, pid: 1 };

/// Opens for reading and writing.
pub(crate) const RW: OpenFlags = OpenFlags { write: true, truncate: false, exclusive: false };

/// Random numbers that depend on the seed alone.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Returns a source for this seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed ^ 0x9e37_79b9_7f4a_7c15);
        rng.next();
        rng
    }

    /// Returns any number.
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// Returns true once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Returns `len` bytes that do not compress and depend on `seed` alone.
    pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut rng = Rng::new(seed);
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&rng.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}

/// A vault whose disk is in memory.
pub(crate) struct Vault {
    /// The disk.
    pub(crate) disk: SimDisk,
    /// Clock and randomness.
    pub(crate) env: Arc<TestEnv>,
    /// Sizes and threads.
    pub(crate) cfg: EngineConfig,
    seed: u64,
}

/// Small sizes, so that little data makes many chunks, packs and checkpoints; no threads.
pub(crate) fn small_config() -> EngineConfig {
    EngineConfig {
        pack_bytes: 1 << 20,
        workers: 2,
        cache_bytes: 1 << 20,
        dirty_bytes_max: 1 << 20,
        zstd_level: 1,
        background: false,
        reserve_bytes: 0,
        live: LiveConfig {
            segment_bytes: 1 << 20,
            cache_bytes: 1 << 20,
            overlay_bytes_max: 512 << 10,
            background: false,
        },
    }
}

impl Vault {
    /// Makes a vault.
    pub(crate) fn new(seed: u64, cfg: EngineConfig) -> Self {
        let disk = SimDisk::new(seed);
        for dir in ["packs", "snapshots", "live"] {
            disk.create_dir_all(dir).unwrap();
        }
        Self { disk, env: Arc::new(TestEnv::new(seed)), cfg, seed }
    }

    /// Returns the same vault on another disk, such as what a crash left of its own.
    pub(crate) fn on(&self, disk: SimDisk, epoch: u64) -> Self {
        // Randomness must not repeat after a crash: nonces are drawn from it.
        let env = Arc::new(TestEnv::new(self.seed.wrapping_mul(1 << 20).wrapping_add(epoch + 1)));
        Self { disk, env, cfg: self.cfg.clone(), seed: self.seed }
    }

    /// Returns its keys.
    pub(crate) fn unlocked(&self) -> Unlocked {
        let env = TestEnv::new(self.seed);
        let root = RootSecret::generate(&env);
        let chunker = ChunkerParams { min: 4 << 10, avg: 8 << 10, max: 32 << 10 };
        let created = "2026-11-21T02:00:00Z".to_string();
        let header = new_header(&env, &root, Cipher::ChaCha20Poly1305, chunker, created);
        let keys = Arc::new(VaultKeys::derive(&root, &header).unwrap());
        Unlocked { header, root, keys, slot: 1, warning: None }
    }

    /// Opens the engine.
    pub(crate) fn engine(&self) -> crate::store::error::Result<Arc<Engine>> {
        self.engine_with(false)
    }

    /// Opens the engine; with `discard_live` from the newest snapshot.
    pub(crate) fn engine_with(&self, discard_live: bool) -> crate::store::error::Result<Arc<Engine>> {
        let opts = OpenOptions {
            cfg: self.cfg.clone(),
            owner: (0, 0),
            path: "/vault".into(),
            highwater: None,
            accept_rollback: false,
            discard_live,
            holder_note: "{}".into(),
        };
        Ok(open_engine(Arc::new(self.disk.clone()), self.env.clone(), &self.unlocked(), opts)?.engine)
    }

    /// Opens the engine and the filesystem.
    pub(crate) fn open(&self) -> (Arc<Engine>, Arc<Fs>) {
        let engine = self.engine().unwrap();
        let fs = Fs::open(engine.clone(), FsOptions::default()).unwrap();
        (engine, fs)
    }
}

/// Ends a mount properly.
pub(crate) fn close(engine: &Arc<Engine>, fs: Arc<Fs>) {
    fs.shutdown().unwrap();
    drop(fs);
    engine.close().unwrap();
}

/// Makes a file, opens it and writes.
pub(crate) fn put(fs: &Fs, parent: u64, name: &[u8], data: &[u8]) -> (u64, Fh) {
    let (attr, fh) = fs.create(parent, name, 0o644, 0, RW, ALICE).unwrap();
    for (i, part) in data.chunks(100_000).enumerate() {
        assert_eq!(fs.write(attr.ino, fh, i as u64 * 100_000, part, false).unwrap(), part.len());
    }
    (attr.ino, fh)
}

/// Reads a whole file.
pub(crate) fn get(fs: &Fs, ino: u64) -> FsResult<Vec<u8>> {
    let fh = fs.open_file(ino, OpenFlags::default(), ALICE)?;
    let mut out = Vec::new();
    let result = loop {
        match fs.read(ino, fh, out.len() as u64, 65_536) {
            Ok(part) if part.is_empty() => break Ok(()),
            Ok(part) => out.extend_from_slice(&part),
            Err(error) => break Err(error),
        }
    };
    fs.release(ino, fh)?;
    result.map(|()| out)
}

/// Lists a directory without `.` and `..`, in small steps.
pub(crate) fn list(fs: &Fs, ino: u64) -> FsResult<Vec<(Vec<u8>, u64)>> {
    let fh = fs.opendir(ino)?;
    let (mut names, mut cookie) = (Vec::new(), 0);
    loop {
        let (mut step, before) = (0, cookie);
        fs.readdir(
            fh,
            cookie,
            &mut |entry| {
                if step == 7 {
                    return false;
                }
                step += 1;
                cookie = entry.cookie;
                if entry.name != b"." && entry.name != b".." {
                    names.push((entry.name.to_vec(), entry.ino));
                }
                true
            },
            false,
        )?;
        if cookie == before {
            break;
        }
    }
    fs.releasedir(fh)?;
    Ok(names)
}
