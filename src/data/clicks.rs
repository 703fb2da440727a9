//! Samples of a click log: each clicked pair and the negatives that are drawn for it. A sample is its id and
//! the epoch, so no list of pairs is kept.

use std::sync::Arc;

use super::batch::Batch;
use super::click_log::ClickLog;
use super::negatives::{Draw, Negatives};
use super::order::Permutation;
use super::source::SampleSource;
use crate::config::DOCUMENT_LEAST;
pub use crate::config::{Grades, Truncate};
use crate::corpus::HardNegatives;
use crate::{Error, Result};

/// Which samples a click becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairUse {
    /// The clicked pair and its negatives, labelled for QDPP.
    #[default]
    Labelled,
    /// The same samples with the same texts, packs and masks, but no labels: MLM alone on exactly
    /// the tokens that the labelled run sees.
    Unlabelled,
    /// Clicked pairs alone, without labels; `negatives_per_positive` counts as 0.
    ClicksOnly,
}

/// How a click log becomes samples.
#[derive(Clone, Debug)]
pub struct ClickOptions {
    /// Keys the draw of negatives.
    pub seed: u32,
    /// Longest sequence, special tokens included.
    pub max_tokens: usize,
    /// Tokens to which a query is cut before `truncate` looks at the pair.
    pub max_query_tokens: Option<usize>,
    pub truncate: Truncate,
    pub negatives: Negatives,
    pub negatives_per_positive: u32,
    /// The lists of `Negatives::RunFile`.
    pub hard: Option<Arc<HardNegatives>>,
    pub grades: Grades,
    pub pairs: PairUse,
}

/// Query-document pairs of a click log, `[CLS] query [SEP] document [SEP]`.
///
/// Sample id = click * (1 + negatives per positive) + j; j = 0 is the clicked pair (class 0), each
/// j >= 1 a negative of it (class 1).
pub struct ClickSource {
    log: Arc<dyn ClickLog>,
    options: ClickOptions,
    /// Samples that one click makes.
    per_click: u32,
    samples: u32,
    longest: usize,
    cut_queries: u32,
    without_hard: u32,
    /// Mean of ln(1 + times) over the clicks.
    mean_grade: f64,
}

impl ClickSource {
    /// Reads every query's and document's length once, to know the longest sample.
    ///
    /// # Errors
    /// `Error::Config` when `max_tokens` leaves no room for a pair or no negative is asked for
    /// though pairs are labelled; `Error::Data` when there are no clicks, too many samples for
    /// 32-bit ids, or a query that clicked every document.
    pub fn new(log: Arc<dyn ClickLog>, options: ClickOptions) -> Result<Self> {
        let least = 3 + 1 + DOCUMENT_LEAST;
        if options.max_tokens < least {
            return Err(Error::config(format!(
                "[data] max_tokens = {}: a query-document pair needs at least {least}",
                options.max_tokens
            )));
        }
        if options.pairs == PairUse::Labelled && options.negatives_per_positive == 0 {
            return Err(Error::config(
                "[objective] negatives_per_positive = 0: QDPP needs at least 1 (or set qdpp = 0)",
            ));
        }
        let per_click = match options.pairs {
            PairUse::ClicksOnly => 1,
            _ => options.negatives_per_positive.saturating_add(1),
        };
        let samples = log.clicks().checked_mul(per_click).filter(|&n| n < u32::MAX).ok_or_else(|| {
            Error::data(format!(
                "{} clicks x {per_click} samples a click are more than 2^32 - 2 samples: lower [objective] \
                 negatives_per_positive",
                log.clicks()
            ))
        })?;
        if samples == 0 {
            return Err(Error::data("the shards hold no clicks: nothing to train on"));
        }
        let (longest, cut_queries, without_hard, mean_grade) = (0, 0, 0, 1.0);
        let mut source =
            Self { log, options, per_click, samples, longest, cut_queries, without_hard, mean_grade };
        source.survey()?;
        Ok(source)
    }

    /// How many queries of the log are cut, some only beside a long document, and how many tokens they keep.
    pub fn cut_queries(&self) -> (u32, usize) {
        (self.cut_queries, self.longest_whole_query())
    }

    /// Tokens of a query that is never cut. [`Truncate::Document`] leaves the document at least
    /// [`DOCUMENT_LEAST`] tokens, [`Truncate::LongestFirst`] half of the room.
    fn longest_whole_query(&self) -> usize {
        let room = self.options.max_tokens - 3;
        let most = match self.options.truncate {
            Truncate::Document => room - DOCUMENT_LEAST,
            Truncate::LongestFirst => room.div_ceil(2),
        };
        self.most(most)
    }

    /// `length`, but at most `max_query_tokens`.
    fn most(&self, length: usize) -> usize {
        self.options.max_query_tokens.map_or(length, |most| length.min(most))
    }

    /// Clicks that get random documents because the run of hard negatives has none for their query.
    pub fn without_hard(&self) -> u32 {
        self.without_hard
    }

    /// Clicks of the log, or of this side of it.
    pub fn clicks(&self) -> u32 {
        self.log.clicks()
    }

    /// The weight of a click's pairs.
    fn weight(&self, click: u32) -> f32 {
        (grade(self.log.times(click)) / self.mean_grade) as f32
    }

    fn survey(&mut self) -> Result<()> {
        let (log, max_tokens) = (&self.log, self.options.max_tokens);
        let (mut longest_query, whole) = (0, self.longest_whole_query());
        for query in 0..log.queries() {
            let length = log.query_len(query);
            longest_query = longest_query.max(length);
            self.cut_queries += u32::from(length > whole);
            if self.per_click > 1 && log.clicked(query).len() as u64 >= u64::from(log.documents()) {
                return Err(Error::data(format!(
                    "query {query} of the shards clicked all {} documents, so it has no negative: add \
                     documents that nobody clicked, or train on clicks only",
                    log.documents()
                )));
            }
        }
        let longest_document = (0..log.documents()).map(|d| log.document_len(d)).max().unwrap_or(0);
        self.longest = max_tokens.min(3 + self.most(longest_query) + longest_document);
        if let Some(hard) = &self.options.hard {
            let without = |&click: &u32| hard.of(log.click(click).0).is_empty();
            self.without_hard = (0..log.clicks()).filter(without).count() as u32;
        }
        if self.options.grades == Grades::ClickCount {
            let sum: f64 = (0..log.clicks()).map(|click| grade(log.times(click))).sum();
            self.mean_grade = sum / f64::from(log.clicks());
        }
        Ok(())
    }

    /// (query, document) of a sample.
    fn pair(&self, sample: u32, epoch: u32) -> Option<(u32, u32)> {
        if sample.is_multiple_of(self.per_click) {
            return Some(self.log.click(sample / self.per_click));
        }
        let draw = Draw {
            from: self.options.negatives,
            hard: self.options.hard.as_deref(),
            log: self.log.as_ref(),
            order: Permutation::new(self.samples, self.options.seed, epoch),
            seed: self.options.seed,
            epoch,
            per_click: self.per_click,
        };
        draw.pair(sample)
    }

    /// Tokens kept of the query and of the document.
    fn keep(&self, query: u32, document: u32) -> (usize, usize) {
        let room = self.options.max_tokens - 3;
        let (query, document) = (self.most(self.log.query_len(query)), self.log.document_len(document));
        match self.options.truncate {
            Truncate::Document => {
                let query = query.min(room - DOCUMENT_LEAST);
                (query, document.min(room - query))
            }
            Truncate::LongestFirst if query + document <= room => (query, document),
            Truncate::LongestFirst if query <= room / 2 => (query, room - query),
            Truncate::LongestFirst if document <= room / 2 => (room - document, document),
            Truncate::LongestFirst => (room.div_ceil(2), room / 2),
        }
    }
}

impl SampleSource for ClickSource {
    fn samples(&self) -> u32 {
        self.samples
    }

    fn length(&self, sample: u32, epoch: u32) -> usize {
        // A sample without a negative fails in `push`; its length does not matter.
        self.pair(sample, epoch).map_or(3, |(query, document)| {
            let (query, document) = self.keep(query, document);
            3 + query + document
        })
    }

    fn pairs(&self, _sample: u32) -> usize {
        usize::from(self.options.pairs == PairUse::Labelled)
    }

    fn push(&self, sample: u32, epoch: u32, batch: &mut Batch) -> Result<()> {
        let (query, document) = self.pair(sample, epoch).ok_or_else(|| {
            let (query, document) = self.log.click(sample / self.per_click);
            Error::data(format!(
                "click {} (query {query}, document {document}) has no negative: every query clicked this \
                 document; choose [objective] negatives = \"random-document\"",
                sample / self.per_click
            ))
        })?;
        let (query_keep, document_keep) = self.keep(query, document);
        let mut text = Vec::with_capacity(query_keep + document_keep);
        self.log.extend_query(query, &mut text, query_keep);
        self.log.extend_document(document, &mut text, document_keep);
        let (first, second) = text.split_at(query_keep);
        batch.push(self.log.special(), sample, first, Some(second));
        if self.options.pairs == PairUse::Labelled {
            batch.pair_labels.push(u32::from(!sample.is_multiple_of(self.per_click)));
            if self.options.grades == Grades::ClickCount {
                batch.pair_weights.push(self.weight(sample / self.per_click));
            }
        }
        Ok(())
    }

    fn longest(&self) -> usize {
        self.longest
    }
}

fn grade(times: u32) -> f64 {
    f64::from(times).ln_1p()
}
