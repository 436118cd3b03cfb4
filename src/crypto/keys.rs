//! Everything that is derived from the root secret, and what only the vault's owner can do with it.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use x_wing::kem::common::rand_core::{TryCryptoRng, TryRng};
use x_wing::{Decapsulate, DecapsulationKey, Decapsulator, Encapsulate, EncapsulationKey, KeyExport};
use zeroize::Zeroize;

use super::CryptoError;
use super::context;
use super::live::LiveKeys;
use super::pack::PackKey;
use super::secret::{RootSecret, Secret};
use super::xcc::{NONCE_LEN, Xcc};
use crate::env::Env;
use crate::format::chain::{self, ChainFile, Origin, PublicPart, SealedPart, SignedDigest, Signer};
use crate::format::{ChunkId, Cipher, Header, PackHeader, PackKind, PackUid, SnapshotId, VaultId};

const SNAPSHOT_SEAL_DOMAIN: &[u8] = b"strongroom v1 snapshot seal";

/// Chain files whose signatures are remembered: 32 bytes each.
const VERIFIED_MAX: usize = 1 << 17;

/// The keys of an unlocked vault. Share it in an `Arc`.
pub struct VaultKeys {
    vault_id: VaultId,
    cipher: Cipher,
    data_id: Secret<32>,
    tree_id: Secret<32>,
    kem: DecapsulationKey,
    signing: SigningKey,
    verifying: ChainVerifier,
    /// Hashes of chain files whose signature was right.
    verified: Mutex<HashSet<SnapshotId>>,
    #[cfg(test)]
    verifications: std::sync::atomic::AtomicU64,
    chunker_seed: u64,
    live: LiveKeys,
}

/// The public halves of a vault's keys.
pub(crate) struct PublicKeys {
    pub(crate) kem: Vec<u8>,
    pub(crate) signing: [u8; 32],
    pub(crate) ingest_signing: [u8; 32],
}

impl PublicKeys {
    pub(crate) fn of(root: &RootSecret) -> Self {
        PublicKeys {
            kem: kem_key(root).encapsulation_key().to_bytes().to_vec(),
            signing: signing_key(root, context::SIGNING).verifying_key().to_bytes(),
            ingest_signing: signing_key(root, context::INGEST_SIGNING).verifying_key().to_bytes(),
        }
    }
}

fn kem_key(root: &RootSecret) -> DecapsulationKey {
    let seed = root.derive(context::KEM_SEED);
    <DecapsulationKey as x_wing::KeyInit>::new(seed.expose().into())
}

fn signing_key(root: &RootSecret, context: &'static str) -> SigningKey {
    SigningKey::from_bytes(root.derive(context).expose())
}

/// Randomness for encapsulation, from the environment like all other.
struct EnvRng<'a>(&'a dyn Env);

impl TryRng for EnvRng<'_> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.0.random(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.0.random(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Self::Error> {
        self.0.random(dst);
        Ok(())
    }
}

impl TryCryptoRng for EnvRng<'_> {}

/// Draws a shared secret for the holder of the private half of `key`; returns the ciphertext and the secret.
fn encapsulate(env: &dyn Env, key: &EncapsulationKey) -> (Vec<u8>, Secret<32>) {
    let (ciphertext, mut shared) = key.encapsulate_with_rng(&mut EnvRng(env));
    let secret = Secret::fill_with(|bytes| bytes.copy_from_slice(&shared));
    shared.zeroize();
    (ciphertext.to_vec(), secret)
}

impl VaultKeys {
    /// Derives the keys and checks that the header's public keys are theirs.
    ///
    /// # Errors
    ///
    /// [`CryptoError::Tampered`] if the header has other public keys: packs would be sealed to someone else.
    pub fn derive(root: &RootSecret, header: &Header) -> Result<Self, CryptoError> {
        // FORMAT HDR-3
        let kem = kem_key(root);
        let signing = signing_key(root, context::SIGNING);
        let ingest_signing = signing_key(root, context::INGEST_SIGNING).verifying_key();
        if kem.encapsulation_key().to_bytes()[..] != header.public_key[..] {
            return Err(CryptoError::Tampered("vault header: public_key is not this vault's"));
        }
        if signing.verifying_key().to_bytes() != header.signing_key {
            return Err(CryptoError::Tampered("vault header: signing_key is not this vault's"));
        }
        if ingest_signing.to_bytes() != header.ingest_signing_key {
            return Err(CryptoError::Tampered("vault header: ingest_signing_key is not this vault's"));
        }
        let chunker = root.derive(context::CHUNKER);
        let [c0, c1, c2, c3, c4, c5, c6, c7, ..] = *chunker.expose();
        Ok(VaultKeys {
            vault_id: header.vault_id,
            cipher: header.cipher,
            data_id: root.derive(context::DATA_ID),
            tree_id: root.derive(context::TREE_ID),
            verifying: ChainVerifier {
                vault_id: header.vault_id,
                owner: signing.verifying_key(),
                ingest: ingest_signing,
            },
            verified: Mutex::default(),
            #[cfg(test)]
            verifications: std::sync::atomic::AtomicU64::default(),
            kem,
            signing,
            chunker_seed: u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            live: LiveKeys::new(
                header.vault_id,
                &root.derive(context::LIVE_BLOCKS),
                &root.derive(context::JOURNAL),
            ),
        })
    }

    /// Returns the vault that the keys belong to.
    #[must_use]
    pub fn vault_id(&self) -> VaultId {
        self.vault_id
    }

    /// Returns the cipher of the vault's pack frames.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Returns the id of a chunk of this plaintext: KH(data id key or tree id key, plaintext).
    #[must_use]
    pub fn chunk_id(&self, kind: PackKind, plaintext: &[u8]) -> ChunkId {
        // FORMAT PACK-5
        let key = match kind {
            PackKind::Data => &self.data_id,
            PackKind::Tree => &self.tree_id,
        };
        ChunkId(*blake3::keyed_hash(key.expose(), plaintext).as_bytes())
    }

    /// Returns the seed of the chunker's gear table, so that cut points tell nothing to who does not have it.
    #[must_use]
    pub fn chunker_seed(&self) -> u64 {
        self.chunker_seed
    }

    /// Draws a key for a new pack and seals it to the vault's public key.
    pub fn new_pack(&self, env: &dyn Env, kind: PackKind) -> Result<(PackHeader, PackKey), CryptoError> {
        // FORMAT PACK-7: the key is made here and nowhere else, for one header with a uid of its own.
        let mut uid = PackUid([0; 16]);
        env.random(&mut uid.0);
        let (kem_ciphertext, shared) = encapsulate(env, self.kem.encapsulation_key());
        let header = PackHeader { kind, cipher: self.cipher, vault_id: self.vault_id, uid, kem_ciphertext };
        let key = PackKey::derive(&shared, &header)?;
        Ok((header, key))
    }

    /// Opens the key of a pack. That the key is right shows when a frame, the footer or the trailer opens.
    ///
    /// # Errors
    ///
    /// [`CryptoError::Tampered`] if the pack is another vault's or has another cipher than the vault.
    pub fn open_pack(&self, header: &PackHeader) -> Result<PackKey, CryptoError> {
        if header.vault_id != self.vault_id {
            return Err(CryptoError::Tampered("pack: it belongs to another vault"));
        }
        if header.cipher != self.cipher {
            return Err(CryptoError::Tampered("pack: its cipher is not the vault's"));
        }
        let shared = self.decapsulate(&header.kem_ciphertext)?;
        PackKey::derive(&shared, header)
    }

    /// Returns the keys of the local state.
    #[must_use]
    pub fn live_keys(&self) -> LiveKeys {
        self.live.clone()
    }

    /// Makes a chain file, signed by the owner; returns its bytes and its id.
    pub fn seal_chain_file(
        &self,
        env: &dyn Env,
        public: &PublicPart,
        sealed: &SealedPart,
    ) -> Result<(Vec<u8>, SnapshotId), CryptoError> {
        if public.vault_id != self.vault_id {
            return Err(CryptoError::Seal("a chain file of another vault"));
        }
        if sealed.root.is_none() != (public.origin == Origin::Removal) {
            return Err(CryptoError::Seal("a snapshot has a root and a removal has none"));
        }
        let mut plain = sealed.encode()?;
        let (kem_ciphertext, shared) = encapsulate(env, self.kem.encapsulation_key());
        let mut file = ChainFile::encode_prefix(Signer::Owner, public, &kem_ciphertext)?;
        let key = seal_key(&shared, &file);
        let mut nonce = [0; NONCE_LEN];
        env.random(&mut nonce);
        let tag = key.seal_in_place(&nonce, &seal_aad(&self.vault_id), &mut plain);
        plain.extend_from_slice(&tag);
        ChainFile::encode_sealed(&mut file, &nonce, &plain)?;
        let signature = self.signing.sign(&SignedDigest::of(&file).message());
        file.extend_from_slice(&signature.to_bytes());
        let id = chain::id_of(&file);
        Ok((file, id))
    }

    /// Reads a chain file and checks its signature; see [`verify_chain_file`]. The hash of what was right is remembered, so
    /// that a chain of hundreds of files is verified once while a vault is open; other bytes have another hash.
    pub fn verify_chain_file(&self, bytes: &[u8]) -> Result<ChainFile, CryptoError> {
        let id = chain::id_of(bytes);
        let known = self.verified.lock().unwrap_or_else(PoisonError::into_inner).contains(&id);
        if known {
            return Ok(ChainFile::parse(bytes)?.0);
        }
        #[cfg(test)]
        self.verifications.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = self.verifying.verify(bytes)?;
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(id);
        Ok(file)
    }

    /// How many signatures of chain files were verified.
    #[cfg(test)]
    pub(crate) fn verifications(&self) -> u64 {
        self.verifications.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Opens the sealed part of a verified chain file; `bytes` is the whole file.
    pub fn open_sealed_part(&self, bytes: &[u8], file: &ChainFile) -> Result<SealedPart, CryptoError> {
        const WHAT: &str = "chain file: its sealed part";
        let prefix = file.prefix_len(bytes.len()).and_then(|n| bytes.get(..n));
        let prefix = prefix.ok_or(CryptoError::Tampered(WHAT))?;
        let shared = self.decapsulate(&file.kem_ciphertext)?;
        let key = seal_key(&shared, prefix);
        let plain = key.open_with_nonce(&file.nonce, &seal_aad(&self.vault_id), &file.sealed, WHAT)?;
        Ok(SealedPart::parse(&plain, file.public.origin)?)
    }

    fn decapsulate(&self, ciphertext: &[u8]) -> Result<Secret<32>, CryptoError> {
        let ciphertext = x_wing::Ciphertext::try_from(ciphertext)
            .map_err(|_| CryptoError::Seal("an X-Wing ciphertext has 1,120 bytes"))?;
        let mut shared = self.kem.decapsulate(&ciphertext);
        let secret = Secret::fill_with(|bytes| bytes.copy_from_slice(&shared));
        shared.zeroize();
        Ok(secret)
    }
}

/// seal key = KDF(context, ss || H(file up to and with the X-Wing ciphertext))
fn seal_key(shared: &Secret<32>, prefix: &[u8]) -> Xcc {
    Xcc::new(&Secret::derive(context::SNAPSHOT_KEY, &[shared.expose(), blake3::hash(prefix).as_bytes()]))
}

fn seal_aad(vault_id: &VaultId) -> [u8; SNAPSHOT_SEAL_DOMAIN.len() + VaultId::LEN] {
    let mut aad = [0; SNAPSHOT_SEAL_DOMAIN.len() + VaultId::LEN];
    aad[..SNAPSHOT_SEAL_DOMAIN.len()].copy_from_slice(SNAPSHOT_SEAL_DOMAIN);
    aad[SNAPSHOT_SEAL_DOMAIN.len()..].copy_from_slice(vault_id.as_bytes());
    aad
}

/// What it takes to believe a chain file: the vault and the public keys of those who may sign.
struct ChainVerifier {
    vault_id: VaultId,
    owner: VerifyingKey,
    ingest: VerifyingKey,
}

impl ChainVerifier {
    fn verify(&self, bytes: &[u8]) -> Result<ChainFile, CryptoError> {
        let (file, digest) = ChainFile::parse(bytes)?;
        // FORMAT SNAP-4
        let key = match file.signer {
            Signer::Owner => &self.owner,
            Signer::Ingest => &self.ingest,
        };
        key.verify_strict(&digest.message(), &Signature::from_bytes(&file.signature))
            .map_err(|_| CryptoError::Tampered("chain file: its signature is wrong"))?;
        if file.public.vault_id != self.vault_id {
            return Err(CryptoError::Tampered("chain file: it belongs to another vault"));
        }
        Ok(file)
    }
}

/// Reads a chain file and checks that it belongs to the vault and that its signature is from a key of the
/// header. No secret is needed. The header should be one that was unlocked, or that is trusted for another
/// reason.
pub fn verify_chain_file(header: &Header, bytes: &[u8]) -> Result<ChainFile, CryptoError> {
    let key = |bytes: &[u8; 32]| {
        VerifyingKey::from_bytes(bytes)
            .map_err(|_| CryptoError::Tampered("vault header: a signing key is no key"))
    };
    let verifier = ChainVerifier {
        vault_id: header.vault_id,
        owner: key(&header.signing_key)?,
        ingest: key(&header.ingest_signing_key)?,
    };
    verifier.verify(bytes)
}

#[cfg(test)]
mod tests;

/// An unlocked vault for the tests of this module.
#[cfg(test)]
pub(crate) mod tests_support {
    use super::{Cipher, Header, RootSecret, VaultKeys};
    use crate::crypto::slots::new_header;
    use crate::env::TestEnv;
    use crate::format::ChunkerParams;
    use crate::format::samples::CREATED;

    pub(crate) fn root() -> RootSecret {
        RootSecret::generate(&TestEnv::new(0))
    }

    pub(crate) fn header(cipher: Cipher) -> Header {
        new_header(&TestEnv::new(100), &root(), cipher, ChunkerParams::default(), CREATED.to_owned())
    }

    pub(crate) fn keys_with(cipher: Cipher) -> VaultKeys {
        VaultKeys::derive(&root(), &header(cipher)).expect("the header is this root's")
    }

    pub(crate) fn keys() -> VaultKeys {
        keys_with(Cipher::ChaCha20Poly1305)
    }
}
