//! What is measured and the results, as the report has them.

use serde::Serialize;

use crate::engine::cases::Sizes;
use crate::model::Shape;
use crate::train::counted::{FlopRates, Work};

/// The work that is measured.
#[derive(Clone, Debug, Serialize)]
pub struct Workload {
    pub shape: Shape,
    pub pack_tokens: usize,
    /// Tokens of every sequence.
    pub length: usize,
    pub mask_rate: f32,
    pub dropout: f32,
    pub packs_per_step: usize,
}

/// What the machine reaches when nothing is in the way.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// Best matrix product over several sizes, FLOP/s of one rank.
    pub flops: f64,
    /// Best of a copy of rows and a sum of squares over 256 MB, bytes/s of one rank.
    pub bandwidth: f64,
}

/// One operation.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    /// The case.
    pub name: &'static str,
    /// The operation.
    pub op: &'static str,
    /// Median of the calls.
    pub ms: f64,
    pub calls: usize,
    pub flops: f64,
    /// The least bytes that it must move.
    pub bytes: f64,
    /// The time that the machine's peaks allow, over the time it took; 0 to about 1.
    pub share_of_light: f64,
}

/// Whole training steps.
#[derive(Clone, Debug, Serialize)]
pub struct StepSpeed {
    pub steps: usize,
    /// Median, milliseconds.
    pub step_ms: f64,
    /// The part of it spent waiting for the loader.
    pub waited_ms: f64,
    /// Of all ranks.
    pub tokens_per_s: f64,
    pub flops_per_token: f64,
    /// As a share of `Peaks::flops` on every rank.
    pub mfu: f64,
}

/// The sum of all gradients over ranks.
#[derive(Clone, Debug, Serialize)]
pub struct ReduceSpeed {
    pub bytes: usize,
    pub ms: f64,
    /// 2 (n - 1) / n of the bytes per second, which is what a ring sends.
    pub bus_bytes_per_s: f64,
}

/// All that `bench` measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub code: &'static str,
    pub machine: String,
    pub device: &'static str,
    pub ranks: usize,
    pub threads: usize,
    pub workload: Workload,
    pub peaks: Peaks,
    pub operations: Vec<Operation>,
    pub step: StepSpeed,
    /// Tokens/s of one rank's loader when nothing else runs.
    pub loader_tokens_per_s: f64,
    /// Absent on one rank.
    pub all_reduce: Option<ReduceSpeed>,
}

impl Workload {
    /// The sizes at which single operations are timed: one pack.
    pub(super) fn sizes(&self) -> Sizes {
        let Shape { hidden, heads, intermediate, vocab, .. } = self.shape;
        let sequences = (self.pack_tokens / self.length).max(1);
        let even = Sizes::even(sequences, self.length, [hidden, heads, intermediate, vocab]);
        Sizes { dropout: self.dropout, mask_rate: self.mask_rate, ..even }
    }

    /// FLOPs of a token of the workload.
    pub(super) fn flops_per_token(&self, rates: &FlopRates) -> f64 {
        const SEQUENCES: usize = 1000;
        let tokens = SEQUENCES * self.length;
        let masked = (tokens as f64 * f64::from(self.mask_rate)) as usize;
        let attended = (tokens * self.length) as u64;
        rates.flops(&Work { tokens, attended, masked, sequences: SEQUENCES }) / tokens as f64
    }
}
