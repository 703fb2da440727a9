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
        let ranking = model.ranking(&golden.ranking_batch, dropout).unwrap();
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

/// In f64 the two models are the same function, so all that may differ is the rounding of the
/// stored values to f32 (half a unit in the last place, 2^-24) and f64's own noise, which is some
/// 1e-9 of that.
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
            // What f64 leaves of a sum of terms of this size.
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
