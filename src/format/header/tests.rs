#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::format::samples::{self, assert_malformed, each_bit_flip, each_truncation};

const MAC: [u8; 32] = [0xab; 32];

fn file() -> Vec<u8> {
    samples::header().encode(|_| MAC)
}

/// Returns a file of these bytes before `mac`, with a checksum that is right.
fn resealed(mac_input: impl AsRef<[u8]>) -> Vec<u8> {
    close(mac_input.as_ref().to_vec(), &MAC)
}

/// Replaces the first `from` of the sample's text and parses the result under a right checksum.
fn changed(from: &str, to: &str) -> Result<ParsedHeader, FormatError> {
    let input = Header::parse(&file()).unwrap().mac_input;
    let input = String::from_utf8(input).unwrap();
    assert!(input.contains(from), "the sample has no {from:?}");
    Header::parse(&resealed(input.replacen(from, to, 1)))
}

#[test]
fn a_header_survives_and_its_end_has_the_documented_form() {
    let file = file();
    let parsed = Header::parse(&file).unwrap();
    assert_eq!(parsed.header, samples::header());
    assert_eq!(parsed.mac, MAC);
    assert_eq!(
        parsed.header.encode(|input| {
            assert_eq!(input, parsed.mac_input);
            MAC
        }),
        file
    );
    let text = String::from_utf8(file).unwrap();
    assert!(text.starts_with("{\n  \"strongroom\": 1,\n  \"vault_id\": \"07070707"));
    let (before, end) = text.split_at(text.len() - 162);
    assert_eq!(before.as_bytes(), parsed.mac_input);
    assert!(before.ends_with("    }\n  ]"), "{before}");
    let checksum = blake3::hash(&text.as_bytes()[..text.rfind(",\n  \"checksum\"").unwrap()]);
    assert_eq!(
        end,
        format!(",\n  \"mac\": \"{}\",\n  \"checksum\": \"{}\"\n}}\n", "ab".repeat(32), checksum.to_hex())
    );
    assert_eq!(resealed(before), text.as_bytes());
    assert_eq!(Header::parse(&resealed(before)).unwrap(), parsed);
}

#[test]
fn every_truncation_and_every_flipped_bit_is_noticed() {
    // FORMAT HDR-2
    let noticed = |bytes: &[u8]| {
        let result = Header::parse(bytes);
        let fits = matches!(
            result,
            Err(FormatError::Damaged(_) | FormatError::NotAVault | FormatError::Newer { .. })
        );
        assert!(fits, "{result:?}");
    };
    each_truncation(&file(), noticed);
    each_bit_flip(&file(), noticed);
    let mut long = file();
    long.push(b'\n');
    assert_eq!(Header::parse(&long), Err(FormatError::Damaged("vault header: its checksum is wrong")));
}

#[test]
fn a_newer_format_is_said_before_anything_else() {
    // FORMAT HDR-1
    for (text, version) in [
        ("{\"strongroom\": 2}", 2),
        ("{\"other\": [{\"strongroom\": 1}], \"strongroom\": 7, \"slots\": \"none\"}", 7),
        ("{\"strongroom\": 18446744073709551615}", u64::MAX),
        ("{\"strongroom\": 99999999999999999999999}", u64::MAX),
    ] {
        assert_eq!(Header::parse(text.as_bytes()), Err(FormatError::Newer { version }), "{text}");
    }
    assert_eq!(changed("\"strongroom\": 1", "\"strongroom\": 2"), Err(FormatError::Newer { version: 2 }));
}

#[test]
fn what_is_no_object_with_a_version_is_no_vault() {
    // FORMAT HDR-1
    for text in [
        "",
        "{}",
        "[]",
        "null",
        "1",
        "{",
        "{\"vault_id\": 1}",
        "strongroom",
        "[{\"strongroom\": 2}]",
        "{\"strongroom\": 1",
    ] {
        assert_eq!(Header::parse(text.as_bytes()), Err(FormatError::NotAVault), "{text}");
    }
    assert_eq!(Header::parse(&[0xff; 100]), Err(FormatError::NotAVault));
    let deep = "[".repeat(100_000);
    assert_eq!(
        Header::parse(deep.as_bytes()),
        Err(FormatError::NotAVault),
        "deep nesting is no stack overflow"
    );
    for text in [
        "{\"strongroom\": 1}",
        "{\"strongroom\": \"2\"}",
        "{\"strongroom\": null}",
        "{\"strongroom\": -2}",
        "{\"strongroom\": 1.5}",
    ] {
        assert!(matches!(Header::parse(text.as_bytes()), Err(FormatError::Damaged(_))), "{text}");
    }
}

#[test]
fn size_is_judged_before_content() {
    let mut big = file();
    big.resize(HEADER_LEN_MAX + 1, b' ');
    assert!(matches!(Header::parse(&big), Err(FormatError::Limit(_))));
    big.truncate(HEADER_LEN_MAX);
    assert!(matches!(Header::parse(&big), Err(FormatError::Damaged(_))));
}

#[test]
fn a_member_that_is_unknown_missing_repeated_or_elsewhere_is_malformed() {
    // FORMAT HDR-5
    for (from, to) in [
        ("\"generation\": 3", "\"generation\": 3,\n  \"extra\": 1"),
        ("  \"generation\": 3,\n", ""),
        ("\"generation\": 3", "\"generation\": 3,\n  \"generation\": 3"),
        ("\"kem\": \"x-wing\",\n", ""),
        (
            "  \"cipher\": \"chacha20-poly1305\",\n  \"kem\": \"x-wing\"",
            "  \"kem\": \"x-wing\",\n  \"cipher\": \"chacha20-poly1305\"",
        ),
        ("\"id\": 1", "\"id\": 1,\n      \"more\": 0"),
        ("\"t\": 3,\n        \"p\": 1", "\"p\": 1,\n        \"t\": 3"),
        ("\"name\": \"blake3\"", "\"name\": \"blake3\",\n        \"t\": null"),
        ("\"min\": 524288", "\"min\": 524288,\n    \"seed\": 1"),
        ("  \"strongroom\": 1,\n", "  \"strongroom\": 1,\n  \"strongroom\": 1,\n"),
    ] {
        assert_malformed(changed(from, to), "HDR-5");
    }
}

#[test]
fn another_spelling_of_the_same_json_is_malformed() {
    // FORMAT HDR-5
    for (from, to) in [
        ("\"generation\": 3", "\"generation\":3"),
        ("\"generation\": 3", "\"generation\": 3 "),
        ("\n  \"kem\"", "\n\t\"kem\""),
        ("\"x-wing\"", "\"x\\u002dwing\""),
        ("\u{e9}", "\\u00e9"),
        ("{\n", "{\r\n"),
        ("{\n", "\u{feff}{\n"),
    ] {
        let result = changed(from, to);
        assert!(
            matches!(result, Err(FormatError::Malformed(_) | FormatError::NotAVault)),
            "{to:?}: {result:?}"
        );
    }
    assert_malformed(changed("\"generation\": 3", "\"generation\": 3.0"), "HDR-5");
    assert_malformed(changed("\"generation\": 3", "\"generation\": \"3\""), "HDR-5");
    assert_malformed(changed("\"generation\": 3", "\"generation\": -3"), "HDR-5");
    let mut not_utf8 = Header::parse(&file()).unwrap().mac_input;
    let at = not_utf8.windows(2).position(|w| w == "\u{e9}".as_bytes()).unwrap();
    not_utf8[at] = 0xff;
    assert_malformed(Header::parse(&resealed(not_utf8)), "HDR-5");
}

#[test]
fn values_out_of_bounds_are_malformed() {
    let long = "x".repeat(65);
    for (from, to, rule) in [
        ("\"strongroom\": 1", "\"strongroom\": 0", "strongroom"),
        ("\"generation\": 3", "\"generation\": 0", "generation"),
        ("\"x-wing\"", "\"x-wing2\"", "unknown kem"),
        ("chacha20-poly1305", "chacha8-poly1305", "unknown cipher"),
        ("fastcdc-2020", "rabin", "unknown chunker"),
        ("\"vault_id\": \"07", "\"vault_id\": \"", "vault_id"),
        ("\"vault_id\": \"07", "\"vault_id\": \"0A", "vault_id"),
        ("\"signing_key\": \"08", "\"signing_key\": \"8", "signing_key"),
        ("\"ingest_signing_key\": \"09", "\"ingest_signing_key\": \"0909", "ingest_signing_key"),
        ("\"public_key\": \"0001", "\"public_key\": \"01", "public_key"),
        ("\"id\": 2", "\"id\": 1", "slot ids repeat"),
        ("\"id\": 2", "\"id\": 0", "slot id is 0"),
        ("\"id\": 2", "\"id\": 4294967296", "HDR-5"),
        ("\"kind\": \"keyfile\"", "\"kind\": \"passphrase\"", "slot kdf"),
        ("\"kind\": \"keyfile\"", "\"kind\": \"tpm\"", "unknown slot kind"),
        ("\"name\": \"blake3\"", "\"name\": \"argon2id\"", "slot kdf"),
        ("\"name\": \"argon2id\"", "\"name\": \"argon2i\"", "slot kdf"),
        ("slot \\\"1\\\" \u{e9}", long.as_str(), "slot label"),
        ("\"nonce\": \"01", "\"nonce\": \"", "slot nonce"),
        ("\"wrapped\": \"65", "\"wrapped\": \"", "slot wrapped"),
        ("\"salt\": \"01", "\"salt\": \"", "slot salt"),
    ] {
        assert_malformed(changed(from, to), rule);
    }
    assert!(changed("slot \\\"1\\\" \u{e9}", &long[..64]).is_ok());
    assert!(changed("chacha20-poly1305", "aes-256-gcm").is_ok_and(|p| p.header.cipher == Cipher::Aes256Gcm));
    assert!(changed("\"min\": 524288", "\"min\": 4294967295").is_ok(), "readers ignore the chunker");
}

#[test]
fn argon2_costs_are_bounded_before_anything_is_computed() {
    // FORMAT HDR-4
    let kdf = |m_kib, t, p| SlotKdf::Argon2id { m_kib, t, p, salt: [0; 32] }.check();
    for (m, t, p) in [(8, 1, 1), (4_194_304, 64, 16), (128, 1, 16)] {
        kdf(m, t, p).unwrap();
    }
    for (m, t, p) in [
        (7, 1, 1),
        (127, 1, 16),
        (4_194_305, 1, 1),
        (u32::MAX, 1, 1),
        (8, 0, 1),
        (8, 65, 1),
        (8, 1, 0),
        (136, 1, 17),
        (u32::MAX, u32::MAX, u32::MAX),
    ] {
        assert_malformed(kdf(m, t, p), "HDR-4");
    }
    assert_malformed(changed("\"m_kib\": 65536", "\"m_kib\": 4194305"), "HDR-4");
    assert_malformed(changed("\"t\": 3", "\"t\": 0"), "HDR-4");
    assert_malformed(changed("\"p\": 1", "\"p\": 17"), "HDR-4");
}

#[test]
fn times_are_utc_with_whole_seconds() {
    for good in
        ["2026-11-21T02:00:00Z", "2024-02-29T23:59:59Z", "2000-02-29T00:00:00Z", "0001-01-01T00:00:00Z"]
    {
        assert!(is_utc_seconds(good), "{good}");
    }
    for bad in [
        "",
        "2026-11-21",
        "2026-11-21T02:00:00",
        "2026-11-21T02:00:00+00:00",
        "2026-11-21T02:00:00.5Z",
        "2026-11-21t02:00:00z",
        "2026-11-21 02:00:00Z",
        "2026-02-29T02:00:00Z",
        "1900-02-29T02:00:00Z",
        "2026-04-31T02:00:00Z",
        "2026-13-01T02:00:00Z",
        "2026-00-01T02:00:00Z",
        "2026-01-00T02:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:60:00Z",
        "2026-01-01T00:00:60Z",
        "2026-01-01T00:00:0\u{e9}",
    ] {
        assert!(!is_utc_seconds(bad), "{bad}");
    }
    assert_malformed(changed("\"created\": \"2026", "\"created\": \"+026"), "created");
    assert_malformed(
        changed(
            "\"label\": \"slot \\\"1\\\" \u{e9}\",\n      \"created\": \"2026",
            "\"label\": \"slot \\\"1\\\" \u{e9}\",\n      \"created\": \"x026",
        ),
        "slot created",
    );
}

#[test]
fn a_header_has_one_to_thirty_two_slots() {
    let with = |n: u32| {
        let mut header = samples::header();
        let slot = header.slots[1].clone();
        header.slots = (1..=n).map(|id| Slot { id, ..slot.clone() }).collect();
        Header::parse(&header.encode(|_| MAC))
    };
    assert_malformed(with(0), "a header has 1 to 32 slots");
    assert_malformed(with(33), "a header has 1 to 32 slots");
    assert_eq!(with(1).unwrap().header.slots.len(), 1);
    assert_eq!(with(32).unwrap().header.slots.len(), 32);
}

#[test]
fn the_mac_is_lower_case_hex() {
    let file = String::from_utf8(file()).unwrap();
    let before = &file[..file.len() - 162];
    for mac in ["AB".repeat(32), "g".repeat(64), "\u{e9}".repeat(32)] {
        let mut bad = format!("{before},\n  \"mac\": \"{mac}\"");
        let checksum = blake3::hash(bad.as_bytes());
        bad += &format!(",\n  \"checksum\": \"{}\"\n}}\n", checksum.to_hex());
        assert_malformed(Header::parse(bad.as_bytes()), "mac");
    }
}

#[test]
fn a_slot_is_bound_to_everything_that_decides_how_its_secret_is_used() {
    let header = samples::header();
    let slot = &header.slots[0];
    let aad = header.slot_aad(slot);
    assert_eq!(aad.len(), 18 + 16 + 4 + 1 + 12 + 32 + 1 + 1216 + 32 + 32);
    assert!(aad.starts_with(b"strongroom v1 slot\x07"));
    assert_eq!(aad[34..39], [1, 0, 0, 0, 1]);
    assert_eq!(aad[39..51], [0, 0, 1, 0, 3, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(aad[83], 1);
    let keyfile = header.slot_aad(&header.slots[1]);
    assert_eq!(keyfile[38..51], [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "no argon2 cost");

    let kdf = |m_kib, t, p, salt| SlotKdf::Argon2id { m_kib, t, p, salt };
    for other in [
        Slot { id: 2, ..slot.clone() },
        Slot { kind: SlotKind::Recovery, ..slot.clone() },
        Slot { kdf: kdf(65_537, 3, 1, [1; 32]), ..slot.clone() },
        Slot { kdf: kdf(65_536, 4, 1, [1; 32]), ..slot.clone() },
        Slot { kdf: kdf(65_536, 3, 2, [1; 32]), ..slot.clone() },
        Slot { kdf: kdf(65_536, 3, 1, [2; 32]), ..slot.clone() },
    ] {
        assert_ne!(header.slot_aad(&other), aad);
    }
    for other in [
        Header { vault_id: VaultId([1; 16]), ..header.clone() },
        Header { cipher: Cipher::Aes256Gcm, ..header.clone() },
        Header { public_key: vec![0; 1216], ..header.clone() },
        Header { signing_key: [0; 32], ..header.clone() },
        Header { ingest_signing_key: [0; 32], ..header.clone() },
    ] {
        assert_ne!(other.slot_aad(slot), aad);
    }
    let same = Slot { label: "x".into(), wrapped: [0; 48], nonce: [0; 24], ..slot.clone() };
    assert_eq!(header.slot_aad(&same), aad, "the rest is covered by the mac");
}

#[test]
fn writers_check_the_chunker() {
    let check = |min, avg, max| ChunkerParams { min, avg, max }.check();
    ChunkerParams::default().check().unwrap();
    check(64, 64, 64).unwrap();
    check(64, 256, 8 << 20).unwrap();
    for (min, avg, max) in [(63, 64, 64), (65, 64, 66), (64, 67, 66), (64, 64, (8 << 20) + 1), (0, 0, 0)] {
        assert!(check(min, avg, max).is_err());
    }
}

proptest! {
    #[test]
    fn any_header_survives(
        label in "\\PC{0,16}",
        generation in 1u64..,
        id in 1u32..,
        min: u32, avg: u32, max: u32,
        key: [u8; 32],
        aes: bool,
    ) {
        let mut header = samples::header();
        header.generation = generation;
        header.slots.truncate(1);
        header.slots[0].label = label.chars().scan(0, |n, c| { *n += c.len_utf8(); (*n <= LABEL_LEN_MAX).then_some(c) }).collect();
        header.slots[0].id = id;
        header.chunker = ChunkerParams { min, avg, max };
        header.signing_key = key;
        if aes {
            header.cipher = Cipher::Aes256Gcm;
        }
        let file = header.encode(|_| MAC);
        let parsed = Header::parse(&file).unwrap();
        prop_assert_eq!(&parsed.header, &header);
        prop_assert_eq!(parsed.header.encode(|_| MAC), file);
    }

    #[test]
    fn control_characters_in_labels_survive(label in "[\\x00-\\x1f\"\\\\/\\x7f]{0,16}") {
        let mut header = samples::header();
        header.slots[0].label = label;
        let parsed = Header::parse(&header.encode(|_| MAC)).unwrap();
        prop_assert_eq!(parsed.header, header);
    }
}
