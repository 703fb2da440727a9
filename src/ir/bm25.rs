//! The first stage: BM25 over an inverted index that tantivy builds. Its numbers enter papers as the
//! baseline, so the formula is Lucene's to the constant, k1 and b are the user's (tantivy's own scorer
//! fixes them), and ties are broken as trec_eval breaks them.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use tantivy::directory::error::{OpenDirectoryError, OpenReadError, OpenWriteError};
use tantivy::fieldnorm::FieldNormReader;
use tantivy::indexer::{IndexWriterOptions, NoMergePolicy};
use tantivy::postings::Postings;
use tantivy::schema::{Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::TextAnalyzer;
use tantivy::{
    DocSet, Index, IndexReader, IndexSettings, IndexWriter, InvertedIndexReader, ReloadPolicy, TERMINATED,
    TantivyDocument, TantivyError, Term,
};

use super::analysis::Analysis;
use super::run::Hit;
use crate::{Error, Result};

/// Index writer's memory per thread. More means fewer segments, which changes speed and no score.
const WRITER_BYTES: usize = 100 << 20;
const ANALYSER: &str = "ctune";

/// Collects documents for a `Retriever`.
pub struct Indexer {
    writer: IndexWriter,
    index: Index,
    analyser: TextAnalyzer,
    text: Field,
    ordinal: Field,
    ids: Vec<String>,
    folder: tempfile::TempDir,
}

impl Indexer {
    /// The index lies in a temporary folder in `folder` until the retriever is dropped; it takes about
    /// a third of the text's size.
    pub fn new(folder: &Path, analysis: Analysis) -> Result<Self> {
        let mut schema = Schema::builder();
        let indexing = TextFieldIndexing::default()
            .set_tokenizer(ANALYSER)
            .set_index_option(IndexRecordOption::WithFreqs)
            .set_fieldnorms(true);
        let text = schema.add_text_field("text", TextOptions::default().set_indexing_options(indexing));
        let ordinal = schema.add_u64_field("ordinal", tantivy::schema::FAST);
        let place = tempfile::tempdir_in(folder).map_err(|cause| Error::io("written", folder, cause))?;
        // Nothing is stored, so there is nothing for a thread to compress.
        let settings = IndexSettings { docstore_compress_dedicated_thread: false, ..Default::default() };
        let builder = Index::builder().schema(schema.build()).settings(settings);
        let index = builder.create_in_dir(place.path()).map_err(fail)?;
        let analyser = analysis.analyser();
        index.tokenizers().register(ANALYSER, analyser.clone());
        let writer = writer(&index, rayon::current_num_threads().clamp(1, 8))?;
        // Nothing reads this index but one pass of queries: merging would cost more than it gives.
        writer.set_merge_policy(Box::new(NoMergePolicy));
        Ok(Self { writer, index, analyser, text, ordinal, ids: Vec::new(), folder: place })
    }

    pub fn add(&mut self, id: impl Into<String>, text: &str) -> Result<()> {
        let mut document = TantivyDocument::default();
        document.add_text(self.text, text);
        document.add_u64(self.ordinal, self.ids.len() as u64);
        self.writer.add_document(document).map_err(fail)?;
        self.ids.push(id.into());
        Ok(())
    }

    /// Documents that were added.
    pub fn documents(&self) -> usize {
        self.ids.len()
    }

    /// Makes the index searchable. Errors: no document, an id twice.
    pub fn finish(mut self, k1: f32, b: f32) -> Result<Retriever> {
        if self.ids.is_empty() {
            return Err(Error::data("no document to search in"));
        }
        let mut order = (0..self.ids.len()).collect::<Vec<_>>();
        order.par_sort_unstable_by(|&i, &j| self.ids[i].cmp(&self.ids[j]));
        if let Some(twice) = order.windows(2).find(|pair| self.ids[pair[0]] == self.ids[pair[1]]) {
            return Err(Error::data(format!("document '{}' occurs twice", self.ids[twice[0]])));
        }
        self.writer.commit().map_err(fail)?;
        // Read once: nobody has to watch for the next commit.
        let reader = self.index.reader_builder().reload_policy(ReloadPolicy::Manual);
        let reader: IndexReader = reader.try_into().map_err(fail)?;
        let (mut segments, mut tokens) = (Vec::new(), 0);
        for segment in reader.searcher().segment_readers() {
            let postings = segment.inverted_index(self.text).map_err(fail)?;
            let ordinals = segment.fast_fields().u64("ordinal").map_err(fail)?.first_or_default_col(0);
            tokens += postings.total_num_tokens();
            segments.push(Segment {
                postings,
                lengths: segment.get_fieldnorms_reader(self.text).map_err(fail)?,
                ordinals: (0..segment.max_doc()).map(|document| ordinals.get_val(document) as u32).collect(),
            });
        }
        let documents = self.ids.len() as f64;
        Ok(Retriever {
            segments,
            ids: self.ids,
            analyser: self.analyser,
            text: self.text,
            average_length: tokens as f64 / documents,
            k1,
            b,
            _folder: self.folder,
        })
    }
}

/// A writer with `most` threads, or as many as the system allows. Nothing is merged, so one thread is enough
/// for merging.
fn writer(index: &Index, most: usize) -> Result<IndexWriter> {
    let mut threads = most;
    loop {
        let options = IndexWriterOptions::builder()
            .num_worker_threads(threads)
            .num_merge_threads(1)
            .memory_budget_per_thread(WRITER_BYTES)
            .build();
        match index.writer_with_options(options) {
            Err(TantivyError::SystemError(_) | TantivyError::IoError(_)) if threads > 1 => threads /= 2,
            made => return made.map_err(fail),
        }
    }
}

/// One part of the index, with its own document numbers.
struct Segment {
    postings: Arc<InvertedIndexReader>,
    lengths: FieldNormReader,
    /// [documents of the segment] -> index in `Retriever::ids`.
    ordinals: Vec<u32>,
}

/// BM25 over an index.
pub struct Retriever {
    segments: Vec<Segment>,
    ids: Vec<String>,
    analyser: TextAnalyzer,
    text: Field,
    average_length: f64,
    k1: f32,
    b: f32,
    _folder: tempfile::TempDir,
}

impl Retriever {
    pub fn documents(&self) -> usize {
        self.ids.len()
    }

    /// Terms a document after analysis, on average.
    pub fn average_length(&self) -> f64 {
        self.average_length
    }

    /// The `depth` best documents of a query that hold at least one of its terms, best first, ties by
    /// document id descending. The score is Lucene's since version 8 (Kamphuis et al., ECIR 2020), the
    /// sum over query terms, each as often as it stands in the query, of
    /// `ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / average))`;
    /// the constant factor k1 + 1 of older forms changes no order and is left out. `length` is in
    /// tantivy's one-byte code, which is Lucene's: exact to 40, then up to an eighth too short.
    pub fn search(&self, query: &str, depth: usize) -> Result<Vec<Hit>> {
        let terms = self.terms(query);
        let table = self.length_table();
        let (mut scores, mut touched, mut best) = (Vec::new(), Vec::new(), Vec::new());
        let weights =
            terms.iter().map(|(term, count)| self.weight(term, *count)).collect::<Result<Vec<_>>>()?;
        for segment in &self.segments {
            scores.clear();
            scores.resize(segment.ordinals.len(), 0.0_f32);
            touched.clear();
            for ((term, _), weight) in terms.iter().zip(&weights) {
                let postings = segment.postings.read_postings(term, IndexRecordOption::WithFreqs);
                let Some(mut postings) = postings.map_err(|error| fail(error.into()))? else { continue };
                let mut document = postings.doc();
                while document != TERMINATED {
                    let frequency = postings.term_freq() as f32;
                    let length = table[usize::from(segment.lengths.fieldnorm_id(document))];
                    let score = &mut scores[document as usize];
                    if *score == 0.0 {
                        touched.push(document);
                    }
                    *score += weight * (frequency / (frequency + length));
                    document = postings.advance();
                }
            }
            best.extend(touched.iter().map(|&d| (scores[d as usize], segment.ordinals[d as usize])));
            self.keep_best(&mut best, depth);
        }
        best.sort_unstable_by(|a, b| self.better(a, b));
        let hit = |&(score, ordinal): &(f32, u32)| (self.ids[ordinal as usize].clone(), f64::from(score));
        Ok(best.iter().map(hit).map(|(doc, score)| Hit { doc: doc.into(), score }).collect())
    }

    /// The query's terms in order of appearance, with their counts. The order fixes the order of
    /// float additions and so the scores.
    fn terms(&self, query: &str) -> Vec<(Term, u32)> {
        let mut analyser = self.analyser.clone();
        let (mut terms, mut place) = (Vec::<(Term, u32)>::new(), HashMap::new());
        analyser.token_stream(query).process(&mut |token| {
            let at = *place.entry(token.text.clone()).or_insert_with(|| {
                terms.push((Term::from_field_text(self.text, &token.text), 0));
                terms.len() - 1
            });
            terms[at].1 += 1;
        });
        terms
    }

    /// A query term's idf times its count in the query.
    fn weight(&self, term: &Term, count: u32) -> Result<f32> {
        let mut found = 0_u64;
        for segment in &self.segments {
            found += u64::from(segment.postings.doc_freq(term).map_err(|error| fail(error.into()))?);
        }
        let (n, df) = (self.ids.len() as f64, found as f64);
        Ok((1.0 + (n - df + 0.5) / (df + 0.5)).ln() as f32 * count as f32)
    }

    /// [256] length code -> k1 * (1 - b + b * length / average).
    fn length_table(&self) -> Vec<f32> {
        let (k1, b) = (f64::from(self.k1), f64::from(self.b));
        let part = |code| f64::from(FieldNormReader::id_to_fieldnorm(code)) / self.average_length;
        (0..=u8::MAX).map(|code| (k1 * (1.0 - b + b * part(code))) as f32).collect()
    }

    fn better(&self, a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
        b.0.total_cmp(&a.0).then_with(|| self.ids[b.1 as usize].cmp(&self.ids[a.1 as usize]))
    }

    fn keep_best(&self, found: &mut Vec<(f32, u32)>, depth: usize) {
        if found.len() > depth && depth > 0 {
            found.select_nth_unstable_by(depth - 1, |a, b| self.better(a, b));
        }
        found.truncate(depth);
    }
}

fn fail(error: TantivyError) -> Error {
    const WHAT: &str = "the temporary search index";
    let cause = match &error {
        TantivyError::SystemError(cause) => {
            return Error::device(format!("{WHAT}: {cause}: raise the limit on threads (ulimit -u)"));
        }
        TantivyError::IoError(cause)
        | TantivyError::OpenReadError(OpenReadError::IoError { io_error: cause, .. })
        | TantivyError::OpenDirectoryError(OpenDirectoryError::IoError { io_error: cause, .. })
        | TantivyError::OpenWriteError(OpenWriteError::IoError { io_error: cause, .. }) => cause.clone(),
        _ => return Error::data(format!("{WHAT}: {error}")),
    };
    match cause.raw_os_error() {
        _ if cause.kind() == io::ErrorKind::WouldBlock => {
            Error::device(format!("{WHAT}: a thread cannot be started: {cause}: raise the limit (ulimit -u)"))
        }
        Some(code) => Error::io("written", Path::new(WHAT), io::Error::from_raw_os_error(code)),
        None => Error::data(format!("{WHAT}: {cause}")),
    }
}
