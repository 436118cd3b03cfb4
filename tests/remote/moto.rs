//! The same suite against moto, an S3 server that we did not write.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;

use strongroom::remote::{self, Remote, Settings, Verdict};

use super::service::{Service, tool};
use super::{conforms_but, key, names, once, pattern, private_file, put};
use crate::ship::{World, fetch, files};

pub const BUCKET: &str = "backups";
/// Moto looks at no signature, only for the region in it.
const AUTHORIZATION: &str =
    "AWS4-HMAC-SHA256 Credential=moto/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// A running server; it ends with this value.
pub struct Moto {
    port: u16,
    dir: tempfile::TempDir,
    _service: Service,
}

impl Moto {
    pub fn start() -> Self {
        let program = tool("moto/bin/moto_server");
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start("moto", dir.path(), |port| {
            let mut command = Command::new(&program);
            command
                .args(["-H", "127.0.0.1", "-p", &port.to_string()])
                .env("MOTO_S3_DEFAULT_KEY_BUFFER_SIZE", "67108864");
            command
        });
        let moto = Self { port: service.port, dir, _service: service };
        moto.make_bucket();
        moto
    }

    /// Places are never made by the program under test.
    fn make_bucket(&self) {
        assert_eq!(self.http("PUT", BUCKET, &[], b"").0, 200);
    }

    pub fn make_bucket_with_object_lock(&self, name: &str) {
        let lock = ("x-amz-bucket-object-lock-enabled", "true");
        assert_eq!(self.http("PUT", name, &[lock], b"").0, 200);
    }

    /// What anybody can do there, behind our back: the status, and all of the answer.
    pub fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut request =
            format!("{method} /{path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n", self.port);
        let len = body.len().to_string();
        let ours = [("Content-Length", len.as_str()), ("Authorization", AUTHORIZATION)];
        for (name, value) in ours.iter().chain(headers) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        socket.write_all(&[request.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        (status.unwrap_or_else(|| panic!("{method} {path}: {answer}")), answer)
    }

    /// A header of an object's newest version.
    pub fn header(&self, path: &str, name: &str) -> Option<String> {
        let (status, answer) = self.http("HEAD", path, &[], b"");
        assert_eq!(status, 200, "{path}: {answer}");
        let mut lines = answer.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_string())
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn settings(&self) -> Settings {
        let path = self.dir.path().join("credentials");
        private_file(&path, "[default]\naws_access_key_id = moto\naws_secret_access_key = moto\n");
        Settings {
            url: format!("s3://{BUCKET}/some/vault"),
            endpoint: Some(self.endpoint()),
            region: Some("us-east-1".into()),
            credentials_file: Some(path),
            path_style: true,
            ..Settings::default()
        }
    }

    pub fn open(&self) -> Arc<dyn Remote> {
        remote::open(&self.settings(), &once()).unwrap()
    }
}

/// Moto neither checks nor keeps SHA-256: what is sent is compared by its MD5, and what was rotten is refused by us. Its answer
/// about versions has another name than the protocol says, and is not guessed at.
#[test]
fn moto_conforms_but_for_checksums() {
    let moto = Moto::start();
    let remote = moto.open();
    conforms_but(&remote, 1010, false);
    let probe = remote::probe(remote.as_ref()).unwrap();
    let verdict = |name: &str| probe.checks.iter().find(|check| check.name == name).unwrap().verdict;
    let said = ["create-only", "conditional-create", "checksums", "versioning", "object-lock"].map(verdict);
    assert_eq!(said, [Verdict::Yes, Verdict::Yes, Verdict::No, Verdict::Unknown, Verdict::No], "{probe:?}");
    assert_eq!(remote.head(&key("vault.json")).unwrap().checksum, None);
}

#[test]
fn a_vault_goes_to_moto_and_comes_back() {
    let (world, moto) = (World::new(), Moto::start());
    world.snapshot("one", &pattern(2 << 20, 1));
    world.snapshot("two", b"2");
    let settings = moto.settings();
    let file = settings.credentials_file.as_ref().unwrap().to_str().unwrap();
    let endpoint = settings.endpoint.as_deref().unwrap();
    let add = ["remote", "add", world.vault(), "moto", &settings.url, "--endpoint", endpoint, "--path-style"];
    world.cli(&[&add[..], &["--region", "us-east-1", "--credentials-file", file]].concat()).ok();
    let ship = |world: &World| world.cli(&["ship", world.vault(), "--to", "moto", "--verify", "--json"]);
    let first = ship(&world).json();
    assert_eq!((&first["chain_files"], &first["newest"]), (&2.into(), &2.into()), "{first}");
    assert_eq!(first["verified"]["by_reading"], first["verified"]["objects"], "{first}");
    world.snapshot("three", b"3");
    let second = ship(&world).json();
    assert_eq!((&second["chain_files"], &second["headers"]), (&1.into(), &0.into()), "{second}");
    fetch(moto.open().as_ref(), &world.sandbox.path("fetched"));
    assert_eq!(files(&world.sandbox.path("fetched")), files(&world.sandbox.vault()));
    world.restores(&world.sandbox.path("fetched"));
    // Somebody with more rights replaces a pack by one of the same length.
    let remote = moto.open();
    let pack = names(remote.as_ref(), "packs/").remove(0);
    let mut bytes = remote::read(remote.as_ref(), &key(&pack), 1 << 30).unwrap();
    bytes[100] ^= 1;
    remote.delete(&key(&pack)).unwrap();
    put(remote.as_ref(), &pack, &bytes).unwrap();
    let said = ship(&world);
    assert!(said.code == 25 && said.stdout.contains(&format!("{pack}: other bytes")), "{said:?}");
}
