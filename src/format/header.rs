//! The vault header, `vault.json`: what a vault is, and the slots that hold its root secret.
//!
//! The file is JSON for people and for standard tools, but it has one encoding only: what stands before `mac`
//! is parsed, encoded again and compared byte by byte. So unknown, missing, repeated and reordered members,
//! other spacing and other escapes are all refused by one comparison.

use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::FormatError;
use super::ids::{VaultId, hex_array};

/// The header's first copy.
pub const HEADER_PATH: &str = "vault.json";
/// Its second copy.
pub const HEADER_BACKUP_PATH: &str = "vault.json.bak";
/// The largest header file, in bytes.
pub const HEADER_LEN_MAX: usize = 256 << 10;
/// The version of the format that this program writes and reads.
pub const VERSION: u64 = 1;
/// Slots of a header.
pub const SLOTS_MAX: usize = 32;
/// The longest label of a slot, in bytes.
pub const LABEL_LEN_MAX: usize = 64;
/// Length of `public_key`, an X-Wing encapsulation key, in bytes.
pub const PUBLIC_KEY_LEN: usize = 1216;
/// The longest that a writer lets a chunk get, in bytes: the format's limit for a chunk.
const CHUNK_LEN_MAX: u32 = 8 << 20;

const SLOT_AAD_DOMAIN: &[u8] = b"strongroom v1 slot";
const MAC_PREFIX: &[u8] = b",\n  \"mac\": \"";
const CHECKSUM_PREFIX: &[u8] = b"\",\n  \"checksum\": \"";
const FILE_END: &[u8] = b"\"\n}\n";
const JSON_END: &[u8] = b"\n}";
const DIGITS: usize = 64;
/// What follows the bytes that `mac` covers: mac, checksum and the closing brace.
pub(super) const TAIL_LEN: usize =
    MAC_PREFIX.len() + DIGITS + CHECKSUM_PREFIX.len() + DIGITS + FILE_END.len();

/// The AEAD that seals pack frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305 = 1,
    /// AES-256-GCM (NIST SP 800-38D).
    Aes256Gcm = 2,
}

impl Cipher {
    /// Returns the name that the header has.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Cipher::ChaCha20Poly1305 => "chacha20-poly1305",
            Cipher::Aes256Gcm => "aes-256-gcm",
        }
    }

    /// Reads a name as [`Self::as_str`] writes it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm].into_iter().find(|c| c.as_str() == name)
    }

    /// Reads the number that a pack header has.
    pub fn from_u8(n: u8) -> Result<Self, FormatError> {
        match n {
            1 => Ok(Cipher::ChaCha20Poly1305),
            2 => Ok(Cipher::Aes256Gcm),
            _ => Err(FormatError::Malformed("unknown cipher")),
        }
    }
}

/// How writers cut data into chunks. Sizes are in bytes. Readers need none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkerParams {
    /// No chunk but the last of a stream is shorter.
    pub min: u32,
    /// The size that cut points aim at.
    pub avg: u32,
    /// No chunk is longer.
    pub max: u32,
}

impl ChunkerParams {
    /// The name of the algorithm in the header.
    pub const ALGORITHM: &'static str = "fastcdc-2020";

    /// Checks what a writer needs: 64 <= min <= avg <= max <= 8 MiB. A reader takes any numbers.
    pub fn check(&self) -> Result<(), FormatError> {
        if self.min >= 64 && self.min <= self.avg && self.avg <= self.max && self.max <= CHUNK_LEN_MAX {
            Ok(())
        } else {
            Err(FormatError::Malformed("chunker sizes are not 64 <= min <= avg <= max <= 8 MiB"))
        }
    }
}

impl Default for ChunkerParams {
    fn default() -> Self {
        ChunkerParams { min: 512 << 10, avg: 1 << 20, max: 4 << 20 }
    }
}

/// What opens a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotKind {
    /// A passphrase, through Argon2id.
    Passphrase = 1,
    /// The bytes of a file.
    Keyfile = 2,
    /// A recovery key that was printed once.
    Recovery = 3,
}

impl SlotKind {
    /// Returns the name that the header has.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            SlotKind::Passphrase => "passphrase",
            SlotKind::Keyfile => "keyfile",
            SlotKind::Recovery => "recovery",
        }
    }

    /// Reads a name as [`Self::as_str`] writes it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [SlotKind::Passphrase, SlotKind::Keyfile, SlotKind::Recovery].into_iter().find(|k| k.as_str() == name)
    }
}

/// How a slot's key is made of what the user has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKdf {
    /// Argon2id 1.3, for passphrases.
    Argon2id {
        /// Memory in KiB.
        m_kib: u32,
        /// Passes.
        t: u32,
        /// Lanes.
        p: u32,
        /// Drawn for this slot.
        salt: [u8; 32],
    },
    /// BLAKE3 `derive_key`, for keys that are random already.
    Blake3 {
        /// Drawn for this slot.
        salt: [u8; 32],
    },
}

impl SlotKdf {
    /// Checks the bounds of Argon2id's cost, before anything is computed with it.
    pub fn check(&self) -> Result<(), FormatError> {
        // FORMAT HDR-4
        match *self {
            SlotKdf::Argon2id { m_kib, t, p, .. } => {
                let lanes_ok = (1..=16).contains(&p);
                if lanes_ok && m_kib >= 8 * p && m_kib <= 4_194_304 && (1..=64).contains(&t) {
                    Ok(())
                } else {
                    Err(FormatError::Malformed("HDR-4: argon2id cost out of bounds"))
                }
            }
            SlotKdf::Blake3 { .. } => Ok(()),
        }
    }
}

/// A key slot: the root secret, sealed with a key that the user can make again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Unique in the header, from 1.
    pub id: u32,
    /// What opens the slot.
    pub kind: SlotKind,
    /// What the owner calls it, at most 64 bytes.
    pub label: String,
    /// When it was added: RFC 3339, UTC, whole seconds.
    pub created: String,
    /// How its key is made.
    pub kdf: SlotKdf,
    /// Nonce of the sealed root secret.
    pub nonce: [u8; 24],
    /// The sealed root secret with its tag.
    pub wrapped: [u8; 48],
}

/// The vault header. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Drawn when the vault was made.
    pub vault_id: VaultId,
    /// When that was: RFC 3339, UTC, whole seconds.
    pub created: String,
    /// One higher each time the header is written, from 1.
    pub generation: u64,
    /// Seals pack frames.
    pub cipher: Cipher,
    /// X-Wing encapsulation key, 1,216 bytes.
    pub public_key: Vec<u8>,
    /// Ed25519 public key of the owner.
    pub signing_key: [u8; 32],
    /// Ed25519 public key of the ingest role.
    pub ingest_signing_key: [u8; 32],
    /// How writers cut chunks.
    pub chunker: ChunkerParams,
    /// 1 to 32 key slots.
    pub slots: Vec<Slot>,
}

/// A header that has the right form and checksum. Its `mac` is checked when the vault is unlocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedHeader {
    /// What the file says.
    pub header: Header,
    /// The keyed hash that the file claims.
    pub mac: [u8; 32],
    /// The bytes that `mac` covers.
    pub mac_input: Vec<u8>,
}

impl Header {
    /// Returns the whole file. `mac` is called with the bytes that the header MAC covers.
    pub fn encode(&self, mac: impl FnOnce(&[u8]) -> [u8; 32]) -> Vec<u8> {
        let input = self.mac_input();
        let mac = mac(&input);
        close(input, &mac)
    }

    /// Reads one copy of the header.
    ///
    /// The errors are, in this order: [`FormatError::Limit`] for a file above 256 KiB,
    /// [`FormatError::NotAVault`], [`FormatError::Newer`], [`FormatError::Damaged`] when the checksum is
    /// wrong, [`FormatError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<ParsedHeader, FormatError> {
        if bytes.len() > HEADER_LEN_MAX {
            return Err(FormatError::Limit("a vault header is at most 256 KiB"));
        }
        // FORMAT HDR-1
        let probe: Probe = serde_json::from_slice(bytes).map_err(|_| FormatError::NotAVault)?;
        let version = probe.version.ok_or(FormatError::NotAVault)?;
        if let Some(version) = newer_version(&version) {
            return Err(FormatError::Newer { version });
        }
        let (mac_input, mac_digits) = checked_tail(bytes)?;
        let mac = std::str::from_utf8(mac_digits)
            .ok()
            .and_then(hex_array)
            .ok_or(FormatError::Malformed("mac is not 64 hex digits"))?;
        let json = [mac_input, JSON_END].concat();
        let fields: HeaderJson =
            serde_json::from_slice(&json).map_err(|_| FormatError::Malformed("HDR-5: header members"))?;
        let header = fields.into_header()?;
        // FORMAT HDR-5
        if header.mac_input() != mac_input {
            return Err(FormatError::Malformed("HDR-5: header is not in its one form"));
        }
        Ok(ParsedHeader { header, mac, mac_input: mac_input.to_vec() })
    }

    /// Returns what a slot's seal is bound to: everything that decides how the root secret is used.
    #[must_use]
    pub fn slot_aad(&self, slot: &Slot) -> Vec<u8> {
        let mut aad =
            Vec::with_capacity(SLOT_AAD_DOMAIN.len() + 16 + 4 + 1 + 12 + 32 + 1 + PUBLIC_KEY_LEN + 64);
        let (m_kib, t, p, salt) = match slot.kdf {
            SlotKdf::Argon2id { m_kib, t, p, salt } => (m_kib, t, p, salt),
            SlotKdf::Blake3 { salt } => (0, 0, 0, salt),
        };
        aad.extend_from_slice(SLOT_AAD_DOMAIN);
        aad.extend_from_slice(self.vault_id.as_bytes());
        aad.extend_from_slice(&slot.id.to_le_bytes());
        aad.push(slot.kind as u8);
        for cost in [m_kib, t, p] {
            aad.extend_from_slice(&cost.to_le_bytes());
        }
        aad.extend_from_slice(&salt);
        aad.push(self.cipher as u8);
        aad.extend_from_slice(&self.public_key);
        aad.extend_from_slice(&self.signing_key);
        aad.extend_from_slice(&self.ingest_signing_key);
        aad
    }

    /// Returns all bytes of the file before the `,` that precedes `"mac"`.
    fn mac_input(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(&HeaderJson::from_header(self))
            .expect("a struct of strings and integers always has a JSON form");
        json.truncate(json.len() - JSON_END.len());
        json
    }
}

/// Appends mac, checksum and the closing brace to the bytes that the mac covers.
pub(super) fn close(mac_input: Vec<u8>, mac: &[u8; 32]) -> Vec<u8> {
    let mut file = mac_input;
    file.extend_from_slice(MAC_PREFIX);
    file.extend_from_slice(data_encoding::HEXLOWER.encode(mac).as_bytes());
    // The checksum covers mac's closing quote, the first byte of this prefix.
    let (quote, rest) = CHECKSUM_PREFIX.split_at(1);
    file.extend_from_slice(quote);
    let checksum = blake3::hash(&file);
    file.extend_from_slice(rest);
    file.extend_from_slice(checksum.to_hex().as_bytes());
    file.extend_from_slice(FILE_END);
    file
}

/// Checks the form of the file's end and its checksum; returns the bytes that `mac` covers and mac's digits.
fn checked_tail(bytes: &[u8]) -> Result<(&[u8], &[u8]), FormatError> {
    const DAMAGED: FormatError = FormatError::Damaged("vault header: its checksum is wrong");
    let mac_at = bytes.len().checked_sub(TAIL_LEN).ok_or(DAMAGED)?;
    let (mac_input, tail) = bytes.split_at(mac_at);
    let mac_digits_at = MAC_PREFIX.len();
    let checksum_prefix_at = mac_digits_at + DIGITS;
    let checksum_at = checksum_prefix_at + CHECKSUM_PREFIX.len();
    let end_at = checksum_at + DIGITS;
    // The checksum stands for everything before the comma that precedes it: up to and with mac's closing
    // quote.
    let checksum = blake3::hash(&bytes[..mac_at + checksum_prefix_at + 1]);
    let sound = tail.starts_with(MAC_PREFIX)
        && tail[checksum_prefix_at..].starts_with(CHECKSUM_PREFIX)
        && tail[checksum_at..end_at] == *checksum.to_hex().as_bytes()
        && tail[end_at..] == *FILE_END;
    if sound { Ok((mac_input, &tail[mac_digits_at..checksum_prefix_at])) } else { Err(DAMAGED) }
}

/// Says whether the `strongroom` member names a later format, and which.
fn newer_version(value: &serde_json::Value) -> Option<u64> {
    match (value.as_u64(), value.as_f64()) {
        (Some(n), _) if n > VERSION => Some(n),
        // An integer beyond 64 bits is a float to the JSON reader.
        (None, Some(n)) if n >= 2.0 => Some(n as u64),
        _ => None,
    }
}

/// Says whether `text` is an RFC 3339 time in UTC with whole seconds, like `2026-11-21T02:00:00Z`.
fn is_utc_seconds(text: &str) -> bool {
    let bytes = text.as_bytes();
    let pattern = b"dddd-dd-ddTdd:dd:ddZ";
    let shaped = bytes.len() == pattern.len()
        && bytes.iter().zip(pattern).all(|(b, p)| if *p == b'd' { b.is_ascii_digit() } else { b == p });
    let number = |at: usize, n: usize| {
        bytes[at..at + n].iter().fold(0u32, |value, digit| value * 10 + u32::from(digit - b'0'))
    };
    if !shaped {
        return false;
    }
    let (year, month, day) = (number(0, 4), number(5, 2), number(8, 2));
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    (1..=12).contains(&month)
        && (1..=days).contains(&day)
        && number(11, 2) < 24
        && number(14, 2) < 60
        && number(17, 2) < 60
}

/// Only the version of a header, whatever else is there.
struct Probe {
    version: Option<serde_json::Value>,
}

impl<'de> Deserialize<'de> for Probe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ProbeVisitor;
        impl<'de> Visitor<'de> for ProbeVisitor {
            type Value = Probe;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Probe, A::Error> {
                let mut version = None;
                while let Some(key) = map.next_key::<IsVersion>()? {
                    if key.0 && version.is_none() {
                        version = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Probe { version })
            }
        }
        deserializer.deserialize_map(ProbeVisitor)
    }
}

/// Whether a member's name is `strongroom`. Other names are not even decoded: damage inside of one must not
/// make the file look like something else than a header.
struct IsVersion(bool);

impl<'de> Deserialize<'de> for IsVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = IsVersion;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a member name")
            }

            fn visit_bytes<E: de::Error>(self, name: &[u8]) -> Result<IsVersion, E> {
                Ok(IsVersion(name == b"strongroom"))
            }
        }
        deserializer.deserialize_bytes(NameVisitor)
    }
}

/// The members before `mac`, in their order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderJson {
    strongroom: u64,
    vault_id: String,
    created: String,
    generation: u64,
    cipher: String,
    kem: String,
    public_key: String,
    signing_key: String,
    ingest_signing_key: String,
    chunker: ChunkerJson,
    slots: Vec<SlotJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChunkerJson {
    algorithm: String,
    min: u32,
    avg: u32,
    max: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotJson {
    id: u32,
    kind: String,
    label: String,
    created: String,
    kdf: KdfJson,
    nonce: String,
    wrapped: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KdfJson {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    m_kib: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p: Option<u32>,
    salt: String,
}

const KEM_NAME: &str = "x-wing";
const ARGON2ID_NAME: &str = "argon2id";
const BLAKE3_NAME: &str = "blake3";

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn hex_member<const N: usize>(text: &str, what: &'static str) -> Result<[u8; N], FormatError> {
    hex_array(text).ok_or(FormatError::Malformed(what))
}

fn require(condition: bool, what: &'static str) -> Result<(), FormatError> {
    if condition { Ok(()) } else { Err(FormatError::Malformed(what)) }
}

impl HeaderJson {
    fn from_header(header: &Header) -> Self {
        HeaderJson {
            strongroom: VERSION,
            vault_id: header.vault_id.to_hex(),
            created: header.created.clone(),
            generation: header.generation,
            cipher: header.cipher.as_str().to_owned(),
            kem: KEM_NAME.to_owned(),
            public_key: hex(&header.public_key),
            signing_key: hex(&header.signing_key),
            ingest_signing_key: hex(&header.ingest_signing_key),
            chunker: ChunkerJson {
                algorithm: ChunkerParams::ALGORITHM.to_owned(),
                min: header.chunker.min,
                avg: header.chunker.avg,
                max: header.chunker.max,
            },
            slots: header.slots.iter().map(SlotJson::from_slot).collect(),
        }
    }

    fn into_header(self) -> Result<Header, FormatError> {
        require(self.strongroom == VERSION, "strongroom is not 1")?;
        require(is_utc_seconds(&self.created), "created is no UTC time of whole seconds")?;
        require(self.generation >= 1, "generation is 0")?;
        require(self.kem == KEM_NAME, "unknown kem")?;
        require(self.chunker.algorithm == ChunkerParams::ALGORITHM, "unknown chunker algorithm")?;
        require((1..=SLOTS_MAX).contains(&self.slots.len()), "a header has 1 to 32 slots")?;
        let public_key: [u8; PUBLIC_KEY_LEN] =
            hex_member(&self.public_key, "public_key is not 2,432 hex digits")?;
        let slots = self.slots.into_iter().map(SlotJson::into_slot).collect::<Result<Vec<_>, _>>()?;
        for (i, slot) in slots.iter().enumerate() {
            require(slots[..i].iter().all(|other| other.id != slot.id), "slot ids repeat")?;
        }
        Ok(Header {
            vault_id: VaultId(hex_member(&self.vault_id, "vault_id is not 32 hex digits")?),
            created: self.created,
            generation: self.generation,
            cipher: Cipher::parse(&self.cipher).ok_or(FormatError::Malformed("unknown cipher"))?,
            public_key: public_key.to_vec(),
            signing_key: hex_member(&self.signing_key, "signing_key is not 64 hex digits")?,
            ingest_signing_key: hex_member(
                &self.ingest_signing_key,
                "ingest_signing_key is not 64 hex digits",
            )?,
            chunker: ChunkerParams { min: self.chunker.min, avg: self.chunker.avg, max: self.chunker.max },
            slots,
        })
    }
}

impl SlotJson {
    fn from_slot(slot: &Slot) -> Self {
        let kdf = match slot.kdf {
            SlotKdf::Argon2id { m_kib, t, p, salt } => KdfJson {
                name: ARGON2ID_NAME.to_owned(),
                m_kib: Some(m_kib),
                t: Some(t),
                p: Some(p),
                salt: hex(&salt),
            },
            SlotKdf::Blake3 { salt } => {
                KdfJson { name: BLAKE3_NAME.to_owned(), m_kib: None, t: None, p: None, salt: hex(&salt) }
            }
        };
        SlotJson {
            id: slot.id,
            kind: slot.kind.as_str().to_owned(),
            label: slot.label.clone(),
            created: slot.created.clone(),
            kdf,
            nonce: hex(&slot.nonce),
            wrapped: hex(&slot.wrapped),
        }
    }

    fn into_slot(self) -> Result<Slot, FormatError> {
        require(self.id >= 1, "slot id is 0")?;
        require(self.label.len() <= LABEL_LEN_MAX, "slot label is longer than 64 bytes")?;
        require(is_utc_seconds(&self.created), "slot created is no UTC time of whole seconds")?;
        let kind = SlotKind::parse(&self.kind).ok_or(FormatError::Malformed("unknown slot kind"))?;
        let salt = hex_member(&self.kdf.salt, "slot salt is not 64 hex digits")?;
        let kdf = match (kind, self.kdf) {
            (SlotKind::Passphrase, KdfJson { name, m_kib: Some(m_kib), t: Some(t), p: Some(p), .. })
                if name == ARGON2ID_NAME =>
            {
                SlotKdf::Argon2id { m_kib, t, p, salt }
            }
            (SlotKind::Keyfile | SlotKind::Recovery, KdfJson { name, m_kib: None, t: None, p: None, .. })
                if name == BLAKE3_NAME =>
            {
                SlotKdf::Blake3 { salt }
            }
            _ => return Err(FormatError::Malformed("slot kdf does not fit its kind")),
        };
        kdf.check()?;
        Ok(Slot {
            id: self.id,
            kind,
            label: self.label,
            created: self.created,
            kdf,
            nonce: hex_member(&self.nonce, "slot nonce is not 48 hex digits")?,
            wrapped: hex_member(&self.wrapped, "slot wrapped is not 96 hex digits")?,
        })
    }
}

#[cfg(test)]
mod tests;
