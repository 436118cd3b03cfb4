//! Rescue: collects or writes out the content of a snapshot, as much of it as there is.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use serde::Serialize;

use crate::check::{FatalError, Opened, Options};
use crate::history::PackSet;
use crate::iter::{Event, TreeIter};
use crate::keys::Unlock;
use crate::report::{Class, Finding, Report, TreeItem, fault, show};
use crate::source::Source;
use crate::store::{Contents, Outcome, Store};
use crate::tree::{Content, Entry, Node, Time};
use crate::walk::Walker;

/// Most entries that are written out.
const ENTRIES_MAX: u64 = 10_000_000_000;

/// All entries of a tree with hashes of their content.
pub(crate) fn collect(
    store: &Store<'_>,
    needs: &PackSet,
    root: &Entry,
    contents: &mut Contents<'_>,
    opts: &Options,
) -> Vec<TreeItem> {
    let mut items: Vec<TreeItem> = Vec::new();
    for event in TreeIter::new(store, needs, root.clone()) {
        if opts.cancelled() {
            break;
        }
        match event {
            Event::Leave(..) => {}
            Event::Lost(path, _) => {
                // The directory came before what was lost in it.
                if let Some(item) = items.iter_mut().rev().find(|i| i.path == path) {
                    item.damaged = true;
                }
            }
            Event::Entry(path, entry) => items.push(item(path, entry, contents, opts.hash_bytes_max)),
        }
    }
    items
}

fn item(path: Vec<u8>, entry: Entry, contents: &mut Contents<'_>, hash_bytes_max: u64) -> TreeItem {
    let mut item = TreeItem {
        path,
        kind: entry.node.kind(),
        ino: entry.ino,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        atime: entry.atime,
        mtime: entry.mtime,
        ctime: entry.ctime,
        nlink: entry.nlink,
        xattrs: entry.xattrs,
        size: 0,
        target: Vec::new(),
        device: (0, 0),
        content: None,
        damaged: false,
    };
    match entry.node {
        Node::File(size, content) => {
            item.size = size;
            if size <= hash_bytes_max {
                item.content = contents.hash(size, &content);
                item.damaged = item.content.is_none();
            }
        }
        Node::Symlink(target) => item.target = target,
        Node::CharDevice(major, minor) | Node::BlockDevice(major, minor) => item.device = (major, minor),
        Node::Directory(_) | Node::Fifo | Node::Socket => {}
    }
    item
}

/// What a restore did.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The snapshot that was written out.
    pub sequence: u64,
    /// Entries written, the root not counted.
    pub entries: u64,
    /// Bytes of file content written.
    pub bytes: u64,
    /// Paths that are not as they were, or not there at all. Class `affected`: the vault's damage; `unreadable`:
    /// the destination refused; `note`: an attribute that could not be set.
    pub findings: Vec<Finding>,
    /// Whether it was stopped before its end.
    pub cancelled: bool,
    /// What was found in the vault on the way.
    pub vault: Report,
}

impl Restored {
    /// Whether all content of the snapshot was written; attributes that could not be set don't count.
    pub fn is_whole(&self) -> bool {
        !self.cancelled && !self.findings.iter().any(|f| f.class.is_damage())
    }
}

/// Writes the chosen snapshot (`opts.snapshot`, else the newest complete one) into `to`, which must be empty or
/// not exist. What is damaged is left out, or left as a hole in its file, and named in the result.
pub fn restore(source: &dyn Source, key: Unlock, to: &Path, opts: &Options) -> Result<Restored, FatalError> {
    prepare(to)?;
    let mut opts = opts.clone();
    opts.snapshot = opts.snapshot.or(Some(crate::Select::Latest));
    // Each chunk is checked when it is read, so the packs need no pass of their own.
    opts.quick = true;
    let mut opened = Opened::new(source, Some(key), &opts)?;
    let chosen = opened.choose(&opts)?;
    let packs = opened.pack_files();
    let store = opened.packs(&opts, packs, &chosen);
    let locked = || FatalError::Io("the header is damaged: without it nothing can be decrypted".to_owned());
    let store = store.ok_or_else(locked)?;
    let n = chosen.first().copied().ok_or_else(locked)?;
    let sequence = opened.report.snapshots.get(n).map_or(0, |s| s.sequence);
    let Some((root, needs)) = opened
        .snapshot(n)
        .and_then(|(sealed, needs)| sealed.snapshot.as_ref().map(|s| (s.root.clone(), needs)))
    else {
        return Err(FatalError::NoSnapshot(format!("snapshot {sequence} can't be decrypted")));
    };
    // A directory can stand in a tree many times, so that a few objects make a tree without an end.
    let mut walker = Walker::new(&store);
    let walked = walker.snapshot(sequence, &root, &needs, &mut |_| {}, &|| opts.cancelled());
    let entries = walked.counts.entries();
    if entries > ENTRIES_MAX {
        return Err(FatalError::NoSnapshot(format!("snapshot {sequence} has {entries} entries: refused")));
    }
    let mut writer = Writer {
        to,
        root: rustix::process::geteuid().is_root(),
        links: HashMap::new(),
        contents: Contents::new(&store, &needs),
        sequence,
        out: Restored {
            sequence,
            entries: 0,
            bytes: 0,
            findings: Vec::new(),
            cancelled: false,
            vault: opened.report.clone(),
        },
    };
    for event in TreeIter::new(&store, &needs, root) {
        if opts.cancelled() {
            writer.out.cancelled = true;
            break;
        }
        match event {
            Event::Entry(path, entry) => writer.entry(&path, &entry),
            Event::Leave(path, entry) => writer.attributes(&path, &entry),
            Event::Lost(path, lost) => {
                let finding = Finding::new(lost.pack.unwrap_or_default(), lost.fault);
                writer.out.findings.push(finding.in_snapshot(sequence).at(&path).of_chunk(&lost.chunk));
            }
        }
    }
    Ok(writer.out)
}

/// The destination must be an empty directory; a missing one is made.
fn prepare(to: &Path) -> Result<(), FatalError> {
    let failed = |e: io::Error| FatalError::Io(format!("{}: {e}", to.display()));
    match fs::read_dir(to) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(FatalError::Io(format!("{} is not empty", to.display()))),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            rustix::fs::mkdir(to, Mode::RWXU).map_err(|e| failed(e.into()))
        }
        Err(e) => Err(failed(e)),
    }
}

struct Writer<'a> {
    to: &'a Path,
    /// Whether owners and devices can be set.
    root: bool,
    /// First path of files with several links, by inode number.
    links: HashMap<u64, PathBuf>,
    contents: Contents<'a>,
    sequence: u64,
    out: Restored,
}

impl Writer<'_> {
    fn tell(&mut self, class: Class, path: &[u8], what: String) {
        self.out.findings.push(Finding::new("", fault(class, "", what)).in_snapshot(self.sequence).at(path));
    }

    /// Names were checked by the decoder, so this stays below the destination.
    fn full(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.to.to_owned() } else { self.to.join(OsStr::from_bytes(path)) }
    }

    /// Makes an entry. Attributes of directories wait until everything is in them.
    fn entry(&mut self, path: &[u8], entry: &Entry) {
        if path.is_empty() {
            return;
        }
        let full = self.full(path);
        let linkable = entry.nlink > 1 && !matches!(entry.node, Node::Directory(_));
        if linkable && let Some(first) = self.links.get(&entry.ino) {
            match fs::hard_link(first, &full) {
                Ok(()) => self.out.entries += 1,
                Err(e) => self.tell(Class::Unreadable, path, format!("hard link: {e}")),
            }
            return;
        }
        match self.make(path, &full, entry) {
            Ok(()) => {
                self.out.entries += 1;
                if linkable {
                    self.links.insert(entry.ino, full);
                }
                if !matches!(entry.node, Node::Directory(_)) {
                    self.attributes(path, entry);
                }
            }
            Err(e) => self.tell(Class::Unreadable, path, format!("not written: {e}")),
        }
    }

    fn make(&mut self, path: &[u8], full: &Path, entry: &Entry) -> io::Result<()> {
        let private = Mode::RUSR | Mode::WUSR;
        let device = |major, minor| rustix::fs::makedev(major, minor);
        match &entry.node {
            Node::Directory(_) => rustix::fs::mkdir(full, Mode::RWXU)?,
            Node::File(size, content) => return self.file(path, full, *size, content),
            Node::Symlink(target) => rustix::fs::symlink(OsStr::from_bytes(target), full)?,
            Node::Fifo => rustix::fs::mknodat(CWD, full, FileType::Fifo, private, 0)?,
            Node::Socket => rustix::fs::mknodat(CWD, full, FileType::Socket, private, 0)?,
            Node::CharDevice(major, minor) => {
                rustix::fs::mknodat(CWD, full, FileType::CharacterDevice, private, device(*major, *minor))?;
            }
            Node::BlockDevice(major, minor) => {
                rustix::fs::mknodat(CWD, full, FileType::BlockDevice, private, device(*major, *minor))?;
            }
        }
        Ok(())
    }

    /// Writes a file's content. Damaged parts stay holes, and the file is named.
    fn file(&mut self, path: &[u8], full: &Path, size: u64, content: &Content) -> io::Result<()> {
        let file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(full)?;
        let mut bytes = 0;
        let outcome = self.contents.read(size, content, &mut |at, part| {
            bytes += part.len() as u64;
            file.write_all_at(part, at)
        });
        self.out.bytes += bytes;
        let done = outcome.and_then(|outcome| file.set_len(size).map(|()| outcome));
        match done {
            Ok(outcome) => {
                self.damage(path, outcome);
                Ok(())
            }
            Err(e) => {
                // Half a file must not pass for the file.
                fs::remove_file(full)?;
                Err(e)
            }
        }
    }

    fn damage(&mut self, path: &[u8], outcome: Outcome) {
        let bytes = outcome.lost_bytes;
        for lost in outcome.lost {
            let how_much = match bytes {
                u64::MAX => "content that can't be found is left as holes".to_owned(),
                n => format!("{n} bytes of it are left as holes"),
            };
            let what = fault(Class::Affected, lost.fault.rule, format!("{how_much}: {}", lost.fault.what));
            let finding = Finding::new(lost.pack.unwrap_or_default(), what);
            self.out.findings.push(finding.in_snapshot(self.sequence).at(path).of_chunk(&lost.chunk));
        }
    }

    /// Sets owner, attributes, mode and times, in the order in which they don't undo each other.
    fn attributes(&mut self, path: &[u8], entry: &Entry) {
        let full = self.full(path);
        let mut failed: Vec<String> = Vec::new();
        let symlink = matches!(entry.node, Node::Symlink(_));
        let mut owned = self.root;
        if self.root {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            if let Err(e) = rustix::fs::chownat(CWD, &full, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
                failed.push(format!("owner: {e}"));
                owned = false;
            }
        }
        for (name, value) in &entry.xattrs {
            if let Err(e) = rustix::fs::lsetxattr(&full, OsStr::from_bytes(name), value, XattrFlags::empty())
            {
                failed.push(format!("attribute {}: {e}", show(name)));
            }
        }
        if !symlink {
            // Another owner must not come to lend his rights to whoever runs the file.
            let mode = if owned { entry.mode } else { entry.mode & 0o1777 };
            if let Err(e) = rustix::fs::chmod(&full, Mode::from_raw_mode(mode)) {
                failed.push(format!("mode: {e}"));
            }
        }
        let times =
            Timestamps { last_access: timespec(entry.atime), last_modification: timespec(entry.mtime) };
        if let Err(e) = rustix::fs::utimensat(CWD, &full, &times, AtFlags::SYMLINK_NOFOLLOW) {
            failed.push(format!("times: {e}"));
        }
        for what in failed {
            self.tell(Class::Note, path, what);
        }
    }
}

fn timespec((seconds, nanoseconds): Time) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
}
