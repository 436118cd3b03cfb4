//! Existing tools stay welcome: what rsync, rclone or `aws s3 sync` copy of a vault, while it is mounted and written to,
//! restores; and b3sum alone checks every pack.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{World, files, newest_complete, packs};
use crate::common::{Sandbox, wait_until};
use crate::remote::moto::{BUCKET, Moto};
use crate::remote::{aws_cli, pattern};

fn copy(world: &World, moto: &Moto, tool: &str, to: &str) {
    let sandbox = &world.sandbox;
    match tool {
        "rsync" => sandbox.sh(&format!("rsync -a --exclude live/ encrypted/ {to}/")).ok(),
        // Without a configuration file, and with its own idea of parallel copying.
        "rclone" => {
            sandbox.sh(&format!("rclone --config /dev/null copy encrypted {to} --exclude '/live/**'")).ok()
        }
        // To a bucket, and back by `clone`: what another tool put there is a remote like any other.
        _ => {
            let credentials =
                "AWS_ACCESS_KEY_ID=moto AWS_SECRET_ACCESS_KEY=moto AWS_DEFAULT_REGION=us-east-1";
            let (aws, endpoint) = (aws_cli::program(), moto.endpoint());
            let aws = format!("{credentials} {} --endpoint-url {endpoint}", aws.display());
            let sync =
                format!("{aws} s3 sync --only-show-errors encrypted s3://{BUCKET}/vault --exclude 'live/*'");
            let synced = sandbox.sh(&sync);
            // It looks at all files before it excludes any, and says with status 2 that it can't copy a socket.
            match (synced.code, sandbox.run(["is-mounted", &world.str("decrypted")]).code) {
                (2, 0) => assert!(
                    synced
                        .stderr
                        .lines()
                        .filter(|line| !line.is_empty())
                        .all(|line| line.contains("live/control.sock")),
                    "{synced:?}"
                ),
                _ => drop(synced.ok()),
            }
            drop(fs::remove_dir_all(sandbox.path(to)));
            let settings = moto.settings();
            let file = settings.credentials_file.as_ref().unwrap().to_str().unwrap();
            let reach = ["--endpoint", &endpoint, "--path-style", "--region", "us-east-1"];
            let clone =
                ["clone", &format!("s3://{BUCKET}/vault"), &world.str(to), "--credentials-file", file];
            let done = world.on("state-aws", &[&clone[..], &reach[..]].concat());
            // A snapshot that was made meanwhile may lack packs: that is said, and everything else is copied.
            assert!(matches!(done.code, 0 | 25), "{done:?}");
            String::new()
        }
    };
}

/// Every snapshot of this job holds the number of its round, and data that follows from it.
#[track_caller]
fn holds_one_round(world: &World, copy: &Path) -> u64 {
    let out = tempfile::tempdir_in(world.sandbox.path("")).unwrap();
    let out = out.path().join("out");
    world.keyed_on("state-fresh", &["restore", copy.to_str().unwrap(), "--to", out.to_str().unwrap()]).ok();
    let round: u64 = fs::read_to_string(out.join("round")).unwrap().parse().unwrap();
    assert_eq!(fs::read(out.join("data")).unwrap(), pattern(700_000, round as u8), "round {round}");
    assert_eq!(fs::read(out.join(format!("extra{}", round % 4))).unwrap(), pattern(90_000, round as u8 ^ 1));
    round
}

/// Stops the job.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn heavy_tools_copy_a_vault_that_is_mounted_and_written_to() {
    let (world, moto) = (World::around(Sandbox::with_vault()), Moto::start());
    world.sandbox.mount();
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (sandbox, stop, rounds) = (&world.sandbox, &stop, &rounds);
        let writer = scope.spawn(move || {
            let at = sandbox.mountpoint();
            while !stop.load(Ordering::SeqCst) {
                let round = rounds.load(Ordering::SeqCst) + 1;
                fs::write(at.join("data"), pattern(700_000, round as u8)).unwrap();
                fs::write(at.join(format!("extra{}", round % 4)), pattern(90_000, round as u8 ^ 1)).unwrap();
                fs::write(at.join("round"), round.to_string()).unwrap();
                sandbox.keyed(&["snapshot", "create", sandbox.vault_str()]).ok();
                rounds.store(round, Ordering::SeqCst);
            }
        });
        // Also when something here fails: the scope waits for the job.
        let _end = Stop(stop);
        wait_until("a first snapshot", || rounds.load(Ordering::SeqCst) > 0 || writer.is_finished());
        for tool in ["rsync", "rclone", "aws"] {
            for n in 0..2 {
                let before = rounds.load(Ordering::SeqCst);
                let to = format!("by-{tool}");
                copy(&world, &moto, tool, &to);
                let round = holds_one_round(&world, &world.sandbox.path(&to));
                assert!(round >= before.saturating_sub(1) && round > 0, "{tool} {n}: {round}, not {before}");
                // Let the next copy find something new.
                let next = rounds.load(Ordering::SeqCst) + 1;
                wait_until("the job", || rounds.load(Ordering::SeqCst) > next || writer.is_finished());
            }
        }
        stop.store(true, Ordering::SeqCst);
        writer.join().unwrap();
    });
    world.sandbox.umount();
    let last = rounds.load(Ordering::SeqCst);
    for tool in ["rsync", "rclone", "aws"] {
        let at = world.sandbox.path(&format!("by-{tool}"));
        copy(&world, &moto, tool, &format!("by-{tool}"));
        assert_eq!(newest_complete(&at), newest_complete(&world.sandbox.vault()), "{tool}");
        assert_eq!(holds_one_round(&world, &at), last, "{tool}");
        assert_eq!(files(&at), files(&world.sandbox.vault()), "{tool}");
        world.sandbox.fsck(&at).ok();
        checks_with_b3sum(&world, &format!("by-{tool}"));
    }
}

/// The name of each pack, and of each snapshot file, is what b3sum says of its bytes.
#[track_caller]
fn checks_with_b3sum(world: &World, copy: &str) {
    let all = packs(&world.sandbox.path(copy)).len();
    let check = "find packs snapshots -type f | sed -E 's|.*[/-]([0-9a-f]{64})$|\\1  &|' > ../sums; b3sum --quiet --check ../sums; wc -l < ../sums";
    let lines = world.sandbox.sh(&format!("cd {copy}; {check}")).ok();
    let lines: usize = lines.trim().parse().unwrap();
    assert!(all > 2 && lines > all, "{lines} files, {all} packs");
}

#[test]
fn b3sum_finds_a_pack_that_is_not_what_its_name_says() {
    let world = World::new();
    world.snapshot("one", &pattern(200_000, 1));
    world.snapshot("two", &pattern(200_000, 2));
    world.ship();
    checks_with_b3sum(&world, "far");
    let victim = packs(&world.far()).pop_first().unwrap();
    let mut bytes = fs::read(world.far().join(&victim)).unwrap();
    bytes[77] ^= 1;
    fs::write(world.far().join(&victim), &bytes).unwrap();
    let name = victim.rsplit('/').next().unwrap();
    let check = format!("cd far; echo '{name}  {victim}' | b3sum --check");
    assert!(
        world.sandbox.sh(&check).fails(1).contains("FAILED")
            || world.sandbox.sh(&check).stdout.contains("FAILED")
    );
}
