//! `sftp://user@host:port/path`: a directory at the far end of SSH.
//!
//! The protocol is the oldest that every server speaks, version 3, with what OpenSSH adds where it is there: fsync, atomic
//! replacement, free space. An object is written under a scratch name, made durable, read back, and then given its name by
//! a rename that replaces nothing (OpenSSH makes a link and removes the old name).
//!
//! Every request has the deadlines that S3's have ([`Times`]), and one for silence besides: see `channel`.

mod channel;
mod session;
mod wire;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::location::Settings;
use super::walk::{Entry, Pages, Tree};
use super::{
    Answer, Checksum, ErrorKind, Features, Key, Meta, PIECE, Page, Put, Remote, RemoteError, Result, Source,
    Times, check_replaceable, conflict,
};
use crate::env::Env;
use session::{Handle, Login, Session};
use wire::{Attrs, FOR_READING, NEW_FOR_WRITING};

/// Where objects stand until they are whole.
const SCRATCH: &str = ".incoming";
/// Scratch files of interrupted runs are removed once they are this old, by the server's clock: a day.
const SCRATCH_SECONDS_MAX: u32 = 86_400;
/// The most entries of one directory.
const DIR_ENTRIES_MAX: usize = 1 << 20;

/// A directory on an SFTP server.
#[derive(Debug)]
pub struct SftpRemote {
    url: String,
    login: Login,
    root: String,
    read_back: bool,
    env: Arc<dyn Env>,
    idle: Mutex<Vec<Session>>,
    /// Directories that are there.
    dirs: Mutex<BTreeSet<String>>,
    swept: Mutex<bool>,
    pages: Pages,
}

impl SftpRemote {
    /// A remote; the first request connects.
    pub fn new(
        settings: &Settings,
        user: Option<String>,
        host: String,
        port: Option<u16>,
        path: String,
        times: Times,
        env: Arc<dyn Env>,
    ) -> Self {
        Self {
            url: settings.url.clone(),
            login: Login { user, host, port, settings: settings.clone(), times },
            root: path,
            read_back: !settings.no_read_back,
            env,
            idle: Mutex::new(Vec::new()),
            dirs: Mutex::new(BTreeSet::new()),
            swept: Mutex::new(false),
            pages: Pages::default(),
        }
    }

    /// Runs requests on a session of their own; it is kept for the next ones unless it broke.
    fn with<T>(&self, act: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut session = match idle {
            Some(session) => session,
            None => self.connect()?,
        };
        let done = act(&mut session);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if session.is_broken() {
            // What broke this one will have broken the others; each would have to be waited for.
            let others = std::mem::take(&mut *idle);
            drop(idle);
            drop(others);
        } else {
            idle.push(session);
        }
        done
    }

    fn connect(&self) -> Result<Session> {
        let mut session = Session::connect(&self.login)?;
        match session.stat(&self.root, true) {
            Ok(attrs) if attrs.is_dir() => Ok(session),
            Ok(_) => Err(RemoteError::new(
                ErrorKind::Misconfigured,
                format!("{} is no directory there", self.root),
            )),
            Err(e) if e.kind == ErrorKind::NotFound => Err(RemoteError::new(
                ErrorKind::Misconfigured,
                format!(
                    "{}: no such directory there; is the disk mounted? It is never made by itself",
                    self.root
                ),
            )),
            Err(e) => Err(e),
        }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root.trim_end_matches('/'))
    }

    /// Makes the directories above a name.
    fn make_dirs(&self, session: &mut Session, name: &str) -> Result<()> {
        for (end, _) in name.match_indices('/') {
            let dir = &name[..end];
            if self.dirs.lock().unwrap_or_else(PoisonError::into_inner).contains(dir) {
                continue;
            }
            let path = self.path(dir);
            if let Err(error) = session.mkdir(&path) {
                // Version 3 has no word for "exists already".
                match session.stat(&path, false) {
                    Ok(attrs) if attrs.is_dir() => {}
                    _ => return Err(error),
                }
            }
            self.sync_dir(session, crate::disk::parent(dir))?;
            self.dirs.lock().unwrap_or_else(PoisonError::into_inner).insert(dir.to_string());
        }
        Ok(())
    }

    /// Makes the names in a directory durable where the server can do that: OpenSSH opens directories like files.
    ///
    /// # Errors
    /// The server gave no answer: whether they are durable is not known.
    fn sync_dir(&self, session: &mut Session, dir: &str) -> Result<()> {
        if !session.knows("fsync@openssh.com") {
            return Ok(());
        }
        let synced = session.open(self.path(dir).trim_end_matches('/'), FOR_READING).and_then(|handle| {
            let synced = session.fsync(&handle, 0);
            session.close(&handle).and(synced)
        });
        match synced {
            Err(error) if session.is_broken() => Err(error),
            // It can't do that with directories.
            Err(error) => {
                tracing::debug!(dir, %error, "a directory was not synced");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Writes a body under a scratch name, durably, and reads it back. On error nothing is left, if that is possible.
    fn write_scratch(&self, session: &mut Session, body: &dyn Source, checksum: &Checksum) -> Result<String> {
        let mut random = [0; 16];
        self.env.random(&mut random);
        let name = format!("{SCRATCH}/{}", data_encoding::HEXLOWER.encode(&random));
        self.make_dirs(session, &name)?;
        let path = self.path(&name);
        let handle = session.open(&path, NEW_FOR_WRITING)?;
        // Before there is no room for anything else.
        self.sweep(session, &handle)?;
        let written = self.write_and_verify(session, &handle, body, checksum);
        let closed = if session.is_broken() { Ok(()) } else { session.close(&handle) };
        match written.and(closed) {
            Ok(()) => Ok(path),
            Err(error) => {
                let error = self.explain_failure(session, error, body.len());
                self.drop_scratch(session, &path);
                Err(error)
            }
        }
    }

    fn write_and_verify(
        &self,
        session: &mut Session,
        handle: &Handle,
        body: &dyn Source,
        checksum: &Checksum,
    ) -> Result<()> {
        let mut hasher = Sha256::new();
        session.write_all(handle, body, &mut |piece| hasher.update(piece))?;
        if Checksum(hasher.finalize().into()) != *checksum {
            return Err(RemoteError::new(
                ErrorKind::Corrupt,
                "what is to be sent is not what its checksum says",
            ));
        }
        if session.knows("fsync@openssh.com") {
            session.fsync(handle, body.len())?;
        }
        let attrs = session.fstat(handle)?;
        let wrong = || RemoteError::new(ErrorKind::Corrupt, "the server stored other bytes than were sent");
        if attrs.size != Some(body.len()) {
            return Err(wrong());
        }
        if self.read_back && hash_handle(session, handle, body.len())? != *checksum {
            return Err(wrong());
        }
        Ok(())
    }

    /// Version 3 says "failure" for a full disk; the free space tells more.
    fn explain_failure(&self, session: &mut Session, error: RemoteError, len: u64) -> RemoteError {
        if error.kind != ErrorKind::Unavailable
            || session.is_broken()
            || !session.knows("statvfs@openssh.com")
        {
            return error;
        }
        match session.free(&self.root) {
            Ok(free) if free < len => RemoteError::new(
                ErrorKind::Full,
                format!("no room there: {free} bytes are free, {len} are needed"),
            ),
            _ => error,
        }
    }

    /// Removes a scratch file on the way out of a failure, which is what gets reported.
    fn drop_scratch(&self, session: &mut Session, path: &str) {
        if !session.is_broken()
            && let Err(error) = session.remove(path)
        {
            tracing::debug!(path, %error, "a scratch file stays");
        }
    }

    /// Removes, once, what interrupted runs left. `new` was just made: it has the server's time.
    ///
    /// # Errors
    /// The server gave no answer.
    fn sweep(&self, session: &mut Session, new: &Handle) -> Result<()> {
        if std::mem::replace(&mut *self.swept.lock().unwrap_or_else(PoisonError::into_inner), true) {
            return Ok(());
        }
        let looked =
            session.fstat(new).and_then(|now| Ok((now, session.list(&self.path(SCRATCH), DIR_ENTRIES_MAX)?)));
        let (now, items) = match looked {
            Ok((Attrs { modified: Some(now), .. }, items)) => (now, items),
            Ok(_) => return Ok(()),
            Err(error) if session.is_broken() => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "scratch files were not looked through");
                return Ok(());
            }
        };
        for (name, attrs) in items {
            let old = attrs.modified.is_some_and(|time| time.saturating_add(SCRATCH_SECONDS_MAX) < now);
            if old && attrs.is_file() {
                self.drop_scratch(session, &self.path(&format!("{SCRATCH}/{name}")));
            }
        }
        Ok(())
    }

    fn meta(&self, session: &mut Session, key: &Key) -> Result<Meta> {
        let attrs = session.stat(&self.path(key.as_str()), false)?;
        match attrs.size {
            Some(len) if attrs.is_file() => Ok(Meta { len, checksum: None }),
            _ => Err(RemoteError::new(ErrorKind::Corrupt, format!("{key} is no regular file there"))),
        }
    }

    fn checksum(&self, session: &mut Session, key: &Key, len: u64) -> Result<Checksum> {
        let handle = session.open(&self.path(key.as_str()), FOR_READING)?;
        let checksum = hash_handle(session, &handle, len)?;
        session.close(&handle)?;
        Ok(checksum)
    }

    fn same(&self, session: &mut Session, key: &Key, len: u64, checksum: &Checksum) -> Result<Put> {
        if self.meta(session, key)?.len != len || self.checksum(session, key, len)? != *checksum {
            return Err(conflict(key));
        }
        // Whoever put it may not have come to this.
        self.sync_dir(session, crate::disk::parent(key.as_str()))?;
        Ok(Put::Same)
    }
}

/// Reads an open file of a known length and hashes it.
fn hash_handle(session: &mut Session, handle: &Handle, len: u64) -> Result<Checksum> {
    let mut hasher = Sha256::new();
    let mut off = 0;
    while off < len {
        let n = usize::try_from(len - off).unwrap_or(usize::MAX).min(8 * PIECE);
        hasher.update(session.read_exact(handle, off, n)?);
        off += n as u64;
    }
    Ok(Checksum(hasher.finalize().into()))
}

impl Remote for SftpRemote {
    fn url(&self) -> String {
        self.url.clone()
    }

    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<Put> {
        self.with(|session| {
            match self.same(session, key, body.len(), checksum) {
                Err(e) if e.kind == ErrorKind::NotFound => {}
                other => return other,
            }
            let scratch =
                self.write_scratch(session, body.as_ref(), checksum).map_err(|e| e.context(key.as_str()))?;
            let named = self
                .make_dirs(session, key.as_str())
                .and_then(|()| session.rename(&scratch, &self.path(key.as_str())));
            match named {
                Ok(()) => {
                    self.sync_dir(session, crate::disk::parent(key.as_str()))?;
                    Ok(Put::Created)
                }
                Err(error) => {
                    self.drop_scratch(session, &scratch);
                    if session.is_broken() {
                        return Err(error);
                    }
                    // Somebody else was faster, or the rename failed for a reason of its own.
                    match self.same(session, key, body.len(), checksum) {
                        Err(e) if e.kind == ErrorKind::NotFound => Err(error),
                        other => other,
                    }
                }
            }
        })
    }

    fn replace(&self, key: &Key, was: &Checksum, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<()> {
        self.with(|session| {
            if !session.knows("posix-rename@openssh.com") {
                let text = format!("{key}: the server can't replace a file in one step");
                return Err(RemoteError::new(ErrorKind::Unsupported, text));
            }
            let len = self.meta(session, key)?.len;
            check_replaceable(key, len)?;
            if self.checksum(session, key, len)? != *was {
                return Err(conflict(key));
            }
            let scratch =
                self.write_scratch(session, body.as_ref(), checksum).map_err(|e| e.context(key.as_str()))?;
            if let Err(error) = session.rename_over(&scratch, &self.path(key.as_str())) {
                self.drop_scratch(session, &scratch);
                return Err(error);
            }
            self.sync_dir(session, crate::disk::parent(key.as_str()))?;
            Ok(())
        })
    }

    fn get(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        let len = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|_| RemoteError::new(ErrorKind::Local, "a range larger than memory"))?;
        self.with(|session| {
            // Before anything is allocated.
            if self.meta(session, key)?.len < range.end {
                return Err(RemoteError::new(
                    ErrorKind::Corrupt,
                    format!("{key} is shorter than it should be"),
                ));
            }
            let handle = session.open(&self.path(key.as_str()), FOR_READING)?;
            let bytes = session.read_exact(&handle, range.start, len);
            if session.is_broken() {
                return bytes;
            }
            session.close(&handle)?;
            bytes.map_err(|e| e.context(key.as_str()))
        })
    }

    fn head(&self, key: &Key) -> Result<Meta> {
        self.with(|session| self.meta(session, key))
    }

    fn list_page(&self, prefix: &str, after: &str) -> Result<Page> {
        self.pages.page(self, prefix, after)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.with(|session| match session.remove(&self.path(key.as_str())) {
            Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
            other => other,
        })
    }

    fn features(&self) -> Result<Features> {
        self.with(|session| {
            let none = |what: &str| Answer::NotApplicable(format!("SFTP has no {what}"));
            let create_only = match session.knows("hardlink@openssh.com") {
                true => Answer::Yes("a rename that replaces nothing".into()),
                false => Answer::Unknown(
                    "no OpenSSH: names are looked up first, and its rename is believed to replace nothing"
                        .into(),
                ),
            };
            let durable = if session.knows("fsync@openssh.com") {
                "made durable"
            } else {
                "written (the server has no fsync)"
            };
            let verification = match self.read_back {
                true => format!("every object is {durable} and read back before it gets its name"),
                false => {
                    format!("every object is {durable}, and its length compared; SSH protects the way there")
                }
            };
            Ok(Features {
                create_only,
                versioning: none("versions"),
                object_lock: none("locks: whoever can write there can delete"),
                verification,
            })
        })
    }
}

impl Tree for SftpRemote {
    fn entries(&self, dir: &str) -> Result<Vec<Entry>> {
        let path = self.path(dir);
        let items = self.with(|session| session.list(&path, DIR_ENTRIES_MAX))?;
        let entry = |(name, attrs): (String, wire::Attrs)| {
            let known = attrs.is_dir() || attrs.is_file();
            known.then(|| Entry { name, is_dir: attrs.is_dir(), len: attrs.size.unwrap_or(0) })
        };
        Ok(items.into_iter().filter_map(entry).collect())
    }
}
