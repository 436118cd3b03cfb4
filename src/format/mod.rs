//! Every byte that outlives the process: how it is written, how it is read, and its limits.
//!
//! This is format 1 as `docs/format.md` has it; comments cite its rules (`FORMAT HDR-1`). The module is pure:
//! no files, no keys, no clock. Decoders are total: hostile bytes give an error, never a panic, and never an
//! allocation that the input's own length does not justify.
//!
//! Every structure has one encoding. What a decoder accepts, encodes to the same bytes again.

pub mod chain;
pub mod fuzz;
pub mod header;
pub mod ids;
pub mod pack;
pub mod tree;
pub mod wire;

#[cfg(test)]
pub(crate) mod samples;

pub use chain::{
    ChainFile, Origin, PackList, PublicPart, RemovedFile, RootInfo, SealedPart, SignedDigest, Signer,
};
pub use header::{ChunkerParams, Cipher, Header, ParsedHeader, Slot, SlotKdf, SlotKind};
pub use ids::{ChunkId, PackName, PackUid, SnapshotId, VaultId};
pub use pack::{
    BLOCK_LEN, CHUNK_MAX, FRAME_AAD_LEN, FRAME_TAG_LEN, PACK_HEADER_LEN, TRAILER_LEN, block_count,
    block_plain_len, frame_aad, padded_len,
};
pub use pack::{BlockDesc, ChunkDesc, Codec, Footer, PackHeader, PackKind, Trailer};
pub use tree::{Content, Entry, Extent, FileType, TreeObject};

/// Why bytes are not what they should be. The text names the rule of `docs/format.md` where one applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes break a rule of the format: no correct writer made them, or they were changed.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The vault was made by a later format. This program has to leave it alone.
    #[error("format {version} is newer than this program, which knows format 1")]
    Newer {
        /// The version that the header names.
        version: u64,
    },
    /// The file is no vault header at all.
    #[error("not a Strongroom vault")]
    NotAVault,
    /// A checksum says that the bytes are not the ones that were written.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// A size is beyond what the format allows. Nothing was read or allocated for it.
    #[error("over a limit: {0}")]
    Limit(&'static str),
}
