//! `file:///path`: a directory, on NFS, a USB disk, anything that is mounted.
//!
//! An object is written under a scratch name, made durable, read back from the disk, and only then given its name, which
//! no file may have yet. So a name always stands for a whole object, also after a power cut.
//!
//! The directory itself is never made: where it is missing, the disk is not mounted.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::walk::{Entry, Pages, Tree};
use super::{
    Answer, Checksum, ErrorKind, Features, Key, Meta, PIECE, Page, Put, Remote, RemoteError, Result, Source,
    check_replaceable, conflict, read_piece,
};
use crate::disk::{Disk, DiskFile, DiskLock, OpenMode, RealDisk, parent};
use crate::env::Env;

/// Where objects stand until they are whole.
const SCRATCH: &str = ".incoming";
/// Who holds it may remove what others left in [`SCRATCH`].
const SCRATCH_LOCK: &str = ".incoming/lock";

/// A directory as a remote.
#[derive(Debug)]
pub struct DirRemote {
    url: String,
    disk: Arc<dyn Disk>,
    env: Arc<dyn Env>,
    scratch: Mutex<Scratch>,
    pages: Pages,
}

/// Whether [`SCRATCH`] was made ready.
#[derive(Debug, Default)]
struct Scratch {
    is_ready: bool,
    /// Held while this process runs; without it somebody else is at work here.
    _lock: Option<Box<dyn DiskLock>>,
}

impl DirRemote {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// `Misconfigured` when there is none.
    pub fn open(url: &str, path: &Path, env: Arc<dyn Env>) -> Result<Self> {
        let disk = RealDisk::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => RemoteError::new(
                ErrorKind::Misconfigured,
                format!(
                    "{}: no such directory; is the disk mounted? It is never made by itself",
                    path.display()
                ),
            ),
            _ => RemoteError::io(url, &e),
        })?;
        Ok(Self::on(url, Arc::new(disk), env))
    }

    /// A remote on any disk, for tests.
    pub fn on(url: &str, disk: Arc<dyn Disk>, env: Arc<dyn Env>) -> Self {
        Self { url: url.to_string(), disk, env, scratch: Mutex::default(), pages: Pages::default() }
    }

    /// Makes [`SCRATCH`], and removes what an interrupted run left there.
    fn prepare_scratch(&self) -> Result<()> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if scratch.is_ready {
            return Ok(());
        }
        self.disk.create_dir_all(SCRATCH).map_err(|e| RemoteError::io("making the scratch directory", &e))?;
        let lock = match self.disk.lock(SCRATCH_LOCK) {
            Ok(lock) => lock,
            Err(error) => {
                // Some network filesystems have no locks. Then nothing is swept: a file left there only takes space.
                tracing::debug!(%error, "no lock on the scratch directory");
                None
            }
        };
        if lock.is_some() {
            let items =
                self.disk.list(SCRATCH).map_err(|e| RemoteError::io("listing the scratch directory", &e))?;
            for item in items.iter().filter(|item| is_scratch(&item.name) && !item.is_dir) {
                match self.disk.remove(&format!("{SCRATCH}/{}", item.name)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(name = %item.name, error = %e, "a left-over file can't be removed");
                    }
                    _ => {}
                }
            }
        }
        *scratch = Scratch { is_ready: true, _lock: lock };
        Ok(())
    }

    /// Writes a body under a scratch name, durably, and reads it back. On error nothing is left, if that is possible.
    fn write_scratch(&self, body: &dyn Source, checksum: &Checksum) -> Result<String> {
        self.prepare_scratch()?;
        let mut random = [0; 16];
        self.env.random(&mut random);
        let path = format!("{SCRATCH}/{}", data_encoding::HEXLOWER.encode(&random));
        let file = self
            .disk
            .open(&path, OpenMode::CreateNew)
            .map_err(|e| RemoteError::io("making a scratch file", &e))?;
        match write_and_verify(file.as_ref(), body, checksum) {
            Ok(()) => Ok(path),
            Err(error) => {
                self.drop_scratch(&path);
                Err(error)
            }
        }
    }

    /// Removes a scratch file on the way out of a failure, which is what gets reported.
    fn drop_scratch(&self, path: &str) {
        if let Err(error) = self.disk.remove(path) {
            tracing::debug!(path, %error, "a scratch file stays");
        }
    }

    fn open_object(&self, key: &Key) -> Result<Arc<dyn DiskFile>> {
        self.disk.open(key.as_str(), OpenMode::Read).map_err(|e| RemoteError::io(key.as_str(), &e))
    }

    fn same(&self, key: &Key, len: u64, checksum: &Checksum) -> Result<Put> {
        let file = self.open_object(key)?;
        let fail = |e: io::Error| RemoteError::io(key.as_str(), &e);
        if file.len().map_err(fail)? != len || hash_file(file.as_ref(), len).map_err(fail)? != *checksum {
            return Err(conflict(key));
        }
        Ok(Put::Same)
    }
}

/// The names that [`DirRemote::write_scratch`] makes.
fn is_scratch(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn write_and_verify(file: &dyn DiskFile, body: &dyn Source, checksum: &Checksum) -> Result<()> {
    let fail = |e: io::Error| RemoteError::io("writing", &e);
    let mut hasher = Sha256::new();
    let mut buf = vec![0; PIECE];
    let mut off = 0;
    // A full disk is better found before an hour of writing than after it.
    file.allocate(0, body.len()).map_err(fail)?;
    while off < body.len() {
        let n = read_piece(body, &mut buf, off).map_err(|e| RemoteError::source(&e))?;
        hasher.update(&buf[..n]);
        file.write_all_at(&buf[..n], off).map_err(fail)?;
        off += n as u64;
        file.start_writeback(off - n as u64, n as u64);
    }
    if Checksum(hasher.finalize().into()) != *checksum {
        return Err(RemoteError::new(ErrorKind::Corrupt, "what is to be sent is not what its checksum says"));
    }
    file.sync_data().map_err(fail)?;
    // Now that it is durable, the hint drops it from memory: what is read back comes from the disk.
    file.start_writeback(0, body.len());
    if file.len().map_err(fail)? != body.len() || hash_file(file, body.len()).map_err(fail)? != *checksum {
        return Err(RemoteError::new(
            ErrorKind::Corrupt,
            "the disk gives back other bytes than were written",
        ));
    }
    Ok(())
}

fn hash_file(file: &dyn DiskFile, len: u64) -> io::Result<Checksum> {
    let mut hasher = Sha256::new();
    let mut buf = vec![0; PIECE];
    let mut off = 0;
    while off < len {
        let want = buf.len().min(usize::try_from(len - off).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buf[..want], off)?;
        hasher.update(&buf[..want]);
        off += want as u64;
    }
    Ok(Checksum(hasher.finalize().into()))
}

impl Remote for DirRemote {
    fn url(&self) -> String {
        self.url.clone()
    }

    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<Put> {
        let dir = parent(key.as_str());
        let fail = |e: io::Error| RemoteError::io(key.as_str(), &e);
        if self.disk.len(key.as_str()).map_err(fail)?.is_some() {
            return self.same(key, body.len(), checksum);
        }
        let scratch = self.write_scratch(body.as_ref(), checksum).map_err(|e| e.context(key.as_str()))?;
        let named = self.disk.create_dir_all(dir).and_then(|()| self.disk.rename_new(&scratch, key.as_str()));
        match named {
            Ok(()) => self.disk.sync_dir(dir).map(|()| Put::Created).map_err(fail),
            Err(e) => {
                self.drop_scratch(&scratch);
                if e.kind() == io::ErrorKind::AlreadyExists {
                    return self.same(key, body.len(), checksum);
                }
                Err(fail(e))
            }
        }
    }

    fn replace(&self, key: &Key, was: &Checksum, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<()> {
        let fail = |e: io::Error| RemoteError::io(key.as_str(), &e);
        let file = self.open_object(key)?;
        let len = file.len().map_err(fail)?;
        check_replaceable(key, len)?;
        if hash_file(file.as_ref(), len).map_err(fail)? != *was {
            return Err(conflict(key));
        }
        let scratch = self.write_scratch(body.as_ref(), checksum).map_err(|e| e.context(key.as_str()))?;
        if let Err(e) = self.disk.rename(&scratch, key.as_str()) {
            self.drop_scratch(&scratch);
            return Err(fail(e));
        }
        self.disk.sync_dir(parent(key.as_str())).map_err(fail)
    }

    fn get(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        let file = self.open_object(key)?;
        let fail = |e: io::Error| RemoteError::io(key.as_str(), &e);
        let len = file.len().map_err(fail)?;
        if range.end > len {
            let text = format!("{key} has {len} bytes, {} were expected", range.end);
            return Err(RemoteError::new(ErrorKind::Corrupt, text));
        }
        let want = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|_| RemoteError::new(ErrorKind::Local, "a range larger than memory"))?;
        let mut bytes = vec![0; want];
        file.read_exact_at(&mut bytes, range.start).map_err(fail)?;
        Ok(bytes)
    }

    fn head(&self, key: &Key) -> Result<Meta> {
        match self.disk.len(key.as_str()).map_err(|e| RemoteError::io(key.as_str(), &e))? {
            Some(len) => Ok(Meta { len, checksum: None }),
            None => Err(RemoteError::new(ErrorKind::NotFound, format!("{key}: no such object"))),
        }
    }

    fn list_page(&self, prefix: &str, after: &str) -> Result<Page> {
        self.pages.page(self, prefix, after)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let removed = self.disk.remove(key.as_str()).and_then(|()| self.disk.sync_dir(parent(key.as_str())));
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|e| RemoteError::io(key.as_str(), &e)),
        }
    }

    fn features(&self) -> Result<Features> {
        self.disk.list("").map_err(|e| RemoteError::io(&self.url, &e))?;
        let none = |what: &str| Answer::NotApplicable(format!("a directory has no {what}"));
        Ok(Features {
            create_only: Answer::Yes("a rename that replaces nothing".into()),
            versioning: none("versions"),
            object_lock: none("locks: whoever can write there can delete"),
            verification: "every object is read back from the disk before it gets its name".into(),
        })
    }
}

impl Tree for DirRemote {
    fn entries(&self, dir: &str) -> Result<Vec<Entry>> {
        let items = self.disk.list(dir).map_err(|e| RemoteError::io(&format!("listing {dir}"), &e))?;
        let ours = items.into_iter().filter(|item| !item.lossy);
        Ok(ours.map(|item| Entry { name: item.name, is_dir: item.is_dir, len: item.len }).collect())
    }
}
