//! Everything that can be read of a vault, by three readers, in one comparable form: the mounted working tree, a
//! snapshot read from packs alone, and what the independent checker says.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use fsck_strongroom::source::Handle;
use fsck_strongroom::{Options, Report, Source, Unlock, check_source};
use strongroom::disk::{Disk, DiskFile, OpenMode};
use strongroom::env::Time;
use strongroom::format::{Content, Entry, FileType};
use strongroom::fs::{Attr, Fs};
use strongroom::snapshot::chain::{Chain, open_sealed};
use strongroom::snapshot::open::{Unlocked, open_cold};
use strongroom::snapshot::tree::TreeReader;
use strongroom::store::error::StoreError;
use strongroom::store::packs::ChunkSource;
use strongroom::store::records::ROOT_INO;

use super::ROOT;

/// One name with everything that belongs to it but its access time.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    pub kind: FileType,
    pub ino: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub mtime: Time,
    pub ctime: Time,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub target: Vec<u8>,
    pub content: Arc<Vec<u8>>,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = blake3::hash(&self.content).to_hex();
        write!(
            f,
            "{:?} ino {} {:o} {}:{} nlink {} mtime {}.{:09} ctime {}.{:09} xattrs {:?} target {:?} {} bytes {}",
            self.kind,
            self.ino,
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.mtime.secs,
            self.mtime.nanos,
            self.ctime.secs,
            self.ctime.nanos,
            self.xattrs,
            String::from_utf8_lossy(&self.target),
            self.content.len(),
            &hash[..8],
        )
    }
}

/// All names below a root, and the root as the empty path.
pub type Dump = BTreeMap<Vec<u8>, Item>;

/// Says in words where two trees differ; `None` if they don't.
pub fn difference(is: &Dump, should: &Dump) -> Option<String> {
    let mut out = Vec::new();
    let show = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    for (path, item) in is {
        match should.get(path) {
            None => out.push(format!("{}: too many: {item:?}", show(path))),
            Some(other) if other != item => {
                let at = item.content.iter().zip(other.content.iter()).position(|(a, b)| a != b);
                out.push(format!(
                    "{}: is {item:?}\n   not {other:?} (first differing byte: {at:?})",
                    show(path)
                ));
            }
            Some(_) => {}
        }
    }
    for (path, item) in should {
        if !is.contains_key(path) {
            out.push(format!("{}: missing: {item:?}", show(path)));
        }
    }
    if out.is_empty() { None } else { Some(out.join("\n")) }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// A tree of which parts could not be read.
#[derive(Debug, Default)]
pub struct Survey {
    /// What was read.
    pub items: Dump,
    /// What was not, with the error. An entry for a directory stands for everything below it.
    pub errors: BTreeMap<Vec<u8>, String>,
}

impl Survey {
    fn whole(self) -> Result<Dump, String> {
        match self.errors.into_iter().next() {
            None => Ok(self.items),
            Some((path, error)) => Err(format!("{}: {error}", String::from_utf8_lossy(&path))),
        }
    }

    fn note(&mut self, path: &[u8], error: &dyn fmt::Display) {
        let text = error.to_string();
        let text = if text.is_empty() { "an error without text".into() } else { text };
        self.errors.insert(path.to_vec(), text);
    }

    /// Whether an error excuses that something is not among the items.
    pub fn excuses(&self, path: &[u8]) -> bool {
        self.errors.keys().any(|bad| {
            bad.is_empty() || path == bad || (path.starts_with(bad) && path.get(bad.len()) == Some(&b'/'))
        })
    }

    /// Says what is wrong if anything was read that is not exactly `should`, or is missing without an error.
    pub fn lies(&self, should: &Dump) -> Option<String> {
        let mut expected = should.clone();
        expected.retain(|path, _| self.items.contains_key(path) || !self.excuses(path));
        difference(&self.items, &expected)
    }
}

/// Reads a whole mounted tree: all names, attributes, extended attributes and bytes.
pub fn dump_fs(fs: &Fs) -> Result<Dump, String> {
    survey_fs(fs).whole()
}

/// Reads what can be read of a mounted tree.
pub fn survey_fs(fs: &Fs) -> Survey {
    let mut out = Survey::default();
    let mut contents = BTreeMap::new();
    let root = fs.getattr(ROOT_INO).map_err(|e| format!("getattr: {e}"));
    let root = root.and_then(|attr| item_fs(fs, &attr, &mut contents));
    match root {
        Ok(item) => drop(out.items.insert(Vec::new(), item)),
        Err(e) => {
            out.note(b"", &e);
            return out;
        }
    }
    let mut todo = vec![(Vec::new(), ROOT_INO)];
    while let Some((dir, ino)) = todo.pop() {
        let names = match list_fs(fs, ino) {
            Ok(names) => names,
            Err(e) => {
                out.note(&dir, &e);
                continue;
            }
        };
        for (name, listed) in names {
            let path = join(&dir, &name);
            let attr = match fs.lookup(ino, &name) {
                Ok(attr) => attr,
                Err(e) => {
                    out.note(&path, &format!("lookup: {e}"));
                    continue;
                }
            };
            if attr.ino != listed {
                out.note(&path, &format!("listed as inode {listed}, found as {}", attr.ino));
            }
            if attr.kind == FileType::Dir {
                todo.push((path.clone(), attr.ino));
            }
            match item_fs(fs, &attr, &mut contents) {
                Ok(item) => drop(out.items.insert(path, item)),
                Err(e) => out.note(&path, &e),
            }
        }
    }
    out
}

fn list_fs(fs: &Fs, ino: u64) -> Result<Vec<(Vec<u8>, u64)>, String> {
    let fh = fs.opendir(ino).map_err(|e| format!("opendir: {e}"))?;
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        let mut more = false;
        let after = cookie;
        let mut each = |ent: &strongroom::fs::DirEnt<'_>| {
            more = true;
            cookie = ent.cookie;
            if ent.name != b"." && ent.name != b".." {
                names.push((ent.name.to_vec(), ent.ino));
            }
            true
        };
        fs.readdir(fh, after, &mut each, true).map_err(|e| format!("readdir: {e}"))?;
        if !more {
            break;
        }
    }
    fs.releasedir(fh).map_err(|e| format!("releasedir: {e}"))?;
    Ok(names)
}

fn item_fs(fs: &Fs, attr: &Attr, contents: &mut BTreeMap<u64, Arc<Vec<u8>>>) -> Result<Item, String> {
    let mut content = Arc::default();
    let mut target = Vec::new();
    match attr.kind {
        FileType::File => {
            content = match contents.get(&attr.ino) {
                Some(known) => Arc::clone(known),
                None => {
                    let bytes = Arc::new(read_fs(fs, attr)?);
                    contents.insert(attr.ino, Arc::clone(&bytes));
                    bytes
                }
            }
        }
        FileType::Symlink => target = fs.readlink(attr.ino).map_err(|e| format!("readlink: {e}"))?,
        FileType::Dir | FileType::CharDev | FileType::BlockDev | FileType::Fifo | FileType::Socket => {}
    }
    let names = fs.listxattr(attr.ino).map_err(|e| format!("listxattr: {e}"))?;
    let mut xattrs = Vec::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let value = fs.getxattr(attr.ino, name).map_err(|e| format!("getxattr: {e}"))?;
        xattrs.push((name.to_vec(), value));
    }
    xattrs.sort();
    Ok(Item {
        kind: attr.kind,
        ino: attr.ino,
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        nlink: attr.nlink,
        mtime: attr.mtime,
        ctime: attr.ctime,
        xattrs,
        target,
        content,
    })
}

/// Reads a file in pieces that fit no chunk boundary.
fn read_fs(fs: &Fs, attr: &Attr) -> Result<Vec<u8>, String> {
    const PIECE: u32 = 50_000;
    let flags = strongroom::fs::OpenFlags::default();
    let fh =
        fs.open_file(attr.ino, flags, strongroom::fs::Caller::default()).map_err(|e| format!("open: {e}"))?;
    let mut out = Vec::new();
    loop {
        let piece = fs
            .read(attr.ino, fh, out.len() as u64, PIECE)
            .map_err(|e| format!("read at {}: {e}", out.len()))?;
        if piece.is_empty() {
            break;
        }
        out.extend_from_slice(&piece);
        if out.len() as u64 > attr.size {
            return Err(format!("reads {} bytes and says it has {}", out.len(), attr.size));
        }
    }
    fs.release(attr.ino, fh).map_err(|e| format!("release: {e}"))?;
    if out.len() as u64 != attr.size {
        return Err(format!("reads {} bytes and says it has {}", out.len(), attr.size));
    }
    Ok(out)
}

/// Reads what can be read of a snapshot, from packs alone.
pub fn survey_cold(source: &dyn ChunkSource, root: &Entry) -> Survey {
    let reader = TreeReader::new(source);
    let mut out = Survey::default();
    let mut contents: BTreeMap<u64, Arc<Vec<u8>>> = BTreeMap::new();
    let mut keep =
        |out: &mut Survey, path: Vec<u8>, entry: &Entry| match item_cold(&reader, entry, &mut contents) {
            Ok(item) => drop(out.items.insert(path, item)),
            Err(e) => out.note(&path, &e),
        };
    keep(&mut out, Vec::new(), root);
    for item in reader.walk(root) {
        match item {
            Ok(item) => keep(&mut out, item.path.clone(), &item.entry),
            Err(e) => out.note(&e.path, &e.source),
        }
    }
    out
}

fn item_cold(
    reader: &TreeReader<'_>,
    entry: &Entry,
    contents: &mut BTreeMap<u64, Arc<Vec<u8>>>,
) -> Result<Item, StoreError> {
    let mut content = Arc::default();
    if entry.kind == FileType::File {
        content = match contents.get(&entry.ino) {
            Some(known) => Arc::clone(known),
            None => {
                let mut bytes = vec![0xee; entry.size as usize];
                let n = reader.read(&entry.content, entry.size, 0, &mut bytes)?;
                bytes.truncate(n);
                let bytes = Arc::new(bytes);
                contents.insert(entry.ino, Arc::clone(&bytes));
                bytes
            }
        };
    }
    let target = match &entry.content {
        Content::Symlink(target) => target.clone(),
        _ => Vec::new(),
    };
    Ok(Item {
        kind: entry.kind,
        ino: entry.ino,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        nlink: entry.nlink,
        mtime: entry.mtime,
        ctime: entry.ctime,
        xattrs: entry.xattrs.clone(),
        target,
        content,
    })
}

/// Reads one snapshot through the chain, without live state.
pub fn read_snapshot(disk: &Arc<dyn Disk>, unlocked: &Unlocked, seq: u64) -> Result<Dump, String> {
    survey_snapshot(disk, unlocked, seq).map_err(|e| e.to_string())?.whole()
}

/// Reads what can be read of one snapshot through the chain, without live state.
pub fn survey_snapshot(disk: &Arc<dyn Disk>, unlocked: &Unlocked, seq: u64) -> Result<Survey, StoreError> {
    let chain = Chain::load(disk.as_ref(), &unlocked.header)?;
    let info = chain.get(seq).ok_or_else(|| StoreError::NotFound(format!("snapshot {seq}")))?;
    let sealed = open_sealed(disk.as_ref(), &unlocked.keys, info)?;
    let root = sealed.root.ok_or_else(|| StoreError::NotFound(format!("a root in file {seq}")))?;
    let cold = open_cold(disk.clone(), unlocked, &chain, &[seq], 64 << 10)?;
    Ok(survey_cold(&cold, &root.entry))
}

/// Any disk, as the checker sees it.
struct DiskSource<'a>(&'a dyn Disk);

impl Source for DiskSource<'_> {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        Ok(self.0.list(dir)?.into_iter().map(|item| item.name).collect())
    }

    fn len(&self, path: &str) -> io::Result<u64> {
        self.0.len(path)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn read(&self, path: &str, off: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.open(path, OpenMode::Read)?.read_at(buf, off)
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Handle + '_>> {
        Ok(Box::new(DiskHandle(self.0.open(path, OpenMode::Read)?)))
    }
}

struct DiskHandle(Arc<dyn DiskFile>);

impl Handle for DiskHandle {
    fn read(&self, off: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(buf, off)
    }
}

/// Runs the independent checker over everything, with the root secret.
pub fn fsck(disk: &dyn Disk) -> Result<Report, String> {
    let opts = Options { trees: true, ..Options::default() };
    check_source(&DiskSource(disk), Some(Unlock::Root(ROOT)), &opts).map_err(|e| e.to_string())
}

/// The findings of a report that mean damage, as text.
pub fn damage(report: &Report) -> Option<String> {
    let bad: Vec<String> =
        report.findings.iter().filter(|f| f.class.is_damage()).map(|f| format!("{f:?}")).collect();
    if bad.is_empty() && !report.damage { None } else { Some(bad.join("\n")) }
}

/// Compares what the checker saw of a snapshot with what it should be.
pub fn fsck_difference(report: &Report, seq: u64, should: &Dump) -> Option<String> {
    let mut out = Vec::new();
    let mut seen = 0;
    for item in report.tree(seq) {
        seen += 1;
        let at = String::from_utf8_lossy(&item.path).into_owned();
        let Some(want) = should.get(&item.path) else {
            out.push(format!("fsck: {at}: too many"));
            continue;
        };
        let kind = match want.kind {
            FileType::File => 1,
            FileType::Dir => 2,
            FileType::Symlink => 3,
            FileType::Fifo => 4,
            FileType::Socket => 5,
            FileType::CharDev => 6,
            FileType::BlockDev => 7,
        };
        let hash = (want.kind == FileType::File).then(|| *blake3::hash(&want.content).as_bytes());
        let same = item.kind == kind
            && (item.ino, item.mode, item.uid, item.gid, item.nlink)
                == (want.ino, want.mode, want.uid, want.gid, want.nlink)
            && item.mtime == (want.mtime.secs, want.mtime.nanos)
            && item.ctime == (want.ctime.secs, want.ctime.nanos)
            && item.xattrs == want.xattrs
            && item.target == want.target
            && item.content == hash
            && !item.damaged;
        if !same {
            out.push(format!("fsck: {at}: sees {item:?}\n   not {want:?}"));
        }
    }
    if seen != should.len() {
        out.push(format!("fsck: sees {seen} entries of {}", should.len()));
    }
    if out.is_empty() { None } else { Some(out.join("\n")) }
}
