//! The reader of `config.json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use perjoule_model::Geometry;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(geometry) = Geometry::from_json(bytes) {
        assert!(geometry.validate().is_ok());
        assert!(geometry.n_active_params() <= geometry.n_params());
    }
});
