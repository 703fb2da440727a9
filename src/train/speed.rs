//! How fast training could be: what the speed of a run's steps is a share of.
//!
//! The best that was seen is asked for, not one measure: a machine that was busy at the one moment would have its
//! steps faster than itself. So the device's own matrix products are measured before the run and, on a device that
//! other programs use too, at moments all through it; and a step that was faster still counts as well.

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
/// The first step after which a run measures again.
const FIRST: u64 = 16;

/// What a run could reach, FLOP/s of all ranks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ceiling {
    /// The most that was seen, of large matrix products or of a step; 0 before anything was.
    best: f64,
    /// What the ranks' cards can do by their data sheets, where these are known.
    data_sheet: Option<f64>,
}

/// What of its ceilings a step reached; 1 is all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shares {
    /// Of the best that was seen.
    pub mfu: Option<f64>,
    /// Of the data sheet's peak.
    pub peak: Option<f64>,
}

impl Ceiling {
    pub fn new(best: f64, data_sheet: Option<f64>) -> Self {
        Self { best, data_sheet }
    }

    /// Before a run: measures products on all ranks at once and asks what their cards are. Takes about 0.1 s on a CPU.
    ///
    /// # Errors
    /// `Error::Device` where the device fails.
    pub fn measure<E: Engine>(engine: &E, world: &World) -> Result<Self> {
        let narrow = size_of::<E::Real>() == 2;
        let own = engine.gpu().map_or(0.0, |card| card.flops(narrow));
        let all = world.gather_f64(&[own]);
        let data_sheet = all.iter().all(|flops| *flops > 0.0).then(|| all.iter().sum());
        Ok(Self { best: product_speed(engine, world)?, data_sheet })
    }

    /// Measures again after step `step` if it is a moment for it, the same on every rank: a few in a run's life,
    /// ever further apart. A GPU is the run's alone, and its memory may have no room for products that large.
    ///
    /// # Errors
    /// As `measure`.
    pub fn look_again<E: Engine>(&mut self, step: u64, engine: &E, world: &World) -> Result<()> {
        if !E::ASYNCHRONOUS && step >= FIRST && step.is_power_of_two() {
            self.raise(product_speed(engine, world)?);
        }
        Ok(())
    }

    /// `speed` was reached.
    pub fn raise(&mut self, speed: f64) {
        if speed.is_finite() {
            self.best = self.best.max(speed);
        }
    }

    /// As high as `other` where that is higher.
    pub fn join(&mut self, other: Self) {
        self.raise(other.best);
    }

    /// What share `flops` in `ms` milliseconds are. At most 1 of the best, where `raise` was told of the speed.
    pub fn shares(&self, flops: f64, ms: f64) -> Shares {
        let of = |ceiling: f64| {
            let known = ms > 0.0 && flops > 0.0 && ceiling > 0.0;
            known.then(|| speed(flops, ms) / ceiling)
        };
        Shares { mfu: of(self.best), peak: self.data_sheet.and_then(of) }
    }
}

/// FLOP/s.
pub fn speed(flops: f64, ms: f64) -> f64 {
    flops / ms * 1e3
}

/// Speed of large matrix products on all ranks at once, FLOP/s: the best of a few sizes.
fn product_speed<E: Engine>(engine: &E, world: &World) -> Result<f64> {
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
