//! Text to token ids and back, by the `tokenizer.json` of a model folder.
//!
//! The `tokenizers` crate can panic and take quadratic time on unusual files and texts: panics become errors here, and lengths are bounded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::{Error, Result};
pub use crate::ids::check_ids;

/// Largest `tokenizer.json` in bytes.
const MAX_FILE: u64 = 256 << 20;
/// Longest text in bytes.
const MAX_TEXT: usize = 1 << 20;

/// A loaded tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Embeddings that the model has: the bound on ids.
    vocab: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json` in `dir` for a model whose ids are `0..vocab`.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`] when the file is not there, [`Error::File`] when it cannot be used.
    pub fn open(dir: &Path, vocab: usize) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        if !path.exists() {
            return Err(Error::NoTokenizer { path });
        }
        let json = crate::weights::read_file(&path, MAX_FILE)?;
        Tokenizer::from_json(&json, vocab).map_err(|e| Error::file(&path, e.to_string()))
    }

    /// Loads the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn from_json(json: &[u8], vocab: usize) -> Result<Tokenizer> {
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(json))?;
        // Files may ask for cut or filled texts, which training wants and generation does not.
        guarded(|| inner.with_truncation(None).map(|_| ()))?;
        inner.with_padding(None);
        Ok(Tokenizer { inner, vocab })
    }

    /// Ids of `text`, with the special tokens that the tokenizer puts around it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the text is too long or cannot be encoded, [`Error::TokenId`] when the tokenizer knows more tokens than the
    /// model has embeddings.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT {
            return Err(Error::Tokenizer(format!(
                "the text has {} bytes, and at most {MAX_TEXT} are allowed",
                text.len()
            )));
        }
        let encoding = guarded(|| self.inner.encode_fast(text, true))?;
        let ids = encoding.get_ids().to_vec();
        check_ids(&ids, self.vocab)?;
        Ok(ids)
    }

    /// Text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// [`Error::TokenId`] for an id outside the vocabulary, [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        check_ids(ids, self.vocab)?;
        guarded(|| self.inner.decode(ids, true))
    }

    /// Decodes ids one at a time, as they are generated.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), from: 0, given: 0 }
    }
}

/// Text of a growing list of ids, in pieces that end on whole characters.
///
/// How an id reads depends on its neighbours, so each piece is the difference of two texts: that of a short run of ids before and after it grew.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Ids of the current run.
    ids: Vec<u32>,
    /// Ids of the run whose text was given out.
    from: usize,
    /// Bytes of the run's text that were given out.
    given: usize,
}

impl TextStream<'_> {
    /// The text that `id` completes: empty while it ends inside a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        check_ids(&[id], self.tokenizer.vocab)?;
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        // A character whose bytes are not all there yet decodes to the replacement character.
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.give(text)
    }

    /// The text of what is left: that of ids which end inside a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids)?;
        self.give(text)
    }

    fn give(&mut self, text: String) -> Result<String> {
        let piece = text.get(self.given..).unwrap_or_default().to_owned();
        // The ids whose text is out stay as context for the next ones, and those before them are forgotten: the run stays short.
        self.ids.drain(..self.from);
        self.from = self.ids.len();
        self.given = self.tokenizer.decode(&self.ids)?.len();
        Ok(piece)
    }
}

/// Runs a call into the tokenizer and turns its errors and panics into ours.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| Error::Tokenizer(e.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            Err(Error::Tokenizer(format!("it failed on this input: {}", text.unwrap_or("no reason given"))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte-level tokens: one for each of a few bytes, as their printable stand-ins, and one merge.
    const JSON: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 6, "content": "<eos>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ã": 4, "©": 5}, "merges": ["a b"]}
    }"#;

    #[test]
    fn texts_survive_both_ways_and_streams_agree() {
        let tokenizer = Tokenizer::from_json(JSON.as_bytes(), 7).unwrap();
        let text = "ab béaé bab";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, [2, 3, 1, 4, 5, 0, 4, 5, 3, 1, 2]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let mut stream = tokenizer.stream();
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(pieces, ["ab", " ", "b", "", "é", "a", "", "é", " ", "b", "ab"]);
        assert_eq!(stream.finish().unwrap(), "");
        assert_eq!(tokenizer.decode(&[0, 6]).unwrap(), "a");
        let mut stream = tokenizer.stream();
        assert_eq!(stream.push(4).unwrap(), "");
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }

    #[test]
    fn bad_input_is_one_clear_error() {
        let tokenizer = Tokenizer::from_json(JSON.as_bytes(), 6).unwrap();
        assert!(matches!(tokenizer.decode(&[5, 6]), Err(Error::TokenId { id: 6, vocab: 6 })));
        assert!(matches!(tokenizer.encode("<eos>"), Err(Error::TokenId { id: 6, vocab: 6 })));
        assert!(matches!(tokenizer.stream().push(u32::MAX), Err(Error::TokenId { .. })));
        assert!(tokenizer.encode(&"a".repeat(MAX_TEXT + 1)).unwrap_err().to_string().contains("at most"));
        assert!(matches!(Tokenizer::from_json(b"{}", 6), Err(Error::Tokenizer(_))));
        let dir = tempfile::tempdir().unwrap();
        assert!(Tokenizer::open(dir.path(), 6).unwrap_err().to_string().contains("--ids"));
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let error = guarded::<()>(|| panic!("index out of bounds")).unwrap_err();
        assert!(error.to_string().contains("index out of bounds"));
    }
}
