//! Multi-head attention over packed sequences. A task is one head of one sequence: its keys and
//! values are brought into the layout of the tile once, then queries are worked on a block at a
//! time, so that scores never leave the second-level cache. The backward pass draws the
//! probabilities again from the kept log-sum-exp (Dao et al. 2022).
//!
//! Products work on cells (`machine`). Where a cell is a pair of bf16, probabilities and score
//! gradients are rounded to bf16 for the products that they enter, and the factor 1 / sqrt(D) is applied
//! to f32 results and not to the keys.

mod cells;

use self::cells::{across, along, cut, gather, gather_pairs, scale_keys, transpose};
use super::buffer::Pool;
use super::dropout::attention_factors;
use super::loss::exp_in_place;
use super::machine::{Dot, Machine, Operand, Work};
use super::math::{exp, max, sum2};
use super::tasks::{Shared, each_index};
use super::tile::{View, product};
use super::widen::{rooms, widen};
use crate::engine::{Dropout, Heads, Real};
use pulp::Simd;

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

    /// Words that `forward` takes, for cells of one value (of two there are fewer, and one matrix more).
    fn forward_scratch(self) -> usize {
        self.keys * self.wide * 2 + self.block * (3 * self.keys + 2 * self.wide)
    }

    fn backward_scratch(self) -> usize {
        self.keys * self.wide * 6 + self.block * (6 * self.keys + 7 * self.wide)
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

/// out [T, H] and lse [T, A] from qkv [T, 3H].
pub fn forward<R: Operand>(
    machine: Machine,
    pool: &Pool,
    layout: Layout<'_>,
    qkv: &[R],
    lse: &mut [f32],
    out: &mut [R],
) {
    let (lse, out) = (Shared::new(lse), Shared::new(out));
    let sequences = layout.samples.len();
    each_index(sequences * layout.heads.heads, &|index| {
        let task = Task::new(layout, index);
        let mut scratch = pool.take(task.sizes.forward_scratch());
        R::run(machine, Forward { task, qkv, lse, out, scratch: &mut scratch });
    });
}

struct Forward<'a, R> {
    task: Task<'a>,
    qkv: &'a [R],
    lse: Shared<'a>,
    out: Shared<'a, R>,
    scratch: &'a mut [f32],
}

impl<R: Operand> Work<R> for Forward<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, D: Dot<S, R>>(self, simd: S, dot: D) {
        let Self { task, qkv, lse, out, mut scratch } = self;
        let Sizes { s, keys, d, wide, block } = task.sizes;
        let (row, deep) = (wide / D::PER, d.div_ceil(D::PER));
        let scratch = &mut scratch;
        let kt = cut::<D::Cell>(scratch, deep * keys);
        let v = cut::<D::Cell>(scratch, keys * wide); // first the keys
        let q = cut::<D::Cell>(scratch, block * row);
        let (scores, factors) = (cut::<f32>(scratch, block * keys), cut::<f32>(scratch, block * keys));
        let result = cut::<f32>(scratch, block * wide);
        let p = cut::<D::Cell>(scratch, if D::PER == 1 { 0 } else { block * keys / D::PER });
        gather::<S, R, D>(qkv, |i| task.at(i, 1), d, wide, &mut v[..s * row]);
        let scale = scale_keys::<S, R, D>(&mut v[..s * row], task.scale());
        transpose(v, s, row, keys, kt);
        gather_pairs::<S, R, D>(qkv, |i| task.at(i, 2), (s, d), wide, v);
        for first in (0..s).step_by(block) {
            let n = block.min(s - first);
            gather::<S, R, D>(qkv, |i| task.at(first + i, 0), d, wide, &mut q[..n * row]);
            product((simd, dot), (n, keys, deep), View::rows(q, row), kt, keys, scores, keys, false);
            let mut totals = [1.0; QUERIES];
            for (i, (row, total)) in scores.chunks_exact_mut(keys).take(n).zip(&mut totals).enumerate() {
                if D::PER > 1 {
                    row.iter_mut().for_each(|x| *x *= scale);
                }
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
            let p = View::rows(along::<S, R, D>(&scores[..n * keys], p), keys / D::PER);
            product((simd, dot), (n, wide, s.div_ceil(D::PER)), p, v, wide, result, wide, false);
            for (i, (row, &total)) in result.chunks_exact(wide).zip(&totals).take(n).enumerate() {
                let factor = 1.0 / total;
                // SAFETY: one row's part of one head belongs to one task.
                let out = unsafe { out.part(task.at_hidden(first + i), d) };
                for (out, &x) in out.iter_mut().zip(row) {
                    *out = R::from_f32(x * factor);
                }
            }
        }
    }
}

/// What the backward pass reads.
#[derive(Clone, Copy)]
pub struct Kept<'a, R> {
    /// [T, 3H]
    pub qkv: &'a [R],
    /// [T, A]
    pub lse: &'a [f32],
    /// [T, H]
    pub out: &'a [R],
    /// [T, H]
    pub dout: &'a [R],
}

/// dqkv [T, 3H], overwritten.
pub fn backward<R: Operand>(
    machine: Machine,
    pool: &Pool,
    layout: Layout<'_>,
    kept: Kept<'_, R>,
    dqkv: &mut [R],
) {
    let dqkv = Shared::new(dqkv);
    let sequences = layout.samples.len();
    each_index(sequences * layout.heads.heads, &|index| {
        let task = Task::new(layout, index);
        let mut scratch = pool.take(task.sizes.backward_scratch());
        R::run(machine, Backward { task, kept, dqkv, scratch: &mut scratch });
    });
}

struct Backward<'a, R> {
    task: Task<'a>,
    kept: Kept<'a, R>,
    dqkv: Shared<'a, R>,
    scratch: &'a mut [f32],
}

impl<R: Operand> Work<R> for Backward<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, D: Dot<S, R>>(self, simd: S, dot: D) {
        let Self { task, kept, dqkv, mut scratch } = self;
        let Sizes { s, keys, d, wide, block } = task.sizes;
        let (row, deep) = (wide / D::PER, d.div_ceil(D::PER));
        // Room for a second form of a matrix, which cells of one value do not need.
        let second = |len: usize| if D::PER == 1 { 0 } else { len };
        let scratch = &mut scratch;
        let (kt, vt) = (cut::<D::Cell>(scratch, deep * keys), cut::<D::Cell>(scratch, deep * keys));
        let rows = cut::<D::Cell>(scratch, keys * row);
        let k = cut::<D::Cell>(scratch, second(keys / D::PER * wide));
        let (dk, dv) = (cut::<f32>(scratch, keys * wide), cut::<f32>(scratch, keys * wide));
        let (p, ds) = (cut::<f32>(scratch, block * keys), cut::<f32>(scratch, block * keys));
        let factors = cut::<f32>(scratch, block * keys);
        let [p_room, ds_room, ds_pairs] =
            [(); 3].map(|()| cut::<D::Cell>(scratch, second(block * keys / D::PER)));
        let (q, dout) = (cut::<D::Cell>(scratch, block * row), cut::<D::Cell>(scratch, block * row));
        let [q_pairs, dout_pairs] = [(); 2].map(|()| cut::<D::Cell>(scratch, second(block / D::PER * wide)));
        let dq = cut::<f32>(scratch, block * wide);
        gather::<S, R, D>(kept.qkv, |i| task.at(i, 2), d, wide, &mut rows[..s * row]);
        transpose(rows, s, row, keys, vt);
        gather::<S, R, D>(kept.qkv, |i| task.at(i, 1), d, wide, &mut rows[..s * row]);
        let scale = scale_keys::<S, R, D>(&mut rows[..s * row], task.scale());
        transpose(rows, s, row, keys, kt);
        let k: &[D::Cell] = if D::PER == 1 {
            rows
        } else {
            gather_pairs::<S, R, D>(kept.qkv, |i| task.at(i, 1), (s, d), wide, k);
            k
        };
        for first in (0..s).step_by(block) {
            let n = block.min(s - first);
            let pairs = n.div_ceil(D::PER);
            let (q_at, dout_at) = (|i| task.at(first + i, 0), |i| task.at_hidden(first + i));
            gather::<S, R, D>(kept.qkv, q_at, d, wide, &mut q[..n * row]);
            gather::<S, R, D>(kept.dout, dout_at, d, wide, &mut dout[..n * row]);
            product((simd, dot), (n, keys, deep), View::rows(q, row), kt, keys, p, keys, false);
            product((simd, dot), (n, keys, deep), View::rows(dout, row), vt, keys, ds, keys, false);
            if task.layout.drop.threshold > 0 {
                task.draw(first, &mut factors[..n * keys]);
            } else {
                factors[..n * keys].fill(1.0);
            }
            score_gradients(
                &task,
                kept,
                first,
                scale,
                (&mut p[..n * keys], &mut ds[..n * keys], factors),
                dq,
            );
            let (mut q, mut dout): (&[D::Cell], &[D::Cell]) = (q, dout);
            if D::PER > 1 {
                gather_pairs::<S, R, D>(kept.qkv, q_at, (n, d), wide, q_pairs);
                gather_pairs::<S, R, D>(kept.dout, dout_at, (n, d), wide, dout_pairs);
                (q, dout) = (&*q_pairs, &*dout_pairs);
            }
            let add = first > 0;
            let pt = View::transposed(across::<S, R, D>(&p[..n * keys], keys, p_room), keys);
            product((simd, dot), (s, wide, pairs), pt, dout, wide, dv, wide, add);
            let dst = View::transposed(across::<S, R, D>(&ds[..n * keys], keys, ds_pairs), keys);
            product((simd, dot), (s, wide, pairs), dst, q, wide, dk, wide, add);
            let ds = View::rows(along::<S, R, D>(&ds[..n * keys], ds_room), keys / D::PER);
            product((simd, dot), (n, wide, s.div_ceil(D::PER)), ds, k, wide, dq, wide, false);
            // SAFETY: rows and columns of dqkv that belong to this task alone, here and below.
            unsafe { scatter(dq, wide, n, d, scale, q_at, dqkv) };
        }
        // SAFETY: as above.
        unsafe {
            scatter(dk, wide, s, d, task.scale(), |i| task.at(i, 1), dqkv);
            scatter(dv, wide, s, d, 1.0, |i| task.at(i, 2), dqkv);
        }
    }
}

/// The rows of one block of queries, [n, keys] each. In: p = scores / `scale`, ds = dout vᵀ. Out: ds =
/// the gradient of the scores, p = the probabilities after dropout. `room` holds two rows of D.
#[inline(always)]
fn score_gradients<R: Real>(
    task: &Task<'_>,
    kept: Kept<'_, R>,
    first: usize,
    scale: f32,
    (p, ds, factors): (&mut [f32], &mut [f32], &[f32]),
    room: &mut [f32],
) {
    let Sizes { s, keys, d, .. } = task.sizes;
    let [out_room, dout_room] = rooms::<R, 2>(room, d);
    let rows = p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).zip(factors.chunks_exact(keys));
    for (i, ((p, ds), factors)) in rows.enumerate() {
        let lse = kept.lse[(task.row + first + i) * task.layout.heads.heads + task.head];
        let at = task.at_hidden(first + i);
        let out = widen(&kept.out[at..][..d], out_room);
        let dout = widen(&kept.dout[at..][..d], dout_room);
        let delta = sum2(out, dout, |a, b| a * b);
        score_gradient(p, ds, factors, scale, lse, delta);
        p[s..].fill(0.0);
        ds[s..].fill(0.0);
    }
}

/// One query's row of `score_gradients`.
#[inline(always)]
fn score_gradient(p: &mut [f32], ds: &mut [f32], factors: &[f32], scale: f32, lse: f32, delta: f32) {
    for ((p, ds), &factor) in p.iter_mut().zip(ds).zip(factors) {
        let probability = exp(p.mul_add(scale, -lse)); // with scale 1 the bits of p - lse
        *ds = probability * ds.mul_add(factor, -delta);
        *p = probability * factor;
    }
}

/// to[at(i)..] = scale * from [n, wide], D columns of each row.
///
/// # Safety
/// The written parts must belong to the caller alone.
#[inline(always)]
unsafe fn scatter<R: Real>(
    from: &[f32],
    wide: usize,
    n: usize,
    d: usize,
    scale: f32,
    at: impl Fn(usize) -> usize,
    to: Shared<'_, R>,
) {
    for (i, row) in from.chunks_exact(wide).take(n).enumerate() {
        // SAFETY: the caller's promise.
        let to = unsafe { to.part(at(i), d) };
        for (to, &x) in to.iter_mut().zip(row) {
            *to = R::from_f32(x * scale);
        }
    }
}
