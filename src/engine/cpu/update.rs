//! The optimiser's passes over the arenas: the gradient's norm, AdamW, and the two passes of LAMB (You et al.
//! 2020, algorithm 2). All are bound by memory, so each value is read and written once. Between LAMB's two
//! passes the norms of a tensor that several ranks share are summed, so the direction has to be kept: it
//! replaces the gradient.

use super::buffer::{Buffer, Pool};
use super::checks::{part, part_mut};
use super::device::Cpu;
use super::machine::Operand;
use super::tasks::{In, Out, Partials, each, vectorised};
use super::widen::round;
use crate::Result;
use crate::engine::Real;
use crate::engine::op::{self, ParamGroup, Slice, UpdateRule, slices};
use pulp::Arch;
use std::ops::Range;

/// Values of one task.
const CHUNK: usize = 1 << 14;

pub(super) fn sum_squares<R: Operand>(cpu: &Cpu<R>, op: &mut op::SumSquares<'_, Cpu<R>>) -> Result<()> {
    let mut sum = 0.0;
    for range in op.ranges {
        let values = part("sum_squares", op.src, range.start, range.len())?;
        sum += squares(cpu.machine.arch, &cpu.pool, values);
    }
    part_mut("sum_squares out", op.out, op.slot, 1)?[0] = sum as f32;
    Ok(())
}

/// Sum of squares in f64; chunks in ascending order.
fn squares(arch: Arch, pool: &Pool, values: &[f32]) -> f64 {
    let mut scratch = pool.take(Partials::size(values.len(), CHUNK, 2));
    // A chunk's sum is stored as the two f32 whose sum it is to 48 bits: the pool holds f32.
    let halves = Partials::new(&mut scratch, values.len(), CHUNK, 2);
    each((In(values, 1), halves), CHUNK, &|_, (values, mut out)| {
        let total = vectorised(
            arch,
            #[inline(always)]
            || squares_of_chunk(values.0),
        );
        let out = out.row();
        out[0] = total as f32;
        out[1] = (total - f64::from(out[0])) as f32;
    });
    scratch
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&[high, low]| {
            // inf - inf of an overflow: the norm is not finite either way.
            if high.is_finite() { f64::from(high) + f64::from(low) } else { f64::from(high) }
        })
        .sum()
}

#[inline(always)]
fn squares_of_chunk(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 16];
    let (blocks, rest) = values.as_chunks::<16>();
    for block in blocks {
        for l in 0..16 {
            let x = f64::from(block[l]);
            lanes[l] = x.mul_add(x, lanes[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(x) * f64::from(x);
    }
    lanes.iter().sum()
}

/// Constants of one group's update.
#[derive(Clone, Copy)]
struct Constants {
    clip: f32,
    beta1: f32,
    beta2: f32,
    /// 1 - lr * weight decay
    keep: f32,
    /// lr / (1 - beta1^t)
    step: f32,
    /// 1 / sqrt(1 - beta2^t)
    root: f32,
    eps: f32,
}

impl Constants {
    fn new(rule: UpdateRule, group: &ParamGroup, norm_sq: f32) -> Self {
        let lr = f64::from(rule.lr) * f64::from(group.lr_scale);
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(rule.step.min(i32::MAX as u32) as i32);
        let decay = if group.decay { f64::from(rule.weight_decay) } else { 0.0 };
        let norm = f64::from(norm_sq).sqrt();
        // As torch.nn.utils.clip_grad_norm_.
        let clip = f64::from(rule.clip_norm) / (norm + 1e-6);
        Self {
            clip: if rule.clip_norm > 0.0 { clip.min(1.0) as f32 } else { 1.0 },
            beta1: rule.beta1,
            beta2: rule.beta2,
            keep: (1.0 - lr * decay) as f32,
            step: (lr / correction(rule.beta1)) as f32,
            root: (1.0 / correction(rule.beta2).sqrt()) as f32,
            eps: rule.eps,
        }
    }
}

/// Both moments of one element after the gradient `g`, which is clipped here.
#[inline(always)]
fn moments(c: Constants, g: f32, m: &mut f32, v: &mut f32) {
    let gradient = g * c.clip;
    // lerp, as torch writes it: exact where the moment already equals the gradient.
    *m = (gradient - *m).mul_add(1.0 - c.beta1, *m);
    *v = (gradient * gradient).mul_add(1.0 - c.beta2, *v * c.beta2);
}

/// Weights that an update writes, and their f32 master, which is empty unless they are narrower.
struct Weights<'a, R> {
    weights: &'a mut [R],
    master: &'a mut [f32],
}

impl<'a, R: Real> Weights<'a, R> {
    fn of(weights: &'a mut Buffer<R>, master: &'a mut Buffer<f32>, slice: &Slice) -> Result<Self> {
        let Slice { range, moment, .. } = slice;
        let weights = part_mut("weights", weights, range.start, range.len())?;
        let master: &mut [f32] =
            if R::NARROW { part_mut("master weights", master, *moment, range.len())? } else { &mut [] };
        Ok(Self { weights, master })
    }
}

pub(super) fn adamw<R: Operand>(cpu: &Cpu<R>, op: &mut op::AdamWUpdate<'_, Cpu<R>>) -> Result<()> {
    let (arch, norm_sq) = (cpu.machine.arch, part("norm_sq", op.norm_sq, 0, 1)?[0]);
    for slice in slices(op.groups, op.owned) {
        let len = slice.range.len();
        let weights = Weights::of(op.weights, op.master, &slice)?;
        let grads = part_mut("gradients", op.grads, slice.range.start, len)?;
        let moment1 = part_mut("moment1", op.moment1, slice.moment, len)?;
        let moment2 = part_mut("moment2", op.moment2, slice.moment, len)?;
        if norm_sq.is_finite() {
            let constants = Constants::new(op.rule, &op.groups[slice.group], norm_sq);
            adamw_slice(arch, constants, weights, (Out(grads, 1), Out(moment1, 1), Out(moment2, 1)));
        } else {
            grads.fill(0.0);
        }
    }
    clear_groups(op.groups, op.owned, op.grads)
}

/// Updates one slice of a group from its gradients, which are then zeroed, and the two moments.
fn adamw_slice<R: Real>(
    arch: Arch,
    c: Constants,
    Weights { weights, master }: Weights<'_, R>,
    state: (Out<'_, f32>, Out<'_, f32>, Out<'_, f32>),
) {
    if R::NARROW {
        let all = (Out(weights, 1), Out(master, 1), state);
        each(all, CHUNK, &|_, (weights, w, (g, m, v))| {
            vectorised(
                arch,
                #[inline(always)]
                || {
                    adamw_chunk(c, w.0, g.0, m.0, v.0);
                    round(w.0, weights.0);
                },
            )
        });
    } else {
        let all = (Out(bytemuck::cast_slice_mut(weights), 1), state);
        each(all, CHUNK, &|_, (w, (g, m, v))| {
            vectorised(
                arch,
                #[inline(always)]
                || adamw_chunk(c, w.0, g.0, m.0, v.0),
            )
        });
    }
}

#[inline(always)]
fn adamw_chunk(c: Constants, w: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        moments(c, *g, m, v);
        *g = 0.0;
        *w = (*w).mul_add(c.keep, -c.step * *m / v.sqrt().mul_add(c.root, c.eps));
    }
}

/// Zeros the gradients that `adamw` left alone: those of frozen groups, and those that other ranks own, which
/// hold this rank's part of a sum.
fn clear_groups(groups: &[ParamGroup], owned: &[Range<usize>], grads: &mut Buffer<f32>) -> Result<()> {
    for ParamGroup { range, lr_scale, .. } in groups {
        let whole = owned.iter().any(|own| own.start <= range.start && range.end <= own.end);
        if !whole || *lr_scale == 0.0 {
            part_mut("gradients", grads, range.start, range.len())?.fill(0.0);
        }
    }
    Ok(())
}

pub(super) fn lamb_direction<R: Operand>(cpu: &Cpu<R>, op: &mut op::LambDirection<'_, Cpu<R>>) -> Result<()> {
    let (arch, pool) = (cpu.machine.arch, &*cpu.pool);
    let norm_sq = part("norm_sq", op.norm_sq, 0, 1)?[0];
    let norms = part_mut("norms", op.norms, 0, 2 * op.groups.len())?;
    let mut sums = vec![[0.0; 2]; op.groups.len()];
    for Slice { group, range, moment } in slices(op.groups, op.owned) {
        let (at, len) = (range.start, range.len());
        let weights = if R::NARROW {
            part("master weights", op.master, moment, len)?
        } else {
            bytemuck::cast_slice(part("weights", op.weights, at, len)?)
        };
        let grads = part_mut("gradients", op.grads, at, len)?;
        let moment1 = part_mut("moment1", op.moment1, moment, len)?;
        let moment2 = part_mut("moment2", op.moment2, moment, len)?;
        if norm_sq.is_finite() {
            let all = (In(weights, 1), Out(&mut *grads, 1), Out(moment1, 1), Out(moment2, 1));
            direction_slice(arch, op.rule, &op.groups[group], norm_sq, all);
            sums[group][0] += squares(arch, pool, weights);
            sums[group][1] += squares(arch, pool, grads);
        } else {
            grads.fill(0.0);
        }
    }
    for (norm, sum) in norms.iter_mut().zip(sums.as_flattened()) {
        *norm = *sum as f32;
    }
    Ok(())
}

/// Weights, gradients and both moments of a slice.
type Direction<'a> = (In<'a, f32>, Out<'a, f32>, Out<'a, f32>, Out<'a, f32>);

/// Updates the moments of one slice of a group and replaces its gradient by the direction
/// r = m' / (sqrt(v') + eps) + decay * w, m' and v' corrected for their bias.
fn direction_slice(arch: Arch, rule: UpdateRule, group: &ParamGroup, norm_sq: f32, all: Direction<'_>) {
    // lr 1: the learning rate belongs to the second pass, and decay is part of the direction.
    let c = Constants::new(
        UpdateRule { lr: 1.0, ..rule },
        &ParamGroup { lr_scale: 1.0, ..group.clone() },
        norm_sq,
    );
    let decay = if group.decay { rule.weight_decay } else { 0.0 };
    each(all, CHUNK, &|_, (w, g, m, v)| {
        vectorised(
            arch,
            #[inline(always)]
            || direction_chunk((c, decay), w.0, g.0, m.0, v.0),
        )
    });
}

#[inline(always)]
fn direction_chunk((c, decay): (Constants, f32), w: &[f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    for (((w, g), m), v) in w.iter().zip(g).zip(m).zip(v) {
        moments(c, *g, m, v);
        *g = w.mul_add(decay, c.step * *m / v.sqrt().mul_add(c.root, c.eps));
    }
}

pub(super) fn lamb_apply<R: Operand>(cpu: &Cpu<R>, op: &mut op::LambApply<'_, Cpu<R>>) -> Result<()> {
    let norms = part("norms", op.norms, 0, 2 * op.groups.len())?;
    for slice in slices(op.groups, op.owned) {
        let (group, range) = (slice.group, &slice.range);
        let step = step_size(op.rule, &op.groups[group], [norms[2 * group], norms[2 * group + 1]]);
        let direction = part("gradients", op.grads, range.start, range.len())?;
        let weights = Weights::of(op.weights, op.master, &slice)?;
        apply_slice(cpu.machine.arch, step, weights, direction);
    }
    for ParamGroup { range, .. } in op.groups {
        part_mut("clear", op.grads, range.start, range.len())?.fill(0.0);
    }
    Ok(())
}

/// lr * lr_scale * trust ratio of a group. The ratio |w| / |r| is 1 where a norm is 0 and for parameters
/// without decay (biases, LayerNorms), as in the authors' code.
fn step_size(rule: UpdateRule, group: &ParamGroup, [weights_sq, direction_sq]: [f32; 2]) -> f32 {
    let lr = f64::from(rule.lr) * f64::from(group.lr_scale);
    let ratio = if group.decay && weights_sq > 0.0 && direction_sq > 0.0 {
        (f64::from(weights_sq) / f64::from(direction_sq)).sqrt()
    } else {
        1.0
    };
    (lr * ratio) as f32
}

/// w -= step * r for one slice of a group.
fn apply_slice<R: Real>(
    arch: Arch,
    step: f32,
    Weights { weights, master }: Weights<'_, R>,
    direction: &[f32],
) {
    if R::NARROW {
        let all = (Out(weights, 1), Out(master, 1), In(direction, 1));
        each(all, CHUNK, &|_, (weights, w, r)| {
            vectorised(
                arch,
                #[inline(always)]
                || {
                    apply_chunk(step, w.0, r.0);
                    round(w.0, weights.0);
                },
            )
        });
    } else {
        each((Out(bytemuck::cast_slice_mut(weights), 1), In(direction, 1)), CHUNK, &|_, (w, r)| {
            vectorised(
                arch,
                #[inline(always)]
                || apply_chunk(step, w.0, r.0),
            )
        });
    }
}

#[inline(always)]
fn apply_chunk(step: f32, w: &mut [f32], direction: &[f32]) {
    for (w, r) in w.iter_mut().zip(direction) {
        *w = (-step).mul_add(*r, *w);
    }
}

pub(super) fn forget<R: Operand>(_: &Cpu<R>, op: &mut op::Forget<'_, Cpu<R>>) -> Result<()> {
    if part("norm_sq", op.norm_sq, 0, 1)?[0].is_finite() {
        return Ok(());
    }
    for (buffer, len) in &mut op.buffers {
        part_mut("clear", buffer, 0, *len)?.fill(R::default());
    }
    Ok(())
}
