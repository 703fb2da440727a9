//! Single operations of the engine at the sizes of the workload, and the machine's own peaks.

use std::cell::RefCell;
use std::time::Duration;

use super::{Fence, Operation, Peaks, Workload, time};
use crate::Result;
use crate::engine::*;
use crate::model::activations::{Capacity, device_batch};

/// Sides of the square products that the peak is the best of; larger ones are left out when one
/// product takes longer than the budget.
const SIDES: [usize; 4] = [1024, 2048, 4096, 8192];
/// Elements that are copied to find the bandwidth: more than any cache holds.
const COPIED: usize = 64 << 20;

/// The best product and the best copy of this rank's device.
pub fn peaks<B: Backend>(backend: &B, fence: &Fence<B>, budget: Duration) -> Result<Peaks> {
    let mut flops = 0.0f64;
    for side in SIDES {
        let at = LinearAt { w: 0, b: side * side, n: side, k: side };
        let rows = Rows::Tokens(side);
        let backend = &prepared(backend, side, 1, 1)?;
        let (x, w) = (filled(backend, side * side)?, filled(backend, side * side + side)?);
        let mut y: B::Buf<B::Real> = backend.zeros(side * side)?;
        let (seconds, _) =
            time(backend, fence, budget, || backend.linear(&x, &w, at, rows, Epilogue::None, &mut y))?;
        flops = flops.max(2.0 * (side as f64).powi(3) / seconds);
        if 8.0 * seconds * 3.0 > budget.as_secs_f64().max(0.1) {
            break;
        }
    }
    Ok(Peaks { flops, bandwidth: bandwidth(backend, fence, budget)? })
}

fn bandwidth<B: Backend>(backend: &B, fence: &Fence<B>, budget: Duration) -> Result<f64> {
    let hidden = 1024;
    let rows = COPIED / hidden;
    let backend = &prepared(backend, rows, 1, 1)?;
    let x: B::Buf<B::Real> = backend.zeros(COPIED)?;
    let mut y: B::Buf<B::Real> = backend.zeros(COPIED)?;
    let list: Vec<u32> = (0..rows as u32).collect();
    let index = uploaded(backend, &list)?;
    let (copy, _) =
        time(backend, fence, budget, || backend.gather_rows(&x, &index, Rows::Tokens(rows), hidden, &mut y))?;
    drop((x, y));
    let g: B::Buf<f32> = backend.zeros(COPIED)?;
    let mut sum = backend.zeros(1)?;
    let whole = 0..COPIED;
    let (read, _) =
        time(backend, fence, budget, || backend.sum_squares(&g, std::slice::from_ref(&whole), &mut sum, 0))?;
    Ok((2.0 * real::<B>() * COPIED as f64 / copy).max(4.0 * COPIED as f64 / read))
}

/// Everything that an operation may need, at the workload's sizes.
struct Bed<'a, B: Backend> {
    backend: &'a B,
    fence: &'a Fence<B>,
    budget: Duration,
    peaks: Peaks,
    batch: DeviceBatch<B>,
    drop: Dropout,
    /// T, H, I, A, V, tokens of a sequence
    t: usize,
    h: usize,
    i: usize,
    heads: usize,
    v: usize,
    length: usize,
    /// In a cell, so that an operation may borrow the pack while it is timed.
    done: RefCell<Vec<Operation>>,
}

/// Times the operations that a step is made of.
pub fn measure<B: Backend>(
    backend: &B,
    fence: &Fence<B>,
    work: &Workload,
    peaks: Peaks,
    budget: Duration,
) -> Result<Vec<Operation>> {
    let sequences = (work.pack_tokens / work.length).max(1);
    let (t, s) = (sequences * work.length, &work.shape);
    let masked = ((t as f32 * work.mask_rate) as usize).max(1);
    let backend = &prepared(backend, t, sequences, masked)?;
    let bed = Bed {
        backend,
        fence,
        budget,
        peaks,
        batch: pack(backend, sequences, work.length, s.vocab)?,
        drop: Dropout::new(work.dropout, 1, 1),
        t,
        h: s.hidden,
        i: s.intermediate,
        heads: s.heads,
        v: s.vocab,
        length: work.length,
        done: RefCell::default(),
    };
    bed.products()?;
    bed.attention()?;
    bed.rows()?;
    bed.embedding()?;
    bed.loss(masked)?;
    bed.optimiser(12 * s.hidden * s.hidden * s.layers + s.vocab * s.hidden)?;
    Ok(bed.done.into_inner())
}

impl<B: Backend> Bed<'_, B> {
    fn note(
        &self,
        name: &'static str,
        flops: f64,
        bytes: f64,
        call: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let (seconds, calls) = time(self.backend, self.fence, self.budget, call)?;
        let light = (flops / self.peaks.flops).max(bytes / self.peaks.bandwidth);
        self.done.borrow_mut().push(Operation {
            name,
            ms: 1e3 * seconds,
            calls,
            flops,
            bytes,
            share_of_light: light / seconds,
        });
        Ok(())
    }

    fn products(&self) -> Result<()> {
        let (b, t, h, i) = (self.backend, self.t, self.h, self.i);
        let at = LinearAt { w: 0, b: i * h, n: i, k: h };
        let rows = Rows::Tokens(t);
        let (x, w) = (filled(b, t * h)?, filled(b, i * h + i)?);
        let (mut y, mut act): (B::Buf<B::Real>, B::Buf<B::Real>) = (filled(b, t * i)?, b.zeros(t * i)?);
        let (mut dx, mut grads): (B::Buf<B::Real>, B::Buf<f32>) = (b.zeros(t * h)?, b.zeros(i * h + i)?);
        let flops = 2.0 * (t * h * i) as f64;
        let r = real::<B>();
        let (th, ti, ih) = ((t * h) as f64, (t * i) as f64, (i * h) as f64);
        let bytes = r * (th + ti + ih);
        self.note("linear (FFN up)", flops, bytes, || b.linear(&x, &w, at, rows, Epilogue::Bias, &mut y))?;
        self.note("linear and GELU", flops, bytes + r * ti, || {
            b.linear_gelu(&x, &w, at, rows, &mut y, &mut act)
        })?;
        self.note("linear: to input", flops, bytes, || {
            b.linear_backward_input(&y, &w, at, rows, false, &mut dx)
        })?;
        self.note("linear: to weight", flops, r * (th + ti) + 8.0 * ih, || {
            b.linear_backward_weight(&y, &x, at, rows, &mut grads)
        })?;
        self.note("GELU: backward", 0.0, 3.0 * r * ti, || {
            b.gelu_backward(&y, &mut act, rows, i, Some(at.b), &mut grads)
        })
    }

    fn attention(&self) -> Result<()> {
        let (b, t, h) = (self.backend, self.t, self.h);
        let heads = Heads { heads: self.heads, size: h / self.heads };
        let (qkv, dout) = (filled(b, 3 * t * h)?, filled(b, t * h)?);
        let mut lse: B::Buf<f32> = b.zeros(t * self.heads)?;
        let (mut out, mut dqkv): (B::Buf<B::Real>, B::Buf<B::Real>) = (b.zeros(t * h)?, b.zeros(3 * t * h)?);
        let product = 2.0 * (t * h * self.length) as f64;
        let th = real::<B>() * (t * h) as f64;
        let mut grads: B::Buf<f32> = b.zeros(3 * h)?;
        let batch = &self.batch;
        let drop = self.drop;
        self.note("attention", 2.0 * product, 4.0 * th, || {
            b.attention(batch, heads, drop, &qkv, &mut lse, &mut out)
        })?;
        self.note("attention: backward", 5.0 * product, 8.0 * th, || {
            b.attention_backward(batch, heads, drop, &qkv, &lse, &out, &dout, &mut dqkv, Some(0), &mut grads)
        })
    }

    fn rows(&self) -> Result<()> {
        let (b, t, h, drop) = (self.backend, self.t, self.h, self.drop);
        let norm = NormAt { gamma: 0, beta: h, hidden: h, eps: 1e-12 };
        let weights = filled(b, 3 * h)?;
        let mut grads: B::Buf<f32> = b.zeros(3 * h)?;
        let residual = filled(b, t * h)?;
        let mut y = filled(b, t * h)?;
        let mut row_stats: B::Buf<f32> = b.zeros(2 * t)?;
        let (mut out, mut dy): (B::Buf<B::Real>, B::Buf<B::Real>) = (b.zeros(t * h)?, b.zeros(t * h)?);
        let bytes = 4.0 * real::<B>() * (t * h) as f64;
        let batch = &self.batch;
        self.note("dropout, residual, LayerNorm", 0.0, bytes, || {
            b.residual_norm(batch, &weights, 2 * h, norm, drop, &residual, &mut y, &mut row_stats, &mut out)
        })?;
        self.note("the same: backward", 0.0, bytes, || {
            b.residual_norm_backward(
                batch,
                &weights,
                2 * h,
                norm,
                drop,
                &y,
                &row_stats,
                &residual,
                &mut out,
                &mut dy,
                &mut grads,
            )
        })
    }

    fn embedding(&self) -> Result<()> {
        let (b, t, h, v, drop) = (self.backend, self.t, self.h, self.v, self.drop);
        let norm = NormAt { gamma: 0, beta: h, hidden: h, eps: 1e-12 };
        let (word, position) = (2 * h, (2 + v) * h);
        let segment = position + self.length * h;
        let at = EmbedAt { word, position, segment, norm, vocab: v };
        let weights = filled(b, segment + 2 * h)?;
        let mut grads: B::Buf<f32> = b.zeros(segment + 2 * h)?;
        let (mut sum, mut out): (B::Buf<B::Real>, B::Buf<B::Real>) = (b.zeros(t * h)?, b.zeros(t * h)?);
        let mut row_stats: B::Buf<f32> = b.zeros(2 * t)?;
        let th = (t * h) as f64;
        let batch = &self.batch;
        self.note("embeddings", 0.0, 3.0 * real::<B>() * th, || {
            b.embed(batch, &weights, at, drop, &mut sum, &mut row_stats, &mut out)
        })?;
        self.note("embeddings: backward", 0.0, (2.0 * real::<B>() + 8.0) * th, || {
            b.embed_backward(batch, &weights, at, drop, &sum, &row_stats, &mut out, &mut grads)
        })
    }

    fn loss(&self, masked: usize) -> Result<()> {
        let (b, v, m) = (self.backend, self.v, masked);
        let weights = filled(b, v)?;
        let labels: Vec<u32> = (0..m).map(|i| (i * 7919 % v) as u32).collect();
        let labels = uploaded(b, &labels)?;
        let mut logits = filled(b, m * v)?;
        let (mut grads, mut sums): (B::Buf<f32>, B::Buf<f32>) = (b.zeros(v)?, b.zeros(stats::SLOTS)?);
        let scale = LossScale::mean(1.0, m);
        let bytes = 2.0 * real::<B>() * (m * v) as f64;
        self.note("MLM loss", 0.0, bytes, || {
            b.mlm_loss(&weights, 0, v, &labels, Rows::Masked(m), scale, &mut logits, &mut grads, &mut sums)
        })
    }

    fn optimiser(&self, parameters: usize) -> Result<()> {
        let (b, n) = (self.backend, parameters);
        let mut weights = filled(b, n)?;
        let narrow = size_of::<B::Real>() < 4;
        let mut master: B::Buf<f32> = b.zeros(if narrow { n } else { 0 })?;
        let mut grads: B::Buf<f32> = b.zeros(n)?;
        let (mut first, mut second): (B::Buf<f32>, B::Buf<f32>) = (b.zeros(n)?, b.zeros(n)?);
        let mut norm_sq: B::Buf<f32> = b.zeros(1)?;
        let whole = 0..n;
        let ranges = std::slice::from_ref(&whole);
        self.note("sum of squares", 0.0, 4.0 * n as f64, || b.sum_squares(&grads, ranges, &mut norm_sq, 0))?;
        let groups = [ParamGroup { range: 0..n, decay: true, lr_scale: 1.0 }];
        let update = AdamW {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            step: 9,
            clip_norm: 1.0,
        };
        // gradient read and cleared, moments read and written, and the weight (with its master)
        let weight = if narrow { 8.0 + real::<B>() } else { 8.0 };
        self.note("AdamW", 0.0, (24.0 + weight) * n as f64, || {
            let state = (&mut weights, &mut master, &mut grads);
            b.adamw(update, &groups, ranges, &norm_sq, state.0, state.1, state.2, &mut first, &mut second)
        })
    }
}

/// Bytes of a weight or activation.
fn real<B: Backend>() -> f64 {
    size_of::<B::Real>() as f64
}

/// `len` weights in -1..1.
fn filled<B: Backend>(backend: &B, len: usize) -> Result<B::Buf<B::Real>> {
    let values: Vec<f32> =
        (0..len as u32).map(|i| i.wrapping_mul(2_654_435_761) as f32 / 2f32.powi(31) - 1.0).collect();
    let mut buffer = backend.zeros(len)?;
    backend.upload_weights(&values, &mut buffer, 0)?;
    Ok(buffer)
}

fn uploaded<B: Backend>(backend: &B, values: &[u32]) -> Result<B::Buf<u32>> {
    let mut buffer = backend.zeros(values.len())?;
    backend.upload(values, &mut buffer, 0)?;
    Ok(buffer)
}

/// The engine for packs of so many rows, told that the next one has them all.
fn prepared<B: Backend>(backend: &B, tokens: usize, sequences: usize, masked: usize) -> Result<B> {
    let counts = PackCounts {
        tokens: tokens as u32,
        sequences: sequences as u32,
        masked: masked as u32,
        step_masked: masked as u32,
        step_pairs: sequences as u32,
        ..PackCounts::default()
    };
    let backend = backend.for_packs(&counts)?;
    backend.begin_pack(&counts)?;
    Ok(backend)
}

/// `sequences` of `length` tokens with spread-out ids.
fn pack<B: Backend>(b: &B, sequences: usize, length: usize, vocab: usize) -> Result<DeviceBatch<B>> {
    let t = sequences * length;
    let mut batch = device_batch(b, Capacity { tokens: t, sequences, masked: 0 })?;
    (batch.tokens, batch.sequences) = (t, sequences);
    let list = |f: &dyn Fn(usize) -> usize, n: usize| -> Vec<u32> { (0..n).map(|i| f(i) as u32).collect() };
    b.upload(&list(&|i| i * 7919 % vocab, t), &mut batch.ids, 0)?;
    b.upload(&list(&|i| i % length, t), &mut batch.positions, 0)?;
    b.upload(&list(&|i| usize::from(i % length > length / 4), t), &mut batch.segments, 0)?;
    b.upload(&list(&|i| i / length, t), &mut batch.row_sample, 0)?;
    b.upload(&list(&|i| i * length, sequences + 1), &mut batch.cu_seqlens, 0)?;
    b.upload(&list(&|i| i, sequences), &mut batch.samples, 0)?;
    Ok(batch)
}
