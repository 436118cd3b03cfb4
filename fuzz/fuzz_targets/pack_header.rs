#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom::format::fuzz::fuzz_pack_header(strongroom::format::fuzz::vector_body(data)));
