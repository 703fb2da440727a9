//! The yardstick of attention in a narrow type, for every engine.

use super::support::{Pack, factor, held};
use ctune_dist::engine::Real;
use ctune_dist::engine::op::Dropout;

/// `x` as R keeps it.
fn one<R: Real>(x: f32) -> f32 {
    R::from_f32(x).to_f32()
}

/// Attention as one would write it with whole matrices in type R: products and softmax in f32, every
/// intermediate stored in R. The yardstick of the error rule.
pub struct Stored<'a> {
    pub pack: &'a Pack,
    pub heads: usize,
    pub size: usize,
    pub drop: Dropout,
}

/// Results of one head of one sequence, [s, D] each.
struct Head {
    out: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Stored<'_> {
    /// a [m, k] b [n, k]ᵀ, stored in R.
    fn product<R: Real>(
        (m, n, k): (usize, usize, usize),
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
    ) -> Vec<f32> {
        (0..m * n).map(|at| one::<R>((0..k).map(|p| a(at / n, p) * b(at % n, p)).sum())).collect()
    }

    fn head<R: Real>(&self, qkv: &[f32], dout: &[f32], sequence: usize, head: usize) -> Head {
        let (d, h) = (self.size, self.heads * self.size);
        let from = self.pack.cu_seqlens[sequence] as usize;
        let s = self.pack.cu_seqlens[sequence + 1] as usize - from;
        let x = |which: usize, i: usize, c: usize| qkv[(from + i) * 3 * h + which * h + head * d + c];
        let dout = |i: usize, c: usize| dout[(from + i) * h + head * d + c];
        let factor = |i: usize, j: usize| -> f32 {
            let counter =
                [self.pack.samples[sequence], i as u32 | (j as u32 / 8) << 16, self.pack.epoch, head as u32];
            if self.drop.threshold == 0 { 1.0 } else { factor(self.drop, counter, j as u32) }
        };
        let scale = 1.0 / (d as f32).sqrt();
        let scores = Self::product::<R>((s, s, d), |i, c| x(0, i, c), |j, c| x(1, j, c));
        let (mut p, mut dropped) = (vec![], vec![]);
        for (i, row) in scores.chunks(s).enumerate() {
            let row = held::<R>(&row.iter().map(|x| x * scale).collect::<Vec<_>>());
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = row.iter().map(|x| (x - top).exp()).sum();
            p.extend(row.iter().map(|x| one::<R>((x - top).exp() / total)));
            dropped.extend((0..s).map(|j| one::<R>(p[i * s + j] * factor(i, j))));
        }
        let out = Self::product::<R>((s, d, s), |i, j| dropped[i * s + j], |c, j| x(2, j, c));
        let dv = Self::product::<R>((s, d, s), |j, i| dropped[i * s + j], |c, i| dout(i, c));
        let mut ds = Self::product::<R>((s, s, d), dout, |j, c| x(2, j, c));
        for (i, (row, p)) in ds.chunks_mut(s).zip(p.chunks(s)).enumerate() {
            row.iter_mut().enumerate().for_each(|(j, x)| *x = one::<R>(*x * factor(i, j)));
            let delta: f32 = row.iter().zip(p).map(|(x, p)| x * p).sum();
            row.iter_mut().zip(p).for_each(|(x, p)| *x = one::<R>(one::<R>(p * (*x - delta)) * scale));
        }
        let dq = Self::product::<R>((s, d, s), |i, j| ds[i * s + j], |c, j| x(1, j, c));
        let dk = Self::product::<R>((s, d, s), |j, i| ds[i * s + j], |c, i| x(0, i, c));
        Head { out, dq, dk, dv }
    }

    /// (out [T, H], dqkv [T, 3H])
    pub fn both<R: Real>(&self, qkv: &[f32], dout: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (d, h, t) = (self.size, self.heads * self.size, self.pack.tokens());
        let (mut out, mut dqkv) = (vec![0.0; t * h], vec![0.0; 3 * t * h]);
        for sequence in 0..self.pack.samples.len() {
            let from = self.pack.cu_seqlens[sequence] as usize;
            for head in 0..self.heads {
                let r = self.head::<R>(qkv, dout, sequence, head);
                for (i, row) in r.out.chunks(d).enumerate() {
                    out[(from + i) * h + head * d..][..d].copy_from_slice(row);
                }
                for (which, values) in [r.dq, r.dk, r.dv].iter().enumerate() {
                    for (i, row) in values.chunks(d).enumerate() {
                        dqkv[(from + i) * 3 * h + which * h + head * d..][..d].copy_from_slice(row);
                    }
                }
            }
        }
        (out, dqkv)
    }
}

/// Columns of q (0), k (1) or v (2) of [T, 3H].
pub fn pick<T: Copy>(values: &[T], which: usize, h: usize) -> Vec<T> {
    values.chunks(3 * h).flat_map(|row| row[which * h..(which + 1) * h].to_vec()).collect()
}
