//! Real programs on the kernel mount: what they write, they find again - at once, after a remount, and in a restore.
//!
//! A program that is missing fails its test: `contrib/test` installs them all.

mod archive;
mod backup_tools;
mod compile;
mod databases;
mod version_control;

use std::path::Path;

use crate::common::{Finished, Sandbox};

/// A new vault, mounted, whose directories other users may pass.
fn mounted() -> Sandbox {
    crate::common::require_root();
    let sandbox = Sandbox::with_vault();
    sandbox.mount();
    sandbox.sh("chmod 755 . decrypted").ok();
    sandbox
}

/// Runs a script with `$ROOT` naming the directory that holds the files, and asserts success.
#[track_caller]
fn run_at(sandbox: &Sandbox, root: &Path, script: &str) -> String {
    let root = root.to_str().expect("UTF-8 path");
    sandbox.tool("bash", ["-euo", "pipefail", "-c", &format!("ROOT={root}\n{script}")]).ok()
}

/// Runs `check` on the mount, on the mount after a remount, and on what is restored from the snapshot of the last
/// unmount. The checks may change files as programs do that only read; all three must print the same.
#[track_caller]
fn check_everywhere(sandbox: &Sandbox, check: &str) -> String {
    let first = run_at(sandbox, &sandbox.mountpoint(), check);
    sandbox.umount();
    sandbox.assert_clean();
    sandbox.mount();
    assert_eq!(run_at(sandbox, &sandbox.mountpoint(), check), first, "after a remount");
    sandbox.umount();
    sandbox.keyed(&["restore", sandbox.vault_str(), "--to", &sandbox.str("restored")]).ok();
    assert_eq!(run_at(sandbox, &sandbox.path("restored"), check), first, "what was restored");
    sandbox.assert_clean();
    first
}

/// Asserts that a program is there, with the Debian package to install otherwise.
#[track_caller]
fn need(sandbox: &Sandbox, program: &str, package: &str) {
    let Finished { code, .. } = sandbox.tool("bash", ["-c", &format!("command -v {program}")]);
    assert_eq!(code, 0, "{program} is needed by this test: install Debian's {package}");
}
