//! Held-out pairs: every click and every query is on one side only, and on the same side whatever else the
//! log holds.

use std::collections::HashSet;
use std::sync::Arc;

use ctune_dist::data::held_out::divide;
use ctune_dist::data::{ClickLog, ClickOptions, ClickSource, Negatives, SampleSource};

use super::{MemoryLog, SPECIAL, click_options, one};

fn log(clicks: u32) -> Arc<dyn ClickLog> {
    Arc::new(MemoryLog::random(2000, 300, clicks, 40))
}

fn queries(side: &dyn ClickLog) -> HashSet<u32> {
    (0..side.clicks()).map(|click| side.click(click).0).collect()
}

#[test]
fn both_sides_together_are_the_log_and_share_no_query() {
    let log = log(5000);
    let [train, held] = divide(&log, 500).unwrap();
    assert!((350..650).contains(&held.clicks()), "{} are about 500", held.clicks());
    let mut all: Vec<_> = (0..log.clicks()).map(|click| log.click(click)).collect();
    let side = |side: &dyn ClickLog| (0..side.clicks()).map(|c| side.click(c)).collect::<Vec<_>>();
    let (kept, measured) = (side(&train), side(&held));
    // each side keeps the log's order
    let mut rest = all.iter().filter(|pair| kept.contains(pair) || measured.contains(pair));
    assert!(rest.by_ref().count() == all.len());
    let mut both = [kept, measured].concat();
    both.sort_unstable();
    all.sort_unstable();
    assert_eq!(both, all);
    let (kept, measured) = (queries(&train), queries(&held));
    assert!(kept.is_disjoint(&measured));
    assert!(kept.iter().all(|&q| train.admits(q) && !held.admits(q)));
}

#[test]
fn the_same_queries_are_held_out_of_a_larger_log() {
    // 6,000 clicks of which the first 5,000 are the smaller log's; the same share is held out
    let [_, small] = divide(&log(5000), 500).unwrap();
    let [_, large] = divide(&log(6000), 600).unwrap();
    assert!(queries(&small).is_subset(&queries(&large)));
}

#[test]
fn held_out_queries_are_drawn_as_negatives_of_neither_side() {
    let log = log(5000);
    let sides = divide(&log, 500).unwrap();
    let text = |query: u32| {
        let mut tokens = Vec::new();
        log.extend_query(query, &mut tokens, usize::MAX);
        tokens
    };
    for side in sides {
        let side: Arc<dyn ClickLog> = Arc::new(side);
        let own: HashSet<Vec<u32>> = (0..log.queries()).filter(|&q| side.admits(q)).map(text).collect();
        for negatives in [Negatives::RandomQuery, Negatives::RandomDocument, Negatives::InBatch] {
            let source =
                ClickSource::new(side.clone(), ClickOptions { negatives, ..click_options() }).unwrap();
            for sample in 0..source.samples().min(1500) {
                let batch = one(&source, sample, 0);
                let end = batch.ids.iter().position(|&id| id == SPECIAL.sep).unwrap();
                assert!(own.contains(&batch.ids[1..end]), "{negatives:?}: a query of the other side");
            }
        }
    }
}

#[test]
fn impossible_shares_are_refused() {
    let error = |pairs| divide(&log(5000), pairs).err().unwrap().to_string();
    assert!(error(2501).contains("at most half"));
    assert!(error(0).contains("chooses none"));
}
