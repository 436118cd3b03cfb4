//! A real Apache with mod_dav on loopback, with a port, users and a configuration of its own.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use data_encoding::BASE64;

use super::private_file;
use super::service::Service;

pub const USER: &str = "backup";
pub const PASSWORD: &str = "correct horse: battery";

/// A running server; it ends with this value.
pub struct Apache {
    pub port: u16,
    dir: PathBuf,
    _service: Service,
    _tmp: tempfile::TempDir,
}

fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|e| panic!("{program}: {e} (Debian: apache2-bin, apache2-utils)"));
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap().trim().to_string()
}

impl Apache {
    /// Starts a server. `require`: who may do what, instead of every user everything.
    pub fn start(require: &str) -> Self {
        let require = if require.is_empty() { "Require valid-user" } else { require };
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().to_path_buf();
        // Its processes run as another user.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).unwrap();
        for name in ["dav", "dav/vault", "locks"] {
            fs::create_dir(dir.join(name)).unwrap();
            if rustix::process::geteuid().is_root() {
                let id: u32 = run("id", &["-u", "www-data"]).parse().unwrap();
                std::os::unix::fs::chown(dir.join(name), Some(id), Some(id)).unwrap();
            }
        }
        fs::write(dir.join("users"), run("htpasswd", &["-nbs", USER, PASSWORD])).unwrap();
        let modules = "/usr/lib/apache2/modules";
        let load: String = [
            "mpm_event",
            "authn_core",
            "authn_file",
            "authz_core",
            "authz_user",
            "auth_basic",
            "dav",
            "dav_fs",
        ]
        .iter()
        .map(|name| format!("LoadModule {name}_module {modules}/mod_{name}.so\n"))
        .collect();
        let service = Service::start("apache2", &dir, |port| {
            let config = format!(
                "ServerRoot {0}\nServerName 127.0.0.1\nListen 127.0.0.1:{port}\nPidFile {0}/pid\nErrorLog {0}/log\n\
                 DefaultRuntimeDir {0}\nUser www-data\nGroup www-data\n{load}\
                 DocumentRoot {0}/dav\nDavLockDB {0}/locks/db\n\
                 <Directory {0}/dav>\nDav On\nAuthType Basic\nAuthName test\nAuthUserFile {0}/users\n\
                 {require}\n</Directory>\n",
                dir.display()
            );
            fs::write(dir.join("config"), config).unwrap();
            // Debian: apache2-bin.
            let mut command = Command::new("/usr/sbin/apache2");
            command.args(["-X", "-f"]).arg(dir.join("config"));
            command
        });
        private_file(&dir.join("login"), &format!("{USER}:{PASSWORD}\n"));
        Self { port: service.port, dir, _service: service, _tmp: tmp }
    }

    /// The collection that is the vault, as Apache's disk has it.
    pub fn vault(&self) -> PathBuf {
        self.dir.join("dav/vault")
    }

    /// Scratch files and locks that are left there. Apache has a directory of its own.
    pub fn left(&self) -> Vec<std::ffi::OsString> {
        let entries = fs::read_dir(self.vault().join(".incoming")).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).filter(|name| name != ".DAV").collect()
    }

    /// A file with user and password.
    pub fn login(&self) -> PathBuf {
        self.dir.join("login")
    }

    /// A path for a file that tests make.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Sends a request of our own with the password; returns the status.
    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        use std::io::{Read, Write};
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let login = BASE64.encode(format!("{USER}:{PASSWORD}").as_bytes());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Basic {login}\r\nContent-Length: {}\r\n\
             Connection: close\r\n{headers}\r\n{body}",
            self.port,
            body.len()
        );
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }

    /// What the server complained about.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}
