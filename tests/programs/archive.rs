//! tar in both directions, and the rotation that rsnapshot does with `cp -al` and `rsync --delete`.

use super::{check_everywhere, mounted, need, run_at};
use crate::common::{assert_same_tree, tree_digest};
use crate::rsync_tree::MAKE_TREE;

const TAR: &str = "tar --xattrs --xattrs-include='*' --acls --numeric-owner --format=posix";

#[test]
fn heavy_tar_archives_into_the_mount_and_out_of_it() {
    let sandbox = mounted();
    need(&sandbox, "tar", "tar");
    sandbox.sh(MAKE_TREE).ok();
    // From the disk into an archive on the mount, unpacked there, packed again from there, unpacked on the disk.
    run_at(
        &sandbox,
        &sandbox.mountpoint(),
        &format!(
            "{TAR} --sparse -C source -cf $ROOT/there.tar .
             mkdir $ROOT/unpacked back
             {TAR} -C $ROOT/unpacked -xpf $ROOT/there.tar
             {TAR} --sparse -C $ROOT/unpacked -cf back.tar .
             {TAR} -C back -xpf back.tar
             cp back.tar $ROOT/back.tar
             gzip -k $ROOT/back.tar"
        ),
    );
    assert_same_tree(&sandbox.path("source"), &sandbox.mountpoint().join("unpacked"));
    assert_same_tree(&sandbox.path("source"), &sandbox.path("back"));
    check_everywhere(
        &sandbox,
        &format!(
            "sha256sum < $ROOT/there.tar
             gzip -dc $ROOT/back.tar.gz | cmp - $ROOT/back.tar
             cmp back.tar $ROOT/back.tar
             rm -rf ~/again; mkdir ~/again
             {TAR} -C ~/again -xpf $ROOT/there.tar
             {TAR} -C $ROOT/unpacked --compare -f $ROOT/there.tar"
        ),
    );
    assert_same_tree(&sandbox.path("source"), &sandbox.path("again"));
    assert_same_tree(&sandbox.path("source"), &sandbox.path("restored/unpacked"));
}

/// The days that are kept.
const KEPT: u32 = 4;
const ROUNDS: u32 = 9;

/// One round below `$ROOT`, as rsnapshot does it.
const ROTATE: &str = r#"
    cd $ROOT
    rm -rf daily.3
    for day in 2 1; do [ ! -d daily.$day ] || mv daily.$day daily.$((day + 1)); done
    [ ! -d daily.0 ] || cp -al daily.0 daily.1
    mkdir -p daily.0
    rsync -aH --delete --numeric-ids ~/source/ daily.0/
"#;

#[test]
fn heavy_hard_link_rotation_stays_equal_to_the_same_on_disk() {
    let sandbox = mounted();
    need(&sandbox, "rsync", "rsync");
    sandbox
        .sh(r#"
            mkdir -p source mirror
            for i in $(seq 150); do mkdir -p source/d$((i % 11)); head -c $((i * 300)) /dev/urandom > source/d$((i % 11))/f$i; done
            ln source/d1/f1 source/d2/linked
        "#)
        .ok();
    for round in 1..=ROUNDS {
        // Dates differ by whole days: rsync must see each change by size or second, on both sides alike.
        sandbox
            .sh(&format!(
                r#"
                cd source
                for i in $(seq {round} 13 150); do echo "changed in round {round}" >> d$((i % 11))/f$i; done
                rm -f d$(({round} % 11))/f$(({round} + 20))
                mkdir -p new{round}; head -c 5000 /dev/urandom > new{round}/file
                mv d3/f{round}4 new{round}/ 2> /dev/null || true
                rm -rf new$(({round} - 3))
                find . -newermt '2026-10-{:02}' -exec touch -h -d '2026-10-{round:02} 01:02:03' {{}} +
                find . -depth -type d -exec touch -d '2026-10-{round:02} 02:03:04' {{}} +
                "#,
                round + 1
            ))
            .ok();
        for root in [sandbox.mountpoint(), sandbox.path("mirror")] {
            run_at(&sandbox, &root, ROTATE);
        }
        if round % 3 == 0 {
            sandbox.umount();
            sandbox.mount();
        }
    }
    let fixed = "touch -d '2026-11-01 00:00:00' $ROOT";
    run_at(&sandbox, &sandbox.mountpoint(), fixed);
    run_at(&sandbox, &sandbox.path("mirror"), fixed);
    run_at(&sandbox, &sandbox.path("mirror"), "chmod --reference=decrypted $ROOT");
    assert_same_tree(&sandbox.path("mirror"), &sandbox.mountpoint());
    sandbox.sh("rsync -aHn --delete --checksum --itemize-changes source/ decrypted/daily.0/ > changes; cat changes; test ! -s changes").ok();
    // Unchanged files of all days are one inode: the rotation took space for changes only.
    let counts = check_everywhere(
        &sandbox,
        "ls $ROOT; find $ROOT -type f | wc -l; find $ROOT -type f -printf '%i\\n' | sort -u | wc -l",
    );
    let numbers: Vec<u32> = counts.lines().rev().take(2).map(|n| n.trim().parse().unwrap()).collect();
    assert!(counts.starts_with("daily.0\ndaily.1\ndaily.2\ndaily.3\n"), "{counts}");
    assert!(numbers[1] > KEPT * 120 && numbers[0] < numbers[1] / 2, "{counts}");
    assert_eq!(
        tree_digest(&sandbox.path("mirror")),
        tree_digest(&sandbox.path("restored")),
        "what was restored"
    );
}
