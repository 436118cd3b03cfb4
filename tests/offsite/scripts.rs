//! The scripts that ship offsite in the articles that this project began with, as the README has them now: its commands are run as
//! they stand there, with other paths.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};

use super::{World, files, newest_complete, packs};
use crate::common::{Sandbox, wait_until};
use crate::remote::pattern;

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

#[test]
fn heavy_the_subversion_script_goes_offsite_and_comes_back() {
    let world = World::around(Sandbox::with_vault());
    let sandbox = &world.sandbox;
    let blocks = blocks();
    let [nightly, restore, _, _] = blocks.as_slice() else { panic!("a block that nothing runs: {blocks:?}") };
    let program = env!("CARGO_BIN_EXE_strongroom");
    let (vault, at, pass) = (sandbox.vault(), sandbox.str("decrypted"), sandbox.passfile());
    let nightly = with(
        nightly,
        &[
            ("strongroom ", &format!("{program} ")),
            ("/encrypted", vault.to_str().unwrap()),
            ("/decrypted", &at),
            ("/root/enc.txt", &pass),
            ("/subversion", &sandbox.str("subversion")),
        ],
    );
    sandbox.sh("mkdir subversion; svnadmin create subversion/repo_name").ok();
    let url = format!("file://{}", sandbox.str("subversion/repo_name"));
    for night in 1..=3_u8 {
        fs::write(sandbox.path("new"), pattern(200_000, night)).unwrap();
        sandbox.sh(&format!("svn import -q -m 'night {night}' new {url}/file{night}")).ok();
        let said = sandbox.sh(&nightly).ok();
        assert!(said.contains("0 wrong"), "cron has something to mail: {said}");
        assert_eq!(newest_complete(&world.far()), u64::from(night), "shipped that night");
    }
    // What was the same each night was stored once.
    let bytes: usize = files(&world.far()).iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes < 3 * 200_000 + 300_000, "{bytes}");
    // The machine is gone. By the recovery key, as the README has it, from where it was shipped to.
    let dump = sandbox.sh("svnadmin dump -q subversion/repo_name | b3sum --no-names").ok();
    sandbox
        .sh("rm -r encrypted state subversion/repo_name; mkdir state; svnadmin create subversion/again")
        .ok();
    let restore = with(
        restore,
        &[
            ("strongroom ", &format!("{program} ")),
            ("s3://bucket/vault", &world.url()),
            ("--recovery-key", &format!("--recovery-key < {}", sandbox.str("recovery.txt"))),
            ("/subversion", &sandbox.str("subversion")),
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
    let [_, _, module, fetch] = blocks.as_slice() else { panic!("a block that nothing runs: {blocks:?}") };
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
