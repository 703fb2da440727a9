//! The shard directory: a tokenised query log that every rank of a node maps into memory and shares
//! through the page cache. This is the reading side; `write` is the other.
//!
//! | file | element | content |
//! |---|---|---|
//! | `documents-NNNNN.tok`, `queries-NNNNN.tok` | u16, or u32 where V > 65,536 | tokens end to end, whole texts a part |
//! | `documents.offsets`, `queries.offsets` | u64 | first token of each text over all parts, and the end |
//! | `documents.ids`, `queries.ids` | u8 | external ids end to end, UTF-8 |
//! | `documents.ids.offsets`, `queries.ids.offsets` | u64 | first byte of each id, and the end |
//! | `clicks.bin` | u32 | query, document; in the order of the log |
//! | `click_times.bin` | u32 | how often each click happened; only where some happened more than once |
//! | `clicks_by_query.offsets` | u64 | first entry of each query in the next file, and the end |
//! | `clicks_by_query.bin` | u32 | clicked documents of each query, ascending, each once |
//! | `tokenizer.json`, `vocab.txt`, `tokenizer_config.json` | | as transformers reads them |
//! | `manifest.json`, `manifest.crc32` | | counts, sources, options, checksum of every file |
//!
//! Binary files are little-endian and begin with a header of 64 bytes: magic (8 bytes), version (u32),
//! element size in bytes (u32), number of elements (u64), zeros. `open` looks at headers and lengths alone, so
//! it costs the same whatever the size; `verify`, which training calls once before it starts, reads every byte:
//! checksums, offsets, indices, tokens. Reading a directory that was not verified gives empty texts where its
//! numbers lie, and never leaves the files.

pub(crate) mod binary;
pub(crate) mod manifest;
pub(crate) mod mapped;
pub(crate) mod parts;
pub mod write;

use std::path::{Path, PathBuf};

use rayon::prelude::*;

pub use self::manifest::{
    FileEntry, HEADER, MAGIC, MANIFEST, MANIFEST_CRC, Manifest, Source, VERSION, read_manifest,
};
use self::manifest::{fingerprint, part_name, token_width};
use self::mapped::Mapped;
use crate::files;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// File of the numbers of times that clicks happened.
const CLICK_TIMES: &str = "click_times.bin";

/// The tokens of one text, as they lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens<'a> {
    U16(&'a [u16]),
    U32(&'a [u32]),
}

impl Tokens<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::U16(tokens) => tokens.len(),
            Self::U32(tokens) => tokens.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the first `at_most` tokens to `out`.
    pub fn extend(&self, out: &mut Vec<u32>, at_most: usize) {
        match self {
            Self::U16(tokens) => out.extend(tokens.iter().take(at_most).map(|&token| u32::from(token))),
            Self::U32(tokens) => out.extend_from_slice(&tokens[..tokens.len().min(at_most)]),
        }
    }

    /// The tokens as a list of their own.
    pub fn to_vec(&self) -> Vec<u32> {
        let mut out = Vec::with_capacity(self.len());
        self.extend(&mut out, usize::MAX);
        out
    }

    fn largest(&self) -> u32 {
        match self {
            Self::U16(tokens) => tokens.par_iter().copied().max().unwrap_or(0).into(),
            Self::U32(tokens) => tokens.par_iter().copied().max().unwrap_or(0),
        }
    }
}

/// An open shard directory. The mapped files must not be changed while it is open.
pub struct Shards {
    dir: PathBuf,
    manifest: Manifest,
    documents: Texts,
    queries: Texts,
    clicks: Mapped,
    /// Absent where every click happened once.
    click_times: Option<Mapped>,
    by_query_offsets: Mapped,
    by_query: Mapped,
}

impl Shards {
    /// Maps the directory and checks the length and header of every file.
    ///
    /// # Errors
    /// `Error::Data` that names the file and what is wrong with it.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = read_manifest(dir)?;
        let open = |name: &str, width: usize| Mapped::open(dir, name, width, &manifest.files);
        let width = token_width(manifest.vocab);
        let documents = Texts::open(dir, "documents", width, manifest.documents, &manifest)?;
        let queries = Texts::open(dir, "queries", width, manifest.queries, &manifest)?;
        let clicks = open("clicks.bin", 4)?;
        let by_query_offsets = open("clicks_by_query.offsets", 8)?;
        let by_query = open("clicks_by_query.bin", 4)?;
        if clicks.count != 2 * manifest.clicks as usize {
            return Err(clicks.wrong(format!("{} numbers for {} clicks", clicks.count, manifest.clicks)));
        }
        by_query_offsets.check_count(manifest.queries as usize)?;
        let counted = manifest.files.iter().any(|entry| entry.name == CLICK_TIMES);
        let click_times = counted.then(|| open(CLICK_TIMES, 4)).transpose()?;
        if let Some(times) = click_times.as_ref().filter(|times| times.count != manifest.clicks as usize) {
            return Err(times.wrong(format!("{} numbers for {} clicks", times.count, manifest.clicks)));
        }
        let dir = dir.to_owned();
        Ok(Self { dir, manifest, documents, queries, clicks, click_times, by_query_offsets, by_query })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The directory that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// 16 hex digits that change when any file of the directory does.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.manifest)
    }

    pub fn documents(&self) -> u32 {
        self.manifest.documents
    }

    pub fn queries(&self) -> u32 {
        self.manifest.queries
    }

    pub fn clicks(&self) -> u32 {
        self.manifest.clicks
    }

    /// Tokens of document `i < documents()`, without special tokens.
    pub fn document(&self, i: u32) -> Tokens<'_> {
        self.documents.tokens(i)
    }

    /// Tokens of query `i < queries()`, without special tokens.
    pub fn query(&self, i: u32) -> Tokens<'_> {
        self.queries.tokens(i)
    }

    /// (query, document) of click `i < clicks()`.
    pub fn click(&self, i: u32) -> (u32, u32) {
        let pair = self.clicks.of::<[u32; 2]>()[i as usize];
        (pair[0], pair[1])
    }

    /// How often click `i < clicks()` happened, as far as the log said.
    pub fn click_times(&self, i: u32) -> u32 {
        self.click_times.as_ref().map_or(1, |times| times.of::<u32>()[i as usize])
    }

    /// The documents that `query < queries()` clicked, ascending, each once.
    pub fn clicked(&self, query: u32) -> &[u32] {
        self.by_query_offsets.slice(query as usize, self.by_query.of::<u32>())
    }

    /// The id that document `i < documents()` has outside.
    pub fn document_id(&self, i: u32) -> &str {
        self.documents.id(i)
    }

    /// The id that query `i < queries()` has outside.
    pub fn query_id(&self, i: u32) -> &str {
        self.queries.id(i)
    }

    /// The tokenizer of the directory.
    ///
    /// # Errors
    /// `Error::Data` where it cannot be read or is not the one that the shards were made with.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::load(&self.dir)?;
        let (has, wants) = (tokenizer.vocab(), self.manifest.vocab);
        if has != wants || tokenizer.special() != self.manifest.special {
            return Err(Error::data(format!(
                "{}: the tokenizer has {has} pieces and {:?}, the shards were made with {wants} and {:?}; \
                 prepare them again",
                self.dir.display(),
                tokenizer.special(),
                self.manifest.special
            )));
        }
        Ok(tokenizer)
    }

    /// Reads every byte: checksums of all files, tokens within the vocabulary, the tokenizer.
    ///
    /// # Errors
    /// `Error::Data` that names the first damaged file.
    pub fn verify(&self) -> Result<()> {
        let checked = self.manifest.files.par_iter().map(|entry| {
            let path = self.dir.join(&entry.name);
            let crc = files::crc32(&path)?;
            if crc == entry.crc32 {
                return Ok(());
            }
            Err(Error::data(format!(
                "{}: damaged: checksum {crc:08x}, written as {:08x}; prepare the shards again",
                path.display(),
                entry.crc32
            )))
        });
        checked.collect::<Result<Vec<()>>>()?;
        for (texts, count) in [(&self.documents, self.documents()), (&self.queries, self.queries())] {
            texts.check(count as usize)?;
            texts.check_tokens(self.manifest.vocab)?;
        }
        self.by_query_offsets.check_offsets(self.queries() as usize, self.by_query.count)?;
        self.check_clicks()?;
        self.tokenizer().map(|_| ())
    }

    fn check_clicks(&self) -> Result<()> {
        let (queries, documents) = (self.queries(), self.documents());
        let pairs = self.clicks.of::<u32>().par_chunks_exact(2);
        let bad = pairs.enumerate().find_first(|(_, pair)| pair[0] >= queries || pair[1] >= documents);
        if let Some((i, pair)) = bad {
            return Err(self.clicks.wrong(format!(
                "click {i} is (query {}, document {}), but there are {queries} queries and {documents} documents",
                pair[0], pair[1]
            )));
        }
        if let Some(times) = self.click_times.as_ref().filter(|times| times.of::<u32>().contains(&0)) {
            return Err(times.wrong("a click that never happened".into()));
        }
        let ordered = |query: &u32| {
            let clicked = self.clicked(*query);
            clicked.is_sorted_by(|a, b| a < b) && clicked.last().is_none_or(|&last| last < documents)
        };
        match (0..queries).into_par_iter().find_first(|query| !ordered(query)) {
            Some(query) => Err(self
                .by_query
                .wrong(format!("documents of query {query} are not ascending below {documents}"))),
            None => Ok(()),
        }
    }
}

/// Documents or queries: tokens in parts, offsets, ids.
struct Texts {
    parts: Vec<Mapped>,
    /// First token of each part, over all parts.
    starts: Vec<u64>,
    wide: bool,
    offsets: Mapped,
    ids: Mapped,
    id_offsets: Mapped,
}

impl Texts {
    fn open(dir: &Path, kind: &str, width: usize, count: u32, manifest: &Manifest) -> Result<Self> {
        let open = |name: &str, width: usize| Mapped::open(dir, name, width, &manifest.files);
        let offsets = open(&format!("{kind}.offsets"), 8)?;
        let (mut parts, mut starts, mut tokens) = (Vec::new(), Vec::new(), 0);
        loop {
            let name = part_name(kind, parts.len());
            if !manifest.files.iter().any(|entry| entry.name == name) {
                break;
            }
            let part = open(&name, width)?;
            starts.push(tokens);
            tokens += part.count as u64;
            parts.push(part);
        }
        offsets.check_count(count as usize)?;
        let ids = open(&format!("{kind}.ids"), 1)?;
        let id_offsets = open(&format!("{kind}.ids.offsets"), 8)?;
        id_offsets.check_count(count as usize)?;
        Ok(Self { parts, starts, wide: width == 4, offsets, ids, id_offsets })
    }

    /// Everything that `open` did not look at but the tokens.
    fn check(&self, count: usize) -> Result<()> {
        let tokens: usize = self.parts.iter().map(|part| part.count).sum();
        self.offsets.check_offsets(count, tokens)?;
        let all = self.offsets.of::<u64>();
        if let Some(i) = self.starts.iter().position(|start| all.binary_search(start).is_err()) {
            return Err(self.parts[i].wrong("does not begin with a whole text".into()));
        }
        self.id_offsets.check_offsets(count, self.ids.count)?;
        let text = std::str::from_utf8(self.ids.of::<u8>());
        let text = text.map_err(|_| self.ids.wrong("ids are not UTF-8".into()))?;
        if self.id_offsets.of::<u64>().par_iter().any(|&at| !text.is_char_boundary(at as usize)) {
            return Err(self.id_offsets.wrong("an id begins within a character".into()));
        }
        Ok(())
    }

    fn tokens(&self, i: u32) -> Tokens<'_> {
        let Some(&[from, to]) = self.offsets.of::<u64>().get(i as usize..i as usize + 2) else {
            return Tokens::U32(&[]);
        };
        // The last part that begins at or before the text; empty parts and texts need no care, since
        // a text of no tokens is an empty slice of any part.
        let part = self.starts.partition_point(|&start| start <= from).saturating_sub(1);
        let Some(start) = self.starts.get(part) else { return Tokens::U32(&[]) };
        let range = (from - start) as usize..to.saturating_sub(*start) as usize;
        if self.wide {
            Tokens::U32(self.parts[part].of::<u32>().get(range).unwrap_or_default())
        } else {
            Tokens::U16(self.parts[part].of::<u16>().get(range).unwrap_or_default())
        }
    }

    fn id(&self, i: u32) -> &str {
        std::str::from_utf8(self.id_offsets.slice(i as usize, self.ids.of::<u8>())).unwrap_or_default()
    }

    fn check_tokens(&self, vocab: usize) -> Result<()> {
        for part in &self.parts {
            let tokens = if self.wide { Tokens::U32(part.of()) } else { Tokens::U16(part.of()) };
            if tokens.largest() as usize >= vocab {
                return Err(part.wrong(format!("token {} with a vocabulary of {vocab}", tokens.largest())));
            }
        }
        Ok(())
    }
}
