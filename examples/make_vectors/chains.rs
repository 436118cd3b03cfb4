//! Vectors of chain files and of their sealed parts.

use ed25519_dalek::{Signer as _, SigningKey};
use strongroom::crypto::context;
use strongroom::env::{TestEnv, Time};
use strongroom::format::{
    Cipher, Content, Entry, FileType, Origin, PackList, PackName, PublicPart, RemovedFile, RootInfo,
    SealedPart, SignedDigest, SnapshotId,
};

use crate::trees::entry;
use crate::{Out, Outcome, ROOT, VAULT, chunk, hex, vault_keys};

fn pack_name(n: u8) -> PackName {
    PackName([n; 32])
}

fn sealed_snapshot() -> SealedPart {
    let root = Entry { mode: 0o755, nlink: 2, ..entry("", FileType::Dir, Content::Dir(chunk(6))) };
    SealedPart {
        host: "db1.example".to_owned(),
        tags: vec!["nightly".to_owned(), "\u{e9}t\u{e9}".to_owned()],
        program: "strongroom 0.1.0".to_owned(),
        root: Some(RootInfo { entry: root, next_ino: 12, files: 5, dirs: 1, others: 5, bytes: 1 << 41 }),
    }
}

fn sealed_removal() -> SealedPart {
    SealedPart { host: String::new(), tags: Vec::new(), program: "strongroom 0.1.0".to_owned(), root: None }
}

pub(crate) fn sealed_parts(out: &Out) -> Outcome {
    let put = |name: &str, expect: &str, comment: &str, origin: u8, body: &[u8]| {
        out.put(&format!("sealed-part-{name}"), expect, comment, &[("origin", origin.to_string())], body)
    };
    let (snapshot, removal) = (sealed_snapshot().encode()?, sealed_removal().encode()?);
    put("ok-snapshot", "ok", "with two tags", 1, &snapshot)?;
    put("ok-import", "ok", "the same of an import", 2, &snapshot)?;
    put("ok-removal", "ok", "no root", 0, &removal)?;
    put("root-in-removal", "malformed", "GEN-4: what follows are no zeros", 0, &snapshot)?;
    put("no-root", "malformed", "a snapshot has a root", 1, &removal)?;
    let patched = |body: &[u8], at: usize, value: u8| {
        let mut bad = body.to_vec();
        bad[at] = value;
        bad
    };
    put("padding-dirty", "malformed", "GEN-4", 0, &patched(&removal, 255, 1))?;
    put(
        "padding-long",
        "malformed",
        "padding up to the next multiple only",
        0,
        &[&removal[..], &[0; 256]].concat(),
    )?;
    put("padding-odd", "malformed", "no multiple of 256 bytes", 0, &removal[..255])?;
    put("version", "malformed", "u16 is not 1", 0, &patched(&removal, 0, 2))?;
    put("not-utf8", "malformed", "a string is UTF-8", 1, &patched(&snapshot, 3, 0xff))?;
    let mut tags = vec![1, 0, 0, 65];
    tags.resize(256, 0);
    put("tags-65", "malformed", "SNAP-6: at most 64 tags", 0, &tags)?;
    let mut long = vec![1, 0, 0x81, 8];
    long.resize(4 + 1025, b'x');
    long.resize(1280, 0);
    put("string-long", "malformed", "a string of 1,025 bytes", 0, &long)?;
    let name_at = 2 + 12 + 1 + 8 + 6 + 17;
    put("root-type", "malformed", "the root is a directory", 1, &patched(&snapshot, name_at + 1, 4))
}

fn first_snapshot() -> PublicPart {
    PublicPart {
        vault_id: VAULT,
        seq: 1,
        predecessor: None,
        time: Time { secs: 1_795_226_400, nanos: 5 },
        origin: Origin::WorkingTree,
        packs: PackList {
            full: true,
            added: vec![pack_name(1), pack_name(2), pack_name(4)],
            dropped: Vec::new(),
        },
        removed: Vec::new(),
        retired: Vec::new(),
        replacements: Vec::new(),
    }
}

fn a_removal() -> PublicPart {
    let packs =
        PackList { full: false, added: vec![pack_name(3)], dropped: vec![pack_name(1), pack_name(2)] };
    let first = RemovedFile {
        seq: 1,
        id: SnapshotId([1; 32]),
        predecessor: SnapshotId([0; 32]),
        packs: first_snapshot().packs,
    };
    PublicPart {
        seq: 3,
        predecessor: Some(SnapshotId([2; 32])),
        origin: Origin::Removal,
        packs,
        removed: vec![first],
        retired: vec![pack_name(1), pack_name(2)],
        replacements: vec![pack_name(3)],
        ..first_snapshot()
    }
}

/// Signs the file anew, as the owner or as the ingest role.
fn signed(mut file: Vec<u8>, context: &'static str) -> Vec<u8> {
    let key = SigningKey::from_bytes(&blake3::derive_key(context, &ROOT));
    let end = file.len() - 64;
    let signature = key.sign(&SignedDigest::of(&file[..end]).message());
    file[end..].copy_from_slice(&signature.to_bytes());
    file
}

pub(crate) fn chains(out: &Out) -> Outcome {
    let params = [("root", hex(&ROOT)), ("vault-id", VAULT.to_hex())];
    let put = |name: &str, expect: &str, comment: &str, file: &[u8]| {
        out.put(&format!("chain-{name}"), expect, comment, &params, file)
    };
    let keys = vault_keys(Cipher::ChaCha20Poly1305)?;
    let env = TestEnv::new(40);
    let (first, _) = keys.seal_chain_file(&env, &first_snapshot(), &sealed_snapshot())?;
    let (removal, _) = keys.seal_chain_file(&env, &a_removal(), &sealed_removal())?;
    put("ok-first", "ok", "sequence 1", &first)?;
    put("ok-removal", "ok", "removes a file, retires two packs", &removal)?;
    let difference = PackList { full: false, added: vec![pack_name(9)], dropped: vec![pack_name(4)] };
    let second = PublicPart {
        seq: 2,
        predecessor: Some(SnapshotId([7; 32])),
        origin: Origin::Import,
        packs: difference,
        ..first_snapshot()
    };
    let (second, _) = keys.seal_chain_file(&env, &second, &sealed_snapshot())?;
    put("ok-difference", "ok", "an import, with a difference", &second)?;

    let patched = |file: &[u8], at: usize, value: u8| {
        let mut bad = file.to_vec();
        bad[at] = value;
        bad
    };
    let flipped = |file: &[u8], at: usize| patched(file, at, file[at] ^ 1);
    put("signature", "mac", "SNAP-4: a flipped bit in the signature", &flipped(&first, first.len() - 1))?;
    put("time", "mac", "SNAP-4: a flipped bit in the public part", &flipped(&first, 16 + 56))?;
    put("pack", "mac", "SNAP-4: another pack in the list", &flipped(&first, 16 + 74 + 31))?;
    put("sealed", "mac", "SNAP-4: a flipped bit in the sealed part", &flipped(&first, first.len() - 100))?;
    put(
        "signer",
        "mac",
        "SNAP-4: the owner's signature under the ingest role's name",
        &patched(&first, 9, 1),
    )?;
    let by_other = signed(first.clone(), context::INGEST_SIGNING);
    put("signed-by-ingest", "mac", "SNAP-4: the ingest role's signature under the owner's name", &by_other)?;
    let owner = |file: Vec<u8>| signed(file, context::SIGNING);
    put("sealed-signed", "mac", "the sealed part does not open", &owner(flipped(&first, first.len() - 100)))?;
    put("kem-signed", "mac", "the seal key is another", &owner(flipped(&first, 16 + 186 + 3)))?;
    put(
        "time-signed",
        "mac",
        "the sealed part is bound to the public part",
        &owner(flipped(&first, 16 + 56)),
    )?;
    put("vault", "mac", "a file of another vault", &owner(flipped(&first, 16)))?;

    let public_len = first_snapshot().encode()?.len();
    for (name, comment, bad) in [
        ("magic", "the end of the magic", patched(&first, 7, 2)),
        ("kind-unknown", "kind 3", patched(&first, 8, 3)),
        ("kind-other", "a snapshot's public part in a removal", patched(&first, 8, 2)),
        ("signer-unknown", "signer 2", patched(&first, 9, 2)),
        ("reserved", "GEN-4", patched(&first, 10, 1)),
        ("seq-0", "sequence of at least 1", patched(&first, 16 + 16, 0)),
        ("seq-big", "sequence below 10^10", patched(&second, 16 + 16 + 5, 1)),
        ("predecessor-of-first", "SNAP-2: sequence 1 has a predecessor", patched(&first, 16 + 24, 1)),
        ("predecessor-none", "SNAP-2: only sequence 1 has none", {
            let mut bad = second.clone();
            bad[16 + 24..16 + 56].fill(0);
            bad
        }),
        ("nanos", "nanoseconds of 2^30", patched(&first, 16 + 67, 0x40)),
        ("origin", "unknown origin", patched(&first, 16 + 68, 3)),
        ("mode", "unknown mode", patched(&second, 16 + 69, 2)),
        ("mode-first", "SNAP-7: a difference in sequence 1", patched(&first, 16 + 69, 1)),
        ("list-count", "GEN-3: a count that the input can't hold", patched(&first, 16 + 73, 0xff)),
        ("list-order", "the pack list is not sorted", patched(&first, 16 + 74, 9)),
        ("public-short", "P is one less", patched(&first, 12, public_len as u8 - 1)),
        ("public-long", "P is one more", patched(&first, 12, public_len as u8 + 1)),
        ("public-huge", "GEN-3: P beyond the file", patched(&first, 15, 0x40)),
        ("snapshot-retires", "SNAP-5: a removal that says it is a snapshot", {
            patched(&patched(&removal, 8, 1), 16 + 68, 1)
        }),
        ("long", "GEN-2: a byte between sealed part and signature", {
            let at = first.len() - 64;
            [&first[..at], &[0], &first[at..]].concat()
        }),
        ("list-repeat", "the pack list repeats a name", {
            let mut bad = first.clone();
            bad.copy_within(16 + 74..16 + 74 + 32, 16 + 74 + 32);
            bad
        }),
        ("removes-itself", "SNAP-1: a sequence occurs once", {
            // mode, two counts, one added and two dropped packs, the count of what is removed
            patched(&removal, 16 + 69 + 1 + 8 + 3 * 32 + 4, 3)
        }),
        ("sealed-odd", "a sealed part that is not padded to 256 bytes", {
            let at = 16 + public_len + 1120 + 24;
            let sealed = u32::from_le_bytes(first[at..at + 4].try_into()?) - 1;
            [&first[..at], &sealed.to_le_bytes(), &first[at + 5..]].concat()
        }),
        ("short", "the signature is cut off", first[..first.len() - 64].to_vec()),
    ] {
        put(name, "malformed", comment, &owner(bad))?;
    }
    let by_ingest = signed(patched(&removal, 9, 1), context::INGEST_SIGNING);
    put("removal-by-ingest", "malformed", "SNAP-4: a removal is signed by the owner only", &by_ingest)
}
