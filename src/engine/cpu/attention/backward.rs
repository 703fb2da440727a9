//! Attention's backward pass. It recomputes the probabilities from the kept log-sum-exp (Dao et al. 2022).

use super::super::cell::{Dot, Work};
use super::super::machine::Operand;
use super::super::math::{exp, sum2};
use super::super::tasks::Shared;
use super::super::tile::{View, product};
use super::super::widen::{rooms, widen};
use super::cells::{across, along, cut, gather, gather_pairs, scale_keys, transpose};
use super::task::{Sizes, Task};
use crate::engine::Real;
use pulp::Simd;

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

/// One task: dqkv from dout.
pub struct Backward<'a, R> {
    pub task: Task<'a>,
    pub kept: Kept<'a, R>,
    /// [T, 3H]
    pub dqkv: Shared<'a, R>,
    /// `Sizes::backward_scratch`
    pub scratch: &'a mut [f32],
}

impl<R: Operand> Work<R> for Backward<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, D: Dot<S, R>>(self, simd: S, dot: D) {
        let Self { task, kept, dqkv, scratch } = self;
        let Sizes { s, d, wide, block, .. } = task.sizes;
        let rooms = &mut Rooms::cut::<S, R, D>(task.sizes, scratch);
        let scale = rooms.load_keys::<S, R, D>(&task, kept.qkv);
        for first in (0..s).step_by(block) {
            let queries = Queries { first, n: block.min(s - first), scale };
            queries.work::<S, R, D>((simd, dot), &task, kept, rooms);
            // SAFETY: rows and columns of dqkv that belong to this task alone, here and below.
            unsafe { scatter(rooms.dq, wide, (queries.n, d), scale, |i| task.at(first + i, 0), dqkv) };
        }
        // SAFETY: as above.
        unsafe {
            scatter(rooms.dk, wide, (s, d), task.scale(), |i| task.at(i, 1), dqkv);
            scatter(rooms.dv, wide, (s, d), 1.0, |i| task.at(i, 2), dqkv);
        }
    }
}

/// A task's scratch. Where a cell is one value, no matrix needs a second form, and the rooms for those are
/// empty.
struct Rooms<'a, C> {
    /// Keys transposed, [D, keys].
    kt: &'a mut [C],
    /// Values transposed, [D, keys].
    vt: &'a mut [C],
    /// Values, then keys, [keys, wide], pairs along the row.
    rows: &'a mut [C],
    /// Keys in pairs of rows.
    k: &'a mut [C],
    /// [keys, wide]
    dk: &'a mut [f32],
    /// [keys, wide]
    dv: &'a mut [f32],
    /// [block, keys]
    p: &'a mut [f32],
    /// [block, keys]
    ds: &'a mut [f32],
    /// [block, keys]
    factors: &'a mut [f32],
    /// p in pairs of rows.
    p_pairs: &'a mut [C],
    /// ds in pairs along the row.
    ds_along: &'a mut [C],
    /// ds in pairs of rows.
    ds_pairs: &'a mut [C],
    /// [block, wide]
    q: &'a mut [C],
    /// [block, wide]
    dout: &'a mut [C],
    /// q in pairs of rows.
    q_pairs: &'a mut [C],
    /// dout in pairs of rows.
    dout_pairs: &'a mut [C],
    /// [block, wide]
    dq: &'a mut [f32],
}

impl<'a, C: bytemuck::Pod> Rooms<'a, C> {
    #[inline(always)]
    fn cut<S: Simd, R: Operand, D: Dot<S, R, Cell = C>>(sizes: Sizes, mut scratch: &'a mut [f32]) -> Self {
        let Sizes { keys, d, wide, block, .. } = sizes;
        let (row, deep) = (wide / D::PER, d.div_ceil(D::PER));
        let second = |len: usize| if D::PER == 1 { 0 } else { len };
        let scratch = &mut scratch;
        Self {
            kt: cut(scratch, deep * keys),
            vt: cut(scratch, deep * keys),
            rows: cut(scratch, keys * row),
            k: cut(scratch, second(keys / D::PER * wide)),
            dk: cut(scratch, keys * wide),
            dv: cut(scratch, keys * wide),
            p: cut(scratch, block * keys),
            ds: cut(scratch, block * keys),
            factors: cut(scratch, block * keys),
            p_pairs: cut(scratch, second(block * keys / D::PER)),
            ds_along: cut(scratch, second(block * keys / D::PER)),
            ds_pairs: cut(scratch, second(block * keys / D::PER)),
            q: cut(scratch, block * row),
            dout: cut(scratch, block * row),
            q_pairs: cut(scratch, second(block / D::PER * wide)),
            dout_pairs: cut(scratch, second(block / D::PER * wide)),
            dq: cut(scratch, block * wide),
        }
    }

    /// Fills `kt`, `vt` and the rooms for keys. Returns the factor that the scores still lack.
    #[inline(always)]
    fn load_keys<S: Simd, R: Operand, D: Dot<S, R, Cell = C>>(&mut self, task: &Task<'_>, qkv: &[R]) -> f32 {
        let Sizes { s, keys, d, wide, .. } = task.sizes;
        let row = wide / D::PER;
        gather::<S, R, D>(qkv, |i| task.at(i, 2), d, wide, &mut self.rows[..s * row]);
        transpose(self.rows, s, row, keys, self.vt);
        gather::<S, R, D>(qkv, |i| task.at(i, 1), d, wide, &mut self.rows[..s * row]);
        let scale = scale_keys::<S, R, D>(&mut self.rows[..s * row], task.scale());
        transpose(self.rows, s, row, keys, self.kt);
        if D::PER > 1 {
            gather_pairs::<S, R, D>(qkv, |i| task.at(i, 1), (s, d), wide, self.k);
        }
        scale
    }
}

/// A block of queries.
#[derive(Clone, Copy)]
struct Queries {
    first: usize,
    n: usize,
    /// Factor that the products of queries and keys still lack.
    scale: f32,
}

impl Queries {
    /// Writes their dq. The first block sets dk and dv; the others add to them.
    #[inline(always)]
    fn work<S: Simd, R: Operand, D: Dot<S, R>>(
        self,
        with: (S, D),
        task: &Task<'_>,
        kept: Kept<'_, R>,
        rooms: &mut Rooms<'_, D::Cell>,
    ) {
        let Self { first, n, .. } = self;
        let Sizes { s, keys, d, wide, .. } = task.sizes;
        let (row, deep, pairs) = (wide / D::PER, d.div_ceil(D::PER), n.div_ceil(D::PER));
        let (q_at, dout_at) = (|i| task.at(first + i, 0), |i| task.at_hidden(first + i));
        gather::<S, R, D>(kept.qkv, q_at, d, wide, &mut rooms.q[..n * row]);
        gather::<S, R, D>(kept.dout, dout_at, d, wide, &mut rooms.dout[..n * row]);
        product(with, (n, keys, deep), View::rows(rooms.q, row), rooms.kt, rooms.p, false);
        product(with, (n, keys, deep), View::rows(rooms.dout, row), rooms.vt, rooms.ds, false);
        let (p, ds) = (&mut rooms.p[..n * keys], &mut rooms.ds[..n * keys]);
        if task.drops() {
            task.draw(first, &mut rooms.factors[..n * keys]);
        } else {
            rooms.factors[..n * keys].fill(1.0);
        }
        self.score_gradients(task, kept, (p, ds, rooms.factors), rooms.dq);
        let (p, ds) = (&rooms.p[..n * keys], &rooms.ds[..n * keys]);
        let (k, q, dout) = if D::PER == 1 {
            (&*rooms.rows, &*rooms.q, &*rooms.dout)
        } else {
            gather_pairs::<S, R, D>(kept.qkv, q_at, (n, d), wide, rooms.q_pairs);
            gather_pairs::<S, R, D>(kept.dout, dout_at, (n, d), wide, rooms.dout_pairs);
            (&*rooms.k, &*rooms.q_pairs, &*rooms.dout_pairs)
        };
        let add = first > 0;
        let pt = View::transposed(across::<S, R, D>(p, keys, rooms.p_pairs), keys);
        product(with, (s, wide, pairs), pt, dout, rooms.dv, add);
        let dst = View::transposed(across::<S, R, D>(ds, keys, rooms.ds_pairs), keys);
        product(with, (s, wide, pairs), dst, q, rooms.dk, add);
        let ds = View::rows(along::<S, R, D>(ds, rooms.ds_along), keys / D::PER);
        product(with, (n, wide, s.div_ceil(D::PER)), ds, k, rooms.dq, false);
    }

    /// p, ds and factors are [n, keys]. In: p = scores / `scale`, ds = dout vᵀ. Out: ds =
    /// the gradient of the scores, p = the probabilities after dropout. `room` holds two rows of D.
    #[inline(always)]
    fn score_gradients<R: Real>(
        self,
        task: &Task<'_>,
        kept: Kept<'_, R>,
        (p, ds, factors): (&mut [f32], &mut [f32], &[f32]),
        room: &mut [f32],
    ) {
        let Sizes { s, keys, d, .. } = task.sizes;
        let [out_room, dout_room] = rooms::<R, 2>(room, d);
        let rows = p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).zip(factors.chunks_exact(keys));
        for (i, ((p, ds), factors)) in rows.enumerate() {
            let lse = kept.lse[task.at_heads(self.first + i)];
            let at = task.at_hidden(self.first + i);
            let out = widen(&kept.out[at..][..d], out_room);
            let dout = widen(&kept.dout[at..][..d], dout_room);
            let delta = sum2(out, dout, |a, b| a * b);
            score_gradient(p, ds, factors, (self.scale, lse, delta));
            p[s..].fill(0.0);
            ds[s..].fill(0.0);
        }
    }
}

/// One query's row of `score_gradients`.
#[inline(always)]
fn score_gradient(p: &mut [f32], ds: &mut [f32], factors: &[f32], (scale, lse, delta): (f32, f32, f32)) {
    for ((p, ds), &factor) in p.iter_mut().zip(ds).zip(factors) {
        let probability = exp(p.mul_add(scale, -lse)); // with scale 1, the same bits as p - lse
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
    (n, d): (usize, usize),
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
