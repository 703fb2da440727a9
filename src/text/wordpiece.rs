//! The fast way through a BERT tokenizer. The `tokenizers` crate tracks where every character came from,
//! which training never asks. For plain ASCII words all of the normalisation is a table look-up. So: split at
//! ASCII white space; ASCII words are lower-cased, stripped of control characters and split at punctuation
//! here; words with other characters go through the crate's own normaliser. Pieces of a word are found once
//! and then come from a cache. The result is that of the crate, piece for piece, which `tests/corpus.rs`
//! checks.

use std::sync::Mutex;

use hashbrown::HashMap;

use tokenizers::{
    AddedToken, Model, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential,
    OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
};

use crate::{Error, Result};

/// The byte that every special token of BERT begins with, so that one fast search finds all of them.
const SPECIAL_START: u8 = b'[';
/// Words that one cache holds before it starts over: about 10 MB.
const CACHE_WORDS: usize = 1 << 17;

/// BERT normaliser + BERT pre-tokeniser + WordPiece, without offsets.
pub(crate) struct WordPieces {
    normalizer: tokenizers::normalizers::BertNormalizer,
    /// Pieces that begin a word.
    first: HashMap<Box<str>, u32>,
    /// Pieces that continue a word, without their prefix.
    inside: HashMap<Box<str>, u32>,
    unknown: u32,
    /// Longest piece in bytes, without prefix: no longer candidate is looked up.
    longest: usize,
    /// Words with more characters become the unknown piece.
    most_chars: usize,
    /// Tokens that a text may spell out, with their ids; longest first.
    special: Vec<(String, u32)>,
    caches: Mutex<Vec<Cache>>,
}

/// Word -> its pieces; lent to one thread at a time.
#[derive(Default)]
pub(crate) struct Cache {
    words: HashMap<Box<str>, (u32, u32)>,
    pieces: Vec<u32>,
}

impl WordPieces {
    /// `None` if the tokenizer is not a plain BERT one; then only the crate itself can follow it.
    pub(crate) fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let Some(NormalizerWrapper::BertNormalizer(normalizer)) = tokenizer.get_normalizer() else {
            return None;
        };
        let Some(PreTokenizerWrapper::BertPreTokenizer(_)) = tokenizer.get_pre_tokenizer() else {
            return None;
        };
        let ModelWrapper::WordPiece(model) = tokenizer.get_model() else { return None };
        let added: Vec<(u32, AddedToken)> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        let plain = |(_, token): &(u32, AddedToken)| {
            token.special
                && !(token.normalized || token.single_word || token.lstrip || token.rstrip)
                && token.content.as_bytes().first() == Some(&SPECIAL_START)
        };
        if !normalizer.clean_text || !added.iter().all(plain) || tokenizer.get_encode_special_tokens() {
            return None;
        }
        let mut special: Vec<(String, u32)> =
            added.into_iter().map(|(id, token)| (token.content, id)).collect();
        special.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
        let (mut first, mut inside) = (HashMap::default(), HashMap::default());
        let mut longest = 1;
        for (piece, id) in model.get_vocab() {
            let bare = match piece.strip_prefix(model.continuing_subword_prefix.as_str()) {
                Some(rest) if !rest.is_empty() => {
                    inside.insert(Box::from(rest), id);
                    rest.len()
                }
                _ => 0,
            };
            longest = longest.max(bare).max(piece.len());
            first.insert(piece.into_boxed_str(), id);
        }
        Some(Self {
            normalizer: *normalizer,
            unknown: model.token_to_id(&model.unk_token)?,
            first,
            inside,
            longest,
            most_chars: model.max_input_chars_per_word,
            special,
            caches: Mutex::new(Vec::new()),
        })
    }

    /// A cache for one thread's chunk of texts.
    pub(crate) fn lend(&self) -> Cache {
        self.caches.lock().map(|mut free| free.pop()).ok().flatten().unwrap_or_default()
    }

    /// Takes a cache back for the next chunk.
    pub(crate) fn give_back(&self, cache: Cache) {
        if let Ok(mut free) = self.caches.lock() {
            free.push(cache);
        }
    }

    /// Appends the pieces of `text` to `out` until it holds `end`.
    pub(crate) fn append_text(
        &self,
        text: &str,
        end: usize,
        cache: &mut Cache,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let mut rest = text;
        while out.len() < end {
            let found = self.find_special(rest);
            let plain = found.map_or(rest, |(at, _, _)| &rest[..at]);
            each_word(&self.normalizer, plain, |word| {
                self.append(word, cache, out);
                out.len() < end
            })?;
            let Some((at, length, id)) = found else { break };
            if out.len() < end {
                out.push(id);
            }
            rest = &rest[at + length..];
        }
        out.truncate(end);
        Ok(())
    }

    /// The first special token that the text spells out, the longest of those that begin there: place,
    /// length and id.
    fn find_special(&self, text: &str) -> Option<(usize, usize, u32)> {
        let starts =
            |at: usize| self.special.iter().find(move |(token, _)| text[at..].starts_with(token.as_str()));
        memchr::memchr_iter(SPECIAL_START, text.as_bytes())
            .find_map(|at| starts(at).map(|(token, id)| (at, token.len(), *id)))
    }

    fn append(&self, word: &str, cache: &mut Cache, out: &mut Vec<u32>) {
        if let Some(&(from, to)) = cache.words.get(word) {
            out.extend_from_slice(&cache.pieces[from as usize..to as usize]);
            return;
        }
        if cache.words.len() >= CACHE_WORDS {
            cache.words.clear();
            cache.pieces.clear();
        }
        let from = cache.pieces.len();
        if !self.split(word, &mut cache.pieces) {
            cache.pieces.truncate(from);
            cache.pieces.push(self.unknown);
        }
        out.extend_from_slice(&cache.pieces[from..]);
        cache.words.insert(word.into(), (from as u32, cache.pieces.len() as u32));
    }

    /// Greedy longest match from the left; false if some part matches nothing.
    fn split(&self, word: &str, out: &mut Vec<u32>) -> bool {
        if word.chars().count() > self.most_chars {
            return false;
        }
        let mut start = 0;
        while start < word.len() {
            let pieces = if start == 0 { &self.first } else { &self.inside };
            let mut end = word.len().min(start + self.longest);
            while !word.is_char_boundary(end) {
                end -= 1;
            }
            let found = loop {
                if end <= start {
                    break None;
                }
                if let Some(&id) = pieces.get(&word[start..end]) {
                    break Some(id);
                }
                end -= 1;
                while !word.is_char_boundary(end) {
                    end -= 1;
                }
            };
            let Some(id) = found else { return false };
            out.push(id);
            start = end;
        }
        true
    }
}

/// Calls `each` with every normalised word of `text` until it returns false.
pub(crate) fn each_word(
    normalizer: &tokenizers::normalizers::BertNormalizer,
    text: &str,
    mut each: impl FnMut(&str) -> bool,
) -> Result<()> {
    let mut word = String::new();
    for chunk in text.split([' ', '\t', '\n', '\r']) {
        if chunk.is_empty() {
            continue;
        }
        let go_on = if chunk.is_ascii() {
            ascii_words(chunk, normalizer.lowercase, &mut word, &mut each)
        } else {
            other_words(normalizer, chunk, &mut each)?
        };
        if !go_on {
            break;
        }
    }
    Ok(())
}

fn ascii_words(chunk: &str, lower: bool, word: &mut String, each: &mut impl FnMut(&str) -> bool) -> bool {
    word.clear();
    for byte in chunk.bytes() {
        if byte.is_ascii_control() {
            continue;
        }
        if byte.is_ascii_punctuation() {
            if !word.is_empty() && !each(word) {
                return false;
            }
            word.clear();
            word.push(byte as char);
            if !each(word) {
                return false;
            }
            word.clear();
        } else {
            word.push((if lower { byte.to_ascii_lowercase() } else { byte }) as char);
        }
    }
    word.is_empty() || each(word)
}

fn other_words(
    normalizer: &tokenizers::normalizers::BertNormalizer,
    chunk: &str,
    each: &mut impl FnMut(&str) -> bool,
) -> Result<bool> {
    let broken = |cause: tokenizers::Error| Error::data(format!("text cannot be normalised: {cause}"));
    let mut normalized = NormalizedString::from(chunk);
    normalizer.normalize(&mut normalized).map_err(broken)?;
    let mut words = PreTokenizedString::from(normalized);
    tokenizers::pre_tokenizers::bert::BertPreTokenizer.pre_tokenize(&mut words).map_err(broken)?;
    for (word, _, _) in words.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
        if !word.is_empty() && !each(word) {
            return Ok(false);
        }
    }
    Ok(true)
}
