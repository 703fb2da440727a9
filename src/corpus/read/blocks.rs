//! A huge file as blocks of whole records, so that parsing, like tokenising, is shared among all cores. The one
//! thread that reads does nothing but look for the last record end of each mebibyte; a plain file is mapped
//! block by block and never copied, a compressed one is decompressed on the way.
//!
//! Where a block ends depends only on where it begins and on the bytes after, so a reading that goes on
//! from the start of any block meets the same blocks as one that was never interrupted.

use std::io::Read;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::Mmap;

use super::lookup::Picks;
use super::rows::LONGEST;
use super::tags;
use crate::files::{self, BOM, Opened, Packing, broken};
use crate::{Error, Result};

/// Bytes of a block, unless a record is longer: some 10 ms of tokenising, so that no core waits long at
/// the end, and 1,000 handings-over a gigabyte cost nothing.
const BLOCK: usize = 1 << 20;

/// Bytes that two windows share: a record end that lies across them is whole in one.
const SHARED: usize = 2 * tags::LONGEST;

/// What ends a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A line end.
    Line,
    /// `</DOC>`, or the next `<DOC>` at the start of a line where that is missing.
    Document,
}

impl Cut {
    /// The end of the last whole record in `bytes`.
    fn last(self, bytes: &[u8]) -> Option<usize> {
        if self == Self::Line {
            return memchr::memrchr(b'\n', bytes).map(|at| at + 1);
        }
        let mut start = None;
        for at in memchr::memrchr_iter(b'<', bytes) {
            if let Some(end) = tags::closing(bytes, at, b"DOC") {
                return Some(end);
            }
            start = start.or_else(|| starts_document(bytes, at).then_some(at));
        }
        start
    }

    /// The end of the first record in `bytes`.
    fn first(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Line => memchr::memchr(b'\n', bytes).map(|at| at + 1),
            Self::Document => memchr::memchr_iter(b'<', bytes).find_map(|at| {
                tags::closing(bytes, at, b"DOC").or_else(|| starts_document(bytes, at).then_some(at))
            }),
        }
    }
}

/// Whether a document begins there that is not the first of `bytes`.
fn starts_document(bytes: &[u8], at: usize) -> bool {
    at > 0 && bytes[at - 1] == b'\n' && tags::opening(bytes, at, b"DOC").is_some()
}

/// Whole records of one file, in its order.
pub(crate) struct Block {
    bytes: Bytes,
    /// First byte in the (decompressed) file.
    pub(crate) start: u64,
    /// First byte after it.
    pub(crate) end: u64,
    /// A record longer than `LONGEST`, of which nothing is kept.
    pub(crate) too_long: bool,
    /// The file is known to end here.
    pub(crate) last: bool,
}

enum Bytes {
    Mapped(Mmap, usize),
    Owned(Vec<u8>),
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map, length) => &map[..*length],
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl Block {
    /// The records, without the byte order mark that a file may begin with.
    pub(crate) fn text(&self) -> &[u8] {
        if self.start == 0 { self.strip_prefix(BOM).unwrap_or(self) } else { self }
    }
}

/// The blocks of one file.
pub(crate) struct Blocks {
    path: PathBuf,
    cut: Cut,
    at: u64,
    done: Arc<AtomicU64>,
    from: From,
}

enum From {
    Mapped { file: std::fs::File, bytes: u64 },
    Picked { file: std::fs::File, picks: Picks },
    Stream { reader: Box<dyn Read + Send>, carry: Vec<u8> },
}

impl Blocks {
    /// Begins at byte `start` of the (decompressed) file, which must be the start of a block.
    ///
    /// # Errors
    /// `Error::Data` where the file cannot be opened or is shorter than `start`.
    pub(crate) fn open(path: &Path, cut: Cut, start: u64, done: Arc<AtomicU64>) -> Result<Self> {
        let opened = Opened::new(path)?;
        let from = match (opened.packing, opened.bytes) {
            (Packing::Plain, Some(bytes)) => {
                done.fetch_add(start.min(bytes), Ordering::Relaxed);
                From::Mapped { file: opened.file, bytes }
            }
            _ => {
                let mut reader = opened.stream(path, done.clone())?;
                let skipped = std::io::copy(&mut (&mut reader).take(start), &mut std::io::sink());
                if skipped.map_err(|cause| broken(path, 0, &cause))? < start {
                    return Err(Error::data(format!("{}: is shorter than it was", path.display())));
                }
                From::Stream { reader, carry: Vec::new() }
            }
        };
        Ok(Self { path: path.to_owned(), cut, at: start, done, from })
    }

    /// All of a file that cannot be opened again; `reader` gives its text from the start.
    pub(crate) fn once(path: &Path, cut: Cut, reader: Box<dyn Read + Send>) -> Self {
        let from = From::Stream { reader, carry: Vec::new() };
        Self { path: path.to_owned(), cut, at: 0, done: Arc::default(), from }
    }

    /// The lines of a plain file that `picks` names, from the first that begins at `start` or later.
    ///
    /// # Errors
    /// `Error::Data` where the file cannot be opened, `Error::Config` where it is packed.
    pub(crate) fn picked(path: &Path, picks: Picks, start: u64, done: Arc<AtomicU64>) -> Result<Self> {
        let opened = Opened::new(path)?;
        if opened.packing != Packing::Plain || opened.bytes.is_none() {
            return Err(Error::config(format!(
                "{}: a lookup file gives offsets into the uncompressed file; decompress it, or leave the \
                lookup out",
                path.display()
            )));
        }
        let from = From::Picked { file: opened.file, picks };
        Ok(Self { path: path.to_owned(), cut: Cut::Line, at: start, done, from })
    }

    /// # Errors
    /// `Error::Data` where the file cannot be read further.
    pub(crate) fn next(&mut self) -> Result<Option<Block>> {
        let start = self.at;
        let found = match &mut self.from {
            From::Mapped { file, bytes } => {
                let Some(found) = map_block(&self.path, file, self.cut, start, *bytes)? else {
                    return Ok(None);
                };
                self.done.fetch_add(found.length, Ordering::Relaxed);
                found
            }
            From::Picked { file, picks } => {
                let Some((bytes, end)) = picks.block(file, &self.path, start)? else { return Ok(None) };
                self.done.fetch_add(end - start, Ordering::Relaxed);
                Found { bytes: Bytes::Owned(bytes), length: end - start, too_long: false, last: false }
            }
            From::Stream { reader, carry } => {
                let read = read_block(reader, carry, self.cut);
                let Some(found) = read.map_err(|cause| broken(&self.path, start, &cause))? else {
                    return Ok(None);
                };
                found
            }
        };
        let Found { bytes, length, too_long, last } = found;
        self.at += length;
        Ok(Some(Block { bytes, start, end: self.at, too_long, last }))
    }
}

/// A block.
struct Found {
    bytes: Bytes,
    /// Its bytes in the file.
    length: u64,
    too_long: bool,
    last: bool,
}

impl Found {
    fn too_long(length: u64, last: bool) -> Self {
        Self { bytes: Bytes::Owned(Vec::new()), length, too_long: true, last }
    }
}

fn map_block(path: &Path, file: &std::fs::File, cut: Cut, start: u64, bytes: u64) -> Result<Option<Found>> {
    let left = bytes.saturating_sub(start);
    if left == 0 {
        return Ok(None);
    }
    let found = |map, length: usize, last| {
        let bytes = Bytes::Mapped(map, length);
        Ok(Some(Found { bytes, length: length as u64, too_long: false, last }))
    };
    let mut size = BLOCK;
    loop {
        let length = left.min(size as u64) as usize;
        let map = files::map_range(file, path, start, length)?;
        if length as u64 == left && length <= LONGEST {
            return found(map, length, true);
        }
        if let Some(end) = cut.last(&map) {
            return found(map, end, false);
        }
        if size >= LONGEST {
            break;
        }
        size *= 2;
    }
    let mut skipped = (LONGEST - SHARED) as u64;
    while skipped < left {
        let length = (left - skipped).min(BLOCK as u64) as usize;
        let map = files::map_range(file, path, start + skipped, length)?;
        match cut.first(&map) {
            Some(end) => return Ok(Some(Found::too_long(skipped + end as u64, false))),
            None if length as u64 == left - skipped => break,
            None => skipped += (length - SHARED) as u64,
        }
    }
    Ok(Some(Found::too_long(left, true)))
}

fn read_block(reader: &mut impl Read, carry: &mut Vec<u8>, cut: Cut) -> std::io::Result<Option<Found>> {
    let mut bytes = std::mem::take(carry);
    let found = |bytes: Vec<u8>, last| {
        let length = bytes.len() as u64;
        Ok(Some(Found { bytes: Bytes::Owned(bytes), length, too_long: false, last }))
    };
    let mut size = BLOCK;
    loop {
        let want = size.saturating_sub(bytes.len()) as u64;
        let ended = (reader.take(want).read_to_end(&mut bytes)? as u64) < want;
        if ended && bytes.is_empty() {
            return Ok(None);
        }
        if ended && bytes.len() <= LONGEST {
            return found(bytes, true);
        }
        if let Some(end) = cut.last(&bytes[..bytes.len().min(size)]) {
            *carry = bytes.split_off(end);
            return found(bytes, false);
        }
        if size >= LONGEST {
            break;
        }
        size *= 2;
    }
    let mut skipped = bytes.len() as u64;
    let tail = bytes.len().saturating_sub(SHARED);
    let mut window = bytes.split_off(tail);
    drop(bytes);
    loop {
        let kept = window.len();
        let read = reader.take(BLOCK as u64).read_to_end(&mut window)?;
        skipped += read as u64;
        if let Some(end) = cut.first(&window) {
            *carry = window.split_off(end);
            return Ok(Some(Found::too_long(skipped - carry.len() as u64, false)));
        }
        if read < BLOCK {
            return Ok(Some(Found::too_long(skipped, true)));
        }
        window.drain(..kept + read - SHARED);
    }
}
