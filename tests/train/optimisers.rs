//! The optimiser over the tiny golden model against PyTorch's ten steps; learning rates against
//! transformers; what a rank keeps when the state is shared.

use ctune_dist::config::{Optimizer, Schedule, Sharding, Train};
use ctune_dist::engine::stats;
use ctune_dist::model::Mode;
use ctune_dist::model::Tuning;
use ctune_dist::ranks::{Distributed, World, pieces};
use ctune_dist::train::optimiser::Optimiser;
use ctune_dist::train::schedule::LearningRate;
use serde::Deserialize;

use crate::golden::{self, Golden};
use crate::model::{close, pretraining_model, tuned_model};

/// `optimisers.json` of tests/assets/make_golden.py.
#[derive(Deserialize)]
struct File {
    lamb: Run,
    layer_decay: Run,
    schedules: Schedules,
}

#[derive(Deserialize)]
struct Run {
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    learning_rates: Vec<f64>,
    final_loss: f64,
    float32: Float32,
    weight_decay: f32,
    clip_norm: f32,
    layer_decay: Option<f64>,
}

#[derive(Deserialize)]
struct Float32 {
    losses: Vec<f64>,
    final_loss: f64,
}

#[derive(Deserialize)]
struct Schedules {
    constant: Vec<f64>,
    linear: Vec<f64>,
    cosine: Vec<f64>,
    cosine_min_lr: Vec<f64>,
    warmup: u64,
    steps: u64,
}

fn file() -> File {
    serde_json::from_slice(&std::fs::read(golden::folder().join("optimisers.json")).unwrap()).unwrap()
}

/// The run's settings; the plan's learning rate is PyTorch's of each step.
fn settings(run: &Run, optimizer: Optimizer) -> Train {
    Train {
        optimizer,
        weight_decay: run.weight_decay,
        clip_norm: run.clip_norm,
        layer_decay: run.layer_decay.unwrap_or(1.0),
        ..Train::default()
    }
}

fn follow(golden: &Golden, run: &Run, settings: &Train) {
    let world = World::solo();
    let mut model = pretraining_model(golden, (0.0, 0));
    let mut optimiser = Optimiser::new(&model, 0, 1, settings).unwrap();
    let mut reducer = model.engine.collective(&world).unwrap();
    // twice the error of PyTorch in float32 against PyTorch in float64
    let off = |single: f64, double: f64| ((single - double) / double).abs();
    let errors = run.float32.losses.iter().zip(&run.losses).map(|(s, d)| off(*s, *d));
    let bound = 2.0 * errors.fold(off(run.float32.final_loss, run.final_loss), f64::max).max(1e-6);
    for (i, lr) in run.learning_rates.iter().enumerate() {
        close(step(&mut model, golden), run.losses[i], bound);
        let norm_sq = optimiser.step(&mut *reducer, &mut model, *lr).unwrap().wait().unwrap()[0];
        close(f64::from(norm_sq).sqrt(), run.grad_norms[i], 1e-4);
    }
    close(step(&mut model, golden), run.final_loss, bound);
}

fn step(model: &mut crate::model::Model, golden: &Golden) -> f64 {
    let (rows, labels) = (&golden.masked_rows, &golden.masked_labels);
    model.forward_masked(&golden.pretraining_batch, rows, labels, Mode::Train).unwrap();
    model.backward(&golden.pretraining_batch, &mut |_, _, _| Ok(())).unwrap();
    let sums = model.take_sums().unwrap();
    sums[stats::MLM_LOSS] / sums[stats::MLM_COUNT] + sums[stats::QDPP_LOSS] / sums[stats::QDPP_COUNT]
}

#[test]
fn ten_lamb_updates_equal_pytorch() {
    let (golden, file) = (golden::load(), file());
    follow(&golden, &file.lamb, &settings(&file.lamb, Optimizer::Lamb));
}

#[test]
fn ten_updates_with_layer_decay_equal_pytorch() {
    let (golden, file) = (golden::load(), file());
    follow(&golden, &file.layer_decay, &settings(&file.layer_decay, Optimizer::Adamw));
}

#[test]
fn learning_rates_equal_transformers() {
    let Schedules { constant, linear, cosine, cosine_min_lr, warmup, steps } = file().schedules;
    for (schedule, min, expected) in [
        (Schedule::Constant, 0.0, constant),
        (Schedule::Linear, 0.0, linear),
        (Schedule::Cosine, 0.0, cosine),
        (Schedule::Cosine, 0.1, cosine_min_lr),
    ] {
        let rate = LearningRate { peak: 1.0, min, warmup, steps, schedule };
        for step in 0..steps {
            // the warm-up is one step ahead: transformers spends its first update at 0
            let of = if step < warmup { step + 1 } else { step };
            let (actual, expected) = (rate.at(step), expected[of as usize]);
            assert!(
                (actual - expected).abs() < 1e-12,
                "{schedule:?}, step {step}: {actual} is not {expected}"
            );
        }
    }
    let line = LearningRate { peak: 1.0, min: 0.25, warmup: 0, steps: 4, schedule: Schedule::Linear };
    assert_eq!([0, 1, 2, 3, 4].map(|step| line.at(step)), [1.0, 0.8125, 0.625, 0.4375, 0.25]);
}

#[test]
fn frozen_parts_stay_and_have_no_moments() {
    let golden = golden::load();
    let parts = ["embeddings".to_owned(), "layer.0".to_owned()];
    let tuning = Tuning { freeze: parts.to_vec(), ..Tuning::default() };
    let (mut all, mut part) = (pretraining_model(&golden, (0.0, 0)), tuned_model(&golden, &tuning));
    step(&mut all, &golden);
    step(&mut part, &golden);
    let frozen: Vec<_> = part.layout.params.iter().filter(|p| !p.trained).cloned().collect();
    let learning: Vec<_> = part.layout.params.iter().filter(|p| p.trained).cloned().collect();
    assert!(frozen.iter().any(|p| p.name.contains("word_embeddings")));
    for param in &learning {
        assert_eq!(part.grads[param.range()], all.grads[param.range()], "{}", param.name);
    }
    let before = part.weights.to_vec();
    let world = World::solo();
    let mut optimiser = Optimiser::new(&part, 0, 1, &Train::default()).unwrap();
    let len: usize = learning.iter().map(|p| p.len().next_multiple_of(8)).sum();
    assert_eq!((optimiser.state.moment1.len(), optimiser.state.len()), (len, len));
    let mut reducer = part.engine.collective(&world).unwrap();
    let norm_sq = optimiser.step(&mut *reducer, &mut part, 1e-2).unwrap().wait().unwrap()[0];
    let expected: f64 =
        learning.iter().flat_map(|p| &all.grads[p.range()]).map(|&g| f64::from(g).powi(2)).sum();
    close(f64::from(norm_sq), expected, 1e-6);
    for param in &frozen {
        assert_eq!(part.weights[param.range()], before[param.range()], "{}", param.name);
    }
    assert!(learning.iter().all(|p| part.weights[p.range()] != before[p.range()]));
}

/// Gradients that are not summed over ranks would silently let the ranks' weights drift apart.
#[test]
fn every_bucket_is_summed_once_before_an_update() {
    let golden = golden::load();
    let mut model = pretraining_model(&golden, (0.0, 0));
    step(&mut model, &golden);
    let world = World::solo();
    let mut reducer = model.engine.collective(&world).unwrap();
    let mut optimiser = Optimiser::new(&model, 0, 2, &Train::default()).unwrap();
    let buckets = model.layout.buckets();
    let first = buckets[0].clone();
    let refused = |result: ctune_dist::Result<()>, word: &str| {
        let error = result.unwrap_err();
        assert!(error.exit_code() == 4 && error.to_string().contains(word), "{error}");
    };
    for other in
        [first.start..first.end - 8, first.start + 8..first.end, first.end..first.end, 0..model.layout.len]
    {
        let reduced = optimiser.reduce(&mut *reducer, &model.engine, &mut model.grads, &other);
        refused(reduced, "no bucket");
    }
    for bucket in &buckets[1..] {
        optimiser.reduce(&mut *reducer, &model.engine, &mut model.grads, bucket).unwrap();
    }
    let again = optimiser.reduce(&mut *reducer, &model.engine, &mut model.grads, &buckets[1]);
    refused(again, "twice");
    let before = model.weights.to_vec();
    let updated = optimiser.step(&mut *reducer, &mut model, 1e-2).map(drop);
    refused(updated, &format!("{first:?} were not summed"));
    assert!(model.weights.to_vec() == before, "an update was made all the same");
    for bucket in &buckets {
        optimiser.reduce(&mut *reducer, &model.engine, &mut model.grads, bucket).unwrap();
    }
    optimiser.step(&mut *reducer, &mut model, 1e-2).unwrap();
    assert_eq!(optimiser.state.updates, 1);
}

/// The state of `ranks` ranks together is one rank's, and each has an equal share of every bucket.
#[test]
fn shared_state_is_divided_by_the_ranks() {
    let golden = golden::load();
    let model = pretraining_model(&golden, (0.0, 0));
    let sharding = |sharding| Train { sharding, ..Train::default() };
    for ranks in [1, 2, 4, 7] {
        let mut owners = vec![0; model.layout.len];
        let mut largest = 0;
        for rank in 0..ranks {
            let shared = Optimiser::new(&model, rank, ranks, &sharding(Sharding::Optimizer)).unwrap();
            let whole = Optimiser::new(&model, rank, ranks, &sharding(Sharding::None)).unwrap();
            assert_eq!(whole.state.moment1.len(), model.layout.len);
            assert_eq!(shared.state.moment1.len(), shared.state.len());
            assert_eq!(shared.state.moment2.len(), shared.state.len());
            largest = largest.max(shared.state.len());
            for range in &shared.state.owned {
                assert_eq!(range.start % 8, 0);
                owners[range.clone()].iter_mut().for_each(|n| *n += 1);
            }
        }
        assert!(owners.iter().all(|&n| n == 1), "an element is updated by no rank or by two");
        let rounding = 8 * model.layout.buckets().len();
        assert!(largest <= model.layout.len / ranks + rounding, "{ranks} ranks: {largest}");
    }
    let cut = pieces(&(16..60), 3);
    assert_eq!(cut, [16..32, 32..48, 48..60]);
}
