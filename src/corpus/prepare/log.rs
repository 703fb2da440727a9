//! The click log in memory: ids and pairs, never text. Slots are numbers in the order of first sight; indices
//! are places in the shards, known only when a text is written. The text of each query is put aside once, in a
//! file that is read again when it is known which queries keep a click.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::leak;
use super::stages::Preparation;
use crate::corpus::ids::{Ids, LAST};
use crate::corpus::ordered;
use crate::corpus::progress::Progress;
use crate::corpus::read::repair::repaired;
use crate::corpus::read::rows::{self, Role};
use crate::corpus::read::source::{Files, Part, Piece, Position, Tally};
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
            let words = leak::normal(text);
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
struct Span {
    query_id: std::ops::Range<usize>,
    query: std::ops::Range<usize>,
    document_id: std::ops::Range<usize>,
    /// How often it was clicked.
    times: u32,
    /// Why it is left out.
    barred: Option<&'static str>,
}

/// The rows of one block, parsed and judged.
struct LogBlock {
    part: Part,
    text: String,
    rows: Vec<Span>,
}

impl Preparation<'_> {
    /// Reads the whole log. The texts of its queries go to `aside`.
    pub(crate) fn read_log(&mut self, aside: &Path) -> Result<()> {
        let failed = |cause| Error::io("written", aside, cause);
        let mut texts = BufWriter::with_capacity(1 << 18, File::create(aside).map_err(failed)?);
        // A header, so that no query can be taken for one.
        texts.write_all(b"id\ttext\n").map_err(failed)?;
        let mut log = Log::default();
        let roles = [Role::Clicks, Role::Queries, Role::Qrels];
        for role in roles.into_iter().filter(|&role| self.options.sources.iter().any(|s| s.role == role)) {
            self.read_role(role, &mut log, &mut texts)?;
        }
        texts.flush().map_err(failed)?;
        if log.pairs.is_empty() {
            self.log = log;
            return Err(self.no_pair());
        }
        log.document_index = vec![MISSING; log.documents.len()];
        log.query_index = vec![MISSING; log.queries.len()];
        (log.words, log.first_with, log.barred, log.texts) = Default::default();
        self.log = log;
        Ok(())
    }

    fn read_role(&mut self, role: Role, log: &mut Log, texts: &mut impl Write) -> Result<()> {
        let files = Files::open(&self.options.sources, role)?;
        self.note_passed_over(&files);
        let what = if role == Role::Queries { "reading queries" } else { "reading clicks" };
        let mut progress = Progress::new(what, files.bytes);
        let (done, mut tally) = (progress.done.clone(), Tally::default());
        let mut reasons: Vec<(&'static str, u64)> = Vec::new();
        let mut count = |reason: &'static str| match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, rows)) => *rows += 1,
            None => reasons.push((reason, 1)),
        };
        let (options, this) = (self.options, &*self);
        ordered::run(
            |pass| files.read(Position::default(), &done, pass),
            |piece| Ok(this.judge(&files, &piece)),
            |block| {
                let rows = block.rows.len() as u64;
                for row in &block.rows {
                    let reason = match role {
                        Role::Qrels => log.add_judged(&block.text, row)?,
                        _ => log.add_row(role, &block.text, row, options.filter.duplicate_queries, texts)?,
                    };
                    reason.into_iter().for_each(&mut count);
                }
                progress.tick(rows);
                tally.add(&files, block.part, options.strict)
            },
        )?;
        if tally.counts.kept == 0 {
            return Err(files.nothing(&tally.counts));
        }
        for (reason, rows) in reasons {
            self.drop_rows(reason, rows);
        }
        self.note(&tally.counts, if role == Role::Queries { "query" } else { "click" });
        Ok(())
    }

    /// Parses a block and decides which of its queries may not enter; on any thread.
    fn judge(&self, files: &Files, piece: &Piece) -> LogBlock {
        let (mut text, mut rows) = (String::new(), Vec::new());
        let mut keep = |part: &str| {
            let start = text.len();
            text.push_str(part);
            start..text.len()
        };
        let part = files.parse(piece, &mut |row, _| {
            if files.role == Role::Qrels {
                let barred = row[2].parse::<i64>().is_ok_and(|label| label <= 0);
                let barred = barred.then_some("clicks with a label of 0 or less");
                let (query_id, document_id) = (keep(&row[0]), keep(&row[1]));
                rows.push(Span { query_id, query: 0..0, document_id, times: 1, barred });
                return;
            }
            let query = if self.options.repair { repaired(row[1].trim()) } else { row[1].trim().into() };
            let barred = self.guard.query(&query).or_else(|| self.options.filter.query(&query));
            let (query_id, document_id) = (keep(&row[0]), keep(&row[2]));
            let times = rows::times(&row[3]).unwrap_or(1);
            rows.push(Span { query_id, query: keep(&query), document_id, times, barred });
        });
        LogBlock { part, text, rows }
    }

    /// The file of texts that `read_log` put aside.
    pub(crate) fn aside(work: &Path) -> PathBuf {
        work.join("queries.tsv")
    }
}

impl Log {
    /// A row of clicks or queries; the result says why something was left out or merged.
    fn add_row(
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
    fn add_judged(&mut self, text: &str, row: &Span) -> Result<Option<&'static str>> {
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
