//! The two passes of a LAMB update over the arenas (You et al. 2020, algorithm 2). Between them the
//! norms of a tensor that several ranks share are summed, so the direction has to be kept: it takes
//! the gradient's place.

use super::adamw::{self, CHUNK, Constants};
use super::buffer::Pool;
use super::tasks::{In, Out, each, vectorised};
use super::widen::round;
use crate::engine::{AdamW, ParamGroup, Real};
use pulp::Arch;

/// Updates the moments of one slice of a group and replaces its gradient by the direction
/// r = m' / (sqrt(v') + eps) + decay * w, m' and v' corrected for their bias. Returns the sums of
/// w^2 and r^2.
pub fn direction(
    arch: Arch,
    pool: &Pool,
    update: AdamW,
    group: &ParamGroup,
    norm_sq: f32,
    (weights, grads): (&[f32], &mut [f32]),
    (moment1, moment2): (&mut [f32], &mut [f32]),
) -> [f64; 2] {
    if !norm_sq.is_finite() {
        grads.fill(0.0);
        return [0.0; 2];
    }
    // lr 1: the learning rate belongs to the second pass, and decay is part of the direction.
    let c =
        Constants::new(AdamW { lr: 1.0, ..update }, &ParamGroup { lr_scale: 1.0, ..group.clone() }, norm_sq);
    let decay = if group.decay { update.weight_decay } else { 0.0 };
    let all = (In(weights, 1), Out(&mut *grads, 1), Out(moment1, 1), Out(moment2, 1));
    each(all, CHUNK, &|_, (w, g, m, v)| {
        vectorised(
            arch,
            #[inline(always)]
            || direction_chunk(c, decay, w.0, g.0, m.0, v.0),
        )
    });
    [adamw::sum_squares(arch, pool, weights), adamw::sum_squares(arch, pool, grads)]
}

#[inline(always)]
fn direction_chunk(c: Constants, decay: f32, w: &[f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    for (((w, g), m), v) in w.iter().zip(g).zip(m).zip(v) {
        adamw::moments(c, *g, m, v);
        *g = w.mul_add(decay, c.step * *m / v.sqrt().mul_add(c.root, c.eps));
    }
}

/// lr * lr_scale * trust ratio of a group. The ratio |w| / |r| is 1 where a norm is 0 and for what
/// is not decayed (biases, LayerNorms), as in the authors' code.
pub fn step_size(update: AdamW, group: &ParamGroup, [weights_sq, direction_sq]: [f32; 2]) -> f32 {
    let lr = f64::from(update.lr) * f64::from(group.lr_scale);
    let ratio = if group.decay && weights_sq > 0.0 && direction_sq > 0.0 {
        (f64::from(weights_sq) / f64::from(direction_sq)).sqrt()
    } else {
        1.0
    };
    (lr * ratio) as f32
}

/// w -= step * r for one slice of a group; `weights` and `master` as in `adamw::update_slice`.
pub fn apply<R: Real>(arch: Arch, step: f32, (weights, master): (&mut [R], &mut [f32]), direction: &[f32]) {
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
