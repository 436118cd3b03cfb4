//! `mount -o remount,...`: as mount(8) says it, as we say it, and as mount(2) does it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;

use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::common::{Helper, Sandbox, require_fuse, require_root};

/// The mount's own flags, as the kernel lists them.
fn flags(sandbox: &Sandbox) -> String {
    sandbox.tool("findmnt", ["-n", "-o", "VFS-OPTIONS", &sandbox.str("decrypted")]).ok().trim().to_string()
}

#[track_caller]
fn assert_read_only(sandbox: &Sandbox) {
    let file = sandbox.mountpoint().join("file");
    let kernel = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    let rofs = Some(Errno::ROFS.raw_os_error());
    assert_eq!(kernel(fs::write(&file, "x")), rofs);
    assert_eq!(kernel(fs::write(sandbox.mountpoint().join("new"), "x")), rofs);
    assert_eq!(kernel(fs::remove_file(&file)), rofs);
    assert_eq!(kernel(fs::create_dir(sandbox.mountpoint().join("dir"))), rofs);
    assert_eq!(kernel(fs::rename(&file, sandbox.mountpoint().join("moved"))), rofs);
    assert_eq!(kernel(fs::hard_link(&file, sandbox.mountpoint().join("link"))), rofs);
    assert_eq!(kernel(File::open(&file).unwrap().set_modified(std::time::UNIX_EPOCH)), rofs);
    let set = rustix::fs::setxattr(&file, "user.a", b"b", rustix::fs::XattrFlags::empty());
    assert_eq!(set, Err(Errno::ROFS));
    assert_eq!(fs::read(&file).unwrap(), b"content");
}

fn with_file() -> Sandbox {
    require_root();
    require_fuse();
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    fs::write(sandbox.mountpoint().join("file"), "content").unwrap();
    sandbox
}

#[test]
fn heavy_remount_read_only_and_back_through_mount_8() {
    let sandbox = with_file();
    let _installed = Helper::install();
    let mountpoint = sandbox.str("decrypted");
    assert_eq!(flags(&sandbox), "rw,nosuid,nodev,relatime");

    sandbox.tool("mount", ["-o", "remount,ro", &mountpoint]).ok();
    assert_eq!(flags(&sandbox), "ro,nosuid,nodev,relatime");
    assert_read_only(&sandbox);
    sandbox.tool("mount", ["-o", "remount,rw", &mountpoint]).ok();
    assert_eq!(flags(&sandbox), "rw,nosuid,nodev,relatime");
    fs::write(sandbox.mountpoint().join("file"), "content").unwrap();

    // A line of fstab, with what only a first mount needs.
    let line = format!(
        "{} {mountpoint} fuse.strongroom passfile={},nofail 0 0\n",
        sandbox.vault_str(),
        sandbox.passfile()
    );
    fs::write(sandbox.path("fstab"), line).unwrap();
    sandbox.tool("mount", ["--fstab", &sandbox.str("fstab"), "-o", "remount,ro", &mountpoint]).ok();
    assert_read_only(&sandbox);
    sandbox.tool("mount", ["-o", "remount,rw,noexec,noatime", &mountpoint]).ok();
    assert_eq!(flags(&sandbox), "rw,nosuid,nodev,noexec,noatime");
    fs::write(sandbox.mountpoint().join("after"), "written after all of this").unwrap();

    sandbox.umount();
    sandbox.mount();
    assert_eq!(fs::read(sandbox.mountpoint().join("after")).unwrap(), b"written after all of this");
    sandbox.umount();
    sandbox.assert_clean();
}

#[test]
fn heavy_remount_read_only_makes_everything_durable() {
    let sandbox = with_file();
    let (vault, mountpoint) = (sandbox.vault_str(), sandbox.str("decrypted"));
    let data: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(sandbox.mountpoint().join("unsynced"), &data).unwrap();
    sandbox.run(["mount", vault, &mountpoint, "-o", "remount,ro"]).ok();
    assert_read_only(&sandbox);
    assert_eq!(flags(&sandbox), "ro,nosuid,nodev,relatime");
    // Nothing but what the remount made durable is left of it.
    crate::common::kill_9(sandbox.daemon_pid());
    sandbox.mount();
    assert!(fs::read(sandbox.mountpoint().join("unsynced")).unwrap() == data);
    sandbox.umount();
    sandbox.assert_clean();
}

#[test]
fn heavy_remount_by_mount_2_alone_and_with_open_files() {
    let sandbox = with_file();
    let (vault, mountpoint) = (sandbox.vault_str(), sandbox.str("decrypted"));
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount_remount(&mountpoint, safe | MountFlags::RDONLY, c"").unwrap();
    assert_read_only(&sandbox);
    // The daemon goes on as before: nothing to write, and snapshots are made.
    let made = sandbox.run(["snapshot", "create", vault]);
    assert_eq!(made.code, 0, "{made:?}");
    rustix::mount::mount_remount(&mountpoint, safe, c"").unwrap();

    // Open for writing: refused, and nothing has changed.
    let mut open = OpenOptions::new().append(true).open(sandbox.mountpoint().join("file")).unwrap();
    let refused = sandbox.run(["mount", vault, &mountpoint, "-o", "remount,ro"]).fails(23);
    assert!(refused.contains("open for writing"), "{refused}");
    assert_eq!(flags(&sandbox), "rw,nosuid,nodev,relatime");
    open.write_all(b", and more").unwrap();
    drop(open);
    // Deleted and still open: the last close will have to write, too.
    let reader = File::open(sandbox.mountpoint().join("file")).unwrap();
    fs::remove_file(sandbox.mountpoint().join("file")).unwrap();
    let refused = sandbox.run(["mount", vault, &mountpoint, "-o", "remount,ro"]).fails(23);
    assert!(refused.contains("deleted"), "{refused}");
    drop(reader);
    sandbox.run(["mount", vault, &mountpoint, "-o", "remount,ro"]).ok();
    assert!(fs::write(sandbox.mountpoint().join("new"), "x").is_err());
    sandbox.umount();
    sandbox.assert_clean();
}

#[test]
fn heavy_remount_refuses_what_it_cannot_do() {
    let sandbox = with_file();
    let (vault, mountpoint) = (sandbox.vault_str(), sandbox.str("decrypted"));
    let say =
        |source: &str, target: &str, options: &str| sandbox.run(["mount", source, target, "-o", options]);
    assert!(say(vault, &mountpoint, "remount,noallow_other").fails(2).contains("other users"));
    assert!(say(vault, &mountpoint, "remount,rro").fails(2).contains("rro"));
    assert!(say(&sandbox.str("state"), &mountpoint, "remount,ro").fails(21).contains("not"));
    assert!(say(vault, &sandbox.str("state"), "remount,ro").fails(21).contains("no vault is mounted"));
    let with = sandbox.run(["with", vault, &mountpoint, "-o", "remount", "--", "true"]).fails(2);
    assert!(with.contains("remount"), "{with}");
    assert_eq!(flags(&sandbox), "rw,nosuid,nodev,relatime");
    sandbox.umount();

    // What is served read-only does not become writable, but its other flags change.
    sandbox.mount_with(&["-o", "ro"]);
    assert!(say(vault, &mountpoint, "remount,rw").fails(2).contains("read-only"));
    say(vault, &mountpoint, "remount,noexec").ok();
    assert_eq!(flags(&sandbox), "ro,nosuid,nodev,noexec,relatime");
    sandbox.umount();
    sandbox.mount_with(&["--snapshot", "latest"]);
    assert!(say(vault, &mountpoint, "remount,rw").fails(2).contains("read-only"));
    assert_read_only(&sandbox);
    // A user may not change flags: only root can.
    let script = format!("{} mount {vault} {mountpoint} -o remount,ro", env!("CARGO_BIN_EXE_strongroom"));
    let user = sandbox
        .tool("setpriv", ["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "bash", "-c", &script]);
    assert_eq!(user.code, 1, "{user:?}");
    assert!(user.stderr.contains("only root"), "{user:?}");
    sandbox.umount();
}
