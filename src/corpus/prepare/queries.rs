//! The last stages of `prepare`: the queries that kept a click are tokenised, and the clicks are written.

use super::log::{EMPTY, Joined, MISSING};
use super::preparation::Preparation;
use super::texts::{Ledger, Text, TextBlock};
use crate::Result;
use crate::corpus::ids::LAST;
use crate::corpus::ordered;
use crate::corpus::progress::Progress;
use crate::corpus::read::source::{Piece, SourceFiles};
use crate::corpus::shard::write::ShardWriter;
use crate::text::Tokenizer;

impl Preparation<'_> {
    pub(crate) fn write_queries(&mut self, tokenizer: &Tokenizer, writer: &mut ShardWriter) -> Result<()> {
        let files = SourceFiles::put_aside(&Self::aside(writer.work()));
        let mut ledger = Ledger::new(None);
        let (mut next, mut last) = (0, false);
        for part in writer.sealed(true) {
            let part = part?;
            for id in part.ids() {
                if let Some(slot) = self.log.queries.get(id) {
                    self.log.query_index[slot as usize] = next;
                }
                next += 1;
            }
            ledger.tally.position = part.note.position;
            last |= part.note.last;
        }
        if !last {
            let mut progress = Progress::new("tokenising queries", files.bytes);
            let (from, done) = (ledger.tally.position, progress.done.clone());
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
                    ledger.tally.add(&files, block.tally, false)?;
                    if writer.is_full(true, this.options.part_tokens) {
                        let note = ledger.note(false);
                        writer.seal_with(true, &note)?;
                    }
                    Ok(())
                },
            );
            self.log.query_index = index;
            result?;
            let note = ledger.note(true);
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
        files: &SourceFiles,
        piece: &Piece,
        due: &[bool],
    ) -> Result<TextBlock> {
        let mut encoder = tokenizer.encoder();
        let (mut ids, mut tokens, mut texts) = (String::new(), Vec::new(), Vec::new());
        let mut failed = None;
        let tally = files.parse(piece, &mut |row, _| {
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
            None => Ok(TextBlock { tally, ids, tokens, texts, unclicked: 0, first: None }),
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
