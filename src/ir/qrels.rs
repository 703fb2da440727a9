//! Relevance judgements. Everything that a measure calls relevant comes from here, so a damaged file
//! must never pass as a smaller one: every odd line is an error with its place, and a document judged
//! twice is refused as trec_eval refuses it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use compact_str::CompactString;
use hashbrown::HashMap;

use super::file_error;
use super::lines::{self, LineError, Twice, by_topic, columns, first_line, grouped};
use crate::Result;
use crate::files::{self, Fate, Ledger};

/// document -> label, of one topic.
pub type Labels = HashMap<CompactString, i32>;

/// topic -> document -> label.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Qrels {
    topics: BTreeMap<String, Labels>,
}

/// The file's format, decided by its first line that holds anything.
#[derive(Clone, Copy, PartialEq)]
enum QrelsFormat {
    /// `topic iteration document label`, any white space, second column ignored.
    Trec,
    /// BEIR's `topic document label`.
    Three,
}

/// Names of the first column in header lines that are in use.
const TOPIC: [&str; 10] =
    ["query-id", "query_id", "queryid", "query", "qid", "q_id", "topic", "topic-id", "topic_id", "topicid"];

/// Whether the columns of a first line are names and no judgement: a topic's by its name, above a label that is no
/// number. What is only damaged is no header.
pub(crate) fn is_header(columns: &[&str]) -> bool {
    let label = columns.last().copied().unwrap_or_default();
    let is_name = |name: &&str| columns.first().is_some_and(|first| first.eq_ignore_ascii_case(name));
    (3..=4).contains(&columns.len()) && label.parse::<f64>().is_err() && TOPIC.iter().any(is_name)
}

/// A label as it is written: whole, with or without decimals that are all zero.
///
/// # Errors
/// What is wrong with it: cut to a whole number, 0.5 would be a judgement that nobody gave.
pub(crate) fn label(text: &str) -> std::result::Result<i32, String> {
    let whole = match text.split_once('.') {
        Some((whole, zeros)) if zeros.bytes().all(|digit| digit == b'0') => whole,
        _ => text,
    };
    whole.parse().map_err(|cause: std::num::ParseIntError| match cause.kind() {
        std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
            format!("the label '{text}' is too large")
        }
        _ => format!("the label '{text}' is not an integer"),
    })
}

impl Qrels {
    /// Reads TREC qrels or three columns as BEIR has them, with or without a header line, plain or packed. Blank
    /// lines and lines that begin with `#` are skipped. Errors: another number of columns, a label that is not
    /// whole, a document judged twice in a topic, no judgement at all.
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
        let (format, header) = format_of(bytes)?;
        let start = header.end;
        let before = &bytes[..header.start];
        let only_blank = before.trim_ascii().is_empty();
        ledger.add(if only_blank { Fate::Blank } else { Fate::Comment }, before.len());
        ledger.add(Fate::Header, header.len());
        let parse = |line| parse_line(line, format);
        let body = &bytes[start..];
        let place = |(offset, text): LineError| (start.saturating_add(offset), text);
        let groups = grouped(body, parse).map_err(place)?;
        ledger.merge(&groups.bytes);
        let topics = by_topic(groups, labels);
        let topics = topics.map_err(|Twice { topic, document }| {
            let line = lines::second(body, parse, |t, (d, _)| t == topic && *d == document);
            let text = format!(
                "document '{document}' is judged twice in topic '{topic}'; keep one of the two lines"
            );
            place((line, text))
        })?;
        if topics.is_empty() {
            return Err((usize::MAX, "it holds no judgement".into()));
        }
        Ok(Self { topics })
    }

    /// The judged documents of a topic and their labels; `None` for a topic that was never judged.
    pub fn get(&self, topic: &str) -> Option<&Labels> {
        self.topics.get(topic)
    }

    /// The label of a document, `None` where it was not judged.
    pub fn label(&self, topic: &str, document: &str) -> Option<i32> {
        self.topics.get(topic)?.get(document).copied()
    }

    /// The judged topics in byte order.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &str> {
        self.topics.keys().map(String::as_str)
    }

    /// All judgements of all topics.
    pub fn judgements(&self) -> usize {
        self.topics.values().map(Labels::len).sum()
    }
}

/// The form, and where the header line is: at the start and empty where there is none.
fn format_of(bytes: &[u8]) -> std::result::Result<(QrelsFormat, Range<usize>), LineError> {
    let Some((offset, columns, found)) = first_line::<5>(bytes)? else {
        return Ok((QrelsFormat::Trec, 0..0));
    };
    let columns = &columns[..found];
    if is_header(columns) {
        let end = memchr::memchr(b'\n', &bytes[offset..]).map_or(bytes.len(), |at| offset + at + 1);
        let format = if found == 3 { QrelsFormat::Three } else { QrelsFormat::Trec };
        return Ok((format, offset..end));
    }
    let three = found == 3 && columns[2].parse::<f64>().is_ok();
    Ok((if three { QrelsFormat::Three } else { QrelsFormat::Trec }, 0..0))
}

fn labels<'a>(topic: &'a str, list: Vec<(&'a str, i32)>) -> std::result::Result<Labels, Twice<'a>> {
    let mut labels = Labels::with_capacity(list.len());
    for (document, label) in list {
        if labels.insert(document.into(), label).is_some() {
            return Err(Twice { topic, document });
        }
    }
    Ok(labels)
}

fn parse_line(line: &str, format: QrelsFormat) -> lines::Parsed<'_, (&str, i32)> {
    let (columns, found) = columns::<6>(line);
    if found == 0 || columns[0].starts_with('#') {
        return Ok(None);
    }
    let (document, label) = match (format, found) {
        (QrelsFormat::Trec, 4) => (columns[2], columns[3]),
        (QrelsFormat::Three, 3) => (columns[1], columns[2]),
        (QrelsFormat::Trec, _) => {
            return Err(format!("{found} columns where qrels have four: topic, iteration, document, label"));
        }
        (QrelsFormat::Three, _) => {
            return Err(format!("{found} columns where the first line has three: topic, document, label"));
        }
    };
    Ok(Some((columns[0], (document, self::label(label)?))))
}
