//! A pack that is being written, in `live/open/`.
//!
//! Life of a pack: created with its header; chunks are appended, each with frame numbers that were reserved
//! for it; once full it is *retired*: nobody new may add to it, and when the last writer has left it is
//! closed (footer, padding, trailer, sync), moved under its name, and its row says Closed.
//!
//! A chunk is appended under the pack's lock, so the file never has a gap, and its row is published after
//! that, in the order of the file. So what any commit captures is a prefix of the pack's chunks, which is
//! what recovery needs to give a cut pack a footer without gaps (PACK-2).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::super::ctx::Ctx;
use super::super::error::{Result, StoreError};
use super::file::PackFile;
use crate::disk::{OpenMode, is_full};
use crate::format::pack::FOOTER_SEAL_LEN;
use crate::format::{
    ChunkDesc, Footer, FormatError, PACK_HEADER_LEN, PackKind, PackName, PackUid, TRAILER_LEN, Trailer,
    padded_len,
};

/// Where open packs stand.
pub(super) const OPEN_DIR: &str = "live/open";

/// Room is reserved on the disk in steps of this many bytes.
const ALLOCATE_STEP: u64 = 16 << 20;
/// The system is asked to write what was appended each time that it is this many bytes, so that fsync finds
/// little to do.
const WRITEBACK_STEP: u64 = 4 << 20;
/// How far behind the hint reaches back: what was written until then is clean by now, and its memory can take what comes
/// next. Fresh memory costs the system several times as much.
const WRITTEN_BEHIND: u64 = 24 << 20;

/// Tells whether the disk is far from full.
pub(super) fn is_roomy(ctx: &Ctx) -> bool {
    ctx.disk.space().is_ok_and(|space| space.available > 8 * ALLOCATE_STEP)
}

/// A pack that chunks are added to.
pub(super) struct OpenPack {
    pub(super) no: u32,
    pub(super) uid: PackUid,
    pub(super) kind: PackKind,
    /// The file as readers see it.
    pub(super) pack: Arc<PackFile>,
    pub(super) header_hash: [u8; 32],
    pub(super) path: String,
    state: Mutex<State>,
    /// The last writer has left.
    idle: Condvar,
    /// Held while the pack is being closed, by whoever does it.
    pub(super) closing: Mutex<()>,
    /// What the disk has promised beyond what closing needs, in bytes: a note of the state for those who don't wait.
    promised: AtomicU64,
}

/// What changes as a pack grows.
pub(super) struct State {
    /// Length of what has been written, in bytes; the next chunk goes there.
    pub(super) end: u64,
    /// Bytes that writers who hold frame numbers may still add, at most.
    outstanding: u64,
    /// Bytes that the disk has promised to have room for.
    allocated: u64,
    /// The system has been asked to write everything before this.
    written_back: u64,
    /// Everything before this is durable.
    synced: u64,
    /// The file's name is durable.
    pub(super) name_synced: bool,
    next_frame: u32,
    hasher: blake3::Hasher,
    pub(super) chunks: Vec<ChunkDesc>,
    /// Of `chunks`, how many have their row in the live database.
    pub(super) published: usize,
    /// The pack's own row is in the live database.
    pub(super) announced: bool,
    footer_len: u64,
    writers: u32,
    /// Nobody new may add to it.
    retired: bool,
    /// Someone has been told to close it.
    scheduled: bool,
    /// Footer and trailer are written: the name, and the length of the file in bytes.
    sealed: Option<(PackName, u64)>,
}

/// Frame numbers for one chunk, and the right to append it.
pub(super) struct Seat {
    pub(super) pack: Arc<OpenPack>,
    pub(super) first_frame: u32,
    bytes_max: u64,
}

impl OpenPack {
    /// Creates the file and writes its header.
    pub(super) fn create(ctx: &Ctx, no: u32, kind: PackKind) -> Result<Arc<OpenPack>> {
        let (header, key) = ctx.keys.new_pack(&*ctx.env, kind)?;
        let bytes = header.encode();
        let path = open_path(&header.uid);
        let failed = |e: std::io::Error| {
            if is_full(&e) {
                return StoreError::NoSpace;
            }
            ctx.poison.set(&format!("create {path}: {e}"));
            StoreError::io(format!("create {path}"), e)
        };
        let file = ctx.disk.open(&path, OpenMode::CreateNew).map_err(failed)?;
        if let Err(e) = file.write_all_at(&bytes, 0) {
            let error = failed(e);
            // Nothing knows this file. If it can't be removed now, the next open of the vault does it.
            drop(ctx.disk.remove(&path));
            return Err(error);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        let pack = PackFile {
            file,
            key: Arc::new(key),
            kind,
            proven: true,
            label: path.clone(),
            read_whole: AtomicU64::new(0),
        };
        Ok(Arc::new(OpenPack {
            no,
            uid: header.uid,
            kind,
            pack: Arc::new(pack),
            header_hash: *blake3::hash(&bytes).as_bytes(),
            path,
            state: Mutex::new(State {
                end: PACK_HEADER_LEN as u64,
                outstanding: 0,
                allocated: PACK_HEADER_LEN as u64,
                written_back: 0,
                synced: 0,
                name_synced: false,
                next_frame: 0,
                hasher,
                chunks: Vec::new(),
                published: 0,
                announced: false,
                footer_len: Footer::default().encode().len() as u64,
                writers: 0,
                retired: false,
                scheduled: false,
                sealed: None,
            }),
            idle: Condvar::new(),
            closing: Mutex::new(()),
            promised: AtomicU64::new(0),
        }))
    }

    pub(super) fn lock(&self, ctx: &Ctx) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| {
            // A thread died in the middle of a change: reading may go on, writing may not.
            ctx.poison.set("a thread panicked while it wrote a pack");
            PoisonError::into_inner(e)
        })
    }

    /// Takes frame numbers for a chunk of `blocks` blocks and at most `bytes_max` stored bytes. `None` when
    /// the pack is full: it is retired then.
    pub(super) fn take_seat(
        self: &Arc<Self>,
        ctx: &Ctx,
        blocks: u32,
        bytes_max: u64,
        pack_bytes: u64,
    ) -> Option<Seat> {
        let mut state = self.lock(ctx);
        let next_frame = state.next_frame.checked_add(blocks);
        let Some(next_frame) = next_frame.filter(|_| state.end + state.outstanding < pack_bytes) else {
            state.retired = true;
            return None;
        };
        let first_frame = state.next_frame;
        state.next_frame = next_frame;
        state.outstanding += bytes_max;
        state.writers += 1;
        Some(Seat { pack: Arc::clone(self), first_frame, bytes_max })
    }

    /// Returns how many bytes are written, and how many more the disk has promised.
    pub(super) fn space(&self, ctx: &Ctx) -> (u64, u64) {
        let state = self.lock(ctx);
        (state.end, state.allocated.saturating_sub(state.end))
    }

    /// Returns how many more bytes the disk has promised than closing would need now. Takes no lock.
    pub(super) fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed)
    }

    /// Tells whether someone writes to it, without waiting for who does so at this moment.
    pub(super) fn is_written_to(&self) -> bool {
        self.state.try_lock().map_or(true, |state| state.writers > 0)
    }

    /// Lets nobody new in.
    pub(super) fn retire(&self, ctx: &Ctx) {
        self.lock(ctx).retired = true;
    }

    /// Tells whether nobody new may add to it.
    pub(super) fn retired(&self, ctx: &Ctx) -> bool {
        self.lock(ctx).retired
    }

    /// Tells whether the caller is to see to it that this pack is closed: true once, when it is retired and
    /// nobody writes to it any more.
    pub(super) fn due(&self, ctx: &Ctx) -> bool {
        let mut state = self.lock(ctx);
        let due = state.retired && state.writers == 0 && !state.scheduled;
        state.scheduled |= due;
        due
    }

    /// Waits until nobody writes to it any more.
    pub(super) fn wait_idle(&self, ctx: &Ctx) {
        let mut state = self.lock(ctx);
        while state.writers > 0 {
            state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Appends a sealed chunk; `desc.offset` is filled in. Returns the part of the file (start and length) that the system
    /// should write now and forget, once there is enough.
    ///
    /// A full disk is `NoSpace` with nothing changed. Any other failure poisons the vault.
    pub(super) fn append(&self, ctx: &Ctx, mut desc: ChunkDesc, sealed: &[u8]) -> Result<Option<(u64, u64)>> {
        let mut state = self.lock(ctx);
        super::writable(ctx)?;
        let limit = |_| StoreError::Format(FormatError::Limit("a pack has grown past 4 GiB"));
        desc.offset = u32::try_from(state.end).map_err(limit)?;
        let end = state.end + sealed.len() as u64;
        let footer_len = state.footer_len + 44 + 4 * desc.blocks.len() as u64;
        self.ensure_room(ctx, &mut state, closed_len(end, footer_len))?;
        if let Err(e) = self.pack.file.write_all_at(sealed, state.end) {
            // What of it reached the file is behind its end: the next chunk overwrites it, sealed under
            // frame numbers of its own.
            return Err(self.failed(ctx, "append to", e));
        }
        state.hasher.update(sealed);
        state.end = end;
        state.footer_len = footer_len;
        state.chunks.push(desc);
        let promised = state.allocated.saturating_sub(closed_len(end, footer_len));
        self.promised.store(promised, Ordering::Relaxed);
        if end - state.written_back < WRITEBACK_STEP {
            return Ok(None);
        }
        let from = state.written_back.saturating_sub(WRITTEN_BEHIND);
        state.written_back = end;
        Ok(Some((from, end - from)))
    }

    /// Makes the disk promise room up to `needed` bytes, which includes all that closing the pack will add:
    /// so a pack that took a chunk can also be closed on a full disk.
    fn ensure_room(&self, ctx: &Ctx, state: &mut State, needed: u64) -> Result<()> {
        if needed <= state.allocated {
            return Ok(());
        }
        // Not on a nearly full disk: what is held ahead is missing for deletes, commits and the next snapshot.
        let ahead = if is_roomy(ctx) { state.allocated + ALLOCATE_STEP } else { needed };
        let step = ahead.min(padded_len(ctx.cfg.pack_bytes));
        for wanted in [step.max(needed), needed] {
            match self.pack.file.allocate(state.allocated, wanted - state.allocated) {
                Ok(()) => {
                    state.allocated = wanted;
                    return Ok(());
                }
                Err(e) if is_full(&e) => {}
                Err(e) => return Err(self.failed(ctx, "reserve room for", e)),
            }
        }
        Err(StoreError::NoSpace)
    }

    /// Turns an I/O error of a write into ours. A full disk leaves everything as it was; anything else means
    /// that nobody knows what the file holds.
    fn failed(&self, ctx: &Ctx, verb: &str, e: std::io::Error) -> StoreError {
        if !is_full(&e) {
            ctx.poison.set(&format!("{verb} {}: {e}", self.path));
        }
        StoreError::io(format!("{verb} {}", self.path), e)
    }

    /// Makes everything that was appended so far durable. The name is the caller's business.
    pub(super) fn sync(&self, ctx: &Ctx) -> Result<()> {
        let end = {
            let state = self.lock(ctx);
            if state.synced >= state.end {
                return Ok(());
            }
            state.end
        };
        self.sync_to(ctx, end)
    }

    fn sync_to(&self, ctx: &Ctx, end: u64) -> Result<()> {
        super::writable(ctx)?;
        if let Err(e) = self.pack.file.sync_data() {
            // Also when it says that the disk is full: the pages that could not be written are lost.
            let what = format!("sync {}: {e}", self.path);
            ctx.poison.set(&what);
            return Err(StoreError::Poisoned(what));
        }
        let mut state = self.lock(ctx);
        state.synced = state.synced.max(end);
        Ok(())
    }

    /// Writes footer, padding and trailer and makes the whole file durable. Returns its name and its length
    /// in bytes. A second call changes nothing more.
    pub(super) fn seal(&self, ctx: &Ctx) -> Result<(PackName, u64)> {
        let mut state = self.lock(ctx);
        if let Some(sealed) = state.sealed {
            return Ok(sealed);
        }
        super::writable(ctx)?;
        let footer = Footer { chunks: std::mem::take(&mut state.chunks) };
        let (tail, file_len) = closing_bytes(ctx, &self.pack, &footer, state.end);
        state.chunks = footer.chunks;
        let written = self.pack.file.write_all_at(&tail, state.end);
        // Gives back what was reserved behind the end.
        let written = written.and_then(|()| self.pack.file.set_len(file_len));
        if let Err(e) = written {
            return Err(self.failed(ctx, "close", e));
        }
        state.hasher.update(&tail);
        let name = PackName(*state.hasher.finalize().as_bytes());
        // Readers find chunks by their rows, so nobody looks at this pack's end until it has its name.
        state.end = file_len;
        drop(state);
        self.sync_to(ctx, file_len)?;
        self.lock(ctx).sealed = Some((name, file_len));
        Ok((name, file_len))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.pack.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.outstanding -= self.bytes_max;
        state.writers -= 1;
        if state.writers == 0 {
            self.pack.idle.notify_all();
        }
    }
}

/// Returns the path of an open pack.
pub(super) fn open_path(uid: &PackUid) -> String {
    format!("{OPEN_DIR}/{}", uid.to_hex())
}

/// Length of a pack whose chunks end at `end` and whose footer has `footer_len` bytes of plaintext.
fn closed_len(end: u64, footer_len: u64) -> u64 {
    padded_len(end + footer_len + (FOOTER_SEAL_LEN + TRAILER_LEN) as u64)
}

/// Returns footer, padding and trailer for a pack whose chunks end at `end`, and the length of the whole
/// file.
pub(super) fn closing_bytes(ctx: &Ctx, pack: &PackFile, footer: &Footer, end: u64) -> (Vec<u8>, u64) {
    let plain = footer.encode();
    let file_len = closed_len(end, plain.len() as u64);
    let mut tail = pack.key.seal_footer(&*ctx.env, &plain);
    let trailer = Trailer {
        footer_offset: end,
        footer_len: tail.len() as u32,
        chunk_count: footer.chunks.len() as u32,
        file_len,
    };
    let padding = (file_len - end) as usize - tail.len() - TRAILER_LEN;
    tail.extend_from_slice(&pack.key.padding(padding));
    tail.extend_from_slice(&pack.key.seal_trailer(&*ctx.env, &trailer));
    (tail, file_len)
}
