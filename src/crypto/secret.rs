//! Types that hold secrets: on the heap in one place, wiped when dropped, never printed, copied or compared
//! by accident.

use zeroize::{Zeroize, Zeroizing};

use crate::env::Env;

/// `N` secret bytes. Moving it moves a pointer, so no copies of the bytes are left behind.
pub struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Lets `fill` write the secret into its final place.
    pub(crate) fn fill_with(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut secret = Secret(Box::new([0; N]));
        fill(&mut secret.0);
        secret
    }

    /// Draws random bytes.
    pub(crate) fn random(env: &dyn Env) -> Self {
        Self::fill_with(|bytes| env.random(bytes))
    }

    /// Returns the bytes. Whoever calls this keeps them from getting anywhere else.
    pub(crate) fn expose(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Secret<32> {
    /// `KDF(context, parts[0] || parts[1] || ...)`: BLAKE3 `derive_key`.
    pub(crate) fn derive(context: &'static str, parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        for part in parts {
            hasher.update(part);
        }
        Self::fill_with(|key| hasher.finalize_xof().fill(key))
    }
}

/// The one secret of a vault that all others are derived from; 32 bytes.
pub struct RootSecret(Secret<32>);

impl RootSecret {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// Draws the root secret of a new vault.
    #[must_use]
    pub fn generate(env: &dyn Env) -> Self {
        RootSecret(Secret::random(env))
    }

    /// Takes the 32 bytes of a root secret; `None` for any other length. Test vectors name roots like this.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        Some(RootSecret(Secret::fill_with(|root| root.copy_from_slice(bytes))))
    }

    /// Derives the key for one purpose.
    pub(crate) fn derive(&self, context: &'static str) -> Secret<32> {
        Secret::derive(context, &[self.0.expose()])
    }

    pub(crate) fn expose(&self) -> &[u8; Self::LEN] {
        self.0.expose()
    }
}

/// Secret bytes of any length: a passphrase, the content of a keyfile.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes the bytes over; they are wiped when this is dropped.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        SecretBytes(Zeroizing::new(bytes))
    }

    /// Returns the bytes. Whoever calls this keeps them from getting anywhere else.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}
