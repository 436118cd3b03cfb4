//! Tests of the simulated disk: it must honour its own crash semantics before anything else may rely on them.
#![allow(clippy::unwrap_used)]

use super::*;

const DROP: CrashMode = CrashMode::DropUnsynced;
const KEEP: CrashMode = CrashMode::KeepAll;

fn create(disk: &SimDisk, path: &str, data: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(path, OpenMode::CreateNew).unwrap();
    file.write_all_at(data, 0).unwrap();
    file
}

#[test]
fn keeps_the_contract() {
    super::super::tests::check_contract(&SimDisk::new(1));
}

#[test]
fn unsynced_data_is_lost_and_synced_data_is_not() {
    let disk = SimDisk::new(1);
    let file = create(&disk, "f", b"one");
    file.sync_data().unwrap();
    disk.sync_dir("").unwrap();
    file.write_all_at(b"TWO and more", 0).unwrap();
    assert_eq!(disk.crash_image(DROP).raw_read("f").unwrap(), b"one");
    assert_eq!(disk.crash_image(KEEP).raw_read("f").unwrap(), b"TWO and more");
    file.sync_data().unwrap();
    assert_eq!(disk.crash_image(DROP).raw_read("f").unwrap(), b"TWO and more");
    file.set_len(2).unwrap();
    assert_eq!(disk.crash_image(DROP).raw_read("f").unwrap(), b"TWO and more");
    file.sync_data().unwrap();
    file.write_all_at(b"x", 9).unwrap();
    file.sync_data().unwrap();
    assert_eq!(disk.crash_image(DROP).raw_read("f").unwrap(), b"TW\0\0\0\0\0\0\0x");
}

#[test]
fn a_file_without_a_durable_name_is_gone() {
    let disk = SimDisk::new(1);
    create(&disk, "f", b"data").sync_data().unwrap();
    assert_eq!(disk.crash_image(DROP).raw_list(), Vec::<String>::new());
    assert_eq!(disk.crash_image(KEEP).raw_list(), ["f"]);
    disk.sync_dir("").unwrap();
    assert_eq!(disk.crash_image(DROP).raw_read("f").unwrap(), b"data");
    disk.remove("f").unwrap();
    assert_eq!(disk.raw_list(), Vec::<String>::new());
    assert_eq!(disk.crash_image(DROP).raw_list(), ["f"]);
    // A durable name without synced data is an empty file.
    create(&disk, "g", b"never synced");
    disk.sync_dir("").unwrap();
    assert_eq!(disk.crash_image(DROP).raw_read("g").unwrap(), b"");
}

#[test]
fn names_persist_as_a_prefix() {
    let disk = SimDisk::new(7);
    for i in 0..6 {
        create(&disk, &format!("f{i}"), b"").sync_data().unwrap();
    }
    let mut lengths = BTreeSet::new();
    for seed in 0..200 {
        let names = disk.crash_image(CrashMode::Torn(seed)).raw_list();
        let expected: Vec<String> = (0..names.len()).map(|i| format!("f{i}")).collect();
        assert_eq!(names, expected);
        lengths.insert(names.len());
    }
    assert_eq!(lengths.len(), 7);
}

#[test]
fn a_rename_within_a_directory_is_atomic_and_one_across_never_loses_the_file() {
    let disk = SimDisk::new(3);
    disk.create_dir_all("a").unwrap();
    disk.create_dir_all("b").unwrap();
    disk.write_file_atomic("a/f", b"old").unwrap();
    create(&disk, "a/f.tmp", b"new").sync_data().unwrap();
    disk.sync_dir("a").unwrap();
    disk.rename("a/f.tmp", "a/f").unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let image = disk.crash_image(CrashMode::Torn(seed));
        seen.insert((image.raw_read("a/f").unwrap(), image.raw_read("a/f.tmp").is_some()));
    }
    assert_eq!(seen, BTreeSet::from([(b"old".to_vec(), true), (b"new".to_vec(), false)]));
    disk.sync_dir("a").unwrap();
    disk.rename("a/f", "b/f").unwrap();
    let where_is = |d: &SimDisk| (d.raw_read("a/f").is_some(), d.raw_read("b/f").is_some());
    let found: BTreeSet<_> = (0..50).map(|s| where_is(&disk.crash_image(CrashMode::Torn(s)))).collect();
    assert_eq!(found, BTreeSet::from([(true, false), (true, true), (false, true)]));
    let early = disk.fork();
    early.sync_dir("a").unwrap();
    assert_eq!(
        where_is(&early.crash_image(DROP)),
        (false, true),
        "the new name comes with the loss of the old"
    );
    disk.sync_dir("b").unwrap();
    assert_eq!(where_is(&disk.crash_image(DROP)), (true, true));
    disk.sync_dir("a").unwrap();
    assert_eq!(where_is(&disk.crash_image(DROP)), (false, true));
}

#[test]
fn torn_writes_are_mixtures_of_old_and_new() {
    let disk = SimDisk::new(5);
    let file = create(&disk, "f", &[1; 5000]);
    file.sync_data().unwrap();
    disk.sync_dir("").unwrap();
    file.write_all_at(&[2; 4000], 300).unwrap();
    file.write_all_at(&[3; 10], 4990).unwrap();
    let (mut whole, mut none, mut mixed) = (0, 0, 0);
    for seed in 0..300 {
        let image = disk.crash_image(CrashMode::Torn(seed));
        assert_eq!(image.raw_read("f"), disk.crash_image(CrashMode::Torn(seed)).raw_read("f"));
        let bytes = image.raw_read("f").unwrap();
        assert_eq!(bytes.len(), 5000);
        assert!(bytes[..300].iter().chain(&bytes[4300..4990]).all(|&b| b == 1));
        match bytes[300..4300].iter().filter(|&&b| b == 2).count() {
            4000 => whole += 1,
            0 => none += 1,
            _ => mixed += 1,
        }
    }
    assert!(whole > 50 && none > 50 && mixed > 50, "{whole} {none} {mixed}");
}

#[test]
fn power_goes_off_at_the_chosen_sync() {
    let run = |crash: Option<u64>| {
        let disk = SimDisk::new(1);
        if let Some(n) = crash {
            disk.crash_at(n);
        }
        let done = (|| -> io::Result<()> {
            disk.create_dir_all("d")?;
            disk.write_file_atomic("d/f", b"x")
        })();
        (disk, done)
    };
    let (disk, done) = run(None);
    done.unwrap();
    let points = disk.sync_points();
    assert_eq!(points, 3);
    for n in 1..=points {
        let (disk, done) = run(Some(n));
        assert!(is_power_off(&done.unwrap_err()));
        assert!(disk.is_off() && is_power_off(&disk.len("d/f").unwrap_err()));
        assert!(is_power_off(&disk.sync_dir("").unwrap_err()));
        let image = disk.crash_image(DROP);
        assert_eq!(image.raw_read("d/f"), None);
        assert_eq!(image.list("d").is_ok(), n > 1);
        image.create_dir_all("d").unwrap();
        image.write_file_atomic("d/f", b"again").unwrap();
    }
    assert!(!is_power_off(&io::Error::from(io::ErrorKind::NotFound)));
}

#[test]
fn a_full_disk_says_so_and_frees_what_is_removed() {
    let disk = SimDisk::new(1);
    disk.set_capacity(10 * 4096);
    let file = create(&disk, "f", &[7; 4 * 4096]);
    assert_eq!(disk.space().unwrap().available, 5 * 4096);
    let full = |r: io::Result<()>| assert!(super::super::is_full(&r.unwrap_err()));
    full(file.allocate(4 * 4096, 6 * 4096));
    file.allocate(4 * 4096, 3 * 4096).unwrap();
    let other = create(&disk, "g", &[1; 4096]);
    full(disk.open("h", OpenMode::CreateNew).map(drop));
    full(other.write_all_at(&[2; 3 * 4096], 0));
    assert_eq!(other.len().unwrap(), 4096, "the part that fitted was written");
    file.write_all_at(&[7; 3 * 4096], 4 * 4096).unwrap();
    full(file.write_all_at(&[7], 7 * 4096));
    file.set_len(4096).unwrap();
    assert_eq!(disk.space().unwrap().available, 6 * 4096);
    disk.remove("f").unwrap();
    assert_eq!(disk.space().unwrap().available, 8 * 4096);
    disk.rename("g", "h").unwrap();
    assert_eq!(disk.crash_image(KEEP).space().unwrap().available, 8 * 4096);
    disk.remove("h").unwrap();
    assert_eq!(disk.space().unwrap().available, 10 * 4096);
}

#[test]
fn forks_and_raw_access_are_independent_of_programs() {
    let disk = SimDisk::new(1);
    let file = create(&disk, "f", b"live");
    let fork = disk.fork();
    file.write_all_at(b"L", 0).unwrap();
    assert_eq!(fork.raw_read("f").unwrap(), b"live");
    fork.sync_dir("").unwrap();
    fork.open("f", OpenMode::Read).unwrap().sync_data().unwrap();
    assert_eq!(fork.crash_image(DROP).raw_read("f").unwrap(), b"live");
    disk.power_off();
    disk.raw_write("x/y/z", b"planted");
    disk.raw_write("f", b"replaced");
    assert_eq!(disk.raw_list(), ["f", "x/y/z"]);
    let image = disk.crash_image(DROP);
    assert_eq!(image.raw_read("f").unwrap(), b"replaced");
    assert_eq!(image.read_file("x/y/z", 100).unwrap(), b"planted");
    assert!(image.raw_remove("f") && !image.raw_remove("f"));
    assert_eq!(image.crash_image(DROP).raw_list(), ["x/y/z"]);
}

#[test]
fn locks_end_with_the_power() {
    let disk = SimDisk::new(1);
    let lock = disk.lock("lock").unwrap().unwrap();
    assert!(disk.lock("lock").unwrap().is_none());
    assert!(disk.crash_image(KEEP).lock("lock").unwrap().is_some());
    assert!(disk.fork().lock("lock").unwrap().is_some());
    drop(lock);
    assert!(disk.lock("lock").unwrap().is_some());
}

#[test]
fn read_only_handles_do_not_write() {
    let disk = SimDisk::new(1);
    create(&disk, "f", b"x");
    let file = disk.open("f", OpenMode::Read).unwrap();
    file.write_all_at(b"y", 0).unwrap_err();
    file.set_len(0).unwrap_err();
    file.allocate(0, 1).unwrap_err();
    assert_eq!(disk.raw_read("f").unwrap(), b"x");
}
