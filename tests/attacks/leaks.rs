//! P10, P11: what a thief sees. No name, no content, no size, no count in any byte; packs are as long as the padding rule
//! says, and nothing else shows how much is in them.

use std::sync::Arc;

use strongroom::disk::SimDisk;
use strongroom::format::{Cipher, PACK_HEADER_LEN};
use strongroom::fs::{Caller, OpenFlags};
use strongroom::store::records::ROOT_INO;

use super::frames::open_pack;
use super::target::{Files, files_of};
use crate::whole::rng::Rng;
use crate::whole::{Host, new_vault};

/// Sizes with bytes that are rare: four of them in a row don't come by chance in a vault of this size and seed.
const SIZES: [usize; 5] = [51_239, 70_207, 90_001, 44_983, 67_891];
const TARGET: &str = "/home/customer-4711/backup-target";
const XATTR: &[u8] = b"user.strictly-confidential";

fn name(n: usize, tag: &str) -> String {
    format!("payroll-{tag}-{n:02}-2026.tar.gz")
}

/// A vault with known names and contents, still mounted, and as it is when it was unmounted.
fn vault(seed: u64, tag: &str) -> [Files; 2] {
    let (vault, state) = new_vault(seed, Cipher::Aes256Gcm);
    let host = Host::new(Arc::new(vault.clone()), Arc::new(state), seed);
    let session = host.open(0).expect("opens");
    let (fs, caller) = (&session.fs, Caller::default());
    let flags = OpenFlags { write: true, ..OpenFlags::default() };
    let mut rng = Rng(seed);
    let dir = fs.mkdir(ROOT_INO, format!("accounts-{tag}").as_bytes(), 0o755, 0, caller).expect("mkdir");
    for (n, size) in SIZES.into_iter().enumerate() {
        let (attr, fh) =
            fs.create(dir.ino, name(n, tag).as_bytes(), 0o640, 0, flags, caller).expect("create");
        // Text that repeats, so that it is compressed, and noise.
        let mut data = format!("SECRET-LINE-{tag} ").repeat(200).into_bytes();
        data.extend(rng.bytes(size - data.len()));
        fs.write(attr.ino, fh, 0, &data, false).expect("write");
        fs.setxattr(attr.ino, XATTR, b"xattr-value-of-a-customer", 0).expect("setxattr");
        fs.release(attr.ino, fh).expect("release");
    }
    fs.symlink(dir.ino, b"symbolic-pointer", TARGET.as_bytes(), caller).expect("symlink");
    let (attr, fh) = fs.create(dir.ino, b"inline-note", 0o640, 0, flags, caller).expect("create");
    fs.write(attr.ino, fh, 0, b"a-note-that-is-stored-inline", false).expect("write");
    fs.release(attr.ino, fh).expect("release");
    fs.sync_all().expect("sync");
    let mounted = files_of(&vault);
    session.snapshot(true).expect("snapshot");
    session.unmount().expect("unmounts");
    [mounted, files_of(&vault)]
}

fn finds(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

#[test]
fn no_name_content_or_size_stands_in_any_byte_of_a_vault() {
    let tag = "zquxbrv";
    let mut secrets: Vec<Vec<u8>> = vec![
        tag.as_bytes().to_vec(),
        b"payroll-".to_vec(),
        b"accounts-".to_vec(),
        b"symbolic-pointer".to_vec(),
        b"inline-note".to_vec(),
        b"a-note-that-is".to_vec(),
        TARGET.as_bytes().to_vec(),
        XATTR.to_vec(),
        b"xattr-value-of".to_vec(),
        b"SECRET-LINE".to_vec(),
    ];
    for size in SIZES {
        let varint = [size as u8 | 0x80, (size >> 7) as u8 | 0x80, (size >> 14) as u8];
        secrets.push((size as u32).to_le_bytes().to_vec());
        secrets.push((size as u32).to_be_bytes().to_vec());
        secrets.push(size.to_string().into_bytes());
        secrets.push([&varint[..], &[0]].concat());
    }
    for (n, files) in vault(0xa77_ac06, tag).iter().enumerate() {
        assert!(files.len() > 8, "{:?}", files.keys());
        for (path, bytes) in files {
            for secret in &secrets {
                let shown = String::from_utf8_lossy(secret);
                assert!(!finds(path.as_bytes(), secret), "{path}: {shown}");
                assert!(!finds(bytes, secret), "moment {n}: {path} has {secret:?} ({shown}) in it");
            }
        }
    }
    // The search would find it: what may be known is there.
    let [_, files] = vault(0xa77_ac06, tag);
    assert!(finds(&files["vault.json"], b"aes-256-gcm"));
}

/// docs/format.md PACK-8, written anew: the Padme length, and whole pages.
fn padded(len: u64) -> u64 {
    let exponent = 63 - u64::from(len.leading_zeros());
    let kept = 64 - u64::from(exponent.leading_zeros());
    let step = 1 << (exponent - kept);
    len.div_ceil(step).saturating_mul(step).div_ceil(4096) * 4096
}

#[test]
fn packs_are_as_long_as_the_padding_rule_says() {
    let [_, files] = vault(0xa77_ac07, "zquxbrv");
    let keys = {
        let disk = SimDisk::new(1);
        for (path, bytes) in &files {
            disk.raw_write(path, bytes);
        }
        Host::new(Arc::new(disk), Arc::new(SimDisk::new(2)), 1).unlock(0).expect("unlocks").keys
    };
    let mut packs = 0;
    for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with("packs/")) {
        let pack = open_pack(&keys, path, bytes).expect("a closed pack");
        let used = pack.trailer.footer_offset + u64::from(pack.trailer.footer_len) + 64;
        assert_eq!(bytes.len() as u64, padded(used), "{path}");
        assert_eq!(bytes.len() % 4096, 0, "{path}");
        assert!(used > PACK_HEADER_LEN as u64);
        packs += 1;
    }
    assert!(packs >= 4, "{packs}");
}
