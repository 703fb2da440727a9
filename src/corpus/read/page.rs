//! A crawled page of the TREC web collections: a head with the address and the server's answer, then HTML in
//! whatever charset the answer or the page itself declares.

use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};
use scraper::{Html, Node, Selector};

use super::tags;

/// Elements of a page that are never read by people.
const UNSEEN: [&str; 6] = ["script", "style", "noscript", "template", "head", "svg"];
/// Bytes of HTML that are parsed: a page beyond is a table or a dump, and GOV2 itself was cut at 256 KiB.
const MOST_HTML: usize = 1 << 20;
/// Bytes of a page in which browsers look for a charset.
const PRESCAN: usize = 1024;

/// What a page holds.
pub(super) struct Page {
    pub(super) url: String,
    pub(super) title: String,
    pub(super) body: String,
    /// Its bytes are not in the charset that they should be in.
    pub(super) fault: Option<String>,
}

impl Page {
    /// `rest` is a document without its DOCNO: head and HTML.
    pub(super) fn read(rest: &[u8]) -> Self {
        let head = tags::find_opening(rest, 0, b"DOCHDR").and_then(|(_, start)| {
            let (end, after) = tags::find_closing(rest, start, b"DOCHDR")?;
            Some((&rest[start..end], &rest[after..]))
        });
        let (head, html) = head.unwrap_or((b"", rest));
        let (head, head_fault) = utf8_or_western(head);
        let url = head.split_ascii_whitespace().next().unwrap_or_default().to_owned();
        let charset = answered(&head).or_else(|| declared(html));
        let (html, fault) = decoded(html, charset);
        let mut most = html.len().min(MOST_HTML);
        while !html.is_char_boundary(most) {
            most -= 1;
        }
        let (title, body) = html_text(&html[..most]);
        Self { url, title, body, fault: fault.or(head_fault) }
    }
}

/// UTF-8, else Windows-1252, of which Latin-1 is a part: what undeclared text of before UTF-8 is.
pub(super) fn utf8_or_western(bytes: &[u8]) -> (Cow<'_, str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Cow::Borrowed(text), None),
        Err(_) => {
            (WINDOWS_1252.decode_without_bom_handling(bytes).0, Some("holds bytes that are not UTF-8".into()))
        }
    }
}

/// HTML as text. A byte order mark tells most, then what is declared. Two declarations are not believed: of a
/// western charset where the bytes are UTF-8, which they are not by accident, and of UTF-16 without a zero byte.
fn decoded<'a>(html: &'a [u8], charset: Option<&'static Encoding>) -> (Cow<'a, str>, Option<String>) {
    if let Some((marked, length)) = Encoding::for_bom(html) {
        return (marked.decode_without_bom_handling(&html[length..]).0, None);
    }
    let charset = charset.filter(|charset| !charset.name().starts_with("UTF-16") || html.contains(&0));
    match charset {
        None => utf8_or_western(html),
        Some(charset) if charset == UTF_8 => utf8_or_western(html),
        Some(charset) => match std::str::from_utf8(html) {
            Ok(text) if charset == WINDOWS_1252 => (Cow::Borrowed(text), None),
            _ => {
                let (text, damaged) = charset.decode_without_bom_handling(html);
                (text, damaged.then(|| format!("holds bytes that are not {}", charset.name())))
            }
        },
    }
}

/// The charset that the server's answer names.
fn answered(head: &str) -> Option<&'static Encoding> {
    let line = head
        .lines()
        .map(str::trim_start)
        .find(|line| line.get(..13).is_some_and(|name| name.eq_ignore_ascii_case("content-type:")))?;
    let at = find_word(line.as_bytes(), b"charset")?;
    label(line[at..].strip_prefix('=').unwrap_or(&line[at..]).as_bytes())
}

/// The charset that the page names in a `<meta>` tag.
fn declared(html: &[u8]) -> Option<&'static Encoding> {
    let html = &html[..html.len().min(PRESCAN)];
    let mut from = 0;
    while let Some(at) = find_word(&html[from..], b"<meta") {
        let tag = &html[from + at..];
        let tag = &tag[..memchr::memchr(b'>', tag).unwrap_or(tag.len())];
        let charset = find_word(tag, b"charset").and_then(|at| label(&tag[at..]));
        if let Some(charset) = charset {
            // Whoever could read the tag does not read UTF-16.
            return Some(charset.output_encoding());
        }
        from += at;
    }
    None
}

/// The first byte after a word, in any case.
fn find_word(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|found| found.eq_ignore_ascii_case(word)).map(|at| at + word.len())
}

/// The charset of ` = "NAME"`.
fn label(text: &[u8]) -> Option<&'static Encoding> {
    let text = text.trim_ascii_start();
    let text = text.strip_prefix(b"=").unwrap_or(text).trim_ascii_start();
    let text = text.strip_prefix(b"\"").or(text.strip_prefix(b"'")).unwrap_or(text);
    let end = text.iter().position(|byte| byte.is_ascii_whitespace() || b"\"';,/>".contains(byte));
    Encoding::for_label_no_replacement(&text[..end.unwrap_or(text.len())])
}

/// Title and visible text of an HTML page, runs of white space as one space.
fn html_text(html: &str) -> (String, String) {
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
