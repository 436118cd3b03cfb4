//! Endpoints in trouble, seen from the command line: what is said, what to do, and that nothing is lost.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use strongroom::env::{Env, TestEnv};
use strongroom::remote::{
    self, Counted, ErrorKind, Fault, FaultyRemote, Op, OpenOptions, Pause, Remote, RetryPolicy, Retrying,
    Settings, Times,
};
use strongroom::ship::{Bounds, Jobs, ShipOptions, ship};

use crate::cli::{assert_text, transcript};
use crate::common::Finished;
use crate::remote::s3_server::{ACCESS_KEY, Defects, Server, Trouble};
use crate::remote::{once, patient, pattern, private_file, s3_settings};
use crate::ship::{World, fetch, files, ship_to};

/// A vault with two snapshots, and a bucket that is its only remote.
struct Bucket {
    world: World,
    server: Server,
}

impl Bucket {
    fn new() -> Self {
        let world = World::new();
        world.cli(&["remote", "remove", world.vault(), "usb"]).ok();
        world.snapshot("one", &pattern(200_000, 1));
        world.snapshot("two", &pattern(200_000, 2));
        let bucket = Self { world, server: Server::start() };
        bucket.add(&[]);
        bucket
    }

    fn add(&self, more: &[&str]) {
        let settings = s3_settings(&self.server, &self.world.sandbox.path(""));
        let file = settings.credentials_file.as_ref().unwrap().to_str().unwrap().to_string();
        let endpoint = self.server.endpoint();
        let add = [
            "remote",
            "add",
            self.world.vault(),
            "s3",
            &settings.url,
            "--endpoint",
            &endpoint,
            "--path-style",
        ];
        let rest = ["--region", "eu-central-1", "--replace", "--credentials-file", &file];
        self.world.cli(&[&add[..], &rest[..], more].concat()).ok();
    }

    fn ship(&self) -> Finished {
        self.world.cli(&["ship", self.world.vault()])
    }

    /// Everything is there, byte for byte.
    fn is_complete(&self) {
        let settings = s3_settings(&self.server, &self.world.sandbox.path(""));
        let remote = remote::open(&settings, &patient()).unwrap();
        let copy = self.world.sandbox.path("fetched");
        fetch(remote.as_ref(), &copy);
        assert_eq!(files(&copy), files(&self.world.sandbox.vault()));
        fs::remove_dir_all(copy).unwrap();
    }
}

/// What each trouble that does not pass by itself says. After it has passed the next ship goes on, and completes.
#[test]
fn each_trouble_is_said_with_what_to_do() {
    let mut text = String::new();
    for (what, code, status, exit) in [
        ("the credentials expire", "ExpiredToken", 400, 24),
        ("they never had the right", "AccessDenied", 403, 24),
        ("the clock is wrong", "RequestTimeTooSkewed", 403, 24),
        ("the key was removed", "InvalidAccessKeyId", 403, 24),
        ("the disk there is full", "InsufficientStorage", 507, 24),
        ("the bucket is removed", "NoSuchBucket", 404, 24),
        ("the storage class is not known there", "InvalidStorageClass", 400, 24),
    ] {
        let bucket = Bucket::new();
        // From the first request on, whose answer has no body.
        bucket.server.set_trouble(move |_, _, _| Some(Trouble::Before(code, status)));
        let done = bucket.world.cli(&["ship", bucket.world.vault(), "--jobs", "1"]);
        assert_eq!(done.code, exit, "{what}: {done:?}");
        assert!(bucket.server.keys().is_empty(), "{what}");
        text += &format!(
            "# {what}, from the beginning\n{}",
            strip_pack(&transcript(&bucket.world.sandbox, &["ship"], &done))
        );
        // In the middle: the header is there by then, and a pack.
        let puts = AtomicU64::new(0);
        bucket.server.set_trouble(move |_, op, _| {
            let strikes = op == "put" && puts.fetch_add(1, Ordering::SeqCst) >= 3;
            strikes.then_some(Trouble::Before(code, status))
        });
        let done = bucket.world.cli(&["ship", bucket.world.vault(), "--jobs", "1"]);
        assert_eq!(done.code, exit, "{what}: {done:?}");
        let there = bucket.server.keys().len();
        assert_eq!(there, 3, "{what}: what was sent stays");
        text += &format!("# {what}\n{}", strip_pack(&transcript(&bucket.world.sandbox, &["ship"], &done)));
        bucket.server.calm();
        bucket.ship().ok();
        bucket.is_complete();
    }
    assert_text("ship-errors", &text);
}

/// The name of the pack that was under way differs from run to run.
fn strip_pack(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    // A connection that the server has just closed is only noticed by using it: whether that happens is chance.
    let by_chance = |line: &&str| line.ends_with("connection closed before message completed; trying again");
    for line in text.lines().filter(|line| !by_chance(line)) {
        let line = match (line.find("packs/"), line.find("[HASH]")) {
            (Some(start), Some(end)) if start < end => {
                format!("{}packs/[HASH]{}", &line[..start], &line[end + 6..])
            }
            _ => line.to_string(),
        };
        lines.push(line);
    }
    lines.join("\n") + "\n"
}

/// Endpoints that are wrong from the start: refused before anything is believed.
#[test]
fn endpoints_that_lie_are_an_alarm() {
    let mut text = String::new();
    let lies: [(&str, Defects); 3] = [
        ("it stores other bytes", Defects { stores_other_bytes: true, ..Defects::default() }),
        (
            "it stores other bytes, and keeps no checksums",
            Defects { stores_other_bytes: true, knows_no_checksums: true, ..Defects::default() },
        ),
        ("it lists what was not asked for", Defects { lists_strangers: true, ..Defects::default() }),
    ];
    for (what, defects) in lies {
        let bucket = Bucket::new();
        bucket.server.set_defects(defects);
        let done = bucket.ship();
        assert_eq!(done.code, 25, "{what}: {done:?}");
        text += &format!("# {what}\n{}", transcript(&bucket.world.sandbox, &["ship"], &done));
    }
    assert_text("ship-lies", &text);
}

/// Wrong from the start as well, but by the settings.
#[test]
fn settings_that_lead_nowhere_are_told_apart() {
    let bucket = Bucket::new();
    let (world, mut text) = (&bucket.world, String::new());
    let wrong = world.sandbox.path("wrong");
    private_file(
        &wrong,
        &format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = wrong\n"),
    );
    fs::write(world.sandbox.path("open"), "[default]\n").unwrap();
    for (what, file, exit) in [
        ("a wrong secret", "wrong", 24),
        ("a file that others can read", "open", 15),
        ("no such file", "none", 24),
    ] {
        bucket.add(&["--profile", "default"]);
        let settings = world.sandbox.vault().join("live/remotes.json");
        let stored = fs::read_to_string(&settings).unwrap();
        let credentials = s3_settings(&bucket.server, &world.sandbox.path("")).credentials_file.unwrap();
        let path = credentials.to_str().unwrap();
        fs::write(&settings, stored.replace(path, &world.sandbox.str(file))).unwrap();
        let done = bucket.ship();
        assert_eq!(done.code, exit, "{what}: {done:?}");
        text += &format!("# {what}\n{}", transcript(&world.sandbox, &["ship"], &done));
    }
    let add = ["remote", "add", world.vault(), "x", "s3://bucket", "--endpoint", "http://minio.example:9000"];
    let done = world.cli(&add);
    assert_eq!(done.code, 2);
    text += &format!("# plain http to another machine\n{}", transcript(&world.sandbox, &add, &done));
    world.cli(&[&add[..], &["--allow-http"]].concat()).ok();
    let listed = world.cli(&["remote", "list", world.vault(), "--json"]).json();
    assert_eq!(
        (&listed[0]["allow_http"], &listed[1]["allow_http"]),
        (&serde_json::Value::Null, &true.into())
    );
    assert_text("remote-errors", &text);
}

/// Refusals, failures before and after the effect, and broken connections: said once, and shipped all the same.
#[test]
fn a_storm_passes_and_is_said_once() {
    let bucket = Bucket::new();
    let count = AtomicU64::new(0);
    bucket.server.set_trouble(move |_, op, _| match count.fetch_add(1, Ordering::SeqCst) {
        1 | 2 => Some(Trouble::Before("TooManyRequests", 429)),
        5 | 9 if op == "put" => Some(Trouble::After("InternalError", 500)),
        n if n < 14 && n % 4 == 3 => Some(Trouble::Before("InternalError", 500)),
        _ => None,
    });
    let done = bucket.world.cli(&["ship", bucket.world.vault(), "--jobs", "1"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.stderr.matches("trying again").count(), 2, "once for each kind: {}", done.stderr);
    bucket.server.calm();
    bucket.is_complete();
    // Silence is kept where it was asked for.
    let bucket = Bucket::new();
    bucket.server.set_trouble(|n, _, _| (n == 2).then_some(Trouble::Before("SlowDown", 503)));
    let quiet = bucket.world.cli(&["ship", bucket.world.vault(), "--quiet"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
}

/// Requests that are never answered are given up, and asked again.
#[test]
fn silence_is_no_end() {
    let bucket = Bucket::new();
    let count = AtomicU64::new(0);
    bucket.server.set_trouble(move |_, _, _| {
        (count.fetch_add(1, Ordering::SeqCst) % 6 == 1).then_some(Trouble::Stall)
    });
    let counters = Arc::new(remote::Counters::default());
    let times = Times { answer: Duration::from_millis(500), ..Times::default() };
    let options = OpenOptions { times, counters: Arc::clone(&counters), ..patient() };
    let settings = s3_settings(&bucket.server, &bucket.world.sandbox.path(""));
    let remote = remote::open(&settings, &options).unwrap();
    ship_to(&bucket.world.disk(), &remote, None).unwrap();
    assert!(counters.pushed_back() > 0, "it was silent, and that slows down");
    bucket.server.calm();
    bucket.is_complete();
}

/// Waits for nothing.
#[derive(Debug)]
struct NoPause;

impl Pause for NoPause {
    fn pause(&self, _: Duration) {}
}

/// The clock stands still here, so nothing but the refusals can change the number.
#[test]
fn an_endpoint_that_pushes_back_gets_fewer_packs_at_a_time() {
    let world = World::new();
    for n in 0..8_u8 {
        world.snapshot(&format!("file{n}"), &pattern(50_000, n));
    }
    let usb = Settings { url: world.usb_url(), ..Settings::default() };
    let refused = AtomicU64::new(0);
    let crowded = FaultyRemote::new(remote::open(&usb, &once()).unwrap(), move |_, op, name| {
        let strikes =
            op == Op::Put && name.starts_with("packs/") && refused.fetch_add(1, Ordering::SeqCst) < 3;
        strikes.then_some(Fault::Before(ErrorKind::Throttled))
    });
    let (counters, env) = (Arc::new(remote::Counters::default()), Arc::new(TestEnv::new(1)));
    let counted = Arc::new(Counted::new(Arc::new(crowded), Arc::clone(&counters)));
    let (clock, pause) = (Arc::clone(&env) as Arc<dyn Env>, Arc::new(NoPause));
    let remote: Arc<dyn Remote> =
        Arc::new(Retrying::new(counted, RetryPolicy::NETWORK, Arc::clone(&clock), pause));
    let bounds = Bounds { first: 8, max: 16 };
    let jobs = Jobs::Measured { bounds, counters: Arc::clone(&counters), env: clock };
    let options = ShipOptions { jobs, ..ShipOptions::default() };
    let (report, _) = ship(&world.disk(), &remote, None, &options, &|_| {}).unwrap();
    assert!(report.packs > 10 && report.newest == Some(8), "{report:?}");
    assert_eq!(counters.pushed_back(), 3);
    assert!((1..=4).contains(&report.jobs), "{report:?}");
    world.restores(&world.usb());
    // A number that was chosen stays.
    let options = ShipOptions { jobs: Jobs::Fixed(7), ..ShipOptions::default() };
    world.snapshot("more", &pattern(50_000, 9));
    assert_eq!(ship(&world.disk(), &remote, None, &options, &|_| {}).unwrap().0.jobs, 7);
}
