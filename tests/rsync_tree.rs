//! Fidelity: everything that `rsync -aHAXS --numeric-ids --link-dest` and `tar` can carry comes back the same.

use std::fs;

use crate::common::{Sandbox, assert_same_tree, require_root};

/// A tree with all that makes trees hard.
pub(crate) const MAKE_TREE: &str = r#"
mkdir -p source/dir/deep/er source/empty
echo hello > source/file
ln source/file source/dir/hardlink1
ln source/file source/dir/deep/hardlink2
head -c 3000000 /dev/urandom > source/big; ln source/big source/dir/big-again
ln -s ../file source/dir/symlink; ln -s /nowhere/at/all source/dangling
mkfifo -m 0640 source/fifo
mknod source/chardev c 1 7; mknod -m 0600 source/blockdev b 7 200
truncate -s 40M source/sparse; printf x | dd of=source/sparse bs=1 seek=20000000 conv=notrunc status=none
: > source/zero
name=$(printf 'n%.0s' $(seq 255)); echo long > "source/$name"
printf nl > "source/new
line"
printf bad > source/$'invalid-\xff\xfe-utf8'
printf sp > "source/ leading and trailing "
printf st > 'source/*?[]$`"\'
for i in $(seq 300); do echo $i > source/dir/deep/er/f$i; done
find source -depth -exec touch -h -d '2026-10-01 03:04:05.123456789' {} +
touch -d '1999-12-31 23:59:59.123456789Z' source/file
touch -d '2038-01-19 03:14:08.000000001Z' source/dir/deep
touch -h -d '2001-02-03 04:05:06.7Z' source/dangling
touch -d '1960-01-01 00:00:00.5Z' source/zero
chmod 4755 source/big; chmod 2775 source/dir; chmod 1777 source/empty; chmod 0000 source/fifo
chown 1000:1001 source/file; chown 65534:65534 source/dir/deep; chown -h 12345:54321 source/dangling
chown 4000000000:4000000001 source/zero
setfattr -n user.comment -v 'some value' source/file
setfattr -n user.binary -v 0x00ff00fe source/dir
setfattr -n trusted.note -v secret source/zero
setfattr -n security.capability -v 0x0100000200000000000000000000000000000000 source/sparse
setfacl -m u:1234:rw,g:99:r,m::rw source/zero
setfacl -d -m u:77:rwx source/dir
"#;

#[test]
fn heavy_rsync_with_everything_round_trips() {
    require_root();
    let sandbox = Sandbox::with_vault();
    sandbox.sh(MAKE_TREE).ok();
    sandbox.mount();
    sandbox.sh("rsync -aHAXS --numeric-ids source/ decrypted/one/").ok();
    assert_same_tree(&sandbox.path("source"), &sandbox.path("decrypted/one"));

    let again =
        sandbox.sh("rsync -aHAXS --numeric-ids --itemize-changes --stats source/ decrypted/one/").ok();
    let transferred =
        again.lines().find(|l| l.starts_with("Number of regular files transferred")).expect("stats");
    assert!(transferred.ends_with(": 0"), "the second run transferred files:\n{again}");
    let changes: Vec<&str> =
        again.lines().take_while(|l| !l.starts_with("Number")).filter(|l| !l.trim().is_empty()).collect();
    assert!(changes.is_empty(), "the second run changed something: {changes:?}");

    // An incremental tree: unchanged files are links to the first one.
    sandbox.sh("echo more >> source/dir/deep/er/f7; rsync -aHAXS --numeric-ids --link-dest=../one source/ decrypted/two/").ok();
    assert_same_tree(&sandbox.path("source/dir"), &sandbox.path("source/dir"));
    let shared = sandbox
        .sh("stat -c %i decrypted/one/big decrypted/two/big decrypted/two/dir/big-again | sort -u | wc -l")
        .ok();
    assert_eq!(shared.trim(), "1", "link-dest shares the inode");
    let before: Vec<String> = crate::common::tree_digest(&sandbox.mountpoint());
    let inodes = sandbox.sh("cd decrypted && find . -printf '%i %P\\0' | sort -z | b2sum").ok();

    sandbox.umount();
    sandbox.mount();
    assert_eq!(before, crate::common::tree_digest(&sandbox.mountpoint()), "after a remount");
    assert_eq!(
        inodes,
        sandbox.sh("cd decrypted && find . -printf '%i %P\\0' | sort -z | b2sum").ok(),
        "inode numbers are stable"
    );
    let again = sandbox.sh("rsync -aHAXS --numeric-ids --itemize-changes source/ decrypted/two/").ok();
    assert_eq!(again.trim(), "", "a no-op pass after a remount");
    sandbox.umount();

    sandbox
        .run([
            "restore",
            sandbox.vault_str(),
            "--to",
            &sandbox.str("restored"),
            "--passfile",
            &sandbox.passfile(),
        ])
        .ok();
    assert_eq!(before, crate::common::tree_digest(&sandbox.path("restored")), "after a restore");
    let blocks = sandbox.sh("stat -c %b restored/two/sparse").ok();
    assert!(blocks.trim().parse::<u64>().unwrap() < 1000, "holes are restored as holes: {blocks}");
}

#[test]
fn heavy_tar_with_xattrs_and_acls_round_trips() {
    require_root();
    let sandbox = Sandbox::with_vault();
    sandbox.sh(MAKE_TREE).ok();
    sandbox.mount();
    sandbox.sh("mkdir decrypted/t && tar -C source --xattrs --xattrs-include='*' --acls --sparse --numeric-owner -cf - . | tar -C decrypted/t --xattrs --xattrs-include='*' --acls --numeric-owner -xpf -").ok();
    // tar's default format keeps whole seconds only where it can't do better, so times are compared on what it wrote to ext4.
    sandbox.sh("mkdir plain && tar -C source --xattrs --xattrs-include='*' --acls --sparse --numeric-owner -cf - . | tar -C plain --xattrs --xattrs-include='*' --acls --numeric-owner -xpf -").ok();
    assert_same_tree(&sandbox.path("plain"), &sandbox.path("decrypted/t"));
    sandbox.umount();
}

#[test]
fn heavy_import_equals_the_tree_it_read() {
    require_root();
    let sandbox = Sandbox::with_vault();
    sandbox.sh(MAKE_TREE).ok();
    sandbox
        .run(["import", sandbox.vault_str(), &sandbox.str("source"), "--passfile", &sandbox.passfile()])
        .ok();
    let inside = format!("latest:{}", sandbox.str("source"));
    sandbox
        .run([
            "restore",
            sandbox.vault_str(),
            &inside,
            "--to",
            &sandbox.str("restored"),
            "--passfile",
            &sandbox.passfile(),
        ])
        .ok();
    assert_same_tree(&sandbox.path("source"), &sandbox.path("restored"));
    assert_eq!(sandbox.fsck(&sandbox.vault()).code, 0);
    assert!(fs::metadata(sandbox.path("source/file")).is_ok());
}

/// A job of every day: only what changed is read, and the snapshot is what it would have been.
#[test]
fn an_import_reads_only_what_changed() {
    let sandbox = Sandbox::with_vault();
    sandbox.sh("mkdir -p source/sub source/doc && for n in 1 2 3 4 5; do seq $n 5000 > source/doc/$n; done && echo one > source/a && echo two > source/sub/b && sleep 0.1").ok();
    let source = sandbox.str("source");
    let import = |more: &[&str]| {
        sandbox.keyed(&[&["import", sandbox.vault_str(), &source, "--json"][..], more].concat()).json()
    };
    let first = import(&[]);
    let files = first["files"].as_u64().unwrap();
    assert_eq!((&first["unchanged"], files > 4), (&0.into(), true), "{first}");
    // Same length, same mtime.
    sandbox.sh("touch -r source/sub/b stamp && echo 2wo > source/sub/b && touch -r stamp source/sub/b && echo new > source/c && sleep 0.1").ok();
    let second = import(&[]);
    assert_eq!(
        (&second["unchanged"], &second["files"]),
        (&(files - 1).into(), &(files + 1).into()),
        "{second}"
    );
    let restore = |name: &str, to: &str| {
        let at = format!("{name}:{source}");
        sandbox.keyed(&["restore", sandbox.vault_str(), &at, "--to", &sandbox.str(to)]).ok();
    };
    restore("latest", "restored");
    assert_same_tree(&sandbox.path("source"), &sandbox.path("restored"));
    assert_eq!(import(&["--reread"])["unchanged"], 0);
    let diff = sandbox.keyed(&["diff", sandbox.vault_str(), "2", "3"]).ok();
    assert!(!diff.contains("source"), "{diff}");
    let text = sandbox.keyed(&["import", sandbox.vault_str(), &source]).ok();
    assert!(text.contains(&format!("{} files are what they were", files + 1)), "{text}");
}

/// Unmounts when the test ends, however it does.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(std::thread::panicking() || done.is_ok_and(|status| status.success()));
    }
}

/// `-x` leaves out what is mounted in a source, unless it is a source itself, or has one in it.
#[test]
fn a_source_on_another_filesystem_is_stored_with_one_file_system_too() {
    require_root();
    let sandbox = Sandbox::with_vault();
    let mounts = ["left-out", "home", "more"].map(|name| {
        sandbox.sh(&format!("mkdir -p source/{name} && mount -t tmpfs tmpfs source/{name}")).ok();
        Mounted(sandbox.path("source").join(name))
    });
    sandbox
        .sh("cd source && echo 1 > top && echo 2 > left-out/x && echo 3 > home/file && mkdir -p more/in more/out && echo 4 > more/in/file && echo 5 > more/out/file")
        .ok();
    let (source, home, inner) =
        (sandbox.str("source"), sandbox.str("source/home"), sandbox.str("source/more/in"));
    let done = sandbox.keyed(&["import", sandbox.vault_str(), &source, &home, &inner, "-x", "--json"]).json();
    assert_eq!((&done["files"], &done["errors"]), (&3.into(), &serde_json::json!([])), "{done}");
    sandbox
        .keyed(&["restore", sandbox.vault_str(), &format!("latest:{source}"), "--to", &sandbox.str("back")])
        .ok();
    let found = sandbox.sh("cd back && find . | sort").ok();
    assert_eq!(
        found.lines().collect::<Vec<_>>(),
        [".", "./home", "./home/file", "./left-out", "./more", "./more/in", "./more/in/file", "./top"]
    );
    drop(mounts);
}
