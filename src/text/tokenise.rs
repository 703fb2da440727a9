//! Text to WordPiece ids, as every BERT checkpoint's own tokenizer does it. `tokenizers` reads, checks
//! and writes the files, so that what is saved here loads in transformers; the ids of plain BERT
//! tokenizers come from the faster `wordpiece` module, all others from the crate.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::json;

use super::special::Special;
use super::vocabulary::{self, WordCounts};
use super::wordpiece::{Cache, WordPieces};
use crate::files;
use crate::{Error, Result};

/// The prefix of a piece that goes on a word.
const CONTINUES: &str = "##";
/// Ids are places in tables, so a wild one would fill the memory; multilingual vocabularies have 250,000.
const MOST_PIECES: usize = 1 << 24;
/// Texts that one thread takes at once.
const CHUNK: usize = 64;

/// A BERT WordPiece tokenizer, given or trained.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    fast: Option<WordPieces>,
    special: Special,
    vocab: usize,
    lower_case: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `vocab.txt` (lower-casing unless a `tokenizer_config.json` beside it says
    /// `"do_lower_case": false`), or a folder that holds either.
    ///
    /// # Errors
    /// `Error::Data` where nothing is there, it cannot be read, it is no WordPiece tokenizer, or one of
    /// the five special tokens is missing.
    pub fn load(path: &Path) -> Result<Self> {
        let file = find(path)?;
        let text = files::read(&file)?;
        if file.extension().is_some_and(|e| e == "json") {
            let name = file.display().to_string();
            let refused = |cause: String| Error::data(format!("{name}: not a tokenizer.json: {cause}"));
            // The crate panics where its decoder is no whole JSON, and where a SentencePiece table is damaged.
            let whole: serde_json::Value =
                serde_json::from_slice(&text).map_err(|cause| refused(cause.to_string()))?;
            if holds_type(&whole["normalizer"], "Precompiled") {
                return Err(refused(
                    "its normaliser is SentencePiece's, but BERT-type models use WordPiece".into(),
                ));
            }
            let inner =
                tokenizers::Tokenizer::from_bytes(&text).map_err(|cause| refused(cause.to_string()))?;
            return Self::of(inner, &name);
        }
        let text = String::from_utf8(text)
            .map_err(|_| Error::data(format!("{}: not UTF-8, so no vocabulary", file.display())))?;
        let pieces: Vec<String> = text
            .strip_prefix('\u{feff}')
            .unwrap_or(&text)
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        Self::from_pieces(&pieces, lower_case_beside(&file), &file.display().to_string())
    }

    /// Trains a lower-casing BERT WordPiece vocabulary of at most `vocab` pieces; the same texts in the
    /// same order give the same vocabulary. `[PAD] [UNK] [CLS] [SEP] [MASK]` are ids 0 to 4.
    ///
    /// # Errors
    /// `Error::Config` for a size below 16, `Error::Data` where the texts hold no word.
    pub fn train(texts: impl Iterator<Item = String>, vocab: usize) -> Result<Self> {
        let mut words = WordCounts::default();
        for text in texts {
            words.add(&text)?;
        }
        Self::of_words(words, vocab)
    }

    /// As `train`, from words that are counted already.
    pub(crate) fn of_words(words: WordCounts, vocab: usize) -> Result<Self> {
        Self::from_pieces(&words.pieces(vocab)?, true, "the trained vocabulary")
    }

    fn from_pieces(pieces: &[String], lower_case: bool, source: &str) -> Result<Self> {
        let mut ids: HashMap<&str, usize> = HashMap::with_capacity(pieces.len());
        for (id, piece) in pieces.iter().enumerate() {
            if let Some(before) = ids.insert(piece, id) {
                return Err(Error::data(format!(
                    "{source}: piece {piece:?} is on lines {} and {}",
                    before + 1,
                    id + 1
                )));
            }
        }
        let special = special_of(source, |token| ids.get(token).map(|&id| id as u32))?;
        let text = bert_json(&ids, special, lower_case).to_string();
        let inner = tokenizers::Tokenizer::from_bytes(text.as_bytes())
            .map_err(|cause| Error::data(format!("{source}: cannot be used as a tokenizer: {cause}")))?;
        Self::of(inner, source)
    }

    fn of(mut inner: tokenizers::Tokenizer, source: &str) -> Result<Self> {
        // Cutting and padding are the trainer's own decisions; what a checkpoint's file says of them is
        // about its last user.
        let unset = inner.with_truncation(None).map(|_| ());
        unset.map_err(|cause| Error::data(format!("{source}: {cause}")))?;
        inner.with_padding(None);
        if !matches!(inner.get_model(), tokenizers::ModelWrapper::WordPiece(_)) {
            return Err(Error::data(format!(
                "{source}: not a WordPiece tokenizer; BERT-type models need one (take the tokenizer.json or \
                 vocab.txt of a BERT checkpoint, or let prepare train one)"
            )));
        }
        let special = special_of(source, |token| inner.token_to_id(token))?;
        let vocab = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if vocab > MOST_PIECES {
            return Err(Error::data(format!(
                "{source}: a piece has the id {}; no BERT vocabulary is that large, so the file is damaged",
                vocab - 1
            )));
        }
        let lower_case = match inner.get_normalizer() {
            Some(tokenizers::NormalizerWrapper::BertNormalizer(bert)) => bert.lowercase,
            _ => false,
        };
        let fast = WordPieces::of(&inner);
        Ok(Self { inner, fast, special, vocab, lower_case })
    }

    /// Writes `tokenizer.json`, `vocab.txt` and `tokenizer_config.json` as transformers reads them.
    ///
    /// # Errors
    /// `Error::Data` where a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let text = self.inner.to_string(true).map_err(|cause| {
            Error::data(format!("{}: tokenizer cannot be written: {cause}", dir.display()))
        })?;
        let mut pieces = vec![String::new(); self.vocab];
        for (piece, id) in self.inner.get_vocab(true) {
            pieces[id as usize] = piece;
        }
        for (id, piece) in pieces.iter_mut().enumerate().filter(|(_, piece)| piece.is_empty()) {
            *piece = format!("[unused-id-{id}]");
        }
        let config = json!({
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lower_case,
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
            "model_max_length": 512,
        });
        for (name, content) in [
            ("tokenizer.json", text),
            ("vocab.txt", pieces.join("\n") + "\n"),
            ("tokenizer_config.json", format!("{config:#}\n")),
        ] {
            let path = dir.join(name);
            std::fs::write(&path, content).map_err(|cause| Error::io("written", &path, cause))?;
        }
        Ok(())
    }

    /// The pieces of each text, without special tokens around them, cut to `at_most`; on all threads.
    /// As in transformers, a text that spells out a special token (`[MASK]`) gets that token.
    ///
    /// # Errors
    /// `Error::Data` where the tokenizer itself refuses a text.
    pub fn encode_batch(&self, texts: &[&str], at_most: usize) -> Result<Vec<Vec<u32>>> {
        let encode = |chunk: &[&str]| {
            let mut encoder = self.encoder();
            let encode = |text: &&str| {
                let mut pieces = Vec::new();
                encoder.append(&[*text], at_most, &mut pieces).map(|()| pieces)
            };
            chunk.iter().map(encode).collect::<Result<Vec<_>>>()
        };
        let chunks: Vec<Vec<Vec<u32>>> = texts.par_chunks(CHUNK).map(encode).collect::<Result<_>>()?;
        Ok(chunks.into_iter().flatten().collect())
    }

    /// What one thread tokenises many texts with.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder { tokenizer: self, cache: self.fast.as_ref().map(WordPieces::lend) }
    }

    /// What the `tokenizers` crate itself makes of `text`: the slow way, and the one that tests trust.
    ///
    /// # Errors
    /// `Error::Data` where the crate refuses the text.
    pub fn encode_by_crate(&self, text: &str, at_most: usize) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|cause| Error::data(format!("text cannot be tokenised: {cause}")))?;
        let ids = encoding.get_ids();
        Ok(ids[..ids.len().min(at_most)].to_vec())
    }

    /// The ids of the five special tokens.
    pub fn special(&self) -> Special {
        self.special
    }

    /// V: one more than the largest id, so the rows that an embedding table needs.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// `[V]`: 1 where the piece goes on a word (starts with `##`), else 0.
    pub fn continues(&self) -> Vec<u32> {
        let mut continues = vec![0; self.vocab];
        for (piece, id) in self.inner.get_vocab(true) {
            continues[id as usize] = u32::from(piece.len() > CONTINUES.len() && piece.starts_with(CONTINUES));
        }
        continues
    }

    /// Whether both give every piece the same id. (Their files may differ in layout.)
    pub fn same_pieces(&self, other: &Self) -> bool {
        self.inner.get_vocab(true) == other.inner.get_vocab(true)
    }

    /// The text of a piece, `None` for an id without one.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
}

/// A tokenizer with the words that one thread met; they are handed on when it is dropped.
pub struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    cache: Option<Cache>,
}

impl Encoder<'_> {
    /// Appends the pieces of the text whose parts these are, joined with spaces, at most `at_most` of them.
    /// What lies beyond is never looked at.
    ///
    /// # Errors
    /// `Error::Data` where the tokenizer refuses the text.
    pub fn append(&mut self, parts: &[&str], at_most: usize, out: &mut Vec<u32>) -> Result<()> {
        let end = out.len().saturating_add(at_most);
        match (&self.tokenizer.fast, &mut self.cache) {
            (Some(fast), Some(cache)) => {
                // Pieces never reach over a space, so the parts can be taken one by one.
                parts.iter().try_for_each(|part| fast.append_text(part, end, cache, out))
            }
            _ => {
                let pieces = self.tokenizer.encode_by_crate(&parts.join(" "), at_most)?;
                out.extend_from_slice(&pieces);
                Ok(())
            }
        }
    }
}

impl Drop for Encoder<'_> {
    fn drop(&mut self) {
        if let (Some(fast), Some(cache)) = (&self.tokenizer.fast, self.cache.take()) {
            fast.give_back(cache);
        }
    }
}

/// Whether a part of a `tokenizer.json`, or a part of it, is of this type.
fn holds_type(part: &serde_json::Value, wanted: &str) -> bool {
    match part {
        serde_json::Value::Object(fields) => {
            fields.get("type").is_some_and(|kind| kind == wanted)
                || fields.values().any(|part| holds_type(part, wanted))
        }
        serde_json::Value::Array(parts) => parts.iter().any(|part| holds_type(part, wanted)),
        _ => false,
    }
}

/// The file that holds the tokenizer at `path`.
pub(crate) fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    ["tokenizer.json", "vocab.txt"]
        .iter()
        .map(|name| path.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::data(format!("{}: holds neither tokenizer.json nor vocab.txt", path.display())))
}

fn lower_case_beside(vocabulary: &Path) -> bool {
    let config = std::fs::read(vocabulary.with_file_name("tokenizer_config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    config.get("do_lower_case").and_then(serde_json::Value::as_bool).unwrap_or(true)
}

fn special_of(source: &str, id: impl Fn(&str) -> Option<u32>) -> Result<Special> {
    let of = |token: &str| {
        id(token).ok_or_else(|| {
            Error::data(format!(
                "{source}: special token {token} is missing, which every BERT vocabulary \
                has"
            ))
        })
    };
    Ok(Special {
        pad: of("[PAD]")?,
        unk: of("[UNK]")?,
        cls: of("[CLS]")?,
        sep: of("[SEP]")?,
        mask: of("[MASK]")?,
    })
}

/// What a BERT checkpoint's `tokenizer.json` holds.
fn bert_json(ids: &HashMap<&str, usize>, special: Special, lower_case: bool) -> serde_json::Value {
    let added: Vec<serde_json::Value> = {
        let mut tokens: Vec<(u32, &str)> = [special.pad, special.unk, special.cls, special.sep, special.mask]
            .into_iter()
            .zip(vocabulary::SPECIAL)
            .collect();
        tokens.sort_unstable();
        let entry = |(id, token): (u32, &str)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        tokens.into_iter().map(entry).collect()
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": lower_case},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", special.sep], "cls": ["[CLS]", special.cls]},
        "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": CONTINUES,
                  "max_input_chars_per_word": 100, "vocab": ids},
    })
}
