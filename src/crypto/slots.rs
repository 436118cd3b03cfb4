//! Key slots: how a passphrase, a keyfile or a recovery key gives the root secret, and how a header is
//! trusted.

use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Params, Version};

use super::CryptoError;
use super::context;
use super::keys::VaultKeys;
use super::recovery::RecoveryKey;
use super::secret::{RootSecret, Secret, SecretBytes};
use super::xcc::{TAG_LEN, Xcc};
use crate::env::Env;
use crate::format::header::{LABEL_LEN_MAX, SLOTS_MAX};
use crate::format::{
    ChunkerParams, Cipher, FormatError, Header, ParsedHeader, Slot, SlotKdf, SlotKind, VaultId,
};

mod newest;

pub use newest::{Budget, Claim, Newest, unlock_newest};

/// The shortest keyfile, in bytes.
pub const KEYFILE_LEN_MIN: usize = 32;
/// The longest keyfile, in bytes.
pub const KEYFILE_LEN_MAX: usize = 1 << 20;

const MIB_IN_KIB: u32 = 1024;

/// What it costs to try a passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Memory in KiB.
    pub m_kib: u32,
    /// Passes over the memory.
    pub t: u32,
    /// Lanes.
    pub p: u32,
}

impl Argon2Cost {
    /// Next to nothing, for tests. Never for data that matters.
    pub const TEST: Self = Argon2Cost { m_kib: 64, t: 1, p: 1 };
    /// The least for real use: 64 MiB and three passes, as RFC 9106 recommends where memory is short.
    pub const FLOOR: Self = Argon2Cost { m_kib: 64 * MIB_IN_KIB, t: 3, p: 1 };
    /// Calibration asks for no more memory than this: 1 GiB. The vault has to open on smaller machines, too.
    const M_KIB_CALIBRATED_MAX: u32 = 1024 * MIB_IN_KIB;
    /// Calibration asks for no more passes than this.
    const T_CALIBRATED_MAX: u32 = 16;

    /// Finds a cost that takes about `target` on this machine, and never less than [`Self::FLOOR`]. Memory is
    /// raised first, to at most an eighth of the machine's and 1 GiB, then passes.
    ///
    /// One lane: the implementation computes lanes one after the other, so more would help an attacker only.
    #[must_use]
    pub fn calibrate(target: Duration) -> Self {
        let probe = Argon2Cost { t: 1, ..Self::FLOOR };
        let start = Instant::now();
        // A machine that can't hash at all fails when the slot is made, with an error for the user.
        if derive_argon2(b"calibration", &[0; 32], probe).is_err() {
            return Self::FLOOR;
        }
        let pass_of_floor = start.elapsed().max(Duration::from_micros(100));
        Self::for_speed(target, pass_of_floor, memory_kib())
    }

    /// Returns the cost for a machine that takes `pass_of_floor` for a pass over the memory of
    /// [`Self::FLOOR`].
    fn for_speed(target: Duration, pass_of_floor: Duration, machine_kib: u64) -> Self {
        let m_max = u32::try_from(machine_kib / 8).unwrap_or(u32::MAX);
        let m_max = m_max.clamp(Self::FLOOR.m_kib, Self::M_KIB_CALIBRATED_MAX);
        let passes = target.as_secs_f64() / pass_of_floor.as_secs_f64();
        // The casts saturate.
        let m_wanted = (passes / f64::from(Self::FLOOR.t) * f64::from(Self::FLOOR.m_kib)) as u32;
        let m_kib = m_wanted.clamp(Self::FLOOR.m_kib, m_max) / MIB_IN_KIB * MIB_IN_KIB;
        let t_wanted = (passes * f64::from(Self::FLOOR.m_kib) / f64::from(m_kib)) as u32;
        Argon2Cost { m_kib, t: t_wanted.clamp(Self::FLOOR.t, Self::T_CALIBRATED_MAX), p: Self::FLOOR.p }
    }
}

/// Returns the machine's memory in KiB.
#[expect(clippy::useless_conversion, reason = "the kernel's long has 32 bits on some machines")]
fn memory_kib() -> u64 {
    let info = rustix::system::sysinfo();
    u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit)) / 1024
}

/// What a user unlocks a vault with.
pub enum Credential {
    /// A passphrase.
    Passphrase(SecretBytes),
    /// The content of a keyfile.
    Keyfile(SecretBytes),
    /// A recovery key.
    Recovery(RecoveryKey),
}

impl Credential {
    /// Returns the kind of slot that this could open.
    #[must_use]
    pub fn kind(&self) -> SlotKind {
        match self {
            Credential::Passphrase(_) => SlotKind::Passphrase,
            Credential::Keyfile(_) => SlotKind::Keyfile,
            Credential::Recovery(_) => SlotKind::Recovery,
        }
    }

    /// Refuses what no slot is ever made of.
    fn check(&self) -> Result<(), CryptoError> {
        match self {
            Credential::Passphrase(bytes) if bytes.expose().is_empty() => {
                Err(CryptoError::BadKeyMaterial("the passphrase is empty"))
            }
            Credential::Keyfile(bytes) if bytes.expose().len() < KEYFILE_LEN_MIN => {
                Err(CryptoError::BadKeyMaterial("a keyfile has at least 32 bytes"))
            }
            Credential::Keyfile(bytes) if bytes.expose().len() > KEYFILE_LEN_MAX => {
                Err(CryptoError::BadKeyMaterial("a keyfile has at most 1 MiB"))
            }
            Credential::Passphrase(_) | Credential::Keyfile(_) | Credential::Recovery(_) => Ok(()),
        }
    }

    /// KEK: the key that a slot's root secret is sealed with.
    fn slot_key(&self, kdf: &SlotKdf) -> Result<Secret<32>, CryptoError> {
        match (self, kdf) {
            (Credential::Passphrase(bytes), SlotKdf::Argon2id { m_kib, t, p, salt }) => {
                // FORMAT HDR-4: also here, where the cost is paid.
                kdf.check()?;
                derive_argon2(bytes.expose(), salt, Argon2Cost { m_kib: *m_kib, t: *t, p: *p })
            }
            (Credential::Keyfile(bytes), SlotKdf::Blake3 { salt }) => {
                Ok(Secret::derive(context::KEYFILE_SLOT, &[salt, bytes.expose()]))
            }
            (Credential::Recovery(key), SlotKdf::Blake3 { salt }) => {
                Ok(Secret::derive(context::RECOVERY_SLOT, &[salt, key.expose()]))
            }
            _ => Err(FormatError::Malformed("slot kdf does not fit its kind").into()),
        }
    }
}

/// Argon2id, version 1.3 (RFC 9106), 32 bytes out.
fn derive_argon2(passphrase: &[u8], salt: &[u8; 32], cost: Argon2Cost) -> Result<Secret<32>, CryptoError> {
    let failed = |e: argon2::Error| CryptoError::Kdf(e.to_string());
    let params = Params::new(cost.m_kib, cost.t, cost.p, Some(32)).map_err(failed)?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let mut result = Ok(());
    let key = Secret::fill_with(|key| result = argon2.hash_password_into(passphrase, salt, key));
    match result {
        Ok(()) => Ok(key),
        Err(argon2::Error::OutOfMemory) => {
            let mib = cost.m_kib.div_ceil(MIB_IN_KIB);
            Err(CryptoError::Kdf(format!("not enough memory: the slot needs {mib} MiB")))
        }
        Err(e) => Err(failed(e)),
    }
}

/// Returns the header of a new vault: its public keys filled in, generation 0 (writing makes it 1), and no
/// slots yet.
pub fn new_header(
    env: &dyn Env,
    root: &RootSecret,
    cipher: Cipher,
    chunker: ChunkerParams,
    created: String,
) -> Header {
    let mut vault_id = VaultId([0; 16]);
    env.random(&mut vault_id.0);
    let public = super::keys::PublicKeys::of(root);
    Header {
        vault_id,
        created,
        generation: 0,
        cipher,
        public_key: public.kem,
        signing_key: public.signing,
        ingest_signing_key: public.ingest_signing,
        chunker,
        slots: Vec::new(),
    }
}

/// Adds a slot that `cred` opens and returns its id, one above the highest so far. `cost` is for passphrases
/// only.
pub fn add_slot(
    env: &dyn Env,
    header: &mut Header,
    root: &RootSecret,
    cred: &Credential,
    cost: Argon2Cost,
    label: String,
    created: String,
) -> Result<u32, CryptoError> {
    cred.check()?;
    if header.slots.len() >= SLOTS_MAX {
        return Err(CryptoError::SlotsFull);
    }
    if label.len() > LABEL_LEN_MAX {
        return Err(FormatError::Malformed("slot label is longer than 64 bytes").into());
    }
    let highest = header.slots.iter().map(|slot| slot.id).max().unwrap_or(0);
    let id = highest.checked_add(1).ok_or(CryptoError::SlotsFull)?;
    let mut salt = [0; 32];
    env.random(&mut salt);
    let mut nonce = [0; 24];
    env.random(&mut nonce);
    let kdf = match cred.kind() {
        SlotKind::Passphrase => SlotKdf::Argon2id { m_kib: cost.m_kib, t: cost.t, p: cost.p, salt },
        SlotKind::Keyfile | SlotKind::Recovery => SlotKdf::Blake3 { salt },
    };
    kdf.check()?;
    let mut slot = Slot { id, kind: cred.kind(), label, created, kdf, nonce, wrapped: [0; 48] };
    let key = Xcc::new(&cred.slot_key(&kdf)?);
    let aad = header.slot_aad(&slot);
    // Encrypted in the slot itself: the root secret is never in a second place.
    let (body, tag) = slot.wrapped.split_at_mut(RootSecret::LEN);
    body.copy_from_slice(root.expose());
    tag.copy_from_slice(&key.seal_in_place(&nonce, &aad, body));
    header.slots.push(slot);
    Ok(id)
}

/// Tries every slot of the credential's kind. Returns the root secret and the id of the slot that opened.
///
/// # Errors
///
/// [`CryptoError::NoSlot`] and [`CryptoError::WrongKey`] are about the credential. [`CryptoError::Tampered`]
/// is about the header: the key is right, but the header is not the one that a holder of the root secret
/// wrote.
pub fn unlock(parsed: &ParsedHeader, cred: &Credential) -> Result<(RootSecret, u32), CryptoError> {
    cred.check()?;
    let header = &parsed.header;
    let mut tried = false;
    for slot in header.slots.iter().filter(|slot| slot.kind == cred.kind()) {
        tried = true;
        let Some(root) = open_slot(header, slot, cred)? else { continue };
        check_header(&root, parsed)?;
        return Ok((root, slot.id));
    }
    Err(if tried { CryptoError::WrongKey(cred.kind()) } else { CryptoError::NoSlot(cred.kind()) })
}

/// Checks that a header was written by somebody who has the root secret, and that its public keys are those of the secret.
///
/// # Errors
/// [`CryptoError::Tampered`].
pub fn check_header(root: &RootSecret, parsed: &ParsedHeader) -> Result<(), CryptoError> {
    // FORMAT HDR-3
    let mac = blake3::Hash::from_bytes(header_mac(root, &parsed.mac_input));
    if mac != blake3::Hash::from_bytes(parsed.mac) {
        return Err(CryptoError::Tampered("vault header: its mac is wrong"));
    }
    VaultKeys::derive(root, &parsed.header).map(drop)
}

/// Returns the root secret if the slot opens, `None` if it does not.
fn open_slot(header: &Header, slot: &Slot, cred: &Credential) -> Result<Option<RootSecret>, CryptoError> {
    let key = Xcc::new(&cred.slot_key(&slot.kdf)?);
    let (body, tag) = slot.wrapped.split_last_chunk::<TAG_LEN>().ok_or(CryptoError::Tampered("slot"))?;
    let mut root = zeroize::Zeroizing::new([0; RootSecret::LEN]);
    root.copy_from_slice(body);
    match key.open_in_place(&slot.nonce, &header.slot_aad(slot), &mut root[..], tag, "slot") {
        Ok(()) => Ok(RootSecret::from_slice(&root[..])),
        Err(_) => Ok(None),
    }
}

/// KH(header MAC key, `mac_input`): what a header's `mac` has to be.
#[must_use]
pub fn header_mac(root: &RootSecret, mac_input: &[u8]) -> [u8; 32] {
    let key = root.derive(context::HEADER_MAC);
    *blake3::keyed_hash(key.expose(), mac_input).as_bytes()
}

#[cfg(test)]
mod tests;
