//! The embedding layer: three table look-ups, LayerNorm and dropout, and the gradients of the
//! tables. Rows of equal ids are summed in pack order by one task, so the result has a fixed order.

use super::checks::{check_below, part, part_mut};
use super::device::Cpu;
use super::machine::Operand;
use super::norm::{Affine, CHUNK, Keys, Sums, backward_row, drop_row, moments, normalise};
use super::tasks::{In, Out, each, vectorised};
use super::widen::{copy, fresh, rooms, settle, size, store, widen};
use crate::Result;
use crate::engine::op::{self, EmbedAt};
use crate::engine::{DeviceBatch, Real};
use pulp::Arch;
use std::borrow::Cow;
use std::sync::PoisonError;

/// Sorted rows of one task of a table's gradient.
const TASK: usize = 256;

/// The rows of the three tables that a pack reads, each checked against its table.
struct Indices<'a> {
    /// [T]
    ids: &'a [u32],
    /// [T]
    segments: Cow<'a, [u32]>,
    keys: Keys<'a>,
}

impl<'a> Indices<'a> {
    fn of<R: Operand>(batch: &'a DeviceBatch<Cpu<R>>, at: EmbedAt) -> Result<Self> {
        let keys = Keys::of(batch)?;
        let ids = part("ids", &batch.ids, 0, batch.tokens)?;
        let segments = part("segments", &batch.segments, 0, batch.tokens)?;
        check_below("token id", ids, at.vocab)?;
        check_below("position", keys.positions, at.positions)?;
        check_below("segment", segments, 2)?; // also where one row serves both
        let segments = if at.segments == 1 { vec![0; batch.tokens].into() } else { segments.into() };
        Ok(Self { ids, segments, keys })
    }
}

/// The moments are those of `sum` as stored.
pub(super) fn embed<R: Operand>(cpu: &Cpu<R>, op: &mut op::Embed<'_, Cpu<R>>) -> Result<()> {
    let (t, h, at, drop) = (op.batch.tokens, op.at.norm.hidden, op.at, op.drop);
    let Indices { ids, segments, keys } = Indices::of(op.batch, at)?;
    let word = part("word table", op.weights, at.word, at.vocab * h)?;
    let position = part("position table", op.weights, at.position, at.positions * h)?;
    let segment = part("segment table", op.weights, at.segment, at.segments * h)?;
    let (arch, pool, affine) = (cpu.machine.arch, &*cpu.pool, &Affine::of(op.weights, at.norm)?);
    let sum = Out(part_mut("embed sum", op.sum, 0, t * h)?, h);
    let stats = Out(part_mut("embed row_stats", op.row_stats, 0, 2 * t)?, 2);
    let out = Out(part_mut("embed out", op.out, 0, t * h)?, h);
    each((sum, stats, out), CHUNK, &|first, (sum, stats, out)| {
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
                    let word = &word[ids[at] as usize * h..][..h];
                    let position = &position[keys.positions[at] as usize * h..][..h];
                    let segment = &segment[segments[at] as usize * h..][..h];
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
    Ok(())
}

pub(super) fn embed_backward<R: Operand>(cpu: &Cpu<R>, op: &mut op::EmbedBackward<'_, Cpu<R>>) -> Result<()> {
    let (t, h, at) = (op.batch.tokens, op.at.norm.hidden, op.at);
    let indices = Indices::of(op.batch, at)?;
    norm_backward(cpu, op, indices.keys)?;
    let dout = part("embed dout", op.dout, 0, t * h)?;
    let Indices { ids, segments, keys } = indices;
    let mut sorted = cpu.sorted.lock().unwrap_or_else(PoisonError::into_inner);
    let arch = cpu.machine.arch;
    let word = part_mut("word gradient", op.grads, at.word, at.vocab * h)?;
    add_rows(arch, ids, (dout, h), &mut sorted, word);
    let position = part_mut("position gradient", op.grads, at.position, at.positions * h)?;
    add_rows(arch, keys.positions, (dout, h), &mut sorted, position);
    let segment = part_mut("segment gradient", op.grads, at.segment, at.segments * h)?;
    add_rows(arch, &segments, (dout, h), &mut sorted, segment);
    Ok(())
}

/// In place: dout becomes the gradient of `sum`; the gradients of gamma and beta are added.
fn norm_backward<R: Operand>(
    cpu: &Cpu<R>,
    op: &mut op::EmbedBackward<'_, Cpu<R>>,
    keys: Keys<'_>,
) -> Result<()> {
    let (t, norm, drop) = (op.batch.tokens, op.at.norm, op.drop);
    let h = norm.hidden;
    let (arch, pool) = (cpu.machine.arch, &*cpu.pool);
    let dout = Out(part_mut("embed dout", op.dout, 0, t * h)?, h);
    let affine = Affine::of(op.weights, norm)?;
    let gamma = &*affine.gamma;
    let sum = In(part("embed sum", op.sum, 0, t * h)?, h);
    let stats = In(part("embed row_stats", op.row_stats, 0, 2 * t)?, 2);
    let mut sums = Sums::new(pool, t, h);
    let all = (sum, stats, dout, sums.partials());
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
                    backward_row(sum, stats, gamma, d, fresh(dout, d_room), [dgamma, dbeta]);
                    store(d_room, dout);
                }
            },
        );
    });
    sums.add_to(0, part_mut("gamma gradient", op.grads, norm.gamma, h)?);
    sums.add_to(1, part_mut("beta gradient", op.grads, norm.beta, h)?);
    Ok(())
}

/// table[index[i]] += rows[i] of width `hidden` for every i, equal indices in ascending i. `keys` is scratch.
fn add_rows<R: Real>(
    arch: Arch,
    index: &[u32],
    (rows, hidden): (&[R], usize),
    keys: &mut Vec<u64>,
    table: &mut [f32],
) {
    keys.clear();
    keys.extend(index.iter().zip(0u64..).map(|(&id, row)| u64::from(id) << 32 | row));
    keys.sort_unstable();
    add_sorted(arch, keys, (rows, hidden), 0, table);
}

/// `table` starts at row `base`. Splits between two ids until a task is small.
fn add_sorted<R: Real>(
    arch: Arch,
    keys: &[u64],
    (rows, hidden): (&[R], usize),
    base: usize,
    table: &mut [f32],
) {
    let id = |key: u64| (key >> 32) as usize;
    if keys.len() > TASK && rayon::current_num_threads() > 1 {
        let pivot = id(keys[keys.len() / 2]);
        let below = keys.partition_point(|&key| id(key) < pivot);
        let middle = if below > 0 { below } else { keys.partition_point(|&key| id(key) <= pivot) };
        if middle < keys.len() {
            let cut = id(keys[middle]);
            let (head, tail) = table.split_at_mut((cut - base) * hidden);
            rayon::join(
                || add_sorted(arch, &keys[..middle], (rows, hidden), base, head),
                || add_sorted(arch, &keys[middle..], (rows, hidden), cut, tail),
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
