//! Really full disks, under a remote and under a clone.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::{World, files, newest_complete};
use crate::common::{Rng, Sandbox, require_root};

/// An ext4 of a few MiB on a loop device, at `small` in a sandbox.
struct SmallDisk {
    // Dropped by hand: first the mount, then the image below it.
    world: Option<World>,
    at: PathBuf,
}

impl SmallDisk {
    fn new(mib: usize) -> Self {
        require_root();
        let world = World::around(Sandbox::with_vault());
        let make = format!(
            "truncate -s {mib}M image && mkfs.ext4 -q -m 0 image && mkdir small && mount -o loop image small"
        );
        world.sandbox.sh(&make).ok();
        let at = world.sandbox.path("small");
        Self { world: Some(world), at }
    }

    fn world(&self) -> &World {
        self.world.as_ref().unwrap()
    }

    /// Leaves about `bytes` free.
    fn fill_up_to(&self, bytes: u64) {
        let stat = rustix::fs::statvfs(&self.at).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let file = File::create(self.at.join("junk")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, free - bytes).unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.at.join("junk")).unwrap();
        // ext4 gives blocks back when its journal has committed.
        File::open(&self.at).map(rustix::fs::syncfs).unwrap().unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let Some(world) = self.world.take() else { return };
        drop(world.sandbox.command("umount").arg("-l").arg(&self.at).stderr(Stdio::null()).status());
    }
}

/// A MiB that does not compress.
fn noise(seed: u64) -> Vec<u8> {
    Rng::new(seed).bytes(1 << 20)
}

fn no_scratch(at: &Path) {
    let left: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "lock" || name == "snapshots"), "{left:?}");
}

#[test]
fn heavy_a_full_disk_at_the_far_side_is_said_and_loses_nothing() {
    let disk = SmallDisk::new(24);
    let world = disk.world();
    let url = format!("file://{}", disk.at.join("far").display());
    fs::create_dir(disk.at.join("far")).unwrap();
    world.run(&["remote", "add", world.vault(), "small", &url]).ok();
    world.snapshot("one", &noise(1));
    let ship = ["ship", world.vault(), "--to", "small"];
    world.run(&ship).ok();
    for n in 2..6 {
        world.snapshot(&format!("file{n}"), &noise(n));
    }
    disk.fill_up_to(5 << 19);
    let said = world.run(&ship).fails(24);
    assert!(said.contains("No space left") && said.contains("make room there"), "{said}");
    let far = disk.at.join("far");
    let newest = newest_complete(&far);
    assert!((1..5).contains(&newest), "{newest}");
    no_scratch(&far.join(".incoming"));
    let here = files(&world.sandbox.vault());
    assert!(files(&far).iter().all(|file| here.contains(file)), "nothing half is there");
    world.restore(&far, &newest.to_string(), &world.sandbox.path("out")).ok();
    assert_eq!(fs::read(world.sandbox.path("out/one")).unwrap(), noise(1));
    // Not a byte is free any more, and there is work to do: the same answer.
    let mut rest = File::create(disk.at.join("rest")).unwrap();
    while rest.write(&[0; 4096]).is_ok_and(|n| n > 0) {}
    drop(rest);
    world.run(&ship).fails(24);
    // What was being sent when the disk filled was given back, so that something smaller may have found room.
    let after = newest_complete(&far);
    assert!((newest..5).contains(&after), "{newest}, then {after}");
    no_scratch(&far.join(".incoming"));
    assert!(files(&far).iter().all(|file| here.contains(file)), "nothing half is there");
    fs::remove_file(disk.at.join("rest")).unwrap();
    disk.make_room();
    world.run(&ship).ok();
    assert_eq!(files(&far), here);
    world.restores(&far);
}

#[test]
fn heavy_a_full_disk_under_a_clone_is_said_and_gone_on_from() {
    let disk = SmallDisk::new(24);
    let world = disk.world();
    for n in 1..6 {
        world.snapshot(&format!("file{n}"), &noise(n));
    }
    world.ship();
    let to = disk.at.join("copy");
    let clone = ["clone", &world.url(), to.to_str().unwrap()];
    // Less than all packs need: seen before anything is fetched.
    disk.fill_up_to(5 << 19);
    let said = world.on("state-b", &clone).fails(19);
    assert!(said.contains("no space left") && said.contains("the same command goes on"), "{said}");
    assert!(!to.join("vault.json").exists() && !to.join("packs").exists());
    // Somebody else fills it meanwhile: as if it had been seen too late.
    disk.make_room();
    let filler = disk.at.join("late");
    let mut child = world
        .sandbox
        .strongroom()
        .args(clone)
        .args(["--limit-download", "2M", "--jobs", "1"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    crate::common::wait_until("a first pack", || to.join("packs").exists());
    let mut late = File::create(&filler).unwrap();
    while late.write(&[0; 4096]).is_ok_and(|n| n > 0) {}
    drop(late);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(19), "{status}");
    assert!(!to.join("vault.json").exists());
    no_scratch(&to.join("live/incoming"));
    let there = files(&world.far());
    assert!(files(&to).iter().all(|file| there.contains(file)), "nothing half is there");
    assert!(!files(&to).is_empty(), "what arrived stays");
    fs::remove_file(filler).unwrap();
    File::open(&disk.at).map(rustix::fs::syncfs).unwrap().unwrap();
    world.on("state-b", &clone).ok();
    assert_eq!(files(&to), there);
    world.restores(&to);
}
