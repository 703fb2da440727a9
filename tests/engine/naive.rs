//! Every operation in its plainest form, over any float type, row by row and term by term.

use super::support::{Pack, factor};
use ctune_dist::engine::op::Dropout;

/// A float type that the plain forms can be computed in.
pub trait Num:
    Copy
    + std::iter::Sum
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
{
    fn of(x: f64) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn tanh(self) -> Self;
    fn error_function(self) -> Self;
}

impl Num for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn tanh(self) -> Self {
        self.tanh()
    }
    /// The series e^(-x^2) 2x / sqrt(pi) sum (2x^2)^k / (1 3 5 .. 2k+1), exact for |x| < 6.
    fn error_function(self) -> Self {
        if self.abs() > 6.0 {
            return self.signum();
        }
        let (mut term, mut total, mut k) = (self, self, 1.0);
        while term.abs() > 1e-17 * total.abs() {
            k += 2.0;
            term *= 2.0 * self * self / k;
            total += term;
        }
        total * (-self * self).exp() * 2.0 / std::f64::consts::PI.sqrt()
    }
}

impl Num for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn tanh(self) -> Self {
        self.tanh()
    }
    fn error_function(self) -> Self {
        f64::from(self).error_function() as f32
    }
}

/// a [m, k] b [k, n] with element functions.
pub fn product<F: Num>(
    (m, n, k): (usize, usize, usize),
    a: impl Fn(usize, usize) -> F,
    b: impl Fn(usize, usize) -> F,
) -> Vec<F> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            out.push((0..k).map(|p| a(i, p) * b(p, j)).sum());
        }
    }
    out
}

/// x [rows, k] Wᵀ + b.
pub fn linear<F: Num>(x: &[F], w: &[F], b: &[F], k: usize) -> Vec<F> {
    let (m, n) = (x.len() / k, b.len());
    let mut y = product((m, n, k), |i, p| x[i * k + p], |p, j| w[j * k + p]);
    y.iter_mut().enumerate().for_each(|(i, y)| *y += b[i % n]);
    y
}

pub fn columns<F: Num>(x: &[F], n: usize) -> Vec<F> {
    (0..n).map(|j| x.iter().skip(j).step_by(n).copied().sum()).collect()
}

pub fn gelu<F: Num>(x: F) -> F {
    x * F::of(0.5) * (F::of(1.0) + (x / F::of(2.0).sqrt()).error_function())
}

pub fn gelu_slope<F: Num>(x: F) -> F {
    let cdf = F::of(0.5) * (F::of(1.0) + (x / F::of(2.0).sqrt()).error_function());
    cdf + x * (-x * x * F::of(0.5)).exp() / F::of(2.0 * std::f64::consts::PI).sqrt()
}

/// A LayerNorm's parameters.
#[derive(Clone)]
pub struct Norm<F> {
    pub gamma: Vec<F>,
    pub beta: Vec<F>,
    pub eps: F,
}

pub fn moments<F: Num>(row: &[F], eps: F) -> (F, F) {
    let n = F::of(row.len() as f64);
    let mean = row.iter().copied().sum::<F>() / n;
    let var = row.iter().map(|&x| (x - mean) * (x - mean)).sum::<F>() / n;
    (mean, F::of(1.0) / (var + eps).sqrt())
}

pub fn norm<F: Num>(x: &[F], p: &Norm<F>) -> Vec<F> {
    let h = p.gamma.len();
    x.chunks(h)
        .flat_map(|row| {
            let (mean, rstd) = moments(row, p.eps);
            (0..h).map(move |i| (row[i] - mean) * rstd * p.gamma[i] + p.beta[i])
        })
        .collect()
}

/// (dx, dgamma, dbeta).
pub fn norm_backward<F: Num>(x: &[F], p: &Norm<F>, dout: &[F]) -> (Vec<F>, Vec<F>, Vec<F>) {
    let h = p.gamma.len();
    let (mut dx, mut dgamma) = (vec![], vec![F::of(0.0); h]);
    for (row, d) in x.chunks(h).zip(dout.chunks(h)) {
        let (mean, rstd) = moments(row, p.eps);
        let hat: Vec<F> = row.iter().map(|&x| (x - mean) * rstd).collect();
        let g: Vec<F> = d.iter().zip(&p.gamma).map(|(&d, &g)| d * g).collect();
        let n = F::of(h as f64);
        let a = g.iter().copied().sum::<F>() / n;
        let b = g.iter().zip(&hat).map(|(&g, &x)| g * x).sum::<F>() / n;
        for i in 0..h {
            dx.push(rstd * (g[i] - a - hat[i] * b));
            dgamma[i] += d[i] * hat[i];
        }
    }
    (dx, dgamma, columns(dout, h))
}

pub fn times<F: Num>(a: &[F], b: &[F]) -> Vec<F> {
    a.iter().zip(b).map(|(&a, &b)| a * b).collect()
}

/// Attention's sizes and keys.
pub struct Attention<'a> {
    pub pack: &'a Pack,
    pub heads: usize,
    pub size: usize,
    pub drop: Dropout,
}

impl Attention<'_> {
    fn hidden(&self) -> usize {
        self.heads * self.size
    }

    fn factor<F: Num>(&self, sequence: usize, i: usize, j: usize, head: usize) -> F {
        let counter =
            [self.pack.samples[sequence], i as u32 | (j as u32 / 8) << 16, self.pack.epoch, head as u32];
        if self.drop.threshold == 0 { F::of(1.0) } else { factor(self.drop, counter, j as u32) }
    }

    /// Calls `each(sequence, head, i, keys' probabilities, lse)`; rows are of the whole pack.
    fn rows<F: Num>(&self, qkv: &[F], mut each: impl FnMut(usize, usize, usize, usize, &[F], F)) {
        let (h, d) = (self.hidden(), self.size);
        for sequence in 0..self.pack.samples.len() {
            let (from, to) =
                (self.pack.cu_seqlens[sequence] as usize, self.pack.cu_seqlens[sequence + 1] as usize);
            for head in 0..self.heads {
                for i in from..to {
                    let score = |j: usize| {
                        let (q, k) = (&qkv[i * 3 * h + head * d..], &qkv[j * 3 * h + h + head * d..]);
                        (0..d).map(|c| q[c] * k[c]).sum::<F>() / F::of(d as f64).sqrt()
                    };
                    let scores: Vec<F> = (from..to).map(score).collect();
                    let top = scores.iter().copied().fold(scores[0], |a, b| if b > a { b } else { a });
                    let total: F = scores.iter().map(|&s| (s - top).exp()).sum();
                    let p: Vec<F> = scores.iter().map(|&s| (s - top).exp() / total).collect();
                    each(sequence, head, from, i, &p, top + total.ln());
                }
            }
        }
    }

    /// (out [T, H], lse [T, A]).
    pub fn forward<F: Num>(&self, qkv: &[F]) -> (Vec<F>, Vec<F>) {
        let (h, d, t) = (self.hidden(), self.size, self.pack.tokens());
        let (mut out, mut lse) = (vec![F::of(0.0); t * h], vec![F::of(0.0); t * self.heads]);
        self.rows(qkv, |sequence, head, from, i, p, row_lse| {
            lse[i * self.heads + head] = row_lse;
            for (j, &p) in p.iter().enumerate() {
                let p = p * self.factor::<F>(sequence, i - from, j, head);
                for c in 0..d {
                    out[i * h + head * d + c] += p * qkv[(from + j) * 3 * h + 2 * h + head * d + c];
                }
            }
        });
        (out, lse)
    }

    /// dqkv [T, 3H].
    pub fn backward<F: Num>(&self, qkv: &[F], dout: &[F]) -> Vec<F> {
        let (h, d) = (self.hidden(), self.size);
        let mut dqkv = vec![F::of(0.0); qkv.len()];
        self.rows(qkv, |sequence, head, from, i, p, _| {
            let at = |row: usize, which: usize, c: usize| row * 3 * h + which * h + head * d + c;
            let mut dp = vec![];
            for (j, &p) in p.iter().enumerate() {
                let f = self.factor::<F>(sequence, i - from, j, head);
                let mut sum = F::of(0.0);
                for c in 0..d {
                    let dout = dout[i * h + head * d + c];
                    sum += dout * qkv[at(from + j, 2, c)];
                    dqkv[at(from + j, 2, c)] += p * f * dout;
                }
                dp.push(sum * f);
            }
            let delta: F = p.iter().zip(&dp).map(|(&p, &d)| p * d).sum();
            for (j, (&p, &dp)) in p.iter().zip(&dp).enumerate() {
                let ds = p * (dp - delta) / F::of(d as f64).sqrt();
                for c in 0..d {
                    dqkv[at(i, 0, c)] += ds * qkv[at(from + j, 1, c)];
                    dqkv[at(from + j, 1, c)] += ds * qkv[at(i, 0, c)];
                }
            }
        });
        dqkv
    }
}

/// (loss, scale * (softmax - onehot)) of one row.
pub fn cross_entropy<F: Num>(row: &[F], label: usize, scale: F) -> (F, Vec<F>) {
    let top = row.iter().copied().fold(row[0], |a, b| if b > a { b } else { a });
    let total: F = row.iter().map(|&x| (x - top).exp()).sum();
    let mut gradient: Vec<F> = row.iter().map(|&x| scale * (x - top).exp() / total).collect();
    gradient[label] -= scale;
    (total.ln() - (row[label] - top), gradient)
}
