//! Topics (queries). Four forms are in use and none is marked by its file name, so the content
//! decides: TREC's SGML, where tags are not closed and values wrap over lines; XML, as TREC-COVID's;
//! JSON lines, as BEIR's; and tab-separated lines.

use std::collections::HashSet;
use std::path::Path;

use super::{at_line, line_of, read_text};
use crate::{Error, Result};

/// One topic: its id and the text of the chosen fields, on one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    pub id: String,
    pub text: String,
}

/// Which part of a topic is the query. Tab-separated files have only the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TopicField {
    /// SGML `<title>`, XML `<title>` or `<query>`.
    #[default]
    Title,
    /// SGML `<desc>`, XML `<desc>`, `<description>` or `<question>`.
    Description,
    /// `<narr>` or `<narrative>`.
    Narrative,
}

impl TopicField {
    fn of_tag(tag: &str) -> Option<Self> {
        match tag.to_ascii_lowercase().as_str() {
            "title" | "query" | "text" => Some(Self::Title),
            "desc" | "description" | "question" => Some(Self::Description),
            "narr" | "narrative" => Some(Self::Narrative),
            _ => None,
        }
    }

    /// The words that TREC writes at the start of a value.
    fn label(self) -> &'static str {
        match self {
            Self::Title => "topic:",
            Self::Description => "description:",
            Self::Narrative => "narrative:",
        }
    }
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

/// Reads topics in file order from SGML, XML, JSON lines or `id<TAB>text`, packed as `files` knows it;
/// several fields are joined with a space, runs of white space become one space. Errors: a line in none of
/// these forms, a topic without id or without one of the fields, an id twice, no topic at all.
pub fn read_topics_fields(path: &Path, fields: &[TopicField]) -> Result<Vec<Topic>> {
    if fields.is_empty() {
        return Err(Error::config("no topic field is chosen: choose title, description or narrative"));
    }
    let text = read_text(path)?;
    let place = |offset| line_of(text.as_bytes(), offset);
    let mut topics = Vec::new();
    for Found { offset, id, values } in found(path, &text)? {
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
    Ok(topics)
}

/// Every text of every topic, whatever its field: what must not be in a query log.
pub(crate) fn all_texts(path: &Path) -> Result<Vec<String>> {
    let texts = found(path, &read_text(path)?)?.into_iter().flat_map(|topic| topic.values);
    Ok(texts.filter(|text| !text.is_empty()).collect())
}

/// A topic with the byte offset of its start; the text of each `TopicField`, empty where there is none.
#[derive(Debug, Default)]
struct Found {
    offset: usize,
    id: String,
    values: [String; 3],
}

/// Topics, or what is wrong and at which byte offset.
type Parsed = std::result::Result<Vec<Found>, (usize, String)>;

fn found(path: &Path, text: &str) -> Result<Vec<Found>> {
    let parsed = match text.trim_start().as_bytes().first() {
        Some(b'<') => tagged(text),
        Some(b'{') => lines(text, object),
        _ => lines(text, columns),
    };
    let fail = |(offset, error): (usize, String)| at_line(path, line_of(text.as_bytes(), offset), &error);
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

fn lines(text: &str, parse: impl Fn(&str) -> std::result::Result<Found, String>) -> Parsed {
    let (mut topics, mut offset) = (Vec::new(), 0);
    for line in text.split('\n') {
        if !line.trim().is_empty() {
            topics.push(Found { offset, ..parse(line).map_err(|error| (offset, error))? });
        }
        offset += line.len() + 1;
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

/// A JSON object; the id is under one of the names in use, numbers are taken as text.
fn object(line: &str) -> std::result::Result<Found, String> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(line).map_err(|cause| format!("not a JSON object: {cause}"))?;
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => one_line(text),
        serde_json::Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
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

/// A tag and the text between it and the next one.
struct Element<'a> {
    offset: usize,
    /// Without angle brackets; `/name` for a closing tag.
    tag: &'a str,
    /// What follows the name inside the brackets: `number="1"`.
    attributes: &'a str,
    text: &'a str,
}

/// Cuts SGML or XML at its tags. A `<` that starts no tag (`</name>`, `<name ...>`) is text.
fn elements(text: &str) -> Vec<Element<'_>> {
    let mut marks = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find('<').map(|at| from + at) {
        from = start + 1;
        if text[from..].starts_with("!--") {
            from = text[from..].find("-->").map_or(text.len(), |at| from + at + 3);
            marks.push((start, from, "!--"));
            continue;
        }
        let Some(end) = text[from..].find(['>', '<']).map(|at| from + at) else { continue };
        let inner = &text[from..end];
        let name = inner.trim_start_matches('/');
        if text.as_bytes()[end] == b'>' && name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            marks.push((start, end + 1, inner));
            from = end + 1;
        }
    }
    let ends = marks.iter().skip(1).map(|mark| mark.0).chain([text.len()]);
    let whole = marks.iter().zip(ends);
    whole
        .map(|(&(offset, after, inner), end)| {
            let (tag, attributes) = inner.split_once(char::is_whitespace).unwrap_or((inner, ""));
            Element { offset, tag: tag.trim_end_matches('/'), attributes, text: &text[after..end] }
        })
        .collect()
}

fn tagged(text: &str) -> Parsed {
    // Only XML escapes characters; in SGML topics `R&D` is plain text.
    let xml = !text.trim_start().get(..5).is_some_and(|tag| tag.eq_ignore_ascii_case("<top>"));
    let mut topics: Vec<Found> = Vec::new();
    for element in elements(text) {
        let value = || if xml { one_line(&unescape(element.text)) } else { one_line(element.text) };
        if element.tag.eq_ignore_ascii_case("top") || element.tag.eq_ignore_ascii_case("topic") {
            let id = attribute(element.attributes, "number").unwrap_or_default().to_owned();
            topics.push(Found { offset: element.offset, id, ..Found::default() });
            continue;
        }
        let Some(topic) = topics.last_mut() else { continue };
        if element.tag.eq_ignore_ascii_case("num") || element.tag.eq_ignore_ascii_case("number") {
            topic.id = without(&value(), "number:").to_owned();
        } else if let Some(field) = TopicField::of_tag(element.tag)
            && topic.values[field as usize].is_empty()
        {
            topic.values[field as usize] = without(&value(), field.label()).to_owned();
        }
    }
    Ok(topics)
}

/// The value of `name="..."`.
fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let rest = attributes.split_once(name)?.1.trim_start().strip_prefix('=')?.trim_start();
    let quote = rest.chars().next().filter(|&c| c == '"' || c == '\'')?;
    rest[1..].split_once(quote).map(|(value, _)| value.trim())
}

/// `text` without `label` at its start, whatever the case.
fn without<'a>(text: &'a str, label: &str) -> &'a str {
    match text.get(..label.len()) {
        Some(start) if start.eq_ignore_ascii_case(label) => text[label.len()..].trim_start(),
        _ => text,
    }
}

/// XML's five named characters; `&amp;` last, or `&amp;lt;` would become `<`.
fn unescape(text: &str) -> String {
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    named.iter().fold(text.to_owned(), |text, (name, character)| text.replace(name, character))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
