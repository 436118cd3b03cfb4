//! P9: no key ever seals two things under one nonce, also when one vault goes on in several places.
//!
//! Clones of a vault are made at several moments: with all that it has, as a power cut leaves it, without its live state.
//! (Not with torn blocks: what is torn was never sealed.) Each goes on with writes of its own and randomness of its own. All that was ever sealed is collected, by key and nonce.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use strongroom::crypto::VaultKeys;
use strongroom::disk::{CrashMode, SimDisk};
use strongroom::format::{Cipher, PACK_HEADER_LEN};
use strongroom::fs::{Caller, OpenFlags};
use strongroom::store::records::ROOT_INO;

use super::frames::open_pack;
use super::target::files_of;
use crate::common::seed;
use crate::whole::rng::Rng;
use crate::whole::view::{damage, fsck};
use crate::whole::work::{Mix, Work};
use crate::whole::{Host, Session, new_vault};

type Hash = [u8; 32];

/// What was sealed: by key and nonce, the ciphertext.
#[derive(Default)]
struct Nonces {
    sealed: HashMap<(Vec<u8>, Vec<u8>), Hash>,
    counts: BTreeMap<&'static str, usize>,
    /// Of each pack key, the longest row of frames that was seen. All others must begin like it.
    frames: HashMap<Hash, Vec<u8>>,
    repeats: Vec<String>,
}

fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

impl Nonces {
    fn add(&mut self, what: &'static str, key: &[u8], nonce: &[u8], ciphertext: &[u8]) {
        let new = hash(ciphertext);
        let key = [what.as_bytes(), key].concat();
        match self.sealed.insert((key, nonce.to_vec()), new) {
            None => *self.counts.entry(what).or_default() += 1,
            Some(old) if old == new => {}
            Some(_) => self.repeats.push(format!("{what}: one nonce, two ciphertexts")),
        }
    }

    /// `nonce || ciphertext || tag`.
    fn add_sealed(&mut self, what: &'static str, key: &[u8], sealed: &[u8]) {
        let (nonce, rest) = sealed.split_at(24);
        self.add(what, key, nonce, rest);
    }

    fn collect(&mut self, disk: &SimDisk, keys: &VaultKeys) {
        for (path, bytes) in files_of(disk) {
            match path.as_str() {
                "live/live.redb" => {
                    for slot in bytes.chunks(4608).filter(|slot| slot.len() >= 4136) {
                        if slot.iter().any(|b| *b != 0) {
                            self.add_sealed("block", b"", &slot[..4136]);
                        }
                    }
                }
                "live/blocks.log" => self.records(&bytes, 512, 12),
                "live/journal/a" | "live/journal/b" => {
                    self.records(&bytes[..4096], 0, 4);
                    self.records(&bytes, 4096, 4);
                }
                _ if path.starts_with("packs/") || path.starts_with("live/open/") => {
                    self.pack(&path, &bytes, keys);
                }
                _ if path.starts_with("snapshots/") => {
                    let public = u32::from_le_bytes(bytes[12..16].try_into().expect("4 bytes")) as usize;
                    let (prefix, rest) = bytes.split_at(16 + public + 1120);
                    self.add("chain file", &hash(prefix), &rest[..24], &rest[28..]);
                }
                _ if path.starts_with("vault.json") => self.slots(&bytes),
                _ => {}
            }
        }
    }

    /// Frames of the journal and of the block log, which have the same key: a length, something, the sealed bytes.
    fn records(&mut self, bytes: &[u8], mut at: usize, head: usize) {
        while let Some(len) = bytes.get(at..at + 4) {
            let len = u32::from_le_bytes(len.try_into().expect("4 bytes")) as usize;
            let Some(sealed) = bytes.get(at + head..at + head + len).filter(|_| len > 40) else { return };
            self.add_sealed("record", b"", sealed);
            at = (at + head + len).next_multiple_of(512);
        }
    }

    fn pack(&mut self, path: &str, bytes: &Arc<Vec<u8>>, keys: &VaultKeys) {
        let Some(header) = bytes.get(..PACK_HEADER_LEN) else { return };
        let key = hash(header);
        let mut end = bytes.len();
        if let Some(pack) = open_pack(keys, path, bytes) {
            for (number, range) in pack.frames() {
                self.add("frame", &key, &number.to_le_bytes(), &bytes[range]);
            }
            end = pack.trailer.footer_offset as usize;
            self.add_sealed("footer", &key, &bytes[end..end + pack.trailer.footer_len as usize]);
            self.add_sealed("footer", &key, &bytes[bytes.len() - 64..]);
        } else {
            assert!(path.starts_with("live/open/"), "{path} does not open");
            *self.counts.entry("open pack").or_default() += 1;
        }
        // Frame numbers of a pack that has no footer are not known, but they count up with the bytes: a key that seals
        // once more from an earlier place on has two continuations.
        let frames = &bytes[PACK_HEADER_LEN..end];
        let known = self.frames.entry(key).or_default();
        let both = known.len().min(frames.len());
        if known[..both] != frames[..both] {
            self.repeats.push("frames: one pack, two continuations".into());
        }
        if frames.len() > known.len() {
            *known = frames.to_vec();
        }
    }

    fn slots(&mut self, bytes: &[u8]) {
        let header: serde_json::Value = serde_json::from_slice(bytes).expect("a header");
        for slot in header["slots"].as_array().expect("slots") {
            let text = |value: &serde_json::Value| value.as_str().expect("hex").as_bytes().to_vec();
            self.add("slot", &text(&slot["kdf"]["salt"]), &text(&slot["nonce"]), &text(&slot["wrapped"]));
        }
    }
}

/// Writes files that nobody else has, and makes them durable.
fn write(session: &Session, rng: &mut Rng, n: usize) {
    let fs = &session.fs;
    let flags = OpenFlags { write: true, ..OpenFlags::default() };
    let name = format!("clone {:x} {n}", rng.next());
    let (attr, fh) =
        fs.create(ROOT_INO, name.as_bytes(), 0o600, 0, flags, Caller::default()).expect("create");
    let len = 3_000 + rng.index(40_000);
    let data = rng.bytes(len);
    fs.write(attr.ino, fh, 0, &data, false).expect("write");
    // What is synced for one file stands in the journal until a snapshot; what is synced for all goes into a pack.
    if n.is_multiple_of(2) { fs.fsync(attr.ino, false) } else { fs.sync_all() }.expect("sync");
    fs.release(attr.ino, fh).expect("release");
}

/// One clone goes on. `random` is its machine's randomness, `data` what it writes.
fn go_on(image: &SimDisk, random: u64, data: u64, seen: &mut Nonces) {
    let disk = image.fork();
    let host = Host::new(Arc::new(disk.clone()), Arc::new(SimDisk::new(random)), random);
    let keys = host.unlock(0).expect("unlocks").keys;
    let mut rng = Rng(data);
    seen.collect(&disk, &keys);
    let session = host.open(0).expect("opens");
    seen.collect(&disk, &keys);
    for n in 1..5 {
        write(&session, &mut rng, n);
        seen.collect(&disk, &keys);
    }
    session.snapshot(true).expect("snapshot");
    seen.collect(&disk, &keys);
    write(&session, &mut rng, 9);
    session.gc().expect("gc");
    seen.collect(&disk, &keys);
    write(&session, &mut rng, 10);
    if random.is_multiple_of(2) {
        // Its power goes off, and it comes back.
        drop(session);
        let disk = disk.crash_image(CrashMode::DropUnsynced);
        let host = Host::new(Arc::new(disk.clone()), Arc::new(SimDisk::new(random)), random ^ (1 << 40));
        let session = host.open(0).expect("opens after a crash");
        write(&session, &mut rng, 11);
        seen.collect(&disk, &keys);
    } else {
        session.unmount().expect("unmounts");
        seen.collect(&disk, &keys);
    }
    let report = fsck(&disk).expect("a vault");
    assert_eq!(damage(&report), None);
}

/// A vault at work, as it is at several moments, in several ways.
fn images(seed: u64, cipher: Cipher) -> Vec<SimDisk> {
    let (vault, state) = new_vault(seed, cipher);
    let host = Host::new(Arc::new(vault.clone()), Arc::new(state), seed);
    let mix = Mix { snapshots: 2, collections: 2, remounts: 0, keys: 0, file_max: 20_000, ..Mix::default() };
    let mut work = Work::start(host, None, seed, mix);
    work.run(40);
    work.snapshot(true);
    let mut images = Vec::new();
    for _ in 0..2 {
        work.run(15);
        work.write_new_file(50_000);
        work.sync_everything();
        // More that is written to the open pack, and that nothing makes durable.
        work.write_new_file(60_000);
        images.push(vault.crash_image(CrashMode::KeepAll));
        images.push(vault.crash_image(CrashMode::DropUnsynced));
    }
    let copy = vault.fork();
    for path in copy.raw_list().iter().filter(|path| path.starts_with("live/")) {
        assert!(copy.raw_remove(path));
    }
    images.push(copy);
    drop(work.stop_if(true));
    images.push(vault.fork());
    images
}

#[test]
fn heavy_no_nonce_is_used_twice_by_clones_that_diverge() {
    let seed = seed(0xa77_ac04);
    for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
        let mut seen = Nonces::default();
        for (n, image) in images(seed, cipher).iter().enumerate() {
            for clone in 0..2 {
                let random = seed + 1_000 + (10 * n + clone) as u64;
                go_on(image, random, random, &mut seen);
            }
        }
        assert_eq!(seen.repeats, Vec::<String>::new(), "STRONGROOM_SEED={seed}");
        for what in ["block", "record", "frame", "footer", "chain file", "slot", "open pack"] {
            let count = seen.counts.get(what).copied().unwrap_or(0);
            let least = if what == "slot" { 1 } else { 20 };
            assert!(count >= least, "{what}: {count} of {:?}", seen.counts);
        }
    }
}

/// The collector would find it: two clones with the same randomness, as of a machine that was cloned while it ran, which
/// is outside of what is promised (docs/threat-model.md).
#[test]
fn heavy_clones_that_share_their_randomness_would_be_found() {
    let seed = seed(0xa77_ac05);
    let image = &images(seed, Cipher::ChaCha20Poly1305)[0];
    let mut seen = Nonces::default();
    let random = (seed + 50_000) | 1;
    go_on(image, random, 1, &mut seen);
    assert!(seen.repeats.is_empty(), "{:?}", seen.repeats);
    go_on(image, random, 2, &mut seen);
    for what in ["block", "record", "frame"] {
        assert!(seen.repeats.iter().any(|text| text.starts_with(what)), "{what}: {:?}", seen.repeats);
    }
}
