//! A vault mounted inside the test's own process: what needs no daemon and no command line. These tests need /dev/fuse and
//! root; without them they fail and say so.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::control::{self, Request};
use super::error::ErrorKind;
use super::holder::{self, Holder};
use super::mountpoint::{self, CheckOptions};
use super::options::MountOptions;
use super::runtime::Running;
use super::serve::{ServeOptions, serve_live, serve_snapshot, unmount_and_wait};
use super::status::{State, Status};
use crate::crypto::RootSecret;
use crate::crypto::SecretBytes;
use crate::crypto::slots::{Argon2Cost, Credential, add_slot, new_header};
use crate::disk::{Disk, RealDisk};
use crate::env::SystemEnv;
use crate::format::header::{ChunkerParams, Cipher};
use crate::snapshot::chain::{Chain, open_sealed, present_packs};
use crate::snapshot::open::{self, OpenOptions as VaultOpen, Unlocked};
use crate::store::config::EngineConfig;
use crate::store::engine::Engine;
use crate::store::header;

mod million;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        assert!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing: these tests need the kernel's FUSE");
        assert!(rustix::process::geteuid().is_root(), "these tests mount, which needs root");
        let dir = tempfile::tempdir().unwrap();
        for name in ["vault", "mnt"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let world = Self { dir };
        let env = SystemEnv;
        let root = RootSecret::generate(&env);
        let chunker = ChunkerParams { min: 512 << 10, avg: 1 << 20, max: 4 << 20 };
        let mut header =
            new_header(&env, &root, Cipher::ChaCha20Poly1305, chunker, "2026-11-21T00:00:00Z".into());
        let created = "2026-11-21T00:00:00Z".to_string();
        add_slot(&env, &mut header, &root, &Self::key(), Argon2Cost::TEST, "test".into(), created).unwrap();
        open::create_vault(&RealDisk::open(&world.vault()).unwrap(), header, &root).unwrap();
        world
    }

    fn key() -> Credential {
        Credential::Passphrase(SecretBytes::new(b"test".to_vec()))
    }

    fn vault(&self) -> PathBuf {
        self.dir.path().join("vault").canonicalize().unwrap()
    }

    fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt").canonicalize().unwrap()
    }

    fn unlock(&self) -> (Arc<dyn Disk>, Unlocked) {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&self.vault()).unwrap());
        let unlocked = open::unlock(header::load(disk.as_ref()).unwrap(), &Self::key()).unwrap();
        (disk, unlocked)
    }

    fn options(&self, options: MountOptions) -> ServeOptions {
        let mountpoint = mountpoint::check(&self.mnt(), &self.vault(), CheckOptions::default()).unwrap();
        ServeOptions { vault: self.vault(), mountpoint, options, host: "test".into(), signals: false }
    }

    fn engine(&self, cfg: EngineConfig, options: &ServeOptions) -> Arc<Engine> {
        let (disk, unlocked) = self.unlock();
        let opts = VaultOpen {
            cfg,
            owner: (0, 0),
            path: self.vault().to_string_lossy().into_owned(),
            highwater: None,
            accept_rollback: false,
            discard_live: false,
            holder_note: holder::note("mount", Some(&options.mountpoint)),
        };
        open::open_engine(disk, Arc::new(SystemEnv), &unlocked, opts).unwrap().engine
    }

    fn mount_with(&self, cfg: EngineConfig, options: MountOptions) -> Running {
        let options = self.options(options);
        serve_live(self.engine(cfg, &options), &options).unwrap()
    }

    fn mount(&self) -> Running {
        self.mount_with(EngineConfig::default(), MountOptions::default())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Only after a failed test is anything left to unmount.
        let _ = rustix::mount::unmount(self.dir.path().join("mnt"), rustix::mount::UnmountFlags::DETACH);
    }
}

fn end(running: Running) {
    unmount_and_wait(running, Duration::from_secs(5)).unwrap();
}

fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&(seed ^ (seed >> 29)).to_le_bytes());
    }
    out.truncate(len);
    out
}

#[test]
fn what_is_written_is_there_after_a_remount() {
    let world = World::new();
    let (mnt, data) = (world.mnt(), noise(20 << 20, 1));
    let running = world.mount();
    fs::create_dir_all(mnt.join("a/b")).unwrap();
    fs::write(mnt.join("a/b/big"), &data).unwrap();
    fs::write(mnt.join("small"), b"hello").unwrap();
    assert!(fs::read(mnt.join("a/b/big")).unwrap() == data);
    end(running);
    let running = world.mount();
    assert!(fs::read(mnt.join("a/b/big")).unwrap() == data);
    assert_eq!(fs::read(mnt.join("small")).unwrap(), b"hello");
    end(running);
}

#[test]
fn others_learn_who_holds_it_and_how_it_ended() {
    let world = World::new();
    let (vault, mnt) = (world.vault(), world.mnt());
    assert_eq!(holder::probe(&vault).unwrap(), Holder::Free);
    let running = world.mount();
    let pid = std::process::id();
    assert_eq!(holder::probe(&vault).unwrap(), Holder::Mounted { pid, mountpoint: mnt.clone() });
    assert_eq!(holder::wait_until_free(&vault, None, &mut |_| {}).unwrap_err().kind, ErrorKind::InUse);
    assert!(mountpoint::is_mounted(&mnt).unwrap());
    let line = mountpoint::find(&mnt).unwrap().unwrap();
    assert_eq!(line.fstype, "fuse.strongroom");
    assert_eq!(holder::vault_of(&line), Some(vault.clone()));
    assert_eq!(line.device, running.device());
    let status = control::call(&vault, &Request::Status, &mut |_| {}).unwrap().unwrap().unwrap();
    assert_eq!(status["status"]["state"], "mounted");
    assert!(status["counters"]["writing"].as_bool().unwrap());
    end(running);
    assert_eq!(holder::probe(&vault).unwrap(), Holder::Free);
    let status = Status::read(&RealDisk::open(&vault).unwrap()).unwrap().unwrap();
    assert_eq!((status.state, status.clean, status.last_error), (State::Closed, true, None));
    assert!(!control::is_listening(&vault));
}

#[test]
fn a_plain_umount_ends_everything_properly() {
    let world = World::new();
    let running = world.mount();
    fs::write(world.mnt().join("f"), noise(5 << 20, 2)).unwrap();
    rustix::mount::unmount(world.mnt(), rustix::mount::UnmountFlags::empty()).unwrap();
    running.wait().unwrap();
    let running = world.mount();
    assert!(fs::read(world.mnt().join("f")).unwrap() == noise(5 << 20, 2));
    end(running);
}

#[test]
fn requests_over_the_socket_do_what_they_say() {
    let world = World::new();
    let (vault, mnt) = (world.vault(), world.mnt());
    let running = world.mount();
    let ask = |request: Request| control::call(&vault, &request, &mut |_| {}).unwrap().unwrap();
    fs::write(mnt.join("f"), b"one").unwrap();
    let first = ask(Request::SnapshotCreate { tags: vec!["t".into()], force: false }).unwrap();
    assert_eq!(first["tags"][0], "t");
    let none = ask(Request::SnapshotCreate { tags: vec![], force: false }).unwrap();
    assert!(none.is_null(), "nothing changed: {none}");
    fs::write(mnt.join("f"), b"two").unwrap();
    ask(Request::Sync).unwrap();
    ask(Request::SnapshotCreate { tags: vec![], force: false }).unwrap();
    let names: Vec<_> = fs::read_dir(mnt.join(".snapshots")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let mut contents: Vec<_> = names.iter().map(|dir| fs::read(dir.join("f")).unwrap()).collect();
    contents.sort();
    assert_eq!(contents, [b"one", b"two"]);
    assert!(fs::write(names[0].join("g"), b"x").is_err());
    assert!(fs::read_dir(&mnt).unwrap().all(|e| e.unwrap().file_name() != ".snapshots"));
    let seq = first["seq"].to_string();
    ask(Request::SnapshotDelete { snapshots: vec![seq], force: false }).unwrap();
    assert_eq!(
        ask(Request::SnapshotDelete { snapshots: vec!["4711".into()], force: false }).unwrap_err().code,
        22
    );
    ask(Request::Gc { dry_run: true, dead_percent: None }).unwrap();
    ask(Request::Gc { dry_run: false, dead_percent: Some(50) }).unwrap();
    assert_eq!(fs::read(mnt.join("f")).unwrap(), b"two");
    // A busy mount is not unmounted; our own process uses it.
    let open = File::open(mnt.join("f")).unwrap();
    assert_eq!(ask(Request::Unmount { lazy: false }).unwrap_err().code, 23);
    drop(open);
    ask(Request::Unmount { lazy: false }).unwrap();
    running.wait().unwrap();
}

#[test]
fn a_snapshot_is_mounted_by_itself() {
    let world = World::new();
    let mnt = world.mnt();
    let running = world.mount();
    fs::create_dir(mnt.join("d")).unwrap();
    fs::write(mnt.join("d/f"), noise(3 << 20, 3)).unwrap();
    end(running);
    let (disk, unlocked) = world.unlock();
    let chain = Chain::load(disk.as_ref(), &unlocked.header).unwrap();
    let newest = chain.latest(&present_packs(disk.as_ref()).unwrap(), None).complete.unwrap();
    let root = open_sealed(disk.as_ref(), &unlocked.keys, newest).unwrap().root.unwrap();
    let packs = open::open_cold(disk.clone(), &unlocked, &chain, &[newest.seq], 16 << 20).unwrap();
    let fs_one = crate::fs::Fs::open_snapshot(Arc::new(packs), root.entry);
    let running = serve_snapshot(fs_one, &world.options(MountOptions::default())).unwrap();
    assert!(fs::read(mnt.join("d/f")).unwrap() == noise(3 << 20, 3));
    let error = fs::write(mnt.join("new"), b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 1);
    end(running);
}

#[test]
fn small_memory_blocks_writers_but_not_lookups() {
    let world = World::new();
    let cfg = EngineConfig { dirty_bytes_max: 16 << 20, workers: 1, ..EngineConfig::default() };
    let running = world.mount_with(cfg, MountOptions::default());
    let mnt = world.mnt();
    let writers: Vec<_> = (0..12)
        .map(|i| {
            let path = mnt.join(format!("w{i}"));
            std::thread::spawn(move || fs::write(path, noise(24 << 20, i)).unwrap())
        })
        .collect();
    let mut slowest = Duration::ZERO;
    while !writers.iter().all(std::thread::JoinHandle::is_finished) {
        let start = std::time::Instant::now();
        assert!(!mnt.join(format!("missing{start:?}")).exists());
        fs::read_dir(&mnt).unwrap().count();
        slowest = slowest.max(start.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(slowest < Duration::from_secs(2), "a listing took {slowest:?}");
    for i in 0..12 {
        assert!(fs::read(mnt.join(format!("w{i}"))).unwrap() == noise(24 << 20, i), "file {i}");
    }
    end(running);
}

#[test]
fn attributes_stay_true_in_the_kernels_cache() {
    let world = World::new();
    let running = world.mount();
    let mnt = world.mnt();
    let path = mnt.join("f");
    fs::write(&path, [9; 100_000]).unwrap();
    assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 90_000);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    // Root keeps the bits.
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"x").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6777);
    fs::hard_link(&path, mnt.join("g")).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 2);
    fs::remove_file(mnt.join("g")).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.set_len(50).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 50);
    let copy = File::create(mnt.join("copy")).unwrap();
    assert_eq!(rustix::fs::copy_file_range(&file, Some(&mut 0), &copy, Some(&mut 0), 50), Ok(50));
    assert_eq!(copy.metadata().unwrap().len(), 50);
    let mut back = [0; 50];
    File::open(mnt.join("copy")).unwrap().read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, [9; 50]);
    end_after(running, (file, copy));
}

fn end_after<T>(running: Running, open: T) {
    drop(open);
    end(running);
}
