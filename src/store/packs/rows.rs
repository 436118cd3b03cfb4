//! Rows of the live database that belong to packs.
//!
//! ```text
//! Chunks    key chunk id              u32 pack number || u32 offset || u32 first frame
//!                                     || u32 plaintext length || u32 block...
//! Packs     key pack number, BE       uid[16] || u8 kind || u8 state || u8 proven || header hash[32]
//!                                     || name[32] || u64 file length
//! Settings  "next_pack_no"            u32: the number that the next pack gets; none is ever used again
//! ```

use super::super::error::{Result, StoreError};
use crate::format::{
    BlockDesc, CHUNK_MAX, ChunkDesc, ChunkId, PackKind, PackName, PackUid, block_count, block_plain_len,
};

/// Key of the counter of pack numbers.
pub(super) const NEXT_PACK_NO: &[u8] = b"next_pack_no";

/// Where a pack is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackState {
    /// Chunks are added to it; it stands in `live/open/`.
    Open = 0,
    /// Finished, under its name.
    Closed = 1,
    /// Finished, and to be deleted once nothing is left that needs it. Deduplication passes it by.
    Condemned = 2,
}

/// What is known about a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackRow {
    pub(crate) uid: PackUid,
    pub(crate) kind: PackKind,
    pub(crate) state: PackState,
    /// We wrote this pack, or its whole file was found to have its name. Until then anyone who knows the
    /// vault's public key may have made it, so its chunks are believed only after their ids were recomputed.
    pub(crate) proven: bool,
    /// H(the clear header), which decides the pack key: a proven pack's file can't be exchanged unnoticed.
    pub(crate) header_hash: [u8; 32],
    /// Zeros while the pack is open.
    pub(crate) name: PackName,
    /// Length of the closed file in bytes; 0 while the pack is open.
    pub(crate) file_len: u64,
}

/// Where a chunk stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChunkRow {
    pub(crate) pack: u32,
    pub(crate) desc: ChunkDesc,
}

const PACK_ROW_LEN: usize = 16 + 1 + 1 + 1 + 32 + 32 + 8;
const CHUNK_ROW_MIN: usize = 4 * 4;

/// Returns the key of a pack's row.
pub(super) fn pack_key(no: u32) -> [u8; 4] {
    no.to_be_bytes()
}

/// Reads the key of a pack's row.
pub(super) fn parse_pack_key(key: &[u8]) -> Result<u32> {
    key.try_into().map(u32::from_be_bytes).map_err(|_| damaged("key of a pack row"))
}

/// Reads the value of [`NEXT_PACK_NO`].
pub(super) fn parse_pack_no(value: &[u8]) -> Result<u32> {
    value.try_into().map(u32::from_le_bytes).map_err(|_| damaged("counter of pack numbers"))
}

impl PackRow {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PACK_ROW_LEN);
        out.extend_from_slice(self.uid.as_bytes());
        out.extend_from_slice(&[self.kind as u8, self.state as u8, u8::from(self.proven)]);
        out.extend_from_slice(&self.header_hash);
        out.extend_from_slice(self.name.as_bytes());
        out.extend_from_slice(&self.file_len.to_le_bytes());
        out
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self> {
        let value: &[u8; PACK_ROW_LEN] = value.try_into().map_err(|_| damaged("pack row"))?;
        let (uid, rest) = take::<16>(value);
        let ([kind, state, proven], rest) = take::<3>(rest);
        let (header_hash, rest) = take::<32>(rest);
        let (name, rest) = take::<32>(rest);
        let (file_len, _) = take::<8>(rest);
        Ok(PackRow {
            uid: PackUid(uid),
            kind: PackKind::from_u8(kind).map_err(|_| damaged("pack row"))?,
            state: match state {
                0 => PackState::Open,
                1 => PackState::Closed,
                2 => PackState::Condemned,
                _ => return Err(damaged("pack row")),
            },
            proven: match proven {
                0 => false,
                1 => true,
                _ => return Err(damaged("pack row")),
            },
            header_hash,
            name: PackName(name),
            file_len: u64::from_le_bytes(file_len),
        })
    }
}

impl ChunkRow {
    pub(super) fn encode(pack: u32, desc: &ChunkDesc) -> Vec<u8> {
        let mut out = Vec::with_capacity(CHUNK_ROW_MIN + 4 * desc.blocks.len());
        for n in [pack, desc.offset, desc.first_frame, desc.plain_len] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        for block in &desc.blocks {
            out.extend_from_slice(&block.to_u32().to_le_bytes());
        }
        out
    }

    pub(super) fn decode(id: &ChunkId, value: &[u8]) -> Result<Self> {
        let mut numbers = value.chunks_exact(4).map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]));
        let mut next = || numbers.next().ok_or_else(|| damaged("chunk row"));
        let (pack, offset, first_frame, plain_len) = (next()?, next()?, next()?, next()?);
        if plain_len == 0 || plain_len as usize > CHUNK_MAX {
            return Err(damaged("chunk row"));
        }
        let count = block_count(plain_len);
        if value.len() != CHUNK_ROW_MIN + 4 * count as usize {
            return Err(damaged("chunk row"));
        }
        let mut blocks = Vec::with_capacity(count as usize);
        for b in 0..count {
            let block = BlockDesc::from_u32(next()?).map_err(|_| damaged("chunk row"))?;
            block.check(block_plain_len(plain_len, b)).map_err(|_| damaged("chunk row"))?;
            blocks.push(block);
        }
        Ok(ChunkRow { pack, desc: ChunkDesc { id: *id, offset, first_frame, plain_len, blocks } })
    }
}

/// Splits `N` bytes off. The callers' arithmetic is checked by [`PACK_ROW_LEN`].
fn take<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    let (head, tail) = bytes.split_at(N);
    (head.try_into().expect("split at N"), tail)
}

/// Body of a fuzz target: what is read as a row or key of packs is what would be written for it.
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok(row) = PackRow::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok(row) = ChunkRow::decode(&ChunkId([7; 32]), data) {
        assert_eq!(ChunkRow::encode(row.pack, &row.desc), data);
    }
    if let Ok(no) = parse_pack_key(data) {
        assert_eq!(pack_key(no), data);
    }
    if let Ok(no) = parse_pack_no(data) {
        assert_eq!(no.to_le_bytes(), data);
    }
}

/// A pack row and a chunk row, for the fuzz target to start from.
pub(crate) fn fuzz_seeds() -> [Vec<u8>; 2] {
    let row = PackRow {
        uid: PackUid([1; 16]),
        kind: PackKind::Tree,
        state: PackState::Closed,
        proven: true,
        header_hash: [2; 32],
        name: PackName([3; 32]),
        file_len: 8192,
    };
    let block = |body_len| BlockDesc { codec: crate::format::Codec::Lz4, body_len };
    let id = ChunkId([7; 32]);
    let desc = ChunkDesc {
        id,
        offset: 1168,
        first_frame: 3,
        plain_len: 140_000,
        blocks: vec![block(5000), block(99)],
    };
    [row.encode(), ChunkRow::encode(9, &desc)]
}

fn damaged(what: &str) -> StoreError {
    StoreError::Corrupt(format!("live database: {what} has not the form this program writes"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::{BLOCK_LEN, Codec};

    fn desc(plain_len: u32) -> ChunkDesc {
        let block = |b| BlockDesc { codec: Codec::Raw, body_len: block_plain_len(plain_len, b) };
        ChunkDesc {
            id: ChunkId([7; 32]),
            offset: 1168,
            first_frame: 3,
            plain_len,
            blocks: (0..block_count(plain_len)).map(block).collect(),
        }
    }

    #[test]
    fn rows_come_back_as_they_went_in() {
        for plain_len in [1, BLOCK_LEN as u32, BLOCK_LEN as u32 + 1, CHUNK_MAX as u32] {
            let desc = desc(plain_len);
            let value = ChunkRow::encode(9, &desc);
            assert_eq!(ChunkRow::decode(&desc.id, &value).unwrap(), ChunkRow { pack: 9, desc });
            for wrong in [&value[..value.len() - 1], &value[..8], &[], &[&value[..], &[0; 4]].concat()] {
                assert!(ChunkRow::decode(&ChunkId([7; 32]), wrong).is_err());
            }
        }
        let mut row = PackRow {
            uid: PackUid([1; 16]),
            kind: PackKind::Tree,
            state: PackState::Open,
            proven: true,
            header_hash: [2; 32],
            name: PackName([3; 32]),
            file_len: 0x0102_0304_0506,
        };
        for state in [PackState::Open, PackState::Closed, PackState::Condemned] {
            row.state = state;
            assert_eq!(PackRow::decode(&row.encode()).unwrap(), row);
        }
        assert_eq!(parse_pack_key(&pack_key(77)).unwrap(), 77);
    }

    #[test]
    fn malformed_rows_are_refused() {
        let good = desc(5);
        for change in [
            |v: &mut Vec<u8>| v[12] = 0,
            |v: &mut Vec<u8>| v[15] = 1,
            |v: &mut Vec<u8>| v[16] = 4,
            |v: &mut Vec<u8>| v[19] = 0xc0,
        ] {
            let mut value = ChunkRow::encode(1, &good);
            change(&mut value);
            assert!(ChunkRow::decode(&good.id, &value).is_err());
        }
        let row = PackRow {
            uid: PackUid([1; 16]),
            kind: PackKind::Data,
            state: PackState::Closed,
            proven: false,
            header_hash: [2; 32],
            name: PackName([3; 32]),
            file_len: 1,
        };
        let good = row.encode();
        assert!(PackRow::decode(&good[1..]).is_err());
        for (at, byte) in [(16, 0), (16, 3), (17, 3), (18, 2)] {
            let mut value = good.clone();
            value[at] = byte;
            assert!(PackRow::decode(&value).is_err());
        }
        assert!(parse_pack_key(&[0; 3]).is_err());
        assert!(parse_pack_no(&[0; 8]).is_err());
    }
}
