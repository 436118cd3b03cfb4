//! Object Lock at the level of objects: what is put is locked, what is read is ours whatever lies over it, and a place that
//! does not lock is found out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use strongroom::env::{Env, TestEnv};
use strongroom::remote::{
    self, ErrorKind, Fault, FaultyRemote, Lock, LockMode, Op, OpenOptions, Put, Remote, Retention, Settings,
    Verdict,
};

use super::iam::Policy;
use super::s3_lock::User;
use super::s3_server::{Defects, Server, Trouble};
use super::{key, names, once, pattern, put, s3_settings, s3_settings_of};

const DAY: i64 = 86_400;
const PACK: &str = "packs/aa/one";
const AT: &str = "some/vault/packs/aa/one";

/// A bucket with Object Lock, a remote that locks for 30 days, and one clock for both.
struct World {
    server: Server,
    settings: Settings,
    env: Arc<TestEnv>,
    dir: tempfile::TempDir,
}

impl World {
    fn new(mode: LockMode) -> Self {
        let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
        server.set_bucket(true, true);
        let lock = Some(Lock { mode, days: 30 });
        let settings = Settings { lock, ..s3_settings(&server, dir.path()) };
        let world = Self { server, settings, env: Arc::new(TestEnv::new(3)), dir };
        world.advance(0);
        world
    }

    fn now(&self) -> i64 {
        self.env.now().secs
    }

    fn advance(&self, days: u64) {
        self.env.advance(Duration::from_secs(days * 86_400));
        self.server.set_clock(self.now());
    }

    fn options(&self) -> OpenOptions {
        OpenOptions { env: Arc::clone(&self.env) as Arc<dyn Env>, ..once() }
    }

    /// As another process would.
    fn open(&self) -> Arc<dyn Remote> {
        remote::open(&self.settings, &self.options()).unwrap()
    }
}

fn read(remote: &dyn Remote, name: &str) -> Vec<u8> {
    remote::read(remote, &key(name), 1 << 20).unwrap()
}

#[test]
fn everything_that_is_put_is_locked() {
    for (mode, compliance) in [(LockMode::Governance, false), (LockMode::Compliance, true)] {
        let world = World::new(mode);
        let remote = world.open();
        for name in [PACK, "snapshots/0000000001-ab", "vault.json"] {
            assert_eq!(put(remote.as_ref(), name, b"bytes").unwrap(), Put::Created);
            let kept = world.server.kept(&format!("some/vault/{name}")).unwrap();
            assert_eq!(kept.compliance, compliance);
            assert!((kept.until - (world.now() + 33 * DAY)).abs() < 5, "30 days and a tenth: {kept:?}");
        }
        // What replaces the header is locked too, and what it replaced stays.
        let (was, now) = (remote::Checksum::of(b"bytes"), remote::Checksum::of(b"newer"));
        remote.replace(&key("vault.json"), &was, &remote::Bytes::source(*b"newer"), &now).unwrap();
        let versions = world.server.versions("some/vault/vault.json");
        assert!(versions.len() == 2 && versions.iter().all(|version| version.kept.is_some()));
    }
}

#[test]
fn storage_class_and_encryption_go_with_every_put() {
    let world = World::new(LockMode::Governance);
    for lock in [None, world.settings.lock] {
        let settings = Settings {
            url: format!("s3://backups/{}", if lock.is_some() { "locked" } else { "plain" }),
            storage_class: Some("STANDARD_IA".into()),
            sse: Some("AES256".into()),
            lock,
            ..world.settings.clone()
        };
        let remote = remote::open(&settings, &world.options()).unwrap();
        for (name, class) in
            [(PACK, Some("STANDARD_IA")), ("snapshots/0000000001-ab", None), ("vault.json", None)]
        {
            put(remote.as_ref(), name, b"bytes").unwrap();
            let versions =
                world.server.versions(&format!("{}/{name}", &settings.url["s3://backups/".len()..]));
            assert_eq!(versions[0].storage_class.as_deref(), class, "packs only: {name}");
            assert_eq!(versions[0].sse.as_deref(), Some("AES256"), "{name}");
        }
    }
}

/// Object Lock wants a checksum with each put and each retention, or an MD5.
#[test]
fn what_is_locked_where_headers_for_checksums_are_refused_has_an_md5() {
    let world = World::new(LockMode::Compliance);
    world.server.set_defects(Defects { refuses_checksum_headers: true, ..Defects::default() });
    let remote = world.open();
    let probe = remote::probe(remote.as_ref()).unwrap();
    assert!(probe.is_good(), "{probe:?}");
    for name in [PACK, "vault.json"] {
        assert_eq!(put(remote.as_ref(), name, b"bytes").unwrap(), Put::Created);
        assert_eq!(put(remote.as_ref(), name, b"bytes").unwrap(), Put::Same);
        let version = world.server.versions(&format!("some/vault/{name}")).pop().unwrap();
        assert!(version.md5.is_some() && version.kept.is_some(), "{version:?}");
    }
    let (was, now) = (remote::Checksum::of(b"bytes"), remote::Checksum::of(b"newer"));
    remote.replace(&key("vault.json"), &was, &remote::Bytes::source(*b"newer"), &now).unwrap();
    let longer = |days: i64| Retention {
        mode: LockMode::Compliance,
        until: strongroom::env::Time { secs: world.now() + days * DAY, nanos: 0 },
    };
    remote.retain(&key(PACK), None, &longer(50)).unwrap();
    assert_eq!(remote.retention(&key(PACK), None).unwrap(), Some(longer(50)));
    assert_eq!(world.server.refused_checksum_headers(), 1);
    // Who only extends locks finds it out as well.
    let extends = world.open();
    extends.retain(&key(PACK), None, &longer(60)).unwrap();
    assert_eq!(world.server.kept(AT).unwrap().until, world.now() + 60 * DAY);
    assert_eq!(world.server.refused_checksum_headers(), 2);
}

/// As Ceph RGW 16 does it: the tags that it gives out are quoted, and those that it takes must not be; and where
/// versions are kept none is the right one.
#[test]
fn the_header_is_replaced_where_tags_are_compared_badly() {
    for (minds_quotes, compares_nothing) in [(true, false), (false, true)] {
        let world = World::new(LockMode::Compliance);
        world.server.set_defects(Defects { minds_quotes, compares_nothing, ..Defects::default() });
        for lock in [None, world.settings.lock] {
            let url = format!("s3://backups/{}", if lock.is_some() { "locked" } else { "plain" });
            let settings = Settings { url, lock, ..world.settings.clone() };
            let remote = remote::open(&settings, &world.options()).unwrap();
            let replace = |was: &[u8], now: &[u8]| {
                let (body, sum) = (remote::Bytes::source(now), remote::Checksum::of(now));
                remote.replace(&key("vault.json"), &remote::Checksum::of(was), &body, &sum)
            };
            put(remote.as_ref(), "vault.json", b"first").unwrap();
            replace(b"first", b"second").unwrap();
            assert_eq!(replace(b"another", b"third").unwrap_err().kind, ErrorKind::Conflict);
        }
        assert_eq!(world.server.stored("plain/vault.json").unwrap(), b"second");
        let versions = world.server.versions("locked/vault.json");
        assert!(versions.len() == 2 && versions.iter().all(|version| version.kept.is_some()));
    }
}

/// Without a condition, and without versions, another host's header would be lost.
#[test]
fn the_header_is_not_replaced_where_neither_tags_nor_versions_protect_it() {
    let world = World::new(LockMode::Governance);
    world.server.set_bucket(false, false);
    world.server.set_defects(Defects { compares_nothing: true, ..Defects::default() });
    let settings = Settings { url: "s3://backups/plain".into(), lock: None, ..world.settings.clone() };
    let remote = remote::open(&settings, &world.options()).unwrap();
    put(remote.as_ref(), "vault.json", b"first").unwrap();
    let (body, sum) = (remote::Bytes::source(&b"second"[..]), remote::Checksum::of(b"second"));
    let error = remote.replace(&key("vault.json"), &remote::Checksum::of(b"first"), &body, &sum).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("keeps no versions"), "{error}");
    assert_eq!(world.server.stored("plain/vault.json").unwrap(), b"first");
}

/// A delete marker and an overwrite hide and change nothing, and both are told.
#[test]
fn what_lies_over_an_object_changes_nothing() {
    let world = World::new(LockMode::Governance);
    let bytes = pattern(100_000, 1);
    put(world.open().as_ref(), PACK, &bytes).unwrap();
    put(world.open().as_ref(), "packs/bb/two", b"two").unwrap();
    let see = |what: &str| {
        let remote = world.open();
        assert_eq!(names(remote.as_ref(), "packs/"), [PACK, "packs/bb/two"], "{what}");
        assert_eq!(read(remote.as_ref(), PACK), bytes, "{what}");
        // Also where nothing was listed before.
        let fresh = world.open();
        assert_eq!(fresh.head(&key(PACK)).unwrap().len, bytes.len() as u64, "{what}");
        assert_eq!(fresh.get(&key(PACK), 50_000..50_010).unwrap(), bytes[50_000..50_010], "{what}");
        assert_eq!(put(fresh.as_ref(), PACK, &bytes).unwrap(), Put::Same, "{what}");
        assert_eq!(
            put(world.open().as_ref(), PACK, b"other").unwrap_err().kind,
            ErrorKind::Conflict,
            "{what}"
        );
        let findings = remote.findings();
        (
            findings.hidden.count(),
            findings.overwritten.count(),
            findings.hidden.some(),
            findings.overwritten.some(),
        )
    };
    assert_eq!(see("nothing happened"), (0, 0, String::new(), String::new()));
    world.server.plant(AT, b"rubbish");
    assert_eq!(see("overwritten"), (0, 1, String::new(), PACK.into()));
    world.server.plant(AT, &pattern(100_000, 2));
    assert_eq!(see("by the same length"), (0, 1, String::new(), PACK.into()));
    world.server.hide(AT);
    // A name under a delete marker looks free to who does not ask for versions.
    let remote = world.open();
    assert_eq!(names(remote.as_ref(), "packs/"), [PACK, "packs/bb/two"]);
    assert_eq!(put(remote.as_ref(), PACK, &bytes).unwrap(), Put::Same, "nothing is put over it");
    let findings = remote.findings();
    assert_eq!((findings.hidden.some().as_str(), findings.overwritten.some().as_str()), (PACK, PACK));
    assert_eq!(read(remote.as_ref(), PACK), bytes);
    // The same bytes once more are no change.
    world.server.plant("some/vault/packs/bb/two", b"two");
    names(remote.as_ref(), "packs/");
    assert_eq!(remote.findings().overwritten.count(), 1);
    // Names under which nothing of ours ever was.
    world.server.hide("some/vault/packs/cc/never");
    assert_eq!(names(remote.as_ref(), "packs/"), [PACK, "packs/bb/two"]);
    assert_eq!(remote.head(&key("packs/cc/never")).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn reading_what_was_listed_costs_no_more_requests() {
    let world = World::new(LockMode::Governance);
    for n in 0..20_u8 {
        put(world.open().as_ref(), &format!("packs/aa/{n}"), &pattern(1000, n)).unwrap();
    }
    let remote = world.open();
    assert_eq!(names(remote.as_ref(), "packs/").len(), 20);
    world.server.forget_ops();
    for n in 0..20_u8 {
        assert_eq!(remote.get(&key(&format!("packs/aa/{n}")), 0..1000).unwrap(), pattern(1000, n));
        remote.head(&key(&format!("packs/aa/{n}"))).unwrap();
    }
    assert_eq!((world.server.ops("get"), world.server.ops("head"), world.server.all_ops()), (20, 20, 40));
    // Without a listing: one more for each name, once.
    let fresh = world.open();
    world.server.forget_ops();
    for _ in 0..3 {
        fresh.get(&key("packs/aa/7"), 0..1000).unwrap();
    }
    assert_eq!(world.server.all_ops(), 4);
}

/// More than a page of names, and a name with more than a page of versions.
#[test]
fn listings_of_versions_go_on_where_they_were() {
    let world = World::new(LockMode::Governance);
    for n in 0..1100 {
        world.server.plant(&format!("some/vault/packs/aa/{n:04}"), b"x");
    }
    for n in 0..2500_u32 {
        world.server.plant("some/vault/packs/aa/0500", &n.to_le_bytes());
    }
    let remote = world.open();
    let expected: Vec<String> = (0..1100).map(|n| format!("packs/aa/{n:04}")).collect();
    assert_eq!(names(remote.as_ref(), "packs/"), expected);
    assert_eq!(names(remote.as_ref(), ""), expected);
    assert_eq!(read(remote.as_ref(), "packs/aa/0500"), b"x", "the first of 2501");
    assert_eq!(read(world.open().as_ref(), "packs/aa/0500"), b"x");
    assert_eq!(remote.findings().overwritten.some(), "packs/aa/0500");
}

#[test]
fn hostile_listings_end() {
    let world = World::new(LockMode::Governance);
    put(world.open().as_ref(), PACK, b"bytes").unwrap();
    for defects in [
        Defects { versions_in_circles: true, ..Defects::default() },
        Defects { lists_strangers: true, ..Defects::default() },
    ] {
        world.server.set_defects(defects);
        world.server.forget_ops();
        let remote = world.open();
        let listed = remote::list(remote.as_ref(), "packs/", &mut |_| Ok(()));
        assert_eq!(listed.unwrap_err().kind, ErrorKind::Corrupt, "{defects:?}");
        let empty = remote::list(remote.as_ref(), "nothing/", &mut |_| Ok(()));
        assert_eq!(empty.unwrap_err().kind, ErrorKind::Corrupt, "{defects:?}");
        assert!(world.server.all_ops() < 10, "{}", world.server.all_ops());
    }
}

#[test]
fn locks_are_lengthened_and_never_shortened() {
    let world = World::new(LockMode::Governance);
    let remote = world.open();
    put(remote.as_ref(), PACK, b"bytes").unwrap();
    let first = remote.retention(&key(PACK), None).unwrap().unwrap();
    assert_eq!(remote.known_retention(&key(PACK)), Some(first));
    let at = |days: i64| Retention {
        mode: LockMode::Governance,
        until: strongroom::env::Time { secs: world.now() + days * DAY, nanos: 0 },
    };
    let longer = at(60);
    remote.retain(&key(PACK), None, &longer).unwrap();
    assert_eq!(remote.retention(&key(PACK), None).unwrap(), Some(longer));
    assert_eq!(remote.retain(&key(PACK), None, &at(59)).unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(remote.retention(&key(PACK), None).unwrap(), Some(longer));
    assert_eq!(remote.delete(&key(PACK)).unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(read(remote.as_ref(), PACK), b"bytes");
    // What is locked more strictly stays so.
    let strict = Retention { mode: LockMode::Compliance, ..longer };
    remote.retain(&key(PACK), None, &strict).unwrap();
    assert_eq!(remote.retain(&key(PACK), None, &at(61)).unwrap_err().kind, ErrorKind::Denied);
    // Afterwards it can be deleted, with all that lies over it.
    world.server.plant(AT, b"rubbish");
    world.server.hide(AT);
    world.advance(61);
    world.open().delete(&key(PACK)).unwrap();
    assert!(names(world.open().as_ref(), "").is_empty());
    assert_eq!(
        remote.get(&key(PACK), 0..5).unwrap_err().kind,
        ErrorKind::NotFound,
        "also where it was known"
    );
}

#[test]
fn places_that_do_not_lock_are_refused() {
    for (versioned, locked, word) in
        [(false, false, "no Object Lock"), (true, false, "no Object Lock"), (false, true, "no versions")]
    {
        let world = World::new(LockMode::Governance);
        world.server.set_bucket(versioned, locked);
        let remote = world.open();
        let error = remote.require_lock().unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoObjectLock);
        assert!(error.message.contains(word), "{error}");
        let probe = remote::probe(remote.as_ref()).unwrap();
        assert!(!probe.is_good() && probe.checks[0].name == "object-lock", "{probe:?}");
        assert!(world.server.all_keys().is_empty(), "nothing was put");
    }
    // Where it can't be asked, the first put tells.
    let world = World::new(LockMode::Governance);
    world.server.set_bucket(true, false);
    world.server.set_defects(Defects { forbids_questions: true, ..Defects::default() });
    let remote = world.open();
    remote.require_lock().unwrap();
    assert_eq!(put(remote.as_ref(), PACK, b"x").unwrap_err().kind, ErrorKind::NoObjectLock);
    // And one that takes locks and forgets them.
    let world = World::new(LockMode::Governance);
    world.server.set_defects(Defects { forgets_locks: true, ..Defects::default() });
    let error = put(world.open().as_ref(), PACK, b"x").unwrap_err();
    assert!(error.kind == ErrorKind::NoObjectLock && error.message.contains("not at all"), "{error}");
    assert!(!remote::probe(world.open().as_ref()).unwrap().is_good());
}

/// Moto for one locks, and knows no GetObjectRetention; HeadObject tells as well.
#[test]
fn a_place_that_can_not_be_asked_for_locks_is_looked_at() {
    let world = World::new(LockMode::Compliance);
    world.server.set_defects(Defects { hides_retention: true, ..Defects::default() });
    let remote = world.open();
    put(remote.as_ref(), PACK, b"bytes").unwrap();
    let kept = remote.retention(&key(PACK), None).unwrap().unwrap();
    assert_eq!((kept.mode, kept.until.secs), (LockMode::Compliance, world.now() + 33 * DAY));
    assert!(remote::probe(remote.as_ref()).unwrap().is_good());
    // Where nothing is to be seen there either it is not known, and not taken for a lock.
    for at in [AT, "some/vault/strongroom-test"] {
        world.server.set_kept(at, None);
    }
    assert_eq!(remote.retention(&key(PACK), None).unwrap_err().kind, ErrorKind::Unsupported);
    assert!(remote::probe(world.open().as_ref()).is_err_and(|e| e.kind == ErrorKind::Unsupported));
}

/// That it can't be looked at just now is no answer. Only who may never look keeps to what was said first.
#[test]
fn an_endpoint_that_is_busy_is_not_taken_for_one_that_forgets_locks() {
    let world = World::new(LockMode::Governance);
    let remote = world.open();
    put(remote.as_ref(), PACK, b"bytes").unwrap();
    world.server.set_defects(Defects { blurs_retention: true, ..Defects::default() });
    assert!(remote.retention(&key(PACK), None).unwrap().is_some(), "HeadObject tells");
    for (status, kind) in
        [(503, ErrorKind::Throttled), (500, ErrorKind::Unavailable), (404, ErrorKind::NotFound)]
    {
        world.server.set_trouble(move |_, op, _| (op == "head").then_some(Trouble::Before("Busy", status)));
        assert_eq!(remote.retention(&key(PACK), None).unwrap_err().kind, kind);
        let fresh = world.open();
        assert_eq!(put(fresh.as_ref(), "packs/bb/two", b"x").unwrap_err().kind, kind, "no false alarm");
        world.server.calm();
        fresh.delete(&key("packs/bb/two")).unwrap_err();
    }
    world.server.set_trouble(|_, op, _| (op == "head").then_some(Trouble::Before("AccessDenied", 403)));
    assert_eq!(remote.retention(&key(PACK), None).unwrap(), None);
}

/// What was put before versions were kept all has one id.
#[test]
fn what_was_put_before_versions_were_kept_is_not_mixed_up() {
    let world = World::new(LockMode::Governance);
    world.server.set_bucket(false, false);
    world.server.plant("some/vault/vault.json", b"first");
    world.server.plant("some/vault/vault.json.bak", b"other");
    world.server.set_bucket(true, true);
    let remote = world.open();
    let found = |name: &str| {
        let versions = remote.versions(&key(name), 100).unwrap();
        versions.into_iter().map(|version| (version.id, version.bytes)).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        assert_eq!(found("vault.json"), [("null".to_string(), b"first".to_vec())]);
        assert_eq!(found("vault.json.bak"), [("null".to_string(), b"other".to_vec())]);
    }
    // Where versions are kept no more it is replaced, and has its id still.
    world.server.set_bucket(false, true);
    world.server.plant("some/vault/vault.json", b"third");
    assert_eq!(found("vault.json"), [("null".to_string(), b"third".to_vec())]);
}

/// Whoever may put headers decides how many there are: no more than some are read, and the others are counted.
#[test]
fn headers_that_are_too_many_are_counted() {
    let world = World::new(LockMode::Governance);
    let (name, at) = (key("vault.json"), "some/vault/vault.json");
    put(world.open().as_ref(), "vault.json", b"first").unwrap();
    for n in 0..200_u32 {
        world.server.plant(at, &n.to_le_bytes());
    }
    let remote = world.open();
    assert_eq!(remote.versions(&name, 1 << 18).unwrap().len(), 128, "by who has no key");
    let all = remote.all_versions(&name, 1 << 18).unwrap();
    assert_eq!((all.list.len(), all.left_out), (201, 0));
    let ages: std::collections::BTreeSet<usize> = all.list.iter().map(|version| version.age).collect();
    assert!(ages.into_iter().eq(0..201), "all of them");
    let oldest = all.list.iter().find(|version| version.age == 0).unwrap();
    let latest = all.list.iter().find(|version| version.latest).unwrap();
    assert_eq!((&oldest.bytes[..], &latest.bytes[..]), (&b"first"[..], &199_u32.to_le_bytes()[..]));
    // They are remembered: only the listing is asked for again.
    world.server.forget_ops();
    assert_eq!(remote.all_versions(&name, 1 << 18).unwrap(), all);
    assert_eq!((world.server.ops("get"), world.server.all_ops()), (0, 1));
    // The longest that may be headers: the oldest and the newest of them are read. What is longer is none, and not missed.
    for n in 0..140 {
        world.server.plant(at, &vec![n; 1 << 18]);
    }
    world.server.plant(at, &vec![0; (1 << 18) + 1]);
    let many = world.open().all_versions(&name, 1 << 18).unwrap();
    let bytes: usize = many.list.iter().map(|version| version.bytes.len()).sum();
    assert!(bytes <= 128 << 18 && many.left_out >= 12, "{bytes} {}", many.left_out);
    assert_eq!(many.list.len() as u64 + many.left_out, 201 + 140);
    let has = |bytes: &[u8]| many.list.iter().any(|version| version.bytes == bytes);
    assert!(has(b"first") && has(&[139; 1 << 18]) && !has(&[0; 1 << 18]));
}

#[test]
fn a_clock_that_is_behind_is_said_to_be() {
    let world = World::new(LockMode::Governance);
    world.server.set_clock(world.now() + 400 * DAY);
    let remote = world.open();
    let error = put(remote.as_ref(), PACK, b"x").unwrap_err();
    assert_eq!(error.kind, ErrorKind::ClockSkew, "{error}");
    assert!(error.message.contains("this machine's clock says 2026-11-21T"), "{error}");
    assert!(world.server.all_keys().is_empty());
}

#[test]
fn a_test_says_what_a_place_does_with_locks() {
    let verdicts = |world: &World| {
        let probe = remote::probe(world.open().as_ref()).unwrap();
        let of = move |name: &str| {
            probe
                .checks
                .iter()
                .find(|check| check.name == name)
                .map_or(Verdict::NotApplicable, |check| check.verdict)
        };
        ["retention", "no-shortening", "no-delete", "delete-markers", "overwritten"].map(of)
    };
    use Verdict::{No, Yes};
    for mode in [LockMode::Governance, LockMode::Compliance] {
        let world = World::new(mode);
        assert_eq!(verdicts(&world), [Yes; 5], "{mode:?}");
        put(world.open().as_ref(), PACK, b"bytes").unwrap();
        // Again, also much later, and with a test object that somebody deleted.
        world.advance(90);
        world.server.hide("some/vault/strongroom-test");
        assert_eq!(verdicts(&world), [Yes; 5], "{mode:?}");
        world.server.hide(AT);
        assert_eq!(verdicts(&world), [Yes, Yes, Yes, No, Yes]);
        world.server.plant(AT, b"rubbish");
        assert_eq!(verdicts(&world), [Yes, Yes, Yes, Yes, No]);
    }
    let world = World::new(LockMode::Compliance);
    world.server.set_defects(Defects { breaks_locks: true, ..Defects::default() });
    assert_eq!(verdicts(&world)[1..3], [No, No]);
}

/// An endpoint may lock, and not as it was told to.
#[test]
fn a_test_tells_modes_apart() {
    let of = |world: &World, name: &str| {
        let probe = remote::probe(world.open().as_ref()).unwrap();
        let found = probe.checks.iter().find(|check| check.name == name).cloned();
        (probe.is_good(), found.unwrap_or_else(|| panic!("{probe:?}")))
    };
    for mode in [LockMode::Governance, LockMode::Compliance] {
        // What a put got is asked at once, where that is allowed.
        let world = World::new(mode);
        world.server.set_defects(Defects { locks_otherwise: true, ..Defects::default() });
        let (good, check) = of(&world, "object-lock");
        assert!(
            !good && check.verdict == Verdict::No && check.detail.contains("the endpoint keeps it"),
            "{check:?}"
        );
    }
    // The test object of earlier days is less strictly locked: it becomes stricter, as all objects do.
    let mut world = World::new(LockMode::Governance);
    assert_eq!(of(&world, "retention").1.verdict, Verdict::Yes);
    world.settings.lock = Some(Lock { mode: LockMode::Compliance, days: 30 });
    assert_eq!(of(&world, "retention").1.verdict, Verdict::Yes);
    assert!(world.server.kept("some/vault/strongroom-test").unwrap().compliance);
    // More strictly: that stays so, and says nothing of what is put now.
    world.settings.lock = Some(Lock { mode: LockMode::Governance, days: 30 });
    let (good, check) = of(&world, "retention");
    assert!(good && check.verdict == Verdict::Unknown && check.detail.contains("(compliance)"), "{check:?}");
    assert!(check.detail.contains("governance"), "{check:?}");
    // A lock that can't be made stricter is none.
    let mut world = World::new(LockMode::Governance);
    assert_eq!(of(&world, "retention").1.verdict, Verdict::Yes);
    world.settings.lock = Some(Lock { mode: LockMode::Compliance, days: 30 });
    world.server.set_trouble(|_, op, _| (op == "retain").then_some(Trouble::Before("AccessDenied", 403)));
    assert!(!of(&world, "retention").0);
}

/// Only a refusal that is about the lock proves that there is one.
#[test]
fn a_test_takes_no_other_failure_for_a_refusal() {
    let probe = |fault: fn(Op, u64) -> Option<Fault>| {
        let world = World::new(LockMode::Governance);
        let retained = AtomicU64::new(0);
        let remote: Arc<dyn Remote> = Arc::new(FaultyRemote::new(world.open(), move |_, op, _| {
            fault(op, retained.fetch_add(u64::from(op == Op::Retain), Ordering::SeqCst))
        }));
        let probe = remote::probe(remote.as_ref()).unwrap();
        let of = |name: &str| probe.checks.iter().find(|check| check.name == name).unwrap().clone();
        (of("no-shortening"), of("no-delete"))
    };
    let (shortening, delete) = probe(|_, _| None);
    assert!(
        shortening.detail.contains("may set locks") && shortening.verdict == Verdict::Yes,
        "{shortening:?}"
    );
    assert_eq!((delete.verdict, delete.detail.as_str()), (Verdict::Yes, "refused, because it is locked"));
    // Locks may not be set at all: that one can't be shortened says nothing.
    let (shortening, _) = probe(|op, _| (op == Op::Retain).then_some(Fault::Before(ErrorKind::Denied)));
    assert_eq!(shortening.verdict, Verdict::Unknown, "{shortening:?}");
    // A request that the endpoint does not understand.
    let (shortening, delete) = probe(|op, n| {
        (op == Op::Delete || (op == Op::Retain && n == 0)).then_some(Fault::Before(ErrorKind::Misconfigured))
    });
    assert_eq!(
        (shortening.verdict, delete.verdict),
        (Verdict::Unknown, Verdict::Unknown),
        "{shortening:?} {delete:?}"
    );
    // Credentials without the right to delete are refused too, which is as good, and is not called a proof of the lock.
    let (_, delete) = probe(|op, _| (op == Op::Delete).then_some(Fault::Before(ErrorKind::Denied)));
    assert!(
        delete.verdict == Verdict::Yes && delete.detail.contains("these credentials can't delete"),
        "{delete:?}"
    );
    // Refused, and done all the same.
    let (shortening, _) =
        probe(|op, n| (op == Op::Retain && n == 1).then_some(Fault::After(ErrorKind::Denied)));
    assert_eq!(shortening.verdict, Verdict::Yes, "the lock held: {shortening:?}");
}

/// Who knows no more than the URL reads the versions that are ours, where he may.
#[test]
fn who_has_only_a_url_reads_by_version_too() {
    let world = World::new(LockMode::Governance);
    let bytes = pattern(1000, 1);
    put(world.open().as_ref(), PACK, &bytes).unwrap();
    put(world.open().as_ref(), "vault.json", b"header").unwrap();
    world.server.plant(AT, b"rubbish");
    world.server.hide(AT);
    let open = |settings: Settings| remote::open(&settings, &world.options()).unwrap();
    let plain = Settings { lock: None, ..world.settings.clone() };
    assert!(
        names(open(plain.clone()).as_ref(), "packs/").is_empty(),
        "the attack works on who asks for no versions"
    );
    let reader = open(Settings { by_version: true, ..plain.clone() });
    assert_eq!(
        (names(reader.as_ref(), "packs/"), read(reader.as_ref(), PACK)),
        (vec![PACK.into()], bytes.clone())
    );
    let fresh = open(Settings { by_version: true, ..plain.clone() });
    world.server.forget_ops();
    assert_eq!(read(fresh.as_ref(), PACK), bytes);
    assert!(world.server.all_ops() <= 5, "{} requests", world.server.all_ops());
    // Who may not read versions reads what he sees; so does everybody where there are none.
    world.server.plant(AT, b"rubbish");
    for policy in [
        "\"s3:ListBucket\", \"s3:GetObject\"",
        "\"s3:ListBucket\", \"s3:GetObject\", \"s3:ListBucketVersions\"",
    ] {
        let policy = format!(
            r#"{{"Version": "2012-10-17", "Statement": [{{"Effect": "Allow", "Action": [{policy}], "Resource": "*"}}]}}"#
        );
        world.server.add_user("old", User { secret: "secret".into(), policy: Policy::parse(&policy) });
        let old =
            Settings { by_version: true, ..s3_settings_of(&world.server, world.dir.path(), "old", "secret") };
        let reader = open(old);
        assert_eq!(reader.findings().unversioned, None, "not tried yet");
        assert_eq!(read(reader.as_ref(), PACK), b"rubbish");
        assert!(reader.findings().unversioned.is_some(), "and that is worth a warning");
    }
    let world = World::new(LockMode::Governance);
    world.server.set_bucket(false, false);
    let settings = Settings { lock: None, by_version: true, ..world.settings.clone() };
    let reader = remote::open(&settings, &world.options()).unwrap();
    assert!(names(reader.as_ref(), "").is_empty());
    put(reader.as_ref(), PACK, &bytes).unwrap();
    // Moto, for one, calls the only version "null", and does not know it by that name.
    for knows_no_null in [false, true] {
        world.server.set_defects(Defects { knows_no_null, ..Defects::default() });
        let fresh = remote::open(&settings, &world.options()).unwrap();
        assert_eq!(
            (names(fresh.as_ref(), ""), read(fresh.as_ref(), PACK)),
            (vec![PACK.into()], bytes.clone())
        );
    }
}

/// Something in front that can't be looked at (under another's key, say) does not make anybody read what lies on top.
#[test]
fn an_object_that_is_in_the_way_is_stepped_over() {
    let world = World::new(LockMode::Governance);
    put(world.open().as_ref(), PACK, b"ours").unwrap();
    world.server.plant(AT, b"rubbish");
    world.server.plant("some/vault/aaa", b"in the way");
    world.server.set_trouble(|_, op, name| {
        (op == "head" && name.ends_with("aaa")).then_some(Trouble::Before("InvalidRequest", 400))
    });
    let settings = Settings { lock: None, by_version: true, ..world.settings.clone() };
    let reader = remote::open(&settings, &world.options()).unwrap();
    assert_eq!(read(reader.as_ref(), PACK), b"ours");
}

/// However many of them there are: the header, which was there first, tells whether versions can be read.
#[test]
fn objects_that_are_in_the_way_do_not_turn_reading_by_version_off() {
    let world = World::new(LockMode::Governance);
    put(world.open().as_ref(), PACK, b"ours").unwrap();
    put(world.open().as_ref(), "vault.json", b"header").unwrap();
    world.server.plant(AT, b"rubbish");
    for n in 0..30 {
        world.server.plant(&format!("some/vault/aaa{n:02}"), b"in the way");
        world.server.plant(&format!("some/vault/vault.json-{n:02}"), b"in the way");
    }
    let settings = Settings { lock: None, by_version: true, ..world.settings.clone() };
    for trouble in [("AccessDenied", 403), ("InvalidRequest", 400)] {
        world.server.set_trouble(move |_, op, name| {
            let in_the_way = name.contains("/aaa") || name.contains("json-");
            (op == "head" && in_the_way).then_some(Trouble::Before(trouble.0, trouble.1))
        });
        let reader = remote::open(&settings, &world.options()).unwrap();
        assert_eq!(read(reader.as_ref(), PACK), b"ours", "{trouble:?}");
        assert_eq!(reader.findings().unversioned, None);
    }
}
