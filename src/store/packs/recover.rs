//! Opening the chunk store: its rows, and the packs that a crash left open.
//!
//! FORMAT PACK-7: a pack that was open when the power went is cut after the last chunk that the live database
//! knows, closed, and never written to again: its key could otherwise meet a frame number twice. Every chunk
//! that stays is verified first, so what is closed here is sound.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::error::{Result, StoreError};
use super::super::live::{Batch, Table};
use super::file::{PackFile, damaged, open_file, pack_key, read_header};
use super::open::{OPEN_DIR, closing_bytes, open_path};
use super::rows::{ChunkRow, NEXT_PACK_NO, PackRow, PackState, parse_pack_key, parse_pack_no};
use super::{Core, rows};
use crate::disk::OpenMode;
use crate::format::pack::{pack_path, parse_pack_path};
use crate::format::{ChunkDesc, ChunkId, Footer, PACK_HEADER_LEN, PackName};

/// What a scan does with each row: key and value.
pub(super) type EachRow<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

/// Rows read from the live database at a time.
pub(super) const PAGE: usize = 4096;

impl Core {
    /// Reads the pack rows and makes the directories.
    pub(super) fn load(&self) -> Result<()> {
        for dir in ["packs", OPEN_DIR] {
            self.ctx.disk.create_dir_all(dir).map_err(|e| StoreError::io(format!("create {dir}"), e))?;
        }
        let mut next = match self.live.get(Table::Settings, NEXT_PACK_NO)? {
            Some(value) => parse_pack_no(&value)?,
            None => 0,
        };
        self.scan(Table::Packs, &mut |key, value| {
            let no = parse_pack_key(key)?;
            next = next.max(no.saturating_add(1));
            self.files.set_row(no, PackRow::decode(value)?);
            Ok(())
        })?;
        self.next_pack_no.store(next, Ordering::Relaxed);
        Ok(())
    }

    /// Runs `each` on all rows of a table. Rows that change meanwhile are seen as before or as after.
    pub(super) fn scan(&self, table: Table, each: &mut EachRow<'_>) -> Result<()> {
        let mut from = Vec::new();
        loop {
            let page = self.live.range(table, &from, None, PAGE)?;
            for (key, value) in &page {
                each(key, value)?;
            }
            match page.into_iter().next_back() {
                Some((key, _)) => {
                    from = key;
                    from.push(0);
                }
                None => return Ok(()),
            }
        }
    }

    /// Finishes packs that were left open, and removes files that nothing knows.
    pub(super) fn recover(&self) -> Result<()> {
        let mut open: HashMap<u32, (PackRow, Vec<ChunkDesc>)> = HashMap::new();
        for (no, row) in self.files.rows().iter() {
            if row.state == PackState::Open {
                open.insert(no, (row.clone(), Vec::new()));
            }
        }
        if !open.is_empty() {
            self.scan(Table::Chunks, &mut |key, value| {
                let id =
                    ChunkId(key.try_into().map_err(|_| damaged("live database", &"key of a chunk row"))?);
                let row = ChunkRow::decode(&id, value)?;
                if let Some((_, chunks)) = open.get_mut(&row.pack) {
                    chunks.push(row.desc);
                }
                Ok(())
            })?;
        }
        let mut open: Vec<_> = open.into_iter().collect();
        open.sort_unstable_by_key(|(no, _)| *no);
        for (no, (row, mut chunks)) in open {
            chunks.sort_unstable_by_key(|c| c.offset);
            self.recover_pack(no, row, chunks)?;
        }
        self.clear_open_dir()
    }

    fn recover_pack(&self, no: u32, row: PackRow, chunks: Vec<ChunkDesc>) -> Result<()> {
        let path = open_path(&row.uid);
        let there = self.ctx.disk.len(&path).map_err(|e| StoreError::io(format!("look for {path}"), e))?;
        let closed = if chunks.is_empty() {
            None
        } else if there.is_some() {
            Some(self.finish(&path, &row, chunks)?)
        } else {
            Some(self.find_placed(&path, &row, &chunks)?)
        };
        match closed {
            Some((name, file_len)) => {
                tracing::info!(pack = %name, bytes = file_len, "closed a pack that was left open");
                self.set_pack_row(no, PackRow { state: PackState::Closed, name, file_len, ..row })
            }
            None => {
                // No chunk points to it: it goes with the other leftovers.
                let mut batch = Batch::new();
                batch.delete(Table::Packs, rows::pack_key(no));
                self.live.apply(batch)?;
                self.files.drop_pack(no);
                Ok(())
            }
        }
    }

    /// Closes a pack that stands in `live/open/`, and moves it under its name.
    fn finish(&self, path: &str, row: &PackRow, chunks: Vec<ChunkDesc>) -> Result<(PackName, u64)> {
        let pack = self.open_leftover(path, row, OpenMode::ReadWrite)?;
        let file_len = match self.complete(&pack, &chunks)? {
            Some(len) => len,
            None => self.cut(&pack, chunks)?,
        };
        if let Err(e) = pack.file.sync_data() {
            let what = format!("sync {path}: {e}");
            self.ctx.poison.set(&what);
            return Err(StoreError::Poisoned(what));
        }
        let name = pack.hash(file_len)?.name;
        self.place(path, &name, &|| ())?;
        Ok((name, file_len))
    }

    fn open_leftover(&self, path: &str, row: &PackRow, mode: OpenMode) -> Result<PackFile> {
        let file = open_file(&*self.ctx.disk, path, mode)?;
        let read = read_header(&*file, path)?;
        if read.hash != row.header_hash {
            return Err(damaged(path, &"its header is not the one that was recorded"));
        }
        let key = pack_key(&self.ctx.keys, &read.header, path)?;
        Ok(PackFile {
            file,
            key,
            kind: row.kind,
            proven: true,
            label: path.to_string(),
            read_whole: AtomicU64::new(0),
        })
    }

    /// Returns the length of a pack whose footer and trailer had been written, if everything that they name
    /// is sound. It must not be cut then: it may already have its name as well, and be named by a snapshot.
    fn complete(&self, pack: &PackFile, chunks: &[ChunkDesc]) -> Result<Option<u64>> {
        let (footer, trailer) = match pack.read_footer() {
            Ok(read) => read,
            Err(StoreError::Corrupt(_)) => return Ok(None),
            Err(e) => return Err(e),
        };
        if !covers(&footer, chunks) {
            return Ok(None);
        }
        for desc in &footer.chunks {
            match pack.read_chunk_verified(&self.ctx.keys, desc) {
                Ok(_) => {}
                Err(StoreError::Corrupt(_)) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(trailer.file_len))
    }

    /// Cuts a pack after its last known chunk and writes its end. Returns the file's length in bytes.
    fn cut(&self, pack: &PackFile, chunks: Vec<ChunkDesc>) -> Result<u64> {
        let path = &pack.label;
        let mut end = PACK_HEADER_LEN as u64;
        for desc in &chunks {
            if u64::from(desc.offset) != end {
                let text = format!("the index has a gap before chunk {} at {}", desc.id, desc.offset);
                return Err(damaged(path, &text));
            }
            pack.read_chunk_verified(&self.ctx.keys, desc)?;
            end = desc.end();
        }
        let (tail, file_len) = closing_bytes(&self.ctx, pack, &Footer { chunks }, end);
        // Written before the rest is cut off, so that it takes the room that had been reserved.
        let written = pack.file.write_all_at(&tail, end).and_then(|()| pack.file.set_len(file_len));
        written.map_err(|e| StoreError::io(format!("close {path}"), e))?;
        Ok(file_len)
    }

    /// Finds a pack that was finished and has moved, although its row does not say so yet.
    fn find_placed(&self, path: &str, row: &PackRow, chunks: &[ChunkDesc]) -> Result<(PackName, u64)> {
        for name in self.strays()? {
            let at = pack_path(&name);
            let file = open_file(&*self.ctx.disk, &at, OpenMode::Read)?;
            match read_header(&*file, &at) {
                Ok(read) if read.hash == row.header_hash => {}
                Ok(_) | Err(StoreError::Corrupt(_)) => continue,
                Err(e) => return Err(e),
            }
            let pack = self.open_leftover(&at, row, OpenMode::Read)?;
            let (footer, trailer) = pack.read_footer()?;
            if !covers(&footer, chunks) {
                return Err(damaged(&at, &"its footer does not list the chunks that the index has there"));
            }
            // The move itself may not be durable yet, if it was not the power that went.
            self.sync_dir(crate::disk::parent(&at))?;
            self.sync_dir(OPEN_DIR)?;
            return Ok((name, trailer.file_len));
        }
        Err(StoreError::Corrupt(format!("{path} is missing, with {} chunks", chunks.len())))
    }

    /// Lists the packs on the disk that the index does not know.
    pub(super) fn strays(&self) -> Result<Vec<PackName>> {
        let rows = self.files.rows();
        let list = |dir: &str| self.ctx.disk.list(dir).map_err(|e| StoreError::io(format!("list {dir}"), e));
        let mut strays = Vec::new();
        for dir in list("packs")?.iter().filter(|d| d.is_dir && d.name.len() == 2) {
            let dir = format!("packs/{}", dir.name);
            for item in list(&dir)?.iter().filter(|i| !i.is_dir) {
                let name = parse_pack_path(&format!("{dir}/{}", item.name));
                strays.extend(name.filter(|name| rows.named(name).is_none()));
            }
        }
        Ok(strays)
    }

    fn clear_open_dir(&self) -> Result<()> {
        let items =
            self.ctx.disk.list(OPEN_DIR).map_err(|e| StoreError::io(format!("list {OPEN_DIR}"), e))?;
        for item in items.iter().filter(|i| !i.is_dir && !i.lossy) {
            self.remove_file(&format!("{OPEN_DIR}/{}", item.name))?;
        }
        Ok(())
    }
}

/// Tells whether a footer lists all of these chunks just as the index has them.
fn covers(footer: &Footer, chunks: &[ChunkDesc]) -> bool {
    let listed: HashMap<u32, &ChunkDesc> = footer.chunks.iter().map(|c| (c.offset, c)).collect();
    chunks.iter().all(|c| listed.get(&c.offset) == Some(&c))
}
