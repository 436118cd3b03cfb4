//! The command line: one file per verb. The only module that prints, asks, or decides an exit code.

mod error;
mod output;
mod place;
mod reach;
mod session;
mod unlock;
mod values;

mod browse;
mod clone;
mod completions;
mod diff;
mod from;
mod gc;
mod import;
mod info;
mod init;
mod key;
mod mount;
mod protect;
mod pull;
mod remote;
mod restore;
mod ship;
mod snapshot;
mod status;
mod survey;
mod umount;
mod watch;
mod with;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode as ProcessExit;

use clap::{CommandFactory, Parser, Subcommand};

use error::{CliError, CliResult, ExitCode};
use output::Output;

/// Storage for backup jobs: a directory to mount, and a vault under it that holds only ciphertext.
#[derive(Debug, Parser)]
#[command(name = "strongroom", version, about, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "\
Examples:
  strongroom init /encrypted --passfile /root/enc.txt
  strongroom mount -S /encrypted /decrypted < /root/enc.txt
  strongroom umount /decrypted
  strongroom restore /encrypted latest:/home --to /restored --passfile /root/enc.txt

Exit codes: docs/exit-codes.md; 0 done, 2 wrong usage, 3 done except for some files, 11 wrong key.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print machine-readable JSON
    #[arg(long, global = true)]
    json: bool,
    /// Say less; errors are always said
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say more; twice: debug
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new vault
    Init(init::InitArgs),
    /// Mount a vault's working tree, or one of its snapshots
    Mount(mount::MountArgs),
    /// Unmount, and wait until everything is durable and the daemon gone
    #[command(alias = "unmount")]
    Umount(umount::UmountArgs),
    /// Wait until no daemon is finishing work on a vault
    Wait(umount::WaitArgs),
    /// Mount, run a command, snapshot, unmount; ends with the command's status
    With(with::WithArgs),
    /// Say whether a vault or mountpoint is mounted, healthy, and what it holds
    Status(status::StatusArgs),
    /// Describe a vault; needs no key
    Info(info::InfoArgs),
    /// Make, list, show and delete snapshots
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// List a directory of a snapshot
    Ls(browse::LsArgs),
    /// Write a file of a snapshot to standard output
    Cat(browse::CatArgs),
    /// Compare two snapshots
    Diff(diff::DiffArgs),
    /// Restore files from a snapshot; every byte is verified
    Restore(restore::RestoreArgs),
    /// Store directories as a snapshot without mounting
    Import(import::ImportArgs),
    /// Give back the space of what no snapshot and no file needs
    Gc(gc::GcArgs),
    /// Remember, list, forget and try out the places to ship to
    #[command(subcommand)]
    Remote(remote::RemoteCommand),
    /// Copy a vault to its remotes; needs no key
    Ship(ship::ShipArgs),
    /// Copy a whole vault from a remote; needs no key
    Clone(Box<clone::CloneArgs>),
    /// Bring a copy of a vault up to what its remote has
    Pull(pull::PullArgs),
    /// List, add, remove and change the keys that unlock a vault
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Make an unmounted mountpoint refuse writes
    Protect(protect::ProtectArgs),
    /// Say by exit status whether something is mounted at MOUNTPOINT
    IsMounted(protect::IsMountedArgs),
    /// Print shell completions
    Completions(completions::CompletionsArgs),
    /// Write the man pages into a directory
    Man(completions::ManArgs),
}

/// The whole command tree, for man pages, completions and tests.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program: parses, dispatches, reports, and returns the exit code.
#[must_use]
pub fn run(args: Vec<OsString>) -> ProcessExit {
    if crate::mount::daemon::is_child(args.iter()) {
        // The background half of `mount`: started by it with a socket as standard input, never by hand.
        return match mount::run_daemon() {
            Ok(code) => ProcessExit::from(code as u8),
            Err(error) => report(&Output::new(false, false, 0), &error),
        };
    }
    let args = match mount::translate_helper_call(args) {
        Ok(args) => args,
        Err(error) => return report(&Output::new(false, false, 0), &error),
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let help = !error.use_stderr();
            // Nothing more can be done if the terminal is gone.
            drop(error.print());
            return ProcessExit::from(if help { ExitCode::Ok as u8 } else { ExitCode::Usage as u8 });
        }
    };
    let out = Output::new(cli.json, cli.quiet, cli.verbose);
    match dispatch(cli.command, &out) {
        Ok(code) => ProcessExit::from(code),
        Err(error) => report(&out, &error),
    }
}

fn dispatch(command: Command, out: &Output) -> Result<u8, CliError> {
    let done = |result: CliResult| result.map(|code| code as u8);
    match command {
        Command::Init(args) => done(init::run(&args, out)),
        Command::Mount(args) => done(mount::run(&args, out)),
        Command::Umount(args) => done(umount::run(&args, out)),
        Command::Wait(args) => done(umount::run_wait(&args, out)),
        Command::With(args) => with::run(&args, out),
        Command::Status(args) => done(status::run(&args, out)),
        Command::Info(args) => done(info::run(&args, out)),
        Command::Snapshot(command) => done(snapshot::run(&command, out)),
        Command::Ls(args) => done(browse::run_ls(&args, out)),
        Command::Cat(args) => done(browse::run_cat(&args, out)),
        Command::Diff(args) => done(diff::run(&args, out)),
        Command::Restore(args) => done(restore::run(&args, out)),
        Command::Import(args) => done(import::run(&args, out)),
        Command::Gc(args) => done(gc::run(&args, out)),
        Command::Remote(command) => done(remote::run(&command, out)),
        Command::Ship(args) => done(ship::run(&args, out)),
        Command::Clone(args) => done(clone::run(&args, out)),
        Command::Pull(args) => done(pull::run(&args, out)),
        Command::Key(command) => done(key::run(&command, out)),
        Command::Protect(args) => done(protect::run(&args, out)),
        Command::IsMounted(args) => done(protect::run_is_mounted(&args, out)),
        Command::Completions(args) => done(completions::run(&args)),
        Command::Man(args) => done(completions::run_man(&args, out)),
    }
}

fn report(out: &Output, error: &CliError) -> ProcessExit {
    out.error(error);
    ProcessExit::from(error.code as u8)
}

/// How a path is shown to people: lossy, with control characters escaped, so that a hostile name can't drive a terminal.
pub(crate) fn show_bytes(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// [`show_bytes`] for a path.
pub(crate) fn show_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    show_bytes(path.as_os_str().as_bytes())
}

/// Bytes as one word of a shell's: as they are where that is safe, else quoted. What could drive a terminal is escaped.
pub(crate) fn shell_word(bytes: &[u8]) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./:+,@%".contains(c);
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && text.chars().all(safe) => text.to_string(),
        Ok(text) if !text.contains(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let escaped = bytes.iter().map(|b| match b {
                b'\'' | b'\\' => format!("\\{}", char::from(*b)),
                b' '..=b'~' => char::from(*b).to_string(),
                _ => format!("\\{b:03o}"),
            });
            format!("$'{}'", escaped.collect::<String>())
        }
    }
}

/// [`shell_word`] of a path.
pub(crate) fn shell_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    shell_word(path.as_os_str().as_bytes())
}

/// A path in JSON: as it is, since JSON escapes what must be; bytes that are no UTF-8 are replaced.
pub(crate) fn json_path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_shell_reads_words_back_as_they_were() {
        use std::os::unix::ffi::OsStrExt;
        let mut words: Vec<Vec<u8>> = (1..=255).map(|b| vec![b'a', b, b'1']).collect();
        words.extend(
            [&b""[..], b"it's $HOME \\`id`", b"\x1b[2J'\\n", b"\xff\xfe'x", "v\u{e4}ter".as_bytes()]
                .map(Vec::from),
        );
        for word in words {
            let shown = shell_word(&word);
            assert!(!shown.contains(char::is_control), "{shown:?}");
            let said = std::process::Command::new("bash")
                .arg("-c")
                .arg(format!("printf %s {shown}"))
                .output()
                .unwrap();
            assert_eq!(said.stdout, word, "{shown}");
            assert_eq!(shell_path(Path::new(std::ffi::OsStr::from_bytes(&word))), shown);
        }
        assert_eq!(shell_word(b"/a/b-c_1.d"), "/a/b-c_1.d");
        assert_eq!(shell_word(b"a b"), "'a b'");
    }

    #[test]
    fn hostile_names_can_not_drive_the_terminal() {
        assert_eq!(show_bytes(b"a\x1b[2Jb\nc\xff"), "a\\u{1b}[2Jb\\nc\u{fffd}");
    }
}
