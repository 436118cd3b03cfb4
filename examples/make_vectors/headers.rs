//! Vectors of the vault header.

use std::error::Error;

use ed25519_dalek::SigningKey;
use strongroom::crypto::{Argon2Cost, Credential, RecoveryKey, SecretBytes, add_slot, header_mac};
use strongroom::env::TestEnv;
use strongroom::format::{Cipher, Header, Slot};

use crate::{CREATED, Out, Outcome, ROOT, hex, root, vault_header};

const PASSPHRASE: &str = "correct horse battery staple";
const KEYFILE: [u8; 32] = [0x4b; 32];

/// A header with a slot of each kind, and the text of its recovery key.
fn full_header(cipher: Cipher) -> Result<(Header, String), Box<dyn Error>> {
    let env = TestEnv::new(2);
    let mut header = vault_header(cipher);
    let recovery = RecoveryKey::generate(&env);
    let text = recovery.to_text().to_string();
    for (cred, label) in [
        (Credential::Passphrase(SecretBytes::new(PASSPHRASE.into())), "daily"),
        (Credential::Keyfile(SecretBytes::new(KEYFILE.to_vec())), "key \"file\" \u{e9}"),
        (Credential::Recovery(recovery), ""),
    ] {
        add_slot(&env, &mut header, &root(), &cred, Argon2Cost::TEST, label.to_owned(), CREATED.to_owned())?;
    }
    Ok((header, text))
}

/// Returns the file of a header whose members are `text`, with a right mac and checksum.
fn sealed_header(text: &str) -> Vec<u8> {
    sealed_with_mac(text, &header_mac(&root(), text.as_bytes()))
}

fn sealed_with_mac(text: &str, mac: &[u8; 32]) -> Vec<u8> {
    let file = format!("{text},\n  \"mac\": \"{}\"", hex(mac));
    let checksum = blake3::hash(file.as_bytes()).to_hex();
    format!("{file},\n  \"checksum\": \"{checksum}\"\n}}\n").into_bytes()
}

pub(crate) fn headers(out: &Out) -> Outcome {
    let (header, recovery) = full_header(Cipher::ChaCha20Poly1305)?;
    let file = header.encode(|input| header_mac(&root(), input));
    let text = String::from_utf8(Header::parse(&file)?.mac_input)?;
    let root_key = || ("root", hex(&ROOT));
    let pass = |text: &str| ("passphrase", text.to_owned());

    out.put("header-ok", "ok", "three slots, root known", &[root_key()], &file)?;
    out.put("header-ok-no-key", "ok", "form and checksum alone", &[], &file)?;
    out.put("header-ok-passphrase", "ok", "Argon2id slot", &[root_key(), pass(PASSPHRASE)], &file)?;
    out.put("header-ok-keyfile", "ok", "keyfile slot", &[root_key(), ("keyfile", hex(&KEYFILE))], &file)?;
    out.put("header-ok-recovery", "ok", "recovery slot", &[root_key(), ("recovery", recovery)], &file)?;
    let (aes, _) = full_header(Cipher::Aes256Gcm)?;
    let aes = aes.encode(|input| header_mac(&root(), input));
    out.put("header-ok-aes", "ok", "a vault of the other cipher", &[root_key(), pass(PASSPHRASE)], &aes)?;

    out.put("header-empty", "header", "HDR-1: no bytes", &[], b"")?;
    out.put("header-empty-object", "header", "HDR-1: no member strongroom", &[], b"{}\n")?;
    out.put("header-array", "header", "HDR-1: JSON but no object", &[], b"[{\"strongroom\": 1}]\n")?;
    out.put("header-text", "header", "HDR-1: no JSON", &[], b"strongroom: 1\n")?;
    out.put(
        "header-newer-bare",
        "version",
        "HDR-1: said before anything else",
        &[],
        b"{\"strongroom\": 2}\n",
    )?;
    let newer = sealed_header(&text.replacen("\"strongroom\": 1", "\"strongroom\": 2", 1));
    out.put("header-newer-full", "version", "HDR-1: all members of version 1", &[], &newer)?;
    let other = b"{\"vault\": {\"strongroom\": 1}, \"strongroom\": 10, \"slots\": null}\n";
    out.put("header-newer-other-members", "version", "HDR-1: other members", &[], other)?;

    // Flips a bit of the first byte behind `needle`.
    let flip = |needle: &str| -> Result<Vec<u8>, Box<dyn Error>> {
        let mut bad = file.clone();
        let at = text.find(needle).ok_or("nothing to flip")? + needle.len();
        bad[at] ^= 1;
        Ok(bad)
    };
    out.put("header-damaged-label", "damaged", "HDR-2: a flipped bit", &[], &flip("\"label\": \"")?)?;
    out.put("header-damaged-key", "damaged", "HDR-2: a flipped bit", &[], &flip("\"public_key\": \"")?)?;
    out.put("header-damaged-slot", "damaged", "HDR-2: a flipped bit", &[], &flip("\"wrapped\": \"")?)?;
    let mut bad = file.clone();
    let at = bad.len() - 5;
    bad[at] = if bad[at] == b'0' { b'1' } else { b'0' };
    out.put("header-damaged-checksum", "damaged", "HDR-2: the checksum itself", &[], &bad)?;

    let long = "x".repeat(65);
    for (name, comment, from, to) in [
        ("unknown", "HDR-5: an unknown member", "\"generation\": 1", "\"generation\": 1,\n  \"extra\": 1"),
        ("missing", "HDR-5: no kem", "  \"kem\": \"x-wing\",\n", ""),
        (
            "repeated",
            "HDR-5: a repeated member",
            "\"generation\": 1",
            "\"generation\": 1,\n  \"generation\": 1",
        ),
        (
            "reordered",
            "HDR-5: cipher after kem",
            "\"cipher\": \"chacha20-poly1305\",\n  \"kem\": \"x-wing\"",
            "\"kem\": \"x-wing\",\n  \"cipher\": \"chacha20-poly1305\"",
        ),
        (
            "slot-unknown",
            "HDR-5: an unknown member of a slot",
            "\"id\": 1,",
            "\"id\": 1,\n      \"more\": 1,",
        ),
        ("version-0", "strongroom is 0", "\"strongroom\": 1", "\"strongroom\": 0"),
        ("version-text", "strongroom is a string", "\"strongroom\": 1", "\"strongroom\": \"1\""),
        ("generation-0", "generation starts at 1", "\"generation\": 1", "\"generation\": 0"),
        ("cipher", "unknown cipher", "chacha20-poly1305", "aes-128-gcm"),
        ("kem", "unknown kem", "\"x-wing\"", "\"x25519\""),
        ("vault-id-short", "vault_id of 15 bytes", "\"vault_id\": \"56", "\"vault_id\": \""),
        ("created", "created without a time", CREATED, "2026-11-21"),
        ("slot-id-0", "a slot id starts at 1", "\"id\": 1,", "\"id\": 0,"),
        ("slot-id-twice", "slot ids are unique", "\"id\": 2,", "\"id\": 1,"),
        ("slot-kind", "unknown slot kind", "\"kind\": \"keyfile\"", "\"kind\": \"tpm2\""),
        ("slot-kdf", "a keyfile slot with argon2id", "\"kind\": \"passphrase\"", "\"kind\": \"keyfile\""),
        ("slot-label", "a label of 65 bytes", "daily", long.as_str()),
        ("slot-nonce", "a nonce of 25 bytes", "\"nonce\": \"", "\"nonce\": \"00"),
        ("argon2-m-small", "HDR-4: m_kib below 8 p", "\"m_kib\": 64", "\"m_kib\": 7"),
        ("argon2-m-big", "HDR-4: m_kib above 4,194,304", "\"m_kib\": 64", "\"m_kib\": 4194305"),
        ("argon2-t-0", "HDR-4: t is 0", "\"t\": 1", "\"t\": 0"),
        ("argon2-t-65", "HDR-4: t above 64", "\"t\": 1", "\"t\": 65"),
        ("argon2-p-0", "HDR-4: p is 0", "\"p\": 1", "\"p\": 0"),
        (
            "argon2-p-17",
            "HDR-4: p above 16",
            "\"m_kib\": 64,\n        \"t\": 1,\n        \"p\": 1",
            "\"m_kib\": 640,\n        \"t\": 1,\n        \"p\": 17",
        ),
    ] {
        let changed = text.replacen(from, to, 1);
        if changed == text {
            return Err(format!("header-{name} changes nothing").into());
        }
        out.put(&format!("header-{name}"), "malformed", comment, &[root_key()], &sealed_header(&changed))?;
    }
    let no_slots = Header { slots: Vec::new(), ..header.clone() };
    let no_slots = no_slots.encode(|input| header_mac(&root(), input));
    out.put("header-no-slots", "malformed", "a header has 1 to 32 slots", &[root_key()], &no_slots)?;
    let slots = (1..=33).map(|id| Slot { id, ..header.slots[1].clone() }).collect();
    let many = Header { slots, ..header.clone() }.encode(|input| header_mac(&root(), input));
    out.put("header-33-slots", "malformed", "a header has 1 to 32 slots", &[root_key()], &many)?;

    out.put("header-wrong-passphrase", "mac", "no slot opens", &[root_key(), pass("correct horse")], &file)?;
    out.put(
        "header-wrong-keyfile",
        "mac",
        "no slot opens",
        &[root_key(), ("keyfile", hex(&[1; 32]))],
        &file,
    )?;
    let bad_mac = sealed_with_mac(&text, &[0x11; 32]);
    out.put("header-wrong-mac", "mac", "HDR-3", &[root_key(), pass(PASSPHRASE)], &bad_mac)?;
    let old_mac = Header::parse(&file)?.mac;
    let relabelled = sealed_with_mac(&text.replacen("daily", "dayly", 1), &old_mac);
    out.put(
        "header-relabelled",
        "mac",
        "HDR-3: the slot opens, the mac is old",
        &[root_key(), pass(PASSPHRASE)],
        &relabelled,
    )?;
    for (name, change) in [
        ("header-other-cipher", ("chacha20-poly1305", "aes-256-gcm")),
        ("header-other-vault", ("\"vault_id\": \"5656", "\"vault_id\": \"5657")),
        ("header-other-cost", ("\"t\": 1", "\"t\": 2")),
    ] {
        let moved = sealed_header(&text.replacen(change.0, change.1, 1));
        out.put(
            name,
            "mac",
            "a slot is bound to what its header says",
            &[root_key(), pass(PASSPHRASE)],
            &moved,
        )?;
    }
    let mut swapped = header.clone();
    swapped.signing_key = SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes();
    let swapped_file = swapped.encode(|input| header_mac(&root(), input));
    out.put(
        "header-signing-key",
        "mac",
        "HDR-3: signing_key is not the root's",
        &[root_key()],
        &swapped_file,
    )?;
    swapped.slots.clear();
    let cred = Credential::Passphrase(SecretBytes::new(PASSPHRASE.into()));
    add_slot(
        &TestEnv::new(3),
        &mut swapped,
        &root(),
        &cred,
        Argon2Cost::TEST,
        String::new(),
        CREATED.to_owned(),
    )?;
    let sealed = swapped.encode(|input| header_mac(&root(), input));
    let comment = "HDR-3: signing_key is not the root's, slot and mac are right";
    out.put("header-signing-key-insider", "mac", comment, &[root_key(), pass(PASSPHRASE)], &sealed)
}
