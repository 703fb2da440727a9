//! Matrix products of a linear layer, weight [N, K] as Hugging Face stores it.

use super::{Cost, FULL, Grads, Operation, Written, bytes_of, elements};
use crate::engine::{Device, Reals, Rows};

/// A linear layer's place in a parameter arena: weight [n, k] at `w`, bias [n] at `b`.
#[derive(Clone, Copy, Debug)]
pub struct LinearAt {
    pub w: usize,
    pub b: usize,
    /// Output columns, N.
    pub n: usize,
    /// Input columns, K.
    pub k: usize,
}

/// What a linear layer does to its product before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing: the next fused operation adds the bias.
    None,
    /// y = x Wᵀ + b
    Bias,
}

/// out = x Wᵀ (+ b).
pub struct Linear<'a, D: Device> {
    /// [rows, K]
    pub x: &'a Reals<D>,
    pub weights: &'a Reals<D>,
    pub at: LinearAt,
    pub rows: Rows,
    pub epilogue: Epilogue,
    /// [rows, N], overwritten.
    pub out: &'a mut Reals<D>,
}

impl<D: Device> Operation<D> for Linear<'_, D> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cost(&self) -> Cost {
        Cost::product::<D>([self.rows.count(), self.at.n, self.at.k], bytes_of::<D>())
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.out, rows: self.rows, width: self.at.n })
    }
}

/// pre = x Wᵀ + b; act = GELU(pre), the exact erf form of BERT.
pub struct LinearGelu<'a, D: Device> {
    /// [rows, K]
    pub x: &'a Reals<D>,
    pub weights: &'a Reals<D>,
    pub at: LinearAt,
    pub rows: Rows,
    /// [rows, N], overwritten.
    pub pre: &'a mut Reals<D>,
    /// [rows, N], overwritten.
    pub act: &'a mut Reals<D>,
}

impl<D: Device> Operation<D> for LinearGelu<'_, D> {
    fn name(&self) -> &'static str {
        "linear_gelu"
    }

    fn cost(&self) -> Cost {
        let product = Cost::product::<D>([self.rows.count(), self.at.n, self.at.k], 2.0 * bytes_of::<D>());
        Cost { lanes: super::rows::GELU * elements(self.rows, self.at.n), ..product }
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.act, rows: self.rows, width: self.at.n })
    }
}

/// dx = dy W, or dx += dy W.
pub struct LinearBackwardInput<'a, D: Device> {
    /// [rows, N]
    pub dy: &'a Reals<D>,
    pub weights: &'a Reals<D>,
    pub at: LinearAt,
    pub rows: Rows,
    /// Adds to dx instead of overwriting it.
    pub accumulate: bool,
    /// [rows, K]
    pub dx: &'a mut Reals<D>,
}

impl<D: Device> Operation<D> for LinearBackwardInput<'_, D> {
    fn name(&self) -> &'static str {
        "linear_backward_input"
    }

    fn cost(&self) -> Cost {
        let passes = if self.accumulate { 2.0 } else { 1.0 };
        Cost::product::<D>([self.rows.count(), self.at.k, self.at.n], passes * bytes_of::<D>())
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.dx, rows: self.rows, width: self.at.k })
    }
}

/// grads.W [N, K] += dyᵀ x. The gradient of b is the column sums of dy: the operation that makes dy adds them
/// while it holds the rows (`ResidualNormBackward`, `GeluBackward`, `AttentionBackward`, the losses).
pub struct LinearBackwardWeight<'a, D: Device> {
    /// [rows, N]
    pub dy: &'a Reals<D>,
    /// [rows, K]
    pub x: &'a Reals<D>,
    pub at: LinearAt,
    pub rows: Rows,
    pub grads: Grads<'a, D>,
}

impl<D: Device> Operation<D> for LinearBackwardWeight<'_, D> {
    fn name(&self) -> &'static str {
        "linear_backward_weight"
    }

    fn cost(&self) -> Cost {
        // the gradient is read and written
        Cost::product::<D>([self.at.n, self.at.k, self.rows.count()], 2.0 * FULL)
    }
}
