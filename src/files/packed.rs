//! Files as users have them: plain, .gz, .zst or unix-compressed, told apart by their first bytes and
//! never by their names, because TREC disks call compressed files `.0z` and downloads lose their endings.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::ledger::{Fate, Ledger};
use super::strange::wide;
use super::unlzw::{self, Unlzw};
use crate::{Error, Result};

/// UTF-8's byte order mark, which Windows programs put at the start of a file.
pub const BOM: &[u8] = b"\xef\xbb\xbf";

/// How the bytes of a file are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
    Compress,
}

impl Packing {
    /// By the first bytes of the file.
    pub fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [a, b, ..] if [*a, *b] == unlzw::MAGIC => Self::Compress,
            _ => Self::Plain,
        }
    }
}

/// A file that has been opened and looked at.
pub struct Opened {
    pub file: File,
    pub packing: Packing,
    /// Bytes on disk where it is an ordinary file, which can then be mapped; `None` for a pipe.
    pub bytes: Option<u64>,
    /// First bytes of a pipe, which cannot be read again.
    head: Vec<u8>,
}

impl Opened {
    /// # Errors
    /// `Error::Data` where the file cannot be opened, or is a pipe that was opened before.
    pub fn new(path: &Path) -> Result<Self> {
        let failed = |cause| Error::io("read", path, cause);
        // Before it is opened: opening a pipe whose writer has gone waits for ever.
        claim(path, &path.metadata().map_err(failed)?)?;
        let mut file = File::open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        let mut head = Vec::new();
        (&mut file).take(4).read_to_end(&mut head).map_err(failed)?;
        let packing = Packing::of(&head);
        let bytes = about.is_file().then_some(about.len());
        if bytes.is_some() {
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
            head.clear();
        }
        Ok(Self { file, packing, bytes, head })
    }

    /// The text of the file from its start; `done` counts bytes on disk.
    ///
    /// # Errors
    /// `Error::Data` for a damaged head.
    pub fn stream(self, path: &Path, done: Arc<AtomicU64>) -> Result<Box<dyn Read + Send>> {
        let failed = |cause| Error::io("decompressed", path, cause);
        let raw = Cursor::new(self.head).chain(Counting { file: self.file, done });
        let raw = BufReader::with_capacity(1 << 18, raw);
        Ok(match self.packing {
            Packing::Plain => Box::new(raw),
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
            Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(raw).map_err(failed)?),
            Packing::Compress => Box::new(BufReader::new(Unlzw::new(raw).map_err(failed)?)),
        })
    }
}

/// Whether what is read from there is gone from there: a pipe or a socket.
fn gives_once(about: &Metadata) -> bool {
    about.file_type().is_fifo() || about.file_type().is_socket()
}

/// For work that reads a file more than once.
///
/// # Errors
/// `Error::Data` for a pipe.
pub fn refuse_pipe(path: &Path) -> Result<()> {
    // What is not there is told by whoever opens it.
    if !path.metadata().is_ok_and(|about| gives_once(&about)) {
        return Ok(());
    }
    Err(Error::data(format!(
        "{}: is a pipe, and this command reads the file more than once; write it to a file and name that",
        path.display()
    )))
}

/// Every pipe is read once in the life of the process: a second reader would miss what the first one took, or wait
/// for a writer that has gone.
fn claim(path: &Path, about: &Metadata) -> Result<()> {
    static CLAIMED: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    if gives_once(about) && !claimed.insert((about.dev(), about.ino())) {
        return Err(Error::data(format!(
            "{}: is a pipe and is needed twice, but gives its bytes once; write them to a file and name that",
            path.display()
        )));
    }
    Ok(())
}

/// A file whose first bytes have been looked at.
pub struct Begun {
    /// The first bytes of its text, without a byte order mark.
    pub head: Vec<u8>,
    /// All of its text, where the file cannot be opened again.
    pub whole: Option<Box<dyn Read + Send>>,
}

/// Looks at the first `most` bytes of the text of a file.
///
/// # Errors
/// `Error::Data` where it cannot be read.
pub fn begin(path: &Path, most: usize) -> Result<Begun> {
    let opened = Opened::new(path)?;
    let again = opened.bytes.is_some();
    let mut stream = opened.stream(path, Arc::default())?;
    let mut head = Vec::new();
    let read = (&mut stream).take(most as u64).read_to_end(&mut head);
    read.map_err(|cause| broken(path, head.len() as u64, &cause))?;
    let whole = (!again).then(|| Box::new(Cursor::new(head.clone()).chain(stream)) as Box<dyn Read + Send>);
    if head.starts_with(BOM) {
        head.drain(..BOM.len());
    }
    Ok(Begun { head, whole })
}

/// The error for a file that ends early or cannot be decoded.
pub fn broken(path: &Path, at: u64, cause: &std::io::Error) -> Error {
    Error::data(format!(
        "{}: cannot be read beyond byte {at} of its text: {cause}; if it was downloaded, compare its size \
        and checksum",
        path.display()
    ))
}

/// The text of a whole small file without a byte order mark, and an account that has only that mark yet.
///
/// # Errors
/// `Error::Data` where it cannot be read or decompressed, or is UTF-16.
pub fn read_counted(path: &Path) -> Result<(Vec<u8>, Ledger)> {
    let opened = Opened::new(path)?;
    let action = if opened.packing == Packing::Plain { "read" } else { "decompressed" };
    let mut text = Vec::with_capacity(opened.bytes.unwrap_or(0) as usize);
    let read = opened.stream(path, Arc::default())?.read_to_end(&mut text);
    read.map_err(|cause| Error::io(action, path, cause))?;
    if let Some(what) = wide(&text) {
        return Err(Error::data(format!("{}: {what}", path.display())));
    }
    let mut ledger = Ledger::default();
    if text.starts_with(BOM) {
        text.drain(..BOM.len());
        ledger.add(Fate::Mark, BOM.len());
    }
    Ok((text, ledger))
}

/// Counts the bytes read of the raw file, so that progress is right for compressed files too.
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
