//! Ways to the root secret, and the keys that come from it: sections 3 and 4 of docs/format.md.

use argon2::{Algorithm, Argon2, Params, Version};
use ed25519_dalek::SigningKey;
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::{Secret, h, kdf, xcc_open};
use crate::header::{Header, Kdf, Signers, Slot, SlotKind};
use crate::xwing::{Decapsulator, PUBLIC_BYTES};

/// Fewest bytes of a key file.
pub const KEYFILE_BYTES_MIN: usize = 32;
/// Most bytes of a key file.
pub const KEYFILE_BYTES_MAX: usize = 1 << 20;

/// What opens a vault. Wiped when dropped.
pub enum Unlock {
    /// The root secret itself; for tests.
    Root([u8; 32]),
    /// A passphrase, without the newline that ended its file.
    Passphrase(Vec<u8>),
    /// The bytes of a key file.
    Keyfile(Vec<u8>),
    /// A recovery key as it is written, `SR1-...`.
    Recovery(String),
}

impl Drop for Unlock {
    fn drop(&mut self) {
        match self {
            Self::Root(b) => b.zeroize(),
            Self::Passphrase(b) | Self::Keyfile(b) => b.zeroize(),
            Self::Recovery(s) => s.zeroize(),
        }
    }
}

/// Why a text is no recovery key. Holds nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryError {
    /// It does not have the form of one: why.
    Form(&'static str),
    /// Its last three bytes are not the check of the others.
    CheckDigits,
}

impl std::fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Form(why) => why,
            Self::CheckDigits => "its check digits are wrong: a character was mistyped",
        })
    }
}

/// Why a key did not open a vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnlockError {
    /// There is no slot of this kind.
    NoSlot(&'static str),
    /// No slot opened with it.
    Wrong(&'static str),
    /// The recovery key is not one: what is wrong with its text.
    Recovery(RecoveryError),
    /// The key file has fewer or more bytes than one may have.
    KeyfileLength(usize),
    /// Argon2id could not be computed, usually because its memory (in KiB) was not to be had.
    Argon2(u32),
}

impl std::fmt::Display for UnlockError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSlot(kind) => write!(f, "this vault has no {kind} slot"),
            Self::Wrong(kind) => write!(f, "wrong {kind}: it opens no key slot of this vault"),
            Self::Recovery(why) => write!(f, "not a recovery key: {why}"),
            Self::KeyfileLength(n) => {
                write!(f, "a key file has {KEYFILE_BYTES_MIN} to {KEYFILE_BYTES_MAX} bytes, this one {n}")
            }
            Self::Argon2(kib) => write!(f, "Argon2id failed; it needs {kib} KiB of memory"),
        }
    }
}

impl std::error::Error for UnlockError {}

/// The keys of section 4 that a reader needs.
pub struct Keys {
    /// Header MAC key.
    pub header_mac: Secret,
    /// Key of the ids of data chunks.
    pub data_id: Secret,
    /// Key of the ids of tree objects.
    pub tree_id: Secret,
    /// The X-Wing decapsulation key.
    pub kem: Decapsulator,
    /// The X-Wing encapsulation key.
    pub public_key: [u8; PUBLIC_BYTES],
    /// Public keys of the owner and of the ingest role.
    pub signers: Signers,
}

impl Keys {
    /// Derives everything from the root secret.
    pub fn derive(root: &[u8; 32]) -> Self {
        let verifying = |context| {
            let seed = kdf(context, &[root]);
            SigningKey::from_bytes(&seed).verifying_key().to_bytes()
        };
        let kem = Decapsulator::new(&kdf("strongroom 2026 v1 kem seed", &[root]));
        Self {
            header_mac: kdf("strongroom 2026 v1 header mac", &[root]),
            data_id: kdf("strongroom 2026 v1 data chunk id", &[root]),
            tree_id: kdf("strongroom 2026 v1 tree chunk id", &[root]),
            public_key: kem.public_key(),
            kem,
            signers: Signers {
                owner: verifying("strongroom 2026 v1 snapshot signing"),
                ingest: verifying("strongroom 2026 v1 ingest signing"),
            },
        }
    }

    /// Whether the public keys of the header are those of this root secret (HDR-3).
    pub fn match_header(&self, header: &Header) -> bool {
        self.public_key == header.public_key && self.signers == header.signers
    }
}

/// Finds the root secret with `key`, trying each slot of its kind.
pub fn root_secret(header: &Header, key: &Unlock) -> Result<Secret, UnlockError> {
    let (kind, name) = match key {
        Unlock::Root(root) => return Ok(Zeroizing::new(*root)),
        Unlock::Passphrase(_) => (SlotKind::Passphrase, "passphrase"),
        Unlock::Keyfile(bytes) => {
            if !(KEYFILE_BYTES_MIN..=KEYFILE_BYTES_MAX).contains(&bytes.len()) {
                return Err(UnlockError::KeyfileLength(bytes.len()));
            }
            (SlotKind::Keyfile, "key file")
        }
        Unlock::Recovery(_) => (SlotKind::Recovery, "recovery key"),
    };
    let recovery = match key {
        Unlock::Recovery(text) => Some(recovery_key(text).map_err(UnlockError::Recovery)?),
        _ => None,
    };
    let mut any = false;
    for slot in header.slots.iter().filter(|s| s.kind == kind) {
        any = true;
        let kek = match (key, &slot.kdf) {
            (Unlock::Passphrase(p), Kdf::Argon2id { m_kib, t, p: lanes, salt }) => {
                argon2id(p, salt, *m_kib, *t, *lanes)?
            }
            (Unlock::Keyfile(bytes), Kdf::Blake3 { salt }) => {
                kdf("strongroom 2026 v1 keyfile slot", &[salt, bytes])
            }
            (Unlock::Recovery(_), Kdf::Blake3 { salt }) => match &recovery {
                Some(key) => kdf("strongroom 2026 v1 recovery slot", &[salt, &**key]),
                None => continue,
            },
            // The header's parser lets no other pair through.
            _ => continue,
        };
        if let Some(root) = open_slot(header, slot, &kek) {
            return Ok(root);
        }
    }
    Err(if any { UnlockError::Wrong(name) } else { UnlockError::NoSlot(name) })
}

fn argon2id(passphrase: &[u8], salt: &[u8], m_kib: u32, t: u32, p: u32) -> Result<Secret, UnlockError> {
    let failed = UnlockError::Argon2(m_kib);
    let params = Params::new(m_kib, t, p, Some(32)).map_err(|_| failed.clone())?;
    let mut key = Zeroizing::new([0u8; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase, salt, &mut *key)
        .map_err(|_| failed)?;
    Ok(key)
}

fn open_slot(header: &Header, slot: &Slot, kek: &Secret) -> Option<Secret> {
    let plain = xcc_open(kek, &slot.nonce, &slot_aad(header, slot), &slot.wrapped)?;
    Some(Zeroizing::new(plain.as_slice().try_into().ok()?))
}

/// The associated data of a slot's sealed root secret.
pub fn slot_aad(header: &Header, slot: &Slot) -> Vec<u8> {
    let (m, t, p, salt) = match &slot.kdf {
        Kdf::Argon2id { m_kib, t, p, salt } => (*m_kib, *t, *p, salt),
        Kdf::Blake3 { salt } => (0, 0, 0, salt),
    };
    let mut aad = b"strongroom v1 slot".to_vec();
    aad.extend_from_slice(&header.vault_id);
    aad.extend_from_slice(&slot.id.to_le_bytes());
    aad.push(slot.kind.number());
    for n in [m, t, p] {
        aad.extend_from_slice(&n.to_le_bytes());
    }
    aad.extend_from_slice(salt);
    aad.push(header.cipher);
    aad.extend_from_slice(&header.public_key);
    aad.extend_from_slice(&header.signers.owner);
    aad.extend_from_slice(&header.signers.ingest);
    aad
}

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Reads a written recovery key.
pub fn recovery_key(text: &str) -> Result<Secret, RecoveryError> {
    let wrong = RecoveryError::Form;
    let mut symbols = Zeroizing::new(Vec::with_capacity(64));
    for c in text.trim().chars() {
        let c = match c.to_ascii_uppercase() {
            '-' | ' ' => continue,
            'O' => '0',
            'I' | 'L' => '1',
            c => c,
        };
        let value = u8::try_from(c).ok().and_then(|b| CROCKFORD.iter().position(|&s| s == b));
        symbols.push(value.ok_or(wrong("it has a character that recovery keys don't use"))? as u8);
        if symbols.len() > 59 {
            return Err(wrong("it is too long"));
        }
    }
    // "SR1" in the alphabet's values.
    let Some(body) = symbols.strip_prefix(&[25u8, 24, 1][..]) else {
        return Err(wrong("it does not start with SR1"));
    };
    if body.len() != 56 {
        return Err(wrong("it is too short"));
    }
    let mut bytes = Zeroizing::new([0u8; 35]);
    let (mut acc, mut bits, mut at) = (0u32, 0u32, 0usize);
    for &symbol in body {
        acc = (acc << 5) | u32::from(symbol);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes[at] = (acc >> bits) as u8;
            acc &= (1 << bits) - 1;
            at += 1;
        }
    }
    let mut key = Zeroizing::new([0u8; 32]);
    key.copy_from_slice(&bytes[..32]);
    let mut hashed = Zeroizing::new(b"strongroom recovery v1".to_vec());
    hashed.extend_from_slice(&*key);
    if h(&hashed)[..3] == bytes[32..] { Ok(key) } else { Err(RecoveryError::CheckDigits) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Writes a recovery key straight from the text of the format, as a writer would.
    fn write(key: &[u8; 32]) -> String {
        let mut all = key.to_vec();
        all.extend_from_slice(&h(&[&b"strongroom recovery v1"[..], key].concat())[..3]);
        let bits: Vec<u8> = all.iter().flat_map(|b| (0..8).rev().map(move |i| (b >> i) & 1)).collect();
        let symbols: String = bits
            .chunks(5)
            .map(|c| CROCKFORD[c.iter().fold(0usize, |n, &b| n * 2 + usize::from(b))] as char)
            .collect();
        let groups: Vec<&str> = (0..8).map(|i| &symbols[7 * i..7 * i + 7]).collect();
        format!("SR1-{}", groups.join("-"))
    }

    #[test]
    fn recovery_keys_are_forgiving_about_shape_only() {
        let key = *blake3::hash(b"recovery").as_bytes();
        let text = write(&key);
        assert_eq!(text.len(), 4 + 8 * 7 + 7);
        assert_eq!(*recovery_key(&text).unwrap(), key);
        let sloppy = text.to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
        assert_eq!(*recovery_key(&format!(" {sloppy}\n")).unwrap(), key);
        assert!(recovery_key(&text.replace('-', "\t")).is_err(), "spaces and dashes, nothing else");
        assert!(recovery_key(&text[1..]).is_err());
        assert!(recovery_key(&text[..text.len() - 1]).is_err());
        assert!(recovery_key(&format!("{text}0")).is_err());
        assert!(recovery_key(&text.replace("SR1", "SR2")).is_err());
        assert!(recovery_key(&format!("{}U", &text[..text.len() - 1])).is_err());
        let last = if text.ends_with('7') { '8' } else { '7' };
        assert!(recovery_key(&format!("{}{last}", &text[..text.len() - 1])).is_err());
    }

    #[test]
    fn argon2_known_answer() {
        // RFC 9106 has no vector without secret and associated data; this one is from the reference program:
        // echo -n password | argon2 somesalt -id -t 2 -m 16 -p 1 -l 32
        let out = argon2id(b"password", b"somesalt", 65536, 2, 1).unwrap();
        assert_eq!(
            crate::bytes::hex(&*out),
            "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"
        );
    }
}
