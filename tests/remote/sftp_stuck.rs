//! SFTP servers that stop in the middle, or trickle, and an ssh that leaves something behind: every wait ends, nothing is
//! left over, and what is tried again succeeds.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use strongroom::remote::{
    self, Checksum, ErrorKind, Fault, FaultyRemote, Op, OpenOptions, Put, Remote, RemoteError, Settings,
    Source, Times,
};
use strongroom::ship::ShipError;

use super::sftp::{World, flags, settings};
use super::sshd::Sshd;
use super::{key, once, patient, pattern, put};
use crate::common::{process_is_gone, signal, wait_until};
use crate::ship::{World as Vault, ship_to};

/// Little patience, and one try.
fn hasty() -> OpenOptions {
    OpenOptions { times: hasty_times(), ..once() }
}

fn hasty_times() -> Times {
    Times { answer: Duration::from_secs(2), ..Times::default() }
}

/// A server where everything that it says comes a byte at a time, while a file is there.
fn trickling(dir: &std::path::Path) -> (Arc<Sshd>, std::path::PathBuf) {
    let known =
        ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"];
    let program = known.into_iter().find(|path| std::path::Path::new(path).exists());
    let program = program.expect("sftp-server is needed by this test (Debian: openssh-sftp-server)");
    let (script, slow) = (dir.join("trickle.sh"), dir.join("slow"));
    let perl = "while ((sysread(STDIN, $b, 65536) // 0) > 0) { for my $c (-e $ARGV[0] ? split(//, $b) : ($b)) \
                { syswrite(STDOUT, $c) // exit; select(undef, undef, undef, 0.05) if -e $ARGV[0]; } }";
    fs::write(&script, format!("{program} | perl -e '{perl}' {}\n", slow.display())).unwrap();
    let extra = format!("ForceCommand /bin/sh {}", script.display());
    (Arc::new(Sshd::start(&dir.join("sshd"), &extra)), slow)
}

/// A source at whose second MiB everything stops.
#[derive(Debug)]
struct Stopping {
    bytes: Vec<u8>,
    sshd: Arc<Sshd>,
    /// The ssh processes of that moment.
    clients: Arc<std::sync::Mutex<Vec<i32>>>,
}

impl Source for Stopping {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        let mut clients = self.clients.lock().unwrap();
        if off >= 1 << 20 && clients.is_empty() {
            self.sshd.stop();
            *clients = self.sshd.clients();
        }
        let rest = &self.bytes[usize::try_from(off).unwrap()..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

#[test]
fn a_server_that_stops_in_the_middle_of_a_put_or_a_get_is_given_up() {
    let world = World::new("");
    let bytes = pattern(6 << 20, 1);
    put(world.open().as_ref(), "there", &bytes).unwrap();
    let timed_out = |error: RemoteError| {
        assert_eq!(error.kind, ErrorKind::Timeout, "{error}");
        assert!(error.message.contains("the SFTP server"), "{error}");
    };
    let remote = remote::open(&world.settings, &hasty()).unwrap();
    let clients = Arc::default();
    let source =
        Stopping { bytes: bytes.clone(), sshd: Arc::clone(&world.sshd), clients: Arc::clone(&clients) };
    let body: Arc<dyn Source> = Arc::new(source);
    let (name, checksum) = (key("packs/aa/new"), Checksum::of(&bytes));
    // A machine that is too busy to log in within two seconds has not come to the middle yet.
    while clients.lock().unwrap().is_empty() {
        timed_out(remote.put_if_absent(&name, &body, &checksum).unwrap_err());
    }
    for pid in clients.lock().unwrap().drain(..) {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "ssh was ended, and reaped");
    }
    // What waits for a new connection ends as well.
    timed_out(remote.get(&key("there"), 0..1).unwrap_err());
    world.sshd.resume();
    assert_eq!(put(world.open().as_ref(), "packs/aa/new", &bytes).unwrap(), Put::Created);
    // In the middle of reading: a connection is there already.
    wait_until("a connection", || remote.get(&key("there"), 0..1).is_ok());
    world.sshd.stop_sessions();
    timed_out(remote.get(&key("there"), 0..bytes.len() as u64).unwrap_err());
    // The next one is new, and is served.
    wait_until("a connection", || remote.get(&key("there"), 0..1).is_ok());
}

/// A vault that is shipped, and its server.
fn shipped() -> (Vault, Arc<Sshd>, Settings) {
    let vault = Vault::new();
    for n in 0..4 {
        vault.snapshot("file", &pattern(2 << 20, n));
    }
    let sshd = Arc::new(Sshd::start(&vault.sandbox.path("sshd"), ""));
    fs::create_dir(vault.sandbox.path("there")).unwrap();
    let settings = settings(&sshd, &vault.sandbox.path("there"));
    (vault, sshd, settings)
}

/// Does something, once, before the third pack is sent. Returns as well whether it did.
fn at_third_pack(
    remote: Arc<dyn Remote>,
    act: impl Fn() + Send + Sync + 'static,
) -> (Arc<dyn Remote>, Arc<AtomicBool>) {
    let (done, packs) = (Arc::new(AtomicBool::new(false)), AtomicU32::new(0));
    let seen = Arc::clone(&done);
    let watched = FaultyRemote::new(remote, move |_, op, key| -> Option<Fault> {
        let is_pack = op == Op::Put && key.starts_with("packs/");
        if is_pack && packs.fetch_add(1, Ordering::SeqCst) == 2 {
            act();
            seen.store(true, Ordering::SeqCst);
        }
        None
    });
    (Arc::new(watched), done)
}

#[test]
fn a_ship_whose_server_stops_ends_and_the_next_one_completes() {
    let (vault, sshd, settings) = shipped();
    let server = Arc::clone(&sshd);
    let remote = remote::open(&settings, &hasty()).unwrap();
    let (remote, stopped) = at_third_pack(remote, move || server.stop());
    let error = loop {
        let ended = ship_to(&vault.disk(), &remote, None);
        if stopped.load(Ordering::SeqCst) {
            break ended.unwrap_err();
        }
    };
    assert!(matches!(&error, ShipError::Remote(e) if e.kind == ErrorKind::Timeout), "{error}");
    sshd.resume();
    ship_to(&vault.disk(), &remote::open(&settings, &once()).unwrap(), None).unwrap();
    vault.restores(&vault.sandbox.path("there"));
}

/// Only the connections stop, as behind a router that forgot them: the same ship goes on over new ones.
#[test]
fn a_ship_whose_connections_stop_makes_new_ones() {
    let (vault, sshd, settings) = shipped();
    let server = Arc::clone(&sshd);
    let remote = remote::open(&settings, &OpenOptions { times: hasty_times(), ..patient() }).unwrap();
    let (remote, stopped) = at_third_pack(remote, move || server.stop_sessions());
    ship_to(&vault.disk(), &remote, None).unwrap();
    assert!(stopped.load(Ordering::SeqCst));
    vault.restores(&vault.sandbox.path("there"));
}

/// From the command line: how long nothing may come is what `--remote-timeout` says.
#[test]
fn reading_from_a_server_that_stopped_or_trickles_ends_in_the_time_that_was_given() {
    let vault = Vault::new();
    vault.snapshot("file", b"content");
    let (sshd, slow) = trickling(&vault.sandbox.path(""));
    fs::create_dir(vault.sandbox.path("there")).unwrap();
    let settings = settings(&sshd, &vault.sandbox.path("there"));
    let remote = remote::open(&settings, &once()).unwrap();
    ship_to(&vault.disk(), &remote, None).unwrap();
    let (flags, identity) = (flags(&settings), sshd.identity());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let target = vault.at("latest", "");
    let list = |more: &[&str]| {
        let from = ["ls", "--from", &settings.url, &target, "--identity-file", identity.to_str().unwrap()];
        vault.sandbox.keyed(&[&from[..], &flags, more].concat())
    };
    let before = list(&[]).ok();
    assert!(before.contains("file"), "{before}");
    let given_up = |more: &[&str]| {
        let said = list(more).fails(24);
        assert!(said.contains("--remote-timeout waits longer"), "{said}");
    };
    sshd.stop();
    given_up(&["--remote-timeout", "2s"]);
    sshd.resume();
    // Not a second without a byte.
    fs::write(&slow, "").unwrap();
    given_up(&["--remote-timeout", "2s"]);
    let hasty = remote::open(&settings, &hasty()).unwrap();
    let error = hasty.get(&key("vault.json"), 0..10).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout, "{error}");
    fs::remove_file(slow).unwrap();
    assert_eq!(list(&[]).ok(), before);
}

/// Who keeps ssh's standard error open is not waited for.
#[test]
fn a_proxy_command_that_leaves_something_behind_holds_nothing_up() {
    let world = World::new("");
    let (proxy, pid, config) =
        (world.dir.path().join("proxy.sh"), world.dir.path().join("pid"), world.dir.path().join("config"));
    let script =
        format!("sleep 600 </dev/null >/dev/null &\necho $! > {}\necho no way >&2\nexit 1\n", pid.display());
    fs::write(&proxy, script).unwrap();
    fs::write(&config, format!("Host *\n  ProxyCommand /bin/sh {}\n", proxy.display())).unwrap();
    let settings = Settings { ssh_config: Some(config), ..world.settings.clone() };
    let error = put(remote::open(&settings, &once()).unwrap().as_ref(), "x", b"x").unwrap_err();
    let left: i32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    assert!(!process_is_gone(left), "it still has ssh's standard error");
    signal(left, Signal::KILL);
    assert!(error.kind.is_retryable() && error.message.starts_with("ssh: "), "{error}");
    assert!(world.sshd.clients().is_empty(), "no ssh is left");
}
