#![allow(clippy::unwrap_used)]
use super::super::{add_slot, header_mac, new_header};
use super::*;
use crate::crypto::secret::SecretBytes;
use crate::env::TestEnv;
use crate::format::samples::CREATED;
use crate::format::{ChunkerParams, Cipher};

const GIB: u32 = 1 << 20;

/// A header with one passphrase slot, that has cost `m_kib` times `t` where nothing is really computed.
struct Vault {
    root: RootSecret,
    header: Header,
}

fn passphrase(text: &str) -> Credential {
    Credential::Passphrase(SecretBytes::new(text.as_bytes().to_vec()))
}

fn vault() -> Vault {
    let env = TestEnv::new(21);
    let root = RootSecret::generate(&env);
    let chunker = ChunkerParams::default();
    let mut header = new_header(&env, &root, Cipher::ChaCha20Poly1305, chunker, CREATED.to_owned());
    header.generation = 100;
    let (cred, cost) = (passphrase("open sesame"), Argon2Cost::TEST);
    add_slot(&env, &mut header, &root, &cred, cost, String::new(), CREATED.to_owned()).unwrap();
    Vault { root, header }
}

fn costs(slot: &mut Slot, cost: (u32, u32)) {
    if let SlotKdf::Argon2id { m_kib, t, .. } = &mut slot.kdf {
        (*m_kib, *t) = cost;
    }
}

impl Vault {
    /// The true header, whose slot costs so much.
    fn truth(&self, cost: (u32, u32)) -> ParsedHeader {
        let mut header = self.header.clone();
        costs(&mut header.slots[0], cost);
        Header::parse(&header.encode(|input| header_mac(&self.root, input))).unwrap()
    }

    /// A header as anybody can make it: so many slots that open nothing, at such a cost.
    fn forged(&self, generation: u64, slots: u8, cost: (u32, u32)) -> ParsedHeader {
        let mut header = self.header.clone();
        header.generation = generation;
        let one = header.slots.remove(0);
        for n in 0..slots {
            let mut slot = Slot { id: u32::from(n) + 1, nonce: [n; 24], ..one.clone() };
            slot.wrapped[..8].copy_from_slice(&generation.to_le_bytes());
            costs(&mut slot, cost);
            header.slots.push(slot);
        }
        Header::parse(&header.encode(|_| [7; 32])).unwrap()
    }
}

/// What was tried: the work of each slot.
struct Counted {
    result: Result<Newest, CryptoError>,
    works: Vec<u64>,
    skipped: usize,
}

/// Searches without computing anything: only what the vault sealed itself opens, if the key is `right`.
fn count(vault: &Vault, claims: &[(&ParsedHeader, usize)], right: bool) -> Counted {
    let mut budget = Budget::for_memory(64 << 20);
    let claims: Vec<Claim<'_>> = claims.iter().map(|(parsed, age)| Claim { parsed, age: *age }).collect();
    let mut works = Vec::new();
    let result = search(&claims, SlotKind::Passphrase, &mut budget, &mut |_, slot| {
        works.push(work(&slot.kdf));
        let opens = right && slot.wrapped == vault.header.slots[0].wrapped;
        Ok(opens.then(|| RootSecret::from_slice(vault.root.expose()).unwrap()))
    });
    Counted { result, works, skipped: budget.skipped() }
}

fn place(result: &Result<Newest, CryptoError>) -> Option<usize> {
    match result {
        Ok(Newest::Opens { at, .. }) => Some(*at),
        _ => None,
    }
}

/// Forgers choose generations: wherever the true header stands among them, it is found.
#[test]
fn a_true_header_between_forged_ones_is_found() {
    let vault = vault();
    let truth = vault.truth((64, 1));
    let mut headers: Vec<ParsedHeader> = (0..40).rev().map(|n| vault.forged(120 - n, 2, (64, 1))).collect();
    headers.reverse();
    let at = headers.iter().position(|one| one.header.generation <= 100).unwrap();
    assert!(at > 8 && headers.len() - at > 8);
    headers.insert(at, truth);
    for age in [0, 1000] {
        let claims: Vec<Claim<'_>> = (headers.iter().enumerate())
            .map(|(n, parsed)| Claim { parsed, age: if n == at { age } else { 1 + n } })
            .collect();
        let mut budget = Budget::default();
        assert_eq!(place(&unlock_newest(&claims, &passphrase("open sesame"), &mut budget)), Some(at));
        let wrong = unlock_newest(&claims, &passphrase("sesame"), &mut Budget::default());
        assert_eq!(wrong.err(), Some(CryptoError::WrongKey(SlotKind::Passphrase)));
        assert_eq!(budget.skipped(), 0);
    }
}

/// What a wrong passphrase costs has a bound, whatever forged slots ask for.
#[test]
fn a_wrong_passphrase_costs_no_more_than_the_budget() {
    let vault = vault();
    let truth = vault.truth((GIB, 3));
    for cost in [(GIB, 16), (4 * GIB, 32), (GIB, 3), (64, 64)] {
        let forged: Vec<ParsedHeader> = (0..16).map(|n| vault.forged(200 - n, 32, cost)).collect();
        let claims: Vec<_> = forged.iter().map(|one| (one, 1)).chain([(&truth, 0)]).collect();
        let done = count(&vault, &claims, false);
        assert_eq!(done.result.err(), Some(CryptoError::WrongKey(SlotKind::Passphrase)));
        assert!(done.works.iter().sum::<u64>() <= TOTAL_MAX, "{cost:?}");
        assert_eq!(done.works.len() + done.skipped, 16 * 32 + 1, "{cost:?}");
        assert!(done.works.contains(&(u64::from(GIB) * 3)), "the true one is always tried");
    }
    // One alone that costs more than any program asks for: nothing is computed.
    let absurd = vault.forged(200, 3, (4 * GIB, 64));
    let done = count(&vault, &[(&absurd, 0), (&truth, 0)], false);
    assert_eq!((done.works.len(), done.skipped), (1, 3));
    assert_eq!(done.result.err(), Some(CryptoError::WrongKey(SlotKind::Passphrase)));
    let done = count(&vault, &[(&absurd, 0)], false);
    assert!(matches!(done.result, Err(CryptoError::Kdf(_))));
    assert!(done.works.is_empty());
    // A whole header of the costliest ones that this program makes is tried.
    let full = vault.forged(200, 32, (GIB, 16));
    assert_eq!(count(&vault, &[(&full, 0)], false).skipped, 0);
}

/// Slots that were put later don't get the budget used up before the true one is tried, whatever they cost; nor do dear ones
/// that were put before. What does: many that were put before and cost no more. Then it is said that some were not tried.
#[test]
fn forged_slots_do_not_use_up_the_budget_of_true_ones() {
    let vault = vault();
    let truth = vault.truth((GIB, 4));
    // As dear, or a little cheaper: 255 headers full of them. The true one was there before.
    for cost in [(GIB, 4), (GIB - 1, 4), (64, 1)] {
        let forged: Vec<ParsedHeader> = (0..255).map(|n| vault.forged(350 - n, 32, cost)).collect();
        let mut claims: Vec<_> = forged.iter().map(|one| (one, 1)).collect();
        claims.push((&truth, 0));
        let done = count(&vault, &claims, true);
        assert_eq!((place(&done.result), done.works.len()), (Some(255), 1), "{cost:?}");
    }
    // Keys were changed after they had been planted.
    let forged: Vec<ParsedHeader> = (0..255).map(|n| vault.forged(350 - n, 32, (4 * GIB, 16))).collect();
    let mut claims: Vec<_> = forged.iter().map(|one| (one, 0)).collect();
    claims.push((&truth, 9));
    let done = count(&vault, &claims, true);
    assert_eq!((place(&done.result), done.works.len()), (Some(255), 2), "one of each order");
    for cost in [(GIB, 4), (GIB - 1, 4)] {
        let forged: Vec<ParsedHeader> = (0..255).map(|n| vault.forged(350 - n, 32, cost)).collect();
        let mut claims: Vec<_> = forged.iter().map(|one| (one, 0)).collect();
        claims.push((&truth, 9));
        let done = count(&vault, &claims, true);
        assert_eq!(done.result.err(), Some(CryptoError::WrongKey(SlotKind::Passphrase)), "{cost:?}");
        assert!(done.skipped > 0 && done.works.len() + done.skipped == 255 * 32 + 1, "{cost:?}");
    }
}

#[test]
fn a_slot_that_can_not_be_tried_is_no_answer() {
    let vault = vault();
    let (dear, truth) = (vault.forged(200, 1, (GIB, 3)), vault.truth((64, 1)));
    let claims = [Claim { parsed: &dear, age: 0 }, Claim { parsed: &truth, age: 1 }];
    let run = |claims: &[Claim<'_>]| {
        let no_memory = || CryptoError::Kdf("not enough memory".to_owned());
        search(claims, SlotKind::Passphrase, &mut Budget::for_memory(0), &mut |_, slot| {
            if work(&slot.kdf) > 64 { Err(no_memory()) } else { Ok(None) }
        })
        .err()
    };
    assert_eq!(run(&claims), Some(CryptoError::WrongKey(SlotKind::Passphrase)));
    assert!(matches!(run(&claims[..1]), Some(CryptoError::Kdf(m)) if m.contains("memory")));
    assert_eq!(run(&[]), Some(CryptoError::NoSlot(SlotKind::Passphrase)));
    // Of more memory than there is only what this program itself may ask for is tried.
    let mut budget = Budget::for_memory(0);
    let slot = |m_kib| SlotKdf::Argon2id { m_kib, t: 1, p: 1, salt: [0; 32] };
    assert!(budget.take(&slot(GIB)) && !budget.take(&slot(GIB + 1)));
    assert_eq!(budget.skipped(), 1);
}

#[test]
fn two_searches_share_one_budget() {
    let vault = vault();
    let full = vault.forged(200, 32, (GIB, 16));
    let claims = [Claim { parsed: &full, age: 0 }];
    let mut budget = Budget::for_memory(64 << 20);
    budget.keep_half();
    let mut tried = Vec::new();
    for _ in 0..2 {
        let mut count = 0;
        let result = search(&claims, SlotKind::Passphrase, &mut budget, &mut |_, _| {
            count += 1;
            Ok(None)
        });
        assert_eq!(result.err(), Some(CryptoError::WrongKey(SlotKind::Passphrase)));
        tried.push(count);
        budget.use_kept();
    }
    assert_eq!((tried, budget.skipped()), (vec![16, 16], 32));
}
