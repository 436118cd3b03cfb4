//! Snapshots of whole vaults: made, read without live state, deleted, and their space given back.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::chain::{Chain, present_packs};
use super::create::{SnapshotInfo, SnapshotOpts, create};
use super::delete::{DeleteError, DeleteOpts, delete};
use super::gc::{self, Action, GcOpts};
use super::testing::{MiniTree, Model, Rig, fsck, noise, read_cold};
use super::{Idle, WorkingTree};
use crate::disk::Disk;
use crate::format::{Content, Origin, chain};
use crate::store::engine::Engine;
use crate::store::error::{Result, StoreError};
use crate::store::live::{Batch, Table};
use crate::store::records::{ROOT_INO, encode_u64, inode_key};

fn snap(rig: &Rig) -> Option<SnapshotInfo> {
    create(&rig.engine, &Idle, &SnapshotOpts::default()).unwrap()
}

fn forced() -> SnapshotOpts {
    SnapshotOpts { host: "here".into(), tags: vec!["a tag".into()], force: true }
}

fn force() -> DeleteOpts {
    DeleteOpts { host: "here".into(), force: true }
}

fn eager() -> GcOpts {
    GcOpts { dead_percent_min: 1, small_bytes: 0, host: "here".into() }
}

#[test]
fn snapshots_hold_the_tree_as_it_was() {
    let rig = Rig::new(1);
    let tree = rig.tree();
    let mut models: BTreeMap<u64, Model> = BTreeMap::new();
    let mut take = |expect: bool| {
        let info = snap(&rig);
        assert_eq!(info.is_some(), expect);
        if let Some(info) = info {
            models.insert(info.seq, tree.model().unwrap());
        }
    };
    take(true);
    take(false);
    tree.write("small", b"inline", 1).unwrap();
    tree.write("large", &noise(1, 200_000), 30_000).unwrap();
    tree.mkdir("dir").unwrap();
    tree.mkdir("dir/sub").unwrap();
    tree.mkdir("dir/sub/empty").unwrap();
    tree.write("dir/sub/many extents", &noise(2, 60_000), 1_500).unwrap();
    take(true);
    take(false);
    tree.write("dir/sub/many extents", &noise(3, 60_000), 1_500).unwrap();
    take(true);
    tree.remove("dir/sub").unwrap();
    tree.set_xattr("large", "user.x", b"value").unwrap();
    take(true);
    tree.remove("dir").unwrap();
    tree.remove("large").unwrap();
    tree.remove("small").unwrap();
    take(true);
    for (seq, model) in &models {
        assert_eq!(&rig.read_cold(*seq).unwrap(), model, "snapshot {seq}");
    }
    let chain = rig.chain();
    assert_eq!(chain.problems(), []);
    assert_eq!(chain.snapshots().count(), 5);
    fsck(&rig.disk, "five snapshots");
    let present = present_packs(&rig.disk).unwrap();
    let latest = chain.latest(&present, Some(Origin::WorkingTree));
    assert_eq!(latest.complete.unwrap().seq, 5);
    assert!(latest.incomplete.is_empty());
}

#[test]
fn what_did_not_change_keeps_its_object() {
    let rig = Rig::new(2);
    let tree = rig.tree();
    for dir in ["a", "b", "b/c", "b/c/d"] {
        tree.mkdir(dir).unwrap();
        tree.write(&format!("{dir}/file"), dir.as_bytes(), 1).unwrap();
    }
    let first = snap(&rig).unwrap();
    tree.write("b/c/other", b"new", 1).unwrap();
    let second = snap(&rig).unwrap();
    let reader = super::tree::TreeReader::new(rig.engine.packs.as_ref());
    let object = |info: &SnapshotInfo, path: &str| {
        let entry = reader.resolve(&info.root.entry, path.as_bytes()).unwrap();
        let Content::Dir(id) = entry.content else { panic!("{path} is a directory") };
        id
    };
    for same in ["a", "b/c/d"] {
        assert_eq!(object(&first, same), object(&second, same));
    }
    for other in ["", "b", "b/c"] {
        assert_ne!(object(&first, other), object(&second, other));
    }
    assert_eq!((second.root.files, second.root.dirs, second.root.bytes), (5, 5, 1 + 1 + 3 + 5 + 3));
}

/// A working tree in which something changes at the last moment.
struct Busy<'a> {
    tree: MiniTree<'a>,
    at: std::sync::Mutex<u32>,
}

impl WorkingTree for Busy<'_> {
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn frozen(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut at = self.at.lock().unwrap();
        *at += 1;
        if *at == 1 {
            self.tree.write("dir/late", b"late", 1)?;
        }
        f()
    }
}

#[test]
fn a_change_during_a_snapshot_is_in_the_next_one() {
    let rig = Rig::new(3);
    let tree = rig.tree();
    tree.mkdir("dir").unwrap();
    tree.write("dir/early", b"early", 1).unwrap();
    let before = tree.model().unwrap();
    let busy = Busy { tree: rig.tree(), at: std::sync::Mutex::new(0) };
    let first = create(&rig.engine, &busy, &SnapshotOpts::default()).unwrap().unwrap();
    assert_eq!(rig.read_cold(first.seq).unwrap(), before);
    let second = snap(&rig).expect("the late change");
    assert_eq!(rig.read_cold(second.seq).unwrap(), tree.model().unwrap());
    assert!(tree.model().unwrap().contains_key("dir/late"));
    assert!(snap(&rig).is_none());
}

#[test]
fn a_mark_without_a_change_makes_no_snapshot_and_goes() {
    let rig = Rig::new(4);
    rig.tree().mkdir("dir").unwrap();
    snap(&rig).unwrap();
    let mut batch = Batch::new();
    batch.put(Table::DirtyDirs, inode_key(ROOT_INO), encode_u64(1 << 40));
    batch.put(Table::DirtyDirs, inode_key(4711), encode_u64(1));
    rig.engine.live.apply(batch).unwrap();
    assert!(snap(&rig).is_none());
    assert_eq!(rig.engine.live.range(Table::DirtyDirs, &[], None, 9).unwrap(), []);
    let info = create(&rig.engine, &Idle, &forced()).unwrap().unwrap();
    assert_eq!((info.seq, info.tags.len()), (2, 1));
}

#[test]
fn a_vault_without_live_state_goes_on_from_its_newest_snapshot() {
    let rig = Rig::new(5);
    let tree = rig.tree();
    tree.mkdir("dir").unwrap();
    tree.write("dir/file", &noise(1, 50_000), 9_000).unwrap();
    let first = snap(&rig).unwrap();
    rig.engine.close().unwrap();
    let copy = rig.disk.fork();
    for path in copy.raw_list() {
        if path.starts_with("live/") {
            copy.raw_remove(&path);
        }
    }
    let clone = rig.on(copy, 9).unwrap();
    assert!(snap(&clone).is_none(), "nothing changed");
    let again = create(&clone.engine, &Idle, &forced()).unwrap().unwrap();
    assert_eq!(again.seq, 2);
    assert_eq!(again.root, first.root, "counts and all");
    assert_eq!(clone.read_cold(2).unwrap(), rig.read_cold(1).unwrap());
    let plan = gc::plan(&clone.engine, &Idle, &eager()).unwrap();
    assert!(plan.packs.iter().all(|p| p.kind == "tree" || p.action == Action::Keep), "{plan:?}");
    gc::execute(&clone.engine, &Idle, plan).unwrap();
    assert_eq!(clone.read_cold(2).unwrap(), rig.read_cold(1).unwrap());
}

/// An empty tree in place of one whose packs are not there would make the next backup's snapshot an empty one.
#[test]
fn a_vault_without_live_state_does_not_begin_empty_when_no_snapshot_can_be_started_from() {
    let rig = Rig::new(17);
    rig.tree().write("file", &noise(1, 50_000), 9_000).unwrap();
    let made = snap(&rig).unwrap();
    rig.engine.close().unwrap();
    let without = |begin: &str| {
        let copy = rig.disk.fork();
        for path in copy.raw_list().iter().filter(|p| p.starts_with("live/") || p.starts_with(begin)) {
            assert!(copy.raw_remove(path));
        }
        copy
    };
    let refused = |copy: &crate::disk::SimDisk| match rig.on(copy.fork(), 9).map(drop) {
        Err(StoreError::Corrupt(text)) => text,
        other => panic!("{other:?}"),
    };
    let text = refused(&without("packs/"));
    assert!(text.contains(&chain::name(made.seq, &made.id)), "{text}");
    // A chain file that can't be believed is no reason either.
    let copy = without("live/");
    let path = format!("snapshots/{}", chain::name(made.seq, &made.id));
    copy.raw_write(&path, b"damaged");
    assert!(refused(&copy).contains(&path));
    // With no chain file at all it is a vault that never had a snapshot; a name that is none does not count.
    let copy = without("snapshots/");
    copy.raw_write("snapshots/README", b"not ours");
    rig.on(copy, 9).unwrap();
}

#[test]
fn a_long_chain_with_deletions_stays_whole() {
    let rig = Rig::new(6);
    let tree = rig.tree();
    let mut models = BTreeMap::new();
    for n in 0..70u64 {
        tree.write(&format!("f{}", n % 7), &noise(n, 3_000), 3_000).unwrap();
        let info = snap(&rig).unwrap();
        models.insert(info.seq, tree.model().unwrap());
        if n % 9 == 8 {
            let newest = info.seq;
            let gone: Vec<u64> =
                models.keys().copied().filter(|seq| *seq != newest && seq % 3 == n % 3).take(4).collect();
            delete(&rig.engine, &gone, &DeleteOpts::default()).unwrap();
            models.retain(|seq, _| !gone.contains(seq));
        }
    }
    let chain = rig.chain();
    assert_eq!(chain.problems(), []);
    assert!(chain.is_whole() && chain.leftovers().is_empty());
    assert_eq!(
        chain.snapshots().map(|i| i.seq).collect::<Vec<_>>(),
        models.keys().copied().collect::<Vec<_>>()
    );
    let present = present_packs(&rig.disk).unwrap();
    for (seq, model) in &models {
        assert!(chain.is_complete(*seq, &present));
        assert_eq!(&rig.read_cold(*seq).unwrap(), model);
    }
    fsck(&rig.disk, "a long chain");
    // A crash between the removal and the deletion of the files: they come back, and go again.
    let gone = *models.keys().next().unwrap();
    let path = chain.get(gone).unwrap().path();
    let bytes = rig.disk.raw_read(&path).unwrap();
    delete(&rig.engine, &[gone], &DeleteOpts::default()).unwrap();
    rig.disk.raw_write(&path, &bytes);
    let chain = rig.chain();
    assert_eq!(chain.leftovers(), std::slice::from_ref(&path));
    assert!(chain.get(gone).is_none() && chain.is_whole());
    assert_eq!(gc::recover(&rig.engine, &chain).unwrap().chain_files, 1);
    assert!(rig.disk.raw_read(&path).is_none());
}

#[test]
fn deleting_is_refused_where_it_would_hurt() {
    let rig = Rig::new(7);
    rig.tree().write("f", b"1", 1).unwrap();
    snap(&rig).unwrap();
    rig.tree().write("f", b"2", 1).unwrap();
    snap(&rig).unwrap();
    let gone = |seqs: &[u64], opts: &DeleteOpts| delete(&rig.engine, seqs, opts);
    assert!(matches!(gone(&[1, 2], &DeleteOpts::default()), Err(DeleteError::Newest(2))));
    assert!(matches!(gone(&[1, 5, 9], &DeleteOpts::default()), Err(DeleteError::NotFound(s)) if s == [5, 9]));
    assert_eq!(rig.chain().snapshots().count(), 2, "all or nothing");
    assert!(gone(&[], &force()).unwrap().is_empty());
    assert_eq!(gone(&[1, 2, 2], &force()).unwrap(), [3]);
    assert!(matches!(gone(&[3], &force()), Err(DeleteError::NotFound(_))), "a removal is no snapshot");
    let chain = rig.chain();
    assert!(chain.is_whole() && chain.snapshots().count() == 0 && chain.head().unwrap().seq == 3);
    // The tree itself is untouched, and the next snapshot has it.
    assert_eq!(create(&rig.engine, &Idle, &forced()).unwrap().unwrap().seq, 4);
    assert_eq!(rig.read_cold(4).unwrap(), rig.tree().model().unwrap());
}

fn pack_bytes(engine: &Engine) -> u64 {
    engine.packs.closed_packs().unwrap().iter().map(|p| p.file_len).sum()
}

#[test]
fn collecting_frees_what_nothing_needs_and_nothing_else() {
    let rig = Rig::new(8);
    let tree = rig.tree();
    for n in 0..12u64 {
        tree.write(&format!("f{n}"), &noise(n, 100_000), 10_000).unwrap();
    }
    snap(&rig).unwrap();
    for n in (0..12u64).filter(|n| n % 3 != 0) {
        tree.remove(&format!("f{n}")).unwrap();
    }
    snap(&rig).unwrap();
    let model = tree.model().unwrap();
    let plan = gc::plan(&rig.engine, &Idle, &eager()).unwrap();
    assert!(plan.packs.iter().all(|p| p.action == Action::Keep), "snapshot 1 needs everything: {plan:?}");
    assert!(plan.is_empty() && plan.freed_bytes == 0);
    delete(&rig.engine, &[1], &DeleteOpts::default()).unwrap();
    // Not in a snapshot yet, and still needed.
    tree.write("fresh", &noise(99, 50_000), 10_000).unwrap();
    let before = pack_bytes(&rig.engine);
    let plan = gc::plan(&rig.engine, &Idle, &eager()).unwrap();
    assert!(plan.freed_bytes > 500_000, "{plan:?}");
    let json = serde_json::to_value(&plan).unwrap();
    assert!(json["packs"].as_array().unwrap().iter().any(|p| p["action"] == "rewrite"));
    let report = gc::execute(&rig.engine, &Idle, plan).unwrap();
    assert!(report.rewritten_packs > 0 && report.removal == Some(4), "{report:?}");
    let now = pack_bytes(&rig.engine);
    assert!(now < before / 2, "{before} -> {now}");
    let chain = rig.chain();
    assert_eq!(chain.problems(), []);
    assert!(chain.is_complete(2, &present_packs(&rig.disk).unwrap()));
    assert_eq!(rig.read_cold(2).unwrap(), model);
    assert_eq!(tree.model().unwrap().len(), model.len() + 1);
    let third = snap(&rig).unwrap();
    assert_eq!(rig.read_cold(third.seq).unwrap(), tree.model().unwrap());
    assert!(gc::plan(&rig.engine, &Idle, &GcOpts::default()).unwrap().is_empty());
    assert_eq!(gc::recover(&rig.engine, &rig.chain()).unwrap(), gc::Recovered::default());
    fsck(&rig.disk, "after a collection");
    // And from a copy without live state, everything is there too.
    assert_eq!(read_cold(&rig.disk, &rig.unlocked, 2).unwrap(), model);
}

#[test]
fn a_plan_that_is_out_of_date_is_refused() {
    let rig = Rig::new(9);
    rig.tree().write("f", &noise(1, 50_000), 10_000).unwrap();
    snap(&rig).unwrap();
    rig.tree().remove("f").unwrap();
    snap(&rig).unwrap();
    delete(&rig.engine, &[1], &DeleteOpts::default()).unwrap();
    let plan = gc::plan(&rig.engine, &Idle, &eager()).unwrap();
    assert!(!plan.is_empty());
    rig.tree().write("g", b"x", 1).unwrap();
    snap(&rig).unwrap();
    let error = gc::execute(&rig.engine, &Idle, plan).unwrap_err();
    assert!(error.to_string().contains("out of date"), "{error}");
}

/// A working tree that stores the data of a deleted file again while a collection runs.
struct Returning<'a>(MiniTree<'a>);

impl WorkingTree for Returning<'_> {
    fn flush(&self) -> Result<()> {
        if self.0.lookup("again").is_none() {
            self.0.write("again", &noise(1, 50_000), 10_000)?;
        }
        Ok(())
    }

    fn frozen(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        f()
    }
}

#[test]
fn data_that_comes_back_during_a_collection_is_kept() {
    let rig = Rig::new(10);
    let tree = rig.tree();
    tree.write("f", &noise(1, 50_000), 10_000).unwrap();
    snap(&rig).unwrap();
    tree.remove("f").unwrap();
    snap(&rig).unwrap();
    delete(&rig.engine, &[1], &DeleteOpts::default()).unwrap();
    let plan = gc::plan(&rig.engine, &Idle, &eager()).unwrap();
    assert!(plan.packs.iter().any(|p| p.kind == "data" && p.action == Action::Delete));
    // With the plan made, the data returns: once by deduplication, before the packs are condemned.
    let returning = Returning(rig.tree());
    returning.flush().unwrap();
    gc::execute(&rig.engine, &returning, plan).unwrap();
    assert_eq!(tree.model().unwrap()["again"], noise(1, 50_000));
    let info = snap(&rig).unwrap();
    assert_eq!(rig.read_cold(info.seq).unwrap()["again"], noise(1, 50_000));
    // And once after that, while they are condemned.
    tree.remove("again").unwrap();
    let last = snap(&rig).unwrap();
    delete(&rig.engine, &[info.seq], &DeleteOpts::default()).unwrap();
    let plan = gc::plan(&rig.engine, &Idle, &eager()).unwrap();
    gc::execute(&rig.engine, &returning, plan).unwrap();
    assert_eq!(tree.model().unwrap()["again"], noise(1, 50_000));
    assert_eq!(rig.read_cold(last.seq).unwrap().len(), 0);
    let info = snap(&rig).unwrap();
    assert_eq!(rig.read_cold(info.seq).unwrap()["again"], noise(1, 50_000));
}

#[test]
fn small_packs_are_merged_when_there_are_many() {
    let rig = Rig::new(11);
    for n in 0..20u64 {
        rig.tree().write(&format!("f{n}"), &noise(n, 3_000), 3_000).unwrap();
        snap(&rig).unwrap();
    }
    let packs = rig.engine.packs.closed_packs().unwrap().len();
    let report = gc::run(&rig.engine, &Idle, &GcOpts::default()).unwrap();
    assert!(report.rewritten_packs >= 32, "{report:?}");
    assert!(rig.engine.packs.closed_packs().unwrap().len() < packs / 4);
    for info in rig.chain().snapshots() {
        assert_eq!(rig.read_cold(info.seq).unwrap().len() as u64, info.seq);
    }
    assert!(gc::plan(&rig.engine, &Idle, &GcOpts::default()).unwrap().is_empty(), "once is enough");
    fsck(&rig.disk, "merged packs");
}

#[test]
fn what_was_written_and_deleted_between_snapshots_goes_at_unmount() {
    let rig = Rig::new(12);
    let tree = rig.tree();
    tree.write("stays", &noise(1, 50_000), 10_000).unwrap();
    snap(&rig).unwrap();
    let listed = pack_bytes(&rig.engine);
    assert_eq!(gc::auto(&rig.engine, &Idle).unwrap(), gc::GcReport::default());
    tree.write("temporary", &noise(2, 400_000), 10_000).unwrap();
    rig.engine.packs.close_open().unwrap();
    tree.write("used", &noise(3, 50_000), 10_000).unwrap();
    rig.engine.packs.close_open().unwrap();
    tree.remove("temporary").unwrap();
    let report = gc::auto(&rig.engine, &Idle).unwrap();
    assert!(report.deleted_packs >= 1 && report.freed_bytes >= 400_000, "{report:?}");
    assert!(pack_bytes(&rig.engine) - listed < 100_000);
    let info = snap(&rig).unwrap();
    assert_eq!(rig.read_cold(info.seq).unwrap(), tree.model().unwrap());
    assert_eq!(rig.read_cold(1).unwrap().len(), 1);
    fsck(&rig.disk, "after unmount");
    assert!(rig.chain().is_complete(info.seq, &present_packs(&rig.disk).unwrap()));
}

#[test]
fn nothing_is_deleted_from_a_damaged_vault() {
    let rig = Rig::new(13);
    let tree = rig.tree();
    tree.write("f", &noise(1, 50_000), 10_000).unwrap();
    snap(&rig).unwrap();
    tree.write("g", &noise(2, 50_000), 10_000).unwrap();
    snap(&rig).unwrap();
    let corrupt = || match gc::plan(&rig.engine, &Idle, &eager()) {
        Err(StoreError::Corrupt(text)) => text,
        other => panic!("{other:?}"),
    };
    // A pack is missing.
    let pack = rig.engine.packs.closed_packs().unwrap()[0].name;
    let path = crate::format::pack::pack_path(&pack);
    let bytes = rig.disk.raw_read(&path).unwrap();
    rig.disk.raw_remove(&path);
    assert!(corrupt().contains("snapshot 1 is not complete"));
    rig.disk.raw_write(&path, &bytes);
    gc::plan(&rig.engine, &Idle, &eager()).unwrap();
    // A chain file is missing.
    let path = rig.chain().get(1).unwrap().path();
    rig.disk.raw_remove(&path);
    assert!(corrupt().contains("chain is broken"));
}

fn tampered(rig: &Rig, change: impl Fn(&crate::disk::SimDisk, &Chain)) -> Chain {
    let disk = rig.disk.fork();
    change(&disk, &rig.chain());
    Chain::load(&disk, &rig.engine.header).unwrap()
}

#[test]
fn each_chain_file_is_verified_once_while_a_vault_is_open() {
    let rig = Rig::new(15);
    for n in 0..10u8 {
        rig.tree().write("f", &[n; 9], 1).unwrap();
        snap(&rig).unwrap();
    }
    rig.engine.close().unwrap();
    // What a mount does from its beginning to its end.
    let unlocked = rig.unlock_anew();
    let verified = || unlocked.keys.verifications();
    let env = std::sync::Arc::new(crate::env::TestEnv::new(16));
    let opened = Rig::open(&rig.disk, &env, &unlocked).unwrap();
    assert_eq!(verified(), 10);
    let engine = &opened.engine;
    MiniTree { engine }.write("f", b"changed", 1).unwrap();
    assert_eq!(create(engine, &Idle, &SnapshotOpts::default()).unwrap().unwrap().seq, 11);
    assert_eq!(verified(), 10, "nothing but what was read at open");
    MiniTree { engine }.write("f", b"again", 1).unwrap();
    assert_eq!(create(engine, &Idle, &SnapshotOpts::default()).unwrap().unwrap().seq, 12);
    gc::auto(engine, &Idle).unwrap();
    let chain = Chain::of(engine).unwrap();
    assert!(chain.is_whole() && chain.problems().is_empty() && chain.head().unwrap().seq == 12);
    assert_eq!(verified(), 12, "and each new one when it was first read");

    // A file that changes meanwhile is as little believed as at open.
    let path = chain.get(5).unwrap().path();
    let right = rig.disk.raw_read(&path).unwrap();
    let mut bytes = right.clone();
    *bytes.last_mut().unwrap() ^= 1;
    rig.disk.raw_write(&path, &bytes);
    let chain = Chain::of(engine).unwrap();
    assert!(!chain.is_whole() && chain.get(5).is_none());
    assert!(
        chain.problems().iter().any(|p| p.file == path && p.what.contains("LAY-1")),
        "{:?}",
        chain.problems()
    );
    assert_eq!(verified(), 12);
    // Nor under the name that its bytes have now.
    rig.disk.raw_remove(&path);
    let forged = format!("snapshots/{}", chain::name(5, &chain::id_of(&bytes)));
    rig.disk.raw_write(&forged, &bytes);
    for tries in 1..=2 {
        let chain = Chain::of(engine).unwrap();
        assert!(!chain.is_whole() && chain.get(5).is_none());
        let wrong = |p: &super::chain::Problem| p.file == forged && p.what.contains("signature is wrong");
        assert!(chain.problems().iter().any(wrong), "{:?}", chain.problems());
        assert_eq!(verified(), 12 + tries, "what is wrong is not remembered as right");
    }
    rig.disk.raw_remove(&forged);
    rig.disk.raw_write(&path, &right);
    assert!(Chain::of(engine).unwrap().is_whole());
    engine.close().unwrap();
}

#[test]
fn every_change_of_the_chain_is_noticed() {
    let rig = Rig::new(14);
    for n in 0..5u8 {
        rig.tree().write("f", &[n; 9], 1).unwrap();
        snap(&rig).unwrap();
    }
    delete(&rig.engine, &[2, 3], &DeleteOpts::default()).unwrap();
    assert!(rig.chain().is_whole() && rig.chain().problems().is_empty());
    let path = |chain: &Chain, seq| chain.get(seq).unwrap().path();
    // Deleted files are noticed, except for the newest (which only a high-water mark can tell).
    for seq in [1, 4, 5] {
        let chain = tampered(&rig, |disk, chain| assert!(disk.raw_remove(&path(chain, seq))));
        assert!(!chain.is_whole(), "{seq}");
        assert!(chain.problems()[0].file.contains(&format!("{seq:010}")), "{:?}", chain.problems());
        assert!(chain.snapshots().all(|info| info.seq != seq));
    }
    // Without the removal, what it removed is missing.
    let chain = tampered(&rig, |disk, chain| assert!(disk.raw_remove(&path(chain, 6))));
    assert!(!chain.is_whole());
    // A changed byte anywhere, cut or longer files.
    let mine = path(&rig.chain(), 4);
    let bytes = rig.disk.raw_read(&mine).unwrap();
    for at in (0..bytes.len()).step_by(97).chain([0, 8, 9, 10, 12, 16, bytes.len() - 1]) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        let chain = tampered(&rig, |disk, _| disk.raw_write(&mine, &bytes));
        assert!(chain.problems().iter().any(|p| p.file == mine) && !chain.is_whole(), "{at}");
        // Under the name that its bytes have, the signature does not hold.
        let name = crate::format::chain::name(4, &crate::format::chain::id_of(&bytes));
        let chain = tampered(&rig, |disk, _| disk.raw_write(&format!("snapshots/{name}"), &bytes));
        assert!(chain.problems().iter().any(|p| p.file.ends_with(&name)), "{at}");
        assert!(chain.is_whole(), "{at}: the chain itself has all its files");
    }
    for bytes in [&bytes[..bytes.len() - 1], &bytes[..100], &[], &[&bytes[..], b"x"].concat()] {
        assert!(!tampered(&rig, |disk, _| disk.raw_write(&mine, bytes)).is_whole());
    }
    // Renamed: another sequence, no proper name.
    let chain = tampered(&rig, |disk, _| {
        disk.raw_write(&mine.replace("/0000000004", "/0000000007"), &bytes);
        disk.raw_write("snapshots/readme", b"?");
    });
    assert_eq!(chain.problems().len(), 2, "{:?}", chain.problems());
    assert!(chain.is_whole());
    // A snapshot of another vault, properly signed by its owner.
    let other = Rig::new(15);
    snap(&other).unwrap();
    let theirs = other.chain().head().unwrap().path();
    let bytes = other.disk.raw_read(&theirs).unwrap();
    let chain = tampered(&rig, |disk, _| disk.raw_write(&theirs, &bytes));
    assert!(chain.problems().iter().any(|p| p.file == theirs));
    // Two writers on two copies of the vault.
    rig.engine.live.commit().unwrap();
    let twin = rig.on(rig.disk.crash_image(crate::disk::CrashMode::KeepAll), 77).unwrap();
    rig.tree().write("f", b"here", 1).unwrap();
    snap(&rig).unwrap();
    twin.tree().write("f", b"there", 1).unwrap();
    snap(&twin).unwrap();
    let theirs = twin.chain().head().unwrap().path();
    let bytes = twin.disk.raw_read(&theirs).unwrap();
    let chain = tampered(&rig, |disk, _| disk.raw_write(&theirs, &bytes));
    assert!(!chain.is_whole() && chain.problems()[0].what.contains("SNAP-1"), "{:?}", chain.problems());
    assert_eq!(chain.head().unwrap().seq, 7);
}

#[test]
fn the_newest_complete_snapshot_is_found() {
    let rig = Rig::new(16);
    for n in 0..3u64 {
        rig.tree().write(&format!("f{n}"), &noise(n, 30_000), 10_000).unwrap();
        snap(&rig).unwrap();
    }
    let chain = rig.chain();
    let mut present = present_packs(&rig.disk).unwrap();
    let only_in_third: Vec<_> =
        chain.needed_packs(3).unwrap().difference(&chain.needed_packs(2).unwrap()).copied().collect();
    assert!(!only_in_third.is_empty());
    present.remove(&only_in_third[0]);
    let latest = chain.latest(&present, None);
    assert_eq!(latest.complete.unwrap().seq, 2);
    assert_eq!(latest.incomplete.iter().map(|(i, n)| (i.seq, *n)).collect::<Vec<_>>(), [(3, Some(1))]);
    assert_eq!(chain.missing_packs(3, &present).unwrap(), only_in_third[..1]);
    assert!(chain.latest(&present, Some(Origin::Import)).complete.is_none());
    assert!(chain.latest(&Default::default(), None).complete.is_none());
    assert!(rig.disk.list("snapshots").unwrap().len() == 3);
}
