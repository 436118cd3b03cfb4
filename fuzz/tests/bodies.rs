//! Drives the bodies of all fuzz targets with seeds and with seeds that were changed a little. No fuzzer is needed.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::path::Path;

use strongroom::env::{Env, TestEnv};
use strongroom_fuzz::{seeds, targets};

/// Changed inputs for each target.
const ROUNDS: usize = 4_000;

#[test]
fn every_target_has_a_file_a_binary_and_seeds() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap();
    let mut files: BTreeSet<String> = std::fs::read_dir(dir.join("fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    for (name, _) in targets::ALL {
        assert!(files.remove(name), "no fuzz_targets/{name}.rs");
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "no binary for {name}");
        let text = std::fs::read_to_string(dir.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(text.contains("fuzz_target!(|data: &[u8]|"), "{name}");
        assert!(!seeds::of(name).unwrap().is_empty(), "no seeds for {name}");
    }
    assert!(files.is_empty(), "not in targets::ALL: {files:?}");
}

/// One test for each target, so that they run side by side.
macro_rules! changed_seeds_break_nothing {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            drive(stringify!($name));
        })*

        #[test]
        fn every_target_is_driven() {
            assert_eq!([$(stringify!($name)),*], targets::ALL.map(|(name, _)| name));
        }
    };
}

changed_seeds_break_nothing!(
    header pack_header footer trailer tree chain sealed_part recovery_key codec names rows journal block_log acl
    highwater control mount_options mountinfo selection
);

fn drive(target: &str) {
    let env = TestEnv::new(77);
    let body = targets::ALL.into_iter().find(|(name, _)| *name == target).unwrap().1;
    let seeds = seeds::of(target).unwrap();
    seeds.iter().for_each(|seed| body(seed));
    body(&[]);
    let mut bytes = Vec::new();
    for round in 0..ROUNDS {
        if round % 5 == 0 {
            bytes.clone_from(&seeds[round / 5 % seeds.len()]);
        }
        mutate(&env, &mut bytes, &seeds[round % seeds.len()]);
        body(&bytes);
    }
}

/// Changes `bytes` a little, in one of the ways in which files go wrong.
fn mutate(env: &TestEnv, bytes: &mut Vec<u8>, other: &[u8]) {
    let mut random = [0; 10];
    env.random(&mut random);
    let [how, value, a0, a1, a2, a3, b0, b1, b2, b3] = random;
    let pick = |n: [u8; 4], len: usize| u32::from_le_bytes(n) as usize % len.max(1);
    let at = pick([a0, a1, a2, a3], bytes.len());
    let end = at + pick([b0, b1, b2, b3], bytes.len() - at + 1).min(64);
    if bytes.is_empty() {
        return bytes.push(value);
    }
    match how % 8 {
        0 => bytes[at] ^= 1 << (value % 8),
        1 => bytes[at] = value,
        2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][value as usize % 5],
        3 => drop(bytes.drain(at..end.min(bytes.len()))),
        4 => bytes.truncate(at),
        5 => bytes.insert(at, value),
        6 => {
            let part = bytes[at..end.min(bytes.len())].to_vec();
            drop(bytes.splice(at..at, part));
        }
        _ => {
            let from = pick([b0, b1, b2, b3], other.len());
            let len = (other.len() - from).min(bytes.len() - at).min(32);
            bytes[at..at + len].copy_from_slice(&other[from..from + len]);
        }
    }
}
