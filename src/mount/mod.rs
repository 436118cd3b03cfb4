//! The process side of mounting: options, mountpoints, the daemon and its life, and talking to it from outside.
//!
//! The kernel's protocol is [`crate::fuse`]'s, what the files mean is [`crate::fs`]'s. Here is everything around them:
//!
//! - [`options`] reads `-o`; [`mountpoint`] checks and protects directories; [`mountinfo`] reads what is mounted.
//! - [`session`] attaches the connection; [`serve`] puts a vault behind it; [`daemon`] does so in a process of its own;
//!   [`runtime`] is its life.
//! - [`status`] and [`control`] are how others learn of it and ask it; [`holder`] is the asking side: who holds a vault,
//!   waiting for it, unmounting; [`remount`] changes the flags of a mount.
//! - [`log`] is where a process without a terminal logs.

pub mod control;
pub mod daemon;
pub mod error;
pub mod holder;
pub mod log;
pub mod mountinfo;
pub mod mountpoint;
pub mod options;
pub mod remount;
pub mod runtime;
pub mod serve;
pub mod session;
pub mod status;
mod vault;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod kernel_tests;

pub use error::{ErrorKind, Failure, MountError, Result};
