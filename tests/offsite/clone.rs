//! `clone`: what was shipped comes back byte for byte, whatever happens on the way.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use strongroom::remote::{ErrorKind, Fault, FaultyRemote, Op, Remote};

use super::{World, clone_from, files, newest_complete, open_dir, packs};
use crate::remote::pattern;
use crate::remote::s3_server::{SECRET_KEY, Server};
use crate::remote::sshd::Sshd;

#[test]
fn a_destroyed_vault_comes_back_and_goes_on() {
    let world = World::new();
    world.snapshot("one", &pattern(3 << 20, 1));
    world.snapshot("two", &pattern(200_000, 2));
    world.ship();
    let before = files(&world.sandbox.vault());
    fs::remove_dir_all(world.sandbox.vault()).unwrap();
    fs::remove_dir_all(world.sandbox.path("state")).unwrap();
    let cloned = world.on("state", &["clone", &world.url(), world.vault(), "--json"]).json();
    assert_eq!(files(&world.sandbox.vault()), before);
    assert_eq!(cloned["packs"].as_u64().unwrap(), packs(&world.sandbox.vault()).len() as u64);
    assert_eq!((&cloned["chain_files"], &cloned["snapshots"]), (&2.into(), &2.into()));
    assert_eq!((&cloned["latest_complete"], &cloned["unlocked"]), (&2.into(), &false.into()));
    world.restores(&world.sandbox.vault());
    world.sandbox.assert_clean();
    // It knows where it came from, and ships there without another word.
    let remotes = world.run(&["remote", "list", world.vault(), "--json"]).json();
    assert_eq!((&remotes[0]["name"], &remotes[0]["url"]), (&"origin".into(), &world.url().into()));
    let idle = world.ship();
    assert_eq!((&idle["packs"], &idle["chain_files"], &idle["headers"]), (&0.into(), &0.into(), &0.into()));
    world.snapshot("three", b"after the fire");
    assert_eq!(world.ship()["chain_files"], 1);
    world.restores(&world.far());
    // What an interruption left before there was anything is no obstacle.
    fs::create_dir_all(world.sandbox.path("begun/live")).unwrap();
    fs::write(world.sandbox.path("begun/live/clone.json.tmp"), "{").unwrap();
    world.clone("begun").ok();
    // A clone never goes where something is.
    fs::create_dir_all(world.sandbox.path("live-only/live")).unwrap();
    fs::write(world.sandbox.path("live-only/live/live.redb"), "x").unwrap();
    let said = world.clone("live-only").fails(2);
    assert!(said.contains("is not empty"), "{said}");
    let said = world.on("state", &["clone", &world.url(), world.vault()]).fails(2);
    assert!(said.contains("is a vault already") && said.contains("pull"), "{said}");
    let said = world.on("state", &["clone", &world.url(), &world.str("source")]).fails(2);
    assert!(said.contains("is not empty"), "{said}");
    let said = world.on("state", &["clone", &format!("{}-not", world.url()), &world.str("x")]).fails(24);
    assert!(said.contains("no such directory") && !world.sandbox.path("x").exists(), "{said}");
    fs::create_dir(world.sandbox.path("empty")).unwrap();
    let empty = format!("file://{}", world.str("empty"));
    let said = world.on("state", &["clone", &empty, &world.str("x")]).fails(10);
    assert!(said.contains("no vault there") && !world.sandbox.path("x").exists(), "{said}");
}

/// Two clones into one directory: the second finds a vault when it gets its turn, and touches nothing.
#[test]
fn a_clone_does_not_go_over_one_that_ended_meanwhile() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    world.keyed(&["key", "add", world.vault(), "--new-passfile", &world.passfile(), "--kdf-time", "0"]).ok();
    world.ship();
    let (to, key) = (world.str("copy"), world.str("key"));
    let program = env!("CARGO_BIN_EXE_strongroom");
    // While the key is asked for, another one clones there, and works with it.
    let meanwhile = format!(
        "{{ {program} clone '{}' '{to}' && {program} import '{to}' '{}' --keyfile '{key}'; }} >&2 && cat '{}'",
        world.url(),
        world.str("source"),
        world.passfile(),
    );
    fs::write(world.sandbox.path("source/two"), b"2").unwrap();
    let said = world.on("state-b", &["clone", &world.url(), &to, "--extpass", &meanwhile]).fails(16);
    assert!(said.contains("there is a vault already"), "{said}");
    assert_eq!(newest_complete(&world.sandbox.path("copy")), 2, "what was done there is there");
    world.restores(&world.sandbox.path("copy"));
}

/// A mount over a clone shows the newest snapshot, and its work ships back.
#[test]
fn heavy_a_clone_is_mounted_and_worked_on() {
    let world = World::new();
    world.sandbox.mount();
    fs::write(world.sandbox.mountpoint().join("file"), pattern(500_000, 1)).unwrap();
    world.sandbox.umount();
    world.ship();
    fs::remove_dir_all(world.sandbox.vault()).unwrap();
    // The same host, which has a high-water mark of the vault that was lost.
    world.keyed(&["clone", &world.url(), world.vault()]).ok();
    world.sandbox.mount();
    assert_eq!(fs::read(world.sandbox.mountpoint().join("file")).unwrap(), pattern(500_000, 1));
    fs::write(world.sandbox.mountpoint().join("more"), "more").unwrap();
    world.sandbox.umount();
    assert_eq!(world.ship()["chain_files"], 1);
    assert_eq!(world.sandbox.cat(&world.far(), "latest:/more"), b"more");
    world.sandbox.assert_clean();
}

#[test]
fn s3_and_sftp_are_cloned_with_the_flags_of_remote_add() {
    let world = World::new();
    world.snapshot("one", &pattern(500_000, 1));
    let server = Server::start();
    let s3 = crate::remote::s3_settings(&server, &world.sandbox.path(""));
    let sshd = Sshd::start(&world.sandbox.path("sshd"), "");
    fs::create_dir(world.sandbox.path("nas")).unwrap();
    let sftp = crate::remote::sftp_settings(&sshd, &world.sandbox.path("nas"));
    let text = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().to_str().unwrap().to_string();
    let (endpoint, credentials) = (server.endpoint(), text(&s3.credentials_file));
    let s3_flags = ["--endpoint", &endpoint, "--path-style", "--credentials-file", &credentials];
    let (identity, hosts) = (text(&sftp.identity_file), text(&sftp.known_hosts));
    let sftp_flags = ["--identity-file", &identity, "--known-hosts", &hosts, "--ssh-config", "/dev/null"];
    for (name, url, flags) in [("s3", &s3.url, &s3_flags[..]), ("nas", &sftp.url, &sftp_flags[..])] {
        world.run(&[&["remote", "add", world.vault(), name, url], flags].concat()).ok();
        world.run(&["ship", world.vault(), "--to", name]).ok();
        let to = world.str(&format!("from-{name}"));
        let clone = [&["clone", url, &to, "--jobs", "3", "--limit-download", "100M"], flags].concat();
        let said = world.on("state-b", &clone).ok();
        assert!(said.contains("snapshot 1 is the newest"), "{said}");
        assert_eq!(files(&world.sandbox.path(&format!("from-{name}"))), files(&world.sandbox.vault()));
        // The settings came along, a secret did not.
        world.on("state-b", &["ship", &to]).ok();
        let settings = fs::read_to_string(format!("{to}/live/remotes.json")).unwrap();
        assert!(settings.contains("limit_download") && !settings.contains(SECRET_KEY), "{settings}");
        world.restores(&world.sandbox.path(&format!("from-{name}")));
    }
}

/// The connection ends for good at each request in turn. What stands there is no vault until all of it is, and the next run
/// fetches only what is missing.
#[test]
fn an_end_at_any_request_is_gone_on_from() {
    let world = World::new();
    for n in 0..3 {
        world.snapshot(&format!("file{n}"), &pattern(100_000, n));
    }
    world.ship();
    let far = open_dir(&world.far());
    let expected = files(&world.far());
    let all = packs(&world.far()).len() as u64;
    for n in 1.. {
        let copy = tempfile::tempdir_in(world.sandbox.path("")).unwrap();
        let gets = Arc::new(AtomicU64::new(0));
        let counted = |from: u64| {
            let gets = Arc::clone(&gets);
            let far = Arc::clone(&far);
            let remote: Arc<dyn Remote> = Arc::new(FaultyRemote::new(far, move |at, op, name| {
                if at >= from {
                    return Some(Fault::Before(ErrorKind::Denied));
                }
                if op == Op::Get && name.starts_with("packs/") {
                    gets.fetch_add(1, Ordering::Relaxed);
                }
                None
            }));
            remote
        };
        let ended = clone_from(&counted(n), copy.path());
        let whole = copy.path().join("vault.json").exists();
        assert_eq!(ended.is_ok(), whole, "request {n}");
        assert!(whole || !copy.path().join("vault.json.bak").exists(), "request {n}");
        for (name, bytes) in files(copy.path()) {
            assert!(expected.contains(&(name.clone(), bytes)), "request {n}: {name}");
        }
        if whole {
            assert!(n > 8, "{n} requests");
            break;
        }
        clone_from(&counted(u64::MAX), copy.path()).unwrap();
        assert_eq!(files(copy.path()), expected, "request {n}");
        assert!(
            gets.load(Ordering::Relaxed) <= all + 2,
            "request {n}: {gets:?} packs were fetched, and there are {all}"
        );
        let left: Vec<_> = fs::read_dir(copy.path().join("live/incoming")).unwrap().collect();
        assert_eq!(left.len(), 1, "only the empty folder of chain files is left: {left:?}");
    }
}

/// A clone that was begun is gone on with only for the same vault.
#[test]
fn two_vaults_are_not_mixed_in_one_directory() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    let other = World::new();
    other.snapshot("one", b"other");
    other.ship();
    let cut: Arc<dyn Remote> = Arc::new(FaultyRemote::new(open_dir(&world.far()), |_, op, name| {
        (op == Op::Get && name.starts_with("packs/")).then_some(Fault::Before(ErrorKind::Timeout))
    }));
    let to = world.sandbox.path("copy");
    clone_from(&cut, &to).unwrap_err();
    let said = other.on("state", &["clone", &other.url(), to.to_str().unwrap()]).fails(25);
    assert!(said.contains("another vault"), "{said}");
    clone_from(&open_dir(&world.far()), &to).unwrap();
    assert_eq!(files(&to), files(&world.far()));
    // Two at the same time are not either.
    let lock = super::real_disk(&to).lock("live/incoming.lock").unwrap().unwrap();
    let said = world.on("state", &["pull", to.to_str().unwrap()]).fails(2);
    assert!(said.contains("no remotes"), "{said}");
    world.on("state", &["remote", "add", to.to_str().unwrap(), "far", &world.url()]).ok();
    let said = world.on("state", &["pull", to.to_str().unwrap()]).fails(16);
    assert!(said.contains("another process"), "{said}");
    drop(lock);
    world.on("state", &["pull", to.to_str().unwrap()]).ok();
}

#[test]
fn a_key_proves_the_header_at_once() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    world.sandbox.private_file("wrong", &[8; 64]);
    let (to, wrong) = (world.str("copy"), world.str("wrong"));
    world.on("state-b", &["clone", &world.url(), &to, "--keyfile", &wrong]).fails(11);
    assert!(!world.sandbox.path("copy").exists(), "nothing was begun");
    let done = world.keyed_on("state-b", &["clone", &world.url(), &to, "--json"]).json();
    assert_eq!(done["unlocked"], true);
    // What was proved raises the high-water mark of that host, what was not does not.
    let marks = |host: &str| {
        let of_vault = |name: &str| name.starts_with("highwater-");
        fs::read_dir(world.sandbox.path(host))
            .unwrap()
            .filter(|entry| of_vault(entry.as_ref().unwrap().file_name().to_str().unwrap()))
            .count()
    };
    assert_eq!(marks("state-b"), 1);
    world.clone("other").ok();
    assert_eq!(marks("state-other"), 0);
}

/// What a dry run promises is what happens then; and nothing is written before.
#[test]
fn a_dry_run_says_what_a_clone_fetches() {
    let world = World::new();
    world.snapshot("one", &pattern(300_000, 1));
    world.snapshot("two", &pattern(200_000, 2));
    world.ship();
    let (to, url) = (world.str("copy"), world.url());
    let dry = || world.on("state-b", &["clone", &url, &to, "--dry-run", "--json"]).json();
    let before = dry();
    assert!(!world.sandbox.path("copy").exists());
    assert_eq!(
        (&before["dry_run"], &before["chain_files"], &before["latest_complete"]),
        (&true.into(), &2.into(), &2.into())
    );
    assert!(before["available_bytes"].as_u64().unwrap() > 0, "{before}");
    // One that was begun counts for what it has.
    let cut: Arc<dyn Remote> = Arc::new(FaultyRemote::new(open_dir(&world.far()), |n, op, name| {
        (op == Op::Get && name.starts_with("packs/") && n > 9).then_some(Fault::Before(ErrorKind::Timeout))
    }));
    clone_from(&cut, &world.sandbox.path("copy")).unwrap_err();
    let begun = dry();
    assert_eq!((&begun["chain_files"], &begun["packs_there"]), (&0.into(), &begun["packs_there"]));
    assert!(begun["bytes"].as_u64().unwrap() < before["bytes"].as_u64().unwrap(), "{begun}");
    fs::remove_dir_all(world.sandbox.path("copy")).unwrap();
    let done = world.on("state-b", &["clone", &url, &to, "--json"]).json();
    for name in ["packs", "chain_files", "bytes", "packs_there", "snapshots", "newest", "latest_complete"] {
        assert_eq!(before[name], done[name], "{name}");
    }
    // The same of a pull.
    world.snapshot("three", &pattern(100_000, 3));
    world.ship();
    let copy = files(&world.sandbox.path("copy"));
    let before = world.on("state-b", &["pull", &to, "--dry-run", "--json"]).json();
    assert_eq!((files(&world.sandbox.path("copy")), &before["was"]), (copy, &"behind".into()));
    let said = world.on("state-b", &["pull", &to, "-n"]).ok();
    assert!(said.starts_with("would fetch ") && said.contains(" are free in "), "{said}");
    let done = world.on("state-b", &["pull", &to, "--json"]).json();
    for name in
        ["was", "packs", "chain_files", "bytes", "packs_there", "snapshots", "newest", "latest_complete"]
    {
        assert_eq!(before[name], done[name], "{name}");
    }
    let idle = world.on("state-b", &["pull", &to, "--dry-run", "--json"]).json();
    assert_eq!((&idle["was"], &idle["packs"], &idle["bytes"]), (&"same".into(), &0.into(), &0.into()));
    // What is missing there is said before anything is fetched.
    let victim = packs(&world.far()).pop_first().unwrap();
    fs::remove_file(world.far().join(&victim)).unwrap();
    let said = world.on("state-b", &["clone", &url, &world.str("other"), "--dry-run"]).fails(25);
    assert!(said.contains(&format!("{victim} is missing")), "{said}");
}
