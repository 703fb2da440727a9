//! How attention's operands become cells (`cell`): gathered from rows, paired along or across them,
//! transposed.

use super::super::cell::Dot;
use super::super::widen::round;
use crate::engine::Real;
use pulp::Simd;

/// Cuts the next `len` words off `scratch`, as cells or f32.
#[inline(always)]
pub fn cut<'a, T: bytemuck::Pod>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [T] {
    let (head, rest) = std::mem::take(scratch).split_at_mut(len);
    *scratch = rest;
    bytemuck::cast_slice_mut(head)
}

/// Rows of D values as rows of `wide` / PER cells, pairs along the row, padded with zeros.
#[inline(always)]
pub fn gather<S: Simd, R: Real, D: Dot<S, R>>(
    from: &[R],
    at: impl Fn(usize) -> usize,
    d: usize,
    wide: usize,
    to: &mut [D::Cell],
) {
    for (i, to) in to.chunks_exact_mut(wide / D::PER).enumerate() {
        let row = &from[at(i)..][..d];
        // The next task's head comes right after: its lines arrive while this one is processed (rows are too
        // far apart for the hardware to predict).
        prefetch(row.as_ptr_range().end, d);
        let (whole, behind) = to.split_at_mut(d / D::PER);
        for (to, pair) in whole.iter_mut().zip(row.chunks_exact(D::PER)) {
            *to = D::cell(pair[0], pair[D::PER - 1]);
        }
        behind.fill(bytemuck::Zeroable::zeroed());
        if let ([last, ..], [value]) = (behind, row.chunks_exact(D::PER).remainder()) {
            *last = D::cell(*value, R::default());
        }
    }
}

/// `n` rows of D values as rows of `wide` cells, pairs of rows, padded with zeros.
#[inline(always)]
pub fn gather_pairs<S: Simd, R: Real, D: Dot<S, R>>(
    from: &[R],
    at: impl Fn(usize) -> usize,
    (n, d): (usize, usize),
    wide: usize,
    to: &mut [D::Cell],
) {
    for (i, to) in to.chunks_exact_mut(wide).take(n.div_ceil(D::PER)).enumerate() {
        let (first, second) = (D::PER * i, D::PER * i + D::PER - 1);
        let (to, behind) = to.split_at_mut(d);
        let first = &from[at(first)..][..d];
        prefetch(first.as_ptr_range().end, d);
        if second < n {
            let second = &from[at(second)..][..d];
            for ((to, &x), &y) in to.iter_mut().zip(first).zip(second) {
                *to = D::cell(x, y);
            }
        } else {
            for (to, &x) in to.iter_mut().zip(first) {
                *to = D::cell(x, R::default());
            }
        }
        behind.fill(bytemuck::Zeroable::zeroed());
    }
}

/// f32 rows as cells, pairs along the row; unchanged where a cell is one value.
#[inline(always)]
pub fn along<'a, S: Simd, R: Real, D: Dot<S, R>>(rows: &'a [f32], room: &'a mut [D::Cell]) -> &'a [D::Cell] {
    if D::PER == 1 {
        return bytemuck::cast_slice(rows);
    }
    let room = &mut room[..rows.len() / D::PER];
    round::<R>(rows, bytemuck::cast_slice_mut(room));
    room
}

/// f32 rows [n, keys] as cells [n / PER, keys], pairs of rows; unchanged where a cell is one value.
#[inline(always)]
pub fn across<'a, S: Simd, R: Real, D: Dot<S, R>>(
    rows: &'a [f32],
    keys: usize,
    room: &'a mut [D::Cell],
) -> &'a [D::Cell] {
    if D::PER == 1 {
        return bytemuck::cast_slice(rows);
    }
    let room = &mut room[..(rows.len() / keys).div_ceil(D::PER) * keys];
    for (pair, to) in rows.chunks(D::PER * keys).zip(room.chunks_exact_mut(keys)) {
        let (first, second) = pair.split_at(keys);
        if second.is_empty() {
            for (to, &x) in to.iter_mut().zip(first) {
                *to = D::cell(R::from_f32(x), R::default());
            }
        } else {
            for ((to, &x), &y) in to.iter_mut().zip(first).zip(second) {
                *to = D::cell(R::from_f32(x), R::from_f32(y));
            }
        }
    }
    room
}

/// Keys times 1 / sqrt(D), where a cell is one f32. Returns the factor that the scores still lack.
#[inline(always)]
pub fn scale_keys<S: Simd, R: Real, D: Dot<S, R>>(keys: &mut [D::Cell], scale: f32) -> f32 {
    if D::PER > 1 {
        return scale;
    }
    for x in bytemuck::cast_slice_mut::<D::Cell, f32>(keys) {
        *x *= scale;
    }
    1.0
}

/// Prefetches `len` values from `start`; any address is allowed.
#[inline(always)]
pub fn prefetch<T>(start: *const T, len: usize) {
    for at in (0..len).step_by(64 / size_of::<T>()) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch reads nothing that the program could see and never faults.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast());
        }
    }
}

/// to [_, keys] = from [s, wide] transposed: as many columns as fit in `to`, with zeros from s on. `wide` is
/// a multiple of 4.
#[inline(always)]
pub fn transpose<T: bytemuck::Pod>(from: &[T], s: usize, wide: usize, keys: usize, to: &mut [T]) {
    let zero: T = bytemuck::Zeroable::zeroed();
    for (four, to) in to.chunks_mut(4 * keys).enumerate() {
        let mut column = [[zero; 4]; 4];
        for j in (0..keys).step_by(4) {
            for (row, at) in column.iter_mut().zip(j..) {
                *row = [zero; 4];
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
