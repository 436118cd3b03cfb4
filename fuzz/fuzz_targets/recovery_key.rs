#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom::crypto::recovery::fuzz_recovery_key(strongroom::format::fuzz::vector_body(data)));
