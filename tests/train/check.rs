//! The debug check against the reference model: it sees every trained tensor, and a wrong one cannot hide
//! behind its size or name.

use std::collections::BTreeMap;

use ctune_dist::doctor::sample;
use ctune_dist::engine::op::RankLoss;
use ctune_dist::engine::{Engine, cpu::Cpu};
use ctune_dist::model::activations::Capacity;
use ctune_dist::model::bert::Options;
use ctune_dist::model::layout::Layout;
use ctune_dist::model::{Bert, HeadSet, Objective, Shape, checkpoint};
use ctune_dist::train::check::{GradientCheck, against_reference, compare};

use super::adapters::{ALL, adapted};
use crate::golden;

/// What the check allows in f32 and in bf16.
const ALLOWED: [f64; 2] = [1e-3, 0.1];

fn model<E: Engine>(engine: E, heads: HeadSet, objective: Objective) -> Bert<E> {
    let shape = Shape { layers: 3, ..sample::shapes()[1].clone() };
    let pack = sample::pack(shape.vocab);
    let options = Options {
        objective,
        heads,
        capacity: Capacity { tokens: pack.tokens(), sequences: pack.sequences(), masked: pack.masked },
        train: true,
        dropout: 0.1,
        seed: 11,
        rule: (heads == HeadSet::PRETRAINING).then(|| sample::rule(shape.vocab)),
        continues: vec![0; shape.vocab],
    };
    let mut model = Bert::new(engine, &shape, options).unwrap();
    checkpoint::fill_fresh(&mut model, 3).unwrap();
    model
}

const BOTH: Objective = Objective::Pretraining { mlm: 1.0, qdpp: 1.0 };
const LCE: Objective = Objective::Ranking(RankLoss::Lce, None);

fn checked<E: Engine>(engine: E, heads: HeadSet, objective: Objective) -> GradientCheck {
    let mut model = model(engine, heads, objective);
    let mut pack = sample::pack(model.layout.shape.vocab);
    if heads == HeadSet::RANKING {
        pack.cu_documents.clear();
        pack.cu_groups = vec![0, 2, 5];
    }
    let learning = model.layout.params.iter().filter(|p| p.trained).count();
    let found = against_reference(&mut model, &pack).unwrap().unwrap();
    assert_eq!(found.tensors.len(), learning, "a tensor is not compared");
    found
}

#[test]
fn every_tensor_is_within_rounding_of_its_own_size() {
    for (heads, objective) in [(HeadSet::PRETRAINING, BOTH), (HeadSet::RANKING, LCE)] {
        let f32 = checked(Cpu::new(), heads, objective);
        let bf16 = checked(Cpu::<half::bf16>::default(), heads, objective);
        for ((name, single), (_, half)) in f32.tensors.iter().zip(&bf16.tensors) {
            println!("{name:<60} {single:.1e} {half:.1e}");
        }
        f32.verdict().unwrap();
        bf16.verdict().unwrap();
        assert_eq!([f32.allowed, bf16.allowed], ALLOWED);
    }
}

/// A gradient for every tensor, the sizes six orders of magnitude apart as they are in deep models.
fn planted(layout: &Layout) -> (Vec<f32>, BTreeMap<String, Vec<f32>>) {
    let mut arena = vec![0.0; layout.len];
    let mut expected = BTreeMap::new();
    for (i, param) in layout.params.iter().enumerate() {
        let size = 10f32.powi(-(i as i32 % 7));
        let values: Vec<f32> =
            (0..param.len()).map(|k| size * (0.1 + ((k * 31 + i) % 17) as f32 / 17.0)).collect();
        arena[param.range()].copy_from_slice(&values);
        expected.insert(param.name.clone(), values);
    }
    (arena, expected)
}

fn verdict(tensors: Vec<(String, f64)>, allowed: f64) -> ctune_dist::Result<()> {
    GradientCheck { loss: 1.0, reference_loss: 1.0, tensors, allowed }.verdict()
}

#[test]
fn no_tensor_is_too_small_to_be_wrong() {
    let model = model(Cpu::new(), HeadSet::PRETRAINING, BOTH);
    let layout = &model.layout;
    let (gradient, expected) = planted(layout);
    let weights = vec![0.0; layout.len];
    verdict(compare(layout, &weights, &gradient, &expected).unwrap(), 0.0).unwrap();
    for param in &layout.params {
        let mut lost = gradient.clone();
        let cancelled = param.name.ends_with("attention.self.key.bias");
        match cancelled {
            // of exactly this gradient nothing is left; what a query's bias has would be wrong there
            true => lost[param.range()].fill(10.0),
            false => lost[param.range()].fill(0.0),
        }
        let found = compare(layout, &weights, &lost, &expected).unwrap();
        for allowed in ALLOWED {
            let error = verdict(found.clone(), allowed).unwrap_err().to_string();
            assert!(error.contains(&param.name), "{}: {error}", param.name);
        }
    }
}

#[test]
fn a_tensor_without_its_like_is_an_error() {
    let model = model(Cpu::new(), HeadSet::PRETRAINING, BOTH);
    let (gradient, expected) = planted(&model.layout);
    let weights = vec![0.0; model.layout.len];
    let name = "bert.encoder.layer.1.output.dense.bias";
    let refused = |layout: &Layout, expected: &BTreeMap<String, Vec<f32>>, name: &str| {
        let error = compare(layout, &weights, &gradient, expected).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    };
    let mut renamed = model.layout.clone();
    renamed.params.iter_mut().find(|p| p.name == name).unwrap().name = "bert.output.bias".into();
    refused(&renamed, &expected, "bert.output.bias");
    let mut lacks = expected.clone();
    lacks.remove(name).unwrap();
    refused(&model.layout, &lacks, name);
    let mut more = expected;
    more.insert("bert.more".into(), vec![0.0]);
    refused(&model.layout, &more, "bert.more");
}

#[test]
fn adapters_are_compared_too() {
    let golden = golden::load();
    let mut model = adapted(&golden, &ALL);
    let found = against_reference(&mut model, &golden.ranking_batch).unwrap().unwrap();
    found.verdict().unwrap();
    let adapters = found.tensors.iter().filter(|(name, _)| name.contains("lora_")).count();
    let all = model.layout.params.iter().filter(|p| p.block.is_some()).count();
    assert!(adapters == all && all >= 16, "{adapters} of {all} adapters are compared");
    let (gradient, mut expected) = planted(&model.layout);
    expected.retain(|name, _| !name.contains("lora_"));
    let found = compare(&model.layout, &model.weights, &gradient, &expected).unwrap();
    for (name, error) in found {
        assert_eq!(error > 0.1, name.contains("lora_"), "{name} is off by {error:.1e}");
    }
}
