//! `[prepare]`: how a log becomes shards.

use std::path::PathBuf;

use super::data::MOST_TOKENS;
use super::keys::{keys, section};
use super::source::one_or_many;

/// Tokens after which a part is finished: 64 MiB at two bytes a token, so that a kill costs seconds of work
/// and a hundred parts hold ORCAS.
pub const PART_TOKENS: u64 = 1 << 25;

section! {
    /// How `prepare` makes shards of the sources. The command's flags override these keys.
    pub struct Prepare {
        /// Tokenizer to use: `tokenizer.json`, `vocab.txt` or a folder with either. Without it, a vocabulary is
        /// trained.
        pub tokenizer: Option<PathBuf> = None;
        /// Pieces of a trained vocabulary.
        pub vocab: usize = 30_522, within 16..=1 << 24;
        /// Tokens that are kept of a document. Without it, `data.max_tokens`. Queries are never cut.
        pub max_tokens: Option<usize> = None, within 1..=MOST_TOKENS;
        /// Keep only documents that were clicked.
        pub clicked_only: bool = false;
        /// Topic files whose queries are left out of the log.
        #[serde(deserialize_with = "one_or_many")]
        pub exclude_topics: Vec<PathBuf> = Vec::new();
        /// Qrels files whose relevant documents are left out of the log.
        #[serde(deserialize_with = "one_or_many")]
        pub exclude_qrels: Vec<PathBuf> = Vec::new();
        /// Stop at the first damaged line.
        pub strict: bool = false;
        /// Repair UTF-8 that was decoded with the wrong character set.
        pub repair: bool = false;
        /// Tokens after which a part is finished: the work that is lost if the process is killed.
        pub part_tokens: u64 = PART_TOKENS, within 1..;
        /// What else is left out.
        pub filter: Filter = Filter::default();
    }
}

section! {
    /// What is left out besides damaged rows. Everything that is left out is counted by its reason.
    pub struct Filter {
        /// Languages to keep, as ISO 639-3 codes such as `"eng"`. A text whose language is not clear is kept, which
        /// is nearly always so for short queries. An empty list keeps all languages.
        pub languages: Vec<String> = Vec::new();
        /// Fewest words of a query. In scripts without spaces, each letter counts as a word.
        pub min_query_words: usize = 0;
        /// Most words of a query. 0 sets no limit.
        pub max_query_words: usize = 0;
        /// Fewest words of a document.
        pub min_document_words: usize = 0;
        /// Leave out a document whose tokens, after cutting, are those of an earlier one.
        pub duplicate_documents: bool = false;
        /// Give the clicks of a query to an earlier query with the same words in lower case.
        pub duplicate_queries: bool = false;
    }
}
