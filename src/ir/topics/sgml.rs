//! TREC's own topics: SGML whose tags need not be closed and whose text may hold `&` and `<` as they are.

use super::found::{Found, Parsed, TopicField, is_id, is_topic};
use crate::files::{Fate, Ledger};

/// A tag and the text between it and the next one.
struct Element<'a> {
    offset: usize,
    /// Without angle brackets; `/name` for a closing tag.
    tag: &'a str,
    /// First byte after the tag.
    after: usize,
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
            Element { offset, after, tag: tag.trim_end_matches('/'), attributes, text: &text[after..end] }
        })
        .collect()
}

/// Whether the file may be SGML: it has a `<top>` and does not declare itself to be XML.
pub(super) fn is_sgml(text: &str) -> bool {
    !text.trim_start().starts_with("<?xml")
        && elements(text).iter().any(|element| element.tag.eq_ignore_ascii_case("top"))
}

/// Topics from each `<top>` to `</top>` or the next one.
pub(super) fn topics(text: &str, ledger: &mut Ledger) -> Parsed {
    let mut topics: Vec<Found> = Vec::new();
    let (mut at, mut open) = (0, false);
    let mut account = |until: usize, open: bool| {
        let piece = &text.as_bytes()[at..until];
        ledger.add(if open { Fate::Used } else { Fate::of_gap(piece) }, piece.len());
        at = until;
    };
    for element in elements(text) {
        if is_topic(element.tag) {
            account(element.offset, open);
            let id = attribute(element.attributes, "number").unwrap_or_default().to_owned();
            topics.push(Found { offset: element.offset, id, ..Found::default() });
            open = true;
        } else if element.tag.strip_prefix('/').is_some_and(is_topic) {
            account(element.after, open);
            open = false;
        }
        let Some(topic) = topics.last_mut().filter(|_| open) else { continue };
        if is_id(element.tag) {
            topic.take_id(element.text);
        } else if let Some(field) = TopicField::of_tag(element.tag) {
            topic.take(field, element.text);
        }
    }
    account(text.len(), open);
    Ok(topics)
}

/// The value of `name="..."`.
fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let rest = attributes.split_once(name)?.1.trim_start().strip_prefix('=')?.trim_start();
    let quote = rest.chars().next().filter(|&c| c == '"' || c == '\'')?;
    rest[1..].split_once(quote).map(|(value, _)| value.trim())
}
