#![no_main]

mod exercise;

libfuzzer_sys::fuzz_target!(|input: &[u8]| exercise::request(input));
