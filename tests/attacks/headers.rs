//! P8: headers that somebody without a key has written: with a sound checksum, and a mac that he can't make.

use std::sync::Arc;

use strongroom::format::Cipher;
use strongroom::store::error::StoreError;

use super::target::{Target, make};
use crate::common::seed;
use crate::whole::view::{difference, dump_fs, fsck};

const COPIES: [&str; 2] = ["vault.json", "vault.json.bak"];

/// The header with a checksum that fits what it says now.
fn summed(text: &str) -> Vec<u8> {
    let at = text.rfind(",\n  \"checksum\"").expect("a checksum");
    let sum = blake3::hash(&text.as_bytes()[..at]).to_hex();
    format!("{},\n  \"checksum\": \"{sum}\"\n}}\n", &text[..at]).into_bytes()
}

fn member<'a>(text: &'a str, name: &str) -> &'a str {
    let from = text.find(&format!("\"{name}\": ")).expect("a member") + name.len() + 4;
    let len = text[from..].find([',', '\n']).expect("its end");
    &text[from..from + len]
}

fn slots(text: &str) -> &str {
    let (from, to) = (text.find("\"slots\": [").expect("slots"), text.find(",\n  \"mac\"").expect("a mac"));
    &text[from..to]
}

/// A hex string with another last digit.
fn other_digit(hex: &str) -> String {
    let (rest, last) = hex.split_at(hex.len() - 2);
    format!("{rest}{}", if last.starts_with('0') { "1\"" } else { "0\"" })
}

fn forgeries(now: &str, older: &str) -> Vec<(&'static str, String)> {
    let swap = |name: &str, value: &str| {
        let old = format!("\"{name}\": {}", member(now, name));
        assert_eq!(now.matches(&old).count(), 1, "{name}");
        now.replace(&old, &format!("\"{name}\": {value}"))
    };
    let generation: u64 = member(now, "generation").parse().expect("a number");
    let mut out = vec![
        ("a weaker or other cipher", swap("cipher", "\"aes-256-gcm\"")),
        ("a newer generation", swap("generation", &(generation + 100).to_string())),
        ("an older generation", swap("generation", &(generation - 1).to_string())),
        ("another key that may sign", swap("signing_key", member(now, "ingest_signing_key"))),
        ("the owner may sign for ingest", swap("ingest_signing_key", member(now, "signing_key"))),
        ("slots of an older header", now.replace(slots(now), slots(older))),
        ("other chunk sizes", swap("avg", "4096")),
    ];
    for name in ["public_key", "vault_id", "mac", "salt", "nonce", "wrapped"] {
        out.push(("a digit changed", swap(name, &other_digit(member(now, name)))));
    }
    let both = format!(
        "{},\n    {}",
        slots(older).trim_end_matches("\n  ]"),
        &slots(now)["\"slots\": [\n    ".len()..]
    );
    out.push(("a slot that was removed is back", now.replace(slots(now), &both)));
    out
}

fn text(target: &Target) -> String {
    String::from_utf8(target.files["vault.json"].to_vec()).expect("JSON")
}

#[test]
fn a_header_that_no_key_holder_wrote_opens_nothing() {
    let seed = seed(0xa77_ac0a);
    let targets = make(seed, Cipher::ChaCha20Poly1305);
    let target = &targets.closed;
    let now = text(target);
    assert_eq!(summed(&now), *target.files["vault.json"], "the checksum is made as the vault's own");
    let older = String::from_utf8(target.older[0]["vault.json"].to_vec()).expect("JSON");
    assert_ne!(member(&now, "generation"), member(&older, "generation"));
    for (what, forged) in forgeries(&now, &older) {
        assert_ne!(forged, now, "{what}");
        let forged = summed(&forged);
        for places in [&COPIES[..], &COPIES[..1], &COPIES[1..]] {
            let (vault, state) = (target.vault.fork(), target.host.fork());
            for path in places {
                vault.raw_write(path, &forged);
            }
            let host = target.host(&vault, &state, seed ^ 9);
            for key in 0..=target.key {
                match host.open(key) {
                    Ok(_) if places.len() == 2 => panic!("{what}: opens with key {key}"),
                    // The other copy is sound, and is the one that counts.
                    Ok(session) => {
                        assert_eq!(key, target.key, "{what}");
                        let is = dump_fs(&session.fs).expect("a tree");
                        assert_eq!(difference(&is, &target.tree), None, "{what}");
                    }
                    Err(
                        StoreError::WrongKey
                        | StoreError::HeaderTampered(_)
                        | StoreError::HeaderDamaged(_)
                        | StoreError::Rollback(_),
                    ) => {}
                    Err(e) => panic!("{what} in {places:?}, key {key}: {e:?}"),
                }
            }
            let report = fsck(&vault);
            assert!(report.is_err() || report.is_ok_and(|r| !r.is_clean()), "fsck: {what} in {places:?}");
        }
    }
}

/// An older header was written by a key holder. Whoever has seen the newer one refuses it.
#[test]
fn an_older_header_is_a_rollback_for_who_has_seen_the_newer_one() {
    let seed = seed(0xa77_ac0b);
    let targets = make(seed, Cipher::Aes256Gcm);
    for target in [&targets.closed, &targets.unclean] {
        let older = Arc::clone(&target.older[0]["vault.json"]);
        let (vault, state) = (target.vault.fork(), target.host.fork());
        for path in COPIES {
            vault.raw_write(path, &older);
        }
        let host = target.host(&vault, &state, seed ^ 9);
        match host.open(0).map(drop) {
            Err(StoreError::Rollback(_)) => {}
            other => panic!("{}: {other:?}", target.name),
        }
        assert!(matches!(host.unlock(target.key), Err(StoreError::WrongKey)), "its slot is not there");
        // One older copy is mended by the other.
        vault.raw_write(COPIES[1], &target.files[COPIES[1]]);
        assert!(
            matches!(host.open(0).map(drop), Err(StoreError::WrongKey)),
            "the newer header has no such slot"
        );
        let session = host.open(target.key).expect("the newer copy counts");
        assert_eq!(difference(&dump_fs(&session.fs).expect("a tree"), &target.tree), None);
    }
}
