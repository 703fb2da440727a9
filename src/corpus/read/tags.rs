//! Tags of SGML in bytes of any encoding: `<DOC>`, `<doc >`, `<DOC id="1">`, `</DOC>`. They are looked for and never
//! matched, because collections are not well-formed.

/// Bytes of the longest tag; a `<` with no `>` this near begins none.
pub(crate) const LONGEST: usize = 1024;
/// Blanks before a tag that still stands at the start of its line.
const INDENT: usize = 64;

/// The first byte after the tag `<NAME>`, in any case and with any attributes, that begins at `at`.
pub(crate) fn opening(bytes: &[u8], at: usize, name: &[u8]) -> Option<usize> {
    let after = named(bytes, at + 1, name)?;
    match bytes.get(after)? {
        b'>' => return Some(after + 1),
        byte if byte.is_ascii_whitespace() => {}
        _ => return None,
    }
    let near = &bytes[after..(at + LONGEST).min(bytes.len())];
    let end = memchr::memchr2(b'>', b'<', near).filter(|&end| near[end] == b'>')?;
    // `<doc and more>` is text, not a tag.
    let is_tag = near[..end].iter().all(u8::is_ascii_whitespace) || near[..end].contains(&b'=');
    is_tag.then_some(after + end + 1)
}

/// The first byte after the tag `</NAME>` that begins at `at`.
pub(crate) fn closing(bytes: &[u8], at: usize, name: &[u8]) -> Option<usize> {
    let after = named(bytes, (*bytes.get(at + 1)? == b'/').then_some(at + 2)?, name)?;
    let near = &bytes[after..(at + LONGEST).min(bytes.len())];
    let end = near.iter().position(|byte| !byte.is_ascii_whitespace())?;
    (near[end] == b'>').then_some(after + end + 1)
}

fn named(bytes: &[u8], at: usize, name: &[u8]) -> Option<usize> {
    bytes.get(at..at + name.len())?.eq_ignore_ascii_case(name).then_some(at + name.len())
}

/// Whether nothing but blanks stands before `at` in its line.
pub(crate) fn starts_line(bytes: &[u8], at: usize) -> bool {
    let before = &bytes[at.saturating_sub(INDENT)..at];
    let before = before.iter().rev().find(|byte| !matches!(byte, b' ' | b'\t'));
    matches!(before, Some(b'\n' | b'\r'))
}

/// Where the first opening tag of that name begins, and the first byte after it.
pub(crate) fn find_opening(bytes: &[u8], from: usize, name: &[u8]) -> Option<(usize, usize)> {
    find(bytes, from, |at| opening(bytes, at, name))
}

/// Where the first closing tag of that name begins, and the first byte after it.
pub(crate) fn find_closing(bytes: &[u8], from: usize, name: &[u8]) -> Option<(usize, usize)> {
    find(bytes, from, |at| closing(bytes, at, name))
}

fn find(bytes: &[u8], from: usize, end: impl Fn(usize) -> Option<usize>) -> Option<(usize, usize)> {
    memchr::memchr_iter(b'<', &bytes[from..]).find_map(|at| Some((from + at, end(from + at)?)))
}

/// The value of an attribute, in quotes or without, of what stands inside a tag.
pub(crate) fn attribute<'a>(inside: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = inside;
    loop {
        let (before, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let quote = after.chars().next().filter(|&c| c == '"' || c == '\'');
        let (value, next) = match quote {
            Some(quote) => after[1..].split_once(quote)?,
            None => after.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((after, "")),
        };
        let found = before.split_ascii_whitespace().next_back();
        if found.is_some_and(|found| found.eq_ignore_ascii_case(name)) {
            return Some(value.trim());
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_every_spelling() {
        for tag in ["<DOC>", "<doc>", "<DOC >", "<DOC\n>", "<DOC id=\"a b\">", "<Doc id=7 type='x'>"] {
            let text = format!("{tag}rest");
            assert_eq!(opening(text.as_bytes(), 0, b"DOC"), Some(tag.len()), "{tag}");
        }
        for text in
            ["<DOCNO>", "<DOC", "<DOC ", "<DOC and more>", "<DOC <b>", "< DOC>", "</DOC>", "DOC>", "<"]
        {
            assert_eq!(opening(text.as_bytes(), 0, b"DOC"), None, "{text}");
        }
        for tag in ["</DOC>", "</doc>", "</DOC >", "</DOC\r\n>"] {
            assert_eq!(closing(tag.as_bytes(), 0, b"DOC"), Some(tag.len()), "{tag}");
        }
        for text in ["</DOCNO>", "</DOC", "<DOC>", "</DOC x>", "<", "</"] {
            assert_eq!(closing(text.as_bytes(), 0, b"DOC"), None, "{text}");
        }
        let far = format!("<DOC id={}>", "x".repeat(LONGEST));
        assert_eq!(opening(far.as_bytes(), 0, b"DOC"), None);
    }

    #[test]
    fn attributes_of_every_spelling() {
        let inside = " type = 'a=b' id=\"A-1\" x=7 docid=' 9 '";
        for (name, value) in [("type", "a=b"), ("ID", "A-1"), ("x", "7"), ("docid", "9")] {
            assert_eq!(attribute(inside, name), Some(value));
        }
        assert_eq!(attribute(inside, "y"), None);
        assert_eq!(attribute("id=\"open", "id"), None);
    }

    #[test]
    fn starts_of_lines() {
        assert!(starts_line(b"a\n<", 2) && starts_line(b"a\r\n \t<", 5));
        assert!(!starts_line(b"<", 0) && !starts_line(b"  <", 2) && !starts_line(b"\na <", 3));
    }
}
