//! Many threads at once that write, truncate, rename, link and delete, while snapshots are made: what each thread did in its own
//! directory must be there exactly; what they did to each other's files must never show a mixture.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Rng, Sandbox, assert_same_tree, require_fuse, seed};

const THREADS: u64 = 6;
const STEPS: usize = 500;
/// Names in a thread's directory, and in the shared one.
const NAMES: usize = 12;
const LEN_MAX: usize = 300_000;

/// One thread's directory and what must be in it.
struct Owner {
    dir: PathBuf,
    shared: PathBuf,
    rng: Rng,
    files: BTreeMap<String, Vec<u8>>,
}

impl Owner {
    fn name(&mut self) -> String {
        format!("f{}", self.rng.below(NAMES))
    }

    fn step(&mut self, number: usize) {
        let name = self.name();
        let path = self.dir.join(&name);
        match self.rng.below(100) {
            0..25 => {
                let len = self.rng.below(LEN_MAX);
                let bytes = self.rng.bytes(len);
                fs::write(&path, &bytes).unwrap();
                self.files.insert(name, bytes);
            }
            25..40 => self.write_into(name),
            40..52 => {
                let Some(bytes) = self.files.get_mut(&name) else { return };
                let len = self.rng.below(LEN_MAX);
                OpenOptions::new().write(true).open(&path).unwrap().set_len(len as u64).unwrap();
                bytes.resize(len, 0);
            }
            52..65 => {
                let to = self.name();
                let renamed = fs::rename(&path, self.dir.join(&to));
                match self.files.remove(&name) {
                    Some(bytes) => {
                        renamed.unwrap();
                        self.files.insert(to, bytes);
                    }
                    None => assert_eq!(renamed.unwrap_err().kind(), ErrorKind::NotFound),
                }
            }
            65..75 => match (fs::remove_file(&path), self.files.remove(&name)) {
                (done, Some(_)) => done.unwrap(),
                (done, None) => assert_eq!(done.unwrap_err().kind(), ErrorKind::NotFound),
            },
            75..85 => {
                let Some(bytes) = self.files.get(&name) else { return };
                assert!(fs::read(&path).unwrap() == *bytes, "{}", path.display());
            }
            85..88 => {
                let Some(bytes) = self.files.get(&name) else { return };
                let file = File::open(&path).unwrap();
                file.sync_all().unwrap();
                assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
            }
            88..91 => {
                // A name of its own while it is open; then none.
                let (other, mut late) = (self.dir.join("linked"), vec![0; 10]);
                let Some(bytes) = self.files.remove(&name) else { return };
                fs::hard_link(&path, &other).unwrap();
                let file = OpenOptions::new().read(true).write(true).open(&other).unwrap();
                fs::remove_file(&path).unwrap();
                fs::remove_file(&other).unwrap();
                file.write_all_at(b"still here", bytes.len() as u64).unwrap();
                file.read_exact_at(&mut late, bytes.len() as u64).unwrap();
                assert_eq!(late, b"still here");
            }
            _ => self.shared_step(number),
        }
    }

    fn write_into(&mut self, name: String) {
        let (at, len) = (self.rng.below(LEN_MAX), self.rng.below(50_000));
        let data = self.rng.bytes(len);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(self.dir.join(&name)).unwrap();
        file.write_all_at(&data, at as u64).unwrap();
        let bytes = self.files.entry(name).or_default();
        if !data.is_empty() {
            bytes.resize(bytes.len().max(at + len), 0);
            bytes[at..at + len].copy_from_slice(&data);
        }
    }

    /// In the directory that all share, files appear whole, by renaming. Those named `s` also go; those named `k` are only ever
    /// replaced, so that not even a snapshot may show less than a whole one.
    fn shared_step(&mut self, number: usize) {
        let kept = self.rng.chance(50);
        let target = self.shared.join(format!("{}{}", if kept { 'k' } else { 's' }, self.rng.below(NAMES)));
        match self.rng.below(4) {
            0 if !kept => match fs::remove_file(&target) {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
            },
            1 => match fs::read(&target) {
                Ok(bytes) => assert_whole(&target, &bytes),
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
            },
            _ => {
                let temporary = self.dir.join("temporary");
                let mut file = File::create(&temporary).unwrap();
                let fill = u8::try_from(1 + self.rng.below(255)).unwrap();
                file.write_all(&whole(fill, 1 + (number * 977) % LEN_MAX)).unwrap();
                drop(file);
                fs::rename(&temporary, &target).unwrap();
            }
        }
    }
}

/// A file that tells whether it is whole: one byte, repeated, and the length at its end.
fn whole(fill: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![fill; len];
    bytes.extend_from_slice(&(len as u64).to_le_bytes());
    bytes
}

#[track_caller]
fn assert_whole(path: &Path, bytes: &[u8]) {
    let (content, len) = bytes.split_last_chunk::<8>().unwrap_or_else(|| panic!("{} is cut", path.display()));
    assert_eq!(u64::from_le_bytes(*len), content.len() as u64, "{}", path.display());
    assert!(content.iter().all(|byte| *byte == content[0]), "{} is mixed", path.display());
}

#[track_caller]
fn assert_all_whole(dir: &Path, prefix: &str) -> usize {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix));
    for path in &entries {
        assert_whole(path, &fs::read(path).unwrap());
    }
    entries.len()
}

#[track_caller]
fn assert_owned(owners: &[Owner], root: &Path) {
    for (number, owner) in owners.iter().enumerate() {
        let dir = root.join(format!("own{number}"));
        let mut names: Vec<String> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, owner.files.keys().cloned().collect::<Vec<_>>(), "{}", dir.display());
        for (name, bytes) in &owner.files {
            assert!(fs::read(dir.join(name)).unwrap() == *bytes, "{}/{name}", dir.display());
        }
    }
}

#[test]
fn heavy_storm_of_threads_and_snapshots() {
    require_fuse();
    let seed = seed(99);
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let root = sandbox.mountpoint();
    let shared = root.join("shared");
    fs::create_dir(&shared).unwrap();
    for n in 0..NAMES {
        fs::write(shared.join(format!("k{n}")), whole(1, 100)).unwrap();
    }
    let mut owners: Vec<Owner> = (0..THREADS)
        .map(|n| {
            let dir = root.join(format!("own{n}"));
            fs::create_dir(&dir).unwrap();
            Owner { dir, shared: shared.clone(), rng: Rng::new(seed + n), files: BTreeMap::new() }
        })
        .collect();

    let over = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let snapshots = scope.spawn(|| {
            let mut made = 0;
            while !over.load(Ordering::SeqCst) {
                sandbox.run(["snapshot", "create", sandbox.vault_str(), "--tag", "storm"]).ok();
                made += 1;
            }
            made
        });
        let threads: Vec<_> = owners
            .iter_mut()
            .map(|owner| scope.spawn(move || (0..STEPS).for_each(|number| owner.step(number))))
            .collect();
        // A failed thread must not leave the other one running for ever.
        let results: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::SeqCst);
        for result in results {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        snapshots.join().unwrap()
    });
    assert!(made >= 2, "the storm was over before a second snapshot");
    assert!(owners.iter().any(|owner| !owner.files.is_empty()));

    assert_owned(&owners, &root);
    assert_all_whole(&shared, "");
    sandbox.run(["snapshot", "create", sandbox.vault_str(), "--tag", "after"]).ok();
    let snapshots = root.join(".snapshots");
    let mut seen: Vec<PathBuf> =
        fs::read_dir(&snapshots).unwrap().map(|entry| entry.unwrap().path()).collect();
    // Snapshots of one second have their number at the end of the name: `_9` is before `_10`.
    seen.sort_by_key(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (second, number) = name.split_at(name.len().min("2026-11-20_12-00-00".len()));
        (second.to_owned(), number.trim_start_matches('_').parse::<u64>().unwrap_or(0))
    });
    // In the middle of the storm, too, nothing that was replaced was ever half there.
    for snapshot in &seen {
        assert_eq!(assert_all_whole(&snapshot.join("shared"), "k"), NAMES, "{}", snapshot.display());
    }
    assert_owned(&owners, seen.last().unwrap());

    sandbox.umount();
    sandbox.mount();
    assert_owned(&owners, &root);
    assert_all_whole(&shared, "");
    sandbox.keyed(&["restore", sandbox.vault_str(), "latest", "--to", &sandbox.str("restored")]).ok();
    assert_same_tree(&root, &sandbox.path("restored"));
    sandbox.umount();
    sandbox.assert_clean();
}
