//! Runs: ranked lists of documents per topic, in trec_eval's order. That order compares scores as f32
//! and breaks ties by document id descending, so a run that is written with f64 scores, or with ties
//! in another order, is measured in an order that its author never meant. `insert` therefore settles
//! the order once, in scores that f32 keeps apart; what is measured in memory is what is measured
//! after writing.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::Path;

use compact_str::CompactString;
use hashbrown::HashSet;

use super::file_error;
use super::lines::{self, LineError, Twice, by_topic, columns, first_line, grouped};
use crate::files::{self, Ledger};
use crate::{Error, Result};

/// One retrieved document. A score is whatever its run's author chose: only its order counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// Ids up to 24 bytes, which is nearly all there are, take no memory of their own.
    pub doc: CompactString,
    pub score: f64,
}

/// What the rank column of one hit said. Only the MS MARCO measure asks for it.
pub(crate) const NO_RANK: u32 = u32::MAX;

/// The hits of one topic in trec_eval's order and, beside them, their rank column.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RankedList {
    pub hits: Vec<Hit>,
    /// `NO_RANK` where the column is not a number.
    pub ranks: Vec<u32>,
}

/// topic -> ranked documents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    topics: BTreeMap<String, RankedList>,
    tag: Option<String>,
}

/// One line of a file, borrowed from it.
struct Line<'a> {
    doc: &'a str,
    score: f64,
    rank: u32,
}

/// A file's format, decided by its first line.
#[derive(Clone, Copy, PartialEq)]
enum RunFormat {
    /// `topic Q0 document rank score tag`.
    Trec,
    /// MS MARCO: `topic document rank`; the score is minus the rank.
    Marco,
}

/// Descending score as f32, then descending document id in byte order (trec_eval 9.0.8).
pub fn order_f32(a: (f64, &str), b: (f64, &str)) -> Ordering {
    (b.0 as f32).partial_cmp(&(a.0 as f32)).unwrap_or(Ordering::Equal).then_with(|| b.1.cmp(a.1))
}

/// Descending score as f64, then descending document id in byte order (trec_eval 10.0).
pub fn order_f64(a: (f64, &str), b: (f64, &str)) -> Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then_with(|| b.1.cmp(a.1))
}

impl Run {
    /// Reads a run of six columns (more are ignored, as trec_eval does) or MS MARCO's three, plain or
    /// gzipped. Blank lines and lines that begin with `#` are skipped. Errors: too few columns, a
    /// score that is no number, a document twice in a topic, no line at all.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self::read_counted(path)?.0)
    }

    /// As `read`, with where every byte of the text went.
    pub fn read_counted(path: &Path) -> Result<(Self, Ledger)> {
        let (bytes, mut ledger) = files::read_counted(path)?;
        let read = Self::parse(&bytes, &mut ledger);
        Ok((read.map_err(|error| file_error(path, &bytes, error))?, ledger))
    }

    fn parse(bytes: &[u8], ledger: &mut Ledger) -> std::result::Result<Self, LineError> {
        let format = format_of(bytes)?;
        let parse = |line| parse_line(line, format);
        let groups = grouped(bytes, parse)?;
        ledger.merge(&groups.bytes);
        let topics = by_topic(groups, rank_lines).map_err(|Twice { topic, document }| {
            let line = lines::second(bytes, parse, |t, line| t == topic && line.doc == document);
            (line, format!("document '{document}' is in topic '{topic}' twice; keep one line"))
        })?;
        Ok(Self { topics, tag: if format == RunFormat::Trec { last_tag(bytes) } else { None } })
    }

    /// Adds a topic. Hits are ordered by score as f64, then by document id descending; scores become
    /// f32 values that keep this order apart: a score that would tie with a higher one, or pass it,
    /// goes down to the next f32 below that one. Scores that are equal as f64 stay equal. Errors: a
    /// topic that is there, a document twice, a score that is NaN or beyond f32, an id that is empty
    /// or holds white space.
    pub fn insert(&mut self, topic: impl Into<String>, mut hits: Vec<Hit>) -> Result<()> {
        let topic = topic.into();
        let spoilt = |id: &str| id.is_empty() || id.contains(|c: char| c.is_ascii_whitespace());
        if spoilt(&topic) {
            return Err(Error::data(format!(
                "topic '{topic}': an id in a run is not empty and has no space"
            )));
        }
        if topic.starts_with('#') {
            return Err(Error::data(format!(
                "topic '{topic}': readers take lines of a run that begin with # for comments; rename the topic"
            )));
        }
        if self.topics.contains_key(&topic) {
            return Err(Error::data(format!("topic '{topic}' is in the run twice")));
        }
        let mut seen = HashSet::with_capacity(hits.len());
        for hit in &hits {
            if !(hit.score as f32).is_finite() {
                let (doc, score) = (&hit.doc, hit.score);
                return Err(Error::data(format!("topic '{topic}', document '{doc}': the score is {score}")));
            }
            if spoilt(&hit.doc) {
                let doc = &hit.doc;
                return Err(Error::data(format!(
                    "topic '{topic}': document id '{doc}' is empty or has a space"
                )));
            }
            if !seen.insert(hit.doc.as_str()) {
                return Err(Error::data(format!("document '{}' is in topic '{topic}' twice", hit.doc)));
            }
        }
        drop(seen);
        hits.sort_unstable_by(|a, b| order_f64((a.score, &a.doc), (b.score, &b.doc)));
        keep_apart(&mut hits);
        let ranks = (1..=hits.len() as u32).collect();
        self.topics.insert(topic, RankedList { hits, ranks });
        Ok(())
    }

    /// The hits of a topic in trec_eval's order.
    pub fn get(&self, topic: &str) -> Option<&[Hit]> {
        self.topics.get(topic).map(|list| list.hits.as_slice())
    }

    pub(crate) fn list(&self, topic: &str) -> Option<&RankedList> {
        self.topics.get(topic)
    }

    /// The topics in byte order.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &str> {
        self.topics.keys().map(String::as_str)
    }

    /// The run tag of the file's last line; `None` for a run made in memory or of three columns.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The first `depth` hits of a topic, as they are.
    pub fn head(&self, topic: &str, depth: usize) -> Option<Self> {
        let mut list = self.topics.get(topic)?.clone();
        list.hits.truncate(depth);
        list.ranks.truncate(depth);
        Some(Self { topics: [(topic.to_owned(), list)].into(), tag: None })
    }

    /// Joins the topics of another run, as the test runs of folds are joined. Error: a topic in both.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        for (topic, list) in other.topics {
            if self.topics.contains_key(&topic) {
                return Err(Error::data(format!("topic '{topic}' is in two of the runs that are joined")));
            }
            self.topics.insert(topic, list);
        }
        Ok(())
    }

    /// Writes `topic Q0 document rank score tag`, topics in byte order, scores as the shortest decimal
    /// that is the same f32 again. Written beside its place and renamed, so a reader never sees half a
    /// run. Error: a tag that is empty or holds white space.
    pub fn write(&self, path: &Path, tag: &str) -> Result<()> {
        if tag.is_empty() || tag.contains(char::is_whitespace) {
            return Err(Error::config(format!("the run tag '{tag}' must be one word")));
        }
        let mut text = String::new();
        for topic in self.topics.keys() {
            self.lines(topic, tag, &mut text);
        }
        files::write(path, text.as_bytes())
    }

    /// Appends a topic's lines as `write` has them.
    pub fn lines(&self, topic: &str, tag: &str, text: &mut String) {
        use std::fmt::Write as _;
        for (place, hit) in self.get(topic).unwrap_or_default().iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{topic} Q0 {} {} {} {tag}", hit.doc, place + 1, decimal(hit.score));
        }
    }
}

/// The text of a score as f32. trec_eval reads decimals as f64 and then rounds to f32; where that
/// second rounding would miss the shortest decimal's f32, the f64 digits of the f32 are written.
fn decimal(score: f64) -> String {
    let single = score as f32;
    let short = single.to_string();
    match short.parse::<f64>() {
        Ok(back) if back as f32 == single => short,
        _ => f64::from(single).to_string(),
    }
}

/// Turns the scores of ordered hits into f32 values that keep the order.
fn keep_apart(hits: &mut [Hit]) {
    let mut above: Option<(f64, f32)> = None;
    for hit in hits {
        let single = match above {
            // Equal scores stay equal: their order is the document ids' already.
            Some((score, written)) if score == hit.score => written,
            Some((_, written)) if hit.score as f32 >= written => written.next_down(),
            _ => hit.score as f32,
        };
        above = Some((hit.score, single));
        hit.score = f64::from(single);
    }
}

/// The format of the first line that holds anything.
fn format_of(bytes: &[u8]) -> std::result::Result<RunFormat, LineError> {
    match first_line::<6>(bytes)? {
        None => Err((usize::MAX, "it is empty; a run has one line for each retrieved document".into())),
        Some((_, _, 3)) => Ok(RunFormat::Marco),
        Some((_, _, 6)) => Ok(RunFormat::Trec),
        Some((offset, _, found)) => Err((offset, wrong_columns(found))),
    }
}

fn wrong_columns(found: usize) -> String {
    format!(
        "{found} columns; a run has six (topic, Q0, document, rank, score, tag), MS MARCO's format three \
         (topic, document, rank)"
    )
}

fn parse_line(line: &str, format: RunFormat) -> lines::Parsed<'_, Line<'_>> {
    let (columns, found) = columns::<6>(line);
    if found == 0 || columns[0].starts_with('#') {
        return Ok(None);
    }
    let line = match (format, found) {
        (RunFormat::Trec, 6) => {
            let score = match columns[4].parse::<f64>() {
                Ok(number) if !number.is_nan() => number,
                _ => return Err(format!("the score '{}' is not a number", columns[4])),
            };
            Line { doc: columns[2], score, rank: columns[3].parse().unwrap_or(NO_RANK) }
        }
        (RunFormat::Marco, 3) => {
            let rank = columns[2].parse().unwrap_or(NO_RANK);
            if rank == NO_RANK {
                return Err(format!("the rank '{}' is not a number", columns[2]));
            }
            Line { doc: columns[1], score: -f64::from(rank), rank }
        }
        _ => return Err(wrong_columns(found)),
    };
    Ok(Some((columns[0], line)))
}

/// The tag of the last line that holds anything.
fn last_tag(bytes: &[u8]) -> Option<String> {
    bytes.rsplit(|&byte| byte == b'\n').find_map(|line| {
        let (columns, found) = columns::<6>(std::str::from_utf8(line).unwrap_or_default());
        (found == 6 && !columns[0].starts_with('#')).then(|| columns[5].to_owned())
    })
}

/// Puts the lines of one topic in trec_eval's order, refusing a document that is there twice.
fn rank_lines<'a>(topic: &'a str, mut lines: Vec<Line<'a>>) -> std::result::Result<RankedList, Twice<'a>> {
    let mut seen = HashSet::with_capacity(lines.len());
    if let Some(line) = lines.iter().find(|line| !seen.insert(line.doc)) {
        return Err(Twice { topic, document: line.doc });
    }
    lines.sort_unstable_by(|a, b| order_f32((a.score, a.doc), (b.score, b.doc)));
    Ok(RankedList {
        ranks: lines.iter().map(|line| line.rank).collect(),
        hits: lines.iter().map(|line| Hit { doc: line.doc.into(), score: line.score }).collect(),
    })
}
