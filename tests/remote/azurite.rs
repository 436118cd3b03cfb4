//! Azurite, Microsoft's own emulator of Azure Storage, on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use aws_lc_rs::hmac;
use data_encoding::BASE64;

use crate::common::wait_until;

pub const ACCOUNT: &str = "backups";
pub const CONTAINER: &str = "box";
/// 32 bytes.
pub const KEY: &str = "c3Ryb25ncm9vbS1zdHJvbmdyb29tLXN0cm9uZ3Jvb20=";

/// A running server with a container; it ends with this value.
pub struct Azurite {
    child: Child,
    pub port: u16,
    pub dir: tempfile::TempDir,
}

impl Azurite {
    pub fn start() -> Self {
        let program =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/azurite/node_modules/.bin/azurite-blob");
        assert!(program.exists(), "{} is missing: `./contrib/test tools` installs it", program.display());
        let dir = tempfile::tempdir().unwrap();
        // The port may be taken between finding and using it: then another one is tried.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().port();
            let log = std::fs::File::create(dir.path().join("log")).unwrap();
            let mut child = Command::new(&program)
                .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--inMemoryPersistence"])
                .args(["--skipApiVersionCheck", "--disableTelemetry", "--silent"])
                .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{KEY}"))
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            let mut ended = false;
            wait_until("azurite to listen", || {
                ended = child.try_wait().unwrap().is_some();
                ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !ended {
                let azurite = Self { child, port, dir };
                azurite.make_container();
                return azurite;
            }
        }
        panic!("{}", std::fs::read_to_string(dir.path().join("log")).unwrap_or_default());
    }

    /// Places are never made by the program under test.
    fn make_container(&self) {
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let headers = format!("x-ms-date:{date}\nx-ms-version:2022-11-02\n");
        let path = format!("/{ACCOUNT}/{CONTAINER}");
        // Eleven standard headers that are not there.
        let to_sign = format!("PUT\n{}{headers}/{ACCOUNT}{path}\nrestype:container", "\n".repeat(11));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &BASE64.decode(KEY.as_bytes()).unwrap());
        let signature = BASE64.encode(hmac::sign(&key, to_sign.as_bytes()).as_ref());
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = format!(
            "PUT {path}?restype=container HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: 0\r\nConnection: close\r\n\
             x-ms-date: {date}\r\nx-ms-version: 2022-11-02\r\nAuthorization: SharedKey {ACCOUNT}:{signature}\r\n\r\n",
            self.port
        );
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.lines().next().unwrap().contains(" 201 "), "{answer}");
    }

    /// A path for a file that tests make.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
