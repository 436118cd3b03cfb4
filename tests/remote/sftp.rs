//! SFTP, against the real thing.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use strongroom::remote::{self, ErrorKind, Put, Remote, Settings};

use super::sshd::Sshd;
use super::{conforms, key, once, pattern, put};
use crate::common::Finished;
use crate::ship::World as Vault;

/// Settings for a directory of this server.
pub fn settings(sshd: &Sshd, path: &Path) -> Settings {
    Settings {
        url: sshd.url(path),
        identity_file: Some(sshd.identity()),
        known_hosts: Some(sshd.known_hosts()),
        // The user's own configuration must not matter here.
        ssh_config: Some("/dev/null".into()),
        ..Settings::default()
    }
}

/// The options that say how a server is reached, but for the user's key.
pub fn flags(settings: &Settings) -> Vec<String> {
    let file = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().to_str().unwrap().to_string();
    let known_hosts = ["--known-hosts".to_string(), file(&settings.known_hosts)];
    [known_hosts, ["--ssh-config".to_string(), file(&settings.ssh_config)]].concat()
}

/// A directory behind a server.
pub struct World {
    pub sshd: Arc<Sshd>,
    pub settings: Settings,
    pub dir: tempfile::TempDir,
}

impl World {
    pub fn new(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sshd = Sshd::start(&dir.path().join("sshd"), extra);
        let vault = dir.path().join("vault");
        fs::create_dir(&vault).unwrap();
        let settings = settings(&sshd, &vault);
        Self { sshd: Arc::new(sshd), settings, dir }
    }

    pub fn open(&self) -> Arc<dyn Remote> {
        remote::open(&self.settings, &once()).unwrap()
    }

    fn failure(&self, settings: &Settings) -> remote::RemoteError {
        assert_ne!(*settings, self.settings);
        put(remote::open(settings, &once()).unwrap().as_ref(), "x", b"x").unwrap_err()
    }
}

#[test]
fn an_sftp_server_conforms() {
    let world = World::new("");
    conforms(&world.open(), 40);
    let left = fs::read_dir(world.dir.path().join("vault/.incoming")).unwrap().count();
    assert_eq!(left, 0, "no scratch file is left");
}

#[test]
fn an_unknown_or_changed_host_key_is_refused() {
    let world = World::new("");
    fs::write(world.sshd.known_hosts(), "").unwrap();
    let error = put(world.open().as_ref(), "x", b"x").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Untrusted, "{error}");
    world.sshd.make_key("other_host");
    world.sshd.write_known_hosts("other_host.pub");
    let error = put(world.open().as_ref(), "x", b"x").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Untrusted, "{error}");
    world.sshd.write_known_hosts("host_key.pub");
    assert_eq!(put(world.open().as_ref(), "x", b"x").unwrap(), Put::Created);
}

#[test]
fn what_is_wrong_is_told_apart() {
    let world = World::new("");
    let other = world.sshd.make_key("other_user");
    let base = || world.settings.clone();
    let error = world.failure(&Settings { identity_file: Some(other), ..base() });
    assert_eq!(error.kind, ErrorKind::NoCredentials, "{error}");
    let error = world.failure(&Settings { url: world.sshd.url(&world.dir.path().join("none")), ..base() });
    assert_eq!(error.kind, ErrorKind::Misconfigured, "{error}");
    assert!(!world.dir.path().join("none").exists());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = world.failure(&Settings { url: format!("sftp://127.0.0.1:{closed}/x"), ..base() });
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
}

#[test]
fn a_read_only_account_reads_and_does_not_write() {
    let world = World::new("ForceCommand internal-sftp -R");
    fs::write(world.dir.path().join("vault/vault.json"), "header").unwrap();
    let remote = world.open();
    assert_eq!(remote::read(remote.as_ref(), &key("vault.json"), 100).unwrap(), b"header");
    assert_eq!(put(remote.as_ref(), "new", b"x").unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(remote.delete(&key("vault.json")).unwrap_err().kind, ErrorKind::Denied);
}

#[test]
fn a_host_without_sftp_is_named_as_such() {
    let world = World::new("ForceCommand /bin/false");
    let error = put(world.open().as_ref(), "x", b"x").unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Unsupported), "{error}");
}

/// A connection that ends in the middle is replaced at the next request.
#[test]
fn a_lost_connection_is_made_again() {
    let world = World::new("");
    let remote = world.open();
    put(remote.as_ref(), "one", b"one").unwrap();
    // The only ssh of this address is ours: ended by its own process id.
    let clients = world.sshd.clients();
    assert_eq!(clients.len(), 1);
    crate::common::signal(clients[0], rustix::process::Signal::KILL);
    let error = put(remote.as_ref(), "two", b"two").unwrap_err();
    assert!(error.kind.is_retryable(), "{error}");
    assert_eq!(put(remote.as_ref(), "two", b"two").unwrap(), Put::Created);
}

/// An agent with a socket of its own; it ends with this value.
struct Agent(Child);

impl Agent {
    fn start(socket: &Path) -> Self {
        let mut agent = Command::new("ssh-agent");
        agent.arg("-D").arg("-a").arg(socket).stdin(Stdio::null()).stdout(Stdio::null());
        let agent = Self(agent.spawn().expect("ssh-agent (Debian: openssh-client)"));
        crate::common::wait_until("the agent's socket", || socket.exists());
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The key is in an agent and nowhere else: no file, nothing in the settings. `ship`, `ls` and `restore` log in with it.
#[test]
fn an_agent_has_the_key() {
    let vault = Vault::new();
    vault.snapshot("one", &pattern(300_000, 1));
    let sshd = Sshd::start(&vault.sandbox.path("sshd"), "");
    let there = vault.sandbox.path("there");
    fs::create_dir(&there).unwrap();
    let settings = settings(&sshd, &there);
    let flags = flags(&settings);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let socket = vault.sandbox.path("agent");
    let agent = Agent::start(&socket);
    let mut add = vault.sandbox.command("ssh-add");
    let added =
        add.env("SSH_AUTH_SOCK", &socket).arg("-q").arg(sshd.identity()).stdin(Stdio::null()).status();
    assert!(added.unwrap().success());
    fs::remove_file(sshd.identity()).unwrap();
    vault.cli(&[&["remote", "add", vault.vault(), "nas", &settings.url][..], &flags].concat()).ok();
    let with_agent = |args: &[&str]| -> Finished {
        let mut command = vault.sandbox.strongroom();
        let output = command.env("SSH_AUTH_SOCK", &socket).args(args).stdin(Stdio::null()).output().unwrap();
        Finished {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    };
    let ship = ["ship", vault.vault(), "--to", "nas"];
    // Without it there is no key at all, which is said, with what would help, and not tried again and again.
    let said = vault.cli(&ship).fails(24);
    assert!(said.contains("Permission denied") && said.contains("SFTP: an agent"), "{said}");
    assert_eq!(fs::read_dir(&there).unwrap().count(), 0);
    with_agent(&ship).ok();
    vault.restores(&there);
    let passfile = vault.sandbox.passfile();
    let from = |verb: &str, rest: &[&str]| {
        let url = [verb, "--from", &settings.url, "--passfile", &passfile];
        with_agent(&[&url[..], &flags, rest].concat())
    };
    let listed = from("ls", &[&vault.at("latest", "")]).ok();
    assert!(listed.contains("one"), "{listed}");
    let out = vault.sandbox.path("out");
    from("restore", &[&vault.at("latest", ""), "--to", out.to_str().unwrap()]).ok();
    crate::common::assert_same_tree(&vault.sandbox.path("source"), &out);
    // An agent that is gone is no agent.
    drop(agent);
    let said = with_agent(&ship).fails(24);
    assert!(said.contains("Permission denied") && said.contains("SFTP: an agent"), "{said}");
}
