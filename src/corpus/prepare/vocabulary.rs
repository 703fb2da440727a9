//! The stage of `prepare` that trains a vocabulary, where no tokenizer is given.

use std::path::Path;

use super::preparation::Preparation;
use crate::corpus::ordered;
use crate::corpus::progress::Progress;
use crate::corpus::read::rows::Role;
use crate::corpus::read::source::{Position, SourceFiles};
use crate::corpus::shard::Workplace;
use crate::text::Tokenizer;
use crate::text::vocabulary::WordCounts;
use crate::{Error, Result};

impl Preparation<'_> {
    /// The vocabulary that an earlier process trained, or a new one.
    pub(super) fn trained(&self, place: &Workplace) -> Result<Tokenizer> {
        let (kept, new) = (place.work.join("tokenizer"), place.work.join("tokenizer.part"));
        if kept.is_dir() {
            return Tokenizer::load(&kept);
        }
        let tokenizer = self.train(&Self::aside(&place.work))?;
        std::fs::create_dir_all(&new).map_err(|cause| Error::io("made", &new, cause))?;
        tokenizer.save(&new)?;
        std::fs::rename(&new, &kept).map_err(|cause| Error::io("written", &kept, cause))?;
        Ok(tokenizer)
    }

    /// A vocabulary from each query once and every document that may enter.
    fn train(&self, aside: &Path) -> Result<Tokenizer> {
        let mut documents = SourceFiles::open(&self.options.sources, Role::Documents)?;
        if !self.options.all_documents {
            documents.pick(&|id| self.wants(id))?;
        }
        let mut counts = WordCounts::default();
        for files in [SourceFiles::put_aside(aside), documents] {
            let mut progress = Progress::new("counting words", files.bytes);
            let done = progress.done.clone();
            ordered::run(
                |pass| files.read(Position::default(), &done, pass),
                |piece| {
                    let (mut counts, mut failed, mut rows) = (WordCounts::default(), None, 0);
                    files.parse(&piece, &mut |row, _| {
                        rows += 1;
                        let mut add = |text: &str| failed = failed.take().or(counts.add(text).err());
                        match files.role {
                            Role::Queries => add(&row[1]),
                            _ if !self.wants(&row[0]) || self.guard.bars_document(&row[0]) => {}
                            _ => self.parts(&row).iter().for_each(|part| add(part)),
                        }
                    });
                    failed.map_or(Ok((counts, rows)), Err)
                },
                |(block, rows)| {
                    progress.tick(rows);
                    counts.merge(block);
                    Ok(())
                },
            )?;
        }
        Tokenizer::of_words(counts, self.options.vocab)
    }
}
