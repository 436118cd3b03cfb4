//! Fuzz targets: one for each decoder of bytes that outlive a process or come from outside, and what they start from.
//!
//! [`targets::ALL`] names them. `fuzz/run` runs them under libFuzzer; a test of this crate drives the same bodies with
//! mutated seeds, so that they hold on every machine and in every test run.

pub mod seeds;
pub mod targets;
