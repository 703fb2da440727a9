//! Column sums of a matrix: the gradient of the bias of the linear layer that made it.

use super::tasks::{Out, each, vectorised};
use crate::engine::Real;
use pulp::Arch;

/// Columns of one task.
const COLUMNS: usize = 512;

/// total [n] += column sums of rows [_, n], rows in ascending order.
pub fn add_columns<R: Real>(arch: Arch, rows: &[R], total: &mut [f32]) {
    let n = total.len();
    each(Out(total, 1), COLUMNS, &|first, total| {
        vectorised(
            arch,
            #[inline(always)]
            || {
                let total = &mut *total.0;
                // Kept apart from the existing total, so that small terms are added to a small sum.
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
