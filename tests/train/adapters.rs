//! LoRA: gradients by the chain rule from those of the merged matrices, the frozen base, and the
//! merged export.

use ctune_dist::config::Train;
use ctune_dist::engine::Device;
use ctune_dist::model::bert::Options;
use ctune_dist::model::checkpoint::{self, Checkpoint, Fill};
use ctune_dist::model::lora::{Lora, Target};
use ctune_dist::model::{Bert, HeadSet, Mode, Tuning};
use ctune_dist::ranks::{Distributed, World};
use ctune_dist::train::optimiser::Optimiser;

use crate::golden::{self, Golden};
use crate::model::{Model, fill, ranking_options};

pub const ALL: [Target; 6] = [
    Target::Query,
    Target::Key,
    Target::Value,
    Target::AttentionOutput,
    Target::Intermediate,
    Target::Output,
];

/// A ranking model with adapters whose B is not zero where it is in use.
pub fn adapted(golden: &Golden, targets: &[Target]) -> Model {
    let lora = Lora { rank: 8, alpha: 16.0, targets: targets.to_vec() };
    let tuning = Tuning { lora: Some(lora), ..Tuning::default() };
    let options = ranking_options((0.1, 3));
    let mut model = Bert::tuned(Default::default(), &golden.shape, options, &tuning).unwrap();
    fill(&mut model, &golden.ranking_weights);
    for param in model.layout.params.clone().iter().filter(|p| p.block.is_some()) {
        let values = ctune_dist::model::init::initial(param, 1);
        model.engine.upload_weights(&values, &mut model.weights, param.offset).unwrap();
        if param.name.ends_with("lora_B") {
            assert!(values.iter().all(|&x| x == 0.0), "training must start at the base model");
            for (range, used) in param.parts() {
                for (i, at) in range.enumerate().filter(|_| used) {
                    model.weights[at] = ((at * 37 + i) % 101) as f32 / 1000.0 - 0.05;
                }
            }
        }
    }
    model
}

/// The plain model with the adapters merged.
fn merged(golden: &Golden, model: &Model) -> Model {
    let options = ranking_options((0.1, 3));
    let mut plain = Bert::new(Default::default(), &golden.shape, options).unwrap();
    fill(&mut plain, &checkpoint::export(model).unwrap());
    plain
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, x| max.max(x.abs()))
}

#[test]
fn gradients_follow_from_the_merged_matrices() {
    let golden = golden::load();
    for targets in [&ALL[..], &[Target::Value, Target::Query]] {
        let mut model = adapted(&golden, targets);
        let mut plain = merged(&golden, &model);
        for m in [&mut model, &mut plain] {
            m.forward(&golden.ranking_batch, Mode::Train).unwrap();
            m.backward(&golden.ranking_batch, &mut |_, _, _| Ok(())).unwrap();
        }
        let mut compared = 0;
        for (layer, full) in model.layout.layers.iter().zip(&plain.layout.layers) {
            let linears = [full.qkv, full.output, full.up, full.down];
            for adapter in &layer.adapters {
                let linear = linears[adapter.place as usize];
                let (a, b) = (adapter.a, adapter.b);
                let dw = |n: usize, k: usize| f64::from(plain.grads[linear.w + n * linear.k + k]);
                let weight = |at: usize| f64::from(model.weights[at]);
                // W += B' A: dA[j, k] = sum over n of B[j, n] dW[n, k]; dB[j, n] = sum over k of A[j, k] dW[n, k]
                let da: Vec<f32> = (0..a.n * a.k)
                    .map(|i| {
                        (0..b.k).map(|n| weight(b.w + i / a.k * b.k + n) * dw(n, i % a.k)).sum::<f64>() as f32
                    })
                    .collect();
                let db: Vec<f32> = (0..b.n * b.k)
                    .map(|i| {
                        (0..a.k).map(|k| weight(a.w + i / b.k * a.k + k) * dw(i % b.k, k)).sum::<f64>() as f32
                    })
                    .collect();
                for (expected, at) in [(da, a.w), (db, b.w)] {
                    let scale = largest(&expected);
                    assert!(scale > 0.0);
                    for (i, e) in expected.iter().enumerate() {
                        let actual = model.grads[at + i];
                        assert!(
                            (actual - e).abs() <= 2e-5 * scale,
                            "{:?} {i}: {actual} is not {e}",
                            adapter.place
                        );
                    }
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, if targets.len() == 2 { 4 } else { 16 });
    }
}

#[test]
fn only_adapters_and_head_learn_and_the_export_scores_the_same() {
    let golden = golden::load();
    let mut model = adapted(&golden, &[Target::Query, Target::Value]);
    let before = model.weights.to_vec();
    let world = World::solo();
    let settings = Train { lr: 1e-2, ..Train::default() };
    let mut optimiser = Optimiser::new(&model, 0, 1, &settings).unwrap();
    assert!(optimiser.state.len() < model.layout.len / 4, "the base has moments");
    let mut reducer = model.engine.collective(&world).unwrap();
    for _ in 0..5 {
        model.forward(&golden.ranking_batch, Mode::Train).unwrap();
        model.backward(&golden.ranking_batch, &mut |_, _, _| Ok(())).unwrap();
        optimiser.step(&mut *reducer, &mut model, 1e-2).unwrap();
    }
    for param in &model.layout.params {
        for (range, learns) in param.parts() {
            let same = model.weights[range.clone()] == before[range];
            assert_eq!(same, !learns, "{}", param.name);
        }
    }
    let scores = model.scores(&golden.ranking_batch).unwrap();
    let mut plain = merged(&golden, &model);
    let again = plain.scores(&golden.ranking_batch).unwrap();
    for (a, b) in scores.iter().zip(&again) {
        assert!((a - b).abs() <= 1e-5 * largest(&scores), "{a} merged is {b}");
    }

    // a saved folder is a plain model
    let dir = tempfile::tempdir().unwrap();
    checkpoint::save(&model, &dir.path().join("model"), None).unwrap();
    let read = Checkpoint::read(&dir.path().join("model")).unwrap();
    let options = Options { heads: HeadSet::RANKING, ..ranking_options((0.0, 0)) };
    let mut loaded: Model = Bert::new(Default::default(), &golden.shape, options).unwrap();
    let report = read.fill(&mut loaded, Fill::AsSaved, 1).unwrap();
    assert_eq!((report.missing.len(), report.unexpected.len()), (0, 0));
    assert_eq!(loaded.scores(&golden.ranking_batch).unwrap(), again);
}
