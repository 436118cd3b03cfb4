//! Everything that needs neither network nor processes; the conformance suite is in tests/remote.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::disk::{
    CrashMode, Disk, Fault as DiskFault, FaultErrno, FaultKind, FaultOp, Faults, FaultyDisk, SimDisk,
};
use crate::env::{Env, TestEnv};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn put(remote: &dyn Remote, name: &str, bytes: &[u8]) -> Result<Put> {
    remote.put_if_absent(&key(name), &Bytes::source(bytes), &Checksum::of(bytes))
}

fn dir_on(disk: impl Disk) -> DirRemote {
    DirRemote::on("file:///sim", Arc::new(disk), Arc::new(TestEnv::new(1)))
}

/// A pause that moves a test's clock, and remembers.
#[derive(Debug)]
struct Jump {
    env: Arc<TestEnv>,
    taken: Mutex<Vec<Duration>>,
}

impl Pause for Jump {
    fn pause(&self, time: Duration) {
        self.env.advance(time);
        self.taken.lock().unwrap().push(time);
    }
}

fn jump() -> (Arc<TestEnv>, Arc<Jump>) {
    let env = Arc::new(TestEnv::new(7));
    let pause = Arc::new(Jump { env: Arc::clone(&env), taken: Mutex::new(Vec::new()) });
    (env, pause)
}

#[test]
fn names_are_paths_of_plain_words() {
    for good in ["vault.json", "packs/ab/ab34", "snapshots/0000000001-ff", "a/b/c/d", "A_b-c.d"] {
        assert_eq!(key(good).as_str(), good);
    }
    for bad in ["", "/a", "a/", "a//b", ".", "..", "a/../b", ".hidden", "a/.b", "a b", "a\n", "\u{e9}"] {
        assert_eq!(Key::new(bad), None, "{bad}");
    }
    assert!(Key::new(&"a".repeat(255)).is_some() && Key::new(&"a".repeat(256)).is_none());
}

/// A put on a disk that fails at one operation, whichever it is, leaves no object that is not whole, and the next put makes it.
#[test]
fn a_failing_disk_leaves_no_half_object() {
    let bytes = vec![7; 3 << 20];
    for errno in [FaultErrno::Enospc, FaultErrno::Eio] {
        for op in [FaultOp::Write, FaultOp::Sync, FaultOp::Rename, FaultOp::Allocate, FaultOp::Create] {
            let faults = Faults::new();
            let remote = dir_on(FaultyDisk::new(SimDisk::new(1), faults.clone()));
            put(&remote, "packs/aa/one", b"one").unwrap();
            faults.add(DiskFault {
                op,
                prefix: String::new(),
                skip: 0,
                times: 1,
                kind: FaultKind::Fail(errno),
            });
            let error = put(&remote, "packs/aa/two", &bytes).unwrap_err();
            let expected = if errno == FaultErrno::Enospc { ErrorKind::Full } else { ErrorKind::Unavailable };
            assert_eq!(error.kind, expected, "{op:?} {error}");
            assert_eq!(faults.struck(), 1);
            assert_eq!(remote.head(&key("packs/aa/two")).unwrap_err().kind, ErrorKind::NotFound, "{op:?}");
            assert_eq!(put(&remote, "packs/aa/two", &bytes).unwrap(), Put::Created);
            assert_eq!(read(&remote, &key("packs/aa/two"), 4 << 20).unwrap(), bytes);
        }
    }
}

/// A disk that gives back other bytes than were written is found out before the object has its name.
#[test]
fn a_lying_disk_is_found_out() {
    let faults = Faults::new();
    let remote = dir_on(FaultyDisk::new(SimDisk::new(1), faults.clone()));
    faults.add(DiskFault {
        op: FaultOp::Read,
        prefix: ".incoming/".into(),
        skip: 0,
        times: 1,
        kind: FaultKind::FlipBit { offset: 2, bit: 3 },
    });
    assert_eq!(put(&remote, "packs/aa/one", b"hello").unwrap_err().kind, ErrorKind::Corrupt);
    assert_eq!(remote.head(&key("packs/aa/one")).unwrap_err().kind, ErrorKind::NotFound);
}

/// The power goes at each operation of a put in turn: after it the object is there whole, or not at all; and once the put has
/// returned it is there.
#[test]
fn a_power_cut_leaves_whole_objects_only() {
    let bytes = vec![9; 100_000];
    let operations = {
        let disk = SimDisk::new(1);
        let before = disk.operations();
        put(&dir_on(disk.clone()), "packs/aa/one", &bytes).unwrap();
        disk.operations() - before
    };
    assert!(operations > 5, "{operations}");
    for at in 1..=operations + 1 {
        for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll] {
            let disk = SimDisk::new(at);
            disk.crash_at_operation(disk.operations() + at);
            let done = put(&dir_on(disk.clone()), "packs/aa/one", &bytes).is_ok();
            let after = disk.crash_image(mode);
            let remote = dir_on(after);
            match remote.head(&key("packs/aa/one")) {
                Ok(_) => assert_eq!(read(&remote, &key("packs/aa/one"), 1 << 20).unwrap(), bytes, "at {at}"),
                Err(e) => {
                    assert_eq!(e.kind, ErrorKind::NotFound);
                    assert!(!done, "acknowledged and lost, at {at} {mode:?}");
                }
            }
            put(&remote, "packs/aa/one", &bytes).unwrap();
        }
    }
}

#[test]
fn what_an_interrupted_put_left_is_swept_by_the_next() {
    let disk = SimDisk::new(1);
    disk.create_dir_all(".incoming").unwrap();
    disk.write_file_atomic(&format!(".incoming/{}", "ab".repeat(16)), b"left").unwrap();
    disk.write_file_atomic(".incoming/note", b"not ours").unwrap();
    put(&dir_on(disk.clone()), "one", b"one").unwrap();
    let names: Vec<String> = disk.list(".incoming").unwrap().into_iter().map(|item| item.name).collect();
    assert_eq!(names, ["lock", "note"]);
}

#[test]
fn trying_again_backs_off_with_jitter_and_ends() {
    let (env, pause) = jump();
    let broken = FaultyRemote::new(Arc::new(dir_on(SimDisk::new(1))), |_, op, _| {
        (op == Op::Head).then_some(Fault::Before(ErrorKind::Throttled))
    });
    let broken = Arc::new(broken);
    let policy = RetryPolicy {
        tries_max: 8,
        first: Duration::from_secs(1),
        pause_max: Duration::from_secs(20),
        total_max: Duration::from_secs(3600),
    };
    let remote = Retrying::new(
        Arc::clone(&broken) as Arc<dyn Remote>,
        policy,
        env,
        Arc::clone(&pause) as Arc<dyn Pause>,
    );
    let error = remote.head(&key("x")).unwrap_err();
    assert_eq!((error.kind, broken.calls()), (ErrorKind::Throttled, 8));
    assert!(error.message.starts_with("tried 8 times"), "{error}");
    let taken = pause.taken.lock().unwrap().clone();
    let longest = [1, 2, 4, 8, 16, 20, 20].map(Duration::from_secs);
    assert_eq!(taken.len(), longest.len());
    assert!(taken.iter().zip(longest).all(|(taken, longest)| *taken <= longest), "{taken:?}");
    let distinct: std::collections::BTreeSet<_> = taken.iter().collect();
    assert_eq!(distinct.len(), taken.len(), "no jitter: {taken:?}");
}

#[test]
fn damage_on_the_way_is_tried_again_a_few_times() {
    let (env, pause) = jump();
    let broken = Arc::new(FaultyRemote::new(Arc::new(dir_on(SimDisk::new(1))), |_, _, _| {
        Some(Fault::Before(ErrorKind::Damaged))
    }));
    let remote = Retrying::new(Arc::clone(&broken) as Arc<dyn Remote>, RetryPolicy::NETWORK, env, pause);
    assert_eq!(put(&remote, "x", b"x").unwrap_err().kind, ErrorKind::Damaged);
    assert_eq!(broken.calls(), 3);
}

#[test]
fn trying_again_stops_when_the_time_is_up() {
    let (env, pause) = jump();
    let broken = Arc::new(FaultyRemote::new(Arc::new(dir_on(SimDisk::new(1))), |_, _, _| {
        Some(Fault::Before(ErrorKind::Timeout))
    }));
    let policy =
        RetryPolicy { tries_max: u32::MAX, total_max: Duration::from_secs(100), ..RetryPolicy::NETWORK };
    let remote = Retrying::new(
        Arc::clone(&broken) as Arc<dyn Remote>,
        policy,
        env,
        Arc::clone(&pause) as Arc<dyn Pause>,
    );
    remote.list_page("", "").unwrap_err();
    let total: Duration = pause.taken.lock().unwrap().iter().sum();
    assert!(total <= Duration::from_secs(100) && broken.calls() > 3, "{total:?} {}", broken.calls());
}

#[test]
fn what_can_not_pass_is_not_tried_again() {
    for kind in
        [ErrorKind::Denied, ErrorKind::Conflict, ErrorKind::Corrupt, ErrorKind::Full, ErrorKind::ClockSkew]
    {
        let (env, pause) = jump();
        let broken = Arc::new(FaultyRemote::new(Arc::new(dir_on(SimDisk::new(1))), move |_, _, _| {
            Some(Fault::Before(kind))
        }));
        let remote = Retrying::new(Arc::clone(&broken) as Arc<dyn Remote>, RetryPolicy::NETWORK, env, pause);
        assert_eq!(put(&remote, "x", b"x").unwrap_err().kind, kind);
        assert_eq!(broken.calls(), 1);
    }
}

/// A put and a replacement whose answers are lost succeed at the next try.
#[test]
fn lost_answers_do_no_harm() {
    let (env, pause) = jump();
    let lossy = FaultyRemote::new(Arc::new(dir_on(SimDisk::new(1))), |n, op, _| {
        (n % 2 == 1 && matches!(op, Op::Put | Op::Replace)).then_some(Fault::After(ErrorKind::Timeout))
    });
    let lossy = Arc::new(lossy);
    let remote = Retrying::new(Arc::clone(&lossy) as Arc<dyn Remote>, RetryPolicy::NETWORK, env, pause);
    assert_eq!(put(&remote, "vault.json", b"old").unwrap(), Put::Same);
    assert_eq!(lossy.calls(), 2);
    let replaced = remote.replace(
        &key("vault.json"),
        &Checksum::of(b"old"),
        &Bytes::source(*b"new"),
        &Checksum::of(b"new"),
    );
    replaced.unwrap();
    assert_eq!(read(&remote, &key("vault.json"), 10).unwrap(), b"new");
    let stale =
        remote.replace(&key("vault.json"), &Checksum::of(b"old"), &Bytes::source(*b"x"), &Checksum::of(b"x"));
    assert_eq!(stale.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(read(&remote, &key("vault.json"), 10).unwrap(), b"new");
}

#[test]
fn a_limit_is_kept_over_all_that_share_it() {
    let (env, pause) = jump();
    let limiter = Arc::new(Limiter::new(1 << 20, Arc::clone(&env) as Arc<dyn Env>, pause));
    let base: Arc<dyn Remote> = Arc::new(dir_on(SimDisk::new(1)));
    let remotes = [(); 2]
        .map(|()| Limited::new(Arc::clone(&base), Some(Arc::clone(&limiter)), Some(Arc::clone(&limiter))));
    let start = env.monotonic();
    put(&remotes[0], "a", &vec![1; 5 << 20]).unwrap();
    put(&remotes[1], "b", &vec![2; 3 << 20]).unwrap();
    let sent = env.monotonic() - start;
    assert!((7.9..8.1).contains(&sent.as_secs_f64()), "8 MiB at 1 MiB/s took {sent:?}");
    assert_eq!(remotes[0].get(&key("a"), 0..4 << 20).unwrap(), vec![1; 4 << 20]);
    let received = env.monotonic() - start - sent;
    // The last piece is on its way when it is let through.
    assert!((3.0..4.2).contains(&received.as_secs_f64()), "4 MiB at 1 MiB/s took {received:?}");
}

#[test]
fn calls_and_bytes_are_counted() {
    let counters = Arc::new(Counters::default());
    let remote = Counted::new(Arc::new(dir_on(SimDisk::new(1))), Arc::clone(&counters));
    put(&remote, "a", b"12345").unwrap();
    put(&remote, "a", b"12345").unwrap();
    put(&remote, "a", b"other").unwrap_err();
    remote.get(&key("a"), 1..3).unwrap();
    assert_eq!((counters.requests(), counters.sent(), counters.received()), (4, 5, 2));
}

/// A remote that lists what it likes.
#[derive(Debug)]
struct Lister(Vec<Page>, Mutex<usize>);

impl Remote for Lister {
    fn url(&self) -> String {
        String::new()
    }
    fn place(&self) -> String {
        "a place of its own".into()
    }
    fn put_if_absent(&self, _: &Key, _: &Arc<dyn Source>, _: &Checksum) -> Result<Put> {
        Ok(Put::Created)
    }
    fn replace(&self, _: &Key, _: &Checksum, _: &Arc<dyn Source>, _: &Checksum) -> Result<()> {
        Ok(())
    }
    fn get(&self, _: &Key, _: Range<u64>) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    fn head(&self, _: &Key) -> Result<Meta> {
        Ok(Meta { len: u64::MAX, checksum: None })
    }
    fn list_page(&self, _: &str, _: &str) -> Result<Page> {
        let mut next = self.1.lock().unwrap();
        *next += 1;
        Ok(self.0[(*next - 1) % self.0.len()].clone())
    }
    fn delete(&self, _: &Key) -> Result<()> {
        Ok(())
    }
    fn features(&self) -> Result<Features> {
        Err(RemoteError::new(ErrorKind::Unsupported, "none"))
    }
}

#[test]
fn whatever_wraps_a_remote_passes_its_place_on() {
    let remote = || Arc::new(Lister(Vec::new(), Mutex::new(0))) as Arc<dyn Remote>;
    let wrapped: [Box<dyn Remote>; 5] = [
        Box::new(Bounded::new(remote(), Duration::from_secs(60))),
        Box::new(Counted::new(remote(), Arc::default())),
        Box::new(FaultyRemote::new(remote(), |_, _, _| None)),
        Box::new(Limited::new(remote(), None, None)),
        Box::new(Retrying::new(
            remote(),
            RetryPolicy::NETWORK,
            Arc::new(TestEnv::new(1)),
            Arc::new(RealPause),
        )),
    ];
    for wrapped in wrapped {
        assert_eq!(wrapped.place(), "a place of its own", "{wrapped:?}");
    }
}

#[test]
fn hostile_listings_end() {
    let page = |names: &[&str], more| Page {
        items: names.iter().map(|name| Listed { name: (*name).to_string(), len: 1 }).collect(),
        more,
    };
    for pages in [
        vec![page(&["packs/a", "packs/b"], true)],
        vec![page(&[], true)],
        vec![page(&["packs/b", "packs/a"], false)],
        vec![page(&["packs/a", "packs/a"], false)],
        vec![page(&["elsewhere"], false)],
        vec![page(&["packs/b"], true), page(&["packs/a"], true)],
    ] {
        let remote = Lister(pages.clone(), Mutex::new(0));
        let mut seen = 0;
        let error = list(&remote, "packs/", &mut |_| {
            seen += 1;
            Ok(())
        });
        assert_eq!(error.unwrap_err().kind, ErrorKind::Corrupt, "{pages:?}");
        assert!(seen <= 2);
    }
    let remote = Lister(vec![page(&[], false)], Mutex::new(0));
    assert_eq!(
        read(&remote, &key("vault.json"), 1 << 20).unwrap_err().kind,
        ErrorKind::Corrupt,
        "a huge object is not fetched"
    );
}

#[test]
fn the_probe_sees_what_is_honoured_and_what_is_not() {
    let verdicts = |probe: &Probe| -> Vec<(&'static str, Verdict)> {
        probe.checks.iter().map(|c| (c.name, c.verdict)).collect()
    };
    let good = probe(&dir_on(SimDisk::new(1))).unwrap();
    assert!(good.is_good());
    assert_eq!(
        verdicts(&good)[..5],
        [
            ("write", Verdict::Yes),
            ("read", Verdict::Yes),
            ("create-only", Verdict::Yes),
            ("checksums", Verdict::NotApplicable),
            ("list", Verdict::Yes)
        ]
    );
    // Only an endpoint that refuses such bytes itself has it.
    let base: Arc<dyn Remote> = Arc::new(dir_on(SimDisk::new(1)));
    let refusing = FaultyRemote::new(base, |_, op, key| {
        (op == Op::Put && key.contains("damaged")).then_some(Fault::Before(ErrorKind::Damaged))
    });
    assert!(verdicts(&probe(&refusing).unwrap()).contains(&("checksums", Verdict::Yes)));
    let lie = |wanted: Op| {
        let base: Arc<dyn Remote> = Arc::new(dir_on(SimDisk::new(1)));
        FaultyRemote::new(base, move |_, op, _| (op == wanted).then_some(Fault::Lie))
    };
    for (op, name) in [(Op::Get, "read"), (Op::List, "list")] {
        let bad = probe(&lie(op)).unwrap();
        assert!(!bad.is_good() && verdicts(&bad).contains(&(name, Verdict::No)), "{op:?}");
    }
    let overwriting = Lister(vec![Page::default()], Mutex::new(0));
    assert_eq!(
        probe(&overwriting).unwrap_err().kind,
        ErrorKind::Unsupported,
        "features are asked for at the end"
    );
    let base: Arc<dyn Remote> = Arc::new(dir_on(SimDisk::new(1)));
    let locked =
        FaultyRemote::new(base, |_, op, _| (op == Op::Delete).then_some(Fault::Before(ErrorKind::Denied)));
    assert!(verdicts(&probe(&locked).unwrap()).contains(&("no-delete", Verdict::Yes)));
}
