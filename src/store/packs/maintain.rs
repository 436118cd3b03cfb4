//! Looking after closed packs: taking in foreign ones, condemning, rewriting and forgetting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::codec;
use super::super::error::{Result, StoreError};
use super::super::live::{Batch, Table};
use super::file::{PackFile, open_file, pack_key, read_exact, read_header};
use super::rows::{ChunkRow, NEXT_PACK_NO, PackRow, PackState, pack_key as row_key};
use super::write::Body;
use super::{Core, Packs, ROWS_PER_BATCH, lock};
use crate::disk::OpenMode;
use crate::format::pack::pack_path;
use crate::format::{
    ChunkDesc, ChunkId, FRAME_TAG_LEN, Footer, FormatError, PackKind, PackName, PackUid, Trailer,
    block_plain_len,
};
/// A closed pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackInfo {
    /// Its number in this vault's live database. Never used again for another.
    pub no: u32,
    /// Its name: the hash of its file.
    pub name: PackName,
    /// What its chunks are.
    pub kind: PackKind,
    /// What its frames are bound to.
    pub uid: PackUid,
    /// Length of its file in bytes.
    pub file_len: u64,
    /// Closed or condemned.
    pub state: PackState,
    /// We wrote it, or its file was found to have its name: its blocks can be read one by one. Of other packs
    /// whole chunks are read, since only a chunk's id proves it.
    pub proven: bool,
}

/// What packs take on the disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceEstimate {
    /// Files of closed packs, condemned ones included.
    pub closed_bytes: u64,
    /// Of these, condemned.
    pub condemned_bytes: u64,
    /// Chunks in open packs.
    pub open_bytes: u64,
    /// Reserved on the disk for open packs beyond that. Free space as the system counts it has these taken
    /// off.
    pub promised_bytes: u64,
}

impl Packs {
    /// Returns all closed packs, condemned ones included, in order of their numbers.
    pub fn closed_packs(&self) -> Result<Vec<PackInfo>> {
        let rows = self.core.files.rows();
        let closed = rows.iter().filter(|(_, row)| row.state != PackState::Open);
        let mut packs: Vec<_> = closed.map(|(no, row)| info(no, row)).collect();
        packs.sort_unstable_by_key(|p| p.no);
        Ok(packs)
    }

    /// Returns the packs on the disk that the index does not know: left by a crash between closing a pack and
    /// the commit that would have recorded it, or brought by someone else. They may be adopted, or deleted
    /// once no chain file names them.
    pub fn strays(&self) -> Result<Vec<PackName>> {
        self.core.strays()
    }

    /// Adds the chunks of a pack that stands in `packs/` to the index, but for those that it has already, and
    /// returns how many chunks the pack has. The pack counts as not proven until all of it was read and found to have
    /// its name: by [`Packs::prove`], at the first chunk that would be deduplicated against it, or when a good part of
    /// it was read anyway.
    ///
    /// The name must come from a signed chain file: that is what makes it worth comparing with.
    ///
    /// # Errors
    /// `Corrupt` when the file is missing or is no pack of this vault. What was added stays, and the call can
    /// be repeated.
    pub fn adopt(&self, name: &PackName) -> Result<usize> {
        self.core.adopt(name)
    }

    /// Reads a whole pack and compares its hash with its name. From then on it is trusted like those we
    /// wrote.
    ///
    /// # Errors
    /// `Corrupt` when the file is not the one of that name. FORMAT LAY-1
    pub fn prove(&self, name: &PackName) -> Result<()> {
        let _proving = self.core.files.proving();
        self.core.prove(name)
    }

    /// Returns a pack's chunks in file order, from its footer.
    pub fn chunks_of(&self, pack: &PackInfo) -> Result<Vec<ChunkDesc>> {
        let pack = self.core.files.get(&self.core.ctx, pack.no)?;
        pack.read_footer().map(|(footer, _)| footer.chunks)
    }

    /// Calls `each` with every chunk of the index: its id, the number of the pack that holds it, and its
    /// stored bytes. Ascending by id, in pages: writers go on meanwhile, and what they add may or may not be
    /// seen.
    ///
    /// # Errors
    /// `Corrupt` for rows that make no sense, and those of `each`.
    pub fn for_each_chunk(&self, each: &mut dyn FnMut(&ChunkId, u32, u64) -> Result<()>) -> Result<()> {
        self.core.scan(Table::Chunks, &mut |key, value| {
            let id = key.try_into().map(ChunkId);
            let id = id.map_err(|_| StoreError::Corrupt("live database: key of a chunk row".to_string()))?;
            let row = ChunkRow::decode(&id, value)?;
            each(&id, row.pack, row.desc.stored_len())
        })
    }

    /// Marks a pack for deletion: from now on deduplication passes it by, so no new reference to its chunks
    /// comes about unless they are stored anew. Its chunks can still be read.
    pub fn condemn(&self, name: &PackName) -> Result<()> {
        self.core.change_row(name, |row| row.state = PackState::Condemned).map(drop)
    }

    /// Takes a condemnation back.
    pub fn uncondemn(&self, name: &PackName) -> Result<()> {
        self.core.change_row(name, |row| row.state = PackState::Closed).map(drop)
    }

    /// Drops a condemned pack: its rows and what is left of its chunks' rows, durably, and then its file. To
    /// be called once the removal record that retires the pack is durable.
    ///
    /// # Errors
    /// `NotFound` when there is no condemned pack of that name.
    pub fn forget(&self, name: &PackName) -> Result<()> {
        self.forget_all(std::slice::from_ref(name))
    }

    /// [`Packs::forget`] for several packs with one commit.
    pub fn forget_all(&self, names: &[PackName]) -> Result<()> {
        let core = &self.core;
        let mut gone = Vec::with_capacity(names.len());
        for name in names {
            let (no, row) = core.by_name(name)?;
            if row.state != PackState::Condemned {
                return Err(StoreError::NotFound(format!("condemned pack {name}")));
            }
            core.forget_rows(no, &row)?;
            gone.push(no);
        }
        // A row must not name a file that is gone.
        core.live.commit()?;
        for (no, name) in gone.into_iter().zip(names) {
            core.files.drop_pack(no);
            core.remove_file(&pack_path(name))?;
        }
        Ok(())
    }

    /// Copies those chunks of a pack that still stand only there and that `keep` wants into the open pack of
    /// their kind, without compressing them again, and points their rows there. Every chunk copied is
    /// verified by its id. Returns the stored bytes of what was copied. The pack itself stays as it is.
    pub fn rewrite(&self, pack: &PackInfo, keep: &dyn Fn(&ChunkId) -> bool) -> Result<u64> {
        let core = &self.core;
        let file = core.files.get(&core.ctx, pack.no)?;
        let (footer, _) = file.read_footer()?;
        let mut copied = 0;
        for desc in footer.chunks.iter().filter(|desc| keep(&desc.id)) {
            copied += core.copy_chunk(pack, &file, desc)?;
        }
        Ok(copied)
    }

    /// Returns what packs take on the disk.
    pub fn space_estimate(&self) -> SpaceEstimate {
        let core = &self.core;
        let mut estimate = SpaceEstimate::default();
        for (_, row) in core.files.rows().iter() {
            estimate.closed_bytes += row.file_len;
            if row.state == PackState::Condemned {
                estimate.condemned_bytes += row.file_len;
            }
        }
        for pack in lock(&core.unclosed).iter() {
            let (written, promised) = pack.space(&core.ctx);
            estimate.open_bytes += written;
            estimate.promised_bytes += promised;
        }
        estimate
    }
}

impl Core {
    fn by_name(&self, name: &PackName) -> Result<(u32, PackRow)> {
        let rows = self.files.rows();
        let found = rows.named(name).map(|(no, row)| (no, row.clone()));
        found.ok_or_else(|| StoreError::NotFound(format!("pack {name}")))
    }

    /// Changes the row of a closed pack; returns its number.
    fn change_row(&self, name: &PackName, change: impl FnOnce(&mut PackRow)) -> Result<u32> {
        let _index = lock(&self.index);
        let (no, mut row) = self.by_name(name)?;
        change(&mut row);
        self.apply_pack_row(no, row)?;
        Ok(no)
    }

    /// See [`Packs::prove`]. The caller keeps others from doing it at the same time.
    fn prove(&self, name: &PackName) -> Result<()> {
        let (no, row) = self.by_name(name)?;
        let path = pack_path(name);
        let file = open_file(&*self.ctx.disk, &path, OpenMode::Read)?;
        let key = Arc::clone(&self.files.get(&self.ctx, no)?.key);
        let fresh =
            PackFile { file, key, kind: row.kind, proven: false, label: path, read_whole: AtomicU64::new(0) };
        let hash = fresh.hash(row.file_len)?;
        let len = fresh.file.len().map_err(|e| StoreError::io(format!("length of {}", fresh.label), e))?;
        if hash.name != *name || len != row.file_len {
            return Err(super::file::damaged(&fresh.label, &"LAY-1: the file is not the one of its name"));
        }
        self.change_row(name, |row| {
            row.proven = true;
            row.header_hash = hash.header;
        })?;
        self.files.drop_file(no);
        Ok(())
    }

    /// Tells whether what a pack says to hold may be relied upon without reading it: the pack is proven, by this very call if
    /// need be, which reads all of it.
    pub(super) fn is_believed(&self, no: u32) -> bool {
        if self.files.is_proven(no) {
            return true;
        }
        if self.files.is_refused(no) {
            return false;
        }
        let _proving = self.files.proving();
        let Some(row) = self.files.row(no) else { return false };
        if row.proven || self.files.is_refused(no) {
            return row.proven;
        }
        match self.prove(&row.name) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(pack = %row.name, %error, "a pack could not be proven; nothing new relies on it");
                self.files.refuse(no);
                false
            }
        }
    }

    fn adopt(&self, name: &PackName) -> Result<usize> {
        let path = pack_path(name);
        let (row, footer) = self.open_foreign(name, &path)?;
        let no = match self.by_name(name) {
            // An earlier call did not get to its end, or the pack is ours.
            Ok((_, row)) if row.state == PackState::Condemned => return Ok(footer.chunks.len()),
            Ok((no, _)) => no,
            Err(StoreError::NotFound(_)) => {
                let _index = lock(&self.index);
                let no = self.next_pack_no.fetch_add(1, Ordering::Relaxed);
                let next = no.checked_add(1).ok_or(StoreError::Format(FormatError::Limit("2^32 packs")))?;
                let mut batch = Batch::new();
                batch.put(Table::Packs, row_key(no), row.encode());
                batch.put(Table::Settings, NEXT_PACK_NO, next.to_le_bytes());
                self.live.apply(batch)?;
                self.files.set_row(no, row);
                no
            }
            Err(e) => return Err(e),
        };
        for chunks in footer.chunks.chunks(ROWS_PER_BATCH) {
            let _index = lock(&self.index);
            let mut batch = Batch::new();
            for desc in chunks {
                if self.find_usable(&desc.id)?.is_none() {
                    batch.put(Table::Chunks, *desc.id.as_bytes(), ChunkRow::encode(no, desc));
                }
            }
            if !batch.is_empty() {
                self.live.apply(batch)?;
            }
        }
        Ok(footer.chunks.len())
    }

    fn open_foreign(&self, name: &PackName, path: &str) -> Result<(PackRow, Footer)> {
        let (pack, read) = open_named(&*self.ctx.disk, &self.ctx.keys, path)?;
        let (footer, trailer): (Footer, Trailer) = pack.read_footer()?;
        let row = PackRow {
            uid: read.header.uid,
            kind: read.header.kind,
            state: PackState::Closed,
            proven: false,
            header_hash: read.hash,
            name: *name,
            file_len: trailer.file_len,
        };
        Ok((row, footer))
    }

    /// Deletes a pack's row and the rows of the chunks that still point to it.
    fn forget_rows(&self, no: u32, row: &PackRow) -> Result<()> {
        let ids = self.ids_of(no, row)?;
        for ids in ids.chunks(ROWS_PER_BATCH) {
            let _index = lock(&self.index);
            let mut batch = Batch::new();
            for id in ids {
                // It may have moved to another pack since.
                if self.find(id)?.is_some_and(|row| row.pack == no) {
                    batch.delete(Table::Chunks, *id.as_bytes());
                }
            }
            if !batch.is_empty() {
                self.live.apply(batch)?;
            }
        }
        let _index = lock(&self.index);
        let mut batch = Batch::new();
        batch.delete(Table::Packs, row_key(no));
        self.live.apply(batch)
    }

    /// Returns the ids of all chunks that may point to a pack.
    fn ids_of(&self, no: u32, row: &PackRow) -> Result<Vec<ChunkId>> {
        // The footer of a pack that is not proven may not be the one that was adopted.
        if row.proven {
            let footer = self.files.get(&self.ctx, no).and_then(|pack| pack.read_footer());
            match footer {
                Ok((footer, _)) => return Ok(footer.chunks.into_iter().map(|c| c.id).collect()),
                Err(StoreError::Corrupt(why)) => {
                    tracing::warn!(pack = %row.name, why, "a pack to be forgotten is damaged already");
                }
                Err(e) => return Err(e),
            }
        }
        let mut ids = Vec::new();
        self.scan(Table::Chunks, &mut |key, value| {
            let id = key.try_into().map(ChunkId);
            let id = id.map_err(|_| StoreError::Corrupt("live database: key of a chunk row".to_string()))?;
            if ChunkRow::decode(&id, value)?.pack == no {
                ids.push(id);
            }
            Ok(())
        })?;
        Ok(ids)
    }

    /// Copies one chunk into the open pack, if its row still points to `from`. Returns the bytes it takes
    /// there.
    fn copy_chunk(&self, from: &PackInfo, file: &PackFile, desc: &ChunkDesc) -> Result<u64> {
        let _in_flight = self.enter(desc.id);
        if self.find(&desc.id)?.is_none_or(|row| row.pack != from.no) {
            return Ok(0);
        }
        let mut frames = vec![0; desc.stored_len() as usize];
        read_exact(&*file.file, &mut frames, u64::from(desc.offset), &file.label)?;
        let mut plain = vec![0; desc.plain_len as usize];
        let (mut rest, mut plain_rest) = (&mut frames[..], &mut plain[..]);
        let mut bodies: Vec<&[u8]> = Vec::with_capacity(desc.blocks.len());
        for (b, block) in (0u32..).zip(&desc.blocks) {
            let (frame, tail) = rest.split_at_mut(block.body_len as usize + FRAME_TAG_LEN);
            let (out, plain_tail) = plain_rest.split_at_mut(block_plain_len(desc.plain_len, b) as usize);
            (rest, plain_rest) = (tail, plain_tail);
            let len = file.open_body(desc, b, frame)?;
            let body = &frame[..len];
            codec::decode(block.codec, body, out).map_err(|e| super::file::damaged(&file.label, &e))?;
            bodies.push(body);
        }
        file.check_id(&self.ctx.keys, desc, &plain)?;
        self.store(from.kind, &desc.id, desc.plain_len, &mut |b, out| {
            out.extend_from_slice(bodies[b as usize]);
            Body { codec: desc.blocks[b as usize].codec, plain_len: block_plain_len(desc.plain_len, b) }
        })
    }
}

/// Opens a closed pack by its path, believing nothing: only the header has been read.
pub(crate) fn open_named(
    disk: &dyn crate::disk::Disk,
    keys: &crate::crypto::VaultKeys,
    path: &str,
) -> Result<(PackFile, super::file::HeaderRead)> {
    let file = open_file(disk, path, OpenMode::Read)?;
    let read = read_header(&*file, path)?;
    let key = pack_key(keys, &read.header, path)?;
    let kind = read.header.kind;
    let label = path.to_string();
    let pack = PackFile { file, key, kind, proven: false, label, read_whole: AtomicU64::new(0) };
    Ok((pack, read))
}

fn info(no: u32, row: &PackRow) -> PackInfo {
    PackInfo {
        no,
        name: row.name,
        kind: row.kind,
        uid: row.uid,
        file_len: row.file_len,
        state: row.state,
        proven: row.proven,
    }
}
