//! Attention's forward pass.

use super::super::cell::{Dot, Work};
use super::super::machine::Operand;
use super::super::math::{exp_in_place, max};
use super::super::tasks::Shared;
use super::super::tile::{View, product};
use super::cells::{along, cut, gather, gather_pairs, scale_keys, transpose};
use super::task::{QUERIES, Sizes, Task};
use pulp::Simd;

/// One task: lse and out from qkv.
pub struct Forward<'a, R> {
    pub task: Task<'a>,
    /// [T, 3H]
    pub qkv: &'a [R],
    /// [T, A]
    pub lse: Shared<'a>,
    /// [T, H]
    pub out: Shared<'a, R>,
    /// `Sizes::forward_scratch`
    pub scratch: &'a mut [f32],
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
            product((simd, dot), (n, keys, deep), View::rows(q, row), kt, scores, false);
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
                let lse = unsafe { lse.part(task.at_heads(first + i), 1) };
                lse[0] = top + total.ln();
            }
            if task.drops() {
                task.draw(first, &mut factors[..n * keys]);
                for (p, &f) in scores[..n * keys].iter_mut().zip(&*factors) {
                    *p *= f;
                }
            }
            let p = View::rows(along::<S, R, D>(&scores[..n * keys], p), keys / D::PER);
            product((simd, dot), (n, wide, s.div_ceil(D::PER)), p, v, result, false);
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
