//! Tests of the chunk store on simulated disks.

#![allow(clippy::unwrap_used)]

mod attack;
mod basics;
mod crash;
mod maintain;

use std::sync::Arc;

use super::super::cold::ColdPacks;
use super::super::config::EngineConfig;
use super::super::poison::Poison;
use super::*;
use crate::crypto::{RootSecret, VaultKeys, new_header};
use crate::disk::{Disk, SimDisk};
use crate::env::{Env, TestEnv};
use crate::format::{ChunkerParams, Cipher, Header};

/// What stays the same when a vault is opened again: its keys.
pub(super) struct Vault {
    pub(super) env: Arc<dyn Env>,
    pub(super) keys: Arc<VaultKeys>,
    pub(super) header: Header,
}

/// An open chunk store.
pub(super) struct Store {
    pub(super) ctx: Arc<Ctx>,
    pub(super) live: Arc<Live>,
    pub(super) packs: Arc<Packs>,
}

impl Vault {
    pub(super) fn new(seed: u64) -> Self {
        Self::with_cipher(seed, Cipher::ChaCha20Poly1305)
    }

    pub(super) fn with_cipher(seed: u64, cipher: Cipher) -> Self {
        let env: Arc<dyn Env> = Arc::new(TestEnv::new(seed));
        let root = RootSecret::generate(&*env);
        let chunker = ChunkerParams { min: 512 << 10, avg: 1 << 20, max: 4 << 20 };
        let header = new_header(&*env, &root, cipher, chunker, "2026-11-21T02:00:00Z".to_string());
        let keys = Arc::new(VaultKeys::derive(&root, &header).unwrap());
        Vault { env, keys, header }
    }

    pub(super) fn ctx(&self, disk: Arc<dyn Disk>, cfg: EngineConfig) -> Arc<Ctx> {
        Arc::new(Ctx {
            disk,
            env: Arc::clone(&self.env),
            keys: Arc::clone(&self.keys),
            vault_id: self.header.vault_id,
            cipher: self.header.cipher,
            chunker: self.header.chunker,
            poison: Arc::new(Poison::new()),
            cfg,
        })
    }

    /// A store on a fresh live database.
    pub(super) fn create(&self, disk: Arc<dyn Disk>, cfg: EngineConfig) -> Store {
        let ctx = self.ctx(disk, cfg);
        let live = live_create(&ctx).unwrap();
        let packs = Packs::open(Arc::clone(&ctx), Arc::clone(&live)).unwrap();
        Store { ctx, live, packs }
    }

    /// A store on the live database that is there.
    pub(super) fn open(&self, disk: Arc<dyn Disk>, cfg: EngineConfig) -> Result<Store> {
        let ctx = self.ctx(disk, cfg);
        let live = live_open(&ctx)?;
        let packs = Packs::open(Arc::clone(&ctx), Arc::clone(&live))?;
        Ok(Store { ctx, live, packs })
    }

    pub(super) fn cold(&self, disk: &SimDisk) -> ColdPacks {
        let names: Vec<_> = disk.raw_list().iter().filter_map(|p| parse_pack_path(p)).collect();
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        ColdPacks::open(disk, Arc::clone(&self.keys), &self.header, names.into_iter(), 1 << 20).unwrap()
    }
}

impl Store {
    /// Commits and closes everything.
    pub(super) fn close(self) {
        self.packs.close_open().unwrap();
        self.live.close().unwrap();
    }
}

pub(super) use crate::format::pack::parse_pack_path;

fn live_create(ctx: &Ctx) -> Result<Arc<Live>> {
    let (disk, env, poison) = (Arc::clone(&ctx.disk), Arc::clone(&ctx.env), Arc::clone(&ctx.poison));
    Live::create(disk, ctx.keys.live_keys(), env, poison, ctx.cfg.live.clone())
}

fn live_open(ctx: &Ctx) -> Result<Arc<Live>> {
    let (disk, env, poison) = (Arc::clone(&ctx.disk), Arc::clone(&ctx.env), Arc::clone(&ctx.poison));
    Live::open(disk, ctx.keys.live_keys(), env, poison, ctx.cfg.live.clone())
}

/// Small packs, no threads.
pub(super) fn quiet(pack_bytes: u64) -> EngineConfig {
    let mut cfg =
        EngineConfig { pack_bytes, cache_bytes: 1 << 20, background: false, ..EngineConfig::default() };
    cfg.live.background = false;
    cfg.live.segment_bytes = 256 << 10;
    cfg.live.cache_bytes = 1 << 20;
    cfg
}

/// Small packs, with threads.
pub(super) fn threaded(pack_bytes: u64) -> EngineConfig {
    let mut cfg = EngineConfig { background: true, workers: 4, ..quiet(pack_bytes) };
    cfg.live.background = true;
    cfg
}

/// `len` bytes that don't compress, the same for the same label.
pub(super) fn noise(label: &str, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(label.as_bytes()).finalize_xof().fill(&mut out);
    out
}

/// `len` bytes that do compress, the same for the same label.
pub(super) fn prose(label: &str, len: usize) -> Vec<u8> {
    let words = ["backup ", "of ", "the ", "vault ", "chunk ", "and ", "pack ", "\n", label];
    let picks = noise(label, len);
    let mut out: Vec<u8> = picks.iter().flat_map(|b| words[usize::from(*b) % words.len()].bytes()).collect();
    out.truncate(len);
    out
}

/// Whether an error says that something is damaged.
pub(super) fn corrupt<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(StoreError::Corrupt(text)) => text,
        other => panic!("expected damage, got {other:?}"),
    }
}
