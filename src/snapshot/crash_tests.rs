//! Power cuts at every sync point while snapshots are made and deleted and space is given back.
//!
//! Whatever the disk kept of what was not synced, the vault opens again; the working tree is what was
//! committed; the chain is whole; every snapshot in it is complete and reads, from packs and chain files
//! alone, as it was; and a collection and another snapshot work.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::create::{SnapshotOpts, create};
use super::delete::{DeleteOpts, delete};
use super::gc::{self, GcOpts};
use super::testing::{Model, Rig, fsck, noise};
use super::{Idle, chain};
use crate::disk::{CrashMode, SimDisk};

type Anyhow = std::result::Result<(), Box<dyn std::error::Error>>;

fn eager() -> GcOpts {
    GcOpts { dead_percent_min: 1, small_bytes: 0, host: String::new() }
}

/// A vault with three snapshots, the first of which holds much that the others don't.
fn prepared() -> (Rig, BTreeMap<u64, Model>) {
    let rig = Rig::new(21);
    let mut models = BTreeMap::new();
    let mut snap = || {
        let info = create(&rig.engine, &Idle, &SnapshotOpts::default()).unwrap().unwrap();
        models.insert(info.seq, rig.tree().model().unwrap());
    };
    let tree = rig.tree();
    tree.mkdir("dir").unwrap();
    tree.mkdir("dir/sub").unwrap();
    for n in 0..9u64 {
        tree.write(&format!("dir/f{n}"), &noise(n, 40_000), 10_000).unwrap();
    }
    snap();
    for n in (0..9u64).filter(|n| n % 3 != 0) {
        tree.remove(&format!("dir/f{n}")).unwrap();
    }
    tree.write("dir/sub/x", b"small", 1).unwrap();
    snap();
    tree.write("y", &noise(50, 20_000), 10_000).unwrap();
    snap();
    (rig, models)
}

/// Opens what a crash left, and checks everything that was promised.
fn check(rig: &Rig, image: SimDisk, models: &BTreeMap<u64, Model>, tree: &Model, what: &str) {
    // Before anything is recovered: what is offered to other hosts is sound at each moment.
    fsck(&image, what);
    let up = rig.on(image, 99).unwrap_or_else(|e| panic!("{what}: does not open: {e}"));
    assert_eq!(&up.tree().model().unwrap(), tree, "{what}: the working tree");
    let verify = |stage: &str| {
        let chain = up.chain();
        assert_eq!(chain.problems(), [], "{what}, {stage}");
        let present = chain::present_packs(&up.disk).unwrap();
        assert!(chain.snapshots().count() > 0, "{what}, {stage}: no snapshot is left");
        for info in chain.snapshots() {
            let seq = info.seq;
            assert!(chain.is_complete(seq, &present), "{what}, {stage}: snapshot {seq} is not complete");
            let read = up.read_cold(seq).unwrap_or_else(|e| panic!("{what}, {stage}: snapshot {seq}: {e}"));
            assert_eq!(&read, models.get(&seq).unwrap_or(tree), "{what}, {stage}: snapshot {seq}");
        }
        assert_eq!(&up.tree().model().unwrap(), tree, "{what}, {stage}: the working tree");
    };
    verify("opened");
    let forced = SnapshotOpts { force: true, ..SnapshotOpts::default() };
    create(&up.engine, &Idle, &forced).unwrap_or_else(|e| panic!("{what}: a snapshot after it: {e}"));
    verify("another snapshot");
    gc::run(&up.engine, &Idle, &eager()).unwrap_or_else(|e| panic!("{what}: a collection after it: {e}"));
    verify("another collection");
    fsck(&up.disk, what);
    up.engine.close().unwrap_or_else(|e| panic!("{what}: closing: {e}"));
}

/// Runs `work` on copies of a vault that lose power at each sync point in turn.
fn enumerate(rig: &Rig, models: &BTreeMap<u64, Model>, tree: &Model, work: &dyn Fn(&Rig) -> Anyhow) {
    rig.engine.live.commit().unwrap();
    let start = || rig.on(rig.disk.crash_image(CrashMode::KeepAll), 5).unwrap();
    let whole = start();
    let before = whole.disk.sync_points();
    work(&whole).unwrap();
    let points = whole.disk.sync_points() - before;
    assert!(points >= 3, "only {points} sync points");
    for point in 1..=points {
        let run = start();
        run.disk.crash_at(run.disk.sync_points() + point);
        let result = work(&run);
        assert!(run.disk.is_off(), "point {point}: {result:?}");
        for mode in
            [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn(point), CrashMode::Torn(!point)]
        {
            check(
                rig,
                run.disk.crash_image(mode),
                models,
                tree,
                &format!("point {point} of {points}, {mode:?}"),
            );
        }
    }
}

#[test]
fn a_power_cut_while_a_snapshot_is_made() {
    let (rig, models) = prepared();
    let tree = rig.tree();
    tree.write("dir/sub/z", &noise(60, 30_000), 10_000).unwrap();
    tree.remove("y").unwrap();
    let now = tree.model().unwrap();
    enumerate(&rig, &models, &now, &|rig| {
        create(&rig.engine, &Idle, &SnapshotOpts::default())?;
        Ok(())
    });
}

#[test]
fn a_power_cut_while_snapshots_are_deleted() {
    let (rig, models) = prepared();
    let now = rig.tree().model().unwrap();
    enumerate(&rig, &models, &now, &|rig| {
        delete(&rig.engine, &[1, 2], &DeleteOpts::default())?;
        Ok(())
    });
}

#[test]
fn a_power_cut_while_space_is_given_back() {
    let (rig, models) = prepared();
    delete(&rig.engine, &[1], &DeleteOpts::default()).unwrap();
    // Something that no snapshot has yet.
    rig.tree().write("fresh", &noise(70, 15_000), 10_000).unwrap();
    let now = rig.tree().model().unwrap();
    enumerate(&rig, &models, &now, &|rig| {
        let report = gc::run(&rig.engine, &Idle, &eager())?;
        assert!(report.deleted_packs > 0 && report.rewritten_packs > 0, "{report:?}");
        Ok(())
    });
}

#[test]
fn a_power_cut_while_dead_packs_go_at_unmount() {
    let (rig, models) = prepared();
    let tree = rig.tree();
    tree.write("temporary", &noise(80, 60_000), 10_000).unwrap();
    rig.engine.packs.close_open().unwrap();
    tree.write("kept", &noise(81, 20_000), 10_000).unwrap();
    rig.engine.packs.close_open().unwrap();
    tree.remove("temporary").unwrap();
    let now = tree.model().unwrap();
    enumerate(&rig, &models, &now, &|rig| {
        assert!(gc::auto(&rig.engine, &Idle)?.deleted_packs > 0);
        create(&rig.engine, &Idle, &SnapshotOpts::default())?;
        Ok(())
    });
}
