//! What a negative pair is. QDPP learns to tell clicked pairs from drawn ones, and a drawn pair
//! that the query did click would teach the opposite, so every draw is checked against the clicks.
//! What is drawn is a pure function of (seed, epoch, sample id).

use super::order::{Permutation, below};
use super::source::ClickLog;
pub use crate::config::Negatives;
use crate::corpus::HardNegatives;
use crate::random::{Purpose, philox};

/// Draws before the exact fallback takes over: a query would have to have clicked most of the
/// collection to get there.
const DRAWS: u32 = 64;

/// How far along the epoch's order an in-batch negative's document may lie, in samples.
const NEARBY: u32 = 4096;

/// The negative pair (query, document) of negative `sample` of click `click`; `None` where there is
/// none: the query clicked every document (or every query clicked the document).
///
/// `samples` is the number of samples in an epoch and `per_click` how many of them a click makes.
pub(crate) fn draw(
    (kind, hard): (Negatives, Option<&HardNegatives>),
    log: &dyn ClickLog,
    order: Permutation,
    key: (u32, u32),
    sample: u32,
    per_click: u32,
) -> Option<(u32, u32)> {
    let (seed, epoch) = key;
    let (query, document) = log.click(sample / per_click);
    let random = |lane: u32| philox(Purpose::Negative.key(seed), [sample, 0, epoch, lane])[0];
    match kind {
        Negatives::RandomDocument => Some((query, unclicked_document(log, query, random)?)),
        Negatives::RandomQuery => Some((other_query(log, document, random)?, document)),
        Negatives::InBatch => {
            let document = nearby_document(log, query, order, sample, per_click, random)
                .or_else(|| unclicked_document(log, query, random))?;
            Some((query, document))
        }
        Negatives::RunFile => {
            let document = match hard.map_or(&[][..], |hard| hard.of(query)) {
                [] => unclicked_document(log, query, random)?,
                ranked => ranked[below(random(0), ranked.len() as u32) as usize],
            };
            Some((query, document))
        }
    }
}

fn clicked(log: &dyn ClickLog, query: u32, document: u32) -> bool {
    log.clicked(query).binary_search(&document).is_ok()
}

/// Rejection first, as it needs one or two draws; then the exact choice among what is left.
fn unclicked_document(log: &dyn ClickLog, query: u32, random: impl Fn(u32) -> u32) -> Option<u32> {
    let (documents, clicks) = (log.documents(), log.clicked(query));
    let free = documents.checked_sub(clicks.len() as u32).filter(|&free| free > 0)?;
    for lane in 0..DRAWS {
        let document = below(random(lane), documents);
        if clicks.binary_search(&document).is_err() {
            return Some(document);
        }
    }
    // The k-th document that is not in the sorted list of clicks.
    let mut document = below(random(DRAWS), free);
    for &click in clicks {
        document += u32::from(click <= document);
    }
    Some(document)
}

fn other_query(log: &dyn ClickLog, document: u32, random: impl Fn(u32) -> u32) -> Option<u32> {
    let queries = log.queries();
    let fits = |query| log.admits(query) && !clicked(log, query, document);
    let mut query = 0;
    for lane in 0..DRAWS {
        query = below(random(lane), queries);
        if fits(query) {
            return Some(query);
        }
    }
    (1..queries)
        .map(|step| ((u64::from(query) + u64::from(step)) % u64::from(queries)) as u32)
        .find(|&other| fits(other))
}

fn nearby_document(
    log: &dyn ClickLog,
    query: u32,
    order: Permutation,
    sample: u32,
    per_click: u32,
    random: impl Fn(u32) -> u32,
) -> Option<u32> {
    let others = order.len().min(NEARBY) - 1;
    let position = u64::from(order.position(sample));
    (0..DRAWS).filter(|_| others > 0).find_map(|lane| {
        let step = u64::from(1 + below(random(lane), others));
        let other = order.at(((position + step) % u64::from(order.len())) as u32);
        let document = log.click(other / per_click).1;
        (!clicked(log, query, document)).then_some(document)
    })
}
