//! Unlocking: every way, every refusal, key slots, damaged and forged headers, and where secrets must not be found.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::{Finished, PASSPHRASE, Rng, Sandbox};

const OTHER: &str = "another passphrase altogether";

/// A verb that unlocks and does little else.
fn unlock(sandbox: &Sandbox, args: &[&str], input: &[u8]) -> Finished {
    sandbox.run_with_input([&["snapshot", "list", sandbox.vault_str()], args].concat(), input)
}

/// A vault with a passphrase (slot 1), a recovery key (2) and a keyfile (3).
fn vault_with_all_slots() -> Sandbox {
    let sandbox = Sandbox::with_vault();
    sandbox.private_file("key", &Rng::new(1).bytes(64));
    sandbox
        .keyed(&["key", "add", sandbox.vault_str(), "--new-keyfile", &sandbox.str("key"), "--label", "cron"])
        .ok();
    sandbox
}

fn recovery_key(sandbox: &Sandbox) -> Vec<u8> {
    fs::read(sandbox.path("recovery.txt")).unwrap()
}

fn slots(sandbox: &Sandbox) -> Vec<serde_json::Value> {
    sandbox.run(["key", "list", sandbox.vault_str(), "--json"]).json().as_array().unwrap().clone()
}

#[test]
fn every_way_to_unlock_works() {
    let sandbox = vault_with_all_slots();
    let pass = format!("{PASSPHRASE}\n");
    unlock(&sandbox, &["-S"], pass.as_bytes()).ok();
    unlock(&sandbox, &["-S"], PASSPHRASE.as_bytes()).ok();
    unlock(&sandbox, &["--stdin-pass"], pass.as_bytes()).ok();
    unlock(&sandbox, &["--passfile", &sandbox.passfile()], b"").ok();
    unlock(&sandbox, &["--keyfile", &sandbox.str("key")], b"").ok();
    unlock(&sandbox, &["--extpass", "cat enc.txt"], b"").ok();
    unlock(&sandbox, &["--extpass", "cat"], pass.as_bytes()).ok();
    unlock(&sandbox, &["--recovery-key"], &recovery_key(&sandbox)).ok();
    // As it is typed from paper: lower case, blanks for dashes.
    let typed = String::from_utf8(recovery_key(&sandbox)).unwrap().to_lowercase().replace('-', " ");
    unlock(&sandbox, &["--recovery-key"], typed.as_bytes()).ok();
    let binary = env!("CARGO_BIN_EXE_strongroom");
    sandbox.sh(&format!("{binary} snapshot list encrypted --pass-fd 7 7< enc.txt")).ok();
    sandbox.sh(&format!("cat enc.txt | {binary} snapshot list encrypted --pass-fd 5 5<&0 < /dev/null")).ok();

    fs::create_dir(sandbox.path("credentials")).unwrap();
    sandbox.private_file("credentials/vault", pass.as_bytes());
    let systemd = |name: &str| {
        let mut command = sandbox.strongroom();
        command.env("CREDENTIALS_DIRECTORY", sandbox.path("credentials"));
        command.args(["snapshot", "list", sandbox.vault_str(), "--credential", name]).output().unwrap()
    };
    assert!(systemd("vault").status.success());
    assert_ne!(systemd("missing").status.code(), Some(0));
    assert_eq!(systemd("../enc.txt").status.code(), Some(2));
    // In a unit with User= it has an ACL, whose mask is shown as the bits of the group. One for all is none of systemd's.
    let path = sandbox.path("credentials/vault");
    let chmod = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    for (mode, code) in [(0o440, 0), (0o400, 0), (0o444, 15), (0o600, 0)] {
        chmod(mode);
        let output = systemd("vault");
        assert_eq!(output.status.code(), Some(code), "{mode:o}: {output:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("chmod"), "{output:?}");
    }
    // Elsewhere the group is the group.
    chmod(0o440);
    unlock(&sandbox, &["--passfile", path.to_str().unwrap()], b"").fails(15);
    chmod(0o600);
    unlock(&sandbox, &["--credential", "vault"], b"").fails(2);
}

#[test]
fn heavy_a_mount_takes_every_kind_of_key() {
    let sandbox = vault_with_all_slots();
    let mountpoint = sandbox.str("decrypted");
    let ways: [(&[&str], Vec<u8>); 5] = [
        (&["-S"], PASSPHRASE.into()),
        (&["--keyfile", &sandbox.str("key")], Vec::new()),
        (&["--recovery-key"], recovery_key(&sandbox)),
        (&["--extpass", "cat enc.txt"], Vec::new()),
        (&["-o", &format!("keyfile={}", sandbox.str("key"))], Vec::new()),
    ];
    for (args, input) in &ways {
        sandbox.run_with_input([&["mount", sandbox.vault_str(), &mountpoint], *args].concat(), input).ok();
        fs::write(sandbox.mountpoint().join("file"), args.join(" ")).unwrap();
        sandbox.umount();
        assert_eq!(sandbox.cat(&sandbox.vault(), "latest:/file"), args.join(" ").into_bytes());
    }
    sandbox.run_with_input(["mount", "-S", sandbox.vault_str(), &mountpoint], b"wrong").fails(11);
    sandbox.run(["is-mounted", &mountpoint]).fails(1);
}

#[test]
fn a_wrong_key_of_any_kind_is_told_from_damage() {
    let sandbox = vault_with_all_slots();
    let other = Sandbox::with_vault();
    unlock(&sandbox, &["-S"], b"wrong").fails(11);
    unlock(&sandbox, &["-S"], format!("{PASSPHRASE} ").as_bytes()).fails(11);
    unlock(&sandbox, &["-S"], PASSPHRASE.to_uppercase().as_bytes()).fails(11);
    let wrong = sandbox.private_file("wrong", &Rng::new(2).bytes(64));
    unlock(&sandbox, &["--keyfile", wrong.to_str().unwrap()], b"").fails(11);
    unlock(&sandbox, &["--recovery-key"], &recovery_key(&other)).fails(11);
    // A typing error is found before it is tried.
    let mut typo = recovery_key(&sandbox);
    typo[10] = if typo[10] == b'7' { b'8' } else { b'7' };
    let said = unlock(&sandbox, &["--recovery-key"], &typo).fails(11);
    assert!(said.contains("no recovery key"), "{said}");
    // A key of one kind is none of another.
    unlock(&sandbox, &["-S"], &recovery_key(&sandbox)).fails(11);
    unlock(&sandbox, &["--passfile", &sandbox.str("key")], b"").fails(11);
    unlock(&sandbox, &["-S"], b"").fails(2);
    unlock(&sandbox, &["-S"], b"\n").fails(2);
    unlock(&sandbox, &[], b"").fails(2);
    unlock(&sandbox, &["-S", "--passfile", &sandbox.passfile()], b"x").fails(2);
    let failing = unlock(&sandbox, &["--extpass", "cat enc.txt; exit 9"], b"");
    assert_eq!(failing.code, 1, "a failed program's output is not used: {failing:?}");
}

#[test]
fn secrets_that_others_can_read_are_refused_with_the_command_to_run() {
    let sandbox = vault_with_all_slots();
    for mode in [0o644, 0o640, 0o604, 0o660, 0o666, 0o700 | 0o040, 0o777] {
        for (option, file) in [("--passfile", "enc.txt"), ("--keyfile", "key")] {
            let path = sandbox.path(file);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let said = unlock(&sandbox, &[option, &sandbox.str(file)], b"").fails(15);
            assert!(said.contains(&format!("chmod 600 {}", path.display())), "{mode:o}: {said}");
        }
    }
    for mode in [0o600, 0o400, 0o700] {
        fs::set_permissions(sandbox.path("enc.txt"), fs::Permissions::from_mode(mode)).unwrap();
        unlock(&sandbox, &["--passfile", &sandbox.passfile()], b"").ok();
    }
    let mountpoint = sandbox.str("decrypted");
    fs::set_permissions(sandbox.path("enc.txt"), fs::Permissions::from_mode(0o644)).unwrap();
    let option = format!("passfile={}", sandbox.passfile());
    sandbox.run(["mount", sandbox.vault_str(), &mountpoint, "-o", &option]).fails(15);
    sandbox
        .run(["init", &sandbox.str("new"), "--passfile", &sandbox.passfile(), "--no-recovery-key"])
        .fails(15);
    assert!(!sandbox.path("new/vault.json").exists());
    unlock(&sandbox, &["--passfile", &sandbox.str("missing")], b"").fails(20);
    // What `init` writes itself is private.
    assert_eq!(fs::metadata(sandbox.path("recovery.txt")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(sandbox.vault()).unwrap().permissions().mode() & 0o077, 0);
}

/// Changes one hex digit of the public key: the checksum no longer fits.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = find(&bytes, b"\"public_key\": \"") + 30;
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    fs::write(path, bytes).unwrap();
}

fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|w| w == needle).unwrap_or_else(|| panic!("no {needle:?}"))
}

/// Changes both copies of the header as somebody without a key can: with a checksum that fits.
fn forge(sandbox: &Sandbox, from: &str, to: &str) {
    for name in ["vault.json", "vault.json.bak"] {
        let path = sandbox.vault().join(name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        fs::write(&path, with_checksum(&text.replacen(from, to, 1))).unwrap();
    }
}

/// FORMAT section 3: the hash of all bytes before the comma that precedes the member.
fn with_checksum(text: &str) -> String {
    let end = text.rfind(",\n  \"checksum\"").expect("a checksum");
    let hash = blake3::hash(&text.as_bytes()[..end]).to_hex();
    format!("{},\n  \"checksum\": \"{hash}\"\n}}\n", &text[..end])
}

#[test]
fn the_test_computes_checksums_as_the_format_says() {
    let sandbox = Sandbox::with_vault();
    let text = fs::read_to_string(sandbox.vault().join("vault.json")).unwrap();
    assert_eq!(with_checksum(&text), text);
    assert_eq!(text, fs::read_to_string(sandbox.vault().join("vault.json.bak")).unwrap());
}

#[test]
fn one_copy_of_the_header_is_enough_and_says_so() {
    let passfile = |sandbox: &Sandbox| ["--passfile".to_string(), sandbox.passfile()];
    for name in ["vault.json", "vault.json.bak"] {
        for remove in [false, true] {
            let sandbox = Sandbox::with_vault();
            let path = sandbox.vault().join(name);
            if remove {
                fs::remove_file(&path).unwrap()
            } else {
                damage(&path)
            }
            let args = passfile(&sandbox);
            let done = unlock(&sandbox, &[&args[0], &args[1]], b"");
            assert_eq!(done.code, 0, "{name}, removed: {remove}: {done:?}");
            assert!(done.stderr.contains("warning") && done.stderr.contains(name), "{name}: {}", done.stderr);
            // The key is still wrong when it is wrong.
            unlock(&sandbox, &["-S"], b"wrong").fails(11);
            sandbox.run(["info", sandbox.vault_str()]).fails(18);
            // Writing the header again makes both copies whole.
            let second = sandbox.private_file("second", &Rng::new(3).bytes(32));
            sandbox
                .keyed(&["key", "add", sandbox.vault_str(), "--new-keyfile", second.to_str().unwrap()])
                .ok();
            sandbox.run(["info", sandbox.vault_str()]).ok();
            assert_eq!(
                fs::read(sandbox.vault().join("vault.json")).unwrap(),
                fs::read(sandbox.vault().join("vault.json.bak")).unwrap()
            );
        }
    }
}

#[test]
fn headers_that_can_not_be_used_have_codes_of_their_own() {
    let sandbox = Sandbox::with_vault();
    for name in ["vault.json", "vault.json.bak"] {
        damage(&sandbox.vault().join(name));
    }
    let said = unlock(&sandbox, &["-S"], PASSPHRASE.as_bytes()).fails(12);
    assert!(said.contains("copy"), "what to do: {said}");
    sandbox.run(["info", sandbox.vault_str()]).fails(12);

    // Cut off, as after a full disk.
    let sandbox = Sandbox::with_vault();
    for name in ["vault.json", "vault.json.bak"] {
        let path = sandbox.vault().join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 40]).unwrap();
    }
    let cut = unlock(&sandbox, &["-S"], PASSPHRASE.as_bytes());
    assert!(matches!(cut.code, 10 | 12), "{cut:?}");

    // A newer version says so whatever else it changed.
    for fix in [true, false] {
        let sandbox = Sandbox::with_vault();
        forge(&sandbox, "\"strongroom\": 1", "\"strongroom\": 2");
        if !fix {
            for name in ["vault.json", "vault.json.bak"] {
                damage(&sandbox.vault().join(name));
            }
        }
        let said = unlock(&sandbox, &["-S"], PASSPHRASE.as_bytes()).fails(13);
        assert!(said.contains('2') && said.contains("newer"), "{said}");
    }

    let sandbox = Sandbox::new();
    let not_a_vault = |name: &str| sandbox.keyed(&["snapshot", "list", &sandbox.str(name)]).fails(10);
    assert!(not_a_vault("missing").contains("missing"));
    not_a_vault("decrypted");
    not_a_vault("enc.txt");
    fs::create_dir(sandbox.path("strange")).unwrap();
    for text in ["", "hello", "[1]", "{}", "\u{0}\u{0}\u{0}"] {
        fs::write(sandbox.path("strange/vault.json"), text).unwrap();
        fs::write(sandbox.path("strange/vault.json.bak"), text).unwrap();
        not_a_vault("strange");
    }
    // The passphrase is not asked for before that is known.
    sandbox.run(["mount", &sandbox.str("strange"), &sandbox.str("decrypted")]).fails(10);
}

#[test]
fn a_header_changed_without_a_key_is_refused() {
    // (what is replaced, by what, the codes that may be said): 11 when the change breaks the slot that is opened.
    let cases: [(&str, &str, &[i32]); 7] = [
        ("\"label\": \"first\"", "\"label\": \"other\"", &[14]),
        ("\"label\": \"recovery\"", "\"label\": \"recoverx\"", &[14]),
        ("\"generation\": 1", "\"generation\": 2", &[14]),
        ("\"min\": 524288", "\"min\": 524290", &[14]),
        ("\"cipher\": \"chacha20-poly1305\"", "\"cipher\": \"aes-256-gcm\"", &[11, 14]),
        ("\"t\": ", "\"t\": 1", &[11, 14]),
        ("\"created\": \"2", "\"created\": \"1", &[14]),
    ];
    for (from, to, codes) in cases {
        let sandbox = Sandbox::with_vault();
        forge(&sandbox, from, to);
        let done = sandbox.keyed(&["snapshot", "list", sandbox.vault_str()]);
        assert!(codes.contains(&done.code), "{from} -> {to}: {done:?}");
        let mounted = sandbox.keyed(&["mount", sandbox.vault_str(), &sandbox.str("decrypted")]);
        assert_eq!(mounted.code, done.code, "{from} -> {to}: {mounted:?}");
        assert_eq!(sandbox.fsck(&sandbox.vault()).code & !12, 0, "fsck: damage or refusal, no crash");
        assert_ne!(sandbox.fsck(&sandbox.vault()).code, 0);
    }
    // A slot taken out, with everything else as it was.
    let sandbox = Sandbox::with_vault();
    for name in ["vault.json", "vault.json.bak"] {
        let path = sandbox.vault().join(name);
        let text = fs::read_to_string(&path).unwrap();
        let begin = text.find("    },\n    {\n      \"id\": 2").expect("a second slot");
        let end = text.find("\n  ],").expect("the end of the slots");
        let cut = format!("{}    }}{}", &text[..begin], &text[end..]);
        fs::write(&path, with_checksum(&cut)).unwrap();
    }
    assert_eq!(slots(&sandbox).len(), 1, "the forged header is well-formed");
    unlock(&sandbox, &["-S"], PASSPHRASE.as_bytes()).fails(14);
}

#[test]
fn keys_of_another_vault_are_refused() {
    let (one, two) = (Sandbox::with_vault(), Sandbox::with_vault());
    let public = |sandbox: &Sandbox| {
        let text = fs::read_to_string(sandbox.vault().join("vault.json")).unwrap();
        text.lines().find(|line| line.contains("\"public_key\"")).unwrap().to_string()
    };
    // Packs would be sealed to somebody else.
    forge(&one, &public(&one), &public(&two));
    let done = one.keyed(&["snapshot", "list", one.vault_str()]);
    assert!(matches!(done.code, 11 | 14), "{done:?}");
}

#[test]
fn heavy_an_older_header_is_a_rollback() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    sandbox.umount();
    sandbox.sh("cp encrypted/vault.json encrypted/vault.json.bak .").ok();
    let new = sandbox.private_file("new.txt", OTHER.as_bytes());
    sandbox
        .keyed(&[
            "key",
            "change",
            sandbox.vault_str(),
            "--new-passfile",
            new.to_str().unwrap(),
            "--kdf-time",
            "0",
        ])
        .ok();
    // The removed passphrase is back, with the header that it opens.
    sandbox.sh("cp vault.json vault.json.bak encrypted/").ok();
    let mounted = sandbox.keyed(&["mount", sandbox.vault_str(), &sandbox.str("decrypted")]).fails(17);
    assert!(mounted.contains("--accept-rollback"), "{mounted}");
}

#[test]
fn key_slots_are_added_listed_changed_and_removed() {
    let sandbox = vault_with_all_slots();
    let listed = slots(&sandbox);
    let kinds: Vec<(u64, &str, &str)> = listed
        .iter()
        .map(|s| (s["id"].as_u64().unwrap(), s["kind"].as_str().unwrap(), s["label"].as_str().unwrap()))
        .collect();
    assert_eq!(kinds, [(1, "passphrase", "first"), (2, "recovery", "recovery"), (3, "keyfile", "cron")]);

    // Changed: the old one opens nothing, with either copy of the header.
    let vault = sandbox.vault_str();
    let new = sandbox.private_file("new.txt", format!("{OTHER}\n").as_bytes());
    let new = new.to_str().unwrap();
    sandbox.keyed(&["key", "change", vault, "--new-passfile", new, "--kdf-time", "0"]).ok();
    unlock(&sandbox, &["-S"], PASSPHRASE.as_bytes()).fails(11);
    unlock(&sandbox, &["-S"], OTHER.as_bytes()).ok();
    fs::remove_file(sandbox.vault().join("vault.json")).unwrap();
    unlock(&sandbox, &["-S"], PASSPHRASE.as_bytes()).fails(11);
    unlock(&sandbox, &["-S"], OTHER.as_bytes()).ok();
    let ids: Vec<u64> = slots(&sandbox).iter().map(|s| s["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), 3);
    assert!(!ids.contains(&1), "numbers are not used again: {ids:?}");

    // Added by another key: a second passphrase and a second recovery key.
    let key = sandbox.str("key");
    sandbox
        .run([
            "key",
            "add",
            vault,
            "--keyfile",
            &key,
            "--new-passfile",
            &sandbox.passfile(),
            "--kdf-time",
            "0",
        ])
        .ok();
    unlock(&sandbox, &["-S"], PASSPHRASE.as_bytes()).ok();
    sandbox
        .run(["key", "add", vault, "--keyfile", &key, "--new-recovery-key-out", &sandbox.str("second.txt")])
        .ok();
    unlock(&sandbox, &["--recovery-key"], &fs::read(sandbox.path("second.txt")).unwrap()).ok();
    unlock(&sandbox, &["--recovery-key"], &recovery_key(&sandbox)).ok();
    assert_eq!(fs::metadata(sandbox.path("second.txt")).unwrap().permissions().mode() & 0o777, 0o600);
    // Never over a file that is there.
    let before = slots(&sandbox).len();
    sandbox
        .run(["key", "add", vault, "--keyfile", &key, "--new-recovery-key-out", &sandbox.str("second.txt")])
        .fails(20);
    assert_eq!(slots(&sandbox).len(), before);
    unlock(&sandbox, &["--recovery-key"], &fs::read(sandbox.path("second.txt")).unwrap()).ok();

    // Refusals.
    let add = |args: &[&str]| sandbox.run([&["key", "add", vault, "--keyfile", &key], args].concat());
    add(&["--new-passfile", new, "--label", &"x".repeat(65)]).fails(2);
    add(&["--new-keyfile", &sandbox.str("missing")]).fails(20);
    sandbox.private_file("short", b"too short");
    add(&["--new-keyfile", &sandbox.str("short")]).fails(2);
    sandbox.run_with_input(["key", "add", vault, "-S", "--new-passfile", new], b"wrong").fails(11);
    sandbox.run(["key", "remove", vault, "99", "--keyfile", &key]).fails(22);

    // Removed one after the other, but never the last.
    let ids: Vec<u64> = slots(&sandbox).iter().map(|s| s["id"].as_u64().unwrap()).collect();
    for id in ids.iter().filter(|id| **id != 3) {
        sandbox.run(["key", "remove", vault, &id.to_string(), "--keyfile", &key]).ok();
    }
    let said = sandbox.run(["key", "remove", vault, "3", "--keyfile", &key]).fails(2);
    assert!(said.contains("only key slot"), "{said}");
    unlock(&sandbox, &["-S"], PASSPHRASE.as_bytes()).fails(11);
    unlock(&sandbox, &["--recovery-key"], &recovery_key(&sandbox)).fails(11);
    unlock(&sandbox, &["--keyfile", &key], b"").ok();
}

/// A printed key does not become void by the way.
#[test]
fn a_recovery_key_is_not_replaced_unasked() {
    let sandbox = vault_with_all_slots();
    let vault = sandbox.vault_str();
    let new = sandbox.private_file("new.txt", format!("{OTHER}\n").as_bytes());
    let change = [
        "key",
        "change",
        vault,
        "--recovery-key",
        "--new-passfile",
        new.to_str().unwrap(),
        "--kdf-time",
        "0",
    ];
    let (before, header) = (slots(&sandbox), fs::read(sandbox.vault().join("vault.json")).unwrap());
    let said = sandbox.run_with_input(change, &recovery_key(&sandbox)).fails(2);
    let made = before[1]["created"].as_str().unwrap();
    assert!(said.contains("slot 2") && said.contains(made) && said.contains("recovery"), "{said}");
    assert!(said.contains("key add --recovery-key") && said.contains("--replace-recovery-key"), "{said}");
    assert_eq!(fs::read(sandbox.vault().join("vault.json")).unwrap(), header);
    unlock(&sandbox, &["--recovery-key"], &recovery_key(&sandbox)).ok();
    // An answer that is piped is none.
    let piped = [recovery_key(&sandbox), b"\ny\n".to_vec()].concat();
    sandbox.run_with_input(change, &piped).fails(2);
    // On a terminal it is asked for; `script` is one.
    let ask = |answer: &str, code: i32| {
        let key = String::from_utf8(recovery_key(&sandbox)).unwrap();
        let program = env!("CARGO_BIN_EXE_strongroom");
        let command = format!("{program} {}", change.join(" "));
        let typed = format!("{}\n{answer}\n", key.trim());
        let mut script = sandbox.command("script");
        script.args(["-qec", &command, "/dev/null"]);
        script.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = script.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), typed.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains("Replace it? [y/N]") && said.contains(made), "{said}");
        said
    };
    ask("n", 2);
    ask("", 2);
    assert_eq!(slots(&sandbox), before);
    assert!(ask("y", 0).contains("is void"));
    unlock(&sandbox, &["--recovery-key"], &recovery_key(&sandbox)).fails(11);
    unlock(&sandbox, &["-S"], OTHER.as_bytes()).ok();
    // By the flag, for scripts.
    let second = sandbox.str("second.txt");
    sandbox
        .run_with_input(["key", "add", vault, "-S", "--new-recovery-key-out", &second], OTHER.as_bytes())
        .ok();
    let key = fs::read(sandbox.path("second.txt")).unwrap();
    let done = sandbox.run_with_input([&change[..], &["--replace-recovery-key"]].concat(), &key);
    assert!(done.code == 0 && done.stderr.contains("is void; destroy the paper"), "{done:?}");
    unlock(&sandbox, &["--recovery-key"], &key).fails(11);
}

#[test]
fn a_header_holds_32_slots_and_no_more() {
    let sandbox = vault_with_all_slots();
    let key = sandbox.str("key");
    let add = || sandbox.run(["key", "add", sandbox.vault_str(), "--keyfile", &key, "--new-keyfile", &key]);
    for _ in 3..32 {
        add().ok();
    }
    assert_eq!(slots(&sandbox).len(), 32);
    let said = add().fails(2);
    assert!(said.contains("32"), "{said}");
    unlock(&sandbox, &["-S"], PASSPHRASE.as_bytes()).ok();
}

#[test]
fn heavy_keys_can_be_changed_while_mounted() {
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    fs::write(sandbox.mountpoint().join("file"), "x").unwrap();
    let new = sandbox.private_file("new.txt", OTHER.as_bytes());
    sandbox
        .keyed(&[
            "key",
            "change",
            sandbox.vault_str(),
            "--new-passfile",
            new.to_str().unwrap(),
            "--kdf-time",
            "0",
        ])
        .ok();
    fs::write(sandbox.mountpoint().join("file"), "y").unwrap();
    sandbox.umount();
    unlock(&sandbox, &["-S"], PASSPHRASE.as_bytes()).fails(11);
    fs::copy(&new, sandbox.passfile()).unwrap();
    assert_eq!(sandbox.cat(&sandbox.vault(), "latest:/file"), b"y");
    sandbox.assert_clean();
}

/// Whether a secret stands anywhere in the files below a directory.
fn stands_below(dir: &Path, secret: &[u8]) -> Option<String> {
    let mut stack = vec![dir.to_path_buf()];
    while let Some(path) = stack.pop() {
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if kind.is_file() && fs::read(&path).unwrap().windows(secret.len()).any(|w| w == secret) {
            return Some(path.display().to_string());
        }
    }
    None
}

#[test]
fn heavy_secrets_are_in_no_argument_environment_log_or_core_dump() {
    let sandbox = vault_with_all_slots();
    let (log, mountpoint) = (sandbox.str("log"), sandbox.str("decrypted"));
    let keyfile = fs::read(sandbox.path("key")).unwrap();
    let recovery = recovery_key(&sandbox);
    let recovery = recovery.trim_ascii_end();
    let secrets: [&[u8]; 3] = [PASSPHRASE.as_bytes(), &keyfile, recovery];
    let ways: [(&[&str], &[u8]); 4] = [
        (&["-S"], PASSPHRASE.as_bytes()),
        (&["--passfile", &sandbox.passfile()], b""),
        (&["--keyfile", &sandbox.str("key")], b""),
        (&["--recovery-key"], recovery),
    ];
    for (args, input) in ways {
        let all = [&["mount", sandbox.vault_str(), &mountpoint, "-vv", "--log", &log], args].concat();
        let said = sandbox.run_with_input(all, input);
        assert_eq!(said.code, 0, "{said:?}");
        fs::write(sandbox.mountpoint().join("file"), args.join(" ")).unwrap();
        let pid = sandbox.daemon_pid();
        for name in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap();
            for secret in secrets {
                assert!(
                    !bytes.windows(secret.len()).any(|w| w == secret),
                    "a secret is in /proc/{pid}/{name}"
                );
            }
        }
        // What can be read of the process by others of its user is what it was started with.
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!cmdline.is_empty());
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(
            core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(),
            ["0", "0"],
            "no core dumps: {core}"
        );
        sandbox.umount();
        for secret in secrets {
            assert!(
                !format!("{}{}", said.stdout, said.stderr)
                    .as_bytes()
                    .windows(secret.len())
                    .any(|w| w == secret)
            );
        }
    }
    assert!(fs::metadata(&log).unwrap().len() > 0, "something was logged");
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o077, 0, "the log is private");
    for dir in [sandbox.vault(), sandbox.path("state"), sandbox.path("log")] {
        for secret in secrets {
            assert_eq!(stands_below(&dir, secret), None, "a secret below {}", dir.display());
        }
    }
}
