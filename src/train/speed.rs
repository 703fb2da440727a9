//! How fast training could be: the speed of this device's own matrix products, measured at the start of a
//! run.

use std::time::{Duration, Instant};

use crate::Result;
use crate::engine::op::{self, Epilogue, LinearAt};
use crate::engine::{Engine, PackCounts, Rows};
use crate::ranks::World;

/// Sides of the square products that are tried, until one takes more than `ENOUGH`.
const SIDES: [usize; 4] = [768, 1536, 3072, 6144];
const ENOUGH: Duration = Duration::from_millis(5);
/// Products of one size: the first warms caches and is left out.
const TIMES: usize = 4;

/// Speed of large matrix products on all ranks at once, FLOP/s: the best of a few sizes. Takes about
/// 0.1 s on a CPU.
pub fn product_speed<E: Engine>(engine: &E, world: &World) -> Result<f64> {
    let mut best = [0.0f64];
    for side in SIDES {
        let took = product(engine, side)?;
        best[0] = best[0].max(2.0 * (side as f64).powi(3) / took.as_secs_f64());
        if took > ENOUGH {
            break;
        }
    }
    world.sum_f64(&mut best);
    Ok(best[0])
}

/// The least time of a product of two `side` x `side` matrices.
fn product<E: Engine>(engine: &E, side: usize) -> Result<Duration> {
    let (at, rows) = (LinearAt { w: 0, b: 0, n: side, k: side }, Rows::Tokens(side));
    let values: Vec<f32> = (0..side * side).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
    let (mut x, mut w) = (engine.zeros(side * side)?, engine.zeros(side * side)?);
    let mut y = engine.zeros(side * side)?;
    engine.upload_weights(&values, &mut x, 0)?;
    engine.upload_weights(&values, &mut w, 0)?;
    engine.begin_pack(&PackCounts { tokens: side as u32, ..PackCounts::default() })?;
    let mut best = Duration::MAX;
    for turn in 0..TIMES {
        let start = Instant::now();
        engine.run(op::Linear { x: &x, weights: &w, at, rows, epilogue: Epilogue::None, out: &mut y })?;
        engine.download_weights(&y, 0..1)?; // waits for the device
        if turn > 0 {
            best = best.min(start.elapsed());
        }
    }
    Ok(best)
}
