//! Multi-head attention within each sequence of a pack.

use super::{Cost, Dropout, FULL, Grads, Kind, Operation, Written, bytes_of, elements};
use crate::engine::{Device, DeviceBatch, Floats, Reals};

/// Sizes of a multi-head attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// A
    pub heads: usize,
    /// D
    pub size: usize,
}

impl Heads {
    /// H
    pub fn hidden(self) -> usize {
        self.heads * self.size
    }
}

/// out = dropout(softmax(q kᵀ / sqrt(D))) v, head by head, each token over its own sequence.
pub struct Attention<'a, D: Device> {
    pub batch: &'a DeviceBatch<D>,
    pub heads: Heads,
    pub drop: Dropout,
    /// q, k, v, each head by head, [T, 3H]
    pub qkv: &'a Reals<D>,
    /// Log-sum-exp of each row's scaled scores, [T, A], overwritten.
    pub lse: &'a mut Floats<D>,
    /// [T, H], overwritten.
    pub out: &'a mut Reals<D>,
}

impl<D: Device> Operation<D> for Attention<'_, D> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cost(&self) -> Cost {
        cost(self.batch, self.heads, self.drop, Kind::AttentionForward)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.out, rows: self.batch.rows(), width: self.heads.hidden() })
    }
}

/// dqkv from dout. The column sums of dqkv are added to `grads` at `bias` [3H], where there is one.
pub struct AttentionBackward<'a, D: Device> {
    pub batch: &'a DeviceBatch<D>,
    pub heads: Heads,
    pub drop: Dropout,
    /// [T, 3H]
    pub qkv: &'a Reals<D>,
    /// [T, A]
    pub lse: &'a Floats<D>,
    /// What forward gave, [T, H].
    pub out: &'a Reals<D>,
    /// [T, H]
    pub dout: &'a Reals<D>,
    /// [T, 3H], overwritten.
    pub dqkv: &'a mut Reals<D>,
    pub bias: Option<usize>,
    pub grads: Grads<'a, D>,
}

impl<D: Device> Operation<D> for AttentionBackward<'_, D> {
    fn name(&self) -> &'static str {
        "attention_backward"
    }

    fn cost(&self) -> Cost {
        cost(self.batch, self.heads, self.drop, Kind::AttentionBackward)
    }

    fn written(&self) -> Option<Written<'_, D>> {
        Some(Written { values: self.dqkv, rows: self.batch.rows(), width: 3 * self.heads.hidden() })
    }
}

/// Two products forward (q kᵀ, p v), four backward (dv, dp, dq, dk); the scores that FlashAttention
/// recomputes are the kernel's cost. Lanes count only dropout: published rates of attention include the
/// softmax.
fn cost<D: Device>(batch: &DeviceBatch<D>, heads: Heads, drop: Dropout, kind: Kind) -> Cost {
    let (products, passes) = if kind == Kind::AttentionForward { (2.0, 4.0) } else { (4.0, 8.0) };
    let scores = batch.attended as f64;
    let lse = FULL * (batch.tokens * heads.heads) as f64;
    Cost {
        kind,
        bytes: passes * bytes_of::<D>() * elements(batch.rows(), heads.hidden()) + lse,
        flops: products * 2.0 * scores * heads.hidden() as f64,
        lanes: drop.lanes() * scores * heads.heads as f64,
    }
}
