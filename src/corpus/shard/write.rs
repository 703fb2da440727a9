//! Writing a shard directory, part by part in the hidden folder that `workplace` claims; the shards get their
//! real name last.

use std::collections::BTreeMap;
use std::path::Path;

use super::binary::BinaryWriter;
use super::format::{CLICK_TIMES, MAGIC, MANIFEST, MANIFEST_CRC, VERSION, token_width};
use super::manifest::{FileEntry, Manifest, SourceFile};
use super::parts::{self, Note, Part, PartWriter};
use super::workplace::Workplace;
use crate::files;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Texts after which a part is finished: their lengths and ids wait in memory.
const PART_TEXTS: usize = 1 << 20;

/// What the manifest holds beyond counts.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    pub max_tokens: usize,
    pub documents_cut: u64,
    pub options: BTreeMap<String, String>,
    pub sources: Vec<SourceFile>,
    pub dropped: BTreeMap<String, u64>,
}

/// Writes one shard directory; dropped before `finish`, it leaves nothing, unless the disk itself failed.
pub struct ShardWriter {
    place: Workplace,
    vocab: usize,
    documents: TextsWriter,
    queries: TextsWriter,
    clicks: Vec<[u32; 2]>,
    /// How often each click happened; empty (or shorter) where all that follow happened once.
    times: Vec<u32>,
}

impl ShardWriter {
    /// Begins a directory that will appear at `target` for a tokenizer of `vocab` pieces.
    ///
    /// # Errors
    /// As `Workplace::claim`.
    pub fn create(target: &Path, vocab: usize) -> Result<Self> {
        Self::at(Workplace::claim(target, "")?, vocab)
    }

    /// Goes on in a claimed place behind the parts that are finished there.
    ///
    /// # Errors
    /// `Error::Data` where a file cannot be written or removed.
    pub fn at(place: Workplace, vocab: usize) -> Result<Self> {
        let width = token_width(vocab);
        let documents = TextsWriter::resume(&place, "documents", width)?;
        let queries = TextsWriter::resume(&place, "queries", width)?;
        Ok(Self { documents, queries, vocab, clicks: Vec::new(), times: Vec::new(), place })
    }

    /// Appends a document; its index is returned.
    ///
    /// # Errors
    /// `Error::Data` where a token is not below V, there are too many documents, or the disk refuses.
    pub fn document(&mut self, id: &str, tokens: &[u32]) -> Result<u32> {
        let pushed = self.documents.push(&self.place, id, tokens, self.vocab);
        self.keeping(pushed)
    }

    /// Appends a query; its index is returned.
    ///
    /// # Errors
    /// As `document`.
    pub fn query(&mut self, id: &str, tokens: &[u32]) -> Result<u32> {
        let pushed = self.queries.push(&self.place, id, tokens, self.vocab);
        self.keeping(pushed)
    }

    /// Appends a click. Both indices must have been returned before `finish`.
    pub fn click(&mut self, query: u32, document: u32) {
        self.clicks.push([query, document]);
    }

    /// As `click`, for one that happened `times` times.
    pub fn click_times(&mut self, query: u32, document: u32, times: u32) {
        if times != 1 {
            self.times.resize(self.clicks.len(), 1);
            self.times.push(times);
        }
        self.click(query, document);
    }

    /// Ends the part of the documents (or queries) that is being filled.
    ///
    /// # Errors
    /// `Error::Data` where the disk refuses.
    pub fn seal(&mut self, queries: bool) -> Result<()> {
        self.seal_with(queries, &Note::default())
    }

    /// As `seal`, with a note for the process that goes on should this one be killed.
    pub(crate) fn seal_with(&mut self, queries: bool, note: &Note) -> Result<()> {
        let texts = if queries { &mut self.queries } else { &mut self.documents };
        let sealed = texts.seal(&self.place, note);
        self.keeping(sealed)
    }

    /// Whether the part that is being filled has `most` tokens, or texts enough, to be sealed.
    pub(crate) fn is_full(&self, queries: bool, most: u64) -> bool {
        let texts = if queries { &self.queries } else { &self.documents };
        texts.open.as_ref().is_some_and(|part| part.tokens() >= most || part.texts() >= PART_TEXTS)
    }

    /// Finished parts of documents (or queries), read back one by one.
    pub(crate) fn sealed(&self, queries: bool) -> impl Iterator<Item = Result<Part>> {
        let texts = if queries { &self.queries } else { &self.documents };
        (0..texts.sealed).map(move |number| texts.part(&self.place, number))
    }

    /// Work folder for what must survive a kill and does not go into the shards.
    pub(crate) fn work(&self) -> &Path {
        &self.place.work
    }

    /// The directory that will be the shards.
    pub(crate) fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// A failure to write keeps what is finished, so that the user can make room and go on.
    fn keeping<T>(&mut self, result: Result<T>) -> Result<T> {
        self.place.keep |= result.is_err() && self.documents.sealed > 0;
        result
    }

    /// Writes what is left, syncs, and gives the directory its name.
    ///
    /// # Errors
    /// `Error::Data` where a click names no document or query, there are too many, or the disk refuses.
    pub fn finish(mut self, tokenizer: &Tokenizer, provenance: Provenance) -> Result<Manifest> {
        let (documents, queries) = (self.documents.count()?, self.queries.count()?);
        let clicks =
            u32::try_from(self.clicks.len()).map_err(|_| Error::data("more than 2^32 - 1 clicks"))?;
        if let Some([query, document]) = self.clicks.iter().find(|[q, d]| *q >= queries || *d >= documents) {
            return Err(Error::data(format!("click of query {query} on document {document}: no such index")));
        }
        self.place.keep = true;
        let (mut files, document_tokens) = self.documents.finish(&self.place)?;
        let (more, query_tokens) = self.queries.finish(&self.place)?;
        files.extend(more);
        files.extend(self.write_clicks(queries)?);
        files.extend(write_tokenizer(tokenizer, &self.place.dir)?);
        let manifest = Manifest {
            magic: MAGIC.into(),
            version: VERSION,
            documents,
            queries,
            clicks,
            vocab: self.vocab,
            special: tokenizer.special(),
            max_tokens: provenance.max_tokens,
            document_tokens,
            query_tokens,
            documents_cut: provenance.documents_cut,
            options: provenance.options,
            sources: provenance.sources,
            files,
            dropped: provenance.dropped,
        };
        write_manifest(&manifest, &self.place.dir)?;
        self.place.publish()?;
        Ok(manifest)
    }

    fn write_clicks(&mut self, queries: u32) -> Result<Vec<FileEntry>> {
        let clicks = std::mem::take(&mut self.clicks);
        let dir = &self.place.dir;
        let mut log = BinaryWriter::create(dir, "clicks.bin", 4)?;
        log.write(clicks.as_flattened())?;
        let mut files = vec![log.finish()?];
        if !self.times.is_empty() {
            self.times.resize(clicks.len(), 1);
            let mut times = BinaryWriter::create(dir, CLICK_TIMES, 4)?;
            times.write(&self.times)?;
            files.push(times.finish()?);
        }
        // A counting sort by query keeps this linear in the clicks.
        let mut ends = vec![0u64; queries as usize + 1];
        for [query, _] in &clicks {
            ends[*query as usize + 1] += 1;
        }
        for i in 1..ends.len() {
            ends[i] += ends[i - 1];
        }
        let mut next = ends.clone();
        let mut sorted = vec![0u32; clicks.len()];
        for [query, document] in &clicks {
            let place = &mut next[*query as usize];
            sorted[*place as usize] = *document;
            *place += 1;
        }
        let mut by_query = BinaryWriter::create(dir, "clicks_by_query.bin", 4)?;
        let mut offsets = BinaryWriter::create(dir, "clicks_by_query.offsets", 8)?;
        offsets.write(&[0u64])?;
        let mut row = Vec::new();
        for range in ends.windows(2) {
            row.clear();
            row.extend_from_slice(&sorted[range[0] as usize..range[1] as usize]);
            row.sort_unstable();
            row.dedup();
            by_query.write(&row)?;
            offsets.write(&[by_query.count])?;
        }
        files.extend([by_query.finish()?, offsets.finish()?]);
        Ok(files)
    }
}

fn write_tokenizer(tokenizer: &Tokenizer, dir: &Path) -> Result<Vec<FileEntry>> {
    let mut files = Vec::new();
    for name in tokenizer.save(dir)? {
        let path = dir.join(name);
        files::sync(&path)?;
        let bytes = std::fs::metadata(&path).map_err(|cause| Error::io("read", &path, cause))?.len();
        files.push(FileEntry { name: name.into(), bytes, crc32: files::crc32(&path)? });
    }
    Ok(files)
}

fn write_manifest(manifest: &Manifest, dir: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(manifest)
        .map_err(|cause| Error::data(format!("{}: {MANIFEST} cannot be made: {cause}", dir.display())))?
        + "\n";
    files::write(&dir.join(MANIFEST_CRC), format!("{:08x}\n", crc32fast::hash(text.as_bytes())).as_bytes())?;
    files::write(&dir.join(MANIFEST), text.as_bytes())
}

/// Documents or queries: finished parts and the one that is being filled.
struct TextsWriter {
    kind: &'static str,
    width: usize,
    sealed: usize,
    /// Texts in finished parts.
    before: u64,
    open: Option<PartWriter>,
}

impl TextsWriter {
    /// Counts the parts that are finished and whole; what lies behind them is written anew.
    fn resume(place: &Workplace, kind: &'static str, width: usize) -> Result<Self> {
        let mut texts = Self { kind, width, sealed: 0, before: 0, open: None };
        while let Some(part) = parts::read(&place.dir, &place.work, kind, texts.sealed, true) {
            texts.before += part.lengths.len() as u64;
            texts.sealed += 1;
        }
        Ok(texts)
    }

    fn part(&self, place: &Workplace, number: usize) -> Result<Part> {
        parts::read(&place.dir, &place.work, self.kind, number, false).ok_or_else(|| {
            Error::data(format!("{}: a finished part of {} was changed", place.root.display(), self.kind))
        })
    }

    fn count(&self) -> Result<u32> {
        let open = self.open.as_ref().map_or(0, PartWriter::texts) as u64;
        u32::try_from(self.before + open)
            .map_err(|_| Error::data(format!("more than 2^32 - 1 {}", self.kind)))
    }

    fn push(&mut self, place: &Workplace, id: &str, tokens: &[u32], vocab: usize) -> Result<u32> {
        let index = self.count()?;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(Error::data(format!(
                "{} {id}: token {token} with a vocabulary of {vocab}",
                self.kind
            )));
        }
        self.part_to_fill(place)?.push(id, tokens, token_width(vocab) == 4)?;
        Ok(index)
    }

    fn part_to_fill(&mut self, place: &Workplace) -> Result<&mut PartWriter> {
        match &mut self.open {
            Some(part) => Ok(part),
            open => Ok(open.insert(PartWriter::create(&place.dir, self.kind, self.sealed, self.width)?)),
        }
    }

    fn seal(&mut self, place: &Workplace, note: &Note) -> Result<()> {
        self.part_to_fill(place)?;
        if let Some(part) = self.open.take() {
            self.before += part.texts() as u64;
            part.seal(&place.work, note)?;
            self.sealed += 1;
        }
        Ok(())
    }

    /// Puts the notes of all parts together: offsets and ids. Returns the files and the number of tokens.
    fn finish(&mut self, place: &Workplace) -> Result<(Vec<FileEntry>, u64)> {
        if self.open.is_some() || self.sealed == 0 {
            self.seal(place, &Note::default())?;
        }
        let create = |name: &str, width: usize| BinaryWriter::create(&place.dir, name, width);
        let mut offsets = create(&format!("{}.offsets", self.kind), 8)?;
        let mut ids = create(&format!("{}.ids", self.kind), 1)?;
        let mut id_offsets = create(&format!("{}.ids.offsets", self.kind), 8)?;
        let (mut files, mut tokens) = (Vec::new(), 0);
        offsets.write(&[0u64])?;
        id_offsets.write(&[0u64])?;
        for number in 0..self.sealed {
            let part = self.part(place, number)?;
            for (length, id) in part.lengths.iter().zip(part.ids()) {
                tokens += u64::from(*length);
                offsets.write(&[tokens])?;
                ids.write(id.as_bytes())?;
                id_offsets.write(&[ids.count])?;
            }
            files.push(part.entry);
        }
        files.extend([offsets.finish()?, ids.finish()?, id_offsets.finish()?]);
        Ok((files, tokens))
    }
}
