//! Reading from a remote: the same as from the vault, little more than what is needed, and an end to every wait.

mod headers;
mod hostile;
mod mount;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use strongroom::crypto::{Credential, SecretBytes};
use strongroom::disk::Disk;
use strongroom::env::{Env, TestEnv};
use strongroom::fetch::{Ahead, Early, FetchOptions, RemoteDisk, RemotePacks, Wanted};
use strongroom::format::{ChunkId, Content, Entry, FileType, Header, PackName};
use strongroom::remote::{self, Counters, FaultyRemote, Op, OpenOptions, Pause, Remote, Settings};
use strongroom::snapshot::chain::{Chain, open_sealed};
use strongroom::snapshot::open;
use strongroom::snapshot::restore::{RestoreOpts, restore};
use strongroom::snapshot::tree::TreeReader;
use strongroom::store::header;

use crate::common::{Finished, PASSPHRASE, Rng, Sandbox, assert_same_tree};
use crate::remote::s3_server::Server;
use crate::remote::sshd::Sshd;
use crate::remote::{once, s3_settings, sftp_flags, sftp_settings};

/// A sandbox with a vault, a directory `source`, and a directory `usb` that is its remote.
struct World {
    sandbox: Sandbox,
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::with_vault();
        for dir in ["usb", "source"] {
            fs::create_dir(sandbox.path(dir)).unwrap();
        }
        let world = Self { sandbox };
        world.sandbox.run(["remote", "add", world.vault(), "usb", &world.usb_url()]).ok();
        world
    }

    fn vault(&self) -> &'static str {
        self.sandbox.vault_str()
    }

    fn usb(&self) -> PathBuf {
        self.sandbox.path("usb")
    }

    fn usb_url(&self) -> String {
        format!("file://{}", self.usb().display())
    }

    fn source(&self, name: &str) -> PathBuf {
        self.sandbox.path("source").join(name)
    }

    /// Makes a snapshot of `source`.
    fn snapshot(&self) {
        self.sandbox.keyed(&["import", self.vault(), &self.sandbox.str("source")]).ok();
    }

    fn ship(&self) {
        self.sandbox.run(["ship", self.vault()]).ok();
    }

    /// A path of `source` in a snapshot: an import keeps whole paths.
    fn at(&self, snapshot: &str, name: &str) -> String {
        format!("{snapshot}:{}{name}", self.sandbox.str("source"))
    }

    /// Runs a verb on the remote that these arguments name.
    fn from(&self, verb: &[&str], from: &[String], rest: &[&str]) -> Finished {
        let args: Vec<&str> =
            verb.iter().copied().chain(from.iter().map(String::as_str)).chain(rest.iter().copied()).collect();
        self.sandbox.keyed(&args)
    }

    fn restores(&self, from: &[String], target: &str) {
        let to = tempfile::tempdir_in(self.sandbox.path("")).unwrap();
        let out = to.path().join("out");
        self.from(&["restore"], from, &[target, "--to", out.to_str().unwrap()]).ok();
        assert_same_tree(&self.sandbox.path("source"), &out);
    }

    /// The data packs at the remote that are not among `known`.
    fn data_packs(&self, known: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        for folder in fs::read_dir(self.usb().join("packs")).unwrap() {
            for file in fs::read_dir(folder.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                // The kind stands behind the magic.
                if fs::read(&path).unwrap()[8] == 1 && !known.contains(&path) {
                    found.insert(path);
                }
            }
        }
        found
    }
}

fn s3_flags(settings: &Settings) -> Vec<String> {
    let file = settings.credentials_file.as_ref().unwrap().to_str().unwrap().to_string();
    let endpoint = settings.endpoint.clone().unwrap();
    let flags =
        ["--endpoint", &endpoint, "--region", "eu-central-1", "--path-style", "--credentials-file", &file];
    flags.map(String::from).to_vec()
}

fn from_url(url: &str) -> Vec<String> {
    vec!["--from".to_string(), url.to_string()]
}

fn from_sftp(settings: &Settings) -> Vec<String> {
    let identity = settings.identity_file.as_ref().unwrap().to_str().unwrap();
    let identity = ["--identity-file", identity].map(String::from).to_vec();
    [from_url(&settings.url), sftp_flags(settings), identity].concat()
}

/// A remote opened for reading, counted.
struct Reader {
    disk: Arc<RemoteDisk>,
    counters: Arc<Counters>,
    _dir: tempfile::TempDir,
}

impl Reader {
    fn new(settings: &Settings, options: OpenOptions, change: impl FnOnce(&mut FetchOptions)) -> Self {
        let counters = Arc::clone(&options.counters);
        Self::over(remote::open(settings, &options).unwrap(), counters, change)
    }

    fn over(
        remote: Arc<dyn Remote>,
        counters: Arc<Counters>,
        change: impl FnOnce(&mut FetchOptions),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = FetchOptions::new(dir.path().join("cache"));
        change(&mut options);
        let disk = RemoteDisk::new(remote, &options).unwrap();
        Self { disk, counters, _dir: dir }
    }

    /// Unlocks it and opens what stands at a path in the newest snapshot.
    fn open(&self, path: &str, data: bool) -> (Arc<RemotePacks>, Entry) {
        let loaded = header::load(self.disk.as_ref()).unwrap();
        let credential = Credential::Passphrase(SecretBytes::new(PASSPHRASE.as_bytes().to_vec()));
        let unlocked = open::unlock(loaded, &credential).unwrap();
        let chain = Chain::load(self.disk.as_ref(), &unlocked.header).unwrap();
        self.disk.only_packs(chain.named());
        let info = chain.head().unwrap();
        let needed = chain.needed_packs(info.seq).unwrap();
        let keys = Arc::clone(&unlocked.keys);
        let packs = RemotePacks::open(Arc::clone(&self.disk), keys, &unlocked.header, &needed, 1 << 20, data)
            .unwrap();
        let root = open_sealed(self.disk.as_ref(), &unlocked.keys, info).unwrap().root.unwrap();
        let entry = TreeReader::new(packs.as_ref()).resolve(&root.entry, path.as_bytes()).unwrap();
        (packs, entry)
    }
}

/// Runs every verb on the vault and on the remote that `from` names, and compares what they say.
fn verbs_agree(world: &World, from: &[String], named: bool) {
    let sandbox = &world.sandbox;
    let all = world.at("latest", "");
    let (old, new) = (world.at("1", ""), world.at("2", ""));
    let file = world.at("latest", "/dir/big");
    let cases: [(&[&str], &[&str]); 7] = [
        (&["snapshot", "list"], &["--json"]),
        (&["snapshot", "show"], &["latest", "--json"]),
        (&["ls"], &[]),
        (&["ls"], &[&all, "-R", "--json"]),
        (&["diff"], &[&old, &new, "--json"]),
        (&["diff"], &["1", "2"]),
        (&["cat"], &[&file]),
    ];
    for (verb, rest) in cases {
        let vault = [world.vault().to_string()];
        let local = world.from(verb, &vault, rest).ok();
        assert!(!local.is_empty(), "{verb:?}");
        let said = match named {
            true => {
                let with_name = [vault.as_slice(), from].concat();
                let (place, name) = with_name.split_at(1);
                let rest: Vec<&str> = rest.iter().copied().chain(name.iter().map(String::as_str)).collect();
                world.from(verb, place, &rest)
            }
            false => world.from(verb, from, rest),
        };
        assert_eq!(said.ok(), local, "{verb:?} {rest:?}");
    }
    let from = match named {
        true => [&[world.vault().to_string()], from].concat(),
        false => from.to_vec(),
    };
    if named {
        let out = sandbox.str("out-named");
        let args = ["restore", world.vault(), &all, "--from", "usb", "--to", &out];
        sandbox.keyed(&args).ok();
        assert_same_tree(&sandbox.path("source"), Path::new(&out));
    } else {
        world.restores(&from, &all);
    }
}

fn furnished() -> World {
    let world = World::new();
    fs::create_dir_all(world.source("dir/deep/er")).unwrap();
    let mut rng = Rng::new(1);
    fs::write(world.source("dir/big"), hex(&rng.bytes(2 << 20))).unwrap();
    fs::write(world.source("dir/deep/er/small"), "small").unwrap();
    for n in 0..40 {
        fs::write(world.source(&format!("dir/deep/f{n}")), rng.bytes(n * 500)).unwrap();
    }
    fs::hard_link(world.source("dir/big"), world.source("link")).unwrap();
    std::os::unix::fs::symlink("dir", world.source("sym")).unwrap();
    world.snapshot();
    fs::write(world.source("dir/new"), rng.bytes(300_000)).unwrap();
    fs::remove_file(world.source("dir/deep/f7")).unwrap();
    world.snapshot();
    world.ship();
    world
}

/// `cat` is compared as text.
fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

#[test]
fn every_verb_reads_a_directory_as_it_reads_the_vault() {
    let world = furnished();
    verbs_agree(&world, &from_url(&world.usb_url()), false);
    verbs_agree(&world, &from_url("usb"), true);
    let left = fs::read_dir(world.sandbox.path("state/cache")).unwrap().count();
    assert_eq!(left, 0, "nothing is left of what was fetched");
}

#[test]
fn every_verb_reads_s3_and_writes_nothing_there() {
    let world = furnished();
    let server = Server::start();
    let settings = s3_settings(&server, &world.sandbox.path(""));
    let flags = s3_flags(&settings);
    let args: Vec<&str> = ["remote", "add", world.vault(), "s3", &settings.url]
        .into_iter()
        .chain(flags.iter().map(String::as_str))
        .collect();
    world.sandbox.run(args).ok();
    world.sandbox.run(["ship", world.vault(), "--to", "s3"]).ok();
    let seen: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let log = Arc::clone(&seen);
    server.set_trouble(move |_, op, _| {
        log.lock().unwrap().insert(op.to_string());
        None
    });
    // The vault itself is needed no more to read, only to compare with.
    verbs_agree(&world, &[from_url(&settings.url), flags].concat(), false);
    let seen = seen.lock().unwrap().clone();
    let reads: BTreeSet<String> = ["get", "head", "list", "versions"].map(String::from).into();
    assert!(seen.contains("get") && seen.is_subset(&reads), "requests that only read: {seen:?}");
}

#[test]
fn every_verb_reads_sftp() {
    let world = furnished();
    let sshd = Sshd::start(&world.sandbox.path("sshd"), "ForceCommand internal-sftp -R");
    let settings = sftp_settings(&sshd, &world.usb());
    verbs_agree(&world, &from_sftp(&settings), false);
}

#[test]
fn a_fresh_machine_needs_the_recovery_key_alone() {
    let world = furnished();
    let key = fs::read(world.sandbox.path("recovery.txt")).unwrap();
    let text = String::from_utf8(key).unwrap();
    let key = text.lines().find(|line| line.contains("SR1-")).unwrap().trim().to_string();
    fs::remove_dir_all(world.sandbox.vault()).unwrap();
    fs::remove_dir_all(world.sandbox.path("state")).unwrap();
    // The first copy of the header is damaged there, too.
    fs::write(world.usb().join("vault.json"), "garbage").unwrap();
    let (out, target) = (world.sandbox.str("out"), world.at("latest", ""));
    let args = ["restore", "--from", &world.usb_url(), &target, "--to", &out, "--recovery-key"];
    let done = world.sandbox.run_with_input(args, format!("{key}\n").as_bytes());
    assert!(done.stderr.contains("vault.json is damaged"), "{}", done.stderr);
    done.ok();
    assert_same_tree(&world.sandbox.path("source"), Path::new(&out));
}

#[test]
fn a_remote_that_is_behind_is_said_to_be() {
    let world = furnished();
    fs::write(world.source("later"), "later").unwrap();
    world.snapshot();
    // The mark is this host's: an import sets it.
    let done = world.sandbox.keyed(&["ls", "--from", &world.usb_url()]);
    assert!(
        done.stderr.contains("the remote is behind") && done.stderr.contains("number 3"),
        "{}",
        done.stderr
    );
    done.ok();
}

#[test]
fn what_is_wrong_is_told_with_the_codes_of_remotes() {
    let world = World::new();
    let nowhere = format!("file://{}", world.sandbox.str("nowhere"));
    let said = world.sandbox.keyed(&["ls", "--from", &nowhere]).fails(24);
    assert!(said.contains("is the disk mounted?"), "{said}");
    let said = world.sandbox.keyed(&["ls", "--from", &world.usb_url()]).fails(10);
    assert!(said.contains("not a Strongroom vault"), "{said}");
    let said = world.sandbox.keyed(&["ls", world.vault(), "--from", "other"]).fails(22);
    assert!(said.contains("no remote other"), "{said}");
    let said = world.sandbox.keyed(&["ls", world.vault(), "1:/", "--from", &world.usb_url()]).fails(2);
    assert!(said.contains("no VAULT"), "{said}");
    let said = world.sandbox.keyed(&["ls", world.vault(), "--endpoint", "https://x"]).fails(2);
    assert!(said.contains("--from"), "{said}");
}

/// Ids of the chunks of all files below a directory, each once.
fn chunks_below(packs: &RemotePacks, entry: &Entry) -> Vec<ChunkId> {
    let reader = TreeReader::new(packs);
    let mut ids = BTreeSet::new();
    for item in reader.walk(entry) {
        let item = item.unwrap();
        if item.entry.kind == FileType::File && !matches!(item.entry.content, Content::Inline(_)) {
            let mut extents = reader.extents(&item.entry.content, item.entry.size, 0).unwrap();
            while let Some(extent) = extents.next_extent().unwrap() {
                ids.insert(extent.chunk);
            }
        }
    }
    ids.into_iter().collect()
}

/// A directory of a vault with much else in it: little more is fetched than its own bytes, in few requests, and the cache
/// keeps to its size.
#[test]
fn a_directory_costs_little_more_than_its_bytes() {
    let world = World::new();
    let mut rng = Rng::new(7);
    for dir in ["wanted", "other"] {
        fs::create_dir(world.source(dir)).unwrap();
    }
    // Several snapshots, so that what is wanted lies in several packs, between other things.
    for round in 0..4 {
        for n in 0..50 {
            fs::write(world.source(&format!("wanted/small{round}-{n}")), rng.bytes(60_000)).unwrap();
            fs::write(world.source(&format!("other/small{round}-{n}")), rng.bytes(60_000)).unwrap();
        }
        fs::write(world.source(&format!("wanted/big{round}")), rng.bytes(18 << 20)).unwrap();
        fs::write(world.source(&format!("other/big{round}")), rng.bytes(6 << 20)).unwrap();
        world.snapshot();
    }
    world.ship();
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let reader = Reader::new(&settings, once(), |options| options.cache_bytes = 1);
    let (packs, entry) = reader.open(&world.sandbox.str("source/wanted"), true);
    let ahead = Ahead::start(&packs, &entry).unwrap();
    let to = tempfile::tempdir_in(world.sandbox.path("")).unwrap();
    let report = restore(&ahead, &entry, &to.path().join("out"), &RestoreOpts::default(), &|_| {}).unwrap();
    assert!(report.is_complete(), "{:?}", report.errors);
    assert_same_tree(&world.source("wanted"), &to.path().join("out"));
    let (received, requests) = (reader.counters.received(), reader.counters.requests());
    let peak = reader.disk.cache_peak();
    drop(ahead);
    let local = world.stored(&packs, &entry);
    println!("wanted {local}, received {received} in {requests} requests, cache {peak}");
    assert!(local > 80 << 20 && received >= local, "{received} of {local}");
    assert!(received * 100 <= local * 110, "received {received} for {local}");
    // 72 to 80, of 272 chunks.
    assert!(requests < 120, "{requests} requests");
    assert!(peak <= strongroom::fetch::CACHE_BYTES_MIN, "{peak}");
}

/// What needs no key is asked for early, and once; by another header than the true one nothing is believed.
#[test]
fn what_needs_no_key_is_asked_for_early_and_once() {
    let world = World::new();
    for name in ["one", "two"] {
        fs::write(world.source(name), Rng::new(3).bytes(100_000)).unwrap();
        world.snapshot();
    }
    world.ship();
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&asked);
    let noting = FaultyRemote::new(remote::open(&settings, &once()).unwrap(), move |_, op, key| {
        notes.lock().unwrap().push((op, key.to_string()));
        None
    });
    let reader = Reader::over(Arc::new(noting), Arc::default(), |_| ());
    let header = header::load(reader.disk.as_ref()).unwrap().parsed.header;
    let take = || std::mem::take(&mut *asked.lock().unwrap());
    take();
    let wanted = |chain: &Chain, present: &BTreeSet<PackName>| {
        let snapshots = chain.snapshots().map(|info| info.seq).collect();
        assert!(chain.is_complete(2, present));
        Wanted { snapshots, data: true }
    };
    let early = Early::start(&reader.disk, &header, wanted).unwrap();
    assert_eq!(early.chain(&header).unwrap().unwrap().head().unwrap().seq, 2);
    let before = take();
    let of = |asked: &[(Op, String)], below: &str| {
        let mut keys: Vec<String> =
            asked.iter().filter(|(_, key)| key.starts_with(below)).map(|(_, key)| key.clone()).collect();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        (all, keys.len())
    };
    let (chain_files, packs) = (of(&before, "snapshots/"), of(&before, "packs/"));
    // The listing and two files; the listing, and of each pack both ends.
    assert_eq!(chain_files, (3, 3), "{before:?}");
    assert!(packs.1 >= 4 && packs.0 < 2 * packs.1, "{before:?}");
    // With the key only what the key says where to find.
    let (_packs, entry) = reader.open(&world.sandbox.str("source"), true);
    assert_eq!(entry.kind, FileType::Dir);
    let after = take();
    assert!(of(&after, "packs/").0 > 0);
    for (op, key) in &after {
        let twice = *op == Op::List && before.contains(&(*op, key.clone()));
        assert!(!twice || key == "snapshots/", "{op:?} {key} again");
    }
    // Another one's chain is not handed out.
    let other = Header { generation: header.generation + 1, ..header.clone() };
    let early = Early::start(&reader.disk, &header, |_, _| Wanted::default()).unwrap();
    assert!(early.chain(&other).is_none());
}

impl World {
    /// Bytes that the chunks of a directory take in their packs.
    fn stored(&self, packs: &RemotePacks, entry: &Entry) -> u64 {
        let disk: Arc<dyn Disk> = Arc::new(strongroom::disk::RealDisk::open(&self.sandbox.vault()).unwrap());
        let loaded = header::load(disk.as_ref()).unwrap();
        let credential = Credential::Passphrase(SecretBytes::new(PASSPHRASE.as_bytes().to_vec()));
        let unlocked = open::unlock(loaded, &credential).unwrap();
        let chain = Chain::load(disk.as_ref(), &unlocked.header).unwrap();
        let cold = open::open_cold(disk, &unlocked, &chain, &[chain.head().unwrap().seq], 1 << 20).unwrap();
        let ids = chunks_below(packs, entry);
        let places = cold.stored(&ids, &|_| true).unwrap();
        assert_eq!(places.len(), ids.len());
        places.iter().map(|(_, range)| range.end - range.start).sum()
    }
}

/// Directories are listed without looking at any data, or at its packs' footers.
#[test]
fn a_listing_needs_trees_alone() {
    let world = World::new();
    let mut rng = Rng::new(9);
    for n in 0..6 {
        fs::write(world.source(&format!("f{n}")), rng.bytes(3 << 20)).unwrap();
        world.snapshot();
    }
    world.ship();
    let settings = Settings { url: world.usb_url(), ..Settings::default() };
    let reader = Reader::new(&settings, once(), |_| {});
    let (packs, entry) = reader.open(&world.sandbox.str("source"), false);
    assert_eq!(TreeReader::new(packs.as_ref()).walk(&entry).count(), 6);
    assert!(reader.counters.received() < 600_000, "{} bytes", reader.counters.received());
    assert!(reader.counters.requests() < 60, "{} requests", reader.counters.requests());
}

/// Waits by moving a clock that nothing else moves.
#[derive(Debug)]
struct ClockPause(Arc<TestEnv>);

impl Pause for ClockPause {
    fn pause(&self, time: Duration) {
        self.0.advance(time);
    }
}

/// Under a limit, everything that reads takes its time, however many read at once.
#[test]
fn a_limit_holds_for_all_that_is_read() {
    const LIMIT: u64 = 1 << 20;
    let world = World::new();
    fs::write(world.source("file"), Rng::new(5).bytes(12 << 20)).unwrap();
    world.snapshot();
    world.ship();
    let settings = Settings { url: world.usb_url(), limit_download: Some(LIMIT), ..Settings::default() };
    let env = Arc::new(TestEnv::new(1));
    let options = OpenOptions { env: env.clone(), pause: Arc::new(ClockPause(env.clone())), ..once() };
    let reader = Reader::new(&settings, options, |_| {});
    let begun = env.monotonic();
    let (packs, entry) = reader.open(&world.sandbox.str("source"), true);
    let ahead = Ahead::start(&packs, &entry).unwrap();
    let to = tempfile::tempdir_in(world.sandbox.path("")).unwrap();
    let report = restore(&ahead, &entry, &to.path().join("out"), &RestoreOpts::default(), &|_| {}).unwrap();
    assert!(report.is_complete(), "{:?}", report.errors);
    let (received, spent) = (reader.counters.received(), env.monotonic() - begun);
    assert!(received > 12 << 20, "{received}");
    // What came last may still be under way by that clock: a MiB.
    assert!(spent.as_secs() >= received / LIMIT - 2, "{received} bytes in {spent:?} of the clock");
}
