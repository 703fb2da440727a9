//! Lines of qrels and runs, a million of them in a fraction of a second: the bytes are cut at line ends,
//! all threads parse pieces without copying, and lines are gathered by topic. Only an error looks for
//! its line number.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use crate::files::{self, Fate, Ledger};

/// Bytes in which the ends of lines show.
const SHAPE: usize = 1 << 16;

/// What is wrong, and the byte offset where; `usize::MAX` for the whole file.
pub(super) type LineError = (usize, String);

/// Topics in order of appearance, each with what its lines hold, in their order.
pub(super) struct Grouped<'a, T> {
    lists: Vec<(&'a str, Vec<T>)>,
    place: HashMap<&'a str, usize>,
    /// Where every byte of the lines went.
    pub bytes: Ledger,
}

/// What one line says: topic and the rest. `None` for a line that holds nothing.
pub(super) type Parsed<'a, T> = Result<Option<(&'a str, T)>, String>;

/// Parses every line of `bytes` with all threads. Blank lines and lines that begin with `#` are left out.
/// The error is the first one in the file.
pub(super) fn grouped<'a, T: Send>(
    bytes: &'a [u8],
    parse: impl Fn(&'a str) -> Parsed<'a, T> + Sync,
) -> Result<Grouped<'a, T>, LineError> {
    // More pieces than threads, as another file may be read at the same time.
    let pieces = pieces(bytes, 4 * rayon::current_num_threads());
    let parsed = pieces.into_par_iter().map(|(start, piece)| parse_piece(start, piece, &parse));
    let mut all = Grouped { lists: Vec::new(), place: HashMap::new(), bytes: Ledger::default() };
    for part in parsed.collect::<Vec<_>>() {
        let part = part?;
        all.bytes.merge(&part.bytes);
        for (topic, list) in part.lists {
            all.add(topic, list);
        }
    }
    debug_assert_eq!(all.bytes.total(), bytes.len() as u64, "{:?}", all.bytes);
    Ok(all)
}

fn parse_piece<'a, T>(
    start: usize,
    piece: &'a [u8],
    parse: impl Fn(&'a str) -> Parsed<'a, T>,
) -> Result<Grouped<'a, T>, LineError> {
    let text = text(piece, start)?;
    let mut groups = Grouped { lists: Vec::new(), place: HashMap::new(), bytes: Ledger::default() };
    let mut at = 0;
    for end in memchr::memchr_iter(b'\n', piece).chain(std::iter::once(piece.len())) {
        let fate = match parse(&text[at..end]).map_err(|error| (start + at, error))? {
            Some((topic, item)) => {
                groups.push(topic, item);
                Fate::Used
            }
            None if text[at..end].trim_ascii().is_empty() => Fate::Blank,
            None => Fate::Comment,
        };
        let next = piece.len().min(end + 1);
        groups.bytes.add(fate, next.saturating_sub(at));
        at = end + 1;
    }
    Ok(groups)
}

impl<'a, T> Grouped<'a, T> {
    fn push(&mut self, topic: &'a str, item: T) {
        // Lines of a topic stand together in nearly every file.
        if let Some((last, list)) = self.lists.last_mut()
            && *last == topic
        {
            list.push(item);
            return;
        }
        self.list(topic).push(item);
    }

    fn add(&mut self, topic: &'a str, items: Vec<T>) {
        let list = self.list(topic);
        if list.is_empty() {
            *list = items;
        } else {
            list.extend(items);
        }
    }

    fn list(&mut self, topic: &'a str) -> &mut Vec<T> {
        let place = *self.place.entry(topic).or_insert_with(|| {
            self.lists.push((topic, Vec::new()));
            self.lists.len() - 1
        });
        &mut self.lists[place].1
    }
}

/// A document that a topic has twice.
pub(super) struct Twice<'a> {
    pub topic: &'a str,
    pub document: &'a str,
}

/// What `make` makes of each topic's lines, with all threads. The error is that of the first topic in the
/// file that has one.
pub(super) fn by_topic<'a, T: Send, U: Send>(
    groups: Grouped<'a, T>,
    make: impl Fn(&'a str, Vec<T>) -> Result<U, Twice<'a>> + Sync,
) -> Result<BTreeMap<String, U>, Twice<'a>> {
    let made = groups.lists.into_par_iter().map(|(topic, list)| Ok((topic.to_owned(), make(topic, list)?)));
    made.collect::<Vec<_>>().into_iter().collect()
}

/// Cuts the bytes at line ends into about `count` pieces, each with its offset.
fn pieces(bytes: &[u8], count: usize) -> Vec<(usize, &[u8])> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    let size = bytes.len() / count.max(1) + 1;
    while start < bytes.len() {
        let least = (start + size).min(bytes.len());
        let end = memchr::memchr(b'\n', &bytes[least..]).map_or(bytes.len(), |at| least + at + 1);
        pieces.push((start, &bytes[start..end]));
        start = end;
    }
    pieces
}

/// The first `N` columns of a line and how many of them there are. Columns are separated by runs of
/// spaces and tabs; a carriage return at the end counts as space, as for trec_eval.
pub(super) fn columns<const N: usize>(line: &str) -> ([&str; N], usize) {
    let bytes = line.as_bytes();
    let (mut columns, mut found, mut at) = ([""; N], 0, 0);
    while found < N {
        while at < bytes.len() && bytes[at].is_ascii_whitespace() {
            at += 1;
        }
        let start = at;
        while at < bytes.len() && !bytes[at].is_ascii_whitespace() {
            at += 1;
        }
        if start == at {
            break;
        }
        columns[found] = &line[start..at];
        found += 1;
    }
    (columns, found)
}

/// The first line that holds anything: where it starts, its columns, and how many of them there are.
pub(super) type FirstLine<'a, const N: usize> = Option<(usize, [&'a str; N], usize)>;

pub(super) fn first_line<const N: usize>(bytes: &[u8]) -> Result<FirstLine<'_, N>, LineError> {
    // Read as one line, all but its first columns would be lost.
    if let Some(what) = files::lone_returns(&bytes[..bytes.len().min(SHAPE)]) {
        return Err((usize::MAX, what.into()));
    }
    let mut offset = 0;
    for line in bytes.split(|&byte| byte == b'\n') {
        let (columns, found) = columns(text(line, offset)?);
        if found > 0 && !columns[0].starts_with('#') {
            return Ok(Some((offset, columns, found)));
        }
        offset += line.len() + 1;
    }
    Ok(None)
}

fn text(bytes: &[u8], start: usize) -> Result<&str, LineError> {
    std::str::from_utf8(bytes)
        .map_err(|error| (start + error.valid_up_to(), "not UTF-8 text; convert the file to UTF-8".into()))
}

/// Where the second line of this topic with this document starts: the one to complain about.
pub(super) fn second<'a, T>(
    bytes: &'a [u8],
    parse: impl Fn(&'a str) -> Parsed<'a, T>,
    is_it: impl Fn(&str, &T) -> bool,
) -> usize {
    let (mut offset, mut seen) = (0, false);
    for line in bytes.split(|&byte| byte == b'\n') {
        if let Ok(Some((topic, item))) = parse(std::str::from_utf8(line).unwrap_or_default())
            && is_it(topic, &item)
        {
            if seen {
                return offset;
            }
            seen = true;
        }
        offset += line.len() + 1;
    }
    usize::MAX
}
