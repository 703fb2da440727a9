//! What the products of this engine are made of: *cells* of operands, which `machine` multiplies with the
//! best instructions at hand, and work that is written once for all of them.

use crate::engine::Real;
use pulp::Simd;

/// How operands of type R lie in packed panels and how they are multiplied. A *cell* holds PER
/// neighbours along k.
pub trait Dot<S: Simd, R>: Copy + Send + Sync {
    /// Values of a cell.
    const PER: usize;
    type Cell: bytemuck::Pod + Send + Sync;
    /// `S::F32_LANES` cells.
    type Vector: bytemuck::Pod;

    /// The first N cells of `row`, whose neighbours along k lie side by side.
    fn cells<const N: usize>(row: &[R]) -> [Self::Cell; N];
    /// A cell of two neighbours along k; unless PER is 2, only the first counts.
    fn cell(first: R, second: R) -> Self::Cell;
    fn splat(self, simd: S, cell: Self::Cell) -> Self::Vector;
    /// sum + x y in each lane, summed over the cell.
    fn mul_add(self, simd: S, x: Self::Vector, y: Self::Vector, sum: S::f32s) -> S::f32s;
}

/// One value a cell, as f32.
#[derive(Clone, Copy)]
pub struct Single;

impl<S: Simd, R: Real> Dot<S, R> for Single {
    const PER: usize = 1;
    type Cell = f32;
    type Vector = S::f32s;

    #[inline(always)]
    fn cells<const N: usize>(row: &[R]) -> [f32; N] {
        std::array::from_fn(|i| row[i].to_f32())
    }

    #[inline(always)]
    fn cell(first: R, _: R) -> f32 {
        first.to_f32()
    }

    #[inline(always)]
    fn splat(self, simd: S, cell: f32) -> S::f32s {
        simd.splat_f32s(cell)
    }

    #[inline(always)]
    fn mul_add(self, simd: S, x: S::f32s, y: S::f32s, sum: S::f32s) -> S::f32s {
        simd.mul_add_f32s(x, y, sum)
    }
}

/// Work that multiplies operands of type R. `run` must be `#[inline(always)]`: it is compiled for the
/// instructions that it is called with.
pub trait Work<R> {
    type Output;
    fn run<S: Simd, D: Dot<S, R>>(self, simd: S, dot: D) -> Self::Output;
}
