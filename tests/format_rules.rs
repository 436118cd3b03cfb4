//! Every rule of docs/format.md is cited where it is kept, by the engine and by the checker, and by a test or a golden
//! vector; and nothing cites a rule that does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What rule ids begin with.
const AREAS: [&str; 6] = ["GEN", "LAY", "HDR", "PACK", "TREE", "SNAP"];

/// Rules for writers, which a reader can't check.
const WRITERS_ONLY: [&str; 1] = ["PACK-7"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &str, extension: &str) -> Vec<(String, String)> {
    let mut stack = vec![root().join(dir)];
    let mut found = Vec::new();
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
                found.push((path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(), text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "nothing in {dir}");
    found
}

/// Every rule id in a text: an area, a dash, digits, at most one small letter.
fn citations(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for area in AREAS {
        for (at, _) in text.match_indices(area) {
            let before = text[..at].chars().next_back();
            let Some(rest) = text[at + area.len()..].strip_prefix('-') else { continue };
            if before.is_some_and(|c| c.is_alphanumeric() || c == '-') {
                continue;
            }
            let digits = rest.chars().take_while(char::is_ascii_digit).count();
            let mut after = rest[digits..].chars();
            let letter = after.next().filter(char::is_ascii_lowercase);
            let end = if letter.is_some() { after.next() } else { rest[digits..].chars().next() };
            if digits > 0 && !end.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                let letter = letter.map_or(String::new(), String::from);
                found.insert(format!("{area}-{}{letter}", &rest[..digits]));
            }
        }
    }
    found
}

/// The ids that the tables of docs/format.md define.
fn rules() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("docs/format.md")).unwrap();
    let cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next());
    let rules: Vec<&str> = cells.filter(|cell| citations(cell).contains(*cell)).collect();
    let set: BTreeSet<String> = rules.iter().map(|id| (*id).to_owned()).collect();
    assert_eq!(set.len(), rules.len(), "a rule is defined twice");
    set
}

#[derive(Default)]
struct Cited {
    engine: BTreeSet<String>,
    checker: BTreeSet<String>,
    tests: BTreeSet<String>,
    everywhere: BTreeMap<String, String>,
}

fn cited() -> Cited {
    let mut cited = Cited::default();
    for dir in ["src", "fsck/src", "fsck/tests", "tests", "examples", "fuzz"] {
        for (name, text) in files(dir, "rs") {
            if name == "tests/format_rules.rs" {
                continue;
            }
            let is_test = !name.contains("src/") || name.contains("/tests") || name.contains("_tests.rs");
            let cut = if is_test { 0 } else { text.find("\nmod tests {").unwrap_or(text.len()) };
            let (code, tests) = text.split_at(cut);
            let keeper = if name.starts_with("fsck/") { &mut cited.checker } else { &mut cited.engine };
            keeper.extend(citations(code));
            // Examples write vectors, which count where they stand.
            if !name.starts_with("examples/") {
                cited.tests.extend(citations(tests));
            }
            for id in citations(&text) {
                cited.everywhere.entry(id).or_insert_with(|| name.clone());
            }
        }
    }
    for (name, text) in files("tests/vectors", "vec") {
        let head = text.split("\n\n").next().unwrap_or_default();
        cited.tests.extend(citations(head));
        for id in citations(head) {
            cited.everywhere.entry(id).or_insert_with(|| name.clone());
        }
    }
    cited
}

#[test]
fn every_rule_is_kept_by_code_and_shown_by_a_test() {
    let (rules, cited) = (rules(), cited());
    assert!(rules.len() >= 35, "{rules:?}");
    let mut wrong = Vec::new();
    for rule in &rules {
        if !cited.engine.contains(rule) {
            wrong.push(format!("{rule}: not cited by the engine"));
        }
        if !cited.checker.contains(rule) && !WRITERS_ONLY.contains(&rule.as_str()) {
            wrong.push(format!("{rule}: not cited by fsck.strongroom"));
        }
        if !cited.tests.contains(rule) {
            wrong.push(format!("{rule}: no test and no vector cites it"));
        }
    }
    for (id, name) in &cited.everywhere {
        if !rules.contains(id) {
            wrong.push(format!("{name} cites {id}, which docs/format.md does not have"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn citations_are_found_and_nothing_else() {
    let found = |text| citations(text).into_iter().collect::<Vec<_>>();
    assert_eq!(found("// FORMAT HDR-2a, PACK-1: text (TREE-10)"), ["HDR-2a", "PACK-1", "TREE-10"]);
    assert_eq!(found("\"SNAP-7: x\" SNAP-7"), ["SNAP-7"]);
    assert!(found("GEN-, PACK-x, XHDR-1, SRPACK-1, TREE-1ab, HDR_1, SNAP").is_empty());
}
