//! Kernel to [`crate::fs`]: the only module that names fuser.

pub mod activity;
