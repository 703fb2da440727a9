//! The instructions that this machine multiplies with. f32 products are fused multiply-adds of the
//! instruction set at hand. bf16 products are dot products of pairs (AVX-512 BF16) where the processor has
//! them, two multiply-adds a lane; elsewhere their operands are widened and multiplied as f32. Either way
//! sums are f32.

use super::cell::{Single, Work};
use super::dots::Dots;
use crate::engine::Real;
use half::bf16;
use pulp::{Arch, Simd, WithSimd};

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

/// A type that the CPU engine can store and multiply.
pub trait Operand: Real {
    /// Runs `work` with the machine's best instructions for products of this type.
    fn run<W: Work<Self>>(machine: Machine, work: W) -> W::Output;
}

impl Operand for f32 {
    fn run<W: Work<Self>>(machine: Machine, work: W) -> W::Output {
        machine.widened(work)
    }
}

impl Operand for bf16 {
    fn run<W: Work<Self>>(machine: Machine, work: W) -> W::Output {
        match machine.dots {
            Some(dots) => dots.run(work),
            None => machine.widened(work),
        }
    }
}
