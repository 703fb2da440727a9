//! The optimiser's passes over the arenas: the gradient norm and AdamW. Both are bound by memory,
//! so each value is read and written once.

use super::buffer::Pool;
use super::tasks::{In, Out, each, vectorised};
use super::widen::round;
use crate::engine::{AdamW, ParamGroup, Real};
use pulp::Arch;

/// Values of one task.
pub const CHUNK: usize = 1 << 14;

/// Sum of squares in f64; chunks in ascending order.
pub fn sum_squares(arch: Arch, pool: &Pool, values: &[f32]) -> f64 {
    let mut scratch = pool.take(2 * values.len().div_ceil(CHUNK));
    // A chunk's sum is stored as the two f32 whose sum it is to 48 bits: the pool holds f32.
    let halves: &mut [[f32; 2]] = scratch.as_chunks_mut::<2>().0;
    let chunks = values.chunks(CHUNK).count();
    let starts = super::tasks::Partials::new(halves.as_flattened_mut(), values.len(), CHUNK, 2);
    debug_assert_eq!(chunks, values.len().div_ceil(CHUNK));
    each((In(values, 1), starts), CHUNK, &|_, (values, mut out)| {
        let total = vectorised(
            arch,
            #[inline(always)]
            || squares(values.0),
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
fn squares(values: &[f32]) -> f64 {
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
pub struct Constants {
    clip: f32,
    beta1: f32,
    beta2: f32,
    /// 1 - lr * weight decay
    keep: f32,
    /// lr / (1 - beta1^t)
    pub step: f32,
    /// 1 / sqrt(1 - beta2^t)
    pub root: f32,
    pub eps: f32,
}

impl Constants {
    pub fn new(update: AdamW, group: &ParamGroup, norm_sq: f32) -> Self {
        let lr = f64::from(update.lr) * f64::from(group.lr_scale);
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(update.step.min(i32::MAX as u32) as i32);
        let decay = if group.decay { f64::from(update.weight_decay) } else { 0.0 };
        let norm = f64::from(norm_sq).sqrt();
        // As torch.nn.utils.clip_grad_norm_.
        let clip = f64::from(update.clip_norm) / (norm + 1e-6);
        Self {
            clip: if update.clip_norm > 0.0 { clip.min(1.0) as f32 } else { 1.0 },
            beta1: update.beta1,
            beta2: update.beta2,
            keep: (1.0 - lr * decay) as f32,
            step: (lr / correction(update.beta1)) as f32,
            root: (1.0 / correction(update.beta2).sqrt()) as f32,
            eps: update.eps,
        }
    }
}

/// One slice of a group: weights (with their f32 master where they are narrower, else an empty one),
/// gradients and the two moments, all of one length. Gradients end as zeros.
pub fn update_slice<R: Real>(
    arch: Arch,
    update: AdamW,
    group: &ParamGroup,
    norm_sq: f32,
    (weights, master): (&mut [R], &mut [f32]),
    grads: &mut [f32],
    (moment1, moment2): (&mut [f32], &mut [f32]),
) {
    if !norm_sq.is_finite() {
        return grads.fill(0.0);
    }
    let c = Constants::new(update, group, norm_sq);
    let state = (Out(grads, 1), Out(moment1, 1), Out(moment2, 1));
    if R::NARROW {
        let all = (Out(weights, 1), Out(master, 1), state);
        each(all, CHUNK, &|_, (weights, w, (g, m, v))| {
            vectorised(
                arch,
                #[inline(always)]
                || {
                    update_chunk(c, w.0, g.0, m.0, v.0);
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
                || update_chunk(c, w.0, g.0, m.0, v.0),
            )
        });
    }
}

#[inline(always)]
fn update_chunk(c: Constants, w: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        moments(c, *g, m, v);
        *g = 0.0;
        *w = (*w).mul_add(c.keep, -c.step * *m / v.sqrt().mul_add(c.root, c.eps));
    }
}

/// Both moments of one element after the gradient `g`, which is clipped here.
#[inline(always)]
pub fn moments(c: Constants, g: f32, m: &mut f32, v: &mut f32) {
    let gradient = g * c.clip;
    // lerp, as torch writes it: exact where the moment already equals the gradient.
    *m = (gradient - *m).mul_add(1.0 - c.beta1, *m);
    *v = (gradient * gradient).mul_add(1.0 - c.beta2, *v * c.beta2);
}
