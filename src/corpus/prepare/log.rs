//! The click log in memory: ids and pairs, never text. Slots are numbers in the order of first sight; indices
//! are places in the shards, known only when a text is written. The text of each query is put aside once, in a
//! file that is read again when it is known which queries keep a click.

use std::io::Write;

use rayon::prelude::*;

use crate::corpus::ids::{Ids, LAST};
use crate::corpus::read::rows::Role;
use crate::ir::segment::normal;
use crate::{Error, Result};

/// Index of a slot that is not in the shards: never seen in the collection (or not yet written) ...
pub(crate) const MISSING: u32 = u32::MAX;
/// ... or without a single token ...
pub(crate) const EMPTY: u32 = u32::MAX - 1;
/// ... or kept out by the leak guard ...
pub(crate) const EXCLUDED: u32 = u32::MAX - 2;
/// ... or by a filter.
pub(crate) const FILTERED: u32 = u32::MAX - 3;

/// Queries that filters merge.
const MERGED: &str = "queries whose words came before (their clicks are kept)";
/// Rows of one query id with another text than its first row has.
const OTHER_TEXT: &str =
    "clicks whose query had another text before (the click is kept, with the first text)";

/// Ids and pairs of the log, and where each went.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) queries: Ids,
    /// Documents that are clicked.
    pub(crate) documents: Ids,
    /// (query slot, document slot) of each usable row.
    pub(crate) pairs: Vec<(u32, u32)>,
    /// How often each pair was clicked; 1 where it ends early.
    times: Vec<u32>,
    /// Document slot -> index in the shards, or why there is none.
    pub(crate) document_index: Vec<u32>,
    /// Query slot -> index in the shards, or why there is none.
    pub(crate) query_index: Vec<u32>,
    /// Why a query of a file of queries is left out, by slot; none where the log holds the text itself.
    barred: Vec<Option<&'static str>>,
    /// CRC-32 of each query's text, by slot: a log that gives one id two texts is told so.
    texts: Vec<u32>,
    /// Slot whose clicks are these, where queries with the same words are one.
    same_as: Vec<u32>,
    /// Distinct words of queries, and the first slot with each.
    words: Ids,
    first_with: Vec<u32>,
}

/// What `Log::join` decided.
pub(crate) struct Joined {
    /// Whether each pair of the log enters.
    pub(crate) kept: Vec<bool>,
    /// How often each of them was clicked, rows with the same pair together.
    pub(crate) times: Vec<u32>,
    /// Pairs whose document is in the collection, whatever became of it.
    pub(crate) found: u64,
    /// Rows that do not enter, by reason.
    pub(crate) dropped: [(&'static str, u64); 5],
}

impl Log {
    /// Keeps the pairs whose document is in the shards, each once, and marks their queries as due
    /// (`EMPTY` until they are written).
    pub(crate) fn join(&mut self) -> Joined {
        let index = |&(_, slot): &(u32, u32)| self.document_index[slot as usize];
        let mut kept: Vec<bool> = self.pairs.iter().map(|pair| index(pair) <= LAST).collect();
        let count = |why: u32| self.pairs.iter().filter(|pair| index(pair) == why).count() as u64;
        let mut order: Vec<u32> = (0..self.pairs.len() as u32).collect();
        order.par_sort_unstable_by_key(|&i| (self.pairs[i as usize], i));
        let mut times = std::mem::take(&mut self.times);
        times.resize(self.pairs.len(), 1);
        let (mut repeated, mut first) = (0, 0);
        for (place, &i) in order.iter().enumerate() {
            let i = i as usize;
            if place == 0 || self.pairs[first] != self.pairs[i] {
                first = i;
            } else if kept[i] {
                kept[i] = false;
                times[first] = times[first].saturating_add(times[i]);
                repeated += 1;
            }
        }
        let missing = count(MISSING);
        let dropped = [
            ("clicks whose document is not in the collection", missing),
            ("clicks whose document has no text", count(EMPTY)),
            ("clicks whose document is excluded", count(EXCLUDED)),
            ("clicks whose document is filtered out", count(FILTERED)),
            ("clicks that came before", repeated),
        ];
        for (&(query, _), kept) in self.pairs.iter().zip(&kept) {
            if *kept {
                self.query_index[query as usize] = EMPTY;
            }
        }
        Joined { kept, times, found: self.pairs.len() as u64 - missing, dropped }
    }

    /// An id that the log names where the collection holds none of those it names.
    pub(crate) fn unjoined(&self) -> Option<String> {
        if self.document_index.iter().any(|&index| index != MISSING) || self.pairs.is_empty() {
            return None;
        }
        Some(String::from_utf8_lossy(self.documents.bytes(0)).into_owned())
    }

    /// Makes the indices, all missing, and lets go of what only the reading needed.
    pub(crate) fn close(&mut self) {
        self.document_index = vec![MISSING; self.documents.len()];
        self.query_index = vec![MISSING; self.queries.len()];
        (self.words, self.first_with, self.barred, self.texts) = Default::default();
    }

    fn add(&mut self, query: u32, document_id: &str, times: u32) -> Result<()> {
        let (document, _) = self.documents.insert(document_id, "documents")?;
        let query = self.same_as.get(query as usize).copied().unwrap_or(query);
        if times != 1 {
            self.times.resize(self.pairs.len(), 1);
            self.times.push(times);
        }
        self.pairs.push((query, document));
        match u32::try_from(self.pairs.len()) {
            Ok(_) => Ok(()),
            Err(_) => {
                Err(Error::data("more than 2^32 - 1 clicks: prepare them in several shard directories"))
            }
        }
    }

    /// The slot of a query id, and what must be said of it; a new text goes to `aside`.
    fn query(
        &mut self,
        id: &str,
        text: &str,
        merge: bool,
        aside: &mut impl Write,
    ) -> Result<(u32, Option<&'static str>)> {
        let (slot, new) = self.queries.insert(id, "queries")?;
        let checksum = crc32fast::hash(text.as_bytes());
        if !new {
            let other = self.texts.get(slot as usize).is_some_and(|&first| first != checksum);
            return Ok((slot, other.then_some(OTHER_TEXT)));
        }
        self.texts.push(checksum);
        if merge {
            let words = normal(text);
            // Queries of punctuation alone have no words to be the same.
            let words = if words.is_empty() { text } else { words.as_str() };
            let (place, fresh) = self.words.insert(words, "queries")?;
            if fresh {
                self.first_with.push(slot);
            }
            let first = self.first_with[place as usize];
            self.same_as.push(first);
            if first != slot {
                return Ok((slot, Some(MERGED)));
            }
        }
        let line = text.split(['\t', '\n', '\r']).collect::<Vec<_>>().join(" ");
        let written = writeln!(aside, "{id}\t{line}");
        written.map_err(|cause| Error::data(format!("the texts of queries cannot be put aside: {cause}")))?;
        Ok((slot, None))
    }
}

/// Where a row's columns are in the text of its block.
pub(crate) struct Span {
    pub(crate) query_id: std::ops::Range<usize>,
    pub(crate) query: std::ops::Range<usize>,
    pub(crate) document_id: std::ops::Range<usize>,
    /// How often it was clicked.
    pub(crate) times: u32,
    /// Why it is left out.
    pub(crate) barred: Option<&'static str>,
}

impl Log {
    /// A row of clicks or queries; the result says why something was left out or merged.
    pub(crate) fn add_row(
        &mut self,
        role: Role,
        text: &str,
        row: &Span,
        merge: bool,
        texts: &mut impl Write,
    ) -> Result<Option<&'static str>> {
        let (id, query) = (&text[row.query_id.clone()], &text[row.query.clone()]);
        if role == Role::Clicks {
            if row.barred.is_some() {
                return Ok(row.barred);
            }
            let (slot, said) = self.query(id, query, merge, texts)?;
            self.add(slot, &text[row.document_id.clone()], row.times)?;
            return Ok(said);
        }
        if self.queries.get(id).is_some() {
            return Ok(Some("queries whose id came before"));
        }
        let said = match row.barred {
            // The id is known, so that its clicks are dropped for this reason.
            Some(_) => {
                let (slot, _) = self.queries.insert(id, "queries")?;
                if merge {
                    self.same_as.push(slot);
                }
                self.texts.push(0);
                None
            }
            None => self.query(id, query, merge, texts)?.1,
        };
        // Slots of other sources, whose logs hold the text itself, come before.
        self.barred.resize(self.queries.len() - 1, None);
        self.barred.push(row.barred);
        Ok(said)
    }

    /// A row of qrels.
    pub(crate) fn add_judged(&mut self, text: &str, row: &Span) -> Result<Option<&'static str>> {
        if row.barred.is_some() {
            return Ok(row.barred);
        }
        let Some(query) = self.queries.get(&text[row.query_id.clone()]) else {
            return Ok(Some("clicks whose query is not among the queries"));
        };
        if let Some(Some(reason)) = self.barred.get(query as usize) {
            return Ok(Some(*reason));
        }
        self.add(query, &text[row.document_id.clone()], row.times)?;
        Ok(None)
    }
}
