//! The tokenizer of a GGUF file.
use super::Gguf;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

impl Gguf {
    /// TODO
    pub fn tokenizer(&self, vocab: usize) -> Result<Tokenizer> {
        Tokenizer::from_json(b"{}", vocab)
    }
}
