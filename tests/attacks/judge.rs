//! What an attack may lead to: exactly what was written, an error, or a refusal, and the checker's word for it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use fsck_strongroom::Report;
use strongroom::disk::{Disk, SimDisk};
use strongroom::format::FileType;
use strongroom::snapshot::chain::{Chain, open_sealed};
use strongroom::snapshot::open::{Unlocked, open_cold};
use strongroom::snapshot::restore::{RestoreOpts, restore};
use strongroom::store::error::StoreError;

use super::edits::Attack;
use super::target::{State, Target};
use crate::whole::Session;
use crate::whole::view::{Dump, Survey, difference, fsck, fsck_difference, survey_fs, survey_snapshot};

/// How opening the vault and reading its working tree went.
#[derive(Debug)]
pub enum Warm {
    /// It was refused, as every error of opening it is called here.
    Refused,
    /// Everything was read, and is right.
    Exact,
    /// What was read is right, the rest are errors.
    Partial,
    /// A state that a power cut could have left, or an older snapshot, said to be one.
    Older,
}

#[derive(Debug)]
pub struct Verdict {
    pub warm: Warm,
    /// Reading snapshots gave errors.
    pub cold_errors: bool,
    /// The checker found nothing.
    pub fsck_clean: bool,
}

/// How thoroughly one attack is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    pub seed: u64,
    /// Restores the newest snapshot that can be opened, too.
    pub restore: bool,
    /// Unmounts, which makes a snapshot, and reads that.
    pub unmount: bool,
}

/// What an attack has really changed.
struct Changes {
    touched: BTreeSet<String>,
    packs: bool,
    chain: BTreeSet<String>,
    /// Nothing but that the newest chain files are missing.
    cut_chain: bool,
    header: bool,
}

impl Changes {
    fn of(target: &Target, attack: &Attack, vault: &SimDisk) -> Changes {
        let mut touched = attack.touched();
        let original = |path: &String| target.files.get(path).map(|bytes| bytes.as_slice());
        touched.retain(|path| path.starts_with("host:") || vault.raw_read(path).as_deref() != original(path));
        let packs = touched.iter().any(|path| target.needed.contains(path));
        let chain: BTreeSet<String> =
            target.chain.iter().filter(|path| touched.contains(*path)).cloned().collect();
        let newest: BTreeSet<String> = target.chain.iter().rev().take(chain.len()).cloned().collect();
        let gone = chain.iter().all(|path| vault.raw_read(path).is_none());
        // An older header is sound in itself.
        let was_header = |path: &str| {
            let now = vault.raw_read(path);
            target.older.iter().any(|files| files.get(path).map(|b| b.as_slice()) == now.as_deref())
        };
        let header = ["vault.json", "vault.json.bak"].iter().any(|p| touched.contains(*p) && !was_header(p));
        Changes { packs, cut_chain: !chain.is_empty() && chain == newest && gone, chain, header, touched }
    }

    fn only_live(&self) -> bool {
        self.touched.iter().all(|path| path.starts_with("live/"))
    }

    /// Nothing that a copy has.
    fn only_local(&self) -> bool {
        !self.touched.is_empty()
            && self.touched.iter().all(|path| path.starts_with("live/") || path.starts_with("host:"))
    }
}

/// Does the attack on a copy of the target and judges what comes of it.
pub fn judge(target: &Target, attack: &Attack, depth: Depth) -> Result<Verdict, String> {
    let (vault, state) = (target.vault.fork(), target.host.fork());
    attack.apply(&vault, &state);
    let changes = Changes::of(target, attack, &vault);
    let host = target.host(&vault, &state, depth.seed);

    // Snapshots and the checker know nothing of local state: now and then is enough for that.
    let (fsck_clean, cold_errors) = if changes.only_local() && !depth.restore {
        (true, false)
    } else {
        let cold_errors = match host.unlock(target.key) {
            Ok(unlocked) => cold(target, &changes, &vault, &unlocked, depth.restore)?,
            Err(_) => true,
        };
        (check(target, &changes, &vault)?, cold_errors)
    };
    if changes.only_local() && (!fsck_clean || cold_errors) {
        return Err("an attack on local state is seen in the snapshots".into());
    }
    let warm = match host.open(target.key) {
        Err(error) => {
            refusal(&error)?;
            Warm::Refused
        }
        Ok(session) => warm(target, &changes, session, &vault, depth.unmount)?,
    };
    if !changes.chain.is_empty() && target.state != State::Copy && !matches!(warm, Warm::Refused) {
        return Err(format!("{:?} are not what they were, and the vault opens: {warm:?}", changes.chain));
    }
    Ok(Verdict { warm, cold_errors, fsck_clean })
}

/// An attack on bytes is called damage, a rollback, or a key that doesn't fit; never an I/O error, a full disk or a lock.
fn refusal(error: &StoreError) -> Result<(), String> {
    match error {
        StoreError::Io { .. } | StoreError::NoSpace | StoreError::Poisoned(_) | StoreError::Locked { .. } => {
            Err(format!("refused for the wrong reason: {error}"))
        }
        _ => Ok(()),
    }
}

/// Whether the checker finds it.
fn check(target: &Target, changes: &Changes, vault: &SimDisk) -> Result<bool, String> {
    let Ok(report) = fsck(vault) else { return Ok(false) };
    let must_tell = changes.packs || changes.header || (!changes.chain.is_empty() && !changes.cut_chain);
    if report.is_clean() && must_tell {
        return Err(format!("fsck finds nothing, and {:?} were changed", changes.touched));
    }
    for (seq, should) in &target.snapshots {
        if let Some(text) = fsck_lie(&report, *seq, should) {
            return Err(text);
        }
        if report.is_clean()
            && changes.chain.is_empty()
            && let Some(text) = fsck_difference(&report, *seq, should)
        {
            return Err(text);
        }
    }
    Ok(report.is_clean())
}

/// What the checker takes for undamaged must be what was there.
fn fsck_lie(report: &Report, seq: u64, should: &Dump) -> Option<String> {
    for item in report.tree(seq).filter(|item| !item.damaged) {
        let shown = String::from_utf8_lossy(&item.path).into_owned();
        let Some(want) = should.get(&item.path) else {
            return Some(format!("fsck: snapshot {seq}: {shown}: too many"));
        };
        let hash = (want.kind == FileType::File).then(|| *blake3::hash(&want.content).as_bytes());
        let same = item.content == hash
            && item.target == want.target
            && item.xattrs == want.xattrs
            && item.mtime == (want.mtime.secs, want.mtime.nanos)
            && (item.ino, item.mode, item.uid, item.gid) == (want.ino, want.mode, want.uid, want.gid);
        if !same {
            return Some(format!("fsck: snapshot {seq}: {shown}: takes {item:?} for sound, not {want:?}"));
        }
    }
    None
}

/// Reads every snapshot from packs alone. Whether there were errors.
fn cold(
    target: &Target,
    changes: &Changes,
    vault: &SimDisk,
    unlocked: &Unlocked,
    restores: bool,
) -> Result<bool, String> {
    let disk: Arc<dyn Disk> = Arc::new(vault.clone());
    let Ok(chain) = Chain::load(disk.as_ref(), &unlocked.header) else { return Ok(true) };
    let mut errors = !chain.is_whole();
    for info in chain.snapshots() {
        if !target.snapshots.contains_key(&info.seq) {
            return Err(format!("snapshot {} is listed and does not exist", info.name()));
        }
    }
    for (seq, should) in &target.snapshots {
        if chain.get(*seq).is_none() {
            errors = true;
            if chain.problems().is_empty() && !changes.cut_chain {
                return Err(format!("snapshot {seq} is missing, and nothing is said about it"));
            }
            continue;
        }
        match survey_snapshot(&disk, unlocked, *seq) {
            Err(_) => errors = true,
            Ok(survey) => {
                if let Some(text) = survey.lies(should) {
                    return Err(format!("snapshot {seq} from packs:\n{text}"));
                }
                errors |= !survey.errors.is_empty();
            }
        }
    }
    let newest = chain.snapshots().next_back().map(|info| info.seq);
    if let (true, Some(seq)) = (restores, newest) {
        errors |= restored(target, &disk, unlocked, &chain, seq)?;
    }
    Ok(errors)
}

/// Restores a snapshot into a directory, and looks at what is there. Whether there were errors.
fn restored(
    target: &Target,
    disk: &Arc<dyn Disk>,
    unlocked: &Unlocked,
    chain: &Chain,
    seq: u64,
) -> Result<bool, String> {
    let info = chain.get(seq).ok_or("the snapshot was just there")?;
    let Ok(sealed) = open_sealed(disk.as_ref(), &unlocked.keys, info) else { return Ok(true) };
    let root = sealed.root.ok_or("a snapshot without a root")?;
    let Ok(cold) = open_cold(disk.clone(), unlocked, chain, &[seq], 64 << 10) else { return Ok(true) };
    // In memory, if possible: a restore ends with a sync of the whole filesystem.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).map_err(|e| e.to_string())?;
    let dest = dir.path().join("restored");
    let opts = RestoreOpts { owners: false, workers: 2, ..RestoreOpts::default() };
    let Ok(report) = restore(&cold, &root.entry, &dest, &opts, &|_| ()) else { return Ok(true) };
    let should = &target.snapshots[&seq];
    let mut names = 0;
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let at = dest.join(Path::new(std::ffi::OsStr::from_bytes(&path)));
        let shown = at.display();
        let want = should.get(&path).ok_or_else(|| format!("restored, and not in the snapshot: {shown}"))?;
        let meta = fs::symlink_metadata(&at).map_err(|e| e.to_string())?;
        names += 1;
        if meta.is_dir() {
            for entry in fs::read_dir(&at).map_err(|e| e.to_string())? {
                let name = entry.map_err(|e| e.to_string())?.file_name().into_vec();
                todo.push(if path.is_empty() { name } else { [&path[..], b"/", &name].concat() });
            }
        }
        let same = match want.kind {
            FileType::Dir => meta.is_dir(),
            FileType::Symlink => fs::read_link(&at).is_ok_and(|to| to.as_os_str().as_bytes() == want.target),
            FileType::File => fs::read(&at).is_ok_and(|bytes| bytes == *want.content),
            _ => return Err(format!("{shown}: the model has no such file")),
        };
        if !same {
            return Err(format!("restored with other content: {shown}"));
        }
    }
    if report.is_complete() && names != should.len() {
        return Err(format!("a complete restore of {names} of {} names", should.len()));
    }
    Ok(!report.is_complete())
}

/// Reads the working tree of a vault that opened.
fn warm(
    target: &Target,
    changes: &Changes,
    session: Session,
    vault: &SimDisk,
    unmounts: bool,
) -> Result<Warm, String> {
    let survey = survey_fs(&session.fs);
    let warm = match survey.lies(&target.tree) {
        None if survey.errors.is_empty() => Warm::Exact,
        None => Warm::Partial,
        Some(text) => {
            older(target, changes, &session, &survey)
                .map_err(|e| format!("{e}\nagainst the tree:\n{text}"))?;
            Warm::Older
        }
    };
    if unmounts {
        let should = match &warm {
            Warm::Older if !survey.errors.is_empty() => return Ok(warm),
            Warm::Older => survey.items,
            _ => target.tree.clone(),
        };
        unmount(target, session, vault, &should)?;
    }
    Ok(warm)
}

/// Whether what was read is an older state that this attack may lead to.
fn older(target: &Target, changes: &Changes, session: &Session, survey: &Survey) -> Result<(), String> {
    match target.state {
        // What a power cut could have left, but nothing that is older than what this host has seen.
        State::Unclean if changes.only_live() => {
            target.history.check_survey(survey, target.steps, target.history.marked()).map(drop)
        }
        State::Unclean | State::Closed => Err("the working tree is not what it was".into()),
        // Nobody here has seen the newest snapshot. If its file is there, it is said that it is not complete.
        State::Copy => {
            let tells = |note: &String| {
                note.contains("is incomplete")
                    || changes.chain.iter().any(|path| note.contains(path.as_str()))
            };
            if !changes.cut_chain && !session.notes.iter().any(tells) {
                return Err(format!("an older tree, and only {:?} is said about it", session.notes));
            }
            let fits = target.snapshots.values().any(|tree| survey.lies(tree).is_none());
            let all_gone = changes.cut_chain && changes.chain.len() == target.chain.len();
            if fits || (all_gone && survey.items.len() == 1) {
                Ok(())
            } else {
                Err("the working tree is that of no snapshot".into())
            }
        }
    }
}

/// A snapshot of what was read of an attacked vault must not make it look sound.
fn unmount(target: &Target, session: Session, vault: &SimDisk, should: &Dump) -> Result<(), String> {
    let Ok(Some(made)) = session.unmount() else { return Ok(()) };
    let disk: Arc<dyn Disk> = Arc::new(vault.clone());
    let host = target.host(vault, &SimDisk::new(3), 3);
    let unlocked = host.unlock(target.key).map_err(|e| format!("after unmounting: {e}"))?;
    let Ok(survey) = survey_snapshot(&disk, &unlocked, made.seq) else { return Ok(()) };
    match survey.lies(should) {
        None => Ok(()),
        Some(text) => Err(format!("the snapshot of unmounting:\n{text}")),
    }
}

/// The target without an attack: everything is right, so that what is judged above could have been wrong.
pub fn baseline(target: &Target) {
    let attack = Attack::new("nothing", Vec::new());
    let depth = Depth { seed: 7, restore: true, unmount: target.state != State::Copy };
    let verdict = judge(target, &attack, depth).unwrap_or_else(|e| panic!("{}: {e}", target.name));
    assert!(matches!(verdict.warm, Warm::Exact), "{}: {verdict:?}", target.name);
    assert!(verdict.fsck_clean && !verdict.cold_errors, "{}: {verdict:?}", target.name);
    let session = target.host(&target.vault.fork(), &target.host.fork(), 8).open(target.key).expect("opens");
    let tree = survey_fs(&session.fs);
    assert_eq!(difference(&tree.items, &target.tree), None);
}
