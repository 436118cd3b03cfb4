//! What is negotiated with the kernel when the connection starts.

use fuser::{InitFlags, KernelConfig};

/// Largest write request in bytes; more than `fs.fuse.max_pages_limit` (256 pages by default) is cut by the kernel.
pub(super) const MAX_WRITE: u32 = 1 << 20;
/// Write-backs and read-aheads in flight.
const MAX_BACKGROUND: u16 = 64;

/// What we ask for, each by itself so that an older kernel that lacks one still gives the others.
const WANTED: &[(InitFlags, &str)] = &[
    // Small writes are gathered into large ones: without it tar's 10 KiB writes are ten times slower.
    (InitFlags::FUSE_WRITEBACK_CACHE, "writeback_cache"),
    (InitFlags::FUSE_PARALLEL_DIROPS, "parallel_dirops"),
    (InitFlags::FUSE_DO_READDIRPLUS, "readdirplus"),
    (InitFlags::FUSE_READDIRPLUS_AUTO, "readdirplus_auto"),
    (InitFlags::FUSE_ATOMIC_O_TRUNC, "atomic_o_trunc"),
    (InitFlags::FUSE_CACHE_SYMLINKS, "cache_symlinks"),
    (InitFlags::FUSE_ASYNC_DIO, "async_dio"),
    // ACLs are checked by the kernel. It then leaves the umask to us, which a default ACL overrides.
    (InitFlags::FUSE_POSIX_ACL, "posix_acl"),
    (InitFlags::FUSE_DONT_MASK, "dont_mask"),
    // We clear set-user-id on write, truncate and chown. Besides, the kernel then remembers that a file has no
    // capabilities, instead of asking us before each single write(2).
    (InitFlags::FUSE_HANDLE_KILLPRIV_V2, "handle_killpriv_v2"),
];

/// Without these the mount would lose what it promises.
const REQUIRED: InitFlags = InitFlags::FUSE_ATOMIC_O_TRUNC;

/// Negotiates. Returns the flags the kernel gave.
///
/// # Errors
/// On a kernel too old for a required one.
pub(super) fn negotiate(config: &mut KernelConfig) -> std::io::Result<InitFlags> {
    let mut given = InitFlags::empty();
    for (flag, name) in WANTED {
        match config.add_capabilities(*flag) {
            Ok(()) => given |= *flag,
            Err(_) if REQUIRED.contains(*flag) => {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::Unsupported,
                    format!("this kernel's FUSE has no {name}"),
                ));
            }
            Err(_) => tracing::info!(capability = name, "not in this kernel"),
        }
    }
    let nearest = |what: &str, result: Result<u32, u32>| {
        if let Err(nearest) = result {
            tracing::debug!(what, nearest, "not accepted");
        }
    };
    nearest("max_write", config.set_max_write(MAX_WRITE));
    // The kernel offers what the mount's bdi has at this moment; `mount::session` raises that afterwards.
    nearest(
        "max_readahead",
        config.set_max_readahead(MAX_WRITE).or_else(|most| config.set_max_readahead(most)),
    );
    nearest("max_background", config.set_max_background(MAX_BACKGROUND).map(u32::from).map_err(u32::from));
    tracing::debug!(?given, kernel = ?config.kernel_abi(), "negotiated");
    Ok(given)
}
