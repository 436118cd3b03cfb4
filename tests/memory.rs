//! Memory stays bounded, whatever streams through the mount and however many files there are.

use std::fs::{self, File};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Rng, Sandbox, process_is_gone, seed};

/// What the daemon may hold at its worst moment.
const RESIDENT_KIB_MAX: u64 = 600 << 10;
const STREAM_BYTES: u64 = 8 << 30;
const FILES: usize = 200_000;

/// The high-water mark of a process's resident memory, in KiB; `None` when it has ended.
fn high_water_kib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Mounts, works, unmounts, and returns the most memory that the daemon ever held, its unmount included.
fn watched(sandbox: &Sandbox, work: impl FnOnce()) -> u64 {
    sandbox.mount();
    let pid = sandbox.daemon_pid();
    let (most, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The kernel keeps the maximum, so looking seldom misses nothing but the very end.
            while !process_is_gone(pid) && !done.load(Ordering::Relaxed) {
                if let Some(kib) = high_water_kib(pid) {
                    most.fetch_max(kib, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let start = Instant::now();
        work();
        println!(
            "work: {:.1} s, at most {} MiB",
            start.elapsed().as_secs_f64(),
            most.load(Ordering::Relaxed) >> 10
        );
        let start = Instant::now();
        sandbox.umount();
        println!(
            "umount: {:.1} s, at most {} MiB",
            start.elapsed().as_secs_f64(),
            most.load(Ordering::Relaxed) >> 10
        );
        done.store(true, Ordering::Relaxed);
    });
    most.into_inner()
}

#[track_caller]
fn assert_bounded(kib: u64) {
    assert!(kib > 0, "nothing was measured");
    assert!(kib <= RESIDENT_KIB_MAX, "the daemon held {} MiB", kib >> 10);
}

#[test]
fn heavy_streaming_8_gib_stays_below_600_mib() {
    let mut block = Rng::new(seed(0x5eed_0030)).bytes(1 << 20);
    let sandbox = Sandbox::with_vault();
    let most = watched(&sandbox, || {
        let mut file = File::create(sandbox.mountpoint().join("stream")).unwrap();
        for number in 0..STREAM_BYTES >> 20 {
            // Random to a compressor, and with no chunk like another: all of it has to be hashed, sealed, indexed and stored.
            for part in block.chunks_exact_mut(64 << 10) {
                part[..8].copy_from_slice(&number.to_le_bytes());
            }
            file.write_all(&block).unwrap();
        }
        file.sync_all().unwrap();
    });
    assert_bounded(most);
    let info = sandbox.run(["info", sandbox.vault_str(), "--json"]).json();
    assert!(info["pack_bytes"].as_u64().unwrap() >= STREAM_BYTES, "all of it was stored: {info}");

    // Reading it back is bounded too, and it is right at both ends and in the middle.
    let most = watched(&sandbox, || {
        use std::os::unix::fs::FileExt;
        let file = File::open(sandbox.mountpoint().join("stream")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), STREAM_BYTES);
        let mut found = vec![0; 1 << 20];
        for number in (0..STREAM_BYTES >> 20).step_by(16).chain([(STREAM_BYTES >> 20) - 1]) {
            for part in block.chunks_exact_mut(64 << 10) {
                part[..8].copy_from_slice(&number.to_le_bytes());
            }
            file.read_exact_at(&mut found, number << 20).unwrap();
            assert!(found == block, "MiB {number}");
        }
    });
    assert_bounded(most);
}

#[test]
fn heavy_200_000_files_stay_below_600_mib() {
    let mut rng = Rng::new(seed(0x5eed_0031));
    let sandbox = Sandbox::with_vault();
    let most = watched(&sandbox, || {
        for dir in 0..FILES / 1_000 {
            let dir = sandbox.mountpoint().join(format!("dir-{dir}"));
            fs::create_dir(&dir).unwrap();
            for file in 0..1_000 {
                fs::write(dir.join(format!("file-{file}")), rng.bytes(1024)).unwrap();
            }
        }
    });
    assert_bounded(most);
    // And walked through after a remount.
    let most = watched(&sandbox, || {
        let mut files = 0;
        for dir in fs::read_dir(sandbox.mountpoint()).unwrap() {
            for file in fs::read_dir(dir.unwrap().path()).unwrap() {
                assert_eq!(file.unwrap().metadata().unwrap().len(), 1024);
                files += 1;
            }
        }
        assert_eq!(files, FILES);
        fs::write(sandbox.mountpoint().join("dir-7/one-more"), "x").unwrap();
    });
    assert_bounded(most);
}
