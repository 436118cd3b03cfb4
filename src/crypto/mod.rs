//! Keys, and everything that is done with them. The only module that names cipher crates.
//!
//! Every function fails closed: where a check does not hold there is an error and no result. Secrets are
//! opaque types without `Debug`, `Clone` or serialisation, and are wiped when they are dropped.
//!
//! In comments, `XCC[key](plaintext)` is XChaCha20-Poly1305 with a random nonce in front of its output.

pub mod keys;
pub mod live;
pub mod pack;
pub mod process;
pub mod recovery;
pub mod secret;
pub mod slots;
mod xcc;

pub use keys::{VaultKeys, verify_chain_file};
pub use live::{LIVE_BLOCK_LEN, LIVE_BLOCK_SEALED_LEN, LiveKeys};
pub use pack::PackKey;
pub use process::harden_process;
pub use recovery::RecoveryKey;
pub use secret::{RootSecret, Secret, SecretBytes};
pub use slots::{
    Argon2Cost, Budget, Claim, Credential, Newest, add_slot, check_header, header_mac, new_header, unlock,
    unlock_newest,
};

use crate::format::{FormatError, SlotKind};

/// Why something could not be unlocked, opened or verified.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// No slot of the right kind opens with this key. The slot may also have been altered: the two look the
    /// same.
    #[error("wrong key: it opens no {} slot of this vault", .0.as_str())]
    WrongKey(SlotKind),
    /// The header has no slot that this kind of key could open.
    #[error("the vault has no {} slot", .0.as_str())]
    NoSlot(SlotKind),
    /// The header already has 32 slots.
    #[error("the vault has as many key slots as a header can hold (32)")]
    SlotsFull,
    /// The bytes are not the ones that a holder of the key sealed or signed.
    #[error("tampered or damaged: {0}")]
    Tampered(&'static str),
    /// What was given can't be a key at all.
    #[error("not usable as a key: {0}")]
    BadKeyMaterial(&'static str),
    /// A recovery key whose check digits don't fit: it was mistyped. It has not been tried.
    #[error("the recovery key is mistyped: its check digits do not fit")]
    Mistyped,
    /// The passphrase could not be turned into a key, for want of memory for example.
    #[error("passphrase: {0}")]
    Kdf(String),
    /// A caller asked for something that the format can't express. Nothing was sealed.
    #[error("can't seal: {0}")]
    Seal(&'static str),
    /// The bytes don't have the form that the format asks for.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// Contexts of every key derivation of format 1. Two purposes never share one.
pub mod context {
    /// Key of the header MAC.
    pub const HEADER_MAC: &str = "strongroom 2026 v1 header mac";
    /// Key of the ids of data chunks.
    pub const DATA_ID: &str = "strongroom 2026 v1 data chunk id";
    /// Key of the ids of tree objects.
    pub const TREE_ID: &str = "strongroom 2026 v1 tree chunk id";
    /// Seed of the X-Wing decapsulation key.
    pub const KEM_SEED: &str = "strongroom 2026 v1 kem seed";
    /// Seed of the owner's Ed25519 key.
    pub const SIGNING: &str = "strongroom 2026 v1 snapshot signing";
    /// Seed of the ingest role's Ed25519 key.
    pub const INGEST_SIGNING: &str = "strongroom 2026 v1 ingest signing";
    /// Reserved for hosts that only write.
    pub const DEDUP_INDEX: &str = "strongroom 2026 v1 dedup index";
    /// Key of the blocks of the live database.
    pub const LIVE_BLOCKS: &str = "strongroom 2026 v1 live blocks";
    /// Key of the records of the journal.
    pub const JOURNAL: &str = "strongroom 2026 v1 journal";
    /// Seed of the chunker's gear table.
    pub const CHUNKER: &str = "strongroom 2026 v1 chunker";
    /// Key of a keyfile slot.
    pub const KEYFILE_SLOT: &str = "strongroom 2026 v1 keyfile slot";
    /// Key of a recovery slot.
    pub const RECOVERY_SLOT: &str = "strongroom 2026 v1 recovery slot";
    /// Key of one pack.
    pub const PACK_KEY: &str = "strongroom 2026 v1 pack key";
    /// Key of a pack's footer and trailer.
    pub const PACK_FOOTER: &str = "strongroom 2026 v1 pack footer";
    /// Key of a pack's padding.
    pub const PACK_PADDING: &str = "strongroom 2026 v1 pack padding";
    /// Key of a chain file's sealed part.
    pub const SNAPSHOT_KEY: &str = "strongroom 2026 v1 snapshot key";
}
