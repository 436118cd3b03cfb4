//! The scripts that ship offsite in the articles that this project began with, as the README has them now: its commands are run as
//! they stand there, with other paths.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::{World, files, newest_complete, packs};
use crate::common::{Sandbox, wait_until};
use crate::remote::s3_server::Server;
use crate::remote::{pattern, s3_settings};

/// The blocks of code of the section: of commands, and the one of rsyncd.conf.
fn blocks() -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = readme.split_once("### Offsite scripts, line for line\n").expect("the section").1;
    let section = section.split("\n## ").next().unwrap();
    let parts: Vec<&str> = section.split("\n```").collect();
    parts.iter().skip(1).step_by(2).map(|part| part.split_once('\n').unwrap().1.to_string()).collect()
}

/// Puts what is here in the place of what an administrator has.
#[track_caller]
fn with(script: &str, changes: &[(&str, &str)]) -> String {
    let mut script = script.to_string();
    for (what, by) in changes {
        assert!(script.contains(what), "{what} is not in: {script}");
        script = script.replace(what, by);
    }
    script
}

/// A copy that tools without our help see: of a bucket it is fetched.
fn copy_of(world: &World, server: Option<&Server>) -> PathBuf {
    let Some(server) = server else { return world.far() };
    let copy = world.sandbox.path("fetched");
    drop(fs::remove_dir_all(&copy));
    for key in server.keys() {
        let path = copy.join(key.strip_prefix("some/vault/").unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, server.stored(&key).unwrap()).unwrap();
    }
    copy
}

#[test]
fn heavy_the_subversion_script_goes_offsite_and_comes_back() {
    subversion(None);
}

#[test]
fn heavy_the_subversion_script_goes_to_a_bucket_and_comes_back() {
    subversion(Some(&Server::start()));
}

fn subversion(server: Option<&Server>) {
    let world = World::around(Sandbox::with_vault());
    let sandbox = &world.sandbox;
    let (mut at_remote, mut reached) = (world.url(), String::new());
    if let Some(server) = server {
        let settings = s3_settings(server, &sandbox.path(""));
        let file = settings.credentials_file.as_ref().unwrap().to_str().unwrap();
        let endpoint = server.endpoint();
        let flags = ["--endpoint", &endpoint, "--path-style", "--credentials-file", file];
        world.run(&["remote", "remove", world.vault(), "far"]).ok();
        world.run(&[&["remote", "add", world.vault(), "s3", &settings.url], &flags[..]].concat()).ok();
        (at_remote, reached) = (settings.url, flags.join(" "));
    }
    let blocks = blocks();
    let [nightly, weekly, thinning, restore, _, _] = blocks.as_slice() else {
        panic!("a block that nothing runs: {blocks:?}")
    };
    let program = format!("{} ", env!("CARGO_BIN_EXE_strongroom"));
    let (at, pass, subversion) = (sandbox.str("decrypted"), sandbox.passfile(), sandbox.str("subversion"));
    let here = [("strongroom ", &*program), ("/encrypted", world.vault()), ("/root/enc.txt", &*pass)];
    let nightly = with(nightly, &[&here[..], &[("/decrypted", &at), ("/subversion", &subversion)]].concat());
    let weekly = with(weekly, &here[..2]);
    let thinning = with(thinning, &here);
    sandbox.sh("mkdir subversion; svnadmin create subversion/repo_name").ok();
    let url = format!("file://{}", sandbox.str("subversion/repo_name"));
    for night in 1..=3_u8 {
        fs::write(sandbox.path("new"), pattern(200_000, night)).unwrap();
        sandbox.sh(&format!("svn import -q -m 'night {night}' new {url}/file{night}")).ok();
        let said = sandbox.sh(&nightly).ok();
        assert!(
            said.contains(" sent ") && said.contains("is the newest"),
            "cron has something to mail: {said}"
        );
        assert_eq!(newest_complete(&copy_of(&world, server)), u64::from(night), "shipped that night");
        assert!(sandbox.sh(&weekly).ok().contains("0 wrong"));
    }
    // What was the same each night was stored once.
    let bytes: usize = files(&copy_of(&world, server)).iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes < 3 * 200_000 + 300_000, "{bytes}");
    // A week later all but the newest snapshot go; and nothing is deleted at the remote, nor missed there.
    let kept = || {
        let list = sandbox.keyed(&["snapshot", "list", world.vault(), "--json"]).json();
        list.as_array().unwrap().iter().map(|line| line["seq"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((sandbox.sh(&thinning).ok().as_str(), kept()), ("", vec![1, 2, 3]));
    sandbox.sh(&with(&thinning, &[("7 days ago", "tomorrow")])).ok();
    assert_eq!(kept(), [3]);
    let before = files(&copy_of(&world, server));
    sandbox.sh(&nightly).ok();
    let after = files(&copy_of(&world, server));
    assert!(before.iter().all(|file| after.contains(file)) && after.len() > before.len());
    // The machine is gone. By the recovery key, as the README has it, from where it was shipped to.
    let dump = sandbox.sh("svnadmin dump -q subversion/repo_name | b3sum --no-names").ok();
    sandbox
        .sh("rm -r encrypted state subversion/repo_name; mkdir state; svnadmin create subversion/again")
        .ok();
    let restore = with(
        restore,
        &[
            ("strongroom ", &program),
            ("s3://bucket/vault", &at_remote),
            ("--recovery-key", &format!("{reached} --recovery-key < {}", sandbox.str("recovery.txt"))),
            ("/subversion", &subversion),
        ],
    );
    sandbox.sh(&restore).ok();
    assert_eq!(sandbox.sh("svnadmin dump -q subversion/again | b3sum --no-names").ok(), dump);
}

/// A server process that ends with this value.
struct Rsyncd(Child, u16);

impl Rsyncd {
    fn start(world: &World, module: &str) -> Self {
        let sandbox = &world.sandbox;
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().port();
            fs::write(sandbox.path("rsyncd.conf"), format!("use chroot = no\n{module}")).unwrap();
            let mut child = sandbox
                .command("rsync")
                .args(["--daemon", "--no-detach", "--address=127.0.0.1", "--config=rsyncd.conf"])
                .arg(format!("--port={port}"))
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let mut ended = false;
            wait_until("rsyncd to listen", || {
                ended = child.try_wait().unwrap().is_some();
                ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !ended {
                return Self(child, port);
            }
        }
        panic!("no port for rsyncd");
    }
}

impl Drop for Rsyncd {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_backup_host_fetches_the_vault_and_keeps_what_it_has() {
    let world = World::new();
    let blocks = blocks();
    let [.., module, fetch] = blocks.as_slice() else { panic!("a block that nothing runs: {blocks:?}") };
    let module = with(module, &[("/encrypted", world.vault())]);
    let server = Rsyncd::start(&world, &module);
    let port = server.1;
    let source = format!("rsync://127.0.0.1:{port}/vault/");
    let fetch = with(fetch, &[("10.1.2.3::vault/", &source), ("/my-backups/", &world.str("fetched/"))]);
    let fetched = world.sandbox.path("fetched");
    world.snapshot("one", &pattern(200_000, 1));
    world.sandbox.sh(&fetch).ok();
    assert_eq!(files(&fetched), files(&world.sandbox.vault()));
    assert!(!fetched.join("live").exists() && world.sandbox.vault().join("live").exists());
    world.snapshot("two", &pattern(200_000, 2));
    world.sandbox.sh(&fetch).ok();
    let good = files(&fetched);
    assert_eq!(good, files(&world.sandbox.vault()));
    // Somebody breaks into the server: one pack is zeroed, one is gone, and so are the snapshots.
    let all = packs(&world.sandbox.vault());
    let (zeroed, gone) = (all.first().unwrap(), all.last().unwrap());
    let len = fs::metadata(world.sandbox.vault().join(zeroed)).unwrap().len();
    fs::write(world.sandbox.vault().join(zeroed), vec![0; usize::try_from(len).unwrap()]).unwrap();
    fs::remove_file(world.sandbox.vault().join(gone)).unwrap();
    fs::remove_dir_all(world.sandbox.vault().join("snapshots")).unwrap();
    world.sandbox.sh(&fetch).ok();
    assert_eq!(files(&fetched), good);
    world.restores(&fetched);
    // Nothing can be written through it.
    fs::write(world.sandbox.path("x"), "x").unwrap();
    let said = world.sandbox.sh(&format!("rsync -a x {source}"));
    assert!(said.code != 0 && said.stderr.contains("read only"), "{said:?}");
}
