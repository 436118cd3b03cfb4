//! Runs every golden vector of `tests/vectors` against the library. Their shape is in the README there.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use strongroom::crypto::{
    self, Credential, CryptoError, RecoveryKey, RootSecret, SecretBytes, VaultKeys, header_mac, unlock,
};
use strongroom::env::TestEnv;
use strongroom::format::pack::FOOTER_SEAL_LEN;
use strongroom::format::{
    ChainFile, ChunkDesc, ChunkId, ChunkerParams, Cipher, Codec, FRAME_TAG_LEN, Footer, FormatError, Header,
    Origin, PACK_HEADER_LEN, PackHeader, SealedPart, TRAILER_LEN, Trailer, TreeObject, VaultId,
    block_plain_len, fuzz,
};
use strongroom::store::codec;

/// A vector: its keys and the bytes after the empty line.
struct Vector {
    name: String,
    keys: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// Every key that a vector may have.
const KEYS: [&str; 20] = [
    "comment",
    "kind",
    "expect",
    "hash",
    "root",
    "vault-id",
    "cipher",
    "passphrase",
    "keyfile",
    "recovery",
    "footer-offset",
    "frame",
    "id",
    "block",
    "last",
    "codec",
    "plain-len",
    "opened",
    "origin",
    "key",
];

impl Vector {
    fn load(path: &Path) -> Self {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = std::fs::read(path).unwrap();
        let mut keys = BTreeMap::new();
        let mut rest = &bytes[..];
        loop {
            let end =
                rest.iter().position(|b| *b == b'\n').unwrap_or_else(|| panic!("{name}: no empty line"));
            let (line, tail) = (std::str::from_utf8(&rest[..end]).unwrap(), &rest[end + 1..]);
            rest = tail;
            if line.is_empty() {
                break;
            }
            let (key, value) = line.split_once(": ").unwrap_or_else(|| panic!("{name}: {line}"));
            assert!(KEYS.contains(&key), "{name}: unknown key {key}");
            assert!(keys.insert(key.to_owned(), value.to_owned()).is_none(), "{name}: {key} repeats");
        }
        let vector = Vector { name, keys, body: rest.to_vec() };
        assert_eq!(vector.get("hash"), blake3::hash(rest).to_hex().as_str(), "{}", vector.name);
        vector
    }

    fn find(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    fn get(&self, key: &str) -> &str {
        self.find(key).unwrap_or_else(|| panic!("{}: no {key}", self.name))
    }

    fn number(&self, key: &str) -> u64 {
        self.get(key).parse().unwrap()
    }

    fn hex(&self, key: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(self.get(key).as_bytes()).unwrap()
    }

    fn root(&self) -> RootSecret {
        RootSecret::from_slice(&self.hex("root")).unwrap()
    }

    /// Returns the keys of the vault that `root`, `vault-id` and `cipher` describe.
    fn vault_keys(&self) -> VaultKeys {
        let cipher = Cipher::parse(self.find("cipher").unwrap_or("chacha20-poly1305")).unwrap();
        let chunker = ChunkerParams::default();
        let mut header = crypto::new_header(&TestEnv::new(0), &self.root(), cipher, chunker, String::new());
        header.vault_id = VaultId::from_hex(self.get("vault-id")).unwrap();
        VaultKeys::derive(&self.root(), &header).unwrap()
    }

    fn credential(&self) -> Option<Credential> {
        if let Some(text) = self.find("passphrase") {
            return Some(Credential::Passphrase(SecretBytes::new(text.as_bytes().to_vec())));
        }
        if self.find("keyfile").is_some() {
            return Some(Credential::Keyfile(SecretBytes::new(self.hex("keyfile"))));
        }
        self.find("recovery").map(|text| Credential::Recovery(RecoveryKey::parse(text).unwrap()))
    }
}

/// Returns the word that `expect` has for the result.
fn outcome(result: Result<(), CryptoError>) -> &'static str {
    match result {
        Ok(()) => "ok",
        Err(CryptoError::Format(FormatError::NotAVault)) => "header",
        Err(CryptoError::Format(FormatError::Newer { .. })) => "version",
        Err(CryptoError::Format(FormatError::Damaged(_)) | CryptoError::Mistyped) => "damaged",
        Err(CryptoError::Format(FormatError::Malformed(_)) | CryptoError::BadKeyMaterial(_)) => "malformed",
        Err(CryptoError::Format(FormatError::Limit(_))) => "length",
        Err(CryptoError::WrongKey(_) | CryptoError::NoSlot(_) | CryptoError::Tampered(_)) => "mac",
        Err(e @ (CryptoError::SlotsFull | CryptoError::Kdf(_) | CryptoError::Seal(_))) => panic!("{e}"),
    }
}

fn run(v: &Vector) -> Result<(), CryptoError> {
    let body = &v.body[..];
    match v.get("kind") {
        "header" => run_header(v),
        "pack-header" => {
            assert_eq!(PackHeader::parse(body)?.encode(), body);
            Ok(())
        }
        "footer" => {
            assert_eq!(Footer::parse(body, v.number("footer-offset"))?.encode(), body);
            Ok(())
        }
        "trailer" => {
            assert_eq!(Trailer::parse(body)?.encode()[..], *body);
            Ok(())
        }
        "tree" => {
            assert_eq!(TreeObject::parse(body)?.encode()?, body);
            Ok(())
        }
        "sealed-part" => {
            let origin = match v.number("origin") {
                0 => Origin::Removal,
                1 => Origin::WorkingTree,
                _ => Origin::Import,
            };
            assert_eq!(SealedPart::parse(body, origin)?.encode()?, body);
            Ok(())
        }
        "chain" => {
            let keys = v.vault_keys();
            let file: ChainFile = keys.verify_chain_file(body)?;
            assert_eq!(file.encode()?, body);
            let sealed = keys.open_sealed_part(body, &file)?;
            assert_eq!(sealed.root.is_none(), file.public.origin == Origin::Removal);
            Ok(())
        }
        "frame" => run_frame(v),
        "pack" => run_pack(v),
        "recovery-key" => {
            let text = std::str::from_utf8(body).unwrap();
            let key = RecoveryKey::parse(text)?;
            // A key shows its bytes only as text: compare with the key that the vector names, written by
            // hand.
            assert_eq!(recovery_bytes(&key.to_text()), v.hex("key"), "{}", v.name);
            Ok(())
        }
        kind => panic!("{}: unknown kind {kind}", v.name),
    }
}

fn run_header(v: &Vector) -> Result<(), CryptoError> {
    let parsed = Header::parse(&v.body)?;
    assert_eq!(parsed.header.encode(|_| parsed.mac), v.body);
    match v.credential() {
        Some(cred) => {
            let (root, _) = unlock(&parsed, &cred)?;
            // Two root secrets are equal if what they derive is.
            assert_eq!(header_mac(&root, b"same"), header_mac(&v.root(), b"same"), "{}", v.name);
        }
        None if v.find("root").is_some() => {
            if header_mac(&v.root(), &parsed.mac_input) != parsed.mac {
                return Err(CryptoError::Tampered("mac"));
            }
            VaultKeys::derive(&v.root(), &parsed.header)?;
        }
        None => {}
    }
    Ok(())
}

fn codec_of(n: u64) -> Codec {
    match n {
        0 => Codec::Raw,
        1 => Codec::Lz4,
        _ => Codec::Zstd,
    }
}

fn run_frame(v: &Vector) -> Result<(), CryptoError> {
    let (header, frame) = v.body.split_at(PACK_HEADER_LEN);
    let key = v.vault_keys().open_pack(&PackHeader::parse(header)?)?;
    let mut buf = frame.to_vec();
    let len = key.open_frame(
        v.number("frame"),
        &ChunkId::from_hex(v.get("id")).unwrap(),
        v.number("block") as u32,
        v.number("last") == 1,
        codec_of(v.number("codec")),
        v.number("plain-len") as u32,
        &mut buf,
    )?;
    assert_eq!(blake3::hash(&buf[..len]).to_hex().as_str(), v.get("opened"), "{}", v.name);
    Ok(())
}

/// Reads a whole pack as a checker does.
fn run_pack(v: &Vector) -> Result<(), CryptoError> {
    const SHORT: FormatError = FormatError::Malformed("a pack is shorter than header and trailer");
    let keys = v.vault_keys();
    let file = &v.body[..];
    let header = PackHeader::parse(file.get(..PACK_HEADER_LEN).ok_or(SHORT)?)?;
    let key = keys.open_pack(&header)?;
    let (_, end) = file.split_last_chunk::<TRAILER_LEN>().ok_or(SHORT)?;
    let trailer = key.open_trailer(end)?;
    trailer.check_file_len(file.len() as u64)?;
    let (at, len) = (trailer.footer_offset as usize, trailer.footer_len as usize);
    let footer = Footer::parse(&key.open_footer(&file[at..at + len])?, trailer.footer_offset)?;
    assert_eq!(len, FOOTER_SEAL_LEN + footer.encode().len());
    for chunk in &footer.chunks {
        let plain = read_chunk(&key, file, chunk)?;
        if keys.chunk_id(header.kind, &plain) != chunk.id {
            return Err(FormatError::Damaged("PACK-5").into());
        }
    }
    let padding = &file[trailer.padding_offset() as usize..][..trailer.padding_len() as usize];
    if key.padding(padding.len()) != padding {
        return Err(FormatError::Malformed("PACK-1: padding").into());
    }
    Ok(())
}

fn read_chunk(key: &crypto::PackKey, file: &[u8], chunk: &ChunkDesc) -> Result<Vec<u8>, CryptoError> {
    let mut plain = Vec::new();
    let mut at = chunk.offset as usize;
    for (i, block) in (0u32..).zip(&chunk.blocks) {
        let sealed_len = block.body_len as usize + FRAME_TAG_LEN;
        let mut frame = file[at..at + sealed_len].to_vec();
        at += sealed_len;
        let last = i as usize + 1 == chunk.blocks.len();
        let plain_len = block_plain_len(chunk.plain_len, i);
        let number = u64::from(chunk.first_frame + i);
        let len = key.open_frame(number, &chunk.id, i, last, block.codec, plain_len, &mut frame)?;
        let start = plain.len();
        plain.resize(start + plain_len as usize, 0);
        codec::decode(block.codec, &frame[..len], &mut plain[start..])
            .map_err(|_| FormatError::Malformed("PACK-4: decompression"))?;
    }
    Ok(plain)
}

/// Decodes the first 32 bytes of a recovery key's text, without the library.
fn recovery_bytes(text: &str) -> Vec<u8> {
    const ALPHABET: &str = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let bits = text[4..].chars().filter(|c| *c != '-').flat_map(|c| {
        let value = ALPHABET.find(c).unwrap();
        (0..5).rev().map(move |bit| (value >> bit & 1) as u8)
    });
    let bits: Vec<u8> = bits.collect();
    bits.chunks(8).take(32).map(|byte| byte.iter().fold(0, |n, bit| n << 1 | bit)).collect()
}

fn all() -> Vec<Vector> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "vec")).collect();
    paths.sort();
    paths.iter().map(|path| Vector::load(path)).collect()
}

#[test]
fn every_vector_has_its_outcome() {
    let mut wrong = Vec::new();
    for vector in all() {
        let result = run(&vector);
        let message = format!("{result:?}");
        let (got, want) = (outcome(result), vector.get("expect"));
        if got != want {
            wrong.push(format!("{}: expected {want}, got {got}: {message}", vector.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_vectors_cover_every_kind_and_outcome() {
    let vectors = all();
    let count = |key: &str, value: &str| vectors.iter().filter(|v| v.get(key) == value).count();
    for kind in [
        "header",
        "pack-header",
        "footer",
        "trailer",
        "frame",
        "pack",
        "tree",
        "chain",
        "sealed-part",
        "recovery-key",
    ] {
        assert!(count("kind", kind) >= 3, "{kind}");
    }
    for expect in ["header", "version", "damaged", "malformed", "mac", "length"] {
        assert!(count("expect", expect) >= 1, "{expect}");
    }
    let good = count("expect", "ok");
    assert!(vectors.len() >= 40 && good >= 10 && vectors.len() > 2 * good, "{good} of {}", vectors.len());
}

#[test]
fn a_vector_is_a_seed_as_it_is() {
    for vector in all() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(&vector.name);
        assert_eq!(fuzz::vector_body(&std::fs::read(path).unwrap()), vector.body);
    }
    assert_eq!(fuzz::vector_body(b"anything"), b"anything");
    assert_eq!(fuzz::vector_body(b"comment: no body"), b"comment: no body");
}
