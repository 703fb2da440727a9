//! Every buffer that forward and backward write, allocated once from the pack budget, each with its
//! shape. What a run needs is known before its first step, so nothing grows while it trains.

use super::bert::Options;
use super::layout::{HeadSet, LayerAt, Layout};
use super::shape::Shape;
use crate::Result;
pub use crate::config::Recompute;
use crate::data::batch::Batch;
use crate::engine::{Backend, DeviceBatch, PackCounts, stats};

/// The largest pack that a model will see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// T
    pub tokens: usize,
    /// S
    pub sequences: usize,
    /// M
    pub masked: usize,
}

impl Capacity {
    /// Room for packs of `tokens` tokens of which a share of `mask_rate` is masked. The number of
    /// masked tokens is binomial; ten standard deviations above its mean (twenty when words are
    /// masked whole and choices come in clumps) are never seen.
    pub fn of_pack(tokens: usize, mask_rate: f32, whole_word: bool) -> Self {
        let mean = tokens as f32 * mask_rate;
        let spread = if whole_word { 20.0 } else { 10.0 } * mean.sqrt();
        let masked = if mask_rate > 0.0 { (mean + spread) as usize + 32 } else { 0 };
        // The shortest sequence is [CLS] a [SEP].
        Self { tokens, sequences: tokens.div_ceil(3), masked: masked.min(tokens) }
    }

    /// The same as the counts of the largest pack.
    pub fn counts(&self) -> PackCounts {
        PackCounts {
            tokens: self.tokens as u32,
            sequences: self.sequences as u32,
            masked: self.masked as u32,
            groups: self.sequences as u32,
            ..PackCounts::default()
        }
    }
}

/// What one encoder layer keeps for its backward.
pub struct LayerActivations<B: Backend> {
    /// [T, 3H]
    pub qkv: B::Buf<B::Real>,
    /// Log-sum-exp of the attention scores, [T, A]
    pub lse: B::Buf<f32>,
    /// Attention's result, [T, H]
    pub context: B::Buf<B::Real>,
    /// Attention output + bias, dropout, residual, [T, H]
    pub sum1: B::Buf<B::Real>,
    /// [T, 2]
    pub stats1: B::Buf<f32>,
    /// Before GELU, [T, I]
    pub pre: B::Buf<B::Real>,
    /// FFN output + bias, dropout, residual, [T, H]
    pub sum2: B::Buf<B::Real>,
    /// [T, 2]
    pub stats2: B::Buf<f32>,
    /// Of each adapter the input's low-rank form, [T, r]
    pub down: Vec<B::Buf<B::Real>>,
}

/// What follows from a layer's other activations by operations that cost little.
pub struct FfnActivations<B: Backend> {
    /// LayerNorm(sum1), [T, H]
    pub normed1: B::Buf<B::Real>,
    /// After GELU, [T, I]
    pub act: B::Buf<B::Real>,
}

/// What the heads keep.
pub struct HeadActivations<B: Backend> {
    /// Encoder output at masked rows, [M, H]
    pub masked: B::Buf<B::Real>,
    /// Transform before GELU, [M, H]
    pub transform_pre: B::Buf<B::Real>,
    /// Transform after GELU, [M, H]
    pub transform_act: B::Buf<B::Real>,
    /// [M, 2]
    pub transform_stats: B::Buf<f32>,
    /// LayerNorm(transform_act), [M, H]
    pub transformed: B::Buf<B::Real>,
    /// Logits, then their gradient, [M, V]
    pub logits: B::Buf<B::Real>,
    /// Encoder output at [CLS], [S, H]
    pub cls: B::Buf<B::Real>,
    /// Pooler: product, then pooled vector or gradient, [S, H]
    pub pooled: B::Buf<B::Real>,
    /// QDPP logits, [S, 2]
    pub pair_logits: B::Buf<f32>,
    /// Relevance scores, [S]
    pub scores: B::Buf<f32>,
    /// Their gradient, [S]
    pub dscores: B::Buf<f32>,
    /// Scores of documents of several passages, [documents]
    pub documents: B::Buf<f32>,
    /// Their gradient, [documents]
    pub ddocuments: B::Buf<f32>,
}

/// Gradients of activations, shared by all layers.
pub struct BackwardActivations<B: Backend> {
    /// Gradient of a layer's output, then of its input, [T, H]
    pub dx: B::Buf<B::Real>,
    /// Gradient of normed1, [T, H]
    pub dnormed: B::Buf<B::Real>,
    /// Gradient through a dropout, then of the attention's result, [T, H]
    pub dy: B::Buf<B::Real>,
    /// [T, H]
    pub dcontext: B::Buf<B::Real>,
    /// [T, I]
    pub dact: B::Buf<B::Real>,
    /// [T, 3H]
    pub dqkv: B::Buf<B::Real>,
    /// [M, H]
    pub dmasked: B::Buf<B::Real>,
    /// [M, H]
    pub dtransformed: B::Buf<B::Real>,
    /// [S, H]
    pub dcls: B::Buf<B::Real>,
    /// Gradient of an adapter's low-rank form, [T, r] of the widest; empty without adapters
    pub ddown: B::Buf<B::Real>,
}

/// All of them.
pub struct Activations<B: Backend> {
    /// Sum of the three embeddings, [T, H]
    pub embed_sum: B::Buf<B::Real>,
    /// [T, 2]
    pub embed_stats: B::Buf<f32>,
    /// Input of layer l and output of layer l - 1 at l, [T, H] each: L + 1 of them for training,
    /// 2 in turn when nothing is kept.
    pub x: Vec<B::Buf<B::Real>>,
    /// One a layer for training, a single shared one when nothing is kept.
    pub layers: Vec<LayerActivations<B>>,
    /// Likewise.
    pub ffns: Vec<FfnActivations<B>>,
    pub heads: HeadActivations<B>,
    /// Absent when the model only measures.
    pub backward: Option<BackwardActivations<B>>,
}

impl<B: Backend> Activations<B> {
    /// Allocates everything for packs up to `options.capacity`. For training, what backward needs is
    /// kept layer by layer but for what it will `recompute`.
    pub fn new(backend: &B, layout: &Layout, options: &Options, recompute: Recompute) -> Result<Self> {
        let (shape, heads, capacity) = (&layout.shape, options.heads, options.capacity);
        let (t, h, i) = (capacity.tokens, shape.hidden, shape.intermediate);
        let kept = |keep: bool| if options.train && keep { shape.layers } else { shape.layers.min(1) };
        let inputs = if options.train { shape.layers + 1 } else { 2 };
        let ffn = |_| Ok(FfnActivations { normed1: backend.zeros(t * h)?, act: backend.zeros(t * i)? });
        let layers = &layout.layers[..kept(recompute != Recompute::Layer)];
        Ok(Self {
            embed_sum: backend.zeros(t * h)?,
            embed_stats: backend.zeros(t * 2)?,
            x: (0..inputs).map(|_| backend.zeros(t * h)).collect::<Result<_>>()?,
            layers: layers.iter().map(|at| layer(backend, shape, at, t)).collect::<Result<_>>()?,
            ffns: (0..kept(recompute == Recompute::None)).map(ffn).collect::<Result<_>>()?,
            heads: head_activations(backend, shape, heads, capacity)?,
            backward: if options.train { Some(backward(backend, layout, heads, capacity)?) } else { None },
        })
    }
}

impl<B: Backend> Activations<B> {
    /// What the products of gradients of weights read of rows behind a pack's last, where a device's
    /// launches cover them and an earlier pack's values still lie (`Backend::forget`), with lengths.
    pub fn read_behind(
        &mut self,
        layout: &Layout,
        heads: HeadSet,
        capacity: Capacity,
    ) -> Vec<(&mut B::Buf<B::Real>, usize)> {
        let (t, h, i) = (capacity.tokens, layout.shape.hidden, layout.shape.intermediate);
        let m = if heads.mlm { capacity.masked } else { 0 };
        let mut all: Vec<_> = self.x.iter_mut().map(|x| (x, t * h)).collect();
        for (layer, at) in self.layers.iter_mut().zip(&layout.layers) {
            all.push((&mut layer.context, t * h));
            all.extend(
                layer.down.iter_mut().zip(&at.adapters).map(|(down, adapter)| (down, t * adapter.a.n)),
            );
        }
        for ffn in &mut self.ffns {
            all.extend([(&mut ffn.normed1, t * h), (&mut ffn.act, t * i)]);
        }
        let HeadActivations { masked, transformed, cls, .. } = &mut self.heads;
        all.extend([(masked, m * h), (transformed, m * h), (cls, capacity.sequences * h)]);
        all
    }
}

fn layer<B: Backend>(backend: &B, shape: &Shape, at: &LayerAt, t: usize) -> Result<LayerActivations<B>> {
    let (h, i) = (shape.hidden, shape.intermediate);
    Ok(LayerActivations {
        qkv: backend.zeros(t * 3 * h)?,
        lse: backend.zeros(t * shape.heads)?,
        context: backend.zeros(t * h)?,
        sum1: backend.zeros(t * h)?,
        stats1: backend.zeros(t * 2)?,
        pre: backend.zeros(t * i)?,
        sum2: backend.zeros(t * h)?,
        stats2: backend.zeros(t * 2)?,
        down: at.adapters.iter().map(|adapter| backend.zeros(t * adapter.a.n)).collect::<Result<_>>()?,
    })
}

fn head_activations<B: Backend>(
    backend: &B,
    shape: &Shape,
    heads: HeadSet,
    capacity: Capacity,
) -> Result<HeadActivations<B>> {
    let h = shape.hidden;
    let m = if heads.mlm { capacity.masked } else { 0 };
    let s = capacity.sequences;
    Ok(HeadActivations {
        masked: backend.zeros(m * h)?,
        transform_pre: backend.zeros(m * h)?,
        transform_act: backend.zeros(m * h)?,
        transform_stats: backend.zeros(m * 2)?,
        transformed: backend.zeros(m * h)?,
        logits: backend.zeros(m * shape.vocab)?,
        cls: backend.zeros(s * h)?,
        pooled: backend.zeros(s * h)?,
        pair_logits: backend.zeros(s * 2)?,
        scores: backend.zeros(s)?,
        dscores: backend.zeros(s)?,
        documents: backend.zeros(s)?,
        ddocuments: backend.zeros(s)?,
    })
}

fn backward<B: Backend>(
    backend: &B,
    layout: &Layout,
    heads: HeadSet,
    capacity: Capacity,
) -> Result<BackwardActivations<B>> {
    let shape = &layout.shape;
    let (t, h) = (capacity.tokens, shape.hidden);
    let m = if heads.mlm { capacity.masked } else { 0 };
    Ok(BackwardActivations {
        dx: backend.zeros(t * h)?,
        dnormed: backend.zeros(t * h)?,
        dy: backend.zeros(t * h)?,
        dcontext: backend.zeros(t * h)?,
        dact: backend.zeros(t * shape.intermediate)?,
        dqkv: backend.zeros(t * 3 * h)?,
        dmasked: backend.zeros(m * h)?,
        dtransformed: backend.zeros(m * h)?,
        dcls: backend.zeros(capacity.sequences * h)?,
        ddown: backend.zeros(t * layout.adapter_width())?,
    })
}

/// An empty pack on the device with room for `capacity`.
pub fn device_batch<B: Backend>(backend: &B, capacity: Capacity) -> Result<DeviceBatch<B>> {
    let (t, s) = (capacity.tokens, capacity.sequences);
    Ok(DeviceBatch {
        tokens: 0,
        sequences: 0,
        masked: 0,
        groups: 0,
        documents: 0,
        epoch: 0,
        ids: backend.zeros(t)?,
        positions: backend.zeros(t)?,
        segments: backend.zeros(t)?,
        row_sample: backend.zeros(t)?,
        cu_seqlens: backend.zeros(s + 1)?,
        samples: backend.zeros(s)?,
        pair_labels: backend.zeros(s)?,
        pair_weights: backend.zeros(s)?,
        cu_documents: backend.zeros(s + 1)?,
        cu_groups: backend.zeros(s + 1)?,
        targets: backend.zeros(s)?,
        masked_rows: backend.zeros(capacity.masked)?,
        masked_labels: backend.zeros(capacity.masked)?,
    })
}

/// Puts a pack that fits on the device.
pub fn put<B: Backend>(b: &B, batch: &Batch, device: &mut DeviceBatch<B>) -> Result<()> {
    device.tokens = batch.tokens();
    device.sequences = batch.sequences();
    device.masked = batch.masked;
    device.groups = batch.cu_groups.len().saturating_sub(1);
    device.documents = batch.cu_documents.len().saturating_sub(1);
    device.epoch = batch.epoch;
    b.begin_pack(&PackCounts {
        tokens: device.tokens as u32,
        sequences: device.sequences as u32,
        masked: device.masked as u32,
        groups: device.groups as u32,
        epoch: device.epoch,
        step_masked: batch.step_masked as u32,
        step_pairs: batch.step_pairs as u32,
        documents: device.documents as u32,
    })?;
    b.upload(&batch.ids, &mut device.ids, 0)?;
    b.upload(&batch.positions, &mut device.positions, 0)?;
    b.upload(&batch.segments, &mut device.segments, 0)?;
    b.upload(&batch.row_sample, &mut device.row_sample, 0)?;
    b.upload(&batch.cu_seqlens, &mut device.cu_seqlens, 0)?;
    b.upload(&batch.samples, &mut device.samples, 0)?;
    b.upload(&batch.pair_labels, &mut device.pair_labels, 0)?;
    if batch.pair_weights.is_empty() {
        b.upload(&vec![1.0; batch.pair_labels.len()], &mut device.pair_weights, 0)?;
    } else {
        b.upload(&batch.pair_weights, &mut device.pair_weights, 0)?;
    }
    b.upload(&batch.cu_documents, &mut device.cu_documents, 0)?;
    b.upload(&batch.cu_groups, &mut device.cu_groups, 0)?;
    b.upload(&batch.targets, &mut device.targets, 0)
}

/// The step's statistics, f32 [`stats::SLOTS`].
pub fn sums<B: Backend>(backend: &B) -> Result<B::Buf<f32>> {
    backend.zeros(stats::SLOTS)
}
