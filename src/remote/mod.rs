//! Objects elsewhere: trait [`Remote`], and what implements it.
//!
//! A remote is a flat set of immutable objects with names like `packs/ab/ab34...`. An object appears whole or not at all,
//! is never changed, and a name that is taken is never taken again: [`Remote::put_if_absent`] is the only way to add.
//! The one exception is the vault's header, which changes with the keys: [`Remote::replace`].
//!
//! Nothing that a remote says is believed: lists are bounded and must ascend, lengths are checked before anything is
//! allocated, and what is stored is compared with what was sent.
//!
//! The trait is synchronous, as everything above it. What needs a runtime (S3, OpenDAL) keeps a small one for itself; no other
//! module knows of it. What is common to all remotes (trying again, speed limits, counting) wraps one remote in another.

mod body;
mod bounded;
mod count;
mod dir;
mod error;
mod faulty;
mod limit;
mod location;
mod lock;
mod open;
#[cfg(feature = "_opendal")]
mod opendal;
mod probe;
mod retry;
mod s3;
mod secret;
mod sftp;
mod walk;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};

#[cfg(any(feature = "azblob", feature = "gcs"))]
pub use self::opendal::ObjectRemote;
#[cfg(feature = "webdav")]
pub use self::opendal::WebdavRemote;
pub use bounded::Bounded;
pub use count::{Counted, Counters};
pub use dir::DirRemote;
pub use error::{ErrorKind, RemoteError, Result};
pub use faulty::{Fault, FaultyRemote, Op};
pub use limit::{Limited, Limiter};
pub use location::{Location, Settings, parse_speed};
pub use lock::{Findings, LOCK_DAYS_MAX, Lock, LockMode, Locked, Names, Retention, Version, Versions};
pub use open::{OpenOptions, SharedLimits, open};
pub use probe::{Check, Probe, Verdict, probe};
pub use retry::{Pause, RealPause, RetryPolicy, Retrying};
pub use s3::{S3Remote, Times};
pub use sftp::SftpRemote;

/// The longest name of an object, in bytes.
const KEY_LEN_MAX: usize = 255;
/// The most objects that a listing may have: 2^26 packs of 64 MiB are 4 EiB.
const LIST_MAX: usize = 1 << 26;
/// The longest object that may be replaced: headers have a small part of it.
const REPLACED_LEN_MAX: u64 = 16 << 20;
/// Bytes of a body that are in memory at a time.
pub(crate) const PIECE: usize = 1 << 20;

/// Name of an object: components of letters, digits, `-`, `_` and `.`, separated by `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Reads a name; `None` when it is none: empty or hidden components, other letters, more than 255 bytes.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let good = |part: &str| {
            let letters = part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            !part.is_empty() && !part.starts_with('.') && letters
        };
        (text.len() <= KEY_LEN_MAX && text.split('/').all(good)).then(|| Self(text.to_owned()))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes that are to be sent. They may be read more than once, from several threads, and must not change.
pub trait Source: Send + Sync + fmt::Debug {
    /// Returns the length in bytes.
    fn len(&self) -> u64;

    /// Reads up to `buf.len()` bytes at `off`; 0 at the end.
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize>;

    /// Tells whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes in memory.
#[derive(Clone)]
pub struct Bytes(pub Arc<[u8]>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.0.len())
    }
}

impl Bytes {
    /// A source of these bytes.
    pub fn source(bytes: impl Into<Arc<[u8]>>) -> Arc<dyn Source> {
        Arc::new(Self(bytes.into()))
    }
}

impl Source for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        let start = usize::try_from(off).unwrap_or(usize::MAX).min(self.0.len());
        let n = buf.len().min(self.0.len() - start);
        buf[..n].copy_from_slice(&self.0[start..start + n]);
        Ok(n)
    }
}

/// SHA-256 of an object's bytes: what S3 endpoints verify and keep.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checksum(pub [u8; 32]);

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checksum({})", data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

impl Checksum {
    /// Hashes bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Hashes a source, and shows its pieces to `also`.
    ///
    /// # Errors
    /// When it can't be read, or ends early.
    pub fn of_source(source: &dyn Source, also: &mut dyn FnMut(&[u8])) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        for_each_piece(source, &mut |piece| {
            hasher.update(piece);
            also(piece);
            Ok(())
        })?;
        Ok(Self(hasher.finalize().into()))
    }
}

/// Shows all bytes of a source, in order, in pieces of at most [`PIECE`].
pub(crate) fn for_each_piece(
    source: &dyn Source,
    act: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buf = vec![0; PIECE];
    let mut off = 0;
    while off < source.len() {
        let n = read_piece(source, &mut buf, off)?;
        act(&buf[..n])?;
        off += n as u64;
    }
    Ok(())
}

/// Reads the next piece at `off`, which lies before the end.
pub(crate) fn read_piece(source: &dyn Source, buf: &mut [u8], off: u64) -> io::Result<usize> {
    let left = usize::try_from(source.len().saturating_sub(off)).unwrap_or(usize::MAX);
    let want = buf.len().min(left);
    match source.read_at(&mut buf[..want], off)? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read")),
        n => Ok(n),
    }
}

/// How a put ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object is new.
    Created,
    /// It was there already, with the same bytes.
    Same,
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Length in bytes.
    pub len: u64,
    /// The checksum that the endpoint keeps, if it keeps one.
    pub checksum: Option<Checksum>,
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name as the endpoint says it: not yet a [`Key`], it may be anything.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
}

/// A part of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Page {
    /// Objects in ascending order of names.
    pub items: Vec<Listed>,
    /// Whether there are more, after the last name here.
    pub more: bool,
}

/// Whether an endpoint has something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has.
    Yes(String),
    /// It has not.
    No(String),
    /// It does not say.
    Unknown(String),
    /// Nothing of this kind exists there.
    NotApplicable(String),
}

/// What an endpoint says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// It never replaces an object when it is told to create one.
    pub create_only: Answer,
    /// It keeps old versions of objects.
    pub versioning: Answer,
    /// It can keep objects from being deleted for a time.
    pub object_lock: Answer,
    /// How it is known that it stores what was sent.
    pub verification: String,
}

/// A set of immutable objects.
pub trait Remote: Send + Sync + fmt::Debug {
    /// Returns where it is, as the user wrote it; it never has a secret in it.
    fn url(&self) -> String;

    /// Tells places apart that have the same URL: at another endpoint, wherever its name comes from, it is another place. For
    /// what is remembered here of a place. Whatever wraps a remote has to pass it on.
    fn place(&self) -> String {
        self.url()
    }

    /// This remote without anything that repeats its calls: for questions whose answer can wait for another day. `None`: its
    /// calls are not repeated.
    fn once(&self) -> Option<Arc<dyn Remote>> {
        None
    }

    /// Stores an object under a name that is not taken, durably, and makes sure that what is stored has this checksum.
    ///
    /// # Errors
    /// `Conflict`: the name is taken by other bytes, which stay. `Corrupt`: what is stored, or what was read from
    /// `body`, is not what `checksum` says. All else as [`ErrorKind`] has it. After an error the object may be there.
    fn put_if_absent(&self, key: &Key, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<Put>;

    /// Replaces a small object that has the checksum `was`.
    ///
    /// # Errors
    /// `NotFound`: there is none. `Conflict`: it is another one by now. `Corrupt`: it is longer than anything that is
    /// replaced. Else as [`Remote::put_if_absent`].
    fn replace(&self, key: &Key, was: &Checksum, body: &Arc<dyn Source>, checksum: &Checksum) -> Result<()>;

    /// Reads a range of an object, exactly.
    ///
    /// # Errors
    /// `Corrupt` when the object ends before it; `NotFound`.
    fn get(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>>;

    /// Describes an object.
    ///
    /// # Errors
    /// `NotFound`.
    fn head(&self, key: &Key) -> Result<Meta>;

    /// Lists objects whose names begin with `prefix`, in ascending order of their bytes, from the first one after
    /// `after`. See [`list`] for all of them.
    ///
    /// # Errors
    /// As [`ErrorKind`] has it.
    fn list_page(&self, prefix: &str, after: &str) -> Result<Page>;

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// `Denied`, mostly: few credentials should have this right.
    fn delete(&self, key: &Key) -> Result<()>;

    /// Asks the endpoint what it can do.
    ///
    /// # Errors
    /// When it does not answer at all.
    fn features(&self) -> Result<Features>;

    /// What it is to promise of everything that is put; `None`: no Object Lock was configured. What follows is for remotes
    /// that have one. Whatever wraps a remote has to pass all of it on.
    fn lock(&self) -> Option<Locked> {
        None
    }

    /// Refuses a place that can't keep the promise. To be called before anything is put.
    ///
    /// # Errors
    /// `NoObjectLock`.
    fn require_lock(&self) -> Result<()> {
        Ok(())
    }

    /// Asks what keeps an object: the version that is read, or the one that is named. `None`: nothing does.
    ///
    /// # Errors
    /// `NotFound`, where no version is named.
    fn retention(&self, key: &Key, _version: Option<&str>) -> Result<Option<Retention>> {
        Err(no_lock(key))
    }

    /// Keeps an object for longer. What would be kept for less long is an error, and stays as it is.
    ///
    /// # Errors
    /// `Denied`, also where it is kept for longer already, or more strictly.
    fn retain(&self, key: &Key, _version: Option<&str>, _retention: &Retention) -> Result<()> {
        Err(no_lock(key))
    }

    /// What keeps an object that this process has put or retained; nothing is asked.
    fn known_retention(&self, _key: &Key) -> Option<Retention> {
        None
    }

    /// All versions of a small object that may change (the header), of at most `max` bytes each, the one first that
    /// counts. Of very many only the oldest and the newest.
    ///
    /// # Errors
    /// What [`Remote::head`] and [`Remote::get`] say; no such object is no error.
    fn versions(&self, key: &Key, max: u64) -> Result<Vec<Version>> {
        only_version(self, key, max)
    }

    /// [`Remote::versions`] for who can tell which of them are true, and must not miss any: very many are looked into, and it
    /// says how many were not even so.
    ///
    /// # Errors
    /// As [`Remote::versions`].
    fn all_versions(&self, key: &Key, max: u64) -> Result<Versions> {
        Ok(Versions { list: self.versions(key, max)?, left_out: 0 })
    }

    /// What was found while listing and reading: somebody hid objects, or wrote over them.
    fn findings(&self) -> Findings {
        Findings::default()
    }
}

/// [`Remote::versions`] where there are none.
fn only_version<R: Remote + ?Sized>(remote: &R, key: &Key, max: u64) -> Result<Vec<Version>> {
    match remote.head(key) {
        Ok(meta) if meta.len <= max => {
            let bytes = remote.get(key, 0..meta.len)?;
            Ok(vec![Version { id: String::new(), bytes, latest: true, age: 0 }])
        }
        Err(e) if e.kind != ErrorKind::NotFound => Err(e),
        _ => Ok(Vec::new()),
    }
}

fn no_lock(key: &Key) -> RemoteError {
    RemoteError::new(ErrorKind::Unsupported, format!("{key}: this kind of remote has no Object Lock"))
}

/// Shows all objects whose names begin with `prefix`, in ascending order.
///
/// # Errors
/// `Corrupt` when the endpoint lists in another order, something else, or without end; what `visit` says; what
/// [`Remote::list_page`] says.
pub fn list(remote: &dyn Remote, prefix: &str, visit: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
    let hostile =
        |what: &str| Err(RemoteError::new(ErrorKind::Corrupt, format!("listing {prefix:?}: {what}")));
    let mut after = String::new();
    let mut count = 0;
    loop {
        let page = remote.list_page(prefix, &after)?;
        if page.more && page.items.is_empty() {
            return hostile("an empty page that says there is more");
        }
        for item in page.items {
            count += 1;
            if count > LIST_MAX {
                return hostile("more objects than any vault has");
            }
            if !item.name.starts_with(prefix) || item.name <= after {
                return hostile("names that were not asked for, or not in order");
            }
            after.clone_from(&item.name);
            visit(item)?;
        }
        if !page.more {
            return Ok(());
        }
    }
}

/// Reads a whole object of at most `max` bytes.
///
/// # Errors
/// `Corrupt` when it is longer; what [`Remote::head`] and [`Remote::get`] say.
pub fn read(remote: &dyn Remote, key: &Key, max: u64) -> Result<Vec<u8>> {
    let len = remote.head(key)?.len;
    if len > max {
        return Err(RemoteError::new(
            ErrorKind::Corrupt,
            format!("{key} has {len} bytes, more than the {max} expected"),
        ));
    }
    remote.get(key, 0..len)
}

/// Checks that an object has these bytes, by the checksum that the endpoint keeps, or else by reading it.
///
/// # Errors
/// What [`Remote::head`] and [`Remote::get`] say.
pub(crate) fn has_bytes(remote: &dyn Remote, key: &Key, len: u64, checksum: &Checksum) -> Result<bool> {
    let meta = remote.head(key)?;
    if meta.len != len {
        return Ok(false);
    }
    match meta.checksum {
        Some(kept) => Ok(kept == *checksum),
        None => Ok(stored_checksum(remote, key, len)? == *checksum),
    }
}

/// Reads an object in pieces and hashes it.
pub(crate) fn stored_checksum(remote: &dyn Remote, key: &Key, len: u64) -> Result<Checksum> {
    checksum_of_pieces(len, &|range| remote.get(key, range))
}

/// Hashes what is read in pieces.
fn checksum_of_pieces(len: u64, read: &dyn Fn(Range<u64>) -> Result<Vec<u8>>) -> Result<Checksum> {
    let mut hasher = Sha256::new();
    let mut off = 0;
    while off < len {
        let end = len.min(off + 8 * PIECE as u64);
        hasher.update(read(off..end)?);
        off = end;
    }
    Ok(Checksum(hasher.finalize().into()))
}

/// Refuses to read, only to replace it, what is far longer than anything that is replaced.
pub(crate) fn check_replaceable(key: &Key, len: u64) -> Result<()> {
    if len <= REPLACED_LEN_MAX {
        return Ok(());
    }
    Err(RemoteError::new(
        ErrorKind::Corrupt,
        format!("{key} has {len} bytes there; it should be a small object"),
    ))
}

/// The error for a name that is taken by other bytes.
pub(crate) fn conflict(key: &Key) -> RemoteError {
    RemoteError::new(ErrorKind::Conflict, format!("{key} exists there with other bytes"))
}

#[cfg(test)]
mod tests;
