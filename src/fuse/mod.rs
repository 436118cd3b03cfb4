//! Kernel to [`crate::fs`]: the only module that names fuser.
//!
//! [`Adapter`] turns each request into one call of [`crate::fs::Fs`] and its result into one reply. It has no state of its own but
//! counters, and decides only what the kernel protocol leaves to a filesystem: how long the kernel may cache (`reply`),
//! what is negotiated (`init`), which errors are worth a line in the log (`errno`), and how many threads wait for requests (`readers`), on which of them calls
//! that may wait are made (`lane`), and when set-user-id bits go (`suid`).

pub mod activity;
mod adapter;
mod errno;
mod init;
mod lane;
mod op;
mod options;
mod readers;
mod reply;
mod session;
mod suid;

pub use adapter::Adapter;
pub use options::AdapterOptions;
pub use session::FuseSession;
