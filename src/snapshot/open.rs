//! Making, unlocking and opening vaults: where header, chain, high-water mark, live state and packs come together.
//!
//! # What is believed in which order
//! 1. The header, from whichever copy is sound, then its MAC once a slot opened (FORMAT HDR-1..3).
//! 2. The chain of snapshots: signatures, and no gap that no removal explains (FORMAT SNAP-1..7).
//! 3. The high-water mark of this host: header, chain and live state must not be behind it (promise P6).
//! 4. The live state, if there is one. Without it (a clone, a restored copy) the working tree starts from the newest complete
//!    snapshot, and its directories are loaded when they are first looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::crypto::{Credential, RootSecret, VaultKeys, unlock as unlock_header};
use crate::disk::{Disk, DiskLock};
use crate::env::Env;
use crate::format::chain::parse_name;
use crate::format::{Content, FileType, Header, Origin, PackName};
use crate::snapshot::chain::{Chain, ChainInfo, open_sealed};
use crate::snapshot::gc;
use crate::store::cold::ColdPacks;
use crate::store::config::EngineConfig;
use crate::store::ctx::Ctx;
use crate::store::engine::Engine;
use crate::store::error::{Result, StoreError};
use crate::store::header::{self, LoadedHeader};
use crate::store::highwater::{HighWater, HighWaterStore};
use crate::store::live::{Batch, Live, Table};
use crate::store::packs::Packs;
use crate::store::poison::Poison;
use crate::store::records::{InodeRow, ROOT_INO, encode_tree, encode_u64, inode_key, settings, xattr_key};

/// The vault's lock; its note says who holds it.
pub const LOCK_PATH: &str = "live/lock";

/// There while a live state is being made. A power cut in between leaves something that is no live state, or an empty one
/// that knows nothing of the snapshot it was to start from: what stands beside this file is never opened, but made again.
const UNFINISHED_PATH: &str = "live/unfinished";

/// An unlocked vault: the keys are out, nothing else was opened.
pub struct Unlocked {
    /// The header that was unlocked.
    pub header: Header,
    /// The root secret: needed to write the header again.
    pub root: RootSecret,
    /// All keys derived from it.
    pub keys: Arc<VaultKeys>,
    /// The slot that opened.
    pub slot: u32,
    /// What is wrong with the other copy of the header, if anything.
    pub warning: Option<String>,
}

/// Unlocks a header with a credential.
///
/// # Errors
/// `WrongKey` when no slot of that kind opens, `HeaderTampered` when the header's MAC or public keys are not those of the key.
pub fn unlock(loaded: LoadedHeader, credential: &Credential) -> Result<Unlocked> {
    let (root, slot) = unlock_header(&loaded.parsed, credential)?;
    let header = loaded.parsed.header;
    let keys = Arc::new(VaultKeys::derive(&root, &header)?);
    Ok(Unlocked { header, root, keys, slot, warning: loaded.warning })
}

/// Makes a vault in an empty directory: its folders, and last its header, so that what has a header is a whole vault.
///
/// # Errors
/// I/O errors; a directory that has anything of a vault in it is refused.
pub fn create_vault(disk: &dyn Disk, mut header: Header, root: &RootSecret) -> Result<()> {
    let io = |what: &'static str| move |source| StoreError::Io { what: what.into(), source };
    for path in header::COPIES {
        if disk.len(path).map_err(io("looking for a header"))?.is_some() {
            return Err(StoreError::Locked { holder: format!("there is a vault already: {path} exists") });
        }
    }
    for dir in ["packs", "snapshots", "live"] {
        disk.create_dir_all(dir).map_err(io("making the vault's folders"))?;
    }
    header::store(disk, &mut header, root)
}

/// How a vault is opened for work.
pub struct OpenOptions {
    /// Sizes and threads.
    pub cfg: EngineConfig,
    /// Owner of the root directory of a vault that never had one.
    pub owner: (u32, u32),
    /// Where the vault is, for the high-water mark.
    pub path: String,
    /// The high-water mark's place; none: no rollback protection (tests).
    pub highwater: Option<HighWaterStore>,
    /// Open even though the vault is behind its high-water mark.
    pub accept_rollback: bool,
    /// Throw the live state away and start from the newest complete snapshot.
    pub discard_live: bool,
    /// Written into the lock file: who holds the vault, as JSON.
    pub holder_note: String,
}

/// An engine and what was noticed while opening it.
pub struct Opened {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The chain as it was at open.
    pub chain: Chain,
    /// Things the user should know: recovery after a crash, incomplete snapshots, damaged header copy.
    pub notes: Vec<String>,
}

/// The packs that are there, with their sizes. Names that are no pack names are left out (FORMAT LAY-2).
///
/// # Errors
/// I/O errors.
pub fn list_packs(disk: &dyn Disk) -> Result<BTreeMap<PackName, u64>> {
    let io = |source| StoreError::Io { what: "listing packs".into(), source };
    let mut packs = BTreeMap::new();
    let folders = match disk.list("packs") {
        Ok(items) => items,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(packs),
        Err(e) => return Err(io(e)),
    };
    for folder in folders.into_iter().filter(|item| item.is_dir) {
        for item in disk.list(&format!("packs/{}", folder.name)).map_err(io)? {
            match PackName::from_hex(&item.name) {
                Some(name) if !item.is_dir && item.name.starts_with(&folder.name) => {
                    packs.insert(name, item.len);
                }
                _ => {}
            }
        }
    }
    Ok(packs)
}

/// Takes the vault's lock.
///
/// # Errors
/// `Locked`, with the holder's note, when another process has it.
pub fn lock(disk: &dyn Disk, note: &str) -> Result<Box<dyn DiskLock>> {
    let io = |source| StoreError::Io { what: "locking the vault".into(), source };
    disk.create_dir_all("live").map_err(io)?;
    match disk.lock(LOCK_PATH).map_err(io)? {
        Some(lock) => {
            lock.write_note(note.as_bytes()).map_err(io)?;
            Ok(lock)
        }
        None => {
            let holder = disk.read_file(LOCK_PATH, 64 << 10).map_err(io)?;
            Err(StoreError::Locked { holder: String::from_utf8_lossy(&holder).into_owned() })
        }
    }
}

/// Declares the live state void: whoever opens the vault next makes a new one from its newest complete snapshot. For one
/// that is known to have nothing that no snapshot has.
///
/// # Errors
/// I/O errors.
pub fn void_live(disk: &dyn Disk) -> Result<()> {
    disk.write_file_atomic(UNFINISHED_PATH, b"").map_err(|e| StoreError::io(UNFINISHED_PATH, e))
}

/// Whether the live state counts for nothing: it was never finished, or [`void_live`] was called.
///
/// # Errors
/// I/O errors.
pub fn live_is_void(disk: &dyn Disk) -> Result<bool> {
    Ok(disk.len(UNFINISHED_PATH).map_err(|e| StoreError::io(UNFINISHED_PATH, e))?.is_some())
}

/// Compares a vault with what this host saw of it last.
///
/// # Errors
/// `Rollback`, saying what is behind.
pub fn check_highwater(mark: &HighWater, header: &Header, chain: &Chain) -> Result<()> {
    if header.generation < mark.header_generation {
        return Err(StoreError::Rollback(format!(
            "the header is generation {}, this host has seen generation {}",
            header.generation, mark.header_generation
        )));
    }
    if mark.seq == 0 {
        return Ok(());
    }
    let newest = chain.head().map_or(0, |info| info.seq);
    if newest < mark.seq {
        return Err(StoreError::Rollback(format!(
            "the newest snapshot file here is number {newest}, this host has seen number {}",
            mark.seq
        )));
    }
    match mark.snapshot_id() {
        Some(seen) if chain.contains(mark.seq, &seen) => Ok(()),
        _ => Err(StoreError::Rollback(format!(
            "snapshot file number {} is not the one this host has seen: two hosts have written to copies of this vault",
            mark.seq
        ))),
    }
}

/// Opens a vault for work: takes its lock, checks chain and high-water mark, recovers the live state.
///
/// # Errors
/// `Locked`, `Rollback`, `Corrupt` and I/O errors; nothing was changed but what recovery had to.
pub fn open_engine(
    disk: Arc<dyn Disk>,
    env: Arc<dyn Env>,
    unlocked: &Unlocked,
    opts: OpenOptions,
) -> Result<Opened> {
    let lock = lock(disk.as_ref(), &opts.holder_note)?;
    let mut notes: Vec<String> = unlocked.warning.iter().cloned().collect();
    let header = unlocked.header.clone();
    let chain = Chain::load_with(disk.as_ref(), &unlocked.keys)?;
    for problem in chain.problems() {
        let text = format!("{}: {}", problem.file, problem.what);
        if problem.breaks_chain && !opts.accept_rollback {
            return Err(StoreError::Rollback(format!("the chain of snapshots is not whole: {text}")));
        }
        notes.push(text);
    }
    let mark = opts.highwater.as_ref().map(HighWaterStore::load).transpose()?.flatten();
    if let (Some(mark), false) = (&mark, opts.accept_rollback) {
        check_highwater(mark, &header, &chain)?;
    }
    let present: BTreeSet<PackName> = list_packs(disk.as_ref())?.into_keys().collect();
    for (info, _) in chain.latest(&present, None).incomplete {
        notes.push(format!("snapshot {} is incomplete: not all of its packs are here", info.name()));
    }
    let poison = Arc::new(Poison::new());
    let ctx = Arc::new(Ctx {
        disk: disk.clone(),
        env: env.clone(),
        keys: unlocked.keys.clone(),
        vault_id: header.vault_id,
        cipher: header.cipher,
        chunker: header.chunker,
        poison: poison.clone(),
        cfg: opts.cfg.clone(),
    });
    let live_keys = unlocked.keys.live_keys();
    let unfinished = live_is_void(disk.as_ref())?;
    let existing = if opts.discard_live || unfinished {
        None
    } else {
        match Live::open(disk.clone(), live_keys.clone(), env.clone(), poison.clone(), opts.cfg.live.clone())
        {
            Ok(live) => Some(live),
            Err(StoreError::NotFound(_)) => None,
            Err(e) => return Err(e),
        }
    };
    let (live, fresh) = match existing {
        Some(live) => {
            check_live(&live, mark.as_ref(), &chain, opts.accept_rollback)?;
            if live.recovered() {
                notes.push("the vault was not unmounted cleanly: recovered to the last commit".into());
            }
            (live, false)
        }
        None => {
            if let (Some(mark), false) = (&mark, opts.accept_rollback || opts.discard_live)
                && mark.live_dirty
                && mark.path == opts.path
            {
                return Err(StoreError::Rollback(
                    "the live state is gone, and it held changes that no snapshot has".into(),
                ));
            }
            refuse_empty_start(&chain, &present, opts.accept_rollback)?;
            void_live(disk.as_ref())?;
            (Live::create(disk.clone(), live_keys, env.clone(), poison, opts.cfg.live.clone())?, true)
        }
    };
    let packs = Packs::open(ctx.clone(), live.clone())?;
    let raise_mark = |live_dirty| {
        let Some(store) = &opts.highwater else { return Ok(()) };
        let newest = chain.head();
        store.store(&HighWater {
            vault_id: header.vault_id.to_hex(),
            path: opts.path.clone(),
            header_generation: header.generation,
            seq: newest.map_or(0, |info| info.seq),
            id: newest.map_or(String::new(), |info| info.id.to_hex()),
            live_generation: live.generation(),
            live_dirty,
        })
    };
    if fresh {
        let base = chain.latest(&present, Some(Origin::WorkingTree)).complete;
        // Anybody could have put the others there. Nothing needs them, and taken in they would be named by the next snapshot.
        let named = chain.named();
        let (known, unknown): (BTreeSet<PackName>, BTreeSet<PackName>) =
            present.iter().copied().partition(|name| named.contains(name));
        if !unknown.is_empty() {
            notes.push(format!("{} packs here are named by no snapshot; they are left alone", unknown.len()));
        }
        start_from_snapshot(&ctx, unlocked, &live, &packs, &chain, base, &known, opts.owner)?;
        // The mark still has the generation of the live state that was there before. It holds no changes yet: were the
        // power to go now, it would be made once more.
        raise_mark(false)?;
        disk.remove(UNFINISHED_PATH)
            .and_then(|()| disk.sync_dir("live"))
            .map_err(|e| StoreError::io(UNFINISHED_PATH, e))?;
        if let Some(info) = base {
            notes.push(format!("no live state here: the working tree starts from snapshot {}", info.name()));
        }
    }
    raise_mark(true)?;
    let engine = Engine::new(ctx, live, packs, header, opts.highwater, lock);
    let recovered = gc::recover(&engine, &chain)?;
    if recovered != gc::Recovered::default() {
        notes.push(format!(
            "an interrupted collection or deletion was settled: {} packs kept, {} packs and {} snapshot files deleted",
            recovered.undone, recovered.finished, recovered.chain_files
        ));
    }
    Ok(Opened { engine, chain, notes })
}

/// A working tree must not begin empty where there are snapshots to begin with, only because none of them is complete or
/// can be believed: the next backup would take everything for deleted.
fn refuse_empty_start(chain: &Chain, present: &BTreeSet<PackName>, accept: bool) -> Result<()> {
    let latest = chain.latest(present, Some(Origin::WorkingTree));
    if accept || latest.complete.is_some() {
        return Ok(());
    }
    let why = if let Some((newest, _)) = latest.incomplete.first() {
        format!("not all packs of {} are here, nor those of an older one", newest.name())
    } else {
        // FORMAT LAY-2: what has not the name of a chain file is no chain file.
        let named = |file: &str| file.rsplit('/').next().is_some_and(|name| parse_name(name).is_some());
        match chain.problems().iter().find(|problem| named(&problem.file)) {
            Some(problem) => format!("{}: {}", problem.file, problem.what),
            None => return Ok(()),
        }
    };
    Err(StoreError::Corrupt(format!(
        "no snapshot here can be started from ({why}); --accept-rollback begins with an empty tree"
    )))
}

/// A live state must not be older than what this host saw, nor than the chain it stands beside.
fn check_live(live: &Live, mark: Option<&HighWater>, chain: &Chain, accept: bool) -> Result<()> {
    if accept {
        return Ok(());
    }
    if let Some(mark) = mark
        && live.generation() < mark.live_generation
    {
        return Err(StoreError::Rollback(format!(
            "the live state is at generation {}, this host has seen {}",
            live.generation(),
            mark.live_generation
        )));
    }
    let Some(newest) = chain.snapshots().rev().find(|info| info.origin == Origin::WorkingTree) else {
        return Ok(());
    };
    let known = live.get(Table::Snapshots, &newest.seq.to_be_bytes())?;
    // A snapshot's row is durable before its file is written, so a power cut is no excuse.
    if known.as_deref() != Some(newest.id.as_bytes().as_slice()) {
        return Err(StoreError::Rollback(format!(
            "the live state does not know snapshot {}: live/ is from an older copy of the vault",
            newest.name()
        )));
    }
    Ok(())
}

/// Fills a new live state: from snapshot `base`, or with an empty root directory.
#[expect(clippy::too_many_arguments, reason = "called once; a struct would only rename the parameters")]
fn start_from_snapshot(
    ctx: &Ctx,
    unlocked: &Unlocked,
    live: &Arc<Live>,
    packs: &Packs,
    chain: &Chain,
    base: Option<&ChainInfo>,
    present: &BTreeSet<PackName>,
    owner: (u32, u32),
) -> Result<()> {
    for name in present {
        packs.adopt(name)?;
    }
    let mut batch = Batch::new();
    for info in chain.snapshots().filter(|info| info.origin == Origin::WorkingTree) {
        batch.put(Table::Snapshots, info.seq.to_be_bytes(), info.id.as_bytes().to_vec());
    }
    let mut row = InodeRow::new(FileType::Dir, 0o755, owner.0, owner.1, ROOT_INO, ctx.env.now());
    row.nlink = 2;
    let mut next_ino = ROOT_INO + 1;
    match base {
        None => batch.put(Table::DirtyDirs, inode_key(ROOT_INO), encode_u64(0)),
        Some(info) => {
            let sealed = open_sealed(ctx.disk.as_ref(), &unlocked.keys, info)?;
            let root = sealed.root.ok_or_else(|| {
                StoreError::Corrupt(format!("snapshot {} has no root directory", info.name()))
            })?;
            let Content::Dir(tree) = root.entry.content else {
                return Err(StoreError::Corrupt(format!(
                    "the root of snapshot {} is no directory",
                    info.name()
                )));
            };
            let entry = root.entry;
            row = InodeRow {
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                nlink: entry.nlink,
                atime: entry.atime,
                mtime: entry.mtime,
                ctime: entry.ctime,
                lazy: Some(tree),
                has_xattrs: !entry.xattrs.is_empty(),
                ..row
            };
            for (name, value) in entry.xattrs {
                batch.put(Table::Xattrs, xattr_key(ROOT_INO, &name), value);
            }
            batch.put(Table::Trees, inode_key(ROOT_INO), encode_tree(&tree));
            batch.put(Table::Settings, settings::BASE_SNAPSHOT, info.id.as_bytes().to_vec());
            batch.put(Table::Settings, settings::LAZY, Vec::new());
            next_ino = root.next_ino;
        }
    }
    batch.put(Table::Inodes, inode_key(ROOT_INO), row.encode());
    batch.put(Table::Settings, settings::NEXT_INO, encode_u64(next_ino));
    batch.put(Table::Settings, settings::CHANGE_COUNTER, encode_u64(1));
    live.apply(batch)?;
    live.checkpoint()
}

/// Records in the high-water mark what the vault is now; called after a snapshot and at close. What was seen before stays
/// seen: a mount only adds to the chain, so one that has become shorter under it was cut.
///
/// # Errors
/// When the mark can't be written.
pub fn note_highwater(
    engine: &Engine,
    path: &str,
    newest: Option<(u64, String)>,
    live_dirty: bool,
) -> Result<()> {
    let Some(store) = &engine.highwater else { return Ok(()) };
    let before = store.load()?;
    let seen = before.as_ref().map_or((0, String::new()), |mark| (mark.seq, mark.id.clone()));
    let (seq, id) = newest.filter(|(seq, _)| *seq > seen.0).unwrap_or(seen);
    let header_generation =
        before.as_ref().map_or(0, |mark| mark.header_generation).max(engine.header.generation);
    store.store(&HighWater {
        vault_id: engine.ctx.vault_id.to_hex(),
        path: path.to_string(),
        header_generation,
        seq,
        id,
        live_generation: engine.live.generation(),
        live_dirty,
    })
}

/// Opens the packs of one snapshot for reading, without live state and without the vault's lock.
///
/// # Errors
/// `NotFound` for an unknown or incomplete snapshot; `Corrupt` for damaged packs.
pub fn open_cold(
    disk: Arc<dyn Disk>,
    unlocked: &Unlocked,
    chain: &Chain,
    seqs: &[u64],
    cache_bytes: usize,
) -> Result<ColdPacks> {
    let mut needed = BTreeSet::new();
    for seq in seqs {
        needed.extend(chain.needed_packs(*seq)?);
    }
    ColdPacks::open(disk, unlocked.keys.clone(), &unlocked.header, needed.into_iter(), cache_bytes)
}
