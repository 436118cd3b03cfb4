//! The command line as a promise: help texts, error messages, JSON, completions, man pages, exit codes.
//!
//! The texts stand in tests/snapshots/cli. After a change that is meant: `INSTA_UPDATE=always INSTA_FORCE_PASS=1 cargo
//! nextest run cli::`, and read the difference before it is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::common::{Finished, PASSPHRASE, Sandbox, signal};

/// The verbs, which scripts rely on.
const VERBS: [&str; 23] = [
    "cat",
    "clone",
    "completions",
    "diff",
    "gc",
    "import",
    "info",
    "init",
    "is-mounted",
    "key",
    "ls",
    "man",
    "mount",
    "protect",
    "pull",
    "remote",
    "restore",
    "ship",
    "snapshot",
    "status",
    "umount",
    "wait",
    "with",
];

pub fn assert_text(name: &str, text: &str) {
    insta::with_settings!({
        snapshot_path => "snapshots/cli",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, { insta::assert_snapshot!(name, text) });
}

/// The subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(String::from)
        .collect()
}

/// The help texts of all commands, by their words.
fn all_help(sandbox: &Sandbox) -> BTreeMap<Vec<String>, String> {
    let mut texts = BTreeMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(words) = todo.pop() {
        let help = sandbox.run(words.iter().map(String::as_str).chain(["--help"])).ok();
        for verb in subcommands(&help) {
            todo.push([words.clone(), vec![verb]].concat());
        }
        texts.insert(words, help);
    }
    texts
}

#[test]
fn help_texts() {
    let sandbox = Sandbox::new();
    let texts = all_help(&sandbox);
    let top: BTreeSet<&str> = texts.keys().filter(|w| w.len() == 1).map(|w| w[0].as_str()).collect();
    assert_eq!(top, VERBS.into_iter().collect());
    for (words, text) in &texts {
        let name = [&["help".to_string()], words.as_slice()].concat().join("-");
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{name} has lines of more than 100 columns"
        );
        assert_text(&name, text);
    }
    let version = sandbox.run(["--version"]).ok();
    assert_eq!(version, format!("strongroom {}\n", env!("CARGO_PKG_VERSION")));
}

/// Puts names in the place of what differs between two runs: the sandbox, hashes, times, process ids.
fn redact(sandbox: &Sandbox, text: &str) -> String {
    let text = text.replace(&sandbox.str(""), "[DIR]/");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let hex = rest.find(|c: char| !matches!(c, '0'..='9' | 'a'..='f')).unwrap_or(rest.len());
        if hex >= 16 {
            out += if hex == 64 { "[HASH]" } else { "[HEX]" };
            rest = &rest[hex..];
        } else if let Some(len) = time_len(rest) {
            out += "[TIME]";
            rest = &rest[len..];
        } else if out.ends_with("process ") && hex > 0 {
            out += "[PID]";
            rest = &rest[hex..];
        } else {
            // A whole word at once: hex digits in its middle are none.
            let word = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
            let len = if word == 0 { rest.chars().next().map_or(0, char::len_utf8) } else { word };
            out += &rest[..len];
            rest = &rest[len..];
        }
    }
    out
}

/// The length of an RFC 3339 time in UTC at the start of a text.
fn time_len(text: &str) -> Option<usize> {
    let shape = "0000-00-00T00:00:00";
    let head = text.get(..shape.len())?;
    let fits =
        head.chars().zip(shape.chars()).all(|(c, s)| if s == '0' { c.is_ascii_digit() } else { c == s });
    let rest = &text[shape.len()..];
    let fraction = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len());
    (fits && rest[fraction..].starts_with('Z')).then_some(shape.len() + fraction + 1)
}

#[test]
fn redactions_hide_what_differs_and_nothing_else() {
    let sandbox = Sandbox::new();
    let text = format!(
        "{} made 2026-11-20T14:00:00.123456789Z by process 4711 deadbeefdeadbeefdeadbeefdeadbeef 12 cafe",
        sandbox.str("encrypted")
    );
    assert_eq!(redact(&sandbox, &text), "[DIR]/encrypted made [TIME] by process [PID] [HEX] 12 cafe");
}

/// One command and what it said, as a transcript.
pub fn transcript(sandbox: &Sandbox, args: &[&str], done: &Finished) -> String {
    let shown: Vec<String> = args
        .iter()
        .map(|a| if a.contains(' ') || a.is_empty() { format!("{a:?}") } else { (*a).to_string() })
        .collect();
    let text = format!("$ strongroom {}\n{}{}[{}]\n\n", shown.join(" "), done.stdout, done.stderr, done.code);
    let text = redact(sandbox, &text);
    let lines = text.split_inclusive('\n').map(|line| match line.starts_with("until it failed, ") {
        true => redact_speed(line),
        false => line.to_string(),
    });
    lines.collect()
}

/// Which pack went before a failure, and how fast, differs from run to run; how many of what does not.
fn redact_speed(line: &str) -> String {
    let mut line = line.to_string();
    for (before, after, name) in [
        (" header copies (", ")", "[BYTES]"),
        (") in ", " s (", "[SECONDS]"),
        (" s (", "/s, ", "[SPEED]"),
        ("/s, ", " requests)", "[NUMBER]"),
    ] {
        let start = line.find(before).unwrap_or_else(|| panic!("{before:?}: {line}")) + before.len();
        let len = line[start..].find(after).unwrap_or_else(|| panic!("{after:?}: {line}"));
        assert!(line[start..start + len].starts_with(|c: char| c.is_ascii_digit()), "{line}");
        line.replace_range(start..start + len, name);
    }
    line
}

#[test]
fn errors_say_what_failed_and_what_to_do() {
    let sandbox = Sandbox::with_vault();
    let (vault, mountpoint, pass) = (sandbox.vault_str(), sandbox.str("decrypted"), sandbox.passfile());
    let at = |name: &str| sandbox.str(name);
    fs::create_dir(sandbox.path("full")).unwrap();
    fs::write(sandbox.path("full/file"), "x").unwrap();
    fs::write(sandbox.path("readable.txt"), "secret").unwrap();
    sandbox.private_file("short.key", b"short");
    let (missing, full, readable, short) = (at("missing"), at("full"), at("readable.txt"), at("short.key"));
    let inside = at("encrypted/packs");
    let cases: Vec<(Vec<&str>, &str, i32)> = vec![
        (vec![], "", 2),
        (vec!["frobnicate"], "", 2),
        (vec!["mount"], "", 2),
        (vec!["mount", vault, &mountpoint, "-S", "--passfile", &pass], "", 2),
        (vec!["mount", vault, &mountpoint], "", 2),
        (vec!["mount", vault, &mountpoint, "-S"], "wrong", 11),
        (vec!["mount", vault, &mountpoint, "-S"], "", 2),
        (vec!["mount", &missing, &mountpoint, "--passfile", &pass], "", 10),
        (vec!["mount", &full, &mountpoint, "--passfile", &pass], "", 10),
        (vec!["mount", vault, &missing, "--passfile", &pass], "", 21),
        (vec!["mount", vault, &full, "--passfile", &pass], "", 21),
        (vec!["mount", vault, vault, "--passfile", &pass], "", 21),
        (vec!["mount", vault, &inside, "--passfile", &pass], "", 21),
        (vec!["mount", vault, &mountpoint, "--passfile", &pass, "-o", "rw,frobnicate"], "", 2),
        (vec!["mount", vault, &mountpoint, "--passfile", &pass, "--idle", "soon"], "", 2),
        (vec!["mount", vault, &mountpoint, "--passfile", &pass, "--snapshot", "latest"], "", 22),
        (vec!["mount", vault, &mountpoint, "--passfile", &readable], "", 15),
        (vec!["mount", vault, &mountpoint, "--passfile", &missing], "", 20),
        (vec!["mount", vault, &mountpoint, "--keyfile", &short], "", 2),
        (vec!["mount", vault, &mountpoint, "--recovery-key"], "SR1-nonsense", 11),
        (vec!["mount", vault, &mountpoint, "--extpass", "exit 3"], "", 1),
        (vec!["mount", vault, &mountpoint, "--credential", "vault"], "", 2),
        (vec!["umount", &mountpoint], "", 21),
        (vec!["umount", vault], "", 21),
        (vec!["wait", &full], "", 10),
        (vec!["status", &full], "", 10),
        (vec!["is-mounted", &mountpoint], "", 1),
        (vec!["init", vault, "--passfile", &pass, "--no-recovery-key"], "", 2),
        (vec!["init", &full, "--passfile", &pass, "--no-recovery-key"], "", 2),
        (vec!["init", &missing, "--passfile", &pass], "", 2),
        (vec!["init", &missing, "--passfile", &pass, "--no-recovery-key", "--cipher", "rot13"], "", 2),
        (vec!["restore", vault, "--to", &missing, "--passfile", &pass], "", 22),
        (vec!["ls", vault, "12:/", "--passfile", &pass], "", 22),
        (vec!["ls", vault, "no such time:/", "--passfile", &pass], "", 2),
        (vec!["cat", vault, "latest:/x", "--passfile", &pass], "", 22),
        (vec!["snapshot", "delete", vault, "3", "--passfile", &pass], "", 22),
        (vec!["key", "remove", vault, "9", "--passfile", &pass], "", 22),
        (vec!["key", "change", vault, "--passfile", &pass], "", 2),
        (vec!["protect", &full], "", 21),
        (vec!["mount", vault, &mountpoint, "-S", "--json"], "wrong", 11),
        (vec!["umount", &mountpoint, "--json"], "", 21),
    ];
    let mut text = String::new();
    for (args, input, code) in &cases {
        let done = sandbox.run_with_input(args, input.as_bytes());
        assert_eq!(done.code, *code, "{args:?}: {done:?}");
        assert!(done.stdout.is_empty(), "an error is not a result: {args:?}: {}", done.stdout);
        if args.contains(&"--json") {
            let error: Value =
                serde_json::from_str(done.stderr.lines().last().unwrap()).expect("JSON on standard error");
            assert_eq!(error["exit_code"], *code);
            assert!(error["error"].is_string(), "{error}");
        }
        text += &transcript(&sandbox, args, &done);
    }
    assert_text("errors", &text);
}

/// Numbers that differ between two runs, by the names of their members.
const MEASURED: [&str; 25] = [
    "bytes_read",
    "pid",
    "pid_start",
    "since",
    "time",
    "seconds",
    "idle_seconds",
    "uncommitted_seconds",
    "bytes_per_second",
    "available_bytes",
    "dirty_bytes",
    "dirty_bytes_peak",
    "resident_bytes",
    "stream_buffer_bytes",
    "cached_block_bytes",
    "uncheckpointed_bytes",
    "database_page_bytes",
    "files_in_core",
    "snapshot_inodes",
    "live_bytes",
    "dead_bytes",
    "file_bytes",
    "freed_bytes",
    "rewritten_bytes",
    "copied_bytes",
];

/// Members whose whole value depends on the machine or on timing.
const VARYING: [&str; 3] = ["requests", "device", "host"];

/// JSON with everything redacted that differs between two runs.
fn redact_json(sandbox: &Sandbox, value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(redact(sandbox, &text)),
        Value::Array(items) => items.into_iter().map(|item| redact_json(sandbox, item)).collect(),
        Value::Object(members) => {
            // Files of snapshots have the host's name in them.
            let shipped = members.contains_key("remote");
            let redacted = members.into_iter().map(|(name, value)| {
                let counted = MEASURED.contains(&name.as_str()) || (shipped && name == "bytes");
                let measured =
                    (value.is_number() && counted) || (!value.is_null() && VARYING.contains(&name.as_str()));
                let value =
                    if measured { Value::String("[NUMBER]".into()) } else { redact_json(sandbox, value) };
                (name, value)
            });
            redacted.collect()
        }
        other => other,
    }
}

/// The codes that a table of docs/exit-codes.md lists.
fn documented_codes() -> BTreeSet<u8> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/exit-codes.md")).unwrap();
    text.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok()).collect()
}

#[test]
fn every_exit_code_is_documented_and_no_other() {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/error.rs")).unwrap();
    let body = source.split_once("enum ExitCode {").expect("the enum").1.split_once('}').expect("its end").0;
    let defined: BTreeSet<u8> = body
        .lines()
        .filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = ")?.1.parse().ok())
        .collect();
    assert!(defined.len() > 15, "{defined:?}");
    assert_eq!(defined, documented_codes());
}

#[test]
fn completions_name_every_verb() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = sandbox.run(["completions", shell]).ok();
        for verb in VERBS {
            assert!(script.contains(verb), "{shell}: {verb}");
        }
        assert!(script.contains("--passfile") || script.contains("-l passfile"), "{shell}: options");
        for hidden in ["internal", "unmount"] {
            assert!(!script.contains(&format!("strongroom,{hidden}")), "{shell}: {hidden}");
            assert!(!script.split(['\'', '"', ' ']).any(|word| word == hidden), "{shell}: {hidden}");
        }
    }
    sandbox.run(["completions", "tcsh"]).fails(2);
    fs::write(sandbox.path("completions.bash"), sandbox.run(["completions", "bash"]).ok()).unwrap();
    sandbox.sh("source ./completions.bash && complete -p strongroom").ok();
}

#[test]
fn man_pages_name_every_verb() {
    let sandbox = Sandbox::new();
    sandbox.run(["man", &sandbox.str("man")]).ok();
    let page = |name: &str| {
        fs::read_to_string(sandbox.path(&format!("man/{name}.1"))).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    let main = page("strongroom");
    for verb in VERBS {
        assert!(main.contains(&verb.replace('-', "\\-")), "strongroom(1) names {verb}");
        assert!(page(&format!("strongroom-{verb}")).len() > 200, "{verb}");
    }
    for name in ["snapshot-create", "snapshot-delete", "key-add", "key-change"] {
        assert!(page(&format!("strongroom-{name}")).contains(".SH OPTIONS"), "{name}");
    }
    assert!(!sandbox.path("man/strongroom-internal-mount-daemon.1").exists());
}

/// A sequence of commands in one vault, each with `--json`.
struct Session<'a> {
    sandbox: &'a Sandbox,
    text: String,
}

impl Session<'_> {
    /// A command that goes on until it is asked to end; this is done after its first line.
    fn run_until_a_line(&mut self, args: &[&str]) {
        let args = [args, &["--json"]].concat();
        let mut command = self.sandbox.strongroom();
        let mut child = command.args(&args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        signal(i32::try_from(child.id()).unwrap(), rustix::process::Signal::TERM);
        assert_eq!(child.wait().unwrap().code(), Some(0), "{line}");
        let value = redact_json(self.sandbox, serde_json::from_str(&line).unwrap());
        self.text += &format!("$ strongroom {}\n{value:#}\n\n", redact(self.sandbox, &args.join(" ")));
    }

    #[track_caller]
    fn run(&mut self, args: &[&str]) {
        let args = [args, &["--json"]].concat();
        let input = format!("{PASSPHRASE}\n");
        let done = self.sandbox.run_with_input(&args, input.as_bytes());
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        // A stream is one value a line.
        let values: Vec<Value> = match serde_json::from_str(&done.stdout) {
            Ok(value) => vec![value],
            Err(_) => done
                .stdout
                .lines()
                .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{args:?}: {e}: {line}")))
                .collect(),
        };
        let shown = redact(self.sandbox, &args.join(" "));
        self.text += &format!("$ strongroom {shown}\n");
        for value in values {
            let value = redact_json(self.sandbox, value);
            self.text += &format!("{value:#}\n");
        }
        self.text += &redact(self.sandbox, &done.stderr);
        self.text.push('\n');
    }
}

#[test]
fn heavy_json_of_every_verb() {
    let sandbox = Sandbox::new();
    let (vault, mountpoint, pass) = (sandbox.vault_str(), sandbox.str("decrypted"), sandbox.passfile());
    let mut session = Session { sandbox: &sandbox, text: String::new() };
    session.run(&[
        "init",
        vault,
        "-S",
        "--recovery-key-out",
        &sandbox.str("recovery.txt"),
        "--kdf-time",
        "0",
    ]);
    session.run(&["status", vault]);
    session.run(&["key", "list", vault]);
    session.run(&["mount", vault, &mountpoint, "-S"]);
    session.run(&["is-mounted", &mountpoint]);
    sandbox
        .sh("cd decrypted; mkdir dir; printf hello > dir/file; ln dir/file dir/link; ln -s file dir/symlink; mkfifo pipe
             chmod 640 dir/file; chown -R 1000:1001 dir; touch -d 2026-01-02T03:04:05.678Z dir/file; touch -d 2026-01-02T03:04:06Z dir pipe .")
        .ok();
    session.run(&["status", vault]);
    session.run(&["snapshot", "create", vault, "-S"]);
    // For people: no JSON, and the same words as without a daemon.
    let status = sandbox.run(["status", vault]).ok();
    assert!(status.contains("  room for ") && !status.contains(['{', '"']), "{status}");
    let gc = sandbox.run(["gc", vault, "--dead-percent", "50"]).ok();
    assert!(gc.starts_with("deleted 0 packs, rewrote 0: "), "{gc}");
    assert!(sandbox.run(["gc", vault, "-n"]).ok().starts_with("would free "));
    sandbox.sh("echo more > decrypted/new; rm decrypted/pipe").ok();
    session.run(&["umount", &mountpoint]);
    session.run(&["wait", vault]);
    session.run(&["info", vault]);
    session.run(&["snapshot", "list", vault, "-S"]);
    session.run(&["snapshot", "show", vault, "latest", "-S"]);
    session.run(&["ls", vault, "1:/", "--recursive", "-S"]);
    session.run(&["diff", vault, "1", "2", "-S"]);
    let to = sandbox.str("restored");
    session.run(&["restore", vault, "1:/dir", "--to", &to, "--dry-run", "-S"]);
    session.run(&["restore", vault, "1:/dir", "--to", &to, "-S"]);
    fs::create_dir(sandbox.path("source")).unwrap();
    fs::write(sandbox.path("source/file"), "imported").unwrap();
    session.run(&["import", vault, &sandbox.str("source"), "-S"]);
    session.run(&["snapshot", "delete", vault, "1", "-S"]);
    session.run(&["gc", vault, "--dry-run", "-S"]);
    session.run(&["gc", vault, "-S"]);
    session.run(&["snapshot", "create", vault, "--force", "--tag", "by-hand", "-S"]);
    let key = sandbox.private_file("vault.key", &[7; 64]);
    let key = key.to_str().unwrap();
    session.run(&["key", "add", vault, "-S", "--new-keyfile", key, "--label", "cron"]);
    session.run(&["key", "change", vault, "-S", "--new-passfile", &pass, "--kdf-time", "0"]);
    session.run(&["key", "remove", vault, "3", "-S"]);
    session.run(&["protect", &mountpoint]);
    session.run(&["protect", "--undo", &mountpoint]);
    fs::create_dir(sandbox.path("usb")).unwrap();
    let usb = format!("file://{}", sandbox.str("usb"));
    session.run(&["remote", "add", vault, "usb", &usb, "--limit-upload", "1G"]);
    session.run(&["remote", "list", vault]);
    session.run(&["remote", "test", vault, "usb"]);
    session.run(&["ship", vault, "--dry-run"]);
    session.run(&["ship", vault, "--verify"]);
    session.run_until_a_line(&["ship", vault, "--watch"]);
    let copy = sandbox.str("copy");
    session.run(&["clone", &usb, &copy, "--dry-run"]);
    session.run(&["clone", &usb, &copy]);
    session.run(&["snapshot", "create", vault, "--force", "-S"]);
    session.run(&["ship", vault]);
    session.run(&["pull", &copy, "--dry-run"]);
    session.run(&["pull", &copy]);
    session.run(&["remote", "remove", vault, "usb"]);
    assert!(!session.text.contains(&pass), "nothing of this machine is left in the text");
    assert_text("json", &session.text);
}
