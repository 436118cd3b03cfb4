#![allow(clippy::unwrap_used)]
use super::tests_support::{header, keys, keys_with, root};
use super::*;
use crate::crypto::slots::{Argon2Cost, Credential, add_slot, header_mac};
use crate::crypto::{RecoveryKey, SecretBytes};
use crate::env::TestEnv;
use crate::format::chain::PackList;
use crate::format::samples::{self, each_bit_flip, each_truncation};
use crate::format::{Codec, FormatError, Trailer};

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn first_snapshot() -> PublicPart {
    PublicPart { vault_id: keys().vault_id(), ..samples::first_snapshot() }
}

fn removal() -> PublicPart {
    PublicPart { vault_id: keys().vault_id(), ..samples::removal() }
}

fn snapshot_file() -> Vec<u8> {
    keys().seal_chain_file(&TestEnv::new(41), &first_snapshot(), &samples::sealed_snapshot()).unwrap().0
}

#[test]
fn data_and_tree_chunks_have_ids_of_their_own() {
    // FORMAT PACK-5
    let keys = keys();
    let id = keys.chunk_id(PackKind::Data, b"chunk");
    assert_eq!(id, keys.chunk_id(PackKind::Data, b"chunk"));
    assert_ne!(id, keys.chunk_id(PackKind::Tree, b"chunk"));
    assert_ne!(id, keys.chunk_id(PackKind::Data, b"chunl"));
    assert_ne!(id.0, *blake3::hash(b"chunk").as_bytes());
}

#[test]
fn a_pack_of_another_vault_or_cipher_is_refused() {
    let env = TestEnv::new(42);
    let keys = keys();
    let (header, _) = keys.new_pack(&env, PackKind::Data).unwrap();
    assert_eq!(header.vault_id, keys.vault_id());
    assert_eq!(header.cipher, keys.cipher());
    keys.open_pack(&header).map(drop).unwrap();
    let refused = |header: PackHeader| keys.open_pack(&header).map(drop).unwrap_err();
    let mut other = header.clone();
    other.vault_id.0[3] ^= 1;
    assert_eq!(refused(other), CryptoError::Tampered("pack: it belongs to another vault"));
    let other = PackHeader { cipher: Cipher::Aes256Gcm, ..header.clone() };
    assert_eq!(refused(other), CryptoError::Tampered("pack: its cipher is not the vault's"));
}

#[test]
fn packs_never_share_a_uid_or_a_key() {
    // FORMAT PACK-7
    let env = TestEnv::new(43);
    let keys = keys();
    let (a, key_a) = keys.new_pack(&env, PackKind::Data).unwrap();
    let (b, key_b) = keys.new_pack(&env, PackKind::Data).unwrap();
    assert_ne!(a.uid, b.uid);
    assert_ne!(a.kem_ciphertext, b.kem_ciphertext);
    assert_ne!(key_a.padding(32), key_b.padding(32));
}

#[test]
fn a_chain_file_survives() {
    let keys = keys();
    for (public, sealed) in
        [(first_snapshot(), samples::sealed_snapshot()), (removal(), samples::sealed_removal())]
    {
        let env = TestEnv::new(44);
        let (bytes, id) = keys.seal_chain_file(&env, &public, &sealed).unwrap();
        // FORMAT LAY-1
        assert_eq!(id.0, *blake3::hash(&bytes).as_bytes());
        let file = keys.verify_chain_file(&bytes).unwrap();
        assert_eq!(file.public, public);
        assert_eq!(file.signer, Signer::Owner);
        assert_eq!(keys.open_sealed_part(&bytes, &file).as_ref(), Ok(&sealed));
        assert_eq!(verify_chain_file(&header(Cipher::ChaCha20Poly1305), &bytes), Ok(file));
        let (again, other_id) = keys.seal_chain_file(&env, &public, &sealed).unwrap();
        assert_ne!(again, bytes, "keys and nonces are drawn each time");
        assert_ne!(other_id, id);
    }
}

#[test]
fn any_change_of_a_chain_file_is_noticed() {
    // FORMAT SNAP-4
    let keys = keys();
    let bytes = snapshot_file();
    each_truncation(&bytes, |cut| assert!(keys.verify_chain_file(cut).is_err()));
    let mut tampered = 0;
    let mut refused = |bad: &[u8]| match keys.verify_chain_file(bad) {
        Err(CryptoError::Tampered("chain file: its signature is wrong")) => tampered += 1,
        Err(CryptoError::Format(FormatError::Malformed(_))) => {}
        other => panic!("{other:?}"),
    };
    // Each bit of what has structure, and some bits of what has none.
    each_bit_flip(&bytes[..16 + 186], |head| refused(&[head, &bytes[16 + 186..]].concat()));
    for at in (16 + 186..bytes.len()).step_by(7).chain(bytes.len() - 64..bytes.len()) {
        let mut bad = bytes.clone();
        bad[at] ^= 0x20;
        refused(&bad);
    }
    assert!(tampered > 200, "{tampered}");
}

#[test]
fn a_signature_counts_for_the_named_signer_and_vault_only() {
    let keys = keys();
    let bytes = snapshot_file();
    // Signed with the right key but named as the other's.
    let mut as_ingest = bytes.clone();
    as_ingest[9] = 1;
    let wrong = Err(CryptoError::Tampered("chain file: its signature is wrong"));
    assert_eq!(keys.verify_chain_file(&as_ingest), wrong);
    // The ingest key may sign snapshots in its own name, and no removal.
    let ingest = signing_key(&root(), context::INGEST_SIGNING);
    let resign = |mut bytes: Vec<u8>, key: &SigningKey| {
        let end = bytes.len() - 64;
        let signature = key.sign(&SignedDigest::of(&bytes[..end]).message());
        bytes[end..].copy_from_slice(&signature.to_bytes());
        bytes
    };
    let file = keys.verify_chain_file(&resign(as_ingest, &ingest)).unwrap();
    assert_eq!(file.signer, Signer::Ingest);
    let env = TestEnv::new(45);
    let mut gone = keys.seal_chain_file(&env, &removal(), &samples::sealed_removal()).unwrap().0;
    gone[9] = 1;
    let result = keys.verify_chain_file(&resign(gone, &ingest));
    assert!(matches!(result, Err(CryptoError::Format(FormatError::Malformed(m))) if m.starts_with("SNAP-4")));
    // Rightly signed, but about another vault: of no use here.
    let mut other = first_snapshot().encode().unwrap();
    other[0] ^= 1;
    let moved = [&bytes[..16], &other, &bytes[16 + other.len()..]].concat();
    let result = keys.verify_chain_file(&resign(moved, &signing_key(&root(), context::SIGNING)));
    assert_eq!(result, Err(CryptoError::Tampered("chain file: it belongs to another vault")));
}

#[test]
fn a_weak_signing_key_verifies_nothing() {
    let bytes = snapshot_file();
    let mut small_order = header(Cipher::ChaCha20Poly1305);
    small_order.signing_key = [0; 32];
    small_order.signing_key[0] = 1;
    let mut forged = bytes.clone();
    let end = forged.len() - 64;
    forged[end..].fill(0);
    forged[end] = 1;
    let wrong = Err(CryptoError::Tampered("chain file: its signature is wrong"));
    assert_eq!(verify_chain_file(&small_order, &forged), wrong);
    let mut no_point = header(Cipher::ChaCha20Poly1305);
    no_point.signing_key = [0xff; 32];
    no_point.signing_key[0] = 2;
    assert!(matches!(verify_chain_file(&no_point, &bytes), Err(CryptoError::Tampered(_))));
}

#[test]
fn the_sealed_part_is_bound_to_its_file() {
    let keys = keys();
    let env = TestEnv::new(46);
    let (a, _) = keys.seal_chain_file(&env, &first_snapshot(), &samples::sealed_snapshot()).unwrap();
    let (b, _) = keys.seal_chain_file(&env, &first_snapshot(), &samples::sealed_snapshot()).unwrap();
    let (file_a, file_b) = (keys.verify_chain_file(&a).unwrap(), keys.verify_chain_file(&b).unwrap());
    let tampered = Err(CryptoError::Tampered("chain file: its sealed part"));
    assert_eq!(keys.open_sealed_part(&b, &file_a), tampered, "bytes of another file");
    let mixed = ChainFile { sealed: file_b.sealed.clone(), nonce: file_b.nonce, ..file_a.clone() };
    assert_eq!(keys.open_sealed_part(&mixed.encode().unwrap(), &mixed), tampered);
    assert_eq!(keys.open_sealed_part(&[], &file_a), tampered);
    let other_time = PublicPart { time: crate::env::Time { secs: 1, nanos: 0 }, ..first_snapshot() };
    let mixed = ChainFile { public: other_time, ..file_a };
    assert_eq!(keys.open_sealed_part(&mixed.encode().unwrap(), &mixed), tampered);
}

#[test]
fn what_no_reader_would_take_is_not_sealed() {
    let keys = keys();
    let env = TestEnv::new(47);
    let seal = |public: PublicPart, sealed: SealedPart| {
        keys.seal_chain_file(&env, &public, &sealed).map(drop).unwrap_err()
    };
    let (with_root, without) = (samples::sealed_snapshot, samples::sealed_removal);
    assert!(matches!(seal(first_snapshot(), without()), CryptoError::Seal(_)));
    assert!(matches!(seal(removal(), with_root()), CryptoError::Seal(_)));
    let mut foreign = first_snapshot();
    foreign.vault_id.0[0] ^= 1;
    assert!(matches!(seal(foreign, with_root()), CryptoError::Seal(_)));
    let difference = PackList { full: false, ..PackList::default() };
    let bad = PublicPart { packs: difference, ..first_snapshot() };
    assert!(matches!(seal(bad, with_root()), CryptoError::Format(FormatError::Malformed(_))));
    let long = SealedPart { host: "x".repeat(1025), ..with_root() };
    assert!(matches!(seal(first_snapshot(), long), CryptoError::Format(FormatError::Malformed(_))));
}

/// Pins every derivation of format 1. If this fails, vaults that exist can't be read any more: never change
/// the values.
#[test]
fn known_answers() {
    let root = root();
    let mut got = String::new();
    let mut note = |what: &str, bytes: &[u8]| got += &format!("{what} {}\n", hex(bytes));
    note("root", root.expose());
    for context in [
        context::HEADER_MAC,
        context::DATA_ID,
        context::TREE_ID,
        context::KEM_SEED,
        context::SIGNING,
        context::INGEST_SIGNING,
        context::DEDUP_INDEX,
        context::LIVE_BLOCKS,
        context::JOURNAL,
        context::CHUNKER,
    ] {
        note(context, root.derive(context).expose());
    }
    let mut header = header(Cipher::ChaCha20Poly1305);
    note("H(public_key)", blake3::hash(&header.public_key).as_bytes());
    note("signing_key", &header.signing_key);
    note("ingest_signing_key", &header.ingest_signing_key);

    let env = TestEnv::new(1);
    let recovery = RecoveryKey::generate(&env);
    let text = recovery.to_text().to_string();
    let creds = [
        Credential::Passphrase(SecretBytes::new(b"passphrase".to_vec())),
        Credential::Keyfile(SecretBytes::new(vec![0x4b; 40])),
        Credential::Recovery(recovery),
    ];
    for cred in &creds {
        add_slot(&env, &mut header, &root, cred, Argon2Cost::TEST, "slot".into(), samples::CREATED.into())
            .unwrap();
    }
    for slot in &header.slots {
        note("slot", &slot.wrapped);
    }
    header.generation = 1;
    note("H(vault.json)", blake3::hash(&header.encode(|input| header_mac(&root, input))).as_bytes());

    let keys = VaultKeys::derive(&root, &header).unwrap();
    note("chunker_seed", &keys.chunker_seed().to_le_bytes());
    note("data chunk id", keys.chunk_id(PackKind::Data, b"chunk").as_bytes());
    note("tree chunk id", keys.chunk_id(PackKind::Tree, b"chunk").as_bytes());
    for (name, cipher) in
        [("chacha20-poly1305", Cipher::ChaCha20Poly1305), ("aes-256-gcm", Cipher::Aes256Gcm)]
    {
        let keys = keys_with(cipher);
        let (pack_header, key) = keys.new_pack(&env, PackKind::Data).unwrap();
        note(name, blake3::hash(&pack_header.encode()).as_bytes());
        let mut frame = b"block".to_vec();
        key.seal_frame(1, &samples::chunk(1), 0, true, Codec::Raw, 5, &mut frame, 0).unwrap();
        note("frame", &frame);
        note("footer", &key.seal_footer(&env, b"footer"));
        let trailer = Trailer { footer_offset: 1168, footer_len: 44, chunk_count: 0, file_len: 4096 };
        note("trailer", &key.seal_trailer(&env, &trailer));
        note("padding", &key.padding(16));
    }
    let (snapshot, id) = keys.seal_chain_file(&env, &first_snapshot(), &samples::sealed_snapshot()).unwrap();
    note("snapshot id", id.as_bytes());
    note("signature", &snapshot[snapshot.len() - 64..]);
    let (_, id) = keys.seal_chain_file(&env, &removal(), &samples::sealed_removal()).unwrap();
    note("removal id", id.as_bytes());
    got += &format!("recovery key {text}\n");
    assert_eq!(got, include_str!("known_answers.txt"));
}
