//! What a negative pair is. QDPP learns to tell clicked pairs from drawn ones, and a drawn pair
//! that the query did click would teach the opposite, so every draw is checked against the clicks.
//! What is drawn is a pure function of (seed, epoch, sample id).

use super::click_log::ClickLog;
use super::order::{Permutation, below};
pub use crate::config::Negatives;
use crate::corpus::HardNegatives;
use crate::random::{Purpose, philox};

/// Draws before the exact fallback takes over: a query would have to have clicked most of the
/// collection to get there.
const DRAWS: u32 = 64;

/// How far along the epoch's order an in-batch negative's document may lie, in samples.
const NEARBY: u32 = 4096;

/// How the negatives of one epoch are drawn.
pub(super) struct Draw<'a> {
    pub(super) from: Negatives,
    /// The lists of `Negatives::RunFile`.
    pub(super) hard: Option<&'a HardNegatives>,
    pub(super) log: &'a dyn ClickLog,
    /// The order of the epoch's samples.
    pub(super) order: Permutation,
    pub(super) seed: u32,
    pub(super) epoch: u32,
    /// Samples that a click makes.
    pub(super) per_click: u32,
}

impl Draw<'_> {
    /// The negative pair (query, document) of `sample`; `None` where there is none: the query clicked every
    /// document, or every query clicked the document.
    pub(super) fn pair(&self, sample: u32) -> Option<(u32, u32)> {
        let (query, document) = self.log.click(sample / self.per_click);
        match self.from {
            Negatives::RandomDocument => Some((query, self.unclicked_document(query, sample)?)),
            Negatives::RandomQuery => Some((self.other_query(document, sample)?, document)),
            Negatives::InBatch => {
                let document =
                    self.nearby_document(query, sample).or_else(|| self.unclicked_document(query, sample))?;
                Some((query, document))
            }
            Negatives::RunFile => {
                let document = match self.hard.map_or(&[][..], |hard| hard.of(query)) {
                    [] => self.unclicked_document(query, sample)?,
                    ranked => ranked[below(self.random(sample, 0), ranked.len() as u32) as usize],
                };
                Some((query, document))
            }
        }
    }

    fn random(&self, sample: u32, lane: u32) -> u32 {
        philox(Purpose::Negative.key(self.seed), [sample, 0, self.epoch, lane])[0]
    }

    fn clicked(&self, query: u32, document: u32) -> bool {
        self.log.clicked(query).binary_search(&document).is_ok()
    }

    /// Rejection first, as it needs one or two draws; then the exact choice among what is left.
    fn unclicked_document(&self, query: u32, sample: u32) -> Option<u32> {
        let (documents, clicks) = (self.log.documents(), self.log.clicked(query));
        let free = documents.checked_sub(clicks.len() as u32).filter(|&free| free > 0)?;
        for lane in 0..DRAWS {
            let document = below(self.random(sample, lane), documents);
            if clicks.binary_search(&document).is_err() {
                return Some(document);
            }
        }
        // The k-th document that is not in the sorted list of clicks.
        let mut document = below(self.random(sample, DRAWS), free);
        for &click in clicks {
            document += u32::from(click <= document);
        }
        Some(document)
    }

    fn other_query(&self, document: u32, sample: u32) -> Option<u32> {
        let queries = self.log.queries();
        let fits = |query| self.log.admits(query) && !self.clicked(query, document);
        let mut query = 0;
        for lane in 0..DRAWS {
            query = below(self.random(sample, lane), queries);
            if fits(query) {
                return Some(query);
            }
        }
        (1..queries)
            .map(|step| ((u64::from(query) + u64::from(step)) % u64::from(queries)) as u32)
            .find(|&other| fits(other))
    }

    /// The document of a sample that comes soon in the epoch's order.
    fn nearby_document(&self, query: u32, sample: u32) -> Option<u32> {
        let others = self.order.len().min(NEARBY) - 1;
        let position = u64::from(self.order.position(sample));
        (0..DRAWS).filter(|_| others > 0).find_map(|lane| {
            let step = u64::from(1 + below(self.random(sample, lane), others));
            let other = self.order.at(((position + step) % u64::from(self.order.len())) as u32);
            let document = self.log.click(other / self.per_click).1;
            (!self.clicked(query, document)).then_some(document)
        })
    }
}
