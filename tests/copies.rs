//! Copies of a vault: incomplete ones, older ones in the vault's place, and such with chain files missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Rng, Sandbox, seed};

/// A vault with three snapshots: `file` says which, and each has data of its own.
fn three_snapshots(seed: u64) -> (Sandbox, [BTreeSet<PathBuf>; 3]) {
    let mut rng = Rng::new(seed);
    let sandbox = Sandbox::with_vault();
    let packs = [1, 2, 3].map(|number| {
        sandbox.mount();
        fs::write(sandbox.mountpoint().join("file"), format!("snapshot {number}")).unwrap();
        fs::write(sandbox.mountpoint().join(format!("data-{number}")), rng.bytes(3_000_000)).unwrap();
        sandbox.umount();
        files_below(&sandbox.vault(), "packs")
    });
    (sandbox, packs)
}

/// The files below a directory, relative to `root`.
fn files_below(root: &Path, name: &str) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut stack = vec![root.join(name)];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else {
                files.insert(path.strip_prefix(root).unwrap().to_path_buf());
            }
        }
    }
    files
}

/// The chain file of a sequence number.
fn chain_file(vault: &Path, sequence: u32) -> PathBuf {
    let begin = format!("snapshots/{sequence:010}-");
    let found: Vec<PathBuf> = files_below(vault, "snapshots")
        .into_iter()
        .filter(|p| p.to_str().unwrap().starts_with(&begin))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    vault.join(&found[0])
}

fn copy_without_live(sandbox: &Sandbox, to: &str) {
    sandbox.sh(&format!("rsync -a --exclude live/ encrypted/ {to}/")).ok();
}

fn read_only_verbs<'a>(sandbox: &Sandbox, vault: &'a str) -> Vec<Vec<&'a str>> {
    fs::create_dir_all(sandbox.path("back")).unwrap();
    vec![vec!["snapshot", "list", vault], vec!["ls", vault], vec!["cat", vault, "latest:/file"]]
}

#[test]
fn heavy_a_snapshot_whose_packs_have_not_all_arrived_is_named_and_passed_over() {
    let (sandbox, packs) = three_snapshots(seed(0x5eed_0020));
    let new: Vec<&PathBuf> = packs[2].difference(&packs[1]).collect();
    assert!(new.len() >= 2, "a snapshot has packs of data and of trees: {new:?}");
    let name = chain_file(&sandbox.vault(), 3).file_name().unwrap().to_str().unwrap().to_string();

    // Whichever single pack is still on its way, or all of them.
    let mut cases: Vec<Vec<&PathBuf>> = new.iter().map(|pack| vec![*pack]).collect();
    cases.push(new);
    for (number, missing) in cases.iter().enumerate() {
        let copy = format!("copy{number}");
        copy_without_live(&sandbox, &copy);
        for pack in missing {
            fs::remove_file(sandbox.path(&copy).join(pack)).unwrap();
        }
        let at = sandbox.str(&copy);
        let info = sandbox.run(["info", &at, "--json"]).json();
        assert_eq!(info["latest_complete"], 2, "{info}");
        assert_eq!(info["snapshots"], 3, "{info}");
        assert_eq!(info["incomplete"], serde_json::json!([name]), "{info}");
        assert!(sandbox.run(["info", &at]).ok().contains(&name));

        let list = sandbox.keyed(&["snapshot", "list", &at]);
        assert_eq!(list.code, 0, "{list:?}");
        assert!(format!("{}{}", list.stdout, list.stderr).contains("incomplete"), "{list:?}");
        for verb in read_only_verbs(&sandbox, &at) {
            let done = sandbox.keyed(&verb);
            assert_eq!(done.code, 0, "{verb:?}: {done:?}");
            assert!(done.stderr.contains(&name), "{verb:?} names the incomplete snapshot: {}", done.stderr);
        }

        let to = format!("restored{number}");
        let restored = sandbox.keyed(&["restore", &at, "--to", &sandbox.str(&to)]);
        assert_eq!(restored.code, 0, "{restored:?}");
        assert!(restored.stderr.contains(&name), "{}", restored.stderr);
        assert_eq!(fs::read(sandbox.path(&to).join("file")).unwrap(), b"snapshot 2");
        assert!(!sandbox.path(&to).join("data-3").exists());
        assert_eq!(sandbox.cat(Path::new(&at), "latest:/file"), b"snapshot 2");

        // Asked for by number it is an error, not an older one.
        let asked = sandbox.keyed(&["restore", &at, "3:/data-3", "--to", &sandbox.str("no")]);
        assert!(matches!(asked.code, 3 | 18), "{asked:?}");
        assert!(asked.stderr.contains("is missing"), "{asked:?}");
        assert_eq!(sandbox.fsck(Path::new(&at)).code, 4);

        // When the rest has arrived, it is the newest one.
        copy_without_live(&sandbox, &copy);
        assert_eq!(sandbox.cat(Path::new(&at), "latest:/file"), b"snapshot 3");
        assert_eq!(sandbox.fsck(Path::new(&at)).code, 0);
    }

    // With no pack at all there is no `latest`.
    copy_without_live(&sandbox, "empty");
    fs::remove_dir_all(sandbox.path("empty/packs")).unwrap();
    let info = sandbox.run(["info", &sandbox.str("empty"), "--json"]).json();
    assert_eq!(info["latest_complete"], serde_json::Value::Null);
    let refused = sandbox.keyed(&["restore", &sandbox.str("empty"), "--to", &sandbox.str("no")]);
    assert!(matches!(refused.code, 18 | 22), "{refused:?}");
}

#[test]
fn heavy_an_incomplete_copy_can_be_mounted_as_of_its_newest_complete_snapshot() {
    let (sandbox, packs) = three_snapshots(seed(0x5eed_0021));
    copy_without_live(&sandbox, "copy");
    for pack in packs[2].difference(&packs[1]) {
        fs::remove_file(sandbox.path("copy").join(pack)).unwrap();
    }
    // Another machine: its own state directory.
    sandbox.sh("rm -rf encrypted state/* && mv copy encrypted").ok();
    fs::create_dir(sandbox.path("snapshot-mnt")).unwrap();
    let mounted =
        sandbox.keyed(&["mount", sandbox.vault_str(), &sandbox.str("snapshot-mnt"), "--snapshot", "latest"]);
    assert_eq!(mounted.code, 0, "{mounted:?}");
    assert_eq!(fs::read(sandbox.path("snapshot-mnt/file")).unwrap(), b"snapshot 2");
    sandbox.run(["umount", &sandbox.str("snapshot-mnt")]).ok();
}

/// Puts an older state in the vault's place, and checks that every verb refuses it until told otherwise.
#[track_caller]
fn assert_rollback_is_refused(sandbox: &Sandbox, expected: &[u8]) {
    let mountpoint = sandbox.str("decrypted");
    let refused = sandbox.keyed(&["mount", sandbox.vault_str(), &mountpoint]).fails(17);
    assert!(refused.contains("--accept-rollback"), "{refused}");
    sandbox.run(["is-mounted", &mountpoint]).fails(1);
    for verb in read_only_verbs(sandbox, sandbox.vault_str()) {
        let done = sandbox.keyed(&verb);
        assert_eq!(done.code, 17, "{verb:?}: {done:?}");
    }
    // Refusing changes nothing: it is refused again.
    sandbox.keyed(&["mount", sandbox.vault_str(), &mountpoint]).fails(17);
    sandbox.mount_with(&["--accept-rollback"]);
    assert_eq!(fs::read(sandbox.mountpoint().join("file")).unwrap(), expected);
    fs::write(sandbox.mountpoint().join("file"), "after the rollback").unwrap();
    sandbox.umount();
    // Accepted once: it is the vault now.
    sandbox.mount();
    assert_eq!(fs::read(sandbox.mountpoint().join("file")).unwrap(), b"after the rollback");
    sandbox.umount();
    sandbox.assert_clean();
}

/// FORMAT SNAP-8
#[test]
fn heavy_an_older_copy_in_the_vaults_place_is_refused() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    fs::write(sandbox.mountpoint().join("file"), "old").unwrap();
    sandbox.umount();
    copy_without_live(&sandbox, "copy");
    sandbox.mount();
    fs::write(sandbox.mountpoint().join("file"), "new").unwrap();
    sandbox.umount();
    // Read elsewhere an old copy is fine: that is what copies are for.
    let restored = sandbox.keyed(&["restore", &sandbox.str("copy"), "--to", &sandbox.str("restored")]);
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(fs::read(sandbox.path("restored/file")).unwrap(), b"old");
    sandbox.sh("rm -rf encrypted && mv copy encrypted").ok();
    assert_rollback_is_refused(&sandbox, b"old");
}

#[test]
fn heavy_an_older_image_of_the_whole_vault_is_refused() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    fs::write(sandbox.mountpoint().join("file"), "old").unwrap();
    sandbox.umount();
    // With the live state: as a restored disk image would be.
    sandbox.sh("cp -a encrypted image").ok();
    sandbox.mount();
    fs::write(sandbox.mountpoint().join("file"), "new").unwrap();
    sandbox.umount();
    sandbox.sh("rm -rf encrypted && mv image encrypted").ok();
    assert_rollback_is_refused(&sandbox, b"old");
}

/// The newest snapshot is deleted from under a mount. What this host has seen does not follow at the unmount.
#[test]
fn heavy_a_snapshot_that_was_deleted_from_under_a_mount_is_missed() {
    let sandbox = Sandbox::with_vault();
    for content in ["old", "new"] {
        sandbox.mount();
        fs::write(sandbox.mountpoint().join("file"), content).unwrap();
        sandbox.umount();
    }
    sandbox.mount();
    let snapshots = || {
        let listed = fs::read_dir(sandbox.vault().join("snapshots")).unwrap();
        let mut paths: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let before = snapshots();
    fs::remove_file(before.last().unwrap()).unwrap();
    // Whether the unmount itself complains is not the point.
    let unmounted = sandbox.run(["umount", &sandbox.str("decrypted")]);
    assert_eq!(snapshots().len(), before.len() - 1, "{unmounted:?}");
    let refused = sandbox.keyed(&["mount", sandbox.vault_str(), &sandbox.str("decrypted")]).fails(17);
    assert!(refused.contains("--accept-rollback"), "{refused}");
}

/// An older live state in a newer vault is refused as a rollback (17), whether it was copied after an unmount or from under
/// the mount, and whether this host has seen the newer one or not: the chain beside it has a snapshot that it doesn't know.
/// Nothing is changed by that. The way out is to throw it away, and then the tree is the newest snapshot's.
#[test]
fn heavy_an_older_live_state_in_a_newer_vault_is_not_believed() {
    for while_mounted in [false, true] {
        let sandbox = Sandbox::with_vault();
        sandbox.mount();
        fs::write(sandbox.mountpoint().join("file"), "old").unwrap();
        sandbox.umount();
        if while_mounted {
            sandbox.mount();
            fs::write(sandbox.mountpoint().join("file"), "older, never in a snapshot").unwrap();
            rustix::fs::syncfs(fs::File::open(sandbox.mountpoint()).unwrap()).unwrap();
        }
        sandbox.sh("cp -a encrypted/live old-live").ok();
        if while_mounted {
            fs::write(sandbox.mountpoint().join("file"), "new").unwrap();
            sandbox.umount();
        }
        sandbox.mount();
        fs::write(sandbox.mountpoint().join("file"), "new").unwrap();
        fs::write(sandbox.mountpoint().join("more"), "new").unwrap();
        sandbox.umount();
        sandbox.sh("rm -rf encrypted/live && cp -a old-live encrypted/live").ok();
        let mountpoint = sandbox.str("decrypted");
        for (host, knows) in [("that has seen the vault", true), ("that has never seen it", false)] {
            if !knows {
                sandbox.sh("rm -rf state/*").ok();
            }
            // Twice: refusing does not make it believable.
            for _ in 0..2 {
                let refused = sandbox.keyed(&["mount", sandbox.vault_str(), &mountpoint]);
                assert_eq!(
                    refused.code, 17,
                    "a host {host}, copied while mounted {while_mounted}: {refused:?}"
                );
                sandbox.run(["is-mounted", &mountpoint]).fails(1);
            }
        }
        // What needs no live state is not concerned.
        assert_eq!(sandbox.cat(&sandbox.vault(), "latest:/file"), b"new");
        sandbox.mount_with(&["--discard-live"]);
        assert_eq!(fs::read(sandbox.mountpoint().join("file")).unwrap(), b"new");
        assert_eq!(fs::read(sandbox.mountpoint().join("more")).unwrap(), b"new");
        sandbox.umount();
        sandbox.assert_clean();
    }
}

#[test]
fn heavy_a_vault_without_its_newest_snapshot_file_is_refused() {
    for live in [true, false] {
        let (sandbox, _) = three_snapshots(seed(0x5eed_0022));
        if !live {
            fs::remove_dir_all(sandbox.vault().join("live")).unwrap();
        }
        fs::remove_file(chain_file(&sandbox.vault(), 3)).unwrap();
        let mountpoint = sandbox.str("decrypted");
        sandbox.keyed(&["mount", sandbox.vault_str(), &mountpoint]).fails(17);
        for verb in read_only_verbs(&sandbox, sandbox.vault_str()) {
            let done = sandbox.keyed(&verb);
            assert_eq!(done.code, 17, "live {live}, {verb:?}: {done:?}");
        }
        sandbox.run(["is-mounted", &mountpoint]).fails(1);
    }
}

#[test]
fn heavy_a_vault_without_a_middle_snapshot_file_is_reported_and_refused() {
    for live in [true, false] {
        let (sandbox, _) = three_snapshots(seed(0x5eed_0023));
        if !live {
            fs::remove_dir_all(sandbox.vault().join("live")).unwrap();
        }
        fs::remove_file(chain_file(&sandbox.vault(), 2)).unwrap();
        let info = sandbox.run(["info", sandbox.vault_str(), "--json"]);
        assert_eq!(info.code, 18, "{info:?}");
        let json: serde_json::Value = serde_json::from_str(&info.stdout).unwrap();
        assert!(!json["problems"].as_array().unwrap().is_empty(), "{json}");
        let mounted = sandbox.keyed(&["mount", sandbox.vault_str(), &sandbox.str("decrypted")]);
        assert!(matches!(mounted.code, 17 | 18), "live {live}: {mounted:?}");
        let list = sandbox.keyed(&["snapshot", "list", sandbox.vault_str()]);
        assert!(list.stderr.contains("warning") || list.stderr.contains("error"), "{list:?}");
        assert_eq!(sandbox.fsck(&sandbox.vault()).code, 4);
    }
}

#[test]
fn heavy_a_removed_snapshot_leaves_a_chain_that_is_whole() {
    let (sandbox, _) = three_snapshots(seed(0x5eed_0024));
    sandbox.keyed(&["snapshot", "delete", sandbox.vault_str(), "2"]).ok();
    sandbox.keyed(&["gc", sandbox.vault_str()]).ok();
    sandbox.assert_clean();
    let info = sandbox.run(["info", sandbox.vault_str(), "--json"]).json();
    assert_eq!((&info["snapshots"], &info["problems"]), (&2.into(), &serde_json::json!([])), "{info}");
    let left: Vec<String> = sandbox.snapshots().iter().map(|s| s["seq"].to_string()).collect();
    assert!(
        left.contains(&"1".into()) && left.contains(&"3".into()) && !left.contains(&"2".into()),
        "{left:?}"
    );
    sandbox.keyed(&["restore", sandbox.vault_str(), "2", "--to", &sandbox.str("no")]).fails(22);
    for (number, data) in [("1", "data-1"), ("3", "data-3")] {
        assert_eq!(sandbox.cat(&sandbox.vault(), &format!("{number}:/{data}")).len(), 3_000_000);
    }
    sandbox.mount();
    assert_eq!(fs::read(sandbox.mountpoint().join("file")).unwrap(), b"snapshot 3");
    sandbox.umount();
}

#[test]
fn heavy_packs_and_chain_files_are_named_by_their_bytes() {
    let (sandbox, packs) = three_snapshots(seed(0x5eed_0025));
    assert!(packs[2].len() >= 4);
    for path in &packs[2] {
        let hash = blake3::hash(&fs::read(sandbox.vault().join(path)).unwrap()).to_hex().to_string();
        assert_eq!(path.to_str().unwrap(), format!("packs/{}/{hash}", &hash[..2]));
    }
    let chain = files_below(&sandbox.vault(), "snapshots");
    assert_eq!(chain.len(), 3);
    for (number, path) in chain.iter().enumerate() {
        let hash = blake3::hash(&fs::read(sandbox.vault().join(path)).unwrap()).to_hex().to_string();
        assert_eq!(path.to_str().unwrap(), format!("snapshots/{:010}-{hash}", number + 1));
    }
    // Nothing else stands beside them, and nobody else can read what does.
    let mut names: Vec<String> = fs::read_dir(sandbox.vault())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["live", "packs", "snapshots", "vault.json", "vault.json.bak"]);
}
