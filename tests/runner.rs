//! The one integration-test binary: linking is slow on two cores.
#![allow(unreachable_pub, reason = "a test binary exports nothing")]
#![allow(clippy::unwrap_used, reason = "clippy allows it in tests, but not in their helper functions")]

mod arch;
mod attacks;
mod cli;
mod common;
mod copies;
mod cpanel;
mod crash;
mod docs_tests;
mod extremes;
mod faults;
mod fetch;
mod format_rules;
mod fsx;
mod full_disk;
mod kernel_model;
mod kernel_survey;
mod keys;
mod kill;
mod memory;
mod mount_basic;
mod mount_calls;
mod offsite;
mod permissions;
mod posix;
mod privileges;
mod programs;
mod recorded;
mod remote;
mod remount;
mod rotation;
mod rsync_tree;
mod ship;
mod ship_iam;
mod ship_lock;
mod storm;
mod syncfs;
mod systemd;
mod troubles;
mod umount_wait;
mod vectors_test;
mod verify;
mod watch;
mod whole;
