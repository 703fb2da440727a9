//! Runs: ranked lists of documents a topic, in trec_eval's order. That order compares scores as f32
//! and breaks ties by document id descending, so a run that is written with f64 scores, or with ties
//! in another order, is measured in an order that its author never meant. `insert` therefore settles
//! the order once, in scores that f32 keeps apart; what is measured in memory is what is measured
//! after writing.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rayon::prelude::*;

use super::{at_line, line_of, next_column, read_bytes};
use crate::{Error, Result};

/// One retrieved document. A score is whatever its run's author chose: only its order counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    pub doc: String,
    pub score: f64,
}

/// What the rank column of one hit said. Only the MS MARCO measure asks for it.
pub(crate) const NO_RANK: u32 = u32::MAX;

/// The hits of one topic in trec_eval's order and, beside them, their rank column.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RankedList {
    pub hits: Vec<Hit>,
    /// `NO_RANK` where the column is not a number.
    pub ranks: Vec<u32>,
}

/// topic -> ranked documents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    topics: BTreeMap<String, RankedList>,
    tag: Option<String>,
}

/// One line of a file, borrowed from it.
struct Line<'a> {
    topic: &'a str,
    doc: &'a str,
    rank: u32,
    score: f64,
    /// Byte offset of the line, from which an error finds the line number.
    offset: usize,
}

/// A file's form, decided by its first line.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// `topic Q0 document rank score tag`.
    Trec,
    /// MS MARCO: `topic document rank`; the score is minus the rank.
    Marco,
}

/// What is wrong, and the byte offset where.
type LineError = (usize, String);

/// Descending score as f32, then descending document id in byte order (trec_eval 9.0.8).
pub fn order_f32(a: (f64, &str), b: (f64, &str)) -> Ordering {
    (b.0 as f32).partial_cmp(&(a.0 as f32)).unwrap_or(Ordering::Equal).then_with(|| b.1.cmp(a.1))
}

/// Descending score as f64, then descending document id in byte order (trec_eval 10.0).
pub fn order_f64(a: (f64, &str), b: (f64, &str)) -> Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then_with(|| b.1.cmp(a.1))
}

impl Run {
    /// Reads a run of six columns (more are ignored, as trec_eval does) or MS MARCO's three, plain or
    /// gzipped. Blank lines and lines that begin with `#` are skipped. Errors: too few columns, a
    /// score that is no number, a document twice in a topic, no line at all.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_bytes(path)?;
        Self::parse(&bytes).map_err(|(offset, text)| match offset {
            usize::MAX => Error::data(format!("{}: {text}", path.display())),
            _ => at_line(path, line_of(&bytes, offset), &text),
        })
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, LineError> {
        let Some(form) = form(bytes)? else {
            return Err((usize::MAX, "no line in it; a run has one line a retrieved document".into()));
        };
        let parts = chunks(bytes, rayon::current_num_threads())
            .into_par_iter()
            .map(|(start, chunk)| parse_chunk(chunk, start, form))
            .collect::<Vec<_>>();
        let (mut topics, mut tag) = (Grouped::default(), None);
        for part in parts {
            let (lines, last_tag) = part?;
            lines.into_iter().for_each(|line| topics.push(line));
            tag = last_tag.or(tag);
        }
        let lists = topics
            .lists
            .into_par_iter()
            .map(|(topic, lines)| Ok((topic.to_owned(), rank_lines(topic, lines)?)))
            .collect::<std::result::Result<Vec<_>, LineError>>()?;
        Ok(Self { topics: lists.into_iter().collect(), tag: tag.map(str::to_owned) })
    }

    /// Adds a topic. Hits are ordered by score as f64, then by document id descending; scores become
    /// f32 values that keep this order apart: a score that would tie with a higher one, or pass it,
    /// goes down to the next f32 below that one. Scores that are equal as f64 stay equal. Errors: a
    /// topic that is there, a document twice, a score that is NaN or beyond f32, an id that is empty
    /// or holds white space.
    pub fn insert(&mut self, topic: impl Into<String>, mut hits: Vec<Hit>) -> Result<()> {
        let topic = topic.into();
        let spoilt = |id: &str| id.is_empty() || id.contains(|c: char| c.is_ascii_whitespace());
        if spoilt(&topic) {
            return Err(Error::data(format!(
                "topic '{topic}': an id in a run is not empty and has no space"
            )));
        }
        if self.topics.contains_key(&topic) {
            return Err(Error::data(format!("topic '{topic}' is in the run twice")));
        }
        let mut seen = HashSet::with_capacity(hits.len());
        for hit in &hits {
            if !(hit.score as f32).is_finite() {
                let (doc, score) = (&hit.doc, hit.score);
                return Err(Error::data(format!("topic '{topic}', document '{doc}': the score is {score}")));
            }
            if spoilt(&hit.doc) {
                let doc = &hit.doc;
                return Err(Error::data(format!(
                    "topic '{topic}': document id '{doc}' is empty or has a space"
                )));
            }
            if !seen.insert(hit.doc.as_str()) {
                return Err(Error::data(format!("document '{}' is in topic '{topic}' twice", hit.doc)));
            }
        }
        hits.sort_unstable_by(|a, b| order_f64((a.score, &a.doc), (b.score, &b.doc)));
        keep_apart(&mut hits);
        let ranks = (1..=hits.len() as u32).collect();
        self.topics.insert(topic, RankedList { hits, ranks });
        Ok(())
    }

    /// The hits of a topic in trec_eval's order.
    pub fn get(&self, topic: &str) -> Option<&[Hit]> {
        self.topics.get(topic).map(|list| list.hits.as_slice())
    }

    pub(crate) fn list(&self, topic: &str) -> Option<&RankedList> {
        self.topics.get(topic)
    }

    /// The topics in byte order.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &str> {
        self.topics.keys().map(String::as_str)
    }

    /// The run tag of the file's last line; `None` for a run made in memory or of three columns.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Joins the topics of another run, as the test runs of folds are joined. Error: a topic in both.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        for (topic, list) in other.topics {
            if self.topics.contains_key(&topic) {
                return Err(Error::data(format!("topic '{topic}' is in two of the runs that are joined")));
            }
            self.topics.insert(topic, list);
        }
        Ok(())
    }

    /// Writes `topic Q0 document rank score tag`, topics in byte order, scores as the shortest decimal
    /// that is the same f32 again. Written beside its place and renamed, so a reader never sees half a
    /// run. Error: a tag that is empty or holds white space.
    pub fn write(&self, path: &Path, tag: &str) -> Result<()> {
        if tag.is_empty() || tag.contains(char::is_whitespace) {
            return Err(Error::config(format!("the run tag '{tag}' must be one word")));
        }
        let mut text = String::new();
        for topic in self.topics.keys() {
            self.lines(topic, tag, &mut text);
        }
        write_renamed(path, text.as_bytes())
    }

    /// Appends a topic's lines as `write` has them.
    pub fn lines(&self, topic: &str, tag: &str, text: &mut String) {
        use std::fmt::Write as _;
        for (place, hit) in self.get(topic).unwrap_or_default().iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{topic} Q0 {} {} {} {tag}", hit.doc, place + 1, decimal(hit.score));
        }
    }
}

/// The text of a score as f32. trec_eval reads decimals as f64 and then rounds to f32; where that
/// second rounding would miss the shortest decimal's f32, the f64 digits of the f32 are written.
fn decimal(score: f64) -> String {
    let single = score as f32;
    let short = single.to_string();
    match short.parse::<f64>() {
        Ok(back) if back as f32 == single => short,
        _ => f64::from(single).to_string(),
    }
}

/// Makes the scores of hits in their order f32 values that say the same order.
fn keep_apart(hits: &mut [Hit]) {
    let mut above: Option<(f64, f32)> = None;
    for hit in hits {
        let single = match above {
            // Equal scores stay equal: their order is the document ids' already.
            Some((score, written)) if score == hit.score => written,
            Some((_, written)) if hit.score as f32 >= written => written.next_down(),
            _ => hit.score as f32,
        };
        above = Some((hit.score, single));
        hit.score = f64::from(single);
    }
}

/// Writes a file beside its final place and renames it.
pub(crate) fn write_renamed(path: &Path, bytes: &[u8]) -> Result<()> {
    write_renamed_by(path, |file| file.write_all(bytes).map_err(|cause| Error::io("written", path, cause)))
}

/// The same for what comes piece by piece.
pub(crate) fn write_renamed_by(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let fail = |cause| Error::io("written", path, cause);
    // Temporary files are private to their owner; a result is as readable as the user's umask says.
    let mode = std::fs::Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(folder).map_err(fail)?;
    write(&mut file)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    Ok(())
}

/// The lines of each topic, topics in order of appearance.
#[derive(Default)]
struct Grouped<'a> {
    lists: Vec<(&'a str, Vec<Line<'a>>)>,
    place: HashMap<&'a str, usize>,
}

impl<'a> Grouped<'a> {
    fn push(&mut self, line: Line<'a>) {
        // Lines of a topic stand together in nearly every file.
        if let Some((topic, lines)) = self.lists.last_mut()
            && *topic == line.topic
        {
            lines.push(line);
            return;
        }
        let place = *self.place.entry(line.topic).or_insert_with(|| {
            self.lists.push((line.topic, Vec::with_capacity(1024)));
            self.lists.len() - 1
        });
        self.lists[place].1.push(line);
    }
}

/// The form of the first line that holds anything; `None` for a file without one.
fn form(bytes: &[u8]) -> std::result::Result<Option<Form>, LineError> {
    let mut offset = 0;
    for line in bytes.split(|&byte| byte == b'\n') {
        let (mut rest, mut columns) = (line, 0);
        while let Some(column) = next_column(&mut rest) {
            if columns == 0 && column[0] == b'#' {
                break;
            }
            columns += 1;
        }
        match columns {
            0 => offset += line.len() + 1,
            3 => return Ok(Some(Form::Marco)),
            6.. => return Ok(Some(Form::Trec)),
            _ => return Err((offset, wrong_columns(columns))),
        }
    }
    Ok(None)
}

fn wrong_columns(found: usize) -> String {
    format!(
        "{found} columns; a run has six (topic, Q0, document, rank, score, tag), MS MARCO's form three \
         (topic, document, rank)"
    )
}

/// Cuts the bytes at line ends into about `count` pieces, each with its offset.
fn chunks(bytes: &[u8], count: usize) -> Vec<(usize, &[u8])> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    let size = bytes.len() / count.max(1) + 1;
    while start < bytes.len() {
        let least = (start + size).min(bytes.len());
        let end =
            bytes[least..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| least + at + 1);
        pieces.push((start, &bytes[start..end]));
        start = end;
    }
    pieces
}

type Parsed<'a> = (Vec<Line<'a>>, Option<&'a str>);

fn parse_chunk(chunk: &[u8], start: usize, form: Form) -> std::result::Result<Parsed<'_>, LineError> {
    // A typical line has 40 bytes or more.
    let (mut lines, mut tag) = (Vec::with_capacity(chunk.len() / 40), None);
    let mut offset = start;
    for text in chunk.split(|&byte| byte == b'\n') {
        if let Some((line, last)) = parse_line(text, offset, form).map_err(|error| (offset, error))? {
            lines.push(line);
            tag = last;
        }
        offset += text.len() + 1;
    }
    Ok((lines, tag))
}

type ParsedLine<'a> = Option<(Line<'a>, Option<&'a str>)>;

fn parse_line(text: &[u8], offset: usize, form: Form) -> std::result::Result<ParsedLine<'_>, String> {
    let mut rest = text;
    let mut columns = [&text[..0]; 6];
    let mut found = 0;
    while found < 6
        && let Some(column) = next_column(&mut rest)
    {
        columns[found] = column;
        found += 1;
    }
    if found == 0 || columns[0].starts_with(b"#") {
        return Ok(None);
    }
    let utf8 = |bytes| std::str::from_utf8(bytes).map_err(|_| "not UTF-8 text".to_owned());
    let topic = utf8(columns[0])?;
    match (form, found) {
        (Form::Trec, 6) => {
            let (score, tag) = (utf8(columns[4])?, utf8(columns[5])?);
            let score = match score.parse::<f64>() {
                Ok(number) if !number.is_nan() => number,
                _ => return Err(format!("the score '{score}' is not a number")),
            };
            let line = Line { topic, doc: utf8(columns[2])?, rank: integer(columns[3]), score, offset };
            Ok(Some((line, Some(tag))))
        }
        (Form::Marco, 3) => {
            let (doc, rank) = (utf8(columns[1])?, integer(columns[2]));
            if rank == NO_RANK {
                return Err(format!("the rank '{}' is not a number", utf8(columns[2])?));
            }
            Ok(Some((Line { topic, doc, rank, score: -f64::from(rank), offset }, None)))
        }
        _ => Err(wrong_columns(found)),
    }
}

/// A rank, `NO_RANK` for anything else.
fn integer(digits: &[u8]) -> u32 {
    std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(NO_RANK)
}

/// Puts the lines of one topic in trec_eval's order, refusing a document that is there twice.
fn rank_lines(topic: &str, mut lines: Vec<Line<'_>>) -> std::result::Result<RankedList, LineError> {
    let mut seen = HashSet::with_capacity(lines.len());
    for line in &lines {
        if !seen.insert(line.doc) {
            let doc = line.doc;
            return Err((
                line.offset,
                format!("document '{doc}' is in topic '{topic}' twice; keep one line"),
            ));
        }
    }
    lines.sort_unstable_by(|a, b| order_f32((a.score, a.doc), (b.score, b.doc)));
    Ok(RankedList {
        ranks: lines.iter().map(|line| line.rank).collect(),
        hits: lines.iter().map(|line| Hit { doc: line.doc.to_owned(), score: line.score }).collect(),
    })
}
