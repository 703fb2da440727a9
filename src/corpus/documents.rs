//! Documents as MS MARCO ships them (version 1: docid, url, title, body, tab-separated, no quoting, no
//! header), plain or gzipped, one at a time: the file has 22 GB.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::lines::Lines;
pub use super::lines::{ReadCounts, ReadOptions};
use crate::{Error, Result};

/// A part of a document that can be read by the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Field {
    Url,
    Title,
    Body,
}

impl FromStr for Field {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "url" => Ok(Self::Url),
            "title" => Ok(Self::Title),
            "body" => Ok(Self::Body),
            _ => Err(Error::config(format!("document field {text:?}: must be url, title or body"))),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Url => "url",
            Self::Title => "title",
            Self::Body => "body",
        })
    }
}

/// One document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub id: String,
    /// The chosen fields that are not empty, joined with one space; empty where all are.
    pub text: String,
}

/// Calls `each` with every document of the file, in its order. Rows of fewer than four columns are
/// damaged, bytes that are not UTF-8 are replaced; both are counted.
///
/// # Errors
/// `Error::Data` where the file cannot be read, holds no document, or `each` fails.
pub fn read_documents(
    path: &Path,
    fields: &[Field],
    each: impl FnMut(Document) -> Result<()>,
) -> Result<ReadCounts> {
    read_documents_with(path, fields, &ReadOptions::default(), each)
}

/// As `read_documents`, with `--strict` and progress.
///
/// # Errors
/// As `read_documents`; with `strict` also for the first fault.
pub fn read_documents_with(
    path: &Path,
    fields: &[Field],
    options: &ReadOptions,
    mut each: impl FnMut(Document) -> Result<()>,
) -> Result<ReadCounts> {
    let mut lines = Lines::open(path, options)?;
    while let Some(line) = lines.next()? {
        if lines.at_first() && line.starts_with('{') {
            return Err(Error::data(format!(
                "{}: holds JSON lines, as MS MARCO version 2 does; the reader needs version 1: \
                 docid, url, title, body, tab-separated",
                path.display()
            )));
        }
        let mut columns = line.splitn(4, '\t');
        let (Some(id), Some(url), Some(title), Some(body)) =
            (columns.next(), columns.next(), columns.next(), columns.next())
        else {
            let found = line.split('\t').count();
            lines.damaged(&format!("{found} columns where docid, url, title, body are due"))?;
            continue;
        };
        let id = id.trim();
        if id.is_empty() || id.contains(char::is_whitespace) {
            lines.damaged("the document id is empty or holds a space")?;
            continue;
        }
        let chosen = fields.iter().map(|field| match field {
            Field::Url => url.trim(),
            Field::Title => title.trim(),
            Field::Body => body.trim(),
        });
        let text = chosen.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ");
        lines.counts.kept += 1;
        each(Document { id: id.to_owned(), text })?;
    }
    let counts = lines.counts;
    if counts.kept == 0 {
        return Err(nothing(path, &counts, "docid, url, title, body"));
    }
    Ok(counts)
}

/// The error of a file without a usable row.
pub(super) fn nothing(path: &Path, counts: &ReadCounts, columns: &str) -> Error {
    let path = path.display();
    match counts.shown.first() {
        None => Error::data(format!("{path}: is empty; rows of {columns} are due, tab-separated")),
        Some(first) => Error::data(format!(
            "{path}: none of its {} rows can be used; {columns} are due, tab-separated. First: {first}",
            counts.rows
        )),
    }
}
