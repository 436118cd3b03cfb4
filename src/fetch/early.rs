//! What a remote is asked while a key is being derived, or typed: all that needs none.
//!
//! Which header is true is known only with the key. What was asked in vain for another one was asked for nothing; nothing is
//! believed because of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::disk::RemoteDisk;
use super::to_io;
use crate::format::{Header, PackName};
use crate::snapshot::chain::Chain;
use crate::store::error::{Result, StoreError};

/// Snapshots that will be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Their sequence numbers.
    pub snapshots: Vec<u64>,
    /// Whether files will be read, and not only trees.
    pub data: bool,
}

/// See the module.
pub struct Early {
    header: Header,
    asking: JoinHandle<Result<Chain>>,
}

impl std::fmt::Debug for Early {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Early").finish_non_exhaustive()
    }
}

impl Early {
    /// Begins to load the chain, as `header` proves it, then to list the packs, and to look at those of the snapshots that
    /// `wanted` chooses, from the chain and the packs that are there. Who never asks for the [`chain`](Self::chain) waits for nothing.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        disk: &Arc<RemoteDisk>,
        header: &Header,
        wanted: impl FnOnce(&Chain, &BTreeSet<PackName>) -> Wanted + Send + 'static,
    ) -> std::io::Result<Self> {
        let (disk, by) = (Arc::clone(disk), header.clone());
        let asking = std::thread::Builder::new().name("sr-early".into()).spawn(move || {
            let chain = Chain::load(disk.as_ref(), &by)?;
            disk.only_packs_at_first(chain.named());
            if let Err(error) = look_at(&disk, &chain, wanted) {
                // Asked for again by who wants it, and then told.
                tracing::debug!(%error, "asking early");
            }
            Ok(chain)
        })?;
        Ok(Self { header: header.clone(), asking })
    }

    /// The chain; `None`: another header turned out to be true.
    ///
    /// # Errors
    /// As [`Chain::load`].
    pub fn chain(self, header: &Header) -> Option<Result<Chain>> {
        let Self { header: by, asking } = self;
        (by == *header).then(|| asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

fn look_at(
    disk: &RemoteDisk,
    chain: &Chain,
    wanted: impl FnOnce(&Chain, &BTreeSet<PackName>) -> Wanted,
) -> Result<()> {
    let io = |e| StoreError::io("reading packs", e);
    let present = disk.packs().map_err(|e| io(to_io(e)))?.keys().copied().collect();
    let Wanted { snapshots, data } = wanted(chain, &present);
    let mut needed = BTreeSet::new();
    for seq in snapshots {
        needed.extend(chain.needed_packs(seq)?);
    }
    if !needed.is_empty() {
        disk.kinds(&needed, data).map_err(io)?;
    }
    Ok(())
}
