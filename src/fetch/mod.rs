//! Vaults from remotes: a whole copy, and bringing a copy up to date.
//!
//! No key is needed, and nothing that a remote says is believed. The header is parsed, every chain file is checked against
//! its name and against the header's public keys, every pack that these files name against its name. What nothing signed
//! names is not fetched. Everything is written under scratch names, made durable, and only then gets a name that nothing
//! has: packs first, then chain files, then the header. So what stands under its name is right, and an interrupted run is
//! gone on with.

mod clone;
mod error;
mod get;
mod incoming;
mod pull;

pub use clone::{clone, is_begun};
pub use error::{FetchError, Result};
pub use get::{Progress, RemoteHeader, Report, remote_header};
pub use pull::{Movable, Prepared, State, prepare, take_header};
