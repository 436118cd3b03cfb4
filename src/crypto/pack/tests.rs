#![allow(clippy::unwrap_used)]
use super::*;
use crate::crypto::keys::tests_support::{keys, keys_with};
use crate::env::TestEnv;
use crate::format::FormatError;

const ID: ChunkId = ChunkId([9; 32]);

fn pack(cipher: Cipher) -> (TestEnv, PackKey) {
    let env = TestEnv::new(21);
    let key = keys_with(cipher).new_pack(&env, PackKind::Data).unwrap().1;
    (env, key)
}

fn sealed(key: &PackKey, plain: &[u8]) -> Vec<u8> {
    let mut body = plain.to_vec();
    key.seal_frame(3, &ID, 1, true, Codec::Raw, plain.len() as u32, &mut body, 0).unwrap();
    body
}

#[test]
fn a_frame_opens_where_it_was_sealed_and_nowhere_else() {
    for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
        let (env, key) = pack(cipher);
        let plain = b"some block of a chunk";
        let len = plain.len() as u32;
        let frame = sealed(&key, plain);
        assert_eq!(frame.len(), plain.len() + FRAME_TAG_LEN);
        let open = |key: &PackKey, frame_no, id, block, last, codec, plain_len, bytes: &[u8]| {
            let mut buf = bytes.to_vec();
            key.open_frame(frame_no, id, block, last, codec, plain_len, &mut buf).map(|n| buf[..n].to_vec())
        };
        assert_eq!(open(&key, 3, &ID, 1, true, Codec::Raw, len, &frame), Ok(plain.to_vec()));
        let tampered = Err(CryptoError::Tampered("pack: a frame"));
        assert_eq!(open(&key, 4, &ID, 1, true, Codec::Raw, len, &frame), tampered);
        assert_eq!(open(&key, 3 + (1 << 32), &ID, 1, true, Codec::Raw, len, &frame), tampered);
        assert_eq!(open(&key, 3, &ChunkId([8; 32]), 1, true, Codec::Raw, len, &frame), tampered);
        assert_eq!(open(&key, 3, &ID, 0, true, Codec::Raw, len, &frame), tampered);
        assert_eq!(open(&key, 3, &ID, 1, false, Codec::Raw, len, &frame), tampered);
        assert_eq!(open(&key, 3, &ID, 1, true, Codec::Lz4, len, &frame), tampered);
        assert_eq!(open(&key, 3, &ID, 1, true, Codec::Raw, len + 1, &frame), tampered);
        let other = keys_with(cipher).new_pack(&env, PackKind::Data).unwrap().1;
        assert_eq!(open(&other, 3, &ID, 1, true, Codec::Raw, len, &frame), tampered);
        for n in 0..frame.len() {
            assert_eq!(open(&key, 3, &ID, 1, true, Codec::Raw, len, &frame[..n]), tampered);
        }
        crate::format::samples::each_bit_flip(&frame, |flipped| {
            assert_eq!(open(&key, 3, &ID, 1, true, Codec::Raw, len, flipped), tampered);
        });
        assert_eq!(open(&key, 3, &ID, 1, true, Codec::Raw, len, &[&frame[..], &[0]].concat()), tampered);
        let huge = vec![0; BLOCK_LEN + FRAME_TAG_LEN + 1];
        assert_eq!(open(&key, 3, &ID, 1, true, Codec::Raw, len, &huge), tampered);
    }
}

#[test]
fn a_frame_is_sealed_in_place_behind_what_is_there() {
    let (_, key) = pack(Cipher::ChaCha20Poly1305);
    let mut buf = b"headerbody".to_vec();
    key.seal_frame(3, &ID, 1, true, Codec::Raw, 4, &mut buf, 6).unwrap();
    assert_eq!(buf[..6], *b"header");
    assert_eq!(buf[6..], sealed(&key, b"body"));
    let before = buf.clone();
    let result = key.seal_frame(4, &ID, 0, true, Codec::Raw, 4, &mut buf, before.len() + 1);
    assert!(matches!(result, Err(CryptoError::Seal(_))));
    assert_eq!(buf, before);
}

#[test]
fn a_frame_that_no_reader_would_take_is_not_sealed() {
    // FORMAT PACK-4
    let (_, key) = pack(Cipher::ChaCha20Poly1305);
    for (codec, plain_len, body_len) in [
        (Codec::Raw, 5, 4),
        (Codec::Raw, 4, 5),
        (Codec::Lz4, 4, 5),
        (Codec::Zstd, 4, 0),
        (Codec::Raw, BLOCK_LEN as u32 + 1, BLOCK_LEN + 1),
    ] {
        let mut body = vec![1; body_len];
        let result = key.seal_frame(0, &ID, 0, true, codec, plain_len, &mut body, 0);
        assert!(matches!(result, Err(CryptoError::Format(FormatError::Malformed(_)))));
        assert_eq!(body, vec![1; body_len], "untouched");
    }
    let mut full = vec![0; BLOCK_LEN];
    key.seal_frame(0, &ID, 0, true, Codec::Raw, BLOCK_LEN as u32, &mut full, 0).unwrap();
}

#[test]
fn footer_and_trailer_open_in_their_own_pack_only() {
    let keys = keys();
    let env = TestEnv::new(22);
    let (header, key) = keys.new_pack(&env, PackKind::Tree).unwrap();
    let trailer = Trailer { footer_offset: 1168, footer_len: 44, chunk_count: 0, file_len: 4096 };
    let (footer, end) = (key.seal_footer(&env, b"footer"), key.seal_trailer(&env, &trailer));
    let again = keys.open_pack(&header).unwrap();
    assert_eq!(again.open_footer(&footer), Ok(b"footer".to_vec()));
    assert_eq!(again.open_trailer(&end), Ok(trailer));
    assert_eq!(again.kind(), PackKind::Tree);

    let bad_footer = Err(CryptoError::Tampered("pack: its footer"));
    let bad_trailer = Err(CryptoError::Tampered("pack: its trailer"));
    for n in 0..footer.len() {
        assert_eq!(again.open_footer(&footer[..n]), bad_footer);
    }
    crate::format::samples::each_bit_flip(&footer, |f| assert_eq!(again.open_footer(f), bad_footer));
    crate::format::samples::each_bit_flip(&end, |t| {
        assert_eq!(again.open_trailer(t.try_into().unwrap()), bad_trailer)
    });
    assert_eq!(again.open_footer(&end), bad_footer, "a trailer is no footer");
    let sealed_as_footer: [u8; 64] = key.seal_footer(&env, &trailer.encode()).try_into().unwrap();
    assert_eq!(again.open_trailer(&sealed_as_footer), bad_trailer, "a footer is no trailer");

    // Any change of the clear header gives another key.
    let mut changed = header.clone();
    changed.kind = PackKind::Data;
    assert_eq!(keys.open_pack(&changed).unwrap().open_trailer(&end), bad_trailer);
    let mut changed = header.clone();
    changed.uid.0[0] ^= 1;
    assert_eq!(keys.open_pack(&changed).unwrap().open_trailer(&end), bad_trailer);
    for at in [0, 500, 1088, 1119] {
        let mut changed = header.clone();
        changed.kem_ciphertext[at] ^= 1;
        assert_eq!(keys.open_pack(&changed).unwrap().open_trailer(&end), bad_trailer);
    }

    // A trailer that only a key holder could have made is checked, too.
    let silly = Trailer { footer_offset: 0, ..trailer };
    let sealed = key.seal_trailer(&env, &silly);
    assert!(matches!(again.open_trailer(&sealed), Err(CryptoError::Format(FormatError::Malformed(_)))));
}

#[test]
fn padding_is_a_prefix_of_one_stream_of_the_pack() {
    // FORMAT PACK-1
    let (env, key) = pack(Cipher::ChaCha20Poly1305);
    let long = key.padding(10_000);
    assert!(key.padding(0).is_empty());
    assert_eq!(key.padding(777), long[..777]);
    let other = keys().new_pack(&env, PackKind::Data).unwrap().1;
    assert_ne!(other.padding(32), long[..32]);
}
