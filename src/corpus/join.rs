//! Which rows of the log become pairs: ids on both sides, and where each id went. Slots are numbers in
//! the order of first sight; indices are places in the shards, known only when a text is written.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::{Error, Result};

/// Index of a slot that is not in the shards: never seen in the collection (or not yet written) ...
pub(super) const MISSING: u32 = u32::MAX;
/// ... or without a single token ...
pub(super) const EMPTY: u32 = u32::MAX - 1;
/// ... or kept out by the leak guard.
pub(super) const EXCLUDED: u32 = u32::MAX - 2;
/// The largest real index.
pub(super) const LAST: u32 = u32::MAX - 3;

/// Ids and pairs of the log, and where each went.
#[derive(Default)]
pub(super) struct Log {
    /// Query id -> slot.
    pub(super) queries: HashMap<Box<str>, u32>,
    /// Document id -> slot; those of the log first, later also those that nobody clicked.
    pub(super) documents: HashMap<Box<str>, u32>,
    /// (query slot, document slot) of each usable row.
    pub(super) pairs: Vec<(u32, u32)>,
    /// Document slot -> index in the shards, or why there is none.
    pub(super) document_index: Vec<u32>,
    /// Query slot -> index in the shards, or why there is none.
    pub(super) query_index: Vec<u32>,
}

/// The slot of an id, a new one for a new id.
pub(super) fn slot_of(table: &mut HashMap<Box<str>, u32>, id: &str, kind: &str) -> Result<u32> {
    if let Some(&slot) = table.get(id) {
        return Ok(slot);
    }
    let slot = u32::try_from(table.len()).ok().filter(|&slot| slot < LAST);
    let slot = slot.ok_or_else(|| Error::data(format!("more than {LAST} {kind}")))?;
    table.insert(id.into(), slot);
    Ok(slot)
}

/// What `Log::join` decided.
pub(super) struct Joined {
    /// Whether each pair of the log enters.
    pub(super) kept: Vec<bool>,
    /// Rows that do not enter, by reason.
    pub(super) dropped: [(&'static str, u64); 4],
}

impl Log {
    /// Keeps the pairs whose document is in the shards, each once, and marks their queries as due
    /// (`EMPTY` until they are written).
    pub(super) fn join(&mut self) -> Joined {
        let index = |&(_, slot): &(u32, u32)| self.document_index[slot as usize];
        let mut kept: Vec<bool> = self.pairs.iter().map(|pair| index(pair) <= LAST).collect();
        let count = |why: u32| self.pairs.iter().filter(|pair| index(pair) == why).count() as u64;
        let mut order: Vec<u32> = (0..self.pairs.len() as u32).collect();
        order.par_sort_unstable_by_key(|&i| (self.pairs[i as usize], i));
        let mut repeated = 0;
        for pair in order.windows(2) {
            let (first, second) = (pair[0] as usize, pair[1] as usize);
            if self.pairs[first] == self.pairs[second] && kept[second] {
                kept[second] = false;
                repeated += 1;
            }
        }
        let dropped = [
            ("clicks whose document is not in the collection", count(MISSING)),
            ("clicks whose document has no text", count(EMPTY)),
            ("clicks whose document is excluded", count(EXCLUDED)),
            ("clicks that came before", repeated),
        ];
        for (&(query, _), kept) in self.pairs.iter().zip(&kept) {
            if *kept {
                self.query_index[query as usize] = EMPTY;
            }
        }
        Joined { kept, dropped }
    }

    /// An id that the log names where the collection holds none of those it names.
    pub(super) fn unjoined(&self) -> Option<&str> {
        if self.pairs.iter().any(|&(_, slot)| self.document_index[slot as usize] != MISSING) {
            return None;
        }
        let first = self.pairs.first().map(|&(_, slot)| slot)?;
        self.documents.iter().find(|(_, slot)| **slot == first).map(|(id, _)| id.as_ref())
    }
}
