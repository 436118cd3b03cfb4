#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::format::samples::{
    self, assert_malformed, each_bit_flip, each_truncation, first_snapshot, pack, removal, sealed_removal,
    sealed_snapshot, snapshot,
};

fn chain_file(public: PublicPart) -> ChainFile {
    ChainFile {
        signer: Signer::Owner,
        public,
        kem_ciphertext: vec![3; 1120],
        nonce: [4; 24],
        sealed: vec![5; 256 + 16],
        signature: [6; 64],
    }
}

#[test]
fn a_chain_file_has_the_documented_bytes() {
    let file = chain_file(first_snapshot());
    let bytes = file.encode().unwrap();
    let public = first_snapshot().encode().unwrap();
    assert_eq!(bytes[..12], *b"SRSNAP\x00\x01\x01\x00\x00\x00");
    assert_eq!(bytes[12..16], (public.len() as u32).to_le_bytes());
    assert_eq!(bytes[16..16 + public.len()], public);
    assert_eq!(public[..24], [[7; 16].as_slice(), &[1, 0, 0, 0, 0, 0, 0, 0]].concat());
    assert_eq!(public[24..56], [0; 32]);
    assert_eq!(public[64..70], [5, 0, 0, 0, 1, 0]);
    assert_eq!(public.len(), 69 + 9 + 3 * 32 + 12);
    assert_eq!(bytes.len(), 16 + public.len() + 1120 + 24 + 4 + 272 + 64);
    let (parsed, digest) = ChainFile::parse(&bytes).unwrap();
    assert_eq!(parsed, file);
    assert_eq!(parsed.prefix_len(bytes.len()), Some(16 + public.len() + 1120));
    let message = digest.message();
    assert_eq!(message[..22], *b"strongroom v1 snapshot");
    assert_eq!(message[22..], *blake3::hash(&bytes[..bytes.len() - 64]).as_bytes());
    let removal = chain_file(removal()).encode().unwrap();
    assert_eq!(removal[8], 2);
    assert_eq!(ChainFile::parse(&removal).unwrap().0, chain_file(samples::removal()));
}

#[test]
fn a_broken_chain_file_is_refused_or_is_another_file() {
    for public in [first_snapshot(), removal()] {
        let bytes = chain_file(public).encode().unwrap();
        each_truncation(&bytes, |cut| assert!(ChainFile::parse(cut).is_err()));
        each_bit_flip(&bytes, |flipped| {
            if let Ok((file, digest)) = ChainFile::parse(flipped) {
                assert_eq!(file.encode().as_deref(), Ok(flipped));
                let signature_only = flipped[..flipped.len() - 64] == bytes[..bytes.len() - 64];
                assert_eq!(digest == ChainFile::parse(&bytes).unwrap().1, signature_only);
            }
        });
        assert_malformed(ChainFile::parse(&[&bytes[..], &[0]].concat()), "GEN-2");
    }
}

#[test]
fn the_clear_fields_have_few_values() {
    let bytes = chain_file(first_snapshot()).encode().unwrap();
    let with = |at: usize, value: u8| {
        let mut bad = bytes.clone();
        bad[at] = value;
        ChainFile::parse(&bad)
    };
    assert_malformed(with(7, 2), "chain file: magic");
    assert_malformed(with(8, 2), "kind and origin");
    assert_malformed(with(8, 3), "kind and origin");
    assert_malformed(with(9, 2), "unknown signer");
    assert_malformed(with(10, 1), "GEN-4");
    assert_malformed(with(11, 1), "GEN-4");
    assert_malformed(with(15, 0xff), "GEN-3");
    assert_malformed(with(12, 0), "chain file: the public part");
    assert_malformed(with(16 + 68, 3), "unknown origin");
    assert_malformed(with(16 + 68, 0), "kind and origin");
    assert!(with(16 + 68, 2).is_ok_and(|(file, _)| file.public.origin == Origin::Import));
    assert_malformed(with(16 + 69, 2), "unknown mode");
    assert!(with(9, 1).is_ok_and(|(file, _)| file.signer == Signer::Ingest));
}

#[test]
fn a_removal_is_signed_by_the_owner() {
    // FORMAT SNAP-4
    let mut bytes = chain_file(removal()).encode().unwrap();
    bytes[9] = 1;
    assert_malformed(ChainFile::parse(&bytes), "SNAP-4");
    assert_malformed(ChainFile { signer: Signer::Ingest, ..chain_file(removal()) }.encode(), "SNAP-4");
    ChainFile { signer: Signer::Ingest, ..chain_file(first_snapshot()) }.encode().unwrap();
}

#[test]
fn files_are_bounded_before_they_are_read() {
    // FORMAT SNAP-6
    let big = vec![0; CHAIN_FILE_LEN_MAX + 1];
    assert!(matches!(ChainFile::parse(&big), Err(FormatError::Limit(_))));
    let mut out = vec![0; CHAIN_FILE_LEN_MAX - 64 - 28 - 16];
    ChainFile::encode_sealed(&mut out.clone(), &[0; 24], &[0; 16]).unwrap();
    let result = ChainFile::encode_sealed(&mut out, &[0; 24], &[0; 17]);
    assert!(matches!(result, Err(FormatError::Limit(_))));
}

#[test]
fn the_sealed_part_has_whole_paddings() {
    for len in [0, 16, 255, 256, 271, 273] {
        let bytes = ChainFile { sealed: vec![0; len], ..chain_file(first_snapshot()) }.encode().unwrap();
        assert_malformed(ChainFile::parse(&bytes), "the sealed part");
    }
    let short = ChainFile { kem_ciphertext: vec![0; 1119], ..chain_file(first_snapshot()) };
    assert_malformed(short.encode(), "an X-Wing ciphertext");
}

/// Asserts that the encoder refuses the part.
#[track_caller]
fn refused(part: PublicPart, rule: &str) {
    assert_malformed(part.encode(), rule);
}

#[test]
fn only_the_first_file_has_no_predecessor() {
    // FORMAT SNAP-2
    refused(PublicPart { predecessor: Some(snapshot(1)), ..first_snapshot() }, "SNAP-2");
    refused(PublicPart { predecessor: None, ..removal() }, "SNAP-2");
    refused(PublicPart { predecessor: Some(snapshot(0)), ..removal() }, "SNAP-2");
    let bytes = first_snapshot().encode().unwrap();
    let mut bad = bytes.clone();
    bad[30] = 1;
    assert_malformed(PublicPart::parse(&bad), "SNAP-2");
    let mut bad = removal().encode().unwrap();
    bad[24..56].fill(0);
    assert_malformed(PublicPart::parse(&bad), "SNAP-2");
}

#[test]
fn sequences_and_times_have_bounds() {
    let parse_with_seq = |seq: u64| {
        let mut bytes = removal().encode().unwrap();
        bytes[16..24].copy_from_slice(&seq.to_le_bytes());
        PublicPart::parse(&bytes)
    };
    for seq in [0, 10_000_000_000, u64::MAX] {
        assert_malformed(parse_with_seq(seq), "a sequence");
        refused(PublicPart { seq, ..removal() }, "a sequence");
    }
    assert!(parse_with_seq(9_999_999_999).is_ok());
    let mut bytes = removal().encode().unwrap();
    bytes[64..68].copy_from_slice(&1_000_000_000u32.to_le_bytes());
    assert_malformed(PublicPart::parse(&bytes), "nanoseconds");
    let mut removed = removal();
    removed.removed[0].seq = 0;
    refused(removed, "a sequence");
}

#[test]
fn a_snapshot_removes_nothing() {
    // FORMAT SNAP-5
    let origin = Origin::WorkingTree;
    let clean = PublicPart { removed: vec![], retired: vec![], replacements: vec![], origin, ..removal() };
    clean.encode().unwrap();
    refused(PublicPart { removed: removal().removed, ..clean.clone() }, "SNAP-5");
    refused(PublicPart { retired: vec![pack(1)], ..clean.clone() }, "SNAP-5");
    refused(PublicPart { replacements: vec![pack(1)], ..clean }, "SNAP-5");
    let mut bytes = removal().encode().unwrap();
    bytes[68] = 1;
    assert_malformed(PublicPart::parse(&bytes), "SNAP-5");
}

#[test]
fn pack_lists_are_sorted_and_full_where_they_must_be() {
    // FORMAT SNAP-7
    let list = |full, added: &[u8], dropped: &[u8]| PackList {
        full,
        added: added.iter().map(|n| pack(*n)).collect(),
        dropped: dropped.iter().map(|n| pack(*n)).collect(),
    };
    refused(PublicPart { packs: list(false, &[1], &[]), ..first_snapshot() }, "SNAP-7");
    refused(PublicPart { packs: list(true, &[2, 1], &[]), ..first_snapshot() }, "a pack list");
    refused(PublicPart { packs: list(true, &[1, 1], &[]), ..first_snapshot() }, "a pack list");
    refused(PublicPart { packs: list(false, &[], &[2, 1]), ..removal() }, "a pack list");
    refused(PublicPart { packs: list(true, &[1], &[2]), ..removal() }, "a full pack list");
    let mut first_removed = removal();
    first_removed.removed[0].packs.full = false;
    refused(first_removed, "SNAP-7");
    let mut bytes = first_snapshot().encode().unwrap();
    bytes[69] = 1;
    assert_malformed(PublicPart::parse(&bytes), "SNAP-7");
    let mut bytes = first_snapshot().encode().unwrap();
    bytes[74] = 9;
    assert_malformed(PublicPart::parse(&bytes), "a pack list");

    assert!([1, 64, 128, 640].into_iter().all(PackList::must_be_full));
    assert!(![2, 63, 65, 127].into_iter().any(PackList::must_be_full));
}

#[test]
fn the_running_list_follows_the_differences() {
    // FORMAT SNAP-7
    let set = |packs: &[u8]| packs.iter().map(|n| pack(*n)).collect::<BTreeSet<_>>();
    let difference = |added: &[u8], dropped: &[u8]| PackList {
        full: false,
        added: set(added).into_iter().collect(),
        dropped: set(dropped).into_iter().collect(),
    };
    let mut running = set(&[9]);
    PackList { full: true, added: vec![pack(1), pack(2)], dropped: vec![] }.apply(&mut running).unwrap();
    assert_eq!(running, set(&[1, 2]));
    difference(&[3], &[1]).apply(&mut running).unwrap();
    assert_eq!(running, set(&[2, 3]));
    for bad in
        [difference(&[], &[1]), difference(&[2], &[]), difference(&[4], &[3, 5]), difference(&[3], &[3])]
    {
        assert_malformed(bad.apply(&mut running), "SNAP-7");
        assert_eq!(running, set(&[2, 3]), "the list is untouched");
    }
    difference(&[], &[2, 3]).apply(&mut running).unwrap();
    assert!(running.is_empty());
}

#[test]
fn a_hostile_count_allocates_nothing() {
    // FORMAT GEN-3
    let mut bytes = first_snapshot().encode().unwrap();
    bytes[70..74].fill(0xff);
    assert_malformed(PublicPart::parse(&bytes), "GEN-3");
    let at = first_snapshot().encode().unwrap().len() - 12;
    for at in [at, at + 4, at + 8] {
        let mut bytes = first_snapshot().encode().unwrap();
        bytes[at..at + 4].fill(0xff);
        assert_malformed(PublicPart::parse(&bytes), "GEN-3");
    }
}

#[test]
fn the_sealed_part_survives_and_is_padded() {
    for (part, origin) in [(sealed_snapshot(), Origin::WorkingTree), (sealed_removal(), Origin::Removal)] {
        let bytes = part.encode().unwrap();
        assert_eq!(bytes.len(), 256);
        assert_eq!(bytes[..2], [1, 0]);
        assert_eq!(SealedPart::parse(&bytes, origin), Ok(part.clone()));
        each_truncation(&bytes, |cut| assert!(SealedPart::parse(cut, origin).is_err()));
        each_bit_flip(&bytes, |flipped| {
            if let Ok(other) = SealedPart::parse(flipped, origin) {
                assert_eq!(other.encode().as_deref(), Ok(flipped));
            }
        });
        // FORMAT GEN-4
        assert_malformed(SealedPart::parse(&[&bytes[..], &[0; 256]].concat(), origin), "GEN-4");
        assert_malformed(
            SealedPart::parse(&[&bytes[..], &[0]].concat(), origin),
            "the sealed part is not padded",
        );
        let mut dirty = bytes.clone();
        dirty[255] = 1;
        assert_malformed(SealedPart::parse(&dirty, origin), "GEN-4");
    }
    assert_malformed(SealedPart::parse(&sealed_snapshot().encode().unwrap(), Origin::Removal), "GEN-4");
    assert!(SealedPart::parse(&sealed_removal().encode().unwrap(), Origin::WorkingTree).is_err());
    let mut newer = sealed_removal().encode().unwrap();
    newer[0] = 2;
    assert_malformed(SealedPart::parse(&newer, Origin::Removal), "unknown version");
    assert_malformed(SealedPart::parse(&[], Origin::Removal), "chain file: the sealed part");
}

#[test]
fn strings_and_tags_have_bounds() {
    // FORMAT SNAP-6
    let long = "x".repeat(1025);
    for part in [
        SealedPart { host: long.clone(), ..sealed_removal() },
        SealedPart { program: long.clone(), ..sealed_removal() },
        SealedPart { tags: vec![long.clone()], ..sealed_removal() },
    ] {
        assert_malformed(part.encode(), "a string");
    }
    let tags = |n: usize| SealedPart { tags: vec!["t".to_owned(); n], ..sealed_removal() };
    assert_malformed(tags(65).encode(), "SNAP-6");
    let bytes = tags(64).encode().unwrap();
    assert_eq!(SealedPart::parse(&bytes, Origin::Removal), Ok(tags(64)));
    // version, empty host, tag count
    let mut bad = bytes.clone();
    bad[3] = 65;
    assert_malformed(SealedPart::parse(&bad, Origin::Removal), "SNAP-6");
    let mut bad = bytes.clone();
    bad[5] = 0xff;
    assert_malformed(SealedPart::parse(&bad, Origin::Removal), "a string is not UTF-8");
    let mut bad = vec![1, 0, 0x81, 8];
    bad.resize(2048, b'x');
    assert_malformed(SealedPart::parse(&bad, Origin::Removal), "a string is longer");
    let fits = SealedPart { host: "x".repeat(1024), ..sealed_removal() };
    assert_eq!(SealedPart::parse(&fits.encode().unwrap(), Origin::Removal), Ok(fits));
}

#[test]
fn names_have_one_form() {
    // FORMAT LAY-2, SNAP-1
    let id = snapshot(0xab);
    let file_name = name(12, &id);
    assert_eq!(file_name, format!("0000000012-{}", "ab".repeat(32)));
    assert_eq!(parse_name(&file_name), Some((12, id)));
    assert_eq!(parse_name(&name(9_999_999_999, &id)), Some((9_999_999_999, id)));
    let hex = id.to_hex();
    for bad in [
        format!("0000000000-{hex}"),
        format!("000000012-{hex}"),
        format!("00000000012-{hex}"),
        format!("+000000012-{hex}"),
        format!("0000000012-{}", hex.to_uppercase()),
        format!("0000000012-{hex}.tmp"),
        format!("0000000012{hex}"),
        format!("0000000012-{}", &hex[1..]),
        format!("0000000012--{hex}"),
        name(10_000_000_000, &id),
        String::new(),
        "-".to_owned(),
    ] {
        assert_eq!(parse_name(&bad), None, "{bad}");
    }
}

prop_compose! {
    fn a_pack_list()(full: bool, added in prop::collection::btree_set(any::<[u8; 32]>(), 0..5),
                     dropped in prop::collection::btree_set(any::<[u8; 32]>(), 0..5)) -> PackList {
        let names = |set: BTreeSet<[u8; 32]>| set.into_iter().map(PackName).collect::<Vec<_>>();
        PackList { full, added: names(added), dropped: if full { vec![] } else { names(dropped) } }
    }
}

proptest! {
    #[test]
    fn any_public_part_survives(
        seq in 2u64..SEQUENCE_END,
        secs: i64,
        nanos in 0u32..1_000_000_000,
        predecessor in any::<[u8; 32]>().prop_filter("zeros are none", |p| *p != [0; 32]),
        packs in a_pack_list(),
        removed in prop::collection::vec((2u64..SEQUENCE_END / 4, any::<[u8; 32]>(), any::<[u8; 32]>(), a_pack_list()), 0..4),
        retired in prop::collection::vec(any::<[u8; 32]>(), 0..4),
    ) {
        let mut removed: Vec<RemovedFile> = removed.into_iter().map(|(seq, id, predecessor, packs)| RemovedFile {
            seq, id: SnapshotId(id), predecessor: SnapshotId(predecessor), packs,
        }).collect();
        // FORMAT SNAP-1
        let later = removed.iter().any(|file| file.seq >= seq);
        removed.sort_by_key(|file| file.seq);
        let twice = removed.windows(2).any(|two| two[0].seq == two[1].seq);
        let part = PublicPart {
            seq,
            predecessor: Some(SnapshotId(predecessor)),
            time: Time { secs, nanos },
            packs,
            removed,
            retired: retired.into_iter().map(PackName).collect(),
            ..removal()
        };
        prop_assert_eq!(part.encode().is_err(), later || twice);
        if let Ok(bytes) = part.encode() {
            prop_assert_eq!(PublicPart::parse(&bytes), Ok(part));
        }
    }

    #[test]
    fn any_sealed_part_survives(host in "\\PC{0,40}", tags in prop::collection::vec("\\PC{0,20}", 0..6), files: u64) {
        let mut part = SealedPart { host, tags, ..sealed_snapshot() };
        part.root.as_mut().unwrap().files = files;
        let bytes = part.encode().unwrap();
        prop_assert!(bytes.len().is_multiple_of(256));
        prop_assert_eq!(SealedPart::parse(&bytes, Origin::Import), Ok(part));
    }
}
