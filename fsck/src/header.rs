//! `vault.json`: section 3 of docs/format.md.

use serde::{Deserialize, Serialize};

use crate::bytes::{Id, unhex};
use crate::crypto::{h, kh};
use crate::report::{Class, Fault, damaged, fault, malformed, too_long};
use crate::xwing::PUBLIC_BYTES;

/// Most bytes of a header.
pub const HEADER_BYTES_MAX: u64 = 256 * 1024;
/// The newest format that this crate reads.
pub const FORMAT: u64 = 1;

/// A sound header: its checksum and form are right. Its mac needs a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The vault's id.
    pub vault_id: [u8; 16],
    /// One higher at each write.
    pub generation: u64,
    /// 1 chacha20-poly1305, 2 aes-256-gcm.
    pub cipher: u8,
    /// X-Wing encapsulation key.
    pub public_key: [u8; PUBLIC_BYTES],
    /// Public keys of the owner and of the ingest role.
    pub signers: Signers,
    /// Key slots.
    pub slots: Vec<Slot>,
    mac: Id,
    /// Bytes before the comma that precedes `"mac"`.
    maced: Vec<u8>,
}

/// Ed25519 public keys of those who may sign chain files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signers {
    /// The owner, 0: `signing_key`.
    pub owner: Id,
    /// The ingest role, 1: `ingest_signing_key`.
    pub ingest: Id,
}

impl Signers {
    /// The key that the signer byte of a chain file names.
    pub fn key(&self, number: u8) -> Option<&Id> {
        match number {
            0 => Some(&self.owner),
            1 => Some(&self.ingest),
            _ => None,
        }
    }
}

/// What a slot is opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// A passphrase.
    Passphrase,
    /// A key file.
    Keyfile,
    /// A recovery key.
    Recovery,
}

impl SlotKind {
    /// Its number in associated data.
    pub fn number(self) -> u8 {
        match self {
            Self::Passphrase => 1,
            Self::Keyfile => 2,
            Self::Recovery => 3,
        }
    }
}

/// How a slot's key is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kdf {
    /// Argon2id v1.3.
    Argon2id {
        /// Memory in KiB.
        m_kib: u32,
        /// Passes.
        t: u32,
        /// Lanes.
        p: u32,
        /// Salt.
        salt: [u8; 32],
    },
    /// BLAKE3 `derive_key`.
    Blake3 {
        /// Salt.
        salt: [u8; 32],
    },
}

/// One key slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Unique number, at least 1.
    pub id: u32,
    /// What opens it.
    pub kind: SlotKind,
    /// The user's name for it.
    pub label: String,
    /// How its key is computed.
    pub kdf: Kdf,
    /// Nonce of `wrapped`.
    pub nonce: [u8; 24],
    /// The sealed root secret.
    pub wrapped: [u8; 48],
}

/// What is wrong with one copy of the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderError {
    /// It is of a newer format (HDR-1).
    Newer(u64),
    /// It is no JSON object with the member `strongroom` (HDR-1).
    NotAHeader,
    /// It is damaged or malformed.
    Bad(Fault),
}

impl HeaderError {
    /// The fault to report for a copy.
    pub fn into_fault(self) -> Fault {
        match self {
            Self::Newer(v) => fault(Class::Malformed, "HDR-1", format!("written by a newer format, {v}")),
            Self::NotAHeader => damaged("HDR-1", "not a vault header"),
            Self::Bad(fault) => fault,
        }
    }
}

/// The members in the order in which they stand in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    strongroom: u64,
    vault_id: String,
    created: String,
    generation: u64,
    cipher: String,
    kem: String,
    public_key: String,
    signing_key: String,
    ingest_signing_key: String,
    chunker: JsonChunker,
    slots: Vec<JsonSlot>,
    mac: String,
    checksum: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonChunker {
    algorithm: String,
    min: u64,
    avg: u64,
    max: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonSlot {
    id: u32,
    kind: String,
    label: String,
    created: String,
    kdf: JsonKdf,
    nonce: String,
    wrapped: String,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "name", deny_unknown_fields, rename_all = "lowercase")]
enum JsonKdf {
    Argon2id { m_kib: u32, t: u32, p: u32, salt: String },
    Blake3 { salt: String },
}

/// Decodes one copy. HDR-1 first, then the checksum (HDR-2), then the form (HDR-4, HDR-5).
pub fn parse(bytes: &[u8]) -> Result<Header, HeaderError> {
    let bad = |fault| HeaderError::Bad(fault);
    if bytes.len() as u64 > HEADER_BYTES_MAX {
        return Err(bad(too_long("", "longer than 256 KiB")));
    }
    let (maced, mac, summed, checksum) = match split_tail(bytes) {
        Some(tail) => tail,
        None => {
            return Err(
                version_error(bytes).unwrap_or(bad(damaged("HDR-2", "mac and checksum are not at its end")))
            );
        }
    };
    if h(summed) != checksum {
        return Err(version_error(bytes).unwrap_or(bad(damaged("HDR-2", "its checksum is wrong"))));
    }
    if let Some(error) = version_error(bytes) {
        return Err(error);
    }
    form(bytes, maced, mac).map_err(HeaderError::Bad)
}

/// What `strongroom` says, if that decides.
fn version_error(bytes: &[u8]) -> Option<HeaderError> {
    // A map and not a struct: serde takes an array for a struct too.
    let members: serde_json::Map<String, serde_json::Value> = match serde_json::from_slice(bytes) {
        Ok(members) => members,
        Err(_) => return Some(HeaderError::NotAHeader),
    };
    match members.get("strongroom") {
        None => Some(HeaderError::NotAHeader),
        Some(version) => version.as_u64().filter(|&v| v > FORMAT).map(HeaderError::Newer),
    }
}

type Tail<'a> = (&'a [u8], Id, &'a [u8], Id);

/// Splits the fixed end of the file off: the bytes under the mac, the mac, the bytes under the checksum, and that.
fn split_tail(bytes: &[u8]) -> Option<Tail<'_>> {
    let digest = |text: &[u8]| unhex::<32>(std::str::from_utf8(text).ok()?);
    let rest = bytes.strip_suffix(b"\"\n}\n")?;
    let (rest, checksum) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    let summed = rest.strip_suffix(b",\n  \"checksum\": \"")?;
    let rest = summed.strip_suffix(b"\"")?;
    let (rest, mac) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    let maced = rest.strip_suffix(b",\n  \"mac\": \"")?;
    Some((maced, digest(mac)?, summed, digest(checksum)?))
}

fn form(bytes: &[u8], maced: &[u8], mac: Id) -> Result<Header, Fault> {
    let wrong = |what: &str| malformed("HDR-5", what.to_owned());
    let json: Json =
        serde_json::from_slice(bytes).map_err(|e| malformed("HDR-5", format!("its members: {e}")))?;
    // Writing it again in the one allowed form proves order, indentation and that nothing was repeated.
    let mut again = serde_json::to_vec_pretty(&json).map_err(|e| malformed("HDR-5", e.to_string()))?;
    again.push(b'\n');
    if again != bytes {
        return Err(wrong("its members are not in the written order and form"));
    }
    if json.strongroom != FORMAT {
        return Err(malformed("HDR-1", "format version 0"));
    }
    let cipher = match json.cipher.as_str() {
        "chacha20-poly1305" => 1,
        "aes-256-gcm" => 2,
        _ => return Err(wrong("unknown cipher")),
    };
    if json.kem != "x-wing" {
        return Err(wrong("unknown kem"));
    }
    // What the chunker was is of no concern to a reader, by the format.
    if json.generation == 0 {
        return Err(wrong("generation 0"));
    }
    if !is_date(&json.created) {
        return Err(wrong("created is no date"));
    }
    if json.slots.is_empty() || json.slots.len() > 32 {
        return Err(wrong("it must have 1 to 32 slots"));
    }
    let mut slots: Vec<Slot> = Vec::with_capacity(json.slots.len());
    for slot in json.slots {
        let slot = parse_slot(slot)?;
        if slots.iter().any(|s| s.id == slot.id) {
            return Err(wrong("two slots have the same id"));
        }
        slots.push(slot);
    }
    Ok(Header {
        vault_id: unhex(&json.vault_id).ok_or_else(|| wrong("vault_id"))?,
        generation: json.generation,
        cipher,
        public_key: unhex(&json.public_key).ok_or_else(|| wrong("public_key"))?,
        signers: Signers {
            owner: unhex(&json.signing_key).ok_or_else(|| wrong("signing_key"))?,
            ingest: unhex(&json.ingest_signing_key).ok_or_else(|| wrong("ingest_signing_key"))?,
        },
        slots,
        mac,
        maced: maced.to_vec(),
    })
}

fn parse_slot(json: JsonSlot) -> Result<Slot, Fault> {
    let wrong = |what: &str| malformed("HDR-5", format!("slot {}: {what}", json.id));
    if json.id == 0 {
        return Err(wrong("its id is 0"));
    }
    if json.label.len() > 64 {
        return Err(wrong("label longer than 64 bytes"));
    }
    if !is_date(&json.created) {
        return Err(wrong("created is no date"));
    }
    let salt = |text: &str| unhex::<32>(text).ok_or_else(|| wrong("salt"));
    let kdf = match &json.kdf {
        JsonKdf::Argon2id { m_kib, t, p, salt: s } => {
            let (m_kib, t, p) = (*m_kib, *t, *p);
            // HDR-4: before anything is computed with them.
            let sane = (1..=16).contains(&p) && (1..=64).contains(&t) && (8 * p..=4_194_304).contains(&m_kib);
            if !sane {
                return Err(malformed(
                    "HDR-4",
                    format!("slot {}: argon2id parameters out of range", json.id),
                ));
            }
            Kdf::Argon2id { m_kib, t, p, salt: salt(s)? }
        }
        JsonKdf::Blake3 { salt: s } => Kdf::Blake3 { salt: salt(s)? },
    };
    let kind = match (json.kind.as_str(), &kdf) {
        ("passphrase", Kdf::Argon2id { .. }) => SlotKind::Passphrase,
        ("keyfile", Kdf::Blake3 { .. }) => SlotKind::Keyfile,
        ("recovery", Kdf::Blake3 { .. }) => SlotKind::Recovery,
        _ => return Err(wrong("unknown kind, or a kdf that is not its")),
    };
    Ok(Slot {
        id: json.id,
        kind,
        kdf,
        nonce: unhex(&json.nonce).ok_or_else(|| wrong("nonce"))?,
        wrapped: unhex(&json.wrapped).ok_or_else(|| wrong("wrapped"))?,
        label: json.label,
    })
}

/// `2026-11-21T02:00:00Z`, with fields in their ranges.
fn is_date(text: &str) -> bool {
    let b = text.as_bytes();
    let shape = b.len() == 20
        && b.iter()
            .zip(b"0000-00-00T00:00:00Z")
            .all(|(c, s)| if *s == b'0' { c.is_ascii_digit() } else { c == s });
    if !shape {
        return false;
    }
    let two = |at: usize| 10 * (b[at] - b'0') + (b[at + 1] - b'0');
    (1..=12).contains(&two(5)) && (1..=31).contains(&two(8)) && two(11) < 24 && two(14) < 60 && two(17) <= 60
}

impl Header {
    /// Whether the mac is by this key (HDR-3).
    pub fn mac_is_by(&self, key: &[u8; 32]) -> bool {
        // blake3::Hash compares in constant time.
        blake3::Hash::from(kh(key, &self.maced)) == blake3::Hash::from(self.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert!(is_date("2026-11-21T02:00:00Z"));
        for bad in
            ["2026-11-21T02:00:00", "2026-13-21T02:00:00Z", "2026-11-21 02:00:00Z", "2026-11-21T24:00:00Z"]
        {
            assert!(!is_date(bad), "{bad}");
        }
    }

    #[test]
    fn the_version_comes_first() {
        assert_eq!(parse(b"{\"strongroom\": 2}").err(), Some(HeaderError::Newer(2)));
        assert_eq!(parse(b"{\"strongroom\": 1}").err().map(|e| e.into_fault().rule), Some("HDR-2"));
        assert_eq!(parse(b"{}").err(), Some(HeaderError::NotAHeader));
        assert_eq!(parse(b"").err(), Some(HeaderError::NotAHeader));
        assert_eq!(parse(b"[1]").err(), Some(HeaderError::NotAHeader));
        let deep = "[".repeat(200_000);
        assert_eq!(parse(deep.as_bytes()).err(), Some(HeaderError::NotAHeader));
    }
}
