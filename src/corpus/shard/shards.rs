//! Reading a shard directory: every file mapped, so that the ranks of a node share one copy of it.

use std::path::{Path, PathBuf};

use super::format::{CLICK_TIMES, part_name, token_width};
use super::manifest::{Manifest, fingerprint, read_manifest};
use super::mapped::Mapped;
use crate::text::Tokenizer;
use crate::{Error, Result};

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
}

/// An open shard directory. The mapped files must not be changed while it is open.
pub struct Shards {
    pub(super) dir: PathBuf,
    pub(super) manifest: Manifest,
    pub(super) documents: Texts,
    pub(super) queries: Texts,
    pub(super) clicks: Mapped,
    /// Absent where every click happened once.
    pub(super) click_times: Option<Mapped>,
    pub(super) by_query_offsets: Mapped,
    pub(super) by_query: Mapped,
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
}

/// Documents or queries: tokens in parts, offsets, ids.
pub(super) struct Texts {
    pub(super) parts: Vec<Mapped>,
    /// First token of each part, over all parts.
    pub(super) starts: Vec<u64>,
    pub(super) wide: bool,
    pub(super) offsets: Mapped,
    pub(super) ids: Mapped,
    pub(super) id_offsets: Mapped,
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
}
