//! The one integration-test binary: linking is slow on two cores.

mod arch;
mod common;
mod cpanel;
mod mount_basic;
mod rsync_tree;
