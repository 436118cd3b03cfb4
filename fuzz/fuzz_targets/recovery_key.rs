#![no_main]
//! See `strongroom_fuzz::targets`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom_fuzz::targets::recovery_key(data));
