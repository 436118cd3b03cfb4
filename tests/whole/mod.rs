//! What the whole-vault tests share: a vault with keys, engine and filesystem on a simulated disk, everything that can
//! be read of it in one comparable form, and the independent checker on the same disk.

pub mod hook;
pub mod model;
pub mod rng;
pub mod view;
pub mod work;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Arc, Once};
use std::time::Duration;

use strongroom::crypto::{Argon2Cost, Credential, RootSecret, SecretBytes, add_slot, new_header};
use strongroom::disk::{Disk, SimDisk};
use strongroom::env::{Env, TestEnv};
use strongroom::format::{ChunkerParams, Cipher};
use strongroom::fs::{Fs, FsOptions};
use strongroom::snapshot::chain::Chain;
use strongroom::snapshot::create::{SnapshotInfo, SnapshotOpts};
use strongroom::snapshot::gc::GcOpts;
use strongroom::snapshot::open::{OpenOptions, Unlocked, note_highwater, open_engine, unlock};
use strongroom::snapshot::{create, gc};
use strongroom::store::config::EngineConfig;
use strongroom::store::engine::Engine;
use strongroom::store::error::StoreError;
use strongroom::store::header;
use strongroom::store::highwater::{HighWater, HighWaterStore};
use strongroom::store::live::LiveConfig;

/// Chunks of 4 to 32 KiB, so that small files have several.
pub const CHUNKER: ChunkerParams = ChunkerParams { min: 4 << 10, avg: 8 << 10, max: 32 << 10 };

/// The root secret of every test vault, which the checker gets too.
pub const ROOT: [u8; 32] = *b"root secret of whole-vault tests";

/// Where the vault is, as far as the high-water mark is concerned.
pub const VAULT_PATH: &str = "/vault";

/// Small sizes and no threads: everything happens often, and in the same order each time.
pub fn config() -> EngineConfig {
    EngineConfig {
        pack_bytes: 96 << 10,
        workers: 1,
        cache_bytes: 256 << 10,
        dirty_bytes_max: 256 << 10,
        zstd_level: 1,
        background: false,
        reserve_bytes: 64 << 10,
        live: LiveConfig {
            segment_bytes: 160 << 10,
            cache_bytes: 1 << 20,
            overlay_bytes_max: 64 << 10,
            background: false,
        },
    }
}

/// The keyfile number `n` of a vault whose keys change.
pub fn keyfile(n: u32) -> Vec<u8> {
    blake3::hash(&n.to_le_bytes()).as_bytes().to_vec()
}

/// [`keyfile`] as a credential.
pub fn credential(n: u32) -> Credential {
    Credential::Keyfile(SecretBytes::new(keyfile(n)))
}

pub fn root_secret() -> RootSecret {
    RootSecret::from_slice(&ROOT).expect("32 bytes")
}

/// A host: the disk that holds the vault, the disk that holds the state directory, clock and randomness, sizes.
#[derive(Clone, Debug)]
pub struct Host {
    pub vault: Arc<dyn Disk>,
    pub state: Arc<dyn Disk>,
    pub env: Arc<TestEnv>,
    pub cfg: EngineConfig,
    pub accept_rollback: bool,
    pub discard_live: bool,
}

impl Host {
    pub fn new(vault: Arc<dyn Disk>, state: Arc<dyn Disk>, seed: u64) -> Host {
        Host {
            vault,
            state,
            env: Arc::new(TestEnv::new(seed)),
            cfg: config(),
            accept_rollback: false,
            discard_live: false,
        }
    }

    /// Makes the vault, with the keyfile 0.
    pub fn create(&self, cipher: Cipher) -> Result<(), StoreError> {
        let root = root_secret();
        let mut header = new_header(self.env.as_ref(), &root, cipher, CHUNKER, "2026-11-21T02:00:00Z".into());
        let date = "2026-11-21T02:00:00Z".to_string();
        add_slot(self.env.as_ref(), &mut header, &root, &credential(0), Argon2Cost::TEST, "k0".into(), date)?;
        strongroom::snapshot::open::create_vault(self.vault.as_ref(), header, &root)
    }

    pub fn unlock(&self, key: u32) -> Result<Unlocked, StoreError> {
        unlock(header::load(self.vault.as_ref())?, &credential(key))
    }

    /// Replaces keyfile `old` by keyfile `new`.
    pub fn change_key(&self, old: u32, new: u32) -> Result<(), StoreError> {
        let mut unlocked = self.unlock(old)?;
        let label = format!("k{new}");
        let date = "2026-11-21T03:00:00Z".to_string();
        let header = &mut unlocked.header;
        let id = add_slot(
            self.env.as_ref(),
            header,
            &unlocked.root,
            &credential(new),
            Argon2Cost::TEST,
            label,
            date,
        )?;
        header.slots.retain(|slot| slot.id == id);
        header::store(self.vault.as_ref(), header, &unlocked.root)?;
        let store = HighWaterStore::new(self.state.clone(), &header.vault_id);
        match store.load()? {
            Some(mark) => store.store(&HighWater { header_generation: header.generation, ..mark }),
            None => Ok(()),
        }
    }

    /// Opens the vault and its working tree.
    pub fn open(&self, key: u32) -> Result<Session, StoreError> {
        let unlocked = self.unlock(key)?;
        let opened = open_engine(
            self.vault.clone(),
            self.env.clone() as Arc<dyn Env>,
            &unlocked,
            OpenOptions {
                cfg: self.cfg.clone(),
                owner: (0, 0),
                path: VAULT_PATH.into(),
                highwater: Some(HighWaterStore::new(self.state.clone(), &unlocked.header.vault_id)),
                accept_rollback: self.accept_rollback,
                discard_live: self.discard_live,
                holder_note: "{}".into(),
            },
        )?;
        let fs = Fs::open(opened.engine.clone(), FsOptions::default())
            .map_err(|e| StoreError::Corrupt(format!("the working tree: {e}")))?;
        Ok(Session { fs, engine: opened.engine, notes: opened.notes, env: self.env.clone() })
    }
}

/// A mounted vault.
pub struct Session {
    pub fs: Arc<Fs>,
    pub engine: Arc<Engine>,
    pub notes: Vec<String>,
    pub env: Arc<TestEnv>,
}

impl Session {
    /// A snapshot, as the mount makes it.
    pub fn snapshot(&self, force: bool) -> Result<Option<SnapshotInfo>, StoreError> {
        let opts = SnapshotOpts { host: "test".into(), tags: Vec::new(), force };
        let made = create::create(&self.engine, &*self.fs, &opts)?;
        if let Some(info) = &made {
            note_highwater(&self.engine, VAULT_PATH, Some((info.seq, info.id.to_hex())), true)?;
        }
        Ok(made)
    }

    /// Collects garbage with limits that fit small packs.
    pub fn gc(&self) -> Result<gc::GcReport, StoreError> {
        let opts = GcOpts { dead_percent_min: 20, small_bytes: 24 << 10, host: "test".into() };
        let report = gc::run(&self.engine, &*self.fs, &opts)?;
        self.note_newest(true)?;
        Ok(report)
    }

    /// Raises the high-water mark to the newest chain file.
    pub fn note_newest(&self, dirty: bool) -> Result<(), StoreError> {
        let chain = self.chain()?;
        let newest = chain.head().map(|info| (info.seq, info.id.to_hex()));
        note_highwater(&self.engine, VAULT_PATH, newest, dirty)
    }

    pub fn chain(&self) -> Result<Chain, StoreError> {
        Chain::load(self.engine.ctx.disk.as_ref(), &self.engine.header)
    }

    /// Does what an unmount does, in the same order. Returns the snapshot that it made.
    pub fn unmount(self) -> Result<Option<SnapshotInfo>, StoreError> {
        let fail = |e: strongroom::fs::FsError| StoreError::Corrupt(format!("shutdown: {e}"));
        self.fs.shutdown().map_err(fail)?;
        let made = self.snapshot(false)?;
        gc::auto(&self.engine, &*self.fs)?;
        let newest = self.chain()?.head().map(|info| (info.seq, info.id.to_hex()));
        let mut result = Ok(());
        self.engine.close_with(|closing| {
            result = closing.and_then(|()| note_highwater(&self.engine, VAULT_PATH, newest.clone(), false));
        });
        result.map(|()| made)
    }

    /// Lets time pass and does what the mount does each second.
    pub fn tick(&self, secs: u64) -> Result<(), strongroom::fs::FsError> {
        self.env.advance(Duration::from_secs(secs));
        self.fs.tick()
    }
}

/// A new vault on new disks, never opened.
pub fn new_vault(seed: u64, cipher: Cipher) -> (SimDisk, SimDisk) {
    let (vault, state) = (SimDisk::new(seed), SimDisk::new(seed + 1));
    let host = Host::new(Arc::new(vault.clone()), Arc::new(state.clone()), seed);
    host.create(cipher).expect("a vault on an empty disk");
    (vault, state)
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()))
        .unwrap_or_else(|| "a panic without text".into())
}

/// Runs what may panic, and returns what the panic said. That panic is expected, so nothing is printed.
pub fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    thread_local! { static QUIET: Cell<bool> = const { Cell::new(false) }; }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                loud(panic);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    result.map_err(|panic| panic_text(panic.as_ref()))
}
