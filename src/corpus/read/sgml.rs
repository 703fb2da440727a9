//! Documents of the TREC collections: `<DOC>` ... `</DOC>`, where everything between is SGML of some newspaper
//! (TREC disks) or an HTTP answer as a crawler got it (GOV2). Neither is well-formed, so tags are looked for and
//! never matched; a document whose end is missing ends where the next one begins.

use std::borrow::Cow;
use std::ops::Range;

use super::page::{Page, utf8_or_western};
use super::rows::{Role, Row, Seen};
use super::tags;
use crate::files::Fate;

/// Tags whose content is a document's title ...
const TITLE: [&str; 5] = ["HEADLINE", "TITLE", "HL", "HEAD", "TTL"];
/// ... and its body.
const BODY: [&str; 5] = ["TEXT", "LEADPARA", "LP", "DD", "DATE"];
/// Attributes of `<DOC>` that are its id where it has no DOCNO.
const IDS: [&str; 3] = ["docno", "docid", "id"];
/// Bytes of the longest name of an entity.
const LONGEST_ENTITY: usize = 9;

/// A document in a block.
struct Found<'a> {
    /// Inside its `<DOC>`.
    attributes: &'a [u8],
    /// Between its tags.
    content: &'a [u8],
    /// First byte after all of it.
    end: usize,
    closed: bool,
}

/// Documents of TREC SGML or, with `web`, of trecweb; `last` where the file ends with the block.
pub(crate) fn documents(text: &[u8], web: bool, last: bool, each: &mut impl FnMut(Row<'_>, u64)) -> Seen {
    let mut seen = Seen::default();
    let (mut at, mut counted, mut lines) = (0, 0, 0u64);
    while let Some((start, content)) = tags::find_opening(text, at, b"DOC") {
        seen.outside(&text[at..start]);
        lines += memchr::memchr_iter(b'\n', &text[counted..content]).count() as u64;
        counted = content;
        let found = found(text, start, content);
        at = found.end;
        let fate = if !found.closed && last && at == text.len() {
            seen.damaged(lines, "<DOC> without </DOC>");
            Fate::Unclosed
        } else {
            pass(&found, web, lines, &mut seen, each)
        };
        seen.row(fate, at - start);
    }
    seen.outside(&text[at..]);
    seen.lines = memchr::memchr_iter(b'\n', text).count() as u64;
    seen
}

/// The document whose tag is `text[start..content]`. It ends with `</DOC>`, or before a `<DOC>` that begins
/// another: one at the start of a line, or one with a DOCNO after it.
fn found(text: &[u8], start: usize, content: usize) -> Found<'_> {
    let make = |until: usize, end, closed| Found {
        attributes: &text[start + 4..content - 1],
        content: &text[content..until],
        end,
        closed,
    };
    let mut maybe = None;
    for at in memchr::memchr_iter(b'<', &text[content..]).map(|at| content + at) {
        // Most tags are of other names.
        if !matches!(text.get(at + 1), Some(b'/' | b'D' | b'd')) {
            continue;
        }
        if let Some(end) = tags::closing(text, at, b"DOC") {
            return make(at, end, true);
        }
        if tags::opening(text, at, b"DOC").is_some() {
            if tags::starts_line(text, at) {
                let until = maybe.unwrap_or(at);
                return make(until, until, false);
            }
            maybe = maybe.or(Some(at));
        } else if let Some(until) = maybe.filter(|_| tags::opening(text, at, b"DOCNO").is_some()) {
            return make(until, until, false);
        }
    }
    make(text.len(), text.len(), false)
}

fn pass(
    found: &Found<'_>,
    web: bool,
    line: u64,
    seen: &mut Seen,
    each: &mut impl FnMut(Row<'_>, u64),
) -> Fate {
    let (text, fault) = if web { (Cow::Borrowed(""), None) } else { utf8_or_western(found.content) };
    // The id is looked for in bytes, because HTML is decoded apart; tags are ASCII in every charset.
    let bytes = if web { found.content } else { text.as_bytes() };
    let (id, place) = match id_of(bytes) {
        Some((id, place)) => (String::from_utf8_lossy(&bytes[id]).trim().to_owned(), place),
        None => match attribute_id(found.attributes) {
            Some(id) => (id, 0..0),
            None => {
                seen.damaged(line, "a document without <DOCNO>");
                return Fate::NoId;
            }
        },
    };
    let (row, fault) = if web {
        let page = Page::read(&without(bytes, &place));
        ([id, page.url, page.title, page.body].map(Cow::Owned), page.fault)
    } else {
        (article(id, &text[..place.start], &text[place.end..]), fault)
    };
    if let Some(fault) = fault {
        seen.not_utf8(line, fault);
    }
    if let Some(fault) = Role::Documents.fault(&row) {
        seen.damaged(line, fault);
        return Fate::Value;
    }
    if !found.closed {
        seen.unclosed(line);
    }
    seen.kept += 1;
    each(row, line);
    Fate::Used
}

/// Where the DOCNO is and where its whole element.
fn id_of(document: &[u8]) -> Option<(Range<usize>, Range<usize>)> {
    let (start, id) = tags::find_opening(document, 0, b"DOCNO")?;
    let (end, after) = tags::find_closing(document, id, b"DOCNO")?;
    Some((id..end, start..after))
}

fn attribute_id(attributes: &[u8]) -> Option<String> {
    let attributes = String::from_utf8_lossy(attributes);
    let id = IDS.iter().find_map(|name| tags::attribute(&attributes, name))?;
    Some(id.to_owned())
}

/// The document without its DOCNO: borrowed where nothing stands before that.
fn without<'a>(document: &'a [u8], place: &Range<usize>) -> Cow<'a, [u8]> {
    let (before, after) = (&document[..place.start], &document[place.end..]);
    if before.iter().all(u8::is_ascii_whitespace) {
        return Cow::Borrowed(after);
    }
    Cow::Owned([before, b" ", after].concat())
}

/// A news article: the content of the tags above; all text where there is none of them.
fn article(id: String, before: &str, after: &str) -> Row<'static> {
    let (mut title, mut body) = (String::new(), String::new());
    // The content tag that is open and whether it is a title's.
    let mut open: Option<(&str, bool)> = None;
    let mut tagged = false;
    for (tag, text) in Tags::new(before).chain(Tags::new(after)) {
        let (closing, name) = (tag.starts_with('/'), tag.trim_start_matches('/'));
        let of = |names: &[&str]| names.iter().any(|wanted| name.eq_ignore_ascii_case(wanted));
        match open {
            Some((opened, _)) if closing && name.eq_ignore_ascii_case(opened) => open = None,
            None if !closing && (of(&TITLE) || of(&BODY)) => {
                (open, tagged) = (Some((name, of(&TITLE))), true);
            }
            _ => {}
        }
        if let Some((_, is_title)) = open {
            append(if is_title { &mut title } else { &mut body }, text);
        }
    }
    if !tagged {
        for (_, text) in Tags::new(before).chain(Tags::new(after)) {
            append(&mut body, text);
        }
    }
    [Cow::Owned(id), Cow::Borrowed(""), Cow::Owned(title), Cow::Owned(body)]
}

/// Tags (name alone, `/name` for a closing one) with the text after each; the text before the first tag
/// comes with an empty one. A `<` that begins no tag is text.
struct Tags<'a> {
    rest: &'a str,
    tag: Option<&'a str>,
    /// No comment ends in `rest`: nobody need look for it again, or a page of open ones would take hours.
    endless: bool,
}

impl<'a> Tags<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text, tag: Some(""), endless: false }
    }

    /// The first tag: where its `<` is, its name, and the first byte after it.
    fn first(&mut self) -> Option<(usize, &'a str, usize)> {
        let rest = self.rest;
        for start in memchr::memchr_iter(b'<', rest.as_bytes()) {
            let inner = &rest[start + 1..];
            if inner.starts_with("!--") {
                let end = if self.endless { None } else { inner.find("-->") };
                match end {
                    Some(end) => return Some((start, "!--", start + end + 4)),
                    None => self.endless = true,
                }
            } else if inner.trim_start_matches('/').starts_with(|c: char| c.is_ascii_alphabetic()) {
                // Without a `>` here there is none for any later tag.
                let end = inner.find('>')?;
                let name = inner[..end].split_ascii_whitespace().next().unwrap_or_default();
                return Some((start, name, start + end + 2));
            }
        }
        None
    }
}

impl<'a> Iterator for Tags<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = self.tag?;
        let Some((start, name, after)) = self.first() else {
            self.tag = None;
            return Some((tag, std::mem::take(&mut self.rest)));
        };
        let text = &self.rest[..start];
        self.rest = &self.rest[after..];
        self.tag = Some(name);
        Some((tag, text))
    }
}

/// Appends text with runs of white space as one space and entities as characters.
fn append(out: &mut String, text: &str) {
    for word in text.split_ascii_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        let mut rest = word;
        while let Some(start) = rest.find('&') {
            out.push_str(&rest[..start]);
            // No name is longer, so no more is looked at: a line of ampersands takes no longer than another.
            let end = rest.as_bytes()[start..].iter().take(LONGEST_ENTITY + 2).position(|&byte| byte == b';');
            let Some(end) = end.map(|length| start + length) else {
                out.push('&');
                rest = &rest[start + 1..];
                continue;
            };
            out.push_str(entity(&rest[start + 1..end]));
            rest = &rest[end + 1..];
        }
        out.push_str(rest);
    }
}

/// The entities of the TREC disks that stand for characters of words; all others (rules, blanks, section
/// signs) separate words.
fn entity(name: &str) -> &'static str {
    match name.to_ascii_lowercase().as_str() {
        "amp" => "&",
        "lt" => "<",
        "gt" => ">",
        "quot" => "\"",
        "apos" | "rsquo" | "lsquo" => "'",
        "hyph" | "hyphen" => "-",
        _ => " ",
    }
}
