//! Losses over rows of scores: the vocabulary softmax of MLM and the ranking loss. Sums of losses
//! are kept in f64 until they enter the statistics.

use super::buffer::Pool;
use super::math::{exp, max, max2, sum2};
use super::tasks::{In, Out, each, vectorised};
use super::widen::{open, size, store};
use crate::engine::Real;
use pulp::Arch;

/// Columns of one task of the bias gradient.
const COLUMNS: usize = 512;

/// Softmax-cross-entropy of logits [rows, V] + bias against labels, in place; `scale` 0 only
/// adds the bias. Returns the summed loss and the number of rows whose label is the arg max (the
/// first one, where several are).
pub fn mlm<R: Real>(
    arch: Arch,
    pool: &Pool,
    bias: &[f32],
    labels: &[u32],
    scale: f32,
    logits: &mut [R],
) -> (f64, f64) {
    let vocab = bias.len();
    let rows = labels.len();
    // Each row's loss and whether it is right.
    let mut scratch = pool.take(2 * rows);
    each((In(labels, 1), Out(logits, vocab), Out(&mut scratch, 2)), 1, &|_, (labels, logits, results)| {
        let label = labels.0[0] as usize;
        let mut room = pool.take(size::<R>(vocab));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let row = open(logits.0, &mut room);
                let (loss, right) = if scale == 0.0 {
                    mlm_measure(bias, label, row)
                } else {
                    mlm_row(bias, label, scale, row)
                };
                store(&room, logits.0);
                results.0[0] = loss;
                results.0[1] = f32::from(u8::from(right));
            },
        );
    });
    scratch
        .as_chunks::<2>()
        .0
        .iter()
        .fold((0.0, 0.0), |(loss, right), row| (loss + f64::from(row[0]), right + f64::from(row[1])))
}

/// One row: becomes scale * (softmax - onehot).
#[inline(always)]
fn mlm_row(bias: &[f32], label: usize, scale: f32, row: &mut [f32]) -> (f32, bool) {
    for (x, &b) in row.iter_mut().zip(bias) {
        *x += b;
    }
    let top = max(row);
    let right = row[label] == top && !row[..label].contains(&top);
    let target = row[label] - top;
    let total = exp_in_place(row, top);
    let factor = scale / total;
    for x in row.iter_mut() {
        *x *= factor;
    }
    row[label] -= scale;
    (total.ln() - target, right)
}

/// One row, left as it is.
#[inline(always)]
fn mlm_measure(bias: &[f32], label: usize, row: &mut [f32]) -> (f32, bool) {
    for (x, b) in row.iter_mut().zip(bias) {
        *x += b;
    }
    let top = max2(row, row, |x, _| x);
    let total = sum2(row, row, |x, _| exp(x - top));
    let target = row[label];
    let before = row[..label].contains(&top);
    (total.ln() - (target - top), target == top && !before)
}

/// row = e^(row - top); returns its sum.
#[inline(always)]
pub fn exp_in_place(row: &mut [f32], top: f32) -> f32 {
    use super::math::{LANES, across};
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = row.as_chunks_mut::<LANES>();
    for block in blocks {
        for l in 0..LANES {
            block[l] = exp(block[l] - top);
            lanes[l] += block[l];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = exp(*x - top);
        *lane += *x;
    }
    across(lanes)
}

/// total [n] += column sums of rows [_, n], rows in ascending order.
pub fn add_columns<R: Real>(arch: Arch, rows: &[R], total: &mut [f32]) {
    let n = total.len();
    each(Out(total, 1), COLUMNS, &|first, total| {
        vectorised(
            arch,
            #[inline(always)]
            || {
                let total = &mut *total.0;
                // Apart from what is there already, so that small terms meet a small sum.
                let mut sums = [0.0; COLUMNS];
                let sums = &mut sums[..total.len()];
                for row in rows.chunks_exact(n) {
                    for (sum, &x) in sums.iter_mut().zip(&row[first..]) {
                        *sum += x.to_f32();
                    }
                }
                for (total, &sum) in total.iter_mut().zip(&*sums) {
                    *total += sum;
                }
            },
        );
    });
}
