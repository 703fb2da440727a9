//! What one update did and what the ranks told each other meanwhile: plain numbers, which the loop
//! makes and everything around it reads.

use super::health::Signs;
use crate::engine::stats;

/// What one update did, summed over ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Update {
    /// Updates made so far, this one included.
    pub step: u64,
    pub epoch: u32,
    /// The weighted objective: means over the step's masked tokens, pairs or groups, in nats.
    pub loss: f64,
    /// Sums and counts as `engine::stats` orders them.
    pub sums: [f64; stats::SLOTS],
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// Tokens of all ranks.
    pub tokens: usize,
    /// Milliseconds of the whole step, waiting for the loader included.
    pub step_ms: f64,
    pub waited_ms: f64,
    /// Milliseconds in which this rank's host was busy with, or waited for, exchanges between ranks.
    pub exchange_ms: f64,
    /// Floating-point operations of all ranks.
    pub flops: f64,
    /// Updates of the run that a non-finite gradient made void.
    pub skipped: u64,
    /// How many of them in a row end with this one.
    pub skipped_in_row: u32,
    /// What the ranks agreed on in this step's exchange.
    pub agreed: Agreed,
    /// How unusual the step was.
    pub signs: Signs,
}

impl Update {
    /// `sum / count` of two statistics; `None` where nothing was counted.
    pub fn mean(&self, sum: usize, count: usize) -> Option<f64> {
        (self.sums[count] > 0.0).then(|| self.sums[sum] / self.sums[count])
    }
}

/// What one rank tells the others once a step, beside its sums.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Notice {
    /// A signal asked this rank to end.
    pub stop: bool,
    /// A checkpoint is due by this rank's clock; rank 0's counts.
    pub save: bool,
    /// The last step whose checkpoint this rank has written its share of; 0 is none.
    pub written: u64,
}

/// What follows from all ranks' notices, the same on every rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreed {
    /// A signal asked some rank to end.
    pub stop: bool,
    pub save: bool,
    /// The last step whose checkpoint every rank has written its share of.
    pub written: u64,
}
