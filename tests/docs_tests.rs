//! Tests that the documents name exist, and every line of docs/semantics.md names one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 3] = ["docs/semantics.md", "docs/threat-model.md", "docs/exit-codes.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What stands between backticks and looks like the path of a test: small words joined by `::`.
fn test_paths(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|name| name.contains("::") || name.contains("..._")).collect()
}

/// Names of the test functions in a source.
fn tests_in(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if let (true, Some(rest)) = (marked, line.strip_prefix("fn ")) {
            found.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            marked = false;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            marked = false;
        }
    }
    found
}

/// The sources of a module and of all below it: `crash` is in tests/, `store::live` in src/.
fn sources_of(module: &str) -> Vec<String> {
    let path = module.replace("::", "/");
    let mut stack: Vec<PathBuf> = ["tests", "src", "fsck/src", "fsck"]
        .iter()
        .flat_map(|dir| [root().join(dir).join(format!("{path}.rs")), root().join(dir).join(&path)])
        .filter(|path| path.exists())
        .collect();
    let mut texts = Vec::new();
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            texts.push(fs::read_to_string(&path).unwrap());
        }
    }
    texts
}

/// Whether a path in a document leads to a test: a function, all functions of a module (`x::*`, `x::start_*`), or a module with tests.
fn exists(path: &str) -> bool {
    let has_tests = |module: &str| sources_of(module).iter().any(|text| !tests_in(text).is_empty());
    let Some((module, name)) = path.rsplit_once("::") else { return false };
    let any = |wanted: &dyn Fn(&str) -> bool| {
        sources_of(module).iter().any(|text| tests_in(text).iter().any(|test| wanted(test)))
    };
    match name.strip_suffix('*') {
        Some(start) => any(&|test| test.starts_with(start)),
        None => any(&|test| test == name) || has_tests(path),
    }
}

#[test]
fn every_test_that_a_document_names_exists() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for document in DOCUMENTS {
        let text = read(document);
        for path in test_paths(&text) {
            count += 1;
            if !exists(path) {
                wrong.push(format!("{document}: `{path}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "no such tests:\n{}", wrong.join("\n"));
    assert!(count > 50, "{count} names");
}

#[test]
fn every_line_of_semantics_names_the_test_that_shows_it() {
    let text = read("docs/semantics.md");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20, "{} rows", rows.len());
    for row in rows {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        assert!(!test_paths(last).is_empty(), "no test in: {row}");
        assert_eq!(row.matches(" | ").count(), 2, "three columns: {row}");
    }
}

#[test]
fn the_search_finds_tests_and_nothing_else() {
    assert!(exists("docs_tests::the_search_finds_tests_and_nothing_else"));
    assert!(
        exists("docs_tests::*")
            && exists("docs_tests::every_*")
            && exists("store::live")
            && exists("fs::testing::tests_full")
    );
    for missing in [
        "docs_tests::exists",
        "docs_tests::no_such_test",
        "docs_tests::none_*",
        "no_such_module::*",
        "store::nothing",
        "x",
    ] {
        assert!(!exists(missing), "{missing}");
    }
    assert_eq!(test_paths("a `b` and `c::d`, `..._e`"), ["c::d", "..._e"]);
}
