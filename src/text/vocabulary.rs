//! A WordPiece vocabulary from text, the same one every time. The `tokenizers` crate numbers pieces in the
//! order of a randomly seeded hash table, so two runs on the same text give different ids and, through ties,
//! different pieces; a corpus prepared twice must be the same corpus.
//!
//! The method is that of `tokenizers`' own WordPiece trainer: words are counted, split into
//! characters (`##` before all but the first), and the most frequent neighbouring pair is merged
//! until the vocabulary is full (byte-pair encoding, Sennrich et al. 2016). Ties go to the pair whose
//! pieces are older.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;
use rayon::prelude::*;
use tokenizers::normalizers::BertNormalizer;

use super::wordpiece::each_word;
use crate::{Error, Result};

/// WordPiece never splits longer words, so they teach nothing.
const LONGEST_WORD: usize = 100;
/// Distinct words kept while counting; beyond it the rare ones are dropped.
const MOST_WORDS: usize = 1 << 23;
/// Distinct words that take part in merging (the most frequent ones).
const MERGE_WORDS: usize = 1 << 20;
/// The special tokens of a trained vocabulary, in the order of their ids.
pub(crate) const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

type Pair = (u32, u32);

/// Normalised words and how often each occurs.
#[derive(Default)]
pub(crate) struct WordCounts {
    counts: HashMap<String, u64>,
    normalizer: BertNormalizer,
}

impl WordCounts {
    /// Counts the words of a text.
    ///
    /// # Errors
    /// `Error::Data` if the text cannot be normalised.
    pub(crate) fn add(&mut self, text: &str) -> Result<()> {
        let counts = &mut self.counts;
        each_word(&self.normalizer, text, |word| {
            if let Some(count) = counts.get_mut(word) {
                *count += 1;
            } else if word.chars().count() <= LONGEST_WORD {
                counts.insert(word.to_owned(), 1);
            }
            true
        })
    }

    /// Adds the counts of another text. When there are too many words, rare ones are dropped; which ones
    /// depends on counts alone, so the same texts in the same order always leave the same words.
    pub(crate) fn merge(&mut self, other: Self) {
        if self.counts.is_empty() {
            self.counts = other.counts;
        } else {
            for (word, count) in other.counts {
                *self.counts.entry(word).or_default() += count;
            }
        }
        let mut least = 2;
        while self.counts.len() > MOST_WORDS {
            self.counts.retain(|_, count| *count >= least);
            least += 1;
        }
    }

    /// The pieces of a vocabulary of at most `size`; a piece's place is its id.
    ///
    /// # Errors
    /// `Error::Config` if `size` is too small for any vocabulary or beyond u32, `Error::Data` if there is no
    /// word.
    pub(crate) fn pieces(self, size: usize) -> Result<Vec<String>> {
        if !(16..=1 << 24).contains(&size) {
            return Err(Error::config(format!("vocab = {size}: must be from 16 to {}", 1 << 24)));
        }
        if self.counts.is_empty() {
            return Err(Error::data("the texts contain no word to train a vocabulary on"));
        }
        let mut words: Vec<(String, u64)> = self.counts.into_iter().collect();
        words.par_sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        words.truncate(MERGE_WORDS);
        let mut pieces: Vec<String> = SPECIAL.iter().map(ToString::to_string).collect();
        pieces.extend(alphabet(&words, size));
        Merger::new(&words, pieces).run(size)
    }
}

/// One-character pieces: those that begin words and, with `##`, those inside words. Rare characters
/// (of thousands in a web corpus) would crowd out pieces, so only the most frequent ones enter; printable
/// ASCII always does where the vocabulary has room, so that no ASCII query is ever unknown.
fn alphabet(words: &[(String, u64)], size: usize) -> Vec<String> {
    let mut first: HashMap<char, u64> = HashMap::new();
    let mut inside: HashMap<char, u64> = HashMap::new();
    if size >= 1024 {
        for c in (33..127u8).map(char::from).filter(|c| !c.is_ascii_uppercase()) {
            first.insert(c, u64::MAX / 2);
            if c.is_ascii_alphanumeric() {
                inside.insert(c, u64::MAX / 2);
            }
        }
    }
    for (word, count) in words {
        for (i, c) in word.chars().enumerate() {
            let table = if i == 0 { &mut first } else { &mut inside };
            let seen = table.entry(c).or_default();
            *seen = seen.saturating_add(*count);
        }
    }
    let room = (size - SPECIAL.len()) / 2;
    let most = (size / 16).clamp(128, 1000).min(room);
    let kept = |table: HashMap<char, u64>, prefix: &str| {
        let mut chars: Vec<(char, u64)> = table.into_iter().collect();
        chars.sort_unstable_by_key(|&(c, count)| (Reverse(count), c));
        chars.truncate(most);
        chars.sort_unstable();
        chars.into_iter().map(|(c, _)| format!("{prefix}{c}")).collect::<Vec<_>>()
    };
    let mut pieces = kept(first, "");
    pieces.extend(kept(inside, "##"));
    pieces
}

/// Words as rows of pieces, and where each neighbouring pair of pieces occurs.
struct Merger {
    pieces: Vec<String>,
    ids: HashMap<String, u32>,
    /// (pieces of the word, how often it occurs)
    words: Vec<(Vec<u32>, u64)>,
    counts: HashMap<Pair, u64>,
    /// Words that hold the pair, and some that once did.
    places: HashMap<Pair, Vec<u32>>,
    queue: BinaryHeap<(u64, Reverse<Pair>)>,
}

impl Merger {
    fn new(words: &[(String, u64)], pieces: Vec<String>) -> Self {
        let ids: HashMap<String, u32> = pieces.iter().cloned().zip(0..).collect();
        let split = |word: &str| -> Option<Vec<u32>> {
            let mut row = Vec::with_capacity(word.len());
            for (i, c) in word.chars().enumerate() {
                row.push(*ids.get(&if i == 0 { c.to_string() } else { format!("##{c}") })?);
            }
            Some(row)
        };
        // A word with a character outside the alphabet would be unknown as a whole: it is left out.
        let words: Vec<(Vec<u32>, u64)> =
            words.iter().filter_map(|(word, count)| Some((split(word)?, *count))).collect();
        let mut counts: HashMap<Pair, u64> = HashMap::new();
        let mut places: HashMap<Pair, Vec<u32>> = HashMap::new();
        for (place, (row, count)) in (0..).zip(&words) {
            for pair in row.windows(2).map(|w| (w[0], w[1])) {
                *counts.entry(pair).or_default() += count;
                places.entry(pair).or_default().push(place);
            }
        }
        let queue = counts.iter().map(|(&pair, &count)| (count, Reverse(pair))).collect();
        Self { pieces, ids, words, counts, places, queue }
    }

    fn run(mut self, size: usize) -> Result<Vec<String>> {
        while self.pieces.len() < size {
            let Some((count, Reverse(pair))) = self.queue.pop() else { break };
            let now = self.counts.get(&pair).copied().unwrap_or(0);
            if now != count {
                if now > 0 {
                    self.queue.push((now, Reverse(pair)));
                }
                continue;
            }
            // A pair that occurs once belongs to one word and is no piece of several.
            if count < 2 {
                break;
            }
            let merged = self.piece_of(pair);
            self.merge(pair, merged);
        }
        Ok(self.pieces)
    }

    /// The id of the two pieces joined, new unless another pair of pieces gave the same text.
    fn piece_of(&mut self, (left, right): Pair) -> u32 {
        let tail = &self.pieces[right as usize];
        let text = format!("{}{}", self.pieces[left as usize], tail.strip_prefix("##").unwrap_or(tail));
        if let Some(&id) = self.ids.get(&text) {
            return id;
        }
        let id = self.pieces.len() as u32;
        self.ids.insert(text.clone(), id);
        self.pieces.push(text);
        id
    }

    fn merge(&mut self, pair: Pair, merged: u32) {
        let mut changed: Vec<Pair> = Vec::new();
        let mut places = self.places.remove(&pair).unwrap_or_default();
        places.sort_unstable();
        places.dedup();
        for place in places {
            let (row, count) = &mut self.words[place as usize];
            let joined = join(row, pair, merged);
            if joined.len() == row.len() {
                continue;
            }
            for old in row.windows(2).map(|w| (w[0], w[1])) {
                if let Some(total) = self.counts.get_mut(&old) {
                    *total = total.saturating_sub(*count);
                }
            }
            for new in joined.windows(2).map(|w| (w[0], w[1])) {
                *self.counts.entry(new).or_default() += *count;
                if new.0 == merged || new.1 == merged {
                    self.places.entry(new).or_default().push(place);
                    changed.push(new);
                }
            }
            *row = joined;
        }
        self.counts.remove(&pair);
        changed.sort_unstable();
        changed.dedup();
        for pair in changed {
            if let Some(&count) = self.counts.get(&pair) {
                self.queue.push((count, Reverse(pair)));
            }
        }
    }
}

/// `row` with every occurrence of `pair` replaced, from the left.
fn join(row: &[u32], pair: Pair, merged: u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(row.len());
    let mut i = 0;
    while i < row.len() {
        if i + 1 < row.len() && (row[i], row[i + 1]) == pair {
            out.push(merged);
            i += 2;
        } else {
            out.push(row[i]);
            i += 1;
        }
    }
    out
}
