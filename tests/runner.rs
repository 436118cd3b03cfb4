//! The one integration-test binary: linking is slow on two cores.

mod arch;
mod common;
mod cpanel;
mod rsync_tree;
