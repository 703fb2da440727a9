//! LayerNorm rows, alone and fused with bias, dropout and residual: every row is read and written
//! once while it is in the first-level cache.

use super::buffer::{Pool, Scratch};
use super::dropout::row_factors;
use super::math::{sum, sum2, sum3};
use super::tasks::{In, Out, Partials, add_partials, each, vectorised};
use super::widen::{copy, fresh, open, rooms, settle, size, store, widen};
use crate::engine::{Dropout, Real};
use pulp::Arch;
use std::borrow::Cow;

/// Rows of one task, and of one partial sum of a parameter's gradient.
pub const CHUNK: usize = 32;

/// What keys the dropout of packed rows.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// [T]
    pub samples: &'a [u32],
    /// [T]
    pub positions: &'a [u32],
    pub epoch: u32,
}

/// Gamma [H], beta [H] and epsilon of a LayerNorm.
pub struct Affine<'a> {
    pub gamma: Cow<'a, [f32]>,
    pub beta: Cow<'a, [f32]>,
    pub eps: f32,
}

/// (mean, 1 / sqrt(var + eps)) of a row, in two passes over it.
#[inline(always)]
pub fn moments(row: &[f32], eps: f32) -> [f32; 2] {
    let n = row.len() as f32;
    let mean = sum(row, |x| x) / n;
    let var = sum(row, |x| (x - mean) * (x - mean)) / n;
    [mean, 1.0 / (var + eps).sqrt()]
}

/// out = (row - mean) rstd gamma + beta.
#[inline(always)]
pub fn normalise(row: &[f32], [mean, rstd]: [f32; 2], affine: &Affine<'_>, out: &mut [f32]) {
    for (((out, &x), &gamma), &beta) in out.iter_mut().zip(row).zip(&*affine.gamma).zip(&*affine.beta) {
        *out = ((x - mean) * rstd).mul_add(gamma, beta);
    }
}

/// dx of one row from dout; adds to dgamma and dbeta. `dx` may not alias.
#[inline(always)]
pub fn backward_row(
    row: &[f32],
    [mean, rstd]: [f32; 2],
    gamma: &[f32],
    dout: &[f32],
    dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let n = row.len() as f32;
    let a = sum2(dout, gamma, |d, g| d * g) / n;
    let b = sum3(dout, gamma, row, |d, g, x| d * g * ((x - mean) * rstd)) / n;
    for (((dx, &d), &g), &x) in dx.iter_mut().zip(dout).zip(gamma).zip(row) {
        let hat = (x - mean) * rstd;
        *dx = rstd * (-hat).mul_add(b, d.mul_add(g, -a));
    }
    for (((dgamma, dbeta), &d), &x) in dgamma.iter_mut().zip(dbeta.iter_mut()).zip(dout).zip(row) {
        *dgamma = d.mul_add((x - mean) * rstd, *dgamma);
        *dbeta += d;
    }
}

/// row *= factors of (sample, position); nothing without dropout.
#[inline(always)]
pub fn drop_row(drop: &Dropout, keys: Keys<'_>, at: usize, factors: &mut [f32], row: &mut [f32]) {
    if drop.threshold > 0 {
        row_factors(drop, keys.samples[at], keys.positions[at], keys.epoch, factors);
        for (x, &f) in row.iter_mut().zip(&*factors) {
            *x *= f;
        }
    }
}

/// out = LayerNorm(x); all [rows, H], `stats` [rows, 2].
pub fn forward<R: Real>(
    arch: Arch,
    pool: &Pool,
    x: &[R],
    affine: &Affine<'_>,
    stats: &mut [f32],
    out: &mut [R],
) {
    let h = affine.gamma.len();
    each((In(x, h), Out(stats, 2), Out(out, h)), CHUNK, &|_, (x, stats, out)| {
        let mut scratch = pool.take(size::<R>(2 * h));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let [x_room, out_room] = rooms::<R, 2>(&mut scratch, h);
                let stats = stats.0.as_chunks_mut::<2>().0;
                for ((x, stats), out) in x.0.chunks_exact(h).zip(stats).zip(out.0.chunks_exact_mut(h)) {
                    let x = widen(x, x_room);
                    *stats = moments(x, affine.eps);
                    normalise(x, *stats, affine, fresh(out, out_room));
                    store(out_room, out);
                }
            },
        );
    });
}

/// In place: d becomes the gradient of x. Returns partial sums [chunks, 3H], to be added by
/// `add_block`: dgamma, dbeta, and H columns of scratch.
pub fn backward<'a, R: Real>(
    arch: Arch,
    pool: &'a Pool,
    x: &[R],
    gamma: &[f32],
    stats: &[f32],
    d: &mut [R],
) -> Scratch<'a> {
    let h = gamma.len();
    let rows = x.len() / h;
    let width = 3 * h;
    let mut scratch = pool.take(Partials::size(rows, CHUNK, width));
    let partials = Partials::new(&mut scratch, rows, CHUNK, width);
    each((In(x, h), In(stats, 2), Out(d, h), partials), CHUNK, &|_, (x, stats, d, mut partial)| {
        let mut scratch = pool.take(size::<R>(2 * h));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let (dgamma, rest) = partial.row().split_at_mut(h);
                let (dbeta, dout) = rest.split_at_mut(h);
                let [x_room, d_room] = rooms::<R, 2>(&mut scratch, h);
                let stats = stats.0.as_chunks::<2>().0;
                for ((x, &stats), d) in x.0.chunks_exact(h).zip(stats).zip(d.0.chunks_exact_mut(h)) {
                    let x = widen(x, x_room);
                    copy(d, dout);
                    backward_row(x, stats, gamma, dout, fresh(d, d_room), dgamma, dbeta);
                    store(d_room, d);
                }
            },
        );
    });
    scratch
}

/// y = residual + dropout(y + bias), out = LayerNorm(y); all [T, H]. The moments are those of y as
/// it is kept, so that `forward` of it gives the same.
#[allow(clippy::too_many_arguments)]
pub fn residual_forward<R: Real>(
    arch: Arch,
    pool: &Pool,
    keys: Keys<'_>,
    drop: Dropout,
    bias: &[f32],
    affine: &Affine<'_>,
    residual: &[R],
    y: &mut [R],
    stats: &mut [f32],
    out: &mut [R],
) {
    let h = bias.len();
    let rows = (In(residual, h), Out(y, h), Out(stats, 2), Out(out, h));
    each(rows, CHUNK, &|first, (residual, y, stats, out)| {
        let mut factors = pool.take(h);
        let mut scratch = pool.take(size::<R>(2 * h));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let [y_room, out_room] = rooms::<R, 2>(&mut scratch, h);
                let rows = residual.0.chunks_exact(h).zip(y.0.chunks_exact_mut(h));
                let outs = stats.0.as_chunks_mut::<2>().0.iter_mut().zip(out.0.chunks_exact_mut(h));
                for (i, ((residual, kept), (stats, out))) in rows.zip(outs).enumerate() {
                    let y = open(kept, y_room);
                    for (y, &b) in y.iter_mut().zip(bias) {
                        *y += b;
                    }
                    drop_row(&drop, keys, first + i, &mut factors, y);
                    for (y, &r) in y.iter_mut().zip(residual) {
                        *y += r.to_f32();
                    }
                    let y = settle(y_room, kept);
                    *stats = moments(y, affine.eps);
                    normalise(y, *stats, affine, fresh(out, out_room));
                    store(out_room, out);
                }
            },
        );
    });
}

/// dresidual = the gradient of y, dy = the same through the dropout. Returns partial sums
/// [chunks, 3H], to be added by `add_block`: dgamma, dbeta, dbias.
#[allow(clippy::too_many_arguments)]
pub fn residual_backward<'a, R: Real>(
    arch: Arch,
    pool: &'a Pool,
    keys: Keys<'_>,
    drop: Dropout,
    gamma: &[f32],
    y: &[R],
    stats: &[f32],
    dout: &[R],
    dresidual: &mut [R],
    dy: &mut [R],
) -> Scratch<'a> {
    let h = gamma.len();
    let rows = y.len() / h;
    let width = 3 * h;
    let mut scratch = pool.take(Partials::size(rows, CHUNK, width));
    let partials = Partials::new(&mut scratch, rows, CHUNK, width);
    let all = (In(y, h), In(stats, 2), In(dout, h), Out(dresidual, h), Out(dy, h), partials);
    each(all, CHUNK, &|first, (y, stats, dout, dresidual, dy, mut partial)| {
        let mut factors = pool.take(h);
        let mut scratch = pool.take(size::<R>(4 * h));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let [y_room, dout_room, dresidual_room, dy_room] = rooms::<R, 4>(&mut scratch, h);
                let (dgamma, rest) = partial.row().split_at_mut(h);
                let (dbeta, dbias) = rest.split_at_mut(h);
                let inputs = y.0.chunks_exact(h).zip(stats.0.as_chunks::<2>().0).zip(dout.0.chunks_exact(h));
                let outputs = dresidual.0.chunks_exact_mut(h).zip(dy.0.chunks_exact_mut(h));
                for (i, (((y, &stats), dout), (dresidual, dy))) in inputs.zip(outputs).enumerate() {
                    let (y, dout) = (widen(y, y_room), widen(dout, dout_room));
                    let d = fresh(dresidual, dresidual_room);
                    backward_row(y, stats, gamma, dout, d, dgamma, dbeta);
                    let through = fresh(dy, dy_room);
                    through.copy_from_slice(d);
                    drop_row(&drop, keys, first + i, &mut factors, through);
                    for (sum, &d) in dbias.iter_mut().zip(&*through) {
                        *sum += d;
                    }
                    store(dresidual_room, dresidual);
                    store(dy_room, dy);
                }
            },
        );
    });
    scratch
}

/// Adds columns `block * H..` of partial sums [chunks, 3H] to a gradient [H].
pub fn add_block(partials: &[f32], hidden: usize, block: usize, gradient: &mut [f32]) {
    add_partials(partials, 3 * hidden, block * hidden, gradient);
}
