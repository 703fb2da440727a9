//! The embedding layer: three table look-ups, LayerNorm and dropout, and the gradients of the
//! tables. Rows of equal ids are summed in pack order by one task, so the result has a fixed order.

use super::buffer::{Pool, Scratch};
use super::norm::{Affine, CHUNK, Keys, backward_row, drop_row, moments, normalise};
use super::tasks::{In, Out, Partials, each, vectorised};
use super::widen::{copy, fresh, rooms, settle, size, store, widen};
use crate::engine::{Dropout, Real};
use pulp::Arch;

/// Sorted rows of one task of a table's gradient.
const TASK: usize = 256;

/// The three tables, each [rows, H].
#[derive(Clone, Copy)]
pub struct Tables<'a, R> {
    pub word: &'a [R],
    pub position: &'a [R],
    pub segment: &'a [R],
}

/// sum = word[id] + position[pos] + segment[seg]; out = dropout(LayerNorm(sum)), with the moments of
/// `sum` as it is kept. The ids are checked by the caller.
#[allow(clippy::too_many_arguments)]
pub fn forward<R: Real>(
    arch: Arch,
    pool: &Pool,
    keys: Keys<'_>,
    drop: Dropout,
    tables: Tables<'_, R>,
    affine: &Affine<'_>,
    (ids, segments): (&[u32], &[u32]),
    sum: &mut [R],
    stats: &mut [f32],
    out: &mut [R],
) {
    let h = affine.gamma.len();
    each((Out(sum, h), Out(stats, 2), Out(out, h)), CHUNK, &|first, (sum, stats, out)| {
        let mut factors = pool.take(h);
        let mut scratch = pool.take(size::<R>(2 * h));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let [sum_room, out_room] = rooms::<R, 2>(&mut scratch, h);
                let outs = stats.0.as_chunks_mut::<2>().0.iter_mut().zip(out.0.chunks_exact_mut(h));
                for (i, (kept, (stats, out))) in sum.0.chunks_exact_mut(h).zip(outs).enumerate() {
                    let at = first + i;
                    let word = &tables.word[ids[at] as usize * h..][..h];
                    let position = &tables.position[keys.positions[at] as usize * h..][..h];
                    let segment = &tables.segment[segments[at] as usize * h..][..h];
                    let sum = fresh(kept, sum_room);
                    for (((sum, &w), &p), &s) in sum.iter_mut().zip(word).zip(position).zip(segment) {
                        *sum = w.to_f32() + p.to_f32() + s.to_f32();
                    }
                    let sum = settle(sum_room, kept);
                    *stats = moments(sum, affine.eps);
                    let normed = fresh(out, out_room);
                    normalise(sum, *stats, affine, normed);
                    drop_row(&drop, keys, at, &mut factors, normed);
                    store(out_room, out);
                }
            },
        );
    });
}

/// In place: dout becomes the gradient of `sum`. Returns partial sums [chunks, 3H], to be added by
/// `norm::add_block`: dgamma, dbeta, and H columns of scratch.
#[allow(clippy::too_many_arguments)]
pub fn backward_norm<'a, R: Real>(
    arch: Arch,
    pool: &'a Pool,
    keys: Keys<'_>,
    drop: Dropout,
    gamma: &[f32],
    sum: &[R],
    stats: &[f32],
    dout: &mut [R],
) -> Scratch<'a> {
    let h = gamma.len();
    let rows = sum.len() / h;
    let width = 3 * h;
    let mut scratch = pool.take(Partials::size(rows, CHUNK, width));
    let partials = Partials::new(&mut scratch, rows, CHUNK, width);
    let all = (In(sum, h), In(stats, 2), Out(dout, h), partials);
    each(all, CHUNK, &|first, (sum, stats, dout, mut partial)| {
        let mut factors = pool.take(h);
        let mut scratch = pool.take(size::<R>(2 * h));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let [sum_room, d_room] = rooms::<R, 2>(&mut scratch, h);
                let (dgamma, rest) = partial.row().split_at_mut(h);
                let (dbeta, d) = rest.split_at_mut(h);
                let inputs = sum.0.chunks_exact(h).zip(stats.0.as_chunks::<2>().0);
                for (i, ((sum, &stats), dout)) in inputs.zip(dout.0.chunks_exact_mut(h)).enumerate() {
                    copy(dout, d);
                    drop_row(&drop, keys, first + i, &mut factors, d);
                    let sum = widen(sum, sum_room);
                    backward_row(sum, stats, gamma, d, fresh(dout, d_room), dgamma, dbeta);
                    store(d_room, dout);
                }
            },
        );
    });
    scratch
}

/// table[index[i]] += rows[i] for every i, equal indices in ascending i. `keys` is scratch.
pub fn add_rows<R: Real>(
    arch: Arch,
    index: &[u32],
    rows: &[R],
    hidden: usize,
    keys: &mut Vec<u64>,
    table: &mut [f32],
) {
    keys.clear();
    keys.extend(index.iter().zip(0u64..).map(|(&id, row)| u64::from(id) << 32 | row));
    keys.sort_unstable();
    add_sorted(arch, keys, rows, hidden, 0, table);
}

/// `table` starts at row `base`. Splits between two ids until a task is small.
fn add_sorted<R: Real>(arch: Arch, keys: &[u64], rows: &[R], hidden: usize, base: usize, table: &mut [f32]) {
    let id = |key: u64| (key >> 32) as usize;
    if keys.len() > TASK && rayon::current_num_threads() > 1 {
        let pivot = id(keys[keys.len() / 2]);
        let below = keys.partition_point(|&key| id(key) < pivot);
        let middle = if below > 0 { below } else { keys.partition_point(|&key| id(key) <= pivot) };
        if middle < keys.len() {
            let cut = id(keys[middle]);
            let (head, tail) = table.split_at_mut((cut - base) * hidden);
            rayon::join(
                || add_sorted(arch, &keys[..middle], rows, hidden, base, head),
                || add_sorted(arch, &keys[middle..], rows, hidden, cut, tail),
            );
            return;
        }
    }
    vectorised(
        arch,
        #[inline(always)]
        || {
            for &key in keys {
                let row = &rows[(key as u32) as usize * hidden..][..hidden];
                let sum = &mut table[(id(key) - base) * hidden..][..hidden];
                for (sum, &d) in sum.iter_mut().zip(row) {
                    *sum += d.to_f32();
                }
            }
        },
    );
}
