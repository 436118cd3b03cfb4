//! X-Wing, the hybrid of ML-KEM-768 and X25519, from draft-connolly-cfrg-xwing-kem-06.
//!
//! ```text
//! expandDecapsulationKey(seed):  d || z || sk_X = SHAKE256(seed, 96 bytes)
//!                                (pk_M, sk_M) = ML-KEM-768.KeyGen_internal(d, z);  pk_X = X25519(sk_X, 9)
//! encapsulation key              pk_M (1184) || pk_X (32)
//! ciphertext                     ct_M (1088) || ct_X (32)
//! Decapsulate:                   ss_M = ML-KEM-768.Decapsulate(ct_M, sk_M);  ss_X = X25519(sk_X, ct_X)
//! Combiner:                      SHA3-256(ss_M || ss_X || ct_X || pk_X || label),  label = 5c 2e 2f 2f 5e 5c
//! ```

use ml_kem::kem::{Decapsulate, KeyExport};
use ml_kem::ml_kem_768;
use sha3::{Digest, Sha3_256};
use shake::{ExtendableOutput, Shake256, Update, XofReader};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::Secret;

/// Bytes of an encapsulation key.
pub const PUBLIC_BYTES: usize = 1216;
/// Bytes of a ciphertext.
pub const CIPHERTEXT_BYTES: usize = 1120;

const ML_CIPHERTEXT_BYTES: usize = 1088;
const ML_PUBLIC_BYTES: usize = 1184;
/// `\./` above `/^\`, the X-wing seen from the front.
const LABEL: [u8; 6] = [0x5c, 0x2e, 0x2f, 0x2f, 0x5e, 0x5c];

/// An expanded decapsulation key.
pub struct Decapsulator {
    sk_m: ml_kem_768::DecapsulationKey,
    sk_x: StaticSecret,
    pk_x: PublicKey,
}

impl Decapsulator {
    /// Expands the 32-byte seed.
    pub fn new(seed: &[u8; 32]) -> Self {
        let mut shake = Shake256::default();
        shake.update(seed);
        let mut stream = shake.finalize_xof();
        let mut d_z = ml_kem::Seed::default();
        stream.read(&mut d_z);
        let mut x = Zeroizing::new([0u8; 32]);
        stream.read(&mut *x);
        let sk_m = ml_kem_768::DecapsulationKey::from_seed(d_z);
        d_z.as_mut_slice().zeroize();
        let sk_x = StaticSecret::from(*x);
        let pk_x = PublicKey::from(&sk_x);
        Self { sk_m, sk_x, pk_x }
    }

    /// The encapsulation key that belongs to it.
    pub fn public_key(&self) -> [u8; PUBLIC_BYTES] {
        let mut out = [0; PUBLIC_BYTES];
        out[..ML_PUBLIC_BYTES].copy_from_slice(&self.sk_m.encapsulation_key().to_bytes());
        out[ML_PUBLIC_BYTES..].copy_from_slice(self.pk_x.as_bytes());
        out
    }

    /// The shared secret in a ciphertext. There is no failure: a forged one gives a secret that opens nothing.
    pub fn decapsulate(&self, ciphertext: &[u8; CIPHERTEXT_BYTES]) -> Secret {
        let mut ct_m = ml_kem_768::Ciphertext::default();
        ct_m.copy_from_slice(&ciphertext[..ML_CIPHERTEXT_BYTES]);
        let mut ct_x = [0u8; 32];
        ct_x.copy_from_slice(&ciphertext[ML_CIPHERTEXT_BYTES..]);

        let mut ss_m = self.sk_m.decapsulate(&ct_m);
        let ss_x = self.sk_x.diffie_hellman(&PublicKey::from(ct_x));

        let mut hash = Sha3_256::new();
        Digest::update(&mut hash, &ss_m[..]);
        Digest::update(&mut hash, ss_x.as_bytes());
        Digest::update(&mut hash, ct_x);
        Digest::update(&mut hash, self.pk_x.as_bytes());
        Digest::update(&mut hash, LABEL);
        ss_m.as_mut_slice().zeroize();
        Zeroizing::new(hash.finalize().into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bytes::{hex, unhex};

    /// The first known answer of the draft's test vectors.
    #[test]
    fn known_answer() {
        let seed = unhex::<32>("7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26").unwrap();
        let eseed = unhex::<64>(concat!(
            "3cb1eea988004b93103cfb0aeefd2a686e01fa4a58e8a3639ca8a1e3f9ae57e2",
            "35b8cc873c23dc62b8d260169afa2f75ab916a58d974918835d25e6a435085b2"
        ))
        .unwrap();
        let ours = Decapsulator::new(&seed);
        assert!(hex(&ours.public_key()).starts_with("e2236b35a8c24b39b10aa1323a96a919a2ced88400633a7b"));
        let theirs = x_wing::EncapsulationKey::try_from(&ours.public_key()[..]).unwrap();
        let (ct, _) = theirs.encapsulate_deterministic(&eseed.into());
        assert_eq!(
            hex(&*ours.decapsulate(&ct.into())),
            "d2df0522128f09dd8e2c92b1e905c793d8f57a54c3da25861f10bf4ca613e384"
        );
    }

    #[test]
    fn agrees_with_another_implementation_also_on_forged_ciphertexts() {
        for round in 0..4u8 {
            let seed = *blake3::hash(&[round]).as_bytes();
            let ours = Decapsulator::new(&seed);
            let theirs = x_wing::DecapsulationKey::from(seed);
            let public: [u8; PUBLIC_BYTES] =
                x_wing::Decapsulator::encapsulation_key(&theirs).to_bytes().into();
            assert_eq!(ours.public_key(), public);
            let mut ct = [0u8; CIPHERTEXT_BYTES];
            blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut ct);
            let other: [u8; 32] = theirs.decapsulate(&ct.into()).into();
            assert_eq!(*ours.decapsulate(&ct), other);
        }
    }
}
