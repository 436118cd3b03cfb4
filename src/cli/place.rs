//! Where a verb reads: a vault's directory, or a remote.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::{CliError, ExitCode};
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
    /// An error in reading it, with advice that fits the place: what looks into a directory is no help with a remote.
    pub(crate) fn told(&self, error: CliError) -> CliError {
        match (self, error.code) {
            (Self::Remote(_), ExitCode::Corrupt) => error.hint(
                "all else there can be read. `strongroom clone` copies it and names everything that is damaged; the machine that \
                 shipped it finds it with `ship --verify`",
            ),
            _ => error,
        }
    }

    /// What messages call it.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Dir(path) => super::show_path(path),
            Self::Remote(disk) => super::show_bytes(disk.url().as_bytes()),
        }
    }
}
