//! Chain files, one by one: section 7 of docs/format.md. How they hang together is in `history`.

use std::collections::BTreeSet;

use ed25519_dalek::{Signature, VerifyingKey};
use zeroize::Zeroizing;

use crate::bytes::{Id, Reader, hex, unhex};
use crate::crypto::{h, kdf, xcc_open};
use crate::header::Signers;
use crate::keys::Keys;
use crate::report::{Class, Counts, Fault, damaged, fault, malformed, not_authentic, too_long};
use crate::tree::{Entry, parse_entry};
use crate::xwing::CIPHERTEXT_BYTES;

/// Most bytes of a chain file (SNAP-6).
pub const CHAIN_FILE_BYTES_MAX: u64 = 64 << 20;
/// Sequences are below this.
pub const SEQUENCE_LIMIT: u64 = 10_000_000_000;
/// Most tags (SNAP-6).
const TAGS_MAX: u64 = 64;
const STRING_BYTES_MAX: usize = 1024;
/// A sealed plaintext has a multiple of so many bytes.
const SEALED_PADDING: usize = 256;
const SEAL_TAG_BYTES: usize = 16;

/// What a chain file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// A snapshot, 1.
    Snapshot,
    /// A removal, 2.
    Removal,
}

/// A pack list, whole or as the difference to the predecessor's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackList {
    /// Mode 0: `added` is the whole list.
    pub full: bool,
    /// Packs that came, sorted.
    pub added: Vec<Id>,
    /// Packs that went, sorted.
    pub dropped: Vec<Id>,
}

/// What the chain keeps of a chain file that was removed on purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Its sequence.
    pub sequence: u64,
    /// Its id.
    pub id: Id,
    /// Its predecessor's id.
    pub predecessor: Id,
    /// Its own pack list.
    pub packs: PackList,
}

/// The public part of a chain file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    /// The vault's id.
    pub vault_id: [u8; 16],
    /// At least 1.
    pub sequence: u64,
    /// The id of the file before; zeros for none.
    pub predecessor: Id,
    /// Time, seconds since 1970.
    pub seconds: i64,
    /// Time, nanoseconds.
    pub nanoseconds: u32,
    /// 1 working tree, 2 import, 0 in a removal.
    pub origin: u8,
    /// Its pack list.
    pub packs: PackList,
    /// Chain files that are gone on purpose.
    pub removed: Vec<Removed>,
    /// Packs that no remaining snapshot needs any more.
    pub retired: Vec<Id>,
    /// Packs that hold what was still needed of the retired ones.
    pub replacement: Vec<Id>,
}

/// The parts of a chain file, with a good signature if [`open`] made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainFile {
    /// Snapshot or removal.
    pub kind: ChainKind,
    /// 0 owner, 1 ingest.
    pub signer: u8,
    /// The public part.
    pub public: Public,
    ciphertext: Box<[u8; CIPHERTEXT_BYTES]>,
    nonce: [u8; 24],
    sealed: Vec<u8>,
    /// H(bytes 0..16+P+1120)
    prefix: Id,
}

/// The decrypted part of a chain file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The host that wrote it.
    pub host: String,
    /// Tags.
    pub tags: Vec<String>,
    /// The program that wrote it.
    pub program: String,
    /// What a snapshot has besides.
    pub snapshot: Option<SealedSnapshot>,
}

/// What only snapshots have in their sealed part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSnapshot {
    /// The root directory.
    pub root: Entry,
    /// The next inode number to give out.
    pub next_ino: u64,
    /// What the snapshot says it has.
    pub counts: Counts,
}

/// Splits `SSSSSSSSSS-<64 hex>` (LAY-2).
pub fn parse_name(name: &str) -> Option<(u64, Id)> {
    let (sequence, id) = name.split_once('-')?;
    if sequence.len() != 10 || !sequence.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let sequence = sequence.parse().ok().filter(|n| *n >= 1)?;
    Some((sequence, unhex(id)?))
}

/// The name of a chain file.
pub fn name_of(sequence: u64, id: &Id) -> String {
    format!("{sequence:010}-{}", hex(id))
}

/// Checks the signature of a chain file (SNAP-4), then decodes it; `name_sequence` is that of its name, if it has one.
pub fn open(
    bytes: &[u8],
    vault_id: &[u8; 16],
    signers: &Signers,
    name_sequence: Option<u64>,
) -> Result<ChainFile, Fault> {
    if bytes.len() as u64 > CHAIN_FILE_BYTES_MAX {
        return Err(too_long("SNAP-6", "longer than 64 MiB"));
    }
    verify_signature(bytes, signers)?;
    let file = parse(bytes)?;
    if file.public.vault_id != *vault_id {
        return Err(fault(Class::Forged, "", "it belongs to another vault"));
    }
    if name_sequence.is_some_and(|s| s != file.public.sequence) {
        return Err(malformed("SNAP-1", format!("it is sequence {}, unlike its name", file.public.sequence)));
    }
    Ok(file)
}

/// Checks the signature over all bytes before it with the key that the signer byte names.
pub fn verify_signature(bytes: &[u8], signers: &Signers) -> Result<(), Fault> {
    let Some((signed, signature)) = bytes.split_last_chunk::<64>() else {
        return Err(damaged("SNAP-4", "too short for a signature"));
    };
    let Some(&signer) = signed.get(9) else {
        return Err(damaged("SNAP-4", "too short for a chain file"));
    };
    let Some(key) = signers.key(signer) else {
        return Err(malformed("SNAP-4", format!("signer {signer}")));
    };
    let message = [&b"strongroom v1 snapshot"[..], &h(signed)].concat();
    let good = VerifyingKey::from_bytes(key)
        .and_then(|key| key.verify_strict(&message, &Signature::from_bytes(signature)))
        .is_ok();
    if good {
        Ok(())
    } else {
        Err(fault(Class::Forged, "SNAP-4", "its signature is not by this vault's key"))
    }
}

/// Decodes a chain file without checking its signature.
pub fn parse(bytes: &[u8]) -> Result<ChainFile, Fault> {
    let mut r = Reader::new(bytes, "chain file");
    if r.take(8)? != b"SRSNAP\x00\x01" {
        return Err(malformed("", "not a chain file of format 1"));
    }
    let kind = match r.u8()? {
        1 => ChainKind::Snapshot,
        2 => ChainKind::Removal,
        other => return Err(malformed("", format!("chain file of kind {other}"))),
    };
    let signer = r.u8()?;
    if signer > 1 {
        return Err(malformed("SNAP-4", format!("signer {signer}")));
    }
    if kind == ChainKind::Removal && signer != 0 {
        return Err(malformed("SNAP-4", "a removal that the owner did not sign"));
    }
    if r.array::<2>()? != [0; 2] {
        return Err(malformed("GEN-4", "reserved bytes of the chain file are not zero"));
    }
    let public_bytes = r.u32()? as usize;
    let public = parse_public(r.take(public_bytes)?, kind)?;
    let ciphertext = Box::new(r.array()?);
    let prefix = h(&bytes[..bytes.len() - r.remaining()]);
    let nonce = r.array()?;
    let sealed_bytes = r.u32()? as usize;
    let sealed = r.take(sealed_bytes)?.to_vec();
    if sealed.len() <= SEAL_TAG_BYTES || !(sealed.len() - SEAL_TAG_BYTES).is_multiple_of(SEALED_PADDING) {
        return Err(malformed("", "its sealed part is not padded to a multiple of 256 bytes"));
    }
    r.array::<64>()?;
    r.finish()?;
    Ok(ChainFile { kind, signer, public, ciphertext, nonce, sealed, prefix })
}

/// Decodes a public part.
pub fn parse_public(bytes: &[u8], kind: ChainKind) -> Result<Public, Fault> {
    let mut r = Reader::new(bytes, "public part");
    let vault_id = r.array()?;
    let sequence = sequence(&mut r)?;
    let predecessor: Id = r.array()?;
    if (sequence == 1) != (predecessor == [0; 32]) {
        return Err(malformed(
            "SNAP-2",
            format!("sequence {sequence}, but the file before it says otherwise"),
        ));
    }
    let (seconds, nanoseconds) = (r.i64()?, r.u32()?);
    if nanoseconds >= 1_000_000_000 {
        return Err(malformed("", "a time with a second or more in its nanoseconds"));
    }
    let origin = r.u8()?;
    let origin_fits = match kind {
        ChainKind::Snapshot => matches!(origin, 1 | 2),
        ChainKind::Removal => origin == 0,
    };
    if !origin_fits {
        return Err(malformed("", format!("origin {origin}")));
    }
    let packs = pack_list(&mut r, sequence)?;
    let count = r.u32()?;
    // 72 bytes before its pack list, which takes at least 9.
    let count = r.fits(u64::from(count), 81)?;
    let mut removed: Vec<Removed> = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        let gone = crate::chain::sequence(&mut r)?;
        let (id, predecessor) = (r.array()?, r.array()?);
        removed.push(Removed { sequence: gone, id, predecessor, packs: pack_list(&mut r, gone)? });
    }
    let (retired, replacement) = (r.ids()?, r.ids()?);
    r.finish()?;
    if kind == ChainKind::Snapshot && !(removed.is_empty() && retired.is_empty() && replacement.is_empty()) {
        return Err(malformed("SNAP-5", "a snapshot that removes something"));
    }
    let distinct: BTreeSet<u64> = removed.iter().map(|r| r.sequence).collect();
    if distinct.len() != removed.len() || removed.iter().any(|r| r.sequence >= sequence) {
        return Err(malformed("SNAP-5", "a removal that names itself, a later file, or one file twice"));
    }
    Ok(Public {
        vault_id,
        sequence,
        predecessor,
        seconds,
        nanoseconds,
        origin,
        packs,
        removed,
        retired,
        replacement,
    })
}

fn sequence(r: &mut Reader<'_>) -> Result<u64, Fault> {
    match r.u64()? {
        n @ 1..SEQUENCE_LIMIT => Ok(n),
        n => Err(malformed("SNAP-1", format!("sequence {n}"))),
    }
}

fn pack_list(r: &mut Reader<'_>, sequence: u64) -> Result<PackList, Fault> {
    let full = match r.u8()? {
        0 => true,
        1 => false,
        mode => return Err(malformed("SNAP-7", format!("pack list of mode {mode}"))),
    };
    if sequence == 1 && !full {
        return Err(malformed("SNAP-7", "sequence 1 has a difference for its pack list"));
    }
    let (added, dropped) = (r.ids()?, r.ids()?);
    for list in [&added, &dropped] {
        if list.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(malformed("SNAP-7", "a pack list that is not sorted, or repeats a pack"));
        }
    }
    if full && !dropped.is_empty() {
        return Err(malformed("SNAP-7", "a full pack list that drops packs"));
    }
    Ok(PackList { full, added, dropped })
}

impl ChainFile {
    /// Decrypts and decodes the sealed part.
    pub fn unseal(&self, keys: &Keys) -> Result<Sealed, Fault> {
        let ss = keys.kem.decapsulate(&self.ciphertext);
        let key = kdf("strongroom 2026 v1 snapshot key", &[&*ss, &self.prefix]);
        let aad = [&b"strongroom v1 snapshot seal"[..], &self.public.vault_id].concat();
        let plain: Zeroizing<Vec<u8>> = xcc_open(&key, &self.nonce, &aad, &self.sealed)
            .ok_or_else(|| not_authentic("its sealed part does not open"))?;
        parse_sealed(&plain, self.kind)
    }
}

/// Decodes a sealed part's plaintext.
pub fn parse_sealed(plain: &[u8], kind: ChainKind) -> Result<Sealed, Fault> {
    if plain.is_empty() || !plain.len().is_multiple_of(SEALED_PADDING) {
        return Err(malformed("", "its sealed part is not padded to a multiple of 256 bytes"));
    }
    let mut r = Reader::new(plain, "sealed part");
    let version = r.u16()?;
    if version != 1 {
        return Err(malformed("", format!("sealed part of version {version}")));
    }
    let host = string(&mut r)?;
    let count = r.varint()?;
    if count > TAGS_MAX {
        return Err(malformed("SNAP-6", format!("{count} tags")));
    }
    let mut tags = Vec::new();
    for _ in 0..count {
        tags.push(string(&mut r)?);
    }
    let program = string(&mut r)?;
    let snapshot = match kind {
        ChainKind::Removal => None,
        ChainKind::Snapshot => {
            let root = parse_entry(&mut r, true)?;
            let next_ino = r.u64()?;
            let counts = Counts { files: r.u64()?, directories: r.u64()?, others: r.u64()?, bytes: r.u64()? };
            Some(SealedSnapshot { root, next_ino, counts })
        }
    };
    let zeros = r.take(r.remaining())?;
    if zeros.len() >= SEALED_PADDING || zeros.iter().any(|&b| b != 0) {
        return Err(malformed("GEN-2", "its sealed part ends with something else than its padding"));
    }
    Ok(Sealed { host, tags, program, snapshot })
}

fn string(r: &mut Reader<'_>) -> Result<String, Fault> {
    let bytes = r.counted(STRING_BYTES_MAX, "")?;
    String::from_utf8(bytes.to_vec()).map_err(|_| malformed("", "a string that is not UTF-8"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn list(mode: u8, added: &[u8], dropped: &[u8]) -> Vec<u8> {
        let mut out = vec![mode];
        for ids in [added, dropped] {
            out.extend_from_slice(&(ids.len() as u32).to_le_bytes());
            ids.iter().for_each(|&b| out.extend_from_slice(&[b; 32]));
        }
        out
    }

    fn public(sequence: u64, origin: u8, list: &[u8], tail: &[u8]) -> Vec<u8> {
        let mut out = vec![9; 16];
        out.extend_from_slice(&sequence.to_le_bytes());
        out.extend_from_slice(&[u8::from(sequence > 1); 32]);
        out.extend_from_slice(&[0; 12]);
        out.push(origin);
        out.extend_from_slice(list);
        out.extend_from_slice(tail);
        out
    }

    fn rule(bytes: &[u8], kind: ChainKind) -> &'static str {
        parse_public(bytes, kind).map_or_else(|f| f.rule, |_| "ok")
    }

    #[test]
    fn names() {
        let id = [0xab; 32];
        assert_eq!(parse_name(&name_of(7, &id)), Some((7, id)));
        for bad in [
            &name_of(0, &id),
            "7-abc",
            &format!("+000000007-{}", hex(&id)),
            &name_of(7, &id).to_uppercase(),
            "",
        ] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn pack_lists() {
        use ChainKind::Snapshot;
        let none = [0; 12];
        assert_eq!(rule(&public(1, 1, &list(0, &[1, 2], &[]), &none), Snapshot), "ok");
        assert_eq!(rule(&public(2, 1, &list(1, &[1, 2], &[3]), &none), Snapshot), "ok");
        assert_eq!(rule(&public(1, 1, &list(1, &[], &[]), &none), Snapshot), "SNAP-7");
        assert_eq!(rule(&public(2, 1, &list(1, &[2, 1], &[]), &none), Snapshot), "SNAP-7");
        assert_eq!(rule(&public(2, 1, &list(1, &[], &[2, 2]), &none), Snapshot), "SNAP-7");
        assert_eq!(rule(&public(2, 1, &list(0, &[], &[2]), &none), Snapshot), "SNAP-7");
        assert_eq!(rule(&public(2, 1, &list(2, &[], &[]), &none), Snapshot), "SNAP-7");
        assert_eq!(rule(&public(0, 1, &list(0, &[], &[]), &none), Snapshot), "SNAP-1");
        assert_eq!(rule(&public(1, 0, &list(0, &[], &[]), &none), Snapshot), "");
        for (sequence, before) in [(1, 1), (2, 0)] {
            let mut other = public(sequence, 1, &list(0, &[], &[]), &none);
            other[24..56].fill(before);
            assert_eq!(rule(&other, Snapshot), "SNAP-2");
        }
        assert_eq!(rule(&public(1, 1, &list(0, &[], &[]), &[0; 13]), Snapshot), "GEN-2");
        assert_eq!(rule(&public(1, 1, &list(0, &[], &[]), &[0xff; 12]), Snapshot), "GEN-3");
    }

    #[test]
    fn removals() {
        use ChainKind::{Removal, Snapshot};
        let gone = |sequences: &[u64]| {
            let mut out = (sequences.len() as u32).to_le_bytes().to_vec();
            for s in sequences {
                out.extend_from_slice(&s.to_le_bytes());
                out.extend_from_slice(&[5; 64]);
                out.extend(list(0, &[], &[]));
            }
            out.extend_from_slice(&[0; 8]);
            out
        };
        let full = list(0, &[], &[]);
        assert_eq!(rule(&public(5, 0, &full, &gone(&[2, 3])), Removal), "ok");
        assert_eq!(rule(&public(5, 0, &full, &gone(&[5])), Removal), "SNAP-5");
        assert_eq!(rule(&public(5, 0, &full, &gone(&[2, 2])), Removal), "SNAP-5");
        assert_eq!(rule(&public(5, 1, &full, &gone(&[2])), Snapshot), "SNAP-5");
        assert_eq!(rule(&public(5, 1, &full, &gone(&[])), Removal), "");
    }

    #[test]
    fn sealed_parts() {
        let pad = |mut v: Vec<u8>| {
            v.resize(v.len().next_multiple_of(256), 0);
            v
        };
        let rule = |plain: &[u8]| parse_sealed(plain, ChainKind::Removal).map_or_else(|f| f.rule, |_| "ok");
        let good = pad(vec![1, 0, 1, b'h', 1, 1, b't', 1, b'p']);
        assert_eq!(rule(&good), "ok");
        assert_eq!(rule(&good[..255]), "");
        assert_eq!(rule(&[&good[..], &[0; 256]].concat()), "GEN-2");
        let mut noise = good.clone();
        noise[255] = 1;
        assert_eq!(rule(&noise), "GEN-2");
        assert_eq!(rule(&pad(vec![1, 0, 0, 65])), "SNAP-6");
        assert_eq!(rule(&pad(vec![1, 0, 1, 0xff])), "");
        assert_eq!(rule(&[]), "");
    }
}
