//! What the end-to-end tests share: a sandbox with a vault, a mountpoint and a state directory of its own, and the real binaries.

pub mod ledger;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const PASSPHRASE: &str = "correct horse battery staple";

/// One test's world; unmounts and removes everything when dropped (unless it failed and STRONGROOM_KEEP is set).
pub struct Sandbox {
    dir: tempfile::TempDir,
    /// The vault, below the sandbox's directory.
    vault: &'static str,
}

/// A finished command: status and both outputs.
#[derive(Debug)]
#[must_use]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn new(output: &Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        Self {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts success and returns standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    /// Asserts an exit code and returns standard error.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stderr
    }

    /// Asserts success and parses standard output as JSON.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        self.fails_json(0)
    }

    /// Asserts an exit code and parses standard output as JSON.
    #[track_caller]
    pub fn fails_json(self, code: i32) -> serde_json::Value {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.stdout))
    }
}

/// A program that `contrib/test` installs below the build directory.
#[track_caller]
pub fn built_tool(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin").join(name);
    assert!(path.exists(), "{} is missing: `./contrib/test tools` installs it", path.display());
    path
}

/// A mount can't be tested without FUSE: say so and fail, never skip.
#[track_caller]
pub fn require_fuse() {
    assert!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing: these tests need the kernel's FUSE");
}

#[track_caller]
pub fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root (owners, devices, loop mounts)");
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// An empty sandbox with a passphrase file.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("strongroom-test-").tempdir().expect("scratch directory");
        let sandbox = Self { dir, vault: "encrypted" };
        fs::create_dir(sandbox.mountpoint()).expect("mountpoint");
        fs::create_dir(sandbox.path("state")).expect("state directory");
        sandbox.private_file("enc.txt", format!("{PASSPHRASE}\n").as_bytes());
        sandbox
    }

    /// A sandbox with a vault in it, made with a passphrase and a recovery key.
    pub fn with_vault() -> Self {
        let sandbox = Self::new();
        sandbox.init();
        sandbox
    }

    /// An empty sandbox whose vault will be at `name`, e.g. on another disk.
    pub fn with_vault_at(name: &'static str) -> Self {
        let mut sandbox = Self::new();
        sandbox.vault = name;
        sandbox
    }

    pub fn init(&self) {
        self.run([
            "init",
            self.vault_str(),
            "--passfile",
            &self.passfile(),
            "--recovery-key-out",
            &self.str("recovery.txt"),
            "--kdf-time",
            "0",
        ])
        .ok();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn str(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8 path").to_string()
    }

    pub fn vault(&self) -> PathBuf {
        self.path(self.vault)
    }

    pub fn vault_str(&self) -> &'static str {
        // Paths live as long as the process: tests are short.
        Box::leak(self.str(self.vault).into_boxed_str())
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.path("decrypted")
    }

    pub fn passfile(&self) -> String {
        self.str("enc.txt")
    }

    pub fn private_file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        path
    }

    /// A command with a cleared environment and this sandbox's state directory.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("STATE_DIRECTORY", self.path("state"));
        command.env("HOME", self.dir.path());
        command.env("TZ", "UTC");
        command.env("LC_ALL", "C.UTF-8");
        command.current_dir(self.dir.path());
        command
    }

    pub fn strongroom(&self) -> Command {
        self.command(env!("CARGO_BIN_EXE_strongroom"))
    }

    /// Runs `strongroom ARGS...` with no input.
    pub fn run<I, S>(&self, args: I) -> Finished
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.run_with_input(args, b"")
    }

    /// Runs `strongroom ARGS...` with bytes on standard input.
    pub fn run_with_input<I, S>(&self, args: I, input: &[u8]) -> Finished
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut child = self
            .strongroom()
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the strongroom binary");
        let mut stdin = child.stdin.take().expect("stdin");
        // A command that does not read its input closes the pipe: that is its right.
        if let Err(e) = stdin.write_all(input) {
            assert_eq!(e.kind(), std::io::ErrorKind::BrokenPipe, "{e}");
        }
        drop(stdin);
        Finished::new(&child.wait_with_output().expect("output"))
    }

    /// Runs another program, e.g. rsync.
    pub fn tool<I, S>(&self, program: &str, args: I) -> Finished
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let output = self
            .command(program)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("{program} is needed by this test: {e}"));
        Finished::new(&output)
    }

    /// Runs a shell script in the sandbox.
    pub fn sh(&self, script: &str) -> Finished {
        self.tool("bash", ["-euo", "pipefail", "-c", script])
    }

    /// Runs the independent checker over a vault.
    pub fn fsck(&self, vault: &Path) -> Finished {
        let program = Path::new(env!("CARGO_BIN_EXE_strongroom")).with_file_name("fsck-strongroom");
        assert!(program.exists(), "{} is missing: run `cargo build --workspace` first", program.display());
        let output = self
            .command(program)
            .args(["--passfile", &self.passfile()])
            .arg(vault)
            .stdin(Stdio::null())
            .output()
            .expect("fsck-strongroom");
        Finished::new(&output)
    }

    #[track_caller]
    pub fn mount(&self) {
        self.mount_with(&[]);
    }

    #[track_caller]
    pub fn mount_with(&self, extra: &[&str]) {
        require_fuse();
        let mountpoint = self.str("decrypted");
        let log = self.str("daemon.log");
        let mut args = vec!["mount", "-S", self.vault_str(), &mountpoint, "--log", &log];
        args.extend_from_slice(extra);
        self.run_with_input(args, format!("{PASSPHRASE}\n").as_bytes()).ok();
    }

    #[track_caller]
    pub fn umount(&self) {
        self.run(["umount", &self.str("decrypted")]).ok();
    }

    /// The daemon's process id, from `status`.
    #[track_caller]
    pub fn daemon_pid(&self) -> i32 {
        let status = self.run(["status", self.vault_str(), "--json"]).json();
        i32::try_from(status["pid"].as_i64().unwrap_or_else(|| panic!("no pid in {status}"))).expect("pid")
    }

    /// Runs a command on the vault with the passphrase file.
    pub fn keyed(&self, args: &[&str]) -> Finished {
        let passfile = self.passfile();
        self.run(args.iter().copied().chain(["--passfile", &passfile]))
    }

    /// What `snapshot list --json` says.
    #[track_caller]
    pub fn snapshots(&self) -> Vec<serde_json::Value> {
        let list = self.keyed(&["snapshot", "list", self.vault_str(), "--json"]).json();
        list.as_array().unwrap_or_else(|| panic!("no list: {list}")).clone()
    }

    /// A file's bytes in a snapshot, read without a mount.
    #[track_caller]
    pub fn cat(&self, vault: &Path, target: &str) -> Vec<u8> {
        let output = self
            .strongroom()
            .arg("cat")
            .arg(vault)
            .args([target, "--passfile", &self.passfile()])
            .stdin(Stdio::null())
            .output()
            .expect("the strongroom binary");
        assert!(output.status.success(), "cat {target}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Asserts that the independent checker finds nothing wrong with the vault.
    #[track_caller]
    pub fn assert_clean(&self) {
        let fsck = self.fsck(&self.vault());
        assert_eq!(fsck.code, 0, "fsck.strongroom: {}{}", fsck.stdout, fsck.stderr);
    }

    /// What the daemon wrote about itself last.
    fn status_file(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&fs::read(self.vault().join("live/status.json")).ok()?).ok()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Best effort: the test has its result already, this only cleans up after a failed one.
        for mountpoint in ["decrypted", "mnt2", "snapshot-mnt"] {
            let path = self.path(mountpoint);
            if path.exists() || fs::symlink_metadata(&path).is_err() {
                drop(self.command("umount").arg("-l").arg(&path).stderr(Stdio::null()).status());
            }
        }
        // A daemon that still writes would race with the removal of its vault.
        if let Some(status) = self.status_file().filter(|s| s["state"] != "closed") {
            let pid = status["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            let start = Instant::now();
            while pid.is_some_and(|pid| !process_is_gone(pid)) && start.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!("the end of the daemon's log:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
        if std::thread::panicking() && std::env::var_os("STRONGROOM_KEEP").is_some() {
            println!("kept: {}", self.dir.path().display());
            self.dir.disable_cleanup(true);
        }
    }
}

/// The link through which mount(8) finds us, for as long as a test runs.
pub struct Helper {
    link: PathBuf,
    /// What an installation had put there.
    before: Option<PathBuf>,
}

impl Helper {
    pub fn install() -> Self {
        let link = PathBuf::from("/sbin/mount.fuse.strongroom");
        let before = fs::read_link(&link).ok();
        if before.is_some() {
            fs::remove_file(&link).expect("/sbin is writable");
        }
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_strongroom"), &link).expect("/sbin is writable");
        Self { link, before }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.link));
        if let Some(before) = &self.before {
            drop(std::os::unix::fs::symlink(before, &self.link));
        }
    }
}

/// The seed of a test with randomness: `STRONGROOM_SEED`, else always the same. Printed, so that a failure names it.
pub fn seed(default: u64) -> u64 {
    let seed = std::env::var("STRONGROOM_SEED")
        .map_or(default, |text| text.parse().expect("STRONGROOM_SEED is a number"));
    println!("SEED={seed}");
    seed
}

/// SplitMix64: enough for test data, the same everywhere, and faster than any disk.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).expect("bound")).expect("below the bound")
    }

    /// True in `percent` of all cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Waits for something that must come, however slow the machine is.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited two minutes for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process has ended with all of its threads; one that only waits to be reaped has.
pub fn process_is_gone(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    // The first thread can be a zombie while others still hold the files.
    threads.flatten().all(|thread| match fs::read_to_string(thread.path().join("stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    })
}

#[track_caller]
pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("pid");
    rustix::process::kill_process(pid, signal).expect("kill");
}

/// `kill -9`, and waits until the process is no more.
#[track_caller]
pub fn kill_9(pid: i32) {
    signal(pid, rustix::process::Signal::KILL);
    wait_until("the killed process to end", || process_is_gone(pid));
}

/// Writes a file and makes it durable.
///
/// # Errors
/// The first failure of open, write or fsync.
pub fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Everything that two trees must agree on, as one sorted text: names, types, modes, owners, ns mtimes, sizes, link groups, xattrs, ACLs, content.
pub fn tree_digest(root: &Path) -> Vec<String> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    let mut links: std::collections::BTreeMap<u64, Vec<Vec<u8>>> = std::collections::BTreeMap::new();
    let mut lines = Vec::new();
    let mut stack = vec![root.to_path_buf()];
    while let Some(path) = stack.pop() {
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let relative = path.strip_prefix(root).expect("below the root").as_os_str().as_bytes().to_vec();
        let kind = meta.file_type();
        let content = if kind.is_symlink() {
            format!("-> {:?}", fs::read_link(&path).expect("readlink"))
        } else if kind.is_file() {
            if meta.nlink() > 1 {
                links.entry(meta.ino()).or_default().push(relative.clone());
            }
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            format!("{} {}", meta.len(), blake3::hash(&bytes).to_hex())
        } else if kind.is_dir() {
            for entry in fs::read_dir(&path).expect("read_dir") {
                stack.push(entry.expect("entry").path());
            }
            String::from("dir")
        } else if kind.is_fifo() || kind.is_socket() {
            String::from("pipe")
        } else {
            format!("dev {:x}", meta.rdev())
        };
        let mut xattrs = Vec::new();
        let mut names = vec![0_u8; 65_536];
        let len = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or(0);
        for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let mut value = vec![0_u8; 65_536];
            let got = rustix::fs::lgetxattr(&path, name, &mut value[..]).unwrap_or(0);
            xattrs.push(format!(
                "{}={}",
                String::from_utf8_lossy(name),
                blake3::hash(&value[..got]).to_hex()
            ));
        }
        xattrs.sort();
        lines.push(format!(
            "{} {:o} {}:{} {}.{:09} n{} {content} {}",
            relative.escape_ascii(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            if kind.is_dir() { 0 } else { meta.nlink() },
            xattrs.join(",")
        ));
    }
    for group in links.values_mut() {
        group.sort();
        let names: Vec<String> = group.iter().map(|n| n.escape_ascii().to_string()).collect();
        lines.push(format!("linked: {}", names.join(" = ")));
    }
    lines.sort();
    lines
}

/// Asserts that two trees are equal, and shows the first differences.
#[track_caller]
pub fn assert_same_tree(left: &Path, right: &Path) {
    let (a, b) = (tree_digest(left), tree_digest(right));
    if a != b {
        let only_a: Vec<&String> = a.iter().filter(|l| !b.contains(l)).take(12).collect();
        let only_b: Vec<&String> = b.iter().filter(|l| !a.contains(l)).take(12).collect();
        panic!(
            "{} and {} differ\nleft only: {only_a:#?}\nright only: {only_b:#?}",
            left.display(),
            right.display()
        );
    }
}
