//! Multi-head attention over packed sequences. A task is one head of one sequence: its keys and
//! values are brought into the layout of the tile once, then queries are worked on a block at a
//! time, so that scores never leave the second-level cache. The backward pass draws the
//! probabilities again from the kept log-sum-exp (Dao et al. 2022).

use super::buffer::Pool;
use super::dropout::attention_factors;
use super::loss::exp_in_place;
use super::math::{exp, max, sum2};
use super::tasks::{Shared, each_index};
use super::tile::{View, product};
use crate::engine::{Dropout, Heads};
use pulp::{Arch, Simd, WithSimd};

/// Most queries of a block.
const QUERIES: usize = 96;

/// What both directions need to know.
#[derive(Clone, Copy)]
pub struct Layout<'a> {
    pub heads: Heads,
    pub drop: Dropout,
    /// [S + 1]
    pub cu_seqlens: &'a [u32],
    /// [S]
    pub samples: &'a [u32],
    pub epoch: u32,
}

/// Sizes of one task.
#[derive(Clone, Copy)]
struct Sizes {
    /// Tokens of the sequence.
    s: usize,
    /// s, up to the next 16.
    keys: usize,
    /// D.
    d: usize,
    /// D, up to the next 16.
    wide: usize,
    /// Queries of a block.
    block: usize,
}

impl Sizes {
    fn new(s: usize, d: usize) -> Self {
        let blocks = s.div_ceil(QUERIES).max(1);
        let block = s.div_ceil(blocks).next_multiple_of(8);
        Self { s, keys: s.next_multiple_of(16), d, wide: d.next_multiple_of(16), block }
    }

    fn forward_scratch(self) -> usize {
        self.keys * self.wide * 2 + self.block * (2 * self.keys + self.wide)
    }

    fn backward_scratch(self) -> usize {
        self.keys * self.wide * 5 + self.block * (3 * self.keys + 3 * self.wide)
    }
}

/// Which head of which sequence, and where its rows are.
#[derive(Clone, Copy)]
struct Task<'a> {
    layout: Layout<'a>,
    sizes: Sizes,
    /// First row of the sequence.
    row: usize,
    sample: u32,
    head: usize,
}

impl<'a> Task<'a> {
    fn new(layout: Layout<'a>, index: usize) -> Self {
        let (sequence, head) = (index / layout.heads.heads, index % layout.heads.heads);
        let row = layout.cu_seqlens[sequence] as usize;
        let s = layout.cu_seqlens[sequence + 1] as usize - row;
        let sizes = Sizes::new(s, layout.heads.size);
        Self { layout, sizes, row, sample: layout.samples[sequence], head }
    }

    /// H
    fn hidden(&self) -> usize {
        self.layout.heads.heads * self.layout.heads.size
    }

    fn scale(&self) -> f32 {
        1.0 / (self.sizes.d as f32).sqrt()
    }

    /// Where row `i`'s part of this head starts: in q (0), k (1) or v (2) of qkv [T, 3H].
    #[inline(always)]
    fn at(&self, i: usize, which: usize) -> usize {
        (self.row + i) * 3 * self.hidden() + which * self.hidden() + self.head * self.sizes.d
    }

    /// Where row `i`'s part of this head starts in [T, H].
    #[inline(always)]
    fn at_hidden(&self, i: usize) -> usize {
        (self.row + i) * self.hidden() + self.head * self.sizes.d
    }

    #[inline(always)]
    fn draw(&self, first_query: usize, out: &mut [f32]) {
        let (layout, blocks) = (&self.layout, (self.sizes.keys / 8) as u32);
        attention_factors(
            &layout.drop,
            self.sample,
            layout.epoch,
            self.head as u32,
            first_query as u32,
            blocks,
            out,
        );
    }
}

/// Copies rows of D values into rows of `wide`, times `scale`, zeros behind.
#[inline(always)]
fn gather(from: &[f32], at: impl Fn(usize) -> usize, d: usize, scale: f32, wide: usize, to: &mut [f32]) {
    for (i, to) in to.chunks_exact_mut(wide).enumerate() {
        let (to, behind) = to.split_at_mut(d);
        let row = &from[at(i)..][..d];
        // The next task's head lies right behind: its lines arrive while this one is worked on
        // (rows are too far apart for the hardware to foresee).
        prefetch(row.as_ptr_range().end, d);
        for (to, &x) in to.iter_mut().zip(row) {
            *to = x * scale;
        }
        behind.fill(0.0);
    }
}

/// Asks for `len` values from `start` on; any address is allowed.
#[inline(always)]
fn prefetch(start: *const f32, len: usize) {
    for at in (0..len).step_by(16) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch reads nothing that the program could see and never faults.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast());
        }
    }
}

/// to [D, keys] = from [s, wide] transposed, zeros behind s. `wide` is a multiple of 4.
#[inline(always)]
fn transpose(from: &[f32], s: usize, wide: usize, keys: usize, to: &mut [f32]) {
    for (four, to) in to.chunks_mut(4 * keys).enumerate() {
        let mut column = [[0.0; 4]; 4];
        for j in (0..keys).step_by(4) {
            for (row, at) in column.iter_mut().zip(j..) {
                *row = [0.0; 4];
                if at < s {
                    row.copy_from_slice(&from[at * wide + 4 * four..][..4]);
                }
            }
            for (c, to) in to.chunks_exact_mut(keys).enumerate() {
                to[j..j + 4].copy_from_slice(&column.map(|row| row[c]));
            }
        }
    }
}

/// out [T, H] and lse [T, A] from qkv [T, 3H].
pub fn forward(arch: Arch, pool: &Pool, layout: Layout<'_>, qkv: &[f32], lse: &mut [f32], out: &mut [f32]) {
    let (lse, out) = (Shared::new(lse), Shared::new(out));
    let sequences = layout.samples.len();
    each_index(sequences * layout.heads.heads, &|index| {
        let task = Task::new(layout, index);
        let mut scratch = pool.take(task.sizes.forward_scratch());
        arch.dispatch(Forward { task, qkv, lse, out, scratch: &mut scratch });
    });
}

struct Forward<'a> {
    task: Task<'a>,
    qkv: &'a [f32],
    lse: Shared<'a>,
    out: Shared<'a>,
    scratch: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, qkv, lse, out, scratch } = self;
        let Sizes { s, keys, d, wide, block } = task.sizes;
        let (kt, rest) = scratch.split_at_mut(keys * wide);
        let (v, rest) = rest.split_at_mut(keys * wide);
        let (scores, rest) = rest.split_at_mut(block * keys);
        let (factors, result) = rest.split_at_mut(block * keys);
        gather(qkv, |i| task.at(i, 1), d, task.scale(), wide, &mut v[..s * wide]);
        transpose(v, s, wide, keys, &mut kt[..d * keys]);
        gather(qkv, |i| task.at(i, 2), d, 1.0, wide, &mut v[..s * wide]);
        for first in (0..s).step_by(block) {
            let n = block.min(s - first);
            let q = View { data: &qkv[task.at(first, 0)..], rows: 3 * task.hidden(), columns: 1 };
            product(simd, (n, keys, d), q, kt, keys, scores, keys, false);
            let mut totals = [1.0; QUERIES];
            for (i, (row, total)) in scores.chunks_exact_mut(keys).take(n).zip(&mut totals).enumerate() {
                row[s..].fill(f32::NEG_INFINITY);
                let top = max(row);
                *total = exp_in_place(row, top);
                row[s..].fill(0.0);
                // SAFETY: one row's entry of one head belongs to one task.
                let lse =
                    unsafe { lse.part((task.row + first + i) * task.layout.heads.heads + task.head, 1) };
                lse[0] = top + total.ln();
            }
            if task.layout.drop.threshold > 0 {
                task.draw(first, &mut factors[..n * keys]);
                for (p, &f) in scores[..n * keys].iter_mut().zip(&*factors) {
                    *p *= f;
                }
            }
            product(simd, (n, wide, s), View::rows(scores, keys), v, wide, result, wide, false);
            for (i, (row, &total)) in result.chunks_exact(wide).zip(&totals).take(n).enumerate() {
                let factor = 1.0 / total;
                // SAFETY: one row's part of one head belongs to one task.
                let out = unsafe { out.part(task.at_hidden(first + i), d) };
                for (out, &x) in out.iter_mut().zip(row) {
                    *out = x * factor;
                }
            }
        }
    }
}

/// What the backward pass reads.
#[derive(Clone, Copy)]
pub struct Kept<'a> {
    /// [T, 3H]
    pub qkv: &'a [f32],
    /// [T, A]
    pub lse: &'a [f32],
    /// [T, H]
    pub out: &'a [f32],
    /// [T, H]
    pub dout: &'a [f32],
}

/// dqkv [T, 3H], overwritten.
pub fn backward(arch: Arch, pool: &Pool, layout: Layout<'_>, kept: Kept<'_>, dqkv: &mut [f32]) {
    let dqkv = Shared::new(dqkv);
    let sequences = layout.samples.len();
    each_index(sequences * layout.heads.heads, &|index| {
        let task = Task::new(layout, index);
        let mut scratch = pool.take(task.sizes.backward_scratch());
        arch.dispatch(Backward { task, kept, dqkv, scratch: &mut scratch });
    });
}

struct Backward<'a> {
    task: Task<'a>,
    kept: Kept<'a>,
    dqkv: Shared<'a>,
    scratch: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, kept, dqkv, scratch } = self;
        let Sizes { s, keys, d, wide, block } = task.sizes;
        let (k, rest) = scratch.split_at_mut(keys * wide);
        let (kt, rest) = rest.split_at_mut(keys * wide);
        let (vt, rest) = rest.split_at_mut(keys * wide);
        let (dk, rest) = rest.split_at_mut(keys * wide);
        let (dv, rest) = rest.split_at_mut(keys * wide);
        let (p, rest) = rest.split_at_mut(block * keys);
        let (ds, rest) = rest.split_at_mut(block * keys);
        let (factors, rest) = rest.split_at_mut(block * keys);
        let (q, rest) = rest.split_at_mut(block * wide);
        let (dout, dq) = rest.split_at_mut(block * wide);
        gather(kept.qkv, |i| task.at(i, 2), d, 1.0, wide, &mut k[..s * wide]);
        transpose(k, s, wide, keys, &mut vt[..d * keys]);
        gather(kept.qkv, |i| task.at(i, 1), d, task.scale(), wide, &mut k[..s * wide]);
        transpose(k, s, wide, keys, &mut kt[..d * keys]);
        for first in (0..s).step_by(block) {
            let n = block.min(s - first);
            gather(kept.qkv, |i| task.at(first + i, 0), d, 1.0, wide, &mut q[..n * wide]);
            gather(kept.dout, |i| task.at_hidden(first + i), d, 1.0, wide, &mut dout[..n * wide]);
            product(simd, (n, keys, d), View::rows(q, wide), kt, keys, p, keys, false);
            product(simd, (n, keys, d), View::rows(dout, wide), vt, keys, ds, keys, false);
            if task.layout.drop.threshold > 0 {
                task.draw(first, &mut factors[..n * keys]);
            } else {
                factors[..n * keys].fill(1.0);
            }
            let rows =
                p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).zip(factors.chunks_exact(keys));
            for (i, ((p, ds), factors)) in rows.take(n).enumerate() {
                let lse = kept.lse[(task.row + first + i) * task.layout.heads.heads + task.head];
                let out = &kept.out[task.at_hidden(first + i)..][..d];
                let delta = sum2(out, &dout[i * wide..][..d], |a, b| a * b);
                score_gradient(p, ds, factors, lse, delta);
                p[s..].fill(0.0);
                ds[s..].fill(0.0);
            }
            let add = first > 0;
            product(simd, (s, wide, n), View::transposed(p, keys), dout, wide, dv, wide, add);
            product(simd, (s, wide, n), View::transposed(ds, keys), q, wide, dk, wide, add);
            product(simd, (n, wide, s), View::rows(ds, keys), k, wide, dq, wide, false);
            // SAFETY: rows and columns of dqkv that belong to this task alone, here and below.
            unsafe { scatter(dq, wide, n, d, 1.0, |i| task.at(first + i, 0), dqkv) };
        }
        // SAFETY: as above.
        unsafe {
            scatter(dk, wide, s, d, task.scale(), |i| task.at(i, 1), dqkv);
            scatter(dv, wide, s, d, 1.0, |i| task.at(i, 2), dqkv);
        }
    }
}

/// One query's row. In: p = scores, ds = dout vᵀ. Out: ds = the gradient of the scores, p = the
/// probabilities after dropout.
#[inline(always)]
fn score_gradient(p: &mut [f32], ds: &mut [f32], factors: &[f32], lse: f32, delta: f32) {
    for ((p, ds), &factor) in p.iter_mut().zip(ds).zip(factors) {
        let probability = exp(*p - lse);
        *ds = probability * ds.mul_add(factor, -delta);
        *p = probability * factor;
    }
}

/// to[at(i)..] = scale * from [n, wide], D columns of each row.
///
/// # Safety
/// The written parts must belong to the caller alone.
#[inline(always)]
unsafe fn scatter(
    from: &[f32],
    wide: usize,
    n: usize,
    d: usize,
    scale: f32,
    at: impl Fn(usize) -> usize,
    to: Shared<'_>,
) {
    for (i, row) in from.chunks_exact(wide).take(n).enumerate() {
        // SAFETY: the caller's promise.
        let to = unsafe { to.part(at(i), d) };
        for (to, &x) in to.iter_mut().zip(row) {
            *to = x * scale;
        }
    }
}
