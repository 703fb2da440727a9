//! `[data]`: what is read.

use std::path::PathBuf;

use super::keys::{Described, Kind, Word, choice, keys, section};
use crate::ir::topics::TopicField;

/// Most tokens that a text or a pack may have: positions are 32-bit numbers, and their products must stay so.
pub(super) const MOST_TOKENS: u32 = 1 << 24;

section! {
    /// What is read.
    pub struct Data {
        /// Shard directory that `prepare` writes. `pretrain` and `coarse` train on it.
        pub shards: Option<PathBuf> = None;
        /// About how many pairs of the log `coarse` keeps out of training and measures instead. 0 keeps out none.
        /// A hash of the query chooses them, whatever the seed, so all clicks of a query are on one side.
        pub validation_pairs: u32 = 0;
        /// Longest sequence in tokens, special tokens included. At most `train.pack_tokens`.
        pub max_tokens: usize = 512, within 8..=MOST_TOKENS;
        /// Most tokens of a query. Longer ones are cut in training and ranking, and their number is reported. Without
        /// it, a query is cut only where it would leave a document fewer than 8 tokens.
        pub max_query_tokens: Option<usize> = None, within 1..=MOST_TOKENS;
        /// Which side of a pair is cut when it is longer than `max_tokens`.
        pub truncate: Truncate = Truncate::Document;
        /// Documents for fine-tuning and re-ranking, in any format that `prepare` reads. Without it, those of the
        /// `[[source]]` tables are read.
        pub documents: Option<PathBuf> = None;
        /// Fields of a document that make its text, in this order.
        pub fields: Vec<Field> = vec![Field::Title, Field::Body];
        /// Topics of the test collection: TSV, TREC SGML or XML, JSON lines.
        pub topics: Option<PathBuf> = None;
        /// Parts of a topic that make its query, in this order. Without it, the title.
        pub topic_fields: Option<Vec<TopicField>> = None;
        /// Relevance judgements of the test collection.
        pub qrels: Option<PathBuf> = None;
        /// First-stage TREC run whose documents are re-ranked.
        pub run: Option<PathBuf> = None;
        /// Fold file: Capreolus' JSON, Pyserini's lists or CEDR's folder. Without it, folds are drawn from the seed
        /// and kept in the run directory.
        pub folds: Option<PathBuf> = None;
    }
}

/// Tokens of the document that fit beside even the longest query.
pub const DOCUMENT_LEAST: usize = 8;

impl Data {
    /// Tokens of a query that is never cut beside a document.
    pub fn longest_query(&self) -> usize {
        let room = self.max_tokens.saturating_sub(3 + DOCUMENT_LEAST);
        self.max_query_tokens.map_or(room, |most| most.min(room))
    }

    /// Which parts of a topic make its query.
    pub fn topic_fields(&self) -> &[TopicField] {
        self.topic_fields.as_deref().unwrap_or(&[TopicField::Title])
    }
}

// `ir` stands alone, so what its choices are called is said here.
impl Described for TopicField {
    fn kind() -> Kind {
        Kind::Choice(&[
            Word { word: "title", text: "Its short form." },
            Word { word: "description", text: "Its sentence." },
            Word { word: "narrative", text: "Its paragraph on what is relevant." },
        ])
    }
}

choice! {
    /// Which side gives way when a pair is longer than `max_tokens`.
    pub enum Truncate {
        /// The document is cut, from its end. A query that would leave it fewer than 8 tokens is cut too, and the
        /// number of such queries is reported.
        Document = "document",
        /// The longer side is cut token by token, as `longest_first` does in Hugging Face tokenizers.
        LongestFirst = "longest-first",
    }
}

choice! {
    /// A part of a document that the model can read.
    pub enum Field {
        /// Its address.
        Url = "url",
        /// Its title.
        Title = "title",
        /// Its text.
        Body = "body",
    }
}
