//! A tree of files in one value, to compare a mount with a directory of the host's filesystem.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Times that are set are before this, times of the clock after it.
pub(crate) const CLOCK_SINCE: i64 = 1_700_000_000;

/// All that two trees must agree on for one name, but times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    kind: u32,
    mode: u32,
    owner: (u32, u32),
    /// Of a directory: as many as it should have.
    nlink: u64,
    size: u64,
    rdev: u64,
    /// The first name of the same inode.
    first_name: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    content: String,
}

/// What one tree must keep over a remount besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamps {
    pub(crate) ino: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) ctime: (i64, i64),
}

pub(crate) type Survey = BTreeMap<Vec<u8>, (Entry, Stamps)>;

/// Reads a whole tree.
pub(crate) fn survey(root: &Path) -> Survey {
    let mut out = Survey::new();
    let mut names: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    let mut paths = Vec::new();
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        paths.push((path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), path, meta));
    }
    paths.sort_by(|a, b| a.0.cmp(&b.0));
    for (relative, path, meta) in paths {
        let kind = meta.file_type();
        let mut nlink = meta.nlink();
        let content = if kind.is_symlink() {
            format!("{:?}", fs::read_link(&path).unwrap())
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(bytes.len() as u64, meta.len(), "{}", path.display());
            blake3::hash(&bytes).to_hex().to_string()
        } else if kind.is_dir() {
            let below = fs::read_dir(&path).unwrap();
            let dirs = below.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count();
            // Some filesystems don't count the names of directories, and say 1.
            if nlink == 1 {
                nlink = 2 + dirs as u64;
            }
            assert_eq!(nlink, 2 + dirs as u64, "links of {}", path.display());
            String::new()
        } else {
            String::new()
        };
        let entry = Entry {
            kind: meta.mode() & 0o170_000,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            nlink,
            size: if kind.is_dir() { 0 } else { meta.len() },
            rdev: meta.rdev(),
            first_name: names.entry(meta.ino()).or_insert_with(|| relative.clone()).clone(),
            xattrs: xattrs(&path),
            content,
        };
        let stamps = Stamps {
            ino: meta.ino(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        };
        out.insert(relative, (entry, stamps));
    }
    out
}

pub(crate) fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list = vec![0; 65_536];
    let len =
        rustix::fs::llistxattr(path, &mut list[..]).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut out = Vec::new();
    for name in list[..len].split(|b| *b == 0) {
        // The host may add labels of its own.
        if !name.starts_with(b"user.") && !name.starts_with(b"trusted.") {
            continue;
        }
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        out.push((name.to_vec(), value[..len].to_vec()));
    }
    out.sort();
    out
}

/// Says where two trees differ. Times that were set must be equal; those that the clock made can't be, but must be of the
/// clock on both sides: a set one that was lost, or that came back, shows.
pub(crate) fn difference(mount: &Survey, host: &Survey) -> Option<String> {
    let mut out = Vec::new();
    let show = |path: &[u8]| path.escape_ascii().to_string();
    for path in mount.keys().filter(|path| !host.contains_key(*path)) {
        out.push(format!("{}: only on the mount", show(path)));
    }
    for (path, (should, clock)) in host {
        match mount.get(path) {
            None => out.push(format!("{}: only on the host", show(path))),
            Some((is, _)) if is != should => out.push(format!("{}: is {is:?}\n  not {should:?}", show(path))),
            Some((_, is)) => {
                let set = clock.mtime.0 < CLOCK_SINCE;
                if (set && is.mtime != clock.mtime) || (!set && is.mtime.0 < CLOCK_SINCE) {
                    out.push(format!("{}: mtime {:?}, not {:?}", show(path), is.mtime, clock.mtime));
                }
            }
        }
    }
    if out.is_empty() { None } else { Some(out.join("\n")) }
}
