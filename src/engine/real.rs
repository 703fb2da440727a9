//! The types of weights and activations: f32, or bf16. Every bf16 value is also an f32; other values are
//! rounded when they are stored. Neither conversion branches, so loops over them become vector code.

use half::bf16;

/// What buffers hold.
pub trait Elem: bytemuck::Pod + Default + Send + Sync + std::fmt::Debug {}
impl Elem for f32 {}
impl Elem for u32 {}
impl Elem for half::bf16 {}

/// A type of weights and activations.
pub trait Real: Elem {
    /// `f32` or `bf16`; names of kernels end in it.
    const NAME: &'static str;
    /// Whether it is narrower than f32.
    const NARROW: bool;
    /// Rounds to nearest, ties to even; a NaN stays one.
    fn from_f32(value: f32) -> Self;
    fn to_f32(self) -> f32;
}

impl Real for f32 {
    const NAME: &'static str = "f32";
    const NARROW: bool = false;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Real for bf16 {
    const NAME: &'static str = "bf16";
    const NARROW: bool = true;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        Self::from_bits(if value.is_nan() { quiet } else { nearest } as u16)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the `half` crate, over all exponents and the bits around every rounding.
    #[test]
    fn bf16_is_rounded_to_nearest_even() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let (got, expected) = (<bf16 as Real>::from_f32(value), bf16::from_f32(value));
                assert_eq!(got.to_bits(), expected.to_bits(), "{:#x}", value.to_bits());
            }
            let value = bf16::from_bits(high);
            let (got, expected) = (Real::to_f32(value), bf16::to_f32(value));
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan());
        }
    }
}
