//! The whole of pjdfstest, and stress-ng's filesystem class, on a mount.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::common::{Helper, Sandbox, built_tool, require_fuse, require_root};

/// How many tests pjdfstest 0.2.2 has on Linux.
const PJDFSTEST_TESTS: usize = 398;
/// The one test that may be skipped, as on every FUSE mount: it wants to exceed LINK_MAX, and pathconf(3) knows that limit only of a
/// few filesystems, by their magic numbers. `extremes` makes 65,000 links.
const SKIPPED: [&str; 1] = ["link::link_count_max"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped,
}

/// Runs pjdfstest and returns what came out of each test.
#[track_caller]
fn pjdfstest(sandbox: &Sandbox, allow_remount: bool, pattern: &[&str]) -> BTreeMap<String, Outcome> {
    let config = format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutimensat = {{}}\nutime_now = {{}}\n\
         [settings]\nnaptime = 0.02\nallow_remount = {allow_remount}\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n"
    );
    fs::write(sandbox.path("pjdfstest.toml"), config).unwrap();
    // The tool's tests of long paths subtract below zero when its own directory, two random names of 10 bytes below this
    // one, has a length that leaves no rest here.
    let mut base = sandbox.mountpoint().join("base");
    while (4095 - (base.as_os_str().len() + 22)) % 127 < 2 {
        base.set_file_name(format!("{}x", base.file_name().unwrap().to_str().unwrap()));
    }
    fs::create_dir_all(&base).unwrap();
    let mut args = vec!["-c".into(), sandbox.str("pjdfstest.toml"), "-p".into()];
    args.push(base.to_str().unwrap().to_string());
    // Another filesystem, for EXDEV.
    args.extend(["-s".into(), sandbox.str("state")]);
    args.extend(pattern.iter().map(ToString::to_string));
    let done = sandbox.tool(built_tool("pjdfstest").to_str().unwrap(), args);

    let mut outcomes = BTreeMap::new();
    let mut failed = Vec::new();
    let mut lines = done.stdout.lines().peekable();
    while let Some(line) = lines.next() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, outcome] = words[..] else { continue };
        let outcome = match outcome {
            "ok" => Outcome::Passed,
            "skipped" => Outcome::Skipped,
            "FAILED" => {
                failed.push(format!("{name}: {}", lines.peek().map_or("", |why| why.trim())));
                continue;
            }
            _ => continue,
        };
        assert_eq!(outcomes.insert(name.to_string(), outcome), None, "{name} was run twice");
    }
    assert!(failed.is_empty(), "{} tests failed: {failed:#?}", failed.len());
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    let summary = done.stdout.lines().find(|line| line.starts_with("Summary:")).unwrap_or_default();
    let count = |wanted| outcomes.values().filter(|outcome| **outcome == wanted).count();
    let expected = format!(
        "Summary: 0 failed, {} skipped, {} passed, 0 expected failures, {} total",
        count(Outcome::Skipped),
        count(Outcome::Passed),
        outcomes.len()
    );
    assert_eq!(summary, expected, "every test's line was understood");
    outcomes
}

#[test]
fn heavy_pjdfstest_has_no_failures() {
    require_root();
    require_fuse();
    let sandbox = Sandbox::with_vault();
    let _installed = Helper::install();
    sandbox.mount();
    // In two processes: the tool leaves deleted files open, and with those no filesystem can become read-only.
    let most = pjdfstest(&sandbox, false, &[]);
    assert_eq!(most.len(), PJDFSTEST_TESTS);
    let skipped: BTreeSet<&str> = most
        .iter()
        .filter(|(_, outcome)| **outcome == Outcome::Skipped)
        .map(|(name, _)| name.as_str())
        .collect();
    let read_only = pjdfstest(&sandbox, true, &["erofs"]);
    assert!(read_only.values().all(|outcome| *outcome == Outcome::Passed), "{read_only:?}");
    let expected: BTreeSet<&str> = read_only.keys().map(String::as_str).chain(SKIPPED).collect();
    assert_eq!(skipped, expected, "only what the second run covers may be skipped in the first");
    sandbox.umount();
    sandbox.assert_clean();
}

/// Stressors that are left out, because what they stress is not there on any FUSE mount, or not ours.
const STRESS_EXCLUDED: [&str; 5] = [
    "fanotify", // watches all mounts of the machine, and so keeps those of other tests busy
    "binderfs", // mounts a filesystem of its own, which few kernels have
    "fiemap",   // FUSE has no request for the places of a file on a disk
    "verity",   // nor for fs-verity
    "io",       // syncs all mounts of the machine, and fails, on ext4 as well, where one of them is odd
];
/// stress-ng's filesystem class has at least so many.
const STRESS_MIN: usize = 40;

#[test]
fn heavy_stress_ng_finds_nothing() {
    require_root();
    require_fuse();
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    let dir = sandbox.mountpoint().join("stress");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let excluded = STRESS_EXCLUDED.join(",");
    let seconds = std::env::var("STRONGROOM_STRESS_SECONDS").unwrap_or_else(|_| "1".into());
    let args =
        ["--class", "filesystem", "--seq", "1", "--verify", "--timeout", &seconds, "--exclude", &excluded];
    let done = sandbox.tool("stress-ng", args.into_iter().chain(["--temp-path", dir.to_str().unwrap()]));
    let text = format!("{}{}", done.stdout, done.stderr);
    let trouble: Vec<&str> =
        text.lines().filter(|line| line.contains("fail:") || line.contains("error:")).collect();
    assert!(trouble.is_empty(), "{trouble:#?}");
    assert_eq!(done.code, 0, "{text}");
    let dispatched =
        text.lines().find_map(|line| line.split_once("dispatching hogs: ")).map_or("", |(_, list)| list);
    assert!(dispatched.split(", ").count() >= STRESS_MIN, "{text}");
    let skipped: Vec<&str> = text.lines().filter(|line| line.contains("skipping")).collect();
    assert!(skipped.is_empty(), "{skipped:#?}");
    let status = sandbox.run(["status", sandbox.vault_str(), "--json"]).json();
    assert_eq!(status["daemon"]["counters"]["writing"], true, "{status}");
    assert_eq!(status["last_error"], serde_json::Value::Null, "{status}");
    sandbox.umount();
    sandbox.assert_clean();
}
