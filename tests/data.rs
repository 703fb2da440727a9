//! Tests of data: order, negatives, truncation, packs, mask counts, and that steps do not depend
//! on the number of ranks or on where a run was resumed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use ctune_dist::corpus::shard_write::{About, ShardWriter};
use ctune_dist::corpus::{Shards, Tokenizer};
use ctune_dist::data::order::Permutation;
use ctune_dist::data::pack::Packer;
use ctune_dist::data::{
    Batch, ClickLog, ClickOptions, ClickSource, Cursor, DocumentSource, Loader, LoaderOptions, Negatives,
    PairUse, SampleSource, Special, Step, Truncate, mask::count_masked, packs_per_epoch,
};
use ctune_dist::engine::random::{MaskRule, philox};
use ctune_dist::{Error, Result};
use proptest::prelude::*;

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
        truncate: Truncate::Document,
        negatives: Negatives::RandomDocument,
        negatives_per_positive: 1,
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

/// The query and the document of a pushed pair, found in the log by their tokens.
fn texts(batch: &Batch) -> (Vec<u32>, Vec<u32>) {
    let side = |segment| {
        let tokens = batch.ids.iter().zip(&batch.segments).filter(|&(_, &s)| s == segment).map(|(&id, _)| id);
        tokens.filter(|id| *id != SPECIAL.cls && *id != SPECIAL.sep).collect::<Vec<_>>()
    };
    (side(0), side(1))
}

// ---- order ---------------------------------------------------------------------------------------

proptest! {
    // No files of failed cases beside the sources: a failure prints its case.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_is_a_bijection(n in 1u32..3000, seed: u32, epoch in 0u32..100) {
        let order = Permutation::new(n, seed, epoch);
        let mut seen = vec![false; n as usize];
        for position in 0..n {
            let sample = order.at(position);
            prop_assert!(sample < n && !std::mem::replace(&mut seen[sample as usize], true));
            prop_assert_eq!(order.position(sample), position);
        }
    }

    #[test]
    fn order_inverts_at_any_size(n in 1u32.., seed: u32, position: u32) {
        let order = Permutation::new(n, seed, 0);
        let sample = order.at(position % n);
        prop_assert!(sample < n);
        prop_assert_eq!(order.position(sample), position % n);
    }
}

#[test]
fn order_differs_between_epochs_and_seeds_and_is_mixed() {
    let list = |seed, epoch| {
        let order = Permutation::new(10_000, seed, epoch);
        (0..10_000).map(|p| order.at(p)).collect::<Vec<_>>()
    };
    let base = list(1, 0);
    for other in [list(1, 1), list(2, 0)] {
        let same = base.iter().zip(&other).filter(|(a, b)| a == b).count();
        // Fixed points between two random permutations are Poisson with mean 1.
        assert!(same < 10, "{same} of 10000 samples at the same position");
    }
    // Mean distance between neighbours of a random order is n / 3.
    let distance: u64 = base.windows(2).map(|w| u64::from(w[0].abs_diff(w[1]))).sum();
    let mean = distance as f64 / 9_999.0;
    assert!((3_200.0..3_470.0).contains(&mean), "mean distance {mean}");
}

// ---- samples -------------------------------------------------------------------------------------

#[test]
fn negatives_are_never_clicked_and_keep_their_side() {
    let log = Arc::new(MemoryLog::random(40, 12, 160, 40));
    for kind in [Negatives::RandomDocument, Negatives::RandomQuery, Negatives::InBatch] {
        let options = ClickOptions { negatives: kind, negatives_per_positive: 3, ..click_options() };
        let source = ClickSource::new(log.clone(), options).unwrap();
        assert_eq!(source.samples(), 640);
        let (mut drawn, mut changed) = (HashSet::new(), 0);
        for sample in 0..640 {
            let batch = one(&source, sample, 0);
            assert_eq!(batch.tokens(), source.length(sample, 0));
            assert_eq!(batch, one(&source, sample, 0), "pure function of seed, epoch and sample");
            assert_eq!(batch.pair_labels, [u32::from(sample % 4 != 0)]);
            let (query, document) = texts(&batch);
            let (q, d) = log.click(sample / 4);
            if sample % 4 == 0 {
                assert_eq!((&query, &document), (&log.queries[q as usize], &log.documents[d as usize]));
                continue;
            }
            match kind {
                Negatives::RandomQuery => assert_eq!(document, log.documents[d as usize]),
                _ => assert_eq!(query, log.queries[q as usize]),
            }
            // Texts may repeat in the log, so every holder of the text is looked at.
            let is = |all: &[Vec<u32>], text: &[u32]| {
                (0..all.len() as u32).filter(|&i| all[i as usize] == text).collect::<Vec<_>>()
            };
            let free = is(&log.queries, &query)
                .into_iter()
                .any(|q| is(&log.documents, &document).into_iter().any(|d| !log.clicked(q).contains(&d)));
            assert!(free, "{kind:?}: sample {sample} is a click");
            drawn.insert((query, document));
            changed += usize::from(batch != one(&source, sample, 1));
        }
        assert!(drawn.len() > 100, "{kind:?}: {} distinct negatives", drawn.len());
        assert!(changed > 300, "{kind:?}: {changed} of 480 negatives change with the epoch");
    }
}

#[test]
fn random_documents_are_uniform() {
    // One query that clicked 60 of 100 documents: the others must come equally often.
    let documents: Vec<_> = (0..100).map(|i| vec![10 + i]).collect();
    let clicks: Vec<_> = (0..60).flat_map(|d| std::iter::repeat_n((0, d), 100)).collect();
    let source =
        ClickSource::new(Arc::new(MemoryLog::new(vec![vec![9]], documents, clicks)), click_options());
    let source = source.unwrap();
    let mut counts = [0u32; 100];
    for sample in (1..12_000).step_by(2) {
        counts[(one(&source, sample, 0).ids[3] - 10) as usize] += 1;
    }
    assert_eq!(counts[..60], [0; 60]);
    let chi2: f64 = counts[60..].iter().map(|&c| (f64::from(c) - 150.0).powi(2) / 150.0).sum();
    assert!(chi2 < 72.1, "chi2 {chi2} of 39 degrees of freedom, p < 0.001");
}

#[test]
fn a_query_that_clicked_all_but_one_gets_that_one() {
    let documents: Vec<_> = (0..2000).map(|i| vec![10 + i]).collect();
    let clicks: Vec<_> = (0..2000).filter(|&d| d != 1234).map(|d| (0, d)).collect();
    let log = MemoryLog::new(vec![vec![9]], documents.clone(), clicks);
    let source = ClickSource::new(Arc::new(log), click_options()).unwrap();
    for sample in (1..400).step_by(2) {
        assert_eq!(one(&source, sample, 0).ids[3], 10 + 1234);
    }
    let all = MemoryLog::new(vec![vec![9]], documents, (0..2000).map(|d| (0, d)).collect());
    let error = ClickSource::new(Arc::new(all), click_options()).err().unwrap().to_string();
    assert!(error.contains("query 0") && error.contains("2000"), "{error}");
}

#[test]
fn a_document_that_every_query_clicked_is_an_error_of_random_query() {
    let log = MemoryLog::new(vec![vec![9]; 3], vec![vec![9]; 2], vec![(0, 1), (1, 1), (2, 1)]);
    let options = ClickOptions { negatives: Negatives::RandomQuery, ..click_options() };
    let source: Arc<dyn SampleSource> = Arc::new(ClickSource::new(Arc::new(log), options).unwrap());
    let mut loader = Loader::new(source, loader_options(0, 1, Cursor::default())).unwrap();
    let error = loader.next_step().unwrap_err();
    assert!(matches!(&error, Error::Data(text) if text.contains("no negative")), "{error}");
    assert!(loader.next_step().unwrap_err().to_string().contains("ended"));
}

#[test]
fn truncation_keeps_what_it_promises() {
    let pair = |truncate, query: u32, document: u32| {
        let text = |n: u32| (0..n).map(|i| 10 + i).collect::<Vec<u32>>();
        let log = MemoryLog::new(vec![text(query)], vec![text(document)], vec![(0, 0)]);
        let options = ClickOptions { truncate, pairs: PairUse::ClicksOnly, ..click_options() };
        let source = ClickSource::new(Arc::new(log), options).unwrap();
        let (q, d) = texts(&one(&source, 0, 0));
        // What is kept is the beginning.
        assert_eq!((&q, &d), (&text(q.len() as u32), &text(d.len() as u32)));
        (q.len(), d.len(), source.cut_queries())
    };
    // 64 tokens leave room for 61.
    assert_eq!(pair(Truncate::Document, 5, 10), (5, 10, 0));
    assert_eq!(pair(Truncate::Document, 5, 100), (5, 56, 0));
    assert_eq!(pair(Truncate::Document, 53, 100), (53, 8, 0));
    assert_eq!(pair(Truncate::Document, 54, 100), (53, 8, 1));
    assert_eq!(pair(Truncate::LongestFirst, 5, 100), (5, 56, 0));
    assert_eq!(pair(Truncate::LongestFirst, 50, 20), (41, 20, 0));
    assert_eq!(pair(Truncate::LongestFirst, 80, 70), (31, 30, 1));
    assert_eq!(pair(Truncate::LongestFirst, 31, 30), (31, 30, 0));
}

#[test]
fn pair_use_changes_labels_but_not_texts() {
    let log = Arc::new(MemoryLog::random(50, 60, 100, 40));
    let source = |pairs| ClickSource::new(log.clone(), ClickOptions { pairs, ..click_options() }).unwrap();
    let (labelled, unlabelled, clicks) =
        (source(PairUse::Labelled), source(PairUse::Unlabelled), source(PairUse::ClicksOnly));
    assert_eq!((labelled.samples(), unlabelled.samples(), clicks.samples()), (200, 200, 100));
    for sample in 0..200 {
        let (a, b) = (one(&labelled, sample, 2), one(&unlabelled, sample, 2));
        assert_eq!((&a.ids, a.pair_labels.len(), labelled.pairs(sample)), (&b.ids, 1, 1));
        assert_eq!((b.pair_labels.len(), unlabelled.pairs(sample)), (0, 0));
    }
    assert_eq!(one(&clicks, 7, 0).ids, one(&labelled, 14, 0).ids);
    assert_eq!(clicks.pairs(7), 0);
}

#[test]
fn documents_alone_are_one_segment() {
    let log = Arc::new(MemoryLog::random(5, 30, 5, 100));
    let source = DocumentSource::new(log.clone(), 50).unwrap();
    for document in 0..30 {
        let batch = one(&source, document, 0);
        let kept = log.document_len(document).min(48);
        assert_eq!(batch.tokens(), source.length(document, 0));
        assert_eq!(batch.ids[1..=kept], log.documents[document as usize][..kept]);
        assert_eq!((batch.ids[0], batch.ids[kept + 1], batch.tokens()), (2, 3, kept + 2));
        assert!(batch.segments.iter().all(|&s| s == 0));
    }
}

#[test]
fn shards_give_the_samples_of_the_log_they_hold() {
    let tokenizer = Tokenizer::train(["a quick fox and a lazy dog".to_string()].into_iter(), 60).unwrap();
    let mut log = MemoryLog::random(40, 30, 90, 70);
    for id in log.queries.iter_mut().chain(&mut log.documents).flatten() {
        *id %= tokenizer.vocab() as u32;
    }
    log.special = tokenizer.special();

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shards");
    let mut writer = ShardWriter::create(&path, tokenizer.vocab()).unwrap();
    for (i, tokens) in log.queries.iter().enumerate() {
        writer.query(&format!("q{i}"), tokens).unwrap();
    }
    for (i, tokens) in log.documents.iter().enumerate() {
        writer.document(&format!("d{i}"), tokens).unwrap();
    }
    for &(query, document) in &log.clicks {
        writer.click(query, document);
    }
    writer.finish(&tokenizer, About { max_tokens: 64, ..About::default() }).unwrap();

    let shards = Arc::new(Shards::open(&path).unwrap());
    let (log, options) = (Arc::new(log), click_options());
    // Sample ids come from the order of the clicks.
    assert!((0..90).all(|i| shards.click(i) == log.clicks[i as usize]));
    let a = ClickSource::new(log.clone(), options.clone()).unwrap();
    let b = ClickSource::new(shards.clone(), options).unwrap();
    let (c, d) = (DocumentSource::new(log, 40).unwrap(), DocumentSource::new(shards, 40).unwrap());
    for sample in 0..180 {
        assert_eq!(one(&a, sample, 3), one(&b, sample, 3));
        assert_eq!(one(&c, sample % 30, 3), one(&d, sample % 30, 3));
    }
    assert_eq!((a.samples(), c.samples(), a.longest()), (b.samples(), d.samples(), b.longest()));
}

// ---- packs ---------------------------------------------------------------------------------------

/// Lengths alone, as packing sees them.
struct Lengths(Vec<u32>);

impl SampleSource for Lengths {
    fn samples(&self) -> u32 {
        self.0.len() as u32
    }
    fn length(&self, sample: u32, _: u32) -> usize {
        self.0[sample as usize] as usize
    }
    fn pairs(&self, _: u32) -> usize {
        0
    }
    fn push(&self, sample: u32, _: u32, batch: &mut Batch) -> Result<()> {
        batch.push(SPECIAL, sample, &vec![9; self.0[sample as usize] as usize - 2], None);
        Ok(())
    }
}

/// Lengths of a click log at 512 tokens: a third of the documents are cut, the rest are spread
/// log-uniformly over 40 to 512 tokens.
fn typical(samples: u32) -> Lengths {
    let length = |i| {
        let u = f64::from(philox([3, 3], [i, 0, 0, 0])[0]) / 4_294_967_296.0;
        ((40.0 * (512.0f64 / 40.0).powf(u * 1.5)) as u32).min(512)
    };
    Lengths((0..samples).map(length).collect())
}

/// Fill of an epoch, after checking that its packs hold every sample once within the budget.
fn fill(source: &Lengths, budget: usize) -> f64 {
    let packer = Packer::new(source, 1, budget).unwrap();
    let mut seen = vec![false; source.0.len()];
    let (mut packs, mut tokens) = (0, 0);
    for window in 0..packer.windows() {
        for pack in packer.window(source, 0, window).unwrap() {
            let filled: usize = pack.iter().map(|&s| source.length(s, 0)).sum();
            assert!(filled <= budget && !pack.is_empty());
            assert!(pack.iter().all(|&s| !std::mem::replace(&mut seen[s as usize], true)));
            (packs, tokens) = (packs + 1, tokens + filled);
        }
    }
    assert!(seen.iter().all(|&s| s), "every sample once");
    tokens as f64 / (packs * budget) as f64
}

#[test]
fn packs_hold_every_sample_once_and_are_full() {
    let source = typical(120_000);
    for budget in [2_048, 4_096, 16_384, 32_768] {
        let fill = fill(&source, budget);
        println!("{budget}-token packs: {:.2} % full", fill * 100.0);
        assert!(fill >= 0.98, "{budget}: {fill}");
    }
    // Small budgets cannot be filled as well, but nothing may be lost.
    assert!(fill(&source, 512) > 0.85);
    assert!(fill(&Lengths(vec![512; 3]), 512) == 1.0);
    assert!(fill(&typical(1), 16_384) > 0.0);
}

#[test]
fn packs_of_an_even_window_mix_lengths() {
    let source = typical(20_000);
    let packs = Packer::new(&source, 1, 16_384).unwrap().window(&source, 0, 0).unwrap();
    let sizes: Vec<_> = packs.iter().map(Vec::len).collect();
    let (least, most) = (*sizes.iter().min().unwrap(), *sizes.iter().max().unwrap());
    assert!(most <= least + least / 4, "{least} to {most} samples a pack");
}

#[test]
fn packing_keeps_up() {
    let source = typical(400_000);
    let packer = Packer::new(&source, 1, 16_384).unwrap();
    let start = Instant::now();
    let samples: usize = (0..packer.windows())
        .map(|w| packer.window(&source, 0, w).unwrap().iter().map(Vec::len).sum::<usize>())
        .sum();
    let rate = samples as f64 / start.elapsed().as_secs_f64();
    println!("packing: {:.2} M samples/s", rate / 1e6);
    assert_eq!(samples, 400_000);
    // An order below what an idle core does, so that a busy machine does not fail the test.
    assert!(rate > 1e5, "{rate} samples/s");
}

#[test]
fn a_sample_longer_than_a_pack_names_both_numbers() {
    let error = Packer::new(&Lengths(vec![100, 600]), 1, 512).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Config(_)) && text.contains("600") && text.contains("512"), "{text}");
}

// ---- masks ---------------------------------------------------------------------------------------

/// Straight from the definition, token by token.
fn direct_count(rule: &MaskRule, batch: &Batch, continues: &[u32]) -> usize {
    let chosen = |row: usize| {
        let mut decider = row;
        if rule.whole_word {
            while continues[batch.ids[decider] as usize] == 1 && ![2, 3].contains(&batch.ids[decider - 1]) {
                decider -= 1;
            }
        }
        rule.allows(batch.ids[row], batch.segments[row])
            && rule.chooses(batch.row_sample[row], batch.positions[decider], batch.epoch)
    };
    (0..batch.tokens()).filter(|&row| chosen(row)).count()
}

#[test]
fn mask_counts_equal_a_direct_count() {
    let log = Arc::new(MemoryLog::random(300, 200, 400, 120));
    let options = ClickOptions { max_tokens: 128, ..click_options() };
    let source = ClickSource::new(log, options).unwrap();
    let continues: Vec<u32> = (0..VOCAB).map(|id| u32::from(id > 4 && id % 3 == 0)).collect();
    let (mut masked, mut tokens) = (0, 0);
    for whole_word in [false, true] {
        for segments in 1..=3 {
            let rule = MaskRule { segments, ..rule(whole_word) };
            for sample in 0..800 {
                let mut batch = one(&source, sample, 1);
                source.push((sample + 1) % 800, 1, &mut batch).unwrap();
                let count = count_masked(&rule, &batch, &continues);
                assert_eq!(count, direct_count(&rule, &batch, &continues));
                if segments == 3 {
                    (masked, tokens) = (masked + count, tokens + batch.tokens() - 6);
                }
            }
        }
    }
    let rate = masked as f64 / tokens as f64;
    assert!((0.145..0.155).contains(&rate), "rate {rate}");
}

// ---- steps ---------------------------------------------------------------------------------------

fn log_source() -> Arc<dyn SampleSource> {
    let log = Arc::new(MemoryLog::random(900, 700, 3_000, 80));
    Arc::new(ClickSource::new(log, click_options()).unwrap())
}

fn steps(source: &Arc<dyn SampleSource>, options: LoaderOptions, n: usize) -> Vec<Step> {
    let mut loader = Loader::new(source.clone(), options).unwrap();
    (0..n).map(|_| loader.next_step().unwrap()).collect()
}

#[test]
fn steps_do_not_depend_on_the_world() {
    let source = log_source();
    // More than an epoch, so that steps cross its end; more ranks than packs in a step.
    let n = 120;
    let alone = steps(&source, loader_options(0, 1, Cursor::default()), n);
    assert!(alone[n - 1].epoch >= 1, "the test must cross an epoch's end");
    for world in [2, 4, 8] {
        let ranks: Vec<_> =
            (0..world).map(|r| steps(&source, loader_options(r, world, Cursor::default()), n)).collect();
        for (i, whole) in alone.iter().enumerate() {
            for (k, batch) in whole.batches.iter().enumerate() {
                assert_eq!(
                    ranks[k % world][i].batches[k / world],
                    *batch,
                    "world {world}, step {i}, pack {k}"
                );
            }
            for rank in &ranks {
                let step = &rank[i];
                assert_eq!(
                    (step.after, step.samples, step.tokens, step.masked, step.pairs, step.epoch),
                    (whole.after, whole.samples, whole.tokens, whole.masked, whole.pairs, whole.epoch)
                );
            }
            assert_eq!(ranks.iter().map(|rank| rank[i].batches.len()).sum::<usize>(), 6);
        }
    }
}

#[test]
fn steps_add_up_and_visit_every_sample_once_an_epoch() {
    let source = log_source();
    let options = loader_options(0, 1, Cursor::default());
    let packs = packs_per_epoch(source.as_ref(), &options).unwrap();
    let second = LoaderOptions { start: Cursor { epoch: 1, ..Cursor::default() }, ..options.clone() };
    let both = packs + packs_per_epoch(source.as_ref(), &second).unwrap();
    let mut seen = vec![[false; 2]; source.samples() as usize];
    let mut batches = 0;
    for step in steps(&source, options, both.div_ceil(6) as usize) {
        let sum = |f: fn(&Batch) -> usize| step.batches.iter().map(f).sum::<usize>();
        assert_eq!(step.tokens, sum(Batch::tokens));
        assert_eq!(step.samples, sum(Batch::sequences));
        assert_eq!((step.pairs, step.pairs), (step.samples, sum(|b| b.pair_labels.len())));
        assert_eq!(step.masked, sum(|b| direct_count(&rule(false), b, &[])));
        assert!(step.masked > 0 && step.waited_ms >= 0.0);
        for batch in &step.batches {
            assert_eq!((batch.step_masked, batch.step_pairs), (step.masked, step.pairs));
            assert_eq!(batch.masked, direct_count(&rule(false), batch, &[]));
            assert_eq!(*batch.cu_seqlens.last().unwrap() as usize, batch.tokens());
            assert!(batch.tokens() <= 512);
            batches += 1;
            assert_eq!(
                batch.epoch,
                u32::from(batches > packs) + u32::from(batches > both),
                "packs do not mix"
            );
            if batch.epoch < 2 {
                for &sample in &batch.samples {
                    let epoch = &mut seen[sample as usize][batch.epoch as usize];
                    assert!(!std::mem::replace(epoch, true), "sample {sample} twice in an epoch");
                }
            }
        }
    }
    assert!(seen.iter().flatten().all(|&seen| seen), "every sample in both epochs");
}

#[test]
fn a_run_resumes_where_it_stopped() {
    let source = log_source();
    let whole = steps(&source, loader_options(0, 1, Cursor::default()), 100);
    for stop in [0, 1, 37, 80] {
        let json = serde_json::to_string(&whole[stop].after).unwrap();
        let start: Cursor = serde_json::from_str(&json).unwrap();
        let rest = steps(&source, loader_options(1, 3, start), 99 - stop);
        for (step, expected) in rest.iter().zip(&whole[stop + 1..]) {
            assert_eq!(step.batches, [expected.batches[1].clone(), expected.batches[4].clone()]);
            assert_eq!(step.after, expected.after);
        }
    }
}

#[test]
fn a_cursor_of_other_data_is_refused() {
    let source = log_source();
    for start in [Cursor { window: 99, ..Cursor::default() }, Cursor { pack: 9_999, ..Cursor::default() }] {
        let mut loader = Loader::new(source.clone(), loader_options(0, 1, start)).unwrap();
        let error = loader.next_step().unwrap_err();
        assert!(matches!(&error, Error::Data(text) if text.contains("pack_tokens")), "{error}");
    }
}

#[test]
fn impossible_options_are_refused() {
    let source = log_source();
    let good = loader_options(0, 1, Cursor::default());
    let bad = [
        LoaderOptions { packs_per_step: 0, ..good.clone() },
        LoaderOptions { rank: 1, ..good.clone() },
        LoaderOptions { pack_tokens: 63, ..good.clone() },
        LoaderOptions { rule: Some(rule(true)), ..good.clone() },
    ];
    for options in bad {
        assert!(matches!(Loader::new(source.clone(), options), Err(Error::Config(_))));
    }
    let log = Arc::new(MemoryLog::random(3, 3, 3, 20));
    for options in [
        ClickOptions { max_tokens: 11, ..click_options() },
        ClickOptions { negatives_per_positive: 0, ..click_options() },
    ] {
        assert!(matches!(ClickSource::new(log.clone(), options), Err(Error::Config(_))));
    }
}

#[test]
fn dropping_the_loader_ends_its_thread() {
    let source = log_source();
    let mut loader = Loader::new(source.clone(), loader_options(0, 1, Cursor::default())).unwrap();
    loader.next_step().unwrap();
    drop(loader);
    assert_eq!(Arc::strong_count(&source), 1, "the thread still holds the source");
}

#[test]
fn loading_keeps_up() {
    let log = Arc::new(MemoryLog::random(5_000, 4_000, 20_000, 520));
    let options = ClickOptions { max_tokens: 512, ..click_options() };
    let source: Arc<dyn SampleSource> = Arc::new(ClickSource::new(log, options).unwrap());
    for whole_word in [false, true] {
        let options = LoaderOptions {
            pack_tokens: 16_384,
            packs_per_step: 8,
            rule: Some(rule(whole_word)),
            continues: Arc::new((0..VOCAB).map(|id| u32::from(id > 4 && id % 3 == 0)).collect()),
            ..loader_options(0, 1, Cursor::default())
        };
        let mut loader = Loader::new(source.clone(), options).unwrap();
        loader.next_step().unwrap();
        let start = Instant::now();
        let tokens: usize = (0..40).map(|_| loader.next_step().unwrap().tokens).sum();
        let rate = tokens as f64 / start.elapsed().as_secs_f64();
        println!("loading, whole_word = {whole_word}: {:.1} M tokens/s", rate / 1e6);
        assert!(rate > 1e6, "{rate} tokens/s");
    }
}
