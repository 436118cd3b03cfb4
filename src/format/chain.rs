//! Chain files: snapshots and removals. Each has a public part, signed and readable without any key, and a
//! sealed part.
//!
//! ```text
//! 0     8     magic "SRSNAP" 00 01
//! 8     1     kind
//! 9     1     signer
//! 10    2     reserved
//! 12    4     P
//! 16    P     public part
//!       1120  X-Wing ciphertext
//!       24    nonce
//!       4     S
//!       S     sealed part
//!       64    Ed25519 signature
//! ```

use std::collections::BTreeSet;

use super::FormatError;
use super::ids::{PackName, SnapshotId, VaultId, hex_array};
use super::pack::KEM_CIPHERTEXT_LEN;
use super::tree::Entry;
use super::wire::{RESERVE_MAX, Reader, put_count_u32, put_var_bytes, put_varint};
use crate::env::{NANOS_PER_SEC, Time};

/// The largest chain file, in bytes.
pub const CHAIN_FILE_LEN_MAX: usize = 64 << 20;
/// Sequences are below this.
pub const SEQUENCE_END: u64 = 10_000_000_000;
/// A file whose sequence is a multiple of this has a full pack list.
pub const FULL_LIST_EVERY: u64 = 64;
/// Tags of a snapshot.
pub const TAGS_MAX: usize = 64;
/// The longest host, tag or program, in bytes.
pub const STRING_LEN_MAX: usize = 1024;

const MAGIC: [u8; 8] = *b"SRSNAP\x00\x01";
const PUBLIC_OFFSET: usize = 16;
const NONCE_LEN: usize = 24;
const SIGNATURE_LEN: usize = 64;
const KIND_SNAPSHOT: u8 = 1;
const KIND_REMOVAL: u8 = 2;
const SIGN_DOMAIN: &[u8; 22] = b"strongroom v1 snapshot";
const SEALED_VERSION: u16 = 1;
/// The sealed plaintext is padded to a multiple of this.
const SEALED_ALIGN: usize = 256;
/// The tag of the sealed part.
const TAG_LEN: usize = 16;

fn require(condition: bool, what: &'static str) -> Result<(), FormatError> {
    if condition { Ok(()) } else { Err(FormatError::Malformed(what)) }
}

/// Where a chain file came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// It is a removal.
    Removal = 0,
    /// A snapshot of the working tree.
    WorkingTree = 1,
    /// A snapshot of a tree that was read from elsewhere.
    Import = 2,
}

impl Origin {
    fn from_u8(n: u8) -> Result<Self, FormatError> {
        match n {
            0 => Ok(Origin::Removal),
            1 => Ok(Origin::WorkingTree),
            2 => Ok(Origin::Import),
            _ => Err(FormatError::Malformed("unknown origin")),
        }
    }

    fn kind(self) -> u8 {
        match self {
            Origin::Removal => KIND_REMOVAL,
            Origin::WorkingTree | Origin::Import => KIND_SNAPSHOT,
        }
    }
}

/// Whose key signed a chain file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signer {
    /// The owner, who holds the root secret.
    Owner = 0,
    /// A host that may only add.
    Ingest = 1,
}

impl Signer {
    fn from_u8(n: u8) -> Result<Self, FormatError> {
        match n {
            0 => Ok(Signer::Owner),
            1 => Ok(Signer::Ingest),
            _ => Err(FormatError::Malformed("unknown signer")),
        }
    }
}

/// What a chain file does to the running list of packs.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PackList {
    /// `added` is the whole list; otherwise `added` and `dropped` change the predecessor's.
    pub full: bool,
    /// Strictly ascending.
    pub added: Vec<PackName>,
    /// Strictly ascending; empty if `full`.
    pub dropped: Vec<PackName>,
}

impl PackList {
    /// Says whether the file with this sequence has to carry a full list.
    #[must_use]
    pub fn must_be_full(seq: u64) -> bool {
        // FORMAT SNAP-7
        seq <= 1 || seq.is_multiple_of(FULL_LIST_EVERY)
    }

    /// Turns the predecessor's running list into this file's. On error the list is left as it was.
    pub fn apply(&self, running: &mut BTreeSet<PackName>) -> Result<(), FormatError> {
        // FORMAT SNAP-7
        if self.full {
            *running = self.added.iter().copied().collect();
            return Ok(());
        }
        require(
            self.dropped.iter().all(|p| running.contains(p)),
            "SNAP-7: drops a pack that is not in the list",
        )?;
        require(!self.added.iter().any(|p| running.contains(p)), "SNAP-7: adds a pack that is in the list")?;
        for pack in &self.dropped {
            running.remove(pack);
        }
        running.extend(self.added.iter().copied());
        Ok(())
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), FormatError> {
        self.check()?;
        out.push(u8::from(!self.full));
        put_names(out, &self.added)?;
        put_names(out, &self.dropped)
    }

    fn parse(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let full = match r.u8()? {
            0 => true,
            1 => false,
            _ => return Err(FormatError::Malformed("unknown mode of a pack list")),
        };
        let list = PackList { full, added: parse_names(r)?, dropped: parse_names(r)? };
        list.check()?;
        Ok(list)
    }

    fn check(&self) -> Result<(), FormatError> {
        let ascend = |names: &[PackName]| names.windows(2).all(|pair| pair[0] < pair[1]);
        require(ascend(&self.added) && ascend(&self.dropped), "a pack list is not sorted or repeats a name")?;
        require(!self.full || self.dropped.is_empty(), "a full pack list drops packs")
    }
}

fn put_names(out: &mut Vec<u8>, names: &[PackName]) -> Result<(), FormatError> {
    put_count_u32(out, names.len())?;
    for name in names {
        out.extend_from_slice(name.as_bytes());
    }
    Ok(())
}

fn parse_names(r: &mut Reader<'_>) -> Result<Vec<PackName>, FormatError> {
    let count = r.count_u32(PackName::LEN)?;
    // A name takes as much memory as it takes input.
    let mut names = Vec::with_capacity(count);
    for _ in 0..count {
        names.push(PackName(r.array()?));
    }
    Ok(names)
}

/// What a removal keeps of a chain file that it removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedFile {
    /// The file's sequence.
    pub seq: u64,
    /// The file's id.
    pub id: SnapshotId,
    /// The file's predecessor; zeros if it was the first.
    pub predecessor: SnapshotId,
    /// The file's own pack list.
    pub packs: PackList,
}

impl RemovedFile {
    /// Sequence, id, predecessor, an empty pack list.
    const LEN_MIN: usize = 8 + 32 + 32 + 1 + 4 + 4;

    fn put(&self, out: &mut Vec<u8>) -> Result<(), FormatError> {
        self.check()?;
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(self.predecessor.as_bytes());
        self.packs.put(out)
    }

    fn parse(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (seq, id, predecessor) = (r.u64()?, SnapshotId(r.array()?), SnapshotId(r.array()?));
        let removed = RemovedFile { seq, id, predecessor, packs: PackList::parse(r)? };
        removed.check()?;
        Ok(removed)
    }

    fn check(&self) -> Result<(), FormatError> {
        check_sequence(self.seq)?;
        // FORMAT SNAP-7
        require(self.seq > 1 || self.packs.full, "SNAP-7: the first file has no full pack list")
    }
}

fn check_sequence(seq: u64) -> Result<(), FormatError> {
    require((1..SEQUENCE_END).contains(&seq), "a sequence is 1 to 9,999,999,999")
}

/// What anyone may read of a chain file, with the vault's public keys alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicPart {
    /// The vault that the file belongs to.
    pub vault_id: VaultId,
    /// From 1, one more for each file of the chain.
    pub seq: u64,
    /// The file before it; `None` for the first.
    pub predecessor: Option<SnapshotId>,
    /// When it was made.
    pub time: Time,
    /// What it is.
    pub origin: Origin,
    /// What it does to the running list.
    pub packs: PackList,
    /// Removals only: the chain files that are gone on purpose.
    pub removed: Vec<RemovedFile>,
    /// Removals only: packs that no remaining snapshot needs.
    pub retired: Vec<PackName>,
    /// Removals only: packs that hold what was still needed of the retired.
    pub replacements: Vec<PackName>,
}

const NO_PREDECESSOR: [u8; 32] = [0; 32];

impl PublicPart {
    /// Returns the part's bytes, after checking that a reader would take them.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut out = Vec::new();
        out.extend_from_slice(self.vault_id.as_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.predecessor.map_or(NO_PREDECESSOR, |id| id.0));
        out.extend_from_slice(&self.time.secs.to_le_bytes());
        out.extend_from_slice(&self.time.nanos.to_le_bytes());
        out.push(self.origin as u8);
        self.packs.put(&mut out)?;
        put_count_u32(&mut out, self.removed.len())?;
        for removed in &self.removed {
            removed.put(&mut out)?;
        }
        put_names(&mut out, &self.retired)?;
        put_names(&mut out, &self.replacements)?;
        Ok(out)
    }

    /// Reads the part. What it says is not to be believed before the file's signature was checked.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes, "chain file: the public part is too short");
        let (vault_id, seq) = (VaultId(r.array()?), r.u64()?);
        let predecessor = Some(r.array()?).filter(|id| *id != NO_PREDECESSOR).map(SnapshotId);
        let time = Time { secs: r.i64()?, nanos: r.u32()? };
        let origin = Origin::from_u8(r.u8()?)?;
        let packs = PackList::parse(&mut r)?;
        let count = r.count_u32(RemovedFile::LEN_MIN)?;
        let mut removed = Vec::with_capacity(count.min(RESERVE_MAX));
        for _ in 0..count {
            removed.push(RemovedFile::parse(&mut r)?);
        }
        let (retired, replacements) = (parse_names(&mut r)?, parse_names(&mut r)?);
        r.finish()?;
        let part =
            PublicPart { vault_id, seq, predecessor, time, origin, packs, removed, retired, replacements };
        part.check()?;
        Ok(part)
    }

    fn check(&self) -> Result<(), FormatError> {
        check_sequence(self.seq)?;
        // FORMAT SNAP-2
        let first = self.seq == 1;
        require(
            first == self.predecessor.is_none(),
            "SNAP-2: the first file, and no other, has no predecessor",
        )?;
        require(
            self.predecessor != Some(SnapshotId(NO_PREDECESSOR)),
            "SNAP-2: a predecessor of zeros is none",
        )?;
        require(self.time.nanos < NANOS_PER_SEC, "nanoseconds of a time")?;
        // FORMAT SNAP-7
        require(!first || self.packs.full, "SNAP-7: the first file has no full pack list")?;
        // FORMAT SNAP-5
        let bare = self.removed.is_empty() && self.retired.is_empty() && self.replacements.is_empty();
        require(bare || self.origin == Origin::Removal, "SNAP-5: a snapshot removes or retires")?;
        // FORMAT SNAP-1: a sequence occurs once, so a file removes earlier ones, and each of them once.
        let removed: BTreeSet<u64> = self.removed.iter().map(|file| file.seq).collect();
        let earlier = removed.last().is_none_or(|last| *last < self.seq);
        require(
            earlier && removed.len() == self.removed.len(),
            "SNAP-1: a removal of itself, of a later file, or of one file twice",
        )
    }
}

/// Counts and root of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootInfo {
    /// The root directory; its name is empty.
    pub entry: Entry,
    /// No inode of the tree has this number or a higher one.
    pub next_ino: u64,
    /// Files in the tree.
    pub files: u64,
    /// Directories in the tree.
    pub dirs: u64,
    /// Everything else in the tree.
    pub others: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// What only who can unlock the vault may read of a chain file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedPart {
    /// The host that made it.
    pub host: String,
    /// Names that the user gave.
    pub tags: Vec<String>,
    /// The program that made it, with its version.
    pub program: String,
    /// Snapshots have a root, removals have none.
    pub root: Option<RootInfo>,
}

impl SealedPart {
    /// Returns the plaintext, padded with zeros to a multiple of 256 bytes.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        // FORMAT SNAP-6
        require(self.tags.len() <= TAGS_MAX, "SNAP-6: more than 64 tags")?;
        let mut out = SEALED_VERSION.to_le_bytes().to_vec();
        put_string(&mut out, &self.host)?;
        put_varint(&mut out, self.tags.len() as u64);
        for tag in &self.tags {
            put_string(&mut out, tag)?;
        }
        put_string(&mut out, &self.program)?;
        if let Some(root) = &self.root {
            root.entry.encode_root_into(&mut out)?;
            for n in [root.next_ino, root.files, root.dirs, root.others, root.bytes] {
                out.extend_from_slice(&n.to_le_bytes());
            }
        }
        out.resize(out.len().next_multiple_of(SEALED_ALIGN), 0);
        Ok(out)
    }

    /// Reads the plaintext of a file of this origin.
    pub fn parse(bytes: &[u8], origin: Origin) -> Result<Self, FormatError> {
        require(bytes.len().is_multiple_of(SEALED_ALIGN), "the sealed part is not padded to 256 bytes")?;
        let mut r = Reader::new(bytes, "chain file: the sealed part is too short");
        require(r.u16()? == SEALED_VERSION, "unknown version of a sealed part")?;
        let host = parse_string(&mut r)?;
        let count = r.count(1)?;
        // FORMAT SNAP-6
        require(count <= TAGS_MAX, "SNAP-6: more than 64 tags")?;
        let mut tags = Vec::with_capacity(count);
        for _ in 0..count {
            tags.push(parse_string(&mut r)?);
        }
        let program = parse_string(&mut r)?;
        let root = match origin {
            Origin::Removal => None,
            Origin::WorkingTree | Origin::Import => Some(RootInfo {
                entry: Entry::parse_root(&mut r)?,
                next_ino: r.u64()?,
                files: r.u64()?,
                dirs: r.u64()?,
                others: r.u64()?,
                bytes: r.u64()?,
            }),
        };
        // FORMAT GEN-4
        let padding = r.into_rest();
        let plain = padding.len() < SEALED_ALIGN && padding.iter().all(|b| *b == 0);
        require(plain, "GEN-4: padding of the sealed part")?;
        Ok(SealedPart { host, tags, program, root })
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) -> Result<(), FormatError> {
    require(text.len() <= STRING_LEN_MAX, "a string is longer than 1,024 bytes")?;
    put_var_bytes(out, text.as_bytes());
    Ok(())
}

fn parse_string(r: &mut Reader<'_>) -> Result<String, FormatError> {
    let bytes = r.var_bytes(STRING_LEN_MAX, "a string is longer than 1,024 bytes")?;
    let text = std::str::from_utf8(bytes).map_err(|_| FormatError::Malformed("a string is not UTF-8"))?;
    Ok(text.to_owned())
}

/// A chain file as it stands on the disk. Whether its kind is snapshot or removal, `public.origin` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFile {
    /// Whose key signed it.
    pub signer: Signer,
    /// What anyone may read.
    pub public: PublicPart,
    /// The seal key, sealed to the vault's public key: 1,120 bytes.
    pub kem_ciphertext: Vec<u8>,
    /// Nonce of the sealed part.
    pub nonce: [u8; NONCE_LEN],
    /// The sealed part, with its tag.
    pub sealed: Vec<u8>,
    /// Ed25519, over everything before it.
    pub signature: [u8; SIGNATURE_LEN],
}

/// The hash that a chain file's signature is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedDigest([u8; 32]);

impl SignedDigest {
    /// Hashes all bytes of a chain file that stand before its signature.
    #[must_use]
    pub fn of(before_signature: &[u8]) -> Self {
        SignedDigest(*blake3::hash(before_signature).as_bytes())
    }

    /// Returns the message that is signed.
    #[must_use]
    pub fn message(&self) -> [u8; SIGN_DOMAIN.len() + 32] {
        let mut message = [0; SIGN_DOMAIN.len() + 32];
        message[..SIGN_DOMAIN.len()].copy_from_slice(SIGN_DOMAIN);
        message[SIGN_DOMAIN.len()..].copy_from_slice(&self.0);
        message
    }
}

impl ChainFile {
    /// Returns the first bytes of a file, up to and with the X-Wing ciphertext; the seal key depends on them.
    pub fn encode_prefix(
        signer: Signer,
        public: &PublicPart,
        kem_ciphertext: &[u8],
    ) -> Result<Vec<u8>, FormatError> {
        // FORMAT SNAP-4
        let removal = public.origin == Origin::Removal;
        require(signer == Signer::Owner || !removal, "SNAP-4: a removal is signed by the owner")?;
        require(kem_ciphertext.len() == KEM_CIPHERTEXT_LEN, "an X-Wing ciphertext has 1,120 bytes")?;
        let part = public.encode()?;
        let mut out = Vec::with_capacity(PUBLIC_OFFSET + part.len() + KEM_CIPHERTEXT_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[public.origin.kind(), signer as u8, 0, 0]);
        put_count_u32(&mut out, part.len())?;
        out.extend_from_slice(&part);
        out.extend_from_slice(kem_ciphertext);
        Ok(out)
    }

    /// Appends what follows the prefix: nonce, length, sealed part. Then only the signature is missing.
    pub fn encode_sealed(
        out: &mut Vec<u8>,
        nonce: &[u8; NONCE_LEN],
        sealed: &[u8],
    ) -> Result<(), FormatError> {
        out.extend_from_slice(nonce);
        put_count_u32(out, sealed.len())?;
        out.extend_from_slice(sealed);
        // FORMAT SNAP-6
        if out.len() + SIGNATURE_LEN > CHAIN_FILE_LEN_MAX {
            return Err(FormatError::Limit("SNAP-6: a chain file has at most 64 MiB"));
        }
        Ok(())
    }

    /// Returns the whole file.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let mut out = Self::encode_prefix(self.signer, &self.public, &self.kem_ciphertext)?;
        Self::encode_sealed(&mut out, &self.nonce, &self.sealed)?;
        out.extend_from_slice(&self.signature);
        Ok(out)
    }

    /// Reads a file, and hashes what its signature is about. The signature itself needs keys: see
    /// `crypto::verify_chain_file`.
    pub fn parse(bytes: &[u8]) -> Result<(Self, SignedDigest), FormatError> {
        // FORMAT SNAP-6
        if bytes.len() > CHAIN_FILE_LEN_MAX {
            return Err(FormatError::Limit("SNAP-6: a chain file has at most 64 MiB"));
        }
        let mut r = Reader::new(bytes, "chain file: too short");
        require(r.array()? == MAGIC, "chain file: magic")?;
        let (kind, signer) = (r.u8()?, Signer::from_u8(r.u8()?)?);
        // FORMAT GEN-4
        require(r.u16()? == 0, "GEN-4: chain file: reserved bytes")?;
        let public_len = r.count_u32(1)?;
        let public = PublicPart::parse(r.bytes(public_len)?)?;
        require(public.origin.kind() == kind, "kind and origin of a chain file differ")?;
        // FORMAT SNAP-4
        let removal = public.origin == Origin::Removal;
        require(signer == Signer::Owner || !removal, "SNAP-4: a removal is signed by the owner")?;
        let kem_ciphertext = r.bytes(KEM_CIPHERTEXT_LEN)?.to_vec();
        let nonce = r.array()?;
        let sealed_len = r.count_u32(1)?;
        let sealed = r.bytes(sealed_len)?.to_vec();
        let padded = sealed.len() > TAG_LEN && (sealed.len() - TAG_LEN).is_multiple_of(SEALED_ALIGN);
        require(padded, "the sealed part is not padded to 256 bytes")?;
        let signature = r.array()?;
        r.finish()?;
        let digest = SignedDigest::of(&bytes[..bytes.len() - SIGNATURE_LEN]);
        Ok((ChainFile { signer, public, kem_ciphertext, nonce, sealed, signature }, digest))
    }

    /// Returns the length of the prefix that the seal key depends on, in a file of `file_len` bytes.
    pub(crate) fn prefix_len(&self, file_len: usize) -> Option<usize> {
        file_len.checked_sub(NONCE_LEN + 4 + self.sealed.len() + SIGNATURE_LEN)
    }
}

/// Returns the id of a chain file: the hash of its bytes.
#[must_use]
pub fn id_of(bytes: &[u8]) -> SnapshotId {
    // FORMAT LAY-1
    SnapshotId(*blake3::hash(bytes).as_bytes())
}

/// Returns the name of a chain file in `snapshots/`: ten digits, a dash, the id.
#[must_use]
pub fn name(seq: u64, id: &SnapshotId) -> String {
    // FORMAT SNAP-1
    format!("{seq:010}-{}", id.to_hex())
}

/// Reads exactly what [`name`] writes.
#[must_use]
pub fn parse_name(name: &str) -> Option<(u64, SnapshotId)> {
    // FORMAT LAY-2
    let (digits, hex) = name.split_once('-')?;
    if digits.len() != 10 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seq = digits.parse().ok().filter(|seq| *seq >= 1)?;
    Some((seq, SnapshotId(hex_array(hex)?)))
}

#[cfg(test)]
mod tests;
