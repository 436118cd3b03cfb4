//! What the benches share: a vault on the real disk below target/, and data that compresses or doesn't.

#![allow(dead_code, reason = "each bench uses its part")]

use std::path::Path;
use std::sync::Arc;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use strongroom::crypto::{
    Argon2Cost, Credential, LiveKeys, RootSecret, SecretBytes, VaultKeys, add_slot, new_header,
};
use strongroom::disk::{Disk, RealDisk};
use strongroom::env::{Env, SystemEnv};
use strongroom::format::{ChunkerParams, Cipher};
use strongroom::snapshot::open::{OpenOptions, create_vault, open_engine, unlock};
use strongroom::store::config::EngineConfig;
use strongroom::store::engine::Engine;
use strongroom::store::header;
use tempfile::TempDir;

/// The chunk sizes of `strongroom init`.
pub(crate) const CHUNKER: ChunkerParams = ChunkerParams { min: 512 << 10, avg: 1 << 20, max: 4 << 20 };

const CREATED: &str = "2026-11-21T02:00:00Z";

/// Keys of a vault that exists nowhere.
pub(crate) fn keys(cipher: Cipher) -> Arc<VaultKeys> {
    let root = RootSecret::generate(&SystemEnv);
    let header = new_header(&SystemEnv, &root, cipher, CHUNKER, CREATED.into());
    Arc::new(VaultKeys::derive(&root, &header).expect("a header just made fits its root secret"))
}

/// Keys of live state.
pub(crate) fn live_keys() -> LiveKeys {
    keys(Cipher::ChaCha20Poly1305).live_keys()
}

/// A directory on the disk that target/ is on; a tmpfs would make every fsync free.
pub(crate) fn scratch() -> TempDir {
    tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("a scratch directory below target/")
}

/// The disk in a directory.
pub(crate) fn disk(dir: &Path) -> Arc<dyn Disk> {
    Arc::new(RealDisk::open(dir).expect("the scratch directory opens"))
}

/// A vault that is open for work. The directory goes with it.
pub(crate) struct Vault {
    pub(crate) engine: Arc<Engine>,
    _dir: TempDir,
}

impl Vault {
    /// Makes a vault with the default settings.
    pub(crate) fn new() -> Self {
        let dir = scratch();
        let disk = disk(dir.path());
        let env: Arc<dyn Env> = Arc::new(SystemEnv);
        let root = RootSecret::generate(env.as_ref());
        let mut header = new_header(env.as_ref(), &root, Cipher::ChaCha20Poly1305, CHUNKER, CREATED.into());
        // A keyfile, so that no passphrase has to be stretched.
        let key = Credential::Keyfile(SecretBytes::new(vec![7; 64]));
        add_slot(env.as_ref(), &mut header, &root, &key, Argon2Cost::FLOOR, "bench".into(), CREATED.into())
            .expect("a first slot");
        create_vault(disk.as_ref(), header, &root).expect("a new vault");
        let unlocked = unlock(header::load(disk.as_ref()).expect("its header"), &key).expect("its key");
        let options = OpenOptions {
            cfg: EngineConfig { reserve_bytes: 0, ..EngineConfig::default() },
            owner: (0, 0),
            path: "/bench".into(),
            highwater: None,
            accept_rollback: false,
            discard_live: false,
            holder_note: "{}".into(),
        };
        let engine = open_engine(disk, env, &unlocked, options).expect("the vault opens").engine;
        Vault { engine, _dir: dir }
    }
}

/// Bytes that nothing can compress, different for each seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Lines as in a log or a dump; LZ4 makes them about half as long.
pub(crate) fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let words: Vec<String> = (0..3000)
        .map(|_| {
            let letters = rng.random_range(2..10);
            (0..letters).map(|_| char::from(b"etaoinshrdlucmfw"[rng.random_range(0..16)])).collect()
        })
        .collect();
    let mut out = Vec::with_capacity(len + 256);
    while out.len() < len {
        for _ in 0..9 {
            out.extend_from_slice(words[rng.random_range(0..words.len())].as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(format!("{:016x}\n", rng.random::<u64>()).as_bytes());
    }
    out.truncate(len);
    out
}
