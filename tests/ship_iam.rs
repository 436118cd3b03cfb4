//! The identities of contrib/iam, against a server that takes its rights from those very files: each can do its work, and nothing
//! that would harm.

use std::collections::BTreeSet;
use std::fs;

use strongroom::remote::{ErrorKind, Lock, LockMode, Settings};

use crate::remote::iam::Policy;
use crate::remote::s3_lock::User;
use crate::remote::s3_server::BUCKET;
use crate::remote::{key, pattern, put, s3_settings_of};
use crate::ship_lock::{PREFIX, World};

/// Somebody with one of the policies of contrib/iam.
fn identity(world: &World, policy: &str) -> Settings {
    let name = format!("key-of-{}", policy.trim_end_matches(".json"));
    let policy = Policy::load(policy, BUCKET, PREFIX, 34);
    world.server.add_user(&name, User { secret: "secret".into(), policy });
    Settings {
        lock: world.settings.lock,
        ..s3_settings_of(&world.server, &world.sandbox.path(""), &name, "secret")
    }
}

#[track_caller]
fn refused(world: &World, policy: &str) -> BTreeSet<String> {
    let asked = world.server.asked(&format!("key-of-{policy}"));
    assert!(asked.iter().any(|(_, allowed)| *allowed), "{policy} did something: {asked:?}");
    asked.into_iter().filter(|(_, allowed)| !allowed).map(|(action, _)| action).collect()
}

#[test]
fn policies_allow_no_more_than_they_should() {
    let load = |name| Policy::load(name, BUCKET, PREFIX, 34);
    for name in ["ship.json", "extend.json", "prune.json", "restore.json"] {
        let policy = load(name);
        for action in policy.allowed_actions() {
            assert!(!action.contains('*') && action.starts_with("s3:"), "{name}: {action}");
            assert!(action != "s3:BypassGovernanceRetention", "{name}");
            assert!(!action.contains("Delete") || name == "prune.json", "{name}: {action}");
            assert!(
                !action.contains("Put") || matches!(name, "ship.json" | "extend.json"),
                "{name}: {action}"
            );
            assert!(action != "s3:PutObject" || name == "ship.json", "{name}");
        }
    }
    for name in ["ship.json", "extend.json"] {
        for action in ["s3:DeleteObject", "s3:DeleteObjectVersion", "s3:BypassGovernanceRetention"] {
            assert!(
                load(name).denied_actions().contains(&action),
                "{name} denies {action}, whatever else is attached"
            );
        }
    }
    let context =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let mode = ("s3:object-lock-mode", "COMPLIANCE");
    let days = |n: &str| context(&[("s3:object-lock-remaining-retention-days", n), mode]);
    let (pack, ship) = ("backups/some/vault/packs/aa/one", load("ship.json"));
    assert!(ship.allows("s3:PutObjectRetention", pack, &days("33")));
    assert!(!ship.allows("s3:PutObjectRetention", pack, &days("35")), "the cap");
    assert!(!ship.allows("s3:PutObject", pack, &context(&[])), "creates only");
    assert!(!ship.allows("s3:PutObject", pack, &context(&[("s3:if-match", "x")])));
    assert!(ship.allows("s3:PutObject", pack, &context(&[("s3:if-none-match", "*")])));
    assert!(!ship.allows("s3:PutObject", "backups/other/vault/x", &context(&[("s3:if-none-match", "*")])));
    assert!(!load("restore.json").allows("s3:GetObjectVersion", "backups/other", &context(&[])));
    // Nothing is archived, or put under somebody's own key; and locks are of one mode.
    let put = |name: &str, more: &[(&str, &str)]| {
        let all: Vec<_> = [("s3:if-none-match", "*")].iter().chain(more).copied().collect();
        ship.allows("s3:PutObject", &format!("backups/some/vault/{name}"), &context(&all))
    };
    let class = |class: &'static str| [("s3:x-amz-storage-class", class)];
    for name in ["snapshots/0000000001-ab", "vault.json", "vault.json.bak"] {
        assert!(put(name, &[]) && put(name, &class("STANDARD")), "{name}");
        for other in
            ["STANDARD_IA", "GLACIER", "GLACIER_IR", "DEEP_ARCHIVE", "ONEZONE_IA", "INTELLIGENT_TIERING"]
        {
            assert!(!put(name, &class(other)), "{name} {other}");
        }
    }
    assert!(put("packs/aa/one", &class("STANDARD_IA")) && put("packs/aa/one", &class("GLACIER_IR")));
    for name in ["packs/aa/one", "snapshots/0000000001-ab", "vault.json"] {
        for refused in [
            class("GLACIER")[0],
            class("DEEP_ARCHIVE")[0],
            ("s3:x-amz-server-side-encryption-customer-algorithm", "AES256"),
            ("s3:x-amz-server-side-encryption-aws-kms-key-id", "arn:aws:kms:eu-central-1:1:key/x"),
        ] {
            assert!(!put(name, &[refused]), "{name} {refused:?}");
        }
    }
    for policy in ["ship.json", "extend.json"] {
        let (key, days) = ("s3:object-lock-mode", ("s3:object-lock-remaining-retention-days", "33"));
        for (wanted, other) in [("COMPLIANCE", "GOVERNANCE"), ("GOVERNANCE", "COMPLIANCE")] {
            let policy = Policy::load_with(policy, BUCKET, PREFIX, 34, wanted);
            assert!(policy.allows("s3:PutObjectRetention", pack, &context(&[days, (key, wanted)])));
            assert!(!policy.allows("s3:PutObjectRetention", pack, &context(&[days, (key, other)])));
        }
    }
}

/// The attacks as requests: with the credentials of `ship`, against a server that enforces the policy.
#[test]
fn stolen_credentials_can_not_make_what_they_write_unreadable() {
    let world = World::new();
    let thief = identity(&world, "ship.json");
    put(world.remote_by(&thief).as_ref(), "packs/aa/one", b"x").unwrap();
    let refused = |settings: Settings, name: &str, what: &str| {
        let error = put(world.remote_by(&settings).as_ref(), name, b"x").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied, "{what}: {error}");
    };
    for class in ["GLACIER", "DEEP_ARCHIVE"] {
        refused(Settings { storage_class: Some(class.into()), ..thief.clone() }, "packs/aa/two", class);
    }
    let key = Some("arn:aws:kms:eu-central-1:1:key/x".to_string());
    let other = Settings { sse: Some("aws:kms".into()), sse_kms_key_id: key, ..thief.clone() };
    refused(other, "snapshots/0000000001-ab", "another key");
    let lock = Some(Lock { mode: LockMode::Governance, days: 30 });
    refused(Settings { lock, ..thief.clone() }, "packs/aa/three", "another mode");
    assert_eq!(world.names(), ["packs/aa/one"]);
    let cheaper = Settings { storage_class: Some("STANDARD_IA".into()), sse: Some("AES256".into()), ..thief };
    put(world.remote_by(&cheaper).as_ref(), "packs/aa/four", b"x").unwrap();
}

/// Credentials that can't delete suffice for everything but pruning.
#[test]
fn each_identity_can_do_its_work_with_its_policy() {
    let world = World::new();
    let (shipper, extender, restorer, pruner) = (
        identity(&world, "ship.json"),
        identity(&world, "extend.json"),
        identity(&world, "restore.json"),
        identity(&world, "prune.json"),
    );
    world.add("ship", &shipper).ok();
    world.add("extend", &extender).ok();
    let probe = world.sandbox.run(["remote", "test", world.vault(), "ship", "--json"]).json();
    assert!(probe["checks"].as_array().unwrap().len() >= 12, "{probe}");
    let of_test = refused(&world, "ship");
    let tries = ["s3:DeleteObjectVersion"].map(String::from);
    assert_eq!(of_test, BTreeSet::from(tries), "only what it tries and must not be able to do");
    // Ship, go on, and ship changed keys.
    world.snapshot("one", &pattern(200_000, 1));
    world.sandbox.run(["ship", world.vault(), "--to", "ship"]).ok();
    world.snapshot("two", &pattern(200_000, 2));
    let out = world.sandbox.str("new.txt");
    world.sandbox.keyed(&["key", "add", world.vault(), "--new-recovery-key-out", &out]).ok();
    let shipped = world.sandbox.run(["ship", world.vault(), "--to", "ship", "--json"]).json();
    assert_eq!((&shipped["chain_files"], &shipped["headers"]), (&1.into(), &2.into()), "{shipped}");
    world.all_locked();
    // Extend, by somebody who can do nothing else. He keeps no ledger of his own: all is asked, once.
    for name in world.names() {
        world.server.set_kept(&World::at(&name), None);
    }
    fs::remove_file(world.ledger()).unwrap();
    let extended =
        world.sandbox.run(["ship", world.vault(), "--to", "extend", "--extend-only", "--json"]).json();
    let objects = world.names().len() as u64 - 1;
    assert_eq!(extended["lock"]["extended"], objects, "all but the test object: {extended}");
    assert_eq!(refused(&world, "extend"), BTreeSet::new());
    world.snapshot("three", &pattern(200_000, 3));
    world.sandbox.run(["ship", world.vault(), "--to", "extend", "--extend-only"]).ok();
    assert_eq!(world.names().len() as u64 - 1, objects, "nothing was sent");
    let said = world.sandbox.run(["ship", world.vault(), "--to", "extend"]).fails(24);
    assert!(said.contains("s3:PutObject"), "{said}");
    world.sandbox.run(["ship", world.vault(), "--to", "ship"]).ok();
    assert_eq!(refused(&world, "ship"), of_test, "shipping asked for nothing that it may not do");
    // Restore, by somebody who can only read.
    world.restores_by(&restorer);
    assert_eq!(refused(&world, "restore"), BTreeSet::new());
    let wrong = crate::remote::put(world.remote_by(&restorer).as_ref(), "packs/aa/x", b"x").unwrap_err();
    assert_eq!(wrong.kind, ErrorKind::Denied);
    // Prune: what is locked stays, what is not goes.
    let pack = key(&world.first("packs/"));
    let prune = world.remote_by(&pruner);
    assert_eq!(prune.delete(&pack).unwrap_err().kind, ErrorKind::Denied);
    world.server.set_kept(&World::at(pack.as_str()), None);
    prune.delete(&pack).unwrap();
    assert!(!world.names().contains(&pack.to_string()));
    assert_eq!(refused(&world, "prune"), BTreeSet::new(), "it was the lock that refused");
}

/// A policy with a cap below what is set: it says so, and the objects that are there stay as they are.
#[test]
fn a_cap_that_is_too_low_is_said() {
    let world = World::new();
    world.snapshot("one", b"1");
    let policy = Policy::load("ship.json", BUCKET, PREFIX, 10);
    world.server.add_user("capped", User { secret: "secret".into(), policy });
    let lock = world.settings.lock;
    let settings =
        Settings { lock, ..s3_settings_of(&world.server, &world.sandbox.path(""), "capped", "secret") };
    world.add("safe", &settings).ok();
    let said = world.sandbox.run(["ship", world.vault()]).fails(24);
    assert!(said.contains("s3:PutObjectRetention"), "{said}");
    // What somebody else shipped can't be extended by them.
    world.add("all", &world.settings).ok();
    world.sandbox.run(["ship", world.vault(), "--to", "all"]).ok();
    for name in world.names() {
        world.server.set_kept(&World::at(&name), None);
    }
    fs::remove_file(world.ledger()).unwrap();
    let said = world.sandbox.run(["ship", world.vault(), "--to", "safe"]).fails(24);
    assert!(said.contains("may not extend"), "{said}");
}
