//! The threads that serve a connection.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{Config, Session, SessionACL};

use super::adapter::Adapter;
use super::readers::Readers;

/// A connection that has been negotiated; the mount is usable as soon as [`FuseSession::run`] runs.
pub struct FuseSession {
    session: Session<Adapter>,
    readers: Arc<Readers>,
    watch: JoinHandle<()>,
}

impl std::fmt::Debug for FuseSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FuseSession").finish_non_exhaustive()
    }
}

impl FuseSession {
    /// Answers the kernel's first request on a connection that was just mounted.
    ///
    /// # Errors
    /// When the kernel and we have no version or capability in common, or it was unmounted again.
    pub fn start(fd: OwnedFd, adapter: Adapter) -> io::Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(adapter.threads());
        // Who may enter is the kernel's decision (`allow_other`). fuser's own check would also turn away the kernel's
        // write-back, which comes as root.
        config.acl = SessionACL::All;
        let inner = adapter.inner();
        let connection = fd.try_clone()?;
        let session = Session::from_fd(adapter, fd, SessionACL::All, config)?;
        inner.set_notifier(session.notifier());
        let readers = inner.readers();
        let watch = readers.watch(connection)?;
        Ok(Self { session, readers, watch })
    }

    /// Serves until the connection ends, which is when it is unmounted and the last file closed.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn run(self) -> io::Result<()> {
        let ended = self.session.run();
        self.readers.end();
        let watched = self.watch.join();
        ended.and_then(|()| watched.map_err(|_| io::Error::other("the watch over the readers panicked")))
    }
}
