//! Vaults to attack, each with what must be read of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use strongroom::disk::{CrashMode, Disk, SimDisk};
use strongroom::format::Cipher;
use strongroom::format::pack::pack_path;
use strongroom::snapshot::chain::Chain;
use strongroom::snapshot::open::Unlocked;

use crate::whole::model::History;
use crate::whole::view::{Dump, dump_fs};
use crate::whole::work::{Mix, Work};
use crate::whole::{Host, new_vault};

/// All files of a disk.
pub type Files = BTreeMap<String, Arc<Vec<u8>>>;

/// In which state a vault is when it is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its daemon died: journal and open packs hold what no snapshot has.
    Unclean,
    /// It was unmounted.
    Closed,
    /// It has no `live/`, and nobody has ever seen it: a copy that is opened on another machine.
    Copy,
}

/// A vault that is attacked.
#[derive(Debug)]
pub struct Target {
    pub name: &'static str,
    pub state: State,
    pub vault: SimDisk,
    /// The host's state directory, with its high-water mark.
    pub host: SimDisk,
    /// The keyfile that opens it.
    pub key: u32,
    /// What the working tree is.
    pub tree: Dump,
    /// The snapshots that exist.
    pub snapshots: BTreeMap<u64, Arc<Dump>>,
    pub history: Arc<History>,
    /// Steps that had been done.
    pub steps: usize,
    /// Files of the vault.
    pub files: Files,
    /// The host's files.
    pub host_files: Files,
    /// Files of the vault as they were earlier, the oldest first.
    pub older: Vec<Files>,
    /// Packs that snapshots need.
    pub needed: BTreeSet<String>,
    /// Chain files in the order of the chain.
    pub chain: Vec<String>,
}

pub fn files_of(disk: &SimDisk) -> Files {
    disk.raw_list()
        .into_iter()
        .map(|path| {
            let bytes = disk.raw_read(&path).expect("a listed file");
            (path, Arc::new(bytes))
        })
        .collect()
}

impl Target {
    pub fn host(&self, vault: &SimDisk, state: &SimDisk, seed: u64) -> Host {
        Host::new(Arc::new(vault.clone()), Arc::new(state.clone()), seed)
    }

    pub fn unlock(&self) -> Unlocked {
        self.host(&self.vault, &self.host, 1).unlock(self.key).expect("the vault before an attack")
    }

    fn new(
        name: &'static str,
        state: State,
        (vault, host): (SimDisk, SimDisk),
        work: &Work,
        tree: Dump,
        older: Vec<Files>,
    ) -> Target {
        let kept = work.history.snapshots.iter().filter(|(_, snap)| snap.deleted.is_none());
        let mut target = Target {
            name,
            state,
            key: work.key(),
            tree,
            snapshots: kept.map(|(seq, snap)| (*seq, Arc::clone(&snap.tree))).collect(),
            history: Arc::new(History {
                trees: work.history.trees.clone(),
                said: work.history.said.clone(),
                versions: work.history.versions.clone(),
                acks: work.history.acks.clone(),
                barriers: work.history.barriers.clone(),
                ..History::default()
            }),
            steps: work.progress().1,
            files: files_of(&vault),
            host_files: files_of(&host),
            older,
            needed: BTreeSet::new(),
            chain: Vec::new(),
            vault,
            host,
        };
        let disk: Arc<dyn Disk> = Arc::new(target.vault.clone());
        let chain = Chain::load(disk.as_ref(), &target.unlock().header).expect("a chain");
        assert!(chain.is_whole() && chain.problems().is_empty(), "{:?}", chain.problems());
        target.chain = chain.files().map(|info| info.path()).collect();
        let seqs: Vec<u64> = chain.snapshots().map(|info| info.seq).collect();
        assert_eq!(seqs, target.snapshots.keys().copied().collect::<Vec<_>>());
        for seq in seqs {
            target.needed.extend(chain.needed_packs(seq).expect("a whole chain").iter().map(pack_path));
        }
        target
    }

    /// The same vault without its live state, on a machine that has never seen it. `tree` is that of the newest snapshot.
    fn copied(&self, name: &'static str) -> Target {
        let (vault, host) = (self.vault.fork(), SimDisk::new(99));
        for path in vault.raw_list().iter().filter(|path| path.starts_with("live/")) {
            assert!(vault.raw_remove(path));
        }
        let keep = |files: &Files| {
            let kept = files.iter().filter(|(path, _)| !path.starts_with("live/"));
            kept.map(|(path, bytes)| (path.clone(), Arc::clone(bytes))).collect()
        };
        Target {
            name,
            state: State::Copy,
            tree: self.snapshots.values().next_back().expect("a snapshot").as_ref().clone(),
            snapshots: self.snapshots.clone(),
            history: Arc::clone(&self.history),
            files: files_of(&vault),
            host_files: Files::new(),
            older: self.older.iter().map(keep).collect(),
            needed: self.needed.clone(),
            chain: self.chain.clone(),
            vault,
            host,
            ..*self
        }
    }
}

/// One vault at several moments.
pub struct Targets {
    pub unclean: Arc<Target>,
    pub closed: Arc<Target>,
    /// Taken without `live/` while the vault was mounted.
    pub copy: Arc<Target>,
    /// The whole vault as it was earlier, with its key and its tree: closed, without its live state, and mounted.
    pub earlier: Vec<(SimDisk, u32, Dump)>,
    /// What the host knew when the vault was closed at last.
    pub host: SimDisk,
}

/// Makes a vault with all kinds of files in it: snapshots and removals, packs of both kinds, many of them collected and
/// replaced, small, sparse and long files, large directories, links, extended attributes.
pub fn make(seed: u64, cipher: Cipher) -> Targets {
    let (vault, state) = new_vault(seed, cipher);
    let mut host = Host::new(Arc::new(vault.clone()), Arc::new(state.clone()), seed ^ 0xa77);
    host.cfg.pack_bytes = 40 << 10;
    let mix = Mix { snapshots: 0, collections: 0, remounts: 0, keys: 0, file_max: 24_000, ..Mix::default() };
    let mut work = Work::start(host, None, seed, mix);
    let image = |disk: &SimDisk| disk.crash_image(CrashMode::KeepAll);

    work.run(70);
    work.make_large_directory(120);
    work.snapshot(true);
    work.make_long_file(9);
    work.run(40);
    work.snapshot(true);
    work.run(20);
    let tree = work.stop_if(true).expect("unmounted");
    let mut earlier = vec![(image(&vault), work.key(), tree)];
    let mut older = vec![files_of(&vault)];

    work.change_key();
    work.begin_work();
    work.run(40);
    work.snapshot(true);
    work.delete_snapshot(2);
    work.write_new_file(60_000);
    work.sync_everything();
    work.collect();
    work.run(10);
    work.sync_everything();
    let tree = dump_fs(&work.session.as_ref().expect("mounted").fs).expect("a tree");
    earlier.push((image(&vault), work.key(), tree));
    older.push(files_of(&vault));

    work.run(20);
    work.snapshot(true);
    work.run(25);
    work.write_new_file(50_000);
    work.sync_everything();
    let tree = dump_fs(&work.session.as_ref().expect("mounted").fs).expect("a tree");
    let unclean = (image(&vault), image(&state));
    let mut without_live = unclean.0.clone();
    let unclean = Target::new("unclean", State::Unclean, unclean, &work, tree, older.clone());
    older.push(unclean.files.clone());
    let copy = unclean.copied("copy");
    without_live = without_live.fork();
    for path in without_live.raw_list().iter().filter(|path| path.starts_with("live/")) {
        assert!(without_live.raw_remove(path));
    }
    earlier.push((without_live, work.key(), copy.tree.clone()));

    work.run(15);
    let tree = work.stop_if(true).expect("unmounted");
    let closed = (image(&vault), image(&state));
    let host = closed.1.fork();
    let closed = Target::new("closed", State::Closed, closed, &work, tree, older);
    Targets { unclean: Arc::new(unclean), closed: Arc::new(closed), copy: Arc::new(copy), earlier, host }
}
