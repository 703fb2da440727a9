//! The embedding layer: three tables, a LayerNorm and dropout.

use super::{Cost, Dropout, FULL, Grads, NormAt, Operation, Written, bytes_of, elements};
use crate::engine::{Device, DeviceBatch, Floats, Reals};

/// The embedding tables' place in a parameter arena: word [V, H], position [P, H], segment [G, H].
#[derive(Clone, Copy, Debug)]
pub struct EmbedAt {
    pub word: usize,
    pub position: usize,
    pub segment: usize,
    pub norm: NormAt,
    /// V
    pub vocab: usize,
    /// P
    pub positions: usize,
    /// G: 2, or 1 where every token reads row 0 whatever its segment.
    pub segments: usize,
}

/// sum = word[id] + position[pos] + segment[seg]; out = dropout(LayerNorm(sum)).
pub struct Embed<'a, D: Device> {
    pub batch: &'a DeviceBatch<D>,
    pub weights: &'a Reals<D>,
    pub at: EmbedAt,
    pub drop: Dropout,
    /// Kept for backward, [T, H], overwritten.
    pub sum: &'a mut Reals<D>,
    /// (mean, 1 / sqrt(var + eps)) of each row, [T, 2], overwritten.
    pub row_stats: &'a mut Floats<D>,
    /// [T, H], overwritten.
    pub out: &'a mut Reals<D>,
}

impl<D: Device> Operation<D> for Embed<'_, D> {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cost(&self) -> Cost {
        // a row of words in (positions and segments stay in cache), sum and result out
        let n = elements(self.batch.rows(), self.at.norm.hidden);
        Cost::rows(3.0 * bytes_of::<D>() * n, (super::rows::NORM + 3.0 + self.drop.lanes()) * n)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.out, rows: self.batch.rows(), width: self.at.norm.hidden })
    }
}

/// Adds the gradients of the three tables and of the LayerNorm. The sum over equal ids has a fixed order (no
/// float atomics).
pub struct EmbedBackward<'a, D: Device> {
    pub batch: &'a DeviceBatch<D>,
    pub weights: &'a Reals<D>,
    pub at: EmbedAt,
    pub drop: Dropout,
    /// What forward left, [T, H].
    pub sum: &'a Reals<D>,
    /// [T, 2]
    pub row_stats: &'a Floats<D>,
    /// [T, H], overwritten by the gradient of `sum`.
    pub dout: &'a mut Reals<D>,
    pub grads: Grads<'a, D>,
}

impl<D: Device> Operation<D> for EmbedBackward<'_, D> {
    fn name(&self) -> &'static str {
        "embed_backward"
    }

    fn cost(&self) -> Cost {
        // sum and gradient in; of each id that occurs, at most, a row of the table's gradient in and out
        let h = self.at.norm.hidden;
        let n = elements(self.batch.rows(), h);
        let rows = (self.batch.tokens.min(self.at.vocab) * h) as f64;
        let lanes = super::rows::NORM_BACKWARD + 4.0 + self.drop.lanes();
        Cost::rows(2.0 * bytes_of::<D>() * n + 2.0 * FULL * rows, lanes * n)
    }
}
