//! Device memory of a training run, buffer by buffer as `activations` and the trainer allocate them: for
//! `plan`, and for a run's own look before it allocates anything. Tests hold this list to what both
//! engines really allocate.

use super::activations::{Capacity, Recompute};
use super::layout::Layout;
use crate::engine::cuda::attention_scratch;
use crate::engine::{Heads, stats};

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
    pub layout: &'a Layout,
    pub capacity: Capacity,
    /// What backward computes again instead of keeping.
    pub recompute: Recompute,
    /// Elements of the arena whose moments this rank keeps.
    pub state: usize,
}

/// Weights, gradients and the optimiser's state; a `master` copy where weights are narrower than f32.
pub fn parameters(sizes: Sizes<'_>, master: bool) -> Vec<Field> {
    let all = sizes.layout.len;
    vec![
        real("weights", all),
        full("master weights", if master { sizes.state } else { 0 }),
        full("gradients", all),
        full("moments", 2 * sizes.state),
    ]
}

/// `model::Activations` for training.
pub fn activations(sizes: Sizes<'_>) -> Vec<Field> {
    let Sizes { layout, capacity, .. } = sizes;
    let shape = &layout.shape;
    let (t, s) = (capacity.tokens, capacity.sequences);
    let m = if layout.mlm.is_some() { capacity.masked } else { 0 };
    let (h, i, l) = (shape.hidden, shape.intermediate, shape.layers);
    let kept = |keep: bool| if keep { l } else { l.min(1) };
    // layers that keep what their backward needs, and what of it is cheap to compute again
    let (all, cheap) = (kept(sizes.recompute != Recompute::Layer), kept(sizes.recompute == Recompute::None));
    let adapted = layout.layers[..all].iter().flat_map(|layer| &layer.adapters);
    let adapters: usize = adapted.map(|adapter| adapter.a.n).sum();
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
        full("scores and QDPP logits", 6 * s),
        real("gradients: hidden rows", 4 * t * h),
        real("gradients: after GELU", t * i),
        real("gradients: q, k, v", 3 * t * h),
        real("gradients: heads", (2 * m + s) * h),
        real("adapters and their gradients", t * (adapters + layout.adapter_width())),
    ]
}

/// The pack on the device, the vocabulary's word-piece flags and the step's sums.
pub fn pack(sizes: Sizes<'_>) -> Vec<Field> {
    let Capacity { tokens, sequences, masked } = sizes.capacity;
    vec![
        full("pack: ids, positions, segments, samples", 4 * tokens),
        full("pack: sequences", 7 * sequences + 3),
        full("pack: masked rows and labels", 2 * masked),
        full("word-piece flags and sums", sizes.layout.shape.vocab + stats::SLOTS),
    ]
}

/// What a GPU's kernels put aside for themselves beside the engine's own scratch: the backward of attention
/// in bf16 asks for most.
pub fn scratch(sizes: Sizes<'_>) -> Field {
    let shape = &sizes.layout.shape;
    let heads = Heads { heads: shape.heads, size: shape.head_size() };
    full("scratch: attention's backward", attention_scratch(sizes.capacity.tokens, heads))
}

fn real(name: &'static str, elements: usize) -> Field {
    Field { name, elements, real: true }
}

fn full(name: &'static str, elements: usize) -> Field {
    Field { name, elements, real: false }
}
