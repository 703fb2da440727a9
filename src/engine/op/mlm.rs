//! The loss of masked language modelling.

use super::{Cost, Grads, LossScale, Operation, Written, bytes_of, elements};
use crate::engine::{Device, Floats, Reals, Rows, Words};

/// Softmax-cross-entropy over the vocabulary. `logits` come without bias; `bias` [V] is added here. They
/// become scale.value * (softmax - onehot); the gradient of the bias is added to `grads`, and loss, accuracy
/// and count to `sums`. With `LossScale::MEASURE`, `logits` end up with the bias added, and `grads` may be
/// empty.
pub struct MlmLoss<'a, D: Device> {
    pub weights: &'a Reals<D>,
    /// Offset of the decoder's bias [V].
    pub bias: usize,
    pub vocab: usize,
    /// [M]
    pub labels: &'a Words<D>,
    /// M
    pub rows: Rows,
    pub scale: LossScale,
    /// [M, V], in place.
    pub logits: &'a mut Reals<D>,
    pub grads: Grads<'a, D>,
    /// [stats::SLOTS]
    pub sums: &'a mut Floats<D>,
}

impl<D: Device> Operation<D> for MlmLoss<'_, D> {
    fn name(&self) -> &'static str {
        "mlm_loss"
    }

    fn cost(&self) -> Cost {
        let n = elements(self.rows, self.vocab);
        Cost::rows(2.0 * bytes_of::<D>() * n, 10.0 * n)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.logits, rows: self.rows, width: self.vocab })
    }
}
