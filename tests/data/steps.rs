//! Steps: mask counts, totals, the same batches at any world size, resuming, errors, speed.

use std::sync::Arc;

use ctune_dist::Error;
use ctune_dist::data::mask::count_masked;
use ctune_dist::data::{
    Batch, ClickOptions, ClickSource, Cursor, Loader, LoaderOptions, SampleSource, Step, packs_per_epoch,
};
use ctune_dist::engine::op::MaskRule;

use super::{MemoryLog, VOCAB, click_options, loader_options, one, rule};

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
