//! The architecture, enforced: docs/ARCHITECTURE.md's import table, and a few habits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Which crate modules each module may import. What is not listed is forbidden.
const ALLOWED: &[(&str, &[&str])] = &[
    ("env", &[]),
    ("private", &[]),
    ("format", &["env"]),
    ("crypto", &["env", "format"]),
    ("disk", &["env"]),
    ("remote", &["env", "private", "format", "disk"]),
    ("store", &["env", "format", "crypto", "disk"]),
    ("snapshot", &["env", "format", "crypto", "disk", "store"]),
    ("fs", &["env", "format", "crypto", "disk", "store", "snapshot"]),
    ("ship", &["env", "format", "crypto", "disk", "store", "snapshot", "remote"]),
    ("fetch", &["env", "format", "crypto", "disk", "store", "snapshot", "remote"]),
    ("fuse", &["env", "format", "store", "snapshot", "fs"]),
    ("mount", &["env", "format", "crypto", "disk", "store", "snapshot", "fs", "fuse", "config"]),
    ("config", &["env", "format", "store"]),
    (
        "cli",
        &[
            "env", "private", "format", "crypto", "disk", "store", "snapshot", "fs", "mount", "config",
            "remote", "ship", "fetch",
        ],
    ),
];

/// Crates that only one module may name.
const OWNED_CRATES: &[(&str, &str)] = &[
    ("fuser", "fuse"),
    ("tokio", "remote"),
    ("aws_sdk_s3", "remote"),
    ("aws_config", "remote"),
    ("redb", "store"),
    ("chacha20poly1305", "crypto"),
    ("aws_lc_rs", "crypto"),
    ("argon2", "crypto"),
    ("ed25519_dalek", "crypto"),
    ("x_wing", "crypto"),
    ("clap", "cli"),
    ("indicatif", "cli"),
    ("rpassword", "cli"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("readable source directory") {
        let path = entry.expect("directory entry").path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn sources(dir: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    rust_files(&root().join(dir), &mut files);
    assert!(!files.is_empty(), "no sources under {dir}");
    files.sort();
    files
        .into_iter()
        .map(|p| {
            let name = p.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&p).expect("source is UTF-8"))
        })
        .collect()
}

/// The top-level module a source file belongs to: `src/store/live/mod.rs` -> `store`.
fn module_of(name: &str) -> String {
    let rest = name.trim_start_matches("src/");
    rest.split('/').next().unwrap_or(rest).trim_end_matches(".rs").to_string()
}

/// Code lines only: comments may name anything.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(n, l)| (n + 1, l.split("//").next().unwrap_or(l)))
}

/// Every module named after `crate::`, also inside a `use crate::{a::b, c}` group.
fn crate_imports(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        if rest.starts_with('{') {
            let mut depth = 0;
            let mut word = String::new();
            for c in rest.chars() {
                match c {
                    '{' | '}' | ',' => {
                        if depth == 1 && !word.trim().is_empty() {
                            found.push(word.trim().split("::").next().unwrap_or("").to_string());
                        }
                        word.clear();
                        depth += i32::from(c == '{') - i32::from(c == '}');
                    }
                    c => word.push(c),
                }
            }
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

#[test]
fn modules_import_only_downwards() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, text) in sources("src") {
        let module = module_of(&name);
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(may) = allowed.get(module.as_str()) else {
            wrong.push(format!("{name}: module {module} is not in the import table"));
            continue;
        };
        for (line_no, line) in code_lines(&text) {
            for import in crate_imports(line) {
                if import != module
                    && allowed.contains_key(import.as_str())
                    && !may.contains(&import.as_str())
                {
                    wrong.push(format!("{name}:{line_no}: {module} imports {import}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "forbidden imports:\n{}", wrong.join("\n"));
}

#[test]
fn the_import_check_sees_what_it_should() {
    assert_eq!(crate_imports("use crate::fs::Fs;"), ["fs"]);
    assert_eq!(crate_imports("use crate::{env::Env, store::live::{Live, Table}};"), ["env", "store"]);
    assert!(crate_imports("let a = krate::x;").is_empty() || crate_imports("let a = krate::x;") == ["x"]);
    assert_eq!(module_of("src/store/live/mod.rs"), "store");
    assert_eq!(module_of("src/env.rs"), "env");
}

#[test]
fn special_crates_are_named_by_one_module() {
    let mut wrong = Vec::new();
    for (name, text) in sources("src") {
        let module = module_of(&name);
        for (line_no, line) in code_lines(&text) {
            for (krate, owner) in OWNED_CRATES {
                let named = line.contains(&format!("use {krate}::"))
                    || line.match_indices(&format!("{krate}::")).any(|(at, _)| {
                        at == 0
                            || !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                    });
                if named && module != *owner {
                    wrong.push(format!("{name}:{line_no}: {krate} belongs to {owner}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "crates named outside their module:\n{}", wrong.join("\n"));
}

/// Everything that is compiled: the product, its tests, benches, examples, the checker and the fuzz targets.
fn all_sources() -> Vec<(String, String)> {
    ["src", "tests", "benches", "examples", "fsck", "fuzz"].into_iter().flat_map(sources).collect()
}

/// What a line of code breaks, if anything. `may_print`: it stands where printing belongs.
fn bad_habit(line: &str, may_print: bool) -> Option<&'static str> {
    let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
    if has(&["todo!", "unimplemented!", "FIXME", "XXX"]) {
        Some("unfinished")
    } else if has(&["#[ignore", "#[cfg(any())]"]) {
        Some("a test that does not run")
    } else if !may_print && has(&["println!", "print!("]) {
        Some("prints")
    } else {
        None
    }
}

#[test]
fn sources_are_ascii_short_and_finished() {
    let mut wrong = Vec::new();
    for (name, text) in all_sources() {
        if text.lines().count() > 800 {
            wrong.push(format!("{name}: {} lines, 800 are enough", text.lines().count()));
        }
        if let Some((n, _)) = text.lines().enumerate().find(|(_, l)| !l.is_ascii()) {
            wrong.push(format!("{name}:{}: not ASCII", n + 1));
        }
        // This file names what it forbids.
        if name == "tests/arch.rs" {
            continue;
        }
        let product = name.starts_with("src/") && !name.contains("/tests") && !name.contains("/testing");
        let may_print = !product || name.starts_with("src/cli/");
        for (n, line) in code_lines(&text) {
            if let Some(what) = bad_habit(line, may_print) {
                wrong.push(format!("{name}:{n}: {what}: {}", line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "habits broken:\n{}", wrong.join("\n"));
}

#[test]
fn the_habits_are_seen() {
    assert_eq!(bad_habit("    todo!(\"later\")", true), Some("unfinished"));
    assert_eq!(bad_habit("#[ignore = \"slow\"]", true), Some("a test that does not run"));
    assert_eq!(bad_habit("    eprintln!(\"x\");", false), Some("prints"));
    assert_eq!(bad_habit("    eprintln!(\"x\");", true), None);
    let names: Vec<String> = all_sources().into_iter().map(|(name, _)| name).collect();
    for name in ["src/lib.rs", "tests/arch.rs", "fsck/src/lib.rs", "fuzz/src/targets.rs", "benches/commit.rs"]
    {
        assert!(names.iter().any(|n| n == name), "{name} is not looked at");
    }
}

#[test]
fn the_independent_reader_does_not_use_our_code() {
    let manifest = std::fs::read_to_string(root().join("fsck/Cargo.toml")).expect("fsck manifest");
    let dependencies =
        manifest.split("[dev-dependencies]").next().expect("text before the tests' dependencies");
    assert!(!dependencies.contains("strongroom = {"), "fsck must not depend on the root package");
    for (name, text) in sources("fsck/src") {
        assert!(!text.contains("use strongroom::"), "{name} uses the root package");
    }
}

#[test]
fn every_test_file_is_in_the_runner() {
    let runner = std::fs::read_to_string(root().join("tests/runner.rs")).expect("tests/runner.rs");
    for entry in std::fs::read_dir(root().join("tests")).expect("tests/") {
        let path = entry.expect("entry").path();
        let stem = path.file_stem().expect("name").to_string_lossy().into_owned();
        let is_module = path.extension().is_some_and(|e| e == "rs") || path.join("mod.rs").exists();
        if is_module && stem != "runner" {
            assert!(runner.contains(&format!("mod {stem};")), "tests/{stem} is not in tests/runner.rs");
        }
    }
}
