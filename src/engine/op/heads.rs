//! The small heads on the [CLS] rows: a pooler's tanh with a two-way classifier (QDPP) or one score on top.

use super::{Cost, Dropout, Grads, Operation, Written, bytes_of, elements};
use crate::engine::{Device, DeviceBatch, Floats, Reals, Rows, Words};

/// A pooler with a small head on top: pooler bias [H], head weight [k, H], head bias [k].
/// (The pooler's own [H, H] product is an ordinary `Linear`.)
#[derive(Clone, Copy, Debug)]
pub struct HeadAt {
    pub pool_bias: usize,
    pub w: usize,
    pub b: usize,
    pub hidden: usize,
}

/// Factor of a loss's gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// Weight of the loss in the objective; 0 measures only.
    pub weight: f32,
    /// `weight` / max(count of the step, 1). Devices that replay compute it from `PackCounts`.
    pub value: f32,
}

impl LossScale {
    /// Losses are measured and leave no gradient.
    pub const MEASURE: Self = Self { weight: 0.0, value: 0.0 };

    /// The mean over the step's `count`, times `weight`.
    pub fn mean(weight: f32, count: usize) -> Self {
        Self { weight, value: weight / count.max(1) as f32 }
    }
}

/// QDPP in one pass: pooled = tanh(pre + b_p), logits = pooled Wᵀ + b, cross-entropy against `labels`, each
/// times its factor. `pre` becomes its own gradient times `scale.value`; the gradients of W, b and the
/// pooler's bias are added to `grads`, and loss, accuracy and count to `sums` (accuracy and count ignore the
/// factor). `LossScale::MEASURE`: no gradients (labels are still read, `grads` may be empty).
pub struct QdppHead<'a, D: Device> {
    pub weights: &'a Reals<D>,
    pub at: HeadAt,
    /// Classes, [S]
    pub labels: &'a Words<D>,
    /// [S]
    pub factors: &'a Floats<D>,
    /// S
    pub rows: Rows,
    pub scale: LossScale,
    /// The pooler's product without bias, [S, H], in place.
    pub pre: &'a mut Reals<D>,
    /// [S, 2], overwritten.
    pub logits: &'a mut Floats<D>,
    pub grads: Grads<'a, D>,
    /// [stats::SLOTS]
    pub sums: &'a mut Floats<D>,
}

impl<D: Device> Operation<D> for QdppHead<'_, D> {
    fn name(&self) -> &'static str {
        "qdpp_head"
    }

    fn cost(&self) -> Cost {
        head_cost::<D>(self.rows, self.at.hidden)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.pre, rows: self.rows, width: self.at.hidden })
    }
}

/// Relevance scores: `pre` becomes pooled = tanh(pre + b_p); scores = dropout(pooled) wᵀ + b (position 0 of
/// each sample keys the dropout).
pub struct ScoreHead<'a, D: Device> {
    pub batch: &'a DeviceBatch<D>,
    pub weights: &'a Reals<D>,
    pub at: HeadAt,
    pub drop: Dropout,
    /// The pooler's product without bias, [S, H], in place.
    pub pre: &'a mut Reals<D>,
    /// [S], overwritten.
    pub scores: &'a mut Floats<D>,
}

impl<D: Device> Operation<D> for ScoreHead<'_, D> {
    fn name(&self) -> &'static str {
        "score_head"
    }

    fn cost(&self) -> Cost {
        head_cost::<D>(Rows::Sequences(self.batch.sequences), self.at.hidden)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        let rows = Rows::Sequences(self.batch.sequences);
        Some(Written { values: self.pre, rows, width: self.at.hidden })
    }
}

/// `pooled` becomes the gradient of `pre`; the gradients of w, b and the pooler's bias are added.
pub struct ScoreHeadBackward<'a, D: Device> {
    pub batch: &'a DeviceBatch<D>,
    pub weights: &'a Reals<D>,
    pub at: HeadAt,
    pub drop: Dropout,
    /// [S]
    pub dscores: &'a Floats<D>,
    /// [S, H], in place.
    pub pooled: &'a mut Reals<D>,
    pub grads: Grads<'a, D>,
}

impl<D: Device> Operation<D> for ScoreHeadBackward<'_, D> {
    fn name(&self) -> &'static str {
        "score_head_backward"
    }

    fn cost(&self) -> Cost {
        head_cost::<D>(Rows::Sequences(self.batch.sequences), self.at.hidden)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        let rows = Rows::Sequences(self.batch.sequences);
        Some(Written { values: self.pooled, rows, width: self.at.hidden })
    }
}

/// Rows in and out; a tanh a value.
fn head_cost<D: Device>(rows: Rows, hidden: usize) -> Cost {
    let n = elements(rows, hidden);
    Cost::rows(2.0 * bytes_of::<D>() * n, 20.0 * n)
}
