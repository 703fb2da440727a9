//! The reference model against PyTorch, and against itself.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use ctune_dist::Error;
use ctune_dist::data::batch::Batch;
use ctune_dist::reference::{Reference, Tensors};

use crate::golden::{self, Case, Golden};

const CASES: [Case; 4] = [Case::Pretraining, Case::PretrainingDropout, Case::Ranking, Case::RankingDropout];

/// One pass: the losses by name, the outputs by name, the scalar to differentiate.
struct Pass {
    losses: BTreeMap<&'static str, f64>,
    outputs: BTreeMap<&'static str, Vec<f64>>,
    total: Tensor,
}

fn pass(golden: &Golden, model: &Reference, case: Case) -> Pass {
    let dropout = matches!(case, Case::PretrainingDropout | Case::RankingDropout).then_some(golden.dropout);
    if matches!(case, Case::Ranking | Case::RankingDropout) {
        let ranking = model.ranking(&golden.ranking_batch, None, dropout).unwrap();
        return Pass {
            losses: BTreeMap::from([("loss", scalar(&ranking.loss))]),
            outputs: BTreeMap::from([("scores", values(&ranking.scores))]),
            total: ranking.loss,
        };
    }
    let pass = model
        .pretraining(&golden.pretraining_batch, &golden.masked_rows, &golden.masked_labels, dropout)
        .unwrap();
    Pass {
        losses: BTreeMap::from([
            ("mlm_loss", scalar(&pass.mlm_loss)),
            ("qdpp_loss", scalar(pass.qdpp_loss.as_ref().unwrap())),
        ]),
        outputs: BTreeMap::from([
            ("mlm_logits", values(&pass.mlm_logits)),
            ("pair_logits", values(pass.pair_logits.as_ref().unwrap())),
        ]),
        total: pass.total().unwrap(),
    }
}

fn weights(golden: &Golden, case: Case) -> &Tensors {
    match case {
        Case::Pretraining | Case::PretrainingDropout => &golden.pretraining_weights,
        Case::Ranking | Case::RankingDropout => &golden.ranking_weights,
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn scalar(tensor: &Tensor) -> f64 {
    values(tensor)[0]
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|x| *x as f32).collect()
}

/// In f64 the two models are the same function. They may differ only by the rounding of the stored values to
/// f32 (half a unit in the last place, 2^-24) and by f64's own noise, about 1e-9 of that.
#[test]
fn double_precision_equals_pytorch_to_the_last_stored_digit() {
    let golden = golden::load();
    for case in CASES {
        let model = Reference::new_f64(&golden.shape, weights(&golden, case)).unwrap();
        let pass = pass(&golden, &model, case);
        for (name, loss) in pass.losses {
            let expected = golden.loss(case, name);
            assert!((loss / expected - 1.0).abs() < 1e-13, "{case:?} {name}: {loss}, PyTorch {expected}");
        }
        let half_ulp = 2f64.powi(-24);
        for (name, output) in pass.outputs {
            let error = golden.relative_error(case, name, &narrow(&output));
            assert!(error <= half_ulp, "{case:?} {name}: relative error {error:e}");
        }
        let gradients = model.gradients_f64(&pass.total).unwrap();
        for (name, expected) in golden.gradients(case) {
            let scale = golden.output(case, name).iter().fold(0f32, |max, x| max.max(x.abs()));
            // The error that f64 leaves in a sum of terms of this size.
            let noise = 1e-13 * f64::from(scale).max(1.0);
            for (i, (g, e)) in gradients[name].iter().zip(expected).enumerate() {
                let e = f64::from(*e);
                assert!(
                    (g - e).abs() <= half_ulp * e.abs() + noise,
                    "{case:?} {name}[{i}]: {g:e}, PyTorch {e:e}"
                );
            }
        }
        let expected = golden.gradients(case).len();
        assert!(
            gradients.len() == expected || case == Case::RankingDropout,
            "{case:?}: {expected} gradients"
        );
    }
}

/// In f32 the reference may be off by twice what PyTorch's own f32 run is.
#[test]
fn single_precision_is_as_good_as_pytorch() {
    let golden = golden::load();
    for case in CASES {
        let model = Reference::new(&golden.shape, weights(&golden, case)).unwrap();
        let pass = pass(&golden, &model, case);
        let bound = golden.bound(case);
        for (name, loss) in pass.losses {
            let error = (loss / golden.loss(case, name) - 1.0).abs();
            assert!(error <= bound, "{case:?} {name}: relative error {error:e} above {bound:e}");
        }
        let mut worst = (0.0, String::new());
        let outputs = pass.outputs.iter().map(|(name, x)| (name.to_string(), narrow(x)));
        let gradients = model.gradients(&pass.total).unwrap();
        let gradients = gradients.into_iter().filter(|_| case != Case::RankingDropout);
        for (name, actual) in outputs.chain(gradients) {
            let error = golden.relative_error(case, &name, &actual);
            if error > worst.0 {
                worst = (error, name);
            }
        }
        println!("{case:?}: worst relative error {:.2e} ({}), bound {bound:.2e}", worst.0, worst.1);
        assert!(worst.0 <= bound, "{case:?} {}: relative error {:e} above {bound:e}", worst.1, worst.0);
    }
}

/// A gradient that is exactly zero everywhere would be as lost as one that is missing. Key biases
/// and the ranking head's bias truly are zero: softmax does not see a shift.
#[test]
fn every_parameter_has_a_gradient() {
    let golden = golden::load();
    for case in [Case::Pretraining, Case::Ranking] {
        let model = Reference::new_f64(&golden.shape, weights(&golden, case)).unwrap();
        let gradients = model.gradients_f64(&pass(&golden, &model, case).total).unwrap();
        assert!(gradients.keys().eq(weights(&golden, case).keys()), "{case:?}");
        for (name, gradient) in gradients {
            let zero = name.ends_with("self.key.bias") || name == "classifier.bias";
            let largest = gradient.iter().fold(0f64, |max, x| max.max(x.abs()));
            assert_eq!(largest < 1e-12, zero, "{case:?} {name}: largest element {largest:e}");
        }
    }
}

/// The fused operations of candle-nn without a backward, which would otherwise go unnoticed.
#[test]
fn a_lost_gradient_is_named() {
    let golden = golden::load();
    let weights = weights(&golden, Case::Pretraining);
    let model = Reference::new(&golden.shape, weights).unwrap();
    let batch = &golden.pretraining_batch;
    let refused = |loss: &Tensor| match model.gradients(loss) {
        Err(Error::Data(text)) => {
            assert!(text.contains("`bert.embeddings.LayerNorm.bias` has no gradient"), "{text}")
        }
        other => panic!("{other:?}"),
    };

    let pass = model.pretraining(batch, &golden.masked_rows, &golden.masked_labels, None).unwrap();
    refused(&candle_nn::ops::softmax_last_dim(&pass.mlm_logits).unwrap().sum_all().unwrap());

    let hidden = model.encode(batch, None).unwrap();
    let ones = Tensor::ones(golden.shape.hidden, DType::F32, hidden.device()).unwrap();
    refused(&candle_nn::ops::layer_norm(&hidden, &ones, &ones, 1e-12).unwrap().sum_all().unwrap());

    // A loss that does not depend on any parameter.
    assert!(model.gradients(&ones.sum_all().unwrap()).is_err());
    assert!(model.gradients(&hidden.sum_all().unwrap()).is_ok());
}

/// Each loss alone reaches the encoder and its own head, and nothing of the other head.
#[test]
fn each_objective_alone() {
    let golden = golden::load();
    let model = Reference::new(&golden.shape, weights(&golden, Case::Pretraining)).unwrap();

    let batch = Batch { pair_labels: Vec::new(), ..golden.pretraining_batch.clone() };
    let mlm = model.pretraining(&batch, &golden.masked_rows, &golden.masked_labels, None).unwrap();
    assert!(mlm.qdpp_loss.is_none() && mlm.pair_logits.is_none());
    let gradients = model.gradients(&mlm.total().unwrap()).unwrap();
    assert!(gradients.contains_key("cls.predictions.bias"));
    assert!(!gradients.keys().any(|name| name.contains("pooler") || name.contains("seq_relationship")));

    let qdpp = model.pretraining(&golden.pretraining_batch, &[], &[], None).unwrap();
    assert_eq!(qdpp.mlm_logits.dims(), [0, golden.shape.vocab]);
    assert_eq!(scalar(&qdpp.mlm_loss), 0.0);
    let gradients = model.gradients(&qdpp.total().unwrap()).unwrap();
    assert!(gradients.contains_key("bert.pooler.dense.weight"));
    assert!(!gradients.keys().any(|name| name.starts_with("cls.predictions")));
}

/// One sequence of `batch` as a pack of its own, with the divisors of the whole.
fn alone(batch: &Batch, sequence: usize) -> Batch {
    let rows = batch.cu_seqlens[sequence] as usize..batch.cu_seqlens[sequence + 1] as usize;
    Batch {
        ids: batch.ids[rows.clone()].to_vec(),
        positions: batch.positions[rows.clone()].to_vec(),
        segments: batch.segments[rows.clone()].to_vec(),
        row_sample: batch.row_sample[rows.clone()].to_vec(),
        cu_seqlens: vec![0, rows.len() as u32],
        samples: vec![batch.samples[sequence]],
        pair_labels: vec![batch.pair_labels[sequence]],
        ..batch.clone()
    }
}

/// Losses and gradients of a pack are the sums over its sequences, dropout included, because
/// nothing of a sequence depends on where it lies. f64, so that only the order of sums differs.
#[test]
fn packed_equals_one_by_one() {
    let golden = golden::load();
    let model = Reference::new_f64(&golden.shape, weights(&golden, Case::Pretraining)).unwrap();
    let batch = &golden.pretraining_batch;
    let packed = pass(&golden, &model, Case::PretrainingDropout);
    let mut loss = 0.0;
    let mut sum: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for sequence in 0..batch.sequences() {
        let rows = batch.cu_seqlens[sequence]..batch.cu_seqlens[sequence + 1];
        let masked = golden.masked_rows.iter().zip(&golden.masked_labels);
        let masked = masked.filter(|(row, _)| rows.contains(row));
        let (masked_rows, labels): (Vec<u32>, Vec<u32>) =
            masked.map(|(row, label)| (row - rows.start, *label)).unzip();
        let pass =
            model.pretraining(&alone(batch, sequence), &masked_rows, &labels, Some(golden.dropout)).unwrap();
        let total = pass.total().unwrap();
        loss += scalar(&total);
        for (name, gradient) in model.gradients_f64(&total).unwrap() {
            let sum = sum.entry(name).or_insert_with(|| vec![0.0; gradient.len()]);
            sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g);
        }
    }
    assert!((loss / scalar(&packed.total) - 1.0).abs() < 1e-13);
    for (name, expected) in model.gradients_f64(&packed.total).unwrap() {
        for (g, e) in sum[&name].iter().zip(expected) {
            assert!((g - e).abs() < 1e-12, "{name}: {g:e} one by one, {e:e} packed");
        }
    }
}

/// Dropout is a pure function of (seed, epoch, sample, position): the same for the same arguments, different
/// for another seed or epoch, none at rate 0.
#[test]
fn dropout_is_a_function_of_its_key() {
    let golden = golden::load();
    let model = Reference::new(&golden.shape, weights(&golden, Case::Pretraining)).unwrap();
    let batch = &golden.pretraining_batch;
    let hidden = |batch: &Batch, dropout| values(&model.encode(batch, dropout).unwrap());
    let base = hidden(batch, Some((0.1, 1)));
    assert_eq!(base, hidden(batch, Some((0.1, 1))));
    assert_ne!(base, hidden(batch, Some((0.1, 2))));
    assert_ne!(base, hidden(&Batch { epoch: batch.epoch + 1, ..batch.clone() }, Some((0.1, 1))));
    assert_eq!(hidden(batch, None), hidden(batch, Some((0.0, 1))));
}

/// The gradient of the loss with dropout on is the slope of that loss: central differences in f64
/// along a random direction, whose error is of third order in the step: 1e-8 of a slope of first
/// order, times the curvature of a function of 25 thousand parameters.
#[test]
fn gradients_with_dropout_are_slopes() {
    let golden = golden::load();
    for case in [Case::PretrainingDropout, Case::RankingDropout] {
        let base = weights(&golden, case);
        let model = Reference::new_f64(&golden.shape, base).unwrap();
        let gradients = model.gradients_f64(&pass(&golden, &model, case).total).unwrap();
        let (mut up, mut down) = (base.clone(), base.clone());
        let mut slope = 0.0;
        let mut state = 1u32;
        for (name, gradient) in &gradients {
            let (up, down) = (&mut up.get_mut(name).unwrap().1, &mut down.get_mut(name).unwrap().1);
            for i in 0..gradient.len() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let step = if state >> 31 == 0 { 1e-4 } else { -1e-4 };
                up[i] += step;
                down[i] -= step;
                slope += gradient[i] * (f64::from(up[i]) - f64::from(down[i]));
            }
        }
        let loss = |tensors| {
            let model = Reference::new_f64(&golden.shape, tensors).unwrap();
            scalar(&pass(&golden, &model, case).total)
        };
        let difference = loss(&up) - loss(&down);
        assert!((difference / slope - 1.0).abs() < 1e-4, "{case:?}: difference {difference}, slope {slope}");
    }
}

/// AdamW as `torch.optim.AdamW` (decoupled decay, bias correction), clipped by the global norm, in
/// f64; the weights return to f32 after each update because the model takes them so.
#[derive(Default)]
struct AdamW {
    step: i32,
    moments: BTreeMap<String, Vec<(f64, f64)>>,
}

impl AdamW {
    /// Returns the norm before clipping.
    fn update(
        &mut self,
        golden: &Golden,
        lr: f64,
        weights: &mut Tensors,
        gradients: &BTreeMap<String, Vec<f64>>,
    ) -> f64 {
        let plan = &golden.steps;
        self.step += 1;
        let norm = gradients.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let clip = (plan.clip_norm / (norm + 1e-6)).min(1.0);
        let correction = |beta: f64| 1.0 - beta.powi(self.step);
        for (name, gradient) in gradients {
            let values = &mut weights.get_mut(name).unwrap().1;
            let moments = self.moments.entry(name.clone()).or_insert_with(|| vec![(0.0, 0.0); values.len()]);
            let plain = name.ends_with("bias") || name.contains("LayerNorm");
            let decay = if plain { 0.0 } else { plan.weight_decay };
            for ((w, g), (m, v)) in values.iter_mut().zip(gradient).zip(moments) {
                let g = g * clip;
                *m = plan.beta1 * *m + (1.0 - plan.beta1) * g;
                *v = plan.beta2 * *v + (1.0 - plan.beta2) * g * g;
                let direction =
                    (*m / correction(plan.beta1)) / ((*v / correction(plan.beta2)).sqrt() + plan.eps);
                let x = f64::from(*w);
                *w = (x - lr * decay * x - lr * direction) as f32;
            }
        }
        norm
    }
}

/// Ten optimiser steps follow PyTorch's float64 run as closely as twice PyTorch's own float32 run does.
#[test]
fn ten_steps_follow_pytorch() {
    let golden = golden::load();
    let plan = &golden.steps;
    let mut weights = golden.pretraining_weights.clone();
    let mut optimiser = AdamW::default();
    let mut losses = Vec::new();
    for (step, lr) in plan.learning_rates.iter().enumerate() {
        let model = Reference::new_f64(&golden.shape, &weights).unwrap();
        let total = pass(&golden, &model, Case::Pretraining).total;
        losses.push(scalar(&total));
        let norm = optimiser.update(&golden, *lr, &mut weights, &model.gradients_f64(&total).unwrap());
        // Weights rounded to f32 (6e-8) move the norm by a few times that.
        assert!((norm / plan.grad_norms[step] - 1.0).abs() < 1e-6, "step {step}: norm {norm}");
    }
    let model = Reference::new_f64(&golden.shape, &weights).unwrap();
    losses.push(scalar(&pass(&golden, &model, Case::Pretraining).total));
    let with_last = |losses: &[f64], last| losses.iter().copied().chain([last]).collect::<Vec<f64>>();
    let expected = with_last(&plan.losses, plan.final_loss);
    let single = with_last(&golden.steps_float32.losses, golden.steps_float32.final_loss);
    let distance = |a: &[f64]| a.iter().zip(&expected).map(|(a, e)| (a - e).abs()).fold(0.0, f64::max);
    let (error, bound) = (distance(&losses), 2.0 * distance(&single));
    println!("largest loss difference {error:.2e}, bound {bound:.2e}");
    assert!(error <= bound, "{error:e} above {bound:e}: {losses:?}");
    assert!(losses[10] < losses[0] - 1.0);
}

#[test]
fn wrong_tensors_are_named() {
    let golden = golden::load();
    let refusal = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = golden.pretraining_weights.clone();
        change(&mut tensors);
        match Reference::new(&golden.shape, &tensors) {
            Err(Error::Data(text)) => text,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("accepted"),
        }
    };
    let missing = "bert.encoder.layer.1.attention.self.value.bias";
    assert!(refusal(&|t| drop(t.remove(missing))).contains(&format!("no tensor `{missing}`")));
    assert!(
        refusal(&|t| drop(t.remove("bert.pooler.dense.bias"))).contains("no tensor `bert.pooler.dense.bias`")
    );
    assert!(
        refusal(&|t| drop(t.remove("cls.predictions.bias"))).contains("no tensor `cls.predictions.bias`")
    );
    let unexpected = refusal(&|t| drop(t.insert("bert.extra".into(), (vec![1], vec![0.0]))));
    assert!(unexpected.contains("unexpected tensor `bert.extra`"));
    let bent = refusal(&|t| t.get_mut("cls.seq_relationship.weight").unwrap().0 = vec![32, 2]);
    assert!(
        bent.contains("`cls.seq_relationship.weight` is [32, 2] with 64 values, expected [2, 32]"),
        "{bent}"
    );

    let model = Reference::new(&golden.shape, &golden.pretraining_weights).unwrap();
    let error = model.ranking(&golden.ranking_batch, None, None).err().unwrap();
    assert!(error.to_string().contains("no tensor `classifier.weight`"), "{error}");
}
