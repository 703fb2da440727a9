//! `msmarco-docs-lookup.tsv`: where each document begins in the 22 GB of `msmarco-docs.tsv`. A re-ranker needs
//! some thousand documents of 3.2 million; with this file they are gone to instead of looked for.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::rows::LONGEST;
use crate::files::Opened;
use crate::{Error, Result};

/// Bytes of a block of picked lines.
const BLOCK: usize = 1 << 20;
/// Bytes that are read at once; a document has 7 KB on average.
const STEP: usize = 16 << 10;

/// The wanted lines of a file.
#[derive(Clone, Debug)]
pub(crate) struct Picks {
    lookup: Arc<Path>,
    /// (First byte, document id), ascending.
    places: Arc<Vec<(u64, Box<str>)>>,
    /// Documents that the lookup names and nobody wants.
    pub(crate) unwanted: u64,
}

impl Picks {
    /// Reads docid, offset in the TREC file, offset in the TSV; keeps those that are wanted.
    ///
    /// # Errors
    /// `Error::Data` for a line that is none of a lookup file.
    pub(crate) fn read(lookup: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Self> {
        let stream = Opened::new(lookup)?.stream(lookup, Arc::default())?;
        let mut reader = BufReader::with_capacity(1 << 18, stream);
        let (mut places, mut unwanted, mut line, mut number) = (Vec::new(), 0, String::new(), 0u64);
        loop {
            line.clear();
            let read = reader.read_line(&mut line).map_err(|cause| Error::io("read", lookup, cause))?;
            if read == 0 {
                break;
            }
            number += 1;
            let mut columns = line.trim_end().split('\t');
            let (id, offset) = (columns.next().unwrap_or_default(), columns.nth(1));
            let Some(offset) = offset.and_then(|offset| offset.parse::<u64>().ok()) else {
                return Err(Error::data(format!(
                    "{}, line {number}: expected docid, offset in the TREC file, offset in the TSV",
                    lookup.display()
                )));
            };
            if wanted(id) {
                places.push((offset, id.into()));
            } else {
                unwanted += 1;
            }
        }
        places.sort_unstable();
        places.dedup();
        Ok(Self { lookup: lookup.into(), places: Arc::new(places), unwanted })
    }

    /// The lines that begin at byte `from` or later, about `BLOCK` bytes of them, and where to go on;
    /// `None` where there are none.
    pub(crate) fn block(&self, file: &File, path: &Path, from: u64) -> Result<Option<(Vec<u8>, u64)>> {
        let first = self.places.partition_point(|&(offset, _)| offset < from);
        let (mut bytes, mut end) = (Vec::with_capacity(BLOCK + STEP), from);
        for (offset, id) in &self.places[first..] {
            if bytes.len() >= BLOCK {
                break;
            }
            let start = bytes.len();
            self.line(file, path, *offset, &mut bytes)?;
            let line = &bytes[start..];
            if !line.strip_prefix(id.as_bytes()).is_some_and(|rest| rest.starts_with(b"\t")) {
                return Err(Error::data(format!(
                    "{}: says that {id} begins at byte {offset} of {}, which it does not: the lookup belongs to \
                     another file",
                    self.lookup.display(),
                    path.display()
                )));
            }
            end = offset + 1;
        }
        Ok((!bytes.is_empty()).then_some((bytes, end)))
    }

    /// Appends the line at `offset`.
    fn line(&self, file: &File, path: &Path, offset: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let start = bytes.len();
        while bytes.len() - start < LONGEST {
            let filled = bytes.len();
            bytes.resize(filled + STEP, 0);
            let at = offset + (filled - start) as u64;
            let read =
                file.read_at(&mut bytes[filled..], at).map_err(|cause| Error::io("read", path, cause))?;
            bytes.truncate(filled + read);
            match memchr::memchr(b'\n', &bytes[filled..]) {
                Some(end) => {
                    bytes.truncate(filled + end + 1);
                    return Ok(());
                }
                None if read == 0 => break,
                None => {}
            }
        }
        bytes.push(b'\n');
        Ok(())
    }
}
