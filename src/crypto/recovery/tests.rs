#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::env::TestEnv;

fn key() -> RecoveryKey {
    RecoveryKey::generate(&TestEnv::new(5))
}

fn parse(text: &str) -> Result<[u8; 32], CryptoError> {
    RecoveryKey::parse(text).map(|key| *key.expose())
}

#[test]
fn a_key_is_eight_groups_of_seven() {
    let text = key().to_text();
    assert_eq!(text.len(), 3 + 8 * 8);
    assert!(text.starts_with("SR1-"));
    assert_eq!(text.capacity(), text.len(), "the text was never moved while it grew");
    assert!(text[4..].split('-').all(|group| group.len() == 7));
    assert!(text[4..].bytes().all(|b| b == b'-' || ALPHABET.contains(&b)));
    assert_eq!(parse(&text), Ok(*key().expose()));
}

#[test]
fn known_keys_have_known_texts() {
    let text = |bytes: [u8; 32]| RecoveryKey(Secret::fill_with(|k| *k = bytes)).to_text().to_string();
    let zeros = text([0; 32]);
    assert_eq!(zeros, KNOWN_ZEROS);
    assert_eq!(text([0xff; 32]), KNOWN_ONES);
}

const KNOWN_ZEROS: &str = "SR1-0000000-0000000-0000000-0000000-0000000-0000000-0000000-00CSP00";
const KNOWN_ONES: &str = "SR1-ZZZZZZZ-ZZZZZZZ-ZZZZZZZ-ZZZZZZZ-ZZZZZZZ-ZZZZZZZ-ZZZZZZZ-ZZP4NXB";

#[test]
fn how_it_is_typed_does_not_matter() {
    let text = key().to_text();
    let want = *key().expose();
    for typed in [
        text.to_lowercase(),
        text.replace('-', ""),
        text.replace('-', " "),
        format!("  {} \n", text.as_str()),
        text.replace('0', "o").replace('1', "l"),
        text.replace('0', "O").replace('1', "I"),
        text.replace("SR1-", "sri - "),
        text.chars().flat_map(|c| [c, ' ']).collect(),
    ] {
        assert_eq!(parse(&typed), Ok(want), "{typed}");
    }
}

#[test]
fn every_single_wrong_character_is_noticed() {
    let text = key().to_text();
    for (at, right) in text.char_indices().filter(|(_, c)| *c != '-') {
        for wrong in ALPHABET.iter().map(|b| char::from(*b)).filter(|c| *c != right) {
            let mut typed: Vec<char> = text.chars().collect();
            typed[at] = wrong;
            let result = parse(&typed.iter().collect::<String>());
            if at < 3 {
                assert_eq!(result, Err(CryptoError::BadKeyMaterial("a recovery key begins with SR1")));
            } else {
                assert_eq!(result, Err(CryptoError::Mistyped), "{wrong} at {at}");
            }
        }
    }
}

#[test]
fn swapped_neighbours_and_swapped_groups_are_noticed() {
    let text = key().to_text();
    let symbols: Vec<char> = text.chars().filter(|c| *c != '-').collect();
    for at in 3..symbols.len() - 1 {
        let mut typed = symbols.clone();
        typed.swap(at, at + 1);
        if typed != symbols {
            assert_eq!(parse(&typed.iter().collect::<String>()), Err(CryptoError::Mistyped));
        }
    }
    let mut groups: Vec<&str> = text.split('-').collect();
    groups.swap(2, 5);
    assert_eq!(parse(&groups.join("-")), Err(CryptoError::Mistyped));
}

#[test]
fn what_can_not_be_a_key_is_said_without_trying() {
    let text = key().to_text();
    let message = |text: &str| match parse(text) {
        Err(CryptoError::BadKeyMaterial(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(message("").ends_with("this has fewer"));
    assert!(message(&text[..text.len() - 1]).ends_with("this has fewer"));
    assert!(message(&text[4..]).ends_with("this has fewer"), "the prefix is part of it");
    assert!(message(&format!("{}0", text.as_str())).ends_with("this has more"));
    assert!(message(&"0".repeat(100_000)).ends_with("this has more"));
    assert!(message(&text.replacen("SR1", "SR2", 1)).ends_with("SR1"));
    for odd in ['U', 'u', '!', '_', '\u{2013}', '\u{130}', '\0', '\t'] {
        let typed = format!("{}{odd}{}", &text[..8], &text[9..]);
        assert!(message(&typed).contains("Crockford"), "{odd:?}");
    }
}

proptest! {
    #[test]
    fn any_key_survives(bytes: [u8; 32]) {
        let key = RecoveryKey(Secret::fill_with(|k| *k = bytes));
        prop_assert_eq!(parse(&key.to_text()), Ok(bytes));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
        fuzz_recovery_key(text.as_bytes());
    }
}
