//! Several remotes of one vault: each is shipped to as if it were the only one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::common::wait_until;
use crate::remote::s3_server::{Server, Trouble};
use crate::remote::{pattern, s3_settings};
use crate::ship::{World, newest_complete};

/// A vault with a snapshot and two remotes: `s3`, which comes first, and `usb`.
fn two(server: &Server) -> World {
    let world = World::new();
    world.add_s3(server);
    world.snapshot("one", &pattern(300_000, 1));
    world
}

fn start(world: &World, args: &[&str]) -> Child {
    let mut command = world.sandbox.strongroom();
    command.args(["ship", world.vault(), "--json"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn lines(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(stdout: &str) -> Vec<String> {
    lines(stdout).iter().map(|line| line["remote"].as_str().unwrap().to_string()).collect()
}

/// One that never answers keeps no other waiting; and each result comes in its turn.
#[test]
fn a_remote_that_does_not_answer_keeps_no_other_from_being_finished() {
    let server = Server::start();
    let world = two(&server);
    server.set_trouble(|_, _, _| Some(Trouble::NotYet));
    let mut child = start(&world, &["--verify"]);
    wait_until("the other one has all", || newest_complete(&world.usb()) == 1);
    let status = || {
        let status = world.cli(&["status", world.vault(), "--json"]).json();
        let usb =
            status["remotes"].as_array().unwrap().iter().find(|remote| remote["name"] == "usb").unwrap();
        (usb["complete"].clone(), usb["verified"].is_string())
    };
    wait_until("it was looked at as well", || status() == (1.into(), true));
    assert!(child.try_wait().unwrap().is_none() && server.keys().is_empty(), "the first one still hangs");
    server.calm();
    let output = child.wait_with_output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout} {stderr}");
    assert_eq!(names(&stdout), ["s3", "usb"]);
    for line in lines(&stdout) {
        assert_eq!((&line["complete"], &line["verified"]["wrong_total"]), (&1.into(), &0.into()), "{line}");
    }
    world.restores(&world.usb());
}

/// The worst of what came of them counts, whichever it is.
#[test]
fn one_that_fails_hides_no_alarm_of_another() {
    let server = Server::start();
    let world = two(&server);
    world.cli(&["ship", world.vault()]).ok();
    let pack = server.keys().into_iter().find(|key| key.contains("/packs/")).unwrap();
    let away = world.sandbox.path("away");
    fs::rename(world.usb(), &away).unwrap();
    let done = world.cli(&["ship", world.vault(), "--json"]);
    assert_eq!((done.code, names(&done.stdout)), (24, vec!["s3".into(), "usb".into()]), "{done:?}");
    server.remove(&pack);
    let done = world.cli(&["ship", world.vault(), "--json"]);
    assert_eq!(done.code, 25, "{done:?}");
    let found = lines(&done.stdout);
    assert_eq!((&found[0]["gone_there"], found[1]["error"].is_string()), (&1.into(), true), "{done:?}");
    assert!(done.stderr.contains("usb: ") && server.stored(&pack).is_some());
    fs::rename(away, world.usb()).unwrap();
    world.cli(&["ship", world.vault()]).ok();
}

/// Names may stand before the vault; each once, in the order in which they were given.
#[test]
fn remotes_are_chosen_by_name() {
    let server = Server::start();
    let world = two(&server);
    let vault = world.vault();
    let chosen = |args: &[&str]| {
        let done = world.cli(&[&["ship", "--json", "--dry-run"], args].concat());
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        names(&done.stdout)
    };
    assert_eq!(chosen(&[vault]), ["s3", "usb"]);
    assert_eq!(chosen(&["--to", "usb", vault]), ["usb"]);
    assert_eq!(chosen(&["--to", "usb,s3", vault]), ["usb", "s3"]);
    assert_eq!(chosen(&["--to", "usb", "--to", "s3", vault, "--to", "usb"]), ["usb", "s3"]);
    for args in [&["--to", "usb,b2", vault], &["--to", "", vault]] {
        let said = world.cli(&[&["ship"], &args[..]].concat()).fails(22);
        assert!(said.contains("there is no remote") && newest_complete(&world.usb()) == 0, "{said}");
    }
    world.cli(&["ship", vault, "--to", "usb", "s3"]).fails(2);
}

/// In a unit with User= a credential has an ACL, whose mask is shown as the bits of the group.
#[test]
fn credentials_of_systemd_may_have_an_acl() {
    let server = Server::start();
    let world = two(&server);
    let settings = s3_settings(&server, &world.sandbox.path(""));
    let dir = world.sandbox.path("credentials");
    fs::create_dir(&dir).unwrap();
    fs::copy(settings.credentials_file.unwrap(), dir.join("keys")).unwrap();
    let (endpoint, url) = (server.endpoint(), settings.url);
    let add =
        ["remote", "add", world.vault(), "s3", &url, "--replace", "--endpoint", &endpoint, "--path-style"];
    world.cli(&[&add[..], &["--remote-credential", "keys"]].concat()).ok();
    for (mode, code) in [(0o444, 15), (0o640, 0), (0o440, 0), (0o400, 0)] {
        fs::set_permissions(dir.join("keys"), fs::Permissions::from_mode(mode)).unwrap();
        let mut command = world.sandbox.strongroom();
        command.env("CREDENTIALS_DIRECTORY", &dir).args(["ship", world.vault(), "--to", "s3"]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{mode:o}: {output:?}");
        assert_eq!(server.keys().is_empty(), code != 0);
    }
}
