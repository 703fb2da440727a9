//! Whether a shard directory is what was written, down to the last byte: checksums, offsets, indices, tokens.
//! `Shards::open` looks at headers and lengths alone.

use rayon::prelude::*;

use super::shards::{Shards, Texts, Tokens};
use crate::{Error, Result, files};

impl Shards {
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

impl Texts {
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

impl Tokens<'_> {
    fn largest(&self) -> u32 {
        match self {
            Self::U16(tokens) => tokens.par_iter().copied().max().unwrap_or(0).into(),
            Self::U32(tokens) => tokens.par_iter().copied().max().unwrap_or(0),
        }
    }
}
