//! Documents of the TREC collections: `<DOC>` ... `</DOC>`, where everything between is SGML of some newspaper
//! (TREC disks) or an HTTP answer as a crawler got it (GOV2). Neither is well-formed, so tags are looked for and
//! never matched; HTML goes through a browser-grade parser.

use std::borrow::Cow;

use scraper::{Html, Node, Selector};

use super::rows::{Role, Row, Seen};

/// Tags whose content is a document's title ...
const TITLE: [&str; 5] = ["HEADLINE", "TITLE", "HL", "HEAD", "TTL"];
/// ... and its body.
const BODY: [&str; 5] = ["TEXT", "LEADPARA", "LP", "DD", "DATE"];
/// Elements of a page that are never read by people.
const UNSEEN: [&str; 6] = ["script", "style", "noscript", "template", "head", "svg"];
/// Bytes of the longest name of an entity.
const LONGEST_ENTITY: usize = 9;
/// Bytes of HTML that are parsed: a page beyond is a table or a dump, and GOV2 itself was cut at 256 KiB.
const MOST_HTML: usize = 1 << 20;

/// Documents of TREC SGML or, with `web`, of trecweb.
pub(crate) fn documents(text: &[u8], web: bool, each: &mut impl FnMut(Row<'_>, u64)) -> Seen {
    let mut seen = Seen::default();
    let (mut at, mut counted, mut lines) = (0, 0, 0u64);
    while let Some(start) = find(&text[at..], b"<DOC>").map(|found| at + found + 5) {
        lines += memchr::memchr_iter(b'\n', &text[counted..start]).count() as u64;
        counted = start;
        seen.rows += 1;
        let Some(length) = find(&text[start..], b"</DOC>") else {
            seen.damaged(lines, "<DOC> without </DOC>");
            break;
        };
        let document = &text[start..start + length];
        at = start + length + 6;
        let decoded = decode(document, lines, &mut seen);
        match id_of(&decoded) {
            None => seen.damaged(lines, "a document without <DOCNO>"),
            Some((id, rest)) => {
                let row = if web { page(id, rest) } else { article(id, rest) };
                match Role::Documents.fault(&row) {
                    Some(fault) => seen.damaged(lines, fault),
                    None => {
                        seen.kept += 1;
                        each(row, lines);
                    }
                }
            }
        }
    }
    seen.lines = memchr::memchr_iter(b'\n', text).count() as u64;
    seen
}

/// Where a tag begins, whatever its case. One pass over the `<`: a file of small letters costs what one of
/// capitals does.
fn find(text: &[u8], tag: &[u8]) -> Option<usize> {
    memchr::memchr_iter(tag[0], text)
        .find(|&at| text[at..].get(..tag.len()).is_some_and(|found| found.eq_ignore_ascii_case(tag)))
}

/// UTF-8, else Windows-1252, of which Latin-1 is a part: what crawled pages are.
fn decode<'a>(bytes: &'a [u8], line: u64, seen: &mut Seen) -> Cow<'a, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => {
            seen.not_utf8(line);
            encoding_rs::WINDOWS_1252.decode_without_bom_handling(bytes).0
        }
    }
}

/// The DOCNO and what follows it.
fn id_of(document: &str) -> Option<(&str, &str)> {
    let start = find(document.as_bytes(), b"<DOCNO>")? + 7;
    let length = find(&document.as_bytes()[start..], b"</DOCNO>")?;
    Some((document[start..start + length].trim(), &document[start + length + 8..]))
}

/// A news article: the content of the tags above; all text where there is none of them.
fn article<'a>(id: &'a str, rest: &'a str) -> Row<'a> {
    let (mut title, mut body) = (String::new(), String::new());
    // The content tag that is open and whether it is a title's.
    let mut open: Option<(&str, bool)> = None;
    let mut tagged = false;
    for (tag, text) in Tags::new(rest) {
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
        for (_, text) in Tags::new(rest) {
            append(&mut body, text);
        }
    }
    [Cow::Borrowed(id), Cow::Borrowed(""), Cow::Owned(title), Cow::Owned(body)]
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

/// A crawled page: the first line of the head is its address, the rest of it the server's; then HTML.
fn page<'a>(id: &'a str, rest: &'a str) -> Row<'a> {
    let (head, html) = match (find(rest.as_bytes(), b"<DOCHDR>"), find(rest.as_bytes(), b"</DOCHDR>")) {
        (Some(start), Some(end)) if start + 8 <= end => (&rest[start + 8..end], &rest[end + 9..]),
        _ => ("", rest),
    };
    let url = head.split_ascii_whitespace().next().unwrap_or_default();
    let mut most = html.len().min(MOST_HTML);
    while !html.is_char_boundary(most) {
        most -= 1;
    }
    let (title, body) = html_text(&html[..most]);
    [Cow::Borrowed(id), Cow::Borrowed(url), Cow::Owned(title), Cow::Owned(body)]
}

/// Title and visible text of an HTML page, runs of white space as one space.
pub(crate) fn html_text(html: &str) -> (String, String) {
    let page = Html::parse_document(html);
    let (mut title, mut body) = (String::new(), String::new());
    // Cannot fail: the selector is a constant, and an error would only leave the title empty.
    if let Ok(selector) = Selector::parse("title")
        && let Some(element) = page.select(&selector).next()
    {
        element.text().for_each(|text| words(&mut title, text));
    }
    // Depth first without recursion: broken pages nest thousands deep.
    let mut next = Some(page.tree.root());
    while let Some(node) = next {
        let unseen = match node.value() {
            Node::Text(text) => {
                words(&mut body, text);
                false
            }
            Node::Element(element) => UNSEEN.contains(&element.name()),
            _ => false,
        };
        let child = if unseen { None } else { node.first_child() };
        let mut up = Some(node);
        next = child.or_else(|| {
            while let Some(at) = up {
                if let Some(sibling) = at.next_sibling() {
                    return Some(sibling);
                }
                up = at.parent();
            }
            None
        });
    }
    (title, body)
}

fn words(out: &mut String, text: &str) {
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
}
