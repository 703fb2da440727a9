//! Topics (queries). Four forms are in use and none is marked by its file name, so the content
//! decides: TREC's SGML, where tags are not closed and values wrap over lines; XML, as TREC-COVID's;
//! JSON lines, as BEIR's; and tab-separated lines.

mod found;
mod sgml;
mod xml;

use std::collections::HashSet;
use std::path::Path;

pub use self::found::TopicField;
use self::found::{Found, Parsed, one_line};
use super::{at_line, line_of, read_text_counted};
use crate::files::{self, Fate, Ledger};
use crate::{Error, Result};

/// One topic: its id and the text of the chosen fields, on one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    pub id: String,
    pub text: String,
}

impl std::str::FromStr for TopicField {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "title" => Ok(Self::Title),
            "description" => Ok(Self::Description),
            "narrative" => Ok(Self::Narrative),
            _ => Err(Error::config(format!(
                "'{name}' is not a topic field: choose title, description or narrative"
            ))),
        }
    }
}

/// Reads topics, the title where there is a choice. See `read_topics_fields`.
pub fn read_topics(path: &Path) -> Result<Vec<Topic>> {
    read_topics_fields(path, &[TopicField::Title])
}

/// Reads topics in file order from SGML, XML, JSON lines or `id<TAB>text`, packed as `files` knows it; several
/// fields are joined with a space, runs of white space become one space. Errors: a line that is none of
/// these, a topic without id or without one of the fields, an id twice, no topic at all.
pub fn read_topics_fields(path: &Path, fields: &[TopicField]) -> Result<Vec<Topic>> {
    Ok(read_topics_counted(path, fields)?.0)
}

/// As `read_topics_fields`, with where every byte of the text went.
pub fn read_topics_counted(path: &Path, fields: &[TopicField]) -> Result<(Vec<Topic>, Ledger)> {
    if fields.is_empty() {
        return Err(Error::config("no topic field is chosen: choose title, description or narrative"));
    }
    let (text, mut ledger) = read_text_counted(path)?;
    let place = |offset| line_of(text.as_bytes(), offset);
    let mut topics = Vec::new();
    for Found { offset, id, values } in found(path, &text, &mut ledger)? {
        let mut query = String::new();
        for &field in fields {
            let value = &values[field as usize];
            if value.is_empty() {
                let error = format!("topic '{id}' has no {field:?}").to_lowercase();
                return Err(at_line(path, place(offset), &error));
            }
            query.push_str(if query.is_empty() { "" } else { " " });
            query.push_str(value);
        }
        topics.push(Topic { id, text: query });
    }
    Ok((topics, ledger))
}

/// Every text of every topic, whatever its field: what must not be in a query log.
pub(crate) fn all_texts(path: &Path) -> Result<Vec<String>> {
    let (text, mut ledger) = read_text_counted(path)?;
    let texts = found(path, &text, &mut ledger)?.into_iter().flat_map(|topic| topic.values);
    Ok(texts.filter(|text| !text.is_empty()).collect())
}

fn found(path: &Path, text: &str, ledger: &mut Ledger) -> Result<Vec<Found>> {
    let mark = ledger.total();
    let parsed = match text.trim_start().as_bytes().first() {
        Some(b'<') => tagged(text, ledger),
        Some(b'{') => lines(text, ledger, object),
        _ => lines(text, ledger, columns),
    };
    debug_assert!(parsed.is_err() || ledger.total() == mark + text.len() as u64, "{ledger:?}");
    let fail = |(offset, error): (usize, String)| match offset {
        usize::MAX => Error::data(format!("{}: {error}", path.display())),
        _ => at_line(path, line_of(text.as_bytes(), offset), &error),
    };
    let topics = parsed.map_err(fail)?;
    let mut seen = HashSet::new();
    for topic in &topics {
        if topic.id.is_empty() {
            return Err(fail((
                topic.offset,
                "a topic without id (<num>, number attribute, first column)".into(),
            )));
        }
        if !seen.insert(&topic.id) {
            return Err(fail((topic.offset, format!("topic '{}' occurs twice", topic.id))));
        }
    }
    if topics.is_empty() {
        return Err(Error::data(format!("{}: it holds no topic", path.display())));
    }
    Ok(topics)
}

/// XML, or TREC's SGML where it is not well-formed as that.
fn tagged(text: &str, ledger: &mut Ledger) -> Parsed {
    let mut own = Ledger::default();
    let mut parsed = xml::topics(text, &mut own);
    if parsed.is_err() && sgml::is_sgml(text) {
        own = Ledger::default();
        parsed = sgml::topics(text, &mut own);
    }
    ledger.merge(&own);
    parsed
}

fn lines(
    text: &str,
    ledger: &mut Ledger,
    parse: impl Fn(&str) -> std::result::Result<Found, String>,
) -> Parsed {
    if let Some(what) = files::lone_returns(text.as_bytes()) {
        return Err((usize::MAX, what.into()));
    }
    let (mut topics, mut offset) = (Vec::new(), 0);
    for line in text.split_inclusive('\n') {
        let blank = line.trim().is_empty();
        if !blank {
            let line = line.trim_end_matches('\n');
            topics.push(Found { offset, ..parse(line).map_err(|error| (offset, error))? });
        }
        ledger.add(if blank { Fate::Blank } else { Fate::Used }, line.len());
        offset += line.len();
    }
    Ok(topics)
}

fn columns(line: &str) -> std::result::Result<Found, String> {
    let (id, query) = line.split_once('\t').ok_or("no tab; a topic line is id<TAB>query")?;
    let (id, query) = (id.trim().to_owned(), one_line(query));
    if id.is_empty() || query.is_empty() {
        return Err("an empty topic id or query".into());
    }
    Ok(Found { id, values: [query, String::new(), String::new()], ..Found::default() })
}

/// A JSON object; the id is under one of the names in use, numbers are taken as they are written.
fn object(line: &str) -> std::result::Result<Found, String> {
    let wrong = |cause| format!("not a JSON object: {cause}");
    serde_json::from_str::<serde::de::IgnoredAny>(line).map_err(wrong)?;
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&files::numbers_as_text(line)).map_err(wrong)?;
    let text = |value: &serde_json::Value| one_line(value.as_str().unwrap_or_default());
    let id = ["_id", "id", "qid", "query_id", "topic_id", "number"].iter().find_map(|key| object.get(*key));
    let mut topic = Found { id: id.map(text).unwrap_or_default(), ..Found::default() };
    for (key, value) in &object {
        if let Some(field) = TopicField::of_tag(key)
            && topic.values[field as usize].is_empty()
        {
            topic.values[field as usize] = text(value);
        }
    }
    Ok(topic)
}
