//! Times by the device's own clock.

use std::time::{Duration, Instant};

use crate::Result;
use crate::engine::{Engine, Floats};

/// Calls timed in a row before the clock is read.
const ROUND: usize = 3;

/// Waits for the device: reading one element back waits for all that was queued before.
pub struct Fence<E: Engine>(Floats<E>);

impl<E: Engine> Fence<E> {
    pub fn new(engine: &E) -> Result<Self> {
        Ok(Self(engine.zeros(1)?))
    }

    pub fn wait(&self, engine: &E) -> Result<()> {
        engine.download(&self.0, 0..1).map(drop)
    }
}

/// Seconds of one call by the device's clock, and the number of calls timed: the median of at least `ROUND`
/// calls over about `budget`, after a call that warms up.
pub fn time<E: Engine>(
    engine: &E,
    budget: Duration,
    mut call: impl FnMut() -> Result<()>,
) -> Result<(f64, usize)> {
    call()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.is_empty() || start.elapsed() < budget {
        times.extend(engine.time(ROUND, &mut call)?);
    }
    Ok((median(&mut times), times.len()))
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
