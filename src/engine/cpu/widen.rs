//! Rows of weights and activations as f32, whatever type they are stored in. f32 rows are processed in place.
//! bf16 rows are widened into a *room* of f32 in the first-level cache, processed there, and rounded when
//! they are stored. So the arithmetic is written once and is the same for both.

use crate::engine::Real;
use std::borrow::Cow;

/// Values of scratch taken by rooms for `values` values of R.
pub fn size<R: Real>(values: usize) -> usize {
    if R::NARROW { values } else { 0 }
}

/// N rooms of `width` values from `scratch`; empty where R needs none.
#[inline(always)]
pub fn rooms<R: Real, const N: usize>(mut scratch: &mut [f32], width: usize) -> [&mut [f32]; N] {
    std::array::from_fn(|_| {
        let (room, rest) = std::mem::take(&mut scratch).split_at_mut(size::<R>(width));
        scratch = rest;
        room
    })
}

/// The row as f32, to read.
#[inline(always)]
pub fn widen<'a, R: Real>(row: &'a [R], room: &'a mut [f32]) -> &'a [f32] {
    if R::NARROW {
        let room = &mut room[..row.len()];
        copy(row, room);
        room
    } else {
        bytemuck::cast_slice(row)
    }
}

/// The row as f32, to change; `store` must follow.
#[inline(always)]
pub fn open<'a, R: Real>(row: &'a mut [R], room: &'a mut [f32]) -> &'a mut [f32] {
    if R::NARROW {
        let room = &mut room[..row.len()];
        copy(row, room);
        room
    } else {
        bytemuck::cast_slice_mut(row)
    }
}

/// f32 for a row that is to be overwritten, with unspecified content; `store` must follow.
#[inline(always)]
pub fn fresh<'a, R: Real>(row: &'a mut [R], room: &'a mut [f32]) -> &'a mut [f32] {
    if R::NARROW { &mut room[..row.len()] } else { bytemuck::cast_slice_mut(row) }
}

/// Rounds what `open` or `fresh` gave into the row.
#[inline(always)]
pub fn store<R: Real>(room: &[f32], row: &mut [R]) {
    if R::NARROW {
        round(room, row);
    }
}

/// As `store`; returns the row as it is now stored, so that later arithmetic sees the same values.
#[inline(always)]
pub fn settle<'a, R: Real>(room: &'a mut [f32], row: &'a mut [R]) -> &'a [f32] {
    if R::NARROW {
        for (row, x) in row.iter_mut().zip(&mut *room) {
            *row = R::from_f32(*x);
            *x = row.to_f32();
        }
        &room[..row.len()]
    } else {
        bytemuck::cast_slice(row)
    }
}

/// to = from.
#[inline(always)]
pub fn copy<R: Real>(from: &[R], to: &mut [f32]) {
    for (to, &x) in to.iter_mut().zip(from) {
        *to = x.to_f32();
    }
}

/// to = from, rounded.
#[inline(always)]
pub fn round<R: Real>(from: &[f32], to: &mut [R]) {
    for (to, &x) in to.iter_mut().zip(from) {
        *to = R::from_f32(x);
    }
}

/// Parameters as f32: small, and read for every row.
pub fn parameters<R: Real>(values: &[R]) -> Cow<'_, [f32]> {
    if R::NARROW {
        Cow::Owned(values.iter().map(|x| x.to_f32()).collect())
    } else {
        Cow::Borrowed(bytemuck::cast_slice(values))
    }
}
