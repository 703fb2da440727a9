//! The time that counted operations (`engine::dry`) take on a GPU: for each, the longest of memory, tensor
//! cores and lanes. The caller adds the time between kernels.

use super::hardware::Gpu;
use crate::engine::dry::{Counts, Tally};
use crate::engine::op::Kind;

/// All runs of one operation.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Operation {
    pub name: &'static str,
    pub kind: Kind,
    #[serde(flatten)]
    pub tally: Tally,
}

/// The operations of `counts`, in the order of their names.
pub fn operations(counts: &Counts) -> Vec<Operation> {
    let operation =
        |(&(name, kind), &tally): (&(&'static str, Kind), &Tally)| Operation { name, kind, tally };
    counts.operations.iter().map(operation).collect()
}

impl Operation {
    /// Seconds of all runs.
    pub fn seconds(&self, gpu: &Gpu) -> f64 {
        let runs = self.tally.runs.max(1) as f64;
        let memory = gpu.memory_seconds(self.tally.bytes / runs);
        let lanes = self.tally.lanes / runs / gpu.lanes;
        // attention's shares count as work the scores that backward computes again
        let tensor = match self.kind {
            Kind::Product(shape) => gpu.product_seconds(shape),
            Kind::AttentionForward => self.tally.flops / runs / (gpu.peak * gpu.attention_share[0]),
            Kind::AttentionBackward => self.tally.flops / runs / (gpu.peak * gpu.attention_share[1]),
            Kind::Rows | Kind::Update => 0.0,
        };
        let each = match self.kind {
            // the rates include softmax but were measured without dropout, so its draws come on top
            Kind::AttentionForward | Kind::AttentionBackward => memory.max(tensor + lanes),
            _ => memory.max(tensor).max(lanes),
        };
        runs * each
    }
}
