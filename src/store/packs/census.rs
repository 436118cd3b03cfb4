//! Counting chunks: what garbage collection asks of the index.

use super::super::error::{Result, StoreError};
use super::super::live::Table;
use super::Packs;
use super::rows::ChunkRow;
use crate::format::ChunkId;

impl Packs {
    /// Calls `each` with every chunk of the index, in order of ids: its id, the number of the pack that the index finds
    /// it in (which may still be open), and the bytes it takes there, tags included. Chunks that are stored or moved
    /// meanwhile are seen as before or as after.
    pub fn for_each_chunk(&self, each: &mut dyn FnMut(&ChunkId, u32, u64) -> Result<()>) -> Result<()> {
        self.core.scan(Table::Chunks, &mut |key, value| {
            let id = key.try_into().map(ChunkId);
            let id = id.map_err(|_| StoreError::Corrupt("live database: key of a chunk row".to_string()))?;
            let row = ChunkRow::decode(&id, value)?;
            each(&id, row.pack, row.desc.stored_len().into())
        })
    }
}
