//! A click log as ORCAS ships it: query id, query, document id, url, tab-separated, no quoting, no
//! header. Files derived from it (`orcas_i`) have a header line and more columns; both are read.

use std::path::Path;

use super::documents::nothing;
use super::lines::{Lines, ReadCounts, ReadOptions};
use crate::Result;

/// One row of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Click<'a> {
    pub query_id: &'a str,
    pub query: &'a str,
    pub document_id: &'a str,
}

/// Calls `each` with every click of the file, in its order.
///
/// # Errors
/// `Error::Data` where the file cannot be read or holds no click, with `strict` for the first fault, and
/// where `each` fails.
pub fn read_clicks(
    path: &Path,
    options: &ReadOptions,
    mut each: impl FnMut(Click<'_>) -> Result<()>,
) -> Result<ReadCounts> {
    let mut lines = Lines::open(path, options)?;
    // Query, document and, without a header that announces more, at most a url.
    let mut most_columns = 4;
    while let Some(line) = lines.next()? {
        let mut columns = line.split('\t').map(str::trim);
        let (Some(query_id), Some(query), Some(document_id)) =
            (columns.next(), columns.next(), columns.next())
        else {
            let found = line.split('\t').count();
            lines.damaged(&format!("{found} columns where qid, query, did, url are due"))?;
            continue;
        };
        let found = 3 + columns.count();
        if lines.at_first() && (query_id, document_id) == ("qid", "did") {
            most_columns = found;
            lines.is_header();
        } else if found > most_columns {
            lines.damaged(&format!("{found} columns where qid, query, did, url are due"))?;
        } else if [query_id, document_id].iter().any(|id| id.is_empty() || id.contains(char::is_whitespace)) {
            lines.damaged("the query id or the document id is empty or holds a space")?;
        } else if query.is_empty() {
            lines.damaged("the query is empty")?;
        } else {
            lines.counts.kept += 1;
            each(Click { query_id, query, document_id })?;
        }
    }
    let counts = lines.counts;
    if counts.kept == 0 {
        return Err(nothing(path, &counts, "qid, query, did, url"));
    }
    Ok(counts)
}
