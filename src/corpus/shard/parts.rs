//! Finished parts of a preparation. A part is a file of tokens and, beside it in the work folder, a note: its
//! texts' lengths and ids, what was left out, and where the reading stood after it. The note is written
//! last, so a part with a note is whole, and `prepare` goes on behind the last of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::binary::BinaryWriter;
use super::format::part_name;
use super::manifest::FileEntry;
use crate::corpus::read::rows::ReadCounts;
use crate::corpus::read::source::{Position, Tally};
use crate::files;
use crate::{Error, Result};

/// Where a stage stood when a part was finished, and what happened in the part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Where the reading goes on (documents alone).
    pub(crate) position: Position,
    /// What was read since the part before.
    pub(crate) counts: ReadCounts,
    /// Rows left out since then, by reason.
    pub(crate) dropped: BTreeMap<String, u64>,
    /// Ids that were decided and are not in the part, with their mark.
    pub(crate) decided: Vec<(String, u32)>,
    /// Texts that were longer than is kept.
    pub(crate) cut: u64,
    /// Nothing follows.
    pub(crate) last: bool,
}

impl Note {
    /// Takes what a tally counted so far over, and its position.
    pub(crate) fn of(tally: &mut Tally) -> Self {
        let counts = std::mem::take(&mut tally.counts);
        Self { position: tally.position, counts, ..Self::default() }
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    entry: FileEntry,
    texts: usize,
    tokens: u64,
    note: Note,
}

/// A part that is finished.
pub(crate) struct Part {
    pub(crate) entry: FileEntry,
    pub(crate) tokens: u64,
    pub(crate) note: Note,
    /// Tokens of each text.
    pub(crate) lengths: Vec<u32>,
    id_ends: Vec<u32>,
    ids: String,
}

impl Part {
    /// The id of each text.
    pub(crate) fn ids(&self) -> impl ExactSizeIterator<Item = &str> {
        let start = |i: usize| if i == 0 { 0 } else { self.id_ends[i - 1] as usize };
        self.id_ends.iter().enumerate().map(move |(i, &end)| &self.ids[start(i)..end as usize])
    }
}

/// The note's file of part `number` of `kind`.
fn note_path(work: &Path, kind: &str, number: usize) -> PathBuf {
    work.join(format!("{kind}-{number:05}.note"))
}

/// A part that is being filled.
pub(crate) struct PartWriter {
    file: BinaryWriter,
    kind: &'static str,
    number: usize,
    lengths: Vec<u32>,
    id_ends: Vec<u32>,
    ids: String,
    narrow: Vec<u16>,
}

impl PartWriter {
    pub(crate) fn create(dir: &Path, kind: &'static str, number: usize, width: usize) -> Result<Self> {
        let file = BinaryWriter::create(dir, &part_name(kind, number), width)?;
        let (lengths, id_ends, ids, narrow) = Default::default();
        Ok(Self { file, kind, number, lengths, id_ends, ids, narrow })
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.file.count
    }

    pub(crate) fn texts(&self) -> usize {
        self.lengths.len()
    }

    /// Appends a text whose tokens are below the vocabulary's size.
    pub(crate) fn push(&mut self, id: &str, tokens: &[u32], wide: bool) -> Result<()> {
        if wide {
            self.file.write(tokens)?;
        } else {
            self.narrow.clear();
            self.narrow.extend(tokens.iter().map(|&token| token as u16));
            self.file.write(&self.narrow)?;
        }
        self.lengths.push(tokens.len() as u32);
        self.ids.push_str(id);
        let end = u32::try_from(self.ids.len());
        self.id_ends.push(end.map_err(|_| Error::data("the ids of one part take more than 4 GiB"))?);
        Ok(())
    }

    /// Finishes the part: its tokens first, then the note that makes it count.
    pub(crate) fn seal(self, work: &Path, note: &Note) -> Result<()> {
        let Self { file, kind, number, lengths, id_ends, ids, .. } = self;
        let tokens = file.count;
        let head = Head { entry: file.finish()?, texts: lengths.len(), tokens, note: note.clone() };
        let path = note_path(work, kind, number);
        let head = serde_json::to_vec(&head)
            .map_err(|cause| Error::data(format!("{}: cannot be made: {cause}", path.display())))?;
        let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
        bytes.extend(head);
        bytes.extend_from_slice(bytemuck::cast_slice(&lengths));
        bytes.extend_from_slice(bytemuck::cast_slice(&id_ends));
        bytes.extend_from_slice(ids.as_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        files::write(&path, &bytes)
    }
}

/// Part `number` of `kind`; `None` where it was not finished, or is not as it was written.
pub(crate) fn read(dir: &Path, work: &Path, kind: &str, number: usize, checked: bool) -> Option<Part> {
    let bytes = std::fs::read(note_path(work, kind, number)).ok()?;
    let (bytes, crc) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(bytes) != u32::from_le_bytes(*crc) {
        return None;
    }
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (head, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let Head { entry, texts, tokens, note } = serde_json::from_slice(head).ok()?;
    let (lengths, rest) = rest.split_at_checked(texts.checked_mul(4)?)?;
    let (id_ends, ids) = rest.split_at_checked(texts * 4)?;
    let numbers = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    let part = Part {
        lengths: numbers(lengths),
        id_ends: numbers(id_ends),
        ids: String::from_utf8(ids.to_vec()).ok()?,
        entry,
        tokens,
        note,
    };
    if checked {
        let path = dir.join(&part.entry.name);
        let whole = std::fs::metadata(&path).is_ok_and(|about| about.len() == part.entry.bytes)
            && files::crc32(&path).is_ok_and(|crc| crc == part.entry.crc32);
        if !whole {
            return None;
        }
    }
    Some(part)
}
