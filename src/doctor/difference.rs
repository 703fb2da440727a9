//! How far a result may be from the CPU engine's, and how far it is.

use crate::engine::Real;
use crate::engine::cases::Outcome;

/// Largest |device - CPU| / |CPU| (Euclidean norms) of an operation's result. On the software device
/// rounding left at most 1.8e-7 in f32 and 2.7e-3 in bf16; a wrong lane or a lost term leaves 1e-1 and more.
const ALLOWED_F32: f64 = 1e-4;
const ALLOWED_BF16: f64 = 3e-2;

/// How much error rounding may leave in an operation's result in this precision.
pub fn allowed<R: Real>() -> f64 {
    if size_of::<R>() == 2 { ALLOWED_BF16 } else { ALLOWED_F32 }
}

/// |got - expected| / |expected|; infinite if lengths differ or a value is NaN.
pub fn difference(expected: &Outcome, got: &Outcome) -> f64 {
    if expected.values.len() != got.values.len() {
        return f64::INFINITY;
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let pairs = || expected.values.iter().zip(&got.values).map(|(e, g)| f64::from(*e) - f64::from(*g));
    let (off, size) = (norm(&mut pairs()), norm(&mut expected.values.iter().map(|v| f64::from(*v))));
    match (off.is_finite(), off == 0.0) {
        (false, _) => f64::INFINITY,
        (true, true) => 0.0,
        (true, false) => off / size.max(f64::from(f32::MIN_POSITIVE)),
    }
}
