//! Gives back the space of chunks that nothing needs.
//!
//! [`plan`] marks and decides, and changes nothing. [`execute`] carries a plan out:
//!
//! 1. The packs that are to go are *condemned*: from now on deduplication passes them by.
//! 2. The working tree publishes everything that it got before ([`WorkingTree::flush`]), and its rows are
//!    marked again. After this nothing can come to need a chunk of a condemned pack that is not marked: a new
//!    reference is made either by storing a chunk, which no longer finds the condemned copy, or by copying a
//!    row that exists, which was marked.
//! 3. What is needed of the condemned packs is copied into new ones, which are closed. Rows follow. All is
//!    committed.
//! 4. It is proved from the index that every needed chunk stands in a pack that stays.
//! 5. A removal is written: it names the packs as retired, and those that hold what was needed of them as
//!    replacements.
//! 6. The packs are forgotten and deleted.
//!
//! # A crash
//!
//! - in 1 or 2: packs are condemned, no chain file says so. [`recover`] takes the condemnation back.
//! - in 3: some chunks stand twice. The rows of the copies are committed or not; either way each points to a
//!   pack that exists. The new packs are finished by the chunk store's own recovery, the condemned ones come
//!   back by [`recover`]. Every snapshot still finds what it needs in the packs that its chain file names.
//!   The next snapshot names all.
//! - in 5: the removal exists or not; a chain file is written atomically. If not: as in 3. If so: every
//!   snapshot's needs are met by the replacements, which were durable before. The condemned packs are retired
//!   and [`recover`] deletes them.
//! - in 6: [`recover`] goes on. A file whose rows are gone already is found by its name among the retired
//!   ones.
//!
//! A full disk: copying stops, what was not copied completely is kept, what needs no copying is still
//! deleted.
//!
//! Packs that no chain file ever named (written since the last snapshot) need no removal: see [`auto`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use crate::format::pack::pack_path;
use crate::format::{Origin, PackKind, PackName, SnapshotId};
use crate::store::engine::Engine;
use crate::store::error::{Result, StoreError};
use crate::store::live::{Batch, Table};
use crate::store::packs::{PackInfo, PackState};
use crate::store::records::{ExtentRow, extent_key, settings};

use super::chain::{Chain, open_sealed, present_packs};
use super::delete::delete_leftovers;
use super::gc_mark::{Marks, ShortIds, short};
use super::publish::{Draft, publish};
use super::rows::scan;
use super::tree::TreeReader;
use super::{WorkingTree, while_collecting};

/// Settings row: a collection was undone, so a chunk that a listed pack has may be found in one that is not
/// listed.
const UNDONE: &[u8] = b"gc_undone";
/// Small packs are merged when there are this many of one kind.
const SMALL_PACKS_MIN: usize = 16;
/// [`auto`] looks at no more packs than these; more are left to a full collection.
const AUTO_PACKS_MAX: usize = 1024;
/// So often a full disk is gone over.
const ROUNDS_MAX: usize = 32;
/// So often packs are closed for a proof that writers keep from succeeding.
const PROOFS_MAX: usize = 5;

/// How to collect.
#[derive(Clone, Debug)]
pub struct GcOpts {
    /// A pack is rewritten when at least this part of its chunks' bytes is dead, in percent.
    pub dead_percent_min: u8,
    /// Packs smaller than this are merged when there are many, in bytes.
    pub small_bytes: u64,
    /// The host that it is done on.
    pub host: String,
}

impl Default for GcOpts {
    fn default() -> Self {
        GcOpts { dead_percent_min: 20, small_bytes: 2 << 20, host: String::new() }
    }
}

/// What is to become of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It stays.
    Keep,
    /// What is needed of it is copied, then it is deleted.
    Rewrite,
    /// Nothing of it is needed.
    Delete,
}

/// One pack in a plan.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PackPlan {
    /// Its name, in hex.
    pub pack: String,
    /// `data` or `tree`.
    pub kind: &'static str,
    /// Length of its file in bytes.
    pub file_bytes: u64,
    /// Stored bytes of its chunks that are needed.
    pub live_bytes: u64,
    /// Stored bytes of its chunks that are not.
    pub dead_bytes: u64,
    /// What is to become of it.
    pub action: Action,
    #[serde(skip)]
    info: PackInfo,
}

/// What a collection would do.
#[derive(Debug, serde::Serialize)]
pub struct GcPlan {
    /// Every pack, in order of its number.
    pub packs: Vec<PackPlan>,
    /// Bytes of files that would be deleted.
    pub freed_bytes: u64,
    /// Bytes that would be written again.
    pub rewritten_bytes: u64,
    /// Data chunks that are needed.
    pub data_chunks: usize,
    /// Tree objects that are needed.
    pub tree_objects: usize,
    #[serde(skip)]
    marks: Marks,
    #[serde(skip)]
    head: Option<(u64, SnapshotId)>,
    #[serde(skip)]
    host: String,
}

impl GcPlan {
    /// Returns whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.packs.iter().all(|p| p.action == Action::Keep)
    }
}

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GcReport {
    /// Packs deleted.
    pub deleted_packs: u64,
    /// Of these, packs of which something was copied first.
    pub rewritten_packs: u64,
    /// Bytes of files deleted.
    pub freed_bytes: u64,
    /// Stored bytes copied into new packs.
    pub copied_bytes: u64,
    /// The disk was too full to copy; these packs were kept.
    pub kept_for_space: u64,
    /// Sequence of the removal that retires the packs, if one was needed.
    pub removal: Option<u64>,
}

fn load_whole_chain(engine: &Engine) -> Result<Chain> {
    let chain = Chain::of(engine)?;
    if let Some(problem) = chain.problems().iter().find(|p| p.breaks_chain) {
        let text =
            format!("{}: {}; nothing is deleted while the chain is broken", problem.file, problem.what);
        return Err(StoreError::Corrupt(text));
    }
    Ok(chain)
}

/// Marks everything and decides about every pack. Changes nothing.
///
/// # Errors
/// `Corrupt` when a snapshot is incomplete or a needed chunk is nowhere: what is needed can't be known then,
/// and deleting might make a repairable vault unrepairable.
pub fn plan(engine: &Engine, tree: &dyn WorkingTree, opts: &GcOpts) -> Result<GcPlan> {
    let chain = load_whole_chain(engine)?;
    tree.flush()?;
    // Before the view: a pack that is closed later is not in the plan, and stays.
    let infos = engine.packs.closed_packs()?;
    let view = engine.with_reserve(|| engine.live.view())?;
    let mut marks = Marks::default();
    let reader = TreeReader::new(engine.packs.as_ref());
    let present = present_packs(engine.ctx.disk.as_ref())?;
    for info in chain.snapshots() {
        if !chain.is_complete(info.seq, &present) {
            let text = format!(
                "snapshot {} is not complete; nothing is deleted before it is or is deleted",
                info.seq
            );
            return Err(StoreError::Corrupt(text));
        }
        let sealed = open_sealed(engine.ctx.disk.as_ref(), &engine.ctx.keys, info)?;
        if let Some(root) = sealed.root
            && let crate::format::Content::Dir(dir) = root.entry.content
        {
            marks.tree(&reader, &dir)?;
        }
    }
    marks.working_tree(&reader, &view)?;
    drop(view);
    let packs = decide(engine, infos, &marks, opts)?;
    let (data_chunks, tree_objects) = marks.len();
    let sum = |of: &dyn Fn(&PackPlan) -> u64| packs.iter().filter(|p| p.action != Action::Keep).map(of).sum();
    Ok(GcPlan {
        freed_bytes: sum(&|p| p.file_bytes),
        rewritten_bytes: sum(&|p| p.live_bytes),
        packs,
        data_chunks,
        tree_objects,
        marks,
        head: chain.head().map(|head| (head.seq, head.id)),
        host: opts.host.clone(),
    })
}

fn decide(engine: &Engine, infos: Vec<PackInfo>, marks: &Marks, opts: &GcOpts) -> Result<Vec<PackPlan>> {
    let by_no: HashMap<u32, usize> = infos.iter().enumerate().map(|(at, info)| (info.no, at)).collect();
    let mut packs: Vec<PackPlan> = infos.into_iter().map(PackPlan::new).collect();
    let mut missing = [marks.all(PackKind::Data), marks.all(PackKind::Tree)];
    engine.packs.for_each_chunk(&mut |id, no, stored_bytes| {
        for set in &mut missing {
            set.remove(id);
        }
        if let Some(pack) = by_no.get(&no).map(|at| &mut packs[*at]) {
            if marks.needs(pack.info.kind, id) {
                pack.live_bytes += stored_bytes;
            } else {
                pack.dead_bytes += stored_bytes;
            }
        }
        Ok(())
    })?;
    refuse_missing(&missing)?;
    for pack in &mut packs {
        // What the index does not point to is dead as well; only the footer tells how much that is. Overhead
        // and padding are not: a file that is not much longer than its chunks need can be judged without it.
        let known = pack.live_bytes + pack.dead_bytes;
        if pack.live_bytes > 0 && pack.file_bytes > known + known / 8 + (64 << 10) {
            let stored: u64 = engine.packs.chunks_of(&pack.info)?.iter().map(|c| c.stored_len()).sum();
            pack.dead_bytes = stored.saturating_sub(pack.live_bytes);
        }
        let all = u128::from(pack.live_bytes + pack.dead_bytes);
        let sparse = u128::from(pack.dead_bytes) * 100 >= all * u128::from(opts.dead_percent_min.max(1));
        pack.action = if pack.info.state == PackState::Condemned || pack.live_bytes > 0 && sparse {
            Action::Rewrite
        } else if pack.live_bytes == 0 {
            Action::Delete
        } else {
            Action::Keep
        };
        if pack.live_bytes == 0 {
            pack.action = Action::Delete;
        }
    }
    merge_small(&mut packs, opts);
    Ok(packs)
}

/// A vault with frequent snapshots collects many small packs; each costs a file, a key and a footer.
fn merge_small(packs: &mut [PackPlan], opts: &GcOpts) {
    for kind in ["data", "tree"] {
        let is_small =
            |p: &&mut PackPlan| p.kind == kind && p.action == Action::Keep && p.file_bytes < opts.small_bytes;
        if packs.iter_mut().filter(is_small).count() >= SMALL_PACKS_MIN {
            packs.iter_mut().filter(is_small).for_each(|p| p.action = Action::Rewrite);
        }
    }
}

fn refuse_missing(missing: &[ShortIds; 2]) -> Result<()> {
    let n = missing[0].len() + missing[1].len();
    if n == 0 {
        return Ok(());
    }
    Err(StoreError::Corrupt(format!(
        "{n} needed chunks are in no pack; nothing is deleted while some are missing"
    )))
}

impl PackPlan {
    fn new(info: PackInfo) -> PackPlan {
        PackPlan {
            pack: info.name.to_hex(),
            kind: match info.kind {
                PackKind::Data => "data",
                PackKind::Tree => "tree",
            },
            file_bytes: info.file_len,
            live_bytes: 0,
            dead_bytes: 0,
            action: Action::Keep,
            info,
        }
    }
}

/// Carries out a plan. See the module's text for the order and for what a crash leaves.
///
/// # Errors
/// `Corrupt` when the chain has changed since the plan was made, or a proof fails. What had been condemned
/// comes back.
pub fn execute(engine: &Engine, tree: &dyn WorkingTree, plan: GcPlan) -> Result<GcReport> {
    let _gate = while_collecting(engine)?;
    engine.check_poison()?;
    let chain = load_whole_chain(engine)?;
    if chain.head().map(|head| (head.seq, head.id)) != plan.head {
        return Err(StoreError::Corrupt(
            "the plan is out of date: snapshots were made or deleted since".into(),
        ));
    }
    let mut going: Vec<PackPlan> = plan.packs.into_iter().filter(|p| p.action != Action::Keep).collect();
    if going.is_empty() {
        return Ok(GcReport::default());
    }
    let mut work = Collection { engine, marks: plan.marks, report: GcReport::default() };
    let done = work.condemn_and_copy(tree, &mut going).and_then(|()| work.retire(&chain, &going, &plan.host));
    if let Err(error) = done {
        // Best effort: a poisoned vault can't be changed, and the next open takes the condemnation back.
        // Read again: its removal may have been written before it failed.
        if let Err(undo) = Chain::of(engine).and_then(|chain| undo(engine, &chain)) {
            tracing::warn!(%undo, "a failed collection is undone when the vault is opened next");
        }
        return Err(error);
    }
    Ok(work.report)
}

/// Plans and collects in one go. On a full disk packs that could not be copied are tried again with the room that the
/// others gave back, as long as that brings anything.
pub fn run(engine: &Engine, tree: &dyn WorkingTree, opts: &GcOpts) -> Result<GcReport> {
    let mut sum = GcReport::default();
    for _ in 0..ROUNDS_MAX {
        let round = execute(engine, tree, plan(engine, tree, opts)?)?;
        sum.deleted_packs += round.deleted_packs;
        sum.rewritten_packs += round.rewritten_packs;
        sum.freed_bytes += round.freed_bytes;
        sum.copied_bytes += round.copied_bytes;
        sum.kept_for_space = round.kept_for_space;
        sum.removal = round.removal.or(sum.removal);
        if round.kept_for_space == 0 || round.freed_bytes <= round.copied_bytes {
            break;
        }
    }
    Ok(sum)
}

struct Collection<'a> {
    engine: &'a Engine,
    marks: Marks,
    report: GcReport,
}

impl Collection<'_> {
    /// Steps 1 to 3. What can't be copied for lack of space, or not be read, is taken out of `going`.
    fn condemn_and_copy(&mut self, tree: &dyn WorkingTree, going: &mut Vec<PackPlan>) -> Result<()> {
        let packs = &self.engine.packs;
        for pack in going.iter() {
            packs.condemn(&pack.info.name)?;
        }
        self.engine.with_reserve(|| self.engine.live.commit())?;
        tree.flush()?;
        let view = self.engine.with_reserve(|| self.engine.live.view())?;
        self.marks.working_tree(&TreeReader::new(packs.as_ref()), &view)?;
        drop(view);
        let mut kept = Vec::new();
        let mut full = false;
        // Those of which the least has to be copied come first: they bring the most space.
        going.sort_by_key(|p| p.live_bytes);
        going.retain(|pack| {
            let copied = if full { Err(StoreError::NoSpace) } else { self.copy(pack) };
            match copied {
                Ok(bytes) => {
                    self.report.copied_bytes += bytes;
                    self.report.rewritten_packs += u64::from(bytes > 0);
                    true
                }
                Err(error) => {
                    full |= matches!(error, StoreError::NoSpace);
                    kept.push((pack.info.name, error));
                    false
                }
            }
        });
        let mut failure = None;
        for (name, error) in kept {
            match error {
                StoreError::NoSpace => self.report.kept_for_space += 1,
                StoreError::Corrupt(what) => tracing::warn!(pack = %name, what, "a damaged pack is kept"),
                other => failure = Some(other),
            }
            packs.uncondemn(&name)?;
            mark_undone(self.engine)?;
        }
        if let Some(error) = failure {
            return Err(error);
        }
        self.engine.with_reserve(|| packs.close_open())?;
        self.engine.with_reserve(|| self.engine.live.commit())
    }

    /// Copies what is needed of one pack.
    fn copy(&self, pack: &PackPlan) -> Result<u64> {
        // The index is asked again: the working tree may have come to need something since the plan.
        let chunks = self.engine.packs.chunks_of(&pack.info)?;
        let needed = chunks.iter().filter(|c| self.marks.needs(pack.info.kind, &c.id));
        let bytes: u64 = needed.map(|c| c.stored_len()).sum();
        if bytes == 0 {
            return Ok(0);
        }
        self.engine.admit(bytes)?;
        let copied = self.engine.packs.rewrite(&pack.info, &|id| self.marks.needs(pack.info.kind, id));
        self.engine.settle(bytes);
        copied
    }

    /// Steps 4 to 6.
    fn retire(&mut self, chain: &Chain, going: &[PackPlan], host: &str) -> Result<()> {
        if going.is_empty() {
            return Ok(());
        }
        let engine = self.engine;
        let retired: BTreeSet<PackName> = going.iter().map(|p| p.info.name).collect();
        let replacements = self.prove_closed(going)?;
        let listed = chain.all_needed()?;
        if retired.iter().any(|name| listed.contains(name)) {
            let published = publish(engine, None, |chain| {
                let mut packs = super::create::packs_to_list(engine, chain)?;
                packs.retain(|name| !retired.contains(name));
                Ok(Some(Draft {
                    origin: Origin::Removal,
                    packs,
                    removed: Vec::new(),
                    retired: retired.iter().copied().collect(),
                    replacements: replacements.into_iter().collect(),
                    host: host.to_string(),
                    tags: Vec::new(),
                    root: None,
                }))
            })?;
            self.report.removal = published.map(|published| published.seq);
            clear_undone(engine)?;
        }
        // From here on nothing is undone: what fails is finished when the vault is opened next.
        let names: Vec<PackName> = retired.into_iter().collect();
        engine.packs.forget_all(&names)?;
        self.report.deleted_packs = going.len() as u64;
        self.report.freed_bytes = going.iter().map(|p| p.file_bytes).sum();
        engine.take_reserve();
        Ok(())
    }

    /// [`Collection::prove`], closing packs again when a writer has just stored a chunk anew that is to go.
    fn prove_closed(&self, going: &[PackPlan]) -> Result<BTreeSet<PackName>> {
        for _ in 0..PROOFS_MAX {
            if let Some(replacements) = self.prove(going)? {
                return Ok(replacements);
            }
            self.engine.with_reserve(|| self.engine.packs.close_open())?;
            self.engine.with_reserve(|| self.engine.live.commit())?;
        }
        Err(StoreError::Corrupt(
            "chunks of packs to be deleted stay in open packs; nothing was deleted".into(),
        ))
    }

    /// Proves that every needed chunk stands in a pack that stays. Returns the packs that hold what was
    /// needed of those that go, or `None` when some of it stands in a pack that is not closed yet.
    fn prove(&self, going: &[PackPlan]) -> Result<Option<BTreeSet<PackName>>> {
        let engine = self.engine;
        let mut moved = ShortIds::default();
        let condemned: BTreeSet<u32> = going.iter().map(|p| p.info.no).collect();
        for pack in going {
            for chunk in engine.packs.chunks_of(&pack.info)? {
                if self.marks.needs(pack.info.kind, &chunk.id) {
                    moved.insert(&chunk.id);
                }
            }
        }
        let staying: BTreeMap<u32, PackInfo> = engine
            .packs
            .closed_packs()?
            .into_iter()
            .filter(|info| info.state == PackState::Closed)
            .map(|info| (info.no, info))
            .collect();
        let mut missing = [self.marks.all(PackKind::Data), self.marks.all(PackKind::Tree)];
        let mut all_closed = true;
        let mut replacements = BTreeSet::new();
        engine.packs.for_each_chunk(&mut |id, no, _| {
            match staying.get(&no) {
                Some(info) => {
                    if self.marks.needs(info.kind, id) {
                        missing[usize::from(info.kind == PackKind::Tree)].remove(id);
                    }
                    if moved.contains(id) {
                        replacements.insert(info.name);
                    }
                }
                // Still in a pack that is to go: stays missing, if it is needed.
                None if condemned.contains(&no) => {}
                // In an open pack. What only the working tree needs may stand there, what a snapshot may need
                // of a pack that goes must stand in one that a chain file can name.
                None => {
                    all_closed &= !moved.contains(id);
                    missing.iter_mut().for_each(|set| set.remove(id));
                }
            }
            Ok(())
        })?;
        refuse_missing(&missing)?;
        // What is deleted here must really be there. Of an adopted pack only its footer may have been read so far.
        for info in staying.values().filter(|info| !info.proven && replacements.contains(&info.name)) {
            engine.packs.prove(&info.name)?;
        }
        Ok(all_closed.then_some(replacements))
    }
}

fn mark_undone(engine: &Engine) -> Result<()> {
    let mut batch = Batch::new();
    batch.put(Table::Settings, UNDONE, [1]);
    engine.live.apply(batch)
}

/// Every closed pack is named by the chain now, so [`auto`] is safe again.
pub(crate) fn clear_undone(engine: &Engine) -> Result<()> {
    let mut batch = Batch::new();
    batch.delete(Table::Settings, UNDONE);
    engine.live.apply(batch)
}

/// Takes condemnations back that no removal in the chain as it is now has made final. Returns their number.
fn undo(engine: &Engine, chain: &Chain) -> Result<u64> {
    let retired = chain.retired();
    let mut undone = 0;
    for pack in engine.packs.closed_packs()? {
        if pack.state == PackState::Condemned && !retired.contains(&pack.name) {
            engine.packs.uncondemn(&pack.name)?;
            undone += 1;
        }
    }
    if undone > 0 {
        mark_undone(engine)?;
        engine.with_reserve(|| engine.live.commit())?;
    }
    Ok(undone)
}

/// What [`recover`] found to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Condemned packs that came back.
    pub undone: u64,
    /// Retired packs that were deleted.
    pub finished: u64,
    /// Chain files that a removal removed and that were deleted.
    pub chain_files: u64,
}

/// Finishes or undoes what a crash interrupted: collections and deletions. To be called when a vault is
/// opened for writing, before anything is written, with the chain as it was read under the vault's lock.
pub fn recover(engine: &Engine, chain: &Chain) -> Result<Recovered> {
    let _gate = while_collecting(engine)?;
    let mut recovered = Recovered { undone: undo(engine, chain)?, ..Recovered::default() };
    let retired = chain.retired();
    let finish: Vec<PackName> = engine
        .packs
        .closed_packs()?
        .into_iter()
        .filter(|pack| pack.state == PackState::Condemned && retired.contains(&pack.name))
        .map(|pack| pack.name)
        .collect();
    engine.packs.forget_all(&finish)?;
    // Files whose rows are gone already, or that a copy brought back.
    let mut strays: Vec<PackName> = Vec::new();
    if !retired.is_empty() && chain.is_whole() {
        let needed = chain.all_needed()?;
        let strays_found = engine.packs.strays()?;
        strays
            .extend(strays_found.into_iter().filter(|name| retired.contains(name) && !needed.contains(name)));
    }
    for name in &strays {
        let path = pack_path(name);
        match engine.ctx.disk.remove(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::io(format!("removing {path}"), e)),
        }
    }
    recovered.finished = (finish.len() + strays.len()) as u64;
    recovered.chain_files = delete_leftovers(engine, chain)? as u64;
    Ok(recovered)
}

/// Deletes packs that were written since the last snapshot and of which nothing is left: their data was
/// deleted again. Cheap enough for every unmount: it reads no tree, and stops as soon as every such pack is
/// seen to be in use.
///
/// No chain file names these packs, so no removal is needed. A crash leaves them condemned, and [`recover`]
/// takes that back.
pub fn auto(engine: &Engine, tree: &dyn WorkingTree) -> Result<GcReport> {
    let _gate = while_collecting(engine)?;
    engine.check_poison()?;
    let mut report = GcReport::default();
    let live = &engine.live;
    // While parts of the tree are not loaded, or a collection was undone, a chunk that a listed pack has may
    // be found in one that is not.
    if live.get(Table::Settings, settings::LAZY)?.is_some() || live.get(Table::Settings, UNDONE)?.is_some() {
        return Ok(report);
    }
    let chain = load_whole_chain(engine)?;
    let listed = chain.all_needed()?;
    let is_new =
        |p: &PackInfo| p.kind == PackKind::Data && p.state == PackState::Closed && !listed.contains(&p.name);
    let new: Vec<PackInfo> = engine.packs.closed_packs()?.into_iter().filter(is_new).collect();
    if new.is_empty() || new.len() > AUTO_PACKS_MAX {
        return Ok(report);
    }
    for pack in &new {
        engine.packs.condemn(&pack.name)?;
    }
    let dead = tree.flush().and_then(|()| unused(engine, &new));
    let dead = match dead {
        Ok(dead) => dead,
        Err(error) => {
            undo(engine, &chain)?;
            return Err(error);
        }
    };
    for pack in new.iter().filter(|pack| !dead.contains(&pack.name)) {
        engine.packs.uncondemn(&pack.name)?;
    }
    report.deleted_packs = dead.len() as u64;
    report.freed_bytes = new.iter().filter(|p| dead.contains(&p.name)).map(|p| p.file_len).sum();
    engine.packs.forget_all(&dead)?;
    Ok(report)
}

/// Returns those of `packs` whose chunks no row of the working tree needs.
fn unused(engine: &Engine, packs: &[PackInfo]) -> Result<Vec<PackName>> {
    let mut holder: HashMap<u64, Vec<usize>> = HashMap::new();
    for (at, pack) in packs.iter().enumerate() {
        for chunk in engine.packs.chunks_of(pack)? {
            holder.entry(short(&chunk.id)).or_default().push(at);
        }
    }
    let view = engine.with_reserve(|| engine.live.view())?;
    let mut used = vec![false; packs.len()];
    let mut left = packs.len();
    let mut look = |value: &[u8]| -> Result<bool> {
        if let ExtentRow::Chunk { chunk, .. } = ExtentRow::decode(value)? {
            for at in holder.get(&short(&chunk)).into_iter().flatten() {
                if !std::mem::replace(&mut used[*at], true) {
                    left -= 1;
                }
            }
        }
        Ok(left > 0)
    };
    // New data is mostly in new files, and those have the highest numbers.
    let chain = Chain::of(engine)?;
    let base = chain.snapshots().rev().find(|info| info.origin == Origin::WorkingTree);
    let first_new = match base {
        Some(info) => {
            open_sealed(engine.ctx.disk.as_ref(), &engine.ctx.keys, info)?.root.map_or(0, |r| r.next_ino)
        }
        None => 0,
    };
    let middle = extent_key(first_new, 0);
    let mut go_on = true;
    let mut each = |_: &[u8], value: &[u8]| {
        go_on = look(value)?;
        Ok(go_on)
    };
    scan(&view, Table::Extents, &middle, None, &mut each)?;
    if go_on && first_new > 0 {
        scan(&view, Table::Extents, &[], Some(&middle), &mut |_, value| look(value))?;
    }
    Ok(packs.iter().zip(used).filter(|(_, used)| !used).map(|(pack, _)| pack.name).collect())
}
