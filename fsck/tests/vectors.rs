//! Runs the golden vectors of `tests/vectors`, whose README.md says what is in them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use data_encoding::HEXLOWER;
use fsck_strongroom::bytes::{Reader, hex};
use fsck_strongroom::chain::{self, ChainKind};
use fsck_strongroom::header::{self, HeaderError};
use fsck_strongroom::keys::{Keys, RecoveryError, UnlockError, recovery_key, root_secret};
use fsck_strongroom::pack::{self, FrameInfo, HEADER_BYTES, Pack, PackKeys, Unzip};
use fsck_strongroom::report::Fault;
use fsck_strongroom::{Source, Unlock, tree};

/// Fewest vectors that there must be.
const VECTORS_MIN: usize = 40;

struct Vector {
    keys: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Vector {
    fn read(bytes: &[u8]) -> Self {
        let mut keys = BTreeMap::new();
        let mut rest = bytes;
        loop {
            let end = rest.iter().position(|&b| b == b'\n').expect("a line without an end");
            let line = std::str::from_utf8(&rest[..end]).unwrap();
            rest = &rest[end + 1..];
            if line.is_empty() {
                break;
            }
            let (key, value) = line.split_once(": ").unwrap_or_else(|| (line.trim_end_matches(':'), ""));
            assert!(keys.insert(key.to_owned(), value.to_owned()).is_none(), "key {key} twice");
        }
        let vector = Self { keys, body: rest.to_vec() };
        assert_eq!(vector.text("hash"), hex(blake3::hash(&vector.body).as_bytes()), "hash of the body");
        vector
    }

    fn text(&self, key: &str) -> &str {
        self.keys.get(key).unwrap_or_else(|| panic!("no {key}"))
    }

    fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    fn number(&self, key: &str) -> u64 {
        self.text(key).parse().unwrap()
    }

    fn array<const N: usize>(&self, key: &str) -> [u8; N] {
        HEXLOWER.decode(self.text(key).as_bytes()).unwrap().try_into().unwrap()
    }

    fn root(&self) -> Keys {
        Keys::derive(&self.array("root"))
    }

    fn cipher(&self) -> u8 {
        match self.text("cipher") {
            "chacha20-poly1305" => 1,
            "aes-256-gcm" => 2,
            other => panic!("cipher {other}"),
        }
    }
}

type Outcome = Result<(), &'static str>;

fn of<T>(result: Result<T, Fault>) -> Result<T, &'static str> {
    result.map_err(|fault| fault.outcome())
}

fn run(v: &Vector) -> Outcome {
    match v.text("kind") {
        "header" => run_header(v),
        "pack-header" => of(pack::parse_header(&v.body)).map(drop),
        "footer" => of(pack::parse_footer(&v.body, v.number("footer-offset"))).map(drop),
        "trailer" => of(pack::parse_trailer(&v.body)).map(drop),
        "frame" => run_frame(v),
        "pack" => run_pack(v),
        "tree" => of(tree::parse_object(&v.body)).map(drop),
        "chain" => run_chain(v),
        "sealed-part" => {
            let kind = if v.number("origin") == 0 { ChainKind::Removal } else { ChainKind::Snapshot };
            of(chain::parse_sealed(&v.body, kind)).map(drop)
        }
        "recovery-key" => match recovery_key(std::str::from_utf8(&v.body).unwrap()) {
            Ok(key) => {
                assert_eq!(*key, v.array("key"));
                Ok(())
            }
            Err(RecoveryError::CheckDigits) => Err("damaged"),
            Err(RecoveryError::Form(_)) => Err("malformed"),
        },
        "varint" => of(Reader::new(&v.body, "vector").varint()).map(drop),
        other => panic!("unknown kind {other}"),
    }
}

fn run_header(v: &Vector) -> Outcome {
    let header = match header::parse(&v.body) {
        Ok(header) => header,
        Err(HeaderError::NotAHeader) => return Err("header"),
        Err(HeaderError::Newer(_)) => return Err("version"),
        Err(HeaderError::Bad(fault)) => return Err(fault.outcome()),
    };
    let key = if v.has("passphrase") {
        Some(Unlock::Passphrase(v.text("passphrase").as_bytes().to_vec()))
    } else if v.has("keyfile") {
        Some(Unlock::Keyfile(HEXLOWER.decode(v.text("keyfile").as_bytes()).unwrap()))
    } else if v.has("recovery") {
        Some(Unlock::Recovery(v.text("recovery").to_owned()))
    } else {
        v.has("root").then(|| Unlock::Root(v.array("root")))
    };
    let Some(key) = key else { return Ok(()) };
    let root = root_secret(&header, &key).map_err(|e| match e {
        UnlockError::NoSlot(_) | UnlockError::Wrong(_) => "mac",
        UnlockError::KeyfileLength(_) => "length",
        UnlockError::Recovery(RecoveryError::CheckDigits) => "damaged",
        UnlockError::Recovery(RecoveryError::Form(_)) => "malformed",
        UnlockError::Argon2(_) => panic!("no memory for Argon2id"),
    })?;
    assert_eq!(*root, v.array("root"));
    let keys = Keys::derive(&root);
    if header.mac_is_by(&keys.header_mac) && keys.match_header(&header) { Ok(()) } else { Err("mac") }
}

fn run_frame(v: &Vector) -> Outcome {
    let (head, frame) = v.body.split_at(HEADER_BYTES as usize);
    let keys = of(PackKeys::new(head, &v.root(), &v.array("vault-id"), v.cipher()))?;
    let codec = u8::try_from(v.number("codec")).unwrap();
    let info = FrameInfo {
        number: v.number("frame"),
        id: v.array("id"),
        block: u32::try_from(v.number("block")).unwrap(),
        last: v.number("last") == 1,
        codec,
        block_bytes: u32::try_from(v.number("plain-len")).unwrap(),
    };
    let body = keys.open_frame(&info, frame).ok_or("mac")?;
    // What is in it need not be what its codec makes: only that it opens at its place, and nowhere else.
    assert_eq!(v.text("opened"), hex(blake3::hash(&body).as_bytes()));
    Ok(())
}

/// One file, whatever it is called.
struct OneFile<'b>(&'b [u8]);

impl Source for OneFile<'_> {
    fn list(&self, _: &str) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn len(&self, _: &str) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn read(&self, _: &str, off: u64, buf: &mut [u8]) -> io::Result<usize> {
        let rest = self.0.get(off as usize..).unwrap_or(&[]);
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

fn run_pack(v: &Vector) -> Outcome {
    let source = OneFile(&v.body);
    let pack = of(Pack::open(&source, "pack", &v.root(), &v.array("vault-id"), v.cipher()))?;
    let file = source.open("pack").unwrap();
    let mut unzip = Unzip::default();
    for n in 0..pack.footer.chunks.len() {
        of(pack.read_chunk(&*file, n, &mut unzip))?;
    }
    of(pack.check_padding(&*file))
}

fn run_chain(v: &Vector) -> Outcome {
    let keys = v.root();
    let file = of(chain::open(&v.body, &v.array("vault-id"), &keys.signers, None))?;
    of(file.unseal(&keys)).map(drop)
}

#[test]
fn golden_vectors() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let mut count = 0;
    let mut wrong = Vec::new();
    let mut paths: Vec<PathBuf> = fs::read_dir(&dir)
        .expect("tests/vectors")
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "vec"))
        .collect();
    paths.sort();
    for path in paths {
        count += 1;
        let vector = Vector::read(&fs::read(&path).unwrap());
        let found = run(&vector).err().unwrap_or("ok");
        let expect = vector.text("expect");
        if found != expect {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            wrong.push(format!("{name}: {found}, not {expect}: {}", vector.text("comment")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= VECTORS_MIN, "only {count} vectors");
}
