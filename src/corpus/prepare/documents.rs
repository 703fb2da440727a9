//! The stage of `prepare` that tokenises documents. Which clicks join is known after it.

use std::collections::BTreeMap;

use hashbrown::HashSet;

use super::log::{EMPTY, EXCLUDED, FILTERED, MISSING};
use super::preparation::Preparation;
use super::texts::{Ledger, Text, TextBlock};
use crate::corpus::ordered;
use crate::corpus::progress::Progress;
use crate::corpus::read::rows::{ReadCounts, Role};
use crate::corpus::read::source::{Piece, SourceFiles};
use crate::corpus::shard::HEADER;
use crate::corpus::shard::write::ShardWriter;
use crate::text::Tokenizer;
use crate::{Error, Result, files};

/// Why a document that has tokens is left out.
const TWICE: &str = "documents with the tokens of an earlier one";

impl Preparation<'_> {
    pub(crate) fn write_documents(&mut self, tokenizer: &Tokenizer, writer: &mut ShardWriter) -> Result<()> {
        let mut files = SourceFiles::open(&self.options.sources, Role::Documents)?;
        if !self.options.all_documents {
            let unclicked = files.pick(&|id| self.wants(id))?;
            self.drop_rows("documents that nobody clicked", unclicked);
        }
        self.note_passed_over(&files);
        let mut ledger = Ledger::new(self.options.filter.duplicate_documents.then(HashSet::new));
        if !self.resume_documents(writer, &mut ledger)? {
            let mut progress = Progress::new("tokenising documents", files.bytes);
            let (from, done) = (ledger.tally.position, progress.done.clone());
            let mut index = std::mem::take(&mut self.log.document_index);
            let this = &*self;
            let result = ordered::run(
                |pass| files.read(from, &done, pass),
                |piece| this.tokenise_documents(tokenizer, &files, &piece),
                |block| {
                    progress.tick(block.texts.len() as u64 + block.unclicked);
                    this.take_documents(block, &files, &mut index, &mut ledger, writer)
                },
            );
            self.log.document_index = index;
            result?;
            let note = ledger.note(true);
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
                ledger.first.unwrap_or_default(),
            )));
        }
        dropped.iter().for_each(|(reason, count)| self.drop_rows(reason, *count));
        self.note(&counts, "document");
        Ok(())
    }

    /// Takes finished parts over; true where they are all.
    fn resume_documents(&mut self, writer: &ShardWriter, ledger: &mut Ledger) -> Result<bool> {
        let (mut next, mut last) = (0, false);
        for part in writer.sealed(false) {
            let part = part?;
            for id in part.ids() {
                self.place(id, next, ledger)?;
                next += 1;
            }
            for (id, mark) in &part.note.decided {
                self.place(id, *mark, ledger)?;
            }
            if let Some(seen) = &mut ledger.seen {
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
            ledger.tally.position = part.note.position;
            last |= part.note.last;
        }
        if next > 0 {
            eprintln!("continuing after {next} finished documents");
        }
        Ok(last)
    }

    /// Where a document of an earlier process went.
    fn place(&mut self, id: &str, index: u32, ledger: &mut Ledger) -> Result<()> {
        match self.log.documents.get(id) {
            Some(slot) => self.log.document_index[slot as usize] = index,
            None => _ = ledger.others.insert(id, "documents")?,
        }
        Ok(())
    }

    /// Parses and tokenises a block; on any thread.
    fn tokenise_documents(
        &self,
        tokenizer: &Tokenizer,
        files: &SourceFiles,
        piece: &Piece,
    ) -> Result<TextBlock> {
        let most = self.options.max_tokens;
        let mut encoder = tokenizer.encoder();
        let (mut ids, mut tokens, mut texts) = (String::new(), Vec::new(), Vec::new());
        let (mut unclicked, mut first, mut failed) = (0, None, None);
        let tally = files.parse(piece, &mut |row, _| {
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
            None => Ok(TextBlock { tally, ids, tokens, texts, unclicked, first }),
        }
    }

    /// Writes the documents of a block in their order; on one thread.
    fn take_documents(
        &self,
        block: TextBlock,
        files: &SourceFiles,
        index: &mut [u32],
        ledger: &mut Ledger,
        writer: &mut ShardWriter,
    ) -> Result<()> {
        ledger.first = ledger.first.take().or(block.first);
        for text in &block.texts {
            let id = &block.ids[text.id.clone()];
            let slot = self.log.documents.get(id);
            let known = match slot {
                Some(slot) => index[slot as usize] != MISSING,
                None => !ledger.others.insert(id, "documents")?.1,
            };
            if known {
                ledger.drop_rows("documents whose id came before", 1);
                continue;
            }
            let mut outcome = text.outcome.clone();
            if let (Ok(range), Some(seen)) = (&outcome, &mut ledger.seen)
                && !seen.insert(hash_tokens(block.tokens[range.clone()].iter().copied()))
            {
                outcome = Err((FILTERED, TWICE));
            }
            let place = match outcome {
                Ok(range) => {
                    ledger.cut += u64::from(text.cut);
                    writer.document(id, &block.tokens[range])?
                }
                Err((mark, reason)) => {
                    ledger.drop_rows(reason, 1);
                    ledger.decided.push((id.to_owned(), mark));
                    mark
                }
            };
            if let Some(slot) = slot {
                index[slot as usize] = place;
            }
        }
        ledger.drop_rows("documents that nobody clicked", block.unclicked);
        ledger.tally.add(files, block.tally, self.options.strict)?;
        if writer.is_full(false, self.options.part_tokens) {
            let note = ledger.note(false);
            writer.seal_with(false, &note)?;
        }
        Ok(())
    }
}

/// FNV-1a over token ids, in 64 bits: the same in every run, and two of 3 M lists collide once in 4 M runs.
fn hash_tokens(tokens: impl Iterator<Item = u32>) -> u64 {
    tokens.fold(0xcbf2_9ce4_8422_2325, |hash, token| (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3))
}
