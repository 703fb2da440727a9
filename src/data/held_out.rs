//! Divides a click log: pairs to train on, and pairs that are only measured. A query is on one side with all
//! of its clicks, chosen by a hash of its tokens alone: the same queries are held out whatever the seed, the
//! order of the shards or the number of ranks, so that models compare.

use std::sync::Arc;

use rayon::prelude::*;

use super::click_log::ClickLog;
use crate::random::{Purpose, philox};
use crate::text::Special;
use crate::{Error, Result};

/// One side of a divided log. Queries and documents keep their indices, clicks get new ones.
pub struct Side {
    log: Arc<dyn ClickLog>,
    /// Whether each query is held out, [queries]
    held_queries: Arc<Vec<bool>>,
    /// Clicks of held-out queries, ascending.
    held: Arc<Vec<u32>>,
    /// The held-out side.
    measured: bool,
}

/// Divides `log` into pairs to train on and about `pairs` to measure.
///
/// # Errors
/// `Error::Config` when more than half would be held out, or nothing.
pub fn divide(log: &Arc<dyn ClickLog>, pairs: u32) -> Result<[Side; 2]> {
    let clicks = log.clicks();
    let bad = |why: String| Err(Error::config(format!("data.validation_pairs = {pairs}: {why}")));
    if u64::from(pairs) * 2 > u64::from(clicks) {
        return bad(format!("the log has {clicks} pairs; hold out at most half"));
    }
    let threshold = ((u64::from(pairs) << 32) / u64::from(clicks.max(1))) as u32;
    let held_queries: Vec<bool> =
        (0..log.queries()).into_par_iter().map(|query| hash(log.as_ref(), query) < threshold).collect();
    let held: Vec<u32> = (0..clicks).filter(|&click| held_queries[log.click(click).0 as usize]).collect();
    if held.is_empty() {
        return bad(format!("chooses none of the log's {} queries; raise it", log.queries()));
    }
    let (held_queries, held) = (Arc::new(held_queries), Arc::new(held));
    Ok([false, true].map(|measured| Side {
        log: log.clone(),
        held_queries: held_queries.clone(),
        held: held.clone(),
        measured,
    }))
}

/// A uniform number from a query's tokens.
fn hash(log: &dyn ClickLog, query: u32) -> u32 {
    let mut tokens = Vec::with_capacity(log.query_len(query));
    log.extend_query(query, &mut tokens, usize::MAX);
    let sum = crc32fast::hash(bytemuck::cast_slice(&tokens));
    philox(Purpose::HeldOut.key(0), [sum, tokens.len() as u32, 0, 0])[0]
}

impl Side {
    /// The number that a click of this side has in the whole log. For the held-out side it is in the list.
    /// For the other it is the i-th that is not in the list: i plus the held-out clicks before it, those with
    /// held[k] - k <= i.
    fn place(&self, click: u32) -> u32 {
        if self.measured {
            return self.held[click as usize];
        }
        let (mut low, mut high) = (0, self.held.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.held[middle] - middle as u32 <= click { low = middle + 1 } else { high = middle }
        }
        click + low as u32
    }
}

impl ClickLog for Side {
    fn queries(&self) -> u32 {
        self.log.queries()
    }

    fn documents(&self) -> u32 {
        self.log.documents()
    }

    fn clicks(&self) -> u32 {
        let held = self.held.len() as u32;
        if self.measured { held } else { self.log.clicks() - held }
    }

    fn click(&self, click: u32) -> (u32, u32) {
        self.log.click(self.place(click))
    }

    fn times(&self, click: u32) -> u32 {
        self.log.times(self.place(click))
    }

    fn clicked(&self, query: u32) -> &[u32] {
        self.log.clicked(query)
    }

    fn admits(&self, query: u32) -> bool {
        self.held_queries[query as usize] == self.measured
    }

    fn query_len(&self, query: u32) -> usize {
        self.log.query_len(query)
    }

    fn document_len(&self, document: u32) -> usize {
        self.log.document_len(document)
    }

    fn extend_query(&self, query: u32, out: &mut Vec<u32>, at_most: usize) {
        self.log.extend_query(query, out, at_most);
    }

    fn extend_document(&self, document: u32, out: &mut Vec<u32>, at_most: usize) {
        self.log.extend_document(document, out, at_most);
    }

    fn special(&self) -> Special {
        self.log.special()
    }
}
