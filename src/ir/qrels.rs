//! Relevance judgements. Everything that a measure calls relevant comes from here, so a damaged file
//! must never pass as a smaller one: every odd line is an error with its place, and a document judged
//! twice is refused as trec_eval refuses it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::{at_line, next_column, read_bytes};
use crate::{Error, Result};

/// topic -> document -> label.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Qrels {
    topics: BTreeMap<String, HashMap<String, i32>>,
}

/// The file's form, decided by its first line that holds anything.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// `topic iteration document label`, any white space, second column ignored.
    Trec,
    /// BEIR: a header line, then `topic<TAB>document<TAB>label`.
    Beir,
}

impl Qrels {
    /// Reads TREC qrels or BEIR's TSV, plain or gzipped. Blank lines and lines that begin with `#`
    /// are skipped. Errors: another number of columns, a label that is no integer, a document judged
    /// twice in a topic, no judgement at all.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_bytes(path)?;
        let mut qrels = Self::default();
        let mut form = None;
        for (number, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let fail = |text: String| at_line(path, number + 1, &text);
            let columns = columns(line).map_err(&fail)?;
            if columns.is_empty() || columns[0].starts_with('#') {
                continue;
            }
            if form.is_none() {
                let header = columns.len() == 3 && columns[2].parse::<i32>().is_err();
                form = Some(if header { Form::Beir } else { Form::Trec });
                if header {
                    continue;
                }
            }
            let (topic, document, label) = match (form, columns.as_slice()) {
                (Some(Form::Beir), [topic, document, label]) => (topic, document, label),
                (Some(Form::Trec), [topic, _, document, label]) => (topic, document, label),
                (Some(Form::Beir), _) => {
                    return Err(fail(format!(
                        "{} columns where the header line promises three: topic, document, label",
                        columns.len()
                    )));
                }
                _ => {
                    return Err(fail(format!(
                        "{} columns where qrels have four: topic, iteration, document, label",
                        columns.len()
                    )));
                }
            };
            let label = label.parse().map_err(|_| fail(format!("the label '{label}' is not an integer")))?;
            if !qrels.insert(topic, document, label) {
                return Err(fail(format!(
                    "document '{document}' is judged twice in topic '{topic}'; keep one of the two lines"
                )));
            }
        }
        if qrels.topics.is_empty() {
            return Err(Error::data(format!("{}: no judgement in it", path.display())));
        }
        Ok(qrels)
    }

    /// Adds one judgement; false, and nothing changed, where the document has one in this topic.
    pub fn insert(&mut self, topic: &str, document: &str, label: i32) -> bool {
        // Files are sorted by topic, so the map is asked for a new key rarely.
        if !self.topics.contains_key(topic) {
            self.topics.insert(topic.to_owned(), HashMap::new());
        }
        let Some(labels) = self.topics.get_mut(topic) else { return false };
        match labels.entry(document.to_owned()) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(label);
                true
            }
        }
    }

    /// The judged documents of a topic and their labels; `None` for a topic that was never judged.
    pub fn get(&self, topic: &str) -> Option<&HashMap<String, i32>> {
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
        self.topics.values().map(HashMap::len).sum()
    }
}

/// The columns of a line as text.
fn columns(mut line: &[u8]) -> std::result::Result<Vec<&str>, String> {
    let mut columns = Vec::with_capacity(4);
    while let Some(column) = next_column(&mut line) {
        columns.push(std::str::from_utf8(column).map_err(|_| "not UTF-8 text".to_owned())?);
    }
    Ok(columns)
}
