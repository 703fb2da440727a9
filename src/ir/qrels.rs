//! Relevance judgements. Everything that a measure calls relevant comes from here, so a damaged file
//! must never pass as a smaller one: every odd line is an error with its place, and a document judged
//! twice is refused as trec_eval refuses it.

use std::collections::BTreeMap;
use std::path::Path;

use compact_str::CompactString;
use hashbrown::HashMap;

use super::file_error;
use super::lines::{self, LineError, Twice, by_topic, columns, first_line, grouped};
use crate::Result;
use crate::files;

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
    /// BEIR: a header line, which starts at this byte, then `topic<TAB>document<TAB>label`.
    Beir,
}

impl Qrels {
    /// Reads TREC qrels or BEIR's TSV, plain or gzipped. Blank lines and lines that begin with `#`
    /// are skipped. Errors: another number of columns, a label that is no integer, a document judged
    /// twice in a topic, no judgement at all.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = files::read_unpacked(path)?;
        Self::parse(&bytes).map_err(|error| file_error(path, &bytes, error))
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, LineError> {
        let (format, start) = match first_line::<4>(bytes)? {
            Some((offset, [name, _, label, _], 3)) if label.parse::<i32>().is_err() => {
                let header = bytes[offset..].iter().position(|&byte| byte == b'\n');
                let body = header.map_or(bytes.len(), |at| offset + at + 1);
                // TREC's lines behind it: no header, but a line that lacks a column
                match first_line::<4>(&bytes[body..]) {
                    Ok(Some((_, _, 4))) if name != "query-id" => (QrelsFormat::Trec, 0),
                    _ => (QrelsFormat::Beir, body),
                }
            }
            _ => (QrelsFormat::Trec, 0),
        };
        let parse = |line| parse_line(line, format);
        let body = &bytes[start..];
        let place = |(offset, text): LineError| (start + offset, text);
        let topics = by_topic(grouped(body, parse).map_err(place)?, labels);
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
        (QrelsFormat::Beir, 3) => (columns[1], columns[2]),
        (QrelsFormat::Trec, _) => {
            return Err(format!("{found} columns where qrels have four: topic, iteration, document, label"));
        }
        (QrelsFormat::Beir, _) => {
            return Err(format!(
                "{found} columns where the header line promises three: topic, document, label"
            ));
        }
    };
    let label = label.parse().map_err(|_| format!("the label '{label}' is not an integer"))?;
    Ok(Some((columns[0], (document, label))))
}
