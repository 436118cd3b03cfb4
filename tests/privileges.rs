//! A user without privileges: own vault, fusermount3, no root anywhere.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::common::{Finished, Sandbox, require_fuse, require_root};

/// nobody: every system has it, and it owns nothing.
const USER: u32 = 65_534;

/// Why fusermount3 can't work here, if so.
fn refuse_hopeless_environments() {
    require_root();
    require_fuse();
    let helper = Path::new("/usr/bin/fusermount3");
    let meta = fs::metadata(helper)
        .unwrap_or_else(|e| panic!("{}: {e}; install the package fuse3", helper.display()));
    assert!(
        meta.uid() == 0 && meta.permissions().mode() & 0o4000 != 0,
        "{} is not set-user-id root (mode {:o}): no user can mount here",
        helper.display(),
        meta.permissions().mode()
    );
    let status = fs::read_to_string("/proc/self/status").unwrap();
    assert!(
        !status.lines().any(|line| line.starts_with("NoNewPrivs:") && line.ends_with('1')),
        "this process has no_new_privs set, so that set-user-id programs such as fusermount3 do nothing"
    );
}

/// `/dev/fuse` as udev makes it on every distribution; machines without udev leave it to root.
struct FuseForAll {
    before: Option<fs::Permissions>,
}

impl FuseForAll {
    fn new() -> Self {
        let permissions = fs::metadata("/dev/fuse").unwrap().permissions();
        if permissions.mode() & 0o006 == 0o006 {
            return Self { before: None };
        }
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666))
            .unwrap_or_else(|e| panic!("/dev/fuse is closed to users, and root can't open it to them: {e}"));
        Self { before: Some(permissions) }
    }
}

impl Drop for FuseForAll {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            drop(fs::set_permissions("/dev/fuse", before));
        }
    }
}

/// Runs a script as the user; `strongroom` is the binary under test.
fn as_user(sandbox: &Sandbox, script: &str) -> Finished {
    let script = format!("strongroom() {{ {} \"$@\"; }}\n{script}", sandbox.str("strongroom"));
    sandbox.tool(
        "setpriv",
        ["--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-euo", "pipefail", "-c", &script],
    )
}

#[test]
fn heavy_a_normal_user_mounts_writes_unmounts_and_restores_an_own_vault() {
    refuse_hopeless_environments();
    let _open = FuseForAll::new();
    let sandbox = Sandbox::new();
    // A copy: the build directory may lie where only its owner may look.
    fs::copy(env!("CARGO_BIN_EXE_strongroom"), sandbox.path("strongroom")).unwrap();
    sandbox.sh(&format!("chmod 755 strongroom && chown -R {USER}:{USER} .")).ok();

    as_user(
        &sandbox,
        "strongroom init encrypted --passfile enc.txt --recovery-key-out recovery.txt --kdf-time 0",
    )
    .ok();
    as_user(&sandbox, "strongroom mount -S encrypted decrypted < enc.txt").ok();
    as_user(&sandbox, "strongroom is-mounted decrypted").ok();
    let line = sandbox.tool("findmnt", ["-n", "-o", "FSTYPE,OPTIONS", &sandbox.str("decrypted")]).ok();
    assert!(
        line.starts_with("fuse.strongroom ") && line.contains("nosuid") && line.contains("nodev"),
        "{line}"
    );
    assert!(!line.contains("allow_other"), "{line}");
    as_user(
        &sandbox,
        "mkdir -p decrypted/dir; head -c 3000000 /dev/urandom > decrypted/dir/big; ln decrypted/dir/big decrypted/link
         echo text > decrypted/text; chmod 640 decrypted/text; ln -s text decrypted/symlink
         [ $(stat -c %u decrypted/text) = 65534 ]
         mkdir expected; cp -a decrypted/. expected/
         strongroom status encrypted",
    )
    .ok();
    // Others, root among them, have no business there.
    assert!(fs::read(sandbox.mountpoint().join("text")).is_err());
    as_user(&sandbox, "exec 3< decrypted/text; strongroom umount decrypted").fails(23);
    as_user(&sandbox, "strongroom umount decrypted").ok();
    as_user(&sandbox, "strongroom is-mounted decrypted").fails(1);

    as_user(
        &sandbox,
        "strongroom restore encrypted --to restored --passfile enc.txt && diff -r expected restored",
    )
    .ok();
    crate::common::assert_same_tree(&sandbox.path("expected"), &sandbox.path("restored"));
    as_user(&sandbox, "strongroom mount -S encrypted decrypted < enc.txt && diff -r expected decrypted && fusermount3 -u decrypted && strongroom wait encrypted")
        .ok();

    // A protected mountpoint takes nothing while unmounted, also not from its owner, but can be mounted by him.
    as_user(&sandbox, "strongroom protect decrypted").ok();
    assert_eq!(fs::metadata(sandbox.mountpoint()).unwrap().mode() & 0o7777, 0);
    as_user(&sandbox, "echo plaintext > decrypted/leak").fails(1);
    as_user(&sandbox, "strongroom mount -S encrypted decrypted < enc.txt && diff -r expected decrypted && strongroom umount decrypted")
        .ok();
    assert_eq!(fs::metadata(sandbox.mountpoint()).unwrap().mode() & 0o7777, 0, "it is protected again");
    as_user(&sandbox, "strongroom protect --undo decrypted").ok();
    // Root's immutable flag keeps fusermount3 out; the message says whose it is and how it goes away.
    if sandbox.run(["protect", &sandbox.str("decrypted"), "--json"]).ok().contains("\"immutable\"") {
        let refused = as_user(&sandbox, "strongroom mount -S encrypted decrypted < enc.txt");
        assert_ne!(refused.code, 0);
        assert!(refused.stderr.contains("strongroom protect --undo"), "{}", refused.stderr);
        sandbox.run(["protect", "--undo", &sandbox.str("decrypted")]).ok();
    }

    // What only root may do is refused, and says so; what the user does not own stays closed to him.
    let refused = as_user(&sandbox, "strongroom mount -S encrypted decrypted -o dev < enc.txt");
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("root"), "{}", refused.stderr);
    let theirs = Sandbox::with_vault();
    fs::set_permissions(theirs.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    let closed = as_user(&sandbox, &format!("strongroom info {}", theirs.vault_str()));
    assert_eq!(closed.code, 20, "{closed:?}");
    assert_eq!(sandbox.fsck(&sandbox.vault()).code, 0);
}

/// Who is not root fills directories that an interrupted restore left read-only, and they end as they were.
#[test]
fn a_normal_user_restores_again_over_read_only_directories() {
    require_root();
    let sandbox = Sandbox::new();
    fs::copy(env!("CARGO_BIN_EXE_strongroom"), sandbox.path("strongroom")).unwrap();
    sandbox.sh(&format!("chmod 755 strongroom && chown -R {USER}:{USER} .")).ok();
    as_user(
        &sandbox,
        "strongroom init encrypted --passfile enc.txt --recovery-key-out recovery.txt --kdf-time 0
         mkdir -p source/top/closed/below source/top/blind; cd source/top
         echo one > closed/one; echo two > closed/two; echo three > closed/below/three; echo four > blind/four
         chmod 444 closed/one; chmod 555 closed closed/below .",
    )
    .ok();
    let source = sandbox.str("source");
    as_user(&sandbox, &format!("strongroom import encrypted {source} --passfile enc.txt")).ok();
    let restore = format!("strongroom restore encrypted 'latest:{source}' --to out --passfile enc.txt");
    as_user(&sandbox, &restore).ok();
    // As a run that was given up would have left it.
    sandbox
        .sh("rm out/top/closed/two out/top/blind/four; rm -r out/top/closed/below; touch out/top/closed; chmod 111 out/top/blind")
        .ok();
    as_user(&sandbox, &restore).fails(3);
    as_user(&sandbox, &format!("{restore} --overwrite")).ok();
    crate::common::assert_same_tree(&sandbox.path("source/top"), &sandbox.path("out/top"));
}
