//! Debug mode (`run.check`) and `doctor`: the gradient of one pack against the reference model's,
//! tensor by tensor. Slow (the reference runs every sequence by itself, on the CPU), so it is for
//! small packs and now and then.

use std::collections::BTreeMap;

use crate::data::batch::Batch;
use crate::engine::op::{LinearAt, RankLoss};
use crate::engine::{Engine, stats};
use crate::model::checkpoint::export;
use crate::model::layout::{Layout, Param};
use crate::model::{Bert, Mode, Objective};
use crate::reference::Reference;
use crate::{Error, Result};

/// Largest relative error that rounding may leave. A wrong formula, a lost term or a wrong lane shows as an
/// error near 1. Rounding leaves, in models of two layers, 5e-7 in f32 and 1e-2 in bf16 (software device),
/// and grows with the square root of the depth.
const ALLOWED_F32: f64 = 1e-3;
const ALLOWED_BF16: f64 = 0.1;

/// Biases whose gradient is 0 in exact arithmetic, because the softmax after them does not change when all of
/// its inputs rise by the same: a key's, and under a ranking loss the score's. The rounding errors left there
/// have no gradient to be measured against.
const CANCELLED: [&str; 2] = [".attention.self.key.bias", "classifier.bias"];

/// One pack on the engine and on the reference.
#[derive(Clone, Debug)]
pub struct GradientCheck {
    pub loss: f64,
    pub reference_loss: f64,
    /// Hugging Face name and |g - r| / |r| in the Euclidean norm of every tensor that learns, in the order
    /// of the arena.
    pub tensors: Vec<(String, f64)>,
    pub allowed: f64,
}

impl GradientCheck {
    /// The tensor with the largest error.
    pub fn worst(&self) -> (&str, f64) {
        let none = ("", 0.0);
        self.tensors.iter().fold(none, |worst, (name, error)| {
            // a NaN is worse than any number
            if *error <= worst.1 { worst } else { (name.as_str(), *error) }
        })
    }

    /// # Errors
    /// `Error::Device` that names the tensor, when an error is larger than rounding leaves.
    pub fn verdict(&self) -> Result<()> {
        let (name, error) = self.worst();
        let loss = ((self.loss - self.reference_loss) / self.reference_loss.abs().max(1e-6)).abs();
        if error <= self.allowed && loss <= self.allowed {
            return Ok(());
        }
        Err(Error::device(format!(
            "the device disagrees with the reference model: loss {:.6} and {:.6}, gradient of {name} off by \
             {error:.2e} (allowed {:.0e}): run `ctune-dist doctor`",
            self.loss, self.reference_loss, self.allowed
        )))
    }
}

/// Runs forward and backward of `batch` on both. The model's gradients and statistics are cleared afterwards.
/// `None` for an objective that the reference does not have.
pub fn against_reference<E: Engine>(model: &mut Bert<E>, batch: &Batch) -> Result<Option<GradientCheck>> {
    if matches!(model.options.objective, Objective::Ranking(loss, _) if loss != RankLoss::Lce) {
        return Ok(None);
    }
    let len = model.layout.len;
    model.take_sums()?;
    model.engine.clear(&mut model.grads, 0..len)?;
    model.forward(batch, Mode::Train)?;
    model.backward(batch, &mut |_, _, _| Ok(()))?;
    let sums = model.take_sums()?;
    let gradient = model.engine.download(&model.grads, 0..len)?;
    model.engine.clear(&mut model.grads, 0..len)?;

    let weights = model.engine.download_weights(&model.weights, 0..len)?;
    let expected = expectation(model, batch, &sums)?;
    Ok(Some(GradientCheck {
        loss: expected.loss,
        reference_loss: expected.reference_loss,
        tensors: compare(&model.layout, &weights, &gradient, &expected.gradients)?,
        allowed: if size_of::<E::Real>() == 2 { ALLOWED_BF16 } else { ALLOWED_F32 },
    }))
}

/// The reference model's results for a pack.
struct Expectation {
    /// The engine's loss, in the reference's terms.
    loss: f64,
    reference_loss: f64,
    gradients: BTreeMap<String, Vec<f32>>,
}

/// Runs the reference on the pack as the model has masked it.
fn expectation<E: Engine>(model: &Bert<E>, batch: &Batch, sums: &[f64; stats::SLOTS]) -> Result<Expectation> {
    let reference = Reference::new(&model.layout.shape, &export(model)?)?;
    let dropout = (model.options.dropout > 0.0).then_some((model.options.dropout, model.options.seed));
    let mut masked = batch.clone();
    let (ids, rows, labels) = model.masked_pack()?;
    masked.ids = ids;
    let (total, loss) = match model.options.objective {
        Objective::Pretraining { mlm, qdpp } => {
            let pass = reference.pretraining(&masked, &rows, &labels, dropout)?;
            let mut total = (pass.mlm_loss * f64::from(mlm))?;
            if let Some(loss) = pass.qdpp_loss {
                total = (total + (loss * f64::from(qdpp))?)?;
            }
            let mean = |weight: f32, sum: usize, of: usize| f64::from(weight) * sums[sum] / of.max(1) as f64;
            let loss = mean(mlm, stats::MLM_LOSS, batch.step_masked)
                + mean(qdpp, stats::QDPP_LOSS, batch.step_pairs);
            (total, loss)
        }
        Objective::Ranking(_, how) => {
            let loss = sums[stats::RANK_LOSS] / batch.step_pairs.max(1) as f64;
            (reference.ranking(batch, how, dropout)?.loss, loss)
        }
    };
    let reference_loss = f64::from(total.to_scalar::<f32>()?);
    Ok(Expectation { loss, reference_loss, gradients: reference.gradients(&total)? })
}

/// Name and relative error of every tensor of `layout` that learns. `weights` and `gradient` are arenas;
/// `expected` are the gradients of the plain model, in which adapters are merged.
///
/// # Errors
/// `Error::Device` for a tensor that the reference does not know: it would be compared with nothing.
pub fn compare(
    layout: &Layout,
    weights: &[f32],
    gradient: &[f32],
    expected: &BTreeMap<String, Vec<f32>>,
) -> Result<Vec<(String, f64)>> {
    let arena = arena(layout, expected)?;
    let adapters = adapter_gradients(layout, weights, &arena);
    let learning = layout.params.iter().filter(|p| p.trained);
    let error = |param: &Param| {
        let want = match param.block {
            Some(_) => adapters.get(&param.offset).ok_or_else(|| unknown(&param.name))?,
            None => &arena[param.range()],
        };
        let used = param.parts().into_iter().filter(|(_, used)| *used).flat_map(|(range, _)| range);
        let (mut off, mut size) = (0.0, 0.0);
        for at in used {
            let want = f64::from(want[at - param.offset]);
            off += (f64::from(gradient[at]) - want).powi(2);
            size += want.powi(2);
        }
        let size = if CANCELLED.iter().any(|name| param.name.ends_with(name)) {
            beside(layout, param, &arena)?
        } else {
            size.sqrt()
        };
        // nothing is off where both are nothing, as the gradient of a head that the loss does not use
        Ok((param.name.clone(), if off == 0.0 { 0.0 } else { off.sqrt() / size }))
    };
    learning.map(error).collect()
}

fn unknown(name: &str) -> Error {
    Error::device(format!("a fault of this program: the reference model has no gradient of {name}"))
}

/// The gradients of the plain model in the order of the arena: [len]. A head that the loss does not use
/// has none, and zeros here.
fn arena(layout: &Layout, expected: &BTreeMap<String, Vec<f32>>) -> Result<Vec<f32>> {
    let mut arena = vec![0.0; layout.len];
    let mut known = 0;
    for param in layout.params.iter().filter(|p| p.block.is_none()) {
        match expected.get(&param.name) {
            Some(values) if values.len() == param.len() => {
                arena[param.range()].copy_from_slice(values);
                known += 1;
            }
            None if param.depth > layout.shape.layers => {}
            _ => return Err(unknown(&param.name)),
        }
    }
    match expected.keys().find(|name| layout.find(name).is_none()) {
        Some(name) => Err(unknown(name)),
        None if known == expected.len() => Ok(arena),
        None => Err(unknown("a tensor that is there twice")),
    }
}

/// What a bias's gradient is compared with if its own is 0: the mean over its inputs of the gradients of the
/// weight beside it, which is a sum of the same terms, each times an input of size 1.
fn beside(layout: &Layout, bias: &Param, arena: &[f32]) -> Result<f64> {
    let name = bias.name.replace(".bias", ".weight");
    let weight = layout.find(&name).ok_or_else(|| unknown(&name))?;
    let norm = arena[weight.range()].iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    Ok(norm / (weight.len() as f64 / bias.len() as f64).sqrt())
}

/// The gradients of all adapters by their place in the arena, by the chain rule from those of the
/// matrices that they are added to: W += B' A, so dA = B dW and dB = A dW'.
fn adapter_gradients(layout: &Layout, weights: &[f32], arena: &[f32]) -> BTreeMap<usize, Vec<f32>> {
    let mut gradients = BTreeMap::new();
    for layer in &layout.layers {
        let linears = [layer.qkv, layer.output, layer.up, layer.down];
        for adapter in &layer.adapters {
            let LinearAt { w, k: inputs, .. } = linears[adapter.place as usize];
            let (a, b) = (adapter.a, adapter.b);
            let dw = |output: usize, input: usize| f64::from(arena[w + output * inputs + input]);
            let weight = |at: usize| f64::from(weights[at]);
            let of_a = |i: usize| {
                let (row, input) = (i / a.k, i % a.k);
                (0..b.k).map(|output| weight(b.w + row * b.k + output) * dw(output, input)).sum::<f64>()
            };
            let of_b = |i: usize| {
                let (row, output) = (i / b.k, i % b.k);
                (0..a.k).map(|input| weight(a.w + row * a.k + input) * dw(output, input)).sum::<f64>()
            };
            gradients.insert(a.w, (0..a.n * a.k).map(|i| of_a(i) as f32).collect());
            gradients.insert(b.w, (0..b.n * b.k).map(|i| of_b(i) as f32).collect());
        }
    }
    gradients
}
