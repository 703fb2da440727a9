//! How fast training could be: floating-point operations of a step, and the speed of this device's own
//! matrix products, measured at the start of a run.

use std::time::{Duration, Instant};

use crate::Result;
use crate::engine::{Backend, Epilogue, LinearAt, PackCounts, Rows};
use crate::model::Shape;
use crate::model::shape::flops_per_token;
use crate::ranks::World;

/// Sides of the square products that are tried, until one takes more than `ENOUGH`.
const SIDES: [usize; 4] = [768, 1536, 3072, 6144];
const ENOUGH: Duration = Duration::from_millis(5);
/// Products of one size: the first warms caches and is left out.
const TIMES: usize = 4;

/// What a step computes, over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// T
    pub tokens: usize,
    /// Sum over sequences of their squared length: pairs of tokens that attend to each other.
    pub attended: u64,
    /// M
    pub masked: usize,
}

impl Work {
    /// Training FLOPs of all tokens, as `flops_per_token` counts them. What is frozen or computed twice
    /// counts as if it were not.
    pub fn flops(&self, shape: &Shape) -> f64 {
        let (tokens, each) = (self.tokens as f64, self.tokens.max(1) as f64);
        tokens * flops_per_token(shape, self.attended as f64 / each, self.masked as f64 / each)
    }
}

/// Speed of large matrix products on all ranks at once, FLOP/s: the best of a few sizes. Takes about
/// 0.1 s on a CPU.
pub fn product_speed<B: Backend>(backend: &B, world: &World) -> Result<f64> {
    let mut best = [0.0f64];
    for side in SIDES {
        let took = product(backend, side)?;
        best[0] = best[0].max(2.0 * (side as f64).powi(3) / took.as_secs_f64());
        if took > ENOUGH {
            break;
        }
    }
    world.sum_f64(&mut best);
    Ok(best[0])
}

/// The least time of a product of two `side` x `side` matrices.
fn product<B: Backend>(backend: &B, side: usize) -> Result<Duration> {
    let at = LinearAt { w: 0, b: 0, n: side, k: side };
    let values: Vec<f32> = (0..side * side).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
    let (mut x, mut w) = (backend.zeros(side * side)?, backend.zeros(side * side)?);
    let mut y = backend.zeros(side * side)?;
    backend.upload_weights(&values, &mut x, 0)?;
    backend.upload_weights(&values, &mut w, 0)?;
    backend.begin_pack(&PackCounts { tokens: side as u32, ..PackCounts::default() })?;
    let mut best = Duration::MAX;
    for turn in 0..TIMES {
        let start = Instant::now();
        backend.linear(&x, &w, at, Rows::Tokens(side), Epilogue::None, &mut y)?;
        backend.download_weights(&y, 0..1)?; // waits for the device
        if turn > 0 {
            best = best.min(start.elapsed());
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published counts of BERT-base: 587.9 MFLOP a token at 512 tokens, 545.4 at 128.
    #[test]
    fn flops_of_bert_base() {
        let shape = Shape {
            vocab: 30522,
            hidden: 768,
            layers: 12,
            heads: 12,
            intermediate: 3072,
            positions: 512,
            segments: 2,
        };
        for (length, mega) in [(512, 587.9), (256, 559.5), (128, 545.4)] {
            let tokens = 1000 * length;
            let work = Work { tokens, attended: 1000 * (length * length) as u64, masked: tokens * 15 / 100 };
            let per_token = work.flops(&shape) / tokens as f64 / 1e6;
            assert!((per_token - mega).abs() < 0.1, "{length}: {per_token}");
        }
    }
}
