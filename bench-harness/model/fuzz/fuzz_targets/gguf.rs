//! What precedes the data of a GGUF file: any bytes are read or refused, and what is read lies within them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use perjoule_model::gguf::parse;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = parse(bytes, bytes.len() as u64) {
        assert!(header.tensors.values().all(|t| t.begin <= t.end));
        assert!(header.tensors.values().all(|t| header.data + t.end <= bytes.len() as u64));
    }
});
