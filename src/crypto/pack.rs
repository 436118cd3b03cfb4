//! The key of one pack: seals and opens its frames, footer and trailer.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::CryptoError;
use super::context;
use super::secret::Secret;
use super::xcc::Xcc;
use crate::env::Env;
use crate::format::{
    BLOCK_LEN, BlockDesc, ChunkId, Cipher, Codec, FRAME_TAG_LEN, PackHeader, PackKind, PackUid, TRAILER_LEN,
    Trailer, VaultId, frame_aad,
};

const FOOTER_DOMAIN: &[u8] = b"strongroom v1 footer";
const TRAILER_DOMAIN: &[u8] = b"strongroom v1 trailer";

/// The key of one pack. All methods take `&self` and may be called from many threads; share it in an `Arc`.
///
/// A pack key is drawn for one file, and the caller gives each frame of that file a number of its own: the
/// number is the nonce.
pub struct PackKey {
    frames: LessSafeKey,
    footer: Xcc,
    padding: Secret<32>,
    vault_id: VaultId,
    uid: PackUid,
    kind: PackKind,
}

impl PackKey {
    /// pack key = KDF(context, ss || header bytes)
    pub(crate) fn derive(shared: &Secret<32>, header: &PackHeader) -> Result<Self, CryptoError> {
        let key = Secret::derive(context::PACK_KEY, &[shared.expose(), &header.encode()]);
        let algorithm = match header.cipher {
            Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Cipher::Aes256Gcm => &AES_256_GCM,
        };
        // The crate keeps its own copy of the key, which it wipes when it is dropped.
        let frames = UnboundKey::new(algorithm, key.expose())
            .map_err(|_| CryptoError::Seal("the cipher is not available"))?;
        let footer = Secret::derive(context::PACK_FOOTER, &[key.expose()]);
        Ok(PackKey {
            frames: LessSafeKey::new(frames),
            footer: Xcc::new(&footer),
            padding: Secret::derive(context::PACK_PADDING, &[key.expose()]),
            vault_id: header.vault_id,
            uid: header.uid,
            kind: header.kind,
        })
    }

    /// Returns what the pack's chunks are.
    #[must_use]
    pub fn kind(&self) -> PackKind {
        self.kind
    }

    /// Seals the body that stands in `body` from `start` on, in place, and appends the tag.
    ///
    /// `frame` is the nonce: no other frame of this pack has it. `block`, `last` and `plain_len` say which
    /// block of the chunk `id` this is, and how long its plaintext is.
    #[expect(clippy::too_many_arguments, reason = "what a frame is bound to")]
    pub fn seal_frame(
        &self,
        frame: u64,
        id: &ChunkId,
        block: u32,
        last: bool,
        codec: Codec,
        plain_len: u32,
        body: &mut Vec<u8>,
        start: usize,
    ) -> Result<(), CryptoError> {
        let in_place = body.get_mut(start..).ok_or(CryptoError::Seal("a frame begins behind its buffer"))?;
        let body_len = u32::try_from(in_place.len()).map_err(|_| CryptoError::Seal("a frame is too long"))?;
        // A reader would refuse such a frame: better to fail now than to lose data.
        BlockDesc { codec, body_len }.check(plain_len)?;
        let aad = frame_aad(&self.vault_id, &self.uid, frame, id, block, last, codec, plain_len, body_len);
        let tag = self
            .frames
            .seal_in_place_separate_tag(frame_nonce(frame), Aad::from(aad), in_place)
            .map_err(|_| CryptoError::Seal("the cipher failed"))?;
        body.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens a frame, `ciphertext || tag`, in place; returns the length of the body, which `sealed` then
    /// begins with.
    #[expect(clippy::too_many_arguments, reason = "what a frame is bound to")]
    pub fn open_frame(
        &self,
        frame: u64,
        id: &ChunkId,
        block: u32,
        last: bool,
        codec: Codec,
        plain_len: u32,
        sealed: &mut [u8],
    ) -> Result<usize, CryptoError> {
        const WHAT: CryptoError = CryptoError::Tampered("pack: a frame");
        let body_len = sealed.len().checked_sub(FRAME_TAG_LEN).filter(|n| *n <= BLOCK_LEN).ok_or(WHAT)?;
        // At most BLOCK_LEN, so it fits.
        let aad_len = body_len as u32;
        let aad = frame_aad(&self.vault_id, &self.uid, frame, id, block, last, codec, plain_len, aad_len);
        match self.frames.open_in_place(frame_nonce(frame), Aad::from(aad), sealed) {
            Ok(body) => Ok(body.len()),
            Err(_) => Err(WHAT),
        }
    }

    /// Seals the plaintext of the footer.
    #[must_use]
    pub fn seal_footer(&self, env: &dyn Env, footer: &[u8]) -> Vec<u8> {
        self.footer.seal(env, &self.aad(FOOTER_DOMAIN), footer)
    }

    /// Opens what [`Self::seal_footer`] returned.
    pub fn open_footer(&self, sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.footer.open(&self.aad(FOOTER_DOMAIN), sealed, "pack: its footer")
    }

    /// Seals a trailer.
    #[must_use]
    pub fn seal_trailer(&self, env: &dyn Env, trailer: &Trailer) -> [u8; TRAILER_LEN] {
        let sealed = self.footer.seal(env, &self.aad(TRAILER_DOMAIN), &trailer.encode());
        sealed.try_into().expect("nonce, 24 bytes and tag are 64 bytes")
    }

    /// Opens the last 64 bytes of a pack.
    pub fn open_trailer(&self, sealed: &[u8; TRAILER_LEN]) -> Result<Trailer, CryptoError> {
        let plain = self.footer.open(&self.aad(TRAILER_DOMAIN), sealed, "pack: its trailer")?;
        Ok(Trailer::parse(&plain)?)
    }

    /// Returns `len` bytes of padding: a prefix of the BLAKE3 XOF of KH(padding key, "").
    #[must_use]
    pub fn padding(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new_keyed(self.padding.expose()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn aad(&self, domain: &[u8]) -> Vec<u8> {
        [domain, self.vault_id.as_bytes(), self.uid.as_bytes(), &[self.kind as u8]].concat()
    }
}

/// nonce = 00 00 00 00 || u64 frame number
fn frame_nonce(frame: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&frame.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests;
