//! `pull`: a copy follows its remote, and never loses what only it has.

use std::fs;
use std::sync::Arc;

use strongroom::fetch;
use strongroom::remote::{ErrorKind, Fault, FaultyRemote, Remote};

use super::{World, chain_of, files, newest_complete, open_dir, packs, real_disk};
use crate::common::{Sandbox, write_synced};
use crate::remote::pattern;

/// A mirror that is never mounted needs no key, follows deletions and collections, and is then the same as the remote's
/// history, file by file.
#[test]
fn a_mirror_follows_without_a_key() {
    let world = World::new();
    for n in 0..4 {
        world.snapshot(&format!("file{n}"), &pattern(200_000, n));
    }
    world.ship();
    world.clone("mirror").ok();
    let (mirror, at) = (world.str("mirror"), world.sandbox.path("mirror"));
    let pull = |was: &str| {
        let done = world.on("state-b", &["pull", &mirror, "--json"]).json();
        assert_eq!(done["was"], was, "{done}");
        done
    };
    pull("same");
    // Snapshots are removed, files with them, and what they held is collected.
    fs::remove_file(world.sandbox.path("source/file0")).unwrap();
    world.snapshot("file4", &pattern(200_000, 4));
    for seq in ["1", "2", "3", "4"] {
        world.keyed(&["snapshot", "delete", world.vault(), seq]).ok();
    }
    world.keyed(&["gc", world.vault(), "--dead-percent", "1"]).ok();
    world.snapshot("file5", b"5");
    world.ship();
    let before = packs(&at);
    let done = pull("behind");
    assert!(done["packs"].as_u64().unwrap() > 0, "{done}");
    assert_eq!(files(&at), files(&world.sandbox.vault()));
    assert!(!before.is_subset(&packs(&at)), "collected packs are gone here, too");
    world.restores(&at);
    world.sandbox.fsck(&at).ok();
    assert_eq!(pull("same")["bytes"], 0);
    let said = world.on("state-b", &["pull", &mirror, "--from", "elsewhere"]).fails(22);
    assert!(said.contains("no remote elsewhere"), "{said}");
}

/// A file of the mirror that rotted is fetched again, whether it is a pack or a snapshot file.
#[test]
fn what_is_damaged_here_is_mended() {
    let world = World::new();
    for n in 1..4 {
        world.snapshot(&format!("file{n}"), &pattern(100_000, n));
    }
    world.ship();
    world.clone("mirror").ok();
    let at = world.sandbox.path("mirror");
    let whole = files(&at);
    let chain: Vec<&String> =
        whole.iter().map(|(name, _)| name).filter(|n| n.starts_with("snapshots/")).collect();
    for victim in chain {
        let mut bytes = fs::read(at.join(victim)).unwrap();
        bytes[50] ^= 1;
        fs::write(at.join(victim), bytes).unwrap();
        // The history here is not all known then, but nothing in it contradicts the remote's.
        world.on("state-b", &["pull", &world.str("mirror")]).ok();
        assert_eq!(files(&at), whole, "{victim}");
        fs::remove_file(at.join(victim)).unwrap();
        world.on("state-b", &["pull", &world.str("mirror")]).ok();
        assert_eq!(files(&at), whole, "{victim} was missing");
    }
    // The length of a pack is compared each time; its bytes are fsck's business.
    let victim = packs(&at).pop_first().unwrap();
    let bytes = fs::read(at.join(&victim)).unwrap();
    fs::write(at.join(&victim), &bytes[..bytes.len() / 2]).unwrap();
    world.on("state-b", &["pull", &world.str("mirror")]).ok();
    assert_eq!(files(&at), whole, "{victim}");
    // A remote with another length than a good pack here is told, and changes nothing here.
    fs::write(world.far().join(&victim), &bytes[..bytes.len() / 2]).unwrap();
    let said = world.on("state-b", &["pull", &world.str("mirror")]).fails(25);
    assert!(said.contains(&victim), "{said}");
    assert_eq!(files(&at), whole, "{victim}");
}

/// A vault that was put back from an old backup catches up, though this host has seen it newer.
#[test]
fn heavy_a_vault_that_was_rolled_back_catches_up() {
    let world = World::new();
    let write = |text: &str| {
        world.sandbox.mount();
        write_synced(&world.sandbox.mountpoint().join("file"), text.as_bytes()).unwrap();
        world.sandbox.umount();
        world.ship();
    };
    write("first");
    world.sandbox.sh("cp -a encrypted older").ok();
    write("second");
    write("third");
    world.sandbox.sh("rm -r encrypted && mv older encrypted").ok();
    let at = world.sandbox.path("decrypted");
    let mount = ["mount", world.vault(), at.to_str().unwrap()];
    world.keyed(&mount).fails(17);
    world.keyed(&["pull", world.vault()]).ok();
    world.keyed(&mount).ok();
    assert_eq!(fs::read(at.join("file")).unwrap(), b"third");
    world.sandbox.umount();
    assert_eq!(files(&world.sandbox.vault()), files(&world.far()));
}

/// The connection ends for good at each request: what was here still restores, and the next pull completes.
#[test]
fn a_pull_that_was_interrupted_is_gone_on_with() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    world.ship();
    world.clone("mirror").ok();
    for n in 2..5 {
        world.snapshot(&format!("file{n}"), &pattern(100_000, n));
    }
    world.keyed(&["snapshot", "delete", world.vault(), "3"]).ok();
    world.ship();
    for n in 1.. {
        drop(fs::remove_dir_all(world.sandbox.path("try")));
        world.sandbox.sh("cp -r mirror try").ok();
        let at = world.sandbox.path("try");
        let disk = real_disk(&at);
        let pull = |remote: Arc<dyn Remote>| -> Result<(), fetch::FetchError> {
            let theirs = fetch::remote_header(remote.as_ref())?;
            let ours = strongroom::store::header::load(disk.as_ref())?.parsed.header;
            let ready = fetch::prepare(&disk, &remote, &ours, &theirs, None, 2, &mut |_| Ok(()), &|_| {})?;
            assert!(!ready.has_live_state()?);
            ready.check(&ours, None)?.apply()
        };
        let cut = FaultyRemote::new(open_dir(&world.far()), move |at, _, _| {
            (at >= n).then_some(Fault::Before(ErrorKind::Denied))
        });
        let ended = pull(Arc::new(cut));
        let (chain, _) = chain_of(&at).unwrap();
        assert!(chain.is_whole(), "request {n}: {:?}", chain.problems());
        assert_eq!(newest_complete(&at), if ended.is_ok() { 4 } else { 1 }, "request {n}");
        if ended.is_ok() {
            assert!(n > 8, "{n} requests");
            break;
        }
        pull(open_dir(&world.far())).unwrap();
        assert_eq!(files(&at), files(&world.sandbox.vault()), "request {n}");
    }
}

/// Keys that were changed at one host reach the other: with a key that proves them, and not without.
#[test]
fn changed_keys_are_taken_over_with_a_key() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    world.clone("copy").ok();
    let copy = world.str("copy");
    world.sandbox.private_file("key2", &[9; 64]);
    let key2 = world.str("key2");
    world.keyed(&["key", "add", world.vault(), "--new-keyfile", &key2]).ok();
    world.ship();
    let header = |of: &str| fs::read(world.sandbox.path(of).join("vault.json")).unwrap();
    let before = header("copy");
    let done = world.on("state-b", &["pull", &copy]);
    assert!(done.code == 0 && done.stderr.contains("keys were changed"), "{done:?}");
    assert_eq!(header("copy"), before);
    // The new key opens only the new header.
    world.on("state-b", &["pull", &copy, "--keyfile", &key2]).ok();
    assert_eq!(header("copy"), header("encrypted"));
    assert_eq!(fs::read(world.sandbox.path("copy/vault.json.bak")).unwrap(), header("encrypted"));
    // Somebody without the key who makes a newer header there gets nowhere.
    let text = String::from_utf8(header("far")).unwrap();
    let forged = strongroom::format::Header::parse(text.as_bytes()).unwrap().header;
    let forged = strongroom::format::Header { generation: 99, ..forged }.encode(|_| [1; 32]);
    for name in ["vault.json", "vault.json.bak"] {
        fs::write(world.far().join(name), &forged).unwrap();
    }
    let before = header("copy");
    world.snapshot("two", b"2");
    world.sandbox.sh("cp encrypted/snapshots/* far/snapshots/; cp -r encrypted/packs far/").ok();
    world.on("state-b", &["pull", &copy]).ok();
    assert_eq!(header("copy"), before);
    let said = world.on("state-b", &["pull", &copy, "--keyfile", &key2]).fails(25);
    assert!(said.contains("written by nobody who has the key"), "{said}");
    assert_eq!((header("copy"), newest_complete(&world.sandbox.path("copy"))), (before, 2));
}

#[test]
fn a_remote_of_another_vault_is_refused() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    world.clone("copy").ok();
    let other = World::new();
    other.ship();
    world.on("state-b", &["remote", "add", &world.str("copy"), "other", &other.url()]).ok();
    let said = world.on("state-b", &["pull", &world.str("copy")]).fails(2);
    assert!(said.contains("--from"), "{said}");
    let said = world.on("state-b", &["pull", &world.str("copy"), "--from", "other"]).fails(25);
    assert!(said.contains("another vault"), "{said}");
}

/// Host A writes through a mount, host B has a copy that it mounts as well.
#[test]
fn heavy_a_working_tree_follows_unless_it_has_something_of_its_own() {
    let world = World::around(Sandbox::with_vault());
    let mountpoint = world.str("decrypted");
    let key = world.str("key");
    let mounted = |host: &str, vault: &str, work: &dyn Fn()| {
        world.on(host, &["mount", vault, &mountpoint, "--keyfile", &key]).ok();
        work();
        world.on(host, &["umount", &mountpoint]).ok();
    };
    let at = |name: &str| world.sandbox.mountpoint().join(name);
    let read = |name: &str| fs::read_to_string(at(name)).unwrap();
    mounted("state", world.vault(), &|| {
        write_synced(&at("file"), b"first").unwrap();
        fs::create_dir(at("dir")).unwrap();
        write_synced(&at("dir/gone"), &pattern(300_000, 1)).unwrap();
    });
    world.ship();
    world.clone("b").ok();
    let b = world.str("b");
    mounted("state-b", &b, &|| assert_eq!(read("file"), "first"));
    mounted("state", world.vault(), &|| {
        write_synced(&at("file"), b"second").unwrap();
        fs::remove_file(at("dir/gone")).unwrap();
        write_synced(&at("dir/new"), &pattern(300_000, 2)).unwrap();
    });
    world.ship();
    // Not while it is mounted.
    mounted("state-b", &b, &|| {
        let said = world.on("state-b", &["pull", &b, "--keyfile", &key]).fails(16);
        assert!(said.contains("mounted at"), "{said}");
    });
    world.keyed_on("state-b", &["pull", &b]).ok();
    mounted("state-b", &b, &|| {
        assert_eq!(read("file"), "second");
        assert!(!at("dir/gone").exists());
        assert_eq!(fs::read(at("dir/new")).unwrap(), pattern(300_000, 2));
        // It goes on here, now.
        write_synced(&at("from-b"), b"b was here").unwrap();
    });
    world.on("state-b", &["ship", &b]).ok();
    assert_eq!(world.sandbox.cat(&world.far(), "latest:/from-b"), b"b was here");
    world.sandbox.fsck(&world.far()).ok();
    // And back again.
    world.keyed(&["pull", world.vault()]).ok();
    mounted("state", world.vault(), &|| {
        assert_eq!(read("from-b"), "b was here");
        write_synced(&at("file"), b"third").unwrap();
    });
    world.ship();
    // A daemon that was killed leaves changes that no snapshot has: they are not dropped.
    world.on("state-b", &["mount", &b, &mountpoint, "--keyfile", &key]).ok();
    write_synced(&at("unsaved"), b"precious").unwrap();
    let status = world.on("state-b", &["status", &b, "--json"]).json();
    crate::common::kill_9(i32::try_from(status["pid"].as_i64().unwrap()).unwrap());
    world.sandbox.sh("umount -l decrypted").ok();
    let said = world.keyed_on("state-b", &["pull", &b]).fails(25);
    assert!(said.contains("no snapshot has") && said.contains("--discard-live"), "{said}");
    assert_eq!(newest_complete(&world.sandbox.path("b")), 3);
    mounted("state-b", &b, &|| assert_eq!(read("unsaved"), "precious"));
    // That unmount made a snapshot: two histories now. Both stay.
    let said = world.keyed_on("state-b", &["pull", &b]).fails(25);
    assert!(said.contains("both went on") && said.contains("new place"), "{said}");
    let said = world.keyed_on("state-b", &["pull", &b, "--discard-live"]).fails(25);
    assert!(said.contains("both went on"), "{said}");
    assert_eq!(world.sandbox.cat(&world.sandbox.path("b"), "latest:/unsaved"), b"precious");
    world.on("state-b", &["ship", &b]).fails(25);
}

/// Changes that were to be dropped are, by name only.
#[test]
fn heavy_what_is_in_no_snapshot_is_dropped_on_demand() {
    let world = World::new();
    let mountpoint = world.str("decrypted");
    let key = world.str("key");
    world.sandbox.mount();
    write_synced(&world.sandbox.mountpoint().join("file"), b"first").unwrap();
    world.sandbox.umount();
    world.ship();
    world.clone("b").ok();
    let b = world.str("b");
    world.on("state-b", &["mount", &b, &mountpoint, "--keyfile", &key]).ok();
    write_synced(&world.sandbox.mountpoint().join("file"), b"unsaved").unwrap();
    let status = world.on("state-b", &["status", &b, "--json"]).json();
    crate::common::kill_9(i32::try_from(status["pid"].as_i64().unwrap()).unwrap());
    world.sandbox.sh("umount -l decrypted").ok();
    world.sandbox.mount();
    write_synced(&world.sandbox.mountpoint().join("file"), b"second").unwrap();
    world.sandbox.umount();
    world.ship();
    world.keyed_on("state-b", &["pull", &b]).fails(25);
    world.on("state-b", &["pull", &b, "--discard-live"]).ok();
    world.on("state-b", &["mount", &b, &mountpoint, "--keyfile", &key]).ok();
    assert_eq!(fs::read(world.sandbox.mountpoint().join("file")).unwrap(), b"second");
    world.on("state-b", &["umount", &mountpoint]).ok();
    world.on("state-b", &["ship", &b]).ok();
}

/// Between the first look at a copy and the moment in which it is moved on, it is mounted, written to, and its daemon killed:
/// what was synced is in no snapshot, and is not dropped.
#[test]
fn heavy_what_was_written_while_a_pull_waited_for_a_key_stays() {
    let world = World::new();
    let (key, passfile, mountpoint) = (world.str("key"), world.passfile(), world.str("decrypted"));
    world.keyed(&["key", "add", world.vault(), "--new-passfile", &passfile, "--kdf-time", "0"]).ok();
    world.sandbox.mount();
    write_synced(&world.sandbox.mountpoint().join("file"), b"first").unwrap();
    world.sandbox.umount();
    world.ship();
    world.clone("b").ok();
    let b = world.str("b");
    world.sandbox.mount();
    write_synced(&world.sandbox.mountpoint().join("file"), b"second").unwrap();
    world.sandbox.umount();
    world.ship();
    let program = env!("CARGO_BIN_EXE_strongroom");
    // The program that gives the passphrase is run when everything was fetched.
    let meanwhile = format!(
        "{{ {program} mount '{b}' '{mountpoint}' --keyfile '{key}' && echo precious > '{mountpoint}/unsaved' &&
            sync '{mountpoint}/unsaved' && pid=$({program} status '{b}' --json | grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*$') &&
            kill -9 $pid && umount -l '{mountpoint}'; }} >&2 && cat '{passfile}'"
    );
    let said = world.on("state-b", &["pull", &b, "--extpass", &meanwhile]).fails(16);
    assert!(said.contains("was mounted while it was being pulled into"), "{said}");
    assert_eq!(newest_complete(&world.sandbox.path("b")), 1, "nothing was moved on");
    // Nor by the next one: what is there is in no snapshot.
    let said = world.keyed_on("state-b", &["pull", &b]).fails(25);
    assert!(said.contains("no snapshot has"), "{said}");
    world.on("state-b", &["mount", &b, &mountpoint, "--keyfile", &key]).ok();
    assert_eq!(fs::read(world.sandbox.mountpoint().join("unsaved")).unwrap(), b"precious\n");
    world.on("state-b", &["umount", &mountpoint]).ok();
}
