#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom::format::fuzz::fuzz_tree(strongroom::format::fuzz::vector_body(data)));
