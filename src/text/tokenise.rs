//! Text to WordPiece ids, as every BERT checkpoint's own tokenizer does it. `tokenizers` reads, checks
//! and writes the files, so that what is saved here loads in transformers; the ids of plain BERT
//! tokenizers come from the faster `wordpiece` module, all others from the crate.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rayon::prelude::*;
use serde_json::json;

use super::given::{self, Files};
use super::normaliser::Flags;
use super::special::Special;
use super::tokenizer_keys::{self, Beside};
use super::vocabulary::{self, WordCounts};
use super::wordpiece::{Cache, WordPieces};
use crate::{Error, Result, allow_list, journal};

/// The prefix of a piece that continues a word.
const CONTINUES: &str = "##";
/// Ids index tables, so a wild one would fill memory; multilingual vocabularies have 250,000 pieces.
const MOST_PIECES: usize = 1 << 24;
/// Texts that one thread takes at once.
const CHUNK: usize = 64;

/// A BERT WordPiece tokenizer, given or trained.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    fast: Option<WordPieces>,
    special: Special,
    vocab: usize,
    /// The files that it was read from.
    given: Files,
}

type Object = serde_json::Map<String, serde_json::Value>;

impl Tokenizer {
    /// Reads `tokenizer.json`, `vocab.txt` (lower-casing unless a `tokenizer_config.json` beside it says
    /// otherwise), or a folder that holds either. `tokenizer_keys` judges the files beside it.
    ///
    /// # Errors
    /// `Error::Data` if nothing is there, it cannot be read, it is not a WordPiece tokenizer, or one of the
    /// five special tokens is missing; `Error::Config` that names a key whose value is not followed.
    pub fn load(path: &Path) -> Result<Self> {
        let (tokenizer, warnings) = Self::read(path)?;
        warnings.iter().for_each(|line| journal::warn_once(line));
        Ok(tokenizer)
    }

    /// As `load`, with a warning line for each setting in the files that has no effect.
    ///
    /// # Errors
    /// As `load`.
    pub fn read(path: &Path) -> Result<(Self, Vec<String>)> {
        let file = given::find(path)?;
        let name = file.display().to_string();
        let files = given::read(&file)?;
        let config = match files.get(given::CONFIG) {
            Some(_) => Some(allow_list::read_object(&file.with_file_name(given::CONFIG))?),
            None => None,
        };
        let mut tokenizer = match (files.get(given::JSON), files.get(given::VOCABULARY)) {
            (Some(json), _) => Self::of_json(json, &name)?,
            (None, vocabulary) => {
                let flags = config.as_ref().map_or(Flags::default(), Flags::of_config);
                Self::of_vocabulary(vocabulary.map_or(&[][..], Vec::as_slice), flags, &name)?
            }
        };
        let warnings = tokenizer.judge(&file, &files, config.as_ref())?;
        tokenizer.given = files;
        Ok((tokenizer, warnings))
    }

    fn of_json(text: &[u8], name: &str) -> Result<Self> {
        let refused = |cause: String| Error::data(format!("{name}: not a tokenizer.json: {cause}"));
        // The crate panics if the decoder is incomplete JSON, and if a SentencePiece table is damaged.
        let whole: serde_json::Value =
            serde_json::from_slice(text).map_err(|cause| refused(cause.to_string()))?;
        if holds_type(&whole["normalizer"], "Precompiled") {
            return Err(refused("its normaliser is SentencePiece's; BERT-type models have WordPiece".into()));
        }
        let inner = tokenizers::Tokenizer::from_bytes(text).map_err(|cause| refused(cause.to_string()))?;
        Self::of(inner, name)
    }

    fn of_vocabulary(text: &[u8], flags: Flags, name: &str) -> Result<Self> {
        let text = std::str::from_utf8(text)
            .map_err(|_| Error::data(format!("{name}: not UTF-8, so not a vocabulary")))?;
        Self::from_pieces(&lines(text), flags, name)
    }

    /// Judges what the tokenizer's files say; `file` is the one that was read. Returns the warnings.
    fn judge(&self, file: &Path, files: &Files, config: Option<&Object>) -> Result<Vec<String>> {
        let place = |name: &str| file.with_file_name(name);
        let object = |name: &str| files.get(name).map(|_| allow_list::read_object(&place(name))).transpose();
        let beside = Beside {
            added: self.added(),
            special: self.special,
            flags: self.flags().filter(|_| files.contains_key(given::JSON)),
            overrules: config.is_none_or(given::overrules),
            one_segment: one_segment(&place("config.json")),
        };
        let mut warnings = Vec::new();
        if files.contains_key(given::JSON) {
            warnings.extend(tokenizer_keys::check_json(file, &allow_list::read_object(file)?, &beside)?);
        }
        let tables = &[tokenizer_keys::CONFIG];
        if let Some(config) = config {
            let path = place(given::CONFIG);
            warnings.extend(allow_list::check(tables, &path, config, &beside)?);
            let unnamed =
                beside.flags.filter(|flags| beside.overrules && !flags.same(&Flags::of_config(config)));
            if unnamed.is_some() {
                warnings.push(format!(
                    "{}: does not name the normaliser of tokenizer.json, so transformers uses another; here \
                     tokenizer.json decides, and saved files name its normaliser",
                    path.display()
                ));
            }
        }
        if let Some(map) = object(given::SPECIAL)? {
            warnings.extend(allow_list::check(tables, &place(given::SPECIAL), &map, &beside)?);
        }
        if let Some(added) = object(given::ADDED)? {
            tokenizer_keys::check_added(&place(given::ADDED), &added, &beside)?;
        }
        warnings.extend(self.other_vocabulary(files, &place(given::VOCABULARY)));
        Ok(warnings)
    }

    /// Warns of a `vocab.txt` that numbers pieces differently from the `tokenizer.json` beside it.
    fn other_vocabulary(&self, files: &Files, path: &Path) -> Option<String> {
        let (Some(_), Some(vocabulary)) = (files.get(given::JSON), files.get(given::VOCABULARY)) else {
            return None;
        };
        let pieces = lines(&String::from_utf8_lossy(vocabulary));
        let known = |(id, piece): &(usize, String)| {
            self.inner.id_to_token(*id as u32).is_none_or(|own| own.trim_end() == piece)
        };
        let (id, _) = pieces.into_iter().enumerate().find(|piece| !known(piece))?;
        Some(format!(
            "{}: line {} is not the piece of that id in tokenizer.json, which is used",
            path.display(),
            id + 1
        ))
    }

    /// Tokens that a text may spell out, with their ids and settings.
    fn added(&self) -> BTreeMap<String, (u32, [bool; 3])> {
        let added = self.inner.get_added_tokens_decoder();
        let entry = |(id, token): (u32, tokenizers::AddedToken)| {
            (token.content, (id, [token.single_word, token.lstrip, token.rstrip]))
        };
        added.into_iter().map(entry).collect()
    }

    /// The settings of BERT's normaliser; `None` if the tokenizer has another.
    fn flags(&self) -> Option<Flags> {
        match self.inner.get_normalizer() {
            Some(tokenizers::NormalizerWrapper::BertNormalizer(bert)) => Some(bert.into()),
            _ => None,
        }
    }

    /// Trains a lower-casing BERT WordPiece vocabulary of at most `vocab` pieces; the same texts in the
    /// same order give the same vocabulary. `[PAD] [UNK] [CLS] [SEP] [MASK]` are ids 0 to 4.
    ///
    /// # Errors
    /// `Error::Config` for a size below 16, `Error::Data` if the texts hold no word.
    pub fn train(texts: impl Iterator<Item = String>, vocab: usize) -> Result<Self> {
        let mut words = WordCounts::default();
        for text in texts {
            words.add(&text)?;
        }
        Self::of_words(words, vocab)
    }

    /// As `train`, from words that are counted already.
    pub(crate) fn of_words(words: WordCounts, vocab: usize) -> Result<Self> {
        Self::from_pieces(&words.pieces(vocab)?, Flags::default(), "the trained vocabulary")
    }

    fn from_pieces(pieces: &[String], flags: Flags, source: &str) -> Result<Self> {
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
        let text = bert_json(&ids, special, flags).to_string();
        let inner = tokenizers::Tokenizer::from_bytes(text.as_bytes())
            .map_err(|cause| Error::data(format!("{source}: cannot be used as a tokenizer: {cause}")))?;
        Self::of(inner, source)
    }

    fn of(mut inner: tokenizers::Tokenizer, source: &str) -> Result<Self> {
        // Cutting and padding are the trainer's own decisions; a checkpoint's file only has its last user's.
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
        let fast = WordPieces::of(&inner);
        Ok(Self { inner, fast, special, vocab, given: Files::new() })
    }

    /// Writes `tokenizer.json`, `vocab.txt` and `tokenizer_config.json` as transformers reads them, and any
    /// other files that were given; given files stay as they are. Returns the names.
    ///
    /// # Errors
    /// `Error::Data` if a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<Vec<&'static str>> {
        let mut files = self.given.clone();
        if files.contains_key(given::JSON) {
            given::complete(&mut files, self.flags())?;
        } else {
            let text = self.inner.to_string(true).map_err(|cause| {
                Error::data(format!("{}: tokenizer cannot be written: {cause}", dir.display()))
            })?;
            files.insert(given::JSON, text.into_bytes());
        }
        files.entry(given::VOCABULARY).or_insert_with(|| (self.all_pieces().join("\n") + "\n").into_bytes());
        let plain = self.flags().filter(|_| self.fast.is_some());
        files.entry(given::CONFIG).or_insert_with(|| given::pretty(given::generated(plain)));
        for (name, content) in &files {
            let path = dir.join(name);
            std::fs::write(&path, content).map_err(|cause| Error::io("written", &path, cause))?;
        }
        Ok(given::NAMES.into_iter().filter(|name| files.contains_key(name)).collect())
    }

    /// The text of each id, [V]; ids without a piece get a name.
    fn all_pieces(&self) -> Vec<String> {
        let mut pieces = vec![String::new(); self.vocab];
        for (piece, id) in self.inner.get_vocab(true) {
            pieces[id as usize] = piece;
        }
        for (id, piece) in pieces.iter_mut().enumerate().filter(|(_, piece)| piece.is_empty()) {
            *piece = format!("[unused-id-{id}]");
        }
        pieces
    }

    /// The pieces of each text, without special tokens around them, cut to `at_most`; on all threads.
    /// As in transformers, a text that spells out a special token (`[MASK]`) gets that token.
    ///
    /// # Errors
    /// `Error::Data` if the tokenizer itself refuses a text.
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

    /// An encoder for one thread that tokenises many texts.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder { tokenizer: self, cache: self.fast.as_ref().map(WordPieces::lend) }
    }

    /// What the `tokenizers` crate itself makes of `text`: the slow way, and the one that tests trust.
    ///
    /// # Errors
    /// `Error::Data` if the crate refuses the text.
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

    /// `[V]`: 1 where the piece continues a word (starts with `##`), else 0.
    pub fn continues(&self) -> Vec<u32> {
        let mut continues = vec![0; self.vocab];
        for (piece, id) in self.inner.get_vocab(true) {
            continues[id as usize] = u32::from(piece.len() > CONTINUES.len() && piece.starts_with(CONTINUES));
        }
        continues
    }

    /// Whether both give every text the same ids. (Their files may differ in layout.)
    pub fn same_tokens(&self, other: &Self) -> bool {
        let parts = |tokenizer: &Self| {
            let inner = &tokenizer.inner;
            // an accent setting left to lower-casing equals one that spells it out
            let normalizer = match tokenizer.flags() {
                Some(flags) => json!([flags.lowercase, flags.strips(), flags.chinese, tokenizer.cleans()]),
                None => json!(inner.get_normalizer()),
            };
            let longest = match inner.get_model() {
                tokenizers::ModelWrapper::WordPiece(model) => model.max_input_chars_per_word,
                _ => 0,
            };
            (normalizer, json!(inner.get_pre_tokenizer()), tokenizer.added(), longest)
        };
        self.inner.get_vocab(true) == other.inner.get_vocab(true) && parts(self) == parts(other)
    }

    /// Whether BERT's normaliser removes control characters.
    fn cleans(&self) -> bool {
        matches!(
            self.inner.get_normalizer(),
            Some(tokenizers::NormalizerWrapper::BertNormalizer(bert)) if bert.clean_text
        )
    }

    /// The text of a piece, `None` for an id without one.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
}

/// A tokenizer with one thread's cache of words, which is handed on when it is dropped.
pub struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    cache: Option<Cache>,
}

impl Encoder<'_> {
    /// Appends the pieces of `parts` joined with spaces, at most `at_most` of them. Text beyond that is never
    /// read.
    ///
    /// # Errors
    /// `Error::Data` if the tokenizer refuses the text.
    pub fn append(&mut self, parts: &[&str], at_most: usize, out: &mut Vec<u32>) -> Result<()> {
        let end = out.len().saturating_add(at_most);
        match (&self.tokenizer.fast, &mut self.cache) {
            (Some(fast), Some(cache)) => {
                // Pieces never cross a space, so the parts can be taken one by one.
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

/// Whether a part of a `tokenizer.json`, or anything inside it, is of this type.
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

/// The pieces of a vocabulary, one per line.
fn lines(text: &str) -> Vec<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// Whether the model of this config has one segment.
fn one_segment(config: &Path) -> bool {
    allow_list::read_object(config).is_ok_and(|config| config.get("type_vocab_size") == Some(&json!(1)))
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
fn bert_json(ids: &HashMap<&str, usize>, special: Special, flags: Flags) -> serde_json::Value {
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
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": flags.chinese,
                       "strip_accents": flags.strip_accents, "lowercase": flags.lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", special.sep], "cls": ["[CLS]", special.cls]},
        "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": CONTINUES,
                  "max_input_chars_per_word": 100, "vocab": ids},
    })
}
