//! `XCC`: XChaCha20-Poly1305 with random nonces, for everything that is not a pack frame.

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{Key, KeyInit, XChaCha20Poly1305, XNonce};

use super::CryptoError;
use super::secret::Secret;
use crate::env::Env;

pub(crate) const NONCE_LEN: usize = 24;
pub(crate) const TAG_LEN: usize = 16;

/// A key that is ready for use; its copy of the key is wiped when it is dropped.
pub(crate) struct Xcc(XChaCha20Poly1305);

/// XChaCha20-Poly1305 fails for messages above 256 GiB only. No caller has one.
const FITS: &str = "a message below 256 GiB can be sealed";

impl Xcc {
    pub(crate) fn new(key: &Secret<32>) -> Self {
        let key: &Key = key.expose().into();
        Xcc(XChaCha20Poly1305::new(key))
    }

    /// Encrypts `buf` in place and returns the tag.
    pub(crate) fn seal_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce: &XNonce = nonce.into();
        self.0.encrypt_inout_detached(nonce, aad, buf.into()).expect(FITS).into()
    }

    /// Decrypts `buf` in place; `what` names it in the error. On error `buf` holds nothing of the plaintext.
    pub(crate) fn open_in_place(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buf: &mut [u8],
        tag: &[u8; TAG_LEN],
        what: &'static str,
    ) -> Result<(), CryptoError> {
        let nonce: &XNonce = nonce.into();
        self.0
            .decrypt_inout_detached(nonce, aad, buf.into(), tag.into())
            .map_err(|_| CryptoError::Tampered(what))
    }

    /// Returns `nonce || XCC[key](plain)` with a nonce from `env`.
    pub(crate) fn seal(&self, env: &dyn Env, aad: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        env.random(&mut nonce);
        let mut out = Vec::with_capacity(NONCE_LEN + plain.len() + TAG_LEN);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let tag = self.seal_in_place(&nonce, aad, &mut out[NONCE_LEN..]);
        out.extend_from_slice(&tag);
        out
    }

    /// Opens what [`Self::seal`] returned.
    pub(crate) fn open(&self, aad: &[u8], sealed: &[u8], what: &'static str) -> Result<Vec<u8>, CryptoError> {
        let (nonce, rest) = sealed.split_first_chunk().ok_or(CryptoError::Tampered(what))?;
        self.open_with_nonce(nonce, aad, rest, what)
    }

    /// Opens ciphertext || tag.
    pub(crate) fn open_with_nonce(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        what: &'static str,
    ) -> Result<Vec<u8>, CryptoError> {
        let (body, tag) = sealed.split_last_chunk().ok_or(CryptoError::Tampered(what))?;
        let mut plain = body.to_vec();
        self.open_in_place(nonce, aad, &mut plain, tag, what)?;
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::env::TestEnv;

    /// draft-irtf-cfrg-xchacha-03, appendix A.3.1.
    #[test]
    fn the_drafts_test_vector_holds() {
        let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
        let key = Secret::<32>::fill_with(|k| *k = std::array::from_fn(|i| 0x80 + i as u8));
        let nonce: [u8; 24] = std::array::from_fn(|i| 0x40 + i as u8);
        let aad = hex("50515253c0c1c2c3c4c5c6c7");
        let plain = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
        let mut buf = plain.to_vec();
        let tag = Xcc::new(&key).seal_in_place(&nonce, &aad, &mut buf);
        assert_eq!(tag[..], hex("c0875924c1c7987947deafd8780acf49"));
        assert_eq!(buf[..16], hex("bd6d179d3e83d43b9576579493c0e939"));
        Xcc::new(&key).open_in_place(&nonce, &aad, &mut buf, &tag, "vector").unwrap();
        assert_eq!(buf, plain);
    }

    #[test]
    fn nothing_but_the_same_bytes_opens() {
        let env = TestEnv::new(3);
        let key = Xcc::new(&Secret::random(&env));
        let sealed = key.seal(&env, b"aad", b"plain");
        assert_eq!(sealed.len(), NONCE_LEN + 5 + TAG_LEN);
        assert_eq!(key.open(b"aad", &sealed, "x"), Ok(b"plain".to_vec()));
        let tampered = Err(CryptoError::Tampered("x"));
        for n in 0..sealed.len() {
            assert_eq!(key.open(b"aad", &sealed[..n], "x"), tampered, "cut to {n}");
        }
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.open(b"aad", &bad, "x"), tampered, "bit {bit}");
        }
        assert_eq!(key.open(b"aae", &sealed, "x"), tampered);
        assert_eq!(Xcc::new(&Secret::random(&env)).open(b"aad", &sealed, "x"), tampered);
        assert_ne!(key.seal(&env, b"aad", b"plain"), sealed, "nonces are not used twice");
    }
}
