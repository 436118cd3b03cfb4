//! Where the bytes of a vault come from.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::report::{Fault, fault, unreadable};

/// Read-only access to the files of a vault, by paths relative to it with `/` between their parts.
///
/// A checker may ask from several threads at once.
pub trait Source: Sync {
    /// The names in a folder, "" being the vault itself, in any order. A missing folder is `NotFound`.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Length of a file in bytes.
    fn len(&self, path: &str) -> io::Result<u64>;
    /// Reads up to `buf.len()` bytes at `off`; 0 means the end.
    fn read(&self, path: &str, off: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// A file that is going to be read often, when opening it once is cheaper.
    fn open(&self, path: &str) -> io::Result<Box<dyn Handle + '_>> {
        Ok(Box::new(ByPath { path: path.to_owned(), read: Box::new(|p, o, b| self.read(p, o, b)) }))
    }
}

/// An open file of a [`Source`].
pub trait Handle {
    /// Reads up to `buf.len()` bytes at `off`; 0 means the end.
    fn read(&self, off: u64, buf: &mut [u8]) -> io::Result<usize>;
}

type ReadFn<'a> = Box<dyn Fn(&str, u64, &mut [u8]) -> io::Result<usize> + 'a>;

struct ByPath<'a> {
    path: String,
    read: ReadFn<'a>,
}

impl Handle for ByPath<'_> {
    fn read(&self, off: u64, buf: &mut [u8]) -> io::Result<usize> {
        (self.read)(&self.path, off, buf)
    }
}

/// A vault in a directory.
#[derive(Debug)]
pub struct DirSource {
    root: PathBuf,
}

impl DirSource {
    /// The vault at `root`. Nothing is read yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Opens a regular file. Anything else is refused, without waiting for the other end of a fifo.
    fn file(&self, path: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = File::from(rustix::fs::open(self.root.join(path), flags, Mode::empty())?);
        let kind = file.metadata()?.file_type();
        if kind.is_file() {
            return Ok(file);
        }
        let what = if kind.is_dir() {
            "a directory"
        } else if kind.is_fifo() {
            "a fifo"
        } else {
            "not a regular file"
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("is {what}")))
    }
}

impl Source for DirSource {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(dir))? {
            // Names of the format are ASCII; another one only has to be told apart from them.
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn len(&self, path: &str) -> io::Result<u64> {
        Ok(self.file(path)?.metadata()?.len())
    }

    fn read(&self, path: &str, off: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file(path)?.read_at(buf, off)
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Handle + '_>> {
        Ok(Box::new(OpenFile(self.file(path)?)))
    }
}

struct OpenFile(File);

impl Handle for OpenFile {
    fn read(&self, off: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(buf, off)
    }
}

/// Fills `buf` from `off`, or says that the file ends before.
pub(crate) fn read_exact(
    file: &(dyn Handle + '_),
    path: &str,
    mut off: u64,
    mut buf: &mut [u8],
) -> Result<(), Fault> {
    while !buf.is_empty() {
        match file.read(off, buf) {
            Ok(0) => {
                return Err(fault(crate::Class::Damaged, "", format!("the file ends at byte {off}")));
            }
            Ok(n) => {
                let n = n.min(buf.len());
                off += n as u64;
                buf = &mut buf[n..];
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(unreadable(&format!("reading {path} at byte {off}"), &e)),
        }
    }
    Ok(())
}

/// Reads a whole file of at most `max` bytes; `None` when it is longer.
pub(crate) fn read_all(source: &dyn Source, path: &str, max: u64) -> Result<Option<Vec<u8>>, Fault> {
    let len = source.len(path).map_err(|e| unreadable("opening", &e))?;
    if len > max {
        return Ok(None);
    }
    let len = usize::try_from(len)
        .map_err(|_| fault(crate::Class::Unreadable, "", "file too large for this machine"))?;
    let file = source.open(path).map_err(|e| unreadable("opening", &e))?;
    let mut bytes = vec![0; len];
    read_exact(&*file, path, 0, &mut bytes)?;
    Ok(Some(bytes))
}
