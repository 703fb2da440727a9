//! The CPU engine against plain double-precision arithmetic. Every operation is written a second time in
//! `naive`, generic over the float type. In f64 it is the truth; in f32 it is the yardstick: the engine may
//! be at most twice as far from the truth. The f64 gradients are themselves checked against central
//! differences.

mod attention;
mod determinism;
mod linear;
pub mod losses;
mod masking;
pub mod naive;
pub mod optimiser;
mod rows;
pub mod stored;
pub mod support;
