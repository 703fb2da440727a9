//! Debug mode (`run.check`) and `doctor`: the gradient of one pack against the reference model's,
//! tensor by tensor. Slow (the reference runs every sequence by itself, on the CPU), so it is for
//! small packs and now and then.

use crate::Result;
use crate::data::batch::Batch;
use crate::engine::Engine;
use crate::engine::op::RankLoss;
use crate::model::checkpoint::export;
use crate::model::{Bert, Mode, Objective};
use crate::reference::Reference;
use crate::{Error, engine::stats};

/// Largest relative error that rounding may leave. A wrong formula, a lost term or a wrong lane shows
/// as an error near 1. Rounding leaves, in models of two layers, 5e-7 in f32 and 1e-2 in bf16 (software device),
/// and grows with the square root of the depth.
const ALLOWED_F32: f64 = 1e-3;
const ALLOWED_BF16: f64 = 0.1;

/// Tensors whose gradient is smaller than this share of the whole gradient are measured against
/// that share: a key's bias has a gradient of exactly 0, which no rounding reproduces.
const FLOOR: f64 = 1e-2;

/// One pack on the engine and on the reference.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub loss: f64,
    pub reference_loss: f64,
    /// Hugging Face name and |g - r| / |r| in the Euclidean norm, in the order of the arena.
    pub tensors: Vec<(String, f64)>,
    pub allowed: f64,
}

impl Comparison {
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

/// Runs forward and backward of `batch` on both. Gradients and statistics of the model are those of
/// no pack afterwards. `None` for an objective that the reference does not have.
pub fn against_reference<E: Engine>(model: &mut Bert<E>, batch: &Batch) -> Result<Option<Comparison>> {
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
    let expected = reference.gradients(&total)?;
    let norm = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let whole = expected.values().map(|g| norm(g).powi(2)).sum::<f64>().sqrt();
    let compare = |param: &crate::model::layout::Param| {
        let expected = expected.get(&param.name)?;
        let got = &gradient[param.range()];
        let off: Vec<f32> = got.iter().zip(expected).map(|(g, e)| g - e).collect();
        Some((param.name.clone(), norm(&off) / norm(expected).max(FLOOR * whole)))
    };
    Ok(Some(Comparison {
        loss,
        reference_loss: f64::from(total.to_scalar::<f32>()?),
        tensors: model.layout.params.iter().filter(|p| p.trained).filter_map(compare).collect(),
        allowed: if size_of::<E::Real>() == 2 { ALLOWED_BF16 } else { ALLOWED_F32 },
    }))
}
