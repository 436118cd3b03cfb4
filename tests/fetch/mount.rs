//! A snapshot at a remote behind a real mount.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::{World, from_sftp, from_url, s3_flags};
use crate::common::{Rng, assert_same_tree, require_fuse};
use crate::remote::s3_server::{Server, Trouble};
use crate::remote::sshd::Sshd;
use crate::remote::{s3_settings, sftp_settings};

/// A vault at a remote, and a directory to mount it on. The remote ends with this value.
struct Mounted<S> {
    world: World,
    server: S,
    flags: Vec<String>,
}

impl Mounted<Server> {
    fn new() -> Self {
        let world = Self::contents();
        let server = Server::start();
        let settings = s3_settings(&server, &world.sandbox.path(""));
        let flags = s3_flags(&settings);
        let args = ["remote", "add", world.vault(), "s3", &settings.url].into_iter();
        world.sandbox.run(args.chain(flags.iter().map(String::as_str))).ok();
        world.sandbox.run(["ship", world.vault(), "--to", "s3"]).ok();
        let flags = [from_url(&settings.url), flags].concat();
        Self { world, server, flags }
    }
}

impl Mounted<Sshd> {
    fn behind_sshd() -> Self {
        let world = Self::contents();
        world.ship();
        let server = Sshd::start(&world.sandbox.path("sshd"), "");
        let flags = from_sftp(&sftp_settings(&server, &world.usb()));
        Self { world, server, flags }
    }
}

impl<S> Mounted<S> {
    /// Waits until every file can be read: a machine that is busy may take longer for one than the time that was given.
    fn wait_until_read(&self) {
        for name in ["dir/big", "dir/other"] {
            crate::common::wait_until("the remote to be read again", || fs::read(self.at(name)).is_ok());
        }
    }

    fn contents() -> World {
        require_fuse();
        let world = World::new();
        let mut rng = Rng::new(11);
        fs::create_dir_all(world.source("dir/deep")).unwrap();
        fs::write(world.source("dir/big"), rng.bytes(12 << 20)).unwrap();
        fs::write(world.source("dir/other"), rng.bytes(9 << 20)).unwrap();
        fs::write(world.source("dir/deep/small"), "small").unwrap();
        world.snapshot();
        world
    }

    fn mount(&self, more: &[&str]) {
        let (mnt, log) = (self.world.sandbox.str("decrypted"), self.world.sandbox.str("daemon.log"));
        let rest: Vec<&str> = [mnt.as_str(), "--log", &log].into_iter().chain(more.iter().copied()).collect();
        self.world.from(&["mount"], &self.flags, &rest).ok();
    }

    /// Where a file of `source` is in the mount.
    fn at(&self, name: &str) -> PathBuf {
        let source = self.world.sandbox.str("source");
        self.world.sandbox.mountpoint().join(source.trim_start_matches('/')).join(name)
    }
}

#[test]
fn heavy_a_remote_is_mounted_and_reads_as_it_was() {
    let mounted = Mounted::new();
    mounted.mount(&["--cache-size", "64M"]);
    assert_same_tree(&mounted.world.source("dir"), &mounted.at("dir"));
    assert_eq!(fs::write(mounted.at("dir/new"), "x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    // What it is of is no directory here.
    let said = mounted.world.sandbox.run(["status", &mounted.world.sandbox.str("decrypted")]).fails(21);
    assert!(said.contains("can't find the vault"), "{said}");
    mounted.world.sandbox.umount();
    assert!(!mounted.at("dir").exists());
}

#[test]
fn heavy_a_server_that_stalls_is_an_error_and_no_hang() {
    let mounted = Mounted::new();
    mounted.mount(&["--remote-timeout", "1s"]);
    assert_eq!(fs::read(mounted.at("dir/deep/small")).unwrap(), b"small");
    mounted.server.set_trouble(|_, _, _| Some(Trouble::Stall));
    for _ in 0..2 {
        let error = fs::read(mounted.at("dir/big")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
    }
    // What is here already is read, and directories are listed.
    assert_eq!(fs::read(mounted.at("dir/deep/small")).unwrap(), b"small");
    assert_eq!(fs::read_dir(mounted.at("dir")).unwrap().count(), 3);
    // It comes back to life.
    mounted.server.calm();
    mounted.wait_until_read();
    assert_same_tree(&mounted.world.source("dir"), &mounted.at("dir"));
    mounted.world.sandbox.umount();
}

#[test]
fn heavy_a_stopped_sshd_is_an_error_and_no_hang() {
    let mounted = Mounted::behind_sshd();
    // Time enough to log in, however busy the machine is.
    mounted.mount(&["--remote-timeout", "10s"]);
    assert_eq!(fs::read(mounted.at("dir/deep/small")).unwrap(), b"small");
    mounted.server.stop();
    let error = fs::read(mounted.at("dir/big")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    // What is here already is read, and directories are listed.
    assert_eq!(fs::read(mounted.at("dir/deep/small")).unwrap(), b"small");
    assert_eq!(fs::read_dir(mounted.at("dir")).unwrap().count(), 3);
    mounted.server.resume();
    mounted.wait_until_read();
    assert_same_tree(&mounted.world.source("dir"), &mounted.at("dir"));
    mounted.world.sandbox.umount();
}

#[test]
fn heavy_a_server_that_dies_leaves_a_mount_that_can_be_unmounted() {
    let mounted = Mounted::new();
    mounted.mount(&["--remote-timeout", "1s"]);
    assert!(mounted.at("dir/big").exists());
    let Mounted { world, server, flags } = mounted;
    drop(server);
    let mounted = Mounted { world, server: Server::start(), flags };
    let error = fs::read(mounted.at("dir/big")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    mounted.world.sandbox.umount();
}

/// Somebody is in the middle of a read that gets no answer: the mount is detached at once, and the read ends by itself.
#[test]
fn heavy_unmounting_does_not_wait_for_the_remote() {
    let mounted = Mounted::new();
    mounted.mount(&["--remote-timeout", "5s"]);
    let big = mounted.at("dir/big");
    assert!(big.exists());
    let mountpoint = mounted.world.sandbox.str("decrypted");
    mounted.server.set_trouble(|_, _, _| Some(Trouble::Stall));
    let reader = std::thread::spawn(move || fs::read(big).map(|bytes| bytes.len()));
    crate::common::wait_until("the read to reach the server", || mounted.server.requests() > 0);
    mounted.world.sandbox.run(["umount", "--lazy", &mountpoint]).ok();
    crate::common::wait_until("the mount to be gone", || {
        !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&mountpoint)
    });
    // The kernel lets nobody out of a read that was handed over: only the deadline does.
    assert_eq!(reader.join().unwrap().unwrap_err().raw_os_error(), Some(5));
}

/// A directory whose filesystem does not answer any more, as one of a file server that is gone: here it is a mount of ours whose
/// daemon sleeps.
#[test]
fn heavy_a_directory_that_hangs_is_given_up() {
    require_fuse();
    let world = World::new();
    fs::write(world.source("file"), "content").unwrap();
    world.snapshot();
    world.ship();
    world.sandbox.mount();
    world.sandbox.sh("cp -r usb decrypted/copy").ok();
    let url = format!("file://{}", world.sandbox.mountpoint().join("copy").display());
    let list = |more: &[&str]| world.from(&["ls"], &from_url(&url), more);
    list(&[]).ok();
    let pid = world.sandbox.daemon_pid();
    crate::common::signal(pid, rustix::process::Signal::STOP);
    let done = list(&["--remote-timeout", "1s"]);
    crate::common::signal(pid, rustix::process::Signal::CONT);
    let said = done.fails(24);
    assert!(said.contains("no answer within 1.0 s") && said.contains("--remote-timeout"), "{said}");
    list(&[]).ok();
    world.sandbox.umount();
}
