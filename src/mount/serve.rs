//! Puts an opened vault behind a mountpoint: filesystem, connection, status file and life cycle, in the right order.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::error::{Failure, MountError};
use super::holder::{self, VAULT_XATTR};
use super::options::MountOptions;
use super::runtime::{self, Parts, Running, Served};
use super::session;
use super::status::{State, Status, StatusFile};
use super::vault::LiveVault;
use crate::fs::{Fs, FsOptions};
use crate::fuse::activity::Activity;
use crate::fuse::{Adapter, AdapterOptions, FuseSession};
use crate::store::engine::Engine;

type Result<T> = std::result::Result<T, Failure>;

/// How and where to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The vault's directory, absolute and without links; or the URL of a remote.
    pub vault: PathBuf,
    /// The mountpoint as [`super::mountpoint::check`] returned it.
    pub mountpoint: PathBuf,
    /// What `-o` and the flags said.
    pub options: MountOptions,
    /// The host's name in snapshots.
    pub host: String,
    /// Unmount on SIGTERM, SIGINT and SIGHUP.
    pub signals: bool,
}

/// The name of this host, for snapshots.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Mounts the working tree of an opened engine. On success the vault is served until [`Running::wait`] returns.
///
/// # Errors
/// Why it is not mounted; the engine was closed then.
pub fn serve_live(engine: Arc<Engine>, opts: &ServeOptions) -> Result<Running> {
    let read_only = opts.options.read_only;
    let fs = match Fs::open(engine.clone(), FsOptions { read_only }) {
        Ok(fs) => fs,
        Err(error) => {
            let failure = Failure::from(error);
            if let Err(error) = engine.close() {
                tracing::error!(%error, "closing after a failed start");
            }
            return Err(failure);
        }
    };
    let vault = LiveVault::new(fs.clone(), engine.clone(), &opts.vault, opts.host.clone(), read_only);
    let served: Arc<dyn Served> = Arc::new(vault);
    let status = match StatusFile::create(
        engine.ctx.disk.clone(),
        Status::starting(&opts.mountpoint, read_only, engine.ctx.env.now().secs),
    ) {
        Ok(status) => Arc::new(status),
        Err(error) => {
            return Err(give_up(&*served, None, MountError::io("writing the status", error).into()));
        }
    };
    let poison = engine.ctx.poison.clone();
    let activity = Arc::new(Activity::default());
    let on_panic = Box::new(move |cause: &str| poison.set(&format!("a request panicked: {cause}")));
    let adapter =
        Adapter::new(fs, AdapterOptions { poison: on_panic, ..adapter_options(activity.clone(), opts) });
    let session = match connect(adapter, opts) {
        Ok(session) => session,
        Err(error) => return Err(give_up(&*served, Some(&status), error.into())),
    };
    let parts = Parts {
        served,
        session,
        activity,
        status: Some(status),
        vault: Some(opts.vault.clone()),
        mountpoint: opts.mountpoint.clone(),
        idle: opts.options.vault.idle,
        snapshot_every: opts.options.vault.snapshot_every.filter(|_| !read_only),
        signals: opts.signals,
    };
    runtime::start(parts).map_err(Failure::from)
}

/// Mounts one snapshot, read-only. The vault is not locked: it may be mounted elsewhere, or stand on a read-only disk.
///
/// # Errors
/// Why it is not mounted.
pub fn serve_snapshot(fs: Arc<Fs>, opts: &ServeOptions) -> Result<Running> {
    let mut opts = opts.clone();
    opts.options.read_only = true;
    let activity = Arc::new(Activity::default());
    let adapter =
        Adapter::new(fs, AdapterOptions { snapshot: true, ..adapter_options(activity.clone(), &opts) });
    let session = connect(adapter, &opts)?;
    let parts = Parts {
        served: Arc::new(NoVault),
        session,
        activity,
        status: None,
        vault: None,
        mountpoint: opts.mountpoint.clone(),
        idle: opts.options.vault.idle,
        snapshot_every: None,
        signals: opts.signals,
    };
    runtime::start(parts).map_err(Failure::from)
}

fn adapter_options(activity: Arc<Activity>, opts: &ServeOptions) -> AdapterOptions {
    // Who asks wants a directory to look into.
    let is_here = opts.vault.is_absolute();
    let vault = if is_here { opts.vault.as_os_str().as_bytes().to_vec() } else { Vec::new() };
    AdapterOptions { activity, vault, vault_xattr: VAULT_XATTR, poison: Box::new(|_| {}), snapshot: false }
}

/// Mounts and negotiates.
fn connect(adapter: Adapter, opts: &ServeOptions) -> super::Result<runtime::Session> {
    let source = source_name(&opts.vault, &opts.options);
    let fd = session::mount(&opts.mountpoint, &source, &opts.options)?;
    match FuseSession::start(fd, adapter) {
        Ok(session) => Ok(Box::new(move || session.run())),
        Err(error) => {
            if let Err(error) = holder::detach(&opts.mountpoint, true) {
                tracing::error!(%error, "unmounting after a failed start");
            }
            Err(MountError::io("negotiating with the kernel", error))
        }
    }
}

/// What mount tables show as the source. A path that would break them is replaced; the vault is found by
/// [`VAULT_XATTR`] all the same.
fn source_name(vault: &Path, options: &MountOptions) -> String {
    let name = options.fsname.clone().unwrap_or_else(|| vault.to_string_lossy().into_owned());
    name.chars().map(|c| if c == ',' || c.is_control() { '_' } else { c }).collect()
}

/// Closes a vault that could not be mounted.
fn give_up(served: &dyn Served, status: Option<&StatusFile>, why: Failure) -> Failure {
    let closing = served.finish(&mut |result| {
        if let Some(status) = status {
            status.note(|s| {
                s.state = State::Closed;
                s.clean = result.is_ok();
                s.last_error = Some(why.message.clone());
            });
        }
    });
    if let Err(failure) = closing {
        tracing::error!(error = %failure, "closing after a failed start");
    }
    why
}

/// Behind a mounted snapshot there is nothing to keep up or to close.
#[derive(Debug)]
struct NoVault;

impl NoVault {
    fn refuse<T>() -> Result<T> {
        Err(Failure::new(2, "this is the mount of a snapshot: it can't be changed"))
    }
}

impl Served for NoVault {
    fn tick(&self) -> Result<()> {
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn snapshot(&self, _tags: Vec<String>, _force: bool) -> Result<Value> {
        Self::refuse()
    }

    fn snapshot_delete(&self, _snapshots: &[String], _force: bool) -> Result<Value> {
        Self::refuse()
    }

    fn gc(&self, _dry_run: bool, _dead_percent: Option<u8>) -> Result<Value> {
        Self::refuse()
    }

    fn counters(&self) -> Value {
        json!({})
    }

    fn finish(&self, closed: &mut dyn FnMut(&Result<()>)) -> Result<()> {
        closed(&Ok(()));
        Ok(())
    }
}

/// Serves until unmounted, then sleeps no longer than `patience` for the kernel to forget the mount. For `with` and
/// tests, which mount in their own process.
///
/// # Errors
/// As [`Running::unmount`] and [`Running::wait`].
pub fn unmount_and_wait(running: Running, patience: Duration) -> Result<()> {
    let start = std::time::Instant::now();
    loop {
        match running.unmount(false) {
            Ok(()) => return running.wait(),
            Err(error) if start.elapsed() < patience => {
                tracing::debug!(%error, "not yet");
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_never_break_mount_tables() {
        let none = MountOptions::default();
        assert_eq!(source_name(Path::new("/srv/my vault"), &none), "/srv/my vault");
        assert_eq!(source_name(Path::new("/srv/a,b\nc"), &none), "/srv/a_b_c");
        let named = MountOptions { fsname: Some("backup".into()), ..none };
        assert_eq!(source_name(Path::new("/srv/v"), &named), "backup");
        assert!(!host_name().is_empty());
    }
}
