//! Promise C1 for a whole vault: power cuts at every sync point of seeded workloads, and at many other operations.
//!
//! Each workload runs once on a disk that keeps a copy of itself before every sync. Of each copy, power cuts make
//! several images: nothing un-synced is left, all of it is, or seeded parts of it. Each image is opened again.
//!
//! A failure prints `STRONGROOM_SEED=... STRONGROOM_CRASH=...`; with these in the environment, only that image is tried.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use strongroom::disk::{CrashMode, Disk, SimDisk};
use strongroom::format::Cipher;
use strongroom::fs::{Caller, OpenFlags};
use strongroom::snapshot::chain::Chain;
use strongroom::snapshot::open::list_packs;
use strongroom::store::error::StoreError;
use strongroom::store::records::ROOT_INO;

use crate::whole::hook::{Point, Recorder};
use crate::whole::model::History;
use crate::whole::rng::Rng;
use crate::whole::view::{Dump, damage, difference, dump_fs, fsck, fsck_difference, read_snapshot};
use crate::whole::work::{Mix, Work, kind_of};
use crate::whole::{Host, new_vault, panic_text};

/// One power cut: where, and what it leaves.
struct Cut<'a> {
    point: &'a Point,
    mode: CrashMode,
    name: String,
}

/// What was tried.
#[derive(Debug, Default)]
struct Tally {
    images: AtomicUsize,
    second_cuts: AtomicUsize,
    continued: AtomicUsize,
}

/// The images that a power cut at a point may leave: of what was synced alone, of everything, and of seeded parts.
fn modes(point: &Point, seed: u64) -> Vec<(CrashMode, String)> {
    let torn = |n: u64| (CrashMode::Torn(seed.wrapping_mul(31) + n), format!("{}:torn{n}", point.name));
    let keep = (CrashMode::KeepAll, format!("{}:keep", point.name));
    let dropped = (CrashMode::DropUnsynced, format!("{}:drop", point.name));
    if point.is_sync() { vec![dropped, keep, torn(1), torn(2)] } else { vec![keep, torn(1)] }
}

/// At each sync the image without all that is not durable yet, and one other, chosen by the seed; elsewhere one.
fn some_modes(point: &Point, seed: u64) -> Vec<(CrashMode, String)> {
    let mut all = modes(point, seed);
    let mut rng = Rng(seed ^ point.name.bytes().fold(7, |hash, b| hash * 31 + u64::from(b)));
    let first = usize::from(point.is_sync());
    let other = all.swap_remove(first + rng.index(all.len() - first));
    all.truncate(first);
    all.push(other);
    all
}

/// The kinds of steps that every workload has.
const KINDS: [&str; 12] = [
    "create",
    "write",
    "overwrite",
    "truncate",
    "rename over",
    "link",
    "unlink",
    "fsync",
    "snapshot",
    "delete snapshot",
    "gc",
    "change key",
];

/// Asserts that power went off during steps of each kind, or, where a step is done in memory, before it was durable; and
/// while a checkpoint was written. One sync leaves two images.
fn assert_covered(cuts: &[Cut<'_>], history: &History) {
    let mut covered: BTreeMap<String, usize> = BTreeMap::new();
    for Cut { point, .. } in cuts {
        let at_risk = history.names_durable(point.done) + 1..=point.begun;
        let mut kinds: BTreeSet<String> =
            at_risk.filter_map(|step| history.said.get(step)).map(|said| kind_of(said)).collect();
        if point.what.contains("vault:live/") && !point.what.contains("journal") {
            kinds.insert("checkpoint".into());
        }
        for kind in kinds {
            *covered.entry(kind).or_default() += 1;
        }
    }
    println!("{} images: {covered:?}", cuts.len());
    for kind in KINDS.iter().chain(&["checkpoint"]) {
        assert!(covered.get(*kind).is_some_and(|n| *n >= 2), "{kind}: {covered:?}");
    }
}

/// Runs a workload, then every power cut of it.
fn crash_everywhere(seed: u64, steps: usize, mix: Mix, plain_percent: u64, tally: &Tally) {
    let cipher = if seed.is_multiple_of(2) { Cipher::ChaCha20Poly1305 } else { Cipher::Aes256Gcm };
    let (vault, state) = new_vault(seed, cipher);
    let recorder = Recorder::new(&vault, &state, seed ^ 0xdead, plain_percent);
    let (watched_vault, watched_state) = recorder.disks();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let host = Host::new(watched_vault, watched_state, seed ^ 0xbeef);
        let mut work = Work::start(host, Some(Arc::clone(&recorder)), seed, mix);
        work.run(steps);
        // Until each kind of step was among them.
        while !KINDS.iter().all(|kind| work.history.said.iter().any(|said| kind_of(said) == *kind)) {
            work.run(1);
        }
        work.stop();
        work.history
    }));
    let history = ran.unwrap_or_else(|p| panic!("STRONGROOM_SEED={seed}: {}", panic_text(p.as_ref())));
    let points = recorder.finish();
    let only = std::env::var("STRONGROOM_CRASH").ok();
    let cuts: Vec<Cut<'_>> = points
        .iter()
        .flat_map(|point| {
            // The one that is asked for may be any.
            let modes = if only.is_some() { modes(point, seed) } else { some_modes(point, seed) };
            modes.into_iter().map(move |(mode, name)| Cut { point, mode, name })
        })
        .filter(|cut| only.as_ref().is_none_or(|only| *only == cut.name))
        .collect();
    if only.is_none() {
        assert_covered(&cuts, &history);
    }
    let failures =
        in_parallel(&cuts, |n, cut| check_cut(cut, &history, seed.wrapping_mul(1_000_003) + n as u64, tally));
    if !failures.is_empty() {
        let shown = std::env::var("STRONGROOM_SHOW").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
        let text: Vec<String> = failures
            .iter()
            .take(shown)
            .map(|(cut, what)| {
                let point = cut.point;
                let (begun, done) = (point.begun, point.done);
                format!(
                    "STRONGROOM_SEED={seed} STRONGROOM_CRASH={} (before {}, in step {begun} ({}), {done} returned)\n{what}",
                    cut.name, point.what, history.said.get(begun).map_or("", |s| s),
                )
            })
            .collect();
        panic!(
            "{} of {} power cuts of seed {seed} failed:\n\n{}",
            failures.len(),
            cuts.len(),
            text.join("\n\n")
        );
    }
}

/// Opens a vault and cuts the power at every sync and every other change meanwhile. What then opens must be `should`.
fn crash_while_opening(
    vault: &SimDisk,
    state: &SimDisk,
    key: u32,
    discard: bool,
    should: &Dump,
    what: &str,
) -> usize {
    let recorder = Recorder::new(vault, state, 1, 100);
    let (watched_vault, watched_state) = recorder.disks();
    let host = Host { discard_live: discard, ..Host::new(watched_vault, watched_state, 77) };
    drop(host.open(key).unwrap_or_else(|e| panic!("{what}: {e}")));
    let points = recorder.finish();
    let cuts: Vec<Cut<'_>> = points
        .iter()
        .flat_map(|point| modes(point, 3).into_iter().map(move |(mode, name)| Cut { point, mode, name }))
        .collect();
    let failures = in_parallel(&cuts, |n, cut| {
        let (vault, state) = (cut.point.vault.crash_image(cut.mode), cut.point.state.crash_image(cut.mode));
        let host = Host::new(Arc::new(vault), Arc::new(state), 1000 + n as u64);
        let host = Host { discard_live: discard, ..host };
        let session = host.open(key).map_err(|e| format!("opening after the power cut: {e}"))?;
        let tree = dump_fs(&session.fs)?;
        let made = session.unmount().map_err(|e| format!("unmounting: {e}"))?;
        match difference(&tree, should) {
            Some(text) => Err(text),
            None if made.is_some() => Err("a snapshot was made, and nothing has changed".into()),
            None => Ok(()),
        }
    });
    if let Some((cut, text)) = failures.first() {
        let (n, name, before) = (failures.len(), &cut.name, &cut.point.what);
        panic!(
            "{what}: {n} of {} power cuts failed, the first at {name}, before {before}: {text}",
            cuts.len()
        );
    }
    cuts.len()
}

/// Runs `check` on all cuts, in two threads. Returns those that failed, with why.
fn in_parallel<'c, 'a>(
    cuts: &'c [Cut<'a>],
    check: impl Fn(usize, &Cut<'a>) -> Result<(), String> + Sync,
) -> Vec<(&'c Cut<'a>, String)> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut failures = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::SeqCst);
            let Some(cut) = cuts.get(n) else { return failures };
            let result = catch_unwind(AssertUnwindSafe(|| check(n, cut)))
                .unwrap_or_else(|p| Err(format!("panic: {}", panic_text(p.as_ref()))));
            if let Err(what) = result {
                failures.push((n, what));
            }
        }
    };
    let mut failures: Vec<(usize, String)> = std::thread::scope(|scope| {
        let threads = [scope.spawn(worker), scope.spawn(worker)];
        threads.into_iter().flat_map(|t| t.join().expect("panics are caught inside")).collect()
    });
    failures.sort_by_key(|(n, _)| *n);
    failures.into_iter().map(|(n, what)| (&cuts[n], what)).collect()
}

fn check_cut(cut: &Cut<'_>, history: &History, seed: u64, tally: &Tally) -> Result<(), String> {
    let point = cut.point;
    let mut rng = Rng(seed);
    let (vault, state) = (point.vault.crash_image(cut.mode), point.state.crash_image(cut.mode));
    tally.images.fetch_add(1, Ordering::Relaxed);
    check_at_rest(&vault, history, point.begun, point.done)?;
    // Now and then the power goes off again while the vault is opened.
    if rng.percent(15) {
        let recorder = Recorder::new(&vault, &state, rng.next(), 10);
        let (watched_vault, watched_state) = recorder.disks();
        let host = Host::new(watched_vault, watched_state, rng.next());
        open_and_check(&host, history, point.begun, point.done)?;
        let again = recorder.finish();
        for _ in 0..2 {
            let Some(second) = rng.pick(&again) else { break };
            let mode = CrashMode::Torn(rng.next());
            let (vault, state) = (second.vault.crash_image(mode), second.state.crash_image(mode));
            tally.second_cuts.fetch_add(1, Ordering::Relaxed);
            let host = Host::new(Arc::new(vault.clone()), Arc::new(state), rng.next());
            check_at_rest(&vault, history, point.begun, point.done)
                .and_then(|()| open_and_check(&host, history, point.begun, point.done))
                .map_err(|e| format!("second power cut before {} ({}): {e}", second.what, second.name))?;
        }
        return Ok(());
    }
    let host = Host::new(Arc::new(vault.clone()), Arc::new(state), rng.next());
    if rng.percent(30) {
        tally.continued.fetch_add(1, Ordering::Relaxed);
        return open_and_go_on(&host, &vault, history, point.begun, point.done, &mut rng);
    }
    open_and_check(&host, history, point.begun, point.done)
}

/// The vault before anything was recovered, as a copy of it would be: keys, snapshots, the checker.
fn check_at_rest(vault: &SimDisk, history: &History, begun: usize, done: usize) -> Result<(), String> {
    let disk: Arc<dyn Disk> = Arc::new(vault.clone());
    let host = Host::new(disk.clone(), disk.clone(), 0);
    let unlocked = unlock_any(&host, history, begun, done)?.1;
    let report = fsck(disk.as_ref()).map_err(|e| format!("fsck: {e}"))?;
    if let Some(damage) = damage(&report) {
        return Err(format!("fsck of the crash image:\n{damage}"));
    }
    let chain = Chain::load(disk.as_ref(), &unlocked.header).map_err(|e| format!("chain: {e}"))?;
    if !chain.problems().is_empty() {
        return Err(format!("the chain has problems: {:?}", chain.problems()));
    }
    let (must, may) = history.snapshots_at(begun, done);
    let there: BTreeSet<u64> = chain.snapshots().map(|info| info.seq).collect();
    if !must.is_subset(&there) || !there.is_subset(&may) {
        return Err(format!("snapshots are {there:?}; must be {must:?}, may be {may:?}"));
    }
    for seq in there {
        let should = &history.snapshots[&seq].tree;
        let is =
            read_snapshot(&disk, &unlocked, seq).map_err(|e| format!("snapshot {seq} from packs: {e}"))?;
        if let Some(text) = difference(&is, should) {
            return Err(format!("snapshot {seq} from packs:\n{text}"));
        }
        if let Some(text) = fsck_difference(&report, seq, should) {
            return Err(format!("snapshot {seq}:\n{text}"));
        }
    }
    Ok(())
}

/// Exactly one of the keys that may be in force opens the vault.
pub fn unlock_any(
    host: &Host,
    history: &History,
    begun: usize,
    done: usize,
) -> Result<(u32, strongroom::snapshot::open::Unlocked), String> {
    let may = history.keys_at(begun, done);
    let mut found = None;
    for key in 0..history.keys.len() as u32 {
        match host.unlock(key) {
            Ok(_) if !may.contains(&key) => return Err(format!("key {key} opens; may be {may:?}")),
            Ok(unlocked) => found = Some((key, unlocked)),
            Err(StoreError::WrongKey) => {}
            Err(e) => return Err(format!("key {key}: {e}")),
        }
    }
    found.ok_or_else(|| format!("none of the keys {may:?} opens the vault"))
}

pub fn open_and_check(host: &Host, history: &History, begun: usize, done: usize) -> Result<(), String> {
    let (key, _) = unlock_any(host, history, begun, done)?;
    let session = host.open(key).map_err(|e| format!("opening after the power cut: {e}"))?;
    let tree = dump_fs(&session.fs).map_err(|e| format!("reading after the power cut: {e}"))?;
    history.check(&tree, begun, done)?;
    Ok(())
}

/// After recovery life goes on: writes, a snapshot, a collection, an unmount, and all of it is there again.
fn open_and_go_on(
    host: &Host,
    vault: &SimDisk,
    history: &History,
    begun: usize,
    done: usize,
    rng: &mut Rng,
) -> Result<(), String> {
    let (key, _) = unlock_any(host, history, begun, done)?;
    let session = host.open(key).map_err(|e| format!("opening after the power cut: {e}"))?;
    let tree = dump_fs(&session.fs).map_err(|e| format!("reading after the power cut: {e}"))?;
    history.check(&tree, begun, done)?;
    let flags = OpenFlags { write: true, ..OpenFlags::default() };
    let fs = &session.fs;
    let data = rng.content(40_000);
    let (attr, fh) = fs
        .create(ROOT_INO, b"after the crash", 0o600, 0, flags, Caller::default())
        .map_err(|e| format!("create: {e}"))?;
    fs.write(attr.ino, fh, 0, &data, false).map_err(|e| format!("write: {e}"))?;
    fs.fsync(attr.ino, false).map_err(|e| format!("fsync: {e}"))?;
    fs.release(attr.ino, fh).map_err(|e| format!("release: {e}"))?;
    if rng.percent(50) {
        session.gc().map_err(|e| format!("gc after the power cut: {e}"))?;
    }
    if rng.percent(50) {
        session.snapshot(true).map_err(|e| format!("snapshot after the power cut: {e}"))?;
    }
    fs.sync_all().map_err(|e| format!("sync_all: {e}"))?;
    let before = dump_fs(fs).map_err(|e| format!("reading what was recovered and written: {e}"))?;
    session.unmount().map_err(|e| format!("unmounting after the power cut: {e}"))?;
    let session = host.open(key).map_err(|e| format!("mounting again: {e}"))?;
    // A power cut between the header's copies leaves them different until the keys change again.
    if let Some(note) = session.notes.iter().find(|note| !note.starts_with("the header copies differ")) {
        return Err(format!("after a clean unmount there is a note: {note}"));
    }
    let after = dump_fs(&session.fs).map_err(|e| format!("reading after the remount: {e}"))?;
    if let Some(text) = difference(&after, &before) {
        return Err(format!("the remount changed the tree:\n{text}"));
    }
    drop(session);
    let report = fsck(vault).map_err(|e| format!("fsck: {e}"))?;
    if let Some(damage) = damage(&report) {
        return Err(format!("fsck after going on:\n{damage}"));
    }
    let newest = report.latest.ok_or("no snapshot after an unmount")?;
    if let Some(text) = fsck_difference(&report, newest, &before) {
        return Err(format!("the snapshot of the unmount:\n{text}"));
    }
    let packs = list_packs(vault).map_err(|e| e.to_string())?;
    if packs.is_empty() { Err("no packs".into()) } else { Ok(()) }
}

/// The seed that the environment asks for, or these.
fn seeds(default: impl IntoIterator<Item = u64>) -> Vec<u64> {
    match std::env::var("STRONGROOM_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => vec![seed],
        None => default.into_iter().collect(),
    }
}

/// One of the parts, which run side by side.
fn part(default: u64) {
    let tally = Tally::default();
    for seed in seeds([default]) {
        crash_everywhere(seed, 60, Mix::default(), 4, &tally);
    }
    if std::env::var("STRONGROOM_SEED").is_err() && std::env::var("STRONGROOM_CRASH").is_err() {
        // Together more than 2,000.
        assert!(tally.images.into_inner() >= PART_IMAGES_MIN && PART_IMAGES_MIN * 8 > 2_000);
    }
}

/// Crash images that each part has at least.
const PART_IMAGES_MIN: usize = 260;

mod power_cuts_everywhere_leave_what_was_promised {
    macro_rules! parts {
        ($($name:ident $seed:literal),*) => { $(#[test] fn $name() { super::part($seed); })* };
    }
    parts!(part_0 0, part_1 1, part_2 2, part_3 3, part_4 4, part_5 5, part_6 6, part_7 7);
}

/// The working tree of a vault whose live state was lost starts from the newest snapshot, whenever the power goes off
/// while it does: never from an empty tree, which the next backup would make the newest snapshot.
#[test]
fn power_cuts_while_a_copy_is_opened_lose_nothing() {
    let (vault, state) = new_vault(5, Cipher::ChaCha20Poly1305);
    let host = Host::new(Arc::new(vault.clone()), Arc::new(state.clone()), 6);
    let mut work = Work::start(host, None, 7, Mix { remounts: 0, keys: 0, ..Mix::default() });
    work.run(300);
    work.stop();
    let newest = work.history.snapshots.values().next_back().unwrap();
    assert!(newest.tree.len() > 10, "{}", newest.tree.len());
    let copy = vault.fork();
    for path in copy.raw_list().iter().filter(|path| path.starts_with("live/")) {
        assert!(copy.raw_remove(path));
    }
    let mut images = 0;
    // On the same host, on another one, and with a live state that is to be thrown away.
    images += crash_while_opening(&copy.fork(), &state.fork(), 0, false, &newest.tree, "without live/");
    images += crash_while_opening(&copy.fork(), &SimDisk::new(9), 0, false, &newest.tree, "a clone");
    images += crash_while_opening(&vault.fork(), &state.fork(), 0, true, &newest.tree, "discarding live/");
    assert!(images > 300, "{images}");
}
