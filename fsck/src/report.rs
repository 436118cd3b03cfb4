//! What a check found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::bytes::{Id, hex};

/// What kind of thing a finding is. The order is that of the summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Bytes are not those that were written: a name, checksum, tag or id does not fit them.
    Damaged,
    /// The bytes are authentic or unprotected, and break a rule of the format.
    Malformed,
    /// A signature or the header's mac is not by the keys of this vault.
    Forged,
    /// Something that the vault must have is not there.
    Missing,
    /// The chain of snapshots has a hole: a chain file was deleted or replaced.
    Chain,
    /// The storage could not be read.
    Unreadable,
    /// A path of a snapshot that can't be restored as it was, because of one of the above.
    Affected,
    /// A snapshot newer than the newest complete one lacks packs, as during a copy.
    Incomplete,
    /// A pack or chain file that nothing needs. Harmless.
    Unreferenced,
    /// A name that the format does not know. Ignored by readers.
    Foreign,
    /// Worth knowing, and harmless.
    Note,
}

impl Class {
    /// Whether it means that data or its protection was lost.
    pub fn is_damage(self) -> bool {
        !matches!(self, Self::Incomplete | Self::Unreferenced | Self::Foreign | Self::Note)
    }

    /// The word for it, as printed and as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Malformed => "malformed",
            Self::Forged => "forged",
            Self::Missing => "missing",
            Self::Chain => "chain",
            Self::Unreadable => "unreadable",
            Self::Affected => "affected",
            Self::Incomplete => "incomplete",
            Self::Unreferenced => "unreferenced",
            Self::Foreign => "foreign",
            Self::Note => "note",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Why a structure was refused: the class, the rule of docs/format.md ("" if none has an id), and words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault it is.
    pub class: Class,
    /// The id of the broken rule, or "".
    pub rule: &'static str,
    /// One line for a person.
    pub what: String,
    /// Whether a length is above one of the format's limits.
    pub limit: bool,
}

impl Fault {
    /// The outcome in the words of the golden vectors (tests/vectors/README.md).
    pub fn outcome(&self) -> &'static str {
        match (self.class, self.rule) {
            _ if self.limit => "length",
            (Class::Forged, _) | (Class::Damaged, "") => "mac",
            (Class::Damaged, _) => "damaged",
            _ => "malformed",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.rule.is_empty() {
            write!(f, " ({})", self.rule)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// Bytes that break `rule`.
pub fn malformed(rule: &'static str, what: impl Into<String>) -> Fault {
    fault(Class::Malformed, rule, what)
}

/// Bytes longer than `rule` allows.
pub fn too_long(rule: &'static str, what: impl Into<String>) -> Fault {
    Fault { limit: true, ..malformed(rule, what) }
}

/// Bytes that are not those that were written: they don't fit a name, checksum or id of this rule.
pub fn damaged(rule: &'static str, what: impl Into<String>) -> Fault {
    fault(Class::Damaged, rule, what)
}

/// Sealed bytes that don't open: damaged, or of another key.
pub fn not_authentic(what: impl Into<String>) -> Fault {
    damaged("", what)
}

/// A fault of any class.
pub fn fault(class: Class, rule: &'static str, what: impl Into<String>) -> Fault {
    Fault { class, rule, what: what.into(), limit: false }
}

/// Storage that failed.
pub fn unreadable(what: &str, error: &std::io::Error) -> Fault {
    let class = if error.kind() == std::io::ErrorKind::NotFound { Class::Missing } else { Class::Unreadable };
    fault(class, "", format!("{what}: {error}"))
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing it is.
    pub class: Class,
    /// The id of the rule of docs/format.md, or "".
    pub rule: &'static str,
    /// The file of the vault it is about, relative to the vault; "" for none.
    pub file: String,
    /// The snapshot it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<u64>,
    /// The path in that snapshot, with unprintable bytes written as `\xNN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The chunk it is about, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk: Option<String>,
    /// One line for a person.
    pub detail: String,
}

impl Finding {
    /// A finding about a file of the vault.
    pub fn new(file: impl Into<String>, fault: Fault) -> Self {
        Self {
            class: fault.class,
            rule: fault.rule,
            file: file.into(),
            snapshot: None,
            path: None,
            chunk: None,
            detail: fault.what,
        }
    }

    /// The same, about this snapshot.
    #[must_use]
    pub fn in_snapshot(mut self, sequence: u64) -> Self {
        self.snapshot = Some(sequence);
        self
    }

    /// The same, about this path.
    #[must_use]
    pub fn at(mut self, path: &[u8]) -> Self {
        self.path = Some(show(path));
        self
    }

    /// The same, about this chunk.
    #[must_use]
    pub fn of_chunk(mut self, id: &Id) -> Self {
        self.chunk = Some(hex(id));
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.class)?;
        if let Some(sequence) = self.snapshot {
            write!(f, "snapshot {sequence}: ")?;
        }
        if let Some(path) = &self.path {
            write!(f, "{path}: ")?;
        }
        if !self.file.is_empty() {
            // Names that are not of the format, and what JSON was, are anybody's bytes.
            write!(f, "{}: ", show(self.file.as_bytes()))?;
        }
        f.write_str(&show(self.detail.as_bytes()))?;
        if let Some(chunk) = &self.chunk {
            write!(f, " [chunk {}]", chunk.get(..16).unwrap_or(chunk))?;
        }
        if !self.rule.is_empty() {
            write!(f, " ({})", self.rule)?;
        }
        Ok(())
    }
}

/// How many entries of each kind a tree has. A file with several links counts once for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Regular files.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Everything else.
    pub others: u64,
    /// Sizes of the regular files, holes included, in bytes.
    pub bytes: u64,
}

impl Counts {
    /// Entries of all kinds.
    pub fn entries(&self) -> u64 {
        self.files.saturating_add(self.directories).saturating_add(self.others)
    }

    /// Adds another tree's numbers; they stop at the largest value.
    pub fn add(&mut self, other: &Self) {
        self.files = self.files.saturating_add(other.files);
        self.directories = self.directories.saturating_add(other.directories);
        self.others = self.others.saturating_add(other.others);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// What became of one remaining snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotReport {
    /// Its sequence number.
    pub sequence: u64,
    /// Its id in hex.
    pub id: String,
    /// Its time in seconds since 1970.
    pub seconds: i64,
    /// Whether every pack that it needs is there; none if the chain leaves that open.
    pub complete: Option<bool>,
    /// How many packs it needs.
    pub packs: u64,
    /// How many of those are not there.
    pub packs_missing: u64,
    /// Whether its tree was walked to the end.
    pub walked: bool,
    /// How many of its paths can't be restored as they were.
    pub paths_affected: u64,
    /// What the walk counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted: Option<Counts>,
    /// What the snapshot says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimed: Option<Counts>,
    /// The host that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// Totals over the packs that were looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PackTotals {
    /// Pack files with a proper name.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks that were decrypted and whose id was recomputed.
    pub chunks_verified: u64,
    /// Plaintext bytes of those.
    pub bytes_verified: u64,
    /// Chunks that turned out damaged.
    pub chunks_damaged: u64,
}

/// One entry of a snapshot, as another decoder would see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TreeItem {
    /// Path from the snapshot's root, without a leading slash; empty for the root.
    #[serde(serialize_with = "as_shown")]
    pub path: Vec<u8>,
    /// 1 file, 2 directory, 3 symlink, 4 fifo, 5 socket, 6 character device, 7 block device.
    pub kind: u8,
    /// Inode number.
    pub ino: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Access, modification and change time: seconds and nanoseconds.
    pub atime: (i64, u32),
    /// Modification time.
    pub mtime: (i64, u32),
    /// Change time.
    pub ctime: (i64, u32),
    /// Link count.
    pub nlink: u32,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of a file in bytes, else 0.
    pub size: u64,
    /// Target of a symlink.
    pub target: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// BLAKE3 of a file's content, holes as zeros; none for other kinds, for damaged files and for files above
    /// [`crate::Options::hash_bytes_max`].
    pub content: Option<Id>,
    /// Whether something of it could not be read.
    pub damaged: bool,
}

fn as_shown<S: serde::Serializer>(path: &[u8], s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&show(path))
}

/// The outcome of a check.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this report's shape.
    pub report: u32,
    /// The vault's id in hex; "" if no header could be read.
    pub vault_id: String,
    /// Generation of the header that was used.
    pub generation: u64,
    /// Whether the vault was unlocked.
    pub unlocked: bool,
    /// Whether data chunks were left out (`--quick`).
    pub quick: bool,
    /// Whether the check was stopped before its end.
    pub cancelled: bool,
    /// The newest complete snapshot.
    pub latest: Option<u64>,
    /// The remaining snapshots, oldest first.
    pub snapshots: Vec<SnapshotReport>,
    /// Totals over packs.
    pub packs: PackTotals,
    /// What was found, in the order of the check.
    pub findings: Vec<Finding>,
    /// Findings that were counted and not kept, because there were too many.
    pub findings_dropped: u64,
    /// Whether a damage was among all findings, kept or not.
    pub damage: bool,
    #[serde(skip)]
    pub(crate) findings_max: usize,
    #[serde(skip)]
    pub(crate) trees: BTreeMap<u64, Vec<TreeItem>>,
}

impl Report {
    pub(crate) fn new(findings_max: usize) -> Self {
        Self {
            report: 1,
            vault_id: String::new(),
            generation: 0,
            unlocked: false,
            quick: false,
            cancelled: false,
            latest: None,
            snapshots: Vec::new(),
            packs: PackTotals::default(),
            findings: Vec::new(),
            findings_dropped: 0,
            damage: false,
            findings_max,
            trees: BTreeMap::new(),
        }
    }

    /// Keeps a finding, or counts it when there are too many already.
    pub(crate) fn push(&mut self, finding: Finding) {
        self.damage |= finding.class.is_damage();
        if self.findings.len() < self.findings_max {
            self.findings.push(finding);
        } else {
            self.findings_dropped += 1;
        }
    }

    /// Whether nothing is damaged and no snapshot is incomplete. Unreferenced packs and foreign names are clean.
    pub fn is_clean(&self) -> bool {
        !self.damage && !self.cancelled && !self.has(Class::Incomplete)
    }

    /// Whether a finding of this class was kept.
    pub fn has(&self, class: Class) -> bool {
        self.findings.iter().any(|f| f.class == class)
    }

    /// The findings of one class.
    pub fn of(&self, class: Class) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |f| f.class == class)
    }

    /// The entries of a snapshot in path order, if the check was asked to collect them
    /// ([`crate::Options::trees`]) and the snapshot could be walked.
    pub fn tree(&self, sequence: u64) -> impl Iterator<Item = &TreeItem> {
        self.trees.get(&sequence).into_iter().flatten()
    }
}

/// A path or name for printing: control characters and bytes that are no UTF-8 as `\xNN`, a backslash doubled.
pub fn show(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() => {
                    let mut buf = [0u8; 4];
                    for b in c.encode_utf8(&mut buf).bytes() {
                        out.push_str(&format!("\\x{b:02x}"));
                    }
                }
                c => out.push(c),
            }
        }
        for b in part.invalid() {
            out.push_str(&format!("\\x{b:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_reach_the_terminal_raw() {
        assert_eq!(show(b"a b"), "a b");
        assert_eq!(show(b"a\x1b[31m\\\xff\n"), "a\\x1b[31m\\\\\\xff\\x0a");
        assert_eq!(show("\u{9b}x".as_bytes()), "\\xc2\\x9bx");
        let finding = Finding::new("a\x1b]0;x\x07", fault(Class::Foreign, "LAY-2", "b\r"));
        assert_eq!(finding.to_string(), "foreign: a\\x1b]0;x\\x07: b\\x0d (LAY-2)");
    }

    #[test]
    fn too_many_findings_are_counted_and_still_damage() {
        let mut report = Report::new(1);
        report.push(Finding::new("a", fault(Class::Note, "", "x")));
        assert!(report.is_clean());
        report.push(Finding::new("b", damaged("LAY-1", "y")));
        assert_eq!((report.findings.len(), report.findings_dropped), (1, 1));
        assert!(!report.is_clean());
    }
}
