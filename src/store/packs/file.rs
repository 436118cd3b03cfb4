//! One pack file: opening it, its footer, its frames.
//!
//! What is believed of a pack, and why. Anyone who knows the vault's public key (it stands in the header) can
//! make a pack whose frames and footer authenticate, since the pack key is drawn by the writer. So an
//! authentic frame alone proves nothing; one of these must hold besides:
//!
//! - the pack is *proven*: its header is the one that we wrote, or that stands in a file which was found to
//!   have the name that a signed chain file gave (LAY-1). The header decides the pack key, which nobody else
//!   knows. Then any block can be read by itself;
//! - or the whole chunk was read and its id recomputed (PACK-5): ids need a key that only the vault's owner
//!   has.
//!
//! The same holds before new data may be left out because a chunk of its id is said to be there: a pack is proven at
//! its first hit ([`super::Core::is_believed`]). Packs come to us in two ways: we write them, or a signed chain file of
//! a key holder names them. Others are never taken in, so the name that a file is compared with is never one that a
//! meddler chose.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::codec;
use super::super::error::{Result, StoreError};
use crate::crypto::{PackKey, VaultKeys};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::format::pack::PACK_LEN_MAX;
use crate::format::{
    BLOCK_LEN, ChunkDesc, ChunkId, FRAME_TAG_LEN, Footer, PACK_HEADER_LEN, PackHeader, PackKind, PackName,
    TRAILER_LEN, Trailer, block_plain_len,
};

/// A pack that can be read.
pub(crate) struct PackFile {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) key: Arc<PackKey>,
    pub(crate) kind: PackKind,
    /// See the module's text.
    pub(crate) proven: bool,
    /// What errors call it: its path.
    pub(crate) label: String,
    /// Stored bytes that had to be read as whole chunks because it is not proven.
    pub(crate) read_whole: AtomicU64,
}

/// The first bytes of a pack.
pub(crate) struct HeaderRead {
    pub(crate) header: PackHeader,
    /// H(header).
    pub(crate) hash: [u8; 32],
}

/// What hashing a whole file gave.
pub(crate) struct FileHash {
    /// The name that the file has to have. FORMAT LAY-1
    pub(crate) name: PackName,
    /// H(the clear header).
    pub(crate) header: [u8; 32],
}

/// Opens a pack's file; a missing one is damage, and is named.
pub(crate) fn open_file(disk: &dyn Disk, path: &str, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
    disk.open(path, mode).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => StoreError::Corrupt(format!("{path} is missing")),
        // Not a regular file, or of a length that no pack has; the text names it.
        io::ErrorKind::InvalidData => StoreError::Corrupt(e.to_string()),
        _ => StoreError::io(format!("open {path}"), e),
    })
}

/// Reads and checks the clear header.
pub(crate) fn read_header(file: &dyn DiskFile, path: &str) -> Result<HeaderRead> {
    let mut bytes = [0; PACK_HEADER_LEN];
    read_exact(file, &mut bytes, 0, path)?;
    let header = PackHeader::parse(&bytes).map_err(|e| damaged(path, &e))?;
    Ok(HeaderRead { header, hash: *blake3::hash(&bytes).as_bytes() })
}

/// Unseals the pack key. The header must belong to this vault.
pub(crate) fn pack_key(keys: &VaultKeys, header: &PackHeader, path: &str) -> Result<Arc<PackKey>> {
    keys.open_pack(header).map(Arc::new).map_err(|e| damaged(path, &e))
}

/// Reads exactly `buf.len()` bytes; a file that ends before that was truncated.
pub(crate) fn read_exact(file: &dyn DiskFile, buf: &mut [u8], off: u64, path: &str) -> Result<()> {
    file.read_exact_at(buf, off).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => StoreError::Corrupt(format!("{path} is too short")),
        // Of a pack at a remote: gone since it was listed, or shorter than the listing said.
        io::ErrorKind::NotFound => StoreError::Corrupt(format!("{path} is missing")),
        io::ErrorKind::InvalidData => StoreError::Corrupt(format!("{path}: {e}")),
        _ => StoreError::io(format!("read {path}"), e),
    })
}

/// Names the file that does not authenticate or is malformed.
pub(crate) fn damaged(path: &str, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{path}: {why}"))
}

thread_local! {
    /// Sealed bytes on their way from the disk.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// A block on its way out of the decompressor.
    static BLOCK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl PackFile {
    /// Reads trailer and footer of a closed pack. Padding is not looked at: it has no meaning, and the pack's
    /// name covers it.
    pub(crate) fn read_footer(&self) -> Result<(Footer, Trailer)> {
        let path = &self.label;
        let len = self.file.len().map_err(|e| StoreError::io(format!("length of {path}"), e))?;
        // FORMAT PACK-1
        if len < (PACK_HEADER_LEN + TRAILER_LEN) as u64 || len > PACK_LEN_MAX {
            return Err(damaged(path, &"PACK-1: a pack can't have this length"));
        }
        let mut sealed = [0; TRAILER_LEN];
        read_exact(&*self.file, &mut sealed, len - TRAILER_LEN as u64, path)?;
        let trailer = self.key.open_trailer(&sealed).map_err(|e| damaged(path, &e))?;
        trailer.check_file_len(len).map_err(|e| damaged(path, &e))?;
        // The trailer has been checked to stay within the file, which has at most 1 GiB.
        let mut sealed = vec![0; trailer.footer_len as usize];
        read_exact(&*self.file, &mut sealed, trailer.footer_offset, path)?;
        let plain = self.key.open_footer(&sealed).map_err(|e| damaged(path, &e))?;
        let footer = Footer::parse(&plain, trailer.footer_offset).map_err(|e| damaged(path, &e))?;
        if footer.chunks.len() != trailer.chunk_count as usize {
            return Err(damaged(path, &"trailer and footer don't agree on the number of chunks"));
        }
        Ok((footer, trailer))
    }

    /// Reads the blocks `first..=last` of a chunk with one read, opens them, and hands each to `sink` with
    /// its number. Nothing reaches `sink` that did not authenticate.
    pub(crate) fn read_blocks(
        &self,
        desc: &ChunkDesc,
        first: u32,
        last: u32,
        sink: &mut dyn FnMut(u32, &[u8]),
    ) -> Result<()> {
        let frame_len = |b: u32| desc.blocks[b as usize].body_len as usize + FRAME_TAG_LEN;
        let before: u64 = (0..first).map(|b| frame_len(b) as u64).sum();
        let total: usize = (first..=last).map(frame_len).sum();
        let mut sealed = SEALED.take();
        sealed.resize(total, 0);
        let offset = u64::from(desc.offset) + before;
        let mut done = read_exact(&*self.file, &mut sealed, offset, &self.label);
        let mut rest = &mut sealed[..];
        for b in first..=last {
            if done.is_err() {
                break;
            }
            let (frame, tail) = rest.split_at_mut(frame_len(b));
            rest = tail;
            done = self.open_block(desc, b, frame, sink);
        }
        SEALED.set(sealed);
        done
    }

    /// Opens one frame in place and decompresses it.
    fn open_block(
        &self,
        desc: &ChunkDesc,
        b: u32,
        frame: &mut [u8],
        sink: &mut dyn FnMut(u32, &[u8]),
    ) -> Result<()> {
        let plain_len = block_plain_len(desc.plain_len, b);
        let len = self.open_body(desc, b, frame)?;
        let block = desc.blocks[b as usize];
        if block.codec == crate::format::Codec::Raw && len == plain_len as usize {
            sink(b, &frame[..len]);
            return Ok(());
        }
        // At most BLOCK_LEN, whatever the frame says. FORMAT PACK-4
        let mut plain = BLOCK.take();
        plain.resize(BLOCK_LEN, 0);
        let out = &mut plain[..plain_len as usize];
        let done = codec::decode(block.codec, &frame[..len], out);
        if done.is_ok() {
            sink(b, out);
        }
        BLOCK.set(plain);
        done.map_err(|e| self.bad_block(&desc.id, b, &e))
    }

    /// Opens one frame in place, without decompressing it; returns the length of the body.
    pub(crate) fn open_body(&self, desc: &ChunkDesc, b: u32, frame: &mut [u8]) -> Result<usize> {
        let last = b as usize + 1 == desc.blocks.len();
        let number = u64::from(desc.first_frame) + u64::from(b);
        let plain_len = block_plain_len(desc.plain_len, b);
        let codec = desc.blocks[b as usize].codec;
        self.key
            .open_frame(number, &desc.id, b, last, codec, plain_len, frame)
            .map_err(|e| self.bad_block(&desc.id, b, &e))
    }

    fn bad_block(&self, id: &ChunkId, block: u32, why: &dyn std::fmt::Display) -> StoreError {
        StoreError::Corrupt(format!("{}: chunk {id}, block {block}: {why}", self.label))
    }

    /// Reads a whole chunk and recomputes its id.
    pub(crate) fn read_chunk_verified(&self, keys: &VaultKeys, desc: &ChunkDesc) -> Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(desc.plain_len as usize);
        self.read_chunk_into(keys, desc, &mut plain)?;
        Ok(plain)
    }

    /// Replaces what `plain` holds by a whole chunk, and recomputes its id.
    pub(crate) fn read_chunk_into(
        &self,
        keys: &VaultKeys,
        desc: &ChunkDesc,
        plain: &mut Vec<u8>,
    ) -> Result<()> {
        self.read_whole.fetch_add(desc.stored_len(), Ordering::Relaxed);
        plain.clear();
        let last = desc.blocks.len().saturating_sub(1) as u32;
        self.read_blocks(desc, 0, last, &mut |_, block| plain.extend_from_slice(block))?;
        self.check_id(keys, desc, plain)
    }

    /// Refuses chunks that are asked for as one kind and stand among those of the other.
    pub(crate) fn check_kind(&self, kind: PackKind, desc: &ChunkDesc) -> Result<()> {
        // FORMAT PACK-6
        match self.kind == kind {
            true => Ok(()),
            false => {
                let text = format!("chunk {} stands in a pack of the other kind", desc.id);
                Err(damaged(&self.label, &text))
            }
        }
    }

    /// Recomputes the id of a chunk of which everything has been read.
    pub(crate) fn check_id(&self, keys: &VaultKeys, desc: &ChunkDesc, plain: &[u8]) -> Result<()> {
        // FORMAT PACK-5
        if keys.chunk_id(self.kind, plain) != desc.id {
            return Err(damaged(
                &self.label,
                &format_args!("chunk {} has not the content of its id", desc.id),
            ));
        }
        Ok(())
    }

    /// Returns H of the file's first `len` bytes, and H of the header as it is in those same bytes.
    pub(crate) fn hash(&self, len: u64) -> Result<FileHash> {
        const STEP: u64 = 1 << 20;
        let mut hasher = blake3::Hasher::new();
        let mut header = [0; 32];
        let mut buf = vec![0; STEP.min(len) as usize];
        let mut at = 0;
        while at < len {
            let n = STEP.min(len - at) as usize;
            read_exact(&*self.file, &mut buf[..n], at, &self.label)?;
            if at == 0 {
                header = *blake3::hash(&buf[..n.min(PACK_HEADER_LEN)]).as_bytes();
            }
            hasher.update(&buf[..n]);
            at += n as u64;
        }
        Ok(FileHash { name: PackName(*hasher.finalize().as_bytes()), header })
    }
}
