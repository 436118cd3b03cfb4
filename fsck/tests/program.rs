//! The program itself: keys, exit codes, rescue.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::*;
use tempfile::TempDir;

struct Place {
    dir: TempDir,
    sample: Sample,
}

impl Place {
    fn new() -> Self {
        let (dir, sample) = (TempDir::new().unwrap(), sample(1));
        sample.vault.files.write_to(&dir.path().join("vault"));
        let place = Self { dir, sample };
        place.secret("pass", &[PASSPHRASE, b"\n"].concat(), 0o600);
        place
    }

    fn secret(&self, name: &str, bytes: &[u8], mode: u32) {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn run(&self, args: &[&str], stdin: &[u8]) -> (i32, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fsck-strongroom"))
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The program may end without reading its input.
        child.stdin.take().unwrap().write_all(stdin).ok();
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        (status.code().unwrap(), String::from_utf8([stdout, stderr].concat()).unwrap())
    }

    #[track_caller]
    fn expect(&self, code: i32, args: &[&str], text: &str) -> String {
        let (found, out) = self.run(args, b"");
        assert!(found == code && out.contains(text), "{args:?}: exit code {found}\n{out}");
        out
    }

    fn damage(&self, path: &str, at: usize) {
        let path = self.dir.path().join("vault").join(path);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn every_key_option_opens_the_vault() {
    let p = Place::new();
    p.expect(0, &["--passfile", "pass", "vault"], "vault: checked: 2 snapshots");
    p.expect(0, &["-n", "-f", "-C0", "--no-key", "vault"], "without a key");
    p.expect(0, &["-a", "--quick", "--passfile", "pass", "vault"], "clean");
    p.secret("key", KEYFILE, 0o400);
    p.expect(0, &["--keyfile", "key", "vault"], "clean");
    assert_eq!(p.run(&["-S", "vault"], &[PASSPHRASE, b"\n"].concat()).0, 0);
    assert_eq!(p.run(&["-S", "vault"], PASSPHRASE).0, 0);
    // Written once by hand from the format, for the key 33 33 ... 33.
    let mut bits = String::new();
    let check = h(&[&b"strongroom recovery v1"[..], &RECOVERY].concat());
    RECOVERY.iter().chain(&check[..3]).for_each(|b| bits.push_str(&format!("{b:08b}")));
    let symbols: String = (0..56)
        .map(|i| {
            let n = usize::from_str_radix(&bits[5 * i..5 * i + 5], 2).unwrap();
            b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[n] as char
        })
        .collect();
    let recovery = format!("sr1-{}\n", symbols.to_lowercase());
    assert_eq!(p.run(&["--recovery-key", "-", "vault"], recovery.as_bytes()).0, 0);
    p.secret("recovery", recovery.as_bytes(), 0o600);
    p.expect(0, &["--recovery-key", "recovery", "vault"], "clean");
}

#[test]
fn exit_codes() {
    let p = Place::new();
    p.expect(16, &[], "Usage");
    p.expect(16, &["--frobnicate", "vault"], "Usage");
    p.expect(16, &["--passfile", "pass", "--no-key", "vault"], "cannot be used");
    p.expect(16, &["--restore", "1", "vault"], "--to");
    p.expect(16, &["--snapshot", "first", "vault"], "latest");
    p.expect(0, &["--help"], "Exit status");
    p.expect(0, &["--version"], "fsck.strongroom");
    p.secret("wrong", b"wrong", 0o600);
    p.expect(8, &["--passfile", "wrong", "vault"], "wrong passphrase");
    p.expect(8, &["--passfile", "absent", "vault"], "absent");
    p.expect(8, &["--passfile", "pass", "nowhere"], "nowhere");
    p.expect(8, &["--no-key", "."], "not a Strongroom vault");
    p.secret("open", PASSPHRASE, 0o640);
    p.expect(8, &["--passfile", "open", "vault"], "chmod go-rwx 'open'");
    p.expect(8, &["--passfile", "pass", "--snapshot", "9", "vault"], "no snapshot 9");
    p.damage(&p.sample.packs[2].path, 1300);
    p.expect(4, &["--passfile", "pass", "vault"], "affected: snapshot 2: new: ");
    p.expect(4, &["--no-key", "vault"], "LAY-1");
    p.expect(0, &["--passfile", "pass", "--snapshot", "1", "vault"], "clean");
    let out = p.expect(4, &["--json", "--passfile", "pass", "vault"], "");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["latest"], 2);
    assert!(
        json["findings"].as_array().unwrap().iter().any(|f| f["class"] == "affected" && f["path"] == "new")
    );
}

#[test]
fn the_vault_is_never_written_to() {
    let p = Place::new();
    let vault = p.dir.path().join("vault");
    let list = || {
        p.sample
            .vault
            .files
            .0
            .keys()
            .map(|k| fs::metadata(vault.join(k)).unwrap())
            .map(|m| (m.ino(), m.mtime_nsec(), m.len()))
            .collect::<Vec<_>>()
    };
    let before = list();
    p.damage("vault.json", 700);
    let damaged = list();
    p.expect(4, &["-y", "--passfile", "pass", "vault"], "vault.json");
    assert_eq!(list(), damaged);
    assert_eq!(before.len(), damaged.len());
}

fn read(to: &Path, path: &str) -> Vec<u8> {
    fs::read(to.join(path)).unwrap()
}

#[test]
fn rescue_brings_everything_back() {
    let p = Place::new();
    let root = rustix::process::geteuid().is_root();
    let (code, out) = p.run(&["--passfile", "pass", "--restore", "1", "--to", "out", "vault"], b"");
    let to = p.dir.path().join("out");
    if root {
        assert_eq!(code, 0, "{out}");
        let device = fs::metadata(to.join("block")).unwrap();
        assert!(device.file_type().is_block_device() && device.rdev() == rustix::fs::makedev(8, 1));
    }
    assert_eq!(read(&to, "large"), [noise(1, 300_000), vec![7; 200_000]].concat());
    let mut object = vec![0; 6000];
    object[100..1100].copy_from_slice(&noise(1, 300_000)[5..1005]);
    object[1150..1160].fill(7);
    object[5000..5005].copy_from_slice(b"short");
    assert_eq!(read(&to, "object"), object);
    assert_eq!(read(&to, "holes"), vec![0; 1 << 20]);
    assert!(fs::metadata(to.join("holes")).unwrap().blocks() < 100);
    assert_eq!(read(&to, "dir/deep"), b"deep\0\0\0\0\0\0");
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("dir/deep"));
    let meta = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
    assert_eq!(meta("hard-a").ino(), meta("dir/hard-b").ino());
    assert!(meta("fifo").file_type().is_fifo() && meta("socket").file_type().is_socket());
    assert_eq!(meta("large").mode() & 0o7777, 0o644);
    for path in ["", "dir", "large", "link", "fifo", "hard-a"] {
        assert_eq!((meta(path).mtime(), meta(path).mtime_nsec()), (1_700_000_000, 123_456_789), "{path}");
    }
    let mut value = [0u8; 16];
    if let Ok(n) = rustix::fs::getxattr(to.join("xattrs"), "user.b", &mut value[..]) {
        assert_eq!(value[..n], [0, 255]);
    }
    // A destination with something in it is refused.
    p.expect(8, &["--passfile", "pass", "--restore", "2", "--to", "out", "vault"], "not empty");
    p.expect(0, &["--passfile", "pass", "--restore", "latest", "--to", "out2", "vault"], "whole");
    assert_eq!(read(&p.dir.path().join("out2"), "new"), noise(9, 50_000));
}

#[test]
fn rescue_goes_on_past_damage_and_names_it() {
    let p = Place::new();
    // The second frame of the first chunk: "large" and "object" use it in snapshot 1.
    p.damage(&p.sample.packs[0].path, 1168 + 131_088 + 10);
    let (code, out) = p.run(&["--passfile", "pass", "--restore", "1", "--to", "out", "vault"], b"");
    assert_eq!(code, 4);
    assert!(out.contains("large: ") && out.contains("object: ") && out.contains("NOT WHOLE"), "{out}");
    let to = p.dir.path().join("out");
    let large = read(&to, "large");
    assert!(large[..300_000].iter().all(|&b| b == 0) && large[300_000..].iter().all(|&b| b == 7));
    assert_eq!(read(&to, "hard-a"), b"short");
    // A pack of the tree gone, the rest of the vault sound: the other snapshot still comes back.
    let p = Place::new();
    fs::remove_file(p.dir.path().join("vault").join(&p.sample.packs[3].path)).unwrap();
    let (code, out) = p.run(&["--passfile", "pass", "--restore", "latest", "--to", "out", "vault"], b"");
    assert!(out.contains("snapshot 1 in out"), "{code} {out}");
}
