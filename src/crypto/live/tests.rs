#![allow(clippy::unwrap_used)]
use super::*;
use crate::crypto::keys::tests_support::keys;
use crate::env::TestEnv;

#[test]
fn a_block_opens_at_its_place_and_version_only() {
    let env = TestEnv::new(31);
    let live = keys().live_keys();
    let plain: [u8; LIVE_BLOCK_LEN] = std::array::from_fn(|i| i as u8);
    let mut sealed = vec![0; LIVE_BLOCK_SEALED_LEN];
    live.seal_block(&env, 7, 3, &plain, &mut sealed);
    let open = |block, version, sealed: &[u8]| {
        let mut out = [0; LIVE_BLOCK_LEN];
        live.open_block(block, version, sealed, &mut out).map(|()| out)
    };
    assert_eq!(open(7, 3, &sealed), Ok(plain));
    let tampered = Err(CryptoError::Tampered("live state: a block"));
    assert_eq!(open(8, 3, &sealed), tampered);
    assert_eq!(open(7, 2, &sealed), tampered, "an old version of the same block");
    assert_eq!(open(3, 7, &sealed), tampered);
    for at in [0, 23, 24, 2000, LIVE_BLOCK_SEALED_LEN - 1] {
        let mut bad = sealed.clone();
        bad[at] ^= 0x10;
        assert_eq!(open(7, 3, &bad), tampered);
    }
    for n in [0, 23, 24, 40, LIVE_BLOCK_SEALED_LEN - 1] {
        assert_eq!(open(7, 3, &sealed[..n]), tampered);
    }
    assert_eq!(open(7, 3, &[&sealed[..], &[0]].concat()), tampered);
    let mut again = vec![0; LIVE_BLOCK_SEALED_LEN];
    live.seal_block(&env, 7, 3, &plain, &mut again);
    assert_ne!(again[..24], sealed[..24], "a nonce is drawn each time");
}

#[test]
fn a_failed_block_leaves_no_plaintext() {
    let env = TestEnv::new(32);
    let live = keys().live_keys();
    let mut sealed = vec![0; LIVE_BLOCK_SEALED_LEN];
    live.seal_block(&env, 0, 0, &[0x55; LIVE_BLOCK_LEN], &mut sealed);
    let mut out = [0; LIVE_BLOCK_LEN];
    assert!(live.open_block(1, 0, &sealed, &mut out).is_err());
    assert!(!out.windows(8).any(|w| w == [0x55; 8]));
}

#[test]
fn a_record_opens_with_its_aad_only() {
    let env = TestEnv::new(33);
    let live = keys().live_keys();
    let sealed = live.seal_record(&env, b"place 1", b"record");
    assert_eq!(sealed.len(), 24 + 6 + 16);
    assert_eq!(live.clone().open_record(b"place 1", &sealed), Ok(b"record".to_vec()));
    let tampered = Err(CryptoError::Tampered("live state: a journal record"));
    assert_eq!(live.open_record(b"place 2", &sealed), tampered);
    assert_eq!(live.open_record(b"place 1", b""), tampered);
    crate::format::samples::each_truncation(&sealed, |cut| {
        assert_eq!(live.open_record(b"place 1", cut), tampered)
    });
    crate::format::samples::each_bit_flip(&sealed, |bad| {
        assert_eq!(live.open_record(b"place 1", bad), tampered)
    });
    let empty = live.seal_record(&env, b"", b"");
    assert_eq!(live.open_record(b"", &empty), Ok(vec![]));
}
