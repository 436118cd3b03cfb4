//! Promises C2 and C3 for a whole vault: a disk that fails, and a disk that is full, at many points of a workload with
//! writes, syncs, snapshots, collections, key changes and remounts.
//!
//! A failure prints the seed and the fault.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustix::io::Errno;
use strongroom::disk::{CrashMode, Disk, Fault, FaultErrno, FaultKind, FaultOp, Faults, FaultyDisk, SimDisk};
use strongroom::format::{Cipher, FileType};
use strongroom::fs::{Caller, FsResult, OpenFlags, SetAttr};
use strongroom::snapshot::chain::Chain;
use strongroom::snapshot::delete::{DeleteOpts, delete};
use strongroom::store::records::ROOT_INO;

use crate::crash::{open_and_check, unlock_any};
use crate::whole::model::History;
use crate::whole::rng::Rng;
use crate::whole::view::{Dump, damage, difference, dump_fs, fsck, fsck_difference, survey_fs};
use crate::whole::work::{Mix, Work, kind_of};
use crate::whole::{Host, Session, config, new_vault, quietly};

/// Steps of a workload.
const STEPS: usize = 60;

const WRITE: OpenFlags = OpenFlags { write: true, truncate: false, exclusive: false };

fn mix() -> Mix {
    Mix {
        names: 26,
        data: 30,
        attrs: 5,
        syncs: 20,
        snapshots: 10,
        collections: 5,
        remounts: 4,
        keys: 3,
        file_max: 40_000,
    }
}

/// A workload on a disk that may fail.
struct Run {
    vault: SimDisk,
    state: SimDisk,
    faults: Faults,
    work: Work,
    /// What the step said that failed, if one did.
    failed: Option<String>,
}

fn run(seed: u64, fault: Option<&Fault>) -> Run {
    let (vault, state) = new_vault(seed, Cipher::ChaCha20Poly1305);
    let faults = Faults::new();
    let disk = FaultyDisk::new(vault.clone(), faults.clone());
    let host = Host::new(Arc::new(disk), Arc::new(state.clone()), seed);
    let mut work = Work::new(host, None, seed, mix());
    if let Some(fault) = fault {
        faults.add(fault.clone());
    }
    let result = quietly(|| {
        work.begin_work();
        work.run(STEPS);
        work.stop();
    });
    let counted = result.err();
    faults.clear();
    Run { vault, state, faults, work, failed: counted }
}

fn is_full(text: &str) -> bool {
    ["code: 28", "no space left", "no storage space", "NoSpace", "os error 28"]
        .iter()
        .any(|words| text.contains(words))
}

fn is_failure(text: &str) -> bool {
    ["code: 5", "os error 5", "writing stopped", "Poisoned", "Input/output"]
        .iter()
        .any(|words| text.contains(words))
}

/// What many faults did.
#[derive(Debug, Default)]
struct Tally {
    runs: usize,
    /// Kinds of steps that failed.
    kinds: BTreeMap<String, usize>,
    poisoned: usize,
    /// Faults after which work went on, and nothing was lost.
    harmless: usize,
    went_on: usize,
}

/// So many faults of each kind, spread over all operations that a workload does.
fn strike(kinds: &[(FaultOp, FaultKind)], seeds: &[u64], each: u64) -> Tally {
    let mut tally = Tally::default();
    let mut wrong = Vec::new();
    for &seed in seeds {
        let plain = run(seed, None);
        assert_eq!(plain.failed, None, "seed {seed} without faults");
        for &(op, kind) in kinds {
            let count = plain.faults.count(op);
            assert!(count > 0, "seed {seed}: no {op:?}");
            for n in 0..each.min(count) {
                // The first and the last are always among them.
                let skip = if each == 1 { 0 } else { n * (count - 1) / (each.min(count) - 1).max(1) };
                let fault = Fault { op, prefix: String::new(), skip, times: 1, kind };
                if let Err(text) = strike_once(seed, &fault, &mut tally) {
                    wrong.push(format!("seed {seed}, {fault:?}: {text}"));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} faults:\n\n{}",
        wrong.len(),
        tally.runs,
        wrong[..wrong.len().min(8)].join("\n\n")
    );
    tally
}

fn strike_once(seed: u64, fault: &Fault, tally: &mut Tally) -> Result<(), String> {
    let mut run = run(seed, Some(fault));
    tally.runs += 1;
    if run.faults.struck() == 0 {
        return Err("it did not strike, though a run without faults did as many operations".into());
    }
    let (begun, done) = run.work.progress();
    let said = run.work.said().to_string();
    let session = run.work.session.take();
    let history = &run.work.history;
    let Some(text) = run.failed else {
        // Nobody was told. Then it must have been of no consequence: all was compared on the way, at the unmounting, and is
        // again here. Of the files that must not change unsaid, only the database's may: it tidies up after it was closed.
        tally.harmless += 1;
        let changes = [FaultOp::Write, FaultOp::Sync, FaultOp::SyncDir, FaultOp::Rename];
        let paths = run.faults.struck_paths();
        let tidies = |path: &String| path == "live/live.redb" || path == "live/blocks.log.new";
        if changes.contains(&fault.op) && !paths.iter().all(tidies) {
            return Err(format!("it went unnoticed, at {paths:?}"));
        }
        return after_a_stop(&run.vault, &run.state, history, begun, done, &said);
    };
    *tally.kinds.entry(kind_of(&said)).or_default() += 1;
    let is_right = match fault.kind {
        FaultKind::Fail(FaultErrno::Enospc) | FaultKind::FailAfter(FaultErrno::Enospc) => {
            is_full(&text) || is_failure(&text)
        }
        _ => is_failure(&text),
    };
    if !is_right {
        return Err(format!("in step {begun} ({said}), the error is another: {text}"));
    }
    let at = |what: &str, e: String| format!("in step {begun} ({said}): {what}: {e}");
    if let Some(session) = &session {
        let tree = dump_fs(&session.fs).map_err(|e| at("reading after the failure", e))?;
        history.check_visible(&tree, begun).map_err(|e| at("what is visible after the failure", e))?;
        if session.engine.check_poison().is_err() {
            tally.poisoned += 1;
            refuses_changes(session, &tree).map_err(|e| at("after the failure", e))?;
            let again = dump_fs(&session.fs).map_err(|e| at("reading again", e))?;
            if let Some(text) = difference(&again, &tree) {
                return Err(at("calls that failed changed the tree", text));
            }
        }
    }
    // The process ends here, or the power goes off as well.
    for mode in [CrashMode::KeepAll, CrashMode::DropUnsynced, CrashMode::Torn(seed)] {
        let (vault, state) = (run.vault.crash_image(mode), run.state.crash_image(mode));
        after_a_stop(&vault, &state, history, begun, done, &said).map_err(|e| at(&format!("{mode:?}"), e))?;
    }
    // Without poison it was one call that failed, and all goes on.
    if let Some(session) = session.filter(|session| session.engine.check_poison().is_ok()) {
        tally.went_on += 1;
        let host = Host::new(Arc::new(run.vault.clone()), Arc::new(run.state.clone()), seed + 1000);
        goes_on(session, &host, history, (begun, done)).map_err(|e| at("going on", e))?;
    }
    Ok(())
}

/// Expects EIO from everything that changes something, while a failed write has stopped all writing.
fn refuses_changes(session: &Session, tree: &Dump) -> Result<(), String> {
    fn eio<T>(what: &str, result: FsResult<T>) -> Result<(), String> {
        match result {
            Err(e) if e.errno == Errno::IO => Ok(()),
            Err(e) => Err(format!("{what} fails with {:?}: {e}", e.errno)),
            Ok(_) => Err(format!("{what} works on a poisoned vault")),
        }
    }
    let (fs, root) = (&session.fs, Caller::default());
    eio("create", fs.create(ROOT_INO, b"not to be", 0o600, 0, WRITE, root))?;
    eio("mkdir", fs.mkdir(ROOT_INO, b"not to be", 0o700, 0, root))?;
    eio("symlink", fs.symlink(ROOT_INO, b"not to be", b"x", root))?;
    eio("fsync of the root", fs.fsyncdir(ROOT_INO))?;
    eio("sync_all", fs.sync_all())?;
    for (path, item) in
        tree.iter().filter(|(path, item)| item.kind == FileType::File && !path.contains(&b'/')).take(2)
    {
        eio("link", fs.link(item.ino, ROOT_INO, b"not to be"))?;
        eio("unlink", fs.unlink(ROOT_INO, path))?;
        eio("rename", fs.rename(ROOT_INO, path, ROOT_INO, b"not to be", Default::default()))?;
        eio("open for writing", fs.open_file(item.ino, WRITE, root))?;
        eio("truncate", fs.setattr(item.ino, SetAttr { size: Some(1), ..SetAttr::default() }, None, root))?;
        eio("chmod", fs.setattr(item.ino, SetAttr { mode: Some(0), ..SetAttr::default() }, None, root))?;
        eio("setxattr", fs.setxattr(item.ino, b"user.not", b"x", 0))?;
        eio("fsync", fs.fsync(item.ino, false))?;
    }
    if session.snapshot(true).is_ok() {
        return Err("a snapshot works on a poisoned vault".into());
    }
    if session.gc().is_ok() { Err("gc works on a poisoned vault".into()) } else { Ok(()) }
}

/// What a process finds that opens the vault after another one ended in the middle of a step that failed.
fn after_a_stop(
    vault: &SimDisk,
    state: &SimDisk,
    history: &History,
    begun: usize,
    done: usize,
    said: &str,
) -> Result<(), String> {
    let host = Host::new(Arc::new(vault.clone()), Arc::new(state.clone()), begun as u64 + 77);
    let unlocked = unlock_any(&host, history, begun, done)?.1;
    let report = fsck(vault).map_err(|e| format!("fsck: {e}"))?;
    if let Some(damage) = damage(&report) {
        return Err(format!("fsck finds:\n{damage}"));
    }
    let chain = Chain::load(vault, &unlocked.header).map_err(|e| format!("chain: {e}"))?;
    if !chain.problems().is_empty() {
        return Err(format!("the chain has problems: {:?}", chain.problems()));
    }
    let (must, may) = history.snapshots_at(begun, done);
    let there: BTreeSet<u64> = chain.snapshots().map(|info| info.seq).collect();
    // The step that failed may have come as far as to a snapshot of which the history never learned.
    let unknown = there.iter().filter(|seq| !history.snapshots.contains_key(*seq)).count();
    let may_be_new = usize::from(["snapshot", "unmount"].contains(&said));
    if !must.is_subset(&there)
        || there.iter().any(|s| history.snapshots.contains_key(s) && !may.contains(s))
        || unknown > may_be_new
    {
        return Err(format!("snapshots are {there:?}; must be {must:?}, may be {may:?}"));
    }
    for seq in there {
        if let Some(snap) = history.snapshots.get(&seq)
            && let Some(text) = fsck_difference(&report, seq, &snap.tree)
        {
            return Err(format!("snapshot {seq}:\n{text}"));
        }
    }
    open_and_check(&host, history, begun, done)
}

/// Everything that was written becomes durable, more can be written, and all of it is there when mounted again.
fn goes_on(
    session: Session,
    host: &Host,
    history: &History,
    (begun, done): (usize, usize),
) -> Result<(), String> {
    let fs = &session.fs;
    let data = Rng(7).bytes(50_000);
    let (attr, fh) = fs
        .create(ROOT_INO, b"later", 0o600, 0, WRITE, Caller::default())
        .map_err(|e| format!("create: {e}"))?;
    fs.write(attr.ino, fh, 0, &data, false).map_err(|e| format!("write: {e}"))?;
    fs.fsync(attr.ino, false).map_err(|e| format!("fsync: {e}"))?;
    fs.release(attr.ino, fh).map_err(|e| format!("release: {e}"))?;
    fs.sync_all().map_err(|e| format!("sync_all: {e}"))?;
    session.snapshot(true).map_err(|e| format!("snapshot: {e}"))?;
    session.gc().map_err(|e| format!("gc: {e}"))?;
    let before = dump_fs(fs)?;
    session.unmount().map_err(|e| format!("unmount: {e}"))?;
    let (key, _) = unlock_any(host, history, begun, done)?;
    let session = host.open(key).map_err(|e| format!("mounting again: {e}"))?;
    let after = dump_fs(&session.fs)?;
    drop(session);
    if let Some(text) = difference(&after, &before) {
        return Err(format!("the remount changed the tree:\n{text}"));
    }
    let report = fsck(host.vault.as_ref()).map_err(|e| format!("fsck: {e}"))?;
    damage(&report).map_or(Ok(()), |damage| Err(format!("fsck finds:\n{damage}")))
}

const EIO: FaultKind = FaultKind::Fail(FaultErrno::Eio);
const EIO_AFTER: FaultKind = FaultKind::FailAfter(FaultErrno::Eio);

/// Fails unless steps of all these kinds failed.
#[track_caller]
fn assert_kinds(tally: &Tally, kinds: &[&str]) {
    println!("{tally:?}");
    for kind in kinds {
        assert!(tally.kinds.contains_key(*kind), "no {kind} failed: {tally:?}");
    }
}

#[test]
fn failing_writes_stop_the_vault_and_lose_nothing() {
    let kinds =
        [(FaultOp::Write, EIO), (FaultOp::Write, EIO_AFTER), (FaultOp::Write, FaultKind::ShortWrite(700))];
    let tally = strike(&kinds, &[1, 2], 9);
    assert!(tally.runs == 54 && tally.poisoned >= 8 && tally.harmless < 15, "{tally:?}");
    assert_kinds(&tally, &["gc", "mount", "snapshot", "unmount"]);
}

#[test]
fn failing_syncs_stop_the_vault_and_lose_nothing() {
    let kinds = [(FaultOp::Sync, EIO), (FaultOp::Sync, EIO_AFTER), (FaultOp::SyncDir, EIO)];
    let tally = strike(&kinds, &[3, 4], 9);
    assert!(tally.runs == 54 && tally.poisoned >= 8 && tally.harmless < 15, "{tally:?}");
    assert_kinds(&tally, &["gc", "mount", "snapshot", "unmount"]);
}

#[test]
fn failing_changes_of_files_and_names_lose_nothing() {
    let kinds = [
        (FaultOp::Create, EIO),
        (FaultOp::Create, EIO_AFTER),
        (FaultOp::Rename, EIO),
        (FaultOp::Rename, EIO_AFTER),
        (FaultOp::Remove, EIO),
        (FaultOp::SetLen, EIO),
        (FaultOp::Allocate, EIO),
    ];
    let tally = strike(&kinds, &[5], 9);
    assert!(tally.runs >= 40 && tally.poisoned >= 10, "{tally:?}");
    assert_kinds(&tally, &["snapshot", "unmount"]);
}

#[test]
fn failing_looks_at_the_disk_lose_nothing() {
    let kinds = [(FaultOp::Open, EIO), (FaultOp::Read, EIO), (FaultOp::Stat, EIO)];
    let tally = strike(&kinds, &[6, 7], 9);
    assert!(tally.runs >= 48, "{tally:?}");
    assert_kinds(&tally, &["mount"]);
}

#[test]
fn no_space_for_one_call_loses_nothing_and_all_goes_on() {
    let full = FaultKind::Fail(FaultErrno::Enospc);
    let kinds =
        [(FaultOp::Write, full), (FaultOp::Create, full), (FaultOp::Allocate, full), (FaultOp::SetLen, full)];
    let tally = strike(&kinds, &[8, 9], 8);
    assert!(tally.runs >= 50 && tally.went_on >= 1 && tally.harmless >= 20, "{tally:?}");
    assert_kinds(&tally, &["gc", "mount", "unmount"]);
}

/// A disk with bad places: what stands there is EIO, all else is right, and nothing is wrong afterwards.
#[test]
fn unreadable_places_are_errors_and_all_else_is_right() {
    let mut whole = run(10, None);
    assert_eq!(whole.failed, None);
    let (vault, state, key) = (whole.vault.clone(), whole.state.clone(), whole.work.key());
    whole.work.session = None;
    let plain = Host::new(Arc::new(vault.fork()), Arc::new(state.fork()), 1);
    let session = plain.open(key).unwrap();
    let should = dump_fs(&session.fs).unwrap();
    drop(session);
    assert!(should.len() > 5);
    let (mut partial, mut refused, mut unharmed) = (0, 0, 0);
    for prefix in ["packs/", "live/"] {
        for n in 0..12u64 {
            // One read that fails; all reads from one on; a bad sector in every file, at its start or farther in; reads that
            // come in pieces.
            let bad = FaultKind::FlipBit { offset: 40 + n * 1_500, bit: 3 };
            let early = FaultKind::FlipBit { offset: 40 + n * 331, bit: 5 };
            let pieces = FaultKind::ShortRead(9 + 31 * n as usize);
            for (kind, skip, times) in [
                (EIO, n, 1),
                (EIO, n, u64::MAX),
                (bad, 0, u64::MAX),
                (early, 0, u64::MAX),
                (pieces, 0, u64::MAX),
            ] {
                let faults = Faults::new();
                let disk = FaultyDisk::new(vault.fork(), faults.clone());
                // Hardly any cache, or there would be little to read.
                let mut host = Host::new(Arc::new(disk), Arc::new(state.fork()), 100 + n);
                host.cfg.cache_bytes = 1;
                let fault = Fault { op: FaultOp::Read, prefix: prefix.into(), skip, times, kind };
                let Ok(session) = host.open(key) else { panic!("{prefix} {kind:?}: opens without faults") };
                faults.add(fault.clone());
                let seen = survey_fs(&session.fs);
                faults.clear();
                if let Some(text) = seen.lies(&should) {
                    panic!("{fault:?}: what was read is not what was written:\n{text}");
                }
                for (path, error) in &seen.errors {
                    let text = path.escape_ascii();
                    assert!(is_failure(error) || error.contains("damaged"), "{fault:?}: {text}: {error}");
                }
                match seen.errors.len() {
                    0 => unharmed += 1,
                    _ if seen.items.is_empty() => refused += 1,
                    _ => partial += 1,
                }
                if kind == pieces {
                    assert!(seen.errors.is_empty(), "{fault:?}: a short read is no error: {:?}", seen.errors);
                }
                let again = dump_fs(&session.fs).unwrap_or_else(|e| panic!("{fault:?}: reading again: {e}"));
                if let Some(text) = difference(&again, &should) {
                    panic!("{fault:?}: afterwards the tree is another:\n{text}");
                }
                let history = &whole.work.history;
                goes_on(session, &host, history, whole.work.progress())
                    .unwrap_or_else(|e| panic!("{fault:?}: going on: {e}"));
            }
        }
    }
    println!("partial {partial}, refused {refused}, unharmed {unharmed}");
    assert!(partial >= 20 && partial + refused + unharmed == 120, "partial {partial}, refused {refused}");
}

/// The bytes that are in use on a disk.
fn used(disk: &SimDisk) -> u64 {
    let space = disk.space().unwrap();
    space.total - space.available
}

/// A file with a name in the root, or in some directory: directory, name, inode.
fn some_files(tree: &Dump) -> Vec<(u64, Vec<u8>)> {
    let mut out = Vec::new();
    for (path, item) in tree.iter().filter(|(_, item)| item.kind == FileType::File) {
        let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (tree[&path[..at]].ino, path[at + 1..].to_vec()),
            None => (ROOT_INO, path.clone()),
        };
        if item.content.len() > 2_000 {
            out.push((dir, name));
        }
    }
    out
}

/// A vault fills its disk. The writer gets ENOSPC; syncing, unlinking, a snapshot and unmounting work all the same, and
/// what gc frees can be used again.
#[test]
fn a_vault_that_fills_its_disk_can_be_synced_cleaned_up_and_unmounted() {
    let mut kinds = BTreeMap::new();
    for n in 0..8 {
        let (vault, state) = new_vault(20 + n, Cipher::ChaCha20Poly1305);
        let host = Host::new(Arc::new(vault.clone()), Arc::new(state.clone()), 20 + n);
        let mix = Mix {
            names: 30,
            data: 40,
            syncs: 10,
            snapshots: 5,
            collections: 0,
            remounts: 2,
            keys: 1,
            ..Mix::default()
        };
        let mut work = Work::new(host.clone(), None, 20 + n, mix);
        let Err(text) = quietly(|| {
            work.begin_work();
            // As much room as a writer is promised.
            let fs = &work.session.as_ref().expect("mounted").fs;
            let mut capacity = 9 << 20;
            vault.set_capacity(capacity);
            while fs.statfs().expect("statfs").available * 4096 < 400_000 + n * 100_000 {
                capacity += 128 << 10;
                vault.set_capacity(capacity);
            }
            work.run(6_000);
        }) else {
            panic!("disk {n} was to be full");
        };
        let said = work.said().to_string();
        let at = format!("disk {n}, step {:?} ({said})", work.progress().0);
        assert!(is_full(&text), "{at}: {text}");
        let kind = kind_of(&said);
        // What was accepted can be stored.
        assert!(
            !["fsync", "fsyncdir", "sync_all", "close", "unlink", "rmdir", "unmount", "mount"]
                .contains(&&kind[..]),
            "{at}: {text}"
        );
        *kinds.entry(kind).or_insert(0) += 1;
        let session = work.session.take().expect("mounted");
        session.engine.check_poison().unwrap_or_else(|e| panic!("{at}: {e}"));
        let tree = dump_fs(&session.fs).unwrap_or_else(|e| panic!("{at}: {e}"));
        work.history.check_visible(&tree, work.progress().0).unwrap_or_else(|e| panic!("{at}: {e}"));
        session.fs.sync_all().unwrap_or_else(|e| panic!("{at}: sync_all: {e}"));
        // A power cut now loses nothing of it.
        let image = vault.crash_image(CrashMode::DropUnsynced);
        image.set_capacity(1 << 30);
        let again = Host::new(Arc::new(image), Arc::new(state.crash_image(CrashMode::DropUnsynced)), 1);
        let found = dump_fs(&again.open(work.key()).unwrap().fs).unwrap();
        let synced = dump_fs(&session.fs).unwrap();
        assert_eq!(difference(&found, &synced), None, "{at}: after a power cut");

        let files = some_files(&synced);
        assert!(files.len() >= 4, "{at}: {} files", files.len());
        for (dir, name) in &files[..files.len() / 2] {
            session.fs.unlink(*dir, name).unwrap_or_else(|e| panic!("{at}: unlink: {e}"));
        }
        session.fs.sync_all().unwrap_or_else(|e| panic!("{at}: sync_all after unlink: {e}"));
        let left = dump_fs(&session.fs).unwrap();
        let made = session.unmount().unwrap_or_else(|e| panic!("{at}: unmount: {e}"));
        assert!(made.is_some(), "{at}: a snapshot at unmounting");
        let report = fsck(&vault).unwrap();
        assert_eq!(damage(&report), None, "{at}");

        // Still full: it mounts, and with the old snapshots goes what only they had.
        let session = host.open(work.key()).unwrap_or_else(|e| panic!("{at}: mount: {e}"));
        assert_eq!(difference(&dump_fs(&session.fs).unwrap(), &left), None, "{at}: after the remount");
        let data = Rng(n).bytes(20_000);
        let write = || {
            let fs = &session.fs;
            let (attr, fh) = fs.create(ROOT_INO, b"again", 0o600, 0, WRITE, Caller::default())?;
            match fs.write(attr.ino, fh, 0, &data, false) {
                Ok(_) => Ok((attr, fh)),
                Err(e) => fs.release(attr.ino, fh).and(Err(e)),
            }
        };
        let mut left = some_files(&left);
        let before = used(&vault);
        let (attr, fh) = loop {
            let chain = session.chain().unwrap();
            let newest = chain.snapshots().map(|s| s.seq).max().expect("a snapshot");
            let old: Vec<u64> = chain.snapshots().map(|s| s.seq).filter(|s| *s != newest).collect();
            if !old.is_empty() {
                let opts = DeleteOpts { host: "test".into(), force: false };
                delete(&session.engine, &old, &opts).unwrap_or_else(|e| panic!("{at}: delete: {e}"));
                session.note_newest(true).unwrap();
            }
            session.gc().unwrap_or_else(|e| panic!("{at}: gc on a full disk: {e}"));
            let freed = before.saturating_sub(used(&vault));
            match write() {
                Ok(open) => {
                    assert!(freed > 50_000, "{at}: gc freed {freed} bytes");
                    break open;
                }
                // What was freed may have gone to what is kept back for deletes and unmounting: then more has to go.
                Err(e) if e.errno == Errno::NOSPC => {}
                Err(e) => panic!("{at}: write, {freed} freed: {e}"),
            }
            assert!(
                left.len() > 1,
                "{at}: everything was removed, {freed} bytes freed, and still there is no space"
            );
            for (dir, name) in left.split_off(left.len() / 2) {
                session.fs.unlink(dir, &name).unwrap_or_else(|e| panic!("{at}: unlink: {e}"));
            }
            session.snapshot(true).unwrap_or_else(|e| panic!("{at}: snapshot on a full disk: {e}"));
        };
        session.fs.fsync(attr.ino, false).unwrap();
        session.fs.release(attr.ino, fh).unwrap();
        let last = dump_fs(&session.fs).unwrap();
        session.unmount().unwrap_or_else(|e| panic!("{at}: last unmount: {e}"));
        let session = host.open(work.key()).unwrap();
        assert_eq!(difference(&dump_fs(&session.fs).unwrap(), &last), None, "{at}: at last");
        drop(session);
        assert_eq!(damage(&fsck(&vault).unwrap()), None, "{at}: at last");
    }
    println!("{kinds:?}");
    assert!(kinds.contains_key("write"), "{kinds:?}");
}

/// Somebody else fills the disk, at each point of a workload. Calls fail with ENOSPC and nothing else, no writing is stopped
/// for good, nothing durable is lost; when there is room again, all that was accepted is stored.
#[test]
fn a_disk_that_others_fill_loses_nothing() {
    let mut kinds = BTreeMap::new();
    for n in 0..36u64 {
        let (vault, state) = new_vault(50 + n, Cipher::ChaCha20Poly1305);
        let host = Host::new(Arc::new(vault.clone()), Arc::new(state.clone()), 50 + n);
        let mut work = Work::new(host.clone(), None, 50 + n, mix());
        let slack = [0, 5_000, 30_000, 120_000][n as usize % 4];
        let result = quietly(|| {
            work.begin_work();
            work.run(3 + n as usize * 3 / 2);
            // Below the vault's own floor, so that calls that were admitted before meet the end of the disk.
            vault.set_capacity(used(&vault) + slack);
            work.run(60);
        });
        let said = work.said().to_string();
        let (begun, done) = work.progress();
        let at = format!("disk {n}, {slack} bytes left, step {begun} ({said})");
        let text = result.expect_err("the disk was to be full");
        assert!(is_full(&text), "{at}: {text}");
        *kinds.entry(kind_of(&said)).or_insert(0) += 1;
        let session = work.session.take();
        for mode in [CrashMode::KeepAll, CrashMode::DropUnsynced] {
            let (image, image_state) = (vault.crash_image(mode), state.crash_image(mode));
            // Still full: it opens with what was durable, or says that there is no space.
            let full = Host::new(Arc::new(image.fork()), Arc::new(image_state.fork()), 1);
            match open_and_check(&full, &work.history, begun, done) {
                Err(e) if is_full(&e) => {}
                other => other.unwrap_or_else(|e| panic!("{at}: {mode:?}, while full: {e}")),
            }
            image.set_capacity(1 << 30);
            after_a_stop(&image, &image_state, &work.history, begun, done, &said)
                .unwrap_or_else(|e| panic!("{at}: {mode:?}: {e}"));
        }
        let Some(session) = session else { continue };
        session.engine.check_poison().unwrap_or_else(|e| panic!("{at}: {e}"));
        let tree = dump_fs(&session.fs).unwrap_or_else(|e| panic!("{at}: {e}"));
        work.history.check_visible(&tree, begun).unwrap_or_else(|e| panic!("{at}: {e}"));
        if let Some((dir, name)) = some_files(&tree).first() {
            session.fs.unlink(*dir, name).unwrap_or_else(|e| panic!("{at}: unlink: {e}"));
        }
        vault.set_capacity(1 << 30);
        let before = dump_fs(&session.fs).unwrap();
        session.fs.sync_all().unwrap_or_else(|e| panic!("{at}: sync_all with room: {e}"));
        let after = dump_fs(&session.fs).unwrap();
        let content = |dump: &Dump| -> Vec<_> {
            dump.iter().map(|(path, item)| (path.clone(), Arc::clone(&item.content))).collect()
        };
        assert!(content(&before) == content(&after), "{at}: storing it changed the content");
        goes_on(session, &host, &work.history, (begun, done)).unwrap_or_else(|e| panic!("{at}: {e}"));
    }
    println!("{kinds:?}");
    for kind in ["write", "overwrite", "create"] {
        assert!(kinds.contains_key(kind), "{kinds:?}");
    }
    // The sizes that all of this is about.
    assert!(config().reserve_bytes > 0);
}
