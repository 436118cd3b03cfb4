//! One method for each request of the kernel.
//!
//! Every method has the same shape: [`Adapter::call`] (or, for what may wait, [`Adapter::slow`]) makes the call inside a
//! span and a `catch_unwind`, and `answer!` sends the result or the error. A panic poisons the vault and answers EIO: what
//! it left half done in memory must not reach the disk.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, FopenFlags, Generation, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::errno::{self, Weight, panic_text};
use super::lane::Lane;
use super::op::{self, Op};
use super::options::AdapterOptions;
use super::readers::Readers;
use super::suid::{self, without_suid};
use super::{init, reply};
use crate::fs::{self, Attr, Caller, DirEnt, Fh, Fs, FsResult, SetAttr, Whence};

/// The root of every mount.
const ROOT: u64 = 1;
/// Inode numbers are never used twice, so they need no generation.
const GENERATION: Generation = Generation(0);
/// The reply to copy_file_range(2) has 32 bits. A round number keeps the next part aligned.
const COPY_BYTES_MAX: u64 = 1 << 30;
/// Threads that are never in the slow lane.
const FAST_THREADS: usize = 2;
/// Threads that may wait for the kernel: the width of the lane for that.
const HANDOVER_THREADS: usize = 1;
/// lseek(2)'s names for its modes.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Sends a result: the one way out of every method.
macro_rules! answer {
    ($reply:ident, $result:expr, $value:pat => $send:expr) => {
        match $result {
            Ok($value) => $send,
            Err(errno) => $reply.error(errno),
        }
    };
}

/// See the module.
pub struct Adapter {
    inner: Arc<Inner>,
    slow_width: usize,
}

pub(super) struct Inner {
    fs: Arc<Fs>,
    options: AdapterOptions,
    lane: Lane,
    /// Calls that make the kernel hand over data, one at a time; see [`Inner::hand_over`].
    handover: Lane,
    readers: Arc<Readers>,
    notifier: OnceLock<Notifier>,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter").finish_non_exhaustive()
    }
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

impl Inner {
    /// Makes one call, whatever happens in it.
    fn call<T>(
        &self,
        op: Op,
        req: u64,
        ino: u64,
        work: impl FnOnce(&Fs) -> FsResult<T>,
    ) -> Result<T, fuser::Errno> {
        let _span = tracing::debug_span!("fuse", op = op.name(), req, ino).entered();
        // Monitors ask for free space without using anything.
        self.options.activity.request(op, op != op::STATFS);
        match catch_unwind(AssertUnwindSafe(|| work(&self.fs))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if errno::weight(error.errno) == Weight::Trouble {
                    self.options.activity.error();
                    tracing::error!(op = op.name(), ino, %error, "request failed");
                } else {
                    tracing::debug!(%error);
                }
                Err(errno::to_kernel(&error))
            }
            Err(payload) => {
                let text = panic_text(&*payload);
                self.options.activity.error();
                tracing::error!(
                    op = op.name(),
                    ino,
                    text,
                    "request panicked; no more writes until the vault is mounted anew"
                );
                (self.options.poison)(text);
                Err(fuser::Errno::EIO)
            }
        }
    }

    /// Those who read requests.
    pub(super) fn readers(&self) -> Arc<Readers> {
        self.readers.clone()
    }

    /// Lets the kernel know the connection's way back, once there is a connection.
    pub(super) fn set_notifier(&self, notifier: Notifier) {
        // Set once by the one session there is.
        drop(self.notifier.set(notifier));
    }

    /// Makes the kernel ask for an inode's attributes again, because its mode changed without it. Of attributes alone this
    /// may be sent from within a request: it takes no lock that a request holds.
    fn attributes_changed(&self, ino: u64) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(ino), -1, 0)
        {
            tracing::debug!(ino, %error, "invalidating attributes");
        }
    }

    /// Makes the kernel send what was written to a file and is still in its cache. By itself it does not when it asks for data and
    /// holes: cp(1) would take unsent data for a hole. Never from the slow lane: this waits for writes, which go through it.
    fn hand_over(&self, ino: u64) {
        let Some(notifier) = self.notifier.get() else { return };
        if let Err(error) = notifier.inval_inode(INodeNo(ino), 0, 0) {
            tracing::debug!(ino, %error, "dropping pages, dirty ones after writing them");
        }
    }

    /// Tells whether a change of content by this caller takes a file's set-user-id or set-group-id bit away.
    fn loses_suid(fs: &Fs, ino: u64, caller: Caller) -> FsResult<bool> {
        Ok(caller.uid != 0 && without_suid(fs.getattr(ino)?.mode).is_some())
    }

    /// After a change of content through a call that does not say who makes it: takes the bits away.
    fn drop_suid(&self, fs: &Fs, ino: u64, caller: Caller) -> FsResult<()> {
        if caller.uid != 0
            && let Some(mode) = without_suid(fs.getattr(ino)?.mode)
        {
            fs.setattr(ino, SetAttr { mode: Some(mode), ..SetAttr::default() }, None, caller)?;
            self.attributes_changed(ino);
        }
        Ok(())
    }

    fn ttl(&self, ino: u64) -> std::time::Duration {
        reply::ttl(ino, self.options.snapshot)
    }
}

impl Adapter {
    /// Returns an adapter for a filesystem.
    pub fn new(fs: Arc<Fs>, options: AdapterOptions) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let slow_width = (2 * cores).clamp(4, 16);
        Self {
            inner: Arc::new(Inner {
                fs,
                options,
                lane: Lane::new(slow_width),
                handover: Lane::new(HANDOVER_THREADS),
                readers: Arc::default(),
                notifier: OnceLock::new(),
            }),
            slow_width,
        }
    }

    pub(super) fn inner(&self) -> Arc<Inner> {
        self.inner.clone()
    }

    /// How many threads are to read requests.
    pub(super) fn threads(&self) -> usize {
        self.slow_width + HANDOVER_THREADS + FAST_THREADS
    }

    fn call<T>(
        &self,
        req: &Request,
        op: Op,
        ino: INodeNo,
        work: impl FnOnce(&Fs) -> FsResult<T>,
    ) -> Result<T, fuser::Errno> {
        self.inner.call(op, req.unique().0, ino.0, work)
    }

    /// Makes a call that may wait, in the slow lane; `work` also sends the reply.
    fn slow(&self, work: impl FnOnce(&Inner) + Send + 'static) {
        match self.inner.lane.enter() {
            Some(_pass) => work(&self.inner),
            None => {
                let inner = self.inner.clone();
                self.inner.lane.submit(Box::new(move || work(&inner)));
            }
        }
    }

    /// Answers what made a new name, which is never in a snapshot.
    fn entry(result: Result<Attr, fuser::Errno>, reply: ReplyEntry) {
        answer!(reply, result, attr => reply.entry(&reply::TTL, &reply::attr(&attr), GENERATION));
    }

    fn empty(result: Result<(), fuser::Errno>, reply: ReplyEmpty) {
        answer!(reply, result, () => reply.ok());
    }

    fn opened(&self, result: Result<Fh, fuser::Errno>, flags: FopenFlags, reply: ReplyOpen) {
        answer!(reply, result, fh => {
            self.inner.options.activity.opened();
            reply.opened(FileHandle(fh.0), flags);
        });
    }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        init::negotiate(config).map(|_| ())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _busy = self.inner.readers.busy();
        // "Not there" is an answer like any other here, and the kernel is to remember it.
        let found = self.call(req, op::LOOKUP, parent, |fs| match fs.lookup(parent.0, name.as_bytes()) {
            Ok(attr) => Ok(Some(attr)),
            Err(error) if error.errno == rustix::io::Errno::NOENT => Ok(None),
            Err(error) => Err(error),
        });
        answer!(reply, found, found => match found {
            Some(attr) => reply.entry(&self.inner.ttl(attr.ino), &reply::attr(&attr), GENERATION),
            None => reply.entry(&reply::negative_ttl(parent.0, self.inner.options.snapshot), &reply::absent(), GENERATION),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.inner.fs.forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _busy = self.inner.readers.busy();
        let result = self.call(req, op::GETATTR, ino, |fs| fs.getattr(ino.0));
        answer!(reply, result, attr => reply.attr(&self.inner.ttl(ino.0), &reply::attr(&attr)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _busy = self.inner.readers.busy();
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(reply::set_time),
            mtime: mtime.map(reply::set_time),
            ctime: ctime.map(reply::from_system),
        };
        let (unique, caller, fh) = (req.unique().0, caller(req), fh.map(|fh| Fh(fh.0)));
        // The kernel keeps times and hands them in late, even for a file that has lost its last name and handle since:
        // an error would come up at the next sync of the whole mount.
        let late = SetAttr { mtime: set.mtime, ctime: set.ctime, ..SetAttr::default() } == set;
        let work = move |inner: &Inner| {
            let result =
                inner.call(op::SETATTR, unique, ino.0, |fs| match fs.setattr(ino.0, set, fh, caller) {
                    Err(error) if late && error.errno == rustix::io::Errno::NOENT => {
                        Ok(reply::nameless(ino.0))
                    }
                    other => other.map(|attr| reply::attr(&attr)),
                });
            answer!(reply, result, attr => reply.attr(&inner.ttl(ino.0), &attr));
        };
        // Only truncation waits for data.
        if size.is_some() { self.slow(work) } else { work(&self.inner) }
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let _busy = self.inner.readers.busy();
        let result = self.call(req, op::READLINK, ino, |fs| fs.readlink(ino.0));
        answer!(reply, result, target => reply.data(&target));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _busy = self.inner.readers.busy();
        let Some(kind) = reply::kind_of_mode(mode) else { return reply.error(fuser::Errno::EINVAL) };
        let rdev = reply::decode_dev(rdev);
        let made =
            |fs: &Fs| fs.mknod(parent.0, name.as_bytes(), kind, mode & 0o7777, umask, rdev, caller(req));
        Self::entry(self.call(req, op::MKNOD, parent, made), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _busy = self.inner.readers.busy();
        let made = |fs: &Fs| fs.mkdir(parent.0, name.as_bytes(), mode & 0o7777, umask, caller(req));
        Self::entry(self.call(req, op::MKDIR, parent, made), reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = self.inner.readers.busy();
        Self::empty(self.call(req, op::UNLINK, parent, |fs| fs.unlink(parent.0, name.as_bytes())), reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = self.inner.readers.busy();
        Self::empty(self.call(req, op::RMDIR, parent, |fs| fs.rmdir(parent.0, name.as_bytes())), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _busy = self.inner.readers.busy();
        let target = target.as_os_str().as_bytes();
        let made = |fs: &Fs| fs.symlink(parent.0, name.as_bytes(), target, caller(req));
        Self::entry(self.call(req, op::SYMLINK, parent, made), reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _busy = self.inner.readers.busy();
        let known = RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE;
        let ours = fs::RenameFlags {
            noreplace: flags.contains(RenameFlags::RENAME_NOREPLACE),
            exchange: flags.contains(RenameFlags::RENAME_EXCHANGE),
        };
        if !known.contains(flags) || (ours.noreplace && ours.exchange) {
            return reply.error(fuser::Errno::EINVAL);
        }
        let (unique, name, newname) = (req.unique().0, name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        // Renaming over a file flushes the source first.
        self.slow(move |inner| {
            let renamed = |fs: &Fs| fs.rename(parent.0, &name, newparent.0, &newname, ours);
            Self::empty(inner.call(op::RENAME, unique, parent.0, renamed), reply);
        });
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let _busy = self.inner.readers.busy();
        let made = |fs: &Fs| fs.link(ino.0, newparent.0, newname.as_bytes());
        Self::entry(self.call(req, op::LINK, ino, made), reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _busy = self.inner.readers.busy();
        let (unique, caller, flags) = (req.unique().0, caller(req), fs::OpenFlags::from_bits(flags.0));
        let work = move |inner: &Inner| {
            let opened = inner.call(op::OPEN, unique, ino.0, |fs| {
                let loses = flags.truncate && Inner::loses_suid(fs, ino.0, caller)?;
                Ok((fs.open_file(ino.0, flags, caller)?, loses))
            });
            answer!(reply, opened, (fh, loses) => {
                if loses {
                    inner.attributes_changed(ino.0);
                }
                inner.options.activity.opened();
                // The kernel's pages stay true: nobody else changes files.
                reply.opened(FileHandle(fh.0), FopenFlags::FOPEN_KEEP_CACHE);
            });
        };
        if flags.truncate { self.slow(work) } else { work(&self.inner) }
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _busy = self.inner.readers.busy();
        let unique = req.unique().0;
        self.slow(move |inner| {
            let result = inner.call(op::READ, unique, ino.0, |fs| fs.read(ino.0, Fh(fh.0), offset, size));
            answer!(reply, result, data => reply.data(&data));
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _busy = self.inner.readers.busy();
        let (unique, kill_suid) = (req.unique().0, write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID));
        let write = move |inner: &Inner, data: &[u8], reply: ReplyWrite| {
            let result = inner.call(op::WRITE, unique, ino.0, |fs| {
                let loses = kill_suid && without_suid(fs.getattr(ino.0)?.mode).is_some();
                Ok((fs.write(ino.0, Fh(fh.0), offset, data, kill_suid)?, loses))
            });
            answer!(reply, result, (written, loses) => {
                if loses {
                    inner.attributes_changed(ino.0);
                }
                match u32::try_from(written) {
                    Ok(written) => reply.written(written),
                    Err(_) => reply.error(fuser::Errno::EIO),
                }
            });
        };
        match self.inner.lane.enter() {
            Some(_pass) => write(&self.inner, data, reply),
            None => {
                let (inner, data) = (self.inner.clone(), data.to_vec());
                self.inner.lane.submit(Box::new(move || write(&inner, &data, reply)));
            }
        }
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let _busy = self.inner.readers.busy();
        let unique = req.unique().0;
        self.slow(move |inner| {
            Self::empty(inner.call(op::FLUSH, unique, ino.0, |fs| fs.flush(ino.0, Fh(fh.0))), reply);
        });
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _busy = self.inner.readers.busy();
        let unique = req.unique().0;
        self.inner.options.activity.released();
        self.slow(move |inner| {
            Self::empty(inner.call(op::RELEASE, unique, ino.0, |fs| fs.release(ino.0, Fh(fh.0))), reply);
        });
    }

    fn fsync(&self, req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let _busy = self.inner.readers.busy();
        let unique = req.unique().0;
        self.slow(move |inner| {
            Self::empty(inner.call(op::FSYNC, unique, ino.0, |fs| fs.fsync(ino.0, datasync)), reply);
        });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _busy = self.inner.readers.busy();
        let result = self.call(req, op::OPENDIR, ino, |fs| fs.opendir(ino.0));
        self.opened(result, FopenFlags::empty(), reply);
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _busy = self.inner.readers.busy();
        let mut add = |entry: &DirEnt<'_>| {
            let full = reply.add(
                INodeNo(entry.ino),
                entry.cookie,
                reply::kind(entry.kind),
                OsStr::from_bytes(entry.name),
            );
            !full
        };
        let result = self.call(req, op::READDIR, ino, |fs| fs.readdir(Fh(fh.0), offset, &mut add, false));
        answer!(reply, result, () => reply.ok());
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _busy = self.inner.readers.busy();
        let mut add = |entry: &DirEnt<'_>| {
            // `.` and `..` come without attributes; the kernel does not look at theirs.
            let attr = entry.attr.as_ref().map_or_else(
                || fuser::FileAttr {
                    ino: INodeNo(entry.ino),
                    kind: reply::kind(entry.kind),
                    ..reply::absent()
                },
                reply::attr,
            );
            let name = OsStr::from_bytes(entry.name);
            let ttl = self.inner.ttl(entry.ino);
            !reply.add(INodeNo(entry.ino), entry.cookie, name, &ttl, &attr, GENERATION)
        };
        let result = self.call(req, op::READDIRPLUS, ino, |fs| fs.readdir(Fh(fh.0), offset, &mut add, true));
        answer!(reply, result, () => reply.ok());
    }

    fn releasedir(&self, req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let _busy = self.inner.readers.busy();
        self.inner.options.activity.released();
        Self::empty(self.call(req, op::RELEASEDIR, ino, |fs| fs.releasedir(Fh(fh.0))), reply);
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let _busy = self.inner.readers.busy();
        let unique = req.unique().0;
        self.slow(move |inner| {
            Self::empty(inner.call(op::FSYNCDIR, unique, ino.0, |fs| fs.fsyncdir(ino.0)), reply);
        });
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let _busy = self.inner.readers.busy();
        let result = self.call(req, op::STATFS, ino, |fs| fs.statfs());
        answer!(reply, result, s => {
            reply.statfs(s.blocks, s.free, s.available, s.files, s.files_free, s.block_size, s.name_max, s.block_size);
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _busy = self.inner.readers.busy();
        let caller = caller(req);
        let set = |fs: &Fs| {
            fs.setxattr(ino.0, name.as_bytes(), value, flags)?;
            if name == suid::ACL_XATTR && suid::acl_takes_sgid(&fs.getattr(ino.0)?, caller) {
                let mode = Some(fs.getattr(ino.0)?.mode & !suid::SGID);
                fs.setattr(ino.0, SetAttr { mode, ..SetAttr::default() }, None, caller)?;
                self.inner.attributes_changed(ino.0);
            }
            Ok(())
        };
        Self::empty(self.call(req, op::SETXATTR, ino, set), reply);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _busy = self.inner.readers.busy();
        let options = &self.inner.options;
        if ino.0 == ROOT && name == options.vault_xattr && !options.vault.is_empty() {
            return reply::xattr(Ok(self.inner.options.vault.clone()), size, reply);
        }
        reply::xattr(
            self.call(req, op::GETXATTR, ino, |fs| fs.getxattr(ino.0, name.as_bytes())),
            size,
            reply,
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _busy = self.inner.readers.busy();
        let list = |fs: &Fs| fs.listxattr(ino.0).map(|list| reply::visible_xattrs(list, req.uid()));
        reply::xattr(self.call(req, op::LISTXATTR, ino, list), size, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = self.inner.readers.busy();
        Self::empty(self.call(req, op::REMOVEXATTR, ino, |fs| fs.removexattr(ino.0, name.as_bytes())), reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _busy = self.inner.readers.busy();
        let flags = fs::OpenFlags::from_bits(flags);
        let made = |fs: &Fs| fs.create(parent.0, name.as_bytes(), mode & 0o7777, umask, flags, caller(req));
        answer!(reply, self.call(req, op::CREATE, parent, made), (attr, fh) => {
            self.inner.options.activity.opened();
            let attr = reply::attr(&attr);
            reply.created(&reply::TTL, &attr, GENERATION, FileHandle(fh.0), FopenFlags::FOPEN_KEEP_CACHE);
        });
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        // There are no blocks of a device to map to.
        reply.error(fuser::Errno::ENOTTY);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel remembers this and answers "always ready" by itself, as for any regular file.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _busy = self.inner.readers.busy();
        let (unique, caller) = (req.unique().0, caller(req));
        self.slow(move |inner| {
            let call = |fs: &Fs| {
                fs.fallocate(ino.0, Fh(fh.0), offset, length, mode)?;
                inner.drop_suid(fs, ino.0, caller)
            };
            Self::empty(inner.call(op::FALLOCATE, unique, ino.0, call), reply);
        });
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _busy = self.inner.readers.busy();
        let whence = match whence {
            SEEK_DATA => Whence::Data,
            SEEK_HOLE => Whence::Hole,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(fuser::Errno::ENXIO) };
        let unique = req.unique().0;
        let seek = move |inner: &Inner| {
            let result = inner.call(op::LSEEK, unique, ino.0, |fs| fs.lseek(ino.0, offset, whence));
            answer!(reply, result, found => match i64::try_from(found) {
                Ok(found) => reply.offset(found),
                Err(_) => reply.error(fuser::Errno::EOVERFLOW),
            });
        };
        if !self.inner.fs.has_writers(ino.0) {
            return seek(&self.inner);
        }
        let inner = self.inner.clone();
        self.inner.handover.submit(Box::new(move || {
            inner.hand_over(ino.0);
            seek(&inner);
        }));
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _busy = self.inner.readers.busy();
        if !flags.is_empty() {
            return reply.error(fuser::Errno::EINVAL);
        }
        let (unique, caller, len) = (req.unique().0, caller(req), len.min(COPY_BYTES_MAX));
        let (from, to) = ((ino_in.0, Fh(fh_in.0), offset_in), (ino_out.0, Fh(fh_out.0), offset_out));
        self.slow(move |inner| {
            let copy = |fs: &Fs| {
                let copied = fs.copy_file_range(from.0, from.1, from.2, to.0, to.1, to.2, len)?;
                inner.drop_suid(fs, to.0, caller)?;
                Ok(copied)
            };
            let result = inner.call(op::COPY_FILE_RANGE, unique, ino_out.0, copy);
            answer!(reply, result, copied => match u32::try_from(copied) {
                Ok(copied) => reply.written(copied),
                Err(_) => reply.error(fuser::Errno::EIO),
            });
        });
    }
}

#[cfg(test)]
#[path = "adapter_tests.rs"]
mod tests;
