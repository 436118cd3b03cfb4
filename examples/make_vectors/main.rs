//! Writes the golden vectors of format 1 into `tests/vectors`: `cargo run --example make_vectors`.
//!
//! Everything is drawn from a fixed seed, so a second run writes nothing. A vector that exists and would come
//! out differently is an error: the format of existing vaults does not change. What is expected of each
//! vector is written down here by hand, it is not asked of the library.

mod chains;
mod headers;
mod packs;
mod trees;

use std::error::Error;
use std::path::{Path, PathBuf};

use strongroom::crypto::{RecoveryKey, RootSecret, VaultKeys, new_header};
use strongroom::env::{Env, TestEnv};
use strongroom::format::{ChunkId, ChunkerParams, Cipher, Header, VaultId};

type Outcome = Result<(), Box<dyn Error>>;

const CREATED: &str = "2026-11-21T02:00:00Z";
const ROOT: [u8; 32] = [0x52; 32];
const VAULT: VaultId = VaultId([0x56; 16]);

fn main() -> Outcome {
    let out = Out { dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors") };
    headers::headers(&out)?;
    packs::pack_headers(&out)?;
    packs::footers(&out)?;
    packs::trailers(&out)?;
    packs::frames(&out)?;
    packs::packs(&out)?;
    trees::trees(&out)?;
    chains::sealed_parts(&out)?;
    chains::chains(&out)?;
    recovery_keys(&out)
}

/// Where vectors are written.
struct Out {
    dir: PathBuf,
}

impl Out {
    /// Writes one vector: `name`, `expect`, `comment`, further keys, body.
    fn put(&self, name: &str, expect: &str, comment: &str, keys: &[(&str, String)], body: &[u8]) -> Outcome {
        let kind = KINDS.iter().find(|kind| name.starts_with(*kind)).ok_or("a name begins with its kind")?;
        let mut file = format!("comment: {comment}\nkind: {kind}\nexpect: {expect}\n");
        for (key, value) in keys {
            file += &format!("{key}: {value}\n");
        }
        file += &format!("hash: {}\n\n", blake3::hash(body).to_hex());
        let file = [file.as_bytes(), body].concat();
        let path = self.dir.join(format!("{name}.vec"));
        match std::fs::read(&path) {
            Ok(there) if there == file => Ok(()),
            Ok(_) => Err(format!("{} exists and is different", path.display()).into()),
            Err(_) => Ok(std::fs::write(&path, file)?),
        }
    }
}

/// Longer names first where one begins with another.
const KINDS: [&str; 10] = [
    "header",
    "pack-header",
    "footer",
    "trailer",
    "frame",
    "pack",
    "tree",
    "sealed-part",
    "chain",
    "recovery-key",
];

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn root() -> RootSecret {
    RootSecret::from_slice(&ROOT).expect("a root secret has 32 bytes")
}

fn chunk(n: u8) -> ChunkId {
    ChunkId([n; 32])
}

fn vault_header(cipher: Cipher) -> Header {
    let header = new_header(&TestEnv::new(1), &root(), cipher, ChunkerParams::default(), CREATED.to_owned());
    Header { vault_id: VAULT, generation: 1, ..header }
}

fn vault_keys(cipher: Cipher) -> Result<VaultKeys, Box<dyn Error>> {
    Ok(VaultKeys::derive(&root(), &vault_header(cipher))?)
}

fn vault_params(cipher: Cipher) -> Vec<(&'static str, String)> {
    vec![("root", hex(&ROOT)), ("vault-id", VAULT.to_hex()), ("cipher", cipher.as_str().to_owned())]
}

// Recovery keys

fn recovery_keys(out: &Out) -> Outcome {
    // 32 bytes of 0x5a and their check digits.
    let env = TestEnv::new(50);
    let mut bytes = [0; 32];
    env.random(&mut bytes);
    // The library draws the same bytes from the same seed.
    let good = RecoveryKey::generate(&TestEnv::new(50)).to_text().to_string();
    let key = [("key", hex(&bytes))];
    let put = |name: &str, expect: &str, comment: &str, text: &str| {
        let keys = if expect == "ok" { &key[..] } else { &[] };
        out.put(&format!("recovery-key-{name}"), expect, comment, keys, text.as_bytes())
    };
    put("ok", "ok", "as it is printed", &good)?;
    put("ok-lower", "ok", "lower case, spaces", &good.to_lowercase().replace('-', " "))?;
    put(
        "ok-look-alikes",
        "ok",
        "O for 0, l and I for 1",
        &good.replace('0', "O").replacen('1', "l", 1).replace('1', "I"),
    )?;
    put("ok-packed", "ok", "without dashes", &good.replace('-', ""))?;
    let last = if good.ends_with('0') { "2" } else { "0" };
    put("mistyped-last", "damaged", "a wrong check digit", &format!("{}{last}", &good[..good.len() - 1]))?;
    let first = if good[4..].starts_with('0') { "2" } else { "0" };
    put(
        "mistyped-first",
        "damaged",
        "a wrong first character",
        &format!("{}{first}{}", &good[..4], &good[5..]),
    )?;
    let mut groups: Vec<&str> = good.split('-').collect();
    groups.swap(3, 4);
    put("swapped-groups", "damaged", "two groups in the wrong order", &groups.join("-"))?;
    put("short", "malformed", "a character is missing", &good[..good.len() - 1])?;
    put("long", "malformed", "a character too many", &format!("{good}0"))?;
    put("letter-u", "malformed", "U is no symbol", &format!("{}U{}", &good[..8], &good[9..]))?;
    put("prefix", "malformed", "another prefix", &good.replacen("SR1", "SR2", 1))?;
    put("no-prefix", "malformed", "no prefix", &good[4..])
}
