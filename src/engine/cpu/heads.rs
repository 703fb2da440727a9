//! The heads on the [CLS] rows: QDPP (two classes) and relevance (one score). A pack has few
//! sequences, so these run on one thread; what matters is that they are one pass.

use super::buffer::Buffer;
use super::checks::{check_below, parameters, part, part_mut};
use super::device::Cpu;
use super::dropout::row_factors;
use super::machine::Operand;
use super::math::{sum2, sum3, tanh};
use super::tasks::vectorised;
use super::widen::{copy, fresh, open, settle, size, store};
use crate::Result;
use crate::engine::op::{self, HeadAt};
use crate::engine::{Real, stats};
use std::borrow::Cow;

/// Weights of a head: pooler bias [H], head weight [k, H], head bias [k].
struct Head<'a> {
    pool_bias: Cow<'a, [f32]>,
    w: Cow<'a, [f32]>,
    b: Cow<'a, [f32]>,
}

impl<'a> Head<'a> {
    fn of<R: Real>(weights: &'a Buffer<R>, at: HeadAt, k: usize) -> Result<Self> {
        Ok(Self {
            pool_bias: parameters("pooler bias", weights, at.pool_bias, at.hidden)?,
            w: parameters("head weight", weights, at.w, k * at.hidden)?,
            b: parameters("head bias", weights, at.b, k)?,
        })
    }
}

/// Their gradients.
struct HeadGrads {
    pool_bias: Vec<f32>,
    w: Vec<f32>,
    b: Vec<f32>,
}

impl HeadGrads {
    fn zeros(head: &Head<'_>) -> Self {
        Self {
            pool_bias: vec![0.0; head.pool_bias.len()],
            w: vec![0.0; head.w.len()],
            b: vec![0.0; head.b.len()],
        }
    }

    fn add_to(&self, grads: &mut Buffer<f32>, at: HeadAt) -> Result<()> {
        for (offset, from) in [(at.pool_bias, &self.pool_bias), (at.w, &self.w), (at.b, &self.b)] {
            for (sum, &d) in part_mut("head gradient", grads, offset, from.len())?.iter_mut().zip(from) {
                *sum += d;
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn pool(pre: &mut [f32], bias: &[f32]) {
    for (x, &b) in pre.iter_mut().zip(bias) {
        *x = tanh(*x + b);
    }
}

#[inline(always)]
fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = a.mul_add(x, *y);
    }
}

/// With `scale.value` 0, `pre` is left alone and there are no gradients.
pub(super) fn qdpp_head<R: Operand>(cpu: &Cpu<R>, op: &mut op::QdppHead<'_, Cpu<R>>) -> Result<()> {
    let (rows, h, scale) = (op.rows.count(), op.at.hidden, op.scale.value);
    let labels = part("qdpp labels", op.labels, 0, rows)?;
    check_below("qdpp label", labels, 2)?;
    let factors = part("qdpp factors", op.factors, 0, rows)?;
    let pre = part_mut("qdpp pre", op.pre, 0, rows * h)?;
    let logits = part_mut("qdpp logits", op.logits, 0, 2 * rows)?;
    let sums = part_mut("statistics", op.sums, 0, stats::SLOTS)?;
    let head = &Head::of(op.weights, op.at, 2)?;
    let mut grads = (scale != 0.0).then(|| HeadGrads::zeros(head));
    let (mut loss, mut right) = (0.0f64, 0u32);
    let (mut pooled, mut room) = (vec![0.0; h], vec![0.0; size::<R>(h)]);
    vectorised(
        cpu.machine.arch,
        #[inline(always)]
        || {
            let rows = pre.chunks_exact_mut(h).zip(logits.as_chunks_mut::<2>().0).zip(labels).zip(factors);
            for (((pre, logits), &label), &factor) in rows {
                copy(pre, &mut pooled);
                pool(&mut pooled, &head.pool_bias);
                for (k, logit) in logits.iter_mut().enumerate() {
                    *logit = sum2(&pooled, &head.w[k * h..][..h], |x, w| x * w) + head.b[k];
                }
                let (row_loss, dlogits, is_right) = cross_entropy(*logits, label as usize, factor * scale);
                loss += f64::from(factor) * row_loss;
                right += u32::from(is_right);
                if let Some(grads) = &mut grads {
                    backward_two(head, dlogits, &pooled, fresh(pre, &mut room), grads);
                    store(&room, pre);
                }
            }
        },
    );
    sums[stats::QDPP_LOSS] += loss as f32;
    sums[stats::QDPP_CORRECT] += right as f32;
    sums[stats::QDPP_COUNT] += rows as f32;
    grads.map_or(Ok(()), |gradients| gradients.add_to(op.grads, op.at))
}

/// (loss, scale * gradient, right?) of two logits.
fn cross_entropy(logits: [f32; 2], label: usize, scale: f32) -> (f64, [f32; 2], bool) {
    let [a, b] = logits.map(f64::from);
    let top = a.max(b);
    let total = (a - top).exp() + (b - top).exp();
    let own = if label == 0 { a } else { b };
    let other = if label == 0 { b } else { a };
    let gradient =
        |x: f64, hot: bool| (f64::from(scale) * ((x - top).exp() / total - f64::from(u8::from(hot)))) as f32;
    (total.ln() - (own - top), [gradient(a, label == 0), gradient(b, label == 1)], own > other)
}

#[inline(always)]
fn backward_two(head: &Head<'_>, dlogits: [f32; 2], pooled: &[f32], dpre: &mut [f32], grads: &mut HeadGrads) {
    let h = pooled.len();
    let (w0, w1) = head.w.split_at(h);
    for (((d, &p), &w0), &w1) in dpre.iter_mut().zip(pooled).zip(w0).zip(w1) {
        *d = dlogits[0].mul_add(w0, dlogits[1] * w1) * (1.0 - p * p);
    }
    for ((&d, dw), db) in dlogits.iter().zip(grads.w.chunks_exact_mut(h)).zip(&mut grads.b) {
        axpy(d, pooled, dw);
        *db += d;
    }
    axpy(1.0, dpre, &mut grads.pool_bias);
}

/// Scores are computed from the pooled rows as stored.
pub(super) fn score_head<R: Operand>(cpu: &Cpu<R>, op: &mut op::ScoreHead<'_, Cpu<R>>) -> Result<()> {
    let (s, h, drop, epoch) = (op.batch.sequences, op.at.hidden, op.drop, op.batch.epoch);
    let samples = part("samples", &op.batch.samples, 0, s)?;
    let pre = part_mut("score pre", op.pre, 0, s * h)?;
    let scores = part_mut("scores", op.scores, 0, s)?;
    let head = &Head::of(op.weights, op.at, 1)?;
    let (mut factors, mut room) = (vec![1.0; h], vec![0.0; size::<R>(h)]);
    vectorised(
        cpu.machine.arch,
        #[inline(always)]
        || {
            for ((kept, score), &sample) in pre.chunks_exact_mut(h).zip(scores.iter_mut()).zip(samples) {
                pool(open(kept, &mut room), &head.pool_bias);
                let pooled = settle(&mut room, kept);
                if drop.threshold > 0 {
                    row_factors(&drop, sample, 0, epoch, &mut factors);
                }
                *score = sum3(pooled, &head.w, &factors, |x, w, f| x * f * w) + head.b[0];
            }
        },
    );
    Ok(())
}

pub(super) fn score_head_backward<R: Operand>(
    cpu: &Cpu<R>,
    op: &mut op::ScoreHeadBackward<'_, Cpu<R>>,
) -> Result<()> {
    let (s, h, drop, epoch) = (op.batch.sequences, op.at.hidden, op.drop, op.batch.epoch);
    let samples = part("samples", &op.batch.samples, 0, s)?;
    let dscores = part("dscores", op.dscores, 0, s)?;
    let pooled = part_mut("pooled", op.pooled, 0, s * h)?;
    let head = &Head::of(op.weights, op.at, 1)?;
    let mut grads = HeadGrads::zeros(head);
    let (mut factors, mut room) = (vec![1.0; h], vec![0.0; size::<R>(h)]);
    vectorised(
        cpu.machine.arch,
        #[inline(always)]
        || {
            for ((kept, &d), &sample) in pooled.chunks_exact_mut(h).zip(dscores).zip(samples) {
                if drop.threshold > 0 {
                    row_factors(&drop, sample, 0, epoch, &mut factors);
                }
                let pooled = open(kept, &mut room);
                for (((p, &w), &f), dw) in pooled.iter_mut().zip(&*head.w).zip(&factors).zip(&mut grads.w) {
                    *dw = (d * f).mul_add(*p, *dw);
                    *p = d * f * w * (1.0 - *p * *p);
                }
                axpy(1.0, pooled, &mut grads.pool_bias);
                grads.b[0] += d;
                store(&room, kept);
            }
        },
    );
    grads.add_to(op.grads, op.at)
}
