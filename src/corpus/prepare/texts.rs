//! What the two stages that tokenise have in common: the texts of a block, and the ledger that becomes a part's
//! note. Both run on all cores, write in the order of the files, and finish part by part, so that a killed
//! process costs only the part that was being filled.

use std::collections::BTreeMap;

use hashbrown::HashSet;

use crate::corpus::ids::Ids;
use crate::corpus::read::source::{BlockTally, Tally};
use crate::corpus::shard::parts::Note;

/// A document or query of a block.
pub(super) struct Text {
    pub(super) id: std::ops::Range<usize>,
    /// Its tokens, or why there are none.
    pub(super) outcome: std::result::Result<std::ops::Range<usize>, (u32, &'static str)>,
    /// It was longer than is kept.
    pub(super) cut: bool,
}

/// The texts of one block, tokenised.
pub(super) struct TextBlock {
    pub(super) tally: BlockTally,
    pub(super) ids: String,
    pub(super) tokens: Vec<u32>,
    pub(super) texts: Vec<Text>,
    /// Documents that nobody clicked, where those are not wanted.
    pub(super) unclicked: u64,
    /// Id of the block's first document, wanted or not.
    pub(super) first: Option<String>,
}

/// What happened since the last part, and what must be known of all parts.
pub(super) struct Ledger {
    pub(super) tally: Tally,
    pub(super) dropped: BTreeMap<String, u64>,
    pub(super) decided: Vec<(String, u32)>,
    pub(super) cut: u64,
    /// Ids of documents that nobody clicked.
    pub(super) others: Ids,
    /// Hashes of token lists, where no list may come twice.
    pub(super) seen: Option<HashSet<u64>>,
    pub(super) first: Option<String>,
}

impl Ledger {
    pub(super) fn new(seen: Option<HashSet<u64>>) -> Self {
        let (tally, dropped, decided, others) = Default::default();
        Self { tally, dropped, decided, cut: 0, others, seen, first: None }
    }

    pub(super) fn drop_rows(&mut self, reason: &str, count: u64) {
        if count > 0 {
            *self.dropped.entry(reason.into()).or_default() += count;
        }
    }

    /// The note of a part that ends here.
    pub(super) fn note(&mut self, last: bool) -> Note {
        let dropped = std::mem::take(&mut self.dropped);
        let decided = std::mem::take(&mut self.decided);
        Note { dropped, decided, cut: std::mem::take(&mut self.cut), last, ..Note::of(&mut self.tally) }
    }
}
