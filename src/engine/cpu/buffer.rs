//! Memory of the CPU engine: 64-byte-aligned vectors, so that a row of a power-of-two width never
//! straddles a cache line, and a pool of scratch buffers, so that no operation allocates after its
//! first call.

use crate::engine::Elem;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

// SAFETY: an array of u32, which is valid for every bit pattern, zero included.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: 16 u32 fill the 64 bytes that the alignment asks for, so there is no padding.
unsafe impl bytemuck::Pod for Line {}

/// An owned vector of `len` elements, aligned to 64 bytes.
pub struct Buffer<T> {
    lines: Vec<Line>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Elem> Buffer<T> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        Self { lines: vec![Line([0; 16]); lines], len, element: PhantomData }
    }
}

impl<T: Elem> Deref for Buffer<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Elem> DerefMut for Buffer<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// Scratch buffers that outlive the operation that needed them. There is at most one for each running task,
/// and each grows to the largest size asked for.
#[derive(Default)]
pub struct Pool(Mutex<Vec<Buffer<f32>>>);

impl Pool {
    /// A buffer of `len` elements with unspecified content; goes back on drop.
    pub fn take(&self, len: usize) -> Scratch<'_> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let buffer = match kept {
            Some(buffer) if buffer.len() >= len => buffer,
            _ => Buffer::zeros(len),
        };
        Scratch { pool: self, buffer, len }
    }
}

/// A borrowed scratch buffer.
pub struct Scratch<'a> {
    pool: &'a Pool,
    buffer: Buffer<f32>,
    len: usize,
}

impl Deref for Scratch<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let buffer = std::mem::replace(&mut self.buffer, Buffer::zeros(0));
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}
