//! Headers that somebody put over ours: with a key they hide nothing, and are told.

use std::fs;
use std::path::Path;

use strongroom::format::Header;

use super::{World, from_url, s3_flags};
use crate::common::Finished;
use crate::remote::s3_server::{Server, Trouble};
use crate::remote::s3_settings;

const TOLD: &str = "written by nobody who has the key";

/// A header as anybody can make it of ours: the checksum is right, the MAC is not.
fn forged(bytes: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::parse(bytes).unwrap().header;
    change(&mut header);
    header.encode(|_| [7; 32])
}

/// A vault with one snapshot, with a keyfile beside its passphrase, at `usb`, and, with versions, in a bucket.
struct Attacked {
    world: World,
    server: Server,
    flags: Vec<String>,
}

impl Attacked {
    fn new() -> Self {
        let world = World::new();
        fs::write(world.source("file"), "content").unwrap();
        world.snapshot();
        world.sandbox.private_file("key", &[7; 64]);
        let key = world.sandbox.str("key");
        world.sandbox.keyed(&["key", "add", world.vault(), "--new-keyfile", &key]).ok();
        let server = Server::start();
        server.set_bucket(true, false);
        let settings = s3_settings(&server, &world.sandbox.path(""));
        let flags = s3_flags(&settings);
        let add = ["remote", "add", world.vault(), "s3", &settings.url].into_iter();
        world.sandbox.run(add.chain(flags.iter().map(String::as_str))).ok();
        world.ship();
        let flags = [from_url(&settings.url), flags].concat();
        Self { world, server, flags }
    }

    fn header(&self) -> Vec<u8> {
        fs::read(self.world.sandbox.vault().join("vault.json")).unwrap()
    }

    fn run(&self, verb: &[&str], rest: &[&str]) -> Finished {
        let flags = self.flags.iter().map(String::as_str);
        let args: Vec<&str> = verb.iter().copied().chain(flags).chain(rest.iter().copied()).collect();
        self.world.sandbox.run(args)
    }

    /// Clones from the bucket.
    fn clone(&self, to: &str, rest: &[&str]) -> Finished {
        let to = self.world.sandbox.str(to);
        let flags = self.flags[1..].iter().map(String::as_str);
        let args: Vec<&str> =
            ["clone"].into_iter().chain(flags).chain(rest.iter().copied()).chain([to.as_str()]).collect();
        self.world.sandbox.run(args)
    }

    /// Puts headers over both copies in the bucket.
    fn plant(&self, bytes: &[u8]) {
        for name in ["vault.json", "vault.json.bak"] {
            self.server.plant(&format!("some/vault/{name}"), bytes);
        }
    }

    fn reads(&self, copy: &Path) -> Finished {
        let key = self.world.sandbox.str("key");
        self.world.sandbox.run([
            "ls",
            copy.to_str().unwrap(),
            &self.world.at("latest", ""),
            "--keyfile",
            &key,
        ])
    }
}

#[test]
fn forged_headers_over_ours_hide_nothing_from_who_has_a_key() {
    let attacked = Attacked::new();
    let (world, truth) = (&attacked.world, attacked.header());
    let key = world.sandbox.str("key");
    let target = world.at("latest", "");
    // With slots of ours, with slots that open nothing, and many of them.
    attacked.plant(&forged(&truth, |header| header.generation += 1000));
    for n in 0..20 {
        attacked.plant(&forged(&truth, |header| {
            header.generation += 500 - n;
            header.slots.iter_mut().for_each(|slot| slot.wrapped[0] ^= 1);
        }));
    }
    for verb in [&["ls"][..], &["snapshot", "list"]] {
        let rest = if verb.len() == 1 { vec![target.as_str()] } else { Vec::new() };
        let done = attacked.run(verb, &[&rest[..], &["--keyfile", &key]].concat());
        assert!(done.stderr.contains(TOLD), "{verb:?} {}", done.stderr);
        assert!(!done.ok().is_empty());
    }
    // A passphrase as well; and a wrong one is wrong.
    let done = attacked.run(&["ls"], &[&target, "--passfile", &world.sandbox.passfile()]);
    assert!(done.stderr.contains(TOLD), "{}", done.stderr);
    done.ok();
    world.sandbox.private_file("wrong", &[8; 64]);
    attacked.run(&["ls"], &["--keyfile", &world.sandbox.str("wrong")]).fails(11);
    // A clone with a key takes the true one, and tells.
    let said = attacked.clone("proved", &["--keyfile", &key]).fails(25);
    assert!(said.contains(TOLD), "{said}");
    assert_eq!(fs::read(world.sandbox.path("proved/vault.json")).unwrap(), truth);
    attacked.reads(&world.sandbox.path("proved")).ok();
    // One without can't know. A pull with a key mends it.
    let done = attacked.clone("blind", &[]);
    assert!(done.code == 0 && done.stderr.contains("`strongroom pull` with a key"), "{done:?}");
    attacked.reads(&world.sandbox.path("blind")).fails(14);
    let blind = world.sandbox.str("blind");
    let said = world.sandbox.run(["pull", &blind, "--keyfile", &key]).fails(25);
    assert!(said.contains(TOLD), "{said}");
    for copy in ["vault.json", "vault.json.bak"] {
        assert_eq!(fs::read(world.sandbox.path("blind").join(copy)).unwrap(), truth);
    }
    attacked.reads(&world.sandbox.path("blind")).ok();
}

/// Whoever forges headers chooses their generations: a true one in the middle of them is found, too.
#[test]
fn a_true_header_among_forged_ones_is_found() {
    let attacked = Attacked::new();
    let (world, truth) = (&attacked.world, attacked.header());
    for n in 0..20 {
        attacked.plant(&forged(&truth, |header| {
            // Ten above it, ten beside it.
            header.generation += if n < 10 { 10 + u64::from(n) } else { 0 };
            header.slots.iter_mut().for_each(|slot| slot.wrapped[0] ^= 1 + n);
        }));
    }
    let key = world.sandbox.str("key");
    let target = world.at("latest", "");
    for unlock in [["--keyfile", &key], ["--passfile", &world.sandbox.passfile()]] {
        let done = attacked.run(&["ls"], &[&[target.as_str()], &unlock[..]].concat());
        assert!(done.stderr.contains(TOLD), "{}", done.stderr);
        done.ok();
    }
    world.sandbox.private_file("wrong", b"not the passphrase");
    attacked.run(&["ls"], &[&target, "--passfile", &world.sandbox.str("wrong")]).fails(11);
    attacked.clone("proved", &["--keyfile", &key]).fails(25);
    assert_eq!(fs::read(world.sandbox.path("proved/vault.json")).unwrap(), truth);
    attacked.clone("blind", &[]).ok();
    world.sandbox.run(["pull", &world.sandbox.str("blind"), "--keyfile", &key]).fails(25);
    assert_eq!(fs::read(world.sandbox.path("blind/vault.json")).unwrap(), truth);
}

/// One copy that is archived, say, is no reason not to read the other one.
#[test]
fn one_readable_copy_is_enough() {
    let attacked = Attacked::new();
    let (world, truth) = (&attacked.world, attacked.header());
    let target = world.at("latest", "");
    for (n, name) in ["vault.json", "vault.json.bak"].into_iter().enumerate() {
        attacked.server.set_trouble(move |_, op, key| {
            let hit = op == "get" && key.ends_with(&format!("some/vault/{name}"));
            hit.then_some(Trouble::Before("InvalidObjectState", 403))
        });
        let told = format!("{name} can't be read there");
        let done = attacked.run(&["ls"], &[&target, "--passfile", &world.sandbox.passfile()]);
        assert!(done.stderr.contains(&told), "{}", done.stderr);
        done.ok();
        let copy = format!("copy{n}");
        let done = attacked.clone(&copy, &[]);
        assert!(done.stderr.contains(&told), "{}", done.stderr);
        done.ok();
        assert_eq!(fs::read(world.sandbox.path(&copy).join("vault.json")).unwrap(), truth);
    }
    attacked.server.set_trouble(|_, op, key| {
        (op == "get" && key.contains("vault.json")).then_some(Trouble::Before("InvalidObjectState", 403))
    });
    let done = attacked.run(&["ls"], &[&target, "--passfile", &world.sandbox.passfile()]);
    assert!(done.code != 0 && done.stderr.contains("archived"), "{done:?}");
}

/// Where there are no versions there are two copies: one that is true is enough, whatever the other one says.
#[test]
fn one_true_copy_is_enough() {
    let attacked = Attacked::new();
    let (world, truth) = (&attacked.world, attacked.header());
    let stranger = World::new();
    let other = fs::read(stranger.sandbox.vault().join("vault.json")).unwrap();
    let forgeries = [
        forged(&truth, |header| header.generation += 1),
        // Of the same generation: without a key it can't be said which one counts.
        forged(&truth, |header| header.slots.truncate(1)),
        forged(&other, |header| header.generation = 1000),
    ];
    for (n, forgery) in forgeries.iter().enumerate() {
        for name in ["vault.json", "vault.json.bak"] {
            fs::write(world.usb().join(name), forgery).unwrap();
            let done = world.from(&["ls"], &from_url(&world.usb_url()), &[]);
            let told = if n == 2 { "of another vault lies over" } else { TOLD };
            assert!(done.stderr.contains(told), "{n} {name}: {}", done.stderr);
            done.ok();
            if n == 1 {
                let said =
                    world.sandbox.run(["clone", &world.usb_url(), &world.sandbox.str("copy")]).fails(12);
                assert!(said.contains("a key tells which one is true"), "{said}");
            }
            fs::write(world.usb().join(name), &truth).unwrap();
        }
    }
}

/// An older header lies under the newest one, and a key that was removed opens it: that is no way back in.
#[test]
fn a_key_that_was_removed_opens_nothing_though_its_header_is_there() {
    let attacked = Attacked::new();
    let (world, target) = (&attacked.world, attacked.world.at("latest", ""));
    let key = world.sandbox.str("key");
    attacked.run(&["ls"], &[&target, "--keyfile", &key]).ok();
    world.sandbox.keyed(&["key", "remove", world.vault(), "3"]).ok();
    world.ship();
    assert_eq!(attacked.server.versions("some/vault/vault.json").len(), 2);
    let said = attacked.run(&["ls"], &[&target, "--keyfile", &key]).fails(11);
    assert!(said.contains("it was removed or changed since"), "{said}");
    let done = attacked.run(&["ls"], &[&target, "--passfile", &world.sandbox.passfile()]);
    assert!(!done.stderr.contains(TOLD), "{}", done.stderr);
    done.ok();
    // Under a forged one it makes no difference.
    attacked.plant(&forged(&attacked.header(), |header| header.generation += 1000));
    attacked.run(&["ls"], &[&target, "--keyfile", &key]).fails(11);
    attacked.run(&["ls"], &[&target, "--passfile", &world.sandbox.passfile()]).ok();
}

/// However many headers somebody puts around it: the newest true one counts. So a key that was removed stays removed, and one
/// that was added opens.
#[test]
fn the_newest_true_header_among_very_many_is_found() {
    let attacked = Attacked::new();
    let (world, target) = (&attacked.world, attacked.world.at("latest", ""));
    // Older ones, so that a ship goes on.
    let plant_many = || {
        for n in 0..70 {
            attacked.plant(&forged(&attacked.header(), |header| {
                header.generation -= 1;
                header.slots.iter_mut().for_each(|slot| slot.wrapped[0] ^= 1 + n);
            }));
        }
    };
    plant_many();
    world.sandbox.private_file("new", &[9; 64]);
    let (old, new) = (world.sandbox.str("key"), world.sandbox.str("new"));
    world.sandbox.keyed(&["key", "add", world.vault(), "--new-keyfile", &new]).ok();
    world.sandbox.keyed(&["key", "remove", world.vault(), "3"]).ok();
    world.ship();
    plant_many();
    let said = attacked.run(&["ls"], &[&target, "--keyfile", &old]).fails(11);
    assert!(said.contains("it was removed or changed since"), "{said}");
    let done = attacked.run(&["ls"], &[&target, "--keyfile", &new]);
    assert!(!done.stderr.contains("not looked into"), "{}", done.stderr);
    assert!(!done.ok().is_empty());
}

/// So many that not all are looked into: what is found can't be said to be the newest, and that is told.
#[test]
fn headers_that_were_not_looked_into_are_told() {
    let attacked = Attacked::new();
    let (world, target) = (&attacked.world, attacked.world.at("latest", ""));
    for n in 0..140 {
        attacked.server.plant("some/vault/vault.json", &vec![n; 256 << 10]);
    }
    let key = world.sandbox.str("key");
    let done = attacked.run(&["ls"], &[&target, "--keyfile", &key]);
    let (told, doubt) =
        ("versions of the header there were not looked into", "whether a newer one is among those");
    assert!(done.stderr.contains(told) && done.stderr.contains(doubt), "{}", done.stderr);
    done.ok();
    world.sandbox.private_file("wrong", &[8; 64]);
    let said = attacked.run(&["ls"], &[&target, "--keyfile", &world.sandbox.str("wrong")]).fails(11);
    assert!(said.contains(told) && said.contains("this key may be one of"), "{said}");
}

/// A forged header over ours is no reason not to say that a copy can't be read.
#[test]
fn an_unreadable_copy_is_told_beside_a_forged_one() {
    let attacked = Attacked::new();
    let (world, target) = (&attacked.world, attacked.world.at("latest", ""));
    attacked.plant(&forged(&attacked.header(), |header| header.generation += 1000));
    let key = world.sandbox.str("key");
    let said = attacked.run(&["ls"], &[&target, "--keyfile", &key]);
    assert!(said.stderr.contains(TOLD) && !said.stderr.contains("the header copies differ"), "{said:?}");
    said.ok();
    attacked.server.set_trouble(|_, op, key| {
        let hit = op == "get" && key.ends_with("some/vault/vault.json");
        hit.then_some(Trouble::Before("InvalidObjectState", 403))
    });
    let done = attacked.run(&["ls"], &[&target, "--keyfile", &key]);
    assert!(done.stderr.contains(TOLD) && done.stderr.contains("vault.json can't be read there"), "{done:?}");
    done.ok();
}
