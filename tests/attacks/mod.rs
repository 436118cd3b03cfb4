//! Promises P1 to P9 and P13 against somebody who can write to the vault but has no key: whatever he does to whichever
//! file, what is read is what was written, or there is an error, or the vault is refused. Never other bytes, never a
//! name that is silently missing, never a panic or a hang. And the checker finds what was done.
//!
//! A failure prints `STRONGROOM_SEED=... STRONGROOM_ATTACK=...`; with these in the environment, only that attack is made.
#![allow(clippy::unwrap_used)]

mod edits;
mod frames;
mod headers;
mod judge;
mod leaks;
mod nonces;
mod target;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use strongroom::disk::{Disk, SimDisk};
use strongroom::format::Cipher;
use strongroom::fs::{Caller, OpenFlags};
use strongroom::store::error::StoreError;
use strongroom::store::records::ROOT_INO;

use crate::common::seed;
use crate::whole::rng::Rng;
use crate::whole::view::{difference, dump_fs, survey_snapshot};
use crate::whole::{Host, panic_text};
use edits::Attack;
use judge::{Depth, Verdict, Warm, baseline, judge};
use target::{State, Target};

/// An attack that is not judged after this time hangs: each takes a fraction of a second.
const HANG: Duration = Duration::from_secs(300);

/// What the process may grow by while hostile bytes are read.
const GROWTH_MAX_KIB: u64 = 400 << 10;

/// What came of the attacks on one kind of file.
#[derive(Debug, Default)]
struct Tally {
    attacks: usize,
    refused: usize,
    exact: usize,
    partial: usize,
    older: usize,
    cold_errors: usize,
    fsck_findings: usize,
}

impl Tally {
    fn add(&mut self, verdict: &Verdict) {
        self.attacks += 1;
        match verdict.warm {
            Warm::Refused => self.refused += 1,
            Warm::Exact => self.exact += 1,
            Warm::Partial => self.partial += 1,
            Warm::Older => self.older += 1,
        }
        self.cold_errors += usize::from(verdict.cold_errors);
        self.fsck_findings += usize::from(!verdict.fsck_clean);
    }
}

/// The most memory that this process ever had, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the kernel says it");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB")
}

/// Makes all attacks, in two threads. Panics with those that succeeded.
fn run(target: &Arc<Target>, attacks: Vec<Attack>, seed: u64) -> BTreeMap<String, Tally> {
    let only: Option<usize> = std::env::var("STRONGROOM_ATTACK").ok().and_then(|n| n.parse().ok());
    let before = peak_kib();
    let attacks = Arc::new(attacks);
    let next = Arc::new(AtomicUsize::new(0));
    let (send, receive) = mpsc::channel();
    for _ in 0..2 {
        let (target, attacks, next, send) =
            (Arc::clone(target), Arc::clone(&attacks), Arc::clone(&next), send.clone());
        // Not joined: a thread that hangs must not keep the test from saying so.
        std::thread::spawn(move || {
            loop {
                let n = next.fetch_add(1, Ordering::SeqCst);
                let Some(attack) = attacks.get(n) else { return };
                if only.is_some_and(|only| only != n) {
                    continue;
                }
                let depth = Depth { seed: seed ^ n as u64, restore: n % 9 == 0, unmount: n % 5 == 0 };
                let judged = catch_unwind(AssertUnwindSafe(|| judge(&target, attack, depth)))
                    .unwrap_or_else(|p| Err(format!("panic: {}", panic_text(p.as_ref()))));
                if send.send((n, judged)).is_err() {
                    return;
                }
            }
        });
    }
    drop(send);
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    let mut failures = Vec::new();
    let mut open: Vec<bool> = vec![true; attacks.len()];
    loop {
        match receive.recv_timeout(HANG) {
            Ok((n, judged)) => {
                open[n] = false;
                let attack = &attacks[n];
                let kind = attack.what.split(':').next().unwrap_or_default().to_string();
                match judged {
                    Ok(verdict) => tallies.entry(kind).or_default().add(&verdict),
                    Err(text) => failures.push((n, text)),
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let begun = next.load(Ordering::SeqCst);
                let hanging: Vec<_> = (0..begun.min(open.len())).filter(|n| open[*n]).collect();
                let named: Vec<_> = hanging.iter().map(|n| (n, &attacks[*n].what)).collect();
                panic!("STRONGROOM_SEED={seed}: {}: these hang: {named:?}", target.name);
            }
        }
    }
    failures.sort();
    if !failures.is_empty() {
        let text: Vec<String> = failures
            .iter()
            .take(6)
            .map(|(n, text)| {
                let (what, on) = (&attacks[*n].what, attacks[*n].touched());
                let text: String = text.chars().take(3_000).collect();
                format!("STRONGROOM_SEED={seed} STRONGROOM_ATTACK={n} ({what}, {on:?})\n{text}")
            })
            .collect();
        let (n, all) = (failures.len(), attacks.len());
        panic!("{n} of {all} attacks on the {} vault succeeded:\n\n{}", target.name, text.join("\n\n"));
    }
    let grown = peak_kib().saturating_sub(before);
    assert!(grown < GROWTH_MAX_KIB, "reading hostile files took {grown} KiB more");
    tallies
}

/// What all tallies together have.
fn sum(tallies: &BTreeMap<String, Tally>, of: impl Fn(&Tally) -> usize) -> usize {
    tallies.values().map(of).sum()
}

/// Kinds of files that were attacked, each several times.
#[track_caller]
fn assert_attacked(tallies: &BTreeMap<String, Tally>, kinds: &[&str]) {
    for kind in kinds {
        let attacks = tallies.get(*kind).map_or(0, |tally| tally.attacks);
        assert!(attacks >= 10, "{kind}: {attacks} attacks of {tallies:#?}");
    }
}

/// Files of kinds that these tests don't know are attacked like others, but somebody should look at them.
#[track_caller]
fn assert_known(target: &Target) {
    let unknown = |path: &&String| edits::kind_of(path, &target.files[*path]) == "unknown";
    let unknown: Vec<_> = target.files.keys().filter(unknown).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

const OFFSITE: [&str; 6] = ["header", "second header", "data pack", "tree pack", "snapshot", "removal"];
const LOCAL: [&str; 6] = ["live database", "block log", "journal a", "journal b", "lock", "high-water mark"];

/// Packs and chain files: whatever is done to one that is needed is found by the checker, and by whoever reads it all.
#[track_caller]
fn assert_found(tallies: &BTreeMap<String, Tally>) {
    for kind in ["data pack", "tree pack", "snapshot", "removal"] {
        let tally = &tallies[kind];
        assert!(tally.fsck_findings * 10 > tally.attacks * 7, "{kind}: {tally:?}");
        assert!(tally.cold_errors > 0, "{kind}: {tally:?}");
    }
}

#[test]
fn heavy_attacks_on_a_vault_that_was_not_unmounted() {
    let seed = seed(0xa77_ac01);
    let targets = target::make(seed, Cipher::ChaCha20Poly1305);
    let target = &targets.unclean;
    baseline(target);
    assert_known(target);
    let mut attacks = edits::all(target, &mut Rng(seed));
    attacks.extend(frames::moved(target, seed));
    let tallies = run(target, attacks, seed);
    assert_attacked(&tallies, &OFFSITE);
    assert_attacked(&tallies, &LOCAL);
    assert_attacked(&tallies, &["open pack", "moved frames", "records"]);
    assert_found(&tallies);
    // Without these the tests would show nothing: some attacks look like power cuts, and damaged data packs are read.
    let records = &tallies["records"];
    assert!(records.older > 0 && records.refused > 0 && records.exact > 0, "{records:?}");
    assert!(tallies["data pack"].partial > 0, "{tallies:#?}");
}

#[test]
fn heavy_attacks_on_a_vault_that_was_unmounted() {
    let seed = seed(0xa77_ac02);
    let targets = target::make(seed, Cipher::Aes256Gcm);
    let target = &targets.closed;
    baseline(target);
    assert_known(target);
    let tallies = run(target, edits::all(target, &mut Rng(seed)), seed);
    assert_attacked(&tallies, &LOCAL);
    assert_attacked(&tallies, &["records"]);
    assert_found(&tallies);
    // All that it had is in its newest snapshot, and this host knows that: nothing older passes.
    assert_eq!(sum(&tallies, |tally| tally.older), 0, "{tallies:#?}");
    assert!(sum(&tallies, |tally| tally.refused) > 50, "{tallies:#?}");
}

/// P13: a copy without `live/`, on a machine that has never seen the vault.
#[test]
fn heavy_attacks_on_an_offsite_copy() {
    let seed = seed(0xa77_ac03);
    let targets = target::make(seed, Cipher::ChaCha20Poly1305);
    let target = &targets.copy;
    baseline(target);
    assert_known(target);
    let mut attacks = edits::all(target, &mut Rng(seed));
    attacks.extend(frames::moved(target, seed));
    let tallies = run(target, attacks, seed);
    assert_attacked(&tallies, &OFFSITE);
    assert_attacked(&tallies, &["moved frames"]);
    assert_found(&tallies);
    assert!(target.state == State::Copy && sum(&tallies, |tally| tally.refused) > 50, "{tallies:#?}");
}

/// P6: an older image of the whole vault in its place, in whatever state it was.
#[test]
fn heavy_an_older_image_of_everything_is_refused_until_it_is_accepted() {
    let seed = seed(0xa77_ac09);
    let targets = target::make(seed, Cipher::Aes256Gcm);
    assert_eq!(targets.earlier.len(), 3);
    for (n, (image, key, tree)) in targets.earlier.iter().enumerate() {
        let (vault, state) = (image.fork(), targets.host.fork());
        let host = targets.closed.host(&vault, &state, seed ^ 5);
        let mark = target::files_of(&state);
        for attempt in ["first", "second"] {
            match host.open(*key).map(drop) {
                Err(StoreError::Rollback(_)) => {}
                other => panic!("image {n}, {attempt} attempt: {other:?}"),
            }
            assert_eq!(target::files_of(&state), mark, "refusing changes nothing that the host knows");
        }
        let accepting = Host { accept_rollback: true, ..host.clone() };
        let session = accepting.open(*key).unwrap_or_else(|e| panic!("image {n}, accepted: {e}"));
        let is = dump_fs(&session.fs).unwrap();
        assert_eq!(difference(&is, tree), None, "image {n}");
        session.unmount().unwrap();
        // From now on it is the vault.
        let session = host.open(*key).unwrap_or_else(|e| panic!("image {n}, after it was accepted: {e}"));
        let is = dump_fs(&session.fs).unwrap();
        assert_eq!(difference(&is, tree), None, "image {n}");
    }
    // A machine that has never seen the vault can't know.
    let (image, key, tree) = &targets.earlier[1];
    let host = targets.closed.host(&image.fork(), &SimDisk::new(4), seed ^ 7);
    let session = host.open(*key).unwrap();
    assert_eq!(difference(&dump_fs(&session.fs).unwrap(), tree), None);
}

/// A copy of which no snapshot can be started from does not begin with an empty tree, which a backup would go on with.
#[test]
fn a_copy_without_a_complete_snapshot_does_not_begin_empty() {
    let seed = seed(0xa77_ac0c);
    let targets = target::make(seed, Cipher::ChaCha20Poly1305);
    let target = &targets.copy;
    let paths = |prefix: &str| -> Vec<String> {
        target.files.keys().filter(|path| path.starts_with(prefix)).cloned().collect()
    };
    for what in ["no packs", "chain files that are damaged"] {
        let vault = target.vault.fork();
        for path in paths(if what == "no packs" { "packs/" } else { "snapshots/" }) {
            assert!(vault.raw_remove(&path));
            if what != "no packs" {
                vault.raw_write(&path, b"no chain file");
            }
        }
        let before = target::files_of(&vault);
        let host = target.host(&vault, &SimDisk::new(5), seed);
        match host.open(target.key).map(drop) {
            Err(StoreError::Corrupt(text)) => assert!(text.contains("--accept-rollback"), "{text}"),
            other => panic!("{what}: {other:?}"),
        }
        let mut after = target::files_of(&vault);
        after.retain(|path, _| path != "live/lock");
        assert_eq!(after, before, "{what}: refusing changes nothing");
        let accepting = Host { accept_rollback: true, ..host };
        let session = accepting.open(target.key).unwrap();
        assert_eq!(dump_fs(&session.fs).unwrap().len(), 1, "{what}: the root alone");
    }
}

/// Data that is written while forged packs say to hold it already is there when it is read, here and from packs alone.
#[test]
fn heavy_data_written_beside_forged_packs_is_there() {
    let seed = seed(0xa77_ac0f);
    let targets = target::make(seed, Cipher::ChaCha20Poly1305);
    let target = &targets.copy;
    let mut attacks = frames::moved(target, seed);
    attacks.retain(|attack| attack.what.contains("a forged pack"));
    let versions = target.history.versions.values().flatten();
    let contents: Vec<Arc<Vec<u8>>> =
        versions.map(|version| Arc::clone(&version.bytes)).filter(|bytes| bytes.len() > 2048).collect();
    assert!(contents.len() > 20, "{}", contents.len());
    let name = |n: usize| format!("again {n}").into_bytes();
    let (mut beside, mut written) = (0, 0);
    for attack in attacks {
        let (vault, state) = (target.vault.fork(), target.host.fork());
        attack.apply(&vault, &state);
        let host = target.host(&vault, &state, seed ^ 0x51);
        let write = || -> Result<u64, String> {
            let session = host.open(target.key).map_err(|e| e.to_string())?;
            let flags = OpenFlags { write: true, ..OpenFlags::default() };
            for (n, content) in contents.iter().enumerate() {
                let made = session.fs.create(ROOT_INO, &name(n), 0o600, 0, flags, Caller::default());
                let (attr, fh) = made.map_err(|e| e.to_string())?;
                session.fs.write(attr.ino, fh, 0, content, false).map_err(|e| e.to_string())?;
                session.fs.release(attr.ino, fh).map_err(|e| e.to_string())?;
            }
            let made = session.snapshot(true).map_err(|e| e.to_string())?.ok_or("no snapshot")?;
            session.unmount().map_err(|e| e.to_string())?;
            Ok(made.seq)
        };
        let seq = match write() {
            Ok(seq) => seq,
            // Where the true pack is gone, the copy may be refused, or a directory that stood in it.
            Err(error) => {
                assert!(!attack.what.contains("beside"), "{}: {error}", attack.what);
                continue;
            }
        };
        beside += usize::from(attack.what.contains("beside"));
        written += 1;
        let session = host.open(target.key).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(vault.clone());
        let survey = survey_snapshot(&disk, &target.unlock(), seq).unwrap();
        for (n, content) in contents.iter().enumerate() {
            let what = format!("{}: file {n}", attack.what);
            let ino = session.fs.lookup(ROOT_INO, &name(n)).unwrap().ino;
            let fh = session.fs.open_file(ino, OpenFlags::default(), Caller::default()).unwrap();
            let mut is = Vec::new();
            while is.len() < content.len() {
                let part = session.fs.read(ino, fh, is.len() as u64, 65_536);
                is.extend(part.unwrap_or_else(|e| panic!("{what}: {e}")));
            }
            assert!(is == **content, "{what}");
            session.fs.release(ino, fh).unwrap();
            let cold = survey.items.get(&name(n));
            let is_there = cold.is_some_and(|item| item.content == *content);
            assert!(is_there, "{what}, from packs: {:?}", survey.errors.get(&name(n)));
        }
    }
    assert!(beside == 2 && written > 2, "{beside} {written}");
}
