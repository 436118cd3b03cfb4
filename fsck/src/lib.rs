//! An independent, read-only decoder and checker of Strongroom vaults, written from docs/format.md alone.
//!
//! [`check`] and [`check_source`] verify a vault as far as the key allows. The modules hold a decoder for each
//! structure of the format; they take bytes and need nothing else, so that they can be run on test vectors.

pub mod bytes;
pub mod chain;
mod check;
pub mod crypto;
pub mod header;
pub mod history;
mod iter;
pub mod keys;
pub mod pack;
pub mod report;
pub mod restore;
pub mod source;
mod store;
pub mod tree;
mod walk;
pub mod xwing;

pub use check::{FatalError, Options, Progress, Select, check, check_source};
pub use keys::Unlock;
pub use report::{Class, Finding, Report, TreeItem};
pub use source::{DirSource, Source};
