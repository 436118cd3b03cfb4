//! Object Lock at moto, a server that we did not write. It keeps what is locked from being deleted, keeps versions and delete
//! markers, and refuses locks where a bucket has none. What it does not do is asserted here as it is, beside the name of the
//! test in which our own server does it; if a later moto does, these tests fail and are made stricter.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde_json::Value;
use strongroom::env::Time;
use strongroom::remote::{
    self, Checksum, ErrorKind, Lock, LockMode, Put, Remote, Retention, Settings, Verdict,
};

use super::moto::{BUCKET, Moto};
use super::{key, names, once, pattern, put};
use crate::ship::{World, files};

const LOCKED: &str = "locked-backups";
const PACK: &str = "packs/aa/one";
const DAY: i64 = 86_400;

fn settings(moto: &Moto, bucket: &str, mode: LockMode) -> Settings {
    let url = format!("s3://{bucket}/{}", mode.name());
    Settings { url, lock: Some(Lock { mode, days: 30 }), ..moto.settings() }
}

fn open(settings: &Settings) -> Arc<dyn Remote> {
    remote::open(settings, &once()).unwrap()
}

fn read(remote: &dyn Remote, name: &str) -> Vec<u8> {
    remote::read(remote, &key(name), 1 << 20).unwrap()
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// What moto says keeps the newest version of an object: mode, and seconds since the epoch.
fn kept(moto: &Moto, path: &str) -> Option<(String, i64)> {
    let mode = moto.header(path, "x-amz-object-lock-mode")?;
    let until: Timestamp = moto.header(path, "x-amz-object-lock-retain-until-date")?.parse().unwrap();
    Some((mode, until.as_second()))
}

#[test]
fn moto_keeps_what_is_locked_and_reads_are_of_our_versions() {
    let moto = Moto::start();
    moto.make_bucket_with_object_lock(LOCKED);
    for (mode, name) in [(LockMode::Governance, "GOVERNANCE"), (LockMode::Compliance, "COMPLIANCE")] {
        let settings = settings(&moto, LOCKED, mode);
        let remote = open(&settings);
        let at = format!("{LOCKED}/{}/{PACK}", mode.name());
        let bytes = pattern(100_000, 1);
        // It is locked by the very request that puts it.
        remote.require_lock().unwrap();
        let before = now();
        assert_eq!(put(remote.as_ref(), PACK, &bytes).unwrap(), Put::Created);
        let (said, until) = kept(&moto, &at).unwrap();
        assert_eq!(said, name);
        assert!((before + 33 * DAY..=now() + 33 * DAY).contains(&until), "30 days and a tenth: {until}");
        let first = Retention { mode, until: Time { secs: until, nanos: 0 } };
        assert_eq!(open(&settings).retention(&key(PACK), None).unwrap(), Some(first));
        // Longer, and not deleted.
        let later = |days: i64| Retention { mode, until: Time { secs: until + days * DAY, nanos: 0 } };
        remote.retain(&key(PACK), None, &later(10)).unwrap();
        assert_eq!(kept(&moto, &at), Some((name.to_string(), until + 10 * DAY)));
        assert_eq!(remote.delete(&key(PACK)).unwrap_err().kind, ErrorKind::Denied);
        let version = moto.header(&at, "x-amz-version-id").unwrap();
        let one = format!("{at}?versionId={version}");
        assert_eq!(moto.http("DELETE", &one, &[], b"").0, 403);
        // moto/s3/models.py, put_object_retention: any date is taken, an earlier one too. What refuses is our own server, in
        // `lock::locks_are_lengthened_and_never_shortened`.
        remote.retain(&key(PACK), None, &later(-10)).unwrap();
        assert_eq!(kept(&moto, &at), Some((name.to_string(), until - 10 * DAY)));
        remote.retain(&key(PACK), None, &later(0)).unwrap();
        // Somebody writes over it, then hides it: gone for all who ask for no versions.
        assert_eq!(moto.http("PUT", &at, &[], &pattern(100_000, 2)).0, 200);
        assert_eq!(moto.http("DELETE", &at, &[], b"").0, 204);
        assert_eq!(moto.http("GET", &at, &[], b"").0, 404);
        let plain = Settings { lock: None, ..settings.clone() };
        assert!(names(open(&plain).as_ref(), "").is_empty(), "the attack works");
        for reader in [settings.clone(), Settings { by_version: true, ..plain }] {
            let reader = open(&reader);
            assert_eq!(names(reader.as_ref(), ""), [PACK]);
            assert_eq!(read(reader.as_ref(), PACK), bytes);
            assert_eq!(reader.get(&key(PACK), 50_000..50_010).unwrap(), bytes[50_000..50_010]);
            assert_eq!(reader.head(&key(PACK)).unwrap().len, bytes.len() as u64);
            let findings = reader.findings();
            assert_eq!((findings.hidden.some().as_str(), findings.overwritten.some().as_str()), (PACK, PACK));
        }
        let fresh = open(&settings);
        names(fresh.as_ref(), "");
        assert_eq!(put(fresh.as_ref(), PACK, &bytes).unwrap(), Put::Same, "nothing is put over it");
        assert_eq!(put(fresh.as_ref(), PACK, b"other").unwrap_err().kind, ErrorKind::Conflict);
        // Who may bypass governance does; nobody bypasses compliance.
        let bypass = ("x-amz-bypass-governance-retention", "true");
        let ended = moto.http("DELETE", &one, &[bypass], b"").0;
        assert_eq!(ended, if mode == LockMode::Governance { 204 } else { 403 });
        if mode == LockMode::Compliance {
            assert_eq!(read(open(&settings).as_ref(), PACK), bytes);
        }
    }
}

/// The header is replaced, and what it replaced stays, locked.
#[test]
fn a_header_at_moto_has_versions_and_each_is_locked() {
    let moto = Moto::start();
    moto.make_bucket_with_object_lock(LOCKED);
    let settings = settings(&moto, LOCKED, LockMode::Compliance);
    let remote = open(&settings);
    let at = format!("{LOCKED}/compliance/vault.json");
    put(remote.as_ref(), "vault.json", b"first").unwrap();
    let old = moto.header(&at, "x-amz-version-id").unwrap();
    let replace = |was: &[u8], now: &[u8]| {
        let (body, sum) = (remote::Bytes::source(now), Checksum::of(now));
        open(&settings).replace(&key("vault.json"), &Checksum::of(was), &body, &sum)
    };
    replace(b"first", b"second").unwrap();
    assert_eq!(replace(b"third", b"fourth").unwrap_err().kind, ErrorKind::Conflict);
    let new = moto.header(&at, "x-amz-version-id").unwrap();
    assert_ne!(old, new);
    let versions = open(&settings).versions(&key("vault.json"), 1 << 20).unwrap();
    let ids: Vec<&str> = versions.iter().map(|version| version.id.as_str()).collect();
    assert!(ids.len() == 2 && ids.contains(&old.as_str()) && ids.contains(&new.as_str()), "{ids:?}");
    for id in [&old, &new] {
        assert_eq!(moto.http("DELETE", &format!("{at}?versionId={id}"), &[], b"").0, 403);
    }
}

#[test]
fn remote_test_tells_what_moto_does_with_locks() {
    let moto = Moto::start();
    moto.make_bucket_with_object_lock(LOCKED);
    for mode in [LockMode::Governance, LockMode::Compliance] {
        let probe = remote::probe(open(&settings(&moto, LOCKED, mode)).as_ref()).unwrap();
        let verdict =
            |name: &str| probe.checks.iter().find(|check| check.name == name).map(|check| check.verdict);
        for name in ["write", "read", "create-only", "list", "object-lock", "retention", "no-delete"] {
            assert_eq!(verdict(name), Some(Verdict::Yes), "{name}: {probe:?}");
        }
        // moto/s3/responses.py, _get_checksum: what is said is kept, and compared with nothing. What refuses is our own server,
        // in `s3::an_s3_bucket_conforms`.
        assert_eq!(verdict("checksums"), Some(Verdict::No), "{probe:?}");
        // Its answer has another name than the protocol says.
        assert_eq!(verdict("versioning"), Some(Verdict::Unknown), "{probe:?}");
        // See above: found out, and said.
        assert_eq!(verdict("no-shortening"), Some(Verdict::No), "{probe:?}");
        assert!(!probe.is_good(), "a lock that can be shortened is none");
    }
}

/// By the program itself: a bucket that locks nothing is refused, one that does is shipped to, attacked, and restored from.
#[test]
fn a_vault_is_locked_at_moto_and_comes_back_whatever_lies_over_it() {
    let (world, moto) = (World::new(), Moto::start());
    moto.make_bucket_with_object_lock(LOCKED);
    world.snapshot("one", &pattern(300_000, 1));
    let file = moto.settings().credentials_file.unwrap();
    let endpoint = moto.endpoint();
    let reach = ["--endpoint", &endpoint, "--path-style", "--region", "us-east-1", "--credentials-file"];
    let reach = [&reach[..], &[file.to_str().unwrap()]].concat();
    let lock = ["--lock-mode", "compliance", "--lock-days", "30"];
    for (name, bucket) in [("plain", BUCKET), ("safe", LOCKED)] {
        let add = ["remote", "add", world.vault(), name, &format!("s3://{bucket}/web1")];
        world.cli(&[&add[..], &reach, &lock].concat()).ok();
    }
    let tested = world.cli(&["remote", "test", world.vault(), "plain"]);
    assert!(tested.code == 25 && tested.stdout.contains("BAD  object-lock"), "{tested:?}");
    let said = world.cli(&["ship", world.vault(), "--to", "plain"]).fails(24);
    assert!(said.contains("the bucket has no Object Lock") && said.contains("nothing was sent"), "{said}");
    assert!(names(moto.open().as_ref(), "").is_empty());
    // Everything that arrives is locked, and nothing is asked for again.
    let ship = || world.cli(&["ship", world.vault(), "--to", "safe", "--json"]);
    let before = now();
    let first = ship().json();
    let locked =
        Settings { url: format!("s3://{LOCKED}/web1"), ..settings(&moto, LOCKED, LockMode::Compliance) };
    let there = names(open(&locked).as_ref(), "");
    assert!(there.len() >= 4, "{there:?}");
    for name in &there {
        let (mode, until) = kept(&moto, &format!("{LOCKED}/web1/{name}")).unwrap_or_else(|| panic!("{name}"));
        assert!(mode == "COMPLIANCE" && until >= before + 33 * DAY, "{name}: {mode} {until}");
    }
    assert_eq!((&first["lock"]["objects"], &first["lock"]["refused"]), (&there.len().into(), &0.into()));
    let again = ship().json();
    assert_eq!((&again["bytes"], &again["lock"]["extended"]), (&0.into(), &0.into()), "{again}");
    // Somebody with the right to write hides the pack and the snapshot, and writes over the header.
    let of = |dir: &str| there.iter().find(|name| name.starts_with(dir)).unwrap().clone();
    let (pack, chain) = (of("packs/"), of("snapshots/"));
    for name in [&pack, &chain] {
        assert_eq!(moto.http("DELETE", &format!("{LOCKED}/web1/{name}"), &[], b"").0, 204);
    }
    assert_eq!(moto.http("PUT", &format!("{LOCKED}/web1/vault.json"), &[], b"{}").0, 200);
    world.snapshot("two", &pattern(100_000, 2));
    let told = ship();
    assert_eq!(told.code, 25, "{told:?}");
    let report: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(report["lock"]["hidden"], serde_json::json!([pack, chain]), "{report}");
    assert_eq!(report["lock"]["overwritten"], serde_json::json!(["vault.json"]), "{report}");
    assert_eq!(report["chain_files"], 1, "the new snapshot is there all the same: {report}");
    // Who has only the URL and credentials gets it all back.
    let to = world.sandbox.str("cloned");
    world.cli(&[&["clone", &locked.url, &to], &reach[..]].concat()).ok();
    let cloned = std::path::Path::new(&to);
    assert_eq!(files(cloned), files(&world.sandbox.vault()));
    world.restores(cloned);
}
