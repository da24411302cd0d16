//! The tokenizer of a GGUF file, as the description that the `tokenizers` crate reads.
//!
//! Two kinds of vocabulary are known: byte-level BPE with merges (`gpt2`), whose way to split a text first has a name, and SentencePiece's BPE
//! (`llama`), whose scores say which pieces are joined first.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::{Gguf, Value};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// What to do where there is no tokenizer.
const IDS: &str = "give token ids with --ids instead of a text";

/// Numbers of `tokenizer.ggml.token_type`.
const NORMAL: u64 = 1;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// Longest piece that is split into two others, in bytes: none that is longer is a word.
const MAX_PIECE: usize = 1024;
/// Bytes of all pairs of pieces together. The largest vocabularies come to a third; half a megabyte of pieces that begin each other
/// would come to gigabytes.
const MAX_MERGES: usize = 128 << 20;
/// What a pair takes beside its letters.
const PAIR: usize = 64;

impl Gguf {
    /// The tokenizer of the file, for a model whose ids are `0..vocab`.
    ///
    /// # Errors
    /// [`Error::File`] for a file without a vocabulary, and for a kind of tokenizer that is not known.
    pub fn tokenizer(&self, vocab: usize) -> Result<Tokenizer> {
        let path = self.checkpoint.path();
        let refused = |reason: String| Error::file(path, reason);
        let json = description(self).map_err(refused)?;
        Tokenizer::from_json(json.to_string().as_bytes(), vocab).map_err(|e| refused(e.to_string()))
    }
}

/// The keys of the vocabulary, checked to belong together.
struct Vocab<'a> {
    file: &'a Gguf,
    tokens: Vec<&'a str>,
    /// One for each token.
    kinds: Vec<u64>,
}

fn description(file: &Gguf) -> std::result::Result<Json, String> {
    let model = match key(file, "model").and_then(Value::as_str) {
        None | Some("none" | "no_vocab") => return Err(format!("it has no tokenizer: {IDS}")),
        Some(model) => model,
    };
    let tokens = texts(file, "tokens")?;
    let kinds = match key(file, "token_type").and_then(Value::as_array) {
        Some(kinds) => kinds.iter().map(|kind| kind.as_u64().unwrap_or(NORMAL)).collect(),
        None => vec![NORMAL; tokens.len()],
    };
    if kinds.len() != tokens.len() {
        return Err(format!(
            "tokenizer.ggml.token_type has {} kinds for {} tokens",
            kinds.len(),
            tokens.len()
        ));
    }
    let vocab = Vocab { file, tokens, kinds };
    match model {
        "gpt2" => byte_level(&vocab),
        "llama" => sentence_piece(&vocab),
        other => Err(format!("its tokenizer {other:?} is not supported, gpt2 and llama are: {IDS}")),
    }
}

fn key<'a>(file: &'a Gguf, name: &str) -> Option<&'a Value> {
    file.metadata.get(&format!("tokenizer.ggml.{name}"))
}

fn texts<'a>(file: &'a Gguf, name: &str) -> std::result::Result<Vec<&'a str>, String> {
    let list = key(file, name).and_then(Value::as_array);
    let texts = list.and_then(|list| list.iter().map(Value::as_str).collect());
    texts.ok_or_else(|| format!("tokenizer.ggml.{name} is missing, or no list of texts: {IDS}"))
}

impl<'a> Vocab<'a> {
    fn flag(&self, name: &str, default: bool) -> bool {
        key(self.file, name).and_then(Value::as_bool).unwrap_or(default)
    }

    fn token(&self, name: &str) -> Option<(u64, &'a str)> {
        let id = key(self.file, name)?.as_u64()?;
        self.tokens.get(usize::try_from(id).ok()?).map(|token| (id, *token))
    }

    fn ids(&self) -> Map<String, Json> {
        self.tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect()
    }

    /// Tokens that are looked for in a text before anything else. Those that steer are left out of texts.
    fn added(&self) -> Vec<Json> {
        let found = self.tokens.iter().zip(&self.kinds).enumerate();
        found
            .filter(|(_, (token, kind))| matches!(**kind, CONTROL | USER_DEFINED) && !token.is_empty())
            .map(|(id, (token, kind))| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": *kind == CONTROL})
            })
            .collect()
    }

    /// Puts the token that starts a text before it. One that ends it is not added: a prompt is continued.
    fn post_processor(&self, starts: bool) -> Json {
        let Some((id, bos)) = self.token("bos_token_id").filter(|_| self.flag("add_bos_token", starts))
        else {
            return Json::Null;
        };
        let (bos_part, text) = (
            json!({"SpecialToken": {"id": bos, "type_id": 0}}),
            |name: &str| json!({"Sequence": {"id": name, "type_id": 0}}),
        );
        json!({"type": "TemplateProcessing", "single": [bos_part, text("A")], "pair": [bos_part, text("A"), text("B")],
               "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}})
    }
}

fn byte_level(vocab: &Vocab<'_>) -> std::result::Result<Json, String> {
    let name = key(vocab.file, "pre").and_then(Value::as_str).unwrap_or("default");
    let Some(pre) = pre_tokenizer(name) else {
        return Err(format!(
            "its pre-tokenizer {name:?} is not supported, {} are: {IDS}",
            "gpt-2, llama-bpe, qwen2, smollm, tekken and gpt-4o"
        ));
    };
    let merges = texts(vocab.file, "merges")?;
    // the space between the two is not the first character, which may be one itself
    let pair = |merge: &&str| {
        let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ')?.0;
        Some(json!([merge[..at], merge[at + 1..]]))
    };
    let merges: Option<Vec<Json>> = merges.iter().map(pair).collect();
    let Some(merges) = merges else {
        return Err("tokenizer.ggml.merges holds a merge that is not two tokens: the file is damaged".into());
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": pre.words_of_gpt2});
    let steps: Vec<Json> = pre.split.into_iter().chain([bytes]).collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocab.added(),
        "normalizer": pre.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": vocab.post_processor(pre.starts),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": pre.ignore_merges, "vocab": vocab.ids(), "merges": merges},
    }))
}

/// How a text is split before merges apply.
struct Pre {
    normalizer: Json,
    /// Before the bytes.
    split: Option<Json>,
    /// Whether the pattern of GPT-2 splits (what is left of) the text.
    words_of_gpt2: bool,
    /// Whole tokens are taken before merges are tried.
    ignore_merges: bool,
    /// Whether texts begin with the token for it, where the file does not say.
    starts: bool,
}

/// What `tokenizer.ggml.pre` stands for.
fn pre_tokenizer(name: &str) -> Option<Pre> {
    const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    const REST: &str = r"\s*[\r\n]+|\s+(?!\S)|\s+";
    let pattern = |regex: String| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let words = |digits: &str| {
        pattern(format!(
            r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}"
        ))
    };
    // words by the case of their letters; a contraction belongs to the word before it
    let cased = |contractions: &str, digits: &str| {
        let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
        let before = r"[^\r\n\p{L}\p{N}]?";
        pattern(format!(
            r"{before}{upper}*{lower}+{contractions}|{before}{upper}+{lower}*{contractions}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}"
        ))
    };
    let plain = Pre {
        normalizer: Json::Null,
        split: None,
        words_of_gpt2: false,
        ignore_merges: false,
        starts: false,
    };
    Some(match name {
        "gpt-2" => Pre { words_of_gpt2: true, ..plain },
        "llama-bpe" | "llama3" | "llama-v3" => {
            Pre { split: Some(words(r"\p{N}{1,3}")), ignore_merges: true, starts: true, ..plain }
        }
        "qwen2" | "deepseek-r1-qwen" => {
            Pre { split: Some(words(r"\p{N}")), normalizer: json!({"type": "NFC"}), ..plain }
        }
        "smollm" => Pre {
            split: Some(json!({"type": "Digits", "individual_digits": true})),
            words_of_gpt2: true,
            ..plain
        },
        "tekken" => Pre { split: Some(cased("", r"\p{N}")), ignore_merges: true, starts: true, ..plain },
        "gpt-4o" => Pre { split: Some(cased(&format!("{CONTRACTIONS}?"), r"\p{N}{1,3}")), ..plain },
        _ => return None,
    })
}

fn sentence_piece(vocab: &Vocab<'_>) -> std::result::Result<Json, String> {
    let scores = key(vocab.file, "scores").and_then(Value::as_array).unwrap_or_default();
    if scores.len() != vocab.tokens.len() {
        return Err(format!(
            "tokenizer.ggml.scores has {} numbers for {} tokens: {IDS}",
            scores.len(),
            vocab.tokens.len()
        ));
    }
    let prefixed = vocab.flag("add_space_prefix", true);
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prefix = prefixed.then(|| json!({"type": "Prepend", "prepend": "▁"}));
    let normalizers: Vec<Json> = prefix.into_iter().chain([space]).collect();
    let strip = prefixed.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let decoders: Vec<Json> = [
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ]
    .into_iter()
    .chain(strip)
    .collect();
    let unknown = vocab.token("unknown_token_id").map(|(_, token)| token);
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocab.added(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": vocab.post_processor(true),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab.ids(), "merges": merges_of_scores(vocab, scores)?},
    }))
}

/// Every way in which a piece is two others, those of the best score first.
fn merges_of_scores(vocab: &Vocab<'_>, scores: &[Value]) -> std::result::Result<Vec<Json>, String> {
    let known: HashMap<&str, usize> =
        vocab.tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let (mut merges, mut bytes) = (Vec::new(), 0);
    for ((token, kind), score) in vocab.tokens.iter().zip(&vocab.kinds).zip(scores) {
        if *kind != NORMAL || token.len() > MAX_PIECE {
            continue;
        }
        let score = score.as_f64().unwrap_or(0.0);
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if known.contains_key(left) && known.contains_key(right) {
                bytes += token.len() + PAIR;
                merges.push((score, left, right));
            }
        }
        if bytes > MAX_MERGES {
            return Err(format!(
                "its tokens are made of each other in too many ways: the file is damaged; {IDS}"
            ));
        }
    }
    // as transformers orders them: between splits of one piece, the longer left part first
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.chars().count().cmp(&a.1.chars().count())));
    Ok(merges.into_iter().map(|(_, left, right)| json!([left, right])).collect())
}
