//! The vocabulary of a GGUF file, out of any keys, as a tokenizer that reads a text and writes it again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use perjoule_model::gguf::Gguf;

fuzz_target!(
    init: {
        // panics of the crate `tokenizers` become errors, for which the hook must not end the process; others end it all the same
        drop(std::panic::take_hook());
    },
    |bytes: &[u8]| {
        let path = std::env::temp_dir().join(format!("perjoule-fuzz-{}.gguf", std::process::id()));
        std::fs::write(&path, bytes).expect("the folder of temporary files can be written");
        let Ok(file) = Gguf::open(&path) else { return };
        if let Ok(tokenizer) = file.tokenizer(1000) {
            let ids = tokenizer.encode("a b 1\u{2581}\u{e9}").unwrap_or_default();
            let _ = tokenizer.decode(&ids);
        }
    }
);
