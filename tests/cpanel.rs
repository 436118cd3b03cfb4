//! The main job, end to end: the seed article's cPanel scripts with `encfs` replaced line for line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::{Sandbox, assert_same_tree, require_root};

/// Strings of the plaintext that must not be found anywhere in the vault.
const MARKS: [&str; 4] =
    ["cpmove-alice.tar", "very-private-database", "alice-homedir-marker", "INSERT INTO customers"];

/// Accounts as cPanel packs them: a home directory and a database dump each.
fn make_accounts(sandbox: &Sandbox) {
    sandbox
        .sh("mkdir -p accounts/alice/homedir/public_html accounts/bob/homedir
            for i in $(seq 1 60); do echo \"alice-homedir-marker page $i\" > accounts/alice/homedir/public_html/page$i.html; done
            for i in $(seq 1 5000); do echo \"INSERT INTO customers VALUES ($i, 'very-private-database row $i');\"; done > accounts/alice/mysql.sql
            head -c 6000000 /dev/urandom > accounts/alice/homedir/photo.jpg
            head -c 1500000 /dev/urandom > accounts/bob/homedir/mail.mbox
            ln -s ../homedir accounts/bob/link
            mkfifo accounts/bob/pipe
            # rsync compares times by the second: what was made in the second of the copy would keep a time of its own.
            find accounts -depth -exec touch -h -d '2026-10-01 03:04:05.123456789' {} +")
        .ok();
}

/// /scripts/precpbackup and /scripts/postcpbackup, as the article has them with the command replaced.
fn write_hooks(sandbox: &Sandbox) {
    let strongroom = env!("CARGO_BIN_EXE_strongroom");
    let (vault, mountpoint) = (sandbox.str("encrypted"), sandbox.str("decrypted"));
    let pre = format!(
        "#!/bin/bash\nset -e\nstrongroom() {{ {strongroom} \"$@\"; }}\nstrongroom mount -S {vault} {mountpoint} < {}\n",
        sandbox.passfile()
    );
    let post = format!(
        "#!/bin/bash\nset -e\nstrongroom() {{ {strongroom} \"$@\"; }}\nstrongroom umount {mountpoint}\n"
    );
    for (name, text) in [("precpbackup", pre), ("postcpbackup", post)] {
        let path = sandbox.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

/// The job: a tarball for each account, and an incremental tree whose unchanged files are hard links into the day before.
fn job(sandbox: &Sandbox, day: u32) {
    let link = if day > 1 { format!("--link-dest=../day{}", day - 1) } else { String::new() };
    sandbox
        .sh(&format!(
            "mkdir -p decrypted/weekly
             for a in alice bob; do tar -C accounts -cf decrypted/weekly/cpmove-$a.tar $a; done
             rsync -a {link} accounts/ decrypted/day{day}/
             sync -f decrypted"
        ))
        .ok();
}

fn assert_no_plaintext(vault: &Path) {
    let mut stack = vec![vault.to_path_buf()];
    let mut files = 0;
    while let Some(path) = stack.pop() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for mark in MARKS {
            assert!(!name.contains(mark), "the name {name} shows {mark}");
        }
        if path.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        if !path.is_file() {
            continue;
        }
        files += 1;
        let bytes = fs::read(&path).unwrap();
        for mark in MARKS {
            assert!(
                !bytes.windows(mark.len()).any(|w| w == mark.as_bytes()),
                "{} holds the plaintext {mark}",
                path.display()
            );
        }
    }
    assert!(files > 4, "the vault has only {files} files: nothing was checked");
}

/// No file of the vault has the length of a plaintext file.
fn assert_no_plaintext_size(vault: &Path, plain: &Path) {
    let mut sizes = std::collections::BTreeSet::new();
    let mut stack = vec![plain.to_path_buf()];
    while let Some(path) = stack.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if meta.is_file() {
            sizes.insert(meta.len());
        }
    }
    assert!(sizes.len() > 3);
    for entry in fs::read_dir(vault.join("packs")).unwrap() {
        for pack in fs::read_dir(entry.unwrap().path()).unwrap() {
            let len = pack.unwrap().metadata().unwrap().len();
            assert_eq!(len % 4096, 0, "packs are padded");
            assert!(!sizes.contains(&len), "a pack is as long as a plaintext file: {len}");
        }
    }
}

#[test]
fn heavy_the_cpanel_job_runs_and_restores_from_a_copy_taken_while_mounted() {
    require_root();
    let sandbox = Sandbox::new();
    make_accounts(&sandbox);
    write_hooks(&sandbox);
    sandbox.init();

    sandbox.sh("./precpbackup").ok();
    sandbox.run(["is-mounted", &sandbox.str("decrypted")]).ok();
    job(&sandbox, 1);
    sandbox.sh("./postcpbackup").ok();
    sandbox.run(["is-mounted", &sandbox.str("decrypted")]).fails(1);
    assert_eq!(
        fs::read_dir(sandbox.mountpoint()).unwrap().count(),
        0,
        "nothing is left under the mountpoint"
    );

    // The second day adds hard links to the first.
    sandbox.sh("./precpbackup").ok();
    sandbox.sh("echo changed >> accounts/alice/mysql.sql; touch -d '2026-10-02 01:02:03.5' accounts/alice/mysql.sql").ok();
    job(&sandbox, 2);
    sandbox.run(["snapshot", "create", &sandbox.str("encrypted"), "--passfile", &sandbox.passfile()]).ok();
    // The offsite copy is taken while mounted.
    sandbox.sh("rsync -a --exclude live/ encrypted/ copy/").ok();
    sandbox
        .sh("cp -a decrypted/. expected/ 2>/dev/null || { mkdir expected && cp -a decrypted/. expected/; }")
        .ok();
    sandbox.sh("./postcpbackup").ok();

    assert_no_plaintext(&sandbox.vault());
    assert_no_plaintext_size(&sandbox.vault(), &sandbox.path("expected"));

    // Only the copy is left: no live state, no high-water mark, not this machine's vault.
    sandbox.sh("rm -rf encrypted state/*").ok();
    let fsck = sandbox.fsck(&sandbox.path("copy"));
    assert_eq!(fsck.code, 0, "{}{}", fsck.stdout, fsck.stderr);

    sandbox
        .run([
            "restore",
            &sandbox.str("copy"),
            "--to",
            &sandbox.str("back1"),
            "--passfile",
            &sandbox.passfile(),
        ])
        .ok();
    assert_same_tree(&sandbox.path("expected"), &sandbox.path("back1"));

    let recovery = fs::read(sandbox.path("recovery.txt")).unwrap();
    sandbox
        .run_with_input(
            [
                "restore",
                &sandbox.str("copy"),
                "latest:/day2",
                "--to",
                &sandbox.str("back2"),
                "--recovery-key",
            ],
            &recovery,
        )
        .ok();
    assert_same_tree(&sandbox.path("accounts"), &sandbox.path("back2"));
}

#[test]
fn heavy_the_copy_can_be_mounted_and_worked_on() {
    require_root();
    let sandbox = Sandbox::with_vault();
    make_accounts(&sandbox);
    sandbox.mount();
    job(&sandbox, 1);
    sandbox.umount();
    sandbox
        .sh("rsync -a --exclude live/ encrypted/ copy/ && rm -rf encrypted state/* && mv copy encrypted")
        .ok();
    sandbox.mount();
    assert_same_tree(&sandbox.path("accounts"), &sandbox.path("decrypted/day1"));
    job(&sandbox, 2);
    let after = crate::common::tree_digest(&sandbox.mountpoint());
    sandbox.umount();
    sandbox.mount();
    assert_eq!(after, crate::common::tree_digest(&sandbox.mountpoint()));
    // Unchanged files of the second day are links to the first, which was loaded from the snapshot.
    let links = sandbox.sh("diff -r --no-dereference --exclude pipe accounts decrypted/day2 && stat -c %h decrypted/day2/alice/homedir/photo.jpg").ok();
    assert_eq!(links.trim(), "2");
    sandbox.umount();
    let fsck = sandbox.fsck(&sandbox.vault());
    assert_eq!(fsck.code, 0, "{}{}", fsck.stdout, fsck.stderr);
}
