//! The pairs that are probed: a sample of a query log's clicks, or of topics' relevant documents. Also their
//! words, and which of these are rare.

use std::collections::HashMap;
use std::ops::Range;

use crate::config::{Data, need};
use crate::corpus::shard::Shards;
use crate::data::collection::{Collection, CollectionInputs};
use crate::data::order::Permutation;
use crate::ir::qrels::Qrels;
use crate::text::{Special, Tokenizer};
use crate::{Error, Result};

/// Queries whose words are counted: enough for the classes, and little memory even for a large log.
const COUNTED: u32 = 1_000_000;

/// One query with a document that answers it.
pub struct Pair {
    pub query: Vec<u32>,
    pub document: Vec<u32>,
    /// Pieces of each word that can be predicted (without unknown pieces), as ranges of `query`.
    pub words: Vec<Word>,
    /// Words of the query, including unknown ones.
    pub length: usize,
}

/// A word to predict.
pub struct Word {
    pub pieces: Range<usize>,
    /// Among the most frequent words that make half of all word occurrences in queries.
    pub common: bool,
}

/// The sample.
pub struct Pairs {
    pub special: Special,
    pub list: Vec<Pair>,
    /// Where the pairs come from.
    pub source: String,
    /// Pairs of a log whose query was cut.
    pub cut: usize,
}

impl Pairs {
    /// CRC-32 of all tokens, in their order.
    pub fn fingerprint(&self) -> String {
        let mut sum = crc32fast::Hasher::new();
        for text in self.list.iter().flat_map(|pair| [&pair.query, &pair.document]) {
            sum.update(&(text.len() as u64).to_le_bytes());
            sum.update(bytemuck::cast_slice(text));
        }
        format!("{:08x}", sum.finalize())
    }

    /// Draws `n` pairs of the log in `data.shards`.
    ///
    /// # Errors
    /// `Error::Data` when there is no pair with a word to predict; `Error::Config` when the data's vocabulary
    /// is not the models'.
    pub fn of_log(seed: u32, data: &Data, tokenizer: &Tokenizer, n: usize) -> Result<Self> {
        Self::new(draw_clicks(seed, data, tokenizer, n)?, tokenizer)
    }

    /// Draws `n` pairs of topics and relevant candidates.
    ///
    /// # Errors
    /// As [`Pairs::of_log`].
    pub fn of_topics(seed: u32, inputs: CollectionInputs, tokenizer: &Tokenizer, n: usize) -> Result<Self> {
        Self::new(draw_relevant(seed, inputs, tokenizer, n)?, tokenizer)
    }

    fn new(Drawn { queries, pairs, source, cut }: Drawn, tokenizer: &Tokenizer) -> Result<Self> {
        let continues = tokenizer.continues();
        let common = common_words(&queries, &continues);
        let special = tokenizer.special();
        let list = pairs.into_iter().map(|(query, document)| {
            let words = words(&query, &continues);
            let length = words.len();
            let known = words.into_iter().filter(|word| !query[word.clone()].contains(&special.unk));
            let words = known
                .map(|pieces| Word { common: common.contains(&query[pieces.clone()]), pieces })
                .collect();
            Pair { query, document, words, length }
        });
        let list: Vec<Pair> = list.filter(|pair| !pair.words.is_empty()).collect();
        if list.is_empty() {
            return Err(Error::data(format!("{source}: no pair has a query word to predict")));
        }
        Ok(Self { special, list, source, cut })
    }

    /// Words to predict.
    pub fn words(&self) -> usize {
        self.list.iter().map(|pair| pair.words.len()).sum()
    }
}

/// What is drawn before words are looked for.
struct Drawn {
    /// Queries to count words in.
    queries: Vec<Vec<u32>>,
    /// Tokens of query and document.
    pairs: Vec<(Vec<u32>, Vec<u32>)>,
    source: String,
    /// Pairs whose query was cut.
    cut: usize,
}

fn draw_clicks(seed: u32, data: &Data, tokenizer: &Tokenizer, n: usize) -> Result<Drawn> {
    let dir = need("data.shards", &data.shards)?;
    let shards = Shards::open(dir)?;
    if !shards.tokenizer()?.same_tokens(tokenizer) {
        return Err(Error::config(format!(
            "{}: was prepared with another tokenizer than the models have",
            dir.display()
        )));
    }
    let step = shards.queries().div_ceil(COUNTED).max(1);
    let queries = (0..shards.queries()).step_by(step as usize).map(|q| shards.query(q).to_vec()).collect();
    let order = Permutation::new(shards.clicks(), seed, 0);
    let mut cut = 0;
    let drawn = (0..shards.clicks().min(u32::try_from(n).unwrap_or(u32::MAX))).map(|i| {
        let (query, document) = shards.click(order.at(i));
        cut += usize::from(shards.query(query).len() > data.longest_query());
        fit(shards.query(query).to_vec(), shards.document(document).to_vec(), data)
    });
    let pairs = drawn.collect();
    Ok(Drawn { queries, pairs, source: dir.display().to_string(), cut })
}

fn draw_relevant(seed: u32, inputs: CollectionInputs, tokenizer: &Tokenizer, n: usize) -> Result<Drawn> {
    let collection = Collection::read(inputs, tokenizer, &HashMap::new())?;
    let path = need("data.qrels", &inputs.data.qrels)?;
    let qrels = Qrels::read(path)?;
    let mut pairs = Vec::new();
    for (id, topic) in &collection.topics {
        for document in topic.documents.iter().filter(|d| qrels.label(id, d).is_some_and(|label| label > 0)) {
            let tokens = collection.passage(document, 0, &topic.query).to_vec();
            pairs.push((topic.query.clone(), tokens));
        }
    }
    let order = Permutation::new(pairs.len() as u32, seed, 0);
    let pairs = (0..pairs.len().min(n)).map(|i| pairs[order.at(i as u32) as usize].clone()).collect();
    let queries = collection.topics.values().map(|topic| topic.query.clone()).collect();
    // The collection itself said what it cut.
    Ok(Drawn { queries, pairs, source: path.display().to_string(), cut: 0 })
}

/// A pair that fits into `data.max_tokens` with its special tokens: the document is cut, and a query that is longer
/// than queries may be.
fn fit(mut query: Vec<u32>, mut document: Vec<u32>, data: &Data) -> (Vec<u32>, Vec<u32>) {
    query.truncate(data.longest_query());
    document.truncate(data.max_tokens.saturating_sub(3 + query.len()));
    (query, document)
}

/// The words of a query as ranges of its pieces; a piece that continues nothing starts a word.
fn words(query: &[u32], continues: &[u32]) -> Vec<Range<usize>> {
    let starts = |i: &usize| *i == 0 || continues.get(query[*i] as usize) != Some(&1);
    let firsts: Vec<usize> = (0..query.len()).filter(starts).collect();
    let ends = firsts.iter().skip(1).copied().chain(std::iter::once(query.len()));
    firsts.iter().copied().zip(ends).map(|(first, end)| first..end).collect()
}

/// The most frequent words that together make half of all occurrences.
fn common_words(queries: &[Vec<u32>], continues: &[u32]) -> std::collections::HashSet<Vec<u32>> {
    let mut counts: HashMap<&[u32], u64> = HashMap::new();
    for query in queries {
        for word in words(query, continues) {
            *counts.entry(&query[word]).or_default() += 1;
        }
    }
    let half = counts.values().sum::<u64>().div_ceil(2);
    let mut ordered: Vec<(&[u32], u64)> = counts.into_iter().collect();
    ordered.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    let mut covered = 0;
    let common = ordered.into_iter().take_while(|(_, count)| {
        let more = covered < half;
        covered += count;
        more
    });
    common.map(|(word, _)| word.to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_pieces() {
        let continues = [0, 0, 1, 0, 1];
        assert_eq!(words(&[1, 2, 4, 3, 3], &continues), [0..3, 3..4, 4..5]);
        assert_eq!(words(&[2, 1], &continues), [0..1, 1..2], "a query may start within a word");
        assert!(words(&[], &continues).is_empty());
    }

    #[test]
    fn half_of_all_occurrences_is_common() {
        let continues = [0; 9];
        let queries = [vec![1, 2, 1], vec![1, 3], vec![4]];
        // 1 occurs 3 times of 6: half. 2, 3 and 4 are rare.
        assert_eq!(common_words(&queries, &continues), [vec![1]].into());
    }

    #[test]
    fn the_document_is_cut_before_the_query() {
        let data = Data { max_tokens: 20, ..Data::default() };
        assert_eq!(fit(vec![1; 9], vec![2; 13], &data), (vec![1; 9], vec![2; 8]));
        assert_eq!(fit(vec![1; 20], vec![2; 9], &data), (vec![1; 9], vec![2; 8]));
        let data = Data { max_query_tokens: Some(3), ..data };
        assert_eq!(fit(vec![1; 20], vec![2; 19], &data), (vec![1; 3], vec![2; 14]));
    }
}
