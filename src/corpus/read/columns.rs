//! Rows of tab-separated, space-separated and JSON lines: one parser a syntax, whatever the columns mean. No quoting:
//! query logs are full of lone quotation marks, and a reader that honours them swallows thousands of lines.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::rows::{MOST_COLUMNS, Role, Row, Seen};
use crate::files::{self, Fate};

/// Where the columns of a role are in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tabs {
    /// Columns counted from 0; `None` for one that the file lacks.
    pub(crate) at: [Option<usize>; MOST_COLUMNS],
    /// Columns a line must have ...
    pub(crate) least: usize,
    /// ... and may have; tabs beyond belong to the last column where there is no limit.
    pub(crate) most: Option<usize>,
    /// The first line names the columns.
    pub(crate) header: bool,
    /// What a line should be, for the message of a fault.
    pub(crate) due: String,
}

/// Calls `each` with the number (from 0) and text of each line that is not empty, and notes what became of it.
fn each_line(text: &[u8], seen: &mut Seen, mut each: impl FnMut(u64, &str, &mut Seen) -> Fate) {
    // Checked at once: the library's vector code sees long text, not lines.
    let whole = std::str::from_utf8(text).ok();
    let (mut start, mut number) = (0, 0);
    while start < text.len() {
        let end = memchr::memchr(b'\n', &text[start..]).map_or(text.len(), |at| start + at);
        let mut last = end;
        while last > start && text[last - 1] == b'\r' {
            last -= 1;
        }
        let line = &text[start..last];
        let fate = if line.iter().all(u8::is_ascii_whitespace) {
            Fate::Blank
        } else {
            match whole.and_then(|whole| whole.get(start..last)).map_or_else(|| std::str::from_utf8(line), Ok)
            {
                Ok(line) => each(number, line, seen),
                Err(_) => {
                    seen.not_utf8(number, "holds bytes that are not UTF-8");
                    each(number, &String::from_utf8_lossy(line), seen)
                }
            }
        };
        let next = text.len().min(end + 1);
        seen.row(fate, next - start);
        start = next;
        number += 1;
    }
    seen.lines = memchr::memchr_iter(b'\n', text).count() as u64;
}

/// Rows of tab-separated lines; `first` where the block is the file's first.
pub(crate) fn tabs(
    text: &[u8],
    first: bool,
    role: Role,
    tabs: &Tabs,
    each: &mut impl FnMut(Row<'_>, u64),
) -> Seen {
    let mut seen = Seen::default();
    let columns = tabs.most.unwrap_or(tabs.least);
    let mut heading = first && tabs.header;
    each_line(text, &mut seen, |number, line, seen| {
        if std::mem::take(&mut heading) {
            return Fate::Header;
        }
        let mut parts: [&str; 16] = [""; 16];
        let mut found = 0;
        for part in line.splitn(if tabs.most.is_some() { usize::MAX } else { columns }, '\t') {
            if let Some(place) = parts.get_mut(found) {
                *place = part;
            }
            found += 1;
        }
        if found < tabs.least || tabs.most.is_some_and(|most| found > most) {
            seen.damaged(number, format!("{found} columns, expected {}", tabs.due));
            return Fate::Columns;
        }
        let row: Row<'_> = tabs.at.map(|at| {
            let text = at.map_or("", |at| match parts.get(at) {
                Some(part) => part,
                None => line.split('\t').nth(at).unwrap_or_default(),
            });
            Cow::Borrowed(text.trim())
        });
        pass(role, row, number, seen, each)
    });
    seen
}

/// Rows of columns between spaces and tabs, as TREC's qrels have them; `#` begins a comment.
pub(crate) fn spaces(
    text: &[u8],
    first: bool,
    role: Role,
    tabs: &Tabs,
    each: &mut impl FnMut(Row<'_>, u64),
) -> Seen {
    let mut seen = Seen::default();
    let mut heading = first && tabs.header;
    each_line(text, &mut seen, |number, line, seen| {
        if line.starts_with('#') {
            return Fate::Comment;
        }
        if std::mem::take(&mut heading) {
            return Fate::Header;
        }
        let parts: Vec<&str> = line.split_ascii_whitespace().collect();
        if parts.len() < tabs.least || tabs.most.is_some_and(|most| parts.len() > most) {
            seen.damaged(number, format!("{} columns, expected {}", parts.len(), tabs.due));
            return Fate::Columns;
        }
        let row = tabs.at.map(|at| Cow::Borrowed(at.and_then(|at| parts.get(at).copied()).unwrap_or("")));
        pass(role, row, number, seen, each)
    });
    seen
}

/// Rows of one JSON object a line; `keys` names the columns of the role, in its order.
pub(crate) fn json(text: &[u8], role: Role, keys: &[String], each: &mut impl FnMut(Row<'_>, u64)) -> Seen {
    let mut seen = Seen::default();
    each_line(text, &mut seen, |number, line, seen| {
        let exact;
        let mut object = object(line, keys);
        if matches!(&object, Ok(found) if found.inexact) {
            exact = files::numbers_as_text(line);
            object = self::object(&exact, keys);
        }
        match object {
            Ok(found) if found.first => pass(role, found.row, number, seen, each),
            Ok(_) => {
                seen.damaged(number, format!("no key {:?}", keys.first().map_or("", String::as_str)));
                Fate::Columns
            }
            Err(cause) => {
                let text = cause.to_string();
                let text = text.split(" at line 1").next().unwrap_or_default();
                seen.damaged(number, format!("column {}: {text}", cause.column()));
                Fate::Syntax
            }
        }
    });
    seen
}

fn object<'a>(line: &'a str, keys: &[String]) -> serde_json::Result<Object<'a>> {
    let mut parser = serde_json::Deserializer::from_str(line);
    let object = parser.deserialize_map(Wanted { keys })?;
    parser.end().map(|()| object)
}

fn pass(role: Role, row: Row<'_>, number: u64, seen: &mut Seen, each: &mut impl FnMut(Row<'_>, u64)) -> Fate {
    match role.fault(&row) {
        Some(fault) => {
            seen.damaged(number, fault);
            Fate::Value
        }
        None => {
            seen.kept += 1;
            each(row, number);
            Fate::Used
        }
    }
}

/// What an object holds of the wanted keys.
#[derive(Default)]
struct Object<'a> {
    row: Row<'a>,
    /// The first key was there.
    first: bool,
    /// A number lost digits.
    inexact: bool,
}

/// Takes the wanted keys of an object and looks at no other.
struct Wanted<'k> {
    keys: &'k [String],
}

impl<'de> Visitor<'de> for Wanted<'_> {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut object = Object::default();
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match self.keys.iter().position(|wanted| !wanted.is_empty() && *wanted == key.text) {
                Some(at) => {
                    let value = map.next_value::<Text<'de>>()?;
                    object.row[at] = value.text;
                    object.inexact |= value.inexact;
                    object.first |= at == 0;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(object)
    }
}

/// A string (borrowed where it holds no escape), a number or a truth value as text, null as nothing, or a
/// list of such, joined with spaces.
struct Text<'de> {
    text: Cow<'de, str>,
    /// It is of a number that 64 bits may not hold as it is written.
    inexact: bool,
}

impl<'de> Text<'de> {
    fn of(text: impl Into<Cow<'de, str>>) -> Self {
        Self { text: text.into(), inexact: false }
    }
}

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number or a list of texts")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text::of(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text::of(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Text::of(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Text::of(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Text { inexact: true, ..Text::of(number.to_string()) })
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Text::of(value.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Text::of(""))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let (mut all, mut inexact) = (String::new(), false);
        while let Some(item) = list.next_element::<Text<'de>>()? {
            if !all.is_empty() {
                all.push(' ');
            }
            all.push_str(&item.text);
            inexact |= item.inexact;
        }
        Ok(Text { inexact, ..Text::of(all) })
    }
}
