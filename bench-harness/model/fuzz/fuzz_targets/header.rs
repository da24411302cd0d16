//! The reader of safetensors headers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use perjoule_model::weights::{header_len, parse_header};

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first_chunk::<8>() else { return };
    let Ok(len) = header_len(*first, bytes.len() as u64) else { return };
    let (json, data) = rest.split_at(len as usize);
    if let Ok(tensors) = parse_header(json, data.len() as u64) {
        assert_eq!(tensors.values().map(|t| t.end - t.begin).sum::<u64>(), data.len() as u64);
    }
});
