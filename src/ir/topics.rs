//! Topics (queries). Three forms are in use and none is marked by its file name, so the content
//! decides: TREC's SGML, where tags are not closed and values wrap over lines; XML, as TREC-COVID's;
//! and tab-separated lines.

use std::collections::HashSet;
use std::path::Path;

use super::{at_line, line_of, read_text};
use crate::{Error, Result};

/// One topic: its id and the text of the chosen field, on one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    pub id: String,
    pub text: String,
}

/// Which part of a topic is the query. Tab-separated files have only one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Field {
    /// SGML `<title>`, XML `<title>` or `<query>`.
    #[default]
    Title,
    /// SGML `<desc>`, XML `<desc>`, `<description>` or `<question>`.
    Description,
    /// `<narr>` or `<narrative>`.
    Narrative,
}

impl Field {
    fn of_tag(tag: &str) -> Option<Self> {
        match tag.to_ascii_lowercase().as_str() {
            "title" | "query" => Some(Self::Title),
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

impl std::str::FromStr for Field {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "title" => Ok(Self::Title),
            "description" => Ok(Self::Description),
            "narrative" => Ok(Self::Narrative),
            _ => Err(Error::config(format!("'{name}' is no topic field: title, description or narrative"))),
        }
    }
}

/// Reads topics, the title where there is a choice. See `read_topics_field`.
pub fn read_topics(path: &Path) -> Result<Vec<Topic>> {
    read_topics_field(path, Field::Title)
}

/// Reads topics in file order from SGML, XML or `id<TAB>text`, plain or gzipped; runs of white space
/// become one space. Errors: a line without a tab, a topic without id or without the field, an id
/// twice, no topic at all.
pub fn read_topics_field(path: &Path, field: Field) -> Result<Vec<Topic>> {
    let text = read_text(path)?;
    let found = if text.trim_start().starts_with('<') { tagged(&text, field) } else { lines(&text) };
    let found = found.map_err(|(offset, error)| at_line(path, line_of(text.as_bytes(), offset), &error))?;
    let mut seen = HashSet::new();
    for (offset, topic) in &found {
        if !seen.insert(&topic.id) {
            let line = line_of(text.as_bytes(), *offset);
            return Err(at_line(path, line, &format!("topic '{}' is in the file twice", topic.id)));
        }
    }
    if found.is_empty() {
        return Err(Error::data(format!("{}: no topic in it", path.display())));
    }
    Ok(found.into_iter().map(|(_, topic)| topic).collect())
}

/// Topics with their byte offsets, or an error with its own.
type Found = std::result::Result<Vec<(usize, Topic)>, (usize, String)>;

fn lines(text: &str) -> Found {
    let (mut topics, mut offset) = (Vec::new(), 0);
    for line in text.split('\n') {
        if !line.trim().is_empty() {
            let Some((id, query)) = line.split_once('\t') else {
                return Err((offset, "no tab; a topic line is id<TAB>query".into()));
            };
            let (id, query) = (id.trim(), one_line(query));
            if id.is_empty() || query.is_empty() {
                return Err((offset, "an empty topic id or query".into()));
            }
            topics.push((offset, Topic { id: id.to_owned(), text: query }));
        }
        offset += line.len() + 1;
    }
    Ok(topics)
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

fn tagged(text: &str, field: Field) -> Found {
    // Only XML escapes characters; in SGML topics `R&D` is plain text.
    let xml = !text.trim_start().get(..5).is_some_and(|tag| tag.eq_ignore_ascii_case("<top>"));
    let mut topics: Vec<(usize, Topic)> = Vec::new();
    for element in elements(text) {
        let value = || if xml { one_line(&unescape(element.text)) } else { one_line(element.text) };
        if element.tag.eq_ignore_ascii_case("top") || element.tag.eq_ignore_ascii_case("topic") {
            let id = attribute(element.attributes, "number").unwrap_or_default();
            topics.push((element.offset, Topic { id: id.to_owned(), text: String::new() }));
            continue;
        }
        let Some((_, topic)) = topics.last_mut() else { continue };
        if element.tag.eq_ignore_ascii_case("num") || element.tag.eq_ignore_ascii_case("number") {
            topic.id = without(&value(), "number:").to_owned();
        } else if Field::of_tag(element.tag) == Some(field) && topic.text.is_empty() {
            topic.text = without(&value(), field.label()).to_owned();
        }
    }
    for (offset, topic) in &topics {
        if topic.id.is_empty() {
            return Err((*offset, "a topic without <num> or number attribute".into()));
        }
        if topic.text.is_empty() {
            return Err((*offset, format!("topic '{}' has no {field:?}", topic.id).to_lowercase()));
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
