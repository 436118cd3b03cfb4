//! Where a verb reads: a vault's directory, or a remote.

use std::path::PathBuf;
use std::sync::Arc;

use crate::fetch::RemoteDisk;

/// Where a verb reads.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A vault's directory, or a copy of it.
    Dir(PathBuf),
    /// A remote.
    Remote(Arc<RemoteDisk>),
}

impl Place {
    /// What messages call it.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Dir(path) => super::show_path(path),
            Self::Remote(disk) => super::show_bytes(disk.url().as_bytes()),
        }
    }
}
