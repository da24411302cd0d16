//! Feeds arbitrary bytes to the reader of results files.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| perjoule_record::fuzz::reader(input));
