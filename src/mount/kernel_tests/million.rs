//! A directory with a million entries. They are made through the filesystem's own interface, because the kernel would need a
//! request for each; listed, found and deleted through a mount.

use std::collections::HashSet;

use super::*;
use crate::format::tree::FileType;
use crate::fs::{Caller, Fs, FsOptions};

/// `STRONGROOM_ENTRIES` says otherwise.
const ENTRIES: usize = 1_000_000;

fn name(number: usize) -> String {
    format!("entry-{number:07}")
}

/// Lists the directory and returns the numbers, each of which must come once.
fn list(dir: &Path) -> HashSet<usize> {
    let mut seen = HashSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let number = name.strip_prefix("entry-").unwrap().parse().unwrap();
        assert!(seen.insert(number), "{name} was listed twice");
    }
    seen
}

#[test]
fn heavy_a_directory_of_a_million_entries() {
    let entries: usize = std::env::var("STRONGROOM_ENTRIES").map_or(ENTRIES, |text| text.parse().unwrap());
    let world = World::new();
    let engine = world.engine(EngineConfig::default(), &world.options(MountOptions::default()));
    let made = Fs::open(engine.clone(), FsOptions::default()).unwrap();
    let root = Caller::default();
    let dir = made.mkdir(1, b"many", 0o755, 0, root).unwrap().ino;
    for number in 0..entries {
        made.mknod(dir, name(number).as_bytes(), FileType::File, 0o644, 0, (0, 0), root).unwrap();
        if number % 10_000 == 0 {
            made.tick().unwrap();
        }
    }
    made.shutdown().unwrap();
    drop(made);
    engine.close().unwrap();
    drop(engine);

    let running = world.mount();
    let many = world.mnt().join("many");
    assert_eq!(list(&many).len(), entries);
    // Names here and there, in no order, and such as are not there.
    for step in 0..2_000 {
        let number = step * 7_919 % entries;
        assert_eq!(fs::metadata(many.join(name(number))).unwrap().nlink(), 1, "{number}");
        assert!(!many.join(format!("entry-{number}-not")).exists());
    }
    // Entries go and come while it is listed: those that stay are listed once.
    let gone: HashSet<usize> = (0..1_000).map(|n| n * 1_013 % entries).collect();
    let mut seen = HashSet::new();
    let mut going = gone.iter();
    for (position, entry) in fs::read_dir(&many).unwrap().enumerate() {
        assert!(seen.insert(entry.unwrap().file_name()), "listed twice");
        if position % 500 == 0 {
            if let Some(number) = going.next() {
                fs::remove_file(many.join(name(*number))).unwrap();
            }
            fs::write(many.join(format!("entry-{:07}", entries + position)), "new").unwrap();
        }
    }
    for number in going {
        fs::remove_file(many.join(name(*number))).unwrap();
    }
    for number in (0..entries).filter(|number| !gone.contains(number)) {
        assert!(seen.contains(std::ffi::OsStr::new(&name(number))), "{number} was not listed");
    }
    let made = list(&many);
    assert!(gone.is_disjoint(&made));
    end(running);

    let running = world.mount();
    assert!(list(&many) == made, "after a remount");
    let snapshot = fs::read_dir(world.mnt().join(".snapshots")).unwrap().next().unwrap().unwrap().path();
    assert!(list(&snapshot.join("many")) == made, "in the snapshot");
    end(running);
}
