//! Other backup programs that keep their repositories on the mount.

use super::{check_everywhere, mounted, need, run_at};

/// A source tree in the sandbox's home, and how it changes.
const SOURCE: &str = r#"
    mkdir -p source/sub
    for i in $(seq 60); do head -c $((i * 700)) /dev/urandom > source/sub/f$i; done
    head -c 6000000 /dev/urandom > source/big
    ln source/big source/sub/hard; ln -s big source/soft; mkfifo source/pipe
"#;
const CHANGE: &str = r#"
    for i in $(seq 1 7 60); do echo changed >> source/sub/f$i; done
    rm -f source/sub/f5
    head -c 100000 /dev/urandom | dd of=source/big bs=1000 seek=1000 conv=notrunc status=none
"#;

#[test]
fn heavy_a_borg_repository_is_kept_and_verified() {
    let sandbox = mounted();
    need(&sandbox, "borg", "borgbackup");
    sandbox.sh(SOURCE).ok();
    let borg = "export BORG_PASSPHRASE=secret BORG_BASE_DIR=~/borg BORG_RELOCATED_REPO_ACCESS_IS_OK=yes
        export BORG_REPO=$ROOT/repo";
    run_at(
        &sandbox,
        &sandbox.mountpoint(),
        &format!(
            "{borg}
             borg init -e repokey-blake2
             borg create ::one source
             {CHANGE}
             borg create ::two source
             {CHANGE}
             cp -a source kept
             borg create ::three source
             borg delete ::one
             borg prune --keep-last 2
             borg compact --threshold 0"
        ),
    );
    let said = check_everywhere(
        &sandbox,
        &format!(
            "{borg}
             borg check --verify-data 2>&1
             borg list --short
             rm -rf out; mkdir out; cd out
             borg extract ::three
             diff -r --no-dereference --exclude pipe source ../kept
             test -p source/pipe
             stat -c %h source/big"
        ),
    );
    assert_eq!(said, "two\nthree\n2\n");
}

#[test]
fn heavy_a_restic_repository_is_kept_and_read_back() {
    let sandbox = mounted();
    need(&sandbox, "restic", "restic");
    sandbox.sh(SOURCE).ok();
    let restic = "export RESTIC_PASSWORD=secret RESTIC_REPOSITORY=$ROOT/repo
        restic() { command restic --no-cache -q \"$@\"; }";
    run_at(
        &sandbox,
        &sandbox.mountpoint(),
        &format!(
            "{restic}
             restic init
             restic backup source
             {CHANGE}
             restic backup source
             {CHANGE}
             cp -a source kept
             restic backup source
             restic forget --keep-last 2 --prune --max-unused 0"
        ),
    );
    let said = check_everywhere(
        &sandbox,
        &format!(
            "{restic}
             restic check --read-data
             restic snapshots --json | grep -o '\"short_id\"' | wc -l
             rm -rf out
             restic restore latest --target out
             diff -r --no-dereference --exclude pipe out/source kept
             test -p out/source/pipe"
        ),
    );
    assert_eq!(said.trim(), "2");
}
