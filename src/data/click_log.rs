//! A click log as tokens, from which samples are made. It is a trait, so that one side of a divided log, or a
//! test's log, serves as well as the shards.

use crate::corpus::Shards;
use crate::text::Special;

/// A tokenised click log, read at random. Indices are dense; text is token ids without special
/// tokens.
pub trait ClickLog: Send + Sync {
    fn queries(&self) -> u32;
    fn documents(&self) -> u32;
    fn clicks(&self) -> u32;
    /// (query, document) of a click.
    fn click(&self, click: u32) -> (u32, u32);
    /// How often the click happened.
    fn times(&self, _click: u32) -> u32 {
        1
    }
    /// Documents that the query clicked, ascending and distinct.
    fn clicked(&self, query: u32) -> &[u32];
    /// Whether the query may be part of a drawn pair.
    fn admits(&self, _query: u32) -> bool {
        true
    }
    /// Tokens of a query.
    fn query_len(&self, query: u32) -> usize;
    /// Tokens of a document.
    fn document_len(&self, document: u32) -> usize;
    /// Appends the first `at_most` tokens of a query.
    fn extend_query(&self, query: u32, out: &mut Vec<u32>, at_most: usize);
    /// Appends the first `at_most` tokens of a document.
    fn extend_document(&self, document: u32, out: &mut Vec<u32>, at_most: usize);
    /// The special tokens of the log's vocabulary.
    fn special(&self) -> Special;
}

impl ClickLog for Shards {
    fn queries(&self) -> u32 {
        self.queries()
    }

    fn documents(&self) -> u32 {
        self.documents()
    }

    fn clicks(&self) -> u32 {
        self.clicks()
    }

    fn click(&self, click: u32) -> (u32, u32) {
        self.click(click)
    }

    fn times(&self, click: u32) -> u32 {
        self.click_times(click)
    }

    fn clicked(&self, query: u32) -> &[u32] {
        self.clicked(query)
    }

    fn query_len(&self, query: u32) -> usize {
        self.query(query).len()
    }

    fn document_len(&self, document: u32) -> usize {
        self.document(document).len()
    }

    fn extend_query(&self, query: u32, out: &mut Vec<u32>, at_most: usize) {
        self.query(query).extend(out, at_most);
    }

    fn extend_document(&self, document: u32, out: &mut Vec<u32>, at_most: usize) {
        self.document(document).extend(out, at_most);
    }

    fn special(&self) -> Special {
        self.manifest().special
    }
}
