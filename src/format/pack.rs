//! Packs: the clear header, the footer that lists the chunks, the trailer that finds the footer.
//!
//! ```text
//! 0       8     magic "SRPACK" 00 01
//! 8       1     kind
//! 9       1     cipher
//! 10      6     reserved
//! 16      16    vault id
//! 32      16    pack uid
//! 48      1120  X-Wing ciphertext
//! 1168    ...   frames, footer, padding
//! end-64  64    trailer
//! ```
//!
//! Footer and trailer are sealed; here are their plaintexts.

use super::FormatError;
use super::header::Cipher;
use super::ids::{ChunkId, PackName, PackUid, VaultId, hex_array};
use super::wire::{RESERVE_MAX, Reader, put_count_u32};

/// Length of the clear header, in bytes.
pub const PACK_HEADER_LEN: usize = 1168;
/// Length of the sealed trailer, the last bytes of a pack.
pub const TRAILER_LEN: usize = 64;
/// Plaintext of one block of a chunk, in bytes; the last block of a chunk may be shorter.
pub const BLOCK_LEN: usize = 131_072;
/// The longest chunk, in bytes of plaintext.
pub const CHUNK_MAX: usize = 8 << 20;
/// The longest pack file, in bytes.
pub const PACK_LEN_MAX: u64 = 1 << 30;
/// The tag of a sealed frame, in bytes.
pub const FRAME_TAG_LEN: usize = 16;
/// Length of what a frame's seal is bound to.
pub const FRAME_AAD_LEN: usize = FRAME_DOMAIN.len() + 16 + 16 + 8 + 32 + 4 + 1 + 1 + 4 + 4;
/// Length of an X-Wing ciphertext, in bytes.
pub const KEM_CIPHERTEXT_LEN: usize = 1120;
/// What sealing adds to a footer: nonce and tag.
pub const FOOTER_SEAL_LEN: usize = 24 + 16;

const MAGIC: [u8; 8] = *b"SRPACK\x00\x01";
const KIND_OFFSET: usize = MAGIC.len();
const CIPHER_OFFSET: usize = KIND_OFFSET + 1;
const RESERVED_OFFSET: usize = CIPHER_OFFSET + 1;
const VAULT_ID_OFFSET: usize = RESERVED_OFFSET + 6;
const UID_OFFSET: usize = VAULT_ID_OFFSET + VaultId::LEN;
const KEM_OFFSET: usize = UID_OFFSET + PackUid::LEN;
const _: () = assert!(KEM_OFFSET + KEM_CIPHERTEXT_LEN == PACK_HEADER_LEN);

const FRAME_DOMAIN: &[u8; 19] = b"strongroom v1 frame";
/// A chunk in the footer without its blocks: id, offset, first frame number, plaintext length.
const CHUNK_DESC_LEN: usize = 32 + 4 + 4 + 4;
/// A pack's length is a multiple of this.
const PACK_ALIGN: u64 = 4096;

/// What a pack's chunks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PackKind {
    /// Bytes of files.
    Data = 1,
    /// Tree objects.
    Tree = 2,
}

impl PackKind {
    /// Reads the number that a pack header has.
    pub fn from_u8(n: u8) -> Result<Self, FormatError> {
        // FORMAT PACK-6
        match n {
            1 => Ok(PackKind::Data),
            2 => Ok(PackKind::Tree),
            _ => Err(FormatError::Malformed("PACK-6: unknown pack kind")),
        }
    }
}

/// The clear first bytes of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackHeader {
    /// What its chunks are.
    pub kind: PackKind,
    /// Seals its frames; the vault header's.
    pub cipher: Cipher,
    /// The vault that it belongs to.
    pub vault_id: VaultId,
    /// Drawn for this pack.
    pub uid: PackUid,
    /// The pack key, sealed to the vault's public key: 1,120 bytes.
    pub kem_ciphertext: Vec<u8>,
}

impl PackHeader {
    /// Returns the 1,168 bytes.
    ///
    /// # Panics
    ///
    /// If `kem_ciphertext` is not 1,120 bytes long.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PACK_HEADER_LEN);
        out.extend_from_slice(&MAGIC);
        out.push(self.kind as u8);
        out.push(self.cipher as u8);
        out.resize(VAULT_ID_OFFSET, 0);
        out.extend_from_slice(self.vault_id.as_bytes());
        out.extend_from_slice(self.uid.as_bytes());
        out.extend_from_slice(&self.kem_ciphertext);
        assert_eq!(out.len(), PACK_HEADER_LEN, "a KEM ciphertext has 1,120 bytes");
        out
    }

    /// Reads exactly the 1,168 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes, "pack header: too short");
        if r.array()? != MAGIC {
            return Err(FormatError::Malformed("pack header: magic"));
        }
        let kind = PackKind::from_u8(r.u8()?)?;
        let cipher = Cipher::from_u8(r.u8()?)?;
        // FORMAT GEN-4
        if r.array()? != [0u8; VAULT_ID_OFFSET - RESERVED_OFFSET] {
            return Err(FormatError::Malformed("GEN-4: pack header: reserved bytes"));
        }
        let vault_id = VaultId(r.array()?);
        let uid = PackUid(r.array()?);
        let kem_ciphertext = r.bytes(KEM_CIPHERTEXT_LEN)?.to_vec();
        r.finish()?;
        Ok(PackHeader { kind, cipher, vault_id, uid, kem_ciphertext })
    }
}

/// How a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// One LZ4 block.
    Lz4 = 1,
    /// One zstd frame.
    Zstd = 2,
}

/// One stored block of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockDesc {
    /// How it is stored.
    pub codec: Codec,
    /// Its stored bytes, without the tag.
    pub body_len: u32,
}

impl BlockDesc {
    const LEN_BITS: u32 = 30;
    const LEN_MASK: u32 = (1 << Self::LEN_BITS) - 1;

    /// Returns the codec in the top 2 bits and the body length in the others.
    ///
    /// # Panics
    ///
    /// If the length needs more than 30 bits; a body has at most [`BLOCK_LEN`] bytes.
    #[must_use]
    pub fn to_u32(self) -> u32 {
        assert!(self.body_len <= Self::LEN_MASK, "a body has at most 131,072 bytes");
        (self.codec as u32) << Self::LEN_BITS | self.body_len
    }

    /// Reads what [`Self::to_u32`] returns.
    pub fn from_u32(n: u32) -> Result<Self, FormatError> {
        let codec = match n >> Self::LEN_BITS {
            0 => Codec::Raw,
            1 => Codec::Lz4,
            2 => Codec::Zstd,
            _ => return Err(FormatError::Malformed("PACK-4: codec 3")),
        };
        Ok(BlockDesc { codec, body_len: n & Self::LEN_MASK })
    }

    /// Checks the stored length against the length of the block's plaintext.
    pub fn check(self, plain_len: u32) -> Result<(), FormatError> {
        // FORMAT PACK-4
        let fits = match self.codec {
            Codec::Raw => self.body_len == plain_len,
            // No compressed form has no bytes.
            Codec::Lz4 | Codec::Zstd => (1..=plain_len).contains(&self.body_len),
        };
        if fits && plain_len as usize <= BLOCK_LEN {
            Ok(())
        } else {
            Err(FormatError::Malformed("PACK-4: length of a stored block"))
        }
    }
}

/// Where a chunk stands in its pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkDesc {
    /// The chunk's name.
    pub id: ChunkId,
    /// Of its first frame, from the start of the file, in bytes.
    pub offset: u32,
    /// Its blocks have this frame number and those that follow.
    pub first_frame: u32,
    /// Length of its plaintext in bytes, 1 to [`CHUNK_MAX`].
    pub plain_len: u32,
    /// Its blocks, in order; as many as [`block_count`] says.
    pub blocks: Vec<BlockDesc>,
}

impl ChunkDesc {
    /// Returns the bytes that its frames take in the file, with their tags.
    #[must_use]
    pub fn stored_len(&self) -> u64 {
        self.blocks.iter().map(|b| u64::from(b.body_len) + FRAME_TAG_LEN as u64).sum()
    }

    /// Returns the offset behind its last frame.
    #[must_use]
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + self.stored_len()
    }
}

/// The list of a pack's chunks, in file order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Footer {
    /// In file order, without gaps.
    pub chunks: Vec<ChunkDesc>,
}

impl Footer {
    /// Returns the plaintext of the footer. The chunks are not checked: a writer has just written them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let blocks: usize = self.chunks.iter().map(|c| c.blocks.len()).sum();
        let mut out = Vec::with_capacity(4 + self.chunks.len() * CHUNK_DESC_LEN + blocks * 4);
        put_count_u32(&mut out, self.chunks.len()).expect("a pack of 1 GiB has less than 2^32 chunks");
        for chunk in &self.chunks {
            out.extend_from_slice(chunk.id.as_bytes());
            for n in [chunk.offset, chunk.first_frame, chunk.plain_len] {
                out.extend_from_slice(&n.to_le_bytes());
            }
            for block in &chunk.blocks {
                out.extend_from_slice(&block.to_u32().to_le_bytes());
            }
        }
        out
    }

    /// Reads the plaintext of the footer that stands at `footer_offset` of its pack.
    ///
    /// The chunks of an accepted footer cover the file from the header to the footer, without a gap, and no
    /// two share a frame number.
    pub fn parse(bytes: &[u8], footer_offset: u64) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes, "pack footer: too short");
        let count = r.count_u32(CHUNK_DESC_LEN + 4)?;
        let mut chunks = Vec::with_capacity(count.min(RESERVE_MAX));
        let mut end = PACK_HEADER_LEN as u64;
        for _ in 0..count {
            let chunk = parse_chunk(&mut r)?;
            // FORMAT PACK-2
            if u64::from(chunk.offset) != end {
                return Err(FormatError::Malformed("PACK-2: chunks are not back to back"));
            }
            end = chunk.end();
            chunks.push(chunk);
        }
        r.finish()?;
        if end != footer_offset {
            return Err(FormatError::Malformed("PACK-2: the footer does not follow the last chunk"));
        }
        let footer = Footer { chunks };
        footer.check_frames()?;
        Ok(footer)
    }

    /// Checks that no two chunks share a frame number: two frames under one nonce would undo the cipher.
    fn check_frames(&self) -> Result<(), FormatError> {
        // FORMAT PACK-3
        let range =
            |c: &ChunkDesc| (u64::from(c.first_frame), u64::from(c.first_frame) + c.blocks.len() as u64);
        let apart = |pair: &[(u64, u64)]| pair[0].1 <= pair[1].0;
        let mut ranges: Vec<_> = self.chunks.iter().map(range).collect();
        // Writers count upwards, so there is next to nothing to sort.
        ranges.sort_unstable();
        if ranges.windows(2).all(apart) {
            Ok(())
        } else {
            Err(FormatError::Malformed("PACK-3: a frame number is used twice"))
        }
    }
}

fn parse_chunk(r: &mut Reader<'_>) -> Result<ChunkDesc, FormatError> {
    let id = ChunkId(r.array()?);
    let (offset, first_frame, plain_len) = (r.u32()?, r.u32()?, r.u32()?);
    if !(1..=CHUNK_MAX as u32).contains(&plain_len) {
        return Err(FormatError::Malformed("length of a chunk"));
    }
    let count = block_count(plain_len);
    // At most 64: a chunk has at most 8 MiB.
    let mut blocks = Vec::with_capacity(count as usize);
    for i in 0..count {
        let block = BlockDesc::from_u32(r.u32()?)?;
        block.check(block_plain_len(plain_len, i))?;
        blocks.push(block);
    }
    Ok(ChunkDesc { id, offset, first_frame, plain_len, blocks })
}

/// The last bytes of a pack: where its footer is, and how long the file has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Of the sealed footer, from the start of the file, in bytes.
    pub footer_offset: u64,
    /// Length of the sealed footer in bytes.
    pub footer_len: u32,
    /// Chunks in the pack.
    pub chunk_count: u32,
    /// Length of the whole file in bytes.
    pub file_len: u64,
}

impl Trailer {
    /// Length of the plaintext in bytes.
    pub const PLAIN_LEN: usize = 24;

    /// Returns the 24 plaintext bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::PLAIN_LEN] {
        let mut out = [0; Self::PLAIN_LEN];
        out[..8].copy_from_slice(&self.footer_offset.to_le_bytes());
        out[8..12].copy_from_slice(&self.footer_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.chunk_count.to_le_bytes());
        out[16..].copy_from_slice(&self.file_len.to_le_bytes());
        out
    }

    /// Reads the 24 plaintext bytes and checks that its parts fit each other. The caller compares `file_len`
    /// with the length that the file has: [`Self::check_file_len`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes, "pack trailer: too short");
        let trailer = Trailer {
            footer_offset: r.u64()?,
            footer_len: r.u32()?,
            chunk_count: r.u32()?,
            file_len: r.u64()?,
        };
        r.finish()?;
        // FORMAT PACK-1
        if trailer.file_len > PACK_LEN_MAX {
            return Err(FormatError::Limit("PACK-1: a pack has at most 1 GiB"));
        }
        if trailer.footer_offset < PACK_HEADER_LEN as u64 {
            return Err(FormatError::Malformed("PACK-1: the footer begins inside of the header"));
        }
        let footer_end = trailer.footer_offset.checked_add(u64::from(trailer.footer_len));
        let end = footer_end.and_then(|end| end.checked_add(TRAILER_LEN as u64));
        if end.is_none_or(|end| end > trailer.file_len) {
            return Err(FormatError::Malformed("PACK-1: the footer ends behind the trailer's start"));
        }
        Ok(trailer)
    }

    /// Checks that the file has the length that the trailer names.
    pub fn check_file_len(&self, actual: u64) -> Result<(), FormatError> {
        // FORMAT PACK-1
        if self.file_len == actual {
            Ok(())
        } else {
            Err(FormatError::Malformed("PACK-1: the file length is not the trailer's"))
        }
    }

    /// Returns the offset of the padding, which goes on to the trailer.
    #[must_use]
    pub fn padding_offset(&self) -> u64 {
        self.footer_offset + u64::from(self.footer_len)
    }

    /// Returns the length of the padding in bytes.
    #[must_use]
    pub fn padding_len(&self) -> u64 {
        self.file_len - self.padding_offset() - TRAILER_LEN as u64
    }
}

/// Returns the length that a pack of `len` bytes (with footer and trailer) is padded to: its Padme length,
/// rounded up to 4,096 bytes. Padme hides all but O(log log len) bits of a length and adds at most 12 %.
#[must_use]
pub fn padded_len(len: u64) -> u64 {
    // FORMAT PACK-8
    let padme = match len.checked_ilog2() {
        // 0 and 1 have no shorter description.
        None | Some(0) => len,
        Some(exponent) => {
            let mantissa_bits = exponent.ilog2() + 1;
            let mask = (1u64 << (exponent - mantissa_bits)) - 1;
            len.checked_add(mask).map_or(len, |sum| sum & !mask)
        }
    };
    padme.checked_next_multiple_of(PACK_ALIGN).unwrap_or(padme)
}

/// Returns how many blocks a chunk of `plain_len` bytes has.
#[must_use]
pub fn block_count(plain_len: u32) -> u32 {
    plain_len.div_ceil(BLOCK_LEN as u32)
}

/// Returns the plaintext length of block number `block` of a chunk of `plain_len` bytes; 0 behind the last.
#[must_use]
pub fn block_plain_len(plain_len: u32, block: u32) -> u32 {
    let before = u64::from(block) * BLOCK_LEN as u64;
    // At most BLOCK_LEN, so it fits.
    u64::from(plain_len).saturating_sub(before).min(BLOCK_LEN as u64) as u32
}

/// Returns what a frame's seal is bound to.
#[expect(clippy::too_many_arguments, reason = "the fields of the format's table, in its order")]
#[must_use]
pub fn frame_aad(
    vault: &VaultId,
    uid: &PackUid,
    frame: u64,
    id: &ChunkId,
    block: u32,
    last: bool,
    codec: Codec,
    plain_len: u32,
    body_len: u32,
) -> [u8; FRAME_AAD_LEN] {
    let mut aad = [0; FRAME_AAD_LEN];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        aad[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(FRAME_DOMAIN);
    put(vault.as_bytes());
    put(uid.as_bytes());
    put(&frame.to_le_bytes());
    put(id.as_bytes());
    put(&block.to_le_bytes());
    put(&[u8::from(last), codec as u8]);
    put(&plain_len.to_le_bytes());
    put(&body_len.to_le_bytes());
    aad
}

/// Returns the path of a pack in its vault: `packs/ab/ab34...`.
#[must_use]
pub fn pack_path(name: &PackName) -> String {
    let hex = name.to_hex();
    format!("packs/{}/{hex}", &hex[..2])
}

/// Reads exactly what [`pack_path`] writes.
#[must_use]
pub fn parse_pack_path(path: &str) -> Option<PackName> {
    // FORMAT LAY-2
    let (dir, file) = path.strip_prefix("packs/")?.split_once('/')?;
    let name = PackName(hex_array(file)?);
    (dir.len() == 2 && file.starts_with(dir)).then_some(name)
}

#[cfg(test)]
mod tests;
