//! Sealing of what never leaves the machine: blocks of the live database and records of the journal.
//!
//! Local state is rewritten in place, so counters can't be nonces (a crash would repeat one). XChaCha20's
//! nonces are long enough to be random.

use std::sync::Arc;

use super::CryptoError;
use super::secret::Secret;
use super::xcc::{NONCE_LEN, TAG_LEN, Xcc};
use crate::env::Env;
use crate::format::VaultId;

/// Plaintext of a block of the live database, in bytes.
pub const LIVE_BLOCK_LEN: usize = 4096;
/// The same block sealed: nonce, ciphertext, tag.
pub const LIVE_BLOCK_SEALED_LEN: usize = NONCE_LEN + LIVE_BLOCK_LEN + TAG_LEN;

const BLOCK_DOMAIN: &[u8; 24] = b"strongroom v1 live block";
const RECORD_DOMAIN: &[u8] = b"strongroom v1 journal record";
const BLOCK_AAD_LEN: usize = BLOCK_DOMAIN.len() + VaultId::LEN + 8 + 8;

/// The keys of the local state. Cloning gives another handle to the same keys.
#[derive(Clone)]
pub struct LiveKeys(Arc<Keys>);

struct Keys {
    vault_id: VaultId,
    blocks: Xcc,
    journal: Xcc,
}

impl LiveKeys {
    pub(crate) fn new(vault_id: VaultId, blocks: &Secret<32>, journal: &Secret<32>) -> Self {
        LiveKeys(Arc::new(Keys { vault_id, blocks: Xcc::new(blocks), journal: Xcc::new(journal) }))
    }

    /// Seals a block for its place and version: `nonce || ciphertext || tag`.
    ///
    /// # Panics
    ///
    /// If `out` is not [`LIVE_BLOCK_SEALED_LEN`] bytes long.
    pub fn seal_block(
        &self,
        env: &dyn Env,
        block: u64,
        version: u64,
        plain: &[u8; LIVE_BLOCK_LEN],
        out: &mut [u8],
    ) {
        let (nonce, rest) = out.split_first_chunk_mut::<NONCE_LEN>().expect("a buffer for a sealed block");
        let (body, tag) = rest.split_last_chunk_mut::<TAG_LEN>().expect("a buffer for a sealed block");
        env.random(nonce);
        body.copy_from_slice(plain);
        *tag = self.0.blocks.seal_in_place(nonce, &self.block_aad(block, version), body);
    }

    /// Opens a block that was sealed for this place and version.
    ///
    /// # Errors
    ///
    /// [`CryptoError::Tampered`]; `out` then holds nothing of the plaintext.
    pub fn open_block(
        &self,
        block: u64,
        version: u64,
        sealed: &[u8],
        out: &mut [u8; LIVE_BLOCK_LEN],
    ) -> Result<(), CryptoError> {
        const WHAT: &str = "live state: a block";
        let parts = || {
            let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
            let (body, tag) = rest.split_last_chunk::<TAG_LEN>()?;
            Some((nonce, <&[u8; LIVE_BLOCK_LEN]>::try_from(body).ok()?, tag))
        };
        let (nonce, body, tag) = parts().ok_or(CryptoError::Tampered(WHAT))?;
        *out = *body;
        self.0.blocks.open_in_place(nonce, &self.block_aad(block, version), out, tag, WHAT)
    }

    /// Seals a record of the journal: `nonce || ciphertext || tag`. `aad` binds it to its place.
    #[must_use]
    pub fn seal_record(&self, env: &dyn Env, aad: &[u8], plain: &[u8]) -> Vec<u8> {
        self.0.journal.seal(env, &self.record_aad(aad), plain)
    }

    /// Opens what [`Self::seal_record`] returned for the same `aad`.
    pub fn open_record(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.0.journal.open(&self.record_aad(aad), sealed, "live state: a journal record")
    }

    fn block_aad(&self, block: u64, version: u64) -> [u8; BLOCK_AAD_LEN] {
        let mut aad = [0; BLOCK_AAD_LEN];
        let (domain, rest) = aad.split_at_mut(BLOCK_DOMAIN.len());
        let (vault, rest) = rest.split_at_mut(VaultId::LEN);
        let (place, age) = rest.split_at_mut(8);
        domain.copy_from_slice(BLOCK_DOMAIN);
        vault.copy_from_slice(self.0.vault_id.as_bytes());
        place.copy_from_slice(&block.to_le_bytes());
        age.copy_from_slice(&version.to_le_bytes());
        aad
    }

    fn record_aad(&self, aad: &[u8]) -> Vec<u8> {
        [RECORD_DOMAIN, self.0.vault_id.as_bytes(), aad].concat()
    }
}

#[cfg(test)]
mod tests;
