//! The reader of `model.safetensors.index.json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use perjoule_model::weights::parse_index;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(map) = parse_index(bytes) {
        assert!(map.values().all(|shard| std::path::Path::new(shard).components().count() == 1));
    }
});
