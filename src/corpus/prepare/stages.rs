//! The stages of `prepare`, in the order in which they run. What is left out at each is counted by reason.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::leak::Guard;
use super::log::Log;
use super::{PrepareOptions, as_text, sources};
use crate::corpus::ordered;
use crate::corpus::progress::Progress;
use crate::corpus::read::rows::{ReadCounts, Role};
use crate::corpus::read::source::{Files, Position};
use crate::corpus::shard::manifest::Manifest;
use crate::corpus::shard::write::{About, ShardWriter, Workplace};
use crate::text::Tokenizer;
use crate::text::vocabulary::WordCounts;
use crate::{Error, Result};

/// The work of one `prepare`.
pub(crate) struct Preparation<'a> {
    pub(crate) options: &'a PrepareOptions,
    pub(crate) guard: Guard,
    pub(crate) log: Log,
    dropped: BTreeMap<String, u64>,
    /// What was read of each kind.
    pub(crate) read: Vec<(&'static str, ReadCounts)>,
    /// Files of folders that are in no known format.
    pub(crate) passed_over: Vec<PathBuf>,
    pub(crate) documents_cut: u64,
    /// Usable rows of the log, and those whose document is in the collection.
    pub(crate) joined: (u64, u64),
}

impl<'a> Preparation<'a> {
    /// # Errors
    /// `Error::Config` for options that cannot be, `Error::Data` for excluded files that cannot be read.
    pub(crate) fn new(options: &'a PrepareOptions) -> Result<Self> {
        if options.fields.is_empty() {
            return Err(Error::config("fields: name at least one of url, title, body"));
        }
        if options.max_tokens == 0 {
            return Err(Error::config("max_tokens = 0: documents need at least one token"));
        }
        options.filter.check()?;
        let has = |role: Role| options.sources.iter().any(|source| source.role == role);
        if !has(Role::Documents) {
            return Err(Error::config(
                "no documents: name them with --documents or a [[source]] of that role",
            ));
        }
        let pair = has(Role::Queries) && has(Role::Qrels);
        if !(pair || has(Role::Clicks)) {
            return Err(Error::config(
                "no clicks: name them with --clicks, or with [[source]] tables of role \"clicks\", or \"queries\" and \
                 \"qrels\"",
            ));
        }
        let guard = Guard::read(&options.exclude_topics, &options.exclude_qrels)?;
        let (log, dropped, read, passed_over) = Default::default();
        Ok(Self { options, guard, log, dropped, read, passed_over, documents_cut: 0, joined: (0, 0) })
    }

    /// Makes the shard directory.
    ///
    /// # Errors
    /// `Error::Data` for files that cannot be used.
    pub(crate) fn make(&mut self) -> Result<Manifest> {
        // A tokenizer or a file that cannot be read should not cost the reading of the log.
        let given = self.options.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
        for role in [Role::Clicks, Role::Queries, Role::Qrels, Role::Documents] {
            Files::open(&self.options.sources, role)?;
        }
        let sources = sources(self.options)?;
        let plan = serde_json::to_string(&(env!("CARGO_PKG_VERSION"), as_text(self.options), &sources))
            .map_err(|cause| Error::data(format!("the plan cannot be written down: {cause}")))?;
        let place = Workplace::claim(&self.options.out, &plan)?;
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
        let about = About {
            max_tokens: self.options.max_tokens,
            documents_cut: self.documents_cut,
            options: as_text(self.options),
            sources,
            dropped: std::mem::take(&mut self.dropped),
        };
        writer.finish(&tokenizer, about)
    }

    pub(crate) fn drop_rows(&mut self, reason: &str, count: u64) {
        if count > 0 {
            *self.dropped.entry(reason.into()).or_default() += count;
        }
    }

    pub(crate) fn note(&mut self, counts: &ReadCounts, kind: &'static str) {
        self.drop_rows(&format!("{kind} rows that are damaged"), counts.damaged);
        self.drop_rows(
            &format!("{kind} rows with bytes that are not UTF-8 (replaced, not dropped)"),
            counts.not_utf8,
        );
        self.read.push((kind, counts.clone()));
    }

    pub(crate) fn note_passed_over(&mut self, files: &Files) {
        self.passed_over.extend(files.passed_over.iter().cloned());
    }

    /// The vocabulary that an earlier process trained, or a new one.
    fn trained(&self, place: &Workplace) -> Result<Tokenizer> {
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
    fn train(&self, aside: &std::path::Path) -> Result<Tokenizer> {
        let mut documents = Files::open(&self.options.sources, Role::Documents)?;
        if !self.options.all_documents {
            documents.pick(&|id| self.wants(id))?;
        }
        let mut counts = WordCounts::default();
        for files in [Files::put_aside(aside), documents] {
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

    pub(crate) fn no_pair(&self) -> Error {
        let reasons: Vec<String> =
            self.dropped.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let clicks = self.options.sources.iter().find(|source| source.role != Role::Documents);
        let path = clicks.and_then(|source| source.path.first());
        Error::data(format!(
            "{}: no pair of query and document is left to train on; dropped: {}",
            path.map_or(String::new(), |path| path.display().to_string()),
            reasons.join(", ")
        ))
    }
}
