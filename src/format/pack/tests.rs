#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::format::samples::{self, FOOTER_OFFSET, assert_malformed, each_bit_flip, each_truncation};

#[test]
fn the_pack_header_has_the_documented_bytes() {
    let header = samples::pack_header();
    let bytes = header.encode();
    assert_eq!(bytes.len(), 1168);
    assert_eq!(bytes[..16], *b"SRPACK\x00\x01\x01\x02\0\0\0\0\0\0");
    assert_eq!(bytes[16..32], [7; 16]);
    assert_eq!(bytes[32..48], [6; 16]);
    assert_eq!(bytes[48..], header.kem_ciphertext);
    assert_eq!(PackHeader::parse(&bytes), Ok(header));
}

#[test]
fn a_broken_pack_header_is_refused_or_is_another_header() {
    let bytes = samples::pack_header().encode();
    each_truncation(&bytes, |cut| assert_malformed(PackHeader::parse(cut), "pack header: too short"));
    let mut accepted = 0;
    each_bit_flip(&bytes, |flipped| {
        if let Ok(header) = PackHeader::parse(flipped) {
            assert_eq!(header.encode(), flipped);
            accepted += 1;
        }
    });
    // Ids and ciphertext are any bytes; of magic, kind, cipher and reserved bytes not one bit may change.
    assert_eq!(accepted, (1168 - 16) * 8);
    let with = |at: usize, value: u8| {
        let mut bad = bytes.clone();
        bad[at] = value;
        PackHeader::parse(&bad)
    };
    assert_malformed(with(7, 2), "pack header: magic");
    // FORMAT PACK-6
    assert_malformed(with(8, 0), "PACK-6");
    assert_malformed(with(8, 3), "PACK-6");
    assert_malformed(with(9, 3), "unknown cipher");
    // FORMAT GEN-4
    assert_malformed(with(10, 1), "GEN-4");
    assert_malformed(with(15, 0x80), "GEN-4");
    assert_malformed(PackHeader::parse(&[&bytes[..], &[0]].concat()), "GEN-2");
}

#[test]
fn the_footer_survives() {
    let footer = samples::footer();
    let bytes = footer.encode();
    assert_eq!(bytes.len(), 4 + 3 * 44 + 4 * 4);
    assert_eq!(bytes[..4], [3, 0, 0, 0]);
    assert_eq!(bytes[48..52], ((1u32 << 30) + 500).to_le_bytes());
    assert_eq!(Footer::parse(&bytes, FOOTER_OFFSET), Ok(footer));
    let empty = Footer::default();
    assert_eq!(Footer::parse(&empty.encode(), 1168), Ok(empty.clone()));
    assert_malformed(Footer::parse(&empty.encode(), 1169), "PACK-2");
}

#[test]
fn a_broken_footer_is_refused_or_is_another_footer() {
    let bytes = samples::footer().encode();
    each_truncation(&bytes, |cut| assert!(Footer::parse(cut, FOOTER_OFFSET).is_err()));
    each_bit_flip(&bytes, |flipped| {
        if let Ok(footer) = Footer::parse(flipped, FOOTER_OFFSET) {
            assert_eq!(footer.encode(), flipped);
        }
    });
    assert_malformed(Footer::parse(&[&bytes[..], &[0]].concat(), FOOTER_OFFSET), "GEN-2");
    assert_malformed(Footer::parse(&[0xff; 4], FOOTER_OFFSET), "GEN-3");
}

/// Parses the sample footer after `change`.
fn changed(change: impl FnOnce(&mut Footer)) -> Result<Footer, FormatError> {
    let mut footer = samples::footer();
    change(&mut footer);
    Footer::parse(&footer.encode(), FOOTER_OFFSET)
}

#[test]
fn chunks_stand_back_to_back() {
    // FORMAT PACK-2
    assert_malformed(changed(|f| f.chunks[0].offset += 1), "PACK-2");
    assert_malformed(changed(|f| f.chunks[0].offset = 0), "PACK-2");
    assert_malformed(changed(|f| f.chunks[1].offset -= 1), "PACK-2");
    assert_malformed(changed(|f| f.chunks.swap(0, 2)), "PACK-2");
    assert_malformed(changed(|f| drop(f.chunks.pop())), "PACK-2");
    assert_malformed(changed(|f| f.chunks[0].blocks[0].body_len += 1), "PACK-2");
    for offset in [0, 1168, FOOTER_OFFSET - 1, FOOTER_OFFSET + 1, u64::MAX] {
        assert_malformed(Footer::parse(&samples::footer().encode(), offset), "PACK-2");
    }
}

#[test]
fn a_frame_number_is_used_once() {
    // FORMAT PACK-3
    assert_malformed(changed(|f| f.chunks[2].first_frame = 2), "PACK-3");
    assert_malformed(changed(|f| f.chunks[0].first_frame = 1), "PACK-3");
    assert_malformed(changed(|f| f.chunks[0].first_frame = 3), "PACK-3");
    changed(|f| f.chunks[0].first_frame = u32::MAX).unwrap();
    changed(|f| f.chunks[1].first_frame = 17).unwrap();
}

#[test]
fn a_stored_block_is_never_longer_than_its_plaintext() {
    // FORMAT PACK-4
    let set = |codec, body_len| changed(move |f| f.chunks[0].blocks[0] = BlockDesc { codec, body_len });
    assert_malformed(set(Codec::Lz4, 1001), "PACK-4");
    assert_malformed(set(Codec::Zstd, 0), "PACK-4");
    assert_malformed(set(Codec::Raw, 999), "PACK-4");
    assert_malformed(set(Codec::Raw, 1001), "PACK-4");
    assert_malformed(BlockDesc::from_u32(0xc000_0001), "PACK-4: codec 3");
    assert_malformed(BlockDesc { codec: Codec::Raw, body_len: 131_073 }.check(131_073), "PACK-4");
    for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
        let block = BlockDesc { codec, body_len: 131_072 };
        assert_eq!(BlockDesc::from_u32(block.to_u32()), Ok(block));
        block.check(131_072).unwrap();
    }
}

#[test]
fn a_chunk_has_one_byte_to_eight_mib() {
    let bytes = |plain_len: u32, blocks: &[u32]| {
        let mut out = vec![1, 0, 0, 0];
        out.extend_from_slice(&[9; 32]);
        for n in [1168, 0, plain_len] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        blocks.iter().for_each(|b| out.extend_from_slice(&b.to_le_bytes()));
        out
    };
    assert_malformed(Footer::parse(&bytes(0, &[0]), 1168), "length of a chunk");
    assert_malformed(Footer::parse(&bytes((8 << 20) + 1, &[0]), 1168), "length of a chunk");
    assert_malformed(Footer::parse(&bytes(u32::MAX, &[0]), 1168), "length of a chunk");
    let full = bytes(8 << 20, &[131_072; 64]);
    assert_eq!(Footer::parse(&full, 1168 + 64 * 131_088).unwrap().chunks[0].blocks.len(), 64);
}

fn trailer() -> Trailer {
    Trailer { footer_offset: 5000, footer_len: 100, chunk_count: 2, file_len: 8192 }
}

#[test]
fn the_trailer_survives_and_its_parts_fit() {
    // FORMAT PACK-1
    let bytes = trailer().encode();
    assert_eq!(Trailer::parse(&bytes), Ok(trailer()));
    assert_eq!(trailer().padding_offset(), 5100);
    assert_eq!(trailer().padding_len(), 8192 - 5100 - 64);
    each_truncation(&bytes, |cut| assert_malformed(Trailer::parse(cut), "pack trailer: too short"));
    each_bit_flip(&bytes, |flipped| {
        if let Ok(t) = Trailer::parse(flipped) {
            assert_eq!(t.encode()[..], *flipped);
        }
    });
    assert_malformed(Trailer::parse(&[0; 25]), "GEN-2");
    let parse = |t: Trailer| Trailer::parse(&t.encode());
    assert_malformed(parse(Trailer { footer_offset: 1167, ..trailer() }), "PACK-1");
    assert_malformed(parse(Trailer { footer_offset: u64::MAX, ..trailer() }), "PACK-1");
    assert_malformed(parse(Trailer { footer_offset: u64::MAX - 120, ..trailer() }), "PACK-1");
    assert_malformed(parse(Trailer { footer_len: 8192 - 5000 - 63, ..trailer() }), "PACK-1");
    assert_malformed(parse(Trailer { file_len: 5163, ..trailer() }), "PACK-1");
    assert!(parse(Trailer { file_len: 5164, ..trailer() }).is_ok_and(|t| t.padding_len() == 0));
    assert!(matches!(parse(Trailer { file_len: (1 << 30) + 1, ..trailer() }), Err(FormatError::Limit(_))));
    parse(Trailer { file_len: 1 << 30, ..trailer() }).unwrap();
    trailer().check_file_len(8192).unwrap();
    assert_malformed(trailer().check_file_len(8191), "PACK-1");
}

#[test]
fn packs_are_padded_to_padme_lengths_of_whole_pages() {
    // FORMAT PACK-8
    for (len, padded) in [
        (0, 0),
        (1, 4096),
        (1232, 4096),
        (4096, 4096),
        (4097, 8192),
        (1 << 20, 1 << 20),
        ((1 << 20) + 1, (1 << 20) + (1 << 15)),
        ((64 << 20) + 1, (64 << 20) + (1 << 21)),
        (1 << 30, 1 << 30),
        (u64::MAX, u64::MAX),
    ] {
        assert_eq!(padded_len(len), padded, "{len}");
    }
}

#[test]
fn blocks_of_a_chunk() {
    for (len, blocks, last) in [(1, 1, 1), (131_072, 1, 131_072), (131_073, 2, 1), (8 << 20, 64, 131_072)] {
        assert_eq!(block_count(len), blocks);
        assert_eq!(block_plain_len(len, blocks - 1), last);
        assert_eq!(block_plain_len(len, blocks), 0);
        assert_eq!((0..blocks).map(|b| block_plain_len(len, b)).sum::<u32>(), len);
    }
    assert_eq!(block_count(0), 0);
    assert_eq!(block_plain_len(u32::MAX, u32::MAX), 0);
}

#[test]
fn the_frame_aad_has_the_documented_bytes() {
    let aad = frame_aad(
        &VaultId([1; 16]),
        &PackUid([2; 16]),
        0x0102_0304_0506_0708,
        &ChunkId([3; 32]),
        0x0a0b_0c0d,
        true,
        Codec::Zstd,
        0x11,
        0x22,
    );
    let mut want = b"strongroom v1 frame".to_vec();
    want.extend_from_slice(&[1; 16]);
    want.extend_from_slice(&[2; 16]);
    want.extend_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
    want.extend_from_slice(&[3; 32]);
    want.extend_from_slice(&[0x0d, 0x0c, 0x0b, 0x0a, 1, 2, 0x11, 0, 0, 0, 0x22, 0, 0, 0]);
    assert_eq!(aad[..], want[..]);
}

#[test]
fn paths_have_one_form() {
    // FORMAT LAY-2
    let name = PackName(std::array::from_fn(|i| i as u8 + 0xa0));
    let path = pack_path(&name);
    assert!(path.starts_with("packs/a0/a0a1a2"));
    assert_eq!(parse_pack_path(&path), Some(name));
    let hex = name.to_hex();
    for bad in [
        format!("packs/a1/{hex}"),
        format!("packs/{hex}"),
        format!("packs/a0/{}", hex.to_uppercase()),
        format!("packs/a0/{hex}.tmp"),
        format!("packs/a0/{}", &hex[..63]),
        format!("/packs/a0/{hex}"),
        format!("packs/a/{hex}"),
        format!("packs//{hex}"),
        format!("packs/a0a1/{hex}"),
        format!("packs/a0/a0/{hex}"),
        format!("pack/a0/{hex}"),
        String::new(),
    ] {
        assert_eq!(parse_pack_path(&bad), None, "{bad}");
    }
}

prop_compose! {
    fn a_chunk()(id: [u8; 32], plain_len in 1u32..=300_000, codecs in prop::collection::vec(0u8..3, 3), cut in 0u32..4)
        -> (ChunkId, u32, Vec<BlockDesc>)
    {
        let blocks = (0..block_count(plain_len)).map(|b| {
            let plain = block_plain_len(plain_len, b);
            match codecs[b as usize] {
                0 => BlockDesc { codec: Codec::Raw, body_len: plain },
                1 => BlockDesc { codec: Codec::Lz4, body_len: plain.saturating_sub(cut).max(1) },
                _ => BlockDesc { codec: Codec::Zstd, body_len: plain },
            }
        });
        (ChunkId(id), plain_len, blocks.collect())
    }
}

proptest! {
    #[test]
    fn any_footer_survives(chunks in prop::collection::vec(a_chunk(), 0..20)) {
        let mut footer = Footer::default();
        let (mut offset, mut frame) = (1168, 0);
        for (id, plain_len, blocks) in chunks {
            let chunk = ChunkDesc { id, offset, first_frame: frame, plain_len, blocks };
            offset = chunk.end() as u32;
            frame += chunk.blocks.len() as u32;
            footer.chunks.push(chunk);
        }
        prop_assert_eq!(Footer::parse(&footer.encode(), u64::from(offset)), Ok(footer));
    }

    #[test]
    fn padding_is_small_ordered_and_stable(len in 1u64..(1 << 30)) {
        let padded = padded_len(len);
        prop_assert!(padded >= len && padded.is_multiple_of(4096) && padded <= 1 << 30);
        prop_assert!(padded - len < 4096 + len / 8, "{} for {}", padded, len);
        prop_assert!(padded_len(len + 1) >= padded);
        prop_assert_eq!(padded_len(padded), padded);
    }
}
