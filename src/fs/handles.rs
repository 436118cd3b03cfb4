//! Open files and directories.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::Core;
use super::dir::{Listing, NewInode};
use super::error::FsResult;
use super::flush::FlushFor;
use super::link::Unnamed;
use super::node::NodeRef;
use super::types::{Attr, Caller, Fh, OpenFlags};
use crate::format::tree::FileType;
use rustix::io::Errno;

/// A file that had data before and is closed with fewer dirty bytes than this keeps them in memory for a few seconds:
/// a log that is opened, appended to and closed for each line would otherwise get a chunk for each.
const CLOSE_KEEPS_MAX: u64 = 64 << 10;

/// What a handle stands for.
#[derive(Debug)]
pub(super) enum Handle {
    /// An open file.
    File {
        /// The file.
        node: NodeRef,
        /// Opened for writing.
        write: bool,
        /// How many of the file's failures this handle has reported.
        reported: AtomicU64,
    },
    /// An open directory.
    Dir {
        /// The directory.
        ino: u64,
        /// How far it was listed.
        listing: Mutex<Listing>,
    },
}

impl Handle {
    /// Returns the open file. EBADF if it is not this one.
    pub(super) fn node(&self, ino: u64) -> FsResult<&NodeRef> {
        match self {
            Handle::File { node, .. } if node.ino == ino => Ok(node),
            Handle::File { .. } | Handle::Dir { .. } => Err(Errno::BADF.into()),
        }
    }
}

/// All handles.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: AtomicU64,
    map: RwLock<HashMap<u64, Arc<Handle>>>,
}

impl Handles {
    /// Adds a handle. Numbers are never used twice.
    pub(super) fn add(&self, handle: Handle) -> Fh {
        let fh = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.map.write().unwrap_or_else(PoisonError::into_inner).insert(fh, Arc::new(handle));
        Fh(fh)
    }

    /// Returns a handle. EBADF if there is none.
    pub(super) fn get(&self, fh: Fh) -> FsResult<Arc<Handle>> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.get(&fh.0).map(Arc::clone).ok_or_else(|| Errno::BADF.into())
    }

    fn remove(&self, fh: Fh) -> FsResult<Arc<Handle>> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.remove(&fh.0).ok_or_else(|| Errno::BADF.into())
    }

    /// Returns how many there are.
    pub(super) fn len(&self) -> u64 {
        self.map.read().unwrap_or_else(PoisonError::into_inner).len() as u64
    }
}

impl Core {
    /// Opens a file.
    pub(super) fn open_file(&self, ino: u64, flags: OpenFlags, caller: Caller) -> FsResult<Fh> {
        if flags.write || flags.truncate {
            self.writable()?;
        }
        let node = self.node(ino)?;
        let mut data = node.lock();
        if data.dead {
            return Err(Errno::NOENT.into());
        }
        data.opens += 1;
        data.writers += u32::from(flags.write);
        let reported = AtomicU64::new(data.failures);
        let cut = flags.truncate && data.size > 0;
        drop(data);
        let fh = self.handles.add(Handle::File { node, write: flags.write, reported });
        if cut && let Err(error) = self.truncate(ino, 0, caller.uid != 0) {
            self.release(ino, fh)?;
            return Err(error);
        }
        Ok(fh)
    }

    /// Makes a file unless it exists, and opens it.
    pub(super) fn create(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: OpenFlags,
        caller: Caller,
    ) -> FsResult<(Attr, Fh)> {
        let new = NewInode { kind: FileType::File, mode, umask, rdev: (0, 0), target: b"" };
        let attr = match self.make(parent, name, &new, caller) {
            Err(error) if error.errno == Errno::EXIST && !flags.exclusive => self.lookup(parent, name)?,
            other => other?,
        };
        let fh = self.open_file(attr.ino, flags, caller)?;
        let attr = if attr.size > 0 { self.getattr(attr.ino)? } else { attr };
        Ok((attr, fh))
    }

    /// What close(2) waits for: reports a failure that this handle has not seen, and sets the file's data on its way.
    pub(super) fn flush_handle(&self, ino: u64, fh: Fh) -> FsResult<()> {
        let handle = self.handles.get(fh)?;
        let Handle::File { node, write, reported } = &*handle else { return Err(Errno::BADF.into()) };
        if node.ino != ino {
            return Err(Errno::BADF.into());
        }
        if !*write {
            return Ok(());
        }
        let mut data = node.lock();
        if data.dead {
            return Ok(());
        }
        let unseen = reported.swap(data.failures, Ordering::Relaxed) != data.failures;
        if let (true, Some(error)) = (unseen, &data.last_error) {
            return Err(error.clone());
        }
        if data.dirty.is_empty() || (data.dirty.bytes() < CLOSE_KEEPS_MAX && self.has_content(ino)?) {
            return Ok(());
        }
        let jobs = self.cut_all(node, &mut data, FlushFor::Packs)?;
        drop(data);
        self.submit(node, jobs);
        Ok(())
    }

    fn has_content(&self, ino: u64) -> FsResult<bool> {
        self.read_meta(|meta| Ok(meta.inode(ino)?.blocks > 0))
    }

    /// Closes a handle. A file without a name goes with its last one.
    pub(super) fn release(&self, ino: u64, fh: Fh) -> FsResult<()> {
        let handle = self.handles.remove(fh)?;
        let node = handle.node(ino)?;
        let mut data = node.lock();
        data.opens = data.opens.saturating_sub(1);
        let wrote = matches!(&*handle, Handle::File { write: true, .. });
        data.writers = data.writers.saturating_sub(u32::from(wrote));
        let last = data.opens == 0;
        drop(data);
        if last && !self.read_only {
            match self.read_meta(|meta| Ok(meta.inode(ino)?.nlink)) {
                Ok(0) => self.reap(Unnamed(Some(ino)))?,
                Ok(_) => {}
                Err(error) if error.errno == Errno::NOENT => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns whether a handle of this file may write: the kernel may then have data that we don't.
    pub(super) fn has_writers(&self, ino: u64) -> bool {
        self.find_node(ino).is_some_and(|node| node.lock().writers > 0)
    }

    /// Closes a directory.
    pub(super) fn releasedir(&self, fh: Fh) -> FsResult<()> {
        self.handles.remove(fh).map(drop)
    }
}
