#![allow(clippy::unwrap_used)]
use super::*;
use crate::env::TestEnv;
use crate::format::samples::CREATED;

struct Vault {
    env: TestEnv,
    root: RootSecret,
    header: Header,
}

fn vault() -> Vault {
    let env = TestEnv::new(11);
    let root = RootSecret::generate(&env);
    let chunker = ChunkerParams::default();
    let header = new_header(&env, &root, Cipher::ChaCha20Poly1305, chunker, CREATED.to_owned());
    Vault { env, root, header: Header { generation: 1, ..header } }
}

fn passphrase(text: &str) -> Credential {
    Credential::Passphrase(SecretBytes::new(text.as_bytes().to_vec()))
}

fn keyfile(bytes: &[u8]) -> Credential {
    Credential::Keyfile(SecretBytes::new(bytes.to_vec()))
}

impl Vault {
    fn add(&mut self, cred: &Credential) -> Result<u32, CryptoError> {
        let cost = Argon2Cost::TEST;
        add_slot(&self.env, &mut self.header, &self.root, cred, cost, "label".to_owned(), CREATED.to_owned())
    }

    fn file(&self) -> Vec<u8> {
        self.header.encode(|input| header_mac(&self.root, input))
    }

    fn parsed(&self) -> ParsedHeader {
        Header::parse(&self.file()).unwrap()
    }

    /// Parses the header after `change`, with the MAC that the root secret gives: what an insider could
    /// write.
    fn parsed_after(&self, change: impl FnOnce(&mut Header)) -> ParsedHeader {
        let mut header = self.header.clone();
        change(&mut header);
        Header::parse(&header.encode(|input| header_mac(&self.root, input))).unwrap()
    }

    /// Parses the header after `change`, with the old MAC and a right checksum: what anyone could write.
    fn parsed_after_attack(&self, change: impl FnOnce(&mut Header)) -> ParsedHeader {
        let mac = self.parsed().mac;
        let mut header = self.header.clone();
        change(&mut header);
        Header::parse(&header.encode(|_| mac)).unwrap()
    }
}

fn unlocked(parsed: &ParsedHeader, cred: &Credential) -> Result<([u8; 32], u32), CryptoError> {
    unlock(parsed, cred).map(|(root, id)| (*root.expose(), id))
}

#[test]
fn each_kind_of_slot_opens_with_its_own_credential_only() {
    let mut v = vault();
    let recovery = RecoveryKey::generate(&v.env);
    let text = recovery.to_text();
    let creds = [passphrase("correct horse"), keyfile(&[5; 32]), Credential::Recovery(recovery)];
    for (cred, id) in creds.iter().zip(1..) {
        assert_eq!(v.add(cred), Ok(id));
    }
    let parsed = v.parsed();
    let root = *v.root.expose();
    for (cred, id) in creds.iter().zip(1..) {
        assert_eq!(unlocked(&parsed, cred), Ok((root, id)));
    }
    let typed = RecoveryKey::parse(&text.to_lowercase()).unwrap();
    assert_eq!(unlocked(&parsed, &Credential::Recovery(typed)), Ok((root, 3)));

    let other = RecoveryKey::generate(&v.env);
    for (cred, kind) in [
        (passphrase("correct horsf"), SlotKind::Passphrase),
        (passphrase("correct horse "), SlotKind::Passphrase),
        (keyfile(&[6; 32]), SlotKind::Keyfile),
        (keyfile(&[5; 33]), SlotKind::Keyfile),
        (Credential::Recovery(other), SlotKind::Recovery),
    ] {
        assert_eq!(unlocked(&parsed, &cred), Err(CryptoError::WrongKey(kind)));
    }
}

#[test]
fn every_slot_of_the_kind_is_tried() {
    let mut v = vault();
    for text in ["one", "two", "three"] {
        v.add(&passphrase(text)).unwrap();
    }
    assert_eq!(unlocked(&v.parsed(), &passphrase("three")).unwrap().1, 3);
    assert_eq!(unlocked(&v.parsed(), &passphrase("two")).unwrap().1, 2);
    assert_eq!(unlocked(&v.parsed(), &keyfile(&[5; 32])), Err(CryptoError::NoSlot(SlotKind::Keyfile)));
}

#[test]
fn slot_ids_are_not_used_again_below_the_highest() {
    let mut v = vault();
    for text in ["one", "two", "three"] {
        v.add(&passphrase(text)).unwrap();
    }
    v.header.slots.remove(0);
    assert_eq!(v.add(&passphrase("four")), Ok(4));
    v.header.slots[0].id = u32::MAX;
    assert_eq!(v.add(&passphrase("five")), Err(CryptoError::SlotsFull));
}

#[test]
fn a_header_takes_thirty_two_slots() {
    let mut v = vault();
    for _ in 0..32 {
        v.add(&keyfile(&[5; 32])).unwrap();
    }
    assert_eq!(v.add(&keyfile(&[5; 32])), Err(CryptoError::SlotsFull));
    assert_eq!(v.header.slots.len(), 32);
    v.parsed();
}

#[test]
fn what_is_no_credential_is_refused_before_anything_is_computed() {
    let mut v = vault();
    v.add(&passphrase("x")).unwrap();
    v.add(&keyfile(&[1; KEYFILE_LEN_MAX])).unwrap();
    let parsed = v.parsed();
    assert_eq!(unlocked(&parsed, &keyfile(&[1; KEYFILE_LEN_MAX])).unwrap().1, 2);
    for bad in [passphrase(""), keyfile(&[1; 31]), keyfile(&[]), keyfile(&[1; KEYFILE_LEN_MAX + 1])] {
        assert!(matches!(v.add(&bad), Err(CryptoError::BadKeyMaterial(_))));
        assert!(matches!(unlocked(&parsed, &bad), Err(CryptoError::BadKeyMaterial(_))));
    }
    let long = "x".repeat(65);
    let result = add_slot(
        &v.env,
        &mut v.header,
        &v.root,
        &passphrase("x"),
        Argon2Cost::TEST,
        long,
        CREATED.to_owned(),
    );
    assert!(matches!(result, Err(CryptoError::Format(FormatError::Malformed(_)))));
    // FORMAT HDR-4
    let cost = Argon2Cost { m_kib: 1, t: 1, p: 1 };
    let result =
        add_slot(&v.env, &mut v.header, &v.root, &passphrase("x"), cost, String::new(), CREATED.to_owned());
    assert!(matches!(result, Err(CryptoError::Format(FormatError::Malformed(m))) if m.starts_with("HDR-4")));
    assert_eq!(v.header.slots.len(), 2, "a failed slot leaves no trace");
}

#[test]
fn a_changed_header_is_not_a_wrong_passphrase() {
    // FORMAT HDR-3
    let mut v = vault();
    v.add(&passphrase("x")).unwrap();
    v.add(&keyfile(&[5; 32])).unwrap();
    let cred = passphrase("x");
    let tampered = Err(CryptoError::Tampered("vault header: its mac is wrong"));
    let changes: [fn(&mut Header); 6] = [
        |h| h.generation += 1,
        |h| h.created = "2020-01-01T00:00:00Z".to_owned(),
        |h| h.chunker.min = 64,
        |h| h.slots[0].label = "changed".to_owned(),
        |h| h.slots.truncate(1),
        |h| h.slots[1].wrapped[0] ^= 1,
    ];
    for change in changes {
        assert_eq!(unlocked(&v.parsed_after_attack(change), &cred), tampered);
    }
    // What the slot itself is bound to can't be told from a wrong key: the seal does not open.
    let changes: [fn(&mut Header); 8] = [
        |h| h.vault_id.0[0] ^= 1,
        |h| h.cipher = Cipher::Aes256Gcm,
        |h| h.public_key[0] ^= 1,
        |h| h.signing_key[0] ^= 1,
        |h| h.ingest_signing_key[0] ^= 1,
        |h| h.slots[0].wrapped[47] ^= 1,
        |h| h.slots[0].nonce[0] ^= 1,
        |h| h.slots[0].id = 9,
    ];
    for change in changes {
        let wrong = Err(CryptoError::WrongKey(SlotKind::Passphrase));
        assert_eq!(unlocked(&v.parsed_after_attack(change), &cred), wrong);
        assert_eq!(unlocked(&v.parsed_after(change), &cred), wrong);
    }
    let mut damaged = v.file();
    damaged[100] ^= 1;
    assert!(matches!(Header::parse(&damaged), Err(FormatError::Damaged(_))));
    unlocked(&v.parsed(), &cred).unwrap();
}

#[test]
fn public_keys_that_are_not_the_roots_are_refused() {
    // FORMAT HDR-3
    let v = vault();
    let changes: [fn(&mut Header); 3] =
        [|h| h.public_key[5] ^= 1, |h| h.signing_key[5] ^= 1, |h| h.ingest_signing_key[5] ^= 1];
    for change in changes {
        // Sealed by an insider for the changed header: slot and mac are right.
        let mut evil = Vault {
            header: v.header.clone(),
            env: TestEnv::new(12),
            root: RootSecret::from_slice(v.root.expose()).unwrap(),
        };
        change(&mut evil.header);
        evil.add(&passphrase("x")).unwrap();
        let result = unlocked(&evil.parsed(), &passphrase("x"));
        assert!(
            matches!(result, Err(CryptoError::Tampered(m)) if m.ends_with("is not this vault's")),
            "{result:?}"
        );
    }
}

#[test]
fn a_slot_of_another_vault_does_not_open() {
    let mut a = vault();
    a.add(&passphrase("x")).unwrap();
    let mut b = vault();
    b.env.random(&mut b.header.vault_id.0);
    b.header.slots = a.header.slots.clone();
    assert_eq!(unlocked(&b.parsed(), &passphrase("x")), Err(CryptoError::WrongKey(SlotKind::Passphrase)));
}

#[test]
fn too_much_memory_is_an_error_and_no_abort() {
    let result = derive_argon2(b"x", &[0; 32], Argon2Cost { m_kib: u32::MAX, t: 1, p: 0 });
    assert!(matches!(result.err(), Some(CryptoError::Kdf(_))));
}

#[test]
fn calibration_keeps_to_its_bounds() {
    let gib = 1024 * 1024;
    let ms = Duration::from_millis;
    // A slow machine gets the floor, however little memory it has.
    assert_eq!(Argon2Cost::for_speed(ms(100), ms(500), 0), Argon2Cost::FLOOR);
    assert_eq!(Argon2Cost::for_speed(Duration::ZERO, ms(50), 8 * gib), Argon2Cost::FLOOR);
    // 20 passes over 64 MiB fit: three passes over 426 MiB.
    assert_eq!(
        Argon2Cost::for_speed(ms(1000), ms(50), 64 * gib),
        Argon2Cost { m_kib: 426 * 1024, t: 3, p: 1 }
    );
    // With less memory, more passes.
    assert_eq!(Argon2Cost::for_speed(ms(1000), ms(50), gib), Argon2Cost { m_kib: 128 * 1024, t: 10, p: 1 });
    // Never more than the maximum.
    let most = Argon2Cost::for_speed(Duration::from_secs(3600), ms(1), u64::MAX);
    assert_eq!(most, Argon2Cost { m_kib: gib as u32, t: 16, p: 1 });
    for cost in [Argon2Cost::FLOOR, Argon2Cost::TEST, most] {
        SlotKdf::Argon2id { m_kib: cost.m_kib, t: cost.t, p: cost.p, salt: [0; 32] }.check().unwrap();
    }
    assert!(memory_kib() > 64 * 1024);
}

#[test]
fn argon2id_is_that_of_another_implementation() {
    // Computed with OpenSSL's Argon2id: 64 KiB, one pass, one lane, a salt of 32 times 's'.
    let key = derive_argon2(b"password", &[b's'; 32], Argon2Cost { m_kib: 64, t: 1, p: 1 }).unwrap();
    assert_eq!(data_encoding::HEXLOWER.encode(key.expose()), ARGON2_REFERENCE);
}

const ARGON2_REFERENCE: &str = "08ae9cd3a8f044ed52025f8d5bbe751407fdab2e68926afa40f3777485119ad0";

fn newest_of(headers: &[ParsedHeader], cred: &Credential) -> Result<Newest, CryptoError> {
    let claims: Vec<Claim<'_>> = headers.iter().map(|parsed| Claim { parsed, age: 0 }).collect();
    unlock_newest(&claims, cred, &mut Budget::default())
}

/// The place of the header that a key opens, and its slot.
fn newest(headers: &[ParsedHeader], cred: &Credential) -> Result<(usize, u32), CryptoError> {
    match newest_of(headers, cred)? {
        Newest::Opens { at, slot, .. } => Ok((at, slot)),
        Newest::OnlyOlder { at, newest } => panic!("opens only {at}, {newest} is the newest"),
    }
}

#[test]
fn forged_headers_do_not_hide_the_newest_true_one() {
    let mut vault = vault();
    let (old, new) = (keyfile(&[1; 32]), keyfile(&[2; 32]));
    vault.add(&old).unwrap();
    let first = vault.parsed();
    // The old key was taken out, a new one put in.
    vault.header.slots.clear();
    vault.header.generation = 2;
    let slot = vault.add(&new).unwrap();
    let second = vault.parsed();
    // One with true slots, one with slots that open nothing, one without any of this kind.
    let copied = vault.parsed_after_attack(|header| header.generation = 1000);
    let closed = vault.parsed_after_attack(|header| {
        header.generation = 1001;
        header.slots[0].wrapped[0] ^= 1;
    });
    let foreign = vault.parsed_after_attack(|header| {
        header.generation = 1002;
        header.slots[0].kind = SlotKind::Recovery;
    });
    let forged = [foreign, closed, copied];
    let all = [&forged[..], &[second.clone(), first.clone()]].concat();
    assert_eq!(newest(&all, &new), Ok((3, slot)));
    assert_eq!(newest(&[second.clone(), first.clone()], &new), Ok((0, slot)));
    // A key that was taken out opens an older header, and is not good for that.
    for headers in [&all[..], &all[3..]] {
        match newest_of(headers, &old).map_err(|e| e.to_string()) {
            Ok(Newest::OnlyOlder { at, newest }) => {
                assert_eq!((headers[at].header.generation, headers[newest].header.generation), (1, 2));
            }
            Ok(Newest::Opens { at, .. }) => panic!("{at} was opened"),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(newest(&all, &keyfile(&[3; 32])), Err(CryptoError::WrongKey(SlotKind::Keyfile)));
    assert_eq!(newest(&all, &passphrase("x")), Err(CryptoError::NoSlot(SlotKind::Passphrase)));
    assert_eq!(newest(&[], &new), Err(CryptoError::NoSlot(SlotKind::Keyfile)));
    // Nothing but forged ones.
    let tampered = Err(CryptoError::Tampered("vault header: its mac is wrong"));
    assert_eq!(newest(&forged, &new), tampered);
    // A flood of them: the true one stands last.
    let flood: Vec<ParsedHeader> = (0..300)
        .map(|n| {
            vault.parsed_after_attack(|header| {
                header.generation = 5000 - n;
                header.slots[0].nonce = [u8::try_from(n % 251).unwrap(); 24];
            })
        })
        .chain([second])
        .collect();
    assert_eq!(newest(&flood, &new), Ok((300, slot)));
}

/// Who can write headers decides what it costs to try them: dear ones come last, and one that can't be tried stops nothing.
#[test]
fn dear_slots_are_tried_last() {
    let mut vault = vault();
    let cred = passphrase("open sesame");
    let slot = vault.add(&cred).unwrap();
    let truth = vault.parsed();
    let dear = vault.parsed_after_attack(|header| {
        header.generation = 9;
        // Hours, and more memory than most machines have.
        for slot in &mut header.slots {
            if let SlotKdf::Argon2id { m_kib, t, .. } = &mut slot.kdf {
                (*m_kib, *t) = (4 << 20, 64);
            }
        }
    });
    assert_eq!(newest(&[dear, truth], &cred), Ok((1, slot)));
}
