//! What this machine multiplies with. f32 products are fused multiply-adds of the instruction set at
//! hand. bf16 products are dot products of pairs (AVX-512 BF16) where the processor has them, two
//! multiply-adds a lane; elsewhere their operands are widened and multiplied as f32. Either way sums
//! are f32.

use super::dots::Dots;
use super::kernels::{self, Kernels};
use crate::engine::Real;
use half::bf16;
use pulp::{Arch, Simd, WithSimd};

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
    /// A cell of two neighbours along k; without PER = 2 only the first counts.
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

/// The instructions in use.
#[derive(Clone, Copy)]
pub struct Machine {
    pub arch: Arch,
    dots: Option<Dots>,
}

impl Machine {
    pub fn new(arch: Arch) -> Self {
        Self { arch, dots: Dots::detect(arch) }
    }

    /// The same without dot products of pairs.
    pub fn widening(self) -> Self {
        Self { dots: None, ..self }
    }

    /// Whether bf16 operands are multiplied as pairs.
    pub fn has_dots(self) -> bool {
        self.dots.is_some()
    }

    fn widened<R: Real, W: Work<R>>(self, work: W) -> W::Output {
        struct Widened<R, W>(W, std::marker::PhantomData<R>);

        impl<R: Real, W: Work<R>> WithSimd for Widened<R, W> {
            type Output = W::Output;

            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) -> W::Output {
                self.0.run(simd, Single)
            }
        }

        self.arch.dispatch(Widened(work, std::marker::PhantomData))
    }
}

/// What the CPU engine can keep and multiply.
pub trait Operand: Real {
    /// Runs `work` with the machine's best instructions for products of this type.
    fn run<W: Work<Self>>(machine: Machine, work: W) -> W::Output;
    /// The engine's operations on this type.
    fn kernels() -> &'static Kernels<Self>;
}

impl Operand for f32 {
    fn run<W: Work<Self>>(machine: Machine, work: W) -> W::Output {
        machine.widened(work)
    }

    fn kernels() -> &'static Kernels<Self> {
        &kernels::WIDE
    }
}

impl Operand for bf16 {
    fn run<W: Work<Self>>(machine: Machine, work: W) -> W::Output {
        match machine.dots {
            Some(dots) => dots.run(work),
            None => machine.widened(work),
        }
    }

    fn kernels() -> &'static Kernels<Self> {
        &kernels::NARROW
    }
}
