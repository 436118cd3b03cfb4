//! Which of several headers counts, where anybody may have put some: found out with a key, for a bounded amount of work.

use std::collections::HashMap;

use super::{Argon2Cost, Credential, check_header, memory_kib, open_slot};
use crate::crypto::CryptoError;
use crate::crypto::secret::RootSecret;
use crate::format::header::SLOTS_MAX;
use crate::format::{Header, ParsedHeader, Slot, SlotKdf, SlotKind};

/// The work of the costliest slot that this program makes, in KiB times passes (2^24: 16 passes over 1 GiB).
const OWN_WORK_MAX: u64 = Argon2Cost::M_KIB_CALIBRATED_MAX as u64 * Argon2Cost::T_CALIBRATED_MAX as u64;
/// No slot is tried that takes more than so many times the work of the costliest one that this program makes.
const SINGLE_MAX: u64 = 8 * OWN_WORK_MAX;
/// All slots together: a whole header of the costliest ones. Some ten minutes.
const TOTAL_MAX: u64 = SLOTS_MAX as u64 * OWN_WORK_MAX;

/// A header that claims to be a vault's.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    /// The header.
    pub parsed: &'a ParsedHeader,
    /// How many were put before it, as far as is known. Those of equal age may be in any order.
    pub age: usize,
}

/// How much work may be done to find the slot that opens. Work is KiB of memory times passes.
#[derive(Debug)]
pub struct Budget {
    left: u64,
    memory_kib: u64,
    /// Work that is kept back for later.
    kept: u64,
    skipped: usize,
}

impl Default for Budget {
    /// A header full of the costliest slots that this program makes. No slot that takes more than eight times the work of
    /// such a slot, or more memory than half of this machine's and 1 GiB.
    fn default() -> Self {
        Self::for_memory(memory_kib())
    }
}

impl Budget {
    fn for_memory(machine_kib: u64) -> Self {
        let memory_kib = (machine_kib / 2).max(Argon2Cost::M_KIB_CALIBRATED_MAX.into());
        Self { left: TOTAL_MAX, memory_kib, kept: 0, skipped: 0 }
    }

    /// Keeps half of what is left for another search.
    pub fn keep_half(&mut self) {
        self.kept += self.left / 2;
        self.left -= self.left / 2;
    }

    /// Gives back what was kept.
    pub fn use_kept(&mut self) {
        self.left += std::mem::take(&mut self.kept);
    }

    /// How many slots were not tried, because that would have been too much work.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Takes the work of a slot; `false` if it is too much.
    fn take(&mut self, kdf: &SlotKdf) -> bool {
        let work = work(kdf);
        let memory = match kdf {
            SlotKdf::Argon2id { m_kib, .. } => u64::from(*m_kib),
            SlotKdf::Blake3 { .. } => 0,
        };
        if work > SINGLE_MAX.min(self.left) || memory > self.memory_kib {
            self.skipped += 1;
            return false;
        }
        self.left -= work;
        true
    }
}

/// What it takes to try a slot, in KiB times passes. What is not Argon2 takes nothing.
fn work(kdf: &SlotKdf) -> u64 {
    match kdf {
        SlotKdf::Argon2id { m_kib, t, .. } => u64::from(*m_kib) * u64::from(*t),
        SlotKdf::Blake3 { .. } => 0,
    }
}

/// What a credential opens of several headers.
pub enum Newest {
    /// The newest one that somebody with the root secret wrote.
    Opens {
        /// Its place in the list.
        at: usize,
        /// The root secret.
        root: RootSecret,
        /// The slot that opened.
        slot: u32,
    },
    /// Only an older one: it was removed or changed since.
    OnlyOlder {
        /// The place of the one that it opens.
        at: usize,
        /// The place of the newest one that somebody with the root secret wrote.
        newest: usize,
    },
}

/// Finds, of several headers that all claim to be one vault's, the newest that somebody wrote who has the root secret.
/// `claims` stand newest first; some may be forged, with slots that open nothing, or with slots of a true one.
///
/// Whoever can make headers decides how many there are, what generations they have, and how much memory and time their slots
/// ask for. So slots of all of them are tried, each once, until `budget` is used up, in two orders that take turns, each of
/// which gets half of the work: the oldest headers first (whoever came later can't get before those that were there), and
/// the cheapest slots first (dear ones can't get before any). Slots that aren't passphrases' take no work: all are tried.
///
/// # Errors
/// What [`super::unlock`] says, but what became of a single slot does not count where others were tried;
/// [`CryptoError::Tampered`] when a slot opens and no header was written by who has the root secret; [`CryptoError::Kdf`]
/// when not a single slot could be tried. [`Budget::skipped`] says how many were not.
pub fn unlock_newest(
    claims: &[Claim<'_>],
    cred: &Credential,
    budget: &mut Budget,
) -> Result<Newest, CryptoError> {
    cred.check()?;
    search(claims, cred.kind(), budget, &mut |header, slot| open_slot(header, slot, cred))
}

type Opened = Result<Option<RootSecret>, CryptoError>;

fn search(
    claims: &[Claim<'_>],
    kind: SlotKind,
    budget: &mut Budget,
    open: &mut dyn FnMut(&Header, &Slot) -> Opened,
) -> Result<Newest, CryptoError> {
    /// A slot, and the oldest header that has it.
    struct Try<'a> {
        at: usize,
        age: usize,
        slot: &'a Slot,
        done: bool,
        closed: bool,
    }
    let sealed = |header: &Header, slot: &Slot| {
        blake3::hash(&[&header.slot_aad(slot)[..], &slot.nonce, &slot.wrapped].concat())
    };
    let mut seen: HashMap<blake3::Hash, usize> = HashMap::new();
    let mut tries: Vec<Try<'_>> = Vec::new();
    for (at, claim) in claims.iter().enumerate() {
        for slot in claim.parsed.header.slots.iter().filter(|slot| slot.kind == kind) {
            let known = *seen.entry(sealed(&claim.parsed.header, slot)).or_insert(tries.len());
            match tries.get_mut(known) {
                Some(one) => one.age = one.age.min(claim.age),
                None => tries.push(Try { at, age: claim.age, slot, done: false, closed: false }),
            }
        }
    }
    let mut by_age: Vec<usize> = (0..tries.len()).collect();
    let mut by_work = by_age.clone();
    by_age.sort_by_key(|n| (tries[*n].age, work(&tries[*n].slot.kdf), *n));
    by_work.sort_by_key(|n| (work(&tries[*n].slot.kdf), tries[*n].age, *n));
    let mut orders = [(by_age.into_iter(), 0), (by_work.into_iter(), 0)];

    let (mut tampered, mut failed) = (false, None);
    loop {
        let turn = usize::from(orders[0].1 > orders[1].1);
        let (order, spent) = &mut orders[turn];
        // Both have all of them.
        let Some(n) = order.find(|n| !tries[*n].done) else { break };
        let Try { at, slot, .. } = tries[n];
        tries[n].done = true;
        if !budget.take(&slot.kdf) {
            continue;
        }
        *spent += work(&slot.kdf);
        let root = match open(&claims[at].parsed.header, slot) {
            Ok(Some(root)) => root,
            Ok(None) => {
                tries[n].closed = true;
                continue;
            }
            // More memory than there is, say. That is no reason not to try the others.
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        let Some(newest) = claims.iter().position(|claim| check_header(&root, claim.parsed).is_ok()) else {
            tampered = true;
            continue;
        };
        let truth = &claims[newest].parsed.header;
        let mine: Vec<(&Slot, blake3::Hash)> =
            truth.slots.iter().map(|one| (one, sealed(truth, one))).collect();
        let opened = sealed(&claims[at].parsed.header, slot);
        if let Some((slot, _)) = mine.iter().find(|(_, id)| *id == opened) {
            return Ok(Newest::Opens { at: newest, root, slot: slot.id });
        }
        // Who has the key made these: what they cost is no attack.
        let untried = |id: &blake3::Hash| !seen.get(id).is_some_and(|known| tries[*known].closed);
        let mut broken = None;
        for (slot, _) in mine.iter().filter(|(slot, id)| slot.kind == kind && untried(id)) {
            match open(truth, slot) {
                Ok(Some(root)) => {
                    check_header(&root, claims[newest].parsed)?;
                    return Ok(Newest::Opens { at: newest, root, slot: slot.id });
                }
                Ok(None) => {}
                Err(error) => broken = Some(error),
            }
        }
        return broken.map_or(Ok(Newest::OnlyOlder { at, newest }), Err);
    }
    Err(match failed {
        _ if tampered => CryptoError::Tampered("vault header: its mac is wrong"),
        _ if tries.iter().any(|one| one.closed) => CryptoError::WrongKey(kind),
        Some(error) => error,
        None if budget.skipped > 0 => {
            CryptoError::Kdf("no slot was tried: all ask for too much memory or time".to_owned())
        }
        None => CryptoError::NoSlot(kind),
    })
}

#[cfg(test)]
mod tests;
