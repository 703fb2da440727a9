//! What fine-tuning and re-ranking read besides a model: topics, judgements, the first stage's
//! candidates and their documents, tokenised once.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::config::Config;
use crate::corpus::documents::{ReadOptions, read_documents};
use crate::corpus::tokenise::Tokenizer;
use crate::data::batch::Special;
use crate::ir::qrels::Qrels;
use crate::ir::run::Run;
use crate::ir::topics::read_topics;
use crate::{Error, Result};

/// Room that even the longest query leaves for the document, in tokens.
const DOCUMENT_LEAST: usize = 8;

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

/// Topics with candidates, and the tokens of everything that is named.
pub struct Collection {
    pub special: Special,
    pub max_tokens: usize,
    pub topics: BTreeMap<String, Candidates>,
    documents: HashMap<String, Vec<u32>>,
}

impl Collection {
    /// Reads topics, run and documents as `config.data` names them; the first `depth` documents of
    /// the run are a topic's candidates. Topics that the run lacks are left out.
    ///
    /// # Errors
    /// `Error::Data` when run and topics share nothing, or a candidate is in no document file.
    pub fn read(config: &Config, tokenizer: &Tokenizer, depth: usize) -> Result<Self> {
        let topics_path = Config::need("data.topics", &config.data.topics)?;
        let run_path = Config::need("data.run", &config.data.run)?;
        let topics = read_topics(topics_path)?;
        let run = Run::read(run_path)?;
        let texts: Vec<&str> = topics.iter().map(|t| t.text.as_str()).collect();
        let at_most = config.data.max_tokens.saturating_sub(3 + DOCUMENT_LEAST).max(1);
        let queries = tokenizer.encode_batch(&texts, at_most)?;
        let mut collection = Self {
            special: tokenizer.special(),
            max_tokens: config.data.max_tokens,
            topics: BTreeMap::new(),
            documents: HashMap::new(),
        };
        for (topic, query) in topics.iter().zip(queries) {
            let Some(hits) = run.get(&topic.id) else { continue };
            let documents = hits.iter().take(depth).map(|hit| hit.doc.clone()).collect();
            collection.topics.insert(topic.id.clone(), Candidates { query, documents });
        }
        if collection.topics.is_empty() {
            return Err(Error::data(format!(
                "{} and {} share no topic: check that they belong together",
                topics_path.display(),
                run_path.display()
            )));
        }
        collection.read_documents(config, tokenizer)?;
        Ok(collection)
    }

    fn read_documents(&mut self, config: &Config, tokenizer: &Tokenizer) -> Result<()> {
        let sources = config.documents()?;
        let wanted: HashSet<String> =
            self.topics.values().flat_map(|c| c.documents.iter().cloned()).collect();
        let mut batch: Vec<(String, String)> = Vec::with_capacity(BATCH);
        let tokens = &mut self.documents;
        let max_tokens = self.max_tokens;
        let mut flush = |batch: &mut Vec<(String, String)>| -> Result<()> {
            let texts: Vec<&str> = batch.iter().map(|(_, text)| text.as_str()).collect();
            let encoded = tokenizer.encode_batch(&texts, max_tokens)?;
            tokens.extend(batch.drain(..).map(|(id, _)| id).zip(encoded));
            Ok(())
        };
        let fields = &config.data.fields;
        let wants = |id: &str| wanted.contains(id);
        read_documents(&sources, fields, &ReadOptions::default(), wants, |document| {
            batch.push((document.id, document.text));
            if batch.len() < BATCH { Ok(()) } else { flush(&mut batch) }
        })?;
        flush(&mut batch)?;
        match wanted.iter().filter(|id| !self.documents.contains_key(*id)).min() {
            None => Ok(()),
            Some(id) => Err(Error::data(format!(
                "document {id} of the run (and {} others) is not in {}: use the documents that the run was \
                 retrieved from",
                wanted.len() - self.documents.len() - 1,
                sources.first().and_then(|source| source.path.first()).map_or("".into(), |path| path.display().to_string())
            ))),
        }
    }

    /// Tokens of a candidate, cut so that it fits beside `query`; never empty input for a document
    /// that is itself empty: then the pair is the query alone between its separators.
    pub fn document(&self, id: &str, query: &[u32]) -> &[u32] {
        let tokens = self.documents.get(id).map_or(&[][..], Vec::as_slice);
        let room = self.max_tokens.saturating_sub(3 + query.len());
        &tokens[..tokens.len().min(room)]
    }

    /// Candidates whose document does not fit whole, and all candidates.
    pub fn truncated(&self) -> (usize, usize) {
        let pairs = self.topics.values().flat_map(|c| c.documents.iter().map(move |d| (d, &c.query)));
        pairs.fold((0, 0), |(cut, all), (id, query)| {
            let whole = self.documents.get(id).map_or(0, Vec::len);
            (cut + usize::from(self.document(id, query).len() < whole), all + 1)
        })
    }
}

/// Topics that can teach and be ranked: at least one relevant and one other candidate. The rest is
/// returned by name: no re-ranking changes what they count.
pub fn usable_topics(collection: &Collection, qrels: &Qrels) -> (Vec<String>, Vec<String>) {
    let (usable, rest): (Vec<_>, Vec<_>) = collection.topics.iter().partition(|(topic, candidates)| {
        let relevant = candidates.documents.iter().filter(|d| relevant(qrels, topic, d)).count();
        relevant > 0 && relevant < candidates.documents.len()
    });
    let names = |topics: Vec<(&String, &Candidates)>| topics.into_iter().map(|(t, _)| t.clone()).collect();
    (names(usable), names(rest))
}

/// Whether a document is judged relevant.
pub fn relevant(qrels: &Qrels, topic: &str, document: &str) -> bool {
    qrels.label(topic, document).is_some_and(|label| label > 0)
}
