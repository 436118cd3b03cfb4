//! A full disk under the vault (C2): ENOSPC for the writer, nothing lost, and unlink, unmount and gc still work.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::common::{Rng, Sandbox, require_root, seed, write_synced};

const MIB: usize = 1 << 20;
/// Size of the disk under the vault.
const DISK_MIB: usize = 200;
/// What `df` may still show when a writer got ENOSPC.
const AVAILABLE_WHEN_FULL_MAX: u64 = 8 << 20;

/// An ext4 of [`DISK_MIB`] on a loop device at `disk`, with the vault in it, and a ledger of what was fsynced.
struct SmallDisk {
    // Before the sandbox: fields are dropped in this order, and the vault must be let go first by the hand below.
    sandbox: Option<Sandbox>,
    at: PathBuf,
    rng: Rng,
    ledger: BTreeMap<String, Vec<u8>>,
}

impl SmallDisk {
    fn new(seed: u64) -> Self {
        require_root();
        let sandbox = Sandbox::with_vault_at("disk/encrypted");
        sandbox
            .sh(&format!("truncate -s {DISK_MIB}M image && mkfs.ext4 -q -m 0 image && mkdir disk && mount -o loop image disk"))
            .ok();
        sandbox.init();
        let at = sandbox.path("disk");
        Self { sandbox: Some(sandbox), at, rng: Rng::new(seed), ledger: BTreeMap::new() }
    }

    fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().unwrap()
    }

    fn mounted(&self, name: &str) -> PathBuf {
        self.sandbox().mountpoint().join(name)
    }

    /// Writes and fsyncs a file of random bytes, and only then puts it into the ledger.
    fn write(&mut self, name: &str, len: usize) -> io::Result<()> {
        let bytes = self.rng.bytes(len);
        write_synced(&self.mounted(name), &bytes)?;
        self.ledger.insert(name.to_string(), bytes);
        Ok(())
    }

    /// Writes files of 4 MiB until one fails; that one is removed. Returns how many were written.
    fn fill(&mut self, prefix: &str) -> usize {
        for number in 0.. {
            let name = format!("{prefix}{number}");
            if let Err(error) = self.write(&name, 4 * MIB) {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "a full disk is ENOSPC, not {error}");
                let available = available(&self.sandbox().mountpoint());
                assert!(available <= AVAILABLE_WHEN_FULL_MAX, "ENOSPC, but df shows {available} bytes");
                // Even its name may not have fitted.
                if let Err(error) = fs::remove_file(self.mounted(&name)) {
                    assert_eq!(error.kind(), ErrorKind::NotFound, "unlink on a full disk: {error}");
                }
                return number;
            }
            assert!(number * 4 < DISK_MIB, "more was written than the disk holds");
        }
        unreachable!("the loop ends with the disk")
    }

    fn remove(&mut self, name: &str) {
        fs::remove_file(self.mounted(name)).expect("unlink on a full disk");
        self.ledger.remove(name);
    }

    /// Everything in the ledger reads back as it was, and nothing else is there.
    #[track_caller]
    fn verify_in(&self, dir: &Path) {
        for (name, bytes) in &self.ledger {
            let found = fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{name} was fsynced: {e}"));
            assert!(
                found == *bytes,
                "{name} was fsynced and changed ({} bytes of {})",
                found.len(),
                bytes.len()
            );
        }
    }

    #[track_caller]
    fn verify(&self) {
        self.verify_in(&self.sandbox().mountpoint());
    }

    /// Another program fills the disk to the last block.
    fn junk(&self) {
        let mut file = File::create(self.at.join("junk")).unwrap();
        let block = vec![0x55; MIB];
        for len in [MIB, 4096] {
            while let Ok(n) = file.write(&block[..len]) {
                if n < len {
                    break;
                }
            }
        }
        file.sync_all().unwrap();
        assert!(available(&self.at) < 64 << 10, "the disk is full");
    }

    fn remove_junk(&self) {
        fs::remove_file(self.at.join("junk")).unwrap();
        // ext4 gives blocks back when its journal has committed.
        File::open(&self.at).map(rustix::fs::syncfs).unwrap().unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The daemon is let go first, then the disk, then the image below it.
        let Some(sandbox) = self.sandbox.take() else { return };
        for target in [sandbox.mountpoint(), self.at.clone()] {
            drop(sandbox.command("umount").arg("-l").arg(target).stderr(Stdio::null()).status());
        }
    }
}

/// What `df` shows.
fn available(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bavail * stat.f_frsize
}

#[test]
fn heavy_a_full_disk_refuses_writers_and_loses_nothing() {
    let mut disk = SmallDisk::new(seed(0x5eed_0002));
    disk.sandbox().mount();
    let reserve = disk.sandbox().vault().join("live/reserve");
    let held = move || fs::metadata(&reserve).map_or(0, |meta| meta.blocks() * 512);
    assert!(held() >= 4 << 20, "a small disk has a reserve too, not of {} bytes", held());
    assert!(held() <= (DISK_MIB * MIB) as u64 / 12, "the reserve takes {} bytes of a small disk", held());
    for number in 0..20 {
        disk.write(&format!("keep{number}"), 300_000 + 1_000 * number).unwrap();
    }
    let before = available(&disk.sandbox().mountpoint());
    assert!(before < (DISK_MIB * MIB) as u64, "df shows no more than the disk has");
    let filled = disk.fill("fill");
    assert!(filled >= 15, "a disk of {DISK_MIB} MiB took only {filled} files of 4 MiB");
    println!(
        "{filled} files: {}",
        disk.sandbox().sh("df -k disk; ls -laR disk/encrypted | grep -v '^d'").ok()
    );
    disk.verify();

    // A small file fails with ENOSPC or fits into what is left; nothing else.
    for number in 0..50 {
        if let Err(error) = disk.write(&format!("small{number}"), 2_000) {
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        }
    }
    // Unlink, rename and truncate work, and are durable.
    disk.remove("fill0");
    fs::rename(disk.mounted("fill1"), disk.mounted("renamed")).unwrap();
    let moved = disk.ledger.remove("fill1").unwrap();
    disk.ledger.insert("renamed".into(), moved);
    File::open(disk.sandbox().mountpoint()).unwrap().sync_all().unwrap();
    disk.verify();

    // Unmounting works while full, makes its snapshot, and everything is there after it.
    disk.sandbox().umount();
    assert_eq!(disk.sandbox().snapshots().len(), 1, "the unmount made a snapshot");
    disk.sandbox().assert_clean();
    let restored = disk.sandbox().str("restored");
    disk.sandbox().keyed(&["restore", disk.sandbox().vault_str(), "--to", &restored]).ok();
    disk.verify_in(Path::new(&restored));
    fs::remove_dir_all(&restored).unwrap();

    // The space of deleted files comes back once no snapshot needs them: delete it, then gc.
    disk.sandbox().mount();
    disk.verify();
    let fills: Vec<String> = disk.ledger.keys().filter(|name| name.starts_with("fill")).cloned().collect();
    for name in fills {
        disk.remove(&name);
    }
    disk.sandbox().umount();
    let kept = available(&disk.at);
    let vault = disk.sandbox().vault_str();
    assert_eq!(disk.sandbox().snapshots().len(), 2);
    disk.sandbox().keyed(&["snapshot", "delete", vault, "1"]).ok();
    println!("{}", disk.sandbox().keyed(&["gc", vault, "--json"]).ok());
    println!("{}", disk.sandbox().sh("df -k disk; ls -laR disk/encrypted | grep -v '^d'").ok());
    let freed = available(&disk.at);
    assert!(freed > kept + 50 * MIB as u64, "gc freed only {} bytes", freed.saturating_sub(kept));
    disk.sandbox().mount();
    for number in 0..10 {
        disk.write(&format!("again{number}"), 4 * MIB).expect("freed space is usable again");
    }
    disk.verify();
    disk.sandbox().umount();
    disk.sandbox().assert_clean();
    disk.sandbox().mount();
    disk.verify();
    disk.sandbox().umount();
}

#[test]
fn heavy_a_disk_filled_by_another_program_loses_nothing_that_was_synced() {
    let mut disk = SmallDisk::new(seed(0x5eed_0003));
    disk.sandbox().mount();
    for number in 0..20 {
        disk.write(&format!("keep{number}"), 200_000).unwrap();
    }
    // Dirty data: written, not synced, when the disk fills up under it.
    let dirty = disk.rng.bytes(24 * MIB);
    let mut file = File::create(disk.mounted("dirty")).unwrap();
    file.write_all(&dirty).unwrap();
    disk.junk();
    // It may be durable already, or fit into the reserve; if not, the writer hears of it.
    match file.sync_all() {
        Ok(()) => drop(disk.ledger.insert("dirty".into(), dirty)),
        Err(error) => assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}"),
    }
    drop(file);
    for number in 0..5 {
        if let Err(error) = disk.write(&format!("full{number}"), MIB) {
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        }
    }
    disk.verify();
    disk.remove("keep0");
    File::open(disk.sandbox().mountpoint()).unwrap().sync_all().expect("an unlink is durable on a full disk");

    // With the junk gone, writing works again without a remount.
    disk.remove_junk();
    for number in 0..5 {
        disk.write(&format!("after{number}"), MIB).expect("there is space again");
    }
    disk.verify();
    assert!(!disk.mounted("keep0").exists());
    disk.sandbox().umount();
    disk.sandbox().assert_clean();
    disk.sandbox().mount();
    disk.verify();
    assert!(!disk.mounted("keep0").exists());
    disk.sandbox().umount();
}

#[test]
fn heavy_unmounting_a_vault_on_a_filled_disk_keeps_what_was_synced() {
    let mut disk = SmallDisk::new(seed(0x5eed_0004));
    disk.sandbox().mount();
    for number in 0..20 {
        disk.write(&format!("keep{number}"), 200_000).unwrap();
    }
    let dirty = disk.rng.bytes(8 * MIB);
    let mut file = File::create(disk.mounted("dirty")).unwrap();
    file.write_all(&dirty).unwrap();
    drop(file);
    disk.junk();
    let done = disk.sandbox().run(["umount", &disk.sandbox().str("decrypted")]);
    // What was never synced may not have fitted: then the status says so, and names the reason.
    assert!(matches!(done.code, 0 | 19), "{done:?}");
    if done.code == 0 {
        disk.ledger.insert("dirty".into(), dirty);
    } else {
        assert!(
            done.stderr.to_lowercase().contains("space") || done.stderr.contains("full"),
            "{}",
            done.stderr
        );
        assert!(done.stderr.contains("hint: ") && done.stderr.contains("strongroom gc"), "{}", done.stderr);
    }
    disk.sandbox().run(["is-mounted", &disk.sandbox().str("decrypted")]).fails(1);

    disk.remove_junk();
    disk.sandbox().mount();
    disk.verify();
    disk.sandbox().umount();
    disk.sandbox().assert_clean();
    let restored = disk.sandbox().str("restored");
    disk.sandbox().keyed(&["restore", disk.sandbox().vault_str(), "--to", &restored]).ok();
    disk.verify_in(Path::new(&restored));
}
