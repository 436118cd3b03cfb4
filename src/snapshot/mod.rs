//! Snapshots: immutable, signed, chained roots of trees. Making them, reading them, deleting them, giving
//! space back.
//!
//! - [`chain`] reads and proves the chain files in `snapshots/`, with public keys alone.
//! - [`tree`] reads what is below a root, `write` writes it.
//! - [`create`] makes a snapshot of the working tree, `import` one of directories elsewhere.
//! - [`delete`] removes snapshots, [`gc`] gives back the space of what nothing needs any more.
//! - [`select`], `diff` and [`restore`] serve people.
//!
//! Nothing here knows the POSIX layer or the kernel. The working tree is seen through its rows in the live
//! database (`store::records`) and the two promises of [`WorkingTree`].
//!
//! # Who may run beside whom
//!
//! Chain files are written by one thread at a time (`publish`), so sequences never collide. A run that
//! stores chunks which no row names yet (create, import) excludes garbage collection, and the other way
//! around: see `while_storing`. Both locks are the engine's, one pair for each opened vault.

pub mod chain;
#[cfg(test)]
mod crash_tests;
pub mod create;
pub mod delete;
pub mod describe;
pub mod diff;
pub mod gc;
mod gc_mark;
mod glob;
pub mod import;
#[cfg(test)]
mod import_again_tests;
mod import_ahead;
mod import_earlier;
mod import_file;
mod import_numbers;
mod import_stat;
#[cfg(test)]
mod io_tests;
pub mod open;
mod os;
mod publish;
pub mod restore;
mod restore_dir;
mod rows;
pub mod select;
#[cfg(test)]
mod testing;
pub mod tree;
#[cfg(test)]
mod tree_tests;
#[cfg(test)]
mod vault_tests;
pub mod write;

use std::sync::{RwLockReadGuard, RwLockWriteGuard};

use crate::store::engine::Engine;
use crate::store::error::{Result, StoreError};

/// What the working tree promises while it is mounted. Without a mount there is [`Idle`].
pub trait WorkingTree: Sync {
    /// Publishes as rows everything that was written before the call. In particular no chunk id that a writer
    /// got before the call is left without a row. Does not commit.
    fn flush(&self) -> Result<()>;

    /// Runs `f` while no row of the working tree changes. `f` does no I/O that could take long.
    fn frozen(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<()>;
}

/// A working tree that nobody writes to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Idle;

impl WorkingTree for Idle {
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn frozen(&self, f: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        f()
    }
}

/// For those who store chunks that no row or chain file names yet: keeps garbage collection away meanwhile. Many at a
/// time.
pub(crate) fn while_storing(engine: &Engine) -> Result<RwLockReadGuard<'_, ()>> {
    engine.snapshot_locks.chunks.read().map_err(|_| poisoned())
}

/// For garbage collection: alone, with nobody in `while_storing`.
pub(crate) fn while_collecting(engine: &Engine) -> Result<RwLockWriteGuard<'_, ()>> {
    engine.snapshot_locks.chunks.write().map_err(|_| poisoned())
}

fn poisoned() -> StoreError {
    StoreError::Poisoned("garbage collection stopped in the middle of its work".into())
}

/// Returns a path or name for people: what is not UTF-8 or not printable is escaped.
pub fn show(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_names_are_printable_and_tell_bytes_apart() {
        assert_eq!(show(b"plain name"), "plain name");
        assert_eq!(show("caf\u{e9}".as_bytes()), "caf\u{e9}");
        assert_eq!(show(b"a\xff\nb\\"), "a\\xff\\nb\\\\");
        assert_eq!(show(b"\x1b[31m"), "\\u{1b}[31m");
    }
}
