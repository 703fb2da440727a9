//! Retrieval and measuring: topics, relevance judgements (qrels), runs, the BM25 first stage, folds, and
//! measures that equal trec_eval's to the last printed digit. It stands alone: nothing here knows a model or
//! a shard, so that no model can influence how it is judged.

pub mod analysis;
pub mod bm25;
pub mod compare;
pub mod evaluate;
pub mod folds;
mod lines;
pub mod measures;
pub mod qrels;
pub mod run;
pub(crate) mod segment;
pub mod significance;
pub mod topics;
mod words;

use std::path::Path;

use crate::files::{self, Ledger};
use crate::{Error, Result};

/// The text of a file, unpacked; what is not UTF-8 is refused with the line where it starts.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    Ok(read_text_counted(path)?.0)
}

/// As `read_text`, with an account that has only a byte order mark yet.
fn read_text_counted(path: &Path) -> Result<(String, Ledger)> {
    let (bytes, ledger) = files::read_counted(path)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok((text, ledger)),
        Err(error) => {
            let end = error.utf8_error().valid_up_to();
            let line = line_of(error.as_bytes(), end);
            Err(at_line(path, line, "not UTF-8 text; convert the file to UTF-8"))
        }
    }
}

/// The error of one line: `path:line: text`.
pub(crate) fn at_line(path: &Path, line: usize, text: &str) -> Error {
    Error::data(format!("{}:{line}: {text}", path.display()))
}

/// The line (from 1) in which the byte at `offset` lies. Only errors ask, so readers carry offsets
/// and count no lines.
pub(crate) fn line_of(bytes: &[u8], offset: usize) -> usize {
    1 + bytes[..offset.min(bytes.len())].iter().filter(|&&byte| byte == b'\n').count()
}

/// The error of a file with a fault at a byte, or as a whole.
fn file_error(path: &Path, bytes: &[u8], (offset, text): lines::LineError) -> Error {
    match offset {
        usize::MAX => Error::data(format!("{}: {text}", path.display())),
        _ => at_line(path, line_of(bytes, offset), &text),
    }
}
