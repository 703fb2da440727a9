//! Tests of data: order, negatives, truncation, packs, mask counts, and that steps do not depend
//! on the number of ranks or on where a run was resumed.

mod held_out;
mod packs;
mod samples;
mod steps;

use std::sync::Arc;

use ctune_dist::data::{
    Batch, ClickLog, ClickOptions, Cursor, Grades, LoaderOptions, Negatives, PairUse, SampleSource, Truncate,
};
use ctune_dist::engine::op::MaskRule;
use ctune_dist::random::philox;
use ctune_dist::text::Special;

pub const SPECIAL: Special = Special { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };
pub const VOCAB: u32 = 1000;

/// A click log in memory, of seeded random text.
pub struct MemoryLog {
    queries: Vec<Vec<u32>>,
    documents: Vec<Vec<u32>>,
    clicks: Vec<(u32, u32)>,
    clicked: Vec<Vec<u32>>,
    special: Special,
}

impl MemoryLog {
    pub fn new(queries: Vec<Vec<u32>>, documents: Vec<Vec<u32>>, clicks: Vec<(u32, u32)>) -> Self {
        let mut clicked = vec![Vec::new(); queries.len()];
        for &(query, document) in &clicks {
            clicked[query as usize].push(document);
        }
        for documents in &mut clicked {
            documents.sort_unstable();
            documents.dedup();
        }
        Self { queries, documents, clicks, clicked, special: SPECIAL }
    }

    /// Queries of 1 to 12 tokens, documents of 5 to `longest`.
    pub fn random(queries: u32, documents: u32, clicks: u32, longest: u32) -> Self {
        let random = |kind, i, j| philox([9, kind], [i, j, 0, 0])[0];
        let text = |kind, i, length| (0..length).map(|j| 5 + random(kind, i, j) % (VOCAB - 5)).collect();
        Self::new(
            (0..queries).map(|i| text(1, i, 1 + random(2, i, 0) % 12)).collect(),
            (0..documents).map(|i| text(3, i, 5 + random(4, i, 0) % (longest - 4))).collect(),
            (0..clicks).map(|i| (random(5, i, 0) % queries, random(6, i, 0) % documents)).collect(),
        )
    }
}

impl ClickLog for MemoryLog {
    fn queries(&self) -> u32 {
        self.queries.len() as u32
    }
    fn documents(&self) -> u32 {
        self.documents.len() as u32
    }
    fn clicks(&self) -> u32 {
        self.clicks.len() as u32
    }
    fn click(&self, click: u32) -> (u32, u32) {
        self.clicks[click as usize]
    }
    fn clicked(&self, query: u32) -> &[u32] {
        &self.clicked[query as usize]
    }
    fn query_len(&self, query: u32) -> usize {
        self.queries[query as usize].len()
    }
    fn document_len(&self, document: u32) -> usize {
        self.documents[document as usize].len()
    }
    fn extend_query(&self, query: u32, out: &mut Vec<u32>, at_most: usize) {
        out.extend(self.queries[query as usize].iter().take(at_most));
    }
    fn extend_document(&self, document: u32, out: &mut Vec<u32>, at_most: usize) {
        out.extend(self.documents[document as usize].iter().take(at_most));
    }
    fn special(&self) -> Special {
        self.special
    }
}

fn click_options() -> ClickOptions {
    ClickOptions {
        seed: 1,
        max_tokens: 64,
        max_query_tokens: None,
        truncate: Truncate::Document,
        negatives: Negatives::RandomDocument,
        negatives_per_positive: 1,
        hard: None,
        grades: Grades::None,
        pairs: PairUse::Labelled,
    }
}

pub fn rule(whole_word: bool) -> MaskRule {
    let threshold = (0.15 * 4_294_967_296.0) as u32;
    let (seed, vocab) = (1, VOCAB);
    MaskRule { seed, threshold, segments: 3, whole_word, vocab, cls: 2, sep: 3, mask: 4 }
}

fn loader_options(rank: usize, world: usize, start: Cursor) -> LoaderOptions {
    LoaderOptions {
        seed: 1,
        pack_tokens: 512,
        packs_per_step: 6,
        rank,
        world,
        rule: Some(rule(false)),
        continues: Arc::new(Vec::new()),
        start,
    }
}

fn one(source: &dyn SampleSource, sample: u32, epoch: u32) -> Batch {
    let mut batch = Batch { epoch, ..Batch::default() };
    source.push(sample, epoch, &mut batch).unwrap();
    batch
}
