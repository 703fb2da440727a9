//! Device memory of a training run, buffer by buffer as `model::activations` and the trainer allocate
//! them. A test holds this list to what the CPU engine really allocates.

use crate::engine::cuda::dq_sums;
use crate::engine::stats;
use crate::model::Shape;
use crate::model::activations::{Capacity, Recompute};
use crate::model::layout::HeadSet;

/// Elements of one buffer (or of all layers' buffers of one kind).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Field {
    pub name: &'static str,
    pub elements: usize,
    /// Holds the engine's `Real` (2 bytes on GPUs, 4 on CPUs); else f32 or u32.
    pub real: bool,
}

impl Field {
    /// Bytes where a `Real` takes `real` of them.
    pub fn bytes(&self, real: usize) -> usize {
        self.elements * if self.real { real } else { 4 }
    }
}

/// What allocations depend on.
#[derive(Clone, Copy, Debug)]
pub struct Sizes<'a> {
    pub shape: &'a Shape,
    pub heads: HeadSet,
    pub capacity: Capacity,
    /// What backward computes again instead of keeping.
    pub recompute: Recompute,
    /// Length of the parameter arena.
    pub parameters: usize,
    /// Ranks that share the optimiser's state; 1 keeps all of it on each.
    pub shards: usize,
}

/// Weights, gradients and the optimiser's state; a `master` copy where weights are narrower than f32.
pub fn parameters(sizes: Sizes<'_>, master: bool) -> Vec<Field> {
    let all = sizes.parameters;
    let share = all.div_ceil(sizes.shards);
    vec![
        real("weights", all),
        full("master weights", if master { share } else { 0 }),
        full("gradients", all),
        full("moments", 2 * share),
    ]
}

/// `model::Activations` for training, without adapters.
pub fn activations(sizes: Sizes<'_>) -> Vec<Field> {
    let Sizes { shape, heads, capacity, .. } = sizes;
    let (t, s) = (capacity.tokens, capacity.sequences);
    let m = if heads.mlm { capacity.masked } else { 0 };
    let (h, i, l) = (shape.hidden, shape.intermediate, shape.layers);
    let kept = |keep: bool| if keep { l } else { l.min(1) };
    // layers that keep what their backward needs, and what of it is cheap to compute again
    let (all, cheap) = (kept(sizes.recompute != Recompute::Layer), kept(sizes.recompute == Recompute::None));
    vec![
        real("embeddings: sum", t * h),
        full("embeddings: row statistics", 2 * t),
        real("layer inputs", (l + 1) * t * h),
        real("layers: q, k, v", all * 3 * t * h),
        full("layers: log-sum-exp", all * t * shape.heads),
        real("layers: attention's result", all * t * h),
        real("layers: sums before LayerNorm", all * 2 * t * h),
        full("layers: row statistics", all * 4 * t),
        real("layers: attention's LayerNorm", cheap * t * h),
        real("layers: before GELU", all * t * i),
        real("layers: after GELU", cheap * t * i),
        real("MLM: gathered rows, transform, LayerNorm", 4 * m * h),
        full("MLM: row statistics", 2 * m),
        real("MLM: logits", m * shape.vocab),
        real("[CLS] rows and pooler", 2 * s * h),
        full("scores and QDPP logits", 4 * s),
        real("gradients: hidden rows", 4 * t * h),
        real("gradients: after GELU", t * i),
        real("gradients: q, k, v", 3 * t * h),
        real("gradients: heads", (2 * m + s) * h),
    ]
}

/// The pack on the device, the vocabulary's word-piece flags and the step's sums.
pub fn pack(sizes: Sizes<'_>) -> Vec<Field> {
    let Capacity { tokens, sequences, masked } = sizes.capacity;
    vec![
        full("pack: ids, positions, segments, samples", 4 * tokens),
        full("pack: sequences", 5 * sequences + 2),
        full("pack: masked rows and labels", 2 * masked),
        full("word-piece flags and sums", sizes.shape.vocab + stats::SLOTS),
    ]
}

/// What kernels put aside within an operation: the attention's backward asks for most.
pub fn scratch(sizes: Sizes<'_>) -> Field {
    let shape = sizes.shape;
    full("scratch: dq over tiles of keys", dq_sums(sizes.capacity.tokens, shape.hidden, shape.head_size()))
}

fn real(name: &'static str, elements: usize) -> Field {
    Field { name, elements, real: true }
}

fn full(name: &'static str, elements: usize) -> Field {
    Field { name, elements, real: false }
}
