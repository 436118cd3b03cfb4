//! A small vault writer for tests, made from docs/format.md and from nothing of the crate under test.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, XChaCha20Poly1305};
use ed25519_dalek::{Signer, SigningKey};
use fsck_strongroom::{Source, Unlock};
use x_wing::KeyExport;

pub type Id = [u8; 32];

pub const ROOT: [u8; 32] = [0x42; 32];
pub const VAULT_ID: [u8; 16] = [0x17; 16];
pub const PASSPHRASE: &[u8] = b"correct horse battery staple";
pub const KEYFILE: &[u8] = &[0x5a; 64];
pub const RECOVERY: [u8; 32] = [0x33; 32];
const ZERO: Id = [0; 32];

pub fn h(x: &[u8]) -> Id {
    *blake3::hash(x).as_bytes()
}

pub fn kdf(context: &str, x: &[u8]) -> Id {
    blake3::derive_key(context, x)
}

pub fn hex(x: &[u8]) -> String {
    x.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn xcc(key: &Id, nonce: &[u8; 24], aad: &[u8], msg: &[u8]) -> Vec<u8> {
    XChaCha20Poly1305::new(key.into()).encrypt(nonce.into(), Payload { msg, aad }).unwrap()
}

/// Files in memory.
#[derive(Clone, Default)]
pub struct Mem(pub BTreeMap<String, Vec<u8>>);

impl Source for Mem {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let mut names: Vec<String> = self
            .0
            .keys()
            .filter_map(|k| k.strip_prefix(&prefix))
            .map(|rest| rest.split('/').next().unwrap().to_owned())
            .collect();
        names.dedup();
        if names.is_empty() && !dir.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(names) }
    }

    fn len(&self, path: &str) -> io::Result<u64> {
        assert!(!path.starts_with("live"), "live/ is never read");
        self.0.get(path).map(|b| b.len() as u64).ok_or(io::ErrorKind::NotFound.into())
    }

    fn read(&self, path: &str, off: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.0.get(path).ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        let rest = file.get(off as usize..).unwrap_or(&[]);
        // Short reads are legal: give odd pieces.
        let n = rest.len().min(buf.len()).min(10_007);
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

impl Mem {
    pub fn write_to(&self, dir: &Path) {
        for (path, bytes) in &self.0 {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    pub fn paths(&self, prefix: &str) -> Vec<String> {
        self.0.keys().filter(|k| k.starts_with(prefix)).cloned().collect()
    }

    pub fn flip(&mut self, path: &str, at: usize) {
        self.0.get_mut(path).unwrap()[at] ^= 0x10;
    }
}

/// The keys of section 4, and a counter in place of randomness.
pub struct Vault {
    pub files: Mem,
    pub cipher: u8,
    pub root: [u8; 32],
    pub public_key: Vec<u8>,
    counter: u64,
    chain: Option<(u64, Id)>,
}

pub struct Written {
    pub name: Id,
    pub path: String,
}

impl Vault {
    pub fn new(cipher: u8) -> Self {
        let kem = x_wing::DecapsulationKey::from(kdf("strongroom 2026 v1 kem seed", &ROOT));
        let public_key = x_wing::Decapsulator::encapsulation_key(&kem).to_bytes().to_vec();
        let mut vault =
            Self { files: Mem::default(), cipher, root: ROOT, public_key, counter: 0, chain: None };
        let header = vault.header(1, &Tweak::default());
        vault.files.0.insert("vault.json".into(), header.clone());
        vault.files.0.insert("vault.json.bak".into(), header);
        vault
    }

    pub fn random<const N: usize>(&mut self) -> [u8; N] {
        self.counter += 1;
        let mut out = [0; N];
        blake3::Hasher::new().update(&self.counter.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    pub fn signing(&self, signer: u8) -> SigningKey {
        let context =
            ["strongroom 2026 v1 snapshot signing", "strongroom 2026 v1 ingest signing"][usize::from(signer)];
        SigningKey::from_bytes(&kdf(context, &self.root))
    }

    /// X-Wing ciphertext and shared secret.
    fn encapsulate(&mut self) -> (Vec<u8>, Id) {
        let key = x_wing::EncapsulationKey::try_from(&self.public_key[..]).unwrap();
        let (ct, ss) = key.encapsulate_deterministic(&self.random::<64>().into());
        (ct.to_vec(), ss.into())
    }

    pub fn header(&mut self, generation: u64, tweak: &Tweak) -> Vec<u8> {
        let verify = |signer| self.signing(signer).verifying_key().to_bytes();
        let (sign, ingest) = (verify(0), verify(1));
        let cipher_name = ["chacha20-poly1305", "aes-256-gcm"][usize::from(self.cipher - 1)];
        let mut slots = Vec::new();
        for (id, kind, name) in [(1u32, 1u8, "passphrase"), (2, 2, "keyfile"), (7, 3, "recovery")] {
            let salt: Id = self.random();
            let nonce: [u8; 24] = self.random();
            let (m, t, p) = if kind == 1 { (tweak.m_kib, 1u32, 1u32) } else { (0, 0, 0) };
            let kek = match kind {
                1 => {
                    let mut out = [0; 32];
                    let params = argon2::Params::new(m.clamp(8, 1024), t, p, Some(32)).unwrap();
                    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
                        .hash_password_into(PASSPHRASE, &salt, &mut out)
                        .unwrap();
                    out
                }
                2 => kdf("strongroom 2026 v1 keyfile slot", &[&salt[..], KEYFILE].concat()),
                _ => kdf("strongroom 2026 v1 recovery slot", &[&salt[..], &RECOVERY].concat()),
            };
            let mut aad = b"strongroom v1 slot".to_vec();
            aad.extend(VAULT_ID);
            aad.extend(id.to_le_bytes());
            aad.push(kind);
            [m, t, p].iter().for_each(|n| aad.extend(n.to_le_bytes()));
            aad.extend(salt);
            aad.push(self.cipher);
            aad.extend(&self.public_key);
            aad.extend(sign);
            aad.extend(ingest);
            let wrapped = xcc(&kek, &nonce, &aad, &self.root);
            let kdf = if kind == 1 {
                format!(
                    "{{\n        \"name\": \"argon2id\",\n        \"m_kib\": {m},\n        \"t\": {t},\n        \"p\": {p},\n        \"salt\": \"{}\"\n      }}",
                    hex(&salt)
                )
            } else {
                format!("{{\n        \"name\": \"blake3\",\n        \"salt\": \"{}\"\n      }}", hex(&salt))
            };
            slots.push(format!(
                "    {{\n      \"id\": {id},\n      \"kind\": \"{name}\",\n      \"label\": \"\",\n      \"created\": \"2026-11-21T02:00:00Z\",\n      \"kdf\": {kdf},\n      \"nonce\": \"{}\",\n      \"wrapped\": \"{}\"\n    }}",
                hex(&nonce),
                hex(&wrapped)
            ));
        }
        let mut text = format!(
            "{{\n  \"strongroom\": {},\n  \"vault_id\": \"{}\",\n  \"created\": \"2026-11-21T02:00:00Z\",\n  \"generation\": {generation},\n  \"cipher\": \"{cipher_name}\",\n  \"kem\": \"x-wing\",\n  \"public_key\": \"{}\",\n  \"signing_key\": \"{}\",\n  \"ingest_signing_key\": \"{}\",\n  \"chunker\": {{\n    \"algorithm\": \"fastcdc-2020\",\n    \"min\": {},\n    \"avg\": 1048576,\n    \"max\": 4194304\n  }},\n  \"slots\": [\n{}\n  ]{}",
            tweak.version,
            hex(&VAULT_ID),
            hex(&self.public_key),
            hex(&sign),
            hex(&ingest),
            tweak.chunk_min,
            slots.join(",\n"),
            tweak.extra,
        );
        let mac_key = kdf("strongroom 2026 v1 header mac", &self.root);
        let maced = tweak.maced.clone().unwrap_or_else(|| text.clone());
        let mac = *blake3::keyed_hash(&mac_key, maced.as_bytes()).as_bytes();
        text.push_str(&format!(",\n  \"mac\": \"{}\"", hex(&mac)));
        let sum = h(text.as_bytes());
        text.push_str(&format!(",\n  \"checksum\": \"{}\"\n}}\n", hex(&sum)));
        text.into_bytes()
    }

    pub fn data_id(&self, plain: &[u8]) -> Id {
        *blake3::keyed_hash(&kdf("strongroom 2026 v1 data chunk id", &self.root), plain).as_bytes()
    }

    pub fn tree_id(&self, plain: &[u8]) -> Id {
        *blake3::keyed_hash(&kdf("strongroom 2026 v1 tree chunk id", &self.root), plain).as_bytes()
    }

    /// Writes a pack with these chunks, and puts it into the vault.
    pub fn pack(&mut self, kind: u8, chunks: &[&[u8]]) -> Written {
        let chunks: Vec<(Id, &[u8])> =
            chunks.iter().map(|c| (if kind == 1 { self.data_id(c) } else { self.tree_id(c) }, *c)).collect();
        let bytes = self.pack_bytes(kind, &chunks, &PackTweak::default());
        self.put_pack(bytes)
    }

    pub fn put_pack(&mut self, bytes: Vec<u8>) -> Written {
        let name = h(&bytes);
        let text = hex(&name);
        let path = format!("packs/{}/{text}", &text[..2]);
        self.files.0.insert(path.clone(), bytes);
        Written { name, path }
    }

    pub fn pack_bytes(&mut self, kind: u8, chunks: &[(Id, &[u8])], tweak: &PackTweak) -> Vec<u8> {
        let uid: [u8; 16] = self.random();
        let (ct, ss) = self.encapsulate();
        let mut out = b"SRPACK\x00\x01".to_vec();
        out.extend([kind, self.cipher, 0, 0, 0, 0, 0, 0]);
        out.extend(VAULT_ID);
        out.extend(uid);
        out.extend(ct);
        assert_eq!(out.len(), 1168);
        let pack_key = kdf("strongroom 2026 v1 pack key", &[&ss[..], &out].concat());
        let footer_key = kdf("strongroom 2026 v1 pack footer", &pack_key);
        let padding_key = kdf("strongroom 2026 v1 pack padding", &pack_key);
        let mut frame = tweak.first_frame;
        let mut footer = (chunks.len() as u32).to_le_bytes().to_vec();
        for (c, (id, plain)) in chunks.iter().enumerate() {
            footer.extend(id);
            footer.extend((out.len() as u32).to_le_bytes());
            footer.extend((frame as u32).to_le_bytes());
            footer.extend((plain.len() as u32).to_le_bytes());
            let blocks: Vec<&[u8]> = plain.chunks(131_072).collect();
            for (n, block) in blocks.iter().enumerate() {
                let zipped = zstd::bulk::compress(block, 3).unwrap();
                // Every third chunk raw, so that both ways are used.
                let (codec, body) = if c % 3 == 2 || zipped.len() >= block.len() {
                    (0u8, block.to_vec())
                } else {
                    (2, zipped)
                };
                let mut aad = b"strongroom v1 frame".to_vec();
                aad.extend(VAULT_ID);
                aad.extend(uid);
                aad.extend(frame.to_le_bytes());
                aad.extend(id);
                aad.extend((n as u32).to_le_bytes());
                aad.push(u8::from(n + 1 == blocks.len()));
                aad.push(codec);
                aad.extend((block.len() as u32).to_le_bytes());
                aad.extend((body.len() as u32).to_le_bytes());
                let nonce: [u8; 12] = [&[0; 4][..], &frame.to_le_bytes()].concat().try_into().unwrap();
                let payload = Payload { msg: &body, aad: &aad };
                let sealed = if self.cipher == 1 {
                    ChaCha20Poly1305::new((&pack_key).into()).encrypt((&nonce).into(), payload)
                } else {
                    aes_gcm::Aes256Gcm::new((&pack_key).into()).encrypt((&nonce).into(), payload)
                };
                out.extend(sealed.unwrap());
                footer.extend((u32::from(codec) << 30 | body.len() as u32).to_le_bytes());
                frame += 1;
            }
        }
        let aad = |label: &[u8]| [label, &VAULT_ID, &uid, &[kind]].concat();
        let footer_at = out.len() as u64;
        let nonce: [u8; 24] = self.random();
        out.extend(nonce);
        out.extend(xcc(&footer_key, &nonce, &aad(b"strongroom v1 footer"), &footer));
        let footer_len = out.len() as u64 - footer_at;
        let len = padded(out.len() as u64 + 64).max(tweak.length);
        let mut padding = vec![0; len as usize - 64 - out.len()];
        blake3::Hasher::new_keyed(&padding_key).finalize_xof().fill(&mut padding);
        if tweak.bad_padding {
            padding[0] ^= 1;
        }
        out.extend(padding);
        let nonce: [u8; 24] = self.random();
        let mut trailer = footer_at.to_le_bytes().to_vec();
        trailer.extend((footer_len as u32).to_le_bytes());
        trailer.extend((chunks.len() as u32).to_le_bytes());
        trailer.extend(len.to_le_bytes());
        out.extend(nonce);
        out.extend(xcc(&footer_key, &nonce, &aad(b"strongroom v1 trailer"), &trailer));
        assert_eq!(out.len() as u64, len);
        out
    }

    /// Appends a chain file; its path and id.
    pub fn link(&mut self, new: &Link) -> (String, Id) {
        let (before, predecessor) = self.chain.unwrap_or((0, ZERO));
        let sequence = new.sequence.unwrap_or(before + 1);
        let mut public = VAULT_ID.to_vec();
        public.extend(sequence.to_le_bytes());
        public.extend(new.predecessor.unwrap_or(predecessor));
        public.extend(1_795_000_000i64.to_le_bytes());
        public.extend(5u32.to_le_bytes());
        public.push(if new.kind == 1 { 1 } else { 0 });
        public.extend(&new.list);
        public.extend((new.removed.len() as u32).to_le_bytes());
        new.removed.iter().for_each(|r| public.extend(r));
        for ids in [&new.retired, &new.replacement] {
            public.extend((ids.len() as u32).to_le_bytes());
            ids.iter().for_each(|id| public.extend(id));
        }
        let mut sealed = 1u16.to_le_bytes().to_vec();
        sealed.extend([4, b'h', b'o', b's', b't', 1, 3, b't', b'a', b'g', 2, b'm', b'e']);
        if let Some(root) = &new.root {
            sealed.extend(root);
            sealed.extend(1000u64.to_le_bytes());
            [1u64, 2, 3, 4].iter().for_each(|n| sealed.extend(n.to_le_bytes()));
        }
        sealed.resize(sealed.len().next_multiple_of(256), 0);
        let mut out = b"SRSNAP\x00\x01".to_vec();
        out.extend([new.kind, new.signer, 0, 0]);
        out.extend((public.len() as u32).to_le_bytes());
        out.extend(public);
        let (ct, ss) = self.encapsulate();
        out.extend(ct);
        let key = kdf("strongroom 2026 v1 snapshot key", &[&ss[..], &h(&out)].concat());
        let nonce: [u8; 24] = self.random();
        let aad = [&b"strongroom v1 snapshot seal"[..], &VAULT_ID].concat();
        let sealed = xcc(&key, &nonce, &aad, &sealed);
        out.extend(nonce);
        out.extend((sealed.len() as u32).to_le_bytes());
        out.extend(sealed);
        let message = [&b"strongroom v1 snapshot"[..], &h(&out)].concat();
        let key = if new.foreign_key { SigningKey::from_bytes(&[1; 32]) } else { self.signing(new.signer) };
        out.extend(key.sign(&message).to_bytes());
        let id = h(&out);
        let path = format!("snapshots/{sequence:010}-{}", hex(&id));
        self.files.0.insert(path.clone(), out);
        self.chain = Some((sequence, id));
        (path, id)
    }

    pub fn unlock(&self) -> Option<Unlock> {
        Some(Unlock::Root(self.root))
    }
}

/// Deviations from a proper header.
pub struct Tweak {
    pub version: u64,
    pub m_kib: u32,
    pub chunk_min: u64,
    pub extra: String,
    pub maced: Option<String>,
}

impl Default for Tweak {
    fn default() -> Self {
        Self { version: 1, m_kib: 8, chunk_min: 262_144, extra: String::new(), maced: None }
    }
}

/// Deviations from a proper pack.
#[derive(Default)]
pub struct PackTweak {
    pub first_frame: u64,
    pub length: u64,
    pub bad_padding: bool,
}

/// A chain file to write.
#[derive(Clone)]
pub struct Link {
    pub kind: u8,
    pub signer: u8,
    pub foreign_key: bool,
    pub sequence: Option<u64>,
    pub predecessor: Option<Id>,
    pub list: Vec<u8>,
    pub removed: Vec<Vec<u8>>,
    pub retired: Vec<Id>,
    pub replacement: Vec<Id>,
    pub root: Option<Vec<u8>>,
}

impl Link {
    pub fn snapshot(list: Vec<u8>, root: Vec<u8>) -> Self {
        Self {
            kind: 1,
            signer: 0,
            foreign_key: false,
            sequence: None,
            predecessor: None,
            list,
            removed: Vec::new(),
            retired: Vec::new(),
            replacement: Vec::new(),
            root: Some(root),
        }
    }

    pub fn removal(list: Vec<u8>, removed: Vec<Vec<u8>>, retired: Vec<Id>, replacement: Vec<Id>) -> Self {
        Self { kind: 2, root: None, removed, retired, replacement, ..Self::snapshot(list, Vec::new()) }
    }
}

/// A pack list; the lists are sorted here.
pub fn list(full: bool, added: &[Id], dropped: &[Id]) -> Vec<u8> {
    let mut out = vec![u8::from(!full)];
    for ids in [added, dropped] {
        let mut ids = ids.to_vec();
        ids.sort();
        out.extend((ids.len() as u32).to_le_bytes());
        ids.iter().for_each(|id| out.extend(id));
    }
    out
}

/// A `removed` entry.
pub fn removed(sequence: u64, id: Id, predecessor: Id, list: &[u8]) -> Vec<u8> {
    [&sequence.to_le_bytes()[..], &id, &predecessor, list].concat()
}

/// Padme, with floating point in place of shifts, then up to whole blocks.
fn padded(n: u64) -> u64 {
    let exponent = (n as f64).log2().floor();
    let last = exponent - (exponent.log2().floor() + 1.0);
    n.next_multiple_of(2f64.powf(last) as u64).next_multiple_of(4096)
}

pub fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    [varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn zigzag(n: i64) -> Vec<u8> {
    varint(((n << 1) ^ (n >> 63)) as u64)
}

/// An entry.
#[derive(Clone)]
pub struct Entry {
    pub name: Vec<u8>,
    pub kind: u8,
    pub ino: u64,
    pub mode: u64,
    pub nlink: u64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub content: Vec<u8>,
}

impl Entry {
    pub fn new(name: &str, kind: u8, ino: u64, content: Vec<u8>) -> Self {
        Self { name: name.into(), kind, ino, mode: 0o644, nlink: 1, xattrs: Vec::new(), content }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = counted(&self.name);
        out.push(self.kind);
        // The owner is the one who runs the tests, if that is root.
        [self.ino, self.mode, 0, 0].iter().for_each(|&n| out.extend(varint(n)));
        for seconds in [-5, 1_700_000_000, 1_700_000_001] {
            out.extend(zigzag(seconds));
            out.extend(varint(123_456_789));
        }
        out.extend(varint(self.nlink));
        out.extend(varint(self.xattrs.len() as u64));
        for (name, value) in &self.xattrs {
            out.extend(counted(name));
            out.extend(counted(value));
        }
        out.extend(&self.content);
        out
    }
}

pub fn dir_leaf(entries: &[Entry]) -> Vec<u8> {
    let mut entries = entries.to_vec();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let mut out = vec![1];
    out.extend(varint(entries.len() as u64));
    entries.iter().for_each(|e| out.extend(e.encode()));
    out
}

pub fn dir_index(level: u8, children: &[(&str, Id)]) -> Vec<u8> {
    let mut out = vec![2, level];
    out.extend(varint(children.len() as u64));
    for (name, id) in children {
        out.extend(counted(name.as_bytes()));
        out.extend(id);
    }
    out
}

pub fn extent(gap: u64, length: u64, chunk: &Id, at: u64) -> Vec<u8> {
    [varint(gap), varint(length), chunk.to_vec(), varint(at)].concat()
}

pub fn extent_leaf(first: u64, extents: &[Vec<u8>]) -> Vec<u8> {
    [vec![3], varint(first), varint(extents.len() as u64), extents.concat()].concat()
}

pub fn extent_index(level: u8, children: &[(u64, Id)]) -> Vec<u8> {
    let mut out = vec![4, level];
    out.extend(varint(children.len() as u64));
    for (first, id) in children {
        out.extend(varint(*first));
        out.extend(id);
    }
    out
}

pub fn holes(size: u64) -> Vec<u8> {
    [varint(size), vec![0]].concat()
}

pub fn inline(size: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(size), vec![1], counted(bytes)].concat()
}

pub fn extents(size: u64, list: &[Vec<u8>]) -> Vec<u8> {
    [varint(size), vec![2], varint(list.len() as u64), list.concat()].concat()
}

pub fn object(size: u64, id: &Id) -> Vec<u8> {
    [varint(size), vec![3], id.to_vec()].concat()
}

/// Bytes that don't compress, of a length that takes several blocks.
pub fn noise(seed: u8, n: usize) -> Vec<u8> {
    let mut out = vec![0; n];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

/// The vault that most tests use, with the names of its parts.
pub struct Sample {
    pub vault: Vault,
    /// Data and tree packs of snapshot 1, data and tree packs of snapshot 2.
    pub packs: [Written; 4],
    /// Chain files: snapshots 1 and 2.
    pub snapshots: [(String, Id); 2],
}

fn root_entry(dir: &Id) -> Vec<u8> {
    let mut root = Entry::new("", 2, 1, dir.to_vec());
    root.mode = 0o755;
    root.nlink = 4;
    root.encode()
}

/// All types of entries, files of all kinds of content, hard links, an index; two snapshots.
pub fn sample(cipher: u8) -> Sample {
    let mut v = Vault::new(cipher);
    let (a, b, c) = (noise(1, 300_000), vec![7u8; 200_000], b"short".to_vec());
    let data1 = v.pack(1, &[&a, &b, &c]);
    let (ia, ib, ic) = (v.data_id(&a), v.data_id(&b), v.data_id(&c));

    let leaf1 = extent_leaf(100, &[extent(0, 1000, &ia, 5), extent(50, 10, &ib, 0)]);
    let leaf2 = extent_leaf(5000, &[extent(0, 5, &ic, 0)]);
    let (l1, l2) = (v.tree_id(&leaf1), v.tree_id(&leaf2));
    let index = extent_index(1, &[(100, l1), (5000, l2)]);
    let ix = v.tree_id(&index);

    let mut linked = Entry::new("hard-a", 1, 20, extents(5, &[extent(0, 5, &ic, 0)]));
    linked.nlink = 2;
    let mut linked_too = linked.clone();
    linked_too.name = b"hard-b".to_vec();
    let mut with_xattrs = Entry::new("xattrs", 1, 21, inline(4, b"attr"));
    with_xattrs.xattrs = vec![(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), vec![0, 255])];
    let sub = dir_leaf(&[linked_too, Entry::new("deep", 1, 22, inline(10, b"deep"))]);
    let sub_id = v.tree_id(&sub);
    let first = dir_leaf(&[
        Entry::new("block", 7, 2, [varint(8), varint(1)].concat()),
        Entry::new("char", 6, 3, [varint(1), varint(3)].concat()),
        Entry::new("dir", 2, 4, sub_id.to_vec()),
        Entry::new("fifo", 4, 5, Vec::new()),
    ]);
    let second = dir_leaf(&[
        linked,
        Entry::new("holes", 1, 6, holes(1 << 20)),
        Entry::new(
            "large",
            1,
            7,
            extents(500_000, &[extent(0, 300_000, &ia, 0), extent(0, 200_000, &ib, 0)]),
        ),
        Entry::new("link", 3, 8, counted(b"dir/deep")),
        Entry::new("object", 1, 9, object(6000, &ix)),
        Entry::new("odd\x1b\u{fc}", 1, 10, inline(3, b"odd")),
        Entry::new("socket", 5, 11, Vec::new()),
        with_xattrs,
    ]);
    let (f, s) = (v.tree_id(&first), v.tree_id(&second));
    let top = dir_index(1, &[("block", f), ("hard-a", s)]);
    let top_id = v.tree_id(&top);
    let tree1 = v.pack(2, &[&leaf1, &leaf2, &index, &sub, &first, &second, &top]);
    let one = v.link(&Link::snapshot(list(true, &[data1.name, tree1.name], &[]), root_entry(&top_id)));

    let new = noise(9, 50_000);
    let inew = v.data_id(&new);
    let data2 = v.pack(1, &[&new]);
    let root2 = dir_leaf(&[
        Entry::new("dir", 2, 4, sub_id.to_vec()),
        Entry::new("new", 1, 12, extents(50_000, &[extent(0, 50_000, &inew, 0)])),
        Entry::new("old", 1, 7, extents(300_000, &[extent(0, 300_000, &ia, 0)])),
    ]);
    let root2_id = v.tree_id(&root2);
    let tree2 = v.pack(2, &[&root2]);
    let two = v.link(&Link::snapshot(list(false, &[data2.name, tree2.name], &[]), root_entry(&root2_id)));
    Sample { vault: v, packs: [data1, tree1, data2, tree2], snapshots: [one, two] }
}
