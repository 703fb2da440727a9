//! Samples: the epoch's order, negatives and truncation, and that shards return what they hold.

use std::collections::HashSet;
use std::sync::Arc;

use ctune_dist::Error;
use ctune_dist::corpus::Shards;
use ctune_dist::corpus::shard::write::{Provenance, ShardWriter};
use ctune_dist::data::order::Permutation;
use ctune_dist::data::{
    Batch, ClickLog, ClickOptions, ClickSource, Cursor, DocumentSource, Loader, Negatives, PairUse,
    SampleSource, Truncate,
};
use ctune_dist::text::Tokenizer;
use proptest::prelude::*;

use super::{MemoryLog, SPECIAL, click_options, loader_options, one};

/// The query and the document of a pushed pair.
fn texts(batch: &Batch) -> (Vec<u32>, Vec<u32>) {
    let side = |segment| {
        let tokens = batch.ids.iter().zip(&batch.segments).filter(|&(_, &s)| s == segment).map(|(&id, _)| id);
        tokens.filter(|id| *id != SPECIAL.cls && *id != SPECIAL.sep).collect::<Vec<_>>()
    };
    (side(0), side(1))
}

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
        (q.len(), d.len(), source.cut_queries().0)
    };
    // 64 tokens leave room for 61.
    assert_eq!(pair(Truncate::Document, 5, 10), (5, 10, 0));
    assert_eq!(pair(Truncate::Document, 5, 100), (5, 56, 0));
    assert_eq!(pair(Truncate::Document, 53, 100), (53, 8, 0));
    assert_eq!(pair(Truncate::Document, 54, 100), (53, 8, 1));
    assert_eq!(pair(Truncate::LongestFirst, 5, 100), (5, 56, 0));
    assert_eq!(pair(Truncate::LongestFirst, 50, 20), (41, 20, 1));
    assert_eq!(pair(Truncate::LongestFirst, 80, 70), (31, 30, 1));
    assert_eq!(pair(Truncate::LongestFirst, 31, 30), (31, 30, 0));
    assert_eq!(pair(Truncate::LongestFirst, 31, 99), (31, 30, 0));
    assert_eq!(pair(Truncate::LongestFirst, 32, 99), (31, 30, 1));
}

#[test]
fn long_queries_are_cut_where_the_plan_says() {
    let text = |n: u32| (0..n).map(|i| 10 + i).collect::<Vec<u32>>();
    for (truncate, most, kept) in [
        (Truncate::Document, Some(6), [(5, 56), (6, 55)]),
        (Truncate::Document, Some(60), [(5, 56), (53, 8)]),
        (Truncate::LongestFirst, Some(6), [(5, 56), (6, 55)]),
        (Truncate::Document, None, [(5, 56), (53, 8)]),
    ] {
        let log = MemoryLog::new(vec![text(5), text(70)], vec![text(100)], vec![(0, 0), (1, 0)]);
        let pairs = PairUse::ClicksOnly;
        let options = ClickOptions { truncate, max_query_tokens: most, pairs, ..click_options() };
        let source = ClickSource::new(Arc::new(log), options).unwrap();
        for (sample, kept) in kept.into_iter().enumerate() {
            let (q, d) = texts(&one(&source, sample as u32, 0));
            assert_eq!((q.len(), d.len()), kept, "{truncate} {most:?}");
            assert_eq!(q, text(kept.0 as u32), "the beginning is kept");
            assert_eq!(source.length(sample as u32, 0), 3 + kept.0 + kept.1);
        }
        assert_eq!(source.cut_queries(), (1, kept[1].0), "{truncate} {most:?}");
    }
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
    writer.finish(&tokenizer, Provenance { max_tokens: 64, ..Provenance::default() }).unwrap();

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
