//! Dot products of bf16 pairs by AVX-512 BF16 (`vdpbf16ps`): 32 multiply-adds into 16 sums in f32,
//! twice the work of an f32 multiply-add at the same rate. Values below 2^-126 count as 0.

use super::cell::{Dot, Work};
use half::bf16;
use pulp::x86::V4;
use pulp::{Arch, f32x16, u32x16};
use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};
use std::mem::transmute;

/// Proof that the processor has the instruction and all of `V4`'s.
#[derive(Clone, Copy)]
pub struct Dots(V4);

impl Dots {
    /// `None` with an `arch` below AVX-512 or without the instruction.
    pub fn detect(arch: Arch) -> Option<Self> {
        match arch {
            Arch::V4(simd) if std::arch::is_x86_feature_detected!("avx512bf16") => Some(Self(simd)),
            _ => None,
        }
    }

    pub fn run<W: Work<bf16>>(self, work: W) -> W::Output {
        // SAFETY: V4 and `detect` have checked for these features.
        unsafe { with_dots(self, work) }
    }
}

#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]
fn with_dots<W: Work<bf16>>(dots: Dots, work: W) -> W::Output {
    work.run(dots.0, dots)
}

impl Dot<V4, bf16> for Dots {
    const PER: usize = 2;
    type Cell = u32;
    type Vector = u32x16;

    #[inline(always)]
    fn cells<const N: usize>(row: &[bf16]) -> [u32; N] {
        let bytes = bytemuck::cast_slice::<bf16, u8>(row).as_chunks::<4>().0;
        std::array::from_fn(|i| u32::from_le_bytes(bytes[i]))
    }

    #[inline(always)]
    fn cell(first: bf16, second: bf16) -> u32 {
        u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
    }

    #[inline(always)]
    fn splat(self, _: V4, cell: u32) -> u32x16 {
        bytemuck::cast([cell; 16])
    }

    #[inline(always)]
    fn mul_add(self, _: V4, x: u32x16, y: u32x16, sum: f32x16) -> f32x16 {
        // SAFETY: `self` proves the instruction; the types are 64 bytes that may hold any bits.
        unsafe {
            let (x, y) = (transmute::<u32x16, __m512bh>(x), transmute::<u32x16, __m512bh>(y));
            transmute::<__m512, f32x16>(_mm512_dpbf16_ps(transmute::<f32x16, __m512>(sum), x, y))
        }
    }
}
