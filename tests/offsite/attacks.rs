//! Remotes that were attacked: found out, bounded, named; and everything else is copied.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use strongroom::fetch::{self, FetchError};
use strongroom::remote::{
    self, Checksum, ErrorKind, Features, Key, Listed, Meta, OpenOptions, Page, Put, Remote, Source, Times,
};

use super::{World, clone_from, files, newest_complete, open_dir, packs, real_disk};
use crate::remote::once;
use crate::remote::pattern;
use crate::remote::s3_server::{Server, Trouble};

/// Three snapshots at the remote; the packs that only the third one needs.
fn three() -> (World, BTreeSet<String>) {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    world.snapshot("two", &pattern(100_000, 2));
    world.ship();
    let before = packs(&world.far());
    world.snapshot("three", &pattern(100_000, 3));
    world.ship();
    let new = packs(&world.far()).difference(&before).cloned().collect();
    (world, new)
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Whatever is done to a pack: it is named, no wrong byte is stored, all other snapshots are there, and once the remote is
/// mended the clone is as well.
#[test]
fn packs_that_were_tampered_with_are_named_and_all_else_is_cloned() {
    let (world, new) = three();
    let far = world.far();
    let whole = files(&far);
    let length = |name: &String| fs::metadata(far.join(name)).unwrap().len();
    let victim = new.iter().max_by_key(|name| length(name)).unwrap().clone();
    let old = whole.iter().find(|(name, _)| name.starts_with("packs/") && !new.contains(name)).unwrap();
    type Attack<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);
    let attacks: [Attack<'_>; 8] = [
        ("deleted", Box::new(|path| fs::remove_file(path).unwrap())),
        (
            "a bit",
            Box::new(|path| {
                edit(path, |bytes| {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                });
            }),
        ),
        ("cut", Box::new(|path| edit(path, |bytes| bytes.truncate(bytes.len() / 2)))),
        ("empty", Box::new(|path| edit(path, Vec::clear))),
        ("longer", Box::new(|path| edit(path, |bytes| bytes.push(0)))),
        ("another pack", Box::new(|path| fs::write(path, &old.1).unwrap())),
        ("huge", Box::new(|path| File::options().write(true).open(path).unwrap().set_len(1 << 41).unwrap())),
        (
            "a directory",
            Box::new(|path| {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            }),
        ),
    ];
    for (n, (what, attack)) in attacks.into_iter().enumerate() {
        attack(&far.join(&victim));
        let copy = format!("copy{n}");
        let done = world.clone(&copy);
        assert_eq!(done.code, 25, "{what}: {done:?}");
        let said: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        let list = |name: &str| said[name].to_string();
        assert!(list("damaged").contains(&victim), "{what}: {said}");
        assert!(
            list("incomplete").contains("0000000003-") && !list("incomplete").contains("0000000002-"),
            "{what}: {said}"
        );
        assert!(
            done.stderr.contains(&victim) && done.stderr.contains("is incomplete here"),
            "{what}: {done:?}"
        );
        let at = world.sandbox.path(&copy);
        assert!(files(&at).iter().all(|file| whole.contains(file)), "{what}: only what is right is stored");
        assert!(!at.join(&victim).exists(), "{what}");
        assert_eq!(newest_complete(&at), 2, "{what}");
        world.restore(&at, "2", &world.sandbox.path(&format!("out{n}"))).ok();
        // Mended there, a pull mends it here.
        drop(fs::remove_dir(far.join(&victim)));
        drop(fs::remove_file(far.join(&victim)));
        fs::write(far.join(&victim), &whole.iter().find(|(name, _)| *name == victim).unwrap().1).unwrap();
        world.on(&format!("state-{copy}"), &["pull", at.to_str().unwrap()]).ok();
        assert_eq!(files(&at), whole, "{what}");
        fs::remove_dir_all(&at).unwrap();
    }
}

#[test]
fn chain_files_that_were_tampered_with_are_named() {
    let (world, _) = three();
    let far = world.far();
    let whole = files(&far);
    let chain: Vec<String> =
        whole.iter().map(|(name, _)| name.clone()).filter(|name| name.starts_with("snapshots/")).collect();
    for (n, victim) in chain.iter().enumerate() {
        for cut in [false, true] {
            let path = far.join(victim);
            match cut {
                true => edit(&path, |bytes| bytes.truncate(100)),
                false => edit(&path, |bytes| bytes[200] ^= 1),
            }
            let copy = format!("copy-{n}-{cut}");
            let done = world.clone(&copy);
            assert_eq!(done.code, 25, "{done:?}");
            assert!(done.stderr.contains(victim), "{done:?}");
            let at = world.sandbox.path(&copy);
            assert!(!at.join(victim).exists(), "what nobody signed is not stored");
            // What a later file needs is said in differences to the earlier ones.
            assert_eq!(newest_complete(&at), n as u64, "what is before it restores");
            assert!(packs(&at).len() >= 2, "what any signed file names is copied all the same");
            fs::write(&path, &whole.iter().find(|(name, _)| name == victim).unwrap().1).unwrap();
        }
    }
    // A chain file under the name of another one.
    fs::rename(far.join(&chain[1]), far.join("moved")).unwrap();
    fs::copy(far.join(&chain[0]), far.join(&chain[1])).unwrap();
    let done = world.clone("swapped");
    assert!(done.code == 25 && done.stderr.contains(&chain[1]), "{done:?}");
}

#[test]
fn headers_that_were_tampered_with_are_refused_or_passed_over() {
    let (world, _) = three();
    let far = world.far();
    let header = fs::read(far.join("vault.json")).unwrap();
    // One copy is enough.
    edit(&far.join("vault.json"), |bytes| bytes[300] ^= 1);
    let done = world.clone("a");
    assert!(done.code == 0 && done.stderr.contains("vault.json is damaged"), "{done:?}");
    assert_eq!(fs::read(world.sandbox.path("a/vault.json")).unwrap(), header);
    fs::remove_file(far.join("vault.json.bak")).unwrap();
    world.clone("b").fails(12);
    assert!(!world.sandbox.path("b").exists());
    File::create(far.join("vault.json")).unwrap().set_len(1 << 40).unwrap();
    world.clone("c").fails(12);
    // Another vault's header over this vault's packs: nothing there was signed by its keys.
    let other = World::new();
    fs::copy(other.sandbox.vault().join("vault.json"), far.join("vault.json")).unwrap();
    let done = world.clone("d");
    assert_eq!(done.code, 25, "{done:?}");
    assert_eq!((newest_complete(&world.sandbox.path("d")), packs(&world.sandbox.path("d")).len()), (0, 0));
}

/// Objects that nothing signed names are not fetched, however large they are or claim to be.
#[test]
fn extra_objects_of_any_size_cost_nothing() {
    let (world, _) = three();
    let far = world.far();
    let whole = files(&far);
    for n in 0..20_u8 {
        let name = format!("{:02x}{}", n, "cd".repeat(31));
        fs::create_dir_all(far.join(format!("packs/{:02x}", n))).unwrap();
        File::create(far.join(format!("packs/{n:02x}/{name}"))).unwrap().set_len(1 << 42).unwrap();
        let chain = format!("snapshots/{:010}-{}", 1000 + u64::from(n), "ab".repeat(32));
        File::create(far.join(chain)).unwrap().set_len(1 << 42).unwrap();
        fs::write(far.join(format!("snapshots/{:010}-{}", 2000 + u64::from(n), "ab".repeat(32))), "rubbish")
            .unwrap();
    }
    File::create(far.join("packs/strange")).unwrap().set_len(1 << 42).unwrap();
    let counters = Arc::new(remote::Counters::default());
    let settings = remote::Settings { url: world.url(), ..remote::Settings::default() };
    let opened = remote::open(&settings, &OpenOptions { counters: Arc::clone(&counters), ..once() }).unwrap();
    let to = world.sandbox.path("copy");
    let report = clone_from(&opened, &to).unwrap();
    assert_eq!(report.damaged.len(), 40, "each is named: {:?}", report.damaged);
    assert_eq!((report.foreign, report.latest_complete, report.incomplete.len()), (1, Some(3), 0));
    assert_eq!(files(&to), whole);
    let largest: u64 = whole.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert!(report.bytes <= largest, "{} bytes of {largest}", report.bytes);
    world.restores(&to);
}

/// A flood of files that nobody signed ends the clone early, and says so.
#[test]
fn a_flood_of_rubbish_is_bounded() {
    let (world, _) = three();
    for n in 0..500_u64 {
        let name = format!("snapshots/{:010}-{}", 5000 + n, "ab".repeat(32));
        fs::write(world.far().join(name), "rubbish").unwrap();
    }
    let gets = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&gets);
    let counted: Arc<dyn Remote> =
        Arc::new(remote::FaultyRemote::new(open_dir(&world.far()), move |_, op, _| {
            counter.fetch_add(u64::from(op == remote::Op::Get), Ordering::Relaxed);
            None
        }));
    let error = clone_from(&counted, &world.sandbox.path("copy")).unwrap_err();
    assert!(matches!(&error, FetchError::Flooded { file, .. } if file.starts_with("0000005")), "{error}");
    assert!(gets.load(Ordering::Relaxed) < 200, "{gets:?} requests");
    let said = world.clone("cli").fails(25);
    assert!(said.contains("none of this vault's") && said.contains("hint"), "{said}");
    assert!(!world.sandbox.path("cli/vault.json").exists());
}

/// Files in an archive are no rubbish, however many there are: each is named, and asked for once. Where there are only such,
/// that is said.
#[test]
fn any_number_of_archived_snapshot_files_is_no_flood() {
    let (world, _) = three();
    for n in 0..200_u64 {
        let name = format!("snapshots/{:010}-{}", 5000 + n, "ab".repeat(32));
        fs::write(world.far().join(name), "what an archive does not give").unwrap();
    }
    let counts: [Arc<AtomicU64>; 2] = Default::default();
    let archived = |begin: &'static str| -> Arc<dyn Remote> {
        let [gets, heads] = counts.clone();
        Arc::new(remote::FaultyRemote::new(open_dir(&world.far()), move |_, op, name| {
            gets.fetch_add(
                u64::from(op == remote::Op::Get && name.starts_with("snapshots/")),
                Ordering::Relaxed,
            );
            heads.fetch_add(u64::from(op == remote::Op::Head && name == "vault.json"), Ordering::Relaxed);
            let hit = op == remote::Op::Get && name.starts_with(begin);
            hit.then_some(remote::Fault::Before(ErrorKind::Archived))
        }))
    };
    let report = clone_from(&archived("snapshots/0000005"), &world.sandbox.path("copy")).unwrap();
    assert_eq!((report.damaged.len(), report.latest_complete), (200, Some(3)));
    assert!(report.damaged.iter().all(|text| text.contains("can't be read")), "{:?}", report.damaged[0]);
    let [gets, heads] = counts.each_ref().map(|count| count.load(Ordering::Relaxed));
    assert_eq!(gets, 203, "each once");
    assert!((1..=4).contains(&heads), "{heads} times it was asked whether anything can be read");
    world.restores(&world.sandbox.path("copy"));
    let error = clone_from(&archived("snapshots/"), &world.sandbox.path("none")).unwrap_err();
    assert!(matches!(&error, FetchError::Remote(e) if e.kind == ErrorKind::Archived), "{error}");
}

/// A remote whose listings never end, or lie.
#[derive(Debug)]
struct Endless {
    inner: Arc<dyn Remote>,
    pages: AtomicU64,
    /// Instead, packs of this length.
    huge: Option<u64>,
}

impl Remote for Endless {
    fn url(&self) -> String {
        self.inner.url()
    }
    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, sum: &Checksum) -> remote::Result<Put> {
        self.inner.put_if_absent(key, body, sum)
    }
    fn replace(
        &self,
        key: &Key,
        was: &Checksum,
        body: &Arc<dyn Source>,
        sum: &Checksum,
    ) -> remote::Result<()> {
        self.inner.replace(key, was, body, sum)
    }
    fn get(&self, key: &Key, range: Range<u64>) -> remote::Result<Vec<u8>> {
        self.inner.get(key, range)
    }
    fn head(&self, key: &Key) -> remote::Result<Meta> {
        self.inner.head(key)
    }
    fn list_page(&self, prefix: &str, after: &str) -> remote::Result<Page> {
        if let Some(huge) = self.huge {
            let mut page = self.inner.list_page(prefix, after)?;
            page.items.iter_mut().filter(|_| prefix == "packs/").for_each(|item| item.len = huge);
            return Ok(page);
        }
        let page = self.pages.fetch_add(1, Ordering::Relaxed);
        let item = |n: u64| Listed {
            name: format!("{prefix}{:010}-{}", page * 100_000 + n, "ab".repeat(32)),
            len: 1000,
        };
        Ok(Page { items: (0..100_000).map(item).collect(), more: true })
    }
    fn delete(&self, key: &Key) -> remote::Result<()> {
        self.inner.delete(key)
    }
    fn features(&self) -> remote::Result<Features> {
        self.inner.features()
    }
}

#[test]
fn a_listing_without_end_is_bounded() {
    let (world, _) = three();
    let endless = Arc::new(Endless { inner: open_dir(&world.far()), pages: AtomicU64::new(0), huge: None });
    let remote: Arc<dyn Remote> = Arc::clone(&endless) as _;
    let error = clone_from(&remote, &world.sandbox.path("copy")).unwrap_err();
    let FetchError::Remote(error) = error else { panic!("{error}") };
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    assert!(error.message.contains("more files than any vault has"), "{error}");
    assert!(endless.pages.load(Ordering::Relaxed) < 100);
}

/// Listings in the wrong order, of other prefixes, and answers of other lengths, from a real endpoint.
#[test]
fn an_endpoint_that_lies_or_stalls_is_given_up() {
    let world = World::new();
    world.snapshot("one", &pattern(100_000, 1));
    let server = Server::start();
    let settings = crate::remote::s3_settings(&server, &world.sandbox.path(""));
    super::ship_to(&real_disk(&world.sandbox.vault()), &remote::open(&settings, &once()).unwrap()).unwrap();
    let defects = |defects| server.set_defects(defects);
    use crate::remote::s3_server::Defects;
    defects(Defects { lists_strangers: true, ..Defects::default() });
    let error = clone_from(&remote::open(&settings, &once()).unwrap(), &world.sandbox.path("a")).unwrap_err();
    assert!(matches!(&error, FetchError::Remote(e) if e.kind == ErrorKind::Corrupt), "{error}");
    defects(Defects::default());
    let times = Times { answer: Duration::from_millis(300), ..Times::default() };
    server.set_trouble(|_, op, key| (op == "get" && key.contains("packs/")).then_some(Trouble::Stall));
    let stalled = remote::open(&settings, &OpenOptions { times, ..once() }).unwrap();
    let error = clone_from(&stalled, &world.sandbox.path("c")).unwrap_err();
    assert!(matches!(&error, FetchError::Remote(e) if e.kind == ErrorKind::Timeout), "{error}");
    assert!(!world.sandbox.path("c/vault.json").exists());
    server.calm();
    clone_from(&stalled, &world.sandbox.path("c")).unwrap();
    assert_eq!(files(&world.sandbox.path("c")), files(&world.sandbox.vault()));
}

/// An older copy of everything in the remote's place is seen by hosts that saw it newer, and by no other.
#[test]
fn a_remote_that_was_rolled_back_is_refused_by_who_saw_it_newer() {
    let world = World::new();
    world.snapshot("one", b"1");
    world.ship();
    world.sandbox.sh("cp -r far older").ok();
    world.snapshot("two", b"2");
    world.ship();
    let copy = world.str("copy");
    world.keyed_on("state-b", &["clone", &world.url(), &copy]).ok();
    world.sandbox.sh("mv far newer && mv older far").ok();
    // A second clone on that host, and a pull of the first one.
    let again = world.str("again");
    // Told by a dry run as well.
    let said = world.on("state-b", &["clone", &world.url(), &again, "--dry-run"]).fails(17);
    assert!(said.contains("has seen number 2"), "{said}");
    let said = world.on("state-b", &["clone", &world.url(), &again]).fails(17);
    assert!(said.contains("has seen number 2") && !world.sandbox.path("again/vault.json").exists(), "{said}");
    let said = world.on("state-b", &["pull", &copy]).fails(25);
    assert!(said.contains("has lost snapshot"), "{said}");
    assert_eq!(newest_complete(&world.sandbox.path("copy")), 2, "nothing was taken back");
    // Ships see it too, and nothing is sent.
    let said = world.run(&["ship", world.vault()]).fails(25);
    assert!(said.contains("has lost snapshot"), "{said}");
    world.clone("fresh").ok();
    let done = world.on("state-b", &["clone", &world.url(), &again, "--accept-rollback"]);
    assert!(done.code == 0 && done.stderr.contains("has seen number 2"), "{done:?}");
    assert_eq!(newest_complete(&world.sandbox.path("again")), 1);
}

/// Lengths that no pack has are not added up: such packs are damaged, for a dry run as for a clone.
#[test]
fn a_dry_run_does_not_reckon_with_lengths_that_no_pack_has() {
    let world = World::new();
    world.snapshot("one", &pattern(300_000, 1));
    world.snapshot("two", &pattern(200_000, 2));
    world.ship();
    // All in all more than fits a number.
    let (inner, huge) = (open_dir(&world.far()), Some(u64::MAX / 2));
    let liar: Arc<dyn Remote> = Arc::new(Endless { inner, pages: AtomicU64::new(0), huge });
    let header = fetch::remote_header(liar.as_ref()).unwrap();
    let options = fetch::FetchOptions::new(world.sandbox.path("cache"));
    let look = fetch::RemoteDisk::new(Arc::clone(&liar), &options).unwrap();
    let (found, _) = fetch::survey(&look, header.header(), None).unwrap();
    assert_eq!((found.packs, found.latest_complete, found.packs_there), (0, None, 0), "{found:?}");
    assert!(found.bytes < 1 << 20 && found.damaged.iter().all(|text| text.contains("more than any pack")));
    let report = clone_from(&liar, &world.sandbox.path("copy")).unwrap();
    assert_eq!(found.damaged.len(), packs(&world.far()).len());
    let named = |name: &String| report.damaged.iter().any(|text| text.starts_with(name.as_str()));
    assert!(packs(&world.far()).iter().all(named), "{report:?}");
}
