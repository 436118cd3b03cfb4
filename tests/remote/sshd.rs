//! A real OpenSSH server on loopback, with keys, a port and a configuration of its own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A running server; it ends with this value.
#[derive(Debug)]
pub struct Sshd {
    child: Child,
    port: u16,
    dir: PathBuf,
}

fn keygen(path: &Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .status()
        .expect("ssh-keygen (Debian: openssh-client)");
    assert!(made.success());
}

fn user() -> String {
    let id = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8(id.stdout).expect("a name").trim().to_string()
}

impl Sshd {
    /// Starts a server whose files are in `dir`. `extra`: lines of its configuration.
    pub fn start(dir: &Path, extra: &str) -> Self {
        fs::create_dir_all(dir).expect("directory");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).expect("chmod");
        keygen(&dir.join("host_key"));
        keygen(&dir.join("user_key"));
        fs::copy(dir.join("user_key.pub"), dir.join("authorized_keys")).expect("copy");
        let server = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"];
        let program = server.into_iter().find(|path| Path::new(path).exists());
        let program = program.expect("sshd is needed by this test (Debian: openssh-server)");
        // As root, sshd wants this directory; a package's service makes it.
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").expect("/run/sshd");
        }
        // The port may be taken between finding and using it: then another one is tried.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
            let config = format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host_key\nPidFile none\nAuthorizedKeysFile {0}/authorized_keys\n\
                 PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n\
                 MaxStartups 100\nSubsystem sftp internal-sftp\n{extra}\n",
                dir.display()
            );
            fs::write(dir.join("sshd_config"), config).expect("write");
            let log = fs::File::create(dir.join("log")).expect("log");
            let mut child = Command::new(program)
                .args(["-D", "-e", "-f"])
                .arg(dir.join("sshd_config"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("sshd");
            let end = Instant::now() + Duration::from_secs(60);
            while Instant::now() < end && child.try_wait().expect("wait").is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    let sshd = Self { child, port, dir: dir.to_path_buf() };
                    sshd.write_known_hosts("host_key.pub");
                    return sshd;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(child.kill());
            child.wait().expect("wait");
        }
        panic!("sshd does not start: {}", fs::read_to_string(dir.join("log")).unwrap_or_default());
    }

    /// Writes the known_hosts file with the key in this file.
    pub fn write_known_hosts(&self, public_key: &str) {
        let key = fs::read_to_string(self.dir.join(public_key)).expect("key");
        fs::write(self.known_hosts(), format!("[127.0.0.1]:{} {key}", self.port)).expect("write");
    }

    /// The processes of its connections, and what those started.
    pub fn sessions(&self) -> Vec<i32> {
        let parents: Vec<(i32, i32)> = fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
                // Behind the name, in which anything may stand: the state and the parent.
                let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
                Some((pid, parent))
            })
            .collect();
        let mut found = vec![i32::try_from(self.child.id()).expect("pid")];
        let mut at = 0;
        while at < found.len() {
            let of = found[at];
            found.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
            at += 1;
        }
        found.remove(0);
        found
    }

    /// Stops the processes of its connections: they stay open, and nothing comes any more. New ones are served.
    pub fn stop_sessions(&self) {
        signal_all(&self.sessions(), Signal::STOP);
    }

    /// Stops everything: new connections are taken by the kernel alone.
    pub fn stop(&self) {
        signal_all(&[i32::try_from(self.child.id()).expect("pid")], Signal::STOP);
        self.stop_sessions();
    }

    /// Goes on after [`Sshd::stop`] or [`Sshd::stop_sessions`].
    pub fn resume(&self) {
        signal_all(&[i32::try_from(self.child.id()).expect("pid")], Signal::CONT);
        signal_all(&self.sessions(), Signal::CONT);
    }

    /// The `ssh` processes that are connected to it, or want to be.
    pub fn clients(&self) -> Vec<i32> {
        let port = self.port.to_string();
        let ours = |entry: fs::DirEntry| {
            let args = fs::read(entry.path().join("cmdline")).ok()?;
            let args: Vec<&[u8]> = args.split(|b| *b == 0).collect();
            let is_ours = args.first() == Some(&&b"ssh"[..]) && args.contains(&port.as_bytes());
            entry.file_name().to_str().filter(|_| is_ours)?.parse().ok()
        };
        fs::read_dir("/proc").expect("/proc").flatten().filter_map(ours).collect()
    }

    pub fn url(&self, path: &Path) -> String {
        format!("sftp://{}@127.0.0.1:{}{}", user(), self.port, path.display())
    }

    pub fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }

    pub fn identity(&self) -> PathBuf {
        self.dir.join("user_key")
    }

    pub fn make_key(&self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        keygen(&path);
        path
    }
}

/// Signals processes, of which some may have ended.
fn signal_all(pids: &[i32], signal: Signal) {
    for pid in pids {
        let done = kill_process(Pid::from_raw(*pid).expect("pid"), signal);
        assert!(matches!(done, Ok(()) | Err(rustix::io::Errno::SRCH)), "{done:?}");
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // Those that were stopped would stay for ever.
        signal_all(&self.sessions(), Signal::KILL);
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
