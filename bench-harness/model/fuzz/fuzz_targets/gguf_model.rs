//! What a GGUF file says of a model: geometry and places of weights, out of any keys.
#![no_main]

use libfuzzer_sys::fuzz_target;
use perjoule_model::gguf::Gguf;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("perjoule-fuzz-{}.gguf", std::process::id()));
    std::fs::write(&path, bytes).expect("the folder of temporary files can be written");
    let Ok(file) = Gguf::open(&path) else { return };
    if let Ok(geometry) = file.geometry() {
        assert!(geometry.validate().is_ok());
        let _ = file.plan(&geometry);
    }
});
