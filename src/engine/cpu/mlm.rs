//! The vocabulary softmax of MLM. Sums of losses are kept in f64 until they enter the statistics.

use super::checks::{check_below, parameters, part, part_mut};
use super::columns::add_columns;
use super::device::Cpu;
use super::machine::Operand;
use super::math::{exp, exp_in_place, max, max2, sum2};
use super::tasks::{In, Out, each, vectorised};
use super::widen::{open, size, store};
use crate::Result;
use crate::engine::op::{self, LossScale};
use crate::engine::stats;

/// A row is right when its label is the arg max (the first one, where several are).
pub(super) fn mlm_loss<R: Operand>(cpu: &Cpu<R>, op: &mut op::MlmLoss<'_, Cpu<R>>) -> Result<()> {
    let (rows, vocab, scale) = (op.rows.count(), op.vocab, op.scale.value);
    let (arch, pool) = (cpu.machine.arch, &*cpu.pool);
    let sums = part_mut("statistics", op.sums, 0, stats::SLOTS)?;
    let labels = part("mlm labels", op.labels, 0, rows)?;
    check_below("mlm label", labels, vocab)?;
    let logits = part_mut("mlm logits", op.logits, 0, rows * vocab)?;
    let bias = parameters("mlm bias", op.weights, op.bias, vocab)?;
    let bias = &*bias;
    // Each row's loss and whether it is right.
    let mut results = pool.take(2 * rows);
    let all = (In(labels, 1), Out(&mut *logits, vocab), Out(&mut results, 2));
    each(all, 1, &|_, (labels, logits, results)| {
        let label = labels.0[0] as usize;
        let mut room = pool.take(size::<R>(vocab));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let row = open(logits.0, &mut room);
                let (loss, right) =
                    if scale == 0.0 { measure(bias, label, row) } else { learn(bias, label, scale, row) };
                store(&room, logits.0);
                results.0[0] = loss;
                results.0[1] = f32::from(u8::from(right));
            },
        );
    });
    let results = results.as_chunks::<2>().0;
    let (loss, right) = results
        .iter()
        .fold((0.0, 0.0), |(loss, right), row| (loss + f64::from(row[0]), right + f64::from(row[1])));
    if op.scale != LossScale::MEASURE {
        add_columns(arch, logits, part_mut("mlm bias gradient", op.grads, op.bias, vocab)?);
    }
    sums[stats::MLM_LOSS] += loss as f32;
    sums[stats::MLM_CORRECT] += right as f32;
    sums[stats::MLM_COUNT] += rows as f32;
    Ok(())
}

/// (loss, right?) of one row, which becomes scale * (softmax - onehot).
#[inline(always)]
fn learn(bias: &[f32], label: usize, scale: f32, row: &mut [f32]) -> (f32, bool) {
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

/// (loss, right?) of one row, to which the bias is added.
#[inline(always)]
fn measure(bias: &[f32], label: usize, row: &mut [f32]) -> (f32, bool) {
    for (x, b) in row.iter_mut().zip(bias) {
        *x += b;
    }
    let top = max2(row, row, |x, _| x);
    let total = sum2(row, row, |x, _| exp(x - top));
    let target = row[label];
    let before = row[..label].contains(&top);
    (total.ln() - (target - top), target == top && !before)
}
