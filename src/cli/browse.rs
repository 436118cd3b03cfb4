//! `ls` and `cat`: look into a snapshot without mounting.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::error::{CliError, CliResult, ExitCode};
use super::from::FromArgs;
use super::output::Output;
use super::place::Place;
use super::session::{self, ReadVault, Reading};
use super::unlock::UnlockArgs;
use crate::env::{Env, SystemEnv};
use crate::fetch::{Ahead, RemotePacks};
use crate::format::{Content, Entry, FileType};
use crate::snapshot::chain::open_sealed;
use crate::snapshot::describe::rfc3339;
use crate::snapshot::open;
use crate::snapshot::select::select_in;
use crate::snapshot::tree::TreeReader;
use crate::store::error::StoreError;
use crate::store::packs::ChunkSource;

/// Entries read at a time.
const PAGE: usize = 1024;
/// Bytes read at a time.
const COPY_BYTES: usize = 1 << 20;

/// Arguments of `ls`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  strongroom ls /encrypted --passfile /root/enc.txt
  strongroom ls /encrypted latest:/home --long --keyfile /root/vault.key
  strongroom ls /encrypted \"2 days ago:/\" --json
  strongroom ls --from s3://bucket/vault latest:/home --passfile /root/enc.txt")]
pub(crate) struct LsArgs {
    /// The vault, or any copy of it
    #[arg(required_unless_present = "from")]
    vault: Option<PathBuf>,
    /// Snapshot and path: latest:/home, 12:/, 2026-11-20:/etc [default: latest:/]
    #[arg(value_name = "SNAPSHOT:PATH")]
    target: Option<String>,
    /// Show type, mode, owner, size and time
    #[arg(short, long)]
    long: bool,
    /// Descend into directories
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Read a vault that is older than what this host has seen
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    unlock: UnlockArgs,
}

/// Arguments of `cat`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  strongroom cat /encrypted latest:/db/monday.sql --passfile /root/enc.txt | mysql")]
pub(crate) struct CatArgs {
    /// The vault, or any copy of it
    #[arg(required_unless_present = "from")]
    vault: Option<PathBuf>,
    /// Snapshot and path of the file
    #[arg(value_name = "SNAPSHOT:PATH")]
    target: Option<String>,
    /// Read a vault that is older than what this host has seen
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    unlock: UnlockArgs,
}

/// One entry as JSON.
#[derive(Serialize)]
pub(crate) struct EntryLine {
    pub(crate) path: String,
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) mode: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: String,
    pub(crate) inode: u64,
    pub(crate) links: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<String>,
}

impl EntryLine {
    pub(crate) fn new(path: &[u8], entry: &Entry) -> Self {
        Self {
            path: String::from_utf8_lossy(path).into_owned(),
            kind: kind_name(entry.kind),
            mode: format!("{:04o}", entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            size: size_of(entry),
            mtime: rfc3339(entry.mtime.secs, entry.mtime.nanos),
            inode: entry.ino,
            links: entry.nlink,
            target: match &entry.content {
                Content::Symlink(target) => Some(String::from_utf8_lossy(target).into_owned()),
                _ => None,
            },
        }
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::File => "file",
        FileType::Dir => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharDev => "character device",
        FileType::BlockDev => "block device",
    }
}

/// The length of an entry as stat(2) tells it: of a symbolic link, that of its target.
fn size_of(entry: &Entry) -> u64 {
    match &entry.content {
        Content::Symlink(target) => target.len() as u64,
        _ => entry.size,
    }
}

/// Type and permissions as ls(1) writes them: `-rwsr-x--x`.
fn mode_text(kind: FileType, mode: u32) -> String {
    let mut text = String::from(match kind {
        FileType::File => '-',
        FileType::Dir => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharDev => 'c',
        FileType::BlockDev => 'b',
    });
    // Each class: its bits, and the letters of its special bit with and without execution.
    for (shift, special, with, without) in
        [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (mode & special == 0, bits & 1 == 0) {
            (true, true) => '-',
            (true, false) => 'x',
            (false, true) => without,
            (false, false) => with,
        });
    }
    text
}

/// A snapshot opened for reading, and the entry that was named.
pub(crate) struct Target {
    pub(crate) source: Arc<dyn ChunkSource>,
    /// The same, if it is at a remote.
    pub(crate) remote: Option<Arc<RemotePacks>>,
    pub(crate) entry: Entry,
    pub(crate) path: Vec<u8>,
    pub(crate) seq: u64,
    /// Bytes of all files of the snapshot, for progress bars.
    pub(crate) bytes: u64,
}

impl Target {
    /// Where its files are read from, all of them and in order; at a remote, with somebody who fetches ahead.
    pub(crate) fn ahead(&self) -> CliResult<Arc<dyn ChunkSource>> {
        Ok(match &self.remote {
            Some(packs) => Arc::new(Ahead::start(packs, &self.entry)?),
            None => Arc::clone(&self.source),
        })
    }
}

/// Splits `SNAPSHOT:PATH`; the last `:/` separates, since a time has colons too. A name without one means its root.
pub(crate) fn split_target(text: &str) -> (&str, &str) {
    match text.rfind(":/") {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text.strip_suffix(':').unwrap_or(text), "/"),
    }
}

/// What will be read of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Directories, and perhaps a few files.
    Trees,
    /// Bytes of files.
    Data,
}

/// What a verb will read that is given these words, each `SNAPSHOT:PATH`.
pub(crate) fn reading(targets: &[&str], usage: Use, accept_rollback: bool) -> Reading {
    let snapshots = targets.iter().map(|target| snapshot_of(split_target(target).0).to_string()).collect();
    Reading { snapshots, data: usage == Use::Data, accept_rollback }
}

/// The snapshot that is meant where none is named.
fn snapshot_of(name: &str) -> &str {
    if name.is_empty() { "latest" } else { name }
}

/// Opens the snapshot that `target` names and finds the path in it.
pub(crate) fn open_target(vault: &ReadVault, target: &str, usage: Use) -> CliResult<Target> {
    let (name, path) = split_target(target);
    open_target_in(vault, name, path, usage)
}

/// Opens a snapshot by name and finds a path in it.
pub(crate) fn open_target_in(vault: &ReadVault, name: &str, path: &str, usage: Use) -> CliResult<Target> {
    let seq = resolve(vault, snapshot_of(name))?;
    let info = vault
        .chain
        .get(seq)
        .ok_or_else(|| CliError::new(ExitCode::NotFound, format!("there is no snapshot {seq}")))?;
    let cache = crate::config::engine_config().cache_bytes;
    let (source, remote): (Arc<dyn ChunkSource>, _) = match &vault.from {
        None => {
            let cold = open::open_cold(vault.disk.clone(), &vault.unlocked, &vault.chain, &[seq], cache)?;
            (Arc::new(cold), None)
        }
        Some(from) => {
            let (keys, header) = (Arc::clone(&vault.unlocked.keys), &vault.unlocked.header);
            let needed = vault.chain.needed_packs(seq)?;
            let data = usage == Use::Data;
            let packs = RemotePacks::open(Arc::clone(from), keys, header, &needed, cache, data)?;
            (Arc::clone(&packs) as Arc<dyn ChunkSource>, Some(packs))
        }
    };
    let sealed = open_sealed(vault.disk.as_ref(), &vault.unlocked.keys, info)?;
    let root =
        sealed.root.ok_or_else(|| CliError::new(ExitCode::NotFound, format!("{seq} is no snapshot")))?;
    let entry =
        TreeReader::new(source.as_ref()).resolve(&root.entry, path.as_bytes()).map_err(
            |error| match error {
                StoreError::NotFound(_) => CliError::new(
                    ExitCode::NotFound,
                    format!("snapshot {seq} has no {}", super::show_bytes(path.as_bytes())),
                ),
                other => other.into(),
            },
        )?;
    Ok(Target { source, remote, entry, path: path.as_bytes().to_vec(), seq, bytes: root.bytes })
}

/// The sequence number of the snapshot that `name` means.
pub(crate) fn resolve(vault: &ReadVault, name: &str) -> CliResult<u64> {
    let present = open::list_packs(vault.disk.as_ref())?.into_keys().collect();
    Ok(select_in(&vault.chain, &present, name, SystemEnv.now())?.seq)
}

/// Runs `ls`.
pub(crate) fn run_ls(args: &LsArgs, out: &Output) -> CliResult {
    let (place, [target]) = args.from.place(args.vault.as_deref(), [args.target.as_deref()])?;
    list(args, &place, target.as_deref(), out).map_err(|error| place.told(error))
}

fn list(args: &LsArgs, place: &Place, target: Option<&str>, out: &Output) -> CliResult {
    let target = target.unwrap_or("latest:/");
    let reading = reading(&[target], Use::Trees, args.accept_rollback);
    let vault = session::open_read(place, &args.unlock, reading, out)?;
    let target = open_target(&vault, target, Use::Trees)?;
    let tree = TreeReader::new(target.source.as_ref());
    let base = trim_slashes(&target.path);
    let print = |path: &[u8], entry: &Entry| print_entry(args.long, out, path, entry);
    let Content::Dir(_) = target.entry.content else {
        print(&base, &target.entry)?;
        return Ok(ExitCode::Ok);
    };
    // Depth first with an explicit stack: a hostile tree can't exhaust ours.
    let mut stack = vec![(base, target.entry.clone(), 0_usize)];
    while let Some((path, dir, depth)) = stack.pop() {
        let Content::Dir(id) = dir.content else { continue };
        if depth > crate::snapshot::tree::DEPTH_MAX {
            return Err(CliError::new(ExitCode::Corrupt, "directories nest deeper than the format allows"));
        }
        let mut after: Option<Vec<u8>> = None;
        let mut below = Vec::new();
        loop {
            let page = tree.children(&id, after.as_deref(), PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            for entry in page {
                let mut child = path.clone();
                child.push(b'/');
                child.extend_from_slice(&entry.name);
                print(&child, &entry)?;
                if args.recursive && entry.kind == FileType::Dir {
                    below.push((child, entry, depth + 1));
                }
            }
        }
        stack.extend(below.into_iter().rev());
    }
    Ok(ExitCode::Ok)
}

/// `/a/b/` -> `/a/b`; the root is empty, so that children join with one slash.
pub(crate) fn trim_slashes(path: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
    parts.iter().flat_map(|part| [b"/", *part].concat()).collect()
}

fn print_entry(long: bool, out: &Output, path: &[u8], entry: &Entry) -> CliResult<()> {
    if out.is_json() {
        return out.json_line(&EntryLine::new(path, entry));
    }
    let shown = super::show_bytes(path);
    if !long {
        return out.line(&shown);
    }
    let arrow = match &entry.content {
        Content::Symlink(target) => format!(" -> {}", super::show_bytes(target)),
        _ => String::new(),
    };
    out.line(&format!(
        "{} {:>3} {:>6} {:>6} {:>14} {} {shown}{arrow}",
        mode_text(entry.kind, entry.mode),
        entry.nlink,
        entry.uid,
        entry.gid,
        size_of(entry),
        rfc3339(entry.mtime.secs, 0),
    ))
}

/// Runs `cat`.
pub(crate) fn run_cat(args: &CatArgs, out: &Output) -> CliResult {
    let (place, [target]) = args.from.place(args.vault.as_deref(), [args.target.as_deref()])?;
    let target = target.ok_or_else(|| CliError::usage("SNAPSHOT:PATH is missing"))?;
    print_file(args, &place, &target, out).map_err(|error| place.told(error))
}

fn print_file(args: &CatArgs, place: &Place, target: &str, out: &Output) -> CliResult {
    let reading = reading(&[target], Use::Data, args.accept_rollback);
    let vault = session::open_read(place, &args.unlock, reading, out)?;
    let target = open_target(&vault, target, Use::Data)?;
    if target.entry.kind != FileType::File {
        let shown = super::show_bytes(&target.path);
        return Err(CliError::usage(format!("{shown} is no regular file"))
            .hint("`strongroom ls` lists a directory, `strongroom restore` brings it back"));
    }
    let ahead = target.ahead()?;
    let tree = TreeReader::new(ahead.as_ref());
    let mut stdout = std::io::stdout().lock();
    let mut buf = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < target.entry.size {
        let want = usize::try_from(target.entry.size - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        tree.read(&target.entry.content, target.entry.size, at, &mut buf[..want])?;
        match stdout.write_all(&buf[..want]) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(ExitCode::Ok),
            Err(e) => return Err(CliError::new(ExitCode::Io, format!("writing to standard output: {e}"))),
        }
        at += want as u64;
    }
    stdout.flush()?;
    Ok(ExitCode::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_split_at_the_path() {
        for (text, expected) in [
            ("latest:/home", ("latest", "/home")),
            ("12:/", ("12", "/")),
            ("12", ("12", "/")),
            ("latest:", ("latest", "/")),
            ("2026-11-20 14:00:/etc/x", ("2026-11-20 14:00", "/etc/x")),
            ("2026-11-20 14:00", ("2026-11-20 14:00", "/")),
            (":/a", ("", "/a")),
        ] {
            assert_eq!(split_target(text), expected, "{text}");
        }
    }

    #[test]
    fn modes_read_as_in_ls() {
        for (kind, mode, expected) in [
            (FileType::File, 0o644, "-rw-r--r--"),
            (FileType::Dir, 0o1777, "drwxrwxrwt"),
            (FileType::File, 0o4755, "-rwsr-xr-x"),
            (FileType::File, 0o2640, "-rw-r-S---"),
            (FileType::Symlink, 0o777, "lrwxrwxrwx"),
            (FileType::CharDev, 0o7000, "c--S--S--T"),
        ] {
            assert_eq!(mode_text(kind, mode), expected);
        }
    }

    #[test]
    fn paths_are_trimmed() {
        assert_eq!(trim_slashes(b"/"), b"");
        assert_eq!(trim_slashes(b"//a//b/"), b"/a/b");
    }
}
