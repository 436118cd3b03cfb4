//! What several verbs share: finding, unlocking and opening a vault, with its high-water mark and its notes.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{CliError, CliResult, ExitCode};
use super::output::Output;
use super::place::Place;
use super::unlock::UnlockArgs;
use crate::config::{engine_config, state_dir};
use crate::crypto::{Credential, RootSecret, VaultKeys};
use crate::disk::{Disk, DiskLock, RealDisk};
use crate::env::{Env, SystemEnv};
use crate::fetch::{Early, Proved, RemoteDisk, RemoteHeader, Wanted};
use crate::format::{Header, PackName};
use crate::snapshot::chain::Chain;
use crate::snapshot::open::{self, OpenOptions, Opened, Unlocked};
use crate::snapshot::select::select_in;
use crate::store::EngineConfig;
use crate::store::error::StoreError;
use crate::store::header::{self, LoadedHeader};
use crate::store::highwater::{HighWater, HighWaterStore};

/// A vault whose header was read.
pub(crate) struct HeaderOnly {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) loaded: LoadedHeader,
    /// Where it is at a remote: all headers that could be meant.
    there: Option<RemoteHeader>,
}

/// A vault that was unlocked.
pub(crate) struct UnlockedVault {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) header: Header,
    pub(crate) root: RootSecret,
    pub(crate) keys: Arc<VaultKeys>,
    pub(crate) slot: u32,
    warning: Option<String>,
}

impl UnlockedVault {
    pub(crate) fn into_unlocked(self) -> (Arc<dyn Disk>, Unlocked) {
        let Self { disk, header, root, keys, slot, warning } = self;
        (disk, Unlocked { header, root, keys, slot, warning })
    }
}

/// A vault opened for reading its snapshots; no lock, no live state.
pub(crate) struct ReadVault {
    pub(crate) disk: Arc<dyn Disk>,
    /// Where it is, if it is at a remote; `disk` is the same.
    pub(crate) from: Option<Arc<RemoteDisk>>,
    pub(crate) unlocked: Unlocked,
    pub(crate) chain: Chain,
}

/// The absolute form of a vault's path, as the high-water mark and mount tables know it.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::fs::canonicalize(path)
        .unwrap_or_else(|_| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()))
}

fn open_disk(path: &Path) -> CliResult<Arc<dyn Disk>> {
    let shown = super::show_path(path);
    match RealDisk::open(path) {
        Ok(disk) => Ok(Arc::new(disk)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(CliError::new(ExitCode::NotAVault, format!("{shown}: no such directory")))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            Err(CliError::new(ExitCode::NotAVault, format!("{shown} is no directory")))
        }
        Err(e) => Err(CliError::new(ExitCode::Io, format!("{shown}: {e}"))),
    }
}

/// Reads a vault's header.
pub(crate) fn open_header(path: &Path) -> CliResult<HeaderOnly> {
    open_header_at(&Place::Dir(path.to_path_buf()))
}

/// Reads a vault's header, wherever it is.
pub(crate) fn open_header_at(place: &Place) -> CliResult<HeaderOnly> {
    match place {
        Place::Dir(path) => {
            let disk = open_disk(path)?;
            let loaded =
                header::load(disk.as_ref()).map_err(|e| CliError::from(e).context(&place.shown()))?;
            Ok(HeaderOnly { disk, loaded, there: None })
        }
        Place::Remote(remote) => {
            let there = remote.header().map_err(|e| CliError::reading(e).context(&place.shown()))?;
            let loaded =
                LoadedHeader { parsed: there.loaded.parsed.clone(), warning: there.loaded.warning.clone() };
            Ok(HeaderOnly { disk: Arc::clone(remote) as Arc<dyn Disk>, loaded, there: Some(there) })
        }
    }
}

/// Reads and unlocks a vault's header.
pub(crate) fn unlock(path: &Path, args: &UnlockArgs, out: &Output) -> CliResult<UnlockedVault> {
    let place = Place::Dir(path.to_path_buf());
    // The header first: nobody should type a passphrase for a directory that is no vault.
    let header = open_header_at(&place)?;
    finish_unlock(&place, header, passphrase_for(&place, args)?, out)
}

fn passphrase_for(place: &Place, args: &UnlockArgs) -> CliResult<Credential> {
    args.credential(&format!("Passphrase for {}", place.shown()), false)
}

/// [`unlock`] with a credential that was obtained already.
fn unlock_with(path: &Path, credential: Credential, out: &Output) -> CliResult<UnlockedVault> {
    let place = Place::Dir(path.to_path_buf());
    finish_unlock(&place, open_header_at(&place)?, credential, out)
}

fn finish_unlock(
    place: &Place,
    HeaderOnly { disk, loaded, there }: HeaderOnly,
    credential: Credential,
    out: &Output,
) -> CliResult<UnlockedVault> {
    let unlocked = match there {
        None => open::unlock(loaded, &credential),
        Some(there) => prove(&there, &credential, out).map(|proved| proved.unlocked),
    };
    let Unlocked { header, root, keys, slot, warning } =
        unlocked.map_err(|e| CliError::from(e).context(&place.shown()))?;
    if let Some(text) = &warning {
        out.warning(text);
    }
    Ok(UnlockedVault { disk, header, root, keys, slot, warning })
}

/// Finds out with a key which of a remote's headers counts, and says so if others would hide it.
pub(crate) fn prove(
    there: &RemoteHeader,
    credential: &Credential,
    out: &Output,
) -> Result<Proved, StoreError> {
    let proved = there.unlock(credential, &mut |text| out.warning(text))?;
    if let Some(text) = &proved.alarm {
        out.warning(&format!("{text}. Somebody writes there who should not: find out who"));
    }
    Ok(proved)
}

/// What will be read of a vault.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    /// Snapshots, as they are named.
    pub(crate) snapshots: Vec<String>,
    /// Whether files will be read, and not only trees.
    pub(crate) data: bool,
    pub(crate) accept_rollback: bool,
}

/// Unlocks a vault and reads its chain, for verbs that only read snapshots.
pub(crate) fn open_read(
    place: &Place,
    args: &UnlockArgs,
    reading: Reading,
    out: &Output,
) -> CliResult<ReadVault> {
    let (header, accept_rollback) = (open_header_at(place)?, reading.accept_rollback);
    let early = ask_early(place, &header, reading)?;
    let credential = passphrase_for(place, args)?;
    let (disk, unlocked) = finish_unlock(place, header, credential, out)?.into_unlocked();
    if let Place::Dir(path) = place {
        wait_for_daemon(path, out)?;
    }
    read_chain(place, disk, unlocked, early, accept_rollback, out)
}

/// [`open_read`] with a credential that was obtained already.
pub(crate) fn open_read_with(
    place: &Place,
    credential: Credential,
    reading: Reading,
    out: &Output,
) -> CliResult<ReadVault> {
    let (header, accept_rollback) = (open_header_at(place)?, reading.accept_rollback);
    let early = ask_early(place, &header, reading)?;
    let (disk, unlocked) = finish_unlock(place, header, credential, out)?.into_unlocked();
    read_chain(place, disk, unlocked, early, accept_rollback, out)
}

/// Asks a remote for what needs no key.
fn ask_early(place: &Place, header: &HeaderOnly, reading: Reading) -> CliResult<Option<Early>> {
    let Place::Remote(disk) = place else { return Ok(None) };
    let Reading { snapshots, data, .. } = reading;
    let wanted = move |chain: &Chain, present: &BTreeSet<PackName>| {
        // What can't be found is said when it is looked for in earnest.
        let find = |name: &String| select_in(chain, present, name, SystemEnv.now()).ok();
        Wanted { snapshots: snapshots.iter().filter_map(find).map(|found| found.seq).collect(), data }
    };
    Ok(Some(Early::start(disk, &header.loaded.parsed.header, wanted)?))
}

fn read_chain(
    place: &Place,
    disk: Arc<dyn Disk>,
    unlocked: Unlocked,
    early: Option<Early>,
    accept_rollback: bool,
    out: &Output,
) -> CliResult<ReadVault> {
    let chain = match early.and_then(|early| early.chain(&unlocked.header)) {
        Some(chain) => chain?,
        None => Chain::load(disk.as_ref(), &unlocked.header)?,
    };
    for problem in chain.problems() {
        out.warning(&super::show_bytes(format!("{}: {}", problem.file, problem.what).as_bytes()));
    }
    check_highwater(place, &unlocked.header, &chain, accept_rollback, out)?;
    let from = match place {
        Place::Dir(_) => None,
        Place::Remote(disk) => {
            warn_unversioned(disk.unversioned(), out);
            disk.only_packs(chain.named());
            Some(Arc::clone(disk))
        }
    };
    let present = open::list_packs(disk.as_ref())?.into_keys().collect();
    for (info, _) in chain.latest(&present, None).incomplete {
        out.warning(&format!("snapshot {} is incomplete: not all of its packs are here", info.name()));
    }
    Ok(ReadVault { disk, from, unlocked, chain })
}

/// Says that what somebody does to objects at a remote would not be noticed. `why`: [`crate::remote::Findings::unversioned`].
pub(crate) fn warn_unversioned(why: Option<String>, out: &Output) {
    if let Some(why) = why {
        out.warning(&format!(
            "objects at the remote can't be read by version ({}): what is seen there is read, even where somebody has hidden \
             objects or written over them. s3:ListBucketVersions and s3:GetObjectVersion allow it",
            super::show_bytes(why.as_bytes())
        ));
    }
}

/// Reading an older copy elsewhere is what copies are for, so it is only said, of a remote as well: what was not shipped yet
/// is not there. At the vault's own place it is refused.
fn check_highwater(
    place: &Place,
    header: &Header,
    chain: &Chain,
    accept: bool,
    out: &Output,
) -> CliResult<()> {
    let Some(store) = highwater_store(header)? else { return Ok(()) };
    let Some(mark) = store.load()? else { return Ok(()) };
    let own = matches!(place, Place::Dir(path) if mark.path == path_text(path));
    match open::check_highwater(&mark, header, chain) {
        Ok(()) => Ok(()),
        Err(StoreError::Rollback(text)) if matches!(place, Place::Remote(_)) => {
            out.warning(&format!("the remote is behind, or was rolled back: {text}"));
            Ok(())
        }
        Err(e) if accept || !own => {
            out.warning(&e.to_string());
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

/// A daemon that still writes the last changes of an unmounted vault is waited for.
pub(crate) fn wait_for_daemon(path: &Path, out: &Output) -> CliResult<()> {
    match crate::mount::holder::wait_until_free(path, None, &mut |holder| {
        out.note(&format!("waiting for {holder}"))
    }) {
        Ok(_) => Ok(()),
        // Who reads snapshots can do so beside a mount; who writes finds the lock taken and is told by whom.
        Err(error) if error.kind == crate::mount::ErrorKind::InUse => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn path_text(path: &Path) -> String {
    absolute(path).to_string_lossy().into_owned()
}

pub(crate) fn highwater_store(header: &Header) -> CliResult<Option<HighWaterStore>> {
    let dir = state_dir();
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    match made.and_then(|()| RealDisk::open(&dir)) {
        Ok(disk) => Ok(Some(HighWaterStore::new(Arc::new(disk), &header.vault_id))),
        Err(e) => Err(CliError::new(ExitCode::Io, format!("the state directory {}: {e}", dir.display()))
            .hint("it keeps the high-water mark that reveals a rolled-back vault; choose another one with STATE_DIRECTORY")),
    }
}

/// What a verb that works on a vault without mounting it wants.
pub(crate) struct WorkOptions {
    pub(crate) accept_rollback: bool,
    pub(crate) discard_live: bool,
    /// What the holder's note says, e.g. the command.
    pub(crate) purpose: &'static str,
}

/// Unlocks a vault and opens it for work; fails when it is mounted.
pub(crate) fn open_work(
    path: &Path,
    args: &UnlockArgs,
    work: &WorkOptions,
    out: &Output,
) -> CliResult<Opened> {
    let (disk, unlocked) = unlock(path, args, out)?.into_unlocked();
    wait_for_daemon(path, out)?;
    open_unlocked(path, disk, &unlocked, work, engine_config(), out)
}

/// [`open_work`] with a credential that was obtained already, and with sizes of its own.
pub(crate) fn open_work_with(
    path: &Path,
    credential: Credential,
    work: &WorkOptions,
    cfg: EngineConfig,
    out: &Output,
) -> CliResult<Opened> {
    let (disk, unlocked) = unlock_with(path, credential, out)?.into_unlocked();
    open_unlocked(path, disk, &unlocked, work, cfg, out)
}

pub(crate) fn open_unlocked(
    path: &Path,
    disk: Arc<dyn Disk>,
    unlocked: &Unlocked,
    work: &WorkOptions,
    cfg: EngineConfig,
    out: &Output,
) -> CliResult<Opened> {
    let highwater = highwater_store(&unlocked.header)?;
    open_with_mark(path, disk, unlocked, work, cfg, highwater, out)
}

/// Opens a vault without looking at this host's high-water mark, and without touching it: for one that is about to be brought
/// up to something newer, which was compared with the mark.
pub(crate) fn open_behind_mark(
    path: &Path,
    disk: Arc<dyn Disk>,
    unlocked: &Unlocked,
    work: &WorkOptions,
    out: &Output,
) -> CliResult<Opened> {
    open_with_mark(path, disk, unlocked, work, engine_config(), None, out)
}

fn open_with_mark(
    path: &Path,
    disk: Arc<dyn Disk>,
    unlocked: &Unlocked,
    work: &WorkOptions,
    cfg: EngineConfig,
    highwater: Option<HighWaterStore>,
    out: &Output,
) -> CliResult<Opened> {
    let opened = open::open_engine(
        disk,
        Arc::new(SystemEnv),
        unlocked,
        OpenOptions {
            cfg,
            owner: (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
            path: path_text(path),
            highwater,
            accept_rollback: work.accept_rollback,
            discard_live: work.discard_live,
            holder_note: format!("{} strongroom {}", std::process::id(), work.purpose),
        },
    )
    .map_err(|error| match error {
        // Said as for a mount: by whom, and what to do.
        StoreError::Locked { .. } => match crate::mount::holder::probe(path) {
            Ok(holder) => crate::mount::holder::in_use(path, &holder).into(),
            Err(_) => CliError::from(error),
        },
        other => other.into(),
    })?;
    for note in &opened.notes {
        out.note(note);
        tracing::warn!(note, "opening the vault");
    }
    Ok(opened)
}

/// Closes an engine after work, with its high-water mark.
pub(crate) fn close_work(path: &Path, opened: &Opened) -> CliResult<()> {
    let chain = Chain::of(&opened.engine)?;
    let newest = chain.head().map(|info| (info.seq, info.id.to_hex()));
    opened.engine.close()?;
    open::note_highwater(&opened.engine, &path_text(path), newest, false)?;
    Ok(())
}

/// Serialises changes of the header between processes.
pub(crate) fn lock_header(path: &Path) -> CliResult<Box<dyn DiskLock>> {
    let disk = open_disk(path)?;
    disk.create_dir_all("live")?;
    disk.lock("live/header.lock")?
        .ok_or_else(|| CliError::new(ExitCode::InUse, "another process is changing the keys of this vault"))
}

/// Remembers a newly written header's generation.
pub(crate) fn note_header_generation(path: &Path, vault: &UnlockedVault) -> CliResult<()> {
    let Some(store) = highwater_store(&vault.header)? else { return Ok(()) };
    let mark = match store.load()? {
        Some(mark) => {
            HighWater { header_generation: mark.header_generation.max(vault.header.generation), ..mark }
        }
        None => HighWater {
            vault_id: vault.header.vault_id.to_hex(),
            path: path_text(path),
            header_generation: vault.header.generation,
            seq: 0,
            id: String::new(),
            live_generation: 0,
            live_dirty: false,
        },
    };
    store.store(&mark)?;
    Ok(())
}

/// Remembers what was fetched from a remote: this host has seen that much, whatever becomes of the copy. Only for a vault that
/// was unlocked; what nobody has proved must not raise the mark.
pub(crate) fn note_seen(path: &Path, header: &Header, chain: &Chain) -> CliResult<()> {
    let Some(store) = highwater_store(header)? else { return Ok(()) };
    let mut mark = store.load()?.unwrap_or_else(|| HighWater {
        vault_id: header.vault_id.to_hex(),
        path: path_text(path),
        header_generation: 0,
        seq: 0,
        id: String::new(),
        live_generation: 0,
        live_dirty: false,
    });
    mark.header_generation = mark.header_generation.max(header.generation);
    if let Some(newest) = chain.head().filter(|newest| newest.seq > mark.seq) {
        (mark.seq, mark.id) = (newest.seq, newest.id.to_hex());
    }
    store.store(&mark)?;
    Ok(())
}

/// Remembers that the live state of a vault holds nothing that counts: it may go.
pub(crate) fn note_clean(header: &Header) -> CliResult<()> {
    let Some(store) = highwater_store(header)? else { return Ok(()) };
    if let Some(mark) = store.load()? {
        store.store(&HighWater { live_dirty: false, ..mark })?;
    }
    Ok(())
}

/// Checks that a directory can become a vault: missing, or empty but for `lost+found`.
pub(crate) fn require_new_vault_dir(path: &Path) -> CliResult<()> {
    let shown = super::show_path(path);
    let items = match std::fs::read_dir(path) {
        Ok(items) => items,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(CliError::new(ExitCode::Io, format!("{shown}: {e}"))),
    };
    if ["vault.json", "vault.json.bak"].iter().any(|name| path.join(name).exists()) {
        return Err(CliError::usage(format!("{shown} is a vault already"))
            .hint(format!("`strongroom info {shown}` describes it; nothing was changed")));
    }
    for item in items {
        let name = item?.file_name();
        if name != "lost+found" {
            return Err(CliError::usage(format!(
                "{shown} is not empty: a vault needs a directory of its own"
            )));
        }
    }
    Ok(())
}

/// Makes the directory of a new vault and opens it.
pub(crate) fn create_vault_disk(path: &Path) -> CliResult<Arc<dyn Disk>> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| CliError::new(ExitCode::Io, format!("making {}: {e}", super::show_path(path))))?;
    open_disk(path)
}

/// Writes a file with a secret: new, mode 0600, durable before it is spoken of.
pub(crate) fn write_private_new(path: &Path, bytes: &[u8]) -> CliResult<()> {
    let shown = super::show_path(path);
    let failed = |e: std::io::Error| {
        let error = CliError::new(ExitCode::Io, format!("writing {shown}: {e}"));
        if e.kind() == std::io::ErrorKind::AlreadyExists {
            error.hint("it is never overwritten: choose another name")
        } else {
            error
        }
    };
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

/// The name of this machine, as snapshots keep it.
pub(crate) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Now, as headers write it: RFC 3339, UTC, whole seconds.
pub(crate) fn rfc3339_now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
