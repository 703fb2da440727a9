//! What the optimiser remembers, on the host, with the ranges of the arena that it belongs to. A checkpoint
//! keeps it for each rank, and any number of ranks can resume from it.

use std::ops::Range;

use super::optimiser::OptimiserState;
use crate::Result;
use crate::engine::Engine;

/// The optimiser's arrays of one rank.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SavedOptimiser {
    /// Ranges of the arena that the arrays hold end to end, ascending: what learns, or the rank's share.
    pub owned: Vec<Range<usize>>,
    /// f32 weights where the device keeps narrower ones, else empty.
    pub master: Vec<f32>,
    /// [sum of `owned`]
    pub moment1: Vec<f32>,
    /// [sum of `owned`]
    pub moment2: Vec<f32>,
}

impl SavedOptimiser {
    /// Moments of zeros over `owned`, without f32 weights.
    pub fn zeros(owned: Vec<Range<usize>>) -> Self {
        let len = owned.iter().map(ExactSizeIterator::len).sum();
        Self { owned, master: Vec::new(), moment1: vec![0.0; len], moment2: vec![0.0; len] }
    }

    /// A copy of a rank's arrays; waits for the device.
    pub fn of<E: Engine>(engine: &E, state: &OptimiserState<E>) -> Result<Self> {
        let len = state.len();
        let master = if has_master::<E>() { len } else { 0 };
        Ok(Self {
            owned: state.owned.clone(),
            master: engine.download(&state.master, 0..master)?,
            moment1: engine.download(&state.moment1, 0..len)?,
            moment2: engine.download(&state.moment2, 0..len)?,
        })
    }

    /// Puts the arrays back into the state of the same `owned` ranges.
    pub fn restore<E: Engine>(&self, engine: &E, state: &mut OptimiserState<E>) -> Result<()> {
        engine.upload(&self.master, &mut state.master, 0)?;
        engine.upload(&self.moment1, &mut state.moment1, 0)?;
        engine.upload(&self.moment2, &mut state.moment2, 0)
    }

    /// Elements of each array.
    pub fn len(&self) -> usize {
        self.moment1.len()
    }

    /// Whether the rank owns nothing.
    pub fn is_empty(&self) -> bool {
        self.moment1.is_empty()
    }
}

/// Whether the optimiser keeps f32 weights beside a device's narrower ones.
pub fn has_master<E: Engine>() -> bool {
    size_of::<E::Real>() < size_of::<f32>()
}
