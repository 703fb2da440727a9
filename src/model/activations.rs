//! Every buffer that forward and backward write, allocated once from the pack budget, each with its
//! shape. What a run needs is known before its first step, so nothing grows while it trains.

pub use super::capacity::Capacity;
use super::layout::{HeadSet, LayerAt, Layout};
use super::options::Options;
use super::shape::Shape;
use crate::Result;
pub use crate::config::Recompute;
use crate::data::batch::Batch;
use crate::engine::{Device, DeviceBatch, Floats, PackCounts, Reals, stats};

/// What one encoder layer keeps for its backward.
pub struct LayerActivations<D: Device> {
    /// [T, 3H]
    pub qkv: Reals<D>,
    /// Log-sum-exp of the attention scores, [T, A]
    pub lse: Floats<D>,
    /// Attention's result, [T, H]
    pub context: Reals<D>,
    /// Attention output + bias, dropout, residual, [T, H]
    pub sum1: Reals<D>,
    /// [T, 2]
    pub stats1: Floats<D>,
    /// Before GELU, [T, I]
    pub pre: Reals<D>,
    /// FFN output + bias, dropout, residual, [T, H]
    pub sum2: Reals<D>,
    /// [T, 2]
    pub stats2: Floats<D>,
    /// Each adapter's input in its low-rank form, [T, r]
    pub down: Vec<Reals<D>>,
}

/// Activations that are cheap to compute from a layer's others.
pub struct FfnActivations<D: Device> {
    /// LayerNorm(sum1), [T, H]
    pub normed1: Reals<D>,
    /// After GELU, [T, I]
    pub act: Reals<D>,
}

/// What the heads keep.
pub struct HeadActivations<D: Device> {
    /// Encoder output at masked rows, [M, H]
    pub masked: Reals<D>,
    /// Transform before GELU, [M, H]
    pub transform_pre: Reals<D>,
    /// Transform after GELU, [M, H]
    pub transform_act: Reals<D>,
    /// [M, 2]
    pub transform_stats: Floats<D>,
    /// LayerNorm(transform_act), [M, H]
    pub transformed: Reals<D>,
    /// Logits, then their gradient, [M, V]
    pub logits: Reals<D>,
    /// Encoder output at [CLS], [S, H]
    pub cls: Reals<D>,
    /// Pooler: product, then pooled vector or gradient, [S, H]
    pub pooled: Reals<D>,
    /// QDPP logits, [S, 2]
    pub pair_logits: Floats<D>,
    /// Relevance scores, [S]
    pub scores: Floats<D>,
    /// Their gradient, [S]
    pub dscores: Floats<D>,
    /// Scores of documents of several passages, [documents]
    pub documents: Floats<D>,
    /// Their gradient, [documents]
    pub ddocuments: Floats<D>,
}

/// Gradients of activations, shared by all layers.
pub struct BackwardActivations<D: Device> {
    /// Gradient of a layer's output, then of its input, [T, H]
    pub dx: Reals<D>,
    /// Gradient of normed1, [T, H]
    pub dnormed: Reals<D>,
    /// Gradient through a dropout, then of the attention's result, [T, H]
    pub dy: Reals<D>,
    /// [T, H]
    pub dcontext: Reals<D>,
    /// [T, I]
    pub dact: Reals<D>,
    /// [T, 3H]
    pub dqkv: Reals<D>,
    /// [M, H]
    pub dmasked: Reals<D>,
    /// [M, H]
    pub dtransformed: Reals<D>,
    /// [S, H]
    pub dcls: Reals<D>,
    /// Gradient of an adapter's low-rank form, [T, r] of the widest; empty without adapters
    pub ddown: Reals<D>,
}

/// All of them.
pub struct Activations<D: Device> {
    /// Sum of the three embeddings, [T, H]
    pub embed_sum: Reals<D>,
    /// [T, 2]
    pub embed_stats: Floats<D>,
    /// Input of layer l and output of layer l - 1 at l, [T, H] each: L + 1 of them for training,
    /// 2 in turn when nothing is kept.
    pub x: Vec<Reals<D>>,
    /// One a layer for training, a single shared one when nothing is kept.
    pub layers: Vec<LayerActivations<D>>,
    /// Likewise.
    pub ffns: Vec<FfnActivations<D>>,
    pub heads: HeadActivations<D>,
    /// Absent when the model only measures.
    pub backward: Option<BackwardActivations<D>>,
}

impl<D: Device> Activations<D> {
    /// Allocates everything for packs up to `options.capacity`. For training, what backward needs is kept
    /// layer by layer, except what it will `recompute`.
    pub fn new(device: &D, layout: &Layout, options: &Options, recompute: Recompute) -> Result<Self> {
        let (shape, heads, capacity) = (&layout.shape, options.heads, options.capacity);
        let (t, h, i) = (capacity.tokens, shape.hidden, shape.intermediate);
        let kept = |keep: bool| if options.train && keep { shape.layers } else { shape.layers.min(1) };
        let inputs = if options.train { shape.layers + 1 } else { 2 };
        let ffn = |_| Ok(FfnActivations { normed1: device.zeros(t * h)?, act: device.zeros(t * i)? });
        let layers = &layout.layers[..kept(recompute != Recompute::Layer)];
        Ok(Self {
            embed_sum: device.zeros(t * h)?,
            embed_stats: device.zeros(t * 2)?,
            x: (0..inputs).map(|_| device.zeros(t * h)).collect::<Result<_>>()?,
            layers: layers.iter().map(|at| layer(device, shape, at, t)).collect::<Result<_>>()?,
            ffns: (0..kept(recompute == Recompute::None)).map(ffn).collect::<Result<_>>()?,
            heads: head_activations(device, shape, heads, capacity)?,
            backward: if options.train { Some(backward(device, layout, heads, capacity)?) } else { None },
        })
    }
}

impl<D: Device> Activations<D> {
    /// Buffers, with lengths, whose rows after a pack's last are read by the products for weights' gradients.
    /// A device's launches may cover those rows, where an earlier pack's values remain (`op::Forget`).
    pub fn read_behind(
        &mut self,
        layout: &Layout,
        heads: HeadSet,
        capacity: Capacity,
    ) -> Vec<(&mut Reals<D>, usize)> {
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

fn layer<D: Device>(device: &D, shape: &Shape, at: &LayerAt, t: usize) -> Result<LayerActivations<D>> {
    let (h, i) = (shape.hidden, shape.intermediate);
    Ok(LayerActivations {
        qkv: device.zeros(t * 3 * h)?,
        lse: device.zeros(t * shape.heads)?,
        context: device.zeros(t * h)?,
        sum1: device.zeros(t * h)?,
        stats1: device.zeros(t * 2)?,
        pre: device.zeros(t * i)?,
        sum2: device.zeros(t * h)?,
        stats2: device.zeros(t * 2)?,
        down: at.adapters.iter().map(|adapter| device.zeros(t * adapter.a.n)).collect::<Result<_>>()?,
    })
}

fn head_activations<D: Device>(
    device: &D,
    shape: &Shape,
    heads: HeadSet,
    capacity: Capacity,
) -> Result<HeadActivations<D>> {
    let h = shape.hidden;
    let m = if heads.mlm { capacity.masked } else { 0 };
    let s = capacity.sequences;
    Ok(HeadActivations {
        masked: device.zeros(m * h)?,
        transform_pre: device.zeros(m * h)?,
        transform_act: device.zeros(m * h)?,
        transform_stats: device.zeros(m * 2)?,
        transformed: device.zeros(m * h)?,
        logits: device.zeros(m * shape.vocab)?,
        cls: device.zeros(s * h)?,
        pooled: device.zeros(s * h)?,
        pair_logits: device.zeros(s * 2)?,
        scores: device.zeros(s)?,
        dscores: device.zeros(s)?,
        documents: device.zeros(s)?,
        ddocuments: device.zeros(s)?,
    })
}

fn backward<D: Device>(
    device: &D,
    layout: &Layout,
    heads: HeadSet,
    capacity: Capacity,
) -> Result<BackwardActivations<D>> {
    let shape = &layout.shape;
    let (t, h) = (capacity.tokens, shape.hidden);
    let m = if heads.mlm { capacity.masked } else { 0 };
    Ok(BackwardActivations {
        dx: device.zeros(t * h)?,
        dnormed: device.zeros(t * h)?,
        dy: device.zeros(t * h)?,
        dcontext: device.zeros(t * h)?,
        dact: device.zeros(t * shape.intermediate)?,
        dqkv: device.zeros(t * 3 * h)?,
        dmasked: device.zeros(m * h)?,
        dtransformed: device.zeros(m * h)?,
        dcls: device.zeros(capacity.sequences * h)?,
        ddown: device.zeros(t * layout.adapter_width())?,
    })
}

/// An empty pack on the device with room for `capacity`.
pub fn device_batch<D: Device>(device: &D, capacity: Capacity) -> Result<DeviceBatch<D>> {
    let (t, s) = (capacity.tokens, capacity.sequences);
    Ok(DeviceBatch {
        tokens: 0,
        sequences: 0,
        masked: 0,
        groups: 0,
        documents: 0,
        attended: 0,
        epoch: 0,
        ids: device.zeros(t)?,
        positions: device.zeros(t)?,
        segments: device.zeros(t)?,
        row_sample: device.zeros(t)?,
        cu_seqlens: device.zeros(s + 1)?,
        samples: device.zeros(s)?,
        pair_labels: device.zeros(s)?,
        pair_weights: device.zeros(s)?,
        cu_documents: device.zeros(s + 1)?,
        cu_groups: device.zeros(s + 1)?,
        targets: device.zeros(s)?,
        masked_rows: device.zeros(capacity.masked)?,
        masked_labels: device.zeros(capacity.masked)?,
    })
}

/// Puts a pack that fits on the device.
pub fn put<D: Device>(device: &D, batch: &Batch, pack: &mut DeviceBatch<D>) -> Result<()> {
    pack.tokens = batch.tokens();
    pack.sequences = batch.sequences();
    pack.masked = batch.masked;
    pack.groups = batch.cu_groups.len().saturating_sub(1);
    pack.documents = batch.cu_documents.len().saturating_sub(1);
    pack.attended = batch.attended();
    pack.epoch = batch.epoch;
    device.begin_pack(&PackCounts {
        tokens: pack.tokens as u32,
        sequences: pack.sequences as u32,
        masked: pack.masked as u32,
        groups: pack.groups as u32,
        epoch: pack.epoch,
        step_masked: batch.step_masked as u32,
        step_pairs: batch.step_pairs as u32,
        documents: pack.documents as u32,
    })?;
    device.upload(&batch.ids, &mut pack.ids, 0)?;
    device.upload(&batch.positions, &mut pack.positions, 0)?;
    device.upload(&batch.segments, &mut pack.segments, 0)?;
    device.upload(&batch.row_sample, &mut pack.row_sample, 0)?;
    device.upload(&batch.cu_seqlens, &mut pack.cu_seqlens, 0)?;
    device.upload(&batch.samples, &mut pack.samples, 0)?;
    device.upload(&batch.pair_labels, &mut pack.pair_labels, 0)?;
    if batch.pair_weights.is_empty() {
        device.upload(&vec![1.0; batch.pair_labels.len()], &mut pack.pair_weights, 0)?;
    } else {
        device.upload(&batch.pair_weights, &mut pack.pair_weights, 0)?;
    }
    device.upload(&batch.cu_documents, &mut pack.cu_documents, 0)?;
    device.upload(&batch.cu_groups, &mut pack.cu_groups, 0)?;
    device.upload(&batch.targets, &mut pack.targets, 0)
}

/// The step's statistics, f32 [`stats::SLOTS`].
pub fn sums<D: Device>(device: &D) -> Result<Floats<D>> {
    device.zeros(stats::SLOTS)
}
