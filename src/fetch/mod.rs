//! Vaults at remotes: reading them where they are, copying them whole ([`clone`]), bringing a copy up to date ([`prepare`]).
//!
//! # Copies
//! No key is needed, and nothing that a remote says is believed. The header is parsed, every chain file is checked against
//! its name and against the header's public keys, every pack that these files name against its name. What nothing signed
//! names is not fetched. Everything is written under scratch names, made durable, and only then gets a name that nothing
//! has: packs first, then chain files, then the header. So what stands under its name is right, and an interrupted run is
//! gone on with.
//!
//! # Reading without a copy
//!
//! - [`RemoteDisk`] shows a remote as the directory of a vault that can't be written to, so that everything that reads
//!   snapshots reads them there.
//! - `cache` fetches ranges of packs, each once, and keeps them on the local disk for a while (`scratch`).
//! - [`Early`] asks for what needs no key while the key is derived.
//! - [`RemotePacks`] reads chunks: trees first; packs with data are looked into only when data is wanted.
//! - [`Ahead`] knows from the trees which bytes a restore will want, and fetches them in the order of the packs.
//!
//! Only ciphertext is fetched and kept, and nothing of it is believed: what is true of a vault's directory on a disk that
//! somebody else can write to is true here. Nothing is ever written to the remote.
//!
//! Every wait for the network ends: see [`FetchOptions::patience`].

mod ahead;
mod cache;
mod clone;
mod disk;
mod early;
mod error;
mod get;
mod headers;
mod incoming;
mod packs;
mod pull;
mod reads;
mod scratch;
mod survey;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use ahead::Ahead;
pub use cache::PIECE;
pub use clone::{clone, may_clone_into};
pub use disk::RemoteDisk;
pub use early::{Early, Wanted};
pub use error::{FetchError, Result};
pub use get::{Progress, Report};
pub use headers::{Proved, RemoteHeader, remote_header};
pub use packs::RemotePacks;
pub use pull::{Movable, Prepared, State, check_header, compare, prepare, take_header};
pub use survey::{Survey, survey};

use crate::env::{Env, SystemEnv};
use crate::remote::{ErrorKind, RemoteError};

/// The smallest cache: room for what is on its way, and for what is being read.
pub const CACHE_BYTES_MIN: u64 = 64 << 20;
/// The cache when nothing else is said, if the disk has twice as much room.
pub const CACHE_BYTES_DEFAULT: u64 = 4 << 30;

/// How to read from a remote.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Where fetched parts of packs are kept for a while; made if it is missing. Nothing is left there.
    pub cache_dir: PathBuf,
    /// How many bytes of it to use; at least [`CACHE_BYTES_MIN`].
    pub cache_bytes: u64,
    /// Requests at a time.
    pub jobs: usize,
    /// How long nothing may arrive while somebody waits for bytes of a pack. Who waits for a request that is not answered while
    /// others are waits four times as long.
    pub patience: Duration,
    /// Fetch more of a pack than is asked for, when it is read in order. For those who can't say what they will want.
    pub read_ahead: bool,
    /// Clock and randomness.
    pub env: Arc<dyn Env>,
}

impl FetchOptions {
    /// Options for commands: patient, with everything planned.
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> Self {
        Self {
            cache_dir,
            cache_bytes: CACHE_BYTES_DEFAULT,
            jobs: 16,
            patience: Duration::from_secs(1200),
            read_ahead: false,
            env: Arc::new(SystemEnv),
        }
    }
}

/// A remote's error as one of a disk; [`remote_cause`] finds it again.
pub(crate) fn to_io(error: RemoteError) -> io::Error {
    let kind = match error.kind {
        ErrorKind::NotFound => io::ErrorKind::NotFound,
        ErrorKind::Corrupt => io::ErrorKind::InvalidData,
        // Of this object perhaps alone.
        kind if kind.may_be_one_objects() => io::ErrorKind::PermissionDenied,
        ErrorKind::Timeout => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// The remote's error behind one of a disk, if it is one.
#[must_use]
pub fn remote_cause(error: &io::Error) -> Option<&RemoteError> {
    error.get_ref()?.downcast_ref()
}
