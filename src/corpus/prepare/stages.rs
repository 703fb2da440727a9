//! The stages of `prepare`, in the order in which they run. What is left out at each is counted by reason.

use super::log::Log;
use super::options::{as_text, sources};
use super::preparation::Preparation;
use crate::corpus::read::rows::Role;
use crate::corpus::read::source::SourceFiles;
use crate::corpus::shard::write::{Provenance, ShardWriter};
use crate::corpus::shard::{Manifest, Workplace};
use crate::text::Tokenizer;
use crate::{Error, Result};

impl Preparation<'_> {
    /// Makes the shard directory.
    ///
    /// # Errors
    /// `Error::Data` for files that cannot be used.
    pub(crate) fn make(&mut self) -> Result<Manifest> {
        // A tokenizer or a file that cannot be read should not cost the reading of the log.
        let given = self.options.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
        for role in [Role::Clicks, Role::Queries, Role::Qrels, Role::Documents] {
            SourceFiles::open(&self.options.sources, role)?;
        }
        let sources = sources(self.options)?;
        let recipe = serde_json::to_string(&(env!("CARGO_PKG_VERSION"), as_text(self.options), &sources))
            .map_err(|cause| Error::data(format!("the options cannot be written down: {cause}")))?;
        let place = Workplace::claim(&self.options.out, &recipe)?;
        self.read_log(&Self::aside(&place.work))?;
        let tokenizer = match given {
            Some(tokenizer) => tokenizer,
            None => self.trained(&place)?,
        };
        let mut writer = ShardWriter::at(place, tokenizer.vocab())?;
        self.write_documents(&tokenizer, &mut writer)?;
        let joined = self.log.join();
        self.joined = (self.log.pairs.len() as u64, joined.found);
        for (reason, count) in joined.dropped {
            self.drop_rows(reason, count);
        }
        if !joined.kept.contains(&true) {
            return Err(self.no_pair());
        }
        self.write_queries(&tokenizer, &mut writer)?;
        self.write_clicks(&mut writer, &joined)?;
        // Not needed while the offsets are put together.
        self.log = Log::default();
        let provenance = Provenance {
            max_tokens: self.options.max_tokens,
            documents_cut: self.documents_cut,
            options: as_text(self.options),
            sources,
            dropped: std::mem::take(&mut self.dropped),
        };
        writer.finish(&tokenizer, provenance)
    }
}
