#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom::format::fuzz::fuzz_sealed_part(strongroom::format::fuzz::vector_body(data)));
