//! Retrieval and measuring: topics, relevance judgements (qrels), runs, the BM25 first stage, folds,
//! and measures that equal trec_eval's to the last printed digit. It stands alone: nothing here knows
//! a model or a shard, so that what judges a model cannot be bent by it.

pub mod bm25;
pub mod compare;
pub mod evaluate;
pub mod folds;
mod lines;
pub mod measures;
pub mod qrels;
pub mod run;
pub mod significance;
pub mod topics;
mod words;

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A whole file, decompressed when its first bytes say so, without a UTF-8 byte order mark.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    crate::files::packed::read_whole(path)
}

/// As `read_bytes`, refusing what is not UTF-8 with the line where it starts.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_bytes(path)?).map_err(|error| {
        let end = error.utf8_error().valid_up_to();
        at_line(path, line_of(error.as_bytes(), end), "not UTF-8 text; convert the file to UTF-8")
    })
}

/// Refuses to write where something is read from.
///
/// # Errors
/// `Error::Config` when `out` is one of the `inputs`, by whatever name.
pub(crate) fn refuse_input<'a>(out: &Path, inputs: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    let Ok(place) = out.canonicalize() else { return Ok(()) }; // what is not there is no input
    match inputs.into_iter().find(|input| input.canonicalize().is_ok_and(|input| input == place)) {
        None if place.is_dir() => {
            Err(Error::config(format!("{}: is a folder: name a file to write", out.display())))
        }
        None => Ok(()),
        Some(_) => Err(Error::config(format!(
            "{}: is an input and would be overwritten: choose another file",
            out.display()
        ))),
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

/// The error of a file that is wrong at a byte, or as a whole.
fn file_error(path: &Path, bytes: &[u8], (offset, text): lines::LineError) -> Error {
    match offset {
        usize::MAX => Error::data(format!("{}: {text}", path.display())),
        _ => at_line(path, line_of(bytes, offset), &text),
    }
}
