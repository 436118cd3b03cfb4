//! The primitives of section 1 of docs/format.md under the names used there.

use aes_gcm::Aes256Gcm;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, XChaCha20Poly1305};
use zeroize::Zeroizing;

use crate::bytes::Id;

/// 32 secret bytes, wiped when dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// BLAKE3-256.
pub fn h(bytes: &[u8]) -> Id {
    *blake3::hash(bytes).as_bytes()
}

/// Keyed BLAKE3.
pub fn kh(key: &[u8; 32], bytes: &[u8]) -> Id {
    *blake3::keyed_hash(key, bytes).as_bytes()
}

/// BLAKE3 `derive_key` over the concatenation of `parts`.
pub fn kdf(context: &str, parts: &[&[u8]]) -> Secret {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(part);
    }
    let key = Zeroizing::new(*hasher.finalize().as_bytes());
    zeroize::Zeroize::zeroize(&mut hasher);
    key
}

/// Opens XChaCha20-Poly1305; none if the tag is wrong.
pub fn xcc_open(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let cipher = XChaCha20Poly1305::new(key.into());
    cipher.decrypt(nonce.into(), Payload { msg: sealed, aad }).ok().map(Zeroizing::new)
}

/// The AEAD of a pack's frames.
pub enum FrameCipher {
    /// `chacha20-poly1305`, 1.
    ChaCha(Box<ChaCha20Poly1305>),
    /// `aes-256-gcm`, 2.
    Aes(Box<Aes256Gcm>),
}

impl FrameCipher {
    /// The cipher with this number, or none if format 1 has no such number.
    pub fn new(number: u8, key: &[u8; 32]) -> Option<Self> {
        match number {
            1 => Some(Self::ChaCha(Box::new(ChaCha20Poly1305::new(key.into())))),
            2 => Some(Self::Aes(Box::new(Aes256Gcm::new(key.into())))),
            _ => None,
        }
    }

    /// Opens one frame: ciphertext and 16-byte tag; none if the tag is wrong.
    pub fn open(&self, nonce: &[u8; 12], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let payload = Payload { msg: sealed, aad };
        match self {
            Self::ChaCha(c) => c.decrypt(nonce.into(), payload).ok(),
            Self::Aes(c) => c.decrypt(nonce.into(), payload).ok(),
        }
    }
}
