//! Scalar functions without branches or library calls, so that loops over them become vector code, and sums
//! over sixteen explicit lanes, because float additions may not be reordered by the compiler. A NaN or an
//! infinity in the input shows in the output: the trainer detects broken steps by it.

/// Partial sums of a reduction; the lanes of one AVX-512 register.
const LANES: usize = 16;

/// e^x within 2 ulp, as Cephes' `expf`: e^x = 2^n e^r with |r| <= ln 2 / 2. Below -87.3 it stays at
/// 1.2e-38, above 88.7 at 3.4e38.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const LN2_HIGH: f32 = 0.693_359_4; // few enough bits that n * LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons and not `max`/`min`: those would turn NaN into the bound.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.7 { 88.7 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let e = p.mul_add(r * r, r) + 1.0;
    // 2^n in two factors, because 2^128 itself is not a float.
    let n = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    e * power(half) * power(n.wrapping_sub(half))
}

/// (Phi(x), e^(-x^2 / 2)), Phi the normal distribution function. Phi(-|x|) = e^(-x^2 / 2) u P(u)
/// with u = 1 / (1 + 0.26 |x|): the form of Abramowitz & Stegun 7.1.26 with a Chebyshev fit of
/// degree 8 on |x| <= 14 (relative error 6e-8 before rounding). Unlike 1 + erf it keeps its relative accuracy
/// in the left tail.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let t = x.abs();
    let e = exp(-0.5 * x * x);
    let u = 1.0 / t.mul_add(0.26, 1.0);
    let p = 0.032_189_06f32;
    let p = p.mul_add(u, -0.160_858_16);
    let p = p.mul_add(u, 0.267_731_23);
    let p = p.mul_add(u, -0.169_100_44);
    let p = p.mul_add(u, 0.173_176_7);
    let p = p.mul_add(u, 0.045_956);
    let p = p.mul_add(u, 0.104_291_78);
    let p = p.mul_add(u, 0.102_844_98);
    let p = p.mul_add(u, 0.103_768_855);
    let tail = e * u * p;
    (if x > 0.0 { 1.0 - tail } else { tail }, e)
}

/// x Phi(x): GELU in its exact form (Hendrycks & Gimpel 2016), as BERT has it.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x * normal(x).0
}

/// Its derivative, Phi(x) + x phi(x).
#[inline(always)]
pub fn gelu_slope(x: f32) -> f32 {
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    let (cdf, e) = normal(x);
    (x * INV_SQRT_2PI).mul_add(e, cdf)
}

/// tanh within 4 ulp: 1 - 2 / (e^2|x| + 1) away from zero, the odd series of Cephes near it.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let t = x.abs();
    let far = 1.0 - 2.0 / (exp(2.0 * t) + 1.0);
    let s = x * x;
    let p = -5.704_988_7e-3f32;
    let p = p.mul_add(s, 2.063_909e-2);
    let p = p.mul_add(s, -5.373_971_6e-2);
    let p = p.mul_add(s, 1.333_144_2e-1);
    let p = p.mul_add(s, -3.333_328e-1);
    let near = (p * s).mul_add(t, t);
    let y = if t < 0.625 { near } else { far };
    y.copysign(x)
}

/// The sum of the lanes in a fixed order.
#[inline(always)]
fn across(lanes: [f32; LANES]) -> f32 {
    let mut x = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            x[i] += x[i + half];
        }
        half /= 2;
    }
    x[0]
}

/// Sum of f(a).
#[inline(always)]
pub fn sum(a: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = a.as_chunks::<LANES>();
    for a in blocks {
        for l in 0..LANES {
            lanes[l] += f(a[l]);
        }
    }
    for (lane, &a) in lanes.iter_mut().zip(rest) {
        *lane += f(a);
    }
    across(lanes)
}

/// Sum of f(a, b) over slices of the same length.
#[inline(always)]
pub fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for l in 0..LANES {
            lanes[l] += f(a[l], b[l]);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += f(a, b);
    }
    across(lanes)
}

/// Sum of f(a, b, c) over slices of the same length.
#[inline(always)]
pub fn sum3(a: &[f32], b: &[f32], c: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let (c_blocks, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a_blocks.iter().zip(b_blocks).zip(c_blocks) {
        for l in 0..LANES {
            lanes[l] += f(a[l], b[l], c[l]);
        }
    }
    for (((lane, &a), &b), &c) in lanes.iter_mut().zip(a_rest).zip(b_rest).zip(c_rest) {
        *lane += f(a, b, c);
    }
    across(lanes)
}

/// row = e^(row - top); returns its sum.
#[inline(always)]
pub fn exp_in_place(row: &mut [f32], top: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = row.as_chunks_mut::<LANES>();
    for block in blocks {
        for l in 0..LANES {
            block[l] = exp(block[l] - top);
            lanes[l] += block[l];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = exp(*x - top);
        *lane += *x;
    }
    across(lanes)
}

/// The largest value; -inf if there is none. A NaN is skipped (the sum that follows shows it).
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    max2(a, a, |a, _| a)
}

/// The largest f(a, b) over slices of the same length, as `max`.
#[inline(always)]
pub fn max2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let larger = |new: f32, old: f32| if new > old { new } else { old };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for l in 0..LANES {
            lanes[l] = larger(f(a[l], b[l]), lanes[l]);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane = larger(f(a, b), *lane);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = larger(lanes[i + half], lanes[i]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest relative error of `f` against `exact` on a grid.
    fn worst(from: f64, to: f64, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        (0..200_000)
            .map(|i| (from + (to - from) * f64::from(i) / 199_999.0) as f32)
            .map(|x| (f64::from(f(x)) / exact(f64::from(x)) - 1.0).abs())
            .fold(0.0, f64::max)
    }

    /// Phi by the series of Marsaglia (2004); exact to double precision for |x| < 6.
    fn phi(x: f64) -> f64 {
        let (mut term, mut total, mut k) = (x, x, 1.0);
        while term.abs() > 1e-18 * total.abs() {
            k += 2.0;
            term *= x * x / k;
            total += term;
        }
        0.5 + total * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    #[test]
    fn exp_is_exact_to_two_units() {
        assert!(worst(-87.0, 88.6, exp, f64::exp) < 2.4e-7);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38);
        assert!(exp(88.7).is_finite());
    }

    #[test]
    fn tanh_is_exact_to_four_units() {
        assert!(worst(1e-6, 12.0, tanh, f64::tanh) < 4.8e-7);
        assert!(worst(-12.0, -1e-6, tanh, f64::tanh) < 4.8e-7);
        assert_eq!(tanh(0.0), 0.0);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_keeps_its_relative_accuracy() {
        assert!(worst(1e-4, 6.0, gelu, |x| x * phi(x)) < 4e-7);
        assert!(worst(-4.0, -1e-4, gelu, |x| x * phi(x)) < 1.5e-6);
        let slope = |x: f64| phi(x) + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        for i in -6000..6000 {
            let x = i as f32 / 1000.0;
            assert!((f64::from(gelu_slope(x)) - slope(f64::from(x))).abs() < 4e-7, "{x}");
        }
        assert!(gelu(-30.0).abs() < 1e-30 && gelu(30.0) == 30.0);
        assert!(gelu(f32::NAN).is_nan() && gelu_slope(f32::NAN).is_nan());
    }
}
