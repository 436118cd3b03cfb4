//! The life of a mount: every way to unmount, what may follow at once, and what is refused.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;

use crate::common::{
    Helper, PASSPHRASE, Rng, Sandbox, assert_same_tree, kill_9, process_is_gone, require_fuse, require_root,
    seed, signal, wait_until,
};

#[track_caller]
fn is_mounted(sandbox: &Sandbox) -> i32 {
    sandbox.run(["is-mounted", &sandbox.str("decrypted")]).code
}

#[track_caller]
fn read(sandbox: &Sandbox, name: &str) -> Vec<u8> {
    fs::read(sandbox.mountpoint().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[track_caller]
fn write(sandbox: &Sandbox, name: &str, bytes: &[u8]) {
    fs::write(sandbox.mountpoint().join(name), bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// The numbers of the snapshots, oldest first.
#[track_caller]
fn sequence(sandbox: &Sandbox) -> Vec<u64> {
    let mut numbers: Vec<u64> = sandbox.snapshots().iter().map(|s| s["seq"].as_u64().expect("seq")).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn heavy_a_plain_umount_followed_at_once_by_a_command_misses_nothing() {
    require_root();
    let mut rng = Rng::new(seed(0x5eed_0010));
    let sandbox = Sandbox::with_vault();
    for round in 0..20_u64 {
        sandbox.mount();
        let name = format!("round-{round}");
        let len = 1 + rng.below(3_000_000);
        let bytes = rng.bytes(len);
        write(&sandbox, &name, &bytes);
        // The last write of all is a small one, and nobody syncs it.
        write(&sandbox, "last", name.as_bytes());
        let unmounted = if round % 2 == 0 {
            sandbox.tool("umount", [sandbox.mountpoint()])
        } else {
            sandbox.tool("fusermount3", ["-u", &sandbox.str("decrypted")])
        };
        unmounted.ok();
        let vault = match round % 3 {
            0 => {
                let list = sequence(&sandbox);
                assert_eq!(
                    list.len() as u64,
                    round + 1,
                    "round {round}: the last snapshot is missing in {list:?}"
                );
                sandbox.vault()
            }
            1 => {
                let to = sandbox.str("restored");
                sandbox.keyed(&["restore", sandbox.vault_str(), "--to", &to]).ok();
                assert_eq!(fs::read(Path::new(&to).join("last")).unwrap(), name.as_bytes(), "round {round}");
                assert!(fs::read(Path::new(&to).join(&name)).unwrap() == bytes, "round {round}");
                fs::remove_dir_all(&to).unwrap();
                sandbox.vault()
            }
            _ => {
                sandbox.run(["wait", sandbox.vault_str()]).ok();
                sandbox.sh("rsync -a --delete --exclude live/ encrypted/ copy/").ok();
                sandbox.path("copy")
            }
        };
        assert_eq!(sandbox.cat(&vault, "latest:/last"), name.as_bytes(), "round {round}");
        assert!(sandbox.cat(&vault, &format!("latest:/{name}")) == bytes, "round {round}");
    }
    sandbox.assert_clean();
}

#[test]
fn heavy_an_unmount_without_changes_makes_no_snapshot() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    write(&sandbox, "file", b"content");
    sandbox.umount();
    sandbox.mount();
    assert_eq!(read(&sandbox, "file"), b"content");
    sandbox.umount();
    assert_eq!(sequence(&sandbox).len(), 1);
}

#[test]
fn heavy_a_second_mount_is_refused_and_names_the_holder() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let pid = sandbox.daemon_pid();
    fs::create_dir(sandbox.path("mnt2")).unwrap();
    let refused = sandbox.keyed(&["mount", sandbox.vault_str(), &sandbox.str("mnt2")]).fails(16);
    assert!(refused.contains(&pid.to_string()), "{refused}");
    assert!(refused.contains(&sandbox.str("decrypted")), "{refused}");
    // The same mountpoint again, and verbs that need the vault for themselves.
    let again = sandbox.keyed(&["mount", sandbox.vault_str(), &sandbox.str("decrypted")]);
    assert!(matches!(again.code, 16 | 21), "{again:?}");
    fs::write(sandbox.path("plain"), "x").unwrap();
    sandbox.keyed(&["import", sandbox.vault_str(), &sandbox.str("plain")]).fails(16);
    sandbox.run(["wait", sandbox.vault_str()]).fails(16);
    assert_eq!(is_mounted(&sandbox), 0);
    write(&sandbox, "file", b"still at work");
    sandbox.umount();
}

#[test]
fn heavy_sigterm_and_sigint_unmount_cleanly() {
    let sandbox = Sandbox::with_vault();
    for (number, sign) in [Signal::TERM, Signal::INT].into_iter().enumerate() {
        sandbox.mount();
        let pid = sandbox.daemon_pid();
        let content = format!("written before signal {number}");
        write(&sandbox, "file", content.as_bytes());
        signal(pid, sign);
        wait_until("the daemon to end", || process_is_gone(pid));
        assert_eq!(is_mounted(&sandbox), 1);
        sandbox.run(["status", sandbox.vault_str()]).ok();
        assert_eq!(sequence(&sandbox).len(), number + 1, "a snapshot was made");
        assert_eq!(sandbox.cat(&sandbox.vault(), "latest:/file"), content.as_bytes());
    }
    sandbox.assert_clean();
}

#[test]
fn heavy_a_busy_mount_stays_and_names_who_uses_it() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let mut file = File::create(sandbox.mountpoint().join("open")).unwrap();
    file.write_all(b"first ").unwrap();
    let mut sleeper = sandbox
        .command("sleep")
        .arg("600")
        .current_dir(sandbox.mountpoint())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let refused = sandbox.run(["umount", &sandbox.str("decrypted")]).fails(23);
    assert!(refused.contains(&std::process::id().to_string()), "our open file: {refused}");
    assert!(
        refused.contains(&sleeper.id().to_string()) && refused.contains("sleep"),
        "its directory: {refused}"
    );
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    sandbox.run(["umount", &sandbox.str("decrypted")]).fails(23);
    assert_eq!(is_mounted(&sandbox), 0);
    file.write_all(b"second ").unwrap();

    // --lazy: gone from the tree, but who has a file open goes on, and nothing of it is lost.
    sandbox.run(["umount", "--lazy", &sandbox.str("decrypted")]).ok();
    assert_eq!(is_mounted(&sandbox), 1);
    file.write_all(b"third").unwrap();
    drop(file);
    sandbox.run(["wait", sandbox.vault_str()]).ok();
    assert_eq!(sandbox.cat(&sandbox.vault(), "latest:/open"), b"first second third");
    sandbox.assert_clean();
}

#[test]
fn heavy_umount_takes_the_vaults_name_too_and_says_what_is_not_mounted() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    write(&sandbox, "file", b"x");
    sandbox.run(["umount", sandbox.vault_str()]).ok();
    assert_eq!(is_mounted(&sandbox), 1);
    sandbox.run(["umount", sandbox.vault_str()]).fails(21);
    sandbox.run(["umount", &sandbox.str("decrypted")]).fails(21);
    sandbox.run(["umount", &sandbox.str("nowhere")]).fails(21);
    sandbox.run(["wait", sandbox.vault_str()]).ok();
    sandbox.run(["wait", &sandbox.str("decrypted")]).fails(10);
}

#[test]
fn heavy_with_unmounts_also_when_it_is_told_to_stop() {
    let sandbox = Sandbox::with_vault();
    let script = "trap 'echo yes > stopped; exit 7' TERM; echo yes > ready; while :; do sleep 0.05; done";
    let script = format!("cd '{}'; {script}", sandbox.str("decrypted"));
    let mut with = sandbox
        .strongroom()
        .args([
            "with",
            sandbox.vault_str(),
            &sandbox.str("decrypted"),
            "--passfile",
            &sandbox.passfile(),
            "--",
        ])
        .args(["bash", "-c", &script])
        .spawn()
        .unwrap();
    wait_until("the command runs", || sandbox.mountpoint().join("ready").exists());
    let pid = i32::try_from(with.id()).unwrap();
    // What a terminal sends reaches the command by itself; it must not end what has to unmount.
    signal(pid, rustix::process::Signal::INT);
    signal(pid, rustix::process::Signal::HUP);
    assert!(with.try_wait().unwrap().is_none());
    signal(pid, rustix::process::Signal::TERM);
    assert_eq!(with.wait().unwrap().code(), Some(7), "the command had the last word");
    sandbox.run(["is-mounted", &sandbox.str("decrypted")]).fails(1);
    assert_eq!(sandbox.cat(&sandbox.vault(), "latest:/stopped"), b"yes\n");
    sandbox.assert_clean();
}

#[test]
fn heavy_with_runs_a_command_and_ends_with_its_status() {
    let sandbox = Sandbox::with_vault();
    let (mountpoint, passfile) = (sandbox.str("decrypted"), sandbox.passfile());
    let with = |script: &str| {
        sandbox.run([
            "with",
            sandbox.vault_str(),
            &mountpoint,
            "--passfile",
            &passfile,
            "--",
            "sh",
            "-c",
            script,
        ])
    };
    let done = with("echo out; echo err >&2; echo one > decrypted/file; exit 7");
    assert_eq!((done.code, done.stdout.as_str()), (7, "out\n"), "{}", done.stderr);
    assert!(done.stderr.contains("err"));
    assert_eq!(is_mounted(&sandbox), 1);
    assert_eq!(sequence(&sandbox).len(), 1, "a snapshot was made although the command failed");
    assert_eq!(sandbox.cat(&sandbox.vault(), "latest:/file"), b"one\n");

    with("cat decrypted/file && echo two > decrypted/file").ok();
    assert_eq!(sandbox.cat(&sandbox.vault(), "latest:/file"), b"two\n");
    assert_eq!(sequence(&sandbox).len(), 2);

    // The command must never run without its mount.
    fs::write(sandbox.path("decrypted/in-the-way"), "plain").unwrap();
    let refused = with("touch ran").fails(21);
    assert!(refused.contains("in-the-way"), "{refused}");
    assert!(!sandbox.path("ran").exists());
    fs::remove_file(sandbox.path("decrypted/in-the-way")).unwrap();
    let missing = sandbox.run([
        "with",
        sandbox.vault_str(),
        &mountpoint,
        "--passfile",
        &passfile,
        "--",
        "/no/such/program",
    ]);
    assert_ne!(missing.code, 0);
    assert_eq!(is_mounted(&sandbox), 1, "{}", missing.stderr);
}

#[test]
fn heavy_a_mountpoint_with_files_is_refused() {
    let sandbox = Sandbox::with_vault();
    write(&sandbox, "forgotten", b"plaintext");
    let refused = sandbox.keyed(&["mount", sandbox.vault_str(), &sandbox.str("decrypted")]).fails(21);
    assert!(refused.contains("forgotten") && refused.contains("--nonempty"), "{refused}");
    assert_eq!(is_mounted(&sandbox), 1);
    sandbox.mount_with(&["--nonempty"]);
    assert!(!sandbox.mountpoint().join("forgotten").exists(), "hidden while mounted");
    sandbox.umount();
    assert_eq!(read(&sandbox, "forgotten"), b"plaintext");

    for bad in
        [sandbox.str("nowhere"), sandbox.passfile(), sandbox.str("encrypted"), sandbox.str("encrypted/packs")]
    {
        sandbox.keyed(&["mount", sandbox.vault_str(), &bad]).fails(21);
    }
}

/// Takes the protection away, so that the sandbox can be removed.
struct Unprotect<'a>(&'a Sandbox);

impl Drop for Unprotect<'_> {
    fn drop(&mut self) {
        drop(self.0.command("umount").arg("-l").arg(self.0.mountpoint()).stderr(Stdio::null()).status());
        drop(self.0.command("chattr").arg("-i").arg(self.0.mountpoint()).stderr(Stdio::null()).status());
    }
}

#[test]
fn heavy_a_protected_mountpoint_takes_no_plaintext() {
    require_root();
    let sandbox = Sandbox::with_vault();
    let _undo = Unprotect(&sandbox);
    let mountpoint = sandbox.str("decrypted");
    sandbox.run(["protect", &mountpoint]).ok();
    let report = sandbox.run(["protect", &mountpoint, "--json"]).json();
    assert_eq!(report["protection"], "already");
    // A job that runs although the mount failed: even root's writes fail.
    let plain = sandbox.mountpoint().join("plain");
    assert_eq!(fs::write(&plain, "secret").unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(fs::create_dir(&plain).unwrap_err().kind(), ErrorKind::PermissionDenied);
    sandbox.sh("cp enc.txt decrypted/").fails(1);

    sandbox.mount();
    sandbox.run(["protect", &mountpoint]).fails(21);
    write(&sandbox, "file", b"encrypted");
    sandbox.umount();
    assert_eq!(fs::write(&plain, "secret").unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(fs::read_dir(sandbox.mountpoint()).unwrap().count(), 0);
    sandbox.mount();
    assert_eq!(read(&sandbox, "file"), b"encrypted");
    sandbox.umount();

    sandbox.run(["protect", "--undo", &mountpoint]).ok();
    fs::write(&plain, "now it can").unwrap();
    sandbox.run(["protect", &mountpoint]).fails(21);
}

#[test]
fn heavy_a_dead_mount_is_explained_and_cleaned_up() {
    let sandbox = Sandbox::with_vault();
    assert_eq!(is_mounted(&sandbox), 1);
    sandbox.mount();
    assert_eq!(is_mounted(&sandbox), 0);
    let mut file = File::create(sandbox.mountpoint().join("synced")).unwrap();
    file.write_all(b"safe").unwrap();
    file.sync_all().unwrap();
    kill_9(sandbox.daemon_pid());
    assert_eq!(is_mounted(&sandbox), 21);
    drop(file);
    let said = sandbox.run(["status", sandbox.vault_str()]);
    assert_eq!(said.code, 21, "{said:?}");
    assert!(said.stdout.contains("dead"), "{}", said.stdout);
    let report = sandbox.run(["status", sandbox.vault_str(), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!((report.code, &json["state"]), (21, &"dead".into()));
    sandbox.run(["status", &sandbox.str("decrypted")]).fails(21);
    sandbox.run(["wait", sandbox.vault_str()]).fails(21);

    sandbox.mount();
    assert_eq!(is_mounted(&sandbox), 0);
    assert_eq!(read(&sandbox, "synced"), b"safe");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = mounts.lines().filter(|line| line.contains(&sandbox.str("decrypted"))).count();
    assert_eq!(ours, 1, "no dead mount is left below");
    sandbox.umount();
    assert_eq!(is_mounted(&sandbox), 1);

    // `umount` of a dead mount removes it too, and doesn't call that a clean unmount.
    sandbox.mount();
    kill_9(sandbox.daemon_pid());
    sandbox.run(["umount", &sandbox.str("decrypted")]).fails(20);
    assert_eq!(is_mounted(&sandbox), 1);
    sandbox.mount();
    assert_eq!(read(&sandbox, "synced"), b"safe");
    sandbox.umount();
    sandbox.assert_clean();
}

#[track_caller]
fn findmnt(sandbox: &Sandbox) -> String {
    sandbox.tool("findmnt", ["-n", "-o", "FSTYPE,SOURCE,OPTIONS", &sandbox.str("decrypted")]).ok()
}

#[test]
fn heavy_mount_8_fstab_and_findmnt_know_the_type() {
    require_root();
    require_fuse();
    let sandbox = Sandbox::with_vault();
    let helper = sandbox.str("mount.fuse.strongroom");
    symlink(env!("CARGO_BIN_EXE_strongroom"), &helper).unwrap();
    let (vault, mountpoint) = (sandbox.vault_str(), sandbox.str("decrypted"));
    let options = format!("passfile={},rw,_netdev,nofail,x-systemd.requires=x.target", sandbox.passfile());

    // As mount(8) calls its helper.
    sandbox.tool(&helper, [vault, &mountpoint, "-o", &options]).ok();
    let line = findmnt(&sandbox);
    assert!(line.starts_with("fuse.strongroom ") && line.contains(vault), "{line}");
    assert!(line.contains("nosuid") && line.contains("nodev") && line.contains("rw"), "{line}");
    assert!(!line.contains("enc.txt"), "{line}");
    write(&sandbox, "file", b"by helper");
    sandbox.umount();
    let unknown = sandbox.tool(&helper, [vault, &mountpoint, "-o", "rw,frobnicate"]);
    assert_ne!(unknown.code, 0);
    assert!(unknown.stderr.contains("frobnicate"), "{}", unknown.stderr);

    // mount(8) itself, and a line of fstab.
    let _installed = Helper::install();
    sandbox.tool("mount", ["-t", "fuse.strongroom", "-o", &options, vault, &mountpoint]).ok();
    assert_eq!(read(&sandbox, "file"), b"by helper");
    assert!(findmnt(&sandbox).starts_with("fuse.strongroom "));
    sandbox.tool("umount", [&mountpoint]).ok();
    sandbox.run(["wait", vault]).ok();
    fs::write(sandbox.path("fstab"), format!("{vault} {mountpoint} fuse.strongroom {options},ro 0 0\n"))
        .unwrap();
    sandbox.tool("mount", ["--fstab", &sandbox.str("fstab"), &mountpoint]).ok();
    assert_eq!(read(&sandbox, "file"), b"by helper");
    assert_eq!(
        fs::write(sandbox.mountpoint().join("no"), "x").unwrap_err().kind(),
        ErrorKind::ReadOnlyFilesystem
    );
    sandbox.umount();
}

#[test]
fn heavy_mount_options_reach_the_kernel_and_unknown_ones_are_refused() {
    require_root();
    let sandbox = Sandbox::with_vault();
    for bad in ["frobnicate", "ro,passphrase=secret", "dirty_mib=x", "idle=soon"] {
        let refused =
            sandbox.keyed(&["mount", sandbox.vault_str(), &sandbox.str("decrypted"), "-o", bad]).fails(2);
        assert!(refused.contains(bad.split(',').next_back().unwrap()), "{refused}");
        assert_eq!(is_mounted(&sandbox), 1);
    }
    sandbox.mount_with(&["-o", "suid,dev,noexec,noatime,fsname=nightly"]);
    let line = findmnt(&sandbox);
    assert!(line.starts_with("fuse.strongroom nightly "), "{line}");
    for option in ["noexec", "noatime", "allow_other", "default_permissions"] {
        assert!(line.contains(option), "{option}: {line}");
    }
    assert!(!line.contains("nosuid") && !line.contains("nodev"), "{line}");
    assert_eq!(is_mounted(&sandbox), 0);
    sandbox.umount();
}

#[test]
fn heavy_an_unused_mount_goes_away_with_idle() {
    let sandbox = Sandbox::with_vault();
    let plain = fs::metadata(sandbox.path("state")).unwrap().dev();
    // On a very slow machine the mount may be gone before it is first used.
    let mut file = loop {
        sandbox.mount_with(&["--idle", "2s"]);
        let file = File::create(sandbox.mountpoint().join("file")).unwrap();
        if file.metadata().unwrap().dev() != plain {
            break file;
        }
        fs::remove_file(sandbox.mountpoint().join("file")).unwrap();
    };
    let pid = sandbox.daemon_pid();
    // An open file is use, however long nothing happens.
    std::thread::sleep(Duration::from_secs(5));
    assert!(!process_is_gone(pid), "unmounted under an open file");
    file.write_all(b"last").unwrap();
    drop(file);
    wait_until("the unused mount to go", || process_is_gone(pid));
    assert_eq!(is_mounted(&sandbox), 1);
    assert_eq!(sandbox.cat(&sandbox.vault(), "latest:/file"), b"last");
}

#[test]
fn heavy_snapshot_every_makes_snapshots_while_mounted() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount_with(&["--snapshot-every", "1s"]);
    write(&sandbox, "file", b"one");
    wait_until("a first snapshot", || sequence(&sandbox).len() == 1);
    write(&sandbox, "file", b"two");
    wait_until("a second snapshot", || sequence(&sandbox).len() == 2);
    assert_eq!(sandbox.cat(&sandbox.vault(), "1:/file"), b"one");
    assert_eq!(is_mounted(&sandbox), 0);
    sandbox.umount();
    // Nothing changed since the second one.
    assert_eq!(sequence(&sandbox).len(), 2);
}

#[track_caller]
fn assert_read_only(dir: &Path) {
    let erofs = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    };
    erofs(fs::write(dir.join("new"), "x"));
    erofs(File::options().write(true).open(dir.join("file")).map(drop));
    erofs(fs::remove_file(dir.join("file")));
    erofs(fs::create_dir(dir.join("newdir")));
    erofs(fs::rename(dir.join("file"), dir.join("moved")));
    erofs(fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o777)));
}

#[test]
fn heavy_a_read_only_mount_refuses_writes() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    write(&sandbox, "file", b"content");
    sandbox.umount();
    for flags in [&["--read-only"][..], &["-o", "ro"]] {
        sandbox.mount_with(flags);
        assert_eq!(read(&sandbox, "file"), b"content");
        assert_read_only(&sandbox.mountpoint());
        sandbox.umount();
    }
    assert_eq!(sequence(&sandbox).len(), 1);
}

#[test]
fn heavy_a_snapshot_can_be_mounted_beside_the_working_tree() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    sandbox.sh("echo old > decrypted/file; mkdir decrypted/dir; head -c 3000000 /dev/urandom > decrypted/dir/big; cp -a decrypted expected").ok();
    sandbox.umount();
    sandbox.mount();
    sandbox.sh("echo new > decrypted/file; rm -r decrypted/dir").ok();

    let beside = sandbox.path("snapshot-mnt");
    fs::create_dir(&beside).unwrap();
    sandbox.keyed(&["mount", sandbox.vault_str(), &sandbox.str("snapshot-mnt"), "--snapshot", "latest"]).ok();
    assert_same_tree(&sandbox.path("expected"), &beside);
    assert_read_only(&beside);
    write(&sandbox, "live", b"goes on");
    assert!(!beside.join("live").exists());
    assert_eq!(read(&sandbox, "file"), b"new\n");
    sandbox.run(["umount", &sandbox.str("snapshot-mnt")]).ok();
    assert_eq!(fs::read_dir(&beside).unwrap().count(), 0);
    assert_eq!(is_mounted(&sandbox), 0);
    sandbox
        .keyed(&["mount", sandbox.vault_str(), &sandbox.str("snapshot-mnt"), "--snapshot", "77"])
        .fails(22);

    // Every snapshot stands in .snapshots too, which listings hide.
    let names: Vec<_> = fs::read_dir(sandbox.mountpoint()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name != ".snapshots"), "{names:?}");
    let hidden: Vec<PathBuf> =
        fs::read_dir(sandbox.mountpoint().join(".snapshots")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(hidden.len(), 1, "{hidden:?}");
    assert_same_tree(&sandbox.path("expected"), &hidden[0]);
    assert_eq!(
        fs::write(hidden[0].join("file"), "x").unwrap_err().raw_os_error(),
        Some(Errno::ROFS.raw_os_error())
    );
    sandbox.umount();
}

/// A foreground mount, killed at the end whatever happens.
struct Foreground(Child);

impl Drop for Foreground {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn heavy_in_the_foreground_the_status_is_that_of_the_whole_mount() {
    require_fuse();
    let sandbox = Sandbox::with_vault();
    let mut child = Foreground(
        sandbox
            .strongroom()
            .args(["mount", "-f", "-S", sandbox.vault_str(), &sandbox.str("decrypted")])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    child.0.stdin.take().unwrap().write_all(format!("{PASSPHRASE}\n").as_bytes()).unwrap();
    wait_until("the mount", || is_mounted(&sandbox) == 0);
    write(&sandbox, "file", b"x");
    assert!(child.0.try_wait().unwrap().is_none());
    sandbox.umount();
    assert!(child.0.wait().unwrap().success());
    assert_eq!(sandbox.cat(&sandbox.vault(), "latest:/file"), b"x");
    sandbox.keyed(&["mount", "-f", sandbox.vault_str(), &sandbox.str("nowhere")]).fails(21);
}
