//! Storing chunks: from plaintext to a row in the index; and closing packs.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::super::codec;
use super::super::codec::Effort;
use super::super::error::{Result, StoreError};
use super::super::live::{Batch, Table};
use super::open::{OPEN_DIR, OpenPack, Seat, is_roomy};
use super::rows::{ChunkRow, NEXT_PACK_NO, PackRow, PackState, pack_key};
use super::{Core, FIRST_DATA_SLOT, ROWS_PER_BATCH, TREE_SLOT, lock, writable};
use crate::disk::{is_full, parent};
use crate::format::pack::pack_path;
use crate::format::{
    BLOCK_LEN, BlockDesc, CHUNK_MAX, ChunkDesc, ChunkId, FRAME_TAG_LEN, FormatError, PackKind, PackName,
    block_count,
};

/// A chunk that takes fewer bytes waits for another one's turn in the same pack rather than have one more pack opened:
/// few packs mean few files to sync in a commit.
const OWN_PACK_MIN: u64 = 256 << 10;

thread_local! {
    /// Sealed bytes on their way to a pack.
    static SEALED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Removes a chunk from the set of those that are being stored.
pub(super) struct InFlight<'a> {
    core: &'a Core,
    id: ChunkId,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        lock(&self.core.in_flight).remove(&self.id);
        self.core.landed.notify_all();
    }
}

/// A frame's body on its way into a pack: how it is coded, how long its plaintext is.
pub(super) struct Body {
    pub(super) codec: crate::format::Codec,
    pub(super) plain_len: u32,
}

impl Core {
    pub(super) fn put(&self, kind: PackKind, plaintext: &[u8], effort: Effort) -> Result<ChunkId> {
        if plaintext.is_empty() || plaintext.len() > CHUNK_MAX {
            return Err(StoreError::Format(FormatError::Limit("a chunk has 1 byte to 8 MiB")));
        }
        writable(&self.ctx)?;
        let id = self.ctx.keys.chunk_id(kind, plaintext);
        let _in_flight = self.enter(id);
        let counters = &self.counters;
        // Found in a pack that is not what it should be, it is stored anew, and its row points there.
        if self.find_usable(&id)?.is_some_and(|row| self.is_believed(row.pack)) {
            counters.dedup_hits.fetch_add(1, Ordering::Relaxed);
            counters.dedup_bytes.fetch_add(plaintext.len() as u64, Ordering::Relaxed);
            return Ok(id);
        }
        let level = self.ctx.cfg.zstd_level;
        let mut blocks = plaintext.chunks(BLOCK_LEN);
        let stored = self.store(kind, &id, plaintext.len() as u32, &mut |_, out| {
            let block = blocks.next().unwrap_or_default();
            Body { codec: codec::encode(block, effort, level, out), plain_len: block.len() as u32 }
        })?;
        counters.chunks.fetch_add(1, Ordering::Relaxed);
        counters.plain_bytes.fetch_add(plaintext.len() as u64, Ordering::Relaxed);
        counters.stored_bytes.fetch_add(stored, Ordering::Relaxed);
        Ok(id)
    }

    /// Waits until nobody else stores the same chunk, and then keeps others from doing so.
    pub(super) fn enter(&self, id: ChunkId) -> InFlight<'_> {
        let mut set = lock(&self.in_flight);
        while !set.insert(id) {
            set = self.landed.wait(set).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        InFlight { core: self, id }
    }

    /// Seals a chunk block by block into the open pack and publishes its row. `next_body` appends the body of
    /// the given block to the buffer. Returns the stored bytes.
    pub(super) fn store(
        &self,
        kind: PackKind,
        id: &ChunkId,
        plain_len: u32,
        next_body: &mut dyn FnMut(u32, &mut Vec<u8>) -> Body,
    ) -> Result<u64> {
        let count = block_count(plain_len);
        let seat = self.seat(kind, count, u64::from(plain_len) + u64::from(count) * FRAME_TAG_LEN as u64)?;
        let mut sealed = SEALED.take();
        sealed.clear();
        let result = self.store_at(&seat, id, plain_len, next_body, &mut sealed);
        let stored = sealed.len() as u64;
        SEALED.set(sealed);
        let pack = Arc::clone(&seat.pack);
        drop(seat);
        if pack.due(&self.ctx) {
            self.close_later(pack);
        }
        result?;
        Ok(stored)
    }

    fn store_at(
        &self,
        seat: &Seat,
        id: &ChunkId,
        plain_len: u32,
        next_body: &mut dyn FnMut(u32, &mut Vec<u8>) -> Body,
        sealed: &mut Vec<u8>,
    ) -> Result<()> {
        let count = block_count(plain_len);
        let key = &seat.pack.pack.key;
        let mut blocks = Vec::with_capacity(count as usize);
        for b in 0..count {
            let start = sealed.len();
            let body = next_body(b, sealed);
            blocks.push(BlockDesc { codec: body.codec, body_len: (sealed.len() - start) as u32 });
            let frame = u64::from(seat.first_frame) + u64::from(b);
            key.seal_frame(frame, id, b, b + 1 == count, body.codec, body.plain_len, sealed, start)?;
        }
        let desc = ChunkDesc { id: *id, offset: 0, first_frame: seat.first_frame, plain_len, blocks };
        if let Some((from, len)) = seat.pack.append(&self.ctx, desc, sealed)? {
            self.hints.give(&seat.pack.pack.file, from, len);
        }
        self.publish(&seat.pack)
    }

    /// Takes frame numbers in the open pack of a kind, opening a new pack when there is none or it is full.
    fn seat(&self, kind: PackKind, blocks: u32, bytes_max: u64) -> Result<Seat> {
        self.backlog.wait_for_room();
        let pack_bytes = self.ctx.cfg.pack_bytes.min(super::super::config::PACK_BYTES_MAX);
        let mut full = None;
        let seat = {
            let mut slot = self.slot(kind, bytes_max);
            let seat = slot.as_ref().and_then(|p| p.take_seat(&self.ctx, blocks, bytes_max, pack_bytes));
            match seat {
                Some(seat) => Ok(seat),
                None => {
                    full = slot.take();
                    self.open_new(kind).and_then(|pack| {
                        *slot = Some(Arc::clone(&pack));
                        let seat = pack.take_seat(&self.ctx, blocks, bytes_max, u64::MAX);
                        seat.ok_or(StoreError::Format(FormatError::Limit("a chunk with 2^32 frames")))
                    })
                }
            }
        };
        if let Some(full) = full.filter(|p| p.due(&self.ctx)) {
            self.close_later(full);
        }
        seat
    }

    /// Chooses the open pack for a chunk of at most `bytes_max` stored bytes: the first that nobody writes to, if that is
    /// worth another pack.
    fn slot(&self, kind: PackKind, bytes_max: u64) -> MutexGuard<'_, Option<Arc<OpenPack>>> {
        if kind == PackKind::Tree {
            return lock(&self.slots[TREE_SLOT]);
        }
        let first = &self.slots[FIRST_DATA_SLOT];
        if bytes_max < OWN_PACK_MIN || self.slots.len() == FIRST_DATA_SLOT + 1 {
            return lock(first);
        }
        for slot in &self.slots[FIRST_DATA_SLOT..] {
            // Writers come only under the slot's lock.
            let guard = lock(slot);
            if guard.as_ref().is_none_or(|pack| !pack.is_written_to()) {
                return guard;
            }
            drop(guard);
            // What the disk has promised to the first pack counts as room for data: then data has to go there.
            if std::ptr::eq(slot, first) && !is_roomy(&self.ctx) {
                break;
            }
        }
        lock(first)
    }

    fn open_new(&self, kind: PackKind) -> Result<Arc<OpenPack>> {
        writable(&self.ctx)?;
        let no = self.next_pack_no.load(Ordering::Relaxed);
        let next = no.checked_add(1).ok_or(StoreError::Format(FormatError::Limit("2^32 packs")))?;
        // Two threads may open one pack each, of the two kinds.
        if self.next_pack_no.compare_exchange(no, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return self.open_new(kind);
        }
        let pack = OpenPack::create(&self.ctx, no, kind)?;
        self.files.set_row(no, open_row(&pack));
        self.files.pin(no, Arc::clone(&pack.pack));
        lock(&self.unclosed).push(Arc::clone(&pack));
        Ok(pack)
    }

    /// Applies the rows of a pack's chunks that have none yet, in the order of the file. When this returns
    /// without an error, every chunk appended before the call has its row.
    pub(super) fn publish(&self, pack: &OpenPack) -> Result<()> {
        let _index = lock(&self.index);
        loop {
            let mut batch = Batch::new();
            let published = {
                let state = pack.lock(&self.ctx);
                let waiting = &state.chunks[state.published..];
                if waiting.is_empty() {
                    return Ok(());
                }
                if !state.announced {
                    batch.put(Table::Packs, pack_key(pack.no), open_row(pack).encode());
                    let next = self.next_pack_no.load(Ordering::Relaxed);
                    batch.put(Table::Settings, NEXT_PACK_NO, next.to_le_bytes());
                }
                let waiting = &waiting[..waiting.len().min(ROWS_PER_BATCH)];
                for desc in waiting {
                    batch.put(Table::Chunks, *desc.id.as_bytes(), ChunkRow::encode(pack.no, desc));
                }
                state.published + waiting.len()
            };
            self.live.apply(batch)?;
            let mut state = pack.lock(&self.ctx);
            state.published = published;
            state.announced = true;
        }
    }

    pub(super) fn before_commit(&self) -> Result<()> {
        let packs = lock(&self.unclosed).clone();
        for pack in &packs {
            pack.sync(&self.ctx)?;
        }
        // Also waits for a pack that is on its way to its name, so that it is durable under one of the two.
        let _names = lock(&self.names);
        let unnamed = |pack: &&Arc<OpenPack>| !pack.lock(&self.ctx).name_synced;
        let unnamed: Vec<_> = packs.iter().filter(unnamed).collect();
        if !unnamed.is_empty() {
            self.sync_dir(OPEN_DIR)?;
            unnamed.iter().for_each(|pack| pack.lock(&self.ctx).name_synced = true);
        }
        Ok(())
    }

    /// Has a retired pack closed: by the thread that does that, or here if there is none.
    pub(super) fn close_later(&self, pack: Arc<OpenPack>) {
        if let Err(pack) = self.backlog.push(pack) {
            self.close_or_poison(&pack);
        }
    }

    /// Closes a pack whose chunks are safe whether that works or not. A full disk leaves it for the next
    /// [`Core::close_open`]; after any other failure nothing may be written any more.
    pub(super) fn close_or_poison(&self, pack: &OpenPack) {
        match self.close(pack) {
            Ok(()) | Err(StoreError::NoSpace | StoreError::Poisoned(_)) => {}
            Err(e) => self.ctx.poison.set(&format!("close {}: {e}", pack.path)),
        }
    }

    pub(super) fn close_open(&self) -> Result<()> {
        for slot in &self.slots {
            if let Some(pack) = lock(slot).take() {
                pack.retire(&self.ctx);
            }
        }
        let mut first_error = None;
        let unclosed = lock(&self.unclosed).clone();
        for pack in unclosed {
            // Another thread may have opened it a moment ago: that one is not ours to close.
            if pack.retired(&self.ctx) {
                pack.wait_idle(&self.ctx);
                if let Err(e) = self.close(&pack) {
                    first_error.get_or_insert(e);
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Finishes a pack that nobody writes to any more, unless that has been done.
    fn close(&self, pack: &OpenPack) -> Result<()> {
        let _closing = lock(&pack.closing);
        if !lock(&self.unclosed).iter().any(|p| p.no == pack.no) {
            return Ok(());
        }
        writable(&self.ctx)?;
        self.publish(pack)?;
        if pack.lock(&self.ctx).chunks.is_empty() {
            return self.discard(pack);
        }
        let (name, file_len) = pack.seal(&self.ctx)?;
        // All of it is on the disk: the memory is worth more to others.
        self.hints.give(&pack.pack.file, 0, file_len);
        self.place(&pack.path, &name, &|| pack.lock(&self.ctx).name_synced = true)?;
        let row = PackRow { state: PackState::Closed, name, file_len, ..open_row(pack) };
        self.set_pack_row(pack.no, row)?;
        lock(&self.unclosed).retain(|p| p.no != pack.no);
        self.files.unpin(pack.no);
        self.counters.packs_closed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Removes a pack that never got a chunk.
    fn discard(&self, pack: &OpenPack) -> Result<()> {
        self.remove_file(&pack.path)?;
        lock(&self.unclosed).retain(|p| p.no != pack.no);
        self.files.drop_pack(pack.no);
        Ok(())
    }

    /// Moves a finished, durable file under its name and makes that durable. `named` is called once it is.
    pub(super) fn place(&self, from: &str, name: &PackName, named: &dyn Fn()) -> Result<()> {
        let to = pack_path(name);
        let io = |e: std::io::Error| self.write_failed(&format!("move {from} to {to}"), e);
        let disk = &self.ctx.disk;
        disk.create_dir_all(parent(&to)).map_err(io)?;
        let _names = lock(&self.names);
        writable(&self.ctx)?;
        disk.rename(from, &to).map_err(io)?;
        // The new name first: there is no moment without a durable name.
        self.sync_dir(parent(&to))?;
        self.sync_dir(OPEN_DIR)?;
        named();
        Ok(())
    }

    /// Changes a pack's row in the live database and in memory.
    pub(super) fn set_pack_row(&self, no: u32, row: PackRow) -> Result<()> {
        let _index = lock(&self.index);
        self.apply_pack_row(no, row)
    }

    /// [`Core::set_pack_row`] for callers that hold the index lock.
    pub(super) fn apply_pack_row(&self, no: u32, row: PackRow) -> Result<()> {
        let mut batch = Batch::new();
        batch.put(Table::Packs, pack_key(no), row.encode());
        self.live.apply(batch)?;
        self.files.set_row(no, row);
        Ok(())
    }

    pub(super) fn remove_file(&self, path: &str) -> Result<()> {
        match self.ctx.disk.remove(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(self.write_failed(&format!("remove {path}"), e))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn sync_dir(&self, dir: &str) -> Result<()> {
        writable(&self.ctx)?;
        self.ctx.disk.sync_dir(dir).map_err(|e| {
            let what = format!("sync {dir}: {e}");
            self.ctx.poison.set(&what);
            StoreError::Poisoned(what)
        })
    }

    /// Turns a failed change of names into our error: a full disk changed nothing, anything else poisons.
    fn write_failed(&self, what: &str, e: std::io::Error) -> StoreError {
        if !is_full(&e) {
            self.ctx.poison.set(&format!("{what}: {e}"));
        }
        StoreError::io(what, e)
    }
}

/// The row of a pack that is open.
fn open_row(pack: &OpenPack) -> PackRow {
    PackRow {
        uid: pack.uid,
        kind: pack.kind,
        state: PackState::Open,
        proven: true,
        header_hash: pack.header_hash,
        name: PackName([0; 32]),
        file_len: 0,
    }
}
