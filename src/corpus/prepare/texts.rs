//! The two stages of `prepare` that tokenise: documents, then the queries that kept a click. Both run on all
//! cores, write in the order of the files, and finish part by part, so that a killed process costs only
//! the part that was being filled.

use std::collections::BTreeMap;

use hashbrown::HashSet;

use super::log::{EMPTY, EXCLUDED, FILTERED, Joined, MISSING};
use super::stages::Preparation;
use crate::corpus::ids::{Ids, LAST};
use crate::corpus::ordered;
use crate::corpus::progress::Progress;
use crate::corpus::read::documents::Field;
use crate::corpus::read::repair::repaired;
use crate::corpus::read::rows::{ReadCounts, Role, Row};
use crate::corpus::read::source::{Files, Part, Piece, Tally};
use crate::corpus::shard::manifest::HEADER;
use crate::corpus::shard::parts::Note;
use crate::corpus::shard::write::ShardWriter;
use crate::files;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Why a document that has tokens is left out.
const TWICE: &str = "documents with the tokens of an earlier one";

/// A document or query of a block.
struct Text {
    id: std::ops::Range<usize>,
    /// Its tokens, or why there are none.
    outcome: std::result::Result<std::ops::Range<usize>, (u32, &'static str)>,
    /// It was longer than is kept.
    cut: bool,
}

/// The texts of one block, tokenised.
struct TextBlock {
    part: Part,
    ids: String,
    tokens: Vec<u32>,
    texts: Vec<Text>,
    /// Documents that nobody clicked, where those are not wanted.
    unclicked: u64,
    /// Id of the block's first document, wanted or not.
    first: Option<String>,
}

/// What happened since the last part, and what must be known of all parts.
struct Stage {
    tally: Tally,
    dropped: BTreeMap<String, u64>,
    decided: Vec<(String, u32)>,
    cut: u64,
    /// Ids of documents that nobody clicked.
    others: Ids,
    /// Hashes of token lists, where no list may come twice.
    seen: Option<HashSet<u64>>,
    first: Option<String>,
}

impl Stage {
    fn new(seen: Option<HashSet<u64>>) -> Self {
        let (tally, dropped, decided, others) = Default::default();
        Self { tally, dropped, decided, cut: 0, others, seen, first: None }
    }

    fn drop_rows(&mut self, reason: &str, count: u64) {
        if count > 0 {
            *self.dropped.entry(reason.into()).or_default() += count;
        }
    }

    /// The note of a part that ends here.
    fn note(&mut self, last: bool) -> Note {
        let dropped = std::mem::take(&mut self.dropped);
        let decided = std::mem::take(&mut self.decided);
        Note { dropped, decided, cut: std::mem::take(&mut self.cut), last, ..Note::of(&mut self.tally) }
    }
}

impl Preparation<'_> {
    pub(crate) fn write_documents(&mut self, tokenizer: &Tokenizer, writer: &mut ShardWriter) -> Result<()> {
        let mut files = Files::open(&self.options.sources, Role::Documents)?;
        if !self.options.all_documents {
            let unclicked = files.pick(&|id| self.wants(id))?;
            self.drop_rows("documents that nobody clicked", unclicked);
        }
        self.note_passed_over(&files);
        let mut stage = Stage::new(self.options.filter.duplicate_documents.then(HashSet::new));
        if !self.resume_documents(writer, &mut stage)? {
            let mut progress = Progress::new("tokenising documents", files.bytes);
            let (from, done) = (stage.tally.position, progress.done.clone());
            let mut index = std::mem::take(&mut self.log.document_index);
            let this = &*self;
            let result = ordered::run(
                |pass| files.read(from, &done, pass),
                |piece| this.tokenise_documents(tokenizer, &files, &piece),
                |block| {
                    progress.tick(block.texts.len() as u64 + block.unclicked);
                    this.take_documents(block, &files, &mut index, &mut stage, writer)
                },
            );
            self.log.document_index = index;
            result?;
            let note = stage.note(true);
            writer.seal_with(false, &note)?;
        }
        let (mut counts, mut dropped) = (ReadCounts::default(), BTreeMap::new());
        for part in writer.sealed(false) {
            let note = part?.note;
            counts.merge(&note.counts);
            self.documents_cut += note.cut;
            for (reason, count) in note.dropped {
                *dropped.entry(reason).or_insert(0) += count;
            }
        }
        if counts.kept == 0 {
            return Err(files.nothing(&counts));
        }
        if let Some(clicked) = self.log.unjoined() {
            return Err(Error::data(format!(
                "no document joined: clicks name documents like {clicked:?}, {} holds {} like {:?}. ORCAS belongs to MS \
                 MARCO version 1 (ids like D1265400); version 2 (msmarco_doc_...) has other ids",
                files.files.first().map_or(String::new(), |file| file.path.display().to_string()),
                counts.kept,
                stage.first.unwrap_or_default(),
            )));
        }
        dropped.iter().for_each(|(reason, count)| self.drop_rows(reason, *count));
        self.note(&counts, "document");
        Ok(())
    }

    /// Takes finished parts over; true where they are all.
    fn resume_documents(&mut self, writer: &ShardWriter, stage: &mut Stage) -> Result<bool> {
        let (mut next, mut last) = (0, false);
        for part in writer.sealed(false) {
            let part = part?;
            for id in part.ids() {
                self.place(id, next, stage)?;
                next += 1;
            }
            for (id, mark) in &part.note.decided {
                self.place(id, *mark, stage)?;
            }
            if let Some(seen) = &mut stage.seen {
                let path = writer.dir().join(&part.entry.name);
                let bytes = files::read(&path)?;
                let width = (bytes.len() - HEADER) / (part.tokens as usize).max(1);
                let mut rest = &bytes[HEADER..];
                for &length in &part.lengths {
                    let (tokens, after) = rest.split_at(length as usize * width);
                    seen.insert(hash_tokens(tokens.chunks_exact(width.max(1)).map(|token| match token {
                        [a, b] => u32::from(u16::from_le_bytes([*a, *b])),
                        [a, b, c, d] => u32::from_le_bytes([*a, *b, *c, *d]),
                        _ => 0,
                    })));
                    rest = after;
                }
            }
            stage.tally.position = part.note.position;
            last |= part.note.last;
        }
        if next > 0 {
            eprintln!("continuing after {next} finished documents");
        }
        Ok(last)
    }

    /// Where a document of an earlier process went.
    fn place(&mut self, id: &str, index: u32, stage: &mut Stage) -> Result<()> {
        match self.log.documents.get(id) {
            Some(slot) => self.log.document_index[slot as usize] = index,
            None => _ = stage.others.insert(id, "documents")?,
        }
        Ok(())
    }

    /// Whether a document enters if it has text.
    pub(crate) fn wants(&self, id: &str) -> bool {
        self.options.all_documents || self.log.documents.get(id).is_some()
    }

    /// The chosen fields of a document as `prepare` tokenises them.
    pub(crate) fn parts<'r>(&self, row: &'r Row<'_>) -> Vec<std::borrow::Cow<'r, str>> {
        let text = |field: &Field| match (field.of(row), self.options.repair) {
            (text, true) => repaired(text),
            (text, false) => text.into(),
        };
        self.options.fields.iter().map(text).collect()
    }

    /// Parses and tokenises a block; on any thread.
    fn tokenise_documents(&self, tokenizer: &Tokenizer, files: &Files, piece: &Piece) -> Result<TextBlock> {
        let most = self.options.max_tokens;
        let mut encoder = tokenizer.encoder();
        let (mut ids, mut tokens, mut texts) = (String::new(), Vec::new(), Vec::new());
        let (mut unclicked, mut first, mut failed) = (0, None, None);
        let part = files.parse(piece, &mut |row, _| {
            let id = row[0].as_ref();
            first.get_or_insert_with(|| id.to_owned());
            if failed.is_some() || !self.wants(id) {
                unclicked += 1;
                return;
            }
            let from = (ids.len(), tokens.len());
            ids.push_str(id);
            let parts = self.parts(&row);
            let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
            let mut cut = false;
            let outcome = if self.guard.bars_document(id) {
                Err((EXCLUDED, "documents that are excluded"))
            } else if let Some(reason) = self.options.filter.document(&parts) {
                Err((FILTERED, reason))
            } else {
                // One token more than is kept tells which documents are cut.
                failed = encoder.append(&parts, most.saturating_add(1), &mut tokens).err();
                cut = tokens.len() - from.1 > most;
                tokens.truncate(from.1 + (tokens.len() - from.1).min(most));
                if tokens.len() == from.1 {
                    Err((EMPTY, "documents without text"))
                } else {
                    Ok(from.1..tokens.len())
                }
            };
            texts.push(Text { id: from.0..ids.len(), outcome, cut });
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(TextBlock { part, ids, tokens, texts, unclicked, first }),
        }
    }

    /// Writes the documents of a block in their order; on one thread.
    fn take_documents(
        &self,
        block: TextBlock,
        files: &Files,
        index: &mut [u32],
        stage: &mut Stage,
        writer: &mut ShardWriter,
    ) -> Result<()> {
        stage.first = stage.first.take().or(block.first);
        for text in &block.texts {
            let id = &block.ids[text.id.clone()];
            let slot = self.log.documents.get(id);
            let known = match slot {
                Some(slot) => index[slot as usize] != MISSING,
                None => !stage.others.insert(id, "documents")?.1,
            };
            if known {
                stage.drop_rows("documents whose id came before", 1);
                continue;
            }
            let mut outcome = text.outcome.clone();
            if let (Ok(range), Some(seen)) = (&outcome, &mut stage.seen)
                && !seen.insert(hash_tokens(block.tokens[range.clone()].iter().copied()))
            {
                outcome = Err((FILTERED, TWICE));
            }
            let place = match outcome {
                Ok(range) => {
                    stage.cut += u64::from(text.cut);
                    writer.document(id, &block.tokens[range])?
                }
                Err((mark, reason)) => {
                    stage.drop_rows(reason, 1);
                    stage.decided.push((id.to_owned(), mark));
                    mark
                }
            };
            if let Some(slot) = slot {
                index[slot as usize] = place;
            }
        }
        stage.drop_rows("documents that nobody clicked", block.unclicked);
        stage.tally.add(files, block.part, self.options.strict)?;
        if writer.is_full(false, self.options.part_tokens) {
            let note = stage.note(false);
            writer.seal_with(false, &note)?;
        }
        Ok(())
    }

    pub(crate) fn write_queries(&mut self, tokenizer: &Tokenizer, writer: &mut ShardWriter) -> Result<()> {
        let files = Files::put_aside(&Self::aside(writer.work()));
        let mut stage = Stage::new(None);
        let (mut next, mut last) = (0, false);
        for part in writer.sealed(true) {
            let part = part?;
            for id in part.ids() {
                if let Some(slot) = self.log.queries.get(id) {
                    self.log.query_index[slot as usize] = next;
                }
                next += 1;
            }
            stage.tally.position = part.note.position;
            last |= part.note.last;
        }
        if !last {
            let mut progress = Progress::new("tokenising queries", files.bytes);
            let (from, done) = (stage.tally.position, progress.done.clone());
            let mut index = std::mem::take(&mut self.log.query_index);
            let due: Vec<bool> = index.iter().map(|&index| index == EMPTY).collect();
            let this = &*self;
            let result = ordered::run(
                |pass| files.read(from, &done, pass),
                |piece| this.tokenise_queries(tokenizer, &files, &piece, &due),
                |block| {
                    progress.tick(block.texts.len() as u64);
                    for text in &block.texts {
                        let id = &block.ids[text.id.clone()];
                        if let (Ok(range), Some(slot)) = (&text.outcome, this.log.queries.get(id)) {
                            index[slot as usize] = writer.query(id, &block.tokens[range.clone()])?;
                        }
                    }
                    stage.tally.add(&files, block.part, false)?;
                    if writer.is_full(true, this.options.part_tokens) {
                        let note = stage.note(false);
                        writer.seal_with(true, &note)?;
                    }
                    Ok(())
                },
            );
            self.log.query_index = index;
            result?;
            let note = stage.note(true);
            writer.seal_with(true, &note)?;
        }
        let unused = self.log.query_index.iter().filter(|&&index| index == MISSING).count();
        self.drop_rows("queries of which no click is left", unused as u64);
        Ok(())
    }

    /// Tokenises the queries of a block that are due; queries are never cut.
    fn tokenise_queries(
        &self,
        tokenizer: &Tokenizer,
        files: &Files,
        piece: &Piece,
        due: &[bool],
    ) -> Result<TextBlock> {
        let mut encoder = tokenizer.encoder();
        let (mut ids, mut tokens, mut texts) = (String::new(), Vec::new(), Vec::new());
        let mut failed = None;
        let part = files.parse(piece, &mut |row, _| {
            let slot = self.log.queries.get(&row[0]);
            if failed.is_some() || !slot.is_some_and(|slot| due[slot as usize]) {
                return;
            }
            let from = (ids.len(), tokens.len());
            ids.push_str(&row[0]);
            failed = encoder.append(&[row[1].as_ref()], usize::MAX, &mut tokens).err();
            let outcome = if tokens.len() == from.1 { Err((EMPTY, "")) } else { Ok(from.1..tokens.len()) };
            texts.push(Text { id: from.0..ids.len(), outcome, cut: false });
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(TextBlock { part, ids, tokens, texts, unclicked: 0, first: None }),
        }
    }

    pub(crate) fn write_clicks(&mut self, writer: &mut ShardWriter, joined: &Joined) -> Result<()> {
        let (mut written, mut speechless) = (0u64, 0);
        let rows = self.log.pairs.iter().zip(&joined.times).zip(&joined.kept);
        for ((&(query, document), &times), _) in rows.filter(|(_, kept)| **kept) {
            let query = self.log.query_index[query as usize];
            if query > LAST {
                speechless += 1;
                continue;
            }
            writer.click_times(query, self.log.document_index[document as usize], times);
            written += 1;
        }
        self.drop_rows("clicks whose query has no text", speechless);
        if written == 0 { Err(self.no_pair()) } else { Ok(()) }
    }
}

/// FNV-1a over token ids, in 64 bits: the same in every run, and two of 3 M lists collide once in 4 M runs.
fn hash_tokens(tokens: impl Iterator<Item = u32>) -> u64 {
    tokens.fold(0xcbf2_9ce4_8422_2325, |hash, token| (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3))
}
