//! Documents of a test collection or of a corpus, one at a time and in the order of their files, whatever
//! their format: `retrieve`, `fine` and `rerank` read what `prepare` reads.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub use super::rows::ReadCounts;
use super::rows::{MOST_COLUMNS, Role, Row};
use super::source::{Position, Source, SourceFiles, Tally};
use crate::Result;
pub use crate::config::Field;
use crate::corpus::ordered;

impl Field {
    /// The field's text in a row of documents.
    pub(crate) fn of<'r>(self, row: &'r Row<'_>) -> &'r str {
        &row[match self {
            Self::Url => 1,
            Self::Title => 2,
            Self::Body => 3,
        }]
    }
}

/// One document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub id: String,
    /// The chosen fields that are not empty, joined with one space; empty where all are.
    pub text: String,
}

/// How files are read.
#[derive(Clone, Default)]
pub struct ReadOptions {
    /// The first fault ends the reading.
    pub strict: bool,
    /// Bytes read so far, for a progress bar.
    pub done: Option<Arc<AtomicU64>>,
}

/// Calls `each` with every document of the sources that `wanted` (asked on any thread) does not refuse by
/// its id, in their order. Rows that cannot be understood are counted and left out, bytes that are not UTF-8
/// replaced.
///
/// # Errors
/// `Error::Data` where a file cannot be read or holds no document, with `strict` for the first fault, and
/// where `each` fails.
pub fn read_documents(
    sources: &[Source],
    fields: &[Field],
    options: &ReadOptions,
    wanted: impl Fn(&str) -> bool + Sync,
    each: impl FnMut(Document) -> Result<()>,
) -> Result<ReadCounts> {
    let make = |row: &Row<'_>| {
        wanted(&row[0]).then(|| Document { id: row[0].to_string(), text: joined(row, fields) })
    };
    let mut files = SourceFiles::open(sources, Role::Documents)?;
    files.pick(&wanted)?;
    read(&files, options, make, each)
}

/// Calls `each` with every row of a role: its columns, in the order in which `Role` lists them.
///
/// # Errors
/// As `read_documents`.
pub fn read_rows(
    sources: &[Source],
    role: Role,
    options: &ReadOptions,
    each: impl FnMut([String; MOST_COLUMNS]) -> Result<()>,
) -> Result<ReadCounts> {
    read(
        &SourceFiles::open(sources, role)?,
        options,
        |row| Some(row.each_ref().map(|column| column.to_string())),
        each,
    )
}

fn read<T: Send>(
    files: &SourceFiles,
    options: &ReadOptions,
    make: impl Fn(&Row<'_>) -> Option<T> + Sync,
    mut each: impl FnMut(T) -> Result<()>,
) -> Result<ReadCounts> {
    let done = options.done.clone().unwrap_or_default();
    let mut tally = Tally::default();
    ordered::run(
        |pass| files.read(Position::default(), &done, pass),
        |piece| {
            let mut rows = Vec::new();
            let block = files.parse(&piece, &mut |row, _| rows.extend(make(&row)));
            Ok((block, rows))
        },
        |(block, rows)| {
            tally.add(files, block, options.strict)?;
            rows.into_iter().try_for_each(&mut each)
        },
    )?;
    if tally.counts.kept == 0 {
        return Err(files.nothing(&tally.counts));
    }
    Ok(tally.counts)
}

fn joined(row: &Row<'_>, fields: &[Field]) -> String {
    let mut text = String::new();
    for part in fields.iter().map(|field| field.of(row).trim()).filter(|part| !part.is_empty()) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(part);
    }
    text
}
