//! The stages of `prepare`, in the order in which they run. What is left out at each is counted by reason.

use std::collections::BTreeMap;

use super::clicks::{Click, read_clicks};
use super::documents::{Document, ReadCounts, ReadOptions, read_documents_with};
use super::join::{EMPTY, EXCLUDED, LAST, Log, MISSING, slot_of};
use super::leak::Guard;
use super::manifest::Manifest;
use super::pipeline;
use super::prepare::{PrepareOptions, as_text, sources};
use super::progress::Progress;
use super::shard_write::{About, ShardWriter};
use super::tokenise::Tokenizer;
use crate::{Error, Result};

/// The work of one `prepare`.
pub(super) struct Preparation<'a> {
    options: &'a PrepareOptions,
    guard: Guard,
    log: Log,
    dropped: BTreeMap<String, u64>,
    /// First faults of all files.
    pub(super) shown: Vec<String>,
    documents_cut: u64,
}

impl<'a> Preparation<'a> {
    /// # Errors
    /// `Error::Config` for options that cannot be, `Error::Data` for excluded files that cannot be read.
    pub(super) fn new(options: &'a PrepareOptions) -> Result<Self> {
        if options.fields.is_empty() {
            return Err(Error::config("fields: name at least one of url, title, body"));
        }
        if options.max_tokens == 0 {
            return Err(Error::config("max_tokens = 0: documents need at least one token"));
        }
        let guard = Guard::read(&options.exclude_topics, &options.exclude_qrels)?;
        let (log, dropped) = (Log::default(), BTreeMap::new());
        Ok(Self { options, guard, log, dropped, shown: Vec::new(), documents_cut: 0 })
    }

    /// Makes the shard directory.
    ///
    /// # Errors
    /// `Error::Data` for files that cannot be used.
    pub(super) fn make(&mut self) -> Result<Manifest> {
        // A tokenizer that cannot be read should not cost the reading of the log.
        let given = self.options.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
        self.read_log()?;
        let tokenizer = match given {
            Some(tokenizer) => tokenizer,
            None => self.train()?,
        };
        let mut writer = ShardWriter::create(&self.options.out, tokenizer.vocab())?;
        self.write_documents(&tokenizer, &mut writer)?;
        let joined = self.log.join();
        for (reason, count) in joined.dropped {
            self.drop_rows(reason, count);
        }
        let kept = joined.kept;
        self.write_queries(&tokenizer, &mut writer, &kept)?;
        self.write_clicks(&mut writer, &kept)?;
        let about = About {
            max_tokens: self.options.max_tokens,
            documents_cut: self.documents_cut,
            options: as_text(self.options),
            sources: sources(self.options)?,
            dropped: std::mem::take(&mut self.dropped),
        };
        writer.finish(&tokenizer, about)
    }

    fn drop_rows(&mut self, reason: &str, count: u64) {
        if count > 0 {
            *self.dropped.entry(reason.into()).or_default() += count;
        }
    }

    fn note(&mut self, counts: ReadCounts, kind: &str) {
        self.drop_rows(&format!("{kind} rows that are damaged"), counts.damaged);
        self.drop_rows(
            &format!("{kind} rows with bytes that are not UTF-8 (replaced, not dropped)"),
            counts.not_utf8,
        );
        self.shown.extend(counts.shown);
    }

    fn read_log(&mut self) -> Result<()> {
        let mut progress = Progress::of_file("reading clicks", &self.options.clicks);
        let read = ReadOptions { strict: self.options.strict, done: Some(progress.done.clone()) };
        let (mut barred, mut rows) = (0, 0u64);
        let (guard, log) = (&self.guard, &mut self.log);
        let counts = read_clicks(&self.options.clicks, &read, |click| {
            rows += 1;
            if rows.is_multiple_of(65_536) {
                progress.tick();
            }
            if guard.bars_query(click.query) {
                barred += 1;
                return Ok(());
            }
            let query = slot_of(&mut log.queries, click.query_id, "queries")?;
            let document = slot_of(&mut log.documents, click.document_id, "documents")?;
            log.pairs.push((query, document));
            Ok(())
        })?;
        log.document_index = vec![MISSING; log.documents.len()];
        log.query_index = vec![MISSING; log.queries.len()];
        self.drop_rows("clicks whose query is an excluded topic", barred);
        self.note(counts, "click");
        Ok(())
    }

    /// A vocabulary from each query once and every document that may enter.
    fn train(&self) -> Result<Tokenizer> {
        let mut progress = Progress::of_file("training the vocabulary", &self.options.documents);
        let documents = ReadOptions { strict: false, done: Some(progress.done.clone()) };
        let read = |pass: &mut dyn FnMut(usize, String) -> Result<()>| {
            let mut seen = vec![false; self.log.queries.len()];
            self.each_query(&mut seen, &ReadOptions::default(), |_, _, text| {
                pass(text.len(), text.to_owned())
            })?;
            read_documents_with(&self.options.documents, &self.options.fields, &documents, |document| {
                if self.wants(&document.id) { pass(document.text.len(), document.text) } else { Ok(()) }
            })
        };
        let (_, tokenizer) = pipeline::run(read, |texts| {
            let texts = texts.into_iter().inspect(|_| progress.tick()).flatten();
            Tokenizer::train(texts, self.options.vocab)
        })?;
        Ok(tokenizer)
    }

    fn wants(&self, document: &str) -> bool {
        (self.options.all_documents || self.log.documents.contains_key(document))
            && !self.guard.bars_document(document)
    }

    /// Calls `each` with slot, id and text of every query of the log that is not yet `seen`.
    fn each_query(
        &self,
        seen: &mut [bool],
        read: &ReadOptions,
        mut each: impl FnMut(u32, &str, &str) -> Result<()>,
    ) -> Result<ReadCounts> {
        read_clicks(&self.options.clicks, read, |Click { query_id, query, .. }| {
            match self.log.queries.get(query_id) {
                Some(&slot) if !seen[slot as usize] && !self.guard.bars_query(query) => {
                    seen[slot as usize] = true;
                    each(slot, query_id, query)
                }
                _ => Ok(()),
            }
        })
    }

    fn write_documents(&mut self, tokenizer: &Tokenizer, writer: &mut ShardWriter) -> Result<()> {
        let options = self.options;
        let mut progress = Progress::of_file("tokenising documents", &options.documents);
        let read = ReadOptions { strict: options.strict, done: Some(progress.done.clone()) };
        let (counts, first_id) = pipeline::run(
            |pass| {
                read_documents_with(&options.documents, &options.fields, &read, |document| {
                    pass(document.text.len(), document)
                })
            },
            |batches| {
                let mut first_id = None;
                for documents in batches {
                    first_id = first_id.or_else(|| documents.first().map(|document| document.id.clone()));
                    self.write_document_batch(tokenizer, writer, documents)?;
                    progress.tick();
                }
                Ok(first_id.unwrap_or_default())
            },
        )?;
        if let Some(clicked) = self.log.unjoined() {
            return Err(Error::data(format!(
                "no document joined: clicks name documents like {clicked:?}, {} holds {} like {first_id:?}. ORCAS \
                 belongs to MS MARCO version 1 (ids like D1265400); version 2 (msmarco_doc_...) has other ids",
                options.documents.display(),
                counts.kept,
            )));
        }
        self.note(counts, "document");
        Ok(())
    }

    fn write_document_batch(
        &mut self,
        tokenizer: &Tokenizer,
        writer: &mut ShardWriter,
        documents: Vec<Document>,
    ) -> Result<()> {
        let (kept, slots) = self.choose(documents)?;
        let texts: Vec<&str> = kept.iter().map(|document| document.text.as_str()).collect();
        // One token more than is kept tells which documents are cut.
        let most = self.options.max_tokens;
        let tokens = tokenizer.encode_batch(&texts, most.saturating_add(1))?;
        for ((document, slot), tokens) in kept.iter().zip(slots).zip(tokens) {
            self.log.document_index[slot as usize] = if tokens.is_empty() {
                self.drop_rows("documents without text", 1);
                EMPTY
            } else {
                self.documents_cut += u64::from(tokens.len() > most);
                writer.document(&document.id, &tokens[..tokens.len().min(most)])?
            };
        }
        Ok(())
    }

    /// The documents of a batch that enter, with their slots.
    fn choose(&mut self, documents: Vec<Document>) -> Result<(Vec<Document>, Vec<u32>)> {
        let (mut kept, mut slots) =
            (Vec::with_capacity(documents.len()), Vec::with_capacity(documents.len()));
        for document in documents {
            if !self.options.all_documents && !self.log.documents.contains_key(document.id.as_str()) {
                self.drop_rows("documents that nobody clicked", 1);
                continue;
            }
            let slot = slot_of(&mut self.log.documents, &document.id, "documents")?;
            if slot as usize == self.log.document_index.len() {
                self.log.document_index.push(MISSING);
            }
            let place = &mut self.log.document_index[slot as usize];
            if *place != MISSING {
                self.drop_rows("documents whose id came before", 1);
            } else if self.guard.bars_document(&document.id) {
                *place = EXCLUDED;
                self.drop_rows("documents that are excluded", 1);
            } else {
                // Taken, so that a second one in the same batch is seen; the index follows.
                *place = EMPTY;
                kept.push(document);
                slots.push(slot);
            }
        }
        Ok((kept, slots))
    }

    fn write_queries(
        &mut self,
        tokenizer: &Tokenizer,
        writer: &mut ShardWriter,
        kept: &[bool],
    ) -> Result<()> {
        if !kept.contains(&true) {
            return Err(self.no_pair());
        }
        let mut progress = Progress::of_file("tokenising queries", &self.options.clicks);
        let read = ReadOptions { strict: false, done: Some(progress.done.clone()) };
        let mut seen: Vec<bool> = self.log.query_index.iter().map(|&index| index == MISSING).collect();
        let mut index = std::mem::take(&mut self.log.query_index);
        let this = &*self;
        pipeline::run(
            |pass| {
                this.each_query(&mut seen, &read, |slot, id, text| {
                    pass(text.len(), (slot, id.to_owned(), text.to_owned()))
                })
            },
            |batches| {
                for queries in batches {
                    let texts: Vec<&str> = queries.iter().map(|(_, _, text)| text.as_str()).collect();
                    let tokens = tokenizer.encode_batch(&texts, usize::MAX)?;
                    for ((slot, id, _), tokens) in queries.iter().zip(tokens) {
                        if !tokens.is_empty() {
                            index[*slot as usize] = writer.query(id, &tokens)?;
                        }
                    }
                    progress.tick();
                }
                Ok(())
            },
        )?;
        self.log.query_index = index;
        let unused = self.log.query_index.iter().filter(|&&index| index == MISSING).count();
        self.drop_rows("queries of which no click is left", unused as u64);
        Ok(())
    }

    fn write_clicks(&mut self, writer: &mut ShardWriter, kept: &[bool]) -> Result<()> {
        let (mut written, mut speechless) = (0u64, 0);
        for (&(query, document), _) in self.log.pairs.iter().zip(kept).filter(|(_, kept)| **kept) {
            let query = self.log.query_index[query as usize];
            if query > LAST {
                speechless += 1;
                continue;
            }
            writer.click(query, self.log.document_index[document as usize]);
            written += 1;
        }
        self.drop_rows("clicks whose query has no text", speechless);
        if written == 0 { Err(self.no_pair()) } else { Ok(()) }
    }

    fn no_pair(&self) -> Error {
        let reasons: Vec<String> =
            self.dropped.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        Error::data(format!(
            "{}: no pair of query and document is left to train on; dropped: {}",
            self.options.clicks.display(),
            reasons.join(", ")
        ))
    }
}
