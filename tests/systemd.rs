//! The units that the repository and the README show: systemd takes them as they stand there, and what runs all day is hardened.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Finished, Sandbox};

const SHIP: &str = "strongroom-ship@.service";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn ship_unit() -> String {
    read(&format!("contrib/systemd/{SHIP}"))
}

/// The unit that the README mounts with.
fn mount_unit() -> String {
    let text = read("README.md");
    let units: Vec<&str> =
        text.split("```ini\n").skip(1).map(|part| part.split_once("```").unwrap().0).collect();
    assert_eq!(units.len(), 1, "a unit that nothing here looks at: {units:?}");
    units[0].to_string()
}

/// Writes a unit down with the program where it is here: systemd looks whether it can be run.
fn write(sandbox: &Sandbox, name: &str, text: &str) -> PathBuf {
    let installed = "/usr/local/bin/strongroom";
    assert!(text.contains(installed), "{text}");
    let path = sandbox.path(name);
    fs::write(&path, text.replace(installed, env!("CARGO_BIN_EXE_strongroom"))).unwrap();
    path
}

fn analyze(sandbox: &Sandbox, words: &[&str], unit: &Path) -> Finished {
    sandbox.tool("systemd-analyze", words.iter().copied().chain([unit.to_str().unwrap()]))
}

#[test]
fn systemd_takes_the_units_as_they_are() {
    let sandbox = Sandbox::new();
    for (name, text) in [(SHIP, ship_unit()), ("vault.service", mount_unit())] {
        let verify = |text: &str| analyze(&sandbox, &["verify", "--man=no"], &write(&sandbox, name, text));
        let said = verify(&text);
        assert!(said.code == 0 && said.stderr.is_empty() && said.stdout.is_empty(), "{name}: {said:?}");
        // It would say so.
        let wrong = verify(&text.replace("TimeoutStopSec", "TimeoutStopSecs"));
        assert!(wrong.stderr.contains("'TimeoutStopSecs'"), "{name}: {wrong:?}");
    }
}

/// `systemd-analyze security` gives 0 (none can harm) to 10 (all can); ours needs the network and reads as root.
#[test]
fn the_unit_that_ships_is_hardened() {
    let sandbox = Sandbox::new();
    let limit = ["security", "--offline=true", "--no-pager", "--threshold=25"];
    let exposure = |text: &str| analyze(&sandbox, &limit, &write(&sandbox, SHIP, text));
    exposure(&ship_unit()).ok();
    for without in ["CapabilityBoundingSet=", "SystemCallFilter="] {
        let text: String = ship_unit()
            .lines()
            .filter(|line| !line.starts_with(without))
            .fold(String::new(), |text, line| text + line + "\n");
        assert_ne!(text, ship_unit(), "{without}");
        assert_ne!(exposure(&text).code, 0, "{without} counts");
    }
}
