//! GELU over whole arrays.

use super::math;
use super::tasks::{In, Out, each, vectorised};
use crate::engine::Real;
use pulp::Arch;

/// Values of one task.
const CHUNK: usize = 1 << 14;

/// act = GELU(pre).
pub fn gelu<R: Real>(arch: Arch, pre: &[R], act: &mut [R]) {
    each((In(pre, 1), Out(act, 1)), CHUNK, &|_, (pre, act)| {
        vectorised(
            arch,
            #[inline(always)]
            || {
                for (act, &x) in act.0.iter_mut().zip(pre.0) {
                    *act = R::from_f32(math::gelu(x.to_f32()));
                }
            },
        );
    });
}

/// dact *= GELU'(pre).
pub fn gelu_backward<R: Real>(arch: Arch, pre: &[R], dact: &mut [R]) {
    each((In(pre, 1), Out(dact, 1)), CHUNK, &|_, (pre, dact)| {
        vectorised(
            arch,
            #[inline(always)]
            || {
                for (d, &x) in dact.0.iter_mut().zip(pre.0) {
                    *d = R::from_f32(d.to_f32() * math::gelu_slope(x.to_f32()));
                }
            },
        );
    });
}
