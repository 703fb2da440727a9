//! Operations on rows: GELU, LayerNorm alone and fused with dropout and residual, gather and scatter.

use super::{Cost, Dropout, FULL, Grads, Operation, Written, bytes_of, elements};
use crate::engine::{Device, DeviceBatch, Floats, Reals, Rows, Words};

/// Lane instructions of a GELU and of its slope: erf's polynomial, products, conversions.
pub(super) const GELU: f64 = 25.0;
const GELU_BACKWARD: f64 = 36.0;
/// Of a LayerNorm (two sums, scale, shift, conversions), and of its backward.
pub(super) const NORM: f64 = 12.0;
pub(super) const NORM_BACKWARD: f64 = 21.0;

/// A LayerNorm's place in a parameter arena: gamma [H] and beta [H].
#[derive(Clone, Copy, Debug)]
pub struct NormAt {
    pub gamma: usize,
    pub beta: usize,
    pub hidden: usize,
    /// Added to the variance (BERT: 1e-12).
    pub eps: f32,
}

/// act = GELU(pre), with the same bits as `LinearGelu`.
pub struct Gelu<'a, D: Device> {
    /// [rows, width]
    pub pre: &'a Reals<D>,
    pub rows: Rows,
    pub width: usize,
    /// [rows, width], overwritten.
    pub act: &'a mut Reals<D>,
}

impl<D: Device> Operation<D> for Gelu<'_, D> {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cost(&self) -> Cost {
        let n = elements(self.rows, self.width);
        Cost::rows(2.0 * bytes_of::<D>() * n, GELU * n)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.act, rows: self.rows, width: self.width })
    }
}

/// dact *= GELU'(pre): becomes the gradient of `pre`. Its column sums are added to `grads` at `bias`, where
/// there is one.
pub struct GeluBackward<'a, D: Device> {
    /// [rows, width]
    pub pre: &'a Reals<D>,
    pub rows: Rows,
    pub width: usize,
    /// Offset of the bias [width] of the linear layer that made `pre`.
    pub bias: Option<usize>,
    /// [rows, width], in place.
    pub dact: &'a mut Reals<D>,
    pub grads: Grads<'a, D>,
}

impl<D: Device> Operation<D> for GeluBackward<'_, D> {
    fn name(&self) -> &'static str {
        "gelu_backward"
    }

    fn cost(&self) -> Cost {
        let n = elements(self.rows, self.width);
        Cost::rows(3.0 * bytes_of::<D>() * n, GELU_BACKWARD * n)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.dact, rows: self.rows, width: self.width })
    }
}

/// y = residual + dropout(y + bias), in place and kept for backward; out = LayerNorm(y).
pub struct ResidualNorm<'a, D: Device> {
    pub batch: &'a DeviceBatch<D>,
    pub weights: &'a Reals<D>,
    /// Offset of the bias [H] of the linear layer that made y.
    pub bias: usize,
    pub norm: NormAt,
    pub drop: Dropout,
    /// [T, H]
    pub residual: &'a Reals<D>,
    /// [T, H], in place.
    pub y: &'a mut Reals<D>,
    /// (mean, 1 / sqrt(var + eps)) of each row, [T, 2], overwritten.
    pub row_stats: &'a mut Floats<D>,
    /// [T, H], overwritten.
    pub out: &'a mut Reals<D>,
}

impl<D: Device> Operation<D> for ResidualNorm<'_, D> {
    fn name(&self) -> &'static str {
        "residual_norm"
    }

    fn cost(&self) -> Cost {
        let n = elements(self.batch.rows(), self.norm.hidden);
        let statistics = 2.0 * FULL * self.batch.tokens as f64;
        Cost::rows(4.0 * bytes_of::<D>() * n + statistics, (NORM + self.drop.lanes()) * n)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.out, rows: self.batch.rows(), width: self.norm.hidden })
    }
}

/// From dout: gradients of gamma, beta and `bias` are added to `grads`; dresidual = the gradient of the sum;
/// dy = the same through the dropout.
pub struct ResidualNormBackward<'a, D: Device> {
    pub batch: &'a DeviceBatch<D>,
    pub weights: &'a Reals<D>,
    /// Offset of the bias [H], as in `ResidualNorm`.
    pub bias: usize,
    pub norm: NormAt,
    pub drop: Dropout,
    /// What forward left, [T, H].
    pub y: &'a Reals<D>,
    /// [T, 2]
    pub row_stats: &'a Floats<D>,
    /// [T, H]
    pub dout: &'a Reals<D>,
    /// [T, H], overwritten.
    pub dresidual: &'a mut Reals<D>,
    /// [T, H], overwritten.
    pub dy: &'a mut Reals<D>,
    pub grads: Grads<'a, D>,
}

impl<D: Device> Operation<D> for ResidualNormBackward<'_, D> {
    fn name(&self) -> &'static str {
        "residual_norm_backward"
    }

    fn cost(&self) -> Cost {
        let n = elements(self.batch.rows(), self.norm.hidden);
        let statistics = 2.0 * FULL * self.batch.tokens as f64;
        Cost::rows(4.0 * bytes_of::<D>() * n + statistics, (NORM_BACKWARD + self.drop.lanes()) * n)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.dy, rows: self.batch.rows(), width: self.norm.hidden })
    }
}

/// out = LayerNorm(x).
pub struct Norm<'a, D: Device> {
    /// [rows, H]
    pub x: &'a Reals<D>,
    pub weights: &'a Reals<D>,
    pub at: NormAt,
    pub rows: Rows,
    /// (mean, 1 / sqrt(var + eps)) of each row, [rows, 2], overwritten.
    pub row_stats: &'a mut Floats<D>,
    /// [rows, H], overwritten.
    pub out: &'a mut Reals<D>,
}

impl<D: Device> Operation<D> for Norm<'_, D> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cost(&self) -> Cost {
        let n = elements(self.rows, self.at.hidden);
        let statistics = 2.0 * FULL * self.rows.count() as f64;
        Cost::rows(2.0 * bytes_of::<D>() * n + statistics, NORM * n)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.out, rows: self.rows, width: self.at.hidden })
    }
}

/// d goes in as the gradient of the output and comes out as that of x; the gradients of gamma and beta are
/// added.
pub struct NormBackward<'a, D: Device> {
    /// [rows, H]
    pub x: &'a Reals<D>,
    pub weights: &'a Reals<D>,
    pub at: NormAt,
    pub rows: Rows,
    /// [rows, 2]
    pub row_stats: &'a Floats<D>,
    /// [rows, H], in place.
    pub d: &'a mut Reals<D>,
    pub grads: Grads<'a, D>,
}

impl<D: Device> Operation<D> for NormBackward<'_, D> {
    fn name(&self) -> &'static str {
        "norm_backward"
    }

    fn cost(&self) -> Cost {
        let n = elements(self.rows, self.at.hidden);
        let statistics = 2.0 * FULL * self.rows.count() as f64;
        Cost::rows(3.0 * bytes_of::<D>() * n + statistics, NORM_BACKWARD * n)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.d, rows: self.rows, width: self.at.hidden })
    }
}

/// out[i] = x[picked[i]] for i < rows.
pub struct GatherRows<'a, D: Device> {
    /// [any, H]
    pub x: &'a Reals<D>,
    /// Row numbers of x, [rows].
    pub picked: &'a Words<D>,
    pub rows: Rows,
    pub hidden: usize,
    /// [rows, H], overwritten.
    pub out: &'a mut Reals<D>,
}

impl<D: Device> Operation<D> for GatherRows<'_, D> {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn cost(&self) -> Cost {
        let n = elements(self.rows, self.hidden);
        Cost::rows(2.0 * bytes_of::<D>() * n + FULL * self.rows.count() as f64, n)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.out, rows: self.rows, width: self.hidden })
    }
}

/// x[picked[i]] += src[i] for i < rows; the row numbers are distinct.
pub struct ScatterAddRows<'a, D: Device> {
    /// [rows, H]
    pub src: &'a Reals<D>,
    /// Row numbers of x, [rows].
    pub picked: &'a Words<D>,
    pub rows: Rows,
    pub hidden: usize,
    /// [any, H], in place.
    pub x: &'a mut Reals<D>,
}

impl<D: Device> Operation<D> for ScatterAddRows<'_, D> {
    fn name(&self) -> &'static str {
        "scatter_add_rows"
    }

    fn cost(&self) -> Cost {
        let n = elements(self.rows, self.hidden);
        Cost::rows(3.0 * bytes_of::<D>() * n + FULL * self.rows.count() as f64, 2.0 * n)
    }
}
