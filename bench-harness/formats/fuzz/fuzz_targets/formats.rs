//! Feeds arbitrary bytes to every importer, and what they read to every exporter.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| perjoule_formats::fuzz::formats(input));
