//! Lines of a text file that may be compressed, huge and damaged. Public query logs hold bytes that
//! are no UTF-8, Windows line ends, and rows that lost a column; each is counted and shown, none
//! stops a preparation of hours unless `--strict` asks for it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// A longer line is no row of any of our formats, and must not fill the memory.
const LONGEST: usize = 64 << 20;
/// Faults that are kept word for word.
const SHOWN: usize = 10;

/// What a reader saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Lines with something on them, a header not counted.
    pub rows: u64,
    /// Rows passed on.
    pub kept: u64,
    /// Rows left out because they cannot be understood.
    pub damaged: u64,
    /// Rows with bytes that are not UTF-8, each replaced by U+FFFD; the rows are kept.
    pub not_utf8: u64,
    /// The first ten faults: file, line and reason.
    pub shown: Vec<String>,
}

/// How a file is read.
#[derive(Clone, Default)]
pub struct ReadOptions {
    /// The first fault ends the reading.
    pub strict: bool,
    /// Bytes of the file read so far, for a progress bar.
    pub done: Option<Arc<AtomicU64>>,
}

/// Reads a file line by line, gunzipping where its first bytes say so.
pub(super) struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    buffer: Vec<u8>,
    number: u64,
    strict: bool,
    pub(super) counts: ReadCounts,
}

impl Lines {
    /// # Errors
    /// `Error::Data` where the file cannot be opened.
    pub(super) fn open(path: &Path, options: &ReadOptions) -> Result<Self> {
        let failed = |cause| Error::io("read", path, cause);
        let file = File::open(path).map_err(failed)?;
        let done = options.done.clone().unwrap_or_default();
        let mut reader = BufReader::with_capacity(1 << 20, Counting { file, done });
        let zipped = reader.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn BufRead + Send> = if zipped {
            Box::new(BufReader::with_capacity(1 << 20, flate2::bufread::MultiGzDecoder::new(reader)))
        } else {
            Box::new(reader)
        };
        let strict = options.strict;
        Ok(Self {
            path: path.to_owned(),
            reader,
            buffer: Vec::new(),
            number: 0,
            strict,
            counts: ReadCounts::default(),
        })
    }

    /// The next line that is not empty, without its end, as text; `None` at the end of the file.
    ///
    /// # Errors
    /// `Error::Data` where the file cannot be read further (a damaged .gz), or for a fault with `strict`.
    pub(super) fn next(&mut self) -> Result<Option<String>> {
        loop {
            self.buffer.clear();
            let read = (&mut self.reader).take(LONGEST as u64).read_until(b'\n', &mut self.buffer);
            if read.map_err(|cause| self.broken(&cause))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.number == 1 && self.buffer.starts_with(b"\xef\xbb\xbf") {
                self.buffer.drain(..3);
            }
            if self.buffer.len() == LONGEST && !self.buffer.ends_with(b"\n") {
                self.counts.rows += 1;
                self.skip_line()?;
                self.damaged(&format!("longer than {} MiB", LONGEST >> 20))?;
                continue;
            }
            while matches!(self.buffer.last(), Some(b'\n' | b'\r')) {
                self.buffer.pop();
            }
            if self.buffer.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            self.counts.rows += 1;
            return Ok(Some(match std::str::from_utf8(&self.buffer) {
                Ok(text) => text.to_owned(),
                Err(_) => {
                    self.counts.not_utf8 += 1;
                    self.fault("holds bytes that are not UTF-8")?;
                    String::from_utf8_lossy(&self.buffer).into_owned()
                }
            }));
        }
    }

    /// Counts the current line as damaged.
    ///
    /// # Errors
    /// With `strict`, the fault itself.
    pub(super) fn damaged(&mut self, reason: &str) -> Result<()> {
        self.counts.damaged += 1;
        self.fault(reason)
    }

    /// Takes the current line back out of the counts: it was a header.
    pub(super) fn is_header(&mut self) {
        self.counts.rows -= 1;
    }

    /// Whether the current line is the first of the file.
    pub(super) fn at_first(&self) -> bool {
        self.number == 1
    }

    fn fault(&mut self, reason: &str) -> Result<()> {
        let text = format!("{}, line {}: {reason}", self.path.display(), self.number);
        if self.strict {
            return Err(Error::data(format!("{text} (--strict ends at the first fault)")));
        }
        if self.counts.shown.len() < SHOWN {
            self.counts.shown.push(text);
        }
        Ok(())
    }

    fn skip_line(&mut self) -> Result<()> {
        loop {
            let part = self.reader.fill_buf();
            let part = match part {
                Ok(part) => part,
                Err(cause) => return Err(Error::io("read", &self.path, cause)),
            };
            let (length, end) = match part.iter().position(|&byte| byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (part.len(), part.is_empty()),
            };
            self.reader.consume(length);
            if end {
                return Ok(());
            }
        }
    }

    fn broken(&self, cause: &std::io::Error) -> Error {
        Error::data(format!(
            "{}: cannot be read beyond line {}: {cause}; a cut download? compare its size and checksum",
            self.path.display(),
            self.number
        ))
    }
}

/// Tells how far the raw file is read, so that progress is right for compressed files too.
struct Counting {
    file: File,
    done: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.done.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
