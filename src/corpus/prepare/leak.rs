//! The guard between the log and a test collection: a model must not have trained on the very
//! questions that it is tested on. Queries that equal a named topic, as they stand or in their words, are left
//! out; documents stay (re-ranking knows its collection) unless a qrels file asks for them to go.

use std::path::PathBuf;

use hashbrown::HashSet;

use crate::Result;
use crate::ir::qrels::Qrels;
use crate::ir::segment::normal;
use crate::ir::topics::all_texts;

/// Rows that equal a topic to the letter ...
pub(crate) const EXACT: &str = "clicks whose query is an excluded topic, to the letter";
/// ... or in lower case and without punctuation.
pub(crate) const NORMALISED: &str = "clicks whose query is an excluded topic but for case and punctuation";

/// What must not enter the shards.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    exact: HashSet<String>,
    normal: HashSet<String>,
    documents: HashSet<String>,
}

impl Guard {
    /// Reads topics (every field of them: a description may be a query too) and qrels (documents with a
    /// label above 0), in all forms that `ir` reads.
    ///
    /// # Errors
    /// `Error::Data` where a file cannot be read or a line of it cannot be understood: a guard with
    /// holes is none.
    pub(crate) fn read(topics: &[PathBuf], qrels: &[PathBuf]) -> Result<Self> {
        let mut guard = Self::default();
        for path in topics {
            for text in all_texts(path)? {
                guard.normal.insert(normal(&text));
                guard.exact.insert(text);
            }
        }
        // A topic of punctuation alone would bar every query of punctuation alone.
        guard.normal.remove("");
        for path in qrels {
            let qrels = Qrels::read(path)?;
            let judged = qrels.topics().filter_map(|topic| qrels.get(topic)).flatten();
            guard.documents.extend(judged.filter(|(_, label)| **label > 0).map(|(id, _)| id.to_string()));
        }
        Ok(guard)
    }

    /// Why a query is barred.
    pub(crate) fn query(&self, text: &str) -> Option<&'static str> {
        if self.exact.is_empty() {
            return None;
        }
        if self.exact.contains(text) {
            return Some(EXACT);
        }
        self.normal.contains(&normal(text)).then_some(NORMALISED)
    }

    pub(crate) fn bars_document(&self, id: &str) -> bool {
        self.documents.contains(id)
    }
}
