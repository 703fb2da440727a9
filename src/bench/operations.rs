//! Single operations of the engine at the sizes of the workload, and the machine's own peaks.

use std::cell::RefCell;
use std::time::Duration;

use super::{Operation, Peaks, Workload, step, time};
use crate::Result;
use crate::data::batch::Batch;
use crate::data::mask::count_masked;
use crate::engine::*;
use crate::model::activations::{Capacity, device_batch, put};

/// Sides of the square products that the peak is the best of; larger ones are left out when one
/// product takes longer than the budget.
const SIDES: [usize; 4] = [1024, 2048, 4096, 8192];
/// Elements that are copied to find the bandwidth: more than any cache holds; or fewer, where these take a
/// device more than `ENOUGH` seconds.
const COPIED: [usize; 3] = [1 << 20, 8 << 20, 64 << 20];
const ENOUGH: f64 = 0.1;

/// The best product and the best copy of this rank's device.
pub fn peaks<B: Backend>(backend: &B, budget: Duration) -> Result<Peaks> {
    let mut flops = 0.0f64;
    for side in SIDES {
        let at = LinearAt { w: 0, b: side * side, n: side, k: side };
        let rows = Rows::Tokens(side);
        let backend = &prepared(backend, side, 1, 1)?;
        let (x, w) = (filled(backend, side * side)?, filled(backend, side * side + side)?);
        let mut y: B::Buf<B::Real> = backend.zeros(side * side)?;
        let (seconds, _) =
            time(backend, budget, || backend.linear(&x, &w, at, rows, Epilogue::None, &mut y))?;
        flops = flops.max(2.0 * (side as f64).powi(3) / seconds);
        if 8.0 * seconds * 3.0 > budget.as_secs_f64().max(0.1) {
            break;
        }
    }
    Ok(Peaks { flops, bandwidth: bandwidth(backend, budget)? })
}

fn bandwidth<B: Backend>(backend: &B, budget: Duration) -> Result<f64> {
    let mut found = 0.0;
    for elements in COPIED {
        let (seconds, bandwidth) = bandwidth_of(backend, elements, budget)?;
        found = bandwidth; // of the largest alone: smaller ones may have come from a cache
        if seconds > ENOUGH {
            break;
        }
    }
    Ok(found)
}

/// Seconds of a copy of rows, and the better of its bandwidth and a sum of squares'.
fn bandwidth_of<B: Backend>(backend: &B, elements: usize, budget: Duration) -> Result<(f64, f64)> {
    let hidden = 1024;
    let rows = elements / hidden;
    let backend = &prepared(backend, rows, 1, 1)?;
    let x: B::Buf<B::Real> = backend.zeros(elements)?;
    let mut y: B::Buf<B::Real> = backend.zeros(elements)?;
    let list: Vec<u32> = (0..rows as u32).collect();
    let index = uploaded(backend, &list)?;
    let (copy, _) =
        time(backend, budget, || backend.gather_rows(&x, &index, Rows::Tokens(rows), hidden, &mut y))?;
    drop((x, y));
    let g: B::Buf<f32> = backend.zeros(elements)?;
    let mut sum = backend.zeros(1)?;
    let whole = 0..elements;
    let (read, _) =
        time(backend, budget, || backend.sum_squares(&g, std::slice::from_ref(&whole), &mut sum, 0))?;
    let elements = elements as f64;
    Ok((copy, (2.0 * real::<B>() * elements / copy).max(4.0 * elements / read)))
}

/// Everything that an operation may need, at the workload's sizes.
struct Bed<'a, B: Backend> {
    backend: &'a B,
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
    work: &Workload,
    peaks: Peaks,
    budget: Duration,
) -> Result<Vec<Operation>> {
    let sequences = (work.pack_tokens / work.length).max(1);
    let (t, s) = (sequences * work.length, &work.shape);
    let batch = pack(work, sequences);
    let masked = batch.masked;
    let backend = &prepared(backend, t, sequences, masked)?;
    let mut device = device_batch(backend, Capacity { tokens: t, sequences, masked })?;
    put(backend, &batch, &mut device)?;
    let mut bed = Bed {
        backend,
        budget,
        peaks,
        batch: device,
        drop: Dropout::new(work.dropout, 1, 1),
        t,
        h: s.hidden,
        i: s.intermediate,
        heads: s.heads,
        v: s.vocab,
        length: work.length,
        done: RefCell::default(),
    };
    bed.masking(work)?;
    bed.products()?;
    bed.attention()?;
    bed.rows()?;
    bed.norm(masked)?;
    bed.embedding()?;
    bed.loss(masked)?;
    bed.heads()?;
    bed.optimiser(12 * s.hidden * s.hidden * s.layers + s.vocab * s.hidden)?;
    Ok(bed.done.into_inner())
}

impl<B: Backend> Bed<'_, B> {
    fn note(
        &self,
        (name, op): (&'static str, &'static str),
        flops: f64,
        bytes: f64,
        call: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let (seconds, calls) = time(self.backend, self.budget, call)?;
        self.keep((name, op), flops, bytes, seconds, calls);
        Ok(())
    }

    fn keep(
        &self,
        (name, op): (&'static str, &'static str),
        flops: f64,
        bytes: f64,
        seconds: f64,
        calls: usize,
    ) {
        let light = (flops / self.peaks.flops).max(bytes / self.peaks.bandwidth);
        self.done.borrow_mut().push(Operation {
            name,
            op,
            ms: 1e3 * seconds,
            calls,
            flops,
            bytes,
            share_of_light: light / seconds,
        });
    }

    fn masking(&mut self, work: &Workload) -> Result<()> {
        let rule = step::rule(work);
        let continues: B::Buf<u32> = self.backend.zeros(self.v)?;
        let (backend, budget, t) = (self.backend, self.budget, self.t as f64);
        // ids, positions, segments and samples are read, an id in seven is written
        let bytes = 17.0 * t;
        let call = || backend.mask_tokens(&mut self.batch, &rule, &continues);
        let (seconds, calls) = time(backend, budget, call)?;
        self.keep(("masking", "mask_tokens"), 0.0, bytes, seconds, calls);
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
        self.note(("linear (FFN up)", "linear"), flops, bytes, || {
            b.linear(&x, &w, at, rows, Epilogue::Bias, &mut y)
        })?;
        self.note(("linear and GELU", "linear_gelu"), flops, bytes + r * ti, || {
            b.linear_gelu(&x, &w, at, rows, &mut y, &mut act)
        })?;
        self.note(("linear: to input", "linear_backward_input"), flops, bytes, || {
            b.linear_backward_input(&y, &w, at, rows, false, &mut dx)
        })?;
        self.note(("linear: to weight", "linear_backward_weight"), flops, r * (th + ti) + 8.0 * ih, || {
            b.linear_backward_weight(&y, &x, at, rows, &mut grads)
        })?;
        self.note(("GELU", "gelu"), 0.0, 2.0 * r * ti, || b.gelu(&y, rows, i, &mut act))?;
        self.note(("GELU: backward", "gelu_backward"), 0.0, 3.0 * r * ti, || {
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
        self.note(("attention", "attention"), 2.0 * product, 4.0 * th, || {
            b.attention(batch, heads, drop, &qkv, &mut lse, &mut out)
        })?;
        self.note(("attention: backward", "attention_backward"), 5.0 * product, 8.0 * th, || {
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
        self.note(("dropout, residual, LayerNorm", "residual_norm"), 0.0, bytes, || {
            b.residual_norm(batch, &weights, 2 * h, norm, drop, &residual, &mut y, &mut row_stats, &mut out)
        })?;
        self.note(("the same: backward", "residual_norm_backward"), 0.0, bytes, || {
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

    /// What the MLM head does to its rows.
    fn norm(&self, masked: usize) -> Result<()> {
        let (b, h, m) = (self.backend, self.h, Rows::Masked(masked));
        let norm = NormAt { gamma: 0, beta: h, hidden: h, eps: 1e-12 };
        let weights = filled(b, 2 * h)?;
        let mut grads: B::Buf<f32> = b.zeros(2 * h)?;
        let (mut x, mut rows) = (filled(b, self.t * h)?, filled(b, masked * h)?);
        let mut out: B::Buf<B::Real> = b.zeros(masked * h)?;
        let mut row_stats: B::Buf<f32> = b.zeros(2 * masked)?;
        let mh = real::<B>() * (masked * h) as f64;
        let places: Vec<u32> = (0..masked).map(|i| (i * self.t / masked) as u32).collect();
        let places = uploaded(b, &places)?;
        self.note(("masked rows: gather", "gather_rows"), 0.0, 2.0 * mh, || {
            b.gather_rows(&x, &places, m, h, &mut rows)
        })?;
        self.note(("LayerNorm", "norm"), 0.0, 2.0 * mh, || {
            b.norm(&rows, &weights, norm, m, &mut row_stats, &mut out)
        })?;
        self.note(("LayerNorm: backward", "norm_backward"), 0.0, 3.0 * mh, || {
            b.norm_backward(&rows, &weights, norm, m, &row_stats, &mut out, &mut grads)
        })?;
        self.note(("masked rows: scatter", "scatter_add_rows"), 0.0, 3.0 * mh, || {
            b.scatter_add_rows(&out, &places, m, h, &mut x)
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
        self.note(("embeddings", "embed"), 0.0, 3.0 * real::<B>() * th, || {
            b.embed(batch, &weights, at, drop, &mut sum, &mut row_stats, &mut out)
        })?;
        self.note(("embeddings: backward", "embed_backward"), 0.0, (2.0 * real::<B>() + 8.0) * th, || {
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
        self.note(("MLM loss", "mlm_loss"), 0.0, bytes, || {
            b.mlm_loss(&weights, 0, v, &labels, Rows::Masked(m), scale, &mut logits, &mut grads, &mut sums)
        })
    }

    /// The small heads and the ranking loss, in groups of two sequences.
    fn heads(&self) -> Result<()> {
        let (b, h, batch, drop) = (self.backend, self.h, &self.batch, self.drop);
        let (s, rows) = (batch.sequences, Rows::Sequences(batch.sequences));
        let at = HeadAt { pool_bias: 0, w: h, b: 3 * h, hidden: h };
        let weights = filled(b, 3 * h + 8)?;
        let (mut grads, mut sums): (B::Buf<f32>, B::Buf<f32>) = (b.zeros(3 * h + 8)?, b.zeros(stats::SLOTS)?);
        let (mut logits, mut scores): (B::Buf<f32>, B::Buf<f32>) = (b.zeros(2 * s)?, b.zeros(s)?);
        let mut dscores: B::Buf<f32> = b.zeros(s)?;
        let mut pre = filled(b, s * h)?;
        let scale = LossScale::mean(1.0, s);
        let bytes = 2.0 * real::<B>() * (s * h) as f64;
        self.note(("QDPP head", "qdpp_head"), 0.0, bytes, || {
            let (labels, factors) = (&batch.pair_labels, &batch.pair_weights);
            b.qdpp_head(
                &weights,
                at,
                labels,
                factors,
                rows,
                scale,
                &mut pre,
                &mut logits,
                &mut grads,
                &mut sums,
            )
        })?;
        self.note(("ranking head", "score_head"), 0.0, bytes, || {
            b.score_head(batch, &weights, at, drop, &mut pre, &mut scores)
        })?;
        let (mut documents, how): (B::Buf<f32>, _) = (b.zeros(s)?, Aggregate::MaxP);
        self.note(("documents of passages", "aggregate"), 0.0, 8.0 * s as f64, || {
            b.aggregate(how, batch, &scores, &mut documents)
        })?;
        self.note(("passages: backward", "aggregate_backward"), 0.0, 8.0 * s as f64, || {
            b.aggregate_backward(how, batch, &scores, &documents, &mut dscores)
        })?;
        self.note(("ranking loss (LCE)", "rank_loss"), 0.0, 8.0 * s as f64, || {
            b.rank_loss(RankLoss::Lce, batch, &scores, scale, &mut dscores, &mut sums)
        })?;
        self.note(("ranking head: backward", "score_head_backward"), 0.0, bytes, || {
            b.score_head_backward(batch, &weights, at, drop, &dscores, &mut pre, &mut grads)
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
        self.note(("sum of squares", "sum_squares"), 0.0, 4.0 * n as f64, || {
            b.sum_squares(&grads, ranges, &mut norm_sq, 0)
        })?;
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
        let (n_bytes, weight) = (n as f64, if narrow { 8.0 + real::<B>() } else { 8.0 });
        self.note(("AdamW", "adamw"), 0.0, (24.0 + weight) * n_bytes, || {
            let state = (&mut weights, &mut master, &mut grads);
            b.adamw(update, &groups, ranges, &norm_sq, state.0, state.1, state.2, &mut first, &mut second)
        })?;
        let mut norms: B::Buf<f32> = b.zeros(2)?;
        // LAMB writes its direction in the gradient's place and reads it again
        self.note(("LAMB: direction", "lamb_direction"), 0.0, 28.0 * n_bytes, || {
            let (m, v) = (&mut first, &mut second);
            b.lamb_direction(
                update, &groups, ranges, &norm_sq, &weights, &master, &mut grads, m, v, &mut norms,
            )
        })?;
        self.note(("LAMB: update", "lamb_apply"), 0.0, (8.0 + weight) * n_bytes, || {
            b.lamb_apply(update, &groups, ranges, &norms, &mut weights, &mut master, &mut grads)
        })?;
        self.note(("look at the norm (forget)", "forget"), 0.0, 4.0, || {
            b.forget(&norm_sq, vec![(&mut weights, n)])
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

/// `sequences` of the workload's length with spread-out ids.
fn pack(work: &Workload, sequences: usize) -> Batch {
    let (length, vocab) = (work.length, work.shape.vocab);
    let t = sequences * length;
    let list = |f: &dyn Fn(usize) -> usize, n: usize| -> Vec<u32> { (0..n).map(|i| f(i) as u32).collect() };
    let mut batch = Batch {
        ids: list(&|i| i * 7919 % vocab, t),
        positions: list(&|i| i % length, t),
        segments: list(&|i| usize::from(i % length > length / 4), t),
        row_sample: list(&|i| i / length, t),
        cu_seqlens: list(&|i| i * length, sequences + 1),
        samples: list(&|i| i, sequences),
        pair_labels: list(&|i| i % 2, sequences),
        cu_documents: (0..=sequences as u32).collect(),
        cu_groups: (0..=sequences as u32).step_by(2).collect(),
        targets: vec![0.0; sequences],
        step_pairs: sequences,
        ..Batch::default()
    };
    batch.masked = count_masked(&step::rule(work), &batch, &vec![0; vocab]);
    batch.step_masked = batch.masked;
    batch
}
