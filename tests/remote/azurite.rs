//! Azurite, Microsoft's own emulator of Azure Storage, on loopback.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use aws_lc_rs::hmac;
use data_encoding::BASE64;

use super::service::{Service, tool};

pub const ACCOUNT: &str = "backups";
pub const CONTAINER: &str = "box";
/// 32 bytes.
pub const KEY: &str = "c3Ryb25ncm9vbS1zdHJvbmdyb29tLXN0cm9uZ3Jvb20=";

/// A running server with a container; it ends with this value.
pub struct Azurite {
    pub port: u16,
    pub dir: tempfile::TempDir,
    _service: Service,
}

impl Azurite {
    pub fn start() -> Self {
        let program = tool("azurite/node_modules/.bin/azurite-blob");
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start("azurite", dir.path(), |port| {
            let mut command = Command::new(&program);
            command
                .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--inMemoryPersistence"])
                .args(["--skipApiVersionCheck", "--disableTelemetry", "--silent"])
                .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{KEY}"))
                .current_dir(dir.path());
            command
        });
        let azurite = Self { port: service.port, dir, _service: service };
        azurite.make_container();
        azurite
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
