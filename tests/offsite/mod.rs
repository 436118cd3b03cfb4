//! A vault and its remotes, whole: cloned, pulled, attacked, killed, copied by other tools. Two hosts with a state directory
//! each share one sandbox.

mod attacks;
mod clone;
mod divergence;
mod full;
mod kill;
mod pull;
mod scripts;
mod tools;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use serde_json::Value;
use strongroom::disk::{Disk, RealDisk};
use strongroom::fetch::{self, FetchError, Report};
use strongroom::remote::{self, Remote, Settings};
use strongroom::ship::{ShipError, ShipOptions, ship};
use strongroom::snapshot::chain::Chain;
use strongroom::snapshot::open::list_packs;
use strongroom::store::header;

use crate::common::{Finished, Sandbox};
use crate::remote::{once, private_file};

/// A vault with a keyfile, a directory `source` that is imported into it, and a directory `far` that is its remote.
pub struct World {
    pub sandbox: Sandbox,
}

impl World {
    pub fn new() -> Self {
        let sandbox = Sandbox::with_vault();
        Self::around(sandbox)
    }

    pub fn around(sandbox: Sandbox) -> Self {
        for dir in ["far", "source"] {
            fs::create_dir(sandbox.path(dir)).unwrap();
        }
        // Argon2 would be most of what these tests take.
        sandbox.private_file("key", &[7; 64]);
        let world = Self { sandbox };
        let key = world.str("key");
        world.sandbox.keyed(&["key", "add", world.vault(), "--new-keyfile", &key]).ok();
        world.run(&["remote", "add", world.vault(), "far", &world.url()]).ok();
        world
    }

    pub fn vault(&self) -> &'static str {
        self.sandbox.vault_str()
    }

    pub fn str(&self, name: &str) -> String {
        self.sandbox.str(name)
    }

    /// A file with a passphrase.
    pub fn passfile(&self) -> String {
        private_file(&self.sandbox.path("passphrase"), "open sesame\n");
        self.str("passphrase")
    }

    pub fn far(&self) -> PathBuf {
        self.sandbox.path("far")
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.far().display())
    }

    pub fn run(&self, args: &[&str]) -> Finished {
        self.sandbox.run(args)
    }

    /// Runs a command with the keyfile.
    pub fn keyed(&self, args: &[&str]) -> Finished {
        self.on("state", &[args, &["--keyfile", &self.str("key")]].concat())
    }

    /// Runs a command as a host whose state directory is `host`.
    pub fn on(&self, host: &str, args: &[&str]) -> Finished {
        let mut command = self.sandbox.strongroom();
        command.env("STATE_DIRECTORY", self.sandbox.path(host));
        let output = command.args(args).stdin(Stdio::null()).output().unwrap();
        Finished {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// [`World::on`] with the keyfile.
    pub fn keyed_on(&self, host: &str, args: &[&str]) -> Finished {
        self.on(host, &[args, &["--keyfile", &self.str("key")]].concat())
    }

    /// Makes a snapshot of a vault in which `name` has these bytes.
    pub fn snapshot_of(&self, host: &str, vault: &str, name: &str, bytes: &[u8]) {
        fs::write(self.sandbox.path("source").join(name), bytes).unwrap();
        self.keyed_on(host, &["import", vault, &self.str("source")]).ok();
    }

    pub fn snapshot(&self, name: &str, bytes: &[u8]) {
        self.snapshot_of("state", self.vault(), name, bytes);
    }

    pub fn ship(&self) -> Value {
        self.run(&["ship", self.vault(), "--json"]).json()
    }

    /// Clones `far` without a key, on a host that never saw the vault.
    pub fn clone(&self, to: &str) -> Finished {
        self.on(&format!("state-{to}"), &["clone", &self.url(), &self.str(to), "--json"])
    }

    /// Restores the newest snapshot of a copy, and compares it with `source`.
    #[track_caller]
    pub fn restores(&self, copy: &Path) {
        let to = tempfile::tempdir_in(self.sandbox.path("")).unwrap();
        let to = to.path().join("out");
        self.restore(copy, "latest", &to).ok();
        self.sandbox.tool("diff", ["-r", &self.str("source"), to.to_str().unwrap()]).ok();
    }

    /// Restores `source` as a snapshot of a copy has it, on a host that never saw the vault.
    pub fn restore(&self, copy: &Path, snapshot: &str, to: &Path) -> Finished {
        let target = format!("{snapshot}:{}", self.str("source"));
        let (copy, to) = (copy.to_str().unwrap(), to.to_str().unwrap());
        self.keyed_on("state-fresh", &["restore", copy, &target, "--to", to])
    }
}

/// All files of a vault or copy with their bytes, without what is local.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_string();
            if name == ".incoming" || name == "live" {
                continue;
            }
            if path.is_dir() {
                todo.push(path);
            } else {
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The packs of a directory, by name.
pub fn packs(dir: &Path) -> BTreeSet<String> {
    files(dir).into_iter().map(|(name, _)| name).filter(|name| name.starts_with("packs/")).collect()
}

/// Chain and packs of a copy, by public keys alone. `None` when it has no header.
pub fn chain_of(copy: &Path) -> Option<(Chain, BTreeSet<strongroom::format::PackName>)> {
    let disk = RealDisk::open(copy).unwrap();
    let loaded = header::load(&disk).ok()?;
    let chain = Chain::load(&disk, &loaded.parsed.header).unwrap();
    Some((chain, list_packs(&disk).unwrap().into_keys().collect()))
}

/// The sequence of the newest complete snapshot of a copy; 0 when there is none.
pub fn newest_complete(copy: &Path) -> u64 {
    chain_of(copy)
        .map_or(0, |(chain, present)| chain.latest(&present, None).complete.map_or(0, |info| info.seq))
}

pub fn real_disk(path: &Path) -> Arc<dyn Disk> {
    Arc::new(RealDisk::open(path).unwrap())
}

pub fn open_dir(path: &Path) -> Arc<dyn Remote> {
    let settings = Settings { url: format!("file://{}", path.display()), ..Settings::default() };
    remote::open(&settings, &once()).unwrap()
}

pub fn ship_to(disk: &Arc<dyn Disk>, remote: &Arc<dyn Remote>) -> Result<(), ShipError> {
    let options = ShipOptions {
        jobs: strongroom::ship::Jobs::Fixed(2),
        dry_run: false,
        start_over: false,
        watched: None,
    };
    ship(disk, remote, None, &options, &|_| {}).map(drop)
}

/// Clones through the library, into a directory that is made if it is missing.
pub fn clone_from(remote: &Arc<dyn Remote>, to: &Path) -> Result<Report, FetchError> {
    fs::create_dir_all(to).unwrap();
    let header = fetch::remote_header(remote.as_ref())?;
    let header = (header.header(), header.bytes.as_slice());
    fetch::clone(&real_disk(to), remote, header, 2, &mut |_, _| Ok(()), &mut |_| Ok(()), &|_| {})
}
