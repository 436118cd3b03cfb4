//! Starting servers that other people wrote, each on a port of loopback that was free.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::wait_until;

/// A running server; it ends with this value.
pub struct Service {
    child: Child,
    pub port: u16,
}

impl Service {
    /// Starts a server that `command` makes for a port. What it says goes to a file `log` in `dir`.
    pub fn start(name: &str, dir: &Path, command: impl Fn(u16) -> Command) -> Self {
        let log = dir.join("log");
        // The port may be taken between finding and using it: then another one is tried.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().port();
            let said = File::options().create(true).append(true).open(&log).unwrap();
            let mut child = command(port)
                .stdin(Stdio::null())
                .stdout(said.try_clone().unwrap())
                .stderr(said)
                .spawn()
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut ended = false;
            wait_until(&format!("{name} to listen"), || {
                ended = child.try_wait().unwrap().is_some();
                ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !ended {
                return Self { child, port };
            }
        }
        panic!("{name} does not start: {}", std::fs::read_to_string(log).unwrap_or_default());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A program that `./contrib/test tools` installs.
pub fn tool(path: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools").join(path);
    assert!(program.exists(), "{} is missing: `./contrib/test tools` installs it", program.display());
    program
}
