//! Mounting and unmounting as processes: daemons, signals, options, who may do what. What POSIX programs see of the mount is
//! in `mount_calls`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::common::{Sandbox, require_fuse, require_root};

pub(crate) fn mounted() -> (Sandbox, PathBuf) {
    require_fuse();
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let root = sandbox.mountpoint();
    (sandbox, root)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn mount_line(root: &Path) -> Option<String> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines().find(|line| line.split(' ').nth(4) == root.to_str()).map(str::to_string)
}

pub(crate) fn write_all(path: &Path, data: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(data).unwrap();
}

/// A command as an unprivileged user, with the kernel's checks applying to it.
pub(crate) fn as_nobody(args: &[&str]) -> std::process::Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).args(args);
    command.output().expect("setpriv (util-linux)")
}

#[test]
fn the_mount_has_its_type_its_source_and_safe_options() {
    require_root();
    let (sandbox, root) = mounted();
    let line = mount_line(&root).expect("mounted");
    let (fields, rest) = line.split_once(" - ").unwrap();
    assert!(rest.starts_with("fuse.strongroom "), "{line}");
    assert!(rest.contains(sandbox.vault().to_str().unwrap()), "{line}");
    assert!(rest.contains("allow_other") && rest.contains("default_permissions"), "{line}");
    assert!(fields.contains("nodev") && fields.contains("nosuid"), "{line}");
    sandbox.umount();
    assert!(mount_line(&root).is_none());
    sandbox.mount_with(&["-o", "dev,suid,noexec,noatime,fsname=backup,x-systemd.automount,_netdev"]);
    let line = mount_line(&root).expect("mounted");
    assert!(line.contains("noexec") && line.contains("noatime") && line.contains(" backup "), "{line}");
    assert!(!line.contains("nodev") && !line.contains("nosuid"), "{line}");
    // The vault is found although the table names something else.
    sandbox.umount();
    assert!(mount_line(&root).is_none());
}

#[test]
fn unknown_options_are_refused_before_anything_happens() {
    let sandbox = Sandbox::with_vault();
    let (vault, root) = (sandbox.str("encrypted"), sandbox.str("decrypted"));
    let text = sandbox.run(["mount", &vault, &root, "--passfile", &sandbox.passfile(), "-o", "r0"]).fails(2);
    assert!(text.contains("unknown mount option `r0`") && text.contains("allow_other"), "{text}");
    let text =
        sandbox.run(["mount", &vault, &root, "--passfile", &sandbox.passfile(), "-o", "fsname=a,b"]).fails(2);
    assert!(text.contains("unknown mount option `b`"), "{text}");
}

#[test]
fn unusable_mountpoints_are_refused() {
    let sandbox = Sandbox::with_vault();
    let (vault, passfile) = (sandbox.str("encrypted"), sandbox.passfile());
    let mount = |at: &str| sandbox.run(["mount", &vault, at, "--passfile", &passfile]);
    assert!(mount(&sandbox.str("nowhere")).fails(21).contains("does not exist"));
    assert!(mount(&passfile).fails(21).contains("not a directory"));
    assert!(mount(&vault).fails(21).contains("the vault itself"));
    assert!(mount(&sandbox.str("")).fails(21).contains("lies inside"));
    fs::write(sandbox.path("decrypted/old"), "x").unwrap();
    assert!(mount(&sandbox.str("decrypted")).fails(21).contains("--nonempty"));
    require_fuse();
    sandbox.mount_with(&["--nonempty"]);
    assert!(!sandbox.path("decrypted/old").exists());
    sandbox.umount();
    assert!(sandbox.path("decrypted/old").exists());
}

#[test]
fn listing_answers_while_writers_wait_for_room() {
    let (sandbox, root) = mounted();
    write_all(&root.join("seen"), b"x");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..12_u64)
        .map(|i| {
            let (path, stop) = (root.join(format!("w{i}")), stop.clone());
            std::thread::spawn(move || {
                let mut file = File::create(path).unwrap();
                let mut block = vec![0_u8; 1 << 20];
                let mut seed = i * 7_919 + 1;
                for _ in 0..64 {
                    for word in block.chunks_exact_mut(8) {
                        seed = seed
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        word.copy_from_slice(&seed.to_le_bytes());
                    }
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    file.write_all(&block).unwrap();
                }
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for i in 0..40 {
        let start = Instant::now();
        assert!(!root.join(format!("missing{i}")).exists());
        assert!(fs::read_dir(&root).unwrap().count() > 0);
        slowest = slowest.max(start.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(slowest < Duration::from_secs(2), "a listing took {slowest:?}");
    sandbox.umount();
}

#[test]
fn a_second_mount_is_refused_and_names_the_holder() {
    let (sandbox, _root) = mounted();
    let pid = sandbox.daemon_pid();
    fs::create_dir(sandbox.path("mnt2")).unwrap();
    let args = ["mount", &sandbox.str("encrypted"), &sandbox.str("mnt2"), "--passfile", &sandbox.passfile()];
    let text = sandbox.run(args).fails(16);
    assert!(text.contains(&pid.to_string()), "{text}");
    sandbox.umount();
    sandbox.run(args).ok();
    sandbox.run(["umount", &sandbox.str("mnt2")]).ok();
}

#[test]
fn plain_umount_and_wait_miss_nothing() {
    require_root();
    let (sandbox, root) = mounted();
    for round in 0..5_u8 {
        let data = vec![round; 3_000_000];
        fs::write(root.join("f"), &data).unwrap();
        sandbox.tool("umount", [root.to_str().unwrap()]).ok();
        sandbox.run(["wait", sandbox.vault_str()]).ok();
        sandbox.mount();
        assert!(fs::read(root.join("f")).unwrap() == data, "round {round}");
    }
    // And a command right behind it waits by itself.
    fs::write(root.join("g"), b"last").unwrap();
    sandbox.tool("umount", [root.to_str().unwrap()]).ok();
    sandbox.mount();
    assert_eq!(fs::read(root.join("g")).unwrap(), b"last");
    sandbox.umount();
}

fn holder_in(dir: &Path) -> Child {
    let child = Command::new("sleep").arg("60").current_dir(dir).stdin(Stdio::null()).spawn().unwrap();
    let cwd = PathBuf::from(format!("/proc/{}/cwd", child.id()));
    until("the child's directory", || fs::read_link(&cwd).is_ok_and(|at| at == dir));
    child
}

#[test]
fn a_busy_mount_is_not_unmounted_and_the_user_is_named() {
    let (sandbox, root) = mounted();
    fs::create_dir(root.join("d")).unwrap();
    let mut child = holder_in(&root.join("d"));
    let text = sandbox.run(["umount", &sandbox.str("decrypted")]).fails(23);
    assert!(text.contains(&child.id().to_string()) && text.contains("sleep"), "{text}");
    assert!(mount_line(&root).is_some());
    // Lazily: gone from the tree at once, finished when the last user is.
    sandbox.run(["umount", "--lazy", &sandbox.str("decrypted")]).ok();
    assert!(mount_line(&root).is_none());
    child.kill().unwrap();
    child.wait().unwrap();
    sandbox.run(["wait", sandbox.vault_str(), "--timeout", "30s"]).ok();
    sandbox.mount();
    assert!(root.join("d").is_dir());
    sandbox.umount();
}

#[test]
fn signals_unmount_cleanly() {
    for signal in ["TERM", "INT"] {
        let (sandbox, root) = mounted();
        fs::write(root.join("f"), signal).unwrap();
        let pid = sandbox.daemon_pid();
        sandbox.tool("kill", [&format!("-{signal}"), &pid.to_string()]).ok();
        until("unmounted", || mount_line(&root).is_none());
        sandbox.run(["wait", sandbox.vault_str()]).ok();
        let status = sandbox.run(["status", sandbox.vault_str(), "--json"]).json();
        assert_eq!(status["last_unmount_clean"], true, "{status}");
        sandbox.mount();
        assert_eq!(fs::read_to_string(root.join("f")).unwrap(), signal);
        sandbox.umount();
    }
}

#[test]
fn a_second_signal_cuts_off_those_who_still_use_the_mount() {
    let (sandbox, root) = mounted();
    fs::create_dir(root.join("d")).unwrap();
    let mut writing = File::create(root.join("d/written")).unwrap();
    writing.write_all(&[5; 100_000]).unwrap();
    let mut child = holder_in(&root.join("d"));
    let pid = sandbox.daemon_pid();
    let process = PathBuf::from(format!("/proc/{pid}"));
    sandbox.tool("kill", ["-TERM", &pid.to_string()]).ok();
    std::thread::sleep(Duration::from_millis(500));
    assert!(process.exists() && mount_line(&root).is_some(), "open files keep it for a while");
    sandbox.tool("kill", ["-TERM", &pid.to_string()]).ok();
    until("the daemon is gone", || !process.exists());
    assert!(mount_line(&root).is_none());
    child.kill().unwrap();
    child.wait().unwrap();
    drop(writing);
    let status = sandbox.run(["status", sandbox.vault_str(), "--json"]).json();
    assert_eq!(status["last_unmount_clean"], true, "{status}");
    sandbox.mount();
    assert!(
        fs::read(root.join("d/written")).unwrap() == [5; 100_000],
        "what was written before the cut is kept"
    );
    sandbox.umount();
}

#[test]
fn the_foreground_serves_until_interrupted() {
    require_fuse();
    let sandbox = Sandbox::with_vault();
    let root = sandbox.mountpoint();
    let mut child = sandbox
        .strongroom()
        .args([
            "mount",
            "-f",
            sandbox.vault_str(),
            &sandbox.str("decrypted"),
            "--passfile",
            &sandbox.passfile(),
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("mounted", || mount_line(&root).is_some() && root.join(".snapshots").exists());
    fs::write(root.join("f"), b"x").unwrap();
    sandbox.tool("kill", ["-INT", &child.id().to_string()]).ok();
    assert!(child.wait().unwrap().success());
    assert!(mount_line(&root).is_none());
}

#[test]
fn a_killed_daemon_leaves_a_mount_that_the_next_one_cleans_up() {
    let (sandbox, root) = mounted();
    let mut file = File::create(root.join("synced")).unwrap();
    file.write_all(b"safe").unwrap();
    file.sync_all().unwrap();
    drop(file);
    let pid = sandbox.daemon_pid();
    sandbox.tool("kill", ["-KILL", &pid.to_string()]).ok();
    until("dead", || fs::metadata(&root).is_err());
    assert_eq!(fs::metadata(&root).unwrap_err().raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    assert_eq!(sandbox.run(["is-mounted", &sandbox.str("decrypted")]).code, 21);
    let status = sandbox.run(["status", sandbox.vault_str(), "--json"]);
    assert_eq!(status.code, 21, "{}", status.stdout);
    sandbox.mount();
    assert_eq!(fs::read(root.join("synced")).unwrap(), b"safe");
    sandbox.umount();
}

#[test]
fn unused_mounts_go_by_themselves() {
    require_fuse();
    let sandbox = Sandbox::with_vault();
    sandbox.mount_with(&["--idle", "2s"]);
    let root = sandbox.mountpoint();
    let file = File::create(root.join("f")).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert!(mount_line(&root).is_some(), "an open file is use");
    drop(file);
    until("unmounted", || mount_line(&root).is_none());
    sandbox.run(["wait", sandbox.vault_str()]).ok();
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let (sandbox, root) = mounted();
    write_all(&root.join("f"), b"x");
    sandbox.umount();
    sandbox.mount_with(&["--read-only"]);
    assert_eq!(fs::read(root.join("f")).unwrap(), b"x");
    for error in [
        File::create(root.join("g")).unwrap_err(),
        fs::remove_file(root.join("f")).unwrap_err(),
        fs::create_dir(root.join("d")).unwrap_err(),
        OpenOptions::new().append(true).open(root.join("f")).unwrap_err(),
        fs::set_permissions(root.join("f"), fs::Permissions::from_mode(0o600)).unwrap_err(),
    ] {
        assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    }
    sandbox.umount();
}

#[test]
fn the_daemon_keeps_nothing_of_its_parent() {
    let sandbox = Sandbox::with_vault();
    require_fuse();
    let leak = sandbox.private_file("leak", b"x");
    let script = format!(
        "exec 7<{} 8>{}; exec {} mount {} {} --passfile {}",
        leak.display(),
        sandbox.path("leak2").display(),
        env!("CARGO_BIN_EXE_strongroom"),
        sandbox.vault_str(),
        sandbox.str("decrypted"),
        sandbox.passfile()
    );
    sandbox.sh(&script).ok();
    let pid = sandbox.daemon_pid();
    let open: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect();
    assert!(!open.iter().any(|path| path.starts_with(&leak)), "{open:?}");
    assert!(!open.iter().any(|path| path.ends_with("leak2")), "{open:?}");
    for fd in 0..3 {
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap(), Path::new("/dev/null"));
    }
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    // A session of its own, and no secret where others can see it.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(3).unwrap().to_string();
    assert_eq!(session, pid.to_string());
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap();
        let secret = crate::common::PASSPHRASE.as_bytes();
        assert!(!text.windows(secret.len()).any(|w| w == secret), "{file} shows the passphrase");
    }
    // Or each thread would keep an allocator's heap of its own, grown to the most it ever needed, with the buffers of
    // streams in it.
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
    for wanted in ["MALLOC_ARENA_MAX=2", "MALLOC_MMAP_THRESHOLD_=4194304", "MALLOC_TRIM_THRESHOLD_=16777216"]
    {
        assert!(environ.split(|b| *b == 0).any(|var| var == wanted.as_bytes()), "{wanted}");
    }
    sandbox.umount();
}

#[test]
fn a_wrong_passphrase_fails_in_the_parent() {
    let sandbox = Sandbox::with_vault();
    let args = ["mount", "-S", sandbox.vault_str(), &sandbox.str("decrypted")];
    sandbox.run_with_input(args, b"wrong\n").fails(11);
    assert!(mount_line(&sandbox.mountpoint()).is_none());
}

/// Everybody may open /dev/fuse, as udev has it on ordinary systems; taken back when dropped.
struct OpenDevice(fs::Permissions);

impl OpenDevice {
    fn new() -> Self {
        let before = fs::metadata("/dev/fuse").unwrap().permissions();
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
        Self(before)
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        fs::set_permissions("/dev/fuse", self.0.clone()).unwrap();
    }
}

#[test]
fn an_unprivileged_user_can_mount() {
    require_root();
    require_fuse();
    let _device = OpenDevice::new();
    if fs::metadata("/usr/bin/fusermount3").is_err() {
        panic!("fusermount3 is needed by this test: install fuse3");
    }
    let sandbox = Sandbox::with_vault();
    sandbox.sh("chmod 755 . && chown -R 65534:65534 encrypted decrypted state enc.txt").ok();
    let strongroom = env!("CARGO_BIN_EXE_strongroom");
    let state = format!("STATE_DIRECTORY={}", sandbox.str("state"));
    let (vault, root, passfile) = (sandbox.str("encrypted"), sandbox.str("decrypted"), sandbox.passfile());
    let run = |args: &[&str]| {
        let mut all = vec!["env", &state, strongroom];
        all.extend_from_slice(args);
        as_nobody(&all)
    };
    let done = run(&["mount", &vault, &root, "--passfile", &passfile]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let script = format!(
        "dd if=/dev/zero of={root}/f bs=10k count=300 2>/dev/null && touch -d 2001-01-01 {root}/f && stat -c %Y {root}/f"
    );
    let done = as_nobody(&["sh", "-c", &script]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(mount_line(Path::new(&root)).unwrap().contains("fuse.strongroom"));
    let done = run(&["umount", &root]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let done = run(&["mount", &vault, &root, "--passfile", &passfile]);
    assert!(done.status.success());
    let done = as_nobody(&["stat", "-c", "%s %Y", &format!("{root}/f")]);
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "3072000 978307200");
    assert!(run(&["umount", &root]).status.success());
}
