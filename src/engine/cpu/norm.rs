//! LayerNorm, a row at a time: what the passes of `rows` and `embedding` share.

use super::buffer::{Buffer, Pool, Scratch};
use super::checks::{parameters, part};
use super::device::Cpu;
use super::dropout::row_factors;
use super::machine::Operand;
use super::math::{sum, sum2, sum3};
use super::tasks::{Partials, add_partials};
use crate::Result;
use crate::engine::op::{Dropout, NormAt};
use crate::engine::{DeviceBatch, Real};
use std::borrow::Cow;

/// Rows of one task, and of one partial sum of a parameter's gradient.
pub const CHUNK: usize = 32;

/// The arrays that key the dropout of packed rows.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// [T]
    pub samples: &'a [u32],
    /// [T]
    pub positions: &'a [u32],
    pub epoch: u32,
}

impl<'a> Keys<'a> {
    pub fn of<R: Operand>(batch: &'a DeviceBatch<Cpu<R>>) -> Result<Self> {
        Ok(Self {
            samples: part("row_sample", &batch.row_sample, 0, batch.tokens)?,
            positions: part("positions", &batch.positions, 0, batch.tokens)?,
            epoch: batch.epoch,
        })
    }
}

/// Gamma [H], beta [H] and epsilon of a LayerNorm.
pub struct Affine<'a> {
    pub gamma: Cow<'a, [f32]>,
    pub beta: Cow<'a, [f32]>,
    pub eps: f32,
}

impl<'a> Affine<'a> {
    pub fn of<R: Real>(weights: &'a Buffer<R>, at: NormAt) -> Result<Self> {
        Ok(Self {
            gamma: parameters("gamma", weights, at.gamma, at.hidden)?,
            beta: parameters("beta", weights, at.beta, at.hidden)?,
            eps: at.eps,
        })
    }
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

/// dx of one row from dout; adds to [dgamma, dbeta]. `dx` may not alias.
#[inline(always)]
pub fn backward_row(
    row: &[f32],
    [mean, rstd]: [f32; 2],
    gamma: &[f32],
    dout: &[f32],
    dx: &mut [f32],
    [dgamma, dbeta]: [&mut [f32]; 2],
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

/// The gradients of three parameters [H] that a backward pass sums over rows: gamma, beta and a third. Each
/// chunk of rows has its own sum.
pub struct Sums<'a> {
    /// [chunks, 3, H]
    scratch: Scratch<'a>,
    rows: usize,
    hidden: usize,
}

impl<'a> Sums<'a> {
    pub fn new(pool: &'a Pool, rows: usize, hidden: usize) -> Self {
        Self { scratch: pool.take(Partials::size(rows, CHUNK, 3 * hidden)), rows, hidden }
    }

    /// Zeros, a row [3, H] for each chunk.
    pub fn partials(&mut self) -> Partials<'_> {
        Partials::new(&mut self.scratch, self.rows, CHUNK, 3 * self.hidden)
    }

    /// Adds the sums of parameter `which`, from 0, to its gradient [H], in the order of the chunks.
    pub fn add_to(&self, which: usize, gradient: &mut [f32]) {
        add_partials(&self.scratch, 3 * self.hidden, which * self.hidden, gradient);
    }
}
