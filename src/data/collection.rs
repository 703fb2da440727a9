//! What fine-tuning and re-ranking read besides a model: topics, judgements, the first stage's
//! candidates and their documents, tokenised once.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use super::passages::{Cut, passages};
use crate::config::{Data, Fine, Source, need};
use crate::corpus::read::documents::{ReadOptions, read_documents};
use crate::ir::qrels::Qrels;
use crate::ir::run::Run;
use crate::ir::topics::{Topic, read_topics_fields};
use crate::text::{Special, Tokenizer};
use crate::{Error, Result};

/// Documents that are tokenised at once, to bound the text in memory.
const BATCH: usize = 4096;

/// A topic's candidates in the order of the first stage.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// Query tokens.
    pub query: Vec<u32>,
    /// External ids, best first.
    pub documents: Vec<String>,
}

/// Topics with candidates, and the tokens of every document that is named.
pub struct Collection {
    pub special: Special,
    pub max_tokens: usize,
    pub topics: BTreeMap<String, Candidates>,
    /// Topics of the file that the run lacks.
    pub not_in_run: Vec<String>,
    /// Topics of the run that the file lacks.
    pub not_in_topics: Vec<String>,
    /// Tokens of each passage, at most `max_tokens`; at least one passage a document.
    documents: HashMap<String, Vec<Vec<u32>>>,
}

/// Where a collection is read from, and how.
#[derive(Clone, Copy, Debug)]
pub struct CollectionInputs<'a> {
    /// Topics, run, fields and the longest sequence.
    pub data: &'a Data,
    /// Files of documents, as `Config::documents` gives them.
    pub sources: &'a [Source],
    /// How many candidates a topic has, and how documents are cut into passages.
    pub fine: &'a Fine,
    /// Whether to warn of rows that are left out: every rank reads the same.
    pub warns: bool,
}

/// How many passages did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncated {
    /// Passages that were cut beside their query.
    pub cut: usize,
    /// All passages of all candidates.
    pub all: usize,
}

impl Collection {
    /// Reads topics, run and documents; the first `fine.depth` documents of the run are a topic's candidates.
    /// Topics that the run lacks are left out. `more` names further documents to read, by topic.
    ///
    /// # Errors
    /// `Error::Data` when run and topics share nothing or a candidate is in no document file; `Error::Config` when
    /// `data.max_tokens` leaves no room for a query.
    pub fn read(
        inputs: CollectionInputs,
        tokenizer: &Tokenizer,
        more: &HashMap<String, Vec<String>>,
    ) -> Result<Self> {
        let CollectionInputs { data, fine, .. } = inputs;
        let topics_path = need("data.topics", &data.topics)?;
        let run_path = need("data.run", &data.run)?;
        let topics = read_topics_fields(topics_path, data.topic_fields())?;
        let run = Run::read(run_path)?;
        let mut collection = Self {
            special: tokenizer.special(),
            max_tokens: data.max_tokens,
            topics: BTreeMap::new(),
            not_in_run: Vec::new(),
            not_in_topics: Vec::new(),
            documents: HashMap::new(),
        };
        let named: HashSet<&str> = topics.iter().map(|topic| topic.id.as_str()).collect();
        collection.not_in_topics = run.topics().filter(|id| !named.contains(id)).map(str::to_owned).collect();
        let (topics, lacking): (Vec<Topic>, Vec<Topic>) =
            topics.into_iter().partition(|topic| run.get(&topic.id).is_some());
        collection.not_in_run = lacking.into_iter().map(|topic| topic.id).collect();
        if topics.is_empty() {
            return Err(Error::data(format!(
                "{} and {} share no topic: check that they belong together",
                topics_path.display(),
                run_path.display()
            )));
        }
        let texts: Vec<&str> = topics.iter().map(|t| t.text.as_str()).collect();
        let queries = tokenizer.encode_batch(&texts, data.max_tokens)?;
        let (most, mut cut) = (longest_query(data)?, Vec::new());
        for (topic, mut query) in topics.into_iter().zip(queries) {
            if query.len() > most {
                query.truncate(most);
                cut.push(topic.id.clone());
            }
            let hits = run.get(&topic.id).unwrap_or_default();
            let documents = hits.iter().take(fine.depth).map(|hit| hit.doc.to_string()).collect();
            collection.topics.insert(topic.id, Candidates { query, documents });
        }
        if inputs.warns {
            warn_of_cut(&cut, collection.topics.len(), most);
        }
        collection.read_documents(inputs, tokenizer, more)?;
        Ok(collection)
    }

    fn read_documents(
        &mut self,
        inputs: CollectionInputs,
        tokenizer: &Tokenizer,
        more: &HashMap<String, Vec<String>>,
    ) -> Result<()> {
        let CollectionInputs { data, sources, fine, warns } = inputs;
        let listed = self.topics.values().flat_map(|c| c.documents.iter());
        let wanted: HashSet<String> = listed.chain(more.values().flatten()).cloned().collect();
        let cut = Cut::of(fine);
        let mut batch: Vec<(String, String)> = Vec::with_capacity(BATCH);
        let tokens = &mut self.documents;
        let max_tokens = self.max_tokens;
        let mut flush = |batch: &mut Vec<(String, String)>| -> Result<()> {
            encode(tokenizer, batch, cut, max_tokens, tokens)?;
            batch.clear();
            Ok(())
        };
        let fields = &data.fields;
        let wants = |id: &str| wanted.contains(id);
        let mut seen = HashSet::with_capacity(wanted.len());
        let counts = read_documents(sources, fields, &ReadOptions::default(), wants, |document| {
            if !seen.insert(document.id.clone()) {
                return Err(Error::data(format!(
                    "document '{}' occurs twice in {}: keep one",
                    document.id,
                    place(sources)
                )));
            }
            batch.push((document.id, document.text));
            if batch.len() < BATCH { Ok(()) } else { flush(&mut batch) }
        })?;
        if warns {
            counts.warn();
        }
        flush(&mut batch)?;
        match wanted.iter().filter(|id| !self.documents.contains_key(*id)).min() {
            None => Ok(()),
            Some(id) => Err(Error::data(format!(
                "document {id} of the run (and {} others) is not in {}: use the documents that the run was \
                 retrieved from",
                wanted.len() - self.documents.len() - 1,
                place(sources)
            ))),
        }
    }

    /// CRC-32 of all that ranking reads here: queries, candidates and the tokens of their passages.
    pub fn fingerprint(&self) -> u32 {
        let mut sum = crc32fast::Hasher::new();
        let mut add = |bytes: &[u8]| {
            sum.update(&(bytes.len() as u64).to_le_bytes());
            sum.update(bytes);
        };
        for (id, topic) in &self.topics {
            add(id.as_bytes());
            add(bytemuck::cast_slice(&topic.query));
            topic.documents.iter().for_each(|document| add(document.as_bytes()));
        }
        for (id, passages) in self.documents.iter().collect::<BTreeMap<_, _>>() {
            add(id.as_bytes());
            passages.iter().for_each(|tokens| add(bytemuck::cast_slice(tokens)));
        }
        sum.finalize()
    }

    /// A line for each reason why topics of the run or of the topics file are not ranked.
    pub fn unmatched(&self) -> String {
        left_out(&[("not in the run", &self.not_in_run), ("not in the topics file", &self.not_in_topics)])
    }

    /// Passages of a candidate; at least one.
    pub fn passages(&self, id: &str) -> usize {
        self.documents.get(id).map_or(1, Vec::len)
    }

    /// Passages of the document that has the most.
    pub fn most_passages(&self) -> usize {
        self.documents.values().map(Vec::len).max().unwrap_or(1).max(1)
    }

    /// Tokens of a candidate's passage, cut so that it fits beside `query`. For an empty document it is
    /// empty, and the pair is the query alone between its separators.
    pub fn passage(&self, id: &str, passage: usize, query: &[u32]) -> &[u32] {
        let tokens = self.documents.get(id).and_then(|d| d.get(passage)).map_or(&[][..], Vec::as_slice);
        let room = self.max_tokens.saturating_sub(3 + query.len());
        &tokens[..tokens.len().min(room)]
    }

    /// Passages that do not fit whole beside their query.
    pub fn truncated(&self) -> Truncated {
        let mut counts = Truncated::default();
        for (id, query) in self.topics.values().flat_map(|c| c.documents.iter().map(move |d| (d, &c.query))) {
            let room = self.max_tokens.saturating_sub(3 + query.len());
            let passages = self.documents.get(id).map_or(&[][..], Vec::as_slice);
            counts.all += passages.len();
            counts.cut += passages.iter().filter(|tokens| tokens.len() > room).count();
        }
        counts
    }
}

/// Tokens of a query that is never cut.
fn longest_query(data: &Data) -> Result<usize> {
    match data.longest_query() {
        0 => Err(Error::config(format!(
            "data.max_tokens = {} leaves no room for a query beside a document: raise it",
            data.max_tokens
        ))),
        most => Ok(most),
    }
}

fn warn_of_cut(cut: &[String], all: usize, most: usize) {
    if let Some(first) = cut.first() {
        tracing::warn!(
            "{} of {all} queries (topic {first} first) are cut to {most} tokens, which is what \
             data.max_query_tokens or data.max_tokens leaves them",
            cut.len()
        );
    }
}

/// Where documents are, for messages.
fn place(sources: &[Source]) -> String {
    let first = sources.first().and_then(|source| source.path.first());
    first.map_or_else(String::new, |path| path.display().to_string())
}

/// A line for each reason that leaves topics out, with their names.
fn left_out(reasons: &[(&str, &Vec<String>)]) -> String {
    let line = |(why, topics): &(&str, &Vec<String>)| {
        format!("{} topics left out, {why}: {}\n", topics.len(), topics.join(" "))
    };
    reasons.iter().filter(|(_, topics)| !topics.is_empty()).map(line).collect()
}

/// Tokenises the passages of some documents.
fn encode(
    tokenizer: &Tokenizer,
    batch: &[(String, String)],
    cut: Cut,
    max_tokens: usize,
    into: &mut HashMap<String, Vec<Vec<u32>>>,
) -> Result<()> {
    let parts: Vec<Vec<&str>> = batch.iter().map(|(_, text)| passages(text, cut)).collect();
    let mut encoded = tokenizer.encode_batch(&parts.concat(), max_tokens)?.into_iter();
    for ((id, _), parts) in batch.iter().zip(&parts) {
        into.insert(id.clone(), encoded.by_ref().take(parts.len()).collect());
    }
    Ok(())
}

/// Which topics can teach and be ranked, and why the others cannot: no re-ranking changes their measures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TopicUse {
    /// At least one relevant and one other candidate.
    pub usable: Vec<String>,
    pub without_relevant: Vec<String>,
    /// Every candidate is relevant.
    pub without_others: Vec<String>,
    pub not_in_run: Vec<String>,
    pub not_in_topics: Vec<String>,
}

impl TopicUse {
    pub fn of(collection: &Collection, qrels: &Qrels) -> Self {
        let mut all = Self {
            not_in_run: collection.not_in_run.clone(),
            not_in_topics: collection.not_in_topics.clone(),
            ..Self::default()
        };
        for (topic, candidates) in &collection.topics {
            let relevant = candidates.documents.iter().filter(|d| relevant(qrels, topic, d)).count();
            let list = match relevant {
                0 => &mut all.without_relevant,
                n if n == candidates.documents.len() => &mut all.without_others,
                _ => &mut all.usable,
            };
            list.push(topic.clone());
        }
        all
    }

    /// Every topic of the topics file.
    pub fn in_topics_file(&self) -> impl Iterator<Item = &String> {
        [&self.usable, &self.without_relevant, &self.without_others, &self.not_in_run].into_iter().flatten()
    }

    /// A line for each reason that leaves topics out, with their names.
    pub fn lines(&self, depth: usize) -> String {
        let relevant = format!("no relevant document among the first {depth}");
        let others = format!("nothing but relevant documents among the first {depth}");
        left_out(&[
            (&relevant, &self.without_relevant),
            (&others, &self.without_others),
            ("not in the run", &self.not_in_run),
            ("not in the topics file", &self.not_in_topics),
        ])
    }
}

/// Whether a document is judged relevant.
pub fn relevant(qrels: &Qrels, topic: &str, document: &str) -> bool {
    qrels.label(topic, document).is_some_and(|label| label > 0)
}
